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
    const pt_send_slot *next = &pipeline->slots[pipeline->head];
    uint32_t position = (uint32_t)link->sent_bytes;
    uint32_t end = position;
    if (pipeline->pending_count != 0)
        end -= next->sent_len +
               (PT_WIDE && pipeline->refers && next->hold != NULL ? next->hold->sent : 0);
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

#if PT_WIDE
int pt_link_let_land(pt_context *context, pt_link *link)
{
    PT_ASSERT(link->landing <= context->landing);

    uint32_t wanted = pt_ingest_unasked(&link->ingest);
    if (link->landing == wanted)
        return 1;
    context->landing -= link->landing;
    link->landing = 0;
    if (wanted != 0 && context->landing != 0 &&
        (context->landing > context->landing_limit ||
         wanted > context->landing_limit - context->landing))
        return 0;
    context->landing += wanted;
    link->landing = wanted;
    return 1;
}
#endif

void pt_link_end(pt_context *context, pt_link *link, int code, int32_t system_error)
{
    PT_ASSERT(pt_link_is_live(link));
    PT_ASSERT(code <= 0 && code >= INT16_MIN);
    link->unconfirmed = count_unconfirmed(context, link);
    pt_notes_drop(&link->notes, context->pool);
    move(link, PT_LINK_STEP_END);
    link->end_code = (int8_t)code;
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
    if (PT_WIDE)
        (void)pt_link_let_land(context, link);
    pt_link_drop_held(context, link);
    pt_context_owe(context, link, 1);
}

void pt_link_update_interest(pt_context *context, pt_link *link)
{
    if (!pt_link_is_live(link))
        return;
    int reads = pt_link_is_read(link);
    link->source.interest =
        (uint8_t)((reads ? PT_WANT_READ : 0) | (link->blocked ? PT_WANT_WRITE : 0));
    link->source.edge = !reads && !link->blocked; /* one that is blocked may be ready already */
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
    link->end_code = (int8_t)code;
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
    link->rest_frames = (uint16_t)link->pipeline.frames;
    pt_context_arm(context, &link->rest_timer, keeps ? PT_REST_MS : PT_NOTES_REST_MS);
}

void pt_link_rest(pt_context *context, pt_link *link)
{
    if ((uint16_t)link->pipeline.frames == link->rest_frames && link->pipeline.pending_count == 0) {
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
        if (result == PT_OK && count == 0 && link->departs != NULL && !link->wanted) {
            watch_rest(context, link);
            continue; /* the link has a use for the slot itself */
        }
        int is_news =
            PT_WORKERS && (result != PT_OK || (link->wanted && !link->pipeline.awaited) ||
                           link->pipeline.refers || link->state != PT_LINK_OPEN ||
                           (pt_worker_of(context) != NULL && pt_worker_of(context)->tells_sent));
        if (result == PT_OK) {
            link->due |= PT_DUE_SENT;
            link->wanted = 0;
            link->sent_count += count;
            if (count != 0 && context->ops->unacknowledged != NULL)
                note_sent(context, link, count);
        } else {
            link->failed_count = count;
            link->failed_code = (int8_t)result;
        }
        pt_context_owe(context, link, is_news);
        watch_rest(context, link);
    }
}

int pt_link_launch(pt_context *context, pt_link *link, int blocking)
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
        pt_hold *hold = PT_WIDE && link->pipeline.refers ? slot->hold : NULL;
        while (hold != NULL && result == PT_OK && hold->sent < hold->len) {
            uint32_t left = hold->len - hold->sent;
            uint16_t part = (uint16_t)(left < UINT16_MAX ? left : UINT16_MAX);
            result = context->ops->tcp_send(context, link, hold->payload + hold->sent, part);
            hold->sent += result == PT_OK ? part : 0;
        }
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

/* Launch all slots, and free those that are done. 0 when the link cannot go on. */
static int move_slots(pt_context *context, pt_link *link)
{
    PT_ASSERT(pt_link_is_live(link) && !link->blocked);

    while (link->pipeline.filling_count != 0) {
        if (!pt_link_launch(context, link, 0))
            return 0;
    }
    if (context->ops->poll_send_completions != NULL && link->pipeline.pending_count != 0) {
        if (pt_worker_of(context) != NULL)
            link->busy = !pt_worker_of(context)->is_asleep;
        int result = context->ops->poll_send_completions(context, link);
        if (PT_WORKERS)
            link->busy = 0;
        if (result < 0) {
            pt_link_harvest(context, link);
            fail_writing(context, link, result);
            return 0;
        }
    }
    pt_link_harvest(context, link);
    return 1;
}

#if PT_WIDE
uint32_t pt_link_slice_max(const pt_context *context, const pt_link *link)
{
    PT_ASSERT(link->pipeline.small_size <= link->pipeline.slot_size);

    if (link->pipeline.small_size < PT_WIDE_HEADER_SIZE)
        return 0;
    return context->ops != NULL && context->ops->refers
               ? PT_WIDE_MAX_PAYLOAD
               : (uint32_t)link->pipeline.small_size - PT_WIDE_HEADER_SIZE;
}

/* Put the next slice of what departs into a slot. 0: not now. */
static int feed_slice(pt_context *context, pt_link *link)
{
    pt_departure *departs = link->departs;
    pt_send_pipeline *pipeline = &link->pipeline;
    PT_ASSERT(departs->offset < departs->total && departs->id != 0);

    uint32_t size = pt_link_slice_max(context, link);
    if (size > departs->total - departs->offset)
        size = departs->total - departs->offset;
    uint32_t referred = pt_pipeline_referred(pipeline);
    if (referred != 0 && referred + size > PT_WIDE_MAX_PAYLOAD)
        return 0;
    if (pipeline->pending_count != 0 && pt_pipeline_available(pipeline) < 2)
        return 0;
    pt_hold *hold = context->ops->refers ? departs->hold(departs) : NULL;
    if (hold == NULL && context->ops->refers)
        return 0;
    pt_wide wide = {.type = PT_FRAME_DATA,
                    .payload_len = size,
                    .id = departs->id,
                    .offset = departs->offset,
                    .total = departs->total};
    if (pt_pipeline_send_wide(pipeline, &wide, departs->payload + departs->offset, hold) != PT_OK) {
        pipeline->refusals--; /* nobody asked */
        if (hold != NULL)
            hold->let_go(hold);
        return 0;
    }
    departs->offset += size;
    if (departs->offset == departs->total)
        pt_link_recall(link);
    return 1;
}

int pt_link_feed(pt_context *context, pt_link *link)
{
    PT_ASSERT(link->departs == NULL || pt_link_departing(link) != 0);

    int fed = 0;
    while (link->departs != NULL && link->state == PT_LINK_OPEN && feed_slice(context, link))
        fed = 1;
    return fed;
}

uint32_t pt_link_departing(const pt_link *link)
{
    PT_ASSERT(link->departs == NULL || link->departs->offset <= link->departs->total);

    return link->departs != NULL ? link->departs->total - link->departs->offset : 0;
}

void pt_link_recall(pt_link *link)
{
    pt_departure *departs = link->departs;
    link->departs = NULL;
    if (departs != NULL)
        departs->drop(departs);
}
#endif

void pt_link_push(pt_context *context, pt_link *link)
{
    if (!pt_link_is_live(link) || link->state == PT_LINK_BROKEN || link->blocked)
        return;
    int waits = link->pipeline.pending_count != link->pipeline.filling_count;
    uint32_t sent_bytes = (uint32_t)link->sent_bytes;
    if (!move_slots(context, link))
        return;
    for (int slices = 1; PT_WIDE && link->departs != NULL && !link->blocked; slices++) {
        if (slices < PT_PUSH_SLICES && pt_link_feed(context, link)) {
            if (!move_slots(context, link))
                return;
        } else if (link->state == PT_LINK_OPEN) {
            link->blocked = 1; /* others have their turn, and the system says when ours comes */
        } else {
            break;
        }
    }
    if (!waits || (uint32_t)link->sent_bytes != sent_bytes) {
        link->moved = context->wheel.now;
        link->pipeline.is_still = 0;
    }
    pt_link_finish(context, link);
    if (link->blocked != ((link->source.interest & PT_WANT_WRITE) != 0))
        pt_link_update_interest(context, link);
}

/* Have a link for the caller alone: its context, and no system call of a worker with it. */
static void enter(pt_context *context, const pt_link *link)
{
    pt_context_lock(context);
    PT_ASSERT(!link->busy || pt_worker_of(context) != NULL);
    while (PT_WORKERS && link->busy)
        context->ops->settle(context, 0);
}

#if PT_WORKERS
void pt_link_await_rest(pt_context *context, const pt_link *link)
{
    enter(context, link);
    pt_context_unlock(context);
}
#endif

static int open_link(pt_context *context, pt_link *link, intptr_t handle, uint32_t tag,
                     pt_send_slot *slots, uint8_t depth, uint16_t slot_size, int packing,
                     uint32_t max_payload, const pt_format *format)
{
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
    link->unread = pt_worker_of(context) != NULL ? PT_UNREAD_PAUSED : 0;
    link->source.interest = pt_worker_of(context) != NULL ? 0 : PT_WANT_READ;
    link->source.edge = pt_worker_of(context) != NULL;
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
    pt_ingest_init(&link->ingest, format, context->pool, max_payload, tag);
    move(link, PT_LINK_STEP_OPEN);
    pt_context_count_link(context, max_payload);
    return PT_OK;
}

int pt_link_open(pt_context *context, pt_link *link, intptr_t handle, uint32_t tag,
                 pt_send_slot *slots, uint8_t depth, uint16_t slot_size, int packing,
                 uint32_t max_payload, const pt_format *format)
{
    if (context == NULL || context->ops == NULL || link == NULL || format == NULL ||
        max_payload > PT_FRAME_MAX_PAYLOAD)
        return PT_ERR_INVALID_PARAM;
    pt_context_lock(context);
    int result = open_link(context, link, handle, tag, slots, depth, slot_size, packing,
                           max_payload, format);
    pt_context_unlock(context);
    return result;
}

static int close_link(pt_context *context, pt_link *link)
{
    if (link->state == PT_LINK_NONE)
        return link->pipeline.depth ? pt_pipeline_cleanup(&link->pipeline) : 0;
    if (link->state != PT_LINK_ENDED)
        pt_link_end(context, link, PT_OK, 0);
    link->due = 0;
    pt_context_leave(context, link, PT_LINE_DIRTY);
    if (PT_PROMPT || PT_WORKERS)
        pt_context_leave(context, link, PT_LINE_LEFT);
    pt_context_remove_source(context, &link->source);
    move(link, PT_LINK_STEP_CLOSE);
    PT_ASSERT(!link->in_line[PT_LINE_HELD] && link->held == NULL);
    if (PT_WIDE)
        pt_link_recall(link);
    int abandoned = pt_pipeline_cleanup(&link->pipeline);
    pt_context_uncount_link(context);
    return abandoned;
}

int pt_link_close(pt_context *context, pt_link *link)
{
    enter(context, link);
    PT_ASSERT(!link->busy);
    int abandoned = close_link(context, link);
    pt_context_unlock(context);
    return abandoned;
}

void pt_link_ask_for_turn(pt_context *context)
{
    if (context->ops->wake != NULL)
        context->ops->wake(context);
}

uint32_t pt_link_still_ms(const pt_context *context, const pt_link *link)
{
    return (uint32_t)pt_context_ms(context, context->wheel.now - link->moved);
}

void pt_link_pause(pt_context *context, pt_link *link)
{
    enter(context, link);
    link->unread |= PT_UNREAD_PAUSED;
    pt_link_update_reading(context, link);
    pt_context_unlock(context);
}

void pt_link_resume(pt_context *context, pt_link *link)
{
    enter(context, link);
    link->unread &= (uint8_t)~PT_UNREAD_PAUSED;
    pt_link_update_reading(context, link);
    pt_context_unlock(context);
}

void pt_link_shut(pt_context *context, pt_link *link)
{
    enter(context, link);
    if (link->state == PT_LINK_OPEN) {
        PT_ASSERT(link->end_code == PT_OK);
        move(link, PT_LINK_STEP_SHUT);
        if (pt_worker_of(context) != NULL) {
            pt_context_hand_over(context, link);
        } else {
            pt_link_push(context, link);
            pt_link_finish(context, link);
            if (link->in_line[PT_LINE_DIRTY] || (PT_PROMPT && link->in_line[PT_LINE_LEFT]))
                pt_link_ask_for_turn(context);
        }
    }
    pt_context_unlock(context);
}

uint32_t pt_link_unconfirmed(pt_context *context, const pt_link *link)
{
    if (!PT_WORKERS && link->state == PT_LINK_NONE)
        return 0;
    pt_context_lock(context);
    uint32_t count = 0;
    if (!PT_WORKERS || link->state != PT_LINK_NONE)
        count = link->state == PT_LINK_ENDED ? link->unconfirmed : count_unconfirmed(context, link);
    count = count > link->sent_count ? count - link->sent_count : 0; /* those are not told yet */
    pt_context_unlock(context);
    return count;
}

#if PT_PROMPT
uint32_t pt_link_settle(pt_context *context, pt_link *link)
{
    pt_context_lock(context);
    PT_ASSERT(link->due & PT_DUE_SENT || link->sent_count == 0 || link->state == PT_LINK_NONE);
    uint32_t count = link->state != PT_LINK_NONE ? link->sent_count : 0;
    link->sent_count -= count;
    pt_context_unlock(context);
    return count;
}
#endif

void pt_link_set_frame_timeout(pt_context *context, pt_link *link, uint32_t timeout_ms)
{
    enter(context, link);
    link->frame_timeout_ms = timeout_ms;
    if (pt_timer_is_armed(&link->frame_timer))
        pt_context_arm(context, &link->frame_timer, timeout_ms);
    pt_context_unlock(context);
}
