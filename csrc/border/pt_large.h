/* Large messages as bytes objects of CPython: those that slots refer to, and those that land. */
#ifndef PT_LARGE_H
#define PT_LARGE_H

#include <Python.h>

#include "pt_pipeline.h"
#include "pt_wide.h"
#include "pt_worker.h"

/* Of all three, worker is that of the link, or NULL. A worker has no interpreter: what it needs no
 * more waits until pt_large_bury(). */

/* Keep a bytes object, which a slot is to refer to, until the hold is let go of, on whatever
 * thread. NULL: no memory, with the error cleared. The GIL is held. */
pt_hold *pt_large_hold(PyObject *bytes, pt_worker *worker);

/* What a link sends of a bytes object by itself, from offset on, which is less than its length; id
 * is not 0. NULL: no memory. The GIL is held. */
pt_departure *pt_large_departure(PyObject *bytes, uint32_t id, uint32_t offset, pt_worker *worker);

/* A landing of total bytes, 1 or more, in a bytes object that is made for it. id: 0 for one that
 * was not offered. NULL: no memory, with the error cleared. The GIL is held. */
pt_landing *pt_large_landing(uint32_t id, uint32_t total, pt_worker *worker);

/* The bytes object of a landing that is whole: a reference of the caller's. The landing is gone. */
PyObject *pt_large_bytes(pt_landing *landing);

/* Give the memory of a landing back; what still comes for it is dropped. The GIL is held. */
void pt_large_forgo(pt_landing *landing);

/* Let go of what a worker needs no more, nor any other of its home. The GIL is held. */
void pt_large_bury(pt_worker *worker);

#endif
