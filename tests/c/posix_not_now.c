/* A system that has no memory for a moment, as it says of sending and receiving: every other call
 * of either is refused with ENOBUFS or ENOMEM. Nothing may be lost, and no link may end. */
#define _GNU_SOURCE 1
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "check.h"

static unsigned calls;

static int refuses(void)
{
    errno = ++calls % 4 == 1 ? ENOBUFS : ENOMEM;
    return calls % 2;
}

static ssize_t poor_sendmsg(int descriptor, const struct msghdr *message, int flags)
{
    return refuses() ? -1 : sendmsg(descriptor, message, flags);
}

static ssize_t poor_recv(int descriptor, void *buffer, size_t size, int flags)
{
    return refuses() ? -1 : recv(descriptor, buffer, size, flags);
}

#define sendmsg poor_sendmsg
#define recv    poor_recv
#include "../../csrc/platform/pt_posix.c"
#undef sendmsg
#undef recv

#include "pt_loop.h"

#define COUNT 200u

static unsigned arrived;

static int take(void *unused, uint32_t tag, const pt_frame *frame)
{
    (void)unused;
    CHECK_EQUAL(tag, 2);
    CHECK_EQUAL(frame->sequence, arrived & 0xFF);
    arrived++;
    return PT_OK;
}

static void a_system_without_memory_ends_no_link(void)
{
    static const pt_pool_class classes[] = {{PT_FRAME_OVERHEAD + PT_FRAME_MAX_PAYLOAD, 16, 0}};
    pt_posix_memory account = {0};
    pt_memory source;
    pt_posix_memory_source(&account, &source);
    void *memory = malloc(pt_pool_size(classes, 1));
    pt_pool *pool = pt_pool_init(memory, classes, 1, 0, &source);
    pt_setup setup = {.max_sources = 0};
    void *platform = malloc(pt_posix_size(&setup));
    uint8_t *buffer = malloc(PT_RECEIVE_BUFFER_SIZE);
    int32_t error = 0;
    static pt_context context;
    static pt_link links[2];
    static pt_send_slot slots[2][2];
    static pt_event events[4 * PT_IO_BUDGET + 4];
    static pt_source *ready[PT_IO_BUDGET];
    int ends[2];
    REQUIRE(memory != NULL && platform != NULL && buffer != NULL && pool != NULL);
    REQUIRE(pt_posix_init(platform, &setup, &error) == PT_OK);
    REQUIRE(pt_context_init(&context, pt_posix_ops(), platform, pool, buffer,
                            PT_RECEIVE_BUFFER_SIZE, ready, PT_IO_BUDGET) == PT_OK);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    for (uint32_t end = 0; end < 2; end++)
        REQUIRE(pt_link_open(&context, &links[end], ends[end], end + 1, slots[end], 2,
                             PT_FRAME_OVERHEAD + PT_FRAME_MAX_PAYLOAD, 1, PT_FRAME_MAX_PAYLOAD,
                             pt_message_format(0)) == PT_OK);

    const pt_sink sink = {.frame = take, .context = NULL, .room = UINT32_MAX};
    static const uint8_t payload[1000];
    unsigned sent = 0;
    for (unsigned round = 0; arrived < COUNT && round < 10 * COUNT; round++) {
        if (sent < COUNT &&
            pt_link_send(&context, &links[0], PT_FRAME_DATA, 0, payload, sizeof payload) >= 0)
            sent++;
        int count = pt_loop_turn(&context, 0, events, 4 * PT_IO_BUDGET + 4, &sink);
        for (int index = 0; index < count; index++)
            CHECK(events[index].kind != PT_EVENT_CLOSED);
    }
    CHECK_EQUAL(sent, COUNT);
    CHECK_EQUAL(arrived, COUNT);
    CHECK(calls > COUNT / 20);
    for (int end = 0; end < 2; end++) {
        CHECK_EQUAL(links[end].state, PT_LINK_OPEN);
        CHECK_EQUAL(pt_link_close(&context, &links[end]), 0);
        (void)close(ends[end]);
    }
    CHECK_EQUAL(pt_context_cleanup(&context), PT_OK);
    CHECK_EQUAL(pt_pool_cleanup(pool), 0);
    pt_posix_cleanup(platform);
    free(buffer);
    free(platform);
    free(memory);
}

int main(void)
{
    RUN(a_system_without_memory_ends_no_link);
    return check_end();
}
