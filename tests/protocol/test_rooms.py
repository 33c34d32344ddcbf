"""Discovery in rooms of hundreds: who answers whom, how seldom, and what all of it costs."""

from __future__ import annotations

import functools
import heapq
import random

import pytest
from kit.discoveries import INTERVAL, OWN, STALE, TIMEOUT, instance, kinds, make, news, packet, said

import peertalk.protocol.discovery as discovery_module
from peertalk._core import load
from peertalk._core.values import ANNOUNCE, GOODBYE, QUERY
from peertalk.protocol.discovery import (
    ANNOUNCE_INTERVAL_MAX,
    ANSWER_SPACING,
    ANSWERS_MAX,
    ANSWERS_WANTED,
    ASKERS_MAX,
    ROOM_RATE,
    SEEK_AFTER,
    SMALL_ROOM,
    SOUGHT_MAX,
    Discovery,
    Outgoing,
)
from peertalk.protocol.neighbours import STRANGERS_MAX
from peertalk.protocol.wire import Announcement, decode_announcement

# Rooms


def fill(core, discovery: Discovery, count: int, now: float) -> None:
    """So many peers announce themselves, each from a host of its own."""
    for number in range(count):
        where = f"10.1.{number // 250}.{number % 250}", 7353
        discovery.receive(packet(core, who=1000 + number), where, now)


def ask(core, discovery: Discovery, who: int, now: float, **rest) -> list[Outgoing]:
    """Peer number `who` asks from its own port; what is sent in that moment."""
    asking = packet(core, QUERY, who=who, datagram_port=7355, **rest)
    discovery.receive(asking, ("10.2.0.2", 7355), now)
    return discovery.data_to_send(now)


def test_who_asks_from_its_own_port_is_answered_there_at_once_in_a_small_room(core):
    """It can be written to from then on, and be recognised by who hears it."""
    discovery = make(core)
    fill(core, discovery, SMALL_ROOM, 0.0)
    (answer,) = ask(core, discovery, 1, 0.05)
    assert (answer.kind, answer.to) == (ANNOUNCE, ("10.2.0.2", 7355))
    assert decode_announcement(core, answer.data) == Announcement(
        ANNOUNCE, "me", 7354, instance=OWN
    )
    assert ask(core, discovery, 1, 0.1) == [], "a copy that came by another interface"
    assert len(ask(core, discovery, 1, 0.1 + ANSWER_SPACING)) == 1, "it asks again"
    assert discovery.next_timeout() > 2.0


@pytest.mark.parametrize("rest", [{}, {"datagram_port": 7356}])
def test_who_asks_from_any_other_port_is_answered_as_the_original_does(core, rest):
    """An original, an older node: what goes to the port that several programs share reaches one of
    them, and not always the one that asked."""
    discovery = make(core)
    fill(core, discovery, SMALL_ROOM, 0.0)
    for now, asking in (
        (0.5, packet(core, QUERY, who=None)),
        (1.0, packet(core, QUERY, who=1, **rest)),
    ):
        discovery.receive(asking, ("10.2.0.2", 7353), now)
        assert kinds(discovery.data_to_send(now)) == [ANNOUNCE]


def test_a_few_of_a_large_room_answer_an_original_that_asks(core):
    """Each answer goes to everybody: five hundred of them are a quarter of a million packets read,
    and anybody can forge the question."""
    room, rounds, answers = 200, 500, 0
    discovery = make(core, max_peers=4096, announce_interval=10.0, peer_timeout=1e6)
    fill(core, discovery, room, 0.0)
    asking = packet(core, QUERY, who=None)
    for number in range(rounds):
        now = 10.0 + number
        discovery.handle_timeout(now)
        discovery.data_to_send(now)  # its own, from time to time
        discovery.receive(asking, ("10.2.0.2", 7353), now)
        due = discovery.next_timeout()
        if discovery._answer_at is not None:
            assert now <= due <= now + 2 * ANSWER_SPACING
            discovery.handle_timeout(due)
            assert kinds(discovery.data_to_send(due)) == [ANNOUNCE]
            answers += 1
    expected = rounds * ANSWERS_WANTED / room
    assert 0.5 * expected < answers < 1.6 * expected


def test_in_a_large_room_chance_picks_who_answers_and_when(core):
    """So many answers as all the room gives would be too many at once, and for nothing: it hears
    the rest in ten seconds."""
    room, rounds = 200, 2000
    discovery = make(core, max_peers=4096, announce_interval=10.0, peer_timeout=1e6)
    fill(core, discovery, room, 0.0)
    delays = []
    for number in range(rounds):
        asked = 10.0 + number * 2 * ANSWER_SPACING
        sent = ask(core, discovery, 5000, asked)
        assert not [packet for packet in sent if packet.to]
        while (due := discovery.next_timeout()) <= asked + ANSWER_SPACING:
            discovery.handle_timeout(due)
            alone = [packet for packet in discovery.data_to_send(due) if packet.to]
            delays += [due - asked] * len(alone)
    expected = rounds * ANSWERS_WANTED / room
    assert 0.6 * expected < len(delays) < 1.4 * expected
    assert min(delays) < 0.25 * ANSWER_SPACING < 0.75 * ANSWER_SPACING < max(delays)


def test_what_is_announced_to_all_is_not_answered_to_each(core):
    """Those who asked hear it."""
    discovery = make(core, chance=lambda: 0.01)
    fill(core, discovery, 100, 0.0)
    assert ask(core, discovery, 1, 1.0) == []
    discovery.set_flags(8, 1.0)
    assert kinds(discovery.data_to_send(1.0)) == [ANNOUNCE]
    discovery.handle_timeout(1.0 + ANSWER_SPACING)
    assert discovery.data_to_send(1.0 + ANSWER_SPACING) == []


@pytest.mark.parametrize(("room", "alone", "to_all"), [(0, ANSWERS_MAX, 1), (1000, 0, 0)])
def test_many_who_ask_at_a_time_are_answered_by_one_announcement(core, room, alone, to_all):
    """A room that is switched on as a whole, or somebody who makes questions up; of a large room
    nobody whom chance does not pick."""
    discovery = make(core, max_peers=4096, chance=lambda: 0.5)
    fill(core, discovery, room, 0.0)
    sent = []
    for number in range(ASKERS_MAX + 1):
        sent += ask(core, discovery, number, 1.0)
    assert [packet.to for packet in sent].count(None) == to_all
    assert len(sent) == alone + to_all


def test_a_question_with_a_name_is_answered_by_that_one_only_and_always(core):
    """A program that waits for one peer should not have to wait until that one announces itself."""
    discovery = make(core, chance=lambda: 0.5)
    fill(core, discovery, 100, 0.0)
    assert ask(core, discovery, 1, 1.0, sought="somebody else") == []
    (answer,) = ask(core, discovery, 1, 1.0, sought="me")
    assert answer.to == ("10.2.0.2", 7355)
    (answer,) = ask(core, discovery, 2, 1.0, sought=OWN.hex())
    assert answer.to == ("10.2.0.2", 7355)
    discovery.receive(packet(core, QUERY, who=1, sought="somebody else"), ("10.0.0.2", 7353), 2.0)
    assert discovery.data_to_send(2.0) == []


def test_who_is_sought_is_asked_for_once_after_a_start_unless_it_is_heard_by_then(core):
    """A program may look for somebody who is not there again and again; it hears who comes."""
    discovery = make(core)
    fill(core, discovery, 1, 0.0)
    for who in ("ada", "bob", instance(1000).hex(), "bob", "x" * 32, "a\nb", "\ud800"):
        discovery.seek(who, 0.1)
    assert discovery.data_to_send(0.1) == [] and discovery.next_timeout() == SEEK_AFTER
    (query,) = said(core, discovery.data_to_send(SEEK_AFTER))
    assert (query.type, query.sought, query.instance) == (QUERY, "bob", OWN)
    discovery.seek("bob", 1.0)
    assert discovery.data_to_send(1.0) == []
    discovery.seek("carol", 1.0)
    assert [query.sought for query in said(core, discovery.data_to_send(1.0))] == ["carol"]
    for number in range(100):
        discovery.seek(f"name {number}", 1.0)
    assert len(discovery.data_to_send(1.0)) <= SOUGHT_MAX
    discovery.start(20.0)
    discovery.data_to_send(20.0)
    discovery.seek("bob", 20.0 + ANNOUNCE_INTERVAL_MAX)
    late = discovery.data_to_send(20.0 + ANNOUNCE_INTERVAL_MAX)
    assert kinds(late) == [ANNOUNCE], "all who are there have been heard by then"


def test_the_interval_grows_with_the_room_to_ten_seconds_and_no_further(core):
    """Originals and older nodes forget after 30 s."""
    discovery = make(core, max_peers=4096)
    assert discovery.interval == INTERVAL
    fill(core, discovery, 250, 0.0)
    assert discovery.interval == 250 / ROOM_RATE == INTERVAL
    fill(core, discovery, 300, 0.0)
    assert discovery.interval == 300 / ROOM_RATE
    fill(core, discovery, 3000, 0.0)
    assert discovery.interval == ANNOUNCE_INTERVAL_MAX == 10.0


def test_three_announcements_fit_into_the_silence_after_which_a_peer_is_forgotten(core):
    """Who sets a short one has a room of such nodes: they would lose each other for nothing."""
    discovery = make(core, announce_interval=0.2, peer_timeout=3.0)
    fill(core, discovery, 500, 0.0)
    assert discovery.interval == 1.0


def test_those_for_whom_the_table_has_no_place_count_for_the_size_of_the_room(core):
    """Else each of a thousand small machines would take the room for one of eight."""
    discovery = make(core, max_peers=8)
    fill(core, discovery, 300, 0.0)
    fill(core, discovery, 300, 1.0)
    assert (len(discovery), discovery.room, discovery.interval) == (8, 300, 6.0)
    discovery.receive(packet(core, GOODBYE, who=1299), ("10.1.1.49", 7353), 2.0)
    assert discovery.room == 299
    for number in range(4000):
        discovery.receive(packet(core, who=2000 + number), ("10.3.0.1", 7353), 3.0)
    assert discovery.room == 8 + STRANGERS_MAX
    news(discovery)
    discovery.handle_timeout(3.0 + STALE)
    assert discovery.room == 8
    discovery.handle_timeout(1.0 + TIMEOUT)
    assert discovery.room == 0


def test_who_may_not_have_heard_us_is_told_of_us_once_before_it_is_written_to(core):
    """A datagram from nobody that is known is nobody's."""
    discovery = make(core)
    fill(core, discovery, 1, 1.0)
    assert discovery.introduce(instance(5)) is None, "it is not known"
    introduction = discovery.introduce(instance(1000))
    assert decode_announcement(core, introduction) == Announcement(
        ANNOUNCE, "me", 7354, instance=OWN
    )
    assert discovery.introduce(instance(1000)) is None
    fill(core, discovery, 3, 1.0)
    discovery.set_flags(8, 2.0)
    assert kinds(discovery.data_to_send(2.0)) == [ANNOUNCE]
    assert discovery.introduce(instance(1001)) is None, "it has heard what went to all"
    discovery.receive(packet(core, who=1), ("10.2.0.2", 7353), 3.0)
    assert ask(core, discovery, 1, 3.0)
    assert discovery.introduce(instance(1)) is None, "it was answered"


def test_those_who_start_together_do_not_speak_together_ever_after(core):
    """Five hundred packets at one moment are more than a socket holds, each time."""
    second = []
    for seed in range(20):
        discovery = make(core, chance=random.Random(seed).random)
        first = discovery.next_timeout()
        assert 0 < first <= INTERVAL
        discovery.handle_timeout(first)
        assert kinds(discovery.data_to_send(first)) == [ANNOUNCE]
        second.append(discovery.next_timeout())
        assert second[-1] == first + INTERVAL
    assert max(second) - min(second) > INTERVAL / 2 and len(set(second)) == 20


class Hall:
    """Many discoveries on one wire without latency; packets are counted, and read in the order in
    which they came."""

    def __init__(self, core, announce_interval: float):
        self.core = core
        self.announce_interval = announce_interval
        self.everybody: list[Discovery] = []
        self.due: list[tuple[float, int]] = []
        self.when: dict[int, float] = {}
        self.now = 0.0
        self.packets = 0

    def enter(self) -> Discovery:
        """One more."""
        number = len(self.everybody)
        one = Discovery(
            self.core,
            instance=instance(number),
            name=f"node {number}",
            port=7354,
            datagram_port=7355,
            announce_interval=self.announce_interval,
            max_peers=4096,
            chance=random.Random(number).random,
        )
        self.everybody.append(one)
        one.start(self.now)
        return one

    def carry(self, number: int) -> None:
        """Whatever it has to say is heard, and what that makes others say."""
        speaking = [number]
        while speaking:
            number = speaking.pop()
            one = self.everybody[number]
            host = f"10.0.{number // 250}.{number % 250}"
            for sent in one.data_to_send(self.now):
                self.packets += 1
                where = host, 7355 if sent.kind == QUERY else 7353
                if sent.to is not None:
                    _, _, high, low = map(int, sent.to[0].split("."))
                    self.everybody[high * 250 + low].receive(sent.data, where, self.now)
                    continue
                for other in self.everybody:
                    if other is not one:
                        other.receive(sent.data, where, self.now)
                if sent.kind == QUERY:
                    speaking += [each for each in range(len(self.everybody)) if each != number]
            self.expect(number)

    def expect(self, number: int) -> None:
        """Its time is up when it says so now; what it said before no longer counts."""
        self.when[number] = due = self.everybody[number].next_timeout()
        heapq.heappush(self.due, (due, number))

    def live(self, seconds: float) -> int:
        """Pass the time; how many packets that took."""
        before, end = self.packets, self.now + seconds
        while self.due[0][0] <= end:
            due, number = heapq.heappop(self.due)
            if self.when[number] != due:
                continue
            if self.everybody[number].next_timeout() > due:  # the room has grown meanwhile
                self.expect(number)
                continue
            self.now = max(self.now, due)
            self.everybody[number].handle_timeout(self.now)
            self.carry(number)
        self.now = end
        return self.packets - before


def test_a_full_room_costs_fifty_packets_a_second_and_twenty_for_each_who_comes(
    monkeypatch, rounds
):
    """A lecture hall: before, each who came made all others announce themselves to all."""
    # the same packet is read by hundreds: to read it once is the same, and quicker
    read_once = functools.lru_cache(4096)(decode_announcement)
    monkeypatch.setattr(discovery_module, "decode_announcement", read_once)
    count = rounds(120, 500)
    # without a bound so many would speak 80 times a second: more than ROOM_RATE
    hall = Hall(load(), min(5.0, count / 80))
    for _ in range(count):
        hall.enter()
    for number in range(count):
        hall.carry(number)
    hall.live(0.5)
    assert hall.packets <= 20 * count, "all at once are no more than one after the other"
    assert all(len(one) == count - 1 for one in hall.everybody)
    assert hall.live(10.0) <= 10.0 * ROOM_RATE
    before, newcomers = hall.packets, []
    for _ in range(20):
        newcomers.append(hall.enter())
        newcomers[-1].seek("node 7", hall.now)
        hall.carry(len(hall.everybody) - 1)
        hall.live(0.5)
        assert instance(7) in newcomers[-1], "who is sought is found at once"
        assert len(newcomers[-1]) > ROOM_RATE / 4, "and a good part of the others soon"
    assert len(newcomers[0]) == count + 19, "and all of them in ten seconds"
    everybody = {instance(number) for number in range(count + 20)}
    assert all({*one, one._instance} >= everybody for one in hall.everybody[:count])
    assert hall.packets - before <= 10.0 * ROOM_RATE + 20 + 20 * 20
