"""A peer of the original, scripted: what a classic peer sends, understands and refuses, told again
from the description of its protocol.

It shares no code with peertalk: a mistake that were made twice would be agreed upon and never seen.
It uses the standard library only, and has two halves. ClassicPeer thinks: bytes, the clock and
calls go in, actions and events come out. Sockets and SimulatedSockets move: they carry the actions
out on a real or on a simulated network. As a program (`python -m classic --help`) it prints
one line of JSON for each event.

It is strict. The original forgives much by not looking; a peer that is compatible sends nothing
that the original would have to forgive. So whatever a reference sender would never send raises
Misbehaved: other flags than 0x00 and 0x10, a payload on a PING, a frame above what was agreed,
fragments out of order, a GOODBYE before the connection is closed. Two things are free, because the
original skips them by design: CAPABILITY entries of unknown type, and bytes behind the CRC of a
discovery packet. With strict=False it behaves as the original does, and closes or ignores.
"""

# ruff: noqa: F401 - what the tests name

from __future__ import annotations

from classic.formats import (
    ACK,
    ANNOUNCE,
    BATCH,
    CAPABILITY,
    COALESCABLE,
    CRITICAL,
    DATA,
    DISCONNECT,
    FIRST,
    FRAGMENT,
    GOODBYE,
    HIGH,
    LAST,
    LOW,
    NO_DELAY,
    NORMAL,
    PING,
    PONG,
    QUERY,
    REJECT,
    UNRELIABLE,
    Capabilities,
    Misbehaved,
    Packet,
    Piece,
    Reassembly,
    Refused,
    _checksum,
    crc16,
    decode_capabilities,
    decode_datagram,
    decode_discovery,
    decode_frame,
    decode_header,
    decode_piece,
    encode_batch,
    encode_capabilities,
    encode_compact,
    encode_datagram,
    encode_discovery,
    encode_entries,
    encode_frame,
    encode_header,
    encode_piece,
    fragments,
)
from classic.peer import ClassicPeer, Link
from classic.sockets import Driver, SimulatedSockets, Sockets, serving
