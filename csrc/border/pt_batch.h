/* One turn of a loop, or what a worker has brought, for CPython. */
#ifndef PT_BATCH_H
#define PT_BATCH_H

#include <Python.h>

#include "pt_loop.h"
#include "pt_worker.h"

/* One tuple to be: a frame, or consecutive plain DATA frames of one link. */
typedef struct item {
    uint64_t a;   /* BATCH: payload bytes; FRAME: type, flags, sequence, and id of what landed */
    size_t first; /* index of its first payload */
    size_t count; /* of its payloads */
    uint32_t kind;
    uint32_t tag;
    uint32_t is_empty; /* FRAME: 1 without payload */
} item;

/* What turn is bound to. What a turn brings is first collected here and then told to Python, so
 * that a lack of memory on the way loses nothing: what was not told stays for the next turn. */
typedef struct bound_loop {
    pt_context *context;
    PyObject *owner;
    pt_worker *worker; /* that turns it, as of the last turn; NULL: none */
    pt_event *events;
    PyObject **payloads; /* bytes objects, one reference each until they are told */
    item *items;
    PyObject *told; /* list of final length that is being filled; NULL between turns */
    size_t payload_count;
    size_t payload_capacity;
    size_t item_count;
    size_t item_capacity;
    size_t told_count; /* items, then events, already in told */
    int capacity;
    int event_count;
    int late_count; /* events that are there, behind records of a worker that are not told */
    int busy;       /* 1: a turn runs; a finalizer that calls it again is refused */
} bound_loop;

/* What a turn of bind_loop() is bound to. NULL with TypeError: it is none. */
bound_loop *pt_batch_of(PyObject *turn);

/* What a native function of this border is bound to. NULL with TypeError, which says so: it is
 * bound to nothing. */
void *pt_batch_bound(PyObject *function, const char *otherwise);

/* A turn, or what a worker's turns have brought. PT_OK or a code; before anything was read, or with
 * what was read kept here. */
int pt_batch_gather(bound_loop *bound);

/* Note the records of blocks as if they had just come. Returns the block where memory ran out, with
 * what is left in it and behind it; NULL: nowhere. */
pt_block *pt_batch_collect(bound_loop *bound, pt_block *blocks);

/* All that was noted was told. After a burst the arrays begin anew: a node must not keep what its
 * busiest turn needed. */
void pt_batch_clear(bound_loop *bound);

/* Serves one event of what has become ready: 1 when nobody else need hear of that. Runs no Python
 * code. */
typedef int pt_batch_server(void *server_context, const pt_event *event);

/* A turn for a list that has the events then, but for those that serve() has served; NULL: none
 * does. Returns how many are in the list now, a negative code, or NULL with MemoryError: the next
 * turn tells the rest. */
PyObject *pt_batch_turn(bound_loop *bound, PyObject *events, pt_batch_server *serve,
                        void *server_context);

/* What was busy is over. A link whose records and events lie here must not tell others from
 * elsewhere. */
void pt_batch_rest(bound_loop *bound);

/* Add bind_loop(), which pt_border.h describes, to a module object, with the GIL held. Returns 0,
 * or -1 with an exception. */
int pt_batch_attach(PyObject *module);

#endif
