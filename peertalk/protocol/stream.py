"""A stream: up to 64 KiB to one peer, cut into messages that nothing marks. The receiver sees
ordinary messages.

The life of a stream is one table; what is not in it must not happen, and raises InvalidState.

    READY --accepted--> SENDING --completed--> COMPLETED
      |                    |  (accepted, sent: it stays)
      |-- cancelled -------+-----------------> CANCELLED
      `-- failed ----------+-----------------> FAILED

A chunk is a message like any other: it is numbered when it is accepted, and reported as sent or
failed by its number. The size of chunks, and how many of them may be accepted and not yet reported,
follow from the round-trip time, as the original has it; so other messages find room between them,
and a stream that is cancelled has little left on its way.

Invariant: the chunks accepted are the beginning of the data, each byte once; at most `depth` of
them are outstanding, none once it has ended. Never: knows a link or the clock, or sends.
"""

from __future__ import annotations

import enum
from collections import deque

from ..errors import InvalidArgument, InvalidState, MessageTooLarge

STREAM_MAX = 65_536
"""Bytes of one stream at most."""

_BY_RTT = ((0.050, 4096, 4), (0.100, 2048, 3), (0.200, 1024, 2))
"""Below so many seconds of round-trip time: bytes of a chunk, and chunks outstanding."""
_SLOWER = (512, 1)
_UNMEASURED = (1024, 2)


class StreamState(enum.Enum):
    """Where a stream is in its life."""

    READY = "ready"
    """Nothing of it was accepted yet."""
    SENDING = "sending"
    """Some of it was."""
    COMPLETED = "completed"
    """The system took its last byte."""
    CANCELLED = "cancelled"
    """It was given up on our side; what had been accepted by then leaves, the rest does not."""
    FAILED = "failed"
    """The connection was lost, or the message of a chunk failed."""


class StreamEvent(enum.Enum):
    """What can happen to a stream."""

    ACCEPTED = "accepted"
    """A chunk was accepted as a message."""
    SENT = "sent"
    """The system took some chunks."""
    COMPLETED = "completed"
    """That was all."""
    CANCELLED = "cancelled"
    """The application gave it up."""
    FAILED = "failed"
    """A chunk failed, or the connection is gone."""


_S, _E = StreamState, StreamEvent

_NEXT = {
    (_S.READY, _E.ACCEPTED): _S.SENDING,
    (_S.READY, _E.CANCELLED): _S.CANCELLED,
    (_S.READY, _E.FAILED): _S.FAILED,
    (_S.SENDING, _E.ACCEPTED): _S.SENDING,
    (_S.SENDING, _E.SENT): _S.SENDING,
    (_S.SENDING, _E.COMPLETED): _S.COMPLETED,
    (_S.SENDING, _E.CANCELLED): _S.CANCELLED,
    (_S.SENDING, _E.FAILED): _S.FAILED,
}

ENDED = frozenset({StreamState.COMPLETED, StreamState.CANCELLED, StreamState.FAILED})


def pace(rtt: float | None) -> tuple[int, int]:
    """Bytes of a chunk, and how many chunks may be outstanding, for a round-trip time in seconds;
    None: not measured."""
    if rtt is None:
        return _UNMEASURED
    return next(((chunk, depth) for below, chunk, depth in _BY_RTT if rtt < below), _SLOWER)


class Stream:
    """One stream out, without I/O.

    Args:
        data: 1 to STREAM_MAX bytes.

    state: see StreamState. sent: bytes that the system took. error: what it FAILED of.

    Raises:
        InvalidArgument: no data. MessageTooLarge: too much.
    """

    def __init__(self, data: bytes) -> None:
        if not data:
            raise InvalidArgument("a stream of 0 bytes: there must be one at least")
        if len(data) > STREAM_MAX:
            raise MessageTooLarge(
                f"a stream of {len(data):,} bytes: the limit is {STREAM_MAX:,} (STREAM_MAX); "
                "send it in parts"
            )
        self._data = data
        self._accepted = 0
        self._outstanding: deque[tuple[int, int]] = deque()
        self.state = StreamState.READY
        self.sent = 0
        self.error: Exception | None = None

    @property
    def total(self) -> int:
        """All bytes of it."""
        return len(self._data)

    @property
    def ended(self) -> bool:
        """Nothing more will happen to it."""
        return self.state in ENDED

    def next_chunk(self, rtt: float | None, max_message: int) -> bytes:
        """What to accept as the next message; empty when nothing is, for now or for ever. Asking
        changes nothing.

        Args:
            rtt: seconds; None: not measured.
            max_message: bytes that one message may have.
        """
        size, depth = pace(rtt)
        if self.ended or len(self._outstanding) >= depth:
            return b""
        return self._data[self._accepted : self._accepted + min(size, max_message)]

    def accept(self, number: int, size: int) -> None:
        """The next `size` bytes were accepted as message `number`.

        Raises:
            InvalidState: the stream has ended.
        """
        self.advance(StreamEvent.ACCEPTED)
        self._accepted += size
        self._outstanding.append((number, size))

    def report(self, first: int, last: int, error: Exception | None) -> bool:
        """What became of the messages first to last, whoever's they are. error: None if they were
        sent. Whether chunks were among them."""
        mine = [chunk for chunk in self._outstanding if first <= chunk[0] <= last]
        if not mine:
            return False
        if error is not None:
            self.fail(error)
            return True
        self._outstanding = deque(chunk for chunk in self._outstanding if chunk not in mine)
        self.advance(StreamEvent.SENT)
        self.sent += sum(size for _, size in mine)
        return True

    def settle(self, *, stop: bool) -> None:
        """End it if all was sent, or else if it is to stop."""
        if self.ended:
            return
        if self.sent == self.total:
            self.advance(StreamEvent.COMPLETED)
        elif stop:
            self.advance(StreamEvent.CANCELLED)

    def fail(self, error: Exception) -> None:
        """It cannot go on.

        Raises:
            InvalidState: it has ended.
        """
        self.advance(StreamEvent.FAILED)
        self.error = error

    def advance(self, event: StreamEvent) -> None:
        """Take the arrow of the table that leaves the present state by this event.

        Raises:
            InvalidState: there is none; nothing has changed.
        """
        following = _NEXT.get((self.state, event))
        if following is None:
            raise InvalidState(
                f"a stream that is {self.state.value}: {event.value!r} cannot happen to it there"
            )
        self.state = following
        if self.ended:
            self._outstanding.clear()
