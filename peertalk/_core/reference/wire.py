"""Every encoding of the original protocol in plain Python: values in, bytes out, and back.

The yardstick of the C core: same results, same first error in the same order. Numbers are
big-endian. Encoders raise what a wrong call raises (InvalidArgument, MessageTooLarge);
decoders raise a ProtocolError with its code. Bytes behind the thing that is decoded are left alone.

Source: docs/protocol.md.
"""

from __future__ import annotations

import struct
from typing import NoReturn, TypeAlias

from peertalk import _numbers, errors
from peertalk._core.reference.crc import crc16
from peertalk._core.values import (
    Capability,
    CompactHeader,
    Datagram,
    Discovery,
    FragmentHeader,
    Frame,
    Header,
)
from peertalk._numbers import (
    DATAGRAM_MAX_PAYLOAD,
    DISCOVERY_ANNOUNCE,
    DISCOVERY_GOODBYE,
    ERR_MESSAGE_TOO_LARGE,
    FRAME_CAPABILITY,
    FRAME_DATA,
    FRAME_MAX_PAYLOAD,
    FRAME_OVERHEAD,
    HEADER_SIZE,
    MESSAGE_LIMIT_MAX,
    MESSAGE_LIMIT_MIN,
    NAME_MAX,
    PROTOCOL_VERSION,
    TRAILER_SIZE,
)

Data: TypeAlias = bytes | bytearray | memoryview

CAPABILITY_LIMIT = 65535

_FRAME = struct.Struct(">4sBBBBH")  # magic, version, type, flags, sequence, payload length
_COMPACT = struct.Struct(">BBH")  # 'P', type << 4 | flags, payload length
# magic, version, type, flags, port, transports, name length
_DISCOVERY = struct.Struct(">4sBBHHBB")
_CAPABILITY = struct.Struct(">BBHBBHBBBBBH")  # type, length, value; four times
_DATAGRAM = struct.Struct(">4sHH")  # magic, port, payload length
_FRAGMENT = struct.Struct(">HHHBx")  # message id, total length, offset, flags, reserved
_CRC = struct.Struct(">H")

_FRAME_TYPES = range(FRAME_DATA, FRAME_CAPABILITY + 1)
_DISCOVERY_TYPES = range(DISCOVERY_ANNOUNCE, DISCOVERY_GOODBYE + 1)

_TEXTS = {
    "OK": "success",
    "ERR_INVALID_PARAM": "an argument, type or length field is out of range",
    "ERR_NO_MEMORY": "no memory to lend",
    "ERR_NOT_INITIALIZED": "used before it was made ready",
    "ERR_ALREADY_INITIALIZED": "already made ready",
    "ERR_NETWORK": "a network call failed",
    "ERR_TIMEOUT": "not done in the time allowed",
    "ERR_CONNECTION_REFUSED": "nobody listens at that address",
    "ERR_CONNECTION_CLOSED": "the connection was closed or broke",
    "ERR_BUFFER_FULL": "the buffer or queue has no room for this",
    "ERR_INVALID_STATE": "not allowed in this state",
    "ERR_PEER_NOT_FOUND": "no such peer",
    "ERR_DISCOVERY_ACTIVE": "discovery already runs",
    "ERR_NO_NETWORK": "no network interface can be used",
    "ERR_PLATFORM": "the system refused unexpectedly",
    "ERR_QUEUE_EMPTY": "nothing there now",
    "ERR_MESSAGE_TOO_LARGE": "longer than the limit that holds here",
    "ERR_NOT_SUPPORTED": "this platform or peer cannot do that",
    "ERR_NOT_CONNECTED": "no open link to the peer",
    "ERR_WOULD_BLOCK": "not now: retry when something has completed",
    "ERR_CRC": "the checksum does not match",
    "ERR_MAGIC": "not the first bytes of this format",
    "ERR_TRUNCATED": "shorter than its own length says",
    "ERR_VERSION": "a protocol version that is not spoken here",
    "ERR_NOT_POWER2": "a capacity that must be a power of two is not",
    "ERR_BACKPRESSURE": "no buffer now: what was read stays where it is",
    "ERR_RESOURCE": "no free stream",
    "ERR_BUSY": "already at it",
    "ERR_CANCELLED": "cancelled",
    "ERR_INTERNAL": "internal error",
}
_ERRORS = {getattr(_numbers, name): (f"PT_{name}", text) for name, text in _TEXTS.items()}


def error_name(code: int) -> str:
    """The name of a result code in the C headers, "PT_ERR_UNKNOWN" for a number that is none."""
    return _ERRORS.get(code, ("PT_ERR_UNKNOWN", ""))[0]


def strerror(code: int) -> str:
    """A short English text for a result code."""
    return _ERRORS.get(code, ("", "unknown error"))[1]


def _bytes(data: Data) -> bytes:
    """The bytes of any contiguous buffer; TypeError for anything else."""
    return data if type(data) is bytes else memoryview(data).tobytes()


def _refuse(what: str, **fields: tuple[int, int]) -> NoReturn:
    """Raise for the first field that is not a number from 0 to its limit. fields: name=(value,
    limit)."""
    for name, (value, limit) in fields.items():
        if not isinstance(value, int):
            raise errors.WrongType(
                f"{name} of a {what} is a {type(value).__name__}: give a number from 0 to {limit:,}"
            )
        if not 0 <= value <= limit:
            raise errors.InvalidArgument(
                f"{name} of a {what} is {value:,}: it must be 0 to {limit:,}"
            )
    raise AssertionError("a field was refused, yet all of them fit")


def _check_type(what: str, value: int, allowed: range) -> None:
    if value not in allowed:
        raise errors.InvalidArgument(
            f"type of a {what} is {value!r}: it must be {allowed.start} to {allowed.stop - 1}"
        )


def _short(what: str, have: int, need: int) -> errors.Truncated:
    return errors.Truncated(f"{what} of {have:,} bytes: {need:,} are needed")


def _other_version(what: str, version: int) -> errors.BadVersion:
    return errors.BadVersion(
        f"{what} of protocol version {version}: only {PROTOCOL_VERSION} is spoken here"
    )


def bad_crc(
    what: str, found: int, computed: int, covered_len: int, digits: int = 4
) -> errors.BadCrc:
    """The error of bytes beside which another CRC was found than the one computed over them."""
    return errors.BadCrc(
        f"{what}: CRC is 0x{found:0{digits}x}, computed 0x{computed:0{digits}x} over "
        f"{covered_len:,} bytes"
    )


# Full frames.


def encode_header(type: int, flags: int, sequence: int, payload_len: int) -> bytes:
    """A full frame header, 10 bytes. InvalidArgument: type is not 1 to 7, or a field does not fit
    its 8 or (payload_len) 16 bits."""
    _check_type("frame", type, _FRAME_TYPES)
    try:
        return _FRAME.pack(b"PTMG", PROTOCOL_VERSION, type, flags, sequence, payload_len)
    except struct.error:
        _refuse(
            "frame", flags=(flags, 255), sequence=(sequence, 255), payload_len=(payload_len, 65535)
        )


def decode_header(data: Data) -> Header:
    """Read a full header; what lies behind it is not looked at, and the payload length is not
    judged.

    Raises:
        ProtocolError: Truncated (under 10 bytes), BadMagic, BadVersion,
            ERR_INVALID_PARAM (type), the first that applies.
    """
    data = _bytes(data)
    if len(data) < HEADER_SIZE:
        raise _short("frame header", len(data), HEADER_SIZE)
    magic, version, type, flags, sequence, payload_len = _FRAME.unpack_from(data)
    if magic != b"PTMG":
        raise errors.BadMagic(
            f"frame begins with {magic.hex()}: a full header begins with 50544d47 (PTMG)"
        )
    if version != PROTOCOL_VERSION:
        raise _other_version("frame", version)
    if type not in _FRAME_TYPES:
        raise errors.ProtocolError(f"frame of type {type}: types are 1 to 7")
    return Header(type, flags, sequence, payload_len)


def encode_frame(type: int, payload: Data, flags: int = 0, sequence: int = 0) -> bytes:
    """A whole frame: header, payload, CRC over both.

    Raises:
        InvalidArgument: type is not 1 to 7, flags or sequence not 0 to 255.
        MessageTooLarge: payload has more than 8,192 bytes.
    """
    payload = _bytes(payload)
    if len(payload) > FRAME_MAX_PAYLOAD:
        encode_header(type, flags, sequence, 0)  # a wrong field comes first
        raise errors.MessageTooLarge(
            f"payload of {len(payload):,} bytes: the limit is {FRAME_MAX_PAYLOAD:,} "
            "(FRAME_MAX_PAYLOAD)"
        )
    covered = encode_header(type, flags, sequence, len(payload)) + payload
    return covered + _CRC.pack(crc16(covered))


def decode_frame(data: Data) -> Frame:
    """Read a whole frame; bytes behind it are left alone.

    Raises:
        ProtocolError: as decode_header; then ERR_MESSAGE_TOO_LARGE (payload above 8,192),
            Truncated, BadCrc, the first that applies.
    """
    data = _bytes(data)
    type, flags, sequence, payload_len = decode_header(data)
    if payload_len > FRAME_MAX_PAYLOAD:
        raise errors.ProtocolError(
            f"frame announces {payload_len:,} payload bytes: the limit is "
            f"{FRAME_MAX_PAYLOAD:,} (FRAME_MAX_PAYLOAD)",
            code=ERR_MESSAGE_TOO_LARGE,
        )
    if len(data) < FRAME_OVERHEAD + payload_len:
        raise _short("frame", len(data), FRAME_OVERHEAD + payload_len)
    covered = data[: HEADER_SIZE + payload_len]
    found, computed = _CRC.unpack_from(data, len(covered))[0], crc16(covered)
    if found != computed:
        raise bad_crc(f"frame of type {type}", found, computed, len(covered))
    return Frame(type, flags, sequence, covered[HEADER_SIZE:])


# Compact headers.


def encode_compact(type: int, flags: int, payload_len: int) -> bytes:
    """A compact header, 4 bytes. Only the low four bits of flags fit; the rest is lost, as in the
    original. InvalidArgument as encode_header."""
    _check_type("frame", type, _FRAME_TYPES)
    if not (isinstance(flags, int) and 0 <= flags <= 255):
        _refuse("frame", flags=(flags, 255))
    try:
        return _COMPACT.pack(0x50, type << 4 | flags & 0x0F, payload_len)
    except struct.error:
        _refuse("frame", payload_len=(payload_len, 65535))


def decode_compact(data: Data) -> CompactHeader:
    """Read a compact header. Truncated (under 4 bytes), BadMagic or ERR_INVALID_PARAM (type),
    the first that applies."""
    data = _bytes(data)
    if len(data) < _COMPACT.size:
        raise _short("compact header", len(data), _COMPACT.size)
    magic, both, payload_len = _COMPACT.unpack_from(data)
    if magic != 0x50:
        raise errors.BadMagic(f"compact header begins with {magic:02x}: it should be 50 (P)")
    if both >> 4 not in _FRAME_TYPES:
        raise errors.ProtocolError(f"compact header of type {both >> 4}: types are 1 to 7")
    return CompactHeader(both >> 4, both & 0x0F, payload_len)


def is_compact(data: Data) -> bool:
    """Whether the bytes begin like a compact header: 'P', then anything but 'T'. False while there
    are fewer than two."""
    data = _bytes(data)
    return len(data) >= 2 and data[0] == 0x50 and data[1] != 0x54


# Discovery packets.


def encode_discovery(
    type: int, port: int, name: Data, flags: int = 0, transports: int = 3
) -> bytes:
    """A discovery packet, 14 to 45 bytes.

    Args:
        type: 1 announce, 2 query, 3 goodbye.
        port: the sender's TCP listening port.
        name: 0 to 31 bytes.
        flags: 16 bits.
        transports: bit 0 TCP, bit 1 UDP, bit 2 AppleTalk.

    Raises:
        InvalidArgument: one of them is out of its bounds.
    """
    name = _bytes(name)
    _check_type("discovery packet", type, _DISCOVERY_TYPES)
    if len(name) > NAME_MAX:
        raise errors.InvalidArgument(
            f"peer name of {len(name):,} bytes: the limit is {NAME_MAX} (NAME_MAX); shorten it"
        )
    try:
        covered = (
            _DISCOVERY.pack(b"PTLK", PROTOCOL_VERSION, type, flags, port, transports, len(name))
            + name
        )
    except struct.error:
        _refuse(
            "discovery packet",
            flags=(flags, 65535),
            port=(port, 65535),
            transports=(transports, 255),
        )
    return covered + _CRC.pack(crc16(covered))


def decode_discovery(data: Data) -> Discovery:
    """Read a discovery packet; what lies behind its CRC is not looked at.

    Raises:
        ProtocolError: Truncated (under 14 bytes), BadMagic, BadVersion,
            ERR_INVALID_PARAM (type, name length), Truncated, BadCrc, the first that applies.
    """
    data = _bytes(data)
    minimum = _DISCOVERY.size + TRAILER_SIZE
    if len(data) < minimum:
        raise _short("discovery packet", len(data), minimum)
    magic, version, type, flags, port, transports, name_len = _DISCOVERY.unpack_from(data)
    if magic != b"PTLK":
        raise errors.BadMagic(
            f"discovery packet begins with {magic.hex()}: it should be 50544c4b (PTLK)"
        )
    if version != PROTOCOL_VERSION:
        raise _other_version("discovery packet", version)
    if type not in _DISCOVERY_TYPES:
        raise errors.ProtocolError(f"discovery packet of type {type}: types are 1 to 3")
    if name_len > NAME_MAX:
        raise errors.ProtocolError(
            f"discovery packet announces a name of {name_len} bytes: the limit is {NAME_MAX} "
            "(NAME_MAX)"
        )
    if len(data) < minimum + name_len:
        raise _short("discovery packet", len(data), minimum + name_len)
    end = _DISCOVERY.size + name_len
    found, computed = _CRC.unpack_from(data, end)[0], crc16(data[:end])
    if found != computed:
        raise bad_crc("discovery packet", found, computed, end)
    return Discovery(type, flags, port, transports, data[_DISCOVERY.size : end], end + TRAILER_SIZE)


# Capabilities.


def encode_capability(max_message: int, preferred_chunk: int, pressure: int, flags: int) -> bytes:
    """The four TLVs of the original, 15 bytes; values go out as they are. InvalidArgument: one does
    not fit its 16 or (pressure) 8 bits."""
    try:
        return _CAPABILITY.pack(
            1, 2, max_message, 2, 2, preferred_chunk, 3, 1, pressure, 4, 2, flags
        )
    except struct.error:
        _refuse(
            "capability",
            max_message=(max_message, 65535),
            preferred_chunk=(preferred_chunk, 65535),
            pressure=(pressure, 255),
            flags=(flags, 65535),
        )


def decode_capability(data: Data) -> Capability:
    """Read the payload of a CAPABILITY frame: TLVs in any order, the last of a kind wins.

    What is not said, or said too shortly, is 512, 256, 50, 0. Unknown types, and a single byte left
    at the end, are skipped. max_message is clamped to 256 to 8,192, pressure to 100.

    Raises:
        ProtocolError: Truncated (a length runs past the end); ERR_INVALID_PARAM (more than 65,535
            bytes).
    """
    data = _bytes(data)
    if len(data) > CAPABILITY_LIMIT:
        raise errors.ProtocolError(
            f"capability of {len(data):,} bytes: the limit is {CAPABILITY_LIMIT:,}, what a frame "
            "can carry"
        )
    max_message, preferred_chunk, pressure, flags = 512, 256, 50, 0
    at = 0
    while len(data) - at >= 2:
        type, value_len = data[at], data[at + 1]
        value = data[at + 2 : at + 2 + value_len]
        if len(value) < value_len:
            raise errors.Truncated(
                f"capability: the value of type {type} at byte {at} needs {value_len} bytes, "
                f"{len(value)} are left"
            )
        at += 2 + value_len
        if type == 3 and value_len >= 1:
            pressure = min(value[0], 100)
        elif value_len >= 2:
            number = int.from_bytes(value[:2], "big")
            if type == 1:
                max_message = min(max(number, MESSAGE_LIMIT_MIN), MESSAGE_LIMIT_MAX)
            elif type == 2:
                preferred_chunk = number
            elif type == 4:
                flags = number
    return Capability(max_message, preferred_chunk, pressure, flags)


# Datagrams.


def encode_datagram(port: int, payload: Data) -> bytes:
    """A UDP message. InvalidArgument: port is not 0 to 65,535. MessageTooLarge: payload has more
    than 1,392 bytes."""
    payload = _bytes(payload)
    too_large = len(payload) > DATAGRAM_MAX_PAYLOAD
    try:
        header = _DATAGRAM.pack(b"PTUD", port, 0 if too_large else len(payload))
    except struct.error:
        _refuse("datagram", port=(port, 65535))
    if too_large:
        raise errors.MessageTooLarge(
            f"datagram of {len(payload):,} bytes: the limit is {DATAGRAM_MAX_PAYLOAD:,} "
            "(DATAGRAM_MAX_PAYLOAD)"
        )
    return header + payload


def decode_datagram(data: Data) -> Datagram:
    """Read a UDP message; bytes behind its payload are left alone. Truncated (under 8 bytes),
    BadMagic, Truncated, the first that applies."""
    data = _bytes(data)
    if len(data) < _DATAGRAM.size:
        raise _short("datagram", len(data), _DATAGRAM.size)
    magic, port, payload_len = _DATAGRAM.unpack_from(data)
    if magic != b"PTUD":
        raise errors.BadMagic(f"datagram begins with {magic.hex()}: it should be 50545544 (PTUD)")
    end = _DATAGRAM.size + payload_len
    if len(data) < end:
        raise _short("datagram", len(data), end)
    return Datagram(port, data[_DATAGRAM.size : end])


# Fragment headers.


def encode_fragment(message_id: int, total_len: int, offset: int, flags: int) -> bytes:
    """A fragment header, 8 bytes. InvalidArgument: a field does not fit its 16 or (flags) 8
    bits."""
    try:
        return _FRAGMENT.pack(message_id, total_len, offset, flags)
    except struct.error:
        _refuse(
            "fragment",
            message_id=(message_id, 65535),
            total_len=(total_len, 65535),
            offset=(offset, 65535),
            flags=(flags, 255),
        )


def decode_fragment(data: Data) -> FragmentHeader:
    """Read the header at the front of a fragment. Truncated: fewer than 8 bytes. What the fields
    mean together is not judged here."""
    data = _bytes(data)
    if len(data) < _FRAGMENT.size:
        raise _short("fragment header", len(data), _FRAGMENT.size)
    return FragmentHeader(*_FRAGMENT.unpack_from(data))
