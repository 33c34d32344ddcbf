"""Bytes as programs want them read: so many, exactly so many, or up to a separator, from whatever
pieces come."""

from __future__ import annotations

import contextlib
import socket
from abc import ABC, abstractmethod
from typing import Any, Self, TypeAlias

from .. import errors

Buffer: TypeAlias = bytes | bytearray | memoryview
"""What can be written."""
READ_SIZE = 65_536
"""Bytes that read() returns at most, when nothing else is said."""
AHEAD = 16_384
"""Bytes that are asked for at least: what a call does not return it leaves to the next one."""
_DISCARDED = 16
"""Times READ_SIZE that are taken of what nobody reads, at most."""


class Reading(ABC):
    """What can be read: the calls of a stream on top of pieces that come.

    Invariant: what has come is in _left until a call returns it, so that a call which is cancelled,
    or out of time, takes nothing along; nor does one that a signal handler has struck, which may
    happen behind each call of a function. So none stands between what is removed and the return.
    """

    __slots__ = ()

    _left: bytearray
    """What has come and was not taken."""

    @abstractmethod
    def _begin_read(self) -> None:
        """Raises InvalidState when another task reads, or the stream is closed."""

    @abstractmethod
    async def _some(self, most: int, timeout: float | None) -> int:
        """Put up to so many bytes behind those in _left, as soon as there are any: how many; 0: the
        end."""

    @abstractmethod
    def _until(self, timeout: float | None) -> float | None:
        """When the time is up, by the clock of the loop."""

    @abstractmethod
    def _rest(self, until: float | None) -> float | None:
        """How many seconds are left until then."""

    async def read(self, size: int = READ_SIZE, *, timeout: float | None = None) -> bytes:
        """Up to size bytes, as soon as there are any; b"": the other side has sent all it will.

        Raises:
            ConnectionClosed, NetworkFailure: the connection broke. Timeout: nothing came in time.
            InvalidState: another task reads, or the stream is closed.
        """
        self._begin_read()
        check_size(size)
        if not self._left and size:
            await self._some(max(size, AHEAD), timeout)
        return self._taken(size)

    async def readinto(self, buffer: Any, *, timeout: float | None = None) -> int:
        """Read into a writable buffer, as soon as there is something: how many bytes; 0: the other
        side has sent all it will, or the buffer is empty.

        Raises:
            As read().
        """
        with memoryview(buffer).cast("B") as view:
            if view.readonly:
                raise errors.WrongType("buffer: give memory that may be written to")
            data = await self.read(len(view), timeout=timeout)
            view[: len(data)] = data
            return len(data)

    async def readexactly(self, size: int, *, timeout: float | None = None) -> bytes:
        """Exactly size bytes.

        Raises:
            EndOfStream: the other side ended the stream before; partial has what came, and nothing
                of that is left to be read. Else as read().
        """
        self._begin_read()
        check_size(size)
        left, until = self._left, self._until(timeout)
        while len(left) < size:
            if not await self._some(max(size - len(left), AHEAD), self._rest(until)):
                raise self._end(f"of {size:,} bytes came")
        return self._taken(size)

    async def readuntil(
        self, separator: bytes = b"\n", *, limit: int = READ_SIZE, timeout: float | None = None
    ) -> bytes:
        """All up to the separator, with the separator.

        Raises:
            EndOfStream: the other side ended the stream before; partial has what came.
            MessageTooLarge: there is no separator in the first limit bytes, which are still there
                to be read. Else as read().
        """
        self._begin_read()
        if not separator:
            raise errors.InvalidArgument("separator: give one byte at least")
        left, until, seen = self._left, self._until(timeout), 0
        while True:
            at = left.find(separator, max(0, seen - len(separator) + 1), limit)
            if at >= 0:
                return self._taken(at + len(separator))
            seen = len(left)
            if seen >= limit:
                raise errors.MessageTooLarge(
                    f"stream: no {errors.shown(separator)} in {limit:,} bytes (limit)"
                )
            if not await self._some(AHEAD, self._rest(until)):
                raise self._end(f"bytes came without {errors.shown(separator)}")

    def _taken(self, size: int) -> bytes:
        taken = bytes(self._left[:size])
        del self._left[:size]
        return taken

    def _end(self, wanted: str) -> errors.EndOfStream:
        partial = self._taken(len(self._left))
        return errors.EndOfStream(
            f"stream: {len(partial):,} {wanted}, then its end", partial=partial
        )

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        data = await self.read()
        if not data:
            raise StopAsyncIteration
        return data


def check_size(size: int) -> None:
    """Raises WrongType or InvalidArgument for a number of bytes that cannot be read."""
    if not isinstance(size, int):
        raise errors.WrongType(f"size {errors.shown(size)}: read a number of bytes")
    if size < 0:
        raise errors.InvalidArgument(f"size {size:,}: read a number of bytes from 0 up")


def bytes_of(data: Buffer) -> memoryview:
    """What is to be written, as bytes.

    Raises:
        WrongType: it is no contiguous buffer.
    """
    try:
        return memoryview(data).cast("B")
    except TypeError:
        raise errors.WrongType(
            f"{errors.shown(data)} cannot be written: give bytes; encode() text first"
        ) from None


def discard(connection: socket.socket) -> None:
    """Take what has come and nobody will read, before a connection is closed: the system resets one
    that is closed with that, and drops what was sent and has not arrived."""
    with contextlib.suppress(OSError):
        for _ in range(_DISCARDED):
            if not connection.recv(READ_SIZE):
                return
