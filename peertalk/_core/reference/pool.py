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
    acquires: int = 0
    allocations: int = 0
    returns: int = 0
    existing: int = 0
    free: list[bytearray] = field(default_factory=list)

    @property
    def cost(self) -> int:
        return self.buffer_size + BOOKKEEPING


class _Place:
    """What a door has of one class: the buffers on its shelf, and how many it has lent, now and at
    most."""

    __slots__ = ("high_water", "lent", "shelf")

    def __init__(self) -> None:
        self.shelf: list[bytearray] = []
        self.lent = self.high_water = 0


class Buffer:
    """A lent buffer. view: writable, `size` bytes, zero at first; it ends with the release."""

    def __init__(
        self, door: PoolDoor, size_class: _SizeClass, memory: bytearray, is_share: bool
    ) -> None:
        self.size = size_class.buffer_size
        self.is_share = is_share
        self.view = memoryview(memory)
        self._door = door
        self._size_class = size_class
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
        self._door._pool._take_back(
            self._door, self._size_class, memory, self.size if used is None else used, self.is_share
        )


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
        self._budget = budget
        self._limit = limit
        self._lock = threading.Lock()
        self._refusals = 0
        self._bytes = self._peak_bytes = self._budgeted = 0
        self._attempts = self._fail_at = 0
        self._closed = False
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
            door = next((each for each in self._doors[1:] if not each._taken), None)
            if door is None:
                if len(self._doors) > POOL_CONTEXTS:
                    return self._doors[0]
                door = PoolDoor(self)
                self._doors.append(door)
            door._taken = True
            door._room = POOL_OWN
            return door

    def _lend(self, door: PoolDoor, size: int, share: bool) -> Buffer:
        size_class = next((each for each in self._classes if 0 < size <= each.buffer_size), None)
        if size_class is None:
            raise OutOfMemory(
                f"a buffer of {size:,} bytes: the pool lends 1 to {self._classes[-1].buffer_size:,}"
            )
        place = door._places[self._classes.index(size_class)]
        with self._lock:
            free = self._free(size_class, place)
            if free is None:
                refusal = self._refusal(size_class, share)
                while refusal is not None and (
                    size_class.existing < size_class.capacity and self._trim()
                ):
                    refusal = self._refusal(size_class, share)
                if refusal is not None:
                    free = self._free(size_class, *self._places(size_class))
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
            size_class.acquires += 1
            place.lent += 1
            place.high_water = max(place.high_water, place.lent)
        return Buffer(door, size_class, free, share)

    def _places(self, size_class: _SizeClass) -> list[_Place]:
        index = self._classes.index(size_class)
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

    def _take_back(
        self,
        door: PoolDoor,
        size_class: _SizeClass,
        memory: bytearray,
        used: int,
        is_share: bool,
    ) -> None:
        memory[:used] = bytes(min(used, size_class.buffer_size))
        with self._lock:
            place = door._places[self._classes.index(size_class)]
            place.lent -= 1
            size_class.returns += 1
            self._budgeted -= 0 if is_share else size_class.cost
            payable = not self._budget or self._budgeted + size_class.cost <= self._budget
            has_room = len(place.shelf) < door._room
            if payable and (has_room or len(size_class.free) < size_class.kept):
                (place.shelf if has_room else size_class.free).append(memory)
                self._budgeted += size_class.cost
            else:
                size_class.existing -= 1
                self._bytes -= size_class.cost
        if self._closed:
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

    @property
    def acquires(self) -> int:
        """Successful acquires so far."""
        return sum(each.acquires for each in self._classes)

    def statistics(self) -> PoolStatistics:
        """The counters; see PoolStatistics."""
        with self._lock:
            acquires, returns = self.acquires, sum(each.returns for each in self._classes)
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
        with self._lock:
            return [
                PoolClassStatistics(
                    each.buffer_size,
                    each.acquires,
                    each.allocations,
                    each.returns,
                    each.acquires - each.returns,
                    sum(place.high_water for place in self._places(each)),
                    each.existing,
                )
                for each in self._classes
            ]

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
        back."""
        self._closed = True
        self.trim()
        return self.statistics().in_use


class PoolDoor:
    """One thread's way into a pool; the first one is everybody's, and keeps nothing."""

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._taken = False
        self._room = 0
        self._places = [_Place() for _ in pool._classes]

    def acquire(self, size: int, share: bool = False) -> Buffer:
        """As of the pool; the buffer comes back by this door."""
        return self._pool._lend(self, size, share)

    def trim(self) -> int:
        """Give the memory of what is free here, and not at other doors, back. Returns the bytes
        freed."""
        with self._pool._lock:
            return self._pool._trim(self if self._room else None)

    def leave(self) -> None:
        """Free what is kept here. What is still lent comes back later, by whichever thread."""
        with self._pool._lock:
            if self._room:
                self._pool._trim(self)
                self._room = 0
                self._taken = sum(place.lent for place in self._places) != 0
