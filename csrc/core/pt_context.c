/* What the links, watches and timers of one worker share: its lists, its clock, its spare buffer.
 */
#include <string.h>

#include "pt_assert.h"
#include "pt_loop_inside.h"

/* ---------------------------------------------------------------------------------- time, lists */

static uint32_t ticks_from_ms(const pt_context *context, uint32_t ms)
{
    PT_ASSERT(context->ops->ticks_per_second != 0);

    uint32_t per_second = context->ops->ticks_per_second;
    if (per_second == 1000)
        return ms;
    return (uint32_t)(((uint64_t)ms * per_second + 999) / 1000);
}

int pt_context_ms(const pt_context *context, uint32_t ticks)
{
    PT_ASSERT(context->ops != NULL);
    PT_ASSERT(context->ops->ticks_per_second != 0);

    uint64_t per_second = context->ops->ticks_per_second;
    uint64_t ms = ((uint64_t)ticks * 1000 + per_second - 1) / per_second;
    return ms > INT32_MAX ? INT32_MAX : (int)ms;
}

void pt_context_arm(pt_context *context, pt_timer *timer, uint32_t delay_ms)
{
    uint32_t ticks = delay_ms != 0 ? ticks_from_ms(context, delay_ms) + 1 : 0;
    pt_wheel_arm(&context->wheel, timer, context->ops->clock(context) + ticks);
    if (pt_worker_of(context) != NULL && pt_worker_of(context)->is_asleep)
        context->ops->wake(context); /* it may have to wait for less long */
}

void pt_context_join(pt_context *context, pt_link *link, enum pt_line_kind kind)
{
    PT_ASSERT(kind < PT_LINES);
    PT_ASSERT(*context->lines[kind].end == NULL);

    if (link->in_line[kind])
        return;
    PT_ASSERT(link->next[kind] == NULL);
    PT_ASSERT(link->source.place != NULL);
    link->in_line[kind] = 1;
    link->next[kind] = NULL;
    *context->lines[kind].end = link;
    context->lines[kind].end = &link->next[kind];
}

void pt_context_leave(pt_context *context, pt_link *link, enum pt_line_kind kind)
{
    PT_ASSERT(kind < PT_LINES);

    if (!link->in_line[kind])
        return;
    PT_ASSERT(context->lines[kind].first != NULL);
    pt_link **place = &context->lines[kind].first;
    while (*place != link)
        place = &(*place)->next[kind];
    *place = link->next[kind];
    if (link->next[kind] == NULL)
        context->lines[kind].end = place;
    link->next[kind] = NULL;
    link->in_line[kind] = 0;
}

void pt_context_owe(pt_context *context, pt_link *link, int is_news)
{
    PT_ASSERT(link->source.place != NULL);

    pt_context_join(context, link, pt_context_due_line(context));
    PT_ASSERT(link->in_line[pt_context_due_line(context)]);
    if (pt_worker_of(context) != NULL && is_news)
        pt_worker_of(context)->has_news |= PT_NEWS_LINKS;
}

#if PT_WORKERS
void pt_context_hand_over(pt_context *context, pt_link *link)
{
    PT_ASSERT(pt_worker_of(context) != NULL);

    const pt_worker *worker = pt_worker_of(context);
    pt_context_join(context, link, PT_LINE_DIRTY);
    if (worker->is_asleep || (worker->is_lingering && link->pipeline.pending_count > 2))
        context->ops->wake(context);
}
#endif

void pt_context_add_source(pt_context *context, pt_source *source)
{
    PT_ASSERT(source->place == NULL);
    PT_ASSERT(source->kind == PT_SOURCE_LINK || source->kind == PT_SOURCE_WATCH);
    PT_ASSERT(!source->queued);

    source->next = context->sources;
    if (source->next != NULL)
        source->next->place = &source->next;
    source->place = &context->sources;
    context->sources = source;
}

void pt_context_remove_source(pt_context *context, pt_source *source)
{
    PT_ASSERT(source->place != NULL);
    PT_ASSERT(*source->place == source);
    PT_ASSERT(context->ready_count <= context->io_budget);

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
    PT_ASSERT(context->ready_count <= context->io_budget && context->io_budget <= PT_IO_BUDGET_MAX);
    if (source->queued || context->ready_count >= context->io_budget)
        return;
    PT_ASSERT(source->place != NULL);
    PT_ASSERT(source->ready != 0);
    source->queued = 1;
    context->ready[context->ready_count++] = source;
}

/* -------------------------------------------------------------------------------------- context */

int pt_context_init(pt_context *context, const pt_platform_ops *ops, void *platform_data,
                    pt_pool *pool, uint8_t *receive_buffer, uint32_t receive_buffer_size,
                    pt_source **ready, uint32_t io_budget)
{
    if (context == NULL || ops == NULL || pool == NULL || receive_buffer == NULL || ready == NULL ||
        io_budget == 0 || io_budget > PT_IO_BUDGET_MAX ||
        receive_buffer_size < PT_FRAME_OVERHEAD + PT_FRAME_MAX_PAYLOAD ||
        receive_buffer_size > INT32_MAX || ops->ticks_per_second == 0)
        return PT_ERR_INVALID_PARAM;

    memset(context, 0, sizeof *context);
    context->ops = ops;
    context->platform_data = platform_data;
    context->pool = pt_pool_join(pool);
    context->receive_buffer = receive_buffer;
    context->receive_buffer_size = receive_buffer_size;
    context->ready = ready;
    context->io_budget = io_budget;
    for (int kind = 0; kind < PT_LINES; kind++)
        context->lines[kind].end = &context->lines[kind].first;
    context->pool_timer.kind = PT_TIMER_POOL;
    if (PT_WIDE)
        context->landing_limit = UINT32_MAX;
    context->step =
        pt_pool_largest(pool) < receive_buffer_size ? pt_pool_largest(pool) : receive_buffer_size;
    pt_wheel_init(&context->wheel, ops->clock(context));
    return PT_OK;
}

void pt_context_drop_spare(pt_context *context)
{
    PT_ASSERT(context->pool != NULL);

    if (context->spare != NULL)
        pt_pool_release(context->pool, context->spare, 0);
    context->spare = NULL;
}

int pt_context_cleanup(pt_context *context)
{
    if (context->sources != NULL)
        return PT_ERR_INVALID_STATE;
    PT_ASSERT(context->link_count == 0);
    PT_ASSERT(context->starved_count == 0);
    if (context->ops != NULL) {
        pt_context_drop_spare(context);
        pt_pool_leave(context->pool);
    }
    context->ops = NULL;
    context->worker = NULL;
    return PT_OK;
}

/* -------------------------------------------------------------------------------------- watches */

int pt_watch_open(pt_context *context, pt_watch *watch, intptr_t handle, uint32_t tag,
                  uint8_t interest)
{
    if (context == NULL || context->ops == NULL || watch == NULL ||
        interest > (PT_WANT_READ | PT_WANT_WRITE | PT_WANT_EDGE))
        return PT_ERR_INVALID_PARAM;
    if (watch->source.place != NULL)
        return PT_ERR_ALREADY_INITIALIZED;
    memset(watch, 0, sizeof *watch);
    watch->source.handle = handle;
    watch->source.tag = tag;
    watch->source.kind = PT_SOURCE_WATCH;
    watch->source.registered = 0xFF;
    pt_context_add_source(context, &watch->source);
    int result = pt_watch_set(context, watch, interest);
    if (result != PT_OK)
        pt_context_remove_source(context, &watch->source);
    return result;
}

int pt_watch_set(pt_context *context, pt_watch *watch, uint8_t interest)
{
    if (interest > (PT_WANT_READ | PT_WANT_WRITE | PT_WANT_EDGE) || watch->source.place == NULL)
        return PT_ERR_INVALID_PARAM;
    PT_ASSERT(watch->source.kind == PT_SOURCE_WATCH);
    watch->source.interest = interest;
    watch->source.edge = interest == 0; /* else its hang-up would spin */
    return context->ops->watch(context, &watch->source);
}

void pt_watch_close(pt_context *context, pt_watch *watch)
{
    if (watch->source.place == NULL)
        return;
    PT_ASSERT(watch->source.kind == PT_SOURCE_WATCH);
    context->ops->forget(context, &watch->source);
    pt_context_remove_source(context, &watch->source);
}
