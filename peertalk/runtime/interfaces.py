"""Asks the system for its network interfaces and their IPv4 addresses, and nothing else; opens no
socket of its own.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import struct
import sys
from typing import Any

from ..protocol.addresses import Interface, host_interfaces, interface_of, unlabelled

try:
    import ctypes
except ImportError:  # some builds of Python go without; see system_addresses()
    ctypes = None  # type: ignore[assignment]

_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_IFADDRS = struct.Struct("@PPIPP")
"""The beginning of struct ifaddrs: next, name, flags, address and netmask."""
_USED_UP = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def system_addresses() -> list[Interface]:
    """Asks getifaddrs(3) of the C library, the one call that tells all addresses of all interfaces
    with Linux (glibc and musl), macOS and the BSDs.

    Where there is none, or a sandbox forbids it, only the host's own name is known.

    Raises:
        OSError: out of descriptors or memory.
    """
    try:
        ask, free = _library()
    except (AttributeError, OSError, TypeError):  # no ctypes, no such function, a static Python
        return _named_addresses()
    numbers = {name: number for number, name in socket.if_nameindex()}
    head = ctypes.c_void_p()
    if ask(ctypes.byref(head)):
        code = ctypes.get_errno()
        if code in _USED_UP:
            raise OSError(code, os.strerror(code))
        return _named_addresses()
    found = []
    try:
        following = head.value
        while following:
            following, name_at, flags, address_at, netmask_at = _IFADDRS.unpack(
                ctypes.string_at(following, _IFADDRS.size)
            )
            if flags & _IFF_UP and address_at and netmask_at:
                family, address = _sockaddr(address_at)
                name = unlabelled(os.fsdecode(ctypes.string_at(name_at)), numbers)
                if family == socket.AF_INET:
                    number, plugged = numbers.get(name, 0), bool(flags & _IFF_RUNNING)
                    netmask = _sockaddr(netmask_at)[1]
                    found.append(interface_of(name, number, address, netmask, plugged))
    finally:
        free(head)
    return found


@functools.cache
def _library() -> tuple[Any, Any]:
    """getifaddrs and freeifaddrs. Opened once: each CDLL is a class of its own, which only the
    collector of garbage takes away.

    Raises:
        AttributeError, OSError, TypeError: there is no ctypes, no such function, or no library.
    """
    library = ctypes.CDLL(None, use_errno=True)
    return library.getifaddrs, library.freeifaddrs


def _sockaddr(at: int) -> tuple[int, str]:
    """The family of a struct sockaddr, and its IPv4 address. The BSDs begin with its length, and
    cut a netmask behind the last byte that is not 0."""
    head: bytes = ctypes.string_at(at, 8)
    if sys.platform.startswith("linux"):
        return int.from_bytes(head[:2], sys.byteorder), socket.inet_ntoa(head[4:])
    return head[1], socket.inet_ntoa(head[4 : head[0]].ljust(4, b"\0"))


def _named_addresses() -> list[Interface]:
    addresses: set[str] = set()
    with contextlib.suppress(OSError):
        entries = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
        addresses = {str(entry[4][0]) for entry in entries}
    return host_interfaces(addresses)
