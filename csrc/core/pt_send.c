/* What is sent on a link: which frames it takes, and what happens when there is no room for one. */
#include "pt_assert.h"
#include "pt_loop_inside.h"

static int slots_available(pt_context *context, pt_link *link)
{
    PT_ASSERT(link->pipeline.pending_count <= link->pipeline.depth);

    if (context->ops->send_slots_available != NULL)
        return context->ops->send_slots_available(context, link);
    return pt_pipeline_available(&link->pipeline);
}

int pt_link_slots_available(pt_context *context, pt_link *link)
{
    if (context->ops == NULL)
        return 0;
    pt_context_lock(context);
    PT_ASSERT(link->pipeline.filling_count <= link->pipeline.pending_count);
    int available = slots_available(context, link);
    pt_context_unlock(context);
    return available;
}

/* Before a frame is refused, the system is offered what is there, unless a worker is about that. 1
 * when it is worth trying again. */
static int make_room(pt_context *context, pt_link *link)
{
    if (link->blocked || (pt_worker_of(context) != NULL && !pt_worker_of(context)->is_asleep))
        return 0;
    int available = slots_available(context, link);
    pt_link_push(context, link);
    if (link->state != PT_LINK_OPEN) {
        pt_link_ask_for_turn(context);
        return 0;
    }
    return slots_available(context, link) > available;
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
    PT_ASSERT(payload_len <= PT_WIDE_MAX_PAYLOAD);

    uint32_t most = link->pipeline.more ? PT_TURN_MANY_BYTES : PT_TURN_MAX_BYTES;
    context->turn_messages++;
    context->turn_bytes += payload_len;
    return context->turn_messages >= PT_TURN_MAX_MESSAGES || context->turn_bytes >= most
               ? PT_SEND_YIELD
               : 0;
}

/* What happens when the pipeline says this, of the first attempt to send a frame. 1: try again. */
static int may_retry(pt_context *context, pt_link *link, int *result)
{
    PT_ASSERT(*result < 0);

    if (*result != PT_ERR_WOULD_BLOCK && *result != PT_ERR_NO_MEMORY)
        return 0;
    link->wanted = 1;
    if (!make_room(context, link)) {
        if (link->state != PT_LINK_OPEN)
            *result = PT_ERR_NOT_CONNECTED;
        return 0;
    }
    link->pipeline.refusals--; /* the caller has not been refused yet */
    return 1;
}

/* A frame is in its slot of a link that a worker has. A worker that sleeps costs more to wake than
 * one write, so the first of several calls writes by itself; the others leave it to the worker. */
static void leave_to_worker(pt_context *context, pt_link *link)
{
    pt_worker *worker = pt_worker_of(context);
    PT_ASSERT(worker->context == context && !link->blocked);

    if (worker->is_asleep && worker->may_write && link->pipeline.pending_count == 1) {
        worker->may_write = 0;
        pt_link_push(context, link);
    } else {
        worker->is_given = 1;
        pt_context_hand_over(context, link);
    }
}

/* 1 for the first frame since a turn, where such a frame leaves at once and no burst followed the
 * last one: of a burst every frame but the first waits for the end of the tick anyway. */
static inline int is_prompt(const pt_context *context, pt_link *link)
{
    if (!PT_PROMPT || link->in_line[PT_LINE_DIRTY] || !context->ops->prompt || link->blocked ||
        link->first_turn == (uint16_t)(context->turns + 1))
        return 0;
    uint16_t frames = (uint16_t)link->pipeline.frames;
    uint16_t burst = (uint16_t)(frames - link->burst_from);
    link->first_turn = (uint16_t)(context->turns + 1); /* which is 0 for a link that is opened */
    link->burst_from = frames;
    return burst <= PT_PROMPT_FRAMES && !link->pipeline.many;
}

/* 1 when all that a link was given has left, and to say so is all that it owes. */
static int has_left(const pt_context *context, const pt_link *link)
{
    PT_ASSERT(link->due == 0 || link->in_line[PT_LINE_DIRTY] || link->in_line[PT_LINE_LEFT]);

    return PT_PROMPT && context->ops->prompt && link->state == PT_LINK_OPEN && !link->blocked &&
           link->pipeline.pending_count == 0 && link->due == PT_DUE_SENT &&
           link->failed_code == PT_OK;
}

/* From now on it is told with others, or with the next turn: nobody needs a turn for this. */
static void tell_by_and_by(pt_context *context, pt_link *link)
{
    PT_ASSERT(link->due == PT_DUE_SENT);

    if (context->lines[PT_LINE_LEFT].first == NULL)
        context->left_since = context->wheel.now;
    pt_context_leave(context, link, PT_LINE_DIRTY);
    pt_context_join(context, link, PT_LINE_LEFT);
}

/* A frame is in its slot: see to it that it leaves, at_once or with the turn. Returns hints. */
static inline int follow_up(pt_context *context, pt_link *link, int at_once, uint32_t counted)
{
    PT_ASSERT(link->pipeline.pending_count != 0);

    if (pt_worker_of(context) != NULL) {
        if (!link->blocked)
            leave_to_worker(context, link);
        return count_frame(context, link, counted);
    }
    int hints = count_frame(context, link, counted);
    int was_blocked = link->blocked; /* then it is pushed when it becomes ready */
    int was_asked = link->in_line[PT_LINE_DIRTY];
    if (at_once)
        pt_link_push(context, link);
    if (at_once && !was_asked && has_left(context, link)) {
        tell_by_and_by(context, link);
        return hints | PT_SEND_LEFT;
    }
    if (!was_blocked)
        pt_context_join(context, link, PT_LINE_DIRTY);
    while (!at_once && (link->pipeline.filling_count > 1 || link->pipeline.ripe)) {
        if (!pt_link_launch(context, link, 0))
            break;
    }
    return hints | (link->in_line[PT_LINE_DIRTY] && !was_asked ? PT_SEND_NEEDS_TURN : 0);
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
    if (result != PT_OK && may_retry(context, link, &result))
        result = pt_pipeline_send(pipeline, type, flags, payload, payload_len);
    if (result != PT_OK)
        return result;
    int at_once = is_prompt(context, link) || (flags & PT_FLAG_NO_DELAY) != 0;
    return follow_up(context, link, at_once, payload_len);
}

#if PT_WIDE
int pt_link_send_wide(pt_context *context, pt_link *link, const pt_wide *wide, uint8_t flags,
                      const uint8_t *payload, pt_hold *hold)
{
    PT_ASSERT(hold == NULL || payload != NULL);

    if (link->state != PT_LINK_OPEN)
        return PT_ERR_NOT_CONNECTED;
    if (hold != NULL && !context->ops->refers)
        return PT_ERR_INVALID_PARAM;
    if (wide->payload_len > pt_link_slice_max(context, link))
        return PT_ERR_MESSAGE_TOO_LARGE;

    pt_send_pipeline *pipeline = &link->pipeline;
    if (link->blocked)
        pipeline->is_still = pt_link_still_ms(context, link) >= PT_STILL_MS;
    int result = pt_pipeline_send_wide(pipeline, wide, payload, hold);
    if (result != PT_OK && may_retry(context, link, &result))
        result = pt_pipeline_send_wide(pipeline, wide, payload, hold);
    if (result != PT_OK)
        return result;
    /* What is referred to costs its sender no copy, only the slot that it takes. */
    uint32_t counted = hold != NULL ? wide->payload_len / PT_REFERRED_PART : wide->payload_len;
    return follow_up(context, link, (flags & PT_FLAG_NO_DELAY) != 0, counted);
}

int pt_link_depart(pt_context *context, pt_link *link, pt_departure *departure)
{
    PT_ASSERT(departure->id != 0 && departure->offset < departure->total);
    PT_ASSERT(departure->payload != NULL && departure->drop != NULL);

    if (link->state != PT_LINK_OPEN)
        return PT_ERR_NOT_CONNECTED;
    if (link->departs != NULL || pt_link_slice_max(context, link) == 0)
        return PT_ERR_INVALID_STATE;
    link->departs = departure;
    if (!pt_link_feed(context, link) && link->pipeline.pending_count == 0) {
        link->departs = NULL;
        return PT_ERR_NO_MEMORY;
    }
    return follow_up(context, link, 0, PT_WIDE_MAX_PAYLOAD / PT_REFERRED_PART);
}
#endif

int pt_link_drain(pt_context *context, pt_link *link)
{
    const pt_platform_ops *ops = context->ops;
    if (ops == NULL)
        return PT_ERR_NOT_CONNECTED;
    if (pt_worker_of(context) != NULL)
        return PT_ERR_INVALID_STATE;
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
        pt_link_ask_for_turn(context);
    return result;
}

int pt_link_send_sync(pt_context *context, pt_link *link, uint8_t type, uint8_t flags,
                      const uint8_t *payload, uint32_t payload_len)
{
    if (context->ops == NULL)
        return PT_ERR_NOT_CONNECTED;
    if (pt_worker_of(context) != NULL)
        return PT_ERR_INVALID_STATE;
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
    if (pt_link_launch(context, link, 1))
        pt_link_harvest(context, link);
    return hints;
}
