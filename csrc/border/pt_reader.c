#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_reader.h"

#include "pt_assert.h"

/* An iterator, and what is awaited of it: both, so that nothing is made for an item. */
typedef struct reader {
    PyObject base;
    PyObject *more;
    PyObject *items;   /* what is at hand; NULL: nothing */
    PyObject *waiting; /* the coroutine of more(), until it ends; NULL: nobody waits */
    char asked;        /* 1 from an anext() until its item */
} reader;

static void put(PyObject **field, PyObject *value)
{
    PyObject *before = *field;
    *field = value;
    Py_XDECREF(before);
}

/* The coroutine of more() has come so far. When it has ended, *result becomes the item. */
static PySendResult step(reader *self, PySendResult status, PyObject **result)
{
    PT_ASSERT((*result == NULL) == (status == PYGEN_ERROR));
    PT_ASSERT((*result == NULL) == (PyErr_Occurred() != NULL));

    if (status == PYGEN_NEXT)
        return status;
    self->asked = 0;
    put(&self->waiting, NULL);
    if (status == PYGEN_ERROR)
        return status;
    PyObject *given = *result, *item = NULL, *items = NULL, *fresh = NULL;
    if (PyArg_ParseTuple(given, "OO", &item, &items))
        fresh = PyObject_GetIter(items);
    *result = fresh != NULL ? Py_NewRef(item) : NULL;
    put(&self->items, fresh); /* which may run any code, and come back here */
    Py_DECREF(given);
    PT_ASSERT((*result == NULL) == (PyErr_Occurred() != NULL));
    return *result != NULL ? PYGEN_RETURN : PYGEN_ERROR;
}

/* A coroutine of more(). NULL with an exception. */
static PyObject *ask(const reader *self)
{
    PT_ASSERT(!PyErr_Occurred());

    if (self->more != NULL)
        return PyObject_CallNoArgs(self->more);
    PyErr_SetString(PyExc_RuntimeError, "this reader is gone: nothing leads to it any more");
    return NULL;
}

/* Items and more() may run any code, which may come back here. */
static PySendResult reader_send(PyObject *object, PyObject *value, PyObject **result)
{
    reader *self = (reader *)object;
    *result = NULL;
    if (self->waiting == NULL) {
        if (self->items != NULL) {
            PyObject *items = Py_NewRef(self->items);
            *result = PyIter_Next(items);
            Py_DECREF(items);
            self->asked = 0;
            if (*result != NULL)
                return PYGEN_RETURN;
            if (PyErr_Occurred())
                return PYGEN_ERROR;
            self->asked = 1;
            put(&self->items, NULL);
        }
        put(&self->waiting, ask(self));
        if (self->waiting == NULL)
            return PYGEN_ERROR;
    }
    PyObject *coroutine = Py_NewRef(self->waiting);
    PySendResult status = step(self, PyIter_Send(coroutine, value, result), result);
    Py_DECREF(coroutine);
    return status;
}

/* What a step has brought, as an iterator says it: NULL with StopIteration(item) at the end. */
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

static PyObject *reader_feed(PyObject *object, PyObject *value)
{
    PyObject *result = NULL;
    PySendResult status = reader_send(object, value, &result);
    return tell(status, result);
}

static PyObject *reader_next(PyObject *object)
{
    return reader_feed(object, Py_None);
}

/* throw(...), of whoever waits: the coroutine of more() has it. */
static PyObject *reader_throw(PyObject *object, PyObject *arguments)
{
    reader *self = (reader *)object;
    PyObject *coroutine = self->waiting != NULL ? Py_NewRef(self->waiting) : ask(self);
    PyObject *throw = coroutine != NULL ? PyObject_GetAttrString(coroutine, "throw") : NULL;
    PyObject *result = throw != NULL ? PyObject_CallObject(throw, arguments) : NULL;
    PySendResult status = result != NULL ? PYGEN_NEXT : PYGEN_ERROR;
    if (result == NULL && PyErr_ExceptionMatches(PyExc_StopIteration)) {
        PyObject *kind = NULL, *value = NULL, *trace = NULL;
        PyErr_Fetch(&kind, &value, &trace);
        PyErr_NormalizeException(&kind, &value, &trace);
        result = PyObject_GetAttrString(value, "value");
        status = result != NULL ? PYGEN_RETURN : PYGEN_ERROR;
        Py_XDECREF(kind);
        Py_XDECREF(value);
        Py_XDECREF(trace);
    }
    status = step(self, status, &result);
    Py_XDECREF(throw);
    Py_XDECREF(coroutine);
    return tell(status, result);
}

static PyObject *reader_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    reader *self = (reader *)object;
    PyObject *coroutine = self->waiting;
    if (coroutine == NULL)
        return Py_NewRef(Py_None);
    self->waiting = NULL;
    self->asked = 0;
    PyObject *close = PyObject_GetAttrString(coroutine, "close");
    PyObject *result = close != NULL ? PyObject_CallNoArgs(close) : NULL;
    Py_XDECREF(close);
    Py_DECREF(coroutine);
    return result;
}

static PyObject *reader_itself(PyObject *object)
{
    return Py_NewRef(object);
}

/* While another anext() is under way, or was never awaited, this one has a reader of its own. */
static PyObject *reader_anext(PyObject *object)
{
    reader *self = (reader *)object;
    PyObject *type = (PyObject *)Py_TYPE(object);
    PyObject *answer =
        self->asked ? PyObject_CallFunctionObjArgs(type, self->more, NULL) : Py_NewRef(object);
    if (answer != NULL && self->asked)
        ((reader *)answer)->items = Py_XNewRef(self->items);
    self->asked = 1;
    return answer;
}

static PyObject *reader_new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static char *keywords[] = {"more", NULL};
    PyObject *more = NULL;
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "O:Reader", keywords, &more))
        return NULL;
    reader *self = (reader *)PyType_GenericAlloc(type, 0);
    if (self != NULL)
        self->more = Py_NewRef(more);
    return (PyObject *)self;
}

static int reader_traverse(PyObject *object, visitproc visit, void *arg)
{
    reader *self = (reader *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->more);
    Py_VISIT(self->items);
    Py_VISIT(self->waiting);
    return 0;
}

static int reader_clear(PyObject *object)
{
    reader *self = (reader *)object;
    Py_CLEAR(self->more);
    Py_CLEAR(self->items);
    Py_CLEAR(self->waiting);
    return 0;
}

static void reader_free(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    (void)reader_clear(object);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"send", reader_feed, METH_O, "As of a coroutine."},
    {"throw", reader_throw, METH_VARARGS, "As of a coroutine."},
    {"close", reader_close, METH_NOARGS, "As of a coroutine."},
    {NULL, NULL, 0, NULL},
};

/* ISO C has no object pointer to a function; Python's table of slots is made of those. */
#define POINTER(function) (void *)(uintptr_t)(function)

static PyType_Slot slots[] = {
    {Py_tp_doc, "Reader(more): an asynchronous iterator over what more() gives."},
    {Py_tp_new, POINTER(reader_new)},
    {Py_tp_dealloc, POINTER(reader_free)},
    {Py_tp_traverse, POINTER(reader_traverse)},
    {Py_tp_clear, POINTER(reader_clear)},
    {Py_tp_iter, POINTER(reader_itself)},
    {Py_tp_iternext, POINTER(reader_next)},
    {Py_tp_methods, methods},
    {Py_am_aiter, POINTER(reader_itself)},
    {Py_am_anext, POINTER(reader_anext)},
    {Py_am_await, POINTER(reader_itself)},
    {Py_am_send, POINTER(reader_send)},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "peertalk._core.Reader",
    .basicsize = sizeof(reader),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

int pt_reader_attach(void *module)
{
    PyObject *type = PyType_FromSpec(&spec);
    int result = type != NULL ? PyModule_AddObjectRef(module, "Reader", type) : -1;
    Py_XDECREF(type);
    return result;
}
