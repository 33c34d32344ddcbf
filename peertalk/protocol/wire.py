"""What crosses the wire, as values: messages, announcements, capabilities. The bytes of the
original protocol come from a core.

What the original lacks (who a node is, its name and ports on the connection) travels in TLVs (type
1 byte, length 1 byte, value) where the original does not look: behind its own four in a CAPABILITY,
and behind the CRC of a discovery packet, closed there by a CRC-16 of its own over everything before
it. A trailer that is absent or damaged means that the sender is classic; it is never an error.

Never: raises anything but ProtocolError while reading, whatever the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

import msgspec

from .._core.values import QUERY, Capability, Discovery
from .._core.values import Datagram as Decoded
from .._numbers import MESSAGE_LIMIT_MAX, NAME_MAX
from ..errors import InvalidArgument
from .claims import OVER_MAX, Claims, Over

INSTANCE_SIZE = 8
"""Length in bytes of an instance id: random, one for each start of a node, never all zero."""

PACKET_MAX = 512
"""Longest discovery packet in bytes whose trailer is read; ours have at most 101. Bounds the work
that a stranger's datagram can cause."""

TLV_INSTANCE = 0x80
TLV_NAME = 0x81
TLV_PORT = 0x82
TLV_DATAGRAM_PORT = 0x83
TLV_CONNECTION = 0x84
TLV_OVER = 0x85
TLV_PLACE = 0x87
TLV_LARGEST = 0x88
TLV_WAYS = 0x89

WAY_LOCAL = 0x01
"""Of the bits of TLV_WAYS: the sender listens at a socket of its host, too."""

TRANSPORT_TCP = 0x01
TRANSPORT_UDP = 0x02

_CRC_SIZE = 2

P = TypeVar("P")


class Codec(Protocol):
    """The part of a core that this package uses: pure functions of bytes and numbers."""

    crc16: Callable[..., int]
    encode_discovery: Callable[..., bytes]
    decode_discovery: Callable[..., Discovery]
    encode_capability: Callable[..., bytes]
    decode_capability: Callable[..., Capability]
    decode_datagram: Callable[..., Decoded]


class Message(msgspec.Struct, Generic[P], frozen=True, eq=False, gc=False):
    """One received message: who sent it, and its bytes.

    Not tracked by the garbage collector, which would cost more than the message: an inbox is
    emptied when its node closes.
    """

    peer: P
    data: bytes

    @property
    def text(self) -> str:
        """The data as UTF-8. Raises UnicodeDecodeError where it is none."""
        return self.data.decode()

    @property
    def view(self) -> memoryview:
        """The data as a read-only memoryview, without a copy."""
        return memoryview(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __bool__(self) -> bool:
        return True


class Batch(msgspec.Struct, Generic[P], frozen=True, eq=False, gc=False):
    """Messages of one peer that arrived together, in order: the cheapest way to receive many."""

    peer: P
    payloads: list[bytes]

    def __len__(self) -> int:
        return len(self.payloads)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.payloads)

    def messages(self) -> Iterator[Message[P]]:
        """Each payload as a Message."""
        peer = self.peer
        return (Message(peer, payload) for payload in self.payloads)


class Datagram(msgspec.Struct, Generic[P], frozen=True, eq=False, gc=False):
    """One received datagram: who sent it, as far as its address tells, and its 0 to 1,392 bytes. It
    may have overtaken others, or come twice."""

    peer: P
    data: bytes

    @property
    def text(self) -> str:
        """The data as UTF-8. Raises UnicodeDecodeError where it is none."""
        return self.data.decode()

    def __len__(self) -> int:
        return len(self.data)

    def __bool__(self) -> bool:
        return True


class Announcement(msgspec.Struct, frozen=True, gc=False):
    """What a discovery packet says.

    type: ANNOUNCE 1, QUERY 2 or GOODBYE 3. name: 0 to 31 bytes of UTF-8. port: the sender's TCP
    listening port. flags, transports: as the original defines them. instance: 8 bytes, None for a
    classic peer. datagram_port: UDP port for fast messages, None when not said. sought: of a QUERY,
    the name or id of the one peer that shall answer; None: all shall. local: the sender can be
    called at a socket of its host that its instance names.
    """

    type: int
    name: str
    port: int
    flags: int = 0
    transports: int = TRANSPORT_TCP | TRANSPORT_UDP
    instance: bytes | None = None
    datagram_port: int | None = None
    sought: str | None = None
    local: bool = False


class Capabilities(msgspec.Struct, frozen=True, gc=False):
    """What a side of a connection says about itself.

    max_message: bytes, 256 to 8,192 as read. preferred_chunk: bytes. pressure: fill of its queues,
    0 to 100. flags: as the original defines them. The rest is None for a classic peer: instance 8
    bytes, name 1 to 31 bytes of UTF-8, port its TCP listening port, datagram_port its UDP port,
    largest the bytes of the longest message that it takes from those who say so too, more than
    8,192.
    """

    max_message: int
    preferred_chunk: int
    pressure: int
    flags: int
    instance: bytes | None = None
    name: str | None = None
    port: int | None = None
    datagram_port: int | None = None
    largest: int | None = None


class Greeting(NamedTuple):
    """What a CAPABILITY says of the connection that it comes on; see line.py.

    number: of the sender's dial that made the connection, 0 where the sender did not dial it.
    addressed: the instance that the claims are meant for. claims: what is over for the sender.
    place: None where the sender knows no places, 0 before the connection is used.
    """

    number: int = 0
    addressed: bytes | None = None
    claims: Claims | None = None
    place: int | None = None


def _name_bytes(name: str) -> bytes:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise InvalidArgument("a name has a character that UTF-8 cannot hold") from None
    if len(encoded) > NAME_MAX:
        raise InvalidArgument(f"a name of {len(encoded):,} bytes of UTF-8: the limit is {NAME_MAX}")
    return encoded


def _tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind, len(value))) + value


def _instance_tlv(instance: bytes | None) -> bytes:
    if instance is None:
        return b""
    if len(instance) != INSTANCE_SIZE or not any(instance):
        raise InvalidArgument(
            f"an instance id of {len(instance):,} bytes: it must be {INSTANCE_SIZE} bytes, "
            "not all zero"
        )
    return _tlv(TLV_INSTANCE, instance)


def _port_tlv(kind: int, port: int | None) -> bytes:
    if port is None:
        return b""
    if not 1 <= port <= 65535:
        raise InvalidArgument(f"port {port:,}: it must be 1 to 65,535")
    return _tlv(kind, port.to_bytes(2, "big"))


def _read_tlvs(data: memoryview) -> dict[int, bytes] | None:
    """The last value of each type, by type; None when a length runs past the end. A single byte
    left at the end is ignored."""
    found: dict[int, bytes] = {}
    position, end = 0, len(data)
    while end - position >= 2:
        value = position + 2
        position = value + data[position + 1]
        if position > end:
            return None
        found[data[value - 2]] = bytes(data[value:position])
    return found


def _instance_of(found: dict[int, bytes]) -> bytes | None:
    instance = found.get(TLV_INSTANCE, b"")
    return instance if len(instance) == INSTANCE_SIZE and any(instance) else None


def _port_of(found: dict[int, bytes], kind: int) -> int | None:
    value = found.get(kind, b"")
    return (int.from_bytes(value, "big") or None) if len(value) == 2 else None


def _largest_of(found: dict[int, bytes]) -> int | None:
    """Only one that is longer than what every peer takes in one frame says something."""
    value = found.get(TLV_LARGEST, b"")
    largest = int.from_bytes(value, "big") if len(value) == 4 else 0
    return largest if largest > MESSAGE_LIMIT_MAX else None


def encode_announcement(core: Codec, announcement: Announcement) -> bytes:
    """One discovery packet, 14 to 101 bytes. With nothing but what the original knows it is, byte
    for byte, the original's.

    Raises:
        InvalidArgument: name or sought over 31 bytes, instance not 8 bytes or all zero, a type,
            port or flags out of range.
    """
    a = announcement
    packet = core.encode_discovery(a.type, a.port, _name_bytes(a.name), a.flags, a.transports)
    trailer = _instance_tlv(a.instance) + _port_tlv(TLV_DATAGRAM_PORT, a.datagram_port)
    if a.sought is not None:
        trailer += _tlv(TLV_NAME, _name_bytes(a.sought))
    if a.local:
        trailer += _tlv(TLV_WAYS, bytes((WAY_LOCAL,)))
    if not trailer:
        return packet
    packet += trailer
    return packet + core.crc16(packet).to_bytes(_CRC_SIZE, "big")


def decode_announcement(core: Codec, data: bytes) -> Announcement:
    """Read one discovery packet: a whole UDP datagram, whatever stands in it.

    Bytes of the name that are not UTF-8 become U+FFFD. TLVs of the trailer that have a wrong length
    are ignored, and so is the whole trailer when its CRC does not match, a length in it runs past
    its end, or the packet is longer than PACKET_MAX.

    Raises:
        ProtocolError: Truncated, BadMagic, BadVersion, BadCrc or (type, name length) ProtocolError
            itself, the first that applies.
    """
    packet = core.decode_discovery(data)
    found: dict[int, bytes] | None = None
    trailer_end = len(data) - _CRC_SIZE
    if (
        packet.size < trailer_end
        and len(data) <= PACKET_MAX
        and core.crc16(data[:trailer_end]) == int.from_bytes(data[trailer_end:], "big")
    ):
        found = _read_tlvs(memoryview(data)[packet.size : trailer_end])
    found = found or {}
    sought = found.get(TLV_NAME) if packet.type == QUERY else None
    ways = found.get(TLV_WAYS, b"")
    return Announcement(
        packet.type,
        packet.name.decode("utf-8", "replace"),
        packet.port,
        packet.flags,
        packet.transports,
        _instance_of(found),
        _port_of(found, TLV_DATAGRAM_PORT),
        None if sought is None else sought.decode("utf-8", "replace"),
        len(ways) == 1 and bool(ways[0] & WAY_LOCAL),
    )


def encode_capabilities(core: Codec, capabilities: Capabilities) -> bytes:
    """Payload of a CAPABILITY frame: the original's four TLVs first, then ours for the fields that
    are not None. 15 to 72 bytes.

    Raises:
        InvalidArgument: a field out of its range.
    """
    c = capabilities
    payload = core.encode_capability(
        c.max_message, c.preferred_chunk, c.pressure, c.flags
    ) + _instance_tlv(c.instance)
    if c.name is not None:
        name = _name_bytes(c.name)
        if not name:
            raise InvalidArgument("an empty name: it must be 1 to 31 bytes")
        payload += _tlv(TLV_NAME, name)
    payload += _port_tlv(TLV_PORT, c.port) + _port_tlv(TLV_DATAGRAM_PORT, c.datagram_port)
    if c.largest is not None:
        if not MESSAGE_LIMIT_MAX < c.largest < 2**32:
            raise InvalidArgument(
                f"a longest message of {c.largest:,} bytes: it must be {MESSAGE_LIMIT_MAX + 1:,} "
                f"to {2**32 - 1:,}"
            )
        payload += _tlv(TLV_LARGEST, c.largest.to_bytes(4, "big"))
    return payload


def encode_greeting(greeting: Greeting, own: bytes) -> bytes:
    """The TLVs of a greeting, to stand behind encode_capabilities(). own: the sender's instance."""
    encoded = b""
    if greeting.number:
        encoded += _tlv(TLV_CONNECTION, own + greeting.number.to_bytes(4, "big"))
    if greeting.addressed is not None and greeting.claims is not None:
        numbers = b""
        for over in greeting.claims:
            above = (*over.above, *(0,) * OVER_MAX)[:OVER_MAX]
            numbers += b"".join(number.to_bytes(4, "big") for number in (over.upto, *above))
        encoded += _tlv(TLV_OVER, greeting.addressed + numbers)
    if greeting.place is not None:
        encoded += _tlv(TLV_PLACE, greeting.place.to_bytes(4, "big"))
    return encoded


def decode_greeting(payload: bytes, theirs: bytes | None) -> Greeting:
    """What the payload of a CAPABILITY says of its connection. theirs: the sender's instance.

    TLVs of a wrong length count as absent, and so does the number of a dial of somebody else.
    """
    found = _read_tlvs(memoryview(payload)) or {}
    connection, over = found.get(TLV_CONNECTION, b""), found.get(TLV_OVER, b"")
    place, number = found.get(TLV_PLACE, b""), 0
    if len(connection) == INSTANCE_SIZE + 4 and connection[:INSTANCE_SIZE] == theirs:
        number = int.from_bytes(connection[INSTANCE_SIZE:], "big")
    addressed, claims = None, None
    if len(over) == INSTANCE_SIZE + 2 * 4 * (1 + OVER_MAX):
        addressed, numbers = over[:INSTANCE_SIZE], memoryview(over)[INSTANCE_SIZE:].cast("B")
        each = [int.from_bytes(numbers[at : at + 4], "big") for at in range(0, len(numbers), 4)]
        own, others = each[: 1 + OVER_MAX], each[1 + OVER_MAX :]
        claims = Claims(_over(own), _over(others))
    return Greeting(
        number, addressed, claims, int.from_bytes(place, "big") if len(place) == 4 else None
    )


def _over(numbers: list[int]) -> Over:
    upto, *above = numbers
    return Over(upto, tuple(sorted(number for number in above if number > upto)))


_USUAL = {number: number for number in (1024, 4096, 8192, 16 * 1024**2)}
"""Numbers that most peers say, so that those need no memory for each of them."""


def decode_capabilities(core: Codec, payload: bytes) -> Capabilities:
    """Read the payload of a CAPABILITY frame, the original's or ours.

    The last TLV of a kind wins; unknown kinds, and extension TLVs of a wrong length, are skipped.
    Bytes of the name that are not UTF-8 become U+FFFD.

    Raises:
        ProtocolError: a length runs past the end (Truncated); the original ignores the whole
            message then.
    """
    basic = core.decode_capability(payload)
    found = _read_tlvs(memoryview(payload)) or {}
    name = found.get(TLV_NAME, b"")
    largest = _largest_of(found)
    return Capabilities(
        _USUAL.get(basic.max_message, basic.max_message),
        _USUAL.get(basic.preferred_chunk, basic.preferred_chunk),
        basic.pressure,
        basic.flags,
        _instance_of(found),
        name.decode("utf-8", "replace") if 1 <= len(name) <= NAME_MAX else None,
        _port_of(found, TLV_PORT),
        _port_of(found, TLV_DATAGRAM_PORT),
        None if largest is None else _USUAL.get(largest, largest),
    )
