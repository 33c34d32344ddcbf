"""What a link of the reference core has in flight, the system calls that move it, and what of it is
not acknowledged.

Invariant: unsent holds the slots that were launched and are not completed, the oldest first; only
the first of them may be taken in part.
"""

from __future__ import annotations

import os
import time
from collections import deque

from peertalk._core.reference.notes import Notes
from peertalk._core.reference.pipeline import SendPipeline
from peertalk._core.reference.system import NOT_NOW, shut_write, unacknowledged, wait_writable
from peertalk._numbers import DRAIN_TIMEOUT_TICKS, ERR_CONNECTION_CLOSED, TICKS_PER_SECOND

DRAIN_TIMEOUT_MS = DRAIN_TIMEOUT_TICKS * 1_000 // TICKS_PER_SECOND
"""How long a blocking send of the plain platform may take."""


class Output:
    """The way from the slots of a pipeline into the system."""

    def __init__(self, fd: int, pipeline: SendPipeline) -> None:
        self.unsent: deque[int] = deque()
        self.blocked = False
        """The system took less than it was given."""
        self.bytes_sent = 0
        self.write_calls = 0
        self._fd = fd
        self._pipeline = pipeline
        self._notes = Notes()
        self._finished = False

    def launch(self) -> None:
        """Take over every filling slot."""
        index = self._pipeline.launch()
        while index >= 0:
            self.unsent.append(index)
            index = self._pipeline.launch()

    def write(self) -> None:
        """One gathered write of all that is in flight; complete the slots whose last byte was
        taken. OSError: the system refused."""
        if not self.unsent:
            return
        slots = self._pipeline.slots
        vector = [view for index in self.unsent for view in slots[index].unsent()]
        wanted = sum(len(view) for view in vector)
        self.write_calls += 1
        try:
            # Python ignores SIGPIPE, so that a hang-up comes as an error.
            taken = os.writev(self._fd, vector)
        except OSError as error:
            if error.errno not in NOT_NOW:
                raise
            taken = 0
        finally:
            for view in vector:
                view.release()
        self.blocked = taken < wanted
        self.bytes_sent += taken
        while self.unsent:
            slot = slots[self.unsent[0]]
            left = slot.whole_len - slot.sent_len
            if taken < left:
                slot.sent_len += taken
                return
            taken -= left
            slot.sent_len = slot.whole_len
            self._pipeline.complete(self.unsent.popleft())

    def write_blocking(self) -> None:
        """One slot after the other, each to its end or to the drain time-out. OSError: the system
        refused. DrainTimeout: it had no room in time."""
        while self.unsent:
            slot = self._pipeline.slots[self.unsent[0]]
            give_up = time.monotonic() + DRAIN_TIMEOUT_MS / 1000
            while slot.sent_len < slot.whole_len:
                self.write_calls += 1
                vector = slot.unsent()
                try:
                    taken = os.writev(self._fd, vector)
                except OSError as error:
                    if error.errno not in NOT_NOW:
                        raise
                    wait_writable(self._fd, give_up - time.monotonic())
                else:
                    slot.sent_len += taken
                    self.bytes_sent += taken
                finally:
                    for view in vector:
                        view.release()
            self._pipeline.complete(self.unsent.popleft())

    def note_sent(self, turn: int, count: int) -> None:
        """Remember where so many messages, which are reported as sent in this turn, ended in the
        stream."""
        if self._notes.need_room(turn):
            self._notes.make_room(self._acknowledged())
        begun = self._pipeline.slots[self.unsent[0]].sent_len if self.unsent else 0
        self._notes.add(turn, self.bytes_sent - begun, count)

    def count_unconfirmed(self) -> int:
        """Messages reported as sent that the other side's system has not acknowledged."""
        return self._notes.count(self._acknowledged()) if self._notes else 0

    def _acknowledged(self) -> int:
        """How far in the stream the other side's system has acknowledged what it was sent."""
        return self.bytes_sent - unacknowledged(self._fd, self._finished)

    def finish(self) -> None:
        """End our half of the stream; idempotent."""
        if not self._finished:
            self._finished = True
            shut_write(self._fd)

    def close(self) -> None:
        """Nothing more leaves: let go of what is in flight."""
        for index in self.unsent:
            self._pipeline.complete(index, ERR_CONNECTION_CLOSED)
        self.unsent.clear()


def flat(payload: bytes | bytearray | memoryview) -> memoryview:
    """The bytes of any contiguous buffer."""
    view = memoryview(payload)
    if not view.c_contiguous:
        raise TypeError("payload: a contiguous buffer of bytes is needed")
    return view.cast("B") if view.ndim != 1 or view.itemsize != 1 or view.format != "B" else view
