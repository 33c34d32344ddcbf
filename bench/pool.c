/* What bench/pool.py runs: acquire and release by one thread, two busy contexts on one pool, and
 * threads on the list that all share.
 *
 * usage: pool ROUNDS. Prints one line of JSON; exit status 0, or the process stops.
 */
#define _GNU_SOURCE 1
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "pt_loop.h"
#include "pt_pool_inside.h"
#include "pt_posix.h"

#define EXPECT(condition) ((condition) ? (void)0 : abort())
#define FRAME             (PT_FRAME_OVERHEAD + PT_FRAME_MAX_PAYLOAD)
#define EVENTS            (4 * PT_IO_BUDGET + 4)
#define CLASSES           6
#define LARGEST           4 /* threads on the list, at the most */

static const pt_pool_class classes[CLASSES] = {
    {256, 4096, 0},   {1040, 4096, 0},  {4112, 4096, 0},
    {FRAME, 4096, 0}, {65520, 1024, 0}, {PT_RECEIVE_BUFFER_SIZE, 128, 0},
};
static pt_pool *pool;
static long rounds;
static pthread_barrier_t line;

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static void open_pool(void)
{
    static pt_posix_memory account;
    pt_memory source;
    pt_posix_memory_source(&account, &source);
    void *memory = malloc(pt_pool_size(classes, CLASSES));
    EXPECT(memory != NULL);
    pool = pt_pool_init(memory, classes, CLASSES, 64u << 20, &source);
    EXPECT(pool != NULL);
}

static void close_pool(void)
{
    EXPECT(pt_pool_cleanup(pool) == 0);
    free(pool);
}

/* ns of one acquire and release. */
static double pair(pt_pool *door, int share)
{
    double start = now_ns();
    for (long round = 0; round < rounds; round++) {
        uint8_t *buffer = share ? pt_pool_acquire_share(door, FRAME) : pt_pool_acquire(door, FRAME);
        EXPECT(buffer != NULL);
        pt_pool_release(door, buffer, 0);
    }
    return (now_ns() - start) / (double)rounds;
}

static void *bare(void *cost)
{
    pthread_barrier_wait(&line);
    *(double *)cost = pair(pool, 0);
    return NULL;
}

/* The same on the first door, of so many threads at once; the mean. */
static double bare_pair(unsigned count)
{
    pthread_t threads[LARGEST];
    double costs[LARGEST], sum = 0;
    EXPECT(pthread_barrier_init(&line, NULL, count) == 0);
    for (unsigned index = 0; index < count; index++)
        EXPECT(pthread_create(&threads[index], NULL, bare, &costs[index]) == 0);
    for (unsigned index = 0; index < count; index++) {
        EXPECT(pthread_join(threads[index], NULL) == 0);
        sum += costs[index] / count;
    }
    pthread_barrier_destroy(&line);
    return sum;
}

static int take(void *count, uint32_t tag, const pt_frame *frame)
{
    (void)tag;
    (void)frame;
    ++*(long *)count;
    return PT_OK;
}

/* Send so many messages of each size from one link of a context to another one, in bursts of 1 to
 * 64, so that buffers come and go. */
static void move(pt_context *context, pt_link *from, pt_event *events, long count)
{
    static const uint32_t sizes[] = {0, 64, 1024, 4096, PT_FRAME_MAX_PAYLOAD};
    static const uint8_t payload[PT_FRAME_MAX_PAYLOAD];
    for (size_t size = 0; size < sizeof sizes / sizeof sizes[0]; size++) {
        long sent = 0, arrived = 0;
        const pt_sink sink = {.frame = take, .context = &arrived, .room = UINT32_MAX};
        for (long burst = 1; arrived < count; burst = burst % 64 + 1) {
            long until = sent + burst < count ? sent + burst : count;
            while (sent < until &&
                   pt_link_send(context, from, PT_FRAME_DATA, 0, payload, sizes[size]) >= 0)
                sent++;
            EXPECT(pt_loop_turn(context, 0, events, EVENTS, &sink) >= 0);
        }
    }
}

/* A context and two links, busy with each other. */
static void *be_busy(void *unused)
{
    (void)unused;
    pt_setup setup = {.max_sources = 0};
    pt_context *context = calloc(1, sizeof *context);
    pt_link *links = calloc(2, sizeof *links);
    pt_event *events = calloc(EVENTS, sizeof *events);
    pt_source *ready[PT_IO_BUDGET];
    uint8_t *buffer = malloc(PT_RECEIVE_BUFFER_SIZE);
    void *platform = malloc(pt_posix_ops()->size(&setup));
    int32_t error = 0;
    int ends[2];
    EXPECT(context && links && events && buffer && platform);
    EXPECT(pt_posix_ops()->init(platform, &setup, &error) == PT_OK);
    EXPECT(pt_context_init(context, pt_posix_ops(), platform, pool, buffer, PT_RECEIVE_BUFFER_SIZE,
                           ready, PT_IO_BUDGET) == PT_OK);
    EXPECT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    for (uint32_t end = 0; end < 2; end++)
        EXPECT(pt_link_open(context, &links[end], ends[end], end + 1, NULL, PT_POSIX_PIPELINE_DEPTH,
                            PT_POSIX_SLOT_SIZE, 1, PT_FRAME_MAX_PAYLOAD,
                            pt_message_format(0)) == PT_OK);
    move(context, &links[0], events, rounds / 100 + 100);
    pthread_barrier_wait(&line); /* warm: the figures begin */
    pthread_barrier_wait(&line);
    move(context, &links[0], events, rounds / 10 + 100);
    pthread_barrier_wait(&line); /* ... and end */
    pthread_barrier_wait(&line);
    for (int end = 0; end < 2; end++) {
        EXPECT(pt_link_close(context, &links[end]) == 0);
        (void)close(ends[end]);
    }
    EXPECT(pt_context_cleanup(context) == PT_OK);
    pt_posix_ops()->cleanup(platform);
    free(platform);
    free(buffer);
    free(events);
    free(links);
    free(context);
    return NULL;
}

/* How often the list was changed or asked in vain. */
static uint64_t meetings(void)
{
    pt_pool_statistics counted;
    pt_pool_get_statistics(pool, &counted);
    uint64_t met = counted.refusals;
    for (int index = 0; index < CLASSES; index++) {
        const size_class *class = &pool->shared->classes[index];
        met += (cell_get(&class->free) >> 32) + (cell_get(&class->empty) >> 32) +
               cell_get(&class->touched);
    }
    return met;
}

static void busy(uint64_t *acquires, uint64_t *met)
{
    pthread_t threads[2];
    pt_pool_statistics before, after;
    EXPECT(pthread_barrier_init(&line, NULL, 3) == 0);
    for (int index = 0; index < 2; index++)
        EXPECT(pthread_create(&threads[index], NULL, be_busy, NULL) == 0);
    pthread_barrier_wait(&line);
    pt_pool_get_statistics(pool, &before);
    *met = meetings();
    pthread_barrier_wait(&line);
    pthread_barrier_wait(&line);
    pt_pool_get_statistics(pool, &after);
    *met = meetings() - *met;
    *acquires = after.acquires - before.acquires;
    pthread_barrier_wait(&line);
    for (int index = 0; index < 2; index++)
        EXPECT(pthread_join(threads[index], NULL) == 0);
    pthread_barrier_destroy(&line);
}

int main(int argc, char **argv)
{
    EXPECT(argc == 2);
    rounds = strtol(argv[1], NULL, 10);
    EXPECT(rounds > 0);
    uint64_t acquires, met;
    open_pool();
    busy(&acquires, &met);
    close_pool();
    open_pool();
    pt_pool *own = pt_pool_join(pool);
    printf("{\"pair_ns\": %.1f, \"pair_share_ns\": %.1f, \"bare_pair_ns\": [", pair(own, 0),
           pair(own, 1));
    pt_pool_leave(own);
    for (unsigned count = 1; count <= LARGEST; count++)
        printf("%s%.1f", count == 1 ? "" : ", ", bare_pair(count));
    printf("], \"acquires\": %llu, \"met\": %llu}\n", (unsigned long long)acquires,
           (unsigned long long)met);
    close_pool();
    return 0;
}
