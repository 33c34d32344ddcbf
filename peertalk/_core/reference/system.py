"""What the reference core asks of the system about one descriptor beside reading and writing it."""

from __future__ import annotations

import errno
import select
import socket
import sys

from peertalk._numbers import ERR_CONNECTION_CLOSED, ERR_NETWORK

if sys.platform != "win32":
    import fcntl
    import termios

_BROKEN = (
    errno.ECONNRESET,
    errno.EPIPE,
    errno.ECONNABORTED,
    errno.ENOTCONN,
    errno.ESHUTDOWN,
    errno.ETIMEDOUT,
)
NOT_NOW = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS, errno.ENOMEM)
"""No room, or no memory in the system, which passes and says nothing about the link."""


def network_fault(error: OSError) -> tuple[int, int]:
    """Result code and system error of a failed read or write."""
    return (ERR_CONNECTION_CLOSED if error.errno in _BROKEN else ERR_NETWORK), error.errno or 0


class DrainTimeout(Exception):
    """A blocking send found no room in time."""


def wait_writable(fd: int, timeout: float) -> None:
    """Wait for room to write; DrainTimeout when there was none within timeout seconds."""
    waiter = select.poll()
    waiter.register(fd, select.POLLOUT)
    if timeout <= 0 or not waiter.poll(timeout * 1000):
        raise DrainTimeout


def shut_write(fd: int) -> None:
    """End our half of the stream. A failure shows when the other half is read."""
    borrowed = socket.socket(fileno=fd)
    try:
        borrowed.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    finally:
        borrowed.detach()


def _is_local(fd: int) -> bool:
    borrowed = socket.socket(fileno=fd)
    family = borrowed.family
    borrowed.detach()
    return family == socket.AF_UNIX


def unacknowledged(fd: int, shut: bool) -> int:
    """Bytes that the system took and the other side's has not acknowledged. shut: our half of the
    stream is ended, which counts as a byte. 0 between two programs of one machine: what the system
    took lies with the other one at once."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        answer = fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4))  # SIOCOUTQ
        waiting = int.from_bytes(answer, sys.byteorder)
        if waiting == 0 or _is_local(fd):
            return 0
    except OSError:
        return 0
    return waiting - 1 if waiting and shut else waiting
