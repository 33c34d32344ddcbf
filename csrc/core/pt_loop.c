#include "pt_loop.h"

#include <string.h>

#include "pt_assert.h"

/* Events that one link may need in a turn: SENT, SENT of a failure, FINISHED, CLOSED. */
#define LINK_EVENTS 4

/* pt_link.mean: so much or more asks for no shorter read. */
#define MEAN_MAX 1024

/* Bytes for which a read is worth its system call: what is left of them fits a small buffer. */
#define READ_LEAST 1024

/* How long a link waits at most before it asks again for a staging buffer. */
#define STARVED_RETRY_MS 10

/* ---------------------------------------------------------------------------------- time, lists */

static uint32_t ticks_from_ms(const pt_context *context, uint32_t ms)
{
    uint32_t per_second = context->ops->ticks_per_second;
    if (per_second == 1000)
        return ms;
    return (uint32_t)(((uint64_t)ms * per_second + 999) / 1000);
}

/* Rounded up, at most INT32_MAX. */
static int ms_from_ticks(const pt_context *context, uint32_t ticks)
{
    uint64_t per_second = context->ops->ticks_per_second;
    uint64_t ms = ((uint64_t)ticks * 1000 + per_second - 1) / per_second;
    return ms > INT32_MAX ? INT32_MAX : (int)ms;
}

/* For how long nothing of what waits in the link has left. */
static uint32_t still_for_ms(const pt_context *context, const pt_link *link)
{
    return (uint32_t)ms_from_ticks(context, context->wheel.now - link->moved);
}

/* The tick that has begun does not count: never early. */
static void arm(pt_context *context, pt_timer *timer, uint32_t delay_ms)
{
    uint32_t ticks = delay_ms != 0 ? ticks_from_ms(context, delay_ms) + 1 : 0;
    pt_wheel_arm(&context->wheel, timer, context->ops->clock(context) + ticks);
}

/* At the end, so that links whose events found no room come first in the next turn. */
static void add_dirty(pt_context *context, pt_link *link)
{
    if (link->dirty)
        return;
    link->dirty = 1;
    link->next_dirty = NULL;
    *context->dirty_end = link;
    context->dirty_end = &link->next_dirty;
}

static void remove_dirty(pt_context *context, pt_link *link)
{
    if (!link->dirty)
        return;
    pt_link **place = &context->dirty;
    while (*place != link)
        place = &(*place)->next_dirty;
    *place = link->next_dirty;
    if (link->next_dirty == NULL)
        context->dirty_end = place;
    link->next_dirty = NULL;
    link->dirty = 0;
}

/* Links with held bytes, in the order in which they wait for their turn. */
static void add_held(pt_context *context, pt_link *link)
{
    if (link->is_held)
        return;
    link->is_held = 1;
    link->next_held = NULL;
    *context->held_end = link;
    context->held_end = &link->next_held;
}

static void remove_held(pt_context *context, pt_link *link)
{
    if (!link->is_held)
        return;
    pt_link **place = &context->held;
    while (*place != link)
        place = &(*place)->next_held;
    *place = link->next_held;
    if (link->next_held == NULL)
        context->held_end = place;
    link->next_held = NULL;
    link->is_held = 0;
}

static void add_source(pt_context *context, pt_source *source)
{
    source->next = context->sources;
    if (source->next != NULL)
        source->next->place = &source->next;
    source->place = &context->sources;
    context->sources = source;
}

static void remove_source(pt_context *context, pt_source *source)
{
    for (uint32_t index = 0; source->queued && index < context->ready_count; index++) {
        if (context->ready[index] == source)
            context->ready[index] = NULL;
    }
    source->queued = 0;
    source->ready = 0;
    *source->place = source->next;
    if (source->next != NULL)
        source->next->place = source->place;
    source->next = NULL;
    source->place = NULL;
}

void pt_context_ready(pt_context *context, pt_source *source)
{
    if (source->queued || context->ready_count >= context->io_budget)
        return;
    source->queued = 1;
    context->ready[context->ready_count++] = source;
}

/* -------------------------------------------------------------------------------------- context */

int pt_context_init(pt_context *context, const pt_platform_ops *ops, void *platform_data,
                    pt_pool *pool, uint8_t *receive_buffer, uint32_t receive_buffer_size,
                    uint32_t io_budget)
{
    if (context == NULL || ops == NULL || pool == NULL || receive_buffer == NULL ||
        io_budget == 0 || io_budget > PT_IO_BUDGET ||
        receive_buffer_size < PT_FRAME_OVERHEAD + PT_FRAME_MAX_PAYLOAD ||
        receive_buffer_size > INT32_MAX || ops->ticks_per_second == 0)
        return PT_ERR_INVALID_PARAM;

    memset(context, 0, sizeof *context);
    context->ops = ops;
    context->platform_data = platform_data;
    context->pool = pool;
    context->receive_buffer = receive_buffer;
    context->receive_buffer_size = receive_buffer_size;
    context->io_budget = io_budget;
    context->dirty_end = &context->dirty;
    context->held_end = &context->held;
    context->pool_timer.kind = PT_TIMER_POOL;
    context->step =
        pt_pool_largest(pool) < receive_buffer_size ? pt_pool_largest(pool) : receive_buffer_size;
    pt_wheel_init(&context->wheel, ops->clock(context));
    return PT_OK;
}

/* Receive memory that no link needs any more. */
static void drop_spare(pt_context *context)
{
    if (context->spare != NULL)
        pt_pool_release(context->pool, context->spare, 0);
    context->spare = NULL;
}

int pt_context_cleanup(pt_context *context)
{
    if (context->sources != NULL)
        return PT_ERR_INVALID_STATE;
    if (context->ops != NULL)
        drop_spare(context);
    context->ops = NULL;
    return PT_OK;
}

/* 1 when a staging buffer for the largest frame is in hand. A link is read only then, so that what
 * was read always finds a place. */
static int has_spare(pt_context *context)
{
    if (context->spare == NULL)
        context->spare = pt_pool_acquire_share(context->pool, context->frame_size);
    return context->spare != NULL;
}

/* --------------------------------------------------------------------------- the life of a link */

static int is_read(const pt_link *link)
{
    return !link->paused && !link->starved && !link->read_ended;
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
    const pt_send_pipeline *pipeline = &link->pipeline;
    uint32_t position = (uint32_t)link->sent_bytes;
    uint32_t end =
        position - (pipeline->pending_count != 0 ? pipeline->slots[pipeline->head].sent_len : 0U);
    if (pt_notes_need_room(&link->notes, context->pool, (uint32_t)context->turns))
        pt_notes_make_room(&link->notes, position, context->ops->unacknowledged(context, link));
    pt_notes_add(&link->notes, (uint32_t)context->turns, end, count);
}

/* Held bytes that were taken apart, or that nobody will. */
static void drop_held(pt_context *context, pt_link *link)
{
    remove_held(context, link);
    if (link->held != NULL)
        pt_pool_release(context->pool, link->held, link->held_len);
    link->held = NULL;
    link->held_len = 0;
    link->held_at = 0;
}

/* Over: no more reading, writing or events but those that are due. */
static void end_link(pt_context *context, pt_link *link, int code, int32_t system_error)
{
    PT_ASSERT(link->state == PT_LINK_OPEN || link->state == PT_LINK_SHUT);
    link->unconfirmed = count_unconfirmed(context, link);
    pt_notes_drop(&link->notes, context->pool);
    link->state = PT_LINK_ENDED;
    link->end_code = (int16_t)code;
    link->end_error = system_error;
    link->close_due = 1;
    link->finish_due = 0;
    if (link->starved) {
        link->starved = 0;
        context->starved_count--;
    }
    context->ops->forget(context, &link->source);
    pt_wheel_cancel(&context->wheel, &link->frame_timer);
    pt_wheel_cancel(&context->wheel, &link->rest_timer);
    pt_ingest_cleanup(&link->ingest);
    drop_held(context, link);
    add_dirty(context, link);
}

/* Tell the platform what we wait for. Without interest in reading a hang-up cannot be masked, so it
 * must be heard at most once. */
static void update_interest(pt_context *context, pt_link *link)
{
    if (link->state != PT_LINK_OPEN && link->state != PT_LINK_SHUT)
        return;
    int reads = is_read(link);
    link->source.interest =
        (uint8_t)((reads ? PT_WANT_READ : 0) | (link->blocked ? PT_WANT_WRITE : 0));
    link->source.edge = !reads;
    int result = context->ops->watch(context, &link->source);
    if (result != PT_OK)
        end_link(context, link, result, link->system_error);
}

/* The partial-frame time-out runs while a frame has begun and we do read. */
static void update_frame_timer(pt_context *context, pt_link *link, int restart)
{
    if (pt_ingest_partial_len(&link->ingest) == 0 || !is_read(link))
        pt_wheel_cancel(&context->wheel, &link->frame_timer);
    else if (restart || !pt_timer_is_armed(&link->frame_timer))
        arm(context, &link->frame_timer, link->frame_timeout_ms);
}

static void update_reading(pt_context *context, pt_link *link)
{
    if (link->state != PT_LINK_OPEN && link->state != PT_LINK_SHUT)
        return;
    update_frame_timer(context, link, 0);
    update_interest(context, link);
    if (link->held != NULL && is_read(link))
        add_held(context, link);
}

/* Writing is over. A broken connection is read to its end before it is reported: what came before
 * the break is the other side's word. */
static void fail_writing(pt_context *context, pt_link *link, int code)
{
    if (code != PT_ERR_CONNECTION_CLOSED || link->read_ended) {
        end_link(context, link, code, link->system_error);
        return;
    }
    link->state = PT_LINK_SHUT;
    link->end_code = (int16_t)code;
    link->end_error = link->system_error;
    link->blocked = 0;
    update_interest(context, link);
}

/* While slots or notes keep buffers, look in a while whether the link has become idle. */
static void watch_rest(pt_context *context, pt_link *link)
{
    int keeps = pt_pipeline_keeps(&link->pipeline);
    if ((link->state != PT_LINK_OPEN && link->state != PT_LINK_SHUT) ||
        pt_timer_is_armed(&link->rest_timer) || (!keeps && link->notes.room <= 1))
        return;
    link->rest_frames = (uint32_t)link->pipeline.frames;
    arm(context, &link->rest_timer, keeps ? PT_REST_MS : PT_NOTES_REST_MS);
}

/* Give back what an idle link has no use for. */
static void rest(pt_context *context, pt_link *link)
{
    if ((uint32_t)link->pipeline.frames == link->rest_frames && link->pipeline.pending_count == 0) {
        pt_pipeline_rest(&link->pipeline);
        if (link->notes.room > 1 && count_unconfirmed(context, link) == 0)
            pt_notes_drop(&link->notes, context->pool);
    }
    watch_rest(context, link);
}

/* Free the slots that are done, and remember what to report. */
static void harvest(pt_context *context, pt_link *link)
{
    uint32_t count;
    int result;
    while (link->failed_code == PT_OK && pt_pipeline_report(&link->pipeline, &count, &result)) {
        if (result == PT_OK) {
            link->slot_freed = 1;
            link->sent_count += count;
            if (count != 0 && context->ops->unacknowledged != NULL)
                note_sent(context, link, count);
        } else {
            link->failed_count = count;
            link->failed_code = result;
        }
        add_dirty(context, link);
        watch_rest(context, link);
    }
}

/* Hand the oldest FILLING slot to the platform; blocking: and wait until it has left, as worlds
 * without tcp_send_async always do. 0 when the link cannot go on. */
static int launch(pt_context *context, pt_link *link, int blocking)
{
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

/* End our half of the stream when all has left, and the link when both halves are ended. */
static void finish(pt_context *context, pt_link *link)
{
    if (link->state != PT_LINK_SHUT || link->end_code != PT_OK || link->pipeline.pending_count != 0)
        return;
    if (!link->finished) {
        int result = context->ops->tcp_finish(context, link);
        if (result != PT_OK) {
            end_link(context, link, result, link->system_error);
            return;
        }
        link->finished = 1;
    }
    if (link->read_ended)
        end_link(context, link, PT_OK, 0);
}

/* Move all frames of a link as far as the platform takes them, and free what is done. */
static void push(pt_context *context, pt_link *link)
{
    if ((link->state != PT_LINK_OPEN && link->state != PT_LINK_SHUT) || link->end_code != PT_OK ||
        link->blocked)
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
            harvest(context, link);
            fail_writing(context, link, result);
            return;
        }
    }
    harvest(context, link);
    if (!waits || (uint32_t)link->sent_bytes != sent_bytes) {
        link->moved = context->wheel.now;
        link->pipeline.is_still = 0;
    }
    finish(context, link);
    if (link->blocked != ((link->source.interest & PT_WANT_WRITE) != 0))
        update_interest(context, link);
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
    int lazy = !context->ops->classic || PT_PIPELINE_LAZY;
    int result =
        pt_pipeline_init(&link->pipeline, slots, depth, slot_size, context->pool, lazy, packing);
    if (result != PT_OK)
        return result;
    link->source.handle = handle;
    link->source.tag = tag;
    link->source.kind = PT_SOURCE_LINK;
    link->source.interest = PT_WANT_READ;
    link->source.registered = 0xFF;
    add_source(context, &link->source);
    result = context->ops->watch(context, &link->source);
    if (result != PT_OK) {
        remove_source(context, &link->source);
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
    link->mean = MEAN_MAX;
    pt_notes_init(&link->notes);
    link->read_max = UINT32_MAX;
    pt_ingest_init(&link->ingest, pt_message_format(), context->pool, max_payload, tag);
    link->state = PT_LINK_OPEN;
    context->link_count++;
    if (max_payload + PT_FRAME_OVERHEAD > context->frame_size) {
        drop_spare(context);
        context->frame_size = max_payload + PT_FRAME_OVERHEAD;
    }
    return PT_OK;
}

/* Read again the links that waited for a staging buffer. One is enough for all: it is handed on
 * from link to link. */
static void feed_starved(pt_context *context)
{
    if (context->starved_count == 0 || !has_spare(context))
        return;
    for (pt_source *source = context->sources; source != NULL && context->starved_count != 0;
         source = source->next) {
        pt_link *link = (pt_link *)source;
        if (source->kind != PT_SOURCE_LINK || !link->starved)
            continue;
        link->starved = 0;
        context->starved_count--;
        update_reading(context, link);
    }
}

/* Room for a frame that was refused: launch and move what is there. 1 when it is worth trying
 * again. */
static int make_room(pt_context *context, pt_link *link)
{
    if (link->blocked)
        return 0;
    uint8_t pending_count = link->pipeline.pending_count;
    push(context, link);
    if (link->state != PT_LINK_OPEN) {
        /* The caller heard no hint, and must yet hear of the end. */
        if (context->ops->wake != NULL)
            context->ops->wake(context);
        return 0;
    }
    return link->pipeline.pending_count < pending_count;
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

/* Count a frame that was accepted. Returns PT_SEND_YIELD, or 0. */
static int count_frame(pt_context *context, uint32_t payload_len)
{
    context->turn_messages++;
    context->turn_bytes += payload_len;
    return context->turn_messages >= PT_TURN_MAX_MESSAGES ||
                   context->turn_bytes >= PT_TURN_MAX_BYTES
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
        pipeline->is_still = still_for_ms(context, link) >= PT_STILL_MS;
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
    if (!link->dirty && !link->blocked) { /* a blocked link is pushed when it becomes ready */
        add_dirty(context, link);
        hints = PT_SEND_NEEDS_TURN;
    }
    hints |= count_frame(context, payload_len);
    if (flags & PT_FLAG_NO_DELAY) {
        push(context, link);
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
    uint32_t limit =
        (uint32_t)((uint64_t)PT_DRAIN_TIMEOUT_TICKS * ops->ticks_per_second / PT_TICKS_PER_SECOND);
    uint32_t start = ops->clock(context);
    uint32_t passed = 0;
    int waited = 0;
    int result = PT_OK;
    push(context, link);
    while (link->state == PT_LINK_OPEN && link->pipeline.pending_count != 0 && result == PT_OK) {
        if (link->failed_code != PT_OK || ops->wait_send_completions == NULL) {
            result = PT_ERR_WOULD_BLOCK;
        } else if (passed >= limit) {
            result = PT_ERR_TIMEOUT;
        } else {
            result =
                ops->wait_send_completions(context, link, ms_from_ticks(context, limit - passed));
            passed = ops->clock(context) - start;
            waited = 1;
            link->blocked = 0; /* pushing finds out anew */
            push(context, link);
        }
    }
    if (link->state != PT_LINK_OPEN)
        result = PT_ERR_NOT_CONNECTED;
    if ((waited || result != PT_OK) && ops->wake != NULL)
        ops->wake(
            context); /* what came of it is to be reported, though the caller may hear no hint */
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
    int hints = count_frame(context, payload_len) | PT_SEND_NEEDS_TURN;
    if (launch(context, link, 1))
        harvest(context, link);
    return hints;
}

void pt_link_pause(pt_context *context, pt_link *link)
{
    link->paused = 1;
    update_reading(context, link);
}

void pt_link_resume(pt_context *context, pt_link *link)
{
    link->paused = 0;
    update_reading(context, link);
}

void pt_link_shut(pt_context *context, pt_link *link)
{
    if (link->state != PT_LINK_OPEN)
        return;
    link->state = PT_LINK_SHUT;
    push(context, link);
    if (link->state == PT_LINK_SHUT)
        finish(context, link);
    if (link->dirty && context->ops->wake != NULL)
        context->ops->wake(context);
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
        arm(context, &link->frame_timer, timeout_ms);
}

int pt_link_close(pt_context *context, pt_link *link)
{
    if (link->state == PT_LINK_NONE)
        return link->pipeline.depth ? pt_pipeline_cleanup(&link->pipeline) : 0;
    if (link->state != PT_LINK_ENDED)
        end_link(context, link, PT_OK, 0);
    link->close_due = 0;
    pt_wheel_cancel(&context->wheel, &link->frame_timer);
    pt_wheel_cancel(&context->wheel, &link->rest_timer);
    remove_dirty(context, link);
    remove_source(context, &link->source);
    link->state = PT_LINK_NONE;
    int abandoned = pt_pipeline_cleanup(&link->pipeline);
    if (--context->link_count == 0) {
        drop_spare(context);
        context->frame_size = 0;
        pt_wheel_cancel(&context->wheel, &context->pool_timer);
        (void)pt_pool_trim(context->pool);
    }
    return abandoned;
}

/* ------------------------------------------------------------------------------ watches, timers */

int pt_watch_open(pt_context *context, pt_watch *watch, intptr_t handle, uint32_t tag,
                  uint8_t interest)
{
    if (context == NULL || context->ops == NULL || watch == NULL ||
        interest > (PT_WANT_READ | PT_WANT_WRITE))
        return PT_ERR_INVALID_PARAM;
    if (watch->source.place != NULL)
        return PT_ERR_ALREADY_INITIALIZED;
    memset(watch, 0, sizeof *watch);
    watch->source.handle = handle;
    watch->source.tag = tag;
    watch->source.kind = PT_SOURCE_WATCH;
    watch->source.registered = 0xFF;
    add_source(context, &watch->source);
    int result = pt_watch_set(context, watch, interest);
    if (result != PT_OK)
        remove_source(context, &watch->source);
    return result;
}

int pt_watch_set(pt_context *context, pt_watch *watch, uint8_t interest)
{
    if (interest > (PT_WANT_READ | PT_WANT_WRITE) || watch->source.place == NULL)
        return PT_ERR_INVALID_PARAM;
    watch->source.interest = interest;
    watch->source.edge = interest == 0; /* else its hang-up would spin */
    return context->ops->watch(context, &watch->source);
}

void pt_watch_close(pt_context *context, pt_watch *watch)
{
    if (watch->source.place == NULL)
        return;
    context->ops->forget(context, &watch->source);
    remove_source(context, &watch->source);
}

void pt_loop_arm(pt_context *context, pt_timer *timer, uint32_t delay_ms)
{
    if (context->ops == NULL)
        return;
    timer->kind = PT_TIMER_CALLER;
    arm(context, timer, delay_ms);
}

void pt_loop_cancel(pt_context *context, pt_timer *timer)
{
    pt_wheel_cancel(&context->wheel, timer);
}

/* ------------------------------------------------------------------------------------- one turn */

/* Nothing more comes from the other side. */
static void end_of_stream(pt_context *context, pt_link *link)
{
    if (link->end_code != PT_OK) {
        end_link(context, link, link->end_code, link->end_error);
    } else if (pt_ingest_partial_len(&link->ingest) != 0) {
        end_link(context, link, PT_ERR_TRUNCATED, 0);
    } else {
        link->read_ended = 1;
        update_interest(context, link);
        if (link->state == PT_LINK_OPEN) {
            link->finish_due = 1;
            add_dirty(context, link);
        } else if (link->state == PT_LINK_SHUT) {
            finish(context, link);
        }
    }
}

/* Give bytes of the stream to the ingest. PT_OK; PT_ERR_BUSY when the link has had its share of the
 * turn, which *consumed says; or what ends the link. */
static int feed(pt_context *context, pt_link *link, const uint8_t *data, size_t len,
                const pt_sink *sink, size_t *consumed)
{
    int result = pt_ingest_feed(&link->ingest, data, len, sink, consumed);
    if (result == PT_ERR_BACKPRESSURE) {
        PT_ASSERT(context->spare != NULL);
        pt_ingest_lend(&link->ingest, context->spare);
        context->spare = NULL;
        size_t again = 0;
        result = pt_ingest_feed(&link->ingest, data + *consumed, len - *consumed, sink, &again);
        PT_ASSERT(result != PT_ERR_BACKPRESSURE);
        *consumed += again;
    }
    return result == PT_ERR_BUSY && *consumed == len ? PT_OK : result;
}

/* Keep what a turn has read and may not take apart. 0: there is no memory for it. */
static int hold(pt_context *context, pt_link *link, const uint8_t *data, size_t len)
{
    PT_ASSERT(data != NULL && len != 0);
    link->held = pt_pool_acquire(context->pool, (uint32_t)len);
    if (link->held == NULL)
        return 0;
    memcpy(link->held, data, len);
    link->held_len = (uint32_t)len;
    link->held_at = 0;
    return 1;
}

/* Note what a link has taken of this turn, and what its stream is like. */
static void count_work(pt_context *context, pt_link *link, size_t len, pt_sink *sink)
{
    uint32_t work = link->ingest.work;
    context->work_left -= work < context->work_left ? work : context->work_left;
    if (sink->room != UINT32_MAX)
        sink->room -= (uint32_t)len;
    uint32_t mean = work != 0 ? (uint32_t)(len << 4) / work + 1 : MEAN_MAX;
    link->mean = (uint16_t)(mean < MEAN_MAX ? mean : MEAN_MAX);
}

/* Take bytes of the stream apart, those just read or those held, as far as work goes. What is left
 * is held. */
static void take_apart(pt_context *context, pt_link *link, const uint8_t *data, size_t len,
                       pt_sink *sink, uint32_t work)
{
    pt_ingest *ingest = &link->ingest;
    uint32_t frames = (uint32_t)ingest->frames;
    int was_held = link->held != NULL;
    size_t consumed = 0;
    ingest->work = 0;
    ingest->work_limit = work;
    int result = feed(context, link, data, len, sink, &consumed);
    if (was_held) {
        link->held_at += (uint32_t)consumed;
    } else if (result == PT_ERR_BUSY && !hold(context, link, data + consumed, len - consumed)) {
        size_t rest = 0; /* better a long turn than a lost byte */
        ingest->work_limit = 0;
        result = feed(context, link, data + consumed, len - consumed, sink, &rest);
        consumed += rest;
    }
    count_work(context, link, consumed, sink);
    if (result == PT_OK || result == PT_ERR_BUSY) {
        update_frame_timer(context, link, (uint32_t)ingest->frames != frames);
        if (link->held_at < link->held_len)
            add_held(context, link);
        else
            drop_held(context, link);
        return;
    }
    if (ingest->state == PT_INGEST_INIT) { /* a fault of the frame; else the sink could not go on */
        context->bad_frames++;
        if (result == PT_ERR_CRC)
            context->crc_errors++;
    }
    end_link(context, link, result, 0);
}

/* How much to read at once: about what may be taken apart, and the rest of a cut frame in any case.
 * Without a spare buffer that rest alone, which needs no other; 0 where none has begun. */
static uint32_t read_size(pt_context *context, const pt_link *link, uint32_t room, uint32_t work,
                          int alone)
{
    const pt_ingest *ingest = &link->ingest;
    uint32_t rest = ingest->state == PT_INGEST_WAIT_PAYLOAD
                        ? ingest->frame_len - pt_ingest_partial_len(ingest)
                        : 0;
    uint32_t size = context->step;
    if (!alone && size > PT_LINK_MAX_READ)
        size = PT_LINK_MAX_READ;
    if (link->mean < MEAN_MAX && size > (work * link->mean >> 4)) {
        size = work * link->mean >> 4;
        if (size < READ_LEAST)
            size = READ_LEAST;
    }
    if (!has_spare(context))
        size = rest;
    else if (size < rest + PT_HEADER_SIZE)
        size = rest + PT_HEADER_SIZE;
    if (size > link->read_max)
        size = link->read_max;
    return size < room ? size : room;
}

/* Read a link as far as it may be in this turn; alone: as nobody else has anything to read. What it
 * does not come to stays ready. */
static void read_link(pt_context *context, pt_link *link, pt_sink *sink, int alone)
{
    uint32_t left = context->work_left;
    if (left == 0 || sink->room == 0)
        return;
    uint32_t work = alone || left < PT_LINK_MAX_WORK ? left : PT_LINK_MAX_WORK;
    uint32_t size = read_size(context, link, sink->room, work, alone);
    if (size == 0) {
        link->starved = 1;
        context->starved_count++;
        update_reading(context, link);
        return;
    }
    int count = context->ops->tcp_receive(context, link, context->receive_buffer, size);
    if (count == PT_ERR_WOULD_BLOCK)
        return;
    if (count == PT_ERR_CONNECTION_CLOSED && link->system_error == 0) {
        end_of_stream(context, link);
        return;
    }
    if (count < 0) {
        int code = link->end_code != PT_OK ? link->end_code : count;
        end_link(context, link, code, link->system_error);
        return;
    }
    link->received_bytes += (uint64_t)count;
    take_apart(context, link, context->receive_buffer, (size_t)count, sink, work);
}

/* Go on with held bytes. */
static void take_held(pt_context *context, pt_link *link, pt_sink *sink, int alone)
{
    link->held_turn = (uint32_t)context->turns;
    uint32_t left = context->work_left;
    size_t len = link->held_len - link->held_at;
    if (len > sink->room)
        len = sink->room;
    if (left == 0 || len == 0) {
        add_held(context, link);
    } else if (!has_spare(context)) {
        link->starved = 1;
        context->starved_count++;
        update_reading(context, link);
    } else {
        take_apart(context, link, link->held + link->held_at, len, sink,
                   alone || left < PT_LINK_MAX_WORK ? left : PT_LINK_MAX_WORK);
    }
}

/* Serve one ready source. Returns the number of events made (0 or 1). */
static int serve(pt_context *context, pt_source *source, pt_event *event, pt_sink *sink, int alone)
{
    uint8_t ready = source->ready;
    source->ready = 0;
    source->queued = 0;
    if (source->kind == PT_SOURCE_WATCH) {
        memset(event, 0, sizeof *event);
        event->kind = PT_EVENT_READY;
        event->tag = source->tag;
        event->count = ready;
        return 1;
    }

    pt_link *link = (pt_link *)source;
    if ((link->state == PT_LINK_OPEN || link->state == PT_LINK_SHUT) && (ready & PT_READY_READ) &&
        is_read(link) && link->held == NULL && link->held_turn != (uint32_t)context->turns)
        read_link(context, link, sink, alone);
    if ((ready & PT_READY_WRITE) &&
        (link->blocked || link->pipeline.pending_count != 0)) { /* room, or slots that are done */
        link->blocked = 0;
        push(context, link);
    }
    return 0;
}

static pt_event *make_event(const pt_link *link, pt_event *event, uint32_t kind, int32_t code)
{
    memset(event, 0, sizeof *event);
    event->kind = kind;
    event->tag = link->source.tag;
    event->code = code;
    return event;
}

/* 1 when at most one link has something to take apart, as far as is known. */
static int is_alone(const pt_context *context)
{
    int count = context->held != NULL ? 1 + (context->held->next_held != NULL) : 0;
    for (uint32_t index = 0; index < context->ready_count && count < 2; index++) {
        const pt_source *source = context->ready[index];
        if (source == NULL || source->kind != PT_SOURCE_LINK || !(source->ready & PT_READY_READ))
            continue;
        const pt_link *link = (const pt_link *)source;
        count += is_read(link) && !link->is_held;
    }
    return count < 2;
}

/* Give those who held something at the beginning of the turn their share, as many as may be served
 * beside those who are ready. */
static void take_all_held(pt_context *context, pt_sink *sink, int alone)
{
    const pt_link *last = NULL;
    for (uint32_t served = 0; served < context->io_budget && context->held != NULL; served++) {
        pt_link *link = context->held;
        if (link == last)
            break; /* all had their turn */
        remove_held(context, link);
        if (!is_read(link))
            continue; /* comes back when it is read again */
        take_held(context, link, sink, alone);
        if (last == NULL && link->is_held)
            last = link;
    }
}

/* The time of a cut frame is over. Its rest may lie in the system all the same, if it was this
 * program that had no time: read once more before the link ends. */
static void end_late_frame(pt_context *context, pt_link *link, pt_sink *sink)
{
    if (link->held != NULL || context->work_left == 0 || sink->room == 0) {
        arm(context, &link->frame_timer, 1); /* it waits for us */
        return;
    }
    uint32_t frames = (uint32_t)link->ingest.frames;
    read_link(context, link, sink, 0);
    if (link->state != PT_LINK_ENDED && is_read(link) && (uint32_t)link->ingest.frames == frames)
        end_link(context, link, PT_ERR_TIMEOUT, 0);
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
    uint32_t acquires = pt_pool_acquires(context->pool);
    int rests = acquires == context->pool_acquires;
    context->pool_acquires = acquires;
    if (rests)
        (void)pt_pool_trim(context->pool);
    int is_scarce = pt_pool_is_scarce(context->pool);
    if (is_scarce || !rests)
        arm(context, &context->pool_timer, PT_POOL_REST_MS);
    const pt_link *link = is_scarce ? stillest(context) : NULL;
    if (link == NULL)
        return 0;
    make_event(link, event, PT_EVENT_STILL, PT_OK)->count = still_for_ms(context, link);
    return 1;
}

/* Due timers. Those of links end them; the caller's become events, at most capacity. Returns the
 * number of events. */
static int expire_timers(pt_context *context, pt_event *events, int capacity, pt_sink *sink)
{
    int count = 0;
    pt_wheel_advance(&context->wheel, context->ops->clock(context));
    while (count < capacity) {
        pt_timer *timer = pt_wheel_expire(&context->wheel);
        if (timer == NULL)
            break;
        if (timer->kind == PT_TIMER_FRAME) {
            end_late_frame(context,
                           (pt_link *)(void *)((uint8_t *)timer - offsetof(pt_link, frame_timer)),
                           sink);
        } else if (timer->kind == PT_TIMER_REST) {
            rest(context, (pt_link *)(void *)((uint8_t *)timer - offsetof(pt_link, rest_timer)));
        } else if (timer->kind == PT_TIMER_POOL) {
            count += look_at_pool(context, &events[count]);
        } else {
            pt_event *event = &events[count++];
            memset(event, 0, sizeof *event);
            event->kind = PT_EVENT_TIMER;
            event->tag = timer->tag;
        }
    }
    return count;
}

/* What has become of a link since the last turn: up to LINK_EVENTS events. Returns their number. */
static int report_link(pt_link *link, pt_event *events)
{
    int count = 0;
    if (link->slot_freed) {
        make_event(link, &events[count++], PT_EVENT_SENT, PT_OK)->count = link->sent_count;
        link->slot_freed = 0;
        link->sent_count = 0;
    }
    if (link->failed_code != PT_OK) {
        make_event(link, &events[count++], PT_EVENT_SENT, link->failed_code)->count =
            link->failed_count;
        link->failed_code = PT_OK;
        link->failed_count = 0;
    }
    if (link->finish_due) {
        make_event(link, &events[count++], PT_EVENT_FINISHED, PT_OK);
        link->finish_due = 0;
    }
    if (link->close_due) {
        make_event(link, &events[count++], PT_EVENT_CLOSED, link->end_code)->system_error =
            link->end_error;
        link->close_due = 0;
    }
    return count;
}

/* Empty the dirty list into events; links that do not fit stay for the next turn. */
static int report_links(pt_context *context, pt_event *events, int capacity)
{
    int count = 0;
    while (context->dirty != NULL && capacity - count >= LINK_EVENTS) {
        pt_link *link = context->dirty;
        remove_dirty(context, link);
        int failed = link->failed_code != PT_OK;
        count += report_link(link, &events[count]);
        if (failed)
            harvest(context, link); /* what had to wait behind the failure */
    }
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
    if (context->ops == NULL)
        return PT_ERR_INVALID_PARAM;
    int limit = wait_limit(context, timeout_ms);
    if (limit == 0 ||
        context->woken) /* a turn without waiting may have met the wake that was meant for this */
        return PT_OK;
    context->wait_calls++;
    int count = context->ops->wait(context, limit);
    return count < 0 ? count : PT_OK;
}

int pt_loop_turn(pt_context *context, int timeout_ms, pt_event *events, int capacity,
                 const pt_sink *sink)
{
    if (context->ops == NULL || events == NULL || sink == NULL ||
        capacity < ((int)context->io_budget + 1) * LINK_EVENTS)
        return PT_ERR_INVALID_PARAM;
    context->turns++;
    context->woken = 0;
    context->turn_messages = 0;
    context->turn_bytes = 0;
    context->work_left = PT_TURN_MAX_WORK;

    for (pt_link *link = context->dirty; link != NULL; link = link->next_dirty)
        push(context, link);
    feed_starved(context);

    if (context->ready_count == 0) { /* else pt_loop_wait() was here */
        context->wait_calls++;
        int found =
            context->ops->wait(context, timeout_ms == 0 ? 0 : wait_limit(context, timeout_ms));
        if (found < 0)
            return found;
    }
    int count = 0;
    pt_sink room = *sink;
    int alone = is_alone(context);
    take_all_held(context, &room, alone);
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
        arm(context, &context->pool_timer, PT_POOL_REST_MS);
    return count + report_links(context, &events[count], capacity - count);
}

int pt_loop_next_timeout(pt_context *context)
{
    if (context->ops == NULL)
        return -1;
    if (context->dirty != NULL || context->ready_count != 0 || context->held != NULL)
        return 0;
    pt_wheel_advance(&context->wheel, context->ops->clock(context));
    uint32_t ticks = pt_wheel_next(&context->wheel);
    int timeout_ms = ticks == UINT32_MAX ? -1 : ms_from_ticks(context, ticks);
    if (context->starved_count != 0 && (timeout_ms < 0 || timeout_ms > STARVED_RETRY_MS))
        timeout_ms = STARVED_RETRY_MS;
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
    if (plain->count == plain->capacity ||
        frame->payload_len > plain->buffer_size - plain->buffer_len)
        return PT_ERR_INTERNAL;
    pt_event *event = &plain->events[plain->count++];
    memset(event, 0, sizeof *event);
    event->kind = PT_EVENT_FRAME;
    event->tag = tag;
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
