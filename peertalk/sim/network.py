"""A simulated network as programs see it: hosts, links and a clock, nodes that live there, and what
has happened.

What is given is checked here in the words of its user and handed to the simulator in C as whole
numbers: nanoseconds, bytes, chances. A node is the one of asyncio, in a world of its own.

Invariant: the same seed, program and core give the same trace. Never: a socket, the time or chance
of the machine that it runs on.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable
from typing import Any, Self

from .. import errors
from .._core import load
from ..config import PROFILES, Config
from ..node import Node as _Node
from ..quantities import parse_duration, parse_size
from .world import Box, SimulatedWorld

PLATFORMS = ("mactcp", "opentransport")
"""Worlds that a node may live in."""
PRESETS = ("none", "lan", "classic")
HOSTS = 4_096
"""Machines in one network, at most."""
_CORES = ("standard", "lowmem")
"""Those that a network is for: the compiled ones."""

_SECOND = 1_000_000_000
_LONGEST_NS = 366 * 86_400 * _SECOND
"""A year: no packet is late by more."""


def _one_of(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise errors.InvalidArgument(
            f"{what} {given!r}: on a simulated network there are {', '.join(map(repr, known))}"
        )


def _chance(what: str, given: float | None) -> float | None:
    if given is not None and not (isinstance(given, int | float) and 0 <= given <= 1):
        raise errors.InvalidArgument(f"{what} of {given!r}: a chance is 0 to 1")
    return given


def _nanoseconds(what: str, given: float | str | None) -> int | None:
    ns = None if given is None else round(parse_duration(given) * _SECOND)
    if ns is not None and ns > _LONGEST_NS:
        raise errors.InvalidArgument(f"{what} of {given!r}: at most a year")
    return ns


def _byte_ns(bandwidth: int | str | None) -> int | None:
    """Nanoseconds for each byte."""
    if bandwidth is None:
        return None
    rate = parse_size(bandwidth.removesuffix("/s") if isinstance(bandwidth, str) else bandwidth)
    if not 1 <= rate <= _SECOND:
        raise errors.InvalidArgument(
            f"bandwidth of {bandwidth!r}: at least one byte a second, at most 1GB/s"
        )
    return (_SECOND + rate // 2) // rate


class Clock:
    """Virtual time, read only. ns: integer nanoseconds since the beginning; seconds; ticks: of 1/60
    s, as a classic Mac counts them."""

    def __init__(self, simulator: Any) -> None:
        self._simulator = simulator

    @property
    def ns(self) -> int:
        """Nanoseconds since the beginning."""
        return int(self._simulator.now_ns)

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return float(self._simulator.now_ns) / _SECOND

    @property
    def ticks(self) -> int:
        """Ticks of 1/60 s since the beginning, modulo 2^32."""
        return int(self._simulator.ticks)

    def __repr__(self) -> str:
        return f"<Clock {self.seconds:.9f} s>"


class Node(_Node):
    """A node on a simulated network; made by Network.node(). In all else it is a peertalk.Node.

    host: its machine there, of _core; platform: "mactcp" or "opentransport".
    """

    _world: SimulatedWorld

    @property
    def host(self) -> Any:
        """The machine that it runs on."""
        return self._world.host

    @property
    def platform(self) -> str:
        """Which world it lives in."""
        return self._world.platform

    @property
    def violations(self) -> tuple[str, ...]:
        """Rules of the platform's maker that were broken so far; empty in a healthy run."""
        transport = self._transport
        if transport is None or transport.closed:
            return self._world.violations
        return tuple(transport.loop.violations())

    def fail_memory(self, attempt: int) -> None:
        """Make the attempt-th allocation of slots and staging buffers from now, and all after it,
        fail; 0: none any more."""
        if attempt < 0:
            raise errors.InvalidArgument(
                f"attempt {attempt}: 1 is the next allocation, 0 lets all of them succeed again"
            )
        self._engine.loop.pool.fail_at(attempt)

    def record(self) -> list[bytes]:
        """Every payload that arrives from now on, in order, in a list that grows; what receive()
        gives is not touched. has_sent() works from now on."""
        if self._world.log is None:
            self._world.log = []
            self._world.accepted = {}
        return self._world.log

    def has_sent(self, payload: bytes) -> bool:
        """Whether a link has accepted this message since record() was called."""
        return self._world.accepted is not None and zlib.crc32(payload) in self._world.accepted


class Trace:
    """What has happened in a network.

    hash: 16 hexadecimal digits over every decision so far; the same for the same seed, program and
    C core. records: decisions that are still kept (the last 16,384): (time_ns, kind, source,
    target, a, b).
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._records: deque[Any] = deque(maxlen=16_384)

    @property
    def hash(self) -> str:
        """16 hexadecimal digits."""
        return f"{self._network._simulator.trace_hash:016x}"

    @property
    def records(self) -> list[Any]:
        """The decisions that are kept, oldest first."""
        self._records.extend(self._network._simulator.trace())
        return list(self._records)

    def in_order(self) -> bool:
        """Whether on each connection what arrived is what was accepted, whole, in order and
        once."""
        return not self._network._box.order_faults

    @property
    def order_faults(self) -> list[str]:
        """Where that was not so, at most 100 of them."""
        return list(self._network._box.order_faults)


class Network:
    """Hosts, links and a clock; nodes are added by node(). Used through run(), which gives it to
    the program.

    Args:
        seed: of every random decision.
        preset: of links and hosts: "none" (instant, no loss), "lan" or "classic" (the machines and
            wires of 1990).

    clock: virtual time. trace: what has happened.
    """

    def __init__(self, seed: int = 0, *, preset: str = "none") -> None:
        _one_of("preset", preset, PRESETS)
        if type(seed) is not int:
            raise errors.WrongType(f"seed {seed!r}: use a whole number, 0 to 2^64 - 1")
        core = load()
        self.seed = seed
        self._simulator: Any = core.Simulator(seed, preset=preset)
        self.clock = Clock(self._simulator)
        self.trace = Trace(self)
        self.nodes: list[Node] = []
        self._box = Box(self._simulator)
        self._vanished: list[Any] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every node, in the order in which they were made."""
        for node in self.nodes:
            if node.host in self._vanished:
                node.close_nowait()
            else:
                await node.aclose()

    def close(self) -> None:
        """Give the network's memory back; its nodes must be closed."""
        self.trace.records  # noqa: B018 - what is kept stays readable
        self._simulator.close()

    # Nodes and hosts ------------------------------------------------------------------------------

    def host(self, name: str, *, window: int | None = None, **costs: int) -> Any:
        """The machine of that name, made if it is not there.

        Args:
            window: bytes that connections which it opens from now on buffer for a slow reader, at
                least 1.
            costs: send_fixed_ns, send_byte_ns, receive_fixed_ns, receive_byte_ns of its processor.
                None given: those of the preset; else what is not given is 0.
        """
        if window is not None and window < 1:
            raise errors.InvalidArgument(f"window of {window}: at least one byte")
        for cost, value in costs.items():
            if not 0 <= value <= _LONGEST_NS:
                raise errors.InvalidArgument(f"{cost} of {value}: 0 to {_LONGEST_NS:,} ns")
        host = self._box.hosts.get(name)
        if host is None:
            if len(self._box.hosts) >= HOSTS:
                raise errors.OutOfMemory(f"host {name!r}: a network has at most {HOSTS:,} hosts")
            host = self._box.hosts[name] = self._simulator.add_host(name, window=window, **costs)
            return host
        if costs:
            host.set_costs(**costs)
        if window is not None:
            host.set_window(window)
        return host

    async def node(
        self,
        name: str,
        *,
        platform: str = "mactcp",
        core: str | None = None,
        profile: str | None = None,
        push: bool = False,
        packing: bool = True,
        blocks: bool = False,
        window: int | None = None,
        pool_bytes: int | None = None,
        **config: Any,
    ) -> Node:
        """Start a node on the machine of that name, which is made if it is not there. Two nodes at
        once on one machine need ports of their own.

        Args:
            platform: "mactcp" or "opentransport".
            core: "standard" or "lowmem"; None: what profile says, else the one that load() gives.
            profile: as of Config: "embedded": the lowmem core and its limits.
            push: writes leave at once, even small ones (MacTCP's push flag).
            packing: small messages share a slot; False: one message in each.
            blocks: where every slot is taken a send blocks, and with it the whole network, until
                they have drained, at most 5 s, instead of waiting in the outbox.
            window: bytes that its connections buffer while it does not read.
            pool_bytes: memory for slots and staging buffers; None: what max_peers and
                pipeline_depth can use.
            config: fields of Config; the environment is not asked. max_peers and pipeline_depth
                default to those of the core.
        """
        _one_of("platform", platform, PLATFORMS)
        if core is not None:
            _one_of("core", core, _CORES)
        if profile is not None:
            _one_of("profile", profile, tuple(PROFILES))
        chosen = load(core or (str(PROFILES[profile]["core"]) if profile else None))
        host = self.host(name, window=window)
        config.setdefault("max_peers", chosen.limits.max_peers)
        config.setdefault("pipeline_depth", chosen.limits.classic_depth)
        config |= {"core": chosen.name, "profile": profile or "", "bind": host.address}
        node = Node(
            config=Config(name=name, **config),
            world=SimulatedWorld(self._box, host, platform, push, packing, blocks, pool_bytes),
        )
        await node.start()
        self.nodes.append(node)
        return node

    def vanish(self, node: Node | str) -> None:
        """Power off: no reset, no good-bye. What it had sent and was not on the wire is gone
        too."""
        host = self._host_of(node)
        if host not in self._vanished:
            self._vanished.append(host)
        host.vanish()

    def come_back(self, node: Node | str) -> None:
        """Power on again; connections of before are gone."""
        host = self._host_of(node)
        if host in self._vanished:
            self._vanished.remove(host)
        host.return_()

    # Links ----------------------------------------------------------------------------------------

    def link(
        self,
        a: Node | str,
        b: Node | str,
        *,
        latency: float | str | None = None,
        jitter: float | str | None = None,
        bandwidth: int | str | None = None,
        loss: float | None = None,
        duplicate: float | None = None,
        reorder: float | None = None,
        reorder_by: float | str | None = None,
        damage: float | None = None,
        preset: str | None = None,
        both: bool = True,
    ) -> None:
        """Change the path from a to b, and back unless both is False. What is not given stays as it
        is.

        Args:
            latency, jitter: seconds, or "50ms", at most a year; jitter: up to so much more, evenly.
            bandwidth: bytes a second, or "90KB/s". Kept as whole nanoseconds for each byte, so it
                is coarse above 10 MB/s; 1 GB/s at most.
            loss, duplicate, reorder, damage: chance for each packet, 0 to 1. damage flips one bit,
                which no checksum below peertalk tells.
            reorder_by: how long a reordered packet is held back.
            preset: first set everything as "none", "lan" or "classic" has it.
        """
        given = {
            "loss": _chance("loss", loss),
            "duplicate": _chance("duplicate", duplicate),
            "reorder": _chance("reorder", reorder),
            "damage": _chance("damage", damage),
            "latency_ns": _nanoseconds("latency", latency),
            "jitter_ns": _nanoseconds("jitter", jitter),
            "reorder_ns": _nanoseconds("reorder_by", reorder_by),
            "byte_ns": _byte_ns(bandwidth),
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        self._simulator.link(self._host_of(a), self._host_of(b), both=both, preset=preset, **chosen)

    def cut(self, a: Node | str, b: Node | str, *, both: bool = True) -> None:
        """Drop everything on the path from a to b, and back unless both is False. Silent: nobody is
        told."""
        self._simulator.cut(self._host_of(a), self._host_of(b), both=both)

    def reset(
        self, a: Node | str, b: Node | str, *, side: str = "both", which: int | None = None
    ) -> int:
        """Reset connections between a and b, as a box between them does that forgets or forbids
        them. Returns how many ends saw it.

        Args:
            side: "both", or "a" or "b": only that one sees it. The other side hears nothing until
                it sends, which is answered by a reset then, as TCP does it. What a side had
                received can be read all the same, before it is told of the end.
            which: one of several: 0 the oldest, 1 the next, -1 the newest; None: all. Nothing
                happens when there are not so many.
        """
        return int(
            self._simulator.reset(self._host_of(a), self._host_of(b), side=side, which=which)
        )

    def connections(self, a: Node | str, b: Node | str) -> int:
        """How many connections there are between a and b now, those included that are being opened
        and those of which one side is over."""
        return int(self._simulator.connections(self._host_of(a), self._host_of(b)))

    def heal(self, a: Node | str | None = None, b: Node | str | None = None) -> None:
        """Undo cut() between two, or all cuts and partitions."""
        if a is None or b is None:
            self._simulator.heal()
        else:
            self._simulator.heal(self._host_of(a), self._host_of(b))

    def partition(self, *groups: Iterable[Node | str]) -> None:
        """Cut every path between hosts of different groups."""
        self._simulator.partition(*([self._host_of(each) for each in group] for group in groups))

    def counts(self, a: Node | str, b: Node | str) -> Any:
        """What took the path from a to b: packets, bytes, lost, cut, duplicated, reordered,
        damaged, delivered."""
        return self._simulator.link_statistics(self._host_of(a), self._host_of(b))

    def faults(self) -> list[str]:
        """What must not have happened: broken order, rules of a platform's maker broken, buffers
        that were not given back. Complete once the nodes are closed."""
        found = self._box.faults + self._box.order_faults
        for node in self.nodes:
            if node._transport is not None and not node._transport.closed:
                found += [f"{node.host.name}: {text}" for text in node.violations]
        return found

    def random(self, size: int) -> bytes:
        """Bytes from the seed, for programs that want choices of their own."""
        if size < 0:
            raise errors.InvalidArgument(f"{size} random bytes: at least none")
        return bytes(self._simulator.random(size))

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes that the network itself holds, now and at most so far. Those of nodes are in
        node.memory."""
        held, peak = self._simulator.memory
        return int(held), int(peak)

    def _host_of(self, node: Node | str) -> Any:
        if isinstance(node, str):
            if node not in self._box.hosts:
                known = ", ".join(map(repr, self._box.hosts)) or "none"
                raise errors.InvalidArgument(
                    f"no host of this network is called {node!r}; there are {known}"
                )
            return self._box.hosts[node]
        if not isinstance(node, Node):
            raise errors.WrongType(
                f"{node!r} is no place on this network: use a node, or the name of a host"
            )
        if node.host not in self._box.hosts.values():
            raise errors.InvalidArgument(f"node {node.name!r} lives on another network")
        return node.host

    def __repr__(self) -> str:
        return (
            f"<Network seed {self.seed}, {len(self._box.hosts)} hosts, {self.clock.seconds:.6f} s>"
        )
