"""A peer that says, frame by frame, what a test tells it, right or wrong; as the original, or as
one of ours of an id that the test chooses.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import peertalk as pt
from kit.waiting import GUARD
from peertalk._core import load
from peertalk.protocol.claims import Claims, Over
from peertalk.protocol.wire import (
    Capabilities,
    Greeting,
    decode_greeting,
    encode_capabilities,
    encode_greeting,
)

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
