"""An exception of a signal handler, raised at each point of a call at which CPython calls one.

A handler is called at the beginning of a function of Python, after each call of one of C, and when
a loop goes back. `Strike` raises at one of these points; each test makes a call again and again,
struck at the first point, the second, and so on until the call ends before it is struck. Whatever
was struck: the lock is free, nothing is lost, doubled or out of order, and the next call works.
"""

from __future__ import annotations

import contextlib
import dis
import itertools
import os
import sys
import threading
import time

import pytest
from kit.nodes import answered, loopback, numbered
from kit.waiting import GUARD

import peertalk as pt
from peertalk import sync
from peertalk.sync.turning import Turning

pytestmark = [
    pytest.mark.threads,
    pytest.mark.unsanitized("a trace of each opcode, which takes minutes there"),
]

INSIDE = (os.path.dirname(pt.__file__), contextlib.__file__)
"""Where it strikes: not in what the test itself does with a message."""
POINTS = 20_000
"""More than any of these calls has."""


class Struck(BaseException):
    pass


class Strike:
    """Raises Struck at the n-th point of what is called under it. inside: the places where it does;
    hit: whether it did; where: at which line."""

    def __init__(self, number, inside=INSIDE):
        self.left = number
        self.inside = inside
        self.where = None
        self._calls = {}

    @property
    def hit(self):
        return self.where is not None

    def __enter__(self):
        sys.settrace(self._trace)
        return self

    def __exit__(self, kind, *_):
        sys.settrace(None)
        return kind is Struck

    def _trace(self, frame, what, _):
        if what == "call":
            caller = frame.f_back
            if caller in self._calls and not frame.f_code.co_name.startswith("__"):
                del self._calls[caller]  # of Python: it ends without a look at signals
        if not frame.f_code.co_filename.startswith(self.inside):
            return None
        if what == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self._point(frame)
        elif what == "opcode":
            before = self._calls.pop(frame, None)
            if before is not None and (before < 0 or frame.f_lasti < before):
                self._point(frame)
            name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if name.startswith("CALL") and "INTRINSIC" not in name:
                self._calls[frame] = -1
            elif "BACKWARD" in name and "NO_INTERRUPT" not in name:
                self._calls[frame] = frame.f_lasti  # if it jumps
        return self._trace

    def _point(self, frame):
        self.left -= 1
        if not self.left:
            self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
            raise Struck


@contextlib.contextmanager
def two(workers):
    """Two connected nodes: the peer is ada's view of bob. Ada is the one that is struck."""
    with (
        sync.Node("ada", **loopback(workers=workers)) as ada,
        sync.Node("bob", **loopback(workers=1)) as bob,
    ):
        peer = ada.connect(bob.address, timeout=GUARD)
        yield ada, peer, bob.wait_for("ada", timeout=GUARD)


def free(node):
    """Whether another thread can have the lock of a node."""
    got = []

    def take():
        give_up = time.monotonic() + GUARD  # the control thread may have it just now
        while not node._turning.if_free(lambda: got.append(1)) and time.monotonic() < give_up:
            time.sleep(0.001)

    other = threading.Thread(target=take)
    other.start()
    other.join()
    return bool(got)


def strikes(inside=INSIDE):
    for number in range(1, POINTS):
        strike = Strike(number, inside)
        yield strike
        if not strike.hit:
            assert number > 1
            return
    pytest.fail("it does not end")


@pytest.mark.parametrize("contended", [False, True])
def test_who_is_struck_while_taking_the_lock_leaves_it_free(contended):
    """Who has got it and does not know keeps it for good: every later call would hang. So does who
    ends its block and is struck before it lets go."""
    lock, has_it = Turning("ada"), threading.Event()

    def have():
        with lock:
            has_it.set()
            time.sleep(0.001)

    for strike in strikes():
        if contended:
            has_it.clear()
            having = threading.Thread(target=have)
            having.start()
            assert has_it.wait(GUARD)
        with strike:
            with lock:
                assert lock.mine
        if contended:
            having.join()
        assert repr(lock).startswith("<unlocked") and not lock._waiting, strike.where


def test_who_is_struck_while_another_has_the_lock_has_it_again():
    """It was left without, and its block then let go of a lock that it did not have."""
    with two(workers=1) as (ada, _, _):
        lock = ada._turning
        for strike in strikes():
            other = threading.Thread(target=ada.poll)
            with lock:
                other.start()
                while not lock._waiting and other.is_alive():
                    time.sleep(0)
                with strike:
                    lock._let_go(lock.engine, None)
                assert lock.mine, strike.where
            other.join()
            assert free(ada) and not lock._waiting, strike.where


def send(peer):
    for number in range(4):
        peer.send(numbered(number), timeout=GUARD)


WAYS = {
    "receive": lambda ada, peer: iter(lambda: ada.receive(timeout=GUARD), None),
    "messages": lambda ada, peer: ada.messages(timeout=GUARD),
    "batches": lambda ada, peer: ada.batches(timeout=GUARD),
    "of a peer": lambda ada, peer: peer.messages(timeout=GUARD),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("way", WAYS)
def test_who_is_struck_while_receiving_loses_nothing(way, workers):
    """What was taken and never returned is there again, before what came later."""
    with two(workers) as (ada, peer, back):
        for strike in strikes():
            failed = back.stats().messages_failed
            sending = threading.Thread(target=send, args=(back,))
            sending.start()
            while sending.is_alive():  # a strike may have ended the connection, which comes again
                ada.poll(0.01)
            got, coming = [], WAYS[way](ada, peer)
            with strike:
                for item in itertools.islice(coming, 1 if way == "batches" else 3):
                    got += item.payloads if way == "batches" else [item.data]
            del coming
            assert free(ada), strike.where
            with contextlib.suppress(pt.Timeout):
                while len(got) < 4:
                    got.append(ada.receive(timeout=2).data)
            if back.stats().messages_failed > failed:  # its connection may end, which is told
                assert got == sorted(set(got)), strike.where
            else:
                assert got == [numbered(number) for number in range(4)], strike.where


@pytest.mark.parametrize("workers", [0, 1])
def test_who_is_struck_in_a_conversation_gets_each_answer_once(workers):
    """There, what comes is taken without the lock, and by one call of C. What is struck below this
    door may end a connection, which other tests are about."""
    with answered(workers) as (ada, peer):
        got = 0
        for strike in strikes(os.path.dirname(sync.__file__)):
            with strike:
                for _ in range(8):
                    peer.send(numbered(peer.accepted), timeout=GUARD)
                    assert ada.receive(timeout=GUARD).data == numbered(got)
                    got += 1
            assert free(ada), strike.where
            while got < peer.accepted:
                assert ada.receive(timeout=GUARD).data == numbered(got), strike.where
                got += 1


SENDS = {
    "send": lambda node, peer, data: peer.send(data, timeout=GUARD),
    "send for ever": lambda node, peer, data: peer.send(data),
    "no delay": lambda node, peer, data: peer.send(data, no_delay=True, timeout=GUARD),
    "high": lambda node, peer, data: peer.send(data, priority=pt.Priority.HIGH, timeout=GUARD),
    "nowait": lambda node, peer, data: peer.send_nowait(data),
    "many": lambda node, peer, data: peer.send_many([data], timeout=GUARD),
    "broadcast": lambda node, peer, data: node.broadcast(data),
    "slow broadcast": lambda node, peer, data: node.broadcast(data, timeout=GUARD),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("way", SENDS)
def test_who_is_struck_while_sending_has_sent_once_or_not(way, workers):
    """peer.accepted says which, and the next message is the next."""
    with two(workers) as (ada, peer, back):
        bob = back._turning.engine
        for number, strike in enumerate(strikes()):
            before, failed = peer.accepted, peer.stats().messages_failed
            with strike:
                SENDS[way](ada, peer, numbered(2 * number))
            assert free(ada), strike.where
            expected = [numbered(2 * number)] * (peer.accepted - before)
            assert len(expected) in (0, 1), strike.where
            assert strike.hit or expected
            peer.send(numbered(2 * number + 1), timeout=GUARD)
            expected.append(numbered(2 * number + 1))
            got = []
            while not got or got[-1] != expected[-1]:
                ada.poll(0.001)
                with back._turning:
                    bob.turn(0.0)
                    while (taken := bob.inbox.take()) is not None:
                        got.append(taken[1])
            if peer.stats().messages_failed > failed:  # its connection may end, which is told
                assert got in (expected, expected[1:]), strike.where
            else:
                assert got == expected, strike.where
        peer.disconnect(timeout=GUARD)  # what has become of each is known then
        stats = ada.stats()
        assert stats.messages_accepted == peer.accepted
        assert stats.messages_accepted == stats.messages_sent + stats.messages_failed
