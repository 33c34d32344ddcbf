"""Messages that wait to be taken: in order, each once, in memory that is counted."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from peertalk.protocol.inbox import MESSAGE_COST, Inbox
from peertalk.protocol.peer import Peer
from peertalk.protocol.waiting import Waiters

LIMIT = 1_000
PEERS = [Peer(bytes([number] * 8), name=f"peer{number}") for number in (1, 2, 2)]
"""The last two have one key: a peer, and its former life of which messages still wait."""
READ = 5 * (300 + MESSAGE_COST)
"""The most that one put brings here."""


class Link:
    """A connection, as far as an inbox looks at it."""

    pressure = 0

    def __init__(self, peer):
        self.peer = peer


class AnyHistory(RuleBasedStateMachine):
    """Putting, taking, reading one peer alone, in any order, against plain lists of messages."""

    def __init__(self):
        super().__init__()
        self.inbox = Inbox(LIMIT, self.on_room)
        self.waiting = {peer: deque() for peer in PEERS}
        self.alone = {}  # peer: its outlet
        self.links = {peer: Link(peer) for peer in PEERS}
        self.reading = set(PEERS)

    def on_room(self, outlet):
        paused, outlet.paused = outlet.paused, {}
        assert paused and (self.inbox.total <= LIMIT or not outlet.cost)
        self.reading |= {link.peer for link in paused}

    @rule(
        peer=st.sampled_from(PEERS),
        payloads=st.lists(st.binary(max_size=300), min_size=1, max_size=5),
    )
    def put(self, peer, payloads):
        if peer not in self.reading:
            return
        self.waiting[peer] += payloads
        outlet = self.inbox.put(peer, list(payloads), sum(map(len, payloads)))
        assert outlet is self.alone.get(peer, self.inbox)
        if self.inbox.must_wait(outlet):
            self.reading.discard(peer)
            outlet.pause(self.links[peer])

    def here(self, outlet):
        return [peer for peer in PEERS if self.alone.get(peer, self.inbox) is outlet]

    def outlet(self, choice):
        outlets = [self.inbox, *self.alone.values()]
        return outlets[choice % len(outlets)]

    @rule(choice=st.integers(0, 3))
    def take_one(self, choice):
        outlet = self.outlet(choice)
        got = outlet.take()
        if got is None:
            assert not any(self.waiting[peer] for peer in self.here(outlet))
        else:
            assert got[0] in self.here(outlet) and self.waiting[got[0]].popleft() == got[1]

    @rule(choice=st.integers(0, 3))
    def take_what_is_left_of_one_lot(self, choice):
        outlet = self.outlet(choice)
        got = outlet.take_lot()
        if got is None:
            assert not any(self.waiting[peer] for peer in self.here(outlet))
            return
        peer, payloads = got
        assert payloads and peer in self.here(outlet)
        assert [self.waiting[peer].popleft() for _ in payloads] == payloads

    @rule(peer=st.sampled_from(PEERS))
    def read_alone_or_no_longer(self, peer):
        if peer in self.alone:
            del self.alone[peer]
            self.inbox.release(peer, 1)
        else:
            self.alone[peer] = self.inbox.reserve(peer, 1, ended=False)

    @invariant()
    def it_costs_what_waits_and_a_link_that_is_not_read_waits_for_something(self):
        inbox, outlets = self.inbox, {self.inbox, *self.alone.values()}
        least = sum(
            len(data) + MESSAGE_COST for waiting in self.waiting.values() for data in waiting
        )
        assert least <= inbox.total == sum(outlet.cost for outlet in outlets)
        assert (inbox.total == 0) == (not any(self.waiting.values()))
        assert inbox.total <= LIMIT + len(PEERS) * READ
        for peer in set(PEERS) - self.reading:
            outlet = self.alone.get(peer, inbox)
            assert inbox.full and outlet.cost and self.links[peer] in outlet.paused

    def teardown(self):
        for outlet in [self.inbox, *self.alone.values()]:
            while outlet.take() is not None:
                pass
        for peer in self.alone:
            self.inbox.release(peer, 1)
        assert self.reading == set(PEERS) and not self.inbox and not self.inbox.full
        assert self.inbox.total == 0 and not self.inbox.queues and not self.inbox._alone


TestAnyHistory = AnyHistory.TestCase


def full_inbox(*peers, on_room=lambda outlet: None):
    """An inbox with as much from each of them as it may hold in all."""
    inbox = Inbox(LIMIT, on_room)
    for peer in peers:
        inbox.put(peer, [bytes(LIMIT)], LIMIT)
    assert inbox.full
    return inbox


def test_a_full_inbox_asks_for_more_only_when_half_is_gone():
    """Resuming a link for each message would be a system call for each message."""
    asked = []
    inbox = Inbox(10 * (MESSAGE_COST + 36), asked.append)
    for _ in range(10):
        inbox.put(PEERS[0], [bytes(36)], 36)
    assert not inbox.full
    inbox.put(PEERS[0], [bytes(36)], 36)
    inbox.pause("link")
    for _ in range(5):
        assert inbox.full and not asked and inbox.take()
    assert inbox.take() and asked == [inbox] and not inbox.full


def test_the_last_message_of_a_lot_gives_it_back():
    """Its link goes on then, not at the next take, which may be never: an answer to a PING and the
    end of the link lie behind it."""
    asked = []
    inbox = Inbox(100, asked.append)
    inbox.put(PEERS[0], [bytes(90), bytes(90)], 180)
    inbox.pause("link")
    inbox.take()
    assert inbox.full and not asked
    inbox.take()
    assert (inbox.total, asked, bool(inbox)) == (0, [inbox], False)


def test_a_lot_that_is_opened_again_is_taken_in_order_by_those_who_ask_again():
    """One who has closed his stream in the middle of a lot must not run off with the rest."""
    inbox = Inbox(LIMIT, lambda inbox: None)
    inbox.put(PEERS[0], [b"1", b"2", b"3"], 3)
    left = inbox.open().left
    assert next(left) == b"1"
    total = inbox.total
    inbox.reopen()
    assert not [*left] and inbox.total == total
    assert [inbox.take()[1] for _ in range(2)] == [b"2", b"3"]
    inbox.reopen()
    assert not inbox and inbox.total == 0


def test_empty_messages_cost_too():
    """A million empty messages are 64 MB: a bound on payload alone would be no bound."""
    inbox = Inbox(LIMIT, lambda inbox: None)
    inbox.put(PEERS[0], [b""] * (LIMIT // MESSAGE_COST + 1), 0)
    assert inbox.full


def test_the_peers_are_served_in_turn():
    """One who floods must not keep up the one message of another."""
    inbox = Inbox(LIMIT, lambda inbox: None)
    for number in range(3):
        inbox.put(PEERS[0], [b"flood %d" % number] * 2, 14)
    inbox.put(PEERS[1], [b"one"], 3)
    assert [inbox.take()[1] for _ in range(3)] == [b"flood 0", b"flood 0", b"one"]
    assert inbox.take_lot() == (PEERS[0], [b"flood 1"] * 2)


def test_who_reads_one_peer_alone_gets_what_came_before_and_leaves_the_rest_to_all():
    """In order, the half-taken list included, and nobody else gets it meanwhile."""
    inbox = Inbox(LIMIT, lambda inbox: None)
    inbox.put(PEERS[0], [b"1", b"2", b"3"], 3)
    inbox.put(PEERS[0], [b"4"], 1)
    inbox.put(PEERS[1], [b"other"], 5)
    half = inbox.open()
    assert next(half.left) == b"1"
    outlet = inbox.reserve(PEERS[0], 1, ended=False)
    assert next(half.left, None) is None
    assert inbox.take() == (PEERS[1], b"other") and inbox.take() is None
    assert outlet.take() == (PEERS[0], b"2")
    inbox.put(PEERS[0], [b"5"], 1)
    inbox.release(PEERS[0], 1)
    assert [inbox.take()[1] for _ in range(3)] == [b"3", b"4", b"5"] and inbox.take() is None


def test_a_lot_that_is_being_taken_from_stays_the_first_when_its_peer_is_read_alone():
    """And so it does on the way back. A message of a later lot must not overtake its rest."""
    inbox = Inbox(1_000_000, lambda _: None)
    for first in (0, 3):
        inbox.put("anna", [bytes([first + each]) for each in range(3)], 3)
    assert inbox.take() == ("anna", b"\0")
    own = inbox.reserve("anna", 1, ended=False)
    assert own.take() == ("anna", b"\1")
    inbox.release("anna", 1)
    assert [inbox.take()[1] for _ in range(4)] == [b"\2", b"\3", b"\4", b"\5"]


def test_whoever_empties_an_outlet_gets_more_whatever_fills_the_others():
    """A reader of one peer must not stand still for ever because nobody reads another."""
    asked = []
    inbox = full_inbox(PEERS[0], on_room=asked.append)
    outlet = inbox.reserve(PEERS[1], 1, ended=False)
    assert not inbox.must_wait(outlet) and inbox.must_wait(inbox)
    inbox.put(PEERS[1], [b"x"], 1)
    assert inbox.must_wait(outlet)
    outlet.pause(Link(PEERS[1]))
    assert outlet.take() and asked == [outlet]


def test_a_link_that_waits_is_read_again_when_its_peer_is_read_alone():
    """It waited for room that others took: now its own outlet counts, which is empty."""
    asked = []
    inbox = full_inbox(PEERS[0], PEERS[1], on_room=asked.append)
    inbox.pause(Link(PEERS[1]))
    assert inbox.take_lot()[0] is PEERS[0] and not asked
    inbox.put(PEERS[0], [bytes(LIMIT)], LIMIT)
    outlet = inbox.reserve(PEERS[1], 1, ended=False)
    assert outlet.paused and not inbox.paused and not asked, "what waits comes first"
    outlet.take()
    assert asked == [outlet]


def test_a_full_inbox_stops_whoever_has_something_there_and_nobody_else():
    """However little: a link that is read on while another has filled the inbox has no bound."""
    inbox = Inbox(1000, lambda _: None)
    full, little, nothing = (inbox.reserve(peer, 1, ended=False) for peer in PEERS[:3])
    inbox.put(PEERS[1], [b"a"], 1)
    assert not inbox.must_wait(little)
    inbox.put(PEERS[0], [bytes(1000)], 1000)
    assert inbox.must_wait(full) and inbox.must_wait(little) and not inbox.must_wait(nothing)


def test_only_a_flood_stops_links_that_have_brought_nothing():
    """An idle link that is not read hides its end; but many of them may not fill the memory."""
    inbox = full_inbox(PEERS[0])
    assert not inbox.floods()
    inbox.put(PEERS[1], [bytes(LIMIT)], LIMIT)
    assert inbox.floods() and not inbox.floods(), "told once"
    while inbox.take():
        pass
    assert not inbox.flooded


class Waiter:
    """Who waits: woken at most once, and not when gone."""

    def __init__(self):
        self.woken = self.gone = False

    def __call__(self):
        woken = not (self.woken or self.gone)
        self.woken = self.woken or woken
        return woken


def test_one_message_wakes_one_of_those_who_wait_and_the_first():
    """A thousand tasks that look for one message cost a thousand times as much."""
    inbox = Inbox(LIMIT, lambda inbox: None)
    waiters = [Waiter() for _ in range(4)]
    for waiter in waiters:
        inbox.waiters.join(waiter)
    inbox.put(PEERS[0], [b"x"], 1)
    assert [waiter.woken for waiter in waiters] == [True, False, False, False]
    inbox.put(PEERS[0], [b"y", b"z"], 2)
    assert [waiter.woken for waiter in waiters] == [True, True, True, False]


def test_one_who_was_woken_and_goes_hands_that_on():
    """Cancelled in between, it would leave a message lying beside one who waits."""
    waiters = Waiters()
    first, second, third = Waiter(), Waiter(), Waiter()
    for waiter in (first, second, third):
        waiters.join(waiter)
    waiters.wake(1)
    waiters.leave(first, woken=True)
    assert second.woken and not third.woken
    waiters.leave(third, woken=False)
    assert len(waiters) == 0


def test_one_who_is_gone_takes_nothing_from_those_behind():
    """A task that was cancelled stays in line until it runs: what comes meanwhile is the next
    one's."""
    waiters = Waiters()
    gone, here, last = Waiter(), Waiter(), Waiter()
    for waiter in (gone, here, last):
        waiters.join(waiter)
    gone.gone = True
    waiters.wake(1)
    assert here.woken and not last.woken
    waiters.leave(gone, woken=False)
    assert not last.woken and len(waiters) == 1
    waiters.wake_all()
    assert last.woken and not waiters


@given(costs=st.lists(st.integers(0, 3 * LIMIT), max_size=60))
def test_pressure_rises_at_each_quarter_and_falls_an_eighth_below_it(costs):
    """The level is what the cost says, give or take an eighth downwards; so a cost that wavers
    about a quarter is told once."""
    inbox, level = Inbox(LIMIT, lambda _: None), 0
    for cost in costs:
        inbox.cost = cost
        following = inbox.level(level)
        plain = min(3, cost * 4 // LIMIT)
        assert plain <= following <= min(3, (cost + LIMIT // 8) * 4 // LIMIT)
        assert following == plain or following <= level, "never up before its quarter is full"
        assert following >= level or cost * 8 < (2 * level - 1) * LIMIT, (
            "never down before an eighth has gone"
        )
        assert inbox.level(following) == following
        level = following
    inbox.cost = 0
    assert inbox.level(level) == 0


def test_those_who_were_told_are_remembered_until_their_level_is_another():
    """A report that is never taken back would slow a peer for ever."""
    eased = []
    inbox = Inbox(8000, lambda _: None)
    inbox.on_ease = lambda one: eased.append((one.cost, set(one.watched())))
    for _ in range(8):
        inbox.put(PEERS[0], [bytes(1000 - MESSAGE_COST)], 1000 - MESSAGE_COST)
    assert inbox.level(0) == 3
    inbox.watch("connection", 3)
    for _ in range(4):
        inbox.take()
    assert eased == [(4000, {"connection"})] and not inbox.told and inbox.level(3) == 2
    inbox.watch("connection", 2)
    while inbox.take() is not None:
        pass
    assert eased[1:] == [(2000, {"connection"})], "at two eighths; then nobody watches any more"
