/* Memory for pools of programs that stand alone: aligned as a pool needs it, and nothing else. */
#ifndef PLAIN_MEMORY_H
#define PLAIN_MEMORY_H

#include <stdlib.h>

static inline void *allocate(void *context, size_t size)
{
    (void)context;
    return aligned_alloc(16, (size + 15) / 16 * 16);
}

static inline void release(void *context, void *memory, size_t size)
{
    (void)context;
    (void)size;
    free(memory);
}

#endif
