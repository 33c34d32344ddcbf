/* What the parts of the loop say to each other, and nobody else to them: pt_loop (the turn) knows
 * all, pt_read what links bring, pt_link what becomes of one, pt_context what all of them share. */
#ifndef PT_LOOP_INSIDE_H
#define PT_LOOP_INSIDE_H

#include "pt_assert.h"
#include "pt_link.h"
#include "pt_loop.h"
#include "pt_worker_lock.h"

/* pt_link.mean: so much or more asks for no shorter read. */
#define PT_LINK_MEAN_MAX 1024

/* ---------------------------------------------------------------------------------- pt_context.c */

/* Milliseconds of so many ticks, rounded up, at most INT32_MAX. */
int pt_context_ms(const pt_context *context, uint32_t ticks);

/* Expire delay_ms from now. The tick that has begun does not count: never early. */
void pt_context_arm(pt_context *context, pt_timer *timer, uint32_t delay_ms);

/* Stand at the end of a line, if not in it yet: so links whose events found no room come first in
 * the next turn. Leave it, if in it. */
void pt_context_join(pt_context *context, pt_link *link, enum pt_line_kind kind);
void pt_context_leave(pt_context *context, pt_link *link, enum pt_line_kind kind);

/* The line of links that have something to report. */
static inline enum pt_line_kind pt_context_due_line(const pt_context *context)
{
    return pt_worker_of(context) != NULL ? PT_LINE_LEFT : PT_LINE_DIRTY;
}

/* A link has something to report. is_news: whoever takes from a worker should hear that. */
void pt_context_owe(pt_context *context, pt_link *link, int is_news);

/* There is something to push on a link of a worker, which is to do that. */
void pt_context_hand_over(pt_context *context, pt_link *link);

/* All sources; one that is removed is not served in this turn any more. */
void pt_context_add_source(pt_context *context, pt_source *source);
void pt_context_remove_source(pt_context *context, pt_source *source);

/* Give back receive memory that no link needs any more. */
void pt_context_drop_spare(pt_context *context);

/* One link more, whose frames have payloads of up to max_payload bytes. */
static inline void pt_context_count_link(pt_context *context, uint32_t max_payload)
{
    PT_ASSERT(max_payload <= PT_FRAME_MAX_PAYLOAD);

    context->link_count++;
    if (max_payload + PT_FRAME_OVERHEAD > context->frame_size) {
        pt_context_drop_spare(context);
        context->frame_size = max_payload + PT_FRAME_OVERHEAD;
    }
}

/* One link fewer; without any a context keeps no memory for them. */
static inline void pt_context_uncount_link(pt_context *context)
{
    PT_ASSERT(context->link_count != 0);

    if (--context->link_count == 0) {
        pt_context_drop_spare(context);
        context->frame_size = 0;
        pt_wheel_cancel(&context->wheel, &context->pool_timer);
        (void)pt_pool_trim(context->pool);
    }
}

/* ------------------------------------------------------------------------------------- pt_loop.c */

/* A turn is made in three parts, for who waits between them as a worker does; else they are parts
 * of pt_loop_turn() alone. */
#if !PT_WORKERS
#define PT_LOOP_PART static
#else
#define PT_LOOP_PART
/* What stands before the wait. */
void pt_loop_begin(pt_context *context);
/* What was found by it, bounded as a turn is. Returns the number of events. */
int pt_loop_work(pt_context *context, pt_event *events, int capacity, const pt_sink *sink);
/* What links have to tell: empties the line of those that are due, as far as events have room.
 * Returns how many it made. */
int pt_loop_report(pt_context *context, pt_event *events, int capacity);
#endif

/* ------------------------------------------------------------------------------------- pt_link.c */

/* 1 while a link may still be read or written. */
static inline int pt_link_is_live(const pt_link *link)
{
    return link->state != PT_LINK_NONE && link->state != PT_LINK_ENDED;
}

/* 1 while nothing keeps us from reading a link. */
static inline int pt_link_is_read(const pt_link *link)
{
    return link->unread == 0;
}

/* For how many ms nothing of what waits in the link has left. */
uint32_t pt_link_still_ms(const pt_context *context, const pt_link *link);

/* Count the wide frame that lands now though it was not offered, or none any more. 1: it may go on;
 * 0: more land already than may. */
int pt_link_let_land(pt_context *context, pt_link *link);

/* Over: no more reading, writing or events but those that are due. */
void pt_link_end(pt_context *context, pt_link *link, int code, int32_t system_error);

/* Hand the oldest FILLING slot to the platform; blocking: and wait until it has left, as worlds
 * without tcp_send_async always do. 0 when the link cannot go on. */
int pt_link_launch(pt_context *context, pt_link *link, int blocking);

/* There is something to report, though the caller may hear no hint of it. */
void pt_link_ask_for_turn(pt_context *context);

/* Move all frames of a link as far as the platform takes them, and free what is done. */
void pt_link_push(pt_context *context, pt_link *link);

/* Put what departs into slots as far as it may now. 1: some of it, 0: nothing. */
int pt_link_feed(pt_context *context, pt_link *link);

/* Free the slots that are done, and remember what to report. */
void pt_link_harvest(pt_context *context, pt_link *link);

/* End our half of the stream when all has left, and the link when both halves are ended. */
void pt_link_finish(pt_context *context, pt_link *link);

/* Give back what an idle link has no use for. */
void pt_link_rest(pt_context *context, pt_link *link);

/* Give back held bytes that were taken apart, or that nobody will. */
void pt_link_drop_held(pt_context *context, pt_link *link);

/* Make timer, platform and lists what unread says now; each of the first two
 * alone. The partial-frame time-out runs while a frame has begun and we do read; restart: it begins
 * anew. */
void pt_link_update_reading(pt_context *context, pt_link *link);
void pt_link_update_frame_timer(pt_context *context, pt_link *link, int restart);
void pt_link_update_interest(pt_context *context, pt_link *link);

/* ----------------------------------------------------------------------------------- pt_moving.c */

/* Have a link that is live and not busy in another context of the same world, with all that it is
 * and owes; both are the caller's, and both have a worker. PT_OK, or with nothing changed
 * PT_ERR_NO_MEMORY, PT_ERR_INVALID_PARAM, PT_ERR_PLATFORM. */
int pt_link_move(pt_context *from, pt_context *to, pt_link *link);

/* ------------------------------------------------------------------------------------- pt_read.c */

/* Read again the links that waited for a staging buffer, or for room to land. */
void pt_read_starved(pt_context *context);

/* 1 when at most one link has something to take apart, as far as is known. */
int pt_read_is_alone(const pt_context *context);

/* Give those who held something at the beginning of the turn their share, as many as may be served
 * beside those who are ready. */
void pt_read_held(pt_context *context, pt_sink *sink, int alone);

/* Read a link as far as it may be in this turn; alone: as nobody else has anything to read. What it
 * does not come to stays ready. */
void pt_read_link(pt_context *context, pt_link *link, pt_sink *sink, int alone);

/* The time of a cut frame is over. Its rest may lie in the system all the same, if it was this
 * program that had no time: read once more before the link ends. */
void pt_read_late(pt_context *context, pt_link *link, pt_sink *sink);

#endif
