"""A large message that a link of the reference core sends by itself, slice after slice.

Invariant: a slice takes a slot when those before it have left, and never the last free one. Never:
writes; who pushes the link does.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from peertalk._core.reference.pipeline import SendPipeline
from peertalk._core.reference.source import Home
from peertalk._numbers import (
    ERR_INVALID_PARAM,
    ERR_INVALID_STATE,
    ERR_NO_MEMORY,
    ERR_NOT_CONNECTED,
    LINK_OPEN,
    REFERRED_PART,
    WIDE_MAX_PAYLOAD,
)

_FIELD_MAX = 2**32 - 1
"""The highest id, and bytes of the longest message: what a wide header can say."""


class Departing(ABC):
    """The part of a link that sends a large message by itself."""

    _loop: Home
    _pipeline: SendPipeline
    _state: int

    _departs: tuple[bytes, int, int] | None = None
    """The message, its id, and bytes of it that slots have taken."""
    _wanted = False
    """A frame found no room since SENT was last due."""

    @abstractmethod
    def _follow_up(self, counted: int, *, at_once: bool = False) -> int:
        """A frame is in its slot, and leaves at_once or with the turn. Returns hints."""

    def depart(self, payload: bytes, id: int, offset: int) -> int:
        """Send a message from offset on in slices, each when those before it have left and a slot
        beside it is free. The slice that ends the message counts as the message.

        Returns:
            What send() returns, but never ERR_WOULD_BLOCK; ERR_INVALID_PARAM: no such part, or id
            0; ERR_INVALID_STATE: another one departs.

        Raises:
            TypeError: payload is no bytes object.
        """
        if type(payload) is not bytes:
            raise TypeError("depart(payload, id, offset): payload must be bytes")
        if not (0 < id <= _FIELD_MAX and 0 <= offset < len(payload) <= _FIELD_MAX):
            return ERR_INVALID_PARAM
        if threading.get_ident() != self._loop._owner:
            return ERR_INVALID_STATE
        if self._state != LINK_OPEN:
            return ERR_NOT_CONNECTED
        if self._departs is not None or not self._pipeline.slice_max:
            return ERR_INVALID_STATE
        self._departs = payload, id, offset
        if not self._feed() and not self._pipeline.pending:
            self._departs = None
            return ERR_NO_MEMORY
        return self._follow_up(WIDE_MAX_PAYLOAD // REFERRED_PART)

    @property
    def departing(self) -> int:
        """Bytes of what depart() was given that no slot has taken; 0: nothing departs."""
        return 0 if self._departs is None else len(self._departs[0]) - self._departs[2]

    def recall(self) -> int:
        """Send no more of what departs than slots have taken. Returns what departing was."""
        left, self._departs = self.departing, None
        return left

    def _next_done(self) -> tuple[int, int] | None:
        """What the pipeline reports next of slots that others than this part have a use for."""
        told = self._pipeline.report()
        while told == (0, 0) and self._departs is not None and not self._wanted:
            told = self._pipeline.report()
        if told is not None and told[1] == 0:
            self._wanted = False
        return told

    def _feed(self) -> bool:
        """Put the next slice into a slot, if that may be now."""
        pipeline = self._pipeline
        if self._departs is None or self._state != LINK_OPEN:
            return False
        payload, id, offset = self._departs
        size = min(pipeline.slice_max, len(payload) - offset)
        referred = pipeline.referred
        if referred and referred + size > WIDE_MAX_PAYLOAD:
            return False
        if pipeline.pending and pipeline.available < 2:
            return False
        if pipeline.send_slice(payload, id, offset, size) != 0:
            pipeline.refusals -= 1  # nobody asked
            return False
        self._departs = (payload, id, offset + size) if offset + size < len(payload) else None
        return True
