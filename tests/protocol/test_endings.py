"""How a connection is left, what its end means, and what is mended: tables of what was observed and
what follows."""

from __future__ import annotations

import itertools
import math
import re
import types

import pytest

from peertalk import errors
from peertalk.protocol import endings
from peertalk.protocol.connections import Connection, State
from peertalk.protocol.endings import (
    LOOK,
    LOOK_SELDOM,
    AfterCut,
    Cause,
    Cut,
    DeadEnd,
    Found,
    Half,
    Leaving,
    Look,
    Mending,
    Report,
)
from peertalk.protocol.peer import Peer


def never():
    raise AssertionError("asked where it does not count: it is a call of the system")


@pytest.mark.parametrize(
    ("code", "pending", "times_out", "cause"),
    [
        (0, 0, False, Cause.SHUT),
        (errors.BadCrc.code, 0, False, Cause.FAULT),
        (errors.Timeout.code, 0, True, Cause.NOT_WHOLE),
        (errors.Timeout.code, 3, True, Cause.NOT_TAKEN),
        (errors.Timeout.code, 3, False, Cause.NOT_WHOLE),
        (errors.ConnectionClosed.code, 3, True, Cause.LOST),
        (errors.Truncated.code, 0, False, Cause.LOST),
        (errors.OutOfMemory.code, 0, False, Cause.FAILED),
    ],
)
def test_why_a_link_has_ended(code, pending, times_out, cause):
    """Whose fault it was decides what is told, counted and logged."""
    found = endings.cause_of(code, slots_pending=pending, sends_time_out=times_out)
    assert found is cause


def test_each_fault_of_a_frame_has_an_exception_of_the_decoder():
    """A code that nobody maps would be told as our own mistake."""
    for code in endings.FRAME_FAULTS:
        error = errors.from_decoder(code, "in a frame", None)
        assert isinstance(error, errors.ProtocolError)
        assert endings.cause_of(code, slots_pending=0, sends_time_out=False) is Cause.FAULT


@pytest.mark.parametrize(
    ("cause", "state", "name", "kind", "text"),
    [
        (Cause.SHUT, State.OPEN, "bob", None, None),
        (Cause.FAULT, State.OPEN, "bob", errors.BadCrc, "SAID in a frame from peer 'bob'; the"),
        (Cause.FAULT, State.GREETING, None, errors.BadCrc, r"a frame from 10\.0\.0\.1:7; the link"),
        (Cause.NOT_TAKEN, State.OPEN, "bob", errors.Timeout, "'bob' did not take what was sent"),
        (Cause.NOT_WHOLE, State.OPEN, "bob", errors.Timeout, "'bob' was not whole within 2.5 s"),
        (
            Cause.LOST,
            State.OPEN,
            "bob",
            errors.ConnectionClosed,
            r"'bob' is closed \(system error 9",
        ),
        (
            Cause.LOST,
            State.OPEN,
            None,
            errors.ConnectionClosed,
            r"10\.0\.0\.1:7 is closed \(system",
        ),
        (Cause.LOST, State.CLOSING, "bob", None, None),
        (Cause.LOST, State.RETIRING, "bob", None, None),
        (Cause.FAILED, State.OPEN, "bob", errors.BadCrc, r"'bob' failed: SAID \(system error 9\)"),
    ],
)
def test_what_is_told_of_a_link_that_has_ended(cause, state, name, kind, text):
    """Who it was, why, and what was going on: a user can do something about the one, and nothing
    about the other."""
    peer = None if name is None else Peer(b"12345678", name=name)
    connection = Connection(1, ("10.0.0.1", 7), dialled=True, now=0.0, peer=peer)
    connection.state, connection.link = state, types.SimpleNamespace(frame_timeout=2.5)
    error = endings.error_of(cause, connection, errors.BadCrc.code, "SAID", 9)
    if kind is None:
        assert error is None
    else:
        assert type(error) is kind and error.peer == name and re.search(text, str(error))


def test_what_was_the_matter_before_a_link_ended_is_told_of_its_end():
    """Whoever leaves hears why, and not that it is closed."""
    connection = Connection(1, ("10.0.0.1", 7), dialled=True, now=0.0)
    connection.failure = before = errors.Timeout("before")
    assert endings.error_of(Cause.SHUT, connection, 0, "", 0) is before
    assert str(endings.closed(None)) == "the connection with the other side is closed"


@pytest.mark.parametrize("error", [None, errors.Timeout("late"), errors.BadCrc("damaged")])
def test_who_waits_for_a_lost_peer_hears_that_it_is_closed_and_can_look_up_why(error):
    """What ended the link may be no error of whoever waits; that the other side has said so is."""
    bob = Peer((b"12345678"), name="bob")
    told = endings.lost(bob, error)
    assert type(told) is errors.ConnectionClosed and told.__cause__ is error
    assert endings.lost(bob, told) is told, "it says so already"


HALVES = {
    State.GREETING: Half.NAMELESS,
    State.GREETED: Half.END,
    State.ASIDE: Half.END,
    State.DRAINING: Half.END,
    State.OPEN: Half.LEAVE,
    State.RETIRING: Half.SHUT,
    State.CLOSING: Half.SHUT,
}


@pytest.mark.parametrize("state", HALVES)
def test_what_is_done_when_the_other_side_will_send_no_more(state):
    """What is in our slots may still arrive there, where anything is."""
    assert endings.half_closed(state) is HALVES[state]


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("classic", [True, False, None])
def test_a_reject_counts_before_a_greeting_and_from_one_of_ours(state, classic):
    """An original ignores it, and never says so: from one it is noise."""
    counts = state in (State.GREETING, State.GREETED) or (state is State.OPEN and classic is False)
    assert endings.is_rejection(state, classic) is counts


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("unread", [0, 7])
def test_a_dead_link_that_was_used_is_read_to_its_end(state, unread):
    """Its sender was told that we have what lies here."""
    used = state in (State.OPEN, State.CLOSING, State.RETIRING)
    wanted = DeadEnd.DRAIN if used and unread else DeadEnd.END
    if state is State.DRAINING:
        wanted = DeadEnd.NOTHING
    assert endings.dead(state, (lambda: unread) if used else never) is wanted


@pytest.mark.parametrize(
    ("observed", "seen"),
    [
        pytest.param({"state": State.OPEN, "left": None}, Look(LOOK), id="no room to say so yet"),
        pytest.param({"now": 100.01}, Look(LOOK), id="said just now"),
        pytest.param({"owes": lambda: True}, Look(0.125), id="something is on its way"),
        pytest.param({"now": 140.0, "owes": lambda: True}, Look(LOOK_SELDOM), id="for long"),
        pytest.param({"now": 159.9, "owes": lambda: True}, Look(pytest.approx(0.1)), id="the end"),
        pytest.param({"owes": lambda: False}, Look(None), id="it never will"),
        pytest.param({"now": 100.75}, Look(0.09375), id="its system has all, it has not read it"),
        pytest.param({"now": 160.0}, Look(None, in_vain=True), id="too late"),
        pytest.param({"state": State.OPEN, "now": 161.0}, Look(None, True), id="never said"),
    ],
)
def test_what_a_look_at_a_connection_that_is_left_finds(observed, seen):
    """Too early an end resets the connection over what can still be read."""
    leaving = Leaving(State.CLOSING, now=101.0, left=100.0, deadline=160.0, owes=never)
    assert endings.look(leaving._replace(**observed)) == seen


def test_an_event_that_was_cut_off_is_served_again_where_that_is_harmless():
    """Messages once and only once; of anything else nobody knows how much was done."""
    for batch, kept, talk, used, waited_for in itertools.product((False, True), repeat=5):
        if (batch and talk) or (kept and not batch):
            continue
        found = endings.after_cut(Cut(batch, kept, talk, used, waited_for))
        assert found == AfterCut(
            again=talk or (batch and not kept),
            ends=not used or waited_for or not (batch or talk),
        )


WHOLE = Found(
    State.OPEN,
    timed=False,
    watched=False,
    linked=True,
    used=True,
    held=False,
    leaving=False,
    asking=False,
    stuck=lambda: False,
)


@pytest.mark.parametrize(
    ("observed", "what"),
    [
        pytest.param({}, Mending.NOTHING, id="whole"),
        pytest.param({"used": False}, Mending.END, id="open, and nobody's"),
        pytest.param({"linked": False}, Mending.END, id="without a link"),
        pytest.param({"leaving": True}, Mending.LEAVE, id="left, and nobody looks"),
        pytest.param({"leaving": True, "timed": True}, Mending.NOTHING, id="left, looked at"),
        pytest.param({"asking": True}, Mending.PING, id="somebody waits for an answer"),
        pytest.param({"stuck": lambda: True}, Mending.READ, id="paused for nobody"),
        pytest.param({"stuck": never, "held": True}, Mending.NOTHING, id="held back"),
        pytest.param(
            {"state": State.CONNECTING, "linked": False, "timed": True, "watched": True},
            Mending.NOTHING,
            id="a dial",
        ),
        pytest.param(
            {"state": State.CONNECTING, "linked": False, "timed": True}, Mending.END, id="half"
        ),
        pytest.param(
            {"state": State.CONNECTING, "linked": False, "watched": True}, Mending.END, id="half 2"
        ),
        pytest.param({"state": State.GREETING}, Mending.END, id="would greet for ever"),
        pytest.param({"state": State.GREETING, "timed": True}, Mending.NOTHING, id="greets"),
        pytest.param({"state": State.RETIRING}, Mending.END, id="would retire for ever"),
        pytest.param({"state": State.CLOSING}, Mending.END, id="would leave for ever"),
        pytest.param({"state": State.GREETED, "stuck": never}, Mending.NOTHING, id="greeted"),
        pytest.param({"state": State.ASIDE, "stuck": never}, Mending.NOTHING, id="aside"),
        pytest.param({"state": State.DRAINING}, Mending.DRAIN, id="drains"),
        pytest.param({"state": State.DRAINING, "held": True}, Mending.NOTHING, id="drains, held"),
    ],
)
def test_what_is_mended_after_something_was_cut_off(observed, what):
    """Nothing may stay half made for ever, and nothing that is whole may end."""
    assert endings.mending(WHOLE._replace(**observed)) is what


def test_a_connection_without_a_deadline_is_never_given_up():
    """Closing with no time-out waits for as long as it takes."""
    leaving = Leaving(State.CLOSING, 1e9, 100.0, math.inf, owes=lambda: True)
    assert endings.look(leaving) == Look(LOOK_SELDOM)


NAMED, NAMELESS = Peer(b"\x01" * 8, name="bob"), Peer(("10.0.0.2", 40_000))
MISSED = Peer(("10.0.0.2", 40_001))
MISSED.accepted = 1
USED = {"fault": False, "used": True, "broken": True, "polite": False, "closing": False}


@pytest.mark.parametrize(
    ("peer", "seen", "report"),
    [
        (NAMED, USED, Report.WARNING),
        (MISSED, USED, Report.WARNING),
        (NAMELESS, USED, Report.INFO),
        (None, USED, Report.INFO),
        (NAMED, USED | {"used": False}, Report.SILENT),
        (NAMED, USED | {"broken": False}, Report.SILENT),
        (NAMED, USED | {"polite": True}, Report.SILENT),
        (NAMED, USED | {"closing": True}, Report.SILENT),
        (None, USED | {"fault": True, "used": False}, Report.FAULT),
        (NAMED, USED | {"fault": True, "polite": True, "closing": True}, Report.FAULT),
    ],
)
def test_an_end_is_told_as_loudly_as_it_is_missed(peer, seen, report):
    """A warning that nobody misses hides the one that somebody does."""
    assert endings.report(peer, **seen) is report


@pytest.mark.parametrize(
    ("error", "rejected", "final"),
    [
        (None, False, False),
        (errors.ConnectionRefused("nobody listens"), False, False),
        (errors.ConnectionRefused("full", reason=errors.RejectReason.FULL), True, True),
        (endings.not_used(NAMED), False, True),
        (errors.Timeout("late"), False, False),
    ],
)
def test_which_errors_no_other_address_and_no_other_attempt_would_change(error, rejected, final):
    """Whoever asks again at once is a nuisance; whoever gives up too soon is alone."""
    assert endings.was_rejected(error) is rejected and endings.is_final(error) is final


def test_what_those_hear_whose_connection_was_not_used_or_was_cut_off():
    """Who answered is known, though not by this connection; and what struck is no secret."""
    unused = endings.not_used(NAMED)
    assert unused.known is NAMED and unused.peer == "bob" and "did not use" in str(unused)
    assert "ValueError('odd') cut off" in str(endings.cut_off(ValueError("odd")))
    assert str(endings.cut_off(None)).startswith("an exception cut off")
    assert isinstance(endings.cut_off(KeyboardInterrupt()), errors.PeerTalkError)


@pytest.mark.parametrize(
    ("state", "seconds", "ends"),
    [
        (State.OPEN, 9.9, False),
        (State.OPEN, 10.0, True),
        (State.RETIRING, 60.0, True),
        (State.CLOSED, 60.0, False),
    ],
)
def test_who_stands_still_for_long_ends_when_memory_is_scarce(state, seconds, ends):
    """A burst that fills the pool for a second must cost nobody its connection."""
    still = Connection(1, ("10.0.0.2", 7354), dialled=True, now=0.0, peer=NAMED)
    still.state = state
    error = endings.stood_still(still, seconds, 10.0)
    assert (error is not None) is ends
    assert error is None or (error.peer == "bob" and "Config.link_timeout is 10 s" in str(error))


@pytest.mark.parametrize(
    ("error", "astray"),
    [
        (errors.ConnectionClosed("it closed"), True),
        (errors.NetworkFailure("another greets"), True),
        (errors.BadCrc("nonsense"), True),
        (errors.ConnectionRefused("no", reason=errors.RejectReason.FULL), False),
        (errors.Timeout("it says nothing"), False),
        (errors.OutOfMemory("no link"), False),
        (None, False),
    ],
)
@pytest.mark.parametrize("dialled", [True, False])
@pytest.mark.parametrize("state", list(State))
def test_a_socket_that_led_astray_is_one_that_we_called_and_nobody_greeted(
    state, dialled, error, astray
):
    """Everything else would be the same by TCP, or is no matter of where it led."""
    connection = Connection(1, ("127.0.0.1", 7), dialled=dialled, now=0.0)
    early = state in (State.CONNECTING, State.GREETING)
    expected = astray and dialled and early
    assert endings.is_astray(connection, state, error) is expected


def test_what_those_hear_whose_dial_or_link_has_come_to_nothing():
    """Where, for how long, and by which setting."""
    peer = Peer(b"12345678", name="bob")
    connection = Connection(1, ("10.0.0.1", 7), dialled=True, now=0.0, peer=peer)
    late = endings.no_answer(connection, 2.5)
    assert isinstance(late, errors.Timeout)
    assert str(late) == "10.0.0.1:7 did not answer within 2.5 s (Config.connect_timeout)"
    dead = endings.died(connection, 15.4)
    assert isinstance(dead, errors.ConnectionClosed) and dead.peer == "bob"
    assert "'bob' has acknowledged nothing for 15 s (Config.link_timeout); the link" in str(dead)
    moved = endings.without_address(connection, "10.0.0.2")
    assert type(moved) is errors.NetworkFailure and moved.peer == "bob"
    assert "peer 'bob' lived on 10.0.0.2, which is no longer an address of this" in str(moved)
