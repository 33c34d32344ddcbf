#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_assert.h"
#include "pt_futures_inside.h"

#define READ_SIZE 65536 /* as in Python: see peertalk/net/stream.py */

/* What the argument of each is called, and what is meant where that is left out. */
static const char *const labels[PT_FUTURE_KINDS] = {"size", "size", "data"};
static PyObject *read_size, *channel_name;

/* The arguments of a call; 0 with TypeError. */
static int parse(int kind, PyObject *const *given, Py_ssize_t count, PyObject *names,
                 PyObject **argument, PyObject **timeout)
{
    PT_ASSERT(kind < PT_FUTURE_KINDS);
    *argument = count == 1 ? given[0] : NULL;
    *timeout = Py_None;
    Py_ssize_t named = names != NULL ? PyTuple_Size(names) : 0;
    int is_right = count <= 1;
    for (Py_ssize_t index = 0; is_right && index < named; index++) {
        PyObject *name = PyTuple_GetItem(names, index);
        if (PyUnicode_CompareWithASCIIString(name, "timeout") == 0)
            *timeout = given[count + index];
        else if (*argument == NULL && PyUnicode_CompareWithASCIIString(name, labels[kind]) == 0)
            *argument = given[count + index];
        else
            is_right = 0;
    }
    if (*argument == NULL && kind == PT_FUTURE_READ)
        *argument = read_size;
    if (is_right && *argument != NULL)
        return 1;
    PyErr_Format(PyExc_TypeError, "give %s, and timeout by its name", labels[kind]);
    return 0;
}

/* The coroutine of what is in Python. */
static PyObject *call_slow(const char *name, PyObject *stream, PyObject *argument,
                           PyObject *timeout)
{
    PyObject *call = PyObject_GetAttrString(stream, name);
    PyObject *arguments = call != NULL ? PyTuple_Pack(1, argument) : NULL;
    PyObject *named = arguments != NULL ? PyDict_New() : NULL;
    PyObject *result = NULL;
    if (named != NULL && PyDict_SetItemString(named, "timeout", timeout) == 0)
        result = PyObject_Call(call, arguments, named);
    Py_XDECREF(named);
    Py_XDECREF(arguments);
    Py_XDECREF(call);
    return result;
}

static PyObject *make(int kind, const char *slow, PyObject *stream, PyObject *const *given,
                      Py_ssize_t count, PyObject *names)
{
    PyObject *argument = NULL, *timeout = NULL;
    if (!parse(kind, given, count, names, &argument, &timeout))
        return NULL;
    PyObject *found = PyObject_GetAttr(stream, channel_name);
    if (found == NULL)
        return NULL;
    pt_channel *channel = pt_channel_of(found);
    Py_DECREF(found); /* the stream keeps it */
    if (channel == NULL || timeout != Py_None)
        return call_slow(slow, stream, argument, timeout);
    return pt_future_make(kind, stream, channel, argument);
}

static PyObject *stream_read(PyObject *stream, PyObject *const *given, Py_ssize_t count,
                             PyObject *names)
{
    return make(PT_FUTURE_READ, "_slow_read", stream, given, count, names);
}

static PyObject *stream_readexactly(PyObject *stream, PyObject *const *given, Py_ssize_t count,
                                    PyObject *names)
{
    return make(PT_FUTURE_EXACTLY, "_slow_readexactly", stream, given, count, names);
}

static PyObject *stream_write_all(PyObject *stream, PyObject *const *given, Py_ssize_t count,
                                  PyObject *names)
{
    return make(PT_FUTURE_WRITE_ALL, "_slow_write_all", stream, given, count, names);
}

#define METHOD(function)                                                                           \
    (PyCFunction)(void (*)(void))(function), METH_FASTCALL | METH_KEYWORDS, NULL

/* Their documentation is that of the methods in Python, and comes with the first type. */
static PyMethodDef stream_methods[PT_FUTURE_KINDS] = {
    {"read", METHOD(stream_read)},
    {"readexactly", METHOD(stream_readexactly)},
    {"write_all", METHOD(stream_write_all)},
};
static const char *const signatures[PT_FUTURE_KINDS] = {
    "read($self, size=65536, *, timeout=None)",
    "readexactly($self, size, *, timeout=None)",
    "write_all($self, data, *, timeout=None)",
};
static PyObject *documentation[PT_FUTURE_KINDS];

/* Give a method the documentation of that of the same name in Python. 0, or -1. */
static int document(int kind, PyObject *type)
{
    PyObject *method = PyObject_GetAttrString(type, stream_methods[kind].ml_name);
    PyObject *text = method != NULL ? PyObject_GetAttrString(method, "__doc__") : NULL;
    if (text != NULL && documentation[kind] == NULL) {
        documentation[kind] = PyUnicode_FromFormat("%s\n--\n\n%S", signatures[kind], text);
        if (documentation[kind] != NULL)
            stream_methods[kind].ml_doc = PyUnicode_AsUTF8AndSize(documentation[kind], NULL);
    }
    Py_XDECREF(text);
    Py_XDECREF(method);
    return stream_methods[kind].ml_doc != NULL ? 0 : -1;
}

static PyObject *methods_of(PyObject *module, PyObject *type)
{
    (void)module;
    if (!PyType_Check(type)) {
        PyErr_SetString(PyExc_TypeError, "stream_methods(type): give a class");
        return NULL;
    }
    PyObject *methods = PyDict_New();
    for (int kind = 0; methods != NULL && kind < PT_FUTURE_KINDS; kind++) {
        PyObject *method = NULL;
        if (document(kind, type) == 0)
            method = PyDescr_NewMethod((PyTypeObject *)type, &stream_methods[kind]);
        if (method == NULL ||
            PyDict_SetItemString(methods, stream_methods[kind].ml_name, method) != 0)
            Py_CLEAR(methods);
        Py_XDECREF(method);
    }
    return methods;
}

static PyMethodDef module_methods[] = {
    {"stream_methods", methods_of, METH_O, "Native methods for a type of streams, by their names."},
    {NULL, NULL, 0, NULL},
};

int pt_methods_attach(void *module)
{
    if (read_size == NULL) /* for the life of the process, however many modules have it */
        read_size = PyLong_FromLong(READ_SIZE);
    if (channel_name == NULL)
        channel_name = PyUnicode_InternFromString("_channel");
    if (read_size == NULL || channel_name == NULL)
        return -1;
    return PyModule_AddFunctions(module, module_methods);
}
