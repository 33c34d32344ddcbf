/* How a link goes from one context to another: both are held by the caller, who sees to the frames
 * that a worker has kept of it (pt_worker.c). All that the link is and owes lies in the link; what
 * is told here is what its context knows of it. */
#include "pt_assert.h"
#include "pt_loop_inside.h"

#if PT_WORKERS
#define UNREGISTERED 0xFF

/* PT_OK, or what the system said, with nothing changed. */
static int move_source(pt_context *from, pt_context *to, pt_source *source)
{
    PT_ASSERT(source->kind == PT_SOURCE_LINK && source->place != NULL);

    pt_source left = *source;
    left.kind = PT_SOURCE_WATCH; /* the descriptor is forgotten there, not what is in flight */
    pt_context_remove_source(from, source);
    pt_context_add_source(to, source);
    source->registered = UNREGISTERED;
    int result = to->ops->watch(to, source);
    if (result == PT_OK) {
        from->ops->forget(from, &left);
        return PT_OK;
    }
    pt_context_remove_source(to, source);
    pt_context_add_source(from, source);
    source->registered = left.registered;
    return result;
}

/* It stands where it stood. */
static void move_lines(pt_context *from, pt_context *to, pt_link *link)
{
    PT_ASSERT(pt_context_due_line(from) == pt_context_due_line(to));

    for (int kind = 0; kind < PT_LINES; kind++) {
        if (!link->in_line[kind])
            continue;
        pt_context_leave(from, link, (enum pt_line_kind)kind);
        pt_context_join(to, link, (enum pt_line_kind)kind);
    }
}

/* It expires when it would have: both have one clock. */
static void move_timer(pt_context *from, pt_context *to, pt_timer *timer)
{
    PT_ASSERT(from->ops->clock == to->ops->clock);

    if (!pt_timer_is_armed(timer))
        return;
    uint32_t deadline = timer->deadline;
    pt_wheel_cancel(&from->wheel, timer);
    pt_wheel_arm(&to->wheel, timer, deadline);
}

/* What a context counts over all of its links. */
static void move_counts(pt_context *from, pt_context *to, const pt_link *link)
{
    PT_ASSERT(link->landing <= from->landing);

    if (link->unread & PT_UNREAD_STARVED) {
        PT_ASSERT(from->starved_count != 0);
        from->starved_count--;
        to->starved_count++;
    }
    from->landing -= link->landing;
    to->landing += link->landing;
    pt_context_count_link(to, link->ingest.max_payload);
    pt_context_uncount_link(from);
}

int pt_link_move(pt_context *from, pt_context *to, pt_link *link)
{
    PT_ASSERT(pt_link_is_live(link) && !link->busy);
    PT_ASSERT(from != to && from->ops == to->ops);

    int result = move_source(from, to, &link->source);
    if (result != PT_OK)
        return result;
    /* One that slept has an old tick: whatever moved since then would seem to stand still. */
    pt_wheel_advance(&to->wheel, to->ops->clock(to));
    move_lines(from, to, link);
    move_timer(from, to, &link->frame_timer);
    move_timer(from, to, &link->rest_timer);
    move_counts(from, to, link);
    link->pipeline.pool = to->pool;
    link->ingest.pool = to->pool;
    if (link->in_line[pt_context_due_line(to)])
        pt_worker_of(to)->has_news |= PT_NEWS_LINKS;
    to->ops->wake(to); /* there may be something to push, to read, or to wait for less long */
    return PT_OK;
}
#endif
