"""Nodes of a test: their options, two that are connected, and what they receive."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import peertalk as pt
from kit.waiting import GUARD
from peertalk import sync


def loopback(**more: Any) -> dict[str, Any]:
    """Options of a node that connects by address only."""
    return {"bind": "127.0.0.1", "port": 0, "discovery": False, **more}


def announcing(discovery_port: int, **more: Any) -> dict[str, Any]:
    """Options of a node that announces itself on this port of loopback."""
    return {"bind": "127.0.0.1", "port": 0, "discovery_port": discovery_port, **more}


@contextlib.asynccontextmanager
async def pair(**options: Any) -> AsyncIterator[tuple[Any, Any, Any]]:
    """Two nodes and, of the first, the peer that the second is to it; connected."""
    async with (
        pt.Node("ada", **loopback(**options)) as ada,
        pt.Node("bob", **loopback(**options)) as bob,
    ):
        yield ada, bob, await ada.connect(bob.address, timeout=GUARD)


async def received(node: Any, count: int) -> list[bytes]:
    """The data of the next so many messages."""
    return [(await node.receive(timeout=GUARD)).data for _ in range(count)]


def numbered(number: int, size: int = 4) -> bytes:
    """Message `number`, of that size or a little more: its number, then bytes that follow from
    it."""
    return number.to_bytes(4, "big") + bytes([number % 251]) * max(0, size - 4)


@contextlib.contextmanager
def answered(workers: int = 1, theirs: int = 1) -> Iterator[tuple[sync.Node, sync.Peer]]:
    """A node with so many workers, and a connected peer, on one with so many, that answers each
    message with the same."""
    over = threading.Event()

    def answer(node: sync.Node) -> None:
        while not over.is_set():
            with contextlib.suppress(pt.Timeout):
                message = node.receive(timeout=0.1)
                message.peer.send(message.data, timeout=GUARD)

    with (
        sync.Node("ada", **loopback(workers=workers)) as ada,
        sync.Node("bob", **loopback(workers=theirs)) as bob,
        ThreadPoolExecutor(1) as other,
    ):
        with ThreadPoolExecutor(1) as server:
            waiting = server.submit(bob.wait_for, "ada", timeout=GUARD)
            peer = ada.connect(bob.address, timeout=GUARD)
            waiting.result(GUARD)
        answering = other.submit(answer, bob)
        try:
            yield ada, peer
        finally:
            over.set()
            answering.result(GUARD)
