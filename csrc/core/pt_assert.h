/* PT_ASSERT: what must hold if we made no mistake. Python's own build flags define NDEBUG, so the
 * standard assert would vanish from every extension; this one is on wherever PT_ASSERTIONS is 1,
 * which every test build sets. */
#ifndef PT_ASSERT_H
#define PT_ASSERT_H

#ifndef PT_ASSERTIONS
#define PT_ASSERTIONS 0
#endif

#if PT_ASSERTIONS
#define PT_ASSERT(condition) ((condition) ? (void)0 : __builtin_trap())
#else
#define PT_ASSERT(condition) ((void)0)
#endif

#endif
