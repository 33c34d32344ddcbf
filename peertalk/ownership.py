"""Whose engine it is: checks of the loop, the thread and the process, and waiting on that loop.

An engine belongs to the asyncio loop in which its node was started. A call from elsewhere must be
refused before it changes anything, and on the short road that has to cost next to nothing: the
thread is compared first, whether the loop runs there is asked where a turn is wanted.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Coroutine
from typing import TypeVar

from . import errors
from .doors.door import Answer
from .runtime.engine import NO_THREAD, Engine
from .runtime.reactor import Reactor
from .runtime.transport import Transport
from .runtime.worker import Worker
from .waiting import Waiting

T = TypeVar("T")

_INSIDE = tuple(
    f"peertalk.{room}"
    for room in (
        "node",
        "peer",
        "incoming",
        "ownership",
        "waiting",
        "runtime.",
        "protocol.",
        "_core.",
    )
)
"""Modules that are in the middle of something while a function of theirs runs."""


def running_loop() -> asyncio.AbstractEventLoop:
    """The asyncio loop that runs here.

    Raises:
        InvalidState: there is none.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise errors.InvalidState(
            "no asyncio loop runs here: peertalk.Node works under asyncio, and under anyio with "
            'its backend "asyncio"; peertalk.sync.Node works without any loop'
        ) from None


def waiting_for(engine: Engine) -> Waiting:
    """What a task of the node's loop awaits until the engine tells.

    Raises:
        InvalidState: another loop runs here, or none.
    """
    if running_loop() is not engine.owner:
        raise _stranger(engine)
    return Waiting(engine.owner, engine.resume)


def check_thread(engine: Engine) -> None:
    """By the thread alone: the engine comes along when its loop was moved to this one.

    Raises:
        InvalidState: it was not, or the node is closed.
    """
    if threading.get_ident() != engine.thread:
        engine.check_open()
        if running_loop() is not engine.owner:
            raise _stranger(engine)
        engine.move_here()


def check_here(engine: Engine) -> None:
    """Raises InvalidState where the node's loop does not run, and when the node is closed."""
    check_thread(engine)
    engine.check_open()
    check_running(engine)


def check_running(engine: Engine) -> None:
    """On the node's thread, where one loop runs at a time: raises InvalidState when it is not the
    node's. Costs a fourth of asking which one runs."""
    if not engine.owner.is_running():
        running_loop()
        engine.disown()  # what comes without a look (Peer.send) is refused from here on
        raise _stranger(engine)


def check_free(engine: Engine) -> None:
    """Likewise for what is no coroutine, and so may be called while no loop runs."""
    check_thread(engine)
    engine.check_open()
    if not engine.owner.is_running() and asyncio._get_running_loop() is not None:
        raise _stranger(engine)


def _stranger(engine: Engine) -> errors.PeerTalkError:
    """What who uses a node on another loop or thread hears."""
    try:
        engine.check_open()
    except errors.InvalidState as error:
        return error
    name = engine.config.name
    if engine.owner.is_closed():
        return errors.InvalidState(
            f"node {name!r} belongs to an asyncio loop that is closed: only close_nowait() is "
            "left; make a new node in this loop"
        )
    threads = (each.name for each in threading.enumerate() if each.ident == engine.thread)
    return errors.InvalidState(
        f"node {name!r} belongs to another asyncio loop, that of thread "
        f"{next(threads, 'unknown')!r}, and this is thread {threading.current_thread().name!r}: "
        "hand the coroutine to that loop (asyncio.run_coroutine_threadsafe), or call send_nowait, "
        "which is for any thread"
    )


def end(engine: Transport, worker: Worker) -> None:
    """Close an engine at once, on its own thread or on any when its loop is closed, and tell all
    who wait. May be called again."""
    dead = worker.loop.is_closed()
    if dead:
        worker.stop()  # nobody turns it any more
    if dead or engine.thread == NO_THREAD:
        engine.move_here()
    engine.close_now()
    worker.stop()
    if not dead:
        engine.wake_receivers()


_STEPS = (Waiting.go_on.__code__, Reactor.turn.__code__)
"""What tasks take their steps in."""


def is_in_use(engine: Engine) -> bool:
    """Whether an engine is another thread's, or the caller was called from within the package,
    which is in the middle of something then: by a signal handler, as a finalizer, or by a function
    that was given to it. A task that a turn has woken takes its step after that turn, or within the
    turn of a reactor, which no engine has to do with."""
    if engine.thread not in (NO_THREAD, threading.get_ident()):
        return True
    frame = sys._getframe(1).f_back
    while frame is not None and frame.f_code not in _STEPS:
        if frame.f_globals.get("__name__", "").startswith(_INSIDE):
            return True
        frame = frame.f_back
    return False


async def answered(engine: Engine, answer: Answer[T], seconds: float | None) -> T:
    """What was asked for, as soon as it is there, at most so many seconds.

    Raises:
        Timeout: it was not. Whatever it failed of.
    """
    try:
        if not answer.over:
            waiting = waiting_for(engine)
            answer.on_over = waiting.tell
            await within(waiting, seconds, answer, answer.whom)
    finally:
        answer.leave()
    return answer.result()


async def within(
    awaited: Awaitable[T],
    seconds: float | None,
    what: object,
    peer: str | None = None,
) -> T:
    """Await this, at most so many seconds; None: however long it takes.

    Raises:
        Timeout: "{what} within {seconds} s", as what reads when the time is up.
        InvalidState: no asyncio loop runs here.
    """
    if seconds is None:
        return await awaited
    try:
        running_loop()  # asyncio.timeout has no such sentence
    except errors.InvalidState:
        if isinstance(awaited, Coroutine):
            awaited.close()
        raise
    try:
        async with asyncio.timeout(seconds) as limit:
            return await awaited
    except TimeoutError as error:
        if isinstance(error, errors.PeerTalkError) or not limit.expired():
            raise  # a function or an iterator of the program's own has raised that
        raise errors.Timeout(f"{what} within {seconds:g} s", peer=peer) from None
