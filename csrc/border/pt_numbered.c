#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_numbered.h"

#include "pt_assert.h"
#include "pt_sender.h"

/* What a bound function keeps, in a tuple: the type of a link, and the names. */
enum { KEPT_LINK, KEPT_QUICK, KEPT_AFAR, KEPT_ACCEPTED, KEPT };

/* An attribute of a peer, without a reference: the peer keeps it while this thread has the GIL.
 * NULL: an exception is set. */
static PyObject *look_at(PyObject *peer, PyObject *kept, Py_ssize_t which)
{
    PyObject *value = PyObject_GetAttr(peer, PyTuple_GetItem(kept, which));
    Py_XDECREF(value);
    return value;
}

/* 1: the peer's next message is this link's, and nobody is before it; 0: not; -1: an exception. */
static int is_next(PyObject *peer, PyObject *kept, const native_link *bound)
{
    if (look_at(peer, kept, KEPT_QUICK) != (const PyObject *)bound)
        return PyErr_Occurred() != NULL ? -1 : 0;
    if (look_at(peer, kept, KEPT_AFAR) != Py_None)
        return PyErr_Occurred() != NULL ? -1 : 0;
    return 1;
}

/* Send with the lock held; the number, negative if a turn is due; 0; NULL: an exception. */
static PyObject *send_and_count(PyObject *peer, PyObject *kept, native_link *bound,
                                PyObject *payload)
{
    PyObject *accepted = look_at(peer, kept, KEPT_ACCEPTED);
    long long number = accepted != NULL ? PyLong_AsLongLong(accepted) : -1;
    PyObject *next = number >= 0 ? PyLong_FromLongLong(number + 1) : NULL;
    int code = PT_ERR_NO_MEMORY;
    if (next != NULL)
        code = pt_link_send(bound->context, &bound->link, PT_FRAME_DATA, 0,
                            (const uint8_t *)PyBytes_AsString(payload),
                            (uint32_t)PyBytes_Size(payload));
    PyObject *result = NULL;
    if (code >= 0 && PyObject_SetAttr(peer, PyTuple_GetItem(kept, KEPT_ACCEPTED), next) == 0)
        result = code > 0 ? PyLong_FromLongLong(-number - 1) : Py_NewRef(next);
    else if (next != NULL && code < 0)
        result = PyLong_FromLong(0);
    if (result == NULL && code >= 0) { /* accepted is accepted */
        PyErr_Clear();
        result = Py_NewRef(next);
    }
    Py_XDECREF(next);
    return result;
}

static PyObject *send_numbered(PyObject *kept, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "send(peer, payload)");
        return NULL;
    }
    PyObject *peer = arguments[0];
    PyObject *payload = arguments[1];
    PyObject *quick = PyObject_GetAttr(peer, PyTuple_GetItem(kept, KEPT_QUICK));
    if (quick == NULL)
        return NULL;
    native_link *bound = (native_link *)quick;
    int is_ours = (PyObject *)Py_TYPE(quick) == PyTuple_GetItem(kept, KEPT_LINK) &&
                  bound->context->worker != NULL && PyBytes_CheckExact(payload) &&
                  PyBytes_Size(payload) <= (Py_ssize_t)bound->link.max_message;
    PyObject *result = NULL;
    if (is_ours) {
        pt_take(bound->context); /* what was seen before may be over */
        is_ours = is_next(peer, kept, bound);
        if (is_ours > 0)
            result = send_and_count(peer, kept, bound, payload);
        pt_context_unlock(bound->context);
    }
    PT_ASSERT(result == NULL || is_ours > 0);
    Py_DECREF(quick);
    return is_ours != 0 || result != NULL ? result : PyLong_FromLong(0);
}

static PyMethodDef numbered_method = {
    "send", (PyCFunction)(void (*)(void))send_numbered, METH_FASTCALL,
    "Send one payload as the next message of a peer; its number, negative if a turn is due, or 0."};

static PyObject *bind_numbered(PyObject *link, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != KEPT - 1) {
        PyErr_SetString(PyExc_TypeError, "bind_numbered(quick, afar, accepted)");
        return NULL;
    }
    PyObject *kept = PyTuple_New(KEPT);
    if (kept == NULL)
        return NULL;
    (void)PyTuple_SetItem(kept, KEPT_LINK, Py_NewRef(link));
    for (Py_ssize_t index = 0; index < count; index++)
        (void)PyTuple_SetItem(kept, index + 1, Py_NewRef(arguments[index]));
    PyObject *send = PyCFunction_New(&numbered_method, kept);
    Py_DECREF(kept);
    return send;
}

static PyMethodDef bind_method = {"bind_numbered", (PyCFunction)(void (*)(void))bind_numbered,
                                  METH_FASTCALL, "Bind send to the names of a peer's attributes."};

int pt_numbered_attach(void *module)
{
    PyObject *link = PyObject_GetAttrString(module, "Link");
    PyObject *bind = link != NULL ? PyCFunction_New(&bind_method, link) : NULL;
    int result = bind != NULL ? PyModule_AddObjectRef(module, "bind_numbered", bind) : -1;
    Py_XDECREF(bind);
    Py_XDECREF(link);
    return result;
}
