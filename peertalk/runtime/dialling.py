"""Opens connections to peers that somebody wants, and to those with whom one was lost.

Whom to dial, and when again, is decided in protocol/reaching; here it is done.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

from .. import errors
from .._core import values
from ..protocol import endings, events, greetings, reaching
from ..protocol.addresses import Address
from ..protocol.connections import Connection, State, Step
from ..protocol.peer import Key, PeerEvent, PeerState
from ..protocol.reaching import Returns
from .classic import ClassicPeers
from .engine import Timer
from .leaving import Below
from .remote import Reached, Remote


class Dialling(ClassicPeers):
    """Connections that we open."""

    def __init__(self, below: Below) -> None:
        super().__init__(below)
        self._returns: Returns[Remote] = Returns(self.engine.config.max_peers)
        self._recalls: dict[Key, Timer] = {}

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
        if not reaching.may_dial(
            connected=peer.connection is not None,
            waiting=peer.retry is not None,
            closing=self.engine.closing,
            dialling=self.connections.dialling(peer) is not None,
            greeted=peer.greeted,
        ):
            return
        now = self.engine.world.clock()
        delay = peer.not_before - now
        if isinstance(peer.key, tuple):
            delay = max(delay, self.classics.head_start(peer.key, now))
        if delay > 0:
            peer.retry = self.engine.after(delay, lambda: self._retry(peer))
        else:
            self._dial_peer(peer)

    def dial(
        self, address: Address, reached: Reached | None = None, peer: Remote | None = None
    ) -> Connection | None:
        """Open a connection to an address, or wait for the one that is being opened. Returns that
        connection; None: there is none, because one is open already, or there was no room, or the
        dial has ended at once. reached is called once: with the peer that was found there, or with
        an error."""

        def here(found: Remote | None, error: errors.PeerTalkError | None) -> None:
            assert reached is not None
            if peer is None and isinstance(error, endings.NotUsed):
                self.reach(error.known, reached)
            else:
                reached(found, error)

        told = () if reached is None else (here,)
        there = [each for each in self.roster.at(address) if each.connected or each.greeted]
        if there and peer is None and reached is not None:
            self.reach(there[0], reached)
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
                f"the limit of {self.engine.config.max_peers} peers (Config.max_peers) is reached"
            )
            self.engine.call(told, None, full)
            self.engine.call_all()
            return None
        now = self.engine.world.clock()
        connection = Connection(self.engine.tag(), address, dialled=True, now=now, peer=peer)
        connection.number = self.connections.next_number()
        connection.reached = told
        self._wholly(connection, self._begin, connection)
        return connection if connection.state is State.CONNECTING else None

    def _begin(self, connection: Connection) -> None:
        """Call at its address, for so long."""
        config, address = self.engine.config, connection.address
        late = endings.no_answer(connection, config.connect_timeout)
        connection.advance(Step.DIAL)
        self.connections.add(connection)
        connection.socket = self._call_locally(connection)
        connection.local = connection.socket is not None
        if not connection.local:
            connection.socket = self.engine.world.dial(address, config.bind)
        self._opening[connection.tag] = self.engine.watch(
            connection.socket,
            values.WRITE,
            partial(self._wholly, connection, self._connected, connection),
        )
        self._wait(connection, config.connect_timeout, partial(self._end, error=late))

    def _call_locally(self, connection: Connection) -> Any:
        """A connection to its peer's socket on this host; None: there is none that leads there."""
        peer, finder, host = connection.peer, self.finder, connection.host
        if peer is None or peer.instance is None or peer.by_tcp or not self.engine.local:
            return None
        if finder is None or not finder.discovery.has_local(peer.key, host):
            return None
        return self.engine.world.dial_local(peer.instance, self.engine.config.bind or host)

    def _call_again(self, connection: Connection) -> None:
        peer = connection.peer
        if isinstance(peer, Remote) and not self.engine.closing:
            peer.by_tcp = True
            again = self.dial(connection.address, None, peer)
            if again is not None:
                again.reached += connection.reached
                connection.reached = ()

    def _has_room(self, host: str) -> bool:
        """Whether one more connection may exist. Where no place is left a stranger makes room for
        somebody from another host, or the connection that is least wanted."""
        if len(self.connections) >= self.connections.max_connections:
            stranger = greetings.stranger_for(host, self.connections.undecided)
            self._make_way(stranger or self._least_wanted())
        return self.connections.has_room()

    def _dial_peer(self, peer: Remote) -> None:
        """One attempt: its addresses, one after the other; of a classic peer that announces itself
        not while the one caller of its host that says no name can be nobody else."""
        key, discovery = peer.key, self.finder.discovery if self.finder is not None else None
        if isinstance(key, tuple) and discovery is not None and key in discovery:
            caller = self.name_caller(key)
            if caller is not None:
                caller.name, caller.flags = peer.name, peer.flags
                self.roster.check_name(caller)
                self.engine.emit(events.PeerChanged, caller)
                return
        if peer.state in (PeerState.DISCOVERED, PeerState.FAILED):
            peer.advance(PeerEvent.DIALLED)
        addresses = discovery.addresses(peer.key) if discovery is not None else []
        untried = deque(addresses or [peer.address])

        self._attempt(peer, untried, None)

    def _attempt(
        self, peer: Remote, untried: deque[Address], error: errors.PeerTalkError | None
    ) -> None:
        """The next address, if the one before was in vain."""
        if peer.connection is not None:
            return
        if untried and not self.engine.closing and not endings.is_final(error):

            def reached(found: Remote | None, error: errors.PeerTalkError | None) -> None:
                if found is None or error is not None:
                    self._attempt(peer, untried, error)

            self.dial(untried.popleft(), reached, peer)
        else:
            self._gave_up(peer, error or endings.closed(peer))

    def _gave_up(self, peer: Remote, error: errors.PeerTalkError) -> None:
        """One attempt at a peer has failed: try again while messages wait, or a connection that was
        greeted was not used, and tries are left."""
        error.peer = error.peer or peer.name
        if peer.connection is not None:
            return
        delay = self._set_back(peer, peer.attempts + 1)
        following = reaching.after_failure(
            reaching.Failure(
                peer.attempts,
                queued=bool(peer.queued),
                reaching=bool(peer.reaching),
                unused=isinstance(error, endings.NotUsed),
                rejected=endings.was_rejected(error),
                closing=self.engine.closing,
            )
        )
        if following.again:
            self._retry_after(peer, delay)
        else:
            peer.attempts = 0
            self.traffic.fail_queued(peer, error)
        if not following.tell:
            return
        if peer.state is PeerState.CONNECTING:
            peer.advance(PeerEvent.REFUSED)
        if endings.was_rejected(error):
            self.expect_no_more(peer.key)
        peer.tell_reaching(error)
        peer.on_lost(error)
        self.roster.tidy(peer)

    def _set_back(self, peer: Remote, attempts: int) -> float:
        """So many attempts have failed, one after the other: nobody dials before the time that this
        sets. Returns the seconds until then."""
        delay = reaching.set_back(attempts)
        peer.attempts = attempts
        peer.not_before = self.engine.world.clock() + delay
        return delay

    def _retry_after(self, peer: Remote, delay: float) -> None:
        self.engine.cancel(peer.retry)
        peer.retry = self.engine.after(delay, lambda: self._retry(peer))

    def _retry(self, peer: Remote) -> None:
        peer.retry = None
        if peer.queued or peer.reaching:
            self._dial_when_due(peer)

    def _connected(self, connection: Connection) -> None:
        if connection.state is not State.CONNECTING:
            return
        error = self.engine.world.outcome(connection.socket, connection.address)
        if error is not None:
            self._end(connection, error)
            return
        self.engine.unwatch(self._opening[connection.tag])
        del self._opening[connection.tag]
        self._establish(connection)

    def _dial_ended(self, peer: Remote) -> Reached:
        """Those who came to wait for this dial hear of its failure."""

        def reached(found: Remote | None, error: errors.PeerTalkError | None) -> None:
            if error is not None:
                self._gave_up(peer, error)

        return reached

    # Lost, and back -------------------------------------------------------------------------------

    def _detach(
        self, connection: Connection, error: errors.PeerTalkError | None, *, polite: bool
    ) -> None:
        """The peer has lost its connection."""
        peer = connection.peer
        assert isinstance(peer, Remote)
        peer.use(None)
        if peer.connected:
            for aside in self._asides_of(peer):
                self._take_over(aside, peer, error)
                return
        if isinstance(peer.key, tuple) and (polite or not peer.connected):
            self.classics.parted(peer.key)
        lost = endings.lost(peer, error)
        following = reaching.after_loss(
            reaching.Loss(
                broken=error is not None,
                polite=polite,
                leaving=peer.state is PeerState.DISCONNECTING,
                closing=self.engine.closing,
                theirs=isinstance(error, errors.RemoteError),
                age=self.engine.world.clock() - connection.since,
                dialled=connection.dialled,
                attempts=peer.attempts,
            )
        )
        delay = 0.0
        if following.attempts:
            delay = self._set_back(peer, following.attempts)
        else:
            peer.attempts = 0
            self.expect_no_more(peer.key)
        if following.comes_back is not None:
            self._expect(peer, at_once=following.comes_back)
        self._disconnected(peer, error)
        if peer.queued and following.resend:
            self._retry_after(peer, delay)
        else:
            self.traffic.fail_queued(peer, lost)
            if self.engine.closing:
                peer.tell_reaching(lost)
        peer.tell_pinging(None, lost)
        peer.on_lost(lost)
        for aside in self._asides_of(peer):
            self._come_back(aside, peer)
            return

    def end(
        self, connection: Connection, error: errors.PeerTalkError, *, alive: bool = False
    ) -> None:
        """The link is dead, or of no use. If its peer was heard since that began, the network is
        back already and the next announcement may be far."""
        peer, finder = connection.peer, self.finder
        heard = (
            peer is not None
            and finder is not None
            and finder.heard_within(peer.key, self.engine.config.link_timeout)
        )
        self._give_up(connection, error, alive=alive)
        if heard and isinstance(peer, Remote) and finder is not None:
            for address in finder.discovery.addresses(peer.key)[:1]:
                self.heard(peer, address)

    def _give_up(
        self, connection: Connection, error: errors.PeerTalkError, *, alive: bool = False
    ) -> None:
        """Use a dead link no more. alive: the other side hears of that, ends its half behind what
        it has sent, and all of that is read."""
        unread = partial(self.engine.unread, connection)
        what = endings.dead(connection.state, unread, alive=alive)
        if what is endings.DeadEnd.DRAIN:
            self.engine.log.warning("%s", error)
            if alive:
                patience = self.engine.config.drain_timeout
                connection.deadline = self.engine.world.clock() + patience
                connection.link.shut()
                self.engine.schedule()
            connection.advance(Step.DRAIN)
            self._drain(connection, error)
        elif what is endings.DeadEnd.END:
            self._end(connection, error)

    def unhouse(self, connection: Connection, error: errors.PeerTalkError) -> None:
        """The link lives on an address that we no longer have. The other side cannot know yet, so
        whoever dialled it, we dial."""
        peer = connection.peer
        self._give_up(connection, error)
        if isinstance(peer, Remote) and peer.key in self._returns:
            self._expect(peer, at_once=True)
            self.heard(peer, peer.address)

    def network_changed(self) -> None:
        """This machine has other interfaces or addresses. Without discovery nobody is heard: dial
        those who wait for that."""
        if self.finder is not None:
            self.finder.look_again()
        else:
            for peer in self._returns.ours():
                self.heard(peer, peer.address)

    def _expect(self, peer: Remote, *, at_once: bool) -> None:
        """A connection that nobody wanted to end is lost: it comes back when its peer is heard,
        though the peer be forgotten meanwhile."""
        given_up = self._returns.expect(peer.key, peer, at_once=at_once)
        if given_up is not None:
            self.expect_no_more(given_up)

    def expect_no_more(self, key: Key) -> None:
        """It is back, or is not wanted any more."""
        self._returns.no_more(key)
        self.engine.cancel(self._recalls.pop(key, None))

    def heard(self, peer: Remote, address: Address) -> None:
        """A peer that is not connected announces itself. One to which a connection was lost is
        dialled."""
        if peer.state is PeerState.FAILED:
            peer.advance(PeerEvent.HEARD)
            self.engine.changed()  # whoever waits for it may have it again
        if self.engine.closing or peer.classic or peer.key not in self._returns:
            return
        now = self.engine.world.clock()
        since = self.connections.dialling_since(peer, now)
        delay = self._returns.heard(peer.key, now, peer.not_before, since)
        if delay is None:
            return
        if not delay:
            self._recall(peer, address)
        elif peer.key not in self._recalls:
            self._recalls[peer.key] = self.engine.after(
                delay, lambda: self._recall_late(peer, address)
            )

    def _recall_late(self, peer: Remote, address: Address) -> None:
        self._recalls.pop(peer.key, None)
        if peer.key in self._returns and not self.engine.closing:
            self._recall(peer, address)

    def _recall(self, peer: Remote, address: Address) -> None:
        """Dial it anew, where it was heard."""
        if peer.connection is not None:
            return
        reached: tuple[Reached, ...] = ()
        under_way = self.connections.dialling(peer)
        if under_way is not None:
            reached, under_way.reached = under_way.reached, ()
            self._end(under_way, endings.closed(peer))
            begun = self.connections.dialling(peer)
            if begun is not None:
                begun.reached += reached
                return
        self.engine.cancel(peer.retry)
        peer.retry = None
        if peer.state in (PeerState.DISCOVERED, PeerState.FAILED):
            peer.advance(PeerEvent.DIALLED)
        for waiting in reached or (self._dial_ended(peer),):
            self.dial(address, waiting, peer)
