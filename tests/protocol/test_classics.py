"""Classic peers: whose a call is, whom to dial and when, and what becomes of two connections with
one of them. The clock is a number, and nobody has a socket."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk.protocol import classics
from peertalk.protocol.classics import (
    CLASSIC_DIAL_INTERVAL,
    CLASSIC_DIALS,
    HEAD_START,
    QUIET_TIME,
    Classics,
    Turn,
)
from peertalk.protocol.connections import Connection
from peertalk.protocol.peer import Peer

HOST = "10.0.0.2"
ANNOUNCED, OTHER, FROM, FROM_TOO = (HOST, 7354), (HOST, 7360), (HOST, 49_152), (HOST, 49_153)


def ours(tag=1, address=ANNOUNCED):
    return Connection(tag, address, dialled=True, now=0.0)


def theirs(tag=2, address=FROM):
    return Connection(tag, address, dialled=False, now=0.0)


# --- whose a call is ------------------------------------------------------------------------------

CALLS = {
    # what is known at the host: key, connections of each; whose a caller is, by its place
    "nobody": ([], None),
    "the one that is not connected": ([(ANNOUNCED, [])], 0),
    "the only one, which only we have dialled": ([(ANNOUNCED, [ours()])], 0),
    "not one that has called already": ([(ANNOUNCED, [theirs()])], None),
    "not one that has called beside our dial": ([(ANNOUNCED, [ours(), theirs()])], None),
    "one of two that are not connected": ([(ANNOUNCED, []), (OTHER, [])], None),
    "the one that lacks a connection": ([(ANNOUNCED, [ours()]), (OTHER, [])], 1),
    "one of two that we have dialled": ([(ANNOUNCED, [ours()]), (OTHER, [ours(3, OTHER)])], None),
    "not one that has called without a name": ([(FROM, [theirs()])], None),
    "the only one that has a name": ([(FROM, [theirs()]), (ANNOUNCED, [ours()])], 1),
}


@pytest.mark.parametrize("known", CALLS)
def test_a_call_belongs_to_the_one_peer_that_can_have_made_it(known):
    """It says no name: taken for somebody else's, it would be a second peer for one program;
    guessed, it could be the wrong one's."""
    at_host, expected = CALLS[known]
    peers = [(Peer(key), had) for key, had in at_host]
    found = classics.owner(peers)
    assert found is (None if expected is None else peers[expected][0])


NAMES = {
    # as above; which of them is the one that announces itself as ANNOUNCED
    "nobody has called": ([], None),
    "the one that has called": ([(FROM, [theirs()])], 0),
    "one of two that have called": ([(FROM, [theirs()]), (FROM_TOO, [theirs(3, FROM_TOO)])], None),
    "another one may have called": ([(FROM, [theirs()]), (OTHER, [])], None),
    "the others have theirs": ([(OTHER, [ours(3, OTHER)]), (FROM, [theirs()])], 1),
    "it has its own": ([(FROM, [theirs()]), (ANNOUNCED, [ours()])], None),
    "its former life has none": ([(FROM, [theirs()]), (ANNOUNCED, [])], 0),
}


@pytest.mark.parametrize("known", NAMES)
def test_an_announcement_names_the_one_caller_that_can_be_meant(known):
    """Dialled instead, it would have two connections; with a guess, another one's name."""
    at_host, expected = NAMES[known]
    peers = [(Peer(key), had) for key, had in at_host]
    found = classics.caller(ANNOUNCED, peers)
    assert found is (None if expected is None else peers[expected][0])


# --- whom to dial ---------------------------------------------------------------------------------


def test_who_is_heard_has_a_head_start_behind_our_own_announcement():
    """An original dials in the poll in which it hears us; our dial beside that would cost it a
    place, and what is in its queue when one of the two ends."""
    known = Classics(10)
    known.heard(ANNOUNCED, announced_at=1.1)
    assert known.next_timeout() == pytest.approx(1.1 + HEAD_START)
    assert known.head_start(ANNOUNCED, 1.2) == pytest.approx(HEAD_START - 0.1)
    assert known.head_start(OTHER, 1.2) == 0
    assert known.next(1.1 + HEAD_START - 0.001) is None
    known.heard(ANNOUNCED, announced_at=1.2)  # does not put it off
    assert known.next(1.1 + HEAD_START) == ANNOUNCED
    assert known.next(9.0) is None and known.next_timeout() is None


def test_who_has_called_meanwhile_is_not_dialled():
    """That is what the head start is for."""
    known = Classics(10)
    known.heard(ANNOUNCED, 0.0)
    known.connected(ANNOUNCED)
    assert known.next(9.0) is None and known.next_timeout() is None


def test_who_has_parted_on_purpose_is_left_alone_until_somebody_connects_or_finds_it_anew():
    """Dialling again who has just said DISCONNECT, every ten seconds, is no way to part."""
    for comes_back in (Classics.connected, Classics.forget):
        known = Classics(10)
        known.heard(ANNOUNCED, 0.0)
        known.parted(ANNOUNCED)
        assert known.next(9.0) is None
        known.heard(ANNOUNCED, 10.0)
        assert not known.is_wanted(ANNOUNCED) and known.next(19.0) is None
        comes_back(known, ANNOUNCED)
        known.heard(ANNOUNCED, 20.0)
        assert known.next(29.0) == ANNOUNCED


def test_who_does_not_listen_is_never_dialled():
    """Port 0."""
    known = Classics(10)
    known.heard((HOST, 0), 0.0)
    assert known.next(9.0) is None


def test_a_few_are_dialled_at_a_time_and_each_host_once_a_second():
    """A flood of forged announcements must not make us flood a third party with connections."""
    known = Classics(100)
    keys = [(f"10.0.0.{host}", port) for host in range(1, 11) for port in (1, 2)]
    for key in keys:
        known.heard(key, 0.0)
    now, dialled = HEAD_START, []
    while len(dialled) < len(keys):
        started = []
        while (key := known.next(now)) is not None:
            known.dialled(len(dialled))
            dialled.append((now, key))
            started.append(len(dialled) - 1)
        assert len(started) <= CLASSIC_DIALS
        if len(started) == CLASSIC_DIALS:
            assert known.next_timeout() is None  # one of them has to settle first
        for tag in started:
            known.settled(tag)
        due = known.next_timeout()
        assert due is not None or len(dialled) == len(keys)
        now = max(now, due or now)
    assert sorted(key for _, key in dialled) == sorted(keys)
    for host in {key[0] for key in keys}:
        times = [at for at, key in dialled if key[0] == host]
        assert times[1] - times[0] >= CLASSIC_DIAL_INTERVAL


def test_those_who_wait_are_bounded():
    """Peers that are never dialled must not pile up."""
    known = Classics(3)
    for port in range(1, 11):
        known.heard((HOST, port), 0.0)
    dialled = [known.next(9.0 + 2 * turn) for turn in range(10)]
    assert [key for key in dialled if key] == [(HOST, 1), (HOST, 2), (HOST, 3)]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["heard", "next", "settled", "connected", "parted", "forget", "wait"]),
            st.integers(1, 3),
        ),
        max_size=60,
    )
)
def test_whatever_happens_nobody_is_dialled_too_often_or_against_a_will(steps):
    """The limits hold in every order of what can happen."""
    known, now, tags, parted = Classics(5), 0.0, [], set()
    fresh = itertools.count()
    last: dict[str, float] = {}
    for step, number in steps:
        key = (f"10.0.0.{number}", 7354)
        if step == "next":
            found = known.next(now)
            if found is not None:
                assert found not in parted and len(tags) < CLASSIC_DIALS
                assert now - last.get(found[0], -9.0) >= CLASSIC_DIAL_INTERVAL
                last[found[0]] = now
                tags.append(next(fresh))
                known.dialled(tags[-1])
        elif step == "settled":
            if tags:
                known.settled(tags.pop())
        elif step == "wait":
            now += number / 4
        elif step == "heard":
            known.heard(key, now)
        else:
            getattr(known, step)(key)
            (parted.add if step == "parted" else parted.discard)(key)


# --- two connections with one ---------------------------------------------------------------------


def pair(used, aside):
    known = Classics(10)
    known.stood_aside(aside.tag, None, 0.0)
    return known, used, aside


def test_we_go_over_to_its_own_connection_when_all_that_we_sent_on_ours_is_read():
    """A message there that is read behind a later one here would be out of order; the PONG behind
    it says that it was read."""
    known, used, aside = pair(ours(), theirs())
    assert known.turn(used, aside, 5, 0.1, idle=False) is Turn.WAIT
    assert known.turn(used, aside, 5, 0.2, idle=True) is Turn.ASK
    used.ping_left(0.2, paused=False)
    known.asked(aside.tag, 5)
    assert known.turn(used, aside, 5, 0.3, idle=True) is Turn.WAIT
    used.pong(0.4)
    assert known.turn(used, aside, 6, 0.4, idle=True) is Turn.ASK, "one more was sent meanwhile"
    assert known.turn(used, aside, 5, 0.4, idle=True) is Turn.EXCHANGE


def test_an_answer_that_may_be_one_to_an_earlier_question_proves_nothing():
    """A PING that was given up may be answered late, before what was sent after it is read."""
    known, used, aside = pair(ours(), theirs())
    used.ping_left(0.0, paused=False)
    used.ping_left(20.0, paused=False)  # the first was given up
    known.asked(aside.tag, 5)
    used.pong(20.1)
    assert known.turn(used, aside, 5, 20.1, idle=True) is Turn.ASK


def test_our_own_is_shut_when_it_has_brought_nothing_for_a_while():
    """What waits in the original's queue for a connection is dropped when that ends."""
    known, used, aside = pair(theirs(), ours())
    assert known.turn(used, aside, 0, QUIET_TIME - 0.1, idle=True) is Turn.WAIT
    known.brought(aside.tag, QUIET_TIME - 0.1)
    assert known.turn(used, aside, 0, 2 * QUIET_TIME - 0.2, idle=True) is Turn.WAIT
    assert known.turn(used, aside, 0, 2 * QUIET_TIME - 0.1, idle=False) is Turn.SHUT


def test_what_was_said_on_a_connection_that_stands_aside_holds_when_it_is_used():
    """The pressure that it reports is that of each connection."""
    known = Classics(10)
    known.stood_aside(1, None, 0.0)
    said = SimpleNamespace(pressure=75)
    known.said(1, said)
    assert known.asides == 1 and known.taken(1) is said
    assert known.asides == 0 and known.taken(1) is None
