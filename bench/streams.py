"""Streams of bytes: peertalk.net against the streams of asyncio, on asyncio and on uvloop.

    python bench/streams.py [--json] [--rounds 5] [--seconds 0.5] [--sizes 64 1024 65536]
                            [--connections 1 50 500] [--uvloop] [--no-pin] [--one-core]

A client and a server, each a process of one asyncio loop, over loopback TCP, pinned to a core each
(--one-core: to the same one). Two figures:

- echo: each connection writes so many bytes, reads them back to the last, compares them, and begins
  anew: round trips a second of all connections;
- one way: each connection writes messages of so many bytes, one call each, with what bounds its
  memory (drain of asyncio, nothing more with peertalk); the server reads 64 KiB at a time and says
  how many bytes it had when the last one came: megabytes a second.

Each round runs every party once in each cell, one after the other; a figure is the median over the
rounds, and a ratio the median of the rounds' own ratios, peertalk over asyncio's streams.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

PARTIES = ("asyncio", "peertalk")
READ = 65_536


def begin(pinned: int | None) -> None:
    """Be on this core, with as many descriptors as there may be."""
    if pinned is not None:
        os.sched_setaffinity(0, {pinned})
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# asyncio's streams, as asyncio documents them -----------------------------------------------------


async def asyncio_serve(echoes: bool, count: Count) -> int:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(READ):
            if echoes:
                writer.write(data)
                await writer.drain()
            else:
                count.add(len(data))
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=600)
    return int(server.sockets[0].getsockname()[1])


async def asyncio_echo(port: int, size: int, clock: Clock) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    payload, trips = os.urandom(size), 0
    await clock.ready()
    while clock.runs():
        writer.write(payload)
        await writer.drain()
        if await reader.readexactly(size) != payload:
            raise SystemExit("what came back is not what was sent")
        trips += 1
    writer.close()
    return trips


async def asyncio_pour(port: int, size: int, clock: Clock) -> int:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    payload, sent = bytes(size), 0
    await clock.ready()
    while clock.runs():
        for _ in range(16):
            writer.write(payload)
            await writer.drain()
            sent += size
        await asyncio.sleep(0)  # drain() lets nobody else run while there is room
    writer.close()
    await writer.wait_closed()
    return sent


# peertalk's ---------------------------------------------------------------------------------------


async def peertalk_serve(echoes: bool, count: Count) -> int:
    from peertalk.net import Listener, Stream

    async def connected(stream: Stream) -> None:
        async with stream:
            while data := await stream.read(READ):
                if echoes:
                    await stream.write_all(data)
                else:
                    count.add(len(data))

    async def serve(listener: Listener) -> None:
        async for stream in listener:
            tasks.add(asyncio.create_task(connected(stream)))

    tasks: set[asyncio.Task[None]] = set()
    listener = await Listener.bind("127.0.0.1:0", backlog=600)
    tasks.add(asyncio.create_task(serve(listener)))
    count.kept = tasks
    return int(listener.local_addr[1])


async def peertalk_echo(port: int, size: int, clock: Clock) -> int:
    from peertalk.net import Stream

    payload, trips = os.urandom(size), 0
    async with await Stream.connect(("127.0.0.1", port)) as stream:
        await clock.ready()
        while clock.runs():
            await stream.write_all(payload)
            if await stream.readexactly(size) != payload:
                raise SystemExit("what came back is not what was sent")
            trips += 1
    return trips


async def peertalk_pour(port: int, size: int, clock: Clock) -> int:
    from peertalk.net import Stream

    payload, sent = bytes(size), 0
    async with await Stream.connect(("127.0.0.1", port)) as stream:
        await clock.ready()
        while clock.runs():
            for _ in range(16):
                await stream.write_all(payload)
                sent += size
            await asyncio.sleep(0)
    return sent


# Both sides ---------------------------------------------------------------------------------------


class Count:
    """What a server has read."""

    def __init__(self) -> None:
        self.bytes, self.first, self.last = 0, 0.0, 0.0
        self.kept: object = None

    def add(self, size: int) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.bytes += size


class Clock:
    """All connections begin together, and end so many seconds later."""

    def __init__(self, connections: int, seconds: float) -> None:
        self._missing = connections
        self._seconds = seconds
        self._all = asyncio.Event()
        self.began = self.ends = 0.0

    async def ready(self) -> None:
        self._missing -= 1
        if self._missing == 0:
            self.began = time.perf_counter()
            self.ends = self.began + self._seconds
            self._all.set()
        await self._all.wait()

    def runs(self) -> bool:
        return time.perf_counter() < self.ends


async def serve(party: str, echoes: bool) -> None:
    count = Count()
    port = await {"asyncio": asyncio_serve, "peertalk": peertalk_serve}[party](echoes, count)
    print(port, flush=True)
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    wanted = int(line)
    while not echoes and count.bytes < wanted:
        await asyncio.sleep(0.001)
    print(json.dumps({"bytes": count.bytes, "seconds": count.last - count.first}), flush=True)
    os._exit(0)


async def call(
    party: str, echoes: bool, port: int, connections: int, size: int, seconds: float
) -> None:
    clock = Clock(connections, seconds)
    one = {
        ("asyncio", True): asyncio_echo,
        ("asyncio", False): asyncio_pour,
        ("peertalk", True): peertalk_echo,
        ("peertalk", False): peertalk_pour,
    }[party, echoes]
    done = await asyncio.gather(*(one(port, size, clock) for _ in range(connections)))
    seconds = time.perf_counter() - clock.began
    print(json.dumps({"done": sum(done), "seconds": seconds}), flush=True)


def run(
    options: argparse.Namespace, party: str, echoes: bool, connections: int, size: int
) -> float:
    """Round trips, or bytes, a second."""
    cores = (None, None) if options.no_pin else (0, 0) if options.one_core else (0, 1)
    common = [sys.executable, __file__, "--party", party, *(["--uvloop"] * options.uvloop)]
    common += [f"--seconds={options.seconds}", *(["--echo"] * echoes)]
    server = subprocess.Popen(
        [*common, "--serve", *pinned(cores[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None and server.stdout is not None
    port = server.stdout.readline().strip()
    cell = [f"--port={port}", "--sizes", str(size), "--connections", str(connections)]
    client = subprocess.run(
        [*common, *cell, *pinned(cores[0])], stdout=subprocess.PIPE, text=True, check=True
    )
    told = json.loads(client.stdout)
    server.stdin.write(f"{told['done']}\n")
    server.stdin.flush()
    had = json.loads(server.stdout.readline())
    server.wait()
    if echoes:
        return float(told["done"] / told["seconds"])
    if had["bytes"] != told["done"]:
        raise SystemExit(f"{had['bytes']:,} of {told['done']:,} bytes came")
    return float(had["bytes"] / had["seconds"])


def pinned(core: int | None) -> list[str]:
    return [] if core is None else [f"--core={core}"]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 1024, 65_536])
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 50, 500])
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--no-pin", action="store_true")
    parser.add_argument("--one-core", action="store_true")
    for name in ("--serve", "--echo"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--party", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    rates: dict[tuple[bool, int, int], dict[str, list[float]]] = {}
    for number in range(options.rounds):
        for echoes in (True, False):
            for connections in options.connections:
                for size in options.sizes:
                    cell = rates.setdefault((echoes, connections, size), {p: [] for p in PARTIES})
                    for party in PARTIES if number % 2 else reversed(PARTIES):
                        cell[party].append(run(options, party, echoes, connections, size))
    rows = []
    for (echoes, connections, size), cell in rates.items():
        ratios = [
            ours / theirs for ours, theirs in zip(cell["peertalk"], cell["asyncio"], strict=True)
        ]
        rows.append(
            {
                "figure": "echo" if echoes else "one way",
                "connections": connections,
                "size": size,
                **{party: statistics.median(cell[party]) for party in PARTIES},
                "ratio": statistics.median(ratios),
                "from": min(ratios),
                "to": max(ratios),
            }
        )
    return rows


def main() -> None:
    options = parsed()
    if options.party is not None:
        begin(options.core)
        work = (
            serve(options.party, options.echo)
            if options.serve
            else call(
                options.party,
                options.echo,
                options.port,
                options.connections[0],
                options.sizes[0],
                options.seconds,
            )
        )
        if options.uvloop:
            import uvloop

            uvloop.run(work)
        else:
            asyncio.run(work)
        return
    rows = measure(options)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'figure':8} {'links':>5} {'bytes':>6} {'asyncio':>12} {'peertalk':>12}  ratio")
    for row in rows:
        unit = "trips/s" if row["figure"] == "echo" else "MB/s"
        scale = 1 if row["figure"] == "echo" else 1e6
        rates = "".join(f" {row[party] / scale:12,.0f}" for party in PARTIES)
        print(
            f"{row['figure']:8} {row['connections']:5} {row['size']:6}{rates}  {row['ratio']:.2f}"
            f" ({row['from']:.2f} to {row['to']:.2f}) {unit}"
        )


if __name__ == "__main__":
    main()
