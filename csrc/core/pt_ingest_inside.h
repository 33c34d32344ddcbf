/* What the parts of an ingest say to each other, and nobody else to them: pt_ingest.c knows frames
 * of every form but wide ones, pt_landing.c those, and pt_staging.c what both have in common. */
#ifndef PT_INGEST_INSIDE_H
#define PT_INGEST_INSIDE_H

#include <string.h>

#include "pt_assert.h"
#include "pt_ingest.h"

/* The table checks each move and drives none: a cut frame moves three times, and would pay for
 * looking up what is known where it moves. */
static inline void pt_ingest_move(pt_ingest *ingest, enum pt_ingest_step step,
                                  enum pt_ingest_state state)
{
    PT_ASSERT(pt_ingest_next(ingest->state, (uint8_t)step) == state);
    (void)step;
    ingest->state = (uint8_t)state;
}

/* Up to want bytes of data behind the staged ones. Returns how many there were. */
static inline uint32_t pt_ingest_stage(pt_ingest *ingest, uint8_t *target, uint32_t want,
                                       const uint8_t *data, size_t len)
{
    uint32_t taken = len < want ? (uint32_t)len : want;
    memcpy(target + ingest->staged_len, data, taken);
    ingest->staged_len += taken;
    return taken;
}

/* What a feed returns behind a frame for which the sink said code. One comparison for both: a limit
 * of 0 is none. */
static inline int pt_ingest_busy_or(const pt_ingest *ingest, int code)
{
    return ingest->work - 1 >= ingest->work_limit - 1 && code == PT_OK ? PT_ERR_BUSY : code;
}

/* Give a whole frame to the sink. In units of work a plain message joins a batch, and anything else
 * is looked at by itself. */
static inline int pt_ingest_hand_on(pt_ingest *ingest, const pt_sink *sink, const pt_frame *frame)
{
    ingest->frames++;
    ingest->payload_bytes += frame->payload_len;
    if (frame->type != PT_FRAME_DATA || (frame->flags & (PT_FLAG_FRAGMENT | PT_FLAG_BATCH)) != 0)
        ingest->work += PT_WORK_CONTROL;
    else
        ingest->work += frame->payload_len < PT_TINY_PAYLOAD ? PT_WORK_TINY : 1;
    return pt_ingest_busy_or(ingest, sink->frame(sink->context, ingest->tag, frame));
}

/* --------------------------------------------------------------------------------- pt_staging.c */

/* Hold nothing of any frame. */
void pt_ingest_start_over(pt_ingest *ingest, enum pt_ingest_step step, enum pt_ingest_state state);

/* The stream is of no more use: code. */
int pt_ingest_fail(pt_ingest *ingest, int code);

/* --------------------------------------------------------------------------------- pt_landing.c */

/* One wide frame at data + *offset, which is moved behind it, or behind all that is there of it.
 * Returns as pt_ingest_feed(). */
int pt_landing_take(pt_ingest *ingest, const uint8_t *data, size_t len, const pt_sink *sink,
                    size_t *offset);

/* Go on with a wide frame that was cut before data: behind its header, or its header is whole now,
 * with the first so many bytes of data. Likewise. */
int pt_landing_go_on(pt_ingest *ingest, const uint8_t *data, size_t len, const pt_sink *sink,
                     size_t taken, size_t *offset);

#endif
