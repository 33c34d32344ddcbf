"""Nodes of a test: their options, two that are connected, and what they receive."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import peertalk as pt
from kit.waiting import GUARD


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
