"""Which link is dead, and which is frozen: tables of what was seen and what that means. The same on
the clock of a watchdog is tests/runtime/test_watchdog.py's."""

from __future__ import annotations

import struct
import types

import pytest

from peertalk.protocol.connections import State
from peertalk.protocol.vigil import LATE, Finding, Seen, Vigil, silence_of

PATIENCE, SPACING = 15.0, 0.4


def counts(slots_pending=0, bytes_sent=0, frames_received=0):
    return types.SimpleNamespace(
        slots_pending=slots_pending, bytes_sent=bytes_sent, frames_received=frames_received
    )


def never():
    raise AssertionError("asked where it does not count: it is a call of the system")


def seen(now=100.0, state=State.OPEN, silent=0.0, paused=False, frozen=False, waiting=0, **told):
    return Seen(now, state, silent, lambda: counts(**told), paused, frozen, lambda: waiting)


def look(vigil, observed):
    return vigil.look(observed, PATIENCE, SPACING)


def test_a_link_is_dead_at_the_second_look_that_finds_it_silent():
    """What has waited for a moment only, after a long silence, is answered by then."""
    vigil = Vigil()
    observed = seen(silent=PATIENCE)._replace(counts=never, unacknowledged=never)
    assert look(vigil, observed) == (Finding.NOTHING, 100.0 + SPACING)
    assert look(vigil, observed._replace(now=100.4))[0] is Finding.DEAD
    vigil = Vigil()
    look(vigil, observed)
    look(vigil, seen(now=100.4, silent=0.1))
    assert look(vigil, observed._replace(now=110.0))[0] is Finding.NOTHING, (
        "it has answered meanwhile"
    )


@pytest.mark.parametrize("silent", [0.0, 4.0, 14.9])
def test_the_next_look_comes_when_the_rest_of_the_time_has_passed(silent):
    """An idle link is looked at once in that time; nothing is asked every second."""
    vigil = Vigil()
    assert look(vigil, seen(silent=silent)) == (Finding.NOTHING, 100.0 + PATIENCE - silent)
    assert vigil.kept() is None, "and nothing is remembered of it"


@pytest.mark.parametrize("state", [each for each in State if each is not State.OPEN])
def test_a_link_that_is_not_used_is_never_frozen(state):
    """It is on its way in or out, and its counts do not matter."""
    vigil = Vigil(asked=0.0)
    assert look(vigil, seen(state=state)._replace(counts=never))[0] is Finding.NOTHING


@pytest.mark.parametrize(
    ("observed", "finding", "asked"),
    [
        pytest.param({}, Finding.FROZEN, 80.0, id="it owes an answer for so long"),
        pytest.param({"now": 94.9}, Finding.NOTHING, 80.0, id="not yet"),
        pytest.param({"frames_received": 1}, Finding.NOTHING, None, id="it has said something"),
        pytest.param({"paused": True}, Finding.NOTHING, 100.0, id="the answer may lie unread"),
        pytest.param({"frozen": True}, Finding.NOTHING, 80.0, id="that was told"),
        pytest.param({"waiting": 40, "bytes_sent": 50}, Finding.NOTHING, 100.0, id="on its way"),
        pytest.param({"waiting": 40, "bytes_sent": 140}, Finding.FROZEN, 80.0, id="it has that"),
    ],
)
def test_a_link_is_frozen_when_its_program_owes_an_answer_for_the_time(observed, finding, asked):
    """Its system is there: it is no dead link, and nothing ends."""
    vigil = Vigil(asked=80.0, question=100)
    assert look(vigil, seen(**observed))[0] is finding
    assert vigil.asked == asked
    assert (vigil.kept() is vigil) is (asked is not None)


def test_an_answer_that_is_owed_is_looked_for_when_it_is_late():
    """Not at the next idle look, which may be much later."""
    vigil = Vigil(asked=90.0)
    assert look(vigil, seen()) == (Finding.NOTHING, 90.0 + PATIENCE)


def test_a_question_is_where_its_ping_ended_and_an_older_one_that_is_owed_stays():
    """Bytes before it may be on their way for long; each PING would begin the time anew."""
    vigil = Vigil()
    vigil.ask(10.0, 5, 1000, 3)
    assert (vigil.asked, vigil.question, vigil.heard) == (10.0, 1000 + 3 * 12, 5)
    vigil.ask(20.0, 5, 2000, 9)
    assert (vigil.asked, vigil.question) == (10.0, 1036)
    vigil.ask(30.0, 6, 2000, 9)
    assert (vigil.asked, vigil.heard) == (30.0, 6), "it has answered since"


def test_time_in_which_nobody_read_counts_for_nobody():
    """A laptop that was shut for an hour must not find everybody frozen."""
    vigil = Vigil(asked=10.0, stuck=12.0)
    vigil.slept(3600.0, 3620.0, PATIENCE)
    assert vigil.asked == 3610.0 and vigil.stuck == 3612.0
    vigil = Vigil(asked=10.0)
    vigil.slept(1.0, 3620.0, PATIENCE)
    assert vigil.asked == 3620.0 - PATIENCE + LATE, "what lies unread is read first"
    vigil.slept(1e9, 3620.0, PATIENCE)
    assert vigil.asked == 3620.0, "never later than now"


@pytest.mark.parametrize(
    ("asked", "stuck", "since"),
    [(None, None, None), (5.0, None, 5.0), (None, 7.0, 7.0), (5.0, 7.0, 5.0), (9.0, 7.0, 7.0)],
)
def test_a_link_is_quiet_since_it_owes_an_answer_or_stands_still(asked, stuck, since):
    """Whoever has been so for the longest is missed the least."""
    assert Vigil(asked=asked, stuck=stuck).quiet_since() == since


@pytest.mark.parametrize(
    ("asked", "stuck", "told", "still"),
    [
        (5.0, None, {"frames_received": 0}, True),
        (5.0, None, {"frames_received": 1}, False),
        (None, 7.0, {"bytes_sent": 10}, True),
        (None, 7.0, {"bytes_sent": 11}, False),
    ],
)
def test_who_has_moved_since_the_last_look_is_not_still(asked, stuck, told, still):
    """A look is old by up to the time-out: nobody is ended for what was true then."""
    vigil = Vigil(asked=asked, stuck=stuck, moved=10)
    assert vigil.is_still(counts(**{"bytes_sent": 10, **told})) is still


@pytest.mark.parametrize(
    ("on_their_way", "since_ack", "probes", "backoff", "retry", "silent"),
    [
        pytest.param(1, 2_500, 0, 2, 800, 2.5, id="sent again and not answered"),
        pytest.param(1, 150, 0, 0, 200, 0.0, id="on its way"),
        pytest.param(1, 30_000, 0, 7, 60_000, 0.0, id="not due to be sent again"),
        pytest.param(0, 5_300, 3, 3, 200, 5.1, id="no route: nothing leaves"),
        pytest.param(0, 60_000, 0, 9, 200, 0.0, id="a shut window, and probes are answered"),
        pytest.param(0, 103_000, 1, 10, 200, 0.6, id="a shut window, and a probe just left"),
        pytest.param(0, 135_000, 1, 12, 200, 15.0, id="a shut window, and a probe without answer"),
    ],
)
def test_silence_is_what_nobody_answers_and_not_what_nobody_asks(
    on_their_way, since_ack, probes, backoff, retry, silent
):
    """A link on which nobody speaks is not broken, nor one whose reader stands still; one without a
    route is, though nothing of it is on its way."""
    info = bytearray(104)
    info[3:5] = probes, backoff
    struct.pack_into("=I", info, 8, retry * 1000)
    struct.pack_into("=I", info, 24, on_their_way)
    struct.pack_into("=I", info, 56, since_ack)
    assert silence_of(bytes(info)) == pytest.approx(silent)
