"""Strangers that break the rules: each ends its own link only, is counted and reported, and honest peers go on meanwhile.

Everything is sent through raw sockets on loopback; nothing here trusts the encoders under test but for the frames that are meant to be right.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct

import pytest

import peertalk as pt
from peertalk._core import load
from peertalk.protocol import connections as policy
from peertalk.protocol.wire import Announcement, encode_announcement

GUARD = 10.0
GOOD = load("reference").encode_frame(1, b"good", 0, 0)


def loopback(**more):
    return {"bind": "127.0.0.1", "port": 0, "discovery": False, **more}


@contextlib.asynccontextmanager
async def beside_honest_traffic(**options):
    """A node under attack and its events, while an honest peer sends it numbered messages all the time; at the end all of them must have arrived."""
    async with pt.Node("honest", **loopback()) as honest, pt.Node("target", **loopback(**options)) as target:
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
    "magic": (flipped(GOOD, 0), pt.BadMagic),
    "version": (flipped(GOOD, 4), pt.BadVersion),
    "type 0": (GOOD[:5] + b"\x00" + GOOD[6:], pt.ProtocolError),
    "type 8": (GOOD[:5] + b"\x08" + GOOD[6:], pt.ProtocolError),
    "crc": (flipped(GOOD, 15), pt.BadCrc),
    "payload": (flipped(GOOD, 11), pt.BadCrc),
    "length": (struct.pack(">4sBBBBH", b"PTMG", 1, 1, 0, 0, 0xFFFF), pt.ProtocolError),
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
        assert (raised.address, type(raised.error)) == (own, error) and isinstance(raised.error, pt.RemoteError)
        assert raised.peer is not None and "127.0.0.1" in str(raised.error)
        assert (await ada.receive(timeout=GUARD)).data == b"good"
        async with asyncio.timeout(GUARD):
            with contextlib.suppress(ConnectionError):
                while await reader.read(1000):
                    pass
        stats = ada.stats()
        assert stats.bad_frames == 1 and stats.crc_errors == (kind in ("crc", "payload")) and stats.links_open == 0
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
        assert all(event.peer is None for event in faults) and target.stats().bad_frames == len(BAD_FRAMES)
        for writer in writers:
            writer.close()


@pytest.mark.soak
async def test_garbage_connections_cost_nothing_that_stays(core, rounds):
    """Port scanners, browsers, broken programs: each is dropped, and neither descriptors nor peers are left of them."""
    count = rounds(150, 10_000)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    garbage = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PTMG", b"SSH-2.0-OpenSSH_9.2\r\n", b""]
    async with beside_honest_traffic(core=core.name) as (target, _):
        for start in range(0, count, 50):
            opened = target.stats().links_opened
            together = [stranger(target, dice.choice((*garbage, dice.randbytes(dice.randrange(1, 200))))) for _ in range(min(50, count - start))]
            async with asyncio.timeout(GUARD):
                while target.stats().links_opened < opened + len(together):
                    await asyncio.sleep(0)
                for connection in together:
                    if dice.random() < 0.5:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
                    connection.close()
                while target.stats().links_open > 1:
                    await asyncio.sleep(0)
        assert len(target.peers) == 1 and target.stats().bad_frames > count // 10
        assert len(target._transport.connections) == 1


def test_a_frame_that_never_completes_ends_its_link_and_a_silent_stranger_too(monkeypatch):
    """Half a frame, or nothing at all, must not hold a descriptor for ever: 5 s for each, run here beside each other."""
    monkeypatch.setattr(policy, "SILENCE_TIME", 0.2)

    async def attack():
        async with beside_honest_traffic() as (target, events):
            silent_reader, silent = await asyncio.open_connection(*target.address)
            raised = await fault(events)
            assert isinstance(raised.error, pt.Timeout) and "sent no whole frame within 0.2 s" in str(raised.error)
            while await silent_reader.read(100):
                pass
            partial_reader, partial = await asyncio.open_connection(*target.address)
            partial.write(GOOD + GOOD[:12])
            raised = await fault(events)
            assert isinstance(raised.error, pt.Timeout) and "not whole within 5 s" in str(raised.error) and raised.peer is not None
            while await partial_reader.read(100):
                pass
            silent.close()
            partial.close()

    asyncio.run(attack())


async def test_silent_strangers_do_not_hold_up_an_honest_peer_from_the_same_host():
    """Data waits until it is sure that no second connection carries earlier data; strangers can draw that out, but only until they are closed."""
    async with pt.Node("ada", **loopback()) as ada, pt.Node("bob", **loopback()) as bob, contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            _, writer = await asyncio.open_connection(*ada.address)
            stack.callback(writer.close)
        peer = await bob.connect(ada.address, timeout=GUARD)
        await peer.send(b"hello")
        assert (await ada.receive(timeout=GUARD)).data == b"hello"


async def test_forged_announcements_fill_a_bounded_table_and_cause_few_dials(free_port, rounds):
    """Anyone can forge packets: memory and connections to third parties stay bounded, and a peer that is connected is never put out."""
    port, core = free_port(), load()
    count = rounds(2_000, 100_000)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    options = {"bind": "127.0.0.1", "port": 0, "discovery_port": port}
    with socket.create_server(("127.0.0.1", 0)) as victim, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
        victim_port = victim.getsockname()[1]
        async with pt.Node("bob", **options) as bob, pt.Node("ada", **options) as ada:
            peer = await ada.wait_for("bob", timeout=GUARD)
            await peer.send(b"x")
            before = set(ada.peers)
            for number in range(count):
                kind = dice.choice((1, 1, 1, 2, 3))
                instance = dice.randbytes(8) if number % 2 else None
                at = victim_port if number % 5 else dice.randrange(1, 65536)
                packet = encode_announcement(core, Announcement(kind, f"x{number}", at, instance=instance))
                if dice.random() < 0.1:
                    packet = dice.randbytes(dice.randrange(100))
                forger.sendto(packet, ("127.0.0.1", port))
                if number % 50 == 0:
                    await asyncio.sleep(0)
            forger.sendto(encode_announcement(core, Announcement(3, "bob", bob.address[1], instance=bytes.fromhex(bob.id))), ("127.0.0.1", port))
            discovery = ada._transport.finder.discovery
            async with asyncio.timeout(GUARD):
                while discovery.statistics().heard < 100 or not discovery.statistics().refused:
                    forger.sendto(encode_announcement(core, Announcement(1, "more", 1, instance=dice.randbytes(8))), ("127.0.0.1", port))
                    await asyncio.sleep(0)
            assert before <= set(ada.peers) and len(ada.peers) <= 64 + 2 and len(discovery) <= 64
            assert discovery.statistics().malformed > 0
            await peer.send(b"y")
            assert [(await bob.receive(timeout=GUARD)).data for _ in range(2)] == [b"x", b"y"]
            assert ada.stats().links_opened <= 2 + policy.CLASSIC_DIALS


async def test_a_flood_of_control_frames_costs_no_memory(core):
    """Each PING is answered by a PONG that must find room: who asks without reading must not fill our memory."""
    ping = load("reference").encode_frame(2, b"", 0, 0)
    async with beside_honest_traffic(core=core.name) as (target, _):
        pool = target.stats().pool_peak_bytes
        with stranger(target, ping) as asking:
            asking.setblocking(False)
            left = b""
            for _ in range(60):
                left = left or ping * 1000
                with contextlib.suppress(BlockingIOError):
                    left = left[asking.send(left) :]
                await asyncio.sleep(0)
            assert target.stats().pool_peak_bytes <= pool + (core.limits.pipeline_depth + 2) * core.limits.slot_size + 100_000


async def test_a_flood_of_datagrams_costs_bounded_memory_and_messages_still_pass(core, rounds):
    """The port is open to all: strangers are not even decoded, and who is known fills one short queue."""
    async with pt.Node("bob", bind="127.0.0.1", port=0, udp_port=0, discovery=False, core=core.name) as bob:
        async with pt.Node("ada", bind="127.0.0.1", port=0, udp_port=0, discovery=False, core=core.name) as ada:
            peer = await ada.connect(bob.address, timeout=GUARD)
            target = ("127.0.0.1", bob._engine.datagrams.port)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                for number in range(rounds(3_000, 100_000)):
                    stranger.sendto(random.randbytes(random.randrange(1, 1500)), target)
                    ada.send_datagram(peer, bytes(1392))
                    if number % 300 == 0:
                        await peer.send(b"through")
                        assert (await bob.receive(timeout=GUARD)).data == b"through"
            counted = bob.stats()
            assert counted.datagrams_ignored > 0 and counted.datagrams_received - counted.datagrams_overflowed <= 256
            assert counted.bad_frames == 0 and counted.links_open == 1
