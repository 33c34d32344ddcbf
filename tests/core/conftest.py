"""What the tests of the loop and of its links share: one loop of a core on real sockets, driven in
each way that there is."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from peertalk._core.values import BATCH, DATA, SENT
from peertalk._numbers import ERR_WOULD_BLOCK, FRAME_OVERHEAD

PATIENCE = 10.0
"""Seconds after which a test that waits for an event says what it saw instead."""

WAYS = {
    "epoll": {},
    "poll": {"epoll": False},
    "plain": {"platform": "posix_plain"},
}


class Bench:
    """One loop of a core, with sockets that are closed behind the test."""

    def __init__(self, core: Any, way: str) -> None:
        self.core = core
        self.way = way
        self.limit = core.limits.frame_max_payload
        self.loops: list[Any] = []
        self.sockets: list[socket.socket] = []
        self.loop = self.make_loop()

    def make_loop(self, **arguments: Any) -> Any:
        loop = self.core.Loop(**{**WAYS[self.way], **arguments})
        self.loops.append(loop)
        return loop

    def keep(self, *sockets: socket.socket) -> tuple[socket.socket, ...]:
        for each in sockets:
            each.setblocking(False)
            self.sockets.append(each)
        return sockets

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Two ends of one connection inside the kernel."""
        ours, theirs = self.keep(*socket.socketpair())
        return ours, theirs

    def tcp(self) -> tuple[socket.socket, socket.socket]:
        """Two ends of a TCP connection over loopback."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        self.keep(ours, theirs)
        return ours, theirs

    def link(self, tag: int = 1, **arguments: Any) -> tuple[Any, socket.socket]:
        """A link, and the bare socket at its other end."""
        ours, theirs = self.pair()
        return self.loop.open_link(ours.fileno(), tag, **arguments), theirs

    def links(self, **arguments: Any) -> tuple[Any, Any]:
        """Two links of this loop, tags 1 and 2, that talk to each other."""
        ours, theirs = self.pair()
        return self.loop.open_link(ours.fileno(), 1, **arguments), self.loop.open_link(
            theirs.fileno(), 2, **arguments
        )

    def until(self, condition: Callable[[list[Any]], Any], loop: Any = None) -> list[Any]:
        """Turn until the condition holds of all events seen."""
        events: list[Any] = []
        give_up = time.monotonic() + PATIENCE
        while not condition(events):
            assert time.monotonic() < give_up, (
                f"waited for what did not come; seen: {[event[:3] for event in events[-20:]]}"
            )
            events += (loop or self.loop).turn(0.1)
        return events

    def offer(self, link: Any, message: bytes) -> list[Any]:
        """Send, and turn for as long as there is no room."""
        events: list[Any] = []
        give_up = time.monotonic() + PATIENCE
        while (code := link.send(message)) < 0:
            assert code == ERR_WOULD_BLOCK
            assert time.monotonic() < give_up, "no slot became free"
            events += self.loop.turn(0.1)
        return events

    def settle(self) -> list[Any]:
        """Turn until two turns in a row have nothing to tell and none is needed."""
        events: list[Any] = []
        quiet = 0
        while quiet < 2:
            seen = self.loop.turn(0.0)
            events += seen
            quiet = 0 if seen or self.loop.next_timeout() == 0.0 else quiet + 1
        return events

    # What the events and the bytes say

    @staticmethod
    def of(events: list[Any], kind: int, tag: int | None = None) -> list[Any]:
        """The events of a kind, of one tag or all."""
        return [event for event in events if event[0] == kind and tag in (None, event[1])]

    @staticmethod
    def payloads(events: list[Any], tag: int | None = None) -> list[bytes]:
        """All payloads of a link's batches."""
        found = []
        for _, _, size, batch in Bench.of(events, BATCH, tag):
            assert type(batch) is list and batch
            assert size == sum(map(len, batch))
            found += batch
        return found

    @staticmethod
    def sent(events: list[Any], tag: int) -> int:
        """Messages that left, as the loop says."""
        assert all(code == 0 for _, _, _, code in Bench.of(events, SENT, tag))
        return sum(count for _, _, count, _ in Bench.of(events, SENT, tag))

    @staticmethod
    def read_all(sock: socket.socket) -> bytes:
        """What is there now."""
        data = b""
        try:
            while piece := sock.recv(1 << 16):
                data += piece
        except BlockingIOError:
            pass
        return data

    def frames_in(self, data: bytes) -> list[Any]:
        """What stands on the wire, frame by frame."""
        frames = []
        rest = memoryview(data)
        while rest:
            frames.append(self.core.decode_frame(rest[: self.limit + FRAME_OVERHEAD]))
            rest = rest[len(frames[-1].payload) + FRAME_OVERHEAD :]
        return frames

    def stream(self, *messages: bytes) -> bytes:
        """Messages as they stand on the wire."""
        return b"".join(
            self.core.encode_frame(DATA, message, 0, number & 255)
            for number, message in enumerate(messages)
        )

    def close(self) -> None:
        for loop in self.loops:
            loop.close()
        for each in self.sockets:
            each.close()


@pytest.fixture(params=WAYS)
def bench(core: Any, request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(core, request.param)
    yield made
    made.close()


@pytest.fixture
def quick(core: Any) -> Iterator[Bench]:
    """The default way alone, for what has nothing to do with the way."""
    made = Bench(core, "epoll")
    yield made
    made.close()


@pytest.fixture(scope="session")
def make_bench() -> Callable[[Any, str], Bench]:
    """make_bench(core, way): for a test that chooses for itself, and closes it."""
    return Bench
