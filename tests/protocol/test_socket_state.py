"""What is known of a socket between who waits and who watches: no wake-up is lost, and none comes
twice."""

from __future__ import annotations

import functools
import sys
import threading

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from peertalk.protocol.socket_state import (
    AsyncSocketHandler,
    AsyncSocketState,
    SocketInterest,
)

NONE, READABLE, WRITABLE, BOTH = (
    SocketInterest.NONE,
    SocketInterest.READABLE,
    SocketInterest.WRITABLE,
    SocketInterest.READ_WRITE,
)


class Waker:
    """Counts how often it was called."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1


def waiting(interest):
    """A state that somebody waits on, and his waker."""
    state, waker = AsyncSocketState(), Waker()
    state.set_waker(interest, waker)
    assert waker.calls == 0
    return state, waker


def test_a_new_state_knows_nothing():
    """Nobody has said that a try may succeed."""
    state = AsyncSocketState()
    assert not (state.readable or state.writable or state.hung_up)
    assert not (state.timed_out or state.closed)
    assert state.take_error() is None and not state.waits(BOTH)


def test_interests_are_what_the_loop_watches_for():
    """They go to the core as numbers."""
    assert (int(NONE), int(READABLE), int(WRITABLE)) == (0, 1, 2)
    assert BOTH == READABLE | WRITABLE


@pytest.mark.parametrize("interest", [READABLE, WRITABLE, BOTH])
@pytest.mark.parametrize("event", ["readable", "writable"])
def test_a_direction_wakes_whoever_waits_for_it_once(interest, event):
    """And nobody else."""
    state, waker = waiting(interest)
    wanted = interest & (READABLE if event == "readable" else WRITABLE)
    for _ in range(3):
        getattr(state, f"set_{event}")()
    assert waker.calls == bool(wanted)
    assert (state.readable, state.writable) == (event == "readable", event == "writable")
    assert state.waits(BOTH) == (interest & ~wanted != 0)


@pytest.mark.parametrize("event", ["set_timed_out", "set_closed", "set_error"])
def test_what_ends_all_waiting_wakes_both_sides(event):
    """A writer waits for no room that nobody gives any more."""
    state, reader, writer = AsyncSocketState(), Waker(), Waker()
    state.set_waker(READABLE, reader)
    state.set_waker(WRITABLE, writer)
    arguments = (OSError("broken"),) if event == "set_error" else ()
    for _ in range(2):
        getattr(state, event)(*arguments)
        assert (reader.calls, writer.calls) == (1, 1)
    assert not state.waits(BOTH)
    late = Waker()
    for interest in (READABLE, WRITABLE):
        state.set_waker(interest, late)
    assert late.calls == 2 and not state.waits(BOTH)


def test_a_flag_that_came_between_the_try_and_the_waker_wakes_at_once():
    """Else the wake-up that came meanwhile is lost, and the task sleeps for ever."""
    state, waker = AsyncSocketState(), Waker()
    state.readable = False  # a try has said "not now"
    state.set_readable()
    state.set_waker(WRITABLE, waker)
    assert waker.calls == 0
    state.set_waker(READABLE, waker)
    assert waker.calls == 1 and not state.waits(READABLE)
    state.readable = False
    state.set_waker(READABLE, waker)
    assert waker.calls == 1 and state.waits(READABLE)


def test_the_last_waker_of_a_direction_is_the_one_that_is_called():
    """Who waits anew has given up the wait before; the other direction is another's."""
    state, first, second, other = AsyncSocketState(), Waker(), Waker(), Waker()
    state.set_waker(BOTH, first)
    state.set_waker(WRITABLE, other)
    state.set_waker(READABLE, second)
    state.set_readable()
    assert (first.calls, second.calls, other.calls) == (0, 1, 0)
    state.set_writable()
    assert (first.calls, second.calls, other.calls) == (0, 1, 1)


def test_one_waker_for_both_directions_is_called_for_each():
    """The first does not use up the second: who waits for both tries both."""
    state, waker = waiting(BOTH)
    state.set_readable()
    state.set_writable()
    assert waker.calls == 2


def test_a_waker_that_was_dropped_is_not_called():
    """A task that was cancelled; whoever took its place stays."""
    state, gone, stays = AsyncSocketState(), Waker(), Waker()
    state.set_waker(READABLE, stays)
    state.set_waker(WRITABLE, gone)
    state.drop_waker(gone)
    state.drop_waker(gone)
    assert state.waits(READABLE) and not state.waits(WRITABLE)
    state.set_closed()
    assert (gone.calls, stays.calls) == (0, 1)


def test_a_bound_method_is_dropped_though_it_is_another_object_each_time():
    """Wakers are methods of what waits."""

    class Task:
        woken = 0

        def tell(self):
            self.woken += 1

    state, task, twin = AsyncSocketState(), Task(), Task()
    state.set_waker(READABLE, task.tell)
    state.drop_waker(twin.tell)
    assert state.waits(READABLE)
    state.drop_waker(task.tell)
    state.set_readable()
    assert task.woken == 0


def test_an_error_is_told_once_and_the_first_is_the_one():
    """What comes after it is only what follows from it."""
    state = AsyncSocketState()
    first = OSError("first")
    state.set_error(first)
    state.set_error(OSError("second"))
    assert state.take_error() is first
    assert state.take_error() is None
    waker = Waker()
    state.set_waker(READABLE, waker)
    assert waker.calls == 0


def test_a_waker_may_wait_again_at_once():
    """A task that goes on inside its wake-up tries, is told "not now", and waits anew."""
    state, seen = AsyncSocketState(), []

    def again():
        seen.append(state.readable)
        state.readable = False
        if len(seen) < 3:
            state.set_waker(READABLE, again)

    state.set_waker(READABLE, again)
    for _ in range(5):
        state.set_readable()
    assert seen == [True] * 3


@pytest.mark.parametrize("event", ["set_readable", "set_writable", "set_timed_out", "set_closed"])
def test_a_waker_that_a_signal_has_struck_is_called_again(event):
    """The loop tells the event anew, and would find nobody who waits."""
    state, seen = AsyncSocketState(), []

    def struck():
        seen.append(event)
        if len(seen) == 1:
            raise KeyboardInterrupt

    state.set_waker(WRITABLE if event == "set_writable" else READABLE, struck)
    with pytest.raises(KeyboardInterrupt):
        getattr(state, event)()
    getattr(state, event)()
    assert len(seen) == 2
    assert not state.waits(BOTH)


def test_whoever_begins_to_wait_is_told_to_the_loop_that_has_to_be_asked():
    """And nobody who was woken at once: he waits for nothing."""
    state, asked, waker = AsyncSocketState(), [], Waker()
    state.when_waiting = asked.append
    state.set_waker(READABLE, waker)
    state.set_waker(BOTH, waker)
    assert asked == [READABLE, BOTH]
    state.set_writable()
    state.set_waker(WRITABLE, waker)
    assert asked == [READABLE, BOTH] and waker.calls == 2


def test_the_four_events_are_noted_in_the_state():
    """Whoever overrides one of them keeps the others."""

    class Own(AsyncSocketHandler):
        def on_timeout(self):
            raise AssertionError("none was set")

    for handler in (AsyncSocketHandler(AsyncSocketState()), Own(AsyncSocketState())):
        reader, writer = Waker(), Waker()
        handler.state.set_waker(READABLE, reader)
        handler.state.set_waker(WRITABLE, writer)
        handler.on_readable()
        assert handler.state.readable and (reader.calls, writer.calls) == (1, 0)
        handler.on_writable()
        assert handler.state.writable and (reader.calls, writer.calls) == (1, 1)
        handler.on_close()
        assert handler.state.closed
    timed = AsyncSocketHandler(AsyncSocketState())
    timed.on_timeout()
    assert timed.state.timed_out and not timed.state.closed


# Several threads ----------------------------------------------------------------------------------


steps = threading.local()
"""take: what the thread does before each step."""


class Stepped(AsyncSocketState):
    """Each look at an attribute, and each change of one, is a step: another thread may come between
    two."""

    def __getattribute__(self, name):
        getattr(steps, "take", int)()
        return super().__getattribute__(name)

    def __setattr__(self, name, value):
        getattr(steps, "take", int)()
        super().__setattr__(name, value)


def stepped(act, at, pause):
    """Do it, and call pause() once, before step `at`. Whether it ended before."""
    left = at

    def take():
        nonlocal left
        left -= 1
        if left == 0:
            pause()

    steps.take = take
    act()
    return left > 0


def meet(first, second, at, until):
    """The first thread comes to its step `at`; then the second one to its step `until`; then the
    first goes on to its end, and the second to its own. Whether each ended before that step."""
    turns = threading.Semaphore(1), threading.Semaphore(0)
    short, ended = [False, False], [False, False]

    def run(who, act, where):
        def pause():
            if not ended[1 - who]:
                turns[1 - who].release()
                turns[who].acquire()

        turns[who].acquire()
        short[who] = stepped(act, where, pause)
        ended[who] = True
        turns[1 - who].release()

    threads = [
        threading.Thread(target=run, args=(0, first, at)),
        threading.Thread(target=run, args=(1, second, until)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return short


def all_meetings(make):
    """make() gives a state, what two threads do with it, and a check; try each way in which the
    second can come between two steps of the first, and the first between two of the second."""
    count = at = 0
    while True:
        at += 1
        until = 0
        while True:
            until += 1
            first, second, check = make()
            short = meet(first, second, at, until)
            check(at, until)
            count += 1
            if short[1] or short[0]:
                break
        if short[0]:
            return count


@pytest.mark.parametrize("who_first", ["waits", "tells"])
@pytest.mark.parametrize(
    "event", ["set_readable", "cleared", "set_writable", "set_timed_out", "set_closed", "set_error"]
)
def test_no_wake_up_is_lost_wherever_two_threads_meet(who_first, event):
    """The one leaves his waker in place of another one, the other sets a flag. He who comes second
    wakes; or, where the flag was cleared after it was set, whoever sets it again."""
    side = WRITABLE if event == "set_writable" else READABLE

    def make():
        state, waker = Stepped(), Waker()
        state.set_waker(side, Waker())
        tell = getattr(state, "set_readable" if event == "cleared" else event)
        if event == "set_error":
            tell = functools.partial(tell, OSError())

        def wait():
            if event == "cleared":
                state.readable = False
            state.set_waker(side, waker)

        def check(*where):
            if event == "cleared":
                tell()
            assert waker.calls >= 1, f"{where}: lost"
            assert not state.waits(side), f"{where}: woken, and kept"

        return (wait, tell, check) if who_first == "waits" else (tell, wait, check)

    assert all_meetings(make) > 20


def test_two_threads_play_ball_and_neither_waits_for_ever(rounds):
    """The one clears the flag, asks, and waits: what comes behind the question sets the flag again.
    The other sets the flag as often as it is asked."""
    turns = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    state, asked, count = AsyncSocketState(), threading.Semaphore(0), rounds(1_000, 50_000)

    def watch():
        for _ in range(count):
            asked.acquire()
            state.set_readable()

    other = threading.Thread(target=watch, daemon=True)
    other.start()
    try:
        for _ in range(count):
            woken = threading.Semaphore(0)
            state.readable = False
            asked.release()
            state.set_waker(READABLE, woken.release)
            assert woken.acquire(timeout=60), "a wake-up was lost"
    finally:
        sys.setswitchinterval(turns)
    other.join()


# Against a plain model ----------------------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """What each waker must have been called, told in plain words: a list of who waits."""

    def __init__(self):
        super().__init__()
        self.state = AsyncSocketState()
        self.wakers = [Waker() for _ in range(4)]
        self.wanted = [0] * 4
        self.waits = {READABLE: None, WRITABLE: None}
        self.ready = {READABLE: False, WRITABLE: False}
        self.over = self.failed = False

    @rule(who=st.integers(0, 3), interest=st.sampled_from([READABLE, WRITABLE, BOTH]))
    def wait(self, who, interest):
        self.state.set_waker(interest, self.wakers[who])
        for side in self.waits:
            if side & interest:
                self.waits[side] = who
        if self.over or self.failed:
            self.wake(*self.waits)
        else:
            self.wake(*(side for side in self.waits if side & interest and self.ready[side]))

    @rule(who=st.integers(0, 3))
    def drop(self, who):
        self.state.drop_waker(self.wakers[who])
        for side, other in self.waits.items():
            if other == who:
                self.waits[side] = None

    @rule(side=st.sampled_from([READABLE, WRITABLE]))
    def tell(self, side):
        (self.state.set_readable if side == READABLE else self.state.set_writable)()
        self.ready[side] = True
        self.wake(side)

    @rule(side=st.sampled_from([READABLE, WRITABLE]))
    def not_now(self, side):
        if side == READABLE:
            self.state.readable = False
        else:
            self.state.writable = False
        self.ready[side] = False

    @rule()
    def fail(self):
        self.state.set_error(OSError())
        self.failed = True
        self.wake(*self.waits)

    @rule()
    def take_error(self):
        assert (self.state.take_error() is not None) == self.failed
        self.failed = False

    @rule(closed=st.booleans())
    def end(self, closed):
        (self.state.set_closed if closed else self.state.set_timed_out)()
        self.over = True
        self.wake(*self.waits)

    def wake(self, *sides):
        for side in sides:
            if self.waits[side] is not None:
                self.wanted[self.waits[side]] += 1
            self.waits[side] = None

    @invariant()
    def agree(self):
        assert [waker.calls for waker in self.wakers] == self.wanted
        for side, who in self.waits.items():
            assert self.state.waits(side) == (who is not None)


def test_a_state_does_what_a_list_of_who_waits_does():
    """Whatever comes before what."""
    run_state_machine_as_test(Model)
