"""Discovery: everyone is found, nobody is found twice, silence ends, and strangers cannot fill the
table. The clock is a number."""

from __future__ import annotations

import itertools
import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from kit.discoveries import INTERVAL, OWN, STALE, TIMEOUT, instance, kinds, make, news, packet, said

from peertalk._core.values import ANNOUNCE, GOODBYE, QUERY
from peertalk.errors import InvalidArgument
from peertalk.protocol.discovery import ANSWER_SPACING, Discovery
from peertalk.protocol.events import LostReason
from peertalk.protocol.neighbours import ADDRESSES_MAX, Changed, Found, Full, Gone, Heard
from peertalk.protocol.wire import Announcement, encode_announcement


class DiscoveryAgainstAModel(RuleBasedStateMachine):
    """A dictionary of who was heard when, and a clock: what discovery says must follow from them,
    whatever strangers send."""

    HOSTS = ("10.0.0.2", "10.0.0.3", "10.0.0.4")
    MAX_PEERS, MAX_PER_ADDRESS = 5, 3
    core = None

    @initialize()
    def start(self):
        self.now = 0.0
        self.discovery = make(
            self.core, max_peers=self.MAX_PEERS, max_per_address=self.MAX_PER_ADDRESS
        )
        self.known: dict[object, float] = {}  # key -> last heard
        self.source: dict[object, str] = {}
        self.held: set[object] = set()
        self.departed: set[object] = set()
        self.last_announce = 0.0
        self.refused = 0
        self.told_full: set[bool] = set()

    def forget(self, key):
        for table in (self.known, self.source):
            table.pop(key, None)
        self.departed.discard(key)

    def hear_all_events(self) -> list[object]:
        """Check each event against what is known; give them back, but for what is told once for
        each bound."""
        events = news(self.discovery)
        full = {event.one_address for event in events if isinstance(event, Full)}
        assert not full & self.told_full
        self.told_full |= full
        events = [event for event in events if not isinstance(event, Full)]
        for event in events:
            match event:
                case Found(key):
                    assert key not in self.known
                    self.known[key] = self.now
                case Changed(key) | Heard(key):
                    assert key in self.known
                case Gone(key):
                    assert key in self.known
                    assert key not in self.held
                    self.forget(key)
        return events

    who = st.integers(0, 6)
    hosts = st.sampled_from(HOSTS)

    @rule(
        number=who | st.none(),
        host=hosts,
        name=st.sampled_from(["ada", "bob"]),
        port=st.sampled_from([1, 2]),
    )
    def announce(self, number, host, name, port):
        key = (host, port) if number is None else instance(number)
        before = dict(self.known)
        crowd = [one for one in before if self.source[one] == host]
        room_here, room = len(crowd) < self.MAX_PER_ADDRESS, len(before) < self.MAX_PEERS
        self.discovery.receive(
            packet(self.core, who=number, name=name, port=port), (host, 7353), self.now
        )
        events = self.hear_all_events()
        if key in before:
            # one that is connected is there anyhow; of any other it is news each time
            nothing_new = [] if key in self.held else [Heard]
            assert [type(event) for event in events] in ([Changed], nothing_new)
            assert all(event.heard_at == (host, port) for event in events)
            self.known[key] = self.now
            self.departed.discard(key)
            return
        if room_here and room:
            assert [type(event) for event in events] == [Found]
        elif events:
            gone, found = events
            assert (gone.reason, found.key) == (LostReason.EVICTED, key)
            rivals = [one for one in (crowd if not room_here else before) if one not in self.held]
            assert gone.key in rivals
            assert before[gone.key] == min(before[one] for one in rivals)
            assert self.now - before[gone.key] > STALE
        else:
            self.refused += 1
            rivals = [one for one in (crowd if not room_here else before) if one not in self.held]
            assert all(self.now - before[one] <= STALE for one in rivals)
        if key in self.known:
            self.source[key] = host

    @rule(number=who | st.none(), host=hosts, port=st.sampled_from([1, 2]))
    def say_goodbye(self, number, host, port):
        key = (host, port) if number is None else instance(number)
        expected = (
            [Gone(key, LostReason.GOODBYE)] if key in self.known and key not in self.held else []
        )
        if key in self.known and key in self.held:
            self.departed.add(key)
        self.discovery.receive(
            packet(self.core, GOODBYE, who=number, port=port), (host, 7353), self.now
        )
        assert self.hear_all_events() == expected

    @rule(number=who, host=hosts)
    def ask(self, number, host):
        self.discovery.receive(packet(self.core, QUERY, who=number), (host, 7353), self.now)
        assert self.hear_all_events() == []

    @rule(kind=st.sampled_from([ANNOUNCE, QUERY, GOODBYE]), host=hosts)
    def hear_ourselves(self, kind, host):
        before = self.discovery.statistics()
        data = encode_announcement(self.core, Announcement(kind, "me", 7354, instance=OWN))
        self.discovery.receive(data, (host, 7353), self.now)
        assert self.hear_all_events() == []
        assert self.discovery.statistics() == before._replace(own=before.own + 1)

    @rule(
        number=who,
        host=hosts,
        kind=st.sampled_from([ANNOUNCE, GOODBYE]),
        damage=st.integers(0, 14 * 8 - 1),
        cut=st.booleans(),
    )
    def hear_noise(self, number, host, kind, damage, cut):
        before = self.discovery.statistics()
        data = bytearray(packet(self.core, kind, who=number, name=""))
        if cut:
            del data[damage // 8 :]
        else:
            data[damage // 8] ^= 1 << damage % 8
        self.discovery.receive(bytes(data), (host, 7353), self.now)
        assert self.hear_all_events() == []
        assert self.discovery.statistics() == before._replace(malformed=before.malformed + 1)

    @rule(number=who)
    def hold(self, number):
        self.discovery.hold(instance(number))
        self.held.add(instance(number))

    @rule(number=who)
    def release(self, number):
        key = instance(number)
        self.discovery.release(key, self.now)
        if key in self.held and key in self.known:
            self.known[key] = self.now
        self.held.discard(key)
        expected = [Gone(key, LostReason.GOODBYE)] if key in self.departed else []
        assert self.hear_all_events() == expected

    @rule(quarters=st.integers(0, 150))
    def wait(self, quarters):
        """Live through the time as a loop does: from one deadline to the next."""
        end = self.now + quarters / 4
        for _ in range(1000):
            due = self.discovery.next_timeout()
            if due > end:
                break
            self.now = max(self.now, due)
            self.discovery.handle_timeout(self.now)
            silent = {
                key
                for key, heard in self.known.items()
                if key not in self.held and heard + TIMEOUT <= self.now
            }
            events = self.hear_all_events()
            assert {event.key for event in events} == silent
            assert all(event.reason is LostReason.TIMEOUT for event in events)
            self.send()
        else:
            raise AssertionError("next_timeout() does not move on")
        self.now = end

    @rule()
    def send(self):
        for kind in kinds(self.discovery.data_to_send(self.now)):
            assert kind == ANNOUNCE
            self.last_announce = self.now

    @invariant()
    def table_is_what_was_heard(self):
        discovery = self.discovery
        assert set(discovery) == set(self.known)
        assert len(discovery) == len(self.known) == discovery.statistics().peers <= self.MAX_PEERS
        for host in self.HOSTS:
            assert sum(source == host for source in self.source.values()) <= self.MAX_PER_ADDRESS
        assert discovery.statistics().refused == self.refused
        assert all(1 <= len(discovery.addresses(key)) <= ADDRESSES_MAX for key in self.known)

    @invariant()
    def deadlines_are_kept(self):
        due = self.discovery.next_timeout()
        assert due <= self.last_announce + INTERVAL
        assert all(
            due <= heard + TIMEOUT for key, heard in self.known.items() if key not in self.held
        )
        assert self.now <= self.last_announce + INTERVAL


def test_discovery_does_what_follows_from_who_was_heard_when(core):
    """Bounds, expiry, eviction, holding, goodbyes, noise and our own echo, in any order and at any
    time."""
    kind = type("Machine", (DiscoveryAgainstAModel,), {"core": core})
    run_state_machine_as_test(kind)


def test_start_announces_and_asks_and_stop_says_goodbye(core):
    """Others learn of us at once, we of them, and nobody waits for our silence to end."""
    discovery = Discovery(
        core,
        instance=OWN,
        name="me",
        port=7354,
        datagram_port=7355,
        flags=2,
        chance=random.Random(1).random,
    )
    assert discovery.data_to_send(0.0) == []
    assert discovery.next_timeout() is None
    discovery.start(3.0)
    sent = said(core, discovery.data_to_send(3.0))
    assert sent == [Announcement(kind, "me", 7354, 2, 3, OWN, 7355) for kind in (ANNOUNCE, QUERY)]
    assert discovery.data_to_send(3.0) == []
    discovery.stop()
    discovery.stop()
    assert kinds(discovery.data_to_send(4.0)) == [GOODBYE]
    assert discovery.data_to_send(100.0) == []
    assert discovery.next_timeout() is None


def test_after_stop_nothing_is_heard_or_answered(core):
    """An answer after the goodbye would bring us back to life in everybody's table."""
    discovery = make(core)
    discovery.receive(packet(core, QUERY, who=1), ("10.0.0.2", 7353), 0.1)
    discovery.stop()
    discovery.receive(packet(core, QUERY, who=1), ("10.0.0.2", 7353), 1.0)
    discovery.receive(packet(core, who=1), ("10.0.0.2", 7353), 1.0)
    discovery.handle_timeout(50.0)
    assert kinds(discovery.data_to_send(50.0)) == [GOODBYE]
    assert news(discovery) == []
    discovery.start(60.0)
    assert kinds(discovery.data_to_send(60.0)) == [ANNOUNCE, QUERY]
    discovery.start(70.0)
    discovery.stop()
    assert kinds(discovery.data_to_send(70.0)) == [GOODBYE]


@given(asked=st.lists(st.integers(0, 40), max_size=60))
def test_queries_are_answered_soon_and_never_closer_than_the_spacing(core, asked):
    """Each asker gets an answer, and a flood of questions does not become a flood of answers."""
    discovery = make(core, announce_interval=10.0)
    answers = [0.0]
    for ask in [*sorted(ask / 20 for ask in asked), 9.0]:
        while discovery.next_timeout() < ask:
            now = discovery.next_timeout()
            answers += [now] * len(discovery.data_to_send(now))
        discovery.receive(packet(core, QUERY, who=1), ("10.0.0.2", 7353), ask)
        answers += [ask] * len(discovery.data_to_send(ask))
        pending = discovery.next_timeout()
        assert answers[-1] == ask or pending <= ask + ANSWER_SPACING + 1e-9
    assert all(
        later - earlier >= ANSWER_SPACING - 1e-9 for earlier, later in itertools.pairwise(answers)
    )
    assert len(discovery) == 0


def test_hearing_a_stranger_makes_nobody_send(core):
    """Otherwise a hundred peers would answer each other's announcements for ever."""
    discovery = make(core)
    for number in range(10):
        discovery.receive(packet(core, who=number), ("10.0.0.2", 7353), 0.1)
    assert discovery.data_to_send(0.1) == []


def test_two_nodes_find_each_other_whichever_starts_first(core):
    """The later one asks, and the earlier one answers."""
    first = make(core)
    second = Discovery(
        core, instance=instance(1), name="late", port=7355, chance=random.Random(1).random
    )
    second.start(2.0)
    for packet_sent in second.data_to_send(2.0):
        first.receive(packet_sent.data, ("10.0.0.2", 7353), 2.0)
    for packet_sent in first.data_to_send(2.0):
        second.receive(packet_sent.data, ("10.0.0.1", 7353), 2.0)
    assert news(first) == [
        Found(
            instance(1),
            Announcement(ANNOUNCE, "late", 7355, instance=instance(1)),
            ("10.0.0.2", 7355),
            ("10.0.0.2", 7355),
        )
    ]
    assert [event.key for event in news(second)] == [OWN]


def test_a_peer_is_forgotten_exactly_when_its_silence_is_long_enough(core):
    """Not a moment before: two of its announcements may be lost on the way."""
    discovery = make(core)
    discovery.receive(packet(core, who=1), ("10.0.0.2", 7353), 1.0)
    news(discovery)
    discovery.handle_timeout(1.0 + TIMEOUT - 0.001)
    assert news(discovery) == []
    discovery.receive(packet(core, who=1), ("10.0.0.2", 7353), 2.0 + TIMEOUT)
    discovery.handle_timeout(1.0 + 2 * TIMEOUT)
    assert [type(event) for event in news(discovery)] == [Heard]
    discovery.handle_timeout(2.0 + 2 * TIMEOUT)
    assert news(discovery) == [Gone(instance(1), LostReason.TIMEOUT)]
    assert discovery.addresses(instance(1)) == []


def test_who_is_heard_again_does_not_delay_the_end_of_who_is_not(core):
    """The line is kept in the order of the last hearing, not of the first."""
    discovery = make(core)
    for now, number in ((0.0, 1), (1.0, 2), (10.0, 1)):
        discovery.receive(packet(core, who=number), ("10.0.0.2", 7353), now)
    news(discovery)
    discovery.handle_timeout(1.0 + TIMEOUT)
    assert news(discovery) == [Gone(instance(2), LostReason.TIMEOUT)]


def test_a_host_that_is_full_gives_up_its_own_most_silent_peer_and_never_a_connected_one(core):
    """Otherwise one host could push out the peers of another, or end what is in use."""
    discovery = make(core, max_per_address=3)
    discovery.receive(packet(core, who=1), ("10.0.0.9", 7353), 0.0)
    for now, number in ((1.0, 2), (2.0, 3), (3.0, 4), (4.0, 3)):
        discovery.receive(packet(core, who=number), ("10.0.0.2", 7353), now)
    discovery.hold(instance(2))
    news(discovery)
    for now, number in ((23.5, 5), (24.5, 6)):
        discovery.receive(packet(core, who=number), ("10.0.0.2", 7353), now)
    assert [event.key for event in news(discovery) if isinstance(event, Gone)] == [
        instance(4),
        instance(3),
    ]
    discovery.receive(packet(core, who=7), ("10.0.0.2", 7353), 24.7)
    assert set(discovery) == {instance(number) for number in (1, 2, 5, 6)}
    assert discovery.statistics().refused == 1


def test_a_connected_peer_outlives_silence_and_goodbye(core):
    """Its link knows better, and a forged goodbye must not end a conversation."""
    discovery = make(core)
    discovery.receive(packet(core, who=1), ("10.0.0.2", 7353), 0.0)
    news(discovery)
    discovery.hold(instance(1))
    discovery.handle_timeout(1000.0)
    discovery.receive(packet(core, GOODBYE, who=1), ("10.0.0.2", 7353), 1000.0)
    discovery.receive(packet(core, who=1), ("10.0.0.2", 7353), 1001.0)
    discovery.release(instance(1), 1002.0)
    discovery.handle_timeout(1002.0 + TIMEOUT - 0.001)
    assert news(discovery) == []
    discovery.handle_timeout(1002.0 + TIMEOUT)
    assert news(discovery) == [Gone(instance(1), LostReason.TIMEOUT)]


def test_a_goodbye_that_overtook_the_end_of_the_link_counts_when_the_link_ends(core):
    """A leaving peer closes and says goodbye in one breath; which of the two is read first is
    chance, and it must not stay listed for 30 s."""
    discovery = make(core)
    discovery.receive(packet(core, who=1), ("10.0.0.2", 7353), 0.0)
    news(discovery)
    discovery.hold(instance(1))
    discovery.receive(packet(core, GOODBYE, who=1), ("10.0.0.2", 7353), 1.0)
    assert news(discovery) == []
    discovery.release(instance(1), 1.1)
    assert news(discovery) == [Gone(instance(1), LostReason.GOODBYE)]


def test_a_peer_that_was_held_before_it_was_heard_is_held_all_the_same(core):
    """It dialled us first; its announcement came later."""
    discovery = make(core)
    discovery.hold(instance(1))
    discovery.receive(packet(core, who=1), ("10.0.0.2", 7353), 0.0)
    discovery.handle_timeout(1000.0)
    assert [type(event) for event in news(discovery)] == [Found]
    assert instance(1) in discovery
    discovery.hold(instance(2))
    discovery.release(instance(2), 1000.0)
    discovery.receive(packet(core, who=2), ("10.0.0.2", 7353), 1000.0)
    discovery.handle_timeout(1000.0 + TIMEOUT)
    assert instance(2) not in discovery


def test_what_a_known_peer_changes_is_reported_once(core):
    """The original ignores it (quirk Q14), and dials the old port for ever."""
    discovery = make(core)
    for now, changed in enumerate(
        [{}, {}, {"name": "bob"}, {"name": "bob"}, {"port": 9}, {"flags": 4}, {"datagram_port": 3}]
    ):
        discovery.receive(packet(core, who=1, **changed), ("10.0.0.2", 7353), float(now))
    assert [type(event) for event in news(discovery)] == [Found]
    discovery.receive(packet(core, who=1, name="bob", port=9), ("10.0.0.2", 7353), 8.0)
    discovery.receive(packet(core, who=1, name="bob", port=9), ("10.0.0.2", 7353), 9.0)
    latest = Announcement(ANNOUNCE, "bob", 9, instance=instance(1))
    here = ("10.0.0.2", 9)
    assert news(discovery) == [Changed(instance(1), latest, here, here)]
    discovery.receive(packet(core, who=1, name="bob", port=9), ("10.0.0.2", 7353), 10.0)
    assert news(discovery) == [Heard(instance(1), latest, here, here)], "it is there, as it was"
    assert discovery.addresses(instance(1)) == [("10.0.0.2", 9)]
    assert discovery.announcement(instance(1)) == latest


def test_one_more_address_of_a_peer_is_told_once_and_moves_nothing(core):
    """Its datagrams may come from there; where it is dialled stays the same."""
    discovery = make(core)
    for now in range(6):
        for host in ("10.0.0.2", "192.168.1.2", "172.16.0.2")[: 1 + now // 2]:
            discovery.receive(packet(core, who=1), (host, 7353), float(now))
        told = [(type(event), event.address[0]) for event in news(discovery)]
        kind = Heard if now % 2 else Changed if now else Found
        assert told == [(kind, "10.0.0.2")]
    assert {host for host, _ in discovery.addresses(instance(1))} == {
        "10.0.0.2",
        "192.168.1.2",
        "172.16.0.2",
    }


def test_a_classic_peer_is_known_by_address_and_port(core):
    """It has nothing else; two of them on one host differ by port, and their names may be the
    same."""
    discovery = make(core)
    for host, port in (("10.0.0.2", 1), ("10.0.0.2", 2), ("10.0.0.3", 1)):
        for now in (0.0, 1.0):
            discovery.receive(packet(core, port=port), (host, 7353), now)
    assert [event.key for event in news(discovery)] == [
        ("10.0.0.2", 1),
        ("10.0.0.2", 2),
        ("10.0.0.3", 1),
    ]


def test_a_peer_on_two_networks_keeps_the_address_that_it_was_found_at(core):
    """Flapping between them would open a link on each; when the first falls silent the other takes
    over, and that is told."""
    discovery = make(core)
    for now in range(0, 60, 5):
        hosts = ("10.0.0.2", "192.168.1.2") if now <= 10 else ("192.168.1.2",)
        for host in hosts:
            discovery.receive(packet(core, who=1), (host, 7353), float(now))
        first = "10.0.0.2" if now <= 10 + STALE else "192.168.1.2"
        assert discovery.addresses(instance(1))[0] == (first, 7354)
        assert len(discovery.addresses(instance(1))) == 2
    (found,) = news(discovery)
    assert found.address == ("192.168.1.2", 7354)


def test_at_most_four_addresses_are_remembered_and_the_first_is_safe_from_strangers(core):
    """A forger who knows an instance id can add addresses, but cannot take the place of the one
    that works."""
    discovery = make(core)
    discovery.receive(packet(core, who=1), ("10.0.0.2", 7353), 0.0)
    for number in range(100):
        discovery.receive(packet(core, who=1), (f"10.6.6.{number}", 7353), number / 10)
    addresses = [host for host, _ in discovery.addresses(instance(1))]
    assert addresses == ["10.0.0.2", "10.6.6.99", "10.6.6.98", "10.6.6.97"]


def test_a_peer_that_does_not_listen_has_no_address_to_dial(core):
    """Port 0 is legal on the wire; dialling it is not."""
    discovery = make(core)
    discovery.receive(packet(core, who=1, port=0), ("10.0.0.2", 7353), 0.0)
    assert instance(1) in discovery
    assert discovery.addresses(instance(1)) == []


def test_a_flood_of_forged_announcements_costs_bounded_memory_even_if_no_event_is_read(core):
    """Anyone on the network can send them, each from another address, with another id, and take
    them back."""
    discovery = make(core, max_peers=64, max_per_address=8)
    assert len(news(discovery)) == 0
    forged = [
        packet(core, kind, who=number)
        for number in range(200)
        for kind in (ANNOUNCE, GOODBYE, ANNOUNCE)
    ]

    def flood(start: float) -> None:
        for number, data in enumerate(forged):
            discovery.receive(
                data, (f"10.9.{number % 7}.{number % 250}", 7353), start + number / 10
            )

    flood(0.0)
    tracemalloc.start()
    try:
        flood(100.0)
        before, _ = tracemalloc.get_traced_memory()
        for start in range(200, 600, 100):
            flood(float(start))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000
    assert len(discovery) <= 64
    assert len(news(discovery)) <= 2 * 64
    assert discovery.statistics().refused > 0


@pytest.mark.parametrize("ours", ["127.0.0.1", "127.8.8.8", "10.0.0.5"])
def test_a_host_of_hundreds_of_nodes_knows_them_all_and_other_hosts_keep_their_bound(core, ours):
    """No other machine can send from our addresses, so nobody's flood comes from there."""
    discovery = make(core, max_peers=1000)
    discovery.set_own_addresses(frozenset({"10.0.0.5", "10.0.1.5"}))
    for number in range(200):
        for host in (ours, "10.0.0.6"):
            who = number if host == ours else 1000 + number
            discovery.receive(packet(core, who=who), (host, 7353), 0.0)
    assert all(instance(number) in discovery for number in range(200))
    assert (len(discovery), discovery.statistics().refused) == (264, 136)
    assert [event for event in news(discovery) if isinstance(event, Full)] == [
        Full("10.0.0.6", 64, one_address=True)
    ]
    discovery.set_own_addresses(frozenset())
    discovery.receive(packet(core, who=5000), (ours, 7353), 1.0)
    assert (instance(5000) in discovery) is ours.startswith("127.")


def test_one_host_can_fill_only_its_share_and_is_heard_again_when_the_forged_fall_silent(core):
    """Others must still be found during the flood, and a real peer on that host soon after it."""
    discovery = make(core, max_per_address=64)
    for number in range(1000):
        discovery.receive(packet(core, who=number), ("10.6.6.6", 7353), 0.0)
    assert (len(discovery), discovery.statistics().refused) == (64, 936)
    discovery.receive(packet(core, who=5000), ("10.0.0.2", 7353), 0.0)
    assert instance(5000) in discovery
    discovery.receive(packet(core, who=6000), ("10.6.6.6", 7353), STALE)
    assert instance(6000) not in discovery
    news(discovery)
    discovery.receive(packet(core, who=6000), ("10.6.6.6", 7353), STALE + 0.1)
    assert instance(6000) in discovery
    assert [getattr(event, "reason", None) for event in news(discovery)] == [
        LostReason.EVICTED,
        None,
    ]
    assert discovery.statistics().evicted == 1


def test_news_that_nobody_read_in_time_is_replaced_and_not_heaped_up(core):
    """A peer that came and went in between was never there; one that went and came back is told as
    both."""
    discovery = make(core)
    where = ("10.0.0.2", 7353)
    discovery.receive(packet(core, who=1), where, 0.0)
    discovery.receive(packet(core, GOODBYE, who=1), where, 0.0)
    assert news(discovery) == []
    discovery.receive(packet(core, who=1), where, 0.0)
    news(discovery)
    for kind in (GOODBYE, ANNOUNCE, GOODBYE, ANNOUNCE):
        discovery.receive(packet(core, kind, who=1, name="back"), where, 1.0)
    assert [type(event) for event in news(discovery)] == [Gone, Found]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_peers": 0},
        {"max_per_address": 0},
        {"announce_interval": 0.0},
        {"peer_timeout": -1.0},
        {"name": "x" * 32},
    ],
)
def test_a_discovery_that_could_not_work_is_refused(core, wrong):
    """Config has narrower bounds; this is the last line."""
    with pytest.raises(InvalidArgument):
        make(core, **wrong)


def test_flags_change_what_is_announced_at_once_but_not_more_than_five_times_a_second(core):
    """An application may set them with each move of a mouse; the network hears the last."""
    discovery = make(core, flags=1)
    discovery.set_flags(1, 1.0)
    assert discovery.data_to_send(1.0) == [], "nothing new"
    discovery.set_flags(0x0102, 1.0)
    (announcement,) = said(core, discovery.data_to_send(1.0))
    assert announcement.flags == 0x0102
    for number in range(50):
        discovery.set_flags(number << 8, 1.0 + number / 1000)
        assert discovery.data_to_send(1.0 + number / 1000) == []
    assert discovery.next_timeout() == pytest.approx(1.0 + ANSWER_SPACING)
    (announcement,) = said(core, discovery.data_to_send(1.0 + ANSWER_SPACING))
    assert announcement.flags == 49 << 8
    with pytest.raises(InvalidArgument):
        discovery.set_flags(0x10000, 2.0)
    discovery.stop()
    discovery.set_flags(8, 3.0)
    assert [each.flags for each in said(core, discovery.data_to_send(3.0))] == [49 << 8], (
        "the queued GOODBYE alone"
    )


def test_a_classic_peer_that_announces_another_name_or_flags_is_heard(core):
    """The MacTCP build repeats both in each packet and changes them; its key stays (address,
    port)."""
    discovery = make(core)
    discovery.receive(packet(core, name="Mac", flags=2), ("10.0.0.9", 7353), 1.0)
    discovery.receive(packet(core, name="Mac SE", flags=3), ("10.0.0.9", 7353), 16.0)
    discovery.receive(packet(core, name="Mac SE", flags=3), ("10.0.0.9", 7353), 31.0)
    assert [
        (type(event), event.announcement.name, event.announcement.flags)
        for event in news(discovery)
    ] == [(Found, "Mac SE", 3)]
    discovery.receive(packet(core, name="Mac SE", flags=2), ("10.0.0.9", 7353), 46.0)
    assert [(type(event), event.announcement.flags) for event in news(discovery)] == [(Changed, 2)]


def test_who_asks_is_not_taken_for_somebody_who_is_there(core):
    """The original records nobody by a QUERY either: it may come from a program that only looks."""
    discovery = make(core)
    discovery.receive(packet(core, kind=QUERY, name="looker"), ("10.0.0.9", 7353), 1.0)
    assert len(discovery) == 0 and news(discovery) == []
    assert kinds(discovery.data_to_send(1.0)) == [ANNOUNCE]


def test_time_in_which_nobody_listened_is_nobodys_silence(core):
    """A program that computes for a minute, or a laptop that is shut: its neighbours spoke all the
    time, and what it missed it cannot hold against them."""
    discovery = make(core)
    for who in range(3):
        discovery.receive(packet(core, who=who), (f"10.0.0.{who + 2}", 7353), 1.0 + who)
    news(discovery)
    discovery.was_deaf(100.0)
    assert not discovery.forgets(103.0 + TIMEOUT - 2.1)
    discovery.handle_timeout(103.0 + TIMEOUT - 2.1)
    assert news(discovery) == [] and len(discovery) == 3
    assert discovery.forgets(101.0 + TIMEOUT)
    discovery.receive(packet(core, who=0), ("10.0.0.2", 7353), 101.0 + TIMEOUT)
    assert not discovery.forgets(101.0 + TIMEOUT), "it was there in time, only unread"
    discovery.handle_timeout(103.0 + TIMEOUT)
    *gone, heard = news(discovery)
    assert gone == [
        Gone(instance(1), LostReason.TIMEOUT),
        Gone(instance(2), LostReason.TIMEOUT),
    ]
    assert isinstance(heard, Heard) and heard.key == instance(0)
    assert list(discovery) == [instance(0)], "still in the order of who was heard last"


def test_each_announcement_of_one_that_is_not_connected_is_news_and_tells_where_it_came_from(core):
    """A connection comes back when its peer is heard: an announcement that says nothing new is the
    only sign of that. The address that it came from works now; the best known may not."""
    discovery, here, there = make(core), ("10.0.0.2", 7353), ("10.0.0.9", 7353)

    def heard():
        return [(type(event), event.address[0], event.heard_at[0]) for event in news(discovery)]

    discovery.receive(packet(core, who=0), here, 1.0)
    assert heard() == [(Found, "10.0.0.2", "10.0.0.2")]
    for now in (2.0, 3.0):
        discovery.receive(packet(core, who=0), here, now)
        discovery.receive(packet(core, QUERY, who=0), here, now)
        assert heard() == [(Heard, "10.0.0.2", "10.0.0.2")]
    discovery.receive(packet(core, who=0), there, 4.0)
    assert heard() == [(Changed, "10.0.0.2", "10.0.0.9")], "the first stays the best for a while"
    discovery.receive(packet(core, who=0), there, 5.0)
    assert heard() == [(Heard, "10.0.0.2", "10.0.0.9")]
    discovery.hold(instance(0))
    discovery.receive(packet(core, who=0), there, 6.0)
    assert heard() == [], "it is connected"
    discovery.release(instance(0), 7.0)
    discovery.receive(packet(core, who=0), there, 8.0)
    assert heard() == [(Heard, "10.0.0.2", "10.0.0.9")]
    discovery.handle_timeout(100.0)
    assert [type(event) for event in news(discovery)] == [Gone]
    discovery.receive(packet(core, who=0), here, 101.0)
    assert heard() == [(Found, "10.0.0.2", "10.0.0.2")], "forgotten, and there again"


def test_a_held_peer_was_heard_within_the_time_in_which_it_was(core):
    """A link that is dead while its peer is heard can be made anew at once: the network is back."""
    discovery = make(core)
    assert not discovery.heard_within(instance(0), 100.0, 1.0)
    discovery.receive(packet(core, who=0), ("10.0.0.2", 7353), 10.0)
    discovery.hold(instance(0))
    assert discovery.heard_within(instance(0), 5.0, 15.0)
    assert not discovery.heard_within(instance(0), 5.0, 15.1)
    discovery.was_deaf(20.0)
    assert discovery.heard_within(instance(0), 5.0, 35.0)
