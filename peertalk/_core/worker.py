"""Links on a thread of their own: bytes move while the program computes.

The thread is Python's and spends its life in one native call, without the GIL. What its links bring
is kept in C until turn(), on whichever thread owns the worker's links, gives it out as a turn of a
loop would. So whoever serves a Loop serves a Worker too.

Invariant: the thread's frame holds all memory that its call uses. Never: a callback, or Python code
on that thread.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from peertalk import errors
from peertalk._core.loop import Event, Loop


class Worker(Loop):
    """A loop that is turned by a thread of its own, for links alone.

    turn() takes what the links have brought, as Loop.turn() without waiting; watches, timers and
    waiting are home's, whose wait ends when there is something to take. A link is not read before
    its resume().

    Args:
        home: the loop of whoever takes, whose core and pool this has.
        name: of the thread.
        io_budget: as of Loop.

    Raises:
        InvalidState: home is closed. OutOfMemory, PlatformError: as Loop.
    """

    def __init__(self, home: Loop, name: str = "peertalk worker", *, io_budget: int = 16) -> None:
        home._check_open()
        self._home = home
        self._worker = home._ffi.new("pt_worker *")
        self._large = home._ffi.new("pt_memory *")
        home._lib.pt_posix_memory_source(home.pool._account, self._large)
        self._dead = home._workers[0]._dead if home._workers else home._ffi.new("void **")
        super().__init__(
            home._binding,
            io_budget=io_budget,
            pool=home.pool,
            platform="posix_worker",
            epoll=home.fd >= 0,
        )
        # As much may come again while it is taken: together what a loop has read after a turn.
        limit = home._lib.PT_RECEIVE_BUFFER_SIZE // 2
        code = self._lib.pt_worker_init(
            self._worker, self._context, home._context, self._large, limit
        )
        if code != 0:
            super().close()
            raise self._binding.fault(code, "a worker")
        self._worker.dead = self._dead
        self._thread = threading.Thread(
            target=_work,
            args=(self._lib.pt_worker_run, self._worker, self._memory),
            name=name,
            daemon=True,
        )
        home._workers = (*home._workers, self)
        try:
            with _signals_blocked():
                self._thread.start()
            self._lib.pt_worker_await(self._worker)
        except BaseException:
            self.close()
            raise

    def _parts(self) -> tuple[Any, ...]:
        return (self._lib, self._worker, self._large, self._dead, self._home._memory)

    def turn(self, timeout: float | None = 0.0, events: list[Event] | None = None) -> list[Event]:
        """What the links have brought since the last call, as Loop.turn() gives it. Waits for
        nothing, whatever the timeout."""
        return super().turn(0.0, events)

    @property
    def tells_sent(self) -> bool:
        """Whether what has left ends home's wait. If not, which is so at first, it is told with
        what comes next, unless a sender has found no room."""
        return bool(self._worker.tells_sent)

    @tells_sent.setter
    def tells_sent(self, tells: bool) -> None:
        if not self._closed:
            self._lib.pt_worker_set_tells_sent(self._worker, tells)

    @property
    def links(self) -> int:
        """Links that this worker has."""
        return int(self._context.link_count)

    def give(self, to: Worker) -> bool:
        """Move one of its links to another worker of its home. False: none can be moved now.

        Raises:
            As Link.move().
        """
        return any(link.move(to) for link in list(self._links))

    def keeps(self, tag: int) -> int:
        """Frames of the link with this tag that it has brought and turn() has not given out."""
        return 0 if self._closed else int(self._lib.pt_worker_keeps(self._worker, tag))

    @property
    def waits(self) -> int:
        """How often the thread went to sleep: that it woke is a wake-up of the process."""
        return int(self._worker.turns_waited)

    @property
    def pongs(self) -> tuple[int, int]:
        """Answers to PINGs that left, and those for which there was no room."""
        return int(self._worker.pongs), int(self._worker.pongs_dropped)

    def close(self) -> None:
        """Stop the thread, close links, and forget everything. Idempotent."""
        if self._closed:
            return
        self._lib.pt_worker_stop(self._worker)  # and wait until its call is over
        if self._thread.ident is not None and not sys.is_finalizing():
            self._thread.join()  # which at the end of an interpreter waits for ever, or not at all
        turn = self._turn  # which at its own end lets go of what links need until theirs
        with contextlib.suppress(errors.PeerTalkError, MemoryError):
            turn([])  # what nobody takes any more
        self._lib.pt_worker_cleanup(self._worker)
        super().close()
        del turn
        self._home._workers = tuple(each for each in self._home._workers if each is not self)

    def orphan(self) -> None:
        """As of Loop. The thread is not in the child, and may have had the lock: nothing that it
        used is touched."""
        if not self._closed:
            self._closed = True
            self._links.clear()  # so that none of them is closed
            self._ops.cleanup(self._platform)
            self._turn = self._closed_turn
            self.disown()
            self.fd = -1


def _work(run: Callable[[Any], int], worker: Any, memory: tuple[Any, ...]) -> None:
    """The life of the thread. memory: what its frame holds."""
    run(worker)
    del memory


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """A thread that is started inside takes no signal: those are for the threads that run
    Python."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
