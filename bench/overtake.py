"""How long a critical message takes past a backlog of low ones, to another process over loopback.

    python bench/overtake.py [--json] [--rounds 50] [--backlog 1000] [--size 4096]

In each round LOW messages are sent, faster than they leave, until the backlog waits in the outbox
behind full slots and a full kernel; then a CRITICAL message is sent at once. What is timed lies on
one clock (CLOCK_MONOTONIC is the same for both processes): from the call of send to the moment at
which the receiver's program holds the message. Exit status 1 when the median is 2 ms or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time

import peertalk as pt

LIMIT_MS = 2.0
OPTIONS = {"bind": "127.0.0.1", "port": 0, "discovery": False}


async def receive(rounds: int) -> None:
    """The receiver: says its port, then for each round the moment at which the critical message was
    there, and how many came before and after it."""
    async with pt.Node("receiver", receive_queue_bytes="64MiB", **OPTIONS) as node:
        print(node.address[1], flush=True)
        batches = node.batches()
        for _ in range(rounds):
            came = before = 0
            at = 0.0
            last = b""
            while last != b"end":
                payloads = (await anext(batches)).payloads
                if b"now" in payloads:
                    at, before = time.monotonic(), came + payloads.index(b"now")
                came += len(payloads)
                last = payloads[-1]
            print(f"{at!r} {before} {came - before - 2}", flush=True)


async def measure(backlog: int, size: int, rounds: int) -> list[tuple[float, int, int]]:
    """Milliseconds, and how many low messages came before and after, of each round."""
    command = [sys.executable, __file__, "--receive", "--rounds", str(rounds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None
        port = int(receiver.stdout.readline())
        took: list[tuple[float, int, int]] = []
        room = 2 * backlog * (size + 1)
        async with pt.Node(
            "sender", send_queue_size=2 * backlog, send_queue_bytes=room, **OPTIONS
        ) as node:
            peer = await node.connect(("127.0.0.1", port))
            payload = bytes(size)
            for _ in range(rounds):
                # without a turn in between: what slots and kernel do not take waits
                while peer._remote.queued < backlog:
                    peer.send_nowait(payload, priority=pt.Priority.LOW)
                began = time.monotonic()
                await peer.send(b"now", priority=pt.Priority.CRITICAL, no_delay=True)
                await peer.send(b"end", priority=pt.Priority.LOW)
                at, before, after = (await asyncio.to_thread(receiver.stdout.readline)).split()
                took.append(((float(at) - began) * 1000, int(before), int(after)))
        receiver.wait(10)
    return took


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--backlog", type=int, default=1000)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--receive", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receive:
        asyncio.run(receive(options.rounds))
        return 0
    took = asyncio.run(measure(options.backlog, options.size, options.rounds))
    times = sorted(ms for ms, _, _ in took)
    median = statistics.median(times)
    before, after = (statistics.median(each[place] for each in took) for place in (1, 2))
    figures = {
        "median_ms": round(median, 3),
        "p90_ms": round(times[int(len(times) * 0.9)], 3),
        "longest_ms": round(times[-1], 3),
        "came_before": before,
        "came_after": after,
        "backlog": options.backlog,
        "size": options.size,
        "rounds": len(took),
    }
    if options.json:
        print(json.dumps(figures))
    else:
        print(
            f"a critical message past {options.backlog:,} low ones of {options.size:,} bytes: "
            f"median {median:.3f} ms of {len(took)} rounds,"
        )
        print(f"nine of ten within {figures['p90_ms']} ms, longest {figures['longest_ms']} ms;")
        print(f"{before:,.0f} low ones came before it, {after:,.0f} after")
    return 0 if median < LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
