"""The front door for asyncio: Node and Peer.

A node belongs to the process and the asyncio loop that it was started in. Everything here runs on
that loop, and says InvalidState elsewhere; any thread may call send_nowait, close_nowait, stats and
memory. Below this module there is no coroutine: the engine (runtime/transport) reports by
callbacks, and this module makes futures of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import warnings
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
)
from functools import partial
from itertools import repeat
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from . import errors
from .config import Config, choose_config, parse_timeout
from .protocol import events
from .protocol.outbox import NORMAL, Key, Priority
from .protocol.peer import PeerFlag
from .protocol.stream import ENDED, StreamState
from .protocol.wire import Batch, Datagram, Message
from .runtime.inbox import Outlet, Waiters
from .runtime.log import NodeLog
from .runtime.peers import BroadcastResult, Peers
from .runtime.remote import (
    Drawing,
    Payload,
    Place,
    Remote,
    SendOptions,
    Uncopied,
    check_choices,
    check_peer,
    payload_of,
)
from .runtime.statistics import MemoryReport, NodeStatistics
from .runtime.streaming import Outgoing, Progress
from .runtime.transport import NO_THREAD, Transport
from .runtime.worker import Worker
from .runtime.world import Address, World, check_address, dotted_address

T = TypeVar("T")
Event = events.Event["Peer"]
"""Any event of a node."""

_BULK = 2048
"""Cost of a lot of messages from which on it pays to have them made by map(): 100 ns, and each at a
tenth less."""
_INSIDE = tuple(f"peertalk.{room}" for room in ("node", "runtime.", "protocol.", "_core."))
"""Modules that are in the middle of something while a function of theirs runs."""


class Peer(Remote):
    """Someone out there. Made by its Node; hashable, and the same object as long as the node knows
    it.

    name, id, address, flags, state, connected, capabilities, max_message (bytes) and classic tell
    about it; accepted is the number of the last message that was accepted for it. Coroutines run on
    the node's loop only; send_nowait may be called from any thread.
    """

    __slots__ = ()

    async def send(self, data: Payload, **options: Unpack[SendOptions]) -> int:
        """Accept one message for this peer; waits while there is no room for it, in the order of
        the calls of its class.

        send(data, *, priority=Priority.NORMAL, key=None, no_delay=False, connect=True,
        timeout=None)

        Args:
            data: 0 to max_message bytes. It is copied: the buffer is free as soon as send returns.
            priority: its class. Higher ones overtake what waits of lower ones, without starving
                them; order is kept within a class. The peer's pressure refuses lower ones first:
                send then waits until it falls.
            key: str or int. A message that still waits with the same key is replaced in its place,
                class included, and ends as Failed with Outcome.REPLACED: only the newest is sent.
                    What has left the queue is not replaced.
            no_delay: leave at once rather than at the end of this tick, unless it has to wait.
            connect: connect first if needed; False: raise NotConnected instead.
            timeout: seconds, or "250ms"; None: no limit.

        Returns:
            The number of the message: messages to a peer are counted from 1. Sent and Failed events
                name these numbers.

        Raises:
            MessageTooLarge, WrongType, InvalidArgument: nothing was accepted.
            ConnectionClosed, ConnectionRefused, NotConnected, Timeout: likewise.
            InvalidState: the node is closed, or belongs to another loop, thread or process.

        Cancelled, the message was not accepted and never leaves.
        """
        quick = self.quick
        # one look at the options: five defaults would cost a tenth
        if quick is not None and data.__class__ is bytes and not options:
            code = quick(data)
            if code >= 0:
                self.accepted = number = self.accepted + 1
                if code:  # the first of a tick
                    _check_running(self.transport)
                    self.transport.hint(code)
                    if self.transport.crowded:
                        return await _rested(number)
                return number
        return await self._send_in_line(payload_of(data), **options)

    def send_nowait(
        self,
        data: Payload,
        *,
        priority: Priority = NORMAL,
        key: Key | None = None,
        no_delay: bool = False,
    ) -> int:
        """Accept one message at once or not at all; arguments as send(). Any thread.

        Returns:
            The number of the message; 0 when called from another thread, where numbers are given
            later.

        Raises:
            WouldBlock: there is no room or a send() of its class that was called before is not
                accepted yet (reason "queue"), or the peer's pressure refuses its class
                ("pressure"); nothing has changed.
            MessageTooLarge, WrongType, InvalidArgument: as send().
        """
        payload = payload_of(data)
        if priority is not NORMAL or key is not None:
            priority = check_choices(priority, key)
        if threading.get_ident() != self.transport.thread:
            self.accept_from_afar(bytes(payload), no_delay, priority, key)
            return 0
        self.transport.check_open()
        if not self.serve(priority) or not self.accept(payload, no_delay, priority, key):
            raise self.no_room(priority)
        return self.accepted

    async def send_many(
        self,
        payloads: Iterable[Payload],
        *,
        priority: Priority = NORMAL,
        timeout: float | str | None = None,
    ) -> int:
        """Accept many messages of one class in order, as send() would one by one, at a fraction of
        the cost.

        Args:
            payloads: any iterable, an endless one too: it is drawn a chunk at a time, 1,024
                messages or 512 KiB at most, the next when those are accepted. Between two chunks
                those who wait behind have their turn.
            priority, timeout: as send(); the time is that of the whole call.

        Returns:
            How many were accepted: all of them.

        Raises:
            As send(), and whatever the iterable raises; `accepted` of the error is the number of
            messages that were accepted before. Cancelled, those that `peer.accepted` has counted
            are, the rest are not.
        """
        priority = check_choices(priority, None)
        seconds = parse_timeout(timeout)
        _check_here(self.transport)
        drawing = Drawing(payloads, self.chunk)
        try:
            await _within(
                self._send_all(drawing, priority),
                seconds,
                f"no room for all messages to peer {self.name!r}",
                self.name,
            )
        except Exception as error:
            raise drawing.note(error) from error.__cause__
        return drawing.accepted

    async def connect(self, *, timeout: float | str | None = None) -> Peer:
        """Have an open connection; returns this peer.

        Raises:
            ConnectionRefused, NetworkFailure, Timeout: after every address at which the peer was
                heard was tried.
        """
        seconds = parse_timeout(timeout)
        _check_here(self.transport)
        if not self.connected or self.connection is None:
            await _within(self._reach(), seconds, f"no connection to peer {self.name!r}", self.name)
        return self

    async def disconnect(self, *, timeout: float | str | None = None) -> None:
        """Leave politely: what was accepted is sent first. The peer stays known.

        Args:
            timeout: seconds after which the connection is given up (Config.drain_timeout where none
                are given); what was not sent by then is told as Failed.
        """
        seconds = parse_timeout(timeout)
        if not self.transport.closed or self.transport.forked:
            _check_thread(self.transport)
        connection = self.connection
        if connection is None:
            self.transport.switchboard.leave(self)  # one that was lost does not come back either
            return
        gone = _future(self.transport)
        connection.on_end = (*connection.on_end, lambda: _settle(gone))
        self.transport.switchboard.leave(self, seconds)
        await gone

    async def ping(self, *, timeout: float | str | None = 5.0) -> float:
        """Measure the way to this peer and back, in seconds. `latency` has the smoothed value,
        which the node keeps up by itself.

        Raises:
            NotConnected, ConnectionClosed.
            Timeout: it did not answer. The original answers; a peer that never does is not worse
                off for it.
        """
        seconds = parse_timeout(timeout)
        _check_here(self.transport)
        future = _future(self.transport)

        def measured(sample: float | None, error: errors.PeerTalkError | None) -> None:
            if future.done():
                return
            if sample is None:
                future.set_exception(error or errors.InternalError("no measurement and no error"))
            else:
                future.set_result(sample)

        self.transport.switchboard.pulse.ping(self, measured)
        try:
            return await _within(
                future, seconds, f"no answer to a PING from peer {self.name!r}", self.name
            )
        finally:
            self.stop_pinging(measured)

    def messages(self) -> Incoming[Message[Peer]]:
        """Messages of this peer, those included that wait already; from the first anext on they
        come here only, and whatever others send does not keep them up. Several consumers may
        iterate: each message goes to one of them. What is left when the last one stops comes to the
        node. Ends when the peer is lost or the node closed, after the last message."""
        return _Messages(self.transport, self)

    def reject(self, reason: errors.RejectReason = errors.RejectReason.UNSPECIFIED) -> None:
        """Send the peer away: see ConnectionRequested.reject(). On the node's loop only.

        Raises:
            InvalidState: the node is closed, or belongs to another loop, thread or process.
        """
        _check_free(self.transport)
        super().reject(reason)

    def stream_out(self, data: Payload, progress: Progress | None = None) -> StreamOut:
        """A stream: much data in parts, with progress, that can be given up. The peer receives the
        parts as ordinary messages, in order, with nothing to mark them; other messages may come
        between.

        Args:
            data: 1 to 65,536 bytes. It is copied.
            progress: called on the node's loop as progress(bytes sent, all bytes). What it raises
                ends the stream.

        Returns:
            A context manager: `async with peer.stream_out(data) as out: await out.finished()`.
                Leaving the block early cancels it.

        Raises:
            InvalidArgument, MessageTooLarge, WrongType: data cannot be a stream.
            On entering: NotConnected; WouldBlock, reason "busy": one at a time for each peer.
        """
        return StreamOut(self, data, progress)

    # How a message is accepted --------------------------------------------------------------------

    async def _send_in_line(
        self,
        payload: bytes | bytearray | memoryview,
        *,
        priority: Priority = NORMAL,
        key: Key | None = None,
        no_delay: bool = False,
        connect: bool = True,
        timeout: float | str | None = None,
    ) -> int:
        if priority is not NORMAL or key is not None:
            priority = check_choices(priority, key)
        seconds = parse_timeout(timeout)
        transport = self.transport
        _check_here(transport)
        if self.connected:
            if (
                not transport.crowded
                and self.serve(priority)
                and self.accept(payload, no_delay, priority, key)
            ):
                return self.accepted
        elif not connect:
            raise errors.NotConnected(f"peer {self.name!r} is not connected", peer=self.name)
        return await _Sending(self, priority, bytes(payload), no_delay, key).wait(seconds)

    # a TypeError about an option names the call that the user wrote
    _send_in_line.__qualname__ = "Peer.send"

    async def _send_all(self, drawing: Drawing, priority: Priority) -> None:
        transport, refusal = self.transport, self.refusal
        while messages := drawing.draw():
            transport.check_open()
            if not self.connected:
                self.check_refusal(refusal)
            place = _Chunk(self, priority, messages, drawing)
            if (
                transport.crowded
                or not self.connected
                or not self.serve(priority)
                or not place.offer()
            ):
                await place.in_line()

    async def _reach(self) -> None:
        future = _future(self.transport)

        def reached(peer: Remote | None, error: errors.PeerTalkError | None) -> None:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)

        self.transport.switchboard.reach(self, reached)
        await future


class _Tick:
    """Awaited, it lets everybody have a turn. As asyncio.sleep(0), at half of the cost."""

    def __await__(self) -> Generator[None, None, None]:
        yield


_TICK = _Tick()


class _Place(Place):
    """A place in line of a task."""

    __slots__ = ("_error", "_waiting", "done")

    def __init__(self, peer: Peer, priority: Priority) -> None:
        super().__init__(peer, priority)
        self.done = False
        """All of it was accepted, though its task may not have heard of it yet."""
        self._error: errors.PeerTalkError | None = None
        self._waiting: asyncio.Future[None] | None = None

    def accepted(self) -> None:
        """It is done: its task goes on."""
        self.done = True
        if self._waiting is not None:
            _settle(self._waiting)

    def fail(self, error: errors.PeerTalkError) -> None:
        """It will not be accepted: its task hears why."""
        self._error = error
        if self._waiting is not None:
            _settle(self._waiting)

    def reached(self, peer: Remote | None, error: errors.PeerTalkError | None) -> None:
        """The connection is there, or cannot be had."""
        self.reaching = False
        if error is None:
            self.peer.serve(self.priority)
        else:
            self.leave()
            self.fail(error)

    async def in_line(self) -> None:
        """Stand in line until it is accepted, at least for a tick while the loop is crowded; raises
        what it failed of. Connects if need be."""
        peer = self.peer
        if not self.joined and not self.done and self._error is None:
            self.join()
        try:
            if self.done or self._error is not None:
                pass  # already, before this task began
            elif not peer.connected:
                self.reaching = True
                peer.transport.switchboard.reach(peer, self.reached)
            elif peer.transport.crowded:
                await _TICK
                if not self.done:
                    peer.serve(self.priority)
            if not self.done and self._error is None:
                self._waiting = _future(peer.transport)
                await self._waiting
        finally:
            self.leave()
        if self._error is not None:
            raise self._error


class _Sending(_Place):
    """One message that stands in line."""

    __slots__ = ("_key", "_no_delay", "_number", "_payload")

    def __init__(
        self, peer: Peer, priority: Priority, payload: bytes, no_delay: bool, key: Key | None
    ) -> None:
        super().__init__(peer, priority)
        self._payload = payload
        self._no_delay = no_delay
        self._key = key
        self._number = 0

    def offer(self) -> bool:
        """Be accepted. False: there is no room."""
        peer = self.peer
        if not peer.accept(
            self._payload, self._no_delay, self.priority, self._key, may_block=False
        ):
            return False
        self._number = peer.accepted
        self.accepted()
        return True

    async def wait(self, seconds: float | None) -> int:
        """Its number, as soon as it is accepted.

        Raises:
            Timeout: it was not accepted within so many seconds. Whatever it failed of.
        """
        name = self.peer.name
        return await _within(
            self._accepted(), seconds, f"no room for a message to peer {name!r}", name
        )

    async def _accepted(self) -> int:
        """Its number. Cancelled after it was accepted, before its task has heard of that, it
        returns all the same: what was accepted is never reported as cancelled. The cancellation
        comes in the next tick, if it is still wanted then."""
        try:
            await self.in_line()
        except asyncio.CancelledError:
            if not self.done:
                raise
            _put_off_cancellation()
        return self._number


class _Chunk(_Place):
    """A part of a send_many that stands in line."""

    __slots__ = ("_drawing", "_messages", "_taken")

    def __init__(
        self, peer: Peer, priority: Priority, messages: list[bytes], drawing: Drawing
    ) -> None:
        super().__init__(peer, priority)
        self._messages = messages
        self._drawing = drawing
        self._taken = 0

    def offer(self) -> bool:
        """Be accepted as far as there is room. False: some are left."""
        messages = self._messages
        while self._taken < len(messages):
            taken = self.peer.accept_many(messages, self._taken, self.priority)
            if not taken:
                return False
            self._taken += taken
            self._drawing.accepted += taken
        self.accepted()
        return True


async def _rested(number: int) -> int:
    """Let others have their turn after a message was accepted, so that none overtakes it."""
    try:
        await _TICK
    except asyncio.CancelledError:
        _put_off_cancellation()
    return number


def _put_off_cancellation() -> None:
    """A call that has done its work was cancelled before it could say so: to be called in the
    handler of that CancelledError, which is raised again if nobody asked for a cancellation."""
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        raise
    asyncio.get_running_loop().call_soon(_cancel_again, task, task.cancelling())


def _cancel_again(task: asyncio.Task[Any], count: int) -> None:
    """Cancel a task whose cancellation was held back for a tick, unless it has ended, or left the
    block (asyncio.timeout) that wanted that, or was cancelled once more."""
    if not task.done() and task.cancelling() == count:
        task.uncancel()
        task.cancel()


class StreamOut(Outgoing):
    """A stream to a peer, on its way inside its `async with` block; made by Peer.stream_out(). On
    the node's loop only.

    peer; state: a StreamState; sent and total: bytes; error: what it failed of.
    """

    def __init__(self, peer: Peer, data: Payload, progress: Progress | None) -> None:
        super().__init__(peer, data, progress)
        self._waiting: list[asyncio.Future[None]] = []

    async def finished(self, *, timeout: float | str | None = None) -> StreamState:
        """Wait until the stream has ended: COMPLETED (the system took its last byte) or CANCELLED.
        When this call is cancelled or its time is up the stream goes on; leaving the block cancels
        it.

        Raises:
            Timeout. InvalidState: it was not started.
            ConnectionClosed, or whatever else it failed of.
        """
        seconds = parse_timeout(timeout)
        if self.state not in ENDED:
            _check_here(self.peer.transport)
            self.check_begun()
            done = _future(self.peer.transport)
            self._waiting.append(done)
            try:
                await _within(
                    done,
                    seconds,
                    f"the stream to peer {self.peer.name!r} did not end",
                    self.peer.name,
                )
            finally:
                self._waiting.remove(done)
        if self.error is not None:
            raise self.error
        return self.state

    def cancel(self) -> None:
        """Send no more of it. What was accepted before (at most 4 chunks) still leaves. Does
        nothing to one that has ended.

        Raises:
            InvalidState: the node is closed, or belongs to another loop, thread or process.
        """
        if self.state not in ENDED:
            _check_free(self.peer.transport)
            super().cancel()

    def on_end(self) -> None:
        """Wakes those who wait for the end."""
        for done in self._waiting:
            _settle(done)

    async def __aenter__(self) -> Self:
        _check_here(self.peer.transport)
        self.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.peer.transport.forked:
            self.cancel()


class Node(Uncopied):
    """This program on the network.

    Discovery and listening begin with `async with` (or start()) and end with it (or aclose()).

    A node belongs to the process and the asyncio loop in which it was started. Its coroutines and
    streams, and those of its peers, raise InvalidState on another loop or thread, and under trio. A
    forked child gets InvalidState for all use; it says nothing in its parent's name.
    Any thread may call Peer.send_nowait, close_nowait, stats and memory, and look at peers.

    Args:
        name: 1 to 31 bytes of UTF-8 without control characters; None: PEERTALK_NAME, else one made
            of host, script and six random digits.
        config: a Config made before; not together with options.
        world: where it lives; None: on this machine. A simulated network brings its own.
        options: any field of Config.

    Raises:
        InvalidArgument: an option is out of its bounds; says which, and where it came from.
    """

    _instead = "it has its sockets once; make a new one: Node(config=node.config)"

    def __init__(
        self,
        name: str | None = None,
        *,
        config: Config | None = None,
        world: World | None = None,
        **options: Any,
    ) -> None:
        config = choose_config(config, name, options)
        if world is not None and not isinstance(world, World):
            raise errors.WrongType(
                f"world={errors.shown(world)}: a simulated network brings its own; else leave it "
                "out"
            )
        self.config = config
        self._world = World() if world is None else world
        self._transport: Transport | None = None
        self._worker: Worker | None = None
        self._streams: list[tuple[weakref.ref[_Events], Waiters]] = []
        """Who listens, while somebody has it: one that was left by `break` is let go. Those who
        wait there are held, since nobody else may have their tasks."""
        self._watchers: list[asyncio.Future[None]] = []
        """Who waits for somebody to be known, or for the address of a host."""

    # Life -----------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Listen and announce. Returns this node.

        Raises:
            AddressInUse, NoNetwork, PlatformError: naming the option that changes it.
            InvalidState: started before, or no asyncio loop runs here.
        """
        loop = _running_loop()
        if self._transport is not None:
            raise errors.InvalidState(
                f"node {self.config.name!r} was started before; make a new one"
            )
        worker = self._world.make_worker(loop)
        transport = Transport(self.config, self._world, Peer, worker.schedule)
        transport.owner = loop
        transport.open()
        self._transport, self._worker = transport, worker
        worker.start(transport)
        if self._streams:
            transport.publish = self._publish
        return self

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._transport is None or not self._transport.forked:  # a child leaves in silence
            await self.aclose()

    async def aclose(self, timeout: float | str | None = 5.0) -> int:
        """Send what is queued, say goodbye, close; at most timeout seconds (None: however long that
        takes). May be called again. Wakes every waiter.

        Returns:
            Messages that were accepted and not sent; each was reported as Failed, and their number
            is logged.

        Raises:
            InvalidState: it belongs to another loop or thread; close_nowait() closes it from there.
        """
        seconds = parse_timeout(timeout)
        transport = self._transport
        if transport is None:
            return 0
        if transport.forked:
            transport.check_open()
        if not transport.closed:
            done = _future(transport)
            transport.close(seconds, lambda: _settle(done))
            if self._worker is not None and not transport.closed:
                self._worker.schedule_anew()
            try:
                await done
            except asyncio.CancelledError:
                transport.close_now()
                self._closed(transport)
                raise
        self._closed(transport)
        return transport.unsent

    def close_nowait(self) -> int:
        """Close at once, without sending what is queued; for signal handlers, wherever they strike.
        Any thread. On another thread than the loop's, and where it interrupts the node or is called
        by it, the loop closes the node in its next tick.

        Returns:
            Messages that were not sent; 0 when the loop closes it later, before they are counted.
        """
        transport, worker = self._transport, self._worker
        if transport is not None and transport.forked:
            transport.check_open()
        if transport is None or worker is None:
            return 0 if transport is None else transport.unsent
        elsewhere = transport.thread not in (NO_THREAD, threading.get_ident())
        if (elsewhere or _is_inside()) and worker.ask(self.close_nowait):
            return 0
        _end(transport, worker)
        self._closed(transport)
        worker.ask(_wake_up)  # a signal handler does not end the wait that it interrupts
        return transport.unsent

    def _closed(self, transport: Transport) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
            if transport.unsent:
                NodeLog("peertalk", self.config.name).warning(
                    "closed with %d messages not sent", transport.unsent
                )
        for peer in list(transport.peers.values()):
            peer.on_lost(errors.InvalidState(f"node {self.config.name!r} is closed"))
        transport.wake_receivers()
        self._wake_watchers()
        for stream in self._listening():
            stream.end()
        # a Message is not tracked by the collector: through its peer it must not hold this node
        transport.publish = transport.on_change = transport.owner = None

    def __del__(self) -> None:
        transport = getattr(self, "_transport", None)
        worker = getattr(self, "_worker", None)
        if transport is None or transport.closed or worker is None:
            return
        name = self.config.name
        with contextlib.suppress(Exception):
            # a collection may begin on any thread, and in the middle of something
            elsewhere = transport.thread not in (NO_THREAD, threading.get_ident())
            if not ((elsewhere or _is_inside()) and worker.ask(partial(_end, transport, worker))):
                _end(transport, worker)
        # last: it may raise (-W error)
        warnings.warn(
            f"node {name!r} was not closed; use `async with` or aclose()",
            ResourceWarning,
            source=self,
            stacklevel=2,
        )

    @property
    def _here(self) -> Transport:
        """The engine, for what its own thread alone may do."""
        transport = self._transport
        if transport is None or transport.closing or threading.get_ident() != transport.thread:
            transport = self._engine
            _follow_loop(transport)
        return transport

    @property
    def _free(self) -> Transport:
        """Likewise for what makes no future, which would compare the loop."""
        engine = self._engine
        _check_free(engine)
        return engine

    @property
    def _engine(self) -> Transport:
        self._begun.check_open()
        return self._begun

    @property
    def _begun(self) -> Transport:
        """The engine, though it may be closed."""
        if self._transport is None:
            raise errors.InvalidState(
                f"node {self.config.name!r} is not started; use `async with` or start()"
            )
        return self._transport

    # Who ------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """As announced."""
        return self.config.name

    @property
    def id(self) -> str:
        """Instance id of this start, 16 hexadecimal digits."""
        return self._engine.instance.hex()

    @property
    def address(self) -> Address:
        """(IPv4 address, TCP port) where this node listens; the address is loopback when it listens
        on all."""
        return self.config.bind or "127.0.0.1", self._engine.port

    @property
    def flags(self) -> PeerFlag:
        """What is announced of this node: Config.flags, until set. Setting it announces at once
        (five times a second at most), and connected peers hear of it too. The original's POSIX
        build does not look at flags again after the first announcement of a node.

        Raises:
            InvalidArgument: more than 16 bits. InvalidState: not started, or closed.
        """
        return PeerFlag(self.config.flags) if self._transport is None else self._transport.flags

    @flags.setter
    def flags(self, flags: int) -> None:
        self._free.set_flags(flags)

    @property
    def peers(self) -> Peers[Peer]:
        """Who is known now."""
        return Peers(self._engine.peers, self._engine)  # type: ignore[arg-type]

    async def wait_for(
        self, who: str | Callable[[Peer], bool], *, timeout: float | str | None = None
    ) -> Peer:
        """The peer with this id or name, or the first for which the function is true, as soon as it
        is known. In a large room an id or a name is found quicker, since it is asked for.

        Raises:
            Timeout: naming who is known instead. WrongType: who is no str and no function.
        """
        engine, seconds = self._here, parse_timeout(timeout)
        found = self.peers.matching(who)
        if found is not None:
            return found
        if isinstance(who, str):
            engine.seek(who)
        unheard = f"no peer {errors.shown(who)} was heard"
        try:
            return await _within(self._wait_for(engine, who), seconds, unheard)
        except errors.Timeout as error:
            raise errors.Timeout(f"{error}; {self.peers.heard()}") from None

    async def _wait_for(self, engine: Transport, who: str | Callable[[Peer], bool]) -> Peer:
        while not engine.closed:
            await self._change(engine)
            if not engine.closed and (found := self.peers.matching(who)) is not None:
                return found
        raise errors.InvalidState(f"node {self.config.name!r} was closed")

    async def _look_up(self, engine: Transport, host: str) -> str:
        found, loop = engine.world.resolve(host), asyncio.get_running_loop()

        def looked_up(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(self._wake_watchers)

        if not found.done():
            found.add_done_callback(looked_up)
        while not found.done():
            await self._change(engine)
            engine.check_open()
        return found.result()

    async def _change(self, engine: Transport) -> None:
        """Wait until the watchers are woken."""
        changed = _future(engine)
        self._watchers.append(changed)
        engine.on_change = self._wake_watchers
        try:
            await changed
        finally:
            if changed in self._watchers:
                self._watchers.remove(changed)

    def _wake_watchers(self) -> None:
        """Who is known or connected has changed, a host was looked up, or the node is closed: all
        who wait for that look again, in the next tick, once for all that changed in this one."""
        watchers, self._watchers = self._watchers, []
        if self._transport is not None:
            self._transport.on_change = None  # until somebody waits again
        for changed in watchers:
            _settle(changed)

    async def connect(
        self, who: Address | Peer | str, *, timeout: float | str | None = None
    ) -> Peer:
        """Connect to an address, as (IPv4 address or host name, TCP port) or "HOST:PORT"; to a
        peer; or to a known peer by its name or id.

        Raises:
            PeerNotFound: no such peer is known.
            ConnectionRefused, NetworkFailure, Timeout.
            InvalidArgument: the address is this node itself, the peer another node's.
        """
        engine, seconds = self._here, parse_timeout(timeout)
        if isinstance(who, str):
            who = self.peers.chosen(who)
        if isinstance(who, Remote):
            engine.check_own(who)
            assert isinstance(who, Peer)
            return await who.connect(timeout=seconds)
        host, port = check_address(who)
        return await _within(
            self._dial(engine, host, port), seconds, f"no connection to {host}:{port}"
        )

    async def _dial(self, engine: Transport, host: str, port: int) -> Peer:
        dotted = dotted_address(host)
        if dotted is None:
            dotted = await self._look_up(engine, host)
        future = _future(engine)

        def reached(peer: Remote | None, error: errors.PeerTalkError | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                assert isinstance(peer, Peer)
                future.set_result(peer)

        engine.switchboard.dial((dotted, port), reached)
        peer: Peer = await future
        return peer

    # Messages -------------------------------------------------------------------------------------

    async def broadcast(
        self,
        data: Payload,
        *,
        priority: Priority = NORMAL,
        key: Key | None = None,
        no_delay: bool = False,
        timeout: float | str | None = 0.0,
    ) -> BroadcastResult[Peer]:
        """Send to every known peer. One that is not connected is connected meanwhile, and its
        message waits for that; a Failed event tells when it cannot be had.

        Args:
            data, priority, key, no_delay: as Peer.send().
            timeout: seconds in all to wait for room; 0: nobody is waited for; None: no limit.

        Returns:
            Who accepted it, and who was skipped, each with the reason: WouldBlock for a peer
            without room (Timeout where room was waited for), MessageTooLarge for one whose limit it
            exceeds, NotConnected for one that is being disconnected.

        Raises:
            WrongType, InvalidArgument, InvalidState (the node is closed): it was sent to nobody.
        """
        engine, seconds = self._here, parse_timeout(timeout)
        payload = bytes(payload_of(data))
        priority = check_choices(priority, key)
        _check_here(engine)
        peers = list(self.peers.values())
        skipped: dict[Peer, errors.PeerTalkError] = {}
        for peer in peers:
            try:
                peer.offer(payload, no_delay, priority, key)
            except errors.PeerTalkError as error:
                engine.check_open()
                skipped[peer] = error
        late = [
            peer
            for peer, error in skipped.items()
            if seconds != 0 and isinstance(error, errors.WouldBlock)
        ]
        places = [_Sending(peer, priority, payload, no_delay, key) for peer in late]
        for place in places:
            place.join()  # now: who calls later stands behind, though their tasks run first
        waits = [place.wait(seconds) for place in places]
        try:
            results = await asyncio.gather(*waits, return_exceptions=True)
        finally:
            for place in places:
                place.leave()  # cancelled before its task began
        for peer, result in zip(late, results, strict=True):
            if isinstance(result, errors.PeerTalkError):
                skipped[peer] = result
            elif isinstance(result, BaseException):
                raise result
            else:
                del skipped[peer]
        return BroadcastResult([peer for peer in peers if peer not in skipped], skipped)

    async def receive(self, *, timeout: float | str | None = None) -> Message[Peer]:
        """The next message from anybody. Cancelled or timed out, no message is lost.

        Raises:
            Timeout, InvalidState (the node is closed).
        """
        engine, seconds = self._here, parse_timeout(timeout)
        inbox = engine.inbox
        got = inbox.take()
        if got is None:
            got = await _within(
                _taken(engine, inbox.waiters, inbox.take), seconds, "no message came"
            )
        return Message(got[0], got[1])  # type: ignore[arg-type]

    def messages(self) -> Incoming[Message[Peer]]:
        """Messages from anybody, as they come; ends when the node is closed, after those that had
        come. Several consumers may iterate: each message goes to one of them."""
        return _Messages(self._begun, None)

    def batches(self) -> Incoming[Batch[Peer]]:
        """Messages in bulk: the payloads that one peer sent and one turn brought. The cheapest way
        to receive; otherwise as messages()."""
        engine = self._begun
        return _Items(engine, engine.inbox.waiters, engine.inbox.take_lot, Batch)

    def send_datagram(self, peer: Peer, data: Payload) -> bool:
        """Send one datagram to a known peer, connected or not. It may be lost, come twice or
        overtake others; nobody is told. Never waits. On the node's loop only.

        Args:
            data: 0 to 1,392 bytes.

        Returns:
            Whether the system took it; if not it is gone. stats() counts both.

        Raises:
            MessageTooLarge, WrongType: it cannot be a datagram.
            NotSupported: the peer hears none. PeerNotFound: it is not known any more.
        """
        check_peer(peer)
        return self._free.datagrams.send(peer, data)

    async def receive_datagram(self, *, timeout: float | str | None = None) -> Datagram[Peer]:
        """The next datagram from anybody known. 256 wait at most, then the oldest give way.
        Cancelled or timed out, none is lost.

        Raises:
            Timeout, InvalidState (the node is closed).
        """
        engine, seconds = self._here, parse_timeout(timeout)
        datagrams = engine.datagrams
        peer, data = await _within(
            _taken(engine, datagrams.waiters, datagrams.take), seconds, "no datagram came"
        )
        return Datagram(peer, data)  # type: ignore[arg-type]

    def datagrams(self) -> Incoming[Datagram[Peer]]:
        """Datagrams from anybody known, as they come; ends when the node is closed, after those
        that had come. Several consumers may iterate: each goes to one of them."""
        engine = self._begun
        return _Items(engine, engine.datagrams.waiters, engine.datagrams.take, Datagram)

    def events(self) -> Incoming[Event]:
        """What is true now, as PeerFound, PeerConnected and PeerFrozen of those who are there, and
        what happens from now on. Each stream gets every event, and its readers share them; one that
        is read too slowly gets EventsMissed. Ends when the node is closed.

        One that nobody has any more is let go; aclose(), or `async with`, ends it at once.
        """
        engine = self._transport
        if engine is not None and (not engine.closed or engine.forked):
            _check_free(engine)
        stream = _Events(self)
        if engine is not None and engine.closed:
            stream.end()
            return stream
        self._drop_stream(None)  # where nothing happens nobody else does
        self._streams.append((weakref.ref(stream), stream.waiters))
        if engine is not None:
            engine.publish = self._publish
        return stream

    def _publish(self, event: Event) -> None:
        for stream in self._listening():
            stream.put(event)

    def _listening(self) -> list[_Events]:
        """The streams that somebody has."""
        streams = [stream for each, _ in self._streams if (stream := each()) is not None]
        if len(streams) < len(self._streams):
            self._drop_stream(None)
        return streams

    def _drop_stream(self, stream: _Events | None) -> None:
        """Feed this one, and those that nobody has, no more."""
        self._streams = [each for each in self._streams if each[0]() not in (None, stream)]
        if not self._streams and self._transport is not None:
            self._transport.publish = None

    def stats(self) -> NodeStatistics:
        """Counters, with units in NodeStatistics; of its end, once the node is closed."""
        if self._transport is None:
            raise errors.InvalidState(f"node {self.config.name!r} is not started")
        return self._transport.stats()

    @property
    def memory(self) -> MemoryReport:
        """Bytes of the C side, part by part, with peaks; of its end, once the node is closed.
        print() shows a table."""
        if self._transport is None:
            raise errors.InvalidState(f"node {self.config.name!r} is not started")
        return self._transport.memory()

    def __repr__(self) -> str:
        state = (
            "not started"
            if self._transport is None
            else "closed"
            if self._transport.closed
            else f"port {self._transport.port}"
        )
        return f"<Node {self.config.name!r} {state}>"


class Incoming(AsyncIterator[T]):
    """What comes to a node, one item after the other, for `async for` and anext(). Any number of
    tasks may share it: each item goes to one of them, who waits longest first.

    An anext() that is cancelled or out of time takes nothing along, and the next one goes on. It
    ends when the node is closed, after what had come; or by aclose(), which wakes all who wait, or
    by leaving `async with`.
    """

    __slots__ = ("__weakref__", "_over", "_waiting")

    def __init__(self) -> None:
        self._over = False
        self._waiting: list[asyncio.Future[Any]] = []

    async def aclose(self) -> None:
        """End it; nothing is lost: what has come stays for others. May be called again."""
        self._end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._over = True
        for each in self._waiting:
            _settle(each)

    async def _arrival(self, engine: Transport | None, waiters: Waiters) -> bool:
        """Wait until something has come. False: nothing will."""
        if self._over or (engine is not None and engine.closed and not engine.forked):
            return False
        future = _running_loop().create_future() if engine is None else _future(engine)
        self._waiting.append(future)
        waiters.join(future)
        try:
            await future
        except BaseException:
            waiters.leave(future)
            raise
        finally:
            self._waiting.remove(future)
        if self._over:
            waiters.leave(future)  # another stream has what woke it
        return True


class _Messages(Incoming[Message[Peer]]):
    """Messages of all peers, or of one alone."""

    __slots__ = ("_alone", "_engine", "_outlet")

    def __init__(self, engine: Transport, alone: Peer | None) -> None:
        super().__init__()
        self._engine = engine
        self._alone = alone
        self._outlet: Outlet | None = engine.inbox if alone is None else None

    def __aiter__(self) -> AsyncIterator[Message[Peer]]:
        return _Loop(self)

    async def __anext__(self) -> Message[Peer]:
        while (outlet := await self._more()) is not None:
            got = outlet.take()
            if got is not None:
                return Message(got[0], got[1])  # type: ignore[arg-type]
        raise StopAsyncIteration

    async def each(self, loop: weakref.ref[_Loop]) -> AsyncGenerator[Message[Peer], None]:
        """All of them, a lot at a time, for a loop."""
        engine = self._engine
        try:
            while True:
                outlet = self._outlet
                if outlet is None or threading.get_ident() != engine.thread:
                    outlet = await self._more()
                    if outlet is None:
                        return
                lot = outlet.current or outlet.open()
                if lot is None:
                    await self._more()
                    continue
                sender: Peer = lot.peer  # type: ignore[assignment]
                if lot.cost < _BULK:
                    for payload in lot.left:
                        yield Message(sender, payload)
                else:
                    for message in map(Message, repeat(sender), lot.left):
                        yield message
                last = outlet.finish(lot)
                if last is not None:
                    yield Message(sender, last)
        except BaseException:
            if (present := loop()) is not None:
                present.begin(self)
            raise

    async def _more(self) -> Outlet | None:
        """Where they are taken, as soon as there is one; None: there will be none."""
        engine = self._engine
        while True:
            if threading.get_ident() != engine.thread:
                _check_thread(engine)
            outlet = self._outlet
            if outlet is None:
                if self._alone is None or self._over:
                    return None
                outlet = engine.inbox.reserve(self._alone, ended=not self._alone.known)
                self._outlet = outlet
            if outlet:
                return outlet
            if outlet.ended or not await self._arrival(engine, outlet.waiters):
                self._end()
                return None

    def _end(self) -> None:
        super()._end()
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            outlet.reopen()
            if self._alone is not None:
                self._engine.inbox.release(self._alone)

    def __del__(self) -> None:
        if self._alone is not None and self._outlet is not None and not self._engine.closed:
            # a collection may begin on any thread, and in the middle of a turn
            self._engine.post(partial(self._engine.inbox.release, self._alone))


class _Loop:
    """One `async for` over messages, where time counts. A generator gives a message at two thirds
    of what a coroutine costs, but is dead once it was cancelled: then another takes its place.

    __anext__ is that of the present one, which the interpreter calls without a frame between.
    """

    __slots__ = ("__anext__", "__weakref__")

    __anext__: Callable[[], Coroutine[Any, Any, Message[Peer]]]

    def __init__(self, messages: _Messages) -> None:
        self.begin(messages)

    def begin(self, messages: _Messages) -> None:
        """Go on with a generator that is alive."""
        self.__anext__ = messages.each(weakref.ref(self)).__anext__

    def __aiter__(self) -> Self:
        return self


class _Items(Incoming[T]):
    """What an engine keeps for whoever takes it, as values of one kind."""

    __slots__ = ("_engine", "_kind", "_take", "_waiters")

    def __init__(
        self,
        engine: Transport,
        waiters: Waiters,
        take: Callable[[], tuple[Any, Any] | None],
        kind: Callable[[Any, Any], T],
    ) -> None:
        super().__init__()
        self._engine = engine
        self._waiters = waiters
        self._take = take
        self._kind = kind

    async def __anext__(self) -> T:
        while not self._over:
            _check_thread(self._engine)
            got = self._take()
            if got is not None:
                return self._kind(*got)
            if not await self._arrival(self._engine, self._waiters):
                break
        raise StopAsyncIteration


class _Events(Incoming[Event]):
    """Events since a moment, bounded."""

    __slots__ = ("_events", "_node", "waiters")

    def __init__(self, node: Node) -> None:
        super().__init__()
        engine = node._transport
        self._node: Node | None = node
        self._events: events.EventQueue[Peer] = events.EventQueue(
            () if engine is None or engine.closed else engine.present()
        )
        self.waiters = Waiters()

    def put(self, event: Event) -> None:
        """One more has happened: one of those who wait has it."""
        self._events.put(event)
        if self.waiters:
            self.waiters.wake(1)

    def end(self) -> None:
        """The node is closed, or this is: what is here is the rest."""
        self._end()

    async def __anext__(self) -> Event:
        while True:
            engine = None if self._node is None else self._node._transport
            if engine is not None and (not engine.closed or engine.forked):
                _check_thread(engine)
                _check_running(engine)
            event = self._events.take()
            if event is not None:
                return event
            if not await self._arrival(engine, self.waiters):
                raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop listening. What happened before can still be read."""
        node, self._node = self._node, None
        if node is not None:
            node._drop_stream(self)
        self._end()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _taken(engine: Transport, waiters: Waiters, take: Callable[[], T | None]) -> T:
    while (got := take()) is None:
        if not await _arrival(engine, waiters):
            engine.check_open()
    return got


async def _arrival(engine: Transport, waiters: Waiters) -> bool:
    """Wait until something has come. False: the engine is closed, nothing will."""
    if engine.closed and not engine.forked:
        return False
    future = _future(engine)
    waiters.join(future)
    try:
        await future
    except BaseException:
        waiters.leave(future)
        raise
    return True


def _running_loop() -> asyncio.AbstractEventLoop:
    """The asyncio loop that runs here.

    Raises:
        InvalidState: there is none.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise errors.InvalidState(
            "no asyncio loop runs here: peertalk.Node works under asyncio, and under anyio with "
            'its backend "asyncio"; peertalk.sync.Node works without any loop'
        ) from None


def _future(engine: Transport) -> asyncio.Future[Any]:
    """A future of the node's loop.

    Raises:
        InvalidState: another loop runs here, or none.
    """
    loop = _running_loop()
    if loop is not engine.owner:
        raise _stranger(engine)
    future: asyncio.Future[Any] = loop.create_future()
    return future


def _check_thread(engine: Transport) -> None:
    """Raises InvalidState where the node's loop does not run, by the thread alone."""
    if threading.get_ident() != engine.thread:
        _follow_loop(engine)


def _check_here(engine: Transport) -> None:
    """Raises InvalidState where the node's loop does not run, and when the node is closed."""
    _check_thread(engine)
    engine.check_open()
    _check_running(engine)


def _check_running(engine: Transport) -> None:
    """On the node's thread, where one loop runs at a time: raises InvalidState when it is not the
    node's. Costs a fourth of asking which one runs."""
    if not engine.owner.is_running():
        _running_loop()
        engine.disown()  # what comes without a look (Peer.send) is refused from here on
        raise _stranger(engine)


def _check_free(engine: Transport) -> None:
    """Likewise for what is no coroutine, and so may be called while no loop runs."""
    _check_thread(engine)
    engine.check_open()
    if not engine.owner.is_running() and asyncio._get_running_loop() is not None:
        raise _stranger(engine)


def _follow_loop(engine: Transport) -> None:
    """Nothing ran on this thread so far: the engine comes along when its loop was moved here.

    Raises:
        InvalidState: it was not.
    """
    engine.check_open()
    if _running_loop() is not engine.owner:
        raise _stranger(engine)
    engine.move_here()


def _stranger(engine: Transport) -> errors.PeerTalkError:
    """What who uses a node on another loop or thread hears."""
    try:
        engine.check_open()
    except errors.InvalidState as error:
        return error
    name = engine.config.name
    if engine.owner.is_closed():
        return errors.InvalidState(
            f"node {name!r} belongs to an asyncio loop that is closed: only close_nowait() is "
            "left; make a new node in this loop"
        )
    threads = (each.name for each in threading.enumerate() if each.ident == engine.thread)
    return errors.InvalidState(
        f"node {name!r} belongs to another asyncio loop, that of thread "
        f"{next(threads, 'unknown')!r}, and this is thread {threading.current_thread().name!r}: "
        "hand the coroutine to that loop (asyncio.run_coroutine_threadsafe), or call send_nowait, "
        "which is for any thread"
    )


def _end(engine: Transport, worker: Worker) -> None:
    """Close an engine at once: on its own thread, or on any when its loop is closed."""
    if worker.loop.is_closed():
        worker.stop()  # nobody turns it any more
        engine.move_here()
    elif engine.thread == NO_THREAD:
        engine.move_here()
    engine.close_now()
    worker.stop()


def _is_inside() -> bool:
    """Whether whoever called the caller was called from within the package, which is in the middle
    of something then: a signal handler, a finalizer, or a function that was given to it."""
    frame = sys._getframe(2).f_back
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_INSIDE):
            return True
        frame = frame.f_back
    return False


def _wake_up() -> None:
    """What a loop is asked for so that its wait ends."""


async def _within(
    awaited: Awaitable[T],
    seconds: float | None,
    what: str,
    peer: str | None = None,
) -> T:
    if seconds is None:
        return await awaited
    try:
        _running_loop()  # asyncio.timeout has no such sentence
    except errors.InvalidState:
        if isinstance(awaited, Coroutine):
            awaited.close()
        raise
    try:
        async with asyncio.timeout(seconds):
            return await awaited
    except TimeoutError as error:
        if isinstance(error, errors.PeerTalkError):
            raise
        raise errors.Timeout(f"{what} within {seconds:g} s", peer=peer) from None
