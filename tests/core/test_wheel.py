"""The timer wheel against a plain sorted list of deadlines."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

TICKS = 2**32

starts = st.one_of(
    st.sampled_from(
        [0, 1, 63, 64, 2**24 - 1, 2**24, 2**31 - 2, TICKS - 1, TICKS - 70, TICKS - 2**24]
    ),
    st.integers(0, TICKS - 1),
)
edges = st.builds(lambda power, off: max(0, 64**power + off), st.integers(0, 4), st.integers(-2, 2))
delays = st.one_of(st.integers(0, 70), edges, st.integers(0, 2**20), st.integers(2**24, 2**31 - 1))


def drain(wheel):
    """All keys that are due, in order."""
    keys = []
    while (key := wheel.expire()) is not None:
        keys.append(key)
    return keys


class WheelModel(RuleBasedStateMachine):
    """Arming, cancelling and time in any order. Inside, time never wraps."""

    def __init__(self, core):
        super().__init__()
        self.core = core
        self.order = 0
        self.armed = {}  # key -> (deadline, order)
        self.due = []

    @initialize(now=starts)
    def make(self, now):
        self.now = now
        self.wheel = self.core.TimerWheel(now)

    @rule(key=st.integers(0, 7), delay=delays)
    def arm(self, key, delay):
        self.disarm(key)
        self.order += 1
        self.armed[key] = (self.now + delay, self.order)
        self.wheel.arm(key, (self.now + delay) % TICKS)

    @rule(key=st.integers(0, 7), late=st.integers(0, 200))
    def arm_for_the_past(self, key, late):
        self.arm(key, -late)

    @rule(key=st.integers(0, 7))
    def cancel(self, key):
        self.disarm(key)
        self.wheel.cancel(key)

    def disarm(self, key):
        self.armed.pop(key, None)
        self.due = [each for each in self.due if each[2] != key]

    @rule(ticks=st.one_of(st.integers(0, 70), edges, st.integers(0, 2**20)))
    def advance(self, ticks):
        self.now += ticks
        self.wheel.advance(self.now % TICKS)
        self.due += [(*entry, key) for key, entry in self.armed.items() if entry[0] <= self.now]
        self.due.sort()
        for entry in self.due:
            self.armed.pop(entry[2], None)

    @rule(ticks=st.integers(2**20, 2**30))
    def advance_far(self, ticks):
        self.expire_all()  # what is due is taken within 2^31 ticks
        self.advance(ticks)

    @rule(ticks=st.integers(1, 1000))
    def advance_backwards(self, ticks):
        self.wheel.advance((self.now - ticks) % TICKS)

    @precondition(lambda self: self.armed)
    @rule()
    def advance_to_next_deadline(self):
        self.expire_all()
        self.advance(max(0, min(self.armed.values(), default=(self.now,))[0] - self.now))

    @rule()
    def expire_one(self):
        assert self.wheel.expire() == (self.due.pop(0)[2] if self.due else None)

    @rule()
    def expire_all(self):
        assert drain(self.wheel) == [key for _, _, key in self.due]
        self.due = []

    @rule()
    def look(self):
        assert self.wheel.armed == len(self.armed) + len(self.due)
        ticks = self.wheel.next()
        if self.due:
            assert ticks == 0
        elif self.armed:
            assert 0 <= ticks <= max(0, min(self.armed.values())[0] - self.now)
        else:
            assert ticks is None

    def teardown(self):
        if hasattr(self, "wheel"):
            self.look()
            self.expire_all()


def test_the_wheel_does_what_a_sorted_list_does(core):
    """Digits, levels and wrapping must not show: a time-out comes at its tick, once, in order."""
    run_state_machine_as_test(
        lambda: WheelModel(core),
        settings=settings(stateful_step_count=50),
    )


@given(
    now=starts,
    delays=st.lists(st.one_of(delays, st.integers(0, 2**31 - 1)), min_size=1, max_size=20),
)
def test_whoever_sleeps_for_next_meets_every_deadline_on_time(core, now, delays):
    """A loop sleeps exactly so long: later would make time-outs late, and 0 without work would make
    it spin."""
    wheel = core.TimerWheel(now)
    for key, delay in enumerate(delays):
        wheel.arm(key, (now + delay) % TICKS)
    elapsed, met = 0, []
    for _ in range(len(delays) * 4 + 2**31 // 2**24 + 1):
        ticks = wheel.next()
        if ticks is None:
            break
        elapsed += ticks
        wheel.advance((now + elapsed) % TICKS)
        met += [(elapsed, key) for key in drain(wheel)]
    assert met == sorted((delay, key) for key, delay in enumerate(delays))


def test_equal_deadlines_expire_in_the_order_of_arming(core):
    """Also when some were armed from far away and some at the last moment, and when one was armed
    again."""
    wheel = core.TimerWheel(0)
    wheel.arm(1, 5000)
    wheel.arm(2, 5000)
    wheel.advance(4990)
    wheel.arm(3, 5000)
    wheel.arm(1, 5000)
    wheel.advance(5000)
    assert drain(wheel) == [2, 3, 1]


def test_a_deadline_that_has_passed_expires_at_the_next_advance_and_not_before(core):
    """So a timer that is armed again with no delay cannot keep its own turn from ending."""
    wheel = core.TimerWheel(100)
    wheel.arm(1, 100)
    wheel.arm(2, 90)
    assert wheel.expire() is None
    assert wheel.next() == 0
    wheel.advance(99)
    assert wheel.expire() is None
    wheel.advance(100)
    assert drain(wheel) == [2, 1]


def test_a_late_deadline_goes_before_those_that_are_already_due(core):
    """Order is by deadline, not by the call that made it due."""
    wheel = core.TimerWheel(0)
    wheel.arm(1, 10)
    wheel.arm(2, 20)
    wheel.advance(20)
    wheel.arm(3, 15)
    wheel.arm(4, 10)
    wheel.advance(20)
    assert drain(wheel) == [1, 4, 3, 2]


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_due_timer_can_be_cancelled_or_armed_again(core, taken):
    """A link closes in the very turn in which its time-out came: the time-out must not follow."""
    wheel = core.TimerWheel(0)
    for key in range(3):
        wheel.arm(key, 5)
    wheel.advance(5)
    wheel.cancel(taken)
    assert wheel.armed == 2
    wheel.arm(taken, 9)
    wheel.advance(9)
    assert drain(wheel) == [key for key in range(3) if key != taken] + [taken]
    assert (wheel.armed, wheel.next()) == (0, None)


def test_timers_survive_the_end_of_the_clock(core):
    """2^32 milliseconds are 50 days: a node that runs so long must not lose or flood its timers."""
    wheel = core.TimerWheel(TICKS - 1000)
    wheel.arm(1, TICKS - 1)
    wheel.arm(2, 0)
    wheel.arm(3, 5000)
    wheel.advance(TICKS - 1)
    assert drain(wheel) == [1]
    wheel.advance(0)
    assert drain(wheel) == [2]
    wheel.advance(4999)
    assert drain(wheel) == []
    wheel.advance(5000)
    assert drain(wheel) == [3]


def test_a_long_sleep_is_not_counted_tick_by_tick(core):
    """A laptop wakes up after days: 2^30 ticks with few timers, many times over, must pass as
    nothing (the test's time-out is the judge)."""
    now = 0
    wheel = core.TimerWheel(now)
    for turn in range(300):
        wheel.arm(1, (now + 2**30 - 1) % TICKS)
        wheel.arm(2, (now + 12_345) % TICKS)
        now += 2**30
        wheel.advance(now % TICKS)
        assert drain(wheel) == [2, 1], turn


def test_many_timers_in_one_slot_leave_in_order(core, rounds):
    """A thousand links that went silent together expire together, each once."""
    count = rounds(2_000, 200_000)
    wheel = core.TimerWheel(7)
    for key in range(count):
        wheel.arm(key, 7 + 30_000 + key % 3)
    for key in range(0, count, 5):
        wheel.cancel(key)
    wheel.advance(7 + 30_002)
    left = [key for key in range(count) if key % 5]
    assert drain(wheel) == sorted(left, key=lambda key: key % 3)


# A coarse wheel: a tick of 2 s, for time-outs of many connections. 1,024 ticks, 2,048 s, are all
# that a wheel of one level with as many places can count; here nothing ends there.

COARSE = 2.0
"""Seconds a tick."""
MONTH = 30 * 24 * 60 * 60


class Coarse:
    """Time-outs in seconds on a wheel of such ticks: the deadline is rounded up to a tick, and time
    down, so that nothing is early."""

    def __init__(self, core, started):
        self.wheel = core.TimerWheel(self.ticks(started))
        self.now = started

    @staticmethod
    def ticks(seconds):
        return int(seconds // COARSE) % TICKS

    def arm(self, key, seconds):
        self.wheel.arm(key, -int(-(self.now + seconds) // COARSE) % TICKS)

    def advance(self, seconds):
        self.now += seconds
        self.wheel.advance(self.ticks(self.now))
        return drain(self.wheel)


@pytest.mark.parametrize(
    "seconds", [0, 0.5, 1.99, 2, 3, 126, 128, 2046, 2047.9, 2048, 2048.1, 2050, 4096, 8192, MONTH]
)
@pytest.mark.parametrize("started", [0, 1.5, 2047, 2048, 2 * (TICKS - 1025), 2 * (TICKS - 3) + 0.5])
def test_a_coarse_timeout_is_never_early_and_at_most_a_tick_late(core, started, seconds):
    """Also at and beyond 2,048 s, where a wheel of 1,024 places has come round, and for 30 days."""
    coarse = Coarse(core, started)
    coarse.arm(1, seconds)
    due = started + seconds
    expired = coarse.advance(max(0, int(seconds // COARSE) - 1) * COARSE)
    while not expired and coarse.now < due + 2 * COARSE:
        expired = coarse.advance(COARSE / 4)
    assert expired == [1] and coarse.wheel.armed == 0
    assert due <= coarse.now <= due + COARSE


delays_in_seconds = st.one_of(
    st.floats(0, 10),
    st.sampled_from([2046.0, 2047.0, 2048.0, 2049.0, 4096.0, float(MONTH)]),
    st.floats(0, MONTH),
)


class CoarseModel(RuleBasedStateMachine):
    """Time-outs in seconds against a list of when they are due."""

    def __init__(self, core):
        super().__init__()
        self.core = core
        self.due = {}

    @initialize(started=st.sampled_from([0.0, 1.0, 2.0 * (TICKS - 1024), 2.0 * TICKS - 0.5]))
    def make(self, started):
        self.coarse = Coarse(self.core, started)

    @rule(key=st.integers(0, 7), seconds=delays_in_seconds)
    def arm(self, key, seconds):
        self.coarse.arm(key, seconds)
        self.due[key] = self.coarse.now + seconds

    @rule(key=st.integers(0, 7))
    def cancel(self, key):
        self.coarse.wheel.cancel(key)
        self.due.pop(key, None)

    @rule(seconds=delays_in_seconds)
    def advance(self, seconds):
        expired = self.coarse.advance(seconds)
        now = self.coarse.now
        when = [self.due.pop(key) for key in expired]
        assert all(each <= now for each in when), "early"
        assert all(each > now - COARSE for each in self.due.values()), "later than a tick"
        ticks = [-int(-each // COARSE) for each in when]
        assert ticks == sorted(ticks)

    def teardown(self):
        if hasattr(self, "coarse"):
            self.advance(2.0 * MONTH)
            assert self.due == {} and self.coarse.wheel.armed == 0


def test_coarse_timeouts_do_what_a_list_of_due_times_does(core):
    """Moved, cancelled, and met by steps of any length, over the wrap of the clock."""
    run_state_machine_as_test(lambda: CoarseModel(core), settings=settings(stateful_step_count=40))
