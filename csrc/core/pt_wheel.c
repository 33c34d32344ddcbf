/* How the wheel works.
 *
 * A deadline has four digits of six bits. A timer lies in the level of the highest digit in which
 * its deadline differs from now, in the slot that this digit names. This place depends on deadline
 * and now alone, so equal deadlines always share a slot, and it follows that
 *
 *   - every timer of a level comes before every timer of the levels above it, and within a level
 * slots come in order: the nearest slot is the first bit of the lowest level that has one;
 *   - a slot need not be looked at before now reaches its start; then its timers move to finer
 * levels, where all slots are empty;
 *   - advance() may jump from one occupied slot to the next.
 *
 * Two slots are special. Level 0, the digit of now: what was armed with a deadline that has come or
 * passed. Level 3, slot 0: what lies beyond the next multiple of 2^24 ticks, and is placed again
 * when that comes.
 *
 * New timers go to the front of their slot's list, so a slot is read backwards to keep the order of
 * arming.
 */
#include "pt_wheel.h"

#include <stddef.h>
#include <string.h>

#include "pt_assert.h"
#include "pt_check.h"

#define DIGIT_BITS 6u
#define DIGIT_MASK 63u
#define SPAN_BITS  24u

_Static_assert(PT_WHEEL_LEVEL_SLOTS == DIGIT_MASK + 1, "a digit counts the slots of a level");
_Static_assert(PT_WHEEL_LEVELS *DIGIT_BITS == SPAN_BITS, "a level for each digit");
_Static_assert(offsetof(pt_timer, next) == 0, "what points at the end of a list is the last timer");

static inline uint32_t lowest_bit(uint64_t bits)
{
    return (uint32_t)__builtin_ctzll(bits);
}

/* The clock wraps, so only the difference tells which is first. */
static inline int is_before(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

/* The slot in which a timer with this deadline belongs now. */
static uint32_t slot_of(uint32_t deadline, uint32_t now)
{
    if (!is_before(now, deadline))
        return now & DIGIT_MASK;
    uint32_t difference = deadline ^ now;
    if (difference >> SPAN_BITS != 0)
        return (PT_WHEEL_LEVELS - 1) * PT_WHEEL_LEVEL_SLOTS;
    PT_ASSERT(difference != 0); /* it has no highest bit */
    uint32_t level = (31u - (uint32_t)__builtin_clz(difference)) / DIGIT_BITS;
    PT_ASSERT(level < PT_WHEEL_LEVELS);
    return level * PT_WHEEL_LEVEL_SLOTS + ((deadline >> (level * DIGIT_BITS)) & DIGIT_MASK);
}

static void put_into_slot(pt_wheel *wheel, pt_timer *timer)
{
    uint32_t slot = slot_of(timer->deadline, wheel->now);
    PT_ASSERT(slot < PT_WHEEL_SLOTS);
    pt_timer **place = &wheel->slots[slot];
    timer->next = *place;
    timer->place = place;
    if (timer->next != NULL)
        timer->next->place = &timer->next;
    *place = timer;
    wheel->occupied[slot / PT_WHEEL_LEVEL_SLOTS] |= (uint64_t)1 << (slot & DIGIT_MASK);
}

/* Behind the last due timer that does not come after it: nearly always the last of all. */
static void put_into_due(pt_wheel *wheel, pt_timer *timer)
{
    PT_ASSERT(*wheel->due_end == NULL);
    PT_ASSERT(!is_before(wheel->now, timer->deadline));

    pt_timer **place = wheel->due_end;
    if (wheel->due != NULL && is_before(timer->deadline, ((pt_timer *)(void *)place)->deadline)) {
        place = &wheel->due;
        while (!is_before(timer->deadline, (*place)->deadline))
            place = &(*place)->next;
    }
    timer->next = *place;
    timer->place = place;
    *place = timer;
    if (timer->next != NULL)
        timer->next->place = &timer->next;
    else
        wheel->due_end = &timer->next;
}

/* Ticks from now to the start of the nearest occupied slot, and its level; UINT32_MAX when all are
 * empty. */
static uint32_t nearest_slot(const pt_wheel *wheel, uint32_t *level)
{
    uint32_t here = wheel->now & DIGIT_MASK;
    uint64_t occupied = wheel->occupied[0];
    *level = 0;
    if (occupied != 0) {
        PT_ASSERT(occupied >> here != 0);
        return lowest_bit(occupied >> here);
    }
    for (uint32_t above = 1; above < PT_WHEEL_LEVELS; above++) {
        occupied = wheel->occupied[above];
        if (occupied == 0)
            continue;
        uint32_t shift = above * DIGIT_BITS;
        uint32_t digit = (wheel->now >> shift) & DIGIT_MASK;
        uint64_t ahead = digit < DIGIT_MASK ? occupied >> (digit + 1) : 0;
        uint32_t steps =
            ahead != 0 ? lowest_bit(ahead) + 1
                       : PT_WHEEL_LEVEL_SLOTS - digit; /* none ahead: what lies beyond the span */
        PT_ASSERT(ahead != 0 || (above == PT_WHEEL_LEVELS - 1 && occupied == 1));
        *level = above;
        return (((wheel->now >> shift) + steps) << shift) - wheel->now;
    }
    return UINT32_MAX;
}

/* now has reached the start of this slot: its timers are due, or move to a finer level. */
static void open_slot(pt_wheel *wheel, uint32_t level)
{
    PT_ASSERT(level < PT_WHEEL_LEVELS);
    PT_ASSERT((wheel->now & ((1u << (level * DIGIT_BITS)) - 1)) == 0);

    uint32_t digit = (wheel->now >> (level * DIGIT_BITS)) & DIGIT_MASK;
    pt_timer **place = &wheel->slots[level * PT_WHEEL_LEVEL_SLOTS + digit];
    pt_timer *oldest = NULL;
    for (pt_timer *timer = *place, *next; timer != NULL; timer = next) {
        next = timer->next;
        timer->next = oldest;
        oldest = timer;
    }
    *place = NULL;
    wheel->occupied[level] &= ~((uint64_t)1 << digit);
    for (pt_timer *timer = oldest, *next; timer != NULL; timer = next) {
        next = timer->next;
        PT_ASSERT(level != 0 || !is_before(wheel->now, timer->deadline));
        if (is_before(wheel->now, timer->deadline))
            put_into_slot(wheel, timer);
        else
            put_into_due(wheel, timer);
    }
}

void pt_wheel_init(pt_wheel *wheel, uint32_t now)
{
    memset(wheel, 0, sizeof *wheel);
    wheel->due_end = &wheel->due;
    wheel->now = now;
}

void pt_wheel_arm(pt_wheel *wheel, pt_timer *timer, uint32_t deadline)
{
    pt_wheel_cancel(wheel, timer);
    PT_ASSERT(timer->place == NULL && timer->next == NULL);
    timer->deadline = deadline;
    put_into_slot(wheel, timer);
    wheel->armed_count++;
    PT_ASSERT(*timer->place == timer && wheel->armed_count != 0);
}

void pt_wheel_cancel(pt_wheel *wheel, pt_timer *timer)
{
    if (timer->place == NULL)
        return;
    PT_ASSERT(*timer->place == timer);
    PT_ASSERT(wheel->armed_count > 0);

    pt_timer **place = timer->place;
    *place = timer->next;
    if (timer->next != NULL) {
        timer->next->place = place;
    } else if (wheel->due_end == &timer->next) {
        wheel->due_end = place;
    } else {
        uintptr_t offset = (uintptr_t)place - (uintptr_t)wheel->slots;
        if (offset < sizeof wheel->slots) { /* it was alone */
            uint32_t slot = (uint32_t)(offset / (sizeof wheel->slots / PT_WHEEL_SLOTS));
            wheel->occupied[slot / PT_WHEEL_LEVEL_SLOTS] &= ~((uint64_t)1 << (slot & DIGIT_MASK));
        }
    }
    timer->next = NULL;
    timer->place = NULL;
    wheel->armed_count--;
}

int pt_timer_is_armed(const pt_timer *timer)
{
    return timer->place != NULL;
}

void pt_wheel_advance(pt_wheel *wheel, uint32_t now)
{
    if (is_before(now, wheel->now))
        return;
    for (;;) {
        uint32_t level;
        uint32_t ticks = nearest_slot(wheel, &level);
        if (ticks >
            now - wheel->now) /* also when all slots are empty: now - wheel->now is below 2^31 */
            break;
        wheel->now += ticks;
        open_slot(wheel, level);
    }
    wheel->now = now;
}

pt_timer *pt_wheel_expire(pt_wheel *wheel)
{
    pt_timer *timer = wheel->due;
    PT_ASSERT(timer == NULL || timer->place == &wheel->due);
    PT_ASSERT(timer == NULL || !is_before(wheel->now, timer->deadline));
    if (timer != NULL)
        pt_wheel_cancel(wheel, timer);
    return timer;
}

uint32_t pt_wheel_next(const pt_wheel *wheel)
{
    PT_ASSERT(wheel->due == NULL || wheel->armed_count != 0);

    uint32_t level;
    return wheel->due != NULL ? 0 : nearest_slot(wheel, &level);
}

#if PT_ASSERTIONS
static uint32_t count_timers(const pt_timer *const *place)
{
    uint32_t count = 0;
    for (const pt_timer *timer = *place; timer != NULL; timer = *place) {
        PT_ASSERT((const pt_timer *const *)timer->place == place);
        PT_ASSERT(timer->next != timer);
        place = (const pt_timer *const *)&timer->next;
        count++;
    }
    return count;
}

void pt_wheel_check(const pt_wheel *wheel)
{
    int is_few = wheel->armed_count <= PT_CHECK_TIMERS;
    uint32_t count = 0;
    for (uint32_t slot = 0; slot < PT_WHEEL_SLOTS; slot++) {
        uint64_t bit = wheel->occupied[slot / PT_WHEEL_LEVEL_SLOTS] >> (slot & DIGIT_MASK) & 1;
        PT_ASSERT((wheel->slots[slot] != NULL) == (bit != 0));
        if (is_few && bit != 0)
            count += count_timers((const pt_timer *const *)&wheel->slots[slot]);
    }
    PT_ASSERT((wheel->due == NULL) == (wheel->due_end == &wheel->due));
    PT_ASSERT(*wheel->due_end == NULL);
    PT_ASSERT(wheel->due == NULL || wheel->armed_count != 0);
    if (is_few)
        PT_ASSERT(count + count_timers((const pt_timer *const *)&wheel->due) == wheel->armed_count);
}
#endif
