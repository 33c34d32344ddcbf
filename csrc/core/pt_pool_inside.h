/* What the threads of a pool share: cells and stacks of nodes, each step with the order that it
 * needs.
 *
 * The stacks are Treiber's: push and pop replace the head by compare-and-swap. A head has a tag in
 * its high half that counts changes, so that a head that was popped and pushed back meanwhile is
 * not mistaken for an unchanged one; below it the number of nodes in the stack, which holds the
 * bound on what is kept, and the link to the first one. The nodes never go away, so reading the
 * link of a node that another thread has just popped is harmless.
 */
#ifndef PT_POOL_INSIDE_H
#define PT_POOL_INSIDE_H

#include <stdint.h>

#include "pt_assert.h"
#include "pt_config.h"

#if PT_ATOMICS
#include <stdatomic.h>
typedef uint64_t word;
typedef _Atomic word cell;
typedef _Atomic uint32_t cell32;
#else /* for one thread; counts are modulo 2^32 */
typedef uint32_t word;
typedef word cell;
typedef uint32_t cell32;
#endif

#define MAX_CAPACITY 65535u
#define NO_NODE      UINT32_MAX

typedef struct node {
    struct buffer_header *memory;
    cell32 next; /* index of the next node + 1, or 0 */
} node;

/* The few operations on shared cells; without PT_ATOMICS plain ones, for one thread. */
#if PT_ATOMICS
static inline word cell_get(const cell *at)
{
    return atomic_load_explicit(at, memory_order_acquire);
}

/* Releases, so that whoever sees a return counted sees the acquire before it counted too. */
static inline word cell_add(cell *at, word count)
{
    return atomic_fetch_add_explicit(at, count, memory_order_release) + count;
}

static inline void cell_set(cell *at, word value)
{
    atomic_store_explicit(at, value, memory_order_relaxed);
}

/* Weak, because each caller tries again: it may answer 0 though nobody came between. */
static inline int cell_swap(cell *at, word *expected, word value)
{
    return atomic_compare_exchange_weak_explicit(at, expected, value, memory_order_acq_rel,
                                                 memory_order_acquire);
}

/* Of many who find the same value one gets 1. */
static inline int cell_claim(cell *at, word expected, word value)
{
    return atomic_compare_exchange_strong_explicit(at, &expected, value, memory_order_acq_rel,
                                                   memory_order_relaxed);
}

static inline uint32_t link_get(const cell32 *from)
{
    return atomic_load_explicit(from, memory_order_relaxed);
}

static inline void link_set(cell32 *to, uint32_t value)
{
    atomic_store_explicit(to, value, memory_order_relaxed);
}
#else
static inline word cell_get(const cell *at)
{
    return *at;
}

static inline word cell_add(cell *at, word count)
{
    return *at += count;
}

static inline int cell_swap(cell *at, word *expected, word value)
{
    PT_ASSERT(*at == *expected);
    (void)expected;
    *at = value;
    return 1;
}

static inline void cell_set(cell *at, word value)
{
    *at = value;
}

static inline int cell_claim(cell *at, word expected, word value)
{
    if (*at != expected)
        return 0;
    *at = value;
    return 1;
}

static inline uint32_t link_get(const cell32 *from)
{
    return *from;
}

static inline void link_set(cell32 *to, uint32_t value)
{
    *to = value;
}
#endif

static inline uint32_t head_link(word head)
{
    return (uint16_t)head;
}

static inline uint32_t head_count(word head)
{
    return (uint16_t)(head >> 16);
}

static inline word head_after(word seen, uint32_t first, uint32_t count)
{
    PT_ASSERT(first <= MAX_CAPACITY && count <= MAX_CAPACITY);

#if PT_ATOMICS
    return (((seen >> 32) + 1) << 32) | count << 16 | first;
#else
    (void)seen;
    return count << 16 | first;
#endif
}

static inline uint32_t pop(cell *head, const node *nodes)
{
    word seen = cell_get(head);
    while (head_link(seen) != 0) {
        uint32_t index = head_link(seen) - 1;
        uint32_t count = head_count(seen) - 1;
        uint32_t next = link_get(&nodes[index].next);
        if (cell_swap(head, &seen, head_after(seen, next, count)))
            return index;
    }
    return NO_NODE;
}

/* 0: there are limit nodes in the stack already. */
static inline int push(cell *head, node *nodes, uint32_t index, uint32_t limit)
{
    PT_ASSERT(index < MAX_CAPACITY && limit <= MAX_CAPACITY);
    word seen = cell_get(head);
    do {
        if (head_count(seen) >= limit)
            return 0;
        link_set(&nodes[index].next, head_link(seen));
    } while (!cell_swap(head, &seen, head_after(seen, index + 1, head_count(seen) + 1)));
    return 1;
}

#endif
