"""A gibibyte of messages of every length, in the long form: with a flow of small urgent ones beside
them, connections that break anywhere, calls that are cancelled, messages that are replaced and a
reader that stops. Every byte is right, order is kept, what is lost is said, and memory stays within
what the configuration allows.

In the suite the same code moves some mebibytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kit.nodes import announcing, loopback
from kit.waiting import GUARD

import peertalk as pt
from peertalk import sim

MIB = 1024**2
URGENT = 64
"""Bytes of an urgent message."""
LEAST, MOST = 8, 65_536
"""Bytes of the shortest message, and how many messages there are at most: so many of random bytes,
each from one byte further on, are told apart. Two with the same bytes are not: when the first has
failed and may have arrived, the second is taken for it."""
QUEUE = 4 * MIB
"""Bytes that wait in the receiver's inbox, and bytes of messages that it lets come at once beyond
the longest."""


def is_held_up(stats: Any) -> bool:
    """Whether somebody waits until this node takes what has come."""
    return bool(stats.offers_waiting) or stats.inbox_bytes > QUEUE // 2


class Flow:
    """What one node sends to another, and what becomes of it.

    Lines: of each class the numbers of the messages in the order in which they must arrive.
    """

    def __init__(self, seed: int, total: int, longest: int) -> None:
        self.dice = random.Random(seed)
        self.total, self.longest = total, longest
        self.letters = random.Random(seed).randbytes(longest + MOST)
        self.bodies = iter(range(MOST))
        self.sent: dict[int, tuple[int, int]] = {}
        self.lines: dict[pt.Priority, list[int]] = {
            pt.Priority.NORMAL: [],
            pt.Priority.CRITICAL: [],
        }
        self.failed: dict[int, pt.Outcome] = {}
        self.successors: dict[int, int] = {}
        self.heard: dict[pt.Priority, list[tuple[int, int]]] = {line: [] for line in self.lines}
        self.most_landing = self.most_waiting = self.breaks = self.cancelled = 0
        self.done = False

    def body(self, size: int) -> memoryview:
        begin = next(self.bodies)
        return memoryview(self.letters)[begin : begin + size]

    def size(self) -> int:
        """As many of a few bytes as of megabytes; never that of an urgent message."""
        exponent = self.dice.uniform(LEAST.bit_length() - 1, self.longest.bit_length())
        size = min(int(2**exponent), self.longest)
        return size + (size == URGENT)

    def accepted(self, number: int, data: memoryview, line: pt.Priority) -> None:
        assert number not in self.sent
        self.sent[number] = len(data), zlib.crc32(data)
        self.lines[line].append(number)

    async def insist(self, to: Any, data: Any, **options: Any) -> int:
        """The number of a message that is accepted, however often a connection breaks before."""
        while True:
            try:
                return int(await to.send(data, **options))
            except (pt.ConnectionClosed, pt.NotConnected):
                await asyncio.sleep(0.001)

    async def send(self, to: Any) -> None:
        """So many bytes; some calls are cancelled, some messages replace the one before them."""
        left, former = self.total, 0
        while left > 0:
            data = self.body(self.size())
            left -= len(data)
            choice = self.dice.random()
            key = "picture" if choice < 0.1 else None
            sending = asyncio.ensure_future(self.insist(to, data, key=key))
            if choice > 0.9:
                for _ in range(self.dice.randrange(3)):
                    await asyncio.sleep(0)
                sending.cancel()
            try:
                number = await sending
            except asyncio.CancelledError:
                self.cancelled += 1
                continue
            self.accepted(number, data, pt.Priority.NORMAL)
            if key:
                self.successors[former], former = number, number

    async def send_urgent(self, to: Any) -> None:
        """Small ones for as long as large ones go."""
        while not self.done:
            data = self.body(URGENT)
            number = await self.insist(to, data, priority=pt.Priority.CRITICAL)
            self.accepted(number, data, pt.Priority.CRITICAL)
            await asyncio.sleep(0.001)

    async def receive(self, node: Any) -> None:
        """Take everything, with pauses until the sender is held up; ends with the last messages."""
        ends: set[bytes] = set()
        while len(ends) < len(self.lines):
            if not self.done and self.dice.random() < 0.02:
                await self.until(lambda: self.done or is_held_up(node.stats()))
            message = await node.receive()
            if message.data.startswith(b"the end of "):
                ends.add(message.data)
                continue
            urgent = len(message.data) == URGENT
            line = pt.Priority.CRITICAL if urgent else pt.Priority.NORMAL
            self.heard[line].append((len(message.data), zlib.crc32(message.view)))

    async def note(self, node: Any) -> None:
        """What failed, as the sender is told."""
        async for event in node.events():
            if isinstance(event, pt.Failed):
                for number in range(event.first, event.last + 1):
                    self.failed[number] = event.outcome
            assert not isinstance(event, pt.EventsMissed | pt.LinkFault), event

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            await asyncio.sleep(0.001)

    async def watch(self, node: Any) -> None:
        """The most that lay in the receiver's memory."""
        while True:
            stats = node.stats()
            self.most_landing = max(self.most_landing, stats.landing_bytes)
            self.most_waiting = max(self.most_waiting, stats.inbox_bytes)
            await asyncio.sleep(0.002)

    async def run(self, ada: Any, bob: Any, to_bob: Any, trouble: Any = None) -> None:
        """All of it. trouble: breaks connections until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(self.note(ada)), group.create_task(self.watch(bob))]
            if trouble is not None:
                others.append(group.create_task(trouble))
            reading = group.create_task(self.receive(bob))
            urgent = group.create_task(self.send_urgent(to_bob))
            await self.send(to_bob)
            self.done = True
            await urgent
            for other in others[2:]:
                other.cancel()
            await asyncio.wait(others[2:] or [urgent])
            while not reading.done():  # a way that was breaking already may take the first of these
                for line in self.lines:
                    await self.insist(to_bob, b"the end of %d" % line, priority=line)
                await asyncio.wait([reading], timeout=1)
            await self.until(
                lambda: ada.stats().messages_sent + ada.stats().messages_failed >= len(self.sent)
            )
            for other in others:
                other.cancel()

    def check(self, large: int, gaps: int = 0) -> None:
        """Everything that was accepted has arrived once, in its order, or is said to have failed,
        but for so many gaps of each class; what came was never more than these bytes at once."""
        assert sorted(self.sent) == list(range(1, len(self.sent) + 1))
        for line, numbers in self.lines.items():
            assert self._count_gaps(numbers, self.heard[line]) <= gaps
        assert self.most_landing <= large
        assert self.most_waiting <= QUEUE + large + self.longest

    def _count_gaps(self, numbers: list[int], heard: list[tuple[int, int]]) -> int:
        """How many runs of messages are missing of which nothing was said."""
        places = {number: place for place, number in enumerate(numbers)}
        due = list(numbers)
        for former, later in self.successors.items():
            if self.failed.get(former) is pt.Outcome.REPLACED and former in places:
                due[places[former]], due[places[later]] = later, 0  # the later one takes its place
                places[later] = places[former]
        came, gaps, missing = iter(heard), 0, False
        next_one = next(came, None)
        for number in filter(None, due):
            if self.sent[number] == next_one:
                assert self.failed.get(number) in (None, pt.Outcome.UNKNOWN)
                next_one, missing = next(came, None), False
            elif number not in self.failed:
                gaps += not missing
                missing = True
        assert next_one is None, f"{1 + len(list(came))} messages came that were not due"
        return gaps

    def __str__(self) -> str:
        return (
            f"{sum(size for size, _ in self.sent.values()) / MIB:,.0f} MiB in {len(self.sent):,} "
            f"messages, {len(self.failed):,} of them failed, {self.cancelled} calls cancelled, "
            f"{self.breaks} connections broken; at most {self.most_landing / MIB:,.0f} MiB landing "
            f"and {self.most_waiting / MIB:,.0f} MiB waiting"
        )


class Breaking:
    """A way to a node whose connections break after a random number of bytes.

    This way confirms what it has not passed on yet, and that is lost with the connection: nobody
    can say so. It has the port of the node, so that who greets the node there comes this way again.
    """

    def __init__(self, flow: Flow, node: Any) -> None:
        self.flow, self.node = flow, node
        self.quiet = False
        self.ways: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Breaking:
        self.server = await asyncio.start_server(self._accept, "127.0.0.2", self.node.address[1])
        self.address = self.server.sockets[0].getsockname()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for way in self.ways:
            way.cancel()
        await asyncio.gather(*self.ways, return_exceptions=True)
        await self.server.wait_closed()

    def _accept(self, reader: Any, writer: Any) -> None:
        way = asyncio.create_task(self._both_ways(reader, writer))
        self.ways.add(way)
        way.add_done_callback(self.ways.discard)

    async def _both_ways(self, reader: Any, writer: Any) -> None:
        there, back = await asyncio.open_connection(*self.node.address)
        passes = int(self.flow.dice.uniform(0.02, 0.3) * self.flow.total)

        async def one_way(source: Any, target: Any, room: float) -> None:
            while (data := await source.read(65_536)) and (room > 0 or self.quiet):
                target.write(data)
                room -= len(data)
                await target.drain()

        ways = [
            asyncio.ensure_future(one_way(reader, back, passes)),
            asyncio.ensure_future(one_way(there, writer, float("inf"))),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            self.flow.breaks += 1
        finally:
            for end in (writer, back):
                end.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


def options_of(core: str, longest: int) -> dict[str, Any]:
    return {
        "core": core,
        "max_message": longest,
        "receive_large_bytes": longest + QUEUE,
        "receive_queue_bytes": QUEUE,
        "send_queue_bytes": 2 * longest,
        "send_queue_size": 4096,
    }


@contextlib.contextmanager
def bounded(flow: Flow, capsys: Any, options: dict[str, Any]) -> Iterator[None]:
    """What happens inside takes no more memory than both sides may hold, and the message that the
    test takes, the one that the test sends and a way that copies."""
    allowed = sum(options[name] for name in options if name.endswith("_bytes"))
    allowed += 2 * flow.longest + 16 * MIB
    tracemalloc.start()
    try:
        yield
        grown = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    with capsys.disabled():
        print(f"\n{flow}; Python held at most {grown / MIB:,.0f} of {allowed / MIB:,.0f} MiB")
    assert grown <= allowed


@pytest.fixture
def volume(rounds: Callable[[int, int], int]) -> Callable[[str], tuple[int, int]]:
    """volume(core): bytes in all, and of the longest message. The reference core computes each
    checksum in Python."""

    def of(core: str) -> tuple[int, int]:
        if core == "reference":
            return rounds(3, 128) * MIB, rounds(1, 16) * MIB
        return rounds(24, 1024) * MIB, rounds(4, 64) * MIB

    return of


async def test_on_connections_that_break(core, volume, capsys):
    """Over TCP, on a way that resets connections anywhere."""
    total, longest = volume(core.name)
    flow, options = Flow(1, total, longest), options_of(core.name, longest)
    with bounded(flow, capsys, options):
        async with (
            pt.Node("bob", **loopback(**options)) as bob,
            Breaking(flow, bob) as way,
            pt.Node("ada", **loopback(**options)) as ada,
        ):
            to_bob = await ada.connect(way.address, timeout=GUARD)

            async def quiet_at_last() -> None:
                try:
                    await asyncio.Event().wait()
                finally:
                    way.quiet = True

            await flow.run(ada, bob, to_bob, quiet_at_last())
    flow.check(options["receive_large_bytes"], gaps=flow.breaks)
    assert flow.breaks >= 2


async def test_over_a_socket_of_this_host(core, volume, free_port, capsys):
    total, longest = volume(core.name)
    flow, options = Flow(2, total, longest), options_of(core.name, longest)
    port = free_port()
    with bounded(flow, capsys, options):
        async with (
            pt.Node("ada", **announcing(port, **options)) as ada,
            pt.Node("bob", **announcing(port, **options)) as bob,
        ):
            await bob.wait_for("ada", timeout=GUARD)
            to_bob = await ada.wait_for("bob", timeout=GUARD)
            await to_bob.send(b"first")
            assert (await bob.receive(timeout=GUARD)).data == b"first" and to_bob.local
            flow.sent[1] = 5, 0  # taken already, and in no line
            await flow.run(ada, bob, to_bob)
    flow.check(options["receive_large_bytes"])
    assert not set(flow.failed.values()) - {pt.Outcome.REPLACED}


def test_in_the_simulator(simulator, volume, capsys) -> None:
    """Open Transport on a lossy wire, whose connections are reset: nothing is lost unsaid. The wire
    and its record lie in the memory of this process too, so nobody asks for that here."""
    total, longest = volume("reference")
    flow, options = Flow(3, total, longest), options_of("standard", longest)

    async def main(net: sim.Network) -> None:
        settings = {**options, "platform": "opentransport", "discovery": False}
        ada, bob = await net.node("ada", **settings), await net.node("bob", **settings)
        net.link("ada", "bob", latency="1ms", jitter="2ms", loss=0.001, bandwidth="20 MB/s")
        to_bob = await ada.connect(bob.address)

        async def trouble() -> None:
            while True:
                await asyncio.sleep(flow.dice.uniform(0.05, 0.5))
                flow.breaks += net.reset("ada", "bob")

        await flow.run(ada, bob, to_bob, trouble())

    sim.run(main, seed=3, limit="100h")
    flow.check(options["receive_large_bytes"])
    assert flow.breaks >= 2
    with capsys.disabled():
        print(f"\n{flow}")
