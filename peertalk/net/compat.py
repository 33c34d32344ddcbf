"""What asyncio calls streams, over those of peertalk.net: programs written for asyncio's
open_connection() and start_server() run unchanged.

Names, arguments and errors are asyncio's, whose documentation says what each of them does. Bytes
are read when somebody asks for them, and not before: so at_eof() is true once a read has found the
end, and what nobody had read when close() was called is lost. There are no transports, so that
nothing here has a `transport` attribute.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

from .. import errors
from ..ownership import running_loop
from ..runtime.reactor import here
from .addresses import resolve
from .listener import BACKLOG, Listener
from .pair import Connection, StreamReader, StreamWriter
from .stream import Stream

LIMIT = 65_536
"""Bytes of a line at most, when nothing else is said."""
_NUMBERS: dict[type[errors.NetworkError], int] = {
    errors.AddressInUse: errno.EADDRINUSE,
    errors.NoNetwork: errno.EADDRNOTAVAIL,
    errors.ConnectionRefused: errno.ECONNREFUSED,
    errors.ConnectionClosed: errno.ECONNRESET,
}
"""What programs for asyncio find in `errno`."""
HANDSHAKE = 60.0
"""Seconds that TLS may take to be agreed on, when nothing else is said; as asyncio has it."""
_NO_OPTION = "peertalk.net has no such option; use asyncio's own streams where it is needed"
_OPTIONS: dict[str, tuple[Any, ...]] = {
    "family": (0, None),
    "proto": (0,),
    "flags": (0, socket.AI_PASSIVE),
    "local_addr": (None,),
    "happy_eyeballs_delay": (None,),
    "interleave": (None,),
    "all_errors": (False,),
    "reuse_address": (None, True),
    "keep_alive": (None, False),
    "cleanup_socket": (True,),
}
"""What is taken of asyncio's other options: what they are there when nothing is said."""


Connected: TypeAlias = Callable[[StreamReader, StreamWriter], Awaitable[object] | object]
"""What a server calls for each connection; what it returns is awaited, if it is a coroutine."""


class Secure(NamedTuple):
    """Whether connections are encrypted, and how long agreeing on that may take."""

    context: ssl.SSLContext | None
    timeout: float

    async def start(self, connection: Connection, hostname: str | None) -> None:
        """Encrypt a connection, if that is wanted. hostname: whose certificate a client wants."""
        if self.context is not None:
            await connection.start_tls(self.context, hostname, self.timeout)


class Server:
    """What start_server() returns, as asyncio.Server has it."""

    def __init__(
        self, listeners: Sequence[Listener], connected: Connected, limit: int, secure: Secure
    ) -> None:
        self._listeners = listeners
        self._connected = connected
        self._limit = limit
        self._secure = secure
        self._loop = running_loop()
        self._accepting: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._open: set[asyncio.Future[None]] = set()
        self._forever: asyncio.Future[None] | None = None
        self._closed = self._loop.create_future()

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """Those that it listens at; none, once it is closed."""
        return () if self._closed.done() else tuple(each._socket for each in self._listeners)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The asyncio loop that it belongs to."""
        return self._loop

    def is_serving(self) -> bool:
        """Whether it accepts connections."""
        return bool(self._accepting) and not self._closed.done()

    async def start_serving(self) -> None:
        """Accept connections. A second time nothing happens."""
        self._check()
        if not self._accepting:
            self._accepting = [
                self._loop.create_task(self._accept(each)) for each in self._listeners
            ]

    async def serve_forever(self) -> None:
        """Accept connections until this is cancelled, or the server closed."""
        self._check()
        if self._forever is not None:
            raise errors.InvalidState("another task awaits serve_forever() of this server")
        await self.start_serving()
        self._forever = self._loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            self.close()
            await self.wait_closed()
            raise
        finally:
            self._forever = None

    def close(self) -> None:
        """Accept no more, and close the sockets that it listens at. Connections go on."""
        if self._closed.done():
            return
        self._closed.set_result(None)
        for listener in self._listeners:
            listener.close_now()
        if self._forever is not None:
            self._forever.cancel()

    async def wait_closed(self) -> None:
        """Wait until it is closed, and all of its connections are."""
        await asyncio.shield(self._closed)
        while self._open:
            await asyncio.wait(self._open)

    async def _accept(self, listener: Listener) -> None:
        async for stream in listener:
            connection = Connection(stream, server_side=True)
            self._open.add(connection.over)
            connection.over.add_done_callback(self._open.discard)
            if self._secure.context is None:
                self._begin(connection)
            else:
                self._start(connection, self._encrypt(connection))

    async def _encrypt(self, connection: Connection) -> None:
        try:
            await self._secure.start(connection, None)
        except OSError:
            return  # a caller that does not speak TLS, or does not trust this server
        self._begin(connection)

    def _begin(self, connection: Connection) -> None:
        try:
            self._call(connection)
        except Exception as error:
            self._report(error)

    def _call(self, connection: Connection) -> None:
        answer = self._connected(StreamReader(connection, self._limit), StreamWriter(connection))
        if asyncio.iscoroutine(answer):
            self._start(connection, answer)

    def _start(self, connection: Connection, work: Coroutine[Any, Any, object]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._served, connection))

    def _served(self, connection: Connection, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            connection.close()
        elif (error := task.exception()) is not None:
            self._report(error)
            connection.close()

    def _report(self, error: BaseException) -> None:
        self._loop.call_exception_handler(
            {"message": "Unhandled exception in client_connected_cb", "exception": error}
        )

    def _check(self) -> None:
        if self._closed.done():
            raise errors.InvalidState("this server is closed")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.wait_closed()

    def __repr__(self) -> str:
        return f"<Server sockets={self.sockets!r}>"


async def open_connection(
    host: str | None = None,
    port: int | str | None = None,
    *,
    limit: int = LIMIT,
    sock: socket.socket | None = None,
    **options: Any,
) -> tuple[StreamReader, StreamWriter]:
    """A connection to a host and port, as asyncio.open_connection() makes it.

    Args:
        limit: bytes of a line at most.
        sock: is connected already, and taken instead of host and port.
        options: ssl, server_hostname and ssl_handshake_timeout; others of asyncio with their
            default values.

    Raises:
        OSError: there is no connection; socket.gaierror: nobody has that name.
        NotSupported: an option of asyncio is given another value.
    """
    secure, hostname = _secure(options, host)
    _check(limit, options)
    _either(sock, host is not None or port is not None, "host and port")
    with _as_asyncio_raises():
        if sock is None:
            stream = await Stream.connect((host or "", _number(port)))
        else:
            stream = _own(sock)
    return await _pair(stream, limit, secure, hostname)


async def open_unix_connection(
    path: str | Path | None = None,
    *,
    limit: int = LIMIT,
    sock: socket.socket | None = None,
    **options: Any,
) -> tuple[StreamReader, StreamWriter]:
    """A connection to a Unix socket, as asyncio.open_unix_connection() makes it; see
    open_connection()."""
    secure, hostname = _secure(options, None)
    _check(limit, options)
    _either(sock, path is not None, "path")
    with _as_asyncio_raises():
        stream = await Stream.connect(Path(path or "")) if sock is None else _own(sock)
    return await _pair(stream, limit, secure, hostname)


async def start_server(
    client_connected_cb: Connected,
    host: str | Sequence[str] | None = None,
    port: int | str | None = None,
    *,
    limit: int = LIMIT,
    sock: socket.socket | None = None,
    backlog: int = BACKLOG,
    reuse_port: bool | None = None,
    start_serving: bool = True,
    **options: Any,
) -> Server:
    """Listen at a host and port, as asyncio.start_server() does: at all addresses that the host,
    or each of several, stands for; None: at all of this machine.

    Args:
        client_connected_cb: called with a reader and a writer for each connection.
        limit, sock, options: as of open_connection(). sock: one that is bound.
        backlog: connections that wait to be accepted at most.
        reuse_port: other sockets of this user may have the port.
        start_serving: False: callers wait until Server.start_serving().

    Raises:
        OSError, NotSupported: as open_connection().
    """
    secure, _ = _secure(options, None, server_side=True)
    _check(limit, options)
    _either(sock, host is not None or port is not None, "host and port")
    if sock is not None:
        server = Server([_listening(sock, backlog)], client_connected_cb, limit, secure)
        return await _started(server, start_serving)
    hosts = [host or ""] if isinstance(host, str | None) else list(host)
    listeners: list[Listener] = []
    with _as_asyncio_raises(), contextlib.ExitStack() as made:
        for each in hosts:
            found = await resolve((each, _number(port)), kind=socket.SOCK_STREAM, passive=True)
            for _, address in found:
                listener = await Listener.bind(
                    address, backlog=backlog, reuse_port=bool(reuse_port)
                )
                made.callback(listener.close_now)
                listeners.append(listener)
        made.pop_all()
    return await _started(Server(listeners, client_connected_cb, limit, secure), start_serving)


async def start_unix_server(
    client_connected_cb: Connected,
    path: str | Path | None = None,
    *,
    limit: int = LIMIT,
    sock: socket.socket | None = None,
    backlog: int = BACKLOG,
    start_serving: bool = True,
    **options: Any,
) -> Server:
    """Listen at a Unix socket, as asyncio.start_unix_server() does; see start_server()."""
    secure, _ = _secure(options, None, server_side=True)
    _check(limit, options)
    _either(sock, path is not None, "path")
    with _as_asyncio_raises():
        listener = (
            await Listener.bind(Path(path or ""), backlog=backlog)
            if sock is None
            else _listening(sock, backlog)
        )
    return await _started(Server([listener], client_connected_cb, limit, secure), start_serving)


async def _started(server: Server, start: bool) -> Server:
    if start:
        await server.start_serving()
    return server


def _secure(
    options: dict[str, Any], host: str | None, *, server_side: bool = False
) -> tuple[Secure, str | None]:
    """What the options say of TLS, which are taken out; and whose certificate is wanted. host: who
    is called; None: nobody who has a name, so that one has to be given."""
    context = options.pop("ssl", None)
    hostname = options.pop("server_hostname", None)
    timeout = options.pop("ssl_handshake_timeout", None)
    options.pop("ssl_shutdown_timeout", None)  # what waits is sent, however long that takes
    if context is True and not server_side:
        context = ssl.create_default_context()
    if context and not isinstance(context, ssl.SSLContext):
        raise errors.WrongType(f"ssl argument must be an SSLContext, not {errors.shown(context)}")
    if not context and hostname:
        raise errors.InvalidArgument("server_hostname is only meaningful with ssl")
    if context and not server_side and not host and hostname is None:
        raise errors.InvalidArgument("You must set server_hostname when using ssl without a host")
    secure = Secure(context or None, HANDSHAKE if timeout is None else timeout)
    return secure, hostname if hostname is not None else host


async def _pair(
    stream: Stream, limit: int, secure: Secure, hostname: str | None
) -> tuple[StreamReader, StreamWriter]:
    connection = Connection(stream)
    await secure.start(connection, hostname)
    return StreamReader(connection, limit), StreamWriter(connection)


def _own(sock: socket.socket) -> Stream:
    """A stream of a socket that is connected already."""
    _check_kind(sock)
    sock.setblocking(False)
    stream = Stream(here(), sock)
    stream.state.writable = True
    return stream


def _listening(sock: socket.socket, backlog: int) -> Listener:
    """A listener of a socket that is bound already."""
    _check_kind(sock)
    sock.setblocking(False)
    sock.listen(backlog)
    return Listener(here(), sock, None)


def _check_kind(sock: socket.socket) -> None:
    if sock.type != socket.SOCK_STREAM:
        raise errors.InvalidArgument(f"A Stream Socket was expected, got {errors.shown(sock)}")


def _either(sock: socket.socket | None, named: bool, what: str) -> None:
    if (sock is not None) == named:
        raise errors.InvalidArgument(
            f"{what} {'and sock were given' if named else 'were not given, and no sock'}: give one"
            " of the two"
        )


def _number(port: int | str | None) -> int:
    """A port, which people write as text too."""
    if isinstance(port, str):
        port = int(port) if port.isdecimal() else port
    return port or 0  # type: ignore[return-value]  # other text resolve() refuses


def _check(limit: int, options: dict[str, Any]) -> None:
    if limit <= 0:
        raise errors.InvalidArgument(f"limit {limit:,}: a line has 1 byte at least")
    for name, value in options.items():
        if name not in _OPTIONS:
            raise TypeError(f"{name}: asyncio has no such option")
        if value not in _OPTIONS[name]:
            raise errors.NotSupported(f"{name}={errors.shown(value)}: {_NO_OPTION}")


@contextlib.contextmanager
def _as_asyncio_raises() -> Iterator[None]:
    """Errors have the number that they would have there; a name that nobody has is a gaierror."""
    try:
        yield
    except errors.NetworkError as error:
        if isinstance(error.__cause__, socket.gaierror):
            raise error.__cause__ from None
        if isinstance(error, OSError):
            error.errno = _NUMBERS.get(type(error), getattr(error.__cause__, "errno", None))
        raise
