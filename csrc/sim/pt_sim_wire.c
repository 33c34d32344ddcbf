/* Hosts, the ways between them, and packets on their way. */
#include <string.h>

#include "pt_assert.h"
#include "pt_sim_inside.h"

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
    PT_ASSERT(sim->host_count < sim->host_size && sim->host_count < PT_SIM_HOSTS_MAX);
    sim->hosts[sim->host_count++] = host;
    return host->number;
}

sim_host *sim_host_of(const pt_sim *sim, int host)
{
    return host >= 0 && (uint32_t)host < sim->host_count ? sim->hosts[host] : NULL;
}

/* No draw for what cannot happen: an unused chance does not shift the others. */
static int happens(sim_way *way, uint32_t chance)
{
    return chance != 0 && sim_choose(&way->random, PT_SIM_MILLION) < chance;
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
    PT_ASSERT((uint32_t)target < host->way_count && host->way_count <= 2 * PT_SIM_HOSTS_MAX);
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
    PT_ASSERT(kind >= SIM_DATA && kind <= SIM_UNREACHABLE);
    PT_ASSERT(len == 0 || kind == SIM_DATA || kind == SIM_DATAGRAM);
    PT_ASSERT(len <= PT_SIM_SEGMENT_MAX);

    sim_packet *packet = sim_take(sim, offsetof(sim_packet, data) + len);
    if (packet == NULL)
        return NULL;
    packet->kind = (uint8_t)kind;
    packet->len = len;
    return packet;
}

void sim_drop_packet(pt_sim *sim, sim_packet *packet)
{
    PT_ASSERT(packet->offset <= packet->len);

    sim_give(sim, packet, offsetof(sim_packet, data) + packet->len);
}

/* When the processor is done with work that takes so long. */
uint64_t sim_occupy(const pt_sim *sim, sim_host *host, uint64_t cost_ns)
{
    if (host->processor_free_ns < sim->now_ns)
        host->processor_free_ns = sim->now_ns;
    host->processor_free_ns += cost_ns;
    PT_ASSERT(host->processor_free_ns >= sim->now_ns);
    return host->processor_free_ns;
}

/* Plan what becomes of a packet; without memory for that it is lost. */
void sim_plan_packet(pt_sim *sim, int kind, uint64_t time_ns, sim_packet *packet)
{
    PT_ASSERT(kind >= SIM_LEAVE && kind < SIM_TIMER);
    PT_ASSERT(time_ns >= sim->now_ns);
    PT_ASSERT(packet->next == NULL);

    sim_event *event = sim_plan(sim, kind, time_ns);
    if (event == NULL)
        sim_drop_packet(sim, packet);
    else
        event->packet = packet;
}

void sim_process_packet(pt_sim *sim, sim_packet *packet)
{
    PT_ASSERT(packet->kind == SIM_DATA && packet->len != 0);
    PT_ASSERT((uint32_t)packet->source_host < sim->host_count);

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
    PT_ASSERT(left_ns >= sim->now_ns);

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
    PT_ASSERT((uint32_t)packet->source_host < sim->host_count);
    PT_ASSERT(packet->next == NULL && packet->offset == 0);

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

/* ------------------------------------------------------------------------------------- arriving */

int sim_deliver(pt_sim *sim, sim_packet *packet)
{
    PT_ASSERT((uint32_t)packet->target_host < sim->host_count);
    PT_ASSERT(packet->next == NULL && packet->offset == 0);

    sim_host *host = sim->hosts[packet->target_host];
    sim_way *way = way_of(sim, packet->source_host, packet->target_host);
    if (host->vanished || way == NULL) {
        if (way != NULL)
            way->counts.cut++;
        sim_drop_packet(sim, packet);
        return 0;
    }
    way->counts.delivered++;
    PT_ASSERT(way->counts.delivered + way->counts.lost + way->counts.cut <=
              way->counts.packets + way->counts.duplicated);
    return 1;
}

int sim_arrive(pt_sim *sim, sim_packet *packet)
{
    PT_ASSERT((uint32_t)packet->target_host < sim->host_count);

    sim_host *host = sim->hosts[packet->target_host];
    if (!is_work(packet) || host->vanished)
        return 1;
    sim_trace(sim, PT_SIM_ARRIVE, packet->source_host, packet->target_host, packet->len,
              packet->position);
    uint64_t cost_ns = host->costs.receive_fixed_ns + host->costs.receive_byte_ns * packet->len;
    if (cost_ns == 0)
        return 1;
    sim_plan_packet(sim, SIM_DELIVER, sim_occupy(sim, host, cost_ns), packet);
    return 0;
}
