"""Which of several connections is used, and in what order they are read: every interleaving of two
nodes, and mistakes planted to see that the walk would find them."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk.protocol.claims import OVER_MAX, Claims, Over
from peertalk.protocol.connections import Connection, State, Step
from peertalk.protocol.line import Line, Turn, Verdict

_SPEC = importlib.util.spec_from_file_location("explorer", Path(__file__).with_name("explorer.py"))
assert _SPEC is not None and _SPEC.loader is not None
explorer = importlib.util.module_from_spec(_SPEC)
sys.modules.setdefault("explorer", explorer)
_SPEC.loader.exec_module(explorer)

PYTHON_ALONE = pytest.mark.unsanitized(
    "a hundred thousand states in Python alone take minutes there, and show nothing of the C"
)
SOAK = os.environ.get("PEERTALK_SOAK") == "1"
TWO = {1: (44_471, 103_983), None: (538_686, 2_120_144)}
"""States and steps by the number of faults; None: as many as there may be."""
THREE = {
    "two faults": (13_227_381, 44_071_535),  # needs 4.6 GB
    "one message, no crash, known peers only": (1_034_694, 4_698_381),
}
CASES = {
    "two faults": {"messages": 2, "faults": 2},
    "one message, no crash, known peers only": {"messages": 1, "crash": False, "blind": False},
}
SMALL, LARGE = b"\x01" * 8, b"\x02" * 8

# Every interleaving --------------------------------------------------------------------------


@PYTHON_ALONE
@pytest.mark.timeout(300)
def test_no_interleaving_of_two_nodes_with_two_connections_breaks_a_promise(rounds):
    """Order, at most once, one connection in the end, nothing Sent that never came: no test that
    draws its schedule can say that it has met all of them. The count is pinned, so that a change
    of the rule or of the walk is seen. One fault may strike, which is enough for each mistake
    below; in the long form any number."""
    faults = rounds(1, 0) or None
    counts = explorer.explore(explorer.Explorer(messages=2, wires=2, faults=faults))
    print("states and steps:", *counts)
    assert counts == TWO[faults]


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.skipif(not SOAK, reason="minutes: runs with PEERTALK_SOAK=1")
@pytest.mark.parametrize("case", THREE, ids=str)
def test_nor_does_one_with_three_connections(case):
    """A third connection is what it takes to read an old one after two newer ones. All at once is
    too much to be walked: what is left out is in the name of the case."""
    counts = explorer.explore(explorer.Explorer(wires=3, **CASES[case]))
    print("states and steps:", *counts)
    assert counts == THREE[case]


# Mistakes that must be found -----------------------------------------------------------------


class WithoutHold(Line):
    def turn(self, connection):
        turn = super().turn(connection)
        return Turn.DELIVER if turn is Turn.HOLD else turn


class WithoutDrop(Line):
    def turn(self, connection):
        turn = super().turn(connection)
        return Turn.DELIVER if turn is Turn.DROP else turn


class WithoutDrain(Line):
    def told(self, connection, claims, place):
        return super().told(connection, claims and Claims(), place)


class BothDecide(Line):
    def __init__(self, own, theirs):
        super().__init__(own, theirs)
        self.decides = True


class UseWhileClosing(Line):
    def _unfinished(self, member):
        return False


class WaitsForNobody(Line):
    def _waits(self, connection):
        connection.waits_for = frozenset()
        return super()._waits(connection)


class ClaimsOfTheWrongSide(Line):
    def claims(self, last_dial, undecided):
        own, others = super().claims(last_dial, undecided)
        return Claims(others, own)


class PlaceNotRaised(Line):
    def _decide(self, decisions):
        self.place = 0
        return super()._decide(decisions)


@PYTHON_ALONE
@pytest.mark.parametrize(
    "mistake",
    [
        WithoutHold,
        WithoutDrop,
        WithoutDrain,
        BothDecide,
        UseWhileClosing,
        WaitsForNobody,
        ClaimsOfTheWrongSide,
        PlaceNotRaised,
    ],
)
def test_a_planted_mistake_is_found_and_told_as_a_short_story(mistake):
    """A walk that finds nothing is worth what it would have found."""
    with pytest.raises(AssertionError) as caught:
        walked = explorer.Explorer(messages=2, wires=2, faults=1, line_type=mistake)
        explorer.explore(walked, order=random.Random(0))
    (story,) = caught.value.__notes__
    assert 0 < len(story.splitlines()) <= 30
    assert " dials " in story


# One side ------------------------------------------------------------------------------------


def connection(tag, number, *, dialled=False):
    made = Connection(tag, ("10.0.0.2", 7354), dialled=dialled, now=0.0)
    made.number = number
    for step in (Step.DIAL, Step.ESTABLISH) if dialled else (Step.ESTABLISH,):
        made.advance(step)
    return made


def test_the_smaller_id_uses_the_first_that_is_greeted_and_refuses_the_next():
    """One connection, without guessing which the other side has."""
    line = Line(SMALL, LARGE)
    first, second = connection(1, 1), connection(2, 1, dialled=True)
    assert line.decides
    assert line.identified(first, None, 0) == [(Verdict.USE, first)]
    assert first.state is State.OPEN and first.place == line.place == 1
    assert line.identified(second, None, 0) == [(Verdict.REFUSE, second)]


def test_one_that_has_not_said_what_is_over_is_not_refused_yet():
    """It may be about to say that the one in use is over: refusing it would cost a dial."""
    line = Line(SMALL, LARGE)
    used, blind = connection(1, 1), connection(2, 2)
    line.identified(used, None, 0)
    assert line.identified(blind, None, 0) == []
    assert line.told(blind, Claims(own=Over(1)), 0) == [
        (Verdict.DRAIN, used),
        (Verdict.USE, blind),
    ]
    assert used.state is State.DRAINING and blind.place == 2


def test_the_larger_id_follows_and_never_uses_one_by_itself():
    """It sends nothing before it has read the place: else the order of places says nothing."""
    line = Line(LARGE, SMALL)
    first = connection(1, 1)
    assert line.identified(first, None, 0) == [] and first.state is State.GREETED
    assert line.told(first, None, 1) == [(Verdict.USE, first)]
    late = connection(2, 2)
    assert line.identified(late, None, 1) == [(Verdict.DRAIN, late)], "a place that was used"


def test_the_next_waits_until_the_one_that_is_being_left_has_ended():
    """Its last messages may still be on their way: those of the next would overtake them."""
    line = Line(SMALL, LARGE)
    left, following = connection(1, 1), connection(2, 2)
    line.identified(left, None, 0)
    left.advance(Step.LEAVE)
    assert line.identified(following, None, 0) == []
    left.advance(Step.DRAIN)  # the time-out
    assert line.told(following, None, 0) == [], "it is read, and over for nobody"
    left.advance(Step.END)
    assert line.ended(left) == [(Verdict.USE, following)] and following.place == 2


def test_what_a_later_place_brings_is_held_until_the_earlier_one_is_read_to_its_end():
    """And what comes on the earlier one after that was told as UNKNOWN: it is dropped."""
    line = Line(LARGE, SMALL)
    early, later = connection(1, 1), connection(2, 2)
    line.identified(early, None, 1)
    decisions = line.identified(later, Claims(own=Over(1)), 2)
    assert decisions == [(Verdict.DRAIN, early), (Verdict.USE, later)]
    assert line.turn(later) is Turn.HOLD and line.turn(early) is Turn.DELIVER
    later.held = explorer.deque()
    early.advance(Step.END)
    assert line.ended(early) == [(Verdict.RELEASE, later)]
    assert line.turn(later) is Turn.DELIVER and line.turn(early) is Turn.DROP


def test_one_that_may_be_older_is_waited_for_until_it_has_said_whose_it_is():
    """It may carry the lower place."""
    line = Line(LARGE, SMALL)
    used = connection(1, 1)
    line.identified(used, None, 1)
    used.waits_for = frozenset({7, 8})
    assert line.turn(used) is Turn.HOLD
    used.held = explorer.deque()
    assert line.settled(7) == [] and line.settled(8) == [(Verdict.RELEASE, used)]


def test_an_earlier_dial_that_shows_itself_after_we_said_that_it_is_over_is_not_used():
    """Two dials of one side to two addresses of the other: what was said stays said."""
    line = Line(SMALL, LARGE)
    second, first = connection(1, 2), connection(2, 1)
    line.identified(second, None, 0)
    assert line.claims(0, []) == Claims(Over(0), Over(1))
    second.advance(Step.END)
    line.ended(second)
    assert line.identified(first, None, 0) == [(Verdict.DRAIN, first)]
    assert line.claims(0, []) == Claims(Over(0), Over(2)), "the later one is named all the same"


def test_a_place_that_is_read_late_releases_what_waited_for_it():
    """Until then it might have been the lower one; now each would wait for the other for ever."""
    line = Line(LARGE, SMALL)
    used, newer, late = connection(1, 1, dialled=True), connection(2, 2), connection(3, 1)
    line.identified(newer, None, 0)
    line.claims(1, [])
    line.identified(used, None, 1)
    assert line.identified(late, None, 0) == [(Verdict.DRAIN, late)]
    assert line.turn(used) is Turn.HOLD
    used.held = explorer.deque()
    assert line.told(late, None, 2) == [(Verdict.RELEASE, used)]
    assert line.turn(late) is Turn.HOLD


@given(ended=st.sets(st.integers(1, 8)), own=st.booleans())
def test_what_lives_is_never_said_to_be_over_and_the_last_that_ended_always_is(ended, own):
    """Saying too much loses messages; saying too little leaves the other side with a dead one."""
    line = Line(LARGE, SMALL)
    members = [connection(number, number, dialled=own) for number in range(1, 9)]
    for member in members:
        line.identified(member, None, 0)
    for number in sorted(ended):
        members[number - 1].advance(Step.END)
        line.ended(members[number - 1])
    claims = line.claims(8 if own else 0, [])
    said = claims.own if own else claims.others
    assert all(number in ended for number in range(1, 9) if number in said)
    assert all(number in said for number in sorted(ended)[-OVER_MAX:])


def test_a_line_that_was_forgotten_with_its_peer_goes_on_with_higher_places():
    """The other side may have kept its line, and would take a place that it has seen for an old
    connection, which it never uses again."""

    def met(line, number, place=0):
        connection = Connection(number, ("10.0.0.2", 7354), dialled=False, now=0.0)
        connection.number = number
        connection.advance(Step.ESTABLISH)
        return connection, line.identified(connection, None, place)

    kept = Line(LARGE, SMALL)
    connection, decisions = met(kept, 1, place=7)
    assert decisions == [(Verdict.USE, connection)] and kept.place == 7
    kept.ended(connection)
    forgotten = Line(SMALL, LARGE, place=7)
    connection, decisions = met(forgotten, 2)
    assert decisions == [(Verdict.USE, connection)] and connection.place == 8
    again, decisions = met(kept, 2, place=8)
    assert decisions == [(Verdict.USE, again)]
    assert Line(LARGE, SMALL, place=7).place == 0, "the other side gives them"
