"""What can be sent, and how a peer takes messages: any kind of buffer, in order, within bounds, from any thread.

The link here is one that takes as many as it is told to; the engine is real but never opened, so no socket is involved.
"""

from __future__ import annotations

import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk import errors
from peertalk._core import values
from peertalk.config import Config
from peertalk.protocol.connections import Connection, Step
from peertalk.protocol.peer import PeerEvent
from peertalk.runtime.remote import FRAME_OVERHEAD, Remote, as_bytes, payload_of
from peertalk.runtime.transport import Transport
from peertalk.runtime.world import World

WOULD_BLOCK, TOO_LARGE = errors.WouldBlock.code, errors.MessageTooLarge.code


@pytest.fixture(scope="module")
def engine():
    """An engine that was never opened: it has peers and a loop, no socket, and speaks to nobody."""
    config = Config(name="ada", core="reference", discovery=False, send_queue_size=4, send_queue_bytes=64 * 1024)
    made = Transport(config, World(), Remote, lambda: None)
    yield made
    made.close_now()


class GivenLink:
    """Takes what it is told to: the number of messages of each further call, then everything."""

    def __init__(self, room=(), max_message=8192):
        self.room = list(room)
        self.max_message = max_message
        self.taken = []
        self.calls = []

    def send_many(self, payloads, start=0):
        self.calls.append(payloads)
        room = self.room.pop(0) if self.room else len(payloads)
        self.taken += payloads[start : start + room]
        return min(room, len(payloads) - start), (0 if room >= len(payloads) - start else WOULD_BLOCK)

    def send(self, payload):
        accepted, code = self.send_many([bytes(payload)])
        return code if not accepted else values.NEEDS_TURN

    def send_frame(self, type, payload=b"", flags=0):
        self.calls.append((type, flags))
        return self.send(payload)


_numbers = iter(range(1, 1 << 30))


def peer_of(engine, link=None):
    number = next(_numbers)
    peer = Remote(number.to_bytes(8, "big"), name="bob", address=("127.0.0.1", 1))
    peer.attach(engine)
    if link is not None:
        connection = Connection(number, ("127.0.0.1", 1), dialled=True, now=0.0, peer=peer)
        for step in (Step.DIAL, Step.ESTABLISH, Step.GREET):
            connection.advance(step)
        connection.link = link
        peer.connection = connection
        peer.advance(PeerEvent.OPENED)
    return peer


@pytest.mark.parametrize(
    ("data", "meant"),
    [
        (b"bytes", b"bytes"), ("Grüße", "Grüße".encode()), (bytearray(b"array"), b"array"), (memoryview(b"view")[1:], b"iew"), ("", b""),
        (memoryview(array.array("I", [1])), array.array("I", [1]).tobytes()),
    ],
)  # fmt: skip
def test_bytes_buffers_and_text_can_be_sent(data, meant):
    """As they are; text as UTF-8, as str says by itself nowhere."""
    assert bytes(payload_of(data)) == meant and as_bytes([data]) == [meant]


@pytest.mark.parametrize("data", [5, None, ["text"], 1.5, object()])
def test_what_is_no_data_is_refused_by_its_type(data):
    """bytes(5) is five zeros: a number sent by mistake must not become that."""
    with pytest.raises(errors.WrongType, match=type(data).__name__):
        payload_of(data)
    with pytest.raises(errors.WrongType):
        as_bytes([b"good", data])


def test_a_view_with_gaps_is_refused():
    """It has no bytes that could be sent as they lie."""
    with pytest.raises(errors.WrongType, match="gaps"):
        payload_of(memoryview(b"abcdef")[::2])


@pytest.mark.parametrize("data", [b"abc", "abc", bytearray(b"abc"), memoryview(b"abc")])
def test_one_message_in_place_of_several_is_refused(data):
    """send_many(b"abc") would be three numbers, send_many("abc") three messages: neither is what was meant."""
    with pytest.raises(errors.WrongType, match="use send"):
        as_bytes(data)


def test_a_list_of_bytes_is_not_copied():
    """Bulk sending touches each message once; the list itself is enough."""
    messages = [b"1", b"2"]
    assert as_bytes(messages) is messages
    assert as_bytes(iter(messages)) == messages and as_bytes(["1", b"2"]) == messages


@given(sizes=st.lists(st.sampled_from([0, 1, 100, 8_192]), max_size=60), rooms=st.lists(st.integers(0, 20), max_size=20))
def test_many_messages_reach_the_link_in_order_each_once(engine, sizes, rooms):
    """However the link cuts it: a message that is skipped or repeated here is lost or doubled for the user."""
    messages = [number.to_bytes(4, "big") + bytes(max(0, size - 4)) for number, size in enumerate(sizes)]
    link = GivenLink(rooms)
    peer = peer_of(engine, link)
    done = refused = 0
    while done < len(messages):
        taken = peer.accept_many(messages, done)
        if peer.outbox:  # refused by the link, so it waits in the outbox: move it on as the engine does
            engine.pump(peer)
        done += taken
        refused += not taken
        assert peer.accepted == done and refused <= len(rooms)
    while peer.outbox:
        engine.pump(peer)
    assert link.taken == messages


@pytest.mark.parametrize("size", [0, 64, 8_192])
def test_one_call_hands_over_about_one_round_of_slots(engine, size):
    """A million messages in one call would keep the loop from turning, and hold all others up."""
    link = GivenLink()
    peer = peer_of(engine, link)
    messages = [bytes(size)] * 5_000
    taken = peer.accept_many(messages, 10)
    slots_hold = engine.pipeline_depth * engine.core.limits.slot_size
    assert 1 <= taken <= 4_096 and taken * (size + FRAME_OVERHEAD) <= slots_hold
    assert taken == 4_096 or (taken + engine.pipeline_depth) * (size + FRAME_OVERHEAD) > slots_hold, "and not much less: each call costs"


def test_a_message_over_the_limit_is_refused_before_it_has_a_number(engine):
    """Numbers are without gaps: what was refused has none."""
    peer = peer_of(engine, GivenLink(max_message=512))
    with pytest.raises(errors.MessageTooLarge, match=r"513 bytes to peer 'bob': the limit is 512"):
        peer.accept(bytes(513), False)
    assert peer.accepted == 0 and peer.accept(bytes(512), False) and peer.accepted == 1


def test_a_message_that_the_link_refuses_waits_and_those_behind_it_too(engine):
    """A later message that slips into the link past the outbox has overtaken."""
    link = GivenLink([0])
    peer = peer_of(engine, link)
    assert peer.accept(b"first", False) and peer.queued == 1 and peer.queue.reason == "slots" and peer.quick is None
    assert peer.accept(b"second", False) and not link.taken
    assert (peer.queue.pending, peer.queue.capacity, peer.queue.bytes) == (2, 4, 11)
    engine.pump(peer)
    assert link.taken == [b"first", b"second"] and peer.queued == 0 and peer.queue.reason == ""


def test_a_full_outbox_refuses_and_nothing_changes(engine):
    """The refusal must be free of traces: it is repeated until there is room."""
    peer = peer_of(engine, GivenLink([0]))
    for number in range(4):
        assert peer.accept(b"%d" % number, False)
    before = peer.stats()
    assert not peer.accept(b"too many", False) and peer.stats() == before and before.queue.pressure == 100
    refusal = peer.no_room()
    assert refusal.reason == "queue" and refusal.peer == "bob" and "4 wait" in str(refusal)


def test_no_delay_is_said_to_the_link(engine):
    """A flag that is dropped costs a tick, and no test of content sees it."""
    link = GivenLink()
    peer_of(engine, link).accept(b"now", True)
    assert link.calls[0] == (values.DATA, values.NO_DELAY) and link.taken == [b"now"]


def test_messages_of_other_threads_wait_within_the_same_bound_and_keep_their_order(engine):
    """Another thread must neither overfill the memory nor overtake itself."""
    link = GivenLink()
    peer = peer_of(engine, link)
    for number in range(4):
        peer.accept_from_afar(b"%d" % number)
    with pytest.raises(errors.WouldBlock):
        peer.accept_from_afar(b"too many")
    with pytest.raises(errors.MessageTooLarge):
        peer.accept_from_afar(bytes(8_193))
    assert not link.taken, "nothing happens on the other thread"
    engine.turn()
    assert link.taken == [b"0", b"1", b"2", b"3"] and peer.accepted == 4


def test_those_who_wait_for_a_connection_are_told_once(engine):
    """One future, one result."""
    peer = peer_of(engine)
    told = []
    peer.reaching = [lambda reached, error: told.append((reached, error)), lambda reached, error: told.append((reached, error))]
    error = errors.Timeout("late")
    peer.tell_reaching(error)
    peer.tell_reaching(None)
    assert told == [(None, error)] * 2
