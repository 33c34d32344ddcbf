/* Memory of objects of Python that C reads and writes as well: of classes there whose attributes
 * these are. */
#ifndef PT_LAYOUTS_H
#define PT_LAYOUTS_H

#include <Python.h>

enum { PT_READS, PT_WRITES, PT_SIDES };

/* Of AsyncSocketState. An error is NULL, or None, where there is none. */
typedef struct pt_flags {
    PyObject *error;
    PyObject *wakers;     /* a dict: of each side a tuple with its waker */
    char ready[PT_SIDES]; /* readable, writable */
    char hung_up, timed_out, closed;
} pt_flags;

/* Of Side. */
typedef struct pt_side {
    long long tick; /* of the reactor, when it was last written to */
    char busy;      /* a task is in the middle of something */
    char ended;     /* no more is sent */
} pt_side;

/* Of Ticks. */
typedef struct pt_ticks {
    long long credit; /* reads and writes that are left in this tick */
    long long tick;   /* changes with each turn, and with each flush */
    long long thread; /* whose the reactor is */
    long long turns;  /* that there were, and events that those have told */
    long long events;
} pt_ticks;

/* The waker of a side; NULL: there is none. A borrowed reference. */
PyObject *pt_flags_waker(const pt_flags *flags, int side);

/* Have another one; NULL: none. 0, or -1 with MemoryError and nothing changed. */
int pt_flags_set_waker(pt_flags *flags, int side, PyObject *waker);

enum pt_layout { PT_LAYOUT_STATE, PT_LAYOUT_SIDE, PT_LAYOUT_TICKS, PT_LAYOUTS };

/* The memory of an object. NULL with TypeError: it is not of a class that native_type() has given
 * for this layout. */
void *pt_layout_of(PyObject *object, enum pt_layout layout);

/* Add the function native_type() to a module object, with the GIL held. Returns 0, or -1 with an
 * exception.
 *
 *   native_type(name, base) -> type
 *
 * name: "state", "side" or "ticks". The type is base, a class with slots, with some of its
 * attributes in memory that C knows; the same each time. ValueError: there is no such layout, or
 * another class has it already. */
int pt_layouts_attach(void *module);

#endif
