"""Messages that wait to be taken: in order, each once, in memory that is counted."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from peertalk.protocol.peer import Peer
from peertalk.runtime.inbox import MESSAGE_COST, Inbox

LIMIT = 1_000
PEERS = [Peer(bytes([number] * 8), name=f"peer{number}") for number in (1, 2, 3)]


def cost_of(payloads):
    return sum(map(len, payloads)) + MESSAGE_COST * len(payloads)


class AnyHistory(RuleBasedStateMachine):
    """Putting and taking in any order against a plain list of messages."""

    def __init__(self):
        super().__init__()
        self.signals = []
        self.inbox = Inbox(LIMIT, self.signals.append)
        self.waiting = deque()  # (peer, payload), as they were put
        self.lots = deque()  # [messages left, cost]
        self.full = False

    def taken(self, count):
        """The model after count messages were taken, all of one lot."""
        while self.lots and (self.lots[0][0] == 0):
            self.lots.popleft()
        for _ in range(count):
            self.waiting.popleft()
        if count:
            assert self.lots[0][0] >= count
            self.lots[0][0] -= count

    def settle(self):
        """What the inbox has told since."""
        for told in self.signals:
            assert told is self.inbox and self.full
            self.full = False
        assert len(self.signals) <= 1
        if self.signals:
            assert self.inbox.cost * 2 <= LIMIT or self.inbox.cost == 0
        self.signals.clear()

    @rule(peer=st.sampled_from(PEERS), payloads=st.lists(st.binary(max_size=300), max_size=5))
    def put(self, peer, payloads):
        was_full = self.inbox.put(peer, list(payloads), sum(map(len, payloads)))
        self.waiting += [(peer, payload) for payload in payloads]
        self.lots.append([len(payloads), cost_of(payloads)])
        self.full = self.full or self.inbox.cost > LIMIT
        assert was_full == self.full
        self.settle()

    @rule()
    def take_one(self):
        expected = self.waiting[0] if self.waiting else None
        assert self.inbox.take() == expected
        self.taken(0 if expected is None else 1)
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule()
    def take_what_is_left_of_one_lot(self):
        self.taken(0)
        count = self.lots[0][0]
        peer, payloads = self.inbox.take_lot()
        assert [(peer, payload) for payload in payloads] == [
            self.waiting[index] for index in range(count)
        ] and payloads
        self.taken(count)
        self.settle()

    @invariant()
    def cost_is_that_of_what_was_not_used_up(self):
        left = sum(cost for count, cost in self.lots if count)
        assert left <= self.inbox.cost <= sum(cost for _, cost in self.lots)

    def teardown(self):
        while self.waiting:
            self.take_one()
        assert self.inbox.take() is None and self.inbox.take_lot() is None
        self.settle()
        assert self.inbox.cost == 0 and not self.inbox and not self.full


TestAnyHistory = AnyHistory.TestCase


def test_a_full_inbox_asks_for_more_only_when_half_is_gone():
    """Resuming a link for each message would be a system call for each message."""
    asked = []
    inbox = Inbox(10 * (MESSAGE_COST + 36), asked.append)
    for _ in range(10):
        assert not inbox.put(PEERS[0], [bytes(36)], 36)
    assert inbox.put(PEERS[0], [bytes(36)], 36)
    assert inbox.put(PEERS[0], [b""], 0), "full until there is room again, however little comes"
    for _ in range(7):
        assert not asked and inbox.take()
    assert inbox.take() and asked == [inbox]
    assert not inbox.put(PEERS[0], [b""], 0)


def test_empty_messages_cost_too():
    """A million empty messages are 64 MB: a bound on payload alone would be no bound."""
    inbox = Inbox(LIMIT, lambda inbox: None)
    assert inbox.put(PEERS[0], [b""] * (LIMIT // MESSAGE_COST + 1), 0)


def test_an_arrival_is_told_after_the_message_is_there():
    """Whoever is woken looks at once."""
    inbox = Inbox(LIMIT, lambda inbox: None)
    seen = []
    inbox.on_arrival = lambda: seen.append(inbox.take())
    inbox.put(PEERS[1], [b"one"], 3)
    assert seen == [(PEERS[1], b"one")]


def test_consumers_that_iterate_a_lot_share_it():
    """Each message goes to one of them; none runs off with what it does not use."""
    inbox = Inbox(LIMIT, lambda inbox: None)
    inbox.put(PEERS[0], [b"1", b"2", b"3", b"4"], 4)
    first = inbox.current or inbox.advance()
    assert next(first.left) == b"1"
    assert inbox.take() == (PEERS[0], b"2")
    assert inbox.current is first and next(first.left) == b"3"
    assert inbox.take_lot() == (PEERS[0], [b"4"])
    with pytest.raises(StopIteration):
        next(first.left)


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
    for _ in range(5):  # the fifth gives back the fourth: from five eighths to four
        inbox.take()
    assert eased == [(4000, {"connection"})] and inbox.told is None and inbox.level(3) == 2
    inbox.watch("connection", 2)
    while inbox.take() is not None:
        pass
    assert eased[1:] == [(2000, {"connection"})], "at two eighths; then nobody watches any more"
