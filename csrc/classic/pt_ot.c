/* The theory is in pt_ot.h and pt_ot_provider.h. Decided here alone: what each event means to the
 * core, and that what was taken in part goes before what lies behind it. */
#include "pt_ot.h"

#include <string.h>

#include "pt_assert.h"
#include "pt_ot_provider.h"

/* What the notifier writes at interrupt time is volatile. */
typedef struct ot_port {
    pt_classic_port base; /* events: enum pt_ot_event */
    pt_ot_endpoint *endpoint;
    uint8_t synchronous;               /* the bytes being sent are of no slot */
    volatile uint8_t undelivered;      /* bytes came back that were not delivered */
    volatile uint32_t alone_len;       /* of such bytes, how many were released */
    volatile uint32_t released_len[1]; /* of each slot */
} ot_port;

static pt_ot *ot_of(const pt_context *context)
{
    return context->platform_data;
}

/* ---------------------------------------------------------------------------------------- ports */

static size_t port_size(uint8_t depth)
{
    PT_ASSERT(depth != 0 && depth <= PT_PIPELINE_MAX_DEPTH);

    return sizeof(ot_port) + (size_t)(depth - 1U) * sizeof(uint32_t);
}

static size_t ot_link_size(uint8_t depth)
{
    return port_size(depth) + pt_ot_endpoint_size();
}

int pt_ot_code(int32_t result)
{
    PT_ASSERT(result <= 0);

    switch (result) {
    case PT_OT_NO_ERROR:
        return PT_OK;
    case PT_OT_FLOW:
    case PT_OT_OUT_OF_MEMORY:
    case PT_OT_NO_DATA:
        return PT_ERR_WOULD_BLOCK;
    case PT_OT_LOOK:
    case PT_OT_OUT_STATE:
        return PT_ERR_CONNECTION_CLOSED;
    default:
        return PT_ERR_NETWORK;
    }
}

/* It runs at interrupt time, where work is refused: so it sets flags and counts, nothing else. */
static void note_event(void *user, uint32_t event, int32_t result, const void *cookie)
{
    ot_port *noted = user;
    if (event != PT_OT_MEMORYRELEASED) {
        noted->base.events |= event & 0xFFFFU;
        return;
    }
    noted->base.events |= PT_OT_GODATA; /* either way sending can go on */
    if (result < 0)
        noted->undelivered = 1;
    PT_ASSERT(result != 0 && cookie != NULL);
    uint32_t len = (uint32_t)(result < 0 ? -result : result);
    if (noted->synchronous) {
        noted->alone_len += len;
        return;
    }
    uintptr_t place = (uintptr_t)cookie;
    for (uint8_t index = 0; index < noted->base.depth; index++) {
        const pt_send_slot *slot = &noted->base.pipeline->slots[index];
        if (slot->buffer != NULL && place >= (uintptr_t)slot->buffer &&
            place < (uintptr_t)slot->buffer + slot->message_len) {
            noted->released_len[index] += len;
            PT_ASSERT(noted->released_len[index] <= slot->message_len);
        }
    }
}

static ot_port *port_of(const pt_context *context, const pt_link *link)
{
    return (ot_port *)pt_classic_find_port(context, link);
}

static int open_port(pt_classic *world, pt_classic_port *opened)
{
    pt_ot_endpoint *endpoint = pt_ot_open((pt_ot *)world);
    int32_t code = endpoint != NULL ? pt_ot_install_notifier(endpoint, note_event, opened)
                                    : PT_OT_OUT_OF_MEMORY;
    if (code == 0)
        code = pt_ot_set_non_blocking(endpoint);
    if (code == 0)
        code = pt_ot_set_asynchronous(endpoint);
    if (code == 0)
        code = pt_ot_adopt(endpoint, opened->handle);
    ((ot_port *)opened)->endpoint = endpoint;
    PT_ASSERT(code != 0 || pt_ot_get_state(endpoint) == PT_OT_DATAXFER);
    if (code == 0)
        return PT_OK;
    if (endpoint != NULL)
        pt_ot_close_adopted(endpoint);
    return code == PT_OT_OUT_OF_MEMORY ? PT_ERR_NO_MEMORY : PT_ERR_INVALID_PARAM;
}

static void close_port(pt_classic *world, pt_classic_port *closed)
{
    (void)world;
    pt_ot_close_adopted(((ot_port *)closed)->endpoint);
}

static void reset_port(pt_classic *world, pt_classic_port *of)
{
    (void)world;
    pt_ot_drop_sends(((ot_port *)of)->endpoint);
}

static int is_taken(const pt_send_slot *slot)
{
    int taken = slot->state == PT_SLOT_IN_FLIGHT || slot->state == PT_SLOT_ABANDONED;
    PT_ASSERT(!taken || slot->sent_len <= slot->message_len);
    return taken;
}

static uint32_t held_slots(const pt_classic_port *of)
{
    PT_ASSERT(of->depth == of->pipeline->depth);

    uint32_t count = 0;
    for (uint8_t index = 0; index < of->depth; index++)
        count += is_taken(&of->pipeline->slots[index]) &&
                 ((const ot_port *)of)->released_len[index] < of->pipeline->slots[index].sent_len;
    return count;
}

/* A slot is complete when the provider has let go of its bytes, not when it has taken them. over:
 * of a connection that is, also a slot that was taken in part. */
static int complete_slots(ot_port *of, int over)
{
    int count = 0;
    for (uint8_t index = 0; index < of->base.depth; index++) {
        const pt_send_slot *slot = &of->base.pipeline->slots[index];
        if (!is_taken(slot) || of->released_len[index] < slot->sent_len)
            continue;
        PT_ASSERT(of->released_len[index] == slot->sent_len);
        if (slot->sent_len < slot->message_len && !over)
            continue;
        int delivered = slot->sent_len == slot->message_len && !of->undelivered;
        pt_pipeline_complete(of->base.pipeline, index,
                             delivered ? PT_OK : PT_ERR_CONNECTION_CLOSED);
        count++;
    }
    return count;
}

static void complete_port(pt_classic_port *of)
{
    (void)complete_slots((ot_port *)of, 1);
}

/* -------------------------------------------------------------------------------------- sending */

/* Oldest first, and none behind one that was taken in part: the bytes are one stream. */
static int offer_slots(ot_port *from, pt_link *link)
{
    pt_send_pipeline *pipeline = &link->pipeline;
    for (uint8_t place = 0; place < pipeline->pending_count; place++) {
        uint8_t index = (uint8_t)((pipeline->head + place) % pipeline->depth);
        pt_send_slot *slot = &pipeline->slots[index];
        if (slot->state != PT_SLOT_IN_FLIGHT || slot->sent_len == slot->message_len)
            continue;
        while (slot->sent_len < slot->message_len) {
            int32_t count = pt_ot_send(from->endpoint, slot->buffer + slot->sent_len,
                                       (uint32_t)(slot->message_len - slot->sent_len));
            link->write_calls++;
            if (count <= 0) {
                int code = pt_ot_code(count);
                if (code == PT_ERR_WOULD_BLOCK) {
                    link->blocked = 1;
                    return PT_OK;
                }
                link->system_error = count;
                return code;
            }
            PT_ASSERT(count <= slot->message_len - slot->sent_len);
            slot->sent_len = (uint16_t)(slot->sent_len + count);
            link->sent_bytes += (uint64_t)count;
        }
    }
    return PT_OK;
}

static int ot_send_async(pt_context *context, pt_link *link, const uint8_t *data, uint16_t len)
{
    (void)len; /* asserted alone */
    ot_port *from = port_of(context, link);
    if (from == NULL)
        return PT_ERR_NOT_CONNECTED;
    for (uint8_t index = 0; index < link->pipeline.depth; index++) {
        pt_send_slot *slot = &link->pipeline.slots[index];
        if (slot->state == PT_SLOT_IN_FLIGHT && slot->buffer == data) {
            PT_ASSERT(slot->sent_len == 0 && slot->message_len == len);
            slot->platform_data = from;
            from->released_len[index] = 0;
        }
    }
    return offer_slots(from, link);
}

static int ot_poll_send_completions(pt_context *context, pt_link *link)
{
    ot_port *of = port_of(context, link);
    if (of == NULL || link->pipeline.pending_count == 0)
        return 0;
    of->base.events &= ~(uint32_t)PT_OT_GODATA;
    int over = pt_ot_look(of->endpoint) == PT_OT_DISCONNECT;
    int count = complete_slots(of, over);
    if (over) {
        link->system_error = PT_OT_LOOK;
        return PT_ERR_CONNECTION_CLOSED;
    }
    int code = offer_slots(of, link);
    return code == PT_OK ? count : code;
}

/* The time has come. The provider must let go of the bytes before their owner hears of it. */
static void give_up(ot_port *from, pt_link *link)
{
    pt_ot_break(from->endpoint);
    from->base.events |= PT_OT_DISCONNECT;
    link->system_error = PT_OT_FLOW;
}

/* The bytes are the caller's, who may change them when this returns: so it waits until they are
 * released, also when the time has come. */
static int send_alone(pt_ot *ot, ot_port *from, pt_link *link, const uint8_t *data, uint16_t len,
                      uint64_t end_ns)
{
    uint32_t sent_len = 0;
    PT_ASSERT(!from->synchronous);
    PT_ASSERT(held_slots(&from->base) == 0); /* what was in flight went first */
    from->synchronous = 1;
    from->alone_len = 0;
    while (sent_len < len) {
        int32_t count = pt_ot_send(from->endpoint, data + sent_len, len - sent_len);
        if (count > 0) {
            sent_len += (uint32_t)count;
            link->write_calls++;
        } else if (pt_ot_code(count) != PT_ERR_WOULD_BLOCK) {
            link->system_error = count;
            break;
        } else if (!pt_classic_pass_time(&ot->world, end_ns)) {
            break;
        }
    }
    while (from->alone_len < sent_len && pt_classic_pass_time(&ot->world, end_ns)) {
    }
    if (from->alone_len < sent_len || (sent_len < len && link->system_error == 0)) {
        give_up(from, link);
    }
    PT_ASSERT(from->alone_len == sent_len);
    from->synchronous = 0;
    if (link->system_error == PT_OT_FLOW)
        return PT_ERR_TIMEOUT;
    if (sent_len == len && !from->undelivered)
        return PT_OK;
    return PT_ERR_CONNECTION_CLOSED;
}

static int ot_send(pt_context *context, pt_link *link, const uint8_t *data, uint16_t len)
{
    pt_ot *ot = ot_of(context);
    ot_port *from = port_of(context, link);
    if (from == NULL)
        return PT_ERR_NOT_CONNECTED;
    if (pt_ot_is_notifying(ot)) {
        pt_classic_violated(&ot->world, "opentransport: OTSnd", PT_OT_BAD_SYNC,
                            "a synchronous call at notifier time");
        return PT_ERR_PLATFORM;
    }
    /* Nothing overtakes: what is in flight goes first, all within the drain time-out. */
    uint64_t end_ns = pt_sim_now(ot->world.sim) + PT_CLASSIC_DRAIN_NS;
    while (held_slots(&from->base) != 0) {
        if (!pt_classic_pass_time(&ot->world, end_ns)) {
            give_up(from, link);
            return PT_ERR_TIMEOUT;
        }
    }
    link->system_error = 0;
    int code = send_alone(ot, from, link, data, len, end_ns);
    if (code == PT_OK)
        link->sent_bytes += len;
    return code;
}

/* ------------------------------------------------------------------------------------ receiving */

/* Read until there is no more: only then comes another T_DATA. */
static int ot_receive(pt_context *context, pt_link *link, uint8_t *buffer, uint32_t size)
{
    ot_port *to = port_of(context, link);
    if (to == NULL)
        return PT_ERR_NETWORK;
    uint32_t len = 0;
    int32_t count = 0;
    while (len < size && (count = pt_ot_receive(to->endpoint, buffer + len, size - len)) > 0) {
        len += (uint32_t)count;
        link->read_calls++;
    }
    PT_ASSERT(len <= size);
    if (count == PT_OT_NO_DATA)
        to->base.events &= ~(uint32_t)PT_OT_DATA;
    else if (count == PT_OT_LOOK)
        to->base.events |= PT_OT_ORDREL; /* or worse: the next read finds out */
    if (len != 0)
        return (int)len;
    if (count == PT_OT_NO_DATA)
        return PT_ERR_WOULD_BLOCK;
    if (pt_ot_look(to->endpoint) == PT_OT_DISCONNECT || count != PT_OT_LOOK) {
        link->system_error = count;
        return PT_ERR_CONNECTION_CLOSED;
    }
    link->system_error = 0;
    (void)pt_ot_receive_release(to->endpoint);
    return PT_ERR_CONNECTION_CLOSED;
}

static int ot_finish(pt_context *context, pt_link *link)
{
    ot_port *of = port_of(context, link);
    if (of == NULL)
        return PT_ERR_NETWORK;
    int32_t result = pt_ot_send_release(of->endpoint);
    if (result == PT_OT_NO_ERROR || result == PT_OT_LOOK)
        return PT_OK; /* broken: reading tells why */
    link->system_error = result;
    return PT_ERR_NETWORK;
}

/* ------------------------------------------------------------------------------ the loop's side */

static size_t ot_size(const pt_setup *setup)
{
    (void)setup;
    return sizeof(pt_ot);
}

static int ot_init(void *platform_data, const pt_setup *setup, int32_t *system_error)
{
    static const pt_classic_port_ops ops = {
        .size = port_size,
        .open = open_port,
        .close = close_port,
        .reset = reset_port,
        .held = held_slots,
        .complete = complete_port,
        .read_events = PT_OT_DATA | PT_OT_ORDREL | PT_OT_DISCONNECT,
        .write_events = PT_OT_GODATA | PT_OT_DISCONNECT,
    };
    pt_ot *ot = platform_data;
    (void)system_error;
    memset(ot, 0, sizeof *ot);
    pt_classic_init(&ot->world, setup, &ops);
    ot->push = setup->push;
    ot->send_limit = setup->send_limit ? setup->send_limit : PT_OT_SEND_LIMIT;
    return PT_OK;
}

static void ot_cleanup(void *platform_data)
{
    pt_ot *ot = platform_data;
    pt_classic_cleanup(&ot->world);
    PT_ASSERT(ot->world.ports == NULL);
    while (ot->endpoints != NULL)
        pt_ot_close(ot->endpoints);
}

/* --------------------------------------------------------------------------------------- tables */

/* The entries that both tables have. */
#define OT_OPS                                                                                     \
    .tcp_send = ot_send, .tcp_receive = ot_receive, .tcp_finish = ot_finish, .size = ot_size,      \
    .init = ot_init, .cleanup = ot_cleanup, .link_size = ot_link_size, PT_CLASSIC_OPS

const pt_platform_ops *pt_ot_ops(void)
{
    static const pt_platform_ops ops = {
        .name = "opentransport",
        .tcp_send_async = ot_send_async,
        .poll_send_completions = ot_poll_send_completions,
        .wait_send_completions = pt_classic_wait_completions,
        .send_slots_available = pt_classic_slots_available,
        OT_OPS,
    };
    return &ops;
}

const pt_platform_ops *pt_ot_sync_ops(void)
{
    static const pt_platform_ops ops = {.name = "opentransport_sync", OT_OPS};
    return &ops;
}
