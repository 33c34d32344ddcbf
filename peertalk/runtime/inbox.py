"""Messages that have arrived and wait to be taken, in order, in bounded memory.

What the loop delivers is kept as it came: one list of payloads for each link and turn. Taking works
on the oldest list in place, so that several consumers share it and none can run off with messages
that it does not use.

Invariant: cost is the sum over all lists that were put and not used up. A list counts in full until
its last message is taken, so the bound is soft by one turn's reading of one link. Never: drops,
reorders, blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..protocol.connections import Connection
    from .remote import Remote

MESSAGE_COST = 64
"""Bytes charged for each message beside its payload: what CPython needs to hold it."""


class Lot:
    """The payloads of one link and turn, being taken. peer: whose they are; left: the iterator that
    all consumers share."""

    __slots__ = ("cost", "left", "peer")

    def __init__(self, peer: Remote, payloads: list[bytes], cost: int) -> None:
        self.peer = peer
        self.left: Iterator[bytes] = iter(payloads)
        self.cost = cost


class Inbox:
    """Args:
    limit: cost in bytes above which full is true.
    on_room: called when the cost has fallen to half of the limit after it was full.

    consumers is for those who share it: how many there are. told: connections that were told of a
    level above 0; when the cost has fallen below eases_at, on_ease is called.
    """

    __slots__ = (
        "_lots",
        "_overflowed",
        "consumers",
        "cost",
        "current",
        "eases_at",
        "limit",
        "on_arrival",
        "on_ease",
        "on_room",
        "told",
    )

    def __init__(self, limit: int, on_room: Callable[[Inbox], None]) -> None:
        self.limit = limit
        self.on_room = on_room
        self.on_arrival: Callable[[], None] | None = None
        self.consumers = 0
        self.cost = 0
        self.told: set[Connection] | None = None
        self.eases_at = 0
        self.on_ease: Callable[[Inbox], None] | None = None
        self.current: Lot | None = None
        self._lots: deque[Lot] = deque()
        self._overflowed = False

    def put(self, peer: Remote, payloads: list[bytes], payload_bytes: int) -> bool:
        """Add what one turn brought. Returns whether the inbox is full now: its link should be
        paused until on_room."""
        cost = payload_bytes + MESSAGE_COST * len(payloads)
        self._lots.append(Lot(peer, payloads, cost))
        self.cost += cost
        if self.cost > self.limit:
            self._overflowed = True
        if self.on_arrival is not None:
            self.on_arrival()
        return self._overflowed

    def level(self, before: int) -> int:
        """Pressure: how full it is in quarters, 0 to 3, for one who was told `before`.

        It rises at each quarter and falls an eighth below it. So between two reports an eighth of
        the limit has gone in or out, and a cost that wavers about a quarter is not reported with
        each message.
        """
        eighths = self.cost * 8 // self.limit
        return max(min(3, eighths // 2), min(before, (eighths + 1) // 2))

    def watch(self, connection: Connection, level: int) -> None:
        """It was told of this level, 1 to 3: on_ease when that is no longer so."""
        if self.told is None:
            self.told = set()
        self.told.add(connection)
        self.eases_at = max(self.eases_at, -(-(2 * level - 1) * self.limit // 8))

    def watched(self) -> Iterable[Connection]:
        """Those who were told; watch() begins anew."""
        told, self.told = self.told, None
        self.eases_at = 0
        return told or ()

    def advance(self) -> Lot | None:
        """The lot to take from now: the current one's successor when that is used up. None when
        there is nothing; the caller has found the current one's iterator exhausted before it calls
        again."""
        current = self.current
        if current is not None:
            self.current = None
            self.cost -= current.cost
            if self._overflowed and self.cost * 2 <= self.limit:
                self._overflowed = False
                self.on_room(self)
            if self.cost < self.eases_at and self.on_ease is not None:
                self.on_ease(self)
        if not self._lots:
            return None
        self.current = self._lots.popleft()
        return self.current

    def take(self) -> tuple[Remote, bytes] | None:
        """One message, or None when there is none."""
        lot = self.current
        while True:
            if lot is not None:
                for payload in lot.left:
                    return lot.peer, payload
            lot = self.advance()
            if lot is None:
                return None

    def take_lot(self) -> tuple[Remote, list[bytes]] | None:
        """What is left of one link and turn, never empty; None when there is none."""
        lot = self.current
        while True:
            if lot is not None:
                payloads = list(lot.left)
                if payloads:
                    return lot.peer, payloads
            lot = self.advance()
            if lot is None:
                return None

    def __bool__(self) -> bool:
        """Whether something may be there to take."""
        return self.current is not None or bool(self._lots)
