"""Looks after the links that are there: which is dead, which is frozen, which lived on an address
that we no longer have, and which one would be missed the least.

Dead is a link on which bytes of ours wait while no acknowledgement has come for
Config.link_timeout; the answers of a full receiver's system to window probes are such. It is ended.
Frozen is one whose other side's system is there while its program says nothing: it owes the answer
to a PING for link_timeout. That ends nothing by itself; the peer says so of itself, and its link is
the first to go when its place or memory is wanted.

How often to look follows from what was seen: a link cannot be dead before link_timeout has passed
since it last was not waiting, so an idle one is looked at once in that time, and one that is silent
just when the rest has passed. A look that comes late tells that the loop was blocked: that time
counts for nobody, since what was said then lies unread.

Invariant: a connection has a `vigil` from the moment that it has a link to its end, and is in
`_frozen` only while it has one. Never: ends a link of which nothing waits, but for its place
or its address.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import msgspec

from .. import errors
from .._core import values
from .._numbers import FRAME_OVERHEAD
from ..protocol import events
from ..protocol.connections import Connection, State

if TYPE_CHECKING:
    from .transport import Timer, Transport, Watched


_LOOK_SPACING = 0.4
"""Seconds between two looks, at least, and so between the two that a dead link takes: longer than
any way there and back."""
_SHORTEST_SPACING = 0.1
"""Likewise where link_timeout is very short: an acknowledgement may be delayed by 40 ms."""
_LOOKS_PER_TURN = 128
"""Links that are looked at in one turn, about a millisecond: others have their turn between."""
_LATE = 0.5
"""Seconds that a timer may be late on a loop that runs."""
_SETTLE = 0.5
"""Seconds from a change of our addresses to its consequences: an address that is replaced, or taken
away and given again, makes several changes."""


class Vigil(msgspec.Struct, gc=False):
    """What is known of one link: little, because there is one for each idle peer. Times are of the
    clock, frames and bytes as the link counts them.

    due: when it is looked at next; doubted: it seemed dead when it was looked at last; asked: since
    when an answer is owed, None when none is; question: where in the stream the PING ended that it
    is owed to; heard: frames that had come by then; stuck: since
    when slots have not moved, None while they do; moved: bytes that had left by then, -1 while no
    slot waits; taken: bytes that the other side's system had while some waited.
    """

    due: float
    doubted: bool = False
    asked: float | None = None
    question: int = 0
    heard: int = 0
    stuck: float | None = None
    moved: int = -1
    taken: int = 0

    def quiet_since(self) -> float | None:
        """Since when it has owed an answer or stood still; None: it does neither."""
        if self.asked is None or self.stuck is None:
            return self.stuck if self.asked is None else self.asked
        return min(self.asked, self.stuck)


class Watchdog:
    """Watches all links of one engine. On the engine's thread only."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._patience: float = transport.config.link_timeout
        self._spacing = max(_SHORTEST_SPACING, min(_LOOK_SPACING, self._patience / 8))
        self._frozen: dict[int, Connection] = {}
        self._timer: Timer | None = None
        self._due = float("inf")
        self._news: socket.socket | None = None
        self._watched: Watched | None = None
        self._settling: Timer | None = None

    # What connections tell ------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """It has a link."""
        due = self.transport.world.clock() + self._patience
        connection.vigil = Vigil(due)
        self._look_at(due)

    def ended(self, connection: Connection) -> None:
        """It is over."""
        connection.vigil = None
        self._frozen.pop(connection.tag, None)

    def asked(self, connection: Connection) -> None:
        """A PING has left, or would have if there had been room: an answer is owed."""
        watch = connection.vigil
        if watch is not None:
            counts = connection.link.statistics()
            frames = counts.frames_received
            if watch.asked is None or frames != watch.heard:
                watch.asked = self.transport.world.clock()
                watch.question = counts.payload_bytes_sent + FRAME_OVERHEAD * counts.frames_sent
                watch.heard = frames

    def heard(self, connection: Connection) -> None:
        """A frame has come. Worth a call while somebody is frozen only: others are looked at."""
        if self._frozen.pop(connection.tag, None) is not None:
            connection.vigil.asked = None
            if connection.peer is not None and connection.state is State.OPEN:
                self.transport.emit(events.PeerThawed, connection.peer)

    @property
    def frozen(self) -> int:
        """How many links are frozen."""
        return len(self._frozen)

    def is_frozen(self, connection: Connection) -> bool:
        """Whether this one is."""
        return connection.tag in self._frozen

    # Who is dead, who is frozen -------------------------------------------------------------------

    def _look_at(self, due: float) -> None:
        if due < self._due:
            self.transport.cancel(self._timer)
            self._due = due
            delay = due - self.transport.world.clock()
            self._timer = self.transport.after(max(0.0, delay), self._look)

    def _look(self) -> None:
        """At all whose time has come; then at the next."""
        now = self.transport.world.clock()
        late, self._due = now - self._due, float("inf")
        if late > _LATE:
            self._was_asleep(late, now)
        following, left = float("inf"), _LOOKS_PER_TURN
        for connection, watch in self._watched_links():
            if watch.due <= now and left:
                self._check(connection, watch, now)
                left -= 1
            if connection.state is not State.CLOSED:
                following = min(following, watch.due)
        if following < float("inf"):
            self._look_at(max(following, now + self._spacing) if left else now)

    def _watched_links(self) -> list[tuple[Connection, Vigil]]:
        return [
            (connection, connection.vigil)
            for connection in self.transport.connections.by_tag.values()
            if connection.vigil is not None
        ]

    def _was_asleep(self, late: float, now: float) -> None:
        """The loop was blocked, and what has come meanwhile is still to be read."""
        for _, watch in self._watched_links():
            if watch.asked is not None:
                watch.asked = min(now, max(watch.asked + late, now - self._patience + _LATE))
            if watch.stuck is not None:
                watch.stuck = min(now, watch.stuck + late)

    def _check(self, connection: Connection, watch: Vigil, now: float) -> None:
        if connection.state is State.CLOSED:  # ended with one that was looked at before
            return
        if connection.state is State.DRAINING:  # only read, for as long as that takes
            watch.due = now + self._patience
            return
        silent = self.transport.world.silent_for(connection.socket)
        if silent >= self._patience:
            if watch.doubted:
                self._bury(connection, silent)
            else:
                # what has waited for a moment only, after a long silence, is answered by then
                watch.doubted, watch.due = True, now + self._spacing
            return
        watch.doubted, watch.due = False, now + self._patience - silent
        if connection.state is not State.OPEN:
            return
        counts = connection.link.statistics()
        if not counts.slots_pending:
            watch.moved, watch.stuck = -1, None
        elif counts.bytes_sent != watch.moved:
            watch.moved, watch.stuck = counts.bytes_sent, now
        if watch.asked is None or connection.tag in self._frozen:
            return
        if counts.frames_received != watch.heard:
            watch.asked = None
        elif connection.link.paused or self._is_underway(connection, watch, counts.bytes_sent):
            watch.asked = now  # the answer may lie unread, or the question be on its way
        elif now - watch.asked >= self._patience:
            self._frozen[connection.tag] = connection
            if connection.peer is not None:
                self.transport.log.info(
                    "peer %r has answered nothing for %.0f s", *_told(connection, watch, now)
                )
                self.transport.emit(events.PeerFrozen, connection.peer)
        else:
            watch.due = min(watch.due, watch.asked + self._patience)

    def _is_underway(self, connection: Connection, watch: Vigil, sent: int) -> bool:
        """Whether the question waits in the system, behind bytes of which the other side's has
        taken some since the last look."""
        waiting = self.transport.world.unacknowledged(connection.socket)
        taken, watch.taken = watch.taken, sent - waiting if waiting else 0
        return waiting > 0 and watch.taken != taken and watch.taken < watch.question

    def _bury(self, connection: Connection, silent: float) -> None:
        name = connection.peer.name if connection.peer is not None else connection.address[0]
        text = (
            f"peer {name!r} has acknowledged nothing for {silent:.0f} s "
            "(Config.link_timeout); the link is closed"
        )
        self.transport.world.abandon(connection.socket)
        self.transport.switchboard.end(connection, errors.ConnectionClosed(text, peer=name))

    # Whom to give up when there is no room --------------------------------------------------------

    def least_wanted(self) -> Connection | None:
        """The open connection that has been frozen, or has stood still, the longest, and for longer
        than link_timeout; None when there is none. Not one that has something unread: it is we who
        do not take what it was told that we have. O(links); it is the caller's to end."""
        now = self.transport.world.clock()
        found, since = None, now - self._patience
        for connection, watch in self._watched_links():
            quiet = watch.quiet_since()
            if (
                quiet is not None
                and quiet <= since
                and connection.state is State.OPEN
                and self._is_still(connection, watch)
                and not self.transport.switchboard.unread(connection)
            ):
                found, since = connection, quiet
        return found

    @staticmethod
    def _is_still(connection: Connection, watch: Vigil) -> bool:
        """Whether nothing has moved there since it was last looked at."""
        counts = connection.link.statistics()
        if watch.asked is not None and counts.frames_received != watch.heard:
            return False
        return watch.stuck is None or counts.bytes_sent == watch.moved

    # Our own addresses ----------------------------------------------------------------------------

    def start(self) -> None:
        """Hear of changes of this machine's network from now on, where the system tells."""
        self._news = self.transport.world.network_news()
        if self._news is not None:
            self._watched = self.transport.watch(self._news, values.READ, self._hear_news)

    def stop(self) -> None:
        """No longer, and look at nothing any more. May be called again."""
        self.transport.cancel(self._timer)
        self.transport.cancel(self._settling)
        self.transport.unwatch(self._watched)
        self._watched = None
        if self._news is not None:
            self.transport.close_socket(self._news)
            self._news = None

    def _hear_news(self) -> None:
        assert self._news is not None
        self.transport.world.drop_news(self._news)
        if self._settling is None:
            self._settling = self.transport.after(_SETTLE, self._settled)

    def _settled(self) -> None:
        self._settling = None
        if self.transport.closing:
            return
        self.check_addresses()
        self.transport.switchboard.network_changed()
        if self.transport.finder is not None:
            self.transport.finder.look_again()

    def check_addresses(self) -> None:
        """Links that live on an address which this machine no longer has carry nothing any more,
        and no error comes of it: they are ended. An interface that is down keeps its addresses."""
        ours: dict[str, bool] = {}
        for connection, _ in self._watched_links():
            if connection.state is State.CLOSED:
                continue
            try:
                address = connection.socket.getsockname()[0]
            except (OSError, errors.PeerTalkError):
                continue
            if address not in ours:
                ours[address] = self.transport.world.owns(address)
            if not ours[address]:
                name = connection.peer.name if connection.peer is not None else None
                who = f"peer {name!r}" if name else connection.address[0]
                text = (
                    f"the link to {who} lived on {address}, which is no longer an address of "
                    "this machine; the link is closed"
                )
                self.transport.world.abandon(connection.socket)
                self.transport.switchboard.unhouse(
                    connection, errors.NetworkFailure(text, peer=name)
                )


def _told(connection: Connection, watch: Vigil, now: float) -> tuple[str, float]:
    assert connection.peer is not None and watch.asked is not None
    return connection.peer.name, now - watch.asked
