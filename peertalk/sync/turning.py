"""Whose turn it is: the lock of a node that its callers turn, and waiting while it is held.

A signal handler may raise between any two steps of Python, and strikes at each call of a function.
So the lock is one that knows its holder, written in C and let go of in C: `with turning:` ends with
no step in which an exception could leave it taken.

Invariant: an engine is turned by the thread that holds its lock, and belongs to that thread. Who
waits with the lock turns only when no other thread that waits has a change to look at, and
otherwise lets go of the lock for a moment. Never: a thread that has the lock takes it again.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from _thread import RLock
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from .. import errors
from ..doors.door import Answer, not_started
from ..protocol.payloads import Payload
from ..protocol.wire import Message
from ..runtime.engine import Engine
from ..runtime.remote import SHARED, Remote
from ..runtime.transport import Transport
from .control import Control

S = TypeVar("S")
T = TypeVar("T")

HOW_TO_START = "use `with` or start()"

_HANDOVER = 0.001
"""Seconds that a waiting method leaves the lock to another thread that asked for it."""
_WORTH = 0.01
"""Seconds from which on a receiver may wait without the lock for some milliseconds."""
_PATIENCE = 0.05
"""Seconds since the last turn within which a message that was taken without a turn counts as one:
timers and those who call want a turn too, however briskly messages come."""
_LOOK = 0.5
"""Seconds of one wait at most: a signal that came between the last look at signals and the wait, or
that another thread took, does not end the wait, and its handler runs when that is over."""


class Turning(RLock):  # type: ignore[misc]  # typeshed says that it is final, no CPython does
    """The lock of the node with this name. engine: what is turned under it; None: not started."""

    _is_owned: Callable[[], bool]

    def __init__(self, name: str) -> None:
        self._name = name
        self.engine: Transport | None = None
        self.changes = 0
        """How often who held the lock may have changed something."""
        self._turned = -math.inf
        self._looked = -math.inf
        """When the last turn was, the control thread's too."""
        self._received = 0
        """Messages that had come when that was last compared."""
        self.take: Take[Message[Any]] | None = None
        self.asked = False
        """Whether the engine asked for one since."""
        self.send: Callable[[Remote, Payload, bool], int] | None = None
        """What sends without the lock of the node: see Loop.sender()."""
        self.polled = True
        """Whether nothing but calls of its methods turns the node."""
        self._control: Control | None = None
        self._waiting: list[int] = []
        """Of each who waits for the lock: how many changes that thread knows; -1: it must have the
        lock."""

    @property
    def mine(self) -> bool:
        """Whether this thread has the lock: it is in a method of the node, and this call comes from
        a signal handler, a callback, or the collector."""
        return self._is_owned()

    def __enter__(self) -> bool:  # type: ignore[override]
        """Hold the lock, asking whoever waits with it to let go.

        Raises:
            InvalidState: in a forked child, where the thread that holds it may not exist, or at the
                end of the interpreter, where that stands still; inside another method of the node.
        """
        engine = self.engine
        if engine is not None and engine.forked:
            engine.check_open()
        if self._is_owned():
            raise errors.InvalidState(
                f"node {self._name!r} was called inside one of its own methods, by a signal "
                "handler, a callback or an iterable of send_many(): these may call send_nowait(), "
                "close_nowait() and statistics"
            )
        try:
            if not self.acquire(False):
                self._acquire_asking()
            self.entered()
        except BaseException:
            try:
                self.release()
            except RuntimeError:
                pass  # it was not got
            raise
        return True

    def _acquire_asking(self) -> None:
        if sys.is_finalizing():
            raise errors.InvalidState(
                f"node {self._name!r} was in a method when the interpreter ended"
            )
        try:
            self._waiting.append(-1)
            self._ask()
            self.acquire()
        finally:
            if -1 in self._waiting:
                self._waiting.remove(-1)

    def entered(self) -> None:
        """The lock is held: this thread may change something."""
        engine = self.engine
        if engine is not None and engine.thread != threading.get_ident():
            engine.move_here()
        self.changes += 1

    def if_free(self, work: Callable[[], object]) -> bool:
        """Have work done under the lock if nobody has it. Returns whether nobody had."""
        if self._is_owned():
            return False
        try:
            if not self.acquire(False):
                return False
            self.entered()
            work()
            return True
        finally:
            try:
                self.release()
            except RuntimeError:
                pass  # another thread has it

    def _ask(self) -> None:
        """End the turn of whoever holds the lock."""
        engine = self.engine
        if engine is not None and not engine.closed:
            engine.loop.wake()

    def turn(self, engine: Engine, seconds: float | None, again: bool = False) -> bool:
        """One turn, waiting up to so many seconds. False: another thread had to look first, and has
        had the lock, which is held, for a moment. again: that was so just now, and this time there
        is a turn in any case, or a crowd would have none."""
        is_wanted = bool(self._waiting) and min(self._waiting) < self.changes
        if is_wanted and not again:
            self._let_go(engine, deadline_of(seconds))
            return False
        self.look(engine, 0.0 if is_wanted else _LOOK if seconds is None else min(seconds, _LOOK))
        self.changes += 1
        return True

    def look(self, engine: Engine, seconds: float) -> None:
        """One turn, whoever else wants the lock."""
        self.asked = False
        engine.turn(seconds)
        self._turned = self._looked = time.monotonic()

    @property
    def turned(self) -> float:
        """When the last turn was, or was not needed for a message that was taken."""
        engine = self.engine
        if engine is not None and engine.totals.received != self._received:
            self._received = engine.totals.received
            now = time.monotonic()
            if now < self._looked + _PATIENCE:
                self._turned = now
        return self._turned

    def ask(self) -> None:
        """Have a turn soon: before the next call returns that sends, or by the thread that keeps
        the node alive. The engine's schedule()."""
        self.asked = True
        if self._control is not None:
            self._control.kick()

    def begin(self, engine: Transport) -> None:
        """Turn this engine from now on, and send and take without a turn where that can be."""
        self.engine = engine
        self.take = engine.taker(Message, self)
        self.send = engine.workers.sender(SHARED, engine.hint)
        engine.shared = self.send is not None

    def live(self, engine: Transport) -> None:
        """Have the engine turned by a thread of its own while nobody else does, until stop().

        Raises:
            NotSupported: the system has no one descriptor for all that the engine waits for.
        """
        if engine.loop.fd < 0:
            raise errors.NotSupported("there is no epoll here for a control thread: use workers=0")
        self.polled = False
        self._control = Control(self, lambda: self.turned, self._was_turned)
        self._control.start(engine, f"{self._name} control")

    def _was_turned(self) -> None:
        if self.engine is not None:
            self._received = self.engine.totals.received
        self._looked = time.monotonic()
        self.changes += 1
        self.asked = False

    def stop(self, *, waits: bool = True) -> None:
        """The engine is closed: that thread ends too, and, if it waits, before this returns."""
        if self._control is not None:
            self._control.stop(waits=waits)

    def _let_go(self, engine: Engine, deadline: float | None) -> None:
        """Let go of the lock, and hold it again when it is free; at the deadline whoever has it is
        asked. Whatever is raised comes when the lock is held, since whoever is left by it lets go
        of the lock: so every step without it is inside the `try`."""
        try:
            known = self.changes
            self.release()
            time.sleep(_HANDOVER)
            has_lock = False
            while not has_lock:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    known, left = -1, None
                has_lock = self._acquire_knowing(known, left)
            engine.move_here()
        except BaseException:
            self._regain()
            engine.move_here()
            raise

    def _regain(self) -> None:
        """Hold the lock, as the thread that let go of it and was struck, at once: whoever has it is
        asked. A second strike is given up for the first."""
        while not self._is_owned():
            try:
                self._acquire_knowing(-1, None)
            except BaseException:
                pass

    def _acquire_knowing(self, known: int, seconds: float | None) -> bool:
        """Wait for the lock for so many seconds. known: the changes that this thread knows."""
        try:
            self._waiting.append(known)
            if known < self.changes:
                self._ask()
            patience = -1 if seconds is None else min(seconds, threading.TIMEOUT_MAX)
            has_lock = self.acquire(True, patience)
        finally:
            if known in self._waiting:
                self._waiting.remove(known)
        return has_lock

    def until(
        self,
        done: Callable[[], bool],
        seconds: float | None,
        what: object,
        whom: str | None = None,
        deadline: float | None = None,
    ) -> None:
        """Turn the engine until something is so, once at least while it is not; the lock is held.
        deadline: when the seconds are over, which began before.

        Raises:
            Timeout: "{what} within {seconds} s", as what reads when the time is up.
            InvalidState: the node is closed.
        """
        self.taken(lambda: done() or None, seconds, what, whom, deadline)

    def taken(
        self,
        take: Callable[[], T | None],
        seconds: float | None,
        what: object,
        whom: str | None = None,
        deadline: float | None = None,
    ) -> T:
        """As until(), for what can be taken: None is nothing."""
        engine = self.engine
        if engine is None:
            raise not_started(self._name, HOW_TO_START)
        has_turned = has_let_go = False
        if seconds is None and deadline is None:
            while (got := take()) is None:
                engine.check_open()
                has_let_go = not self.turn(engine, None, has_let_go)
            return got
        if deadline is None:
            deadline = deadline_of(seconds)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        while (got := take()) is None:
            engine.check_open()
            if has_turned and left is not None and left < 0:
                raise errors.Timeout(f"{what} within {seconds:g} s", peer=whom)
            has_let_go = not self.turn(engine, left and max(0.0, left), has_let_go)
            has_turned = has_turned or not has_let_go
            left = None if deadline is None else deadline - time.monotonic()
        return got

    def answered(
        self, answer: Answer[T], seconds: float | None, deadline: float | None = None
    ) -> T:
        """What was asked for, as soon as it is there; the lock is held.

        Raises:
            Timeout: it was not. Whatever it failed of.
        """
        try:
            self.until(lambda: answer.over, seconds, answer, answer.whom, deadline)
        finally:
            answer.leave()
        return answer.result()


def deadline_of(seconds: float | None) -> float | None:
    """When so many seconds from now are over; None: never."""
    return None if seconds is None else time.monotonic() + seconds


class Ended(Exception):
    """No more will come, though the node is open."""


class Source(NamedTuple, Generic[S, T]):
    """Where a method takes what has come, and what it makes of that.

    take: something, None: nothing is there. back: called when an exception comes between, with what
    was taken, or with None where take() may have been cut off. Both under the lock.
    """

    take: Callable[[], S | None]
    back: Callable[[S | None], object]
    make: Callable[[S], T]


Take = Callable[[bool, bool], T | None]
"""What takes the next message without the lock of a node: see Transport.taker()."""


def taken_at_once(take: Take[T] | None, seconds: float | None, alone: bool = False) -> T | None:
    """The next message, if it can be had without the lock of the node; waiting for it as long as an
    answer takes, if there is so much time. alone: if it is the only one that is there."""
    if take is None:
        return None
    # A signal handler, which may raise, is called after a call of C, but not within a `for` over
    # one: what was taken is returned.
    for message in map(take, (seconds is None or seconds >= _WORTH,), (alone,)):
        return message
    return None


def taken(turning: Turning, source: Source[S, T], seconds: float | None, what: str = "") -> T:
    """What can be taken, as soon as something can. Whatever is raised, nothing is lost.

    Raises:
        Timeout: nothing could within so many seconds: "{what} within {seconds} s". InvalidState.
    """
    got = None
    try:
        with turning:
            try:
                got = turning.taken(source.take, seconds, what)
            except errors.PeerTalkError:
                raise
            except BaseException:
                source.back(None)
                raise
        made = source.make(got)
        return made
    except BaseException:
        if got is not None:
            with turning:
                source.back(got)
        raise


def each(
    turning: Turning, source: Source[S, T], seconds: float | None, take: Take[T] | None = None
) -> Iterator[T]:
    """What can be taken, one after the other, until nothing came for so many seconds or nothing
    more will. take: another way to some of it."""
    while True:
        item = taken_at_once(take, seconds, True)
        try:
            if item is None:
                item = taken(turning, source, seconds)
        except (errors.Timeout, Ended):
            return
        except errors.InvalidState:
            engine = turning.engine
            if engine is None or engine.forked or not engine.closing:
                raise
            return
        yield item
