"""What one call reads and writes of a socket that carries bytes, by the C core."""

from __future__ import annotations

from functools import partial

from peertalk import errors
from peertalk._core.binding import Binding
from peertalk._core.pool import own_pages
from peertalk._core.values import BUFFER_MAX, ByteCalls


def byte_calls(binding: Binding, size: int) -> ByteCalls:
    """The calls of one thread, which share a buffer of size bytes, 1 to 2^30. The buffer has pages
    of its own: of those that nothing was ever read into none costs memory.

    Raises:
        InvalidArgument, OutOfMemory: there is no such buffer.
    """
    size = binding.limited("receive_buffer", size, BUFFER_MAX)
    if size == 0:
        raise errors.InvalidArgument("receive_buffer is 0: nothing would ever be read")
    buffer = own_pages(binding.ffi, "uint8_t[]", size, "a receive buffer")
    address = int(binding.ffi.cast("uintptr_t", buffer))
    border = binding.border
    receive = border.bind_receive(address, size, buffer)
    return ByteCalls(
        receive,
        border.receive_into,
        border.send_bytes,
        size,
        border.native_type,
        partial(border.Channel, receive),
    )
