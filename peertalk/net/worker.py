"""Threads that have sockets of their own, and what other threads may order of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import itertools
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Self

from .. import errors
from ..protocol.orders import (
    CancelSocketTimeout,
    CloseSocket,
    ModifySocket,
    Order,
    RegisterSocket,
    SetSocketTimeout,
    Token,
)
from ..protocol.socket_state import AsyncSocketHandler, AsyncSocketState, SocketInterest
from ..protocol.statistics import ReactorStatistics
from ..runtime.reactor import RECEIVE_BUFFER, Reactor, adopt

_numbers = itertools.count(1)


class Worker:
    """A thread with an asyncio loop, and the sockets of that loop. `with Worker() as worker:`
    starts one, and ends it with all that runs there.

    What runs there may use all of peertalk.net: streams made there are the worker's. Streams made
    elsewhere come with move_to(). The thread keeps no program alive.

    Args:
        name: of the thread.
        loop_factory: makes the loop: uvloop.new_event_loop; None: asyncio's own.
        io_budget: sockets that are served before tasks go on, 1 to 1,024.
        receive_buffer: bytes of the buffer that the reads of its streams share, 1 to 2^30.

    All methods may be called from any thread; run() and close() not from the worker's own.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
        io_budget: int = 16,
        receive_buffer: int = RECEIVE_BUFFER,
    ) -> None:
        self.name = name or f"peertalk worker {next(_numbers)}"
        self._factory = loop_factory
        self._options = {"io_budget": io_budget, "receive_buffer": receive_buffer}
        self._lock = threading.RLock()
        self._reactor: Reactor | None = None
        self._stop: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def start(self) -> Self:
        """Start the thread, and return when its loop runs.

        Raises:
            InvalidState: it was started before. Whatever making its loop or its sockets raises.
        """
        with self._lock:
            if self._thread is not None or self._closed:
                before = "closed" if self._closed else "started"
                raise errors.InvalidState(f"worker {self.name!r} was {before} before: make another")
            started: concurrent.futures.Future[None] = concurrent.futures.Future()
            self._thread = threading.Thread(
                target=self._work, args=(started,), name=self.name, daemon=True
            )
            self._thread.start()
        try:
            started.result()
        except BaseException:  # a signal handler may raise here
            self.end_soon()
            raise
        return self

    def _work(self, started: concurrent.futures.Future[None]) -> None:
        try:
            with asyncio.Runner(loop_factory=self._factory) as runner:
                try:
                    runner.run(self._serve(started))
                finally:
                    with self._lock:
                        self._closed = True
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)
        finally:
            reactor, self._reactor = self._reactor, None
            if reactor is not None:
                reactor.close_now()

    async def _serve(self, started: concurrent.futures.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        self._reactor = adopt(Reactor(loop, **self._options))
        self._reactor.stays = True
        with self._lock:
            self._stop = partial(loop.call_soon_threadsafe, stop.set)
            if self._closed:  # while it was started
                stop.set()
        started.set_result(None)
        await stop.wait()
        with self._lock:
            self._closed = True

    @property
    def closed(self) -> bool:
        """Whether it takes nothing more."""
        return self._closed

    def check_open(self) -> None:
        """Raises InvalidState when it is closed, or was not started."""
        self._open()

    def _open(self) -> Reactor:
        reactor = self._reactor
        if self._closed or reactor is None:
            state = "is closed" if self._closed else "was not started"
            raise errors.InvalidState(f"worker {self.name!r} {state}")
        if reactor.closed:  # by fork(2), which takes no threads along
            raise errors.InvalidState(
                f"worker {self.name!r} is another process's: make one in this process"
            )
        return reactor

    # Tasks ----------------------------------------------------------------------------------------

    def submit(
        self, function: Callable[..., Any], *arguments: Any
    ) -> concurrent.futures.Future[Any]:
        """Call function(*arguments) on the worker, as a task of its loop, and await what it returns
        if that can be awaited. The future has the result, or what was raised; cancelling it cancels
        the task, and so does the end of the worker.

        Raises:
            InvalidState: the worker is closed, or was not started.
        """
        with self._lock:  # what is submitted before the end is ended with it
            loop = self._open().owner
            return asyncio.run_coroutine_threadsafe(_call(function, arguments), loop)

    def run(
        self, function: Callable[..., Any], *arguments: Any, timeout: float | None = None
    ) -> Any:
        """submit(), and wait for the result.

        Raises:
            Timeout: it was not there in time; the task is cancelled. Whatever it raised.
            InvalidState: called on the worker's own thread, which would wait for itself.
        """
        self._check_elsewhere("run")
        seconds = _bounded(timeout)
        future = self.submit(function, *arguments)
        try:
            return future.result(seconds)
        except concurrent.futures.CancelledError:
            raise errors.InvalidState(f"worker {self.name!r} was closed meanwhile") from None
        except TimeoutError as error:
            if future.done():
                raise
            raise errors.Timeout(
                f"worker {self.name!r}: not done within {timeout} s: {errors.shown(function)}"
            ) from error
        finally:
            future.cancel()

    def _check_elsewhere(self, what: str) -> None:
        if threading.current_thread() is self._thread:
            raise errors.InvalidState(
                f"{what}() waits for worker {self.name!r} and was called on its own thread"
            )

    # Sockets --------------------------------------------------------------------------------------

    def order(self, order: Order) -> concurrent.futures.Future[Token | None]:
        """Have an order carried out on the worker's thread, in order of giving. The future has the
        token of a socket that was registered, or None; or InvalidState for a token that is stale;
        or what the system refused. It is cancelled by the end of the worker.

        Raises:
            InvalidState: the worker is closed, or was not started.
            WrongType: it is no order.
        """
        if not isinstance(order, Order):
            raise errors.WrongType(
                f"order takes RegisterSocket, ModifySocket, CloseSocket, SetSocketTimeout or "
                f"CancelSocketTimeout, not {errors.shown(order)}"
            )
        done: concurrent.futures.Future[Token | None] = concurrent.futures.Future()
        with self._lock:
            reactor = self._open()
            reactor.post(partial(_obey, reactor, order, done))
        return done

    def statistics(self) -> ReactorStatistics:
        """What the worker has counted of its sockets.

        Raises:
            InvalidState: the worker is closed, or was not started.
        """
        return self._open().statistics()

    # Its end --------------------------------------------------------------------------------------

    def close(self, timeout: float | None = 5.0) -> None:
        """Cancel all that runs there, close its sockets, and wait for the thread. May be called
        again.

        Raises:
            Timeout: a task there has not ended in time; the thread ends as soon as it has.
            InvalidState: called on the worker's own thread, which would wait for itself.
        """
        self._check_elsewhere("close")
        seconds = _bounded(timeout)
        self.end_soon()
        thread = self._thread
        if thread is None:
            return
        thread.join(seconds)
        if thread.is_alive():
            raise errors.Timeout(
                f"worker {self.name!r}: a task there has not ended within {timeout} s"
            )

    def end_soon(self) -> None:
        """Take nothing more, and have all that runs there cancelled: close() that does not wait.
        May be called again."""
        with self._lock:
            if self._stop is not None and not self._closed:
                self._stop()
            self._closed = True

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "running" if self._reactor else "not started"
        return f"<peertalk.net.Worker {self.name!r}, {state}>"


def _bounded(timeout: float | None) -> float | None:
    """A time-out that threads of Python take: infinity is 292 years, and what is past is 0."""
    return None if timeout is None else max(0.0, min(timeout, threading.TIMEOUT_MAX))


async def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    result = function(*arguments)
    return await result if inspect.isawaitable(result) else result


def _obey(reactor: Reactor, order: Order, done: concurrent.futures.Future[Token | None]) -> None:
    """Carry an order out, and answer it: once, though a signal handler may have it begun anew."""
    if reactor.closed:
        done.cancel()
    if done.done() or not (done.running() or done.set_running_or_notify_cancel()):
        return
    try:
        done.set_result(_HANDLERS[type(order)](reactor, order))
    except Exception as error:
        done.set_exception(error)


def _register(reactor: Reactor, order: RegisterSocket) -> Token:
    state = order.state
    handler = AsyncSocketHandler(state) if isinstance(state, AsyncSocketState) else state
    if not isinstance(handler, AsyncSocketHandler):
        raise errors.WrongType(
            f"RegisterSocket takes an AsyncSocketState or an AsyncSocketHandler, not "
            f"{errors.shown(state)}"
        )
    return reactor.register(order.fd, _watched_for(order.interest), handler).token


def _modify(reactor: Reactor, order: ModifySocket) -> None:
    reactor.modify(reactor.find(order.token), _watched_for(order.interest))


def _watched_for(interest: object) -> int:
    if isinstance(interest, int) and 0 <= interest <= SocketInterest.READ_WRITE:
        return int(interest)
    raise errors.InvalidArgument(
        f"interest {errors.shown(interest)}: give NONE, READABLE, WRITABLE or READ_WRITE of "
        "SocketInterest"
    )


def _close(reactor: Reactor, order: CloseSocket) -> None:
    reactor.close_socket(reactor.find(order.token))


def _set_timeout(reactor: Reactor, order: SetSocketTimeout) -> None:
    reactor.set_timeout(reactor.find(order.token), order.duration)


def _cancel_timeout(reactor: Reactor, order: CancelSocketTimeout) -> None:
    reactor.set_timeout(reactor.find(order.token), None)


_HANDLERS: dict[type, Callable[[Reactor, Any], Token | None]] = {
    RegisterSocket: _register,
    ModifySocket: _modify,
    CloseSocket: _close,
    SetSocketTimeout: _set_timeout,
    CancelSocketTimeout: _cancel_timeout,
}
