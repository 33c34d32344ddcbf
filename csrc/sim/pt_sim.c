#include "pt_sim.h"

#include <string.h>

#include "pt_assert.h"
#include "pt_sim_inside.h"

#define NANOSECONDS 1000000000U

/* ------------------------------------------------------------------------------- memory, chance */

void *sim_take(pt_sim *sim, size_t size)
{
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
    PT_ASSERT(sim->bytes >= size);
    sim->bytes -= size;
    sim->memory.release(sim->memory.context, memory, size);
}

/* Make an array of count items at least wanted long. 0 when there is no memory. */
int sim_widen(pt_sim *sim, void **array, uint32_t *count, uint32_t wanted, size_t item_size)
{
    if (wanted <= *count)
        return 1;
    uint32_t size = *count ? *count : 16;
    while (size < wanted)
        size *= 2;
    void *wider = sim_take(sim, size * item_size);
    if (wider == NULL)
        return 0;
    if (*count != 0)
        memcpy(wider, *array, *count * item_size);
    sim_give(sim, *array, *count * item_size);
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
    return draw(random) % bound;
}

/* No draw for what cannot happen: an unused chance does not shift the others. */
static int happens(sim_way *way, uint32_t chance)
{
    return chance != 0 && sim_choose(&way->random, PT_SIM_MILLION) < chance;
}

void pt_sim_random(pt_sim *sim, uint8_t *out, size_t size)
{
    for (size_t index = 0; index < size; index++)
        out[index] = (uint8_t)(draw(&sim->random) >> 32);
}

/* ---------------------------------------------------------------------------------------- trace */

static uint64_t hashed(uint64_t hash, uint64_t value, int size)
{
    for (int index = 0; index < size; index++) {
        hash = (hash ^ (value & 0xFF)) * UINT64_C(0x100000001B3);
        value >>= 8;
    }
    return hash;
}

void sim_trace(pt_sim *sim, int kind, int32_t source, int32_t target, uint32_t a, uint64_t b)
{
    uint64_t hash = hashed(sim->hash, sim->now_ns, 8);
    hash = hashed(hash, (uint32_t)kind, 1);
    hash = hashed(hash, (uint32_t)source, 4);
    hash = hashed(hash, (uint32_t)target, 4);
    hash = hashed(hash, a, 4);
    sim->hash = hashed(hash, b, 8);
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
    return one->time_ns != other->time_ns ? one->time_ns < other->time_ns
                                          : one->order < other->order;
}

static void settle_at(pt_sim *sim, sim_event *event, uint32_t place)
{
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
    return event;
}

void sim_unplan(pt_sim *sim, sim_event *event)
{
    sim_event *last = sim->heap[--sim->heap_count];
    if (last != event) {
        last->place = event->place;
        rise(sim, last);
        sink(sim, last);
    }
    event->next = sim->unused_events;
    sim->unused_events = event;
}

/* ----------------------------------------------------------------------------- opening, closing */

pt_sim *pt_sim_open(const pt_memory *source, uint64_t seed, uint64_t limit, uint32_t trace_records)
{
    if (limit != 0 && limit < sizeof(pt_sim))
        return NULL;
    pt_sim *sim = source->allocate(source->context, sizeof *sim);
    if (sim == NULL)
        return NULL;
    memset(sim, 0, sizeof *sim);
    sim->memory = *source;
    sim->limit = limit;
    sim->bytes = sizeof *sim;
    sim->peak_bytes = sim->bytes;
    sim->seed = seed;
    sim->random = seed ^ UINT64_C(0xA5A5A5A5A5A5A5A5);
    sim->hash = hashed(UINT64_C(0xCBF29CE484222325), seed, 8);
    if (trace_records != 0) {
        sim->records = sim_take(sim, trace_records * sizeof *sim->records);
        if (sim->records == NULL) {
            source->release(source->context, sim, sizeof *sim);
            return NULL;
        }
        sim->record_size = trace_records;
    }
    return sim;
}

static void free_host(pt_sim *sim, sim_host *host)
{
    for (uint32_t index = 0; index < host->way_count; index++) {
        if (host->ways[index] != NULL)
            sim_give(sim, host->ways[index], sizeof(sim_way));
    }
    sim_give(sim, host->ways, host->way_count * sizeof *host->ways);
    sim_give(sim, host, sizeof *host);
}

void pt_sim_close(pt_sim *sim)
{
    for (uint32_t index = 0; index < sim->socket_size; index++) {
        sim_socket *socket = sim->sockets[index];
        if (socket != NULL && socket->kind == SIM_STREAM)
            sim_stream_terminate(sim, socket, PT_ERR_CONNECTION_CLOSED, 0);
    }
    for (uint32_t index = 0; index < sim->socket_size; index++) {
        if (sim->sockets[index] != NULL)
            sim_destroy_socket(sim, sim->sockets[index]);
    }
    while (sim->heap_count != 0) {
        sim_event *event = sim->heap[0];
        if (event->packet != NULL)
            sim_drop_packet(sim, event->packet);
        sim_unplan(sim, event);
    }
    while (sim->unused_events != NULL) {
        sim_event *event = sim->unused_events;
        sim->unused_events = event->next;
        sim_give(sim, event, sizeof *event);
    }
    for (uint32_t index = 0; index < sim->host_count; index++)
        free_host(sim, sim->hosts[index]);
    sim_give(sim, sim->hosts, sim->host_size * sizeof *sim->hosts);
    sim_give(sim, sim->heap, sim->heap_size * sizeof *sim->heap);
    sim_give(sim, sim->sockets, sim->socket_size * sizeof *sim->sockets);
    sim_give(sim, sim->generations, sim->generation_size * sizeof *sim->generations);
    sim_give(sim, sim->records, sim->record_size * sizeof *sim->records);
    PT_ASSERT(sim->bytes == sizeof *sim);
    pt_memory memory = sim->memory;
    memory.release(memory.context, sim, sizeof *sim);
}

uint64_t pt_sim_bytes(const pt_sim *sim, int peak)
{
    return peak ? sim->peak_bytes : sim->bytes;
}

/* --------------------------------------------------------------------------------- hosts, paths */

void pt_sim_get_preset(int preset, pt_sim_path *path, pt_sim_costs *costs)
{
    pt_sim_path way;
    pt_sim_costs processor;
    memset(&way, 0, sizeof way);
    memset(&processor, 0, sizeof processor);
    if (preset == PT_SIM_LAN) {
        way.latency_ns = 200000;
        way.byte_ns = 80;
    } else if (preset == PT_SIM_CLASSIC) {
        way.latency_ns = 11500000;
        way.byte_ns = 800;
        processor.send_fixed_ns = 2000000;
        processor.send_byte_ns = 2000;
        processor.receive_fixed_ns = 2000000;
        processor.receive_byte_ns = 2083;
    }
    if (path != NULL)
        *path = way;
    if (costs != NULL)
        *costs = processor;
}

void pt_sim_set_defaults(pt_sim *sim, const pt_sim_path *path, const pt_sim_costs *costs)
{
    if (path != NULL)
        sim->default_path = *path;
    if (costs != NULL)
        sim->default_costs = *costs;
}

int pt_sim_find_host(const pt_sim *sim, uint32_t address)
{
    for (uint32_t index = 0; index < sim->host_count; index++) {
        if (sim->hosts[index]->address == address)
            return (int)index;
    }
    return PT_ERR_PEER_NOT_FOUND;
}

int pt_sim_add_host(pt_sim *sim, uint32_t address)
{
    if (pt_sim_find_host(sim, address) >= 0)
        return PT_ERR_BUSY;
    if (sim->host_count == PT_SIM_HOSTS_MAX)
        return PT_ERR_RESOURCE;
    void *hosts = sim->hosts;
    if (!sim_widen(sim, &hosts, &sim->host_size, sim->host_count + 1, sizeof *sim->hosts))
        return PT_ERR_NO_MEMORY;
    sim->hosts = hosts;
    sim_host *host = sim_take(sim, sizeof *host);
    if (host == NULL)
        return PT_ERR_NO_MEMORY;
    host->address = address;
    host->number = (int32_t)sim->host_count;
    host->costs = sim->default_costs;
    host->window = PT_SIM_WINDOW_SIZE;
    host->next_port = SIM_FIRST_FREE_PORT;
    sim->hosts[sim->host_count++] = host;
    return host->number;
}

sim_host *sim_host_of(const pt_sim *sim, int host)
{
    return host >= 0 && (uint32_t)host < sim->host_count ? sim->hosts[host] : NULL;
}

/* The way from a host to another, made at first use; NULL: no such hosts, or no memory. */
static sim_way *way_of(pt_sim *sim, int source, int target)
{
    sim_host *host = sim_host_of(sim, source);
    if (host == NULL || sim_host_of(sim, target) == NULL)
        return NULL;
    void *ways = host->ways;
    if (!sim_widen(sim, &ways, &host->way_count, (uint32_t)target + 1, sizeof *host->ways))
        return NULL;
    host->ways = ways;
    if (host->ways[target] == NULL) {
        sim_way *way = sim_take(sim, sizeof *way);
        if (way == NULL)
            return NULL;
        if (source != target)
            way->path = sim->default_path;
        way->random = sim->seed ^ ((uint64_t)(uint32_t)source << 32 | (uint32_t)target) *
                                      UINT64_C(0xD6E8FEB86659FD93);
        host->ways[target] = way;
    }
    return host->ways[target];
}

/* What pt_sim_* of a way returns when there is none. */
static int no_way(const pt_sim *sim, int source, int target)
{
    return sim_host_of(sim, source) == NULL || sim_host_of(sim, target) == NULL
               ? PT_ERR_INVALID_PARAM
               : PT_ERR_NO_MEMORY;
}

int pt_sim_set_costs(pt_sim *sim, int host, const pt_sim_costs *costs)
{
    if (sim_host_of(sim, host) == NULL)
        return PT_ERR_INVALID_PARAM;
    sim->hosts[host]->costs = *costs;
    return PT_OK;
}

int pt_sim_set_window(pt_sim *sim, int host, uint32_t window)
{
    if (sim_host_of(sim, host) == NULL || window == 0)
        return PT_ERR_INVALID_PARAM;
    sim->hosts[host]->window = window;
    return PT_OK;
}

int pt_sim_set_completion_jitter(pt_sim *sim, int host, uint64_t jitter_ns)
{
    if (sim_host_of(sim, host) == NULL)
        return PT_ERR_INVALID_PARAM;
    sim->hosts[host]->completion_jitter_ns = jitter_ns;
    return PT_OK;
}

int pt_sim_set_vanished(pt_sim *sim, int host, int vanished)
{
    sim_host *gone = sim_host_of(sim, host);
    if (gone == NULL)
        return PT_ERR_INVALID_PARAM;
    if (gone->vanished && !vanished) {
        sim_socket *next;
        for (sim_socket *socket = gone->sockets; socket != NULL; socket = next) {
            next = socket->next;
            if (socket->kind == SIM_STREAM)
                sim_stream_terminate(sim, socket, PT_ERR_CONNECTION_CLOSED, 1);
            if (socket->released)
                sim_destroy_socket(sim, socket);
        }
    }
    gone->vanished = vanished != 0;
    return PT_OK;
}

int pt_sim_set_path(pt_sim *sim, int source, int target, const pt_sim_path *path)
{
    sim_way *way = way_of(sim, source, target);
    if (way == NULL)
        return no_way(sim, source, target);
    if (path->loss > PT_SIM_MILLION || path->duplicate > PT_SIM_MILLION ||
        path->reorder > PT_SIM_MILLION || path->damage > PT_SIM_MILLION)
        return PT_ERR_INVALID_PARAM;
    way->path = *path;
    return PT_OK;
}

int pt_sim_get_path(pt_sim *sim, int source, int target, pt_sim_path *path)
{
    sim_way *way = way_of(sim, source, target);
    if (way == NULL)
        return no_way(sim, source, target);
    *path = way->path;
    return PT_OK;
}

int pt_sim_set_cut(pt_sim *sim, int source, int target, int cut)
{
    sim_way *way = way_of(sim, source, target);
    if (way == NULL)
        return no_way(sim, source, target);
    way->cut = cut != 0;
    return PT_OK;
}

int pt_sim_get_counts(pt_sim *sim, int source, int target, pt_sim_counts *counts)
{
    sim_way *way = way_of(sim, source, target);
    if (way == NULL)
        return no_way(sim, source, target);
    *counts = way->counts;
    return PT_OK;
}

/* -------------------------------------------------------------------------------------- packets */

sim_packet *sim_make_packet(pt_sim *sim, int kind, uint32_t len)
{
    sim_packet *packet = sim_take(sim, offsetof(sim_packet, data) + len);
    if (packet == NULL)
        return NULL;
    packet->kind = (uint8_t)kind;
    packet->len = len;
    return packet;
}

void sim_drop_packet(pt_sim *sim, sim_packet *packet)
{
    sim_give(sim, packet, offsetof(sim_packet, data) + packet->len);
}

/* When the processor is done with work that takes so long. */
uint64_t sim_occupy(const pt_sim *sim, sim_host *host, uint64_t cost_ns)
{
    if (host->processor_free_ns < sim->now_ns)
        host->processor_free_ns = sim->now_ns;
    host->processor_free_ns += cost_ns;
    return host->processor_free_ns;
}

/* Plan what becomes of a packet; without memory for that it is lost. */
void sim_plan_packet(pt_sim *sim, int kind, uint64_t time_ns, sim_packet *packet)
{
    sim_event *event = sim_plan(sim, kind, time_ns);
    if (event == NULL)
        sim_drop_packet(sim, packet);
    else
        event->packet = packet;
}

void sim_process_packet(pt_sim *sim, sim_packet *packet)
{
    sim_host *host = sim->hosts[packet->source_host];
    uint64_t done_ns =
        sim_occupy(sim, host, host->costs.send_fixed_ns + host->costs.send_byte_ns * packet->len);
    sim_plan_packet(sim, SIM_LEAVE, done_ns, packet);
}

static int is_work(const sim_packet *packet)
{
    return packet->kind == SIM_DATA || packet->kind == SIM_DATAGRAM;
}

/* Latency, jitter and being held back, from the moment when the last byte has left. */
static uint64_t arrival(pt_sim *sim, sim_way *way, const sim_packet *packet, uint64_t left_ns)
{
    uint64_t time_ns = left_ns + way->path.latency_ns;
    if (way->path.jitter_ns != 0)
        time_ns += sim_choose(&way->random, way->path.jitter_ns + 1);
    if (happens(way, way->path.reorder)) {
        time_ns += way->path.reorder_ns;
        way->counts.reordered++;
        sim_trace(sim, PT_SIM_REORDER, packet->source_host, packet->target_host, packet->len,
                  way->path.reorder_ns / 1000000U);
    }
    return time_ns;
}

static void damage(pt_sim *sim, sim_way *way, sim_packet *packet)
{
    if (!is_work(packet) || packet->len == 0 || !happens(way, way->path.damage))
        return;
    uint32_t place = (uint32_t)sim_choose(&way->random, packet->len);
    uint32_t bit = (uint32_t)sim_choose(&way->random, 8);
    packet->data[place] = (uint8_t)(packet->data[place] ^ 1U << bit);
    way->counts.damaged++;
    sim_trace(sim, PT_SIM_DAMAGE, packet->source_host, packet->target_host, place, bit);
}

static void duplicate(pt_sim *sim, sim_way *way, const sim_packet *packet, uint64_t left_ns)
{
    if (!happens(way, way->path.duplicate))
        return;
    sim_packet *copy = sim_make_packet(sim, packet->kind, packet->len);
    if (copy == NULL)
        return;
    memcpy(copy, packet, offsetof(sim_packet, data) + packet->len);
    way->counts.duplicated++;
    sim_trace(sim, PT_SIM_DUPLICATE, packet->source_host, packet->target_host, packet->len,
              packet->position);
    sim_plan_packet(sim, SIM_ARRIVE, arrival(sim, way, copy, left_ns), copy);
}

void sim_transmit(pt_sim *sim, sim_packet *packet)
{
    int32_t source = packet->source_host, target = packet->target_host;
    sim_way *way = way_of(sim, source, target);
    if (way == NULL) {
        sim_drop_packet(sim, packet);
        return;
    }
    way->counts.packets++;
    way->counts.bytes += packet->len;
    if (way->cut || sim->hosts[source]->vanished) {
        way->counts.cut++;
        sim_trace(sim, PT_SIM_CUT, source, target, packet->len, packet->position);
        sim_drop_packet(sim, packet);
        return;
    }
    uint64_t left_ns = sim->now_ns;
    if (is_work(packet)) {
        if (way->wire_free_ns > left_ns)
            left_ns = way->wire_free_ns;
        left_ns += way->path.byte_ns * packet->len;
        way->wire_free_ns = left_ns;
        sim_trace(sim, PT_SIM_SEND, source, target, packet->len, packet->position);
    }
    if (happens(way, way->path.loss)) {
        way->counts.lost++;
        sim_trace(sim, PT_SIM_LOST, source, target, packet->len, packet->position);
        sim_drop_packet(sim, packet);
        return;
    }
    damage(sim, way, packet);
    duplicate(sim, way, packet, left_ns);
    sim_plan_packet(sim, SIM_ARRIVE, arrival(sim, way, packet, left_ns), packet);
}

/* ------------------------------------------------------------------------------------ one event */

/* The receiver is done with it. */
static void deliver(pt_sim *sim, sim_packet *packet)
{
    sim_host *host = sim->hosts[packet->target_host];
    sim_way *way = way_of(sim, packet->source_host, packet->target_host);
    if (host->vanished || way == NULL) {
        if (way != NULL)
            way->counts.cut++;
        sim_drop_packet(sim, packet);
        return;
    }
    way->counts.delivered++;
    if (packet->kind == SIM_DATAGRAM) {
        sim_datagram_arrived(sim, packet);
    } else if (packet->kind == SIM_UNREACHABLE) {
        sim_socket *socket = sim_held(sim, packet->target);
        sim_drop_packet(sim, packet);
        if (socket != NULL && socket->kind == SIM_PORT)
            sim_tell(sim, socket, PT_SIM_NEWS_UNREACHABLE);
    } else {
        sim_stream_arrived(sim, packet);
    }
}

static void arrive(pt_sim *sim, sim_packet *packet)
{
    sim_host *host = sim->hosts[packet->target_host];
    if (!is_work(packet) || host->vanished) {
        deliver(sim, packet);
        return;
    }
    sim_trace(sim, PT_SIM_ARRIVE, packet->source_host, packet->target_host, packet->len,
              packet->position);
    uint64_t cost_ns = host->costs.receive_fixed_ns + host->costs.receive_byte_ns * packet->len;
    if (cost_ns == 0)
        deliver(sim, packet);
    else
        sim_plan_packet(sim, SIM_DELIVER, sim_occupy(sim, host, cost_ns), packet);
}

int pt_sim_step(pt_sim *sim, uint64_t limit_ns)
{
    if (sim->notifying)
        return PT_ERR_INVALID_STATE;
    if (sim->heap_count == 0 || sim->heap[0]->time_ns > limit_ns)
        return 0;
    sim_event event = *sim->heap[0];
    sim_unplan(sim, sim->heap[0]);
    sim->now_ns = event.time_ns;
    PT_ASSERT((event.packet != NULL) == (event.kind < SIM_TIMER));
    sim_socket *socket = event.packet == NULL ? sim_find(sim, event.handle) : NULL;
    switch (event.kind) {
    case SIM_LEAVE:
        if (event.packet->kind == SIM_DATA)
            sim_stream_left(sim, event.packet);
        sim_transmit(sim, event.packet);
        break;
    case SIM_ARRIVE:
        arrive(sim, event.packet);
        break;
    case SIM_DELIVER:
        deliver(sim, event.packet);
        break;
    case SIM_TIMER:
        PT_ASSERT(socket != NULL); /* a stream takes its timer along */
        sim_stream_timer(sim, socket);
        break;
    default:
        if (socket != NULL)
            sim_stream_done(sim, socket, event.position);
        break;
    }
    if (!sim->out_of_memory)
        return 1;
    sim->out_of_memory = 0;
    return PT_ERR_NO_MEMORY;
}

int pt_sim_advance(pt_sim *sim, uint64_t to_ns, uint64_t *served)
{
    int result;
    *served = 0;
    while ((result = pt_sim_step(sim, to_ns)) == 1)
        (*served)++;
    if (result == PT_OK && sim->now_ns < to_ns)
        sim->now_ns = to_ns;
    return result;
}

uint64_t pt_sim_now(const pt_sim *sim)
{
    return sim->now_ns;
}

uint32_t pt_sim_ticks(const pt_sim *sim)
{
    return (uint32_t)(sim->now_ns / NANOSECONDS * PT_SIM_TICKS +
                      sim->now_ns % NANOSECONDS * PT_SIM_TICKS / NANOSECONDS);
}

uint64_t pt_sim_next_event(const pt_sim *sim)
{
    return sim->heap_count != 0 ? sim->heap[0]->time_ns : UINT64_MAX;
}

const pt_sim_table *pt_sim_functions(void)
{
    static const pt_sim_table table = {
        .now = pt_sim_now,
        .ticks = pt_sim_ticks,
        .next_event = pt_sim_next_event,
        .step = pt_sim_step,
        .advance = pt_sim_advance,
        .ready = pt_sim_ready,
        .attach = pt_sim_attach,
        .is_notifying = pt_sim_is_notifying,
        .get_name = pt_sim_get_name,
        .listen = pt_sim_listen,
        .dial = pt_sim_dial,
        .accept = pt_sim_accept,
        .get_outcome = pt_sim_get_outcome,
        .send_piece = pt_sim_send_piece,
        .receive = pt_sim_receive,
        .finish = pt_sim_finish,
        .reset = pt_sim_reset,
        .release = pt_sim_release,
        .set_give_up = pt_sim_set_give_up,
        .set_linger = pt_sim_set_linger,
        .datagram = pt_sim_datagram,
        .send_to = pt_sim_send_to,
        .receive_from = pt_sim_receive_from,
    };
    return &table;
}
