/* A buffer that is given back twice, by whichever door, or to a pool that is not its own, stops the
 * process where assertions are on, and so does a pointer into a buffer. Elsewhere each is refused,
 * and both pools are as they were.
 *
 * usage: pool_twice once | twice | elsewhere | foreign | inside
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "plain_memory.h"
#include "pt_pool.h"

int main(int argc, char **argv)
{
    static const pt_pool_class classes[] = {{64, 2, 0}};
    static const pt_memory source = {allocate, release, NULL};
    static _Alignas(8) uint64_t memory[2][1024];
    if (argc != 2 || pt_pool_size(classes, 1) > sizeof memory[0])
        return 2;
    pt_pool *pool = pt_pool_init(memory[0], classes, 1, 0, &source);
    pt_pool *other = pt_pool_init(memory[1], classes, 1, 0, &source);
    uint8_t *buffer = pt_pool_acquire(pool, 64);
    if (buffer == NULL || pt_pool_buffer_size(buffer) != 64 || (uintptr_t)buffer % 16 != 0)
        return 3;
    if (strcmp(argv[1], "foreign") == 0 &&
        pt_pool_release(other, buffer, 0) != PT_ERR_INVALID_PARAM)
        return 5;
    if (strcmp(argv[1], "inside") == 0 &&
        pt_pool_release(pool, buffer + 16, 0) != PT_ERR_INVALID_PARAM)
        return 10;
    if (pt_pool_release(pool, buffer, 64) != PT_OK)
        return 6;
    if (strcmp(argv[1], "twice") == 0 && pt_pool_release(pool, buffer, 64) != PT_ERR_INVALID_PARAM)
        return 7;
    if (strcmp(argv[1], "elsewhere") == 0 &&
        pt_pool_release(pt_pool_join(pool), buffer, 64) != PT_ERR_INVALID_PARAM)
        return 11;
    uint8_t *first = pt_pool_acquire(pool, 64), *second = pt_pool_acquire(pool, 64);
    if (first == NULL || second == NULL || first == second || pt_pool_acquire(pool, 64) != NULL)
        return 8;
    pt_pool_statistics counted;
    pt_pool_get_statistics(pool, &counted);
    if (counted.acquires != 3 || counted.returns != 1 || counted.in_use != 2)
        return 9;
    if (pt_pool_release(pool, first, 0) != PT_OK || pt_pool_release(pool, second, 0) != PT_OK)
        return 12;
    return pt_pool_cleanup(pool) == 0 && pt_pool_cleanup(other) == 0 ? 0 : 4;
}
