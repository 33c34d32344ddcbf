"""What a node reports, as frozen values to `match` on.

Messages to a peer are numbered from 1 in the order in which send() accepted them, across
reconnects. Each accepted message is reported as Sent or as Failed, once; but a Sent may be taken
back when its connection ends: then one Failed, UNKNOWN, follows it and is the last word. The Sent
of one connection come in the order in which messages were handed to it, which is the order of their
numbers where all are of one class; a Failed may come at any time, and what a connection that is
being replaced still has to say may come after what the next one says.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

import msgspec

from ..errors import PeerTalkError, RejectReason


class Rejecting(Protocol):
    """A peer as a front door hands it out, as far as an event calls it."""

    def reject(self, reason: RejectReason = ...) -> None:
        """Send the peer away; reason: what it is told of why."""


P = TypeVar("P", bound=Rejecting)
"""The kind of peer that a front door hands out: it can be used in the events of that door without a
cast."""

_KEPT_MAX = 4096
"""Events that wait for one reader, beside those that it began with."""


class LostReason(enum.Enum):
    """Why a peer is no longer known."""

    TIMEOUT = "timeout"
    """Not heard of for Config.peer_timeout seconds."""
    GOODBYE = "goodbye"
    """It said that it leaves."""
    EVICTED = "evicted"
    """The table of peers was full and this one had been silent the longest."""
    CLOSED = "closed"
    """Its connection ended, and it does not announce itself."""
    RESTARTED = "restarted"
    """Its program was started again: Peer.successor is its new life."""


class Outcome(enum.Enum):
    """What became of messages that were accepted and cannot be reported as sent."""

    FAILED = "failed"
    """Never handed to the system: the peer has not got them."""
    UNKNOWN = "unknown"
    """Handed to the system, at least in part, and never confirmed by the peer's system before the
    connection ended: the peer may have got them."""
    REPLACED = "replaced"
    """Never handed to the system: a later message with the same key took their place."""


class PeerFound(msgspec.Struct, Generic[P], frozen=True):
    """A peer became known: its announcement was heard, or it connected to this node."""

    peer: P


class PeerLost(msgspec.Struct, Generic[P], frozen=True):
    """An unconnected peer is no longer known."""

    peer: P
    reason: LostReason


class NameCollision(msgspec.Struct, Generic[P], frozen=True):
    """Two who are there have one name. Reported once for each peer while the peer is known. Their
    ids tell the two apart."""

    peer: P
    """The peer that came later."""
    other: P | None
    """The peer that had the name before; None: this node itself."""


class ConnectionRequested(msgspec.Struct, Generic[P], frozen=True):
    """A peer that was not connected has dialled this node and said who it is. The peer is accepted
    unless reject() is called."""

    peer: P

    def reject(self, reason: RejectReason = RejectReason.UNSPECIFIED) -> None:
        """Send the peer away: the reason goes out, then the connection is closed. Messages that
        wait for the peer fail; messages that came from the peer are delivered.

        On the node's loop only (peertalk.sync: any thread). A peer that is no longer connected is
        left alone. The original closes without looking at the reason.
        """
        self.peer.reject(reason)


class PeerChanged(msgspec.Struct, Generic[P], frozen=True):
    """A known peer announces another name or other flags."""

    peer: P


class PeerConnected(msgspec.Struct, Generic[P], frozen=True):
    """A connection to the peer is open and the peer's capabilities are known: a message that is
    sent now leaves at once."""

    peer: P


class PeerDisconnected(msgspec.Struct, Generic[P], frozen=True):
    """The last connection to the peer ended."""

    peer: P
    error: PeerTalkError | None
    """Why it ended; None when one of the two sides ended it in good order. ConnectionRefused, with
    its reason: the peer rejected this node."""


class PeerFrozen(msgspec.Struct, Generic[P], frozen=True):
    """A connected peer has not answered a PING for Config.link_timeout. Its machine may be there,
    but its program stands still, or takes nothing. The connection stays, and messages to the peer
    wait. PeerThawed or PeerDisconnected follows."""

    peer: P


class PeerThawed(msgspec.Struct, Generic[P], frozen=True):
    """A frozen peer has said something."""

    peer: P


class Sent(msgspec.Struct, Generic[P], frozen=True):
    """The system took the last byte of the messages numbered first to last, both included.

    While the connection lives, the messages are on their way. When the connection ends, messages
    that the peer's system has not acknowledged by then become Failed with UNKNOWN, together with
    all that was written in one piece with them. The other messages have reached the peer's system.
    On other systems than Linux, which do not tell what was acknowledged, nothing becomes Failed.
    """

    peer: P
    first: int
    """Number of the first message; messages to a peer are counted from 1."""
    last: int
    """Number of the last message."""


class Failed(msgspec.Struct, Generic[P], frozen=True):
    """The messages numbered first to last, both included, will not be sent, or not again. Messages
    that were reported as Sent may become Failed once, with the outcome UNKNOWN."""

    peer: P
    first: int
    """Number of the first message; messages to a peer are counted from 1."""
    last: int
    """Number of the last message."""
    outcome: Outcome
    """Whether the peer may have got the messages."""
    error: PeerTalkError
    """Why the messages failed."""


class LinkFault(msgspec.Struct, Generic[P], frozen=True):
    """A connection was ended because the other side broke the rules of the protocol."""

    address: tuple[str, int]
    """(IPv4 address, port) of the other end."""
    peer: P | None
    """The peer at the other end; None when it had not said who it is."""
    error: PeerTalkError
    """Which rule was broken."""


class EventsMissed(msgspec.Struct, frozen=True):
    """This consumer was too slow, and events were dropped at this place of its stream. Messages are
    never dropped."""

    count: int
    """Number of the events that were dropped."""


Event = (
    PeerFound[P]
    | PeerLost[P]
    | PeerChanged[P]
    | NameCollision[P]
    | ConnectionRequested[P]
    | PeerConnected[P]
    | PeerDisconnected[P]
    | PeerFrozen[P]
    | PeerThawed[P]
    | Sent[P]
    | Failed[P]
    | LinkFault[P]
    | EventsMissed
)
"""Any event; Event[Peer] for those of one front door."""


class EventQueue(Generic[P]):
    """Events that wait for one reader, in order and bounded: what comes when 4,096 wait is counted,
    and an EventsMissed stands in its place.

    Args:
        beginning: what is true already.
    """

    __slots__ = ("_kept", "_max", "_missed")

    def __init__(self, beginning: Iterable[Event[P]]) -> None:
        self._kept: deque[Event[P]] = deque(beginning)
        self._max = len(self._kept) + _KEPT_MAX
        self._missed = 0

    def put(self, event: Event[P]) -> None:
        """Add one, or count it as missed."""
        # once some are missed, all are until that is told: it has a place among the others
        if self._missed or len(self._kept) >= self._max:
            self._missed += 1
        else:
            self._kept.append(event)

    def take(self) -> Event[P] | None:
        """The next one; None: there is none. An exception that a signal handler raises loses
        none."""
        if self._kept:
            event = self._kept[0]
            del self._kept[0]  # as popleft(), after which a handler may be called
            return event
        if self._missed:
            missed = EventsMissed(self._missed)
            self._missed = 0
            return missed
        return None

    def put_back(self, event: Event[P] | None) -> None:
        """What was taken last and nobody got is the next again; None: that was nothing."""
        if event is not None:
            self._kept.appendleft(event)

    def __len__(self) -> int:
        """How many take() gives."""
        return len(self._kept) + bool(self._missed)
