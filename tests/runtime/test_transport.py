"""The engine: deadlines that are kept whoever sets them, orders from other threads, and the driver
that has no epoll."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import threading

import pytest
from kit.nodes import loopback
from kit.waiting import GUARD, until

import peertalk as pt
from peertalk._core import values
from peertalk.runtime import transport as transport_module


@pytest.fixture
def no_epoll(core, monkeypatch):
    """The same core with loops that have no descriptor of their own, as where the system has no
    epoll."""
    monkeypatch.setattr(core, "Loop", functools.partial(core.Loop, epoll=False))
    return core


async def test_without_epoll_each_descriptor_is_watched_also_when_its_number_is_used_again(
    no_epoll,
):
    """A closed descriptor's number goes to the next connection at once: a watch that was not taken
    back would leave it deaf."""
    async with (
        pt.Node("ada", **loopback(core=no_epoll.name)) as ada,
        pt.Node("bob", **loopback(core=no_epoll.name)) as bob,
    ):
        assert ada._transport.loop.fd == -1
        for number in range(10):
            peer = await ada.connect(bob.address, timeout=GUARD)
            await peer.send_many([bytes([number]) * 500] * 300)
            for _ in range(300):
                assert (await bob.receive(timeout=GUARD)).data == bytes([number]) * 500
            await bob.peers["ada"].send(b"back")
            assert (await ada.receive(timeout=GUARD)).data == b"back"
            await (peer if number % 2 else bob.peers["ada"]).disconnect(timeout=GUARD)
            await until(lambda: ada.stats().links_open == bob.stats().links_open == 0)


async def test_without_epoll_a_link_that_gets_the_number_of_one_that_just_ended_is_heard(
    no_epoll, monkeypatch
):
    """The narrowest case: the driver had no chance to look in between. No timer may help it."""
    monkeypatch.setattr("peertalk.protocol.connections.SILENCE_TIME", 3600.0)
    disconnect, data = (
        no_epoll.encode_frame(values.DISCONNECT, b""),
        no_epoll.encode_frame(values.DATA, b"hello"),
    )
    async with pt.Node("ada", **loopback(core=no_epoll.name, link_timeout=3600)) as ada:
        with socket.create_connection(ada.address) as first:
            first.send(data)
            assert (await ada.receive(timeout=GUARD)).data == b"hello"
            number = next(iter(ada._transport.connections.by_tag.values())).socket.fileno()
            first.send(disconnect)
            with socket.create_connection(ada.address) as second:
                await until(lambda: ada.stats().links_opened == 2)
                assert (
                    next(iter(ada._transport.connections.by_tag.values())).socket.fileno() == number
                )
                for _ in range(5):
                    await asyncio.sleep(0)
                second.send(data)
                assert (await ada.receive(timeout=GUARD)).data == b"hello"


async def test_without_epoll_nodes_find_each_other_and_slow_each_other_down(no_epoll, free_port):
    """Discovery's socket and blocked writers are watched like everything else."""
    port = free_port()
    options = {
        "bind": "127.0.0.1",
        "port": 0,
        "discovery_port": port,
        "core": no_epoll.name,
        "receive_queue_bytes": 4096,
        "send_queue_size": 8,
    }
    async with pt.Node("ada", **options) as ada, pt.Node("bob", **options) as bob:
        peer = await ada.wait_for("bob", timeout=GUARD)
        sending = asyncio.create_task(
            peer.send_many([number.to_bytes(4, "big") * 250 for number in range(8000)])
        )
        await until(lambda: bob.stats().pauses)
        for number in range(8000):
            assert (await bob.receive(timeout=GUARD)).data[:4] == number.to_bytes(4, "big")
        await sending


async def test_a_deadline_that_is_set_between_two_turns_is_kept():
    """The driver sleeps until the deadline that it knows of; one that a call sets in the meantime
    may be nearer (aclose(timeout=0.1) is one)."""
    async with pt.Node("ada", **loopback(link_timeout=3600)) as ada:
        engine = ada._transport
        await asyncio.sleep(0.01)  # the driver has gone to sleep
        reached, cancelled = asyncio.Event(), asyncio.Event()
        timer = engine.after(0.01, cancelled.set)
        engine.after(0.02, reached.set)
        engine.cancel(timer)
        await asyncio.wait_for(reached.wait(), GUARD)
        assert not cancelled.is_set()


async def test_a_watched_socket_is_reported_until_it_is_not_watched_any_more():
    """Level-triggered: what was not read is told again."""
    async with pt.Node("ada", **loopback()) as ada:
        engine = ada._transport
        here, there = socket.socketpair()
        with here, there:
            told = 0

            def ready():
                nonlocal told
                told += 1

            watched = engine.watch(here, values.READ, ready)
            there.send(b"x")
            await until(lambda: told >= 3)
            engine.unwatch(watched)
            engine.unwatch(watched)
            so_far = told
            for _ in range(10):
                engine.schedule()
                await asyncio.sleep(0)
            assert told == so_far


async def test_orders_of_other_threads_are_done_in_their_order_on_the_engines_thread():
    """The one door into the engine for other threads."""
    async with pt.Node("ada", **loopback()) as ada:
        done = []

        def give():
            for number in range(100):
                ada._transport.post(
                    lambda number=number: done.append((number, threading.get_ident()))
                )

        await asyncio.to_thread(give)
        await until(lambda: len(done) == 100)
        assert done == [(number, threading.get_ident()) for number in range(100)]


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


async def test_an_engine_that_cannot_open_leaves_nothing_open(free_port):
    """A failed start must not hold the port that it got."""
    port, taken = free_port(), free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as alone:
        alone.bind(("", taken))
        with pytest.raises(pt.errors.AddressInUse, match="discovery_port"):
            await pt.Node("ada", bind="127.0.0.1", port=port, discovery_port=taken).start()
    with contextlib.closing(socket.create_server(("127.0.0.1", port))):
        pass


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


async def test_who_stands_still_ends_only_when_memory_is_scarce_and_its_time_is_over(core):
    """A peer that does not read keeps its connection until others need what it holds; then it is
    told apart from a broken one, and counted."""
    async with (
        pt.Node("ada", **loopback(core=core.name, link_timeout=15)) as ada,
        pt.Node("bob", **loopback(core=core.name)) as bob,
    ):
        await bob.connect(ada.address, timeout=GUARD)
        engine = ada._transport
        (connection,) = engine.connections.by_tag.values()
        await until(lambda: any(peer.connected for peer in ada.peers.values()))
        engine._serve((values.STILL, connection.tag, 14_999, 0))
        assert ada.stats().links_open == 1 and ada.stats().ended_still == 0
        engine._serve((values.STILL, connection.tag, 15_000, 0))
        await until(lambda: ada.stats().links_open == 0)
        assert ada.stats().ended_still == 1
        engine._serve((values.STILL, connection.tag, 16_000, 0))
        assert ada.stats().ended_still == 1


async def test_all_who_wait_for_memory_ask_again_together(core):
    """A thousand peers with a timer each kept a processor busy with asking."""
    async with (
        pt.Node("ada", **loopback(core=core.name)) as ada,
        pt.Node("bob", **loopback(core=core.name)) as bob,
    ):
        peer = await bob.connect(ada.address, timeout=GUARD)
        engine = bob._transport
        before = len(engine._timers)
        for _ in range(1000):
            engine.refused(peer, pt.errors.OutOfMemory.code)
        assert len(engine._timers) == before + 1
        await until(lambda: not engine._starved)
        await peer.send(b"and it goes on")
        assert (await ada.receive(timeout=GUARD)).data == b"and it goes on"


async def test_a_number_that_is_in_use_is_not_given_out_again():
    """After weeks they begin anew; a connection that has lived as long would get what another one
    brings."""
    async with pt.Node("ada", **loopback()) as ada, pt.Node("bob", **loopback()) as bob:
        peer = await ada.connect(bob.address)
        transport = ada._transport
        in_use = {*transport._timers, *transport._watched, *transport.connections.by_tag}
        transport._next_tag = transport_module._LAST_TAG - 2
        given = [transport.tag() for _ in range(1 << 10)]
        assert len(set(given)) == len(given) and not in_use & set(given)
        assert min(given) < max(in_use), "they have begun anew"
        await peer.disconnect()
        await peer.send(b"still")
        assert (await bob.receive(timeout=60)).data == b"still"
