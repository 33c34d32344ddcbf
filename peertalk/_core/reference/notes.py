"""Notes of what a link of the reference core reported as sent: which of its messages the other
side's system has not acknowledged. One note covers what one turn reported."""

from __future__ import annotations

from collections import deque

from peertalk._numbers import LINK_NOTES


class Notes:
    """Of one link, oldest first. Positions are counts of bytes in the stream."""

    def __init__(self) -> None:
        self._list: deque[list[int]] = deque()
        """(messages, where the last of them ended)."""
        self._turn = 0

    def __len__(self) -> int:
        return len(self._list)

    def need_room(self, turn: int) -> bool:
        """Whether messages of this turn want one note more than there should be."""
        return len(self._list) >= LINK_NOTES and turn != self._turn

    def make_room(self, acknowledged: int) -> None:
        """Forget what is acknowledged: all up to this position."""
        while self._list and self._list[0][1] <= acknowledged:
            self._list.popleft()

    def add(self, turn: int, end: int, count: int) -> None:
        """So many messages, which end at this position, were reported as sent in this turn."""
        if self._list and turn == self._turn:
            self._list[-1][0] += count
            self._list[-1][1] = end
            return
        self._turn = turn
        self._list.append([count, end])

    def count(self, acknowledged: int) -> int:
        """Messages of the notes that end behind this position."""
        return sum(count for count, end in self._list if end > acknowledged)
