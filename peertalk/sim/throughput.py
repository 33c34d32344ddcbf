"""Kilobytes a second on the classic link: the matrix of platforms, cores, depths and sizes, and
what arithmetic says it must be.

KB are 1,000 message bytes; time is network time, so that the figures are the same on every machine.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from .. import errors
from ..peer import Peer
from .loop import run_in
from .network import PLATFORMS, Network, Node

_MODEL_FIXED = 0.027
_MODEL_BYTE = 1 / 204_800
"""Seconds of the classic link for one write, and for each byte of it."""


class Rate(msgspec.Struct, frozen=True):
    """One row of the throughput matrix. message_bytes; kb_per_s: message bytes, in thousands, each
    second; ratio_to_sync: over the unpacked depth-1 row of the same platform, core and size."""

    platform: str
    core: str
    depth: int
    packing: bool
    message_bytes: int
    kb_per_s: float
    ratio_to_sync: float


class Flow(msgspec.Struct, frozen=True):
    """One row in more detail. rates: kb_per_s of each tenth of the time; memory: bytes of the
    sender's C side after each tenth; lost: packets; problems: as in Result."""

    kb_per_s: float
    rates: list[float]
    memory: list[int]
    lost: int
    trace_hash: str
    problems: list[str]


def matrix() -> Iterator[tuple[str, str, int, bool, int]]:
    """Platform, core, depth, packing and message size of each row, the baselines before what is
    compared with them."""
    for platform in PLATFORMS:
        for size in (4096, 1024):
            for depth in (1, 2, 4):
                yield platform, "standard", depth, False, size
        yield platform, "standard", 4, True, 1024
        for depth in (1, 2):
            yield platform, "lowmem", depth, False, 1024


def throughput(
    seconds: float = 600.0, seed: int = 0, report: Callable[[Rate], None] | None = None
) -> list[Rate]:
    """The matrix on the classic link.

    Args:
        seconds: network time of each row.
        report: told each row when it is there.

    Raises:
        AssertionError: a run was not healthy; says how.
    """
    rows: list[Rate] = []
    baselines: dict[tuple[str, str, int], float] = {}
    for platform, core, depth, packing, size in matrix():
        flow = measure(platform, core, depth, packing, size, seconds, seed)
        if flow.problems:
            raise AssertionError(
                f"{platform}, {core}, depth {depth}, {size} bytes: {'; '.join(flow.problems)}"
            )
        if depth == 1 and not packing:
            baselines[platform, core, size] = flow.kb_per_s
        ratio = flow.kb_per_s / baselines[platform, core, size]
        rows.append(
            Rate(platform, core, depth, packing, size, round(flow.kb_per_s, 2), round(ratio, 3))
        )
        if report is not None:
            report(rows[-1])
    return rows


def measure(
    platform: str,
    core: str,
    depth: int,
    packing: bool,
    size: int,
    seconds: float,
    seed: int = 0,
    *,
    asynchronous: bool = True,
) -> Flow:
    """Send messages of one size over the classic link for so long, as fast as they are taken."""
    if not seconds > 0 or size < 1:
        raise errors.InvalidArgument(
            f"{size} bytes for {seconds} s: at least one byte, and longer than no time"
        )
    network = Network(seed, preset="classic")
    run = _Run(network, size)

    async def main(net: Network) -> None:
        options: dict[str, Any] = {
            "platform": platform,
            "core": core,
            "discovery": False,
            "link_timeout": 3600.0,
        }
        sender = await net.node(
            "sender",
            **options,
            pipeline_depth=depth,
            packing=packing,
            async_send=asynchronous,
            send_queue_size=8,
        )
        await run.play(sender, await net.node("reader", **options), seconds)

    try:
        run_in(network, main, limit="24h")
        return run.flow()
    finally:
        network.close()


class _Run:
    """Messages of one size on their way from one node to another, and what is noted of them."""

    def __init__(self, network: Network, size: int) -> None:
        self._network = network
        self._size = size
        self._running = True
        self._arrived = self._lost = 0
        self._marks: list[tuple[int, int, int]] = []
        """When, in ns, how many bytes had arrived, and the sender's memory."""
        self._problems: list[str] = []

    async def play(self, sender: Node, reader: Node, seconds: float) -> None:
        """Send for so long, and see to it that all has come."""
        peer = await sender.connect(reader.address)
        taking = asyncio.create_task(self._take(reader), name="taking")
        sending = asyncio.create_task(self._send(peer, sender.config.async_send), name="sending")
        await asyncio.sleep(1)
        self._note(sender)
        for _ in range(10):
            await asyncio.sleep(seconds / 10)
            self._note(sender)
        self._running = False
        await sending
        await peer.disconnect(timeout=60)
        await asyncio.sleep(1)
        if pending := peer.queue.pending:
            self._problems.append(f"{pending} messages have no outcome")
        if self._arrived != peer.accepted * self._size:
            self._problems.append(
                f"{peer.accepted * self._size:,} bytes were accepted, {self._arrived:,} arrived"
            )
        counts = self._network.counts(sender, reader)
        self._lost = counts.lost + counts.cut
        taking.cancel()

    async def _take(self, reader: Node) -> None:
        async for batch in reader.batches():
            self._arrived += sum(map(len, batch.payloads))

    async def _send(self, peer: Peer, asynchronous: bool) -> None:
        payload = bytes(self._size)
        while self._running:
            await peer.send(payload)
            if not asynchronous:
                # a send that blocks keeps the reader from its turn, too: all live on one thread
                await asyncio.sleep(0)

    def _note(self, sender: Node) -> None:
        memory = sender.memory["total"].bytes
        self._marks.append((self._network.clock.ns, self._arrived, memory))

    def flow(self) -> Flow:
        """What came of it, with what was wrong."""
        return Flow(
            _rate(self._marks[0], self._marks[-1]),
            [round(_rate(*pair), 2) for pair in itertools.pairwise(self._marks)],
            [memory for _, _, memory in self._marks],
            self._lost,
            self._network.trace.hash,
            self._problems + self._network.faults(),
        )


def _rate(first: tuple[int, int, int], last: tuple[int, int, int]) -> float:
    return (last[1] - first[1]) * 1e6 / (last[0] - first[0])


def model(depth: int, size: int, frames: int = 1) -> float:
    """KB/s of the classic link by arithmetic: depth writes of so many frames in flight, until a
    processor is busy all the time."""
    write = frames * (size + 12)
    cycle = _MODEL_FIXED + write * _MODEL_BYTE
    busiest = 0.002 + write * 2.083e-6
    return frames * size * min(depth / cycle, 1 / busiest) / 1000
