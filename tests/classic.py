"""A peer of the original, scripted: what a classic peer sends, understands and refuses, told again
from the description of its protocol.

It shares no code with peertalk: a mistake that were made twice would be agreed upon and never seen.
It uses the standard library only, and has two halves. ClassicPeer thinks: bytes, the clock and
calls go in, actions and events come out. Sockets and SimulatedSockets move: they carry the actions
out on a real or on a simulated network. As a program (`python tests/classic.py --help`) it prints
one line of JSON for each event.

It is strict. The original forgives much by not looking; a peer that is compatible sends nothing
that the original would have to forgive. So whatever a reference sender would never send raises
Misbehaved: other flags than 0x00 and 0x10, a payload on a PING, a frame above what was agreed,
fragments out of order, a GOODBYE before the connection is closed. Two things are free, because the
original skips them by design: CAPABILITY entries of unknown type, and bytes behind the CRC of a
discovery packet. With strict=False it behaves as the original does, and closes or ignores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import selectors
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

DISCOVERY_PORT, TCP_PORT, UDP_PORT = 7353, 7354, 7355
DATA, PING, PONG, DISCONNECT, ACK, REJECT, CAPABILITY = range(1, 8)
ANNOUNCE, QUERY, GOODBYE = 1, 2, 3
UNRELIABLE, COALESCABLE, NO_DELAY, BATCH, FRAGMENT = 0x01, 0x02, 0x04, 0x08, 0x10
FIRST, LAST = 0x01, 0x02
LOW, NORMAL, HIGH, CRITICAL = range(4)
FRAME_MAX, BATCH_MAX, DATAGRAM_MAX, NAME_MAX, STREAM_MAX = 8192, 1400, 1392, 31, 65536
CONNECTING = -19
"""What a simulated socket answers while it is being opened."""
PIECE = 248
QUEUE_SLOTS, SLOT_SIZE = 16, 256
ANNOUNCE_EVERY, FORGET_AFTER = 10.0, 30.0

Address = tuple[str, int]


class Refused(Exception):
    """What the original returns for this: name is that of its error."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Misbehaved(AssertionError):
    """The other side sent what the original would not have sent."""


# --- the formats ----------------------------------------------------------------------------------


def crc16(data: bytes, start: int = 0) -> int:
    """CRC-16 with the reflected polynomial 0x8408 from 0, bit by bit."""
    value = start
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x8408 if value & 1 else 0)
    return value


_CRC = [crc16(bytes([byte])) for byte in range(256)]


def _checksum(data: bytes) -> bytes:
    value = 0
    for byte in data:
        value = value >> 8 ^ _CRC[(value ^ byte) & 0xFF]
    return value.to_bytes(2, "big")


def encode_header(kind: int, length: int, flags: int = 0, sequence: int = 0) -> bytes:
    """The 10 bytes before a payload."""
    return struct.pack(">4s4BH", b"PTMG", 1, kind, flags, sequence, length)


def encode_frame(kind: int, payload: bytes = b"", flags: int = 0, sequence: int = 0) -> bytes:
    """A whole frame."""
    body = encode_header(kind, len(payload), flags, sequence) + payload
    return body + _checksum(body)


def decode_header(data: bytes) -> tuple[int, int, int, int]:
    """(type, flags, sequence, payload length). Refused, in this order: TRUNCATED, MAGIC, VERSION,
    INVALID_PARAM (type)."""
    if len(data) < 10:
        raise Refused("PT_ERR_TRUNCATED")
    magic, version, kind, flags, sequence, length = struct.unpack_from(">4s4BH", data)
    if magic != b"PTMG":
        raise Refused("PT_ERR_MAGIC")
    if version != 1:
        raise Refused("PT_ERR_VERSION")
    if not 1 <= kind <= 7:
        raise Refused("PT_ERR_INVALID_PARAM")
    return kind, flags, sequence, length


def decode_frame(data: bytes) -> Frame:
    """The frame at the beginning of data. Refused as decode_header(), then MESSAGE_TOO_LARGE,
    TRUNCATED, CRC."""
    kind, flags, sequence, length = decode_header(data)
    if length > FRAME_MAX:
        raise Refused("PT_ERR_MESSAGE_TOO_LARGE")
    if len(data) < length + 12:
        raise Refused("PT_ERR_TRUNCATED")
    if _checksum(data[: 10 + length]) != data[10 + length : 12 + length]:
        raise Refused("PT_ERR_CRC")
    return Frame(kind, flags, sequence, bytes(data[10 : 10 + length]))


@dataclass(frozen=True)
class Frame:
    """A frame that was received."""

    kind: int
    flags: int
    sequence: int
    payload: bytes


@dataclass(frozen=True)
class Packet:
    """A discovery packet. name: as bytes."""

    kind: int
    port: int
    name: bytes = b""
    flags: int = 0
    transports: int = 3


def encode_discovery(packet: Packet, room: int = 64) -> bytes:
    """A discovery packet of 14 to 45 bytes. Refused: INVALID_PARAM, BUFFER_FULL (more than room
    bytes)."""
    if not 1 <= packet.kind <= 3 or len(packet.name) > NAME_MAX:
        raise Refused("PT_ERR_INVALID_PARAM")
    if 14 + len(packet.name) > room:
        raise Refused("PT_ERR_BUFFER_FULL")
    body = (
        struct.pack(
            ">4sBBHHBB",
            b"PTLK",
            1,
            packet.kind,
            packet.flags,
            packet.port,
            packet.transports,
            len(packet.name),
        )
        + packet.name
    )
    return body + _checksum(body)


def decode_discovery(data: bytes) -> Packet:
    """What a packet says. Refused, in this order: TRUNCATED, MAGIC, VERSION, INVALID_PARAM (type,
    name length), TRUNCATED, CRC."""
    if len(data) < 14:
        raise Refused("PT_ERR_TRUNCATED")
    magic, version, kind, flags, port, transports, size = struct.unpack_from(">4sBBHHBB", data)
    if magic != b"PTLK":
        raise Refused("PT_ERR_MAGIC")
    if version != 1:
        raise Refused("PT_ERR_VERSION")
    if not 1 <= kind <= 3 or size > NAME_MAX:
        raise Refused("PT_ERR_INVALID_PARAM")
    if len(data) < 14 + size:
        raise Refused("PT_ERR_TRUNCATED")
    if _checksum(data[: 12 + size]) != data[12 + size : 14 + size]:
        raise Refused("PT_ERR_CRC")
    return Packet(kind, port, bytes(data[12 : 12 + size]), flags, transports)


@dataclass(frozen=True)
class Capabilities:
    """What a side can take. The values that stand here are those of a side that has said
    nothing."""

    max_message: int = 512
    preferred_chunk: int = 256
    buffer_pressure: int = 50
    flags: int = 0


def encode_entries(*entries: tuple[int, bytes]) -> bytes:
    """Entries of a CAPABILITY: type, length, value."""
    return b"".join(bytes([kind, len(value)]) + value for kind, value in entries)


def encode_capabilities(said: Capabilities) -> bytes:
    """The four entries that the original sends, in its order: 15 bytes."""
    return encode_entries(
        (1, said.max_message.to_bytes(2, "big")),
        (2, said.preferred_chunk.to_bytes(2, "big")),
        (3, bytes([said.buffer_pressure])),
        (4, said.flags.to_bytes(2, "big")),
    )


def decode_entries(body: bytes) -> list[tuple[int, bytes]]:
    """The entries of a CAPABILITY; a single byte at the end is ignored. Refused: TRUNCATED, a
    length runs past the end."""
    entries, at = [], 0
    while len(body) - at >= 2:
        kind, size = body[at], body[at + 1]
        if at + 2 + size > len(body):
            raise Refused("PT_ERR_TRUNCATED")
        entries.append((kind, bytes(body[at + 2 : at + 2 + size])))
        at += 2 + size
    return entries


def decode_capabilities(body: bytes) -> Capabilities:
    """What a CAPABILITY says, from the defaults on; the last entry of a kind wins, one that is too
    short counts for nothing."""
    values = dict(zip((1, 2, 3, 4), (512, 256, 50, 0), strict=True))
    for kind, value in decode_entries(body):
        size = {1: 2, 2: 2, 3: 1, 4: 2}.get(kind)
        if size is not None and len(value) >= size:
            values[kind] = int.from_bytes(value[:size], "big")
    return Capabilities(min(max(values[1], 256), 8192), values[2], min(values[3], 100), values[4])


@dataclass(frozen=True)
class Piece:
    """The header of a fragment."""

    message: int
    total: int
    offset: int
    flags: int


def encode_piece(piece: Piece, data: bytes) -> bytes:
    """The payload of a fragment."""
    return struct.pack(">HHHBB", piece.message, piece.total, piece.offset, piece.flags, 0) + data


def decode_piece(payload: bytes) -> tuple[Piece, bytes]:
    """Header and data of a fragment. Refused: TRUNCATED, below 8 bytes."""
    if len(payload) < 8:
        raise Refused("PT_ERR_TRUNCATED")
    return Piece(*struct.unpack_from(">HHHB", payload)), bytes(payload[8:])


def fragments(message: bytes, number: int, size: int = PIECE) -> list[bytes]:
    """The payloads of the fragments that carry a message in pieces of size bytes."""
    found = []
    for offset in range(0, len(message), size):
        flags = (FIRST if offset == 0 else 0) | (LAST if offset + size >= len(message) else 0)
        found.append(
            encode_piece(
                Piece(number & 0xFFFF, len(message), offset, flags), message[offset : offset + size]
            )
        )
    return found


class Reassembly:
    """One message that comes in pieces."""

    def __init__(self, capacity: int = 4096) -> None:
        self.capacity = capacity
        self.message: int | None = None
        self.total = 0
        self.data = bytearray()

    def add(self, payload: bytes) -> bytes | None:
        """Take a fragment: the message that it completes, None when more is to come. Refused: as
        the original has it."""
        piece, data = decode_piece(payload)
        if piece.offset + len(data) > piece.total:
            self.message = None
            raise Refused("PT_ERR_INVALID_PARAM")
        if piece.flags & FIRST:
            if piece.total > self.capacity:
                raise Refused("PT_ERR_MESSAGE_TOO_LARGE")
            self.message, self.total, self.data = piece.message, piece.total, bytearray()
        if self.message is None:
            raise Refused("PT_ERR_INVALID_STATE")
        if piece.message != self.message:
            raise Refused("PT_ERR_INVALID_PARAM")
        # the second is where the original overruns its buffer
        if piece.offset != len(self.data) or piece.offset + len(data) > self.capacity:
            self.message = None
            raise Refused("PT_ERR_INVALID_PARAM")
        self.data += data
        if not piece.flags & LAST:
            return None
        self.message = None
        if len(self.data) != self.total:
            raise Refused("PT_ERR_TRUNCATED")
        return bytes(self.data)


def encode_datagram(payload: bytes, port: int) -> bytes:
    """A datagram message. port: the sender's."""
    return struct.pack(">4sHH", b"PTUD", port, len(payload)) + payload


def decode_datagram(data: bytes) -> tuple[int, bytes]:
    """(sender's port, payload). Refused, in this order: TRUNCATED, MAGIC, TRUNCATED."""
    if len(data) < 8:
        raise Refused("PT_ERR_TRUNCATED")
    magic, port, size = struct.unpack_from(">4sHH", data)
    if magic != b"PTUD":
        raise Refused("PT_ERR_MAGIC")
    if len(data) < 8 + size:
        raise Refused("PT_ERR_TRUNCATED")
    return port, bytes(data[8 : 8 + size])


def encode_batch(messages: list[bytes]) -> tuple[bytes, list[int]]:
    """(payload, indexes of those that did not fit)."""
    body, refused = bytearray(), []
    for index, message in enumerate(messages):
        if len(body) + 4 + len(message) > BATCH_MAX:
            refused.append(index)
        else:
            body += struct.pack(">HH", len(message), 0) + message
    return bytes(body), refused


def encode_compact(kind: int, length: int, flags: int = 0) -> bytes:
    """A compact header. Flag 0x10 does not fit and is lost."""
    return struct.pack(">BBH", 0x50, (kind << 4 | flags & 0x0F) & 0xFF, length)


# --- one connection -------------------------------------------------------------------------------


@dataclass(eq=False)
class Known:
    """A peer in the table. port: 0 for none; for one that called, the port that it called from."""

    number: int
    name: bytes
    host: str
    port: int
    last_seen: float
    state: str = "discovered"
    link: Link | None = None


@dataclass(eq=False)
class Link:
    """One TCP connection and what came over it. offers: the largest messages that were announced
    here."""

    known: Known
    dialled: bool
    up: bool = False
    closed: bool = False
    writable: bool = True
    sequence: int = 0
    theirs: Capabilities | None = None
    offers: list[int] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    latency: float = 0.0
    stamp: float | None = None
    received: bytearray = field(default_factory=bytearray)
    reassembly: Reassembly = field(default_factory=Reassembly)
    queued: list[deque[list[Any]]] = field(default_factory=lambda: [deque() for _ in range(4)])
    direct: bytes | None = None
    stream: bytes = b""
    streaming: bool = False
    cancelled: bool = False
    level: int = 0
    piece: Piece | None = None
    expected: int = 0

    @property
    def messages(self) -> list[Frame]:
        """DATA frames, in order."""
        return [frame for frame in self.frames if frame.kind == DATA]

    @property
    def waiting(self) -> int:
        """Messages and fragments in the queue."""
        return sum(map(len, self.queued))


# --- the peer -------------------------------------------------------------------------------------


class ClassicPeer:
    """A classic peer without sockets.

    Args:
        name: what it is called, at most 30 bytes of which are announced.
        host: its own IPv4 address: packets from there are its own.
        tcp_port, discovery_port, udp_port: its ports.
        offer: what its CAPABILITY says; body: that CAPABILITY's very bytes instead; greets: False:
            it never sends one.
        direct_buffer: bytes of its direct buffer, which is also its capacity for fragments.
        fragmentation: False: long messages go out whole.
        slots: peers in its table.
        dials: dial each peer when it is discovered, as a program of the original has to.
        forgets_at_once: quirk Q1: a peer that it does not dial is lost in the poll that discovered
            it.
        pongs: False: it leaves PINGs unanswered (no original does; a node must live with it all the
            same).
        deaf: what is broadcast does not reach it; mute: what it broadcasts reaches nobody. For a
            network that loses a packet, at the choice of the test.
        strict: raise Misbehaved; False: only do what the original does.

    actions: what a driver has to do: ("broadcast", bytes), ("datagram", bytes, address), ("dial",
        link, address), ("write", link, bytes),
    ("close", link). events: (kind, peer, detail): discovered, lost, connected, disconnected,
        message, stream. Messages and datagrams are also in
    lists of their own. quiet: links that are not read, by choice of the test. abandoned: messages
    that its application was told are sent and that were still in its queue when their connection
    ended.
    """

    def __init__(
        self,
        name: str | bytes = "classic",
        *,
        host: str = "127.0.0.2",
        tcp_port: int = TCP_PORT,
        discovery_port: int = DISCOVERY_PORT,
        udp_port: int = UDP_PORT,
        offer: Capabilities | None = None,
        body: bytes | None = None,
        greets: bool = True,
        direct_buffer: int = 4096,
        fragmentation: bool = True,
        slots: int = 16,
        dials: bool = False,
        forgets_at_once: bool = False,
        pongs: bool = True,
        deaf: bool = False,
        mute: bool = False,
        strict: bool = True,
    ) -> None:
        self.deaf, self.mute = deaf, mute
        self.name = (name.encode() if isinstance(name, str) else name)[:30]
        self.host, self.tcp_port, self.discovery_port, self.udp_port = (
            host,
            tcp_port,
            discovery_port,
            udp_port,
        )
        self.offer = offer or Capabilities(8192, 1024, 0, 5)
        self.body, self.greets, self.pongs = body, greets, pongs
        self.direct_buffer, self.fragmentation = direct_buffer, fragmentation
        self.dials, self.forgets_at_once, self.strict = dials, forgets_at_once, strict
        self.slots: list[Known | None] = [None] * slots
        self.links: list[Link] = []
        self.actions: deque[tuple[Any, ...]] = deque()
        self.events: list[tuple[str, Known | None, Any]] = []
        self.messages: list[bytes] = []
        self.datagrams: list[tuple[bytes, Address, int]] = []
        self.packets: list[tuple[Packet, Address]] = []
        self.quiet: set[Link] = set()
        self.abandoned: list[bytes] = []
        self.dropped = 0
        self.sent_messages = self.received_frames = 0
        self._running = False
        self._last_announce = 0.0
        self._message_number = 0
        self._fresh: list[Known] = []

    # What a program of it calls -------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Start discovery: one ANNOUNCE at once."""
        self._running = True
        self._announce(now)

    def stop(self) -> None:
        """Stop discovery: one GOODBYE."""
        if self._running:
            self._running = False
            self._say(GOODBYE)

    def known(self, host: str, port: int) -> Known | None:
        """The peer with that key."""
        return next(
            (
                each
                for each in self.slots
                if each is not None and (each.host, each.port) == (host, port)
            ),
            None,
        )

    def connect(self, known: Known, now: float) -> Link:
        """Dial a discovered peer. Refused: INVALID_STATE, it is not just discovered."""
        if known.state != "discovered":
            raise Refused("PT_ERR_INVALID_STATE")
        known.state = "connecting"
        link = known.link = Link(
            known, dialled=True, stamp=now, reassembly=Reassembly(self.direct_buffer)
        )
        self.links.append(link)
        self.actions.append(("dial", link, (known.host, known.port)))
        return link

    def call(self, address: Address, now: float) -> Link:
        """Dial an address that was not discovered: what the original can do only after an ANNOUNCE
        from there."""
        known = self.known(*address) or self._admit(b"", *address, now)
        if known is None:
            raise Refused("PT_ERR_PEER_NOT_FOUND")
        return self.connect(known, now)

    def send(self, link: Link, message: bytes, priority: int = NORMAL, *, key: int = 0) -> None:
        """Send as the original does: queue, direct buffer or fragments. Refused: WOULD_BLOCK,
        BUFFER_FULL, MESSAGE_TOO_LARGE, INVALID_PARAM."""
        if not 1 <= len(message) <= FRAME_MAX or not LOW <= priority <= CRITICAL:
            raise Refused("PT_ERR_INVALID_PARAM")
        if not link.up or link.closed:
            raise Refused("PT_ERR_PEER_NOT_FOUND")
        pressure = 0 if link.theirs is None else link.theirs.buffer_pressure
        if priority < (0 if pressure < 50 else 1 if pressure < 75 else 2 if pressure < 90 else 3):
            raise Refused("PT_ERR_WOULD_BLOCK")
        largest = self.effective(link)
        if self.fragmentation and len(message) > largest:
            size = min(largest - 8, PIECE)
            number, self._message_number = self._message_number, (self._message_number + 1) & 0xFFFF
            for payload in fragments(message, number, size):
                if link.waiting >= QUEUE_SLOTS:
                    raise Refused("PT_ERR_BUFFER_FULL")
                link.queued[priority].append([payload, FRAGMENT, 0])
        elif len(message) > SLOT_SIZE:
            if len(message) > self.direct_buffer:
                raise Refused("PT_ERR_MESSAGE_TOO_LARGE")
            if link.direct is not None:
                raise Refused("PT_ERR_WOULD_BLOCK")
            link.direct = message
        else:
            if link.waiting >= (QUEUE_SLOTS if priority >= HIGH else 1):
                raise Refused("PT_ERR_BUFFER_FULL")
            if key:
                for entry in (entry for line in link.queued for entry in line):
                    if entry[2] == key:
                        entry[0] = message
                        return
            link.queued[priority].append([message, 0, key])

    def send_stream(self, link: Link, data: bytes) -> None:
        """Send a stream: plain DATA of the chunk size, one for each poll. Refused: as the original
        has it."""
        if not link.up or link.closed:
            raise Refused("PT_ERR_NOT_CONNECTED")
        if not data:
            raise Refused("PT_ERR_INVALID_PARAM")
        if len(data) > STREAM_MAX:
            raise Refused("PT_ERR_MESSAGE_TOO_LARGE")
        if link.streaming:
            raise Refused("PT_ERR_BUSY")
        link.stream, link.streaming, link.cancelled = data, True, False

    def cancel_stream(self, link: Link) -> None:
        """Give a stream up at the next poll."""
        if not link.streaming:
            raise Refused("PT_ERR_PEER_NOT_FOUND")
        link.cancelled = True

    def send_datagram(self, host: str, payload: bytes) -> None:
        """Send to a peer's address at our own port number, which all have to share."""
        if len(payload) > DATAGRAM_MAX:
            raise Refused("PT_ERR_MESSAGE_TOO_LARGE")
        self.actions.append(
            ("datagram", encode_datagram(payload, self.udp_port), (host, self.udp_port))
        )

    def disconnect(self, link: Link) -> None:
        """DISCONNECT, and close."""
        if link.closed:
            return
        if link.up:
            self.write(link, encode_frame(DISCONNECT, sequence=link.sequence))
        self._close(link)

    def report(self, link: Link, **changes: Any) -> None:
        """Send a whole CAPABILITY, with these of our values changed for this link."""
        said = Capabilities(**{**vars(self.offer), **changes})
        link.offers.append(min(max(said.max_message, 256), FRAME_MAX))
        self.write(link, encode_frame(CAPABILITY, encode_capabilities(said)))

    def frame(self, link: Link, payload: bytes = b"", flags: int = 0, kind: int = DATA) -> None:
        """Send a frame at once, past all queues; DATA takes the next sequence number."""
        sequence = link.sequence if kind == DATA else 0
        if kind == DATA:
            link.sequence = (link.sequence + 1) & 0xFF
            self.sent_messages += 1
        self.write(link, encode_frame(kind, payload, flags, sequence))

    def write(self, link: Link, data: bytes) -> None:
        """Send bytes as they are."""
        self.actions.append(("write", link, data))

    def effective(self, link: Link) -> int:
        """The longest message that may be sent whole: 512 before the other side's CAPABILITY."""
        return min(self.offer.max_message, (link.theirs or Capabilities()).max_message)

    # What a driver reports ------------------------------------------------------------------------

    def heard(self, data: bytes, source: Address, now: float) -> None:
        """A datagram on the discovery port."""
        if source[0] == self.host or not self._running or self.deaf:
            return
        try:
            packet = decode_discovery(data[:48])
        except Refused as refused:
            self.dropped += 1
            self._complain(f"a discovery packet that is refused ({refused.name}): {data.hex()}")
            return
        self.packets.append((packet, source))
        if packet.flags & ~0xFF1F:
            self._complain(f"a discovery packet with flags 0x{packet.flags:04x}")
        if packet.transports & ~7 or not packet.transports & 1:
            self._complain(f"a discovery packet with transports 0x{packet.transports:02x}")
        if packet.port == 0:
            self._complain("a discovery packet of a peer that does not listen")
        if packet.kind == QUERY:
            self._announce(now)
            return
        known = self.known(source[0], packet.port)
        if packet.kind == GOODBYE:
            if self.strict and any(
                self._is_from(link, packet, source)
                for link in self.links
                if link.up and link not in self.quiet
            ):
                self._complain(
                    "a GOODBYE while its connection is open: the original would never read "
                    "from that again (Q4)"
                )
            if known is not None:
                self._lose(known)
        elif known is not None:
            known.last_seen = now
        else:
            found = self._admit(packet.name.split(b"\0")[0], source[0], packet.port, now)
            if found is not None:
                self.events.append(("discovered", found, packet))
                if self.dials:
                    self.connect(found, now)
                elif self.forgets_at_once:
                    self._fresh.append(found)

    def _is_from(self, link: Link, packet: Packet, source: Address) -> bool:
        """Whether a connection is that of the sender of a packet: by its port where we dialled,
        else if nobody else was heard from there."""
        if link.known.host != source[0]:
            return False
        return (
            link.known.port == packet.port
            if link.dialled
            else {each.port for each, heard in self.packets if heard[0] == source[0]}
            == {packet.port}
        )

    def heard_datagram(self, data: bytes, source: Address) -> None:
        """A datagram on the message port. Delivered only if a peer with port 0 is known there
        (Q3)."""
        if len(data) > 1400:
            self._complain(f"a datagram of {len(data):,} bytes")
        try:
            port, payload = decode_datagram(data[:1400])
        except Refused as refused:
            self.dropped += 1
            self._complain(f"a datagram that is refused ({refused.name}): {data[:20].hex()}")
            return
        if len(payload) + 8 != len(data):
            self._complain(
                f"a datagram with {len(data) - 8 - len(payload)} bytes behind its payload"
            )
        if port != source[1]:
            self._complain(f"a datagram from port {source[1]} that says {port}")
        self.datagrams.append((payload, source, port))
        known = self.known(source[0], 0)
        if known is None:
            self.dropped += 1
        else:
            self.events.append(("message", known, payload))
            self.messages.append(payload)

    def accepted(self, source: Address, now: float) -> Link | None:
        """Somebody connected; None: there is no room, close it."""
        known = self._admit(b"", *source, now)
        if known is None:
            return None
        link = known.link = Link(known, dialled=False, reassembly=Reassembly(self.direct_buffer))
        self.links.append(link)
        self._up(link)
        return link

    def dialled(self, link: Link, ok: bool) -> None:
        """What became of a dial."""
        if link.closed:
            return
        if ok:
            self._up(link)
        else:
            link.closed = True
            self.links.remove(link)
            link.known.state, link.known.link = "failed", None

    def received(self, link: Link, data: bytes, now: float) -> None:
        """Bytes of a connection."""
        link.received += data
        while not link.closed:
            try:
                frame = self._next_frame(link)
            except Refused as refused:
                self._close(link)
                self._complain(
                    f"a frame that is refused ({refused.name}): {bytes(link.received[:20]).hex()}"
                )
                return
            if frame is None:
                return
            del link.received[: 12 + len(frame.payload)]
            first = not link.frames
            link.frames.append(frame)
            self.received_frames += 1
            if self.strict:
                self._judge(link, frame, first)
            self._take(link, frame, now)

    def ended(self, link: Link, *, torn: bool = False) -> None:
        """The other side closed its half; torn: the connection broke."""
        if not link.closed:
            if link.received and not torn:
                self._complain(
                    "a connection that ends inside a frame, after "
                    f"{bytes(link.received[:20]).hex()}"
                )
            self._close(link)

    def poll(self, now: float) -> None:
        """What is due: for each connection one large message, up to 16 small ones, one chunk;
        announce; forget."""
        for link in list(self.links):
            if link.up and not link.closed:
                self._send_due(link)
        if self._running and now - self._last_announce >= ANNOUNCE_EVERY:
            self._announce(now)
        for known in [
            each for each in self.slots if each is not None and each.state == "discovered"
        ]:
            if known in self._fresh or now - known.last_seen >= FORGET_AFTER:
                self._lose(known)
        self._fresh.clear()

    # Inside ---------------------------------------------------------------------------------------

    def _say(self, kind: int) -> None:
        if not self.mute:
            self.actions.append(
                ("broadcast", encode_discovery(Packet(kind, self.tcp_port, self.name)))
            )

    def _announce(self, now: float) -> None:
        self._say(ANNOUNCE)
        self._last_announce = now

    def _admit(self, name: bytes, host: str, port: int, now: float) -> Known | None:
        for index, taken in enumerate(self.slots):
            if taken is None:
                known = self.slots[index] = Known(index + 1, name, host, port, now)
                return known
        return None

    def _free(self, known: Known) -> None:
        if self.slots[known.number - 1] is known:
            self.slots[known.number - 1] = None

    def _lose(self, known: Known) -> None:
        self.events.append(("lost", known, None))
        self._free(known)

    def _up(self, link: Link) -> None:
        link.up = True
        link.known.state = "connected"
        self.events.append(("connected", link.known, link))
        if self.greets:
            body = encode_capabilities(self.offer) if self.body is None else self.body
            with contextlib.suppress(Refused):
                link.offers.append(decode_capabilities(body).max_message)
            self.write(link, encode_frame(CAPABILITY, body))

    def _close(self, link: Link) -> None:
        if not link.closed:
            link.closed = True
            self.links.remove(link)
            self.actions.append(("close", link))
            self.abandoned += [entry[0] for line in link.queued for entry in line]
            if link.direct is not None:
                self.abandoned.append(link.direct)
            if link.up:
                self.events.append(("disconnected", link.known, 0))
            self._free(link.known)

    def _next_frame(self, link: Link) -> Frame | None:
        if len(link.received) < 10:
            return None
        data = bytes(link.received[: 12 + FRAME_MAX])
        length = decode_header(data)[3]
        if length <= FRAME_MAX and len(data) < 12 + length:
            return None
        return decode_frame(data)

    def _take(self, link: Link, frame: Frame, now: float) -> None:
        if frame.kind == DATA and frame.flags & FRAGMENT:
            try:
                message = link.reassembly.add(frame.payload)
            except Refused as refused:
                link.ignored.append(refused.name)
                self._complain(f"a fragment that is refused ({refused.name})")
                return
            if message is not None:
                self._deliver(link, message)
        elif frame.kind == DATA:
            self._deliver(link, frame.payload)
        elif frame.kind == PING:
            if self.pongs:
                self.write(link, encode_frame(PONG))
        elif frame.kind == PONG:
            if link.stamp is not None:
                sample, link.stamp = now - link.stamp, None
                link.latency = sample if not link.latency else (3 * link.latency + sample) / 4
        elif frame.kind == DISCONNECT:
            self._close(link)
        elif frame.kind == CAPABILITY:
            try:
                link.theirs = decode_capabilities(frame.payload)
            except Refused as refused:
                link.ignored.append(refused.name)
                self._complain(f"a CAPABILITY that is refused ({refused.name})")

    def _deliver(self, link: Link, message: bytes) -> None:
        self.messages.append(message)
        self.events.append(("message", link.known, message))

    def _send_due(self, link: Link) -> None:
        message, link.direct = link.direct, None
        if message is not None and link.writable:  # not writable: accepted, and lost (Q6)
            self.frame(link, message)
        for _ in range(QUEUE_SLOTS):
            line = next((line for line in reversed(link.queued) if line), None)
            if line is None or not link.writable:
                break
            payload, flags, _key = line.popleft()
            self.frame(link, payload, flags)
        if link.streaming and link.cancelled:
            self._stream_over(link, "cancelled")
        elif link.streaming and link.writable:
            chunk = (
                1024
                if not link.latency
                else 4096
                if link.latency < 0.05
                else 2048
                if link.latency < 0.1
                else 1024
                if link.latency < 0.2
                else 512
            )
            part, link.stream = link.stream[:chunk], link.stream[chunk:]
            self.frame(link, part)
            if not link.stream:
                self._stream_over(link, "done")
        level = min(75, link.waiting * 100 // QUEUE_SLOTS // 25 * 25)
        if level != link.level:
            link.level = level
            self.report(link, buffer_pressure=link.waiting * 100 // QUEUE_SLOTS)

    def _stream_over(self, link: Link, result: str) -> None:
        link.stream, link.streaming = b"", False
        self.events.append(("stream", link.known, result))

    # What is too much -----------------------------------------------------------------------------

    def _complain(self, what: str) -> None:
        if self.strict:
            raise Misbehaved(f"the original does not send this: {what}")

    def _judge(self, link: Link, frame: Frame, first: bool) -> None:
        """Whether a reference sender could have sent this frame."""
        kind, flags, payload = frame.kind, frame.flags, frame.payload
        if first and kind != CAPABILITY:
            self._complain(f"a frame of type {kind} before CAPABILITY")
        if flags != 0 and (kind, flags) != (DATA, FRAGMENT):
            self._complain(f"flags 0x{flags:02x} on a frame of type {kind}")
        if kind not in (DATA, DISCONNECT) and frame.sequence:
            self._complain(f"sequence {frame.sequence} on a frame of type {kind}")
        if kind in (PING, PONG, DISCONNECT) and payload:
            self._complain(f"{len(payload)} bytes in a frame of type {kind}")
        if kind == ACK:
            self._complain("an ACK, which no original sends")
        if kind == REJECT and (len(payload) > 1 or payload > b"\x04"):
            self._complain(f"a REJECT that says {payload.hex()}")
        if kind == CAPABILITY:
            self._judge_capabilities(payload)
        if kind in (DATA, DISCONNECT):
            if frame.sequence != link.expected:
                self._complain(f"sequence {frame.sequence} where {link.expected} was next")
            link.expected = (frame.sequence + 1) & 0xFF
        if kind == DISCONNECT and (link.piece is not None or link.received):
            self._complain("a DISCONNECT in the middle of something")
        if kind == DATA:
            allowed = max(link.offers, default=512)
            if link.theirs is not None:
                allowed = min(allowed, link.theirs.max_message)
            if len(payload) > allowed:
                self._complain(
                    f"a frame of {len(payload):,} bytes where at most {allowed:,} were agreed"
                )
            if flags & FRAGMENT:
                self._judge_fragment(link, payload)

    def _judge_capabilities(self, body: bytes) -> None:
        try:
            entries = decode_entries(body)
        except Refused as refused:
            self._complain(f"a CAPABILITY that is refused ({refused.name}): {body.hex()}")
            return
        if [(kind, len(value)) for kind, value in entries[:4]] != [
            (1, 2),
            (2, 2),
            (3, 1),
            (4, 2),
        ] or any(kind <= 4 for kind, _ in entries[4:]):
            self._complain(
                "a CAPABILITY that does not begin with the four known entries, each once: "
                f"{body.hex()}"
            )
        if body[len(encode_entries(*entries)) :]:
            self._complain(f"a CAPABILITY with a byte behind its last entry: {body.hex()}")
        largest, _chunk, pressure, flags = (
            int.from_bytes(value, "big") for _, value in entries[:4]
        )
        if not 256 <= largest <= FRAME_MAX or pressure > 100 or flags & ~7:
            self._complain(
                f"a CAPABILITY of {largest} bytes, pressure {pressure}, flags 0x{flags:04x}"
            )

    def _judge_fragment(self, link: Link, payload: bytes) -> None:
        try:
            piece, data = decode_piece(payload)
        except Refused as refused:
            self._complain(f"a fragment that is refused ({refused.name})")
            return
        if piece.flags & ~(FIRST | LAST) or payload[7]:
            self._complain(
                f"a fragment with flags 0x{piece.flags:02x} and {payload[7]} in the reserved byte"
            )
        if not data:
            self._complain("a fragment without data")
        if piece.total > self.direct_buffer:
            self._complain(
                f"fragments of {piece.total:,} bytes, and there is room for {self.direct_buffer:,}"
            )
        if piece.total <= min(512, *link.offers, 512):
            self._complain(f"fragments of {piece.total:,} bytes, which fit into one frame")
        before = link.piece
        if piece.flags & FIRST and before is not None:
            self._complain("the first fragment of a message within another message")
        if before is not None and (before.message, before.total) != (piece.message, piece.total):
            self._complain(
                f"a fragment of message {piece.message} of {piece.total:,} bytes within "
                f"message {before.message} of {before.total:,}"
            )
        link.piece = None if piece.flags & LAST else piece


# --- on a network ---------------------------------------------------------------------------------


class Driver:
    """What both kinds of sockets share: carries out actions, and remembers what failed."""

    GUARD = 20.0

    def __init__(self, peer: ClassicPeer) -> None:
        self.peer = peer
        self.failure: BaseException | None = None
        self.quiet = peer.quiet
        self._changed = asyncio.Event()

    def now(self) -> float:
        """The clock, seconds."""
        raise NotImplementedError

    def turn(self) -> None:
        """One poll that does not wait. As in the original, discovery comes first: a GOODBYE is
        judged by what was read of the connection before."""
        raise NotImplementedError

    def perform(self) -> None:
        """Carry out what the peer wants done."""
        while self.peer.actions:
            action, *details = self.peer.actions.popleft()
            getattr(self, f"_{action}")(*details)

    async def rest(self) -> None:
        """Until there may be something to do."""
        raise NotImplementedError

    async def serve(self) -> None:
        """Poll until cancelled or until something fails."""
        try:
            while True:
                self.turn()
                self._changed.set()
                await self.rest()
        except Exception as error:
            self.failure = error
            self._changed.set()

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until the condition holds, which is asked after each poll; what it gave. Raises what
        the peer has complained about."""
        async with asyncio.timeout(self.GUARD):
            while True:
                if self.failure is not None:
                    raise self.failure
                if found := condition():
                    return found
                self._changed.clear()
                await self._changed.wait()

    async def message(self) -> bytes:
        """The next message, taken out of the peer's list."""
        await self.until(lambda: self.peer.messages)
        return self.peer.messages.pop(0)

    def up(self) -> list[Link]:
        """The connections that are up."""
        return [link for link in self.peer.links if link.up]

    async def link(self) -> Link:
        """The latest connection, as soon as one is up and the other side has greeted."""
        found: Link = await self.until(
            lambda: next(
                (link for link in reversed(self.peer.links) if link.theirs is not None), None
            )
        )
        return found


@contextlib.asynccontextmanager
async def serving(*drivers: Driver) -> AsyncIterator[None]:
    """Poll these while the block runs; raises what one of them has complained about."""
    tasks = [asyncio.ensure_future(driver.serve()) for driver in drivers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for driver in drivers:
        if driver.failure is not None:
            raise driver.failure


class Sockets(Driver):
    """A classic peer on real sockets.

    Args:
        peer: tcp_port 0 becomes a free one.
        broadcast: where packets go. 127.255.255.255: on loopback only, where several peers share a
            host by addresses of their own.
        dribble: write at most so many bytes at a time; 0: all that there are.
        discovery: False: no discovery socket.
        window: bytes that the system may hold for it when it does not read; 0: as the system likes.
    """

    def __init__(
        self,
        peer: ClassicPeer,
        *,
        broadcast: str = "127.255.255.255",
        dribble: int = 0,
        discovery: bool = True,
        window: int = 0,
    ) -> None:
        super().__init__(peer)
        self.broadcast_address, self.dribble = broadcast, dribble
        self._selector = selectors.DefaultSelector()
        self._sockets: dict[Link, socket.socket] = {}
        self._unsent: dict[Link, bytearray] = {}
        on_loopback = broadcast.startswith("127.")
        own = peer.host if on_loopback else ""
        self._listener = self._open(socket.SOCK_STREAM, own, peer.tcp_port)
        if window:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self._listener.listen(8)
        peer.tcp_port = self._listener.getsockname()[1]
        self._udp = self._open(socket.SOCK_DGRAM, own, peer.udp_port)
        peer.udp_port = self._udp.getsockname()[1]
        self._discovery = self._hearing = None
        if discovery:
            self._discovery = self._hearing = self._open(
                socket.SOCK_DGRAM, own, peer.discovery_port
            )
            if on_loopback:
                self._hearing = self._open(socket.SOCK_DGRAM, broadcast, peer.discovery_port)
        for each in filter(None, {self._listener, self._udp, self._hearing}):
            self._selector.register(each, selectors.EVENT_READ)
        if discovery:
            peer.start(self.now())
        self.perform()

    @staticmethod
    def _open(kind: int, host: str, port: int) -> socket.socket:
        opened = socket.socket(socket.AF_INET, kind)
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if kind == socket.SOCK_DGRAM:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        opened.bind((host, port))
        return opened

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self.peer.host, self.peer.tcp_port

    def now(self) -> float:
        """As Driver.now()."""
        return time.monotonic()

    async def rest(self) -> None:
        """As Driver.rest(): at most 10 ms."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._selector.fileno(), ready.set)  # type: ignore[attr-defined]
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await ready.wait()
        finally:
            loop.remove_reader(self._selector.fileno())  # type: ignore[attr-defined]

    def turn(self, timeout: float = 0.0) -> None:
        """As Driver.turn()."""
        self._watch()
        ready = {key.fileobj: mask for key, mask in self._selector.select(timeout)}
        for heard, take in ((self._hearing, self._heard), (self._udp, self._heard_datagram)):
            if heard in ready:
                for data, source in _datagrams(heard):
                    take(data, source)
        if self._listener in ready:
            self._accept()
        for link, connection in list(self._sockets.items()):
            mask = ready.get(connection, 0)
            if not link.up and mask:
                self.peer.dialled(
                    link, connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                )
                if link.closed:
                    self._forget(link)
            elif mask & selectors.EVENT_READ or (link.up and link not in self.quiet):
                self._read(link, connection)
        self.peer.poll(self.now())
        self.perform()
        for link in list(self._unsent):
            self._flush(link)

    def run(self, over: Callable[[], bool]) -> None:
        """Poll until it is over; for a thread or a program of its own."""
        while not over():
            self.turn(0.01)

    def leave(self) -> None:
        """As a polite program: DISCONNECT and close each connection, then GOODBYE."""
        for link in list(self.peer.links):
            self.peer.disconnect(link)
        self.peer.stop()
        self.perform()

    def close(self) -> None:
        """Close every socket, without a word."""
        for link in list(self._sockets):
            self._forget(link)
        for each in {self._listener, self._udp, self._discovery, self._hearing} - {None}:
            each.close()
        self._selector.close()

    def __enter__(self) -> Sockets:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def socket_of(self, link: Link) -> socket.socket:
        """The socket of a connection, for a test that wants to do with it what no program
        should."""
        return self._sockets[link]

    def _watch(self) -> None:
        for link, connection in self._sockets.items():
            wanted = 0 if link in self.quiet else selectors.EVENT_READ
            if not link.up or self._unsent.get(link):
                wanted |= selectors.EVENT_WRITE
            known = self._selector.get_map().get(connection)
            if known is not None and known.events != wanted:
                self._selector.unregister(connection)
                known = None
            if known is None and wanted:
                self._selector.register(connection, wanted)

    def _accept(self) -> None:
        while True:
            try:
                connection, source = self._listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            link = self.peer.accepted(source, self.now())
            if link is None:
                connection.close()
            else:
                self._sockets[link] = connection
                self.perform()

    def _read(self, link: Link, connection: socket.socket) -> None:
        while not link.closed:
            torn = False
            try:
                data = connection.recv(65_536)
            except BlockingIOError:
                return
            except OSError:
                data, torn = b"", True
            if data:
                self.peer.received(link, data, self.now())
            else:
                self.peer.ended(link, torn=torn)
            self.perform()

    def _heard(self, data: bytes, source: Address) -> None:
        self.peer.heard(data, source, self.now())

    def _heard_datagram(self, data: bytes, source: Address) -> None:
        self.peer.heard_datagram(data, source)

    def _broadcast(self, data: bytes) -> None:
        if self._discovery is not None:
            with contextlib.suppress(OSError):
                self._discovery.sendto(data, (self.broadcast_address, self.peer.discovery_port))

    def _datagram(self, data: bytes, address: Address) -> None:
        with contextlib.suppress(OSError):
            self._udp.sendto(data, address)

    def _dial(self, link: Link, address: Address) -> None:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.setblocking(False)
        if self.broadcast_address.startswith("127."):
            connection.bind((self.peer.host, 0))
        connection.connect_ex(address)
        self._sockets[link] = connection

    def _write(self, link: Link, data: bytes) -> None:
        if link in self._sockets:
            self._unsent.setdefault(link, bytearray()).extend(data)
            self._flush(link)

    def _flush(self, link: Link) -> None:
        unsent, connection = self._unsent.get(link), self._sockets.get(link)
        if unsent and connection is not None and link.up:
            try:
                sent = connection.send(bytes(unsent[: self.dribble or len(unsent)]))
            except BlockingIOError:
                sent = 0
            except OSError:
                sent = len(unsent)  # it will be read as an end
            del unsent[:sent]
        link.writable = not unsent

    def _close(self, link: Link) -> None:
        while self.dribble and self._unsent.get(link) and link.writable is False:
            before = len(self._unsent[link])
            self._flush(link)
            if len(self._unsent.get(link, b"")) == before:
                break
        self._forget(link)

    def _forget(self, link: Link) -> None:
        connection = self._sockets.pop(link, None)
        self._unsent.pop(link, None)
        if connection is not None:
            if connection in self._selector.get_map():
                self._selector.unregister(connection)
            connection.close()


def _datagrams(heard: socket.socket) -> Iterator[tuple[bytes, Address]]:
    while True:
        try:
            yield heard.recvfrom(4096)
        except OSError:
            return


class SimulatedSockets(Driver):
    """A classic peer on a host of a simulated network, polled every 10 ms of its time.

    Args:
        peer: host and ports; host is set to the address that the machine has there.
        host: a machine of the network: listen, dial and datagram give sockets with accept, recv,
            send, sendto and recvfrom.
        clock: the network's, in seconds.
    """

    GUARD = 600.0

    def __init__(
        self, peer: ClassicPeer, host: Any, clock: Callable[[], float], *, discovery: bool = True
    ) -> None:
        super().__init__(peer)
        self._host, self._clock = host, clock
        peer.host = host.address
        self._listener = host.listen(peer.tcp_port)
        peer.tcp_port = self._listener.getsockname()[1]
        self._udp = host.datagram(peer.udp_port)
        self._discovery = host.datagram(peer.discovery_port) if discovery else None
        self._broadcast_address = next(
            broadcast for _, _, address, broadcast in host.interfaces() if address == host.address
        )
        self._sockets: dict[Link, Any] = {}
        self._unsent: dict[Link, bytearray] = {}
        if discovery:
            peer.start(self.now())
        self.perform()

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self.peer.host, self.peer.tcp_port

    def now(self) -> float:
        """As Driver.now()."""
        return self._clock()

    async def rest(self) -> None:
        """As Driver.rest()."""
        await asyncio.sleep(0.01)

    def turn(self) -> None:
        """As Driver.turn()."""
        while self._discovery is not None and (heard := self._discovery.recvfrom()) is not None:
            self.peer.heard(*heard, self.now())
        while (heard := self._udp.recvfrom()) is not None:
            self.peer.heard_datagram(*heard)
        while (connection := self._listener.accept()) is not None:
            link = self.peer.accepted(connection.getpeername(), self.now())
            if link is None:
                connection.close()
            else:
                self._sockets[link] = connection
                self.perform()
        for link, connection in list(self._sockets.items()):
            if not link.up and (code := connection.outcome()) != CONNECTING:
                self.peer.dialled(link, code == 0)
                if link.closed:
                    self._close(link)
            if link.up and link not in self.quiet:
                self._read(link, connection)
        self.peer.poll(self.now())
        self.perform()
        for link in list(self._unsent):
            self._flush(link)

    def leave(self) -> None:
        """As a polite program: DISCONNECT and close each connection, then GOODBYE."""
        for link in list(self.peer.links):
            self.peer.disconnect(link)
        self.peer.stop()
        self.perform()

    def vanish(self) -> None:
        """Killed: the system closes its sockets, and no word is said."""
        for link in list(self._sockets):
            link.closed = True
            self._close(link)
        for each in (self._listener, self._udp, self._discovery):
            if each is not None:
                each.close()

    def _read(self, link: Link, connection: Any) -> None:
        while not link.closed:
            torn = False
            try:
                data = connection.recv()
            except OSError:  # broken, or given up
                data, torn = b"", True
            if data is None:
                return
            if data:
                self.peer.received(link, data, self.now())
            else:
                self.peer.ended(link, torn=torn)
            self.perform()

    def _broadcast(self, data: bytes) -> None:
        if self._discovery is not None:
            self._discovery.sendto(data, (self._broadcast_address, self.peer.discovery_port))

    def _datagram(self, data: bytes, address: Address) -> None:
        self._udp.sendto(data, address)

    def _dial(self, link: Link, address: Address) -> None:
        self._sockets[link] = self._host.dial(*address)

    def _write(self, link: Link, data: bytes) -> None:
        if link in self._sockets:
            self._unsent.setdefault(link, bytearray()).extend(data)
            self._flush(link)

    def _flush(self, link: Link) -> None:
        unsent, connection = self._unsent.get(link), self._sockets.get(link)
        if unsent and connection is not None and link.up:
            with contextlib.suppress(OSError):
                del unsent[: connection.send(bytes(unsent))]
        link.writable = not unsent

    def _close(self, link: Link) -> None:
        self._unsent.pop(link, None)
        connection = self._sockets.pop(link, None)
        if connection is not None:
            connection.close()


# --- as a program ---------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Be a classic peer until the input ends, and tell what happens, one line of JSON for each
    event and each packet that was heard."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--name", default="classic")
    parser.add_argument(
        "--host", required=True, help="its own address: packets from there are its own"
    )
    parser.add_argument("--broadcast", default="255.255.255.255")
    parser.add_argument("--discovery-port", type=int, default=DISCOVERY_PORT)
    parser.add_argument("--tcp-port", type=int, default=TCP_PORT)
    parser.add_argument("--udp-port", type=int, default=UDP_PORT)
    parser.add_argument("--dial", action="store_true", help="dial who is discovered")
    parser.add_argument("--say", help="say this on each connection")
    options = parser.parse_args(arguments)
    peer = ClassicPeer(
        options.name,
        host=options.host,
        tcp_port=options.tcp_port,
        discovery_port=options.discovery_port,
        udp_port=options.udp_port,
        dials=options.dial,
    )
    told = heard = 0
    with Sockets(peer, broadcast=options.broadcast) as sockets:
        print(json.dumps(["ready", options.host, peer.tcp_port]), flush=True)
        over = threading.Event()
        threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
        while not over.is_set():
            sockets.turn(0.01)
            for kind, known, detail in peer.events[told:]:
                text = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else None
                print(
                    json.dumps(
                        [
                            kind,
                            known.host if known else "",
                            text or (known.name.decode("utf-8", "replace") if known else ""),
                        ]
                    ),
                    flush=True,
                )
                if kind == "connected" and options.say:
                    # of two that crossed one may be over by now: it is said on the other
                    with contextlib.suppress(Refused):
                        peer.send(detail, options.say.encode(), CRITICAL)
            told = len(peer.events)
            for packet, source in peer.packets[heard:]:
                print(
                    json.dumps(
                        [
                            ("announce", "query", "goodbye")[packet.kind - 1],
                            source[0],
                            packet.name.decode("utf-8", "replace"),
                        ]
                    ),
                    flush=True,
                )
            heard = len(peer.packets)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main(sys.argv[1:])
