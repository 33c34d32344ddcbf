"""Connections as they happen: two that cross, peers of the original kind, peers that are not who
they were.

ClassicPeer is written from the description of the original protocol alone and shares no code with
peertalk.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import struct
import weakref

import pytest
from kit.waiting import GUARD, next_event, until

import peertalk as pt
from peertalk import sim
from peertalk._core import load
from peertalk.protocol import connections as policy
from peertalk.protocol import endings
from peertalk.protocol.claims import Claims, Over
from peertalk.protocol.wire import (
    Announcement,
    Capabilities,
    Greeting,
    decode_greeting,
    encode_announcement,
    encode_capabilities,
    encode_greeting,
)
from peertalk.runtime.world import World
from peertalk.sim import scenarios

DATA, PING, PONG, DISCONNECT, ACK, REJECT, CAPABILITY = range(1, 8)


def loopback(**more):
    """Without the PINGs that a node sends by itself: what a test hears is what it caused."""
    return {"bind": "127.0.0.1", "port": 0, "discovery": False, "ping_interval": 0, **more}


def announcing(discovery_port, **more):
    return {
        "bind": "127.0.0.1",
        "port": 0,
        "discovery_port": discovery_port,
        "ping_interval": 0,
        **more,
    }


def crc16(data):
    """Polynomial 0x1021 reflected, from 0."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x8408 if crc & 1 else 0)
    return crc


def frame(kind, payload=b"", sequence=0, flags=0):
    body = struct.pack(">4sBBBBH", b"PTMG", 1, kind, flags, sequence, len(payload)) + payload
    return body + struct.pack(">H", crc16(body))


def capability(max_message=8192, pressure=0):
    return frame(
        CAPABILITY,
        struct.pack(">BBHBBHBBBBBH", 1, 2, max_message, 2, 2, 1024, 3, 1, pressure, 4, 2, 5),
    )


class ClassicPeer:
    """A peer of the original kind, one connection at a time. Reads frame by frame and sends what it
    is told."""

    def __init__(self):
        self.reader = self.writer = None
        self.accepted = asyncio.Queue()
        self.accept_count = 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1 << 20)
        self.address = self.server.sockets[0].getsockname()
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.hang_up()
        while not self.accepted.empty():
            self.accepted.get_nowait()[1].close()
        await self.server.wait_closed()

    def _accept(self, reader, writer):
        self.accept_count += 1
        self.accepted.put_nowait((reader, writer))

    async def meet(self):
        """Take the next connection that somebody made to us."""
        async with asyncio.timeout(GUARD):
            self.reader, self.writer = await self.accepted.get()

    async def dial(self, node):
        self.reader, self.writer = await asyncio.open_connection(*node.address, limit=1 << 20)

    def hang_up(self):
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def say(self, *frames):
        self.writer.write(b"".join(frames))

    async def hear(self):
        """(type, flags, sequence, payload) of the next frame; None at the end of the stream."""
        async with asyncio.timeout(GUARD):
            try:
                head = await self.reader.readexactly(10)
            except (asyncio.IncompleteReadError, ConnectionResetError):
                return None
            magic, version, kind, flags, sequence, length = struct.unpack(">4sBBBBH", head)
            assert magic == b"PTMG" and version == 1
            payload = await self.reader.readexactly(length)
            assert struct.unpack(">H", await self.reader.readexactly(2))[0] == crc16(head + payload)
            return kind, flags, sequence, payload

    def announce(self, discovery_port, kind=1, name=b"CREF"):
        """As the original: no trailer behind the CRC."""
        body = struct.pack(">4sBBHHBB", b"PTLK", 1, kind, 0, self.address[1], 3, len(name)) + name
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(body + struct.pack(">H", crc16(body)), ("127.0.0.1", discovery_port))


# Two that dial each other


@pytest.mark.soak
async def test_of_two_that_dial_each_other_one_link_stays_and_nothing_is_lost_doubled_or_reordered(
    core, free_port, rounds
):
    """Both begin to send in the same moment, each over its own dial, and go on while one of the two
    links is given up."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    port = free_port()
    crossed = 0
    for _ in range(rounds(2, 100)):  # new ids: sometimes the one is smaller, sometimes the other
        async with (
            pt.Node("ada", **announcing(port, core=core.name)) as ada,
            pt.Node("bob", **announcing(port, core=core.name)) as bob,
        ):
            sides = [
                (ada, await ada.wait_for("bob", timeout=GUARD)),
                (bob, await bob.wait_for("ada", timeout=GUARD)),
            ]
            streams = [node.events() for node, _ in sides]
            for round_number in range(10):
                opened = ada.stats().links_opened

                async def talk(peer, delay, pauses):
                    for _ in range(delay):
                        await asyncio.sleep(0)
                    for number in range(60):
                        await peer.send(number.to_bytes(4, "big") + bytes(pauses[number] * 100))
                        for _ in range(pauses[number]):
                            await asyncio.sleep(0)

                async def listen(node):
                    return [
                        int.from_bytes((await node.receive()).data[:4], "big") for _ in range(60)
                    ]

                talks = [
                    talk(peer, dice.randrange(4), [dice.randrange(3) for _ in range(60)])
                    for _, peer in sides
                ]
                async with asyncio.timeout(GUARD):
                    *_, at_ada, at_bob = await asyncio.gather(*talks, listen(ada), listen(bob))
                assert at_ada == at_bob == list(range(60)), f"round {round_number}"
                await until(lambda: ada.stats().links_open == bob.stats().links_open == 1)
                assert all(peer.connected for _, peer in sides)
                crossed += ada.stats().links_opened - opened > 1
                await sides[dice.randrange(2)][1].disconnect(timeout=GUARD)
                await until(lambda: ada.stats().links_open == bob.stats().links_open == 0)
            for node, peer in sides:
                assert (
                    peer.stats().messages_sent == 600
                    and peer.stats().messages_received == 600
                    and len(node.peers) == 1
                )
        for stream in streams:
            for event in [event async for event in stream]:
                assert not isinstance(event, pt.Failed | pt.LinkFault)
                if isinstance(event, pt.PeerDisconnected):
                    assert event.error is None
    assert crossed, "no two dials crossed: the test tested nothing"


SMALLER, LARGER = b"\x00" * 7 + b"\x01", b"\xff" * 8
"""Instance ids of a peer that decides which connection is used, and of one that follows."""


class Dial(ClassicPeer):
    """A connection that one of ours, of an id that the test chooses, has made to a node: it says of
    it what it is told. number: of the dial; port: where it says that it listens."""

    port = None

    def __init__(self, node, instance, number):
        super().__init__()
        self.node, self.instance, self.number = node, instance, number

    def greet(self, place=0, over=0, *data):
        """Say who we are, the place of the connection (None: such as know none), and that of our
        dials all up to a number are over; and send."""
        claims = None if place is None else Claims(Over(over), Over())
        greeting = Greeting(self.number, bytes.fromhex(self.node.id), claims, place)
        payload = encode_capabilities(
            load(), Capabilities(8192, 1024, 0, 0, self.instance, "other", self.port)
        ) + encode_greeting(greeting, self.instance)
        self.say(frame(CAPABILITY, payload), *(frame(DATA, each) for each in data))

    async def hear_place(self):
        """The place that the next CAPABILITY says; None at the end of the stream."""
        heard = await self.hear()
        if heard is None:
            return None
        assert heard[0] == CAPABILITY
        return decode_greeting(heard[3], bytes.fromhex(self.node.id)).place


@contextlib.asynccontextmanager
async def dialled(instance, **options):
    """A node, and two connections to it of one peer, accepted and not greeted yet."""
    async with pt.Node("ada", **loopback(**options)) as ada:
        dials = [Dial(ada, instance, number) for number in (1, 2)]
        for dial in dials:
            await dial.dial(ada)
            assert await dial.hear_place() == 0, "accepted, and greeted by us"
        yield ada, *dials
        for dial in dials:
            dial.hang_up()


async def taken(node, count):
    return [(await node.receive(timeout=GUARD)).data for _ in range(count)]


@pytest.mark.parametrize("known", [True, False])
async def test_what_lies_on_a_connection_that_is_over_is_delivered_before_what_came_on_the_next(
    known,
):
    """The other side wrote it earlier, and two connections arrive in any order: here the later data
    is always read first. known: the older one had said whose it is before."""
    async with dialled(SMALLER) as (ada, first, second):
        if known:
            first.greet(1)
            await until(lambda: ada.peers and next(iter(ada.peers.values())).connected)
        # both lie there before the node's next turn, the later one first
        second.greet(2, 1, b"late")
        if known:
            first.say(frame(DATA, b"early 1"), frame(DATA, b"early 2"))
        else:
            first.greet(1, 0, b"early 1", b"early 2")
        assert await taken(ada, 3) == [b"early 1", b"early 2", b"late"]
        assert await first.hear() is None, "over for both"
        (peer,) = ada.peers.values()
        assert peer.connected and peer.id == SMALLER.hex()
        await peer.send(b"answer")
        assert await second.hear() == (DATA, 0, 0, b"answer")
        second.say(frame(DATA, b"and on"))
        assert await taken(ada, 1) == [b"and on"]


async def test_of_two_dials_the_one_that_decides_uses_the_first_and_closes_the_second():
    """No message was on it, so nothing can be lost, doubled or overtaken."""
    async with dialled(LARGER) as (ada, first, second):
        events = ada.events()
        first.greet()
        assert await first.hear_place() == 1
        second.greet()
        assert await second.hear() is None
        first.say(frame(DATA, b"here"))
        assert await taken(ada, 1) == [b"here"]
        second.hang_up()
        await until(lambda: ada.stats().links_open == 1)
        (peer,) = ada.peers.values()
        await peer.send(b"answer")
        assert await first.hear() == (DATA, 0, 0, b"answer")
    kinds = [type(event) for event in [event async for event in events]]
    assert kinds.count(pt.PeerConnected) == 1 and pt.LinkFault not in kinds


async def test_the_one_that_decides_uses_the_second_when_the_first_is_over_for_the_other_side():
    """A box in the middle has reset the first, and only they have seen it: what had arrived of it
    is delivered, and who waited for the second gets it."""
    async with dialled(LARGER) as (ada, first, second):
        first.greet()
        assert await first.hear_place() == 1
        second.greet(0, 1)  # before the node reads what lies on the first
        first.say(frame(DATA, b"early"))
        assert await second.hear_place() == 2
        second.say(frame(DATA, b"late"))
        assert await taken(ada, 2) == [b"early", b"late"]
        assert await first.hear() is None
        (peer,) = ada.peers.values()
        await peer.send(b"answer")
        assert await second.hear() == (DATA, 0, 0, b"answer")


@pytest.mark.parametrize("what", ["another life announced", "goodbye"])
async def test_who_has_greeted_is_there_whatever_is_heard_before_its_connection_is_used(
    what, free_port
):
    """Two lives of a program on one port: the greeting of the one and the announcement of the other
    come in any order, and neither tells which of them is the older one."""
    port, listens = free_port(), free_port()
    async with pt.Node("ada", **announcing(port)) as ada:
        events = ada.events()
        dial = Dial(ada, SMALLER, 1)
        dial.port = listens
        await dial.dial(ada)
        assert await dial.hear_place() == 0
        dial.greet()
        peer = (await next_event(events, pt.PeerFound)).peer
        assert peer.id == SMALLER.hex() and not peer.connected

        def announce(kind, instance):
            said = Announcement(kind, "other", listens, flags=1, instance=instance)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(encode_announcement(load(), said), ("127.0.0.1", port))

        if what == "goodbye":
            announce(1, SMALLER)
            await next_event(events, pt.PeerChanged)
            announce(3, SMALLER)
            lost = await next_event(events, pt.PeerLost)
            assert (lost.peer, lost.reason) == (peer, pt.LostReason.GOODBYE)
        else:
            announce(1, LARGER)
            other = await next_event(events, pt.PeerFound | pt.PeerLost)
            assert other.peer.id == LARGER.hex() and peer.successor is None
        dial.greet(1, 0, b"here")
        assert await taken(ada, 1) == [b"here"]
        assert peer.connected and ada.peers[SMALLER.hex()] is peer
        await peer.send(b"answer")
        assert (await dial.hear())[0] in (CAPABILITY, DATA)
        dial.hang_up()


@pytest.mark.parametrize("instance", [SMALLER, LARGER])
async def test_of_two_connections_of_a_node_that_knows_no_places_the_newest_is_used(instance):
    """One of an older version cannot say which it has; it is asked to end the former, and until it
    has, what the new one brings waits."""
    async with dialled(instance) as (ada, first, second):
        first.greet(None, 0, b"early 1")
        assert await taken(ada, 1) == [b"early 1"]
        second.greet(None, 0, b"late")
        assert await first.hear() is None, "shut for writing"
        (peer,) = ada.peers.values()
        await peer.send(b"answer")
        assert (await second.hear())[3] == b"answer", "sent on the new one at once"
        first.say(frame(DATA, b"early 2"), frame(DATA, b"early 3"))
        first.hang_up()
        assert await taken(ada, 3) == [b"early 2", b"early 3", b"late"]
        await until(lambda: ada.stats().links_open == 1)
        assert peer.connected and list(ada.peers.values()) == [peer]


async def test_a_peer_of_ours_that_is_slow_to_greet_is_not_taken_for_a_classic_one(
    free_port, monkeypatch
):
    """A program that is busy for a second must not make its peers cut their messages to 512
    bytes."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.02)
    port, core, instance = free_port(), load(), b"slowpeer"
    async with ClassicPeer() as slow, pt.Node("ada", **announcing(port)) as ada:
        packet = encode_announcement(
            core, Announcement(1, "slow", slow.address[1], instance=instance)
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(packet, ("127.0.0.1", port))
        peer = await ada.wait_for("slow", timeout=GUARD)
        sending = asyncio.create_task(peer.send(bytes(5000)))
        await slow.meet()
        await asyncio.wait({sending}, timeout=0.1)
        assert not sending.done() and not peer.connected
        greeting = encode_capabilities(
            core, Capabilities(8192, 1024, 0, 0, instance, "slow", slow.address[1])
        )
        slow.say(frame(CAPABILITY, greeting))
        await asyncio.wait_for(sending, GUARD)
        assert (await slow.hear())[0] == CAPABILITY and (await slow.hear())[3] == bytes(5000)


@pytest.mark.parametrize("places", [True, False], ids=["knows places", "knows none"])
async def test_what_a_peer_of_ours_that_was_taken_for_classic_sends_with_its_greeting_is_delivered(
    places, monkeypatch
):
    """It is known by another connection already, so this one is given up; but its system was told
    that these bytes have arrived, and so its application that they were sent."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.02)
    core, instance = load(), b"slowpeer"
    async with ClassicPeer() as slow, ClassicPeer() as quick, pt.Node("ada", **loopback()) as ada:
        classic = await ada.connect(slow.address, timeout=GUARD)
        assert classic.classic
        await slow.meet()
        greeting = encode_capabilities(
            core, Capabilities(8192, 1024, 0, 0, instance, "slow", slow.address[1])
        )
        await quick.dial(ada)
        if places:
            greeting += encode_greeting(Greeting(1, None, None, 0), instance)
        quick.say(frame(CAPABILITY, greeting))
        await until(lambda: "slow" in [peer.name for peer in ada.peers.values()])
        slow.say(
            frame(CAPABILITY, greeting),
            frame(DATA, b"one"),
            frame(PING),
            frame(DATA, b"two", 1),
        )
        got = [await ada.receive(timeout=GUARD) for _ in range(2)]
        assert [(each.data, each.peer.name) for each in got] == [(b"one", "slow"), (b"two", "slow")]


async def test_a_peer_that_never_greets_is_given_up(free_port, monkeypatch):
    """Waiting has an end, and a sentence."""
    port, core = free_port(), load()
    async with (
        ClassicPeer() as mute,
        pt.Node("ada", **announcing(port, connect_timeout=0.05)) as ada,
    ):
        packet = encode_announcement(
            core, Announcement(1, "mute", mute.address[1], instance=b"mutepeer")
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(packet, ("127.0.0.1", port))
        peer = await ada.wait_for("mute", timeout=GUARD)
        with pytest.raises(
            pt.Timeout, match=r"'mute'.*said nothing for 0\.05 s \(Config.connect_timeout\)"
        ):
            await peer.send(b"x")


# Peers of the original kind


async def test_a_classic_peer_is_dialled_when_it_is_found_and_only_once(free_port):
    """The original expects to be dialled by whoever hears it, and drops whom it does not know (Q1);
    twice would be two peers to it."""
    port = free_port()
    async with ClassicPeer() as classic, pt.Node("ada", **announcing(port)) as ada:
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
    async with ClassicPeer() as classic, pt.Node("ada", **loopback()) as ada:
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
    async with ClassicPeer() as classic, pt.Node("ada", **options) as ada:
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
    async with ClassicPeer() as classic, pt.Node("ada", **loopback()) as ada:
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


def fragment(message_id, total, offset, flags, piece):
    """A DATA frame with a piece of a message; flags: 1 first, 2 last."""
    return frame(DATA, struct.pack(">HHHBB", message_id, total, offset, flags, 0) + piece, 0, 0x10)


def fragments(message_id, message, size=248):
    """A message in pieces of that size, in order."""
    places = [
        (at, (at == 0) | (at + size >= len(message)) << 1) for at in range(0, len(message), size)
    ]
    return [
        fragment(message_id, len(message), at, flags, message[at : at + size])
        for at, flags in places
    ]


def compact(kind, payload=b"", flags=0):
    return struct.pack(">BBH", 0x50, kind << 4 | flags, len(payload)) + payload


async def test_messages_in_fragments_arrive_whole_and_in_the_order_in_which_they_were_finished(
    core,
):
    """Plain messages may stand between the pieces: each is delivered when its last byte is
    there."""
    limit = core.limits.frame_max_payload
    long = bytes(i * 7 % 251 for i in range(limit))
    async with ClassicPeer() as classic, pt.Node("ada", **loopback(core=core.name)) as ada:
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
        assert ada._transport.loop.pool_statistics().in_use <= 1  # the slot of our greeting


async def test_batches_and_compact_frames_are_understood(core):
    """Nobody sends them today; who does must not be cut off, and the application must not see their
    framing."""
    async with ClassicPeer() as classic, pt.Node("ada", **loopback(core=core.name)) as ada:
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
    async with ClassicPeer() as classic, pt.Node("ada", **loopback(core=core.name)) as ada:
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
    async with ClassicPeer() as classic, pt.Node("ada", **loopback(core=core.name)) as ada:
        for _ in range(3):
            await classic.dial(ada)
            classic.say(capability(), *fragments(7, bytes(1_000))[:2], frame(DATA, b"and"))
            assert (await ada.receive(timeout=GUARD)).data == b"and"
            assert ada._transport.loop.pool_statistics().in_use >= 1
            classic.hang_up()
            await until(lambda: ada.stats().links_open == 0)
            assert ada._transport.loop.pool_statistics().in_use == 0
        assert (ada.stats().messages_received, ada.stats().frames_ignored) == (3, 0)


async def test_a_message_for_which_there_is_no_memory_is_lost_alone(core):
    """The pool is shared with the slots of others: a stranger's announcement must not be what
    breaks them."""
    async with ClassicPeer() as classic, pt.Node("ada", **loopback(core=core.name)) as ada:
        await classic.dial(ada)
        classic.say(capability(), frame(DATA, b"before"))
        assert (await ada.receive(timeout=GUARD)).data == b"before"
        assert await classic.hear() is not None
        ada._transport.loop.fail_at(1)
        classic.say(*fragments(1, bytes(1_000)))
        await until(lambda: ada.stats().frames_ignored == 5)
        ada._transport.loop.fail_at(0)
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
        links = ada._transport.connections.by_tag.values()
        await until(lambda: any(link.held for link in links))
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
        links = ada._transport.connections.by_tag.values()
        await until(lambda: any(link.held for link in links))
        held = next(link for link in links if link.held)
        ada._transport.switchboard._end(held, pt.ConnectionClosed("ended"))
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
    async with ClassicPeer() as classic, pt.Node("ada", **loopback()) as ada:
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
    async with ClassicPeer() as classic, pt.Node("ada", **loopback()) as ada:
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
        ClassicPeer() as classic,
        pt.Node("ada", **loopback(send_queue_size=10_000, send_queue_bytes=2**26)) as ada,
    ):
        connecting = asyncio.create_task(ada.connect(classic.address, timeout=GUARD))
        await classic.meet()
        classic.say(capability(512))
        peer = await connecting
        events = ada.events()
        classic.writer.transport.pause_reading()
        (connection,) = ada._transport.connections.by_tag.values()
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
        ada._transport.switchboard._end(connection, None)
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
    async with ClassicPeer() as classic, pt.Node("ada", **loopback(send_queue_size=4)) as ada:
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
    async with ClassicPeer() as classic, pt.Node("ada", **loopback()) as ada:
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
            ada._transport.enqueue(peer._remote, bytes(size))
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


# Peers that are not who they were


async def test_where_a_classic_peer_was_heard_and_one_of_ours_answers_the_caller_is_told(free_port):
    """Ports are used again: messages meant for one program must not go to the next one on its
    port."""
    port = free_port()
    async with pt.Node("ada", **announcing(port)) as ada, pt.Node("new", **loopback()) as new:
        events = ada.events()
        heard = ClassicPeer()
        heard.address = new.address
        heard.announce(port)
        old = (await next_event(events, pt.PeerFound)).peer
        with contextlib.suppress(pt.errors.NetworkFailure):
            await old.connect(timeout=GUARD)
        peer = await ada.wait_for("new", timeout=GUARD)
        assert peer.id == new.id and peer is not old and not old.connected
        with pytest.raises(pt.errors.NetworkFailure, match="is now the peer 'new'"):
            await old.send(b"not for you", timeout=GUARD)
        await peer.send(b"for you")
        assert (await new.receive(timeout=GUARD)).data == b"for you"


async def test_where_another_node_answers_than_was_heard_the_caller_is_told(free_port):
    """Likewise between our own: the instance id decides."""
    port, core = free_port(), load()
    async with pt.Node("ada", **announcing(port)) as ada, pt.Node("new", **loopback()) as new:
        packet = encode_announcement(
            core, Announcement(1, "old", new.address[1], instance=b"goneaway")
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(packet, ("127.0.0.1", port))
        old = await ada.wait_for("old", timeout=GUARD)
        with pytest.raises(pt.ConnectionClosed, match="'old' was started again"):
            await old.send(b"not for you", timeout=GUARD)
        assert ada.peers["new"].id == new.id and old.successor is ada.peers["new"]


async def test_what_was_queued_for_a_peer_that_cannot_be_reached_fails_after_the_last_try(
    free_port, monkeypatch
):
    """Queued messages survive a short absence, not a long one; and their end is told."""
    monkeypatch.setattr(policy, "RETRY_DELAYS", (0.01, 0.02))
    port, core = free_port(), load()
    nobody = free_port()
    async with pt.Node("ada", **announcing(port)) as ada:
        packet = encode_announcement(core, Announcement(1, "away", nobody, instance=b"awayaway"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(packet, ("127.0.0.1", port))
        peer = await ada.wait_for("away", timeout=GUARD)
        events = ada.events()
        assert [peer.send_nowait(bytes(10)) for _ in range(3)] == [1, 2, 3]
        assert (
            peer.queue.reason == "connection" and peer.queue.pending == 3 and peer.queue.bytes == 30
        )
        failed = await next_event(events, pt.Failed)
        assert (failed.first, failed.last, failed.outcome) == (1, 3, pt.Outcome.FAILED)
        assert isinstance(failed.error, pt.ConnectionRefused) and failed.error.peer == "away"
        with pytest.raises(pt.ConnectionRefused):
            await peer.send(b"x", timeout=GUARD)
        assert peer.send_nowait(b"later") == 4
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", nobody))
        stats = ada.stats()
        assert stats.messages_accepted == 4 and stats.messages_failed == 3


async def test_more_connections_than_the_bound_are_refused_and_counted(caplog):
    """Descriptors are finite; the honest ones that are there stay. A log of all who were refused
    would be a log of them alone."""
    async with (
        pt.Node("ada", **loopback(max_peers=1)) as ada,
        pt.Node("bob", **loopback()) as bob,
        contextlib.AsyncExitStack() as stack,
    ):
        peer = await bob.connect(ada.address, timeout=GUARD)
        bound = ada._transport.connections.max_connections
        writers = []
        for _ in range(bound + 5):
            _, writer = await asyncio.open_connection(*ada.address)
            stack.callback(writer.close)
            writers.append(writer)
        await until(lambda: ada.stats().links_refused == 6)
        assert ada.stats().links_open <= bound
        (begun,) = caplog.messages
        assert f"taking more peers fails: {bound} connections are as many as there may be" in begun
        assert "Config.max_peers is 1" in begun
        await peer.send(b"still here")
        assert (await ada.receive(timeout=GUARD)).data == b"still here"


async def test_a_full_node_says_so_once_and_once_when_it_has_room(caplog, monkeypatch):
    """The line names the setting; who was refused is a counter."""
    monkeypatch.setattr("peertalk.runtime.log.SETTLED", 0.01)
    async with (
        pt.Node("ada", **loopback(max_peers=1)) as ada,
        pt.Node("bob", **loopback()) as bob,
        pt.Node("cid", **loopback()) as cid,
    ):
        peer = await bob.connect(ada.address, timeout=GUARD)
        for count in range(1, 6):
            # greeted first, it may have been connected for a moment
            with contextlib.suppress(pt.ConnectionRefused):
                await cid.connect(ada.address, timeout=GUARD)
            await until(lambda count=count: ada.stats().links_refused == count)
            await until(lambda: ada.stats().links_open == 1 and not cid.stats().links_open)
        (begun,) = caplog.messages
        assert (
            "node 'ada': taking more peers fails: the limit of 1 connected peers (Config." in begun
        )
        assert ada._transport.troubles.lasting == 1, "a stranger who goes leaves no place"
        await peer.disconnect()
        await until(lambda: not ada._transport.troubles.lasting)
        assert "node 'ada': taking more peers works again; 5 failed in " in caplog.messages[1]
        await cid.connect(ada.address, timeout=GUARD)
        assert len(caplog.messages) == 2


async def test_who_finds_no_room_is_told_so_by_the_reason():
    """Silence would look like a broken network; the original does not look at what comes before the
    end."""
    async with pt.Node("ada", **loopback(max_peers=1)) as ada, contextlib.AsyncExitStack() as stack:
        for _ in range(ada._transport.connections.max_connections):
            _, writer = await asyncio.open_connection(*ada.address)
            stack.callback(writer.close)
        async with ClassicPeer() as classic:
            await classic.dial(ada)
            assert await classic.hear() == (REJECT, 0, 0, b"\x01")
            assert await classic.hear() is None
        async with pt.Node("bob", **loopback()) as bob:
            with pytest.raises(
                pt.ConnectionRefused, match=r"127\.0\.0\.1:\d+ rejected the connection \(FULL\)"
            ) as refused:
                await bob.connect(ada.address, timeout=GUARD)
            assert refused.value.reason is pt.RejectReason.FULL
        assert ada.stats().links_refused == 2


# Round-trip times


async def test_the_way_to_a_peer_is_measured_when_it_connects_and_whenever_it_is_asked_for():
    """Both sides measure; nobody has to ask."""
    async with (
        pt.Node("ada", **loopback(ping_interval=10)) as ada,
        pt.Node("bob", **loopback(ping_interval=10)) as bob,
    ):
        peer = await ada.connect(bob.address, timeout=GUARD)
        await until(
            lambda: (
                peer.latency is not None
                and all(other.latency is not None for other in bob.peers.values())
            )
        )
        assert peer.latency.samples == 1 and peer.latency.deviation == peer.latency.rtt / 2
        seconds = [await peer.ping(timeout=GUARD) for _ in range(3)]
        assert all(0 < each < GUARD for each in seconds) and peer.latency.samples == 4
        await peer.disconnect(timeout=GUARD)
        assert peer.latency.samples == 4, "of the last connection"
        with pytest.raises(pt.NotConnected, match="'bob' is not connected"):
            await peer.ping()
        await peer.connect(timeout=GUARD)
        await until(lambda: peer.latency is not None and peer.latency.samples == 1)


async def test_a_peer_that_never_answers_a_ping_is_not_worse_off_and_gets_no_second_one_meanwhile():
    """The original answers, but nothing says that everybody must."""
    async with ClassicPeer() as classic, pt.Node("ada", **loopback(ping_interval=0.02)) as ada:
        connecting = asyncio.create_task(ada.connect(classic.address, timeout=GUARD))
        await classic.meet()
        classic.say(capability())
        peer = await connecting
        assert await classic.hear() != (PING, 0, 0, b"") == await classic.hear()
        with pytest.raises(pt.Timeout, match=r"no answer to a PING from peer .* within 0\.1 s"):
            await peer.ping(timeout=0.1)
        assert peer.connected and peer.latency is None and not peer._remote.pinging
        await peer.send(b"still there")
        assert await classic.hear() == (DATA, 0, 0, b"still there"), (
            "one PING is out, and no more leave before its answer"
        )
        asking = asyncio.create_task(peer.ping(timeout=GUARD))
        await until(lambda: peer._remote.pinging)
        classic.say(frame(PONG, b"with a payload"), frame(PONG), frame(PONG))
        assert await asking > 0.1 and peer.latency.samples == 1 and peer.latency.quality == 25
        asking = asyncio.create_task(peer.ping(timeout=GUARD))
        classic.hang_up()
        with pytest.raises(pt.ConnectionClosed):
            await asking


async def test_a_ping_whose_answer_lay_unread_while_the_link_was_paused_measures_nothing():
    """A slow application is not a slow network."""
    async with (
        ClassicPeer() as classic,
        pt.Node("ada", **loopback(receive_queue_bytes=1024)) as ada,
    ):
        await classic.dial(ada)
        classic.say(capability())
        await until(lambda: ada.peers)
        (peer,) = ada.peers.values()
        asking = asyncio.create_task(peer.ping(timeout=GUARD))
        while (await classic.hear())[0] != PING:
            pass
        classic.say(frame(DATA, bytes(2000)))
        await until(lambda: ada.stats().pauses == 1)
        classic.say(frame(PONG))
        await ada.receive(timeout=GUARD)
        with pytest.raises(pt.Timeout):
            await ada.receive(timeout=0)
        while (await classic.hear())[0] != PING:
            pass
        assert not asking.done() and peer.latency is None
        classic.say(frame(PONG))
        assert await asking > 0 and peer.latency.samples == 1


async def test_a_flood_of_pings_whose_answers_nobody_reads_costs_its_slots_and_no_more():
    """One answer for all that a turn brings, and none that waits in a queue: that would be memory
    that a stranger fills."""
    async with ClassicPeer() as classic, pt.Node("ada", **loopback(pipeline_depth=1)) as ada:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await asyncio.get_running_loop().sock_connect(deaf, ada.address)
            await asyncio.get_running_loop().sock_sendall(deaf, capability())
            flood = frame(PING) * 5000
            async with asyncio.timeout(GUARD):
                while ada.stats().bytes_received < 500_000:
                    await asyncio.get_running_loop().sock_sendall(deaf, flood)
            (peer,) = ada.peers.values()
            assert peer.connected and peer._remote.queued == 0 and ada.stats().pool_bytes < 1 << 20
            await classic.dial(ada)
            classic.say(frame(PING))
            assert [(await classic.hear())[0] for _ in range(2)] == [CAPABILITY, PONG], (
                "only its own link is full"
            )


# REJECT


async def test_a_peer_that_is_not_wanted_is_told_why_and_hears_nothing_that_waited_for_it():
    """The original closes; one of ours reads the reason."""
    async with (
        ClassicPeer() as classic,
        pt.Node("ada", **loopback(pipeline_depth=1, drain_timeout=60)) as ada,
    ):
        events = ada.events()
        await classic.dial(ada)
        classic.say(frame(DATA, b"let me in"), capability())
        request = await next_event(events, pt.ConnectionRequested)
        peer = (await next_event(events, pt.PeerConnected)).peer
        assert request.peer is peer and (await ada.receive(timeout=GUARD)).data == b"let me in"
        classic.writer.transport.pause_reading()
        await until(lambda: peer.max_message == 8192)
        while peer._remote.queued < 10:
            peer.send_nowait(bytes(8192))
            await asyncio.sleep(0)
        waiting = peer._remote.queued
        request.reject(pt.RejectReason.BANNED)
        request.reject(pt.RejectReason.FULL)  # too late: one reason is enough
        with pytest.raises(pt.NotConnected):
            peer.send_nowait(b"no more")
        failed = await next_event(events, pt.Failed) if waiting == peer.accepted else None
        classic.writer.transport.resume_reading()
        heard = []
        while (each := await classic.hear()) is not None:
            heard.append(each)
        assert heard[0][0] == CAPABILITY and heard[-1] == (REJECT, 0, 0, b"\x02")
        assert [each[0] for each in heard[1:-1]] == [DATA] * (peer.accepted - waiting)
        classic.hang_up()
        failed = failed or await next_event(events, pt.Failed)
        assert (failed.first, failed.last, failed.outcome) == (
            peer.accepted - waiting + 1,
            peer.accepted,
            pt.Outcome.FAILED,
        )
        assert "was rejected here (BANNED)" in str(failed.error)
        assert (await next_event(events, pt.PeerDisconnected)).error is None
        request.reject()  # gone: nothing is left to reject


async def test_whoever_is_rejected_hears_by_whom_and_why_and_does_not_dial_again():
    """A redial would be rejected again, as fast as both sides can."""
    async with (
        pt.Node("ada", **loopback()) as ada,
        pt.Node("bob", **loopback(receive_queue_bytes=1024)) as bob,
    ):
        heard, requests = ada.events(), bob.events()
        peer = await ada.connect(bob.address, timeout=GUARD)
        request = await next_event(requests, pt.ConnectionRequested)
        filling = asyncio.create_task(peer.send_many([bytes(8000)] * 4000))
        await until(lambda: bob.stats().pauses)
        request.reject(pt.RejectReason.BANNED)
        with pytest.raises(
            pt.ConnectionRefused, match=r"peer 'bob' rejected the connection \(BANNED\)"
        ) as refused:
            await filling
        assert refused.value.reason is pt.RejectReason.BANNED and refused.value.peer == "bob"
        gone = await next_event(heard, pt.PeerDisconnected)
        assert (
            isinstance(gone.error, pt.ConnectionRefused)
            and gone.error.reason is pt.RejectReason.BANNED
        )
        assert peer._remote.queued == 0 and not peer.queue.pending and not peer.connected
        assert bob.stats().links_opened == ada.stats().links_opened == 1
        await peer.connect(timeout=GUARD)
        assert (await next_event(requests, pt.ConnectionRequested)).peer is request.peer, (
            "asked anew"
        )


async def test_a_reject_before_any_greeting_ends_the_dial_and_what_waited_for_it(monkeypatch):
    """It is what a full node says. To try five times more would not make room."""
    async with ClassicPeer() as classic, pt.Node("ada", **loopback()) as ada:
        events = ada.events()
        peer = ada._transport.roster.make_peer(classic.address, None, "CREF", classic.address).view
        assert peer.send_nowait(b"waits") == 1
        await classic.meet()
        classic.say(frame(REJECT, b"\x04"))
        failed = await next_event(events, pt.Failed)
        assert (failed.first, failed.last, failed.outcome) == (1, 1, pt.Outcome.FAILED)
        assert (
            isinstance(failed.error, pt.ConnectionRefused)
            and failed.error.reason is pt.RejectReason.IN_PROGRESS
            and failed.error.peer == "CREF"
        )
        assert (
            peer._remote.retry is None
            and peer.state is pt.PeerState.FAILED
            and classic.accept_count == 1
        )


async def test_nobody_asks_for_a_connection_that_we_have_asked_for():
    """Requests are for those who come by themselves; where nobody answers them they are granted."""
    async with pt.Node("ada", **loopback()) as ada, pt.Node("bob", **loopback()) as bob:
        asked, came = ada.events(), bob.events()
        peer = await ada.connect(bob.address, timeout=GUARD)
        assert (await next_event(came, pt.ConnectionRequested)).peer.name == "ada"
        await peer.send(b"granted")
        assert (await bob.receive(timeout=GUARD)).data == b"granted"
        await ada.aclose()
        assert not any(
            isinstance(event, pt.ConnectionRequested) for event in [event async for event in asked]
        )


# Capabilities that come again


async def test_a_later_capability_replaces_all_but_who_it_is():
    """Missing entries fall back to the original's defaults; identity belongs to the connection and
    not to a frame."""
    core, instance = load(), b"replaced"
    async with ClassicPeer() as other, pt.Node("ada", **loopback()) as ada:
        connecting = asyncio.create_task(ada.connect(other.address, timeout=GUARD))
        await other.meet()
        other.say(
            frame(
                CAPABILITY,
                encode_capabilities(
                    core, Capabilities(8000, 2048, 0, 1, instance, "other", other.address[1])
                ),
            )
        )
        peer = await connecting
        assert peer.max_message == 8000

        async def told(*frames):
            other.say(*frames, frame(PING))
            while (await other.hear())[0] != PONG:
                pass

        await told(frame(CAPABILITY, b"\x03\x01\x4b"))
        assert (
            peer.capabilities == Capabilities(512, 256, 75, 0, instance, "other", other.address[1])
            and peer.max_message == 512
        )
        before = ada.stats().frames_ignored
        await told(
            frame(
                CAPABILITY,
                encode_capabilities(core, Capabilities(4000, 1, 0, 0, b"somebody", "else")),
            )
        )
        assert (
            peer.max_message == 512
            and peer.id == instance.hex()
            and ada.stats().frames_ignored == before + 1
        )
        await told(frame(CAPABILITY, b"\x03\x09"))
        assert peer.capabilities.pressure == 75 and ada.stats().frames_ignored == before + 2
        await told(
            frame(
                CAPABILITY,
                encode_capabilities(core, Capabilities(9000, 1, 0, 0, instance, "other")),
            )
        )
        assert peer.max_message == 8192 and peer.capabilities.port == other.address[1]
        await told(frame(CAPABILITY, b"\x01\x02\x00\x01"))
        assert peer.max_message == 256


async def test_one_of_ours_that_greets_late_is_no_classic_peer_for_ever(monkeypatch):
    """A program that was busy for a second must not count as a machine of 1990 for as long as it
    runs."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.02)
    core, instance = load(), b"latecome"
    async with ClassicPeer() as late, pt.Node("ada", **loopback()) as ada:
        peer = await ada.connect(late.address, timeout=GUARD)
        await late.meet()
        assert peer.classic and peer.max_message == 4096
        await peer.send(b"to a classic peer")
        greeting = encode_capabilities(
            core, Capabilities(8192, 1024, 0, 0, instance, "late", late.address[1])
        )
        late.say(frame(CAPABILITY, greeting), frame(DATA, b"here"))
        assert (await ada.receive(timeout=GUARD)).peer is peer
        assert (peer.classic, peer.id, peer.name, peer.max_message) == (
            False,
            instance.hex(),
            "late",
            8192,
        )
        assert list(ada.peers) == [peer.id] and ada.peers["late"] is peer and peer.connected
        await peer.send(bytes(8000))
        assert [(await late.hear())[0] for _ in range(3)] == [CAPABILITY, DATA, DATA]
        stats = peer.stats()
        late.say(frame(DISCONNECT))
        await until(lambda: not peer.connected)
        assert stats.messages_accepted == 2 and peer._remote.reported == 2


async def test_a_long_message_waits_for_one_of_ours_that_greets_late_and_is_not_refused(
    monkeypatch,
):
    """A server that was busy for a second would be taken for a machine of 1990, and the first
    message that only one of ours takes would fail."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.02)
    async with ClassicPeer() as late, pt.Node("ada", **loopback(connect_timeout=GUARD)) as ada:
        peer = await ada.connect(late.address, timeout=GUARD)
        await late.meet()
        assert peer.capabilities is None
        await peer.send(b"short")
        peer.send_nowait(bytes(8000))
        assert await peer.send_many([bytes(8000), b"behind them"]) == 2
        late.say(late_greeting(late))
        sizes = [len((await late.hear())[3]) for _ in range(5)]
        assert sizes[1:] == [5, 8000, 8000, 11], "in the order of the calls"
        assert not peer.classic and peer.stats().messages_failed == 0


BUSY = """
import asyncio, sys
import peertalk as pt

async def main():
    async with pt.Node("busy", bind="127.0.0.1", port=0, udp_port=0, discovery=False) as node:
        print(node.address[1], flush=True)
        sys.stdin.readline()  # the loop stands still
        print(len((await node.receive(timeout=60)).data), flush=True)

asyncio.run(main())
"""


async def test_a_server_that_is_busy_is_sent_what_is_longer_than_a_classic_peer_takes(
    start_python, monkeypatch
):
    """It computes, or starts up: a program of ours that will answer, and not in a second."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.02)
    busy = start_python("-c", BUSY)
    port = int(await asyncio.to_thread(busy.stdout.readline))
    async with pt.Node("ada", **loopback(connect_timeout=GUARD)) as ada:
        peer = await ada.connect(("127.0.0.1", port), timeout=GUARD)
        assert peer.capabilities is None
        await peer.send(bytes(8000))
        busy.stdin.write("go on\n")
        busy.stdin.flush()
        assert await asyncio.to_thread(busy.stdout.readline) == "8000\n"
        assert (peer.name, peer.classic) == ("busy", False)


async def test_a_long_message_fails_when_the_time_of_a_slow_peer_is_over(monkeypatch):
    """An original says what it takes at once, so one that still says nothing takes 512 bytes, and
    what is behind the long one must not wait for ever."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.02)
    async with ClassicPeer() as mute, pt.Node("ada", **loopback(connect_timeout=1.0)) as ada:
        events = ada.events()
        peer = await ada.connect(mute.address, timeout=GUARD)
        await mute.meet()
        number = await peer.send(bytes(4097))
        await peer.send(b"behind it")
        failed = await next_event(events, pt.Failed)
        assert (failed.first, failed.last, failed.outcome) == (number, number, pt.Outcome.FAILED)
        assert isinstance(failed.error, pt.MessageTooLarge)
        assert (await mute.hear())[0] == CAPABILITY and (await mute.hear())[3] == b"behind it"
        with pytest.raises(pt.MessageTooLarge, match="the limit is 4,096"):
            await peer.send(bytes(4097))


def late_greeting(late):
    """Of one of ours that listens where this peer does."""
    capabilities = Capabilities(8192, 1024, 0, 0, b"latecome", "late", late.address[1])
    return frame(CAPABILITY, encode_capabilities(load(), capabilities))


async def test_one_of_ours_that_greets_late_and_is_known_already_is_sent_to_under_its_name(
    monkeypatch,
):
    """Two objects for one peer would be two queues and two orders."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.02)
    async with ClassicPeer() as late, pt.Node("ada", **loopback()) as ada:
        greeting = late_greeting(late)
        events = ada.events()
        classic = await ada.connect(late.address, timeout=GUARD)
        await late.meet()
        first = late.writer
        await late.dial(ada)
        late.say(greeting)
        assert (await ada.wait_for("late", timeout=GUARD)).connected
        first.write(greeting)
        gone = await next_event(events, pt.PeerDisconnected)
        assert gone.peer is classic and "turned out to be the peer 'late'" in str(gone.error)
        assert list(ada.peers.values()) == [ada.peers["late"]] and ada.peers["late"].connected
        first.close()


async def test_one_of_ours_that_greets_late_and_was_forgotten_is_the_object_that_is_held(
    monkeypatch,
):
    """Two objects for one peer again: one in the table, and one with which somebody goes on."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.02)
    async with ClassicPeer() as late, pt.Node("ada", **loopback()) as ada:
        greeting = late_greeting(late)
        events = ada.events()
        await late.dial(ada)
        late.say(greeting)
        held = (await next_event(events, pt.PeerConnected)).peer
        late.say(frame(DISCONNECT))
        late.hang_up()
        assert (await next_event(events, pt.PeerLost)).peer is held and not ada.peers
        classic = await ada.connect(late.address, timeout=GUARD)
        await late.meet()
        assert classic is not held and classic.classic
        late.say(greeting)
        assert (await next_event(events, pt.PeerFound)).peer is classic
        assert (await next_event(events, pt.PeerFound)).peer is held
        assert set(ada.peers.values()) <= {held} and not classic.connected
        late.hang_up()


async def test_whom_a_classic_peer_dialled_it_knows_so_of_two_that_crossed_its_own_connection_stays(
    free_port,
):
    """On the connection that we dialled the original has no name for us: its application would lose
    the peer that it chose."""
    port = free_port()
    async with ClassicPeer() as classic, pt.Node("ada", **announcing(port)) as ada:
        classic.announce(port)
        found = await ada.wait_for("CREF", timeout=GUARD)
        await classic.meet()  # our dial, which it does not greet yet
        ours = classic.reader, classic.writer
        await classic.dial(ada)
        theirs = classic.reader, classic.writer
        classic.say(capability(), frame(DATA, b"on mine"))
        await until(lambda: found.connected)
        classic.reader, classic.writer = ours
        classic.say(capability(), frame(DATA, b"on yours"))
        assert [(await classic.hear()), (await classic.hear())][1] is None, "shut by us"
        classic.hang_up()
        assert {(await ada.receive(timeout=GUARD)).data for _ in range(2)} == {
            b"on mine",
            b"on yours",
        }
        classic.reader, classic.writer = theirs
        await found.send(b"answer")
        assert [(await classic.hear())[0], await classic.hear()] == [
            CAPABILITY,
            (DATA, 0, 0, b"answer"),
        ]
        assert len(ada.peers) == 1 and ada.stats().links_open == 1


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
        ClassicPeer() as classic,
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
        assert ada.stats().pressure_reports == 6 and not ada._transport.inbox.told


async def test_pressure_that_finds_no_room_is_told_once_when_there_is_some_and_as_it_is_then():
    """Lost, the peer would flood on, or wait for ever; queued twice, a slow link would fill with
    old news."""
    async with (
        ClassicPeer() as classic,
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
        (connection,) = ada._transport.connections.by_tag.values()
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
        ClassicPeer() as classic,
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


# Leaving


async def test_each_connection_is_closed_before_the_goodbye(free_port):
    """Q4: the original reads a connection no more whose peer said goodbye, and spins on it."""
    port = free_port()
    left = []

    class Watching(World):
        def broadcast(self, sender, packet, *rest):
            if packet[5] == 3:
                left.append(len(ada._transport.connections))
            return super().broadcast(sender, packet, *rest)

    async with (
        ClassicPeer() as classic,
        pt.Node("ada", world=Watching(), **announcing(port)) as ada,
    ):
        await classic.dial(ada)
        classic.say(capability())
        assert (await classic.hear())[0] == CAPABILITY
        await until(lambda: len(ada.peers) == 1)
        leaving = asyncio.create_task(ada.aclose(timeout=GUARD))
        assert (await classic.hear())[0] == DISCONNECT and await classic.hear() is None
        classic.hang_up()
        await leaving
        assert left and not any(left)


# Whose connection it is


def announce_as(discovery_port, name, port):
    """A packet of the original kind, of somebody who listens on port."""
    body = struct.pack(">4sBBHHBB", b"PTLK", 1, 1, 0, port, 3, len(name)) + name
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(body + struct.pack(">H", crc16(body)), ("127.0.0.1", discovery_port))


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
        ClassicPeer() as first,
        ClassicPeer() as second,
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
    async with ClassicPeer() as classic, pt.Node("ada", **loopback()) as ada:
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


def test_a_peer_that_comes_back_while_it_is_left_waits_until_what_it_sent_before_is_read():
    """Its first bytes on the new connection must not be delivered before the last ones on the old,
    which a bad network still holds."""
    for seed in (495, 542, 769):
        assert not scenarios.play("connect_disconnect", seed).problems


def test_who_was_forgotten_on_one_side_alone_is_reached_again():
    """The side that forgot counts places anew; the other one still knows those that were used, and
    a connection with a place of the past is over before it has begun."""
    roles = set()

    async def main(net: sim.Network) -> list[bytes]:
        ada, bob = [await net.node(name, discovery=False) for name in ("ada", "bob")]
        roles.add(ada.id < bob.id)
        peer = await ada.connect(bob.address)
        got = []
        for number in range(3):
            await peer.send(bytes((number,)))
            got.append((await bob.receive(timeout=60)).data)
            await peer.disconnect(timeout=5)
            await asyncio.sleep(1)
            assert not bob.peers, "nobody holds it there"
        return got

    for seed in range(8):
        assert sim.run(main, seed=seed) == [b"\0", b"\1", b"\2"]
    assert roles == {True, False}, "either side decides about places once"


def test_what_comes_from_who_took_us_for_classic_is_delivered_when_the_older_one_has_ended(
    monkeypatch,
):
    """It stands outside the line, so nobody else would tell it that its turn has come."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.001)
    roles = set()

    async def main(net: sim.Network) -> bytes:
        ada, bob = [await net.node(name, discovery=False) for name in ("ada", "bob")]
        roles.add(ada.id < bob.id)
        (await ada.connect(bob.address)).send_nowait(b"before")
        assert (await bob.receive(timeout=60)).data == b"before"
        net.link("ada", "bob", latency=0.05)
        net.reset(ada, bob, side="a")
        await asyncio.sleep(1)
        peer = await ada.connect(bob.address)
        await peer.send(b"after")
        return (await bob.receive(timeout=60)).data

    for seed in range(8):
        assert sim.run(main, seed=seed) == b"after"
    assert roles == {True, False}, "either side decides about places once"


def test_a_peer_that_nobody_holds_is_gone_at_once_and_not_when_the_collector_comes():
    """Whoever is known again is the same object while somebody holds it: if that hung on a cycle
    and the collector's whim, one seed would give several runs."""

    async def main(net: sim.Network) -> list[object]:
        ada, bob = [await net.node(name, discovery=False) for name in ("ada", "bob")]
        calling = await ada.connect(bob.address)
        await calling.send(b"hello")
        called = (await bob.receive(timeout=60)).peer
        held = [weakref.ref(calling), weakref.ref(called)]
        await calling.disconnect(timeout=5)
        net.cut(ada, bob)
        with pytest.raises(pt.Timeout):
            await calling.send(b"again", timeout=5)
        await asyncio.sleep(100)
        del calling, called
        return [each() for each in held]

    gc.collect()
    gc.disable()
    try:
        assert sim.run(main) == [None, None]
    finally:
        gc.enable()


def test_what_had_arrived_on_a_dead_link_is_read_before_it_is_closed():
    """Its sender's system was told that it has arrived, and so the sender that it was sent."""

    async def main(net: sim.Network) -> tuple[list[bytes], int]:
        ada = await net.node("ada", discovery=False, receive_queue_bytes=4096)
        bob = await net.node("bob", discovery=False)
        peer = await bob.connect(ada.address)
        events = bob.events()
        for number in range(40):
            await peer.send(bytes((number,)) * 500)
        await asyncio.sleep(5)
        net.cut(ada, bob)
        next(iter(ada.peers.values())).send_nowait(b"nobody hears this")
        await asyncio.sleep(60)
        await bob.aclose(timeout=1)
        sent = 0
        async for event in events:
            if isinstance(event, pt.Sent):
                sent += event.last - event.first + 1
            elif isinstance(event, pt.Failed):
                sent -= event.last - event.first + 1
        got = []
        with contextlib.suppress(pt.Timeout):
            while True:
                got.append((await ada.receive(timeout=5)).data)
        return got, sent

    got, sent = sim.run(main)
    assert got == [bytes((number,)) * 500 for number in range(40)] and sent <= 40


def test_the_one_that_decides_says_so_also_to_whom_it_took_for_classic():
    """Its greeting came late. Else the other side waits for that, and gives up though both are
    there."""
    assert not scenarios.play("memory_pressure", 758).problems


def test_what_is_sent_to_who_was_taken_for_classic_comes_before_what_is_sent_later():
    """The connection on which it comes was not used yet: it need not wait for the end of the one
    that is, only for what lies there."""
    assert not scenarios.play("crossing_dials", 4179).problems


async def test_any_number_of_connects_at_once_is_told_one_after_the_other():
    """Each was called inside the one before: a thousand of them were too deep, and none was told,
    nor anything else that the turn had brought."""
    async with pt.Node("ada", **loopback()) as ada:
        async with pt.Node("bob", **loopback()) as bob:
            address = bob.address
            peers = await asyncio.gather(
                *(ada.connect(address, timeout=GUARD) for _ in range(1_500))
            )
            assert len(set(peers)) == 1 and peers[0].connected
            await asyncio.gather(*(peers[0].connect(timeout=GUARD) for _ in range(1_500)))
            await asyncio.gather(*(peers[0].ping(timeout=GUARD) for _ in range(1_500)))
            await asyncio.gather(*(peers[0].disconnect() for _ in range(1_500)))
            assert not peers[0].connected
        refused = await asyncio.gather(
            *(ada.connect(address, timeout=GUARD) for _ in range(1_500)), return_exceptions=True
        )
        assert {type(error) for error in refused} == {pt.ConnectionRefused}


async def test_a_dial_whose_socket_the_system_does_not_watch_ends_and_the_next_one_is_another():
    """It stayed half made: it was never told, and whoever dialled there later waited with it."""

    class Unwatchable(World):
        def dial(self, address, bind=""):
            dialling = super().dial(address, bind)
            if self.refuses:
                with open(__file__) as file:  # epoll takes no regular file: EPERM
                    os.dup2(file.fileno(), dialling.fileno())
            return dialling

    world = Unwatchable()
    async with (
        pt.Node("ada", world=world, **loopback()) as ada,
        pt.Node("bob", **loopback()) as bob,
    ):
        for world.refuses in (True, True, False):
            try:
                peer = await ada.connect(bob.address, timeout=GUARD)
            except pt.errors.PlatformError as error:
                assert world.refuses and "cannot be watched" in str(error)
        assert peer.connected and ada.stats().links_open == 1
