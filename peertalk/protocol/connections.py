"""One connection and its life; all connections of a node, with their bounds.

A connection lives by one table. The road of most:

    IDLE -> CONNECTING -> GREETING -> GREETED -> OPEN -> CLOSING -> CLOSED

GREETING ends with the other side's CAPABILITY; how long it is waited for, and what is done then,
says greetings.patience(). GREETED ends when the connection is used, which its line decides
(line.py); a connection with a peer that knows no places is OPEN at once. DRAINING: it is over for
the other side, or for us (left in vain, or dead), and what has arrived is read. RETIRING: another
one is used in its place, with a peer that knows no places; it is shut and read to its end. ASIDE: a
second connection with a classic peer, read and not sent on; see classics.

A connection that ends young counts as a failed attempt (reaching.after_loss()), so whoever resets
connections as fast as they are made meets RETRY_DELAYS.

Invariant: a peer has at most one OPEN connection. Never: opens a socket, sends a byte, reads a
clock.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import errors
from .addresses import Address
from .large import Offering, Word
from .outbox import Handed
from .pieces import Pieces
from .rare import Rare

if TYPE_CHECKING:
    from .peer import Peer


GREETING_TIME = 1.0
"""Seconds after which a dialled peer that sent no CAPABILITY counts as classic, and is sent what an
original takes. It may still be one of ours that is slow, so what is longer waits until
Config.connect_timeout is over."""
SILENCE_TIME = 5.0
"""Seconds after which an accepted connection that sent no whole frame is closed."""
RETRY_DELAYS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds before each further attempt to reach a peer for which messages wait; then they fail."""
YOUNG = 1.0
"""Seconds; a connection that was used for less and then broke counts as a failed attempt."""
PINGS_PER_TURN = 8
"""PINGs that leave together: each borrows a slot buffer for as long as it takes, and a node may
have many peers."""
PING_SPACING_MIN = 0.01
"""Seconds between two such groups, at least."""

OWES_PRESSURE = 1
"""A CAPABILITY with our pressure found no room and leaves when there is some."""
OWES_PING = 2
"""Likewise a PING that somebody waits for."""
OWES_WIDE = 4
"""Likewise what is to be said about large messages; see unsaid of a Connection."""


class State(enum.Enum):
    """Where a connection is in its life."""

    IDLE = "idle"
    CONNECTING = "connecting"
    GREETING = "greeting"
    GREETED = "greeted"
    OPEN = "open"
    ASIDE = "aside"
    RETIRING = "retiring"
    DRAINING = "draining"
    CLOSING = "closing"
    CLOSED = "closed"


class Step(enum.Enum):
    """What happens to a connection."""

    DIAL = "dial"
    ESTABLISH = "establish"
    IDENTIFY = "identify"
    USE = "use"
    GREET = "greet"
    STEP_ASIDE = "step-aside"
    RETIRE = "retire"
    DRAIN = "drain"
    LEAVE = "leave"
    END = "end"


_NEXT: dict[tuple[State, Step], State] = {
    (State.IDLE, Step.DIAL): State.CONNECTING,
    (State.IDLE, Step.ESTABLISH): State.GREETING,  # accepted
    (State.CONNECTING, Step.ESTABLISH): State.GREETING,
    (State.GREETING, Step.GREET): State.OPEN,  # a peer that knows no places
    (State.GREETED, Step.GREET): State.OPEN,  # ... or has taken us for one
    (State.GREETING, Step.IDENTIFY): State.GREETED,
    (State.GREETED, Step.USE): State.OPEN,
    (State.GREETED, Step.DRAIN): State.DRAINING,
    (State.GREETING, Step.STEP_ASIDE): State.ASIDE,  # a second one with a classic peer
    (State.OPEN, Step.STEP_ASIDE): State.ASIDE,
    (State.ASIDE, Step.USE): State.OPEN,
    (State.ASIDE, Step.RETIRE): State.RETIRING,
    (State.ASIDE, Step.LEAVE): State.CLOSING,
    (State.GREETING, Step.RETIRE): State.RETIRING,
    (State.GREETING, Step.LEAVE): State.CLOSING,
    (State.OPEN, Step.RETIRE): State.RETIRING,
    (State.OPEN, Step.DRAIN): State.DRAINING,
    (State.OPEN, Step.LEAVE): State.CLOSING,
    (State.RETIRING, Step.LEAVE): State.CLOSING,
    (State.RETIRING, Step.DRAIN): State.DRAINING,
    (State.CLOSING, Step.DRAIN): State.DRAINING,  # it is over for the other side
    # the other side came back before our leaving was done
    (State.CLOSING, Step.RETIRE): State.CLOSING,
    **{(state, Step.END): State.CLOSED for state in State if state is not State.CLOSED},
}


class Connection:
    """One connection, from dial or accept to its end.

    tag: its number in the loop; host, port: the remote end; dialled: by us; peer: whose it is, None
    until known; addressed: the instance that our greeting was meant for; number: of the dial that
    made it, counted by the side that dialled, 0: not known; place: of all that were used with its
    peer, 0: not used; told: the other side has said here what is over for it; waits_for: tags of
    connections that are to be read before it; held: events kept back meanwhile, None when nothing
    is held; since: when it was begun, was established, was used; left: when we said that we leave,
    None before; deadline: when that is given up; classes: it carried messages of other classes than
    NORMAL; handed: the messages that its link was given and has not reported; pieces: the rest of a
    message of which it was given a part, None when there is none; reassembly: of fragments, None
    until one came; pinged: when the PING left that awaits its PONG, None when none does; spoilt:
    that PONG will measure nothing; pressure: the level of ours that the other side was told last, 0
    to 3; owed: what waits for room, a sum of OWES_*; rejection: why we send the peer away; slow: it
    counts as classic for want of a word, and may be one of ours yet; due: when its link is looked
    at next, inf while it has none; vigil: what that look must remember; offering: the large
    messages on their way, None before the first; unsaid: GRANT, REFUSE for which there was no room;
    socket, link and timer belong to the runtime; local: that socket is one of this host, and not
    TCP's.
    """

    __slots__ = (
        "classes",
        "dialled",
        "due",
        "handed",
        "held",
        "host",
        "link",
        "local",
        "number",
        "owed",
        "peer",
        "place",
        "port",
        "pressure",
        "rare",
        "since",
        "socket",
        "state",
        "tag",
        "told",
    )

    addressed = Rare[bytes | None](None)
    deadline = Rare(math.inf)
    failure = Rare[errors.PeerTalkError | None](None)
    left = Rare[float | None](None)
    offering = Rare[Offering | None](None)
    on_end = Rare[tuple[Callable[[], object], ...]](())
    pieces = Rare[Pieces | None](None)
    pinged = Rare[float | None](None)
    reached = Rare[tuple[Any, ...]](())
    reassembly = Rare[Any](None)
    rejection = Rare[errors.RejectReason | None](None)
    slow = Rare(False)
    spoilt = Rare(False)
    timer = Rare[Any](None)
    unsaid = Rare[tuple[Word, ...]](())
    vigil = Rare[Any](None)
    waits_for = Rare[frozenset[int]](frozenset())

    def __init__(
        self, tag: int, address: Address, *, dialled: bool, now: float, peer: Peer | None = None
    ) -> None:
        self.rare: dict[str, Any] | None = None
        self.tag = tag
        self.host, self.port = address
        self.dialled = dialled
        self.local = False
        self.peer = peer
        self.since = now
        self.state = State.IDLE
        self.number = 0
        self.place = 0
        self.told = False
        self.classes = False
        self.handed = Handed()
        self.held: deque[Any] | None = None
        self.pressure = 0
        self.owed = 0
        self.socket: Any = None
        self.link: Any = None
        self.due = math.inf

    @property
    def address(self) -> Address:
        """The remote end. Made anew each time: a tuple has 64 bytes."""
        return self.host, self.port

    @property
    def where(self) -> str:
        """The remote end, in messages."""
        return f"{self.host}:{self.port}"

    @property
    def name(self) -> str | None:
        """What its peer is called; None: nobody knows yet whose it is."""
        return None if self.peer is None else self.peer.name

    @property
    def who(self) -> str:
        """Its peer, as far as that is known, in messages."""
        return f"peer {self.name!r}" if self.name else self.where

    def advance(self, step: Step) -> None:
        """Take a step of the table.

        Raises:
            InvalidState: the table has no such arrow.
        """
        following = _NEXT.get((self.state, step))
        if following is None:
            raise errors.InvalidState(
                f"connection {self.tag} to {self.where}: {step.value} is not allowed while "
                f"{self.state.value}"
            )
        self.state = following

    def may_ping(self, now: float, patience: float) -> bool:
        """Whether a PING may leave: one at a time, and one without an answer for patience seconds
        is given up."""
        return self.pinged is None or now - self.pinged >= patience

    def ping_left(self, now: float, *, paused: bool) -> None:
        """A PING is on its way. paused: the link is not read now, so that the answer will lie
        unread."""
        # the next PONG may be a late one to the PING that was given up
        self.spoilt = paused or self.pinged is not None
        self.pinged = now

    def pong(self, now: float) -> float | None:
        """A PONG has come. The round-trip time in seconds; None when nothing had asked for it, or
        it measures nothing."""
        pinged, self.pinged = self.pinged, None
        return None if pinged is None or self.spoilt else now - pinged

    @property
    def alive(self) -> bool:
        """Established, and not yet on its way out."""
        return self.state in (State.GREETING, State.OPEN, State.ASIDE)

    def __repr__(self) -> str:
        return (
            f"<Connection {self.tag} {'to' if self.dialled else 'from'} "
            f"{self.where} {self.state.value}>"
        )


def ping_spacing(count: int, interval: float) -> float:
    """Seconds between two groups of PINGs so that each of count connections has its turn once in
    interval seconds."""
    return max(PING_SPACING_MIN, interval * PINGS_PER_TURN / max(count, PINGS_PER_TURN))


def reject_reason(payload: bytes) -> errors.RejectReason:
    """The reason in a REJECT; what is none of ours is UNSPECIFIED."""
    try:
        return errors.RejectReason(payload[0])
    except (IndexError, ValueError):
        return errors.RejectReason.UNSPECIFIED


def checked_reason(reason: int) -> errors.RejectReason:
    """The reason for which a user rejects a peer.

    Raises:
        InvalidArgument: there is no such reason.
    """
    if not isinstance(reason, int) or reason not in tuple(errors.RejectReason):
        raise errors.InvalidArgument(
            f"reason {errors.shown(reason)}: it is one of peertalk.RejectReason, UNSPECIFIED 0 to "
            "IN_PROGRESS 4"
        )
    return errors.RejectReason(reason)


class Connections:
    """All connections of a node, by tag and by peer, with a bound.

    Args:
        max_connections: connections that exist at once, of any state; more are refused.
    """

    def __init__(self, max_connections: int) -> None:
        self.max_connections = max_connections
        self.by_tag: dict[int, Connection] = {}
        self.refused = 0
        self.connected = 0
        """Peers that are connected."""
        self.last_number = 0
        """Of our last dial."""
        self.last_place = 0
        """The highest that we have given a connection, with whomever: see Line."""
        self.direct: dict[int, tuple[Connection, Any, Any]] | None = None
        """Those whose next message may be taken without a turn, by tag, each with its peer and what
        users have of that; while the connection stays as it is. None: nobody takes so."""
        self._young: dict[int, Connection] = {}
        """Those that had not said whose they are when they were looked at last, by tag."""

    def __len__(self) -> int:
        return len(self.by_tag)

    def let_be_taken(self, connection: Connection, view: object) -> None:
        """Its next message is its receiver's alone, until take_in_turns()."""
        if self.direct is not None:
            self.direct[connection.tag] = connection, connection.peer, view

    def take_in_turns(self) -> None:
        """Nothing is taken without a turn, until the next turn has found what may be."""
        if self.direct:
            self.direct.clear()

    def has_room(self) -> bool:
        """Whether one more connection may exist; counts a refusal when not."""
        if len(self.by_tag) < self.max_connections:
            return True
        self.refused += 1
        return False

    def next_number(self) -> int:
        """For a dial: 4 bytes on the wire, which ten dials a second use up in thirteen years."""
        self.last_number += 1
        return self.last_number

    def add(self, connection: Connection) -> None:
        """Know a connection from now on."""
        self.by_tag[connection.tag] = self._young[connection.tag] = connection

    def remove(self, connection: Connection) -> None:
        """Know a connection no longer, neither by its tag nor among those that have not said whose
        they are. Nothing happens when it is not known."""
        self.by_tag.pop(connection.tag, None)
        self._young.pop(connection.tag, None)

    @property
    def undecided(self) -> list[Connection]:
        """Those that have not said whose they are: few, however many there are in all."""
        settled = [
            connection
            for connection in self._young.values()
            if connection.state not in (State.IDLE, State.CONNECTING, State.GREETING)
        ]
        for connection in settled:
            del self._young[connection.tag]
        return list(self._young.values())

    def dialling(self, peer: Peer) -> Connection | None:
        """The dial to this peer that is under way (connecting or greeting), if any."""
        return next((each for each in self.undecided if each.peer is peer and each.dialled), None)

    def dialling_since(self, peer: Peer, now: float) -> float | None:
        """Since when it is, None: it is not. One over a socket of this host is as good as new:
        nothing of it can have been lost with a network."""
        under_way = self.dialling(peer)
        if under_way is None:
            return None
        return now if under_way.local else under_way.since

    def dialling_to(self, address: Address) -> Connection | None:
        """The dial to this address that is under way, if any."""
        return next(
            (each for each in self.undecided if each.address == address and each.dialled), None
        )
