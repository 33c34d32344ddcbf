#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_again.h"

#include "pt_assert.h"
#include "pt_batch.h"

typedef struct again {
    PyObject base;
    PyObject *turn, *function, *struck;
    PyObject *quick;   /* NULL: there is none */
    bound_loop *bound; /* which turn has */
} again;

/* Call what is to be called. */
static PyObject *call(const again *self)
{
    if (self->quick == NULL)
        return PyObject_CallNoArgs(self->function);
    PyObject *rest =
        PyList_Size(self->struck) == 0 ? PyObject_CallNoArgs(self->quick) : Py_NewRef(Py_False);
    if (rest == NULL || rest == Py_None)
        return rest;
    PyObject *result = PyObject_CallFunctionObjArgs(self->function, rest, NULL);
    Py_DECREF(rest);
    return result;
}

static PyObject *again_call(PyObject *object, PyObject *arguments, PyObject *names)
{
    again *self = (again *)object;
    if (PyTuple_Size(arguments) != 0 || names != NULL) {
        PyErr_SetString(PyExc_TypeError, "this takes no arguments");
        return NULL;
    }
    if (self->function == NULL) /* what collects garbage has been here */
        return Py_NewRef(Py_None);
    PyObject *result = call(self);
    if (result != NULL)
        return result;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (self->struck != NULL && PyList_Append(self->struck, Py_None) != 0)
        PyErr_Clear();                    /* no memory: the turn follows, and finds out less */
    if (self->bound->context->owner != 0) /* else this is a forked child: it is the parent's */
        pt_loop_wake(self->bound->context);
    PT_ASSERT(!PyErr_Occurred());
    PyErr_Restore(type, value, traceback);
    return NULL;
}

static PyObject *again_new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static char *keywords[] = {"turn", "function", "struck", "quick", NULL};
    PyObject *turn, *function, *struck, *quick = Py_None;
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "OOO!|O:Again", keywords, &turn, &function,
                                     &PyList_Type, &struck, &quick))
        return NULL;
    bound_loop *bound = pt_batch_of(turn);
    again *self = bound != NULL ? (again *)PyType_GenericAlloc(type, 0) : NULL;
    if (self == NULL)
        return NULL;
    self->turn = Py_NewRef(turn);
    self->function = Py_NewRef(function);
    self->struck = Py_NewRef(struck);
    self->quick = quick != Py_None ? Py_NewRef(quick) : NULL;
    self->bound = bound;
    PT_ASSERT(!PyErr_Occurred());
    return (PyObject *)self;
}

static int again_traverse(PyObject *object, visitproc visit, void *arg)
{
    again *self = (again *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->turn);
    Py_VISIT(self->function);
    Py_VISIT(self->struck);
    Py_VISIT(self->quick);
    return 0;
}

static int again_clear(PyObject *object)
{
    again *self = (again *)object;
    Py_CLEAR(self->function);
    Py_CLEAR(self->struck);
    Py_CLEAR(self->quick);
    return 0;
}

static void again_free(PyObject *object)
{
    again *self = (again *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    (void)again_clear(object);
    Py_CLEAR(self->turn);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

/* ISO C has no object pointer to a function; Python's table of slots is made of those. */
#define POINTER(function) (void *)(uintptr_t)(function)

static PyType_Slot slots[] = {
    {Py_tp_doc, "Again(turn, function, struck, quick=None): if that raises, a turn follows."},
    {Py_tp_new, POINTER(again_new)},
    {Py_tp_dealloc, POINTER(again_free)},
    {Py_tp_traverse, POINTER(again_traverse)},
    {Py_tp_clear, POINTER(again_clear)},
    {Py_tp_call, POINTER(again_call)},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "peertalk._core.Again",
    .basicsize = sizeof(again),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

int pt_again_attach(void *module)
{
    PyObject *type = PyType_FromSpec(&spec);
    int result = type != NULL ? PyModule_AddObjectRef(module, "Again", type) : -1;
    Py_XDECREF(type);
    return result;
}
