/* What a task of asyncio waits for until a future of pt_futures.h is worth another try. */
#ifndef PT_WAKER_H
#define PT_WAKER_H

#include <Python.h>

enum { PT_WAKER_WAITS, PT_WAKER_TOLD, PT_WAKER_OVER, PT_WAKER_CANCELLED };

/* It speaks what asyncio asks of a future, for one task at a time, and is used for one wait after
 * the other. */
typedef struct pt_waker {
    PyObject base;
    PyObject *loop;    /* of the task */
    PyObject *resume;  /* by which it goes on right after the turn; None: in the next tick */
    PyObject *tell;    /* its method of that name: what a state has as a waker */
    PyObject *step;    /* the task takes its next step by it; NULL: no task waits */
    PyObject *context; /* in which it does that */
    PyObject *run;     /* the method of this context; NULL: none yet */
    PyObject *message; /* of a cancel(); NULL: none */
    char state;        /* PT_WAKER_* */
    char blocking;     /* 1 from the moment where it is given to a task until that has noticed */
} pt_waker;

/* One that was never told. NULL with an exception. */
pt_waker *pt_waker_new(PyObject *loop, PyObject *resume);

/* 1 when nobody but whoever made it has it any more. */
int pt_waker_is_free(pt_waker *waker);

/* Make it ready for a wait. */
void pt_waker_begin(pt_waker *waker);

/* The waker whose method tell() this object is; NULL: of none. A borrowed reference. */
pt_waker *pt_waker_of(PyObject *tell);

/* Have the task go on when the turn is done: put the waker into woken, a list of what is called
 * then. Runs no Python code. 0, or -1 with MemoryError and nothing changed. */
int pt_waker_tell_in_turn(pt_waker *waker, PyObject *woken);

/* Add the type Waker to a module object, with the GIL held. Returns 0, or -1 with an exception.
 *
 *   Waker(loop, resume)
 *
 * resume: as Worker.resume, or None. tell() has whoever waits go on, at most once, by way of
 * resume(waker), or the loop; False: he was told already. A call of the waker is his step. */
int pt_waker_attach(void *module);

#endif
