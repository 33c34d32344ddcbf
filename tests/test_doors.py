"""Both front doors, and what they must have in common; each fault here was found by reading one of
them critically."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import socket
import threading
import weakref

import pytest
from kit.inside import engine_of, is_open
from kit.nodes import loopback, pair
from kit.waiting import GUARD, until

import peertalk as pt
from peertalk import sync


async def fill(peer):
    """Have all that the peer's node takes in, the system and the queue hold."""
    with contextlib.suppress(pt.WouldBlock):
        while True:
            peer.send_nowait(bytes(8000))


@contextlib.contextmanager
def awaited(**options):
    """A node under asyncio that knows bob, the peer, and how to have what a call gives."""

    def had(given):
        return runner.run(kept(given))

    async def kept(given):
        if hasattr(given, "__anext__"):
            return [item async for item in given]
        return await given if inspect.isawaitable(given) else given

    async def begin():
        bob = await pt.Node("bob", **loopback(**options)).start()
        node = await pt.Node("ada", **loopback()).start()
        return bob, node, await node.connect(bob.address, timeout=GUARD)

    with asyncio.Runner() as runner:
        bob, node, peer = runner.run(begin())
        had.end = bob.close_nowait
        yield node, peer, had
        node.close_nowait()
        bob.close_nowait()


@contextlib.contextmanager
def polled(**options):
    """Likewise without await, beside a thread that turns bob."""

    def had(given):
        return list(given) if inspect.isgenerator(given) else given

    def turn():
        while not over.is_set():
            bob.poll(0.01)

    def end():
        over.set()
        turning.join()
        bob.close_nowait()

    had.end, over, turning = end, threading.Event(), threading.Thread(target=turn)
    had.bob = bob = sync.Node("bob", **loopback(**options)).start()
    turning.start()
    try:
        node = sync.Node("ada", **loopback()).start()
        yield node, node.connect(bob.address, timeout=GUARD), had
        node.close_nowait()
    finally:
        end()


@pytest.fixture(params=[awaited, polled], ids=["await", "sync"])
def door(request):
    """One of the doors."""
    return request.param


def end_of(node):
    return getattr(node, "aclose", None) or node.close


async def entered(stream):
    async with stream:
        pass


def enter(stream):
    if isinstance(stream, pt.lowlevel.StreamOut):
        return entered(stream)
    with stream:
        return None


# What a node answers that is closed, and in a forked child


REFUSED = {
    "id": lambda node, peer: node.id,
    "address": lambda node, peer: node.address,
    "peers": lambda node, peer: node.peers,
    "flags": lambda node, peer: setattr(node, "flags", 1),
    "wait_for": lambda node, peer: node.wait_for("bob"),
    "connect": lambda node, peer: node.connect(("127.0.0.1", 1)),
    "connect to a name": lambda node, peer: node.connect("bob"),
    "connect to a peer": lambda node, peer: node.connect(peer),
    "broadcast": lambda node, peer: node.broadcast(b"x"),
    "receive": lambda node, peer: node.receive(),
    "send_datagram": lambda node, peer: node.send_datagram(peer, b"x"),
    "receive_datagram": lambda node, peer: node.receive_datagram(),
    "send": lambda node, peer: peer.send(b"x"),
    "send_nowait": lambda node, peer: peer.send_nowait(b"x"),
    "send_many": lambda node, peer: peer.send_many([b"x"]),
    "send_many of none": lambda node, peer: peer.send_many([]),
    "connect a peer": lambda node, peer: peer.connect(),
    "ping": lambda node, peer: peer.ping(),
    "reject": lambda node, peer: peer.reject(),
    "stream": lambda node, peer: enter(peer.stream_out(b"x")),
    "finished": lambda node, peer: peer.stream_out(b"x").finished(),
}
"""What begins something."""
ENDING = {
    "close": (lambda node, peer: end_of(node)(), 0),
    "close_nowait": (lambda node, peer: node.close_nowait(), 0),
    "disconnect": (lambda node, peer: peer.disconnect(), None),
    "cancel": (lambda node, peer: peer.stream_out(b"x").cancel(), None),
    "messages": (lambda node, peer: node.messages(), []),
    "messages of a peer": (lambda node, peer: peer.messages(), []),
    "batches": (lambda node, peer: node.batches(), []),
    "datagrams": (lambda node, peer: node.datagrams(), []),
    "events": (lambda node, peer: node.events(), []),
}
"""What ends something, or gives what had come."""
NODE_FIGURES = {
    "stats": lambda node, peer: node.stats().messages_accepted,
    "memory": lambda node, peer: len(node.memory),
}
KEPT = {
    "name": lambda node, peer: node.name,
    "flags": lambda node, peer: node.flags,
    **{
        f"peer.{name}": lambda node, peer, name=name: getattr(peer, name)
        for name in dir(pt.Peer)
        if isinstance(getattr(pt.Peer, name), property)
    },
    "peer.stats": lambda node, peer: peer.stats(),
}
"""What is known of node and peers, without the engine."""


def test_a_closed_node_refuses_what_begins_and_answers_what_ends(door):
    """Whoever cleans up need not ask what is closed already; nobody begins what cannot be."""
    with door() as (node, peer, had):
        had(peer.send(b"x"))
        had(end_of(node)())
        for name, use in REFUSED.items():
            with pytest.raises(pt.InvalidState, match=r"^node 'ada' is closed$"):
                pytest.fail(f"{name}: {had(use(node, peer))!r}")
        for name, (use, answer) in ENDING.items():
            assert had(use(node, peer)) == answer, name
        for name, use in (NODE_FIGURES | KEPT).items():
            assert had(use(node, peer)) is not pytest, name
        assert NODE_FIGURES["stats"](node, peer) == peer.stats().messages_accepted == 1
        with pytest.raises(pt.InvalidState, match="was started before; make a new one"):
            had(node.start())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="did not run: this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_reads_what_a_peer_was_and_is_refused_all_else(door):
    """What a peer tells is a copy of the parent's; whatever asks the engine would be wrong."""

    def refusal(use):
        try:
            given = use(node, peer)
            if inspect.iscoroutine(given):
                given.send(None)
            elif hasattr(given, "__anext__"):
                anext(given).send(None)
            elif inspect.isgenerator(given):
                next(given)
        except pt.InvalidState as error:
            return str(error)
        return "no refusal"

    with door() as (node, peer, _):
        known = {name: repr(use(node, peer)) for name, use in KEPT.items()}
        child = os.fork()
        if not child:
            wrong = 1
            try:
                uses = {
                    **REFUSED,
                    **NODE_FIGURES,
                    **{name: use for name, (use, _) in ENDING.items()},
                }
                lacking = [name for name, use in uses.items() if "forked" not in refusal(use)]
                changed = [
                    name for name, use in KEPT.items() if repr(use(node, peer)) != known[name]
                ]
                print(lacking, changed)
                wrong = bool(lacking or changed)
            finally:
                os._exit(wrong)
        assert os.waitpid(child, 0)[1] == 0


# The same calls, the same sentences


@pytest.mark.parametrize("kind", ["Node", "Peer", "StreamOut"])
def test_the_doors_take_the_same_arguments(kind):
    """A program that moves from one to the other changes `await`, and nothing else."""

    def shown(door):
        given = {}
        for name, call in inspect.getmembers(getattr(door, kind), inspect.isfunction):
            if not name.startswith("_"):
                parameters = inspect.signature(call).parameters.values()
                given[name] = [(each.name, each.default) for each in parameters]
        return given

    awaiting, plain = shown(pt if kind != "StreamOut" else pt.lowlevel), shown(sync)
    if kind == "Node":
        assert awaiting.pop("aclose") == plain.pop("close")
        plain.pop("poll")
    awaiting.pop("send", None), plain.pop("send", None)  # its options are a TypedDict there
    for name in ("messages", "batches", "datagrams", "events"):
        plain[name] = plain.get(name, [])[:1]  # without await an iterator has an end in time
    assert awaiting == {name: found for name, found in plain.items() if found}


def test_every_time_out_says_the_same_at_both_doors(door):
    """The sentence says what was lacking, and the time is the one that was given."""
    with door(receive_queue_bytes=1024) as (node, peer, had):
        with contextlib.suppress(pt.Timeout):  # until the system takes no more either
            while True:
                had(peer.send(bytes(8000), timeout=0.2))
        outgoing = peer.stream_out(b"x")
        for said, use in {
            "no room for a message to peer 'bob'": lambda: peer.send(bytes(8000), timeout=0.02),
            "no room for all messages to peer 'bob'": lambda: peer.send_many(
                [bytes(8000)] * 3, timeout=0.02
            ),
            "no message came": lambda: node.receive(timeout=0.02),
            "no datagram came": lambda: node.receive_datagram(timeout=0.02),
            "no peer 'eve' was heard": lambda: node.wait_for("eve", timeout=0.02),
        }.items():
            with pytest.raises(pt.Timeout, match=rf"^{said} within 0.02 s"):
                had(use())
        with pytest.raises(pt.InvalidState, match="was not started; enter its block"):
            had(outgoing.finished())
        result = had(node.broadcast(bytes(8000), timeout=0.02))
        (error,) = result.skipped.values()
        assert str(error) == "no room for a message to peer 'bob' within 0.02 s"
        assert isinstance(error, pt.Timeout) and error.peer == "bob" and not result.accepted


def test_a_send_to_who_cannot_be_reached_says_so_in_its_time(door):
    """It said that there was no room; without await it waited for the connection, and then as long
    again for room."""
    with door() as (_, peer, had):
        had.end()
        had(peer.disconnect())
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            deaf.bind(peer.address)
            deaf.listen()
            for send, data in ((peer.send, b"x"), (peer.send_many, [b"x"])):
                with pytest.raises(pt.Timeout, match=r"^no connection to peer 'bob' within 0.05 s"):
                    had(send(data, timeout=0.05))


# The end of a node


async def test_of_two_polite_ends_the_shorter_time_holds():
    """A supervisor that closes what hangs in its end must not hang with it."""
    async with (
        pt.Node("bob", **loopback(receive_queue_bytes=1024)) as bob,
        pt.Node("ada", **loopback()) as ada,
    ):
        await fill(await ada.connect(bob.address, timeout=GUARD))
        patient = asyncio.create_task(ada.aclose(timeout=None))
        await asyncio.sleep(0)
        async with asyncio.timeout(GUARD):
            assert await ada.aclose(timeout=0.05) == await patient > 0


@pytest.mark.filterwarnings("ignore:.*was not closed:ResourceWarning")
@pytest.mark.parametrize("kind", ["messages", "batches", "datagrams"])
async def test_who_waits_hears_that_a_node_was_dropped(kind):
    """A stream does not hold its node: its reader waited for ever."""
    node = await pt.Node("ada", **loopback()).start()
    waiting = asyncio.ensure_future(anext(getattr(node, kind)(), "ended"))
    await asyncio.sleep(0)
    del node
    assert await asyncio.wait_for(waiting, GUARD) == "ended"


async def test_a_wait_for_that_is_over_does_not_hold_its_node():
    """The loop holds the engine, and the engine held the node: dropped, it was never closed."""
    node = await pt.Node("ada", **loopback()).start()
    with pytest.raises(pt.Timeout):
        await node.wait_for("nobody", timeout=0.01)
    await asyncio.sleep(0)  # until here the loop's own step keeps what it was cancelled with
    gone = weakref.ref(node)
    with pytest.warns(ResourceWarning, match="'ada' was not closed"):
        del node
    assert gone() is None


def test_a_node_closes_though_tasks_of_its_closed_loop_wait():
    """Its error says that close_nowait() is left, which then raised "Event loop is closed"."""
    loop = asyncio.new_event_loop()
    node = loop.run_until_complete(pt.Node("ada", **loopback()).start())
    bob = loop.run_until_complete(pt.Node("bob", **loopback(receive_queue_bytes=1024)).start())
    peer = loop.run_until_complete(node.connect(bob.address, timeout=GUARD))
    loop.run_until_complete(fill(peer))
    waiting = [
        loop.create_task(each)
        for each in (
            node.receive(),
            node.receive_datagram(),
            node.wait_for("nobody"),
            peer.send(bytes(8000)),
            peer.disconnect(),
            peer.ping(timeout=None),
        )
    ]
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    assert node.close_nowait() > 0 and bob.close_nowait() == 0
    assert node.stats().links_open == bob.stats().links_open == 0
    for each in waiting:
        each._log_destroy_pending = False


def test_a_node_is_closed_by_atexit(fork_python):
    """There nobody called the caller of close_nowait(), which looked for one."""
    script = """
import asyncio, atexit, peertalk as pt
loop = asyncio.new_event_loop()
node = loop.run_until_complete(pt.Node("ada", bind="127.0.0.1", port=0, discovery=False).start())
atexit.register(lambda: print(node))
atexit.register(node.close_nowait)
"""
    process = fork_python("-c", script)
    out, err = process.communicate(timeout=GUARD)
    assert (out.strip(), err) == ("<Node 'ada' closed>", "")


# What a call waits for


async def test_a_time_out_of_the_programs_own_is_no_time_out_of_the_call():
    """A socket's is TimeoutError: an iterator that read one was told that there was no room."""

    def reads():
        yield b"one"
        raise TimeoutError("timed out")

    async with pair() as (_, _, peer):
        with pytest.raises(TimeoutError, match=r"^timed out$") as raised:
            await peer.send_many(reads(), timeout=GUARD)
        assert type(raised.value) is TimeoutError and raised.value.accepted == 1


@pytest.mark.parametrize(
    "take",
    [
        lambda node, peer: node.receive(timeout=GUARD),
        lambda node, peer: anext(node.messages()),
        lambda node, peer: anext(aiter(node.messages())),
        lambda node, peer: anext(peer.messages()),
        lambda node, peer: anext(node.batches()),
        lambda node, peer: peer.disconnect(),
    ],
)
def test_another_loop_of_the_thread_takes_nothing_though_something_waits(take, any_loop):
    """What waited was given to whoever asked, on whatever loop."""

    async def begin():
        bob = await pt.Node("bob", **loopback()).start()
        ada = await pt.Node("ada", **loopback()).start()
        await (await ada.connect(bob.address, timeout=GUARD)).send(b"waits")
        await until(lambda: bob.stats().messages_received)
        return ada, bob, bob.peers["ada"]

    async def elsewhere():
        with pytest.raises(pt.InvalidState, match="belongs to another asyncio loop"):
            await take(bob, peer)

    async def end():
        assert (await bob.receive(timeout=GUARD)).data == b"waits"
        await ada.aclose(timeout=GUARD)
        await bob.aclose(timeout=GUARD)

    ada, bob, peer = any_loop.run_until_complete(begin())
    asyncio.run(elsewhere())
    any_loop.run_until_complete(end())


# Without await


def test_a_polite_end_lets_other_threads_in():
    """close_nowait() on another thread waited until the polite end of the first was over."""
    with polled(receive_queue_bytes=1024) as (node, peer, _):
        with contextlib.suppress(pt.WouldBlock):
            while True:
                peer.send_nowait(bytes(8000))
        closing = threading.Thread(target=node.close, args=(None,))
        closing.start()
        while is_open(node):
            pass
        assert list(node.messages()) == []
        assert node.close_nowait() > 0
        closing.join(GUARD)
        assert not closing.is_alive()


def test_an_iterator_that_is_collected_in_the_middle_of_a_call_ends_after_that():
    """The collector may begin in any call; it waited for ever for the lock that this call had."""
    with polled() as (node, peer, had):
        back = had.bob.wait_for("ada", timeout=GUARD)
        back.send_nowait(b"one")
        reading = peer.messages(timeout=GUARD)
        assert next(reading).data == b"one"
        with node._turning:
            del reading
        back.send_nowait(b"two")
        assert node.receive(timeout=GUARD).data == b"two"


def test_a_wrong_argument_of_an_iterator_is_refused_at_once():
    """It was refused by the first next(), far from the call."""
    with polled() as (node, peer, _):
        for call in (peer.messages, node.messages, node.batches, node.datagrams, node.events):
            with pytest.raises(pt.InvalidArgument, match="no duration"):
                call(timeout="soon")
        assert node._events is None


@pytest.mark.filterwarnings("ignore:.*was not closed:ResourceWarning")
def test_a_node_that_is_dropped_while_a_peer_of_it_is_in_use_is_closed_after_that():
    """Its finalizer closed the engine in the middle of a turn of another thread."""
    with polled() as (node, _, _):
        mine = sync.Node("eve", **loopback(workers=0)).start()
        peer, transport = mine.connect(node.address, timeout=GUARD), engine_of(mine)
        with peer._turning:
            del mine
            gc.collect()
            assert not transport.closed
        with pytest.raises(pt.PeerTalkError, match="closed"):
            while True:  # the turn of the first may answer it before it closes the node
                peer.ping(timeout=GUARD)
        assert transport.closed
