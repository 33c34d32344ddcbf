/* An asynchronous iterator for CPython that costs little while something is at hand. */
#ifndef PT_READER_H
#define PT_READER_H

/* Add the type Reader to a module object, with the GIL held. Returns 0, or -1 with an exception.
 *
 *   Reader(more)
 *
 * `async for` over a Reader gives the items of an iterator, one after the other, without a
 * coroutine between. When there are no more, more() is awaited: a coroutine that returns (item,
 * items), the next item and an iterator over those behind it, which stay where they are until they
 * are taken: any number of tasks may ask at once, and the iterator of one replaces that of another.
 * What more() raises ends the loop, and the next anext() asks anew.
 */
int pt_reader_attach(void *module);

#endif
