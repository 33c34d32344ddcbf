#if defined(__linux__)
#define _GNU_SOURCE 1
#define HAS_EPOLL   1
#else
#define HAS_EPOLL 0
#endif

#include "pt_posix.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#if HAS_EPOLL
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#endif

#include "pt_assert.h"

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* there SO_NOSIGPIPE does it, set by whoever opened the socket */
#endif

#define UNREGISTERED     0xFF
#define EDGE             0x10 /* in pt_source.registered, beside the interest */
#define HANGUP_SEEN      0x20 /* poll only: an edge source has told of its hang-up */
#define BLOCKING_SEND_MS (PT_DRAIN_TIMEOUT_TICKS * 1000 / PT_TICKS_PER_SECOND)

typedef struct posix_data {
    int epoll_fd; /* -1: poll(2) is used */
    int wake_read;
    int wake_write; /* the same as wake_read for an eventfd */
    uint32_t max_sources;
    uint32_t source_count;
    uint32_t next_source; /* poll only: where the next round begins, so that all get their turn */
    atomic_uchar woken;   /* 1: a wake is on its way; more need not be written */
    pt_source **sources;  /* poll only: of the entries in polled */
    struct pollfd *polled;
} posix_data;

static posix_data *data_of(const pt_context *context)
{
    return context->platform_data;
}

/* --------------------------------------------------------------------------------------- set-up */

size_t pt_posix_size(uint32_t max_sources)
{
    return sizeof(posix_data) + max_sources * sizeof(pt_source *) +
           ((size_t)max_sources + 1) * sizeof(struct pollfd);
}

#if !HAS_EPOLL
static int make_pipe(posix_data *data)
{
    int ends[2];
    if (pipe(ends) != 0)
        return -1;
    for (int index = 0; index < 2; index++) {
        (void)fcntl(ends[index], F_SETFL, O_NONBLOCK);
        (void)fcntl(ends[index], F_SETFD, FD_CLOEXEC);
    }
    data->wake_read = ends[0];
    data->wake_write = ends[1];
    return 0;
}
#endif

static int make_wake(posix_data *data)
{
#if HAS_EPOLL
    data->wake_read = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    data->wake_write = data->wake_read;
    return data->wake_read < 0 ? -1 : 0;
#else
    return make_pipe(data);
#endif
}

static int make_epoll(posix_data *data)
{
#if HAS_EPOLL
    data->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (data->epoll_fd < 0)
        return -1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    return epoll_ctl(data->epoll_fd, EPOLL_CTL_ADD, data->wake_read, &event);
#else
    (void)data;
    return 0;
#endif
}

int pt_posix_init(void *platform_data, uint32_t max_sources, int use_epoll, int32_t *system_error)
{
    PT_ASSERT(platform_data != NULL && system_error != NULL);
    PT_ASSERT(use_epoll || max_sources != 0);

    posix_data *data = platform_data;
    memset(data, 0, sizeof *data);
    data->epoll_fd = -1;
    data->wake_read = -1;
    data->wake_write = -1;
    data->max_sources = max_sources;
    data->sources = (pt_source **)(void *)(data + 1);
    data->polled = (struct pollfd *)(void *)(data->sources + max_sources);
    atomic_init(&data->woken, 0);
    if (make_wake(data) == 0 && (!use_epoll || make_epoll(data) == 0))
        return PT_OK;
    *system_error = errno;
    pt_posix_cleanup(data);
    return PT_ERR_PLATFORM;
}

static void close_once(int *descriptor)
{
    if (*descriptor >= 0)
        (void)close(*descriptor);
    *descriptor = -1;
}

void pt_posix_cleanup(void *platform_data)
{
    posix_data *data = platform_data;
    if (data->wake_write != data->wake_read)
        close_once(&data->wake_write);
    data->wake_write = -1;
    close_once(&data->wake_read);
    close_once(&data->epoll_fd);
}

int pt_posix_fd(const void *platform_data)
{
    return ((const posix_data *)platform_data)->epoll_fd;
}

int pt_posix_wake_fd(const void *platform_data)
{
    return ((const posix_data *)platform_data)->wake_read;
}

/* -------------------------------------------------------------------------------------- sending */

/* What an errno of a connection means. */
static int code_of(int error)
{
    switch (error) {
    case ECONNRESET:
    case EPIPE:
    case ECONNABORTED:
    case ENOTCONN:
    case ESHUTDOWN:
    case ETIMEDOUT:
        return PT_ERR_CONNECTION_CLOSED;
    default:
        return PT_ERR_NETWORK;
    }
}

/* Not now: no room, or no memory in the system, which passes and says nothing about the link. */
static int would_block(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK || error == ENOBUFS || error == ENOMEM;
}

static int fail(pt_link *link, int error)
{
    link->system_error = error;
    return code_of(error);
}

static int32_t now_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int32_t)(uint32_t)((uint64_t)now.tv_sec * 1000U + (uint64_t)now.tv_nsec / 1000000U);
}

static int posix_send(pt_context *context, pt_link *link, const uint8_t *data, uint16_t len)
{
    (void)context;
    PT_ASSERT(data != NULL && len != 0);
    PT_ASSERT(link->source.kind == PT_SOURCE_LINK);
    int descriptor = (int)link->source.handle;
    int32_t start = now_ms();
    uint16_t sent = 0;
    while (sent < len) {
        ssize_t count =
            send(descriptor, data + sent, (size_t)(len - sent), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count >= 0) {
            link->write_calls++;
            link->sent_bytes += (uint64_t)count;
            sent = (uint16_t)(sent + count);
            continue;
        }
        if (errno == EINTR)
            continue;
        if (!would_block(errno))
            return fail(link, errno);
        int32_t left = BLOCKING_SEND_MS - (int32_t)((uint32_t)now_ms() - (uint32_t)start);
        if (left <= 0)
            return PT_ERR_TIMEOUT;
        struct pollfd entry = {.fd = descriptor, .events = POLLOUT};
        if (poll(&entry, 1, left) < 0 && errno != EINTR)
            return fail(link, errno);
    }
    return PT_OK;
}

/* Nothing to do yet: poll_send_completions gathers all slots in flight into one write. */
static int posix_send_async(pt_context *context, pt_link *link, const uint8_t *data, uint16_t len)
{
    (void)context;
    (void)link;
    (void)data;
    (void)len;
    return PT_OK;
}

/* Slot index of the place-th pending slot. */
static uint8_t pending_slot(const pt_send_pipeline *pipeline, uint8_t place)
{
    PT_ASSERT(place < pipeline->pending_count);
    PT_ASSERT(pipeline->head < pipeline->depth);

    unsigned index = (unsigned)pipeline->head + place;
    return (uint8_t)(index < pipeline->depth ? index : index - pipeline->depth);
}

/* Gather what is left of the slots in flight, in order. Returns the number of pieces, and their
 * length. */
static int gather(const pt_send_pipeline *pipeline, struct iovec *pieces, size_t *total)
{
    int count = 0;
    *total = 0;
    for (uint8_t place = 0; place < pipeline->pending_count; place++) {
        const pt_send_slot *slot = &pipeline->slots[pending_slot(pipeline, place)];
        if (slot->state != PT_SLOT_IN_FLIGHT)
            continue;
        PT_ASSERT(count < PT_PIPELINE_MAX_DEPTH);
        PT_ASSERT(slot->sent_len < slot->message_len);
        pieces[count].iov_base = slot->buffer + slot->sent_len;
        pieces[count].iov_len = (size_t)(slot->message_len - slot->sent_len);
        *total += pieces[count].iov_len;
        count++;
    }
    return count;
}

/* The system took len bytes: note it in the slots. Returns the number of slots that are done. */
static int account(pt_send_pipeline *pipeline, size_t len)
{
    int completed = 0;
    for (uint8_t place = 0; place < pipeline->pending_count; place++) {
        uint8_t index = pending_slot(pipeline, place);
        pt_send_slot *slot = &pipeline->slots[index];
        if (slot->state != PT_SLOT_IN_FLIGHT)
            continue;
        size_t left = (size_t)(slot->message_len - slot->sent_len);
        size_t taken = left < len ? left : len;
        slot->sent_len = (uint16_t)(slot->sent_len + taken);
        len -= taken;
        if (taken < left)
            break;
        pt_pipeline_complete(pipeline, index, PT_OK);
        completed++;
    }
    PT_ASSERT(len == 0);
    return completed;
}

static int posix_poll_completions(pt_context *context, pt_link *link)
{
    (void)context;
    struct iovec pieces[PT_PIPELINE_MAX_DEPTH];
    size_t total;
    int count = gather(&link->pipeline, pieces, &total);
    if (count == 0)
        return 0;
    struct msghdr message;
    memset(&message, 0, sizeof message);
    message.msg_iov = pieces;
    message.msg_iovlen =
        (__typeof__(message.msg_iovlen))count; /* size_t in some systems, int in others */
    ssize_t sent;
    do {
        sent = sendmsg((int)link->source.handle, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (sent < 0 && errno == EINTR);
    link->write_calls++;
    if (sent < 0) {
        if (!would_block(errno))
            return fail(link, errno);
        link->blocked = 1;
        return 0;
    }
    PT_ASSERT((size_t)sent <= total);
    link->sent_bytes += (uint64_t)sent;
    link->blocked = (size_t)sent < total; /* less than all: the next call would be refused */
    return account(&link->pipeline, (size_t)sent);
}

/* Bytes that the system did not take are all that can keep a slot, so room to write is what is
 * waited for. */
static int posix_wait_completions(pt_context *context, pt_link *link, int timeout_ms)
{
    (void)context;
    struct pollfd entry = {.fd = (int)link->source.handle, .events = POLLOUT};
    return poll(&entry, 1, timeout_ms) >= 0 || errno == EINTR ? PT_OK : PT_ERR_PLATFORM;
}

static int posix_slots_available(pt_context *context, pt_link *link)
{
    (void)context;
    return pt_pipeline_available(&link->pipeline);
}

/* ------------------------------------------------------------------------------------ receiving */

static int posix_receive(pt_context *context, pt_link *link, uint8_t *buffer, uint32_t size)
{
    (void)context;
    PT_ASSERT(buffer != NULL && size != 0);
    ssize_t count;
    do {
        count = recv((int)link->source.handle, buffer, size, MSG_DONTWAIT);
    } while (count < 0 && errno == EINTR);
    link->read_calls++;
    if (count > 0)
        return (int)count;
    if (count == 0) {
        link->system_error = 0;
        return PT_ERR_CONNECTION_CLOSED;
    }
    return would_block(errno) ? PT_ERR_WOULD_BLOCK : fail(link, errno);
}

static int posix_finish(pt_context *context, pt_link *link)
{
    (void)context;
    if (shutdown((int)link->source.handle, SHUT_WR) == 0 || errno == ENOTCONN)
        return PT_OK; /* not connected any more: reading tells why */
    link->system_error = errno;
    return PT_ERR_NETWORK;
}

#if HAS_EPOLL
/* SIOCOUTQ by its older name, which needs no header of the kernel. What the kernel counts from the
 * oldest byte that is not acknowledged to the last one that it took, and the end of our half behind
 * it. Still so after a reset, unlike tcpi_unacked. */
static uint32_t posix_unacknowledged(pt_context *context, const pt_link *link)
{
    (void)context;
    int waiting = 0;
    if (ioctl((int)link->source.handle, TIOCOUTQ, &waiting) != 0 || waiting <= 0)
        return 0;
    return (uint32_t)(waiting - (link->state == PT_LINK_FINISHED));
}
#else
#define posix_unacknowledged NULL
#endif

/* -------------------------------------------------------------------------------------- waiting */

/* Wakes are counted down before the flag is lowered: one that comes between is part of this wait's
 * end. */
static void drain_wake(pt_context *context, posix_data *data)
{
    context->woken = 1;
    uint8_t bytes[64];
    ssize_t count;
    do {
        count = read(data->wake_read, bytes, sizeof bytes);
    } while (count == (ssize_t)sizeof bytes || (count < 0 && errno == EINTR));
    atomic_store(&data->woken, 0);
}

static void posix_wake(pt_context *context)
{
    posix_data *data = data_of(context);
    if (atomic_exchange(&data->woken, 1))
        return;
    const uint64_t one = 1;
    ssize_t count;
    do {
        count = write(data->wake_write, &one, sizeof one);
    } while (count < 0 && errno == EINTR);
}

/* Hand a source with what was seen of it to the loop. A broken connection counts as writable too:
 * writing tells what is wrong. */
static void found(pt_context *context, pt_source *source, int readable, int writable, int broken)
{
    PT_ASSERT(source->place != NULL);
    PT_ASSERT(readable || writable || broken);

    if (broken)
        source->ready |= PT_READY_READ | PT_READY_HANGUP |
                         ((source->interest & PT_WANT_WRITE) ? PT_READY_WRITE : 0);
    source->ready =
        (uint8_t)(source->ready | (readable ? PT_READY_READ : 0) | (writable ? PT_READY_WRITE : 0));
    pt_context_ready(context, source);
}

#if HAS_EPOLL
static int epoll_register(posix_data *data, const pt_source *source)
{
    struct epoll_event event;
    memset(&event, 0, sizeof event);
    event.data.ptr = (void *)(uintptr_t)source;
    event.events = ((source->interest & PT_WANT_READ) ? (uint32_t)EPOLLIN : 0) |
                   ((source->interest & PT_WANT_WRITE) ? (uint32_t)EPOLLOUT : 0) |
                   (source->edge ? (uint32_t)EPOLLET : 0);
    int operation = source->registered == UNREGISTERED ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    if (epoll_ctl(data->epoll_fd, operation, (int)source->handle, &event) == 0)
        return PT_OK;
    if (errno == EEXIST)
        return PT_ERR_INVALID_PARAM; /* a descriptor is watched once */
    return errno == ENOMEM || errno == ENOSPC ? PT_ERR_NO_MEMORY : PT_ERR_PLATFORM;
}

static void epoll_unregister(posix_data *data, const pt_source *source)
{
    struct epoll_event unused;
    memset(&unused, 0, sizeof unused);
    (void)epoll_ctl(data->epoll_fd, EPOLL_CTL_DEL, (int)source->handle, &unused);
}

/* No more events are fetched than a turn serves: the kernel keeps the rest in line, which is all
 * the fairness that is needed. */
static int epoll_round(pt_context *context, posix_data *data, int timeout_ms)
{
    struct epoll_event events[PT_IO_BUDGET];
    int count = epoll_wait(data->epoll_fd, events, (int)context->io_budget, timeout_ms);
    if (count < 0)
        return errno == EINTR ? 0 : PT_ERR_PLATFORM;
    for (int index = 0; index < count; index++) {
        uint32_t seen = events[index].events;
        pt_source *source = events[index].data.ptr;
        if (source == NULL)
            drain_wake(context, data);
        else
            found(context, source, (seen & EPOLLIN) != 0, (seen & EPOLLOUT) != 0,
                  (seen & (EPOLLHUP | EPOLLERR)) != 0);
    }
    return (int)context->ready_count;
}
#else
static int epoll_register(posix_data *data, const pt_source *source)
{
    (void)data;
    (void)source;
    return PT_ERR_PLATFORM;
}

static void epoll_unregister(posix_data *data, const pt_source *source)
{
    (void)data;
    (void)source;
}

static int epoll_round(pt_context *context, posix_data *data, int timeout_ms)
{
    (void)context;
    (void)data;
    (void)timeout_ms;
    return PT_ERR_PLATFORM;
}
#endif

/* Every registered source as poll(2) wants it, behind the wake. An edge source that told of its
 * hang-up is left out: it would spin. */
static uint32_t fill_polled(pt_context *context, posix_data *data)
{
    PT_ASSERT(data->epoll_fd < 0);
    PT_ASSERT(data->source_count <= data->max_sources);

    uint32_t count = 0;
    data->polled[0].fd = data->wake_read;
    data->polled[0].events = POLLIN;
    data->polled[0].revents = 0;
    for (pt_source *source = context->sources; source != NULL && count < data->max_sources;
         source = source->next) {
        if (source->registered == UNREGISTERED || (source->registered & HANGUP_SEEN))
            continue;
        data->sources[count++] = source;
        data->polled[count].fd = (int)source->handle;
        data->polled[count].events = (short)(((source->interest & PT_WANT_READ) ? POLLIN : 0) |
                                             ((source->interest & PT_WANT_WRITE) ? POLLOUT : 0));
        data->polled[count].revents = 0;
    }
    return count;
}

static int poll_round(pt_context *context, posix_data *data, int timeout_ms)
{
    uint32_t count = fill_polled(context, data);
    if (poll(data->polled, (nfds_t)count + 1, timeout_ms) < 0)
        return errno == EINTR ? 0 : PT_ERR_PLATFORM;
    if (data->polled[0].revents != 0)
        drain_wake(context, data);
    uint32_t place = data->next_source < count ? data->next_source : 0;
    for (uint32_t step = 0; step < count && context->ready_count < context->io_budget; step++) {
        int seen = data->polled[place + 1].revents;
        pt_source *source = data->sources[place];
        place = place + 1 < count ? place + 1 : 0;
        if (seen == 0)
            continue;
        int broken = (seen & (POLLHUP | POLLERR | POLLNVAL)) != 0;
        if (broken && source->edge)
            source->registered |= HANGUP_SEEN;
        found(context, source, (seen & POLLIN) != 0, (seen & POLLOUT) != 0, broken);
        data->next_source = place;
    }
    return (int)context->ready_count;
}

/* A descriptor that could be registered is in no epoll set. A source that seems to be registered
 * with the same number was left there by one who has closed it: what it asked for later would
 * change the entry of the next one. */
static void overtake(const pt_context *context, const posix_data *data, const pt_source *source)
{
    if (data->epoll_fd < 0)
        return;
    for (pt_source *other = context->sources; other != NULL; other = other->next) {
        if (other != source && other->handle == source->handle)
            other->registered = UNREGISTERED;
    }
}

static int posix_watch(pt_context *context, pt_source *source)
{
    PT_ASSERT(source->place != NULL);
    PT_ASSERT((source->interest & ~(PT_WANT_READ | PT_WANT_WRITE)) == 0);

    posix_data *data = data_of(context);
    uint8_t wanted = (uint8_t)(source->interest | (source->edge ? EDGE : 0));
    if (source->registered == wanted)
        return PT_OK;
    if (data->epoll_fd >= 0) {
        int result = epoll_register(data, source);
        if (result != PT_OK)
            return result;
    } else if (source->registered == UNREGISTERED) {
        if (data->source_count == data->max_sources)
            return PT_ERR_NO_MEMORY;
        data->source_count++;
    }
    if (source->registered == UNREGISTERED)
        overtake(context, data, source);
    source->registered = wanted;
    return PT_OK;
}

static void posix_forget(pt_context *context, pt_source *source)
{
    posix_data *data = data_of(context);
    if (source->registered != UNREGISTERED) {
        if (data->epoll_fd >= 0)
            epoll_unregister(data, source);
        else if (data->source_count != 0) /* epoll counts none, and a forked child has no set */
            data->source_count--;
        PT_ASSERT(data->source_count <= data->max_sources || data->epoll_fd >= 0);
        source->registered = UNREGISTERED;
    }
    if (source->kind != PT_SOURCE_LINK)
        return;
    /* The kernel has copied what it took, so the slots are ours again at once. */
    pt_send_pipeline *pipeline = &((pt_link *)source)->pipeline;
    for (uint8_t index = 0; index < pipeline->depth; index++) {
        if (pipeline->slots[index].state == PT_SLOT_IN_FLIGHT)
            pt_pipeline_complete(pipeline, index, PT_ERR_CONNECTION_CLOSED);
    }
}

static int posix_wait(pt_context *context, int timeout_ms)
{
    posix_data *data = data_of(context);
    return data->epoll_fd >= 0 ? epoll_round(context, data, timeout_ms)
                               : poll_round(context, data, timeout_ms);
}

static uint32_t posix_clock(pt_context *context)
{
    (void)context;
    return (uint32_t)now_ms();
}

/* --------------------------------------------------------------------------------------- tables */

const pt_platform_ops *pt_posix_ops(void)
{
    static const pt_platform_ops ops = {
        .name = "posix",
        .tcp_send = posix_send,
        .tcp_send_async = posix_send_async,
        .poll_send_completions = posix_poll_completions,
        .wait_send_completions = posix_wait_completions,
        .send_slots_available = posix_slots_available,
        .tcp_receive = posix_receive,
        .tcp_finish = posix_finish,
        .unacknowledged = posix_unacknowledged,
        .watch = posix_watch,
        .forget = posix_forget,
        .wait = posix_wait,
        .wake = posix_wake,
        .clock = posix_clock,
        .ticks_per_second = 1000,
    };
    return &ops;
}

const pt_platform_ops *pt_posix_plain_ops(void)
{
    static const pt_platform_ops ops = {
        .name = "posix_plain",
        .tcp_send = posix_send,
        .tcp_receive = posix_receive,
        .tcp_finish = posix_finish,
        .unacknowledged = posix_unacknowledged,
        .watch = posix_watch,
        .forget = posix_forget,
        .wait = posix_wait,
        .wake = posix_wake,
        .clock = posix_clock,
        .ticks_per_second = 1000,
    };
    return &ops;
}

/* --------------------------------------------------------------------------------------- memory */

/* The account is read by other threads through plain fields, so it is counted with the compiler's
 * atomics. */
static void *counted_allocate(void *context, size_t size)
{
    pt_posix_memory *account = context;
    uint64_t attempt = __atomic_add_fetch(&account->attempts, 1, __ATOMIC_RELAXED);
    uint64_t fail_at = __atomic_load_n(&account->fail_at, __ATOMIC_RELAXED);
    if (fail_at != 0 && attempt >= fail_at)
        return NULL;
    uint64_t bytes = __atomic_add_fetch(&account->bytes, size, __ATOMIC_RELAXED);
    uint64_t limit = __atomic_load_n(&account->limit, __ATOMIC_RELAXED);
    void *memory = limit != 0 && bytes > limit ? NULL : malloc(size);
    if (memory == NULL) {
        __atomic_sub_fetch(&account->bytes, size, __ATOMIC_RELAXED);
        return NULL;
    }
    __atomic_add_fetch(&account->allocations, 1, __ATOMIC_RELAXED);
    uint64_t peak = __atomic_load_n(&account->peak_bytes, __ATOMIC_RELAXED);
    while (bytes > peak && !__atomic_compare_exchange_n(&account->peak_bytes, &peak, bytes, 1,
                                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return memory;
}

static void counted_release(void *context, void *memory, size_t size)
{
    pt_posix_memory *account = context;
    PT_ASSERT(memory != NULL && size != 0);
    __atomic_sub_fetch(&account->bytes, size, __ATOMIC_RELAXED);
    free(memory);
}

void pt_posix_memory_source(pt_posix_memory *account, pt_memory *source)
{
    PT_ASSERT(account != NULL && source != NULL);

    source->allocate = counted_allocate;
    source->release = counted_release;
    source->context = account;
}
