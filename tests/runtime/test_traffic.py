"""Messages on their way: what other threads have left, memory that is short, and an inbox that
nobody empties. Order and outcomes of any mix of them are tests/runtime/test_remote.py's."""

from __future__ import annotations

import asyncio
import threading

from kit.inside import engine_of
from kit.nodes import loopback
from kit.waiting import GUARD, until

import peertalk as pt


async def test_messages_that_another_thread_has_left_are_sent_before_the_node_closes():
    """They were accepted there: closing politely includes them, and what is then not sent is
    reported."""
    async with (
        pt.Node("ada", **loopback(send_queue_size=200)) as ada,
        pt.Node("bob", **loopback()) as bob,
    ):
        peer = await ada.connect(bob.address, timeout=GUARD)
        thread = threading.Thread(
            target=lambda: [peer.send_nowait(bytes([number])) for number in range(100)]
        )
        thread.start()
        thread.join()  # this thread has not turned the engine since
        assert await ada.aclose() == 0
        assert [(await bob.receive(timeout=GUARD)).data for _ in range(100)] == [
            bytes([number]) for number in range(100)
        ]


async def test_messages_of_another_thread_for_a_peer_that_is_gone_are_reported(monkeypatch):
    """Number 0, because it never had one; but not silence."""
    monkeypatch.setattr("peertalk.protocol.connections.RETRY_DELAYS", (0.01,))
    async with pt.Node("ada", **loopback()) as ada:
        async with pt.Node("bob", **loopback()) as bob:
            peer = await ada.connect(bob.address, timeout=GUARD)
        await until(lambda: not peer.connected)
        events = ada.events()
        thread = threading.Thread(target=lambda: [peer.send_nowait(b"x") for _ in range(3)])
        thread.start()
        thread.join()
        failed = 0
        async with asyncio.timeout(GUARD):
            async for event in events:
                if isinstance(event, pt.Failed):
                    assert isinstance(event.error, pt.ConnectionRefused)
                    failed += event.last - event.first + 1
                    if failed == 3:
                        break
        assert ada.stats().messages_failed == ada.stats().messages_accepted == 3


async def test_a_connection_that_opens_while_the_inbox_is_full_is_not_read_until_there_is_room():
    """Each new one could otherwise add what one read brings: a stranger that comes again and again
    would fill the memory."""
    async with (
        pt.Node("bob", **loopback(receive_queue_bytes=1024)) as bob,
        pt.Node("ada", **loopback()) as ada,
        pt.Node("cid", **loopback()) as cid,
    ):
        await (await ada.connect(bob.address, timeout=GUARD)).send(bytes(2000))
        await until(lambda: bob.stats().pauses == 1)
        peer = await cid.connect(bob.address, timeout=GUARD)
        await until(lambda: bob.stats().pauses == 2)
        await peer.send_many([bytes(1000)] * 3)
        await until(lambda: cid.stats().messages_sent == 3)
        assert bob.stats().messages_received == 1
        for size in (2000, 1000, 1000, 1000):
            assert len((await bob.receive(timeout=GUARD)).data) == size


async def test_an_inbox_that_nobody_reads_is_at_most_twice_its_bound_and_one_read_of_each():
    """Idle connections are read while it is full, to notice their end; there are many of them."""
    async with pt.Node("bob", **loopback(receive_queue_bytes=4096)) as bob:
        nodes = [await pt.Node(f"n{number}", **loopback()).start() for number in range(8)]
        peers = [await node.connect(bob.address, timeout=GUARD) for node in nodes]
        for peer in peers:
            await peer.send(bytes(3000))
        await until(lambda: bob.stats().pauses == 8)
        assert bob.stats().inbox_bytes <= 2 * 4096 + 8 * 3064
        for _ in peers:
            assert len((await bob.receive(timeout=GUARD)).data) == 3000
        for node in nodes:
            await node.aclose()


async def test_all_who_wait_for_memory_ask_again_together(core):
    """A thousand peers with a timer each kept a processor busy with asking."""
    async with (
        pt.Node("ada", **loopback(core=core.name)) as ada,
        pt.Node("bob", **loopback(core=core.name)) as bob,
    ):
        peer = await bob.connect(ada.address, timeout=GUARD)
        inside = engine_of(bob)
        before = len(inside._timers)
        for _ in range(1000):
            inside.refused(peer, pt.errors.OutOfMemory.code)
        assert len(inside._timers) == before + 1
        await until(lambda: not inside.traffic._starved)
        await peer.send(b"and it goes on")
        assert (await ada.receive(timeout=GUARD)).data == b"and it goes on"
