/* Send a message and take its number in one call, which any thread may make. */
#ifndef PT_NUMBERED_H
#define PT_NUMBERED_H

/* Add bind_numbered() to a module object that has the type Link, with the GIL held. Returns 0, or
 * -1 with an exception.
 *
 *   bind_numbered(quick, afar, accepted, hint) -> send
 *
 * The first three are names of attributes of a peer, none of which may run code when it is read or
 * written: the Link that takes its messages while none waits, or None; None while no other thread
 * has left one; how many were accepted. hint: called with what a link without a worker says beside
 * success.
 *
 * send(peer, payload, waits) -> int: one DATA frame of bytes on that Link, and its number, which
 * accepted is from now on. 0: it was not accepted, and nothing has changed; whoever has the lock of
 * the node finds out why. If waits is True and there are no slots, they are waited for without the
 * GIL, for up to PT_ROOM_MS, where the Link has a worker: with whose lock and the GIL no other
 * thread sends, or looks at accepted, in between. Other Links are for their owner, and what they
 * are given leaves at once, if it can. Whoever ends the worker makes quick None before, with the
 * GIL.
 */
int pt_numbered_attach(void *module);

#endif
