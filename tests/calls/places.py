"""Where the nodes are: in the simulator, or on the loopback of this machine; and how the network is
broken and healed there."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import socket
import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import peertalk as pt
from calls.ledger import LONGEST, NAMES, Life
from peertalk import errors, sim


class Place(ABC):
    """Where the four nodes live: how they are started, how the network is broken, and time.

    pauses: seconds that the driver waits between calls; patience: seconds after which everything
    that still waits is a finding; slack: seconds that a time-out may be late.
    """

    pauses: tuple[float, ...]
    patience: float
    slack: float
    can_reset = can_cut = can_vanish = False

    @abstractmethod
    async def start(self, name: str) -> pt.Node:
        """A node of this name, or a new life of one."""

    @abstractmethod
    def time(self) -> float:
        """Seconds, on the clock of this place."""

    @abstractmethod
    def cut(self, dice: random.Random, lives: list[Life]) -> str:
        """Pull a cable; says which."""

    @abstractmethod
    def reset(self, dice: random.Random, lives: list[Life]) -> str:
        """Reset connections; says which."""

    @abstractmethod
    def heal(self) -> None:
        """Undo every cut."""


class Simulated(Place):
    """The simulator: both classic worlds, both cores, virtual time."""

    pauses = (0, 0, 0, 0.0005, 0.003, 0.02, 0.1, 0.1, 1, 3)
    patience = 300.0
    slack = 1.0
    can_cut = can_vanish = True

    def __init__(self, net: sim.Network, dice: random.Random) -> None:
        self.net, self.dice = net, dice
        self.can_reset = hasattr(net, "reset")
        self.discovery = dice.random() < 0.6
        self.settings = {
            name: {
                "platform": dice.choice(sim.PLATFORMS),
                "core": dice.choice(("standard", "standard", "lowmem")),
                "receive_queue_bytes": dice.choice((4096, 65_536, 4 * 1024**2)),
                "max_message": LONGEST,
                "send_queue_size": dice.choice((16, 256, 1024)),
            }
            for name in NAMES
        }
        for a in NAMES:
            for b in NAMES:
                if a < b:
                    net.host(a), net.host(b)
                    net.link(
                        a,
                        b,
                        latency=dice.choice((0, 0.001, 0.02)),
                        jitter=dice.choice((0, 0, 0.005)),
                        loss=dice.choice((0, 0, 0, 0.01)),
                    )

    async def start(self, name: str) -> pt.Node:
        return await self.net.node(name, discovery=self.discovery, **self.settings[name])

    def time(self) -> float:
        return self.net.clock.seconds

    def cut(self, dice: random.Random, lives: list[Life]) -> str:
        a, b = dice.sample(NAMES, 2)
        how = dice.randrange(4)
        if how == 0:
            self.net.partition([a], [name for name in NAMES if name != a])
            return f"cut {a} off"
        both = how != 1
        self.net.cut(a, b, both=both)
        return f"cut {a} to {b}{' and back' if both else ''}"

    def reset(self, dice: random.Random, lives: list[Life]) -> str:
        a, b = dice.sample(NAMES, 2)
        side, which = dice.choice(("both", "a", "b")), dice.choice((None, None, 0, -1))
        count = self.net.reset(a, b, side=side, which=which)
        return f"reset {a} to {b}, seen by {side}, {which}: {count} ends"

    def heal(self) -> None:
        self.net.heal()


class Loopback(Place):
    """Real sockets on this machine. Connections are found from outside, among the descriptors of
    this process, and tampered with as a bad network would; no privilege is needed, but Linux is.

    In some runs nodes speak over sockets of this host where they find such: those break by no bad
    network, but with the programs at their ends.

    A reset: the kernel disconnects one end's socket, one where nothing waits, whose owner sees
    ECONNRESET, and the other end gets the RST, unless it is to see nothing: then its socket drops
    all that comes while that is under way. A pulled cable: a filter on both ends drops every packet
    of the connection, and one on the listeners whoever dials. While it is out both ends are kept
    open here: one that its owner closes would become a rest of a socket in the kernel, which nobody
    can reach, and which goes on dropping for ever, as no network does.
    """

    pauses = (0, 0, 0, 0, 0, 0, 0, 0.0005, 0.001, 0.003)
    patience = 40.0
    slack = 60.0
    can_reset = can_cut = sys.platform == "linux"
    _ATTACH, _DETACH = 26, 27  # SO_ATTACH_FILTER, SO_DETACH_FILTER

    def __init__(self, dice: random.Random, core: str, discovery_port: int) -> None:
        self.core, self.discovery_port = core, discovery_port
        self.discovery = dice.random() < 0.6
        self.local = dice.random() < 0.4
        self.ports: dict[str, int] = dict.fromkeys(NAMES, 0)
        self.settings = {
            name: {
                "receive_queue_bytes": dice.choice((4096, 65_536, 4 * 1024**2)),
                "max_message": LONGEST,
                "send_queue_size": dice.choice((16, 256, 1024)),
            }
            for name in NAMES
        }
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
        self._filter = struct.pack("HL", 1, ctypes.addressof(self._nothing))
        self._out: list[socket.socket] = []

    async def start(self, name: str) -> pt.Node:
        options: dict[str, Any] = {
            "bind": "127.0.0.1",
            "core": self.core,
            "discovery": self.discovery,
            "discovery_port": self.discovery_port,
            "local": self.local,
            "udp_port": 0,
            "announce_interval": 0.2,
            "peer_timeout": 2.0,
            "connect_timeout": 2.0,
            "link_timeout": 2.0,
            "ping_interval": 0.5,
            "drain_timeout": 1.0,
            "max_peers": 32,
            **self.settings[name],
        }
        node = pt.Node(name, port=self.ports[name], **options)
        try:
            await node.start()
        except errors.AddressInUse:
            node = pt.Node(name, port=0, **options)
            await node.start()
        self.ports[name] = node.address[1]
        return node

    def time(self) -> float:
        return asyncio.get_running_loop().time()

    def _sockets(self) -> Iterator[tuple[socket.socket, bool]]:
        """Duplicates of this process's sockets of our ports: connections (True) and listeners. In a
        fixed order of ports."""
        ports = set(self.ports.values())
        for text in sorted(os.listdir("/proc/self/fd"), key=int):
            try:
                if not os.readlink(f"/proc/self/fd/{text}").startswith("socket:"):
                    continue
                found = socket.socket(fileno=os.dup(int(text)))
            except OSError:
                continue  # it was that of the listing
            with found:
                if found.family != socket.AF_INET or found.type != socket.SOCK_STREAM:
                    continue
                try:
                    here = found.getsockname()[1]
                    there = found.getpeername()[1]
                except OSError:
                    there = 0
                if here in ports or there in ports:
                    yield found, bool(there)

    @staticmethod
    def _is_still(found: socket.socket) -> bool:
        """Nothing lies there unread or unacknowledged: the kernel throws that away when it
        disconnects a socket, and forgets that it had it, which no reset from outside does."""
        import fcntl  # where there is Linux

        waits = (fcntl.ioctl(found.fileno(), request, bytes(4)) for request in (0x541B, 0x5411))
        return not any(map(any, waits))

    def _drop(self, found: socket.socket) -> None:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, self._ATTACH, self._filter)

    def cut(self, dice: random.Random, lives: list[Life]) -> str:
        share = dice.choice((0.2, 0.5, 1.0))
        chosen: dict[tuple[Any, Any], bool] = {}
        for found, connected in self._sockets():
            if not connected:
                if dice.random() < share:
                    self._drop(found)
                continue
            ends = sorted((found.getsockname(), found.getpeername()))
            if chosen.setdefault((ends[0], ends[1]), dice.random() < share):
                self._drop(found)
                self._out.append(found.dup())
        return f"cut {share:.0%} of the connections"

    def reset(self, dice: random.Random, lives: list[Life]) -> str:
        still = [
            (found.getsockname(), found.getpeername())
            for found, connected in self._sockets()
            if connected and self._is_still(found)
        ]
        if not still:
            return "reset nothing"
        ends, both = dice.choice(still), dice.random() < 0.5
        for wanted in [] if both else [(ends[1], ends[0])]:
            for found, connected in self._sockets():
                if connected and (found.getsockname(), found.getpeername()) == wanted:
                    self._drop(found)
        for found, connected in self._sockets():
            if connected and (found.getsockname(), found.getpeername()) == ends:
                self._libc.connect(found.fileno(), bytes(16), 16)  # AF_UNSPEC: disconnect
        if not both:
            self._let_through(lambda here, there: (here, there) == (ends[1], ends[0]))
        return f"reset a connection{', seen by both' if both else ''}"

    def _let_through(self, chosen: Callable[[Any, Any], bool]) -> None:
        for found, connected in self._sockets():
            there = found.getpeername() if connected else None
            if chosen(found.getsockname(), there):
                with contextlib.suppress(OSError):
                    found.setsockopt(socket.SOL_SOCKET, self._DETACH, 0)

    def heal(self) -> None:
        if self.can_cut:
            self._let_through(lambda here, there: True)
        while self._out:
            self._out.pop().close()
