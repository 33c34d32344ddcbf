"""Large messages: what is offered, granted and moved, at both ends of a connection."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kit.tables import each_row

from peertalk.protocol.large import (
    AHEAD,
    AHEAD_LOOK,
    LOOKS,
    OFFERS_MAX,
    OFFERS_OUT,
    SLICE,
    Grants,
    Offering,
    Refusal,
    Refused,
    Stage,
    Verdict,
)
from peertalk.protocol.outbox import Outbox, Priority

MIB = 1024**2
WIDE_MAX = SLICE
"""Bytes of a message that goes in one frame, unasked."""


class Bytes:
    """A message as its length alone: nothing here looks at what a message says."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


class Sender:
    """One connection's sending half, with the little that the runtime adds: an outbox, an Offering
    and the frames that leave. The receiver's answers come in by hear()."""

    def __init__(self, max_messages: int = 1000, max_bytes: int = 1 << 40) -> None:
        self.outbox = Outbox(max_messages, max_bytes)
        self.offering = Offering()
        self.number = 0
        self.wire: deque[tuple] = deque()
        self.handed: list[int] = []
        self.failed: list[int] = []
        self.undone: list[int] = []
        self.replaced: list[int] = []
        self.withdrawn: set[int] = set()
        self.referred = 0

    def put(self, size: int, priority: int = Priority.NORMAL, key: str | None = None) -> int:
        replaced = self.outbox.put(Bytes(size), self.number + 1, priority, key)
        if replaced is None:
            return 0
        self.number += 1
        if replaced:
            self.replaced.append(replaced)
            self._withdraw(self.offering.replaced(replaced))
        return self.number

    def _withdraw(self, *ids: int) -> None:
        for each in filter(None, ids):
            self.withdrawn.add(each)
            self.wire.append(("withdrawn", each))

    def _offer(self, offer) -> None:
        assert offer.id not in self.withdrawn
        self.offering.put(offer)
        self.wire.append(("offer", offer.id, len(offer.payload), offer.number))

    def step(self) -> bool:
        """Hand one thing on, as Traffic does; whether there was one."""
        self.outbox.blocked = self.offering.blocked
        head = self.outbox.head()
        if head is None:
            assert not self.outbox or self.outbox.blocked
            return False
        priority, number, payload = head
        offer = self.offering.head(priority)
        if offer is None and len(payload) <= WIDE_MAX:
            self.outbox.drop(1)
            self.handed.append(number)
            self.wire.append(("small", number, priority, len(payload)))
            return True
        if offer is None:
            if not self.offering.begin(priority, number):
                self._withdraw(*self.offering.withdraw(priority))
                self._offer(self.offering.next_offer(priority, number, payload))
                assert self.offering.begin(priority, number)
        else:
            assert offer.number == number and offer.payload is payload
            if offer.stage is Stage.REFUSED:
                self.outbox.drop(1)
                self.offering.failed(offer)
                self.failed.append(number)
                return True
            part = self.offering.slice(offer, self.referred, WIDE_MAX)
            if part is None:
                return False
            self.referred += part.size
            assert self.referred <= SLICE
            self.wire.append(("slice", part.id, part.offset, part.size, len(payload), number))
            if self.offering.moved(offer, part.size):
                self.outbox.drop(1)
                self.handed.append(number)
            else:
                self.outbox.went(priority)
        behind = self.outbox.behind(priority, AHEAD_LOOK)
        for each in self.offering.ahead(priority, behind, WIDE_MAX, 2**31 - 1):
            self._offer(each)
        assert self.offering.out <= OFFERS_OUT
        return True

    def hear(self, word: tuple) -> None:
        kind, number = word[:2]
        if kind == "grant":
            assert self.offering.granted(number)
            return
        refused = self.offering.refused(number, word[2])
        assert refused is not None
        self._withdraw(*refused.withdraw)
        if refused.undone:
            self.undone.append(refused.undone)


class Receiver:
    """The links of one node: what each has been granted and how far that is, and the messages that
    were delivered. It keeps the rules of the wire, and says where a sender broke one."""

    def __init__(self, limit: int, max_message: int, links: int = 1) -> None:
        self.grants: Grants[int] = Grants(limit, max_message)
        self.landing: list[dict[int, int]] = [{} for _ in range(links)]
        self.forgone: list[set[int]] = [set() for _ in range(links)]
        self.answers: list[deque[tuple]] = [deque() for _ in range(links)]
        self.delivered: list[list[int]] = [[] for _ in range(links)]
        self.brought = [0] * links
        self.full = False

    def serve(self) -> None:
        while (landing := self.grants.next(lambda _: not self.full)) is not None:
            self.grants.grant(landing)
            self.landing[landing.link][landing.id] = 0
            self.answers[landing.link].append(("grant", landing.id))

    def hear(self, link: int, word: tuple) -> None:
        match word:
            case ("small", number, _, size):
                self.delivered[link].append(number)
                self.brought[link] += size
            case ("offer", id, total, _):
                verdict = self.grants.offered(link, id, total)
                assert verdict is not Verdict.FAULT
                if verdict is Verdict.REFUSE:
                    self.answers[link].append(("refuse", id, Refusal.TOO_LARGE))
                    self.grants.said(link, id)
            case ("withdrawn", id):
                assert self.grants.withdrawn(link, id)
                self.landing[link].pop(id, None)
                self.forgone[link].discard(id)
            case ("slice", id, offset, size, total, number):
                self.brought[link] += size
                if id in self.forgone[link]:
                    return
                assert self.landing[link][id] == offset, "not granted, or out of order"
                self.landing[link][id] += size
                if offset + size == total:
                    del self.landing[link][id]
                    assert self.grants.landed(link, id)
                    self.delivered[link].append(number)
        self.serve()

    def look(self) -> None:
        lost = self.grants.look(
            lambda landing: (self.landing[landing.link][landing.id], self.brought[landing.link])
        )
        for landing in lost:
            self.grants.lose(landing)
            del self.landing[landing.link][landing.id]
            self.forgone[landing.link].add(landing.id)
            self.answers[landing.link].append(("refuse", landing.id, Refusal.LOST))
        self.serve()


sizes = st.sampled_from([5, WIDE_MAX, WIDE_MAX + 1, 3 * SLICE, MIB, 2 * MIB, 3 * MIB, 5 * MIB])
LINKS = 2


class TwoSides(RuleBasedStateMachine):
    """Two senders and one receiver, with lossless ordered links. Whatever happens in which order:
    each message arrives once, whole, and in the order of its class, or its sender is told that it
    did not; and the budget holds."""

    LIMIT, MAX = 3 * MIB, 4 * MIB

    def __init__(self):
        super().__init__()
        self.senders = [Sender() for _ in range(LINKS)]
        self.receiver = Receiver(self.LIMIT, self.MAX, LINKS)
        self.priorities = [{} for _ in range(LINKS)]
        self.sizes = [{} for _ in range(LINKS)]

    @rule(
        link=st.integers(0, LINKS - 1),
        size=sizes,
        priority=st.sampled_from(Priority),
        key=st.sampled_from([None, None, "a", "b"]),
    )
    def send(self, link, size, priority, key):
        sender = self.senders[link]
        there = key is not None and key in sender.outbox
        number = sender.put(size, priority, key)
        assert number
        if there:  # it takes the class of the one that it replaced
            priority = self.priorities[link][sender.replaced[-1]]
        self.priorities[link][number] = priority
        self.sizes[link][number] = size

    @rule(link=st.integers(0, LINKS - 1), steps=st.integers(1, 60))
    def hand_on(self, link, steps):
        for _ in range(steps):
            if not self.senders[link].step():
                self.senders[link].referred = 0  # the system has taken it

    @rule(link=st.integers(0, LINKS - 1), count=st.integers(1, 20))
    def arrive(self, link, count):
        sender = self.senders[link]
        for _ in range(min(count, len(sender.wire))):
            self.receiver.hear(link, sender.wire.popleft())

    @rule(link=st.integers(0, LINKS - 1), count=st.integers(1, 5))
    def answer(self, link, count):
        for _ in range(min(count, len(self.receiver.answers[link]))):
            self.senders[link].hear(self.receiver.answers[link].popleft())

    @rule(full=st.booleans())
    def fill_or_empty_the_inbox(self, full):
        self.receiver.full = full
        self.receiver.serve()

    @rule(link=st.integers(0, LINKS - 1))
    def go_round(self, link):
        self.hand_on(link, 20)
        self.arrive(link, 10)
        self.answer(link, 10)

    @precondition(lambda self: self.receiver.grants.held)
    @rule(link=st.integers(0, LINKS - 1), steps=st.integers(0, 40))
    def wait_in_vain(self, link, steps):
        """What is handed on meanwhile is on its way for longer than the receiver waits."""
        self.hand_on(link, steps)
        for _ in range(LOOKS + 1):
            self.receiver.look()

    @rule(link=st.integers(0, LINKS - 1))
    def lose_the_connection(self, link):
        """What was not handed to its last slice goes on the next connection, whole."""
        before, receiver = self.senders[link], self.receiver
        self._judge(link)
        after = self.senders[link] = Sender()
        after.number = before.number
        after.outbox, after.replaced = before.outbox, before.replaced
        receiver.grants.ended(link)
        receiver.landing[link], receiver.forgone[link] = {}, set()
        receiver.answers[link].clear()
        receiver.delivered[link].clear()
        receiver.serve()

    @invariant()
    def the_budget_holds(self):
        grants = self.receiver.grants
        granted = sum(map(len, self.receiver.landing))
        assert grants.held <= self.LIMIT or granted == 1
        assert (grants.held == 0) == (granted == 0)

    def _judge(self, link):
        """In order within each class, once, and nothing that its sender was told to have failed."""
        delivered = self.receiver.delivered[link]
        sender = self.senders[link]
        for priority in Priority:
            of_class = [each for each in delivered if self.priorities[link][each] == priority]
            handed = [each for each in sender.handed if self.priorities[link][each] == priority]
            arriving = iter(handed)
            assert all(each in arriving for each in of_class), "not in the order of handing"
        assert len(set(delivered)) == len(delivered)
        gone = set(sender.failed) | set(sender.undone) | set(sender.replaced)
        assert not gone & set(delivered)

    def teardown(self):
        """When nothing is in the way any more all of it comes: there is no deadlock."""
        self.receiver.full = False
        self.receiver.serve()
        for _ in range(100_000):
            busy = False
            for link, sender in enumerate(self.senders):
                while sender.step() or sender.referred:
                    sender.referred, busy = 0, True
                busy |= bool(sender.wire or self.receiver.answers[link])
                self.arrive(link, 1000)
                self.answer(link, 1000)
            if not busy:
                break
        for link, sender in enumerate(self.senders):
            assert not sender.outbox and not sender.wire
            self._judge(link)
            told = set(sender.undone)
            assert set(self.receiver.delivered[link]) == set(sender.handed) - told
            assert all(self.sizes[link][each] > self.MAX for each in sender.failed)
            assert all(self.sizes[link][each] <= self.MAX for each in sender.handed)
        assert not self.receiver.grants.held and not self.receiver.grants.waiting


TestTwoSides = TwoSides.TestCase


@pytest.mark.parametrize("seed", range(5))
def test_a_lot_of_large_messages_both_ways_ends(seed):
    """64 messages of 16 MiB each way with memory for two of them: nobody waits for the other."""
    dice = random.Random(seed)
    sides = [(Sender(), Receiver(32 * MIB, 16 * MIB)) for _ in range(2)]
    for sender, _ in sides:
        for _ in range(64):
            assert sender.put(16 * MIB, dice.choice(list(Priority)))
    for _ in range(1_000_000):
        way = dice.randrange(2)
        sender, (_, receiver) = sides[way][0], sides[1 - way]
        what = dice.randrange(3)
        if what == 0:
            sender.step()
        elif what == 1 and sender.wire:
            word = sender.wire.popleft()
            sender.referred -= word[3] if word[0] == "slice" else 0
            receiver.hear(0, word)
            assert receiver.grants.held <= 32 * MIB
        elif what == 2 and receiver.answers[0]:
            sender.hear(receiver.answers[0].popleft())
        if all(len(receiver.delivered[0]) == 64 for _, receiver in sides):
            break
    for sender, _ in sides:
        assert not sender.outbox and len(sender.handed) == 64


# The sender -----------------------------------------------------------------------------------


def words(sender, kind):
    return [word for word in sender.wire if word[0] == kind]


def test_small_messages_of_other_classes_go_while_a_large_one_waits_for_its_grant():
    """A grant may take as long as the receiver's program likes."""
    sender = Sender()
    large, after = sender.put(MIB), sender.put(5)
    low, high = sender.put(5, Priority.LOW), sender.put(5, Priority.HIGH)
    while sender.step():
        pass
    assert sender.handed == [high, low], "nothing overtakes within its class"
    sender.hear(("grant", words(sender, "offer")[0][1]))
    while sender.step() or sender.referred:
        sender.referred = 0
    assert sender.handed == [high, low, large, after]


def test_a_higher_class_waits_for_two_slices_at_most():
    """A link holds 256 KiB of slices: what is critical waits no longer than those take."""
    sender = Sender()
    sender.put(16 * MIB)
    assert sender.step()
    sender.hear(("grant", 1))
    while sender.step():
        pass
    assert sender.referred == SLICE and len(words(sender, "slice")) == 1
    critical = sender.put(5, Priority.CRITICAL)
    assert sender.step() and sender.wire[-1][:2] == ("small", critical)


def test_slices_take_turns_like_messages():
    """Else a large message would starve what is below it, or be starved by what is above."""
    sender = Sender()
    for _ in range(100):
        sender.put(5, Priority.HIGH)
    sender.put(16 * MIB)
    sender.put(5, Priority.LOW)
    while not words(sender, "offer"):
        assert sender.step()
    sender.hear(("grant", 1))
    sender.wire.clear()
    for _ in range(40):
        sender.referred = 0
        assert sender.step()
    order = "".join("HL"[word[2] == 0] if word[0] == "small" else "s" for word in sender.wire)
    assert "s" in order and "L" in order
    assert max(map(len, order.replace("L", "s").split("s"))) <= 16, order


def test_the_next_large_ones_of_a_class_are_offered_ahead():
    """A lot of them would else wait for a round trip each."""
    sender = Sender()
    for _ in range(6):
        sender.put(MIB)
        sender.put(5)
    assert sender.step()
    offered = [word[3] for word in words(sender, "offer")]
    assert offered == [1, 3, 5, 7] and len(offered) == 1 + AHEAD
    sender.hear(("grant", 1))
    sender.hear(("grant", 2))
    while sender.step():
        sender.referred = 0
    assert sender.handed == [1, 2, 3, 4]
    assert [word[3] for word in words(sender, "offer")] == [1, 3, 5, 7, 9, 11]


def test_a_message_that_is_replaced_while_it_moves_stops_between_slices():
    """The replacement has its place, and is offered anew; the receiver hears that the former one
    ends here."""
    sender = Sender()
    former = sender.put(MIB, key="a")
    sender.step()
    sender.hear(("grant", 1))
    sender.step()
    later = sender.put(2 * MIB, key="a")
    assert sender.replaced == [former] and sender.wire[-1] == ("withdrawn", 1)
    sender.step()
    assert sender.wire[-1][:3] == ("offer", 2, 2 * MIB)
    sender.hear(("grant", 1))  # it had left before that was read
    assert not sender.step()
    sender.hear(("grant", 2))
    sender.referred = 0
    while sender.step():
        sender.referred = 0
    assert sender.handed == [later]


@pytest.mark.parametrize("former", [MIB, 5], ids=["a large one", "a small one"])
def test_what_takes_a_place_before_others_is_offered_before_them(former):
    """Else these would hold what it waits for until it goes, and wait for it."""
    sender, receiver = Sender(), Receiver(6 * MIB, 16 * MIB)
    sender.put(MIB)
    sender.put(former, key="a")
    for _ in range(2):
        sender.put(MIB)
    sender.step()
    while sender.wire:
        receiver.hear(0, sender.wire.popleft())
    assert receiver.grants.held == 3 * MIB
    last = sender.put(3 * MIB, key="a")
    for _ in range(100):
        sender.referred = 0
        while receiver.answers[0]:
            sender.hear(receiver.answers[0].popleft())
        while sender.step() or sender.wire:
            sender.referred = 0
            while sender.wire:
                receiver.hear(0, sender.wire.popleft())
    assert receiver.delivered[0] == [1, last, 3, 4]


def test_a_small_message_that_replaces_a_large_one_waits_for_no_grant():
    sender = Sender()
    sender.put(MIB, key="a")
    sender.step()
    later = sender.put(5, key="a")
    assert sender.step() and sender.handed == [later]


def test_a_grant_that_is_taken_back_costs_only_time():
    """All offers of the class are withdrawn and made anew, in its order, with the whole message."""
    sender = Sender()
    for _ in range(3):
        sender.put(MIB)
    high = sender.put(MIB, Priority.HIGH)
    while sender.step():
        pass
    by_number = {word[3]: word[1] for word in words(sender, "offer")}
    for number in (1, 2):
        sender.hear(("grant", by_number[number]))
    sender.step()
    sender.wire.clear()
    sender.hear(("refuse", by_number[1], Refusal.LOST))
    assert {word[1] for word in words(sender, "withdrawn")} == {by_number[n] for n in (1, 2, 3)}
    while sender.step():
        pass
    again = words(sender, "offer")
    assert [word[3] for word in again] == [1, 2, 3]
    for id in (by_number[high], *(word[1] for word in again)):
        sender.hear(("grant", id))
        sender.referred = 0
        while sender.step():
            sender.referred = 0
    assert sender.handed == [high, 1, 2, 3]
    assert next(word[2] for word in words(sender, "slice") if word[5] == 1) == 0


def test_a_message_that_was_dropped_after_its_last_slice_is_named():
    """It was reported as sent, and has not arrived: whoever sent it must hear that."""
    sender = Sender()
    sender.put(MIB)
    sender.step()
    sender.hear(("grant", 1))
    while sender.step():
        sender.referred = 0
    assert sender.handed == [1]
    sender.hear(("refuse", 1, Refusal.LOST))
    assert sender.undone == [1] and sender.wire[-1] == ("withdrawn", 1)
    said = len(sender.wire)
    sender.hear(("refuse", 1, Refusal.LOST))
    assert sender.undone == [1] and len(sender.wire) == said, "nobody drops a message twice"


def test_a_refused_message_fails_when_its_turn_comes():
    sender = Sender()
    for size in (MIB, 2 * MIB, MIB):
        sender.put(size)
    sender.step()
    sender.hear(("refuse", 2, Refusal.TOO_LARGE))
    assert not sender.failed
    sender.hear(("grant", 1))
    sender.hear(("grant", 3))
    while sender.step():
        sender.referred = 0
    assert sender.failed == [2] and sender.handed == [1, 3]


@each_row("id", {"nothing": 0, "not yet": 2, "far above": 2**32 - 1})
def test_an_answer_to_what_was_never_offered_is_a_fault(id):
    sender = Sender()
    sender.put(MIB)
    sender.step()
    assert not sender.offering.granted(id)
    assert sender.offering.refused(id, Refusal.LOST) is None
    assert sender.offering.refused(id, Refusal.TOO_LARGE) is None


def test_a_late_answer_changes_nothing():
    """A GRANT and a WITHDRAWN may cross."""
    offering = Offering()
    offer = offering.next_offer(Priority.NORMAL, 1, Bytes(MIB))
    offering.put(offer)
    assert offering.replaced(1) == offer.id and offering.replaced(1) == 0
    assert offering.granted(offer.id)
    assert offering.refused(offer.id, Refusal.LOST) == Refused()
    assert not offering.out and not offering.blocked


def test_a_grant_for_one_behind_what_departs_lets_nothing_leave():
    """Those of its class keep their order; another class has its turn at once."""
    offering = Offering()
    offers = []
    for number, priority in enumerate((Priority.NORMAL, Priority.NORMAL, Priority.HIGH), 1):
        offers.append(offering.next_offer(priority, number, Bytes(MIB)))
        offering.put(offers[-1])
        assert offering.granted(offers[-1].id) and offering.may_go(offers[-1].id)
    first, behind, above = (offer.id for offer in offers)
    offering.departing = offers[0]
    assert not offering.may_go(first) and not offering.may_go(behind) and offering.may_go(above)
    assert offering.moved(offers[0], MIB)
    assert offering.may_go(first) and offering.may_go(behind), "nothing departs any more"


def test_ids_begin_again_behind_the_last():
    offering = Offering()
    offering._last = 2**32 - 1
    assert offering.next_offer(Priority.LOW, 1, Bytes(MIB)).id == 1


# The receiver ---------------------------------------------------------------------------------


def anybody(_: object) -> bool:
    return True


def granted_by(grants, may_come=anybody):
    found = []
    while (landing := grants.next(may_come)) is not None:
        grants.grant(landing)
        found.append((landing.link, landing.id))
    return found


def test_offers_have_their_grants_first_come_first_served():
    """One that is too long for what is left is waited for, or it would never have its turn."""
    grants: Grants[str] = Grants(10, 100)
    for link, id, total in (("a", 1, 6), ("b", 1, 3), ("c", 2, 4), ("d", 2, 1)):
        assert grants.offered(link, id, total) is Verdict.WAIT
    assert granted_by(grants) == [("a", 1), ("b", 1)] and grants.short
    assert (grants.held, grants.waiting) == (9, 2)
    assert grants.landed("b", 1)
    assert granted_by(grants) == [("c", 2)] and grants.short
    assert grants.landed("a", 1)
    assert granted_by(grants) == [("d", 2)] and not grants.short


def test_one_link_leaves_half_of_the_budget_to_others():
    """However slow it is, and however much it offers. Its own come in their order: what stands
    behind one that waits is sent after it, and would only hold what that waits for."""
    grants: Grants[str] = Grants(20, 100)
    for link, id, total in (
        ("slow", 1, 6),
        ("slow", 2, 5),
        ("slow", 3, 1),
        ("b", 1, 9),
        ("c", 1, 5),
    ):
        grants.offered(link, id, total)
    assert granted_by(grants) == [("slow", 1), ("b", 1), ("c", 1)] and not grants.short
    assert grants.landed("slow", 1)
    assert granted_by(grants) == [("slow", 2), ("slow", 3)]
    grants.ended("slow")
    assert grants.held == 14 and not grants.waiting
    grants.offered("alone", 1, 100)
    assert granted_by(grants) == [] and grants.landed("b", 1) and grants.landed("c", 1)
    assert granted_by(grants) == [("alone", 1)], "its first may be as long as may be"


def test_a_message_longer_than_the_budget_comes_alone():
    grants: Grants[str] = Grants(10, 100)
    grants.offered("a", 1, 100)
    grants.offered("a", 2, 1)
    assert granted_by(grants) == [("a", 1)] and grants.held == 100
    grants.landed("a", 1)
    assert granted_by(grants) == [("a", 2)]


def test_who_has_no_room_in_the_inbox_is_passed_over():
    """Whoever takes the messages of one peer alone gets more of them, whatever fills the others."""
    grants: Grants[str] = Grants(10, 100)
    grants.offered("full", 1, 5)
    grants.offered("empty", 1, 5)
    assert granted_by(grants, lambda link: link != "full") == [("empty", 1)]
    assert granted_by(grants, lambda _: False) == [] and not grants.short
    assert granted_by(grants) == [("full", 1)]


@each_row(
    "row",
    {
        "no id": (0, 5, Verdict.FAULT),
        "no bytes": (2, 0, Verdict.FAULT),
        "an id in use": (1, 5, Verdict.FAULT),
        "too long": (2, 101, Verdict.REFUSE),
        "as long as may be": (2, 100, Verdict.WAIT),
        "any order of ids": (2**32 - 1, 1, Verdict.WAIT),
    },
)
def test_what_is_done_with_an_offer(row):
    id, total, verdict = row
    grants: Grants[str] = Grants(10, 100)
    grants.offered("a", 1, 5)
    assert grants.offered("a", id, total) is verdict


@each_row("total", {"in line": 5, "refused, and not told": 101})
def test_a_link_has_so_many_open_offers_and_no_more(total):
    grants: Grants[str] = Grants(10, 100)
    for id in range(1, OFFERS_MAX + 1):
        assert grants.offered("a", id, total) is not Verdict.FAULT
    assert grants.offered("a", OFFERS_MAX + 1, total) is Verdict.FAULT
    assert grants.offered("b", 1, 5) is Verdict.WAIT
    grants.ended("a")
    assert grants.waiting == 1 and granted_by(grants) == [("b", 1)]


def test_an_offer_that_was_refused_is_over_when_that_was_said():
    """So ten thousand of them cost ten thousand answers, and no memory."""
    grants: Grants[str] = Grants(10, 100)
    for id in range(1, 10_001):
        assert grants.offered("a", id, 2**31 - 1) is Verdict.REFUSE
        grants.said("a", id)
    assert not grants.waiting and not granted_by(grants)


def test_what_does_not_move_loses_its_grant_to_those_who_wait():
    grants: Grants[str] = Grants(10, 100)
    grants.offered("still", 1, 6)
    grants.offered("moves", 1, 4)
    granted_by(grants)
    grants.offered("waits", 1, 6)
    assert granted_by(grants) == [] and grants.short
    for number in range(LOOKS):
        assert grants.look(lambda each, n=number: n if each.link == "moves" else 0) == []
    [lost] = grants.look(lambda each: 9 if each.link == "moves" else 0)
    grants.lose(lost)
    assert (lost.link, lost.id) == ("still", 1) and grants.lost == 1
    assert granted_by(grants) == [("waits", 1)]


def test_time_in_which_a_link_is_not_read_does_not_count():
    """Who does not read cannot say that nothing came."""
    grants: Grants[str] = Grants(10, 100)
    grants.offered("a", 1, 6)
    granted_by(grants)
    for number in range(5 * LOOKS):
        assert grants.look(lambda _, n=number: None if n % LOOKS == 0 else 0) == []
    grants.rest()
    for _ in range(LOOKS):
        assert grants.look(lambda _: 0) == []
    assert len(grants.look(lambda _: 0)) == 1


def test_nothing_is_granted_behind_a_grant_that_was_taken_back():
    """What the sender hands on until it hears of it was granted before, so the one that it lost is
    among the last that it remembers."""
    grants: Grants[str] = Grants(10, 100)
    grants.offered("a", 1, 6)
    granted_by(grants)
    for _ in range(LOOKS + 1):
        lost = grants.look(lambda _: 0)
    grants.lose(*lost)
    grants.offered("a", 2, 6)
    assert granted_by(grants) == [] and not grants.landed("a", 1)
    assert grants.offered("a", 1, 6) is Verdict.FAULT, "the id is in use until WITHDRAWN"
    assert grants.withdrawn("a", 1)
    assert granted_by(grants) == [("a", 2)]


def test_a_withdrawal_ends_an_offer_wherever_it_stands():
    grants: Grants[str] = Grants(10, 100)
    for id, total in ((1, 6), (2, 6), (3, 101)):
        grants.offered("a", id, total)
    granted_by(grants)
    assert grants.withdrawn("a", 1) and not grants.held
    assert grants.withdrawn("a", 2) and not grants.waiting
    assert grants.withdrawn("a", 3), "it crosses our answer, which is still owed"
    assert grants.withdrawn("a", 1), "it crosses what ended it"
    assert not grants.withdrawn("a", 4) and not grants.withdrawn("a", 0)
    assert not grants.withdrawn("b", 1)
    assert not grants.landed("a", 1) and not grants.landed("b", 1)


def test_what_was_cut_off_is_mended():
    """A signal handler may raise between any two steps of a grant, of a loss or of an end."""
    grants: Grants[str] = Grants(20, 100)
    for id in (1, 2, 3):
        grants.offered("a", id, 4)
    for each in list(grants._line):
        del grants._line[each]  # as grant() does first
        grants.mend()
    assert granted_by(grants) == [("a", 3), ("a", 2)] and grants.held == 8
    del grants._links["a"].offers[3]  # as landed() does first
    grants.mend()
    assert grants.held == 4 and granted_by(grants) == [("a", 1)]
    grants._granted.clear()
    grants.held = 0
    grants.mend()
    assert grants.held == 8 and not grants.waiting and not grants.refused


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 80), st.integers(0, 12)), max_size=80))
def test_whatever_strangers_say_the_budget_and_the_bounds_hold(said):
    """Each number that comes in is somebody's, and perhaps not a friend's."""
    grants: Grants[int] = Grants(10, 11)
    for what, id, total in said:
        link = id % 3
        if what == 0:
            grants.offered(link, id, total)
        elif what == 1:
            grants.withdrawn(link, id)
        elif what == 2:
            grants.landed(link, id)
        else:
            before = grants.held, list(grants._line)
            grants.mend()
            assert (grants.held, list(grants._line)) == before, "nothing was cut off"
        granted_by(grants, lambda link: link != 1)
        assert grants.held <= 10 or grants.held == 11
        assert grants.waiting <= 3 * OFFERS_MAX
    for link in range(3):
        grants.ended(link)
    assert (grants.held, grants.waiting) == (0, 0)
