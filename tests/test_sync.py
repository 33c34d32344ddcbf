"""The front door without await: everything happens inside a call, on the caller's thread, and in no
other.

Nodes live on loopback. Two nodes that talk need two threads: `beside` runs the other one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from kit.inside import connections_of, engine_of
from kit.nodes import announcing, loopback, numbered
from kit.waiting import GUARD

import peertalk as pt
from peertalk._core import load
from peertalk._core.values import GOODBYE, QUERY
from peertalk.protocol.wire import decode_announcement
from peertalk.sync import Node


@contextlib.contextmanager
def beside(work):
    """Run work() on another thread meanwhile; its result, or what it raised, when the block is
    over."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        yield running
        running.result(GUARD)


@contextlib.contextmanager
def echo(**options):
    """A node on another thread that sends back what comes; gives its address."""
    stop = threading.Event()
    node = Node("echo", **options)

    def work():
        with contextlib.closing(node):
            while not stop.is_set():
                for message in node.messages(timeout=0.02):
                    # who asked may have left without waiting for its answer
                    with contextlib.suppress(pt.NetworkError):
                        message.peer.send(message.data, timeout=GUARD)

    node.start()
    address = node.address
    with beside(work):
        try:
            yield address
        finally:
            stop.set()


def test_two_nodes_find_each_other_and_talk_without_a_hidden_thread(core, free_port):
    """The promise of this door: nothing behind the caller's back."""
    port = free_port()
    with echo(**announcing(port, core=core.name)):
        threads = threading.active_count()
        with Node("script", **announcing(port, core=core.name, workers=0)) as node:
            peer = node.wait_for("echo", timeout=GUARD)
            assert [
                peer.send(data, timeout=GUARD)
                for data in (b"one", bytearray(b"two"), "three", memoryview(b"four"), b"")
            ] == [1, 2, 3, 4, 5]
            assert [node.receive(timeout=GUARD).data for _ in range(5)] == [
                b"one",
                b"two",
                b"three",
                b"four",
                b"",
            ]
            assert (
                node.peers["echo"] is peer
                and peer.connected
                and node.wait_for(lambda known: known.connected) is peer
            )
            assert threading.active_count() == threads
            peer.disconnect(timeout=GUARD)
            assert not peer.connected
            peer.send(b"again", no_delay=True, timeout=GUARD)
            assert node.receive(timeout=GUARD).text == "again"
        assert node.stats().messages_sent == 6 and node.stats().messages_received == 6


def test_many_messages_arrive_in_order_through_full_queues(core):
    """send() turns the node while there is no room; both directions at once must not lock up."""
    with echo(
        **loopback(core=core.name, send_queue_size=16, receive_queue_bytes=64 * 1024)
    ) as address:
        with Node("script", **loopback(core=core.name, send_queue_size=16)) as node:
            peer = node.connect(address, timeout=GUARD)
            assert (
                peer.send_many(
                    [numbered(number) + bytes(900) for number in range(1000)], timeout=GUARD
                )
                == 1000
            )
            assert peer.send(numbered(1000), timeout=GUARD) == 1001
            got = [
                message.data[:4]
                for _, message in zip(range(1001), node.messages(timeout=GUARD), strict=False)
            ]
            assert got == [numbered(number) for number in range(1001)]
            peer.send_many([numbered(number) for number in range(500)], timeout=GUARD)
            taken = []
            for batch in node.batches(timeout=GUARD):
                assert batch.peer is peer and len(batch)
                taken += batch
                if len(taken) == 500:
                    break
            assert taken == [numbered(number) for number in range(500)]


def test_send_nowait_refuses_and_a_send_in_time_gives_up_where_nobody_reads():
    """Nothing was accepted by either."""
    with (
        Node("mute", **loopback(receive_queue_bytes=1024, workers=0)) as mute,
        Node("script", **loopback(send_queue_size=4, workers=0)) as node,
    ):
        with beside(lambda: mute.wait_for("script", timeout=GUARD)):
            peer = node.connect(mute.address, timeout=GUARD)
        with pytest.raises(pt.WouldBlock) as raised:
            while True:
                peer.send_nowait(bytes(8000))
        accepted = peer.accepted
        assert raised.value.reason == "queue" and raised.value.peer == "mute"
        with pytest.raises(pt.Timeout, match="no room for a message to peer 'mute'"):
            peer.send(bytes(8000), timeout=0.05)
        with pytest.raises(pt.Timeout):
            peer.send_many([bytes(8000)] * 5, timeout=0.05)
        assert accepted <= peer.accepted <= accepted + 5
        result = node.broadcast(b"x", timeout=0.05)
        assert not result.accepted and isinstance(result.skipped[peer], pt.Timeout)
        assert node.close(timeout=0.05) > 0


@contextlib.contextmanager
def late_reader(node, **options):
    """A peer of the node that reads only from when go is set, on another thread; gives (peer, go,
    what it took); ends when that is b"end"."""
    go, failed, taken = threading.Event(), threading.Event(), []

    def work():
        assert go.wait(GUARD)
        while not failed.is_set() and taken[-1:] != [b"end"]:
            for message in reader.messages(timeout=0.02):
                taken.append(message.data)

    with Node("reader", **loopback(receive_queue_bytes=1024, **options)) as reader:
        with beside(lambda: reader.wait_for(node.name, timeout=GUARD)):
            peer = node.connect(reader.address, timeout=GUARD)
        with beside(work):
            try:
                yield peer, go, taken
            except BaseException:
                failed.set()
                raise
            finally:
                go.set()


def poll_until_sent(node, peer):
    """What was accepted leaves in the turns of its node only, and nobody else turns it."""
    while peer.queue.pending:
        node.poll(1.0)


@pytest.mark.parametrize("many", [False, True])
def test_what_another_thread_sent_before_goes_before(many):
    """It was left to the node while its lock was held; whoever sends next knows of it and must not
    overtake it."""
    with echo(**loopback()) as address, Node("script", **loopback()) as node:
        peer = node.connect(address, timeout=GUARD)
        first = partial(peer.send_nowait, b"first", no_delay=True)  # which is not the short road
        with node._turning, beside(first) as other:
            assert other.result(GUARD) == 0
        peer.send_many([b"second"]) if many else peer.send_nowait(b"second")
        assert [node.receive(timeout=GUARD).data for _ in range(2)] == [b"first", b"second"]


def test_a_send_offers_its_message_to_the_system_and_turns_only_now_and_then(core, monkeypatch):
    """A turn for each message made this door a tenth as quick as others. None at all would leave
    the PINGs of others unanswered while a program does nothing but send."""
    now = 0.0
    monkeypatch.setattr("peertalk.sync.peer.time", types.SimpleNamespace(monotonic=lambda: now))
    with (
        Node("ada", **loopback(core=core.name, workers=0)) as ada,
        Node("bob", **loopback()) as bob,
    ):
        with beside(lambda: bob.wait_for(lambda peer: peer.connected, timeout=GUARD)):
            peer = ada.connect(bob.address, timeout=GUARD)
        engine, connection = engine_of(ada), connections_of(ada)[0]
        ada._turning._turned, ada._turning.asked = now, False
        while engine.loop.next_timeout() == 0.0:
            ada.poll()
        turns = engine.turns
        for number in range(10):
            assert peer.send(numbered(number)) == number + 1
            assert not connection.link.slots_pending
        assert engine.turns == turns
        now += 0.01
        peer.send(numbered(10))
        assert engine.turns == turns + 1 and ada._turning.turned > now
        assert [bob.receive(timeout=GUARD).data for _ in range(11)] == [
            numbered(number) for number in range(11)
        ]
        while peer.stats().messages_sent < 11:
            ada.poll(0.01)


def test_classes_and_keys_mean_the_same_without_await():
    """What waits is overtaken by class and replaced by key; with a full queue of low messages a
    critical one is still taken."""
    with (
        Node("slow", **loopback(receive_queue_bytes=1024, workers=0)) as slow,
        Node("script", **loopback(send_queue_size=16, workers=0)) as node,
    ):
        with beside(lambda: slow.wait_for("script", timeout=GUARD)):
            peer = node.connect(slow.address, timeout=GUARD)
        with pytest.raises(pt.WouldBlock):
            while True:
                peer.send_nowait(b"low" + bytes(8000), priority=pt.Priority.LOW)
        low = peer.accepted
        for place in range(3):
            peer.send_nowait(b"at %d" % place, key=1)
        assert peer.send(b"critical", priority=pt.Priority.CRITICAL) == low + 4
        for refused in ({"priority": 9}, {"key": 1.5}):
            with pytest.raises(pt.InvalidArgument):
                peer.send(b"x", **refused)
            with pytest.raises(pt.InvalidArgument):
                node.broadcast(b"x", **refused)
        with pytest.raises(pt.InvalidArgument):
            peer.send_many([b"x"], priority=7)
        with beside(
            lambda: [slow.receive(timeout=GUARD).data[:8] for _ in range(low + 2)]
        ) as reading:
            while not reading.done():
                node.poll(0.01)
        got = reading.result()
        assert got.count(b"at 2") == 1 and not {b"at 0", b"at 1"} & set(got)
        assert got.index(b"critical") < got.index(b"at 2") and got[-1][:3] == b"low"


def test_what_does_not_come_in_time_is_a_timeout_that_says_what():
    """And each iteration with a time-out ends quietly instead."""
    with Node("script", **loopback()) as node:
        with pytest.raises(pt.Timeout, match=r"no message came within 0\.01 s"):
            node.receive(timeout="10ms")
        with pytest.raises(
            pt.Timeout, match=r"no peer 'bob' was heard within 0\.01 s; nobody.*discovery off"
        ):
            node.wait_for("bob", timeout=0.01)
        assert list(node.messages(timeout=0.01)) == list(node.batches(timeout=0)) == []
        for wrong, error in (
            ("eve", pt.PeerNotFound),
            (5, pt.errors.WrongType),
            (("x" * 70, 1), pt.errors.NetworkFailure),
            (node.address, pt.InvalidArgument),
        ):
            with pytest.raises(error):
                node.connect(wrong, timeout=GUARD)


def test_a_node_that_is_not_called_is_silent_and_poll_is_enough():
    """A game turns its own loop: what came meanwhile is there after poll(), and not before."""
    with Node("game", **loopback()) as game:
        with beside(lambda: play(game.address)) as running:
            while not running.done():
                game.poll("1ms")
        assert game.receive(timeout=GUARD).data == b"move"
        turns = game.stats().turns
        assert game.stats().turns == turns
        game.poll()
        assert game.stats().turns == turns + 1


def play(address):
    with Node("player", **loopback()) as player:
        player.connect(address, timeout=GUARD).send(b"move", timeout=GUARD)


def test_threads_that_share_a_node_each_get_their_part():
    """Several wait, several send: no message twice, none lost, and send_nowait never waits for the
    lock."""
    with echo(**loopback()) as address, Node("script", **loopback()) as node:
        peer = node.connect(address, timeout=GUARD)
        total, taken, lock = 100, [], threading.Lock()

        def take():
            for message in node.messages(timeout=GUARD):
                if message.data == b"stop":
                    return
                with lock:
                    taken.append(message.data)

        def give(first):
            for number in range(first, total, 2):
                while True:
                    try:
                        peer.send_nowait(numbered(number))
                        break
                    except pt.WouldBlock:
                        node.poll(0.001)

        with ThreadPoolExecutor(4) as pool:
            running = [
                pool.submit(take),
                pool.submit(take),
                pool.submit(give, 0),
                pool.submit(give, 1),
            ]
            for each in running[2:]:
                each.result(GUARD)
            for _ in range(2):
                peer.send(b"stop", timeout=GUARD)
            for each in running[:2]:
                each.result(GUARD)
        assert sorted(taken) == [numbered(number) for number in range(total)]


def test_closing_wakes_a_thread_that_waits_and_everything_after_it_is_refused():
    """A thread blocked in receive() must not outlive its node."""
    node = Node("script", **loopback()).start()
    waits = threading.Event()

    def wait():
        waits.set()
        with pytest.raises(pt.InvalidState, match="closed"):
            node.receive(timeout=GUARD)

    with beside(wait):
        waits.wait()
        assert node.close() == 0
    assert node.close() == 0 and node.close_nowait() == 0
    for use in (
        node.receive,
        node.poll,
        lambda: node.wait_for("x"),
        lambda: node.connect(("127.0.0.1", 1)),
        lambda: node.peers,
        node.start,
    ):
        with pytest.raises(pt.InvalidState):
            use()
    assert "closed" in repr(node)


@pytest.mark.parametrize("comes", [True, False])
def test_of_two_threads_that_wait_each_looks_at_what_has_come_and_at_its_own_time(comes):
    """Whoever has let go of the lock must not wait until the other one has all it waits for."""
    waits, waits_too = threading.Event(), threading.Event()

    def late(peer):
        waits.set()
        return peer.name == "late"

    def never(peer):
        waits_too.set()
        return False

    with (
        echo(**loopback()) as address,
        Node("script", **loopback()) as node,
        Node("late", **loopback()) as other,
        ThreadPoolExecutor(2) as pool,
    ):
        node.connect(address, timeout=GUARD)
        first = pool.submit(node.wait_for, late, timeout=GUARD if comes else 0.1)
        waits.wait(GUARD)
        second = pool.submit(node.wait_for, never)
        waits_too.wait(GUARD)
        try:
            if comes:
                other.connect(node.address, timeout=GUARD)
                assert first.result(GUARD).name == "late"
            else:
                assert isinstance(first.exception(GUARD), pt.Timeout)
            assert not second.done()
        finally:
            node.close(0)
        assert isinstance(second.exception(GUARD), pt.InvalidState)


def test_a_signal_that_raises_while_another_thread_has_the_lock_leaves_it_that():
    """It strikes who waits and has let go of the lock for a moment."""
    waits, struck = threading.Event(), threading.Event()
    ours = threading.get_ident()

    class Struck(Exception):
        pass

    def strike(*_):
        struck.set()
        raise Struck

    def absent(peer):
        waits.set()
        return False

    def present(peer):
        signal.pthread_kill(ours, signal.SIGUSR1)
        assert struck.wait(GUARD)
        return True

    def look():
        waits.wait(GUARD)
        return node.wait_for(present, timeout=GUARD)

    before = signal.signal(signal.SIGUSR1, strike)
    try:
        with echo(**loopback()) as address, Node("script", **loopback()) as node:
            peer = node.connect(address, timeout=GUARD)
            for _ in range(5):
                waits.clear(), struck.clear()
                with beside(look) as found:
                    with pytest.raises(Struck):
                        node.wait_for(absent, timeout=GUARD)
                assert found.result(GUARD) is peer
            peer.send(b"on", timeout=GUARD)
            assert node.receive(timeout=GUARD).data == b"on"
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_ping_flags_and_reject_are_there_without_await_too():
    """The same door: what one has and the other lacks would be found missing at the worst
    moment."""
    with echo(**loopback()) as address, Node("ada", **loopback(flags=1)) as ada:
        peer = ada.connect(address, timeout=GUARD)
        assert 0 < peer.ping(timeout=GUARD) < GUARD and peer.latency.samples >= 1
        assert ada.flags is pt.PeerFlag.HOST
        ada.flags = pt.PeerFlag.READY
        assert ada.flags is pt.PeerFlag.READY
        peer.disconnect(timeout=GUARD)
        with pytest.raises(pt.NotConnected):
            peer.ping()
    with Node("bob", **loopback()) as bob:
        bob.events()  # kept from here on

        async def visit():
            async with pt.Node("eve", **loopback()) as eve:
                events = eve.events()
                await eve.connect(bob.address, timeout=GUARD)
                async for event in events:
                    if isinstance(event, pt.PeerDisconnected):
                        return event.error

        with beside(lambda: asyncio.run(visit())) as visiting:
            for event in bob.events(timeout=GUARD):
                if isinstance(event, pt.ConnectionRequested):
                    event.reject(pt.RejectReason.FULL)
                if isinstance(event, pt.PeerDisconnected):
                    break
        assert visiting.result().reason is pt.RejectReason.FULL


def test_events_are_kept_between_calls_within_a_bound(monkeypatch):
    """A script looks at them now and then."""
    monkeypatch.setattr("peertalk.protocol.events._KEPT_MAX", 3)
    with echo(**loopback()) as address, Node("script", **loopback()) as node:
        assert list(node.events()) == []
        peer = node.connect(address, timeout=GUARD)
        assert [type(event) for event in node.events()] == [pt.PeerFound, pt.PeerConnected]
        for number in range(10):
            peer.send(numbered(number), timeout=GUARD)
            node.receive(timeout=GUARD)
        seen = list(node.events())
        assert [type(event) for event in seen[:4]] == [pt.Sent, pt.Sent, pt.Sent, pt.EventsMissed]
        assert [event.first for event in seen[:3]] == [1, 2, 3]
        assert seen[3].count == 7 and seen[4:] == []
        peer.send(b"x", timeout=GUARD)
        assert next(node.events(timeout=GUARD)) == pt.Sent(peer, 11, 11)


def test_events_begin_with_what_is_true_at_the_first_call():
    """As at the other door: who is there before a program listens is told to it too, and once."""
    with echo(**loopback()) as address, Node("script", **loopback()) as node:
        peer = node.connect(address, timeout=GUARD)
        assert list(node.events()) == [pt.PeerFound(peer), pt.PeerConnected(peer)]
        assert list(node.events()) == []
        peer.disconnect(timeout=GUARD)
        assert [type(event) for event in node.events()] == [pt.PeerDisconnected, pt.PeerLost]


def test_threads_share_the_events_each_going_to_one():
    """As at the other door: whoever takes one has the lock, and nobody else has that one."""
    with echo(**loopback()) as address, Node("script", **loopback()) as node:
        peer = node.connect(address, timeout=GUARD)
        list(node.events())
        seen, readers = [[], []], [node.events(timeout=GUARD) for _ in range(2)]
        for sent in range(20, 220, 20):
            for _ in range(20):
                peer.send(b"x", timeout=GUARD)
            last = 0
            while last < sent:
                for mine, reader in zip(seen, readers, strict=True):
                    if last < sent:
                        with beside(partial(next, reader)) as taken:
                            event = taken.result(timeout=GUARD)
                        mine += range(event.first, event.last + 1)
                        last = event.last
            seen.reverse(), readers.reverse()
        told = seen[0] + seen[1]
        assert sorted(told) == list(range(1, 201)) and all(seen)


def test_when_the_node_is_closed_iterators_give_what_had_come_and_end():
    """As at the other door; an error at the one and an end at the other is a trap."""
    with Node("script", **loopback()) as node, Node("ada", **loopback()) as ada:
        with beside(lambda: node.wait_for(lambda peer: peer.connected, timeout=GUARD)):
            to_node = ada.connect(node.address, timeout=GUARD)
        peer = node.peers["ada"]
        assert [type(event) for event in node.events()][:2] == [pt.PeerFound, pt.PeerConnected]
        to_node.send_many([b"1", b"2", b"3", b"4"], timeout=GUARD)
        ada.send_datagram(to_node, b"d")
        opened = node.messages(timeout=GUARD)
        assert next(opened).data == b"1"
        while not node.stats().datagrams_received or node.stats().messages_received < 4:
            node.poll(0.01)
        node.close_nowait()
        for call in (node.receive, node.receive_datagram):
            with pytest.raises(pt.InvalidState, match="closed"):
                call()
        assert next(opened).data == b"2"
        assert [message.data for message in peer.messages()] == [b"3", b"4"]
        assert list(opened) == list(node.messages()) == list(node.batches()) == []
        assert [datagram.data for datagram in node.datagrams()] == [b"d"]
        assert pt.PeerDisconnected in [type(event) for event in node.events(timeout=None)]
        assert list(node.events(timeout=None)) == []
    for made in (node.messages, node.batches, node.datagrams):
        assert list(made()) == []
    for made in (Node("eve").messages, Node("eve").batches, Node("eve").datagrams):
        with pytest.raises(pt.InvalidState, match="not started"):
            made()


def test_a_call_with_no_time_serves_the_network_once(free_port):
    """A loop of its own that asks with timeout=0 never heard of anybody."""
    port = free_port()
    with echo(**announcing(port)), Node("script", **announcing(port)) as node:

        def polled(call):
            for _ in range(int(GUARD * 100)):
                with contextlib.suppress(pt.Timeout):
                    return call()
                time.sleep(0.01)
            raise AssertionError("never")

        peer = polled(lambda: node.wait_for("echo", timeout=0))
        assert polled(lambda: node.connect("echo", timeout=0)) is peer and peer.connected
        peer.send(b"x", timeout=0)
        assert polled(lambda: node.receive(timeout=0)).data == b"x"


def test_a_node_that_was_forgotten_warns():
    """As at the other door."""
    node = Node("script", **loopback()).start()
    with pytest.warns(ResourceWarning, match="'script' was not closed"):
        del node
        gc.collect()
    with pytest.raises(pt.InvalidState, match="not started"):
        Node("script").receive()
    with pytest.raises(pt.InvalidArgument, match="not both"):
        Node("script", config=pt.Config())


WAITING = """
import sys
from peertalk.sync import Node
try:
    with Node("script", bind="127.0.0.1", port=0, discovery=False, core=sys.argv[1]) as node:
        print("waiting", flush=True)
        node.receive()
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_ends_a_call_that_waits_without_end(core, fork_python):
    """The wait is in C with the GIL given up: it must come back for signals."""
    process = fork_python("-c", WAITING, core.name)
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=GUARD)
    assert (out, process.returncode) == ("interrupted\n", 0), err


TAKEN_ELSEWHERE = (
    """
import signal, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
"""
    + WAITING
)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_that_does_not_reach_the_wait_itself_ends_the_call(core, fork_python):
    """Another thread takes the signal, which so comes as if between the last look and the wait."""
    process = fork_python("-c", TAKEN_ELSEWHERE, core.name)
    assert process.stdout.readline() == "waiting\n"
    main = Path(f"/proc/{process.pid}/task/{process.pid}/stat")
    give_up = time.monotonic() + GUARD
    while main.read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < give_up, "it never waited"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=GUARD)
    assert (out, process.returncode) == ("interrupted\n", 0), err


def test_datagrams_and_streams_have_the_same_names_without_await(core):
    """Two nodes on one thread: each is turned by its own calls."""
    content = bytes(range(256)) * 40
    options = loopback(core=core.name, udp_port=0, ping_interval=0)
    with (
        Node("ada", **options) as ada,
        Node("bob", **options) as bob,
        beside(lambda: bob.receive(timeout=GUARD)) as first,
    ):
        peer = ada.connect(bob.address, timeout=GUARD)
        peer.send(b"first", timeout=GUARD)
        back = first.result(GUARD).peer
        assert (
            ada.send_datagram(peer, b"fast") and bob.receive_datagram(timeout=GUARD).text == "fast"
        )
        assert bob.send_datagram(back, b"back") and [
            each.data for each in ada.datagrams(timeout=0.05)
        ] == [b"back"]
        with pytest.raises(pt.Timeout, match="no datagram came"):
            bob.receive_datagram(timeout=0.001)
        steps = []
        with beside(
            lambda: b"".join(message.data for message in bob.messages(timeout=0.5))
        ) as data:
            with peer.stream_out(content, lambda sent, total: steps.append(sent)) as out:
                assert out.finished(timeout=GUARD) is pt.StreamState.COMPLETED
        assert data.result(GUARD) == content and steps[-1] == out.sent == out.total == 10_240
        with peer.stream_out(content, lambda sent, total: stopping.cancel()) as stopping:
            assert stopping.finished(timeout=GUARD) is pt.StreamState.CANCELLED
        with peer.stream_out(content) as left:
            pass
        assert (
            left.state is pt.StreamState.CANCELLED and left.finished() is pt.StreamState.CANCELLED
        )
        with (
            peer.stream_out(content * 6, lambda sent, total: bob.close_nowait()) as lost,
            pytest.raises(pt.NetworkError),
        ):
            lost.finished(timeout=GUARD)
        assert lost.state is pt.StreamState.FAILED and isinstance(lost.error, pt.NetworkError)


def test_a_stream_hears_that_its_node_was_closed():
    """Whoever asks for it later must not be told that it is on its way."""
    with Node("ada", **loopback(udp_port=0)) as ada, Node("bob", **loopback(udp_port=0)) as bob:
        with beside(lambda: bob.receive(timeout=GUARD)):
            peer = ada.connect(bob.address, timeout=GUARD)
            peer.send(b"first", timeout=GUARD)
        with peer.stream_out(bytes(5000)) as out:
            ada.close(timeout=0.01)
            assert out.state is pt.StreamState.FAILED and isinstance(out.error, pt.InvalidState)
            with pytest.raises(pt.InvalidState):
                out.finished()


# One peer alone, everybody, and many


@contextlib.contextmanager
def sending(address, *messages):
    """A node on another thread that has sent these and stays until the block is over."""
    over = threading.Event()
    node = Node("ada", **loopback()).start()

    def work():
        with contextlib.closing(node):
            peer = node.connect(address, timeout=GUARD)
            peer.send_many(messages, timeout=GUARD)
            while not over.is_set():
                node.poll(0.02)

    with beside(work):
        try:
            yield
        finally:
            over.set()


def test_a_peers_messages_are_read_alone_from_the_first_on_and_end_with_it():
    """As at the other door: what waits comes first, the rest goes to the node, and a lost peer is
    the end."""
    with Node("script", **loopback()) as node:
        with sending(node.address, b"1", b"2", b"3", b"4"):
            peer = node.receive(timeout=GUARD).peer
            mine = peer.messages(timeout=GUARD)
            assert next(mine).data == b"2"
            with pytest.raises(pt.Timeout):
                node.receive(timeout=0)
            mine.close()
            assert node.receive(timeout=GUARD).data == b"3"
        assert [message.data for message in peer.messages(timeout=GUARD)] == [b"4"]
        assert peer not in node.peers.values()
        assert list(peer.messages(timeout=GUARD)) == []


def test_a_broadcast_names_the_frozen_at_once_and_reaches_who_is_not_connected(free_port):
    """One that does not read would stop a program that has one thread for everything."""
    port = free_port()
    with (
        Node("frozen", **announcing(port, receive_queue_bytes=1024)) as frozen,
        Node("script", **announcing(port, send_queue_size=1)) as node,
        echo(**announcing(port)),
    ):
        there = node.wait_for("echo", timeout=GUARD)
        with beside(lambda: frozen.wait_for(lambda peer: peer.connected, timeout=GUARD)):
            slow = node.wait_for("frozen", timeout=GUARD).connect(timeout=GUARD)
        with pytest.raises(pt.Timeout):
            while True:
                slow.send(bytes(8000), timeout=0.05)
        assert not there.connected
        result = node.broadcast(b"x")
        assert result.accepted == [there] and list(result.skipped) == [slow]
        assert isinstance(result.skipped[slow], pt.WouldBlock)
        assert node.receive(timeout=GUARD).data == b"x"
        with pytest.raises(pt.InvalidArgument, match="duration"):
            node.broadcast(b"y", timeout=-1)
        assert there.accepted == 1
        node.close_nowait()  # frozen takes nothing more


def test_send_many_says_how_many_were_accepted_before_it_failed_and_draws_no_more():
    """As at the other door."""
    with Node("script", **loopback(send_queue_size=1)) as node:
        with Node("frozen", **loopback(receive_queue_bytes=1024)) as frozen:
            with beside(lambda: frozen.wait_for("script", timeout=GUARD)):
                peer = node.connect(frozen.address, timeout=GUARD)
            drawn = 0

            def endless():
                nonlocal drawn
                while True:
                    drawn += 1
                    yield bytes(8000)

            with pytest.raises(pt.Timeout) as late:
                peer.send_many(endless(), timeout=0.1)
            assert late.value.accepted == peer.accepted > 0
            assert drawn - peer.accepted <= 1024


def test_whoever_waits_for_a_peer_looks_only_when_something_has_changed():
    """A look at 500 peers in each turn would be most of what the node does."""
    looks = 0

    def absent(peer):
        nonlocal looks
        looks += 1
        return False

    with Node("script", **loopback()) as node, sending(node.address, *[b"x"] * 2000):
        for _ in range(2000):
            node.receive(timeout=GUARD)
        with pytest.raises(pt.Timeout, match="known: 'ada'"):
            node.wait_for(absent, timeout=0.05)
    assert looks == 1


def test_who_is_waited_for_is_asked_for_by_name(free_port):
    """In a large room few answer a question to all."""
    port = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hears:
        hears.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        hears.bind(("", port))
        hears.settimeout(GUARD)
        with Node("ada", **loopback(discovery=True, discovery_port=port)) as ada:
            with pytest.raises(pt.Timeout, match="no peer 'zoe' was heard"):
                ada.wait_for("zoe", timeout=1.0)
            with pytest.raises(pt.Timeout):
                ada.wait_for("zoe", timeout=0.1)
        heard = []
        while not heard or heard[-1].type != GOODBYE:
            heard.append(decode_announcement(load("reference"), hears.recv(2048)))
    assert [each.sought for each in heard if each.type == QUERY] == [None, "zoe"]
