"""One connection of the reference core: what it sends, and how it ends. read.py has what it
receives.

Invariant: a link with frames to push or events to report is in its loop's dirty set, or blocked, or
in the set of those that have only to say what has left; it is blocked, and waits for WRITE, only
while bytes of a launched slot are unsent. Never: calls back, blocks in a turn, or closes a
descriptor that the caller opened.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from peertalk._core.reference.departure import Departing
from peertalk._core.reference.ingest import Ingest
from peertalk._core.reference.landing import Arrival, Arriving, Landings
from peertalk._core.reference.output import DRAIN_TIMEOUT_MS, Output, flat
from peertalk._core.reference.pipeline import SendPipeline
from peertalk._core.reference.prompt import Prompt
from peertalk._core.reference.source import Event, Home, Source
from peertalk._core.reference.system import (
    DrainTimeout,
    network_fault,
    wait_writable,
)
from peertalk._core.values import (
    BATCHED,
    CLOSED,
    DATA,
    FINISHED,
    FRAGMENT,
    LEFT,
    NEEDS_TURN,
    NO_DELAY,
    READ,
    SENT,
    WRITE,
    Frame,
    LinkStatistics,
)
from peertalk._numbers import (
    ERR_CONNECTION_CLOSED,
    ERR_INVALID_PARAM,
    ERR_INVALID_STATE,
    ERR_MESSAGE_TOO_LARGE,
    ERR_NO_MEMORY,
    ERR_NOT_CONNECTED,
    ERR_TIMEOUT,
    ERR_WOULD_BLOCK,
    FRAME_MAX_PAYLOAD,
    FRAME_OVERHEAD,
    LINK_ENDED,
    LINK_OPEN,
    LINK_SHUT,
    PARTIAL_FRAME_MS,
    PUSH_SLICES,
    REFERRED_PART,
    STILL_MS,
)

MAX_FRAME_TIMEOUT = (2**31 - 10_000) / 1000
"""Seconds, the most that frame_timeout may be: what the compiled cores can wait."""


class Link(Source, Departing, Arriving, Prompt):
    """One connection: what is sent waits in a pipeline, what arrives is cut into frames. Made by
    Loop.open_link()."""

    def __init__(
        self,
        loop: Home,
        fd: int,
        tag: int,
        depth: int | None,
        slot_size: int | None,
        packing: bool,
        max_payload: int | None,
        wide: bool,
    ) -> None:
        super().__init__(loop, fd, tag)
        self._pipeline = SendPipeline(depth, slot_size, True, packing, loop._door)
        self._output = Output(fd, self._pipeline)
        self._landings = Landings()
        self._landing = 0  # bytes of the unasked frame that was let in
        self._ingest = Ingest(max_payload, loop._door, self._landings if wide else None)
        self.max_message = min(FRAME_MAX_PAYLOAD, self._pipeline.slot_size - FRAME_OVERHEAD)
        """Longest payload of a DATA frame that may be sent now, in bytes."""
        self.read_max = 2**32 - 1
        """Bytes that one read brings at most, 1 or more; at first as many as a turn has room for.
        Set it to hear who somebody is before much of what he says is taken."""
        self._state = LINK_OPEN
        self._paused = False
        self._closed = False
        self._wide_max = 0
        self._moved = 0  # tick at which bytes last left, or began to wait
        self._held: deque[Frame | Arrival] = deque()  # read, and of a later turn
        self._starved = False
        self._read_ended = False
        self._fault: tuple[int, int] | None = None  # why writing is over
        self._frame_key = loop._next_key()
        self._frame_timeout = PARTIAL_FRAME_MS / 1000
        self._unconfirmed = 0
        # Due to be reported at the end of the turn
        self._sent: list[tuple[int, int]] = []
        self._finish_due = False
        self._end_cause: tuple[int, int] | None = None
        # Counters
        self._frames_received = 0
        self._payload_bytes_received = 0
        self._bytes_received = 0
        self._read_calls = 0
        self._sync_sends = 0
        self._want(READ)

    # What the caller asks for

    @property
    def native(self) -> Link:
        """What is called once a message: this link itself."""
        return self

    def send(self, payload: bytes | bytearray | memoryview) -> int:
        """Accept one DATA frame.

        Returns:
            A sum of NEEDS_TURN, YIELD and LEFT (0 or more), or with nothing changed
            ERR_WOULD_BLOCK (every slot is taken), ERR_NO_MEMORY, ERR_MESSAGE_TOO_LARGE (longer than
            max_message and wide_max), ERR_NOT_CONNECTED (the link is not open), ERR_INVALID_STATE
            (the loop is another thread's).

        Raises:
            TypeError: payload is no contiguous buffer of bytes.
        """
        if threading.get_ident() != self._loop._owner:
            return ERR_INVALID_STATE
        return self._send(DATA, payload if type(payload) is bytes else flat(payload), 0)

    def send_many(self, payloads: list[bytes], start: int = 0) -> tuple[int, int]:
        """Accept payloads[start:], a list, in order until one is refused.

        Returns:
            (how many were accepted, the refusal or the sum of the hints seen). A wrong type behind
            the first is refused with ERR_INVALID_PARAM.

        Raises:
            TypeError: payloads is no list, or its first payload no contiguous buffer of bytes.
            ValueError: start is negative.
        """
        if not isinstance(payloads, list):
            raise TypeError("send_many(payloads, start=0): payloads must be a list")
        if start < 0:
            raise ValueError("send_many: start must not be negative")
        hints = 0
        pipeline, count = self._pipeline, len(payloads) - start
        if count > 0 and type(payloads[start]) is bytes:
            pipeline.more = count > pipeline.small_size // (len(payloads[start]) + FRAME_OVERHEAD)
        self._many = count > 1
        try:
            for index in range(start, len(payloads)):
                try:
                    code = self.send(payloads[index])
                except TypeError:
                    if index == start:
                        raise
                    code = ERR_INVALID_PARAM
                if code < 0:
                    return index - start, code
                hints |= code
        finally:
            pipeline.more = self._many = False
        return max(0, count), hints

    def send_frame(
        self, type: int, payload: bytes | bytearray | memoryview = b"", flags: int = 0
    ) -> int:
        """Accept one frame of any type; NO_DELAY makes it leave at once. Returns what send()
        returns, or ERR_INVALID_PARAM for a type out of range."""
        return self._send(type, flat(payload), flags)

    def send_slice(self, payload: bytes, id: int, offset: int, size: int) -> int:
        """Accept one slice of a message, which is kept as it is until the slice has left. The slice
        that ends the message counts as the one message.

        Returns:
            What send() returns; ERR_MESSAGE_TOO_LARGE: size is above slice_max;
            ERR_INVALID_PARAM: no slice, or id 0, which is a message in one frame, with less than
            all of it.

        Raises:
            TypeError: payload is no bytes object.
        """
        if type(payload) is not bytes:
            raise TypeError("send_slice(payload, id, offset, size): payload must be bytes")
        if threading.get_ident() != self._loop._owner:
            return ERR_INVALID_STATE
        return self._accept(size, self._pipeline.send_slice, payload, id, offset, size)

    def send_wide(self, type: int, id: int, total: int = 0, reason: int = 0) -> int:
        """Accept an OFFER, GRANT or REFUSE. Returns what send() returns, or ERR_INVALID_PARAM for
        another type or a field out of range."""
        return self._accept(0, self._pipeline.send_wide, type, id, total, reason)

    def send_sync(self, payload: bytes | bytearray | memoryview, flags: int = 0) -> int:
        """As send(), but where that says that every slot is taken, and always on the plain
        platform, wait until all are free, at most 5 s, and then write this one alone, with 5 s of
        its own: nothing is overtaken.

        Returns:
            What send() returns; ERR_TIMEOUT: the slots did not come free in time, with nothing
            changed.
        """
        view = flat(payload)
        if not self._loop._plain:
            code = self._send(DATA, view, flags)
            if code != ERR_WOULD_BLOCK:
                return code
        code = self._check(DATA, len(view), flags) or self.drain()
        if code == 0:
            code = self._put(DATA, view, flags)
        if code < 0:
            return code
        self._sync_sends += 1
        self._output.launch()
        self._move(self._output.write_blocking)
        return NEEDS_TURN | self._loop._count(len(view), many=False)

    def drain(self) -> int:
        """Wait until every slot is free, at most 5 s. Serves nobody else. Returns OK,
        ERR_TIMEOUT, or ERR_NOT_CONNECTED: the link is not open (any more)."""
        give_up = time.monotonic() + DRAIN_TIMEOUT_MS / 1000
        code = 0
        self._push()
        while self._state == LINK_OPEN and self._pipeline.pending and code == 0:
            try:
                wait_writable(self._fd, give_up - time.monotonic())
            except DrainTimeout:
                code = ERR_TIMEOUT
            self._output.blocked = False
            self._push()
        self._loop.wake()  # what came of it is to be reported, though the caller may hear no hint
        return code if self._state == LINK_OPEN else ERR_NOT_CONNECTED

    def pause(self) -> None:
        """Stop reading. Neither silence nor the partial-frame time-out counts until resume()."""
        self._paused = True
        self._update_reading()

    def resume(self) -> None:
        """Go on reading; what waited is read before a hang-up of the other side counts."""
        self._paused = False
        self._update_reading()

    def shut(self) -> None:
        """Accept no more, and end our half of the stream when all slots have left."""
        if self._state != LINK_OPEN:
            return
        self._state = LINK_SHUT
        self._push()
        if self in self._loop._dirty:
            self._loop.wake()

    def close(self) -> None:
        """Leave the loop and give the memory back; the descriptor stays the caller's.
        Idempotent."""
        if self._closed:
            return
        self._end(0, 0)
        self._closed, self._departs = True, None
        self._loop._forget(self)
        self._output.close()
        self._pipeline.close()

    # What is asked of it

    @property
    def wide_max(self) -> int:
        """Longest payload of one message that goes in one wide frame when it is longer than
        max_message, in bytes; 0 at first. Set to more than slice_max it is slice_max."""
        return self._wide_max

    @wide_max.setter
    def wide_max(self, value: int) -> None:
        self._wide_max = min(value, self.slice_max)

    @property
    def slice_max(self) -> int:
        """Longest slice of one frame, in bytes."""
        return self._pipeline.slice_max

    @property
    def referred(self) -> int:
        """Payload bytes of the slices in slots that are not reported yet."""
        return self._pipeline.referred

    @property
    def unconfirmed(self) -> int:
        """How many of the DATA frames that were reported as sent, the last ones, are not known to
        be acknowledged by the other side's system: whole writes, and more rather than less. Of an
        ended link, what was so at its end; 0 of a closed one, and where the system does not
        tell."""
        if self._closed:
            return 0
        ended = self._state == LINK_ENDED
        count = self._unconfirmed if ended else self._output.count_unconfirmed()
        return max(0, count - sum(told for told, code in self._sent if code == 0))

    @property
    def frame_timeout(self) -> float:
        """Seconds within which a frame that has begun must be whole, or the link ends; 5 at first.
        Set it to allow more or less, also for a frame that has begun."""
        return self._frame_timeout

    @frame_timeout.setter
    def frame_timeout(self, seconds: float) -> None:
        self._frame_timeout = min(max(0.001, seconds), MAX_FRAME_TIMEOUT)
        if self._frame_key in self._loop._timers:
            self._update_frame_timer(True)

    @property
    def held_bytes(self) -> int:
        """Bytes that were read and are handed on in later turns: the system does not count them as
        unread any more. Not those of a frame whose rest has not come."""
        return sum(FRAME_OVERHEAD + len(frame.payload or b"") for frame in self._held)

    @property
    def paused(self) -> bool:
        """Whether the link is not read at the caller's wish."""
        return self._paused

    @property
    def pending(self) -> int:
        """Messages accepted and not yet reported."""
        return (
            self._pipeline.accepted
            - self._pipeline.reported
            + sum(count for count, _ in self._sent)
        )

    @property
    def slots_available(self) -> int:
        """Free slots now."""
        return self._pipeline.available

    @property
    def slots_pending(self) -> int:
        """Slots that are filling or in flight."""
        return self._pipeline.pending

    def statistics(self) -> LinkStatistics:
        """Counters since the link opened."""
        pipeline = self._pipeline
        return LinkStatistics(
            pipeline.accepted,
            pipeline.accepted - self.pending,
            pipeline.frames,
            pipeline.payload_bytes,
            self._output.bytes_sent,
            self._output.write_calls,
            pipeline.refusals,
            pipeline.pending,
            pipeline.high_water,
            self._frames_received,
            self._payload_bytes_received,
            self._bytes_received,
            self._read_calls,
            self._ingest.partial_len,
            self._sync_sends,
        )

    # Sending

    def _send(self, type: int, payload: bytes | memoryview, flags: int) -> int:
        code = self._check(type, len(payload), flags)
        return code or self._accept(len(payload), self._put, type, payload, flags)

    def _check(self, type: int, payload_len: int, flags: int) -> int:
        """OK, or why no frame of this size can be sent on the link."""
        if self._state != LINK_OPEN:
            return ERR_NOT_CONNECTED
        most = self.max_message if type == DATA else FRAME_MAX_PAYLOAD
        fits = payload_len <= most or self._goes_wide(type, payload_len, flags)
        return 0 if fits else ERR_MESSAGE_TOO_LARGE

    def _goes_wide(self, type: int, payload_len: int, flags: int) -> bool:
        """Whether a frame goes in the wide form, which has no flags: a piece of a message never
        does."""
        return (
            type == DATA
            and self.max_message < payload_len <= self._wide_max
            and not flags & (FRAGMENT | BATCHED)
        )

    def _put(self, type: int, payload: bytes | memoryview, flags: int) -> int:
        """Give the pipeline a frame of a size that was checked."""
        payload_len = len(payload)
        if not self._goes_wide(type, payload_len, flags):
            return self._pipeline.send(type, payload, flags)
        no_delay = flags & NO_DELAY != 0
        return self._pipeline.send_slice(bytes(payload), 0, 0, payload_len, no_delay)

    def _accept(self, payload_len: int, put: Callable[..., int], *frame: Any) -> int:
        """Put a frame into the pipeline, where there is room or can be made some."""
        if self._state != LINK_OPEN:
            return ERR_NOT_CONNECTED
        pipeline = self._pipeline
        if self._output.blocked:
            pipeline.is_still = self._still_for_ms() >= STILL_MS
        code = put(*frame)
        if code == ERR_WOULD_BLOCK or code == ERR_NO_MEMORY:
            self._wanted = True
            if not self._make_room():
                return code if self._state == LINK_OPEN else ERR_NOT_CONNECTED
            pipeline.refusals -= 1  # the caller has not been refused yet
            code = put(*frame)
        if code < 0:
            return code
        no_delay = put == self._put and frame[2] & NO_DELAY != 0
        if put != self._put or self._goes_wide(frame[0], payload_len, frame[2]):
            return self._follow_up(payload_len // REFERRED_PART, at_once=no_delay)
        return self._follow_up(payload_len, at_once=self._is_prompt() or no_delay)

    def _follow_up(self, counted: int, *, at_once: bool = False) -> int:
        dirty, output = self._loop._dirty, self._output
        hints = self._loop._count(counted, many=self._pipeline.more)
        was_blocked, was_asked = output.blocked, self in dirty
        if at_once or self._pipeline.is_ripe():
            self._push()
        if at_once and not was_asked and self._has_left():
            del dirty[self]
            self._loop._tell_by_and_by(self)
            return hints | LEFT
        if not was_blocked:  # else it is pushed when it becomes ready
            dirty[self] = None
        return hints | (NEEDS_TURN if self in dirty and not was_asked else 0)

    def _make_room(self) -> bool:
        """Move what is there for a frame that was refused. Returns whether it is worth trying
        again."""
        if self._output.blocked:
            return False
        before = self._pipeline.pending
        self._push()
        if self._state != LINK_OPEN:
            self._loop.wake()  # the caller heard no hint, and must yet hear of the end
            return False
        return self._pipeline.pending < before

    def _still_for_ms(self) -> int:
        """For how long nothing of what waits has left."""
        return self._loop._ticks - self._moved

    def _push(self) -> None:
        """Launch every filling slot, write as far as the system takes it, and free what is done."""
        output = self._output
        if self._state == LINK_ENDED or self._fault is not None or output.blocked:
            return
        waits, sent = bool(output.unsent), output.bytes_sent
        for left in range(PUSH_SLICES - 1, -1, -1):
            output.launch()
            self._move(output.write_blocking if self._loop._plain else output.write)
            if output.blocked or not left or not self._feed():
                break
        if self._departs is not None and self._state == LINK_OPEN:
            output.blocked = True  # others have their turn, and the system says when ours comes
            self._update_interest()
        if not waits or output.bytes_sent != sent:
            self._moved = self._loop._ticks
            self._pipeline.is_still = False

    def _move(self, write: Callable[[], None]) -> None:
        """Write what is in flight, and see to what comes of it."""
        try:
            write()
        except DrainTimeout:
            self._end(ERR_TIMEOUT, 0)
        except OSError as error:
            self._break(*network_fault(error))
        self._harvest()
        self._finish()
        self._update_interest()

    def _harvest(self) -> None:
        """Free the slots that are done, and remember what to report: one SENT for each run of slots
        with the same result."""
        told = self._next_done()
        while told is not None:
            if told[0] and told[1] == 0:
                if self._state == LINK_ENDED:
                    self._unconfirmed += told[0]
                else:
                    self._output.note_sent(self._loop._turns, told[0])
            if self._sent and self._sent[-1][1] == told[1]:
                told = (self._sent.pop()[0] + told[0], told[1])
            self._sent.append(told)
            self._loop._dirty[self] = None
            told = self._next_done()

    def _finish(self) -> None:
        """End our half of the stream when all has left, and the link when both halves are ended."""
        if self._state != LINK_SHUT or self._fault is not None or self._pipeline.pending:
            return
        self._output.finish()
        if self._read_ended:
            self._end(0, 0)

    def _break(self, code: int, system_error: int) -> None:
        """Writing is over. What the other side sent before the break is read before the link
        ends."""
        if code != ERR_CONNECTION_CLOSED or self._read_ended:
            self._end(code, system_error)
            return
        self._state = LINK_SHUT
        self._fault = (code, system_error)
        self._output.blocked = False

    # Both

    def _is_read(self) -> bool:
        return not (self._paused or self._starved or self._read_ended or self._state == LINK_ENDED)

    def _starve(self) -> None:
        """There is no room for the frame that has begun: read nothing until there is."""
        self._starved = True
        self._update_reading()

    def _go_on(self) -> None:
        """There is room."""
        self._starved = False
        self._update_reading()

    def _update_reading(self) -> None:
        if self._state != LINK_ENDED:
            self._update_frame_timer(False)
            self._update_interest()
            if self._held and self._is_read():
                self._loop._holding[self] = None

    def _update_frame_timer(self, restart: bool) -> None:
        """The partial-frame time-out runs while a frame has begun and the link is read."""
        if not self._is_read() or not self._ingest.partial_len:
            self._loop._cancel(self._frame_key)
        elif restart or self._frame_key not in self._loop._timers:
            self._loop._arm(self._frame_key, self, self._frame_timeout)

    def _update_interest(self) -> None:
        if self._state != LINK_ENDED:
            self._want((READ if self._is_read() else 0) | (WRITE if self._output.blocked else 0))

    def _end(self, code: int, system_error: int) -> None:
        """The link is over: no more reading and writing, and CLOSED is due."""
        if self._state == LINK_ENDED:
            return
        self._unconfirmed = self._output.count_unconfirmed()
        self._state = LINK_ENDED
        self._end_cause = (code, system_error)
        self._finish_due = False
        self._output.blocked = False
        self._want(0)
        self._loop._cancel(self._frame_key)
        self._ingest.close()
        self._landings.close()
        self._loop._landing.leave(self)
        self._loop._landing.let_land(self)
        self._held.clear()
        self._loop._holding.pop(self, None)
        self._loop._dirty[self] = None

    def _report(self, tail: list[Event]) -> None:
        """What has become of the link since the last turn."""
        for told in self._sent:
            tail.append((SENT, self.tag, *told))
        self._sent.clear()
        if self._finish_due:
            self._finish_due = False
            tail.append((FINISHED, self.tag, 0, 0))
        if self._end_cause is not None:
            tail.append((CLOSED, self.tag, *self._end_cause))
            self._end_cause = None
