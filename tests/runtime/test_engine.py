"""The engine: deadlines that are kept whoever sets them, orders from other threads, and the driver
that has no epoll. What a signal handler may do to its turns is tests/test_turns.py's."""

from __future__ import annotations

import ast
import asyncio
import functools
import re
import socket
import threading
import time
from pathlib import Path

import pytest
from kit.inside import connections_of, engine_of
from kit.nodes import loopback, pair, received
from kit.waiting import GUARD, until

import peertalk as pt
from peertalk._core import values
from peertalk.runtime import engine as engine_module


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
        assert engine_of(ada).loop.fd == -1
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
            number = connections_of(ada)[0].socket.fileno()
            first.send(disconnect)
            with socket.create_connection(ada.address) as second:
                await until(lambda: ada.stats().links_opened == 2)
                assert connections_of(ada)[0].socket.fileno() == number
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
        turning = engine_of(ada)
        await asyncio.sleep(0.01)  # the driver has gone to sleep
        reached, cancelled = asyncio.Event(), asyncio.Event()
        timer = turning.after(0.01, cancelled.set)
        turning.after(0.02, reached.set)
        turning.cancel(timer)
        await asyncio.wait_for(reached.wait(), GUARD)
        assert not cancelled.is_set()


async def test_a_watched_socket_is_reported_until_it_is_not_watched_any_more():
    """Level-triggered: what was not read is told again."""
    async with pt.Node("ada", **loopback()) as ada:
        turning = engine_of(ada)
        here, there = socket.socketpair()
        with here, there:
            told = 0

            def ready():
                nonlocal told
                told += 1

            watched = turning.watch(here, values.READ, ready)
            there.send(b"x")
            await until(lambda: told >= 3)
            turning.unwatch(watched)
            turning.unwatch(watched)
            so_far = told
            for _ in range(10):
                turning.schedule()
                await asyncio.sleep(0)
            assert told == so_far


async def test_orders_of_other_threads_are_done_in_their_order_on_the_engines_thread():
    """The one door into the engine for other threads."""
    async with pt.Node("ada", **loopback()) as ada:
        done = []

        def give():
            for number in range(100):
                engine_of(ada).post(
                    lambda number=number: done.append((number, threading.get_ident()))
                )

        await asyncio.to_thread(give)
        await until(lambda: len(done) == 100)
        assert done == [(number, threading.get_ident()) for number in range(100)]


async def test_a_number_that_is_in_use_is_not_given_out_again():
    """After weeks they begin anew; a connection that has lived as long would get what another one
    brings."""
    async with pt.Node("ada", **loopback()) as ada, pt.Node("bob", **loopback()) as bob:
        peer = await ada.connect(bob.address)
        transport = engine_of(ada)
        in_use = {*transport._timers, *transport._watched, *transport.connections.by_tag}
        transport._next_tag = engine_module._LAST_TAG - 2
        given = [transport.tag() for _ in range(1 << 10)]
        assert len(set(given)) == len(given) and not in_use & set(given)
        assert min(given) < max(in_use), "they have begun anew"
        await peer.disconnect()
        await peer.send(b"still")
        assert (await bob.receive(timeout=60)).data == b"still"


async def test_what_has_left_is_told_at_once_only_where_somebody_listens():
    """A turn for each message costs a round trip as much again; who listens must not wait."""
    async with pair() as (ada, bob, to_bob):
        engine = engine_of(ada)
        await until(lambda: not (ada._worker._scheduled or engine.owes))
        assert engine.loop.tells_late
        await to_bob.send(b"to nobody in particular")
        assert engine.owes and not ada._worker._scheduled
        await until(lambda: to_bob.stats().messages_sent == 1)
        events = ada.events()
        assert not engine.loop.tells_late
        await to_bob.send(b"heard of")
        assert ada._worker._scheduled
        async with asyncio.timeout(GUARD):
            while not isinstance(event := await anext(events), pt.Sent):
                pass
        assert event.last == 2
        await events.aclose()
        assert engine.loop.tells_late
        async with to_bob.stream_out(bytes(100)) as out:
            assert not engine.loop.tells_late
            await out.finished(timeout=GUARD)
        assert engine.loop.tells_late
        assert len(await received(bob, 3)) == 3


@pytest.mark.parametrize("leaves", ["aclose", "close_nowait", "disconnect"])
async def test_what_has_left_and_was_not_told_is_sent_when_its_connection_ends(leaves):
    """Whoever ends it: to call it lost would have the program send it again."""
    async with pair() as (ada, bob, to_bob):
        await until(lambda: not (ada._worker._scheduled or engine_of(ada).owes))
        await to_bob.send(b"the last one")
        assert engine_of(ada).owes and to_bob.stats().messages_sent == 0
        if leaves == "disconnect":
            await to_bob.disconnect(timeout=GUARD)
        else:
            world, link = engine_of(ada).world, connections_of(ada)[0]
            give_up = time.monotonic() + GUARD
            while world.unacknowledged(link.socket):  # in one tick, so that no turn tells
                assert time.monotonic() < give_up
            unsent = getattr(ada, leaves)()
            assert (await unsent if leaves == "aclose" else unsent) == 0
        assert ada.stats().messages_sent == 1 and ada.stats().messages_failed == 0
        assert await received(bob, 1) == [b"the last one"]


def test_the_interface_that_is_stated_is_the_one_that_is_there():
    """Whoever builds on the engine, or a stand-in for it, must find all that it offers in one
    place."""
    source = ast.parse(Path(engine_module.__file__).read_text())
    (parsed,) = (each for each in source.body if getattr(each, "name", "") == "Engine")
    names = {node.name for node in parsed.body if isinstance(node, ast.FunctionDef)}
    names |= {
        node.attr
        for node in ast.walk(parsed)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and getattr(node.value, "id", "") == "self"
    }
    public = {name for name in names if not name.startswith("_")}
    stated = set(re.findall(r"[a-z_]+", engine_module.__doc__))
    assert not public - stated
    listed = re.findall(r"(?m)^    ((?:[a-z_]+, )*[a-z_]+)", engine_module.__doc__)
    assert not set(", ".join(listed).split(", ")) - public
