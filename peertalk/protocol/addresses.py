"""IPv4 addresses and network interfaces: which are ours, by which of them a packet reaches
everybody, and who is near.

Interfaces are values, as the system has told them. Never: asks the system, or looks up a name.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import NamedTuple

from .. import errors
from .neighbours import ADDRESSES_MAX

Address = tuple[str, int]

LOOPBACK = "127.0.0.1"
"""The address of every machine for itself."""
_LIMITED_BROADCAST = "255.255.255.255"


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

    @property
    def is_loopback(self) -> bool:
        """Whether no other machine is reached by it."""
        return self.address.startswith("127.")


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
        if not first.is_loopback:
            for each in others:
                if len(networks) < ADDRESSES_MAX and not same_network(networks, each.address):
                    networks.append(each)
                    found.append((each, each.broadcast or _LIMITED_BROADCAST))
        found.append((first, first.broadcast if first.is_loopback else _LIMITED_BROADCAST))
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


@lru_cache(1024)  # each packet asks for its sender's and for those of all interfaces
def _number(address: str) -> int:
    return int(ipaddress.IPv4Address(address))


def _has(interface: Interface, address: str) -> bool:
    """Whether the address is this one; all of 127/8 is loopback's."""
    return interface.address == address or (interface.is_loopback and address.startswith("127."))


def interface_of(name: str, number: int, address: str, netmask: str, plugged: bool) -> Interface:
    """One address of an interface, as the system tells it. The broadcast address follows from the
    network: without `brd` the system's is our own, 0.0.0.0 or the other end of a tunnel."""
    if address.startswith("127."):
        return Interface(name, number, address, "127.255.255.255", "255.0.0.0", plugged)
    rest = _number(netmask) ^ 0xFFFFFFFF
    broadcast = str(ipaddress.IPv4Address(_number(address) | rest)) if rest > 1 else ""
    return Interface(name, number, address, broadcast, netmask, plugged)


def host_interfaces(addresses: set[str]) -> list[Interface]:
    """What is known of the interfaces where the system tells none: the addresses of the host's own
    name. Empty: not even those, and loopback is taken to be there."""
    if not addresses:
        return [interface_of("loopback", 0, LOOPBACK, "255.0.0.0", True)]
    return [
        Interface(address, 0, address, _LIMITED_BROADCAST, "0.0.0.0")
        for address in sorted(addresses | {LOOPBACK})
    ]


def unlabelled(label: str, numbers: dict[str, int]) -> str:
    """The interface that an address is of. What the system tells is the address's label, if it has
    one: the name and then whatever somebody liked, mostly a colon first."""
    name = label.partition(":")[0]
    if name in numbers:
        return name
    return max((each for each in numbers if label.startswith(each)), key=len, default=name)
