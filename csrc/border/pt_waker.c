#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "pt_waker.h"

#include <stddef.h>

#include "pt_assert.h"

#define OWN_REFERENCES                                                                             \
    2 /* of a waker that is free: its keeper's, and that of its method tell()                      \
       */

static PyTypeObject *type_of_waker; /* which the module keeps, and so this */

static void put(PyObject **field, PyObject *value)
{
    PyObject *before = *field;
    *field = value;
    Py_XDECREF(before);
}

/* call(argument..., self, context=context), of the loop: the step is taken in the next tick. */
static int step_soon(pt_waker *self, PyObject *step, PyObject *context)
{
    PT_ASSERT(step != NULL);
    PyObject *call = PyObject_GetAttrString(self->loop, "call_soon");
    PyObject *arguments = call != NULL ? PyTuple_Pack(2, step, (PyObject *)self) : NULL;
    PyObject *names = arguments != NULL ? PyDict_New() : NULL;
    PyObject *result = NULL;
    if (names != NULL && (context == NULL || PyDict_SetItemString(names, "context", context) == 0))
        result = PyObject_Call(call, arguments, names);
    Py_XDECREF(call);
    Py_XDECREF(arguments);
    Py_XDECREF(names);
    Py_XDECREF(result);
    return result != NULL ? 0 : -1;
}

/* The wait is over, and the step of whoever waits is taken in the next tick. */
static int end_soon(pt_waker *self, char state)
{
    PT_ASSERT(state == PT_WAKER_OVER || state == PT_WAKER_CANCELLED);
    PyObject *step = self->step;
    self->step = NULL;
    self->state = state;
    int result = step != NULL ? step_soon(self, step, self->context) : 0;
    Py_XDECREF(step);
    return result;
}

static int is_over(const pt_waker *self)
{
    PT_ASSERT(self->state <= PT_WAKER_CANCELLED);
    return self->state >= PT_WAKER_OVER;
}

static PyObject *is_loop_closed(const pt_waker *self)
{
    PyObject *name = PyUnicode_InternFromString("is_closed");
    PyObject *answer = name != NULL ? PyObject_CallMethodObjArgs(self->loop, name, NULL) : NULL;
    Py_XDECREF(name);
    return answer;
}

/* tell() -> bool. What may raise comes first: a signal handler may strike there. */
static PyObject *waker_tell(PyObject *object, PyObject *unused)
{
    (void)unused;
    pt_waker *self = (pt_waker *)object;
    if (self->state != PT_WAKER_WAITS)
        return Py_NewRef(Py_False);
    PyObject *answer;
    if (self->resume != Py_None) {
        answer = PyObject_CallFunctionObjArgs(self->resume, object, NULL);
        if (answer == Py_True && self->state == PT_WAKER_WAITS)
            self->state = PT_WAKER_TOLD;
        return answer;
    }
    answer = is_loop_closed(self);
    if (answer == NULL)
        return NULL;
    int closed = answer != Py_False;
    Py_DECREF(answer);
    if (!closed && end_soon(self, PT_WAKER_OVER) != 0)
        return NULL;
    return PyBool_FromLong(!closed);
}

pt_waker *pt_waker_of(PyObject *tell)
{
    if (!PyCFunction_CheckExact(tell) || PyCFunction_GetFunction(tell) != waker_tell)
        return NULL;
    pt_waker *waker = (pt_waker *)PyCFunction_GetSelf(tell);
    PT_ASSERT(waker != NULL && Py_TYPE((PyObject *)waker) == type_of_waker);
    return waker;
}

int pt_waker_tell_in_turn(pt_waker *waker, PyObject *woken)
{
    if (waker->state != PT_WAKER_WAITS)
        return 0;
    if (PyList_Append(woken, (PyObject *)waker) != 0)
        return -1;
    PT_ASSERT(!PyErr_Occurred());
    waker->state = PT_WAKER_TOLD;
    return 0;
}

/* An exception has ended the step. Where it was raised before the task has taken that, as a signal
 * handler may do with a task that is written in Python, another call does, which who has called
 * this makes; or the loop, if that has. */
static void mend(pt_waker *self, PyObject *step)
{
    PyObject *kind = NULL, *value = NULL, *trace = NULL;
    PyErr_Fetch(&kind, &value, &trace);
    PT_ASSERT(kind != NULL);
    PyObject *task = PyObject_GetAttrString(step, "__self__");
    PyObject *awaited = task != NULL ? PyObject_GetAttrString(task, "_fut_waiter") : NULL;
    if (awaited == (PyObject *)self && self->resume != Py_None) {
        put(&self->step, Py_NewRef(step));
        self->state = PT_WAKER_TOLD;
    } else if (awaited == (PyObject *)self && step_soon(self, step, self->context) != 0) {
        PyErr_WriteUnraisable(step);
    }
    PyErr_Clear();
    Py_XDECREF(awaited);
    Py_XDECREF(task);
    PyErr_Restore(kind, value, trace);
}

/* A call: the task takes its next step, now. Raises what it ends with, if that is no Exception. */
static PyObject *waker_call(PyObject *object, PyObject *arguments, PyObject *names)
{
    (void)arguments;
    (void)names;
    pt_waker *self = (pt_waker *)object;
    if (is_over(self))
        return Py_NewRef(Py_None);
    self->state = PT_WAKER_OVER;
    PyObject *step = self->step;
    if (step == NULL)
        return Py_NewRef(Py_None); /* whoever comes to wait sees that it is over */
    self->step = NULL;
    PyObject *result = self->run != NULL
                           ? PyObject_CallFunctionObjArgs(self->run, step, object, NULL)
                           : PyObject_CallFunctionObjArgs(step, object, NULL);
    if (result == NULL)
        mend(self, step);
    Py_DECREF(step);
    PT_ASSERT((result == NULL) == (PyErr_Occurred() != NULL));
    return result;
}

/* ------------------------------------------------------------- what asyncio asks of a future */

/* The context in which steps are taken from now on: of one task it is the same each time. */
static int keep_context(pt_waker *self, PyObject *context)
{
    if (context == self->context)
        return 0;
    PyObject *run = context != Py_None ? PyObject_GetAttrString(context, "run") : NULL;
    if (run == NULL && context != Py_None)
        return -1;
    put(&self->run, run);
    put(&self->context, context != Py_None ? Py_NewRef(context) : NULL);
    PT_ASSERT((self->run == NULL) == (self->context == NULL));
    return 0;
}

/* add_done_callback(step, *, context=None) */
static PyObject *waker_add(PyObject *object, PyObject *const *arguments, Py_ssize_t count,
                           PyObject *names)
{
    pt_waker *self = (pt_waker *)object;
    Py_ssize_t named = names != NULL ? PyTuple_Size(names) : 0;
    if (count != 1 || named > 1 ||
        (named == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "context"))) {
        PyErr_SetString(PyExc_TypeError, "add_done_callback(step, *, context=None)");
        return NULL;
    }
    if (self->step != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "another task waits for this already");
        return NULL;
    }
    if (keep_context(self, named ? arguments[1] : Py_None) != 0)
        return NULL;
    self->step = Py_NewRef(arguments[0]);
    if (is_over(self) && end_soon(self, self->state) != 0)
        return NULL;
    return Py_NewRef(Py_None);
}

/* remove_done_callback(step) -> how many there were */
static PyObject *waker_remove(PyObject *object, PyObject *step)
{
    pt_waker *self = (pt_waker *)object;
    int same = self->step != NULL ? PyObject_RichCompareBool(self->step, step, Py_EQ) : 0;
    if (same < 0)
        return NULL;
    if (same)
        put(&self->step, NULL);
    return PyLong_FromLong(same);
}

/* cancel(msg=None) -> bool */
static PyObject *waker_cancel(PyObject *object, PyObject *arguments, PyObject *names)
{
    static char *keywords[] = {"msg", NULL};
    pt_waker *self = (pt_waker *)object;
    PyObject *message = Py_None;
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "|O:cancel", keywords, &message))
        return NULL;
    self->blocking = 0;
    if (is_over(self))
        return Py_NewRef(Py_False);
    put(&self->message, message != Py_None ? Py_NewRef(message) : NULL);
    return end_soon(self, PT_WAKER_CANCELLED) == 0 ? Py_NewRef(Py_True) : NULL;
}

static PyObject *exception_of(const char *name)
{
    PyObject *asyncio = PyImport_ImportModule("asyncio.exceptions");
    PyObject *kind = asyncio != NULL ? PyObject_GetAttrString(asyncio, name) : NULL;
    Py_XDECREF(asyncio);
    return kind;
}

/* Raises what its end is, if that is no result. 1: it has one. */
static int has_result(const pt_waker *self)
{
    if (self->state == PT_WAKER_OVER)
        return 1;
    int cancelled = self->state == PT_WAKER_CANCELLED;
    PyObject *kind = exception_of(cancelled ? "CancelledError" : "InvalidStateError");
    PyObject *error = NULL;
    if (kind != NULL)
        error = PyObject_CallFunctionObjArgs(kind, cancelled ? self->message : NULL, NULL);
    if (error != NULL)
        PyErr_SetObject(kind, error);
    Py_XDECREF(error);
    Py_XDECREF(kind);
    PT_ASSERT(PyErr_Occurred());
    return 0;
}

static PyObject *waker_result(PyObject *object, PyObject *unused)
{
    (void)unused;
    return has_result((pt_waker *)object) ? Py_NewRef(Py_None) : NULL;
}

static PyObject *waker_done(PyObject *object, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(is_over((pt_waker *)object));
}

static PyObject *waker_cancelled(PyObject *object, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(((pt_waker *)object)->state == PT_WAKER_CANCELLED);
}

static PyObject *waker_loop(PyObject *object, PyObject *unused)
{
    (void)unused;
    return Py_NewRef(((pt_waker *)object)->loop);
}

/* ---------------------------------------------------------------------------------- the type */

static PyMethodDef tell_method = {"tell", waker_tell, METH_NOARGS,
                                  "Have whoever waits go on: whether he had not been told."};

int pt_waker_is_free(pt_waker *waker)
{
    return waker->tell != NULL && Py_REFCNT(waker->tell) == 1 &&
           Py_REFCNT((PyObject *)waker) == OWN_REFERENCES;
}

void pt_waker_begin(pt_waker *waker)
{
    PT_ASSERT(waker->tell != NULL);
    put(&waker->step, NULL);
    put(&waker->message, NULL);
    waker->state = PT_WAKER_WAITS;
    waker->blocking = 1;
}

static pt_waker *make(PyTypeObject *type, PyObject *loop, PyObject *resume)
{
    pt_waker *self = (pt_waker *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->loop = Py_NewRef(loop);
    self->resume = Py_NewRef(resume);
    self->tell = PyCFunction_New(&tell_method, (PyObject *)self);
    if (self->tell == NULL)
        Py_CLEAR(self);
    return self;
}

pt_waker *pt_waker_new(PyObject *loop, PyObject *resume)
{
    PT_ASSERT(type_of_waker != NULL);
    return make(type_of_waker, loop, resume);
}

static PyObject *waker_new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static char *keywords[] = {"loop", "resume", NULL};
    PyObject *loop = NULL, *resume = NULL;
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "OO:Waker", keywords, &loop, &resume))
        return NULL;
    return (PyObject *)make(type, loop, resume);
}

static int waker_traverse(PyObject *object, visitproc visit, void *arg)
{
    pt_waker *self = (pt_waker *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->loop);
    Py_VISIT(self->resume);
    Py_VISIT(self->tell);
    Py_VISIT(self->step);
    Py_VISIT(self->context);
    Py_VISIT(self->run);
    Py_VISIT(self->message);
    return 0;
}

/* What collects garbage comes here before it frees anything. What is left behind still answers. */
static int waker_clear(PyObject *object)
{
    pt_waker *self = (pt_waker *)object;
    Py_CLEAR(self->tell);
    Py_CLEAR(self->step);
    Py_CLEAR(self->context);
    Py_CLEAR(self->run);
    Py_CLEAR(self->message);
    return 0;
}

static void waker_free(PyObject *object)
{
    pt_waker *self = (pt_waker *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    (void)waker_clear(object);
    Py_CLEAR(self->loop);
    Py_CLEAR(self->resume);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

/* ISO C has no object pointer to a function; Python's table of slots is made of those. */
#define POINTER(function) (void *)(uintptr_t)(function)

static PyMethodDef methods[] = {
    {"tell", waker_tell, METH_NOARGS, "Have whoever waits go on."},
    {"add_done_callback", (PyCFunction)(void (*)(void))waker_add, METH_FASTCALL | METH_KEYWORDS,
     "As of asyncio.Future."},
    {"remove_done_callback", waker_remove, METH_O, "As of asyncio.Future."},
    {"cancel", (PyCFunction)(void (*)(void))waker_cancel, METH_VARARGS | METH_KEYWORDS,
     "As of asyncio.Future."},
    {"result", waker_result, METH_NOARGS, "As of asyncio.Future."},
    {"exception", waker_result, METH_NOARGS, "As of asyncio.Future."},
    {"done", waker_done, METH_NOARGS, "As of asyncio.Future."},
    {"cancelled", waker_cancelled, METH_NOARGS, "As of asyncio.Future."},
    {"get_loop", waker_loop, METH_NOARGS, "As of asyncio.Future."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"_asyncio_future_blocking", T_BOOL, offsetof(pt_waker, blocking), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Waker(loop, resume): what a task waits for until it is told."},
    {Py_tp_new, POINTER(waker_new)},
    {Py_tp_dealloc, POINTER(waker_free)},
    {Py_tp_traverse, POINTER(waker_traverse)},
    {Py_tp_clear, POINTER(waker_clear)},
    {Py_tp_call, POINTER(waker_call)},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "peertalk._core.Waker",
    .basicsize = sizeof(pt_waker),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

int pt_waker_attach(void *module)
{
    if (type_of_waker == NULL) /* for the life of the process, however many modules have it */
        type_of_waker = (PyTypeObject *)PyType_FromSpec(&spec);
    PyObject *type = (PyObject *)type_of_waker;
    return type != NULL ? PyModule_AddObjectRef(module, "Waker", type) : -1;
}
