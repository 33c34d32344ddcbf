"""The one timer of a loop: set anew only when a turn would come too late."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk.protocol.wakeups import DROPPED, EARLY, Wakeup

SECONDS = st.floats(0, 1e6)


def set_to(due):
    wakeup = Wakeup()
    wakeup.is_set(due)
    return wakeup


@pytest.mark.parametrize(
    "due, delay, enough",
    [
        (math.inf, 5.0, False),  # none is set
        (105.0, 5.0, True),
        (105.0, 4.0, False),  # a second too late
        (105.0, 5.0 - EARLY / 2, True),  # the same deadline, counted in milliseconds
        (101.0, 5.0, True),  # too early: the turn finds nothing to do
        (99.9, 5.0, True),  # late: it is about to come
        (100.0 - DROPPED, 5.0, False),  # it does not come any more
    ],
)
def test_a_timer_is_set_anew_only_when_it_would_come_too_late(due, delay, enough):
    assert set_to(due).is_soon_enough(100.0, delay) is enough


def test_one_that_is_gone_is_never_soon_enough():
    wakeup = set_to(101.0)
    wakeup.is_gone()
    assert not wakeup.is_soon_enough(100.0, 1e9)


@given(SECONDS, SECONDS, SECONDS)
def test_whatever_is_soon_enough_comes_at_most_early_too_late(now, due, delay):
    if set_to(due).is_soon_enough(now, delay):
        assert due <= now + delay + EARLY
        assert due >= now - DROPPED
