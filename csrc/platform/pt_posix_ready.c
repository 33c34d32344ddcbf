#if defined(__linux__)
#define _GNU_SOURCE 1
#define HAS_EPOLL   1
#else
#define HAS_EPOLL 0
#endif

#include "pt_posix_ready.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#if HAS_EPOLL
#include <sys/epoll.h>
#include <sys/eventfd.h>
#endif

#include "pt_assert.h"
#include "pt_worker.h"

#define UNREGISTERED 0xFF
#define EDGE         0x10 /* in pt_source.registered, beside the interest */
#define HANGUP_SEEN  0x20 /* poll only: an edge source has told of its hang-up */

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
    pthread_mutex_t lock; /* of a context that a worker has */
    pthread_cond_t settled;
    uint32_t settling; /* threads that wait for others to let go of the lock */
    uint32_t forgets;  /* sources that were forgotten; counted, so that a wait hears of it */
} posix_data;

static posix_data *data_of(const pt_context *context)
{
    return context->platform_data;
}

/* --------------------------------------------------------------------------------------- set-up */

size_t pt_posix_size(const pt_setup *setup)
{
    return sizeof(posix_data) + setup->max_sources * sizeof(pt_source *) +
           ((size_t)setup->max_sources + 1) * sizeof(struct pollfd);
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

int pt_posix_init(void *platform_data, const pt_setup *setup, int32_t *system_error)
{
    PT_ASSERT((uintptr_t)platform_data % _Alignof(posix_data) == 0);
    posix_data *data = platform_data;
    memset(data, 0, sizeof *data);
    data->epoll_fd = -1;
    data->wake_read = -1;
    data->wake_write = -1;
    data->max_sources = setup->max_sources;
    data->sources = (pt_source **)(void *)(data + 1);
    data->polled = (struct pollfd *)(void *)(data->sources + setup->max_sources);
    atomic_init(&data->woken, 0);
    (void)pthread_mutex_init(&data->lock, NULL); /* none of these can fail where we know them */
    pthread_condattr_t attributes;
    (void)pthread_condattr_init(&attributes);
#if !defined(__APPLE__)
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
#endif
    (void)pthread_cond_init(&data->settled, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    if (make_wake(data) == 0 && (setup->max_sources != 0 || make_epoll(data) == 0))
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
    /* The lock needs no end where we know it, and in a forked child another thread may have it. */
}

int pt_posix_descriptor(const void *platform_data)
{
    return ((const posix_data *)platform_data)->epoll_fd;
}

int pt_posix_wake_descriptor(const void *platform_data)
{
    return ((const posix_data *)platform_data)->wake_read;
}

/* -------------------------------------------------------------------------------------- the lock */

void pt_posix_lock(pt_context *context)
{
    (void)pthread_mutex_lock(&data_of(context)->lock);
}

int pt_posix_try_lock(pt_context *context)
{
    return pthread_mutex_trylock(&data_of(context)->lock) == 0;
}

void pt_posix_unlock(pt_context *context)
{
    posix_data *data = data_of(context);
    if (data->settling != 0)
        (void)pthread_cond_broadcast(&data->settled);
    (void)pthread_mutex_unlock(&data->lock);
}

void pt_posix_settle(pt_context *context, uint32_t ms)
{
    posix_data *data = data_of(context);
    PT_ASSERT(ms < 1000);
    data->settling++;
    if (ms == 0) {
        (void)pthread_cond_wait(&data->settled, &data->lock);
    } else {
        struct timespec until = {0};
#if defined(__APPLE__) /* which has no other clock than that of the day for this */
        until.tv_nsec = (long)ms * 1000000;
        (void)pthread_cond_timedwait_relative_np(&data->settled, &data->lock, &until);
#else
        (void)clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += (long)ms * 1000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        (void)pthread_cond_timedwait(&data->settled, &data->lock, &until);
#endif
    }
    data->settling--;
}

/* Of what a worker heard while others had its context, sources may be gone. */
static int is_known(const pt_context *context, const pt_source *source)
{
    const pt_source *known = context->sources;
    while (known != NULL && known != source)
        known = known->next;
    return known != NULL;
}

/* -------------------------------------------------------------------------------------- waiting */

/* Wakes are counted down before the flag is lowered: one that comes between is part of this wait's
 * end. */
static void drain_wake(pt_context *context, posix_data *data)
{
    PT_ASSERT(context->platform_data == data && data->wake_read >= 0);

    context->woken = 1;
    uint8_t bytes[64];
    ssize_t count;
    do {
        count = read(data->wake_read, bytes, sizeof bytes);
    } while (count == (ssize_t)sizeof bytes || (count < 0 && errno == EINTR));
    atomic_store(&data->woken, 0);
}

void pt_posix_wake(pt_context *context)
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

/* Wait for a moment, or until a descriptor is readable. */
static void linger(int descriptor)
{
    struct pollfd entry = {.fd = descriptor, .events = POLLIN};
#if HAS_EPOLL
    const struct timespec moment = {.tv_nsec = PT_LINGER_US * 1000L};
    (void)ppoll(&entry, 1, &moment, NULL);
#else
    (void)poll(&entry, 1, 1);
#endif
}

/* Wait for a wake alone. */
static void wait_for_wake(const posix_data *data, int timeout_ms)
{
    struct pollfd entry = {.fd = data->wake_read, .events = POLLIN};
    (void)poll(&entry, 1, timeout_ms);
}

void pt_posix_doze(pt_context *context, uint32_t ms)
{
    PT_ASSERT(ms < 1000 && context->worker != NULL);
    pt_posix_unlock(context);
    wait_for_wake(data_of(context), (int)ms);
    pt_posix_lock(context);
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
/* Whoever is told of each change once is told of the end of the stream as well, and of urgent data:
 * a read that finds fewer bytes than it asked for may have ended there, with more behind. */
static int epoll_register(posix_data *data, const pt_source *source)
{
    struct epoll_event event;
    memset(&event, 0, sizeof event);
    event.data.ptr = (void *)(uintptr_t)source;
    event.events =
        ((source->interest & PT_WANT_READ) ? (uint32_t)EPOLLIN : 0) |
        ((source->interest & PT_WANT_WRITE) ? (uint32_t)EPOLLOUT : 0) |
        (source->edge ? (uint32_t)EPOLLET : 0) |
        ((source->interest & PT_WANT_EDGE) ? (uint32_t)(EPOLLET | EPOLLRDHUP | EPOLLPRI) : 0);
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
    PT_ASSERT(context->io_budget != 0 && context->io_budget <= PT_IO_BUDGET_MAX);
    PT_ASSERT(context->ready_count == 0);
    struct epoll_event events[PT_IO_BUDGET_MAX]; /* 12 KB, touched as far as filled */
    uint32_t forgets = data->forgets;
    int is_full = context->worker != NULL && context->worker->is_full;
    int lingers = context->worker != NULL && context->worker->is_lingering;
    if (context->worker != NULL)
        pt_posix_unlock(context);
    if (is_full && timeout_ms != 0) /* else the links that are not read would end the wait */
        wait_for_wake(data, timeout_ms);
    else if (lingers)
        linger(data->epoll_fd);
    if (is_full || lingers)
        timeout_ms = 0;
    int count = epoll_wait(data->epoll_fd, events, (int)context->io_budget, timeout_ms);
    int error = errno;
    if (context->worker != NULL)
        pt_posix_lock(context);
    if (count < 0)
        return error == EINTR ? 0 : PT_ERR_PLATFORM;
    for (int index = 0; index < count; index++) {
        uint32_t seen = events[index].events;
        pt_source *source = events[index].data.ptr;
        if (source == NULL)
            drain_wake(context, data);
        else if (data->forgets == forgets || is_known(context, source))
            found(context, source, (seen & EPOLLIN) != 0, (seen & EPOLLOUT) != 0,
                  (seen & (EPOLLHUP | EPOLLERR | EPOLLRDHUP | EPOLLPRI)) != 0);
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
    PT_ASSERT(context->ready_count == 0);
    uint32_t count = fill_polled(context, data);
    PT_ASSERT(count <= data->source_count);
    uint32_t forgets = data->forgets;
    int is_full = context->worker != NULL && context->worker->is_full;
    int lingers = context->worker != NULL && context->worker->is_lingering;
    if (context->worker != NULL)
        pt_posix_unlock(context);
    if (is_full && timeout_ms != 0)
        wait_for_wake(data, timeout_ms);
    if (is_full)
        timeout_ms = 0;
    else if (lingers)
        timeout_ms = 1; /* as short as poll(2) has it */
    int found_count = poll(data->polled, (nfds_t)count + 1, timeout_ms);
    int error = errno;
    if (context->worker != NULL)
        pt_posix_lock(context);
    if (found_count < 0)
        return error == EINTR ? 0 : PT_ERR_PLATFORM;
    if (data->polled[0].revents != 0)
        drain_wake(context, data);
    uint32_t place = data->next_source < count ? data->next_source : 0;
    for (uint32_t step = 0; step < count && context->ready_count < context->io_budget; step++) {
        int seen = data->polled[place + 1].revents;
        pt_source *source = data->sources[place];
        place = place + 1 < count ? place + 1 : 0;
        if (seen == 0 || (data->forgets != forgets && !is_known(context, source)))
            continue;
        int broken = (seen & (POLLHUP | POLLERR | POLLNVAL)) != 0;
        if (broken && source->edge)
            source->registered |= HANGUP_SEEN;
        found(context, source, (seen & POLLIN) != 0, (seen & POLLOUT) != 0, broken);
        data->next_source = place;
    }
    PT_ASSERT(context->ready_count <= context->io_budget);
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

int pt_posix_watch(pt_context *context, pt_source *source)
{
    PT_ASSERT(source->place != NULL);
    PT_ASSERT((source->interest & ~(PT_WANT_READ | PT_WANT_WRITE | PT_WANT_EDGE)) == 0);

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
        PT_ASSERT(data->source_count <= data->max_sources);
    }
    if (source->registered == UNREGISTERED)
        overtake(context, data, source);
    source->registered = wanted;
    return PT_OK;
}

void pt_posix_unwatch(pt_context *context, pt_source *source)
{
    posix_data *data = data_of(context);
    if (source->registered == UNREGISTERED)
        return;
    if (data->epoll_fd >= 0)
        epoll_unregister(data, source);
    else if (data->source_count != 0) /* epoll counts none, and a forked child has no set */
        data->source_count--;
    PT_ASSERT(data->source_count <= data->max_sources || data->epoll_fd >= 0);
    source->registered = UNREGISTERED;
    data->forgets++;
}

int pt_posix_wait(pt_context *context, int timeout_ms)
{
    posix_data *data = data_of(context);
    return data->epoll_fd >= 0 ? epoll_round(context, data, timeout_ms)
                               : poll_round(context, data, timeout_ms);
}
