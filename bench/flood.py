"""What a stream that floods costs the others: echoes of 499 quiet streams beside one that never
stops, at three I/O budgets. At most 3 times the quiet time must do.

    python bench/flood.py [--json] [--rounds 5] [--links 500] [--trips 2000] [--budgets 1 16 1000]

The server is a process with one peertalk.net.Worker, which echoes. A second process floods: one
connection, 64 KiB at a time, as fast as they come back. This one sends 64 bytes by each of the
other connections in turn, waits for them, and notes how long that took: medians, quiet and flooded
in turns, on the same server. Exit status 1 over 3.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

MOST = 3.0


def open_up() -> None:
    """Have as many descriptors as there may be."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def serve(budget: int) -> None:
    from peertalk.net import Listener, Stream, Worker

    async def echo(stream: Stream) -> None:
        async for data in stream:
            await stream.write_all(data)

    async def listen() -> None:
        async with await Listener.bind("127.0.0.1:0", backlog=600) as listener:
            print(listener.local_addr[1], flush=True)
            await listener.serve(echo)

    with Worker(io_budget=budget) as worker:
        worker.submit(listen)
        sys.stdin.read()


def flood(port: int) -> None:
    data = bytes(65_536)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setblocking(False)
        print("begun", flush=True)
        while True:
            for step in (lambda: connection.send(data), lambda: connection.recv(1 << 20)):
                try:
                    step()
                except BlockingIOError:
                    pass


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def median_trip(connections: list[socket.socket], trips: int) -> float:
    payload, times = bytes(64), []
    for number in range(trips):
        connection = connections[number % len(connections)]
        began = time.perf_counter()
        connection.sendall(payload)
        left = 64
        while left:
            left -= len(connection.recv(left))
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure(budget: int, options: argparse.Namespace) -> dict[str, Any]:
    server = start("--serve", str(budget))
    port = heard(server)
    connections = [
        socket.create_connection(("127.0.0.1", int(port))) for _ in range(options.links - 1)
    ]
    for connection in connections:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    quiet, flooded = [], []
    for _ in range(options.rounds):
        quiet.append(median_trip(connections, options.trips))
        flooder = start("--flood", port)
        heard(flooder)
        flooded.append(median_trip(connections, options.trips))
        flooder.kill()
        flooder.wait()
    server.kill()
    server.wait()
    for connection in connections:
        connection.close()
    ratios = [loud / still for still, loud in zip(quiet, flooded, strict=True)]
    return {
        "budget": budget,
        "quiet_us": statistics.median(quiet) * 1e6,
        "flooded_us": statistics.median(flooded) * 1e6,
        "ratio": statistics.median(ratios),
        "from": min(ratios),
        "to": max(ratios),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--links", type=int, default=500)
    parser.add_argument("--trips", type=int, default=2_000)
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 16, 1_000])
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--flood", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    open_up()
    if options.serve is not None:
        serve(options.serve)
        return 0
    if options.flood is not None:
        flood(options.flood)
        return 0
    rows = [measure(budget, options) for budget in options.budgets]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(
                f"io_budget {row['budget']:5}: {row['quiet_us']:6.0f} us quiet,"
                f" {row['flooded_us']:6.0f} us beside a flood, {row['ratio']:.2f} times"
                f" ({row['from']:.2f} to {row['to']:.2f})"
            )
    return int(any(row["ratio"] > MOST for row in rows))


if __name__ == "__main__":
    sys.exit(main())
