"""What was called, what was accepted, what arrived, what was told; and what must hold of that.

A life is one start of a node. A pair is a life that sends and a life that receives: its messages
are counted from 1 in the order of the calls. A way is a pair as one Peer object has it, which gives
accepted messages their numbers.
"""

from __future__ import annotations

import asyncio
import random
import struct
from array import array
from collections import Counter
from typing import Any

import peertalk as pt
from peertalk import errors
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
LONGEST = 300_000
"""Bytes of the longest message: longer than one frame, so that it is offered and granted."""
FILLER = random.Random(64).randbytes(LONGEST + 300)
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
        if size != len(data) & 0xFFFF or data[16:] != FILLER[start : start + len(data) - 16]:
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
        room = node.config.receive_queue_bytes + links * (TURN_COST + LONGEST)
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
