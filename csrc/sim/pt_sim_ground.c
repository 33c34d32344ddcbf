/* What the rest of the box stands on: its memory, chance and trace, and the events that are
 * planned.
 */
#include <string.h>

#include "pt_assert.h"
#include "pt_sim_inside.h"

/* ------------------------------------------------------------------------------- memory, chance */

void *sim_take(pt_sim *sim, size_t size)
{
    PT_ASSERT(size != 0);
    PT_ASSERT(sim->limit == 0 || sim->bytes <= sim->limit);

    if (sim->limit != 0 && sim->bytes + size > sim->limit) {
        sim->out_of_memory = 1;
        return NULL;
    }
    void *memory = sim->memory.allocate(sim->memory.context, size);
    if (memory == NULL) {
        sim->out_of_memory = 1;
        return NULL;
    }
    memset(memory, 0, size);
    sim->bytes += size;
    if (sim->bytes > sim->peak_bytes)
        sim->peak_bytes = sim->bytes;
    return memory;
}

void sim_give(pt_sim *sim, void *memory, size_t size)
{
    if (memory == NULL)
        return;
    PT_ASSERT(size != 0);
    PT_ASSERT(sim->bytes >= sizeof *sim + size); /* the box itself goes last */
    sim->bytes -= size;
    sim->memory.release(sim->memory.context, memory, size);
}

/* Make an array of count items at least wanted long. 0 when there is no memory. */
int sim_widen(pt_sim *sim, void **array, uint32_t *count, uint32_t wanted, size_t item_size)
{
    PT_ASSERT(*array != NULL || *count == 0);
    PT_ASSERT(item_size != 0 && wanted <= UINT32_MAX / 2);

    const uint32_t had = *count;
    if (wanted <= had)
        return 1;
    uint32_t size = had ? had : 16;
    while (size < wanted)
        size *= 2;
    void *wider = sim_take(sim, size * item_size);
    if (wider == NULL)
        return 0;
    if (had != 0)
        memcpy(wider, *array, had * item_size);
    sim_give(sim, *array, had * item_size);
    *array = wider;
    *count = size;
    return 1;
}

/* SplitMix64. */
static uint64_t draw(uint64_t *random)
{
    *random += UINT64_C(0x9E3779B97F4A7C15);
    uint64_t value = *random;
    value = (value ^ value >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    value = (value ^ value >> 27) * UINT64_C(0x94D049BB133111EB);
    return value ^ value >> 31;
}

uint64_t sim_choose(uint64_t *random, uint64_t bound)
{
    PT_ASSERT(bound != 0);

    return draw(random) % bound;
}

void pt_sim_random(pt_sim *sim, uint8_t *out, size_t size)
{
    for (size_t index = 0; index < size; index++)
        out[index] = (uint8_t)(draw(&sim->random) >> 32);
}

/* ---------------------------------------------------------------------------------------- trace */

uint64_t sim_hash(uint64_t hash, uint64_t value, int size)
{
    PT_ASSERT(size >= 1 && size <= 8);

    for (int index = 0; index < size; index++) {
        hash = (hash ^ (value & 0xFF)) * UINT64_C(0x100000001B3);
        value >>= 8;
    }
    return hash;
}

void sim_trace(pt_sim *sim, int kind, int32_t source, int32_t target, uint32_t a, uint64_t b)
{
    PT_ASSERT(kind >= PT_SIM_SEND && kind < PT_SIM_KINDS);
    PT_ASSERT(source < (int32_t)sim->host_count && target < (int32_t)sim->host_count);
    PT_ASSERT(sim->record_count <= sim->record_size);

    uint64_t hash = sim_hash(sim->hash, sim->now_ns, 8);
    hash = sim_hash(hash, (uint32_t)kind, 1);
    hash = sim_hash(hash, (uint32_t)source, 4);
    hash = sim_hash(hash, (uint32_t)target, 4);
    hash = sim_hash(hash, a, 4);
    sim->hash = sim_hash(hash, b, 8);
    if (sim->record_size == 0)
        return;
    if (sim->record_count == sim->record_size) {
        sim->record_first = (sim->record_first + 1) % sim->record_size;
        sim->record_count--;
        sim->records_dropped++;
    }
    pt_sim_record *record =
        &sim->records[(sim->record_first + sim->record_count) % sim->record_size];
    record->time_ns = sim->now_ns;
    record->kind = (uint32_t)kind;
    record->source = source;
    record->target = target;
    record->a = a;
    record->b = (uint32_t)b;
    sim->record_count++;
}

uint64_t pt_sim_trace_hash(const pt_sim *sim)
{
    return sim->hash;
}

uint32_t pt_sim_trace_read(pt_sim *sim, pt_sim_record *records, uint32_t capacity)
{
    PT_ASSERT(sim->record_count <= sim->record_size);
    PT_ASSERT(sim->record_size == 0 || sim->record_first < sim->record_size);

    uint32_t count = 0;
    for (; count < capacity && sim->record_count != 0; count++) {
        records[count] = sim->records[sim->record_first];
        sim->record_first = (sim->record_first + 1) % sim->record_size;
        sim->record_count--;
    }
    return count;
}

uint64_t pt_sim_trace_dropped(const pt_sim *sim)
{
    return sim->records_dropped;
}

void pt_sim_note(pt_sim *sim, uint32_t a, uint32_t b)
{
    sim_trace(sim, PT_SIM_NOTE, -1, -1, a, b);
}

/* --------------------------------------------------------------------------------------- events */

static int before(const sim_event *one, const sim_event *other)
{
    PT_ASSERT(one->order != other->order);

    return one->time_ns != other->time_ns ? one->time_ns < other->time_ns
                                          : one->order < other->order;
}

static void settle_at(pt_sim *sim, sim_event *event, uint32_t place)
{
    PT_ASSERT(place < sim->heap_count);
    PT_ASSERT(sim->heap_count <= sim->heap_size);

    sim->heap[place] = event;
    event->place = place;
}

static void rise(pt_sim *sim, sim_event *event)
{
    uint32_t place = event->place;
    while (place != 0 && before(event, sim->heap[(place - 1) / 2])) {
        settle_at(sim, sim->heap[(place - 1) / 2], place);
        place = (place - 1) / 2;
    }
    settle_at(sim, event, place);
}

static void sink(pt_sim *sim, sim_event *event)
{
    uint32_t place = event->place;
    for (;;) {
        uint32_t child = 2 * place + 1;
        if (child >= sim->heap_count)
            break;
        if (child + 1 < sim->heap_count && before(sim->heap[child + 1], sim->heap[child]))
            child++;
        if (before(event, sim->heap[child]))
            break;
        settle_at(sim, sim->heap[child], place);
        place = child;
    }
    settle_at(sim, event, place);
}

sim_event *sim_plan(pt_sim *sim, int kind, uint64_t time_ns)
{
    PT_ASSERT(kind >= SIM_LEAVE && kind <= SIM_DONE);

    sim_event *event = sim->unused_events;
    if (event != NULL) {
        sim->unused_events = event->next;
    } else {
        event = sim_take(sim, sizeof *event);
        if (event == NULL)
            return NULL;
    }
    void *heap = sim->heap;
    if (!sim_widen(sim, &heap, &sim->heap_size, sim->heap_count + 1, sizeof *sim->heap)) {
        event->next = sim->unused_events;
        sim->unused_events = event;
        return NULL;
    }
    sim->heap = heap;
    memset(event, 0, sizeof *event);
    event->kind = (uint8_t)kind;
    event->time_ns = time_ns < sim->now_ns ? sim->now_ns : time_ns;
    event->order = sim->order++;
    event->place = sim->heap_count++;
    rise(sim, event);
    PT_ASSERT(sim->heap[event->place] == event);
    PT_ASSERT(sim->heap[0]->time_ns >= sim->now_ns); /* nothing is due in the past */
    return event;
}

void sim_unplan(pt_sim *sim, sim_event *event)
{
    PT_ASSERT(event->place < sim->heap_count);
    PT_ASSERT(sim->heap[event->place] == event);

    sim_event *last = sim->heap[--sim->heap_count];
    if (last != event) {
        last->place = event->place;
        rise(sim, last);
        sink(sim, last);
    }
    event->next = sim->unused_events;
    sim->unused_events = event;
}
