#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_numbered.h"

#include "pt_assert.h"
#include "pt_sender.h"

/* What a bound function keeps, in a tuple: the type of a link, and the names. */
enum { KEPT_LINK, KEPT_QUICK, KEPT_AFAR, KEPT_ACCEPTED, KEPT_HINT, KEPT };

/* An attribute of a peer, without a reference: the peer keeps it while this thread has the GIL.
 * NULL: an exception is set. */
static PyObject *look_at(PyObject *peer, PyObject *kept, Py_ssize_t which)
{
    PT_ASSERT(which > KEPT_LINK && which < KEPT);

    PyObject *value = PyObject_GetAttr(peer, PyTuple_GetItem(kept, which));
    Py_XDECREF(value);
    return value;
}

/* 1: the peer's next message is this link's, and nobody is before it; 0: not; -1: an exception. */
static int is_next(PyObject *peer, PyObject *kept, const native_link *bound)
{
    if (look_at(peer, kept, KEPT_QUICK) != (const PyObject *)bound ||
        look_at(peer, kept, KEPT_AFAR) != Py_None)
        return PyErr_Occurred() != NULL ? -1 : 0;
    return 1;
}

/* Have the lock of the link's context, as pt_take(), while the peer's next message is this link's:
 * 1, else as is_next() without it. Whoever ends the context has made that so before, with the GIL:
 * so nothing of a context is touched here that its end changes. */
static int take_next(PyObject *peer, PyObject *kept, const native_link *bound)
{
    int answer;
    while ((answer = is_next(peer, kept, bound)) > 0) {
        pt_context *context = bound->context; /* another one, maybe, after each wait */
        if (context->worker == NULL)
            return pt_is_owner(context);
        if (context->ops->try_lock(context))
            return 1;
        pt_await_lock(bound);
    }
    return answer;
}

/* Wait for slots of the link without the GIL, and let go of the lock. */
static void await_room(native_link *bound)
{
    pt_context *context = bound->context;
    PT_ASSERT(context->worker != NULL && bound->link.state == PT_LINK_OPEN);

    PyThreadState *state = PyEval_SaveThread(); /* which waits for nothing */
    (void)pt_worker_await_room(context->worker, &bound->link);
    context->ops->unlock(context);
    PyEval_RestoreThread(state);
}

/* Send with the lock held; hints, or why not. *next: the number, where it was accepted, or NULL. */
static int send_and_count(PyObject *peer, PyObject *kept, native_link *bound, PyObject *payload,
                          PyObject **next)
{
    PT_ASSERT(PyBytes_CheckExact(payload));

    PyObject *accepted = look_at(peer, kept, KEPT_ACCEPTED);
    long long number = accepted != NULL ? PyLong_AsLongLong(accepted) : -1;
    *next = PyErr_Occurred() == NULL ? PyLong_FromLongLong(number + 1) : NULL;
    if (*next == NULL)
        return PT_ERR_NO_MEMORY;
    uint8_t flags = bound->context->worker == NULL ? PT_FLAG_NO_DELAY : 0;
    int code =
        pt_link_send(bound->context, &bound->link, PT_FRAME_DATA, flags,
                     (const uint8_t *)PyBytes_AsString(payload), (uint32_t)PyBytes_Size(payload));
    if (code < 0)
        Py_CLEAR(*next);
    else
        (void)PyObject_SetAttr(peer, PyTuple_GetItem(kept, KEPT_ACCEPTED), *next);
    PT_ASSERT(!PyErr_Occurred());
    return code;
}

/* Say what a link said; its number, or NULL with what the hint has raised. */
static PyObject *pass_on(PyObject *kept, int code, PyObject *number)
{
    PyObject *hints = PyLong_FromLong(code);
    PyObject *nothing =
        hints != NULL ? PyObject_CallFunctionObjArgs(PyTuple_GetItem(kept, KEPT_HINT), hints, NULL)
                      : NULL;
    Py_XDECREF(hints);
    if (nothing == NULL)
        Py_CLEAR(number);
    Py_XDECREF(nothing);
    PT_ASSERT((number == NULL) == (PyErr_Occurred() != NULL));
    return number;
}

/* Send what this link can send; the number, 0, or NULL with an exception. */
static PyObject *send_next(PyObject *peer, PyObject *kept, native_link *bound, PyObject *payload,
                           int waits)
{
    int code = PT_ERR_WOULD_BLOCK;
    for (; code == PT_ERR_WOULD_BLOCK && waits >= 0; waits--) {
        int answer = take_next(peer, kept, bound);
        if (answer <= 0)
            return answer < 0 ? NULL : PyLong_FromLong(0);
        PyObject *next;
        code = send_and_count(peer, kept, bound, payload, &next);
        int has_worker = bound->context->worker != NULL;
        if (code == PT_ERR_WOULD_BLOCK && waits > 0 && has_worker)
            await_room(bound);
        else
            pt_context_unlock(bound->context);
        if (next != NULL && code > 0 && !has_worker)
            return pass_on(kept, code, next);
        if (next != NULL || PyErr_Occurred())
            return next;
        if (!has_worker)
            break;
    }
    return PyLong_FromLong(0);
}

static PyObject *send_numbered(PyObject *kept, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "send(peer, payload, waits)");
        return NULL;
    }
    PyObject *payload = arguments[1];
    PyObject *quick = PyObject_GetAttr(arguments[0], PyTuple_GetItem(kept, KEPT_QUICK));
    if (quick == NULL)
        return NULL;
    native_link *bound = (native_link *)quick;
    PyObject *result;
    if ((PyObject *)Py_TYPE(quick) == PyTuple_GetItem(kept, KEPT_LINK) &&
        PyBytes_CheckExact(payload) && PyBytes_Size(payload) <= (Py_ssize_t)bound->link.max_message)
        result = send_next(arguments[0], kept, bound, payload, arguments[2] == Py_True);
    else
        result = PyLong_FromLong(0);
    Py_DECREF(quick);
    return result;
}

static PyMethodDef numbered_method = {
    "send", (PyCFunction)(void (*)(void))send_numbered, METH_FASTCALL,
    "Send one payload as the next message of a peer; its number, or 0."};

static PyObject *bind_numbered(PyObject *link, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != KEPT - 1) {
        PyErr_SetString(PyExc_TypeError, "bind_numbered(quick, afar, accepted, hint)");
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
