"""Which link carries which message: open, greet, choose between two, retire, close; whom to dial,
and when again.

A connection lives by one table:

    IDLE -> CONNECTING -> GREETING -> OPEN -> RETIRING -> CLOSED
                 \\            \\         \\-> CLOSING -> CLOSED

GREETING ends with the other side's CAPABILITY, or after GREETING_TIME when we dialled a peer that
never sends one (it counts as classic). No DATA leaves before. Of two connections between the same
two nodes the one dialled by the smaller instance id stays. The other retires: it is shut for
writing and read to its end, and until then what arrives on the first is held back, so nothing is
lost or overtaken. Why that is enough: a side sends DATA on the one that loses only before it knows
of the one that stays, and so before any DATA on that one.

A second connection with a classic peer is ASIDE: read, and not sent on; see classics.

Invariant: a peer has at most one OPEN connection. Never: opens a socket, sends a byte, reads a
clock.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import errors
from .outbox import Handed, Pieces

if TYPE_CHECKING:
    from .peer import Peer

Address = tuple[str, int]

GREETING_TIME = 1.0
"""Seconds after which a dialled peer that sent no CAPABILITY counts as classic."""
SILENCE_TIME = 5.0
"""Seconds after which an accepted connection that sent no whole frame is closed."""
RETRY_DELAYS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds before each further attempt to reach a peer for which messages wait; then they fail."""
PINGS_PER_TURN = 8
"""PINGs that leave together: each borrows a slot buffer for as long as it takes, and a node may
have many peers."""
PING_SPACING_MIN = 0.01
"""Seconds between two such groups, at least."""

OWES_PRESSURE = 1
"""A CAPABILITY with our pressure found no room and leaves when there is some."""
OWES_PING = 2
"""Likewise a PING that somebody waits for."""


class State(enum.Enum):
    """Where a connection is in its life."""

    IDLE = "idle"
    CONNECTING = "connecting"
    GREETING = "greeting"
    OPEN = "open"
    ASIDE = "aside"
    RETIRING = "retiring"
    CLOSING = "closing"
    CLOSED = "closed"


class Step(enum.Enum):
    """What happens to a connection."""

    DIAL = "dial"
    ESTABLISH = "establish"
    GREET = "greet"
    STEP_ASIDE = "step-aside"
    USE = "use"
    RETIRE = "retire"
    LEAVE = "leave"
    END = "end"


_NEXT: dict[tuple[State, Step], State] = {
    (State.IDLE, Step.DIAL): State.CONNECTING,
    (State.IDLE, Step.ESTABLISH): State.GREETING,  # accepted
    (State.CONNECTING, Step.ESTABLISH): State.GREETING,
    (State.GREETING, Step.GREET): State.OPEN,
    (State.GREETING, Step.STEP_ASIDE): State.ASIDE,  # a second one with a classic peer
    (State.OPEN, Step.STEP_ASIDE): State.ASIDE,
    (State.ASIDE, Step.USE): State.OPEN,
    (State.ASIDE, Step.RETIRE): State.RETIRING,
    (State.ASIDE, Step.LEAVE): State.CLOSING,
    (State.GREETING, Step.RETIRE): State.RETIRING,
    (State.GREETING, Step.LEAVE): State.CLOSING,
    (State.OPEN, Step.RETIRE): State.RETIRING,
    (State.OPEN, Step.LEAVE): State.CLOSING,
    (State.RETIRING, Step.LEAVE): State.CLOSING,
    # the other side came back before our leaving was done
    (State.CLOSING, Step.RETIRE): State.CLOSING,
    **{(state, Step.END): State.CLOSED for state in State if state is not State.CLOSED},
}


class Connection:
    """One connection, from dial or accept to its end.

    tag: its number in the loop; address: the remote end; dialled: by us; peer: whose it is, None
    until known; classes: it carried messages of other classes than NORMAL; handed: the messages
    that its link was given and has not reported; pieces: the rest of a message of which it was
    given a part, None when there is none; held: events kept back while another connection is read
    to its end, None when nothing is held; left: when we said that we leave, None before;
    reassembly: of fragments, None until one came; pinged: when the PING left that awaits its PONG,
    None when none does; spoilt: that PONG will measure nothing; pressure: the level of ours that
    the other side was told last, 0 to 3; owed: what waits for room, a sum of OWES_*; rejection: why
    we send the peer away; socket and link belong to the runtime.
    """

    __slots__ = (
        "address",
        "classes",
        "dialled",
        "failure",
        "handed",
        "held",
        "left",
        "link",
        "on_end",
        "owed",
        "peer",
        "pieces",
        "pinged",
        "pressure",
        "reached",
        "reassembly",
        "rejection",
        "since",
        "socket",
        "spoilt",
        "state",
        "tag",
        "timer",
        "waits_for",
        "watch",
    )

    def __init__(
        self, tag: int, address: Address, *, dialled: bool, now: float, peer: Peer | None = None
    ) -> None:
        self.tag = tag
        self.address = address
        self.dialled = dialled
        self.peer = peer
        self.since = now
        self.state = State.IDLE
        self.classes = False
        self.handed = Handed()
        self.pieces: Pieces | None = None
        self.held: deque[Any] | None = None
        self.left: float | None = None
        self.waits_for: AbstractSet[int] | None = None
        self.failure: errors.PeerTalkError | None = None
        self.reached: Any = None
        self.on_end: tuple[Callable[[], object], ...] = ()
        self.pinged: float | None = None
        self.spoilt = False
        self.pressure = 0
        self.owed = 0
        self.rejection: errors.RejectReason | None = None
        self.socket: Any = None
        self.link: Any = None
        self.reassembly: Any = None
        self.watch: Any = None
        self.timer: Any = None

    def advance(self, step: Step) -> None:
        """Take a step of the table.

        Raises:
            InvalidState: the table has no such arrow.
        """
        following = _NEXT.get((self.state, step))
        if following is None:
            where = f"{self.address[0]}:{self.address[1]}"
            raise errors.InvalidState(
                f"connection {self.tag} to {where}: {step.value} is not allowed while "
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
            f"{self.address[0]}:{self.address[1]} {self.state.value}>"
        )


class Former(NamedTuple):
    """An open connection that has ended: who dialled it, and from when until when it was open and
    not being left by us, seconds."""

    dialled: bool
    since: float
    until: float


def stays(
    existing: Connection | Former,
    newer: Connection,
    own: bytes,
    theirs: bytes,
    connect_timeout: float,
) -> Connection | Former:
    """Which of two connections between the instances own and theirs stays.

    Two that crossed: the one dialled by the smaller id. Two of the same dialler, or too far apart
    in time to have crossed: the newer one, since nobody dials while it has a connection, so its
    dialler has given up the other.
    """
    apart = newer.since - existing.since
    if existing.dialled == newer.dialled:
        return newer if apart >= 0 else existing  # a greeting may be late
    if apart > connect_timeout + 2 * GREETING_TIME:
        return newer
    dialled, accepted = (existing, newer) if existing.dialled else (newer, existing)
    return dialled if own < theirs else accepted


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


class Connections:
    """All connections of a node, by tag and by peer, with a bound.

    Args:
        max_connections: connections that exist at once, of any state; more are refused.
    """

    def __init__(self, max_connections: int) -> None:
        self.max_connections = max_connections
        self.by_tag: dict[int, Connection] = {}
        self.refused = 0

    def __len__(self) -> int:
        return len(self.by_tag)

    def has_room(self) -> bool:
        """Whether one more connection may exist; counts a refusal when not."""
        if len(self.by_tag) < self.max_connections:
            return True
        self.refused += 1
        return False

    def add(self, connection: Connection) -> None:
        """Know a connection from now on."""
        self.by_tag[connection.tag] = connection

    def remove(self, connection: Connection) -> None:
        """Forget it, and let those go on that waited for its end."""
        self.by_tag.pop(connection.tag, None)

    def dialling(self, peer: Peer) -> Connection | None:
        """The dial to this peer that is under way (connecting or greeting), if any."""
        for connection in self.by_tag.values():
            if (
                connection.peer is peer
                and connection.dialled
                and connection.state in (State.CONNECTING, State.GREETING)
            ):
                return connection
        return None

    def dialling_to(self, address: Address) -> Connection | None:
        """The dial to this address that is under way, if any."""
        for connection in self.by_tag.values():
            if (
                connection.address == address
                and connection.dialled
                and connection.state in (State.CONNECTING, State.GREETING)
            ):
                return connection
        return None

    def unsettled(self, connection: Connection, now: float) -> set[int]:
        """Tags of connections that may turn out to be a second one between the same two nodes and
        to carry earlier DATA: those still being greeted with the same remote host, until they have
        been silent for so long that they are closed. Empty once connection is old enough that no
        dial can have crossed it: so a silent stranger on a peer's host can hold up what that peer
        sends in its first seconds, and nothing else."""
        if (
            connection.state is not State.OPEN
            or now - connection.since > GREETING_TIME + SILENCE_TIME
        ):
            return set()  # one that is being left carries what came before any other
        host = connection.address[0]
        return {
            other.tag
            for other in self.by_tag.values()
            if other is not connection
            and other.address[0] == host
            and other.state is State.GREETING
            and now - other.since < SILENCE_TIME
            # a later one of the same dialler carries later DATA
            and (other.dialled != connection.dialled or other.since < connection.since)
            and (other.peer is None or other.peer is connection.peer)
        }
