"""All connections of one engine: joins peers to links, and gives what links bring to those who
care for it.

What is done with a connection is decided in protocol/ (connections, line, greetings, reaching,
endings, classics) by what was observed; who does it stands below: Leaving, Greetings, ClassicPeers
and Dialling, one on the other.
"""

from __future__ import annotations

import math
import struct
from functools import partial
from typing import Any

from .. import errors
from .._core import values
from ..protocol import connections as policy
from ..protocol import endings, limits
from ..protocol.connections import Connection, State
from ..protocol.inbox import holds
from ..protocol.large import Refusal
from ..protocol.line import Turn
from ..protocol.peer import PeerEvent, PeerState
from ..protocol.wire import Capabilities, Greeting
from .dialling import Dialling
from .leaving import Below
from .listening import Listener
from .remote import Remote

_BATCH = values.BATCH
_LANDED = values.DATA | values.LANDED << 8
_ABOUT = struct.Struct(">III")
"""Of an OFFER, GRANT or REFUSE: id, offset, total."""


class Switchboard(Dialling):
    """All connections of one engine. On the engine's thread only."""

    def __init__(self, below: Below) -> None:
        super().__init__(below)
        self._listener, self._local_listener = (
            Listener(
                self.engine,
                self._has_room,
                lambda connection: self._wholly(connection, self._establish, connection),
            )
            for _ in range(2)
        )
        self.traffic.reach = lambda peer: self.reach(peer, lambda *_: None)
        self.traffic.slots_came_free = self.slots_came_free

    # Listening, and leaving altogether ------------------------------------------------------------

    def listen(self) -> int:
        """Accept connections from now on, by TCP and where possible at a socket of this host.
        Returns the TCP port.

        Raises:
            AddressInUse, NoNetwork, PlatformError: naming the option that changes it.
        """
        port, config = self._listener.open(), self.engine.config
        in_a_frame, largest = limits.said_of_us(self.traffic.max_message, self.traffic.max_frame)
        ours = Capabilities(
            in_a_frame,
            min(1024, in_a_frame),
            0,
            0,
            self.engine.instance,
            config.name,
            port,
            self.mailbox.port,
            largest,
        )
        self.pulse.introduce(ours)
        self.engine.local = self._local_listener.open_local()
        self.watchdog.start()
        return port

    def stop_listening(self) -> None:
        """Accept no more."""
        self._listener.close()
        self._local_listener.close()

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
        """End every connection, those too whose end was cut off."""
        self.stop_listening()
        for ending in list(self._ending.values()):
            self._end_on(ending)
        for connection in list(self.connections.by_tag.values()):
            self._end(
                connection,
                errors.ConnectionClosed("the node was closed before the message was sent"),
            )

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
        gone = errors.ConnectionClosed(
            f"peer {peer.name!r} was rejected here ({reason.name})", peer=peer.name
        )
        self.traffic.fail_queued(peer, gone)
        peer.on_lost(gone)
        self.leave(peer)

    def _rejected(self, connection: Connection, payload: bytes) -> None:
        """The other side does not want us."""
        peer = connection.peer
        if not endings.is_rejection(connection.state, None if peer is None else peer.classic):
            return
        reason = policy.reject_reason(payload)
        text = f"{connection.who} rejected the connection ({reason.name})"
        refused = errors.ConnectionRefused(text, reason=reason, peer=connection.name)
        self._end(connection, refused, polite=True)

    # What links report ----------------------------------------------------------------------------

    def arrived(self, connection: Connection, kind: int, a: int, b: Any) -> None:
        """An event of the loop about a connection's link, in order. What came in is kept back while
        another connection is to be read first."""
        peer = connection.peer
        if (
            kind == _BATCH
            and connection.state is State.OPEN
            and connection.held is None
            and isinstance(peer, Remote)
            and not self.watchdog.frozen
        ):
            line = peer.line
            if line is None or (line.delivered == connection.place and len(line.members) < 2):
                self.traffic.deliver(peer, connection, a, b)  # it is the only one, read in order
                if self.connections.direct is not None:
                    self._let_be_taken(connection, peer)
                return
        if kind == values.SENT:
            if connection.state is not State.DRAINING:  # else its outcome has been told
                self.traffic.sent(connection, a, b)
            return
        if kind == values.STILL:
            self._end_who_stands_still(connection, a / 1000)
            return
        if self.watchdog.frozen and kind in (values.BATCH, values.FRAME):
            self.watchdog.heard(connection)
        if connection.held is not None:
            connection.held.append((kind, connection.tag, a, b))
            return
        if kind == values.BATCH:
            self._deliver(connection, a, b)
        elif kind == values.FRAME:
            if _landed(kind, a):
                self.traffic.landings.landed(connection, a >> 24)
            self._frame(connection, a & 0xFF, a >> 8 & 0xFF, b)
        elif kind == values.FINISHED:
            self._other_half_ended(connection)
        elif kind == values.CLOSED:
            self._ended(connection, a, b)
        if connection.state is State.DRAINING:
            self._look_whether_drained(connection)

    def _let_be_taken(self, connection: Connection, peer: Remote) -> None:
        """What comes next of a connection that was just read may be taken without a turn, unless
        somebody is to be told of more than that."""
        engine = self.engine
        if not (connection.pressure or engine.closing or engine.publish):
            self.connections.let_be_taken(connection, peer.view)

    def slots_came_free(self, connection: Connection) -> None:
        """A connection on its way out has room again, or nothing more to send. One that its peer
        does not use yet, because there was no room to say so, is none of these."""
        peer = connection.peer
        used = isinstance(peer, Remote) and peer.connection is connection
        if connection.state is State.OPEN and (used or self.engine.closing):
            self._farewell(connection)

    def _deliver(self, connection: Connection, payload_bytes: int, payloads: list[bytes]) -> None:
        if connection.state is State.GREETING:
            self._greeted(connection, None, Greeting())  # DATA before CAPABILITY: a classic peer
            if connection.tag not in self.connections.by_tag:
                return  # it was sent away
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
            self.classics.brought(connection.tag, self.engine.world.clock())
        self.traffic.deliver(peer, connection, payload_bytes, payloads)

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
        elif kind in (values.OFFER, values.GRANT, values.REFUSE):
            self._about_large(connection, kind, flags, payload)
        elif kind != values.ACK:
            self.engine.totals.ignored += 1

    def _about_large(self, connection: Connection, kind: int, reason: int, payload: bytes) -> None:
        """What the other side says of a large message. Of a connection that is over for one side
        nothing comes of it."""
        if connection.state in (State.DRAINING, State.RETIRING, State.CLOSING, State.CLOSED):
            return
        peer, traffic = connection.peer, self.traffic
        id, _, total = _ABOUT.unpack(payload)
        if connection.state is not State.OPEN or not isinstance(peer, Remote) or not peer.largest:
            right = False
        elif kind == values.OFFER:
            right = traffic.landings.offered(connection, id, total)
        elif kind == values.GRANT:
            right = traffic.departures.granted(connection, id)
        elif reason == Refusal.WITHDRAWN:
            right = traffic.landings.withdrawn(connection, id)
        else:
            right = traffic.departures.turned_down(connection, id, reason)
        if not right:
            self.engine.totals.bad_words += 1
            self._end(connection, endings.not_agreed(connection, id, total), fault=True)
        elif kind == values.REFUSE or (
            kind == values.GRANT and traffic.departures.may_go(connection, id)
        ):
            traffic.go_on(connection)

    def _end_who_stands_still(self, connection: Connection, seconds: float) -> None:
        """Memory is scarce, and this link has stood still for the longest: its buffers serve
        others."""
        error = endings.stood_still(connection, seconds, self.engine.config.link_timeout)
        if error is not None:
            self.engine.totals.ended_still += 1
            self.engine.log.warning("%s", error)
            self._end(connection, error)

    # What was cut off -----------------------------------------------------------------------------

    def mend(
        self, connection: Connection, kind: int, a: int, b: Any, error: BaseException | None
    ) -> None:
        """Serving an event of a connection was cut off. Of messages that it brought it is known
        whether they are delivered, and a PING or its answer may be served again. Of anything else
        nobody knows how much was done: the connection ends."""
        peer = connection.peer
        self.traffic.inbox.mend()
        batch = kind == values.BATCH or _landed(kind, a)
        waited_for = connection.reached or (isinstance(peer, Remote) and peer.reaching)
        following = endings.after_cut(
            endings.Cut(
                batch,
                kept=batch and self._is_kept(connection, b),
                talk=kind == values.FRAME and a & 0xFF in (values.PING, values.PONG, values.ACK),
                used=self._is_used(connection),
                waited_for=bool(waited_for),
            )
        )
        ends = following.ends
        if following.again:
            try:
                self.arrived(connection, kind, a, b)
            except Exception:
                ends = True
        if not ends:
            return
        if kind == values.SENT and isinstance(peer, Remote):
            self.traffic.tell_sent_again(peer, connection)
        self.end(connection, endings.cut_off(error), alive=True)
        if isinstance(peer, Remote) and peer.connection is None:
            peer.reported = peer.accepted - peer.queued

    def _is_kept(self, connection: Connection, brought: list[bytes] | bytes) -> bool:
        """Whether these, or this large one, were put into the inbox, or are held back."""
        peer, traffic = connection.peer, self.traffic
        if isinstance(peer, Remote) and (payloads := traffic.inbox.find(peer, brought)) is not None:
            traffic.kept = payloads  # somebody may take them before this is mended
        return holds(traffic.kept, brought) or any(
            each[3] is brought for each in connection.held or ()
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
        self.traffic.landings.mend()
        for connection in list(self.connections.by_tag.values()):
            if connection.state is not State.CLOSED:
                self._tidy_up(connection)
        for ending in list(self._ending.values()):
            self._end_on(ending)
        self.connections.connected = sum(
            peer.state is PeerState.CONNECTED for peer in self.roster.peers.values()
        )

    def _tidy_up(self, connection: Connection) -> None:
        peer = connection.peer
        asking = isinstance(peer, Remote) and bool(peer.pinging) and connection.pinged is None
        what = endings.mending(
            endings.Found(
                connection.state,
                timed=connection.timer is not None and self.engine.is_armed(connection.timer),
                watched=connection.tag in self._opening,
                linked=connection.link is not None,
                used=self._is_used(connection),
                held=connection.held is not None,
                leaving=math.isfinite(connection.deadline),
                asking=asking,
                stuck=partial(self._is_stuck, connection),
            )
        )
        if what is endings.Mending.END:
            self._end(connection, connection.failure or endings.cut_off(None))
        elif what is endings.Mending.DRAIN:
            self._look_whether_drained(connection)
        elif what is endings.Mending.LEAVE:
            self._look_whether_left(connection)
        elif what is endings.Mending.PING:
            self.pulse.probe(connection)
        elif what is endings.Mending.READ:
            self.traffic.read_on(connection)

    def _is_stuck(self, connection: Connection) -> bool:
        """Whether a connection is paused, and no inbox knows."""
        peer = connection.peer
        assert isinstance(peer, Remote)
        paused = self.traffic.inbox.outlet_of(peer).paused
        return connection.link.paused and connection not in paused


def _landed(kind: int, a: int) -> bool:
    """Whether an event of a link brings a large message."""
    return kind == values.FRAME and a & 0xFFFF == _LANDED
