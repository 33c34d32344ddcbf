/* Buffers in size classes: lent, returned, counted. The one pool of the house: send slots and
 * staging buffers come from here.
 *
 * The pool starts empty and makes buffers on first need, with the two functions of its pt_memory. A
 * returned buffer stays for the next borrower until pt_pool_trim(), or until the budget is needed
 * for another class. All but init and cleanup are lock-free and may be called from any thread. Each
 * class has two bounds, on the buffers that exist and on the free ones that are kept, and all
 * classes together have a byte budget, beside which stand the shares: what each of a bounded number
 * of borrowers may always have, however much the others hold.
 *
 * One pool may serve several contexts. Each joins it and keeps a few free buffers of each class for
 * itself, so that it meets the others only beyond those; when one of them needs memory it takes
 * what another keeps.
 */
#ifndef PT_POOL_H
#define PT_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "pt_config.h"
#include "pt_error.h"

/* Where memory comes from. allocate returns 16-aligned memory, or NULL when there is none; release
 * gets the size that was asked for. Both may be called from any thread that uses the pool. The core
 * itself never calls malloc. */
typedef struct pt_memory {
    void *(*allocate)(void *context, size_t size);
    void (*release)(void *context, void *memory, size_t size);
    void *context;
} pt_memory;

typedef struct pt_pool_class {
    uint32_t buffer_size; /* bytes that a borrower may use; classes are given in ascending order */
    uint32_t capacity;    /* buffers of this class that may exist at once, 1 .. 65,535 */
    uint32_t kept; /* free buffers of this class that stay for the next borrower; 0: every one */
} pt_pool_class;

typedef struct pt_pool_statistics {
    uint64_t acquires;    /* successful ones */
    uint64_t allocations; /* those of them that made a new buffer */
    uint64_t refusals;    /* acquire found the class, the budget or the memory exhausted */
    uint64_t returns;
    uint64_t bytes; /* held by all buffers that exist, lent or free, shares included, with 16 bytes
                       of bookkeeping each */
    uint64_t peak_bytes;
    uint64_t in_use;  /* buffers lent now */
    uint64_t buffers; /* that exist, lent or free */
} pt_pool_statistics;

typedef struct pt_pool_class_statistics {
    uint64_t acquires;
    uint64_t allocations;
    uint64_t returns;
    uint64_t in_use;
    uint64_t high_water; /* the most that one door had out at once, summed; while threads
                            race at one door it may miss as many buffers as there are threads */
    uint64_t buffers;
} pt_pool_class_statistics;

/* A door to a pool, and with it the pool; opaque: it holds atomics. */
typedef struct pt_pool pt_pool;

/* Bytes of memory that a pool with these classes needs for itself (8-aligned, from the caller, kept
 * until cleanup; most of it is not touched before so many buffers exist); 0 when the classes are
 * not 1 .. PT_POOL_MAX_CLASSES, ascending, with a size and a capacity. */
size_t pt_pool_size(const pt_pool_class *classes, uint8_t class_count);

/* Make an empty pool in memory of pt_pool_size() bytes. budget: bytes that all buffers but the
 * shares may hold together; 0 for no limit beside the capacities. Returns the pool (at the address
 * of memory), or NULL for bad classes. Makes no buffer. */
pt_pool *pt_pool_init(void *memory, const pt_pool_class *classes, uint8_t class_count,
                      uint64_t budget, const pt_memory *source);

/* Free every buffer. Returns the number that were still lent (a mistake of the caller's; these are
 * not freed), 0 when all is well. */
uint64_t pt_pool_cleanup(pt_pool *pool);

/* Borrow a buffer of at least size bytes, 16-aligned: from the smallest class that holds it; a
 * larger class is not tried when that one is exhausted. NULL when there is none to lend (counted)
 * or size is above the largest class or 0. Contents are zero. */
uint8_t *pt_pool_acquire(pt_pool *pool, uint32_t size);

/* The same beside the budget: only capacity and memory can refuse it. The caller bounds how many
 * of these it holds at once. */
uint8_t *pt_pool_acquire_share(pt_pool *pool, uint32_t size);

/* 1 when a borrowed buffer came from pt_pool_acquire_share(). */
int pt_pool_is_share(const uint8_t *buffer);

/* Usable bytes of a borrowed buffer. */
uint32_t pt_pool_buffer_size(const uint8_t *buffer);

/* Give a buffer back, once. used: bytes from its start that the borrower may have written; so many
 * are wiped. Returns PT_OK; PT_ERR_INVALID_PARAM, with nothing changed, for a buffer that another
 * pool has lent, or that was returned and neither lent anew nor freed since (assertions stop the
 * process). */
int pt_pool_release(pt_pool *pool, uint8_t *buffer, uint32_t used);

/* Give the memory of all free buffers back to the source; of those that contexts keep for
 * themselves only this one's, when pool is a context's. Returns the bytes freed, bookkeeping
 * included. */
size_t pt_pool_trim(pt_pool *pool);

/* For one context, or one thread: the same pool, by a door of its own. It keeps up to PT_POOL_OWN
 * free buffers of each class there, beside pt_pool_class.kept; what was borrowed by one door may be
 * returned by another. Returns pool's first door, which any thread may use, when PT_POOL_CONTEXTS
 * have one already. With more contexts than one, give a class as many buffers more: what one of
 * them is just giving back is nobody's for a moment. */
pt_pool *pt_pool_join(pt_pool *pool);

/* The context ends: what it kept is freed, and the next one may have its door, so the door is not
 * used any more. Buffers that are still lent are returned by any other door. */
void pt_pool_leave(pt_pool *pool);

/* 1 when less than an eighth of the budget can still be lent; frees what is not lent to find out.
 */
int pt_pool_is_scarce(pt_pool *pool);

/* Usable bytes of the largest class. */
uint32_t pt_pool_largest(const pt_pool *pool);

/* Successful acquires so far, the low bits, by this door and by those who have none of their own:
 * unchanged between two looks means that none of them needed the pool. */
uint32_t pt_pool_acquires(const pt_pool *pool);

/* A snapshot; each number is exact, together they may be a moment apart while other threads borrow.
 * Not there without PT_POOL_COUNTS. */
void pt_pool_get_statistics(const pt_pool *pool, pt_pool_statistics *out);

/* The same of one class, 0 .. class_count - 1; not there without PT_POOL_COUNTS. */
void pt_pool_get_class_statistics(const pt_pool *pool, uint8_t class_index,
                                  pt_pool_class_statistics *out);

#endif
