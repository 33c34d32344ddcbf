/* The pool on one thread: classes, capacities, budget, account. Threads are in pool_threads.c,
 * mistakes of its users in pool_twice.c. */
#include "check.h"
#include "memory.h"
#include "pt_check.h"

#define COST(size) ((size) + 16u) /* of one buffer */

static memory_account account;

static void a_size_is_served_by_the_smallest_class_that_holds_it(void)
{
    static const pt_pool_class classes[] = {{16, 4, 0}, {100, 4, 0}, {1040, 4, 0}};
    static const struct {
        uint32_t asked, lent;
    } cases[] = {{1, 16}, {16, 16}, {17, 100}, {100, 100}, {101, 1040}, {1040, 1040}};
    pt_pool *pool = memory_open_pool(&account, classes, 3, 0);
    CHECK_EQUAL(account.allocations, 0); /* it starts empty */
    for (size_t index = 0; index < sizeof cases / sizeof cases[0]; index++) {
        uint8_t *buffer = pt_pool_acquire(pool, cases[index].asked);
        REQUIRE(buffer != NULL);
        CHECK_EQUAL(pt_pool_buffer_size(buffer), cases[index].lent);
        CHECK_EQUAL((uintptr_t)buffer % 16, 0);
        pt_pool_release(pool, buffer, 0);
    }
    CHECK(pt_pool_acquire(pool, 0) == NULL);
    CHECK(pt_pool_acquire(pool, 1041) == NULL);
    CHECK(pt_pool_acquire(pool, UINT32_MAX) == NULL);
    memory_close_pool(pool, &account);
}

static void a_class_lends_its_capacity_and_no_other_steps_in(void)
{
    static const pt_pool_class classes[] = {{64, 3, 0}, {128, 1, 0}};
    pt_pool *pool = memory_open_pool(&account, classes, 2, 0);
    uint8_t *lent[3];
    for (int index = 0; index < 3; index++) {
        lent[index] = pt_pool_acquire(pool, 64);
        REQUIRE(lent[index] != NULL);
        for (int other = 0; other < index; other++)
            CHECK(lent[other] != lent[index]);
    }
    CHECK(pt_pool_acquire(pool, 64) == NULL);
    pt_pool_release(pool, lent[1], 0);
    uint8_t *again = pt_pool_acquire(pool, 10);
    CHECK(again == lent[1]);
    CHECK_EQUAL(account.allocations, 3);

    pt_pool_statistics counted;
    pt_pool_get_statistics(pool, &counted);
    CHECK_EQUAL(counted.acquires, 4);
    CHECK_EQUAL(counted.allocations, 3);
    CHECK_EQUAL(counted.refusals, 1);
    CHECK_EQUAL(counted.returns, 1);
    CHECK_EQUAL(counted.in_use, 3);
    CHECK_EQUAL(counted.bytes, 3 * COST(64));
    CHECK_EQUAL(pt_pool_trim(pool), 0);

    pt_pool_release(pool, lent[0], 0);
    pt_pool_release(pool, again, 0);
    CHECK_EQUAL(pt_pool_cleanup(pool), 1);
    pt_pool_release(pool, lent[2], 0);
    memory_close_pool(pool, &account);
}

static void a_buffer_is_lent_with_zeros(void)
{
    static const pt_pool_class classes[] = {{64, 1, 0}};
    static const uint8_t zeros[64];
    pt_pool *pool = memory_open_pool(&account, classes, 1, 0);
    for (uint32_t used = 0; used <= 64; used += 16) {
        uint8_t *buffer = pt_pool_acquire(pool, 64);
        REQUIRE(buffer != NULL);
        CHECK_BYTES(buffer, zeros, 64);
        memset(buffer, 0xFF, used);
        pt_pool_release(pool, buffer, used);
    }
    memory_close_pool(pool, &account);
}

static void the_budget_holds_over_all_classes(void)
{
    static const pt_pool_class classes[] = {{64, 8, 0}, {256, 8, 0}};
    pt_pool *pool = memory_open_pool(&account, classes, 2, COST(64) + COST(256));
    uint8_t *small = pt_pool_acquire(pool, 64);
    uint8_t *large = pt_pool_acquire(pool, 256);
    REQUIRE(small != NULL && large != NULL);
    CHECK(pt_pool_acquire(pool, 64) == NULL);
    CHECK(pt_pool_is_scarce(pool));
    pt_pool_release(pool, large, 0);
    CHECK_EQUAL(account.bytes, COST(64) + COST(256));
    uint8_t *second = pt_pool_acquire(pool, 64); /* a free buffer of another class gives way */
    CHECK(second != NULL);
    CHECK(!pt_pool_is_scarce(pool));

    pt_pool_statistics counted;
    pt_pool_get_statistics(pool, &counted);
    CHECK_EQUAL(counted.peak_bytes, COST(64) + COST(256));
    CHECK_EQUAL(counted.bytes, 2 * COST(64));
    CHECK_EQUAL(account.bytes, counted.bytes);
    pt_pool_release(pool, small, 0);
    pt_pool_release(pool, second, 0);
    memory_close_pool(pool, &account);
}

static void a_source_without_memory_changes_nothing(void)
{
    static const pt_pool_class classes[] = {{64, 2, 0}};
    pt_pool *pool = memory_open_pool(&account, classes, 1, 0);
    account.dry = 1;
    for (int round = 0; round < 5; round++)
        CHECK(pt_pool_acquire(pool, 64) == NULL);
    pt_pool_statistics counted;
    pt_pool_get_statistics(pool, &counted);
    CHECK_EQUAL(counted.bytes, 0);
    CHECK_EQUAL(counted.refusals, 5);
    account.dry = 0;
    uint8_t *first = pt_pool_acquire(pool, 64), *second = pt_pool_acquire(pool, 64);
    REQUIRE(first != NULL && second != NULL);
    pt_pool_release(pool, first, 0);
    pt_pool_release(pool, second, 0);
    memory_close_pool(pool, &account);
}

static void classes_that_make_no_sense_are_refused(void)
{
    static const pt_pool_class good[] = {{16, 1, 0}, {32, 65535, 0}};
    static const pt_pool_class falling[] = {{32, 1, 0}, {16, 1, 0}};
    static const pt_pool_class equal[] = {{16, 1, 0}, {16, 1, 0}};
    static const pt_pool_class empty[] = {{0, 1, 0}};
    static const pt_pool_class none[] = {{16, 0, 0}};
    static const pt_pool_class many[] = {{16, 65536, 0}};
    static const pt_pool_class huge[] = {{UINT32_MAX, 1, 0}};
    static const pt_pool_class kept[] = {{16, 2, 3}};
    pt_pool_class full[PT_POOL_MAX_CLASSES + 1];
    for (uint32_t index = 0; index <= PT_POOL_MAX_CLASSES; index++)
        full[index] = (pt_pool_class){index + 1, 1, 1};
    CHECK(pt_pool_size(good, 2) > 65536 * sizeof(void *));
    CHECK_EQUAL(pt_pool_size(falling, 2), 0);
    CHECK_EQUAL(pt_pool_size(equal, 2), 0);
    CHECK_EQUAL(pt_pool_size(empty, 1), 0);
    CHECK_EQUAL(pt_pool_size(none, 1), 0);
    CHECK_EQUAL(pt_pool_size(many, 1), 0);
    CHECK_EQUAL(pt_pool_size(huge, 1), 0);
    CHECK_EQUAL(pt_pool_size(kept, 1), 0);
    CHECK(pt_pool_size(full, PT_POOL_MAX_CLASSES) > 0);
    CHECK_EQUAL(pt_pool_size(full, PT_POOL_MAX_CLASSES + 1), 0);
    CHECK_EQUAL(pt_pool_size(good, 0), 0);
    CHECK_EQUAL(pt_pool_size(NULL, 1), 0);
}

/* Buffers beyond what is kept go back to the source as they come. */
static void a_class_keeps_no_more_than_it_may(void)
{
    static const pt_pool_class classes[] = {{64, 4, 2}};
    pt_pool *pool = memory_open_pool(&account, classes, 1, 4 * COST(64));
    uint8_t *lent[4];
    for (int round = 0; round < 3; round++) {
        for (int index = 0; index < 4; index++) {
            lent[index] = pt_pool_acquire(pool, 64);
            REQUIRE(lent[index] != NULL);
        }
        for (int index = 0; index < 4; index++)
            CHECK_EQUAL(pt_pool_release(pool, lent[index], 0), PT_OK);
        CHECK_EQUAL(account.bytes, 2 * COST(64));
        PT_CHECK(pt_pool_check(pool));
    }
#if PT_POOL_COUNTS
    pt_pool_class_statistics counted;
    pt_pool_get_class_statistics(pool, 0, &counted);
    CHECK_EQUAL(counted.acquires, 12);
    CHECK_EQUAL(counted.allocations, 4 + 2 + 2);
    CHECK_EQUAL(counted.returns, 12);
    CHECK_EQUAL(counted.in_use, 0);
    CHECK_EQUAL(counted.high_water, 4);
    CHECK_EQUAL(counted.buffers, 2);
#endif
    memory_close_pool(pool, &account);
}

/* The table of a pool has place for what may come, and most of it never does. */
static void the_table_is_not_touched_before_buffers_exist(void)
{
    static const pt_pool_class classes[] = {{64, 20000, 0}};
    static const pt_memory source = {memory_allocate, memory_release, &account};
    size_t size = pt_pool_size(classes, 1), touched = 0;
    uint8_t *memory = malloc(size);
    REQUIRE(memory != NULL);
    memset(memory, 0xA5, size);
    memset(&account, 0, sizeof account);
    pt_pool *pool = pt_pool_init(memory, classes, 1, 0, &source);
    uint8_t *first = pt_pool_acquire(pool, 64), *second = pt_pool_acquire(pool, 64);
    REQUIRE(first != NULL && second != NULL);
    pt_pool_release(pool, first, 0);
    pt_pool_release(pool, second, 0);
    for (size_t index = 0; index < size; index++) {
        if (memory[index] != 0xA5)
            touched = index + 1;
    }
    CHECK(touched < 4096);
    memory_close_pool(pool, &account);
}

static void ten_thousand_random_steps_keep_the_account(void)
{
    static const pt_pool_class classes[] = {{24, 5, 3}, {300, 4, 0}};
    pt_pool *pool = memory_open_pool(&account, classes, 2, 3 * COST(300) + 2 * COST(24));
    uint8_t *lent[16] = {NULL};
    unsigned count = 0;
    for (unsigned step = 0; step < 10000; step++) {
        unsigned place = draw(16);
        if (lent[place] == NULL) {
            lent[place] = pt_pool_acquire(pool, 1 + draw(300));
            if (lent[place] != NULL) {
                count++;
                memset(lent[place], (int)place, pt_pool_buffer_size(lent[place]));
            }
        } else {
            uint32_t size = pt_pool_buffer_size(lent[place]);
            for (uint32_t at = 0; at < size; at++) {
                if (lent[place][at] != place) {
                    FAIL("a buffer was written to by another than its borrower");
                    break;
                }
            }
            pt_pool_release(pool, lent[place], size);
            lent[place] = NULL;
            count--;
        }
        if (draw(50) == 0)
            pt_pool_trim(pool);
        pt_pool_statistics counted;
        pt_pool_get_statistics(pool, &counted);
        PT_CHECK(pt_pool_check(pool));
        CHECK_EQUAL(counted.in_use, count);
        CHECK_EQUAL(counted.bytes, account.bytes);
        CHECK(counted.bytes <= counted.peak_bytes &&
              counted.peak_bytes <= 3 * COST(300) + 2 * COST(24));
    }
    for (unsigned place = 0; place < 16; place++) {
        if (lent[place] != NULL)
            pt_pool_release(
                pool, lent[place],
                300 < pt_pool_buffer_size(lent[place]) ? 300 : pt_pool_buffer_size(lent[place]));
    }
    memory_close_pool(pool, &account);
}

/* A share costs nothing of the budget, also one that was made as an ordinary buffer. */
static void a_free_buffer_that_becomes_a_share_leaves_the_budget(void)
{
    static const pt_pool_class classes[] = {{64, 4, 0}};
    pt_pool *pool = memory_open_pool(&account, classes, 1, 2 * COST(64));
    uint8_t *ordinary = pt_pool_acquire(pool, 64);
    REQUIRE(ordinary != NULL);
    pt_pool_release(pool, ordinary, 0);
    uint8_t *share = pt_pool_acquire_share(pool, 64);
    CHECK(share == ordinary && pt_pool_is_share(share));
    uint8_t *first = pt_pool_acquire(pool, 64);
    uint8_t *second = pt_pool_acquire(pool, 64);
    REQUIRE(first != NULL && second != NULL);
    CHECK(pt_pool_acquire(pool, 64) == NULL);
    pt_pool_release(pool, share, 0);
    pt_pool_release(pool, first, 0);
    pt_pool_release(pool, second, 0);
    CHECK_EQUAL(pt_pool_cleanup(pool), 0);
    memory_close_pool(pool, &account);
}

/* 100 contexts one after the other, each with a buffer out that comes back by another door later:
 * each has a door of its own, and so has whoever joins at the end. */
static void a_place_is_free_again_when_its_context_leaves(void)
{
#if PT_ATOMICS
    static const pt_pool_class classes[] = {{64, 200, 0}};
    pt_pool *pool = memory_open_pool(&account, classes, 1, 0);
    pt_pool *other = pt_pool_join(pool);
    uint8_t *out[100];
    for (int round = 0; round < 100; round++) {
        pt_pool *door = pt_pool_join(pool);
        CHECK(door != pool && door != other);
        out[round] = pt_pool_acquire(door, 64);
        REQUIRE(out[round] != NULL);
        pt_pool_leave(door);
    }
    for (int round = 0; round < 100; round++)
        CHECK_EQUAL(pt_pool_release(round % 2 ? pool : other, out[round], 64), PT_OK);
    pt_pool_leave(other);
    CHECK(pt_pool_join(pool) != pool);
    memory_close_pool(pool, &account);
#endif
}

/* What one door lends and another takes back is lent no more, by neither of them. */
static void a_return_is_counted_where_the_buffer_was_lent(void)
{
#if PT_ATOMICS && PT_POOL_COUNTS
    static const pt_pool_class classes[] = {{64, 8, 0}};
    pt_pool *pool = memory_open_pool(&account, classes, 1, 0);
    pt_pool *first = pt_pool_join(pool), *second = pt_pool_join(pool);
    for (int round = 0; round < 50; round++) {
        uint8_t *lent[3];
        for (int index = 0; index < 3; index++) {
            lent[index] = pt_pool_acquire(index == 2 ? pool : first, 64);
            REQUIRE(lent[index] != NULL);
        }
        for (int index = 0; index < 3; index++)
            CHECK_EQUAL(pt_pool_release(index == 1 ? pool : second, lent[index], 64), PT_OK);
    }
    uint8_t *own = pt_pool_acquire(second, 64);
    REQUIRE(own != NULL);
    pt_pool_class_statistics counted;
    pt_pool_get_class_statistics(pool, 0, &counted);
    CHECK_EQUAL(counted.acquires, 151);
    CHECK_EQUAL(counted.returns, 150);
    CHECK_EQUAL(counted.in_use, 1);
    CHECK_EQUAL(counted.high_water, 2 + 1 + 1); /* of the first, of all, of the second */
    CHECK_EQUAL(pt_pool_release(first, own, 0), PT_OK);
    pt_pool_leave(first);
    pt_pool_leave(second);
    memory_close_pool(pool, &account);
#endif
}

int main(void)
{
    RUN(a_size_is_served_by_the_smallest_class_that_holds_it);
    RUN(a_class_lends_its_capacity_and_no_other_steps_in);
    RUN(a_buffer_is_lent_with_zeros);
    RUN(the_budget_holds_over_all_classes);
    RUN(a_source_without_memory_changes_nothing);
    RUN(classes_that_make_no_sense_are_refused);
    RUN(a_class_keeps_no_more_than_it_may);
    RUN(the_table_is_not_touched_before_buffers_exist);
    RUN(ten_thousand_random_steps_keep_the_account);
    RUN(a_free_buffer_that_becomes_a_share_leaves_the_budget);
    RUN(a_place_is_free_again_when_its_context_leaves);
    RUN(a_return_is_counted_where_the_buffer_was_lent);
    return check_end();
}
