"""Nodes whose connections are moved by threads of their own: Node(workers=N)."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import socket
import threading

import pytest
from classic import DATA, DISCONNECT, PING, PONG
from kit.inside import buffers_in_use, engine_of
from kit.nodes import loopback, numbered, pair, received
from kit.stranger import capability, frame
from kit.waiting import GUARD, until

import peertalk as pt
from peertalk import sync

pytestmark = pytest.mark.threads


async def talk(node, peer, count, rest):
    """Send so many numbered messages of any size, some in lots, resting now and then."""
    number = 0
    while number < count:
        lot = [numbered(each, rest.choice([4, 60, 900])) for each in range(number, number + 7)]
        if rest.random() < 0.2:
            await peer.send_many(lot)
            number += 7
        else:
            await peer.send(lot[0])
            number += 1
        if rest.random() < 0.05:
            await asyncio.sleep(0)
    return number


@pytest.mark.parametrize("workers", [1, 2, 4])
async def test_all_that_all_send_to_all_comes_once_and_in_order(c_core, workers):
    """Six nodes, with and without workers, and connections that end politely between."""
    names = "abcdef"
    async with contextlib.AsyncExitStack() as stack:
        nodes = {}
        for place, name in enumerate(names):
            options = loopback(core=c_core.name, workers=workers if place % 3 else 0)
            nodes[name] = await stack.enter_async_context(pt.Node(name, **options))
        came = {name: {} for name in names}
        sent = {}

        async def listen(name):
            async for message in nodes[name].messages():
                came[name].setdefault(message.peer.name, []).append(
                    int.from_bytes(message.data[:4], "big")
                )

        async def speak(name, other, rest):
            peer = await nodes[name].connect(nodes[other].address, timeout=GUARD)
            sent[name, other] = await talk(nodes[name], peer, 150, rest)
            if rest.random() < 0.3:
                await peer.disconnect(timeout=GUARD)

        listening = [asyncio.create_task(listen(name)) for name in names]
        pairs = [(name, other) for name in names for other in names if name < other]
        async with asyncio.timeout(2 * GUARD):
            await asyncio.gather(*(speak(*each, random.Random(f"{each}")) for each in pairs))
            await until(
                lambda: all(
                    len(came[other].get(name, ())) == count for (name, other), count in sent.items()
                )
            )
        for (name, other), count in sent.items():
            assert came[other][name] == list(range(count))
        for each in listening:
            each.cancel()


@pytest.mark.parametrize("size", [300_000, 5_000_000])
async def test_large_messages_go_both_ways(c_core, size):
    """Those that are not offered, and those that are granted."""
    if c_core.name == "lowmem":
        pytest.skip("did not run: lowmem takes no large messages")
    async with pair(core=c_core.name, workers=1) as (ada, bob, peer):
        there, back = os.urandom(size), os.urandom(size)
        await until(lambda: bob.peers and next(iter(bob.peers.values())).max_message >= size)
        (other,) = bob.peers.values()
        await asyncio.gather(peer.send(there), other.send(back), peer.send(b"small"))
        # a small one may overtake: it waits for no grant
        assert set(await received(bob, 2)) == {there, b"small"}
        assert (await received(ada, 1)) == [back]


async def test_a_program_that_does_not_take_slows_its_senders_and_loses_nothing(c_core):
    options = {"core": c_core.name, "workers": 1, "receive_queue_bytes": 65_536}
    async with pair(**options) as (_, bob, peer):
        sending = asyncio.create_task(talk(None, peer, 5000, random.Random(1)))
        await until(lambda: bob.stats().pauses)
        count = 0
        while not sending.done() or count < sending.result():
            data = (await bob.receive(timeout=GUARD)).data
            assert int.from_bytes(data[:4], "big") == count
            count += 1


async def test_what_comes_is_kept_though_links_in_bulk_have_all_memory(c_core):
    """An honest peer was sent away with its first message: the class of buffers was lent out."""
    async with pt.Node("ada", **loopback(core=c_core.name, workers=1)) as ada:
        pool = engine_of(ada).loop.pool
        lent = []
        with pytest.raises(pt.errors.OutOfMemory):
            while True:
                lent.append(pool.acquire(c_core.limits.slot_size))
        with socket.create_connection(ada.address) as there:
            there.sendall(capability() + frame(DATA, b"here"))
            assert (await ada.receive(timeout=GUARD)).data == b"here"
            there.sendall(frame(DATA, bytes(1000)) * 300)  # nobody takes meanwhile
            assert await received(ada, 300) == [bytes(1000)] * 300
        for buffer in lent:
            buffer.release()


# While the program computes


class Pinging(threading.Thread):
    """A stranger that says who it is, pings, and sets heard when it has its answers."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.heard = threading.Event()
        self.socket = socket.create_connection(address, timeout=GUARD)
        self.socket.sendall(capability() + frame(DATA, b"here"))
        self.begin = threading.Event()

    def run(self):
        self.begin.wait(GUARD)
        answers = 0
        for _ in range(5):
            self.socket.sendall(frame(PING))
            rest = b""
            while PONG not in (each[5] for each in split(rest)):
                rest += self.socket.recv(4096)
            answers += 1
        self.heard.set()
        self.socket.close()


def split(stream):
    """The whole frames of a stream."""
    frames = []
    while len(stream) >= 10:
        size = 12 + int.from_bytes(stream[8:10], "big")
        if len(stream) < size:
            break
        frames.append(stream[:size])
        stream = stream[size:]
    return frames


async def test_a_coroutine_that_computes_delays_no_ping(c_core):
    """The loop is blocked until the stranger has been answered five times."""
    async with pt.Node("ada", **loopback(core=c_core.name, workers=1)) as ada:
        stranger = Pinging(ada.address)
        stranger.start()
        assert (await ada.receive(timeout=GUARD)).data == b"here"
        stranger.begin.set()
        assert stranger.heard.wait(GUARD)


HOLDING = """
import socket, sys
from classic import DATA, PING, encode_frame
from kit.stranger import capability, frame
there = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20)
there.sendall(capability() + frame(DATA, b"here"))
sys.stdin.readline()
for number in range(5):
    there.sendall(frame(PING))
    heard = b""
    while not heard.endswith(frame(3)):
        more = there.recv(4096)
        assert more
        heard += more
there.sendall(frame(DATA, b"there"))
print("answered", flush=True)
sys.stdin.readline()
"""


@pytest.mark.source
async def test_who_keeps_the_interpreter_keeps_nobody_waiting(start_python):
    """A call of C that does not give it up: it reads what the stranger writes when it has its
    answers, and until then no thread of Python runs here."""
    tests = os.path.dirname(__file__)
    async with pt.Node("ada", **loopback(workers=1)) as ada:
        stranger = start_python("-c", HOLDING, str(ada.address[1]), cwd=tests)
        assert (await ada.receive(timeout=GUARD)).data == b"here"
        stranger.stdin.write("ping\n")
        stranger.stdin.flush()
        room = ctypes.create_string_buffer(8)
        ctypes.PyDLL(None).read(stranger.stdout.fileno(), room, 8)
        assert room.raw == b"answered", stranger.communicate(timeout=GUARD)
        assert (await ada.receive(timeout=GUARD)).data == b"there"
        stranger.stdin.write("end\n")
        stranger.stdin.flush()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("many", [False, True])
async def test_a_task_that_does_nothing_but_send_can_be_cancelled(c_core, workers, many):
    """Its cancellation came when a message had been accepted, was put off, and so again for ever:
    Ctrl-C did not end such a program."""
    async with pair(core=c_core.name, workers=workers) as (_, bob, peer):
        sent = 0

        async def send():
            nonlocal sent
            while True:
                if many:
                    sent += await peer.send_many([bytes(4)] * 50)
                else:
                    await peer.send(bytes(4))
                    sent += 1

        async def hear():
            async for _ in bob.messages():
                pass

        hearing = asyncio.create_task(hear())
        for _ in range(20):
            sending = asyncio.create_task(send())
            before = peer.accepted
            await until(lambda before=before: peer.accepted > before + 100)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                async with asyncio.timeout(GUARD):
                    await sending
            assert sending.cancelled()
            assert many or sent == peer.accepted
        await peer.send(b"on")
        hearing.cancel()


# Connections that move


def loads(node):
    """How many connections each worker has: no user is told."""
    return [worker.links for worker in engine_of(node).workers._workers]


async def test_connections_are_shared_out_when_asked_and_only_then(c_core):
    async with pt.Node("ada", **loopback(core=c_core.name, workers=2)) as ada:
        assert ada.rebalance() == 0
        peers = []
        async with contextlib.AsyncExitStack() as stack:
            for name in "bcdefg":
                options = loopback(core=c_core.name)
                other = await stack.enter_async_context(pt.Node(name, **options))
                peers.append(await other.connect(ada.address, timeout=GUARD))
            assert loads(ada) == [3, 3] and ada.rebalance() == 0
            for peer in peers[1::2]:
                await peer.disconnect(timeout=GUARD)
            await until(lambda: sum(loads(ada)) == 3)
            assert sorted(loads(ada)) == [0, 3]
            assert ada.rebalance() == 1 and sorted(loads(ada)) == [1, 2]
            for peer in peers[::2]:
                await peer.send(b"as ever")
            assert await received(ada, 3) == [b"as ever"] * 3
    with pytest.raises(pt.InvalidState):
        ada.rebalance()


def test_the_door_without_await_moves_them_too(c_core):
    """And where there is one worker, or none, there is nothing to move."""
    with pytest.raises(pt.InvalidState):
        sync.Node("ada").rebalance()
    with sync.Node("ada", **loopback(core=c_core.name, workers=0)) as ada:
        assert ada.rebalance() == 0
    for workers in (1, 2):
        with contextlib.ExitStack() as stack:
            enter = stack.enter_context
            ada = enter(sync.Node("ada", **loopback(core=c_core.name, workers=workers)))
            others = [
                enter(sync.Node(name, **loopback(core=c_core.name, workers=1))) for name in "bcde"
            ]
            peers = [each.connect(ada.address, timeout=GUARD) for each in others]
            for peer in peers[1::2]:
                peer.disconnect(timeout=GUARD)
            while ada.stats().links_open > 2:
                ada.poll(0.1)
            assert ada.rebalance() == (workers == 2)
            for peer in peers[::2]:
                peer.send(b"as ever")
            assert [ada.receive(timeout=GUARD).data for _ in range(2)] == [b"as ever"] * 2


# Their end, and what they cannot be


async def test_a_node_that_ends_in_whatever_way_leaves_no_thread_and_no_memory(c_core):
    before = threading.active_count()
    for end in range(6):
        ada = await pt.Node("ada", **loopback(core=c_core.name, workers=2)).start()
        bob = await pt.Node("bob", **loopback(core=c_core.name, workers=1)).start()
        peer = await ada.connect(bob.address, timeout=GUARD)
        for number in range(200):
            peer.send_nowait(numbered(number, 200))
        assert threading.active_count() == before + 3
        if end % 2:
            await ada.aclose()
            bob.close_nowait()
        else:
            ada.close_nowait()
            await bob.aclose()
        assert buffers_in_use(ada) == buffers_in_use(bob) == 0
    assert threading.active_count() == before


async def test_what_the_node_tells_of_itself_includes_its_workers(c_core):
    async with pair(core=c_core.name, workers=1) as (ada, bob, peer):
        await peer.send(b"x")
        await received(bob, 1)
        parts = ada.memory
        assert (
            parts["links"].bytes and parts["total"].bytes >= 2 * parts["receive buffer"].bytes / 2
        )
        with socket.create_connection(ada.address) as liar:
            liar.sendall(b"no frame begins so")
            await until(lambda: (ada.stats().bad_frames, ada.stats().links_open) == (1, 1))


async def test_a_blocking_send_and_a_worker_exclude_each_other():
    with pytest.raises(pt.InvalidArgument, match="async_send"):
        await pt.Node("ada", **loopback(workers=1, async_send=False)).start()
    with pytest.raises(pt.InvalidArgument, match="workers"):
        pt.Node("ada", workers=17)


async def test_the_core_without_a_compiler_says_that_it_has_none(reference_core):
    with pytest.raises(pt.errors.NotSupported, match="workers=0"):
        await pt.Node("ada", **loopback(core="reference", workers=1)).start()


async def test_a_forked_child_leaves_the_workers_to_its_parent(c_core):
    async with pair(core=c_core.name, workers=1) as (_, bob, peer):
        child = os.fork()
        if not child:
            status = 1
            with contextlib.suppress(BaseException):
                try:
                    peer.send_nowait(b"x")
                except pt.InvalidState:
                    status = 0
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        await peer.send(b"still here")
        assert await received(bob, 1) == [b"still here"]


def test_who_leaves_politely_is_heard_to_the_end(c_core):
    """What stands before the farewell is delivered, though both come in one read."""

    async def scene():
        async with pt.Node("ada", **loopback(core=c_core.name, workers=1)) as ada:
            with socket.create_connection(ada.address) as there:
                there.sendall(capability() + frame(DATA, b"last") + frame(DISCONNECT))
                assert (await ada.receive(timeout=GUARD)).data == b"last"

    asyncio.run(scene())
