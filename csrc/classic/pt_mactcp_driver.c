#include "pt_mactcp_driver.h"

#include <string.h>

#include "pt_assert.h"

#define REF_NUM   (-57) /* any negative number does */
#define SECOND_NS UINT64_C(1000000000)

typedef pt_mactcp_stream stream;

/* A stream as the driver has it. */
struct pt_mactcp_stream {
    stream *next;
    int32_t handle;
    pt_mactcp_block *queue; /* sends in progress */
    pt_mactcp_routine routine;
    void *user;
    pt_mactcp *driver;
};

static stream *find_stream(const pt_mactcp *driver, int32_t handle)
{
    stream *found = driver->streams;
    while (found != NULL && found->handle != handle)
        found = found->next;
    return found;
}

static int16_t violated(pt_mactcp *driver, const char *call, int code, const char *rule)
{
    PT_ASSERT(code < 0 && code >= INT16_MIN);

    pt_classic_violated(&driver->world, call, code, rule);
    return (int16_t)code;
}

/* FNV-1a 32: whether bytes that are not their owner's now were changed all the same. */
static uint32_t sum_of(const pt_mactcp_wds *wds)
{
    uint32_t sum = 0x811C9DC5U;
    for (uint16_t index = 0; index < wds->length; index++)
        sum = (sum ^ wds->ptr[index]) * 0x01000193U;
    return sum;
}

static int16_t result_of(int code)
{
    PT_ASSERT(code <= 0 && code != PT_ERR_WOULD_BLOCK);

    return code == PT_OK ? PT_MACTCP_NO_ERROR : PT_MACTCP_TERMINATED;
}

/* A send is over: the rules that can be checked only now, then the result. */
static void end_send(pt_mactcp *driver, pt_mactcp_block *block)
{
    PT_ASSERT(block->piece.result <= 0);

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
    PT_ASSERT(news > 0 && (size_t)news < sizeof events);
    PT_ASSERT(told->handle == handle);
    int event = events[news];
    if (sweep(told) != 0)
        event |= PT_MACTCP_SENT;
    if (told->routine != NULL && event != 0)
        told->routine(told->user, event);
}

int pt_mactcp_adopt(pt_mactcp *driver, int32_t handle, pt_mactcp_routine routine, void *user)
{
    PT_ASSERT(handle > 0 && routine != NULL);

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
    if (pt_sim_attach(driver->world.sim, handle, interrupted, adopted) != PT_OK) {
        driver->world.memory.release(driver->world.memory.context, adopted, sizeof *adopted);
        return PT_ERR_INVALID_PARAM;
    }
    adopted->next = driver->streams;
    driver->streams = adopted;
    return PT_OK;
}

static void release_stream(pt_mactcp *driver, stream *released)
{
    PT_ASSERT(released->queue == NULL && released->driver == driver);
    (void)pt_sim_attach(driver->world.sim, released->handle, NULL, NULL);
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
    pt_classic *world = &driver->world;
    uint64_t seconds = (block->validity_flags & PT_MACTCP_VALID_TIMEOUT) ? block->ulp_timeout_value
                                                                         : PT_MACTCP_ULP_TIMEOUT;
    int action = (block->validity_flags & PT_MACTCP_VALID_ACTION) ? block->ulp_timeout_action
                                                                  : PT_MACTCP_ULP_ABORT;
    (void)pt_sim_set_give_up(world->sim, on->handle, seconds * SECOND_NS, action);
    memset(&block->piece, 0, sizeof block->piece);
    block->piece.data = block->wds[0].ptr;
    block->piece.len = block->wds[0].length;
    block->piece.push = block->push_flag != 0;
    block->seen = block->wds[0];
    block->sum = sum_of(&block->seen);
    int code = pt_sim_send_piece(world->sim, on->handle, &block->piece);
    if (code != PT_OK)
        return code == PT_ERR_CONNECTION_CLOSED ? PT_MACTCP_TERMINATED : PT_MACTCP_NO_CONNECTION;
    PT_ASSERT(block->piece.result == 1);
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
    int count = pt_sim_receive(driver->world.sim, on->handle, block->receive_buffer,
                               block->receive_length, &broken);
    PT_ASSERT(count < 0 || (uint32_t)count <= block->receive_length);
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
    if (pt_sim_is_notifying(driver->world.sim))
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

    pt_classic *world = &driver->world;
    switch (block->cs_code) {
    case PT_MACTCP_SEND:
        return do_send(driver, on, block);
    case PT_MACTCP_RECEIVE:
        return do_receive(driver, on, block);
    case PT_MACTCP_CLOSE:
        return result_of(pt_sim_finish(world->sim, on->handle));
    case PT_MACTCP_ABORT:
        (void)pt_sim_reset(world->sim, on->handle);
        (void)sweep(on);
        PT_ASSERT(on->queue == NULL);
        return PT_MACTCP_NO_ERROR;
    case PT_MACTCP_STATUS:
        block->unread_len = (pt_sim_ready(world->sim, on->handle) & PT_READY_READ) != 0;
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
    PT_ASSERT(result <= 0 || (result == PT_MACTCP_IN_PROGRESS && block->cs_code == PT_MACTCP_SEND));
    block->io_result = result;
    return result;
}

size_t pt_mactcp_stream_size(void)
{
    return sizeof(stream);
}

int16_t pt_mactcp_ref_num(const pt_mactcp *driver)
{
    (void)driver;
    return REF_NUM;
}

void pt_mactcp_release_all(pt_mactcp *driver)
{
    while (driver->streams != NULL)
        release_stream(driver, driver->streams);
}
