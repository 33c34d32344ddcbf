"""A peer that says, frame by frame, what a test tells it, right or wrong; as the original, or as
one of ours of an id that the test chooses.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from classic import (
    ANNOUNCE,
    CAPABILITY,
    DATA,
    Packet,
    decode_frame,
    decode_header,
    encode_discovery,
    encode_frame,
)
from classic import Capabilities as OriginalCapabilities
from classic import encode_capabilities as encode_original

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


def frame(kind, payload=b"", sequence=0, flags=0):
    return encode_frame(kind, payload, flags, sequence)


def capability(max_message=8192, pressure=0):
    said = OriginalCapabilities(max_message, 1024, pressure, 5)
    return frame(CAPABILITY, encode_original(said))


def announce_as(discovery_port, name, port, kind=ANNOUNCE):
    """A packet of the original kind, of somebody who listens on port: no trailer behind the CRC."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(encode_discovery(Packet(kind, port, name)), ("127.0.0.1", discovery_port))


class _Ends(asyncio.StreamReaderProtocol):
    """Closes when the other side will say no more, as the original does: a node that leaves waits a
    second for that."""

    def eof_received(self):
        super().eof_received()
        return False


class Stranger:
    """A peer of one connection at a time, which reads frame by frame and sends what it is told. The
    scripted peer of classic does what the original does; this one does nothing by itself."""

    protocol = _Ends

    def __init__(self):
        self.reader = self.writer = None
        self.accepted = asyncio.Queue()
        self.accept_count = 0

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: self._protocol(self._accept), "127.0.0.1", 0)
        self.address = self.server.sockets[0].getsockname()
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.hang_up()
        while not self.accepted.empty():
            self.accepted.get_nowait()[1].close()
        await self.server.wait_closed()

    def _protocol(self, connected):
        return self.protocol(asyncio.StreamReader(limit=1 << 20), connected)

    def _accept(self, reader, writer):
        self.accept_count += 1
        self.accepted.put_nowait((reader, writer))

    async def meet(self):
        """Take the next connection that somebody made to us."""
        async with asyncio.timeout(GUARD):
            self.reader, self.writer = await self.accepted.get()

    async def dial(self, node):
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self._protocol(self._dialled), *node.address)

    def _dialled(self, reader, writer):
        self.reader, self.writer = reader, writer

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
            *_, length = decode_header(head)
            got = decode_frame(head + await self.reader.readexactly(length + 2))
            return got.kind, got.flags, got.sequence, got.payload

    def announce(self, discovery_port, kind=ANNOUNCE, name=b"CREF"):
        announce_as(discovery_port, name, self.address[1], kind)


SMALLER, LARGER = b"\x00" * 7 + b"\x01", b"\xff" * 8
"""Instance ids of a peer that decides which connection is used, and of one that follows."""


class Dial(Stranger):
    """A connection that one of ours, of an id that the test chooses, has made to a node: it says of
    it what it is told. number: of the dial; port: where it says that it listens."""

    port = None
    protocol = asyncio.StreamReaderProtocol  # ours may go on sending

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
