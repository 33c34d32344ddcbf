#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_native.h"

#include "pt_assert.h"

pt_context *pt_take_settled(const native_link *bound)
{
    pt_context *context = pt_take_link(bound);
    PT_ASSERT(!bound->link.busy || context->worker != NULL);
    while (bound->link.busy) {
        pt_context_unlock(context);
        PyThreadState *state = PyEval_SaveThread();
        pt_link_await_rest(context, &bound->link);
        PyEval_RestoreThread(state);
        context = pt_take_link(bound);
    }
    return context;
}

/* Of two locks the second one is only tried, so nobody waits for one who waits. */
static int move(native_link *bound, pt_context *to)
{
    pt_context *from = pt_take_settled(bound);
    if (from == to || from->worker == NULL || to->worker == NULL) {
        pt_context_unlock(from);
        return PT_ERR_INVALID_PARAM;
    }
    while (!to->ops->try_lock(to)) {
        pt_context_unlock(from);
        PyThreadState *state = PyEval_SaveThread();
        to->ops->lock(to);
        to->ops->unlock(to);
        PyEval_RestoreThread(state);
        from = pt_take_settled(bound);
    }
    int code = pt_worker_move(from->worker, to->worker, &bound->link);
    PT_ASSERT(code != PT_ERR_BUSY || !bound->link.busy);
    if (code == PT_OK)
        bound->context = to;
    pt_context_unlock(to);
    pt_context_unlock(from);
    return code;
}

PyObject *pt_native_move(PyObject *self, PyObject *const *arguments, Py_ssize_t argument_count)
{
    native_link *bound = (native_link *)self;
    if (argument_count != 4) {
        PyErr_SetString(PyExc_TypeError, "move(context_addr, owner, link, loop)");
        return NULL;
    }
    pt_context *to = pt_address(arguments[0]);
    PyObject *name = to != NULL ? PyUnicode_InternFromString("_loop") : NULL;
    if (name == NULL)
        return NULL;
    int code = PT_ERR_INVALID_STATE;
    if (pt_is_owner(bound->context) && pt_is_owner(to))
        code = move(bound, to);
    if (code == PT_OK) {
        PyObject *before = bound->owner;
        PT_ASSERT(bound->context == to && before != NULL);
        bound->owner = Py_NewRef(arguments[1]);
        Py_DECREF(before); /* its loop has it too */
        code = PyObject_SetAttr(arguments[2], name, arguments[3]);
    }
    Py_DECREF(name);
    return PyErr_Occurred() ? NULL : PyLong_FromLong(code);
}

PyObject *pt_native_count(PyObject *self, PyObject *address)
{
    const native_link *bound = (native_link *)self;
    pt_link_counts *counts = pt_address(address);
    if (counts == NULL)
        return NULL;
    pt_context *context = pt_take_link(bound);
    PT_ASSERT(context == bound->context);
    pt_link_count(&bound->link, counts);
    pt_context_unlock(context);
    return Py_NewRef(Py_None);
}
