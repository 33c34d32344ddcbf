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
 * A context has a door with a shelf for each class, of PT_POOL_OWN places that hold a free buffer's
 * node or nothing. Its context alone puts nodes there, without a locked operation, and takes them
 * first; but it takes by exchange, because everybody else may: who finds the class at its capacity,
 * or the budget or the memory used up, takes what lies on any shelf. What a door counts its context
 * alone adds to; the first door, which any thread uses, has no shelf, and adds by locked
 * operations. A buffer knows the door that lent it: returned by another door, it is counted at the
 * first one among the strays, which all add to by locked operations. So a context may leave with
 * buffers out, and the next one has its door at once.
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

static inline place *place_of(pt_pool *door, uint8_t class_index)
{
    PT_ASSERT(class_index < door->shared->class_count);

    return &door->places[PT_POOL_COUNTS || PT_ATOMICS ? class_index : 0];
}

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

static inline buffer_header *header_of(uint8_t *buffer)
{
    PT_ASSERT((uintptr_t)buffer % ALIGNMENT == 0);

    return (buffer_header *)(void *)(buffer - sizeof(buffer_header));
}

static inline uint32_t buffer_cost(const shared_pool *pool, uint8_t class_index)
{
    PT_ASSERT(class_index < pool->class_count && pool->sizes[class_index] != 0);

    return (uint32_t)sizeof(buffer_header) + pool->sizes[class_index];
}

/* 0: the budget does not allow it. */
static int reserve_bytes(shared_pool *pool, uint32_t cost)
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

static size_t trim(shared_pool *pool, pt_pool *only);

/* NULL only when budget or source refuse and nothing is left to free that nobody has borrowed. */
static buffer_header *find_memory(shared_pool *pool, uint32_t cost, int is_share)
{
    do {
        if (!is_share && !reserve_bytes(pool, cost))
            continue;
        buffer_header *header = pool->source.allocate(pool->source.context, cost);
        if (header != NULL)
            return header;
        if (!is_share)
            (void)cell_add(&pool->budgeted, 0 - (word)cost);
    } while (trim(pool, NULL) != 0);
    return NULL;
}

/* Make a buffer for a node that the caller owns. 0, with nothing changed, when there is no memory.
 */
static int make_buffer(shared_pool *pool, uint8_t class_index, uint32_t node_index, int is_share)
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
    (void)cell_add(&class->allocations, 1);
#endif
    return 1;
}

/* Give the memory of a node that the caller owns back to the source. */
static void free_buffer(shared_pool *pool, uint8_t class_index, uint32_t node_index)
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

static inline void leave_budget(shared_pool *pool, uint8_t class_index)
{
    PT_ASSERT(cell_get(&pool->budgeted) >= buffer_cost(pool, class_index));

    (void)cell_add(&pool->budgeted, 0 - (word)buffer_cost(pool, class_index));
}

/* Doors of two contexts share no line of a cache. */
static size_t door_size(uint8_t class_count)
{
    PT_ASSERT(class_count >= 1 && class_count <= PT_POOL_MAX_CLASSES);

    size_t size =
        sizeof(pt_pool) + PLACES(class_count) * sizeof(place) + (OWN_DOORS != 0 ? APART : 0);
    return (size + 7) / 8 * 8;
}

size_t pt_pool_size(const pt_pool_class *classes, uint8_t class_count)
{
    if (classes == NULL || class_count < 1 || class_count > PT_POOL_MAX_CLASSES)
        return 0;

    size_t size = sizeof(shared_pool) + (1 + OWN_DOORS) * door_size(class_count);
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

    pt_pool *door = memory;
    size_t size = door_size(class_count);
    shared_pool *pool = (void *)((uint8_t *)memory + (1 + OWN_DOORS) * size);
    memset(pool, 0, sizeof *pool);
    memset(door, 0, size); /* and neither the other doors nor the nodes */
    door->shared = pool;
    pool->source = *source;
    pool->budget = budget != 0 && budget < NO_BUDGET ? (word)budget : NO_BUDGET;
    pool->doors = door;
    pool->door_size = (uint32_t)size;
    pool->class_count = class_count;
    memset(pool->sizes, 0xFF, sizeof pool->sizes); /* where each search ends */
    node *nodes = (node *)(void *)(pool + 1);
    for (uint8_t index = 0; index < class_count; index++) {
        size_class *class = &pool->classes[index];
        pool->sizes[index] = classes[index].buffer_size;
        class->capacity = classes[index].capacity;
        class->kept = classes[index].kept != 0 ? classes[index].kept : class->capacity;
        class->nodes = nodes;
        nodes += class->capacity;
    }
    return door;
}

uint64_t pt_pool_cleanup(pt_pool *pool)
{
    (void)trim(pool->shared, NULL);
    uint64_t in_use = pt_pool_in_use(pool);
    PT_ASSERT((in_use == 0) == (cell_get(&pool->shared->bytes) == 0));
    return in_use;
}

/* Nothing is free: a node of a class with a buffer made for it. NO_NODE when there is none. */
static uint32_t make_node(shared_pool *pool, uint8_t class_index, int is_share)
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

/* A shelf has no lock: its context alone puts buffers there, and anybody takes them by exchange. So
 * what nobody has borrowed serves everybody who needs it, wherever it lies. */
static inline uint32_t take_own(pt_pool *door, uint8_t class_index)
{
#if PT_ATOMICS
    place *own = &door->places[class_index];
    PT_ASSERT(own->top <= PT_POOL_OWN && (door->is_own || own->top == 0));
    while (own->top != 0) {
        uint32_t found = link_take(&own->shelf[--own->top]);
        if (found != 0) /* else another has taken it */
            return found - 1;
    }
#endif
    (void)door;
    (void)class_index;
    return NO_NODE;
}

/* 0: there is no room, though others may have taken what lay below the top. */
static inline int put_own(pt_pool *door, uint8_t class_index, uint32_t index)
{
#if PT_ATOMICS
    place *own = &door->places[class_index];
    uint32_t at = own->top;
    PT_ASSERT(at <= PT_POOL_OWN && index < door->shared->classes[class_index].capacity);
    if (!door->is_own)
        return 0;
    if (at < PT_POOL_OWN)
        own->top++;
    else
        for (at = 0; at < PT_POOL_OWN && link_get(&own->shelf[at]) != 0;)
            at++;
    if (at == PT_POOL_OWN)
        return 0;
    PT_ASSERT(link_get(&own->shelf[at]) == 0);
    link_put(&own->shelf[at], index + 1);
    return 1;
#else
    (void)door;
    (void)class_index;
    (void)index;
    return 0;
#endif
}

/* Whatever is free, on the list or on anybody's shelf. */
static uint32_t take_any(shared_pool *pool, uint8_t class_index)
{
    size_class *class = &pool->classes[class_index];
    uint32_t index = pop(&class->free, class->nodes);
#if PT_ATOMICS
    for (uint32_t each = next_door(pool, 0); index == NO_NODE && each != 0;
         each = next_door(pool, each)) {
        place *other = place_of(door_at(pool, each), class_index);
        for (uint32_t at = 0; index == NO_NODE && at < PT_POOL_OWN; at++) {
            if (link_get(&other->shelf[at]) != 0)
                index = link_take(&other->shelf[at]) - 1;
        }
    }
#endif
    PT_ASSERT(index == NO_NODE || index < class->capacity);
    return index;
}

static inline uint32_t number_of(const pt_pool *door)
{
    PT_ASSERT(door->is_own || door == door->shared->doors); /* else its context has left */
#if PT_ATOMICS
    return door->number;
#else
    (void)door;
    return 0;
#endif
}

static inline word count(const pt_pool *door, cell *counted)
{
    return door->is_own ? cell_count(counted) : cell_add(counted, 1);
}

static inline void count_acquire(pt_pool *door, place *at)
{
    word acquires = count(door, &at->acquires);
#if PT_ATOMICS
    (void)count(door, &door->acquires);
#endif
#if PT_POOL_COUNTS
    if (acquires - cell_get(&at->returns) > cell_get(&at->high_water)) {
        word returns = returns_of(at);
        if (returns < acquires) /* else others were fast: they have returned what they took later */
            raise_to(&at->high_water, acquires - returns);
    }
#else
    (void)acquires;
#endif
}

/* Where the buffer was lent, so that acquires less returns are what this door has out. */
static inline void count_return(pt_pool *door, const buffer_header *header)
{
    uint32_t lender = header->lent / 2u;
    PT_ASSERT(lender <= OWN_DOORS);
#if PT_ATOMICS
    if (lender != number_of(door)) {
        pt_pool *other = door_at(door->shared, lender);
        (void)cell_add(&place_of(other, header->class_index)->strays, 1);
        return;
    }
#endif
    (void)lender;
    (void)count(door, &place_of(door, header->class_index)->returns);
}

/* Nothing lies on the shelf. NO_NODE, and counted, when there is nothing anywhere. */
static uint32_t find_node(shared_pool *pool, uint8_t class_index, int is_share, int *was_free)
{
    PT_ASSERT(class_index < pool->class_count);

    size_class *class = &pool->classes[class_index];
    uint32_t index = pop(&class->free, class->nodes);
    *was_free = index != NO_NODE;
    if (index == NO_NODE)
        index = make_node(pool, class_index, is_share);
    if (index == NO_NODE) { /* others may keep one, or have returned one since we looked */
        index = take_any(pool, class_index);
        *was_free = 1;
    }
    if (index == NO_NODE)
        (void)cell_add(&pool->refusals, 1);
    PT_ASSERT(index == NO_NODE || index < class->capacity);
    return index;
}

static inline uint8_t *acquire(pt_pool *door, uint32_t size, int is_share)
{
    shared_pool *pool = door->shared;
    PT_ASSERT(is_share == 0 || is_share == LENT_SHARE);
    PT_ASSERT(pool->class_count >= 1 && pool->class_count <= PT_POOL_MAX_CLASSES);

    uint32_t fits = 0;
    while (size > pool->sizes[fits])
        fits++;
    if (size == 0 || fits == pool->class_count)
        return NULL;
    uint8_t class_index = (uint8_t)fits;

    int was_free = 1;
    uint32_t index = take_own(door, class_index);
    if (index == NO_NODE)
        index = find_node(pool, class_index, is_share, &was_free);
    if (index == NO_NODE)
        return NULL;

    buffer_header *header = pool->classes[class_index].nodes[index].memory;
    PT_ASSERT(header->node_index == index && header->class_index == class_index);
    PT_ASSERT(size <= header->buffer_size);
    PT_ASSERT(cell_get(&header->check) == check_value(pool, BUFFER_FREE)); /* nobody else has it */
    header->lent = (uint8_t)(number_of(door) * 2 + (uint32_t)is_share);
    if (is_share && was_free)
        leave_budget(pool, class_index);
    count_acquire(door, place_of(door, class_index));
    cell_set(&header->check, check_value(pool, BUFFER_LENT));
    return (uint8_t *)(header + 1);
}

uint8_t *pt_pool_acquire(pt_pool *pool, uint32_t size)
{
    return acquire(pool, size, 0);
}

uint8_t *pt_pool_acquire_share(pt_pool *pool, uint32_t size)
{
    return acquire(pool, size, LENT_SHARE);
}

uint32_t pt_pool_buffer_size(const uint8_t *buffer)
{
    return ((const buffer_header *)(const void *)(buffer - sizeof(buffer_header)))->buffer_size;
}

int pt_pool_is_share(const uint8_t *buffer)
{
    return ((const buffer_header *)(const void *)(buffer - sizeof(buffer_header)))->lent &
           LENT_SHARE;
}

/* Keep a buffer for whoever comes, or free it when so many are kept already. */
static void put_free(shared_pool *pool, uint8_t class_index, uint32_t index)
{
    size_class *class = &pool->classes[class_index];
    PT_ASSERT(index < class->capacity);
    if (!push(&class->free, class->nodes, index, class->kept)) {
        free_buffer(pool, class_index, index);
        leave_budget(pool, class_index);
    }
}

int pt_pool_release(pt_pool *door, uint8_t *buffer, uint32_t used)
{
    shared_pool *pool = door->shared;
    buffer_header *header = header_of(buffer);
    int is_lent =
        cell_claim(&header->check, check_value(pool, BUFFER_LENT), check_value(pool, BUFFER_FREE));
    PT_ASSERT(is_lent);
    if (!is_lent)
        return PT_ERR_INVALID_PARAM;
    PT_ASSERT(header->class_index < pool->class_count);
    PT_ASSERT(used <= header->buffer_size);

    uint8_t class_index = header->class_index;
    uint32_t index = header->node_index;
    PT_ASSERT(index < pool->classes[class_index].capacity);
    PT_ASSERT(pool->classes[class_index].nodes[index].memory == header);
    memset(buffer, 0, used <= header->buffer_size ? used : header->buffer_size);
    count_return(door, header);
    if ((header->lent & LENT_SHARE) && !reserve_bytes(pool, buffer_cost(pool, class_index))) {
        free_buffer(pool, class_index, index);
    } else if (!put_own(door, class_index, index)) {
        put_free(pool, class_index, index);
    }
    return PT_OK;
}

/* Free what lies on the list and on one shelf; NULL: on all. Returns the bytes. */
static size_t trim(shared_pool *pool, pt_pool *only)
{
    size_t freed = 0;
    for (uint8_t class_index = 0; class_index < pool->class_count; class_index++) {
        size_class *class = &pool->classes[class_index];
        for (uint32_t round = 0; round < class->capacity; round++) {
            uint32_t index = only == NULL ? NO_NODE : take_own(only, class_index);
            if (index == NO_NODE)
                index =
                    only == NULL ? take_any(pool, class_index) : pop(&class->free, class->nodes);
            if (index == NO_NODE)
                break;
            free_buffer(pool, class_index, index);
            leave_budget(pool, class_index);
            freed += buffer_cost(pool, class_index);
        }
    }
    return freed;
}

size_t pt_pool_trim(pt_pool *pool)
{
    PT_ASSERT(pool->shared->doors != NULL);

    return trim(pool->shared, pool->is_own ? pool : NULL);
}

pt_pool *pt_pool_join(pt_pool *any)
{
    shared_pool *pool = any->shared;
    PT_ASSERT(pool->doors->shared == pool);
#if PT_ATOMICS
    word taken = cell_get(&pool->taken);
    for (uint32_t index = 0; index < OWN_DOORS; index++) {
        word bit = (word)1 << index;
        while ((taken & bit) == 0) {
            if (!cell_swap(&pool->taken, &taken, taken | bit))
                continue;
            pt_pool *door = door_at(pool, index + 1);
            word opened = cell_get(&pool->opened);
            if ((opened & bit) == 0) {
                memset(door, 0, pool->door_size - APART);
                door->shared = pool;
                door->number = index + 1;
                while (!cell_swap(&pool->opened, &opened, opened | bit))
                    ;
            }
            door->is_own = 1;
            return door;
        }
    }
#endif
    return pool->doors;
}

void pt_pool_leave(pt_pool *door)
{
#if PT_ATOMICS
    shared_pool *pool = door->shared;
    if (door == pool->doors)
        return;
    PT_ASSERT(door->is_own);
    (void)trim(pool, door);
    door->is_own = 0;
    word bit = (word)1 << (door->number - 1);
    word taken = cell_get(&pool->taken);
    PT_ASSERT(taken & bit);
    while (!cell_swap(&pool->taken, &taken, taken & ~bit))
        ;
#else
    (void)door;
#endif
}

int pt_pool_is_scarce(pt_pool *door)
{
    shared_pool *pool = door->shared;
    PT_ASSERT(cell_get(&pool->budgeted) <= pool->budget);
    word enough = pool->budget / 8;
    if (pool->budget == NO_BUDGET || pool->budget - cell_get(&pool->budgeted) >= enough)
        return 0;
    (void)trim(pool, NULL);
    return pool->budget - cell_get(&pool->budgeted) < enough;
}

uint32_t pt_pool_largest(const pt_pool *door)
{
    PT_ASSERT(door->shared->sizes[door->shared->class_count] == UINT32_MAX);

    return door->shared->sizes[door->shared->class_count - 1];
}
