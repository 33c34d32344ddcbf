#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_turn.h"

#include "pt_assert.h"
#include "pt_batch.h"
#include "pt_channel.h"
#include "pt_sender.h"

/* What serve() is bound to. */
typedef struct served_loop {
    PyObject *turn, *held, *channels, *woken;
    bound_loop *bound; /* which turn has */
    pt_ticks *ticks;   /* which held has */
    long long credit;  /* in each turn */
    long served;       /* in this turn */
} served_loop;

/* ------------------------------------------------------------------------------------- a channel */

/* 1: nobody waits on this side, or by a waker that can be told from here. */
static int may_wake(const pt_flags *flags, int side)
{
    PyObject *tell = pt_flags_waker(flags, side);
    return tell == NULL || pt_waker_of(tell) != NULL;
}

/* A try on this side may succeed. 0: there is no memory to tell whoever waits. */
static int wake(pt_flags *flags, int side, PyObject *woken)
{
    flags->ready[side] = 1;
    PyObject *tell = pt_flags_waker(flags, side);
    if (tell == NULL)
        return 1;
    pt_waker *waker = pt_waker_of(tell);
    PT_ASSERT(waker != NULL);
    if (pt_waker_tell_in_turn(waker, woken) != 0) {
        PyErr_Clear();
        return 0;
    }
    return pt_flags_set_waker(flags, side, NULL) == 0;
}

static int serve_channel(const pt_channel *channel, uint32_t mask, PyObject *woken)
{
    pt_flags *flags = channel->flags;
    PT_ASSERT(PyByteArray_Check(channel->out));
    if (!may_wake(flags, PT_READS) || !may_wake(flags, PT_WRITES) ||
        (mask & PT_READY_WRITE && PyByteArray_Size(channel->out) != 0))
        return 0;
    int is_served = 1;
    if (mask & PT_READY_READ) {
        if (mask & PT_READY_HANGUP)
            flags->hung_up = 1;
        is_served = wake(flags, PT_READS, woken);
    }
    if (is_served && mask & PT_READY_WRITE)
        is_served = wake(flags, PT_WRITES, woken);
    return is_served;
}

static int serve_event(void *server_context, const pt_event *event)
{
    served_loop *self = server_context;
    PT_ASSERT(PyDict_Check(self->channels));
    if (event->kind != PT_EVENT_READY)
        return 0;
    PyObject *tag = PyLong_FromUnsignedLong(event->tag);
    PyObject *found = tag != NULL ? PyDict_GetItemWithError(self->channels, tag) : NULL;
    Py_XDECREF(tag);
    PyErr_Clear(); /* no memory: whoever serves the rest has it then, or says so */
    const pt_channel *channel = found != NULL ? pt_channel_of(found) : NULL;
    int is_served = channel != NULL && serve_channel(channel, event->count, self->woken);
    self->served += is_served;
    return is_served;
}

/* --------------------------------------------------------------------------------------- a turn */

/* An exception has ended this call, maybe before it had begun: the next turn makes it again. */
static void call_again(PyObject *woken, PyObject *first)
{
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    PT_ASSERT(kind != NULL);
    if (PyList_Insert(woken, 0, first) != 0)
        PyErr_WriteUnraisable(first);
    PyErr_Restore(kind, value, trace);
}

/* Those who were woken take a step; whomever these wake waits for the next turn. 0, or -1 with what
 * one of them has ended with. */
static int go_on(const served_loop *self)
{
    PyObject *result = Py_None;
    for (Py_ssize_t left = PyList_Size(self->woken); left > 0 && result != NULL; left--) {
        PyObject *first = PyList_GetItem(self->woken, 0);
        if (first == NULL) { /* a task has run a loop within the loop */
            PyErr_Clear();
            return 0;
        }
        Py_INCREF(first);
        result = PyList_SetSlice(self->woken, 0, 1, NULL) == 0 ? PyObject_CallNoArgs(first) : NULL;
        if (result == NULL)
            call_again(self->woken, first);
        Py_DECREF(first);
        Py_XDECREF(result);
    }
    PT_ASSERT((result == NULL) == (PyErr_Occurred() != NULL));
    return result != NULL ? 0 : -1;
}

/* Have another turn follow. */
static void turn_again(const served_loop *self)
{
    pt_context *context = self->bound->context;
    if (context->ops != NULL && pt_is_owner(context)) /* else a task has closed it */
        context->ops->wake(context);
}

static PyObject *serve_events(served_loop *self, PyObject *events)
{
    if (self->bound->context->ops == NULL)
        return PyLong_FromLong(PT_ERR_INVALID_STATE);
    self->served = 0;
    PyObject *result = pt_batch_turn(self->bound, events, serve_event, self);
    if (result == NULL || PyLong_AsLong(result) < 0) {
        if (result == NULL)
            turn_again(self);
        return result;
    }
    Py_DECREF(result);
    self->ticks->tick++;
    self->ticks->credit = self->credit;
    self->ticks->turns++;
    self->ticks->events += self->served;
    long served = self->served;
    PT_ASSERT(served >= 0 && !PyErr_Occurred());
    int code = go_on(self);
    if (code != 0 || PyList_Size(events) != 0)
        turn_again(self);
    return code == 0 ? PyLong_FromLong(served) : NULL;
}

static PyObject *serve(PyObject *capsule, PyObject *events)
{
    served_loop *self = PyCapsule_GetPointer(capsule, NULL);
    return self != NULL ? serve_events(self, events) : NULL;
}

/* What quick() is bound to. */
typedef struct quick_loop {
    PyObject *kept; /* a tuple of serve and the two below */
    PyObject *events, *others;
    served_loop *loop; /* which serve has */
} quick_loop;

/* 1: there is something else to be done; 0: there is not; -1 with an exception. */
static int has_more(const quick_loop *self)
{
    Py_ssize_t waiting = PyList_Size(self->events);
    for (Py_ssize_t index = PyTuple_Size(self->others); waiting == 0 && index > 0; index--)
        waiting = PyObject_Size(PyTuple_GetItem(self->others, index - 1));
    return waiting < 0 ? -1 : waiting != 0;
}

static PyObject *quick(PyObject *capsule, PyObject *unused)
{
    (void)unused;
    const quick_loop *self = PyCapsule_GetPointer(capsule, NULL);
    int more = self != NULL ? has_more(self) : -1;
    if (more < 0)
        return NULL;
    pt_context *context = self->loop->bound->context;
    if (more || context->ops == NULL || !pt_is_owner(context))
        return Py_NewRef(Py_False);
    PyObject *served = serve_events(self->loop, self->events);
    if (served == NULL)
        return NULL;
    long code = PyLong_AsLong(served);
    Py_DECREF(served);
    if (context->ops == NULL) /* a task has closed it */
        return Py_NewRef(Py_None);
    if (code < 0 || PyList_Size(self->events) != 0)
        return Py_NewRef(Py_False);
    int is_rest = PyList_Size(self->loop->woken) != 0 || pt_loop_next_timeout(context) >= 0;
    return Py_NewRef(is_rest ? Py_True : Py_None);
}

/* -------------------------------------------------------------------------------------- binding */

static void free_quick(PyObject *capsule)
{
    quick_loop *self = PyCapsule_GetPointer(capsule, NULL);
    if (self == NULL)
        return;
    Py_DECREF(self->kept);
    PyMem_Free(self);
}

static void free_served(PyObject *capsule)
{
    served_loop *self = PyCapsule_GetPointer(capsule, NULL);
    if (self == NULL)
        return;
    Py_XDECREF(self->turn);
    Py_XDECREF(self->held);
    Py_XDECREF(self->channels);
    Py_XDECREF(self->woken);
    PyMem_Free(self);
}

static PyMethodDef serve_method = {"serve", serve, METH_O,
                                   "A turn whose ready channels are told: how many."};

/* Fill in what the function is bound to. 0, or -1 with an exception. */
static int fill(served_loop *self, PyObject *arguments)
{
    PyObject *turn, *held, *channels, *woken;
    if (!PyArg_ParseTuple(arguments, "OOLO!O!:bind_serve", &turn, &held, &self->credit,
                          &PyDict_Type, &channels, &PyList_Type, &woken))
        return -1;
    self->bound = pt_batch_of(turn);
    self->ticks = self->bound != NULL ? pt_layout_of(held, PT_LAYOUT_TICKS) : NULL;
    if (self->ticks == NULL)
        return -1;
    self->turn = Py_NewRef(turn);
    self->held = Py_NewRef(held);
    self->channels = Py_NewRef(channels);
    self->woken = Py_NewRef(woken);
    return 0;
}

static PyObject *bind_serve(PyObject *module, PyObject *arguments)
{
    (void)module;
    served_loop *self = PyMem_Calloc(1, sizeof *self);
    if (self == NULL)
        return PyErr_NoMemory();
    PyObject *capsule = NULL;
    if (fill(self, arguments) == 0)
        capsule = PyCapsule_New(self, NULL, free_served);
    if (capsule == NULL) {
        Py_XDECREF(self->turn);
        Py_XDECREF(self->held);
        Py_XDECREF(self->channels);
        Py_XDECREF(self->woken);
        PyMem_Free(self);
        return NULL;
    }
    PyObject *bound = PyCFunction_New(&serve_method, capsule);
    Py_DECREF(capsule);
    return bound;
}

static PyMethodDef quick_method = {"quick", quick, METH_NOARGS,
                                   "A turn without Python: None where nothing is left to do."};

static PyObject *bind_quick(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *serve, *events, *others;
    if (!PyArg_ParseTuple(arguments, "OO!O!:bind_quick", &serve, &PyList_Type, &events,
                          &PyTuple_Type, &others))
        return NULL;
    served_loop *loop = pt_batch_bound(serve, "give what bind_serve() has given");
    if (loop == NULL)
        return NULL;
    quick_loop *self = PyMem_Calloc(1, sizeof *self);
    if (self == NULL)
        return PyErr_NoMemory();
    *self = (quick_loop){Py_NewRef(arguments), events, others, loop};
    PyObject *capsule = PyCapsule_New(self, NULL, free_quick);
    if (capsule == NULL) {
        Py_DECREF(arguments);
        PyMem_Free(self);
        return NULL;
    }
    PyObject *bound = PyCFunction_New(&quick_method, capsule);
    Py_DECREF(capsule);
    return bound;
}

static PyMethodDef module_methods[] = {
    {"bind_serve", bind_serve, METH_VARARGS, "Bind serve to a loop and its channels."},
    {"bind_quick", bind_quick, METH_VARARGS, "Bind quick to a serve and what else there is."},
    {NULL, NULL, 0, NULL},
};

int pt_turn_attach(void *module)
{
    return PyModule_AddFunctions(module, module_methods);
}
