"""A node's engine with all that stands on it: opened whole or not at all."""

from __future__ import annotations

import contextlib
import socket

import pytest
from kit.inside import connections_of, engine_of
from kit.nodes import loopback
from kit.waiting import GUARD, until

import peertalk as pt
from peertalk._core import values


async def test_an_engine_that_cannot_open_leaves_nothing_open(free_port):
    """A failed start must not hold the port that it got."""
    port, taken = free_port(), free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as alone:
        alone.bind(("", taken))
        with pytest.raises(pt.errors.AddressInUse, match="discovery_port"):
            await pt.Node("ada", bind="127.0.0.1", port=port, discovery_port=taken).start()
    with contextlib.closing(socket.create_server(("127.0.0.1", port))):
        pass


async def test_who_stands_still_ends_only_when_memory_is_scarce_and_its_time_is_over(core):
    """A peer that does not read keeps its connection until others need what it holds; then it is
    told apart from a broken one, and counted."""
    async with (
        pt.Node("ada", **loopback(core=core.name, link_timeout=15)) as ada,
        pt.Node("bob", **loopback(core=core.name)) as bob,
    ):
        await bob.connect(ada.address, timeout=GUARD)
        (connection,) = connections_of(ada)
        await until(lambda: any(peer.connected for peer in ada.peers.values()))
        engine_of(ada).serve_link(connection, values.STILL, 14_999, 0)
        assert ada.stats().links_open == 1 and ada.stats().ended_still == 0
        engine_of(ada).serve_link(connection, values.STILL, 15_000, 0)
        await until(lambda: ada.stats().links_open == 0)
        assert ada.stats().ended_still == 1
        engine_of(ada).serve_link(connection, values.STILL, 16_000, 0)
        assert ada.stats().ended_still == 1
