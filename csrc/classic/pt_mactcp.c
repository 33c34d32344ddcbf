/* The theory is in pt_mactcp.h and pt_mactcp_driver.h. Decided here alone: what each result means
 * to the core, and that a synchronous send waits for the writes before it. */
#include "pt_mactcp.h"

#include <string.h>

#include "pt_assert.h"
#include "pt_mactcp_driver.h"

/* What a slot needs of the platform: its block and its list. */
typedef struct write_block {
    pt_mactcp_block block;
    pt_mactcp_wds wds[2];
} write_block;

typedef struct port port;
struct port {
    pt_classic_port base;  /* events: enum pt_mactcp_event */
    write_block alone;     /* for synchronous sends */
    write_block writes[1]; /* depth of them */
};

static pt_mactcp *mactcp_of(const pt_context *context)
{
    return context->platform_data;
}

/* ---------------------------------------------------------------------------------------- ports */

static size_t port_size(uint8_t depth)
{
    PT_ASSERT(depth != 0 && depth <= PT_PIPELINE_MAX_DEPTH);

    return sizeof(port) + (size_t)(depth - 1U) * sizeof(write_block);
}

static size_t mactcp_link_size(uint8_t depth)
{
    return port_size(depth) + pt_mactcp_stream_size();
}

/* It runs at interrupt time, where no call is allowed: so it sets flags, nothing else. */
static void note_event(void *user, int event)
{
    PT_ASSERT(event > 0 && event < 2 * PT_MACTCP_ULP_LATE);

    port *noted = user;
    noted->base.events |= (uint32_t)event;
}

static port *port_of(const pt_context *context, const pt_link *link)
{
    return (port *)pt_classic_find_port(context, link);
}

/* A block made ready for a call that needs no more than a stream. */
static int16_t call_stream(pt_mactcp *mactcp, int32_t handle, int16_t call)
{
    PT_ASSERT(call != PT_MACTCP_SEND && call != PT_MACTCP_RECEIVE);

    pt_mactcp_block block;
    memset(&block, 0, sizeof block);
    block.io_c_ref_num = pt_mactcp_ref_num(mactcp);
    block.cs_code = call;
    block.tcp_stream = handle;
    return pt_mactcp_control(mactcp, &block);
}

static int open_port(pt_classic *world, pt_classic_port *opened)
{
    int result = pt_mactcp_adopt((pt_mactcp *)world, opened->handle, note_event, opened);
    if (result == PT_OK && (pt_sim_ready(world->sim, opened->handle) & PT_READY_READ))
        opened->events = PT_MACTCP_DATA_ARRIVAL; /* it came before us */
    return result;
}

static void close_port(pt_classic *world, pt_classic_port *closed)
{
    int16_t result = call_stream((pt_mactcp *)world, closed->handle, PT_MACTCP_RELEASE);
    PT_ASSERT(result == PT_MACTCP_NO_ERROR);
    (void)result;
}

static void reset_port(pt_classic *world, pt_classic_port *of)
{
    (void)call_stream((pt_mactcp *)world, of->handle, PT_MACTCP_ABORT);
}

static int code_of(int16_t result)
{
    PT_ASSERT(result != PT_MACTCP_IN_PROGRESS);

    switch (result) {
    case PT_MACTCP_NO_ERROR:
        return PT_OK;
    case PT_MACTCP_CONNECTION_CLOSING:
    case PT_MACTCP_NO_CONNECTION:
    case PT_MACTCP_TERMINATED:
        return PT_ERR_CONNECTION_CLOSED;
    default:
        return PT_ERR_NETWORK;
    }
}

/* Complete the slots whose blocks are not in progress. Returns their number; *failed: the last
 * result that was no success. */
static int complete_slots(port *of, int16_t *failed)
{
    PT_ASSERT(of->base.depth == of->base.pipeline->depth);

    int count = 0;
    for (uint8_t index = 0; index < of->base.depth; index++) {
        uint8_t state = of->base.pipeline->slots[index].state;
        int16_t result = of->writes[index].block.io_result;
        if ((state != PT_SLOT_IN_FLIGHT && state != PT_SLOT_ABANDONED) ||
            result == PT_MACTCP_IN_PROGRESS)
            continue;
        if (result != PT_MACTCP_NO_ERROR)
            *failed = result;
        PT_ASSERT(result <= 0);
        pt_pipeline_complete(of->base.pipeline, index, code_of(result));
        count++;
    }
    return count;
}

static void complete_port(pt_classic_port *of)
{
    int16_t unused;
    (void)complete_slots((port *)of, &unused);
}

static uint32_t in_progress(const pt_classic_port *of)
{
    uint32_t count = 0;
    for (uint8_t index = 0; index < of->depth; index++)
        count += ((const port *)of)->writes[index].block.io_result == PT_MACTCP_IN_PROGRESS;
    return count;
}

/* -------------------------------------------------------------------------------------- sending */

static int16_t issue(pt_mactcp *mactcp, const port *from, write_block *write, const uint8_t *data,
                     uint16_t len)
{
    PT_ASSERT(write->block.io_result != PT_MACTCP_IN_PROGRESS);
    PT_ASSERT(data != NULL && len != 0);

    memset(write, 0, sizeof *write);
    write->wds[0].length = len;
    write->wds[0].ptr = data; /* wds[1] stays zero: the end of the list */
    pt_mactcp_block *block = &write->block;
    block->io_c_ref_num = pt_mactcp_ref_num(mactcp);
    block->cs_code = PT_MACTCP_SEND;
    block->tcp_stream = from->base.handle;
    block->ulp_timeout_value = PT_MACTCP_ULP_TIMEOUT;
    block->ulp_timeout_action = PT_MACTCP_ULP_ABORT;
    block->validity_flags = PT_MACTCP_VALID_TIMEOUT | PT_MACTCP_VALID_ACTION;
    block->push_flag = mactcp->push;
    block->wds = write->wds;
    return pt_mactcp_control(mactcp, block);
}

/* The slot that this buffer is of; it is the newest in flight. -1: none. */
static int slot_of(const pt_send_pipeline *pipeline, const uint8_t *data)
{
    PT_ASSERT(pipeline->pending_count <= pipeline->depth);

    for (int index = 0; index < pipeline->depth; index++) {
        if (pipeline->slots[index].state == PT_SLOT_IN_FLIGHT &&
            pipeline->slots[index].buffer == data)
            return index;
    }
    return -1;
}

static int mactcp_send_async(pt_context *context, pt_link *link, const uint8_t *data, uint16_t len)
{
    pt_mactcp *mactcp = mactcp_of(context);
    port *from = port_of(context, link);
    int index = slot_of(&link->pipeline, data);
    if (from == NULL || index < 0)
        return PT_ERR_INVALID_PARAM;
    PT_ASSERT(index < from->base.depth && len == link->pipeline.slots[index].message_len);
    link->pipeline.slots[index].platform_data = &from->writes[index];
    int16_t result = issue(mactcp, from, &from->writes[index], data, len);
    if (result == PT_MACTCP_IN_PROGRESS) {
        link->write_calls++;
        link->sent_bytes += len;
        return PT_OK;
    }
    link->system_error = result;
    return code_of(result);
}

static int mactcp_poll_send_completions(pt_context *context, pt_link *link)
{
    port *of = port_of(context, link);
    if (of == NULL || link->pipeline.pending_count == 0)
        return 0;
    of->base.events &= ~(uint32_t)PT_MACTCP_SENT;
    int16_t failed = 0;
    int count = complete_slots(of, &failed);
    if (failed == 0)
        return count;
    link->system_error = failed;
    return code_of(failed);
}

/* Serve the network until nothing of this port is in progress, or the time has come. 1: nothing is.
 */
static int wait_for_sends(pt_mactcp *mactcp, port *of, uint64_t end_ns)
{
    while (in_progress(&of->base) != 0 || of->alone.block.io_result == PT_MACTCP_IN_PROGRESS) {
        if (!pt_classic_pass_time(&mactcp->world, end_ns))
            return 0;
    }
    return 1;
}

/* What is in flight goes first, within the drain time-out: the driver would take this write at
 * once, and so ahead of messages that were accepted before. */
static int mactcp_send(pt_context *context, pt_link *link, const uint8_t *data, uint16_t len)
{
    pt_mactcp *mactcp = mactcp_of(context);
    pt_classic *world = &mactcp->world;
    port *from = port_of(context, link);
    if (from == NULL)
        return PT_ERR_NOT_CONNECTED;
    if (pt_sim_is_notifying(world->sim)) {
        pt_classic_violated(world, "mactcp: TCPSend", PT_MACTCP_BAD_PARAMETER,
                            "a synchronous call at notification time");
        return PT_ERR_PLATFORM;
    }
    uint64_t end_ns = pt_sim_now(world->sim) + PT_CLASSIC_DRAIN_NS;
    int in_time = wait_for_sends(mactcp, from, end_ns);
    if (in_time) {
        int16_t result = issue(mactcp, from, &from->alone, data, len);
        if (result != PT_MACTCP_IN_PROGRESS) {
            link->system_error = result;
            return code_of(result);
        }
        link->write_calls++;
        in_time = wait_for_sends(mactcp, from, end_ns);
    }
    int16_t result = from->alone.block.io_result;
    if (!in_time) {
        /* The driver must let go of the bytes before their owner hears of it. */
        (void)call_stream(mactcp, from->base.handle, PT_MACTCP_ABORT);
        PT_ASSERT(from->alone.block.io_result != PT_MACTCP_IN_PROGRESS);
        PT_ASSERT(in_progress(&from->base) == 0);
        result = PT_MACTCP_COMMAND_TIMEOUT;
    }
    if (result == PT_MACTCP_NO_ERROR) {
        link->sent_bytes += len;
        return PT_OK;
    }
    int index = slot_of(&link->pipeline, data);
    if (index >= 0)
        from->writes[index].block.io_result = result;
    link->system_error = result;
    return in_time ? code_of(result) : PT_ERR_TIMEOUT;
}

/* ------------------------------------------------------------------------------------ receiving */

static int mactcp_receive(pt_context *context, pt_link *link, uint8_t *buffer, uint32_t size)
{
    pt_mactcp *mactcp = mactcp_of(context);
    port *to = port_of(context, link);
    if (to == NULL)
        return PT_ERR_NETWORK;
    pt_mactcp_block block;
    memset(&block, 0, sizeof block);
    block.io_c_ref_num = pt_mactcp_ref_num(mactcp);
    block.cs_code = PT_MACTCP_RECEIVE;
    block.tcp_stream = to->base.handle;
    block.receive_buffer = buffer;
    block.receive_length = size;
    int16_t result = pt_mactcp_control(mactcp, &block);
    link->read_calls++;
    if (result == PT_MACTCP_NO_ERROR) {
        PT_ASSERT(block.receive_length != 0 && block.receive_length <= size);
        if (block.receive_length < size)
            to->base.events &= ~(uint32_t)PT_MACTCP_DATA_ARRIVAL;
        if (call_stream(mactcp, to->base.handle, PT_MACTCP_STATUS) == PT_MACTCP_NO_ERROR &&
            (pt_sim_ready(mactcp->world.sim, to->base.handle) & PT_READY_READ))
            to->base.events |= PT_MACTCP_DATA_ARRIVAL;
        return (int)block.receive_length;
    }
    if (result == PT_MACTCP_COMMAND_TIMEOUT) {
        to->base.events &= ~(uint32_t)PT_MACTCP_DATA_ARRIVAL;
        return PT_ERR_WOULD_BLOCK;
    }
    link->system_error = result == PT_MACTCP_CONNECTION_CLOSING ? 0 : result;
    return PT_ERR_CONNECTION_CLOSED;
}

static int mactcp_finish(pt_context *context, pt_link *link)
{
    pt_mactcp *mactcp = mactcp_of(context);
    int16_t result = call_stream(mactcp, (int32_t)link->source.handle, PT_MACTCP_CLOSE);
    if (result == PT_MACTCP_NO_ERROR || result == PT_MACTCP_TERMINATED)
        return PT_OK; /* broken: reading tells why */
    link->system_error = result;
    return PT_ERR_NETWORK;
}

/* ------------------------------------------------------------------------------ the loop's side */

static size_t mactcp_size(const pt_setup *setup)
{
    (void)setup;
    return sizeof(pt_mactcp);
}

static int mactcp_init(void *platform_data, const pt_setup *setup, int32_t *system_error)
{
    static const pt_classic_port_ops ops = {
        .size = port_size,
        .open = open_port,
        .close = close_port,
        .reset = reset_port,
        .held = in_progress,
        .complete = complete_port,
        .read_events = PT_MACTCP_DATA_ARRIVAL | PT_MACTCP_CLOSING | PT_MACTCP_TERMINATE,
        .write_events = PT_MACTCP_SENT,
    };
    pt_mactcp *mactcp = platform_data;
    (void)system_error;
    memset(mactcp, 0, sizeof *mactcp);
    pt_classic_init(&mactcp->world, setup, &ops);
    mactcp->push = setup->push;
    return PT_OK;
}

static void mactcp_cleanup(void *platform_data)
{
    pt_mactcp *mactcp = platform_data;
    pt_classic_cleanup(&mactcp->world);
    PT_ASSERT(mactcp->world.ports == NULL);
    pt_mactcp_release_all(mactcp);
}

/* --------------------------------------------------------------------------------------- tables */

/* The entries that both tables have. */
#define MACTCP_OPS                                                                                 \
    .tcp_send = mactcp_send, .tcp_receive = mactcp_receive, .tcp_finish = mactcp_finish,           \
    .size = mactcp_size, .init = mactcp_init, .cleanup = mactcp_cleanup,                           \
    .link_size = mactcp_link_size, PT_CLASSIC_OPS

const pt_platform_ops *pt_mactcp_ops(void)
{
    static const pt_platform_ops ops = {
        .name = "mactcp",
        .tcp_send_async = mactcp_send_async,
        .poll_send_completions = mactcp_poll_send_completions,
        .wait_send_completions = pt_classic_wait_completions,
        .send_slots_available = pt_classic_slots_available,
        MACTCP_OPS,
    };
    return &ops;
}

const pt_platform_ops *pt_mactcp_sync_ops(void)
{
    static const pt_platform_ops ops = {.name = "mactcp_sync", MACTCP_OPS};
    return &ops;
}
