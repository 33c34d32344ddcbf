"""Classic peers: dialled when they are heard, and two connections with one of them.

Whom to dial and when, and which of two connections is used, is decided in protocol/classics; here
it is done.
"""

from __future__ import annotations

from abc import abstractmethod

from .. import errors
from ..protocol import classics, endings, limits
from ..protocol.addresses import Address
from ..protocol.connections import Connection, State, Step
from ..protocol.peer import Peer
from ..protocol.wire import Capabilities
from .engine import Timer
from .greeting import Greetings
from .leaving import UNBOUNDED, Below
from .remote import Reached, Remote


class ClassicPeers(Greetings):
    """Connections with classic peers."""

    def __init__(self, below: Below) -> None:
        super().__init__(below)
        self._classic_timer: Timer | None = None
        self._classic_due = 0.0
        """When that timer ends, on the clock of the world."""
        self._aside_timer: Timer | None = None

    # What lies above ------------------------------------------------------------------------------

    @abstractmethod
    def dial(
        self, address: Address, reached: Reached | None = None, peer: Remote | None = None
    ) -> Connection | None:
        """Open a connection to an address."""

    @abstractmethod
    def _dial_ended(self, peer: Remote) -> Reached:
        """Those who came to wait for this dial hear of its failure."""

    # Whom to dial ---------------------------------------------------------------------------------

    def heard_classic(self, peer: Remote) -> None:
        """A classic peer has announced itself: unless it is connected it expects to be dialled by
        who hears it, or dials as soon as it hears us."""
        finder, key = self.finder, peer.key
        if finder is None or peer.connection is not None or not isinstance(key, tuple):
            return
        if self.classics.is_wanted(key) and not self.engine.closing:
            now = self.engine.world.clock()
            due = self.classics.heard(key, finder.discovery.answer(now))
            # a look at all who wait would make a packet cost as much as there are peers
            if due is not None and (self._classic_timer is None or due < self._classic_due):
                self._dial_classics_at(due, now)

    def name_caller(self, key: Address) -> Remote | None:
        """A classic peer has announced itself as key: the peer that has called from its host and
        said no name, if it is that; it has this key from now on."""
        calls = (each for each in self.connections.by_tag.values() if not each.dialled)
        if all(each.host != key[0] for each in calls):
            return None
        peer = classics.caller(key, self._classics_at(key[0]))
        if peer is None:
            return None
        former = self.roster.recall(key)
        if former is not None:
            self.roster.succeed(former, peer)
        if self.finder is not None:
            self.finder.release(peer.key)
            self.finder.discovery.hold(key)
        self.classics.connected(key)
        self.roster.renew(peer, key)
        peer.address = key
        return peer

    def _classics_at(self, host: str) -> list[tuple[Remote, list[Connection]]]:
        """The classic peers of a host, each with its connections that are used or stand aside. Not
        those that are being left: for an original they are over."""
        had: dict[Remote, list[Connection]] = {
            peer: []
            for peer in self.roster.peers.values()
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
        if self.engine.closing:
            return
        now = self.engine.world.clock()
        while (key := self.classics.next(now)) is not None:
            peer = self.roster.peers.get(key)
            if (
                peer is None
                or peer.connection is not None
                or self.connections.dialling(peer) is not None
            ):
                continue
            if self._somebody_greets(key[0]):
                self.classics.heard(key, now)  # the caller may be this peer
                continue
            connection = self.dial(peer.address, self._dial_ended(peer), peer)
            if connection is not None:
                self.classics.dialled(connection.tag)
        self._dial_classics_at(self.classics.next_timeout(), now)

    def _dial_classics_at(self, due: float | None, now: float) -> None:
        self.engine.cancel(self._classic_timer)
        self._classic_timer = None
        if due is not None:
            self._classic_due = due
            self._classic_timer = self.engine.after(max(0.0, due - now), self._dial_classics)

    def _somebody_greets(self, host: str) -> bool:
        return any(
            not connection.dialled
            and connection.state is State.GREETING
            and connection.host == host
            for connection in self.connections.by_tag.values()
        )

    # Two connections with one ---------------------------------------------------------------------

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
        connection.link.read_max = UNBOUNDED
        self.classics.stood_aside(connection.tag, capabilities, self.engine.world.clock())
        self._tell(connection, None, peer)
        peer.tell_reaching(None)
        self._look_aside()

    def _look_aside(self) -> None:
        """See what is to be done with those that stand aside, as long as there are some."""
        self.engine.cancel(self._aside_timer)
        self._aside_timer = None
        if self.engine.closing:
            return
        for aside in list(self.connections.by_tag.values()):
            if aside.state is State.ASIDE:
                self._judge_aside(aside)
        if self.classics.asides:
            self._aside_timer = self.engine.after(classics.LOOK_INTERVAL, self._look_aside)

    def _judge_aside(self, aside: Connection, *, answered: bool = False) -> None:
        """answered: a PONG has come just now; then no other PING is sent for it."""
        peer, now = aside.peer, self.engine.world.clock()
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
            used.advance(Step.STEP_ASIDE)
            self.classics.stood_aside(used.tag, peer.capabilities, now)
            self._use_aside(aside, peer)
        elif turn is classics.Turn.SHUT:
            self.classics.taken(aside.tag)
            aside.advance(Step.RETIRE)
            aside.link.shut()
            self.engine.schedule()
            aside.timer = self.engine.after(
                self.engine.config.drain_timeout, lambda: self._end(aside, None)
            )

    def _use_aside(self, aside: Connection, peer: Remote) -> None:
        """Send on this one from now on."""
        peer.capabilities = self.classics.taken(aside.tag)
        aside.advance(Step.USE)
        aside.link.max_message = limits.of_link(peer, peer.capabilities)
        peer.use(aside)
        self.mailbox.place(peer, aside)
        peer.on_pressure()

    def _come_back(self, aside: Connection, peer: Remote) -> None:
        """A classic peer that we were leaving has called meanwhile."""
        if self.roster.peers.get(peer.key) is not peer:
            self.roster.know(peer)
        peer.capabilities = self.classics.taken(aside.tag)
        aside.advance(Step.USE)
        self._open(aside, peer)

    def _take_over(
        self, aside: Connection, peer: Remote, error: errors.PeerTalkError | None
    ) -> None:
        """The connection that was used has ended, and the peer has another."""
        lost = error or endings.closed(peer)
        self._use_aside(aside, peer)
        peer.tell_pinging(None, lost)
        peer.on_lost(lost)
