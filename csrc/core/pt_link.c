#include "pt_link.h"

#include <string.h>

#include "pt_assert.h"
#include "pt_check.h"
#include "pt_loop_inside.h"

#define NOWHERE PT_NOWHERE

/* Following state, by state and step: open, shut, finish, break, end, close. */
static const uint8_t NEXT[][6] = {
    [PT_LINK_NONE] = {PT_LINK_OPEN, NOWHERE, NOWHERE, NOWHERE, NOWHERE, NOWHERE},
    [PT_LINK_OPEN] = {NOWHERE, PT_LINK_SHUT, NOWHERE, PT_LINK_BROKEN, PT_LINK_ENDED, NOWHERE},
    [PT_LINK_SHUT] = {NOWHERE, NOWHERE, PT_LINK_FINISHED, PT_LINK_BROKEN, PT_LINK_ENDED, NOWHERE},
    [PT_LINK_FINISHED] = {NOWHERE, NOWHERE, NOWHERE, NOWHERE, PT_LINK_ENDED, NOWHERE},
    [PT_LINK_BROKEN] = {NOWHERE, NOWHERE, NOWHERE, NOWHERE, PT_LINK_ENDED, NOWHERE},
    [PT_LINK_ENDED] = {NOWHERE, NOWHERE, NOWHERE, NOWHERE, NOWHERE, PT_LINK_NONE},
};

uint8_t pt_link_next(uint8_t state, uint8_t step)
{
    PT_ASSERT(state <= PT_LINK_ENDED);
    PT_ASSERT(step <= PT_LINK_STEP_CLOSE);

    return NEXT[state][step];
}

static void move(pt_link *link, enum pt_link_step step)
{
    link->state = pt_link_next(link->state, (uint8_t)step);
    PT_ASSERT(link->state != NOWHERE);
}

/* Messages reported as sent that are not known to be acknowledged; the last ones of all. */
static uint32_t count_unconfirmed(pt_context *context, const pt_link *link)
{
    if (link->notes.count == 0)
        return 0;
    return pt_notes_count(&link->notes, (uint32_t)link->sent_bytes,
                          context->ops->unacknowledged(context, link));
}

/* Remember where messages that are reported as sent ended in the stream. The slot that comes next
 * may be half taken. */
static void note_sent(pt_context *context, pt_link *link, uint32_t count)
{
    if (link->state == PT_LINK_ENDED) {
        link->unconfirmed += count;
        return;
    }
    PT_ASSERT(pt_link_is_live(link));
    PT_ASSERT(context->ops->unacknowledged != NULL);

    const pt_send_pipeline *pipeline = &link->pipeline;
    uint32_t position = (uint32_t)link->sent_bytes;
    uint32_t end =
        position - (pipeline->pending_count != 0 ? pipeline->slots[pipeline->head].sent_len : 0U);
    if (pt_notes_need_room(&link->notes, context->pool, (uint32_t)context->turns))
        pt_notes_make_room(&link->notes, position, context->ops->unacknowledged(context, link));
    pt_notes_add(&link->notes, (uint32_t)context->turns, end, count);
}

void pt_link_drop_held(pt_context *context, pt_link *link)
{
    PT_ASSERT(link->held_at <= link->held_len);
    PT_ASSERT(link->held != NULL || link->held_len == 0);

    pt_context_leave(context, link, PT_LINE_HELD);
    if (link->held != NULL)
        pt_pool_release(context->pool, link->held, link->held_len);
    link->held = NULL;
    link->held_len = 0;
    link->held_at = 0;
}

void pt_link_end(pt_context *context, pt_link *link, int code, int32_t system_error)
{
    PT_ASSERT(pt_link_is_live(link));
    PT_ASSERT(code <= 0 && code >= INT16_MIN);
    link->unconfirmed = count_unconfirmed(context, link);
    pt_notes_drop(&link->notes, context->pool);
    move(link, PT_LINK_STEP_END);
    link->end_code = (int16_t)code;
    link->end_error = system_error;
    link->due = (uint8_t)((link->due & ~PT_DUE_FINISHED) | PT_DUE_CLOSED);
    if (link->unread & PT_UNREAD_STARVED) {
        link->unread &= (uint8_t)~PT_UNREAD_STARVED;
        context->starved_count--;
    }
    context->ops->forget(context, &link->source);
    pt_wheel_cancel(&context->wheel, &link->frame_timer);
    pt_wheel_cancel(&context->wheel, &link->rest_timer);
    pt_ingest_cleanup(&link->ingest);
    pt_link_drop_held(context, link);
    pt_context_join(context, link, PT_LINE_DIRTY);
}

void pt_link_update_interest(pt_context *context, pt_link *link)
{
    if (!pt_link_is_live(link))
        return;
    int reads = pt_link_is_read(link);
    link->source.interest =
        (uint8_t)((reads ? PT_WANT_READ : 0) | (link->blocked ? PT_WANT_WRITE : 0));
    link->source.edge = !reads;
    int result = context->ops->watch(context, &link->source);
    if (result != PT_OK)
        pt_link_end(context, link, result, link->system_error);
}

void pt_link_update_frame_timer(pt_context *context, pt_link *link, int restart)
{
    if (pt_ingest_partial_len(&link->ingest) == 0 || !pt_link_is_read(link))
        pt_wheel_cancel(&context->wheel, &link->frame_timer);
    else if (restart || !pt_timer_is_armed(&link->frame_timer))
        pt_context_arm(context, &link->frame_timer, link->frame_timeout_ms);
}

void pt_link_update_reading(pt_context *context, pt_link *link)
{
    if (!pt_link_is_live(link))
        return;
    pt_link_update_frame_timer(context, link, 0);
    pt_link_update_interest(context, link);
    if (link->held != NULL && pt_link_is_read(link))
        pt_context_join(context, link, PT_LINE_HELD);
}

/* Writing is over. A broken connection is read to its end before it is reported: what came before
 * the break is the other side's word. */
static void fail_writing(pt_context *context, pt_link *link, int code)
{
    PT_ASSERT(code < 0 && link->state != PT_LINK_BROKEN);

    if (code != PT_ERR_CONNECTION_CLOSED || (link->unread & PT_UNREAD_ENDED)) {
        pt_link_end(context, link, code, link->system_error);
        return;
    }
    PT_ASSERT(link->end_code == PT_OK);
    move(link, PT_LINK_STEP_BREAK);
    link->end_code = (int16_t)code;
    link->end_error = link->system_error;
    link->blocked = 0;
    pt_link_update_interest(context, link);
}

/* An idle link holds no memory: as long as slots or notes keep some, look again in a while. */
static void watch_rest(pt_context *context, pt_link *link)
{
    if (!pt_link_is_live(link) || pt_timer_is_armed(&link->rest_timer))
        return;
    int keeps = pt_pipeline_keeps(&link->pipeline);
    if (!keeps && link->notes.room <= 1)
        return;
    link->rest_frames = (uint32_t)link->pipeline.frames;
    pt_context_arm(context, &link->rest_timer, keeps ? PT_REST_MS : PT_NOTES_REST_MS);
}

void pt_link_rest(pt_context *context, pt_link *link)
{
    if ((uint32_t)link->pipeline.frames == link->rest_frames && link->pipeline.pending_count == 0) {
        pt_pipeline_rest(&link->pipeline);
        if (link->notes.room > 1 && count_unconfirmed(context, link) == 0)
            pt_notes_drop(&link->notes, context->pool);
    }
    watch_rest(context, link);
}

void pt_link_harvest(pt_context *context, pt_link *link)
{
    uint32_t count;
    int result;
    while (link->failed_code == PT_OK && pt_pipeline_report(&link->pipeline, &count, &result)) {
        if (result == PT_OK) {
            link->due |= PT_DUE_SENT;
            link->sent_count += count;
            if (count != 0 && context->ops->unacknowledged != NULL)
                note_sent(context, link, count);
        } else {
            link->failed_count = count;
            link->failed_code = (int16_t)result;
        }
        pt_context_join(context, link, PT_LINE_DIRTY);
        watch_rest(context, link);
    }
}

/* Hand the oldest FILLING slot to the platform; blocking: and wait until it has left, as worlds
 * without tcp_send_async always do. 0 when the link cannot go on. */
static int launch(pt_context *context, pt_link *link, int blocking)
{
    PT_ASSERT(link->state == PT_LINK_OPEN || link->state == PT_LINK_SHUT);
    PT_ASSERT(context->ops->tcp_send_async != NULL || context->ops->tcp_send != NULL);

    int index = pt_pipeline_launch(&link->pipeline);
    PT_ASSERT(index >= 0);
    pt_send_slot *slot = &link->pipeline.slots[index];
    int result;
    if (context->ops->tcp_send_async != NULL && !blocking) {
        result = context->ops->tcp_send_async(context, link, slot->buffer, slot->message_len);
    } else {
        result = context->ops->tcp_send(context, link, slot->buffer, slot->message_len);
        if (result == PT_OK)
            pt_pipeline_complete(&link->pipeline, (uint8_t)index, PT_OK);
    }
    if (result == PT_OK)
        return 1;
    fail_writing(context, link, result);
    return 0;
}

void pt_link_finish(pt_context *context, pt_link *link)
{
    if (link->state == PT_LINK_SHUT && link->pipeline.pending_count == 0) {
        int result = context->ops->tcp_finish(context, link);
        if (result != PT_OK) {
            pt_link_end(context, link, result, link->system_error);
            return;
        }
        move(link, PT_LINK_STEP_FINISH);
    }
    if (link->state == PT_LINK_FINISHED && (link->unread & PT_UNREAD_ENDED))
        pt_link_end(context, link, PT_OK, 0);
}

void pt_link_push(pt_context *context, pt_link *link)
{
    if (!pt_link_is_live(link) || link->state == PT_LINK_BROKEN || link->blocked)
        return;
    int waits = link->pipeline.pending_count != link->pipeline.filling_count;
    uint32_t sent_bytes = (uint32_t)link->sent_bytes;
    while (link->pipeline.filling_count != 0) {
        if (!launch(context, link, 0))
            return;
    }
    if (context->ops->poll_send_completions != NULL && link->pipeline.pending_count != 0) {
        int result = context->ops->poll_send_completions(context, link);
        if (result < 0) {
            pt_link_harvest(context, link);
            fail_writing(context, link, result);
            return;
        }
    }
    pt_link_harvest(context, link);
    if (!waits || (uint32_t)link->sent_bytes != sent_bytes) {
        link->moved = context->wheel.now;
        link->pipeline.is_still = 0;
    }
    pt_link_finish(context, link);
    if (link->blocked != ((link->source.interest & PT_WANT_WRITE) != 0))
        pt_link_update_interest(context, link);
}

int pt_link_open(pt_context *context, pt_link *link, intptr_t handle, uint32_t tag,
                 pt_send_slot *slots, uint8_t depth, uint16_t slot_size, int packing,
                 uint32_t max_payload)
{
    if (context == NULL || context->ops == NULL || link == NULL ||
        max_payload > PT_FRAME_MAX_PAYLOAD)
        return PT_ERR_INVALID_PARAM;
    if (link->state != PT_LINK_NONE || link->source.place != NULL)
        return PT_ERR_ALREADY_INITIALIZED;

    memset(link, 0, sizeof *link);
    int lazy = !context->ops->classic || PT_PIPELINE_LAZY ? PT_LAZY_BUFFERS : PT_LAZY_NOTHING;
    if (PT_BORROWED_SLOTS && slots == NULL && !context->ops->classic) {
        slots = &link->only;
        lazy = PT_LAZY_SLOTS;
    }
    int result =
        pt_pipeline_init(&link->pipeline, slots, depth, slot_size, context->pool, lazy, packing);
    if (result != PT_OK)
        return result;
    link->source.handle = handle;
    link->source.tag = tag;
    link->source.kind = PT_SOURCE_LINK;
    link->source.interest = PT_WANT_READ;
    link->source.registered = 0xFF;
    pt_context_add_source(context, &link->source);
    result = context->ops->watch(context, &link->source);
    if (result != PT_OK) {
        pt_context_remove_source(context, &link->source);
        pt_pipeline_cleanup(&link->pipeline);
        return result;
    }

    uint32_t slot_payload = (uint32_t)slot_size - PT_FRAME_OVERHEAD;
    link->max_message = slot_payload < PT_FRAME_MAX_PAYLOAD ? slot_payload : PT_FRAME_MAX_PAYLOAD;
    link->frame_timeout_ms = PT_PARTIAL_FRAME_MS;
    link->frame_timer.kind = PT_TIMER_FRAME;
    link->frame_timer.tag = tag;
    link->rest_timer.kind = PT_TIMER_REST;
    link->pipeline.keep = 1;
    link->mean = PT_LINK_MEAN_MAX;
    pt_notes_init(&link->notes);
    link->read_max = UINT32_MAX;
    pt_ingest_init(&link->ingest, pt_message_format(), context->pool, max_payload, tag);
    move(link, PT_LINK_STEP_OPEN);
    context->link_count++;
    if (max_payload + PT_FRAME_OVERHEAD > context->frame_size) {
        pt_context_drop_spare(context);
        context->frame_size = max_payload + PT_FRAME_OVERHEAD;
    }
    return PT_OK;
}

int pt_link_close(pt_context *context, pt_link *link)
{
    if (link->state == PT_LINK_NONE)
        return link->pipeline.depth ? pt_pipeline_cleanup(&link->pipeline) : 0;
    if (link->state != PT_LINK_ENDED)
        pt_link_end(context, link, PT_OK, 0);
    link->due = 0;
    pt_context_leave(context, link, PT_LINE_DIRTY);
    pt_context_remove_source(context, &link->source);
    move(link, PT_LINK_STEP_CLOSE);
    PT_ASSERT(context->link_count != 0);
    PT_ASSERT(!link->in_line[PT_LINE_HELD] && link->held == NULL);
    int abandoned = pt_pipeline_cleanup(&link->pipeline);
    if (--context->link_count == 0) {
        pt_context_drop_spare(context);
        context->frame_size = 0;
        pt_wheel_cancel(&context->wheel, &context->pool_timer);
        (void)pt_pool_trim(context->pool);
    }
    return abandoned;
}

/* -------------------------------------------------------------------------------------- sending */

uint32_t pt_link_still_ms(const pt_context *context, const pt_link *link)
{
    return (uint32_t)pt_context_ms(context, context->wheel.now - link->moved);
}

int pt_link_slots_available(pt_context *context, pt_link *link)
{
    PT_ASSERT(link->pipeline.pending_count <= link->pipeline.depth);

    if (context->ops == NULL)
        return 0;
    if (context->ops->send_slots_available != NULL)
        return context->ops->send_slots_available(context, link);
    return pt_pipeline_available(&link->pipeline);
}

/* There is something to report, though the caller may hear no hint of it. */
static void ask_for_turn(pt_context *context)
{
    if (context->ops->wake != NULL)
        context->ops->wake(context);
}

/* Before a frame is refused, the system is offered what is there. 1 when it is worth trying again.
 */
static int make_room(pt_context *context, pt_link *link)
{
    if (link->blocked)
        return 0;
    int available = pt_link_slots_available(context, link);
    pt_link_push(context, link);
    if (link->state != PT_LINK_OPEN) {
        ask_for_turn(context);
        return 0;
    }
    return pt_link_slots_available(context, link) > available;
}

/* PT_OK, or why no frame of this size can be sent on the link. */
static int check_frame(const pt_link *link, uint8_t type, uint32_t payload_len)
{
    if (link->state != PT_LINK_OPEN)
        return PT_ERR_NOT_CONNECTED;
    if (payload_len > (type == PT_FRAME_DATA ? link->max_message : PT_FRAME_MAX_PAYLOAD))
        return PT_ERR_MESSAGE_TOO_LARGE;
    return PT_OK;
}

/* A caller that never stops sending must yet let the loop turn: PT_SEND_YIELD, else 0. */
static int count_frame(pt_context *context, const pt_link *link, uint32_t payload_len)
{
    PT_ASSERT(payload_len <= PT_FRAME_MAX_PAYLOAD);

    uint32_t most = link->pipeline.more ? PT_TURN_MANY_BYTES : PT_TURN_MAX_BYTES;
    context->turn_messages++;
    context->turn_bytes += payload_len;
    return context->turn_messages >= PT_TURN_MAX_MESSAGES || context->turn_bytes >= most
               ? PT_SEND_YIELD
               : 0;
}

int pt_link_send(pt_context *context, pt_link *link, uint8_t type, uint8_t flags,
                 const uint8_t *payload, uint32_t payload_len)
{
    int refused = check_frame(link, type, payload_len);
    if (refused != PT_OK)
        return refused;

    pt_send_pipeline *pipeline = &link->pipeline;
    if (link->blocked)
        pipeline->is_still = pt_link_still_ms(context, link) >= PT_STILL_MS;
    int result = pt_pipeline_send(pipeline, type, flags, payload, payload_len);
    if (result != PT_OK) {
        if (result != PT_ERR_WOULD_BLOCK && result != PT_ERR_NO_MEMORY)
            return result;
        if (!make_room(context, link))
            return link->state == PT_LINK_OPEN ? result : PT_ERR_NOT_CONNECTED;
        pipeline->refusals--; /* the caller has not been refused yet */
        result = pt_pipeline_send(pipeline, type, flags, payload, payload_len);
        if (result != PT_OK)
            return result;
    }

    int hints = 0;
    if (!link->in_line[PT_LINE_DIRTY] &&
        !link->blocked) { /* a blocked link is pushed when it becomes ready */
        pt_context_join(context, link, PT_LINE_DIRTY);
        hints = PT_SEND_NEEDS_TURN;
    }
    hints |= count_frame(context, link, payload_len);
    if (flags & PT_FLAG_NO_DELAY) {
        pt_link_push(context, link);
    } else {
        while (pipeline->filling_count > 1 || pipeline->ripe) {
            if (!launch(context, link, 0))
                break;
        }
    }
    return hints;
}

int pt_link_drain(pt_context *context, pt_link *link)
{
    const pt_platform_ops *ops = context->ops;
    if (ops == NULL)
        return PT_ERR_NOT_CONNECTED;
    uint32_t limit = PT_DRAIN_TIMEOUT_TICKS * ops->ticks_per_second / PT_TICKS_PER_SECOND;
    uint32_t start = ops->clock(context);
    uint32_t passed = 0;
    int waited = 0;
    int result = PT_OK;
    pt_link_push(context, link);
    while (link->state == PT_LINK_OPEN && link->pipeline.pending_count != 0 && result == PT_OK) {
        if (link->failed_code != PT_OK || ops->wait_send_completions == NULL) {
            result = PT_ERR_WOULD_BLOCK;
        } else if (passed >= limit) {
            result = PT_ERR_TIMEOUT;
        } else {
            result =
                ops->wait_send_completions(context, link, pt_context_ms(context, limit - passed));
            passed = ops->clock(context) - start;
            waited = 1;
            link->blocked = 0; /* pushing finds out anew */
            pt_link_push(context, link);
        }
    }
    if (link->state != PT_LINK_OPEN)
        result = PT_ERR_NOT_CONNECTED;
    if (waited || result != PT_OK)
        ask_for_turn(context);
    return result;
}

int pt_link_send_sync(pt_context *context, pt_link *link, uint8_t type, uint8_t flags,
                      const uint8_t *payload, uint32_t payload_len)
{
    if (context->ops == NULL)
        return PT_ERR_NOT_CONNECTED;
    if (context->ops->tcp_send_async != NULL) {
        int result = pt_link_send(context, link, type, flags, payload, payload_len);
        if (result != PT_ERR_WOULD_BLOCK || context->ops->tcp_send == NULL)
            return result;
    }
    int result = check_frame(link, type, payload_len);
    if (result == PT_OK)
        result = pt_link_drain(context, link);
    if (result != PT_OK)
        return result;

    PT_ASSERT(link->pipeline.pending_count == 0); /* nothing can be overtaken */
    result = pt_pipeline_send(&link->pipeline, type, flags, payload, payload_len);
    if (result != PT_OK)
        return result;
    link->sync_sends++;
    int hints = count_frame(context, link, payload_len) | PT_SEND_NEEDS_TURN;
    if (launch(context, link, 1))
        pt_link_harvest(context, link);
    return hints;
}

void pt_link_pause(pt_context *context, pt_link *link)
{
    link->unread |= PT_UNREAD_PAUSED;
    pt_link_update_reading(context, link);
}

void pt_link_resume(pt_context *context, pt_link *link)
{
    link->unread &= (uint8_t)~PT_UNREAD_PAUSED;
    pt_link_update_reading(context, link);
}

void pt_link_shut(pt_context *context, pt_link *link)
{
    if (link->state != PT_LINK_OPEN)
        return;
    PT_ASSERT(link->end_code == PT_OK);
    move(link, PT_LINK_STEP_SHUT);
    pt_link_push(context, link);
    pt_link_finish(context, link);
    if (link->in_line[PT_LINE_DIRTY])
        ask_for_turn(context);
}

uint64_t pt_link_pending(const pt_link *link)
{
    return link->pipeline.accepted - link->pipeline.reported + link->sent_count +
           link->failed_count;
}

uint32_t pt_link_unconfirmed(pt_context *context, const pt_link *link)
{
    if (link->state == PT_LINK_NONE)
        return 0;
    uint32_t count =
        link->state == PT_LINK_ENDED ? link->unconfirmed : count_unconfirmed(context, link);
    return count > link->sent_count ? count - link->sent_count : 0; /* those are not told yet */
}

void pt_link_set_frame_timeout(pt_context *context, pt_link *link, uint32_t timeout_ms)
{
    link->frame_timeout_ms = timeout_ms;
    if (pt_timer_is_armed(&link->frame_timer))
        pt_context_arm(context, &link->frame_timer, timeout_ms);
}

#if PT_ASSERTIONS
void pt_link_check(const pt_context *context, const pt_link *link)
{
    PT_ASSERT(link->state > PT_LINK_NONE && link->state <= PT_LINK_ENDED);
    PT_ASSERT(*link->source.place == &link->source);
    PT_ASSERT(link->source.kind == PT_SOURCE_LINK);
    PT_ASSERT((link->held != NULL) == (link->held_at < link->held_len));
    PT_ASSERT(!link->in_line[PT_LINE_HELD] || link->held != NULL);
    PT_ASSERT(link->failed_code != PT_OK || link->failed_count == 0);
    PT_ASSERT(link->due == 0 || link->in_line[PT_LINE_DIRTY]);
    if (link->state == PT_LINK_ENDED) {
        PT_ASSERT(link->held == NULL && link->notes.count == 0);
        PT_ASSERT(!pt_timer_is_armed(&link->frame_timer));
        PT_ASSERT(!pt_timer_is_armed(&link->rest_timer));
        PT_ASSERT(link->ingest.state == PT_INGEST_INIT);
        PT_ASSERT(!(link->unread & PT_UNREAD_STARVED));
    } else {
        PT_ASSERT(link->end_code == PT_OK || link->state == PT_LINK_BROKEN);
        PT_ASSERT(link->state != PT_LINK_FINISHED || link->pipeline.pending_count == 0);
        PT_ASSERT(!(link->due & PT_DUE_CLOSED));
        PT_ASSERT(!(link->unread & PT_UNREAD_STARVED) || context->starved_count != 0);
        PT_ASSERT(pt_timer_is_armed(&link->frame_timer) ==
                  (pt_ingest_partial_len(&link->ingest) != 0 && pt_link_is_read(link)));
        PT_ASSERT(link->ingest.state != PT_INGEST_INIT);
    }
    pt_pipeline_check(&link->pipeline);
    pt_ingest_check(&link->ingest);
}
#endif
