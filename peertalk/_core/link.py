"""What a loop of a compiled core serves: links, watches and timers. Their C memory is their own;
the loop keeps it alive while C points into it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from peertalk import errors
from peertalk._core.binding import Binding, Data
from peertalk._core.handles import slot_shape
from peertalk._core.pool import BufferPool
from peertalk._core.values import DATA, LinkStatistics

MAX_DELAY_MS = 2**31 - 10_000
"""The wheel's reach, 24.8 days, less the time since the last turn."""


class Home(Protocol):
    """What a link, a watch and a timer use of their loop."""

    _binding: Binding
    _ffi: Any
    _lib: Any
    _ops: Any
    pool: BufferPool
    _context: Any
    _memory: tuple[Any, ...]
    _abandoned: list[Any]
    _links: dict[Link, None]
    _watches: dict[Watch, None]
    _armed: dict[Timer, None]

    def _check_open(self) -> None: ...
    def _hold(self, timer: Timer) -> None: ...


class Watch:
    """A foreign descriptor; a turn reports (READY, tag, mask, 0) as long as it is ready for what is
    wanted."""

    def __init__(self, loop: Home, fd: int, tag: int, interest: int) -> None:
        self._loop = loop
        self._lib = loop._lib
        self.tag = tag
        self._watch: Any = loop._ffi.new("pt_watch *")
        loop._watches[self] = None
        try:
            code = self._lib.pt_watch_open(loop._context, self._watch, fd, tag, interest)
            if code != 0:
                raise loop._binding.fault(code, f"descriptor {fd} cannot be watched")
        except BaseException:
            self.close()
            raise

    def set(self, interest: int) -> None:
        """Change what is wanted: a sum of READ and WRITE, or 0.

        Raises:
            InvalidState: the watch is closed.
        """
        if self._watch is None:
            raise errors.InvalidState("this watch is closed")
        code = self._lib.pt_watch_set(self._loop._context, self._watch, interest)
        if code != 0:
            raise self._loop._binding.fault(code, f"a watch for {interest}")

    def close(self) -> None:
        """Forget the descriptor, which stays the caller's. Idempotent."""
        if self._watch is not None:
            self._lib.pt_watch_close(self._loop._context, self._watch)
            self._loop._watches.pop(self, None)
            self._watch = None


class Timer:
    """Expires once after arm(), as (TIMER, tag, 0, 0)."""

    def __init__(self, loop: Home, tag: int) -> None:
        self._loop = loop
        self._lib = loop._lib
        self.tag = tag
        self._timer = loop._ffi.new("pt_timer *")
        self._timer.tag = tag

    def arm(self, delay: float) -> None:
        """Expire delay seconds from now, rounded up to milliseconds; 0 or less: at the next turn.
        Arming again moves it.

        Raises:
            InvalidState: the loop is closed.
        """
        self._loop._check_open()
        delay_ms = math.ceil(min(max(0.0, delay * 1000), MAX_DELAY_MS))
        self._loop._hold(self)  # before the wheel has it, which a signal handler may prevent after
        self._lib.pt_loop_arm(self._loop._context, self._timer, delay_ms)

    def cancel(self) -> None:
        """Never expire. Nothing happens when it is not armed."""
        self._lib.pt_loop_cancel(self._loop._context, self._timer)
        self._loop._armed.pop(self, None)

    @property
    def armed(self) -> bool:
        """Whether it will expire."""
        return bool(self._lib.pt_timer_is_armed(self._timer))


class Link:
    """One connection: what is sent waits in a pipeline, what arrives is cut into frames. Made by
    Loop.open_link().

    There is one for each idle peer, so it holds little: what its loop has is asked there.

    Attributes:
        native: what is called once a message: its send, send_many and send_frame are those of this
            link. It owns the memory, and outlives this object as long as somebody holds it.
    """

    __slots__ = ("_loop", "native")

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
        self._loop = loop
        lib, ffi = loop._lib, loop._ffi
        classic = loop._ops.classic
        depth, slot_size = _shape(lib, classic, loop.pool.largest, depth, slot_size)
        limit = lib.PT_FRAME_MAX_PAYLOAD
        if max_payload is not None and not 0 <= max_payload <= limit:
            raise errors.InvalidArgument(
                f"max_payload of {max_payload:,} bytes: a frame carries 0 to {limit:,}"
            )
        # classic drivers hold addresses of slots; others let them be borrowed
        slots = ffi.new("pt_send_slot[]", depth) if classic else ffi.NULL
        context = int(ffi.cast("uintptr_t", loop._context))
        owner = (loop._memory, slots) if classic else loop._memory
        self.native: Any = loop._binding.border.Link(context, owner)
        # Held before the loop knows it: an exception of a signal handler may strike anywhere.
        loop._links[self] = None
        try:
            code = lib.pt_link_open(
                loop._context,
                self._link,
                fd,
                tag,
                slots,
                depth,
                slot_size,
                packing,
                limit if max_payload is None else max_payload,
                lib.pt_message_format(wide),
            )
            if code != 0:
                raise loop._binding.fault(code, f"descriptor {fd} cannot become a link")
            if classic:
                self._link.max_message = min(self._link.max_message, lib.PT_MESSAGE_MAX_PAYLOAD)
        except BaseException:
            self.close()
            raise

    @property
    def _link(self) -> Any:
        """Its pt_link, made anew each time: what is called for each message does not need it."""
        return self._loop._ffi.cast("pt_link *", self.native.address)

    @property
    def send(self) -> Callable[[Data], int]:
        """send(payload) accepts one DATA frame. Returns a sum of hints (0 or more): NEEDS_TURN, the
        first since the last turn, which a turn is to send at the end of this tick; YIELD, a turn
        should come before more; LEFT, it has left, and the next turn says so, whenever that is. Or
        with nothing changed ERR_WOULD_BLOCK (every slot is taken), ERR_NO_MEMORY,
        ERR_MESSAGE_TOO_LARGE (longer than max_message), ERR_NOT_CONNECTED (the link is not open),
        ERR_INVALID_STATE (the loop is another thread's). TypeError: payload is no contiguous buffer
        of bytes."""
        send: Callable[[Data], int] = self.native.send
        return send

    @property
    def send_many(self) -> Callable[..., tuple[int, int]]:
        """send_many(payloads, start=0) accepts payloads[start:], a list, in order until one is
        refused: (how many were accepted, the refusal or the sum of the hints seen). A wrong type is
        a TypeError where it comes first, else the refusal ERR_INVALID_PARAM."""
        many: Callable[..., tuple[int, int]] = self.native.send_many
        return many

    def send_frame(self, type: int, payload: Data = b"", flags: int = 0) -> int:
        """Accept one frame of any type; NO_DELAY makes it leave at once. Returns what send()
        returns, or ERR_INVALID_PARAM for a type or flags out of range."""
        return int(self.native.send_frame(type, payload, flags))

    def send_sync(self, payload: Data, flags: int = 0) -> int:
        """As send(), but where that says that every slot is taken, and always where the platform
        writes each slot by itself, wait until all are free, at most 5 s, and then send this one
        alone, with 5 s of its own: nothing is overtaken. Other threads may run meanwhile; the loop
        is not theirs.

        Returns:
            What send() returns; ERR_TIMEOUT: the slots did not come free in time, with nothing
            changed.
        """
        view = self._loop._binding.flat(payload)
        if self.max_message < len(view) <= self.wide_max:
            code = self.send_frame(DATA, payload, flags)
            if code == self._loop._lib.PT_ERR_WOULD_BLOCK:
                code = self.drain() or self.send_frame(DATA, payload, flags)
            return code
        if not 0 <= flags <= 0xFF:
            return int(self._loop._lib.PT_ERR_INVALID_PARAM)
        return int(
            self._loop._lib.pt_link_send_sync(
                self._loop._context, self._link, DATA, flags, view, len(view)
            )
        )

    def drain(self) -> int:
        """Wait until every slot is free, at most 5 s. Serves nobody else. Returns OK,
        ERR_TIMEOUT, or ERR_NOT_CONNECTED: the link is not open (any more)."""
        return int(self._loop._lib.pt_link_drain(self._loop._context, self._link))

    def pause(self) -> None:
        """Stop reading. Neither silence nor the partial-frame time-out counts until resume()."""
        self._loop._lib.pt_link_pause(self._loop._context, self._link)

    def resume(self) -> None:
        """Go on reading; what waited is read before a hang-up of the other side counts."""
        self._loop._lib.pt_link_resume(self._loop._context, self._link)

    def shut(self) -> None:
        """Accept no more, and end our half of the stream when all slots have left."""
        self._loop._lib.pt_link_shut(self._loop._context, self._link)

    def close(self) -> None:
        """Leave the loop and give the memory back; the descriptor stays the caller's.
        Idempotent."""
        if self in self._loop._links:
            if self._loop._lib.pt_link_close(self._loop._context, self._link):
                self._loop._abandoned.append((self._link, self.native))
            del self._loop._links[self]

    def move(self, to: Home) -> bool:
        """Go to another worker of the same home, with all that it is, owes and has brought. False:
        it is there, or not now, since it has ended, or what a worker has kept must be taken
        first.

        Raises:
            InvalidState: that one is closed, or they are another thread's. OutOfMemory,
                PlatformError. Nothing has changed.
        """
        to._check_open()
        before, lib = self._loop, self._loop._lib
        if to is before:
            return False
        to._links[self] = None  # whatever strikes between: each loop ends all that it may have
        try:
            address = int(self._loop._ffi.cast("uintptr_t", to._context))
            code = self.native.move(address, to._memory, self, to)
        finally:
            (to if self._loop is before else before)._links.pop(self, None)
        if code in (lib.PT_ERR_BUSY, lib.PT_ERR_NOT_CONNECTED):
            return False
        if code != 0:
            raise self._loop._binding.fault(code, "a link cannot go to another worker")
        return True

    @property
    def tag(self) -> int:
        """The number that its events carry."""
        return int(self._link.source.tag)

    @property
    def max_message(self) -> int:
        """Longest payload of a DATA frame that may be sent now, in bytes; set it to what the other
        side takes."""
        return int(self.native.max_message)

    @max_message.setter
    def max_message(self, value: int) -> None:
        self._link.max_message = self._loop._binding.limited("max_message", value, 0xFFFFFFFF)

    # Large messages

    @property
    def wide_max(self) -> int:
        """Longest payload of a message that send(), send_many() and send_frame() put into one wide
        frame, in bytes; 0 at first: none. Set it to what the other side takes: more than slice_max
        sets slice_max."""
        return int(self.native.wide_max)

    @wide_max.setter
    def wide_max(self, value: int) -> None:
        value = self._loop._binding.limited("wide_max", value, 0xFFFFFFFF)
        self._link.wide_max = min(value, self.slice_max)

    @property
    def slice_max(self) -> int:
        """Longest slice of a message in one wide frame, in bytes: where the platform sends what a
        slot refers to 262,144, else what fits a slot."""
        return int(self.native.slice_max)

    @property
    def referred(self) -> int:
        """Bytes of payloads that slots refer to and the system has not taken."""
        return int(self.native.referred)

    def send_slice(self, payload: bytes, id: int, offset: int, size: int) -> int:
        """Accept size bytes of a large message from offset on, in one wide frame, which keeps the
        message until they have left. The slice that ends the message counts as the message.

        Returns:
            What send() returns; ERR_INVALID_PARAM: no such part; ERR_MESSAGE_TOO_LARGE: more than
            slice_max.
        """
        return int(self.native.send_slice(payload, id, offset, size))

    def depart(self, payload: bytes, id: int, offset: int) -> int:
        """Send a large message from offset on in slices, each when those before it have left and a
        slot beside it is free. The slice that ends the message counts as the message.

        Returns:
            What send() returns, but never ERR_WOULD_BLOCK; ERR_INVALID_PARAM: no such part, or id
            0; ERR_INVALID_STATE: another one departs.
        """
        return int(self.native.depart(payload, id, offset))

    @property
    def departing(self) -> int:
        """Bytes of what depart() was given that no slot has taken; 0: nothing departs."""
        return int(self.native.departing)

    def recall(self) -> int:
        """Send no more of what departs than slots have taken. Returns what departing was."""
        return int(self.native.recall())

    def send_wide(self, type: int, id: int, total: int = 0, reason: int = 0) -> int:
        """Accept one FRAME_OFFER, FRAME_GRANT or FRAME_REFUSE. Returns what send() returns."""
        return int(self.native.send_wide(type, id, total, reason))

    def expect(self, id: int, total: int) -> int:
        """Make memory for a message of total bytes that comes in slices: when it is whole a turn
        reports (FRAME, tag, DATA | LANDED << 8 | id << 24, message), and the id is forgotten.

        Returns:
            OK; ERR_NO_MEMORY; ERR_INVALID_PARAM: id or total is 0, or total above 2^31 - 1;
            ERR_INVALID_STATE: the id is expected already; ERR_NOT_CONNECTED: the link has ended.
        """
        return int(self.native.expect(id, total))

    def forgo(self, id: int) -> None:
        """Give the memory of an expected message back: slices that still come are dropped."""
        self.native.forgo(id)

    def forget(self, id: int) -> None:
        """As forgo(), and a slice that still comes is a fault."""
        self.native.forget(id)

    def landed(self, id: int) -> int:
        """Bytes of an expected message that have come; -1: it is not expected, or forgone."""
        return int(self.native.landed(id))

    @property
    def unconfirmed(self) -> int:
        """How many of the DATA frames that were reported as sent, the last ones, are not known to
        be acknowledged by the other side's system: whole writes, and more rather than less. Of an
        ended link, what was so at its end; 0 of a closed one, where a sent frame is an acknowledged
        one, and where the system does not tell. A system call."""
        return int(self._loop._lib.pt_link_unconfirmed(self._loop._context, self._link))

    @property
    def frame_timeout(self) -> float:
        """Seconds within which a frame that has begun must be whole, or the link ends; 5 at first.
        Set it to allow more or less, also for a frame that has begun."""
        return int(self._link.frame_timeout_ms) / 1000

    @frame_timeout.setter
    def frame_timeout(self, seconds: float) -> None:
        timeout_ms = math.ceil(min(max(0.001, seconds) * 1000, MAX_DELAY_MS))
        self._loop._lib.pt_link_set_frame_timeout(self._loop._context, self._link, timeout_ms)

    @property
    def read_max(self) -> int:
        """Bytes that one read brings at most, 1 or more; at first, and with 2**32 - 1, as many as a
        turn has room for. Set it to hear who somebody is before much of what he says is taken."""
        return int(self._link.read_max)

    @read_max.setter
    def read_max(self, value: int) -> None:
        read_max = max(1, self._loop._binding.limited("read_max", value, 0xFFFFFFFF))
        self._loop._lib.pt_link_set_read_max(self._loop._context, self._link, read_max)

    def answer_pings(self, answers: bool) -> None:
        """On a worker: whether PINGs of this link are answered there, and told to nobody."""
        self._loop._lib.pt_link_set_answers(self._loop._context, self._link, answers)

    @property
    def held_bytes(self) -> int:
        """Bytes that were read and are taken apart in later turns: the system does not count them
        as unread any more. Not those of a frame whose rest has not come."""
        return int(self._counts().held_len)

    @property
    def paused(self) -> bool:
        """Whether the link is not read at the caller's wish."""
        return bool(self._counts().unread & self._loop._lib.PT_UNREAD_PAUSED)

    @property
    def pending(self) -> int:
        """Messages accepted and not yet reported."""
        return int(self._counts().pending)

    def settle(self) -> int:
        """Messages that have left and were not reported, told by this call alone. For a link that
        is to be closed."""
        open = self in self._loop._links
        return int(self._loop._lib.pt_link_settle(self._loop._context, self._link)) if open else 0

    @property
    def slots_available(self) -> int:
        """Free slots now."""
        return int(self._loop._lib.pt_link_slots_available(self._loop._context, self._link))

    @property
    def slots_pending(self) -> int:
        """Slots that are filling or in flight."""
        return int(self._counts().slots_pending)

    def _counts(self) -> Any:
        counts = self._loop._ffi.new("pt_link_counts *")
        self.native.count(int(self._loop._ffi.cast("uintptr_t", counts)))
        return counts

    def statistics(self) -> LinkStatistics:
        """Counters since the link opened."""
        counts = self._counts()
        return LinkStatistics(
            counts.accepted,
            counts.accepted - counts.pending,
            counts.frames_sent,
            counts.payload_sent,
            counts.sent_bytes,
            counts.write_calls,
            counts.refusals,
            counts.slots_pending,
            counts.high_water,
            counts.frames_received,
            counts.payload_received,
            counts.received_bytes,
            counts.read_calls,
            counts.partial_len,
            counts.sync_sends,
        )


def _shape(
    lib: Any, classic: bool, largest: int, depth: int | None, slot_size: int | None
) -> tuple[int, int]:
    """Depth and slot size of a link with their defaults, held against their bounds. largest: bytes
    of the largest buffer that its pool lends."""
    if classic:
        depth = lib.PT_SEND_PIPELINE_DEPTH if depth is None else depth
        slot_size = lib.PT_SLOT_BUFFER_SIZE if slot_size is None else slot_size
    depth, slot_size = slot_shape(lib, depth, slot_size)
    if slot_size > largest:
        raise errors.InvalidArgument(
            f"slot_size of {slot_size:,} bytes: the pool's largest class has {largest:,}"
        )
    return depth, slot_size
