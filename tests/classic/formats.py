"""What stands on the wire, as the description of the original says."""

from __future__ import annotations

import binascii
import struct
from dataclasses import dataclass

DISCOVERY_PORT, TCP_PORT, UDP_PORT = 7353, 7354, 7355
DATA, PING, PONG, DISCONNECT, ACK, REJECT, CAPABILITY = range(1, 8)
ANNOUNCE, QUERY, GOODBYE = 1, 2, 3
UNRELIABLE, COALESCABLE, NO_DELAY, BATCH, FRAGMENT = 0x01, 0x02, 0x04, 0x08, 0x10
FIRST, LAST = 0x01, 0x02
LOW, NORMAL, HIGH, CRITICAL = range(4)
FRAME_MAX, BATCH_MAX, DATAGRAM_MAX, NAME_MAX, STREAM_MAX = 8192, 1400, 1392, 31, 65536
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


def crc16(data: bytes, start: int = 0) -> int:
    """CRC-16 with the reflected polynomial 0x8408 from 0, bit by bit."""
    value = start
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x8408 if value & 1 else 0)
    return value


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _checksum(data: bytes) -> bytes:
    """The same, by Python's own CRC, which takes the bits of each byte the other way round."""
    value = binascii.crc_hqx(data.translate(_REVERSED), 0)
    return value.to_bytes(2, "little").translate(_REVERSED)


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
