"""What an honest peer keeps of its rate while others misbehave: messages of 64 bytes, sent one by
one.

    python bench/shares.py [--json] [--seconds 1.0] [--rounds 3] [--stalled 1000] [--flooding 16]

A node in a process of its own takes what comes. A new peer connects to it and measures its rate,
which ends when the node says that all has arrived, three times in each round: alone; beside peers
that never read while the node has far more to send to each than anybody takes; and beside strangers
that flood frames of four bytes. Exit status 1 unless the medians are at least 80 % of the quiet
rate. The flood comes from a third process: with fewer than three processors, what that one costs is
taken from the others, and the figure is a lower bound.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import secrets
import select
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

os.environ["PEERTALK_BIND"] = "127.0.0.1"

import peertalk
from peertalk._core import load
from peertalk._core.values import CAPABILITY
from peertalk.protocol.wire import Capabilities, encode_capabilities

KEPT = 0.8
"""Of its quiet rate, what an honest peer must keep."""
COMPACT_PING = b"P\x20\0\0"
MESSAGE = bytes(64)
LAST = b"is that all?"
BULK = bytes(1000)


async def serve() -> None:
    """The node under test: says when it has taken all; when told to, fills the way to the crowd."""
    async with peertalk.Node("shares", port=0, discovery=False, max_peers=4096) as node:
        print(node.address[1], flush=True)

        async def take() -> None:
            async for message in node.messages():
                if message.data == LAST:
                    await message.peer.send(LAST)

        async def fill(peer: Any) -> None:
            with contextlib.suppress(peertalk.PeerTalkError):  # the crowd has left
                await peer.send_many([BULK] * 1500, timeout=3600)

        taking = asyncio.create_task(take())
        filling: list[asyncio.Task[None]] = []
        while await asyncio.to_thread(sys.stdin.readline):
            filling += [
                asyncio.create_task(fill(peer))
                for peer in node.peers.values()
                if peer.name.startswith("crowd")
            ]
            sent = -1
            while sent != node.stats().bytes_sent:  # until nobody takes any more
                sent = node.stats().bytes_sent
                await asyncio.sleep(1.2)
            print("full", flush=True)
        for task in (taking, *filling):
            task.cancel()


def crowd(port: int, count: int, flood: bool) -> None:
    """So many strangers that greet and never read; flood: each sends PINGs as fast as they are
    taken. Until stdin ends."""
    core = load()
    sockets = []
    for number in range(count):
        each = socket.socket()
        if not flood:  # as on a network: what the kernels take between them stays small
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        each.connect(("127.0.0.1", port))
        greeting = Capabilities(8192, 1024, 0, 0, secrets.token_bytes(8), f"crowd-{number}", 1)
        each.sendall(core.encode_frame(CAPABILITY, encode_capabilities(core, greeting)))
        each.setblocking(False)
        sockets.append(each)
        time.sleep(0.0005)
    print("here", flush=True)
    data = COMPACT_PING * 16_384
    while True:
        ends, writable, _ = select.select([0], sockets if flood else [], [], None)
        if ends:
            break
        for each in writable:
            try:
                each.send(data)
            except OSError:
                sockets.remove(each)


async def rate(port: int, seconds: float) -> float:
    """Messages a second of an honest peer that connects now."""
    async with peertalk.Node("honest", port=0, discovery=False) as node:
        peer = await node.connect(("127.0.0.1", port), timeout=10)
        count = 0
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(64):
                await peer.send(MESSAGE)
            count += 64
        await peer.send(LAST)
        await node.receive(timeout=60)
        return count / (time.perf_counter() - end + seconds)


def measure(seconds: float, rounds: int, stalled: int, flooding: int) -> dict[str, Any]:
    """Rates of each case, and their medians against the quiet one."""
    rates: dict[str, list[float]] = {"quiet": [], "stalled": [], "flooding": []}
    for _ in range(rounds):
        for case, count in (("quiet", 0), ("stalled", stalled), ("flooding", flooding)):
            with start("--serve") as server:
                assert server.stdin is not None and server.stdout is not None
                port = int(server.stdout.readline())
                with start("--crowd", str(port), str(count), case) as others:
                    assert others.stdin is not None and others.stdout is not None
                    others.stdout.readline()
                    if case == "stalled":
                        server.stdin.write("\n")
                        server.stdin.flush()
                        server.stdout.readline()
                    rates[case].append(asyncio.run(rate(port, seconds)))
                    others.stdin.close()
                server.stdin.close()
                server.kill()
    quiet = statistics.median(rates["quiet"])
    kept = {case: statistics.median(each) / quiet for case, each in rates.items()}
    return {"rates": rates, "kept": kept}


def start(*arguments: str) -> subprocess.Popen[str]:
    """One of the other two processes."""
    return subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def main() -> int:
    """Print what is kept; 1 when it is less than it must be."""
    parser = argparse.ArgumentParser(description="what an honest peer keeps while others misbehave")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each case")
    parser.add_argument("--stalled", type=int, default=1000, help="peers that never read")
    parser.add_argument("--flooding", type=int, default=16, help="strangers that flood")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--crowd", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if options.serve:
        asyncio.run(serve())
        return 0
    if options.crowd:
        crowd(int(options.crowd[0]), int(options.crowd[1]), options.crowd[2] == "flooding")
        return 0
    figures = measure(options.seconds, options.rounds, options.stalled, options.flooding)
    if options.json:
        print(json.dumps(figures))
    else:
        for case, kept in figures["kept"].items():
            median = statistics.median(figures["rates"][case])
            print(f"{case:<10}{median:>10,.0f} messages/s{kept:>8.0%} of the quiet rate")
    return int(min(figures["kept"].values()) < KEPT)


if __name__ == "__main__":
    sys.exit(main())
