/* Memory for pools under test: counted, 16-aligned on systems whose malloc is not, and refused on
 * demand. Include behind check.h. */
#ifndef MEMORY_H
#define MEMORY_H

#include "pt_pool.h"

typedef struct memory_account {
    size_t bytes; /* held now */
    unsigned allocations;
    int dry; /* 1: there is no memory */
} memory_account;

#define MEMORY_ALIGNMENT 16u

static inline void *memory_allocate(void *context, size_t size)
{
    memory_account *account = context;
    if (account->dry)
        return NULL;
    uint8_t *start = malloc(size + 2 * MEMORY_ALIGNMENT);
    REQUIRE(start != NULL);
    uint8_t *memory = start + 2 * MEMORY_ALIGNMENT - (uintptr_t)start % MEMORY_ALIGNMENT;
    memory[-1] = (uint8_t)(memory - start); /* where the block begins */
    memset(memory, 0xA5, size);             /* whoever needs zeros must write them */
    account->bytes += size;
    account->allocations++;
    return memory;
}

static inline void memory_release(void *context, void *memory, size_t size)
{
    memory_account *account = context;
    CHECK(account->bytes >= size);
    account->bytes -= size;
    free((uint8_t *)memory - ((uint8_t *)memory)[-1]);
}

/* A pool whose own memory is no part of the account. End it with memory_close_pool(). */
static inline pt_pool *memory_open_pool(memory_account *account, const pt_pool_class *classes,
                                        uint8_t class_count, uint64_t budget)
{
    const pt_memory source = {memory_allocate, memory_release, account};
    void *memory = malloc(pt_pool_size(classes, class_count));
    REQUIRE(memory != NULL && (uintptr_t)memory % 8 == 0);
    memset(account, 0, sizeof *account);
    pt_pool *pool = pt_pool_init(memory, classes, class_count, budget, &source);
    REQUIRE(pool == memory);
    return pool;
}

/* Nothing may be lent any more, and all memory must be back. */
static inline void memory_close_pool(pt_pool *pool, const memory_account *account)
{
    CHECK_EQUAL(pt_pool_cleanup(pool), 0);
    CHECK_EQUAL(account->bytes, 0);
    free(pool);
}

static inline uint64_t memory_lent(const pt_pool *pool)
{
    pt_pool_statistics statistics;
    pt_pool_get_statistics(pool, &statistics);
    return statistics.in_use;
}

#endif
