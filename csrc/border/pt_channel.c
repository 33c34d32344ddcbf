#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_channel.h"

#include "pt_assert.h"

static PyTypeObject *type_of_channel; /* which the module keeps, and so this */

pt_channel *pt_channel_of(PyObject *object)
{
    if (Py_TYPE(object) != type_of_channel)
        return NULL;
    PT_ASSERT(((pt_channel *)object)->descriptor >= 0);
    return (pt_channel *)object;
}

int pt_channel_is_struck(const pt_channel *channel)
{
    const pt_flags *flags = channel->flags;
    return flags->closed || flags->timed_out || (flags->error != NULL && flags->error != Py_None);
}

/* -------------------------------------------------------------------------------------- waiting */

/* One that nobody uses. NULL with MemoryError. A borrowed reference. */
static pt_waker *free_waker(pt_channel *channel, int side)
{
    pt_waker **wakers = channel->wakers[side];
    int index = 0;
    while (index < PT_WAKERS && wakers[index] != NULL && !pt_waker_is_free(wakers[index]))
        index++;
    if (index == PT_WAKERS) { /* somebody keeps them */
        index = 0;
        Py_CLEAR(wakers[index]);
    }
    if (wakers[index] == NULL)
        wakers[index] = pt_waker_new(channel->loop, channel->resume);
    PT_ASSERT(wakers[index] != NULL || PyErr_Occurred());
    return wakers[index];
}

pt_waker *pt_channel_wait(pt_channel *channel, int side)
{
    PT_ASSERT(side == PT_READS || side == PT_WRITES);
    PT_ASSERT(!pt_channel_is_struck(channel));
    pt_waker *waker = free_waker(channel, side);
    if (waker == NULL)
        return NULL;
    pt_waker_begin(waker);
    if (pt_flags_set_waker(channel->flags, side, waker->tell) != 0)
        return NULL;
    channel->side[side]->busy = 1;
    return (pt_waker *)Py_NewRef((PyObject *)waker);
}

void pt_channel_leave(const pt_channel *channel, int side, const pt_waker *waker)
{
    PT_ASSERT(side == PT_READS || side == PT_WRITES);
    channel->side[side]->busy = 0;
    PyObject *tell = pt_flags_waker(channel->flags, side);
    if (tell != NULL && tell == waker->tell)
        (void)pt_flags_set_waker(channel->flags, side, NULL);
}

/* ------------------------------------------------------------------------------------- the type */

/* Find the memory of all that the channel was given. 0, or -1 with an exception. */
static int find(pt_channel *self, PyObject *receive, PyObject *ticks, PyObject *state)
{
    self->shared = pt_shared_buffer_of(receive);
    self->ticks = self->shared != NULL ? pt_layout_of(ticks, PT_LAYOUT_TICKS) : NULL;
    self->flags = self->ticks != NULL ? pt_layout_of(state, PT_LAYOUT_STATE) : NULL;
    for (int side = 0; self->flags != NULL && side < PT_SIDES; side++) {
        self->side[side] = pt_layout_of(self->sides[side], PT_LAYOUT_SIDE);
        if (self->side[side] == NULL)
            return -1;
    }
    if (self->flags != NULL && self->descriptor < 0)
        PyErr_SetString(PyExc_ValueError, "a descriptor that is closed");
    return PyErr_Occurred() ? -1 : 0;
}

static int fill(pt_channel *self, PyObject *arguments)
{
    PyObject *receive, *ticks, *state, *loop, *resume, *sides[PT_SIDES], *left, *out;
    if (!PyArg_ParseTuple(arguments, "Oi(OOO)O(OO)(O!O!):Channel", &receive, &self->descriptor,
                          &ticks, &loop, &resume, &state, &sides[PT_READS], &sides[PT_WRITES],
                          &PyByteArray_Type, &left, &PyByteArray_Type, &out))
        return -1;
    self->kept[0] = Py_NewRef(receive);
    self->kept[1] = Py_NewRef(ticks);
    self->kept[2] = Py_NewRef(state);
    self->loop = Py_NewRef(loop);
    self->resume = Py_NewRef(resume);
    self->left = Py_NewRef(left);
    self->out = Py_NewRef(out);
    for (int side = 0; side < PT_SIDES; side++)
        self->sides[side] = Py_NewRef(sides[side]);
    return find(self, receive, ticks, state);
}

static PyObject *channel_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    (void)keywords;
    PyObject *self = PyType_GenericAlloc(type, 0);
    if (self != NULL && fill((pt_channel *)self, arguments) != 0)
        Py_CLEAR(self);
    PT_ASSERT((self == NULL) == (PyErr_Occurred() != NULL));
    return self;
}

static int channel_traverse(PyObject *object, visitproc visit, void *arg)
{
    pt_channel *self = (pt_channel *)object;
    Py_VISIT(Py_TYPE(object));
    for (int index = 0; index < PT_KEPT; index++)
        Py_VISIT(self->kept[index]);
    Py_VISIT(self->loop);
    Py_VISIT(self->resume);
    Py_VISIT(self->left);
    Py_VISIT(self->out);
    for (int side = 0; side < PT_SIDES; side++) {
        Py_VISIT(self->sides[side]);
        for (int index = 0; index < PT_WAKERS; index++)
            Py_VISIT((PyObject *)self->wakers[side][index]);
    }
    return 0;
}

/* The rest stays until nobody has the channel any more: each circle through it has a waker, or
 * something in Python. */
static int channel_clear(PyObject *object)
{
    pt_channel *self = (pt_channel *)object;
    for (int side = 0; side < PT_SIDES; side++) {
        for (int index = 0; index < PT_WAKERS; index++)
            Py_CLEAR(self->wakers[side][index]);
    }
    return 0;
}

static void channel_free(PyObject *object)
{
    pt_channel *self = (pt_channel *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    (void)channel_clear(object);
    for (int index = 0; index < PT_KEPT; index++)
        Py_CLEAR(self->kept[index]);
    Py_CLEAR(self->loop);
    Py_CLEAR(self->resume);
    Py_CLEAR(self->left);
    Py_CLEAR(self->out);
    for (int side = 0; side < PT_SIDES; side++)
        Py_CLEAR(self->sides[side]);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

/* ISO C has no object pointer to a function; Python's table of slots is made of those. */
#define POINTER(function) (void *)(uintptr_t)(function)

static PyType_Slot slots[] = {
    {Py_tp_doc, "Channel(receive, descriptor, driver, state, sides, buffers)"},
    {Py_tp_new, POINTER(channel_new)},
    {Py_tp_dealloc, POINTER(channel_free)},
    {Py_tp_traverse, POINTER(channel_traverse)},
    {Py_tp_clear, POINTER(channel_clear)},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "peertalk._core.Channel",
    .basicsize = sizeof(pt_channel),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

int pt_channel_attach(void *module)
{
    if (type_of_channel == NULL) /* for the life of the process, however many modules have it */
        type_of_channel = (PyTypeObject *)PyType_FromSpec(&spec);
    PyObject *type = (PyObject *)type_of_channel;
    return type != NULL ? PyModule_AddObjectRef(module, "Channel", type) : -1;
}
