"""A stream whose bytes are encrypted, by the ssl module of Python on memory: the sockets stay the
reactor's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Any, Protocol, Self

from .. import errors
from ..protocol.socket_state import AsyncSocketState
from ..runtime.reactor import Reactor
from .reading import Buffer, Reading, bytes_of, discard

_RECORD = 16_384
"""Bytes of one TLS record, at most (RFC 8446, 5.1): a slice of work."""
_CIPHER_READ = 65_536
"""Bytes that are read at once, of what is encrypted."""
_FULL = 65_536
"""Bytes that wait to be sent beyond which a write waits."""


class Below(Protocol):
    """What it needs of the stream that it is made of, which lies above. See Stream."""

    @property
    def closed(self) -> bool: ...
    @property
    def local_addr(self) -> Any: ...
    @property
    def peer_addr(self) -> Any: ...
    @property
    def unsent(self) -> int: ...
    @property
    def state(self) -> AsyncSocketState: ...

    _reactor: Reactor
    _socket: socket.socket

    def _check(self) -> None: ...
    def _begin_write(self) -> None: ...
    def fileno(self) -> int: ...
    def write_soon(self, data: bytes) -> None: ...
    def close_now(self) -> None: ...
    async def read(self, size: int = ..., *, timeout: float | None = ...) -> bytes: ...
    async def drain(self, *, timeout: float | None = ...) -> None: ...
    async def when_idle(self) -> None: ...
    async def aclose(self, *, timeout: float | None = ...) -> None: ...


class TlsStream(Reading):
    """A stream that was encrypted by Stream.start_tls(), and has the same calls. What holds of a
    stream holds here; a write that is cancelled is sent to its end."""

    __slots__ = ("_below", "_from_there", "_left", "_reading", "_tls", "_to_there", "_writing")

    def __init__(
        self, below: Below, context: ssl.SSLContext, server_side: bool, hostname: str | None
    ) -> None:
        self._below = below
        self._from_there = ssl.MemoryBIO()
        self._to_there = ssl.MemoryBIO()
        if context.check_hostname and hostname is None and not server_side:
            # else the ssl module would take the certificate of anybody
            raise errors.InvalidArgument(
                "server_hostname: this context checks the name in the certificate, so give the "
                'name; "" takes that of anybody'
            )
        try:
            self._tls = context.wrap_bio(
                self._from_there,
                self._to_there,
                server_side=server_side,
                server_hostname=hostname or None,
            )
        except (ssl.SSLError, ValueError) as error:  # a context of the other side, or no name
            raise errors.InvalidArgument(f"no TLS with {hostname!r}: {error}") from error
        self._left = bytearray()
        self._reading = self._writing = False

    # What it is -----------------------------------------------------------------------------------

    @property
    def ssl_object(self) -> ssl.SSLObject:
        """The ssl module's view: version(), cipher(), getpeercert(), selected_alpn_protocol()."""
        return self._tls

    @property
    def closed(self) -> bool:
        """Whether it was closed here."""
        return self._below.closed

    @property
    def local_addr(self) -> Any:
        """See Stream.local_addr."""
        return self._below.local_addr

    @property
    def peer_addr(self) -> Any:
        """See Stream.peer_addr."""
        return self._below.peer_addr

    @property
    def state(self) -> AsyncSocketState:
        """That of the socket."""
        return self._below.state

    def fileno(self) -> int:
        """See Stream.fileno(). What passes there is encrypted."""
        return self._below.fileno()

    def __repr__(self) -> str:
        return f"<peertalk.net.TlsStream on {self._below!r}>"

    # The two directions ---------------------------------------------------------------------------

    async def handshake(self, timeout: float | None) -> None:
        """Agree on keys, and look at the certificate. To be called once, by start_tls(). Each step
        is done behind all that is ready: it may take milliseconds.

        Raises:
            NetworkFailure: the two do not agree, or the certificate is not trusted.
            ConnectionClosed: the other side left. Timeout: it took too long.
        """
        until = self._until(timeout)
        while True:
            await self._below.when_idle()
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._pass_on(until)
                if not await self._hear(until):
                    raise errors.ConnectionClosed(
                        f"{self._whom()} ended the connection before TLS was agreed on"
                    ) from None
            except ssl.SSLError as error:
                with contextlib.suppress(errors.PeerTalkError):
                    await self._pass_on(until)  # what is wrong, for the other side
                raise errors.NetworkFailure(
                    f"no TLS with {self._whom()}: {_said(error)}"
                ) from error
            else:
                await self._pass_on(until)
                return

    async def _hear(self, until: float | None) -> bool:
        """Take what has come, as soon as there is something. False: nothing more will."""
        data = await self._below.read(_CIPHER_READ, timeout=self._rest(until))
        if data:
            self._from_there.write(data)
        else:
            self._from_there.write_eof()
        return bool(data)

    async def _pass_on(self, until: float | None) -> None:
        """Send what is encrypted. None of it is lost when this is cancelled: a record that is
        missing would end the stream."""
        while self._to_there.pending:
            self._below.write_soon(self._to_there.read())
        if self._below.unsent > _FULL:
            await self._below.drain(timeout=self._rest(until))

    def _answer(self) -> None:
        """Send what TLS itself has to say to what came, such as new keys. While another task writes
        that is left to him."""
        if self._to_there.pending and not self._writing:
            with contextlib.suppress(errors.NetworkError, errors.InvalidState):
                self._below._begin_write()
                self._below.write_soon(self._to_there.read())

    def _begin_read(self) -> None:
        self._below._check()
        if self._reading:
            raise errors.InvalidState(
                "another task reads from this stream: one may at a time, or what each got would be "
                "chance"
            )

    async def _some(self, most: int, timeout: float | None) -> int:
        until = self._until(timeout)
        self._reading = True
        try:
            while True:
                await self._let_others()  # a record of one byte costs as much as a read
                try:
                    data = self._tls.read(min(most, _RECORD))
                    self._left += data
                    return len(data)
                except ssl.SSLWantReadError:
                    self._answer()
                    await self._hear(until)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return 0
        except ssl.SSLError as error:
            raise self._failed(error) from error
        finally:
            self._reading = False
            self._answer()

    def _until(self, timeout: float | None) -> float | None:
        return None if timeout is None else asyncio.get_running_loop().time() + timeout

    def _rest(self, until: float | None) -> float | None:
        return None if until is None else max(0.0, until - asyncio.get_running_loop().time())

    # Writing --------------------------------------------------------------------------------------

    async def write(self, data: Buffer, *, timeout: float | None = None) -> int:
        """Write some of data, one record at most: how many bytes were taken.

        Raises:
            As Stream.write().
        """
        with bytes_of(data) as view:
            piece = view[:_RECORD]
            await self.write_all(piece, timeout=timeout)
            return len(piece)

    async def write_all(self, data: Buffer, *, timeout: float | None = None) -> None:
        """Write all of data. See Stream.write_all().

        Raises:
            As Stream.write_all().
        """
        self._begin_write()
        until = self._until(timeout)
        self._writing = True
        with bytes_of(data) as view:
            at = 0
            try:
                while at < len(view):
                    at += self._tls.write(view[at : at + _RECORD])
                    await self._pass_on(until)
                    await self._let_others()
            except ssl.SSLError as error:
                raise self._failed(error) from error
            except BaseException:
                if not self._below.closed:
                    with contextlib.suppress(errors.PeerTalkError):
                        self._encrypt(view[at:])  # so that what the other side reads is whole
                raise
            finally:
                self._writing = False

    async def _let_others(self) -> None:
        """What needs no wait takes one of the reads and writes of this tick; when none is left
        others have a tick before."""
        reactor = self._below._reactor
        if reactor.ticks.credit <= 0:
            await asyncio.sleep(0)
            reactor.ticks.credit = reactor.ops
        reactor.ticks.credit -= 1

    @property
    def unsent(self) -> int:
        """See Stream.unsent: encrypted bytes."""
        return self._below.unsent

    def write_soon(self, data: Buffer) -> None:
        """Encrypt and send all of data without waiting: what finds no room now is kept, however
        much that is. See Stream.write_soon().

        Raises:
            As Stream.write_soon().
        """
        self._begin_write()
        self._encrypt(bytes_of(data))

    def _encrypt(self, view: memoryview) -> None:
        """Encrypt all of this, and send that as soon as there is room."""
        at = 0
        try:
            while at < len(view):
                at += self._tls.write(view[at : at + _RECORD])
        except ssl.SSLError as error:
            raise self._failed(error) from error
        self._below.write_soon(self._to_there.read())

    async def drain(self, *, timeout: float | None = None) -> None:
        """Wait until the system has taken all that was written, at most timeout seconds.

        Raises:
            As Stream.drain().
        """
        await self._below.drain(timeout=timeout)

    def end(self) -> None:
        """Tell the other side that nothing more will come, as soon as there is room."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        self._answer()

    async def aclose(self, *, timeout: float | None = 5.0) -> None:
        """Tell the other side that nothing more will come, and close the stream. May be called
        again."""
        until = self._until(timeout)
        if not self._below.closed and not self._writing:
            try:
                self.end()
                await self._below.drain(timeout=timeout)
                discard(self._below._socket)  # such as the tickets that a server sends unasked
            except errors.PeerTalkError:
                pass  # it is closed all the same
            except BaseException:
                self._below.close_now()
                raise
        await self._below.aclose(timeout=self._rest(until))

    def close_now(self) -> None:
        """See Stream.close_now()."""
        self._below.close_now()

    async def __aenter__(self) -> Self:
        self._below._check()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _begin_write(self) -> None:
        """Raises what a write would, before anything is encrypted: a record that does not leave
        would end the stream."""
        if self._writing:
            raise errors.InvalidState("another task writes to this stream: one may at a time")
        self._below._begin_write()

    def _failed(self, error: ssl.SSLError) -> errors.NetworkError:
        if isinstance(error, ssl.SSLEOFError):
            return errors.ConnectionClosed(f"{self._whom()} has ended the connection")
        return errors.NetworkFailure(f"TLS with {self._whom()}: {_said(error)}")

    def _whom(self) -> str:
        try:
            return str(self._below.peer_addr)
        except errors.PeerTalkError:
            return "the other side"


def _said(error: ssl.SSLError) -> str:
    return getattr(error, "verify_message", "") or error.reason or str(error)
