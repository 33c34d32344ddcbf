#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "pt_layouts.h"

#include <stddef.h>
#include <string.h>

#include "pt_assert.h"

#define MOST_MEMBERS 9

/* One layout: the memory behind that of the class in Python, and what its attributes are there. */
typedef struct known_layout {
    const char *name, *title;
    int size;
    PyMemberDef members[MOST_MEMBERS];
    PyObject *base, *type; /* NULL until they are asked for, and then for the life of the process */
    Py_ssize_t offset;
} known_layout;

static known_layout layouts[PT_LAYOUTS] = {
    [PT_LAYOUT_STATE] =
        {
            .name = "state",
            .title = "peertalk._core.AsyncSocketState",
            .size = sizeof(pt_flags),
            .members = {{"_error", T_OBJECT_EX, offsetof(pt_flags, error), 0, NULL},
                        {"_wakers", T_OBJECT_EX, offsetof(pt_flags, wakers), 0, NULL},
                        {"readable", T_BOOL, offsetof(pt_flags, ready[PT_READS]), 0, NULL},
                        {"writable", T_BOOL, offsetof(pt_flags, ready[PT_WRITES]), 0, NULL},
                        {"hung_up", T_BOOL, offsetof(pt_flags, hung_up), 0, NULL},
                        {"timed_out", T_BOOL, offsetof(pt_flags, timed_out), 0, NULL},
                        {"closed", T_BOOL, offsetof(pt_flags, closed), 0, NULL}},
        },
    [PT_LAYOUT_SIDE] =
        {
            .name = "side",
            .title = "peertalk._core.Side",
            .size = sizeof(pt_side),
            .members = {{"tick", T_LONGLONG, offsetof(pt_side, tick), 0, NULL},
                        {"busy", T_BOOL, offsetof(pt_side, busy), 0, NULL},
                        {"ended", T_BOOL, offsetof(pt_side, ended), 0, NULL}},
        },
    [PT_LAYOUT_TICKS] =
        {
            .name = "ticks",
            .title = "peertalk._core.Ticks",
            .size = sizeof(pt_ticks),
            .members = {{"credit", T_LONGLONG, offsetof(pt_ticks, credit), 0, NULL},
                        {"tick", T_LONGLONG, offsetof(pt_ticks, tick), 0, NULL},
                        {"thread", T_LONGLONG, offsetof(pt_ticks, thread), 0, NULL},
                        {"turns", T_LONGLONG, offsetof(pt_ticks, turns), 0, NULL},
                        {"events", T_LONGLONG, offsetof(pt_ticks, events), 0, NULL}},
        },
};

static PyObject *keys[PT_SIDES]; /* of the dict of wakers: as in SocketInterest */

PyObject *pt_flags_waker(const pt_flags *flags, int side)
{
    PT_ASSERT(side >= 0 && side < PT_SIDES && !PyErr_Occurred());
    if (flags->wakers == NULL) /* what collects garbage has been there */
        return NULL;
    PyObject *kept = PyDict_GetItemWithError(flags->wakers, keys[side]);
    PT_ASSERT(!PyErr_Occurred() && (kept == NULL || PyTuple_Size(kept) == 1));
    return kept != NULL ? PyTuple_GetItem(kept, 0) : NULL;
}

int pt_flags_set_waker(pt_flags *flags, int side, PyObject *waker)
{
    PT_ASSERT(side >= 0 && side < PT_SIDES);
    if (waker == NULL)
        return pt_flags_waker(flags, side) != NULL ? PyDict_DelItem(flags->wakers, keys[side]) : 0;
    PyObject *kept = PyTuple_Pack(1, waker);
    int result = kept != NULL ? PyDict_SetItem(flags->wakers, keys[side], kept) : -1;
    Py_XDECREF(kept);
    return result;
}

void *pt_layout_of(PyObject *object, enum pt_layout layout)
{
    PT_ASSERT(layout < PT_LAYOUTS);
    const known_layout *known = &layouts[layout];
    if ((PyObject *)Py_TYPE(object) == known->type)
        return (char *)object + known->offset;
    PyErr_Format(PyExc_TypeError, "give a %s that native_type() has the class of", known->name);
    return NULL;
}

/* Bytes of an object of a class in Python. -1 with an exception. */
static Py_ssize_t size_of(PyObject *base)
{
    PyObject *number = PyObject_GetAttrString(base, "__basicsize__");
    Py_ssize_t size = number != NULL ? PyLong_AsSsize_t(number) : -1;
    Py_XDECREF(number);
    PT_ASSERT(size > 0 || PyErr_Occurred());
    return size;
}

/* The type with this layout. What collects garbage, and what frees an object, know its members like
 * the slots of a class in Python. NULL with an exception. */
static PyObject *make(known_layout *known, PyObject *base)
{
    Py_ssize_t size = size_of(base);
    if (size < 0)
        return NULL;
    Py_ssize_t alignment = _Alignof(max_align_t);
    Py_ssize_t offset = (size + alignment - 1) / alignment * alignment;
    PyMemberDef members[MOST_MEMBERS];
    memcpy(members, known->members, sizeof members);
    for (int index = 0; members[index].name != NULL; index++)
        members[index].offset += offset;
    PyType_Slot slots[] = {{Py_tp_members, members}, {0, NULL}};
    PyType_Spec spec = {.name = known->title,
                        .basicsize = (int)offset + known->size,
                        .flags = Py_TPFLAGS_DEFAULT,
                        .slots = slots};
    PyObject *type = PyType_FromSpecWithBases(&spec, base);
    if (type == NULL)
        return NULL;
    PT_ASSERT(PyType_IsSubtype((PyTypeObject *)type, (PyTypeObject *)base));
    known->offset = offset;
    known->base = Py_NewRef(base);
    return type;
}

static PyObject *native_type(PyObject *module, PyObject *arguments)
{
    (void)module;
    const char *name = NULL;
    PyObject *base = NULL;
    if (!PyArg_ParseTuple(arguments, "sO!:native_type", &name, &PyType_Type, &base))
        return NULL;
    int index = 0;
    while (index < PT_LAYOUTS && strcmp(layouts[index].name, name) != 0)
        index++;
    if (index == PT_LAYOUTS || (layouts[index].type != NULL && layouts[index].base != base)) {
        PyErr_Format(PyExc_ValueError, "there is no layout %s, or another class has it", name);
        return NULL;
    }
    if (layouts[index].type == NULL)
        layouts[index].type = make(&layouts[index], base);
    return Py_XNewRef(layouts[index].type);
}

static PyMethodDef module_methods[] = {
    {"native_type", native_type, METH_VARARGS, "A class with its attributes where C knows them."},
    {NULL, NULL, 0, NULL},
};

int pt_layouts_attach(void *module)
{
    for (int side = 0; side < PT_SIDES; side++) {
        if (keys[side] == NULL)
            keys[side] = PyLong_FromLong(side + 1);
        if (keys[side] == NULL)
            return -1;
    }
    return PyModule_AddFunctions(module, module_methods);
}
