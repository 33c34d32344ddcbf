"""How much a peer takes, and what a sender hears who has more: tables of what is known of the peer
and of its link."""

from __future__ import annotations

import types

import pytest

from peertalk import errors
from peertalk.protocol import limits
from peertalk.protocol.connections import Connection
from peertalk.protocol.outbox import Outbox, Priority
from peertalk.protocol.peer import Peer
from peertalk.protocol.wire import Capabilities

OURS, CLASSIC = b"\x01" * 8, ("10.0.0.2", 7354)
MIB = 1024**2


class PeerOfNode(Peer):
    """Its node has a longest frame of its own."""

    own_max_frame = 8192


def peer_of(key=OURS, ours=8192, said=None, frame=8192, largest=None):
    peer = PeerOfNode(key, name="bob", own_max_message=ours)
    peer.own_max_frame = frame
    peer.capabilities = said and Capabilities(said, 512, 0, 0, largest=largest)
    return peer


def linked(max_message=None, *, slow=False):
    """A connection whose link carries so much in one frame; None: it has no link yet."""
    connection = Connection(1, CLASSIC, dialled=True, now=0.0)
    connection.slow = slow
    if max_message is not None:
        connection.link = types.SimpleNamespace(max_message=max_message)
    return connection


@pytest.mark.parametrize(
    ("key", "ours", "said", "connection", "limit", "whose"),
    [
        pytest.param(OURS, 8192, None, None, 8192, "of this core", id="not connected"),
        pytest.param(OURS, 8192, 256, linked(), 8192, "of this core", id="no link yet"),
        pytest.param(OURS, 8192, 8192, linked(8192), 8192, "of this core", id="one of ours"),
        pytest.param(OURS, 8192, 300, linked(300), 300, "its MAX_MESSAGE", id="a small one"),
        pytest.param(CLASSIC, 8192, None, linked(512, slow=True), 8192, "of this", id="slow"),
        pytest.param(CLASSIC, 8192, None, linked(512), 4096, "takes 512, a classic", id="silent"),
        pytest.param(CLASSIC, 8192, 600, linked(600), 4096, "takes 600, its MAX", id="an original"),
        pytest.param(CLASSIC, 8192, 5000, linked(5000), 5000, "its MAX_MESSAGE", id="a large one"),
        pytest.param(CLASSIC, 8192, 71, linked(71), 71, "its MAX_MESSAGE", id="no fragment fits"),
        pytest.param(CLASSIC, 8192, 72, linked(72), 4096, "takes 72", id="a fragment just fits"),
        pytest.param(CLASSIC, 1024, 512, linked(512), 1024, "Config.max", id="we are smaller"),
        pytest.param(
            CLASSIC, MIB, 9000, linked(8192), 8192, "of this core", id="classic, we large"
        ),
        pytest.param(CLASSIC, MIB, None, None, 8192, "of this core", id="classic, not connected"),
        pytest.param(
            CLASSIC, MIB, None, linked(512, slow=True), MIB, "Config", id="slow, we large"
        ),
        pytest.param(OURS, MIB, None, None, MIB, "Config.max_message", id="large, not connected"),
        pytest.param(OURS, MIB, 8192, linked(8192), 8192, "of this core", id="an older one"),
        pytest.param(OURS, 700, 8192, linked(700), 700, "Config.max_message", id="we take little"),
    ],
)
def test_the_largest_message_and_whose_limit_it_is(key, ours, said, connection, limit, whose):
    """A sender who is told the wrong limit sends again in vain."""
    peer = peer_of(key, ours, said)
    found, words = limits.limit_of(peer, connection)
    assert found == limit and whose in words
    error = limits.too_large(peer, connection, limit + 1)
    assert isinstance(error, errors.MessageTooLarge) and error.peer == "bob"
    assert str(error).startswith(
        f"message of {limit + 1:,} bytes to peer 'bob': the limit is {limit:,}"
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "limit", "whose"),
    [
        (MIB, 2 * MIB, MIB, "Config.max_message"),
        (2 * MIB, MIB, MIB, "its longest message"),
        (MIB, None, 8192, "of this core"),
        (8192, MIB, 8192, "of this core"),
    ],
)
def test_between_two_that_take_large_ones_the_smaller_limit_holds(ours, theirs, limit, whose):
    """Either side may be short of memory."""
    peer = peer_of(ours=ours, said=8192, largest=theirs)
    found, words = limits.limit_of(peer, linked(8192))
    assert (found, peer.max_message) == (limit, limit) and whose in words
    assert peer.largest == (0 if limit == 8192 else limit)


@pytest.mark.parametrize(
    ("wanted", "chosen", "frame", "of_core", "limit", "said"),
    [
        pytest.param(16 * MIB, False, 8192, 8192, 16 * MIB, (8192, 16 * MIB), id="default"),
        pytest.param(16 * MIB, False, 1024, 1024, 1024, (1024, None), id="little memory"),
        pytest.param(16 * MIB, True, 1024, 1024, 16 * MIB, (1024, 16 * MIB), id="all the same"),
        pytest.param(16 * MIB, False, 4096, 8192, 16 * MIB, (4096, 16 * MIB), id="a classic world"),
        pytest.param(8192, True, 4096, 8192, 4096, (4096, None), id="no more than a frame"),
        pytest.param(8193, True, 8192, 8192, 8193, (8192, 8193), id="one byte more"),
        pytest.param(300, True, 8192, 8192, 300, (300, None), id="less than a frame"),
        pytest.param(1, True, 8192, 8192, 1, (256, None), id="less than can be said"),
    ],
)
def test_what_we_take_ourselves_and_say_of_it(wanted, chosen, frame, of_core, limit, said):
    core = types.SimpleNamespace(frame_max_payload=of_core)
    assert limits.own_limit(wanted, frame, core, chosen=chosen) == limit
    assert limits.said_of_us(limit, frame) == said


@pytest.mark.parametrize(
    ("said", "carries"), [(None, limits.CLASSIC_LIMIT), (300, 300), (65535, 8192)]
)
def test_a_link_carries_the_smaller_limit_of_the_two_sides(said, carries):
    """An original that has said nothing yet must not be sent more than any original takes."""
    peer = peer_of(CLASSIC, said=said)
    assert limits.of_link(peer, peer.capabilities) == carries


@pytest.mark.parametrize(("slot", "depth"), [(65_520, 8), (4096, 2)])
@pytest.mark.parametrize("size", [0, 1, 100, 1000, 4000])
def test_a_chunk_is_a_whole_number_of_writes_and_bounded(size, slot, depth):
    """A few messages more than fit into one write would leave in a small one of their own; a
    million would keep the loop from turning, and hold all others up."""
    chunk = limits.chunk(size, types.SimpleNamespace(slot_size=slot), depth)
    write = min(1024, depth * (slot // (size + 12)))
    assert chunk % write == 0 and write <= chunk <= 1024
    assert chunk == write or chunk * (size + 12) <= 512 * 1024


@pytest.mark.parametrize(
    ("lowest", "words"),
    [
        (Priority.NORMAL, "takes NORMAL messages and above only until"),
        (Priority.HIGH, "takes HIGH messages and above only until"),
        (Priority.CRITICAL, "takes CRITICAL messages only until"),
    ],
)
def test_who_is_refused_by_pressure_hears_what_would_pass(lowest, words):
    """The remedy differs: wait, or raise the priority."""
    error = limits.refused(peer_of(said=512), lowest)
    assert error.reason == "pressure" and error.peer == "bob" and words in str(error)


@pytest.mark.parametrize(("before", "words"), [(0, "2 wait"), (1200, "and 1,200 sends that were")])
def test_who_finds_the_queue_full_hears_who_stands_before(before, words):
    """A full queue and a long line ask for different cures."""
    peer = peer_of()
    peer.outbox = Outbox(2, 100)
    for number in (1, 2):
        peer.outbox.put(b"x", number)
    error = limits.full(peer, before)
    assert error.reason == "queue" and words in str(error)
    assert ("called before" in str(error)) is bool(before)


@pytest.mark.parametrize(
    ("connected", "frozen", "lowest", "waits", "reason"),
    [
        (True, False, Priority.LOW, False, ""),
        (True, False, Priority.LOW, True, "slots"),
        (True, False, Priority.LOW, "blocked", "grant"),
        (False, False, Priority.LOW, True, "connection"),
        (False, False, Priority.NORMAL, False, ""),  # of the connection that was
        (True, False, Priority.NORMAL, True, "pressure"),
        (True, True, Priority.NORMAL, True, "frozen"),
    ],
)
def test_what_holds_messages_up(connected, frozen, lowest, waits, reason):
    """Of several reasons the one that lasts the longest is told."""
    peer = peer_of(said=512)
    peer.accepted, peer.reported = 5, 2
    if waits:
        peer.outbox = Outbox(4, 100)
        peer.outbox.put(b"four", 5)
        peer.outbox.blocked = int(waits == "blocked")
    queue = limits.queue_of(peer, 4, connected=connected, frozen=frozen, lowest=lowest)
    assert (queue.pending, queue.capacity, queue.reason) == (3, 4, reason)
    assert (queue.bytes, queue.pressure) == ((4, 25) if waits else (0, 0))


@pytest.mark.parametrize(("connected", "pressure"), [(True, 80), (False, 25)])
def test_the_pressure_is_the_larger_one_of_the_two_sides(connected, pressure):
    """What a peer reported on a connection that is gone says nothing any more."""
    peer = peer_of()
    peer.capabilities = Capabilities(512, 512, 80, 0)
    peer.outbox = Outbox(4, 100)
    peer.outbox.put(b"four", 1)
    queue = limits.queue_of(peer, 4, connected=connected, frozen=False, lowest=Priority.LOW)
    assert queue.pressure == pressure
