"""Whom to dial, and when again: what follows when a peer is wanted, when an attempt at it has
failed, when its connection is lost, and when it is heard.

Each attempt that fails, and each connection that ends young, sets back the next: RETRY_DELAYS. A
peer is tried again while messages wait for it and tries are left. Who rejects us is not asked
again.

A connection that nobody wanted to end comes back when its peer is heard. Who dialled the lost one
dials at once, the other side RECALL_DELAY later, so that the two do not cross.

Observations in, frozen verdicts out. Never: opens a socket, arms a timer, reads a clock.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from . import connections as policy
from .peer import Key

RECALL_DELAY = 1.0
"""Seconds that the side which did not dial a lost connection leaves to the other one."""
STALE_DIAL = 1.0
"""Seconds after which a dial is begun anew when its peer is heard: its first packet may have been
lost while nothing passed, and the next would come late."""

P = TypeVar("P")


def may_dial(
    *, connected: bool, waiting: bool, closing: bool, dialling: bool, greeted: bool
) -> bool:
    """Whether a peer that somebody wants is to be dialled: not while a connection is there, waits
    to be used or is on its way, and not before the time that a failed attempt has set (waiting)."""
    return not (connected or waiting or closing or dialling or greeted)


def set_back(attempts: int) -> float:
    """Seconds for which nobody dials after so many attempts that failed, one after the other."""
    return policy.RETRY_DELAYS[min(attempts, len(policy.RETRY_DELAYS)) - 1]


class Failure(NamedTuple):
    """All addresses of a peer were tried in vain. attempts: failed ones, this included; queued:
    messages wait; reaching: somebody waits for the connection; unused: a connection was greeted and
    not used, so there is another; rejected: by the other side's will."""

    attempts: int
    queued: bool
    reaching: bool
    unused: bool
    rejected: bool
    closing: bool


class AfterFailure(NamedTuple):
    """again: try again when set_back() is over; else what waits fails, and the next attempt is a
    first one. tell: those who wait hear of it."""

    again: bool
    tell: bool


def after_failure(failure: Failure) -> AfterFailure:
    """What follows."""
    wanted = failure.queued or (failure.unused and failure.reaching)
    left = failure.attempts <= len(policy.RETRY_DELAYS) and not failure.rejected
    again = wanted and left and not failure.closing
    return AfterFailure(again, tell=not (again and failure.unused))


class Loss(NamedTuple):
    """A peer has lost the connection that was used. broken: by an error; polite: one side has said
    that it leaves; leaving: we had; theirs: the other side did what must not be; age: seconds for
    which it was used; dialled: by us; attempts: failed ones, before this."""

    broken: bool
    polite: bool
    leaving: bool
    closing: bool
    theirs: bool
    age: float
    dialled: bool
    attempts: int


class AfterLoss(NamedTuple):
    """attempts: failed ones from now on, 0: nobody is set back; resend: what waits is sent on
    another connection when that time is over, else it fails; comes_back: when the peer is heard it
    is dialled, True: at once, False: after a moment; None: it is not."""

    attempts: int
    resend: bool
    comes_back: bool | None


def after_loss(loss: Loss) -> AfterLoss:
    """What follows. A connection that was used for long was no failed attempt."""
    if not loss.broken or loss.polite or loss.leaving or loss.closing:
        return AfterLoss(0, False, None)
    attempts = (0 if loss.age >= policy.YOUNG else loss.attempts) + 1
    resend = attempts <= len(policy.RETRY_DELAYS)
    return AfterLoss(attempts, resend, None if loss.theirs else loss.dialled)


class Returns(Generic[P]):
    """Peers with whom a connection is to come back, by key. Not all are in the table of peers:
    without discovery one that has no connection is forgotten.

    Args:
        most: of them, at most; the longest lost is given up for one more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lost: dict[Key, tuple[P, bool]] = {}

    def expect(self, key: Key, peer: P, *, at_once: bool) -> Key | None:
        """A connection that nobody wanted to end is lost. at_once: it is for us to dial at once.
        Returns who is given up for that."""
        self._lost.pop(key, None)
        self._lost[key] = peer, at_once
        return next(iter(self._lost)) if len(self._lost) > self._most else None

    def no_more(self, key: Key) -> None:
        """It is back, or is not wanted any more."""
        self._lost.pop(key, None)

    def __contains__(self, key: Key) -> bool:
        return key in self._lost

    def ours(self) -> list[P]:
        """Those who are for us to dial at once."""
        return [peer for peer, at_once in self._lost.values() if at_once]

    def heard(
        self, key: Key, now: float, not_before: float, dialling_since: float | None
    ) -> float | None:
        """A peer announces itself and is not connected. not_before: the time that a failed attempt
        has set; dialling_since: when the dial that is under way began, None: none is. Returns
        seconds until it is dialled where it was heard; None: nothing is to be done."""
        lost = self._lost.get(key)
        if lost is None:
            return None
        if dialling_since is not None:
            return 0.0 if now - dialling_since > STALE_DIAL else None
        return max(0.0 if lost[1] else RECALL_DELAY, not_before - now, 0.0)
