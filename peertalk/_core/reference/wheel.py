"""Deadlines in ticks. The yardstick of the C timer wheel: two heaps and no cleverness.

Ticks count modulo 2^32 at the door; inside, time is a plain number that never wraps. A timer that
is armed again or cancelled leaves its old entry in the heap, which is skipped when it comes up.
"""

from __future__ import annotations

import heapq
from itertools import count

_Entry = tuple[int, int, int]  # deadline, order of arming, key


def _ahead(later: int, earlier: int) -> int:
    """Ticks from earlier to later on a clock of 32 bits, -2^31 to 2^31 - 1."""
    return (later - earlier + 2**31) % 2**32 - 2**31


class TimerWheel:
    """Deadlines under integer keys.

    Args:
        now: the tick at the start, 0 to 2^32 - 1.
    """

    def __init__(self, now: int = 0) -> None:
        self._now = now % 2**32
        self._order = count()
        self._armed: dict[int, _Entry] = {}
        self._waiting: list[_Entry] = []
        self._due: list[_Entry] = []

    def arm(self, key: int, deadline: int) -> None:
        """Expire at deadline, a tick less than 2^31 ahead; one that has passed expires at the next
        advance(). An armed key is moved."""
        entry = (self._now + _ahead(deadline, self._now), next(self._order), key)
        self._armed[key] = entry
        heapq.heappush(self._waiting, entry)

    def cancel(self, key: int) -> None:
        """Never expire. Nothing happens when the key is not armed."""
        self._armed.pop(key, None)

    def advance(self, now: int) -> None:
        """Move time forward to now; an earlier now changes nothing."""
        ticks = _ahead(now, self._now)
        if ticks < 0:
            return
        self._now += ticks
        while self._waiting and self._waiting[0][0] <= self._now:
            heapq.heappush(self._due, heapq.heappop(self._waiting))

    def expire(self) -> int | None:
        """Take one key whose deadline has come: the earliest, of equal ones the one armed first.
        None when none is due."""
        self._skip_stale(self._due)
        if not self._due:
            return None
        key = heapq.heappop(self._due)[2]
        del self._armed[key]
        return key

    def next(self) -> int | None:
        """Ticks from now until advance() has work: 0 when a key is due; None when none is armed."""
        self._skip_stale(self._due)
        self._skip_stale(self._waiting)
        if self._due:
            return 0
        return max(0, self._waiting[0][0] - self._now) if self._waiting else None

    @property
    def armed(self) -> int:
        """Keys that are armed, due ones included."""
        return len(self._armed)

    def _skip_stale(self, heap: list[_Entry]) -> None:
        while heap and self._armed.get(heap[0][2]) != heap[0]:
            heapq.heappop(heap)
