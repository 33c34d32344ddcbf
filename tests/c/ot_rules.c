/* The simulated Open Transport provider and its platform: the order of calls, the events, flow
 * control, and what a notifier must not do. */
#include "sim_check.h"

static pt_sim *sim;
static node one, other;

static void begin(const pt_platform_ops *ops, int preset, uint32_t send_limit)
{
    sim = pt_sim_open(&counted, 3, 0, 64);
    pt_sim_path path;
    pt_sim_costs costs;
    pt_sim_get_preset(preset, &path, &costs);
    pt_sim_set_defaults(sim, &path, &costs);
    make_node(&one, sim, ops, 0x0A000001, 0, send_limit);
    make_node(&other, sim, pt_ot_ops(), 0x0A000002, 0, send_limit);
    connect_nodes(sim, &one, &other, 2, 0);
}

static void end(void)
{
    end_node(&one);
    end_node(&other);
    pt_sim_close(sim);
    CHECK(memory_held == 0);
}

static void run_for(uint64_t time_ns)
{
    uint64_t served;
    CHECK(pt_sim_advance(sim, pt_sim_now(sim) + time_ns, &served) == PT_OK);
}

/* A notifier as it should be: it writes down. */
typedef struct heard {
    uint32_t events[64];
    uint32_t count;
    int32_t released;
    pt_ot_endpoint *endpoint;
    int32_t result; /* of a call that a bad notifier makes */
} heard;

static void write_down(void *user, uint32_t event, int32_t result, const void *cookie)
{
    heard *by = user;
    CHECK(by->count < 64);
    by->events[by->count++] = event;
    if (event == PT_OT_MEMORYRELEASED) {
        CHECK(cookie != NULL);
        by->released += result;
    }
}

static void work(void *user, uint32_t event, int32_t result, const void *cookie)
{
    heard *by = user;
    uint8_t byte;
    write_down(user, event, result, cookie);
    by->result = pt_ot_receive(by->endpoint, &byte, 1);
    CHECK(pt_ot_open(one.platform) == NULL);
}

static int has_heard(const heard *by, uint32_t event)
{
    for (uint32_t index = 0; index < by->count; index++) {
        if (by->events[index] == event)
            return 1;
    }
    return 0;
}

static pt_ot_endpoint *make_ready(pt_ot *provider, heard *by, pt_ot_notifier notifier)
{
    memset(by, 0, sizeof *by);
    by->endpoint = pt_ot_open(provider);
    CHECK(by->endpoint != NULL && pt_ot_get_state(by->endpoint) == PT_OT_UNBND);
    CHECK(pt_ot_install_notifier(by->endpoint, notifier, by) == PT_OT_NO_ERROR);
    CHECK(pt_ot_set_non_blocking(by->endpoint) == PT_OT_NO_ERROR);
    CHECK(pt_ot_set_asynchronous(by->endpoint) == PT_OT_NO_ERROR);
    return by->endpoint;
}

static void the_modes_are_set_in_one_order_only(void)
{
    begin(pt_ot_ops(), PT_SIM_CLASSIC, 0);
    heard by;
    memset(&by, 0, sizeof by);
    pt_ot_endpoint *endpoint = pt_ot_open(one.platform);
    CHECK(pt_ot_bind(endpoint, 0, 0, 0) == PT_OT_NO_ERROR &&
          pt_ot_get_state(endpoint) == PT_OT_IDLE);
    CHECK(pt_ot_set_non_blocking(endpoint) == PT_OT_BAD_SYNC &&
          has_violation(&one, "OTSetNonBlocking -3179: the notifier comes first"));
    CHECK(pt_ot_set_asynchronous(endpoint) == PT_OT_BAD_SYNC &&
          has_violation(&one, "OTSetAsynchronous -3179: the notifier comes first"));
    CHECK(pt_ot_connect(endpoint, 0x0A000002, 1) == PT_OT_BAD_SYNC &&
          has_violation(&one, "OTConnect -3179: the endpoint is not asynchronous yet"));
    CHECK(pt_ot_install_notifier(endpoint, write_down, &by) == PT_OT_NO_ERROR);
    CHECK(pt_ot_install_notifier(endpoint, write_down, &by) == PT_OT_ACCESS &&
          has_violation(&one, "there is a notifier already"));
    CHECK(pt_ot_set_asynchronous(endpoint) == PT_OT_BAD_SYNC &&
          has_violation(&one, "non-blocking mode comes first"));
    CHECK(pt_ot_set_non_blocking(endpoint) == PT_OT_NO_ERROR &&
          pt_ot_set_asynchronous(endpoint) == PT_OT_NO_ERROR);
    CHECK(world_of(&one)->violation_count == 5);
    pt_ot_close(endpoint);
    end();
}

static void a_connection_lives_through_all_its_events(void)
{
    begin(pt_ot_ops(), PT_SIM_CLASSIC, 0);
    heard caller, listener, accepted;
    uint8_t data[300];
    pt_ot_call call;
    memset(data, 7, sizeof data);
    pt_ot_endpoint *listens = make_ready(other.platform, &listener, write_down);
    pt_ot_endpoint *accepts = make_ready(other.platform, &accepted, write_down);
    pt_ot_endpoint *dials = make_ready(one.platform, &caller, write_down);
    CHECK(pt_ot_bind(listens, 99, 1, 0) == PT_OT_NO_ERROR &&
          pt_ot_bind(dials, 0, 0, 0) == PT_OT_NO_ERROR);
    CHECK(pt_ot_listen(listens, &call) == PT_OT_NO_DATA &&
          pt_ot_receive_connect(dials) == PT_OT_OUT_STATE);
    CHECK(pt_ot_connect(dials, 0x0A000002, 99) == PT_OT_NO_DATA &&
          pt_ot_get_state(dials) == PT_OT_OUTCON);
    CHECK(pt_ot_receive_connect(dials) == PT_OT_NO_DATA &&
          pt_ot_send(dials, data, 1) == PT_OT_OUT_STATE);
    run_for(SECOND);
    CHECK(has_heard(&listener, PT_OT_LISTEN) && pt_ot_look(listens) == PT_OT_LISTEN &&
          has_heard(&caller, PT_OT_CONNECT));
    CHECK(pt_ot_listen(listens, &call) == PT_OT_NO_ERROR &&
          pt_ot_get_state(listens) == PT_OT_INCON && call.address == 0x0A000001);
    CHECK(pt_ot_accept(listens, accepts, &call) == PT_OT_NO_ERROR &&
          pt_ot_get_state(listens) == PT_OT_IDLE);
    CHECK(has_heard(&accepted, PT_OT_PASSCON) && has_heard(&listener, PT_OT_ACCEPTCOMPLETE) &&
          pt_ot_get_state(accepts) == PT_OT_DATAXFER);
    CHECK(pt_ot_receive_connect(dials) == PT_OT_NO_ERROR &&
          pt_ot_get_state(dials) == PT_OT_DATAXFER && pt_ot_look(dials) == 0);

    /* Data: told once until it is all read; the memory comes back when it is acknowledged. */
    CHECK(pt_ot_send(dials, data, 200) == 200 && pt_ot_send(dials, data + 200, 100) == 100 &&
          caller.released == 0);
    run_for(SECOND);
    CHECK(caller.released == 300 && has_heard(&caller, PT_OT_MEMORYRELEASED));
    uint32_t before = accepted.count;
    uint8_t got[400];
    CHECK(pt_ot_receive(accepts, got, 50) == 50 && pt_ot_send(dials, data, 10) == 10);
    run_for(SECOND);
    CHECK(accepted.count == before && pt_ot_look(accepts) == PT_OT_DATA); /* no second T_DATA */
    CHECK(pt_ot_receive(accepts, got, 400) == 260 &&
          pt_ot_receive(accepts, got, 400) == PT_OT_NO_DATA && pt_ot_look(accepts) == 0);
    CHECK(pt_ot_send(dials, data, 10) == 10);
    run_for(SECOND);
    CHECK(accepted.count == before + 1 && accepted.events[before] == PT_OT_DATA &&
          pt_ot_receive(accepts, got, 400) == 10);

    /* Each half ends in order. */
    CHECK(pt_ot_receive_release(accepts) == PT_OT_NO_RELEASE &&
          pt_ot_send_release(dials) == PT_OT_NO_ERROR && pt_ot_get_state(dials) == PT_OT_OUTREL);
    CHECK(pt_ot_send(dials, data, 1) == PT_OT_OUT_STATE);
    run_for(SECOND);
    CHECK(has_heard(&accepted, PT_OT_ORDREL) && pt_ot_receive(accepts, got, 1) == PT_OT_LOOK &&
          pt_ot_look(accepts) == PT_OT_ORDREL);
    CHECK(pt_ot_receive_release(accepts) == PT_OT_NO_ERROR &&
          pt_ot_get_state(accepts) == PT_OT_INREL && pt_ot_send(accepts, data, 20) == 20);
    CHECK(pt_ot_send_release(accepts) == PT_OT_NO_ERROR && pt_ot_get_state(accepts) == PT_OT_IDLE);
    run_for(SECOND);
    CHECK(pt_ot_receive(dials, got, 400) == 20 && pt_ot_receive_release(dials) == PT_OT_NO_ERROR &&
          pt_ot_get_state(dials) == PT_OT_IDLE);
    CHECK(world_of(&one)->violation_count == 0 && world_of(&other)->violation_count == 0);
    pt_ot_close(dials);
    pt_ot_close(accepts);
    pt_ot_close(listens);
    end();
}

static void a_flow_that_was_stopped_is_told_when_it_may_go_on(void)
{
    begin(pt_ot_ops(), PT_SIM_CLASSIC, 600);
    heard by;
    uint8_t data[1000] = {0};
    pt_ot_endpoint *sends = make_ready(one.platform, &by, write_down);
    int32_t listener = pt_sim_listen(sim, one.host, 96);
    CHECK(pt_sim_dial(sim, other.host, 0x0A000001, 96) > 0);
    run_for(SECOND);
    CHECK(pt_ot_adopt(sends, pt_sim_accept(sim, listener)) == PT_OT_NO_ERROR);
    CHECK(pt_ot_send(sends, data, 500) == 500);
    run_for(SECOND);
    CHECK(!has_heard(&by, PT_OT_GODATA)); /* nobody was stopped */
    CHECK(pt_ot_send(sends, data, 1000) == 600 &&
          pt_ot_send(sends, data + 600, 400) == PT_OT_FLOW && !has_heard(&by, PT_OT_GODATA));
    run_for(SECOND);
    CHECK(has_heard(&by, PT_OT_GODATA) && pt_ot_send(sends, data + 600, 400) == 400);
    run_for(SECOND);
    CHECK(by.released == 1500 && world_of(&one)->violation_count == 0);
    pt_ot_close(sends);
    end();
}

static void a_refusal_and_a_break_are_disconnects(void)
{
    begin(pt_ot_ops(), PT_SIM_CLASSIC, 0);
    heard caller, called;
    uint8_t data[100] = {0};
    pt_ot_endpoint *dials = make_ready(one.platform, &caller, write_down);
    CHECK(pt_ot_bind(dials, 0, 0, 0) == PT_OT_NO_ERROR &&
          pt_ot_connect(dials, 0x0A000002, 98) == PT_OT_NO_DATA);
    CHECK(pt_ot_receive_disconnect(dials) == PT_OT_NO_DISCONNECT);
    run_for(SECOND);
    CHECK(has_heard(&caller, PT_OT_DISCONNECT) && pt_ot_receive_connect(dials) == PT_OT_LOOK &&
          pt_ot_look(dials) == PT_OT_DISCONNECT);
    CHECK(pt_ot_receive_disconnect(dials) == PT_OT_NO_ERROR &&
          pt_ot_get_state(dials) == PT_OT_IDLE);
    pt_ot_close(dials);

    int32_t listener = pt_sim_listen(sim, other.host, 97);
    dials = make_ready(one.platform, &caller, write_down);
    pt_ot_endpoint *answers = make_ready(other.platform, &called, write_down);
    CHECK(pt_ot_bind(dials, 0, 0, 0) == PT_OT_NO_ERROR &&
          pt_ot_connect(dials, 0x0A000002, 97) == PT_OT_NO_DATA);
    run_for(SECOND);
    CHECK(pt_ot_adopt(answers, pt_sim_accept(sim, listener)) == PT_OT_NO_ERROR &&
          pt_ot_receive_connect(dials) == PT_OT_NO_ERROR);
    CHECK(pt_ot_send(dials, data, 100) == 100 && pt_ot_send_disconnect(dials) == PT_OT_NO_ERROR);
    CHECK(has_heard(&caller, PT_OT_DISCONNECTCOMPLETE) && caller.released == -100 &&
          pt_ot_get_state(dials) == PT_OT_IDLE);
    run_for(SECOND);
    CHECK(has_heard(&called, PT_OT_DISCONNECT) && pt_ot_send(answers, data, 1) == PT_OT_LOOK &&
          pt_ot_receive_disconnect(answers) == PT_OT_NO_ERROR);
    pt_ot_close(dials);
    pt_ot_close(answers);
    end();
}

static void an_unreachable_datagram_wedges_the_endpoint_until_it_is_taken(void)
{
    begin(pt_ot_ops(), PT_SIM_CLASSIC, 0);
    heard by, to;
    uint8_t data[8] = {1};
    uint32_t address;
    uint16_t port;
    pt_ot_endpoint *sends = make_ready(one.platform, &by, write_down),
                   *hears = make_ready(other.platform, &to, write_down);
    CHECK(pt_ot_bind(sends, 500, 0, 1) == PT_OT_NO_ERROR &&
          pt_ot_bind(hears, 600, 0, 1) == PT_OT_NO_ERROR);
    CHECK(pt_ot_send_datagram(sends, data, 8, 0x0A000002, 601) == PT_OT_NO_ERROR &&
          pt_ot_receive_uderr(sends) == PT_OT_NO_UDERR);
    run_for(SECOND);
    CHECK(has_heard(&by, PT_OT_UDERR) && pt_ot_look(sends) == PT_OT_UDERR);
    CHECK(pt_ot_send_datagram(sends, data, 8, 0x0A000002, 600) == PT_OT_LOOK &&
          pt_ot_receive_datagram(sends, data, 8, &address, &port) == PT_OT_LOOK);
    CHECK(pt_ot_receive_uderr(sends) == PT_OT_NO_ERROR &&
          pt_ot_send_datagram(sends, data, 8, 0x0A000002, 600) == PT_OT_NO_ERROR);
    run_for(SECOND);
    CHECK(has_heard(&to, PT_OT_DATA) &&
          pt_ot_receive_datagram(hears, data, 8, &address, &port) == 8 && address == 0x0A000001 &&
          port == 500);
    CHECK(pt_ot_receive_datagram(hears, data, 8, &address, &port) == PT_OT_NO_DATA);
    pt_ot_close(sends);
    pt_ot_close(hears);
    end();
}

static void work_at_notifier_time_is_refused_and_told(void)
{
    begin(pt_ot_ops(), PT_SIM_CLASSIC, 0);
    heard by;
    pt_ot_endpoint *works = make_ready(one.platform, &by, work);
    int32_t listener = pt_sim_listen(sim, one.host, 96);
    int32_t stream = pt_sim_dial(sim, other.host, 0x0A000001, 96);
    uint8_t data[4] = {0};
    run_for(SECOND);
    CHECK(pt_ot_adopt(works, pt_sim_accept(sim, listener)) == PT_OT_NO_ERROR);
    CHECK(pt_sim_send(sim, stream, data, 4) == 4);
    run_for(SECOND);
    CHECK(by.result == PT_OT_BAD_SYNC &&
          has_violation(&one, "OTRcv -3179: called at notifier time") &&
          has_violation(&one, "OTOpenEndpoint -3179"));
    CHECK(pt_ot_receive(works, data, 4) == 4);
    pt_ot_close(works);
    end();
}

static void bytes_may_not_change_before_they_are_released(void)
{
    begin(pt_ot_ops(), PT_SIM_CLASSIC, 0);
    heard by;
    pt_ot_endpoint *sends = make_ready(one.platform, &by, write_down);
    int32_t listener = pt_sim_listen(sim, one.host, 96);
    CHECK(pt_sim_dial(sim, other.host, 0x0A000001, 96) > 0);
    uint8_t data[4] = {0};
    run_for(SECOND);
    CHECK(pt_ot_adopt(sends, pt_sim_accept(sim, listener)) == PT_OT_NO_ERROR &&
          pt_ot_send(sends, data, 4) == 4);
    data[2] = 1;
    run_for(SECOND);
    CHECK(by.released == 4 &&
          has_violation(&one, "the buffer was changed before T_MEMORYRELEASED"));
    pt_ot_close(sends);
    end();
}

static void flow_control_takes_slots_in_part_and_goes_on_in_order(void)
{
    CHECK(pt_ot_code(PT_OT_FLOW) == PT_ERR_WOULD_BLOCK &&
          pt_ot_code(PT_OT_NO_DATA) == PT_ERR_WOULD_BLOCK &&
          pt_ot_code(PT_OT_LOOK) == PT_ERR_CONNECTION_CLOSED);
    CHECK(pt_ot_code(PT_OT_OUT_OF_MEMORY) == PT_ERR_WOULD_BLOCK);
    begin(pt_ot_ops(), PT_SIM_CLASSIC, 600); /* less than a message */
    uint32_t number = 0, blocked = 0, parts = 0;
    while (one.sent < 200) {
        while (number < 200 && send_number(&one, number, 1000) >= 0)
            number++;
        blocked += one.link.blocked;
        for (int index = 0; index < 2; index++)
            parts += one.slots[index].state == PT_SLOT_IN_FLIGHT &&
                     one.slots[index].sent_len != 0 &&
                     one.slots[index].sent_len < one.slots[index].message_len;
        CHECK(one.context.ops->send_slots_available(&one.context, &one.link) ==
              2 - one.link.pipeline.pending_count);
        CHECK(go_on(sim, &one, &other, UINT64_MAX) || one.sent == 200);
    }
    CHECK(blocked > 100 && parts > 100 && other.received == 200 && other.wrong == 0 &&
          one.failed == 0);
    CHECK(world_of(&one)->violation_count == 0);
    end();
}

static void a_send_without_memory_is_told_when_to_try_again(void)
{
    begin(pt_ot_ops(), PT_SIM_CLASSIC, 0);
    heard by;
    uint8_t data[30] = {0};
    pt_ot_endpoint *sends = make_ready(one.platform, &by, write_down);
    int32_t listener = pt_sim_listen(sim, other.host, 95);
    CHECK(pt_ot_bind(sends, 0, 0, 0) == PT_OT_NO_ERROR &&
          pt_ot_connect(sends, 0x0A000002, 95) == PT_OT_NO_DATA);
    run_for(SECOND);
    int32_t answers = pt_sim_accept(sim, listener);
    CHECK(answers > 0 && pt_ot_receive_connect(sends) == PT_OT_NO_ERROR);

    uint8_t got[100];
    int broken;
    uint32_t taken_len = 0;
    for (int round = 0; round < 10; round++) {
        int32_t count;
        uint32_t before = taken_len;
        allocations_left = round == 5 ? 1 : 0; /* once there is some, for a while */
        while ((count = pt_ot_send(sends, data, sizeof data)) > 0)
            taken_len += (uint32_t)count;
        CHECK(count == PT_OT_OUT_OF_MEMORY && pt_ot_look(sends) == 0);
        CHECK(taken_len - before ==
              (round == 5 ? 2 : 1) *
                  sizeof data); /* with nothing out there is always memory for one */
        by.count = 0;
        run_for(SECOND);
        CHECK(has_heard(&by, PT_OT_MEMORYRELEASED) && (uint32_t)by.released == taken_len);
        CHECK(pt_sim_receive(sim, answers, got, sizeof got, &broken) > 0);
    }
    allocations_left = UINT32_MAX;
    CHECK(world_of(&one)->violation_count == 0);
    pt_ot_close(sends);
    end();
}

static void memory_that_runs_out_delays_slots_and_never_reorders(void)
{
    begin(pt_ot_ops(), PT_SIM_CLASSIC, 0);
    uint32_t number = 0, blocked = 0;
    allocations_left = 0;
    while (one.sent < 200) {
        while (number < 200 && send_number(&one, number, 1000) >= 0)
            number++;
        blocked += one.link.blocked;
        CHECK(go_on(sim, &one, &other, UINT64_MAX) || one.sent == 200);
        if (number == 150)
            allocations_left = UINT32_MAX;
    }
    CHECK(blocked > 100 && other.received == 200 && other.wrong == 0 && one.failed == 0 &&
          !one.closed);
    CHECK(world_of(&one)->violation_count == 0);
    end();
}

static void abandoned_slots_stay_until_the_provider_lets_go(int answers)
{
    begin(pt_ot_ops(), PT_SIM_CLASSIC, 0);
    CHECK(send_number(&one, 0, 100) >= 0 && send_number(&one, 1, 100) >= 0);
    (void)turn(&one, 0);
    if (!answers)
        pt_sim_set_cut(sim, other.host, one.host, 1);
    CHECK(pt_link_close(&one.context, &one.link) == 2 && pt_classic_abandoned(one.platform) == 2);
    CHECK(one.slots[0].state == PT_SLOT_ABANDONED && one.slots[0].buffer != NULL);
    pt_sim_release(sim, one.handle);
    uint64_t start = pt_sim_now(sim);
    while (one.link.pipeline.pending_count != 0) {
        CHECK(pt_sim_step(sim, UINT64_MAX) == 1);
        (void)pt_classic_is_ready(&one.context);
    }
    uint64_t waited = pt_sim_now(sim) - start;
    CHECK(answers ? waited < SECOND : waited == 5 * SECOND);
    CHECK(pt_classic_abandoned(one.platform) == 0 && world_of(&one)->violation_count == 0);
    end();
}

static void a_synchronous_send_waits_for_its_release_and_at_most_five_seconds(void)
{
    begin(pt_ot_sync_ops(), PT_SIM_CLASSIC, 0);
    uint64_t start = pt_sim_now(sim);
    CHECK(send_number(&one, 0, 100) >= 0);
    (void)turn(&one, 0);
    CHECK(pt_sim_now(sim) - start == 27 * MS + 112 * 4883 && one.sent == 1);
    pt_sim_set_cut(sim, one.host, other.host, 1);
    start = pt_sim_now(sim);
    (void)send_number(&one, 1, 100);
    while (!one.closed)
        (void)turn(&one, 0);
    CHECK(pt_sim_now(sim) - start == 5 * SECOND && one.close_code == PT_ERR_TIMEOUT &&
          pt_link_pending(&one.link) == 1);
    end();
}

int main(void)
{
    the_modes_are_set_in_one_order_only();
    a_connection_lives_through_all_its_events();
    a_flow_that_was_stopped_is_told_when_it_may_go_on();
    a_refusal_and_a_break_are_disconnects();
    an_unreachable_datagram_wedges_the_endpoint_until_it_is_taken();
    work_at_notifier_time_is_refused_and_told();
    bytes_may_not_change_before_they_are_released();
    flow_control_takes_slots_in_part_and_goes_on_in_order();
    a_send_without_memory_is_told_when_to_try_again();
    memory_that_runs_out_delays_slots_and_never_reorders();
    abandoned_slots_stay_until_the_provider_lets_go(1);
    abandoned_slots_stay_until_the_provider_lets_go(0);
    a_synchronous_send_waits_for_its_release_and_at_most_five_seconds();
    return 0;
}
