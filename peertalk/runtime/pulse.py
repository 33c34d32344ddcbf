"""What a connection says beside messages: PING and PONG, and how full the inbox is that it feeds.

All of it goes through the slots of its link like everything else, and none of it waits in a queue:
an answer to a PING without room is dropped, a report of pressure is one mark on its connection,
which leaves with the level of that moment. The connections are pinged in turn, a few at a time: a
link that sends borrows a slot buffer.

Invariant: while a connection's level of pressure is above 0, the inbox that it feeds knows it, and
so will tell when that is over.
"""

from __future__ import annotations

import msgspec

from .. import errors
from .._core import values
from ..protocol import connections as policy
from ..protocol.connections import Connection, State
from ..protocol.inbox import Outlet
from ..protocol.peer import Latency
from ..protocol.wire import Capabilities, encode_capabilities
from .engine import Engine, Timer
from .remote import Measured, Remote
from .traffic import Traffic
from .watchdog import Watchdog


class Pulse:
    """The small talk of all connections of one engine. On the engine's thread only."""

    def __init__(self, engine: Engine, traffic: Traffic, watchdog: Watchdog) -> None:
        self.engine = engine
        self.traffic = traffic
        self.watchdog = watchdog
        traffic.press, traffic.pay = self.press, self.pay
        self._greetings = [b""] * 4
        self._timer: Timer | None = None
        self._to_ping: list[Connection] = []
        self._spacing = 0.0
        self.asking: dict[int, Connection] = {}
        """Those whose PINGs are to be answered, by tag."""

    def introduce(self, ours: Capabilities) -> None:
        """What our CAPABILITY says, but for the pressure."""
        self._greetings = [
            encode_capabilities(
                self.engine.core, msgspec.structs.replace(ours, pressure=25 * level)
            )
            for level in range(4)
        ]

    @property
    def greeting(self) -> bytes:
        """Payload of the CAPABILITY that opens a connection: without pressure, since it has fed
        nothing yet."""
        return self._greetings[0]

    def opened(self, connection: Connection, peer: Remote) -> None:
        """A connection is open: it is measured now, and from now on in turn."""
        self.traffic.pause_if_full(connection, peer)
        self.engine.workers.answer_pings(connection.link)
        if interval := self.engine.config.ping_interval:
            self._ping(connection)
            if self._timer is None and not self.engine.closing:
                self._timer = self.engine.after(interval, self._ping_in_turn)
        elif peer.pinging:
            self._ping(connection)

    def ended(self, connection: Connection) -> None:
        """A connection is over: nobody is to be told."""
        self.asking.pop(connection.tag, None)
        if isinstance(connection.peer, Remote):
            self.traffic.inbox.forget(connection, connection.peer)

    def asked(self, connection: Connection) -> None:
        """A PING has come on a connection: answer(), at the end of the turn, sends one PONG for all
        of them."""
        self.asking[connection.tag] = connection

    def answer(self) -> None:
        """All that this turn has brought is served: one PONG answers all PINGs of one read of a
        link. While some of what was read is left for the next turn, that may bring more of them."""
        asking, self.asking = self.asking, {}
        for connection in asking.values():
            if not connection.alive:
                continue
            link = connection.link
            if link.held_bytes and not link.paused:
                self.asking[connection.tag] = connection
                continue
            code = link.send_frame(values.PONG, b"", 0)
            # never queued: a flood of PINGs must not cost more than the slots of its link
            self.engine.totals.pongs_dropped += code < 0
            self.engine.hint(code)

    # Round-trip times -----------------------------------------------------------------------------

    def ping(self, peer: Remote, measured: Measured) -> None:
        """Call measured with the round-trip time of a PING that is answered from now on, in
        seconds, or with what is in the way."""
        if peer.connection is None or not peer.connected:
            measured(
                None, errors.NotConnected(f"peer {peer.name!r} is not connected", peer=peer.name)
            )
            return
        peer.pinging = [*(peer.pinging or ()), measured]
        self._ping(peer.connection)

    def probe(self, connection: Connection) -> bool:
        """Send a PING for its own sake. False: it did not leave."""
        before = connection.pinged
        self._ping(connection)
        return before is None and connection.pinged is not None

    def _ping(self, connection: Connection) -> None:
        """Send a PING unless one is out; when there is no room, later."""
        if connection.state is not State.OPEN:
            return
        now = self.engine.world.clock()
        if not connection.may_ping(now, self.engine.config.link_timeout):
            return
        code = connection.link.send_frame(values.PING, b"", values.NO_DELAY)
        self.engine.hint(code)
        # without room too: whoever takes nothing answers nothing
        self.watchdog.asked(connection)
        if code >= 0:
            connection.ping_left(now, paused=connection.link.paused)
        else:
            self._owe(connection, policy.OWES_PING, code)

    def pong(self, connection: Connection) -> None:
        """An answer to a PING has come: the peer's latency changes, and who waits for it is told;
        where the PING measured nothing, who waits has another one sent. Nothing happens when no
        PING is out, or the connection has no peer yet."""
        peer = connection.peer
        if connection.pinged is None or not isinstance(peer, Remote):
            return
        self.watchdog.answered(connection)
        sample = connection.pong(self.engine.world.clock())
        if sample is not None:
            peer.latency = Latency.of(peer.latency, sample)
            peer.tell_pinging(sample, None)
        elif peer.pinging:
            self._ping(connection)

    def _ping_in_turn(self) -> None:
        """Some of the connections at a time, until each has had its turn; then anew. Rests while
        there is none."""
        self._timer = None
        if self.engine.closing:
            return
        if not self._to_ping:
            self._to_ping = [
                connection
                for connection in self.engine.connections.by_tag.values()
                if connection.state is State.OPEN
            ]
            self._spacing = policy.ping_spacing(
                len(self._to_ping), self.engine.config.ping_interval
            )
        for _ in range(min(policy.PINGS_PER_TURN, len(self._to_ping))):
            self._ping(self._to_ping.pop())
        if self.engine.connections.by_tag:
            self._timer = self.engine.after(self._spacing, self._ping_in_turn)

    # Our pressure, and what waits for room --------------------------------------------------------

    def press(self, connection: Connection, outlet: Outlet[Remote]) -> None:
        """A connection has brought something into a well filled inbox: its other side hears when
        the level is another than it was told."""
        level = outlet.level(connection.pressure)
        if level == connection.pressure or not connection.alive or self.engine.closing:
            return
        if not connection.pressure and outlet.has_one:
            return  # however long: it may be taken at once, and both levels would be told each time
        if level:
            outlet.on_ease = self._ease
            outlet.watch(connection, level)
        self._tell_pressure(connection, level)

    def _ease(self, outlet: Outlet[Remote]) -> None:
        """An inbox has emptied so far that those who were told of its level must hear of a lower
        one."""
        for connection in outlet.watched():
            peer = connection.peer
            if not connection.alive or not isinstance(peer, Remote):
                continue
            feeds = self.traffic.inbox.outlet_of(peer)
            level = feeds.level(connection.pressure)
            if level:
                feeds.on_ease = self._ease
                feeds.watch(connection, level)
            if level != connection.pressure:
                self._tell_pressure(connection, level)

    def _tell_pressure(self, connection: Connection, level: int) -> None:
        connection.pressure = level
        if not connection.owed & policy.OWES_PRESSURE:
            self._report_pressure(connection)

    def _report_pressure(self, connection: Connection) -> None:
        code = connection.link.send_frame(
            values.CAPABILITY, self._greetings[connection.pressure], 0
        )
        self.engine.hint(code)
        if code >= 0:
            self.engine.totals.pressure_reports += 1
        else:
            self._owe(connection, policy.OWES_PRESSURE, code)

    def _owe(self, connection: Connection, what: int, code: int) -> None:
        connection.owed |= what
        if isinstance(connection.peer, Remote):
            self.traffic.refused(connection.peer, code)

    def pay(self, connection: Connection) -> None:
        """There may be room: what is owed goes before messages that wait."""
        owed, connection.owed = connection.owed, connection.owed & policy.OWES_WIDE
        if owed & policy.OWES_WIDE:
            self.traffic.landings.pay(connection)
        if owed & policy.OWES_PRESSURE:
            self._report_pressure(connection)
        if owed & policy.OWES_PING:
            self._ping(connection)
