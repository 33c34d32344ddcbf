"""A peer's life cycle, identity and weight."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.tables import each_row

from peertalk.errors import InvalidArgument, InvalidState, WrongType
from peertalk.protocol.peer import _NEXT, PARTING, Latency, Peer, PeerEvent, PeerFlag, PeerState
from peertalk.protocol.wire import Capabilities

S, E = PeerState, PeerEvent
INSTANCE = bytes.fromhex("1a2b3c4d5e6f7081")

# Section 14 of the protocol, with FAILED -> CONNECTING (we dial again) and "forgotten" (UNUSED)
# read as DISCOVERED: the table of peers, not the peer, forgets.
TABLE = """
              heard         dialled    opened    refused       lost       left          closed
discovered    discovered    connecting connected -             -          -             -
connecting    connecting    -          connected failed        failed     disconnecting discovered
connected     connected     -          connected connected     discovered disconnecting -
disconnecting disconnecting -          connected disconnecting discovered -             discovered
failed        discovered    connecting connected -             -          -             -
"""
EVENTS, *ROWS = [line.split() for line in TABLE.strip().splitlines()]
ALLOWED = {
    (S(row[0]), E(event)): S(cell)
    for row in ROWS
    for event, cell in zip(EVENTS, row[1:], strict=True)
    if cell != "-"
}


@pytest.mark.parametrize(
    "story",
    [
        [(E.DIALLED, S.CONNECTING), (E.OPENED, S.CONNECTED), (E.LOST, S.DISCOVERED)],
        [
            (E.DIALLED, S.CONNECTING),
            (E.OPENED, S.CONNECTED),
            (E.LEFT, S.DISCONNECTING),
            (E.CLOSED, S.DISCOVERED),
        ],
        [
            (E.OPENED, S.CONNECTED),
            (E.HEARD, S.CONNECTED),
            (E.LOST, S.DISCOVERED),
            (E.HEARD, S.DISCOVERED),
        ],
        [
            (E.DIALLED, S.CONNECTING),
            (E.REFUSED, S.FAILED),
            (E.DIALLED, S.CONNECTING),
            (E.OPENED, S.CONNECTED),
        ],
        [(E.DIALLED, S.CONNECTING), (E.REFUSED, S.FAILED), (E.HEARD, S.DISCOVERED)],
        [(E.DIALLED, S.CONNECTING), (E.REFUSED, S.FAILED), (E.OPENED, S.CONNECTED)],
        [
            (E.DIALLED, S.CONNECTING),
            (E.OPENED, S.CONNECTED),
            (E.OPENED, S.CONNECTED),
            (E.REFUSED, S.CONNECTED),
        ],
        [
            (E.DIALLED, S.CONNECTING),
            (E.LEFT, S.DISCONNECTING),
            (E.REFUSED, S.DISCONNECTING),
            (E.CLOSED, S.DISCOVERED),
        ],
        [(E.DIALLED, S.CONNECTING), (E.CLOSED, S.DISCOVERED)],
        [(E.OPENED, S.CONNECTED), (E.LEFT, S.DISCONNECTING), (E.OPENED, S.CONNECTED)],
    ],
)
def test_a_peer_lives_as_the_protocol_says(story):
    """Each line is something that happens on a network, the crossed dials and the early return
    included."""
    peer = Peer(INSTANCE)
    assert peer.state is S.DISCOVERED
    for event, state in story:
        assert peer.advance(event) is state
        assert peer.state is state
        assert peer.connected == (state is S.CONNECTED)


@each_row("state", S.__members__)
@each_row("event", E.__members__)
def test_each_arrow_leads_where_the_table_says_and_all_else_is_an_error_that_changes_nothing(
    state, event
):
    """An impossible event is a bug somewhere: it must show, with the peer's name, and not bend the
    state."""
    peer = Peer(INSTANCE, name="ada")
    peer.state = state
    if (state, event) in ALLOWED:
        assert peer.advance(event) is peer.state is ALLOWED[state, event]
    else:
        with pytest.raises(
            InvalidState, match=rf"'ada' is {state.value}: '{event.value}'"
        ) as caught:
            peer.advance(event)
        assert peer.state is state
        assert caught.value.peer == "ada"


def test_every_state_can_be_reached_and_left():
    """A state without a way out is quirk Q5 of the original: a peer that failed once is lost until
    it restarts."""
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


def test_a_round_trip_time_is_smoothed_as_the_original_does_it_with_its_deviation_beside():
    """Section 11: the first sample as it is, then three quarters of the old. One late answer must
    not look like a bad network."""
    latency = Latency.of(None, 0.008)
    assert latency == Latency(0.008, 0.004, 90, 1)
    latency = Latency.of(latency, 0.048)
    assert latency == Latency(pytest.approx(0.018), pytest.approx(0.013), 75, 2)
    for _ in range(60):
        latency = Latency.of(latency, 0.001)
    assert (
        latency.rtt == pytest.approx(0.001, rel=1e-3)
        and latency.deviation < 1e-5
        and latency.quality == 100
        and latency.samples == 62
    )


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40))
def test_a_smoothed_time_lies_between_the_samples_and_its_quality_in_the_table(samples):
    """A mean outside of what was measured would be invented."""
    latency = None
    for sample in samples:
        latency = Latency.of(latency, sample)
    assert (
        min(samples) * 0.999 <= latency.rtt <= max(samples) * 1.001
        and 0 <= latency.deviation <= max(samples) * 1.001
    )
    assert latency.quality == next(
        (
            grade
            for below, grade in ((0.005, 100), (0.01, 90), (0.02, 75), (0.05, 50))
            if latency.rtt < below
        ),
        25,
    )


def test_flags_have_the_numbers_of_the_original_and_room_for_the_application():
    """They are compared with what other programs announce; the three bits that mean nothing are not
    passed on."""
    assert [(flag.name, flag.value) for flag in PeerFlag] == [
        ("HOST", 1),
        ("ACCEPTING", 2),
        ("SPECTATOR", 4),
        ("READY", 8),
        ("HAS_CAPS", 16),
    ]
    heard = PeerFlag.heard(0xFFFF)
    assert (
        heard == 0xFF1F
        and PeerFlag.HOST in heard
        and PeerFlag(0x8000) in heard
        and isinstance(heard, PeerFlag)
    )
    assert Peer(INSTANCE).flags == 0 and PeerFlag.HOST not in Peer(INSTANCE).flags


@pytest.mark.parametrize(
    ("wrong", "error"),
    [(-1, InvalidArgument), (0x10000, InvalidArgument), (True, WrongType), ("1", WrongType)],
)
def test_a_user_announces_sixteen_bits(wrong, error):
    """More would not fit into an announcement, and be cut without a word."""
    assert PeerFlag.checked(0xFFFF) == 0xFFFF, "also those that mean nothing to us"
    with pytest.raises(error, match="flags "):
        PeerFlag.checked(wrong)


def test_the_end_of_the_connection_in_use_is_an_arrow_of_the_table_from_each_state_that_has_one():
    """The engine asks which arrow it is, and takes it."""
    assert set(PARTING) == {S.CONNECTED, S.DISCONNECTING}
    assert all(arrow in _NEXT for arrow in PARTING.items())


def test_who_a_peer_is():
    """Ids are unique on the network; names need not be."""
    ours = Peer(INSTANCE, name="bob", address=("10.0.0.2", 7354))
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
    """Section 6 of the protocol; what a classic peer takes in no single frame goes in fragments, of
    which it puts together 4,096 bytes."""
    classic = Peer(("10.0.0.3", 1), own_max_message=8192)
    assert classic.max_message == 4096
    assert Peer(("10.0.0.3", 1), own_max_message=256).max_message == 256
    assert Peer(INSTANCE, own_max_message=1024).max_message == 1024
    for announced, takes in ((256, 4096), (4096, 4096), (4097, 4097), (8192, 8192)):
        classic.capabilities = Capabilities(announced, 1024, 0, 0)
        assert classic.max_message == takes
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
    """A thousand peers are known at once; a stray attribute would cost a dictionary for each, and
    hide a typing error."""
    peer = Peer(INSTANCE)
    with pytest.raises(AttributeError):
        peer.stat = S.FAILED
    tracemalloc.start()
    try:
        peers = [
            Peer(index.to_bytes(8, "big"), name=f"peer {index}", address=("10.0.0.2", index))
            for index in range(1000)
        ]
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size / len(peers) < 1536
