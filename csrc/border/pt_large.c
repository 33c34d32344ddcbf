#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_large.h"

#include "pt_assert.h"

/* The reference stands behind what the core knows. */
typedef struct large_hold {
    pt_hold base;
    PyObject *bytes;
} large_hold;

typedef struct large_departure {
    pt_departure base;
    PyObject *bytes;
} large_departure;

typedef struct large_landing {
    pt_landing base;
    PyObject *bytes; /* NULL: forgone */
} large_landing;

/* A link may be closed by a call that has given the GIL up. */
static void let_go(pt_hold *base)
{
    large_hold *hold = (large_hold *)base;
    PyGILState_STATE state = PyGILState_Ensure();
    PT_ASSERT(hold->bytes != NULL);
    Py_DECREF(hold->bytes);
    PyMem_Free(hold);
    PyGILState_Release(state);
}

pt_hold *pt_large_hold(PyObject *bytes)
{
    PT_ASSERT(PyBytes_CheckExact(bytes));

    large_hold *hold = PyMem_Malloc(sizeof *hold);
    if (hold == NULL)
        return NULL;
    hold->base.let_go = let_go;
    hold->bytes = bytes;
    Py_INCREF(bytes);
    return &hold->base;
}

/* A link may be pushed by a call that has given the GIL up. */
static pt_hold *hold_slice(pt_departure *base)
{
    PT_ASSERT(base->payload != NULL);

    PyGILState_STATE state = PyGILState_Ensure();
    pt_hold *hold = pt_large_hold(((large_departure *)base)->bytes);
    PyGILState_Release(state);
    return hold;
}

static void drop_departure(pt_departure *base)
{
    large_departure *departure = (large_departure *)base;
    PyGILState_STATE state = PyGILState_Ensure();
    PT_ASSERT(departure->bytes != NULL);
    Py_DECREF(departure->bytes);
    PyMem_Free(departure);
    PyGILState_Release(state);
}

pt_departure *pt_large_departure(PyObject *bytes, uint32_t id, uint32_t offset)
{
    PT_ASSERT(PyBytes_CheckExact(bytes));
    PT_ASSERT(id != 0 && offset < (uint64_t)PyBytes_Size(bytes));

    large_departure *departure = PyMem_Malloc(sizeof *departure);
    if (departure == NULL)
        return NULL;
    departure->base = (pt_departure){.hold = hold_slice,
                                     .drop = drop_departure,
                                     .payload = (const uint8_t *)PyBytes_AsString(bytes),
                                     .id = id,
                                     .total = (uint32_t)PyBytes_Size(bytes),
                                     .offset = offset};
    departure->bytes = bytes;
    Py_INCREF(bytes);
    return &departure->base;
}

static void drop(pt_landing *base)
{
    large_landing *landing = (large_landing *)base;
    PyGILState_STATE state = PyGILState_Ensure();
    PT_ASSERT((landing->bytes != NULL) || base->memory == NULL);
    Py_XDECREF(landing->bytes);
    PyMem_Free(landing);
    PyGILState_Release(state);
}

pt_landing *pt_large_landing(uint32_t id, uint32_t total)
{
    PT_ASSERT(total != 0);

    large_landing *landing = PyMem_Calloc(1, sizeof *landing);
    if (landing == NULL)
        return NULL;
    landing->bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)total);
    if (landing->bytes == NULL) {
        PyErr_Clear();
        PyMem_Free(landing);
        return NULL;
    }
    landing->base.memory = (uint8_t *)PyBytes_AsString(landing->bytes);
    landing->base.drop = drop;
    landing->base.id = id;
    landing->base.total = total;
    return &landing->base;
}

PyObject *pt_large_bytes(pt_landing *base)
{
    large_landing *landing = (large_landing *)base;
    PT_ASSERT(landing->bytes != NULL && base->received == base->total);

    PyObject *bytes = landing->bytes;
    PyMem_Free(landing);
    return bytes;
}

void pt_large_forgo(pt_landing *base)
{
    large_landing *landing = (large_landing *)base;
    base->memory = NULL;
    Py_CLEAR(landing->bytes);
}
