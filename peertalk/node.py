"""The front door for asyncio: Node and Peer.

Everything here runs on the loop that the node was started on. Below this module there is no
coroutine: the engine (runtime/transport) reports by callbacks, and this module makes futures of
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import threading
import warnings
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from . import errors
from .config import Config, load_config, parse_duration
from .protocol import events
from .protocol.outbox import HIGHEST_FIRST, NORMAL, Key, Priority
from .protocol.peer import PeerFlag
from .protocol.stream import ENDED, StreamState
from .protocol.wire import Batch, Datagram, Message
from .runtime.datagrams import Datagrams
from .runtime.inbox import Inbox
from .runtime.peers import BroadcastResult, Peers
from .runtime.remote import Payload, Remote, SendOptions, as_bytes, check_choices, payload_of
from .runtime.statistics import MemoryReport, NodeStatistics
from .runtime.streaming import Outgoing, Progress
from .runtime.transport import Transport
from .runtime.worker import Worker
from .runtime.world import Address, World, check_address

log = logging.getLogger("peertalk")

T = TypeVar("T")
Event = events.Event["Peer"]

_EVENTS_MAX = 4096


class Peer(Remote):
    """Someone out there. Made by its Node; hashable, and the same object as long as the node knows
    it.

    name, id, address, flags, state, connected, capabilities, max_message (bytes) and classic tell
    about it; accepted is the number of the last message that was accepted for it. Coroutines run on
    the node's loop only; send_nowait may be called from any thread.
    """

    __slots__ = ("_waiters",)

    def attach(self, transport: Transport) -> None:
        """Belong to a node's engine. Called by the node."""
        super().attach(transport)
        self._waiters: list[deque[asyncio.Future[None]] | None] | None = None
        """Who waits to send, a line for each class; None: nobody."""

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

        Cancelled, the message was not accepted and never leaves.
        """
        transport = self.transport
        if transport.crowded:
            await asyncio.sleep(0)
        quick = self.quick
        # one look at the options: five defaults would cost a tenth
        if quick is not None and data.__class__ is bytes and not options:
            code = quick(data)
            if code >= 0:
                if code:
                    transport.hint(code)
                self.accepted += 1
                return self.accepted
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
            WouldBlock: there is no room (reason "queue"), or the peer's pressure refuses its class
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
        if (self._waiters is not None and self._waiters[priority]) or not self.accept(
            payload, no_delay, priority, key
        ):
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

        Returns:
            How many were accepted: all of them.

        Raises:
            As send(). Those before the one that was refused are accepted; cancelled or timed out,
            those that `accepted` has counted are, the rest are not.
        """
        messages = as_bytes(payloads)
        await _within(
            self._send_all(messages, check_choices(priority, None)),
            timeout,
            f"no room for all messages to peer {self.name!r}",
            self.name,
        )
        return len(messages)

    async def connect(self, *, timeout: float | str | None = None) -> Peer:
        """Have an open connection; returns this peer.

        Raises:
            ConnectionRefused, NetworkFailure, Timeout: after every address at which the peer was
                heard was tried.
        """
        self.transport.check_open()
        if not self.connected or self.connection is None:
            await _within(self._reach(), timeout, f"no connection to peer {self.name!r}", self.name)
        return self

    async def disconnect(self, *, timeout: float | str | None = None) -> None:
        """Leave politely: what was accepted is sent first. The peer stays known.

        Args:
            timeout: seconds after which the connection is given up (Config.drain_timeout where none
                are given); what was not sent by then is told as Failed.
        """
        if self.connection is None:
            return
        connection = self.connection
        seconds = None if timeout is None else parse_duration(timeout)
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
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
        self.transport.check_open()
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        def measured(seconds: float | None, error: errors.PeerTalkError | None) -> None:
            if future.done():
                return
            if seconds is None:
                future.set_exception(error or errors.InternalError("no measurement and no error"))
            else:
                future.set_result(seconds)

        self.transport.switchboard.pulse.ping(self, measured)
        try:
            return await _within(
                future, timeout, f"no answer to a PING from peer {self.name!r}", self.name
            )
        finally:
            self.stop_pinging(measured)

    async def messages(self) -> AsyncIterator[Message[Peer]]:
        """Messages of this peer; while this is iterated they come here only. Ends when the node is
        closed."""
        if self.inbox is None:
            self.inbox = Inbox(self.transport.config.receive_queue_bytes, self.transport.resume)
        inbox = self.inbox
        inbox.consumers += 1
        try:
            async for message in _messages(self.transport, inbox):
                yield message
        finally:
            inbox.consumers -= 1
            if not inbox.consumers:
                self.inbox = None
                while (left := inbox.take_lot()) is not None:
                    self.transport.inbox.put(left[0], left[1], sum(map(len, left[1])))

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
        self.transport.check_open()
        if self._waiters or not self.connected:
            payload = bytes(payload)
        waiting = self._wait_and_accept(payload, priority, key, no_delay, connect)
        return await _within(
            waiting, timeout, f"no room for a message to peer {self.name!r}", self.name
        )

    async def _wait_and_accept(
        self,
        payload: bytes | bytearray | memoryview,
        priority: Priority,
        key: Key | None,
        no_delay: bool,
        connect: bool,
    ) -> int:
        async with _Place(self, priority) as place:
            while True:
                if not self.connected:
                    if not connect:
                        raise errors.NotConnected(
                            f"peer {self.name!r} is not connected", peer=self.name
                        )
                    place.take()
                    await self._reach()
                self.transport.check_open()
                if place.first and self.accept(payload, no_delay, priority, key):
                    return self.accepted
                payload = bytes(payload)
                await place.wait()

    async def _send_all(self, messages: list[bytes], priority: Priority) -> None:
        done = 0
        self.transport.check_open()
        refusal = self.refusal
        async with _Place(self, priority) as place:
            while done < len(messages):
                if self.transport.crowded:
                    await asyncio.sleep(0)
                if not self.connected:
                    self.check_refusal(refusal)
                    place.take()
                    await self._reach()
                self.transport.check_open()
                if place.first:
                    taken = self.accept_many(messages, done, priority)
                    done += taken
                    if taken:
                        continue
                await place.wait()

    async def _reach(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def reached(peer: Remote | None, error: errors.PeerTalkError | None) -> None:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)

        self.transport.switchboard.reach(self, reached)
        await future

    def on_room(self) -> None:
        """The engine has room. Wakes those who wait, the highest class first, first come first
        served within it."""
        super().on_room()
        if self._waiters is None:
            return
        if self._waiters[NORMAL]:
            self.quick = None  # a new message must not overtake them
        for priority in HIGHEST_FIRST:
            waiters = self._waiters[priority]
            if waiters and not self.is_refused(priority):
                room = 1 if self.outbox is None else self.outbox.room(priority)
                for waiter in islice(waiters, max(1, room)):
                    if not waiter.done():
                        waiter.set_result(None)

    def on_lost(self, error: errors.PeerTalkError) -> None:
        """The link is gone: those who wait hear why."""
        super().on_lost(error)
        for waiters in self._waiters or ():
            for waiter in waiters or ():
                if not waiter.done():
                    waiter.set_exception(error)


class _Place:
    """A place in the line of those who wait to send messages of one class to a peer. Leaving it
    lets the next one try."""

    __slots__ = ("_mine", "_peer", "_priority")

    def __init__(self, peer: Peer, priority: Priority) -> None:
        self._peer = peer
        self._priority = priority
        self._mine: asyncio.Future[None] | None = None

    @property
    def first(self) -> bool:
        """Nobody waits before me."""
        lines = self._peer._waiters
        return lines is None or not (line := lines[self._priority]) or line[0] is self._mine

    def take(self) -> None:
        """Stand in line, so that nobody who comes later is served before."""
        if self._mine is None:
            self._renew()

    async def wait(self) -> None:
        """Until there may be room; raises what the link died of."""
        await self._renew()

    def _renew(self) -> asyncio.Future[None]:
        lines = self._peer._waiters
        if lines is None:
            lines = self._peer._waiters = [None] * len(Priority)
        line = lines[self._priority]
        if line is None:
            line = lines[self._priority] = deque()
        renewed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._mine is None:
            line.append(renewed)
        else:
            _seen(self._mine)
            line[line.index(self._mine)] = renewed
        self._mine = renewed
        if self._priority is NORMAL:
            self._peer.quick = None
        return renewed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        lines = self._peer._waiters
        if self._mine is not None and lines is not None:
            line = lines[self._priority]
            if line is not None and self._mine in line:
                line.remove(self._mine)
            if not any(lines):
                self._peer._waiters = None
            _seen(self._mine)
            if not self._peer.transport.closed:
                self._peer.transport.pump(self._peer)


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
        if self.state not in ENDED:
            self.check_begun()
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(done)
            try:
                await _within(
                    done,
                    timeout,
                    f"the stream to peer {self.peer.name!r} did not end",
                    self.peer.name,
                )
            finally:
                self._waiting.remove(done)
        if self.error is not None:
            raise self.error
        return self.state

    def on_end(self) -> None:
        """Wakes those who wait for the end."""
        for done in self._waiting:
            _settle(done)

    async def __aenter__(self) -> Self:
        self.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()


class Node:
    """This program on the network.

    Discovery and listening begin with `async with` (or start()) and end with it (or aclose()).

    Args:
        name: 1 to 31 bytes of UTF-8; None: PEERTALK_NAME, else the host's name.
        config: a Config made before; not together with options.
        world: where it lives; None: on this machine. A simulated network brings its own.
        options: any field of Config.

    Raises:
        InvalidArgument: an option is out of its bounds, or would stop the asyncio loop (when_full
            "sync"); says which, and where it came from.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        config: Config | None = None,
        world: World | None = None,
        **options: Any,
    ) -> None:
        if config is None:
            config = load_config(**options) if name is None else load_config(name=name, **options)
        elif options or name is not None:
            raise errors.InvalidArgument("give a Config or options, not both")
        if config.when_full == "sync" and world is None:
            text = (
                f"when_full='sync' ({config.explain()['when_full'][1]}): a blocking send would "
                "stop the whole asyncio loop"
            )
            raise errors.InvalidArgument(
                f"{text}; leave it at 'wait', or use peertalk.sync.Node, which blocks only "
                "whoever called it"
            )
        self.config = config
        self._world = World() if world is None else world
        self._transport: Transport | None = None
        self._worker: Worker | None = None
        self._streams: list[_EventStream] = []

    # Life -----------------------------------------------------------------------------------------

    async def start(self) -> Node:
        """Listen and announce. Returns this node.

        Raises:
            AddressInUse, NoNetwork, PlatformError: naming the option that changes it.
            InvalidState: started before.
        """
        if self._transport is not None:
            raise errors.InvalidState(
                f"node {self.config.name!r} was started before; make a new one"
            )
        worker = self._world.make_worker(asyncio.get_running_loop())
        transport = Transport(self.config, self._world, Peer, worker.schedule)
        transport.open()
        self._transport, self._worker = transport, worker
        worker.start(transport)
        if self._streams:
            transport.publish = self._publish
        return self

    async def __aenter__(self) -> Node:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self, timeout: float | str = 5.0) -> int:
        """Send what is queued, say goodbye, close; at most timeout seconds. May be called again.
        Wakes every waiter.

        Returns:
            Messages that were accepted and not sent; each was reported as Failed, and their number
            is logged.
        """
        transport = self._transport
        if transport is None:
            return 0
        if not transport.closed:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            transport.close(parse_duration(timeout), lambda: _settle(done))
            try:
                await done
            except asyncio.CancelledError:
                transport.close_now()
                self._closed(transport)
                raise
        self._closed(transport)
        return transport.unsent

    def close_nowait(self) -> int:
        """Close at once, without sending what is queued; for signal handlers. Returns the messages
        that were not sent."""
        transport = self._transport
        if transport is None:
            return 0
        transport.close_now()
        self._closed(transport)
        return transport.unsent

    def _closed(self, transport: Transport) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
            if transport.unsent:
                log.warning(
                    "node %r was closed with %d messages not sent",
                    self.config.name,
                    transport.unsent,
                )
        for peer in list(transport.peers.values()):
            peer.on_lost(errors.InvalidState(f"node {self.config.name!r} is closed"))
        transport.wake_arrivals()
        for stream in self._streams:
            stream.end()

    def __del__(self) -> None:
        transport = getattr(self, "_transport", None)
        if transport is not None and not transport.closed:
            warnings.warn(
                f"node {self.config.name!r} was not closed; use `async with` or aclose()",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )
            with contextlib.suppress(Exception):
                transport.close_now()
                if self._worker is not None:
                    self._worker.stop()

    @property
    def _engine(self) -> Transport:
        if self._transport is None:
            raise errors.InvalidState(
                f"node {self.config.name!r} is not started; use `async with` or start()"
            )
        self._transport.check_open()
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
        self._engine.set_flags(flags)

    @property
    def peers(self) -> Peers[Peer]:
        """Who is known now."""
        return Peers(self._engine.peers, self._engine)  # type: ignore[arg-type]

    async def wait_for(
        self, who: str | Callable[[Peer], bool], *, timeout: float | str | None = None
    ) -> Peer:
        """The peer with this id or name, or the first for which the function is true, as soon as it
        is known.

        Raises:
            Timeout: naming who is known instead.
        """
        stream = self.events()
        try:
            found = self._matching(who)
            if found is not None:
                return found
            waited = self._wait_for(stream, who)
            return await _within(
                waited, timeout, lambda: f"no peer {who!r} was heard; known: {self.peers.names()};"
            )
        finally:
            await stream.aclose()

    async def _wait_for(self, stream: _EventStream, who: str | Callable[[Peer], bool]) -> Peer:
        async for _ in stream:
            found = self._matching(who)
            if found is not None:
                return found
        raise errors.InvalidState(f"node {self.config.name!r} was closed")

    def _matching(self, who: str | Callable[[Peer], bool]) -> Peer | None:
        return self.peers.matching(who)

    async def connect(
        self, who: Address | Peer | str, *, timeout: float | str | None = None
    ) -> Peer:
        """Connect to an address (IPv4 address or host name, TCP port), a peer, or the name or id of
        a known one.

        Raises:
            PeerNotFound: no such peer is known.
            ConnectionRefused, NetworkFailure, Timeout.
            InvalidArgument: the address is this node itself.
        """
        engine = self._engine
        if isinstance(who, str):
            who = self.peers[who]
        if isinstance(who, Peer):
            return await who.connect(timeout=timeout)
        address = await _resolve(who)
        future: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()

        def reached(peer: Remote | None, error: errors.PeerTalkError | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                assert isinstance(peer, Peer)
                future.set_result(peer)

        engine.switchboard.dial(address, reached)
        return await _within(future, timeout, f"no connection to {address[0]}:{address[1]}")

    # Messages -------------------------------------------------------------------------------------

    async def broadcast(
        self,
        data: Payload,
        *,
        priority: Priority = NORMAL,
        key: Key | None = None,
        no_delay: bool = False,
        timeout: float | str | None = 5.0,
    ) -> BroadcastResult[Peer]:
        """Send to every connected peer, waiting for room up to timeout seconds in all. priority,
        key, no_delay: as Peer.send(). Who cannot take it is skipped, with the reason:
        MessageTooLarge for a peer whose limit it exceeds, Timeout where no room came.

        Raises:
            WrongType, InvalidArgument: it was sent to nobody.
        """
        peers = [peer for peer in self.peers.values() if peer.connected]
        payload = bytes(payload_of(data))
        priority = check_choices(priority, key)
        sends = [
            peer.send(
                payload,
                priority=priority,
                key=key,
                no_delay=no_delay,
                connect=False,
                timeout=timeout,
            )
            for peer in peers
        ]
        results = await asyncio.gather(*sends, return_exceptions=True)
        skipped: dict[Peer, errors.PeerTalkError] = {}
        for peer, result in zip(peers, results, strict=True):
            if isinstance(result, errors.PeerTalkError):
                skipped[peer] = result
            elif isinstance(result, BaseException):
                raise result
        return BroadcastResult([peer for peer in peers if peer not in skipped], skipped)

    async def receive(self, *, timeout: float | str | None = None) -> Message[Peer]:
        """The next message from anybody. Cancelled or timed out, no message is lost.

        Raises:
            Timeout, InvalidState (the node is closed).
        """
        inbox = self._engine.inbox
        got = inbox.take()
        if got is None:
            got = await _within(_taken(self._engine, inbox, inbox.take), timeout, "no message came")
        return Message(got[0], got[1])  # type: ignore[arg-type]

    def messages(self) -> AsyncIterator[Message[Peer]]:
        """Messages from anybody, as they come; ends when the node is closed. Several consumers may
        iterate: each message goes to one of them."""
        engine = self._engine
        return _messages(engine, engine.inbox)

    async def batches(self) -> AsyncIterator[Batch[Peer]]:
        """Messages in bulk: the payloads that one peer sent and one turn brought. The cheapest way
        to receive; ends when the node is closed."""
        engine = self._engine
        inbox = engine.inbox
        while True:
            got = inbox.take_lot()
            if got is None:
                if not await _arrival(engine, inbox):
                    return
                continue
            yield Batch(got[0], got[1])  # type: ignore[arg-type]

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
        return self._engine.datagrams.send(peer, data)

    async def receive_datagram(self, *, timeout: float | str | None = None) -> Datagram[Peer]:
        """The next datagram from anybody known. 256 wait at most, then the oldest give way.
        Cancelled or timed out, none is lost.

        Raises:
            Timeout, InvalidState (the node is closed).
        """
        datagrams = self._engine.datagrams
        peer, data = await _within(
            _taken(self._engine, datagrams, datagrams.take), timeout, "no datagram came"
        )
        return Datagram(peer, data)  # type: ignore[arg-type]

    async def datagrams(self) -> AsyncIterator[Datagram[Peer]]:
        """Datagrams from anybody known, as they come; ends when the node is closed. Several
        consumers may iterate: each goes to one of them."""
        engine = self._engine
        while True:
            got = engine.datagrams.take()
            if got is not None:
                yield Datagram(got[0], got[1])  # type: ignore[arg-type]
            elif not await _arrival(engine, engine.datagrams):
                return

    def events(self) -> _EventStream:
        """What happens, from now on: an async iterator of event values. Each stream gets every
        event; one that is read too slowly gets EventsMissed.

        Close it (aclose, or `async with`) when it is no longer read.
        """
        stream = _EventStream(self)
        if self._transport is not None and self._transport.closed:
            stream.end()
            return stream
        self._streams.append(stream)
        if self._transport is not None:
            self._transport.publish = self._publish
        return stream

    def _publish(self, event: Event) -> None:
        for stream in self._streams:
            stream.put(event)

    def _drop_stream(self, stream: _EventStream) -> None:
        if stream in self._streams:
            self._streams.remove(stream)
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


class _EventStream:
    """Events for one consumer, bounded."""

    def __init__(self, node: Node) -> None:
        self._node: Node | None = node
        self._events: deque[Event] = deque()
        self._missed = 0
        self._waiting: asyncio.Future[None] | None = None
        self._ended = False

    def put(self, event: Event) -> None:
        """Add one, or count it as missed."""
        # once some are missed, all are until that is told: it has a place among the others
        if self._missed or len(self._events) >= _EVENTS_MAX:
            self._missed += 1
        else:
            self._events.append(event)
        self._wake()

    def end(self) -> None:
        """The node is closed: what is here is the rest."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            if self._events:
                return self._events.popleft()
            if self._missed:
                missed, self._missed = self._missed, 0
                return events.EventsMissed(missed)
            if self._ended:
                raise StopAsyncIteration
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting

    async def aclose(self) -> None:
        """Stop listening."""
        node, self._node = self._node, None
        if node is not None:
            node._drop_stream(self)
        self.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


def _seen(future: asyncio.Future[None]) -> None:
    """No warning when it raised while nobody awaited it."""
    if future.done() and not future.cancelled():
        future.exception()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _messages(engine: Transport, inbox: Inbox) -> AsyncIterator[Message[Peer]]:
    while True:
        lot = inbox.current or inbox.advance()
        if lot is None:
            if not await _arrival(engine, inbox):
                return
            continue
        peer = lot.peer
        for payload in lot.left:
            yield Message(peer, payload)  # type: ignore[arg-type]
        if inbox.current is lot:
            inbox.advance()


async def _taken(engine: Transport, inbox: Inbox | Datagrams, take: Callable[[], T | None]) -> T:
    while (got := take()) is None:
        if not await _arrival(engine, inbox):
            engine.check_open()
    return got


async def _arrival(engine: Transport, inbox: Inbox | Datagrams) -> bool:
    """Wait until something has come. False: the engine is closed, nothing will."""
    if engine.closed:
        return False
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    engine.arrivals.append(future)
    inbox.on_arrival = engine.wake_arrivals
    try:
        await future
    finally:
        if future.cancelled():
            with contextlib.suppress(ValueError):
                engine.arrivals.remove(future)
    return True


async def _within(
    awaited: Awaitable[T],
    timeout: float | str | None,
    what: str | Callable[[], str],
    peer: str | None = None,
) -> T:
    if timeout is None:
        return await awaited
    seconds = parse_duration(timeout)
    try:
        async with asyncio.timeout(seconds):
            return await awaited
    except TimeoutError as error:
        if isinstance(error, errors.PeerTalkError):
            raise
        raise errors.Timeout(
            f"{what if isinstance(what, str) else what()} within {seconds:g} s", peer=peer
        ) from None


async def _resolve(address: object) -> Address:
    host, port = check_address(address)
    with contextlib.suppress(ValueError):
        return str(ipaddress.IPv4Address(host)), port  # no thread for what needs no name server
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, family=socket.AF_INET, type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as error:  # UnicodeError: no host can have that name
        raise errors.NetworkFailure(f"host {host!r} is not known: {error}") from error
    return str(found[0][4][0]), port
