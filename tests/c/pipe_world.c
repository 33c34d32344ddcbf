/* A platform that the core has never seen (pipes/pt_pipes.c): what is sent on it arrives whole and
 * in order, both sides end in order, and nothing is left. */
#include <signal.h>
#include <unistd.h>

#include "check.h"
#include "memory.h"
#include "pt_loop.h"
#include "pt_pipes.h"

#define MESSAGES 200
#define EVENTS   (4 * PT_IO_BUDGET + 4)

static const pt_pool_class classes[] = {{64, 64, 0}, {1040, 32, 0}, {8204, 8, 0}};
static pt_context context;
static pt_source *ready[PT_IO_BUDGET];
static pt_link links[2];
static pt_send_slot slots[2][2];
static uint8_t receive_buffer[PT_FRAME_OVERHEAD + PT_FRAME_MAX_PAYLOAD];
static unsigned received, finished, closed;

static int take(void *unused, uint32_t tag, const pt_frame *frame)
{
    (void)unused;
    CHECK_EQUAL(tag, 1);
    CHECK_EQUAL(frame->payload_len, received);
    for (uint32_t at = 0; at < frame->payload_len; at++)
        CHECK_EQUAL(frame->payload[at], (uint8_t)received);
    received++;
    return PT_OK;
}

static void turn(void)
{
    pt_event events[EVENTS];
    pt_sink sink = {.frame = take, .context = NULL, .room = UINT32_MAX};
    int count = pt_loop_turn(&context, 0, events, EVENTS, &sink);
    REQUIRE(count >= 0);
    for (int index = 0; index < count; index++) {
        finished += events[index].kind == PT_EVENT_FINISHED;
        closed += events[index].kind == PT_EVENT_CLOSED && events[index].code == PT_OK;
    }
}

static void messages_arrive_and_both_sides_end(void)
{
    memory_account account;
    pt_pool *pool = memory_open_pool(&account, classes, 3, 0);
    int there[2], back[2];
    REQUIRE(pipe(there) == 0 && pipe(back) == 0);
    pt_pipe_pair pairs[2] = {{back[0], there[1]}, {there[0], back[1]}};
    REQUIRE(pt_context_init(&context, pt_pipes_ops(), NULL, pool, receive_buffer,
                            sizeof receive_buffer, ready, PT_IO_BUDGET) == PT_OK);
    for (uint32_t end = 0; end < 2; end++)
        REQUIRE(pt_link_open(&context, &links[end], (intptr_t)&pairs[end], end, slots[end], 2, 1040,
                             1, 1024, pt_message_format(0)) == PT_OK);

    for (unsigned number = 0; number < MESSAGES; number++) {
        uint8_t payload[MESSAGES];
        memset(payload, (int)number, sizeof payload);
        CHECK(pt_link_send(&context, &links[0], PT_FRAME_DATA, 0, payload, number) >= 0);
        turn();
    }
    pt_link_shut(&context, &links[0]);
    while (finished == 0)
        turn();
    CHECK_EQUAL(received, MESSAGES);
    pt_link_shut(&context, &links[1]);
    while (closed != 2)
        turn();

    for (int end = 0; end < 2; end++) {
        CHECK_EQUAL(pt_link_close(&context, &links[end]), 0);
        (void)close(pairs[end].in);
    }
    CHECK_EQUAL(pt_context_cleanup(&context), PT_OK);
    CHECK_EQUAL(memory_lent(pool), 0);
    memory_close_pool(pool, &account);
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN);
    RUN(messages_arrive_and_both_sides_end);
    return check_end();
}
