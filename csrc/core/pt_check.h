/* What holds between two turns, whatever was sent, received, refused or broken: said once for each
 * noun, and asserted at the end of each turn (pt_loop_turn) where PT_ASSERTIONS is 1: of links for
 * the newest PT_IO_BUDGET, so that a turn stays short. Other builds have none of these functions.
 */
#ifndef PT_CHECK_H
#define PT_CHECK_H

#include "pt_assert.h"
#include "pt_link.h"

/* Of wheels with more timers than this only the slots are looked at, not what is in them. */
#define PT_CHECK_TIMERS 64

#if PT_ASSERTIONS
#define PT_CHECK(check) check

/* Each slot has its bit, each timer leads back to what points at it, and all are counted. */
void pt_wheel_check(const pt_wheel *wheel);

/* The budget is kept, the peak is one, and what lies first in a free list is free. */
void pt_pool_check(const pt_pool *pool);

/* Memory is staged for a cut frame behind its header and for nothing else. */
void pt_ingest_check(const pt_ingest *ingest);

/* The slots that are taken lie next to each other, the filling ones last; each has a buffer, and no
 * more of them are of the link's share than it has. */
void pt_pipeline_check(const pt_send_pipeline *pipeline);

/* State, lines, timers and memory of a link agree; its pipeline's and its ingest's too. */
void pt_link_check(const pt_context *context, const pt_link *link);
#else
#define PT_CHECK(check) ((void)0)
#endif

#endif
