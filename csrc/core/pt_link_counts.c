/* What a link has counted, what its owner may set, and what holds of it between two turns. */
#include "pt_assert.h"
#include "pt_check.h"
#include "pt_loop_inside.h"

uint64_t pt_link_pending(const pt_link *link)
{
    return link->pipeline.accepted - link->pipeline.reported + link->sent_count +
           link->failed_count;
}

#if PT_WORKERS
void pt_link_count(const pt_link *link, pt_link_counts *out)
{
    const pt_send_pipeline *pipeline = &link->pipeline;
    const pt_ingest *ingest = &link->ingest;
    PT_ASSERT(pipeline->reported <= pipeline->accepted && link->held_at <= link->held_len);
    *out = (pt_link_counts){.accepted = pipeline->accepted,
                            .pending = pt_link_pending(link),
                            .frames_sent = pipeline->frames,
                            .payload_sent = pipeline->payload_bytes,
                            .sent_bytes = link->sent_bytes,
                            .write_calls = link->write_calls,
                            .refusals = pipeline->refusals,
                            .frames_received = ingest->frames,
                            .payload_received = ingest->payload_bytes,
                            .received_bytes = link->received_bytes,
                            .read_calls = link->read_calls,
                            .sync_sends = link->sync_sends,
                            .partial_len = pt_ingest_partial_len(ingest),
                            .held_len = link->held_len - link->held_at,
                            .slots_pending = pipeline->pending_count,
                            .high_water = pipeline->high_water,
                            .unread = link->unread};
}

void pt_link_set_read_max(pt_context *context, pt_link *link, uint32_t read_max)
{
    PT_ASSERT(read_max != 0);

    pt_context_lock(context);
    PT_ASSERT(link->read_max != 0 || link->state == PT_LINK_NONE);
    link->read_max = read_max;
    pt_context_unlock(context);
}

void pt_link_set_answers(pt_context *context, pt_link *link, int answers)
{
    pt_context_lock(context);
    PT_ASSERT(link->answers <= 1);
    link->answers = answers != 0;
    pt_context_unlock(context);
}
#endif

#if PT_ASSERTIONS
void pt_link_check(const pt_context *context, const pt_link *link)
{
    PT_ASSERT(link->state > PT_LINK_NONE && link->state <= PT_LINK_ENDED);
    PT_ASSERT(*link->source.place == &link->source);
    PT_ASSERT(link->source.kind == PT_SOURCE_LINK);
    PT_ASSERT((link->held != NULL) == (link->held_at < link->held_len));
    PT_ASSERT(!link->in_line[PT_LINE_HELD] || link->held != NULL);
    PT_ASSERT(link->failed_code != PT_OK || link->failed_count == 0);
    PT_ASSERT((link->due & ~PT_DUE_SENT) == 0 || pt_worker_of(context) != NULL ||
              link->in_line[PT_LINE_DIRTY]);
    PT_ASSERT(link->due == 0 || link->in_line[PT_LINE_DIRTY] || link->in_line[PT_LINE_LEFT]);
    PT_ASSERT(link->departs == NULL || link->blocked || link->state != PT_LINK_OPEN);
    if (link->state == PT_LINK_ENDED) {
        PT_ASSERT(link->held == NULL && link->notes.count == 0);
        PT_ASSERT(!pt_timer_is_armed(&link->frame_timer));
        PT_ASSERT(!pt_timer_is_armed(&link->rest_timer));
        PT_ASSERT(link->ingest.state == PT_INGEST_INIT && link->landing == 0);
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
