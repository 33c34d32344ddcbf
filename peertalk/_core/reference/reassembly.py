"""Messages that come in parts, or several in one frame: the yardstick of pt_reassembly.

Each fragment becomes an event, or START and one more, and TABLE says what comes of it. The first
fragment of a message says how long it is; so much is borrowed from the pool and given back with the
message's end, whichever it is.

Invariant: the bytes received are at most the total, and the total at most the limit; in IDLE
nothing is held.
"""

from __future__ import annotations

import enum
import struct

from peertalk import _numbers
from peertalk._core.reference.pool import Buffer, BufferPool
from peertalk._core.reference.wire import decode_fragment, strerror
from peertalk._core.values import FragmentHeader
from peertalk._numbers import (
    ERR_INVALID_PARAM,
    ERR_INVALID_STATE,
    ERR_MESSAGE_TOO_LARGE,
    ERR_NO_MEMORY,
    ERR_TRUNCATED,
    FRAGMENT_FIRST,
    FRAGMENT_LAST,
    OK,
    REASSEMBLY_COMPLETE,
)
from peertalk.errors import InvalidArgument, OutOfMemory, Truncated, from_decoder

LIMIT_MAX = 65_535


_ENTRY = struct.Struct(">HH")  # length, reserved


class State(enum.IntEnum):
    """Of one link's reassembly; numbers as in pt_reassembly.h."""

    IDLE = _numbers.REASSEMBLY_IDLE
    RUNNING = _numbers.REASSEMBLY_RUNNING


class Event(enum.IntEnum):
    """What a fragment means: the first that applies, and behind START one more; numbers and
    meanings as in pt_reassembly.h."""

    SHORT = _numbers.PIECE_SHORT
    OVERRUN = _numbers.PIECE_OVERRUN
    TOO_LARGE = _numbers.PIECE_TOO_LARGE
    NO_MEMORY = _numbers.PIECE_NO_MEMORY
    START = _numbers.PIECE_START
    OTHER_ID = _numbers.PIECE_OTHER_ID
    MISPLACED = _numbers.PIECE_MISPLACED
    NEXT = _numbers.PIECE_NEXT
    LAST_EARLY = _numbers.PIECE_LAST_EARLY
    LAST = _numbers.PIECE_LAST


TABLE = {
    (State.IDLE, Event.SHORT): (ERR_TRUNCATED, State.IDLE),
    (State.IDLE, Event.OVERRUN): (ERR_INVALID_PARAM, State.IDLE),
    (State.IDLE, Event.TOO_LARGE): (ERR_MESSAGE_TOO_LARGE, State.IDLE),
    (State.IDLE, Event.NO_MEMORY): (ERR_NO_MEMORY, State.IDLE),
    (State.IDLE, Event.START): (OK, State.RUNNING),
    (State.IDLE, Event.OTHER_ID): (ERR_INVALID_STATE, State.IDLE),
    (State.IDLE, Event.MISPLACED): (ERR_INVALID_STATE, State.IDLE),
    (State.IDLE, Event.NEXT): (ERR_INVALID_STATE, State.IDLE),
    (State.IDLE, Event.LAST_EARLY): (ERR_INVALID_STATE, State.IDLE),
    (State.IDLE, Event.LAST): (ERR_INVALID_STATE, State.IDLE),
    (State.RUNNING, Event.SHORT): (ERR_TRUNCATED, State.RUNNING),
    (State.RUNNING, Event.OVERRUN): (ERR_INVALID_PARAM, State.IDLE),
    (State.RUNNING, Event.TOO_LARGE): (ERR_MESSAGE_TOO_LARGE, State.RUNNING),
    (State.RUNNING, Event.NO_MEMORY): (ERR_NO_MEMORY, State.IDLE),
    (State.RUNNING, Event.START): (OK, State.RUNNING),
    (State.RUNNING, Event.OTHER_ID): (ERR_INVALID_PARAM, State.RUNNING),
    (State.RUNNING, Event.MISPLACED): (ERR_INVALID_PARAM, State.IDLE),
    (State.RUNNING, Event.NEXT): (OK, State.RUNNING),
    (State.RUNNING, Event.LAST_EARLY): (ERR_TRUNCATED, State.IDLE),
    (State.RUNNING, Event.LAST): (REASSEMBLY_COMPLETE, State.IDLE),
}
"""(state, event) -> (result code, state afterwards)."""


class Reassembly:
    """Puts the fragments of one link together: one message at a time, pieces strictly in order.

    Args:
        limit: longest message in bytes that is taken, 0 to 65,535.
        pool: lends the memory of a message. None: a pool of one buffer of that size.

    Raises:
        InvalidArgument: limit is not within these.
    """

    def __init__(self, limit: int, pool: BufferPool | None = None) -> None:
        if not 0 <= limit <= LIMIT_MAX:
            raise InvalidArgument(
                f"limit of a reassembly is {limit:,}: it must be 0 to {LIMIT_MAX:,}"
            )
        self.state: int = State.IDLE
        self._limit = limit
        self._pool = pool or BufferPool([(max(limit, 1), 1)])
        self._buffer: Buffer | None = None
        self._id = self._total = self._received = 0

    def receive(self, payload: bytes | bytearray | memoryview) -> bytes | None:
        """Take the payload of one DATA frame with the fragment flag.

        Returns:
            The message that it completes, or None.

        Raises:
            ProtocolError: the fragment is not as it must be; its code says how: ERR_TRUNCATED too
                short, or the last one of a message that is not whole; ERR_INVALID_PARAM out of
                order, of another message, or beyond its total; ERR_MESSAGE_TOO_LARGE of a message
                above the limit; ERR_INVALID_STATE no message has begun.
            OutOfMemory: the pool has no memory for the message that begins, which is lost.
        """
        try:
            fragment = decode_fragment(payload)
        except Truncated:
            self._apply(Event.SHORT, payload)
            raise AssertionError("a short fragment was taken") from None
        piece = bytes(payload)[8:]
        event = self._judge(fragment, len(piece))
        if event is Event.START:
            self._forget()
            try:
                self._buffer = (
                    self._pool.acquire(fragment.total_len, share=True)
                    if fragment.total_len
                    else None
                )
            except OutOfMemory:
                event = Event.NO_MEMORY
            else:
                self._apply(event, payload)
                self._id, self._total = fragment.message_id, fragment.total_len
                event = self._judge_piece(fragment, len(piece))
        running = self.state == State.RUNNING
        if running and event in (Event.NEXT, Event.LAST) and piece:
            assert self._buffer is not None
            self._buffer.view[self._received : self._received + len(piece)] = piece
            self._received += len(piece)
        whole = b"" if self._buffer is None else bytes(self._buffer.view[: self._received])
        return whole if self._apply(event, payload) == REASSEMBLY_COMPLETE else None

    def _judge(self, fragment: FragmentHeader, piece_len: int) -> Event:
        first = fragment.flags & FRAGMENT_FIRST
        belongs = self.state == State.RUNNING and not first and fragment.message_id == self._id
        total = self._total if belongs else fragment.total_len
        if fragment.offset + piece_len > total:
            return Event.OVERRUN
        if first:
            return Event.TOO_LARGE if total > self._limit else Event.START
        return self._judge_piece(fragment, piece_len)

    def _judge_piece(self, fragment: FragmentHeader, piece_len: int) -> Event:
        if fragment.message_id != self._id:
            return Event.OTHER_ID
        if fragment.offset != self._received:
            return Event.MISPLACED
        if not fragment.flags & FRAGMENT_LAST:
            return Event.NEXT
        return Event.LAST if self._received + piece_len == self._total else Event.LAST_EARLY

    def _apply(self, event: Event, payload: bytes | bytearray | memoryview) -> int:
        """What the table says, and the memory that follows from it. Raises what a negative code
        means."""
        code, self.state = TABLE[State(self.state), event]
        if self.state == State.IDLE:
            self._forget()
        if code == ERR_NO_MEMORY:
            raise OutOfMemory("a message in fragments: the pool has no memory for it")
        if code < 0:
            raise from_decoder(code, f"a fragment of {len(payload):,} bytes: {strerror(code)}")
        return code

    def _forget(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.release(self._received)
        self._id = self._total = self._received = 0

    @property
    def partial_len(self) -> int:
        """Bytes of an unfinished message that are held; 0 when none has begun."""
        return self._received

    def close(self) -> None:
        """Give memory back and forget an unfinished message; idempotent."""
        self._forget()
        self.state = State.IDLE


def split_batch(payload: bytes | bytearray | memoryview) -> list[bytes]:
    """The entries of a DATA frame with the batch flag, in order. All of it is judged before any of
    it is believed.

    Raises:
        ProtocolError: Truncated: an entry does not end within the payload.
    """
    data = bytes(payload)
    entries = []
    at = 0
    while at < len(data):
        if len(data) - at < _ENTRY.size:
            raise _cut_short(data, at)
        length, _ = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        if len(data) - at < length:
            raise _cut_short(data, at)
        entries.append(data[at : at + length])
        at += length
    return entries


def _cut_short(data: bytes, at: int) -> Truncated:
    return Truncated(
        f"a batch of {len(data):,} bytes: its entry at byte {at:,} does not end within it"
    )
