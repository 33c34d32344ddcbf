"""What a link of the reference core writes at once, and tells by and by.

Invariant: of what was given to a link since a turn one frame at most is written by itself, unless
its sender says that it must not wait.
"""

from __future__ import annotations

from typing import Any

from peertalk._core.reference.output import Output
from peertalk._core.reference.pipeline import SendPipeline
from peertalk._numbers import LINK_OPEN, PROMPT_FRAMES


class Prompt:
    """The part of a link that knows which frame does not wait for the turn."""

    _loop: Any
    _pipeline: SendPipeline
    _output: Output
    _state: int
    _finish_due: bool
    _sent: list[tuple[int, int]]

    _first_turn = -1
    """Of the last frame that was the first since a turn."""
    _first_frames = 0
    """Frames of the pipeline with that one."""
    _many = False
    """More frames follow in this call."""

    def settle(self) -> int:
        """Messages that have left and were not reported, told by this call alone. For a link that
        is to be closed."""
        count = sum(told for told, code in self._sent if code == 0)
        self._sent = [(0 if code == 0 else told, code) for told, code in self._sent]
        return count

    def _is_prompt(self) -> bool:
        """Whether this is the first frame since a turn, and no burst followed the last one."""
        loop, frames = self._loop, self._pipeline.frames
        waits = self in loop._dirty or self._output.blocked
        if loop._plain or waits or self._first_turn == loop._turns:
            return False
        burst, self._first_frames = frames - self._first_frames, frames
        self._first_turn = loop._turns
        return burst <= PROMPT_FRAMES and not self._many

    def _has_left(self) -> bool:
        """Whether all that the link was given has left, and to say so is all that it owes."""
        return (
            self._state == LINK_OPEN
            and not self._loop._plain
            and not self._output.blocked
            and not self._pipeline.pending
            and not self._finish_due
            and [code for _, code in self._sent] == [0]
        )
