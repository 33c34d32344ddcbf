/* The native half of a stream: what a future of pt_futures.h tries with, and how a turn wakes it.
 */
#ifndef PT_CHANNEL_H
#define PT_CHANNEL_H

#include <Python.h>

#include "pt_bytes.h"
#include "pt_layouts.h"
#include "pt_waker.h"

/* Wakers of one side: one is still in use while the task that it woke comes to wait again. */
#define PT_WAKERS 2
#define PT_KEPT   3

typedef struct pt_channel {
    PyObject base;
    PyObject *kept[PT_KEPT]; /* what has the memory that follows */
    PyObject *loop, *resume;
    PyObject *left, *out; /* bytearrays: read and not taken; written and not sent */
    PyObject *sides[PT_SIDES];
    pt_shared_buffer *shared;
    pt_ticks *ticks;
    pt_flags *flags;
    pt_side *side[PT_SIDES];
    pt_waker *wakers[PT_SIDES][PT_WAKERS];
    int descriptor;
    char was_full; /* the last read() had all that it asked for */
} pt_channel;

/* The channel that an object is; NULL: it is none. */
pt_channel *pt_channel_of(PyObject *object);

/* Whether whoever waits has to look what has become of the socket. */
int pt_channel_is_struck(const pt_channel *channel);

/* Have a waker told when a try on this side may succeed. NULL with an exception. A new reference,
 * of one that is to be given to the task at once. */
pt_waker *pt_channel_wait(pt_channel *channel, int side);

/* Nobody waits by this waker any more. */
void pt_channel_leave(const pt_channel *channel, int side, const pt_waker *waker);

/* Add the type Channel to a module object, with the GIL held. Returns 0, or -1 with an exception.
 *
 *   Channel(receive, descriptor, driver, state, sides, buffers)
 *
 * receive: as of bind_receive(). driver: (ticks, loop, resume), the last two as of pt_waker.h.
 * sides: (reading, writing). buffers: (left, out), bytearrays. ticks, state and sides are of the
 * classes of native_type(). */
int pt_channel_attach(void *module);

#endif
