"""What crosses the stair: plain values, the same from every core.

Kinds and flags are those of the C headers under shorter names.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, NamedTuple

from peertalk import _numbers

# Events of Loop.turn(): tuples (kind, tag, a, b). See Loop.turn for a and b.
BATCH = _numbers.EVENT_BATCH
FRAME = _numbers.EVENT_FRAME
SENT = _numbers.EVENT_SENT
CLOSED = _numbers.EVENT_CLOSED
READY = _numbers.EVENT_READY
TIMER = _numbers.EVENT_TIMER
FINISHED = _numbers.EVENT_FINISHED
STILL = _numbers.EVENT_STILL

# Frame types.
DATA = _numbers.FRAME_DATA
PING = _numbers.FRAME_PING
PONG = _numbers.FRAME_PONG
DISCONNECT = _numbers.FRAME_DISCONNECT
ACK = _numbers.FRAME_ACK
REJECT = _numbers.FRAME_REJECT
CAPABILITY = _numbers.FRAME_CAPABILITY
OFFER = _numbers.FRAME_OFFER
GRANT = _numbers.FRAME_GRANT
REFUSE = _numbers.FRAME_REFUSE

# Frame flags.
UNRELIABLE = _numbers.FLAG_UNRELIABLE
COALESCABLE = _numbers.FLAG_COALESCABLE
NO_DELAY = _numbers.FLAG_NO_DELAY
BATCHED = _numbers.FLAG_BATCH
FRAGMENT = _numbers.FLAG_FRAGMENT
LANDED = _numbers.FLAG_LANDED

# Discovery packet types.
ANNOUNCE = _numbers.DISCOVERY_ANNOUNCE
QUERY = _numbers.DISCOVERY_QUERY
GOODBYE = _numbers.DISCOVERY_GOODBYE

# Interest in, and readiness of, a descriptor.
READ = _numbers.READY_READ
WRITE = _numbers.READY_WRITE
HANGUP = _numbers.READY_HANGUP
EDGE = _numbers.WANT_EDGE

# Hints of Link.send(): see there.
NEEDS_TURN = _numbers.SEND_NEEDS_TURN
YIELD = _numbers.SEND_YIELD
LEFT = _numbers.SEND_LEFT


NOT_READY = -errno.EAGAIN
"""What ByteCalls return when nothing is there, or no room."""


BUFFER_MAX = 2**30
"""Bytes of the buffer that ByteCalls share, at most."""


class ByteCalls(NamedTuple):
    """What reads and writes the bytes of a socket: each call tries once, and never waits. Those of
    one thread, since they share a buffer.

    Where the system refuses they return minus its number: NOT_READY, when nothing is there, or no
    room.
    """

    receive: Callable[[int, int], bytes | int]
    """receive(descriptor, size): up to size bytes, no more than the shared buffer takes, which they
    come by way of; b"": the stream has ended."""
    receive_into: Callable[[int, Any], int]
    """receive_into(descriptor, buffer): how many bytes were written straight into a writable
    buffer; 0: the stream has ended, or the buffer is empty."""
    send: Callable[[int, Any], int]
    """send(descriptor, data): how many bytes of a buffer the system took."""
    most: int
    """Bytes that receive() reads at most."""
    native_type: Callable[[str, type], type] = lambda _, base: base
    """native_type(name, base): the class, with its attributes in memory that C knows, if there is
    C: of a "state", a "side" or the "ticks"."""
    channel: Callable[..., Any] | None = None
    """channel(descriptor, (ticks, loop, resume), state, sides, buffers): the native half of a
    stream, for the methods of Core.stream_methods(); None: this core has none."""


class TraceRecord(NamedTuple):
    """A decision of a simulated network: time_ns since its beginning, what happened ("send", "lost"
    and so on: the kinds of pt_sim.h), names of the hosts ("" for none), and two numbers whose
    meaning pt_sim.h gives with the kind."""

    time_ns: int
    kind: str
    source: str
    target: str
    a: int
    b: int


class LinkCounts(NamedTuple):
    """Counters of one direction of a simulated link, in packets (control packets included) but for
    bytes."""

    packets: int
    bytes: int
    lost: int
    cut: int
    duplicated: int
    reordered: int
    damaged: int
    delivered: int


class Header(NamedTuple):
    """A full frame header: type 1 to 7, flags 0 to 255, sequence 0 to 255, payload_len 0 to 65,535
    bytes."""

    type: int
    flags: int
    sequence: int
    payload_len: int


class Frame(NamedTuple):
    """One message on the wire, its CRC checked."""

    type: int
    flags: int
    sequence: int
    payload: bytes


class CompactHeader(NamedTuple):
    """A compact frame header: type 1 to 7, flags 0 to 15, payload_len in bytes."""

    type: int
    flags: int
    payload_len: int


class WideHeader(NamedTuple):
    """A wide frame header: type 1 or 8 to 10, reason 0 to 255, payload_len in bytes; id, offset and
    total (bytes) of the message; crc: CRC-32C of the header before it and the payload."""

    type: int
    reason: int
    payload_len: int
    id: int
    offset: int
    total: int
    crc: int


class Discovery(NamedTuple):
    """A discovery packet. port: the sender's TCP listening port; name: 0 to 31 bytes; size: bytes
    of the packet, so that what lies behind the CRC can be found."""

    type: int
    flags: int
    port: int
    transports: int
    name: bytes
    size: int


class Capability(NamedTuple):
    """The four fields of the original's CAPABILITY. max_message and preferred_chunk in bytes,
    pressure 0 to 100."""

    max_message: int
    preferred_chunk: int
    pressure: int
    flags: int


class Datagram(NamedTuple):
    """A UDP message: the sender's datagram port and the payload, 0 to 1,392 bytes."""

    port: int
    payload: bytes


class FragmentHeader(NamedTuple):
    """In front of a fragment's data: sizes and offsets in bytes; flags: 1 first, 2 last."""

    message_id: int
    total_len: int
    offset: int
    flags: int


class PoolStatistics(NamedTuple):
    """Counters of a buffer pool since its start; bytes, peak_bytes, in_use (lent) and buffers (that
    exist) are of now."""

    acquires: int
    allocations: int
    refusals: int
    returns: int
    bytes: int
    peak_bytes: int
    in_use: int
    buffers: int

    @property
    def hit_rate(self) -> float:
        """Percent of the acquires that found a free buffer; 0 before the first."""
        return _percent(self.acquires - self.allocations, self.acquires)

    @property
    def utilisation(self) -> float:
        """Percent of the buffers that are lent; 0 while there are none."""
        return _percent(self.in_use, self.buffers)


class PoolClassStatistics(NamedTuple):
    """Counters of one size class; buffer_size: bytes; in_use (lent) and buffers (that exist) are of
    now; high_water: the most that were lent at once."""

    buffer_size: int
    acquires: int
    allocations: int
    returns: int
    in_use: int
    high_water: int
    buffers: int

    @property
    def hit_rate(self) -> float:
        """As of the pool."""
        return _percent(self.acquires - self.allocations, self.acquires)

    @property
    def utilisation(self) -> float:
        """As of the pool."""
        return _percent(self.in_use, self.buffers)


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


class LinkStatistics(NamedTuple):
    """Counters of one link since it opened. Messages are DATA frames; frames are of any type; bytes
    are of the stream, framing included, but payload_bytes_*; calls are system calls; slots are now
    (pending) and at most (high_water); sync_sends are the messages that send_sync() sent by a
    blocking call."""

    messages_accepted: int
    messages_reported: int
    frames_sent: int
    payload_bytes_sent: int
    bytes_sent: int
    write_calls: int
    refusals: int
    slots_pending: int
    slots_high_water: int
    frames_received: int
    payload_bytes_received: int
    bytes_received: int
    read_calls: int
    partial_bytes: int
    sync_sends: int


class LoopStatistics(NamedTuple):
    """Counters of one loop since it opened: turns, waits (system calls), links ended by a CRC
    error, links ended by any fault of a frame."""

    turns: int
    wait_calls: int
    crc_errors: int
    bad_frames: int


def says_nothing_more(frame: tuple[int, int, int, bytes], last: tuple[int, int, Any, Any]) -> bool:
    """Whether a FRAME repeats the event before it: a control frame without payload, of the same
    link, type and flags. Said again it means no more, and a flood of them costs its receiver."""
    kind, tag, word, payload = frame
    return (
        not payload
        and last[:2] == (kind, tag)
        and not last[3]
        and word & 0xFF != DATA
        and last[2] & 0xFFFF == word & 0xFFFF
    )
