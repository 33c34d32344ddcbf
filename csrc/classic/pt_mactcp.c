#include "pt_mactcp.h"

#include <string.h>

#include "pt_assert.h"

#define REF_NUM   (-57) /* any negative number does */
#define DRAIN_NS  (UINT64_C(1000000000) * PT_DRAIN_TIMEOUT_TICKS / PT_TICKS_PER_SECOND)
#define SECOND_NS UINT64_C(1000000000)

/* A stream as the driver has it. */
typedef struct stream stream;
struct stream {
    stream *next;
    int32_t handle;
    pt_mactcp_block *queue; /* sends in progress */
    pt_mactcp_routine routine;
    void *user;
    pt_mactcp *driver;
};

/* What a slot needs of the platform: its block and its list. */
typedef struct write_block {
    pt_mactcp_block block;
    pt_mactcp_wds wds[2];
} write_block;

/* A link's side of a stream. */
typedef struct port port;
struct port {
    pt_sim_port base;      /* events: enum pt_mactcp_event */
    write_block alone;     /* for synchronous sends */
    write_block writes[1]; /* depth of them */
};

struct pt_mactcp {
    pt_sim_world world;
    stream *streams;
    uint8_t push;
};

static pt_mactcp *mactcp_of(const pt_context *context)
{
    return context->platform_data;
}

/* ----------------------------------------------------------------------------------- the driver */

static stream *find_stream(const pt_mactcp *driver, int32_t handle)
{
    stream *found = driver->streams;
    while (found != NULL && found->handle != handle)
        found = found->next;
    return found;
}

static int16_t violated(pt_mactcp *driver, const char *call, int code, const char *rule)
{
    pt_sim_world_violated(&driver->world, call, code, rule);
    return (int16_t)code;
}

/* FNV-1a 32. */
static uint32_t sum_of(const pt_mactcp_wds *wds)
{
    uint32_t sum = 0x811C9DC5U;
    for (uint16_t index = 0; index < wds->length; index++)
        sum = (sum ^ wds->ptr[index]) * 0x01000193U;
    return sum;
}

static int16_t result_of(int code)
{
    return code == PT_OK ? PT_MACTCP_NO_ERROR : PT_MACTCP_TERMINATED;
}

/* A send is over: the rules that can be checked only now, then the result. */
static void end_send(pt_mactcp *driver, pt_mactcp_block *block)
{
    if (block->wds == NULL || block->wds[0].ptr != block->seen.ptr ||
        block->wds[0].length != block->seen.length)
        violated(driver, "mactcp: TCPSend", PT_MACTCP_INVALID_WDS,
                 "the list was changed while the send was in progress");
    else if (sum_of(&block->seen) != block->sum)
        violated(driver, "mactcp: TCPSend", PT_MACTCP_INVALID_BUFFER,
                 "the buffer was changed or moved while the send was in progress");
    block->send_length = block->seen.length;
    block->q_link = block; /* not cleared: using it again as it is can be seen */
    block->io_result = result_of(block->piece.result);
}

/* Take finished sends out of the queue. Returns their number. */
static int sweep(stream *from)
{
    int count = 0;
    pt_mactcp_block **link = &from->queue;
    while (*link != NULL) {
        pt_mactcp_block *block = *link;
        if (block->piece.result == 1) {
            link = &block->q_link;
            continue;
        }
        *link = block->q_link;
        end_send(from->driver, block);
        count++;
    }
    return count;
}

/* At interrupt time. */
static void interrupted(void *owner, int32_t handle, int news)
{
    static const uint8_t events[] = {
        [PT_SIM_NEWS_DATA] = PT_MACTCP_DATA_ARRIVAL, [PT_SIM_NEWS_SENT] = PT_MACTCP_SENT,
        [PT_SIM_NEWS_CLOSING] = PT_MACTCP_CLOSING,   [PT_SIM_NEWS_TERMINATED] = PT_MACTCP_TERMINATE,
        [PT_SIM_NEWS_LATE] = PT_MACTCP_ULP_LATE,     [PT_SIM_NEWS_UNREACHABLE] = 0,
    };
    (void)handle;
    stream *told = owner;
    int event = events[news];
    if (sweep(told) != 0)
        event |= PT_MACTCP_SENT;
    if (told->routine != NULL && event != 0)
        told->routine(told->user, event);
}

int pt_mactcp_adopt(pt_mactcp *driver, int32_t handle, pt_mactcp_routine routine, void *user)
{
    if (find_stream(driver, handle) != NULL)
        return PT_ERR_INVALID_PARAM;
    stream *adopted = driver->world.memory.allocate(driver->world.memory.context, sizeof *adopted);
    if (adopted == NULL)
        return PT_ERR_NO_MEMORY;
    memset(adopted, 0, sizeof *adopted);
    adopted->handle = handle;
    adopted->routine = routine;
    adopted->user = user;
    adopted->driver = driver;
    if (driver->world.net->attach(driver->world.sim, handle, interrupted, adopted) != PT_OK) {
        driver->world.memory.release(driver->world.memory.context, adopted, sizeof *adopted);
        return PT_ERR_INVALID_PARAM;
    }
    adopted->next = driver->streams;
    driver->streams = adopted;
    return PT_OK;
}

static void release_stream(pt_mactcp *driver, stream *released)
{
    PT_ASSERT(released->queue == NULL);
    (void)driver->world.net->attach(driver->world.sim, released->handle, NULL, NULL);
    stream **link = &driver->streams;
    while (*link != released)
        link = &(*link)->next;
    *link = released->next;
    driver->world.memory.release(driver->world.memory.context, released, sizeof *released);
}

/* What is wrong with a block for a send, before any of it is believed. 0: nothing. */
static int16_t check_send(pt_mactcp *driver, const pt_mactcp_block *block)
{
    static const char call[] = "mactcp: TCPSend";
    if (block->io_result != 0 || block->q_link != NULL || block->send_length != 0 ||
        block->send_free != 0)
        return violated(driver, call, PT_MACTCP_BAD_PARAMETER,
                        "the parameter block was not cleared before use");
    const pt_mactcp_wds *wds = block->wds;
    if (wds == NULL || wds[0].length == 0 || wds[0].ptr == NULL)
        return violated(driver, call, PT_MACTCP_INVALID_WDS, "the list is empty");
    if (wds[1].length != 0 || wds[1].ptr != NULL)
        return violated(driver, call, PT_MACTCP_INVALID_WDS,
                        "the list has no zero sentinel behind its piece");
    return 0;
}

static int16_t do_send(pt_mactcp *driver, stream *on, pt_mactcp_block *block)
{
    int16_t wrong = check_send(driver, block);
    if (wrong != 0)
        return wrong;
    pt_sim_world *world = &driver->world;
    uint64_t seconds = (block->validity_flags & PT_MACTCP_VALID_TIMEOUT) ? block->ulp_timeout_value
                                                                         : PT_MACTCP_ULP_TIMEOUT;
    int action = (block->validity_flags & PT_MACTCP_VALID_ACTION) ? block->ulp_timeout_action
                                                                  : PT_MACTCP_ULP_ABORT;
    (void)world->net->set_give_up(world->sim, on->handle, seconds * SECOND_NS, action);
    memset(&block->piece, 0, sizeof block->piece);
    block->piece.data = block->wds[0].ptr;
    block->piece.len = block->wds[0].length;
    block->piece.push = block->push_flag != 0;
    block->seen = block->wds[0];
    block->sum = sum_of(&block->seen);
    int code = world->net->send_piece(world->sim, on->handle, &block->piece);
    if (code != PT_OK)
        return code == PT_ERR_CONNECTION_CLOSED ? PT_MACTCP_TERMINATED : PT_MACTCP_NO_CONNECTION;
    pt_mactcp_block **link = &on->queue;
    while (*link != NULL)
        link = &(*link)->q_link;
    block->q_link = NULL;
    *link = block;
    return PT_MACTCP_IN_PROGRESS;
}

static int16_t do_receive(pt_mactcp *driver, const stream *on, pt_mactcp_block *block)
{
    if (block->receive_buffer == NULL || block->receive_length == 0)
        return violated(driver, "mactcp: TCPRcv", PT_MACTCP_INVALID_LENGTH,
                        "there is no buffer to receive into");
    int broken;
    int count = driver->world.net->receive(driver->world.sim, on->handle, block->receive_buffer,
                                           block->receive_length, &broken);
    block->receive_length = count > 0 ? (uint32_t)count : 0;
    if (count > 0)
        return PT_MACTCP_NO_ERROR;
    if (count == PT_ERR_WOULD_BLOCK)
        return PT_MACTCP_COMMAND_TIMEOUT;
    return broken ? PT_MACTCP_TERMINATED : PT_MACTCP_CONNECTION_CLOSING;
}

static int16_t call_driver(pt_mactcp *driver, pt_mactcp_block *block)
{
    static const char call[] = "mactcp: PBControl";
    if (driver->world.net->is_notifying(driver->world.sim))
        return violated(driver, call, PT_MACTCP_BAD_PARAMETER,
                        "called at notification time; the routine may only set flags");
    if (block->io_result == PT_MACTCP_IN_PROGRESS)
        return violated(driver, call, PT_MACTCP_BAD_PARAMETER,
                        "the parameter block is still in progress");
    if (block->io_c_ref_num != REF_NUM)
        return violated(driver, call, PT_MACTCP_BAD_REFNUM,
                        "the reference number is not the driver's");
    if (block->io_completion != NULL)
        return violated(driver, call, PT_MACTCP_BAD_PARAMETER,
                        "a completion routine is set where results are polled");
    stream *on = find_stream(driver, block->tcp_stream);
    if (on == NULL)
        return violated(driver, call, PT_MACTCP_INVALID_STREAM, "there is no such stream");

    pt_sim_world *world = &driver->world;
    switch (block->cs_code) {
    case PT_MACTCP_SEND:
        return do_send(driver, on, block);
    case PT_MACTCP_RECEIVE:
        return do_receive(driver, on, block);
    case PT_MACTCP_CLOSE:
        return result_of(world->net->finish(world->sim, on->handle));
    case PT_MACTCP_ABORT:
        (void)world->net->reset(world->sim, on->handle);
        (void)sweep(on);
        return PT_MACTCP_NO_ERROR;
    case PT_MACTCP_STATUS:
        block->unread_len = (world->net->ready(world->sim, on->handle) & PT_READY_READ) != 0;
        return PT_MACTCP_NO_ERROR;
    case PT_MACTCP_RELEASE:
        if (on->queue != NULL)
            return violated(driver, call, PT_MACTCP_BAD_PARAMETER,
                            "the stream is released while sends are in progress");
        release_stream(driver, on);
        return PT_MACTCP_NO_ERROR;
    default:
        return violated(driver, call, PT_MACTCP_BAD_PARAMETER, "the driver has no such call");
    }
}

int16_t pt_mactcp_control(pt_mactcp *driver, pt_mactcp_block *block)
{
    if (block->io_result == PT_MACTCP_IN_PROGRESS)
        return call_driver(driver, block); /* refused; the block stays as it is */
    int16_t result = call_driver(driver, block);
    block->io_result = result;
    return result;
}

int16_t pt_mactcp_ref_num(const pt_mactcp *driver)
{
    (void)driver;
    return REF_NUM;
}

/* ---------------------------------------------------------------------------------------- ports */

size_t pt_mactcp_size(void)
{
    return sizeof(pt_mactcp);
}

static size_t port_size(uint8_t depth)
{
    return sizeof(port) + (size_t)(depth - 1U) * sizeof(write_block);
}

size_t pt_mactcp_stream_size(uint8_t depth)
{
    return port_size(depth) + sizeof(stream);
}

/* The notification routine: sets flags, nothing else. */
static void note_event(void *user, int event)
{
    port *noted = user;
    noted->base.events |= (uint32_t)event;
}

static port *port_of(const pt_context *context, const pt_link *link)
{
    return (port *)pt_sim_world_port(context, link);
}

/* A block made ready for a call that needs no more than a stream. */
static int16_t simple_call(pt_mactcp *mactcp, int32_t handle, int16_t call)
{
    pt_mactcp_block block;
    memset(&block, 0, sizeof block);
    block.io_c_ref_num = REF_NUM;
    block.cs_code = call;
    block.tcp_stream = handle;
    return pt_mactcp_control(mactcp, &block);
}

static int open_port(pt_sim_world *world, pt_sim_port *opened)
{
    int result = pt_mactcp_adopt((pt_mactcp *)world, opened->handle, note_event, opened);
    if (result == PT_OK && (world->net->ready(world->sim, opened->handle) & PT_READY_READ))
        opened->events = PT_MACTCP_DATA_ARRIVAL; /* it came before us */
    return result;
}

static void close_port(pt_sim_world *world, pt_sim_port *closed)
{
    stream *adopted = find_stream((pt_mactcp *)world, closed->handle);
    PT_ASSERT(adopted != NULL);
    release_stream((pt_mactcp *)world, adopted);
}

static void reset_port(pt_sim_world *world, pt_sim_port *of)
{
    (void)simple_call((pt_mactcp *)world, of->handle, PT_MACTCP_ABORT);
}

static int code_of(int16_t result)
{
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
    int count = 0;
    for (uint8_t index = 0; index < of->base.depth; index++) {
        uint8_t state = of->base.pipeline->slots[index].state;
        int16_t result = of->writes[index].block.io_result;
        if ((state != PT_SLOT_IN_FLIGHT && state != PT_SLOT_ABANDONED) ||
            result == PT_MACTCP_IN_PROGRESS)
            continue;
        if (result != PT_MACTCP_NO_ERROR)
            *failed = result;
        pt_pipeline_complete(of->base.pipeline, index, code_of(result));
        count++;
    }
    return count;
}

static void complete_port(pt_sim_port *of)
{
    int16_t unused;
    (void)complete_slots((port *)of, &unused);
}

static uint32_t in_progress(const pt_sim_port *of)
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
    memset(write, 0, sizeof *write);
    write->wds[0].length = len;
    write->wds[0].ptr = data; /* wds[1] stays zero: the end of the list */
    pt_mactcp_block *block = &write->block;
    block->io_c_ref_num = REF_NUM;
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
    pt_sim_world *world = &mactcp->world;
    while (in_progress(&of->base) != 0 || of->alone.block.io_result == PT_MACTCP_IN_PROGRESS) {
        int served = world->net->step(world->sim, end_ns);
        if (served != 1 && served != PT_ERR_NO_MEMORY) {
            uint64_t unused;
            (void)world->net->advance(world->sim, end_ns, &unused);
            return 0;
        }
    }
    return 1;
}

/* Nothing overtakes: what is in flight goes first (T.3 of the source's review), all within the
 * drain time-out. */
static int mactcp_send(pt_context *context, pt_link *link, const uint8_t *data, uint16_t len)
{
    pt_mactcp *mactcp = mactcp_of(context);
    pt_sim_world *world = &mactcp->world;
    port *from = port_of(context, link);
    if (from == NULL)
        return PT_ERR_NOT_CONNECTED;
    if (world->net->is_notifying(world->sim)) {
        violated(mactcp, "mactcp: TCPSend", PT_MACTCP_BAD_PARAMETER,
                 "a synchronous call at notification time");
        return PT_ERR_PLATFORM;
    }
    uint64_t end_ns = world->net->now(world->sim) + DRAIN_NS;
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
        (void)simple_call(mactcp, from->base.handle, PT_MACTCP_ABORT);
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
    block.io_c_ref_num = REF_NUM;
    block.cs_code = PT_MACTCP_RECEIVE;
    block.tcp_stream = to->base.handle;
    block.receive_buffer = buffer;
    block.receive_length = size;
    int16_t result = pt_mactcp_control(mactcp, &block);
    link->read_calls++;
    if (result == PT_MACTCP_NO_ERROR) {
        if (block.receive_length < size)
            to->base.events &= ~(uint32_t)PT_MACTCP_DATA_ARRIVAL;
        if (simple_call(mactcp, to->base.handle, PT_MACTCP_STATUS) == PT_MACTCP_NO_ERROR &&
            (mactcp->world.net->ready(mactcp->world.sim, to->base.handle) & PT_READY_READ))
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
    int16_t result = simple_call(mactcp, (int32_t)link->source.handle, PT_MACTCP_CLOSE);
    if (result == PT_MACTCP_NO_ERROR || result == PT_MACTCP_TERMINATED)
        return PT_OK; /* broken: reading tells why */
    link->system_error = result;
    return PT_ERR_NETWORK;
}

/* ------------------------------------------------------------------------------ the loop's side */

void pt_mactcp_init(void *platform_data, pt_sim *sim, const pt_sim_table *net, int host,
                    const pt_memory *source, int push)
{
    pt_mactcp *mactcp = platform_data;
    static const pt_sim_port_ops ops = {
        .size = port_size,
        .open = open_port,
        .close = close_port,
        .reset = reset_port,
        .held = in_progress,
        .complete = complete_port,
        .read_events = PT_MACTCP_DATA_ARRIVAL | PT_MACTCP_CLOSING | PT_MACTCP_TERMINATE,
        .write_events = PT_MACTCP_SENT,
    };
    memset(mactcp, 0, sizeof *mactcp);
    pt_sim_world_init(&mactcp->world, sim, net, host, source, &ops);
    mactcp->push = push != 0;
}

void pt_mactcp_cleanup(void *platform_data)
{
    pt_mactcp *mactcp = platform_data;
    pt_sim_world_cleanup(&mactcp->world);
    while (mactcp->streams != NULL)
        release_stream(mactcp, mactcp->streams);
}

uint32_t pt_mactcp_abandoned(const void *platform_data)
{
    return pt_sim_world_abandoned(&((const pt_mactcp *)platform_data)->world);
}

/* --------------------------------------------------------------------------------------- tables */

const pt_platform_ops *pt_mactcp_ops(void)
{
    static const pt_platform_ops ops = {
        .name = "mactcp",
        .tcp_send = mactcp_send,
        .tcp_send_async = mactcp_send_async,
        .poll_send_completions = mactcp_poll_send_completions,
        .wait_send_completions = pt_sim_world_wait_completions,
        .send_slots_available = pt_sim_world_slots_available,
        .tcp_receive = mactcp_receive,
        .tcp_finish = mactcp_finish,
        .watch = pt_sim_world_watch,
        .forget = pt_sim_world_forget,
        .wait = pt_sim_world_wait,
        .wake = pt_sim_world_wake,
        .clock = pt_sim_world_clock,
        .ticks_per_second = PT_TICKS_PER_SECOND,
        .classic = 1,
    };
    return &ops;
}

const pt_platform_ops *pt_mactcp_sync_ops(void)
{
    static const pt_platform_ops ops = {
        .name = "mactcp_sync",
        .tcp_send = mactcp_send,
        .tcp_receive = mactcp_receive,
        .tcp_finish = mactcp_finish,
        .watch = pt_sim_world_watch,
        .forget = pt_sim_world_forget,
        .wait = pt_sim_world_wait,
        .wake = pt_sim_world_wake,
        .clock = pt_sim_world_clock,
        .ticks_per_second = PT_TICKS_PER_SECOND,
        .classic = 1,
    };
    return &ops;
}
