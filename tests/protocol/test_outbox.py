"""The outbox: in order within each class, bounded, fair, the newest of a key; and the numbers of
what has left it."""

from __future__ import annotations

from collections import deque
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from peertalk.errors import InvalidArgument
from peertalk.protocol.outbox import (
    KEPT_RANGES,
    STREAK,
    Handed,
    Outbox,
    Priority,
    lowest_admitted,
)

MAX_MESSAGES, MAX_BYTES = 8, 64
PARTS = {Priority.LOW: 3 / 4, Priority.NORMAL: 1, Priority.HIGH: 9 / 8, Priority.CRITICAL: 5 / 4}
classes = st.sampled_from(Priority)


class OutboxAgainstLists(RuleBasedStateMachine):
    """Four lists have no cleverness: whatever the outbox does must be what they do, or a
    refusal."""

    def __init__(self):
        super().__init__()
        self.outbox = Outbox(MAX_MESSAGES, MAX_BYTES)
        self.model = {priority: [] for priority in Priority}  # of [number, data, key]
        self.number = 0
        self.leaving = None

    def waiting(self):
        return [item for lane in self.model.values() for item in lane]

    @rule(data=st.binary(max_size=90), priority=classes, key=st.sampled_from([None, None, "a", 1]))
    def put(self, data, priority, key):
        self.number += 1
        total = sum(len(item[1]) for item in self.waiting())
        there = next((item for item in self.waiting() if key is not None and item[2] == key), None)
        got = self.outbox.put(data, self.number, priority, key)
        if there is not None:
            after = total + len(data) - len(there[1])
            if after > max(MAX_BYTES, total) and len(self.waiting()) > 1:
                assert got is None
            else:
                assert got == there[0]
                there[:2] = self.number, data
            return
        part = PARTS[priority]
        room = total + len(data) <= MAX_BYTES * part and len(self.waiting()) < MAX_MESSAGES * part
        if room or len(self.model[priority]) <= (priority is self.leaving):
            assert got == 0
            self.model[priority].append([self.number, data, key])
        else:
            assert got is None

    @rule(priority=classes)
    def leave(self, priority):
        self.leaving = priority if self.model[priority] else None
        self.outbox.leaving = 0 if self.leaving is None else 1 << priority

    @rule(count=st.integers(0, 20))
    def hand_on(self, count):
        chunk = self.outbox.peek(count)
        assert self.outbox.peek(count) == chunk, "looking changes nothing"
        if not chunk:
            assert not count or not self.waiting()
            return
        left = len(chunk) - len(chunk) // 3
        numbers = [
            number for first, last in self.outbox.drop(left) for number in range(first, last + 1)
        ]
        lane = next(lane for lane in self.model.values() if lane and lane[0][0] == numbers[0])
        assert [item[1] for item in lane[: len(chunk)]] == chunk
        assert [item[0] for item in lane[:left]] == numbers
        del lane[:left]
        if left and self.leaving is not None and lane is self.model[self.leaving]:
            self.leaving = None

    @rule(count=st.sampled_from([-1, 100]))
    def drop_too_many(self, count):
        with pytest.raises(InvalidArgument):
            self.outbox.drop(count)

    @precondition(lambda self: self.waiting())
    @rule()
    def clear(self):
        numbers = [
            number for first, last in self.outbox.clear() for number in range(first, last + 1)
        ]
        assert numbers == sorted(item[0] for item in self.waiting())
        self.model = {priority: [] for priority in Priority}
        self.leaving = None

    @invariant()
    def counts_agree(self):
        outbox, waiting = self.outbox, self.waiting()
        assert len(outbox) == len(waiting) and outbox.bytes == sum(len(item[1]) for item in waiting)
        assert len(outbox) <= MAX_MESSAGES * 5 / 4 + 4
        assert outbox.leaving == (0 if self.leaving is None else 1 << self.leaving)
        assert all((key in outbox) == any(item[2] == key for item in waiting) for key in ("a", 1))
        fill = max(len(waiting) / MAX_MESSAGES, outbox.bytes / MAX_BYTES)
        assert outbox.pressure == min(100, int(fill * 100 + 1e-9))


TestOutboxAgainstLists = OutboxAgainstLists.TestCase


def numbered(outbox, priority, count, start=1):
    for number in range(start, start + count):
        assert outbox.put(b"", number, priority) == 0


@given(
    steps=st.lists(st.tuples(classes, st.integers(0, 20)), max_size=8),
    blocked=st.lists(st.integers(0, 15), min_size=1, max_size=40),
)
def test_a_blocked_class_is_as_if_nothing_of_it_waited(steps, blocked):
    """It may wait for its grant for as long as a receiver likes; the others have their turns."""
    outbox = Outbox(100_000, 1_000_000)
    lanes = {priority: deque() for priority in Priority}
    number = 0
    for priority, many in steps:
        for _ in range(many):
            number += 1
            lanes[priority].append(number)
            assert outbox.put(bytes(3), number, priority) == 0
    for mask in [*blocked, 0]:
        outbox.blocked = mask
        for _ in range(3):
            free = [each for each in Priority if lanes[each] and not mask >> each & 1]
            head = outbox.head()
            assert (head is None) == (not free) == (not outbox.peek(5))
            if head is None:
                break
            priority, first, _ = head
            assert priority in free and first == lanes[priority][0]
            behind = [each for each, _ in outbox.behind(priority, 2)]
            assert behind == list(lanes[priority])[1:3]
            assert outbox.drop(1) == [(lanes[priority].popleft(),) * 2]
    outbox.blocked = 0
    assert len(outbox) == sum(map(len, lanes.values()))


def test_a_blocked_class_loses_its_due_turn_and_has_the_next():
    outbox = Outbox(100, 1_000)
    numbered(outbox, Priority.LOW, 1)
    numbered(outbox, Priority.HIGH, 40, start=2)
    assert len(outbox.peek(50)) == STREAK
    outbox.drop(STREAK)
    assert outbox.head()[0] == Priority.LOW, "its turn is due"
    outbox.blocked = 1 << Priority.LOW
    assert outbox.head()[0] == Priority.HIGH and len(outbox.peek(50)) == 24
    outbox.blocked = 0
    assert len(outbox.peek(50)) == STREAK


def test_what_went_without_leaving_counts_for_whose_turn_it_is():
    """Each slice of a large message is one message to those that wait."""
    outbox = Outbox(100, 1_000)
    numbered(outbox, Priority.LOW, 1)
    numbered(outbox, Priority.HIGH, 1, start=2)
    for _ in range(STREAK):
        assert outbox.head()[:2] == (Priority.HIGH, 2)
        outbox.went(Priority.HIGH)
    assert outbox.head()[:2] == (Priority.LOW, 1)
    outbox.went(Priority.LOW)
    assert outbox.head()[:2] == (Priority.HIGH, 2) and len(outbox) == 2


def test_numbers_behind_the_head_are_told_with_gaps_and_without():
    outbox = Outbox(100, 1_000)
    assert outbox.head() is None and outbox.behind(Priority.LOW, 3) == []
    for number in (4, 5, 9):
        outbox.put(b"x" * number, number, Priority.LOW)
    assert outbox.head() == (Priority.LOW, 4, b"x" * 4)
    assert [each for each, _ in outbox.behind(Priority.LOW, 8)] == [5, 9]
    outbox.drop(1)
    assert [each for each, _ in outbox.behind(Priority.LOW, 1)] == [9]


@given(
    steps=st.lists(st.tuples(classes, st.integers(0, 40)), max_size=12),
    takes=st.lists(st.integers(1, 300), min_size=1, max_size=30),
)
def test_no_class_starves_and_none_is_disordered_whatever_waits(steps, takes):
    """A message at the head of its class sees at most 16 + 2 of higher classes go; and while
    fairness allows it the highest class goes first."""
    outbox = Outbox(100_000, 1_000_000)
    lanes = {priority: deque() for priority in Priority}
    passed = dict.fromkeys(Priority, 0)
    number = 0
    order = []
    steps, takes = deque(steps), deque(takes)
    while steps or outbox:
        if steps:
            priority, count = steps.popleft()
            for _ in range(count):
                number += 1
                lanes[priority].append(number)
                assert outbox.put(b"", number, priority) == 0
        takes.rotate()
        for first, last in outbox.drop(len(outbox.peek(takes[0]))):
            for going in range(first, last + 1):
                [priority] = [one for one, lane in lanes.items() if lane and lane[0] == going]
                lanes[priority].popleft()
                order.append((priority, going))
                for lower in Priority:
                    waits_below = lower < priority and bool(lanes[lower])
                    passed[lower] = (
                        passed[lower] + 1
                        if waits_below
                        else 0
                        if lower == priority or not lanes[lower]
                        else passed[lower]
                    )
                    assert passed[lower] <= STREAK + 2
    assert len(order) == number


def test_after_sixteen_of_a_higher_class_one_of_each_lower_one_goes():
    """The pattern itself, which a property does not show."""
    outbox = Outbox(1000, 1000)
    for priority in Priority:
        numbered(outbox, priority, 40, 100 * priority)
    order = []
    while outbox:
        order += [
            first // 100
            for first, last in outbox.drop(len(outbox.peek(64)))
            for _ in range(first, last + 1)
        ]
    assert order[:38] == [3] * 16 + [2, 1, 0] + [3] * 16 + [2, 1, 0]
    assert order[38 : 38 + 8] == [3] * 8
    assert order[-1] == 0 and all(order.count(priority) == 40 for priority in range(4))


def test_the_highest_class_goes_first_when_it_comes_while_others_wait():
    """A critical message behind a thousand low ones is the next to go."""
    outbox = Outbox(1000, 1000)
    numbered(outbox, Priority.LOW, 700)
    assert outbox.drop(len(outbox.peek(100))) == [(1, 100)]
    outbox.put(b"now", 701, Priority.CRITICAL)
    assert outbox.peek(256) == [b"now"]
    assert outbox.drop(1) == [(701, 701)]
    assert outbox.drop(len(outbox.peek(256))) == [(101, 356)]


def test_lower_classes_leave_room_for_higher_ones():
    """A queue full of low messages must not shut a critical one out, and normal ones alone have the
    whole of it."""
    outbox, taken = Outbox(16, 10_000), []
    for priority in Priority:
        count = 0
        while outbox.put(b"", 1, priority) is not None:
            count += 1
        taken.append(count)
    assert taken == [12, 4, 2, 2] and outbox.pressure == 100
    alone = Outbox(16, 10_000)
    numbered(alone, Priority.NORMAL, 16)
    assert alone.put(b"", 17) is None


def test_the_first_message_of_a_class_is_accepted_whatever_waits():
    """Else one producer of high messages could keep the low ones out for ever, and a message longer
    than the whole outbox could never be sent."""
    outbox = Outbox(2, 10)
    for number, priority in enumerate((Priority.CRITICAL, Priority.NORMAL, Priority.LOW), 1):
        assert outbox.put(bytes(50), number, priority) == 0
        assert outbox.put(b"", 9, priority) is None
    assert outbox.pressure == 100


def test_behind_a_message_that_leaves_the_next_of_its_class_is_accepted():
    """Else a large one could be offered only when the one before is gone, and the way would be idle
    for as long as the offer and its grant take."""
    outbox = Outbox(2, 10)
    assert [outbox.put(bytes(50), number) for number in (1, 2)] == [0, None]
    outbox.leaving = 1 << Priority.NORMAL
    assert [outbox.put(bytes(50), number) for number in (2, 3)] == [0, None]
    assert outbox.drop(1) == [(1, 1)] and not outbox.leaving
    assert outbox.put(bytes(50), 3) is None


def test_the_head_of_a_class_leaves_out_of_turn_when_it_was_alone():
    """A link that was given all of a large one has sent it, whatever has come since."""
    outbox = Outbox(8, 100)
    assert outbox.put(b"large", 1) == 0 and outbox.put(b"next", 2) == 0
    assert outbox.is_alone(Priority.NORMAL) and not outbox.is_alone(Priority.HIGH)
    outbox.leaving = 1 << Priority.NORMAL
    assert outbox.put(b"high", 3, Priority.HIGH) == 0
    assert not outbox.is_alone(Priority.NORMAL) and not outbox.is_alone(Priority.HIGH)
    assert outbox.drop_head(Priority.NORMAL) == [(1, 1)]
    assert not outbox.leaving and outbox.bytes == 8 and outbox.peek(9) == [b"high"]
    outbox.blocked = 1 << Priority.NORMAL
    assert outbox.is_alone(Priority.HIGH), "what is blocked is as if it did not wait"


def test_messages_without_bytes_are_bounded_by_their_number():
    """A million empty messages weigh nothing and still fill memory."""
    outbox = Outbox(3, 10)
    assert [outbox.put(b"", number) for number in range(1, 5)] == [0, 0, 0, None]
    assert outbox.pressure == 100


def test_an_outbox_can_be_filled_to_its_last_byte():
    """The bound is inclusive."""
    outbox = Outbox(3, 10)
    assert [outbox.put(bytes(size), 1) for size in (4, 7, 6, 1)] == [0, None, 0, None]
    assert (len(outbox), outbox.bytes, outbox.pressure) == (2, 10, 100)


def test_the_bytes_that_were_put_come_out_themselves():
    """No copy: the outbox holds a reference, and the caller's bytes cannot change."""
    outbox, data = Outbox(1, 1), b"payload"
    outbox.put(data, 1)
    assert outbox.peek(1)[0] is data


def test_a_key_means_the_newest_in_the_place_and_class_of_the_oldest():
    """A position that nobody has sent yet is worth nothing once there is a newer one; moving it
    back each time would keep it from ever being sent."""
    outbox = Outbox(4, 100)
    assert [
        outbox.put(data, number, 1, key)
        for number, (data, key) in enumerate([(b"a", None), (b"old", "pos"), (b"c", None)], 1)
    ] == [0] * 3
    assert outbox.put(b"newer", 4, Priority.CRITICAL, "pos") == 2
    assert outbox.put(b"newest", 5, Priority.LOW, "pos") == 4
    assert outbox.peek(9) == [b"a", b"newest", b"c"] and outbox.bytes == 8
    assert outbox.drop(3) == [(1, 1), (5, 5), (3, 3)]
    assert outbox.put(b"again", 6, 1, "pos") == 0, "what has left is not replaced"


class Moody(str):
    """A key that is never what it was."""

    __slots__ = ()

    def __hash__(self):
        raise ZeroDivisionError

    def __eq__(self, _):
        return False


class Drifting(int):
    """A key whose place changes."""

    hashes = count()

    def __hash__(self):
        return next(self.hashes)


@pytest.mark.parametrize("key", [Moody("k"), Drifting(7)])
def test_a_key_of_the_programs_own_class_is_the_text_or_the_number_that_it_holds(key):
    """It raised when its message left, which cut off the connection, and every one after that."""
    outbox = Outbox(MAX_MESSAGES, MAX_BYTES)
    assert outbox.put(b"old", 1, key=key) == 0
    assert outbox.put(b"new", 2, key=key) == 1
    assert outbox.peek(2) == [b"new"] and outbox.drop(1) == [(2, 2)]
    assert outbox.put(b"next", 3, key=key) == 0


@pytest.mark.parametrize("limits", [(0, 1), (1, 0), (-1, 5)])
def test_an_outbox_without_room_cannot_be_made(limits):
    """It would make every send wait for ever."""
    with pytest.raises(InvalidArgument, match="1 or more"):
        Outbox(*limits)


def test_the_classes_carry_the_numbers_of_the_original():
    """They are compared with what the original refuses at a pressure, number by number."""
    assert [(one.name, one.value) for one in Priority] == [
        ("LOW", 0),
        ("NORMAL", 1),
        ("HIGH", 2),
        ("CRITICAL", 3),
    ]
    lowest = [lowest_admitted(pressure) for pressure in (0, 49, 50, 74, 75, 89, 90, 100)]
    assert lowest == [0, 0, 1, 1, 2, 2, 3, 3]


# What a link was given


class HandedAgainstFrames(RuleBasedStateMachine):
    """One entry for each frame is the truth; runs must say the same of each message, once, with its
    last frame."""

    def __init__(self):
        super().__init__()
        self.handed = Handed()
        self.accepted = 0
        self.frames = deque()  # of (number, is its last frame)
        self.open = False
        self.broken = set()
        self.waiting = []
        self.in_frames = set()  # the numbers of messages of several frames
        self.sent = []  # the numbers of the frames that were sent, in order

    @rule(count=st.integers(1, 5))
    def straight(self, count):
        if not self.open:
            self.handed.open(self.accepted + 1)
            self.open = True
        for _ in range(count):
            self.accepted += 1
            self.frames.append((self.accepted, True))

    @rule(count=st.integers(1, 4))
    def into_the_outbox(self, count):
        if self.open:
            self.handed.seal(self.accepted)
            self.open = False
        self.waiting += range(self.accepted + 1, self.accepted + count + 1)
        self.accepted += count

    @precondition(lambda self: self.waiting and not self.open)
    @rule(data=st.data(), frames=st.sampled_from([1, 1, 2, 3]))
    def from_the_outbox(self, data, frames):
        number = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.handed.add(number, number, frames)
        if frames > 1:
            self.in_frames.add(number)
        self.frames += [(number, index == frames - 1) for index in range(frames)]

    @precondition(lambda self: self.frames)
    @rule(data=st.data(), sent=st.booleans())
    def report(self, data, sent):
        count = data.draw(st.integers(1, len(self.frames)))
        expected = []
        for _ in range(count):
            number, last = self.frames.popleft()
            if sent:
                self.sent.append(number)
            else:
                self.broken.add(number)
            if last:
                expected.append((number, number not in self.broken))
        told = self.handed.report(count, sent=sent)
        assert [
            (number, whole) for first, last, whole in told for number in range(first, last + 1)
        ] == expected

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def disown(self, data):
        whole = [n for n in self.sent if self.sent.count(n) == 1 and n not in self.in_frames]
        if whole:
            number = data.draw(st.sampled_from(whole))
            self.handed.disown(number)
            self.broken.add(number)

    @rule(data=st.data())
    def prune(self, data):
        count = data.draw(st.integers(0, len(self.sent)))
        self.handed.prune(count)
        self.sent = self.sent[len(self.sent) - count :]

    @rule(data=st.data())
    def end(self, data):
        lost = data.draw(st.integers(0, len(self.sent)))
        undecided = {number for number, _ in self.frames}
        expected = [
            number
            for number in dict.fromkeys(self.sent[len(self.sent) - lost :])
            if number not in self.broken and number not in undecided
        ]
        if data.draw(st.booleans()):
            self.handed.seal(self.accepted)  # before or after: both are the same
        told = self.handed.revoke(lost)
        assert [n for first, last in told for n in range(first, last + 1)] == expected
        assert self.handed.revoke(10**9) == [], "what was taken back once is not taken back again"
        self.sent.clear()
        self.handed.seal(self.accepted)
        self.open = False
        left = [number for first, last in self.handed.rest() for number in range(first, last + 1)]
        assert left == list(dict.fromkeys(number for number, _ in self.frames))
        assert self.handed.rest() == []
        self.frames.clear()


TestHandedAgainstFrames = HandedAgainstFrames.TestCase


def test_what_is_handed_in_order_is_one_range_whichever_way_it_went():
    """A report that a million messages were sent is one event, also where some of them waited."""
    handed = Handed()
    handed.open(1)
    handed.seal(10)
    handed.add(11, 20)
    handed.open(21)
    assert not handed.runs and handed.first == 1
    assert handed.report(30, sent=True) == [(1, 30, True)]


def test_a_million_messages_that_were_sent_are_kept_as_one_range():
    """What may be taken back must cost nothing while nobody takes it back."""
    handed = Handed()
    handed.open(1)
    for first in range(1, 1_000_001, 1_000):
        assert handed.report(1_000, sent=True) == [(first, first + 999, True)]
        handed.seal(first + 999)
        handed.add(first + 1_000, first + 1_000)
        handed.open(first + 1_001)
    assert not handed.crowded
    assert handed.revoke(3) == [(999_998, 1_000_000)]


def test_messages_of_two_classes_crowd_until_the_link_says_what_is_acknowledged():
    """Numbers that come in turns cannot be joined: what has arrived must be forgotten now and
    then."""
    handed = Handed()
    for number in range(1, KEPT_RANGES + 2):
        handed.add(2 * number, 2 * number)
    handed.report(KEPT_RANGES, sent=True)
    assert not handed.crowded
    handed.report(1, sent=True)
    assert handed.crowded
    handed.prune(2)
    assert not handed.crowded
    assert handed.revoke(9) == [
        (2 * number, 2 * number) for number in (KEPT_RANGES, KEPT_RANGES + 1)
    ]


def test_a_message_of_which_one_fragment_may_be_lost_is_taken_back():
    """Three quarters of a message are none."""
    handed = Handed()
    handed.add(1, 1, frames=4)
    handed.add(2, 2, frames=4)
    assert handed.report(8, sent=True) == [(1, 1, True), (2, 2, True)]
    assert handed.revoke(5) == [(1, 2)]


def test_a_message_that_was_told_as_failed_is_not_taken_back_once_more():
    """Its number would be counted as failed twice, and what was sent less than nothing."""
    handed = Handed()
    handed.open(1)
    handed.report(5, sent=True)
    handed.disown(3)
    handed.disown(9)
    assert handed.revoke(9) == [(1, 2), (4, 5)]
