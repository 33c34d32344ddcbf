"""What one task awaits until it is told, and by which it goes on as soon as the turn that tells it
is done.

Awaited is a future of the loop, of asyncio's own class: its steps are those of C, and a signal
handler that raises strikes between them and not within. A future in Python has a step where a task
has left its coroutine, and nobody knows yet how to let it go on: a task that is struck there waits
for ever.

Invariant: a task that is told goes on once, wherever a signal handler has raised. Never: knows an
engine, or decides when the task goes on.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any


class Waiting:
    """What one task awaits until it is told.

    Args:
        loop: the task's.
        resume: Worker.resume, by which it goes on as soon as the turn that tells it is done; None:
            it goes on in the next tick.

    future: what the task awaits, or this itself, which costs it one step more. told: whether the
    task was told, though it may not have gone on yet. got: what the task was given along with that,
    as the only item; None: nothing.
    """

    __slots__ = ("_left", "_resume", "future", "got", "told")

    def __init__(
        self, loop: AbstractEventLoop, resume: Callable[[Callable[[], object]], bool] | None
    ) -> None:
        self.future: Future[None] = Future(loop=loop)
        self._resume = resume
        self._left: tuple[Any, Context] | None = None
        """The step that the task is to take, and in what context, until it was taken."""
        self.got: list[Any] = [None]
        self.told = False

    def __await__(self) -> Generator[Any, None, None]:
        return self.future.__await__()

    def tell(self) -> bool:
        """Have whoever awaits this go on. False: he was told already, awaits it no longer, or the
        loop of his task was closed."""
        future = self.future
        if self.told or future.done():
            return False
        if self._resume is not None:
            if not self._resume(self.go_on):
                return False
        elif future.get_loop().is_closed():
            return False
        else:
            future.set_result(None)
        self.told = True  # last: a signal handler may raise at any step
        return True

    def give(self, take: Callable[[bool, bool, list[Any]], Any]) -> bool:
        """Have the task go on, now, with what can be taken, if that is one message alone: see
        Transport.taker(). False: it is not, or the task was told already, or waits no longer.
        Raises as go_on(); what is in got then is the task's, which is to go on with that."""
        got = self.got
        if self.told or got[0] is not None or self.future.done() or not take(False, True, got):
            return False
        self.told = True
        self.go_on()
        return True

    def go_on(self) -> None:
        """The task takes its next step, now. Raises what it ends with, if that is no Exception.
        Whoever calls this calls it again after an exception: a signal handler may have raised
        before the task went on. Once it has gone on, a call does nothing."""
        future = self.future
        if self._left is None:
            if future.done():
                return
            steps = future._callbacks
            if not steps:
                future.set_result(None)
                return
            self._left = steps[0]
        step: Any
        step, context = self._left
        future.remove_done_callback(step)
        if not future.done():
            future.set_result(None)
        if step.__self__._fut_waiter is future:
            context.run(step, future)
        self._left = None
