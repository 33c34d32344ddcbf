/* Bad networks: whatever is lost, doubled, held back or cut, what arrives is in order and nothing
 * is missing before it, every send has an outcome, and all memory comes back. Prints a hash over
 * all decisions, which is the same on every machine. Argument: how many seeds. */
#include "sim_check.h"

static uint32_t choose(uint64_t *random, uint32_t bound)
{
    *random = *random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*random >> 33) % bound;
}

static uint64_t one_network(uint64_t seed)
{
    uint64_t random = seed;
    const pt_platform_ops *worlds[2] = {pt_mactcp_ops(), pt_ot_ops()};
    pt_sim *sim = pt_sim_open(&counted, seed, 0, 0);
    pt_sim_path path;
    pt_sim_costs costs;
    pt_sim_get_preset(choose(&random, 2) ? PT_SIM_CLASSIC : PT_SIM_LAN, &path, &costs);
    path.loss = choose(&random, 3) * 20000;
    path.duplicate = choose(&random, 3) * 20000;
    path.reorder = choose(&random, 3) * 50000;
    path.reorder_ns = 30 * MS;
    path.jitter_ns = choose(&random, 2) * 3 * MS;
    pt_sim_set_defaults(sim, &path, &costs);

    static node one, other;
    /* One choice a statement: arguments have no order. */
    uint32_t world_one = choose(&random, 2);
    uint32_t world_other = choose(&random, 2);
    uint32_t push = choose(&random, 2);
    uint32_t send_limit = choose(&random, 2) * 700;
    make_node(&one, sim, worlds[world_one], 0x0A000001, (int)push, send_limit);
    make_node(&other, sim, worlds[world_other], 0x0A000002, 0, 0);
    if (choose(&random, 2))
        CHECK(pt_sim_set_window(sim, other.host, 800 + choose(&random, 4000)) == PT_OK);
    if (choose(&random, 2))
        CHECK(pt_sim_set_completion_jitter(sim, one.host, 20 * MS) == PT_OK);
    uint32_t depth = 1 + choose(&random, 6);
    uint32_t packing = choose(&random, 2);
    connect_nodes(sim, &one, &other, (uint8_t)depth, (int)packing);
    uint32_t wanted = 120, number = 0,
             vanishes_at = choose(&random, 6) ? wanted + 1 : choose(&random, wanted);
    int vanished = 0, shut = 0;
    for (;;) {
        while (number < wanted && send_number(&one, number, 4 + choose(&random, 1000)) >= 0)
            number++;
        if (number >= vanishes_at && !vanished) {
            CHECK(pt_sim_set_vanished(sim, other.host, 1) == PT_OK);
            vanished = 1;
        }
        if (number == wanted && !shut) {
            pt_link_shut(&one.context, &one.link);
            shut = 1;
        }
        int more = go_on(sim, &one, vanished ? NULL : &other, UINT64_MAX);
        if ((other.link.unread & PT_UNREAD_ENDED) && other.link.state == PT_LINK_OPEN)
            pt_link_shut(&other.context, &other.link);
        if (one.closed || (!more && number == wanted && !has_work(&one) && !has_work(&other)))
            break;
    }
    CHECK(other.wrong == 0);
    CHECK(one.sent + one.failed + pt_link_pending(&one.link) == number);
    if (!vanished)
        CHECK(other.received == wanted && one.sent == wanted && one.close_code == PT_OK);
    else
        CHECK(one.closed &&
              (one.close_code == PT_ERR_CONNECTION_CLOSED || one.close_code == PT_OK));
    CHECK(world_of(&one)->violation_count == 0 && world_of(&other)->violation_count == 0);
    uint64_t hash = pt_sim_trace_hash(sim);
    end_node(&one);
    end_node(&other);
    pt_sim_close(sim);
    CHECK(memory_held == 0);
    return hash;
}

int main(int count, char **arguments)
{
    int seeds = count > 1 ? atoi(arguments[1]) : 50;
    uint64_t all = 0;
    for (int seed = 0; seed < seeds; seed++) {
        uint64_t hash = one_network((uint64_t)seed);
        CHECK(seed % 16 != 0 || one_network((uint64_t)seed) == hash);
        all = all * 31 + hash;
    }
    printf("hash %08lx%08lx\n", (unsigned long)(all >> 32), (unsigned long)(all & 0xFFFFFFFFU));
    return 0;
}
