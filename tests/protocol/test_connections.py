"""What a connection may go through, and whom to dial: decided without a socket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.tables import each_row

from peertalk.errors import InvalidArgument, InvalidState, RejectReason
from peertalk.protocol import connections as policy
from peertalk.protocol.connections import Connection, Connections, State, Step
from peertalk.protocol.peer import Peer


def connection(tag, *, dialled, now=0.0, host="10.0.0.2", peer=None, steps=()):
    made = Connection(tag, (host, 7354), dialled=dialled, now=now, peer=peer)
    for step in steps:
        made.advance(step)
    return made


GREETING_DIALLED = (Step.DIAL, Step.ESTABLISH)


TABLE = """
           dial       establish identify use  greet step-aside retire   drain    leave   end
idle       connecting greeting  -        -    -     -          -        -        -       closed
connecting -          greeting  -        -    -     -          -        -        -       closed
greeting   -          -         greeted  -    open  aside      retiring -        closing closed
greeted    -          -         -        open open  -          -        draining -       closed
open       -          -         -        -    -     aside      retiring draining closing closed
aside      -          -         -        open -     -          retiring -        closing closed
retiring   -          -         -        -    -     -          -        draining closing closed
draining   -          -         -        -    -     -          -        -        -       closed
closing    -          -         -        -    -     -          closing  draining -       closed
closed     -          -         -        -    -     -          -        -        -       -
"""
STEPS, *ROWS = [line.split() for line in TABLE.strip().splitlines()]
ALLOWED = {
    (State(row[0]), Step(step)): State(cell)
    for row in ROWS
    for step, cell in zip(STEPS, row[1:], strict=True)
    if cell != "-"
}


@each_row("state", State.__members__)
@each_row("step", Step.__members__)
def test_each_arrow_leads_where_the_table_says_and_all_else_is_an_error_that_changes_nothing(
    state, step
):
    """An arrow that is not drawn is a mistake of ours, and must not pass unseen."""
    made = connection(1, dialled=True)
    made.state = state
    if (state, step) in ALLOWED:
        made.advance(step)
        assert made.state is ALLOWED[state, step]
        return
    with pytest.raises(
        InvalidState,
        match=rf"connection 1 to 10\.0\.0\.2:7354: {step.value} is not allowed while {state.value}",
    ):
        made.advance(step)
    assert made.state is state


def test_every_state_ends_and_nothing_follows_the_end():
    """Whatever happens to a connection, it can be closed; once."""
    for state in State:
        made = connection(1, dialled=False)
        made.state = state
        if state is State.CLOSED:
            with pytest.raises(InvalidState):
                made.advance(Step.END)
        else:
            made.advance(Step.END)
            assert made.state is State.CLOSED and not made.alive


def test_a_ping_measures_only_what_surely_was_its_own_way():
    """One at a time; an answer that nobody asked for, that lay unread, or that may belong to one
    given up before, says nothing about the way."""
    made = connection(1, dialled=True)
    assert made.may_ping(0.0, 15.0) and made.pong(0.5) is None, "unasked"
    made.ping_left(1.0, paused=False)
    assert not made.may_ping(15.9, 15.0)
    assert made.pong(1.25) == 0.25 and made.pong(1.3) is None
    made.ping_left(2.0, paused=True)
    assert made.pong(2.1) is None, "the link was not read"
    made.ping_left(3.0, paused=False)
    made.spoilt = True
    assert made.pong(3.1) is None, "paused while it was under way"
    made.ping_left(4.0, paused=False)
    assert made.may_ping(19.0, 15.0), "given up"
    made.ping_left(19.0, paused=False)
    assert made.pong(19.001) is None, "whose answer is this?"
    made.ping_left(20.0, paused=False)
    assert made.pong(20.5) == 0.5


@given(count=st.integers(0, 100_000), interval=st.floats(0.001, 1000))
def test_pings_of_many_peers_leave_a_few_at_a_time(count, interval):
    """Each borrows a slot buffer: 1,500 at once would be 96 MB."""
    spacing = policy.ping_spacing(count, interval)
    groups = max(1, -(-count // policy.PINGS_PER_TURN))
    assert spacing >= policy.PING_SPACING_MIN
    assert groups * spacing >= min(interval, groups * policy.PING_SPACING_MIN) * 0.999, (
        "not more often than asked for"
    )
    if interval >= groups * policy.PING_SPACING_MIN:
        assert (groups - 1) * spacing <= max(interval, policy.PING_SPACING_MIN) * 1.001, (
            "all have had their turn in time"
        )


def test_the_reason_of_a_reject_is_its_first_byte():
    """They have the original's numbers. Programs of another version may know more reasons, or
    none."""
    assert [(reason.name, reason.value) for reason in RejectReason] == [
        ("UNSPECIFIED", 0),
        ("FULL", 1),
        ("BANNED", 2),
        ("WRONG_VERSION", 3),
        ("IN_PROGRESS", 4),
    ]
    assert [policy.reject_reason(bytes((byte, 9))) for byte in range(5)] == list(RejectReason)
    assert policy.reject_reason(b"") is policy.reject_reason(b"\xff") is RejectReason.UNSPECIFIED


@pytest.mark.parametrize("wrong", [5, -1, 1.0, "FULL", None])
def test_a_user_rejects_for_one_of_five_reasons(wrong):
    """What is none of these would go out as a byte that the other side reads as something else."""
    assert [policy.checked_reason(number) for number in range(5)] == list(RejectReason)
    with pytest.raises(InvalidArgument, match=r"one of peertalk.RejectReason, UNSPECIFIED 0"):
        policy.checked_reason(wrong)


def test_connections_are_bounded_and_refusals_counted():
    """A flood of strangers costs a bounded number of descriptors."""
    known = Connections(2)
    for tag in (1, 2):
        assert known.has_room()
        known.add(connection(tag, dialled=False))
    assert not known.has_room() and not known.has_room() and known.refused == 2 and len(known) == 2
    known.remove(known.by_tag[1])
    assert known.has_room() and len(known) == 1


def test_a_dial_under_way_is_found_by_peer_and_by_address_until_it_is_settled():
    """A second dial to the same place would be a second link."""
    peer = Peer(b"12345678")
    known = Connections(8)
    dial = connection(1, dialled=True, peer=peer, steps=[Step.DIAL])
    known.add(dial)
    known.add(connection(2, dialled=False, host="10.0.0.3", peer=peer, steps=[Step.ESTABLISH]))
    assert known.dialling(peer) is dial and known.dialling_to(("10.0.0.2", 7354)) is dial
    assert known.dialling_since(peer, dial.since + 9.0) == dial.since
    dial.local = True
    assert known.dialling_since(peer, dial.since + 9.0) == dial.since + 9.0, "none can hang"
    assert known.dialling_to(("10.0.0.3", 7354)) is None, "accepted, not dialled"
    dial.advance(Step.ESTABLISH)
    assert known.dialling(peer) is dial
    dial.advance(Step.GREET)
    assert known.dialling(peer) is None and known.dialling_to(("10.0.0.2", 7354)) is None
    assert known.dialling_since(peer, 0.0) is None


def test_who_has_not_said_whose_it_is_is_undecided_until_it_has():
    """Too many, and a stranger holds up honest peers; too few, and messages overtake each other."""
    known = Connections(16)
    accepted = connection(1, dialled=False, steps=[Step.ESTABLISH])
    dial = connection(2, dialled=True, steps=GREETING_DIALLED)
    gone = connection(3, dialled=False, steps=[Step.ESTABLISH])
    for made in (accepted, dial, gone):
        known.add(made)
    assert known.undecided == [accepted, dial, gone]
    accepted.advance(Step.IDENTIFY)
    known.remove(gone)
    assert known.undecided == [dial]
    dial.advance(Step.GREET)
    assert known.undecided == []


def test_no_two_dials_have_the_same_number():
    """It names a connection to the other side, together with who dialled; 0 is none."""
    known = Connections(1)
    assert [known.next_number() for _ in range(3)] == [1, 2, 3]
