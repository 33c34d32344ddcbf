/* What the classic worlds share: ports of links, waiting on the virtual clock, and the memory of
 * broken rules. */
#include "pt_classic.h"

#include <string.h>

#include "pt_assert.h"

#define NANOSECONDS  UINT64_C(1000000000)
#define UNREGISTERED 0xFF

static pt_classic *world_of(const pt_context *context)
{
    return context->platform_data;
}

void pt_classic_init(pt_classic *world, const pt_setup *setup, const pt_classic_port_ops *ops)
{
    PT_ASSERT(setup->network != NULL && setup->host >= 0);
    PT_ASSERT(ops->read_events != 0 && ops->write_events != 0);

    memset(world, 0, sizeof *world);
    world->sim = setup->network;
    world->host = setup->host;
    world->memory = *setup->memory;
    world->ops = ops;
}

/* ---------------------------------------------------------------------------------------- ports */

pt_classic_port *pt_classic_find_port(const pt_context *context, const pt_link *link)
{
    pt_classic_port *found = world_of(context)->ports;
    while (found != NULL && found->link != link)
        found = found->next;
    return found;
}

static int open_port(pt_classic *world, pt_link *link)
{
    PT_ASSERT(link->source.registered == UNREGISTERED);
    PT_ASSERT(link->pipeline.depth != 0 && link->pipeline.pending_count == 0);

    size_t size = world->ops->size(link->pipeline.depth);
    PT_ASSERT(size >= sizeof(pt_classic_port));
    pt_classic_port *opened = world->memory.allocate(world->memory.context, size);
    if (opened == NULL)
        return PT_ERR_NO_MEMORY;
    memset(opened, 0, size);
    opened->link = link;
    opened->pipeline = &link->pipeline;
    opened->handle = (int32_t)link->source.handle;
    opened->depth = link->pipeline.depth;
    int result = world->ops->open(world, opened);
    if (result != PT_OK) {
        world->memory.release(world->memory.context, opened, size);
        return result;
    }
    opened->next = world->ports;
    world->ports = opened;
    return PT_OK;
}

static void close_port(pt_classic *world, pt_classic_port *closed)
{
    PT_ASSERT(closed->link == NULL);
    PT_ASSERT(world->ops->held(closed) == 0);

    world->ops->close(world, closed);
    pt_classic_port **place = &world->ports;
    while (*place != closed)
        place = &(*place)->next;
    *place = closed->next;
    world->memory.release(world->memory.context, closed, world->ops->size(closed->depth));
}

int pt_classic_watch(pt_context *context, pt_source *source)
{
    PT_ASSERT(source->place != NULL);
    PT_ASSERT((source->interest & ~(PT_WANT_READ | PT_WANT_WRITE | PT_WANT_EDGE)) == 0);

    if (source->registered == UNREGISTERED) {
        if (source->handle <= 0 || source->handle > INT32_MAX)
            return PT_ERR_INVALID_PARAM;
        if (source->kind == PT_SOURCE_LINK) {
            int result = open_port(world_of(context), (pt_link *)source);
            if (result != PT_OK)
                return result;
        }
    }
    source->registered = source->interest;
    return PT_OK;
}

void pt_classic_forget(pt_context *context, pt_source *source)
{
    if (source->registered == UNREGISTERED)
        return;
    source->registered = UNREGISTERED;
    pt_classic *world = world_of(context);
    pt_classic_port *of = source->kind == PT_SOURCE_LINK
                              ? pt_classic_find_port(context, (const pt_link *)source)
                              : NULL;
    if (of == NULL)
        return;
    world->ops->complete(of);
    PT_ASSERT(of->pipeline == &((pt_link *)source)->pipeline);
    of->link = NULL;
    of->events = 0;
    if (world->ops->held(of) == 0)
        close_port(world, of);
    else /* the buffers are the driver's: it gets the drain time-out, then the connection is broken
          */
        (void)pt_sim_set_linger(world->sim, of->handle, PT_CLASSIC_DRAIN_NS);
}

/* Close ports of closed links whose slots the driver has let go of since. */
static void reap(pt_classic *world)
{
    pt_classic_port *next;
    for (pt_classic_port *each = world->ports; each != NULL; each = next) {
        next = each->next;
        if (each->link != NULL)
            continue;
        if (each->events & world->ops->write_events) {
            each->events = 0;
            world->ops->complete(each);
        }
        if (world->ops->held(each) == 0)
            close_port(world, each);
    }
}

void pt_classic_cleanup(pt_classic *world)
{
    while (world->ports != NULL) {
        pt_classic_port *of = world->ports;
        PT_ASSERT(of->link == NULL); /* links are closed first */
        world->ops->reset(world, of);
        world->ops->complete(of);
        close_port(world, of);
    }
}

uint32_t pt_classic_abandoned(const void *platform_data)
{
    const pt_classic *world = platform_data;
    uint32_t count = 0;
    for (const pt_classic_port *each = world->ports; each != NULL; each = each->next) {
        PT_ASSERT(world->ops->held(each) <= each->depth);
        if (each->link == NULL)
            count += world->ops->held(each);
    }
    return count;
}

int pt_classic_slots_available(pt_context *context, pt_link *link)
{
    (void)context;
    return pt_pipeline_available(&link->pipeline);
}

/* ---------------------------------------------------------------------------------------- rules */

/* Put text behind what is there; *len grows to at most size - 1. */
static void put_text(char *out, size_t size, size_t *len, const char *text)
{
    PT_ASSERT(*len < size);

    while (*text != 0 && *len + 1 < size)
        out[(*len)++] = *text++;
    out[*len] = 0;
}

void pt_classic_violated(pt_classic *world, const char *call, int code, const char *rule)
{
    PT_ASSERT(code < 0);

    uint32_t index = world->violation_count++;
    if (index >= PT_CLASSIC_VIOLATIONS)
        return;
    char digits[12];
    size_t place = sizeof digits - 1;
    digits[place] = 0;
    unsigned value = 0U - (unsigned)code;
    do {
        digits[--place] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    PT_ASSERT(place != 0);
    digits[--place] = '-';
    char *out = &world->violations[(size_t)index * PT_CLASSIC_VIOLATION_SIZE];
    size_t len = 0;
    put_text(out, PT_CLASSIC_VIOLATION_SIZE, &len, call);
    put_text(out, PT_CLASSIC_VIOLATION_SIZE, &len, " ");
    put_text(out, PT_CLASSIC_VIOLATION_SIZE, &len, &digits[place]);
    put_text(out, PT_CLASSIC_VIOLATION_SIZE, &len, ": ");
    put_text(out, PT_CLASSIC_VIOLATION_SIZE, &len, rule);
}

/* -------------------------------------------------------------------------------------- waiting */

/* What a link is ready for: its port has noted it. */
static uint32_t look(const pt_context *context, const pt_link *link)
{
    const pt_classic_port_ops *ops = world_of(context)->ops;
    const pt_classic_port *of = pt_classic_find_port(context, link);
    if (of == NULL)
        return 0;
    PT_ASSERT(of->pipeline == &link->pipeline && of->depth == link->pipeline.depth);
    uint32_t ready = 0;
    if ((link->source.interest & PT_WANT_READ) && (of->events & ops->read_events))
        ready |= PT_READY_READ;
    if ((of->events & ops->write_events) && link->end_code == PT_OK &&
        link->pipeline.pending_count != 0)
        ready |= PT_READY_WRITE;
    return ready;
}

/* What a source is ready for, of what is wanted. A watch sees the socket itself; a link what its
 * platform has noted. */
static uint32_t readiness(pt_context *context, pt_source *source)
{
    pt_classic *world = world_of(context);
    if (source->registered == UNREGISTERED)
        return 0;
    if (source->kind == PT_SOURCE_LINK)
        return look(context, (const pt_link *)source);
    uint32_t ready = (uint32_t)pt_sim_ready(world->sim, (int32_t)source->handle);
    uint32_t wanted = ((source->interest & PT_WANT_READ) ? PT_READY_READ : 0U) |
                      ((source->interest & PT_WANT_WRITE) ? PT_READY_WRITE : 0U);
    return wanted == 0 ? 0 : ready & (wanted | ((ready & wanted) ? PT_READY_HANGUP : 0U));
}

int pt_classic_is_ready(pt_context *context)
{
    pt_classic *world = world_of(context);
    reap(world);
    if (world->woken)
        return 1;
    for (pt_source *source = context->sources; source != NULL; source = source->next) {
        if (readiness(context, source) != 0)
            return 1;
    }
    return 0;
}

/* Hand over what is ready, beginning behind the last source that had its turn. */
static int collect(pt_context *context)
{
    pt_classic *world = world_of(context);
    uint32_t count = 0;
    for (pt_source *source = context->sources; source != NULL; source = source->next)
        count++;
    uint32_t start = world->place < count ? world->place : 0;
    for (int round = 0; round < 2; round++) {
        uint32_t index = 0;
        for (pt_source *source = context->sources;
             source != NULL && context->ready_count < context->io_budget;
             source = source->next, index++) {
            if ((round == 0) != (index >= start) || source->queued)
                continue;
            uint32_t ready = readiness(context, source);
            if (ready == 0)
                continue;
            source->ready = (uint8_t)(source->ready | ready);
            pt_context_ready(context, source);
            world->place = index + 1;
        }
    }
    PT_ASSERT(context->ready_count <= context->io_budget);
    PT_ASSERT(start == 0 || start < count); /* place itself may be that of a source that is gone */
    return (int)context->ready_count;
}

static int take_wake(pt_context *context)
{
    pt_classic *world = world_of(context);
    volatile uint8_t *woken = &world->woken;
    if (!*woken)
        return 0;
    *woken = 0;
    context->woken = 1;
    return 1;
}

int pt_classic_wait(pt_context *context, int timeout_ms)
{
    pt_classic *world = world_of(context);
    if (pt_sim_is_notifying(world->sim)) {
        pt_classic_violated(world, "wait", PT_ERR_INVALID_STATE,
                            "work at notification time; a notification only sets a flag");
        return PT_ERR_PLATFORM;
    }
    uint64_t now_ns = pt_sim_now(world->sim);
    uint64_t end_ns =
        timeout_ms < 0 ? UINT64_MAX : now_ns + (uint64_t)timeout_ms * (NANOSECONDS / 1000);
    PT_ASSERT(end_ns >= now_ns);
    for (;;) {
        reap(world);
        if (collect(context) != 0 || take_wake(context))
            break;
        int served = pt_sim_step(world->sim, end_ns);
        if (served == PT_ERR_NO_MEMORY)
            continue; /* a packet was lost to it */
        if (served == 1)
            continue;
        if (served < 0)
            return PT_ERR_PLATFORM;
        uint64_t unused;
        if (timeout_ms > 0)
            (void)pt_sim_advance(world->sim, end_ns, &unused);
        break;
    }
    return (int)context->ready_count;
}

int pt_classic_pass_time(pt_classic *world, uint64_t end_ns)
{
    PT_ASSERT(!pt_sim_is_notifying(world->sim));
    PT_ASSERT(end_ns != UINT64_MAX); /* the clock would go there */

    int served = pt_sim_step(world->sim, end_ns);
    if (served == 1 || served == PT_ERR_NO_MEMORY) /* a packet was lost to it */
        return 1;
    uint64_t unused;
    (void)pt_sim_advance(world->sim, end_ns, &unused);
    return 0;
}

int pt_classic_wait_completions(pt_context *context, pt_link *link, int timeout_ms)
{
    PT_ASSERT(timeout_ms >= 0);
    PT_ASSERT(link->pipeline.pending_count != 0);

    pt_classic *world = world_of(context);
    if (pt_sim_is_notifying(world->sim)) {
        pt_classic_violated(world, "send", PT_ERR_INVALID_STATE,
                            "a synchronous call at notification time");
        return PT_ERR_PLATFORM;
    }
    uint64_t end_ns = pt_sim_now(world->sim) + (uint64_t)timeout_ms * (NANOSECONDS / 1000);
    while (pt_classic_pass_time(world, end_ns) && !(look(context, link) & PT_READY_WRITE)) {
    }
    return PT_OK;
}

void pt_classic_wake(pt_context *context)
{
    volatile uint8_t *woken = &world_of(context)->woken;
    *woken = 1;
}

uint32_t pt_classic_clock(pt_context *context)
{
    const pt_classic *world = world_of(context);
    return pt_sim_ticks(world->sim);
}
