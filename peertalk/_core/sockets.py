"""Sockets of the simulated network: listeners, streams and datagram sockets of its hosts.

A socket is a handle, a number of the simulator, and each method is one call of it with that number.

Invariant: a socket that is closed has the handle -1, and the simulator is told at most once. Never:
waits; what is not there yet is None, and what finds no room is 0.
"""

from __future__ import annotations

from typing import Any

from peertalk import errors
from peertalk._core.binding import Data


def show_address(address: int) -> str:
    """A number as a dotted IPv4 address."""
    return ".".join(str(address >> shift & 0xFF) for shift in (24, 16, 8, 0))


def parse_address(address: str) -> int:
    """A dotted IPv4 address as a number.

    Raises:
        InvalidArgument: it is none.
    """
    parts = address.split(".")
    if len(parts) != 4 or not all(part.isdecimal() and int(part) <= 255 for part in parts):
        raise errors.InvalidArgument(f"address {address!r}: give a dotted one, such as 10.0.0.1")
    return sum(int(part) << shift for part, shift in zip(parts, (24, 16, 8, 0), strict=True))


class Socket:
    """A socket of a simulated network: a listener, a stream or a datagram socket. Made by a Host;
    its fileno() is the handle that loops take."""

    def __init__(self, host: Any, handle: int) -> None:
        self._host = host
        self._simulator = host._simulator
        self._handle = handle
        self.abandoned = False
        """Stream: close() breaks the connection, and what it owes is gone (SO_LINGER of 0 s)."""

    def fileno(self) -> int:
        """The handle; -1 when it is closed."""
        return self._handle

    def _call(self, name: str, *arguments: Any) -> Any:
        return getattr(self._simulator._lib, name)(
            self._simulator._open_sim(), self._handle, *arguments
        )

    def _name(self, remote: int) -> tuple[str, int]:
        address, port = (
            self._simulator._ffi.new("uint32_t *"),
            self._simulator._ffi.new("uint16_t *"),
        )
        code = self._call("pt_sim_get_name", remote, address, port)
        if code != 0:
            raise self._simulator._binding.fault(code, "the name of a simulated socket")
        return show_address(address[0]), int(port[0])

    def getsockname(self) -> tuple[str, int]:
        """Its address and port."""
        return self._name(0)

    def getpeername(self) -> tuple[str, int]:
        """Address and port of the other end of a stream."""
        return self._name(1)

    def close(self) -> None:
        """Forget it; a stream sends what it owes, then ends its half. Idempotent."""
        if self._handle > 0 and not self._simulator.closed:
            if self.abandoned:
                self._call("pt_sim_reset")  # a refusal says that it is over already
            self._call("pt_sim_release")
        self._handle = -1

    @property
    def ready(self) -> int:
        """What is ready now: a sum of READ, WRITE and HANGUP."""
        return int(self._call("pt_sim_ready"))

    def accept(self) -> Socket | None:
        """Listener: the next connection that waits; None when there is none."""
        handle = self._call("pt_sim_accept")
        if handle == self._simulator._lib.PT_ERR_WOULD_BLOCK:
            return None
        return Socket(self._host, self._simulator._made(handle, "accepting a connection"))

    def outcome(self) -> int:
        """Stream: ERR_WOULD_BLOCK while connecting, OK when open, else why not:
        ERR_CONNECTION_REFUSED, ERR_TIMEOUT (no answer), ERR_CONNECTION_CLOSED (reset since)."""
        return int(self._call("pt_sim_get_outcome"))

    def silent_for(self) -> float:
        """Stream: seconds that something of ours has waited for a sign of life; 0.0: nothing
        waits."""
        return int(self._call("pt_sim_get_silence")) / 1e9

    @property
    def unacknowledged(self) -> int:
        """Stream: bytes taken and not acknowledged; 0 once it is closed."""
        return int(self._call("pt_sim_get_unacknowledged"))

    @property
    def unread(self) -> int:
        """Stream: bytes that have come and were not read; 0 once it is closed."""
        return int(self._call("pt_sim_get_unread"))

    def send(self, data: Data) -> int:
        """Stream: copy bytes and send them; how many were taken, 0 when there is no room.

        Raises:
            ConnectionClosed, NotConnected: it cannot be written.
        """
        view = self._simulator._binding.flat(data)
        count = self._call("pt_sim_send", view, len(view))
        return int(self._simulator._made(count, "sending on a simulated stream"))

    def recv(self, size: int = 65_536) -> bytes | None:
        """Stream: bytes that have come; None when there are none yet, b"" when the other side has
        ended its half.

        Raises:
            ConnectionClosed: the connection was broken; Timeout: it was given up.
        """
        ffi, lib = self._simulator._ffi, self._simulator._lib
        buffer, broken = ffi.new("uint8_t[]", size), ffi.new("int *")
        count = self._call("pt_sim_receive", buffer, size, broken)
        if count == lib.PT_ERR_WOULD_BLOCK:
            return None
        if count == lib.PT_ERR_CONNECTION_CLOSED and not broken[0]:
            return b""
        return bytes(
            ffi.buffer(buffer, self._simulator._made(count, "receiving on a simulated stream"))
        )

    def shut(self) -> None:
        """Stream: end our half when all is sent."""
        self._simulator._made(self._call("pt_sim_finish"), "ending a simulated stream")

    def abort(self) -> None:
        """Stream: break the connection, at once."""
        self._simulator._made(self._call("pt_sim_reset"), "breaking a simulated stream")

    def sendto(self, data: Data, address: tuple[str, int]) -> bool:
        """Datagram socket: send to one host or, at a broadcast address, to all. False: no host has
        that address."""
        view = self._simulator._binding.flat(data)
        code = self._call("pt_sim_send_to", view, len(view), parse_address(address[0]), address[1])
        if code == self._simulator._lib.PT_ERR_NETWORK:
            return False
        self._simulator._made(code, "sending a simulated datagram")
        return True

    def recvfrom(self) -> tuple[bytes, tuple[str, int]] | None:
        """Datagram socket: the next datagram with its sender; None when there is none."""
        ffi, lib = self._simulator._ffi, self._simulator._lib
        buffer = ffi.new("uint8_t[]", lib.PT_SIM_DATAGRAM_MAX)
        address, port = ffi.new("uint32_t *"), ffi.new("uint16_t *")
        count = self._call("pt_sim_receive_from", buffer, len(buffer), address, port)
        if count == lib.PT_ERR_WOULD_BLOCK:
            return None
        self._simulator._made(count, "receiving a simulated datagram")
        return bytes(ffi.buffer(buffer, count)), (show_address(address[0]), int(port[0]))
