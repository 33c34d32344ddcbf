/* The calibrated link: how fast, how late, and the same on every machine. Prints the hash of what
 * was decided. Arguments: none. */
#include "sim_check.h"

static const pt_platform_ops *worlds[4];

/* Fill the pipeline for so long. Returns message bytes received in a second of simulated time. */
static double rate(const pt_platform_ops *ops, uint32_t size, uint8_t depth, int packing,
                   uint64_t seconds, uint64_t *hash)
{
    pt_sim *sim = pt_sim_open(&counted, 7, 0, 0);
    pt_sim_path path;
    pt_sim_costs costs;
    pt_sim_get_preset(PT_SIM_CLASSIC, &path, &costs);
    pt_sim_set_defaults(sim, &path, &costs);
    static node one, other;
    make_node(&one, sim, ops, 0x0A000001, 0, 0);
    make_node(&other, sim, ops, 0x0A000002, 0, 0);
    connect_nodes(sim, &one, &other, depth, packing);
    uint64_t start = pt_sim_now(sim), end = start + seconds * SECOND, half_bytes = 0;
    uint32_t number = 0, half_received = 0;
    int synchronous = ops->tcp_send_async == NULL;
    while (pt_sim_now(sim) < end) {
        int result;
        while ((result = send_number(&one, number, size)) >= 0) {
            number++;
            if (synchronous)
                break;
        }
        CHECK(result >= 0 || result == PT_ERR_WOULD_BLOCK);
        if (half_received == 0 && pt_sim_now(sim) >= start + seconds * SECOND / 2) {
            half_received = other.received;
            half_bytes = pt_sim_bytes(sim, 0) + memory_held;
        }
        if (synchronous) {
            while (has_work(&other))
                (void)turn(&other, 0);
            while (has_work(&one))
                (void)turn(&one, 0);
        } else if (!go_on(sim, &one, &other, end)) {
            uint64_t served;
            CHECK(pt_sim_advance(sim, end, &served) == PT_OK);
        }
    }
    CHECK(other.wrong == 0 && one.failed == 0 && !one.closed && !other.closed);
    CHECK(number - other.received <= (uint32_t)depth * 4 + 4); /* nothing is lost */
    /* Flat: the second half as fast as the first within a pipeline's load, and no memory on top. */
    uint32_t second_half = other.received - half_received;
    uint32_t difference =
        second_half > half_received ? second_half - half_received : half_received - second_half;
    CHECK(difference <= (uint32_t)depth * 8);
    CHECK(pt_sim_bytes(sim, 0) + memory_held <= half_bytes + 65536);
    CHECK(one.link.pipeline.high_water <= depth);
    CHECK(world_of(&one)->violation_count == 0 && world_of(&other)->violation_count == 0);
    double bytes = (double)other.received * size / ((double)(pt_sim_now(sim) - start) / 1e9);
    *hash = pt_sim_trace_hash(sim);
    end_node(&one);
    end_node(&other);
    pt_sim_close(sim);
    CHECK(memory_held == 0);
    return bytes;
}

static int near(double value, double wanted)
{
    return value > wanted * 0.99 && value < wanted * 1.01;
}

/* Nanoseconds from the send of one message to its arrival, and to its completion. */
static void latency(const pt_platform_ops *ops, uint32_t size, uint64_t *arrived_ns,
                    uint64_t *completed_ns)
{
    pt_sim *sim = pt_sim_open(&counted, 7, 0, 0);
    pt_sim_path path;
    pt_sim_costs costs;
    pt_sim_get_preset(PT_SIM_CLASSIC, &path, &costs);
    pt_sim_set_defaults(sim, &path, &costs);
    static node one, other;
    make_node(&one, sim, ops, 0x0A000001, 0, 0);
    make_node(&other, sim, worlds[0], 0x0A000002, 0, 0);
    connect_nodes(sim, &one, &other, 4, 1);
    while (go_on(sim, &one, &other, UINT64_MAX)) {
    }
    uint64_t start = pt_sim_now(sim);
    CHECK(send_number(&one, 0, size) >= 0);
    *arrived_ns = *completed_ns = 0;
    do {
        if (other.received == 1 && *arrived_ns == 0)
            *arrived_ns = pt_sim_now(sim) - start;
        if (one.sent == 1 && *completed_ns == 0)
            *completed_ns = pt_sim_now(sim) - start;
    } while (go_on(sim, &one, &other, UINT64_MAX));
    while (has_work(&one))
        (void)turn(&one, 0);
    if (*completed_ns == 0)
        *completed_ns = pt_sim_now(sim) - start;
    end_node(&one);
    end_node(&other);
    pt_sim_close(sim);
}

int main(int count, char **arguments)
{
    uint64_t seconds = count > 1 ? (uint64_t)atoi(arguments[1]) : 600;
    worlds[0] = pt_mactcp_ops();
    worlds[1] = pt_ot_ops();
    worlds[2] = pt_mactcp_sync_ops();
    worlds[3] = pt_ot_sync_ops();
    static const struct {
        uint32_t size;
        uint8_t depth, packing;
        double wanted;
    } rows[] = {
        {4096, 1, 0, 87.0}, {4096, 2, 0, 174.1}, {4096, 4, 0, 348.1}, {1024, 1, 0, 31.9},
        {1024, 2, 0, 63.9}, {1024, 4, 0, 127.8}, {1024, 4, 1, 291.0},
    };
    uint64_t all = 0;
    for (int world = 0; world < 4; world++) {
        for (size_t row = 0; row < sizeof rows / sizeof rows[0]; row++) {
            int fits = rows[row].size <= PT_MESSAGE_MAX_PAYLOAD &&
                       !(rows[row].packing && PT_IS_LOWMEM) &&
                       !(PT_IS_LOWMEM && rows[row].depth > 2);
            if (!fits || (world >= 2 && rows[row].depth != 1))
                continue;
            uint64_t hash;
            double kb = rate(worlds[world], rows[row].size, rows[row].depth, rows[row].packing,
                             seconds, &hash) /
                        1000;
            all = all * 31 + hash;
            printf("%-20s %4u bytes, depth %u%s: %.1f KB/s\n", worlds[world]->name,
                   (unsigned)rows[row].size, rows[row].depth, rows[row].packing ? ", packed" : "",
                   kb);
            CHECK(near(kb, rows[row].wanted));
        }
    }
    uint64_t arrived[4], completed[4];
    for (int world = 0; world < 4; world++) {
        latency(worlds[world], 1024, &arrived[world], &completed[world]);
        CHECK(arrived[world] != 0 || world >= 2);
        CHECK(completed[world] == completed[0]);
    }
    CHECK(completed[0] == 27 * MS + 1036 * 4883);
    printf("latency %lu us with the pipeline and without\n", (unsigned long)(completed[0] / 1000));
    printf("hash %08lx%08lx\n", (unsigned long)(all >> 32), (unsigned long)(all & 0xFFFFFFFFU));
    return 0;
}
