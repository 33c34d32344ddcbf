#if defined(__linux__)
#define _GNU_SOURCE 1
#endif

#include "pt_posix.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#if defined(__linux__)
#include <sys/ioctl.h>
#endif

#include "pt_assert.h"
#include "pt_posix_ready.h"

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* there SO_NOSIGPIPE does it, set by whoever opened the socket */
#endif

#define BLOCKING_SEND_MS (PT_DRAIN_TIMEOUT_TICKS * 1000 / PT_TICKS_PER_SECOND)

/* -------------------------------------------------------------------------------------- sending */

/* CONNECTION_CLOSED leaves a link that is read to its end; NETWORK ends it at once. */
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
    PT_ASSERT(error > 0);

    link->system_error = error;
    return code_of(error);
}

/* Others have the context while a worker is in a system call with bytes of a link. What these bytes
 * are and where they go stays as it is: see pt_worker.h. */
static void let_in(pt_context *context, const pt_link *link)
{
    if (link->busy)
        pt_posix_unlock(context);
}

static void take_back(pt_context *context, const pt_link *link)
{
    if (link->busy)
        pt_posix_lock(context);
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
            PT_ASSERT(count <= len - sent);
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

static uint8_t pending_slot(const pt_send_pipeline *pipeline, uint8_t place)
{
    PT_ASSERT(place < pipeline->pending_count);
    PT_ASSERT(pipeline->head < pipeline->room);

    unsigned index = (unsigned)pipeline->head + place;
    return (uint8_t)(index < pipeline->room ? index : index - pipeline->room);
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
        PT_ASSERT(count < 2 * PT_PIPELINE_MAX_DEPTH - 1);
        PT_ASSERT(slot->sent_len < slot->message_len || slot->hold != NULL);
        if (slot->sent_len < slot->message_len) {
            pieces[count].iov_base = slot->buffer + slot->sent_len;
            pieces[count].iov_len = (size_t)(slot->message_len - slot->sent_len);
            *total += pieces[count++].iov_len;
        }
        if (slot->hold != NULL) {
            PT_ASSERT(slot->hold->sent < slot->hold->len);
            pieces[count].iov_base = (uint8_t *)(uintptr_t)slot->hold->payload + slot->hold->sent;
            pieces[count].iov_len = slot->hold->len - slot->hold->sent;
            *total += pieces[count++].iov_len;
        }
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
        if (slot->hold != NULL) {
            left = slot->hold->len - slot->hold->sent;
            taken = left < len ? left : len;
            slot->hold->sent += (uint32_t)taken;
            len -= taken;
            if (taken < left)
                break;
        }
        pt_pipeline_complete(pipeline, index, PT_OK);
        completed++;
    }
    PT_ASSERT(len == 0);
    return completed;
}

static int posix_poll_completions(pt_context *context, pt_link *link)
{
    struct iovec pieces[2 * PT_PIPELINE_MAX_DEPTH];
    size_t total;
    int count = gather(&link->pipeline, pieces, &total);
    PT_ASSERT((count == 0) == (total == 0));
    if (count == 0)
        return 0;
    struct msghdr message;
    memset(&message, 0, sizeof message);
    message.msg_iov = pieces;
    message.msg_iovlen =
        (__typeof__(message.msg_iovlen))count; /* size_t in some systems, int in others */
    int descriptor = (int)link->source.handle;
    ssize_t sent;
    let_in(context, link);
    do {
        sent = sendmsg(descriptor, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (sent < 0 && errno == EINTR);
    int error = errno;
    take_back(context, link);
    link->write_calls++;
    if (sent < 0) {
        if (!would_block(error))
            return fail(link, error);
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
    PT_ASSERT(timeout_ms >= 0);
    PT_ASSERT(link->pipeline.pending_count != 0);
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
    PT_ASSERT(buffer != NULL && size != 0);
    int descriptor = (int)link->source.handle;
    ssize_t count;
    let_in(context, link);
    do {
        count = recv(descriptor, buffer, size, MSG_DONTWAIT);
    } while (count < 0 && errno == EINTR);
    int error = errno;
    take_back(context, link);
    link->read_calls++;
    PT_ASSERT(count <= (ssize_t)size);
    if (count > 0)
        return (int)count;
    if (count == 0) {
        link->system_error = 0;
        return PT_ERR_CONNECTION_CLOSED;
    }
    return would_block(error) ? PT_ERR_WOULD_BLOCK : fail(link, error);
}

static int posix_finish(pt_context *context, pt_link *link)
{
    (void)context;
    PT_ASSERT(link->state == PT_LINK_SHUT && link->pipeline.pending_count == 0);
    if (shutdown((int)link->source.handle, SHUT_WR) == 0 || errno == ENOTCONN)
        return PT_OK; /* not connected any more: reading tells why */
    link->system_error = errno;
    return PT_ERR_NETWORK;
}

#if defined(__linux__)
/* Between two programs of one machine what the kernel took lies with the other one at once; there
 * SIOCOUTQ says how much memory is kept for what has not been read. */
static int is_local(int descriptor)
{
    int domain = 0;
    socklen_t size = sizeof domain;
    int told = getsockopt(descriptor, SOL_SOCKET, SO_DOMAIN, &domain, &size);
    PT_ASSERT(told != 0 || size == sizeof domain);
    return told == 0 && domain == AF_UNIX;
}

/* SIOCOUTQ by its older name, which needs no header of the kernel. What the kernel counts from the
 * oldest byte that is not acknowledged to the last one that it took, and the end of our half behind
 * it. Still so after a reset, unlike tcpi_unacked. */
static uint32_t posix_unacknowledged(pt_context *context, const pt_link *link)
{
    (void)context;
    int waiting = 0;
    int descriptor = (int)link->source.handle;
    if (ioctl(descriptor, TIOCOUTQ, &waiting) != 0 || waiting <= 0 || is_local(descriptor))
        return 0;
    return (uint32_t)(waiting - (link->state == PT_LINK_FINISHED));
}
#else
#define posix_unacknowledged NULL
#endif

static void posix_forget(pt_context *context, pt_source *source)
{
    pt_posix_unwatch(context, source);
    if (source->kind != PT_SOURCE_LINK)
        return;
    /* The kernel has copied what it took, so the slots are ours again at once. */
    pt_send_pipeline *pipeline = &((pt_link *)source)->pipeline;
    for (uint8_t index = 0; index < pipeline->room; index++) {
        if (pipeline->slots[index].state == PT_SLOT_IN_FLIGHT)
            pt_pipeline_complete(pipeline, index, PT_ERR_CONNECTION_CLOSED);
    }
}

static uint32_t posix_clock(pt_context *context)
{
    (void)context;
    return (uint32_t)now_ms();
}

/* --------------------------------------------------------------------------------------- tables */

/* The entries that both tables have. */
#define POSIX_OPS                                                                                  \
    .tcp_send = posix_send, .tcp_receive = posix_receive, .tcp_finish = posix_finish,              \
    .unacknowledged = posix_unacknowledged, .watch = pt_posix_watch, .forget = posix_forget,       \
    .wait = pt_posix_wait, .wake = pt_posix_wake, .clock = posix_clock, .size = pt_posix_size,     \
    .init = pt_posix_init, .cleanup = pt_posix_cleanup, .descriptor = pt_posix_descriptor,         \
    .wake_descriptor = pt_posix_wake_descriptor, .ticks_per_second = 1000, .refers = 1

const pt_platform_ops *pt_posix_ops(void)
{
    static const pt_platform_ops ops = {
        .name = "posix",
        .tcp_send_async = posix_send_async,
        .poll_send_completions = posix_poll_completions,
        .wait_send_completions = posix_wait_completions,
        .send_slots_available = posix_slots_available,
        .prompt = 1,
        POSIX_OPS,
    };
    return &ops;
}

const pt_platform_ops *pt_posix_worker_ops(void)
{
    static const pt_platform_ops ops = {
        .name = "posix_worker",
        .tcp_send_async = posix_send_async,
        .poll_send_completions = posix_poll_completions,
        .send_slots_available = posix_slots_available,
        .lock = pt_posix_lock,
        .try_lock = pt_posix_try_lock,
        .unlock = pt_posix_unlock,
        .settle = pt_posix_settle,
        .doze = pt_posix_doze,
        POSIX_OPS,
    };
    return &ops;
}

const pt_platform_ops *pt_posix_plain_ops(void)
{
    static const pt_platform_ops ops = {.name = "posix_plain", POSIX_OPS};
    return &ops;
}

/* --------------------------------------------------------------------------------------- memory */

/* The account is read by other threads through plain fields, so it is counted with the compiler's
 * atomics. */
static void *counted_allocate(void *context, size_t size)
{
    PT_ASSERT(size != 0);

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
    PT_ASSERT(__atomic_load_n(&account->bytes, __ATOMIC_RELAXED) >= size);
    __atomic_sub_fetch(&account->bytes, size, __ATOMIC_RELAXED);
    free(memory);
}

void pt_posix_memory_fail_at(pt_posix_memory *account, uint64_t attempt)
{
    __atomic_store_n(&account->fail_at, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&account->attempts, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&account->fail_at, attempt, __ATOMIC_RELAXED);
}

void pt_posix_memory_source(pt_posix_memory *account, pt_memory *source)
{
    PT_ASSERT(account != NULL && source != NULL);

    source->allocate = counted_allocate;
    source->release = counted_release;
    source->context = account;
}
