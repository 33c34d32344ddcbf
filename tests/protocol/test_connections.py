"""Whom to dial and which of two connections stays: decided without a socket, and by both sides alike."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk.errors import InvalidState
from peertalk.protocol import connections as policy
from peertalk.protocol.connections import Connection, Connections, State, Step, stays
from peertalk.protocol.peer import Peer

SMALL, LARGE = b"\x01" * 8, b"\x02" * 8


def connection(tag, *, dialled, now=0.0, host="10.0.0.2", peer=None, steps=()):
    made = Connection(tag, (host, 7354), dialled=dialled, now=now, peer=peer)
    for step in steps:
        made.advance(step)
    return made


GREETING_DIALLED = (Step.DIAL, Step.ESTABLISH)


def test_a_connection_takes_no_step_that_the_table_does_not_have():
    """An arrow that is not drawn is a mistake of ours, and must not pass unseen."""
    allowed = 0
    for state, step in itertools.product(State, Step):
        made = connection(1, dialled=True)
        made.state = state
        try:
            made.advance(step)
            allowed += 1
        except InvalidState as error:
            assert made.state is state and step.value in str(error) and state.value in str(error)
    assert allowed == len(policy._NEXT)


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


@given(first=st.booleans(), apart=st.floats(0, 1), ours_smaller=st.booleans())
def test_both_sides_keep_the_same_one_of_two_that_crossed(first, apart, ours_smaller):
    """If they chose differently both links would be shut: that is the whole difficulty of dialling at once."""
    own, theirs = (SMALL, LARGE) if ours_smaller else (LARGE, SMALL)
    here_dialled, here_accepted = connection(1, dialled=True), connection(2, dialled=False)
    there_dialled, there_accepted = connection(2, dialled=True), connection(1, dialled=False)
    here = [here_dialled, here_accepted] if first else [here_accepted, here_dialled]
    there = [there_dialled, there_accepted]
    here[1].since, there[1].since = apart, 1 - apart
    kept_here = stays(here[0], here[1], own, theirs, 5.0)
    kept_there = stays(there[0], there[1], theirs, own, 5.0)
    assert kept_here.tag == kept_there.tag == (1 if ours_smaller else 2)


def test_a_connection_that_cannot_have_crossed_replaces_the_old_one():
    """Nobody dials while it has a connection: whoever dials anew has lost the old one, whatever we still believe."""
    old, again = connection(1, dialled=False), connection(2, dialled=False, now=0.1)
    assert stays(old, again, LARGE, SMALL, 5.0) is again
    ours, theirs_much_later = connection(1, dialled=True), connection(2, dialled=False, now=5.0 + 2 * policy.GREETING_TIME + 0.1)
    assert stays(ours, theirs_much_later, SMALL, LARGE, 5.0) is theirs_much_later


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
    assert known.dialling_to(("10.0.0.3", 7354)) is None, "accepted, not dialled"
    dial.advance(Step.ESTABLISH)
    assert known.dialling(peer) is dial
    dial.advance(Step.GREET)
    assert known.dialling(peer) is None and known.dialling_to(("10.0.0.2", 7354)) is None


def test_only_connections_that_may_carry_earlier_data_are_waited_for():
    """Too many, and a stranger holds up honest peers; too few, and messages overtake each other."""
    known = Connections(16)
    peer, other = Peer(b"12345678"), Peer(b"87654321")
    mine = connection(1, dialled=True, peer=peer, steps=[*GREETING_DIALLED, Step.GREET])
    crossing = connection(2, dialled=False, steps=[Step.ESTABLISH])
    for made in (
        mine, crossing,
        connection(3, dialled=False, host="10.0.0.9", steps=[Step.ESTABLISH]),  # another host
        connection(4, dialled=True, peer=other, steps=GREETING_DIALLED),  # known to be somebody else
        connection(5, dialled=False, steps=[Step.ESTABLISH, Step.GREET]),  # has said who it is
        connection(6, dialled=False, now=-2 * policy.SILENCE_TIME, steps=[Step.ESTABLISH]),  # silent for long
    ):  # fmt: skip
        known.add(made)
    assert known.unsettled(mine, 0.1) == {2}
    assert known.unsettled(mine, policy.GREETING_TIME + policy.SILENCE_TIME + 0.1) == set(), "too old to have been crossed"


def test_classic_peers_are_dialled_a_few_at_a_time_and_each_host_once_a_second():
    """A flood of forged announcements must not make us flood a third party with connections."""
    known = Connections(100)
    peers = [Peer((f"10.0.0.{host}", port)) for host in range(1, 11) for port in (1, 2)]
    for peer in peers:
        peer.address = peer.key
        known.want_classic(peer)
    now, dialled = 0.0, []

    def dial_all():
        started = []
        while (peer := known.next_classic(now)) is not None:
            dial = connection(len(dialled) + 100, dialled=True, peer=peer)
            known.add(dial)
            known.dialled_classic(dial)
            dialled.append((now, peer))
            started.append(dial)
        return started

    while known.classic_waiting:
        started = dial_all()
        assert len(started) <= policy.CLASSIC_DIALS
        assert known.next_classic(now) is None
        for dial in started[::2]:
            known.settled_classic(dial)
        for dial in started[1::2]:
            known.remove(dial)
        now += policy.CLASSIC_DIAL_INTERVAL / 4
    assert sorted(peer.key for _, peer in dialled) == sorted(peer.key for peer in peers)
    for host in {peer.address[0] for peer in peers}:
        times = [at for at, peer in dialled if peer.address[0] == host]
        assert times[1] - times[0] >= policy.CLASSIC_DIAL_INTERVAL


def test_the_queue_of_classic_dials_is_bounded():
    """Peers that are never dialled must not pile up."""
    known = Connections(3)
    for port in range(10):
        known.want_classic(Peer(("10.0.0.1", port)))
    assert known.classic_waiting == 3
