"""The buffer pool: what it lends, what it refuses, what it counts. Truth: plain arithmetic in the
tests themselves."""

from __future__ import annotations

import threading

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from peertalk._numbers import POOL_CONTEXTS, POOL_OWN
from peertalk.errors import InvalidArgument, InvalidState, OutOfMemory

BOOKKEEPING = 16


def refused(pool, size):
    """True when the pool lends no such buffer, False when it did (and got it back)."""
    try:
        pool.acquire(size).release(0)
    except OutOfMemory:
        return True
    return False


@pytest.mark.parametrize(
    ("size", "buffer_size"),
    [
        (1, 16),
        (15, 16),
        (16, 16),
        (17, 100),
        (99, 100),
        (100, 100),
        (101, 4112),
        (4111, 4112),
        (4112, 4112),
    ],
)
def test_a_buffer_comes_from_the_smallest_class_that_holds_it(core, size, buffer_size):
    """A size at the edge of a class must not fall into the next one, or every full slot would cost
    double."""
    pool = core.BufferPool([(16, 1), (100, 1), (4112, 1)])
    buffer = pool.acquire(size)
    assert (buffer.size, len(buffer.view)) == (buffer_size, buffer_size)
    assert pool.statistics().bytes == buffer_size + BOOKKEEPING
    buffer.release()
    assert pool.close() == 0


@pytest.mark.parametrize("size", [0, 101, 2**32 - 1])
def test_a_size_that_no_class_holds_is_refused_without_a_trace(core, size):
    """It is the caller's mistake, not a shortage, and must not look like one in the counters."""
    pool = core.BufferPool([(16, 1), (100, 1)])
    with pytest.raises(OutOfMemory):
        pool.acquire(size)
    assert set(pool.statistics()) == {0}


def test_a_larger_class_does_not_stand_in_for_an_exhausted_one(core):
    """Else small frames would eat the buffers that large ones cannot do without."""
    pool = core.BufferPool([(16, 2), (64, 1)])
    lent = [pool.acquire(10), pool.acquire(16)]
    assert refused(pool, 1)
    assert not refused(pool, 17)
    for buffer in lent:
        buffer.release(0)
    assert not refused(pool, 1)


@pytest.mark.parametrize(
    "classes",
    [
        [],
        [(0, 1)],
        [(16, 0)],
        [(16, 65_536)],
        [(32, 1), (16, 1)],
        [(16, 1), (16, 1)],
        [(size, 1) for size in range(1, 18)],
        [(16, 4, 5)],
    ],
    ids=[
        "none",
        "no size",
        "no capacity",
        "capacity over 16 bits",
        "descending",
        "twice",
        "seventeen",
        "more kept than exist",
    ],
)
def test_classes_out_of_bounds_are_refused_at_once(core, classes):
    """A pool that was made wrongly would fail later, in the middle of traffic."""
    with pytest.raises(InvalidArgument):
        core.BufferPool(classes)


def test_sixteen_classes_of_the_largest_capacity_are_accepted(core):
    """The bounds themselves are inside."""
    pool = core.BufferPool([(size, 65_535, 65_535) for size in range(1, 17)])
    pool.acquire(16).release()
    assert [each.acquires for each in pool.class_statistics()] == [0] * 15 + [1]
    assert pool.close() == 0


def test_a_buffer_is_made_at_the_first_need_and_only_then(core):
    """A pool for everything that may come must cost nothing while nothing has."""
    pool = core.BufferPool([(64, 100), (128, 100)])
    assert set(pool.statistics()) == {0} and pool.attempts == 0
    pool.acquire(100).release()
    assert [each.allocations for each in pool.class_statistics()] == [0, 1]
    pool.acquire(100).release()
    assert [each.allocations for each in pool.class_statistics()] == [0, 1]
    assert (pool.attempts, pool.statistics().bytes) == (1, 128 + BOOKKEEPING)


def test_free_buffers_of_one_class_serve_another(core):
    """The budget is a promise about memory held, and a free buffer is held; but what nobody has
    borrowed must not keep anybody waiting: an honest burst once starved all cut frames for ever."""
    pool = core.BufferPool([(100, 5), (200, 5)], budget=2 * (100 + BOOKKEEPING) + 100)
    first, second = pool.acquire(100), pool.acquire(100)
    first.release()
    second.release()
    again = pool.acquire(100)  # a free one costs nothing more
    assert pool.statistics().allocations == 2 and pool.statistics().bytes == 232
    again.release()
    lent = pool.acquire(200)
    assert pool.statistics().bytes == pool.statistics().peak_bytes - 16 == 200 + BOOKKEEPING
    lent.release()
    assert pool.trim() == 200 + BOOKKEEPING
    assert pool.statistics().bytes == 0


def test_a_budget_is_met_to_the_byte(core):
    """Off by one here is a refusal that nobody can explain."""
    assert not refused(core.BufferPool([(100, 1)], budget=116), 100)
    assert refused(core.BufferPool([(100, 1)], budget=115), 100)


def test_what_comes_back_beyond_the_kept_ones_is_freed(core):
    """A burst must not hold its memory until the next one: how many may exist and how many stay are
    two questions."""
    pool = core.BufferPool([(100, 5, 2), (200, 5)], budget=5 * (100 + BOOKKEEPING))
    lent = [pool.acquire(100) for _ in range(5)]
    for number, buffer in enumerate(lent, 1):
        buffer.release()
        assert pool.statistics().buffers == min(5, 7 - number)
    assert pool.statistics().bytes == 2 * (100 + BOOKKEEPING)
    pool.acquire(200).release()  # the budget has what was freed
    assert pool.statistics().buffers == 3
    assert pool.trim() == 2 * 100 + 200 + 3 * BOOKKEEPING


def test_a_share_that_comes_back_beyond_the_kept_ones_costs_no_budget(core):
    """Else the budget would shrink with every share that passes."""
    pool = core.BufferPool([(100, 5, 1)], budget=2 * (100 + BOOKKEEPING))
    for _ in range(3):
        for buffer in [pool.acquire(100, share=True) for _ in range(3)]:
            buffer.release()
    lent = [pool.acquire(100), pool.acquire(100)]
    assert refused(pool, 100)
    for buffer in lent:
        buffer.release()


def test_hits_and_use_are_counted_for_each_class(core):
    """Capacities are chosen by these numbers."""
    pool = core.BufferPool([(64, 20), (128, 20)])
    assert (pool.statistics().hit_rate, pool.statistics().utilisation) == (0.0, 0.0)
    lent = [pool.acquire(100) for _ in range(10)]
    for buffer in lent:
        buffer.release()
    for _ in range(90):
        pool.acquire(100).release()
    small, large = pool.class_statistics()
    assert small == (64, 0, 0, 0, 0, 0, 0) and (small.hit_rate, small.utilisation) == (0.0, 0.0)
    assert large == (128, 100, 10, 100, 0, 10, 10) and large.hit_rate == 90.0
    lent = [pool.acquire(100) for _ in range(5)]
    assert pool.class_statistics()[1].utilisation == pool.statistics().utilisation == 50.0
    for buffer in lent:
        buffer.release()


def test_a_door_keeps_eight_of_each_class_and_others_take_them_when_they_must(core):
    """What a context keeps for itself must not be a reason to refuse another one."""
    pool = core.BufferPool([(64, 12), (128, 4)], budget=12 * (64 + BOOKKEEPING))
    first, second = pool.join(), pool.join()
    for buffer in [first.acquire(64) for _ in range(12)]:
        buffer.release()
    assert pool.statistics().buffers == 12
    lent = [second.acquire(64) for _ in range(12)]  # 4 from the list, 8 that the first one kept
    assert pool.statistics().allocations == 12 and refused(first, 64)
    for buffer in lent:
        buffer.release()
    large = first.acquire(128)  # the budget is the second one's, who has not borrowed
    assert pool.statistics().buffers == 1
    large.release()
    for door in (first, second):
        door.leave()
    assert pool.statistics().buffers == 0


def test_a_door_that_rests_leaves_what_the_others_keep(core):
    """Else a context that rests would make a busy one allocate anew."""
    pool = core.BufferPool([(64, 20)])
    busy, rests = pool.join(), pool.join()
    for door in (busy, rests):
        for buffer in [door.acquire(64) for _ in range(8)]:
            buffer.release()
    assert rests.trim() == 8 * (64 + BOOKKEEPING)
    assert busy.trim() == 8 * (64 + BOOKKEEPING)


def test_a_door_that_is_left_with_buffers_out_is_the_next_ones_at_once(core):
    """Its place was kept until the end of the pool: after 16 such doors nobody had one."""
    pool = core.BufferPool([(64, 100)])
    out = []
    for _ in range(POOL_CONTEXTS + 4):
        door = pool.join()
        out.append(door.acquire(64))
        door.leave()
    last, other = pool.join(), pool.join()
    for buffer in [last.acquire(64) for _ in range(POOL_OWN)]:
        buffer.release()
    assert other.trim() == 0  # all that is free lies at the last one
    for buffer in out:
        buffer.release()
    assert other.trim() == len(out) * (64 + BOOKKEEPING)
    assert last.trim() == POOL_OWN * (64 + BOOKKEEPING)
    last.leave()
    last.leave()  # now one of those who share a door
    last.acquire(64).release()
    assert pool.trim() == 64 + BOOKKEEPING
    assert pool.statistics().in_use == 0


def test_each_allocation_may_fail_and_nothing_but_the_refusal_is_seen(core):
    """Memory runs out at the worst place: every place is tried, and the pool goes on afterwards."""
    sizes = [16, 16, 100, 100, 4112]
    for failing in range(1, len(sizes) + 1):
        pool = core.BufferPool([(16, 2), (100, 2), (4112, 2)])
        pool.fail_at(failing)
        lent = []
        for number, size in enumerate(sizes, 1):
            before = pool.statistics()
            if number < failing:
                lent.append(pool.acquire(size))
                continue
            with pytest.raises(OutOfMemory):
                pool.acquire(size)
            assert pool.statistics() == before._replace(refusals=before.refusals + 1)
        assert pool.attempts == len(sizes)
        pool.fail_at(0)
        lent += [pool.acquire(size) for size in sizes[failing - 1 :]]
        assert pool.statistics().bytes == sum(sizes) + len(sizes) * BOOKKEEPING
        for buffer in lent:
            buffer.release()
        assert pool.close() == 0
        assert pool.statistics().bytes == 0


def test_a_memory_limit_refuses_like_any_lack_of_memory(core):
    """The limit of the source stands in for a machine that is full."""
    pool = core.BufferPool([(1000, 10)], limit=2 * (1000 + BOOKKEEPING))
    lent = [pool.acquire(1000), pool.acquire(1000)]
    assert refused(pool, 1000)
    assert pool.statistics().bytes == 2 * (1000 + BOOKKEEPING)
    for buffer in lent:
        buffer.release()


@pytest.mark.parametrize("used", [0, 1, 99, 100, None])
def test_returned_bytes_are_wiped_up_to_what_was_used(core, used):
    """What one peer sent must not be readable in the buffer of the next."""
    pool = core.BufferPool([(100, 1)])
    buffer = pool.acquire(100)
    assert bytes(buffer.view) == bytes(100)
    written = 100 if used is None else used
    buffer.view[:written] = b"\xaa" * written
    buffer.release(used)
    again = pool.acquire(100)
    assert bytes(again.view) == bytes(100)
    assert pool.statistics().allocations == 1  # it is the same memory
    again.release()


def test_releasing_twice_returns_a_buffer_once(core):
    """A buffer in the free list twice would be lent to two borrowers."""
    pool = core.BufferPool([(16, 4)])
    buffer = pool.acquire(1)
    buffer.release()
    buffer.release()
    assert (pool.statistics().returns, pool.statistics().in_use) == (1, 0)
    first, second = pool.acquire(1), pool.acquire(1)
    first.view[0] = 1
    assert second.view[0] == 0
    first.release()
    second.release()


def test_a_buffer_is_not_given_back_while_a_slice_of_it_is_alive(core):
    """A slice outlives the view that it was cut from, and would write into the buffer of whoever
    borrows next."""
    pool = core.BufferPool([(16, 1)])
    buffer = pool.acquire(16)
    whole, slice_of_slice = buffer.view, buffer.view[4:12][2:4]
    with pytest.raises(InvalidState, match="slice"):
        buffer.release()
    assert pool.statistics().in_use == 1
    slice_of_slice[0] = buffer.view[0] = 7  # nothing has changed: it is still ours
    slice_of_slice.release()
    buffer.release()
    for ended in (whole, buffer.view):
        with pytest.raises(ValueError, match="released"):
            ended[0] = 1
    again = pool.acquire(16)
    assert bytes(again.view) == bytes(16)
    again.release()


@pytest.mark.parametrize("borrower", ["buffer", "ingest", "reassembly", "pipeline"])
def test_a_pool_that_is_closed_before_its_borrower_keeps_nothing(core, borrower):
    """What comes back after the close is freed at once, whoever had it."""
    pool = core.BufferPool([(16_384, 4)])
    if borrower == "buffer":
        held = pool.acquire(1)
        end = held.release
    elif borrower == "ingest":
        held = core.Ingest(pool=pool)
        held.receive(core.encode_frame(1, bytes(500))[:100])
        end = held.close
    elif borrower == "reassembly":
        held = core.Reassembly(1000, pool=pool)
        held.receive(core.encode_fragment(1, 100, 0, 1) + bytes(10))
        end = held.close
    else:
        held = core.SendPipeline(depth=2, slot_size=8192, pool=pool)
        held.send(1, b"waits")
        end = held.close
    assert pool.statistics().in_use == 1 and pool.close() == 1
    end()
    assert (pool.statistics().in_use, pool.statistics().bytes) == (0, 0)


def test_close_says_how_many_buffers_are_still_lent(core):
    """A leak has a number, at the latest at the end."""
    pool = core.BufferPool([(16, 4)])
    lent = [pool.acquire(1) for _ in range(3)]
    lent.pop().release()
    assert pool.close() == 2
    assert pool.statistics().bytes == 2 * (16 + BOOKKEEPING)
    for buffer in lent:
        buffer.release()
    assert pool.close() == 0
    assert pool.statistics().bytes == 0  # what comes back after the close is freed at once


CLASSES = [(16, 3, 3), (64, 4, 1), (300, 4, 2)]


class Door:
    """What the oracle knows of one door: free buffers kept there, and how many it has lent."""

    def __init__(self):
        self.kept = dict.fromkeys((size for size, _, _ in CLASSES), 0)
        self.lent = dict.fromkeys(((size, share) for size in self.kept for share in (0, 1)), 0)
        self.high = dict.fromkeys(self.kept, 0)
        self.room = 0
        self.taken = False

    def in_use(self, size):
        return self.lent[size, 0] + self.lent[size, 1]


class Oracle:
    """What a pool must do, as plain sums: no list of buffers, no memory."""

    def __init__(self, budget):
        self.budget = budget
        self.dry = False
        self.listed = dict.fromkeys((size for size, _, _ in CLASSES), 0)
        self.counts = {size: [0, 0, 0] for size, _, _ in CLASSES}  # acquires, allocations, returns
        self.refusals = self.peak = 0
        self.doors = [Door()]

    def join(self):
        """The number of the door: the first that is not taken."""
        number = next((at for at, door in enumerate(self.doors) if at and not door.taken), None)
        if number is None:
            if len(self.doors) > POOL_CONTEXTS:
                return 0
            number = len(self.doors)
            self.doors.append(Door())
        self.doors[number].taken, self.doors[number].room = True, POOL_OWN
        return number

    def leave(self, number):
        door = self.doors[number]
        if door.room:
            self.trim(number)
            door.room, door.taken = 0, False

    def in_use(self, size):
        return sum(door.in_use(size) for door in self.doors)

    def free(self, size):
        return self.listed[size] + sum(door.kept[size] for door in self.doors)

    def existing(self, size):
        return self.in_use(size) + self.free(size)

    def held(self, beside=True):
        """Bytes of all buffers; beside=False: of those that the budget pays for."""
        return sum(
            (size + BOOKKEEPING)
            * (self.existing(size) - (0 if beside else sum(d.lent[size, 1] for d in self.doors)))
            for size in self.listed
        )

    def pays(self, size):
        return not self.budget or self.held(beside=False) + size + BOOKKEEPING <= self.budget

    def trim(self, number=0):
        """Of one door, when that has room for some, and the list; else of all."""
        before = self.held()
        door = self.doors[number]
        for each in [door] if door.room else self.doors:
            each.kept = dict.fromkeys(each.kept, 0)
        self.listed = dict.fromkeys(self.listed, 0)
        return before - self.held()

    def take_free(self, size, door):
        """Of this door, the list, and once no other can be made, of any door."""
        _, capacity, _ = next(each for each in CLASSES if each[0] == size)
        if door.kept[size] or self.listed[size]:
            place = door.kept if door.kept[size] else self.listed
        elif self.existing(size) == capacity:
            place = next((each.kept for each in self.doors if each.kept[size]), None)
        else:
            return False
        if place is not None:
            place[size] -= 1
        return place is not None

    def acquire(self, wanted, share, number):
        """The size of the buffer that is lent, or None."""
        size, capacity, _ = next(each for each in CLASSES if wanted <= each[0])
        door = self.doors[number]
        if not self.take_free(size, door):
            if self.existing(size) < capacity and (self.dry or not (share or self.pays(size))):
                self.trim()
            if self.existing(size) == capacity or self.dry or not (share or self.pays(size)):
                self.refusals += 1
                return None
            self.counts[size][1] += 1
        door.lent[size, share] += 1
        door.high[size] = max(door.high[size], door.in_use(size))
        self.counts[size][0] += 1
        self.peak = max(self.peak, self.held())
        return size

    def release(self, size, share, lender, number):
        """number: the door by which it comes back."""
        kept = next(each[2] for each in CLASSES if each[0] == size)
        door = self.doors[number]
        self.doors[lender].lent[size, share] -= 1
        self.counts[size][2] += 1
        if not self.pays(size):
            return
        if door.kept[size] < door.room:
            door.kept[size] += 1
        elif self.listed[size] < kept:
            self.listed[size] += 1

    def statistics(self):
        acquires, allocations, returns = map(sum, zip(*self.counts.values(), strict=True))
        buffers = sum(map(self.existing, self.listed))
        in_use = sum(map(self.in_use, self.listed))
        return (
            *(acquires, allocations, self.refusals, returns),
            *(self.held(), self.peak, in_use, buffers),
        )

    def class_statistics(self):
        return [
            (
                *(size, *self.counts[size], self.in_use(size)),
                sum(door.high[size] for door in self.doors),
                self.existing(size),
            )
            for size in self.listed
        ]


class PoolModel(RuleBasedStateMachine):
    """Any order of borrowing and returning, by any door, against an oracle that keeps no
    buffers."""

    def __init__(self, core):
        super().__init__()
        self.core = core
        self.lent = []
        self.left = []  # doors, by which what they lent comes back all the same

    @initialize(budget=st.sampled_from([0, 0, 400, 700, 1000]))
    def make(self, budget):
        self.pool = self.core.BufferPool(CLASSES, budget=budget)
        self.oracle = Oracle(budget)
        self.doors = [(self.pool, 0)]

    @rule(count=st.sampled_from([1, 1, 1, POOL_CONTEXTS]))
    def join(self, count):
        for _ in range(count):
            if len(self.doors) < POOL_CONTEXTS + 3:
                self.doors.append((self.pool.join(), self.oracle.join()))

    @precondition(lambda self: len(self.doors) > 1)
    @rule(data=st.data())
    def leave(self, data):
        door, number = self.doors.pop(data.draw(st.integers(1, len(self.doors) - 1)))
        door.leave()
        self.oracle.leave(number)
        self.left.append(door)

    @rule(data=st.data(), size=st.integers(1, 300), fill=st.integers(1, 255), share=st.booleans())
    def acquire(self, data, size, fill, share):
        door, number = data.draw(st.sampled_from(self.doors))
        expected = self.oracle.acquire(size, share, number)
        if expected is None:
            with pytest.raises(OutOfMemory):
                door.acquire(size, share=share)
            return
        buffer = door.acquire(size, share=share)
        assert buffer.size == expected
        assert bytes(buffer.view) == bytes(expected)
        buffer.view[:] = bytes([fill]) * expected
        self.lent.append((buffer, fill, door, number))

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def release(self, data):
        buffer, fill, door, number = self.lent.pop(data.draw(st.integers(0, len(self.lent) - 1)))
        assert bytes(buffer.view) == bytes([fill]) * buffer.size  # nobody else wrote here
        buffer.release()
        by = 0 if door in self.left else number
        self.oracle.release(buffer.size, buffer.is_share, number, by)

    @rule(data=st.data())
    def trim(self, data):
        door, number = data.draw(st.sampled_from(self.doors))
        assert door.trim() == self.oracle.trim(number)

    @rule(dry=st.booleans())
    def change_memory(self, dry):
        self.oracle.dry = dry
        self.pool.fail_at(1 if dry else 0)

    @invariant()
    def count(self):
        if hasattr(self, "pool"):
            assert self.pool.statistics() == self.oracle.statistics()
            assert self.pool.class_statistics() == self.oracle.class_statistics()

    def teardown(self):
        if hasattr(self, "pool"):
            for buffer, *_ in self.lent:
                buffer.release()
            assert self.pool.close() == 0


def test_every_counter_equals_the_sum_of_what_was_done(core):
    """Budgets, leaks and idle memory are judged by these numbers; they must be exact, not
    plausible."""
    run_state_machine_as_test(
        lambda: PoolModel(core),
        settings=settings(max_examples=settings().max_examples, stateful_step_count=40),
    )


@pytest.mark.threads
@pytest.mark.parametrize("doors", [False, True], ids=["one door", "a door each"])
def test_threads_that_share_a_pool_never_share_a_buffer(core, rounds, doors):
    """Workers borrow from one pool at the same time, and the C calls run without the interpreter's
    lock."""
    pool = core.BufferPool([(16, 5), (64, 6)], budget=500)
    turns = rounds(1_500, 100_000)
    faults = []
    start = threading.Barrier(8)

    def borrow(number):
        door = pool.join() if doors else pool
        start.wait()
        mark = bytes([number])
        for turn in range(turns):
            try:
                buffer = door.acquire(1 + (turn * 7 + number) % 64)
            except OutOfMemory:
                continue
            if bytes(buffer.view) != bytes(buffer.size):
                faults.append("not wiped")
            buffer.view[:] = mark * buffer.size
            if turn % 100 == number:
                door.trim()
            if bytes(buffer.view) != mark * buffer.size:
                faults.append("two borrowers")
            buffer.release()
        if doors:
            door.leave()

    threads = [threading.Thread(target=borrow, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    counted = pool.statistics()
    assert faults == []
    assert counted.acquires + counted.refusals == 8 * turns
    assert (counted.returns, counted.in_use) == (counted.acquires, 0)
    assert counted.peak_bytes <= 500
    assert pool.trim() == counted.bytes
    assert pool.close() == 0
