"""Peers of the original kind: they are dialled when they are found, say their capabilities first,
send fragments and batches, and count pressure."""

from __future__ import annotations

import asyncio
import struct

import pytest
from classic import (
    ACK,
    CAPABILITY,
    DATA,
    DISCONNECT,
    FRAGMENT,
    PING,
    PONG,
    REJECT,
    Piece,
    encode_compact,
    encode_piece,
)
from classic import fragments as classic_fragments
from kit.inside import buffers_in_use, connections_of, end_connection, engine_of, fail_at
from kit.stranger import (
    SMALLER,
    Stranger,
    announce_as,
    announcing,
    capability,
    dialled,
    frame,
    loopback,
    taken,
)
from kit.waiting import GUARD, next_event, until

import peertalk as pt
from peertalk._core import load
from peertalk.protocol import connections as policy
from peertalk.protocol import endings
from peertalk.protocol.wire import Capabilities, encode_capabilities
from peertalk.runtime.world import World

# Peers of the original kind


async def test_a_classic_peer_is_dialled_when_it_is_found_and_only_once(free_port):
    """The original expects to be dialled by whoever hears it, and drops whom it does not know (Q1);
    twice would be two peers to it."""
    port = free_port()
    async with Stranger() as classic, pt.Node("ada", **announcing(port)) as ada:
        events = ada.events()
        classic.announce(port)
        found = (await next_event(events, pt.PeerFound)).peer
        assert (
            found.classic
            and found.name == "CREF"
            and found.id == f"127.0.0.1:{classic.address[1]}"
            and found.max_message == 4096
        )
        await classic.meet()
        kind, flags, sequence, payload = await classic.hear()
        assert (kind, flags, sequence) == (CAPABILITY, 0, 0) and payload[:4] == bytes(
            (1, 2, 0x20, 0)
        )
        classic.say(capability(2000))
        assert (await next_event(events, pt.PeerConnected)).peer is found
        assert found.max_message == 4096
        await found.send(b"to the old world")
        await found.send(b"at once", no_delay=True)
        assert [await classic.hear() for _ in range(2)] == [
            (DATA, 0, 0, b"to the old world"),
            (DATA, 0, 1, b"at once"),
        ]
        classic.say(frame(DATA, b"", 0), frame(DATA, b"from it", 77))
        assert [(await ada.receive(timeout=GUARD)).data for _ in range(2)] == [b"", b"from it"]
        classic.announce(port)
        classic.say(frame(DISCONNECT, sequence=78))
        assert (await next_event(events, pt.PeerDisconnected)).error is None
        assert await classic.hear() is None
        classic.announce(port)
        classic.hang_up()
        await found.send(b"again")  # connects anew
        await classic.meet()
        classic.say(capability())
        assert [(await classic.hear())[0] for _ in range(2)] == [CAPABILITY, DATA]
        assert classic.accept_count == 2


async def test_no_data_leaves_before_the_other_sides_capability():
    """What leaves earlier could be on the one of two links that is given up, and a classic peer
    takes 512 bytes until it has said more."""
    async with Stranger() as classic, pt.Node("ada", **loopback()) as ada:
        connecting = asyncio.create_task(ada.connect(classic.address, timeout=GUARD))
        await classic.meet()
        classic.say(frame(PING, b"ignored"))
        assert [(await classic.hear())[0] for _ in range(2)] == [CAPABILITY, PONG]
        assert not connecting.done()
        classic.say(capability(300))
        peer = await connecting
        assert peer.max_message == 4096
        with pytest.raises(
            pt.MessageTooLarge,
            match=r"4,097 bytes.*limit is 4,096 \(.*fragments; in one frame it takes "
            r"300, its MAX_MESSAGE\)",
        ):
            await peer.send(bytes(4097))
        await peer.send(bytes(300))
        assert await classic.hear() == (DATA, 0, 0, bytes(300))


async def test_a_peer_that_says_nothing_counts_as_classic_with_small_messages():
    """After a second, or we would wait for ever for peers that only listen."""
    options = loopback(connect_timeout=policy.GREETING_TIME)
    async with Stranger() as classic, pt.Node("ada", **options) as ada:
        peer = await ada.connect(classic.address, timeout=GUARD)
        await classic.meet()
        assert peer.classic and peer.max_message == 4096
        with pytest.raises(
            pt.MessageTooLarge,
            match=r"4,097 bytes.*limit is 4,096 \(.*it takes 512, a classic peer",
        ):
            await peer.send(bytes(4097))
        await peer.send(bytes(512))
        assert [len((await classic.hear())[3]) > 0 for _ in range(2)] == [True, True]
        classic.say(capability(1000), frame(PING))
        assert (await classic.hear())[0] == PONG
        await peer.send(bytes(1000))
        assert len((await classic.hear())[3]) == 1000


async def test_a_classic_peer_that_dials_us_may_send_at_once_and_all_that_its_protocol_allows():
    """Rule 5: any sequence, unused flags, repeated CAPABILITY, PING at any time, ACK, REJECT and
    PONG unasked; faults of a CAPABILITY are ignored."""
    async with Stranger() as classic, pt.Node("ada", **loopback()) as ada:
        events = ada.events()
        await classic.dial(ada)
        classic.say(
            frame(DATA, b"first", sequence=9),
            capability(700),
            frame(ACK),
            frame(REJECT, b"\0"),
            frame(PONG),
        )
        classic.say(frame(DATA, b"second", 3, 0x07))
        classic.say(
            frame(CAPABILITY, b"\x01\x09\x00"),
            frame(DATA, b"\0\5\0\0third", 0, 0x08),
            frame(DATA, bytes(9), 0, 0x10),
            frame(PING),
        )
        assert [(await ada.receive(timeout=GUARD)).data for _ in range(3)] == [
            b"first",
            b"second",
            b"third",
        ]
        assert await classic.hear() is not None
        assert await classic.hear() == (PONG, 0, 0, b"")
        peer = (await next_event(events, pt.PeerConnected)).peer
        assert peer.classic and peer.max_message == 4096 and ada.stats().frames_ignored >= 2
        await peer.send(bytes(700))
        assert len((await classic.hear())[3]) == 700
        classic.say(capability(400), frame(PING))
        assert (await classic.hear())[0] == PONG
        with pytest.raises(pt.MessageTooLarge):
            await peer.send(bytes(4097))
        await ada.aclose()
        assert await classic.hear() == (DISCONNECT, 0, 1, b"")
        assert await classic.hear() is None
        assert [type(event) for event in [event async for event in events]][-2:] == [
            pt.PeerDisconnected,
            pt.PeerLost,
        ]


def fragment(number, total, offset, flags, data):
    """A DATA frame with a piece of a message; flags: 1 first, 2 last."""
    return frame(DATA, encode_piece(Piece(number, total, offset, flags), data), 0, FRAGMENT)


def fragments(number, message, size=248):
    """A message in pieces of that size, in order."""
    pieces = classic_fragments(message, number, size)
    return [frame(DATA, piece, 0, FRAGMENT) for piece in pieces]


def compact(kind, payload=b"", flags=0):
    return encode_compact(kind, len(payload), flags) + payload


async def test_messages_in_fragments_arrive_whole_and_in_the_order_in_which_they_were_finished(
    core,
):
    """Plain messages may stand between the pieces: each is delivered when its last byte is
    there."""
    limit = core.limits.frame_max_payload
    long = bytes(i * 7 % 251 for i in range(limit))
    async with Stranger() as classic, pt.Node("ada", **loopback(core=core.name)) as ada:
        await classic.dial(ada)
        pieces = fragments(1, long)
        classic.say(
            capability(),
            *pieces[:2],
            frame(DATA, b"between", 2),
            *pieces[2:],
            frame(DATA, b"behind"),
            *fragments(2, b"short"),
        )
        assert [(await ada.receive(timeout=GUARD)).data for _ in range(4)] == [
            b"between",
            long,
            b"behind",
            b"short",
        ]
        stats = ada.stats()
        assert (stats.messages_received, stats.frames_ignored) == (4, 0)
        assert buffers_in_use(ada) <= 1  # the slot of our greeting


async def test_batches_and_compact_frames_are_understood(core):
    """Nobody sends them today; who does must not be cut off, and the application must not see their
    framing."""
    async with Stranger() as classic, pt.Node("ada", **loopback(core=core.name)) as ada:
        await classic.dial(ada)
        batch = b"\0\3\0\0one\0\0\0\0\0\3\0\0two"
        classic.say(
            capability(),
            compact(DATA, b"small"),
            frame(DATA, batch, 0, 0x08),
            compact(DATA, batch, 0x08),
            compact(DATA),
            compact(PING),
        )
        assert [(await ada.receive(timeout=GUARD)).data for _ in range(8)] == [
            b"small",
            *[b"one", b"", b"two"] * 2,
            b"",
        ]
        assert await classic.hear() is not None
        assert await classic.hear() == (PONG, 0, 0, b"")
        assert ada.stats().messages_received == 8 and ada.stats().frames_ignored == 0


FAULTS = {
    "header": frame(DATA, bytes(7), 0, 0x10),
    "without first": fragment(3, 10, 5, 2, b"world"),
    "gap": fragment(1, 10, 6, 2, b"orld"),
    "forged total": fragment(1, 65_535, 5, 0, bytes(300)),
    "too large": fragment(1, 9_000, 0, 1, b"x"),
    "ends too early": fragment(1, 10, 5, 2, b"wor"),
    "batch": frame(DATA, b"\0\1\0\0a\0\1\0\0", 0, 0x08),
    "compact batch": compact(DATA, b"\0\1", 0x08),
}


@pytest.mark.parametrize("kind", FAULTS)
async def test_a_fragment_or_batch_that_is_wrong_costs_itself_and_is_counted(core, kind):
    """As the original: ignored, and the connection stays."""
    async with Stranger() as classic, pt.Node("ada", **loopback(core=core.name)) as ada:
        await classic.dial(ada)
        classic.say(
            capability(),
            fragment(1, 10, 0, 1, b"hello"),
            FAULTS[kind],
            frame(DATA, b"after"),
            *fragments(2, b"whole"),
        )
        assert [(await ada.receive(timeout=GUARD)).data for _ in range(2)] == [b"after", b"whole"]
        stats = ada.stats()
        assert (
            stats.frames_ignored,
            stats.messages_received,
            stats.bad_frames,
            stats.links_open,
        ) == (1, 2, 0, 1)


async def test_an_unfinished_message_ends_with_its_connection_and_counts_for_nothing(core):
    """The original sends up to sixteen pieces of what it then calls an error: their memory must not
    stay for ever."""
    async with Stranger() as classic, pt.Node("ada", **loopback(core=core.name)) as ada:
        for _ in range(3):
            await classic.dial(ada)
            classic.say(capability(), *fragments(7, bytes(1_000))[:2], frame(DATA, b"and"))
            assert (await ada.receive(timeout=GUARD)).data == b"and"
            assert buffers_in_use(ada) >= 1
            classic.hang_up()
            await until(lambda: ada.stats().links_open == 0)
            assert buffers_in_use(ada) == 0
        assert (ada.stats().messages_received, ada.stats().frames_ignored) == (3, 0)


async def test_a_message_for_which_there_is_no_memory_is_lost_alone(core):
    """The pool is shared with the slots of others: a stranger's announcement must not be what
    breaks them."""
    async with Stranger() as classic, pt.Node("ada", **loopback(core=core.name)) as ada:
        await classic.dial(ada)
        classic.say(capability(), frame(DATA, b"before"))
        assert (await ada.receive(timeout=GUARD)).data == b"before"
        assert await classic.hear() is not None
        fail_at(ada, 1)
        classic.say(*fragments(1, bytes(1_000)))
        await until(lambda: ada.stats().frames_ignored == 5)
        fail_at(ada, 0)
        classic.say(*fragments(2, bytes(1_000)))
        assert (await ada.receive(timeout=GUARD)).data == bytes(1_000)
        assert ada.stats().links_open == 1


@pytest.mark.parametrize("ends_first", ["the older", "its own"])
async def test_pieces_that_are_held_back_are_put_together_when_their_connection_or_the_older_ends(
    ends_first, monkeypatch
):
    """What waits for another connection waits in its order, fragments and batches too, and had
    arrived even if its own connection ends meanwhile."""
    monkeypatch.setattr(endings, "LOOK", GUARD)  # we close no connection that we leave
    async with dialled(SMALLER) as (ada, first, second):
        first.greet(1, 0, b"early 1")
        assert await taken(ada, 1) == [b"early 1"]
        (peer,) = ada.peers.values()
        leaving = asyncio.create_task(peer.disconnect(timeout=GUARD))
        assert (await first.hear())[0] == DISCONNECT
        second.greet(2)  # the first is not over for them yet
        second.say(*fragments(1, b"late" * 100), frame(DATA, b"\0\4\0\0last", 0, 0x08))
        await until(lambda: any(link.held for link in connections_of(ada)))
        if ends_first == "its own":
            second.hang_up()
        first.say(frame(DATA, b"early 2"))
        first.hang_up()
        assert await taken(ada, 3) == [b"early 2", b"late" * 100, b"last"]
        await leaving


async def test_what_is_held_back_of_a_connection_that_is_ended_is_delivered_in_its_turn(
    monkeypatch,
):
    """It had arrived, so its sender takes it for sent, though nobody reads the connection any
    more."""
    monkeypatch.setattr(endings, "LOOK", GUARD)
    async with dialled(SMALLER) as (ada, first, second):
        first.greet(1, 0, b"early 1")
        assert await taken(ada, 1) == [b"early 1"]
        (peer,) = ada.peers.values()
        leaving = asyncio.create_task(peer.disconnect(timeout=GUARD))
        assert (await first.hear())[0] == DISCONNECT
        second.greet(2, 0, b"late")
        await until(lambda: any(link.held for link in connections_of(ada)))
        held = next(link for link in connections_of(ada) if link.held)
        end_connection(ada, held, pt.ConnectionClosed("ended"))
        first.say(frame(DATA, b"early 2"))
        first.hang_up()
        assert await taken(ada, 2) == [b"early 2", b"late"]
        await leaving


async def joined(classic):
    """The next message, put together as the original does; the message id, None for a plain one;
    and the sequence numbers of its frames."""
    whole, ids, sequences = b"", None, []
    while True:
        kind, flags, sequence, payload = await classic.hear()
        assert kind == DATA
        sequences.append(sequence)
        if not flags:
            assert not whole, "a message in between pieces"
            return payload, None, sequences
        assert flags == 0x10 and 8 <= len(payload) <= 256
        number, total, offset, marks, reserved = struct.unpack_from(">HHHBB", payload)
        assert (
            ids in (None, (number, total))
            and offset == len(whole)
            and reserved == 0
            and bool(marks & 1) == (offset == 0)
        )
        ids = (number, total)
        whole += payload[8:]
        if marks & 2:
            assert len(whole) == total
            return whole, number, sequences


async def test_a_classic_peer_gets_long_messages_in_fragments_in_their_place():
    """Section 9: pieces of 248 bytes, one message at a time, ids of the whole node from 0, each a
    frame of the sequence; nothing before its turn."""
    async with Stranger() as classic, pt.Node("ada", **loopback()) as ada:
        connecting = asyncio.create_task(ada.connect(classic.address, timeout=GUARD))
        await classic.meet()
        classic.say(capability(512))
        peer = await connecting
        events = ada.events()
        assert (await classic.hear())[0] == CAPABILITY
        sizes = [512, 513, 0, 3_968, 4_096, 1]
        before = ada.stats().payload_bytes_sent
        messages = [bytes((index * 31 + size) % 256 for index in range(size)) for size in sizes]
        await peer.send_many(messages[:3])
        for message in messages[3:]:
            await peer.send(message, no_delay=True)
        got = [await joined(classic) for _ in sizes]
        assert [data for data, _, _ in got] == messages
        assert [number for _, number, _ in got] == [None, 0, None, 1, 2, None]
        sequences = [sequence for _, _, each in got for sequence in each]
        assert (
            sequences == list(range(len(sequences))) and len(sequences) == 1 + 3 + 1 + 16 + 17 + 1
        )
        with pytest.raises(pt.MessageTooLarge):
            await peer.send(bytes(4_097))
        told = []
        while len(told) < len(sizes):
            sent = await next_event(events, pt.Sent)
            told += range(sent.first, sent.last + 1)
        assert told == [1, 2, 3, 4, 5, 6]
        stats = ada.stats()
        assert (
            stats.messages_accepted,
            stats.messages_sent,
            stats.payload_bytes_sent - before,
        ) == (6, 6, sum(sizes))


async def test_a_classic_peers_pressure_makes_senders_wait_until_it_falls():
    """A peer that says that it is full is left alone, by class; who waits goes on when it says that
    it has room, in order."""
    async with Stranger() as classic, pt.Node("ada", **loopback()) as ada:
        connecting = asyncio.create_task(ada.connect(classic.address, timeout=GUARD))
        await classic.meet()
        classic.say(capability(pressure=80))
        peer = await connecting
        assert (await classic.hear())[0] == CAPABILITY
        assert peer.queue.pressure == 80 and peer.queue.reason == "pressure"
        with pytest.raises(
            pt.WouldBlock, match="reports a pressure of 80: it takes HIGH messages and above only"
        ) as raised:
            peer.send_nowait(b"refused")
        assert raised.value.reason == "pressure"
        waiting = [asyncio.create_task(peer.send(data)) for data in (b"first", b"second")]
        waiting.append(asyncio.create_task(peer.send(b"low", priority=pt.Priority.LOW)))
        assert await peer.send(b"high", priority=pt.Priority.HIGH) == 1
        assert (await classic.hear())[3] == b"high" and not any(task.done() for task in waiting)
        classic.say(capability(pressure=60))
        assert [(await classic.hear())[3] for _ in range(2)] == [b"first", b"second"]
        assert (
            [await task for task in waiting[:2]] == [2, 3]
            and not waiting[2].done()
            and peer.send_nowait(b"normal") == 4
        )
        assert (await classic.hear())[3] == b"normal"
        classic.say(capability())
        assert (await classic.hear())[3] == b"low" and await waiting[2] == 5


async def test_a_message_cut_short_by_the_end_of_its_link_is_unknown():
    """A part of it left: nobody can say that the peer has not got it, and it has not been sent."""
    async with (
        Stranger() as classic,
        pt.Node("ada", **loopback(send_queue_size=10_000, send_queue_bytes=2**26)) as ada,
    ):
        connecting = asyncio.create_task(ada.connect(classic.address, timeout=GUARD))
        await classic.meet()
        classic.say(capability(512))
        peer = await connecting
        events = ada.events()
        classic.writer.transport.pause_reading()
        (connection,) = connections_of(ada)
        while connection.pieces is None:
            try:
                peer.send_nowait(bytes(4_000))
            except pt.WouldBlock:  # full between two messages: let a piece leave
                classic.writer.transport.resume_reading()
                await classic.hear()
                classic.writer.transport.pause_reading()
            if peer.accepted % 64 == 0:
                await asyncio.sleep(0)
        cut = peer._remote.handed
        end_connection(ada, connection, None)
        outcomes = {}
        while len(outcomes) < peer.accepted:
            event = await asyncio.wait_for(anext(events), GUARD)
            if isinstance(event, pt.Sent | pt.Failed):
                outcomes |= dict.fromkeys(
                    range(event.first, event.last + 1), getattr(event, "outcome", None)
                )
        assert outcomes[cut] is pt.Outcome.UNKNOWN
        assert all(outcomes[number] is not pt.Outcome.FAILED for number in range(1, cut + 1))
        assert all(
            outcomes[number] is pt.Outcome.FAILED for number in range(cut + 1, peer.accepted + 1)
        )


async def test_a_message_that_is_refused_leaves_no_gap_in_the_sequence_numbers():
    """A receiver that counts must not think that it lost something."""
    async with Stranger() as classic, pt.Node("ada", **loopback(send_queue_size=4)) as ada:
        connecting = asyncio.create_task(ada.connect(classic.address, timeout=GUARD))
        await classic.meet()
        classic.say(capability())
        peer = await connecting
        classic.writer.transport.pause_reading()
        accepted = refused = 0
        while refused < 20:
            try:
                peer.send_nowait(accepted.to_bytes(4, "big") + bytes(4000))
                accepted += 1
            except pt.WouldBlock:
                refused += 1
                await asyncio.sleep(0)
        sequence = asyncio.create_task(ada.aclose(timeout=GUARD))
        classic.writer.transport.resume_reading()
        assert (await classic.hear())[0] == CAPABILITY
        for number in range(accepted):
            async with asyncio.timeout(GUARD):
                head = await classic.reader.readexactly(10)
                payload = await classic.reader.readexactly(struct.unpack_from(">H", head, 8)[0] + 2)
            assert (head[5], head[7], int.from_bytes(payload[:4], "big")) == (
                DATA,
                number % 256,
                number,
            )
        assert (await classic.hear())[:3] == (DISCONNECT, 0, accepted % 256)
        classic.hang_up()
        assert await sequence == 0


async def test_a_peer_whose_limit_shrinks_gets_what_fits_and_the_rest_is_reported():
    """What was accepted under another limit must not block the line, nor vanish."""
    async with Stranger() as classic, pt.Node("ada", **loopback()) as ada:
        connecting = asyncio.create_task(ada.connect(classic.address, timeout=GUARD))
        await classic.meet()
        classic.say(capability(8000))
        peer = await connecting
        events = ada.events()
        await peer.disconnect()
        classic.hang_up()
        sizes = [100, 5000, 200, 6000, 300]
        peer._remote.capabilities = None  # as a peer that was only heard of
        peer._remote.own_max_message = 8192
        for size in sizes:
            engine_of(ada).enqueue(peer._remote, bytes(size))
        await classic.meet()
        classic.say(capability(1000))
        got = [await classic.hear() for _ in range(4)]
        assert [(len(data), sequence) for kind, _, sequence, data in got if kind == DATA] == [
            (100, 0),
            (200, 1),
            (300, 2),
        ]
        failed = [await next_event(events, pt.Failed) for _ in range(2)]
        assert [(event.first, event.last, event.outcome) for event in failed] == [
            (2, 2, pt.Outcome.FAILED),
            (4, 4, pt.Outcome.FAILED),
        ]
        assert all(isinstance(event.error, pt.MessageTooLarge) for event in failed)
        await until(lambda: peer._remote.reported == 5)
        assert peer.stats().messages_sent == 3 and peer.stats().messages_failed == 2
        classic.say(frame(DISCONNECT))


# Our pressure


def pressure_of(payload):
    """Of a CAPABILITY of ours, by the description of the original."""
    assert payload[:2] == b"\x01\x02" and payload[8:10] == b"\x03\x01" and len(payload) > 15, (
        "complete"
    )
    return payload[10]


async def test_pressure_is_told_when_its_level_changes_and_only_then():
    """A quarter of the inbox at a time, up at once, down with an eighth to spare; a full CAPABILITY
    each time."""
    async with (
        Stranger() as classic,
        pt.Node("ada", **loopback(receive_queue_bytes=8000)) as ada,
    ):
        await classic.dial(ada)
        heard = []

        async def told(messages=0):
            """What was said after so many more messages of an eighth each."""
            classic.say(*[frame(DATA, bytes(1000 - 64))] * messages, frame(PING))
            new = []
            while (each := await classic.hear())[0] != PONG:
                assert each[:3] == (CAPABILITY, 0, 0)
                new.append(pressure_of(each[3]))
            heard.extend(new)
            return new

        classic.say(capability())
        assert await told() == [0]
        for messages, expected in (
            (1, []),
            (1, [25]),
            (1, []),
            (1, [50]),
            (1, []),
            (1, [75]),
            (1, []),
        ):
            assert await told(messages) == expected
        for _ in range(7):  # each receive() gives back the message before
            await ada.receive(timeout=GUARD)
        with pytest.raises(pt.Timeout):
            await ada.receive(timeout=0)
        assert await told() == [50, 25, 0]
        assert ada.stats().pressure_reports == 6 and not engine_of(ada).inbox.told


async def test_pressure_that_finds_no_room_is_told_once_when_there_is_some_and_as_it_is_then():
    """Lost, the peer would flood on, or wait for ever; queued twice, a slow link would fill with
    old news."""
    async with (
        Stranger() as classic,
        pt.Node("ada", **loopback(receive_queue_bytes=1 << 20, pipeline_depth=1)) as ada,
    ):
        await classic.dial(ada)
        classic.say(capability())
        peer = (
            (await next_event(ada.events(), pt.PeerConnected)).peer
            if not ada.peers
            else next(iter(ada.peers.values()))
        )
        await until(lambda: peer.connected)
        classic.writer.transport.pause_reading()
        while peer._remote.queued < 10:
            peer.send_nowait(bytes(8192))
            await asyncio.sleep(0)
        for _ in range(9):  # in as many turns, so that they are given back bit by bit
            enough = peer._remote.received + 11
            classic.say(*[frame(DATA, bytes(8192 - 64))] * 11)
            while peer._remote.received < enough:
                await asyncio.sleep(0)
        (connection,) = connections_of(ada)
        assert (connection.pressure, connection.owed, ada.stats().pressure_reports) == (
            3,
            policy.OWES_PRESSURE,
            0,
        )
        while connection.pressure == 3:
            await ada.receive(timeout=GUARD)
        assert connection.pressure == 2 and ada.stats().pressure_reports == 0
        classic.writer.transport.resume_reading()
        told = [
            pressure_of(payload)
            for kind, _, _, payload in [await classic.hear() for _ in range(peer.accepted + 2)]
            if kind == CAPABILITY
        ]
        assert told == [0, 50]


async def test_a_peer_that_feeds_an_inbox_of_its_own_is_told_of_that_one_and_of_the_end():
    """Whoever iterates peer.messages() slowly slows that peer; when he stops, the peer is not
    slowed for ever."""
    async with (
        Stranger() as classic,
        pt.Node("ada", **loopback(receive_queue_bytes=8000)) as ada,
    ):
        await classic.dial(ada)
        classic.say(capability())
        await until(lambda: len(ada.peers) == 1)
        (peer,) = ada.peers.values()
        iterating = peer.messages()
        first = asyncio.create_task(anext(iterating))
        await asyncio.sleep(0)
        classic.say(frame(DATA, b"first"))
        assert (await first).data == b"first"
        classic.say(*[frame(DATA, bytes(1000 - 64))] * 6)
        assert [pressure_of((await classic.hear())[3]) for _ in range(2)][1] in (25, 50, 75)
        await iterating.aclose()
        for _ in range(6):
            await ada.receive(timeout=GUARD)
        with pytest.raises(pt.Timeout):
            await ada.receive(timeout=0)
        classic.say(frame(PING))
        told = []
        while (each := await classic.hear())[0] != PONG:
            told.append(pressure_of(each[3]))
        assert told[-1] == 0


async def test_a_flood_into_a_slow_reader_says_little_of_its_pressure():
    """Chatter would cost more than the pressure saves: between two reports an eighth of the inbox
    has moved."""
    limit = 64 * 1024
    async with (
        pt.Node("ada", **loopback(receive_queue_bytes=limit)) as ada,
        pt.Node("bob", **loopback()) as bob,
    ):
        peer = await bob.connect(ada.address, timeout=GUARD)
        count, size = 4000, 200
        sending = asyncio.create_task(peer.send_many([bytes(size)] * count))
        for _ in range(count):
            await ada.receive(timeout=GUARD)
        await sending
        moved = count * (size + 64)
        assert ada.stats().pressure_reports <= 2 * (moved // (limit // 8) + 3)


# Whose connection it is


async def test_a_connection_of_a_classic_peer_is_tied_to_the_only_one_heard_at_its_address(
    free_port,
):
    """Rule 10: it does not say who it is. With two candidates a guess would send messages to the
    wrong one."""
    port, dialled = free_port(), []

    class Watching(World):
        def dial(self, address, bind=""):
            dialled.append(address)
            return super().dial(address, bind)

    async with (
        Stranger() as first,
        Stranger() as second,
        pt.Node("ada", world=Watching(), **announcing(port)) as ada,
    ):
        announce_as(port, b"one", 0)
        one = await ada.wait_for("one", timeout=GUARD)
        assert not dialled, "it does not listen"
        await first.dial(ada)
        first.say(capability(), frame(DATA, b"mine"))
        message = await ada.receive(timeout=GUARD)
        assert (
            message.peer is one
            and one.address == ("127.0.0.1", 0)
            and ada.stats().links_opened == 1
        )
        await second.dial(ada)
        second.say(capability(), frame(DATA, b"whose?"))
        other = (await ada.receive(timeout=GUARD)).peer
        assert other is not one and other.name == "" and len(ada.peers) == 2, (
            "the one that was heard is connected"
        )
        for classic in (first, second):
            classic.say(frame(DISCONNECT))
        await until(lambda: ada.stats().links_open == 0)
        announce_as(port, b"two", 1)
        await ada.wait_for("two", timeout=GUARD)
        first.hang_up()
        await first.dial(ada)
        first.say(capability(), frame(DATA, b"one of two"))
        assert (await ada.receive(timeout=GUARD)).peer.name == "", "two were heard there"


async def test_who_began_as_a_classic_peer_cannot_take_over_a_name_later():
    """One of ours says who it is in its first frame; a stranger could claim to be anybody after he
    has looked around."""
    core = load()
    async with Stranger() as classic, pt.Node("ada", **loopback()) as ada:
        await classic.dial(ada)
        classic.say(
            frame(DATA, b"hello"),
            frame(
                CAPABILITY,
                encode_capabilities(core, Capabilities(8192, 1, 0, 0, b"pretends", "bob")),
            ),
            frame(PING),
        )
        peer = (await ada.receive(timeout=GUARD)).peer
        assert [(await classic.hear())[0] for _ in range(2)] == [CAPABILITY, PONG]
        assert (
            peer.classic
            and peer.max_message == 4096
            and peer.name == ""
            and ada.stats().frames_ignored == 1
        )
