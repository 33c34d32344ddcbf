"""The engine of a compiled core: one turn of waiting and working, for the links, watches and timers
of one thread.

A turn is one native call that was bound to this loop when it was made: it keeps the GIL, and puts
its events into the caller's list. Only the wait between two turns gives the GIL up.

Invariant: what the context points into lives as long as the context: _memory has it, and each link
has _memory. Never: a callback from C, or a turn of another thread than the owner.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from peertalk import errors
from peertalk._core.binding import PLATFORMS, Binding, moved, simulation
from peertalk._core.handles import Reassembly
from peertalk._core.link import Link, Timer, Watch
from peertalk._core.pool import BufferPool, loop_pool, receive_memory
from peertalk._core.simulator import Host, Simulator
from peertalk._core.values import READ, WRITE, LoopStatistics

Event: TypeAlias = tuple[int, int, Any, Any]

EVENT_CAPACITY = 256
"""Events that one turn reports beside its frames, unless its budget needs more: 4 for each ready
source, and 4."""
POLL_SOURCES = 4_096
"""Links and watches that poll(2) waits for at most."""


class Loop:
    """The engine: links, watches and timers of one thread, and one turn of waiting and working.

    Args:
        io_budget: ready sources served in one turn, 1 to 1,024.
        pool: lends what the links need, by loop_pool() as a rule. Several loops may have one pool,
            each on a thread of its own; the pool lives for as long as one of them does. None: a
            pool of its own.
        platform: "posix", or "posix_plain" where each slot is written by a blocking send; "mactcp",
            "opentransport", and the same with "_sync", on a simulator, whose handles then take the
            place of descriptors.
        simulator: the network of a classic platform; of any compiled core.
        host: of that network, where this loop lives.
        push: classic platforms: small writes are not merged on the wire.
        send_limit: opentransport: bytes of one link that wait for acknowledgement before the flow
            is stopped; 0: the platform's.
        epoll: False takes poll(2) and leaves fd at -1.

    Attributes:
        fd: to be watched for reading by another loop: readable whenever a turn has something to do;
            -1 when there is none (see descriptors()).
        pool: what lends the links' memory: its counters, and the failures that a test injects.

    Raises:
        InvalidArgument: an argument out of its bounds; a pool of another core, or whose buffers
            are too small.
        InvalidState: the pool is closed.
        PlatformError: the system gave no descriptors.
    """

    _closed = True  # until all is made
    _workers: tuple[Any, ...] = ()
    """Those whose home this is, which end before it."""

    def __init__(
        self,
        binding: Binding,
        *,
        io_budget: int = 16,
        pool: BufferPool | None = None,
        platform: str = "posix",
        epoll: bool = True,
        simulator: Simulator | None = None,
        host: Host | None = None,
        push: bool = False,
        send_limit: int = 0,
    ) -> None:
        self._binding = binding
        self._ffi = ffi = binding.ffi
        self._lib = lib = binding.lib
        _check_bounds(lib, io_budget)
        self._ops = ops = _ops_for(binding, platform, simulator, host)
        self.platform = platform
        self.simulator = simulator
        self.host = host
        self._abandoned: list[Any] = []
        self.pool = loop_pool(binding) if pool is None else pool
        _check_pool(binding, self.pool)
        self._context = ffi.new("pt_context *")
        self._events = ffi.new("pt_event[]", max(EVENT_CAPACITY, 4 * io_budget + 4))
        self._ready = ffi.new("pt_source *[]", io_budget)
        receive_buffer = receive_memory(ffi, int(lib.PT_RECEIVE_BUFFER_SIZE))
        setup = self._setup(epoll, push, send_limit)
        self._platform: Any = ffi.new("uint64_t[]", (ops.size(setup) + 7) // 8)
        self._memory = (
            *self._parts(),
            self._context,
            self._platform,
            self.pool._memory,
            self.pool._account,
            receive_buffer,
            self._events,
            self._ready,
        )
        self._links: dict[Link, None] = {}
        self._peaks: dict[str, int] = {}
        self._watches: dict[Watch, None] = {}
        self._armed: dict[Timer, None] = {}
        self._armed_limit = 64
        self._wake_lock = threading.RLock()  # a signal handler may strike whoever has it
        self._turn: Callable[[list[Event]], int] = self._bind_turn()
        self._open(setup, receive_buffer)
        self._closed = False
        self.move_here()

    def _parts(self) -> tuple[Any, ...]:
        """What else has to live as long as the context."""
        return (self._lib,)

    def _setup(self, epoll: bool, push: bool, send_limit: int) -> Any:
        """What the platform is told of this loop."""
        ffi = self._ffi
        setup = ffi.new("pt_setup *")
        setup.max_sources = 0 if epoll else POLL_SOURCES
        if self.simulator is not None and self.host is not None:
            self._source = ffi.new("pt_memory *")
            self._lib.pt_posix_memory_source(self.pool._account, self._source)
            setup.memory = self._source
            setup.network = moved(simulation().ffi, self.simulator._open_sim(), ffi, "void *")
            setup.host = self.host.number
            setup.push = push
            setup.send_limit = self._binding.limited("send_limit", send_limit, 2**31)
        return setup

    def _open(self, setup: Any, receive_buffer: Any) -> None:
        """What may fail and must be undone: the descriptors of the platform, or its place on a
        network, then the context on top of them."""
        system_error = self._ffi.new("int32_t *")
        code = self._ops.init(self._platform, setup, system_error)
        if code != 0:
            raise errors.PlatformError(
                f"a loop needs two descriptors: {os.strerror(system_error[0])}", code=code
            )
        if self.simulator is not None:
            self.simulator._loops[self] = None
        code = self._lib.pt_context_init(
            self._context,
            self._ops,
            self._platform,
            self.pool._door,
            receive_buffer,
            len(receive_buffer),
            self._ready,
            len(self._ready),
        )
        if code != 0:
            self._end_platform()
            raise self._binding.fault(code, "a loop")
        self.fd: int = self._ops.descriptor(self._platform) if self._ops.descriptor else -1

    def _end_platform(self) -> None:
        """Give back what the platform holds; on a simulated network its driver lets go of every
        slot."""
        self._ops.cleanup(self._platform)
        if self.simulator is not None:
            self.simulator._loops.pop(self, None)
        self._abandoned.clear()

    def _bind_turn(self) -> Callable[[list[Event]], int]:
        """What makes one turn without waiting and appends its events: how many there are then, or a
        negative code."""
        context, events = (
            int(self._ffi.cast("uintptr_t", pointer)) for pointer in (self._context, self._events)
        )
        turn: Callable[[list[Event]], int] = self._binding.border.bind_loop(
            context, events, len(self._events), self._memory
        )
        return turn

    def move_here(self) -> None:
        """The calling thread owns this loop and its links from now on: turns and sends of others
        are refused with ERR_INVALID_STATE. At first it is the thread that made the loop."""
        self._owner = self._context.owner = threading.get_ident()

    def disown(self) -> None:
        """No thread owns this loop and its links until move_here()."""
        self._owner = self._context.owner = 0

    @property
    def landing_limit(self) -> int:
        """Payload bytes of wide frames that were not offered and may be under way at once on all
        links, at first 2^32 - 1, which a larger number counts as. Set it: a link whose frame would
        go beyond is not read until there is room. One frame may always."""
        return int(self._context.landing_limit)

    @landing_limit.setter
    def landing_limit(self, value: int) -> None:
        limit = self._binding.limited("landing_limit", min(value, 0xFFFFFFFF), 0xFFFFFFFF)
        self._context.landing_limit = limit

    @property
    def tells_late(self) -> bool:
        """Whether what has left by itself (LEFT) is told within 50 ms, and not by each turn."""
        return bool(self._context.tells_late)

    @tells_late.setter
    def tells_late(self, late: bool) -> None:
        self._context.tells_late = late

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
            tag: the caller's number, 0 to 2^32 - 1; comes back in every event of this link.
            depth: slots, 1 to 64; None: the core's number.
            slot_size: bytes of a slot; None: the core's size.
            packing: small frames share a slot.
            max_payload: longer frames from the other side end the link; None: the core's limit.
            wide: frames in the wide form are understood.

        Raises:
            InvalidArgument, OutOfMemory, PlatformError: nothing has changed.
        """
        self._check_open()
        return Link(self, fd, tag, depth, slot_size, packing, max_payload, wide)

    def reassembly(self, limit: int) -> Reassembly:
        """A reassembly of messages of up to limit bytes, whose memory is that of this loop's
        pool."""
        self._check_open()
        return Reassembly(self._binding, limit, self.pool)

    def watch(self, fd: int, tag: int, interest: int) -> Watch:
        """Report readiness of a foreign descriptor as (READY, tag, mask, 0), level-triggered.

        Raises:
            InvalidArgument, OutOfMemory, PlatformError: the descriptor cannot be watched.
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

    def _hold(self, timer: Timer) -> None:
        """Keep the memory of a timer that is about to be armed; let go of expired ones now and
        then."""
        if len(self._armed) >= self._armed_limit:
            self._armed = {each: None for each in self._armed if each.armed}
            # twice what is left, so that looking through all costs O(1) for each timer armed
            self._armed_limit = 2 * len(self._armed) + 64
        self._armed[timer] = None

    # Turning

    def turn(self, timeout: float | None = 0.0, events: list[Event] | None = None) -> list[Event]:
        """One turn, after a wait for something to do if it may wait.

        Args:
            timeout: seconds; 0: never blocks and keeps the GIL; more: the wait gives it up; None:
                no end. What has left already (see Link.send) ends no wait.
            events: a list to append them to, which has them even when a signal handler raises
                before this call has returned; None: a new one.

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
            PlatformError: the system failed in waiting.
        """
        if events is None:
            events = []
        if timeout != 0:
            self._check_open()
            if threading.get_ident() != self._owner:  # which _turn() asks too late: it has waited
                raise self._binding.fault(int(self._lib.PT_ERR_INVALID_STATE), "a turn")
            timeout_ms = -1 if timeout is None else math.ceil(min(timeout * 1000, 2**31 - 1))
            code = self._lib.pt_loop_wait(self._context, timeout_ms)
            if code != 0:
                raise self._binding.fault(code, "waiting")
        code = self._turn(events)
        if code < 0:
            raise self._binding.fault(code, "a turn")
        if self._abandoned:
            self._let_go()
        return events

    def server(
        self, ticks: Any, credit: int, channels: dict[int, Any], woken: list[Any]
    ) -> Callable[[list[Event]], int]:
        """serve(events): a turn that tells channels, by their tags, how many; see pt_turn.h."""
        bind: Callable[..., Callable[[list[Event]], int]] = self._binding.border.bind_serve
        return bind(self._turn, ticks, credit, channels, woken)

    def quick(self, serve: Any, events: list[Event], *others: Any) -> Callable[[], bool | None]:
        """quick(): what serve(events) does, while events and others are empty; see pt_turn.h."""
        quick: Callable[[], bool | None] = self._binding.border.bind_quick(serve, events, others)
        return quick

    def again(
        self, function: Callable[..., object], struck: list[None], quick: Any = None
    ) -> Callable[[], object]:
        """What calls function, and has a turn follow if that raises; see pt_again.h."""
        call: Callable[[], object] = self._binding.border.Again(self._turn, function, struck, quick)
        return call

    def sender(
        self, quick: str, afar: str, accepted: str, hint: Callable[[int], object]
    ) -> Callable[[Any, Any, bool], int]:
        """send(peer, payload, waits): the next message of a peer, one DATA frame of bytes, and its
        number in one step. Returns the number; 0: it was not accepted, nothing has changed. On
        links of workers any thread may call it; if waits is True, some milliseconds are waited for
        room, without the interpreter. Before a worker is closed, quick must be None.

        Args: names of a peer's attributes, and
            quick: the native link that takes the next message, or None.
            afar: None while no other message is before that.
            accepted: how many were accepted; the number of the last one.
            hint: told what a link of this loop itself says beside success.
        """
        send: Callable[[Any, Any, bool], int] = self._binding.border.bind_numbered(
            quick, afar, accepted, hint
        )
        return send

    def taker(
        self, kinds: tuple[Any, ...], values: tuple[Any, ...], names: tuple[str, ...]
    ) -> Callable[..., Any]:
        """take(waits, alone): the next message in one call, None: take it in another way. The
        arguments and what it does are those of bind_taker() in csrc/border/pt_taker.h."""
        take: Callable[..., Any] = self._binding.border.bind_taker(self._turn, kinds, values, names)
        return take

    def next_timeout(self) -> float | None:
        """Seconds until a turn is needed though nothing becomes ready; 0.0 when there is work now,
        None when there is no timer."""
        timeout_ms = self._lib.pt_loop_next_timeout(self._context)
        return None if timeout_ms < 0 else timeout_ms / 1000

    # On a simulated network

    def _let_go(self) -> None:
        """Free the memory of closed links whose slots the driver has let go of."""
        self._abandoned = [kept for kept in self._abandoned if kept[0].pipeline.pending_count]

    def has_work(self) -> bool:
        """Whether a turn now would find something, on a simulated network: what a driver on virtual
        time asks after each step."""
        return not self._closed and (
            self._lib.pt_loop_next_timeout(self._context) == 0
            or bool(self._ops.is_ready(self._context))
        )

    def next_deadline_ns(self) -> int | None:
        """Virtual time at which a turn is needed though nothing becomes ready; None when there is
        no timer."""
        timeout_ms = self._lib.pt_loop_next_timeout(self._context)
        assert self.simulator is not None
        now_ns = self.simulator.now_ns
        if timeout_ms <= 0:
            return None if timeout_ms < 0 else now_ns
        ticks = self._lib.pt_wheel_next(self._ffi.addressof(self._context, "wheel"))
        rate = self._ops.ticks_per_second
        due_ns = -(-(now_ns * rate // 10**9 + ticks) * 10**9 // rate)
        return (
            int(due_ns)
            if ticks != 2**32 - 1 and due_ns < now_ns + 2 * timeout_ms * 10**6
            else now_ns + timeout_ms * 10**6
        )

    def violations(self) -> list[str]:
        """Rules of the platform's maker that were broken here, the first 32: empty in a healthy
        run."""
        if self.simulator is None:
            return []
        ffi, lib = simulation().ffi, simulation().lib
        world = moved(self._ffi, self._platform, ffi, "pt_classic *")
        size = lib.PT_CLASSIC_VIOLATION_SIZE
        kept = min(world.violation_count, lib.PT_CLASSIC_VIOLATIONS)
        return [ffi.string(world.violations + index * size).decode() for index in range(kept)]

    @property
    def abandoned(self) -> int:
        """Slots of closed links that the driver has not let go of."""
        if self._closed or not self._ops.abandoned:
            return 0
        return int(self._ops.abandoned(self._platform))

    def wake(self) -> None:
        """End a wait that runs, or the next one. Any thread; nothing happens when the loop is
        closed."""
        if sys.is_finalizing():
            return  # nobody waits any more, and who has the lock stands still for ever
        with self._wake_lock:
            if not self._closed:
                self._lib.pt_loop_wake(self._context)

    def descriptors(self) -> list[tuple[int, int]]:
        """(descriptor, READ | WRITE) of all that must be watched to know when a turn has something
        to do, the wake-up included."""
        if self._closed or not self._ops.wake_descriptor:
            return []
        sources = [watch._watch.source for watch in self._watches] + [
            link._link.source for link in self._links
        ]
        wanted = [
            (int(source.handle), source.interest & (READ | WRITE))
            for source in sources
            if source.registered != 0xFF
        ]
        return [
            (self._ops.wake_descriptor(self._platform), READ),
            *((fd, interest) for fd, interest in wanted if interest),
        ]

    # Counting and ending

    def _peak(self, **bytes_now: int) -> dict[str, int]:
        """The most that each part has had whenever it was asked for."""
        for name, now in bytes_now.items():
            self._peaks[name] = max(self._peaks.get(name, 0), now)
        return self._peaks

    def memory(self) -> dict[str, tuple[int, int]]:
        """Bytes of the C side now and at most so far, part by part: what each struct has, and what
        the pool holds.

        The buffers of slots come out of the pool and are counted with the pipelines; at most means
        as many as were ever in flight on each link. streams is what a classic platform keeps for
        its links: parameter blocks and write lists, or endpoints and the records of their sends.
        total is exact: it takes the peak of the one source that streams and pool are allocated
        from. A pool that several loops have is counted whole by each of them.
        """
        ffi = self._ffi
        wheel, slot, link = map(ffi.sizeof, ("pt_wheel", "pt_send_slot", "pt_link"))
        fixed = {
            "context": ffi.sizeof("pt_context") - wheel,
            "loop": sum(map(ffi.sizeof, (self._events, self._ready, self._platform))),
            "wheel": wheel,
            "receive buffer": self._context.receive_buffer_size,
        }
        links = [each._link for each in list(self._links)]  # any thread may ask
        held = [each.pipeline for each in links] + [kept[0].pipeline for kept in self._abandoned]
        tables = sum(each.depth for each in held if not each.only) * slot
        lent = sum(each.lent for each in held)
        pool, table = self.pool.statistics(), ffi.sizeof(self.pool._memory)
        high = min(sum(each.high_water * each.slot_size for each in held), pool.peak_bytes)
        streams = int(self.pool._account.bytes) - pool.bytes
        peaks = self._peak(
            links=len(held) * link, tables=tables, slots=max(lent, high), streams=streams
        )
        parts = {name: (size, size) for name, size in fixed.items()}
        parts["links"] = (len(held) * link, peaks["links"])
        parts["pipelines"] = (tables + lent, peaks["tables"] + peaks["slots"])
        if self._ops.link_size:
            parts["streams"] = (streams, peaks["streams"])
        parts["pools"] = (
            table + max(0, pool.bytes - lent),
            table + max(pool.peak_bytes - peaks["slots"], pool.bytes - lent, 0),
        )
        fixed_sum = sum(fixed.values()) + table
        peak = (
            fixed_sum
            + peaks["links"]
            + peaks["tables"]
            + max(self.pool._account.peak_bytes, pool.bytes + streams)
        )
        parts["total"] = (fixed_sum + len(held) * link + tables + pool.bytes + streams, peak)
        return parts

    def statistics(self) -> LoopStatistics:
        """Counters since the loop opened."""
        context = self._context
        return LoopStatistics(
            context.turns, context.wait_calls, context.crc_errors, context.bad_frames
        )

    def close(self) -> None:
        """Close links and forget everything, workers of this home first. Idempotent."""
        if self._closed:
            return
        for worker in self._workers:
            worker.close()
        if sys.is_finalizing():
            self._wake_lock = threading.RLock()  # see wake()
        with self._wake_lock:
            self._closed = True
        self._turn = self._closed_turn
        for link in list(self._links):
            link.close()
        for watch in list(self._watches):
            watch.close()
        for timer in list(self._armed):
            timer.cancel()
        self._end_platform()
        self._lib.pt_context_cleanup(self._context)
        self.fd = -1

    def orphan(self) -> None:
        """In a forked child: give this process's copies of the descriptors back and refuse all use.
        Nothing is written, and the epoll set, which is the parent's too, is not changed. The memory
        is given back where the owner forked: another thread may have forked while the owner was
        changing it."""
        self._wake_lock = threading.RLock()  # another thread of the parent may have had it
        if self._closed:
            return
        for worker in self._workers:
            worker.orphan()
        if self._ops.descriptor:
            self._ops.cleanup(self._platform)
        if self._owner == threading.get_ident():
            self.close()
        self._closed = True
        self._turn = self._closed_turn
        self.disown()
        self.fd = -1

    def _check_open(self) -> None:
        if self._closed:
            raise errors.InvalidState("this loop is closed")

    def _closed_turn(self, _: list[Event]) -> int:
        raise errors.InvalidState("this loop is closed")

    def __del__(self) -> None:
        if not self._closed:
            self.close()


def _check_bounds(lib: Any, io_budget: int) -> None:
    if not 1 <= io_budget <= lib.PT_IO_BUDGET_MAX:
        raise errors.InvalidArgument(
            f"io_budget of {io_budget:,} sources: a turn serves 1 to {lib.PT_IO_BUDGET_MAX:,}"
        )


def _check_pool(binding: Binding, pool: BufferPool) -> None:
    frame = binding.lib.PT_FRAME_MAX_PAYLOAD + binding.lib.PT_FRAME_OVERHEAD
    if getattr(pool, "_binding", None) is not binding:
        raise errors.InvalidArgument(f"pool {pool!r}: a loop takes a pool of its own core")
    if pool.closed:
        raise errors.InvalidState("this pool is closed: no loop opens with it any more")
    if pool.largest < frame:
        raise errors.InvalidArgument(
            f"pool whose largest class has {pool.largest:,} bytes: a frame may have {frame:,}"
        )


def _ops_for(
    binding: Binding, platform: str, simulator: Simulator | None, host: Host | None
) -> Any:
    """The table of a platform, where there is what it stands on."""
    if platform not in PLATFORMS:
        raise errors.InvalidArgument(
            f"platform {platform!r}: there are {', '.join(map(repr, PLATFORMS))}"
        )
    ops = binding.platform(platform)
    if ops.simulated != (simulator is not None and host is not None):
        simulated = [name for name, has in binding.platforms().items() if has["simulated"]]
        raise errors.InvalidArgument(
            f"platform {platform!r}: a simulator and a host belong to "
            f"{', '.join(map(repr, simulated))} alone"
        )
    if simulator is not None and (simulator.closed or host not in simulator.hosts):
        raise errors.InvalidArgument(
            "the host is none of this simulator, or the simulator is closed"
        )
    return ops
