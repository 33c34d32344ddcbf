/* One turn of waiting and working, on a world in memory. */
#include "loop_world.h"

static void messages_arrive_once_whole_and_in_order(void)
{
    static const struct {
        size_t read, write, room;
    } worlds[] = {{SIZE_MAX, SIZE_MAX, PIPE_SIZE},
                  {1, SIZE_MAX, PIPE_SIZE},
                  {7, 5, 100},
                  {13, 1, 1},
                  {1000, 333, 1500}};
    for (int kind = 0; kind < 4; kind++) {
        for (size_t shape = 0; shape < sizeof worlds / sizeof worlds[0]; shape++) {
            open_world(kind < 3 ? &async_ops : &sync_ops, 1);
            here.read_limit = worlds[shape].read;
            here.write_limit = worlds[shape].write;
            here.room = worlds[shape].room;
            here.backward = kind == 1;
            uint16_t next[2] = {0, 0};
            uint64_t bytes[2] = {0, 0};
            unsigned refused = 0;
            for (int round = 0;
                 round < 20000 &&
                 (next[0] < 60 || next[1] < 60 || pt_link_pending(&links[0]) ||
                  pt_link_pending(&links[1]) || heard_of[0].frames < 60 || heard_of[1].frames < 60);
                 round++) {
                for (int end = 0; end < 2; end++) {
                    uint32_t len = 2 + (next[end] % 9 == 0 ? 1022 : draw(60));
                    /* A synchronous world must find room in the pipe. */
                    if (next[end] == 60 || (kind == 3 && here.pipes[end ^ 1].len > 1000))
                        continue;
                    int result = send_number(end, next[end], len);
                    if (result >= 0) {
                        next[end]++;
                        bytes[end] += len;
                    } else {
                        CHECK_EQUAL(result, PT_ERR_WOULD_BLOCK);
                        refused++;
                    }
                }
                turn(kind == 2 ? 100 : 0);
            }
            for (int end = 0; end < 2; end++) {
                CHECK_EQUAL(heard_of[end].sent, 60);
                CHECK_EQUAL(heard_of[end].frames, 60);
                CHECK_EQUAL(heard_of[end].bytes, bytes[end ^ 1]);
                CHECK_EQUAL(heard_of[end].failed + heard_of[end].closed, 0);
                CHECK_EQUAL(links[end].received_bytes, bytes[end ^ 1] + 60 * PT_FRAME_OVERHEAD);
            }
            CHECK(kind == 3 || shape != 3 || refused > 0);
            close_world();
        }
    }
}

/* S0.76 of the pipeline's source: the slot is in flight, and counted, when the platform is asked.
 */
static void a_slot_that_is_done_within_the_call_is_counted_once(void)
{
    static const pt_platform_ops *const worlds[] = {&async_ops, &async_only_ops};
    for (size_t kind = 0; kind < 2; kind++) {
        open_world(worlds[kind], 1);
        here.instant = 1;
        pt_send_pipeline *pipeline = &links[0].pipeline;
        for (uint16_t number = 0; number < 40; number++) {
            CHECK(send_number(0, number, 950) >= 0); /* no slot takes two of them */
            uint32_t pending = 0;
            for (uint8_t index = 0; index < DEPTH; index++)
                pending += slots[0][index].state != PT_SLOT_FREE;
            CHECK_EQUAL(pipeline->pending_count, pending);
            CHECK_EQUAL(pt_pipeline_available(pipeline), DEPTH - pending);
            CHECK_EQUAL(pt_link_pending(&links[0]), number + 1u - heard_of[0].sent);
            if (number % 3 == 2)
                turns(4);
        }
        turns(3);
        CHECK_EQUAL(here.sent_async, 40);
        CHECK_EQUAL(heard_of[0].sent, 40);
        CHECK_EQUAL(heard_of[1].frames, 40);
        CHECK_EQUAL(heard_of[0].failed + heard_of[0].closed, 0);
        CHECK_EQUAL(pipeline->pending_count, 0);
        close_world();
    }
}

/* S0.26 and S0.139 of the pipeline's source: before and after what is there was moved. */
static void a_refused_send_asks_the_platform_for_slots(void)
{
    open_world(&async_ops, 1);
    for (uint16_t number = 0; number < DEPTH; number++)
        CHECK(send_number(0, number, 950) >= 0);
    CHECK_EQUAL(here.asked, 0); /* as long as there is room nobody asks */
    here.held = 1;
    CHECK_EQUAL(pt_link_slots_available(&context, &links[0]), 0);
    CHECK_EQUAL(send_number(0, DEPTH, 950), PT_ERR_WOULD_BLOCK);
    CHECK_EQUAL(here.asked, 3);
    here.held = 0;
    CHECK(send_number(0, DEPTH, 950) >= 0);
    CHECK_EQUAL(here.asked, 5);
    CHECK_EQUAL(pt_link_slots_available(&context, &links[0]),
                pt_pipeline_available(&links[0].pipeline));
    turns(9);
    CHECK_EQUAL(heard_of[1].frames, DEPTH + 1);
    close_world();
}

/* S0.86 and S0.87 of the pipeline's source, as they hold here. */
static void a_turn_hands_over_waits_and_reads_each_link_before_its_completions(void)
{
    open_world(&async_ops, 2);
    here.held = 1; /* so that something is in flight when there is something to read */
    CHECK(send_number(0, 0, 100) >= 0 && send_number(2, 0, 100) >= 0);
    turn(0);
    CHECK(strncmp(here.calls, "S2P2S0P0W", 9) == 0 || strncmp(here.calls, "S0P0S2P2W", 9) == 0);
    turns(3);
    static const pt_frame frame = {
        .payload = (const uint8_t *)"\0\0", .payload_len = 2, .type = PT_FRAME_DATA};
    for (int end = 0; end < 4; end += 2) {
        int32_t len = pt_frame_encode(&frame, here.pipes[end].bytes, PIPE_SIZE);
        REQUIRE(len == PT_FRAME_OVERHEAD + 2);
        here.pipes[end].len = (size_t)len;
    }
    here.held = 0;
    here.calls[0] = 0;
    turn(0);
    CHECK(strcmp(here.calls, "WR0P0R2P2") == 0 || strcmp(here.calls, "WR2P2R0P0") == 0);
    CHECK_EQUAL(heard_of[0].frames + heard_of[2].frames, 2);
    CHECK_EQUAL(heard_of[0].sent + heard_of[2].sent, 2);
    turns(3);
    close_world();
}

static void an_idle_pair_soon_holds_no_buffer_and_waits_without_end(void)
{
    open_world(&async_ops, 1);
    CHECK_EQUAL(pt_loop_next_timeout(&context), -1);
    CHECK_EQUAL(account.bytes, 0);
    send_number(0, 0, 500);
    CHECK_EQUAL(pt_loop_next_timeout(&context), 0);
    turns(3);
    CHECK_EQUAL(heard_of[1].frames, 1);
    CHECK_EQUAL(heard_of[0].sent, 1);
    for (int round = 0; round < 20 && pt_loop_next_timeout(&context) != -1; round++)
        turn(-1); /* a link may keep its buffers for a while */
    CHECK_EQUAL(pt_loop_next_timeout(&context), -1);
    CHECK(here.now_ms <= 3 * PT_POOL_REST_MS);
    pt_pool_statistics counted;
    pt_pool_get_statistics(pool, &counted);
    CHECK(counted.bytes <= FRAME_SIZE + 16); /* the spare one: nothing is kept for nobody */
    CHECK_EQUAL(memory_lent(pool), context.spare != NULL);
    close_world();
}

static void small_messages_of_a_turn_leave_together(void)
{
    open_world(&async_ops, 1);
    for (uint16_t number = 0; number < 10; number++)
        CHECK_EQUAL(send_number(0, number, 50), number == 0 ? PT_SEND_NEEDS_TURN : 0);
    CHECK_EQUAL(here.pipes[1].len, 0);
    turn(0);
    CHECK_EQUAL(links[0].pipeline.high_water, 1);
    CHECK_EQUAL(heard_of[0].sent, 10);
    turn(0);
    CHECK_EQUAL(heard_of[1].frames, 10);
    uint8_t byte = 1;
    CHECK_EQUAL(pt_link_send(&context, &links[0], PT_FRAME_PING, PT_FLAG_NO_DELAY, &byte, 1),
                PT_SEND_NEEDS_TURN);
    CHECK_EQUAL(here.pipes[1].len, 1 + PT_FRAME_OVERHEAD); /* no delay: before the turn */
    turns(2);
    CHECK_EQUAL(heard_of[1].frames, 11);
    close_world();
}

static void a_sender_is_told_to_yield(void)
{
    open_world(&async_ops, 1);
    int result = 0;
    uint16_t number = 0;
    while (!(result & PT_SEND_YIELD) && number < 2 * PT_TURN_MAX_MESSAGES) {
        here.pipes[1].len = 0; /* a reader that is quick */
        result = send_number(0, number++, 2);
        REQUIRE(result >= 0);
    }
    CHECK_EQUAL(number, PT_TURN_MAX_MESSAGES);
    here.pipes[1].len = 0;
    close_world();
}

static void a_message_that_is_too_long_is_refused(void)
{
    static uint8_t payload[2000];
    open_world(&async_ops, 1);
    uint32_t limit = SLOT_SIZE - PT_FRAME_OVERHEAD < PT_FRAME_MAX_PAYLOAD
                         ? SLOT_SIZE - PT_FRAME_OVERHEAD
                         : PT_FRAME_MAX_PAYLOAD;
    CHECK_EQUAL(links[0].max_message, limit);
    CHECK_EQUAL(pt_link_send(&context, &links[0], PT_FRAME_DATA, 0, payload, limit + 1),
                PT_ERR_MESSAGE_TOO_LARGE);
    links[0].max_message = 100;
    CHECK_EQUAL(pt_link_send(&context, &links[0], PT_FRAME_DATA, 0, payload, 101),
                PT_ERR_MESSAGE_TOO_LARGE);
    CHECK_EQUAL(pt_link_send(&context, &links[0], 0, 0, payload, 1), PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_link_pending(&links[0]), 0);
    CHECK_EQUAL(pt_link_send(&context, &links[2], PT_FRAME_DATA, 0, payload, 1),
                PT_ERR_NOT_CONNECTED);
    close_world();
}

static void the_sink_bounds_what_a_turn_reads(void)
{
    open_world(&async_ops, 2);
    for (uint16_t number = 0; number < 3; number++) {
        send_number(0, number, 500);
        send_number(2, number, 500);
    }
    room = 0;
    turns(4);
    CHECK_EQUAL(heard_of[1].frames + heard_of[3].frames, 0);
    room = 600;
    turn(0);
    CHECK_EQUAL(heard_of[1].frames + heard_of[3].frames, 1);
    room = UINT32_MAX;
    turns(3);
    CHECK_EQUAL(heard_of[1].frames, 3);
    CHECK_EQUAL(heard_of[3].frames, 3);
    close_world();
}

static void a_paused_link_is_not_read_and_loses_nothing(void)
{
    open_world(&async_ops, 1);
    pt_link_pause(&context, &links[1]);
    send_number(0, 0, 300);
    turns(3);
    CHECK_EQUAL(heard_of[1].frames, 0);
    CHECK_EQUAL(here.pipes[1].len, 300 + PT_FRAME_OVERHEAD);
    pt_link_resume(&context, &links[1]);
    turns(1);
    CHECK_EQUAL(heard_of[1].frames, 1);
    close_world();
}

static void a_frame_that_stays_cut_ends_its_link_in_time(void)
{
    open_world(&async_ops, 2);
    memcpy(here.pipes[1].bytes, "PTMG\1\1\0\0\0\144abc", 13);
    here.pipes[1].len = 13;
    turn(0);
    int limit = pt_loop_next_timeout(&context);
    CHECK(limit > 0 && limit <= PT_PARTIAL_FRAME_MS + 2000 / PT_TICKS_PER_SECOND);
    for (int round = 0; round < 200 && heard_of[1].closed == 0; round++)
        turn(-1);
    CHECK_EQUAL(heard_of[1].closed, 1);
    CHECK_EQUAL(heard_of[1].closed_code, PT_ERR_TIMEOUT);
    CHECK(here.now_ms >= PT_PARTIAL_FRAME_MS);
    CHECK(here.now_ms <= PT_PARTIAL_FRAME_MS + 3 * 1000 / PT_TICKS_PER_SECOND);
    CHECK_EQUAL(heard_of[3].closed, 0);
    close_world();
}

/* A program that had no time is no peer that sends too slowly: what has come is read before a link
 * ends for it. */
static void a_frame_whose_rest_has_come_is_never_late(void)
{
    open_world(&async_ops, PAIRS);
    uint8_t bytes[FRAME_SIZE];
    const pt_frame frame = {
        .payload = (const uint8_t *)"\0\0\2\3\4", .payload_len = 5, .type = PT_FRAME_DATA};
    size_t len = (size_t)pt_frame_encode(&frame, bytes, sizeof bytes);
    for (int end = 0; end < ENDS; end++) {
        memcpy(here.pipes[end].bytes, bytes, 12);
        here.pipes[end].len = 12;
    }
    turns(2);
    for (int end = 0; end < ENDS; end++) {
        memcpy(here.pipes[end].bytes, bytes + 12, len - 12);
        here.pipes[end].len = len - 12;
    }
    here.now_ms += 2 * PT_PARTIAL_FRAME_MS;
    context.io_budget = 1;
    turns(ENDS + 2);
    for (int end = 0; end < ENDS; end++) {
        CHECK_EQUAL(heard_of[end].closed, 0);
        CHECK_EQUAL(heard_of[end].frames, 1);
    }
    close_world();
}

/* One buffer is in hand, and a cut frame has it: reading the rest brings it back. Were that link
 * left alone for want of another buffer, none would ever be read again. */
static void the_rest_of_a_frame_needs_no_other_memory(void)
{
    open_world(&async_ops, 2);
    uint8_t bytes[FRAME_SIZE];
    const pt_frame frame = {
        .payload = (const uint8_t *)"\0\0\2\3\4", .payload_len = 5, .type = PT_FRAME_DATA};
    size_t len = (size_t)pt_frame_encode(&frame, bytes, sizeof bytes);
    memcpy(here.pipes[1].bytes, bytes, 2);
    here.pipes[1].len = 2;
    turn(0); /* from here on there is a spare one */
    account.dry = 1;
    memcpy(here.pipes[1].bytes, bytes + 2, 12);
    here.pipes[1].len = 12;
    turn(0);
    CHECK_EQUAL(heard_of[1].frames, 0);
    memcpy(here.pipes[1].bytes, bytes + 14, len - 14);
    here.pipes[1].len = len - 14;
    memcpy(here.pipes[3].bytes, bytes, len);
    here.pipes[3].len = len;
    turns(4);
    CHECK_EQUAL(heard_of[1].frames, 1);
    CHECK_EQUAL(heard_of[3].frames, 1);
    close_world();
}

/* Who holds memory and takes nothing is named when others need it; they go on meanwhile. */
static void when_memory_is_scarce_the_stillest_link_is_named(void)
{
    budget = 2 * (SLOT_SIZE + 16);
    open_world(&async_ops, 2);
    budget = 0;
    fill_slots();
    CHECK_EQUAL(pt_pool_is_scarce(pool), 1);
    for (int round = 0; round < 50 && heard_of[0].still_ms < 3000; round++)
        turn(-1);
    CHECK(heard_of[0].still_ms >= 3000);
    CHECK(here.now_ms <= 10000);
    CHECK_EQUAL(heard_of[2].still_ms, 0);

    here.room = PIPE_SIZE;
    for (uint16_t number = 0; number < 50; number++) {
        CHECK(send_number(2, number, 1000) >= 0);
        turns(2);
    }
    CHECK_EQUAL(heard_of[3].frames, 50);
    CHECK_EQUAL(pt_link_close(&context, &links[0]), 0);
    CHECK_EQUAL(pt_pool_is_scarce(pool), 0);
    heard_of[2].still_ms = 0;
    for (int round = 0; round < 50 && pt_loop_next_timeout(&context) != -1; round++)
        turn(-1);
    CHECK_EQUAL(heard_of[2].still_ms, 0);
    close_world();
}

/* Frames that are no plain messages cost much: of a link that is not alone a few are taken in each
 * turn, and of those that hold more as many links as the budget says. */
static void a_turn_takes_a_few_frames_of_a_few_links(void)
{
    enum { PINGS = 80, BUDGET = 2, OF_LINK = PT_LINK_MAX_WORK / PT_WORK_CONTROL };
    open_world(&async_ops, 2);
    context.io_budget = BUDGET;
    const pt_frame ping = {.type = PT_FRAME_PING};
    for (int end = 0; end < 4; end++) {
        for (int count = 0; count < PINGS; count++)
            CHECK_EQUAL(pt_frame_encode(&ping, here.pipes[end].bytes + count * PT_FRAME_OVERHEAD,
                                        PT_FRAME_OVERHEAD),
                        PT_FRAME_OVERHEAD);
        here.pipes[end].len = PINGS * PT_FRAME_OVERHEAD;
    }
    uint32_t before = 0, held_turns = 0;
    for (int round = 0; round < 4 * PINGS && before < 4 * PINGS; round++) {
        int none_ready = here.pipes[0].len + here.pipes[1].len + here.pipes[2].len == 0 &&
                         here.pipes[3].len == 0;
        uint32_t after = 0;
        turn(0);
        for (int end = 0; end < 4; end++)
            after += heard_of[end].frames;
        CHECK(after - before <= 2 * BUDGET * OF_LINK); /* of those that are ready, and that hold */
        if (none_ready && 4 * PINGS - after > BUDGET * OF_LINK) {
            CHECK(after - before <= BUDGET * OF_LINK);
            held_turns++;
        }
        before = after;
    }
    CHECK(held_turns > PINGS / BUDGET / OF_LINK);
    for (int end = 0; end < 4; end++)
        CHECK_EQUAL(heard_of[end].frames, PINGS);
    close_world();
}

/* Its memory is the caller's again: a turn that finds it in a list writes into what is no link. */
static void a_closed_link_is_in_no_list(void)
{
    open_world(&async_ops, 1);
    CHECK(send_number(0, 1, 100) >= 0);
    CHECK(context.lines[PT_LINE_DIRTY].first == &links[0]);
    CHECK_EQUAL(pt_link_close(&context, &links[0]), 0);
    CHECK(context.lines[PT_LINE_DIRTY].first == NULL);
    for (const pt_source *source = context.sources; source != NULL; source = source->next)
        CHECK(source != &links[0].source);
    memset(&links[0], 0xA5, sizeof links[0]);
    turn(0);
    memset(&links[0], 0, sizeof links[0]);
    close_world();
}

static void a_bad_frame_ends_its_link_alone(void)
{
    static const struct {
        const char *bytes;
        size_t len;
        int code;
    } cases[] = {
        {"XTMG\1\1\0\0\0\0\0\0", 12, PT_ERR_MAGIC},
        {"PTMG\2\1\0\0\0\0\0\0", 12, PT_ERR_VERSION},
        {"PTMG\1\11\0\0\0\0\0\0", 12, PT_ERR_INVALID_PARAM},
        {"PTMG\1\1\0\0\4\1\0\0", 12, PT_ERR_MESSAGE_TOO_LARGE},
        {"PTMG\1\1\0\0\0\0\0\0", 12, PT_ERR_CRC},
    };
    for (size_t index = 0; index < sizeof cases / sizeof cases[0]; index++) {
        open_world(&async_ops, 2);
        send_number(0, 0, 40);
        send_number(2, 0, 40);
        turns(1);
        memcpy(here.pipes[1].bytes + here.pipes[1].len, cases[index].bytes, cases[index].len);
        here.pipes[1].len += cases[index].len;
        turns(2);
        CHECK_EQUAL(heard_of[1].frames, 1); /* what came before it counts */
        CHECK_EQUAL(heard_of[1].closed, 1);
        CHECK_EQUAL(heard_of[1].closed_code, cases[index].code);
        CHECK_EQUAL(heard_of[3].frames, 1);
        CHECK_EQUAL(heard_of[3].closed, 0);
        CHECK_EQUAL(context.bad_frames, 1);
        CHECK_EQUAL(context.crc_errors, cases[index].code == PT_ERR_CRC);
        CHECK_EQUAL(pt_link_send(&context, &links[1], PT_FRAME_DATA, 0, NULL, 0),
                    PT_ERR_NOT_CONNECTED);
        close_world();
    }
}

static void no_ready_link_starves(void)
{
    open_world(&async_ops, PAIRS);
    for (int pair = 0; pair < PAIRS; pair++) {
        send_number(2 * pair, 0, 20);
        send_number(2 * pair + 1, 0, 20);
    }
    turns(3);
    for (int end = 0; end < ENDS; end++) {
        CHECK_EQUAL(heard_of[end].frames, 1);
        CHECK_EQUAL(heard_of[end].sent, 1);
    }
    close_world();
}

static void timers_are_never_early_and_come_in_order(void)
{
    static pt_timer timers[10];
    static const uint32_t delays[10] = {900, 0, 17, 16, 100, 5000, 1, 901, 40000, 250};
    open_world(&async_ops, 0);
    memset(timers, 0, sizeof timers);
    for (uint32_t index = 0; index < 10; index++) {
        timers[index].tag = index;
        pt_loop_arm(&context, &timers[index], delays[index]);
    }
    pt_loop_cancel(&context, &timers[9]);
    uint32_t seen = 0;
    for (int round = 0; round < 3000 && timer_count < 9; round++) {
        turn(-1);
        for (; seen < timer_count; seen++) {
            uint32_t delay = delays[timer_tags[seen]];
            CHECK(here.now_ms >= delay);
            CHECK(here.now_ms <= delay + 3 * 1000 / PT_TICKS_PER_SECOND);
            CHECK(seen == 0 || delays[timer_tags[seen - 1]] <=
                                   delay + 1000 / PT_TICKS_PER_SECOND); /* of one tick: as armed */
        }
    }
    CHECK_EQUAL(timer_count, 9);
    CHECK_EQUAL(pt_loop_next_timeout(&context), -1);
    close_world();
}

static void a_watch_reports_what_it_wants(void)
{
    static pt_watch watch;
    memset(&watch, 0, sizeof watch);
    open_world(&async_ops, 1);
    CHECK_EQUAL(pt_watch_open(&context, &watch, 1000, 5, 8), PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_watch_open(&context, &watch, 1000, 5, PT_WANT_READ), PT_OK);
    CHECK_EQUAL(pt_watch_open(&context, &watch, 1000, 5, PT_WANT_READ), PT_ERR_ALREADY_INITIALIZED);
    turn(0);
    CHECK_EQUAL(heard_of[5].ready, 0);
    here.ready_watch = 1000;
    turn(0);
    CHECK_EQUAL(heard_of[5].ready, PT_READY_READ);
    CHECK_EQUAL(pt_watch_set(&context, &watch, 0), PT_OK);
    turn(0);
    CHECK_EQUAL(heard_of[5].ready, PT_READY_READ);
    CHECK_EQUAL(pt_watch_set(&context, &watch, PT_WANT_WRITE | PT_WANT_EDGE), PT_OK);
    CHECK_EQUAL(watch.source.interest, PT_WANT_WRITE | PT_WANT_EDGE);
    turn(0);
    CHECK_EQUAL(heard_of[5].ready, PT_READY_READ | PT_READY_WRITE);
    CHECK_EQUAL(pt_watch_set(&context, &watch, 8), PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(watch.source.interest, PT_WANT_WRITE | PT_WANT_EDGE);
    CHECK_EQUAL(pt_context_cleanup(&context), PT_ERR_INVALID_STATE);
    pt_watch_close(&context, &watch);
    pt_watch_close(&context, &watch);
    close_world();
}

static void a_context_refuses_what_it_cannot_work_with(void)
{
    open_world(&async_ops, 0);
    pt_context other;
    pt_event events[EVENTS];
    const pt_sink sink = {.frame = hear_frame, .context = NULL, .room = UINT32_MAX};
    CHECK_EQUAL(pt_context_init(&other, &async_ops, NULL, pool, receive_buffer,
                                receive_buffer_size - 1, ready_sources, 1),
                PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_context_init(&other, &async_ops, NULL, pool, receive_buffer, receive_buffer_size,
                                ready_sources, 0),
                PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_context_init(&other, &async_ops, NULL, pool, receive_buffer, receive_buffer_size,
                                ready_sources, PT_IO_BUDGET_MAX + 1),
                PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_context_init(&other, &async_ops, NULL, NULL, receive_buffer, receive_buffer_size,
                                ready_sources, 1),
                PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_context_init(&other, &async_ops, NULL, pool, receive_buffer, receive_buffer_size,
                                NULL, 1),
                PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_loop_turn(&context, 0, events, EVENTS - 1, &sink), PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_link_open(&context, &links[0], 0, 0, slots[0], 0, SLOT_SIZE, 1, 1024,
                             pt_message_format(0)),
                PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_link_open(&context, &links[0], 0, 0, slots[0], DEPTH, SLOT_SIZE, 1,
                             PT_FRAME_MAX_PAYLOAD + 1, pt_message_format(0)),
                PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_link_open(&context, &links[0], 0, 0, slots[0], DEPTH, SLOT_SIZE, 1, 1024,
                             pt_message_format(0)),
                PT_OK);
    CHECK_EQUAL(pt_link_open(&context, &links[0], 0, 0, slots[0], DEPTH, SLOT_SIZE, 1, 1024,
                             pt_message_format(0)),
                PT_ERR_ALREADY_INITIALIZED);
    close_world();
}

static void the_plain_sink_keeps_every_frame(void)
{
    static pt_event events[EVENTS], frames[64];
    static uint8_t payloads[4096];
    pt_plain_sink plain = {
        .events = frames, .buffer = payloads, .capacity = 64, .buffer_size = sizeof payloads};
    pt_sink sink;
    open_world(&async_ops, 1);
    for (uint16_t number = 0; number < 5; number++)
        send_number(0, number, 100u + number);
    pt_link_pause(&context, &links[1]);
    turn(0);
    CHECK_EQUAL(heard_of[1].frames, 0);
    pt_link_resume(&context, &links[1]);
    pt_plain_sink_init(&plain, &sink, 4096 - FRAME_SIZE);
    CHECK(pt_loop_turn(&context, 0, events, EVENTS, &sink) >= 0);
    CHECK_EQUAL(plain.count, 5);
    for (uint32_t number = 0; number < plain.count; number++) {
        CHECK_EQUAL(frames[number].kind, PT_EVENT_FRAME);
        CHECK_EQUAL(frames[number].tag, 1);
        CHECK_EQUAL(frames[number].len, 100 + number);
        CHECK_EQUAL(frames[number].sequence, number);
        CHECK_EQUAL(payloads[frames[number].offset + 1], number);
    }
    close_world();
}

int main(void)
{
    RUN(messages_arrive_once_whole_and_in_order);
    RUN(a_slot_that_is_done_within_the_call_is_counted_once);
    RUN(a_refused_send_asks_the_platform_for_slots);
    RUN(a_turn_hands_over_waits_and_reads_each_link_before_its_completions);
    RUN(an_idle_pair_soon_holds_no_buffer_and_waits_without_end);
    RUN(small_messages_of_a_turn_leave_together);
    RUN(a_sender_is_told_to_yield);
    RUN(a_message_that_is_too_long_is_refused);
    RUN(the_sink_bounds_what_a_turn_reads);
    RUN(a_paused_link_is_not_read_and_loses_nothing);
    RUN(a_frame_that_stays_cut_ends_its_link_in_time);
    RUN(a_frame_whose_rest_has_come_is_never_late);
    RUN(the_rest_of_a_frame_needs_no_other_memory);
    RUN(when_memory_is_scarce_the_stillest_link_is_named);
    RUN(a_turn_takes_a_few_frames_of_a_few_links);
    RUN(a_closed_link_is_in_no_list);
    RUN(a_bad_frame_ends_its_link_alone);
    RUN(no_ready_link_starves);
    RUN(timers_are_never_early_and_come_in_order);
    RUN(a_watch_reports_what_it_wants);
    RUN(a_context_refuses_what_it_cannot_work_with);
    RUN(the_plain_sink_keeps_every_frame);
    return check_end();
}
