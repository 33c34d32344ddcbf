"""What both front doors show, and how they have messages accepted: all that never waits.

A door's peer, node and stream hold the engine's and have no state of the conversation themselves;
each door derives its own from those here and adds the calls that wait. Calls that have to wait do
so for an Answer, which is begun here and tells when it is over: one door awaits that, the other
turns the node meanwhile.

Never: waits, or asks which thread or loop it runs on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, Self, TypeVar

from .. import errors
from ..config import Config
from ..protocol.addresses import Address, check_address
from ..protocol.connections import Connection
from ..protocol.outbox import NORMAL, Key, Priority
from ..protocol.payloads import Drawing, Payload
from ..protocol.peer import Latency, PeerFlag, PeerState
from ..protocol.statistics import MemoryReport, NodeStatistics, PeerStatistics, QueueStatus
from ..protocol.stream import StreamState
from ..protocol.wire import Capabilities
from ..runtime.remote import Place, Remote
from ..runtime.transport import Transport
from .peers import BroadcastResult, Peers
from .streaming import Outgoing, Progress

T = TypeVar("T")
P = TypeVar("P", bound="AnyPeer")
"""The kind of peer that a door hands out."""


class Uncopied:
    """What is neither copied nor pickled: a copy would have the same sockets, connections and
    counters, and close or count for the original."""

    __slots__ = ()

    _instead: ClassVar[str]
    """What to do in place of that."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raises WrongType: copy, deepcopy and pickle ask here."""
        raise errors.WrongType(f"{self!r} cannot be copied or pickled: {self._instead}")


class AnyPeer(Uncopied):
    """A peer of either door."""

    __slots__ = ("__weakref__", "_remote")

    _instead = "it belongs to its node; keep its id, and find it by that"

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    @property
    def name(self) -> str:
        """As the peer announces it; may be empty, and others may have the same."""
        return self._remote.name

    @property
    def id(self) -> str:
        """Unique while the node lives: the peer's instance id as 16 hexadecimal digits, or
        "address:port" for a classic peer."""
        return self._remote.id

    @property
    def address(self) -> Address:
        """(IPv4 address, TCP port) where the peer listens, or from where it called."""
        return self._remote.address

    @property
    def flags(self) -> PeerFlag:
        """What the peer announces of itself. PeerChanged tells when that changes."""
        return self._remote.flags

    @property
    def state(self) -> PeerState:
        """Where the peer is in its life: discovered, connecting, connected, disconnecting or
        failed."""
        return self._remote.state

    @property
    def connected(self) -> bool:
        """Whether a connection is open and messages are taken."""
        return self._remote.connected

    @property
    def frozen(self) -> bool:
        """Whether the peer is connected but has not answered for Config.link_timeout: see
        PeerFrozen."""
        return self._remote.frozen

    @property
    def classic(self) -> bool:
        """Whether the peer speaks the original protocol only."""
        return self._remote.classic

    @property
    def local(self) -> bool:
        """Whether the peer is connected over a socket of this host, and not by TCP."""
        connection = self._remote.connection
        return connection is not None and connection.local

    @property
    def latency(self) -> Latency | None:
        """Round-trip time of the present connection, or of the last one; None before the first
        answer to a PING."""
        return self._remote.latency

    @property
    def capabilities(self) -> Capabilities | None:
        """What the peer said about itself when it connected; None before that."""
        return self._remote.capabilities

    @property
    def max_message(self) -> int:
        """Longest message in bytes that can be sent to the peer: the smaller limit of the two
        sides."""
        return self._remote.max_message

    @property
    def accepted(self) -> int:
        """Number of the last message that was accepted for the peer, 0: none. Also how many
        were."""
        return self._remote.accepted

    @property
    def queue(self) -> QueueStatus:
        """How full the way to the peer is."""
        return self._remote.queue

    @property
    def successor(self) -> Self | None:
        """The next life of the peer's program, when that was started again; None: not known to
        be."""
        following = self._remote.successor
        return None if following is None else following.view

    def stats(self) -> PeerStatistics:
        """Counters of the messages to and from the peer."""
        return self._remote.stats()

    def __repr__(self) -> str:
        return repr(self._remote)


def remote_of(peer: object) -> Remote:
    """The engine's peer behind a door's.

    Raises:
        WrongType: this is no peer.
    """
    if not isinstance(peer, AnyPeer):
        raise errors.WrongType(
            f"a datagram goes to a Peer, not to {errors.shown(peer)}; node.peers finds one by name "
            "or id"
        )
    return peer._remote


class AnyStream(Uncopied, Generic[P]):
    """A stream of either door.

    Args and errors as doors.streaming.Outgoing.
    """

    _instead = "it is on its way once; make another stream"

    def __init__(self, peer: P, data: Payload, progress: Progress | None) -> None:
        self._peer = peer
        self._outgoing = Outgoing(peer._remote, data, progress)

    @property
    def peer(self) -> P:
        """To whom the stream goes."""
        return self._peer

    @property
    def state(self) -> StreamState:
        """Where the stream is in its life."""
        return self._outgoing.state

    @property
    def sent(self) -> int:
        """Bytes of the stream that the system took."""
        return self._outgoing.sent

    @property
    def total(self) -> int:
        """Bytes of the stream, all."""
        return self._outgoing.total

    @property
    def error(self) -> Exception | None:
        """What the stream failed of, when it is FAILED."""
        return self._outgoing.error

    def _end(self) -> StreamState:
        """How it has ended; raises what it failed of."""
        if self.error is not None:
            raise self.error
        return self.state


class Answer(Generic[T]):
    """What a call of a door waits for, until the engine tells. How it is waited for is the door's.

    over: nothing is left to wait for. done: it is there, though the caller may not have heard of
    that yet. error: what it failed of. on_over: called when one of the two is so.

    Args:
        lacking: what str() gives, for the error when the time is up.
        whom: the name of the peer.
        forget: takes tell back from whoever has it, once nobody waits any longer.
    """

    def __init__(
        self,
        lacking: str,
        whom: str | None = None,
        forget: Callable[[Callable[..., None]], None] | None = None,
    ) -> None:
        self._lacking = lacking
        self._forget = forget
        self._value: Any = None
        self.whom = whom
        self.over = False
        self.error: errors.PeerTalkError | None = None
        self.on_over: Callable[[], object] | None = None

    def __str__(self) -> str:
        return self._lacking

    @property
    def done(self) -> bool:
        """Whether it is there."""
        return self.over and self.error is None

    def tell(self, value: Any = None, error: errors.PeerTalkError | None = None) -> None:
        """It is there, or has failed; what is told first counts."""
        if not self.over:
            self._value, self.error, self.over = value, error, True
            if self.on_over is not None:
                self.on_over()

    def leave(self) -> None:
        """Nobody waits any longer."""
        if self._forget is not None:
            self._forget(self.tell)

    def result(self) -> T:
        """What was told. Raises what it failed of."""
        if self.error is not None:
            # The traceback of what is raised holds whoever waited, a long message and all. The
            # error itself stays with events, logs and other answers, so each raises its own.
            raise errors.copied(self.error)
        value: T = self._value
        return value


def reaching(peer: Remote) -> Answer[Remote]:
    """Have a peer connected."""
    answer: Answer[Remote] = Answer(f"no connection to peer {peer.name!r}", peer.name)
    peer.transport.reach(peer, answer.tell)
    return answer


def dialling(engine: Transport, address: Address, host: str) -> Answer[Remote]:
    """Have whoever listens at this address of the host connected."""
    answer: Answer[Remote] = Answer(f"no connection to {host}:{address[1]}")
    engine.switchboard.dial(address, answer.tell)
    return answer


def leaving(peer: Remote, seconds: float | None) -> Answer[None]:
    """Have the connection of a peer, if there is any, ended politely within so many seconds."""
    answer: Answer[None] = Answer(f"peer {peer.name!r} did not close its side", peer.name)
    if peer.connection is None:
        answer.tell()
    else:
        peer.connection.on_end = (*peer.connection.on_end, answer.tell)
    peer.transport.leave(peer, seconds)
    return answer


def measuring(peer: Remote) -> Answer[float]:
    """Have the way to a peer measured, in seconds. Raises NotConnected."""
    lacking = f"no answer to a PING from peer {peer.name!r}"
    answer: Answer[float] = Answer(lacking, peer.name, peer.stop_pinging)
    peer.transport.ping(peer, answer.tell)
    return answer


def ending(stream: Outgoing, whom: str) -> Answer[None]:
    """The end of a stream. Raises InvalidState before its beginning."""
    stream.check_begun()
    lacking = f"the stream to peer {whom!r} did not end"
    answer: Answer[None] = Answer(lacking, whom, stream.on_end.remove)
    stream.on_end.append(answer.tell)
    return answer


class Asking(Place, Answer[int]):
    """A place in line of a call that a door makes for a user."""

    _what: ClassVar[str]
    """What there is no room for, while there is none."""

    def __init__(self, peer: Remote, priority: Priority) -> None:
        Place.__init__(self, peer, priority)
        Answer.__init__(self, "", peer.name)

    def __str__(self) -> str:
        lacking = "connection" if self.reaching else f"room for {self._what}"
        return f"no {lacking} to peer {self.peer.name!r}"

    def begin(self) -> bool:
        """Be accepted at once. False: there is no room, or somebody stands before."""
        peer = self.peer
        if peer.quick is not None and self.priority is NORMAL:
            return self.offer()
        return peer.connected and peer.serve(self.priority) and self.offer()

    def stand(self) -> None:
        """Stand in line, and have the peer connected."""
        if not self.joined and not self.over:
            self.join()
        if not self.over and not self.peer.connected:
            self.reaching = True  # so it stands there over the end of another connection
            self.peer.transport.reach(self.peer, self._reached)

    def fail(self, error: errors.PeerTalkError) -> None:
        """What was asked for will not be accepted, and error says why: whoever waits is told."""
        self.tell(None, error)

    def _reached(self, peer: Remote | None, error: errors.PeerTalkError | None) -> None:
        self.reaching = False
        if error is None:
            self.peer.serve(self.priority)
        else:
            self.leave()
            self.fail(error)


class Sending(Asking):
    """One message that stands in line. Told its number."""

    _what = "a message"

    def __init__(
        self, peer: Remote, priority: Priority, payload: bytes, no_delay: bool, key: Key | None
    ) -> None:
        super().__init__(peer, priority)
        self._payload = payload
        self._no_delay = no_delay
        self._key = key

    def offer(self) -> bool:
        """Be accepted. False: there is no room."""
        peer = self.peer
        number = peer.accept(
            self._payload, self._no_delay, self.priority, self._key, may_block=False
        )
        if number:
            self.tell(number)
        return number > 0


class Chunks(Asking):
    """The messages of a send_many, which stand in line a chunk at a time. Told how many were
    accepted."""

    _what = "all messages"

    def __init__(self, peer: Remote, priority: Priority, drawing: Drawing) -> None:
        super().__init__(peer, priority)
        self._drawing = drawing
        self._used: Connection | None = None
        self._messages: list[bytes] = []
        self._taken = 0

    def draw(self) -> bool:
        """Have the next chunk. False: there is none. Raises as Drawing.draw() and check()."""
        self._messages = self._drawing.draw()
        if not self._messages:
            return False
        self._taken, self.over = 0, False
        self.check()
        return True

    def check(self) -> None:
        """Raises what the connection ended of that has taken the last part: some of that may be
        lost, and whoever ended it may not want another. InvalidState: the node was closed."""
        self.peer.transport.check_open()
        error = None if self._used is None else self.peer.left_by(self._used)
        if error is not None:
            raise error

    def offer(self) -> bool:
        """Be accepted as far as there is room. False: some are left."""
        messages, drawing = self._messages, self._drawing
        self._used = self.peer.connection
        while self._taken < len(messages):
            taken = self.peer.accept_many(messages, self._taken, self.priority)
            if not taken:
                return False
            self._taken += taken
            drawing.accepted += taken
        self.tell(drawing.accepted)
        return True


class Broadcast(Answer["BroadcastResult[P]"]):
    """One message to every peer that a node knows. Who has no room may stand in line for that: then
    it is over when all of those have been accepted or have failed."""

    def __init__(
        self,
        engine: Transport,
        payload: bytes,
        priority: Priority,
        key: Key | None,
        no_delay: bool,
    ) -> None:
        super().__init__("no room for a broadcast")
        self._peers: list[P] = []
        self._skipped: dict[P, errors.PeerTalkError] = {}
        self._places: dict[P, Sending] = {}
        self._waiting = 0
        for remote in list(engine.peers.values()):
            peer: P = remote.view
            self._peers.append(peer)
            try:
                remote.offer(payload, no_delay, priority, key)
            except errors.PeerTalkError as error:
                engine.check_open()
                self._skipped[peer] = error
                if isinstance(error, errors.WouldBlock):
                    self._places[peer] = Sending(remote, priority, payload, no_delay, key)

    def stand(self) -> None:
        """Have those without room stand in line, before whoever calls later."""
        self._waiting = len(self._places)
        for place in self._places.values():
            place.on_over = self._one_over
            place.stand()
        if not self._places:
            self.tell()

    def _one_over(self) -> None:
        self._waiting -= 1
        if not self._waiting:
            self.tell()

    def leave(self) -> None:
        """Nobody waits any longer."""
        for place in self._places.values():
            place.leave()

    def late(self, seconds: float) -> BroadcastResult[P]:
        """What has become of it when the time is up."""
        for place in self._places.values():
            place.fail(errors.Timeout(f"{place} within {seconds:g} s", peer=place.whom))
        return self.result()

    def result(self) -> BroadcastResult[P]:
        """What has become of it."""
        skipped = dict(self._skipped)
        for peer, place in self._places.items():
            if place.error is not None:
                skipped[peer] = place.error
            elif place.over:
                del skipped[peer]
        accepted = [peer for peer in self._peers if peer not in skipped]
        return BroadcastResult(accepted, skipped)


def not_started(name: str, how: str) -> errors.InvalidState:
    """The error for what only a node that was started can do. how: to start it."""
    return errors.InvalidState(f"node {name!r} is not started; {how}")


class AnyNode(Uncopied, ABC, Generic[P]):
    """A node of either door."""

    _instead = "it has its sockets once; make a new one: Node(config=node.config)"

    def __init__(self, config: Config) -> None:
        self.config = config
        self._transport: Transport | None = None

    @property
    def _engine(self) -> Transport:
        self._begun.check_open()
        return self._begun

    @property
    def _begun(self) -> Transport:
        """The engine, though it may be closed."""
        if self._transport is None:
            raise not_started(self.config.name, self._start)
        return self._transport

    _start: ClassVar[str]
    """How that is done."""

    def _check_new(self) -> None:
        """Raises InvalidState when it was started before."""
        if self._transport is not None:
            raise errors.InvalidState(
                f"node {self.config.name!r} was started before; make a new one"
            )

    def _whom(self, who: Address | P | str) -> P | Address:
        """The peer of this node that is meant, or else the address.

        Raises:
            PeerNotFound: nobody has this name or id. InvalidArgument: the peer is another node's,
                of whichever door, or this is no address.
        """
        if isinstance(who, str):
            return self.peers.chosen(who)
        if isinstance(who, AnyPeer):
            self._engine.check_own(who._remote)
            return who
        return check_address(who)

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
        """(IPv4 address, TCP port) where this node listens; loopback when it listens on all."""
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
        self._do(lambda engine: engine.set_flags(flags))

    def rebalance(self) -> int:
        """Move connections, until no worker has two more than another; no message is lost or
        overtaken. Returns how many. What has just ended, or has brought too much for now, stays.

        Raises:
            InvalidState: not started, or closed. OutOfMemory, PlatformError: some were moved.
        """
        return self._do(lambda engine: engine.workers.rebalance())

    @abstractmethod
    def _do(self, what: Callable[[Transport], T]) -> T:
        """Have something done as the door may: on the node's loop, or under its lock."""

    @property
    def peers(self) -> Peers[P]:
        """Who is known now."""
        return Peers(self._engine.peers, self._engine)

    def stats(self) -> NodeStatistics:
        """Counters, with units in NodeStatistics; of its end, once the node is closed."""
        return self._begun.stats()

    @property
    def memory(self) -> MemoryReport:
        """Bytes of the C side, part by part, with peaks; of its end, once the node is closed.
        print() shows a table."""
        return self._begun.memory()

    def __repr__(self) -> str:
        state = (
            "not started"
            if self._transport is None
            else "closed"
            if self._transport.closed
            else f"port {self._transport.port}"
        )
        return f"<Node {self.config.name!r} {state}>"
