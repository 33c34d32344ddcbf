"""How long a thread waits for an order to a worker that waits itself, beside asyncio's own way.

    python bench/orders.py [--json] [--rounds 5] [--orders 2000] [--uvloop]

A public worker waits in its descriptor, which an order makes readable, and not in a condition
variable. Measured is from before an order (CancelSocketTimeout, the shortest) is given until its
future has the result; and the same for a coroutine that does nothing, which
asyncio.run_coroutine_threadsafe() gives to a loop in a thread of its own. The next order is given
when the loop waits again. Both take turns; quoted are microseconds, medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from peertalk.net import (
    AsyncSocketHandler,
    AsyncSocketState,
    CancelSocketTimeout,
    CloseSocket,
    RegisterSocket,
    SocketInterest,
    Worker,
)

REST = 0.0002
"""Seconds between two orders, in which the loop comes to wait."""
AT_MOST = 1.0


def timed(ask: Callable[[], Future[Any]], orders: int) -> list[float]:
    """Microseconds of each order."""
    taken = []
    for _ in range(orders):
        time.sleep(REST)
        began = time.perf_counter_ns()
        ask().result(10)
        taken.append((time.perf_counter_ns() - began) / 1_000)
    return taken


async def nothing() -> None:
    """What the other loop does for an order."""


def measure(rounds: int, orders: int, uvloop: bool) -> dict[str, float]:
    """The medians of both, and their ratio."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if uvloop:
        import uvloop as module

        factory = module.new_event_loop
    loop = factory()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    ours: list[float] = []
    theirs: list[float] = []
    ends = socket.socketpair()
    with ends[0], ends[1], Worker(loop_factory=factory) as worker:
        ends[0].setblocking(False)
        heard = AsyncSocketHandler(AsyncSocketState())
        order = RegisterSocket(ends[0].fileno(), SocketInterest.READABLE, heard)
        token = worker.order(order).result(10)
        assert token is not None
        cancel = CancelSocketTimeout(token)
        for _ in range(rounds):
            ours += timed(lambda: worker.order(cancel), orders)
            theirs += timed(lambda: asyncio.run_coroutine_threadsafe(nothing(), loop), orders)
        worker.order(CloseSocket(token)).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    mine, other = statistics.median(ours), statistics.median(theirs)
    return {"worker_us": mine, "asyncio_us": other, "ratio": mine / other}


def main() -> int:
    """Print the figures; 1 when an order takes longer than asyncio's own way."""
    parser = argparse.ArgumentParser(description="a thread's order to a worker, there and back")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each party")
    parser.add_argument("--orders", type=int, default=2000, help="orders in one turn")
    parser.add_argument("--uvloop", action="store_true", help="both loops are uvloop's")
    options = parser.parse_args()
    figures = measure(options.rounds, options.orders, options.uvloop)
    if options.json:
        print(json.dumps(figures))
    else:
        print(
            f"an order to a worker {figures['worker_us']:.1f} us, a coroutine by asyncio "
            f"{figures['asyncio_us']:.1f} us: {figures['ratio']:.2f}"
        )
    return int(figures["ratio"] > AT_MOST)


if __name__ == "__main__":
    sys.exit(main())
