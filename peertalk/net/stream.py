"""A stream of bytes to somebody else: tried at once, and waited for only when the system says "not
now"."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import os
import socket
import ssl
from typing import Any, Self

from .. import errors
from ..ownership import running_loop
from ..protocol.refusals import of_dial
from ..protocol.socket_addresses import AddressLike
from ..runtime.reactor import NOT_READY, Reactor, here, quicken
from .addresses import Resolved, resolve
from .endpoint import Endpoint, fault, peer_of
from .reading import Buffer, Reading, bytes_of, discard
from .tls import TlsStream
from .worker import Worker

_GATHER = 16_384
"""Shorter writes in one tick of the loop are put together, but for the first."""
_FULL = 65_536
"""Bytes that wait in a stream for the end of the tick at most."""
_UNBROKEN = (errno.EPIPE, errno.EBADF, errno.ENOBUFS, errno.ENOMEM)
"""What send(2) and recv(2) may say though all that the other side has sent can be read."""


class Stream(Endpoint, Reading):
    """A connection that carries bytes: TCP, or a Unix socket. Make one with connect(), or take one
    from a Listener.

    Of the asyncio loop where it was made. One task may read and another one write at once. Every
    method may be cancelled: what was read meanwhile is there for the next read, and what
    write_all() had begun is sent to its end. Each has a time-out of its own, in seconds; None:
    none.
    """

    __slots__ = (
        "_broken",
        "_channel",
        "_left",
        "_moving",
        "_out_buffer",
        "_receive",
        "_send",
        "_settled",
    )

    _NOUN = "stream"

    def __init__(self, reactor: Reactor, owned: socket.socket) -> None:
        self._left = bytearray()  # read, and not taken
        self._out_buffer = bytearray()  # written, and not taken by the system
        self._moving: concurrent.futures.Future[None] | None = None  # to a worker
        self._settled = True  # wherever it was moving to
        self._broken: errors.PeerTalkError | None = None  # by what, whoever has met that
        super().__init__(reactor, owned)
        self._bind(reactor)

    def _bind(self, reactor: Reactor) -> None:
        """Read and write by the calls of this reactor, where it is registered."""
        calls = reactor.calls
        self._receive, self._send = calls.receive, calls.send
        self._channel: Any = None
        if calls.channel is not None and reactor.edges:
            driver = (reactor.ticks, reactor.owner, reactor.resume)
            buffers = (self._left, self._out_buffer)
            sides = (self._in, self._out)
            self._channel = calls.channel(self._fd, driver, self.state, sides, buffers)
            reactor.channels[self._registered.tag] = self._channel

    @classmethod
    async def connect(cls, address: AddressLike, *, timeout: float | None = None) -> Self:
        """A connection to an address. What the address stands for is tried in turn, in the order
        that the system says.

        Raises:
            ConnectionRefused, NetworkFailure, Timeout: there is none. The message names each
                address that was tried.
            WrongType, InvalidArgument: the address is none.
            InvalidState: no asyncio loop runs here.
        """
        until = None if timeout is None else running_loop().time() + timeout
        failures: list[errors.NetworkError] = []
        for each in await resolve(address, kind=socket.SOCK_STREAM, passive=False):
            try:
                return await cls._dial(each, until)
            except errors.NetworkError as error:
                failures.append(error)
                if isinstance(error, errors.Timeout):
                    break
        if len(failures) == 1:
            raise failures[0]
        raise type(failures[-1])("; ".join(map(str, failures)))

    @classmethod
    async def _dial(cls, where: Resolved, until: float | None) -> Self:
        try:
            owned = socket.socket(where.family, socket.SOCK_STREAM)
        except OSError as error:
            raise errors.PlatformError(f"no socket for {where}: {error.strerror}") from error
        stream: Self | None = None
        try:
            owned.setblocking(False)
            if where.family != socket.AF_UNIX:
                owned.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number = owned.connect_ex(where.address)
            stream = cls(here(), owned)
            if number == errno.EINPROGRESS:
                await stream._connected(where, until)
            elif number:
                raise _refused(number, where)
            else:
                stream.state.writable = True
            return stream
        except BaseException:
            if stream is not None:
                stream.close_now()
            owned.close()
            raise

    async def _connected(self, where: Resolved, until: float | None) -> None:
        """Wait until the connection is there. How it went the socket tells."""
        while True:
            try:
                await self._ready(self._out, until)
            except errors.Timeout:
                raise errors.Timeout(f"{where} did not answer in the time allowed") from None
            number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise _refused(number, where)
            try:
                self._socket.getpeername()
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    raise _refused(error.errno or 0, where) from error
                self.state.writable = False  # told before the connection was begun
            else:
                return

    @property
    def peer_addr(self) -> Any:
        """The address of the other side: (host, port) and more for IPv6, or the path of a Unix
        socket.

        Raises:
            InvalidState: it is closed. ConnectionClosed: the connection has ended.
        """
        self._check()
        try:
            return self._socket.getpeername()
        except OSError as error:
            raise fault(error.errno or 0, "stream") from error

    # Reading --------------------------------------------------------------------------------------

    def _begin_read(self) -> None:
        self._enter(self._in, "reads from")

    async def _some(self, most: int, timeout: float | None) -> int:
        state, reactor = self.state, self._reactor
        until = None if timeout is None else self._until(timeout)
        most = min(most, reactor.calls.most)
        while True:
            if state.readable:
                if reactor.ticks.credit <= 0:
                    await self._breathe(self._in)
                reactor.ticks.credit -= 1
                count = self._receive_ahead(most)
                if count >= 0:
                    self._note(count, most)
                    return count
                self._not_now(count, "read")
                state.readable = False
            await self._ready(self._in, until)

    def _receive_ahead(self, most: int) -> int:
        """Put what the system has behind what was read: how many bytes, or minus its number.

        A signal handler may raise when a call returns, and takes away what that gives: so the bytes
        are put into a list by one call, and are found there."""
        came: list[Any] = []
        try:
            came.extend(map(self._receive, (self._fd,), (most,)))
        finally:
            if came and came[0].__class__ is bytes:
                self._left += came[0]
        return came[0] if came[0].__class__ is int else len(came[0])

    def _note(self, count: int, most: int) -> None:
        """So many of at most so many bytes came. Raises as _check_end()."""
        if not count:
            self._check_end()
        elif count < most and not self.state.hung_up:
            self.state.readable = False

    async def readinto(self, buffer: Any, *, timeout: float | None = None) -> int:
        """Read into a writable buffer, straight from the system, as soon as there is something: how
        many bytes; 0: the other side has sent all it will, or the buffer is empty.

        Raises:
            As read().
        """
        self._enter(self._in, "reads from")
        view = memoryview(buffer).cast("B")
        counts: list[int] = []
        try:
            if view.readonly:
                raise errors.WrongType("buffer: give memory that may be written to")
            if self._left or not view:
                size = min(len(view), len(self._left))
                view[:size] = self._left[:size]
                del self._left[:size]
                return size
            return await self._fill(view, self._until(timeout), counts)
        except BaseException:
            if counts and counts[-1] > 0:  # a signal handler has raised: it was not told
                self._left += view[: counts[-1]]
            view.release()
            raise

    async def _fill(self, view: memoryview, until: float | None, counts: list[int]) -> int:
        """readinto() this. counts: what each try has brought, as in _receive_ahead()."""
        state, reactor = self.state, self._reactor
        while True:
            if state.readable:
                if reactor.ticks.credit <= 0:
                    await self._breathe(self._in)
                reactor.ticks.credit -= 1
                counts.extend(map(reactor.calls.receive_into, (self._fd,), (view,)))
                count = counts[-1]
                if count >= 0:
                    self._note(count, len(view))
                    return count
                self._not_now(count, "read")
                state.readable = False
            await self._ready(self._in, until)

    def _rest(self, until: float | None) -> float | None:
        return None if until is None else until - self._reactor.owner.time()

    # Writing --------------------------------------------------------------------------------------

    async def write(self, data: Buffer, *, timeout: float | None = None) -> int:
        """Write some of data, as soon as there is room: how many bytes were taken, 1 at least
        unless data is empty. What is written may wait in the stream until the end of the tick.

        Raises:
            ConnectionClosed, NetworkFailure: the connection broke. Timeout: there was no room in
                time; nothing was taken.
            InvalidState: another task writes, the stream is closed, or its half was ended.
        """
        self._begin_write()
        until = None
        with bytes_of(data) as view:
            while True:
                taken = await self._put(view)
                if taken or not view:
                    return taken
                until = self._until(timeout) if until is None else until
                await self._ready(self._out, until)

    async def write_all(self, data: Buffer, *, timeout: float | None = None) -> None:
        """Write all of data. It returns when the system has taken the data, or they wait in the
        stream for the end of the tick.

        When it is cancelled, or out of time, after a part has left, the rest is kept in the stream
        and leaves as soon as there is room, so that what the other side reads is whole.

        Raises:
            As write().
        """
        self._begin_write()
        size = len(data) if data.__class__ is bytes else bytes_of(data).nbytes
        if size < _GATHER and self._out.tick == self._reactor.ticks.tick:
            if len(self._out_buffer) + size <= _FULL and not self.state.closed:
                self._gather(data)
                return
        elif self.state.writable and not self._out_buffer and self._reactor.ticks.credit > 0:
            self._reactor.ticks.credit -= 1
            self._out.tick = self._reactor.ticks.tick
            taken = self._send(self._fd, data)
            if taken == size:
                return
            self._after(taken, size)
            if taken > 0:
                with bytes_of(data) as view:
                    await self._write_rest(view[taken:], True, timeout)
                return
        with bytes_of(data) as view:
            await self._write_rest(view, False, timeout)

    async def _write_on(self, data: Buffer, done: int) -> None:
        """The rest of write_all(), behind so many bytes that have left."""
        with bytes_of(data) as view:
            await self._write_rest(view[done:], True, None)

    async def _write_rest(self, view: memoryview, begun: bool, timeout: float | None) -> None:
        until = self._until(timeout)
        try:
            while view:
                taken = await self._put(view)
                if taken:
                    begun = True
                    view = view[taken:]
                else:
                    await self._ready(self._out, until)
        except BaseException as error:
            if begun:
                self._keep(view, type(error))
            raise

    def _keep(self, rest: Buffer, kind: type[BaseException]) -> None:
        """What write_all() had begun before such an exception is sent to its end."""
        if not self.state.closed and not issubclass(kind, errors.ConnectionClosed):
            self._gather(rest)

    async def _put(self, view: memoryview) -> int:
        """Try once: how many bytes were taken."""
        state, reactor = self.state, self._reactor
        if reactor.ticks.credit <= 0:
            await self._breathe(self._out)
        reactor.ticks.credit -= 1
        if self._out_buffer:
            self._flush()
            if (failed := state.take_error()) is not None:
                raise failed
            if self._out_buffer:
                if len(view) >= _GATHER or len(self._out_buffer) + len(view) > _FULL:
                    return 0
                self._out_buffer += view
                return len(view)
        if not state.writable or not view:
            return 0
        self._out.tick = reactor.ticks.tick
        taken = self._send(self._fd, view)
        self._after(taken, len(view))
        return max(taken, 0)

    def _begin_write(self) -> None:
        self._enter(self._out, "writes to")
        if self._out.ended:
            raise errors.InvalidState("this stream was ended by write_eof(): nothing more is sent")
        if (failed := self.state.take_error()) is not None:
            raise failed

    def _after(self, taken: int, size: int) -> None:
        """The system has taken so many of size bytes."""
        if taken < 0:
            self._not_now(taken, "written")
        if taken < size:
            self.state.writable = False

    def _gather(self, data: Buffer) -> None:
        """Keep it until the end of the tick, or until there is room."""
        if not self._out_buffer:
            self._reactor.flush_soon(self._flush)
        self._out_buffer += data

    def _flush(self) -> None:
        """Hand the system what waits, as far as there is room."""
        waits, state = self._out_buffer, self.state
        while waits and state.writable and not state.closed:
            taken = self._send_waiting()
            if taken < 0:
                state.writable = False
                if taken != NOT_READY:
                    del waits[:]
                    state.set_error(self._met(-taken, f"stream to {peer_of(self._socket)}"))
                break
            if waits:
                state.writable = False
        if waits and not state.writable and state.when_waiting is not None:
            state.when_waiting(2)

    def _send_waiting(self) -> int:
        """Try once: how many bytes of what waits the system has taken, or minus its number. A
        signal handler that raises then would have them sent again: see _receive_ahead()."""
        sent: list[int] = []
        try:
            sent.extend(map(self._send, (self._fd,), (self._out_buffer,)))
        finally:
            if sent and sent[0] > 0:
                del self._out_buffer[: sent[0]]
        return sent[0]

    def on_writable(self) -> None:
        """See AsyncSocketHandler."""
        self.state.writable = True
        if self._out_buffer:
            self._flush()
        if self.state.writable:
            self.state.set_writable()

    @property
    def unsent(self) -> int:
        """Bytes that were written, and wait in the stream until there is room for them."""
        return len(self._out_buffer)

    def write_soon(self, data: Buffer) -> None:
        """Write all of data without waiting: what the system does not take now is kept in the
        stream, however much that is, and leaves as soon as there is room. Whoever writes so awaits
        drain() now and then, or looks at unsent.

        Raises:
            ConnectionClosed, NetworkFailure: the connection broke; or the next write or drain()
                raises that.
            InvalidState: another task writes, the stream is closed, or its half was ended.
        """
        self._begin_write()
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        full = size >= _GATHER or len(self._out_buffer) + size > _FULL
        if self.state.writable and (full or self._out.tick != self._reactor.ticks.tick):
            if self._out_buffer:
                self._flush()
            if self.state.writable:  # so that nothing waits
                self._out.tick = self._reactor.ticks.tick
                taken = self._send(self._fd, data)
                self._after(taken, size)
                if taken == size:
                    return
                data = bytes_of(data)[max(taken, 0) :]
        self._gather(data)

    async def drain(self, *, timeout: float | None = None) -> None:
        """Wait until the system has taken all that was written.

        Raises:
            As write().
        """
        self._enter(self._out, "writes to")
        until = self._until(timeout)
        while True:
            self._flush()
            if (failed := self.state.take_error()) is not None:
                raise failed
            if not self._out_buffer:
                return
            await self._ready(self._out, until)

    async def write_eof(self, *, timeout: float | None = None) -> None:
        """Send what was written, and end this side of the stream: the other side reads b"" behind
        it. The other half goes on. A second time nothing happens.

        Raises:
            As write().
        """
        if self._out.ended:
            return
        await self.drain(timeout=timeout)
        self._out.ended = True
        with contextlib.suppress(OSError):  # the other side is gone: reading tells how
            self._socket.shutdown(socket.SHUT_WR)

    async def aclose(self, *, timeout: float | None = 5.0) -> None:
        """Send what was written, and close the stream. When that fails, or takes longer than
        timeout seconds, the rest is lost. May be called again."""
        if self.state.closed:
            self.close_now()
            return
        try:
            if self._out_buffer and not self._out.busy:
                await self.drain(timeout=timeout)
        except errors.NetworkError:
            pass
        except errors.InvalidState:
            if not self.state.closed:  # else somebody has closed it meanwhile
                raise
        finally:
            if not self.state.closed:
                discard(self._socket)
                self.close_now()

    async def start_tls(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> TlsStream:
        """Encrypt what follows: returns the stream that is encrypted, to be used in place of this
        one from then on. What was read ahead is taken for a part of TLS. When that fails, is
        cancelled, or is out of time, the stream is closed.

        Args:
            context: of the ssl module: ssl.create_default_context() for a client.
            server_side: whether this is the side that was called.
            server_hostname: whose certificate a client wants.

        Raises:
            NetworkFailure: the two do not agree, or the certificate is not trusted.
            ConnectionClosed: the other side left. Timeout: it took too long.
            InvalidState: a task reads or writes, or the stream is closed.
        """
        self._enter(self._in, "reads from")
        self._enter(self._out, "writes to")
        until = self._until(timeout)
        try:
            await self.drain(timeout=timeout)
            encrypted = TlsStream(self, context, server_side, server_hostname)
            await encrypted.handshake(self._rest(until))
        except BaseException:
            if not self.closed:
                self.close_now()
            raise
        return encrypted

    async def move_to(self, worker: Worker) -> None:
        """Belong to a worker from now on, whose tasks alone may use it. What was read ahead goes
        with it; what was written is sent before. When that fails the stream is closed.

        Raises:
            InvalidState: a task reads or writes, the stream is closed, or the worker is.
            As drain().
        """
        self._enter(self._in, "reads from")
        await self.drain()
        self._enter(self._in, "reads from")
        worker.check_open()
        self._in.busy = self._out.busy = True
        self._reactor.unregister(self._registered)  # first: the other thread registers it anew
        try:
            self._settled = False
            self._moving = worker.submit(self._settle)
            moved = asyncio.wrap_future(self._moving)
            moved.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.shield(moved)
        except Exception:
            self.on_close()
            raise

    def close_now(self) -> None:
        """See Endpoint.close_now(). A stream that is on its way to a worker is closed there."""
        moving = self._moving
        if moving is None or self._settled or moving.done():
            super().close_now()
        elif not self.state.closed:
            self.state.set_closed()
            moving.add_done_callback(lambda _: self._socket.close())

    def _settle(self) -> None:
        """Register at the reactor of the loop that runs here."""
        if self.state.closed:
            raise errors.InvalidState("this stream was closed on its way to a worker")
        reactor = here()
        self._rest_on(reactor)
        self._registered = reactor.register(self._fd, self._interest(reactor), self)
        self._bind(reactor)
        self._settled = True  # before the future says so, which takes a tick

    def _not_now(self, result: int, doing: str) -> None:
        """Raises what a try has met, unless that is "not now"."""
        if result != NOT_READY:
            raise self._met(-result, f"stream to {peer_of(self._socket)} cannot be {doing}")

    def _met(self, number: int, what: str) -> errors.PeerTalkError:
        """What the system has refused. That a connection broke it tells once, to reader or writer,
        and from then on that nothing more comes, as of a stream that has ended."""
        error = fault(number, what)
        if number not in _UNBROKEN:
            self._broken = self._broken or error
        return error

    def _check_end(self) -> None:
        """Raises ConnectionClosed when it is not the end of the stream that was read."""
        if self._broken is not None:
            raise errors.ConnectionClosed(f"the connection broke before: {self._broken}")


quicken(Stream)


def _refused(number: int, where: Resolved) -> errors.PeerTalkError:
    if where.family == socket.AF_UNIX:
        if number == errno.ENOENT:
            return errors.ConnectionRefused(f"{where}: there is no such socket")
        if number == errno.EAGAIN:
            return errors.NetworkFailure(f"{where}: too many wait there to be accepted")
        return fault(number, str(where))
    return of_dial(number, os.strerror(number), where.address)
