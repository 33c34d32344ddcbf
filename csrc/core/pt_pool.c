/* How the pool works.
 *
 * Each class has a table of capacity nodes, a node for each buffer that may exist, and two stacks
 * of nodes: free (with a buffer that nobody has borrowed) and empty (without memory). A node in
 * neither belongs to one thread: its buffer is lent, or is being made or freed. So a node moves
 * empty -> (made) -> lent <-> free -> (trimmed) -> empty, and only its owner touches what it holds.
 *
 * The stacks are Treiber's: push and pop replace the head by compare-and-swap. A head is a link in
 * its low half and a tag in its high half that counts changes, so that a head that was popped and
 * pushed back meanwhile is not mistaken for an unchanged one. The nodes never go away, so reading
 * the link of a node that another thread has just popped is harmless.
 *
 * A buffer carries a header of 16 bytes in front, which leads back to its node and knows pool and
 * state.
 *
 * The budget is held against the buffers that are lent by pt_pool_acquire() and those that are
 * free: a share that comes back is kept only if the budget has room for it. What the budget cannot
 * pay is made payable once by freeing what nobody has borrowed, of whatever class.
 */
#include "pt_pool.h"

#include <string.h>

#include "pt_assert.h"
#include "pt_check.h"

#if PT_ATOMICS
#include <stdatomic.h>
typedef _Atomic uint64_t cell64;
typedef _Atomic uint32_t cell32;
#else
typedef uint64_t cell64;
typedef uint32_t cell32;
#endif

#define ALIGNMENT    16u
#define MAX_CAPACITY 65535u
#define NO_NODE      UINT32_MAX

typedef struct buffer_header {
    uint64_t check; /* check_value() of its pool and state */
    uint32_t buffer_size;
    uint16_t node_index;
    uint8_t class_index;
    uint8_t is_share; /* 1: lent beside the budget */
} buffer_header;

_Static_assert(sizeof(buffer_header) == ALIGNMENT, "the header keeps the buffer behind it aligned");

enum buffer_state { BUFFER_FREE = 0, BUFFER_LENT = 1 };

typedef struct node {
    buffer_header *memory; /* NULL while in the empty stack */
    cell32 next;           /* a link: index of the next node + 1, or 0 */
} node;

typedef struct size_class {
    cell64 free; /* stack heads */
    cell64 empty;
    node *nodes;
    uint32_t buffer_size;
    uint32_t capacity;
} size_class;

struct pt_pool {
    pt_memory source;
    uint64_t budget; /* UINT64_MAX: none */
    cell64 acquires;
    cell64 allocations;
    cell64 refusals;
    cell64 returns;
    cell64 budgeted; /* bytes held against the budget and never above it; includes buffers that are
                        being made */
    cell64 bytes;    /* those and the shares */
    cell64 peak_bytes;
    uint8_t class_count;
    size_class classes[PT_POOL_MAX_CLASSES];
};

/* The few operations on shared cells; without PT_ATOMICS plain ones, for one thread. */
#if PT_ATOMICS
static inline uint64_t cell_get(const cell64 *cell)
{
    return atomic_load_explicit(cell, memory_order_acquire);
}

static inline uint64_t cell_add(cell64 *cell, uint64_t count)
{
    return atomic_fetch_add_explicit(cell, count, memory_order_relaxed) + count;
}

/* Weak, because each caller tries again: it may answer 0 though nobody came between. */
static inline int cell_swap(cell64 *cell, uint64_t *expected, uint64_t value)
{
    return atomic_compare_exchange_weak_explicit(cell, expected, value, memory_order_acq_rel,
                                                 memory_order_acquire);
}

static inline uint32_t link_get(const cell32 *link)
{
    return atomic_load_explicit(link, memory_order_relaxed);
}

static inline void link_set(cell32 *link, uint32_t value)
{
    atomic_store_explicit(link, value, memory_order_relaxed);
}
#else
static inline uint64_t cell_get(const cell64 *cell)
{
    return *cell;
}

static inline uint64_t cell_add(cell64 *cell, uint64_t count)
{
    return *cell += count;
}

static inline int cell_swap(cell64 *cell, uint64_t *expected, uint64_t value)
{
    PT_ASSERT(*cell == *expected);
    (void)expected;
    *cell = value;
    return 1;
}

static inline uint32_t link_get(const cell32 *link)
{
    return *link;
}

static inline void link_set(cell32 *link, uint32_t value)
{
    *link = value;
}
#endif

static inline uint64_t head_after(uint64_t seen, uint32_t link)
{
    PT_ASSERT(link <= MAX_CAPACITY);

    return (((seen >> 32) + 1) << 32) | link;
}

static inline uint32_t pop(const size_class *class, cell64 *head)
{
    uint64_t seen = cell_get(head);
    while ((uint32_t)seen != 0) {
        uint32_t index = (uint32_t)seen - 1;
        PT_ASSERT(index < class->capacity);
        if (cell_swap(head, &seen, head_after(seen, link_get(&class->nodes[index].next))))
            return index;
    }
    return NO_NODE;
}

static inline void push(const size_class *class, cell64 *head, uint32_t index)
{
    PT_ASSERT(index < class->capacity);
    uint64_t seen = cell_get(head);
    do
        link_set(&class->nodes[index].next, (uint32_t)seen);
    while (!cell_swap(head, &seen, head_after(seen, index + 1)));
}

/* One comparison tells a buffer of another pool, a spoilt one, and one that was returned twice. */
static inline uint64_t check_value(const pt_pool *pool, enum buffer_state state)
{
    return (uint64_t)(uintptr_t)pool ^
           (state == BUFFER_LENT ? 0x6c656e742062756fu : 0x667265652062756fu);
}

static inline buffer_header *header_of(uint8_t *buffer)
{
    PT_ASSERT((uintptr_t)buffer % ALIGNMENT == 0);

    return (buffer_header *)(void *)(buffer - sizeof(buffer_header));
}

static inline size_t buffer_cost(const size_class *class)
{
    PT_ASSERT(class->buffer_size != 0 && class->capacity <= MAX_CAPACITY);

    return sizeof(buffer_header) + class->buffer_size;
}

/* 0: the budget does not allow it. */
static int reserve_bytes(pt_pool *pool, size_t cost)
{
    uint64_t held = cell_get(&pool->budgeted);
    PT_ASSERT(cost > sizeof(buffer_header));
    do {
        PT_ASSERT(held <= pool->budget);
        if (cost > pool->budget - held)
            return 0;
    } while (!cell_swap(&pool->budgeted, &held, held + cost));
    return 1;
}

static void raise_peak(pt_pool *pool, uint64_t held)
{
    uint64_t peak = cell_get(&pool->peak_bytes);
    while (held > peak && !cell_swap(&pool->peak_bytes, &peak, held))
        ;
}

/* NULL only when budget or source refuse and nothing is left to free that nobody has borrowed. */
static buffer_header *find_memory(pt_pool *pool, size_t cost, int is_share)
{
    do {
        if (!is_share && !reserve_bytes(pool, cost))
            continue;
        buffer_header *header = pool->source.allocate(pool->source.context, cost);
        if (header != NULL)
            return header;
        if (!is_share)
            (void)cell_add(&pool->budgeted, 0 - (uint64_t)cost);
    } while (pt_pool_trim(pool) != 0);
    return NULL;
}

/* Make a buffer for a node that the caller owns. 0, with nothing changed, when there is no memory.
 */
static int make_buffer(pt_pool *pool, uint8_t class_index, uint32_t node_index, int is_share)
{
    size_class *class = &pool->classes[class_index];
    PT_ASSERT(node_index < class->capacity);
    PT_ASSERT(class->nodes[node_index].memory == NULL);

    size_t cost = buffer_cost(class);
    buffer_header *header = find_memory(pool, cost, is_share);
    if (header == NULL)
        return 0;
    PT_ASSERT((uintptr_t)header % ALIGNMENT == 0);

    memset(header, 0, cost);
    header->buffer_size = class->buffer_size;
    header->node_index = (uint16_t)node_index;
    header->class_index = class_index;
    class->nodes[node_index].memory = header;
    raise_peak(pool, cell_add(&pool->bytes, cost));
    (void)cell_add(&pool->allocations, 1);
    return 1;
}

/* Give the memory of a node that the caller owns back to the source. */
static void free_buffer(pt_pool *pool, size_class *class, uint32_t node_index)
{
    node *owned = &class->nodes[node_index];
    size_t cost = buffer_cost(class);
    PT_ASSERT(owned->memory->check == check_value(pool, BUFFER_FREE));
    PT_ASSERT(owned->memory->node_index == node_index && cell_get(&pool->bytes) >= cost);
    pool->source.release(pool->source.context, owned->memory, cost);
    owned->memory = NULL;
    (void)cell_add(&pool->bytes, 0 - (uint64_t)cost);
    push(class, &class->empty, node_index);
}

size_t pt_pool_size(const pt_pool_class *classes, uint8_t class_count)
{
    if (classes == NULL || class_count < 1 || class_count > PT_POOL_MAX_CLASSES)
        return 0;

    size_t size = sizeof(pt_pool);
    uint32_t smaller = 0;
    for (uint8_t index = 0; index < class_count; index++) {
        const pt_pool_class *class = &classes[index];
        if (class->buffer_size <= smaller ||
            class->buffer_size > UINT32_MAX - sizeof(buffer_header))
            return 0;
        if (class->capacity < 1 || class->capacity > MAX_CAPACITY)
            return 0;
        smaller = class->buffer_size;
        size += class->capacity * sizeof(node);
    }
    return size;
}

pt_pool *pt_pool_init(void *memory, const pt_pool_class *classes, uint8_t class_count,
                      uint64_t budget, const pt_memory *source)
{
    PT_ASSERT(memory != NULL && (uintptr_t)memory % 8 == 0);
    PT_ASSERT(source != NULL && source->allocate != NULL && source->release != NULL);

    size_t size = pt_pool_size(classes, class_count);
    if (size == 0)
        return NULL;

    pt_pool *pool = memory;
    memset(pool, 0, size);
    pool->source = *source;
    pool->budget = budget != 0 ? budget : UINT64_MAX;
    pool->class_count = class_count;
    node *nodes = (node *)(void *)((uint8_t *)memory + sizeof(pt_pool));
    for (uint8_t index = 0; index < class_count; index++) {
        size_class *class = &pool->classes[index];
        class->buffer_size = classes[index].buffer_size;
        class->capacity = classes[index].capacity;
        class->nodes = nodes;
        nodes += class->capacity;
        for (uint32_t rest = class->capacity; rest > 0; rest--)
            push(class, &class->empty, rest - 1);
    }
    return pool;
}

uint64_t pt_pool_cleanup(pt_pool *pool)
{
    pt_pool_statistics statistics;
    pt_pool_trim(pool);
    pt_pool_get_statistics(pool, &statistics);
    PT_ASSERT((statistics.in_use == 0) == (statistics.bytes == 0));
    return statistics.in_use;
}

static uint8_t *acquire(pt_pool *pool, uint32_t size, int is_share)
{
    PT_ASSERT(pool->class_count >= 1 && pool->class_count <= PT_POOL_MAX_CLASSES);

    uint8_t class_index = 0;
    while (class_index < pool->class_count && size > pool->classes[class_index].buffer_size)
        class_index++;
    if (size == 0 || class_index == pool->class_count)
        return NULL;

    size_class *class = &pool->classes[class_index];
    uint32_t index = pop(class, &class->free);
    int was_free = index != NO_NODE;
    if (!was_free) {
        index = pop(class, &class->empty);
        if (index != NO_NODE && !make_buffer(pool, class_index, index, is_share)) {
            push(class, &class->empty, index);
            index = NO_NODE;
        }
        if (index == NO_NODE) { /* another thread may have returned one since we looked */
            index = pop(class, &class->free);
            was_free = 1;
        }
    }
    if (index == NO_NODE) {
        (void)cell_add(&pool->refusals, 1);
        return NULL;
    }

    buffer_header *header = class->nodes[index].memory;
    PT_ASSERT(header->node_index == index && header->class_index == class_index);
    PT_ASSERT(size <= header->buffer_size);
    PT_ASSERT(header->check != check_value(pool, BUFFER_LENT)); /* nobody else has it */
    header->check = check_value(pool, BUFFER_LENT);
    header->is_share = (uint8_t)is_share;
    if (is_share && was_free)
        (void)cell_add(&pool->budgeted, 0 - (uint64_t)buffer_cost(class));
    (void)cell_add(&pool->acquires, 1);
    return (uint8_t *)(header + 1);
}

uint8_t *pt_pool_acquire(pt_pool *pool, uint32_t size)
{
    return acquire(pool, size, 0);
}

uint8_t *pt_pool_acquire_share(pt_pool *pool, uint32_t size)
{
    return acquire(pool, size, 1);
}

uint32_t pt_pool_buffer_size(const uint8_t *buffer)
{
    return ((const buffer_header *)(const void *)(buffer - sizeof(buffer_header)))->buffer_size;
}

int pt_pool_is_share(const uint8_t *buffer)
{
    return ((const buffer_header *)(const void *)(buffer - sizeof(buffer_header)))->is_share;
}

void pt_pool_release(pt_pool *pool, uint8_t *buffer, uint32_t used)
{
    buffer_header *header = header_of(buffer);
    PT_ASSERT(header->check == check_value(pool, BUFFER_LENT));
    PT_ASSERT(header->class_index < pool->class_count);
    PT_ASSERT(used <= header->buffer_size);

    size_class *class = &pool->classes[header->class_index];
    uint32_t index = header->node_index;
    PT_ASSERT(index < class->capacity);
    PT_ASSERT(class->nodes[index].memory == header);
    memset(buffer, 0, used <= header->buffer_size ? used : header->buffer_size);
    header->check = check_value(pool, BUFFER_FREE);
    (void)cell_add(&pool->returns, 1);
    if (header->is_share && !reserve_bytes(pool, buffer_cost(class)))
        free_buffer(pool, class, index);
    else
        push(class, &class->free, index);
}

size_t pt_pool_trim(pt_pool *pool)
{
    size_t freed = 0;
    for (uint8_t class_index = 0; class_index < pool->class_count; class_index++) {
        size_class *class = &pool->classes[class_index];
        size_t cost = buffer_cost(class);
        for (uint32_t round = 0; round < class->capacity; round++) {
            uint32_t index = pop(class, &class->free);
            if (index == NO_NODE)
                break;
            free_buffer(pool, class, index);
            (void)cell_add(&pool->budgeted, 0 - (uint64_t)cost);
            freed += cost;
        }
    }
    return freed;
}

int pt_pool_is_scarce(pt_pool *pool)
{
    PT_ASSERT(cell_get(&pool->budgeted) <= pool->budget);
    uint64_t enough = pool->budget / 8;
    if (pool->budget == UINT64_MAX || pool->budget - cell_get(&pool->budgeted) >= enough)
        return 0;
    (void)pt_pool_trim(pool);
    return pool->budget - cell_get(&pool->budgeted) < enough;
}

uint32_t pt_pool_largest(const pt_pool *pool)
{
    return pool->classes[pool->class_count - 1].buffer_size;
}

uint32_t pt_pool_acquires(const pt_pool *pool)
{
    return (uint32_t)cell_get(&pool->acquires);
}

void pt_pool_get_statistics(const pt_pool *pool, pt_pool_statistics *out)
{
    uint64_t returns =
        cell_get(&pool->returns); /* before acquires, so that in_use is never negative */
    uint64_t acquires = cell_get(&pool->acquires);
    out->acquires = acquires;
    out->allocations = cell_get(&pool->allocations);
    out->refusals = cell_get(&pool->refusals);
    out->returns = returns;
    out->bytes = cell_get(&pool->bytes);
    out->peak_bytes = cell_get(&pool->peak_bytes);
    out->in_use = acquires > returns ? acquires - returns : 0;
}

#if PT_ASSERTIONS
void pt_pool_check(const pt_pool *pool)
{
    pt_pool_statistics statistics;
    pt_pool_get_statistics(pool, &statistics);
    PT_ASSERT(cell_get(&pool->budgeted) <= pool->budget);
    PT_ASSERT(statistics.bytes <= statistics.peak_bytes);
    PT_ASSERT(statistics.returns <= statistics.acquires);
    PT_ASSERT(statistics.allocations <= statistics.acquires);
    for (uint8_t index = 0; index < pool->class_count; index++) {
        const size_class *class = &pool->classes[index];
        PT_ASSERT(index == 0 || class->buffer_size > pool->classes[index - 1].buffer_size);
        uint32_t first = (uint32_t)cell_get(&class->free);
        PT_ASSERT(first <= class->capacity);
        if (first == 0)
            continue;
        const buffer_header *header = class->nodes[first - 1].memory;
        PT_ASSERT(header != NULL && header->check == check_value(pool, BUFFER_FREE));
        PT_ASSERT(header->class_index == index && header->node_index == first - 1);
    }
}
#endif
