"""Memory of an idle connected peer: private bytes of the listening process, for each connection,
Python objects included. At most 2 KiB must do; 4 KiB for a stream with the task that serves it.

    python bench/idle.py [--json] [--peers 1500] [--core standard]
    python bench/idle.py --streams [--json] [--peers 10000]

A node in a process of its own is connected to by so many peers (links of one loop here, which
greet as peertalk nodes do, places included), each of which sends it one message and gets one back,
so that every link has had its buffers. Then all are left idle, and the private memory of the
process (smaps_rollup: private clean and dirty pages) is compared with what it was after a first
3,000 had come. Buffers of sockets lie in the kernel and are not counted. Linux only.

With --streams the process is a server of peertalk.net on one loop: a task for each connection
answers what comes, and then waits for more.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import socket
import subprocess
import sys
from typing import Any

os.environ["PEERTALK_BIND"] = "127.0.0.1"

import peertalk
from peertalk._core import load
from peertalk._core.values import BATCH, CAPABILITY, FRAME, PING, PONG
from peertalk.net import Listener, Stream
from peertalk.protocol.claims import Claims
from peertalk.protocol.wire import Capabilities, Greeting, encode_capabilities, encode_greeting

WARM_UP = 3000
"""Peers before the first reading: what they fill is memory that the start of the process had left
free, 1.7 MB of malloc's. With 500 the figure followed what was imported at the start, and said up
to 1,000 bytes too little."""


def private_bytes() -> int:
    """Private memory of this process."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(
            int(line.split()[1]) * 1024
            for line in file
            if line.startswith(("Private_Clean", "Private_Dirty"))
        )


async def listen(core: str) -> None:
    """The process that is measured: answers each message; tells its memory whenever a line comes
    in."""
    async with peertalk.Node("idle", port=0, discovery=False, core=core, max_peers=65_535) as node:
        print(node.address[1], node.id, flush=True)

        async def answer() -> None:
            async for message in node.messages():
                await message.peer.send(message.data)

        answering = asyncio.create_task(answer())
        while await asyncio.to_thread(sys.stdin.readline):
            gc.collect()
            stats = node.stats()
            print(
                json.dumps(
                    {
                        "private": private_bytes(),
                        "links": stats.links_open,
                        "pool_bytes": stats.pool_bytes,
                    }
                ),
                flush=True,
            )
        answering.cancel()


async def serve_streams() -> None:
    """The same with streams: each connection has a task, which answers what comes and waits."""
    busy = 0

    async def answer(stream: Stream) -> None:
        nonlocal busy
        busy += 1
        while data := await stream.read():
            await stream.write_all(data)

    async with await Listener.bind("127.0.0.1:0") as listener:
        print(listener.local_addr[1], "00", flush=True)
        serving = asyncio.create_task(listener.serve(answer))
        while await asyncio.to_thread(sys.stdin.readline):
            gc.collect()
            print(json.dumps({"private": private_bytes(), "links": busy}), flush=True)
        serving.cancel()


class Callers:
    """Many connections that carry bytes to a server of streams."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.sockets: list[socket.socket] = []

    def grow(self, count: int) -> None:
        """Connect so many more; each sends some bytes and has its answer before the next one
        comes."""
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", self.port))
            connection.sendall(b"hello")
            assert connection.recv(100) == b"hello"
            self.sockets.append(connection)

    def close(self) -> None:
        """All go."""
        for connection in self.sockets:
            connection.close()


class Crowd:
    """Many peers on one loop.

    Args:
        core: of the peers.
        port, instance: of the node that they connect to.
    """

    def __init__(self, core: str, port: int, instance: bytes) -> None:
        self.core = load(core)
        self.loop = self.core.Loop()
        self.port, self.instance = port, instance
        self.sockets: list[socket.socket] = []
        self.links: list[Any] = []
        self.answered = 0

    def grow(self, count: int) -> None:
        """Connect so many more; each sends a message and has its answer before the next one
        comes."""
        for _ in range(count):
            number = len(self.links)
            connection = socket.create_connection(("127.0.0.1", self.port))
            connection.setblocking(False)
            link = self.loop.open_link(connection.fileno(), number)
            self.sockets.append(connection)
            self.links.append(link)
            # the smaller instance decides: it says the place of its connection at once
            instance = (1 + number).to_bytes(8, "big")
            capabilities = Capabilities(
                self.core.limits.frame_max_payload,
                1024,
                0,
                0,
                instance,
                f"idle-{number}",
                1 + number,
            )
            greeting = Greeting(1, self.instance, Claims(), 1)
            payload = encode_capabilities(self.core, capabilities)
            link.send_frame(CAPABILITY, payload + encode_greeting(greeting, instance))
            link.send(b"hello")
            while self.answered <= number:
                self.turn()

    def turn(self) -> None:
        """Take what has come: answers are counted, PINGs are answered."""
        for kind, tag, a, b in self.loop.turn(5.0):
            if kind == BATCH:
                self.answered += len(b)
            elif kind == FRAME and a & 0xFF == PING:
                self.links[tag].send_frame(PONG, b)

    def close(self) -> None:
        """All go."""
        self.loop.close()
        for connection in self.sockets:
            connection.close()


def measure(core: str, peers: int, streams: bool) -> dict[str, Any]:
    """Private bytes for each idle peer, or stream."""
    kind = ["--streams"] if streams else []
    with subprocess.Popen(
        [sys.executable, __file__, "--listen", "--core", core, *kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as listener:
        assert listener.stdin is not None and listener.stdout is not None

        def ask() -> dict[str, Any]:
            assert listener.stdin is not None and listener.stdout is not None
            listener.stdin.write("\n")
            listener.stdin.flush()
            return json.loads(listener.stdout.readline())  # type: ignore[no-any-return]

        port, instance = listener.stdout.readline().split()
        crowd: Crowd | Callers = Callers(int(port))
        if not streams:
            crowd = Crowd(core, int(port), bytes.fromhex(instance))
        try:
            crowd.grow(WARM_UP)
            before = ask()
            crowd.grow(peers)
            after = ask()
        finally:
            crowd.close()
            listener.stdin.close()
    assert after["links"] - before["links"] == peers
    return {
        "peers": peers,
        "bytes_per_peer": round((after["private"] - before["private"]) / peers),
        "core": core,
        "pool_bytes": after.get("pool_bytes", 0),
    }


def main() -> int:
    """Print the figure; 1 when it is over 2 KiB, or 4 with --streams."""
    parser = argparse.ArgumentParser(description="memory of an idle connected peer")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.add_argument("--peers", type=int, default=1500, help="idle connections measured")
    parser.add_argument("--core", default="standard", choices=("standard", "lowmem"))
    parser.add_argument("--streams", action="store_true", help="connections of peertalk.net")
    parser.add_argument("--listen", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if options.listen:
        asyncio.run(serve_streams() if options.streams else listen(options.core))
        return 0
    if not os.path.exists("/proc/self/smaps_rollup"):
        print("bench/idle.py reads /proc/self/smaps_rollup, which only Linux has", file=sys.stderr)
        return 2
    figures = measure(options.core, options.peers, options.streams)
    print(
        json.dumps(figures)
        if options.json
        else (
            f"{figures['bytes_per_peer']:,} bytes for each idle peer, over {figures['peers']:,} "
            f"{'streams' if options.streams else 'peers'} ({options.core} core)"
        )
    )
    return int(figures["bytes_per_peer"] > (4096 if options.streams else 2048))


if __name__ == "__main__":
    sys.exit(main())
