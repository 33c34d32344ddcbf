#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_futures.h"

#include "pt_assert.h"
#include "pt_futures_inside.h"

enum { FRESH, RUNS, WAITS, ASKS, ENDED };

static PyTypeObject *type_of_future; /* which the module keeps, and so this */

PyObject *pt_future_call(const pt_future *self, const char *name, PyObject *first, PyObject *second)
{
    PyObject *call = PyObject_GetAttrString(self->stream, name);
    PyObject *result = NULL;
    if (call != NULL)
        result = PyObject_CallFunctionObjArgs(call, first, second, NULL);
    Py_XDECREF(call);
    PT_ASSERT((result == NULL) == (PyErr_Occurred() != NULL));
    return result;
}

/* ----------------------------------------------------------------------------------------- steps */

/* Wait no longer. */
static void leave(pt_future *self)
{
    pt_waker *waker = self->waker;
    if (waker == NULL)
        return;
    self->waker = NULL;
    pt_channel_leave(self->channel, pt_future_side(self), waker);
    Py_DECREF((PyObject *)waker);
}

/* PT_GO: the wait has ended well. */
static int judge(pt_future *self)
{
    leave(self);
    PT_ASSERT(!PyErr_Occurred());
    if (!pt_channel_is_struck(self->channel))
        return PT_GO;
    PyObject *answer =
        pt_future_call(self, "_judge", self->channel->sides[pt_future_side(self)], NULL);
    Py_XDECREF(answer);
    return answer != NULL ? PT_GO : PT_FAIL;
}

/* It has come to its end, or does no more itself. kind: of the exception that ends it; NULL: none
 * does. What was read is kept for the next read, and what was begun to be written is sent later. 0,
 * or -1 with an exception. */
static int settle(pt_future *self, PyObject *kind)
{
    self->stage = ENDED;
    leave(self);
    int result = pt_future_put_back(self);
    if (self->view.obj == NULL)
        return result;
    if (kind != NULL && self->done != 0 && self->done < self->size) {
        PyObject *rest = PyBytes_FromStringAndSize((const char *)self->view.buf + self->done,
                                                   (Py_ssize_t)(self->size - self->done));
        PyObject *answer = rest != NULL ? pt_future_call(self, "_keep", rest, kind) : NULL;
        if (answer == NULL)
            result = -1;
        Py_XDECREF(rest);
        Py_XDECREF(answer);
    }
    PyBuffer_Release(&self->view);
    PT_ASSERT(self->view.obj == NULL && self->waker == NULL);
    return result;
}

/* As settle(), while an exception is set that ends it, and stays. */
static void settle_failed(pt_future *self)
{
    PyObject *kind = NULL, *value = NULL, *trace = NULL;
    PyErr_Fetch(&kind, &value, &trace);
    if (settle(self, kind != NULL ? kind : PyExc_GeneratorExit) != 0)
        PyErr_WriteUnraisable(self->stream);
    PT_ASSERT(!PyErr_Occurred());
    PyErr_Restore(kind, value, trace);
}

/* What is in Python does the rest from here on. 0, or -1 with an exception. */
static int ask(pt_future *self)
{
    static const char *const slow[PT_FUTURE_KINDS] = {"_slow_read", "_slow_readexactly",
                                                      "_slow_write_all"};
    PT_ASSERT(!PyErr_Occurred());
    PyObject *done = NULL;
    if (self->kind == PT_FUTURE_WRITE_ALL && self->done != 0) {
        done = PyLong_FromSize_t(self->done);
        if (done == NULL)
            return -1;
    }
    PT_ASSERT(self->stage != ENDED && self->inner == NULL);
    if (settle(self, NULL) == 0)
        self->inner = pt_future_call(self, done != NULL ? "_write_on" : slow[(int)self->kind],
                                     self->argument, done);
    Py_XDECREF(done);
    if (self->inner == NULL)
        return -1;
    self->stage = ASKS;
    return 0;
}

/* What is in Python takes a step. */
static PySendResult step_inner(pt_future *self, PyObject *value, PyObject **result)
{
    PT_ASSERT(self->inner != NULL);
    PyObject *inner = Py_NewRef(self->inner);
    PySendResult status = PyIter_Send(inner, value, result);
    if (status != PYGEN_NEXT) {
        Py_CLEAR(self->inner);
        self->stage = ENDED;
    }
    Py_DECREF(inner);
    return status;
}

/* 1 with an exception: it is called from within its own step. */
static int is_running(const pt_future *self)
{
    PT_ASSERT(self->stage <= ENDED);
    if (self->stage != RUNS)
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "this read or write is taking a step already");
    return 1;
}

static PySendResult future_send(PyObject *object, PyObject *value, PyObject **result)
{
    pt_future *self = (pt_future *)object;
    *result = NULL;
    if (self->stage == ASKS)
        return step_inner(self, value, result);
    if (is_running(self))
        return PYGEN_ERROR;
    if (self->stage == ENDED) {
        PyErr_SetString(PyExc_RuntimeError, "this read or write was awaited already");
        return PYGEN_ERROR;
    }
    int is_fresh = self->stage == FRESH;
    self->stage = RUNS;
    int code = is_fresh ? pt_future_begin(self, result) : judge(self);
    while (code == PT_GO)
        code = pt_future_try(self, result);
    if (code == PT_WAIT) {
        self->stage = WAITS;
        return PYGEN_NEXT;
    }
    if (code == PT_DONE && settle(self, NULL) == 0)
        return PYGEN_RETURN;
    if (code == PT_ASK)
        return ask(self) == 0 ? step_inner(self, Py_None, result) : PYGEN_ERROR;
    PT_ASSERT(PyErr_Occurred());
    Py_CLEAR(*result);
    settle_failed(self);
    return PYGEN_ERROR;
}

/* What a step has brought, as an iterator says it: NULL with StopIteration(value) at the end. */
static PyObject *tell(PySendResult status, PyObject *result)
{
    PT_ASSERT((result == NULL) == (status == PYGEN_ERROR));
    if (status != PYGEN_RETURN)
        return result;
    PyObject *stop = PyObject_CallFunctionObjArgs(PyExc_StopIteration, result, NULL);
    if (stop != NULL)
        PyErr_SetObject(PyExc_StopIteration, stop);
    Py_XDECREF(stop);
    Py_DECREF(result);
    return NULL;
}

static PyObject *future_feed(PyObject *object, PyObject *value)
{
    PyObject *result = NULL;
    PySendResult status = future_send(object, value, &result);
    return tell(status, result);
}

static PyObject *future_next(PyObject *object)
{
    return future_feed(object, Py_None);
}

static PyObject *itself(PyObject *object)
{
    return Py_NewRef(object);
}

/* Of what is in Python, when that does the rest. Its end is known by that exception. */
static PyObject *pass_on(pt_future *self, const char *name, PyObject *arguments)
{
    PyObject *call = PyObject_GetAttrString(self->inner, name);
    PyObject *result = call != NULL ? PyObject_CallObject(call, arguments) : NULL;
    Py_XDECREF(call);
    if (result == NULL) {
        Py_CLEAR(self->inner);
        self->stage = ENDED;
    }
    return result;
}

/* throw(exception), or throw(kind, exception, trace): into whoever waits. */
static PyObject *future_throw(PyObject *object, PyObject *arguments)
{
    pt_future *self = (pt_future *)object;
    if (self->stage == ASKS)
        return pass_on(self, "throw", arguments);
    PyObject *kind = NULL, *value = NULL, *trace = NULL;
    if (is_running(self) || !PyArg_ParseTuple(arguments, "O|OO:throw", &kind, &value, &trace))
        return NULL;
    if (PyExceptionInstance_Check(kind)) {
        value = kind;
        kind = PyExceptionInstance_Class(value);
    }
    if (!PyExceptionClass_Check(kind)) {
        PyErr_SetString(PyExc_TypeError, "throw(exception): give an exception");
        return NULL;
    }
    Py_INCREF(kind);
    PyErr_Restore(kind, value != Py_None ? Py_XNewRef(value) : NULL,
                  trace != Py_None ? Py_XNewRef(trace) : NULL);
    settle_failed(self);
    return NULL;
}

static PyObject *future_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    pt_future *self = (pt_future *)object;
    if (self->stage == ASKS)
        return pass_on(self, "close", NULL);
    if (is_running(self))
        return NULL;
    return settle(self, PyExc_GeneratorExit) == 0 ? Py_NewRef(Py_None) : NULL;
}

/* ------------------------------------------------------------------------------------- the type */

PyObject *pt_future_make(int kind, PyObject *stream, pt_channel *channel, PyObject *argument)
{
    PT_ASSERT(kind >= 0 && kind < PT_FUTURE_KINDS);
    pt_future *self = (pt_future *)PyType_GenericAlloc(type_of_future, 0);
    if (self == NULL)
        return NULL;
    PT_ASSERT(self->stage == FRESH && self->view.obj == NULL);
    self->kind = (char)kind;
    self->stream = Py_NewRef(stream);
    self->channel = (pt_channel *)Py_NewRef((PyObject *)channel);
    self->argument = Py_NewRef(argument);
    return (PyObject *)self;
}

static int future_traverse(PyObject *object, visitproc visit, void *arg)
{
    pt_future *self = (pt_future *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->stream);
    Py_VISIT((PyObject *)self->channel);
    Py_VISIT(self->argument);
    Py_VISIT(self->inner);
    Py_VISIT((PyObject *)self->waker);
    Py_VISIT(self->view.obj);
    return 0;
}

/* What is dropped in the middle of a wait ends it, as a coroutine would. */
static void future_free(PyObject *object)
{
    pt_future *self = (pt_future *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    if (self->stage == WAITS)
        settle_failed(self);
    PT_ASSERT(self->waker == NULL && self->whole == NULL && self->view.obj == NULL);
    Py_CLEAR(self->inner);
    Py_CLEAR(self->argument);
    Py_CLEAR(self->channel);
    Py_CLEAR(self->stream);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

/* ISO C has no object pointer to a function; Python's table of slots is made of those. */
#define POINTER(function) (void *)(uintptr_t)(function)

static PyMethodDef methods[] = {
    {"send", future_feed, METH_O, "As of a coroutine."},
    {"throw", future_throw, METH_VARARGS, "As of a coroutine."},
    {"close", future_close, METH_NOARGS, "As of a coroutine."},
    {"__await__", (PyCFunction)(void (*)(void))itself, METH_NOARGS, "Itself."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "A read or write of a stream, to be awaited once."},
    {Py_tp_dealloc, POINTER(future_free)},
    {Py_tp_traverse, POINTER(future_traverse)},
    {Py_tp_iter, POINTER(itself)},
    {Py_tp_iternext, POINTER(future_next)},
    {Py_tp_methods, methods},
    {Py_am_await, POINTER(itself)},
    {Py_am_send, POINTER(future_send)},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "peertalk._core.StreamFuture",
    .basicsize = sizeof(pt_future),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slots,
};

int pt_futures_attach(void *module)
{
    if (type_of_future == NULL) /* for the life of the process, however many modules have it */
        type_of_future = (PyTypeObject *)PyType_FromSpec(&spec);
    PyObject *type = (PyObject *)type_of_future;
    int result = type != NULL ? PyModule_AddObjectRef(module, "StreamFuture", type) : -1;
    return result == 0 ? pt_methods_attach(module) : -1;
}
