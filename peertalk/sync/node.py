"""The front door without await: Node.

Each method takes the lock of the node (turning), and where it has to wait it turns the engine
itself until the answer is there.

Invariant: the engine is turned under the lock alone, here and by the control thread. Never: an
event loop of its own.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from queue import Empty, SimpleQueue
from typing import Self, TypeVar, Unpack

from .. import errors
from ..config import Config, NodeOptions, choose_config
from ..doors.door import AnyNode, Broadcast, dialling, remote_of
from ..doors.peers import BroadcastResult
from ..protocol import events
from ..protocol.addresses import Address, dotted_address
from ..protocol.inbox import Inbox
from ..protocol.outbox import NORMAL, Key, Priority
from ..protocol.payloads import Payload, check_choices, payload_of
from ..protocol.wire import Batch, Datagram, Message
from ..quantities import parse_timeout
from ..runtime.log import NodeLog
from ..runtime.remote import Remote
from ..runtime.transport import Transport
from ..runtime.workers import possible
from ..runtime.world import World
from .peer import Peer, StreamOut
from .turning import HOW_TO_START, Source, Turning, deadline_of, each, taken, taken_at_once

__all__ = ["Event", "Node", "Peer", "StreamOut"]

Event = events.Event[Peer]
"""Any event of a node."""

S = TypeVar("S")
T = TypeVar("T")


def _chosen(config: Config | None, name: str | None, options: NodeOptions) -> Config:
    """The configuration, with one worker where nobody has said how many, and there can be one."""
    chosen = choose_config(config, name, options)
    if config is None and chosen.explain()["workers"][1] == "default":
        with contextlib.suppress(errors.PeerTalkError):  # which start() raises
            if possible(chosen):
                return choose_config(None, name, {**options, "workers": 1})
    return chosen


class Node(AnyNode[Peer]):
    """This program on the network. As peertalk.Node, without await; see the module for what that
    means.

    Args and errors as there.
    """

    _start = HOW_TO_START

    def __init__(
        self,
        name: str | None = None,
        *,
        config: Config | None = None,
        **options: Unpack[NodeOptions],
    ) -> None:
        super().__init__(_chosen(config, name, options))
        self._turning = Turning(self.config.name)
        self._events: events.EventQueue[Peer] | None = None

    # Life -----------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Listen and announce. Returns this node.

        Raises:
            AddressInUse, NoNetwork, PlatformError: naming the option that changes it.
            InvalidState: started before.
        """
        self._check_new()
        turning = self._turning
        transport = Transport(
            self.config, World(), lambda remote: Peer(remote, turning), turning.ask
        )
        transport.open()
        self._transport = transport
        turning.begin(transport)
        if self._events is not None:
            transport.publish = self._events.put
        transport.before_release = partial(turning.stop, waits=False)
        if transport.workers.work:
            try:
                turning.live(transport)
            except BaseException:
                self.close_nowait()
                raise
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
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
            with self._turning:
                transport.close(seconds, lambda: None)
                try:
                    while not transport.closed:
                        self._turning.turn(transport, 1.0)
                finally:
                    _end(transport)
            if transport.unsent:
                NodeLog("peertalk", self.config.name).warning(
                    "closed with %d messages not sent", transport.unsent
                )
        self._turning.stop()
        return transport.unsent

    def close_nowait(self) -> int:
        """Close at once, without sending what is queued; for signal handlers, wherever they strike.
        Where it interrupts a method of the node, or is called by it, the turn of that method closes
        the node.

        Returns:
            Messages that were not sent; 0 when a turn closes the node later, before they are
            counted.
        """
        transport = self._transport
        if transport is None:
            return 0
        if self._turning.mine:
            transport.post(partial(_end, transport))
            self._turning.asked = True
            return 0
        if sys.is_finalizing():  # a thread that ended with the interpreter may have the lock
            self._turning.if_free(partial(_end, transport))
        else:
            with self._turning:
                _end(transport)
            self._turning.stop()
        return transport.unsent

    def __del__(self) -> None:
        transport = getattr(self, "_transport", None)
        if transport is None or transport.closed:
            return
        with contextlib.suppress(Exception):
            # a collection may begin on any thread, and while a peer of this node is in use
            if not self._turning.if_free(transport.close_now):
                transport.post(transport.close_now)
        # last: it may raise (-W error)
        warnings.warn(
            f"node {self.config.name!r} was not closed; use `with` or close()",
            ResourceWarning,
            source=self,
            stacklevel=2,
        )

    def poll(self, timeout: float | str | None = 0.0) -> None:
        """One turn: serve what is ready, waiting up to timeout seconds for it (None: as long as
        that takes)."""
        seconds = parse_timeout(timeout)
        with self._turning:
            self._engine.turn(seconds)

    def _do(self, what: Callable[[Transport], T]) -> T:
        with self._turning:
            return what(self._engine)

    # Who ------------------------------------------------------------------------------------------

    def wait_for(
        self, who: str | Callable[[Peer], bool], *, timeout: float | str | None = None
    ) -> Peer:
        """The peer with this id or name, or the first for which the function is true, as soon as it
        is known. In a large room an id or a name is found quicker, since it is asked for.

        Raises:
            Timeout: naming some of those who are known.
        """
        seconds, engine = parse_timeout(timeout), self._engine
        deadline, is_late, sought = deadline_of(seconds), False, isinstance(who, str)
        what = f"no peer {errors.shown(who)} was heard"
        while True:
            looked = engine.changes  # a look is O(peers), a turn is not
            peer = self.peers.matching(who)  # without the lock: a function may call the node
            if peer is not None:
                return peer
            try:
                if is_late:
                    raise errors.Timeout(f"{what} within {seconds:g} s")
                with self._turning:
                    if sought:
                        engine.seek(str(who))
                    self._turning.until(
                        partial(_has_changed, engine, looked), seconds, what, deadline=deadline
                    )
            except errors.Timeout as error:
                raise errors.Timeout(f"{error}; {self.peers.heard()}") from None
            sought, is_late = False, deadline is not None and time.monotonic() >= deadline

    def connect(self, who: Address | Peer | str, *, timeout: float | str | None = None) -> Peer:
        """Connect to an address, as (IPv4 address or host name, TCP port) or "HOST:PORT"; to a
        peer; or to a known peer by its name or id.

        Raises:
            PeerNotFound, ConnectionRefused, NetworkFailure, Timeout, InvalidArgument (the address
            is this node itself, the peer another node's).
        """
        seconds, engine = parse_timeout(timeout), self._engine
        who = self._whom(who)
        if isinstance(who, Peer):
            return who.connect(timeout=seconds)
        host, port = who
        deadline = deadline_of(seconds)
        patience = None if seconds is None else min(seconds, threading.TIMEOUT_MAX)
        dotted = dotted_address(host)
        if dotted is None:
            found: SimpleQueue[tuple[str | None, errors.PeerTalkError | None]] = SimpleQueue()
            engine.world.resolve(host, lambda *told: found.put(told))
            try:
                dotted, unknown = found.get(timeout=patience)
            except Empty:
                late = f"no connection to {host}:{port} within {seconds:g} s"
                raise errors.Timeout(late) from None
            if dotted is None:
                raise unknown or errors.InternalError("no address and no error")
        with self._turning:
            answer = dialling(self._engine, (dotted, port), host)
            peer: Peer = self._turning.answered(answer, seconds, deadline).view
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
        most = self._engine.traffic.max_message
        payload, seconds = bytes(payload_of(data, most)), parse_timeout(timeout)
        priority = check_choices(priority, key)
        with self._turning:
            sent: Broadcast[Peer] = Broadcast(self._engine, payload, priority, key, no_delay)
            if seconds != 0:
                sent.stand()
            self._engine.turn()
            if seconds == 0:
                return sent.result()
            try:
                return self._turning.answered(sent, seconds)
            except errors.Timeout:
                return sent.late(seconds or 0.0)

    def receive(self, *, timeout: float | str | None = None) -> Message[Peer]:
        """The next message from anybody.

        Raises:
            Timeout, InvalidState (the node is closed).
        """
        seconds = None if timeout is None else parse_timeout(timeout)
        message = taken_at_once(self._turning.take, seconds)
        if message is not None:
            return message
        engine = self._transport
        if engine is None or engine.closing:
            engine = self._engine
        return taken(self._turning, _messages_of(engine.inbox), seconds, "no message came")

    def messages(self, *, timeout: float | str | None = None) -> Iterator[Message[Peer]]:
        """Messages from anybody, until none came for timeout seconds, or the node is closed and the
        last one was taken."""
        return self._messages(self._begun.inbox, parse_timeout(timeout))

    def _messages(self, inbox: Inbox[Remote], seconds: float | None) -> Iterator[Message[Peer]]:
        source = _messages_of(inbox)
        for message in each(self._turning, source, seconds, self._turning.take):
            yield message
            lot = inbox.current
            if lot is not None:  # those that came with it need no turn, nor the lock
                yield from map(Message, repeat(lot.peer.view), lot.left)

    def batches(self, *, timeout: float | str | None = None) -> Iterator[Batch[Peer]]:
        """Messages in bulk: the payloads that one peer sent and one turn brought; otherwise as
        messages()."""
        inbox = self._begun.inbox

        def back(lot: tuple[Remote, list[bytes]] | None) -> None:
            if lot is None:
                inbox.recover(inbox)
            else:
                inbox.put_back(*lot)

        return self._each(
            Source(inbox.take_lot, back, lambda lot: Batch(lot[0].view, lot[1])), timeout
        )

    def send_datagram(self, peer: Peer, data: Payload) -> bool:
        """Send one datagram to a known peer, connected or not: 0 to 1,392 bytes that may be lost.
        False: the system did not take it.

        Raises:
            MessageTooLarge, WrongType, NotSupported, PeerNotFound: nothing was sent.
        """
        remote = remote_of(peer)
        with self._turning:
            return self._engine.datagrams.send(remote, data)

    def receive_datagram(self, *, timeout: float | str | None = None) -> Datagram[Peer]:
        """The next datagram from anybody known. 256 wait at most between calls, then the oldest
        give way.

        Raises:
            Timeout, InvalidState (the node is closed).
        """
        seconds, source = parse_timeout(timeout), _datagrams_of(self._engine)
        return taken(self._turning, source, seconds, "no datagram came")

    def datagrams(self, *, timeout: float | str | None = None) -> Iterator[Datagram[Peer]]:
        """Datagrams from anybody known, until none came for timeout seconds, or the node is closed
        and the last one was taken."""
        return self._each(_datagrams_of(self._begun), timeout)

    def events(self, *, timeout: float | str | None = 0.0) -> Iterator[Event]:
        """What has happened since the last call, and what happens until nothing did for timeout
        seconds. The first call begins with what is true then: PeerFound, PeerConnected and
        PeerFrozen of those who are there.

        4,096 events are kept between calls; what is more is one EventsMissed. Whoever iterates
        shares them. Ends when the node is closed, after what had happened.
        """
        seconds = parse_timeout(timeout)
        with self._turning:
            kept = self._events
            if kept is None:
                engine = self._transport
                here = None if engine is None or engine.closed else engine
                kept = self._events = events.EventQueue(() if here is None else here.present())
                if here is not None:
                    here.publish = kept.put
        return self._each(Source(kept.take, kept.put_back, lambda event: event), seconds)

    def _each(self, source: Source[S, T], timeout: float | str | None) -> Iterator[T]:
        """What can be taken, one after the other. The node lives as long as somebody iterates."""
        seconds = parse_timeout(timeout)

        def iterate() -> Iterator[T]:
            yield from each(self._turning, source, seconds)

        return iterate()


def _messages_of(inbox: Inbox[Remote]) -> Source[tuple[Remote, bytes], Message[Peer]]:
    def back(got: tuple[Remote, bytes] | None) -> None:
        if got is None:
            inbox.recover(inbox)
        else:
            inbox.put_back(got[0], [got[1]])

    return Source(inbox.take, back, lambda got: Message(got[0].view, got[1]))


def _datagrams_of(engine: Transport) -> Source[tuple[Remote, bytes], Datagram[Peer]]:
    mailbox = engine.mailbox
    return Source(mailbox.take, mailbox.put_back, lambda got: Datagram(got[0].view, got[1]))


def _has_changed(engine: Transport, looked: int) -> bool:
    return engine.changes != looked


def _end(transport: Transport) -> None:
    """Close at once; whoever keeps a message of the node does not keep the node."""
    transport.close_now()
    transport.publish = transport.on_change = None
