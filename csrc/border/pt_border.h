/* The native calls of the border, which is the only C that knows Python, and CPython alone. */
#ifndef PT_BORDER_H
#define PT_BORDER_H

/* Add the native functions to a module object. module: id() of a types.ModuleType that the caller
 * holds; the GIL is taken. Returns 0, or -1 when Python refused (the error is cleared). The
 * functions, with addr the address of a cffi object:
 *
 *   Link(context_addr, owner), the type of a link with its memory: address leads to its pt_link,
 *   which pt_link_open() opens and pt_link_close() closes; max_message, wide_max, slice_max and
 * referred are what that has
 *
 * The owner keeps the memory of the context, and of slots that are the caller's.
 *
 * send(payload) -> int, a method of it: pt_link_send() of one DATA frame, bytes or any contiguous
 * buffer. A negative PT_ERR_* is returned, not raised.
 *
 * send_frame(type, payload, flags) -> int, likewise of one frame of any type. PT_ERR_INVALID_PARAM:
 * a type or flags out of range.
 *
 * send_many(payloads, start) -> (accepted, code), another: sends payloads[start:], a list of bytes
 * or buffers, in order until one is refused; start may be left out (0). accepted: how many went;
 * code: the refusal (negative) or the sum of hints seen.
 *
 * Of all three a DATA payload longer than max_message and not longer than wide_max of the pt_link
 * goes in one wide frame, which keeps a reference to it until it has left.
 *
 * send_slice(payload, id, offset, size) -> int: pt_link_send_wide() of a part of a bytes object,
 * likewise. send_wide(type, id, total, reason) -> int: of one OFFER, GRANT or REFUSE.
 *
 * expect(id, total) -> int: pt_ingest_expect() with memory that is made here, or PT_ERR_NO_MEMORY.
 * forgo(id), forget(id): give that back, and forget the id too. landed(id): bytes that have come,
 * -1 when nothing is expected there. PT_ERR_INVALID_PARAM: a number is out of range.
 *
 * move(context_addr, owner, link, loop) and count(counts_addr): see pt_native.h.
 *
 *   bind_loop(context_addr, events_addr, capacity, owner) -> turn
 *
 * turn(events) -> how many there are now: pt_loop_turn() without waiting, its events appended to
 * the list as tuples (kind, tag, a, b), which the loop documents. A negative PT_ERR_* is returned,
 * not raised. The owner keeps the memory alive.
 *
 * Those of pt_pure.h and pt_bytes.h, what pt_waker.h, pt_layouts.h, pt_channel.h, pt_turn.h and
 * pt_futures.h describe, and the types of pt_reader.h and pt_again.h are added too.
 *
 * Wrong types raise TypeError; send_many that has accepted some returns PT_ERR_INVALID_PARAM as
 * code instead, so that the count is not lost. Lack of memory for a payload ends its link with
 * PT_ERR_NO_MEMORY; for the list or what is in it MemoryError is raised, and the next turn()
 * returns what could not be told. After the link was closed they all say
 * PT_ERR_NOT_CONNECTED. An owner must not lead back to what it is given to: no cycle is found here.
 */
int pt_border_attach(void *module);

#endif
