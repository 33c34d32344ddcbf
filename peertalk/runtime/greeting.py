"""How the two sides of a connection come to know each other, and which of several is used.

Who is there, and what becomes of the connection, is decided in protocol/greetings and, for all
connections with one peer, in protocol/line; here it is done.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from functools import partial
from typing import Any

from .. import errors
from .._core import values
from ..protocol import classics, endings, events, greetings, limits
from ..protocol import connections as policy
from ..protocol.claims import Claims
from ..protocol.connections import Connection, State, Step
from ..protocol.line import Decision, Line, Verdict
from ..protocol.peer import PeerEvent, PeerState
from ..protocol.wire import (
    Capabilities,
    Greeting,
    decode_capabilities,
    decode_greeting,
    encode_greeting,
)
from .leaving import UNBOUNDED, Below, Leaving
from .listening import TAKING_PEERS
from .remote import Remote

_FIRST_READ = 512
"""Bytes that one read of a connection brings until it is greeted: enough for a CAPABILITY, and
little to put into a full inbox before the connection can be held back."""
_NO_ROOM = {errors.WouldBlock.code, errors.OutOfMemory.code}


class Greetings(Leaving):
    """Connections until they are used."""

    def __init__(self, below: Below) -> None:
        super().__init__(below)
        self._waiting: list[Connection] = []
        """Connections whose messages wait until others have said whose they are, or are shut."""

    # What lies above ------------------------------------------------------------------------------

    @abstractmethod
    def arrived(self, connection: Connection, kind: int, a: int, b: Any) -> None:
        """Something came in on a connection."""

    @abstractmethod
    def _classics_at(self, host: str) -> list[tuple[Remote, list[Connection]]]:
        """The classic peers of a host, each with its connections."""

    @abstractmethod
    def _stand_aside(
        self, connection: Connection, peer: Remote, capabilities: Capabilities | None
    ) -> None:
        """A second connection with a classic peer."""

    # Established ----------------------------------------------------------------------------------

    def _establish(self, connection: Connection) -> None:
        """Both sides are there: greet with CAPABILITY at once and wait for theirs."""
        connection.advance(Step.ESTABLISH)
        connection.since = self.engine.world.clock()
        self.engine.cancel(connection.timer)
        self.engine.world.tune(connection.socket, self.engine.config.link_timeout)
        connection.link = self.engine.world.open_link(
            self.engine.workers.least_loaded() or self.engine.loop,
            connection.socket,
            connection.tag,
            self.engine.pipeline_depth,
            wide=self.traffic.wide,
        )
        connection.link.read_max = _FIRST_READ
        self.engine.totals.opened += 1
        self.watchdog.opened(connection)
        peer = connection.peer
        if peer is None and connection.dialled:
            known = self.roster.at(connection.address)
            peer = next((each for each in known if not each.classic), None)
        assert peer is None or isinstance(peer, Remote)
        if not self._greet(connection, peer):
            return
        self.engine.workers.begin(connection.link)
        ours = peer is not None and not peer.classic
        wait, then = greetings.patience(
            dialled=connection.dialled,
            ours=ours,
            connect_timeout=self.engine.config.connect_timeout,
        )
        if then is greetings.Silence.CLASSIC:
            self._wait(connection, wait, self._take_for_classic)
        elif then is greetings.Silence.END and peer is not None:
            text = f"peer {peer.name!r} took the connection and said nothing for {wait:g} s"
            late = errors.Timeout(f"{text} (Config.connect_timeout)")
            self._give_time(connection, wait, late)
        else:
            silent = f"{connection.where} sent no whole frame within {wait:g} s"
            self._give_time(connection, wait, errors.Timeout(silent), fault=True)

    def _take_for_classic(self, connection: Connection) -> None:
        """It has said nothing so far. It may be slow: until Config.connect_timeout is over nothing
        is refused that only one of ours takes."""
        wait = self.engine.config.connect_timeout - policy.GREETING_TIME
        connection.slow = wait > 0
        self._greeted(connection, None, Greeting())
        if connection.slow:
            self.engine.after(wait, lambda: self._no_longer_slow(connection))

    def _no_longer_slow(self, connection: Connection) -> None:
        """It has said what it takes, or its time is over."""
        peer = connection.peer
        if connection.slow:
            connection.slow = False
            if isinstance(peer, Remote) and peer.connection is connection:
                self.traffic.pump(peer)

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
        self._wait(connection, seconds, partial(self._time_is_over, late=late, fault=fault))

    def _time_is_over(
        self, connection: Connection, late: errors.PeerTalkError, *, fault: bool
    ) -> None:
        if self.engine.unread(connection):
            self._give_time(connection, endings.LOOK, late, fault=fault)
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
        payload = self.pulse.greeting + encode_greeting(greeting, self.engine.instance)
        code = connection.link.send_frame(values.CAPABILITY, payload, values.NO_DELAY)
        self.engine.hint(code)
        if code in _NO_ROOM and connection.state is not State.GREETING:
            self.engine.after(endings.LOOK, lambda: self._greet_again(connection, place))
            return False
        if code < 0:
            text = f"cannot greet {connection.where}: {self.engine.core.strerror(code)}"
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
        line = peer.line or Line(self.engine.instance, peer.instance or b"")
        undecided = [each.number for each in self.connections.undecided if each.dialled]
        return line.claims(self.connections.last_number, undecided)

    # Who it is ------------------------------------------------------------------------------------

    def _capability(self, connection: Connection, payload: bytes) -> None:
        try:
            capabilities = decode_capabilities(self.engine.core, payload)
        except errors.ProtocolError:
            # as the original: ignored whole, the connection stays
            self.engine.totals.ignored += 1
            return
        greeting = decode_greeting(payload, capabilities.instance)
        if greeting.addressed != self.engine.instance:
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
        """A later CAPABILITY replaces the one before."""
        instance, known = capabilities.instance, peer.capabilities
        who = greetings.later(instance, peer.instance, dialled=connection.dialled)
        if who is greetings.Later.FALSE:
            self.engine.totals.ignored += 1
            return
        if who is greetings.Later.LATE:
            assert instance is not None
            if not self._greeted_late(connection, peer, instance, capabilities):
                return
            if greeting.place is not None and (line := self._line_of(peer)).decides:
                line.adopt(connection)  # the other side waits for that
                self.connections.last_place = max(self.connections.last_place, line.place)
                self._greet(connection, peer, connection.place)
        capabilities = greetings.renewed(capabilities, known)
        peer.capabilities = capabilities
        if known is None or capabilities.datagram_port != known.datagram_port:
            self.mailbox.place(peer, peer.connection)
        connection.link.max_message = limits.of_link(peer, capabilities)
        connection.link.wide_max = peer.largest
        connection.slow = False
        peer.on_pressure()

    def _greeted_late(
        self, connection: Connection, peer: Remote, instance: bytes, capabilities: Capabilities
    ) -> bool:
        """Whom we dialled and took for classic, because its CAPABILITY did not come in time, is one
        of ours: its peer becomes that. False: it cannot, and nothing more is sent here."""
        if instance == self.engine.instance:
            self._end(connection, greetings.itself(connection), polite=True)
            return False
        known = self.roster.recall(instance)
        if known is not None:
            if not known.known:
                self.roster.know(known)
            replaced = greetings.known_as(peer, known)
            self._tell_unknown(connection, peer, replaced)
            self._detach(connection, replaced, polite=True)
            self.roster.tidy(peer)
            connection.peer = known
            self._apply(self._line_of(known).late(connection))
            return False
        if self.finder is not None:
            self.finder.release(peer.key)
            self.finder.discovery.hold(instance)
        self.roster.renew(peer, instance)
        peer.name = capabilities.name or peer.name
        peer.address = (connection.host, capabilities.port or connection.port)
        return True

    def _greeted(
        self, connection: Connection, capabilities: Capabilities | None, greeting: Greeting
    ) -> None:
        """We know who it is, or that it will not say."""
        if connection.state is not State.GREETING:
            return
        self._wait_no_more(connection)
        if capabilities is not None or connection.dialled:
            # not a stranger, who could hold a staging buffer for so long
            connection.link.frame_timeout = self.engine.config.link_timeout
        if self.classics.settled(connection.tag):
            self._dial_classics()
        instance = None if capabilities is None else capabilities.instance
        if instance == self.engine.instance:
            self._end(connection, greetings.itself(connection))
            return
        if connection.local and greetings.is_stranger(connection, instance):
            self._end(connection, greetings.astray(connection))
            return
        connection.peer = peer = self._identify(connection, capabilities)
        if not self._admit(connection, peer):
            return
        place = greetings.place_of(
            instance=instance, place=greeting.place, connected=peer.connection is not None
        )
        if place is greetings.Place.ASIDE:
            self._stand_aside(connection, peer, capabilities)
        else:
            peer.capabilities = capabilities
            if place is greetings.Place.LINE:
                self._meet(connection, peer, greeting)
            else:
                self._choose(connection, peer)
        self._settled(connection.tag)

    def _identify(self, connection: Connection, capabilities: Capabilities | None) -> Remote:
        expected = connection.peer
        assert expected is None or isinstance(expected, Remote)
        if capabilities is not None and capabilities.instance is not None:
            address = (connection.host, capabilities.port or connection.port)
            peer = self.roster.meet(capabilities.instance, capabilities.name or "", address)
            answers = greetings.answers(expected, peer)
            if expected is not None and answers is greetings.Answers.OURS:
                self._replace(expected, peer)
            elif expected is not None and answers is greetings.Answers.OTHER:
                connection.peer = None
                again = expected.successor is peer
                wrong = greetings.no_longer(connection, expected, peer)
                self._tell(connection, expected.restarted_error() if again else wrong)
            return peer
        if expected is not None:
            return self.roster.peers.get(expected.key) or self.roster.know(expected)
        address = connection.address
        if connection.dialled:
            known = self.roster.peers.get(address)
        else:
            known = classics.owner(self._classics_at(connection.host))
        return known or self.roster.make_peer(address, None, "", address)

    def _replace(self, classic: Remote, peer: Remote) -> None:
        """What was taken for a classic peer has turned out to be one of ours."""
        self.roster.forget(classic, events.LostReason.CLOSED)
        replaced = greetings.known_as(classic, peer)
        classic.tell_reaching(replaced)
        self.traffic.fail_queued(classic, replaced)

    def _admit(self, connection: Connection, peer: Remote) -> bool:
        """Whether one more peer may be connected. False: it was sent away."""
        most = self.engine.config.max_peers
        if peer.connected:
            return True
        if self.connections.connected < most or self._make_way(self._least_wanted()):
            self.engine.troubles.worked(TAKING_PEERS)
            return True
        everybody = self.connections.by_tag.values()
        if self._make_way(greetings.neighbour_for(connection.host, everybody, most)):
            return True
        self.connections.refused += 1
        connection.link.send_frame(
            values.REJECT, bytes((errors.RejectReason.FULL,)), values.NO_DELAY
        )
        full = greetings.turned_away(peer, most)
        self._end(connection, full, polite=True)
        self.engine.troubles.failed(TAKING_PEERS, "%s; callers are turned away", full)
        return False

    def _least_wanted(self) -> greetings.GivesWay | None:
        """Who has been frozen, or has stood still, the longest. None: nobody for long enough."""
        since = self.engine.world.clock() - self.engine.config.link_timeout
        everybody = self.connections.by_tag.values()
        return greetings.least_wanted(everybody, since, self.engine.unread)

    def _make_way(self, gives: greetings.GivesWay | None) -> bool:
        """End the connection that gives way. False: there is none."""
        if gives is None:
            return False
        if gives.silent:
            self.engine.world.abandon(gives.connection.socket)
        self._end(gives.connection, gives.error, fault=gives.fault)
        return True

    # Which of several -----------------------------------------------------------------------------

    def _line_of(self, peer: Remote) -> Line:
        if peer.line is None:
            assert peer.instance is not None
            last_place = self.connections.last_place
            peer.line = Line(self.engine.instance, peer.instance, last_place)
        return peer.line

    def _meet(self, connection: Connection, peer: Remote, greeting: Greeting) -> None:
        """A peer that knows places: its line decides what becomes of the connection."""
        line = self._line_of(peer)
        if not connection.dialled:
            connection.number = greeting.number
        decisions = line.identified(connection, greeting.claims, greeting.place or 0)
        if connection.state is State.GREETED and not line.decides:
            wait = self.engine.config.connect_timeout
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
        unread = before is not None and self.engine.unread(before) > 0
        if before is not None:
            self._retire(before, connection, wait=unread)
        if before is not None and unread:
            self.engine.after(endings.LOOK, lambda: self._look_at_strangers(connection))
        connection.advance(Step.GREET)
        self._open(connection, peer)

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
        self._wait_no_more(connection)
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
            if each.link is not None and self.engine.unread(each)
        }
        if strangers:
            connection.waits_for |= strangers
        if connection.waits_for and connection not in self._waiting:
            self._waiting.append(connection)
            self.engine.after(endings.LOOK, lambda: self._look_at_strangers(connection))

    def _look_at_strangers(self, connection: Connection) -> None:
        """Those that have nothing unread any more, and still have not said whose they are, are not
        waited for."""
        for tag in connection.waits_for:
            other = self.connections.by_tag.get(tag)
            if other is None or not self.engine.unread(other):
                self._settled(tag)
        if connection.waits_for and connection.state is not State.CLOSED:
            self.engine.after(endings.LOOK, lambda: self._look_at_strangers(connection))

    def _settled(self, tag: int) -> None:
        """A connection has said whose it is, has ended, or has nothing unread."""
        for waiting in [each for each in self._waiting if tag in each.waits_for]:
            peer = waiting.peer
            assert isinstance(peer, Remote)
            if peer.line is not None and waiting in peer.line.members:
                released = peer.line.settled(tag)
            else:  # a peer that knows no places, or has taken us for one
                released = greetings.settled(waiting, tag)
            if not waiting.waits_for:
                self._waiting.remove(waiting)
            self._apply(released)

    def _hold(self, connection: Connection) -> None:
        """Keep back what it brings from now on, until RELEASE."""
        connection.held = deque()
        connection.link.pause()
        connection.spoilt = True

    def _unhold(self, connection: Connection) -> None:
        """Go on, with what was kept back first."""
        held, connection.held = connection.held, None
        peer = connection.peer
        if connection.state is State.CLOSED:
            self._keep_held(connection, held or deque())
            if isinstance(peer, Remote) and peer.line is not None:
                self._apply(peer.line.finished(connection))
            return
        self.traffic.read_on(connection)
        for kind, _, a, b in held or ():
            if connection.tag in self.connections.by_tag:
                self.arrived(connection, kind, a, b)
        if connection.state is State.DRAINING:
            self._look_whether_drained(connection)

    def _retire(self, leaving: Connection, staying: Connection, *, wait: bool = True) -> None:
        """Shut the one for writing, read it to its end, and until then hold back what the other
        brings, unless it need not wait."""
        peer = leaving.peer
        assert isinstance(peer, Remote)
        if peer.connection is leaving:
            peer.use(None)
        leaving.advance(Step.RETIRE)
        self._tell(leaving, None, peer)
        leaving.link.shut()
        self.engine.schedule()
        gone = errors.ConnectionClosed(
            f"the second connection with {peer.name!r} did not end in time", peer=peer.name
        )
        leaving.timer = self.engine.after(
            self.engine.config.drain_timeout, lambda: self._end(leaving, gone)
        )
        if not wait:
            return
        staying.waits_for |= {leaving.tag}
        if staying not in self._waiting:
            self._waiting.append(staying)
        if staying.held is None:
            self._hold(staying)

    def _open(self, connection: Connection, peer: Remote) -> None:
        capabilities = peer.capabilities
        connection.link.max_message = limits.of_link(peer, capabilities)
        connection.link.wide_max = peer.largest
        connection.link.read_max = UNBOUNDED
        if self.traffic.inbox.flooded:
            self.traffic.pause_if_full(connection, peer)
        if not peer.known:  # it was taken for gone while its connection was only greeted
            self.roster.know(peer)
        peer.use(connection)
        connection.since = self.engine.world.clock()
        if capabilities is not None and capabilities.instance is not None and capabilities.port:
            peer.address = (connection.host, capabilities.port)  # it may have moved
        self.mailbox.place(peer, peer.connection)
        self.engine.cancel(peer.retry)
        peer.retry = None
        self.expect_no_more(peer.key)
        if self.finder is not None:
            self.finder.discovery.hold(peer.key)
        if isinstance(peer.key, tuple):
            self.classics.connected(peer.key)
        if peer.state is not PeerState.CONNECTED:
            peer.advance(PeerEvent.OPENED)
            self.connections.connected += 1
            peer.latency = None
            if not connection.dialled:
                self.engine.emit(events.ConnectionRequested, peer)
            self.engine.emit(events.PeerConnected, peer)
            self.roster.check_name(peer)
        self.pulse.opened(connection, peer)
        peer.on_pressure()
        self._tell(connection, None, peer)
        peer.tell_reaching(None)
