"""A node belongs to one process and one thread at a time: what strikes from elsewhere, a signal
handler in the middle of something, a forked child, another thread, gets an answer at once and tears
nothing. tests/test_node.py has the loops and threads of each method, tests/test_faults.py the
forked children of an asyncio node."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path

import pytest
from kit.inside import engine_of, is_closed, receivers_of
from kit.nodes import loopback, pair
from kit.striking import Striking
from kit.waiting import GUARD

import peertalk as pt
from peertalk import sync
from peertalk.incoming import Messages
from peertalk.runtime import forks, transport

# A signal handler


def test_a_strike_within_a_finalizer_ends_nothing_else():
    """The step after that was a call of whatever lay where the tracer had been."""

    class Garbage:
        def __init__(self):
            self.itself = self

        def __del__(self):
            pass

    def called():
        pass

    kept, where = [], []

    def struck():
        kept.append(strike.end)
        where.append(sys._getframe(2).f_code.co_name)

    threshold = gc.get_threshold()
    gc.collect()
    gc.disable()
    try:
        for nth in range(1, 30):
            Garbage()
            gc.set_threshold(1)
            strike = Striking(nth, struck, (__name__,))
            strike.begin()
            gc.enable()
            called()
            called()
            strike.end()
            gc.disable()
    finally:
        gc.set_threshold(*threshold)
        gc.enable()
    # later ones collect between two steps alone
    assert "__del__" in where or sys.version_info >= (3, 12)


async def a_node_at_work(strike):
    """Whatever a node does between its first message and its end, struck once. Each message that
    was accepted has one outcome, nobody waits for ever, nothing is logged by the loop."""
    troubles = []

    def note(_, context):
        # asyncio's own: struck between its look at a handle and its call of it, which is then a
        # call of nothing
        if "handle" not in context or not context["handle"].cancelled():
            troubles.append(context)

    asyncio.get_running_loop().set_exception_handler(note)
    async with pt.Node("bob", **loopback()) as bob, pt.Node("ada", **loopback()) as ada:
        peer = await ada.connect(bob.address, timeout=GUARD)
        events = ada.events()
        strike.call = ada.close_nowait

        async def talk():
            for size in (1, 8000, 40, 8000, 5):
                await peer.send(bytes(size), no_delay=size == 40)
                await asyncio.sleep(0)
            await peer.ping(timeout=GUARD)
            await peer.send_many([b"many"] * 20)
            async with peer.stream_out(bytes(20_000)) as out:
                await out.finished(timeout=GUARD)
            await ada.aclose(timeout=GUARD)

        async def hear(node):
            async for message in node.messages():
                if node is bob:
                    await message.peer.send(b"back")

        async def until_closed(coroutine):
            with contextlib.suppress(pt.PeerTalkError):
                await coroutine

        tasks = [asyncio.create_task(until_closed(each)) for each in (hear(ada), talk())]
        hearing = asyncio.create_task(until_closed(hear(bob)))
        strike.begin()
        try:
            await asyncio.wait(tasks, timeout=GUARD, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            strike.end()
        hearing.cancel()
        await asyncio.wait([hearing], timeout=GUARD)
        # asyncio.timeout would wait for a task that has lost its wake-up
        assert all(each.done() for each in (*tasks, hearing)), troubles
        await asyncio.gather(*tasks)
        outcomes = {}
        async for event in events:
            if isinstance(event, pt.Sent | pt.Failed):
                for number in range(event.first, event.last + 1):
                    outcomes.setdefault(number, []).append(event)
        assert sorted(outcomes) == list(range(1, peer.accepted + 1))
        assert is_closed(ada) and not troubles, troubles
        stats = ada.stats()
        assert stats.messages_accepted == stats.messages_sent + stats.messages_failed


@pytest.mark.unsanitized("a tracer at each step of the interpreter is slow as it is")
async def test_a_node_may_be_closed_by_a_signal_at_any_step(rounds):
    """A handler runs between any two steps of whatever it interrupts: a turn, a send, a polite end,
    the loop itself. Called there, close_nowait must not find the node half way."""
    whole = Striking(1 << 60, None)
    await a_node_at_work(whole)
    struck = 0
    many = rounds(40, 3_000)
    for turn in range(many):
        strike = Striking(1 + turn * whole.steps // many, None)
        await a_node_at_work(strike)
        struck += strike.struck
    assert struck > many // 2, (struck, many)


async def test_a_node_that_is_closed_by_a_signal_wakes_who_waits():
    """A handler does not end the wait that it interrupts: the loop would sleep on."""
    async with pt.Node("ada", **loopback()) as ada:
        before = signal.signal(signal.SIGUSR1, lambda *_: ada.close_nowait())
        try:
            woken_late = asyncio.get_running_loop().time() + GUARD
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with pytest.raises(pt.InvalidState, match="closed"):
                await ada.receive(timeout=GUARD)  # the end of the time would wake it too
            assert asyncio.get_running_loop().time() < woken_late
        finally:
            signal.signal(signal.SIGUSR1, before)


async def test_a_function_that_the_node_calls_may_close_it():
    """It is in the middle of something then, as with a signal."""
    async with pt.Node("bob", **loopback()) as bob, pt.Node("ada", **loopback()) as ada:
        peer = await ada.connect(bob.address, timeout=GUARD)
        said = []
        with pytest.raises(pt.PeerTalkError):
            async with peer.stream_out(
                bytes(60_000), lambda *_: said.append(ada.close_nowait())
            ) as out:
                await out.finished(timeout=GUARD)
        assert said[0] == 0 and is_closed(ada)


@pytest.mark.parametrize("kind", ["messages", "events", "datagrams", "messages of one"])
async def test_a_stream_is_ended_by_its_own_loop_alone(kind):
    """Ended on another thread, whoever waited was woken when something else stirred the loop."""
    async with pt.Node("bob", **loopback()) as bob, pt.Node("ada", **loopback()) as ada:
        peer = await ada.connect(bob.address, timeout=GUARD)
        stream = peer.messages() if " " in kind else getattr(ada, kind)()

        async def enter():
            async with stream:
                pass

        def strangers():
            for each in (stream.aclose, enter):
                with pytest.raises(pt.InvalidState, match="belongs to another asyncio loop"):
                    asyncio.run(each())

        waiting = asyncio.ensure_future(anext(stream, None))
        while kind == "events" and not waiting.done():  # what is true now comes first
            await asyncio.sleep(0)
        await asyncio.to_thread(strangers)
        if kind != "events":
            assert not waiting.done()
        await stream.aclose()
        await asyncio.wait_for(waiting, GUARD)
    await stream.aclose()


async def test_a_log_that_raises_leaves_nobody_waiting():
    """Its disk may be full. The line about what was not sent came before who waits was told."""

    class Full(logging.Handler):
        def emit(self, record):
            raise OSError(28, "No space left on device")

    log, full = logging.getLogger("peertalk"), Full()
    async with pt.Node("bob", **loopback(), receive_queue_bytes=1024) as bob:
        ada = await pt.Node("ada", **loopback()).start()
        peer = await ada.connect(bob.address, timeout=GUARD)
        with contextlib.suppress(pt.WouldBlock):
            while True:
                peer.send_nowait(bytes(8000))
        waiting = [asyncio.create_task(each) for each in (ada.receive(), ada.wait_for("nobody"))]
        await asyncio.sleep(0)
        log.addHandler(full)
        try:
            with pytest.raises(OSError, match="No space left"):
                await ada.aclose(timeout=0.1)
        finally:
            log.removeHandler(full)
        async with asyncio.timeout(GUARD):
            told = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(each, pt.InvalidState) for each in told), told


# A signal handler that raises


class Interrupt(BaseException):
    """What a handler raised."""


@pytest.mark.unsanitized("a tracer at each step of the interpreter is slow as it is")
# what strikes in a finalizer Python prints and passes over
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", [RuntimeError, Interrupt, KeyboardInterrupt])
def test_a_node_ends_after_a_signal_has_raised_at_any_step_of_it(kind, rounds, caplog):
    """Whatever it tore, leaving the program ends, and so does aclose, in its time."""

    async def talk(strike, nodes):
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        async with pt.Node("bob", **loopback()) as bob, pt.Node("ada", **loopback()) as ada:
            nodes += [ada, bob]
            peer = await ada.connect(bob.address, timeout=GUARD)
            hearing = [asyncio.create_task(hear(node)) for node in nodes]
            strike.begin()
            try:
                async with asyncio.timeout(0.5):
                    for size in (1, 8000, 40, 8000, 5):
                        await peer.send(bytes(size), no_delay=size == 40)
                        await asyncio.sleep(0)
                    await peer.ping(timeout=0.5)
                    await peer.send_many([b"many"] * 20)
            finally:
                sys.settrace(None)
                for node in nodes:
                    await node.aclose(timeout=0.5)
                for each in hearing:
                    each.cancel()

    async def hear(node):
        async for message in node.messages():
            if node.name == "bob":
                await message.peer.send(b"back")

    def raises():
        raise kind("in a signal handler")

    def play(nth):
        strike, nodes = Striking(nth, raises, ("peertalk",)), []
        try:
            with asyncio.Runner() as runner:
                runner.run(talk(strike, nodes))
        except (kind, TimeoutError, pt.PeerTalkError):
            pass  # a connection that it tore is one that ended
        finally:
            sys.settrace(None)
        assert all(is_closed(node) for node in nodes)
        return strike.steps

    caplog.set_level("CRITICAL")
    with warnings.catch_warnings():
        # a coroutine that was made when it struck is never awaited
        warnings.simplefilter("ignore", RuntimeWarning)
        steps = play(1 << 60)
        many = rounds(25, 3_000)
        for turn in range(many):
            play(1 + turn * steps // many)
        gc.collect()


async def test_a_task_that_a_message_has_woken_closes_its_node_at_once():
    """It goes on in the callback of a turn, but behind that turn: nothing is torn."""
    async with pair() as (_, bob, to_bob):

        async def closing():
            await anext(bob.messages())
            bob.close_nowait()
            return is_closed(bob)

        task = asyncio.ensure_future(closing())
        while not receivers_of(bob):
            await asyncio.sleep(0)
        await to_bob.send(b"x")
        async with asyncio.timeout(GUARD):
            assert await task


def test_in_debug_mode_the_log_names_the_task_that_blocks_the_loop(caplog):
    """It named the turn that had let the task go on."""

    async def blocking(node):
        await node.receive(timeout=GUARD)
        time.sleep(0.02)

    async def main():
        asyncio.get_running_loop().slow_callback_duration = 0.02
        async with pair() as (_, bob, peer):
            task = asyncio.ensure_future(blocking(bob))
            while not receivers_of(bob):
                await asyncio.sleep(0)
            await peer.send(b"x")
            await task

    asyncio.run(main(), debug=True)
    assert any("blocking(" in line and "took" in line for line in caplog.messages)


def test_a_stream_that_was_cut_off_while_it_was_made_goes_in_silence():
    """Its finalizer asked for what the stream had not been given yet."""
    Messages.__new__(Messages).__del__()


async def test_a_node_ends_though_its_loop_has_dropped_its_turn():
    """An exception between two callbacks of asyncio's loop takes the second one along."""
    loop = asyncio.get_running_loop()
    if not hasattr(loop, "_ready"):
        pytest.skip("did not run: the callbacks of this loop cannot be dropped from outside")
    async with pt.Node("bob", **loopback(receive_queue_bytes=1024)) as bob:
        ada = await pt.Node("ada", **loopback()).start()
        peer = await ada.connect(bob.address, timeout=GUARD)
        with contextlib.suppress(pt.WouldBlock):
            while True:
                peer.send_nowait(bytes(8000))
        loop._ready.clear()
        async with asyncio.timeout(GUARD):
            await ada.aclose(timeout=0.1)
        assert is_closed(ada)


SPEAKING = """
import asyncio, sys
import peertalk as pt

async def main():
    async with pt.Node("ada", bind="127.0.0.1", port=0, discovery=False) as ada:
        peer = await ada.connect(("127.0.0.1", int(sys.argv[1])), timeout=20)
        asyncio.create_task(hear(ada))
        print("speaks", flush=True)
        while True:
            await peer.send(bytes(500))
            await asyncio.sleep(0)

async def hear(ada):
    async for message in ada.messages():
        pass

asyncio.run(main())
"""


async def take_all(node, data):
    """Take whatever comes, each with this in it. A full inbox slows the sender, and what is behind
    it is not heard: its end neither."""
    async for message in node.messages():
        assert message.data == data


async def test_ctrl_c_ends_a_program_politely_whenever_it_comes(rounds, fork_python):
    """asyncio.run cancels the main task; the node is closed as its block is left: the other side
    hears a goodbye and the last message, and nothing else is printed."""
    chance = random.Random(5)
    async with pt.Node("bob", **loopback()) as bob:
        for _ in range(rounds(2, 100)):
            events = bob.events()
            process = fork_python("-W", "always", "-c", SPEAKING, str(bob.address[1]))
            said = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), GUARD)
            assert said == "speaks\n"
            for _ in range(chance.randrange(200)):
                await bob.receive(timeout=GUARD)
            process.send_signal(signal.SIGINT)
            taking = asyncio.create_task(take_all(bob, bytes(500)))
            async with asyncio.timeout(GUARD):
                async for event in events:
                    if isinstance(event, pt.PeerDisconnected):
                        break
            assert event.error is None
            _, err = await asyncio.to_thread(process.communicate, timeout=GUARD)
            assert process.returncode == -signal.SIGINT
            assert err.rstrip().endswith("KeyboardInterrupt") and "never awaited" not in err, err
            await events.aclose()
            taking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await taking


# Another thread


async def test_a_fork_while_a_node_is_being_made_finds_nothing_half_made(monkeypatch):
    """A signal handler may fork anywhere. The child went over an engine that had no peers yet, and
    did not come to the nodes that were whole."""
    monkeypatch.setattr(forks, "_heeding", weakref.WeakSet())
    made = transport.Traffic

    def fork_here(*arguments):
        forks._orphan_all()
        return made(*arguments)

    monkeypatch.setattr(transport, "Traffic", fork_here)
    async with pt.Node("ada", **loopback()) as ada:
        assert not engine_of(ada).forked and list(forks._heeding) == [engine_of(ada)]


@pytest.mark.unsanitized("a loop gets nowhere beside a thread that takes it over each microsecond")
async def test_statistics_may_be_asked_for_on_any_thread_while_connections_come_and_go():
    """A monitoring thread must not meet a table that changes while it is counted."""
    stop, raised, asked = threading.Event(), [], 0

    def monitor():
        nonlocal asked
        try:
            while not stop.is_set():
                assert ada.stats().messages_received >= 0 and ada.memory["total"].bytes > 0
                asked += len(ada.peers.known()) > 0
        except BaseException as error:
            raised.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=monitor)
    try:
        async with pt.Node("ada", **loopback()) as ada:
            thread.start()
            for number in range(20):
                async with pt.Node(f"bob{number}", **loopback()) as bob:
                    peer = await bob.connect(ada.address, timeout=GUARD)
                    await peer.send(b"x")
                    await ada.receive(timeout=GUARD)
            stop.set()
            await asyncio.to_thread(thread.join)
    finally:
        stop.set()
        sys.setswitchinterval(interval)
    assert not raised and asked


# A forked child of peertalk.sync

SYNC_FORKING = """
import os, sys, threading
import peertalk as pt
from peertalk.sync import Node

options = dict(bind="127.0.0.1", port=0, discovery=False)
ada = Node("ada", **options).start()
bob = Node("bob", **options).start()
greeting = threading.Thread(target=bob.wait_for, args=("ada",), daemon=True)
greeting.start()
peer = ada.connect(bob.address, timeout=20)
greeting.join()
stream = peer.stream_out(b"parts")
mine = peer.messages(timeout=0.01)
next(mine, None)
waits = threading.Thread(target=ada.receive, daemon=True)
waits.start()
while repr(ada._turning).startswith("<unlocked"):
    pass
child = os.fork()
if child == 0:
    uses = [
        lambda: peer.send(b"child"), lambda: peer.send_nowait(b"child"),
        lambda: peer.send_many([b"child"]), peer.connect, peer.disconnect, peer.ping, peer.reject,
        stream.finished, stream.cancel, stream.__enter__, lambda: list(peer.messages(timeout=0)),
        ada.receive, lambda: ada.broadcast(b""), lambda: ada.connect(("127.0.0.1", 1)),
        lambda: ada.wait_for("bob"), ada.poll, ada.close, ada.close_nowait, ada.stats,
        lambda: ada.memory, lambda: ada.peers, lambda: ada.send_datagram(peer, b"child"),
        ada.receive_datagram, lambda: next(ada.messages()), lambda: next(ada.batches()),
        lambda: next(ada.datagrams()), lambda: setattr(ada, "flags", 1),
    ]
    for number, use in enumerate(uses):
        try:
            use()
        except pt.InvalidState as error:
            assert "forked child" in str(error) or number == 7, (number, error)
        else:
            raise AssertionError(number)
    if sys.argv[1] == "_exit":
        os._exit(7)
    ada.__exit__(None, None, None)
    sys.exit(7)
assert os.waitpid(child, 0)[1] == 7 << 8
peer.send(b"after")
assert bob.receive(timeout=20).data == b"after"
bob.peers["ada"].send(b"back")
waits.join()
ada.close()
bob.close()
print("went on")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="did not run: this system cannot fork")
@pytest.mark.unsanitized("the child leaves alone, and leaks, what another thread was changing")
@pytest.mark.parametrize("way", ["exit", "_exit"])
def test_a_forked_child_of_a_polled_node_is_refused_at_once(way, fork_python):
    """Another thread of the parent may hold the lock of the node: in the child it holds it for
    ever, so the child is refused before it asks for the lock."""
    # Python 3.12 warns of threads beside any fork, which is what this is about
    warn = ("-W", "always", "-W", "ignore:This process:DeprecationWarning")
    process = fork_python(*warn, "-c", SYNC_FORKING, way)
    out, err = process.communicate(timeout=GUARD)
    assert (out.strip(), err, process.returncode) == ("went on", "", 0)


# A closed node


@pytest.mark.parametrize("end", ["close", "close_nowait"])
def test_a_polled_node_that_keeps_its_last_message_can_be_collected(end):
    """A Message is not tracked by the collector, so no way may lead from it back to its node."""
    ada, bob = sync.Node("ada", **loopback()).start(), sync.Node("bob", **loopback()).start()
    list(bob.events())
    answering = threading.Thread(target=bob.wait_for, args=("ada",))
    answering.start()
    peer = ada.connect(bob.address, timeout=GUARD)
    answering.join()
    peer.send(b"kept")
    bob.last = bob.receive(timeout=GUARD)
    sender = bob.last.peer
    getattr(bob, end)()
    ada.close_nowait()
    with pytest.raises(pt.InvalidState, match="closed"):
        sender.send(b"x")
    gone = weakref.ref(bob)
    del bob
    gc.collect()
    assert gone() is None


# All at once


@pytest.mark.source
@pytest.mark.unsanitized("forks among threads, which the sanitizers do not follow")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="did not run: this system cannot fork")
@pytest.mark.parametrize("name", ["storm.py", "storm_sync.py"])
def test_threads_forks_and_signals_all_at_once(name, rounds, start_python):
    """Ten minutes in the long form; .ci/run has a minute of it."""
    seconds = rounds(1, 600)
    storm = Path(__file__).with_name(name)
    process = start_python(str(storm), str(seconds), "7")
    out, err = process.communicate(timeout=seconds + 300)
    assert process.returncode == 0, out + err
    assert "signals" in out and "forks" in out
