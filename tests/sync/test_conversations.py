"""Questions and answers: messages that are taken without the lock of the node, and what else
happens to such a node meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from kit.inside import engine_of
from kit.nodes import answered, numbered
from kit.waiting import GUARD

import peertalk as pt
from peertalk import sync

pytestmark = pytest.mark.threads


def leads(node: sync.Node) -> int:
    """How often a thread of the program had the turns of the node's worker."""
    return int(engine_of(node).workers._workers[0]._worker.leads)


def converse(ada: sync.Node, peer: sync.Peer, count: int = 100) -> None:
    for number in range(count):
        peer.send(numbered(number), timeout=GUARD)
        message = ada.receive(timeout=GUARD)
        assert message.data == numbered(number) and message.peer is peer


@pytest.mark.parametrize("workers", [0, 1])
def test_questions_and_answers_are_counted_as_all_others(workers):
    with answered(workers, workers) as (ada, peer):
        converse(ada, peer)
        stats, of_peer = ada.stats(), peer.stats()
        assert stats.messages_received == of_peer.messages_received == 100
        assert of_peer.bytes_received == 100 * len(numbered(0))
        assert of_peer.messages_accepted == peer.accepted == 100


def test_threads_that_share_a_polled_node_never_turn_it_at_once():
    """Who waits without the lock waits where the one who has it turns."""
    with answered(0, 0) as (ada, peer), ThreadPoolExecutor(3) as others:

        def ask(number: int) -> None:
            for _ in range(100):
                peer.send(numbered(number), timeout=GUARD)
                ada.receive(timeout=GUARD)

        for each in [others.submit(ask, number) for number in range(3)]:
            each.result(GUARD)
        assert ada.stats().messages_received == 300


@pytest.mark.unsanitized("there no answer comes within a millisecond")
def test_a_conversation_is_between_two_threads_alone():
    """... of four: those of the workers have no part in it. And they have their links again."""
    with answered() as (ada, peer):
        before = leads(ada)
        while leads(ada) < before + 50:
            converse(ada, peer)
        for _ in range(10):
            converse(ada, peer)
            assert peer.ping(timeout=GUARD) > 0


def test_a_peer_that_is_read_alone_takes_part_in_no_other_ones_conversation():
    with answered() as (ada, peer):
        converse(ada, peer)
        alone = peer.messages(timeout=GUARD)
        peer.send(b"alone", timeout=GUARD)
        assert next(alone).data == b"alone"
        peer.send(b"again", timeout=GUARD)
        with pytest.raises(pt.Timeout):
            ada.receive(timeout=0.05)
        assert next(alone).data == b"again"
        alone.close()
        converse(ada, peer)


def test_bursts_between_answers_stay_in_order():
    with answered() as (ada, peer):
        expected: list[bytes] = []
        got: list[bytes] = []
        for turn in range(60):
            converse(ada, peer, 5)
            count = turn % 7
            for number in range(count):
                expected.append(numbered(1000 * turn + number))
                peer.send(expected[-1], timeout=GUARD)
            if turn % 2:
                while len(got) < len(expected):
                    got.append(ada.receive(timeout=GUARD).data)
            else:
                for message in ada.messages(timeout=GUARD if count else 0.0):
                    got.append(message.data)
                    if len(got) == len(expected):
                        break
        assert got == expected


def test_each_message_is_one_threads_though_several_receive():
    with answered() as (ada, peer):
        lock, seen, count = threading.Lock(), [], 400

        def receive() -> None:
            while True:
                data = ada.receive(timeout=GUARD).data
                if data == b"over":
                    return
                with lock:
                    seen.append(data)

        with ThreadPoolExecutor(3) as others:
            receiving = [others.submit(receive) for _ in range(3)]
            for number in range(count):
                peer.send(numbered(number), timeout=GUARD)
            for _ in receiving:
                peer.send(b"over", timeout=GUARD)
            for each in receiving:
                each.result(GUARD)
        assert sorted(seen) == [numbered(number) for number in range(count)]


def test_who_hears_of_events_hears_of_each_in_its_place():
    """What had left before an answer came is told before that, so no answer is taken alone."""
    with answered() as (ada, peer):
        converse(ada, peer, 20)
        list(ada.events())
        converse(ada, peer, 20)
        sent = [each for each in ada.events(timeout=0.1) if isinstance(each, pt.Sent)]
        assert sum(each.last - each.first + 1 for each in sent) == 20


@pytest.mark.parametrize("ends", ["close", "close_nowait", "disconnect", "gone"])
def test_what_ends_a_conversation_is_told_at_once(ends: Any):
    with answered() as (ada, peer):
        converse(ada, peer)
        with ThreadPoolExecutor(1) as other:
            if ends == "disconnect":
                peer.disconnect(timeout=GUARD)
                with pytest.raises(pt.Timeout):
                    ada.receive(timeout=0.05)
                return
            if ends == "gone":
                waiting = other.submit(ada.receive, timeout=GUARD)
                next(iter(engine_of(ada).connections.by_tag.values())).socket.shutdown(2)
                ada.close(GUARD)
            else:
                waiting = other.submit(ada.receive)
                getattr(ada, ends)()
            with pytest.raises(pt.InvalidState, match="closed"):
                waiting.result(GUARD)


def test_a_large_message_in_a_conversation_comes_whole():
    with answered() as (ada, peer):
        for size in (10, 10_000, 100, 300_000, 10):
            converse(ada, peer, 10)
            peer.send(bytes(size), timeout=GUARD)
            assert ada.receive(timeout=GUARD).data == bytes(size)
