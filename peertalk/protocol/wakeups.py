"""When the one timer that wakes a loop is due, and whether that is soon enough.

A loop has one timer for all of its deadlines. The timer is set anew only when a turn would come too
late, because to set a timer costs as much as half a turn. A timer that is too early does no harm:
the turn finds nothing to do, and what it learns sets the next one.

Times are seconds of any clock that does not go back. Never: reads a clock, or sets a timer.
"""

from __future__ import annotations

import math

EARLY = 0.001
"""Seconds by which a deadline seems to come nearer when nothing has changed: engines count whole
milliseconds."""
DROPPED = 1.0
"""Seconds after which a timer that has not come comes no more: an exception that left its loop has
taken it away. Nothing else holds a turn up for so long without a turn of its own behind it."""


class Wakeup:
    """What is known of that timer.

    due: when it comes; infinity: it is not set.
    """

    __slots__ = ("due",)

    def __init__(self) -> None:
        self.due = math.inf

    def is_soon_enough(self, now: float, delay: float) -> bool:
        """Whether the timer that is set comes early enough for what is due so many seconds from
        now: at most EARLY later than that, and not DROPPED."""
        return now - DROPPED < self.due < now + delay + EARLY

    def is_set(self, due: float) -> None:
        """The timer comes at this time."""
        self.due = due

    def is_gone(self) -> None:
        """The timer has come, or nobody knows whether it will."""
        self.due = math.inf
