"""Whoever comes: no more than the bound, and those who find no room are told so."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from classic import REJECT
from kit.inside import places_of
from kit.stranger import Stranger, loopback
from kit.waiting import GUARD, until

import peertalk as pt


async def test_more_connections_than_the_bound_are_refused_and_counted(caplog):
    """Descriptors are finite; the honest ones that are there stay. A log of all who were refused
    would be a log of them alone."""
    async with (
        pt.Node("ada", **loopback(max_peers=1)) as ada,
        pt.Node("bob", **loopback()) as bob,
        contextlib.AsyncExitStack() as stack,
    ):
        peer = await bob.connect(ada.address, timeout=GUARD)
        bound = places_of(ada)
        writers = []
        for _ in range(bound + 5):
            _, writer = await asyncio.open_connection(*ada.address)
            stack.callback(writer.close)
            writers.append(writer)
        await until(lambda: ada.stats().links_refused == 6)
        assert ada.stats().links_open <= bound
        (begun,) = caplog.messages
        assert f"taking more peers fails: {bound} connections are as many as there may be" in begun
        assert "Config.max_peers is 1" in begun
        await peer.send(b"still here")
        assert (await ada.receive(timeout=GUARD)).data == b"still here"


async def test_a_full_node_says_so_once_and_once_when_it_has_room(caplog, monkeypatch):
    """The line names the setting; who was refused is a counter."""
    monkeypatch.setattr("peertalk.runtime.log.SETTLED", 0.01)
    async with (
        pt.Node("ada", **loopback(max_peers=1)) as ada,
        pt.Node("bob", **loopback()) as bob,
        pt.Node("cid", **loopback()) as cid,
    ):
        peer = await bob.connect(ada.address, timeout=GUARD)
        for count in range(1, 6):
            # greeted first, it may have been connected for a moment
            with contextlib.suppress(pt.ConnectionRefused):
                await cid.connect(ada.address, timeout=GUARD)
            await until(lambda count=count: ada.stats().links_refused == count)
            await until(lambda: ada.stats().links_open == 1 and not cid.stats().links_open)
        (begun,) = caplog.messages
        assert (
            "node 'ada': taking more peers fails: the limit of 1 connected peers (Config." in begun
        )
        assert len(caplog.messages) == 1, "a stranger who goes leaves no place"
        await peer.disconnect()
        await until(lambda: len(caplog.messages) == 2)
        assert "node 'ada': taking more peers works again; 5 failed in " in caplog.messages[1]
        await cid.connect(ada.address, timeout=GUARD)
        assert len(caplog.messages) == 2


async def test_who_finds_no_room_is_told_so_by_the_reason():
    """Silence would look like a broken network; the original does not look at what comes before the
    end."""
    async with pt.Node("ada", **loopback(max_peers=1)) as ada, contextlib.AsyncExitStack() as stack:
        for _ in range(places_of(ada)):
            _, writer = await asyncio.open_connection(*ada.address)
            stack.callback(writer.close)
        async with Stranger() as classic:
            await classic.dial(ada)
            assert await classic.hear() == (REJECT, 0, 0, b"\x01")
            assert await classic.hear() is None
        async with pt.Node("bob", **loopback()) as bob:
            with pytest.raises(
                pt.ConnectionRefused, match=r"127\.0\.0\.1:\d+ rejected the connection \(FULL\)"
            ) as refused:
                await bob.connect(ada.address, timeout=GUARD)
            assert refused.value.reason is pt.RejectReason.FULL
        assert ada.stats().links_refused == 2
