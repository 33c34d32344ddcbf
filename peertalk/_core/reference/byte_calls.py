"""What one call reads and writes of a socket that carries bytes, in plain Python."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from peertalk import errors
from peertalk._core.reference.system import NOT_NOW
from peertalk._core.values import BUFFER_MAX, NOT_READY, ByteCalls

T = TypeVar("T")


def byte_calls(size: int) -> ByteCalls:
    """The calls of one thread; size: the most that receive() reads at once, 1 to 2^30.

    Raises:
        InvalidArgument: no call reads so much, or so little.
    """
    if not 1 <= size <= BUFFER_MAX:
        raise errors.InvalidArgument(f"receive_buffer is {size:,}: 1 to {BUFFER_MAX:,} bytes")

    def receive(descriptor: int, wanted: int) -> bytes | int:
        if wanted < 0:
            raise ValueError("a negative number of bytes")
        return _tried(os.read, descriptor, min(wanted, size))

    return ByteCalls(receive, _receive_into, _send, size)


def _receive_into(descriptor: int, buffer: Any) -> int:
    return _tried(os.readv, descriptor, [buffer])


def _send(descriptor: int, data: Any) -> int:
    return _tried(os.write, descriptor, data)


def _tried(call: Callable[[int, Any], T], descriptor: int, argument: Any) -> T | int:
    """What the call returns, or minus the system's number."""
    try:
        return call(descriptor, argument)
    except OSError as error:
        number = error.errno or 0
        return NOT_READY if number in NOT_NOW[:2] else -number
