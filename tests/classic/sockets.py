"""A classic peer on a network, a real or a simulated one: its actions carried out."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from classic.formats import Address
from classic.peer import ClassicPeer, Link

CONNECTING = -19
"""What a simulated socket answers while it is being opened."""


class Driver(ABC):
    """What both kinds of sockets share: carries out actions, and remembers what failed."""

    GUARD = 20.0

    def __init__(self, peer: ClassicPeer) -> None:
        self.peer = peer
        self.failure: BaseException | None = None
        self.quiet = peer.quiet
        self._changed = asyncio.Event()

    @abstractmethod
    def now(self) -> float:
        """The clock, seconds."""

    @abstractmethod
    def turn(self) -> None:
        """One poll that does not wait. As in the original, discovery comes first: a GOODBYE is
        judged by what was read of the connection before."""

    def perform(self) -> None:
        """Carry out what the peer wants done."""
        while self.peer.actions:
            action, *details = self.peer.actions.popleft()
            getattr(self, f"_{action}")(*details)

    @abstractmethod
    async def rest(self) -> None:
        """Until there may be something to do."""

    async def serve(self) -> None:
        """Poll until cancelled or until something fails."""
        try:
            while True:
                self.turn()
                self._changed.set()
                await self.rest()
        except Exception as error:
            self.failure = error
            self._changed.set()

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until the condition holds, which is asked after each poll; what it gave. Raises what
        the peer has complained about."""
        async with asyncio.timeout(self.GUARD):
            while True:
                if self.failure is not None:
                    raise self.failure
                if found := condition():
                    return found
                self._changed.clear()
                await self._changed.wait()

    async def message(self) -> bytes:
        """The next message, taken out of the peer's list."""
        await self.until(lambda: self.peer.messages)
        return self.peer.messages.pop(0)

    def up(self) -> list[Link]:
        """The connections that are up."""
        return [link for link in self.peer.links if link.up]

    async def link(self) -> Link:
        """The latest connection, as soon as one is up and the other side has greeted."""
        found: Link = await self.until(
            lambda: next(
                (link for link in reversed(self.peer.links) if link.theirs is not None), None
            )
        )
        return found


@contextlib.asynccontextmanager
async def serving(*drivers: Driver) -> AsyncIterator[None]:
    """Poll these while the block runs; raises what one of them has complained about."""
    tasks = [asyncio.ensure_future(driver.serve()) for driver in drivers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for driver in drivers:
        if driver.failure is not None:
            raise driver.failure


class Sockets(Driver):
    """A classic peer on real sockets.

    Args:
        peer: tcp_port 0 becomes a free one.
        broadcast: where packets go. 127.255.255.255: on loopback only, where several peers share a
            host by addresses of their own.
        dribble: write at most so many bytes at a time; 0: all that there are.
        discovery: False: no discovery socket.
        window: bytes that the system may hold for it when it does not read; 0: as the system likes.
    """

    def __init__(
        self,
        peer: ClassicPeer,
        *,
        broadcast: str = "127.255.255.255",
        dribble: int = 0,
        discovery: bool = True,
        window: int = 0,
    ) -> None:
        super().__init__(peer)
        self.broadcast_address, self.dribble = broadcast, dribble
        self._selector = selectors.DefaultSelector()
        self._sockets: dict[Link, socket.socket] = {}
        self._unsent: dict[Link, bytearray] = {}
        on_loopback = broadcast.startswith("127.")
        own = peer.host if on_loopback else ""
        self._listener = self._open(socket.SOCK_STREAM, own, peer.tcp_port)
        if window:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self._listener.listen(8)
        peer.tcp_port = self._listener.getsockname()[1]
        self._udp = self._open(socket.SOCK_DGRAM, own, peer.udp_port)
        peer.udp_port = self._udp.getsockname()[1]
        self._discovery = self._hearing = None
        if discovery:
            self._discovery = self._hearing = self._open(
                socket.SOCK_DGRAM, own, peer.discovery_port
            )
            if on_loopback:
                self._hearing = self._open(socket.SOCK_DGRAM, broadcast, peer.discovery_port)
        for each in filter(None, {self._listener, self._udp, self._hearing}):
            self._selector.register(each, selectors.EVENT_READ)
        if discovery:
            peer.start(self.now())
        self.perform()

    @staticmethod
    def _open(kind: int, host: str, port: int) -> socket.socket:
        opened = socket.socket(socket.AF_INET, kind)
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if kind == socket.SOCK_DGRAM:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        opened.bind((host, port))
        return opened

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self.peer.host, self.peer.tcp_port

    def now(self) -> float:
        """As Driver.now()."""
        return time.monotonic()

    async def rest(self) -> None:
        """As Driver.rest(): at most 10 ms."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._selector.fileno(), ready.set)  # type: ignore[attr-defined]
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await ready.wait()
        finally:
            loop.remove_reader(self._selector.fileno())  # type: ignore[attr-defined]

    def turn(self, timeout: float = 0.0) -> None:
        """As Driver.turn()."""
        self._watch()
        ready = {key.fileobj: mask for key, mask in self._selector.select(timeout)}
        for heard, take in ((self._hearing, self._heard), (self._udp, self._heard_datagram)):
            if heard in ready:
                for data, source in _datagrams(heard):
                    take(data, source)
        if self._listener in ready:
            self._accept()
        for link, connection in list(self._sockets.items()):
            mask = ready.get(connection, 0)
            if not link.up and mask:
                self.peer.dialled(
                    link, connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                )
                if link.closed:
                    self._forget(link)
            elif mask & selectors.EVENT_READ or (link.up and link not in self.quiet):
                self._read(link, connection)
        self.peer.poll(self.now())
        self.perform()
        for link in list(self._unsent):
            self._flush(link)

    def run(self, over: Callable[[], bool]) -> None:
        """Poll until it is over; for a thread or a program of its own."""
        while not over():
            self.turn(0.01)

    def leave(self) -> None:
        """As a polite program: DISCONNECT and close each connection, then GOODBYE."""
        for link in list(self.peer.links):
            self.peer.disconnect(link)
        self.peer.stop()
        self.perform()

    def close(self) -> None:
        """Close every socket, without a word."""
        for link in list(self._sockets):
            self._forget(link)
        for each in {self._listener, self._udp, self._discovery, self._hearing} - {None}:
            each.close()
        self._selector.close()

    def __enter__(self) -> Sockets:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def socket_of(self, link: Link) -> socket.socket:
        """The socket of a connection, for a test that wants to do with it what no program
        should."""
        return self._sockets[link]

    def _watch(self) -> None:
        for link, connection in self._sockets.items():
            wanted = 0 if link in self.quiet else selectors.EVENT_READ
            if not link.up or self._unsent.get(link):
                wanted |= selectors.EVENT_WRITE
            known = self._selector.get_map().get(connection)
            if known is not None and known.events != wanted:
                self._selector.unregister(connection)
                known = None
            if known is None and wanted:
                self._selector.register(connection, wanted)

    def _accept(self) -> None:
        while True:
            try:
                connection, source = self._listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            link = self.peer.accepted(source, self.now())
            if link is None:
                connection.close()
            else:
                self._sockets[link] = connection
                self.perform()

    def _read(self, link: Link, connection: socket.socket) -> None:
        while not link.closed:
            torn = False
            try:
                data = connection.recv(65_536)
            except BlockingIOError:
                return
            except OSError:
                data, torn = b"", True
            if data:
                self.peer.received(link, data, self.now())
            else:
                self.peer.ended(link, torn=torn)
            self.perform()

    def _heard(self, data: bytes, source: Address) -> None:
        self.peer.heard(data, source, self.now())

    def _heard_datagram(self, data: bytes, source: Address) -> None:
        self.peer.heard_datagram(data, source)

    def _broadcast(self, data: bytes) -> None:
        if self._discovery is not None:
            with contextlib.suppress(OSError):
                self._discovery.sendto(data, (self.broadcast_address, self.peer.discovery_port))

    def _datagram(self, data: bytes, address: Address) -> None:
        with contextlib.suppress(OSError):
            self._udp.sendto(data, address)

    def _dial(self, link: Link, address: Address) -> None:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.setblocking(False)
        if self.broadcast_address.startswith("127."):
            connection.bind((self.peer.host, 0))
        connection.connect_ex(address)
        self._sockets[link] = connection

    def _write(self, link: Link, data: bytes) -> None:
        if link in self._sockets:
            self._unsent.setdefault(link, bytearray()).extend(data)
            self._flush(link)

    def _flush(self, link: Link) -> None:
        unsent, connection = self._unsent.get(link), self._sockets.get(link)
        if unsent and connection is not None and link.up:
            try:
                sent = connection.send(bytes(unsent[: self.dribble or len(unsent)]))
            except BlockingIOError:
                sent = 0
            except OSError:
                sent = len(unsent)  # it will be read as an end
            del unsent[:sent]
        link.writable = not unsent

    def _close(self, link: Link) -> None:
        while self.dribble and self._unsent.get(link) and link.writable is False:
            before = len(self._unsent[link])
            self._flush(link)
            if len(self._unsent.get(link, b"")) == before:
                break
        self._forget(link)

    def _forget(self, link: Link) -> None:
        connection = self._sockets.pop(link, None)
        self._unsent.pop(link, None)
        if connection is not None:
            if connection in self._selector.get_map():
                self._selector.unregister(connection)
            connection.close()


def _datagrams(heard: socket.socket) -> Iterator[tuple[bytes, Address]]:
    while True:
        try:
            yield heard.recvfrom(4096)
        except OSError:
            return


class SimulatedSockets(Driver):
    """A classic peer on a host of a simulated network, polled every 10 ms of its time.

    Args:
        peer: host and ports; host is set to the address that the machine has there.
        host: a machine of the network: listen, dial and datagram give sockets with accept, recv,
            send, sendto and recvfrom.
        clock: the network's, in seconds.
    """

    GUARD = 600.0

    def __init__(
        self, peer: ClassicPeer, host: Any, clock: Callable[[], float], *, discovery: bool = True
    ) -> None:
        super().__init__(peer)
        self._host, self._clock = host, clock
        peer.host = host.address
        self._listener = host.listen(peer.tcp_port)
        peer.tcp_port = self._listener.getsockname()[1]
        self._udp = host.datagram(peer.udp_port)
        self._discovery = host.datagram(peer.discovery_port) if discovery else None
        self._broadcast_address = next(
            broadcast for _, _, address, broadcast in host.interfaces() if address == host.address
        )
        self._sockets: dict[Link, Any] = {}
        self._unsent: dict[Link, bytearray] = {}
        if discovery:
            peer.start(self.now())
        self.perform()

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self.peer.host, self.peer.tcp_port

    def now(self) -> float:
        """As Driver.now()."""
        return self._clock()

    async def rest(self) -> None:
        """As Driver.rest()."""
        await asyncio.sleep(0.02)  # about a tick of a Macintosh

    def turn(self) -> None:
        """As Driver.turn()."""
        while self._discovery is not None and (heard := self._discovery.recvfrom()) is not None:
            self.peer.heard(*heard, self.now())
        while (heard := self._udp.recvfrom()) is not None:
            self.peer.heard_datagram(*heard)
        while (connection := self._listener.accept()) is not None:
            link = self.peer.accepted(connection.getpeername(), self.now())
            if link is None:
                connection.close()
            else:
                self._sockets[link] = connection
                self.perform()
        for link, connection in list(self._sockets.items()):
            if not link.up and (code := connection.outcome()) != CONNECTING:
                self.peer.dialled(link, code == 0)
                if link.closed:
                    self._close(link)
            if link.up and link not in self.quiet:
                self._read(link, connection)
        self.peer.poll(self.now())
        self.perform()
        for link in list(self._unsent):
            self._flush(link)

    def leave(self) -> None:
        """As a polite program: DISCONNECT and close each connection, then GOODBYE."""
        for link in list(self.peer.links):
            self.peer.disconnect(link)
        self.peer.stop()
        self.perform()

    def vanish(self) -> None:
        """Killed: the system closes its sockets, and no word is said."""
        for link in list(self._sockets):
            link.closed = True
            self._close(link)
        for each in (self._listener, self._udp, self._discovery):
            if each is not None:
                each.close()

    def _read(self, link: Link, connection: Any) -> None:
        while not link.closed:
            torn = False
            try:
                data = connection.recv()
            except OSError:  # broken, or given up
                data, torn = b"", True
            if data is None:
                return
            if data:
                self.peer.received(link, data, self.now())
            else:
                self.peer.ended(link, torn=torn)
            self.perform()

    def _broadcast(self, data: bytes) -> None:
        if self._discovery is not None:
            self._discovery.sendto(data, (self._broadcast_address, self.peer.discovery_port))

    def _datagram(self, data: bytes, address: Address) -> None:
        self._udp.sendto(data, address)

    def _dial(self, link: Link, address: Address) -> None:
        self._sockets[link] = self._host.dial(*address)

    def _write(self, link: Link, data: bytes) -> None:
        if link in self._sockets:
            self._unsent.setdefault(link, bytearray()).extend(data)
            self._flush(link)

    def _flush(self, link: Link) -> None:
        unsent, connection = self._unsent.get(link), self._sockets.get(link)
        if unsent and connection is not None and link.up:
            with contextlib.suppress(OSError):
                del unsent[: connection.send(bytes(unsent))]
        link.writable = not unsent

    def _close(self, link: Link) -> None:
        self._unsent.pop(link, None)
        connection = self._sockets.pop(link, None)
        if connection is not None:
            connection.close()
