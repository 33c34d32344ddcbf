/* The box: opened and closed, and the clock that serves what is planned. Knows all other rooms, and
 * none of them knows this one. */
#include <string.h>

#include "pt_assert.h"
#include "pt_sim_inside.h"

#define NANOSECONDS 1000000000U

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
    sim->hash = sim_hash(UINT64_C(0xCBF29CE484222325), seed, 8);
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
    PT_ASSERT(host->sockets == NULL);
    PT_ASSERT(sim->hosts[host->number] == host);

    for (uint32_t index = 0; index < host->way_count; index++) {
        if (host->ways[index] != NULL)
            sim_give(sim, host->ways[index], sizeof(sim_way));
    }
    sim_give(sim, host->ways, host->way_count * sizeof *host->ways);
    sim_give(sim, host, sizeof *host);
}

void pt_sim_close(pt_sim *sim)
{
    PT_ASSERT(!sim->notifying);

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

/* ------------------------------------------------------------------------------------ one event */

static void deliver(pt_sim *sim, sim_packet *packet)
{
    if (!sim_deliver(sim, packet))
        return;
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

int pt_sim_step(pt_sim *sim, uint64_t limit_ns)
{
    if (sim->notifying)
        return PT_ERR_INVALID_STATE;
    if (sim->heap_count == 0 || sim->heap[0]->time_ns > limit_ns)
        return 0;
    sim_event event = *sim->heap[0];
    sim_unplan(sim, sim->heap[0]);
    PT_ASSERT(event.time_ns >= sim->now_ns);
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
        if (sim_arrive(sim, event.packet))
            deliver(sim, event.packet);
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
    PT_ASSERT(result != PT_OK || pt_sim_next_event(sim) > to_ns);
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
