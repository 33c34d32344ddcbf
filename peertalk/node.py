"""The front door for asyncio: Node.

A node belongs to the process and the asyncio loop that it was started in. Everything here runs on
that loop, and says InvalidState elsewhere; any thread may call send_nowait, close_nowait, stats and
memory. Coroutines exist here, in peer, incoming and ownership alone: the engine (runtime/transport)
reports by callbacks, and a Waiting is what tasks await meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Self, TypeVar, Unpack

from . import errors
from .config import Config, NodeOptions, choose_config
from .doors.door import AnyNode, Broadcast, dialling, remote_of
from .doors.peers import BroadcastResult
from .incoming import Incoming, Items, Listeners, Messages, first
from .ownership import (
    answered,
    check_free,
    check_here,
    end,
    is_in_use,
    running_loop,
    waiting_for,
    within,
)
from .peer import Peer, StreamOut
from .protocol import events
from .protocol.addresses import Address, dotted_address
from .protocol.outbox import NORMAL, Key, Priority
from .protocol.payloads import Payload, check_choices, payload_of
from .protocol.wire import Batch, Datagram, Message
from .quantities import parse_timeout
from .runtime.log import NodeLog
from .runtime.transport import Transport
from .runtime.worker import Worker
from .runtime.world import World
from .waiting import Waiting

__all__ = ["Event", "Incoming", "Node", "Peer", "StreamOut"]

Event = events.Event[Peer]
"""Any event of a node."""

T = TypeVar("T")


class Node(AnyNode[Peer]):
    """This program on the network.

    Discovery and listening begin with `async with` (or start()) and end with it (or aclose()).

    A node belongs to the process and the asyncio loop in which it was started. Its coroutines and
    streams, and those of its peers, raise InvalidState on another loop or thread, and under trio. A
    forked child gets InvalidState for all use, but for what a Peer tells, which is as it was at the
    fork; the child says nothing in its parent's name.
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

    _start = "use `async with` or start()"

    def __init__(
        self,
        name: str | None = None,
        *,
        config: Config | None = None,
        world: World | None = None,
        **options: Unpack[NodeOptions],
    ) -> None:
        config = choose_config(config, name, options)
        if world is not None and not isinstance(world, World):
            raise errors.WrongType(
                f"world={errors.shown(world)}: a simulated network brings its own; else leave it "
                "out"
            )
        super().__init__(config)
        self._world = World() if world is None else world
        self._worker: Worker | None = None
        self._listeners: Listeners[Peer] = Listeners()
        self._watchers: list[Waiting] = []
        """Who waits for somebody to be known, or for the address of a host."""

    # Life -----------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Listen and announce. Returns this node.

        Raises:
            AddressInUse, NoNetwork, PlatformError: naming the option that changes it.
            InvalidState: started before, or no asyncio loop runs here.
        """
        loop = running_loop()
        self._check_new()
        worker = self._world.make_worker(loop)
        transport = Transport(self.config, self._world, Peer, worker.schedule)
        transport.owner = loop
        transport.open()
        self._transport, self._worker = transport, worker
        self._received: Messages[Peer] = Messages(transport, None)
        worker.start(transport)
        self._listeners.start(transport)
        return self

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        if self._transport is None or not self._transport.forked:  # a child leaves in silence
            await self.aclose()

    async def aclose(self, timeout: float | str | None = 5.0) -> int:
        """Send what is queued, say goodbye, close; at most timeout seconds (None: however long that
        takes). May be called again, meanwhile too: of several times the shortest holds. Cancelled,
        it closes the node at once. Wakes every waiter.

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
        if transport.closed:
            self._closed(transport)
        else:
            done = waiting_for(transport)
            transport.close(seconds, done.tell)
            if self._worker is not None and not transport.closed:
                self._worker.schedule_anew()
            try:
                await done
            finally:
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
        if is_in_use(transport) and worker.ask(self.close_nowait):
            return 0
        self._closed(transport)
        worker.ask(_wake_up)  # a signal handler does not end the wait that it interrupts
        return transport.unsent

    def _closed(self, transport: Transport) -> None:
        """Close what is not closed yet, at once, and tell all who wait."""
        worker = self._worker
        if worker is not None:
            end(transport, worker)
        self._worker = None
        self._wake_watchers()
        self._listeners.end_all()
        # a Message is not tracked by the collector: through its peer it must not hold this node
        transport.publish = transport.on_change = transport.owner = None
        if worker is not None and transport.unsent:  # last: a program's own log may raise
            NodeLog("peertalk", self.config.name).warning(
                "closed with %d messages not sent", transport.unsent
            )

    def __del__(self) -> None:
        transport = getattr(self, "_transport", None)
        worker = getattr(self, "_worker", None)
        if transport is None or transport.closed or worker is None:
            return
        name = self.config.name
        with contextlib.suppress(Exception):
            # a collection may begin on any thread, and in the middle of something
            if not (is_in_use(transport) and worker.ask(partial(end, transport, worker))):
                end(transport, worker)
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
        if (
            transport is None
            or transport.closing
            or threading.get_ident() != transport.thread
            or not transport.owner.is_running()
        ):
            transport = self._engine
            check_here(transport)
        return transport

    @property
    def _free(self) -> Transport:
        """Likewise for what is no coroutine."""
        engine = self._engine
        check_free(engine)
        return engine

    # Who ------------------------------------------------------------------------------------------

    def _do(self, what: Callable[[Transport], T]) -> T:
        return what(self._free)

    async def wait_for(
        self, who: str | Callable[[Peer], bool], *, timeout: float | str | None = None
    ) -> Peer:
        """The peer with this id or name, or the first for which the function is true, as soon as it
        is known. In a large room an id or a name is found quicker, since it is asked for.

        Raises:
            Timeout: naming some of those who are known. WrongType: who is no str and no function.
        """
        seconds, engine = parse_timeout(timeout), self._here
        found = self.peers.matching(who)
        if found is not None:
            return found
        if isinstance(who, str):
            engine.seek(who)
        unheard = f"no peer {errors.shown(who)} was heard"
        try:
            return await within(self._wait_for(engine, who), seconds, unheard)
        except errors.Timeout as error:
            raise errors.Timeout(f"{error}; {self.peers.heard()}") from None

    async def _wait_for(self, engine: Transport, who: str | Callable[[Peer], bool]) -> Peer:
        while not engine.closed:
            await self._change(engine)
            if not engine.closed and (found := self.peers.matching(who)) is not None:
                return found
        raise errors.InvalidState(f"node {self.config.name!r} is closed")

    async def _look_up(self, engine: Transport, host: str) -> str:
        loop = asyncio.get_running_loop()
        outcome: list[tuple[str | None, errors.PeerTalkError | None]] = []

        def looked_up(address: str | None, error: errors.PeerTalkError | None) -> None:
            outcome.append((address, error))
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(self._wake_watchers)

        engine.world.resolve(host, looked_up)
        while not outcome:
            await self._change(engine)
            engine.check_open()
        address, error = outcome[0]
        if address is None:
            raise error or errors.InternalError("no address and no error")
        return address

    async def _change(self, engine: Transport) -> None:
        """Wait until the watchers are woken."""
        changed = waiting_for(engine)
        self._watchers.append(changed)
        engine.on_change = self._wake_watchers
        try:
            await changed
        finally:
            if changed in self._watchers:
                self._watchers.remove(changed)
            if not self._watchers:
                engine.on_change = None  # or the engine, which its loop holds, holds this node

    def _wake_watchers(self) -> None:
        """Who is known or connected has changed, a host was looked up, or the node is closed: all
        who wait for that look again, in the next tick, once for all that changed in this one."""
        watchers, self._watchers = self._watchers, []
        if self._transport is not None:
            self._transport.on_change = None  # a change costs nothing while nobody waits
        for changed in watchers:
            changed.tell()

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
        seconds, engine = parse_timeout(timeout), self._here
        who = self._whom(who)
        if isinstance(who, Peer):
            return await who.connect(timeout=seconds)
        host, port = who
        return await within(
            self._dial(engine, host, port), seconds, f"no connection to {host}:{port}"
        )

    async def _dial(self, engine: Transport, host: str, port: int) -> Peer:
        dotted = dotted_address(host)
        if dotted is None:
            dotted = await self._look_up(engine, host)
        found = await answered(engine, dialling(engine, (dotted, port), host), None)
        peer: Peer = found.view
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
        engine = self._here
        payload = bytes(payload_of(data, engine.traffic.max_message))
        seconds = parse_timeout(timeout)
        priority = check_choices(priority, key)
        sent: Broadcast[Peer] = Broadcast(engine, payload, priority, key, no_delay)
        if seconds == 0:
            return sent.result()
        sent.stand()  # now: who calls later stands behind
        try:
            return await answered(engine, sent, seconds)
        except errors.Timeout:
            return sent.late(seconds or 0.0)

    async def receive(self, *, timeout: float | str | None = None) -> Message[Peer]:
        """The next message from anybody. Cancelled or timed out, no message is lost.

        Raises:
            Timeout, InvalidState (the node is closed).
        """
        seconds = None if timeout is None else parse_timeout(timeout)
        engine = self._here
        if engine.inbox.cost and (got := engine.inbox.take()) is not None:
            return Message(got[0].view, got[1])
        came = self._received.take()
        message = await (came if seconds is None else within(came, seconds, "no message came"))
        if message is None:
            engine.check_open()
            raise errors.InternalError("no message, and the node is open")
        return message

    def messages(self) -> Incoming[Message[Peer]]:
        """Messages from anybody, as they come; ends when the node is closed, after those that had
        come. Several consumers may iterate: each message goes to one of them."""
        return Messages(self._begun, None)

    def batches(self) -> Incoming[Batch[Peer]]:
        """Messages in bulk: the payloads that one peer sent and one turn brought. The cheapest way
        to receive; otherwise as messages()."""
        engine = self._begun
        return Items(engine, engine.inbox.waiters, engine.inbox.take_lot, Batch)

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
        remote = remote_of(peer)
        return self._free.datagrams.send(remote, data)

    async def receive_datagram(self, *, timeout: float | str | None = None) -> Datagram[Peer]:
        """The next datagram from anybody known. 256 wait at most, then the oldest give way.
        Cancelled or timed out, none is lost.

        Raises:
            Timeout, InvalidState (the node is closed).
        """
        seconds, engine = parse_timeout(timeout), self._here
        return await within(first(self.datagrams(), engine), seconds, "no datagram came")

    def datagrams(self) -> Incoming[Datagram[Peer]]:
        """Datagrams from anybody known, as they come; ends when the node is closed, after those
        that had come. Several consumers may iterate: each goes to one of them."""
        engine = self._begun
        return Items(engine, engine.datagrams.waiters, engine.datagrams.take, Datagram)

    def events(self) -> Incoming[Event]:
        """What is true now, as PeerFound, PeerConnected and PeerFrozen of those who are there, and
        what happens from now on. Each stream gets every event, and its readers share them; one that
        is read too slowly gets EventsMissed. Ends when the node is closed.

        One that nobody has any more is let go; aclose(), or `async with`, ends it at once.
        """
        return self._listeners.listen(self)


def _wake_up() -> None:
    """What a loop is asked for so that its wait ends."""
