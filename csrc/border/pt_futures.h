/* Reads and writes of a stream for CPython, each a future that tries, and tries again when woken.
 */
#ifndef PT_FUTURES_H
#define PT_FUTURES_H

/* Add the type StreamFuture and the function stream_methods() to a module object, with the GIL
 * held. Returns 0, or -1 with an exception.
 *
 *   stream_methods(type) -> dict
 *
 * read(size=65536, *, timeout=None), readexactly(size, *, timeout=None) and write_all(data, *,
 * timeout=None), methods for a type of streams that has methods in Python of these names, whose
 * documentation they take over. Each returns an awaitable that does the same as the one in Python,
 * while that is simple. Of whatever else there is to do it awaits the one in Python, which the
 * stream has as _slow_read(), _slow_readexactly() and _slow_write_all(), or from the middle on as
 * _write_on(data, done). Beside those a stream has _channel, a Channel or None: then it has no
 * short way; _judge(side), which raises what a wait has ended with; _not_now(number, doing), which
 * raises what a try has met; _gather(data) and _keep(data, kind), for what is sent later: what was
 * begun when an exception of that kind ended it. */
int pt_futures_attach(void *module);

#endif
