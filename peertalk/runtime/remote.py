"""A peer as the engine sees it: its connection, what waits for it, its counters.

A message is accepted here in one of three ways: quick (the link takes it and nothing waits),
accept (one look at each condition), from afar (left by another thread). Where an engine is shared
any thread may do the first, between any two steps of the engine: so quick is taken away before a
number is looked at that the next message would change.

Invariant: quick is set only while the peer is CONNECTED and takes NORMAL messages, with nothing in
the outbox and nobody in line to send NORMAL ones. Never: opens or ends a connection, or waits, but
for the blocking send of a world that blocks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Protocol

from .. import errors
from .._core import values
from .._numbers import ERR_NOT_CONNECTED, MESSAGE_LIMIT_MAX
from ..protocol import endings, limits, waiting
from ..protocol.connections import Connection, State, checked_reason
from ..protocol.inbox import Inbox
from ..protocol.line import Line
from ..protocol.outbox import NORMAL, Key, Priority, lowest_admitted
from ..protocol.peer import Key as PeerKey
from ..protocol.peer import Peer, PeerEvent, PeerState
from ..protocol.rare import Rare
from ..protocol.statistics import PeerStatistics, QueueStatus
from ..protocol.waiting import Lines
from .engine import Engine, Timer

SHARED = ("quick", "_afar", "accepted")
"""What of a peer the sender of a shared engine looks at: see Loop.sender()."""


class Home(Engine):
    """An engine that has peers. What a peer asks of it is done by those who stand above: Transport
    sets these."""

    peers: dict[Any, Remote]
    inbox: Inbox[Remote]
    receiver: Any = None
    """Who waits for the next message of anybody, first in line: what asyncio's driver may give one
    to; None: nobody, or who wants no message alone."""
    make_view: Callable[[Remote], Any]
    """The front door's: makes what it hands out for a peer."""
    refused: Callable[[Remote, int], None]
    """Traffic.refused: the link took no more, by this code."""
    enqueue: Callable[[Remote, bytes, int, Key | None], int]
    """Traffic.enqueue: into the outbox; the message's number, or 0."""
    send_sync: Callable[[Remote, bytes | bytearray | memoryview, int], int]
    """Traffic.send_sync: blocks until the link has taken it, in a world that blocks."""
    move: Callable[[Remote], bool]
    """Traffic.move: from the outbox to the link."""
    recall: Callable[[Remote], None]
    """Departures.recall: its link hands nothing on by itself."""
    pump: Callable[[Remote], None]
    """Traffic.pump: likewise, and who waits for room is served."""
    fail_unnumbered: Callable[[Remote, errors.PeerTalkError], None]
    """Traffic.fail_unnumbered: Failed, of a message from afar that has no number yet."""
    reach: Callable[[Remote, Reached], None]
    """Dialling.reach: tells when there is an open connection, or why there is none."""
    leave: Callable[[Remote, float | None], None]
    """Leaving.leave: disconnects politely, within so many seconds."""
    reject: Callable[[Remote, errors.RejectReason], None]
    """Switchboard.reject: REJECT, and the end of the connection."""
    ping: Callable[[Remote, Measured], None]
    """Pulse.ping: measures the round-trip time."""
    is_frozen: Callable[[Connection], bool]
    """Watchdog.is_frozen: whether the other side has not answered for link_timeout."""

    def emit(self, event: Callable[..., object], *fields: Any) -> None:
        """Report an event about a peer, if anybody listens, who sees its view."""
        self.changed()
        if self.publish is not None:
            seen = (each.view if isinstance(each, Remote) else each for each in fields)
            self.publish(event(*seen))


class Streaming(Protocol):
    """What a peer tells the stream to it that is on its way. See Outgoing."""

    @property
    def sent(self) -> int:
        """Bytes of it that the system took."""

    @property
    def total(self) -> int:
        """Bytes of it, all."""

    def go_on(self) -> None:
        """There may be room."""

    def told(self, first: int, last: int, error: errors.PeerTalkError | None) -> None:
        """Messages of this peer were sent or have failed."""

    def lost(self, error: errors.PeerTalkError) -> None:
        """The connection is gone, or the node is closed: the stream has failed of this error."""


Reached = Callable[["Remote | None", errors.PeerTalkError | None], None]
"""Told once how an attempt to connect ended: with the peer, or with an error."""
Measured = Callable[[float | None, errors.PeerTalkError | None], None]
"""Told once what a PING measured, in seconds, or with an error why it cannot."""


class Place(waiting.Place):
    """A place in the line to a peer."""

    __slots__ = ("peer",)

    def __init__(self, peer: Remote, priority: int) -> None:
        super().__init__(priority)
        self.peer = peer

    def join(self) -> None:
        """Stand in line: nobody who comes later is accepted before."""
        peer = self.peer
        if peer.lines is None:
            peer.lines = Lines()
        peer.lines.join(self)
        if self.priority == NORMAL:
            peer.quick = None

    def leave(self) -> None:
        """Give up, if it still stands there; those behind may have room."""
        lines = self.peer.lines
        if lines is not None and lines.leave(self):
            self.peer.serve(self.priority)


class Remote(Peer):
    """A peer as the engine sees it: its connection, what waits for it, and its counters. A front
    door has a peer of its own for each, its view, which holds this one.

    quick: what sends on its open link while nothing waits before a NORMAL message, else None.
    Whoever calls it adds 1 to accepted. Traffic.move() alone sets it; it is taken away where one of
    its conditions ends: the state, the connection, the pressure and the line here, the outbox by
    Traffic, the node by Transport. lowest: the lowest class that the peer takes, by the pressure
    that it reported on its connection.

    Args:
        transport: the engine that it belongs to.
        key, name, address, own_max_message: as protocol.peer.Peer.
    """

    __slots__ = (
        "__weakref__",
        "_afar",
        "_view",
        "connection",
        "line",
        "lines",
        "lowest",
        "quick",
        "received",
        "received_bytes",
        "stream",
        "transport",
    )

    failed = Rare(0)
    retry = Rare[Timer | None](None)
    attempts = Rare(0)
    """Attempts that have failed, one after the other."""
    not_before = Rare(0.0)
    """When it may be dialled again, on the clock of the world."""
    reaching = Rare[list[Reached] | None](None)
    pinging = Rare[list[Measured] | None](None)
    successor = Rare["Remote | None"](None)
    """The next life of its program, which was started again; None: not known to be."""
    loss = Rare[errors.PeerTalkError | None](None)
    """What its last connection ended of, until another one is used: a copy, since the error itself
    is raised in programs and holds their frames."""

    def __init__(
        self,
        transport: Home,
        key: PeerKey,
        *,
        name: str = "",
        address: tuple[str, int] = ("", 0),
        own_max_message: int = MESSAGE_LIMIT_MAX,
    ) -> None:
        super().__init__(key, name=name, address=address, own_max_message=own_max_message)
        self.transport = transport
        self.connection: Connection | None = None
        self.quick: Any = None
        self.lines: Lines | None = None
        """Who waits to send to it; None: nobody."""
        self.lowest = Priority.LOW
        self._afar: waiting.Afar | None = None
        self.line: Line | None = None
        """Its connections, once it has said that it knows places."""
        self.stream: Streaming | None = None
        """The stream to it that is on its way."""
        self.received = 0
        self.received_bytes = 0
        self._view: Any = transport.make_view(self)

    @property
    def own_max_frame(self) -> int:
        """As Peer.own_max_frame."""
        return self.transport.world.max_frame(self.transport.core)

    @property
    def view(self) -> Any:
        """What users have of it: the same object while it is known, and as long as anybody keeps
        it."""
        view = self._view
        if isinstance(view, weakref.ref):
            view = view()
            if view is None:
                view = self.transport.make_view(self)
                self._view = weakref.ref(view)
        return view

    def keep_view(self) -> None:
        """It is known: its view stays."""
        self._view = self.view

    def loosen_view(self) -> None:
        """It is forgotten, and lives on only while anybody keeps its view."""
        self._view = weakref.ref(self.view)

    def advance(self, event: PeerEvent) -> PeerState:
        """As Peer.advance(); while it is not connected nothing is quick."""
        state = super().advance(event)
        if state is not PeerState.CONNECTED:
            self.quick = None
        return state

    def use(self, connection: Connection | None) -> None:
        """Send on this connection from now on; None: on none, and messages wait."""
        if self.connection is not None:
            self.quick = None
            self.transport.recall(self)
            self.connection.handed.seal(self.accepted)
        self.connection = connection
        self.quick = None
        if connection is not None:
            self.loss = None

    def tell_reaching(self, error: errors.PeerTalkError | None) -> None:
        """Those who wait for a connection hear that it is there (None), or why it is not."""
        if self.reaching:
            self.transport.call(self.reaching, self if error is None else None, error)
            self.reaching = None
            self.transport.call_all()

    def tell_pinging(self, seconds: float | None, error: errors.PeerTalkError | None) -> None:
        """Those who wait for a measurement hear of it, or why there is none."""
        if self.pinging:
            self.transport.call(self.pinging, seconds, error)
            self.pinging = None
            self.transport.call_all()

    def stop_pinging(self, measured: Measured) -> None:
        """Do not tell measured, which waits for a measurement. Nothing happens when it was told."""
        if self.pinging is not None and measured in self.pinging:
            self.pinging.remove(measured)

    def left_by(self, connection: Connection) -> errors.PeerTalkError | None:
        """What who was sending on this connection hears when it is used no more; None: it is."""
        if self.connection is connection and self.connected:
            return None
        return endings.closed(self) if self.loss is None else errors.copied(self.loss)

    def restarted_error(self) -> errors.ConnectionClosed:
        """What who sends to it hears when it has a successor."""
        text = f"{self.name!r} was started again; send to its new peer (Peer.successor)"
        return errors.ConnectionClosed(text, peer=self.name)

    def reject(self, reason: errors.RejectReason = errors.RejectReason.UNSPECIFIED) -> None:
        """Send the peer away: see ConnectionRequested.reject(). Raises as checked_reason()."""
        self.transport.reject(self, checked_reason(reason))

    @property
    def known(self) -> bool:
        """Whether its node knows it, connected or not."""
        return self.transport.peers.get(self.key) is self

    @property
    def greeted(self) -> bool:
        """A connection with it is there that is not used yet."""
        return self.line is not None and any(
            member.state is State.GREETED for member in self.line.members
        )

    def in_line(self, priority: int) -> Collection[waiting.Place]:
        """Who waits to send messages of this class."""
        return () if self.lines is None else self.lines.get(priority, ())

    def on_room(self) -> None:
        """The engine has room for more messages to this peer: the highest class first."""
        self.take_from_afar()
        if self.stream is not None:
            self.stream.go_on()
        if self.lines is not None:
            for priority in sorted(self.lines, reverse=True):
                self.serve(priority)

    def serve(self, priority: int) -> bool:
        """Accept what stands in the line of this class, in order, as far as there is room. Whether
        nobody is left."""
        lines = self.lines
        if lines is None or priority not in lines:
            return True
        if not lines.serve(priority, self._may_accept, self.name):
            return False
        lines.pop(priority, None)
        if not lines:
            self.lines = None
        if self.outbox is None or not self.outbox.leaving:  # else who was accepted has moved it
            self.transport.move(self)  # the short road is open: nobody waits to be overtaken
        return True

    def _may_accept(self) -> bool:
        return self.connected and not self.transport.closing

    def on_pressure(self) -> None:
        """The peer's capabilities are in, or in again: what its pressure refuses waits from now on,
        what it refuses no longer goes on. One of ours refuses LOW only: its connection is paused
        while its inbox is full, which holds the rest back without a word."""
        capabilities = self.capabilities
        lowest = lowest_admitted(0 if capabilities is None else capabilities.pressure)
        self.lowest = lowest if self.classic else min(lowest, NORMAL)
        if self.lowest > NORMAL:
            self.quick = None
        self.transport.pump(self)

    def on_lost(self, error: errors.PeerTalkError) -> None:
        """The link is gone: whoever waits for room must hear why."""
        self.quick = None
        self.loss = errors.copied(error)
        if self.stream is not None:
            self.stream.lost(error)
        if self.lines is not None:
            self.lines.fail(error)

    @property
    def frozen(self) -> bool:
        """Connected, but it has not answered for Config.link_timeout: see PeerFrozen."""
        connection = self.connection
        return connection is not None and self.transport.is_frozen(connection)

    @property
    def queue(self) -> QueueStatus:
        """How full the way to this peer is."""
        return limits.queue_of(
            self,
            self.transport.config.send_queue_size,
            connected=self.connection is not None,
            frozen=self.frozen,
            lowest=self.lowest,
        )

    def stats(self) -> PeerStatistics:
        """Counters of this peer."""
        sent = self.reported - self.failed
        return PeerStatistics(
            self.accepted, sent, self.failed, self.received, self.received_bytes, self.queue
        )

    def accept(
        self,
        payload: bytes | bytearray | memoryview,
        no_delay: bool,
        priority: int = NORMAL,
        key: Key | None = None,
        *,
        may_block: bool = True,
        refusable: bool = True,
    ) -> int:
        """Into the link if nothing waits before it, else into the outbox; in a world that
        blocks, and if it may, it blocks instead until what waits has gone. Returns its number. 0:
        no room, or the peer's pressure refuses its class (if it is refusable: part of a stream is
        not).

        Raises:
            Timeout: the blocking send could not begin in time; nothing was accepted.
        """
        transport, connection = self.transport, self.connection
        if may_block and self.afar:
            self.take_from_afar()  # another thread may have told this one that it had sent
        size = payload.nbytes if isinstance(payload, memoryview) else len(payload)
        if size > limits.limit_of(self, connection)[0]:
            raise limits.too_large(self, connection, size)
        if self.lowest and refusable and priority < self.lowest and connection is not None:
            if key is None or self.outbox is None or key not in self.outbox:
                return 0
        apart = False
        if connection is not None and self.connected:
            if priority is not NORMAL and not connection.classes:
                self.use_classes(connection)
            link = connection.link
            if size > link.max_message:
                payload = bytes(payload)  # the link refers to it, or it waits: one copy is enough
                apart = size > link.wide_max
            if self.outbox is None and not apart:
                number = self._hand(link.native, payload, no_delay)
                if number > 0:
                    return number
                transport.refused(self, number)
            if may_block and not apart and transport.world.blocks:
                code = transport.send_sync(self, payload, values.NO_DELAY if no_delay else 0)
                if code >= 0:
                    return self.accepted
        number = transport.enqueue(self, bytes(payload), priority, key)
        outbox = self.outbox
        if number and (apart or (outbox is not None and (outbox.blocked or outbox.leaving))):
            transport.move(self)  # nothing may be under way whose end would move it
        return number

    def _hand(self, native: Any, payload: bytes | bytearray | memoryview, no_delay: bool) -> int:
        """Straight into the link, before which nothing waits. Returns its number; a code: the link
        took no more."""
        was_quick = self._keep_apart()
        sending = (
            map(native.send_frame, (values.DATA,), (payload,), (values.NO_DELAY,))
            if no_delay
            else map(native.send, (payload,))
        )
        try:
            # A signal handler, which may raise, is called after a call of C, but not within a `for`
            # over one: what the link has taken is counted.
            for code in sending:
                number = self.accepted = self.accepted + (code >= 0)
            if code >= 0:
                self.transport.hint(code)
        finally:
            if was_quick:
                self.transport.move(self)
        return number if code >= 0 else int(code)

    def _keep_apart(self) -> bool:
        """Have no other thread send between a link and the count of what it has taken. True: the
        peer is quick again with the next move()."""
        if self.quick is None or not self.transport.shared:
            return False
        self.quick = None
        return True

    def accept_at_once(self, payload: bytes) -> int:
        """Into the link, which writes it in this call or leaves that to its worker, while nothing
        waits before it. Returns its number. Below 0: look again with accept(); nothing has
        changed."""
        quick = self.quick
        if quick is None or self.afar:
            return ERR_NOT_CONNECTED
        return self._hand(quick, payload, not self.transport.workers.work)

    def offer(
        self, payload: bytes, no_delay: bool, priority: int = NORMAL, key: Key | None = None
    ) -> None:
        """Accept one message at once or not at all, without blocking in any world.

        Raises:
            WouldBlock: there is no room, or others stand in line before it. As accept().
        """
        if self.afar:
            self.take_from_afar()
        if not self.serve(priority) or not self.accept(
            payload, no_delay, priority, key, may_block=False
        ):
            raise self.no_room(priority)

    def use_classes(self, connection: Connection) -> None:
        """From the first message of another class, or large one, on the system holds little that
        has not left: nothing overtakes what it holds. While all are of one class, and small, that
        would only cost throughput."""
        connection.classes = True
        self.transport.world.bound_unsent(connection.socket)

    def is_refused(self, priority: int) -> bool:
        """Whether the pressure that the peer reported refuses this class now."""
        return priority < self.lowest and self.connection is not None

    def chunk(self, size: int) -> int:
        """Messages of that many bytes that make a chunk of a send_many."""
        return limits.chunk(size, self.transport.core.limits, self.transport.pipeline_depth)

    def accept_many(self, messages: list[bytes], start: int, priority: int = NORMAL) -> int:
        """As many as there is room for now. 0: wait for room."""
        if self.afar:
            self.take_from_afar()  # another thread may have told this one that it had sent
            if self.afar:
                return 0
        transport, native = self.transport, self.quick
        if native is None or priority is not NORMAL:
            connection = self.connection
            if (
                connection is None
                or self.outbox is not None
                or not self.connected
                or priority < self.lowest
            ):
                return bool(self.accept(messages[start], False, priority))
            if priority is not NORMAL and not connection.classes:
                self.use_classes(connection)
            native = connection.link.native
        was_quick = self._keep_apart()
        try:
            for result in map(native.send_many, (messages,), (start,)):
                self.accepted += result[0]  # see _hand()
            taken, code = result
        finally:
            if was_quick:
                transport.move(self)
        if taken:
            transport.hint(values.NEEDS_TURN | (code if code > 0 else 0))
        elif code == errors.MessageTooLarge.code:
            return bool(self.accept(messages[start], False, priority))  # in pieces, or not at all
        elif priority != NORMAL:
            # at the link the quicker sender wins; in the outbox each class has its turn
            return bool(self.accept(messages[start], False, priority))
        else:
            self.quick = None
            transport.refused(self, code)
            if transport.world.blocks:
                return bool(self.accept(messages[start], False))
        return int(taken)

    # From other threads ---------------------------------------------------------------------------

    @property
    def afar(self) -> bool:
        """Whether other threads have left messages that the engine has not taken."""
        return bool(self._afar)

    def accept_from_afar(
        self, payload: bytes, no_delay: bool = False, priority: int = NORMAL, key: Key | None = None
    ) -> None:
        """Accept one message on another thread than the engine's: it waits, within the same bound,
        until the engine takes it.

        Raises:
            WouldBlock: as many wait already, or the peer's pressure refuses the class.
                MessageTooLarge, InvalidState.
        """
        transport = self.transport
        if len(payload) > limits.limit_of(self, self.connection)[0]:
            raise limits.too_large(self, self.connection, len(payload))
        with transport.lock:
            transport.check_open()
            afar = self._afar
            if afar is None:
                afar = waiting.Afar()
            most = transport.config.send_queue_size, transport.config.send_queue_bytes
            if self.is_refused(priority) or not afar.leave(payload, no_delay, priority, key, *most):
                raise self.no_room(priority)
            self._afar = afar
        transport.post(self.on_room)

    def take_from_afar(self) -> None:
        """Move on what other threads left, as far as there is room."""
        transport, afar = self.transport, self._afar
        if afar is not None:
            accept = partial(self.accept, may_block=False)
            afar.take(accept, partial(transport.fail_unnumbered, self), lambda: self.accepted)
            was_quick = self._keep_apart()
            with transport.lock:  # which a signal handler of this thread may have, too
                self._afar = None
                if afar:
                    self._afar = afar
            if was_quick:
                transport.move(self)

    def drop_from_afar(self) -> int:
        """Take away what other threads left; how many."""
        afar, self._afar = self._afar, None
        return 0 if afar is None else len(afar)

    def no_room(self, priority: int = NORMAL) -> errors.WouldBlock:
        """The error for a message that must not wait and cannot be taken."""
        if self.is_refused(priority):
            return limits.refused(self, self.lowest)
        return limits.full(self, len(self.in_line(priority)))
