/* The simulated MacTCP driver and its platform: what it is given, what it refuses, and when it lets
 * go. */
#include "sim_check.h"

static pt_sim *sim;
static node one, other;

static void begin(const pt_platform_ops *ops, int preset, int push)
{
    sim = pt_sim_open(&counted, 3, 0, 64);
    pt_sim_path path;
    pt_sim_costs costs;
    pt_sim_get_preset(preset, &path, &costs);
    pt_sim_set_defaults(sim, &path, &costs);
    make_node(&one, sim, ops, 0x0A000001, push, 0);
    make_node(&other, sim, pt_mactcp_ops(), 0x0A000002, push, 0);
    connect_nodes(sim, &one, &other, 2, 0);
}

static void end(void)
{
    end_node(&one);
    end_node(&other);
    pt_sim_close(sim);
    CHECK(memory_held == 0);
}

static pt_mactcp *driver(void)
{
    return one.platform;
}

static uint8_t bytes[64];

/* A send as it should be. */
static void prepare(pt_mactcp_block *block, pt_mactcp_wds *wds)
{
    memset(block, 0, sizeof *block);
    wds[0].length = sizeof bytes;
    wds[0].ptr = bytes;
    wds[1].length = 0;
    wds[1].ptr = NULL;
    block->io_c_ref_num = pt_mactcp_ref_num(driver());
    block->cs_code = PT_MACTCP_SEND;
    block->tcp_stream = one.handle;
    block->wds = wds;
}

static void run_out(void)
{
    uint64_t served;
    CHECK(pt_sim_advance(sim, pt_sim_now(sim) + SECOND, &served) == PT_OK);
}

static void never_called(pt_mactcp_block *block)
{
    (void)block;
    CHECK(0);
}

static void the_driver_refuses_what_the_real_one_refuses(void)
{
    begin(pt_mactcp_ops(), PT_SIM_CLASSIC, 0);
    pt_mactcp_block block;
    pt_mactcp_wds wds[2];

    prepare(&block, wds);
    wds[1] = wds[0];
    CHECK(pt_mactcp_control(driver(), &block) == PT_MACTCP_INVALID_WDS &&
          has_violation(&one, "mactcp: TCPSend -23014: the list has no zero sentinel"));
    prepare(&block, wds);
    wds[0].length = 0;
    CHECK(pt_mactcp_control(driver(), &block) == PT_MACTCP_INVALID_WDS &&
          has_violation(&one, "the list is empty"));
    prepare(&block, wds);
    block.io_completion = never_called;
    CHECK(pt_mactcp_control(driver(), &block) == PT_MACTCP_BAD_PARAMETER &&
          has_violation(&one, "a completion routine is set"));
    prepare(&block, wds);
    block.send_length = 1;
    CHECK(pt_mactcp_control(driver(), &block) == PT_MACTCP_BAD_PARAMETER &&
          has_violation(&one, "not cleared before use"));
    prepare(&block, wds);
    block.io_c_ref_num = 1;
    CHECK(pt_mactcp_control(driver(), &block) == PT_MACTCP_BAD_REFNUM &&
          has_violation(&one, "reference number"));
    prepare(&block, wds);
    block.tcp_stream = 12345;
    CHECK(pt_mactcp_control(driver(), &block) == PT_MACTCP_INVALID_STREAM &&
          has_violation(&one, "no such stream"));
    prepare(&block, wds);
    block.cs_code = 99;
    CHECK(pt_mactcp_control(driver(), &block) == PT_MACTCP_BAD_PARAMETER &&
          has_violation(&one, "no such call"));
    uint32_t refused = world_of(&one)->violation_count;
    CHECK(refused == 7);

    /* One that is right: in progress, then done; the block may be used again only after it was
     * cleared. */
    prepare(&block, wds);
    CHECK(pt_mactcp_control(driver(), &block) == PT_MACTCP_IN_PROGRESS &&
          block.io_result == PT_MACTCP_IN_PROGRESS);
    CHECK(pt_mactcp_control(driver(), &block) == PT_MACTCP_BAD_PARAMETER &&
          has_violation(&one, "still in progress"));
    CHECK(block.io_result == PT_MACTCP_IN_PROGRESS);
    run_out();
    CHECK(block.io_result == PT_MACTCP_NO_ERROR && block.send_length == sizeof bytes);
    CHECK(pt_mactcp_control(driver(), &block) == PT_MACTCP_BAD_PARAMETER); /* not cleared */

    /* The buffer changes in flight; the list changes in flight. */
    prepare(&block, wds);
    CHECK(pt_mactcp_control(driver(), &block) == PT_MACTCP_IN_PROGRESS);
    bytes[5]++;
    run_out();
    CHECK(block.io_result == PT_MACTCP_NO_ERROR &&
          has_violation(&one, "-23013: the buffer was changed or moved"));
    prepare(&block, wds);
    CHECK(pt_mactcp_control(driver(), &block) == PT_MACTCP_IN_PROGRESS);
    wds[0].ptr = bytes + 1;
    run_out();
    CHECK(has_violation(&one, "the list was changed while the send was in progress"));

    /* Releasing a stream that is busy. */
    prepare(&block, wds);
    CHECK(pt_mactcp_control(driver(), &block) == PT_MACTCP_IN_PROGRESS);
    pt_mactcp_block release;
    memset(&release, 0, sizeof release);
    release.io_c_ref_num = pt_mactcp_ref_num(driver());
    release.cs_code = PT_MACTCP_RELEASE;
    release.tcp_stream = one.handle;
    CHECK(pt_mactcp_control(driver(), &release) == PT_MACTCP_BAD_PARAMETER &&
          has_violation(&one, "released while sends are in progress"));
    run_out();
    end();
}

/* A routine that works at interrupt time. */
static int routine_calls;

static void working_routine(void *user, int event)
{
    (void)event;
    pt_mactcp_block status;
    memset(&status, 0, sizeof status);
    status.io_c_ref_num = pt_mactcp_ref_num(user);
    status.cs_code = PT_MACTCP_STATUS;
    CHECK(pt_mactcp_control(user, &status) == PT_MACTCP_BAD_PARAMETER);
    CHECK(pt_sim_step(sim, UINT64_MAX) == PT_ERR_INVALID_STATE);
    CHECK(pt_sim_listen(sim, 0, 0) == PT_ERR_INVALID_STATE);
    routine_calls++;
}

static void work_at_notification_time_is_refused_and_told(void)
{
    begin(pt_mactcp_ops(), PT_SIM_CLASSIC, 0);
    int32_t listener = pt_sim_listen(sim, other.host, 99);
    int32_t stream = pt_sim_dial(sim, one.host, 0x0A000002, 99);
    CHECK(pt_mactcp_adopt(driver(), stream, working_routine, driver()) == PT_OK);
    CHECK(pt_mactcp_adopt(driver(), stream, working_routine, driver()) == PT_ERR_INVALID_PARAM);
    run_out();
    int32_t accepted = pt_sim_accept(sim, listener);
    CHECK(pt_sim_send(sim, accepted, bytes, 9) == 9);
    run_out();
    CHECK(routine_calls == 1 && has_violation(&one, "called at notification time"));
    end();
}

/* A stream of its own with a routine that writes down, to a host that answers nothing from now on.
 */
static unsigned events_told[32];

static void write_down(void *user, int event)
{
    (void)user;
    for (int bit = 0; bit < 5; bit++)
        events_told[1 << bit] += (event >> bit) & 1;
}

static int32_t open_into_the_void(void)
{
    int32_t listener = pt_sim_listen(sim, other.host, 99);
    int32_t stream = pt_sim_dial(sim, one.host, 0x0A000002, 99);
    run_out();
    CHECK(pt_sim_accept(sim, listener) > 0);
    CHECK(pt_mactcp_adopt(driver(), stream, write_down, NULL) == PT_OK);
    CHECK(pt_sim_set_cut(sim, one.host, other.host, 1) == PT_OK);
    memset(events_told, 0, sizeof events_told);
    return stream;
}

/* A send with these words on its time-out. Returns the ns that it was in progress, at most
 * limit_ns. */
static uint64_t time_in_progress(pt_mactcp_block *block, uint8_t value, uint8_t action,
                                 uint8_t flags, uint64_t limit_ns)
{
    int32_t stream = open_into_the_void();
    static pt_mactcp_wds wds[2];
    prepare(block, wds);
    block->tcp_stream = stream;
    block->ulp_timeout_value = value;
    block->ulp_timeout_action = action;
    block->validity_flags = flags;
    CHECK(pt_mactcp_control(driver(), block) == PT_MACTCP_IN_PROGRESS);
    uint64_t start = pt_sim_now(sim);
    while (block->io_result == PT_MACTCP_IN_PROGRESS && pt_sim_step(sim, start + limit_ns) == 1) {
    }
    return block->io_result == PT_MACTCP_IN_PROGRESS ? limit_ns : pt_sim_now(sim) - start;
}

static void the_time_out_of_a_send_is_the_one_in_its_block(void)
{
    static const struct {
        uint8_t value, action, flags;
        unsigned seconds; /* without an acknowledgement until the connection is broken */
    } rows[] = {
        {10, 1, 0xC0, 10},   {60, 1, 0xC0, 60}, {30, 1, 0xC0, 30},
        {255, 1, 0xC0, 255}, {10, 0, 0x80, 10}, /* the action does not count: it is to abort */
        {10, 1, 0x40, 30},                      /* the value does not count */
        {10, 0, 0, 30},                         /* neither does */
    };
    for (size_t row = 0; row < sizeof rows / sizeof rows[0]; row++) {
        begin(pt_mactcp_ops(), PT_SIM_CLASSIC, 0);
        pt_mactcp_block block;
        uint64_t ended = time_in_progress(&block, rows[row].value, rows[row].action,
                                          rows[row].flags, 1000 * SECOND);
        CHECK(ended >= rows[row].seconds * SECOND && ended < (rows[row].seconds + 1) * SECOND);
        CHECK(block.io_result == PT_MACTCP_TERMINATED);
        CHECK(events_told[PT_MACTCP_TERMINATE] == 1 && events_told[PT_MACTCP_ULP_LATE] == 0);
        end();
    }
}

static void a_send_whose_action_is_0_is_only_told_to_be_late(void)
{
    static const uint8_t flags[] = {PT_MACTCP_VALID_TIMEOUT | PT_MACTCP_VALID_ACTION,
                                    PT_MACTCP_VALID_ACTION};
    for (int row = 0; row < 2; row++) {
        uint64_t late_ns = (row == 0 ? 10 : 30) * SECOND;
        begin(pt_mactcp_ops(), PT_SIM_CLASSIC, 0);
        pt_mactcp_block block;
        CHECK(time_in_progress(&block, 10, 0, flags[row], late_ns) == late_ns);
        CHECK(events_told[PT_MACTCP_ULP_LATE] == 0); /* not a moment before its time */
        uint64_t served;
        CHECK(pt_sim_advance(sim, pt_sim_now(sim) + 300 * SECOND, &served) == PT_OK);
        CHECK(events_told[PT_MACTCP_ULP_LATE] == 1 && events_told[PT_MACTCP_TERMINATE] == 0);
        CHECK(block.io_result == PT_MACTCP_IN_PROGRESS);
        CHECK(pt_sim_set_cut(sim, one.host, other.host, 0) == PT_OK);
        CHECK(pt_sim_advance(sim, pt_sim_now(sim) + 10 * SECOND, &served) == PT_OK);
        CHECK(block.io_result == PT_MACTCP_NO_ERROR && events_told[PT_MACTCP_SENT] == 1);
        end();
    }
}

static void each_slot_is_issued_as_the_maker_wants_it(void)
{
    begin(pt_mactcp_ops(), PT_SIM_CLASSIC, 0);
    CHECK(send_number(&one, 0, 100) >= 0 && send_number(&one, 1, 200) >= 0);
    CHECK(send_number(&one, 2, 100) == PT_ERR_WOULD_BLOCK);
    for (int index = 0; index < 2; index++) {
        pt_send_slot *slot = &one.slots[index];
        const pt_mactcp_block *block = slot->platform_data;
        CHECK(slot->state == PT_SLOT_IN_FLIGHT && block->cs_code == PT_MACTCP_SEND &&
              block->io_result == PT_MACTCP_IN_PROGRESS);
        CHECK(block->io_c_ref_num == pt_mactcp_ref_num(driver()) &&
              block->tcp_stream == one.handle && block->io_completion == NULL);
        CHECK(block->ulp_timeout_value == 30 && block->ulp_timeout_action == 1 &&
              block->validity_flags == 0xC0 && block->push_flag == 0);
        CHECK(block->wds[0].ptr == slot->buffer && block->wds[0].length == slot->message_len &&
              slot->message_len == 112 + 100 * index);
        CHECK(block->wds[1].ptr == NULL && block->wds[1].length == 0);
    }
    run_out();
    while (go_on(sim, &one, &other, UINT64_MAX)) {
    }
    CHECK(one.sent == 2 && other.received == 2 && other.wrong == 0);
    CHECK(pt_mactcp_ops()->link_size(3) - pt_mactcp_ops()->link_size(2) >=
          sizeof(pt_mactcp_block) + 2 * sizeof(pt_mactcp_wds)); /* what each slot has of its own */
    end();
}

static void polling_says_how_many_slots_are_done_and_asks_nothing_in_vain(void)
{
    begin(pt_mactcp_ops(), PT_SIM_CLASSIC, 0);
    CHECK(one.context.ops->poll_send_completions(&one.context, &one.link) == 0);
    CHECK(send_number(&one, 0, 100) >= 0 && send_number(&one, 1, 200) >= 0);
    CHECK(send_number(&one, 2, 100) == PT_ERR_WOULD_BLOCK);
    CHECK(one.context.ops->poll_send_completions(&one.context, &one.link) == 0); /* in progress */
    CHECK(one.context.ops->send_slots_available(&one.context, &one.link) == 0);
    pt_sim_counts counts;
    run_out();
    CHECK(pt_sim_get_counts(sim, one.host, other.host, &counts) == PT_OK && counts.packets >= 2);
    CHECK(one.context.ops->poll_send_completions(&one.context, &one.link) ==
          2); /* both were in flight at once */
    CHECK(one.context.ops->poll_send_completions(&one.context, &one.link) == 0);
    static pt_link never_opened;
    CHECK(one.context.ops->poll_send_completions(&one.context, &never_opened) == 0);
    while (go_on(sim, &one, &other, UINT64_MAX)) {
    }
    CHECK(one.sent == 2 && other.received == 2 &&
          one.context.ops->send_slots_available(&one.context, &one.link) == 2);
    CHECK(one.context.ops->poll_send_completions(&one.context, &one.link) == 0);
    end();
}

static void ten_thousand_sends_go_through_two_slots_in_order_though_they_complete_out_of_order(void)
{
    begin(pt_mactcp_ops(), PT_SIM_LAN, 1);
    pt_sim_set_completion_jitter(sim, one.host, 30 * MS);
    uint32_t number = 0, overtaken = 0;
    while (one.sent < 10000) {
        int result = 0;
        while (number < 10000 && (result = send_number(&one, number, 4 + number % 900)) >= 0)
            number++;
        CHECK(result >= 0 || result == PT_ERR_WOULD_BLOCK);
        overtaken += one.slots[one.link.pipeline.head].state == PT_SLOT_IN_FLIGHT &&
                     one.link.pipeline.pending_count == 2 &&
                     one.slots[!one.link.pipeline.head].state == PT_SLOT_COMPLETED;
        CHECK(go_on(sim, &one, &other, UINT64_MAX) || one.sent == 10000);
    }
    CHECK(overtaken > 100 && other.received == 10000 && other.wrong == 0 && one.failed == 0);
    CHECK(world_of(&one)->violation_count == 0);
    end();
}

/* Small writes without push share packets. */
static uint64_t packets_of_a_burst(int push)
{
    begin(pt_mactcp_ops(), PT_SIM_CLASSIC, push);
    end_node(&one);
    memset(&one.link, 0, sizeof one.link);
    make_node(&one, sim, pt_mactcp_ops(), 0x0A000003, push, 0);
    end_node(&other);
    make_node(&other, sim, pt_mactcp_ops(), 0x0A000004, push, 0);
    connect_nodes(sim, &one, &other, 8, 0);
    for (uint32_t number = 0; number < 8; number++)
        CHECK(send_number(&one, number, 50) >= 0);
    while (go_on(sim, &one, &other, UINT64_MAX)) {
    }
    pt_sim_counts counts;
    CHECK(pt_sim_get_counts(sim, one.host, other.host, &counts) == PT_OK);
    CHECK(one.sent == 8 && other.received == 8 && other.wrong == 0);
    end();
    return counts.packets;
}

static void small_writes_share_packets_unless_they_are_pushed(void)
{
    uint64_t merged = packets_of_a_burst(0), pushed = packets_of_a_burst(1);
    CHECK(merged < pushed);
}

static void a_vanished_peer_fails_every_send_after_thirty_seconds(void)
{
    begin(pt_mactcp_ops(), PT_SIM_CLASSIC, 0);
    CHECK(send_number(&one, 0, 100) >= 0 && send_number(&one, 1, 100) >= 0);
    (void)turn(&one, 0);
    pt_sim_set_vanished(sim, other.host, 1);
    uint64_t start = pt_sim_now(sim);
    while (!one.closed)
        CHECK(go_on(sim, &one, NULL, UINT64_MAX) || one.closed);
    uint64_t waited = pt_sim_now(sim) - start;
    CHECK(waited >= 30 * SECOND && waited < 30 * SECOND + SECOND);
    CHECK(one.sent == 0 && (one.failed == 0 || one.sent_code == PT_ERR_CONNECTION_CLOSED));
    CHECK(one.failed + pt_link_pending(&one.link) == 2 &&
          one.close_code == PT_ERR_CONNECTION_CLOSED && one.close_error == PT_MACTCP_TERMINATED);
    end();
}

static void abandoned_slots_stay_until_the_driver_lets_go(int driver_gets_answers)
{
    begin(pt_mactcp_ops(), PT_SIM_CLASSIC, 0);
    CHECK(send_number(&one, 0, 100) >= 0 && send_number(&one, 1, 100) >= 0);
    (void)turn(&one, 0);
    if (!driver_gets_answers)
        pt_sim_set_cut(sim, other.host, one.host, 1);
    pt_pool_statistics statistics;
    CHECK(pt_link_close(&one.context, &one.link) == 2);
    CHECK(pt_classic_abandoned(one.platform) == 2 && one.link.pipeline.pending_count == 2);
    CHECK(one.slots[0].state == PT_SLOT_ABANDONED && one.slots[0].buffer != NULL);
    pt_pool_get_statistics(one.pool, &statistics);
    CHECK(statistics.in_use >= 2);
    pt_sim_release(sim, one.handle); /* the caller closes its socket too */
    uint64_t start = pt_sim_now(sim);
    while (one.link.pipeline.pending_count != 0) {
        CHECK(pt_sim_step(sim, UINT64_MAX) == 1);
        (void)pt_classic_is_ready(&one.context);
    }
    uint64_t waited = pt_sim_now(sim) - start;
    CHECK(driver_gets_answers ? waited < SECOND : waited == 5 * SECOND); /* 300 ticks of 1/60 s */
    pt_pool_get_statistics(one.pool, &statistics);
    CHECK(statistics.in_use == 0 && pt_classic_abandoned(one.platform) == 0);
    CHECK(world_of(&one)->violation_count == 0);
    end();
}

static void a_synchronous_send_waits_for_its_acknowledgement_and_at_most_five_seconds(void)
{
    begin(pt_mactcp_sync_ops(), PT_SIM_CLASSIC, 0);
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
    CHECK(world_of(&one)->violation_count == 0);
    end();
}

static void a_synchronous_send_never_overtakes_what_is_in_flight(void)
{
    begin(pt_mactcp_ops(), PT_SIM_CLASSIC, 0);
    CHECK(send_number(&one, 0, 100) >= 0 && send_number(&one, 1, 100) >= 0);
    (void)turn(&one, 0);
    static const uint8_t frame[16] = {'P', 'T', 'M', 'G', 1, PT_FRAME_DATA, 0, 2, 0, 4, 0,
                                      0,   0,   2,   0,   0};
    uint8_t whole[16];
    pt_frame encoded = {
        .payload = frame + 10, .payload_len = 4, .type = PT_FRAME_DATA, .sequence = 2};
    CHECK(pt_frame_encode(&encoded, whole, sizeof whole) == 16);
    uint64_t start = pt_sim_now(sim);
    CHECK(one.context.ops->tcp_send(&one.context, &one.link, whole, 16) == PT_OK);
    CHECK(pt_sim_now(sim) - start >
          2 * 27 * MS); /* it went only when the others were acknowledged */
    while (go_on(sim, &one, &other, UINT64_MAX)) {
    }
    CHECK(other.received == 3 && other.wrong == 0 && one.sent == 2);
    end();
}

int main(void)
{
    the_driver_refuses_what_the_real_one_refuses();
    work_at_notification_time_is_refused_and_told();
    the_time_out_of_a_send_is_the_one_in_its_block();
    a_send_whose_action_is_0_is_only_told_to_be_late();
    each_slot_is_issued_as_the_maker_wants_it();
    polling_says_how_many_slots_are_done_and_asks_nothing_in_vain();
    ten_thousand_sends_go_through_two_slots_in_order_though_they_complete_out_of_order();
    small_writes_share_packets_unless_they_are_pushed();
    a_vanished_peer_fails_every_send_after_thirty_seconds();
    abandoned_slots_stay_until_the_driver_lets_go(1);
    abandoned_slots_stay_until_the_driver_lets_go(0);
    a_synchronous_send_waits_for_its_acknowledgement_and_at_most_five_seconds();
    a_synchronous_send_never_overtakes_what_is_in_flight();
    return 0;
}
