"""Looks after the links that are there: which is dead, which is frozen, and which lived on an
address that we no longer have.

Which link is dead and which is frozen is decided in protocol/vigil, by what was seen. A dead link
is ended; the answers of a full receiver's system to window probes are acknowledgements. To be
frozen ends nothing by itself; the peer says so of itself, and its link is the first to go when its
place or memory is wanted.

A look that comes late tells that the loop was blocked: that time counts for nobody, since what was
said then lies unread.

Invariant: a connection is `due` from the moment that it has a link to its end, and has a `vigil` or
is in `frozen` only meanwhile. Never: ends a link of which nothing waits, but for its place
or its address.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from .. import errors
from .._core import values
from ..protocol import endings, events
from ..protocol.connections import Connection, State
from ..protocol.vigil import LATE, Finding, Seen, Vigil
from .engine import Engine, Timer, Watched

_LOOK_SPACING = 0.4
"""Seconds between two looks, at least, and so between the two that a dead link takes: longer than
any way there and back."""
_SHORTEST_SPACING = 0.1
"""Likewise where link_timeout is very short: an acknowledgement may be delayed by 40 ms."""
_LOOKS_PER_TURN = 128
"""Links that are looked at in one turn, about a millisecond: others have their turn between."""
_NEVER = float("inf")
_SETTLE = 0.5
"""Seconds from a change of our addresses to its consequences: an address that is replaced, or taken
away and given again, makes several changes."""


class Watchdog:
    """Watches all links of one engine. On the engine's thread only.

    Args:
        engine: whose connections these are.
        end: ends a connection whose link is dead.
        unhouse: likewise one that lived on an address which we no longer have.
        network_changed: told when this machine has other interfaces or addresses.
    """

    def __init__(
        self,
        engine: Engine,
        end: Callable[[Connection, errors.PeerTalkError], None],
        unhouse: Callable[[Connection, errors.PeerTalkError], None],
        network_changed: Callable[[], None],
    ) -> None:
        self.engine = engine
        self._end = end
        self._unhouse = unhouse
        self._network_changed = network_changed
        self._patience: float = self.engine.config.link_timeout
        self._spacing = max(_SHORTEST_SPACING, min(_LOOK_SPACING, self._patience / 8))
        self.frozen: dict[int, Connection] = {}
        self._timer: Timer | None = None
        self._due = _NEVER
        self._news: socket.socket | None = None
        self._watched: Watched | None = None
        self._settling: Timer | None = None

    # What connections tell ------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """A connection has a link: watch it from now on. The first look is due when
        Config.link_timeout has passed."""
        connection.due = self.engine.world.clock() + self._patience
        self._look_at(connection.due)

    def ended(self, connection: Connection) -> None:
        """A connection is over: watch it no longer. It is not frozen any more, of which nobody is
        told."""
        connection.due, connection.vigil = _NEVER, None
        self.frozen.pop(connection.tag, None)

    def asked(self, connection: Connection) -> None:
        """A PING has left, or would have if there had been room: an answer is owed."""
        if connection.due < _NEVER:
            counts = connection.link.statistics()
            connection.vigil = connection.vigil or Vigil()
            connection.vigil.ask(
                self.engine.world.clock(),
                counts.frames_received,
                counts.payload_bytes_sent,
                counts.frames_sent,
            )

    def answered(self, connection: Connection) -> None:
        """It owes no answer any more."""
        vigil = connection.vigil
        if vigil is not None:
            vigil.asked = None
            connection.vigil = vigil.kept()

    def heard(self, connection: Connection) -> None:
        """A frame has come. Worth a call while somebody is frozen only: others are looked at."""
        if self.frozen.pop(connection.tag, None) is not None:
            self.answered(connection)
            if connection.peer is not None and connection.state is State.OPEN:
                self.engine.emit(events.PeerThawed, connection.peer)

    def is_frozen(self, connection: Connection) -> bool:
        """Whether a connection has owed an answer for longer than Config.link_timeout, and nothing
        was heard of it since."""
        return connection.tag in self.frozen

    # Who is dead, who is frozen -------------------------------------------------------------------

    def _look_at(self, due: float) -> None:
        if due < self._due:
            self.engine.cancel(self._timer)
            self._due = due
            delay = due - self.engine.world.clock()
            self._timer = self.engine.after(max(0.0, delay), self._look)

    def _look(self) -> None:
        """At all whose time has come; then at the next."""
        now = self.engine.world.clock()
        late, self._due = now - self._due, _NEVER
        if late > LATE:
            self._was_asleep(late, now)
        following, left = _NEVER, _LOOKS_PER_TURN
        for connection in self._watched_links():
            if connection.due <= now and left:
                self._check(connection, now)
                left -= 1
            if connection.state is not State.CLOSED:
                following = min(following, connection.due)
        if following < _NEVER:
            self._look_at(max(following, now + self._spacing) if left else now)

    def _watched_links(self) -> list[Connection]:
        return [each for each in self.engine.connections.by_tag.values() if each.due < _NEVER]

    def _was_asleep(self, late: float, now: float) -> None:
        """The loop was blocked, and what has come meanwhile is still to be read."""
        for connection in self._watched_links():
            if connection.vigil is not None:
                connection.vigil.slept(late, now, self._patience)

    def _check(self, connection: Connection, now: float) -> None:
        if connection.state is State.CLOSED:  # ended with one that was looked at before
            return
        if connection.state is State.DRAINING:  # only read, for as long as that takes
            connection.due = now + self._patience
            return
        world = self.engine.world
        silent = world.silent_for(connection.socket)
        vigil = connection.vigil or Vigil()
        found, connection.due = vigil.look(
            Seen(
                now,
                connection.state,
                silent,
                connection.link.statistics,
                connection.link.paused,
                connection.tag in self.frozen,
                lambda: world.unacknowledged(connection.socket),
            ),
            self._patience,
            self._spacing,
        )
        connection.vigil = vigil.kept()
        if found is Finding.DEAD:
            self._bury(connection, silent)
        elif found is Finding.FROZEN:
            self.frozen[connection.tag] = connection
            if connection.peer is not None and vigil.asked is not None:
                text = "peer %r has answered nothing for %.0f s"
                self.engine.log.info(text, connection.name, now - vigil.asked)
                self.engine.emit(events.PeerFrozen, connection.peer)

    def _bury(self, connection: Connection, silent: float) -> None:
        self.engine.world.abandon(connection.socket)
        self._end(connection, endings.died(connection, silent))

    # Our own addresses ----------------------------------------------------------------------------

    def start(self) -> None:
        """Hear of changes of this machine's network from now on, where the system tells."""
        self._news = self.engine.world.network_news()
        if self._news is not None:
            self._watched = self.engine.watch(self._news, values.READ, self._hear_news)

    def stop(self) -> None:
        """No longer, and look at nothing any more. May be called again."""
        self.engine.cancel(self._timer)
        self.engine.cancel(self._settling)
        self.engine.unwatch(self._watched)
        self._watched = None
        if self._news is not None:
            self.engine.close_socket(self._news)
            self._news = None

    def _hear_news(self) -> None:
        assert self._news is not None
        self.engine.world.drop_news(self._news)
        if self._settling is None:
            self._settling = self.engine.after(_SETTLE, self._settled)

    def _settled(self) -> None:
        self._settling = None
        if self.engine.closing:
            return
        self.check_addresses()
        self._network_changed()

    def check_addresses(self) -> None:
        """Links that live on an address which this machine no longer has carry nothing any more,
        and no error comes of it: they are ended. An interface that is down keeps its addresses."""
        ours: dict[str, bool] = {}
        for connection in self._watched_links():
            if connection.state is State.CLOSED or connection.local:
                continue
            try:
                address = connection.socket.getsockname()[0]
            except (OSError, errors.PeerTalkError):
                continue
            if address not in ours:
                ours[address] = self.engine.world.owns(address)
            if not ours[address]:
                self.engine.world.abandon(connection.socket)
                self._unhouse(connection, endings.without_address(connection, address))
