"""What is known of one link that is watched, and what that means: dead, frozen or neither.

Dead is a link on which bytes of ours wait while no acknowledgement has come for the time that is
given. Frozen is one whose other side's system is there while its program says nothing: it owes the
answer to a PING for as long. How often to look follows from what was seen: a link cannot be dead
before that time has passed since it last was not waiting, so an idle one is looked at once in that
time, and one that is silent just when the rest has passed.

Observations in, frozen verdicts out. Never: asks the system, arms a timer, reads a clock.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from .._numbers import FRAME_OVERHEAD
from .connections import State

LATE = 0.5
"""Seconds that a timer may be late on a loop that runs."""
_LONGEST_PROBE = 120.0
"""Seconds between two probes of a window that is shut, at most (TCP_RTO_MAX of Linux)."""


class Counts(Protocol):
    """Of a link, as it counts them."""

    @property
    def slots_pending(self) -> int:
        """Writes under way."""

    @property
    def bytes_sent(self) -> int:
        """Bytes that the system took."""

    @property
    def frames_received(self) -> int:
        """Frames that have come."""


class Seen(NamedTuple):
    """A link at one look. silent: seconds without an acknowledgement while bytes of ours wait for
    one; counts: what it counts; paused: it is not read; frozen: it was told to be; unacknowledged:
    bytes that the other side's system has not. Those that are asked for are asked where they
    count."""

    now: float
    state: State
    silent: float
    counts: Callable[[], Counts]
    paused: bool
    frozen: bool
    unacknowledged: Callable[[], int]


class Finding(enum.Enum):
    """What a look has found."""

    NOTHING = "nothing"
    DEAD = "dead"
    FROZEN = "frozen"


class Vigil(msgspec.Struct, gc=False):
    """What is remembered of one link between two looks: an idle one has none, see kept(). Times are
    of the clock, frames and bytes as the link counts them.

    doubted: it seemed dead when it was looked at last; asked: since when an answer is owed, None
    when none is; question: where in the stream the PING ended that it is owed to; heard: frames
    that had come by then; stuck: since when slots have not moved, None while they do; moved: bytes
    that had left by then, -1 while no slot waits; taken: bytes that the other side's system had
    while some waited.
    """

    doubted: bool = False
    asked: float | None = None
    question: int = 0
    heard: int = 0
    stuck: float | None = None
    moved: int = -1
    taken: int = 0

    def ask(self, now: float, frames_received: int, payload_sent: int, frames_sent: int) -> None:
        """A PING has left, or would have if there had been room: an answer is owed."""
        if self.asked is None or frames_received != self.heard:
            self.asked = now
            self.question = payload_sent + FRAME_OVERHEAD * frames_sent
            self.heard = frames_received

    def slept(self, late: float, now: float, patience: float) -> None:
        """Nobody read for so long: what was said then lies unread, and the time counts for
        nobody."""
        if self.asked is not None:
            self.asked = min(now, max(self.asked + late, now - patience + LATE))
        if self.stuck is not None:
            self.stuck = min(now, self.stuck + late)

    def kept(self) -> Vigil | None:
        """Itself; None when there is nothing to remember."""
        quiet = self.asked is None and self.stuck is None
        return None if quiet and not self.doubted else self

    def look(self, seen: Seen, patience: float, spacing: float) -> tuple[Finding, float]:
        """What a look means, and when to look next. patience: the time that is given; spacing:
        between the two looks that a dead link takes; both in seconds."""
        now = seen.now
        if seen.silent >= patience:
            # what has waited for a moment only, after a long silence, is answered by then
            found = Finding.DEAD if self.doubted else Finding.NOTHING
            self.doubted = True
            return found, now + spacing
        self.doubted, due = False, now + patience - seen.silent
        if seen.state is not State.OPEN:
            return Finding.NOTHING, due
        counts = seen.counts()
        if not counts.slots_pending:
            self.moved, self.stuck = -1, None
        elif counts.bytes_sent != self.moved:
            self.moved, self.stuck = counts.bytes_sent, now
        if self.asked is None or seen.frozen:
            return Finding.NOTHING, due
        if counts.frames_received != self.heard:
            self.asked = None
        elif seen.paused or self._is_underway(counts.bytes_sent, seen.unacknowledged()):
            self.asked = now  # the answer may lie unread, or the question be on its way
        elif now - self.asked >= patience:
            return Finding.FROZEN, due
        else:
            due = min(due, self.asked + patience)
        return Finding.NOTHING, due

    def _is_underway(self, sent: int, waiting: int) -> bool:
        """Whether the question waits in the system, behind bytes of which the other side's has
        taken some since the last look."""
        taken, self.taken = self.taken, sent - waiting if waiting else 0
        return waiting > 0 and self.taken != taken and self.taken < self.question

    def quiet_since(self) -> float | None:
        """Since when it has owed an answer or stood still; None: it does neither."""
        if self.asked is None or self.stuck is None:
            return self.stuck if self.asked is None else self.asked
        return min(self.asked, self.stuck)

    def is_still(self, counts: Counts) -> bool:
        """Whether nothing has moved there since it was last looked at."""
        if self.asked is not None and counts.frames_received != self.heard:
            return False
        return self.stuck is None or counts.bytes_sent == self.moved


def silence_of(info: bytes) -> float:
    """Seconds without an acknowledgement, from what Linux tells of a connection that has bytes
    unacknowledged (TCP_INFO). 0: nothing is late.

    Source: struct tcp_info of Linux, u8 tcpi_probes at byte 3 (without an answer) and
    tcpi_backoff at 4 (doublings of the interval), u32 tcpi_rto (us) at 8, tcpi_unacked
    (packets on their way) at 24, tcpi_last_ack_recv (ms) at 56.
    """
    probes, backoff = info[3], info[4]
    retry: float = struct.unpack_from("=I", info, 8)[0] / 1e6
    on_their_way: int = struct.unpack_from("=I", info, 24)[0]
    since_ack: float = struct.unpack_from("=I", info, 56)[0] / 1000
    if on_their_way:  # an acknowledgement is late only when its bytes have been sent again
        return since_ack if since_ack > retry else 0.0
    if not probes:
        return 0.0
    asked_after = min(retry * (1 << max(0, backoff - probes)), _LONGEST_PROBE)
    return max(0.0, since_ack - asked_after)
