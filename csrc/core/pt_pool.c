/* How the pool works.
 *
 * Each class has a table of capacity nodes, a node for each buffer that may exist, and two stacks
 * of nodes: free (with a buffer that nobody has borrowed) and empty (without memory any more). A
 * node in neither belongs to one thread: its buffer is lent, or is being made or freed. So a node
 * moves empty -> (made) -> lent <-> free -> (trimmed) -> empty, and only its owner touches what it
 * holds. Nodes from `touched` on have never had a buffer and lie in no stack: their part of the
 * table has not been written to, and costs no memory.
 *
 * A buffer carries a header of 16 bytes in front, which leads back to its node and knows pool and
 * state. Whoever turns the state from lent to free has returned the buffer: nobody can twice.
 *
 * The budget is held against the buffers that are lent by pt_pool_acquire() and those that are
 * free: a share that comes back is kept only if the budget has room for it. What the budget cannot
 * pay is made payable once by freeing what nobody has borrowed, of whatever class.
 */
#include "pt_pool.h"

#include <string.h>

#include "pt_assert.h"
#include "pt_check.h"
#include "pt_pool_inside.h"

#define ALIGNMENT 16u
#define NO_BUDGET ((word) - 1)

typedef struct buffer_header {
    cell check; /* check_value() of its pool and state */
#if !PT_ATOMICS
    uint32_t unused;
#endif
    uint32_t buffer_size;
    uint16_t node_index;
    uint8_t class_index;
    uint8_t is_share; /* 1: lent beside the budget */
} buffer_header;

_Static_assert(sizeof(buffer_header) == ALIGNMENT, "the header keeps the buffer behind it aligned");

enum buffer_state { BUFFER_FREE = 0, BUFFER_LENT = 1 };

typedef struct size_class {
    cell free; /* stack heads */
    cell empty;
    cell touched; /* nodes that have ever had a buffer */
    node *nodes;
    uint32_t capacity;
    uint32_t kept;
} size_class;

typedef struct class_counts {
    cell acquires;
    cell returns;
#if PT_POOL_COUNTS
    cell allocations;
    cell high_water;
#endif
} class_counts;

struct pt_pool {
    pt_memory source;
    word budget; /* NO_BUDGET: none */
    cell allocations;
    cell refusals;
    cell budgeted; /* bytes held against the budget and never above it; includes buffers that are
                        being made */
    cell bytes;    /* those and the shares */
    cell peak_bytes;
    uint8_t class_count;
    uint32_t sizes[PT_POOL_MAX_CLASSES]; /* of the buffers, side by side: each acquire looks */
    size_class classes[PT_POOL_MAX_CLASSES];
    class_counts counts[PT_POOL_COUNTS ? PT_POOL_MAX_CLASSES : 1];
};

/* A node without memory: one that had some, else the next that never had. */
static uint32_t take_empty(size_class *class)
{
    uint32_t index = pop(&class->empty, class->nodes);
    if (index != NO_NODE)
        return index;
    word touched = cell_get(&class->touched);
    PT_ASSERT(touched <= class->capacity);
    while (touched < class->capacity) {
        if (cell_swap(&class->touched, &touched, touched + 1))
            return (uint32_t)touched;
    }
    return NO_NODE;
}

static inline void put_empty(size_class *class, uint32_t index)
{
    int is_put = push(&class->empty, class->nodes, index, class->capacity);
    PT_ASSERT(is_put);
    (void)is_put;
}

/* Without PT_POOL_COUNTS all classes are counted as one. */
#define COUNTED(pool) (PT_POOL_COUNTS ? (pool)->class_count : 1)

/* One comparison tells a buffer of another pool, a spoilt one, and one that was returned twice. */
static inline word check_value(const pt_pool *pool, enum buffer_state state)
{
    return (word)(uintptr_t)pool ^
           (word)(state == BUFFER_LENT ? 0x2062756f6c656e74u : 0x2062756f66726565u);
}

static inline buffer_header *header_of(uint8_t *buffer)
{
    PT_ASSERT((uintptr_t)buffer % ALIGNMENT == 0);

    return (buffer_header *)(void *)(buffer - sizeof(buffer_header));
}

static inline uint32_t buffer_cost(const pt_pool *pool, uint8_t class_index)
{
    PT_ASSERT(class_index < pool->class_count && pool->sizes[class_index] != 0);

    return (uint32_t)sizeof(buffer_header) + pool->sizes[class_index];
}

/* 0: the budget does not allow it. */
static int reserve_bytes(pt_pool *pool, uint32_t cost)
{
    word held = cell_get(&pool->budgeted);
    PT_ASSERT(cost > sizeof(buffer_header));
    do {
        PT_ASSERT(held <= pool->budget);
        if (cost > pool->budget - held)
            return 0;
    } while (!cell_swap(&pool->budgeted, &held, held + cost));
    return 1;
}

static inline void raise_to(cell *peak, word now)
{
    word seen = cell_get(peak);
    while (now > seen && !cell_swap(peak, &seen, now))
        ;
}

/* NULL only when budget or source refuse and nothing is left to free that nobody has borrowed. */
static buffer_header *find_memory(pt_pool *pool, uint32_t cost, int is_share)
{
    do {
        if (!is_share && !reserve_bytes(pool, cost))
            continue;
        buffer_header *header = pool->source.allocate(pool->source.context, cost);
        if (header != NULL)
            return header;
        if (!is_share)
            (void)cell_add(&pool->budgeted, 0 - (word)cost);
    } while (pt_pool_trim(pool) != 0);
    return NULL;
}

/* Make a buffer for a node that the caller owns. 0, with nothing changed, when there is no memory.
 */
static int make_buffer(pt_pool *pool, uint8_t class_index, uint32_t node_index, int is_share)
{
    size_class *class = &pool->classes[class_index];
    PT_ASSERT(node_index < class->capacity);

    uint32_t cost = buffer_cost(pool, class_index);
    buffer_header *header = find_memory(pool, cost, is_share);
    if (header == NULL)
        return 0;
    PT_ASSERT((uintptr_t)header % ALIGNMENT == 0);

    memset(header, 0, cost);
    header->buffer_size = pool->sizes[class_index];
    header->node_index = (uint16_t)node_index;
    header->class_index = class_index;
    class->nodes[node_index].memory = header;
    cell_set(&header->check, check_value(pool, BUFFER_FREE));
    raise_to(&pool->peak_bytes, cell_add(&pool->bytes, cost));
    (void)cell_add(&pool->allocations, 1);
#if PT_POOL_COUNTS
    (void)cell_add(&pool->counts[class_index].allocations, 1);
#endif
    return 1;
}

/* Give the memory of a node that the caller owns back to the source. */
static void free_buffer(pt_pool *pool, uint8_t class_index, uint32_t node_index)
{
    size_class *class = &pool->classes[class_index];
    node *owned = &class->nodes[node_index];
    uint32_t cost = buffer_cost(pool, class_index);
    PT_ASSERT(cell_get(&owned->memory->check) == check_value(pool, BUFFER_FREE));
    PT_ASSERT(owned->memory->node_index == node_index && cell_get(&pool->bytes) >= cost);
    cell_set(&owned->memory->check, 0);
    pool->source.release(pool->source.context, owned->memory, cost);
    (void)cell_add(&pool->bytes, 0 - (word)cost);
    put_empty(class, node_index);
}

static inline void leave_budget(pt_pool *pool, uint8_t class_index)
{
    PT_ASSERT(cell_get(&pool->budgeted) >= buffer_cost(pool, class_index));

    (void)cell_add(&pool->budgeted, 0 - (word)buffer_cost(pool, class_index));
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
        if (class->capacity < 1 || class->capacity > MAX_CAPACITY || class->kept > class->capacity)
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

    if (pt_pool_size(classes, class_count) == 0)
        return NULL;

    pt_pool *pool = memory;
    memset(pool, 0, sizeof *pool); /* and not the nodes behind it */
    pool->source = *source;
    pool->budget = budget != 0 && budget < NO_BUDGET ? (word)budget : NO_BUDGET;
    pool->class_count = class_count;
    node *nodes = (node *)(void *)((uint8_t *)memory + sizeof(pt_pool));
    for (uint8_t index = 0; index < class_count; index++) {
        size_class *class = &pool->classes[index];
        pool->sizes[index] = classes[index].buffer_size;
        class->capacity = classes[index].capacity;
        class->kept = classes[index].kept != 0 ? classes[index].kept : class->capacity;
        class->nodes = nodes;
        nodes += class->capacity;
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

/* Nothing is free: a node of a class with a buffer made for it. NO_NODE when there is none. */
static uint32_t make_node(pt_pool *pool, uint8_t class_index, int is_share)
{
    size_class *class = &pool->classes[class_index];
    uint32_t index = take_empty(class);
    PT_ASSERT(index == NO_NODE || index < cell_get(&class->touched));
    if (index != NO_NODE && !make_buffer(pool, class_index, index, is_share)) {
        put_empty(class, index);
        return NO_NODE;
    }
    return index;
}

static inline class_counts *counts_of(pt_pool *pool, uint8_t class_index)
{
    PT_ASSERT(class_index < pool->class_count);

    return &pool->counts[PT_POOL_COUNTS ? class_index : 0];
}

static void count_acquire(pt_pool *pool, uint8_t class_index)
{
    class_counts *counts = counts_of(pool, class_index);
    word acquires = cell_add(&counts->acquires, 1);
#if PT_POOL_COUNTS
    word returns = cell_get(&counts->returns);
    if (returns < acquires) /* else others were fast: they have returned what they took later */
        raise_to(&counts->high_water, acquires - returns);
#else
    (void)acquires;
#endif
}

static uint8_t *acquire(pt_pool *pool, uint32_t size, int is_share)
{
    PT_ASSERT(pool->class_count >= 1 && pool->class_count <= PT_POOL_MAX_CLASSES);

    uint8_t class_index = 0;
    while (class_index < pool->class_count && size > pool->sizes[class_index])
        class_index++;
    if (size == 0 || class_index == pool->class_count)
        return NULL;

    size_class *class = &pool->classes[class_index];
    uint32_t index = pop(&class->free, class->nodes);
    int was_free = index != NO_NODE;
    if (!was_free) {
        index = make_node(pool, class_index, is_share);
        if (index == NO_NODE) { /* another thread may have returned one since we looked */
            index = pop(&class->free, class->nodes);
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
    PT_ASSERT(cell_get(&header->check) == check_value(pool, BUFFER_FREE)); /* nobody else has it */
    header->is_share = (uint8_t)is_share;
    if (is_share && was_free)
        leave_budget(pool, class_index);
    count_acquire(pool, class_index);
    cell_set(&header->check, check_value(pool, BUFFER_LENT));
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

int pt_pool_release(pt_pool *pool, uint8_t *buffer, uint32_t used)
{
    buffer_header *header = header_of(buffer);
    int is_lent =
        cell_claim(&header->check, check_value(pool, BUFFER_LENT), check_value(pool, BUFFER_FREE));
    PT_ASSERT(is_lent);
    if (!is_lent)
        return PT_ERR_INVALID_PARAM;
    PT_ASSERT(header->class_index < pool->class_count);
    PT_ASSERT(used <= header->buffer_size);

    uint8_t class_index = header->class_index;
    size_class *class = &pool->classes[class_index];
    uint32_t index = header->node_index;
    PT_ASSERT(index < class->capacity);
    PT_ASSERT(class->nodes[index].memory == header);
    memset(buffer, 0, used <= header->buffer_size ? used : header->buffer_size);
    (void)cell_add(&counts_of(pool, class_index)->returns, 1);
    if (header->is_share && !reserve_bytes(pool, buffer_cost(pool, class_index))) {
        free_buffer(pool, class_index, index);
    } else if (!push(&class->free, class->nodes, index, class->kept)) {
        free_buffer(pool, class_index, index);
        leave_budget(pool, class_index);
    }
    return PT_OK;
}

size_t pt_pool_trim(pt_pool *pool)
{
    size_t freed = 0;
    for (uint8_t class_index = 0; class_index < pool->class_count; class_index++) {
        size_class *class = &pool->classes[class_index];
        for (uint32_t round = 0; round < class->capacity; round++) {
            uint32_t index = pop(&class->free, class->nodes);
            if (index == NO_NODE)
                break;
            free_buffer(pool, class_index, index);
            leave_budget(pool, class_index);
            freed += buffer_cost(pool, class_index);
        }
    }
    return freed;
}

int pt_pool_is_scarce(pt_pool *pool)
{
    PT_ASSERT(cell_get(&pool->budgeted) <= pool->budget);
    word enough = pool->budget / 8;
    if (pool->budget == NO_BUDGET || pool->budget - cell_get(&pool->budgeted) >= enough)
        return 0;
    (void)pt_pool_trim(pool);
    return pool->budget - cell_get(&pool->budgeted) < enough;
}

uint32_t pt_pool_largest(const pt_pool *pool)
{
    return pool->sizes[pool->class_count - 1];
}

uint32_t pt_pool_acquires(const pt_pool *pool)
{
    uint32_t acquires = 0;
    for (uint8_t index = 0; index < COUNTED(pool); index++)
        acquires += (uint32_t)cell_get(&pool->counts[index].acquires);
    return acquires;
}

/* Buffers that exist, and those that are being made. */
static word count_buffers(const size_class *class)
{
    word empty = head_count(cell_get(&class->empty)); /* before touched, which only rises */
    word touched = cell_get(&class->touched);
    PT_ASSERT(empty <= touched && touched <= class->capacity);
    return touched - empty;
}

void pt_pool_get_statistics(const pt_pool *pool, pt_pool_statistics *out)
{
    word acquires = 0, returns = 0, buffers = 0;
    for (uint8_t index = 0; index < COUNTED(pool); index++) {
        returns += cell_get(&pool->counts[index].returns); /* before acquires: never more */
        acquires += cell_get(&pool->counts[index].acquires);
    }
    for (uint8_t index = 0; index < pool->class_count; index++)
        buffers += count_buffers(&pool->classes[index]);
    out->acquires = acquires;
    out->allocations = cell_get(&pool->allocations);
    out->refusals = cell_get(&pool->refusals);
    out->returns = returns;
    out->bytes = cell_get(&pool->bytes);
    out->peak_bytes = cell_get(&pool->peak_bytes);
    out->in_use = acquires - returns;
    out->buffers = buffers;
}

#if PT_POOL_COUNTS
void pt_pool_get_class_statistics(const pt_pool *pool, uint8_t class_index,
                                  pt_pool_class_statistics *out)
{
    PT_ASSERT(class_index < pool->class_count);

    const class_counts *counts = &pool->counts[class_index];
    out->high_water = cell_get(&counts->high_water);
    out->returns = cell_get(&counts->returns);
    out->acquires = cell_get(&counts->acquires);
    out->allocations = cell_get(&counts->allocations);
    out->in_use = out->acquires - out->returns;
    out->buffers = count_buffers(&pool->classes[class_index]);
}
#endif

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
        PT_ASSERT(index == 0 || pool->sizes[index] > pool->sizes[index - 1]);
        PT_ASSERT(cell_get(&class->touched) <= class->capacity);
        word head = cell_get(&class->free);
        uint32_t first = head_link(head);
        PT_ASSERT((first == 0) == (head_count(head) == 0) && head_count(head) <= class->kept);
        PT_ASSERT(first <= cell_get(&class->touched));
        if (first == 0)
            continue;
        const buffer_header *header = class->nodes[first - 1].memory;
        PT_ASSERT(header != NULL && cell_get(&header->check) == check_value(pool, BUFFER_FREE));
        PT_ASSERT(header->class_index == index && header->node_index == first - 1);
    }
}
#endif
