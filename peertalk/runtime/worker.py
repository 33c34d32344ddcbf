"""One engine on one asyncio loop: the application's own, without a second thread.

The loop watches the engine's one descriptor (or, where there is no epoll, each of its descriptors),
and one timer wakes it for the next deadline. The first unsent message of a tick asks for a turn at
the end of that tick, so that a burst of sends becomes few writes. Works on asyncio, uvloop, and any
loop with add_reader, call_soon and call_later.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Protocol

from .._core import values

_LOST = 0.1
"""Seconds after which a turn that was asked for, and has not come, is asked for again. A signal
handler that raises takes away the callback that was just to be called; one that the loop has no
time for comes twice, which costs little."""


class Driven(Protocol):
    """What a worker needs of an engine, which lies above. See Engine."""

    loop: Any
    thread: int
    closed: bool
    before_release: Callable[[], None] | None
    before_closing: Callable[[int], None] | None

    @property
    def unfinished(self) -> bool:
        """Whether a turn was cut off, and something of it is left."""

    def turn(self) -> None:
        """Serve whatever is ready."""

    def move_here(self) -> None:
        """Belong to the calling thread from now on."""

    def close_now(self) -> None:
        """End everything at once."""


class Worker:
    """Turns an engine until stop(). Belongs to the loop's thread, but for wake_up through the
    engine's post()."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._engine: Driven | None = None
        self._scheduled = False
        self._asked = 0.0
        self._timer: asyncio.Handle | None = None
        self._due = 0.0
        """When the timer is due: uvloop's handles do not all say so."""
        self._fd = -1
        self._watched: dict[int, int] = {}

    def start(self, engine: Driven) -> None:
        """Drive this engine, which has just been opened, from now on. One that cannot be driven is
        closed, and the error raised."""
        self._engine = engine
        self._fd = engine.loop.fd
        engine.before_release = self.stop
        try:
            if self._fd >= 0:
                self.loop.add_reader(self._fd, self._turn)
            else:
                engine.before_closing = self._unwatch
            self.schedule()
        except BaseException:
            engine.close_now()
            raise

    def schedule(self) -> None:
        """Have a turn at the end of this tick."""
        now = self.loop.time()
        if not self._scheduled or (self._engine is not None and now - self._asked > _LOST):
            self.loop.call_soon(self._scheduled_turn)
            self._asked = now
            self._scheduled = True

    def schedule_anew(self) -> None:
        """Have a turn, whatever was asked for before: a loop that was interrupted by an exception
        may have dropped that."""
        self._scheduled = False
        self.schedule()

    def ask(self, what: Callable[[], object]) -> bool:
        """Have something called on the loop. Any thread. False: the loop is closed."""
        try:
            self.loop.call_soon_threadsafe(what)
        except RuntimeError:
            if not self.loop.is_closed():
                raise
            return False
        return True

    def stop(self) -> None:
        """Let go of the engine, before its descriptors are closed. May be called again."""
        self._engine = None
        self._scheduled = True  # so that nobody schedules a turn any more
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._fd >= 0:
            if not self.loop.is_closed():
                self.loop.remove_reader(self._fd)
            self._fd = -1
        for fd in list(self._watched):
            self._unwatch(fd)

    def _scheduled_turn(self) -> None:
        self._scheduled = False
        self._turn()

    def _turn(self) -> None:
        engine = self._engine
        if engine is None or engine.closed:
            return
        if threading.get_ident() != engine.thread:
            engine.move_here()  # the loop runs on another thread now
        try:
            engine.turn()
        finally:
            if not engine.closed:
                self._wait(engine)

    def _wait(self, engine: Driven) -> None:
        """Be called again when there is something to do."""
        try:
            if self._fd < 0:
                self._watch_all(engine)
            delay = 0.0 if engine.unfinished else engine.loop.next_timeout()
            if delay is None:
                return
            if delay <= 0:
                self.schedule()
                return
            now, timer = self.loop.time(), self._timer
            if (
                timer is None
                or timer.cancelled()
                or self._due > now + delay
                or self._due < now - 1  # it was dropped
            ):
                self._set_timer(now + delay)
        except BaseException:
            self._timer = self.loop.call_later(_LOST, self._timed_turn)
            self._due = self.loop.time() + _LOST
            raise

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self.loop.call_at(due, self._timed_turn)

    def _timed_turn(self) -> None:
        self._timer = None
        self._turn()

    def _watch_all(self, engine: Driven) -> None:
        wanted = dict(engine.loop.descriptors())
        for fd in [fd for fd in self._watched if fd not in wanted]:
            self._unwatch(fd)
        for fd, interest in wanted.items():
            before = self._watched.get(fd, 0)
            if interest == before:
                continue
            self._change(
                fd,
                interest & values.READ,
                before & values.READ,
                self.loop.add_reader,
                self.loop.remove_reader,
            )
            self._change(
                fd,
                interest & values.WRITE,
                before & values.WRITE,
                self.loop.add_writer,
                self.loop.remove_writer,
            )
            self._watched[fd] = interest

    def _change(
        self,
        fd: int,
        wanted: int,
        present: int,
        add: Callable[..., object],
        remove: Callable[[int], object],
    ) -> None:
        if wanted and not present:
            add(fd, self._turn)
        elif present and not wanted:
            remove(fd)

    def _unwatch(self, fd: int) -> None:
        interest = 0 if self.loop.is_closed() else self._watched.get(fd, 0)
        self._watched.pop(fd, None)
        if interest & values.READ:
            self.loop.remove_reader(fd)
        if interest & values.WRITE:
            self.loop.remove_writer(fd)
