/* What is asked of a link beside what it sends: to be counted, and to go to another worker. */
#ifndef PT_NATIVE_H
#define PT_NATIVE_H

#include <Python.h>

#include "pt_sender.h"

/* Have a link whose bytes are in no system call, as pt_take_link(). */
pt_context *pt_take_settled(const native_link *bound);

/* Methods of the type. move(context_addr, owner, link, loop) -> int: pt_worker_move() to another
 * context, which the owner keeps; link._loop is loop from then on, before any other code of Python
 * runs. count(counts_addr): pt_link_count(). */
PyObject *pt_native_move(PyObject *self, PyObject *const *arguments, Py_ssize_t argument_count);
PyObject *pt_native_count(PyObject *self, PyObject *address);

#endif
