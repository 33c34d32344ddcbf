"""Buffers in size classes: lent, returned, counted. The yardstick of the C pool.

A class keeps a list of the buffers that nobody has borrowed and a count of those that exist. A
buffer costs its size and 16 bytes, as in C, where these hold its header, so that budgets and
statistics of both mean the same.

Invariant: the bytes are the sum over all buffers that exist; without the shares, which are lent
beside the budget, they are never above it. A refusal changes nothing but its count, and that what
nobody had borrowed is freed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from peertalk._core.values import PoolClassStatistics, PoolStatistics
from peertalk._numbers import POOL_CONTEXTS, POOL_MAX_CLASSES, POOL_OWN
from peertalk.errors import InvalidArgument, InvalidState, OutOfMemory

BOOKKEEPING = 16
"""Bytes that each buffer costs beside its size."""

MAX_CLASSES = POOL_MAX_CLASSES
MAX_CAPACITY = 65_535
MAX_BUFFER_SIZE = 2**32 - 1 - BOOKKEEPING


@dataclass(slots=True)
class _SizeClass:
    buffer_size: int
    capacity: int
    kept: int
    allocations: int = 0
    returns: int = 0
    existing: int = 0
    free: list[bytearray] = field(default_factory=list)

    @property
    def cost(self) -> int:
        return self.buffer_size + BOOKKEEPING


class _Place:
    """What a door has of one class: the buffers on its shelf, how many it has lent so far, and how
    many of these are out, now and at most."""

    __slots__ = ("acquires", "high_water", "lent", "shelf")

    def __init__(self) -> None:
        self.shelf: list[bytearray] = []
        self.acquires = self.lent = self.high_water = 0


class Buffer:
    """A lent buffer. view: writable, `size` bytes, zero at first; it ends with the release."""

    def __init__(self, door: PoolDoor, index: int, memory: bytearray, is_share: bool) -> None:
        self.size = len(memory)
        self.is_share = is_share
        self.view = memoryview(memory)
        self._door = door
        self._index = index
        self._lender = door._places[index]
        self._memory: bytearray | None = memory

    def release(self, used: int | None = None) -> None:
        """Give the buffer back; a second time does nothing. used: bytes from its start that were
        written and are wiped (None: all).

        Raises:
            InvalidState: a slice of the view is alive, and would write into the next one's buffer.
                The buffer is still lent, with a view anew.
        """
        memory = self._memory
        if memory is None:
            return
        self.view.release()
        try:
            memory.append(0)  # refused while somebody looks at its bytes
        except BufferError:
            self.view = memoryview(memory)
            raise InvalidState(
                "a slice of this buffer's view is alive: release that first, then the buffer"
            ) from None
        memory.pop()
        self._memory = None
        memory[:used] = bytes(self.size if used is None else min(used, self.size))
        self._door._pool._take_back(self, memory)


class BufferPool:
    """Lends buffers of a few sizes; may be used from any thread.

    Args:
        classes: (buffer_size, capacity) or (buffer_size, capacity, kept), 1 to 16, ascending sizes
            in bytes; capacity: how many may exist at once, 1 to 65,535; kept: how many free ones
            stay for the next borrower, at most capacity; 0: all.
        budget: bytes that all buffers but the shares may hold together, 16 for each included; 0:
            no limit beside the capacities.
        limit: bytes that the memory behind the pool has; 0: no limit.

    Raises:
        InvalidArgument: the classes are not as said.
    """

    def __init__(self, classes: Sequence[tuple[int, ...]], budget: int = 0, limit: int = 0) -> None:
        made = [_SizeClass(each[0], each[1], (*each, 0)[2]) for each in classes]
        sizes = [each.buffer_size for each in made]
        if (
            not 1 <= len(sizes) <= MAX_CLASSES
            or sizes != sorted(set(sizes))
            or sizes[0] < 1
            or sizes[-1] > MAX_BUFFER_SIZE
        ):
            raise InvalidArgument(
                f"pool classes of {sizes} bytes: give 1 to {MAX_CLASSES} different sizes, "
                "ascending, at least 1 byte"
            )
        for each in made:
            if not 1 <= each.capacity <= MAX_CAPACITY or not 0 <= each.kept <= each.capacity:
                raise InvalidArgument(
                    f"pool class of {each.buffer_size:,} bytes has capacity {each.capacity:,} and "
                    f"keeps {each.kept:,}: allowed are 1 to {MAX_CAPACITY:,}, and no more kept"
                )
            each.kept = each.kept or each.capacity
        self._classes = made
        self.largest = sizes[-1]
        self._budget = budget
        self._limit = limit
        self._lock = threading.Lock()
        self._refusals = 0
        self._bytes = self._peak_bytes = self._budgeted = 0
        self._attempts = self._fail_at = 0
        self.closed = False
        self._doors = [PoolDoor(self)]

    def acquire(self, size: int, share: bool = False) -> Buffer:
        """Borrow a zeroed buffer of at least size bytes, from the smallest class that holds it; a
        larger one is not tried. share: beside the budget.

        Raises:
            OutOfMemory: class, budget or memory are used up (counted), or size is 0 or above the
                largest class.
        """
        return self._lend(self._doors[0], size, share)

    def join(self) -> PoolDoor:
        """A door for one thread, which keeps up to 8 free buffers of each class there; with 16 of
        them about, the door that all others share."""
        with self._lock:
            number = next((at for at, each in enumerate(self._doors) if at and not each._room), 0)
            if number == 0 and len(self._doors) > POOL_CONTEXTS:
                return self._doors[0]
            door = PoolDoor(self)
            door._room = POOL_OWN
            if number == 0:
                self._doors.append(door)
            else:  # what was counted there goes on
                door._places = self._doors[number]._places
                self._doors[number] = door
            return door

    def _lend(self, door: PoolDoor, size: int, share: bool) -> Buffer:
        fits = (at for at, each in enumerate(self._classes) if 0 < size <= each.buffer_size)
        index = next(fits, None)
        if index is None:
            raise OutOfMemory(f"a buffer of {size:,} bytes: the pool lends 1 to {self.largest:,}")
        size_class, place = self._classes[index], door._places[index]
        with self._lock:
            free = self._free(size_class, place)
            if free is None:
                refusal = self._refusal(size_class, share)
                while refusal is not None and (
                    size_class.existing < size_class.capacity and self._trim()
                ):
                    refusal = self._refusal(size_class, share)
                if refusal is not None:
                    free = self._free(size_class, *self._places(index))
                    if free is None:
                        self._refusals += 1
                        raise OutOfMemory(f"a buffer of {size:,} bytes: {refusal}")
            if free is None:
                free = bytearray(size_class.buffer_size)
                size_class.existing += 1
                size_class.allocations += 1
                self._bytes += size_class.cost
                self._budgeted += 0 if share else size_class.cost
                self._peak_bytes = max(self._peak_bytes, self._bytes)
            else:
                self._budgeted -= size_class.cost if share else 0
            place.acquires += 1
            place.lent += 1
            place.high_water = max(place.high_water, place.lent)
        return Buffer(door, index, free, share)

    def _places(self, index: int) -> list[_Place]:
        return [door._places[index] for door in self._doors]

    def _free(self, size_class: _SizeClass, *places: _Place) -> bytearray | None:
        """A free buffer from the first of these places that has one, else from the list."""
        shelf = next((place.shelf for place in places if place.shelf), size_class.free)
        return shelf.pop() if shelf else None

    def _refusal(self, size_class: _SizeClass, share: bool) -> str | None:
        """Why another buffer of this class cannot be made; None: it can."""
        if size_class.existing == size_class.capacity:
            return (
                f"all {size_class.capacity:,} buffers of {size_class.buffer_size:,} bytes are "
                "lent (the capacity of their class)"
            )
        if self._budget and not share and self._budgeted + size_class.cost > self._budget:
            return f"{self._budgeted:,} bytes are held, and the budget is {self._budget:,}"
        self._attempts += 1
        if self._fail_at and self._attempts >= self._fail_at:
            return "the memory refused (injected fault)"
        if self._limit and self._bytes + size_class.cost > self._limit:
            return f"{self._bytes:,} bytes are held, and the memory has {self._limit:,}"
        return None

    def _take_back(self, buffer: Buffer, memory: bytearray) -> None:
        door, size_class = buffer._door, self._classes[buffer._index]
        with self._lock:
            buffer._lender.lent -= 1
            size_class.returns += 1
            self._budgeted -= 0 if buffer.is_share else size_class.cost
            payable = not self._budget or self._budgeted + size_class.cost <= self._budget
            shelf = door._places[buffer._index].shelf
            has_room = len(shelf) < door._room
            if payable and (has_room or len(size_class.free) < size_class.kept):
                (shelf if has_room else size_class.free).append(memory)
                self._budgeted += size_class.cost
            else:
                size_class.existing -= 1
                self._bytes -= size_class.cost
        if self.closed:
            self.trim()

    def trim(self) -> int:
        """Give the memory of all free buffers back. Returns the bytes freed."""
        with self._lock:
            return self._trim()

    def _trim(self, only: PoolDoor | None = None) -> int:
        """Of all doors, or of one, what is free; and what lies on the list."""
        freed = 0
        for index, size_class in enumerate(self._classes):
            doors = self._doors if only is None else [only]
            lists = [size_class.free, *(door._places[index].shelf for door in doors)]
            count = sum(map(len, lists))
            for each in lists:
                each.clear()
            size_class.existing -= count
            freed += count * size_class.cost
        self._bytes -= freed
        self._budgeted -= freed
        return freed

    def is_scarce(self) -> bool:
        """Whether less than an eighth of the budget can still be lent; frees what is not lent to
        find out."""
        enough = self._budget // 8
        if not self._budget or self._budget - self._budgeted >= enough:
            return False
        self.trim()
        return self._budget - self._budgeted < enough

    def statistics(self) -> PoolStatistics:
        """The counters; see PoolStatistics."""
        with self._lock:
            acquires = sum(door._lent_so_far() for door in self._doors)
            returns = sum(each.returns for each in self._classes)
            return PoolStatistics(
                acquires,
                sum(each.allocations for each in self._classes),
                self._refusals,
                returns,
                self._bytes,
                self._peak_bytes,
                acquires - returns,
                sum(each.existing for each in self._classes),
            )

    def class_statistics(self) -> list[PoolClassStatistics]:
        """The counters of each class, in the order of their sizes."""
        table = []
        with self._lock:
            for index, each in enumerate(self._classes):
                places = self._places(index)
                acquires = sum(place.acquires for place in places)
                table.append(
                    PoolClassStatistics(
                        each.buffer_size,
                        acquires,
                        each.allocations,
                        each.returns,
                        acquires - each.returns,
                        sum(place.high_water for place in places),
                        each.existing,
                    )
                )
        return table

    @property
    def attempts(self) -> int:
        """Allocations tried since fail_at() was called."""
        return self._attempts

    def fail_at(self, n: int) -> None:
        """Make the n-th allocation from now, and all after it, fail; 0: none."""
        with self._lock:
            self._attempts = 0
            self._fail_at = n

    def close(self) -> int:
        """Free every buffer. Returns the number that are still lent; each is freed when it comes
        back. No loop opens with this pool any more; those that have it go on."""
        self.closed = True
        self.trim()
        return self.statistics().in_use


class PoolDoor:
    """One thread's way into a pool; the first one is everybody's, and keeps nothing."""

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._room = 0
        self._places = [_Place() for _ in pool._classes]

    def _lent_so_far(self) -> int:
        return sum(place.acquires for place in self._places)

    @property
    def acquires(self) -> int:
        """Successful acquires so far by this door and by those who have none of their own."""
        first = self._pool._doors[0]
        return self._lent_so_far() + (0 if self is first else first._lent_so_far())

    @property
    def largest(self) -> int:
        """As of the pool."""
        return self._pool.largest

    def acquire(self, size: int, share: bool = False) -> Buffer:
        """As of the pool; the buffer comes back by this door."""
        return self._pool._lend(self, size, share)

    def trim(self) -> int:
        """Give the memory of what is free here, and not at other doors, back. Returns the bytes
        freed."""
        with self._pool._lock:
            return self._pool._trim(self if self._room else None)

    def leave(self) -> None:
        """Free what is kept here. From now on this is the door that all others share: what is still
        lent comes back by that, from whichever thread."""
        pool = self._pool
        with pool._lock:
            if self._room:
                pool._trim(self)
                self._room = 0
                left = PoolDoor(pool)  # until somebody joins, what was counted here
                left._places = self._places
                pool._doors[pool._doors.index(self)] = left
                self._places = pool._doors[0]._places
