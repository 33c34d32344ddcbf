"""A socket that others connect to."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Self

from .. import errors
from ..ownership import running_loop
from ..protocol.refusals import used_up
from ..protocol.socket_addresses import AddressLike
from ..runtime.reactor import Reactor, here
from .addresses import Resolved, resolve
from .endpoint import Endpoint
from .stream import Stream
from .worker import Worker

BACKLOG = 100
"""Connections that wait to be accepted, when nothing else is said."""
_PAUSE = 0.1
"""Seconds until a connection is accepted again, where the system had no descriptor or no memory."""
_USED_UP = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_GONE = (
    errno.ECONNABORTED,
    errno.EPROTO,
    errno.ENOPROTOOPT,
    errno.ENETDOWN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
)
"""What accept(2) may say of a caller who has left meanwhile."""


class Listener(Endpoint):
    """A socket that others connect to: accept(), or `async for stream in listener`. Make one with
    bind(). Of the asyncio loop where it was made; one task accepts at a time.

    While the system has no descriptor left, callers wait in the backlog, and are accepted as soon
    as there is one; the log says so once.
    """

    __slots__ = ("_path", "_scarce")

    _NOUN = "listener"

    def __init__(self, reactor: Reactor, owned: socket.socket, path: str | None) -> None:
        self._path = None if path is None else (path, _identity(path))
        self._scarce = False
        super().__init__(reactor, owned)

    @classmethod
    async def bind(
        cls, address: AddressLike, *, backlog: int = BACKLOG, reuse_port: bool = False
    ) -> Self:
        """Listen at an address: the first of those that it stands for which can be had. Port 0: any
        free one, which local_addr tells. A Unix socket that another program has left behind is
        replaced.

        Args:
            reuse_port: several listeners of this user may have the port, and the system spreads the
                callers over them.

        Raises:
            AddressInUse, NoNetwork, PlatformError: it cannot be had.
            WrongType, InvalidArgument: it is none. InvalidState: no asyncio loop runs here.
        """
        failure: errors.PeerTalkError | None = None
        for each in await resolve(address, kind=socket.SOCK_STREAM, passive=True):
            try:
                owned = _listen(each, backlog, reuse_port)
            except errors.PeerTalkError as error:
                failure = failure or error
                continue
            try:
                return cls(here(), owned, _path_of(each))
            except BaseException:
                owned.close()
                raise
        assert failure is not None  # resolve() has given one at least
        raise failure

    async def accept(self, *, timeout: float | None = None) -> Stream:
        """The next connection, as soon as there is one.

        Raises:
            Timeout: there was none in time. InvalidState: another task accepts, or it is closed.
        """
        self._enter(self._in, "accepts at")
        until = self._until(timeout)
        state, reactor = self.state, self._reactor
        while True:
            if state.readable:
                if reactor.ticks.credit <= 0:
                    await self._breathe(self._in)
                reactor.ticks.credit -= 1
                try:
                    stream = self._taken(self._socket.accept()[0])
                except (errors.OutOfMemory, errors.PlatformError) as error:
                    await self._pause(str(error), error, until)
                    continue
                except OSError as error:
                    if error.errno in _USED_UP:
                        await self._pause(used_up(error), error, until)
                    elif error.errno not in _GONE:
                        state.readable = False
                        if not isinstance(error, BlockingIOError):
                            raise errors.PlatformError(
                                f"listener cannot accept: {error.strerror}"
                            ) from error
                    continue
                self._scarce = False
                return stream
            await self._ready(self._in, until)

    async def serve(
        self,
        handler: Callable[[Stream], Awaitable[object]],
        *,
        workers: int | Sequence[Worker] = 0,
    ) -> None:
        """Accept until the listener is closed, and have handler(stream) await each stream in a task
        of its own; the stream is closed when that ends. Returns when all have ended. What a handler
        raises ends its stream alone, and is logged.

        When this is cancelled all of them are.

        Args:
            workers: 0: on this loop; so many new ones, which end with this; or workers that run:
                each stream goes to the one that has the fewest.

        Raises:
            InvalidState: another task accepts, or a worker does not run.
        """
        if not isinstance(workers, int):
            await self._serve(handler, workers)
            return
        if workers == 0:
            await self._serve(handler, ())
            return
        if workers < 0:
            raise errors.InvalidArgument(f"workers {workers}: 0 or more")
        made = [Worker() for _ in range(workers)]
        try:
            for worker in made:
                worker.start()
            await self._serve(handler, made)
        finally:
            for worker in made:  # first of all, for this may be cancelled again
                worker.end_soon()
            await asyncio.gather(*(asyncio.to_thread(worker.close) for worker in made))

    async def _serve(
        self, handler: Callable[[Stream], Awaitable[object]], workers: Sequence[Worker]
    ) -> None:
        for worker in workers:
            worker.check_open()
        busy = dict.fromkeys(workers, 0)
        try:
            async with asyncio.TaskGroup() as group:
                async for stream in self:
                    if not busy:
                        group.create_task(_handle(handler, stream))
                        continue
                    # one that was closed has the fewest for ever, and takes none
                    worker = min(busy, key=lambda each: (each.closed, busy[each]))
                    busy[worker] += 1
                    guest = _Guest(handler, stream, worker)
                    group.create_task(guest.visit()).add_done_callback(partial(guest.leave, busy))
        except BaseExceptionGroup as several:
            if len(several.exceptions) > 1:
                raise
            raise several.exceptions[0] from None

    def _taken(self, accepted: socket.socket) -> Stream:
        try:
            accepted.setblocking(False)
            if accepted.family != socket.AF_UNIX:
                with contextlib.suppress(OSError):  # the caller has left already
                    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = Stream(self._reactor, accepted)
        except BaseException:
            accepted.close()
            raise
        stream.state.writable = True
        return stream

    async def _pause(self, said: str, error: Exception, until: float | None) -> None:
        """The system has no place for another connection: wait a moment.

        Raises:
            Timeout: it is too late for another try.
        """
        if not self._scarce:
            self._scarce = True
            self._reactor.report(f"a listener leaves callers waiting: {said}", error)
        state = self.state
        state.readable = False
        # Where the loop is told what is so, and no change, it would be told of these callers for
        # as long as they wait: nothing is watched meanwhile.
        when_waiting, state.when_waiting = state.when_waiting, None
        timer = self._reactor.timer(self.on_readable)
        timer.arm(_PAUSE)
        try:
            await self._ready(self._in, until)
        finally:
            timer.cancel()
            state.when_waiting = when_waiting
            state.readable = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Stream:
        try:
            return await self.accept()
        except errors.InvalidState:
            if self.state.closed:
                raise StopAsyncIteration from None
            raise

    def close_now(self) -> None:
        """See Endpoint.close_now(). The path of a Unix socket is removed."""
        first = not self.state.closed
        super().close_now()
        if first and self._path is not None:
            path, identity = self._path
            with contextlib.suppress(OSError):
                if _identity(path) == identity:
                    os.unlink(path)


async def _handle(handler: Callable[[Stream], Awaitable[object]], stream: Stream) -> None:
    try:
        async with stream:
            await handler(stream)
    except errors.NetworkError:
        pass  # the other side has left, which is no fault of this one
    except Exception as error:
        running_loop().call_exception_handler(
            {"message": "the handler of a stream has raised", "exception": error}
        )


class _Guest:
    """A stream on its way to a worker, and with its handler there.

    A task that is cancelled before its first step does nothing at all: so the end of both tasks,
    here and there, is seen to by others.
    """

    def __init__(
        self, handler: Callable[[Stream], Awaitable[object]], stream: Stream, worker: Worker
    ) -> None:
        self._handler = handler
        self._stream = stream
        self._worker = worker
        self._leaves = self._begun = False

    async def visit(self) -> None:
        """Go there, and wait until the handler is done."""
        self._leaves = True
        try:
            await self._stream.move_to(self._worker)
            await asyncio.wrap_future(self._worker.submit(self._handle))
        except errors.PeerTalkError as error:
            _close_here(self._stream)
            running_loop().call_exception_handler(
                {"message": "a stream could not go to its worker", "exception": error}
            )

    async def _handle(self) -> None:
        self._begun = True
        await _handle(self._handler, self._stream)

    def leave(self, busy: dict[Worker, int], _: object) -> None:
        """visit() has ended. A stream whose handler has not begun is closed, where it is."""
        busy[self._worker] -= 1
        if not self._leaves:
            _close_here(self._stream)
        elif not self._begun:
            with contextlib.suppress(errors.InvalidState):  # the worker has ended, and closed it
                self._worker.submit(self._drop)

    def _drop(self) -> None:
        if not self._begun:
            self._stream.close_now()


def _close_here(stream: Stream) -> None:
    """Close a stream, unless it is another thread's by now."""
    with contextlib.suppress(errors.InvalidState):
        stream.close_now()


def _listen(where: Resolved, backlog: int, reuse_port: bool) -> socket.socket:
    try:
        owned = socket.socket(where.family, socket.SOCK_STREAM)
    except OSError as error:
        raise errors.PlatformError(f"no socket for {where}: {used_up(error)}") from error
    try:
        owned.setblocking(False)
        if where.family == socket.AF_UNIX:
            if (path := _path_of(where)) is not None:
                _remove_left(path)
        else:
            owned.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                owned.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if where.family == socket.AF_INET6:
            owned.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        owned.bind(where.address)
        owned.listen(backlog)
    except OSError as error:
        owned.close()
        raise not_had(error, where) from error
    return owned


def _path_of(where: Resolved) -> str | None:
    """The path of a Unix socket, if there is one: an abstract name is none."""
    if where.family != socket.AF_UNIX or os.fsdecode(where.address).startswith("\0"):
        return None
    path: str = where.address
    return path


def _identity(path: str) -> tuple[int, int]:
    """Which file a path leads to."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def not_had(error: OSError, where: Resolved) -> errors.PeerTalkError:
    """Why an address of this machine cannot be had."""
    if error.errno == errno.EADDRINUSE:
        return errors.AddressInUse(f"{where} is taken by another program")
    if error.errno == errno.EADDRNOTAVAIL:
        return errors.NoNetwork(f"{where} is no address of this machine")
    return errors.PlatformError(f"cannot listen at {where}: {error.strerror}")


def _remove_left(path: str) -> None:
    """Remove a socket that nobody listens at."""
    with contextlib.suppress(OSError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.setblocking(False)
            if caller.connect_ex(path) == errno.ECONNREFUSED:
                os.unlink(path)
