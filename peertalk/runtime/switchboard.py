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
from ..protocol import classics, events
from ..protocol import connections as policy
from ..protocol.classics import Classics
from ..protocol.connections import Connection, Connections, Former, State, Step
from ..protocol.peer import FRAGMENTED_MAX, Peer, PeerEvent, PeerState
from ..protocol.wire import Capabilities, decode_capabilities
from .pulse import Pulse
from .remote import Reached, Remote
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
_NOBODY: frozenset[int] = frozenset()  # one for all connections: an empty set has 216 bytes
_FRAME_FAULTS = {-1, -16, -20, -21, -23}


class Switchboard:
    """All connections of one engine. On the engine's thread only."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.connections = Connections(transport.world.max_connections(transport.config))
        self._listener: socket.socket | None = None
        self._listening: Watched | None = None
        self.classics = Classics(self.connections.max_connections)
        self._classic_timer: Timer | None = None
        self._aside_timer: Timer | None = None
        self.pulse = Pulse(transport)

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
        transport.after(config.link_timeout / 3, self._look_for_silence)
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
        if connection.state is State.ASIDE:
            self.classics.brought(connection.tag, self.transport.world.clock())
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
        elif connection.state is State.ASIDE and capabilities.instance is None:
            self.classics.said(connection.tag, capabilities)

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
        if not self.connections.has_room():
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
        if peer.classic and isinstance(peer.key, tuple):
            wait = self.classics.head_start(peer.key, self.transport.world.clock())
            if wait:
                peer.retry = self.transport.after(wait, lambda: self._retry(peer))
                return
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
            if not self.connections.has_room():
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
        if self.classics.settled(connection.tag):
            self._dial_classics()
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
        existing = peer.connection
        if instance is None and existing is not None:
            self._stand_aside(connection, peer, capabilities)
            self._release_waiters(connection)
            return
        peer.capabilities = capabilities
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

    def _open(self, connection: Connection, peer: Remote, step: Step = Step.GREET) -> None:
        connection.advance(step)
        capabilities = peer.capabilities
        limit = _CLASSIC_LIMIT if capabilities is None else capabilities.max_message
        connection.link.max_message = min(self.transport.max_message, limit)
        peer.connection = connection
        self.transport.datagrams.place(peer)
        peer.attempts = 0
        self.transport.cancel(peer.retry)
        peer.retry = None
        if self.transport.finder is not None:
            self.transport.finder.discovery.hold(peer.key)
        if isinstance(peer.key, tuple):
            self.classics.connected(peer.key)
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
        if connection.state is State.OPEN:
            self._say_farewell(connection)

    def _say_farewell(self, connection: Connection) -> None:
        """DISCONNECT, or REJECT, and no more."""
        reason = connection.rejection
        kind, payload = (
            (values.DISCONNECT, b"") if reason is None else (values.REJECT, bytes((reason,)))
        )
        if connection.link.send_frame(kind, payload, 0) >= 0:
            connection.advance(Step.LEAVE)
            connection.left = self.transport.world.clock()
            connection.link.shut()
            self.transport.schedule()
            if not connection.link.pending:
                self._linger(connection)

    def _part(self, aside: Connection) -> None:
        """Leave a connection that stands aside; without a word if there is no room for it."""
        self._say_farewell(aside)
        if aside.state is State.ASIDE:
            self._end(aside, None)

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
        """Disconnect politely: what was accepted is sent first."""
        if isinstance(peer.key, tuple):
            self.classics.parted(peer.key)
        for aside in self._asides_of(peer):
            self._part(aside)
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
        if connection.state is State.ASIDE:
            self._end(connection, None)  # nothing of ours is on its way there
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
                    f"a frame from {who} was not whole within 5 s; the link is closed", peer=name
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
            self.transport.totals.add(connection.link.statistics())
            connection.link.close()
        if connection.socket is not None:
            self.transport.close_socket(connection.socket)
        self.connections.remove(connection)
        self.classics.taken(connection.tag)
        self.pulse.ended(connection)
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
        if self.classics.settled(connection.tag):
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
        if peer.connected:
            for aside in self._asides_of(peer):
                self._take_over(aside, peer, error)
                return
        if isinstance(peer.key, tuple) and (polite or not peer.connected):
            self.classics.parted(peer.key)
        until = self.transport.world.clock() if connection.left is None else connection.left
        peer.former = Former(connection.dialled, connection.since, until)
        leaving = peer.state is PeerState.DISCONNECTING
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
        for aside in self._asides_of(peer):
            self._come_back(aside, peer)
            return

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

    def _look_for_silence(self) -> None:
        """Half-open links: bytes unacknowledged for link_timeout. Idle ones are found by the
        system's keepalive."""
        self.transport.after(self.transport.config.link_timeout / 3, self._look_for_silence)
        for connection in list(self.connections.by_tag.values()):
            if connection.link is None or connection.state is State.CLOSED:
                continue
            silent = self.transport.world.silent_for(connection.socket)
            if silent > self.transport.config.link_timeout:
                name = (
                    connection.peer.name if connection.peer is not None else connection.address[0]
                )
                text = (
                    f"peer {name!r} has acknowledged nothing for {silent:.0f} s "
                    "(Config.link_timeout); the link is closed"
                )
                self.transport.world.abandon(connection.socket)
                self._end(connection, errors.ConnectionClosed(text, peer=name))

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
        former = transport.peers.get(key)
        if former is not None:
            again = errors.ConnectionClosed(
                f"{former.name!r} was started again: {peer.id} is it now", peer=former.name
            )
            transport.cancel(former.retry)
            former.retry = None
            transport.fail_queued(former, again)
            former.tell_reaching(again)
            transport.forget(former, events.LostReason.CLOSED)
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
            connection = self.dial(peer.address, self._classic_dial_ended(peer), peer)
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

    def _classic_dial_ended(self, peer: Remote) -> Reached:
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
        self.classics.stood_aside(connection.tag, capabilities, self.transport.world.clock())
        reached, connection.reached = connection.reached, None
        _tell(reached, None, peer)
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
            self._use(aside, peer)
        elif turn is classics.Turn.SHUT:
            self.classics.taken(aside.tag)
            aside.advance(Step.RETIRE)
            aside.link.shut()
            self.transport.schedule()
            aside.timer = self.transport.after(
                self.transport.config.drain_timeout, lambda: self._end(aside, None)
            )

    def _use(self, aside: Connection, peer: Remote) -> None:
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
        self._open(aside, peer, Step.USE)

    def _take_over(
        self, aside: Connection, peer: Remote, error: errors.PeerTalkError | None
    ) -> None:
        """The connection that was used has ended, and the peer has another."""
        lost = error or self.transport.closed_error(peer)
        self._use(aside, peer)
        peer.tell_pinging(None, lost)
        peer.on_lost(lost)


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
