"""Messages on their way to one peer: those that wait for a slot, class by class, and the numbers of
those that a link was given.

Of the classes that wait the highest goes first; after STREAK messages that went before lower ones,
one of each waiting lower class goes. So a message at the head of its class waits for at most STREAK
+ 2 of higher classes, and within a class nothing overtakes, whatever its size.

A class is blocked while the message at its head, a large one (large.py), waits for its grant: other
classes go on as if nothing of it waited. While a part of its head has been handed on, a class is
leaving: the message behind the head is the first that waits, so that it can be offered then. The
slices of a large message count like messages of its class; the message itself stays at the head
until its last slice is handed on, so that it is sent again, whole, when the connection is lost
before that.

Invariant: bytes is the sum of the lengths of all waiting messages. A class is accepted while all
that waits is below its part of the bounds (_EIGHTHS), so lower classes leave room for higher ones;
besides, the first message of a class is always accepted, so none is shut out. Never: drops, blocks
or copies. A refusal changes nothing.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from itertools import islice

import msgspec

from ..errors import InvalidArgument

Payload = bytes
Key = str | int


class Priority(enum.IntEnum):
    """The class of a message. Order is kept within a class; a higher one overtakes what waits of
    lower ones."""

    LOW = 0
    """Gives way first: refused from three quarters of the queue on, and by a peer that reports a
    pressure of 50."""
    NORMAL = 1
    """What is sent without saying more; refused by a classic peer that reports a pressure of 75."""
    HIGH = 2
    """An eighth more of the queue is kept for it; refused by a classic peer that reports a pressure
    of 90."""
    CRITICAL = 3
    """A quarter more of the queue is kept for it; no pressure refuses it."""


NORMAL = Priority.NORMAL
HIGHEST_FIRST = tuple(reversed(Priority))

STREAK = 16
"""Messages that may go before waiting ones of a lower class, until one of each such class goes."""
_EIGHTHS = (6, 8, 9, 10)
"""Part of the bounds up to which each class is accepted, LOW first, in eighths."""

KEPT_RANGES = 64
"""Ranges of messages, reported as sent, that a connection keeps before it asks which of them may
still be lost."""
_NOBODY = -1
"""In the place of the number of a message that failed though frames of it were sent."""


def lowest_admitted(pressure: int) -> Priority:
    """The lowest class that a peer of this pressure (0 to 100) still takes: the original's
    thresholds."""
    if pressure < 50:
        return Priority.LOW
    return (
        Priority.NORMAL if pressure < 75 else Priority.HIGH if pressure < 90 else Priority.CRITICAL
    )


class _Lane:
    """One class: payloads and their numbers, in order. gone: how many have left it, so that a place
    has a lasting name: gone + index."""

    __slots__ = ("first", "gone", "keyed", "numbers", "payloads")

    def __init__(self) -> None:
        self.payloads: deque[Payload] = deque()
        self.first = 0
        """Number of the first one, while the numbers have no gap."""
        self.numbers: deque[int] | None = None
        """All numbers, once they have one."""
        self.gone = 0
        self.keyed: deque[tuple[int, Key]] | None = None
        """Places that have a key, in order."""

    def all_numbers(self) -> deque[int]:
        """The numbers one by one, from now on."""
        if self.numbers is None:
            self.numbers = deque(range(self.first, self.first + len(self.payloads)))
        return self.numbers


class Outbox:
    """Bounded queue of payloads with four classes. Not thread-safe: it is the engine's.

    Args:
        max_messages: messages that may wait, 1 or more; up to a quarter more where HIGH and
            CRITICAL ones wait.
        max_bytes: sum of their lengths in bytes, 1 or more, and likewise. The first message of a
            class is accepted whatever waits, so that every message that a peer can take can pass.

    Raises:
        InvalidArgument: a limit below 1.
    """

    __slots__ = (
        "_bytes",
        "_count",
        "_due",
        "_keys",
        "_lanes",
        "_streak",
        "blocked",
        "leaving",
        "max_bytes",
        "max_messages",
    )

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        if max_messages < 1 or max_bytes < 1:
            raise InvalidArgument(
                f"an outbox of {max_messages:,} messages and {max_bytes:,} bytes: both must "
                "be 1 or more"
            )
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self._lanes: list[_Lane | None] = [None, None, None, None]
        self._count = 0
        self._bytes = 0
        self._streak = 0
        """Messages that went before waiting ones of a lower class since those had their turn."""
        self._due = 0
        """Classes below this one have yet to hand on one message each; 0: none has."""
        self._keys: dict[Key, tuple[_Lane, int]] | None = None
        self.blocked = 0
        """Classes of which nothing goes for now, a sum of 1 << class. Whoever hands messages on
        sets it, anew for each connection."""
        self.leaving = 0
        """Likewise: classes of which a part of the message at the head has been handed on."""

    def put(
        self, data: Payload, number: int, priority: int = NORMAL, key: Key | None = None
    ) -> int | None:
        """Append one message to its class. With a key that a waiting message has: take the place,
        and the class, of that one.

        Returns:
            0; or the number of the message that was replaced; or None: there is no room, and
            nothing has changed. O(1); to replace, O(messages / 64).
        """
        if key is not None:
            # a class of the program's own may compare as it likes, or raise, within a turn
            key = str.__str__(key) if isinstance(key, str) else int.__int__(key)
            if self._keys is not None and key in self._keys:
                return self._replace(data, number, key)
        lane = self._lanes[priority]
        total = self._bytes + len(data)
        if lane is None:
            lane = self._lanes[priority] = _Lane()
        payloads = lane.payloads
        if not payloads:
            lane.first = number
        else:
            if (
                (total > self.max_bytes or self._count >= self.max_messages or not priority)
                and not self._fits(total, priority)
                and len(payloads) > (self.leaving >> priority & 1)
            ):
                return None
            if lane.numbers is not None:
                lane.numbers.append(number)
            elif number != lane.first + len(payloads):
                lane.all_numbers().append(number)
        payloads.append(data)
        self._count += 1
        self._bytes = total
        if key is not None:
            self._remember(lane, key)
        return 0

    def _fits(self, total: int, priority: int) -> bool:
        part = _EIGHTHS[priority]
        return total * 8 <= self.max_bytes * part and self._count * 8 < self.max_messages * part

    def _remember(self, lane: _Lane, key: Key) -> None:
        if self._keys is None:
            self._keys = {}
        if lane.keyed is None:
            lane.keyed = deque()
        place = lane.gone + len(lane.payloads) - 1
        lane.keyed.append((place, key))
        self._keys[key] = lane, place

    def _replace(self, data: Payload, number: int, key: Key) -> int | None:
        assert self._keys is not None
        lane, place = self._keys[key]
        index = place - lane.gone
        grown = len(data) - len(lane.payloads[index])
        if grown > 0 and self._bytes + grown > self.max_bytes and self._count > 1:
            return None
        numbers = lane.all_numbers()
        replaced = numbers[index]
        lane.payloads[index] = data
        numbers[index] = number
        self._bytes += grown
        return replaced

    def peek(self, count: int) -> list[Payload]:
        """The messages to hand on next, all of one class, at most `count`; they stay. Empty: none
        waits, or the classes of all that wait are blocked."""
        priority = self._next()
        if priority is None:
            return []
        lane = self._lanes[priority]
        assert lane is not None
        if self._due:
            count = min(count, 1)
        elif self._waits_below(priority):
            count = min(count, STREAK - self._streak)
        return list(islice(lane.payloads, count))

    def drop(self, count: int) -> list[tuple[int, int]]:
        """Take away the first `count` of the messages that peek() gives: they have been handed on.

        Returns:
            Their numbers, in their order, as ranges: (first, last), both included.

        Raises:
            InvalidArgument: fewer than that are waiting; nothing has changed.
        """
        priority = self._next()
        lane = None if priority is None else self._lanes[priority]
        waiting = 0 if lane is None else len(lane.payloads)
        if not 0 <= count <= waiting:
            raise InvalidArgument(f"{count:,} messages to drop: {waiting:,} are waiting")
        if lane is None or not count:
            return []
        assert priority is not None
        ranges = self._take(lane, count)
        self.leaving &= ~(1 << priority)
        self.went(priority, count)
        return ranges

    def drop_head(self, priority: int) -> list[tuple[int, int]]:
        """Likewise the head of a class, which is leaving, whoever's turn it is."""
        lane = self._lanes[priority]
        assert lane is not None
        self.leaving &= ~(1 << priority)
        return self._take(lane, 1)

    def is_alone(self, priority: int) -> bool:
        """Whether nothing that may go waits in any other class."""
        return all(
            lane is None or not lane.payloads or other == priority or self.blocked >> other & 1
            for other, lane in enumerate(self._lanes)
        )

    def went(self, priority: int, count: int = 1) -> None:
        """So many messages of the class whose turn it is have been handed on, or so many slices of
        the one at its head: whose turn is it now?"""
        if self._due:
            self._due = priority
        elif self._waits_below(priority):
            self._streak += count
            if self._streak >= STREAK:
                self._due, self._streak = priority, 0
        else:
            self._streak = 0

    def head(self) -> tuple[int, int, Payload] | None:
        """The message to hand on next: its class, its number and its bytes. None: as peek()."""
        priority = self._next()
        if priority is None:
            return None
        lane = self._lanes[priority]
        assert lane is not None
        number = lane.first if lane.numbers is None else lane.numbers[0]
        return priority, number, lane.payloads[0]

    def behind(self, priority: int, count: int) -> list[tuple[int, Payload]]:
        """Numbers and bytes of at most `count` messages of a class, those behind its head."""
        lane = self._lanes[priority]
        if lane is None:
            return []
        numbers: Iterable[int] = range(lane.first + 1, lane.first + 1 + count)
        if lane.numbers is not None:
            numbers = islice(lane.numbers, 1, 1 + count)
        return list(zip(numbers, islice(lane.payloads, 1, 1 + count), strict=False))

    def _take(self, lane: _Lane, count: int) -> list[tuple[int, int]]:
        payloads, numbers = lane.payloads, lane.numbers
        self._bytes -= sum(map(len, islice(payloads, count)))
        self._count -= count
        if numbers is None:
            ranges = [(lane.first, lane.first + count - 1)]
            lane.first += count
        else:
            ranges = ranges_of(islice(numbers, count))
            for _ in range(count):
                numbers.popleft()
        if count == len(payloads):
            payloads.clear()
            lane.numbers = None
        else:
            for _ in range(count):
                payloads.popleft()
        lane.gone += count
        while lane.keyed and lane.keyed[0][0] < lane.gone:
            assert self._keys is not None
            del self._keys[lane.keyed.popleft()[1]]
        return ranges

    def _next(self) -> int | None:
        """The class whose turn it is; None when none has something that may go."""
        lanes, blocked = self._lanes, self.blocked
        while self._due:
            lane = lanes[self._due - 1]
            if lane is not None and lane.payloads and not blocked >> (self._due - 1) & 1:
                return self._due - 1
            self._due -= 1
        for priority in (3, 2, 1, 0):
            lane = lanes[priority]
            if lane is not None and lane.payloads and not blocked >> priority & 1:
                return priority
        return None

    def _waits_below(self, priority: int) -> bool:
        return any(
            lane is not None and lane.payloads and not self.blocked >> below & 1
            for below, lane in enumerate(self._lanes[:priority])
        )

    def clear(self) -> list[tuple[int, int]]:
        """Take away all messages; their numbers as ranges, from the lowest on."""
        numbers = sorted(
            number for lane in self._lanes if lane is not None for number in lane.all_numbers()
        )
        self._lanes = [None, None, None, None]
        self._keys = None
        self._count = self._bytes = self._streak = self._due = self.leaving = 0
        return ranges_of(numbers)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: Key) -> bool:
        """Whether a message of this key waits."""
        return self._keys is not None and key in self._keys

    @property
    def bytes(self) -> int:
        """Sum of the lengths of all waiting messages."""
        return self._bytes

    @property
    def pressure(self) -> int:
        """Fill level, 0 (empty) to 100 (full): the larger one of messages and bytes, in per cent
        rounded down."""
        fill = max(self._count * 100 // self.max_messages, self._bytes * 100 // self.max_bytes)
        return min(fill, 100)


def ranges_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as ranges (first, last), both included, in their order."""
    ranges: list[tuple[int, int]] = []
    first = last = -1
    for number in numbers:
        if number != last + 1:
            if last >= 0:
                ranges.append((first, last))
            first = number
        last = number
    if last >= 0:
        ranges.append((first, last))
    return ranges


class _Run:
    """Messages that a link was given one after the other. each: the frames that each of them is cut
    into. Of the first one: left: frames that are not reported; sent: frames that were sent."""

    __slots__ = ("each", "first", "last", "left", "sent")

    def __init__(self, first: int, last: int, each: int) -> None:
        self.first = first
        self.last = last
        self.each = self.left = each
        self.sent = 0

    def leads_to(self, number: int) -> bool:
        """Whether a whole message of this number can join it."""
        return self.last == number - 1 and self.each == 1


class _Kept(list[tuple[int, int, int]]):
    """What a link reported as sent: (first, last, frames of each)."""

    bound = KEPT_RANGES
    """More are worth pruning."""


class Handed(msgspec.Struct, gc=False, eq=False):
    """The numbers of the messages that one link was given, in the order in which it was given them:
    those that it has not reported, and of those that it reported as sent, the last ones, which may
    have to be taken back.

    While nothing waits, messages go straight to the link in the order of their numbers: then the
    last run is open, and has no end yet.

    first: of the open run, the lowest number that is not reported; 0: no run is open. runs: all
    before it, None when there are none: an idle link holds no queue. given: messages at the head
    of the outbox that the link has taken, and that are not added yet.
    """

    first: int = 0
    runs: deque[_Run] | None = None
    given: int = 0
    _since: int = 0
    """Where the open run began: it has reported all from here to first as sent."""
    _kept: _Kept | None = None
    """What was reported as sent before that; None: nothing."""

    def open(self, number: int) -> None:
        """All messages from this number on go straight to the link, until seal()."""
        assert not self.first, "a run is open"
        runs = self.runs
        self.first = runs.pop().first if runs and runs[-1].leads_to(number) else number
        self._since = self.first
        if not runs:
            self.runs = None

    def seal(self, last: int) -> None:
        """No longer: `last` was the last one. May be called again."""
        self._keep_open_run()
        first, self.first = self.first, 0
        if first and first <= last:
            self.add(first, last)

    def add(self, first: int, last: int, frames: int = 1) -> None:
        """The link was given these messages, each of them as so many frames."""
        assert not self.first, "a run is open"
        if self.runs is None:
            self.runs = deque()
        runs = self.runs
        if frames == 1 and runs and runs[-1].leads_to(first):
            runs[-1].last = last
        else:
            runs.append(_Run(first, last, frames))

    def report(self, frames: int, *, sent: bool) -> list[tuple[int, int, bool]]:
        """The link is done with so many frames: they were sent, or not.

        Returns:
            The messages that are decided by it, in order, as (first, last, all of it was sent). A
            message is decided with its last frame.
        """
        told: list[tuple[int, int, bool]] = []
        runs = self.runs
        while frames and runs:
            run = runs[0]
            if run.each > 1:
                taken = min(frames, run.left)
                frames -= taken
                run.left -= taken
                run.sent += taken if sent else 0
                if run.left:
                    break
                whole = run.sent == run.each
                if run.sent:
                    number = run.first if whole else _NOBODY
                    self._keep(number, number, run.sent)
                told.append((run.first, run.first, whole))
                runs.popleft()
                continue
            taken = min(frames, run.last - run.first + 1)
            frames -= taken
            told.append((run.first, run.first + taken - 1, sent))
            if sent:
                self._keep(run.first, run.first + taken - 1, 1)
            run.first += taken
            if run.first > run.last:
                runs.popleft()
        if frames:
            assert self.first, "a link reports what it was not given"
            told.append((self.first, self.first + frames - 1, sent))
            if not sent:
                self._keep_open_run()
                self._since += frames
            self.first += frames
        return told

    def holds(self, number: int) -> bool:
        """Whether the link was given this message and has not reported it."""
        runs = self.runs or ()
        return 0 < self.first <= number or any(run.first <= number <= run.last for run in runs)

    def rest(self) -> list[tuple[int, int]]:
        """What is not reported, as ranges, once it is sealed; it is forgotten."""
        assert not self.first, "a run is open"
        left = [(run.first, run.last) for run in self.runs or ()]
        self.runs = None
        return left

    # What was reported as sent, and may not have arrived

    @property
    def crowded(self) -> bool:
        """Whether so many ranges are kept for revoke() that prune() is worth its while."""
        return self._kept is not None and len(self._kept) > self._kept.bound

    def prune(self, frames: int) -> None:
        """Only the last so many of the frames that were reported as sent may still be taken
        back."""
        kept = self._kept or _Kept()
        start = len(kept)
        frames -= self._undecided() + self.first - self._since
        while start and frames > 0:
            start -= 1
            first, last, each = kept[start]
            frames -= (last - first + 1) * each
        del kept[:start]
        kept.bound = max(KEPT_RANGES, 2 * len(kept))
        self._kept = kept or None

    def revoke(self, frames: int) -> list[tuple[int, int]]:
        """The last so many of the frames that were reported as sent may not have arrived: the
        messages that they belong to, as ranges in the order in which they were sent. All that was
        reported is forgotten."""
        self._keep_open_run()
        frames -= self._undecided()
        ranges: list[tuple[int, int]] = []
        while frames > 0 and self._kept:
            first, last, each = self._kept.pop()
            taken = min(last - first + 1, -(-frames // each))
            frames -= taken * each
            if first != _NOBODY:
                ranges.append((last - taken + 1, last))
        self._kept = None
        return ranges[::-1]

    def disown(self, number: int) -> None:
        """A message that was reported as sent, in one frame, was told as failed since: revoke()
        does not name it."""
        self._keep_open_run()
        for index, (first, last, each) in enumerate(self._kept or ()):
            if first <= number <= last:
                assert self._kept is not None
                parts = [
                    (first, number - 1, each),
                    (_NOBODY, _NOBODY, each),
                    (number + 1, last, each),
                ]
                self._kept[index : index + 1] = [part for part in parts if part[0] <= part[1]]
                return

    def _undecided(self) -> int:
        """Frames that were sent of a message that is not decided."""
        return self.runs[0].sent if self.runs else 0

    def _keep_open_run(self) -> None:
        if self._since < self.first:
            self._keep(self._since, self.first - 1, 1)
        self._since = self.first

    def _keep(self, first: int, last: int, frames: int) -> None:
        kept = self._kept
        if kept is None:
            kept = self._kept = _Kept()
        if kept and kept[-1][1] + 1 == first and kept[-1][2] == frames:
            first = kept.pop()[0]
        kept.append((first, last, frames))
