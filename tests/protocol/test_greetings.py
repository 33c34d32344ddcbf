"""Who is at the other end, how long a word is waited for, and who gives a place to whom: tables of
what was observed and what follows."""

from __future__ import annotations

import types

import pytest

from peertalk.protocol import greetings
from peertalk.protocol.connections import GREETING_TIME, SILENCE_TIME, Connection, State
from peertalk.protocol.greetings import Answers, Later, Patience, Place, Silence
from peertalk.protocol.line import Verdict
from peertalk.protocol.peer import Peer
from peertalk.protocol.vigil import Vigil
from peertalk.protocol.wire import Capabilities

ADA, BOB = b"a" * 8, b"b" * 8


def connection(tag, host="10.0.0.1", state=State.OPEN, *, dialled=False):
    made = Connection(tag, (host, 7354), dialled=dialled, now=0.0)
    made.state = state
    return made


@pytest.mark.parametrize(
    ("dialled", "ours", "patience"),
    [
        (False, False, Patience(SILENCE_TIME, Silence.FAULT)),
        (True, True, Patience(9.0, Silence.END)),
        (True, False, Patience(GREETING_TIME, Silence.CLASSIC)),
    ],
    ids=["who calls speaks", "one of ours is only slow", "an original says no name"],
)
def test_how_long_a_first_word_is_waited_for(dialled, ours, patience):
    """Too short a time takes one of ours for classic; too long a one keeps a place for nobody."""
    assert greetings.patience(dialled=dialled, ours=ours, connect_timeout=9.0) == patience


@pytest.mark.parametrize(
    ("instance", "place", "connected", "what"),
    [
        pytest.param(None, None, False, Place.NEWEST, id="an original"),
        pytest.param(None, None, True, Place.ASIDE, id="a second one with an original"),
        pytest.param(ADA, None, False, Place.NEWEST, id="an older peertalk"),
        pytest.param(ADA, None, True, Place.NEWEST, id="a second one with that"),
        pytest.param(ADA, 0, True, Place.LINE, id="one of ours"),
        pytest.param(ADA, 3, False, Place.LINE, id="one that has used it already"),
    ],
)
def test_what_becomes_of_a_connection_that_is_greeted(instance, place, connected, what):
    """Which rule holds depends on what the other side knows."""
    assert greetings.place_of(instance=instance, place=place, connected=connected) is what


@pytest.mark.parametrize(
    ("said", "known", "dialled", "what"),
    [
        pytest.param(None, ADA, False, Later.SAME, id="left out"),
        pytest.param(ADA, ADA, False, Later.SAME, id="said again"),
        pytest.param(None, None, True, Later.SAME, id="an original"),
        pytest.param(ADA, None, True, Later.LATE, id="it was slow"),
        pytest.param(ADA, None, False, Later.FALSE, id="it called without a name, and takes one"),
        pytest.param(BOB, ADA, True, Later.FALSE, id="somebody else"),
    ],
)
def test_no_connection_can_change_whose_it_is(said, known, dialled, what):
    """Else whoever is connected could take what is meant for another."""
    assert greetings.later(said, known, dialled=dialled) is what


@pytest.mark.parametrize("said_who", [None, ADA])
def test_what_is_left_out_of_a_later_capability_is_as_it_was(said_who):
    """A report of pressure says nothing but that; so may a whole greeting."""
    known = Capabilities(8192, 1024, 0, 0, ADA, "ada", 7354, 7355, 9_000)
    said = Capabilities(4096, 1024, 75, 2, said_who)
    renewed = Capabilities(4096, 1024, 75, 2, ADA, "ada", 7354, 7355, 9_000)
    assert greetings.renewed(said, known) == renewed
    assert greetings.renewed(said, None) is said
    assert greetings.renewed(said, Capabilities(512, 256, 0, 0)) is said


def test_the_first_stranger_of_the_host_with_the_most_makes_room_for_another_host():
    """One host that fills all places with silence must not keep everybody out."""
    state = State.GREETING
    flood = [connection(tag, "10.0.0.6", state) for tag in (3, 4, 5)]
    ours = [connection(tag, "10.0.0.7", state, dialled=True) for tag in (6, 7, 8, 9)]
    undecided = [connection(1, state=state), *ours, *flood]
    gives = greetings.stranger_for("10.0.0.1", undecided)
    assert gives.connection is flood[0] and gives.fault and not gives.silent
    assert str(gives.error).startswith("10.0.0.6 did not say who it is")
    assert greetings.stranger_for("10.0.0.6", undecided) is None, "not for itself"
    assert greetings.stranger_for("10.0.0.1", ours) is None, "those that we dialled are none"


@pytest.mark.parametrize(("crowd", "gives"), [(7, False), (8, True)])
def test_the_newest_neighbour_gives_its_place_where_one_host_has_nearly_all(crowd, gives):
    """Seven eighths are for whoever comes; the last eighth is for other hosts."""
    flood = [connection(tag, "10.0.0.6") for tag in range(crowd)]
    leaving = [connection(100, "10.0.0.6", State.CLOSING)]
    there = [connection(200, "10.0.0.5"), *flood, *leaving]
    found = greetings.neighbour_for("10.0.0.1", there, 8)
    assert (found and found.connection) is (flood[-1] if gives else None)
    assert not gives or "another host (Config.max_peers is 8)" in str(found.error)
    assert greetings.neighbour_for("10.0.0.6", there, 8) is None, "not to itself"


def test_one_outside_a_line_is_released_when_it_waits_for_no_other():
    """What its peer has sent before must be read before."""
    waiting = connection(1)
    waiting.waits_for = frozenset({2, 3})
    waiting.held = []
    assert greetings.settled(waiting, 2) == []
    assert greetings.settled(waiting, 3) == [(Verdict.RELEASE, waiting)]
    assert waiting.rare is None, "no memory for an empty set"
    waiting.held = None
    assert greetings.settled(waiting, 3) == [], "nothing was held back"


def watched(tag, quiet, *, state=State.OPEN, moved=0):
    """A connection whose link has been quiet since then, None: it is not, and moved since."""
    made = connection(tag, state=state)
    made.vigil = Vigil(stuck=quiet, moved=0)
    counts = types.SimpleNamespace(bytes_sent=moved, frames_received=0)
    made.link = types.SimpleNamespace(statistics=lambda: counts)
    return made


STUCK, LATER, YOUNG, IDLE = map(watched, (1, 2, 3, 4), (10.0, 20.0, 90.0, None))
MOVED, LEFT = watched(5, 1.0, moved=7), watched(6, 2.0, state=State.CLOSING)
UNWATCHED = connection(7)


@pytest.mark.parametrize(
    ("there", "unread", "least"),
    [
        ([IDLE, YOUNG, UNWATCHED], [], None),
        ([YOUNG, LATER, STUCK, IDLE], [], STUCK),
        ([STUCK, LATER], [STUCK], LATER),
        ([STUCK], [STUCK], None),
        ([MOVED, LEFT, LATER], [], LATER),
        ([], [], None),
    ],
)
def test_the_least_wanted_is_the_one_that_has_been_silent_the_longest(there, unread, least):
    """When a place or memory is wanted somebody goes: never one that moves, or that has stood still
    for a moment only, or whom we have not read."""
    gives = greetings.least_wanted(there, 80.0, lambda each: each in unread)
    assert (gives and gives.connection) is least and (gives is None or gives.silent)


ME, OLD = Peer(ADA, name="ada"), Peer(("10.0.0.1", 7354), name="mac")
OTHER = Peer(BOB, name="bob")


@pytest.mark.parametrize(
    ("expected", "found", "who"),
    [
        (None, OTHER, Answers.EXPECTED),
        (OTHER, OTHER, Answers.EXPECTED),
        (OLD, OTHER, Answers.OURS),
        (ME, OTHER, Answers.OTHER),
    ],
)
def test_who_answers_where_somebody_was_dialled(expected, found, who):
    """A message for one node must not go to the other that has its address now."""
    assert greetings.answers(expected, found) is who


def test_who_wanted_somebody_else_hears_who_is_there():
    """The next step is another peer to send to, and its name is what finds it."""
    there = connection(1)
    assert str(greetings.no_longer(there, ME, OTHER)) == (
        "10.0.0.1:7354 is no longer 'ada': 'bob' answers there"
    )
    assert str(greetings.known_as(OLD, OTHER)) == (
        "10.0.0.1:7354 is now the peer 'bob'; send to that"
    )
    assert str(greetings.itself(there)) == "10.0.0.1:7354 is this node itself"
    assert "limit of 1,024 connected peers" in str(greetings.turned_away(OTHER, 1024))


@pytest.mark.parametrize(
    ("called", "greets", "stranger"),
    [
        (ADA, ADA, False),
        (ADA, BOB, True),
        (ADA, None, True),
        (None, BOB, False),
        (None, None, True),
    ],
)
def test_at_a_socket_of_this_host_nobody_is_unknown(called, greets, stranger):
    """Its name says whose it is, and who has no instance id knows no such sockets."""
    peer = None if called is None else Peer(called, name="ada")
    made = Connection(1, ("127.0.0.1", 7), dialled=called is not None, now=0.0, peer=peer)
    assert greetings.is_stranger(made, greets) is stranger
    who = "127.0.0.1:7" if called is None else "peer 'ada'"
    assert f"of this host does not lead to {who}; " in str(greetings.astray(made))
