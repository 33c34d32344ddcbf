"""What a node logs: whose each line is, and what lasts told twice.

Nothing else in peertalk speaks to logging, so that every line begins alike and names its node: a
program may have several.

What fails does so again and again: each announcement while a cable is out, each accept() while
there are no descriptors. The first failure is a line, the others are counted, and the line at the
end gives their number and how long it took.

A trouble is over when something has worked and nothing has failed for a time. That time is short,
and doubles each time that the trouble is back soon, so that one which comes and goes does not fill
the log either.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

SETTLED = 1.0
"""Seconds without a failure after which a trouble is over."""
SETTLED_MAX = 60.0
"""Seconds, likewise, of one that is always back; one that stays away for longer is a new one."""


class NodeLog(logging.LoggerAdapter[logging.Logger]):
    """The lines of one node: "peertalk: node 'ada': ...".

    Args:
        logger: the name of the logger that gets them.
        node: the name of the node.
    """

    def __init__(self, logger: str, node: str) -> None:
        super().__init__(logging.getLogger(logger), {})
        self._node = node

    def log(self, level: int, msg: object, *args: object, **options: Any) -> None:
        """As of a logger; so are all the others, which end here."""
        if self.isEnabledFor(level):
            # 2: the line is that of whoever called, and not this one
            options.setdefault("stacklevel", 2)
            self.logger.log(level, f"peertalk: node %r: {msg}", self._node, *args, **options)


class Clock(Protocol):
    """What tells the time."""

    def clock(self) -> float:
        """Seconds, monotonic."""


class Timers(Protocol):
    """What tells of troubles needs of an engine, which lies above."""

    @property
    def world(self) -> Clock:
        """Whose time it is."""

    def after(self, delay: float, action: Callable[[], None]) -> object:
        """Call action once, delay seconds from now, unless cancelled."""

    def cancel(self, timer: Any) -> None:
        """Do not call the timer's action. Nothing happens when it was called, or for None."""


class _Trouble(msgspec.Struct, eq=False):
    lasting: bool = False
    since: float = 0.0
    until: float = 0.0
    ended: float = float("-inf")
    settled: float = SETTLED
    count: int = 0
    settling: Any = None


class Troubles:
    """Those of one part of a node. On the engine's thread only.

    Args:
        timers: of whose engine these are.
        log: where they are told.
    """

    def __init__(self, timers: Timers, log: NodeLog) -> None:
        self._timers = timers
        self.lasting = 0
        """How many last now: while there are none, worked() need not be called."""
        self._log = log
        self._known: dict[str, _Trouble] = {}

    def failed(self, what: str, why: str, *values: Any) -> None:
        """Something has failed.

        Args:
            what: what was done, as "accepting connections"; one trouble for each of these words.
            why: the cause and what to try, with places for values as in logging.
        """
        now = self._timers.world.clock()
        trouble = self._known.get(what)
        if trouble is None:
            trouble = self._known[what] = _Trouble()
        if not trouble.lasting:
            soon = now - trouble.ended < SETTLED_MAX
            trouble.settled = min(2 * trouble.settled, SETTLED_MAX) if soon else SETTLED
            trouble.lasting, trouble.since, trouble.count = True, now, 0
            self.lasting += 1
            self._log.warning("%s fails: " + why, what, *values)
        trouble.count += 1
        self._timers.cancel(trouble.settling)
        trouble.settling = None

    def worked(self, what: str) -> None:
        """What was done has worked: its trouble is over when nothing of it fails for a time from
        now on. Nothing happens when there is no such trouble, or that time runs already."""
        trouble = self._known.get(what)
        if trouble is not None and trouble.lasting and trouble.settling is None:
            trouble.until = self._timers.world.clock()
            trouble.settling = self._timers.after(trouble.settled, lambda: self._over(what))

    def forget_others(self, than: Iterable[str]) -> None:
        """Nothing else is done any more: what failed of it is no trouble now, nor over."""
        for what in self._known.keys() - set(than):
            trouble = self._known.pop(what)
            self._timers.cancel(trouble.settling)
            self.lasting -= trouble.lasting

    def _over(self, what: str) -> None:
        trouble = self._known[what]
        trouble.settling = None
        trouble.lasting = False
        trouble.ended = self._timers.world.clock()
        self.lasting -= 1
        self._log.warning(
            "%s works again; %d failed in %.1f s",
            what,
            trouble.count,
            trouble.until - trouble.since,
        )
