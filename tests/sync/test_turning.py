"""Calls of a node inside its own methods: by signal handlers, by functions that it calls, and by
what it draws from."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading

import pytest
from kit.inside import engine_of
from kit.nodes import loopback
from kit.waiting import GUARD

import peertalk as pt
from peertalk import sync

pytestmark = pytest.mark.threads


@contextlib.contextmanager
def two(workers=1):
    with (
        sync.Node("ada", **loopback(workers=workers)) as ada,
        sync.Node("bob", **loopback()) as bob,
    ):
        yield ada, bob, ada.connect(bob.address, timeout=GUARD)


@contextlib.contextmanager
def handled(handler):
    """SIGUSR1 calls this, a moment from now."""
    before = signal.signal(signal.SIGUSR1, lambda *_: handler())
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        yield
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_closes_the_node_that_it_interrupts(workers):
    """It waited for ever for the lock that the interrupted method had."""
    node = sync.Node("ada", **loopback(workers=workers)).start()
    with handled(node.close_nowait), pytest.raises(pt.InvalidState, match="closed"):
        node.receive(timeout=GUARD)
    assert engine_of(node).released and node.close_nowait() == node.close() == 0
    assert not any("ada" in each.name for each in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_sent_on_a_signal_leaves_though_a_method_runs(workers):
    with two(workers) as (ada, bob, peer):
        with handled(lambda: peer.send_nowait(b"struck", no_delay=True)):
            with contextlib.suppress(pt.Timeout):
                ada.receive(timeout=0.3)
        assert bob.receive(timeout=GUARD).data == b"struck"


def test_a_method_that_is_called_inside_another_one_says_so():
    """It waited for ever for a lock that its own thread had."""
    with two() as (ada, bob, peer):
        told = []

        def call():
            for use in (ada.receive, ada.poll, peer.ping, ada.close):
                try:
                    use()
                except pt.InvalidState as error:
                    told.append(str(error))
            told.append(ada.stats().peers)

        with handled(call), contextlib.suppress(pt.Timeout):
            ada.receive(timeout=0.3)
        assert len(told) == 5 and told.pop() == 1
        assert all("'ada' was called inside one of its own methods" in each for each in told)

        def payloads():
            call()
            yield b"last"

        told.clear()
        assert peer.send_many(payloads()) == 1 and len(told) == 5
        assert bob.receive(timeout=GUARD).data == b"last"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_function_that_chooses_a_peer_may_call_the_node(workers):
    """It was called under the lock, and whatever it called waited for that for ever."""
    with two(workers) as (ada, bob, peer):

        def answers(known):
            assert ada.receive is not None
            known.send(b"is it you?", timeout=GUARD)
            return known.ping(timeout=GUARD) > 0

        assert ada.wait_for(answers, timeout=GUARD) is peer
        assert bob.receive(timeout=GUARD).data == b"is it you?"
        with pytest.raises(pt.Timeout, match=r"no peer .* was heard within 0.05 s; known: 'bob'"):
            ada.wait_for(lambda known: known.ping(timeout=GUARD) < 0, timeout=0.05)


def test_a_signal_may_strike_whoever_wakes_the_loop_or_leaves_a_message():
    """The two locks below the node's: a handler that came to them again waited for ever."""
    with two() as (ada, bob, peer):
        engine = engine_of(ada)
        with engine.lock, engine.loop._wake_lock, ada._turning:
            assert peer.send_nowait(b"inside", no_delay=True) == 0
        assert bob.receive(timeout=GUARD).data == b"inside"


@pytest.mark.filterwarnings("ignore:.*was not closed:ResourceWarning")
def test_a_node_that_was_interrupted_can_be_collected():
    """The error with which its connection ended kept the interrupt, that kept the frames of the
    program, and these the node: the node was never closed, and went on."""

    def interrupted(node, address):
        peer = node.connect(address, timeout=GUARD)

        def strike(*_):
            engine.serve_link = serve
            raise KeyboardInterrupt

        engine, serve = engine_of(node), engine_of(node).serve_link
        engine.serve_link = strike
        with pytest.raises(KeyboardInterrupt):
            peer.disconnect(timeout=GUARD)

    with sync.Node("bob", **loopback()) as bob:
        node = sync.Node("ada", **loopback(workers=0)).start()
        engine = engine_of(node)
        interrupted(node, bob.address)
        del node
        gc.collect()
        assert engine.released
