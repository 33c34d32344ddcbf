"""A home and its workers on socket pairs, for tests of links on threads of their own."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from peertalk._core.values import BATCH, DATA

PATIENCE = 20.0
"""Seconds after which what a test waits for counts as missing."""


class WorkBench:
    """A home and its workers, with sockets that are closed behind the test."""

    def __init__(self, core: Any, **options: Any) -> None:
        self.core = core
        self.home = core.Loop(**options)
        self.worker = core.Worker(self.home)
        self.workers = [self.worker]
        self.sockets: list[socket.socket] = []
        self.came: list[Any] = []

    def another(self) -> Any:
        self.workers.append(self.core.Worker(self.home))
        return self.workers[-1]

    def pair(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(PATIENCE)
        self.sockets += [ours, theirs]
        return ours, theirs

    def link(
        self, tag: int = 1, worker: Any = None, *, reads: bool = True, **options: Any
    ) -> tuple[Any, socket.socket]:
        """A link of the worker, and the bare socket at its other end."""
        ours, theirs = self.pair()
        link = (worker or self.worker).open_link(ours.fileno(), tag, **options)
        if reads:
            link.resume()
        return link, theirs

    def take(self) -> None:
        for worker in self.workers:
            worker.turn(0.0, self.came)

    def until(self, condition: Callable[[list[Any]], Any]) -> list[Any]:
        """Take until the condition holds of all that came."""
        give_up = time.monotonic() + PATIENCE
        self.take()
        while not condition(self.came):
            assert time.monotonic() < give_up, [each[:3] for each in self.came[-20:]]
            self.home.turn(0.5)
            self.take()
        return self.came

    def count(self, kind: int, tag: int | None = None) -> int:
        return sum(each[0] == kind and tag in (None, each[1]) for each in self.came)

    def payloads(self, tag: int | None = None) -> list[bytes]:
        batches = [each[3] for each in self.came if each[0] == BATCH and tag in (None, each[1])]
        return list(itertools.chain.from_iterable(batches))

    def kept(self, worker: Any, tag: int, count: int) -> None:
        """Wait until a worker keeps so many frames of a link, which nobody takes."""
        give_up = time.monotonic() + PATIENCE
        while worker.keeps(tag) != count:
            assert time.monotonic() < give_up, worker.keeps(tag)
            self.home.turn(0.01)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.home.close()
        for each in self.sockets:
            each.close()


@contextmanager
def workbench(core: Any) -> Iterator[WorkBench]:
    """One that is closed behind the test, with all memory back and no thread left."""
    bench = WorkBench(core)
    yield bench
    bench.close()
    assert bench.home.pool.statistics().in_use == 0
    assert not [each for each in threading.enumerate() if each.name == "peertalk worker"]


def said(sock: socket.socket, size: int) -> bytes:
    """So many bytes of a socket."""
    heard = b""
    while len(heard) < size:
        more = sock.recv(size - len(heard))
        assert more, heard
        heard += more
    return heard


def frame(core: Any, payload: bytes, kind: int = DATA, flags: int = 0, sequence: int = 0) -> Any:
    """A frame of the core's making."""
    return core.encode_frame(kind, payload, flags, sequence)
