"""The reader and the writer of one connection, as asyncio has them, over a Stream.

Bytes are read when somebody asks for them, and not before. Both sides share the connection, and
neither knows the other: so a writer that nobody holds is found, and closes the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ssl
import warnings
from collections.abc import Iterable
from typing import Any, Self

from .. import errors
from ..ownership import running_loop
from ..protocol.socket_state import SocketInterest
from ..runtime.reactor import here
from .reading import READ_SIZE, Buffer, discard
from .stream import Stream
from .tls import TlsStream

_HIGH_WATER = 65_536
"""Bytes that wait to be sent, beyond which drain() waits, as asyncio's does."""


class StreamReader:
    """What comes on a connection, as asyncio.StreamReader has it. One task reads at a time."""

    def __init__(self, connection: Connection, limit: int) -> None:
        self._connection = connection
        self._limit = limit
        self._buffer = bytearray()
        self._eof = False

    def at_eof(self) -> bool:
        """Whether a read has found the end of the stream, or it was closed here, and everything
        was read."""
        return (self._eof or self._connection.stream.closed) and not self._buffer

    async def read(self, n: int = -1) -> bytes:
        """Up to n bytes, as soon as there are any, b"" at the end; -1: all up to the end."""
        if n == 0:
            return b""
        if n < 0:
            while await self._fill(READ_SIZE):
                pass
            return self._taken(len(self._buffer))
        if self._buffer:
            return self._taken(n)
        data = await self._more(max(n, READ_SIZE))
        if len(data) <= n:
            return data
        self._buffer += memoryview(data)[n:]
        return data[:n]

    async def readexactly(self, n: int) -> bytes:
        """Exactly n bytes.

        Raises:
            asyncio.IncompleteReadError: the stream ended before; partial has what came.
        """
        if n < 0:
            raise errors.InvalidArgument("readexactly size can not be less than zero")
        buffer = self._buffer
        while len(buffer) < n:
            if not await self._fill(max(n - len(buffer), READ_SIZE)):
                raise asyncio.IncompleteReadError(self._taken(n), n)
        return self._taken(n)

    async def readline(self) -> bytes:
        r"""A line with its b"\n"; what is left, where the stream ends without one.

        Raises:
            ValueError: the line is longer than the limit; it is gone then, or what came of it.
        """
        try:
            return await self.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            return error.partial
        except asyncio.LimitOverrunError as error:
            found = self._buffer.startswith(b"\n", error.consumed)
            del self._buffer[: error.consumed + 1 if found else None]
            raise ValueError(error.args[0]) from error

    async def readuntil(self, separator: bytes | tuple[bytes, ...] = b"\n") -> bytes:
        """All up to the separator, with the separator; or up to the first of several.

        Raises:
            asyncio.IncompleteReadError: the stream ended before; partial has what came.
            asyncio.LimitOverrunError: longer than the limit; all of that is still there to be read.
        """
        separators = separator if isinstance(separator, tuple) else (separator,)
        if not separators:
            raise errors.InvalidArgument("Separator should contain at least one element")
        if not all(map(len, separators)):
            raise errors.InvalidArgument("Separator should be at least one-byte string")
        longest = max(map(len, separators))
        buffer, seen = self._buffer, 0
        while True:
            found = [  # where each ends, and then the shortest first, as asyncio has it
                (at + len(each), -at) for each in separators if (at := buffer.find(each, seen)) >= 0
            ]
            if found:
                end, at = min(found)
                if -at > self._limit:
                    raise asyncio.LimitOverrunError(
                        "Separator is found, but chunk is longer than limit", -at
                    )
                return self._taken(end)
            seen = max(0, len(buffer) + 1 - longest)
            if seen > self._limit:
                raise asyncio.LimitOverrunError(
                    "Separator is not found, and chunk exceed the limit", seen
                )
            if not await self._fill(READ_SIZE):
                raise asyncio.IncompleteReadError(self._taken(len(buffer)), None)

    async def _fill(self, size: int) -> bool:
        """Have more in the buffer. False: there is no more."""
        data = await self._more(size)
        self._buffer += data
        return bool(data)

    async def _more(self, size: int) -> bytes:
        """Up to size bytes; b"": the stream has ended, or was closed here."""
        connection = self._connection
        if self._eof or connection.closing:
            return connection.nothing()
        try:
            data = await connection.stream.read(size)
        except errors.PeerTalkError as error:
            return connection.nothing(error)
        self._eof = not data
        return data

    def _taken(self, size: int) -> bytes:
        with memoryview(self._buffer) as view:
            taken = bytes(view[:size])
        del self._buffer[:size]
        return taken

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    def __repr__(self) -> str:
        return f"<StreamReader {len(self._buffer)} bytes{' eof' * self._eof}>"


class StreamWriter:
    """What is sent on a connection, as asyncio.StreamWriter has it: many tasks may write, and wait
    in drain() at once. One that nobody holds any more is closed, with a ResourceWarning."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def write(self, data: Buffer) -> None:
        """Send data as soon as there is room. Nothing is sent on a connection that has broken or is
        closed: drain() tells."""
        self._connection.write(data)

    def writelines(self, data: Iterable[Buffer]) -> None:
        """Send all of these, as write() does, with one call."""
        self._connection.write(b"".join(data))

    async def drain(self) -> None:
        """Wait while more than 64 KiB wait to be sent.

        Raises:
            ConnectionResetError: the connection is closed, or broke. TimeoutError: the other side
                has fallen silent.
        """
        if self._connection.must_wait():
            await self._connection.drain()

    def can_write_eof(self) -> bool:
        """Whether write_eof() can be called: not of TLS, which ends both ways."""
        return isinstance(self._connection.stream, Stream)

    def write_eof(self) -> None:
        """End this side of the stream, behind what was written."""
        self._connection.write_eof()

    def close(self) -> None:
        """Close the connection, as soon as what was written has left."""
        self._connection.close()

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._connection.closing or self._connection.stream.closed

    async def wait_closed(self) -> None:
        """Wait until it is closed. Raises what the connection broke with."""
        await asyncio.shield(self._connection.over)
        if self._connection.failed is not None:
            raise self._connection.failed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The "socket"; "peername" and "sockname", its addresses; of TLS "ssl_object",
        "sslcontext", "peercert", "cipher" and "compression"; default for any other name."""
        return self._connection.extra.get(name, default)

    async def start_tls(
        self,
        sslcontext: ssl.SSLContext,
        *,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        """Encrypt what follows, on the side of the connection that this is."""
        await self._connection.start_tls(sslcontext, server_hostname, ssl_handshake_timeout)

    def __del__(self) -> None:
        connection = self._connection
        if self.is_closing():
            return
        if connection.loop.is_closed():
            warnings.warn("loop is closed", ResourceWarning, stacklevel=2)
        else:  # the collector may run on any thread
            connection.loop.call_soon_threadsafe(connection.close)
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2)

    def __repr__(self) -> str:
        return f"<StreamWriter {self._connection.stream!r}>"


class Connection:
    """The stream that a reader and a writer share, and how it ends.

    Attributes:
        failed: what the connection broke with.
        closing: it is closed, or will be when all has left.
        over: done when it is closed.
    """

    def __init__(self, stream: Stream, *, server_side: bool = False) -> None:
        self.stream: Stream | TlsStream = stream
        self._server_side = server_side
        self.loop = running_loop()
        self.over: asyncio.Future[None] = self.loop.create_future()
        self.failed: Exception | None = None
        self.closing = False
        self.extra: dict[str, Any] = {"socket": stream._socket}
        for name, ask in (
            ("sockname", stream._socket.getsockname),
            ("peername", stream._socket.getpeername),
        ):
            with contextlib.suppress(OSError):  # the other side has left already
                self.extra[name] = ask()
        self._reactor = here()
        self._ended = False
        self._finishing: asyncio.Task[None] | None = None
        self._waiters: list[asyncio.Future[None]] = []

    async def start_tls(
        self, context: ssl.SSLContext, hostname: str | None, timeout: float | None
    ) -> None:
        """See the method of StreamWriter. hostname: that of the certificate, for a client."""
        if not isinstance(self.stream, Stream):
            raise errors.InvalidState("this connection is encrypted already")
        try:
            await self.drain()
            encrypted = await self.stream.start_tls(
                context, server_side=self._server_side, server_hostname=hostname, timeout=timeout
            )
        except errors.NetworkError as error:
            self._fail(error)
        except BaseException:
            self.close()
            raise
        if self.failed is not None:
            raise self.failed
        self.stream, tls = encrypted, encrypted.ssl_object
        self.extra.update(
            ssl_object=tls,
            sslcontext=context,
            peercert=tls.getpeercert(),
            cipher=tls.cipher(),
            compression=tls.compression(),
        )

    def nothing(self, error: errors.PeerTalkError | None = None) -> bytes:
        """What a read gives that has met this error, or none: b"" where the stream is over. Raises
        what the connection broke with, and that another task reads."""
        if isinstance(error, errors.NetworkError):
            self._fail(error)
        elif error is not None and not self.stream.closed:
            raise error
        if self.failed is not None:
            raise self.failed
        return b""

    def write(self, data: Buffer) -> None:
        """As StreamWriter.write()."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise errors.WrongType(f"write takes bytes, not {errors.shown(data)}")
        if self._ended:
            raise errors.InvalidState("Cannot call write() after write_eof()")
        if self.closing:
            return
        self._reactor.ticks.credit -= 1
        try:
            self.stream.write_soon(data)
        except errors.NetworkError as error:
            self._fail(error)

    def must_wait(self) -> bool:
        """Whether drain() has anything to wait for, or to tell."""
        self._check()
        return self.closing or self.stream.unsent > _HIGH_WATER or self._reactor.ticks.credit <= 0

    async def drain(self) -> None:
        """See the method of StreamWriter."""
        if self._reactor.ticks.credit <= 0:
            await asyncio.sleep(0)
            self._reactor.ticks.credit = self._reactor.ops
        if self.closing:
            await asyncio.sleep(0)
        await self._room(_HIGH_WATER)
        if self.failed is not None:
            raise self.failed
        if self.stream.closed:
            raise ConnectionResetError("Connection lost")

    async def _room(self, most: int) -> None:
        """Wait until no more than so many bytes wait to be sent, or it is closed."""
        self._check()
        if self.stream.unsent <= most:
            return
        while self.stream.unsent and not self.stream.closed:
            waiter = self.loop.create_future()
            self._waiters.append(waiter)
            self.stream.state.set_waker(SocketInterest.WRITABLE, self._wake)
            await waiter
            self._check()

    def _check(self) -> None:
        error = self.stream.state.take_error()
        if isinstance(error, errors.NetworkError):
            self._fail(error)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def write_eof(self) -> None:
        """See the method of StreamWriter."""
        if not isinstance(self.stream, Stream):
            raise errors.NotSupported("write_eof(): TLS ends both ways; close() is there")
        if not self._ended and not self.closing:
            self._ended = True
            self._finish_soon()

    def close(self) -> None:
        """See the method of StreamWriter."""
        if self.closing:
            return
        self.closing = True
        if isinstance(self.stream, TlsStream) and not self.stream.closed:
            with contextlib.suppress(errors.NetworkError):  # the other side has left
                self.stream.end()
        if self.stream.unsent:
            self._finish_soon()
        else:
            self._close_now()

    def _finish_soon(self) -> None:
        if self._finishing is None:
            self._finishing = self.loop.create_task(self._finish())

    async def _finish(self) -> None:
        """Send what waits, then end this side, or all of it."""
        try:
            await self._room(0)
            if not self.closing and isinstance(self.stream, Stream):
                await self.stream.write_eof()
        except errors.NetworkError as error:
            self._fail(error)
        finally:
            self._finishing = None
            if self.closing:
                self._close_now()

    def _fail(self, error: errors.NetworkError) -> None:
        """The connection broke: what to tell of that, from now on."""
        if self.failed is None:
            self.failed = error
            if isinstance(error, errors.ConnectionClosed):
                self.failed = ConnectionResetError(errno.ECONNRESET, str(error))
                self.failed.__cause__ = error
            elif isinstance(error.__cause__, ssl.SSLError):
                self.failed = error.__cause__
        self.closing = True
        self._close_now()

    def _close_now(self) -> None:
        if self.failed is None:
            discard(self.extra["socket"])
        self.stream.close_now()
        if not self.over.done() and not self.loop.is_closed():
            self.over.set_result(None)
        self._wake()
