"""The same front door without await: a Node that works while one of its methods runs, on the
caller's own thread.

There is no hidden thread and no hidden event loop. A node that is not called is silent: it hears,
answers and sends nothing until the next call; a program with a loop of its own (a game) calls
poll() in it. What send() accepted has been offered to the system when it returns.

A node belongs to the thread that holds its lock, which is each method's for as long as it runs.
Other threads may call any method: send_nowait never waits for the lock, the others get it when the
present turn ends.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from . import errors
from .config import Config, choose_config, parse_timeout
from .protocol import events
from .protocol.outbox import NORMAL, Key, Priority
from .protocol.peer import PeerFlag
from .protocol.stream import ENDED, StreamState
from .protocol.wire import Batch, Datagram, Message
from .runtime.log import NodeLog
from .runtime.peers import BroadcastResult, Peers
from .runtime.remote import (
    Drawing,
    Payload,
    Remote,
    Uncopied,
    check_choices,
    check_peer,
    payload_of,
)
from .runtime.statistics import MemoryReport, NodeStatistics
from .runtime.streaming import Outgoing, Progress
from .runtime.transport import Transport
from .runtime.world import Address, World, check_address, dotted_address

__all__ = ["Event", "Node", "Peer", "StreamOut"]


T = TypeVar("T")
Event = events.Event["Peer"]
"""Any event of a node."""

_HANDOVER = 0.001
"""Seconds that a waiting method leaves the lock to another thread that asked for it."""


class _Ended(Exception):
    """No more messages will come from this peer."""


class Peer(Remote):
    """Someone out there. As peertalk.Peer, without await."""

    __slots__ = ("_lost",)

    def attach(self, transport: Transport) -> None:
        """Belong to a node's engine. Called by the node."""
        super().attach(transport)
        self._lost: errors.PeerTalkError | None = None

    @property
    def _node(self) -> Node:
        node = self.transport.owner
        if isinstance(node, weakref.ref):
            node = node()
        if node is None:
            self.transport.check_open()
        assert isinstance(node, Node)
        return node

    def send(
        self,
        data: Payload,
        *,
        priority: Priority = NORMAL,
        key: Key | None = None,
        no_delay: bool = False,
        connect: bool = True,
        timeout: float | str | None = None,
    ) -> int:
        """Accept one message for this peer, turning the node while there is no room. Returns its
        number. Arguments as peertalk.Peer.send.

        Raises:
            MessageTooLarge, WrongType, InvalidArgument, ConnectionClosed, ConnectionRefused,
            NotConnected, Timeout: nothing was accepted.
        """
        payload, seconds = payload_of(data), parse_timeout(timeout)
        if priority is not NORMAL or key is not None:
            priority = check_choices(priority, key)
        with self._node._turning() as turn_until:
            self._accept_in_time(turn_until, payload, priority, key, no_delay, connect, seconds)
            number = self.accepted
            self.transport.turn()
            return number

    def send_nowait(
        self,
        data: Payload,
        *,
        priority: Priority = NORMAL,
        key: Key | None = None,
        no_delay: bool = False,
    ) -> int:
        """Accept one message at once or not at all. Never waits for another thread: while one is in
        a method of this node the message is left to it, and 0 is returned in place of the number.
        Arguments as peertalk.Peer.send.

        Raises:
            WouldBlock (reason "queue" or "pressure"), MessageTooLarge, WrongType, InvalidArgument:
            nothing has changed.
        """
        payload = payload_of(data)
        if priority is not NORMAL or key is not None:
            priority = check_choices(priority, key)
        self.transport.check_open()
        if not self._node._lock.acquire(blocking=False):
            self.accept_from_afar(bytes(payload), no_delay, priority, key)
            return 0
        self.transport.move_here()
        try:
            if not self.accept(payload, no_delay, priority, key):
                raise self.no_room(priority)
            number = self.accepted
            self.transport.turn()
            return number
        finally:
            self._node._lock.release()

    def send_many(
        self,
        payloads: Iterable[Payload],
        *,
        priority: Priority = NORMAL,
        timeout: float | str | None = None,
    ) -> int:
        """Accept many messages of one class in order, at a fraction of the cost of as many calls of
        send. payloads may be any iterable, an endless one too: it is drawn a chunk at a time, while
        no method of the node may be called. Returns how many: all of them.

        Raises:
            As send(), and whatever the iterable raises; `accepted` of the error is the number of
            messages that were accepted before.
        """
        priority, seconds = check_choices(priority, None), parse_timeout(timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        drawing = Drawing(payloads, self.chunk)
        try:
            with self._node._turning() as turn_until:
                self._send_all(turn_until, drawing, priority, deadline)
        except Exception as error:
            raise drawing.note(error) from error.__cause__
        return drawing.accepted

    def _send_all(
        self, turn_until: TurnUntil, drawing: Drawing, priority: Priority, deadline: float | None
    ) -> None:
        refusal = self.refusal
        while messages := drawing.draw():
            done = 0
            while done < len(messages):
                self.check_refusal(refusal)
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                self._connect_in_time(turn_until, True, left)
                taken = self.accept_many(messages, done, priority)
                if taken:
                    self.transport.turn()
                else:
                    self._accept_in_time(
                        turn_until, messages[done], priority, None, False, True, left
                    )
                    taken = 1
                done += taken
                drawing.accepted += taken

    def connect(self, *, timeout: float | str | None = None) -> Peer:
        """Have an open connection; returns this peer.

        Raises:
            ConnectionRefused, NetworkFailure, Timeout.
        """
        seconds = parse_timeout(timeout)
        with self._node._turning() as turn_until:
            self._connect_in_time(turn_until, True, seconds)
        return self

    def disconnect(self, *, timeout: float | str | None = 5.0) -> None:
        """Leave politely: what was accepted is sent first. The peer stays known. After timeout
        (Config.drain_timeout where it is None) the connection is given up; what was not sent by
        then is told as Failed."""
        seconds = parse_timeout(timeout)
        with self._node._turning() as turn_until:
            self.transport.switchboard.leave(self, seconds)
            turn_until(
                lambda: self.connection is None,
                None,
                f"peer {self.name!r} did not close its side",
                self.name,
            )

    def stream_out(self, data: Payload, progress: Progress | None = None) -> StreamOut:
        """A stream of 1 to 65,536 bytes in parts, which the peer receives as ordinary messages:
        `with peer.stream_out(data) as out: out.finished()`. Leaving the block early cancels it.
        progress is called as progress(bytes sent, all bytes) inside a method of the node: it may
        cancel the stream, but call nothing else of the node.

        Raises:
            InvalidArgument, MessageTooLarge, WrongType: data cannot be a stream.
            On entering: NotConnected; WouldBlock, reason "busy": one at a time for each peer.
        """
        return StreamOut(self, data, progress)

    def ping(self, *, timeout: float | str | None = 5.0) -> float:
        """Measure the way to this peer and back, in seconds. `latency` has the smoothed value,
        which counts the time that this node was not called.

        Raises:
            NotConnected, ConnectionClosed, Timeout.
        """
        limit = parse_timeout(timeout)
        outcome: list[tuple[float | None, errors.PeerTalkError | None]] = []

        def measured(seconds: float | None, error: errors.PeerTalkError | None) -> None:
            outcome.append((seconds, error))

        with self._node._turning() as turn_until:
            self.transport.switchboard.pulse.ping(self, measured)
            try:
                turn_until(
                    lambda: bool(outcome),
                    limit,
                    f"no answer to a PING from peer {self.name!r}",
                    self.name,
                )
            finally:
                self.stop_pinging(measured)
        seconds, error = outcome[0]
        if seconds is None:
            raise error or errors.InternalError("no measurement and no error")
        return seconds

    def messages(self, *, timeout: float | str | None = None) -> Iterator[Message[Peer]]:
        """Messages of this peer, those included that wait already, until none came for timeout
        seconds, or the peer is lost or the node closed and the last one was taken. While this is
        iterated they come here only; what is left when it ends comes to the node."""
        seconds = parse_timeout(timeout)
        node, inbox = self._node, self.transport.inbox
        with node._held():
            outlet = inbox.reserve(self, ended=not self.known)

        def take() -> bytes | None:
            got = outlet.take()
            if got is None and outlet.ended:
                raise _Ended
            return None if got is None else got[1]

        try:
            for payload in node._each(take, seconds):
                yield Message(self, payload)
        finally:
            if not self.transport.forked:
                with node._held():
                    inbox.release(self)

    def reject(self, reason: errors.RejectReason = errors.RejectReason.UNSPECIFIED) -> None:
        """Send the peer away: see ConnectionRequested.reject()."""
        with self._node._turning():
            super().reject(reason)
            self.transport.turn()

    def on_lost(self, error: errors.PeerTalkError) -> None:
        """The link is gone: who waits for room hears why."""
        super().on_lost(error)
        self._lost = error

    def _offer_or_skip(
        self,
        skipped: dict[Peer, errors.PeerTalkError],
        payload: bytes,
        no_delay: bool,
        priority: Priority,
        key: Key | None,
    ) -> None:
        """Accept one message at once, or be among those that are skipped. For broadcast."""
        try:
            self.offer(payload, no_delay, priority, key)
            skipped.pop(self, None)
        except errors.PeerTalkError as error:
            skipped[self] = error

    def _connect_in_time(self, turn_until: TurnUntil, connect: bool, seconds: float | None) -> None:
        if self.connected:
            return
        if not connect:
            raise errors.NotConnected(f"peer {self.name!r} is not connected", peer=self.name)
        outcome: list[errors.PeerTalkError | None] = []
        self.transport.switchboard.reach(self, lambda peer, error: outcome.append(error))
        turn_until(
            lambda: bool(outcome), seconds, f"no connection to peer {self.name!r}", self.name
        )
        if outcome[0] is not None:
            raise outcome[0]

    def _accept_in_time(
        self,
        turn_until: TurnUntil,
        payload: Any,
        priority: Priority,
        key: Key | None,
        no_delay: bool,
        connect: bool,
        seconds: float | None,
    ) -> None:
        self._connect_in_time(turn_until, connect, seconds)
        self._lost = None

        def accepted() -> bool:
            if self._lost is not None:
                raise self._lost
            return self.accept(payload, no_delay, priority, key)

        turn_until(accepted, seconds, f"no room for a message to peer {self.name!r}", self.name)


TurnUntil = Callable[..., None]


class StreamOut(Outgoing):
    """A stream to a peer, on its way inside its `with` block while the node is turned; made by
    Peer.stream_out().

    peer; state: a StreamState; sent and total: bytes; error: what it failed of.
    """

    _peer: Peer

    def finished(self, *, timeout: float | str | None = None) -> StreamState:
        """Turn the node until the stream has ended: COMPLETED (the system took its last byte) or
        CANCELLED.

        Raises:
            Timeout: it goes on; leaving the block cancels it. InvalidState: it was not started, or
                the node is closed.
            ConnectionClosed, or whatever else it failed of.
        """
        seconds = parse_timeout(timeout)
        self.check_begun()
        if self.state not in ENDED:
            with self._peer._node._turning() as turn_until:
                turn_until(
                    lambda: self.state in ENDED,
                    seconds,
                    f"the stream to peer {self._peer.name!r} did not end",
                    self._peer.name,
                )
        if self.error is not None:
            raise self.error
        return self.state

    def cancel(self) -> None:
        """Send no more of it. What was accepted before (at most 4 chunks) still leaves. Does
        nothing to one that has ended."""
        if self._telling:  # inside progress: this thread holds the lock
            super().cancel()
        elif self.state not in ENDED:
            with self._peer._node._held():
                super().cancel()

    def __enter__(self) -> StreamOut:
        with self._peer._node._held():
            self.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._peer.transport.forked:
            self.cancel()


class Node(Uncopied):
    """This program on the network. As peertalk.Node, without await; see the module for what that
    means.

    Args and errors as there.
    """

    _instead = "it has its sockets once; make a new one: Node(config=node.config)"

    def __init__(
        self, name: str | None = None, *, config: Config | None = None, **options: Any
    ) -> None:
        self.config = choose_config(config, name, options)
        self._transport: Transport | None = None
        self._lock = threading.Lock()
        self._others = 0
        self._events: events.EventQueue[Peer] | None = None

    # Life -----------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Listen and announce. Returns this node.

        Raises:
            AddressInUse, NoNetwork, PlatformError: naming the option that changes it.
            InvalidState: started before.
        """
        if self._transport is not None:
            raise errors.InvalidState(
                f"node {self.config.name!r} was started before; make a new one"
            )
        transport = Transport(self.config, World(), Peer, lambda: None)
        transport.owner = self
        transport.open()
        self._transport = transport
        if self._events is not None:
            transport.publish = self._events.put
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._transport is None or not self._transport.forked:  # a child leaves in silence
            self.close()

    def close(self, timeout: float | str | None = 5.0) -> int:
        """Send what is queued, say goodbye, close; at most timeout seconds (None: however long that
        takes). May be called again. Returns the messages that were accepted and not sent."""
        seconds = parse_timeout(timeout)
        transport = self._transport
        if transport is None:
            return 0
        if transport.forked:
            transport.check_open()
        if not transport.closed:
            with self._held():
                transport.close(seconds, lambda: None)
                try:
                    while not transport.closed:
                        transport.turn(1.0)
                finally:
                    transport.close_now()
                    self._let_go(transport)
            if transport.unsent:
                NodeLog("peertalk", self.config.name).warning(
                    "closed with %d messages not sent", transport.unsent
                )
        return transport.unsent

    def close_nowait(self) -> int:
        """Close at once, without sending what is queued. Returns the messages that were not
        sent."""
        if self._transport is None:
            return 0
        with self._held():
            self._transport.close_now()
            self._let_go(self._transport)
        return self._transport.unsent

    def _let_go(self, transport: Transport) -> None:
        """A Message is not tracked by the collector: through its peer it must not hold this
        node."""
        transport.publish = transport.on_change = None
        transport.owner = weakref.ref(self)

    def __del__(self) -> None:
        transport = getattr(self, "_transport", None)
        if transport is not None and not transport.closed:
            warnings.warn(
                f"node {self.config.name!r} was not closed; use `with` or close()",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )
            with contextlib.suppress(Exception):
                transport.close_now()

    def poll(self, timeout: float | str | None = 0.0) -> None:
        """One turn: serve what is ready, waiting up to timeout seconds for it (None: as long as
        that takes)."""
        seconds = parse_timeout(timeout)
        with self._held():
            self._engine.turn(seconds)

    @property
    def _engine(self) -> Transport:
        self._begun.check_open()
        return self._begun

    @property
    def _begun(self) -> Transport:
        """The engine, though it may be closed."""
        if self._transport is None:
            raise errors.InvalidState(
                f"node {self.config.name!r} is not started; use `with` or start()"
            )
        return self._transport

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the lock, asking whoever waits with it to let go.

        Raises:
            InvalidState: in a forked child, where the thread that holds it may not exist.
        """
        if self._transport is not None and self._transport.forked:
            self._transport.check_open()
        if not self._lock.acquire(blocking=False):
            self._others += 1
            if self._transport is not None and not self._transport.closed:
                self._transport.loop.wake()
            self._lock.acquire()
            self._others -= 1
        try:
            if self._transport is not None:
                self._transport.move_here()
            yield
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def _turning(self) -> Iterator[TurnUntil]:
        """Hold the lock; gives the function that turns until something is so."""
        with self._held():
            yield self._turn_until

    def _turn_until(
        self,
        done: Callable[[], bool],
        seconds: float | None,
        what: str,
        peer: str | None = None,
    ) -> None:
        engine = self._engine
        deadline = None if seconds is None else time.monotonic() + seconds
        left = seconds
        while not done():
            if left is not None and left < 0:
                raise errors.Timeout(f"{what} within {seconds:g} s", peer=peer)
            engine.turn(left)
            if self._others:
                self._lock.release()
                time.sleep(_HANDOVER)
                self._lock.acquire()
                engine.move_here()
            engine.check_open()
            # below 0 from here on: who has no time at all has had one turn
            left = None if deadline is None else deadline - time.monotonic()

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
        (five times a second at most).

        Raises:
            InvalidArgument: more than 16 bits. InvalidState: not started, or closed.
        """
        return PeerFlag(self.config.flags) if self._transport is None else self._transport.flags

    @flags.setter
    def flags(self, flags: int) -> None:
        with self._held():
            self._engine.set_flags(flags)

    @property
    def peers(self) -> Peers[Peer]:
        """Who is known now."""
        return Peers(self._engine.peers, self._engine)  # type: ignore[arg-type]

    def wait_for(
        self, who: str | Callable[[Peer], bool], *, timeout: float | str | None = None
    ) -> Peer:
        """The peer with this id or name, or the first for which the function is true, as soon as it
        is known. In a large room an id or a name is found quicker, since it is asked for.

        Raises:
            Timeout: naming who is known instead.
        """
        seconds = parse_timeout(timeout)
        found: list[Peer] = []
        looked = -1

        def known() -> bool:
            nonlocal looked
            if looked != (looked := engine.changes):  # nothing else can make it true
                peer = self.peers.matching(who)
                if peer is not None:
                    found.append(peer)
            return bool(found)

        with self._turning() as turn_until:
            engine = self._engine
            if isinstance(who, str) and not known():
                engine.seek(who)
            try:
                turn_until(known, seconds, f"no peer {errors.shown(who)} was heard")
            except errors.Timeout as error:
                raise errors.Timeout(f"{error}; {self.peers.heard()}") from None
        return found[0]

    def connect(self, who: Address | Peer | str, *, timeout: float | str | None = None) -> Peer:
        """Connect to an address, as (IPv4 address or host name, TCP port) or "HOST:PORT"; to a
        peer; or to a known peer by its name or id.

        Raises:
            PeerNotFound, ConnectionRefused, NetworkFailure, Timeout, InvalidArgument (the address
            is this node itself, the peer another node's).
        """
        engine, seconds = self._engine, parse_timeout(timeout)
        if isinstance(who, str):
            who = self.peers.chosen(who)
        if isinstance(who, Remote):
            engine.check_own(who)
            assert isinstance(who, Peer)
            return who.connect(timeout=seconds)
        host, port = check_address(who)
        deadline = None if seconds is None else time.monotonic() + seconds
        patience = None if seconds is None else min(seconds, threading.TIMEOUT_MAX)
        try:
            dotted = dotted_address(host) or engine.world.resolve(host).result(patience)
        except TimeoutError:
            raise errors.Timeout(f"host {host!r} was not found within {seconds:g} s") from None
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        outcome: list[tuple[Remote | None, errors.PeerTalkError | None]] = []
        with self._turning() as turn_until:
            self._engine.switchboard.dial(
                (dotted, port), lambda peer, error: outcome.append((peer, error))
            )
            turn_until(lambda: bool(outcome), left, f"no connection to {host}:{port}")
        peer, failed = outcome[0]
        if failed is not None:
            raise failed
        assert isinstance(peer, Peer)
        return peer

    # Messages -------------------------------------------------------------------------------------

    def broadcast(
        self,
        data: Payload,
        *,
        priority: Priority = NORMAL,
        key: Key | None = None,
        no_delay: bool = False,
        timeout: float | str | None = 0.0,
    ) -> BroadcastResult[Peer]:
        """Send to every known peer; arguments, result and errors as peertalk.Node.broadcast."""
        payload, seconds = bytes(payload_of(data)), parse_timeout(timeout)
        priority = check_choices(priority, key)
        skipped: dict[Peer, errors.PeerTalkError] = {}
        with self._turning() as turn_until:
            peers = list(self.peers.values())
            for peer in peers:
                peer._offer_or_skip(skipped, payload, no_delay, priority, key)
            self._engine.turn()

            def nobody_waits() -> bool:
                for peer, error in list(skipped.items()):
                    if isinstance(error, errors.WouldBlock):
                        peer._offer_or_skip(skipped, payload, no_delay, priority, key)
                return not any(isinstance(each, errors.WouldBlock) for each in skipped.values())

            if seconds != 0:
                try:
                    turn_until(nobody_waits, seconds, "no room for a broadcast")
                except errors.Timeout as error:
                    for peer, reason in skipped.items():
                        if isinstance(reason, errors.WouldBlock):
                            skipped[peer] = errors.Timeout(
                                f"{error}: peer {peer.name!r} took nothing", peer=peer.name
                            )
        return BroadcastResult([peer for peer in peers if peer not in skipped], skipped)

    def receive(self, *, timeout: float | str | None = None) -> Message[Peer]:
        """The next message from anybody.

        Raises:
            Timeout, InvalidState (the node is closed).
        """
        peer, payload = self._taken(self._engine.inbox.take, timeout)
        return Message(peer, payload)  # type: ignore[arg-type]

    def messages(self, *, timeout: float | str | None = None) -> Iterator[Message[Peer]]:
        """Messages from anybody, until none came for timeout seconds, or the node is closed and the
        last one was taken."""
        each = self._each(self._begun.inbox.take, parse_timeout(timeout))
        return (Message(peer, payload) for peer, payload in each)  # type: ignore[arg-type]

    def batches(self, *, timeout: float | str | None = None) -> Iterator[Batch[Peer]]:
        """Messages in bulk: the payloads that one peer sent and one turn brought; otherwise as
        messages()."""
        each = self._each(self._begun.inbox.take_lot, parse_timeout(timeout))
        return (Batch(peer, payloads) for peer, payloads in each)  # type: ignore[arg-type]

    def send_datagram(self, peer: Peer, data: Payload) -> bool:
        """Send one datagram to a known peer, connected or not: 0 to 1,392 bytes that may be lost.
        False: the system did not take it.

        Raises:
            MessageTooLarge, WrongType, NotSupported, PeerNotFound: nothing was sent.
        """
        check_peer(peer)
        with self._held():
            return self._engine.datagrams.send(peer, data)

    def receive_datagram(self, *, timeout: float | str | None = None) -> Datagram[Peer]:
        """The next datagram from anybody known. 256 wait at most between calls, then the oldest
        give way.

        Raises:
            Timeout, InvalidState (the node is closed).
        """
        peer, data = self._taken(self._engine.datagrams.take, timeout, "no datagram came")
        return Datagram(peer, data)  # type: ignore[arg-type]

    def datagrams(self, *, timeout: float | str | None = None) -> Iterator[Datagram[Peer]]:
        """Datagrams from anybody known, until none came for timeout seconds, or the node is closed
        and the last one was taken."""
        each = self._each(self._begun.datagrams.take, parse_timeout(timeout))
        return (Datagram(peer, data) for peer, data in each)  # type: ignore[arg-type]

    def events(self, *, timeout: float | str | None = 0.0) -> Iterator[Event]:
        """What has happened since the last call, and what happens until nothing did for timeout
        seconds. The first call begins with what is true then: PeerFound, PeerConnected and
        PeerFrozen of those who are there.

        4,096 events are kept between calls; what is more is one EventsMissed. Whoever iterates
        shares them. Ends when the node is closed, after what had happened.
        """
        seconds = parse_timeout(timeout)
        with self._held():
            kept = self._events
            if kept is None:
                engine = self._transport
                here = None if engine is None or engine.closed else engine
                kept = self._events = events.EventQueue(() if here is None else here.present())
                if here is not None:
                    here.publish = kept.put
        return self._each(kept.take, seconds, "no event came")

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

    def _taken(
        self,
        take: Callable[[], T | None],
        timeout: float | str | None,
        what: str = "no message came",
    ) -> T:
        seconds = parse_timeout(timeout)
        got: list[T] = []

        def taken() -> bool:
            item = take()
            if item is not None:
                got.append(item)
            return bool(got)

        with self._turning() as turn_until:
            if not taken():
                turn_until(taken, seconds, what)
        return got[0]

    def _each(
        self,
        take: Callable[[], T | None],
        seconds: float | None,
        what: str = "no message came",
    ) -> Iterator[T]:
        """What can be taken, one after the other, until nothing came for so many seconds or nothing
        more will."""
        while True:
            try:
                item = self._taken(take, seconds, what)
            except (errors.Timeout, _Ended):
                return
            except errors.InvalidState:
                engine = self._transport
                if engine is None or engine.forked or not engine.closed:
                    raise
                return
            yield item

    def __repr__(self) -> str:
        state = (
            "not started"
            if self._transport is None
            else "closed"
            if self._transport.closed
            else f"port {self._transport.port}"
        )
        return f"<Node {self.config.name!r} {state}>"
