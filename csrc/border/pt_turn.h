/* A turn of the loop of streams, with the steps of those whom that has woken. */
#ifndef PT_TURN_H
#define PT_TURN_H

/* Add the functions bind_serve() and bind_quick() to a module object, with the GIL held. Returns 0,
 * or -1 with an exception.
 *
 *   bind_serve(turn, ticks, credit, channels, woken) -> serve
 *   bind_quick(serve, events, others) -> quick
 *
 * turn: of a loop, by bind_loop(). ticks: of the class of native_type(). credit: what that is given
 * in each turn. channels: a dict, tag -> Channel. woken: a list of what is called after a turn.
 *
 * serve(events) -> int: a turn whose events of ready channels are told to those: how many; the
 * others are appended to the list. A negative PT_ERR_* is returned, not raised. Then each that is
 * in woken is taken out and called, but for those that come there meanwhile. What one of them
 * raises is raised, and it is called again in the next turn: it does nothing then, unless a signal
 * handler has raised before it had done anything.
 *
 * quick() does what serve(events) does when nothing else is to be done: no event is left in the
 * list, and each of others, a tuple of what has a length, is empty. It returns None when nothing
 * else has come up; True: somebody who was woken still is to go on, or something is due later;
 * False: it has not done all, or nothing.
 *
 * Wherever a signal handler strikes, nothing is lost that the turn has found: until the tasks have
 * taken their steps no Python code runs, and when an exception leaves the call, or there are events
 * for others to serve, the loop stays ready for another turn. */
int pt_turn_attach(void *module);

#endif
