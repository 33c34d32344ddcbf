"""Troubles that last are two lines of log, however often something fails meanwhile.

The engine is made up: time passes when the test says so.
"""

from __future__ import annotations

import logging
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk.runtime.troubles import SETTLED, SETTLED_MAX, Troubles


class Engine:
    """A clock and timers."""

    def __init__(self):
        self.now = 1_000.0
        self.timers = []
        self.world = types.SimpleNamespace(clock=lambda: self.now)

    def after(self, delay, action):
        self.timers.append((self.now + delay, action))
        return self.timers[-1]

    def cancel(self, timer):
        if timer in self.timers:
            self.timers.remove(timer)

    def pass_time(self, seconds):
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now = first[0]
            first[1]()
        self.now = end


class Lines(logging.Handler):
    """What was logged."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        assert record.levelno == logging.WARNING
        self.lines.append(record.getMessage())

    def taken(self):
        lines, self.lines[:] = list(self.lines), []
        return lines


@pytest.fixture
def made():
    return make()


def make():
    engine, lines = Engine(), Lines()
    log = logging.Logger("made up")
    log.addHandler(lines)
    return engine, Troubles(engine, log), lines


def test_the_first_failure_and_the_end_are_a_line_each(made):
    """A log that repeats itself hides what else is in it."""
    engine, troubles, lines = made
    for _ in range(50):
        troubles.failed("announcing", "%s is out", "the cable")
        engine.pass_time(5)
    assert lines.taken() == ["announcing fails: the cable is out"] and troubles.lasting == 1
    for _ in range(10):
        troubles.worked("announcing")
        engine.pass_time(5)
    assert lines.taken() == ["announcing works again; 50 failed in 250.0 s"]
    assert troubles.lasting == 0 and not engine.timers
    troubles.worked("announcing")
    troubles.worked("accepting connections")
    assert not lines.taken() and not engine.timers


def test_one_success_among_failures_ends_nothing(made):
    """With as many callers as there are descriptors one is accepted now and then."""
    engine, troubles, lines = made
    for _ in range(100):
        troubles.failed("accepting", "no descriptors")
        engine.pass_time(SETTLED / 3)
        troubles.worked("accepting")
        engine.pass_time(SETTLED / 3)
    assert len(lines.taken()) == 1
    engine.pass_time(SETTLED)
    assert lines.taken() == [f"accepting works again; 100 failed in {200 / 3 - 1 / 3:.1f} s"]


def test_a_trouble_that_is_always_back_is_told_less_and_less_often(made):
    """A cable with a loose contact: an hour of it is a few lines."""
    engine, troubles, lines = made
    for _ in range(600):
        troubles.failed("announcing", "cable out")
        engine.pass_time(3)
        troubles.worked("announcing")
        engine.pass_time(3)
    assert 2 <= len(lines.taken()) < 8
    engine.pass_time(3 * SETTLED_MAX)
    lines.taken()
    troubles.failed("announcing", "cable out")
    troubles.worked("announcing")
    engine.pass_time(SETTLED)
    assert len(lines.taken()) == 2, "after a long time without it, it is a new one"


def test_troubles_of_different_things_know_nothing_of_each_other(made):
    """One interface works, the other does not."""
    engine, troubles, lines = made
    troubles.failed("announcing by eth0", "out")
    troubles.failed("announcing by wlan0", "out")
    assert len(lines.taken()) == 2 and troubles.lasting == 2
    troubles.worked("announcing by eth0")
    engine.pass_time(SETTLED)
    assert lines.taken() == ["announcing by eth0 works again; 1 failed in 0.0 s"]
    troubles.worked("announcing by wlan0")
    troubles.forget_others(["announcing by eth0"])
    engine.pass_time(10 * SETTLED)
    assert not lines.taken() and troubles.lasting == 0 and not engine.timers


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 3 * SETTLED_MAX)), max_size=60),
)
def test_lines_alternate_and_count_every_failure(steps):
    """Whatever the order of luck and failure: each beginning has one end, and no failure is left
    out of the sum."""
    engine, troubles, lines = make()
    failures = 0
    for fails, pause in steps:
        if fails:
            failures += 1
            troubles.failed("x", "why")
        else:
            troubles.worked("x")
        engine.pass_time(pause)
    troubles.worked("x")
    engine.pass_time(2 * SETTLED_MAX)
    told = lines.taken()
    assert [line.split()[1] for line in told] == ["fails:", "works"] * (len(told) // 2)
    assert sum(int(line.split()[3]) for line in told[1::2]) == failures
    assert troubles.lasting == 0 and not engine.timers
