"""Allocator calls on the C side for each 10,000 messages, after warm-up. What must hold: none.

    python bench/allocations.py [--json] [--messages 100000] [--core standard]

Everything that a loop and its links own comes from one allocator, which counts its calls
(Loop.pool.attempts); the difference between the end of the warm-up and the end is the figure.
CPython's own allocator is not the C side: a payload has to become a bytes object, and those are
counted by sys.getallocatedblocks only to show that none stays.

Settings: links (two loops joined by a pair of sockets, from send_many to the lists of payloads) and
nodes (the public API over loopback, message by message and in batches).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
from typing import Any

os.environ.setdefault("PEERTALK_BIND", "127.0.0.1")

import peertalk
from peertalk._core import load
from peertalk._core.values import BATCH

SIZES = (0, 64, 1024, 4096, 8192)
_BURST = 500
_WARM_UP = 20 * _BURST
_WARM_UPS = 30
"""Warm-ups at the most, until _QUIET in a row have asked for nothing: a buffer is made when it is
needed first, and how many messages are under way at once is up to the machine."""
_QUIET = 3


def over_links(core_name: str, size: int, messages: int) -> tuple[int, int]:
    """(allocator calls on both sides, Python blocks that stayed) for so many messages after a
    warm-up."""
    core = load(core_name)
    ends = socket.socketpair()
    loops, links = [], []
    for end in ends:
        end.setblocking(False)
        loops.append(core.Loop())
        links.append(loops[-1].open_link(end.fileno(), 1))
    payloads = [bytes(size)] * _BURST

    def move(count: int) -> None:
        for _ in range(count // _BURST):
            sent = received = 0
            while received < _BURST:
                if sent < _BURST:
                    sent += links[0].send_many(payloads, sent)[0]
                loops[0].turn(0.0)
                received += sum(len(b) for kind, _, _, b in loops[1].turn(0.0) if kind == BATCH)

    move(_WARM_UP)
    before, blocks = sum(loop.pool.attempts for loop in loops), sys.getallocatedblocks()
    move(messages)
    after, blocks = sum(loop.pool.attempts for loop in loops), sys.getallocatedblocks() - blocks
    for loop in loops:
        loop.close()
    for end in ends:
        end.close()
    return after - before, blocks


async def over_nodes(core_name: str, size: int, messages: int, batches: bool) -> tuple[int, int]:
    """The same between two nodes of this process, through the public API."""
    async with (
        peertalk.Node("a", port=0, discovery=False, core=core_name) as a,
        peertalk.Node("b", port=0, discovery=False, core=core_name) as b,
    ):
        peer = await a.connect(b.address)
        payload = bytes(size)

        async def send(count: int) -> None:
            if batches:
                for _ in range(count // _BURST):
                    await peer.send_many([payload] * _BURST)
            else:
                for _ in range(count):
                    await peer.send(payload)

        async def receive(count: int) -> None:
            if batches:
                async for batch in b.batches():
                    count -= len(batch)
                    if count <= 0:
                        return
            else:
                async for _ in b.messages():
                    count -= 1
                    if not count:
                        return

        async def move(count: int) -> None:
            await asyncio.gather(send(count), receive(count))

        def attempts() -> int:
            return sum(node._transport.loop.pool.attempts for node in (a, b))

        quiet = 0
        for _ in range(_WARM_UPS):
            before = attempts()
            await move(_WARM_UP)
            quiet = quiet + 1 if attempts() == before else 0
            if quiet == _QUIET:
                break
        before, blocks = attempts(), sys.getallocatedblocks()
        await move(messages)
        return attempts() - before, sys.getallocatedblocks() - blocks


def measure(core: str, messages: int) -> list[dict[str, Any]]:
    """One row for each setting and size that the core can send."""
    rows = []
    for size in (size for size in SIZES if size <= load(core).limits.frame_max_payload):
        for setting, calls in (
            ("links", over_links(core, size, messages)),
            ("nodes, batches", asyncio.run(over_nodes(core, size, messages, True))),
            ("nodes, messages", asyncio.run(over_nodes(core, size, messages, False))),
        ):
            rows.append(
                {
                    "setting": setting,
                    "bytes": size,
                    "messages": messages,
                    "calls": calls[0],
                    "per_10000": calls[0] * 10_000 / messages,
                    "python_blocks": calls[1],
                }
            )
    return rows


def main() -> int:
    """Print the figures; 1 when the C side asked for memory."""
    parser = argparse.ArgumentParser(
        description="allocator calls on the C side per 10,000 messages after warm-up"
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.add_argument(
        "--messages", type=int, default=100_000, help="messages counted, a multiple of 500"
    )
    parser.add_argument("--core", default="standard", choices=("standard", "lowmem"))
    options = parser.parse_args()
    rows = measure(options.core, max(_BURST, options.messages // _BURST * _BURST))
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            per = f"{row['per_10000']:.2f} per 10,000"
            print(
                f"{row['setting']:16} {row['bytes']:6,} B: {row['calls']} allocator calls for "
                f"{row['messages']:,} messages, {per}"
            )
    return int(any(row["calls"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
