/* The pool on one thread: classes, capacities, budget, account. Threads are in pool_threads.c,
 * mistakes of its users in pool_twice.c. */
#include "check.h"
#include "memory.h"

#define COST(size) ((size) + 16u) /* of one buffer */

static memory_account account;

static void a_size_is_served_by_the_smallest_class_that_holds_it(void)
{
    static const pt_pool_class classes[] = {{16, 4}, {100, 4}, {1040, 4}};
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
    static const pt_pool_class classes[] = {{64, 3}, {128, 1}};
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
    static const pt_pool_class classes[] = {{64, 1}};
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
    static const pt_pool_class classes[] = {{64, 8}, {256, 8}};
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
    static const pt_pool_class classes[] = {{64, 2}};
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
    static const pt_pool_class good[] = {{16, 1}, {32, 65535}};
    static const pt_pool_class falling[] = {{32, 1}, {16, 1}};
    static const pt_pool_class equal[] = {{16, 1}, {16, 1}};
    static const pt_pool_class empty[] = {{0, 1}};
    static const pt_pool_class none[] = {{16, 0}};
    static const pt_pool_class many[] = {{16, 65536}};
    static const pt_pool_class huge[] = {{UINT32_MAX, 1}};
    static const pt_pool_class nine[] = {{1, 1}, {2, 1}, {3, 1}, {4, 1}, {5, 1},
                                         {6, 1}, {7, 1}, {8, 1}, {9, 1}};
    CHECK(pt_pool_size(good, 2) > 65536 * sizeof(void *));
    CHECK_EQUAL(pt_pool_size(falling, 2), 0);
    CHECK_EQUAL(pt_pool_size(equal, 2), 0);
    CHECK_EQUAL(pt_pool_size(empty, 1), 0);
    CHECK_EQUAL(pt_pool_size(none, 1), 0);
    CHECK_EQUAL(pt_pool_size(many, 1), 0);
    CHECK_EQUAL(pt_pool_size(huge, 1), 0);
    CHECK(pt_pool_size(nine, 8) > 0);
    CHECK_EQUAL(pt_pool_size(nine, 9), 0);
    CHECK_EQUAL(pt_pool_size(good, 0), 0);
    CHECK_EQUAL(pt_pool_size(NULL, 1), 0);
}

static void ten_thousand_random_steps_keep_the_account(void)
{
    static const pt_pool_class classes[] = {{24, 5}, {300, 4}};
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
    static const pt_pool_class classes[] = {{64, 4}};
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

int main(void)
{
    RUN(a_size_is_served_by_the_smallest_class_that_holds_it);
    RUN(a_class_lends_its_capacity_and_no_other_steps_in);
    RUN(a_buffer_is_lent_with_zeros);
    RUN(the_budget_holds_over_all_classes);
    RUN(a_source_without_memory_changes_nothing);
    RUN(classes_that_make_no_sense_are_refused);
    RUN(ten_thousand_random_steps_keep_the_account);
    RUN(a_free_buffer_that_becomes_a_share_leaves_the_budget);
    return check_end();
}
