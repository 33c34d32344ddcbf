/* The type of a link for CPython, which has its memory, and all that is sent on it. */
#ifndef PT_SENDER_H
#define PT_SENDER_H

#include <Python.h>

#include "pt_link.h"
#include "pt_worker_lock.h"

/* A link with its memory. */
typedef struct native_link {
    PyObject_HEAD pt_context
        *context;    /* changed with the GIL and the locks of both contexts held */
    PyObject *owner; /* keeps the memory of the context, and of slots that are not borrowed */
    pt_link link;
} native_link;

/* Two threads that send would write into one slot, and tear each other's frames. */
static inline int pt_is_owner(const pt_context *context)
{
    return context->owner == PyThread_get_thread_ident();
}

/* Have a context for this thread, which has the GIL: it waits for the lock without the GIL, and for
 * the GIL without the lock, so that a worker never waits for Python. Nothing where there is no
 * worker. */
static inline void pt_take(pt_context *context)
{
    while (context->worker != NULL && !context->ops->try_lock(context)) {
        PyThreadState *state = PyEval_SaveThread();
        context->ops->lock(context);
        context->ops->unlock(context);
        PyEval_RestoreThread(state);
    }
}

/* Wait for the lock of a link's context without the GIL. The link may be in another one then, so
 * the memory of this one is held. */
static inline void pt_await_lock(const native_link *bound)
{
    pt_context *context = bound->context;
    const pt_platform_ops *ops = context->ops;
    PyObject *owner = Py_NewRef(bound->owner);
    PyThreadState *state = PyEval_SaveThread();
    ops->lock(context);
    ops->unlock(context);
    PyEval_RestoreThread(state);
    Py_DECREF(owner);
}

/* Have the context of a link, as pt_take(): the one where it is when that has come. */
static inline pt_context *pt_take_link(const native_link *bound)
{
    while (bound->context->worker != NULL && !bound->context->ops->try_lock(bound->context))
        pt_await_lock(bound);
    return bound->context;
}

/* An address that came from Python. NULL with an exception set. */
static inline void *pt_address(PyObject *number)
{
    void *pointer = PyLong_AsVoidPtr(number);
    if (pointer == NULL && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "an address is 0");
    return pointer;
}

/* Add the type Link, which pt_border.h describes, to a module object, with the GIL held. Returns 0,
 * or -1 with an exception. */
int pt_sender_attach(PyObject *module);

#endif
