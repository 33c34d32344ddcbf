"""Opens, greets, chooses between, retires and closes connections: joins peers to links.

What to do is decided in protocol/connections; here it is done, with sockets, links and timers.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from .. import errors
from .._core import values
from ..protocol import connections as policy
from ..protocol import events
from ..protocol.connections import Connection, Connections, Former, State, Step
from ..protocol.discovery import Heard
from ..protocol.peer import Key, PeerEvent, PeerState
from ..protocol.wire import Capabilities, decode_capabilities
from .pulse import Pulse
from .remote import Reached, Remote
from .watchdog import Watchdog
from .world import Address

if TYPE_CHECKING:
    from .transport import Timer, Transport, Watched

log = logging.getLogger("peertalk.network")

_ACCEPTS_PER_TURN = 64
_ACCEPT_PAUSE = 0.1
_LINGER = 1.0
"""Seconds that a connection is still read after our last byte left, so that closing cannot destroy
it on its way."""
_CLASSIC_LIMIT = 512
"""Bytes that a classic peer takes before it has said more (its CAPABILITY)."""
_RECALL_DELAY = 1.0
"""Seconds that the side which did not dial a lost connection leaves to the other one."""
_STALE_DIAL = 1.0
"""Seconds after which a dial is begun anew when its peer is heard."""
_NOBODY: frozenset[int] = frozenset()  # one for all connections: an empty set has 216 bytes
_FRAME_FAULTS = {-1, -16, -20, -21, -23}


class Switchboard:
    """All connections of one engine. On the engine's thread only."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.connections = Connections(transport.world.max_connections(transport.config))
        self._listener: socket.socket | None = None
        self._listening: Watched | None = None
        self._classic_timer: Timer | None = None
        self._lost: dict[Key, bool] = {}
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
            if connection.state in (State.CONNECTING, State.GREETING):
                self._end(connection, None)
            elif connection.state is State.OPEN:
                self._farewell(connection)

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
        elif kind == values.BATCH:
            self._deliver(connection, a, b)
        elif kind == values.FRAME:
            self._frame(connection, a & 0xFF, a >> 8 & 0xFF, b)
        elif kind == values.FINISHED:
            self._other_half_ended(connection)
        elif kind == values.CLOSED:
            self._ended(connection, a, b)

    def slots_came_free(self, connection: Connection) -> None:
        """A connection on its way out has room again, or nothing more to send."""
        if connection.state is State.OPEN:
            self._farewell(connection)
        elif connection.state is State.CLOSING and not connection.link.pending:
            self._linger(connection)

    def _deliver(self, connection: Connection, payload_bytes: int, payloads: list[bytes]) -> None:
        if connection.state is State.GREETING:
            self._greeted(connection, None)  # DATA before CAPABILITY: a classic peer
        if connection.waits_for is not None:
            now = self.transport.world.clock()
            if before := self.connections.unsettled(connection, now):
                self._hold(connection, before)
                self.transport.after(
                    policy.SILENCE_TIME, lambda: self._waited_enough(connection, before)
                )
            elif (
                connection.held is None
                and now - connection.since > policy.GREETING_TIME + policy.SILENCE_TIME
            ):
                connection.waits_for = None
            if connection.held is not None:
                connection.held.append((values.BATCH, connection.tag, payload_bytes, payloads))
                return
        if isinstance(connection.peer, Remote):
            self.transport.deliver(connection.peer, connection, payload_bytes, payloads)

    def _frame(self, connection: Connection, kind: int, flags: int, payload: bytes) -> None:
        if kind == values.CAPABILITY:
            self._capability(connection, payload)
            return
        if connection.state is State.GREETING and not connection.dialled:
            self._greeted(connection, None)
        if kind == values.PING:
            if connection.alive:
                self.pulse.answer(connection)
        elif kind == values.PONG:
            self.pulse.pong(connection)
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
                    connection.reassembly = self.transport.loop.reassembly(
                        self.transport.max_message
                    )
                message = connection.reassembly.receive(payload)
                return [] if message is None else [message]
            return self.transport.core.split_batch(payload) if flags & values.BATCHED else [payload]
        except (errors.ProtocolError, errors.OutOfMemory) as error:
            self.transport.totals.ignored += 1
            log.info("DATA from %s:%d was ignored: %s", *connection.address, error)
            return []

    def _capability(self, connection: Connection, payload: bytes) -> None:
        try:
            capabilities = decode_capabilities(self.transport.core, payload)
        except errors.ProtocolError:
            # as the original: ignored whole, the connection stays
            self.transport.totals.ignored += 1
            return
        if connection.state is State.GREETING:
            if not self._comes_back(connection, capabilities, payload):
                self._greeted(connection, capabilities)
        elif connection.state is State.OPEN and isinstance(connection.peer, Remote):
            self._told_again(connection, connection.peer, capabilities)

    def _comes_back(
        self, connection: Connection, capabilities: Capabilities, payload: bytes
    ) -> bool:
        """A peer that we are leaving has heard that, and is here anew: it waits until the
        connection that we leave is read to its end."""
        peer = self.transport.peers.get(capabilities.instance)
        left = peer.connection if peer is not None else None
        if left is None or connection.dialled or left.state is not State.CLOSING:
            return False
        self.transport.cancel(connection.timer)  # the one that is left ends within its own time
        connection.timer = None
        connection.peer = peer  # the same one, though it may be forgotten by then
        self._hold(connection, {left.tag})
        assert connection.held is not None
        connection.held.append((values.FRAME, connection.tag, values.CAPABILITY, payload))
        return True

    def _told_again(self, connection: Connection, peer: Remote, capabilities: Capabilities) -> None:
        """A later CAPABILITY replaces the one before, but for who it is, which no connection can
        change: left out, it is as it was."""
        instance, known = capabilities.instance, peer.capabilities
        if instance is not None and instance != peer.instance:
            if peer.instance is not None or not connection.dialled:
                self.transport.totals.ignored += 1
                return
            if not self._greeted_late(connection, peer, instance, capabilities):
                return
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
        peer.on_pressure()

    def _greeted_late(
        self, connection: Connection, peer: Remote, instance: bytes, capabilities: Capabilities
    ) -> bool:
        """Whom we dialled and took for classic, because its CAPABILITY did not come in time, is one
        of ours: its peer becomes that. False: it cannot, and the connection has ended."""
        transport = self.transport
        where = f"{connection.address[0]}:{connection.address[1]}"
        if instance == transport.instance:
            self._end(
                connection, errors.InvalidArgument(f"{where} is this node itself"), polite=True
            )
            return False
        known = transport.peers.get(instance)
        if known is not None:
            replaced = errors.NetworkFailure(
                f"{peer.id} turned out to be the peer {known.name!r}; send to that", peer=known.name
            )
            self._end(connection, replaced, polite=True)
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
        peer.reaching = [*(peer.reaching or ()), reached]
        if (
            peer.connection is None
            and peer.retry is None
            and self.connections.dialling(peer) is None
        ):
            self._dial_peer(peer)

    def dial(
        self, address: Address, reached: Reached | None = None, peer: Remote | None = None
    ) -> Connection | None:
        """Open a connection to an address, or wait for the one that is being opened. reached is
        called once: with the peer that was found there, or with an error."""
        there = next(
            (
                known
                for known in self.transport.peers.values()
                if known.address == address and known.connected
            ),
            None,
        )
        if there is not None and peer is None:
            _tell(reached, None, there)
            return None
        under_way = self.connections.dialling_to(address)
        if under_way is not None and (
            peer is None or under_way.peer is None or under_way.peer is peer
        ):
            under_way.peer = under_way.peer or peer
            under_way.reached = _both(under_way.reached, reached)
            return under_way
        if not self._has_room():
            _tell(
                reached,
                errors.OutOfMemory(
                    f"the limit of {self.transport.config.max_peers} peers (Config.max_peers) "
                    "is reached"
                ),
            )
            return None
        now = self.transport.world.clock()
        try:
            dialling = self.transport.world.dial(address, self.transport.config.bind)
        except errors.PeerTalkError as error:
            _tell(reached, error)
            return None
        connection = Connection(self.transport.tag(), address, dialled=True, now=now, peer=peer)
        connection.socket = dialling
        connection.reached = reached
        connection.advance(Step.DIAL)
        self.connections.add(connection)
        connection.watch = self.transport.watch(
            dialling, values.WRITE, lambda: self._connected(connection)
        )
        late = errors.Timeout(
            f"{address[0]}:{address[1]} did not answer within "
            f"{self.transport.config.connect_timeout:g} s (Config.connect_timeout)"
        )
        connection.timer = self.transport.after(
            self.transport.config.connect_timeout, lambda: self._end(connection, late)
        )
        return connection

    def _dial_peer(self, peer: Remote) -> None:
        """One attempt: its addresses, one after the other."""
        if peer.state in (PeerState.DISCOVERED, PeerState.FAILED):
            peer.advance(PeerEvent.DIALLED)
        addresses = (
            self.transport.finder.discovery.addresses(peer.key)
            if self.transport.finder is not None
            else []
        )
        untried = deque(addresses or [peer.address])

        def attempt(found: Remote | None, error: errors.PeerTalkError | None) -> None:
            if peer.connection is not None or (found is not None and error is None):
                return
            if untried and not self.transport.closing and not _is_rejection(error):
                self.dial(untried.popleft(), attempt, peer)
            else:
                self._gave_up(peer, error or self.transport.closed_error(peer))

        attempt(None, None)

    def _gave_up(self, peer: Remote, error: errors.PeerTalkError) -> None:
        """One attempt at a peer has failed: try again while messages wait and tries are left."""
        error.peer = error.peer or peer.name
        if peer.connection is not None:
            return
        if peer.state is PeerState.CONNECTING:
            peer.advance(PeerEvent.REFUSED)
        if (
            peer.queued
            and peer.attempts < len(policy.RETRY_DELAYS)
            and not self.transport.closing
            and not _is_rejection(error)
        ):
            delay = policy.RETRY_DELAYS[peer.attempts]
            peer.attempts += 1
            peer.retry = self.transport.after(delay, lambda: self._retry(peer))
        else:
            peer.attempts = 0
            self.transport.fail_queued(peer, error)
        if _is_rejection(error):
            self.expect_no_more(peer.key)
        peer.tell_reaching(error)
        peer.on_lost(error)

    def _retry(self, peer: Remote) -> None:
        peer.retry = None
        if peer.connection is None and not self.transport.closing:
            self._dial_peer(peer)

    def _connected(self, connection: Connection) -> None:
        if connection.state is not State.CONNECTING:
            return
        error = self.transport.world.outcome(connection.socket, connection.address)
        if error is not None:
            self._end(connection, error)
            return
        self.transport.unwatch(connection.watch)
        connection.watch = None
        self._establish(connection)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            if self._listener is None:
                return
            try:
                accepted = self.transport.world.accept(self._listener)
            except errors.PlatformError as error:
                log.warning("%s; new connections wait", error)
                self.transport.unwatch(self._listening)
                self.transport.after(_ACCEPT_PAUSE, self._accept_again)
                return
            if accepted is None:
                return
            arrived, address = accepted
            if not self._has_room():
                self.transport.world.turn_away(
                    arrived,
                    self.transport.core.encode_frame(
                        values.REJECT, bytes((errors.RejectReason.FULL,))
                    ),
                )
                continue
            connection = Connection(
                self.transport.tag(), address, dialled=False, now=self.transport.world.clock()
            )
            connection.socket = arrived
            self.connections.add(connection)
            self._establish(connection)

    def _has_room(self) -> bool:
        """Whether one more connection may exist; the least wanted one gives its place."""
        if len(self.connections) >= self.connections.max_connections:
            least = self.watchdog.least_wanted()
            if least is not None:
                name = least.peer.name if least.peer is not None else least.address[0]
                text = (
                    f"peer {name!r} took and said nothing, and its place was wanted "
                    "(Config.max_peers); the link is closed"
                )
                self.transport.world.abandon(least.socket)
                self._end(least, errors.ConnectionClosed(text, peer=name))
        return self.connections.has_room()

    def _accept_again(self) -> None:
        if self._listener is not None:
            self._listening = self.transport.watch(self._listener, values.READ, self._accept)

    def _establish(self, connection: Connection) -> None:
        """Both sides are there: greet with CAPABILITY at once and wait for theirs."""
        connection.advance(Step.ESTABLISH)
        connection.since = self.transport.world.clock()
        self.transport.cancel(connection.timer)
        self.transport.world.tune(connection.socket, self.transport.config.link_timeout)
        try:
            connection.link = self.transport.world.open_link(
                self.transport.loop,
                connection.socket,
                connection.tag,
                self.transport.pipeline_depth,
            )
        except errors.PeerTalkError as error:
            self._end(connection, error)
            return
        self.transport.totals.opened += 1
        self.watchdog.opened(connection)
        connection.waits_for = _NOBODY
        code = connection.link.send_frame(values.CAPABILITY, self.pulse.greeting, values.NO_DELAY)
        self.transport.hint(code)
        if code < 0:
            where = f"{connection.address[0]}:{connection.address[1]}"
            self._end(
                connection,
                errors.from_code(
                    code, f"cannot greet {where}: {self.transport.core.strerror(code)}"
                ),
            )
        if connection.state is State.CLOSED:
            return
        if connection.dialled and connection.peer is not None and not connection.peer.classic:
            # one of ours always says who it is: it is only slow
            wait = self.transport.config.connect_timeout
            mute = errors.Timeout(
                f"peer {connection.peer.name!r} took the connection and said nothing for "
                f"{wait:g} s (Config.connect_timeout)"
            )
            connection.timer = self.transport.after(wait, lambda: self._end(connection, mute))
        elif connection.dialled:
            connection.timer = self.transport.after(
                policy.GREETING_TIME, lambda: self._greeted(connection, None)
            )
        else:
            silent = errors.Timeout(
                f"{connection.address[0]}:{connection.address[1]} sent no whole frame within "
                f"{policy.SILENCE_TIME:g} s"
            )
            connection.timer = self.transport.after(
                policy.SILENCE_TIME, lambda: self._end(connection, silent, fault=True)
            )

    def _greeted(self, connection: Connection, capabilities: Capabilities | None) -> None:
        """We know who it is, or that it will not say."""
        if connection.state is not State.GREETING:
            return
        self.transport.cancel(connection.timer)
        connection.timer = None
        if capabilities is not None or connection.dialled:  # no stranger
            connection.link.frame_timeout = self.transport.config.link_timeout
        self.connections.settled_classic(connection)
        instance = None if capabilities is None else capabilities.instance
        if instance == self.transport.instance:
            self._end(
                connection,
                errors.InvalidArgument(
                    f"{connection.address[0]}:{connection.address[1]} is this node itself"
                ),
            )
            return
        peer = self._identify(connection, capabilities)
        if peer is None:
            return
        connection.peer = peer
        peer.capabilities = capabilities
        existing = peer.connection
        if (
            existing is None
            and instance is not None
            and peer.former is not None
            and self._given_up(connection, peer.former, instance)
        ):
            text = (
                f"a connection with peer {peer.name!r} crossed one that has ended; the other side "
                "has given both up"
            )
            self._end(connection, errors.ConnectionClosed(text, peer=peer.name))
            return
        if existing is None:
            self._open(connection, peer)
        elif instance is not None and self._crossed(existing, connection, instance) is existing:
            self._retire(connection, existing)
            peer.tell_reaching(None)
        elif instance is None and connection.dialled and not existing.dialled:
            # a classic peer has a name for us on the one that it dialled, and none on ours
            self._retire(connection, existing)
            peer.tell_reaching(None)
        else:
            self._retire(existing, connection)
            self._open(connection, peer)
        self._release_waiters(connection)

    def _given_up(self, connection: Connection, former: Former, instance: bytes) -> bool:
        """Whether it was there before a connection that should have stayed had ended here. The
        other side may not know of that end, and has retired this one: what we sent on it would come
        before what we sent on the other."""
        return (
            connection.since <= former.until
            and self._crossed(former, connection, instance) is former
        )

    def _crossed(
        self, existing: Connection | Former, newer: Connection, instance: bytes
    ) -> Connection | Former:
        return policy.stays(
            existing,
            newer,
            self.transport.instance,
            instance,
            self.transport.config.connect_timeout,
        )

    def _identify(self, connection: Connection, capabilities: Capabilities | None) -> Remote | None:
        expected = connection.peer
        assert expected is None or isinstance(expected, Remote)
        if capabilities is not None and capabilities.instance is not None:
            peer = self.transport.peers.get(capabilities.instance)
            if peer is None and expected is not None and expected.instance == capabilities.instance:
                peer = self.transport.know(expected)  # forgotten in the meantime, and back
            if peer is None:
                address = (connection.address[0], capabilities.port or connection.address[1])
                peer = self.transport.make_peer(
                    capabilities.instance, capabilities.instance, capabilities.name or "", address
                )
            elif capabilities.name:
                peer.name = capabilities.name
            if expected is not None and expected is not peer:
                if expected.classic:
                    self._replace(expected, peer)
                else:
                    self._mistaken(connection, expected)
            return peer
        if expected is not None:
            return (
                expected if expected.key in self.transport.peers else self.transport.know(expected)
            )
        if connection.dialled:
            return self.transport.peers.get(connection.address) or self.transport.make_peer(
                connection.address, None, "", connection.address
            )
        host, known = connection.address[0], self.transport.peers.values()
        same_host = [
            peer
            for peer in known
            if peer.classic and peer.connection is None and peer.address[0] == host
        ]
        if len(same_host) == 1:
            return same_host[0]
        return self.transport.make_peer(connection.address, None, "", connection.address)

    def _replace(self, classic: Remote, peer: Remote) -> None:
        """What was taken for a classic peer has turned out to be one of ours."""
        self.transport.forget(classic, events.LostReason.CLOSED)
        replaced = errors.NetworkFailure(
            f"{classic.id} is now the peer {peer.name!r}; send to that", peer=peer.name
        )
        classic.tell_reaching(replaced)
        self.transport.fail_queued(classic, replaced)

    def _mistaken(self, connection: Connection, expected: Remote) -> None:
        """Another node answers where expected was heard."""
        reached, connection.reached = connection.reached, None
        connection.peer = None
        where = f"{connection.address[0]}:{connection.address[1]}"
        _tell(
            reached,
            errors.NetworkFailure(
                f"{where} is no longer {expected.name!r}: another node answers there",
                peer=expected.name,
            ),
        )

    def _open(self, connection: Connection, peer: Remote) -> None:
        connection.advance(Step.GREET)
        capabilities = peer.capabilities
        limit = _CLASSIC_LIMIT if capabilities is None else capabilities.max_message
        connection.link.max_message = min(self.transport.max_message, limit)
        peer.connection = connection
        self.transport.datagrams.place(peer)
        peer.attempts = 0
        self.transport.cancel(peer.retry)
        peer.retry = None
        self.expect_no_more(peer.key)
        if self.transport.finder is not None:
            self.transport.finder.discovery.hold(peer.key)
        if peer.state is not PeerState.CONNECTED:
            peer.advance(PeerEvent.OPENED)
            peer.latency = None
            if not connection.dialled:
                self.transport.emit(events.ConnectionRequested, peer)
            self.transport.emit(events.PeerConnected, peer)
        self.pulse.opened(connection, peer)
        peer.on_pressure()
        reached, connection.reached = connection.reached, None
        if reached is not None:
            reached(peer, None)
        peer.tell_reaching(None)

    # Two between the same nodes -------------------------------------------------------------------

    def _retire(self, leaving: Connection, staying: Connection) -> None:
        """Shut the one for writing, read it to its end, and until then hold back what the other
        brings."""
        peer = leaving.peer
        assert isinstance(peer, Remote)
        if peer.connection is leaving:
            leaving.handed.seal(peer.accepted)
            peer.connection = None
            peer.quick = None
        leaving.advance(Step.RETIRE)
        reached, leaving.reached = leaving.reached, None
        if reached is not None:
            reached(peer, None)
        leaving.link.shut()
        self.transport.schedule()
        gone = errors.ConnectionClosed(
            f"the second connection with {peer.name!r} did not end in time", peer=peer.name
        )
        leaving.timer = self.transport.after(
            self.transport.config.drain_timeout, lambda: self._end(leaving, gone)
        )
        self._hold(staying, {leaving.tag})

    def _hold(self, connection: Connection, before: set[int]) -> None:
        connection.waits_for = frozenset(connection.waits_for or ()) | before
        if connection.held is None:
            connection.held = deque()
            connection.link.pause()
            connection.spoilt = True

    def _release_waiters(self, settled: Connection) -> None:
        """A connection has been greeted or has ended: those that waited only for it go on."""
        for waiting in list(self.connections.by_tag.values()):
            if (
                waiting.held is None
                or waiting.waits_for is None
                or settled.tag not in waiting.waits_for
            ):
                continue
            if settled.state is State.RETIRING and settled.peer is waiting.peer:
                continue
            waiting.waits_for -= {settled.tag}
            if not waiting.waits_for:
                self._unhold(waiting)

    def _waited_enough(self, connection: Connection, before: set[int]) -> None:
        """Connections that have not said who they are by now had no earlier DATA: silent ones must
        not hold up others."""
        if (
            connection.held is None
            or connection.waits_for is None
            or connection.state is State.CLOSED
        ):
            return
        for tag in before:
            other = self.connections.by_tag.get(tag)
            if other is None or other.state is State.GREETING:
                connection.waits_for -= {tag}
        if not connection.waits_for:
            self._unhold(connection)

    def _unhold(self, connection: Connection) -> None:
        """Go on, with what was kept back first."""
        held, connection.held = connection.held, None
        connection.link.resume()
        self.transport.schedule()
        for kind, _, a, b in held or ():
            if connection.tag in self.connections.by_tag:
                self.arrived(connection, kind, a, b)

    # The end --------------------------------------------------------------------------------------

    def _farewell(self, connection: Connection) -> None:
        """Closing: when all is handed over, say DISCONNECT and shut."""
        peer = connection.peer
        if isinstance(peer, Remote) and (peer.outbox is not None or peer.afar):
            self.transport.pump(peer)
            if peer.outbox is not None or peer.afar:
                return
        reason = connection.rejection
        kind, payload = (
            (values.DISCONNECT, b"") if reason is None else (values.REJECT, bytes((reason,)))
        )
        if connection.state is State.OPEN and connection.link.send_frame(kind, payload, 0) >= 0:
            connection.advance(Step.LEAVE)
            connection.left = self.transport.world.clock()
            connection.link.shut()
            self.transport.schedule()
            if not connection.link.pending:
                self._linger(connection)

    def _linger(self, connection: Connection) -> None:
        self.transport.cancel(connection.timer)
        connection.timer = self.transport.after(_LINGER, lambda: self._end(connection, None))

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
        if connection.state is not State.GREETING and (
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

    def leave(self, peer: Remote) -> None:
        """Disconnect politely: what was accepted is sent first. One that is not connected does not
        come back by itself."""
        self.expect_no_more(peer.key)
        connection = peer.connection
        if connection is None:
            return
        if peer.state is PeerState.CONNECTED:
            peer.advance(PeerEvent.LEFT)
        peer.quick = None
        self._farewell(connection)
        late = self.transport.closed_error(peer)
        if connection.state is not State.CLOSED and connection.link.pending:
            connection.timer = self.transport.after(
                self.transport.config.drain_timeout, lambda: self._end(connection, late)
            )

    def _other_half_ended(self, connection: Connection) -> None:
        """The other side will send no more. What is queued in slots may still arrive: shut, drain,
        then the end."""
        if connection.state is State.GREETING:
            where = f"{connection.address[0]}:{connection.address[1]}"
            self._end(
                connection,
                errors.ConnectionClosed(f"{where} closed the connection before it said who it is"),
            )
            return
        peer = connection.peer
        connection.failure = self.transport.closed_error(peer)
        connection.link.shut()
        self.transport.schedule()
        if connection.state is State.OPEN:
            connection.advance(Step.LEAVE)
            self._detach(connection, connection.failure, polite=False)
        late = connection.failure
        self.transport.cancel(connection.timer)
        connection.timer = self.transport.after(
            self.transport.config.drain_timeout, lambda: self._end(connection, late)
        )

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
                connection.failure if leaving else self.transport.closed_error(peer, where),
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
        was = connection.state
        connection.advance(Step.END)
        self.transport.cancel(connection.timer)
        self.transport.unwatch(connection.watch)
        peer = connection.peer
        attached = isinstance(peer, Remote) and peer.connection is connection
        if attached:
            assert isinstance(peer, Remote)
            connection.handed.seal(peer.accepted)
        if connection.link is not None:
            self.transport.revoke(connection)
            self.transport.totals.add(connection.link.statistics())
            connection.link.close()
        if connection.socket is not None:
            self.transport.close_socket(connection.socket)
        self.connections.remove(connection)
        self.pulse.ended(connection)
        self.watchdog.ended(connection)
        if connection.held:
            self._keep_held(connection)
        if connection.reassembly is not None:
            connection.reassembly.close()
        if isinstance(peer, Remote):
            for first, last in connection.handed.rest():
                self.transport.fail(
                    peer,
                    first,
                    last,
                    events.Outcome.UNKNOWN,
                    error or self.transport.closed_error(peer),
                )
        if fault:
            # an event and a counter tell of it; a line for each would let strangers fill the log
            log.info("%s", error)
            self.transport.emit(events.LinkFault, connection.address, peer, error)
        elif attached and error is not None and not polite and not self.transport.closing:
            # of a peer that we talked with: what was on its way to it may be lost
            log.warning("%s", error)
        if attached:
            assert isinstance(peer, Remote)
            self._detach(connection, error, polite=polite)
        elif (
            isinstance(peer, Remote)
            and peer.connection is None
            and was is not State.OPEN
            and peer.state is PeerState.DISCONNECTING
        ):
            self._disconnected(peer, error)
        reached, connection.reached = connection.reached, None
        if reached is not None:
            reached(
                None,
                error
                or self.transport.closed_error(
                    peer, f"{connection.address[0]}:{connection.address[1]}"
                ),
            )
        for call in connection.on_end:
            call()
        self._release_waiters(connection)
        if self.connections.classic_waiting:
            self._dial_classics()
        if self.transport.closing:
            self.transport.finish_close()

    def _keep_held(self, connection: Connection) -> None:
        """What had arrived before the end was received: it is delivered though its connection is
        gone."""
        held, connection.held = connection.held, None
        peer = connection.peer
        for kind, _, a, b in held or ():
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
        until = self.transport.world.clock() if connection.left is None else connection.left
        peer.former = Former(connection.dialled, connection.since, until)
        leaving = peer.state is PeerState.DISCONNECTING
        if not (
            error is None
            or polite
            or leaving
            or self.transport.closing
            or isinstance(error, errors.RemoteError)
        ):
            self._expect(peer.key, at_once=connection.dialled)
        self._disconnected(peer, error)
        lost = (
            error
            if isinstance(error, errors.ConnectionClosed | errors.ConnectionRefused)
            else self.transport.closed_error(peer)
        )
        if lost is not error:
            lost.__cause__ = error
        if (
            peer.queued
            and error is not None
            and not polite
            and not leaving
            and not self.transport.closing
        ):
            peer.attempts = 1
            peer.retry = self.transport.after(policy.RETRY_DELAYS[0], lambda: self._retry(peer))
        else:
            self.transport.fail_queued(peer, lost)
            if self.transport.closing:
                peer.tell_reaching(lost)
            elif peer.reaching:
                self._dial_peer(peer)
        peer.tell_pinging(None, lost)
        peer.on_lost(lost)

    def _disconnected(self, peer: Remote, error: errors.PeerTalkError | None) -> None:
        if peer.state is PeerState.CONNECTED:
            peer.advance(PeerEvent.LOST)
        elif peer.state is PeerState.DISCONNECTING:
            peer.advance(PeerEvent.CLOSED)
        else:
            return
        self.transport.emit(events.PeerDisconnected, peer, error)
        if self.transport.finder is not None:
            self.transport.finder.release(peer.key)
        if (
            self.transport.finder is None or peer.key not in self.transport.finder.discovery
        ) and not peer.queued:
            self.transport.forget(peer, events.LostReason.CLOSED)

    def end(self, connection: Connection, error: errors.PeerTalkError) -> None:
        """The link is dead. If its peer was heard since that began, the network is back already and
        the next announcement may be far."""
        peer, finder = connection.peer, self.transport.finder
        heard = (
            peer is not None
            and finder is not None
            and finder.heard_within(peer.key, self.transport.config.link_timeout)
        )
        self._end(connection, error)
        if heard and peer is not None and finder is not None:
            for address in finder.discovery.addresses(peer.key)[:1]:
                self.heard(Heard(peer.key, address))

    # Connections that come back -------------------------------------------------------------------

    def _expect(self, key: Key, *, at_once: bool) -> None:
        """A connection that nobody wanted to end is lost: it comes back when its peer is heard."""
        self._lost.pop(key, None)
        self._lost[key] = at_once
        if self.transport.finder is not None:
            self.transport.finder.expect(key)
        if len(self._lost) > self.transport.config.max_peers:
            self.expect_no_more(next(iter(self._lost)))

    def expect_no_more(self, key: Key) -> None:
        """It is back, or is not wanted any more."""
        if self._lost.pop(key, None) is not None and self.transport.finder is not None:
            self.transport.finder.dismiss(key)
        self.transport.cancel(self._recalls.pop(key, None))

    def heard(self, event: Heard) -> None:
        """A peer to which we had a connection announces itself: who dialled that one dials at once,
        the other a second later, so that they do not cross."""
        peer, at_once = self.transport.peers.get(event.key), self._lost.get(event.key)
        if peer is None or at_once is None or self.transport.closing:
            return
        under_way = self.connections.dialling(peer)
        if peer.classic:
            if under_way is None:
                self.dial_when_found(peer)
        elif under_way is not None:
            # its first packet may have been lost while nothing passed: the next would come late
            if self.transport.world.clock() - under_way.since > _STALE_DIAL:
                self._recall(peer, event.address)
        elif at_once:
            self._recall(peer, event.address)
        elif event.key not in self._recalls:
            self._recalls[event.key] = self.transport.after(
                _RECALL_DELAY, lambda: self._recall_late(event)
            )

    def _recall_late(self, event: Heard) -> None:
        self._recalls.pop(event.key, None)
        peer = self.transport.peers.get(event.key)
        if peer is not None and event.key in self._lost and not self.transport.closing:
            self._recall(peer, event.address)

    def _recall(self, peer: Remote, address: Address | None = None) -> None:
        """Dial it anew, where it was heard."""
        if peer.connection is not None:
            return
        reached: Reached | None = None
        under_way = self.connections.dialling(peer)
        if under_way is not None:
            reached, under_way.reached = under_way.reached, None
            self._end(under_way, self.transport.closed_error(peer))
        self.transport.cancel(peer.retry)
        peer.retry = None
        if address is None:
            self._dial_peer(peer)
            return
        if peer.state in (PeerState.DISCOVERED, PeerState.FAILED):
            peer.advance(PeerEvent.DIALLED)
        self.dial(address, reached or self._dial_ended(peer), peer)

    def unhouse(self, connection: Connection, error: errors.PeerTalkError) -> None:
        """The link lives on an address that we no longer have. The other side cannot know yet, so
        whoever dialled it, we dial."""
        peer = connection.peer
        self._end(connection, error)
        if isinstance(peer, Remote) and peer.key in self._lost:
            self._lost[peer.key] = True
            self._recall(peer)

    def network_changed(self) -> None:
        """This machine has other interfaces or addresses. Without discovery nobody is heard: dial
        those who wait for that."""
        if self.transport.finder is None:
            for key, at_once in list(self._lost.items()):
                peer = self.transport.peers.get(key)
                if peer is not None and at_once and self.connections.dialling(peer) is None:
                    self._recall(peer)

    # Classic peers that were found ----------------------------------------------------------------

    def dial_when_found(self, peer: Remote) -> None:
        """A classic peer expects to be dialled by who hears it."""
        self.connections.want_classic(peer)
        self._dial_classics()

    def _dial_classics(self) -> None:
        while (
            not self.transport.closing
            and (peer := self.connections.next_classic(self.transport.world.clock())) is not None
        ):
            if (
                not isinstance(peer, Remote)
                or self.transport.peers.get(peer.key) is not peer
                or self.connections.dialling(peer) is not None
            ):
                continue
            connection = self.dial(peer.address, self._dial_ended(peer), peer)
            if connection is not None:
                self.connections.dialled_classic(connection)
        if (
            self.connections.classic_waiting
            and self._classic_timer is None
            and not self.transport.closing
        ):
            self._classic_timer = self.transport.after(
                policy.CLASSIC_DIAL_INTERVAL / 4, self._dial_classics_again
            )

    def _dial_ended(self, peer: Remote) -> Reached:
        """Those who came to wait for this dial hear of its failure."""

        def reached(found: Remote | None, error: errors.PeerTalkError | None) -> None:
            if error is not None:
                self._gave_up(peer, error)

        return reached

    def _dial_classics_again(self) -> None:
        self._classic_timer = None
        self._dial_classics()


def _is_rejection(error: errors.PeerTalkError | None) -> bool:
    """It was the other side's will: dialling again at once would only ask again."""
    return isinstance(error, errors.ConnectionRefused) and error.reason is not None


def _both(first: Reached | None, second: Reached | None) -> Reached | None:
    if first is None or second is None:
        return first or second

    def reached(peer: Remote | None, error: errors.PeerTalkError | None) -> None:
        first(peer, error)
        second(peer, error)

    return reached


def _tell(
    reached: Reached | None, error: errors.PeerTalkError | None, peer: Remote | None = None
) -> None:
    if reached is not None:
        reached(peer, error)
