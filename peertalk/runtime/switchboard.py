"""Opens, greets, uses, drains and closes connections: joins peers to links.

Which connection is used and in what order they are read is decided in protocol/line; here it is
done, with sockets, links and timers.
"""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from .. import errors
from .._core import values
from .._numbers import (
    ERR_CRC,
    ERR_INVALID_PARAM,
    ERR_MAGIC,
    ERR_MESSAGE_TOO_LARGE,
    ERR_VERSION,
)
from ..protocol import classics, events
from ..protocol import connections as policy
from ..protocol.classics import Classics
from ..protocol.connections import NOBODY, Connection, Connections, State, Step
from ..protocol.line import Claims, Decision, Line, Turn, Verdict
from ..protocol.peer import FRAGMENTED_MAX, Key, Peer, PeerEvent, PeerState
from ..protocol.wire import (
    Capabilities,
    Greeting,
    decode_capabilities,
    decode_greeting,
    encode_greeting,
)
from .pulse import Pulse
from .remote import Reached, Remote
from .watchdog import Watchdog
from .world import Address

if TYPE_CHECKING:
    from .transport import Timer, Transport, Watched

_ACCEPTS_PER_TURN = 64
_ACCEPT_PAUSE = 0.1
_ACCEPTING = "accepting connections"
_TAKING_PEERS = "taking more peers"
_LOOK = 0.02
"""Seconds between two looks at a connection that is on its way out: whether something is unread, or
unacknowledged. Neither makes an event."""
_FIRST_READ = 512
"""Bytes that one read of a connection brings until it is greeted: enough for a CAPABILITY, and
little to put into a full inbox before the connection can be held back."""
_UNBOUNDED = 2**32 - 1
_CLASSIC_LIMIT = 512
"""Bytes that a classic peer takes before it has said more (its CAPABILITY)."""
_LOOK_SELDOM = 0.5
_NO_ROOM = {errors.WouldBlock.code, errors.OutOfMemory.code}
_RECALL_DELAY = 1.0
"""Seconds that the side which did not dial a lost connection leaves to the other one."""
_STALE_DIAL = 1.0
"""Seconds after which a dial is begun anew when its peer is heard."""
_FRAME_FAULTS = {ERR_INVALID_PARAM, ERR_MESSAGE_TOO_LARGE, ERR_CRC, ERR_MAGIC, ERR_VERSION}


class Switchboard:
    """All connections of one engine. On the engine's thread only."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.connections = Connections(transport.world.max_connections(transport.config))
        self._listener: socket.socket | None = None
        self._listening: Watched | None = None
        self.classics = Classics(self.connections.max_connections)
        self._classic_timer: Timer | None = None
        self._opening: dict[int, Watched] = {}
        """The sockets of dials that are under way, by the tag of the connection."""
        self._ending: dict[Connection, _Ending] = {}
        """Connections whose end is not done to its last step."""
        self._waiting: list[Connection] = []
        """Connections whose messages wait until others have said whose they are, or are shut."""
        self._aside_timer: Timer | None = None
        self._lost: dict[Key, tuple[Remote, bool]] = {}
        """Peers with whom a connection is to come back, and whether we dial at once. Not all are in
        the table: without discovery one that has no connection is forgotten."""
        self._recalls: dict[Key, Timer] = {}
        self.pulse = Pulse(transport)
        self.watchdog = Watchdog(transport)

    # Listening, and leaving altogether ------------------------------------------------------------

    def listen(self) -> int:
        """Accept connections from now on. Returns the TCP port.

        Raises:
            AddressInUse, NoNetwork, PlatformError: naming the option that changes it.
        """
        transport, config = self.transport, self.transport.config
        self._listener = transport.world.listen(
            config.bind, config.port, give_way=config.explain()["port"][1] == "default"
        )
        port: int = self._listener.getsockname()[1]
        self._listening = transport.watch(self._listener, values.READ, self._accept)
        largest = transport.max_message
        ours = Capabilities(
            largest,
            min(1024, largest),
            0,
            0,
            transport.instance,
            config.name,
            port,
            transport.datagrams.port,
        )
        self.pulse.introduce(ours)
        self.watchdog.start()
        return port

    def stop_listening(self) -> None:
        """Accept no more."""
        self.transport.unwatch(self._listening)
        self._listening = None
        if self._listener is not None:
            self.transport.close_socket(self._listener)
            self._listener = None

    def close(self) -> None:
        """Leave every peer politely."""
        self.stop_listening()
        for connection in list(self.connections.by_tag.values()):
            if connection.held is not None:
                self._unhold(connection)
            if connection.state in (State.CONNECTING, State.GREETING, State.GREETED):
                self._end(connection, None)
            elif connection.state is State.OPEN:
                self._look_whether_left(connection)
            elif connection.state is State.ASIDE:
                self._part(connection)

    def close_now(self) -> None:
        """End every connection."""
        self.stop_listening()
        for connection in list(self.connections.by_tag.values()):
            self._end(
                connection, errors.ConnectionClosed("the node was closed before this was sent")
            )

    # What links report ----------------------------------------------------------------------------

    def arrived(self, connection: Connection, kind: int, a: int, b: Any) -> None:
        """Something came in on a connection: events of the loop, in order. Kept back while another
        connection is to be read first."""
        if self.watchdog.frozen and kind in (values.BATCH, values.FRAME):
            self.watchdog.heard(connection)
        if connection.held is not None:
            connection.held.append((kind, connection.tag, a, b))
            return
        if kind == values.BATCH:
            self._deliver(connection, a, b)
        elif kind == values.FRAME:
            self._frame(connection, a & 0xFF, a >> 8 & 0xFF, b)
        elif kind == values.FINISHED:
            self._other_half_ended(connection)
        elif kind == values.CLOSED:
            self._ended(connection, a, b)
        if connection.state is State.DRAINING:
            self._look_whether_drained(connection)

    def slots_came_free(self, connection: Connection) -> None:
        """A connection on its way out has room again, or nothing more to send. One that its peer
        does not use yet, because there was no room to say so, is none of these."""
        peer = connection.peer
        used = isinstance(peer, Remote) and peer.connection is connection
        if connection.state is State.OPEN and (used or self.transport.closing):
            self._farewell(connection)

    def _deliver(self, connection: Connection, payload_bytes: int, payloads: list[bytes]) -> None:
        if connection.state is State.GREETING:
            self._greeted(connection, None, Greeting())  # DATA before CAPABILITY: a classic peer
        peer = connection.peer
        if not isinstance(peer, Remote):
            return
        line = peer.line
        if line is not None and (line.delivered != connection.place or len(line.members) > 1):
            if connection.state is State.GREETED:  # it took us for classic, because we were slow
                line.forgo(connection)
                self._prefer(connection, peer)
            inside = connection in line.members
            turn = line.turn(connection) if inside else Turn.DELIVER
            if turn is Turn.DROP:
                return
            if turn is Turn.HOLD:
                self._hold(connection)
        if connection.held is not None:
            connection.held.append((values.BATCH, connection.tag, payload_bytes, payloads))
            return
        if connection.state is State.ASIDE:
            self.classics.brought(connection.tag, self.transport.world.clock())
        self.transport.deliver(peer, connection, payload_bytes, payloads)

    def _frame(self, connection: Connection, kind: int, flags: int, payload: bytes) -> None:
        if kind == values.CAPABILITY:
            self._capability(connection, payload)
            return
        if connection.state is State.GREETING and not connection.dialled:
            self._greeted(connection, None, Greeting())
        if kind == values.PING:
            if connection.alive:
                self.pulse.asked(connection)
        elif kind == values.PONG:
            self.pulse.pong(connection)
            for aside in self._asides_of(connection.peer):
                self._judge_aside(aside, answered=True)
        elif kind == values.REJECT:
            self._rejected(connection, payload)
        elif kind == values.DISCONNECT:
            self._end(connection, None, polite=True)
        elif kind == values.DATA and connection.state is not State.CLOSED:
            if messages := self._messages(connection, flags, payload):
                self._deliver(connection, sum(map(len, messages)), messages)
        elif kind != values.ACK:
            self.transport.totals.ignored += 1

    def _messages(self, connection: Connection, flags: int, payload: bytes) -> list[bytes]:
        """The messages that a DATA frame brings: of a batch any number, of a fragment one at the
        most. A fault costs these alone."""
        try:
            if flags & values.FRAGMENT:
                if connection.reassembly is None:
                    # an original sends in fragments what is longer than we take in one frame
                    connection.reassembly = self.transport.loop.reassembly(
                        max(self.transport.max_message, FRAGMENTED_MAX)
                    )
                message = connection.reassembly.receive(payload)
                return [] if message is None else [message]
            return self.transport.core.split_batch(payload) if flags & values.BATCHED else [payload]
        except (errors.ProtocolError, errors.OutOfMemory) as error:
            self.transport.totals.ignored += 1
            self.transport.log.info("DATA from %s:%d was ignored: %s", *connection.address, error)
            return []

    def _capability(self, connection: Connection, payload: bytes) -> None:
        try:
            capabilities = decode_capabilities(self.transport.core, payload)
        except errors.ProtocolError:
            # as the original: ignored whole, the connection stays
            self.transport.totals.ignored += 1
            return
        greeting = decode_greeting(payload, capabilities.instance)
        if greeting.addressed != self.transport.instance:
            greeting = greeting._replace(claims=None)
        peer = connection.peer
        if connection.state is State.GREETING:
            self._greeted(connection, capabilities, greeting)
        elif isinstance(peer, Remote) and connection.state is not State.CLOSED:
            if peer.line is not None and capabilities.instance in (None, peer.instance):
                self._apply(peer.line.told(connection, greeting.claims, greeting.place or 0))
            if connection.state is State.OPEN:
                self._told_again(connection, peer, capabilities, greeting)
            elif connection.state is State.ASIDE and capabilities.instance is None:
                self.classics.said(connection.tag, capabilities)

    def _told_again(
        self,
        connection: Connection,
        peer: Remote,
        capabilities: Capabilities,
        greeting: Greeting,
    ) -> None:
        """A later CAPABILITY replaces the one before, but for who it is, which no connection can
        change: left out, it is as it was."""
        instance, known = capabilities.instance, peer.capabilities
        if instance is not None and instance != peer.instance:
            if peer.instance is not None or not connection.dialled:
                self.transport.totals.ignored += 1
                return
            if not self._greeted_late(connection, peer, instance, capabilities):
                return
            if greeting.place is not None and (line := self._line_of(peer)).decides:
                line.adopt(connection)  # the other side waits for that
                self.connections.last_place = max(self.connections.last_place, line.place)
                self._greet(connection, peer, connection.place)
        elif known is not None and known.instance is not None:
            capabilities = msgspec.structs.replace(
                capabilities,
                instance=known.instance,
                name=capabilities.name or known.name,
                port=capabilities.port or known.port,
                datagram_port=capabilities.datagram_port or known.datagram_port,
            )
        peer.capabilities = capabilities
        if known is None or capabilities.datagram_port != known.datagram_port:
            self.transport.datagrams.place(peer)
        connection.link.max_message = min(self.transport.max_message, capabilities.max_message)
        connection.slow = False
        peer.on_pressure()

    def _greeted_late(
        self, connection: Connection, peer: Remote, instance: bytes, capabilities: Capabilities
    ) -> bool:
        """Whom we dialled and took for classic, because its CAPABILITY did not come in time, is one
        of ours: its peer becomes that. False: it cannot, and nothing more is sent here."""
        transport = self.transport
        where = f"{connection.address[0]}:{connection.address[1]}"
        if instance == transport.instance:
            self._end(
                connection, errors.InvalidArgument(f"{where} is this node itself"), polite=True
            )
            return False
        known = transport.recall(instance)
        if known is not None:
            if not known.known:
                transport.know(known)
            replaced = errors.NetworkFailure(
                f"{peer.id} turned out to be the peer {known.name!r}; send to that", peer=known.name
            )
            self._tell_unknown(connection, peer, replaced)
            self._detach(connection, replaced, polite=True)
            transport.tidy(peer)
            connection.peer = known
            self._apply(self._line_of(known).late(connection))
            return False
        if transport.finder is not None:
            transport.finder.release(peer.key)
            transport.finder.discovery.hold(instance)
        transport.renew(peer, instance, instance)
        peer.name = capabilities.name or peer.name
        peer.address = (connection.address[0], capabilities.port or connection.address[1])
        return True

    # Dial, accept, greet --------------------------------------------------------------------------

    def reach(self, peer: Remote, reached: Reached) -> None:
        """Call reached when the peer has an open connection, or with the error when it cannot be
        had."""
        if peer.connection is not None and peer.connected:
            reached(peer, None)
            return
        if peer.successor is not None:
            reached(None, peer.restarted_error())
            return
        peer.reaching = [*(peer.reaching or ()), reached]
        self._dial_when_due(peer)

    def _dial_when_due(self, peer: Remote) -> None:
        """Dial a peer that somebody wants: not while a connection is there or on its way, and not
        before the time that a failed attempt has set."""
        if peer.connection is not None or peer.retry is not None or self.transport.closing:
            return
        if self.connections.dialling(peer) is not None or self._is_greeted(peer):
            return
        now = self.transport.world.clock()
        delay = peer.not_before - now
        if isinstance(peer.key, tuple):
            delay = max(delay, self.classics.head_start(peer.key, now))
        if delay > 0:
            peer.retry = self.transport.after(delay, lambda: self._retry(peer))
        else:
            self._dial_peer(peer)

    @staticmethod
    def _is_greeted(peer: Remote) -> bool:
        """Whether a connection with the peer waits to be used."""
        line = peer.line
        return line is not None and any(each.state is State.GREETED for each in line.members)

    def dial(
        self, address: Address, reached: Reached | None = None, peer: Remote | None = None
    ) -> Connection | None:
        """Open a connection to an address, or wait for the one that is being opened. reached is
        called once: with the peer that was found there, or with an error."""

        def here(found: Remote | None, error: errors.PeerTalkError | None) -> None:
            assert reached is not None
            if peer is None and isinstance(error, _NotUsed):
                self.reach(error.known, reached)
            else:
                reached(found, error)

        told = () if reached is None else (here,)
        there = next(
            (
                known
                for known in self.transport.peers.values()
                if known.address == address and (known.connected or self._is_greeted(known))
            ),
            None,
        )
        if there is not None and peer is None and reached is not None:
            self.reach(there, reached)
            return None
        under_way = self.connections.dialling_to(address)
        if under_way is not None and (
            peer is None or under_way.peer is None or under_way.peer is peer
        ):
            under_way.peer = under_way.peer or peer
            under_way.reached += told
            return under_way
        if not self._has_room(address[0]):
            full = errors.OutOfMemory(
                f"the limit of {self.transport.config.max_peers} peers (Config.max_peers) is "
                "reached"
            )
            self.transport.call(told, None, full)
            self.transport.call_all()
            return None
        now = self.transport.world.clock()
        connection = Connection(self.transport.tag(), address, dialled=True, now=now, peer=peer)
        connection.number = self.connections.next_number()
        connection.reached = told
        late = errors.Timeout(
            f"{address[0]}:{address[1]} did not answer within "
            f"{self.transport.config.connect_timeout:g} s (Config.connect_timeout)"
        )

        def begin() -> None:
            connection.advance(Step.DIAL)
            self.connections.add(connection)
            connection.socket = self.transport.world.dial(address, self.transport.config.bind)
            self._opening[connection.tag] = self.transport.watch(
                connection.socket,
                values.WRITE,
                partial(self._wholly, connection, self._connected, connection),
            )
            connection.timer = self.transport.after(
                self.transport.config.connect_timeout, lambda: self._end(connection, late)
            )

        self._wholly(connection, begin)
        return connection if connection.state is State.CONNECTING else None

    def _wholly(self, connection: Connection, step: Callable[..., None], *arguments: Any) -> None:
        """Take a step of a connection to its end; else the connection ends with what was raised."""
        try:
            step(*arguments)
        except BaseException as error:
            self._end(connection, _told_as(error))
            if not isinstance(error, Exception):
                raise

    def _dial_peer(self, peer: Remote) -> None:
        """One attempt: its addresses, one after the other."""
        if peer.state in (PeerState.DISCOVERED, PeerState.FAILED):
            peer.advance(PeerEvent.DIALLED)
        discovery = self.transport.finder.discovery if self.transport.finder is not None else None
        addresses = discovery.addresses(peer.key) if discovery is not None else []
        untried = deque(addresses or [peer.address])

        self._attempt(peer, untried, None)

    def _attempt(
        self, peer: Remote, untried: deque[Address], error: errors.PeerTalkError | None
    ) -> None:
        """The next address, if the one before was in vain."""
        if peer.connection is not None:
            return
        if untried and not self.transport.closing and not _is_final(error):

            def reached(found: Remote | None, error: errors.PeerTalkError | None) -> None:
                if found is None or error is not None:
                    self._attempt(peer, untried, error)

            self.dial(untried.popleft(), reached, peer)
        else:
            self._gave_up(peer, error or self.transport.closed_error(peer))

    def _gave_up(self, peer: Remote, error: errors.PeerTalkError) -> None:
        """One attempt at a peer has failed: try again while messages wait, or a connection that was
        greeted was not used, and tries are left."""
        error.peer = error.peer or peer.name
        if peer.connection is not None:
            return
        delay = self._set_back(peer)
        wanted = peer.queued or (isinstance(error, _NotUsed) and peer.reaching)
        may_try = peer.attempts <= len(policy.RETRY_DELAYS) and not _is_rejection(error)
        if wanted and may_try and not self.transport.closing:
            self.transport.cancel(peer.retry)
            peer.retry = self.transport.after(delay, lambda: self._retry(peer))
            if isinstance(error, _NotUsed):
                return  # who waits for a connection waits on
        else:
            peer.attempts = 0
            self.transport.fail_queued(peer, error)
        if peer.state is PeerState.CONNECTING:
            peer.advance(PeerEvent.REFUSED)
        if _is_rejection(error):
            self.expect_no_more(peer.key)
        peer.tell_reaching(error)
        peer.on_lost(error)
        self.transport.tidy(peer)

    def _set_back(self, peer: Remote) -> float:
        """An attempt has failed, or a connection has ended young: nobody dials before the time that
        this sets. Returns the seconds until then."""
        delay = policy.RETRY_DELAYS[min(peer.attempts, len(policy.RETRY_DELAYS) - 1)]
        peer.attempts += 1
        peer.not_before = self.transport.world.clock() + delay
        return delay

    def _retry(self, peer: Remote) -> None:
        peer.retry = None
        if peer.queued or peer.reaching:
            self._dial_when_due(peer)

    def _connected(self, connection: Connection) -> None:
        if connection.state is not State.CONNECTING:
            return
        error = self.transport.world.outcome(connection.socket, connection.address)
        if error is not None:
            self._end(connection, error)
            return
        self.transport.unwatch(self._opening[connection.tag])
        del self._opening[connection.tag]
        self._establish(connection)

    def _accept(self, *, waited: bool = False) -> None:
        """Take those who call. Where there are no descriptors they wait for a moment, since some
        may be about to come free; those who have waited are turned away."""
        troubles = self.transport.troubles
        for _ in range(_ACCEPTS_PER_TURN):
            if self._listener is None:
                return
            try:
                accepted = self.transport.world.accept(self._listener)
            except errors.PlatformError as error:
                if not waited:
                    self._let_callers_wait()
                elif self._turn_one_away(error):
                    continue
                return
            if accepted is None:
                return
            troubles.worked(_ACCEPTING)
            arrived, address = accepted
            if not self._has_room(address[0]):
                troubles.failed(
                    _TAKING_PEERS,
                    "%d connections are as many as there may be (Config.max_peers is %d); callers "
                    "are turned away",
                    len(self.connections),
                    self.transport.config.max_peers,
                )
                self._turn_away(arrived)
                continue
            connection = Connection(
                self.transport.tag(), address, dialled=False, now=self.transport.world.clock()
            )
            connection.socket = arrived
            self.connections.add(connection)
            self._wholly(connection, self._establish, connection)

    def _let_callers_wait(self) -> None:
        self.transport.unwatch(self._listening)
        self._listening = None
        self.transport.after(_ACCEPT_PAUSE, self._accept_again)

    def _accept_again(self) -> None:
        if self._listener is None:
            return
        try:
            self._listening = self.transport.watch(self._listener, values.READ, self._accept)
        except errors.PeerTalkError:
            self._let_callers_wait()
        else:
            self._accept(waited=True)

    def _turn_one_away(self, error: errors.PeerTalkError) -> bool:
        """A caller that nobody answers takes us for gone, or for a classic peer: it is accepted on
        the descriptor that is kept for this, and told that it is not taken. False: there is none,
        or the descriptor was lost to somebody else and all wait on."""
        transport, listener = self.transport, self._listener
        assert listener is not None
        try:
            with transport.use_spare():
                accepted = transport.world.accept(listener)
                if accepted is None:  # the system looks for a descriptor before it looks for one
                    return False
                self._turn_away(accepted[0])
        except errors.PlatformError:
            self._let_callers_wait()
            accepted = None
        transport.totals.accepts_refused += 1
        transport.troubles.failed(_ACCEPTING, "%s; callers are turned away", error)
        return accepted is not None

    def _turn_away(self, arrived: socket.socket) -> None:
        full = bytes((errors.RejectReason.FULL,))
        self.transport.world.turn_away(
            arrived, self.transport.core.encode_frame(values.REJECT, full)
        )

    def _has_room(self, host: str) -> bool:
        """Whether one more connection may exist. Where no place is left a stranger that has not
        said who it is makes room for somebody from another host: the first one of the host that has
        the most of them; else the connection that is least wanted."""
        if len(self.connections) >= self.connections.max_connections:
            strangers: dict[str, list[Connection]] = {}
            for connection in self.connections.undecided:
                if not connection.dialled:
                    strangers.setdefault(connection.address[0], []).append(connection)
            crowd = max(strangers.values(), key=len, default=[])
            if crowd and crowd[0].address[0] != host:
                text = f"{crowd[0].address[0]} took a place that was wanted, without a word"
                self._end(crowd[0], errors.Timeout(text), fault=True)
            else:
                self._end_least_wanted()
        return self.connections.has_room()

    def _tell(
        self,
        connection: Connection,
        error: errors.PeerTalkError | None,
        peer: Remote | None = None,
    ) -> None:
        """Those who wait for a connection hear that it is there, or why it is not."""
        self.transport.call(connection.reached, peer if error is None else None, error)
        connection.reached = ()
        self.transport.call_all()

    def _end_least_wanted(self) -> bool:
        """End the connection that has been frozen, or has stood still, the longest. False: none
        has for long enough."""
        least = self.watchdog.least_wanted()
        if least is None:
            return False
        name = least.peer.name if least.peer is not None else least.address[0]
        text = (
            f"peer {name!r} took and said nothing, and its place was wanted (Config.max_peers); "
            "the link is closed"
        )
        self.transport.world.abandon(least.socket)
        self._end(least, errors.ConnectionClosed(text, peer=name))
        return True

    def _establish(self, connection: Connection) -> None:
        """Both sides are there: greet with CAPABILITY at once and wait for theirs."""
        connection.advance(Step.ESTABLISH)
        connection.since = self.transport.world.clock()
        self.transport.cancel(connection.timer)
        self.transport.world.tune(connection.socket, self.transport.config.link_timeout)
        connection.link = self.transport.world.open_link(
            self.transport.loop,
            connection.socket,
            connection.tag,
            self.transport.pipeline_depth,
        )
        connection.link.read_max = _FIRST_READ
        self.transport.totals.opened += 1
        self.watchdog.opened(connection)
        peer = connection.peer
        if peer is None and connection.dialled:
            peer = self._known_at(connection.address)
        assert peer is None or isinstance(peer, Remote)
        if not self._greet(connection, peer):
            return
        where = f"{connection.address[0]}:{connection.address[1]}"
        if connection.dialled and peer is not None and not peer.classic:
            # one of ours always says who it is: it is only slow
            self._give_time(
                connection,
                self.transport.config.connect_timeout,
                errors.Timeout(
                    f"peer {peer.name!r} took the connection and said nothing for "
                    f"{self.transport.config.connect_timeout:g} s (Config.connect_timeout)"
                ),
            )
        elif connection.dialled:
            connection.timer = self.transport.after(
                policy.GREETING_TIME, lambda: self._take_for_classic(connection)
            )
        else:
            silent = f"{where} sent no whole frame within {policy.SILENCE_TIME:g} s"
            self._give_time(connection, policy.SILENCE_TIME, errors.Timeout(silent), fault=True)

    def _take_for_classic(self, connection: Connection) -> None:
        """It has said nothing so far. An original would have, but one of ours may be slow: until
        Config.connect_timeout is over nothing is refused that only one of ours takes."""
        wait = self.transport.config.connect_timeout - policy.GREETING_TIME
        connection.slow = wait > 0
        self._greeted(connection, None, Greeting())
        if connection.slow:
            self.transport.after(wait, lambda: self._no_longer_slow(connection))

    def _no_longer_slow(self, connection: Connection) -> None:
        """It has said what it takes, or its time is over."""
        peer = connection.peer
        if connection.slow:
            connection.slow = False
            if isinstance(peer, Remote) and peer.connection is connection:
                self.transport.pump(peer)

    def _known_at(self, address: Address) -> Remote | None:
        """Who lives at an address, as far as is known."""
        known = self.transport.peers.values()
        return next((peer for peer in known if peer.address == address and not peer.classic), None)

    def _give_time(
        self,
        connection: Connection,
        seconds: float,
        late: errors.PeerTalkError,
        *,
        fault: bool = False,
    ) -> None:
        """End a connection that says nothing for so long. What lies unread then is read first: it
        may be this program that was late."""

        self.transport.cancel(connection.timer)
        connection.timer = self.transport.after(
            seconds, lambda: self._time_is_over(connection, late, fault=fault)
        )

    def _time_is_over(
        self, connection: Connection, late: errors.PeerTalkError, *, fault: bool
    ) -> None:
        if self.unread(connection):
            self._give_time(connection, _LOOK, late, fault=fault)
        else:
            self._end(connection, late, fault=fault)

    def _greet(self, connection: Connection, peer: Remote | None, place: int = 0) -> bool:
        """Say who we are; to a peer also what is over for us, and the place of the connection.
        False: that is not possible yet, or never, and the connection has ended."""
        addressed, claims = None, None
        if peer is not None and peer.instance is not None:
            addressed, claims = peer.instance, self._claims(peer)
            connection.addressed = addressed
        greeting = Greeting(connection.number, addressed, claims, place)
        payload = self.pulse.greeting + encode_greeting(greeting, self.transport.instance)
        code = connection.link.send_frame(values.CAPABILITY, payload, values.NO_DELAY)
        self.transport.hint(code)
        if code in _NO_ROOM and connection.state is not State.GREETING:
            self.transport.after(_LOOK, lambda: self._greet_again(connection, place))
            return False
        if code < 0:
            where = f"{connection.address[0]}:{connection.address[1]}"
            text = f"cannot greet {where}: {self.transport.core.strerror(code)}"
            self._end(connection, errors.from_code(code, text))
        return code >= 0 and connection.state is not State.CLOSED

    def _greet_again(self, connection: Connection, place: int) -> None:
        """There was no room for that."""
        peer = connection.peer
        assert isinstance(peer, Remote)
        if connection.state is State.OPEN and place:
            self._use(connection)
        elif connection.state is State.GREETED and not place:
            self._greet(connection, peer)

    def _claims(self, peer: Remote) -> Claims:
        line = peer.line or Line(self.transport.instance, peer.instance or b"")
        undecided = [each.number for each in self.connections.undecided if each.dialled]
        return line.claims(self.connections.last_number, undecided)

    def _greeted(
        self, connection: Connection, capabilities: Capabilities | None, greeting: Greeting
    ) -> None:
        """We know who it is, or that it will not say."""
        if connection.state is not State.GREETING:
            return
        self.transport.cancel(connection.timer)
        connection.timer = None
        if capabilities is not None or connection.dialled:  # no stranger
            connection.link.frame_timeout = self.transport.config.link_timeout
        if self.classics.settled(connection.tag):
            self._dial_classics()
        where = f"{connection.address[0]}:{connection.address[1]}"
        instance = None if capabilities is None else capabilities.instance
        if instance == self.transport.instance:
            self._end(connection, errors.InvalidArgument(f"{where} is this node itself"))
            return
        connection.peer = peer = self._identify(connection, capabilities)
        if not self._admit(connection, peer):
            return
        if instance is None and peer.connection is not None:
            self._stand_aside(connection, peer, capabilities)
            self._settled(connection.tag)
            return
        peer.capabilities = capabilities
        if instance is not None and greeting.place is not None:
            self._meet(connection, peer, greeting)
        else:
            self._choose(connection, peer)
        self._settled(connection.tag)

    def _line_of(self, peer: Remote) -> Line:
        if peer.line is None:
            assert peer.instance is not None
            last_place = self.connections.last_place
            peer.line = Line(self.transport.instance, peer.instance, last_place)
        return peer.line

    def _meet(self, connection: Connection, peer: Remote, greeting: Greeting) -> None:
        """A peer that knows places: its line decides what becomes of the connection."""
        line = self._line_of(peer)
        if not connection.dialled:
            connection.number = greeting.number
        decisions = line.identified(connection, greeting.claims, greeting.place or 0)
        if connection.state is State.GREETED and not line.decides:
            wait = self.transport.config.connect_timeout
            text = f"peer {peer.name!r} did not use the connection within {wait:g} s"
            self._give_time(connection, wait, errors.Timeout(text, peer=peer.name))
            if connection.dialled and connection.addressed != peer.instance:
                self._greet(connection, peer)
        self._apply(decisions)

    def _choose(self, connection: Connection, peer: Remote) -> None:
        """A peer that knows no places: the newest connection is used, the one before is read to its
        end first."""
        if peer.connection is not None:
            self._retire(peer.connection, connection)
        connection.advance(Step.GREET)
        self._open(connection, peer)

    def _prefer(self, connection: Connection, peer: Remote) -> None:
        """A peer has sent on a connection that was not used yet: it took us for classic. What has
        come on the one before was sent earlier; what may come there yet was not."""
        before = peer.connection
        unread = before is not None and self.unread(before) > 0
        if before is not None:
            self._retire(before, connection, wait=unread)
        if before is not None and unread:
            self.transport.after(_LOOK, lambda: self._look_at_strangers(connection))
        connection.advance(Step.GREET)
        self._open(connection, peer)

    def _admit(self, connection: Connection, peer: Remote) -> bool:
        """Whether one more peer may be connected. False: it was sent away."""
        most = self.transport.config.max_peers
        if peer.connected:
            return True
        if self.connections.connected < most or self._end_least_wanted():
            self.transport.troubles.worked(_TAKING_PEERS)
            return True
        hosts: dict[str, list[Connection]] = {}
        for each in self.connections.by_tag.values():
            if each.state is State.OPEN:
                hosts.setdefault(each.address[0], []).append(each)
        crowd = max(hosts.values(), key=len, default=[])
        if len(crowd) > most * 7 // 8 and crowd[0].address[0] != connection.address[0]:
            newest = crowd[-1]
            name = newest.peer.name if newest.peer is not None else newest.address[0]
            text = f"peer {name!r} gave its place to another host (Config.max_peers is {most:,})"
            self._end(newest, errors.ConnectionClosed(text, peer=name))
            return True
        self.connections.refused += 1
        connection.link.send_frame(
            values.REJECT, bytes((errors.RejectReason.FULL,)), values.NO_DELAY
        )
        text = f"the limit of {most:,} connected peers (Config.max_peers) is reached"
        self._end(connection, errors.OutOfMemory(text, peer=peer.name), polite=True)
        self.transport.troubles.failed(_TAKING_PEERS, "%s; callers are turned away", text)
        return False

    def _apply(self, decisions: list[Decision]) -> None:
        """Do what a line has decided."""
        for verdict, connection in decisions:
            if verdict is Verdict.RELEASE:
                self._unhold(connection)
            elif verdict is Verdict.REFUSE:
                self._end(connection, None)
            elif verdict is Verdict.USE and connection.state is State.OPEN:
                self._use(connection)
            elif verdict is Verdict.DRAIN and connection.state is State.DRAINING:
                peer = connection.peer
                if isinstance(peer, Remote) and peer.line and not peer.line.decides:
                    self._wait_for_strangers(connection)
                self._drain(connection, None)

    def _use(self, connection: Connection) -> None:
        """Messages are sent on this one from now on."""
        peer = connection.peer
        assert isinstance(peer, Remote) and peer.line is not None
        self.transport.cancel(connection.timer)
        connection.timer = None
        if not peer.line.decides:
            self._wait_for_strangers(connection)
        else:
            self.connections.last_place = max(self.connections.last_place, connection.place)
            if not self._greet(connection, peer, connection.place):
                return
        if peer.connection is connection:
            return  # it was adopted, and there was no room to say so at once
        if peer.connection is not None:  # one that stands outside the line
            self._retire(peer.connection, connection)
        self._open(connection, peer)

    def _wait_for_strangers(self, connection: Connection) -> None:
        """Who has not said whose it is, and has something unread, may be an older connection with
        the same peer: it is read first."""
        strangers = {
            each.tag
            for each in self.connections.undecided
            if each.link is not None and self.unread(each)
        }
        if strangers:
            connection.waits_for |= strangers
        if connection.waits_for and connection not in self._waiting:
            self._waiting.append(connection)
            self.transport.after(_LOOK, lambda: self._look_at_strangers(connection))

    def _look_at_strangers(self, connection: Connection) -> None:
        """Those that have nothing unread any more, and still have not said whose they are, are not
        waited for."""
        for tag in connection.waits_for:
            other = self.connections.by_tag.get(tag)
            if other is None or not self.unread(other):
                self._settled(tag)
        if connection.waits_for and connection.state is not State.CLOSED:
            self.transport.after(_LOOK, lambda: self._look_at_strangers(connection))

    def _identify(self, connection: Connection, capabilities: Capabilities | None) -> Remote:
        expected = connection.peer
        assert expected is None or isinstance(expected, Remote)
        if capabilities is not None and capabilities.instance is not None:
            address = (connection.address[0], capabilities.port or connection.address[1])
            peer = self.transport.meet(capabilities.instance, capabilities.name or "", address)
            if expected is not None and expected is not peer:
                if expected.classic:
                    self._replace(expected, peer)
                else:
                    self._mistaken(connection, expected, peer)
            return peer
        if expected is not None:
            return self.transport.peers.get(expected.key) or self.transport.know(expected)
        if connection.dialled:
            return self.transport.peers.get(connection.address) or self.transport.make_peer(
                connection.address, None, "", connection.address
            )
        caller = classics.owner(self._classics_at(connection.address[0]))
        return caller or self.transport.make_peer(connection.address, None, "", connection.address)

    def _replace(self, classic: Remote, peer: Remote) -> None:
        """What was taken for a classic peer has turned out to be one of ours."""
        self.transport.forget(classic, events.LostReason.CLOSED)
        replaced = errors.NetworkFailure(
            f"{classic.id} is now the peer {peer.name!r}; send to that", peer=peer.name
        )
        classic.tell_reaching(replaced)
        self.transport.fail_queued(classic, replaced)

    def _mistaken(self, connection: Connection, expected: Remote, found: Remote) -> None:
        """Another node answers where expected was heard: it was started again, or has moved."""
        connection.peer = None
        if expected.successor is found:
            self._tell(connection, expected.restarted_error())
            return
        where = f"{connection.address[0]}:{connection.address[1]}"
        text = f"{where} is no longer {expected.name!r}: {found.name!r} answers there"
        self._tell(connection, errors.NetworkFailure(text, peer=expected.name))

    def _open(self, connection: Connection, peer: Remote) -> None:
        capabilities = peer.capabilities
        limit = _CLASSIC_LIMIT if capabilities is None else capabilities.max_message
        connection.link.max_message = min(self.transport.max_message, limit)
        connection.link.read_max = _UNBOUNDED
        if self.transport.inbox.flooded:
            self.transport.pause_if_full(connection, peer)
        if not peer.known:  # it was taken for gone while its connection was only greeted
            self.transport.know(peer)
        peer.connection = connection
        connection.since = self.transport.world.clock()
        if capabilities is not None and capabilities.instance is not None and capabilities.port:
            peer.address = (connection.address[0], capabilities.port)  # it may have moved
        self.transport.datagrams.place(peer)
        self.transport.cancel(peer.retry)
        peer.retry = None
        self.expect_no_more(peer.key)
        if self.transport.finder is not None:
            self.transport.finder.discovery.hold(peer.key)
        if isinstance(peer.key, tuple):
            self.classics.connected(peer.key)
        if peer.state is not PeerState.CONNECTED:
            peer.advance(PeerEvent.OPENED)
            self.connections.connected += 1
            peer.latency = None
            if not connection.dialled:
                self.transport.emit(events.ConnectionRequested, peer)
            self.transport.emit(events.PeerConnected, peer)
            self.transport.check_name(peer)
        self.pulse.opened(connection, peer)
        peer.on_pressure()
        self._tell(connection, None, peer)
        peer.tell_reaching(None)

    # Two between the same nodes -------------------------------------------------------------------

    def _retire(self, leaving: Connection, staying: Connection, *, wait: bool = True) -> None:
        """Shut the one for writing, read it to its end, and until then hold back what the other
        brings, unless it need not wait."""
        peer = leaving.peer
        assert isinstance(peer, Remote)
        if peer.connection is leaving:
            leaving.handed.seal(peer.accepted)
            peer.connection = None
            peer.quick = None
        leaving.advance(Step.RETIRE)
        self._tell(leaving, None, peer)
        leaving.link.shut()
        self.transport.schedule()
        gone = errors.ConnectionClosed(
            f"the second connection with {peer.name!r} did not end in time", peer=peer.name
        )
        leaving.timer = self.transport.after(
            self.transport.config.drain_timeout, lambda: self._end(leaving, gone)
        )
        if not wait:
            return
        staying.waits_for |= {leaving.tag}
        if staying not in self._waiting:
            self._waiting.append(staying)
        if staying.held is None:
            self._hold(staying)

    def _hold(self, connection: Connection) -> None:
        """Keep back what it brings from now on, until RELEASE."""
        connection.held = deque()
        connection.link.pause()
        connection.spoilt = True

    def _settled(self, tag: int) -> None:
        """A connection has said whose it is, has ended, or has nothing unread."""
        for waiting in [each for each in self._waiting if tag in each.waits_for]:
            peer = waiting.peer
            assert isinstance(peer, Remote)
            if peer.line is not None and waiting in peer.line.members:
                released = peer.line.settled(tag)
            else:  # a peer that knows no places, or has taken us for one
                waiting.waits_for = waiting.waits_for - {tag} or NOBODY
                held = waiting.held is not None and not waiting.waits_for
                released = [(Verdict.RELEASE, waiting)] if held else []
            if not waiting.waits_for:
                self._waiting.remove(waiting)
            self._apply(released)

    def _unhold(self, connection: Connection) -> None:
        """Go on, with what was kept back first."""
        held, connection.held = connection.held, None
        peer = connection.peer
        if connection.state is State.CLOSED:
            self._keep_held(connection, held or deque())
            if isinstance(peer, Remote) and peer.line is not None:
                self._apply(peer.line.finished(connection))
            return
        self.transport.read_on(connection)
        for kind, _, a, b in held or ():
            if connection.tag in self.connections.by_tag:
                self.arrived(connection, kind, a, b)
        if connection.state is State.DRAINING:
            self._look_whether_drained(connection)

    def _drain(self, connection: Connection, error: errors.PeerTalkError | None) -> None:
        """A connection is over for the other side, or we have waited enough for it: nothing more is
        sent on it. What has arrived is read, because its sender takes it for sent."""
        peer = connection.peer
        assert isinstance(peer, Remote)
        self.transport.cancel(connection.timer)
        connection.timer = None
        if peer.connection is connection:
            left = connection.left is not None
            lost = error or errors.ConnectionClosed(
                f"the connection with peer {peer.name!r} was lost on its side", peer=peer.name
            )
            self._tell_unknown(connection, peer, lost)
            self._detach(connection, error if left else lost, polite=left)
        self._tell_end(connection)
        connection.link.read_max = _UNBOUNDED
        if connection.held is None and connection.state is State.DRAINING:
            self.transport.read_on(connection)
        self._look_whether_drained(connection)

    def _look_whether_drained(self, connection: Connection) -> None:
        """When this turn is done: more that it has brought may be among the turn's events."""
        self.transport.cancel(connection.timer)
        connection.timer = None
        self.transport.post(lambda: self._drain_on(connection))

    def _drain_on(self, connection: Connection) -> None:
        """End it when nothing is left to be read."""
        if connection.state is not State.DRAINING or connection.held is not None:
            return
        self.transport.cancel(connection.timer)
        connection.timer = None
        if self.unread(connection):
            connection.timer = self.transport.after(_LOOK, lambda: self._drain_on(connection))
        else:
            self._end(connection, None)

    def unread(self, connection: Connection) -> int:
        """How much has come and is not served yet, 0: nothing. Bytes in the system, and in the
        core, which reads more at once than a connection may bring in a turn; 1 for what this turn
        has read."""
        unread = self.transport.world.unread(connection.socket)
        if connection.link is not None:
            unread += int(connection.link.held_bytes)
        return unread or int(self.transport.is_coming(connection.tag))

    # The end --------------------------------------------------------------------------------------

    def _farewell(self, connection: Connection) -> None:
        """Closing: when all is handed over, say DISCONNECT and shut."""
        peer = connection.peer
        if isinstance(peer, Remote) and (peer.outbox is not None or peer.afar):
            self.transport.pump(peer)
            if peer.outbox is not None or peer.afar:
                return
        if connection.state is State.OPEN:
            self._say_farewell(connection)

    def _say_farewell(self, connection: Connection) -> None:
        """DISCONNECT, or REJECT, and no more."""
        reason = connection.rejection
        kind, payload = (
            (values.DISCONNECT, b"") if reason is None else (values.REJECT, bytes((reason,)))
        )
        if connection.link.send_frame(kind, payload, values.NO_DELAY) >= 0:
            connection.advance(Step.LEAVE)
            connection.left = self.transport.world.clock()
            connection.link.shut()
            self.transport.schedule()
            self.transport.cancel(connection.timer)
            connection.timer = self.transport.after(
                _LOOK, lambda: self._look_whether_left(connection)
            )

    def _look_whether_left(self, connection: Connection) -> None:
        """We leave, or want to. The other side closes when it has read that; if it does not, we do
        when its system has all that we sent, and we have read what came: to close before would
        reset the connection over what can still be read."""
        if connection.state is State.OPEN:
            self._farewell(connection)
        if connection.state not in (State.OPEN, State.CLOSING):
            return
        now, world = self.transport.world.clock(), self.transport.world
        waited = 0.0 if connection.left is None else now - connection.left
        if now >= connection.deadline:
            self._left_in_vain(connection)
        elif (
            connection.state is State.OPEN
            or waited < _LOOK
            or connection.link.slots_pending
            or world.unacknowledged(connection.socket)
            or self.unread(connection)
        ):
            pause = min(max(_LOOK, waited / 8), _LOOK_SELDOM, connection.deadline - now)
            self.transport.cancel(connection.timer)
            connection.timer = self.transport.after(
                pause, lambda: self._look_whether_left(connection)
            )
        else:
            self._end(connection, None)

    def _part(self, aside: Connection) -> None:
        """Leave a connection that stands aside; without a word if there is no room for it."""
        aside.deadline = self.transport.world.clock() + self.transport.config.drain_timeout
        self._say_farewell(aside)
        if aside.state is State.ASIDE:
            self._end(aside, None)

    def reject(self, peer: Remote, reason: errors.RejectReason) -> None:
        """Send a peer away: REJECT, then the end. What waits for it here fails."""
        connection = peer.connection
        if (
            connection is None
            or connection.state is not State.OPEN
            or connection.rejection is not None
        ):
            return
        connection.rejection = reason
        if peer.state is PeerState.CONNECTED:
            peer.advance(PeerEvent.LEFT)
            self.connections.connected -= 1
        peer.quick = None
        gone = errors.ConnectionClosed(
            f"peer {peer.name!r} was rejected here ({reason.name})", peer=peer.name
        )
        self.transport.fail_queued(peer, gone)
        peer.on_lost(gone)
        self.leave(peer)

    def _rejected(self, connection: Connection, payload: bytes) -> None:
        """The other side does not want us. The original never says so, and ignores it, as we do
        from a peer of its kind; but a connection of ours that is answered by a REJECT before any
        CAPABILITY has nobody behind it."""
        peer = connection.peer
        if connection.state not in (State.GREETING, State.GREETED) and (
            connection.state is not State.OPEN or peer is None or peer.classic
        ):
            return
        reason = policy.reject_reason(payload)
        name = peer.name if peer is not None else None
        who = f"peer {name!r}" if name else f"{connection.address[0]}:{connection.address[1]}"
        refused = errors.ConnectionRefused(
            f"{who} rejected the connection ({reason.name})", reason=reason, peer=name
        )
        if isinstance(peer, Remote):
            peer.refusal = refused
        self._end(connection, refused, polite=True)

    def leave(self, peer: Remote, seconds: float | None = None) -> None:
        """Disconnect politely: what was accepted is sent first, for at most so many seconds
        (Config.drain_timeout where none are given). What is left then is told as UNKNOWN."""
        self.expect_no_more(peer.key)
        if isinstance(peer.key, tuple):
            self.classics.parted(peer.key)
        for aside in self._asides_of(peer):
            self._part(aside)
        connection = peer.connection
        if connection is None:
            return  # but it is decided: no lost one comes back
        if peer.state is PeerState.CONNECTED:
            peer.advance(PeerEvent.LEFT)
            self.connections.connected -= 1
        peer.quick = None
        wait = self.transport.config.drain_timeout if seconds is None else seconds
        connection.deadline = self.transport.world.clock() + wait
        self._wholly(connection, self._look_whether_left, connection)

    def _left_in_vain(self, connection: Connection) -> None:
        peer = connection.peer
        assert isinstance(peer, Remote)
        text = f"peer {peer.name!r} did not take in time what it was sent before we left"
        connection.left = connection.left or self.transport.world.clock()
        connection.advance(Step.DRAIN)
        self._drain(connection, errors.ConnectionClosed(text, peer=peer.name))

    def _other_half_ended(self, connection: Connection) -> None:
        """The other side will send no more. What is queued in slots may still arrive: shut, drain,
        then the end."""
        where = f"{connection.address[0]}:{connection.address[1]}"
        peer = connection.peer
        if connection.state is State.GREETING:
            text = f"{where} closed the connection before it said who it is"
            self._end(connection, errors.ConnectionClosed(text))
            return
        if connection.state in (State.GREETED, State.DRAINING, State.ASIDE):
            self._end(connection, None)  # nothing of ours is on its way there
            return
        connection.failure = self.transport.closed_error(peer)
        connection.link.shut()
        self.transport.schedule()
        late = connection.failure
        if connection.state is State.OPEN:
            connection.advance(Step.LEAVE)
            self.transport.cancel(connection.timer)
            connection.timer = self.transport.after(
                self.transport.config.drain_timeout, lambda: self._end(connection, late)
            )
            self._detach(connection, connection.failure, polite=False)

    def _ended(self, connection: Connection, code: int, system_error: int) -> None:
        where = f"{connection.address[0]}:{connection.address[1]}"
        peer = connection.peer
        name = peer.name if peer is not None else None
        who = f"peer {name!r}" if name else where
        if code == 0:
            self._end(connection, connection.failure)
        elif code in _FRAME_FAULTS:
            text = f"{self.transport.core.strerror(code)} in a frame from {who}; the link is closed"
            self._end(connection, errors.from_decoder(code, text, name), fault=True)
        elif (
            code == errors.Timeout.code
            and connection.link.slots_pending
            and self.transport.world.sends_time_out(self.transport.config)
        ):
            text = (
                f"{who} did not take what was sent within the platform's time; the link is closed"
            )
            self._end(connection, errors.Timeout(text, peer=name))
        elif code == errors.Timeout.code:
            self._end(
                connection,
                errors.Timeout(
                    f"a frame from {who} was not whole within "
                    f"{connection.link.frame_timeout:g} s; the link is closed",
                    peer=name,
                ),
                fault=True,
            )
        # truncated: it ended inside a frame, as a killed program does
        elif code in (errors.ConnectionClosed.code, errors.Truncated.code):
            leaving = connection.state in (State.CLOSING, State.RETIRING)
            self._end(
                connection,
                connection.failure
                if leaving
                else self.transport.closed_error(peer, where, system_error),
            )
        else:
            detail = f" (system error {system_error})" if system_error else ""
            self._end(
                connection,
                errors.from_code(
                    code,
                    f"the link to {who} failed: {self.transport.core.strerror(code)}{detail}",
                    name,
                ),
            )

    def _end(
        self,
        connection: Connection,
        error: errors.PeerTalkError | None,
        *,
        polite: bool = False,
        fault: bool = False,
    ) -> None:
        """The connection is over, now."""
        if connection.state is State.CLOSED:
            return
        peer = connection.peer
        attached = isinstance(peer, Remote) and peer.connection is connection
        ending = _Ending(connection, error, polite, fault, attached, connection.state)
        self._ending[connection] = ending
        connection.advance(Step.END)
        self._end_on(ending)

    def _end_on(self, ending: _Ending) -> None:
        """One step after the other, whatever one of them raises. An exception that no program may
        overlook leaves the rest to tidy_up()."""
        connection = ending.connection
        try:
            while ending.done < len(_LAST_STEPS):
                try:
                    _LAST_STEPS[ending.done](self, connection, ending)
                except Exception as error:
                    self.transport.note(error)
                    if not ending.again:
                        ending.again = True
                        continue
                ending.again = False
                ending.done += 1
        except BaseException:
            self.transport.post(self.tidy_up)
            raise
        self.transport.call([self._ended_all], connection)
        self.transport.call_all()

    def _end_telling(self, connection: Connection, ending: _Ending) -> None:
        self.transport.cancel(connection.timer)
        self.transport.unwatch(self._opening.get(connection.tag))
        self._opening.pop(connection.tag, None)
        peer = connection.peer
        if isinstance(peer, Remote):
            error = ending.error or self.transport.closed_error(peer)
            self._tell_unknown(connection, peer, error)

    def _end_link(self, connection: Connection, _: _Ending) -> None:
        if connection.link is not None:
            self.transport.totals.add(connection.link.statistics())
            connection.link.close()

    def _end_socket(self, connection: Connection, _: _Ending) -> None:
        if connection.socket is not None:
            self.transport.close_socket(connection.socket)

    def _end_records(self, connection: Connection, _: _Ending) -> None:
        self.connections.remove(connection)
        if self.transport.troubles.lasting:  # here are a place and a descriptor for the next caller
            self.transport.troubles.worked(_ACCEPTING)
            if self.connections.connected < self.transport.config.max_peers:
                self.transport.troubles.worked(_TAKING_PEERS)
        self.classics.taken(connection.tag)
        self.pulse.ended(connection)
        self.watchdog.ended(connection)
        if connection.reassembly is not None:
            connection.reassembly.close()

    def _end_report(self, connection: Connection, ending: _Ending) -> None:
        error, peer = ending.error, connection.peer
        if ending.fault:
            # an event and a counter tell of it; a line for each would let strangers fill the log
            self.transport.log.info("%s", error)
            self.transport.emit(events.LinkFault, connection.address, peer, error)
        elif (
            ending.attached
            and error is not None
            and not ending.polite
            and not self.transport.closing
        ):
            # of a peer that we talked with: what was on its way to it may be lost
            self.transport.log.warning("%s", error)

    def _end_use(self, connection: Connection, ending: _Ending) -> None:
        peer, error = connection.peer, ending.error
        if not isinstance(peer, Remote):
            return
        if ending.attached:
            self._detach(connection, error, polite=ending.polite)
        elif ending.was is not State.OPEN and peer.state is PeerState.DISCONNECTING:
            if peer.connection is None:
                self._disconnected(peer, error)

    def _end_place(self, connection: Connection, _: _Ending) -> None:
        if isinstance(connection.peer, Remote):
            self._leave_line(connection, connection.peer)

    def _end_waiting(self, connection: Connection, ending: _Ending) -> None:
        error, peer = ending.error, connection.peer
        if ending.was is State.GREETED and error is None:
            assert isinstance(peer, Remote)
            text = f"peer {peer.name!r} did not use the connection; it may be gone, or has another"
            error = _NotUsed(text, peer=peer.name)
            error.known = peer
        where = f"{connection.address[0]}:{connection.address[1]}"
        self._tell(connection, error or self.transport.closed_error(peer, where))
        self._tell_end(connection)

    def _ended_all(self, connection: Connection) -> None:
        """Those who waited for it have heard: others may go on, or it is dialled again."""
        self._ending.pop(connection, None)
        peer = connection.peer
        self._settled(connection.tag)
        if isinstance(peer, Remote) and peer.connection is None:
            if peer.queued or peer.reaching:
                self._dial_when_due(peer)
            self.transport.tidy(peer)
        if self.classics.settled(connection.tag):
            self._dial_classics()
        if self.transport.closing:
            self.transport.finish_close()

    # What was cut off -----------------------------------------------------------------------------

    def mend(
        self, connection: Connection, kind: int, a: int, b: Any, error: BaseException | None
    ) -> None:
        """Serving an event of a connection was cut off. Of messages that it brought it is known
        whether they are delivered, and a PING or its answer may be served again. Of anything else
        nobody knows how much was done: the connection ends."""
        peer, transport = connection.peer, self.transport
        transport.inbox.mend()
        brought = kind == values.BATCH and not self._is_kept(connection, b)
        talk = kind == values.FRAME and a & 0xFF in (values.PING, values.PONG, values.ACK)
        waited_for = connection.reached or (isinstance(peer, Remote) and peer.reaching)
        served = self._is_used(connection) and not waited_for and (kind == values.BATCH or talk)
        if brought or talk:
            try:
                self.arrived(connection, kind, a, b)
            except Exception:
                served = False
        if served:
            return
        if kind == values.SENT and isinstance(peer, Remote):
            transport.tell_sent_again(peer, connection)
        self.end(connection, _told_as(error))
        if isinstance(peer, Remote) and peer.connection is None:
            peer.reported = peer.accepted - peer.queued

    def _is_kept(self, connection: Connection, payloads: list[bytes]) -> bool:
        """Whether these were put into the inbox, or are held back."""
        transport, peer = self.transport, connection.peer
        if isinstance(peer, Remote) and transport.inbox.has(peer, payloads):
            transport.kept = payloads  # somebody may take them before this is mended
        return transport.kept is payloads or any(
            each[3] is payloads for each in connection.held or ()
        )

    @staticmethod
    def _is_used(connection: Connection) -> bool:
        """Whether its peer is connected by it."""
        peer = connection.peer
        return (
            connection.state is State.OPEN
            and isinstance(peer, Remote)
            and peer.connection is connection
            and peer.state in (PeerState.CONNECTED, PeerState.DISCONNECTING)
        )

    def tidy_up(self) -> None:
        """After something was cut off: what is half made is taken out again, what is half ended
        ends, and what waits for a time has one."""
        for connection in list(self.connections.by_tag.values()):
            if connection.state is not State.CLOSED:
                self._tidy_up(connection)
        for ending in list(self._ending.values()):
            self._end_on(ending)
        self.connections.connected = sum(
            peer.state is PeerState.CONNECTED for peer in self.transport.peers.values()
        )

    def _tidy_up(self, connection: Connection) -> None:
        state, peer = connection.state, connection.peer
        timed = connection.timer is not None and self.transport.is_armed(connection.timer)
        if state is State.CONNECTING:
            whole = timed and connection.tag in self._opening
        elif state is State.OPEN:
            whole = self._is_used(connection)
        else:
            whole = timed or state not in (State.GREETING, State.RETIRING, State.CLOSING)
        if not whole or (connection.link is None and state is not State.CONNECTING):
            self._end(connection, connection.failure or _told_as(None))
        elif state is State.DRAINING and connection.held is None:
            self._look_whether_drained(connection)
        elif state is State.OPEN and not timed and math.isfinite(connection.deadline):
            self._look_whether_left(connection)
        elif isinstance(peer, Remote) and peer.pinging and connection.pinged is None:
            self.pulse.probe(connection)
        elif state is State.OPEN and connection.link.paused and connection.held is None:
            assert isinstance(peer, Remote)
            if connection not in self.transport.inbox.outlet_of(peer).paused:
                self.transport.read_on(connection)

    def _tell_end(self, connection: Connection) -> None:
        self.transport.call(connection.on_end)
        connection.on_end = ()
        self.transport.call_all()

    def _leave_line(self, connection: Connection, peer: Remote) -> None:
        """A closed connection makes room for those that wait for it; what is held back of it is
        delivered when its turn comes, though it is gone."""
        if peer.line is not None and connection.place:
            held = bool(connection.held)
            self._apply(peer.line.ended(connection, held=held))
        elif peer.line is not None:
            self._apply(peer.line.ended(connection))
        elif connection.held is not None:
            held_back, connection.held = connection.held, None
            self._keep_held(connection, held_back)

    def _tell_unknown(
        self, connection: Connection, peer: Remote, error: errors.PeerTalkError
    ) -> None:
        """Nothing more is sent on a connection: what it was given and has not reported may have
        arrived, or not."""
        if peer.connection is connection:
            connection.handed.seal(peer.accepted)
        self.transport.revoke(connection)
        for first, last in connection.handed.rest():
            self.transport.fail(peer, first, last, events.Outcome.UNKNOWN, error)

    def _keep_held(self, connection: Connection, held: deque[Any]) -> None:
        """What had arrived before the end was received: it is delivered though its connection is
        gone."""
        peer = connection.peer
        for kind, _, a, b in held:
            if kind == values.BATCH:
                size, messages = a, b
            elif kind == values.FRAME and a & 0xFF == values.DATA:
                messages = self._messages(connection, a >> 8 & 0xFF, b)
                size = sum(map(len, messages))
            else:
                continue
            if messages and isinstance(peer, Remote):
                self.transport.deliver(peer, connection, size, messages)

    def _detach(
        self, connection: Connection, error: errors.PeerTalkError | None, *, polite: bool
    ) -> None:
        """The peer has lost its connection."""
        peer = connection.peer
        assert isinstance(peer, Remote)
        connection.handed.seal(peer.accepted)
        peer.connection = None
        peer.quick = None
        if peer.connected:
            for aside in self._asides_of(peer):
                self._take_over(aside, peer, error)
                return
        if isinstance(peer.key, tuple) and (polite or not peer.connected):
            self.classics.parted(peer.key)
        leaving = peer.state is PeerState.DISCONNECTING
        lost = (
            error
            if isinstance(error, errors.ConnectionClosed | errors.ConnectionRefused)
            else self.transport.closed_error(peer)
        )
        if lost is not error:
            lost.__cause__ = error
        again = error is not None and not polite and not leaving and not self.transport.closing
        delay = 0.0
        if again:
            if self.transport.world.clock() - connection.since >= policy.YOUNG:
                peer.attempts = 0
            delay = self._set_back(peer)
            if not isinstance(error, errors.RemoteError):
                self._expect(peer, at_once=connection.dialled)
        else:
            peer.attempts = 0
            self.expect_no_more(peer.key)
        self._disconnected(peer, error)
        if peer.queued and again and peer.attempts <= len(policy.RETRY_DELAYS):
            self.transport.cancel(peer.retry)
            peer.retry = self.transport.after(delay, lambda: self._retry(peer))
        else:
            self.transport.fail_queued(peer, lost)
            if self.transport.closing:
                peer.tell_reaching(lost)
        peer.tell_pinging(None, lost)
        peer.on_lost(lost)
        for aside in self._asides_of(peer):
            self._come_back(aside, peer)
            return

    def _disconnected(self, peer: Remote, error: errors.PeerTalkError | None) -> None:
        if peer.state is PeerState.CONNECTED:
            step = PeerEvent.LOST
        elif peer.state is PeerState.DISCONNECTING:
            step = PeerEvent.CLOSED
        else:
            return
        self.transport.emit(events.PeerDisconnected, peer, error)
        if step is PeerEvent.LOST:
            self.connections.connected -= 1
            self.transport.troubles.worked(_TAKING_PEERS)
        peer.advance(step)
        if self.transport.finder is not None:
            self.transport.finder.release(peer.key)
        self.transport.find_successor(peer)

    def end(self, connection: Connection, error: errors.PeerTalkError) -> None:
        """The link is dead. If its peer was heard since that began, the network is back already and
        the next announcement may be far."""
        peer, finder = connection.peer, self.transport.finder
        heard = (
            peer is not None
            and finder is not None
            and finder.heard_within(peer.key, self.transport.config.link_timeout)
        )
        self._give_up(connection, error)
        if heard and isinstance(peer, Remote) and finder is not None:
            for address in finder.discovery.addresses(peer.key)[:1]:
                self.heard(peer, address)

    def _give_up(self, connection: Connection, error: errors.PeerTalkError) -> None:
        """Use a dead link no more. What has arrived is read first, because the other side's system
        was told that it has, and so its sender that it was sent."""
        if connection.state is State.DRAINING:
            return
        used = connection.state in (State.OPEN, State.CLOSING, State.RETIRING)
        if used and self.unread(connection):
            self.transport.log.warning("%s", error)
            connection.advance(Step.DRAIN)
            self._drain(connection, error)
        else:
            self._end(connection, error)

    # Connections that come back -------------------------------------------------------------------

    def _expect(self, peer: Remote, *, at_once: bool) -> None:
        """A connection that nobody wanted to end is lost: it comes back when its peer is heard,
        though the peer be forgotten meanwhile."""
        self._lost.pop(peer.key, None)
        self._lost[peer.key] = peer, at_once
        if len(self._lost) > self.transport.config.max_peers:
            self.expect_no_more(next(iter(self._lost)))

    def expect_no_more(self, key: Key) -> None:
        """It is back, or is not wanted any more."""
        self._lost.pop(key, None)
        self.transport.cancel(self._recalls.pop(key, None))

    def heard(self, peer: Remote, address: Address) -> None:
        """A peer that is not connected announces itself. One to which a connection was lost is
        dialled: by who dialled that one at once, by the other a second later, so that they do not
        cross."""
        if peer.state is PeerState.FAILED:
            peer.advance(PeerEvent.HEARD)
            self.transport.changed()  # whoever waits for it may have it again
        lost = self._lost.get(peer.key)
        if lost is None or self.transport.closing or peer.classic:
            return
        _, at_once = lost
        now = self.transport.world.clock()
        under_way = self.connections.dialling(peer)
        if under_way is not None:
            # its first packet may have been lost while nothing passed: the next would come late
            if now - under_way.since > _STALE_DIAL:
                self._recall(peer, address)
            return
        delay = max(0.0 if at_once else _RECALL_DELAY, peer.not_before - now)
        if delay <= 0:
            self._recall(peer, address)
        elif peer.key not in self._recalls:
            self._recalls[peer.key] = self.transport.after(
                delay, lambda: self._recall_late(peer, address)
            )

    def _recall_late(self, peer: Remote, address: Address) -> None:
        self._recalls.pop(peer.key, None)
        if peer.key in self._lost and not self.transport.closing:
            self._recall(peer, address)

    def _recall(self, peer: Remote, address: Address) -> None:
        """Dial it anew, where it was heard."""
        if peer.connection is not None:
            return
        reached: tuple[Reached, ...] = ()
        under_way = self.connections.dialling(peer)
        if under_way is not None:
            reached, under_way.reached = under_way.reached, ()
            self._end(under_way, self.transport.closed_error(peer))
            begun = self.connections.dialling(peer)
            if begun is not None:
                begun.reached += reached
                return
        self.transport.cancel(peer.retry)
        peer.retry = None
        if peer.state in (PeerState.DISCOVERED, PeerState.FAILED):
            peer.advance(PeerEvent.DIALLED)
        for waiting in reached or (self._dial_ended(peer),):
            self.dial(address, waiting, peer)

    def unhouse(self, connection: Connection, error: errors.PeerTalkError) -> None:
        """The link lives on an address that we no longer have. The other side cannot know yet, so
        whoever dialled it, we dial."""
        peer = connection.peer
        self._give_up(connection, error)
        if isinstance(peer, Remote) and peer.key in self._lost:
            self._lost[peer.key] = peer, True
            self.heard(peer, peer.address)

    def network_changed(self) -> None:
        """This machine has other interfaces or addresses. Without discovery nobody is heard: dial
        those who wait for that."""
        if self.transport.finder is None:
            for peer, at_once in list(self._lost.values()):
                if at_once:
                    self.heard(peer, peer.address)

    # Classic peers --------------------------------------------------------------------------------

    def heard_classic(self, peer: Remote) -> None:
        """A classic peer has announced itself: unless it is connected it expects to be dialled by
        who hears it, or dials as soon as it hears us."""
        finder, key = self.transport.finder, peer.key
        if finder is None or peer.connection is not None or not isinstance(key, tuple):
            return
        if self.classics.is_wanted(key) and not self.transport.closing:
            now = self.transport.world.clock()
            self.classics.heard(key, finder.discovery.answer(now))
            self._dial_classics()

    def name_caller(self, key: Address) -> Remote | None:
        """A classic peer has announced itself as key: the peer that has called from its host and
        said no name, if it is that; it has this key from now on."""
        peer = classics.caller(key, self._classics_at(key[0]))
        if peer is None:
            return None
        transport = self.transport
        former = transport.recall(key)
        if former is not None:
            transport.succeed(former, peer)
        if transport.finder is not None:
            transport.finder.release(peer.key)
            transport.finder.discovery.hold(key)
        self.classics.connected(key)
        transport.renew(peer, key, None)
        peer.address = key
        return peer

    def _classics_at(self, host: str) -> list[tuple[Remote, list[Connection]]]:
        """The classic peers of a host, each with its connections that are used or stand aside. Not
        those that are being left: for an original they are over."""
        had: dict[Remote, list[Connection]] = {
            peer: []
            for peer in self.transport.peers.values()
            if peer.classic and peer.address[0] == host
        }
        for connection in self.connections.by_tag.values():
            peer = connection.peer
            if isinstance(peer, Remote) and peer in had:
                used = connection is peer.connection and connection.state is State.OPEN
                if used or connection.state is State.ASIDE:
                    had[peer].append(connection)
        return list(had.items())

    def _dial_classics(self) -> None:
        """Dial those whose time has come, and be back when the next one's has."""
        if self.transport.closing:
            return
        now = self.transport.world.clock()
        while (key := self.classics.next(now)) is not None:
            peer = self.transport.peers.get(key)
            if (
                peer is None
                or peer.connection is not None
                or self.connections.dialling(peer) is not None
            ):
                continue
            if self._somebody_greets(key[0]):
                self.classics.heard(key, now)  # that may be it
                continue
            connection = self.dial(peer.address, self._dial_ended(peer), peer)
            if connection is not None:
                self.classics.dialled(connection.tag)
        self.transport.cancel(self._classic_timer)
        self._classic_timer = None
        due = self.classics.next_timeout()
        if due is not None:
            self._classic_timer = self.transport.after(max(0.0, due - now), self._dial_classics)

    def _somebody_greets(self, host: str) -> bool:
        return any(
            not connection.dialled
            and connection.state is State.GREETING
            and connection.address[0] == host
            for connection in self.connections.by_tag.values()
        )

    def _dial_ended(self, peer: Remote) -> Reached:
        """Those who came to wait for this dial hear of its failure."""

        def reached(found: Remote | None, error: errors.PeerTalkError | None) -> None:
            if error is not None:
                self._gave_up(peer, error)

        return reached

    # Two connections with a classic peer ----------------------------------------------------------

    def _asides_of(self, peer: Peer | None) -> list[Connection]:
        if not self.classics.asides:
            return []
        return [
            connection
            for connection in self.connections.by_tag.values()
            if connection.state is State.ASIDE and connection.peer is peer
        ]

    def _stand_aside(
        self, connection: Connection, peer: Remote, capabilities: Capabilities | None
    ) -> None:
        """A second connection with a classic peer: it is read, and the one that is there used, or
        left."""
        connection.advance(Step.STEP_ASIDE)
        connection.link.read_max = _UNBOUNDED
        self.classics.stood_aside(connection.tag, capabilities, self.transport.world.clock())
        self._tell(connection, None, peer)
        peer.tell_reaching(None)
        self._look_aside()

    def _look_aside(self) -> None:
        """See what is to be done with those that stand aside, as long as there are some."""
        self.transport.cancel(self._aside_timer)
        self._aside_timer = None
        if self.transport.closing:
            return
        for aside in list(self.connections.by_tag.values()):
            if aside.state is State.ASIDE:
                self._judge_aside(aside)
        if self.classics.asides:
            self._aside_timer = self.transport.after(classics.LOOK_INTERVAL, self._look_aside)

    def _judge_aside(self, aside: Connection, *, answered: bool = False) -> None:
        """answered: a PONG has come just now; then no other PING is sent for it."""
        peer, now = aside.peer, self.transport.world.clock()
        assert isinstance(peer, Remote)
        used = peer.connection
        if used is None or not peer.connected:
            return
        if aside.link.paused:
            self.classics.brought(aside.tag, now)
        idle = peer.outbox is None and used.pieces is None and not used.link.pending
        turn = self.classics.turn(used, aside, peer.accepted, now, idle=idle)
        if turn is classics.Turn.ASK and not answered and self.pulse.probe(used):
            self.classics.asked(aside.tag, peer.accepted)
        elif turn is classics.Turn.EXCHANGE:
            used.handed.seal(peer.accepted)
            used.advance(Step.STEP_ASIDE)
            self.classics.stood_aside(used.tag, peer.capabilities, now)
            self._use_aside(aside, peer)
        elif turn is classics.Turn.SHUT:
            self.classics.taken(aside.tag)
            aside.advance(Step.RETIRE)
            aside.link.shut()
            self.transport.schedule()
            aside.timer = self.transport.after(
                self.transport.config.drain_timeout, lambda: self._end(aside, None)
            )

    def _use_aside(self, aside: Connection, peer: Remote) -> None:
        """Send on this one from now on."""
        peer.capabilities = self.classics.taken(aside.tag)
        limit = _CLASSIC_LIMIT if peer.capabilities is None else peer.capabilities.max_message
        aside.advance(Step.USE)
        aside.link.max_message = min(self.transport.max_message, limit)
        peer.connection = aside
        peer.quick = None
        self.transport.datagrams.place(peer)
        peer.on_pressure()

    def _come_back(self, aside: Connection, peer: Remote) -> None:
        """A classic peer that we were leaving has called meanwhile."""
        if self.transport.peers.get(peer.key) is not peer:
            self.transport.know(peer)
        peer.capabilities = self.classics.taken(aside.tag)
        aside.advance(Step.USE)
        self._open(aside, peer)

    def _take_over(
        self, aside: Connection, peer: Remote, error: errors.PeerTalkError | None
    ) -> None:
        """The connection that was used has ended, and the peer has another."""
        lost = error or self.transport.closed_error(peer)
        self._use_aside(aside, peer)
        peer.tell_pinging(None, lost)
        peer.on_lost(lost)


class _NotUsed(errors.ConnectionClosed):
    """The other side knows us and has closed the connection: it has another, or will have. known:
    who it is."""

    known: Remote


def _is_final(error: errors.PeerTalkError | None) -> bool:
    """No other address of the peer would give another answer."""
    return _is_rejection(error) or isinstance(error, _NotUsed)


def _is_rejection(error: errors.PeerTalkError | None) -> bool:
    """It was the other side's will: dialling again at once would only ask again."""
    return isinstance(error, errors.ConnectionRefused) and error.reason is not None


def _told_as(error: BaseException | None) -> errors.PeerTalkError:
    """What those hear whose connection ends because of an exception; None: one that is not known
    any more."""
    what = "an exception" if error is None else repr(error)
    text = f"{what} cut off what was done for a connection; it is closed"
    return errors.from_exception(error or KeyboardInterrupt(), text)


class _Ending:
    """The end of a connection. error, polite, fault: as in Switchboard._end(); attached: messages
    were sent on it; was: its state before; done: how many of _LAST_STEPS are; again: the next one
    has failed once."""

    __slots__ = ("again", "attached", "connection", "done", "error", "fault", "polite", "was")

    def __init__(
        self,
        connection: Connection,
        error: errors.PeerTalkError | None,
        polite: bool,
        fault: bool,
        attached: bool,
        was: State,
    ) -> None:
        self.connection = connection
        self.error = error
        self.polite = polite
        self.fault = fault
        self.attached = attached
        self.was = was
        self.done = 0
        self.again = False


_LAST_STEPS: tuple[Callable[[Switchboard, Connection, _Ending], None], ...] = (
    Switchboard._end_telling,
    Switchboard._end_link,
    Switchboard._end_socket,
    Switchboard._end_records,
    Switchboard._end_report,
    Switchboard._end_use,
    Switchboard._end_place,
    Switchboard._end_waiting,
)
"""Each may be done twice, when it was cut off."""
