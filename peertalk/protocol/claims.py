"""What one side of several connections with a peer says to be over for it. See Line."""

from __future__ import annotations

from typing import NamedTuple, Protocol

OVER_MAX = 3
"""Numbers above the first that can be named as over, for each of the two who dial."""


class Over(NamedTuple):
    """Numbers of one side's dials that are over: all up to this one, and a few above."""

    upto: int = 0
    above: tuple[int, ...] = ()

    def __contains__(self, number: object) -> bool:
        return number in self.above or (isinstance(number, int) and 0 < number <= self.upto)

    def joined(self, other: Over) -> Over:
        """What either says, as far as it can be kept: the newest OVER_MAX above."""
        upto = max(self.upto, other.upto)
        above = sorted({number for number in self.above + other.above if number > upto})
        while above and above[0] == upto + 1:
            upto = above.pop(0)
        both = Over(upto, tuple(above[-OVER_MAX:]))
        return self if both == self else both


class Numbered(Protocol):
    """A connection, as far as it counts here."""

    dialled: bool
    """By us."""
    number: int
    """Of the dial that made it, counted by the side that dialled, 0: not known."""


class Claims(NamedTuple):
    """What is over for one side. own: of its own dials; others: of those of the other side."""

    own: Over = Over()
    others: Over = Over()

    def covers(self, connection: Numbered) -> bool:
        """Whether the other side, whose claims these are, says that this connection of ours is
        over. One without a number never is."""
        return connection.number in (self.others if connection.dialled else self.own)
