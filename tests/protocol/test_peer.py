"""A peer's life cycle, identity and weight."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk.errors import InvalidState
from peertalk.protocol.peer import _NEXT, Peer, PeerEvent, PeerState
from peertalk.protocol.wire import Capabilities

S, E = PeerState, PeerEvent
INSTANCE = bytes.fromhex("1a2b3c4d5e6f7081")

# Section 14 of the protocol, with FAILED -> CONNECTING (we dial again) and "forgotten" (UNUSED) read as DISCOVERED: the table of peers, not
# the peer, forgets.
ALLOWED = {
    S.DISCOVERED: {S.DISCOVERED, S.CONNECTING, S.CONNECTED},
    S.CONNECTING: {S.CONNECTING, S.CONNECTED, S.FAILED, S.DISCONNECTING, S.DISCOVERED},
    S.CONNECTED: {S.CONNECTED, S.DISCONNECTING, S.DISCOVERED},
    S.DISCONNECTING: {S.DISCONNECTING, S.DISCOVERED, S.CONNECTED},
    S.FAILED: {S.DISCOVERED, S.CONNECTING, S.CONNECTED},
}


@pytest.mark.parametrize(
    "story",
    [
        [(E.DIALLED, S.CONNECTING), (E.OPENED, S.CONNECTED), (E.LOST, S.DISCOVERED)],
        [(E.DIALLED, S.CONNECTING), (E.OPENED, S.CONNECTED), (E.LEFT, S.DISCONNECTING), (E.CLOSED, S.DISCOVERED)],
        [(E.OPENED, S.CONNECTED), (E.HEARD, S.CONNECTED), (E.LOST, S.DISCOVERED), (E.HEARD, S.DISCOVERED)],
        [(E.DIALLED, S.CONNECTING), (E.REFUSED, S.FAILED), (E.DIALLED, S.CONNECTING), (E.OPENED, S.CONNECTED)],
        [(E.DIALLED, S.CONNECTING), (E.REFUSED, S.FAILED), (E.HEARD, S.DISCOVERED)],
        [(E.DIALLED, S.CONNECTING), (E.REFUSED, S.FAILED), (E.OPENED, S.CONNECTED)],
        [(E.DIALLED, S.CONNECTING), (E.OPENED, S.CONNECTED), (E.OPENED, S.CONNECTED), (E.REFUSED, S.CONNECTED)],
        [(E.DIALLED, S.CONNECTING), (E.LEFT, S.DISCONNECTING), (E.REFUSED, S.DISCONNECTING), (E.CLOSED, S.DISCOVERED)],
        [(E.DIALLED, S.CONNECTING), (E.CLOSED, S.DISCOVERED)],
        [(E.OPENED, S.CONNECTED), (E.LEFT, S.DISCONNECTING), (E.OPENED, S.CONNECTED)],
    ],
)
def test_a_peer_lives_as_the_protocol_says(story):
    """Each line is something that happens on a network, the crossed dials and the early return included."""
    peer = Peer(INSTANCE)
    assert peer.state is S.DISCOVERED
    for event, state in story:
        assert peer.advance(event) is state
        assert peer.state is state
        assert peer.connected == (state is S.CONNECTED)


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("event", E)
def test_an_arrow_that_is_not_in_the_table_is_an_error_that_changes_nothing(state, event):
    """An impossible event is a bug somewhere: it must show, with the peer's name, and not bend the state."""
    peer = Peer(INSTANCE, name="ada")
    peer.state = state
    if (state, event) in _NEXT:
        assert peer.advance(event) in ALLOWED[state]
    else:
        with pytest.raises(InvalidState, match=rf"'ada' is {state.value}: '{event.value}'") as caught:
            peer.advance(event)
        assert peer.state is state
        assert caught.value.peer == "ada"


def test_every_state_can_be_reached_and_left():
    """A state without a way out is quirk Q5 of the original: a peer that failed once is lost until it restarts."""
    assert {after for (before, _), after in _NEXT.items() if before is not after} == set(S)
    assert {before for (before, _), after in _NEXT.items() if before is not after} == set(S)


@given(st.lists(st.sampled_from(list(E)), max_size=30))
def test_a_peer_can_be_heard_whatever_happened_before(events):
    """Announcements come from strangers at any time: they must not be able to raise."""
    peer = Peer(INSTANCE)
    for event in events:
        if (peer.state, event) in _NEXT:
            peer.advance(event)
    peer.advance(E.HEARD)


def test_who_a_peer_is():
    """Ids are unique on the network; names need not be."""
    ours = Peer(INSTANCE, instance=INSTANCE, name="bob", address=("10.0.0.2", 7354))
    classic = Peer(("10.0.0.3", 7354), name="CREF", address=("10.0.0.3", 7354))
    assert (ours.id, ours.classic) == ("1a2b3c4d5e6f7081", False)
    assert (classic.id, classic.classic) == ("10.0.0.3:7354", True)
    ours.advance(E.OPENED)
    assert repr(ours) == "<Peer 'bob' 1a2b3c4d connected 10.0.0.2:7354>"
    assert repr(classic) == "<Peer 'CREF' classic discovered 10.0.0.3:7354>"


def test_a_name_from_the_network_cannot_write_to_the_terminal():
    """A peer may call itself an escape sequence; repr ends up in logs."""
    assert "\x1b" not in repr(Peer(INSTANCE, name="\x1b[2J"))


def test_the_longest_message_is_the_smaller_limit_of_the_two_sides():
    """Section 6 of the protocol; 512 until a classic peer has said more."""
    classic = Peer(("10.0.0.3", 1), own_max_message=8192)
    assert classic.max_message == 512
    assert Peer(("10.0.0.3", 1), own_max_message=256).max_message == 256
    assert Peer(INSTANCE, instance=INSTANCE, own_max_message=1024).max_message == 1024
    classic.capabilities = Capabilities(4096, 1024, 0, 0)
    assert classic.max_message == 4096
    classic.own_max_message = 1024
    assert classic.max_message == 1024


def test_peers_are_equal_only_to_themselves_and_keep_their_hash():
    """Applications put them into sets and dictionaries while their state changes."""
    one, other = Peer(INSTANCE), Peer(INSTANCE)
    before = hash(one)
    one.advance(E.OPENED)
    one.name = "new name"
    assert hash(one) == before
    assert one == one
    assert one != other


def test_an_idle_peer_weighs_less_than_a_kilobyte_and_a_half_and_has_no_dictionary():
    """A thousand peers are known at once; a stray attribute would cost a dictionary for each, and hide a typing error."""
    peer = Peer(INSTANCE)
    with pytest.raises(AttributeError):
        peer.stat = S.FAILED
    tracemalloc.start()
    try:
        peers = [Peer(index.to_bytes(8, "big"), name=f"peer {index}", address=("10.0.0.2", index)) for index in range(1000)]
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size / len(peers) < 1536
