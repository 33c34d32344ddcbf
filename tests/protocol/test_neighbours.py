"""The table of those who were heard, by itself: bounds, silence and news. Whole histories of it,
through packets, are tests/protocol/test_discovery.py's."""

from __future__ import annotations

import pytest

from peertalk._core.values import ANNOUNCE
from peertalk.protocol.events import LostReason
from peertalk.protocol.neighbours import (
    ADDRESSES_MAX,
    STRANGERS_MAX,
    Changed,
    Found,
    Full,
    Gone,
    Heard,
    Neighbours,
)
from peertalk.protocol.wire import Announcement

TIMEOUT, STALE = 30.0, 20.0


def table(max_peers=4, max_per_address=4):
    return Neighbours(TIMEOUT, STALE, max_peers, max_per_address)


def key(number):
    return bytes([number]) * 8


def hear(neighbours, number, now, host="10.0.0.1", name="ada", announced=1):
    announcement = Announcement(ANNOUNCE, name, 7354, 0, 1, key(number), 7355)
    neighbours.hear(key(number), announcement, host, now, announced)
    return news(neighbours)


def news(neighbours):
    found = []
    while (event := neighbours.next_event()) is not None:
        found.append(event)
    return found


@pytest.mark.parametrize(
    ("again", "told"),
    [
        ({}, Heard),
        ({"name": "bea"}, Changed),
        ({"host": "10.0.0.2"}, Changed),
    ],
    ids=["nothing new", "another name", "one more address"],
)
def test_what_is_told_of_who_is_heard_again(again, told):
    """A connection that was lost comes back on Heard; a list of peers is drawn again on Changed."""
    neighbours = table()
    assert [type(event) for event in hear(neighbours, 1, 0.0)] == [Found]
    assert [type(event) for event in hear(neighbours, 1, 1.0, **again)] == [told]


def test_nothing_is_told_of_a_connected_peer_that_says_what_it_said():
    """Its link knows better."""
    neighbours = table()
    hear(neighbours, 1, 0.0)
    neighbours.hold(key(1))
    assert hear(neighbours, 1, 1.0) == []


def test_who_is_silent_for_the_time_is_forgotten_and_time_that_was_slept_is_no_silence():
    """A laptop that was shut for an hour must not lose everybody at once."""
    neighbours = table()
    hear(neighbours, 1, 0.0)
    assert neighbours.forget_due() == TIMEOUT
    neighbours.was_deaf(3600.0)
    neighbours.forget_silent(3600.0 + TIMEOUT - 0.1)
    assert news(neighbours) == []
    neighbours.forget_silent(3600.0 + TIMEOUT)
    assert news(neighbours) == [Gone(key(1), LostReason.TIMEOUT)]
    assert not len(neighbours) and neighbours.forget_due() == float("inf")


@pytest.mark.parametrize(
    ("silent", "held", "gone"), [(STALE, False, 0), (STALE + 1, False, 1), (STALE + 1, True, 2)]
)
def test_when_there_is_no_room_the_most_silent_that_may_go_gives_way(silent, held, gone):
    """Two announcements missed; a connected one never. gone: who, 0: nobody, and the newcomer is
    refused."""
    neighbours = table(max_peers=2)
    for number in (1, 2):
        hear(neighbours, number, 0.0)
    if held:
        neighbours.hold(key(1))
    told = hear(neighbours, 3, silent, host="10.0.0.9")
    if gone:
        assert Gone(key(gone), LostReason.EVICTED) in told and neighbours.evicted == 1
        assert key(3) in neighbours and neighbours.refused == 0
    else:
        assert told == [Full("10.0.0.9", 2, False)] and neighbours.refused == 1
        assert told[0].bound == "2 peers are known (Config.max_peers)"
        assert hear(neighbours, 4, silent, host="10.0.0.9") == [], "told once"
        assert neighbours.room == 4, "who has no place is there all the same"


def test_one_address_fills_its_share_only_and_our_own_addresses_have_no_share():
    """Anybody can forge announcements from one address; our own host may run hundreds of nodes."""
    neighbours = table(max_peers=100, max_per_address=2)
    neighbours.set_own_addresses(frozenset({"10.0.0.1"}))
    for number in range(5):
        hear(neighbours, number, 0.0)
        hear(neighbours, 50 + number, 0.0, host="10.0.0.9")
    assert sum(each[0] < 50 for each in neighbours) == 5
    assert sum(each[0] >= 50 for each in neighbours) == 2


@pytest.mark.parametrize(
    ("host", "says", "known"),
    [
        ("127.0.0.1", True, True),
        ("10.0.0.1", True, True),
        ("10.0.0.9", True, False),
        ("127.0.0.1", False, False),
    ],
)
def test_a_peer_that_says_so_and_is_heard_at_an_address_of_ours_has_a_socket_of_our_host(
    host, says, known
):
    """Whoever says so elsewhere means another host. An address may be ours no more."""
    neighbours = table()
    neighbours.set_own_addresses(frozenset({"10.0.0.1"}))
    said = Announcement(ANNOUNCE, "ada", 7354, instance=key(1), local=says)
    neighbours.hear(key(1), said, host, 0.0, 1)
    assert neighbours.has_local(key(1), host) is known
    assert not neighbours.has_local(key(2), host), "nobody has said anything"
    neighbours.set_own_addresses(frozenset())
    assert neighbours.has_local(key(1), host) is (known and host == "127.0.0.1")


def test_what_strangers_cost_is_bounded():
    """A flood of forged packets must not fill the memory."""
    neighbours = table(max_peers=1)
    for number in range(STRANGERS_MAX + 10):
        instance = number.to_bytes(8, "big")
        announcement = Announcement(ANNOUNCE, "x", 1, 0, 1, instance, None)
        neighbours.hear(instance, announcement, f"10.0.{number % 9}.1", 0.0, 1)
    assert neighbours.room == 1 + STRANGERS_MAX


def test_the_address_at_which_a_peer_was_found_stays_the_first_while_it_is_heard_there():
    """One node on two networks must not flap."""
    neighbours = table()
    hear(neighbours, 1, 0.0)
    for number in range(2, 9):
        hear(neighbours, 1, 1.0, host=f"10.0.0.{number}")
    hosts = [host for host, _ in neighbours.addresses(key(1))]
    assert hosts == ["10.0.0.1", "10.0.0.8", "10.0.0.7", "10.0.0.6"] and len(hosts) == ADDRESSES_MAX
    hear(neighbours, 1, STALE + 0.5, host="10.0.0.8")
    assert neighbours.addresses(key(1))[0][0] == "10.0.0.8"


def test_a_goodbye_waits_for_the_end_of_the_connection_unless_the_peer_was_heard_since():
    """It may have overtaken what is still on the link."""
    neighbours = table()
    hear(neighbours, 1, 0.0)
    neighbours.hold(key(1))
    neighbours.depart(key(1))
    hear(neighbours, 1, 1.0)
    neighbours.release(key(1), 2.0)
    assert key(1) in neighbours
    neighbours.hold(key(1))
    neighbours.depart(key(1))
    assert news(neighbours) == []
    neighbours.release(key(1), 3.0)
    assert news(neighbours) == [Gone(key(1), LostReason.GOODBYE)]


def test_who_was_found_since_we_last_announced_ourselves_is_told_of_us_once():
    """It takes a datagram from somebody whom it does not know for nobody's."""
    neighbours = table()
    hear(neighbours, 1, 0.0, announced=7)
    assert not neighbours.introduce(key(1), 8), "it has heard the eighth"
    assert neighbours.introduce(key(1), 7) and not neighbours.introduce(key(1), 7)
    hear(neighbours, 2, 0.0, announced=7)
    neighbours.told(key(2))
    assert not neighbours.introduce(key(2), 7) and not neighbours.introduce(key(3), 7)


def test_this_machine_leaves_an_eighth_of_a_full_table_to_others():
    """A program that announced a thousand names on loopback hid all other machines."""
    neighbours = table(max_peers=16)
    neighbours.set_own_addresses(frozenset({"10.0.0.5"}))
    neighbours.hold(key(0))  # connected: it stays, though it is the most silent
    for number in range(16):
        hear(neighbours, number, number / 100, ("127.0.0.1", "10.0.0.5")[number % 2])
    assert [type(event) for event in hear(neighbours, 50, 1.0, "127.0.0.1")] == [Full]
    for number, gone in ((60, 1), (61, 2)):
        told = hear(neighbours, number, 1.0, f"10.0.1.{number}")
        assert told[0] == Gone(key(gone), LostReason.EVICTED)
        assert [type(event) for event in told[1:]] == [Found]
    assert hear(neighbours, 62, 1.0, "10.0.1.62") == [], "the eighth is taken"
    assert hear(neighbours, 51, 1.0, "127.0.0.1") == [], "the seven eighths are, too"
    assert len(neighbours) == 16 and key(0) in neighbours and neighbours.refused == 3
    neighbours.set_own_addresses(frozenset())
    assert hear(neighbours, 63, 1.0, "10.0.1.63") == [], "half of them are of others now"
