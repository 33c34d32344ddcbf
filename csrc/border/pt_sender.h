/* The type of a link for CPython, which has its memory, and all that is sent on it. */
#ifndef PT_SENDER_H
#define PT_SENDER_H

#include <Python.h>

#include "pt_platform.h"

/* Two threads that send would write into one slot, and tear each other's frames. */
static inline int pt_is_owner(const pt_context *context)
{
    return context->owner == PyThread_get_thread_ident();
}

/* An address that came from Python. NULL with an exception set. */
static inline void *pt_address(PyObject *number)
{
    void *pointer = PyLong_AsVoidPtr(number);
    if (pointer == NULL && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "an address is 0");
    return pointer;
}

/* Add the type Link, which pt_batch.h describes, to a module object, with the GIL held. Returns 0,
 * or -1 with an exception. */
int pt_sender_attach(PyObject *module);

#endif
