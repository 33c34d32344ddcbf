"""Strangers that break the rules: each ends its own link only, is counted and reported, and honest
peers go on meanwhile.

Everything is sent through raw sockets on loopback; nothing here trusts the encoders under test but
for the frames that are meant to be right.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.inside import buffers_in_use, connections_of, datagram_port, engine_of
from kit.nodes import loopback
from kit.waiting import until

import peertalk as pt
from peertalk._core import load
from peertalk.protocol import connections as policy
from peertalk.protocol.classics import CLASSIC_DIALS
from peertalk.protocol.wire import (
    Announcement,
    decode_announcement,
    decode_capabilities,
    encode_announcement,
)

GUARD = 10.0
GOOD = load("reference").encode_frame(1, b"good", 0, 0)


@contextlib.asynccontextmanager
async def beside_honest_traffic(**options):
    """A node under attack and its events, while an honest peer sends it numbered messages all the
    time; at the end all of them must have arrived."""
    async with (
        pt.Node("honest", **loopback()) as honest,
        pt.Node("target", **loopback(**options)) as target,
    ):
        peer = await honest.connect(target.address, timeout=GUARD)
        sent, arrived, stop = 0, [], False

        async def talk():
            nonlocal sent
            while not stop:
                await peer.send(sent.to_bytes(4, "big"))
                sent += 1
                await asyncio.sleep(0.001)

        async def listen():
            async for message in target.messages():
                if message.peer.name == "honest":
                    arrived.append(int.from_bytes(message.data, "big"))

        talking, listening = asyncio.create_task(talk()), asyncio.create_task(listen())
        async with target.events() as events:
            yield target, events
        assert target.peers["honest"].connected, "the honest peer lost its link"
        so_far = len(arrived)
        async with asyncio.timeout(GUARD):
            while len(arrived) == so_far:  # it still goes on
                await asyncio.sleep(0)
            stop = True
            await talking
            while len(arrived) < sent:
                await asyncio.sleep(0)
        assert arrived == list(range(sent))
        listening.cancel()


async def fault(events):
    async with asyncio.timeout(GUARD):
        async for event in events:
            if isinstance(event, pt.LinkFault):
                return event
    raise AssertionError


def stranger(node, data):
    """A connection to a node over which this was sent."""
    connection = socket.create_connection(node.address)
    connection.send(data)
    return connection


def flipped(data, index):
    return data[:index] + bytes([data[index] ^ 0x40]) + data[index + 1 :]


BAD_FRAMES = {
    "magic": (flipped(GOOD, 0), pt.errors.BadMagic),
    "version": (flipped(GOOD, 4), pt.errors.BadVersion),
    "type 0": (GOOD[:5] + b"\x00" + GOOD[6:], pt.errors.ProtocolError),
    "type 8": (GOOD[:5] + b"\x08" + GOOD[6:], pt.errors.ProtocolError),
    "crc": (flipped(GOOD, 15), pt.errors.BadCrc),
    "payload": (flipped(GOOD, 11), pt.errors.BadCrc),
    "length": (struct.pack(">4sBBBBH", b"PTMG", 1, 1, 0, 0, 0xFFFF), pt.errors.ProtocolError),
}


@pytest.mark.parametrize("kind", BAD_FRAMES)
async def test_a_bad_frame_ends_its_link_is_counted_and_reported(core, kind):
    """What stood before it is delivered; the message says what was wrong; nobody else feels it."""
    bad, error = BAD_FRAMES[kind]
    async with pt.Node("ada", **loopback(core=core.name)) as ada:
        events = ada.events()
        reader, writer = await asyncio.open_connection(*ada.address)
        own = writer.get_extra_info("sockname")
        writer.write(GOOD + bad)
        raised = await fault(events)
        assert (raised.address, type(raised.error)) == (own, error) and isinstance(
            raised.error, pt.errors.RemoteError
        )
        assert raised.peer is not None and "127.0.0.1" in str(raised.error)
        assert (await ada.receive(timeout=GUARD)).data == b"good"
        async with asyncio.timeout(GUARD):
            with contextlib.suppress(ConnectionError):
                while await reader.read(1000):
                    pass
        stats = ada.stats()
        assert (
            stats.bad_frames == 1
            and stats.crc_errors == (kind in ("crc", "payload"))
            and stats.links_open == 0
        )
        writer.close()


async def test_bad_frames_do_not_disturb_an_honest_peer(core):
    """All kinds of damage at once, beside a conversation."""
    async with beside_honest_traffic(core=core.name) as (target, events):
        writers = []
        for bad, _ in BAD_FRAMES.values():
            _, writer = await asyncio.open_connection(*target.address)
            writer.write(bad)
            writers.append(writer)
        faults = [await fault(events) for _ in BAD_FRAMES]
        assert all(event.peer is None for event in faults) and target.stats().bad_frames == len(
            BAD_FRAMES
        )
        for writer in writers:
            writer.close()


async def test_garbage_connections_cost_nothing_that_stays(core, rounds):
    """Port scanners, browsers, broken programs: each is dropped, and neither descriptors nor peers
    are left of them."""
    count = rounds(150, 10_000)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    garbage = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PTMG",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
    ]
    async with beside_honest_traffic(core=core.name) as (target, _):
        for start in range(0, count, 50):
            opened = target.stats().links_opened
            together = [
                stranger(target, dice.choice((*garbage, dice.randbytes(dice.randrange(1, 200)))))
                for _ in range(min(50, count - start))
            ]
            async with asyncio.timeout(GUARD):
                while target.stats().links_opened < opened + len(together):
                    await asyncio.sleep(0)
                for connection in together:
                    if dice.random() < 0.5:
                        # a reset
                        connection.setsockopt(
                            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                        )
                    connection.close()
                while target.stats().links_open > 1:
                    await asyncio.sleep(0)
        assert len(target.peers) == 1 and target.stats().bad_frames > count // 10
        assert len(connections_of(target)) == 1


def test_a_frame_that_never_completes_ends_its_link_and_a_silent_stranger_too(monkeypatch):
    """Half a frame, or nothing at all, must not hold a descriptor for ever: 5 s for each, run here
    beside each other."""
    monkeypatch.setattr(policy, "SILENCE_TIME", 0.2)

    async def attack():
        async with beside_honest_traffic() as (target, events):
            silent_reader, silent = await asyncio.open_connection(*target.address)
            raised = await fault(events)
            assert isinstance(
                raised.error, pt.Timeout
            ) and "sent no whole frame within 0.2 s" in str(raised.error)
            while await silent_reader.read(100):
                pass
            partial_reader, partial = await asyncio.open_connection(*target.address)
            partial.write(GOOD + GOOD[:12])
            raised = await fault(events)
            assert (
                isinstance(raised.error, pt.Timeout)
                and "not whole within 5 s" in str(raised.error)
                and raised.peer is not None
            )
            while await partial_reader.read(100):
                pass
            silent.close()
            partial.close()

    asyncio.run(attack())


async def test_strangers_that_call_and_go_leave_no_line_in_the_log(core, caplog):
    """A thousand callers that said a word and hung up were a thousand warnings. Where this node has
    sent something, it may be lost, and that is told."""
    async with pt.Node("ada", **loopback(core=core.name)) as ada, ada.events() as events:
        for number in range(10):
            reader, writer = await asyncio.open_connection(*ada.address)
            writer.write(GOOD)
            peer = (await ada.receive(timeout=GUARD)).peer
            if number == 9:
                await peer.send(b"and what do you want?")
                await reader.read(1)
            reset(writer)
            async with asyncio.timeout(GUARD):
                while not isinstance(await anext(events), pt.PeerDisconnected):
                    pass
    said = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(said) == 1 and "is closed" in said[0]


def reset(writer):
    """End a connection as a box in the middle does."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.close()


async def test_silent_strangers_do_not_hold_up_an_honest_peer_from_the_same_host():
    """Data waits until it is sure that no second connection carries earlier data; strangers can
    draw that out, but only until they are closed."""
    async with (
        pt.Node("ada", **loopback()) as ada,
        pt.Node("bob", **loopback()) as bob,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(5):
            _, writer = await asyncio.open_connection(*ada.address)
            stack.callback(writer.close)
        peer = await bob.connect(ada.address, timeout=GUARD)
        await peer.send(b"hello")
        assert (await ada.receive(timeout=GUARD)).data == b"hello"


async def test_forged_announcements_fill_a_bounded_table_and_cause_few_dials(free_port, rounds):
    """Anyone can forge packets: memory and connections to third parties stay bounded, and a peer
    that is connected is never put out."""
    port, core = free_port(), load()
    count = rounds(2_000, 100_000)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    # they come from an address of this machine, for which there is no other bound
    options = {"bind": "127.0.0.1", "port": 0, "discovery_port": port, "max_peers": 64}
    with (
        socket.create_server(("127.0.0.1", 0)) as victim,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger,
    ):
        victim_port = victim.getsockname()[1]
        async with pt.Node("bob", **options) as bob, pt.Node("ada", **options) as ada:
            peer = await ada.wait_for("bob", timeout=GUARD)
            await peer.send(b"x")
            before = set(ada.peers)
            for number in range(count):
                kind = dice.choice((1, 1, 1, 2, 3))
                instance = dice.randbytes(8) if number % 2 else None
                at = victim_port if number % 5 else dice.randrange(1, 65536)
                packet = encode_announcement(
                    core, Announcement(kind, f"x{number}", at, instance=instance)
                )
                if dice.random() < 0.1:
                    packet = dice.randbytes(dice.randrange(100))
                forger.sendto(packet, ("127.0.0.1", port))
                if number % 50 == 0:
                    await asyncio.sleep(0)
            forger.sendto(
                encode_announcement(
                    core, Announcement(3, "bob", bob.address[1], instance=bytes.fromhex(bob.id))
                ),
                ("127.0.0.1", port),
            )
            discovery = engine_of(ada).finder.discovery
            async with asyncio.timeout(GUARD):
                while discovery.statistics().heard < 100 or not discovery.statistics().refused:
                    forger.sendto(
                        encode_announcement(
                            core, Announcement(1, "more", 1, instance=dice.randbytes(8))
                        ),
                        ("127.0.0.1", port),
                    )
                    await asyncio.sleep(0)
            assert before <= set(ada.peers) and len(ada.peers) <= 64 + 2 and len(discovery) <= 64
            assert discovery.statistics().malformed > 0
            await peer.send(b"y")
            assert [(await bob.receive(timeout=GUARD)).data for _ in range(2)] == [b"x", b"y"]
            assert ada.stats().links_opened <= 2 + CLASSIC_DIALS


async def test_a_flood_of_control_frames_costs_no_memory(core):
    """Who asks without reading gets a PONG for all that a turn has brought, and turns go on with
    what it sent beyond its share: neither fills more than the slots and the buffers of its link."""
    async with beside_honest_traffic(core=core.name) as (target, _):
        pool = target.stats().pool_peak_bytes
        with socket.socket() as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            asking.connect(target.address)
            asking.setblocking(False)
            left = b""
            async with asyncio.timeout(GUARD):
                while target.stats().bytes_received < 40_000:
                    left = left or (frame(PING) + compact(PING)) * 1000
                    with contextlib.suppress(BlockingIOError):
                        left = left[asking.send(left) :]
                    await asyncio.sleep(0)
            slots = (engine_of(target).pipeline_depth + 2) * (core.limits.slot_size + 64)
            assert target.stats().pool_peak_bytes <= pool + slots + 2 * (
                core.limits.frame_max_payload + 128
            )


async def test_a_flood_of_datagrams_costs_bounded_memory_and_messages_still_pass(core, rounds):
    """The port is open to all: strangers are not even decoded, and who is known fills one short
    queue."""
    async with pt.Node(
        "bob", bind="127.0.0.1", port=0, udp_port=0, discovery=False, core=core.name
    ) as bob:
        async with pt.Node(
            "ada", bind="127.0.0.1", port=0, udp_port=0, discovery=False, core=core.name
        ) as ada:
            peer = await ada.connect(bob.address, timeout=GUARD)
            target = ("127.0.0.1", datagram_port(bob))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                for number in range(rounds(3_000, 100_000)):
                    stranger.sendto(random.randbytes(random.randrange(1, 1500)), target)
                    ada.send_datagram(peer, bytes(1392))
                    if number % 300 == 0:
                        await peer.send(b"through")
                        assert (await bob.receive(timeout=GUARD)).data == b"through"
            counted = bob.stats()
            assert (
                counted.datagrams_ignored > 0
                and counted.datagrams_received - counted.datagrams_overflowed <= 256
            )
            assert counted.bad_frames == 0 and counted.links_open == 1


# Frames whose parts lie

DATA, PING, PONG, DISCONNECT, ACK, REJECT, CAPABILITY = range(1, 8)
BATCH, FRAGMENT = 0x08, 0x10
FIRST, LAST = 1, 2


def frame(kind, payload=b"", flags=0):
    """A frame with a true length and checksum: what lies is inside."""
    return load("reference").encode_frame(kind, payload, flags, 0)


def compact(kind, payload=b"", flags=0, length=None):
    return (
        struct.pack(">BBH", 0x50, kind << 4 | flags, len(payload) if length is None else length)
        + payload
    )


def piece(total, offset, flags, data=b"", number=1):
    """A fragment of message `number`; all its fields as given."""
    return frame(DATA, struct.pack(">HHHBB", number, total, offset, flags, 0) + data, FRAGMENT)


def capability(max_message=8192, pressure=0, more=b""):
    return frame(
        CAPABILITY,
        struct.pack(">BBHBBHBBBBBH", 1, 2, max_message, 2, 2, 1024, 3, 1, pressure, 4, 2, 5) + more,
    )


def extension(kind, value, length=None):
    return bytes((kind, len(value) if length is None else length)) + value


def identity(instance, name=b"mallory"):
    """Extension TLVs of one who says it is a peertalk peer."""
    return extension(0x80, instance) + extension(0x81, name)


def drain(connection):
    """What the node has said to a stranger so far."""
    said = b""
    with contextlib.suppress(BlockingIOError):
        while data := connection.recv(1 << 16):
            said += data
    return said


COSTS_ITSELF = {
    "total 0 and data": [piece(0, 0, FIRST | LAST, b"x")],
    "total 65,535 in the first fragment": [piece(65_535, 0, FIRST, bytes(200))],
    "total 65,535 in a later fragment": [
        piece(10, 0, FIRST, b"hello"),
        piece(65_535, 5, LAST, bytes(600)),
    ],
    "total that shrinks below what is there": [
        piece(10, 0, FIRST, b"hello"),
        piece(0, 5, LAST, b"worldly"),
    ],
    "offset at the end of the numbers": [
        piece(10, 0, FIRST, b"hello"),
        piece(10, 65_535, LAST, b"world"),
    ],
    "offset and piece that sum up to more than 16 bits": [
        piece(65_535, 65_530, FIRST | LAST, bytes(100))
    ],
    "fragment shorter than its header": [frame(DATA, bytes(7), FRAGMENT)],
    "later fragment without a first": [piece(10, 5, LAST, b"world")],
    "last one too early": [piece(10, 0, FIRST | LAST, b"hello")],
    "batch entry that runs past its end": [frame(DATA, b"\0\1\0\0a\xff\xff\0\0b", BATCH)],
    "batch with half an entry header": [frame(DATA, b"\0\1\0\0a\0\0\0", BATCH)],
    "compact batch entry that runs past its end": [compact(DATA, b"\0\2\0\0a", BATCH)],
    "TLV that runs past its end": [capability(256, more=extension(0x80, b"abcdefgh", 200))],
    "TLV of the original that runs past its end": [frame(CAPABILITY, b"\x01\xff\x01\x00")],
    "CAPABILITY that says it is another": [capability(more=identity(b"\7" * 8))],
}


@pytest.mark.parametrize("kind", COSTS_ITSELF)
async def test_a_lie_inside_a_true_frame_costs_that_frame_and_is_counted(core, kind):
    """As the original, which ignores it: the connection goes on, nothing of the lie is delivered,
    and no memory stays."""
    async with pt.Node("ada", **loopback(core=core.name, ping_interval=0)) as ada:
        with stranger(ada, capability()) as liar:
            liar.send(
                b"".join(COSTS_ITSELF[kind])
                + frame(DATA, b"after")
                + piece(7, 0, FIRST, b"who")
                + piece(7, 3, LAST, b"le()")
            )
            assert [(await ada.receive(timeout=GUARD)).data for _ in range(2)] == [
                b"after",
                b"whole()",
            ]
            stats, (peer,) = ada.stats(), ada.peers.values()
            assert (
                stats.frames_ignored,
                stats.bad_frames,
                stats.links_open,
                stats.messages_received,
            ) == (1, 0, 1, 2)
            assert peer.classic and peer.capabilities.max_message == 8192
        await until(lambda: ada.stats().links_open == 0)
        assert buffers_in_use(ada) == 0


ENDS_ITS_LINK = {
    "compact ACK that reads like a full header": (
        compact(ACK, b"", 4) + bytes(12),
        pt.errors.BadMagic,
    ),
    "full header whose second byte reads compact": (b"P\x15MG" + GOOD[4:], pt.errors.ProtocolError),
    "compact of type 0": (compact(0) + bytes(12), pt.errors.ProtocolError),
    "compact of type 8": (compact(8) + bytes(12), pt.errors.ProtocolError),
    "compact whose length lies": (compact(DATA, b"abc", length=8193), pt.errors.ProtocolError),
    "full header whose length lies": (
        GOOD[:8] + struct.pack(">H", 1) + GOOD[10:] + bytes(12),
        pt.errors.ProtocolError,
    ),
}


@pytest.mark.parametrize("kind", ENDS_ITS_LINK)
async def test_a_header_that_reads_like_another_ends_its_link_alone(core, kind):
    """Nothing can be trusted behind it: what stood before is delivered, nothing behind it is."""
    bad, error = ENDS_ITS_LINK[kind]
    async with pt.Node("ada", **loopback(core=core.name)) as ada:
        events = ada.events()
        with stranger(ada, capability() + frame(DATA, b"flags like a header", 0x47) + bad + GOOD):
            raised = await fault(events)
            assert isinstance(raised.error, error)
            assert (await ada.receive(timeout=GUARD)).data == b"flags like a header"
            stats = ada.stats()
            assert (stats.messages_received, stats.bad_frames, stats.links_open) == (1, 1, 0)
            assert buffers_in_use(ada) == 0


NAMES = {
    b"a\0b": "a\0b",
    b"\xff\xfe\x80": "\ufffd" * 3,
    b"\x1b[2J": "\x1b[2J",
    b"\xc3": "\ufffd",
    b"x" * 32: "",
    b"": "",
    bytes(31): "\0" * 31,
}


async def test_names_of_any_bytes_are_names(core):
    """They are shown, compared and logged: what is no UTF-8 is replaced, what is too long is none,
    and an honest peer is still found by its own."""
    async with beside_honest_traffic(core=core.name) as (target, _):
        with contextlib.ExitStack() as stack:
            for number, name in enumerate(NAMES):
                stack.enter_context(
                    stranger(target, capability(more=identity(bytes([number + 1] * 8), name)))
                )
            await until(lambda: len(target.peers) == 1 + len(NAMES))
            found = {
                bytes.fromhex(peer.id)[0]: peer
                for peer in target.peers.values()
                if peer.name != "honest"
            }
            for number, name in enumerate(NAMES.values()):
                peer = found[number + 1]
                assert (
                    peer.name == name
                    and peer.connected
                    and "\x1b" not in repr(peer)
                    and "\0" not in repr(peer)
                )


# Floods


async def test_first_fragments_without_end_hold_one_message_for_each_link(core):
    """Each announces all that is allowed and none is ever completed: the one before gives way, and
    with the link the last goes too."""
    limit = core.limits.frame_max_payload
    async with beside_honest_traffic(core=core.name) as (target, _):
        flood = b"".join(piece(limit, 0, FIRST, b"x", number) for number in range(1000))
        endless = piece(limit, 0, FIRST, b"") + piece(limit, 0, 0, b"") * 1000
        # complete, but nobody says so
        whole = piece(5, 0, FIRST, b"whole") + piece(5, 5, 0, b"") * 1000
        before = target.memory["total"].bytes
        liars = [stranger(target, capability()) for _ in range(4)]
        await until(lambda: target.stats().links_open == 5)
        for liar, lie in zip(liars, (flood, endless, whole, flood), strict=True):
            liar.sendall(lie + frame(PING))
            liar.setblocking(False)
        for liar in liars:
            said = b""
            async with asyncio.timeout(GUARD):
                while frame(PONG) not in said:  # all of it was read
                    said += drain(liar)
                    await asyncio.sleep(0)
        stats = target.stats()
        assert (stats.frames_ignored, stats.bad_frames, stats.links_open) == (0, 0, 5)
        slots = core.limits.pipeline_depth * (core.limits.slot_size + 64)
        assert target.memory["total"].bytes - before <= 5 * (2 * (limit + 128) + 2 * slots + 4096)
        for liar in liars:
            liar.close()
        await until(lambda: target.stats().links_open == 1)
        assert buffers_in_use(target) <= 1 + 2 * core.limits.pipeline_depth


async def test_strangers_that_hold_all_they_can_leave_an_honest_peer_its_memory(core):
    """Half a frame, an unfinished message and unread answers on every link that there is: the pool
    has room for the one that is left."""
    limit, count = core.limits.frame_max_payload, 16
    async with (
        pt.Node("ada", **loopback(core=core.name, max_peers=count)) as ada,
        pt.Node("bob", **loopback()) as bob,
    ):
        to_ada = await bob.connect(ada.address, timeout=GUARD)
        to_bob = await ada.wait_for("bob", timeout=GUARD)
        half = struct.pack(">4sBBBBH", b"PTMG", 1, DATA, 0, 0, limit) + b"x"
        with contextlib.ExitStack() as stack:
            for _ in range(count - 1):
                stack.enter_context(
                    stranger(
                        ada, capability() + piece(limit, 0, FIRST, b"x") + frame(PING) * 5000 + half
                    )
                )
            await until(
                lambda: (
                    ada.stats().links_open == count
                    and ada.stats().bytes_received > 5000 * 12 * (count - 1)
                )
            )
            for number in range(20):
                message = bytes([number]) * limit
                await to_bob.send(message, timeout=GUARD)
                assert (await bob.receive(timeout=GUARD)).data == message
                await to_ada.send(message, timeout=GUARD)
                assert (await ada.receive(timeout=GUARD)).data == message
            assert ada.stats().frames_ignored == 0 and ada.stats().links_open == count


async def test_a_flood_of_capabilities_costs_its_own_link_and_nobody_is_stuck_for_ever(core):
    """Each may change what we may send, and how much: whoever sends to such a peer hears of each
    message, and goes on when it calms down."""
    largest = core.limits.frame_max_payload
    async with beside_honest_traffic(core=core.name) as (target, _):
        with stranger(target, capability(more=identity(b"\1" * 8))) as liar:
            liar.setblocking(False)
            peer = await target.wait_for("mallory", timeout=GUARD)
            outcomes, sent = [], 0

            async def listen():
                async for event in target.events():
                    if isinstance(event, pt.Sent | pt.Failed) and event.peer is peer:
                        outcomes.extend(range(event.first, event.last + 1))

            async def send():
                nonlocal sent
                for number in range(600):
                    with contextlib.suppress(pt.MessageTooLarge, pt.WouldBlock, pt.Timeout):
                        await peer.send(bytes(900 if number % 2 else 200), timeout=0.05)
                        sent += 1

            listening, sending = asyncio.create_task(listen()), asyncio.create_task(send())
            await asyncio.sleep(0)
            changes = [
                capability(256, 100),
                capability(8192, 0),
                capability(256, 0),
                capability(8192, 100),
                capability(more=identity(b"\2" * 8)),
            ]
            left, heard = b"".join(changes) * 1000, b""
            async with asyncio.timeout(GUARD):
                while left or not sending.done():
                    with contextlib.suppress(BlockingIOError):
                        left = left[liar.send(left[: 1 << 14]) :]
                    heard += drain(liar)
                    if not left:
                        left = b"" if sending.done() else capability(8192, 0)
                    await asyncio.sleep(0)
            await sending
            with contextlib.suppress(BlockingIOError):
                liar.send(left)
            liar.send(capability(8192, 0))
            await peer.send(b"the last one", timeout=GUARD)
            async with asyncio.timeout(GUARD):
                while b"the last one" not in heard:
                    heard += drain(liar)
                    await asyncio.sleep(0)
            await until(lambda: len(outcomes) == peer.stats().messages_accepted)
            assert (
                outcomes == list(range(1, len(outcomes) + 1))
                and peer.stats().messages_accepted >= sent + 1
            )
            await until(
                lambda: peer.max_message == largest and target.stats().frames_ignored == 1000
            )
            assert peer.id == "01" * 8 and target.stats().bad_frames == 0
            listening.cancel()


@pytest.mark.parametrize("kind", ["full", "compact"])
async def test_rejects_goodbyes_and_half_frames_at_any_moment_end_their_own_link(core, kind):
    """Before and behind CAPABILITY, between fragments, within a frame, twice: who leaves is gone,
    what does not count is ignored, and that is all."""
    make = frame if kind == "full" else compact
    greetings = [b"", capability(), capability(more=identity(b"\3" * 8))]
    moments = [b"", piece(10, 0, FIRST, b"hello"), frame(PING), GOOD]
    rejects = [
        make(REJECT),
        make(REJECT, b"\1"),
        make(REJECT, b"\xff" * 100),
        make(REJECT) * 2 + make(DISCONNECT),
    ]
    lasts = [*rejects, make(DISCONNECT) + GOOD, make(DISCONNECT) + GOOD[:12], GOOD[:12]]
    async with beside_honest_traffic(core=core.name) as (target, _):
        opened = target.stats().links_opened
        for greeting, moment, last in itertools.product(greetings, moments, lasts):
            with stranger(target, greeting + moment + last) as leaving:
                leaving.shutdown(socket.SHUT_WR)
                opened += 1
                await until(lambda expected=opened: target.stats().links_opened == expected)
                await until(lambda: target.stats().links_open == 1)
        assert target.stats().bad_frames == 0 and len(target.peers) == 1
        await until(lambda: buffers_in_use(target) <= 1 + 2 * core.limits.pipeline_depth)


async def test_datagrams_that_lie_are_counted_and_never_taken_for_a_honest_peers(core):
    """From a source that is known, so that each is read: lengths that lie, and a sender's port that
    is another's."""

    def datagram(payload, length=None, port=1):
        return (
            struct.pack(">4sHH", b"PTUD", port, len(payload) if length is None else length)
            + payload
        )

    options = {"bind": "127.0.0.1", "port": 0, "udp_port": 0, "discovery": False}
    async with pt.Node("ada", core=core.name, **options) as ada, pt.Node("bob", **options) as bob:
        to_ada = await bob.connect(ada.address, timeout=GUARD)
        await ada.wait_for("bob", timeout=GUARD)
        with socket.socket() as link, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as liar:
            link.bind(("127.0.0.9", 0))
            link.connect(ada.address)
            link.send(capability())
            liar.bind(("127.0.0.9", 0))
            await until(lambda: len(ada.peers) == 2)
            target = ("127.0.0.1", datagram_port(ada))
            cut = [b"", b"PTUD", datagram(b"")[:7]]
            lies = [
                *cut,
                datagram(b"abc", 4),
                datagram(b"abc", 65_535),
                b"PTUC" + datagram(b"x")[4:],
                datagram(bytes(1393)),
            ]
            for number in range(300):
                liar.sendto(lies[number % len(lies)], target)
                if number % 10 == 0:
                    await asyncio.sleep(0)
            truths = [
                datagram(b"as bob", port=datagram_port(bob)),
                datagram(b"longer than said", 6),
            ]
            for truth in truths:
                liar.sendto(truth, target)
            assert bob.send_datagram(to_ada, b"from bob")
            heard = [await ada.receive_datagram(timeout=GUARD) for _ in range(3)]
            assert [(each.data, each.peer.name) for each in heard] == [
                (b"as bob", ""),
                (b"longer", ""),
                (b"from bob", "bob"),
            ]
            stats = ada.stats()
            assert (
                stats.datagrams_ignored,
                stats.datagrams_received,
                stats.bad_frames,
                stats.links_open,
            ) == (300, 3, 0, 2)


# All at once

INSTANCES = [bytes([number] * 8) for number in (1, 2, 3)]
EXTENSIONS = st.lists(
    st.one_of(
        st.builds(
            extension, st.just(0x80), st.sampled_from([*INSTANCES, b"own", bytes(8), b"short"])
        ),
        st.builds(extension, st.integers(0x81, 0x84), st.binary(max_size=4)),
        st.builds(extension, st.integers(0, 255), st.binary(max_size=3), st.integers(0, 255)),
    ),
    max_size=3,
).map(b"".join)
SAYINGS = st.one_of(
    st.builds(
        capability, st.sampled_from([0, 256, 1000, 8192, 65_535]), st.integers(0, 255), EXTENSIONS
    ),
    st.builds(
        piece,
        st.sampled_from([0, 5, 900, 65_535]),
        st.sampled_from([0, 5, 65_535]),
        st.integers(0, 3),
        st.sampled_from([b"", b"hello", bytes(500)]),
    ),
    st.builds(
        frame,
        st.integers(1, 7),
        st.binary(max_size=9),
        st.sampled_from([0, BATCH, FRAGMENT, 0x47, 0xFF]),
    ),
    st.builds(compact, st.integers(1, 7), st.binary(max_size=9), st.integers(0, 15)),
    st.sampled_from(
        [frame(PING) * 100, frame(DATA, bytes(900)) * 5, compact(DATA) * 200, GOOD[:11], b"PT"]
    ),
)
ACTIONS = st.one_of(
    st.tuples(st.just("dial"), st.lists(SAYINGS, max_size=3)),
    st.tuples(st.just("say"), st.lists(SAYINGS, min_size=1, max_size=4)),
    st.tuples(st.just("say"), st.lists(SAYINGS, min_size=1, max_size=4)),
    st.tuples(
        st.sampled_from(
            [
                "hear",
                "half-close",
                "close",
                "reset",
                "send",
                "send much",
                "ping",
                "disconnect",
                "reject",
            ]
        ),
        st.just([]),
    ),
)


async def answer(kind, peer):
    """What the application of the attacked node does meanwhile."""
    with contextlib.suppress(pt.PeerTalkError):
        if kind == "send":
            await peer.send(bytes(300), timeout=0.05)
        elif kind == "send much":
            await peer.send_many([bytes(250)] * 50, timeout=0.05)
        elif kind == "ping":
            await peer.ping(timeout=0.05)
        elif kind == "disconnect":
            await peer.disconnect(timeout=0.05)
        else:
            peer.reject()


def act(kind, saying, node, connections, number):
    """One hostile act. Returns what the application does, or None."""
    if (kind == "dial" and len(connections) < 6) or not connections:
        connections.append(stranger(node, b"".join(saying).replace(b"own", bytes.fromhex(node.id))))
        connections[-1].setblocking(False)
        return None
    connection = connections[number % len(connections)]
    with contextlib.suppress(OSError):
        if kind in ("dial", "say"):
            connection.send(b"".join(saying))
        elif kind == "hear":
            drain(connection)
        elif kind == "half-close":
            connection.shutdown(socket.SHUT_WR)
        elif kind in ("close", "reset"):
            if kind == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connections.remove(connection)
            connection.close()
        else:
            others = [peer for peer in node.peers.values() if peer.name != "honest"]
            return answer(kind, others[number % len(others)]) if others else None
    return None


@given(actions=st.lists(st.tuples(ACTIONS, st.integers(0, 11)), min_size=5, max_size=40))
def test_no_order_of_hostile_acts_reaches_beyond_their_own_links(core, actions):
    """What each does alone is tested above. Together, in any order: no turn raises, an honest peer
    is heard in order, nothing stays."""
    raised = []

    async def attack():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
        connections, answers = [], []
        async with beside_honest_traffic(core=core.name, receive_queue_bytes=20_000) as (target, _):
            for (kind, saying), number in actions:
                if (doing := act(kind, saying, target, connections, number)) is not None:
                    answers.append(asyncio.create_task(doing))
                await asyncio.sleep(0)
            await asyncio.gather(*answers)
            for connection in connections:
                connection.close()
            await until(lambda: target.stats().links_open == 1)
            await until(lambda: buffers_in_use(target) <= 1 + 2 * core.limits.pipeline_depth)

    asyncio.run(attack())
    assert not raised


def test_forged_tlvs_read_as_their_list_says_or_not_at_all(core, rounds):
    """The walk over TLVs is the first that a stranger's bytes meet in Python: only ProtocolError
    comes out, and no byte is read as another's."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    kinds, sizes = (1, 2, 3, 4, 0x80, 0x81, 0x82, 0x83, 0x90, 0xFF), (0, 1, 2, 3, 8, 8, 31, 32)
    for _ in range(rounds(2_000, 200_000)):
        tlvs = [(dice.choice(kinds), dice.randbytes(dice.choice(sizes))) for _ in range(6)]
        body = b"".join(extension(kind, value) for kind, value in tlvs)
        instance = dict(tlvs).get(0x80, b"")
        port = dict(tlvs).get(0x82, b"")
        name = dict(tlvs).get(0x81, b"")
        told = decode_capabilities(core, body + dice.choice((b"", b"\x80")))
        assert told.instance == (instance if len(instance) == 8 and any(instance) else None)
        assert told.port == ((int.from_bytes(port, "big") or None) if len(port) == 2 else None)
        assert told.name == (name.decode("utf-8", "replace") if 1 <= len(name) <= 31 else None)
        with pytest.raises(pt.errors.ProtocolError):
            decode_capabilities(
                core, body + extension(dice.randrange(256), b"abc", dice.randrange(4, 256))
            )
        forged = bytearray(body)
        for _ in range(dice.randrange(4)):
            forged[dice.randrange(len(forged))] ^= 1 << dice.randrange(8)
        packet = core.encode_discovery(1, 7354, b"mallory", 0, 3) + bytes(forged)
        for data in (packet, packet + core.crc16(packet).to_bytes(2, "big")):
            heard = decode_announcement(core, data)
            assert (heard.name, heard.port) == ("mallory", 7354) and (
                heard.instance is None or len(heard.instance) == 8
            )
        with contextlib.suppress(pt.errors.ProtocolError):
            decode_capabilities(core, bytes(forged))
