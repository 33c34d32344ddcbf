"""Dials: who answers is who was meant, or the caller is told; what nobody answers fails in the
end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest
from kit.stranger import Stranger, announcing, loopback
from kit.waiting import GUARD, next_event

import peertalk as pt
from peertalk._core import load
from peertalk.protocol import connections as policy
from peertalk.protocol.wire import Announcement, encode_announcement
from peertalk.runtime.world import World

# Peers that are not who they were


async def test_where_a_classic_peer_was_heard_and_one_of_ours_answers_the_caller_is_told(free_port):
    """Ports are used again: messages meant for one program must not go to the next one on its
    port."""
    port = free_port()
    async with pt.Node("ada", **announcing(port)) as ada, pt.Node("new", **loopback()) as new:
        events = ada.events()
        heard = Stranger()
        heard.address = new.address
        heard.announce(port)
        old = (await next_event(events, pt.PeerFound)).peer
        with contextlib.suppress(pt.errors.NetworkFailure):
            await old.connect(timeout=GUARD)
        peer = await ada.wait_for("new", timeout=GUARD)
        assert peer.id == new.id and peer is not old and not old.connected
        with pytest.raises(pt.errors.NetworkFailure, match="is now the peer 'new'"):
            await old.send(b"not for you", timeout=GUARD)
        await peer.send(b"for you")
        assert (await new.receive(timeout=GUARD)).data == b"for you"


async def test_where_another_node_answers_than_was_heard_the_caller_is_told(free_port):
    """Likewise between our own: the instance id decides."""
    port, core = free_port(), load()
    async with pt.Node("ada", **announcing(port)) as ada, pt.Node("new", **loopback()) as new:
        packet = encode_announcement(
            core, Announcement(1, "old", new.address[1], instance=b"goneaway")
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(packet, ("127.0.0.1", port))
        old = await ada.wait_for("old", timeout=GUARD)
        with pytest.raises(pt.ConnectionClosed, match="'old' was started again"):
            await old.send(b"not for you", timeout=GUARD)
        assert ada.peers["new"].id == new.id and old.successor is ada.peers["new"]


async def test_what_was_queued_for_a_peer_that_cannot_be_reached_fails_after_the_last_try(
    free_port, monkeypatch
):
    """Queued messages survive a short absence, not a long one; and their end is told."""
    monkeypatch.setattr(policy, "RETRY_DELAYS", (0.01, 0.02))
    port, core = free_port(), load()
    nobody = free_port()
    async with pt.Node("ada", **announcing(port)) as ada:
        packet = encode_announcement(core, Announcement(1, "away", nobody, instance=b"awayaway"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(packet, ("127.0.0.1", port))
        peer = await ada.wait_for("away", timeout=GUARD)
        events = ada.events()
        assert [peer.send_nowait(bytes(10)) for _ in range(3)] == [1, 2, 3]
        assert (
            peer.queue.reason == "connection" and peer.queue.pending == 3 and peer.queue.bytes == 30
        )
        failed = await next_event(events, pt.Failed)
        assert (failed.first, failed.last, failed.outcome) == (1, 3, pt.Outcome.FAILED)
        assert isinstance(failed.error, pt.ConnectionRefused) and failed.error.peer == "away"
        with pytest.raises(pt.ConnectionRefused):
            await peer.send(b"x", timeout=GUARD)
        assert peer.send_nowait(b"later") == 4
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", nobody))
        stats = ada.stats()
        assert stats.messages_accepted == 4 and stats.messages_failed == 3


async def test_any_number_of_connects_at_once_is_told_one_after_the_other():
    """Each was called inside the one before: a thousand of them were too deep, and none was told,
    nor anything else that the turn had brought."""
    async with pt.Node("ada", **loopback()) as ada:
        async with pt.Node("bob", **loopback()) as bob:
            address = bob.address
            peers = await asyncio.gather(
                *(ada.connect(address, timeout=GUARD) for _ in range(1_500))
            )
            assert len(set(peers)) == 1 and peers[0].connected
            await asyncio.gather(*(peers[0].connect(timeout=GUARD) for _ in range(1_500)))
            await asyncio.gather(*(peers[0].ping(timeout=GUARD) for _ in range(1_500)))
            await asyncio.gather(*(peers[0].disconnect() for _ in range(1_500)))
            assert not peers[0].connected
        refused = await asyncio.gather(
            *(ada.connect(address, timeout=GUARD) for _ in range(1_500)), return_exceptions=True
        )
        assert {type(error) for error in refused} == {pt.ConnectionRefused}


async def test_a_dial_whose_socket_the_system_does_not_watch_ends_and_the_next_one_is_another():
    """It stayed half made: it was never told, and whoever dialled there later waited with it."""

    class Unwatchable(World):
        def dial(self, address, bind=""):
            dialling = super().dial(address, bind)
            if self.refuses:
                with open(__file__) as file:  # epoll takes no regular file: EPERM
                    os.dup2(file.fileno(), dialling.fileno())
            return dialling

    world = Unwatchable()
    async with (
        pt.Node("ada", world=world, **loopback()) as ada,
        pt.Node("bob", **loopback()) as bob,
    ):
        for world.refuses in (True, True, False):
            try:
                peer = await ada.connect(bob.address, timeout=GUARD)
            except pt.errors.PlatformError as error:
                assert world.refuses and "cannot be watched" in str(error)
        assert peer.connected and ada.stats().links_open == 1
