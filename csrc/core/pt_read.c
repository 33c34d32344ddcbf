/* What a turn reads of its links, and what of that it takes apart.
 *
 * A turn is bounded by work, so a link may bring more than it may take apart: the rest is held, in
 * a buffer of the pool, and comes in the next turns before anything else is read of that link. A
 * link is read only while a staging buffer for the largest frame is in hand (spare), so that what
 * was read always finds a place; a link that found none is starved, and read again when there is
 * one.
 *
 * What is left of a wide frame is read straight to where it lands. So that the next one gets there
 * too, and not into the receive buffer, a link that brings wide frames is otherwise read a little
 * at a time.
 */
#include <string.h>

#include "pt_assert.h"
#include "pt_loop_inside.h"

/* Bytes for which a read is worth its system call: what is left of them fits a small buffer. */
#define READ_LEAST 1024

/* Bytes of a wide frame for which a read of their own is worth its system call, and bytes that are
 * read at once where such frames follow each other: they hold the header of the next one. */
#define LAND_LEAST 4096
#define LAND_NEXT  4096

/* Progress of a wide frame that counts as a frame of its own does: about that of a full frame. */
#define LAND_STEP_SHIFT 13

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

    int spare = has_spare(context);
    for (pt_source *source = context->sources; source != NULL && context->starved_count != 0;
         source = source->next) {
        pt_link *link = (pt_link *)source;
        if (source->kind != PT_SOURCE_LINK || !(link->unread & PT_UNREAD_STARVED))
            continue;
        int lands = PT_WIDE && pt_ingest_unasked(&link->ingest) != 0;
        if (lands ? !pt_link_let_land(context, link) : !spare)
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
            pt_context_owe(context, link, 1);
        } else {
            pt_link_finish(context, link);
        }
    }
}

/* It finds no staging buffer, or no room to land: it is not read until there is one. */
static void starve(pt_context *context, pt_link *link)
{
    PT_ASSERT(!(link->unread & PT_UNREAD_STARVED));

    link->unread |= PT_UNREAD_STARVED;
    context->starved_count++;
    pt_link_update_reading(context, link);
}

/* Give bytes of the stream to the ingest. PT_OK; PT_ERR_BUSY when the link has had its share of the
 * turn, which *consumed says; or what ends the link. */
static int feed(pt_link *link, const uint8_t *data, size_t len, const pt_sink *sink,
                size_t *consumed)
{
    int result = pt_ingest_feed(&link->ingest, data, len, sink, consumed);
    PT_ASSERT(result != PT_ERR_BACKPRESSURE);
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

/* The sink or the stream can go no further: the link ends. */
static void give_up(pt_context *context, pt_link *link, int code)
{
    PT_ASSERT(code < 0);

    if (link->ingest.state == PT_INGEST_INIT) { /* a fault of the frame; else the sink's */
        context->bad_frames++;
        if (code == PT_ERR_CRC)
            context->crc_errors++;
    }
    pt_link_end(context, link, code, 0);
}

/* How far a link has come, for its partial-frame time-out, which begins anew with each step. */
static uint32_t steps(const pt_ingest *ingest)
{
    uint32_t landed =
        PT_WIDE && pt_ingest_into(ingest) != NULL ? ingest->staged_len >> LAND_STEP_SHIFT : 0;
    return (uint32_t)ingest->frames << LAND_STEP_SHIFT | landed;
}

/* Bytes of the stream were taken: what does that change? */
static void settle(pt_context *context, pt_link *link, uint32_t before)
{
    PT_ASSERT(pt_link_is_live(link));

    pt_link_update_frame_timer(context, link, steps(&link->ingest) != before);
    if (PT_WIDE && !pt_link_let_land(context, link))
        starve(context, link);
}

/* Take bytes of the stream apart, those just read or those held, as far as work goes. What is left
 * is held. */
static void take_apart(pt_context *context, pt_link *link, const uint8_t *data, size_t len,
                       pt_sink *sink, uint32_t work)
{
    PT_ASSERT(pt_link_is_live(link));
    PT_ASSERT(len != 0 && work != 0);

    pt_ingest *ingest = &link->ingest;
    uint32_t before = steps(ingest);
    int was_held = link->held != NULL;
    size_t consumed = 0;
    ingest->work = 0;
    ingest->work_limit = work;
    int result = feed(link, data, len, sink, &consumed);
    if (was_held) {
        link->held_at += (uint32_t)consumed;
    } else if (result == PT_ERR_BUSY && !hold(context, link, data + consumed, len - consumed)) {
        size_t rest = 0; /* better a long turn than a lost byte */
        ingest->work_limit = 0;
        result = feed(link, data + consumed, len - consumed, sink, &rest);
        consumed += rest;
    }
    count_work(context, link, consumed, sink);
    if (result == PT_OK || result == PT_ERR_BUSY) {
        settle(context, link, before);
        if (link->held_at < link->held_len)
            pt_context_join(context, link, PT_LINE_HELD);
        else if (was_held)
            pt_link_drop_held(context, link);
        return;
    }
    give_up(context, link, result);
}

/* How much to read at once: about what may be taken apart, and the rest of a cut frame in any case.
 * Without a spare buffer that rest alone, which needs no other; 0 where none has begun. */
static uint32_t read_size(pt_context *context, const pt_link *link, uint32_t room, uint32_t work,
                          int alone)
{
    const pt_ingest *ingest = &link->ingest;
    uint32_t rest =
        ingest->state == PT_INGEST_WAIT_PAYLOAD && (!PT_WIDE || pt_ingest_into(ingest) == NULL)
            ? ingest->frame_len - pt_ingest_partial_len(ingest)
            : 0;
    uint32_t size = context->step;
    if (PT_WIDE && link->ingest.lands)
        size = LAND_NEXT;
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

/* Read up to size bytes to a place. Returns how many came; 0: none, and what that means is done. */
static uint32_t receive(pt_context *context, pt_link *link, uint8_t *place, uint32_t size)
{
    PT_ASSERT(size != 0);

    if (pt_worker_of(context) != NULL)
        link->busy = 1;
    int count = context->ops->tcp_receive(context, link, place, size);
    if (PT_WORKERS)
        link->busy = 0;
    if (count == PT_ERR_WOULD_BLOCK)
        return 0;
    if (count == PT_ERR_CONNECTION_CLOSED && link->system_error == 0) {
        end_of_stream(context, link);
        return 0;
    }
    if (count < 0) {
        int code = link->state == PT_LINK_BROKEN ? link->end_code : count;
        pt_link_end(context, link, code, link->system_error);
        return 0;
    }
    PT_ASSERT(count > 0 && (uint32_t)count <= size);
    link->received_bytes += (uint64_t)count;
    return (uint32_t)count;
}

/* Read what is left of a wide frame, at most size bytes, to where it lands. Returns how many came.
 */
static uint32_t read_landing(pt_context *context, pt_link *link, uint8_t *place, uint32_t size,
                             pt_sink *sink)
{
    PT_ASSERT(place != NULL);

    uint32_t count = receive(context, link, place, size);
    if (count == 0)
        return 0;
    uint32_t before = steps(&link->ingest);
    link->ingest.work = 0;
    link->ingest.work_limit = 0;
    int result = pt_ingest_placed(&link->ingest, count, sink);
    uint32_t work = link->ingest.work;
    context->work_left -= work < context->work_left ? work : context->work_left;
    if (sink->room != UINT32_MAX)
        sink->room -= count;
    link->ingest.lands = 1;
    if (result == PT_OK)
        settle(context, link, before);
    else
        give_up(context, link, result);
    return count;
}

/* One read. Returns how many bytes came, or 0 when that is all for now. */
static uint32_t read_once(pt_context *context, pt_link *link, pt_sink *sink, int alone)
{
    PT_ASSERT(link->held == NULL);
    PT_ASSERT(pt_link_is_live(link));

    uint32_t left = context->work_left;
    if (left == 0 || sink->room == 0)
        return 0;
    uint32_t rest = 0;
    uint8_t *place = PT_WIDE ? pt_ingest_place(&link->ingest, &rest) : NULL;
    if (place != NULL && rest >= LAND_LEAST) {
        uint32_t size = alone ? context->receive_buffer_size : PT_LINK_MAX_READ;
        size = size < rest ? size : rest;
        size = size < link->read_max ? size : link->read_max;
        size = size < sink->room ? size : sink->room;
        return read_landing(context, link, place, size, sink) == size ? size : 0;
    }
    uint32_t work = alone || left < PT_LINK_MAX_WORK ? left : PT_LINK_MAX_WORK;
    uint32_t size = read_size(context, link, sink->room, work, alone);
    if (size == 0) {
        starve(context, link);
        return 0;
    }
    uint32_t count = receive(context, link, context->receive_buffer, size);
    if (count == 0)
        return 0;
    take_apart(context, link, context->receive_buffer, count, sink, work);
    if (PT_WIDE && link->ingest.lands && pt_ingest_place(&link->ingest, &rest) == NULL)
        link->ingest.lands = 0;
    return count == size ? count : 0;
}

static void read_on(pt_context *context, pt_link *link, pt_sink *sink, int alone)
{
    PT_ASSERT(link->held == NULL);

    uint32_t bound = alone ? context->receive_buffer_size : PT_LINK_MAX_READ;
    uint32_t total = 0;
    do {
        uint32_t count = read_once(context, link, sink, alone);
        if (count == 0)
            return;
        total += count;
    } while (PT_WIDE && (link->ingest.lands || pt_ingest_into(&link->ingest) != NULL) &&
             total < bound && link->held == NULL && pt_link_is_live(link) && pt_link_is_read(link));
}

/* Bytes of a link are about to be taken apart. */
static void begin_reading(pt_context *context, pt_link *link)
{
    if (pt_worker_of(context) != NULL)
        pt_worker_of(context)->reading = link;
}

/* They were. A worker answers all PINGs among them with one PONG; it is never kept for later: a
 * flood of PINGs must not cost more than the slots of its link. */
static void end_reading(pt_context *context, pt_link *link)
{
    pt_worker *worker = pt_worker_of(context);
    if (worker == NULL)
        return;
    PT_ASSERT(worker->reading == link);
    PT_ASSERT(!worker->is_pinged || link->answers);

    worker->reading = NULL;
    if (!worker->is_pinged)
        return;
    worker->is_pinged = 0;
    uint8_t is_given = worker->is_given;
    if (pt_link_send(context, link, PT_FRAME_PONG, 0, NULL, 0) < 0)
        worker->pongs_dropped++;
    else
        worker->pongs++;
    worker->is_given = is_given; /* nobody sends more behind an answer */
}

void pt_read_link(pt_context *context, pt_link *link, pt_sink *sink, int alone)
{
    PT_ASSERT(pt_link_is_live(link) && pt_link_is_read(link));

    begin_reading(context, link);
    read_on(context, link, sink, alone);
    end_reading(context, link);
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
        begin_reading(context, link);
        take_apart(context, link, link->held + link->held_at, len, sink,
                   alone || left < PT_LINK_MAX_WORK ? left : PT_LINK_MAX_WORK);
        end_reading(context, link);
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
