/* The theory is in pt_loop.h. Decided here alone: the order of a turn, how many timers and links
 * may report in it, and which link is named when memory is scarce. */
#include "pt_loop.h"

#include <string.h>

#include "pt_check.h"
#include "pt_loop_inside.h"

/* Events that one link may need in a turn: SENT, SENT of a failure, FINISHED, CLOSED. */
#define LINK_EVENTS 4

/* How long a link waits at most before it asks again for a staging buffer. */
#define STARVED_RETRY_MS 10

/* --------------------------------------------------------------------------------------- timers */

void pt_loop_arm(pt_context *context, pt_timer *timer, uint32_t delay_ms)
{
    if (context->ops == NULL)
        return;
    timer->kind = PT_TIMER_CALLER;
    pt_context_arm(context, timer, delay_ms);
}

void pt_loop_cancel(pt_context *context, pt_timer *timer)
{
    pt_wheel_cancel(&context->wheel, timer);
}

/* ------------------------------------------------------------------------------------- one turn */

/* All of an event but what its kind says more: 0. */
static pt_event *make_event(pt_event *event, uint32_t kind, uint32_t tag)
{
    memset(event, 0, sizeof *event);
    event->kind = kind;
    event->tag = tag;
    return event;
}

/* Serve one ready source. Returns the number of events made (0 or 1). */
static int serve(pt_context *context, pt_source *source, pt_event *event, pt_sink *sink, int alone)
{
    PT_ASSERT(source->queued);
    PT_ASSERT(source->place != NULL);

    uint8_t ready = source->ready;
    source->ready = 0;
    source->queued = 0;
    if (source->kind == PT_SOURCE_WATCH) {
        make_event(event, PT_EVENT_READY, source->tag)->count = ready;
        return 1;
    }

    pt_link *link = (pt_link *)source;
    if (pt_link_is_live(link) && (ready & PT_READY_READ) && pt_link_is_read(link) &&
        link->held == NULL && link->held_turn != (uint32_t)context->turns)
        pt_read_link(context, link, sink, alone);
    if ((ready & PT_READY_WRITE) &&
        (link->blocked || link->pipeline.pending_count != 0)) { /* room, or slots that are done */
        link->blocked = 0;
        pt_link_push(context, link);
    }
    return 0;
}

/* Of the links that have something to send the one that has stood still the longest; NULL: none
 * does. */
static const pt_link *stillest(const pt_context *context)
{
    const pt_link *found = NULL;
    uint32_t longest = 0;
    for (const pt_source *source = context->sources; source != NULL; source = source->next) {
        const pt_link *link = (const pt_link *)source;
        if (source->kind != PT_SOURCE_LINK || !link->blocked || link->state == PT_LINK_ENDED)
            continue;
        uint32_t ticks = context->wheel.now - link->moved;
        if (ticks >= longest) {
            longest = ticks;
            found = link;
        }
    }
    return found;
}

/* While the pool is in use, once a second: give back what nobody needed since, and say who stands
 * still if too little is left. Returns the number of events (0 or 1). */
static int look_at_pool(pt_context *context, pt_event *event)
{
    PT_ASSERT(!pt_timer_is_armed(&context->pool_timer)); /* it has just expired */
    uint32_t acquires = pt_pool_acquires(context->pool);
    int rests = acquires == context->pool_acquires;
    context->pool_acquires = acquires;
    if (rests)
        (void)pt_pool_trim(context->pool);
    int is_scarce = pt_pool_is_scarce(context->pool);
    if (is_scarce || !rests)
        pt_context_arm(context, &context->pool_timer, PT_POOL_REST_MS);
    const pt_link *link = is_scarce ? stillest(context) : NULL;
    if (link == NULL)
        return 0;
    make_event(event, PT_EVENT_STILL, link->source.tag)->count = pt_link_still_ms(context, link);
    return 1;
}

/* Due timers. Those of links end them; the caller's become events, at most capacity. Returns the
 * number of events. */
static int expire_timers(pt_context *context, pt_event *events, int capacity, pt_sink *sink)
{
    PT_ASSERT(capacity > 0);

    int count = 0;
    pt_wheel_advance(&context->wheel, context->ops->clock(context));
    while (count < capacity) {
        pt_timer *timer = pt_wheel_expire(&context->wheel);
        if (timer == NULL)
            break;
        if (timer->kind == PT_TIMER_FRAME) {
            pt_read_late(context,
                         (pt_link *)(void *)((uint8_t *)timer - offsetof(pt_link, frame_timer)),
                         sink);
        } else if (timer->kind == PT_TIMER_REST) {
            pt_link_rest(context,
                         (pt_link *)(void *)((uint8_t *)timer - offsetof(pt_link, rest_timer)));
        } else if (timer->kind == PT_TIMER_POOL) {
            count += look_at_pool(context, &events[count]);
        } else {
            PT_ASSERT(timer->kind == PT_TIMER_CALLER);
            make_event(&events[count++], PT_EVENT_TIMER, timer->tag);
        }
    }
    PT_ASSERT(count <= capacity);
    return count;
}

/* A result code as an event has it; a link keeps it in 8 bits. */
static inline int32_t whole(int8_t code)
{
    PT_ASSERT(code <= PT_OK);

    return code;
}

/* What has become of a link since the last turn: up to LINK_EVENTS events. Returns their number. */
static int report_link(pt_link *link, pt_event *events)
{
    PT_ASSERT(link->failed_code != PT_OK || link->failed_count == 0);
    PT_ASSERT(link->source.kind == PT_SOURCE_LINK);
    PT_ASSERT(link->state != PT_LINK_NONE);

    uint32_t tag = link->source.tag;
    int count = 0;
    if (link->due & PT_DUE_SENT) {
        make_event(&events[count++], PT_EVENT_SENT, tag)->count = link->sent_count;
        link->sent_count = 0;
    }
    if (link->failed_code != PT_OK) {
        pt_event *failed = make_event(&events[count++], PT_EVENT_SENT, tag);
        failed->code = whole(link->failed_code);
        failed->count = link->failed_count;
        link->failed_code = PT_OK;
        link->failed_count = 0;
    }
    if (link->due & PT_DUE_FINISHED)
        make_event(&events[count++], PT_EVENT_FINISHED, tag);
    if (link->due & PT_DUE_CLOSED) {
        pt_event *closed = make_event(&events[count++], PT_EVENT_CLOSED, tag);
        closed->code = whole(link->end_code);
        closed->system_error = link->end_error;
    }
    link->due = 0;
    PT_ASSERT(count <= LINK_EVENTS);
    return count;
}

/* Those who have only to say what has left say so now, unless that may wait. */
static void call_left(pt_context *context)
{
    PT_ASSERT(*context->lines[PT_LINE_LEFT].end == NULL);

    if (context->tells_late && context->wheel.now - context->left_since < PT_TELL_MS)
        return;
    while (context->lines[PT_LINE_LEFT].first != NULL) {
        pt_link *link = context->lines[PT_LINE_LEFT].first;
        PT_ASSERT(link->in_line[PT_LINE_LEFT]);
        pt_context_leave(context, link, PT_LINE_LEFT);
        pt_context_join(context, link, PT_LINE_DIRTY);
    }
}

PT_LOOP_PART int pt_loop_report(pt_context *context, pt_event *events, int capacity)
{
    enum pt_line_kind kind = pt_context_due_line(context);
    int count = 0;
    PT_ASSERT(capacity >= LINK_EVENTS);

    while (context->lines[kind].first != NULL && capacity - count >= LINK_EVENTS) {
        pt_link *link = context->lines[kind].first;
        pt_context_leave(context, link, kind);
        int failed = link->failed_code != PT_OK;
        count += report_link(link, &events[count]);
        if (failed)
            pt_link_harvest(context, link); /* what had to wait behind the failure */
    }
    PT_ASSERT(count <= capacity);
    return count;
}

/* How long a turn may wait: not at all while there is work, and not past the next timer. */
static int wait_limit(pt_context *context, int timeout_ms)
{
    int next = pt_loop_next_timeout(context);
    return next >= 0 && (timeout_ms < 0 || next < timeout_ms) ? next : timeout_ms;
}

int pt_loop_wait(pt_context *context, int timeout_ms)
{
    if (context->ops == NULL || pt_worker_of(context) != NULL)
        return PT_ERR_INVALID_PARAM;
    int limit = wait_limit(context, timeout_ms);
    if (limit == 0 ||
        context->woken) /* a turn without waiting may have met the wake that was meant for this */
        return PT_OK;
    context->wait_calls++;
    int count = context->ops->wait(context, limit);
    return count < 0 ? count : PT_OK;
}

#if PT_ASSERTIONS
/* What holds between two turns: of as many links as a turn serves by default, the newest. */
static void check(const pt_context *context)
{
    pt_wheel_check(&context->wheel);
    pt_pool_check(context->pool);
    PT_ASSERT(*context->lines[PT_LINE_DIRTY].end == NULL);
    PT_ASSERT(*context->lines[PT_LINE_HELD].end == NULL);
    PT_ASSERT(context->starved_count <= context->link_count);
    PT_ASSERT(*context->lines[PT_LINE_LEFT].end == NULL);
    uint32_t count = 0;
    for (const pt_source *source = context->sources; source != NULL && count < PT_IO_BUDGET;
         source = source->next, count++) {
        if (source->kind == PT_SOURCE_LINK)
            pt_link_check(context, (const pt_link *)source);
    }
}
#endif

/* A worker has nothing to tell of a link whose frames were pushed; where there is none the line is
 * emptied when links report. While a worker pushes, others may fill the line anew: those have the
 * next turn. */
static void push_links(pt_context *context)
{
    pt_line *line = &context->lines[PT_LINE_DIRTY];
    PT_ASSERT(*line->end == NULL);
    if (pt_worker_of(context) == NULL) {
        for (pt_link *link = line->first; link != NULL; link = link->next[PT_LINE_DIRTY])
            pt_link_push(context, link);
        return;
    }
    for (uint32_t left = context->link_count; left != 0 && line->first != NULL; left--) {
        pt_link *link = line->first;
        pt_context_leave(context, link, PT_LINE_DIRTY);
        pt_link_push(context, link);
    }
}

PT_LOOP_PART void pt_loop_begin(pt_context *context)
{
    PT_ASSERT(context->ops != NULL);

    context->turns++;
    context->woken = 0;
    if (pt_worker_of(context) == NULL) { /* else whoever sends has a turn when it takes */
        context->turn_messages = 0;
        context->turn_bytes = 0;
    }
    context->work_left = PT_TURN_MAX_WORK;
    push_links(context);
    if (context->starved_count != 0)
        pt_read_starved(context);
}

PT_LOOP_PART int pt_loop_work(pt_context *context, pt_event *events, int capacity,
                              const pt_sink *sink)
{
    PT_ASSERT(context->ready_count <= context->io_budget);
    int count = 0;
    pt_sink room = *sink;
    room.spare = &context->spare;
    int alone = pt_read_is_alone(context);
    if (context->lines[PT_LINE_HELD].first != NULL)
        pt_read_held(context, &room, alone);
    for (uint32_t index = 0; index < context->ready_count; index++) {
        if (context->ready[index] != NULL)
            count += serve(context, context->ready[index], &events[count], &room, alone);
    }
    context->ready_count = 0;

    /* Timers leave room for links, so that neither starves the other. */
    count +=
        expire_timers(context, &events[count], (capacity - count - LINK_EVENTS + 1) / 2, &room);
    if (!pt_timer_is_armed(&context->pool_timer) && context->link_count != 0 &&
        pt_pool_acquires(context->pool) != context->pool_acquires)
        pt_context_arm(context, &context->pool_timer, PT_POOL_REST_MS);
    if (PT_PROMPT && pt_worker_of(context) == NULL)
        call_left(context);
    return count;
}

int pt_loop_turn(pt_context *context, int timeout_ms, pt_event *events, int capacity,
                 const pt_sink *sink)
{
    if (context->ops == NULL || events == NULL || sink == NULL || pt_worker_of(context) != NULL ||
        capacity < ((int)context->io_budget + 1) * LINK_EVENTS)
        return PT_ERR_INVALID_PARAM;
    pt_loop_begin(context);
    if (context->ready_count == 0) { /* else pt_loop_wait() was here */
        context->wait_calls++;
        int found =
            context->ops->wait(context, timeout_ms == 0 ? 0 : wait_limit(context, timeout_ms));
        if (found < 0)
            return found;
    }
    int count = pt_loop_work(context, events, capacity, sink);
    count += pt_loop_report(context, &events[count], capacity - count);
    PT_ASSERT(count <= capacity);
    PT_CHECK(check(context));
    return count;
}

int pt_loop_next_timeout(pt_context *context)
{
    if (context->ops == NULL)
        return -1;
    if (context->lines[PT_LINE_DIRTY].first != NULL || context->ready_count != 0 ||
        context->lines[PT_LINE_HELD].first != NULL)
        return 0;
    pt_wheel_advance(&context->wheel, context->ops->clock(context));
    uint32_t ticks = pt_wheel_next(&context->wheel);
    int timeout_ms = ticks == UINT32_MAX ? -1 : pt_context_ms(context, ticks);
    if (context->starved_count != 0 && (timeout_ms < 0 || timeout_ms > STARVED_RETRY_MS))
        timeout_ms = STARVED_RETRY_MS;
    PT_ASSERT(timeout_ms >= -1);
    return timeout_ms;
}

void pt_loop_wake(pt_context *context)
{
    if (context->ops != NULL)
        context->ops->wake(context);
}

/* ------------------------------------------------------------------------------- the plain sink */

static int plain_frame(void *sink_context, uint32_t tag, const pt_frame *frame)
{
    pt_plain_sink *plain = sink_context;
    PT_ASSERT(plain->count <= plain->capacity);
    PT_ASSERT(plain->buffer_len <= plain->buffer_size);
    if (plain->count == plain->capacity ||
        frame->payload_len > plain->buffer_size - plain->buffer_len)
        return PT_ERR_INTERNAL;
    pt_event *event = make_event(&plain->events[plain->count++], PT_EVENT_FRAME, tag);
    event->offset = plain->buffer_len;
    event->len = frame->payload_len;
    event->type = frame->type;
    event->flags = frame->flags;
    event->sequence = frame->sequence;
    if (frame->payload_len != 0)
        memcpy(plain->buffer + plain->buffer_len, frame->payload, frame->payload_len);
    plain->buffer_len += frame->payload_len;
    return PT_OK;
}

void pt_plain_sink_init(pt_plain_sink *plain, pt_sink *sink, uint32_t room)
{
    plain->count = 0;
    plain->buffer_len = 0;
    sink->frame = plain_frame;
    sink->context = plain;
    sink->room = room;
}
