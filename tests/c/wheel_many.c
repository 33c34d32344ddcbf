/* A million timers of a coarse wheel: 2 s a tick, up to 30 days ahead, over the wrap of the clock.
 *
 * usage: wheel_many TIMERS. Exit status 0; or a line that says what went wrong, and 1.
 */
#include <stdio.h>
#include <stdlib.h>

#include "pt_wheel.h"

#define REACH (30u * 24 * 60 * 60 / 2) /* ticks */
#define START (UINT32_MAX - REACH / 3) /* the clock wraps after ten days */
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("line %d: not so: %s\n", __LINE__, #condition);                                 \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* The next of a sequence by chance (xorshift). */
static uint32_t next(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    return *state ^= *state << 5;
}

static void arm(pt_wheel *wheel, pt_timer *timer, uint32_t delay)
{
    timer->kind = delay;
    pt_wheel_arm(wheel, timer, START + delay);
}

/* Arm all; cancel a third, and arm half of these anew; move a tenth. Returns how many are armed. */
static uint32_t fill(pt_wheel *wheel, pt_timer *timers, uint32_t count)
{
    uint32_t chance = 1, armed = count;
    for (uint32_t index = 0; index < count; index++)
        arm(wheel, &timers[index], next(&chance) % REACH + 1);
    for (uint32_t index = 0; index < count; index += 3) {
        pt_wheel_cancel(wheel, &timers[index]);
        CHECK(!pt_timer_is_armed(&timers[index]));
        if (index % 2 == 0)
            arm(wheel, &timers[index], next(&chance) % REACH + 1);
        else
            armed--;
    }
    for (uint32_t index = 1; index < count; index += 10) {
        if (pt_timer_is_armed(&timers[index]))
            arm(wheel, &timers[index], next(&chance) % REACH + 1);
    }
    return armed;
}

int main(int argc, char **argv)
{
    static pt_wheel wheel;
    uint32_t chance = 2, elapsed = 0;
    CHECK(argc == 2);
    uint32_t count = (uint32_t)strtoul(argv[1], NULL, 10);
    pt_timer *timers = calloc(count, sizeof *timers);
    CHECK(count != 0 && timers != NULL);
    pt_wheel_init(&wheel, START);
    uint32_t armed = fill(&wheel, timers, count);
    CHECK(wheel.armed_count == armed);

    while (elapsed < REACH) {
        uint32_t before = elapsed, last = 0;
        elapsed += next(&chance) % 3000 + 1;
        pt_wheel_advance(&wheel, START + elapsed);
        pt_timer *timer;
        while ((timer = pt_wheel_expire(&wheel)) != NULL) {
            CHECK(timer->kind > before);   /* else it comes late */
            CHECK(timer->kind <= elapsed); /* else early */
            CHECK(timer->kind >= last);
            last = timer->kind;
            armed--;
        }
        CHECK(wheel.armed_count == armed);
    }
    CHECK(armed == 0);
    CHECK(pt_wheel_next(&wheel) == UINT32_MAX);
    free(timers);
    return 0;
}
