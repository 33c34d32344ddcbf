"""IPv4 addresses and network interfaces: which are ours, by which of them a packet reaches
everybody, and who is near.

Asks the system for its interfaces and nothing else; opens no socket of its own.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import os
import socket
import struct
import sys
from typing import Any, NamedTuple

from .. import errors
from ..protocol.neighbours import ADDRESSES_MAX

try:
    import ctypes
except ImportError:  # some builds of Python go without; see system_addresses()
    ctypes = None  # type: ignore[assignment]

Address = tuple[str, int]

_LIMITED_BROADCAST = "255.255.255.255"
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_IFADDRS = struct.Struct("@PPIPP")
"""The beginning of struct ifaddrs: next, name, flags, address and netmask."""
_USED_UP = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Interface(NamedTuple):
    """One IPv4 address of a network interface that is up; an interface with three addresses is
    three of these.

    name: the interface's; number: the system's index of it, 0 where it has none; address and
    netmask: dotted; broadcast: the address that everybody in the address's network hears, "" where
    that has no room for one (/31, /32, the end of a tunnel); plugged: its cable is in, where the
    system tells.
    """

    name: str
    number: int
    address: str
    broadcast: str
    netmask: str
    plugged: bool = True


def check_address(address: object) -> Address:
    """An address as users give it: (host name or IPv4 address, TCP port).

    Raises:
        WrongType, InvalidArgument: it is none.
    """
    if not (
        isinstance(address, tuple)
        and len(address) == 2
        and isinstance(address[0], str)
        and isinstance(address[1], int)
        and not isinstance(address[1], bool)
    ):
        raise errors.WrongType(
            f"connect takes a peer, a name or an address (host, port), not {errors.shown(address)}"
        )
    host, port = address
    if not host:
        raise errors.InvalidArgument(
            "the host of an address is empty: give its name or IPv4 address"
        )
    if not 0 < port <= 65_535:
        raise errors.InvalidArgument(f"port {errors.shown(port)}: must be 1 to 65,535")
    return host, port


def address_of(text: str) -> Address | None:
    """The address that "HOST:PORT" says; None: the text is no such address."""
    host, _, port = text.rpartition(":")
    if not host or ":" in host or not (port.isascii() and port.isdecimal()) or len(port) > 5:
        return None
    return (host, int(port)) if 0 < int(port) <= 65_535 else None


def dotted_address(host: str) -> str | None:
    """The host, where it is an IPv4 address; None: it is a name."""
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        return None


def check_interfaces(
    existing: list[str], found: list[Interface], names: tuple[str, ...], bind: str
) -> None:
    """Refuse what can never work: names (Config.interfaces) of which one does not exist, and a bind
    (Config.bind) that lives on none of them. An interface that is down, or has no address yet, may
    have one later.

    Raises:
        NoNetwork: naming the option.
    """
    for name in names:
        if name not in existing:
            raise errors.NoNetwork(
                f"there is no interface {name!r} (Config.interfaces) on this machine; there are: "
                f"{', '.join(existing) or 'none'}"
            )
    homes = {each.name for each in found if bind and _has(each, bind)}
    if names and homes and not homes & set(names):
        raise errors.NoNetwork(
            f"{bind} (Config.bind) is an address of {', '.join(sorted(homes))}, which "
            f"Config.interfaces leaves out: {', '.join(names)}"
        )


def choose(found: list[Interface], names: tuple[str, ...], bind: str) -> list[Interface]:
    """Those of the interfaces that are named, if names are given, and have the address bind, if one
    is given.

    Raises:
        NoNetwork: none of them has that address now.
    """
    chosen = [
        each
        for each in found
        if (not names or each.name in names) and (not bind or _has(each, bind))
    ]
    if bind and not chosen:
        up = ", ".join(sorted({each.name for each in found})) or "none"
        raise errors.NoNetwork(
            f"no interface that is up has the address {bind} (Config.bind); up: {up}"
        )
    return chosen


def ways(interfaces: list[Interface]) -> list[tuple[Interface, str]]:
    """By which interfaces, from which addresses and to which destinations one packet goes so that
    everybody hears it, in this order.

    Everybody on a wire hears 255.255.255.255, whatever network he believes to be in, so one packet
    for each interface is enough; on loopback it is the broadcast address of that. But whoever hears
    it knows us by where it came from. So each further network of an interface is told by a packet
    of its own, from our address there, at its broadcast address if it has one, which others do not
    hear; and first, because a peer is dialled where it was heard first. Nobody remembers more than
    ADDRESSES_MAX addresses of a peer, so there are no more of them.
    """
    wires: dict[int, list[Interface]] = {}
    for each in interfaces:
        wires.setdefault(each.number, []).append(each)
    found: list[tuple[Interface, str]] = []
    for wire in wires.values():
        # those with a network first: what lies within it needs no packet of its own
        first, *others = sorted(wire, key=lambda each: not each.broadcast)
        networks = [first]
        if not _is_loopback(first):
            for each in others:
                if len(networks) < ADDRESSES_MAX and not same_network(networks, each.address):
                    networks.append(each)
                    found.append((each, each.broadcast or _LIMITED_BROADCAST))
        found.append((first, first.broadcast if _is_loopback(first) else _LIMITED_BROADCAST))
    return found


def same_network(interfaces: list[Interface], address: str) -> bool:
    """Whether address lies in the network of one of the interfaces."""
    packed = _number(address)
    return any((packed ^ _number(each.address)) & _number(each.netmask) == 0 for each in interfaces)


def is_near(interfaces: list[Interface], address: str, number: int) -> bool:
    """Whether a packet from address that came in by the interface with this number was sent on a
    network of one of these interfaces. 0: it is not known by which; then whoever has an address
    without a network (/32) may be the neighbour of any address."""
    if number == 0 and any(not each.broadcast for each in interfaces):
        return True
    return any(each.number == number for each in interfaces) or same_network(interfaces, address)


def _number(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address), "big")


def _is_loopback(interface: Interface) -> bool:
    return interface.address.startswith("127.")


def _has(interface: Interface, address: str) -> bool:
    """Whether the address is this one; all of 127/8 is loopback's."""
    return interface.address == address or (_is_loopback(interface) and address.startswith("127."))


def system_addresses() -> list[Interface]:
    """Asks getifaddrs(3) of the C library, the one call that tells all addresses of all interfaces
    with Linux (glibc and musl), macOS and the BSDs. The broadcast address that it tells is not
    used: without `brd` it is our own, 0.0.0.0 or the other end of a tunnel.

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
                name = _unlabelled(os.fsdecode(ctypes.string_at(name_at)), numbers)
                if family == socket.AF_INET:
                    number, plugged = numbers.get(name, 0), bool(flags & _IFF_RUNNING)
                    netmask = _sockaddr(netmask_at)[1]
                    found.append(_interface(name, number, address, netmask, plugged))
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


def _unlabelled(label: str, numbers: dict[str, int]) -> str:
    """The interface that an address is of. What the system tells is the address's label, if it has
    one: the name and then whatever somebody liked, mostly a colon first."""
    name = label.partition(":")[0]
    if name in numbers:
        return name
    return max((each for each in numbers if label.startswith(each)), key=len, default=name)


def _sockaddr(at: int) -> tuple[int, str]:
    """The family of a struct sockaddr, and its IPv4 address. The BSDs begin with its length, and
    cut a netmask behind the last byte that is not 0."""
    head: bytes = ctypes.string_at(at, 8)
    if sys.platform.startswith("linux"):
        return int.from_bytes(head[:2], sys.byteorder), socket.inet_ntoa(head[4:])
    return head[1], socket.inet_ntoa(head[4 : head[0]].ljust(4, b"\0"))


def _interface(name: str, number: int, address: str, netmask: str, plugged: bool) -> Interface:
    if address.startswith("127."):
        return Interface(name, number, address, "127.255.255.255", "255.0.0.0", plugged)
    rest = _number(netmask) ^ 0xFFFFFFFF
    broadcast = socket.inet_ntoa((_number(address) | rest).to_bytes(4, "big")) if rest > 1 else ""
    return Interface(name, number, address, broadcast, netmask, plugged)


def _named_addresses() -> list[Interface]:
    with contextlib.suppress(OSError):
        addresses = {
            str(entry[4][0])
            for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
        }
        return [
            Interface(address, 0, address, _LIMITED_BROADCAST, "0.0.0.0")
            for address in sorted(addresses | {"127.0.0.1"})
        ]
    return [Interface("loopback", 0, "127.0.0.1", "127.255.255.255", "255.0.0.0")]
