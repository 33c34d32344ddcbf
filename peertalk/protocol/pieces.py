"""A message in the fragments of the original's form.

Invariant: pieces come in order and without a gap. Never: copies more than the piece that is next.
"""

from __future__ import annotations

from .._core.values import FragmentHeader
from .._numbers import FRAGMENT_FIRST, FRAGMENT_LAST

PIECE_MAX = 248
"""Bytes of a message in one fragment, at most: the original's queue slots hold 256 with the
header."""
PIECE_MIN = 64
"""A maximum that leaves less for a piece does not carry fragments, as in the original."""


class Pieces:
    """A message that is handed to a link as fragments, in the original's form: pieces in strict
    order, each a frame of its own.

    Args:
        data: the message, longer than one piece.
        message_id: 0 to 65,535.
        maximum: payload of a frame that the peer takes, in bytes, 8 more than PIECE_MIN at least.
    """

    __slots__ = ("_data", "_id", "_size", "count", "offset")

    def __init__(self, data: bytes, message_id: int, maximum: int) -> None:
        self._data = data
        self._id = message_id
        self.offset = 0
        """Bytes that were handed on."""
        self._size = piece_size(maximum)
        self.count = -(-len(data) // self._size)
        """Pieces in all."""

    def peek(self) -> tuple[FragmentHeader, bytes]:
        """The next piece, and what stands before it; it stays."""
        offset, total = self.offset, len(self._data)
        piece = self._data[offset : offset + self._size]
        flags = (FRAGMENT_FIRST if offset == 0 else 0) | (
            FRAGMENT_LAST if offset + len(piece) == total else 0
        )
        return FragmentHeader(self._id, total, offset, flags), piece

    def drop(self) -> bool:
        """The next piece has been handed on. True: it was the last one."""
        self.offset += self._size
        return self.offset >= len(self._data)


def piece_size(maximum: int) -> int:
    """Bytes of a message in each fragment for a peer of this maximum; 0 when it is too small for
    fragments."""
    size = min(maximum - 8, PIECE_MAX)
    return size if size >= PIECE_MIN else 0
