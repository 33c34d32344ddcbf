"""The simulated network of the C core: its machines, their sockets, and its clock. The loops that
live in it are made like any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peertalk import errors
from peertalk._core.binding import Binding, moved, simulation
from peertalk._core.sockets import Socket, parse_address
from peertalk._core.values import LinkCounts, TraceRecord

PRESETS = ("none", "lan", "classic")
TRACE_KINDS = (
    "",
    "send",
    "arrive",
    "deliver",
    "ack",
    "lost",
    "cut",
    "duplicate",
    "reorder",
    "damage",
    "retransmit",
    "give_up",
    "reset",
    "open",
    "accept",
    "refuse",
    "close",
    "datagram",
    "overflow",
    "window",
    "note",
)
"""Presets of a simulated network, and the kinds of its decisions, by their numbers in pt_sim.h."""

SIDES = ("a", "b", "both")
"""Who sees the reset of a connection."""

_CHANCES = ("loss", "duplicate", "reorder", "damage")


class Host:
    """A machine of a simulated network. Made by Simulator.add_host().

    Attributes:
        name, address: what it was given; number: its place in the network, from 0.
    """

    def __init__(self, simulator: Simulator, name: str, address: str, number: int) -> None:
        self._simulator = simulator
        self.name = name
        self.address = address
        self.number = number

    def __repr__(self) -> str:
        return f"<host {self.name!r} at {self.address}>"

    def _socket(self, call: str, *arguments: Any, what: str) -> Socket:
        handle = getattr(self._simulator._lib, call)(
            self._simulator._open_sim(), self.number, *arguments
        )
        if handle == self._simulator._lib.PT_ERR_BUSY:
            raise errors.AddressInUse(f"{what}: host {self.name!r} has the port in use")
        return Socket(self, self._simulator._made(handle, what))

    def listen(self, port: int) -> Socket:
        """Wait for connections; port 0: a free one.

        Raises:
            AddressInUse: the port is taken.
        """
        return self._socket("pt_sim_listen", port, what=f"listening on port {port}")

    def dial(self, address: str, port: int) -> Socket:
        """Begin to connect; the socket becomes ready to write when its outcome() is known.

        Raises:
            NetworkFailure: no host of this network has the address.
        """
        return self._socket(
            "pt_sim_dial", parse_address(address), port, what=f"dialling {address}:{port}"
        )

    def datagram(self, port: int) -> Socket:
        """A socket that hears datagrams and broadcasts on a port, which others may share; port 0: a
        free one."""
        return self._socket("pt_sim_datagram", port, what=f"hearing datagrams on port {port}")

    def interfaces(self) -> list[tuple[str, int, str, str]]:
        """(name, number, address, broadcast address) of its network and of loopback."""
        return [
            ("sim0", 1, self.address, "10.255.255.255"),
            ("lo", 2, "127.0.0.1", "127.255.255.255"),
        ]

    def set_costs(self, **costs: int) -> None:
        """Change what its processor takes, in ns: send_fixed_ns, send_byte_ns, receive_fixed_ns,
        receive_byte_ns; what is not given becomes 0."""
        self._set("pt_sim_set_costs", self._simulator._struct("pt_sim_costs", costs))

    def set_window(self, window: int) -> None:
        """Receive window in bytes of the streams it opens from now on."""
        self._set("pt_sim_set_window", self._simulator._binding.limited("window", window, 2**31))

    def set_completion_jitter(self, jitter_ns: int) -> None:
        """Its driver reports each write as done up to so much later, by chance: so they may be
        reported out of order."""
        self._set("pt_sim_set_completion_jitter", jitter_ns)

    def vanish(self) -> None:
        """Power off: silent and deaf from now on, without a word."""
        self._set("pt_sim_set_vanished", 1)

    def return_(self) -> None:
        """Power on again; the streams of before are broken."""
        self._set("pt_sim_set_vanished", 0)

    def _set(self, call: str, value: Any) -> None:
        self._simulator._made(
            getattr(self._simulator._lib, call)(self._simulator._open_sim(), self.number, value),
            f"host {self.name!r}",
        )


class Simulator:
    """A network in a box, on a clock of its own: hosts, links and sockets, driven by one seed. Time
    moves when somebody advances it. One thread.

    Args:
        seed: 0 to 2^64 - 1.
        preset: what links and hosts start with: "none" (instant), "lan", "classic" (two old Macs).
        memory_limit: bytes that the network may hold; a packet that finds none is lost.
        trace_records: decisions kept until trace() takes them.

    Attributes:
        hosts: in the order in which they were added.

    Raises:
        InvalidArgument: an argument out of its bounds. OutOfMemory: not even an empty network fits
            the limit.
    """

    def __init__(
        self,
        binding: Binding,
        seed: int = 0,
        *,
        preset: str = "none",
        memory_limit: int = 256 << 20,
        trace_records: int = 16_384,
    ) -> None:
        self._binding = binding
        self._ffi, self._lib = ffi, lib = simulation().ffi, simulation().lib
        self._sim: Any = None
        if not 0 <= seed < 2**64:
            raise errors.InvalidArgument(f"seed {seed}: it must be 0 to 2^64 - 1")
        self._account = binding.ffi.new("pt_posix_memory *")
        source = binding.ffi.new("pt_memory *")
        binding.lib.pt_posix_memory_source(self._account, source)
        path, costs = self._preset(preset)
        sim = lib.pt_sim_open(
            moved(binding.ffi, source, ffi, "pt_memory *"),
            seed,
            memory_limit,
            binding.limited("trace_records", trace_records, 2**24),
        )
        if sim == ffi.NULL:
            raise errors.OutOfMemory(
                f"memory_limit of {memory_limit:,} bytes: an empty network with "
                f"{trace_records:,} trace records does not fit"
            )
        self._sim = sim
        lib.pt_sim_set_defaults(sim, path, costs)
        self.seed = seed
        self.hosts: list[Host] = []
        self._loops: dict[Any, None] = {}  # in order: closing is part of what happens

    def _preset(self, name: str) -> tuple[Any, Any]:
        if name not in PRESETS:
            raise errors.InvalidArgument(
                f"preset {name!r}: there are {', '.join(map(repr, PRESETS))}"
            )
        path, costs = self._ffi.new("pt_sim_path *"), self._ffi.new("pt_sim_costs *")
        self._lib.pt_sim_get_preset(PRESETS.index(name), path, costs)
        return path, costs

    def _open_sim(self) -> Any:
        if self._sim is None:
            raise errors.InvalidState("this simulator is closed")
        return self._sim

    def _made(self, code: int, what: str) -> int:
        """A result that is no failure.

        Raises:
            PeerTalkError: of the code's class.
        """
        if code < 0:
            raise self._binding.fault(code, what)
        return code

    def _struct(self, name: str, values: dict[str, int]) -> Any:
        made = self._ffi.new(f"{name} *")
        for key, value in values.items():
            if not hasattr(made, key):
                raise errors.InvalidArgument(f"{key}: there is {', '.join(dir(made))}")
            setattr(made, key, value)
        return made

    # Hosts and links

    def add_host(
        self, name: str, address: str | None = None, *, window: int | None = None, **costs: int
    ) -> Host:
        """Add a machine.

        Args:
            name: for the trace, and for link() and its kin.
            address: dotted IPv4; None: 10.0.0.1 and up.
            window: bytes of receive window of its streams.
            costs: in ns: send_fixed_ns, send_byte_ns, receive_fixed_ns, receive_byte_ns; none
                given: those of the preset.

        Raises:
            InvalidArgument: the name is taken or the address is none; AddressInUse: it is taken.
        """
        if any(host.name == name for host in self.hosts):
            raise errors.InvalidArgument(f"host {name!r}: there is one already")
        place = len(self.hosts) + 1
        dotted = f"10.0.{place >> 8}.{place & 0xFF}" if address is None else address
        number = self._lib.pt_sim_add_host(self._open_sim(), parse_address(dotted))
        if number == self._lib.PT_ERR_BUSY:
            raise errors.AddressInUse(f"host {name!r}: another has the address {dotted}")
        host = Host(self, name, dotted, self._made(number, f"host {name!r}"))
        self.hosts.append(host)
        if costs:
            host.set_costs(**costs)
        if window is not None:
            host.set_window(window)
        return host

    def _host(self, host: Host | str) -> Host:
        for known in self.hosts:
            if known is host or known.name == host:
                return known
        raise errors.InvalidArgument(
            f"host {host!r}: there are "
            f"{', '.join(repr(known.name) for known in self.hosts) or 'none'}"
        )

    def _ways(self, a: Host | str, b: Host | str, both: bool) -> list[tuple[int, int]]:
        one, other = self._host(a).number, self._host(b).number
        return [(one, other), (other, one)] if both and one != other else [(one, other)]

    def link(
        self,
        a: Host | str,
        b: Host | str,
        *,
        both: bool = True,
        preset: str | None = None,
        **values: float,
    ) -> None:
        """Change the way from a to b, and back.

        Args:
            preset: its values first; None: those that are there.
            values: latency_ns, jitter_ns, byte_ns, reorder_ns; loss, duplicate, reorder, damage: 0
                to 1, kept in parts per million.

        Raises:
            InvalidArgument: a value that there is not, or out of its bounds.
        """
        sim = self._open_sim()
        for source, target in self._ways(a, b, both):
            path = self._ffi.new("pt_sim_path *") if preset is None else self._preset(preset)[0]
            if preset is None:
                self._made(self._lib.pt_sim_get_path(sim, source, target, path), "a link")
            for key, value in values.items():
                if not hasattr(path, key) or value < 0:
                    raise errors.InvalidArgument(
                        f"{key} of {value}: give {', '.join(dir(path))}, not negative"
                    )
                setattr(
                    path,
                    key,
                    round(value * self._lib.PT_SIM_MILLION) if key in _CHANCES else int(value),
                )
            self._made(self._lib.pt_sim_set_path(sim, source, target, path), "a link")

    def link_values(self, a: Host | str, b: Host | str) -> dict[str, float]:
        """What link() set, of the way from a to b."""
        path = self._ffi.new("pt_sim_path *")
        self._made(
            self._lib.pt_sim_get_path(self._open_sim(), *self._ways(a, b, False)[0], path), "a link"
        )
        return {
            key: getattr(path, key) / self._lib.PT_SIM_MILLION
            if key in _CHANCES
            else getattr(path, key)
            for key in dir(path)
        }

    def link_statistics(self, a: Host | str, b: Host | str) -> LinkCounts:
        """Packets that went from a to b so far."""
        counts = self._ffi.new("pt_sim_counts *")
        self._made(
            self._lib.pt_sim_get_counts(self._open_sim(), *self._ways(a, b, False)[0], counts),
            "a link",
        )
        return LinkCounts(*(int(getattr(counts, field)) for field in LinkCounts._fields))

    def cut(self, a: Host | str, b: Host | str, *, both: bool = False) -> None:
        """Drop everything on the way from a to b, silently."""
        for source, target in self._ways(a, b, both):
            self._made(self._lib.pt_sim_set_cut(self._open_sim(), source, target, 1), "a cut")

    def heal(self, a: Host | str | None = None, b: Host | str | None = None) -> None:
        """End the cuts between two hosts, of one host with all others, or all."""
        for one in self.hosts if a is None else [self._host(a)]:
            for other in self.hosts if b is None else [self._host(b)]:
                for source, target in self._ways(one, other, True):
                    self._made(
                        self._lib.pt_sim_set_cut(self._open_sim(), source, target, 0), "a cut"
                    )

    def partition(self, *groups: Sequence[Host | str]) -> None:
        """Cut all ways between hosts of different groups."""
        for place, group in enumerate(groups):
            for other in groups[place + 1 :]:
                for a in group:
                    for b in other:
                        self.cut(a, b, both=True)

    def connections(self, a: Host | str, b: Host | str) -> int:
        """How many connections there are between two hosts, those included that are being opened
        and those of which one end is over."""
        return len(self._connections(a, b))

    def _connections(self, a: Host | str, b: Host | str) -> list[tuple[int, int]]:
        """The ends of each connection, on a and on b, oldest first; 0: that end is over."""
        one, other, number = self._host(a).number, self._host(b).number, 0
        ends = self._ffi.new("int32_t[2]")
        found: list[tuple[int, int]] = []
        while number := self._lib.pt_sim_next_connection(
            self._open_sim(), one, other, number, ends
        ):
            found.append((int(ends[0]), int(ends[1])))
        return found

    def reset(
        self, a: Host | str, b: Host | str, *, side: str = "both", which: int | None = None
    ) -> int:
        """Reset connections between two hosts as a box between them does. Returns how many ends
        saw it.

        Args:
            side: "a" or "b": that end is broken now, and the other learns of it when it sends;
                "both": both are. What an end had received can still be read.
            which: 0 the oldest, 1 the next, -1 the newest; None: all. Nothing happens when there
                are not so many.

        Raises:
            InvalidArgument: another side. InvalidState: called from a notification.
        """
        if side not in SIDES:
            raise errors.InvalidArgument(f"side {side!r}: there are {', '.join(map(repr, SIDES))}")
        found = self._connections(a, b)
        if which is not None:
            found = [found[which]] if -len(found) <= which < len(found) else []
        struck = [
            end
            for ends in found
            for end, own in zip(ends, SIDES, strict=False)
            if end and side in (own, "both")
        ]
        for end in struck:
            self._made(self._lib.pt_sim_strike(self._open_sim(), end), "a reset")
        return len(struck)

    # Time

    @property
    def now_ns(self) -> int:
        """Nanoseconds since the beginning."""
        return int(self._lib.pt_sim_now(self._open_sim()))

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return self.now_ns / 1e9

    @property
    def ticks(self) -> int:
        """Ticks of 1/60 s since the beginning, modulo 2^32."""
        return int(self._lib.pt_sim_ticks(self._open_sim()))

    def next_event_ns(self) -> int | None:
        """When the network's next event is due; None: there is none."""
        time_ns = int(self._lib.pt_sim_next_event(self._open_sim()))
        return None if time_ns == 2**64 - 1 else time_ns

    def advance(self, to_ns: int) -> int:
        """Serve all events up to to_ns; then that is the time. Returns how many.

        Raises:
            OutOfMemory: a packet was lost to the memory limit; call again to go on. InvalidState:
                called from a notification.
        """
        served = self._ffi.new("uint64_t *")
        self._made(self._lib.pt_sim_advance(self._open_sim(), to_ns, served), "advancing the clock")
        return int(served[0])

    def step(self) -> bool:
        """Advance to the time of the next event, and serve all events of that time; False: there is
        none."""
        time_ns = self.next_event_ns()
        if time_ns is None:
            return False
        self.advance(time_ns)
        return True

    # What happened

    @property
    def trace_hash(self) -> int:
        """FNV-1a 64 over every decision so far: with the same seed and calls the same on every
        machine."""
        return int(self._lib.pt_sim_trace_hash(self._open_sim()))

    @property
    def trace_dropped(self) -> int:
        """Decisions that were overwritten before trace() took them."""
        return int(self._lib.pt_sim_trace_dropped(self._open_sim()))

    def trace(self) -> list[TraceRecord]:
        """Decisions since the last call, oldest first."""
        names = [host.name for host in self.hosts] + [""]
        records = self._ffi.new("pt_sim_record[]", 1_024)
        taken: list[TraceRecord] = []
        while count := self._lib.pt_sim_trace_read(self._open_sim(), records, len(records)):
            taken += [
                TraceRecord(
                    each.time_ns,
                    TRACE_KINDS[each.kind],
                    names[each.source],
                    names[each.target],
                    each.a,
                    each.b,
                )
                for each in self._ffi.unpack(records, count)
            ]
        return taken

    def note(self, a: int, b: int = 0) -> None:
        """Put two numbers of the caller, 0 to 2^32 - 1, into trace and hash."""
        self._lib.pt_sim_note(self._open_sim(), a, b)

    def random(self, size: int) -> bytes:
        """So many bytes drawn from the seed; each call draws others.

        Raises:
            InvalidState: the simulator is closed.
        """
        out = self._ffi.new("uint8_t[]", size)
        self._lib.pt_sim_random(self._open_sim(), out, size)
        return bytes(self._ffi.buffer(out, size))

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes held now, and at most so far."""
        sim = self._open_sim()
        return int(self._lib.pt_sim_bytes(sim, 0)), int(self._lib.pt_sim_bytes(sim, 1))

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._sim is None

    def close(self) -> None:
        """Close the loops that live here, and end the network. Idempotent."""
        if self._sim is not None:
            for loop in list(self._loops):
                loop.close()
            sim, self._sim = self._sim, None
            self._lib.pt_sim_close(sim)

    def __del__(self) -> None:
        if getattr(self, "_sim", None) is not None:
            self.close()
