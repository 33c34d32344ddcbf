/* What a pool is made of, and what its threads share of that: cells and stacks of nodes, each step
 * with the order that it needs.
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
#include "pt_pool.h"

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

/* One more, where nobody else adds. */
static inline word cell_count(cell *at)
{
    word value = atomic_load_explicit(at, memory_order_relaxed) + 1;
    atomic_store_explicit(at, value, memory_order_release);
    return value;
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
/* Where one thread puts and any may take: what it found it has for itself. */
static inline void link_put(cell32 *to, uint32_t value)
{
    PT_ASSERT(value != 0 && value <= MAX_CAPACITY);

    atomic_store_explicit(to, value, memory_order_release);
}

static inline uint32_t link_take(cell32 *from)
{
    return atomic_exchange_explicit(from, 0, memory_order_acq_rel);
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

static inline word cell_count(cell *at)
{
    return ++*at;
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

#define ALIGNMENT 16u
#define APART     64u /* bytes of a line of a cache */
#define NO_BUDGET ((word) - 1)

typedef struct buffer_header {
    cell check; /* check_value() of its pool and state */
#if !PT_ATOMICS
    uint32_t unused;
#endif
    uint32_t buffer_size;
    uint16_t node_index;
    uint8_t class_index;
    uint8_t lent; /* LENT_SHARE or 0, and times 2 the number of the door that lent the buffer */
} buffer_header;

_Static_assert(sizeof(buffer_header) == ALIGNMENT, "the header keeps the buffer behind it aligned");

#define LENT_SHARE 1 /* beside the budget */

enum buffer_state { BUFFER_FREE = 0, BUFFER_LENT = 1 };

typedef struct size_class {
    cell free; /* stack heads */
    cell empty;
    cell touched; /* nodes that have ever had a buffer */
    node *nodes;
    uint32_t capacity;
    uint32_t kept;
#if PT_POOL_COUNTS
    cell allocations;
#endif
} size_class;

/* What a door has of one class. */
typedef struct place {
#if PT_ATOMICS
    cell32 shelf[PT_POOL_OWN]; /* links to nodes with a free buffer, 0: none */
    uint32_t top;              /* nothing lies there or above; its context's alone */
#endif
    cell acquires;
    cell returns;
#if PT_ATOMICS
    cell strays; /* returns by other doors of what this one lent */
#endif
#if PT_POOL_COUNTS
    cell high_water;
#endif
} place;

typedef struct shared_pool {
    pt_memory source;
    word budget; /* NO_BUDGET: none */
    cell allocations;
    cell refusals;
    cell budgeted; /* bytes held against the budget and never above it; includes buffers that are
                        being made */
    cell bytes;    /* those and the shares */
    cell peak_bytes;
#if PT_ATOMICS
    cell taken;  /* a bit for each door that a context has ... */
    cell opened; /* ... or had: its memory has been made ready */
#endif
    pt_pool *doors; /* 1 + OWN_DOORS of them, door_size apart */
    uint32_t door_size;
    uint8_t class_count;
    uint32_t sizes[PT_POOL_MAX_CLASSES + 1]; /* of the buffers; behind them none is larger */
    size_class classes[PT_POOL_MAX_CLASSES];
} shared_pool;

/* A door to the pool: the first one for any thread, each other one for one context at a time. */
struct pt_pool {
    shared_pool *shared;
    int is_own; /* a context's */
#if PT_ATOMICS
    uint32_t number; /* among the doors */
    cell acquires;   /* of all classes: each turn asks whether there were some */
#endif
    place places[];
};

#if PT_ATOMICS
#define OWN_DOORS PT_POOL_CONTEXTS
#else
#define OWN_DOORS 0
#endif

_Static_assert(OWN_DOORS <= UINT8_MAX / 2, "a buffer's header has a byte for the door and a bit");

/* Without PT_POOL_COUNTS and shelves all classes are counted as one. */
#define PLACES(class_count) (PT_POOL_COUNTS || PT_ATOMICS ? (class_count) : 1u)

static inline pt_pool *door_at(const shared_pool *pool, uint32_t index)
{
    PT_ASSERT(index <= OWN_DOORS);

    return (pt_pool *)(void *)((uint8_t *)pool->doors + index * (size_t)pool->door_size);
}

/* Returns of what one place lent, by whichever door. */
static inline word returns_of(const place *at)
{
#if PT_ATOMICS
    return cell_get(&at->returns) + cell_get(&at->strays);
#else
    return cell_get(&at->returns);
#endif
}

/* Buffers that are lent, of all classes (pt_pool_counts.c). */
uint64_t pt_pool_in_use(const pt_pool *door);

/* The door behind this one that is or was some context's, 0 before the first; 0 when there is none.
 */
static inline uint32_t next_door(const shared_pool *pool, uint32_t index)
{
    PT_ASSERT(index <= OWN_DOORS);
#if PT_ATOMICS
    word opened = cell_get(&pool->opened);
    while (index < OWN_DOORS) {
        if (opened >> index++ & 1)
            return index;
    }
#endif
    (void)pool;
    (void)index;
    return 0;
}

/* One comparison tells a buffer of another pool, a spoilt one, and one that was returned twice. */
static inline word check_value(const shared_pool *pool, enum buffer_state state)
{
    return (word)(uintptr_t)pool ^
           (word)(state == BUFFER_LENT ? 0x2062756f6c656e74u : 0x2062756f66726565u);
}

#endif
