"""A peer: someone out there, across many links, and its life cycle.

The life cycle is one table: from a state, by what happened, to a state. What is not in the table
must not happen, and raises InvalidState.

    DISCOVERED --dialled--> CONNECTING --opened--> CONNECTED --left--> DISCONNECTING --closed-->
    DISCOVERED
                                |                      |
                                refused                lost --> DISCOVERED
                                v
                             FAILED --dialled--> CONNECTING, --heard--> DISCOVERED

A peer that dials us is CONNECTED from whatever state it was in. The original keeps a FAILED peer
for ever; here it may be dialled again, and hearing it makes it DISCOVERED again.

Invariant: state changes in advance() only; accepted >= reported.
Never: knows a link, a queue's lock or the clock.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import msgspec

from .._numbers import MESSAGE_LIMIT_MAX
from ..errors import InvalidArgument, InvalidState, WrongType, shown
from .rare import Rare

if TYPE_CHECKING:
    from .outbox import Outbox
    from .wire import Capabilities

Key = bytes | tuple[str, int]
"""What a peer is known by: its instance id, or for a classic peer its (IPv4 address, TCP listening
port)."""

FRAGMENTED_MAX = 4096
"""Bytes of the longest message that is sent to a classic peer in fragments: the original puts
together so many, unless it is told otherwise."""


class PeerFlag(enum.IntFlag, boundary=enum.KEEP):
    """What a peer announces of itself. The bits 0x0100 to 0x8000 are the application's:
    PeerFlag(0x0100)."""

    HOST = 0x0001
    """It hosts a session."""
    ACCEPTING = 0x0002
    """It takes connections."""
    SPECTATOR = 0x0004
    """It only watches."""
    READY = 0x0008
    """It is ready to begin."""
    HAS_CAPS = 0x0010
    """It exchanges capabilities. Never needed: all do."""

    @classmethod
    def heard(cls, flags: int) -> PeerFlag:
        """The flags of an announcement, without the three bits that mean nothing."""
        return cls(flags & _MEANT)

    @classmethod
    def checked(cls, flags: int) -> PeerFlag:
        """The flags that a user wants to announce.

        Raises:
            InvalidArgument: they are more than 16 bits. WrongType: they are no whole number.
        """
        if isinstance(flags, bool) or not isinstance(flags, int):
            raise WrongType(f"flags {shown(flags)}: a sum of PeerFlag, or a number")
        if not 0 <= flags <= 0xFFFF:
            raise InvalidArgument(f"flags {shown(flags)}: they have 16 bits, 0 to {0xFFFF:,}")
        return cls(flags)


_MEANT = 0xFF1F


class Latency(msgspec.Struct, frozen=True, gc=False):
    """Smoothed round-trip time of a connection, from PING to PONG.

    rtt: seconds; deviation: mean deviation of the samples from it, seconds; quality: 100 (best),
    90, 75, 50 or 25; samples: how many went in.
    """

    rtt: float
    deviation: float
    quality: int
    samples: int

    @classmethod
    def of(cls, before: Latency | None, sample: float) -> Latency:
        """With one more sample (seconds). The first is taken as it is, with half of it as
        deviation; each later one counts a quarter."""
        if before is None:
            return cls(sample, sample / 2, quality_of(sample), 1)
        rtt = (3 * before.rtt + sample) / 4
        deviation = (3 * before.deviation + abs(sample - before.rtt)) / 4
        return cls(rtt, deviation, quality_of(rtt), before.samples + 1)


def quality_of(rtt: float) -> int:
    """The original's grade of a round-trip time in seconds, 25 to 100."""
    for below, quality in _QUALITIES:
        if rtt < below:
            return quality
    return 25


_QUALITIES = ((0.005, 100), (0.010, 90), (0.020, 75), (0.050, 50))


class PeerState(enum.Enum):
    """Where a peer is in its life."""

    DISCOVERED = "discovered"
    """Known, not connected."""
    CONNECTING = "connecting"
    """Being dialled."""
    CONNECTED = "connected"
    """At least one link is open."""
    DISCONNECTING = "disconnecting"
    """We are leaving: what was accepted is still being sent, nothing more is taken."""
    FAILED = "failed"
    """The last attempt to connect failed."""


class PeerEvent(enum.Enum):
    """What can happen to a peer."""

    HEARD = "heard"
    """An announcement of it came in."""
    DIALLED = "dialled"
    """We began to connect."""
    OPENED = "opened"
    """A link, dialled by either side, is open."""
    REFUSED = "refused"
    """Our attempt to connect failed."""
    LOST = "lost"
    """Its last link ended, and we had not asked for that."""
    LEFT = "left"
    """We began to disconnect."""
    CLOSED = "closed"
    """Its last link ended, or our attempt was given up, as we had asked."""


_S, _E = PeerState, PeerEvent

_NEXT = {
    (_S.DISCOVERED, _E.HEARD): _S.DISCOVERED,
    (_S.DISCOVERED, _E.DIALLED): _S.CONNECTING,
    (_S.DISCOVERED, _E.OPENED): _S.CONNECTED,
    (_S.CONNECTING, _E.HEARD): _S.CONNECTING,
    (_S.CONNECTING, _E.OPENED): _S.CONNECTED,
    (_S.CONNECTING, _E.REFUSED): _S.FAILED,
    (_S.CONNECTING, _E.LOST): _S.FAILED,
    (_S.CONNECTING, _E.LEFT): _S.DISCONNECTING,
    (_S.CONNECTING, _E.CLOSED): _S.DISCOVERED,
    (_S.CONNECTED, _E.HEARD): _S.CONNECTED,
    # both sides dialled: a second link, until one of the two is chosen
    (_S.CONNECTED, _E.OPENED): _S.CONNECTED,
    (_S.CONNECTED, _E.REFUSED): _S.CONNECTED,  # our own dial failed after theirs had come in
    (_S.CONNECTED, _E.LOST): _S.DISCOVERED,
    (_S.CONNECTED, _E.LEFT): _S.DISCONNECTING,
    (_S.DISCONNECTING, _E.HEARD): _S.DISCONNECTING,
    (_S.DISCONNECTING, _E.OPENED): _S.CONNECTED,  # it came back before our leaving was done
    (_S.DISCONNECTING, _E.REFUSED): _S.DISCONNECTING,
    (_S.DISCONNECTING, _E.LOST): _S.DISCOVERED,
    (_S.DISCONNECTING, _E.CLOSED): _S.DISCOVERED,
    (_S.FAILED, _E.HEARD): _S.DISCOVERED,
    (_S.FAILED, _E.DIALLED): _S.CONNECTING,
    (_S.FAILED, _E.OPENED): _S.CONNECTED,
}


PARTING = {_S.CONNECTED: _E.LOST, _S.DISCONNECTING: _E.CLOSED}
"""What the end of the connection in use is for a peer of this state, which has one."""


class Peer:
    """Someone out there.

    Stable while its node lives: hash and equality are those of the object.

    Args:
        key: see Key.
        name: as announced; may be empty, need not be unique.
        address: (IPv4 address, TCP port) to dial, or where it called from.
        own_max_message: the longest message that our side takes and sends, in bytes.
    """

    __slots__ = (
        "_samples",
        "_way",
        "accepted",
        "address",
        "capabilities",
        "key",
        "name",
        "outbox",
        "own_max_message",
        "rare",
        "reported",
        "state",
    )

    flags = Rare(PeerFlag(0))
    by_tcp = Rare(False)
    """Its socket on this host has led to somebody else: from then on it is dialled by TCP."""

    def __init__(
        self,
        key: Key,
        *,
        name: str = "",
        address: tuple[str, int] = ("", 0),
        own_max_message: int = MESSAGE_LIMIT_MAX,
    ) -> None:
        self.rare: dict[str, Any] | None = None
        self.key: Key = key
        self.name = name
        self.address = address
        self.state = PeerState.DISCOVERED
        self._way = 0j
        """The time and the deviation of its latency: one number for each idle peer, not three
        objects."""
        self._samples = 0
        self.capabilities: Capabilities | None = None
        self.outbox: Outbox | None = None
        """Messages that wait; None until the first one does."""
        self.own_max_message = own_max_message
        self.accepted = 0
        """Number of the last message that was accepted, 0: none. Also how many were."""
        self.reported = 0
        """Messages whose end (Sent or Failed) was reported."""

    @property
    def own_max_frame(self) -> int:
        """The longest message in bytes that our side takes and sends in one frame of the original's
        form: it is its node's, and no peer keeps it."""
        return MESSAGE_LIMIT_MAX

    @property
    def instance(self) -> bytes | None:
        """Its instance id, 8 bytes; None for a classic peer."""
        key = self.key
        return key if isinstance(key, bytes) else None

    @property
    def id(self) -> str:
        """Unique while the node lives: the instance id as 16 hexadecimal digits, or "address:port"
        for a classic peer."""
        return self.key.hex() if isinstance(self.key, bytes) else f"{self.key[0]}:{self.key[1]}"

    @property
    def classic(self) -> bool:
        """It speaks the original protocol only."""
        return not isinstance(self.key, bytes)

    @property
    def latency(self) -> Latency | None:
        """Of the present connection, or of the last one; None before the first answer to a PING."""
        rtt, deviation = self._way.real, self._way.imag
        return Latency(rtt, deviation, quality_of(rtt), self._samples) if self._samples else None

    @latency.setter
    def latency(self, latency: Latency | None) -> None:
        self._way = 0j if latency is None else complex(latency.rtt, latency.deviation)
        self._samples = 0 if latency is None else latency.samples

    @property
    def queued(self) -> int:
        """Messages accepted that no link has taken."""
        return 0 if self.outbox is None else len(self.outbox)

    @property
    def handed(self) -> int:
        """Messages that were given to a link, at least in part, or will not be."""
        return self.accepted - self.queued

    @property
    def connected(self) -> bool:
        """A link is open and messages are taken."""
        return self.state is PeerState.CONNECTED

    @property
    def max_message(self) -> int:
        """Longest message in bytes that can be sent to it: the smaller limit of the two sides.

        A classic peer takes up to 4,096 bytes (our own limit, if that is smaller) in fragments
        where its own limit is below that, and before its capabilities are in. Of any other peer
        whose capabilities are not in: our own limit.
        """
        said = self.capabilities
        if not self.classic and (said is None or self.largest):
            return self.largest or self.own_max_message
        theirs = FRAGMENTED_MAX if said is None else said.max_message
        if self.classic:
            theirs = max(theirs, FRAGMENTED_MAX)
        return min(self.own_max_message, self.own_max_frame, theirs)

    @property
    def largest(self) -> int:
        """Bytes of the longest message that it takes in the wide form; 0: it, or our side, takes
        none, or it has not said so."""
        said = self.capabilities
        theirs = 0 if said is None or said.largest is None else said.largest
        ours = self.own_max_message
        return min(ours, theirs) if ours > MESSAGE_LIMIT_MAX else 0

    def advance(self, event: PeerEvent) -> PeerState:
        """Take the arrow of the table that leaves the present state by this event; the state that
        it leads to.

        Raises:
            InvalidState: there is none; nothing has changed.
        """
        following = _NEXT.get((self.state, event))
        if following is None:
            raise InvalidState(
                f"peer {self.name!r} is {self.state.value}: {event.value!r} cannot happen to it "
                "there",
                peer=self.name,
            )
        self.state = following
        return following

    def __repr__(self) -> str:
        kind = "classic" if self.classic else self.id[:8]
        return f"<Peer {self.name!r} {kind} {self.state.value} {self.address[0]}:{self.address[1]}>"
