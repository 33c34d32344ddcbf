"""Random calls of the public API on four nodes, and an oracle that is held against everything that
comes back.

`play(form, seed, steps)` starts four nodes where the form says (FORMS), makes `steps` calls that
the seed chooses, breaks and heals the network meanwhile, restarts nodes, and at last lets
everything settle. One step is one call. What must hold is written in Ledger; the first thing that
does not is raised as a Finding, with the seed, the step and the last calls. In the simulator the
same seed gives the same run to the last decision.

Each payload says who sent it to whom, which one it is, of which class and key, and its length; the
rest is filler that follows from these. So whatever arrives can be judged by itself, and all nodes
live in this one process, so that the ledger sees both ends.

A life is one start of a node. A pair is a life that sends and a life that receives: its messages
are counted from 1 in the order of the calls. A way is a pair as one Peer object has it, which gives
accepted messages their numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import random
import socket
import struct
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, NamedTuple

import peertalk as pt
from peertalk import errors, sim
from peertalk.protocol import events

FORMS = ("simulator", "asyncio", "uvloop", "lowmem")
"""The simulator has nodes of both classic worlds and cores; the others real sockets on loopback."""

KINDS = frozenset(
    {
        "reset",
        "cut",
        "restart",
        "overlap",
        "disconnect",
        "held",
        "peer_messages",
        "stray_queue",
        "stream",
        "farewell",
    }
)
"""Kinds of calls and rules that can be left out:

reset: connections are reset, seen by both sides or by one. cut: cables are pulled. restart: nodes
are closed, politely or not, and started again. overlap: several calls that wait at once for one
class of a peer. disconnect: peers are left. held: calls of a Peer that is no longer known.
peer_messages: peer.messages(). stray_queue: send_nowait to a peer that is not connected. stream:
stream_out(). farewell: what is Sent in the end has arrived, too, if its node was closed politely.
"""
KNOWN_BROKEN: frozenset[str] = frozenset()
"""Those of KINDS that are left out because what they find is known and not yet cured."""

NAMES = ("ada", "bob", "cy", "dan")
MEMORY_MAX = 64 * 1024**2
"""Bytes that the C side of one of the four nodes may hold: far above what three links need."""
TURN_COST = 6 * 64 * 1024
"""Cost of what one link brings in one turn at most: 64 KiB of the smallest messages here."""
LAST_CALLS = 60

HEAD = struct.Struct(">cBHHIIH")
"""Kind, class, life that sends, life that receives, which message, key, length."""
CELL = struct.Struct(">cBHHII2x")
"""Of a stream, every 64 bytes: kind, nothing, life that sends, life that receives, which stream,
which cell."""
CELL_SIZE = 64
FILLER = random.Random(64).randbytes(70_000)
SIZES = (16, 16, 16, 17, 40, 64, 64, 100, 500, 1000, 1024)
CALLED, ACCEPTED, ARRIVED, REFUSED = 1, 2, 4, 8
SENT, FAILED, UNKNOWN, REPLACED, RECALLED = 1, 2, 3, 4, 5
"""What became of a number; RECALLED: Sent, and then Failed as UNKNOWN."""
_OUTCOMES = {
    events.Outcome.FAILED: FAILED,
    events.Outcome.UNKNOWN: UNKNOWN,
    events.Outcome.REPLACED: REPLACED,
}
PART = 0xFFFF_FFFF
"""In the place of a message's index: part of a stream."""

NETWORK = (errors.NetworkFailure, errors.Timeout, errors.OutOfMemory)
"""What the network may answer to any call that needs it; OutOfMemory: max_peers is reached."""
SKIPPED = (*NETWORK, errors.WouldBlock, errors.MessageTooLarge)
"""Why a broadcast may leave a peer out."""


class Finding(AssertionError):
    """Something that must not be."""


# The oracle ---------------------------------------------------------------------------------------


class Pair:
    """Messages from one life to another, counted from 1 in the order of the calls. waiting: calls
    that wait, by class. many: for each message of a send_many the first one of that: it gives those
    behind it their turn between its chunks, so these may overtake its rest.
    """

    __slots__ = (
        "broadcasts",
        "cells",
        "last",
        "last_of_key",
        "last_of_many",
        "many",
        "parts",
        "receiver",
        "sender",
        "state",
        "streams",
        "waiting",
    )

    def __init__(self, sender: Life, receiver: Life) -> None:
        self.sender, self.receiver = sender, receiver
        self.state = bytearray(1)
        self.last = [0, 0, 0, 0]
        self.last_of_key: dict[int, int] = {}
        self.last_of_many: dict[int, int] = {}
        self.many: dict[int, int] = {}
        self.broadcasts: dict[int, int] = {}
        self.streams: list[bytes] = []
        self.cells: dict[int, int] = {}
        self.parts = 0
        self.waiting = [0, 0, 0, 0]

    def __str__(self) -> str:
        return f"{self.sender} to {self.receiver}"


class Way:
    """A pair as one Peer object has it. index_of: for each number that was given, which message of
    the pair it is; outcome: what became of it.

    full: all numbers up to this one have their message. calls: those that wait. quiet: one of them
    does not say which numbers it was given; one at a time. debt: that one is over, and said how
    many of which messages were accepted; which numbers they have shows when no call waits any more,
    for each other one says its own (not at once: it is woken after it was accepted).
    """

    __slots__ = ("calls", "debt", "full", "index_of", "outcome", "pair", "peer", "quiet")

    def __init__(self, pair: Pair, peer: pt.Peer) -> None:
        self.pair, self.peer = pair, peer
        self.index_of = array("I", [0])
        self.outcome = bytearray(1)
        self.full = 0
        self.calls = 0
        self.quiet = False
        self.debt: tuple[list[int] | None, int | None] | None = None

    def claim(self, number: int, index: int) -> None:
        """This number is that message."""
        while len(self.index_of) <= number:
            self.index_of.append(0)
        if self.index_of[number]:
            raise Finding(f"{self.pair}: number {number} was given twice")
        self.index_of[number] = index
        if number == self.full + 1:
            self.full = number

    def unclaimed(self) -> list[int]:
        """Numbers that were given to messages, and that no call has returned; the caller claims
        them all."""
        while len(self.index_of) <= self.peer.accepted:
            self.index_of.append(0)
        found = [
            number
            for number in range(self.full + 1, len(self.index_of))
            if not self.index_of[number]
        ]
        self.full = len(self.index_of) - 1
        return found


class Life:
    """One start of a node. ended: "" while it runs, then "polite" or "killed"."""

    def __init__(self, ledger: Ledger, number: int, name: str, node: pt.Node) -> None:
        self.ledger, self.number, self.name, self.node = ledger, number, name, node
        self.id, self.address = node.id, node.address
        self.ways: dict[pt.Peer, Way] = {}
        self.incoming: dict[int, Pair] = {}
        self.known: dict[pt.Peer, int] = {}
        self.closing = False
        self.ended = ""
        self.settled = False
        self.datagrams: set[bytes] = set()
        self.broadcasts = 0
        self.stream = node.events()
        self.watching = asyncio.ensure_future(self._watch())
        self.reading: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"{self.name}({self.number})"

    async def _watch(self) -> None:
        async for event in self.stream:
            self.ledger.told(self, event)

    def way(self, peer: pt.Peer) -> Way | None:
        """The way to this peer; None: it is not known which life that is (it seems classic)."""
        way = self.ways.get(peer)
        if way is None:
            receiver = self.ledger.by_id.get(peer.id)
            if receiver is None:
                return None
            pair = receiver.incoming.get(self.number)
            if pair is None:
                pair = receiver.incoming[self.number] = Pair(self, receiver)
            way = self.ways[peer] = Way(pair, peer)
        return way


class Ledger:
    """What was called, what was accepted, what arrived, what was told; and what must hold.

    - Nothing arrives that was not called for, at another life, changed, twice, or though its call
      was refused or it was told as FAILED or REPLACED.
    - Messages of one class arrive in the order of their calls; those of one key likewise (they take
      each other's place, so nothing is said of their order among others).
    - Each number has one outcome in the end; Sent may be followed by one Failed(UNKNOWN).
    - What is Sent in the end has arrived at a life that still runs and has read everything, unless
      the sender was killed.
    - Counters add up; memory and inbox stay within bounds; no event is missed.
    """

    def __init__(self) -> None:
        self.lives: list[Life] = []
        self.by_id: dict[str, Life] = {}
        self.arrivals = 0

    def begin(self, name: str, node: pt.Node) -> Life:
        """A node was started."""
        life = Life(self, len(self.lives) + 1, name, node)
        self.lives.append(life)
        self.by_id[life.id] = life
        return life

    # What is sent

    def compose(self, pair: Pair, size: int, priority: int, key: int = 0) -> tuple[int, bytes]:
        """The next message of a pair: its index and its bytes."""
        index = len(pair.state)
        pair.state.append(CALLED)
        size = max(size, HEAD.size)
        head = HEAD.pack(
            b"M", priority, pair.sender.number, pair.receiver.number, index, key, size & 0xFFFF
        )
        start = index % 251
        return index, head + FILLER[start : start + size - HEAD.size]

    def compose_broadcast(
        self, life: Life, ways: list[Way], size: int, priority: int
    ) -> tuple[list[int], bytes]:
        """The next message of a life to several: for each way its index, and the bytes."""
        life.broadcasts += 1
        indexes = []
        for way in ways:
            index = len(way.pair.state)
            way.pair.state.append(CALLED)
            way.pair.broadcasts[life.broadcasts] = index
            indexes.append(index)
        head = HEAD.pack(b"B", priority, life.number, 0, life.broadcasts, 0, size)
        start = life.broadcasts % 251
        return indexes, head + FILLER[start : start + size - HEAD.size]

    def compose_stream(self, pair: Pair, cells: int) -> bytes:
        """The data of the next stream of a pair."""
        number = len(pair.streams)
        ends = (pair.sender.number, pair.receiver.number, number)
        data = b"".join(
            CELL.pack(b"S", 0, *ends, cell) + FILLER[cell : cell + CELL_SIZE - CELL.size]
            for cell in range(cells)
        )
        pair.streams.append(data)
        return data

    def accepted(self, way: Way, number: int, index: int) -> None:
        """A call returned this number."""
        way.pair.state[index] |= ACCEPTED
        way.claim(number, index)

    def refused(self, way: Way, index: int) -> None:
        """A call raised, or was cancelled: the message was not accepted."""
        way.pair.state[index] |= REFUSED
        if way.pair.state[index] & ARRIVED:
            raise Finding(f"{way.pair}: message {index} was not accepted, and arrived")

    def accepted_quietly(self, way: Way, indexes: list[int] | None, exactly: int | None) -> None:
        """A call that says no numbers is over: it accepted the first of these messages (None: parts
        of a stream). exactly: so many; None: as many as there are numbers for."""
        way.debt = indexes, exactly

    def pay(self, way: Way) -> None:
        """No call waits: all numbers that nobody has claimed are those of the quiet one."""
        if way.debt is None:
            return
        (indexes, exactly), way.debt = way.debt, None
        numbers = way.unclaimed()
        if indexes is None:
            for number in numbers:
                way.claim(number, PART)
            return
        count = len(numbers) if exactly is None else exactly
        if len(numbers) != count or count > len(indexes):
            raise Finding(
                f"{way.pair}: {len(numbers)} numbers were given to {len(indexes)} messages, of "
                f"which {count} were accepted"
            )
        for number, index in zip(numbers, indexes, strict=False):
            self.accepted(way, number, index)
        for index in indexes[count:]:
            self.refused(way, index)

    # What arrives

    def arrived(self, life: Life, peer: pt.Peer, data: bytes) -> None:
        """An application was given a message."""
        self.arrivals += 1
        if data[:1] == b"S":
            self._part(life, peer, data)
            return
        try:
            kind, priority, origin, target, index, key, size = HEAD.unpack_from(data)
        except struct.error:
            raise Finding(f"{life} got {len(data)} bytes that nobody sent") from None
        start = index % 251
        if size != len(data) or data[16:] != FILLER[start : start + size - 16]:
            raise Finding(f"{life} got {len(data)} bytes that nobody sent, or that were changed")
        pair = self._pair(life, peer, origin, life.number if kind == b"B" else target)
        if kind == b"B":
            index = pair.broadcasts.get(index, 0)
        state = pair.state[index] if index < len(pair.state) else 0
        if state & (CALLED | ARRIVED | REFUSED) != CALLED:
            why = "twice" if state & ARRIVED else "though it was not accepted"
            raise Finding(f"{pair}: message {index} came {why}")
        pair.state[index] = state | ARRIVED
        if key:
            if pair.last_of_key.get(key, 0) > index:
                raise Finding(
                    f"{pair}: message {index} of key {key} came behind {pair.last_of_key[key]}"
                )
            pair.last_of_key[key] = index
        elif (first := pair.many.get(index, 0)) and pair.last[priority] > index:
            if pair.last_of_many.get(first, 0) > index:
                raise Finding(
                    f"{pair}: message {index} of one send_many came behind "
                    f"{pair.last_of_many[first]}"
                )
            pair.last_of_many[first] = index
        elif pair.last[priority] > index:
            raise Finding(
                f"{pair}: message {index} of class {priority} came behind {pair.last[priority]}"
            )
        else:
            pair.last[priority] = index
            if first:
                pair.last_of_many[first] = index

    def _pair(self, life: Life, peer: pt.Peer, origin: int, target: int) -> Pair:
        pair = life.incoming.get(origin)
        if target != life.number or pair is None:
            raise Finding(f"{life} got a message of life {origin} to life {target}")
        if life.known.get(peer) != origin:
            if peer.id != pair.sender.id and not peer.classic:
                raise Finding(f"{life} was told that a message of {pair.sender} came from {peer}")
            life.known[peer] = origin
        return pair

    def _part(self, life: Life, peer: pt.Peer, data: bytes) -> None:
        kind, _, origin, target, number, cell = CELL.unpack_from(data)
        pair = self._pair(life, peer, origin, target)
        start = cell * CELL_SIZE
        if kind != b"S" or data != pair.streams[number][start : start + len(data)]:
            raise Finding(f"{pair}: part of stream {number} came changed")
        if cell < pair.cells.get(number, 0):
            raise Finding(f"{pair}: part of stream {number} came twice or out of order")
        pair.cells[number] = cell + len(data) // CELL_SIZE
        pair.parts += 1

    def datagram(self, life: Life, data: bytes) -> None:
        """An application was given a datagram."""
        target = int.from_bytes(data[:2], "big")
        # it goes to an address, where by now another life of that name may be
        meant = self.lives[target - 1] if 0 < target <= len(self.lives) else life
        if meant.name != life.name or data not in meant.datagrams:
            raise Finding(f"{life} got a datagram of {len(data)} bytes that nobody sent to it")

    # What is told

    def told(self, life: Life, event: Any) -> None:
        """An event, as the one stream of a life has it that is always read."""
        match event:
            case events.Sent(peer, first, last):
                self._outcome(life, peer, first, last, SENT)
            case events.Failed(peer, first, last, outcome, error):
                if not isinstance(error, errors.PeerTalkError):
                    raise Finding(f"{life}: Failed with {error!r}")
                self._outcome(life, peer, first, last, _OUTCOMES[outcome])
            case events.EventsMissed(count):
                raise Finding(f"{life} missed {count} events, though it reads them")
            case events.LinkFault(_, peer, error) if isinstance(error, errors.RemoteError):
                raise Finding(f"{life}: a link to {peer} was ended for a fault: {error}")

    def _outcome(self, life: Life, peer: pt.Peer, first: int, last: int, what: int) -> None:
        way = life.way(peer)
        if way is None:
            raise Finding(f"{life}: an outcome for {peer}, to whom nothing was sent")
        if not 1 <= first <= last <= peer.accepted:
            raise Finding(
                f"{way.pair}: an outcome for {first} to {last} of {peer.accepted} messages"
            )
        outcome = way.outcome
        if len(outcome) <= last:
            outcome.extend(bytes(last + 1 - len(outcome)))
        if not any(outcome[first : last + 1]):
            outcome[first : last + 1] = bytes((what,)) * (last + 1 - first)
            return
        for number in range(first, last + 1):
            before = outcome[number]
            if before and not (before == SENT and what == UNKNOWN):
                raise Finding(
                    f"{way.pair}: message number {number} has two outcomes, {before} and {what}"
                )
            outcome[number] = RECALLED if before else what

    # What must hold

    def look(self, life: Life) -> None:
        """At any moment."""
        node, stats = life.node, life.node.stats()
        given = sum(way.peer.accepted for way in life.ways.values())
        pending = sum(way.peer.queue.pending for way in life.ways.values())
        if stats.messages_accepted != given:
            raise Finding(
                f"{life}: {given} messages were accepted, stats() says {stats.messages_accepted}"
            )
        if stats.messages_accepted != stats.messages_sent + stats.messages_failed + pending:
            raise Finding(
                f"{life}: accepted {stats.messages_accepted}, sent {stats.messages_sent}, failed "
                f"{stats.messages_failed}, pending {pending}"
            )
        # links that have just ended have brought something, too
        links = max(stats.links_open, len(NAMES) - 1) + 1
        room = node.config.receive_queue_bytes + links * TURN_COST
        if not life.closing and stats.inbox_bytes > room:
            raise Finding(f"{life}: {stats.inbox_bytes:,} bytes in an inbox of {room:,}")
        if (held := node.memory["total"].bytes) > MEMORY_MAX:
            raise Finding(f"{life}: the C side holds {held:,} bytes")
        if stats.bad_frames or stats.crc_errors:
            raise Finding(f"{life}: {stats.bad_frames} frames were bad")

    def open_numbers(self, life: Life) -> int:
        """Messages to lives that run which have no outcome yet."""
        return sum(
            way.peer.accepted + 1 - len(way.outcome) + way.outcome.count(0, 1)
            for way in life.ways.values()
            if not way.pair.receiver.ended
        )

    def missing(self, life: Life) -> str:
        """What is Sent to lives that run, and has not arrived: "" when nothing is missing."""
        for way in life.ways.values():
            if way.pair.receiver.ended:
                continue
            for number in range(1, len(way.outcome)):
                index = way.index_of[number] if number < len(way.index_of) else 0
                if way.outcome[number] == SENT and index and index != PART:
                    if not way.pair.state[index] & ARRIVED:
                        return f"{way.pair}: message {index} (number {number}) is Sent and missing"
        return ""

    def close(self, life: Life) -> None:
        """A life is over, and all its events are in."""
        parts: Counter[int] = Counter()
        for way in life.ways.values():
            if way.peer.accepted != len(way.outcome) - 1 or 0 in way.outcome[1:]:
                number = way.outcome.find(0, 1) if 0 in way.outcome[1:] else len(way.outcome)
                raise Finding(
                    f"{way.pair}: message number {number} of {way.peer.accepted} has no outcome, "
                    "and the node is closed"
                )
            way.unclaimed()
            state = way.pair.state
            for number in range(1, len(way.outcome)):
                index, what = way.index_of[number], way.outcome[number]
                if index == PART:
                    parts[way.pair.receiver.number] += what in (SENT, UNKNOWN, RECALLED)
                elif not index:
                    raise Finding(f"{way.pair}: nobody has asked for message number {number}")
                elif what in (FAILED, REPLACED) and state[index] & ARRIVED:
                    raise Finding(
                        f"{way.pair}: message {index} (number {number}) was told as never sent, "
                        "and arrived"
                    )
        for way in life.ways.values():
            if way.pair.parts > parts[way.pair.receiver.number]:
                raise Finding(f"{way.pair}: more parts of streams arrived than were sent")
        self.look(life)
        stats = life.node.stats()
        told = sum(way.outcome.count(SENT) for way in life.ways.values())
        if stats.messages_sent != told:
            raise Finding(f"{life}: {told} were told as Sent, stats() says {stats.messages_sent}")


# The places ---------------------------------------------------------------------------------------


class Place:
    """Where the four nodes live: how they are started, how the network is broken, and time.

    pauses: seconds that the driver waits between calls; patience: seconds after which everything
    that still waits is a finding; slack: seconds that a time-out may be late.
    """

    pauses: tuple[float, ...]
    patience: float
    slack: float
    can_reset = can_cut = can_vanish = False

    async def start(self, name: str) -> pt.Node:
        raise NotImplementedError

    def time(self) -> float:
        raise NotImplementedError

    def cut(self, dice: random.Random, lives: list[Life]) -> str:
        raise NotImplementedError

    def reset(self, dice: random.Random, lives: list[Life]) -> str:
        raise NotImplementedError

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
        self.ports: dict[str, int] = dict.fromkeys(NAMES, 0)
        self.settings = {
            name: {
                "receive_queue_bytes": dice.choice((4096, 65_536, 4 * 1024**2)),
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


# The driver ---------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A call that waits. due: when it must be over; None: it may wait for ever."""

    task: asyncio.Task[None]
    text: str
    life: Life
    due: float | None


class Result(NamedTuple):
    """How a run ended: steps that were made, messages that arrived, lives, calls by kind."""

    steps: int
    arrivals: int
    lives: int
    kinds: Counter[str]


class Driver:
    """Makes the calls.

    Args:
        without: those of KINDS that are left out.
    """

    CALLS_MAX = 40

    def __init__(
        self, place: Place, dice: random.Random, steps: int, without: frozenset[str]
    ) -> None:
        self.place, self.dice, self.steps, self.without = place, dice, steps, without
        self.ledger = Ledger()
        self.step = 0
        self.kinds: Counter[str] = Counter()
        self.last: deque[str] = deque(maxlen=LAST_CALLS)
        self.calls: dict[asyncio.Task[None], Call] = {}
        self.at_once: list[Life] = []
        self.trouble: BaseException | None = None
        self.restarting = False
        self.healed_at = -1
        self.streams: list[Any] = []
        made = [
            (14.0, self.burst),
            (6.0, self.send),
            (3.0, self.send_many),
            (1.5, self.broadcast),
            (3.0, self.receive),
            (1.0, self.read_otherwise),
            (0.7, self.messages_for_a_while),
            (0.7, self.listen_for_a_while),
            (1.0, self.ping),
            (1.0, self.flags),
            (1.5, self.datagram),
            (1.0, self.receive_datagram),
            (1.0, self.wait_for),
            (2.0, self.look_up),
            (2.0, self.look),
            (2.0, self.queue),
            (1.5, self.connect),
            (2.0, self.cancel),
            (12.0, self.pause),
            (0.7 * self.has("peer_messages"), self.peer_messages),
            (0.5 * self.has("stream"), self.stream),
            (0.3 * self.has("disconnect"), self.disconnect),
            (0.15 * (self.has("reset") and place.can_reset), self.reset),
            (0.1 * (self.has("cut") and place.can_cut), self.cut),
            (0.3, self.heal),
            (0.05 * self.has("restart"), self.restart),
        ]
        self.choices = [call for _, call in made]
        self.weights = [weight for weight, _ in made]

    def has(self, kind: str) -> bool:
        """Whether this kind of calls is made."""
        return kind not in self.without

    async def run(self) -> Result:
        """Start, make the calls, settle, close."""
        try:
            for name in NAMES:
                await self.start(name)
            await self.meet()
            while self.step < self.steps:
                for call in self.dice.choices(self.choices, self.weights, k=64):
                    waits = call()
                    if waits is not None:
                        await waits
                    if self.trouble is not None:
                        raise self.trouble
                self.check_late()
            await self.settle()
            for life in self.running():
                await self.stop(life, "polite")
            await self.drop_streams()
        except Finding as finding:
            raise Finding(f"{finding}\n  {self.account()}") from finding
        return Result(self.step, self.ledger.arrivals, len(self.ledger.lives), self.kinds)

    def account(self) -> str:
        """Where the run stands, for a finding."""
        calls = "\n    ".join(self.last)
        return f"at step {self.step}, {self.place.time():.6f} s; the last calls:\n    {calls}"

    def note(self, kind: str, text: str, count: int = 1) -> None:
        """A call is made."""
        self.step += count
        self.kinds[kind] += count
        self.last.append(f"{self.step} {self.place.time():.4f} {kind} {text}")

    # Lives

    def running(self) -> list[Life]:
        """Lives that have not ended and are not about to."""
        return [life for life in self.ledger.lives if not life.closing]

    async def start(self, name: str) -> Life:
        """Start a node of that name."""
        node = await self.place.start(name)
        life = self.ledger.begin(name, node)
        life.watching.add_done_callback(self.over)
        self.read(life, "batches")
        return life

    async def meet(self) -> None:
        """Have each node know every other one."""
        for life in self.running():
            for other in self.running():
                if life is not other:
                    with contextlib.suppress(*NETWORK):
                        await life.node.connect(other.address, timeout=10)

    async def stop(self, life: Life, how: str, timeout: float = 60.0) -> None:
        """End a life, and hold what is left of it against the ledger."""
        life.closing = True
        if how == "polite":
            await life.node.aclose(timeout=timeout)
        else:
            life.node.close_nowait()
        life.ended = how
        if how == "vanish":
            self.place.net.come_back(life.node)  # type: ignore[attr-defined]
        for task in (life.watching, life.reading):
            if task is not None:
                await self.within(asyncio.wait([task]), f"{life}: a stream goes on after the end")
        for call in [call for call in self.calls.values() if call.life is life]:
            if call.task is not asyncio.current_task():
                wait = self.within(asyncio.wait([call.task]), f"{call.text} outlives its node")
                await wait
        self.ledger.close(life)

    async def within(self, waits: Coroutine[Any, Any, Any], what: str) -> Any:
        """Wait with patience."""
        try:
            return await asyncio.wait_for(waits, self.place.patience)
        except TimeoutError:
            raise Finding(f"{what}, {self.place.patience:g} s later") from None

    # Calls that wait

    def begin(
        self,
        life: Life,
        text: str,
        call: Coroutine[Any, Any, None],
        allowed: tuple[type[Exception], ...],
        timeout: float | None,
        *,
        ways: Iterable[Way] = (),
        priority: int = 1,
        quiet: bool = False,
        for_ever: bool = False,
    ) -> None:
        """Make a call that may wait. ways: those that it waits for, in the line of this class;
        quiet: without saying which numbers it was given."""
        ways = list(ways)
        for way in ways:
            way.pair.waiting[priority] += 1
            way.calls += 1
            way.quiet = way.quiet or quiet

        def no_longer(_: object) -> None:
            call.close()  # cancelled before it had begun
            for way in ways:
                way.pair.waiting[priority] -= 1
                way.calls -= 1
                if not way.calls:
                    try:
                        self.ledger.pay(way)
                    except Finding as finding:
                        self.trouble = self.trouble or finding
                if quiet or not way.calls:
                    way.quiet = way.debt is not None

        async def made() -> None:
            try:
                await call
            except errors.InvalidState as error:
                if not life.closing:
                    raise Finding(f"{text}: {error!r}") from error
            except allowed:
                pass
            except Finding:
                raise
            except Exception as error:
                raise Finding(f"{text}: {error!r}") from error

        due = None  # of a call without an end there is none
        if not for_ever:
            wait = self.place.patience if timeout is None else timeout + self.place.slack
            due = self.place.time() + wait
        task = asyncio.ensure_future(made())
        self.calls[task] = Call(task, f"{self.step} {text}", life, due)
        task.add_done_callback(self.over)
        task.add_done_callback(no_longer)

    def over(self, task: asyncio.Task[None]) -> None:
        """A call is over."""
        self.calls.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.trouble = self.trouble or error

    def check_late(self) -> None:
        """Calls that should be over."""
        now = self.place.time()
        for call in self.calls.values():
            if call.due is not None and call.due < now and call.life.ended == "":
                raise Finding(f"call {call.text} still waits, and should be over: it hangs")

    def someone(self) -> Life:
        """A life that runs."""
        return self.dice.choice(self.running())

    def peer_of(self, life: Life) -> tuple[pt.Peer, Way] | None:
        """A peer to call, and the way to it."""
        peers = list(life.node.peers.values())
        if self.has("held") and self.dice.random() < 0.1:
            peers = list(life.ways)[-6:]
        if not peers:
            return None
        peer = self.dice.choice(peers)
        way = life.way(peer)
        if way is None or (not self.has("held") and way.pair.receiver.closing):
            return None
        return peer, way

    def timeout(self) -> float | None:
        """A time-out for a call."""
        return self.dice.choice((None, None, 0, 0.001, 0.05, 1.0, 5.0))

    def size(self, peer: pt.Peer) -> int:
        """A length, mostly short, now and then the longest, rarely too long."""
        if self.dice.random() < 0.02:
            return peer.max_message - self.dice.choice((0, 0, 1, -1))
        return self.dice.choice(SIZES)

    def priority(self) -> pt.Priority:
        """A class."""
        return pt.Priority(self.dice.choice((0, 1, 1, 1, 1, 1, 2, 3)))

    # The calls ------------------------------------------------------------------------------------

    def line(self) -> tuple[Life, pt.Peer, Way, pt.Priority] | None:
        """Where a message may be sent now."""
        life = self.someone()
        found = self.peer_of(life)
        priority = self.priority()
        if found is None or (found[1].pair.waiting[priority] and not self.has("overlap")):
            return None
        return life, *found, priority

    def burst(self) -> None:
        chosen = self.line()
        if chosen is None or not (chosen[1].connected or self.has("stray_queue")):
            return
        _, peer, way, priority = chosen
        key = self.dice.choice((0, 0, 0, 1, 2))
        count = self.dice.choice((1, 1, 2, 5, 20, 60))
        size = self.size(peer)
        options: dict[str, Any] = {}
        if priority != 1:
            options["priority"] = priority
        if key:
            options["key"] = key
        if self.dice.random() < 0.1:
            options["no_delay"] = True
        ledger, send, made = self.ledger, peer.send_nowait, 0
        while made < count:
            made += 1
            index, payload = ledger.compose(way.pair, size, priority, key)
            try:
                number = send(payload, **options)
            except (errors.WouldBlock, errors.MessageTooLarge):
                ledger.refused(way, index)
                break
            except errors.NetworkFailure as error:
                ledger.refused(way, index)
                expected = way.pair.receiver.closing or self.has(
                    "disconnect" if isinstance(error, errors.NotConnected) else "reset"
                )
                if not expected:
                    raise Finding(f"send_nowait {way.pair}: {error!r}") from error
                break
            ledger.accepted(way, number, index)
        self.note("send_nowait", f"{way.pair} {made} of {count}, {size} B, {options}", made)

    def send(self) -> None:
        chosen = self.line()
        if chosen is None or len(self.calls) >= self.CALLS_MAX or chosen[2].debt is not None:
            return
        life, peer, way, priority = chosen
        timeout, size = self.timeout(), self.size(peer)
        # of one class only: a later one of another class may be accepted before this one is
        key = self.dice.choice((0, 0, 0, 4 + priority))
        options: dict[str, Any] = {}
        if key:
            options["key"] = key
        if timeout is not None:
            options["timeout"] = timeout
        if priority != 1:
            options["priority"] = priority
        if self.dice.random() < 0.1:
            options["no_delay"] = True
        if self.dice.random() < 0.1:
            options["connect"] = False
        text = f"{way.pair}, {size} B, {options}"
        self.note("send", text)

        async def call() -> None:
            index, payload = self.ledger.compose(way.pair, size, priority, key)
            try:
                number = await peer.send(payload, **options)
            except BaseException:
                self.ledger.refused(way, index)
                raise
            self.ledger.accepted(way, number, index)

        allowed = (*NETWORK, errors.MessageTooLarge)
        self.begin(life, f"send {text}", call(), allowed, timeout, ways=[way], priority=priority)

    def send_many(self) -> None:
        chosen = self.line()
        if chosen is None or len(self.calls) >= self.CALLS_MAX or chosen[2].quiet:
            return
        life, peer, way, priority = chosen
        timeout, size = self.timeout(), self.dice.choice(SIZES)
        count, as_list = self.dice.choice((0, 1, 5, 50, 300)), self.dice.random() < 0.5
        text = f"{way.pair} x{count}, {size} B, {priority}, {timeout}, list {as_list}"
        self.note("send_many", text)

        async def call() -> None:
            composed = [self.ledger.compose(way.pair, size, priority) for _ in range(count)]
            payloads = [payload for _, payload in composed]
            way.pair.many.update((index, composed[0][0]) for index, _ in composed)
            exactly: int | None = None
            try:
                exactly = await peer.send_many(
                    payloads if as_list else iter(payloads), priority=priority, timeout=timeout
                )
                if exactly != count:
                    raise Finding(f"send_many {text}: it says {exactly}")
            except errors.PeerTalkError as error:
                exactly = error.accepted
                raise
            finally:
                self.ledger.accepted_quietly(way, [index for index, _ in composed], exactly)

        allowed = (*NETWORK, errors.MessageTooLarge)
        self.begin(
            life,
            f"send_many {text}",
            call(),
            allowed,
            timeout,
            ways=[way],
            priority=priority,
            quiet=True,
        )

    def broadcast(self) -> None:
        life, priority, timeout = self.someone(), self.priority(), self.timeout()
        size = self.dice.choice(SIZES)
        ways = [way for peer in life.node.peers.values() if (way := life.way(peer)) is not None]
        if (
            len(self.calls) >= self.CALLS_MAX
            or any(way.quiet for way in ways)
            or (not self.has("overlap") and any(way.pair.waiting[priority] for way in ways))
            or (not self.has("held") and any(way.pair.receiver.closing for way in ways))
        ):
            return
        text = f"{life}, {size} B, {priority}, {timeout}"
        self.note("broadcast", text)

        async def call() -> None:
            there = [way for peer in life.node.peers.values() if (way := life.way(peer))]
            if there != ways:
                return  # somebody came or went meanwhile, to whom other calls may wait
            indexes, payload = self.ledger.compose_broadcast(life, there, size, priority)
            result: Any = None
            try:
                result = await life.node.broadcast(payload, priority=priority, timeout=timeout)
            finally:
                for way, index in zip(there, indexes, strict=True):
                    exactly = None if result is None else int(way.peer in result.accepted)
                    self.ledger.accepted_quietly(way, [index], exactly)
            for peer, error in result.skipped.items():
                gone = isinstance(error, errors.InvalidState) and life.closing
                if not gone and not isinstance(error, SKIPPED):
                    raise Finding(f"broadcast {text}: {peer} was skipped with {error!r}")

        self.begin(
            life,
            f"broadcast {text}",
            call(),
            (),
            timeout,
            ways=ways,
            priority=priority,
            quiet=True,
        )

    def stream(self) -> None:
        life = self.someone()
        found = self.peer_of(life)
        if found is None or len(self.calls) >= self.CALLS_MAX or found[1].quiet:
            return
        peer, way = found
        cells, give_up = self.dice.choice((1, 8, 100, 1024)), self.dice.random() < 0.3
        timeout = self.timeout()
        text = f"{way.pair}, {cells} cells, {timeout}"
        self.note("stream_out", text)

        async def call() -> None:
            data = self.ledger.compose_stream(way.pair, cells)
            told: list[tuple[int, int]] = []
            try:
                async with peer.stream_out(data, lambda *now: told.append(now)) as out:
                    if give_up:
                        return
                    await out.finished(timeout=timeout)
                if told and told[-1] != (len(data), len(data)):
                    raise Finding(f"stream_out {text}: it ended, and the progress was {told[-1]}")
            finally:
                self.ledger.accepted_quietly(way, None, None)

        allowed = (*NETWORK, errors.WouldBlock)
        self.begin(
            life, f"stream_out {text}", call(), allowed, timeout, ways=[way], priority=1, quiet=True
        )

    def receive(self) -> None:
        life, timeout = self.someone(), self.timeout()
        if len(self.calls) >= self.CALLS_MAX:
            return
        self.note("receive", f"{life}, {timeout}")

        async def call() -> None:
            message = await life.node.receive(timeout=timeout)
            self.ledger.arrived(life, message.peer, message.data)

        self.begin(
            life, f"receive {life}", call(), (errors.Timeout,), timeout, for_ever=timeout is None
        )

    def receive_datagram(self) -> None:
        life, timeout = self.someone(), self.timeout()
        if len(self.calls) >= self.CALLS_MAX:
            return
        self.note("receive_datagram", f"{life}, {timeout}")

        async def call() -> None:
            datagram = await life.node.receive_datagram(timeout=timeout)
            self.ledger.datagram(life, datagram.data)

        self.begin(
            life,
            f"receive_datagram {life}",
            call(),
            (errors.Timeout,),
            timeout,
            for_ever=timeout is None,
        )

    def read(self, life: Life, how: str) -> None:
        """Have a life read what comes, in this way; whoever did before, stops."""
        before = life.reading
        if before is not None:
            before.cancel()
        life.reading = None
        if how == "nobody":
            return

        async def reading() -> None:
            node, arrived = life.node, self.ledger.arrived
            if how == "batches":
                async for batch in node.batches():
                    for data in batch.payloads:
                        arrived(life, batch.peer, data)
            elif how == "messages":
                async for message in node.messages():
                    arrived(life, message.peer, message.data)
            else:
                with contextlib.suppress(errors.InvalidState):
                    while True:
                        message = await node.receive()
                        arrived(life, message.peer, message.data)

        life.reading = asyncio.ensure_future(reading())
        life.reading.add_done_callback(self.over)

    def read_otherwise(self) -> None:
        life = self.someone()
        how = self.dice.choice(("batches", "batches", "messages", "receive", "nobody"))
        self.note("read", f"{life} by {how}")
        self.read(life, how)

    def messages_for_a_while(self) -> None:
        life, count = self.someone(), self.dice.choice((0, 1, 20, 500))
        if len(self.calls) >= self.CALLS_MAX:
            return
        self.note("messages", f"{life}, {count}")

        async def call() -> None:
            left = count
            async for message in life.node.messages():
                self.ledger.arrived(life, message.peer, message.data)
                left -= 1
                if left <= 0:
                    break

        self.begin(life, f"messages {life}", call(), (), None, for_ever=True)

    def peer_messages(self) -> None:
        life, count = self.someone(), self.dice.choice((1, 20, 500))
        found = self.peer_of(life)
        if found is None or len(self.calls) >= self.CALLS_MAX:
            return
        peer = found[0]
        self.note("peer.messages", f"{found[1].pair}, {count}")

        async def call() -> None:
            left = count
            async for message in peer.messages():
                self.ledger.arrived(life, message.peer, message.data)
                left -= 1
                if left <= 0:
                    break

        self.begin(life, f"peer.messages {life}", call(), (), None, for_ever=True)

    def listen_for_a_while(self) -> None:
        life, count = self.someone(), self.dice.choice((0, 1, 5, 50))
        if len(self.streams) >= 12:
            self.note("events", "close the oldest")
            closing = self.streams.pop(0)
            self.begin(life, "events.aclose", closing.aclose(), (), None)
            return
        self.note("events", f"{life}, {count}")
        stream = life.node.events()
        self.streams.append(stream)

        async def call() -> None:
            left = count
            async for _ in stream:
                left -= 1
                if left <= 0:
                    break

        if len(self.calls) < self.CALLS_MAX:
            self.begin(life, f"events {life}", call(), (), None, for_ever=True)

    def ping(self) -> None:
        life, timeout = self.someone(), self.timeout()
        found = self.peer_of(life)
        if found is None or len(self.calls) >= self.CALLS_MAX:
            return
        peer = found[0]
        self.note("ping", f"{found[1].pair}, {timeout}")

        async def call() -> None:
            seconds = await peer.ping(timeout=timeout)
            if not 0 <= seconds <= self.place.patience:
                raise Finding(f"ping {found[1].pair} took {seconds} s")

        self.begin(
            life, f"ping {found[1].pair}", call(), NETWORK, timeout, for_ever=timeout is None
        )

    def flags(self) -> None:
        life = self.someone()
        flags = pt.PeerFlag(self.dice.randrange(0x10000) & 0xFF1F)
        self.note("flags", f"{life} {flags:#x}")
        life.node.flags = flags
        if life.node.flags != flags:
            raise Finding(f"{life}: flags {flags!r} were set, and are {life.node.flags!r}")

    def datagram(self) -> None:
        life = self.someone()
        found = self.peer_of(life)
        if found is None:
            return
        peer, way = found
        size = self.dice.choice((2, 10, 500, 1392))
        data = way.pair.receiver.number.to_bytes(2, "big") + self.dice.randbytes(size - 2)
        self.note("send_datagram", f"{way.pair}, {size} B")
        way.pair.receiver.datagrams.add(data)
        try:
            life.node.send_datagram(peer, data)
        except (errors.NotSupported, errors.PeerNotFound) as error:
            if peer.connected and peer.capabilities is not None:
                raise Finding(f"send_datagram {way.pair}: {error!r}") from error

    def wait_for(self) -> None:
        life, timeout = self.someone(), self.timeout()
        other = self.dice.choice(self.ledger.lives)
        how = self.dice.randrange(3)
        if len(self.calls) >= self.CALLS_MAX or other is life:
            return
        who: Any = (other.id, other.name, lambda peer: peer.name == other.name)[how]
        self.note("wait_for", f"{life} for {other}, {how}, {timeout}")

        async def call() -> None:
            peer = await life.node.wait_for(who, timeout=timeout)
            if peer.name != other.name:
                raise Finding(f"{life} waited for {other} and got {peer}")

        self.begin(
            life,
            f"wait_for {life}",
            call(),
            (errors.Timeout,),
            timeout,
            for_ever=timeout is None,
        )

    def look_up(self) -> None:
        life, other = self.someone(), self.dice.choice(self.ledger.lives)
        self.note("peers", f"{life} {other}")
        peers = life.node.peers
        try:
            if peers[other.id].id != other.id or peers[other.id] not in list(peers.values()):
                raise Finding(f"{life}: peers[{other.id}] is {peers[other.id]}")
            if peers[other.name].name != other.name:
                raise Finding(f"{life}: peers[{other.name!r}] is {peers[other.name]}")
        except errors.PeerNotFound:
            pass
        if len(peers) != len(list(peers)):
            raise Finding(f"{life}: {len(peers)} peers, of which {len(list(peers))} are shown")

    def look(self) -> None:
        life = self.someone()
        self.note("stats", f"{life}")
        self.ledger.look(life)

    def queue(self) -> None:
        found = self.peer_of(self.someone())
        if found is None:
            return
        self.note("queue", f"{found[1].pair}")
        queue = found[0].queue
        if not (
            queue.pending == found[0]._remote.accepted - found[0]._remote.reported
            and 0 <= queue.pressure <= 100
            and queue.bytes >= 0
        ):
            raise Finding(f"{found[1].pair}: {queue}")

    def connect(self) -> None:
        life, timeout = self.someone(), self.timeout()
        others = [other for other in self.running() if other is not life]
        if len(self.calls) >= self.CALLS_MAX or not others:
            return
        other = self.dice.choice(others)
        who: Any = other.address
        found = self.peer_of(life)
        if found is not None and self.dice.random() < 0.5:
            who = found[0]
        self.note("connect", f"{life} to {who}, {timeout}")

        async def call() -> None:
            await life.node.connect(who, timeout=timeout)

        self.begin(life, f"connect {life} to {who}", call(), NETWORK, timeout)

    def disconnect(self) -> None:
        life, timeout = self.someone(), self.timeout()
        found = self.peer_of(life)
        if found is None or len(self.calls) >= self.CALLS_MAX:
            return
        peer = found[0]
        self.note("disconnect", f"{found[1].pair}, {timeout}")

        async def call() -> None:
            await peer.disconnect(timeout=timeout)

        self.begin(life, f"disconnect {found[1].pair}", call(), (errors.Timeout,), timeout)

    def cancel(self) -> None:
        if self.calls:
            call = self.dice.choice(list(self.calls.values()))
            if not call.text.endswith("restart"):
                self.note("cancel", call.text)
                call.task.cancel()

    def pause(self) -> Any:
        return asyncio.sleep(self.dice.choice(self.place.pauses))

    # What goes wrong ------------------------------------------------------------------------------

    def reset(self) -> None:
        self.note("network", self.place.reset(self.dice, self.running()))

    def cut(self) -> None:
        self.note("network", self.place.cut(self.dice, self.running()))

    def heal(self) -> None:
        self.note("network", "heal")
        self.place.heal()

    def restart(self) -> None:
        if self.restarting or len(self.running()) < 4 or len(self.calls) >= self.CALLS_MAX:
            return
        life = self.someone()
        how = self.dice.choice(("polite", "polite", "killed", "vanish"))
        if how == "vanish" and not self.place.can_vanish:
            how = "killed"
        timeout = self.dice.choice((0.0, 0.1, 1.0, 5.0))
        away = self.dice.choice((0, 0, 0.1, 1, 10)) if self.place.can_vanish else 0.01
        self.note("restart", f"{life} {how}, {timeout}, away for {away} s")
        self.restarting = True
        life.closing = True
        if how == "vanish":
            self.place.net.vanish(life.node)  # type: ignore[attr-defined]

        async def call() -> None:
            try:
                await self.stop(life, how, timeout)
                await asyncio.sleep(away)
                await self.start(life.name)
            finally:
                self.restarting = False

        self.begin(life, "restart", call(), (), None)

    # The end --------------------------------------------------------------------------------------

    async def until(self, holds: Callable[[], bool], what: Callable[[], str]) -> None:
        """Wait until this holds."""
        end = self.place.time() + self.place.patience
        while not holds():
            if self.trouble is not None:
                raise self.trouble
            if self.place.time() > end:
                raise Finding(f"{what()}, {self.place.patience:g} s after everything had healed")
            await asyncio.sleep(0.01)

    async def settle(self) -> None:
        """Heal everything, read everything; then everybody who was called is over, all are
        connected, one connection for each two, and nothing is missing."""
        self.note("settle", "")
        self.place.heal()
        await self.until(lambda: not self.restarting, lambda: "a restart is not over")
        for life in self.running():
            self.read(life, "batches")
        for call in list(self.calls.values()):
            if call.due is None:
                call.task.cancel()
        await self.until(
            lambda: not self.calls,
            lambda: f"still waits: {[call.text for call in self.calls.values()]}",
        )
        lives = self.running()
        for life in lives:
            for other in lives:
                if life is not other:
                    await self.say(life, other)
        await self.until(
            lambda: all(life.node.stats().links_open == len(lives) - 1 for life in lives),
            lambda: f"links: {[(str(life), life.node.stats().links_open) for life in lives]}",
        )
        await self.until(
            lambda: not any(map(self.ledger.open_numbers, lives)),
            lambda: f"without an outcome: {[self.ledger.open_numbers(life) for life in lives]}",
        )
        exact = [
            life
            for life in self.ledger.lives
            if life in lives or (life.ended == "polite" and self.has("farewell"))
        ]
        await self.until(
            lambda: not any(map(self.ledger.missing, exact)),
            lambda: next(filter(None, map(self.ledger.missing, exact))),
        )
        for life in lives:
            self.ledger.look(life)

    async def say(self, life: Life, other: Life) -> None:
        """Send a last message, however many attempts that takes."""
        end = self.place.time() + self.place.patience
        while True:
            try:
                if other.id in life.node.peers:
                    peer = life.node.peers[other.id]
                elif self.place.discovery:
                    peer = await life.node.wait_for(other.id, timeout=self.place.patience)
                else:
                    peer = await life.node.connect(other.address, timeout=self.place.patience)
                way = life.way(peer)
                if way is None or way.pair.receiver is not other:
                    raise errors.NotConnected(f"{peer} is not {other}")
                index, payload = self.ledger.compose(way.pair, 16, 1)
                try:
                    number = await peer.send(payload, timeout=self.place.patience)
                except BaseException:
                    self.ledger.refused(way, index)
                    raise
                self.ledger.accepted(way, number, index)
                return
            except NETWORK as error:
                if self.place.time() > end:
                    raise Finding(f"{life} cannot reach {other} after all: {error!r}") from error
                await asyncio.sleep(0.05)

    async def drop_streams(self) -> None:
        """Close the event streams that nobody reads."""
        for stream in self.streams:
            await stream.aclose()


# Play ---------------------------------------------------------------------------------------------


def play(
    form: str,
    seed: int,
    steps: int,
    *,
    discovery_port: int = 0,
    without: frozenset[str] = KNOWN_BROKEN,
    ledger: Callable[[], Ledger] = Ledger,
) -> Result:
    """One run.

    Args:
        form: of FORMS.
        discovery_port: of real nodes; one that nobody else uses.
        without: those of KINDS that are left out.
        ledger: what judges; to try whether it does.

    Raises:
        Finding: what must not be, with seed, step and the last calls.
    """
    logger = logging.getLogger("peertalk")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        if form == "simulator":
            return _play_simulated(seed, steps, without, ledger)
        return _play_real(form, seed, steps, discovery_port, without, ledger)
    except Finding as finding:
        raise Finding(
            f"random calls, form {form!r}, seed {seed}, {steps} steps: {finding}"
        ) from None
    finally:
        logger.setLevel(level)


def trace_of(seed: int, steps: int, without: frozenset[str] = KNOWN_BROKEN) -> str:
    """The trace hash of a run in the simulator."""
    seen: list[str] = []
    _play_simulated(seed, steps, without, Ledger, seen.append)
    return seen[0]


def _play_simulated(
    seed: int,
    steps: int,
    without: frozenset[str],
    ledger: Callable[[], Ledger],
    trace: Callable[[str], object] | None = None,
) -> Result:
    dice = random.Random(seed)
    network = sim.Network(seed)
    driver: Driver | None = None

    async def main(net: sim.Network) -> Result:
        nonlocal driver
        driver = Driver(Simulated(net, dice), dice, steps, without)
        driver.ledger = ledger()
        return await driver.run()

    try:
        try:
            result = sim.run_in(network, main, limit="8000h")
        except Finding:
            raise
        except Exception as error:
            account = driver.account() if driver is not None else ""
            raise Finding(f"{error!r}\n  {account}") from error
        if faults := network.faults():
            raise Finding(f"the network found: {faults[:5]}")
        if trace is not None:
            trace(network.trace.hash)
        return result
    finally:
        network.close()


def _play_real(
    form: str,
    seed: int,
    steps: int,
    discovery_port: int,
    without: frozenset[str],
    ledger: Callable[[], Ledger],
) -> Result:
    factory: Any = None
    if form == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.sleep(0))  # uvloop keeps a pair of descriptors from its first loop on
    dice = random.Random(seed)
    before = _descriptors()
    troubles: list[dict[str, Any]] = []

    async def main() -> Result:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: troubles.append(context)
        )
        core = "lowmem" if form == "lowmem" else ""
        driver = Driver(Loopback(dice, core, discovery_port), dice, steps, without)
        driver.ledger = ledger()
        try:
            result = await driver.run()
        except Finding:
            raise
        except Exception as error:
            raise Finding(f"{error!r}\n  {driver.account()}") from error
        finally:
            driver.place.heal()
            for life in driver.ledger.lives:
                life.node.close_nowait()
        if troubles:
            raise Finding(f"{troubles[:3]}\n  {driver.account()}")
        return result

    with asyncio.Runner(loop_factory=factory) as runner:
        result = runner.run(main())
    if _descriptors() > before:
        raise Finding(f"{_descriptors() - before} descriptors are left open")
    return result


def _descriptors() -> int:
    path = "/proc/self/fd"
    return len(os.listdir(path)) if os.path.isdir(path) else 0


def main() -> None:
    """python tests/random_calls.py FORM SEED STEPS [KIND ...]: one run; KIND: of KNOWN_BROKEN, not
    left out."""
    form, seed, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    begun = time.perf_counter()
    result = play(
        form, seed, steps, discovery_port=27_399, without=KNOWN_BROKEN - set(sys.argv[4:])
    )
    took = time.perf_counter() - begun
    print(f"{form} {seed}: {result.steps:,} steps, {result.steps / took:,.0f} a second, {result}")


if __name__ == "__main__":
    main()
