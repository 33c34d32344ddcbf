/* What the files of the futures of streams say to each other: see pt_futures.h. */
#ifndef PT_FUTURES_INSIDE_H
#define PT_FUTURES_INSIDE_H

#include <Python.h>

#include "pt_channel.h"

enum { PT_FUTURE_READ, PT_FUTURE_EXACTLY, PT_FUTURE_WRITE_ALL, PT_FUTURE_KINDS };

/* What a step has come to: go on; the result is there; a waker is; what is in Python is to do the
 * rest; an exception. */
enum { PT_GO, PT_DONE, PT_WAIT, PT_ASK, PT_FAIL };

/* A read or a write that was asked for. */
typedef struct pt_future {
    PyObject base;
    PyObject *stream;
    pt_channel *channel;
    PyObject *argument; /* the size, or the data */
    PyObject *inner;    /* what is in Python and does the rest; else NULL */
    pt_waker *waker;    /* by which whoever waits is told; else NULL */
    PyObject *whole;    /* of a read: bytes that are being filled; else NULL */
    Py_buffer view;     /* of the data to be written; obj is NULL while there is none */
    size_t size;        /* bytes that were asked for, or are to be written */
    size_t done;        /* of these, those in whole or written */
    char kind;          /* PT_FUTURE_* */
    char stage;
} pt_future;

/* The side of the stream that it is about. */
static inline int pt_future_side(const pt_future *self)
{
    return self->kind == PT_FUTURE_WRITE_ALL ? PT_WRITES : PT_READS;
}

/* One that has not begun. NULL with an exception. */
PyObject *pt_future_make(int kind, PyObject *stream, pt_channel *channel, PyObject *argument);

/* name(first, second) of its stream; NULL ends the arguments. NULL with an exception. */
PyObject *pt_future_call(const pt_future *self, const char *name, PyObject *first,
                         PyObject *second);

/* Look whether it may begin, and whether what was read ahead is enough. PT_GO: try. Any but
 * PT_WAIT. */
int pt_future_begin(pt_future *self, PyObject **result);

/* Try once. PT_DONE: result is what came of it; PT_WAIT: result is a waker, a new reference. */
int pt_future_try(pt_future *self, PyObject **result);

/* What was read and not returned goes to what was read ahead. 0, or -1 with an exception. */
int pt_future_put_back(pt_future *self);

/* Add the function stream_methods(), with the GIL held. Returns 0, or -1 with an exception. */
int pt_methods_attach(void *module);

#endif
