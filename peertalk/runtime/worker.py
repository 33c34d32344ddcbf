"""One engine on one asyncio loop: the application's own, without a second thread.

The loop watches the engine's one descriptor (or, where there is no epoll, each of its descriptors),
and one timer wakes it for the next deadline. The first unsent message of a tick asks for a turn at
the end of that tick, so that a burst of sends becomes few writes. Works on asyncio, uvloop, and any
loop with add_reader, call_soon and call_later.

Tasks that a turn has woken go on right after that turn, and what they have sent leaves with one
more turn: all in the tick of the loop that read what they waited for. With asyncio's futures an
answer would leave two ticks later, and each costs a look at all descriptors. Whatever is woken by
that second turn waits for the next tick, so that nobody else is kept waiting for long. A message
that comes alone is given to who waits for it without any turn of the engine.

Invariant: whatever a signal handler raises, and wherever, in what the asyncio loop has called here,
another turn follows, which does what is left. That is why the loop is given native calls (Again),
which see to that themselves.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Protocol

from .._core import values
from ..protocol.wakeups import Wakeup

_LOST = 0.1
"""Seconds after which a turn that was asked for, and has not come, is asked for again. A signal
handler that raises in asyncio's own steps takes away the callback that was just to be called; one
that the loop has no time for comes twice, which costs little."""
_TELL = 0.06
"""Seconds after which there is a turn to tell what has left, if nobody waits for that. The core may
keep it to itself for PT_TELL_MS."""


def _nothing() -> None: ...


class Driven(Protocol):
    """What a worker needs of an engine, which lies above. See Engine."""

    loop: Any
    thread: int
    closed: bool
    before_release: Callable[[], None] | None
    before_closing: Callable[[int], None] | None
    resume: Callable[[Callable[[], object]], bool] | None
    linger: Callable[[], None] | None
    owes: bool
    orders: Any
    receiver: Any

    def turn(self) -> None:
        """Serve whatever is ready."""

    def giver(self) -> Callable[..., Any] | None:
        """What takes the next message, for the receiver, without a turn; None: nothing does."""

    def quick(self) -> Callable[[], bool | None] | None:
        """What has a turn without Python, and the tasks go on that this wakes; None: nothing does.
        It returns None when all is done; True: all that was ready; False: there is more."""

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
        self._turning = False
        """Whether a turn, or a task that it has woken, is running."""
        self._wanted = False
        """Whether another turn was asked for meanwhile."""
        self.woken: list[Callable[[], object]] = []
        """What lets tasks go on, when the turn is done."""
        self._scheduled = False
        self._asked = 0.0
        self._timer: asyncio.Handle | None = None
        self._wakeup = Wakeup()
        self._lingering: asyncio.Handle | None = None
        self._fd = -1
        self._watched: dict[int, int] = {}
        self._take: Callable[..., Any] | None = None
        """See Driven.giver(); None: each message comes by a turn."""
        self._struck: list[None] = []
        """Has an item when an exception has ended what the loop has called since the last turn."""
        self._on_ready = self._on_turn = self._on_time = self._on_tell = self._on_woken = _nothing

    def start(self, engine: Driven) -> None:
        """Drive this engine, which has just been opened, from now on. One that cannot be driven is
        closed, and the error raised."""
        self._take_over(engine)
        self._fd = engine.loop.fd
        engine.linger = self.linger
        if not self.loop.get_debug():  # else the log of the loop tells which task blocks it
            engine.resume = self.resume
        try:
            if self._fd >= 0:
                if engine.resume is not None:
                    self._take = engine.giver()
                    self._quicken(engine)
                self.loop.add_reader(self._fd, self._on_ready)
            else:
                engine.before_closing = self._unwatch
            self.schedule()
        except BaseException:
            engine.close_now()
            raise

    def _take_over(self, engine: Driven) -> None:
        self._engine = engine
        engine.before_release = self.stop
        again, struck = engine.loop.again, self._struck
        self._on_ready = again(self._ready, struck)
        self._on_turn = again(self._scheduled_turn, struck)
        self._on_time = again(self._timed_turn, struck)
        self._on_tell = again(self._tell, struck)
        self._on_woken = again(self._woken_later, struck)

    def _quicken(self, engine: Driven) -> None:
        quick = engine.quick()
        if quick is not None:
            self._on_ready = engine.loop.again(self._left, self._struck, quick)

    def schedule(self) -> None:
        """Have a turn at the end of this tick."""
        if self._turning or self._engine is None:
            self._wanted = True
            return
        now = self.loop.time()
        if not self._scheduled or now - self._asked > _LOST:
            self.loop.call_soon(self._on_turn)
            self._asked = now
            self._scheduled = True

    def linger(self) -> None:
        """Have a turn within a moment, for what has left and nobody waits to hear of."""
        if self._lingering is None and self._engine is not None:
            self._lingering = self.loop.call_later(_TELL, self._on_tell)

    def _tell(self) -> None:
        self._lingering = None
        engine = self._engine
        if engine is not None and engine.owes:
            engine.owes = False
            self._turn()

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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        if self._fd >= 0:
            if not self.loop.is_closed():
                self.loop.remove_reader(self._fd)
            self._fd = -1
        for fd in list(self._watched):
            self._unwatch(fd)

    def _scheduled_turn(self) -> None:
        self._scheduled = False
        self._turn()

    def _ready(self) -> None:
        """The engine has something to do. If that is one message, and a task waits for the next
        one, the task has the message without a turn: a turn is a third of a round trip. A turn
        follows within a moment, for whatever else may be due."""
        engine = self._engine
        if (
            engine is None
            or (receiver := engine.receiver) is None
            or self._take is None
            or self._struck
        ):
            self._turn()
            return
        try:
            self._turning, self._wanted = True, False
            is_given = receiver.give(self._take)
        finally:
            self._turning = False
        if self._wanted or self.woken or engine.orders or not is_given:
            self._turn()
        elif not engine.owes:
            self.linger()
            engine.owes = True

    def _left(self, served: bool) -> None:
        """A turn without Python has left something. served: no more than whom it has woken, and
        what is due."""
        engine = self._engine
        if not served:
            self._turn()
        elif engine is not None and not engine.closed:
            if self.woken:
                self.loop.call_soon(self._on_woken)
            self._wait(engine)

    def _turn(self) -> None:
        engine = self._engine
        if engine is None or engine.closed:
            return
        if threading.get_ident() != engine.thread:
            engine.move_here()  # the loop runs on another thread now
        if self._struck:
            self._mend(engine)
        try:
            self._turning, self._wanted = True, False
            engine.turn()
            if self.woken:
                self._go_on()
                if self._wanted and not engine.closed:
                    self._wanted = False
                    engine.turn()
        finally:
            self._turning = False
            if self.woken:  # also of an engine that has just ended, which has no further turn
                self.loop.call_soon(self._on_woken)
        if not engine.closed:
            self._wait(engine)

    def _mend(self, engine: Driven) -> None:
        """An exception has ended what the loop has called: nobody knows how far that was. What was
        asked for before may be lost, and a turn follows; a task that was given a message has it
        in the end of that."""
        self._struck.clear()
        self._scheduled = False
        self._wakeup.is_gone()
        if self._lingering is not None:
            self._lingering.cancel()
        self._lingering = None
        engine.owes = False
        receiver = engine.receiver
        if receiver is not None and receiver.got[0] is not None:
            self.woken.append(receiver.go_on)

    def resume(self, go_on: Callable[[], object]) -> bool:
        """Have a task go on: when this turn is done, or else in the next tick. go_on: lets the task
        take a step; it is called again if it raises, and does nothing when the task has gone on.
        False: the loop is closed."""
        if not (self._turning or self.woken):
            if self.loop.is_closed():
                return False
            self.loop.call_soon(self._on_woken)
        self.woken.append(go_on)
        return True

    def _go_on(self) -> None:
        """The tasks that this turn has woken take a step. What one ends with that is no Exception
        leaves the turn, as it would leave the loop; the others go on in the next tick."""
        woken, left = self.woken, len(self.woken)
        while woken and left:  # whoever these wake in turn waits for the next tick
            go_on = woken[0]
            go_on()
            left -= 1
            if woken and woken[0] is go_on:  # else the task has run a loop within the loop
                del woken[0]

    def _woken_later(self) -> None:
        """Those who were woken in a tick, or by the second turn of one, take a step in the next."""
        self._go_on()
        if self.woken:
            self.loop.call_soon(self._on_woken)

    def _wait(self, engine: Driven) -> None:
        """Be called again when there is something to do."""
        if self._fd < 0:
            try:
                self._watch_all(engine)
            except BaseException:  # it may be what wakes that is not watched
                self.loop.call_later(_LOST, self._on_time)
                raise
        delay = 0.0 if self._wanted else engine.loop.next_timeout()
        if delay is None:
            return
        if delay <= 0:
            self.schedule()
            return
        now = self.loop.time()
        if not self._wakeup.is_soon_enough(now, delay):
            self._set_timer(now + delay)

    def expect(self, seconds: float) -> None:
        """Something is due in so many seconds, which was armed since the last turn."""
        now = self.loop.time()
        if not (self._turning or self._wakeup.is_soon_enough(now, seconds)):  # see _wait()
            self._set_timer(now + seconds)

    def _set_timer(self, due: float) -> None:
        self._wakeup.is_gone()  # until there is one again
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(due, self._on_time)
        self._wakeup.is_set(due)

    def _timed_turn(self) -> None:
        self._timer = None
        self._wakeup.is_gone()
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
            add(fd, self._on_ready)
        elif present and not wanted:
            remove(fd)

    def _unwatch(self, fd: int) -> None:
        interest = 0 if self.loop.is_closed() else self._watched.get(fd, 0)
        self._watched.pop(fd, None)
        if interest & values.READ:
            self.loop.remove_reader(fd)
        if interest & values.WRITE:
            self.loop.remove_writer(fd)
