/* Timer wheel: deadlines in ticks, O(1) to arm and to cancel, whatever their number.
 *
 * Four levels of 64 slots; level n is 64^n ticks a slot, so the wheel spans 2^24 ticks (4.6 hours
 * of milliseconds). A deadline beyond the next multiple of that waits apart and is placed when it
 * comes. Time is a 32-bit count of ticks that may wrap; deadlines lie less than 2^31 ticks ahead,
 * and what is due is taken within as many. The caller says what a tick is (POSIX: 1 ms, classic
 * worlds: 1/60 s). Used by one thread; a wheel must not move while a timer is armed.
 *
 * Idea: G. Varghese, T. Lauck, "Hashed and Hierarchical Timing Wheels" (1987), scheme 7.
 */
#ifndef PT_WHEEL_H
#define PT_WHEEL_H

#include <stdint.h>

#include "pt_config.h"

/* One deadline, embedded in what it belongs to; must not move while armed. Zeroed memory is a timer
 * that is not armed. */
typedef struct pt_timer pt_timer;
struct pt_timer {
    pt_timer *next;
    pt_timer **place; /* what points at this timer; NULL when not armed */
    uint32_t deadline;
    uint32_t tag;  /* the caller's, untouched */
    uint32_t kind; /* the caller's, untouched */
};

typedef struct pt_wheel {
    pt_timer *slots[PT_WHEEL_SLOTS];
    uint64_t occupied[PT_WHEEL_LEVELS]; /* a bit for each slot that holds a timer */
    pt_timer *due;      /* expired and not yet taken: by deadline, then in the order of arming */
    pt_timer **due_end; /* what points behind the last of them */
    uint32_t now;
    uint32_t armed_count; /* due ones included */
} pt_wheel;

/* Make an empty wheel in the caller's memory; now: the tick at the start. */
void pt_wheel_init(pt_wheel *wheel, uint32_t now);

/* Expire at deadline (a tick count; one that has passed expires at the next advance). Re-arming
 * moves the timer. O(1). */
void pt_wheel_arm(pt_wheel *wheel, pt_timer *timer, uint32_t deadline);

/* Never expire. Nothing happens when the timer is not armed. O(1). */
void pt_wheel_cancel(pt_wheel *wheel, pt_timer *timer);

/* 1 when armed (or due and not yet taken), else 0. */
int pt_timer_is_armed(const pt_timer *timer);

/* Move time forward to now (never backward: an earlier now changes nothing). The cost is that of
 * the slots on the way that hold timers: empty ones are jumped over. */
void pt_wheel_advance(pt_wheel *wheel, uint32_t now);

/* Take one timer whose deadline has come, earliest first (of equal ones the one armed first),
 * disarmed; NULL when none is due. O(1). */
pt_timer *pt_wheel_expire(pt_wheel *wheel);

/* Ticks from the wheel's now to the moment when pt_wheel_advance() has work: 0 when a timer is due,
 * UINT32_MAX when none is armed. Never later than the next deadline; may be earlier, when timers
 * have to move to a finer level. O(1). */
uint32_t pt_wheel_next(const pt_wheel *wheel);

#endif
