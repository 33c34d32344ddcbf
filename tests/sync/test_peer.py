"""Sending on a node whose links have a worker: without the lock of the node, from any thread."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter

import pytest
from kit.inside import engine_of
from kit.nodes import loopback
from kit.waiting import GUARD

import peertalk as pt
from peertalk import errors, sync

pytestmark = pytest.mark.threads


@pytest.fixture
def two():
    """A node, what it is to another one, and that one."""
    with (
        sync.Node("ada", **loopback()) as ada,
        sync.Node("bob", **loopback()) as bob,
    ):
        yield ada, ada.connect(bob.address, timeout=GUARD), bob


@pytest.fixture
def often():
    """Threads change at nearly each step."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_a_message_needs_no_turn_and_no_lock_of_its_node(two):
    """Who has the lock may wait for something else, and the control thread may just decide."""
    ada, peer, bob = two
    with ada._turning:
        turns = engine_of(ada).turns
        assert [peer.send(b"%d" % number) for number in range(1, 4)] == [1, 2, 3]
        assert peer.send_nowait(b"4") == 4 == peer.accepted and engine_of(ada).turns == turns
    assert [bob.receive(timeout=GUARD).data for _ in range(4)] == [b"1", b"2", b"3", b"4"]


def test_what_is_not_bytes_or_has_options_goes_the_long_way_and_is_counted_alike(two):
    _ada, peer, bob = two
    assert peer.send(b"1") == 1 and peer.send(bytearray(b"2")) == 2
    assert peer.send(memoryview(b"3"), timeout=GUARD) == 3 and peer.send(b"4", no_delay=True) == 4
    assert peer.send(b"5", priority=pt.Priority.HIGH) == 5 and peer.send(b"6", timeout=GUARD) == 6
    assert sorted(bob.receive(timeout=GUARD).data for _ in range(6)) == [
        b"%d" % number for number in range(1, 7)
    ]
    for wrong, error in ((7, errors.WrongType), (bytes(1 << 25), pt.MessageTooLarge)):
        with pytest.raises(error):
            peer.send(wrong)
    assert peer.accepted == 6


def test_what_another_thread_left_goes_before_and_then_the_way_is_short_again(two):
    ada, peer, bob = two
    with ada._turning:
        left = threading.Thread(target=peer.send_nowait, args=(b"1",), kwargs={"no_delay": True})
        left.start()
        left.join(GUARD)
        assert ada._turning.send(peer._remote, b"not before 1", False) == 0
    assert peer.send(b"2") == 2
    with ada._turning:
        assert peer.send(b"3") == 3
    assert [bob.receive(timeout=GUARD).data for _ in range(3)] == [b"1", b"2", b"3"]


def test_a_message_to_a_peer_that_has_gone_fails_as_ever(two):
    ada, peer, bob = two
    bob.close()
    with pytest.raises(pt.PeerTalkError):
        while True:
            peer.send(b"x", connect=False)
    assert ada._turning.send(peer._remote, b"x", True) == 0


def test_the_number_is_the_place_on_the_wire_whoever_sends_in_whatever_way(two, often):
    """A number that another message has is the outcome of another message."""
    _ada, peer, bob = two
    senders, each = 4, 400
    numbers: dict[bytes, int] = {}
    wrong = []

    def send(sender):
        try:
            sent = 0
            while sent < each:
                data = b"%d:%d" % (sender, sent)
                if sent % 100 == 99:
                    peer.send_many([b"%d:%d" % (sender, sent + more) for more in range(20)])
                    sent += 20
                    continue
                way = sent % 7
                if way == 0:
                    numbers[data] = peer.send(data, no_delay=True)
                elif way == 1:
                    numbers[data] = peer.send(data, timeout=GUARD)
                elif way == 2:
                    numbers[data] = peer.send(bytearray(data))
                else:
                    numbers[data] = peer.send(data)
                sent += 1
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(senders)]
    for thread in threads:
        thread.start()
    came = []
    give_up = time.monotonic() + GUARD
    while any(thread.is_alive() for thread in threads) or len(came) < peer.accepted:
        assert time.monotonic() < give_up and not wrong
        came += [message.data for message in bob.messages(timeout=0.01)]
    assert len(came) == peer.accepted == len(set(came)) and not wrong
    assert Counter(numbers.values()).most_common(1)[0][1] == 1
    for place, data in enumerate(came, 1):
        assert numbers.get(data, place) == place
    by_sender: dict[bytes, list[int]] = {}
    for data in came:
        sender, number = data.split(b":")
        by_sender.setdefault(sender, []).append(int(number))
    assert all(order == sorted(order) for order in by_sender.values())
    assert peer.stats().messages_sent <= peer.accepted
