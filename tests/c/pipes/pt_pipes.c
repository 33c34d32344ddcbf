/* The smallest world: a link is a pair of pipes, one to read and one to write, waited for with
 * poll(2). Each slot is one blocking write. It shows what a platform has to bring. */
#define _POSIX_C_SOURCE 200809L
#include "pt_pipes.h"

#include <errno.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#define MAX_SOURCES 16

static pt_pipe_pair *pair_of(const pt_source *source)
{
    return (pt_pipe_pair *)source->handle;
}

static int pipes_send(pt_context *context, pt_link *link, const uint8_t *data, uint16_t len)
{
    (void)context;
    while (len != 0) {
        ssize_t count = write(pair_of(&link->source)->out, data, len);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0) {
            link->system_error = errno;
            return errno == EPIPE ? PT_ERR_CONNECTION_CLOSED : PT_ERR_NETWORK;
        }
        data += count;
        len = (uint16_t)(len - count);
        link->sent_bytes += (uint64_t)count;
    }
    link->write_calls++;
    return PT_OK;
}

static int pipes_receive(pt_context *context, pt_link *link, uint8_t *buffer, uint32_t size)
{
    (void)context;
    struct pollfd entry = {.fd = pair_of(&link->source)->in, .events = POLLIN};
    if (poll(&entry, 1, 0) <= 0)
        return PT_ERR_WOULD_BLOCK;
    ssize_t count = read(entry.fd, buffer, size);
    link->read_calls++;
    link->system_error = count < 0 ? errno : 0;
    return count > 0 ? (int)count : PT_ERR_CONNECTION_CLOSED;
}

static int pipes_finish(pt_context *context, pt_link *link)
{
    (void)context;
    (void)close(pair_of(&link->source)->out);
    pair_of(&link->source)->out = -1;
    return PT_OK;
}

static int pipes_watch(pt_context *context, pt_source *source)
{
    (void)context;
    source->registered = source->interest;
    return PT_OK;
}

static void pipes_forget(pt_context *context, pt_source *source)
{
    (void)context;
    source->registered = 0xFF;
}

static int pipes_wait(pt_context *context, int timeout_ms)
{
    struct pollfd entries[MAX_SOURCES];
    pt_source *waiting[MAX_SOURCES];
    nfds_t count = 0;
    for (pt_source *source = context->sources; source != NULL && count < MAX_SOURCES;
         source = source->next) {
        if (source->registered == 0xFF || !(source->interest & PT_WANT_READ))
            continue;
        waiting[count] = source;
        entries[count++] = (struct pollfd){.fd = pair_of(source)->in, .events = POLLIN};
    }
    if (poll(entries, count, timeout_ms) < 0)
        return errno == EINTR ? 0 : PT_ERR_PLATFORM;
    for (nfds_t index = 0; index < count; index++) {
        if (entries[index].revents == 0)
            continue;
        waiting[index]->ready = PT_READY_READ;
        pt_context_ready(context, waiting[index]);
    }
    return (int)context->ready_count;
}

static void pipes_wake(pt_context *context)
{
    context->woken = 1; /* one thread: nobody waits now */
}

static uint32_t pipes_clock(pt_context *context)
{
    (void)context;
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint32_t)((uint64_t)now.tv_sec * 1000U + (uint64_t)now.tv_nsec / 1000000U);
}

static size_t pipes_size(const pt_setup *setup)
{
    (void)setup;
    return 0;
}

static int pipes_init(void *platform_data, const pt_setup *setup, int32_t *system_error)
{
    (void)platform_data, (void)setup, (void)system_error;
    return PT_OK;
}

static void pipes_cleanup(void *platform_data)
{
    (void)platform_data;
}

const pt_platform_ops *pt_pipes_ops(void)
{
    static const pt_platform_ops ops = {
        .name = "pipes",
        .tcp_send = pipes_send,
        .tcp_receive = pipes_receive,
        .tcp_finish = pipes_finish,
        .watch = pipes_watch,
        .forget = pipes_forget,
        .wait = pipes_wait,
        .wake = pipes_wake,
        .clock = pipes_clock,
        .size = pipes_size,
        .init = pipes_init,
        .cleanup = pipes_cleanup,
        .ticks_per_second = 1000,
    };
    return &ops;
}
