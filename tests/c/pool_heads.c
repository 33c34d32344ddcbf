/* The head of a free list never shows a value twice: a thread that has read it and slept would
 * else swap in a buffer that has been lent and returned meanwhile, and that leads to another one
 * now. Single-threaded, so that it fails at once where pool_threads needs luck and two processors.
 *
 * It looks inside the pool, so it is one with it. Exit status 0, or the process stops.
 */
#include <stdlib.h>

#include "../../csrc/core/pt_pool.c"
#include "plain_memory.h"

#define EXPECT(condition) ((condition) ? (void)0 : __builtin_trap())
#define BUFFER_SIZE       16u
#define STEPS             1000

int main(void)
{
    static const pt_pool_class classes[] = {{BUFFER_SIZE, 2, 0}};
    static const pt_memory source = {allocate, release, NULL};
    void *memory = malloc(pt_pool_size(classes, 1));
    EXPECT(memory != NULL);
    pt_pool *pool = pt_pool_init(memory, classes, 1, 0, &source);
    static uint64_t seen[2 * STEPS];
    for (int step = 0; step < STEPS; step++) {
        uint8_t *buffer = pt_pool_acquire(pool, BUFFER_SIZE);
        seen[2 * step] = cell_get(&pool->shared->classes[0].free);
        pt_pool_release(pool, buffer, 0);
        seen[2 * step + 1] = cell_get(&pool->shared->classes[0].free);
    }
    for (int step = 2; step < 2 * STEPS; step++) {
        for (int before = 1; before < step; before++)
            EXPECT(seen[before] != seen[step]);
    }
    EXPECT(pt_pool_cleanup(pool) == 0);
    free(memory);
    return 0;
}
