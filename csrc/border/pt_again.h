/* What a loop of asyncio is given to call: whatever strikes that call, another turn follows. */
#ifndef PT_AGAIN_H
#define PT_AGAIN_H

/* Add the type Again to a module object, with the GIL held. Returns 0, or -1 with an exception.
 *
 *   Again(turn, function, struck, quick=None)
 *
 * turn: of a loop, by bind_loop(). struck: a list. A call calls function(), and returns and raises
 * what that does. When that raises, struck has one item more, and the loop is ready for a turn. A
 * function in Python could not promise that: a signal handler may raise before its first line.
 *
 * quick: does without function what it can. It is called first, and when that returns None all is
 * done; else function(what it has returned) does the rest, and function(False) all while struck has
 * an item. */
int pt_again_attach(void *module);

#endif
