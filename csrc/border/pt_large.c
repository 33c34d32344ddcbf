#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pt_large.h"

#include <stdlib.h>

#include "pt_assert.h"

/* A reference that C has. */
typedef struct kept {
    struct kept *next; /* of those that a worker needs no more */
    PyObject *bytes;   /* NULL: forgone */
    void **dead;  /* where these are, of all workers that its link may get to; NULL: no worker */
    void *memory; /* where this lies, to be freed with the reference */
} kept;

typedef struct large_departure {
    pt_departure base;
    kept kept;
    uint32_t users; /* the link, and the slots that refer to it; changed by who has the context */
} large_departure;

/* What a slot refers to: bytes of its own, or those of a departure. */
typedef struct large_hold {
    pt_hold base;
    kept kept;
    large_departure *of; /* NULL: its own */
} large_hold;

typedef struct large_landing {
    pt_landing base;
    kept kept;
} large_landing;

static void keep(kept *fresh, PyObject *bytes, pt_worker *worker, void *memory)
{
    PT_ASSERT(bytes != NULL && fresh->next == NULL);

    fresh->bytes = Py_NewRef(bytes);
    fresh->dead = worker != NULL ? worker->dead : NULL;
    fresh->memory = memory;
}

/* C needs a reference no more. Who calls may have given the GIL up; a worker never has it, and must
 * wait for nobody. */
static void retire(kept *old)
{
    PT_ASSERT(old->memory != NULL);

    if (old->dead != NULL) { /* each worker that pushes here has another lock */
        void *next = __atomic_load_n(old->dead, __ATOMIC_RELAXED);
        do {
            old->next = next;
        } while (!__atomic_compare_exchange_n(old->dead, &next, (void *)old, 1, __ATOMIC_RELEASE,
                                              __ATOMIC_RELAXED));
        return;
    }
    PyGILState_STATE state = PyGILState_Ensure();
    Py_XDECREF(old->bytes);
    free(old->memory);
    PyGILState_Release(state);
}

void pt_large_bury(pt_worker *worker)
{
    PT_ASSERT(worker != NULL && worker->dead != NULL);

    kept *old = __atomic_exchange_n(worker->dead, NULL, __ATOMIC_ACQUIRE);
    while (old != NULL) { /* bytes objects, whose end runs no code */
        kept *next = old->next;
        Py_XDECREF(old->bytes);
        free(old->memory);
        old = next;
    }
}

static void leave_departure(large_departure *departure)
{
    PT_ASSERT(departure->users != 0);

    if (--departure->users == 0)
        retire(&departure->kept);
}

static void let_go(pt_hold *base)
{
    large_hold *hold = (large_hold *)base;
    if (hold->of == NULL) {
        retire(&hold->kept);
        return;
    }
    leave_departure(hold->of);
    free(hold);
}

pt_hold *pt_large_hold(PyObject *bytes, pt_worker *worker)
{
    PT_ASSERT(PyBytes_CheckExact(bytes));

    large_hold *hold = calloc(1, sizeof *hold);
    if (hold == NULL)
        return NULL;
    hold->base.let_go = let_go;
    keep(&hold->kept, bytes, worker, hold);
    return &hold->base;
}

/* Whoever pushes the link calls this, with the GIL or without. */
static pt_hold *hold_slice(pt_departure *base)
{
    large_departure *departure = (large_departure *)base;
    PT_ASSERT(departure->users != 0 && departure->kept.bytes != NULL);

    large_hold *hold = calloc(1, sizeof *hold);
    if (hold == NULL)
        return NULL;
    hold->base.let_go = let_go;
    hold->of = departure;
    departure->users++;
    return &hold->base;
}

static void drop_departure(pt_departure *base)
{
    PT_ASSERT(base->drop == drop_departure);

    leave_departure((large_departure *)base);
}

pt_departure *pt_large_departure(PyObject *bytes, uint32_t id, uint32_t offset, pt_worker *worker)
{
    PT_ASSERT(PyBytes_CheckExact(bytes));
    PT_ASSERT(id != 0 && offset < (uint64_t)PyBytes_Size(bytes));

    large_departure *departure = calloc(1, sizeof *departure);
    if (departure == NULL)
        return NULL;
    departure->base = (pt_departure){.hold = hold_slice,
                                     .drop = drop_departure,
                                     .payload = (const uint8_t *)PyBytes_AsString(bytes),
                                     .id = id,
                                     .total = (uint32_t)PyBytes_Size(bytes),
                                     .offset = offset};
    keep(&departure->kept, bytes, worker, departure);
    departure->users = 1;
    return &departure->base;
}

static void drop(pt_landing *base)
{
    large_landing *landing = (large_landing *)base;
    PT_ASSERT((landing->kept.bytes != NULL) || base->memory == NULL);
    retire(&landing->kept);
}

pt_landing *pt_large_landing(uint32_t id, uint32_t total, pt_worker *worker)
{
    PT_ASSERT(total != 0);

    large_landing *landing = calloc(1, sizeof *landing);
    PyObject *bytes = landing != NULL ? PyBytes_FromStringAndSize(NULL, (Py_ssize_t)total) : NULL;
    if (bytes == NULL) {
        PyErr_Clear();
        free(landing);
        return NULL;
    }
    keep(&landing->kept, bytes, worker, landing);
    Py_DECREF(bytes);
    landing->base.memory = (uint8_t *)PyBytes_AsString(bytes);
    landing->base.drop = drop;
    landing->base.id = id;
    landing->base.total = total;
    return &landing->base;
}

PyObject *pt_large_bytes(pt_landing *base)
{
    large_landing *landing = (large_landing *)base;
    PT_ASSERT(landing->kept.bytes != NULL && base->received == base->total);

    PyObject *bytes = landing->kept.bytes;
    free(landing);
    return bytes;
}

void pt_large_forgo(pt_landing *base)
{
    large_landing *landing = (large_landing *)base;
    PT_ASSERT(landing->kept.memory == landing);
    base->memory = NULL;
    Py_CLEAR(landing->kept.bytes);
}
