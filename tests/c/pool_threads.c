/* Threads that fight for a handful of buffers: no buffer has two borrowers, every returned byte is
 * wiped, the budget holds, and all comes back.
 *
 * usage: pool_threads ROUNDS [THREADS [doors]]. doors: each thread has one of its own, so that all
 * take from each other's shelves, and leaves it now and then with a buffer out, which comes back by
 * another door. Exit status 0, or the process stops
 * at what is wrong. Built with assertions, best with ThreadSanitizer too.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pt_check.h"
#include "plain_memory.h"

#define EXPECT(condition) ((condition) ? (void)0 : __builtin_trap())
#define MAX_THREADS       64
#define BUFFER_SIZE       16u
#define BUFFER_COST       ((uint64_t)BUFFER_SIZE + 16u)

static pt_pool *pool;
static long rounds;
static int has_doors;

/* Take a buffer and mark it. NULL: there was none. */
static uint8_t *take(pt_pool *door, uint8_t mark)
{
    uint8_t *buffer = pt_pool_acquire(door, BUFFER_SIZE);
    if (buffer != NULL) {
        for (uint32_t at = 0; at < BUFFER_SIZE; at++)
            EXPECT(buffer[at] == 0);
        memset(buffer, mark, BUFFER_SIZE);
    }
    return buffer;
}

static void give(pt_pool *door, uint8_t *buffer, uint8_t mark)
{
    if (buffer == NULL)
        return;
    for (uint32_t at = 0; at < BUFFER_SIZE; at++)
        EXPECT(buffer[at] == mark);
    EXPECT(pt_pool_release(door, buffer, BUFFER_SIZE) == PT_OK);
}

/* Two out, then back in the order in which they came: the top of the stack returns with another
 * below it. */
static void *fight(void *argument)
{
    uint8_t mark = *(const uint8_t *)argument;
    pt_pool *door = has_doors ? pt_pool_join(pool) : pool;
    for (long round = 0; round < rounds; round++) {
        uint8_t *first = take(door, mark);
        uint8_t *second = take(door, mark);
        give(door, first, mark);
        uint8_t *third = take(door, mark);
        give(door, second, mark);
        give(door, third, mark);
        if (mark == 1 && round % 64 == 0)
            pt_pool_trim(pool);
        if (has_doors && round % 256 == 255) {
            uint8_t *out = take(door, mark);
            pt_pool_leave(door);
            door = pt_pool_join(pool);
            give(door, out, mark);
        }
        if (has_doors && round % 64 == 63)
            PT_CHECK(pt_pool_check(door));
    }
    if (has_doors)
        pt_pool_leave(door);
    return NULL;
}

int main(int argc, char **argv)
{
    EXPECT(argc >= 2);
    rounds = strtol(argv[1], NULL, 10);
    int thread_count = argc > 2 ? atoi(argv[2]) : 8;
    has_doors = argc > 3 && strcmp(argv[3], "doors") == 0;
    EXPECT(thread_count >= 1 && thread_count <= MAX_THREADS);

    static const pt_pool_class classes[] = {{BUFFER_SIZE, 5, 0}};
    static const pt_memory source = {allocate, release, NULL};
    static pthread_t threads[MAX_THREADS];
    static uint8_t marks[MAX_THREADS];
    void *memory = malloc(pt_pool_size(classes, 1));
    EXPECT(memory != NULL);
    pool = pt_pool_init(memory, classes, 1, 4 * BUFFER_COST, &source);

    if (has_doors) { /* more than one from the start, as pt_pool_check() must know */
        pt_pool *first = pt_pool_join(pool), *second = pt_pool_join(pool);
        EXPECT(first != second && first != pool && second != pool);
        pt_pool_leave(first);
        pt_pool_leave(second);
    }
    for (int index = 0; index < thread_count; index++) {
        marks[index] = (uint8_t)(index + 1);
        EXPECT(pthread_create(&threads[index], NULL, fight, &marks[index]) == 0);
    }
    for (int index = 0; index < thread_count; index++)
        EXPECT(pthread_join(threads[index], NULL) == 0);

    pt_pool_statistics counted;
    pt_pool_get_statistics(pool, &counted);
    EXPECT(counted.acquires == counted.returns && counted.in_use == 0);
    long asked = 3 * rounds + (has_doors ? rounds / 256 : 0);
    EXPECT(counted.acquires + counted.refusals == (uint64_t)asked * (uint64_t)thread_count);
    pt_pool_class_statistics of_class; /* each door had at most the whole class out */
    pt_pool_get_class_statistics(pool, 0, &of_class);
    EXPECT(of_class.high_water <= 5 * (1 + PT_POOL_CONTEXTS));
    EXPECT(counted.peak_bytes <= 4 * BUFFER_COST && counted.bytes <= counted.peak_bytes &&
           counted.bytes % BUFFER_COST == 0);
    EXPECT(pt_pool_cleanup(pool) == 0);
    pt_pool_get_statistics(pool, &counted);
    EXPECT(counted.bytes == 0);
    free(memory);
    return 0;
}
