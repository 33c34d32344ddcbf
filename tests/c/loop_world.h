/* A world in memory for the tests of the loop and of links: byte pipes between the two links of a
 * pair, and a clock that moves only when the loop waits. The world can be slow, cut reads and
 * writes anywhere, hold completions back, send synchronously, break, and have no memory. */
#ifndef LOOP_WORLD_H
#define LOOP_WORLD_H

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

typedef struct byte_pipe {
    uint8_t bytes[PIPE_SIZE];
    size_t len;
    int ended; /* nothing more will be written */
} byte_pipe;

typedef struct world {
    byte_pipe pipes[ENDS]; /* link number n reads its own, and writes that of its partner */
    uint64_t now_ms;       /* since the world began, late within a tick */
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

static inline void note_call(char name, const pt_link *link)
{
    size_t len = strlen(here.calls);
    if (len + 3 > sizeof here.calls)
        return;
    here.calls[len++] = name;
    if (link != NULL)
        here.calls[len++] = (char)('0' + link->source.handle);
    here.calls[len] = 0;
}

static inline size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline size_t pipe_room(const byte_pipe *into)
{
    return into->len < here.room ? here.room - into->len : 0;
}

static inline size_t pipe_write(byte_pipe *into, const uint8_t *data, size_t len)
{
    len = least(least(len, here.write_limit), pipe_room(into));
    memcpy(into->bytes + into->len, data, len);
    into->len += len;
    return len;
}

static inline int world_send(pt_context *context, pt_link *link, const uint8_t *data, uint16_t len)
{
    (void)context;
    byte_pipe *into = &here.pipes[link->source.handle ^ 1];
    here.sent_sync++;
    if (here.broken == link->source.handle)
        return PT_ERR_CONNECTION_CLOSED;
    if (PIPE_SIZE - into->len < len)
        return PT_ERR_TIMEOUT;
    memcpy(into->bytes + into->len, data, len);
    into->len += len;
    return PT_OK;
}

static inline int world_send_async(pt_context *context, pt_link *link, const uint8_t *data,
                                   uint16_t len)
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

static inline int world_wait_completions(pt_context *context, pt_link *link, int timeout_ms)
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

static inline int world_poll(pt_context *context, pt_link *link)
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

static inline int world_receive(pt_context *context, pt_link *link, uint8_t *buffer, uint32_t size)
{
    (void)context;
    byte_pipe *from = &here.pipes[link->source.handle];
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

static inline int world_finish(pt_context *context, pt_link *link)
{
    (void)context;
    here.pipes[link->source.handle ^ 1].ended = 1;
    here.finished++;
    return PT_OK;
}

static inline int world_watch(pt_context *context, pt_source *source)
{
    (void)context;
    source->registered = source->interest;
    return PT_OK;
}

static inline void world_forget(pt_context *context, pt_source *source)
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
static inline int is_done(const pt_send_pipeline *pipeline)
{
    int done = 0;
    for (uint8_t index = 0; index < pipeline->depth && !here.held; index++)
        done |= pipeline->slots[index].state == PT_SLOT_IN_FLIGHT &&
                pipeline->slots[index].sent_len == pipeline->slots[index].message_len;
    return done;
}

static inline int world_wait(pt_context *context, int timeout_ms)
{
    note_call('W', NULL);
    for (pt_source *source = context->sources; source != NULL; source = source->next) {
        int ready = 0;
        if (source->registered == 0xFF)
            continue;
        if (source->kind == PT_SOURCE_WATCH) {
            ready = here.ready_watch == source->handle ? source->registered & ~PT_WANT_EDGE : 0;
        } else {
            const byte_pipe *from = &here.pipes[source->handle];
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

static inline void world_wake(pt_context *context)
{
    context->woken = 1;
    here.woken++;
}

static inline uint32_t world_clock(pt_context *context)
{
    (void)context;
    return FIRST_TICK + (uint32_t)((here.now_ms + LATE_MS) * PT_TICKS_PER_SECOND / 1000);
}

static inline uint32_t world_clock_ms(pt_context *context)
{
    (void)context;
    return FIRST_TICK + (uint32_t)here.now_ms;
}

/* As the pipeline says, but none while the platform keeps them back. */
static inline int world_slots_available(pt_context *context, pt_link *link)
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

static inline uint32_t world_unacknowledged(pt_context *context, const pt_link *link)
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

static const pt_pool_class classes[] = {{64, 64, 0}, {FRAME_SIZE, 32, 0}, {SLOT_SIZE, 64, 0}};
static memory_account account;
static pt_pool *pool;
static pt_context context;
static pt_source *ready_sources[PT_IO_BUDGET];
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

static inline int hear_frame(void *unused, uint32_t tag, const pt_frame *frame)
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
static inline int turn(int timeout_ms)
{
    static pt_event events[EVENTS];
    const pt_sink sink = {.frame = hear_frame, .context = NULL, .room = room};
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

static inline void turns(int count)
{
    while (count-- > 0)
        turn(0);
}

static inline void open_world(const pt_platform_ops *ops, int pairs)
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
                            ready_sources, PT_IO_BUDGET) == PT_OK);
    for (int end = 0; end < 2 * pairs; end++)
        REQUIRE(pt_link_open(&context, &links[end], end, (uint32_t)end, slots[end], DEPTH,
                             SLOT_SIZE, 1, 1024, pt_message_format(0)) == PT_OK);
}

static inline void close_world(void)
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
static inline int send_number_by(send_function *send, int end, uint16_t number, uint32_t len)
{
    uint8_t payload[1024];
    payload[0] = (uint8_t)(number >> 8);
    payload[1] = (uint8_t)number;
    for (uint32_t at = 2; at < len; at++)
        payload[at] = (uint8_t)(payload[1] + at);
    return send(&context, &links[end], PT_FRAME_DATA, 0, payload, len);
}

static inline int send_number(int end, uint16_t number, uint32_t len)
{
    return send_number_by(pt_link_send, end, number, len);
}

/* Take all slots of link 0 with messages 0 to DEPTH - 1, of which the other side has taken nothing.
 */
static inline void fill_slots(void)
{
    here.room = 0;
    for (uint16_t number = 0; number < DEPTH; number++)
        CHECK(send_number(0, number, 950) >= 0);
    CHECK_EQUAL(pt_pipeline_available(&links[0].pipeline), 0);
}

#endif
