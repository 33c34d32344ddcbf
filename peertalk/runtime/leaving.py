"""How connections are left, and how they end.

What an end means is decided in protocol/endings; here it is done, with sockets, links and timers.
The end of a connection is a list of steps, each of which may be done twice, because a signal
handler may raise anywhere.

The switchboard is one thing in five files, each of which stands on those before: Leaving,
Greetings, ClassicPeers, Dialling, Switchboard. What lies above is named at the top of each class.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import msgspec

from .. import errors
from .._core import values
from ..protocol import endings, events
from ..protocol.connections import Connection, State, Step
from ..protocol.datagrams import Mailbox
from ..protocol.line import Decision
from ..protocol.peer import FRAGMENTED_MAX, PARTING, Key, Peer, PeerEvent, PeerState
from .engine import Engine, Watched
from .finder import Finder
from .listening import ACCEPTING, TAKING_PEERS
from .pulse import Pulse
from .remote import Remote
from .roster import Roster
from .traffic import Traffic
from .watchdog import Watchdog

UNBOUNDED = 2**32 - 1
"""Bytes that a link may read at a time, once it is known whose it is."""


class Below(NamedTuple):
    """On what the switchboard stands. finished: called when the node closes and the last connection
    has ended."""

    engine: Engine
    traffic: Traffic
    roster: Roster
    mailbox: Mailbox[Remote]
    finished: Callable[[], None]


class _Ending(msgspec.Struct, eq=False):
    """The end of a connection. error, polite, fault: as in Leaving._end(); attached: messages
    were sent on it; was: its state before; done: how many of _LAST_STEPS are; again: the next one
    has failed once."""

    connection: Connection
    error: errors.PeerTalkError | None
    polite: bool
    fault: bool
    attached: bool
    was: State
    done: int = 0
    again: bool = False


class Leaving(ABC):
    """Connections on their way out. On the engine's thread only.

    below: on what it stands. finder: discovery, while there is some.
    """

    def __init__(self, below: Below) -> None:
        self.engine, self.traffic, self.roster, self.mailbox, self._finished = below
        self.finder: Finder | None = None
        self.connections = self.engine.connections
        self.classics = self.roster.classics
        self._opening: dict[int, Watched] = {}
        """The sockets of dials that are under way, by the tag of the connection."""
        self._ending: dict[Connection, _Ending] = {}
        """Connections whose end is not done to its last step."""
        self.watchdog = Watchdog(self.engine, self.end, self.unhouse, self.network_changed)
        self.pulse = Pulse(self.engine, self.traffic, self.watchdog)

    # What lies above ------------------------------------------------------------------------------

    @abstractmethod
    def _apply(self, decisions: list[Decision]) -> None:
        """Do what a line has decided."""

    @abstractmethod
    def _settled(self, tag: int) -> None:
        """A connection has said whose it is, has ended, or has nothing unread."""

    @abstractmethod
    def _asides_of(self, peer: Peer | None) -> list[Connection]:
        """Connections with a classic peer that are read and not used."""

    @abstractmethod
    def _dial_classics(self) -> None:
        """Dial those whose time has come."""

    @abstractmethod
    def _call_again(self, connection: Connection) -> None:
        """A socket of this host has led nowhere: its peer is dialled by TCP, and whoever waits for
        the connection waits for that one."""

    @abstractmethod
    def _detach(
        self, connection: Connection, error: errors.PeerTalkError | None, *, polite: bool
    ) -> None:
        """The peer has lost its connection."""

    @abstractmethod
    def _dial_when_due(self, peer: Remote) -> None:
        """Dial a peer that somebody wants."""

    @abstractmethod
    def expect_no_more(self, key: Key) -> None:
        """A connection is back, or is not wanted any more."""

    @abstractmethod
    def tidy_up(self) -> None:
        """After something was cut off."""

    @abstractmethod
    def end(
        self, connection: Connection, error: errors.PeerTalkError, *, alive: bool = False
    ) -> None:
        """The link of a connection is dead, or alive and of no use: use it no more. error: what
        whoever waits is told."""

    @abstractmethod
    def unhouse(self, connection: Connection, error: errors.PeerTalkError) -> None:
        """The link lives on an address that we no longer have."""

    @abstractmethod
    def network_changed(self) -> None:
        """This machine has other interfaces or addresses."""

    # Leaving politely -----------------------------------------------------------------------------

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
        wait = self.engine.config.drain_timeout if seconds is None else seconds
        connection.deadline = self.engine.world.clock() + wait
        self._wholly(connection, self._look_whether_left, connection)

    def _part(self, aside: Connection) -> None:
        """Leave a connection that stands aside; without a word if there is no room for it."""
        aside.deadline = self.engine.world.clock() + self.engine.config.drain_timeout
        self._say_farewell(aside)
        if aside.state is State.ASIDE:
            self._end(aside, None)

    def _farewell(self, connection: Connection) -> None:
        """Closing: when all is handed over, say DISCONNECT and shut."""
        peer = connection.peer
        if isinstance(peer, Remote) and (peer.outbox is not None or peer.afar):
            self.traffic.pump(peer)
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
            connection.left = self.engine.world.clock()
            connection.link.shut()
            self.engine.schedule()
            self._wait(connection, endings.LOOK, self._look_whether_left)

    def _look_whether_left(self, connection: Connection) -> None:
        """We leave, or want to. The other side closes when it has read that; if it does not, we
        do."""
        if connection.state is State.OPEN:
            self._farewell(connection)
        if connection.state not in (State.OPEN, State.CLOSING):
            return
        seen = endings.look(
            endings.Leaving(
                connection.state,
                self.engine.world.clock(),
                connection.left,
                connection.deadline,
                partial(self._owes, connection),
            )
        )
        if seen.in_vain:
            self._left_in_vain(connection)
        elif seen.pause is None:
            self._end(connection, None)
        else:
            self._wait(connection, seen.pause, self._look_whether_left)

    def _owes(self, connection: Connection) -> bool:
        return bool(
            connection.link.slots_pending
            or self.engine.world.unacknowledged(connection.socket)
            or self.engine.unread(connection)
        )

    def _left_in_vain(self, connection: Connection) -> None:
        peer = connection.peer
        assert isinstance(peer, Remote)
        text = f"peer {peer.name!r} did not take in time what it was sent before we left"
        connection.left = connection.left or self.engine.world.clock()
        connection.advance(Step.DRAIN)
        self._drain(connection, errors.ConnectionClosed(text, peer=peer.name))

    def _other_half_ended(self, connection: Connection) -> None:
        """The other side will send no more. What is queued in slots may still arrive: shut, drain,
        then the end."""
        peer = connection.peer
        half = endings.half_closed(connection.state)
        if half is endings.Half.NAMELESS:
            text = f"{connection.where} closed the connection before it said who it is"
            self._end(connection, errors.ConnectionClosed(text))
            return
        if half is endings.Half.END:
            self._end(connection, None)
            return
        connection.failure = endings.closed(peer)
        connection.link.shut()
        self.engine.schedule()
        if half is endings.Half.LEAVE:
            connection.advance(Step.LEAVE)
            late = partial(self._end, error=connection.failure)
            self._wait(connection, self.engine.config.drain_timeout, late)
            self._detach(connection, connection.failure, polite=False)

    # Read to its end ------------------------------------------------------------------------------

    def _drain(self, connection: Connection, error: errors.PeerTalkError | None) -> None:
        """A connection is over for the other side, or we have waited enough for it: nothing more is
        sent on it. What has arrived is read, because its sender takes it for sent."""
        peer = connection.peer
        assert isinstance(peer, Remote)
        self._wait_no_more(connection)
        if peer.connection is connection:
            left = connection.left is not None
            lost = error or errors.ConnectionClosed(
                f"the connection with peer {peer.name!r} was lost on its side", peer=peer.name
            )
            self._tell_unknown(connection, peer, lost)
            self._detach(connection, error if left else lost, polite=left)
        self._tell_end(connection)
        connection.link.read_max = UNBOUNDED
        if connection.held is None and connection.state is State.DRAINING:
            self.traffic.read_on(connection)
        self._look_whether_drained(connection)

    def _look_whether_drained(self, connection: Connection) -> None:
        """When this turn is done: more that it has brought may be among the turn's events."""
        self._wait_no_more(connection)
        self.engine.post(lambda: self._drain_on(connection))

    def _drain_on(self, connection: Connection) -> None:
        """End it when nothing is left to be read."""
        if connection.state is not State.DRAINING or connection.held is not None:
            return
        now = self.engine.world.clock()
        if self.engine.unread(connection) or now < connection.deadline < math.inf:
            self._wait(connection, endings.LOOK, self._drain_on)
        else:
            self._end(connection, None)

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
                self.traffic.deliver(peer, connection, size, messages)

    def _messages(self, connection: Connection, flags: int, payload: bytes) -> list[bytes]:
        """The messages that a DATA frame brings: of a batch any number, of a fragment one at the
        most. A fault costs these alone."""
        try:
            if flags & values.FRAGMENT:
                reassembly = connection.reassembly
                if reassembly is None:
                    # an original sends in fragments what is longer than we take in one frame
                    reassembly = connection.reassembly = self.engine.loop.reassembly(
                        max(self.traffic.max_frame, FRAGMENTED_MAX)
                    )
                message = reassembly.receive(payload)
                return [] if message is None else [message]
            return self.engine.core.split_batch(payload) if flags & values.BATCHED else [payload]
        except (errors.ProtocolError, errors.OutOfMemory) as error:
            self.engine.totals.ignored += 1
            self.engine.log.info("DATA from %s:%d was ignored: %s", *connection.address, error)
            return []

    # The end --------------------------------------------------------------------------------------

    def _ended(self, connection: Connection, code: int, system_error: int) -> None:
        cause = endings.cause_of(
            code,
            slots_pending=connection.link.slots_pending,
            sends_time_out=self.engine.world.sends_time_out(self.engine.config),
        )
        said = self.engine.core.strerror(code)
        error = endings.error_of(cause, connection, code, said, system_error)
        fault = cause in (endings.Cause.FAULT, endings.Cause.NOT_WHOLE)
        self._end(connection, error, fault=fault)

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
                    self.engine.note(error)
                    if not ending.again:
                        ending.again = True
                        continue
                ending.again = False
                ending.done += 1
        except BaseException:
            self.engine.post(self.tidy_up)
            raise
        self.engine.call([self._ended_all], connection)
        self.engine.call_all()

    def _end_telling(self, connection: Connection, ending: _Ending) -> None:
        self.engine.cancel(connection.timer)
        self.engine.unwatch(self._opening.get(connection.tag))
        self._opening.pop(connection.tag, None)
        peer = connection.peer
        if isinstance(peer, Remote):
            error = ending.error or endings.closed(peer)
            self._tell_unknown(connection, peer, error)

    def _end_link(self, connection: Connection, _: _Ending) -> None:
        if connection.link is not None:
            self.engine.totals.add(connection.link.statistics())
            connection.link.close()

    def _end_socket(self, connection: Connection, _: _Ending) -> None:
        if connection.socket is not None:
            self.engine.close_socket(connection.socket)

    def _end_records(self, connection: Connection, _: _Ending) -> None:
        self.connections.remove(connection)
        if self.engine.troubles.lasting:  # here are a place and a descriptor for the next caller
            self.engine.troubles.worked(ACCEPTING)
            if self.connections.connected < self.engine.config.max_peers:
                self.engine.troubles.worked(TAKING_PEERS)
        self.classics.taken(connection.tag)
        self.pulse.ended(connection)
        self.traffic.landings.ended(connection)
        self.watchdog.ended(connection)
        if connection.reassembly is not None:
            connection.reassembly.close()

    def _end_report(self, connection: Connection, ending: _Ending) -> None:
        error, peer = ending.error, connection.peer
        report = endings.report(
            peer,
            fault=ending.fault,
            used=ending.attached,
            broken=error is not None,
            polite=ending.polite,
            closing=self.engine.closing,
        )
        if report is endings.Report.WARNING:
            self.engine.log.warning("%s", error)
        elif report is not endings.Report.SILENT:
            self.engine.log.info("%s", error)
        if report is endings.Report.FAULT:
            self.engine.emit(events.LinkFault, connection.address, peer, error)

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
            error = endings.not_used(peer)
        if connection.local and endings.is_astray(connection, ending.was, error):
            self._call_again(connection)
        self._tell(connection, error or endings.closed(peer, connection.where))
        self._tell_end(connection)

    def _ended_all(self, connection: Connection) -> None:
        """Those who waited for it have heard: others may go on, or it is dialled again."""
        self._ending.pop(connection, None)
        peer = connection.peer
        self._settled(connection.tag)
        if isinstance(peer, Remote) and peer.connection is None:
            if peer.queued or peer.reaching:
                self._dial_when_due(peer)
            self.roster.tidy(peer)
        if self.classics.settled(connection.tag):
            self._dial_classics()
        if self.engine.closing:
            self._finished()

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
            peer.quick = None
        self.traffic.settle(connection)
        self.traffic.count_given(connection, peer.outbox)
        if peer.connection is connection:
            self.traffic.departures.recall(peer)
            connection.handed.seal(peer.accepted)
        self.traffic.revoke(connection)
        for first, last in connection.handed.rest():
            self.traffic.fail(peer, first, last, events.Outcome.UNKNOWN, error)

    def _tell(
        self,
        connection: Connection,
        error: errors.PeerTalkError | None,
        peer: Remote | None = None,
    ) -> None:
        """Those who wait for a connection hear that it is there, or why it is not."""
        self.engine.call(connection.reached, peer if error is None else None, error)
        connection.reached = ()
        self.engine.call_all()

    def _tell_end(self, connection: Connection) -> None:
        self.engine.call(connection.on_end)
        connection.on_end = ()
        self.engine.call_all()

    def _disconnected(self, peer: Remote, error: errors.PeerTalkError | None) -> None:
        step = PARTING.get(peer.state)
        if step is None:
            return
        self.engine.emit(events.PeerDisconnected, peer, error)
        if step is PeerEvent.LOST:
            self.connections.connected -= 1
            self.engine.troubles.worked(TAKING_PEERS)
        peer.advance(step)
        if self.finder is not None:
            self.finder.release(peer.key)
        self.roster.find_successor(peer)

    def _wait(
        self, connection: Connection, seconds: float, then: Callable[[Connection], None]
    ) -> None:
        """Call then in so many seconds, in place of what the connection waited for until now."""
        self._wait_no_more(connection)
        connection.timer = self.engine.after(seconds, partial(then, connection))

    def _wait_no_more(self, connection: Connection) -> None:
        self.engine.cancel(connection.timer)
        connection.timer = None

    def _wholly(self, connection: Connection, step: Callable[..., None], *arguments: Any) -> None:
        """Take a step of a connection to its end; else the connection ends with what was raised."""
        try:
            step(*arguments)
        except BaseException as error:
            self._end(connection, endings.cut_off(error))
            if not isinstance(error, Exception):
                raise


_LAST_STEPS: tuple[Callable[[Leaving, Connection, _Ending], None], ...] = (
    Leaving._end_telling,
    Leaving._end_link,
    Leaving._end_socket,
    Leaving._end_records,
    Leaving._end_report,
    Leaving._end_use,
    Leaving._end_place,
    Leaving._end_waiting,
)
"""Each may be done twice, when it was cut off."""
