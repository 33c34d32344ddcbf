"""One turn of waiting and working, on the standard selectors: what the C loop does, said plainly.

A turn pushes what was queued, looks for readiness, serves at most io_budget sources, reports
finished sends, and expires timers. A source that was not served keeps its place and comes first in
the next turn. Everything but Loop.wake() belongs to one thread.

Never: calls back, or blocks in a turn.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from peertalk import errors
from peertalk._core.reference import read
from peertalk._core.reference.landing import LandingRoom
from peertalk._core.reference.link import Link
from peertalk._core.reference.pool import BufferPool
from peertalk._core.reference.reassembly import Reassembly
from peertalk._core.reference.source import Event, Source, Timer, Watch
from peertalk._core.reference.wheel import TimerWheel
from peertalk._core.values import (
    READ,
    READY,
    STILL,
    TIMER,
    YIELD,
    LoopStatistics,
)
from peertalk._numbers import (
    FRAME_MAX_PAYLOAD,
    FRAME_OVERHEAD,
    IO_BUDGET,
    IO_BUDGET_MAX,
    LINK_MAX_WORK,
    POOL_REST_MS,
    POSIX_SLOT_SIZE,
    RECEIVE_BUFFER_SIZE,
    TELL_MS,
    TURN_MANY_BYTES,
    TURN_MAX_BYTES,
    TURN_MAX_MESSAGES,
    TURN_MAX_WORK,
)

_PollSelector = getattr(selectors, "PollSelector", selectors.SelectSelector)
MAX_DELAY_MS = 2**31 - 10_000
"""The wheel's reach, 24.8 days, less the time since the last turn."""
POOL_CLASSES = [
    (256, 65_535),
    (1_040, 65_535),
    (4_112, 65_535),
    (FRAME_MAX_PAYLOAD + FRAME_OVERHEAD, 65_535),
    (POSIX_SLOT_SIZE, 65_535),
]
"""Buffer sizes and how many of each may exist; the byte budget is the bound that matters."""


def loop_pool(pool_bytes: int = 64 << 20, links: int = 0, loops: int = 1) -> BufferPool:
    """A pool with the sizes that loops borrow, for one loop or several.

    Args:
        pool_bytes: bytes that the larger buffers of links in bulk may hold together, beside the
            share of each link.
        links, loops: ignored here.

    Raises:
        InvalidArgument: pool_bytes is not at least 1.
    """
    if pool_bytes < 1:
        raise errors.InvalidArgument(
            f"pool_bytes of {pool_bytes}: slots and staging buffers need some"
        )
    return BufferPool(POOL_CLASSES, pool_bytes)


class Loop:
    """The engine of the reference core; the same surface as the C loop.

    Args:
        io_budget: ready sources served in one turn, 1 to 1,024.
        pool: lends what the links need. Several loops may have one pool, each on a thread of its
            own; the pool lives for as long as one of them does. None: a pool of its own.
        platform: "posix", or "posix_plain" where each slot is written by a blocking send.
        epoll: False takes poll(2) and leaves fd at -1.

    Raises:
        InvalidArgument: an argument out of its bounds; a pool of another core, or whose buffers
            are too small.
        InvalidState: the pool is closed.
    """

    def __init__(
        self,
        *,
        io_budget: int = IO_BUDGET,
        pool: BufferPool | None = None,
        platform: str = "posix",
        epoll: bool = True,
    ) -> None:
        _check(io_budget, platform)
        self._io_budget = io_budget
        self._plain = platform == "posix_plain"
        self._buffer = memoryview(bytearray(RECEIVE_BUFFER_SIZE))
        self.pool = loop_pool() if pool is None else pool
        _check_pool(self.pool)
        self._spare = BufferPool([(FRAME_MAX_PAYLOAD + FRAME_OVERHEAD, 65_535)])
        self._landing = LandingRoom()
        self._open(epoll)
        self.fd: int = (
            self._selector.fileno() if epoll and hasattr(self._selector, "fileno") else -1
        )
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector.register(self._wake_in, READ, None)
        self._work_left = 0
        self._holding: dict[Link, None] = {}
        self._ready: dict[Source, int] = {}
        self._dirty: dict[Link, None] = {}
        self._left: dict[Link, None] = {}  # that have only to say what has left
        self._left_since = 0
        self.tells_late = False
        """Set it to have what has left by itself (LEFT) told within 50 ms, and not each turn."""
        self._links: dict[Link, None] = {}
        self._woken = False
        self._closed = False
        self.move_here()
        self._turn_messages = 0
        self._turn_bytes = 0
        self._turns = 0
        self._wait_calls = 0
        self._crc_errors = 0
        self._bad_frames = 0
        self._ticks = _clock()
        self._wheel = TimerWheel(self._ticks)
        self._timers: dict[int, Timer | Link | None] = {}
        self._keys = itertools.count(1)
        self._door = self.pool.join()
        self._pool_key = self._next_key()
        self._pool_acquires = 0

    def _open(self, epoll: bool) -> None:
        """What may fail and must be undone."""
        try:
            with contextlib.ExitStack() as undo:
                self._selector: selectors.BaseSelector = undo.enter_context(
                    selectors.DefaultSelector() if epoll else _PollSelector()
                )
                self._wake_in, self._wake_out = socket.socketpair()
                undo.pop_all()
        except OSError as error:
            raise errors.PlatformError(
                f"a loop needs three descriptors: {os.strerror(error.errno or 0)}"
            ) from error

    # Making things

    def open_link(
        self,
        fd: int,
        tag: int,
        *,
        depth: int | None = None,
        slot_size: int | None = None,
        packing: bool = True,
        max_payload: int | None = None,
        wide: bool = False,
    ) -> Link:
        """Take over a connected, non-blocking descriptor, which stays the caller's.

        Args:
            tag: the caller's number; comes back in every event of this link.
            depth: slots, 1 to 64; None: 4.
            slot_size: bytes of a slot; None: 65,520.
            packing: small frames share a slot.
            max_payload: longer frames from the other side end the link; None: 8,192 bytes.
            wide: wide frames, up to 262,144 bytes, are understood; else one ends the link.

        Raises:
            InvalidArgument, OutOfMemory, PlatformError: nothing has changed.
        """
        self._check_open()
        if max_payload is not None and not 0 <= max_payload <= FRAME_MAX_PAYLOAD:
            raise errors.InvalidArgument(
                f"max_payload of {max_payload:,} bytes: a frame carries 0 to {FRAME_MAX_PAYLOAD:,}"
            )
        link = Link(self, fd, tag, depth, slot_size, packing, max_payload, wide)
        self._links[link] = None
        return link

    def reassembly(self, limit: int) -> Reassembly:
        """A reassembly of messages of up to limit bytes, whose memory is that of this loop's
        pool."""
        self._check_open()
        return Reassembly(limit, self.pool)

    def watch(self, fd: int, tag: int, interest: int) -> Watch:
        """Report readiness of a foreign descriptor as (READY, tag, mask, 0), level-triggered.

        Raises:
            InvalidArgument, PlatformError: the descriptor cannot be watched.
        """
        self._check_open()
        return Watch(self, fd, tag, interest)

    def timer(self, tag: int) -> Timer:
        """A timer, not armed, that reports (TIMER, tag, 0, 0) on expiry; tag: the caller's number.

        Raises:
            InvalidState: the loop is closed.
        """
        self._check_open()
        return Timer(self, tag)

    # Turning

    def turn(self, timeout: float | None = 0.0, events: list[Event] | None = None) -> list[Event]:
        """One turn, after a wait for something to do if it may wait.

        Args:
            timeout: seconds; 0: never blocks; None: no end. What has left already (see Link.send)
                ends no wait.
            events: a list to append them to; None: a new one.

        Returns:
            That list, of tuples (kind, tag, a, b), frames first, those of one link in the order of
            its stream:
            (BATCH, tag, payload bytes, payloads), (FRAME, tag, type | flags << 8 | sequence << 16,
            payload),
            (SENT, tag, messages, code), (FINISHED, tag, 0, 0), (CLOSED, tag, code, system error),
            (READY, tag, mask, 0), (TIMER, tag, 0, 0), (STILL, tag, milliseconds, 0): memory is
            scarce, and of all links this one has sent nothing of what waits in it for the longest.
            A control frame without payload that comes again at once is told once.

        Raises:
            InvalidState: the loop is closed, or another thread's (see move_here()).
        """
        self._check_open()
        if threading.get_ident() != self._owner:
            raise errors.InvalidState("a turn of a loop that is another thread's")
        if events is None:
            events = []
        if timeout != 0 and not self._woken:  # a turn without waiting may have met the wake
            self._wait(timeout)
        self._woken = False
        events += self._turn()
        return events

    def _turn(self) -> list[Event]:
        self._turns += 1
        self._turn_messages = 0
        self._turn_bytes = 0
        events: list[Event] = []
        tail: list[Event] = []
        for link in list(self._dirty):
            link._push()
        if not self._ready:
            self._poll(0)
        self._work_left = TURN_MAX_WORK
        alone = len(self._readers()) < 2
        holding, self._holding = self._holding, {}
        for link in holding:
            if link._is_read():  # else it comes back when it is read again
                read.hand_on(
                    link, events, min(self._work_left, TURN_MAX_WORK if alone else LINK_MAX_WORK)
                )
        for _ in range(self._io_budget):
            if not self._ready or self._work_left <= 0:
                break
            source = next(iter(self._ready))
            mask = self._ready.pop(source) & source._interest
            if isinstance(source, Link):
                read.serve(source, mask if source not in holding else mask & ~READ, events, alone)
            elif mask:
                tail.append((READY, source.tag, mask, 0))
        self._expire(events, tail)
        if self._links and self._door.acquires != self._pool_acquires:
            if self._pool_key not in self._timers:
                self._arm(self._pool_key, None, POOL_REST_MS / 1_000)
        if not self.tells_late or self._ticks - self._left_since >= TELL_MS:
            self._dirty.update(self._left)
            self._left.clear()
        reported, self._dirty = self._dirty, {}
        for link in reported:
            link._report(tail)
        events += tail
        return events

    def _readers(self) -> set[Link]:
        """Links that have something to read, as far as is known."""
        ready = (
            source
            for source, mask in self._ready.items()
            if isinstance(source, Link) and mask & source._interest & READ
        )
        return {*ready, *self._holding}

    def _poll(self, timeout: float | None) -> None:
        """Ask the selector, and remember what is ready; later ones stand behind."""
        self._wait_calls += 1
        for key, mask in self._selector.select(timeout):
            if key.data is not None:
                self._ready[key.data] = mask
                continue
            self._woken = True
            try:
                while len(self._wake_in.recv(4_096)) == 4_096:
                    pass
            except BlockingIOError:
                pass

    def _wait(self, timeout: float | None) -> None:
        due = self.next_timeout()
        if due is not None:
            timeout = due if timeout is None else min(timeout, due)
        # poll() counts milliseconds and rounds in its own way: never wait for less than what is
        # left of one.
        self._poll(
            timeout if timeout is None else math.ceil(min(timeout * 1000, MAX_DELAY_MS)) / 1000
        )

    def next_timeout(self) -> float | None:
        """Seconds until a turn is needed though nothing becomes ready; 0.0 when there is work now,
        None when there is no timer."""
        if not self._closed and (self._dirty or self._ready or self._holding):
            return 0.0
        ticks = self._wheel.next()
        return None if ticks is None else max(0, ticks - (_clock() - self._ticks)) / 1000

    def move_here(self) -> None:
        """The calling thread owns this loop and its links from now on: turns and sends of others
        are refused with ERR_INVALID_STATE. At first it is the thread that made the loop."""
        self._owner = threading.get_ident()

    def disown(self) -> None:
        """No thread owns this loop and its links until move_here()."""
        self._owner = 0

    def again(self, function: Callable[[], object], struck: list[None]) -> Callable[[], object]:
        """What calls function, and if that raises appends to struck and has a turn follow."""

        def call() -> None:
            try:
                function()
            except BaseException:
                struck.append(None)
                self.wake()
                raise

        return call

    def wake(self) -> None:
        """End a wait that runs, or the next one. Any thread; nothing happens when the loop is
        closed."""
        try:
            self._wake_out.send(b"\0")
        except OSError:
            pass  # full: it is woken already; closed: there is nobody to wake

    def descriptors(self) -> list[tuple[int, int]]:
        """(descriptor, READ | WRITE) of all that must be watched to know when a turn has something
        to do, the wake-up included."""
        return (
            []
            if self._closed
            else [(key.fd, key.events) for key in self._selector.get_map().values()]
        )

    # Counting and ending

    def statistics(self) -> LoopStatistics:
        """Counters since the loop opened."""
        return LoopStatistics(self._turns, self._wait_calls, self._crc_errors, self._bad_frames)

    def memory(self) -> dict[str, tuple[int, int]]:
        """Bytes of buffers now and at most so far; Python's own objects are not counted."""
        pool, size = self.pool.statistics(), len(self._buffer)
        parts = {"pools": (pool.bytes, pool.peak_bytes), "receive buffer": (size, size)}
        return {**parts, "total": (pool.bytes + size, pool.peak_bytes + size)}

    @property
    def landing_limit(self) -> int:
        """Payload bytes of unasked wide frames that may be under way on all links at once; at
        first, and with 2**32 - 1, any number. A link whose frame would go beyond is not read until
        there is room; one frame is always let in."""
        return self._landing.limit

    @landing_limit.setter
    def landing_limit(self, limit: int) -> None:
        self._landing.limit = limit

    def close(self) -> None:
        """Close links and forget everything. Idempotent."""
        if self._closed:
            return
        for link in list(self._links):
            link.close()
        for each in list(self._selector.get_map().values()):
            if isinstance(each.data, Watch):
                each.data.close()
        for key in list(self._timers):
            self._cancel(key)
        self._closed = True
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()
        self._ready.clear()
        self._door.leave()
        self.fd = -1

    def orphan(self) -> None:
        """In a forked child: give this process's copies of the descriptors and the memory back.
        Nothing is written, and the epoll set, which is the parent's too, is not changed."""
        if not self._closed:
            self._selector.close()
            self._selector = _Forgetful()
            self.pool._lock = threading.Lock()  # another thread of the parent may have had it
        self.close()

    def _count(self, payload_len: int, *, many: bool) -> int:
        """Note a frame that was accepted, by one call for many or not. Returns YIELD, or 0."""
        self._turn_messages += 1
        self._turn_bytes += payload_len
        most = TURN_MANY_BYTES if many else TURN_MAX_BYTES
        over = self._turn_messages >= TURN_MAX_MESSAGES or self._turn_bytes >= most
        return YIELD if over else 0

    def _tell_by_and_by(self, link: Link) -> None:
        if not self._left:
            self._left_since = self._ticks
        self._left[link] = None

    def _check_open(self) -> None:
        if self._closed:
            raise errors.InvalidState("this loop is closed")

    def _forget(self, source: Source) -> None:
        self._ready.pop(source, None)
        if isinstance(source, Link):
            self._dirty.pop(source, None)
            self._left.pop(source, None)
            self._holding.pop(source, None)
            self._links.pop(source, None)
            if not self._links:
                self._cancel(self._pool_key)
                self._door.trim()

    # Timers

    def _next_key(self) -> int:
        return next(self._keys)

    def _arm(self, key: int, owner: Timer | Link | None, delay: float) -> None:
        delay_ms = min(max(0.0, delay * 1000), MAX_DELAY_MS)
        self._timers[key] = owner
        self._wheel.arm(key, math.ceil(time.monotonic() * 1000 + delay_ms))

    def _cancel(self, key: int) -> None:
        if key in self._timers:
            del self._timers[key]
            self._wheel.cancel(key)

    def _expire(self, events: list[Event], tail: list[Event]) -> None:
        self._ticks = _clock()
        self._wheel.advance(self._ticks)
        key = self._wheel.expire()
        while key is not None:
            owner = self._timers.pop(key)
            if isinstance(owner, Link):
                read.end_late_frame(owner, events)
            elif owner is None:
                self._look_at_pool(tail)
            else:
                tail.append((TIMER, owner.tag, 0, 0))
            key = self._wheel.expire()

    def _look_at_pool(self, tail: list[Event]) -> None:
        """While the pool is in use, once a second: give back what nobody needed since, and say who
        stands still if too little is left."""
        acquires = self._door.acquires
        rests = acquires == self._pool_acquires
        self._pool_acquires = acquires
        if rests:
            self._door.trim()
        scarce = self.pool.is_scarce()
        if scarce or not rests:
            self._arm(self._pool_key, None, POOL_REST_MS / 1_000)
        waiting = [link for link in self._links if link._output.blocked] if scarce else []
        if waiting:
            link = max(waiting, key=Link._still_for_ms)
            tail.append((STILL, link.tag, link._still_for_ms(), 0))


def _check_pool(pool: BufferPool) -> None:
    frame = FRAME_MAX_PAYLOAD + FRAME_OVERHEAD
    if not isinstance(pool, BufferPool):
        raise errors.InvalidArgument(f"pool {pool!r}: a loop takes a pool of its own core")
    if pool.closed:
        raise errors.InvalidState("this pool is closed: no loop opens with it any more")
    if pool.largest < frame:
        raise errors.InvalidArgument(
            f"pool whose largest class has {pool.largest:,} bytes: a frame may have {frame:,}"
        )


class _Forgetful(selectors.SelectSelector):
    """In place of a selector that another process goes on with: knows nothing of the system."""

    def unregister(self, fileobj: Any) -> Any:
        """There is nothing to undo."""

    def modify(self, fileobj: Any, events: int, data: Any = None) -> Any:
        """There is nothing to change."""


def _clock() -> int:
    """Milliseconds, monotonic."""
    return int(time.monotonic() * 1000)


def _check(io_budget: int, platform: str) -> None:
    if not 1 <= io_budget <= IO_BUDGET_MAX:
        raise errors.InvalidArgument(
            f"io_budget of {io_budget:,} sources: a turn serves 1 to {IO_BUDGET_MAX:,}"
        )
    if platform not in ("posix", "posix_plain"):
        raise errors.InvalidArgument(f"platform {platform!r}: there are 'posix' and 'posix_plain'")
