/* What the classic worlds share: waiting on the virtual clock, and the memory of broken rules. */
#include "pt_sim.h"

#include <string.h>

#define NANOSECONDS UINT64_C(1000000000)

static pt_sim_world *world_of(const pt_context *context)
{
    return context->platform_data;
}

void pt_sim_world_init(pt_sim_world *world, pt_sim *sim, const pt_sim_table *net, int host)
{
    memset(world, 0, sizeof *world);
    world->sim = sim;
    world->net = net;
    world->host = host;
}

/* Put text behind what is there; *len grows to at most size - 1. */
static void put_text(char *out, size_t size, size_t *len, const char *text)
{
    while (*text != 0 && *len + 1 < size)
        out[(*len)++] = *text++;
    out[*len] = 0;
}

void pt_sim_world_violated(pt_sim_world *world, const char *call, int code, const char *rule)
{
    uint32_t index = world->violation_count++;
    if (index >= PT_SIM_VIOLATIONS)
        return;
    char digits[12];
    size_t place = sizeof digits - 1;
    digits[place] = 0;
    unsigned value = code < 0 ? 0U - (unsigned)code : (unsigned)code;
    do {
        digits[--place] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    if (code < 0)
        digits[--place] = '-';
    char *out = &world->violations[(size_t)index * PT_SIM_VIOLATION_SIZE];
    size_t len = 0;
    put_text(out, PT_SIM_VIOLATION_SIZE, &len, call);
    put_text(out, PT_SIM_VIOLATION_SIZE, &len, " ");
    put_text(out, PT_SIM_VIOLATION_SIZE, &len, &digits[place]);
    put_text(out, PT_SIM_VIOLATION_SIZE, &len, ": ");
    put_text(out, PT_SIM_VIOLATION_SIZE, &len, rule);
}

/* What a source is ready for, of what is wanted. A watch sees the socket itself; a link what its platform has noted. */
static uint32_t readiness(pt_context *context, pt_source *source)
{
    pt_sim_world *world = world_of(context);
    if (source->registered == 0xFF)
        return 0;
    if (source->kind == PT_SOURCE_LINK)
        return world->look(context, source);
    uint32_t ready = (uint32_t)world->net->ready(world->sim, (int32_t)source->handle);
    uint32_t wanted = ((source->interest & PT_WANT_READ) ? PT_READY_READ : 0U) | ((source->interest & PT_WANT_WRITE) ? PT_READY_WRITE : 0U);
    return wanted == 0 ? 0 : ready & (wanted | ((ready & wanted) ? PT_READY_HANGUP : 0U));
}

int pt_sim_world_is_ready(pt_context *context)
{
    pt_sim_world *world = world_of(context);
    (void)world->reap(context);
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
    pt_sim_world *world = world_of(context);
    uint32_t count = 0;
    for (pt_source *source = context->sources; source != NULL; source = source->next)
        count++;
    uint32_t start = world->place < count ? world->place : 0;
    for (int round = 0; round < 2; round++) {
        uint32_t index = 0;
        for (pt_source *source = context->sources; source != NULL && context->ready_count < context->io_budget; source = source->next, index++) {
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
    return (int)context->ready_count;
}

static int take_wake(pt_context *context)
{
    pt_sim_world *world = world_of(context);
    volatile uint8_t *woken = &world->woken;
    if (!*woken)
        return 0;
    *woken = 0;
    context->woken = 1;
    return 1;
}

int pt_sim_world_wait(pt_context *context, int timeout_ms)
{
    pt_sim_world *world = world_of(context);
    const pt_sim_table *net = world->net;
    if (net->is_notifying(world->sim)) {
        pt_sim_world_violated(world, "wait", PT_ERR_INVALID_STATE, "work at notification time; a notification only sets a flag");
        return PT_ERR_PLATFORM;
    }
    uint64_t now_ns = net->now(world->sim);
    uint64_t end_ns = timeout_ms < 0 ? UINT64_MAX : now_ns + (uint64_t)timeout_ms * (NANOSECONDS / 1000);
    for (;;) {
        (void)world->reap(context);
        if (collect(context) != 0 || take_wake(context))
            break;
        int served = net->step(world->sim, end_ns);
        if (served == PT_ERR_NO_MEMORY)
            continue; /* a packet was lost to it */
        if (served == 1)
            continue;
        if (served < 0)
            return PT_ERR_PLATFORM;
        uint64_t unused;
        if (timeout_ms > 0)
            (void)net->advance(world->sim, end_ns, &unused);
        break;
    }
    return (int)context->ready_count;
}

void pt_sim_world_wake(pt_context *context)
{
    volatile uint8_t *woken = &world_of(context)->woken;
    *woken = 1;
}

uint32_t pt_sim_world_clock(pt_context *context)
{
    const pt_sim_world *world = world_of(context);
    return world->net->ticks(world->sim);
}
