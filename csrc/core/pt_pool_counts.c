/* What a pool has counted, summed over its doors, and what holds of it between two turns. */
#include "pt_pool.h"

#include <string.h>

#include "pt_assert.h"
#include "pt_check.h"
#include "pt_pool_inside.h"

static word acquires_of(const pt_pool *door)
{
    PT_ASSERT(door->shared->class_count >= 1);
#if PT_ATOMICS
    return cell_get(&door->acquires);
#else
    word acquires = 0;
    for (uint32_t index = 0; index < PLACES(door->shared->class_count); index++)
        acquires += cell_get(&door->places[index].acquires);
    return acquires;
#endif
}

uint32_t pt_pool_acquires(const pt_pool *door)
{
    PT_ASSERT(door->shared->doors->is_own == 0);

    word others = door->is_own ? acquires_of(door->shared->doors) : 0;
    return (uint32_t)(acquires_of(door) + others);
}

/* Of one place at all doors; returns before acquires, so that there are never fewer of these. */
static void sum_up(const shared_pool *pool, uint32_t index, pt_pool_class_statistics *out)
{
    PT_ASSERT(index < PLACES(pool->class_count));

    memset(out, 0, sizeof *out);
    uint32_t each = 0;
    do {
        const place *at = &door_at(pool, each)->places[index];
#if PT_POOL_COUNTS
        out->high_water += cell_get(&at->high_water);
#endif
        out->returns += returns_of(at);
        each = next_door(pool, each);
    } while (each != 0);
    do {
        out->acquires += cell_get(&door_at(pool, each)->places[index].acquires);
        each = next_door(pool, each);
    } while (each != 0);
    out->in_use = out->acquires - out->returns;
}

uint64_t pt_pool_in_use(const pt_pool *door)
{
    uint64_t in_use = 0;
    for (uint32_t index = 0; index < PLACES(door->shared->class_count); index++) {
        pt_pool_class_statistics counted;
        sum_up(door->shared, index, &counted);
        PT_ASSERT(counted.acquires >= counted.returns);
        in_use += counted.in_use;
    }
    return in_use;
}

#if PT_POOL_COUNTS
/* Buffers that exist, and those that are being made. */
static word count_buffers(const size_class *class)
{
    word empty = head_count(cell_get(&class->empty)); /* before touched, which only rises */
    word touched = cell_get(&class->touched);
    PT_ASSERT(empty <= touched && touched <= class->capacity);
    return touched - empty;
}

void pt_pool_get_statistics(const pt_pool *door, pt_pool_statistics *out)
{
    const shared_pool *pool = door->shared;
    memset(out, 0, sizeof *out);
    for (uint32_t index = 0; index < PLACES(pool->class_count); index++) {
        pt_pool_class_statistics counted;
        sum_up(pool, index, &counted);
        PT_ASSERT(counted.acquires >= counted.returns);
        out->acquires += counted.acquires;
        out->returns += counted.returns;
        out->in_use += counted.in_use;
    }
    for (uint8_t index = 0; index < pool->class_count; index++)
        out->buffers += count_buffers(&pool->classes[index]);
    out->allocations = cell_get(&pool->allocations);
    out->refusals = cell_get(&pool->refusals);
    out->bytes = cell_get(&pool->bytes);
    out->peak_bytes = cell_get(&pool->peak_bytes);
}

void pt_pool_get_class_statistics(const pt_pool *door, uint8_t class_index,
                                  pt_pool_class_statistics *out)
{
    const shared_pool *pool = door->shared;
    PT_ASSERT(class_index < pool->class_count);

    sum_up(pool, class_index, out);
    out->allocations = cell_get(&pool->classes[class_index].allocations);
    out->buffers = count_buffers(&pool->classes[class_index]);
}
#endif

#if PT_ASSERTIONS
/* No other context is about, which might just be between two steps. */
static int is_alone(const shared_pool *pool)
{
    uint32_t first = next_door(pool, 0);
    PT_ASSERT(first <= OWN_DOORS);
    return first == 0 || next_door(pool, first) == 0;
}

void pt_pool_check(const pt_pool *door)
{
    const shared_pool *pool = door->shared;
    pt_pool_statistics counted;
    pt_pool_get_statistics(door, &counted);
    PT_ASSERT(cell_get(&pool->budgeted) <= pool->budget);
    PT_ASSERT(counted.returns <= counted.acquires);
    PT_ASSERT(counted.bytes <= counted.peak_bytes || !is_alone(pool));
    PT_ASSERT(counted.allocations <= counted.acquires || !is_alone(pool));
    for (uint8_t index = 0; index < pool->class_count; index++) {
        const size_class *class = &pool->classes[index];
        PT_ASSERT(index == 0 || pool->sizes[index] > pool->sizes[index - 1]);
        word head = cell_get(&class->free);
        uint32_t first = head_link(head);
        PT_ASSERT((first == 0) == (head_count(head) == 0) && head_count(head) <= class->kept);
        PT_ASSERT(first <= cell_get(&class->touched) &&
                  cell_get(&class->touched) <= class->capacity);
        if (first == 0 || !is_alone(pool))
            continue;
        const buffer_header *header = class->nodes[first - 1].memory;
        PT_ASSERT(header != NULL && cell_get(&header->check) == check_value(pool, BUFFER_FREE));
        PT_ASSERT(header->class_index == index && header->node_index == first - 1);
    }
}
#endif
