/* Threads that fight for a handful of buffers: no buffer has two borrowers, every returned byte is
 * wiped, the budget holds, and all comes back.
 *
 * usage: pool_threads ROUNDS [THREADS]. Exit status 0, or the process stops at what is wrong. Built
 * with assertions, best with ThreadSanitizer too.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pt_pool.h"

#define EXPECT(condition) ((condition) ? (void)0 : __builtin_trap())
#define MAX_THREADS       64
#define BUFFER_SIZE       16u
#define BUFFER_COST       ((uint64_t)BUFFER_SIZE + 16u)

static pt_pool *pool;
static long rounds;

static void *allocate(void *context, size_t size)
{
    (void)context;
    return aligned_alloc(16, (size + 15) / 16 * 16);
}

static void release(void *context, void *memory, size_t size)
{
    (void)context;
    (void)size;
    free(memory);
}

/* Take a buffer and mark it. NULL: there was none. */
static uint8_t *take(uint8_t mark)
{
    uint8_t *buffer = pt_pool_acquire(pool, BUFFER_SIZE);
    if (buffer != NULL) {
        for (uint32_t at = 0; at < BUFFER_SIZE; at++)
            EXPECT(buffer[at] == 0);
        memset(buffer, mark, BUFFER_SIZE);
    }
    return buffer;
}

static void give(uint8_t *buffer, uint8_t mark)
{
    if (buffer == NULL)
        return;
    for (uint32_t at = 0; at < BUFFER_SIZE; at++)
        EXPECT(buffer[at] == mark);
    pt_pool_release(pool, buffer, BUFFER_SIZE);
}

/* Two out, then back in the order in which they came: the top of the stack returns with another
 * below it. */
static void *fight(void *argument)
{
    uint8_t mark = *(const uint8_t *)argument;
    for (long round = 0; round < rounds; round++) {
        uint8_t *first = take(mark);
        uint8_t *second = take(mark);
        give(first, mark);
        uint8_t *third = take(mark);
        give(second, mark);
        give(third, mark);
        if (mark == 1 && round % 64 == 0)
            pt_pool_trim(pool);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    EXPECT(argc >= 2);
    rounds = strtol(argv[1], NULL, 10);
    int thread_count = argc > 2 ? atoi(argv[2]) : 8;
    EXPECT(thread_count >= 1 && thread_count <= MAX_THREADS);

    static const pt_pool_class classes[] = {{BUFFER_SIZE, 5, 0}};
    static const pt_memory source = {allocate, release, NULL};
    static pthread_t threads[MAX_THREADS];
    static uint8_t marks[MAX_THREADS];
    void *memory = malloc(pt_pool_size(classes, 1));
    EXPECT(memory != NULL);
    pool = pt_pool_init(memory, classes, 1, 4 * BUFFER_COST, &source);

    for (int index = 0; index < thread_count; index++) {
        marks[index] = (uint8_t)(index + 1);
        EXPECT(pthread_create(&threads[index], NULL, fight, &marks[index]) == 0);
    }
    for (int index = 0; index < thread_count; index++)
        EXPECT(pthread_join(threads[index], NULL) == 0);

    pt_pool_statistics counted;
    pt_pool_get_statistics(pool, &counted);
    EXPECT(counted.acquires == counted.returns && counted.in_use == 0);
    EXPECT(counted.acquires + counted.refusals == 3u * (uint64_t)rounds * (uint64_t)thread_count);
    EXPECT(counted.peak_bytes <= 4 * BUFFER_COST && counted.bytes <= counted.peak_bytes &&
           counted.bytes % BUFFER_COST == 0);
    EXPECT(pt_pool_cleanup(pool) == 0);
    pt_pool_get_statistics(pool, &counted);
    EXPECT(counted.bytes == 0);
    free(memory);
    return 0;
}
