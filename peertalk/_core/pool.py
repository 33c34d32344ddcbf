"""The owner of the C pool: buffers in size classes, lent and returned.

Invariant: a buffer's view ends with its release, so that nobody writes into the next borrower's
memory; the tables are freed after everything that was lent.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from typing import Any

from peertalk import errors
from peertalk._core.binding import Binding
from peertalk._core.values import PoolClassStatistics, PoolStatistics

POOL_CAPACITY = 8_192
"""Buffers of one class that the budget of a loop's pool may pay for."""
POOL_LINKS = 1_088
"""Links whose share a loop's pool has room for, when nothing else is said."""
POOL_CAPACITY_MAX = 65_535
"""Buffers of one class that a pool can count."""


class Buffer:
    """A lent buffer. view: writable, size bytes, zero at first; it ends with the release."""

    def __init__(
        self, pool: BufferPool, by: BufferPool | PoolDoor, pointer: Any, is_share: bool
    ) -> None:
        self._pool = pool
        self._by = by
        self._pointer = pointer
        self.is_share = is_share
        self.size: int = pool._lib.pt_pool_buffer_size(pointer)
        self._show()

    def _show(self) -> None:
        memory = self._pool._ffi.buffer(self._pointer, self.size)
        self._shown = weakref.ref(memory)
        self.view = memoryview(memory)

    def release(self, used: int | None = None) -> None:
        """Give the buffer back; a second time does nothing. used: bytes from its start that were
        written and are wiped (None: all).

        Raises:
            InvalidState: a slice of the view is alive, and would write into the next one's buffer.
                The buffer is still lent, with a view anew.
        """
        if self._pointer is None:
            return
        self.view.release()
        if self._shown() is not None:
            self._show()
            raise errors.InvalidState(
                "a slice of this buffer's view is alive: release that first, then the buffer"
            )
        pointer, self._pointer = self._pointer, None
        used = self.size if used is None else min(used, self.size)
        self._pool._lib.pt_pool_release(self._by._door, pointer, used)
        self._pool._settle()


def own_pages(ffi: Any, kind: str, size: int, what: str) -> Any:
    """An array of size bytes in pages of its own, of which those cost nothing that were never
    written to. kind: its C type; what: its name in the message of OutOfMemory."""
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise errors.OutOfMemory(
            f"{what} of {size:,} bytes: the system gives no memory: {error}"
        ) from error
    return ffi.from_buffer(kind, memory)


def receive_memory(ffi: Any, size: int) -> Any:
    """Memory of its own pages for what is received, and a heap that keeps as much."""
    buffer = own_pages(ffi, "uint8_t[]", size, "a receive buffer")
    # Until a block of such a size was freed once, glibc gives the top of the heap back to the
    # system beyond 128 KiB (mallopt(3)): the payloads of each turn would be faulted in anew.
    bytes(2 * size)
    return buffer


class BufferPool:
    """Lends buffers of a few sizes; may be used from any thread. Its table is not written to before
    so many buffers exist, so that memory which was never touched costs nothing.

    Args:
        classes: (buffer_size, capacity) or (buffer_size, capacity, kept), 1 to 16, ascending sizes
            in bytes; capacity: how many may exist at once, 1 to 65,535; kept: how many free ones
            stay for the next borrower, at most capacity; 0: all.
        budget: bytes that all buffers together may hold, bookkeeping included; 0: no limit beside
            the capacities.
        limit: bytes that the memory behind the pool has; 0: no limit.

    Raises:
        InvalidArgument: the classes are not as said.
    """

    def __init__(
        self, binding: Binding, classes: Sequence[tuple[int, ...]], budget: int = 0, limit: int = 0
    ) -> None:
        self._binding = binding
        self._ffi = ffi = binding.ffi
        self._lib = lib = binding.lib
        self.closed = False
        wanted = (
            f"give 1 to {lib.PT_POOL_MAX_CLASSES} different sizes, ascending, at least 1 byte, "
            "capacities 1 to 65,535, and keep none or up to a capacity"
        )
        if not 1 <= len(classes) <= lib.PT_POOL_MAX_CLASSES or any(
            not 0 <= number < 2**32 for each in classes for number in each
        ):
            raise errors.InvalidArgument(f"pool classes {list(classes)}: {wanted}")
        array = ffi.new("pt_pool_class[]", list(classes))
        size = lib.pt_pool_size(array, len(classes))
        if size == 0:
            raise errors.InvalidArgument(f"pool classes {list(classes)}: {wanted}")
        self._sizes = [each[0] for each in classes]
        self.largest = self._sizes[-1]
        self._account = ffi.new("pt_posix_memory *")
        self._account.limit = limit
        source = ffi.new("pt_memory *")
        lib.pt_posix_memory_source(self._account, source)
        self._memory = own_pages(ffi, "uint64_t[]", (size + 7) // 8 * 8, "the tables of a pool")
        self._door = lib.pt_pool_init(self._memory, array, len(classes), budget, source)
        if self._door == ffi.NULL:
            raise errors.InvalidArgument(f"pool classes {list(classes)}: {wanted}")

    def acquire(self, size: int, share: bool = False) -> Buffer:
        """Borrow a zeroed buffer of at least size bytes, from the smallest class that holds it; a
        larger one is not tried. share: beside the budget.

        Raises:
            OutOfMemory: class, budget or memory are used up (counted), or size is 0 or above the
                largest class.
        """
        return self._lend(self, size, share)

    def join(self) -> PoolDoor:
        """A door for one thread, which keeps up to 8 free buffers of each class there; with 16 of
        them about, the door that all others share."""
        return PoolDoor(self)

    def _lend(self, by: BufferPool | PoolDoor, size: int, share: bool) -> Buffer:
        acquire = self._lib.pt_pool_acquire_share if share else self._lib.pt_pool_acquire
        pointer = acquire(by._door, size) if 0 < size < 2**32 else self._ffi.NULL
        if pointer == self._ffi.NULL:
            raise errors.OutOfMemory(
                f"a buffer of {size:,} bytes: the pool has none to lend (its largest class "
                f"has {self.largest:,})"
            )
        return Buffer(self, by, pointer, share)

    def _settle(self) -> None:
        """Something came back: of a closed pool it is freed."""
        if self.closed:
            self._lib.pt_pool_trim(self._door)

    def statistics(self) -> PoolStatistics:
        """The counters; see PoolStatistics."""
        out = self._ffi.new("pt_pool_statistics *")
        self._lib.pt_pool_get_statistics(self._door, out)
        return PoolStatistics(
            out.acquires,
            out.allocations,
            out.refusals,
            out.returns,
            out.bytes,
            out.peak_bytes,
            out.in_use,
            out.buffers,
        )

    def class_statistics(self) -> list[PoolClassStatistics]:
        """The counters of each class, in the order of their sizes."""
        out = self._ffi.new("pt_pool_class_statistics *")
        table = []
        for index, size in enumerate(self._sizes):
            self._lib.pt_pool_get_class_statistics(self._door, index, out)
            table.append(
                PoolClassStatistics(
                    size,
                    out.acquires,
                    out.allocations,
                    out.returns,
                    out.in_use,
                    out.high_water,
                    out.buffers,
                )
            )
        return table

    def trim(self) -> int:
        """Give the memory of all free buffers back. Returns the bytes freed."""
        return int(self._lib.pt_pool_trim(self._door))

    def fail_at(self, n: int) -> None:
        """Make the n-th allocation from now, and all after it, fail; 0: none."""
        self._lib.pt_posix_memory_fail_at(self._account, n)

    @property
    def attempts(self) -> int:
        """Allocations tried since fail_at() was called."""
        return int(self._account.attempts)

    def close(self) -> int:
        """Free every buffer. Returns the number that are still lent; each is freed when it comes
        back. No loop opens with this pool any more; those that have it go on."""
        self.closed = True
        self.trim()  # not pt_pool_cleanup(), which must be alone: loops may be about
        return self.statistics().in_use

    def __del__(self) -> None:
        if hasattr(self, "_door"):
            self.close()


class PoolDoor:
    """One thread's way into a pool."""

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._door = pool._lib.pt_pool_join(pool._door)

    def acquire(self, size: int, share: bool = False) -> Buffer:
        """As of the pool; the buffer comes back by this door."""
        return self._pool._lend(self, size, share)

    def trim(self) -> int:
        """Give the memory of what is free here, and not at other doors, back. Returns the bytes
        freed."""
        return int(self._pool._lib.pt_pool_trim(self._door))

    def leave(self) -> None:
        """Free what is kept here. From now on this is the door that all others share: what is still
        lent comes back by that, from whichever thread."""
        door, self._door = self._door, self._pool._door
        self._pool._lib.pt_pool_leave(door)


WORKER_BLOCKS = 256
"""Buffers of what the links of a worker have brought, at most: see pt_worker.h. A whole frame of
each link is in them."""


def loop_pool(
    binding: Binding, pool_bytes: int = 64 << 20, links: int = POOL_LINKS, loops: int = 1
) -> BufferPool:
    """A pool with the sizes that loops borrow, for one loop or several.

    Args:
        pool_bytes: bytes that the larger buffers of links in bulk may hold together, beside the
            share of each link.
        links: how many links have a share, those of all loops together.
        loops: how many loops have this pool.

    Raises:
        InvalidArgument: pool_bytes is not at least 1, or the classes get too large.
    """
    if pool_bytes < 1:
        raise errors.InvalidArgument(
            f"pool_bytes of {pool_bytes}: slots and staging buffers need some"
        )
    return BufferPool(binding, _loop_classes(binding.lib, pool_bytes, links, loops), pool_bytes)


def _loop_classes(lib: Any, pool_bytes: int, links: int, loops: int) -> list[tuple[int, int]]:
    """Size classes of a loop's pool, and how many buffers of each: what the budget pays for, and
    the share of each link, of which a cut frame and a message in pieces may have any size, and
    slots lie in the smallest. The largest is for what a turn has read and leaves to the next. A
    loop may be just giving one of each back, which is nobody's for a moment; one beside the first
    may be a worker, which keeps what its links have brought."""
    frame = lib.PT_FRAME_MAX_PAYLOAD + lib.PT_FRAME_OVERHEAD
    shares = {
        lib.PT_RECEIVE_BUFFER_SIZE: 0,
        256: 3,
        1040: 2,
        4112: 0,
        lib.PT_POSIX_SLOT_SIZE: 0,
        min(4112, lib.PT_POSIX_SLOT_SIZE): 2,  # up to 4,096 bytes an original sends in pieces
        frame: 2 + lib.PT_SLOT_SHARE,
    }
    return [
        (
            size,
            min(
                max(1, min(pool_bytes // size, POOL_CAPACITY))
                + share * links
                + loops
                + WORKER_BLOCKS * (loops - 1),
                POOL_CAPACITY_MAX,
            ),
        )
        for size, share in sorted(shares.items())
    ]
