/* A link in a world in memory: how it ends, what is not acknowledged then, and sends that block. */
#include "pt_loop_inside.h"

#include "loop_world.h"
#include "pairs.h"

static void both_sides_end_in_order(void)
{
    open_world(&async_ops, 1);
    here.write_limit = 100;
    here.room = 150;
    for (uint16_t number = 0; number < 3; number++)
        CHECK(send_number(0, number, 400) >= 0);
    pt_link_shut(&context, &links[0]);
    CHECK_EQUAL(send_number(0, 3, 10), PT_ERR_NOT_CONNECTED);
    turns(60);
    CHECK_EQUAL(heard_of[1].frames, 3); /* shut is not before what was accepted has left */
    CHECK_EQUAL(heard_of[0].sent, 3);
    CHECK_EQUAL(heard_of[1].finished, 1);
    CHECK_EQUAL(heard_of[0].closed, 0);
    CHECK(send_number(1, 0, 20) >= 0); /* the other half is still open */
    pt_link_shut(&context, &links[1]);
    turns(6);
    CHECK_EQUAL(heard_of[0].frames, 1);
    CHECK_EQUAL(heard_of[0].closed, 1);
    CHECK_EQUAL(heard_of[1].closed, 1);
    CHECK_EQUAL(heard_of[0].closed_code, PT_OK);
    CHECK_EQUAL(heard_of[1].closed_code, PT_OK);
    CHECK_EQUAL(here.finished, 2);
    close_world();
}

static void an_end_within_a_frame_is_a_fault(void)
{
    open_world(&async_ops, 1);
    memcpy(here.pipes[1].bytes, "PTMG", 4);
    here.pipes[1].len = 4;
    here.pipes[1].ended = 1;
    turns(3);
    CHECK_EQUAL(heard_of[1].closed, 1);
    CHECK_EQUAL(heard_of[1].closed_code, PT_ERR_TRUNCATED);
    CHECK_EQUAL(heard_of[1].finished, 0);
    close_world();
}

static void a_broken_connection_accounts_for_every_message(void)
{
    for (int kind = 0; kind < 2; kind++) {
        open_world(kind ? &sync_ops : &async_ops, 1);
        CHECK(send_number(1, 0, 30) >= 0); /* the other side's last word */
        turns(1);
        here.broken = 0;
        uint32_t accepted = 0;
        for (uint16_t number = 0; number < 3; number++)
            accepted += send_number(0, number, 1000) >= 0;
        here.pipes[0].ended = 1;
        turns(5);
        CHECK_EQUAL(heard_of[0].frames, 1);
        CHECK_EQUAL(heard_of[0].closed, 1);
        CHECK_EQUAL(heard_of[0].closed_code, PT_ERR_CONNECTION_CLOSED);
        CHECK(accepted > 0);
        CHECK_EQUAL(heard_of[0].sent + heard_of[0].failed + pt_link_pending(&links[0]), accepted);
        close_world();
    }
}

static void a_frame_may_take_as_long_as_its_link_is_told(void)
{
    open_world(&async_ops, 2);
    memcpy(here.pipes[1].bytes, "PTMG\1\1\0\0\0\144abc", 13);
    here.pipes[1].len = 13;
    memcpy(here.pipes[3].bytes, "PTMG\1\1\0\0\0\144abc", 13);
    here.pipes[3].len = 13;
    pt_link_set_frame_timeout(&context, &links[3], 500);
    turn(0);
    pt_link_set_frame_timeout(&context, &links[1], 20000); /* its frame is cut already */
    pt_link_set_frame_timeout(&context, &links[0], 20000); /* no frame of it is */
    for (int round = 0; round < 200 && heard_of[3].closed == 0; round++)
        turn(-1);
    CHECK_EQUAL(heard_of[3].closed_code, PT_ERR_TIMEOUT);
    CHECK(here.now_ms >= 500 && here.now_ms < PT_PARTIAL_FRAME_MS);
    for (int round = 0; round < 200 && heard_of[1].closed == 0; round++)
        turn(-1);
    CHECK_EQUAL(heard_of[1].closed_code, PT_ERR_TIMEOUT);
    CHECK(here.now_ms >= 20000 && here.now_ms <= 20000 + 3 * 1000 / PT_TICKS_PER_SECOND);
    CHECK_EQUAL(heard_of[0].closed, 0);
    close_world();
}

/* Messages of link 0 that were reported as sent and hold a byte that is not acknowledged. ends:
 * where each message ends in the stream. */
static uint32_t count_waiting(const uint64_t *ends)
{
    uint32_t count = 0;
    while (count < heard_of[0].sent && ends[heard_of[0].sent - 1 - count] > here.acknowledged)
        count++;
    return count;
}

static void each_write_that_is_not_acknowledged_is_unconfirmed_and_no_other(void)
{
    uint64_t ends[PT_LINK_NOTES];
    open_world(&telling_ops, 1);
    for (uint16_t number = 0; number < PT_LINK_NOTES; number++) {
        CHECK(send_number(0, number, 90) >= 0);
        turns(1);
        ends[number] = links[0].sent_bytes;
    }
    CHECK_EQUAL(heard_of[0].sent, PT_LINK_NOTES);
    CHECK_EQUAL(here.asked, 0);
    for (; here.acknowledged <= links[0].sent_bytes; here.acknowledged++)
        CHECK_EQUAL(pt_link_unconfirmed(&context, &links[0]), count_waiting(ends));
    here.acknowledged = ends[0] + 1;
    here.broken = 0;
    CHECK(send_number(0, PT_LINK_NOTES, 90) >= 0);
    here.pipes[0].ended = 1;
    turns(3);
    CHECK_EQUAL(heard_of[0].closed, 1);
    here.acknowledged = links[0].sent_bytes; /* too late */
    CHECK_EQUAL(pt_link_unconfirmed(&context, &links[0]), PT_LINK_NOTES - 1);
    CHECK_EQUAL(pt_link_close(&context, &links[0]), 0);
    CHECK_EQUAL(pt_link_unconfirmed(&context, &links[0]), 0);
    close_world();
}

static void an_idle_link_holds_no_memory_for_notes(void)
{
    open_world(&telling_ops, 1);
    for (uint16_t number = 0; number < 3; number++) {
        CHECK(send_number(0, number, 90) >= 0);
        turns(1);
    }
    here.now_ms += PT_REST_MS + 20;
    turns(2);
    uint64_t spare = context.spare != NULL;
    CHECK_EQUAL(memory_lent(pool), 1 + spare); /* some wait for their acknowledgement */
    here.now_ms += 2 * PT_NOTES_REST_MS;
    turns(2);
    CHECK_EQUAL(memory_lent(pool), 1 + spare);
    CHECK_EQUAL(pt_link_unconfirmed(&context, &links[0]), 3);
    here.acknowledged = links[0].sent_bytes;
    here.now_ms += 2 * PT_NOTES_REST_MS;
    turns(2);
    CHECK_EQUAL(memory_lent(pool), spare);
    CHECK(send_number(0, 3, 90) >= 0);
    turns(1);
    CHECK_EQUAL(pt_link_unconfirmed(&context, &links[0]), 1);
    close_world();
}

static void no_write_that_is_not_acknowledged_is_forgotten(void)
{
    enum { MESSAGES = 40000 };
    static uint64_t ends[MESSAGES + 1];
    open_world(&telling_ops, 1);
    uint32_t accepted = 0, most = 0;
    while (accepted < MESSAGES) {
        here.write_limit = draw(3) ? SIZE_MAX : 1 + draw(700);
        for (uint32_t burst = draw(6); burst != 0 && accepted < MESSAGES; burst--) {
            uint32_t len = 2 + draw(500);
            if (send_number(0, (uint16_t)accepted, len) < 0)
                break;
            accepted++;
            ends[accepted] = ends[accepted - 1] + len + PT_FRAME_OVERHEAD;
        }
        /* also before the turn: what it has not reported yet is not to be taken back */
        if (draw(2))
            turns(1);
        uint64_t waiting = links[0].sent_bytes - here.acknowledged;
        if (draw(40) == 0)
            here.acknowledged += waiting == 0 ? 0 : draw((uint32_t)waiting) + 1;
        uint32_t least_count = count_waiting(ends + 1);
        unsigned asked = here.asked;
        uint32_t count = pt_link_unconfirmed(&context, &links[0]);
        here.asked = asked;
        CHECK(count >= least_count && count <= heard_of[0].sent);
        if (here.acknowledged == links[0].sent_bytes)
            CHECK_EQUAL(count, 0);
        most = count > most ? count : most;
        turns(1);
    }
    CHECK(here.asked <= context.turns / (PT_LINK_NOTES / 2) + 1);
    CHECK(most > 8 * PT_LINK_NOTES); /* so notes were joined */
    close_world();
}

static void without_memory_a_link_waits_and_then_goes_on(void)
{
    open_world(&async_ops, 1);
    send_number(0, 0, 100);
    turns(2);
    REQUIRE(context.spare != NULL);
    pt_pool_release(pool, context.spare, 0);
    context.spare = NULL;
    pt_pool_trim(pool);
    account.dry = 1;
    CHECK_EQUAL(send_number(0, 1, 100), PT_ERR_NO_MEMORY);

    /* Bytes that come now stay where they are: reading them could need a staging buffer. */
    const pt_frame frame = {
        .payload = (const uint8_t *)"\0\1", .payload_len = 2, .type = PT_FRAME_DATA, .sequence = 1};
    here.pipes[1].len = (size_t)pt_frame_encode(&frame, here.pipes[1].bytes, PIPE_SIZE);
    turns(3);
    CHECK_EQUAL(heard_of[1].frames, 1);
    CHECK_EQUAL(context.starved_count, 1);
    int limit = pt_loop_next_timeout(&context);
    CHECK(limit >= 0 && limit <= 10);
    account.dry = 0;
    turns(2);
    CHECK_EQUAL(heard_of[1].frames, 2);
    CHECK_EQUAL(context.starved_count, 0);
    close_world();
}

static void a_slot_that_the_platform_holds_outlives_its_link(void)
{
    open_world(&async_ops, 1);
    here.held = 1;
    for (uint16_t number = 0; number < 3; number++)
        CHECK(send_number(0, number, 1000) >= 0);
    turn(0);
    CHECK_EQUAL(pt_link_close(&context, &links[0]), 3);
    CHECK_EQUAL(pt_link_pending(&links[0]), 3);
    CHECK(memory_lent(pool) >= 3);
    for (uint8_t index = 0; index < DEPTH; index++) {
        if (slots[0][index].state == PT_SLOT_ABANDONED)
            pt_pipeline_complete(&links[0].pipeline, index, PT_OK);
    }
    CHECK_EQUAL(pt_link_close(&context, &links[0]), 0);
    close_world();
}

/* What an ended link reports afterwards must arm nothing: its memory goes, and a timer in it would
 * stay in the wheel. */
static void a_link_that_ended_leaves_no_timer_behind(void)
{
    open_world(&async_ops, 1);
    here.held = 1;
    here.room = 1500;
    for (uint16_t number = 0; number < 3; number++)
        CHECK(send_number(0, number, 1000) >= 0);
    turn(0);
    CHECK(links[0].blocked);
    for (uint8_t index = 0; index < 3; index++)
        pt_pipeline_complete(&links[0].pipeline, index,
                             index == 1 ? PT_ERR_CONNECTION_CLOSED : PT_OK);
    here.broken = 0;
    here.pipes[0].ended = 1;
    here.room = PIPE_SIZE;
    turn(0);
    CHECK_EQUAL(heard_of[0].closed, 1);
    CHECK_EQUAL(heard_of[0].sent,
                2); /* the third, which waited behind the failure, was freed after the end */
    CHECK_EQUAL(heard_of[0].failed, 1);
    CHECK(pt_pipeline_keeps(&links[0].pipeline));
    CHECK(!pt_timer_is_armed(&links[0].rest_timer));
    CHECK(!pt_timer_is_armed(&links[0].frame_timer));
    CHECK_EQUAL(pt_link_close(&context, &links[0]), 0);
    CHECK_EQUAL(context.wheel.armed_count,
                2); /* the pool's, and the other side's, which waits for the rest of a frame */
    CHECK(pt_timer_is_armed(&links[1].frame_timer));
    memset(&links[0], 0xA5, sizeof links[0]);
    memset(slots[0], 0xA5, sizeof slots[0]);
    for (int round = 0; round < 10; round++)
        turn(PT_REST_MS);
    CHECK(here.now_ms > 2 * PT_REST_MS);
    const uint8_t *memory = (const uint8_t *)&links[0];
    for (size_t at = 0; at < sizeof links[0]; at++)
        REQUIRE(memory[at] == 0xA5);
    memset(&links[0], 0, sizeof links[0]);
    memset(slots[0], 0, sizeof slots[0]);
    close_world();
}

/* S0.93 and S0.94 of the pipeline's source, row by row: {asynchronous world, slots taken, blocking
 * allowed} -> {result, slots handed over, blocking sends}. */
static void the_blocking_way_is_taken_only_when_every_slot_is_taken(void)
{
    static const struct {
        const char *name;
        const pt_platform_ops *ops;
        send_function *send;
        int taken;
        int result;
        unsigned sent_async, sent_sync, waits; /* by this send */
    } rows[] = {
        {"async, free, wait", &async_ops, pt_link_send, 0, PT_SEND_NEEDS_TURN, 0, 0, 0},
        {"async, free, sync", &async_ops, pt_link_send_sync, 0, PT_SEND_NEEDS_TURN, 0, 0, 0},
        {"async, taken, wait", &async_ops, pt_link_send, 1, PT_ERR_WOULD_BLOCK, 0, 0, 0},
        {"async, taken, sync", &async_ops, pt_link_send_sync, 1, PT_SEND_NEEDS_TURN, 0, 1, 4},
        {"async alone, taken, sync", &async_only_ops, pt_link_send_sync, 1, PT_ERR_WOULD_BLOCK, 0,
         0, 0},
        {"sync, free, wait", &sync_ops, pt_link_send, 0, PT_SEND_NEEDS_TURN, 0, 0, 0},
        {"sync, free, sync", &sync_ops, pt_link_send_sync, 0, PT_SEND_NEEDS_TURN, 0, 1, 0},
    };
    for (size_t row = 0; row < sizeof rows / sizeof rows[0]; row++) {
        check_case = rows[row].name;
        open_world(rows[row].ops, 1);
        uint16_t number = 0;
        if (rows[row].taken) {
            fill_slots();
            CHECK_EQUAL(send_number(0, DEPTH, 100),
                        PT_ERR_WOULD_BLOCK); /* all is with the platform now */
            number = DEPTH;
        }
        here.flow = 1000;
        here.sent_async = 0;
        uint8_t sequence = links[0].pipeline.send_seq;
        CHECK_EQUAL(send_number_by(rows[row].send, 0, number, 100), rows[row].result);
        CHECK_EQUAL(here.sent_async, rows[row].sent_async);
        CHECK_EQUAL(here.sent_sync, rows[row].sent_sync);
        CHECK_EQUAL(here.waits, rows[row].waits);
        CHECK_EQUAL(links[0].sync_sends,
                    rows[row].send == pt_link_send_sync ? rows[row].sent_sync : 0);
        uint32_t accepted = number + (rows[row].result >= 0 ? 1u : 0u);
        CHECK_EQUAL(links[0].pipeline.send_seq, sequence + (rows[row].result >= 0));
        CHECK_EQUAL(pt_link_pending(&links[0]), accepted);
        here.room = PIPE_SIZE;
        turns(10);
        CHECK_EQUAL(heard_of[0].sent, accepted);
        CHECK_EQUAL(heard_of[1].frames, accepted);
        close_world();
    }
    check_case = "";

    /* Any other refusal is told as it is, and at once: also want of memory, and a link that is not
     * there yet, or not any more. */
    static const pt_platform_ops *const worlds[] = {&async_ops, &sync_ops};
    for (size_t kind = 0; kind < 2; kind++) {
        open_world(worlds[kind], 1);
        account.dry = 1;
        CHECK_EQUAL(send_number_by(pt_link_send_sync, 0, 0, 100), PT_ERR_NO_MEMORY);
        CHECK_EQUAL(links[0].pipeline.refusals, 1); /* nobody tried another way */
        account.dry = 0;
        CHECK_EQUAL(send_number_by(pt_link_send_sync, 2, 0, 100), PT_ERR_NOT_CONNECTED);
        CHECK_EQUAL(send_number_by(pt_link_send, 2, 0, 100), PT_ERR_NOT_CONNECTED);
        CHECK_EQUAL(pt_link_close(&context, &links[0]), 0);
        CHECK_EQUAL(send_number_by(pt_link_send_sync, 0, 0, 100), PT_ERR_NOT_CONNECTED);
        CHECK_EQUAL(here.sent_async + here.sent_sync + here.waits, 0);
        CHECK_EQUAL(links[0].sync_sends + links[0].pipeline.send_seq, 0);
        close_world();
    }
    for (size_t kind = 0; kind < 2; kind++) {
        open_world(worlds[kind], 1);
        CHECK_EQUAL(send_number_by(pt_link_send_sync, 0, 0, 1024), PT_SEND_NEEDS_TURN);
        links[0].max_message = 500;
        CHECK_EQUAL(send_number_by(pt_link_send_sync, 0, 1, 501), PT_ERR_MESSAGE_TOO_LARGE);
        CHECK_EQUAL(pt_link_send_sync(&context, &links[0], 99, 0, NULL, 0), PT_ERR_INVALID_PARAM);
        CHECK_EQUAL(links[0].pipeline.send_seq, 1);
        turns(2);
        pt_link_shut(&context, &links[0]);
        CHECK_EQUAL(send_number_by(pt_link_send_sync, 0, 1, 20), PT_ERR_NOT_CONNECTED);
        CHECK_EQUAL(here.waits, 0);
        close_world();
    }
}

/* T.3: whatever mixture of both ways, nothing is overtaken, lost or doubled, and the sequence has
 * no gap (hear_frame checks number and sequence). */
static void a_blocking_send_overtakes_nothing(void)
{
    unsigned blocked = 0;
    for (int kind = 0; kind < 60; kind++) {
        open_world(kind % 3 ? &async_ops : &async_ms_ops, 1);
        here.backward = kind % 2;
        here.read_limit = 1 + draw(2000);
        uint16_t next = 0;
        for (int round = 0;
             round < 30000 && (next < 300 || heard_of[1].frames < 300 || heard_of[0].sent < 300);
             round++) {
            here.write_limit = 1 + draw(3000);
            here.room = draw(2) ? draw(PIPE_SIZE) : draw(100);
            here.flow = 1 + draw(500);
            here.held = draw(4) == 0;
            if (next < 300) {
                size_t owed = here.pipes[1].len;
                for (uint8_t index = 0; index < DEPTH; index++)
                    owed +=
                        slots[0][index].state != PT_SLOT_FREE ? slots[0][index].message_len : 0u;
                int blocks = draw(3) == 0 &&
                             owed + SLOT_SIZE <=
                                 PIPE_SIZE; /* else the pipe is full before the blocking send */
                here.held &= !blocks;
                int result = send_number_by(blocks ? pt_link_send_sync : pt_link_send, 0, next,
                                            2 + draw(draw(3) ? 60 : 700));
                next = (uint16_t)(next + (result >= 0));
                CHECK(result >= 0 || (result == PT_ERR_WOULD_BLOCK && !blocks));
            }
            if (draw(3) == 0)
                turn(0);
        }
        CHECK_EQUAL(heard_of[0].sent, 300);
        CHECK_EQUAL(heard_of[1].frames, 300);
        CHECK_EQUAL(heard_of[0].failed + heard_of[0].closed, 0);
        CHECK_EQUAL(links[0].pipeline.send_seq, 300 & 0xFF);
        blocked += here.waits;
        here.held = 0;
        close_world();
    }
    CHECK(blocked > 100);
}

static void a_blocking_send_gives_up_in_time_and_changes_nothing(void)
{
    static const pt_platform_ops *const worlds[] = {
        &async_ops, &async_ms_ops}; /* 60 ticks a second, and 1,000 */
    for (size_t kind = 0; kind < 2; kind++) {
        open_world(worlds[kind], 1);
        fill_slots();
        uint64_t frames = links[0].pipeline.frames;
        for (int again = 1; again <= 2; again++) {
            CHECK_EQUAL(send_number_by(pt_link_send_sync, 0, DEPTH, 100), PT_ERR_TIMEOUT);
            CHECK(here.now_ms >= 5000u * (unsigned)again - 20u * (unsigned)again &&
                  here.now_ms <= 5000u * (unsigned)again);
            CHECK_EQUAL(links[0].pipeline.send_seq, DEPTH);
            CHECK_EQUAL(links[0].pipeline.frames, frames);
            CHECK_EQUAL(pt_link_pending(&links[0]), DEPTH);
            CHECK_EQUAL(links[0].state, PT_LINK_OPEN);
        }
        CHECK_EQUAL(here.sent_sync, 0);
        here.flow = 100; /* the other side goes on */
        CHECK(send_number_by(pt_link_send_sync, 0, DEPTH, 100) >= 0);
        turns(10);
        CHECK_EQUAL(heard_of[0].sent, DEPTH + 1);
        CHECK_EQUAL(heard_of[1].frames, DEPTH + 1);
        close_world();
    }
}

static void a_blocking_send_ends_when_the_connection_breaks(void)
{
    open_world(&async_ops, 1);
    fill_slots();
    here.breaks = 1;
    CHECK_EQUAL(send_number_by(pt_link_send_sync, 0, DEPTH, 100), PT_ERR_NOT_CONNECTED);
    CHECK_EQUAL(here.waits, 1);
    CHECK_EQUAL(pt_link_pending(&links[0]), DEPTH);
    here.pipes[0].ended = 1;
    turns(2);
    CHECK_EQUAL(heard_of[0].closed, 1);
    CHECK_EQUAL(heard_of[0].closed_code, PT_ERR_CONNECTION_CLOSED);
    CHECK_EQUAL(heard_of[0].sent + heard_of[0].failed + pt_link_pending(&links[0]), DEPTH);
    close_world();

    /* And when it breaks under the blocking send itself, the message was accepted and has its
     * outcome with the others. */
    open_world(&sync_ops, 1);
    here.broken = 0;
    CHECK(send_number_by(pt_link_send_sync, 0, 0, 100) >= 0);
    here.pipes[0].ended = 1;
    turns(2);
    CHECK_EQUAL(heard_of[0].closed, 1);
    CHECK_EQUAL(heard_of[0].sent + heard_of[0].failed + pt_link_pending(&links[0]), 1);
    close_world();
}

/* Waiting inside a call must not cost others their turn: no event is delivered, and what was ready
 * is ready. */
static void a_blocking_send_leaves_others_to_the_next_turn(void)
{
    static pt_watch watch;
    open_world(&async_ops, 2);
    fill_slots();
    turn(0);
    const pt_frame frame = {
        .payload = (const uint8_t *)"\0\0", .payload_len = 2, .type = PT_FRAME_DATA};
    here.pipes[2].len = (size_t)pt_frame_encode(&frame, here.pipes[2].bytes, PIPE_SIZE);
    CHECK_EQUAL(pt_watch_open(&context, &watch, 77, 5, PT_WANT_READ), PT_OK);
    here.ready_watch = 77;
    CHECK_EQUAL(heard_of[2].frames, 0);
    CHECK_EQUAL(pt_loop_wait(&context, 1000), PT_OK); /* some are in the ready list already */
    uint32_t ready_count = context.ready_count;
    CHECK(ready_count > 0);
    uint64_t wait_calls = context.wait_calls;
    here.flow = 1000;
    CHECK(send_number_by(pt_link_send_sync, 0, DEPTH, 100) >= 0);
    CHECK_EQUAL(context.ready_count, ready_count);
    CHECK_EQUAL(context.wait_calls, wait_calls);
    CHECK_EQUAL(heard_of[2].frames + heard_of[5].ready + heard_of[0].sent, 0);
    turn(0);
    CHECK_EQUAL(heard_of[2].frames, 1);
    CHECK_EQUAL(heard_of[5].ready, PT_READY_READ);
    CHECK_EQUAL(heard_of[0].sent, DEPTH + 1);
    pt_watch_close(&context, &watch);
    close_world();
}

/* Link 0 in that state, with a frame on its way where one can be. */
static void enter_link(uint8_t state)
{
    open_world(&async_ops, 1);
    here.room = state == PT_LINK_FINISHED ? PIPE_SIZE : 0;
    CHECK(send_number(0, 0, 100) >= 0);
    pt_link_push(&context, &links[0]);
    if (state == PT_LINK_SHUT || state == PT_LINK_FINISHED)
        pt_link_shut(&context, &links[0]);
    here.broken = state == PT_LINK_BROKEN ? 0 : -1;
    links[0].blocked = 0;
    if (state == PT_LINK_BROKEN)
        pt_link_push(&context, &links[0]);
    if (state == PT_LINK_ENDED)
        pt_link_end(&context, &links[0], PT_OK, 0);
    if (state == PT_LINK_NONE)
        pt_link_close(&context, &links[0]);
    CHECK_EQUAL(links[0].state, state);
}

static int take_link_step(uint8_t state, uint8_t step)
{
    (void)state;
    if (step == PT_LINK_STEP_OPEN)
        pt_link_open(&context, &links[0], 0, 0, slots[0], DEPTH, SLOT_SIZE, 1, 1024,
                     pt_message_format(0));
    else if (step == PT_LINK_STEP_SHUT)
        pt_link_shut(&context, &links[0]);
    else if (step == PT_LINK_STEP_END)
        pt_link_end(&context, &links[0], PT_OK, 0);
    else if (step == PT_LINK_STEP_CLOSE)
        pt_link_close(&context, &links[0]);
    else { /* the frame leaves, or finds that the connection is broken */
        here.room = PIPE_SIZE;
        here.broken = step == PT_LINK_STEP_BREAK ? 0 : -1;
        pt_link_push(&context, &links[0]);
    }
    return links[0].state;
}

static void each_step_in_each_state_does_what_the_table_says(void)
{
    static const machine link = {pt_link_next,
                                 enter_link,
                                 take_link_step,
                                 close_world,
                                 {
                                     /* open, shut, finish, break, end, close */
                                     "1---!-", /* NONE */
                                     "-2-45a", /* OPEN: what is closed is ended before */
                                     "--345a", /* SHUT */
                                     "----5a", /* FINISHED */
                                     "----5a", /* BROKEN */
                                     "----!0", /* ENDED */
                                 }};
    check_pairs(&link);
}

int main(void)
{
    RUN(both_sides_end_in_order);
    RUN(an_end_within_a_frame_is_a_fault);
    RUN(a_broken_connection_accounts_for_every_message);
    RUN(each_write_that_is_not_acknowledged_is_unconfirmed_and_no_other);
    RUN(a_frame_may_take_as_long_as_its_link_is_told);
    RUN(without_memory_a_link_waits_and_then_goes_on);
    RUN(a_slot_that_the_platform_holds_outlives_its_link);
    RUN(a_link_that_ended_leaves_no_timer_behind);
    RUN(the_blocking_way_is_taken_only_when_every_slot_is_taken);
    RUN(a_blocking_send_overtakes_nothing);
    RUN(a_blocking_send_gives_up_in_time_and_changes_nothing);
    RUN(a_blocking_send_ends_when_the_connection_breaks);
    RUN(a_blocking_send_leaves_others_to_the_next_turn);
    RUN(an_idle_link_holds_no_memory_for_notes);
    RUN(no_write_that_is_not_acknowledged_is_forgotten);
    RUN(each_step_in_each_state_does_what_the_table_says);
    return check_end();
}
