/* Take one message in one call, with no turn of the engine in between. */
#ifndef PT_TAKER_H
#define PT_TAKER_H

/* Add bind_taker() to a module object, with the GIL held. Returns 0, or -1 with an exception.
 *
 *   bind_taker(turn, kinds, values, names) -> take
 *
 * turn: of the loop or worker that has all links; see pt_border.h. kinds: (message, open), the type
 * of what is returned, called with (view, payload), and the state of a connection that may be taken
 * from. values: (direct, came, inbox, totals, lock). direct: a dict, tag -> (connection, peer,
 * view), of links whose next message nobody but its receiver has to see; whoever turns the engine
 * empties it before. came: a list, empty unless the engine has something that is not served. lock:
 * an RLock, that of the node. names of attributes, none of which may run code when it is read or
 * written: (state, held) of a connection, the second None; (total, queues) of the inbox, 0 and an
 * empty dict while nothing waits there; (received, received_bytes) of a peer, and the first of the
 * totals, which are counted up.
 *
 * take(waits, alone) -> a message, or None: whoever has the lock of the node takes the next one, or
 * finds out why there is none; nothing is lost or changed then. If alone is True, None also where
 * more than one has come, which are better taken together. If waits is True, waits up to PT_LEAD_MS
 * without the GIL, while messages come one at a time: of a worker this thread has the turns
 * meanwhile; of a loop it has the lock of the node, or another thread could own and turn that. Any
 * thread may call it where a worker has the links; otherwise their owner.
 *
 * take(waits, alone, place) -> bool: likewise, the message is the one item of the list place, where
 * an exception of a signal handler, which may come as soon as this has returned, leaves it. False:
 * place has None.
 */
int pt_taker_attach(void *module);

#endif
