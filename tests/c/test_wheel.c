/* The timer wheel against a plain list of deadlines, over the wrap of the clock and beyond its
 * span. */
#include "pt_wheel.h"

#include "check.h"

#define TIMERS 40u

static pt_wheel wheel;
static pt_timer timers[TIMERS];

static void a_timer_expires_at_its_tick_and_not_before(void)
{
    static const uint32_t delays[] = {1,        2,        59,        63,        64,     65,
                                      4095,     4096,     4097,      262143,    262144, 16777215,
                                      16777216, 16777217, 100000000, 0x7FFFFFFF};
    static const uint32_t starts[] = {0, 1, 63, 0x00FFFFFF, 0xFFFFFFF0, 0x7FFFFFFF};
    for (size_t start = 0; start < sizeof starts / sizeof starts[0]; start++) {
        for (size_t index = 0; index < sizeof delays / sizeof delays[0]; index++) {
            uint32_t now = starts[start], deadline = now + delays[index];
            pt_wheel_init(&wheel, now);
            memset(timers, 0, sizeof timers[0]);
            pt_wheel_arm(&wheel, &timers[0], deadline);
            CHECK_EQUAL(pt_timer_is_armed(&timers[0]), 1);
            CHECK(pt_wheel_next(&wheel) <= delays[index]);
            pt_wheel_advance(&wheel, deadline - 1);
            CHECK(pt_wheel_expire(&wheel) == NULL);
            CHECK_EQUAL(pt_wheel_next(&wheel), 1);
            pt_wheel_advance(&wheel, deadline);
            CHECK_EQUAL(pt_wheel_next(&wheel), 0);
            CHECK(pt_wheel_expire(&wheel) == &timers[0]);
            CHECK(pt_wheel_expire(&wheel) == NULL);
            CHECK_EQUAL(pt_timer_is_armed(&timers[0]), 0);
            CHECK_EQUAL(pt_wheel_next(&wheel), UINT32_MAX);
        }
    }
}

static void equal_deadlines_expire_in_the_order_of_arming(void)
{
    memset(timers, 0, sizeof timers);
    pt_wheel_init(&wheel, 1000);
    for (uint32_t index = 0; index < TIMERS; index++)
        pt_wheel_arm(&wheel, &timers[(index * 7) % TIMERS], 1000 + 70000);
    pt_wheel_advance(&wheel, 1000 + 69000); /* they have moved to finer levels by now */
    pt_wheel_advance(&wheel, 1000 + 70001);
    for (uint32_t index = 0; index < TIMERS; index++)
        CHECK(pt_wheel_expire(&wheel) == &timers[(index * 7) % TIMERS]);
}

static void a_cancelled_timer_never_expires(void)
{
    memset(timers, 0, sizeof timers);
    pt_wheel_init(&wheel, 0);
    pt_wheel_cancel(&wheel, &timers[0]); /* not armed: nothing happens */
    for (uint32_t index = 0; index < 4; index++)
        pt_wheel_arm(&wheel, &timers[index], 100 + index / 2);
    pt_wheel_cancel(&wheel, &timers[1]);
    pt_wheel_advance(&wheel, 200);
    pt_wheel_cancel(&wheel, &timers[2]); /* due and not yet taken */
    CHECK(pt_wheel_expire(&wheel) == &timers[0]);
    CHECK(pt_wheel_expire(&wheel) == &timers[3]);
    CHECK(pt_wheel_expire(&wheel) == NULL);
    CHECK_EQUAL(wheel.armed_count, 0);
}

static void time_never_goes_back(void)
{
    memset(timers, 0, sizeof timers);
    pt_wheel_init(&wheel, 500);
    pt_wheel_arm(&wheel, &timers[0], 510);
    pt_wheel_advance(&wheel, 400);
    CHECK_EQUAL(wheel.now, 500);
    pt_wheel_arm(&wheel, &timers[1], 450); /* has passed: due at the next advance */
    pt_wheel_advance(&wheel, 500);
    CHECK(pt_wheel_expire(&wheel) == &timers[1]);
    CHECK(pt_wheel_expire(&wheel) == NULL);
    pt_wheel_cancel(&wheel, &timers[0]);
}

/* The earliest of a plain list, which is what the wheel must be like; TIMERS when none is due. */
static uint32_t earliest(const uint8_t *armed, const uint32_t *deadline, const uint32_t *order,
                         uint32_t now)
{
    uint32_t best = TIMERS;
    for (uint32_t index = 0; index < TIMERS; index++) {
        if (!armed[index] || (int32_t)(deadline[index] - now) > 0)
            continue;
        int32_t sooner = best == TIMERS ? -1 : (int32_t)(deadline[index] - deadline[best]);
        if (sooner < 0 || (sooner == 0 && order[index] < order[best]))
            best = index;
    }
    return best;
}

static void thirty_thousand_random_steps_are_those_of_a_plain_list(void)
{
    static uint8_t armed[TIMERS];
    static uint32_t deadline[TIMERS], order[TIMERS];
    uint32_t now = 0xFFFF0000, steps = 0, count = 0;
    memset(timers, 0, sizeof timers);
    pt_wheel_init(&wheel, now);
    for (unsigned round = 0; round < 30000; round++) {
        uint32_t index = draw(TIMERS);
        switch (draw(4)) {
        case 0:
        case 1: {
            uint32_t reach = 1u << draw(26);
            count += !armed[index];
            armed[index] = 1;
            order[index] = steps++;
            deadline[index] = now + 1 + draw(reach); /* a deadline that has passed takes its place
                                                        by the clock: tested above */
            pt_wheel_arm(&wheel, &timers[index], deadline[index]);
            break;
        }
        case 2:
            count -= armed[index];
            armed[index] = 0;
            pt_wheel_cancel(&wheel, &timers[index]);
            break;
        default: {
            uint32_t next = pt_wheel_next(&wheel);
            now += draw(2) ? draw(1u << draw(20)) : next != UINT32_MAX ? next : 1;
            pt_wheel_advance(&wheel, now);
            for (;;) {
                uint32_t expected = earliest(armed, deadline, order, now);
                pt_timer *timer = pt_wheel_expire(&wheel);
                if (!CHECK(timer == (expected == TIMERS ? NULL : &timers[expected])))
                    return;
                if (timer == NULL)
                    break;
                armed[expected] = 0;
                count--;
            }
        }
        }
        CHECK_EQUAL(wheel.armed_count, count);
    }
}

int main(void)
{
    RUN(a_timer_expires_at_its_tick_and_not_before);
    RUN(equal_deadlines_expire_in_the_order_of_arming);
    RUN(a_cancelled_timer_never_expires);
    RUN(time_never_goes_back);
    RUN(thirty_thousand_random_steps_are_those_of_a_plain_list);
    return check_end();
}
