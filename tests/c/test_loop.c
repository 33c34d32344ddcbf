/* One turn of waiting and working, on a world in memory: byte pipes between the two links of a
 * pair, and a clock that moves only when the loop waits. The world can be slow, cut reads and
 * writes anywhere, hold completions back, send synchronously, break, and have no memory. */
#include "pt_loop.h"

#include "check.h"
#include "memory.h"

#define PAIRS      8
#define ENDS       (2 * PAIRS)
#define DEPTH      4
#define SLOT_SIZE  1040
#define PIPE_SIZE  4096
#define EVENTS     (4 * PT_IO_BUDGET + 4)
#define FRAME_SIZE (PT_FRAME_OVERHEAD + 1024)
#define FIRST_TICK 0xFFFFFF00u /* the clock wraps within each test that waits */
#define LATE_MS    15          /* of a tick of 16.7 ms have passed when the world begins */

/* -------------------------------------------------------------------------- the world in memory */

typedef struct pipe {
    uint8_t bytes[PIPE_SIZE];
    size_t len;
    int ended; /* nothing more will be written */
} pipe;

typedef struct world {
    pipe pipes[ENDS]; /* link number n reads its own, and writes that of its partner */
    uint64_t now_ms;  /* since the world began, late within a tick */
    size_t read_limit, write_limit,
        room;        /* bytes of one read, of one write, and that a pipe holds */
    int broken;      /* the end that is broken, or -1 */
    int held;        /* 1: the platform lets go of no slot */
    int backward;    /* 1: of the slots that are done the newest is completed first */
    int ready_watch; /* the handle of a watch that is ready, or -1 */
    size_t flow;     /* bytes of room that come with each wait for one link; 0: the other side takes
                        nothing */
    int breaks;      /* 1: such a wait ends with link 0 broken */
    int instant;     /* 1: a slot is done before the call that hands it over returns */
    uint64_t acknowledged; /* bytes of link 0 that the other side's system has acknowledged */
    unsigned woken, finished, sent_async, sent_sync, waits, asked;
    char calls[64]; /* what the loop asked for, in order: S(end), P(oll completions), R(eceive),
                       each with the link's number, and W(ait) */
} world;

static world here;

static void note_call(char name, const pt_link *link)
{
    size_t len = strlen(here.calls);
    if (len + 3 > sizeof here.calls)
        return;
    here.calls[len++] = name;
    if (link != NULL)
        here.calls[len++] = (char)('0' + link->source.handle);
    here.calls[len] = 0;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t pipe_room(const pipe *into)
{
    return into->len < here.room ? here.room - into->len : 0;
}

static size_t pipe_write(pipe *into, const uint8_t *data, size_t len)
{
    len = least(least(len, here.write_limit), pipe_room(into));
    memcpy(into->bytes + into->len, data, len);
    into->len += len;
    return len;
}

static int world_send(pt_context *context, pt_link *link, const uint8_t *data, uint16_t len)
{
    (void)context;
    pipe *into = &here.pipes[link->source.handle ^ 1];
    here.sent_sync++;
    if (here.broken == link->source.handle)
        return PT_ERR_CONNECTION_CLOSED;
    if (PIPE_SIZE - into->len < len)
        return PT_ERR_TIMEOUT;
    memcpy(into->bytes + into->len, data, len);
    into->len += len;
    return PT_OK;
}

static int world_send_async(pt_context *context, pt_link *link, const uint8_t *data, uint16_t len)
{
    (void)context;
    const pt_send_pipeline *pipeline = &link->pipeline;
    int found = 0;
    for (uint8_t index = 0; index < pipeline->depth; index++)
        found += pipeline->slots[index].state == PT_SLOT_IN_FLIGHT &&
                 pipeline->slots[index].buffer == data && pipeline->slots[index].message_len == len;
    CHECK_EQUAL(found, 1);
    here.sent_async++;
    note_call('S', link);
    if (here.instant) {
        REQUIRE(pipe_write(&here.pipes[link->source.handle ^ 1], data, len) == len);
        for (uint8_t index = 0; index < pipeline->depth; index++) {
            if (pipeline->slots[index].buffer == data)
                pt_pipeline_complete(&link->pipeline, index, PT_OK);
        }
    }
    return PT_OK;
}

static int world_wait_completions(pt_context *context, pt_link *link, int timeout_ms)
{
    (void)context;
    CHECK(timeout_ms > 0 && link->pipeline.pending_count != 0);
    here.waits++;
    here.now_ms += here.flow != 0 || here.breaks ? 1 : (uint64_t)timeout_ms;
    here.room = least(here.room + here.flow, PIPE_SIZE);
    if (here.breaks)
        here.broken = 0;
    return PT_OK;
}

static int world_poll(pt_context *context, pt_link *link)
{
    (void)context;
    pt_send_pipeline *pipeline = &link->pipeline;
    uint8_t done[DEPTH];
    int count = 0;
    note_call('P', link);
    if (here.broken == link->source.handle) {
        link->system_error = 104;
        return PT_ERR_CONNECTION_CLOSED;
    }
    for (uint8_t step = 0, index = pipeline->head; step < pipeline->depth;
         step++, index = (uint8_t)((index + 1) % pipeline->depth)) {
        pt_send_slot *slot = &pipeline->slots[index];
        if (slot->state != PT_SLOT_IN_FLIGHT)
            continue;
        size_t taken =
            pipe_write(&here.pipes[link->source.handle ^ 1], slot->buffer + slot->sent_len,
                       (size_t)slot->message_len - slot->sent_len);
        slot->sent_len = (uint16_t)(slot->sent_len + taken);
        link->sent_bytes += taken;
        if (slot->sent_len < slot->message_len) {
            link->blocked = 1;
            break;
        }
        if (!here.held)
            done[count++] = index;
    }
    for (int index = 0; index < count; index++)
        pt_pipeline_complete(pipeline, done[here.backward ? count - 1 - index : index], PT_OK);
    return count;
}

static int world_receive(pt_context *context, pt_link *link, uint8_t *buffer, uint32_t size)
{
    (void)context;
    pipe *from = &here.pipes[link->source.handle];
    size_t len = least(least(size, here.read_limit), from->len);
    note_call('R', link);
    link->system_error = 0;
    if (len == 0)
        return from->ended ? PT_ERR_CONNECTION_CLOSED : PT_ERR_WOULD_BLOCK;
    memcpy(buffer, from->bytes, len);
    memmove(from->bytes, from->bytes + len, from->len - len);
    from->len -= len;
    return (int)len;
}

static int world_finish(pt_context *context, pt_link *link)
{
    (void)context;
    here.pipes[link->source.handle ^ 1].ended = 1;
    here.finished++;
    return PT_OK;
}

static int world_watch(pt_context *context, pt_source *source)
{
    (void)context;
    source->registered = source->interest;
    return PT_OK;
}

static void world_forget(pt_context *context, pt_source *source)
{
    (void)context;
    source->registered = 0xFF;
    if (source->kind != PT_SOURCE_LINK || here.held)
        return;
    pt_send_pipeline *pipeline = &((pt_link *)source)->pipeline;
    for (uint8_t index = 0; index < pipeline->depth; index++) {
        if (pipeline->slots[index].state == PT_SLOT_IN_FLIGHT)
            pt_pipeline_complete(pipeline, index, PT_ERR_CONNECTION_CLOSED);
    }
}

/* 1: a slot is done, which a notification tells. */
static int is_done(const pt_send_pipeline *pipeline)
{
    int done = 0;
    for (uint8_t index = 0; index < pipeline->depth && !here.held; index++)
        done |= pipeline->slots[index].state == PT_SLOT_IN_FLIGHT &&
                pipeline->slots[index].sent_len == pipeline->slots[index].message_len;
    return done;
}

static int world_wait(pt_context *context, int timeout_ms)
{
    note_call('W', NULL);
    for (pt_source *source = context->sources; source != NULL; source = source->next) {
        int ready = 0;
        if (source->registered == 0xFF)
            continue;
        if (source->kind == PT_SOURCE_WATCH) {
            ready = here.ready_watch == source->handle ? source->registered : 0;
        } else {
            const pipe *from = &here.pipes[source->handle];
            if ((source->registered & PT_WANT_READ) && (from->len > 0 || from->ended))
                ready |= PT_READY_READ;
            if (((source->registered & PT_WANT_WRITE) &&
                 pipe_room(&here.pipes[source->handle ^ 1]) > 0) ||
                is_done(&((pt_link *)source)->pipeline))
                ready |= PT_READY_WRITE;
        }
        if (ready != 0) {
            source->ready = (uint8_t)(source->ready | ready);
            pt_context_ready(context, source);
        }
    }
    if (context->ready_count == 0 && timeout_ms > 0)
        here.now_ms += (uint64_t)timeout_ms;
    return (int)context->ready_count;
}

static void world_wake(pt_context *context)
{
    context->woken = 1;
    here.woken++;
}

static uint32_t world_clock(pt_context *context)
{
    (void)context;
    return FIRST_TICK + (uint32_t)((here.now_ms + LATE_MS) * PT_TICKS_PER_SECOND / 1000);
}

static uint32_t world_clock_ms(pt_context *context)
{
    (void)context;
    return FIRST_TICK + (uint32_t)here.now_ms;
}

/* As the pipeline says, but none while the platform keeps them back. */
static int world_slots_available(pt_context *context, pt_link *link)
{
    (void)context;
    here.asked++;
    return here.held ? 0 : pt_pipeline_available(&link->pipeline);
}

static const pt_platform_ops async_ops = {
    .name = "memory",
    .tcp_send = world_send,
    .tcp_send_async = world_send_async,
    .poll_send_completions = world_poll,
    .wait_send_completions = world_wait_completions,
    .send_slots_available = world_slots_available,
    .tcp_receive = world_receive,
    .tcp_finish = world_finish,
    .watch = world_watch,
    .forget = world_forget,
    .wait = world_wait,
    .wake = world_wake,
    .clock = world_clock,
    .ticks_per_second = PT_TICKS_PER_SECOND,
};

static uint32_t world_unacknowledged(pt_context *context, const pt_link *link)
{
    (void)context;
    here.asked++;
    return link->source.handle == 0 ? (uint32_t)(link->sent_bytes - here.acknowledged) : 0;
}

/* Where a completed send is not an acknowledged one. */
static const pt_platform_ops telling_ops = {
    .name = "memory, told of acknowledgements",
    .tcp_send_async = world_send_async,
    .poll_send_completions = world_poll,
    .tcp_receive = world_receive,
    .tcp_finish = world_finish,
    .unacknowledged = world_unacknowledged,
    .watch = world_watch,
    .forget = world_forget,
    .wait = world_wait,
    .wake = world_wake,
    .clock = world_clock,
    .ticks_per_second = PT_TICKS_PER_SECOND,
};

/* The same on a clock of milliseconds, as POSIX has. */
static const pt_platform_ops async_ms_ops = {
    .name = "memory, in milliseconds",
    .tcp_send = world_send,
    .tcp_send_async = world_send_async,
    .poll_send_completions = world_poll,
    .wait_send_completions = world_wait_completions,
    .tcp_receive = world_receive,
    .tcp_finish = world_finish,
    .watch = world_watch,
    .forget = world_forget,
    .wait = world_wait,
    .wake = world_wake,
    .clock = world_clock_ms,
    .ticks_per_second = 1000,
};

/* There is nothing to fall back to. */
static const pt_platform_ops async_only_ops = {
    .name = "memory, asynchronous alone",
    .tcp_send_async = world_send_async,
    .poll_send_completions = world_poll,
    .tcp_receive = world_receive,
    .tcp_finish = world_finish,
    .watch = world_watch,
    .forget = world_forget,
    .wait = world_wait,
    .wake = world_wake,
    .clock = world_clock,
    .ticks_per_second = PT_TICKS_PER_SECOND,
};

static const pt_platform_ops sync_ops = {
    .name = "memory, synchronous",
    .tcp_send = world_send,
    .tcp_receive = world_receive,
    .tcp_finish = world_finish,
    .watch = world_watch,
    .forget = world_forget,
    .wait = world_wait,
    .wake = world_wake,
    .clock = world_clock,
    .ticks_per_second = PT_TICKS_PER_SECOND,
};

/* ----------------------------------------------------------------------------- what tests share */

static const pt_pool_class classes[] = {{64, 64}, {FRAME_SIZE, 32}, {SLOT_SIZE, 64}};
static memory_account account;
static pt_pool *pool;
static pt_context context;
static pt_link links[ENDS];
static pt_send_slot slots[ENDS][DEPTH];
static uint8_t *receive_buffer;
static uint32_t receive_buffer_size;

/* What a turn brought, added up: events by kind of each link, payload bytes and frames of each. */
typedef struct heard {
    uint32_t sent, failed, freed, finished, closed, ready, timers;
    int32_t closed_code, failed_code;
    uint32_t frames;
    uint64_t bytes;
    uint32_t still_ms;
    uint16_t next_number; /* of the numbered messages, which must come in order */
} heard;

static heard heard_of[ENDS];
static uint32_t timer_tags[64], timer_count;

static int hear_frame(void *unused, uint32_t tag, const pt_frame *frame)
{
    (void)unused;
    REQUIRE(tag < ENDS);
    heard *ear = &heard_of[tag];
    ear->frames++;
    ear->bytes += frame->payload_len;
    if (frame->type == PT_FRAME_DATA && frame->payload_len >= 2) {
        CHECK_EQUAL(frame->payload[0] << 8 | frame->payload[1], ear->next_number);
        CHECK_EQUAL(frame->sequence, ear->next_number & 0xFF);
        for (uint32_t at = 2; at < frame->payload_len; at++) {
            if (frame->payload[at] != (uint8_t)(frame->payload[1] + at)) {
                FAIL("a payload is not what was sent");
                break;
            }
        }
        ear->next_number++;
    }
    return PT_OK;
}

static uint32_t room = UINT32_MAX;
static uint64_t budget; /* of the pool of the next world */

/* One turn; its events are added to heard_of. Returns their number. */
static int turn(int timeout_ms)
{
    static pt_event events[EVENTS];
    const pt_sink sink = {hear_frame, NULL, room};
    int count = pt_loop_turn(&context, timeout_ms, events, EVENTS, &sink);
    for (int index = 0; index < count; index++) {
        const pt_event *event = &events[index];
        if (event->kind == PT_EVENT_TIMER) {
            REQUIRE(timer_count < 64);
            timer_tags[timer_count++] = event->tag;
            continue;
        }
        REQUIRE(event->tag < ENDS);
        heard *ear = &heard_of[event->tag];
        switch (event->kind) {
        case PT_EVENT_SENT:
            if (event->code == PT_OK) {
                ear->sent += event->count;
                ear->freed++;
            } else {
                ear->failed += event->count;
                ear->failed_code = event->code;
            }
            break;
        case PT_EVENT_FINISHED:
            ear->finished++;
            break;
        case PT_EVENT_CLOSED:
            ear->closed++;
            ear->closed_code = event->code;
            break;
        case PT_EVENT_READY:
            ear->ready += event->count;
            break;
        case PT_EVENT_STILL:
            ear->still_ms = event->count;
            break;
        default:
            FAIL("an event of a kind that is none");
        }
    }
    return count;
}

static void turns(int count)
{
    while (count-- > 0)
        turn(0);
}

static void open_world(const pt_platform_ops *ops, int pairs)
{
    memset(&here, 0, sizeof here);
    here.read_limit = here.write_limit = SIZE_MAX;
    here.room = PIPE_SIZE;
    here.broken = here.ready_watch = -1;
    memset(heard_of, 0, sizeof heard_of);
    memset(links, 0, sizeof links);
    timer_count = 0;
    room = UINT32_MAX;
    pool = memory_open_pool(&account, classes, 3, budget);
    receive_buffer_size = PT_FRAME_OVERHEAD + PT_FRAME_MAX_PAYLOAD;
    receive_buffer = malloc(receive_buffer_size);
    REQUIRE(receive_buffer != NULL);
    REQUIRE(pt_context_init(&context, ops, &here, pool, receive_buffer, receive_buffer_size,
                            PT_IO_BUDGET) == PT_OK);
    for (int end = 0; end < 2 * pairs; end++)
        REQUIRE(pt_link_open(&context, &links[end], end, (uint32_t)end, slots[end], DEPTH,
                             SLOT_SIZE, 1, 1024) == PT_OK);
}

static void close_world(void)
{
    here.held = 0;
    for (int end = 0; end < ENDS; end++)
        CHECK_EQUAL(pt_link_close(&context, &links[end]), 0);
    CHECK_EQUAL(pt_context_cleanup(&context), PT_OK);
    CHECK_EQUAL(context.wheel.armed_count, 0);
    CHECK_EQUAL(memory_lent(pool), 0);
    memory_close_pool(pool, &account);
    free(receive_buffer);
}

typedef int send_function(pt_context *, pt_link *, uint8_t, uint8_t, const uint8_t *, uint32_t);

/* Send message number n of a link: its number, then bytes that follow from it. */
static int send_number_by(send_function *send, int end, uint16_t number, uint32_t len)
{
    uint8_t payload[1024];
    payload[0] = (uint8_t)(number >> 8);
    payload[1] = (uint8_t)number;
    for (uint32_t at = 2; at < len; at++)
        payload[at] = (uint8_t)(payload[1] + at);
    return send(&context, &links[end], PT_FRAME_DATA, 0, payload, len);
}

static int send_number(int end, uint16_t number, uint32_t len)
{
    return send_number_by(pt_link_send, end, number, len);
}

/* Take all slots of link 0 with messages 0 to DEPTH - 1, of which the other side has taken nothing.
 */
static void fill_slots(void)
{
    here.room = 0;
    for (uint16_t number = 0; number < DEPTH; number++)
        CHECK(send_number(0, number, 950) >= 0);
    CHECK_EQUAL(pt_pipeline_available(&links[0].pipeline), 0);
}

/* ---------------------------------------------------------------------------------------- tests */

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
    CHECK_EQUAL(pt_watch_set(&context, &watch, 8), PT_ERR_INVALID_PARAM);
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
    const pt_sink sink = {hear_frame, NULL, UINT32_MAX};
    CHECK_EQUAL(
        pt_context_init(&other, &async_ops, NULL, pool, receive_buffer, receive_buffer_size - 1, 1),
        PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(
        pt_context_init(&other, &async_ops, NULL, pool, receive_buffer, receive_buffer_size, 0),
        PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_context_init(&other, &async_ops, NULL, pool, receive_buffer, receive_buffer_size,
                                PT_IO_BUDGET + 1),
                PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(
        pt_context_init(&other, &async_ops, NULL, NULL, receive_buffer, receive_buffer_size, 1),
        PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_loop_turn(&context, 0, events, EVENTS - 1, &sink), PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_link_open(&context, &links[0], 0, 0, slots[0], 0, SLOT_SIZE, 1, 1024),
                PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_link_open(&context, &links[0], 0, 0, slots[0], DEPTH, SLOT_SIZE, 1,
                             PT_FRAME_MAX_PAYLOAD + 1),
                PT_ERR_INVALID_PARAM);
    CHECK_EQUAL(pt_link_open(&context, &links[0], 0, 0, slots[0], DEPTH, SLOT_SIZE, 1, 1024),
                PT_OK);
    CHECK_EQUAL(pt_link_open(&context, &links[0], 0, 0, slots[0], DEPTH, SLOT_SIZE, 1, 1024),
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
    RUN(no_ready_link_starves);
    RUN(timers_are_never_early_and_come_in_order);
    RUN(a_watch_reports_what_it_wants);
    RUN(a_context_refuses_what_it_cannot_work_with);
    RUN(the_plain_sink_keeps_every_frame);
    RUN(an_idle_link_holds_no_memory_for_notes);
    RUN(no_write_that_is_not_acknowledged_is_forgotten);
    return check_end();
}
