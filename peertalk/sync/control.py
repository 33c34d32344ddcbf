"""The thread that decides while the program does something else: it keeps a node alive between two
calls of its methods.

It sleeps on what the node's loop waits for and turns the engine when something is due and nobody
else turns it. A thread that is in a method, or was just now, comes first: what comes then is its
own, and two threads that take turns at the interpreter cost more than either does alone.

Invariant: the engine is turned under the node's lock, here as everywhere. Never: holds the lock
while it waits.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from _thread import RLock
from collections.abc import Callable
from typing import Any

from .. import errors
from ..runtime import forks
from ..runtime.transport import Transport

_GRACE = 0.01
"""Seconds after a turn of another thread in which that thread is expected again."""
_LATEST = 3600.0
"""Seconds of one sleep at most, which poll(2) counts in milliseconds of 31 bits."""
_BEGINS = 1.0
"""Seconds that a thread may take to begin. Nobody can tell one that is about to from one that never
will, where a signal handler has struck its start."""


class _End:
    """A descriptor that is closed when nobody uses it any more: while a thread is about to write to
    a number, that number must not become another file's."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.number)


class Control:
    """Turns an engine while no other thread does, from start() to stop().

    Args:
        lock: the node's, which whoever turns the engine holds.
        turned: when another thread had turned it last, by time.monotonic().
        changed: called under the lock after each turn here.
    """

    def __init__(
        self, lock: RLock, turned: Callable[[], float], changed: Callable[[], None]
    ) -> None:
        self._lock = lock
        self._turned = turned
        self._changed = changed
        self._stopped = False
        self._descriptors: list[int] = []
        self._kicks: _End | None = None
        """Where kick() writes."""
        self._thread: threading.Thread | None = None
        self._working = threading.Lock()
        """The thread has it while it works."""
        self._begun = threading.Event()
        """Set when the thread runs: where a signal handler has struck its start, it may never."""

    def start(self, engine: Transport, name: str) -> None:
        """Begin, once; the caller holds the lock, or nobody else knows the engine.

        Raises:
            PlatformError: there are no more descriptors, or threads.
        """
        try:
            # A copy: that of the engine is closed by whichever thread ends it, and reused.
            self._descriptors = [os.dup(engine.loop.fd)]
            self._descriptors += os.pipe()
            self._kicks = _End(self._descriptors.pop())
        except OSError as error:
            self._close()
            raise errors.PlatformError(f"a control thread needs descriptors: {error}") from None
        for end in self._descriptors[1], self._kicks.number:
            os.set_blocking(end, False)
        forks.heed(self)
        self._thread = threading.Thread(
            target=self._run, args=(engine, *self._descriptors), name=name, daemon=True
        )
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        except RuntimeError as error:
            self._thread = None
            self._close()
            raise errors.PlatformError(f"the control thread does not start: {error}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def kick(self) -> None:
        """Something is due sooner than it was. Any thread."""
        kicks = self._kicks
        if kicks is not None:
            with contextlib.suppress(OSError):  # it is full of kicks, or the other end is closed
                os.write(kicks.number, b"k")

    def stop(self, *, waits: bool) -> None:
        """End. waits: until that is so, which is not for whoever has the lock; the thread itself
        does not wait."""
        self._stopped = True
        self.kick()
        thread = self._thread
        here = threading.current_thread()
        if waits and thread is not None and thread is not here and not sys.is_finalizing():
            if not self._begun.wait(_BEGINS):  # a signal handler has struck its start
                self._close()
                return
            # join() of several threads, of which one is struck by a signal handler, may raise that
            # its lock is not locked: so they wait here, and there is next to nothing to join
            with self._working:
                pass
            thread.join()

    def orphan(self) -> None:
        """In a forked child, where the thread is not."""
        self._stopped = True
        self._close()

    def _close(self) -> None:
        self._kicks = None
        descriptors, self._descriptors = self._descriptors, []
        for each in descriptors:
            with contextlib.suppress(OSError):
                os.close(each)

    def _run(self, *of_engine: Any) -> None:
        self._begun.set()
        with self._working:
            self._work(*of_engine)

    def _work(self, engine: Transport, ready: int, kicked: int) -> None:
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        poll.register(kicked, select.POLLIN)
        due = 0.0
        try:
            while not self._stopped:
                if poll.poll(math.ceil(max(0.0, due - time.monotonic()) * 1000)):
                    with contextlib.suppress(BlockingIOError):
                        os.read(kicked, 4096)
                rest = self._turned() + _GRACE - time.monotonic()
                if rest > 0 and not self._stopped:
                    time.sleep(rest)
                self._lock.acquire()  # when it is free, without asking whoever waits with it
                try:
                    if self._stopped or engine.released:
                        return
                    if time.monotonic() >= self._turned() + _GRACE:
                        self._turn(engine)
                    due = self._next(engine)
                finally:
                    self._lock.release()
        finally:
            self._close()

    def _turn(self, engine: Transport) -> None:
        engine.move_here()
        try:
            engine.turn()
        except BaseException as error:  # of a callback, whatever it is: it has no caller here
            engine.log.error("an exception was raised in a callback", exc_info=error)
        self._changed()

    def _next(self, engine: Transport) -> float:
        """When a turn is due though nothing becomes ready."""
        if engine.closed:
            return 0.0
        wait = engine.loop.next_timeout()
        return time.monotonic() + (_LATEST if wait is None else min(wait, _LATEST))
