"""Packets of up to 64 KiB, each of which arrives whole, late, twice, or not at all."""

from __future__ import annotations

import errno
import socket
from typing import Any, Self

from .. import errors
from ..protocol.refusals import used_up
from ..protocol.socket_addresses import AddressLike
from ..runtime.reactor import Reactor, here
from .addresses import Resolved, resolve
from .endpoint import Endpoint, fault
from .listener import not_had

PACKET_MAX = 65_507
"""Bytes of a UDP packet over IPv4, at most (RFC 768 and 791)."""


class Datagrams(Endpoint):
    """A UDP socket. Make one with bind(), which hears from everybody, or with connect(), which
    speaks to one address alone. Of the asyncio loop where it was made; one task may receive and
    another one send at once.

    What comes while nobody receives waits in the system, which drops what finds no room.
    """

    __slots__ = ("_family",)

    _NOUN = "datagram socket"

    def __init__(self, reactor: Reactor, owned: socket.socket) -> None:
        self._family = owned.family
        super().__init__(reactor, owned)

    @classmethod
    async def bind(cls, address: AddressLike, *, broadcast: bool = False) -> Self:
        """Hear what is sent to an address of this machine. Port 0: any free one, which local_addr
        tells.

        Args:
            broadcast: what is sent may go to everybody in a network.

        Raises:
            AddressInUse, NoNetwork, PlatformError: the address cannot be had.
            WrongType, InvalidArgument: it is none. InvalidState: no asyncio loop runs here.
        """
        where = (await resolve(address, kind=socket.SOCK_DGRAM, passive=True))[0]
        owned = _open(where)
        try:
            if broadcast:
                owned.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            owned.bind(where.address)
            return cls(here(), owned)
        except BaseException as error:
            owned.close()
            if isinstance(error, OSError) and not isinstance(error, errors.PeerTalkError):
                raise not_had(error, where) from error
            raise

    @classmethod
    async def connect(cls, address: AddressLike) -> Self:
        """Speak to one address alone, and hear from nobody else. Nobody need be there.

        Raises:
            NetworkFailure: there is no way to that address.
            WrongType, InvalidArgument: it is none. InvalidState: no asyncio loop runs here.
        """
        where = (await resolve(address, kind=socket.SOCK_DGRAM, passive=False))[0]
        owned = _open(where)
        try:
            owned.connect(where.address)
            return cls(here(), owned)
        except BaseException as error:
            owned.close()
            if isinstance(error, OSError) and not isinstance(error, errors.PeerTalkError):
                raise fault(error.errno or 0, f"datagrams to {where}") from error
            raise

    async def receive(self, *, timeout: float | None = None) -> tuple[bytes, Any]:
        """The next packet and the address of its sender.

        Raises:
            Timeout: there was none in time. ConnectionRefused: a packet that was sent found nobody,
                of a connected socket. InvalidState: another task receives, or it is closed.
        """
        self._enter(self._in, "receives from")
        state, reactor = self.state, self._reactor
        until = self._until(timeout)
        while True:
            if state.readable:
                if reactor.ticks.credit <= 0:
                    await self._breathe(self._in)
                reactor.ticks.credit -= 1
                try:
                    return self._socket.recvfrom(65_536)
                except BlockingIOError:
                    state.readable = False
                except OSError as error:
                    raise fault(error.errno or 0, "datagrams") from error
            await self._ready(self._in, until)

    async def send(
        self, data: Any, address: AddressLike | None = None, *, timeout: float | None = None
    ) -> None:
        """Send one packet, as soon as the system has room for it. address: whom to; None: who the
        socket is connected to.

        Raises:
            MessageTooLarge: longer than a packet may be. Timeout: there was no room in time.
            NetworkFailure: there is no way there. ConnectionRefused: an earlier packet found
                nobody, of a connected socket; this one was not sent.
            InvalidArgument: no address, and the socket is not connected.
            InvalidState: another task sends, or it is closed.
        """
        self._enter(self._out, "sends from")
        where: Resolved | None = None
        if address is not None:
            self._out.busy = True
            try:
                where = await self._whom(address)
            finally:
                self._out.busy = False
            self._check()
        until, reactor = self._until(timeout), self._reactor
        while True:
            if reactor.ticks.credit <= 0:
                await self._breathe(self._out)
            reactor.ticks.credit -= 1
            try:
                if where is None:
                    self._socket.send(data)
                else:
                    self._socket.sendto(data, where.address)
                return
            except BlockingIOError:
                self.state.writable = False
            except OSError as error:
                if error.errno == errno.EDESTADDRREQ:
                    raise errors.InvalidArgument(
                        "this datagram socket is not connected: give the address to send to"
                    ) from error
                raise fault(error.errno or 0, f"datagram to {where or 'its peer'}") from error
            await self._ready(self._out, until)

    async def _whom(self, address: AddressLike) -> Resolved:
        for each in await resolve(address, kind=socket.SOCK_DGRAM, passive=False):
            if each.family == self._family:
                return each
        raise errors.InvalidArgument(
            f"address {errors.shown(address)} has another family than this datagram socket"
        )

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[bytes, Any]:
        try:
            return await self.receive()
        except errors.InvalidState:
            if self.state.closed:
                raise StopAsyncIteration from None
            raise


def _open(where: Resolved) -> socket.socket:
    if where.family == socket.AF_UNIX:
        raise errors.InvalidArgument(f"{where}: datagrams go to a host and a port, not to a path")
    try:
        owned = socket.socket(where.family, socket.SOCK_DGRAM)
    except OSError as error:
        raise errors.PlatformError(f"no socket for {where}: {used_up(error)}") from error
    owned.setblocking(False)
    return owned
