/* What a turn reads of its links, and what of that it takes apart.
 *
 * A turn is bounded by work, so a link may bring more than it may take apart: the rest is held, in
 * a buffer of the pool, and comes in the next turns before anything else is read of that link. A
 * link is read only while a staging buffer for the largest frame is in hand (spare), so that what
 * was read always finds a place; a link that found none is starved, and read again when there is
 * one.
 */
#include <string.h>

#include "pt_assert.h"
#include "pt_loop_inside.h"

/* Bytes for which a read is worth its system call: what is left of them fits a small buffer. */
#define READ_LEAST 1024

/* 1 when a staging buffer for the largest frame is in hand. */
static int has_spare(pt_context *context)
{
    PT_ASSERT(context->frame_size >= PT_FRAME_OVERHEAD);

    if (context->spare == NULL)
        context->spare = pt_pool_acquire_share(context->pool, context->frame_size);
    return context->spare != NULL;
}

void pt_read_starved(pt_context *context)
{
    PT_ASSERT(context->starved_count != 0);
    PT_ASSERT(context->starved_count <= context->link_count);

    if (!has_spare(context))
        return;
    for (pt_source *source = context->sources; source != NULL && context->starved_count != 0;
         source = source->next) {
        pt_link *link = (pt_link *)source;
        if (source->kind != PT_SOURCE_LINK || !(link->unread & PT_UNREAD_STARVED))
            continue;
        link->unread &= (uint8_t)~PT_UNREAD_STARVED;
        context->starved_count--;
        pt_link_update_reading(context, link);
    }
}

static void end_of_stream(pt_context *context, pt_link *link)
{
    PT_ASSERT(pt_link_is_live(link));
    PT_ASSERT(link->held == NULL); /* else there is something to take first */

    if (link->state == PT_LINK_BROKEN) {
        pt_link_end(context, link, link->end_code, link->end_error);
    } else if (pt_ingest_partial_len(&link->ingest) != 0) {
        pt_link_end(context, link, PT_ERR_TRUNCATED, 0);
    } else {
        link->unread |= PT_UNREAD_ENDED;
        pt_link_update_interest(context, link);
        if (link->state == PT_LINK_OPEN) {
            link->due |= PT_DUE_FINISHED;
            pt_context_join(context, link, PT_LINE_DIRTY);
        } else {
            pt_link_finish(context, link);
        }
    }
}

/* It finds no staging buffer: it is not read until there is one. */
static void starve(pt_context *context, pt_link *link)
{
    PT_ASSERT(context->spare == NULL);
    PT_ASSERT(!(link->unread & PT_UNREAD_STARVED));

    link->unread |= PT_UNREAD_STARVED;
    context->starved_count++;
    pt_link_update_reading(context, link);
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
    PT_ASSERT(link->held == NULL);
    PT_ASSERT(!link->in_line[PT_LINE_HELD]);
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
    uint32_t mean = work != 0 ? (uint32_t)(len << 4) / work + 1 : PT_LINK_MEAN_MAX;
    link->mean = (uint16_t)(mean < PT_LINK_MEAN_MAX ? mean : PT_LINK_MEAN_MAX);
}

/* Take bytes of the stream apart, those just read or those held, as far as work goes. What is left
 * is held. */
static void take_apart(pt_context *context, pt_link *link, const uint8_t *data, size_t len,
                       pt_sink *sink, uint32_t work)
{
    PT_ASSERT(pt_link_is_live(link));
    PT_ASSERT(len != 0 && work != 0);

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
        pt_link_update_frame_timer(context, link, (uint32_t)ingest->frames != frames);
        if (link->held_at < link->held_len)
            pt_context_join(context, link, PT_LINE_HELD);
        else if (was_held)
            pt_link_drop_held(context, link);
        return;
    }
    if (ingest->state == PT_INGEST_INIT) { /* a fault of the frame; else the sink could not go on */
        context->bad_frames++;
        if (result == PT_ERR_CRC)
            context->crc_errors++;
    }
    pt_link_end(context, link, result, 0);
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
    if (link->mean < PT_LINK_MEAN_MAX && size > (work * link->mean >> 4)) {
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

void pt_read_link(pt_context *context, pt_link *link, pt_sink *sink, int alone)
{
    PT_ASSERT(pt_link_is_live(link) && pt_link_is_read(link));
    PT_ASSERT(link->held == NULL);

    uint32_t left = context->work_left;
    if (left == 0 || sink->room == 0)
        return;
    uint32_t work = alone || left < PT_LINK_MAX_WORK ? left : PT_LINK_MAX_WORK;
    uint32_t size = read_size(context, link, sink->room, work, alone);
    if (size == 0) {
        starve(context, link);
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
        int code = link->state == PT_LINK_BROKEN ? link->end_code : count;
        pt_link_end(context, link, code, link->system_error);
        return;
    }
    PT_ASSERT(count > 0 && (uint32_t)count <= size);
    link->received_bytes += (uint64_t)count;
    take_apart(context, link, context->receive_buffer, (size_t)count, sink, work);
}

static void take_held(pt_context *context, pt_link *link, pt_sink *sink, int alone)
{
    PT_ASSERT(link->held != NULL);
    PT_ASSERT(link->held_at < link->held_len);

    link->held_turn = (uint32_t)context->turns;
    uint32_t left = context->work_left;
    size_t len = link->held_len - link->held_at;
    if (len > sink->room)
        len = sink->room;
    if (left == 0 || len == 0) {
        pt_context_join(context, link, PT_LINE_HELD);
    } else if (!has_spare(context)) {
        starve(context, link);
    } else {
        take_apart(context, link, link->held + link->held_at, len, sink,
                   alone || left < PT_LINK_MAX_WORK ? left : PT_LINK_MAX_WORK);
    }
}

int pt_read_is_alone(const pt_context *context)
{
    int count = context->lines[PT_LINE_HELD].first != NULL
                    ? 1 + (context->lines[PT_LINE_HELD].first->next[PT_LINE_HELD] != NULL)
                    : 0;
    for (uint32_t index = 0; index < context->ready_count && count < 2; index++) {
        const pt_source *source = context->ready[index];
        if (source == NULL || source->kind != PT_SOURCE_LINK || !(source->ready & PT_READY_READ))
            continue;
        const pt_link *link = (const pt_link *)source;
        count += pt_link_is_read(link) && !link->in_line[PT_LINE_HELD];
    }
    return count < 2;
}

void pt_read_held(pt_context *context, pt_sink *sink, int alone)
{
    const pt_link *last = NULL;
    for (uint32_t served = 0;
         served < context->io_budget && context->lines[PT_LINE_HELD].first != NULL; served++) {
        pt_link *link = context->lines[PT_LINE_HELD].first;
        if (link == last)
            break; /* all had their turn */
        pt_context_leave(context, link, PT_LINE_HELD);
        if (!pt_link_is_read(link))
            continue; /* comes back when it is read again */
        take_held(context, link, sink, alone);
        if (last == NULL && link->in_line[PT_LINE_HELD])
            last = link;
    }
}

void pt_read_late(pt_context *context, pt_link *link, pt_sink *sink)
{
    if (link->held != NULL || context->work_left == 0 || sink->room == 0) {
        pt_context_arm(context, &link->frame_timer, 1); /* it waits for us */
        return;
    }
    uint32_t frames = (uint32_t)link->ingest.frames;
    pt_read_link(context, link, sink, 0);
    if (link->state != PT_LINK_ENDED && pt_link_is_read(link) &&
        (uint32_t)link->ingest.frames == frames)
        pt_link_end(context, link, PT_ERR_TIMEOUT, 0);
}
