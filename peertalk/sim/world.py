"""The world of a node on a simulated network: sockets, clock and instance ids of a host, and a net
under everything that passes.

A Box is one network as its worlds see it. Links and loops are tapped: each message that a link
accepts is noted by its checksum, and what the other end delivers is held against that. So whatever
the code above does, a message that comes late, twice, changed or not from here is found where it
arrives.

Invariant: what is delivered on a connection is the beginning of what was accepted there. Never:
reads a real clock, opens a real socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import zlib
from collections import deque
from typing import Any, cast

from .. import errors
from .._core import Core, values
from ..config import Config
from ..protocol.addresses import Address, Interface
from ..runtime.worker import Driven, Worker
from ..runtime.world import Resolved, World

_ORDER_FAULTS_MAX = 100


class Box:
    """One simulated network: the simulator of a core, its hosts by name, and who drives the engines
    in it.

    drivers: in the order in which their engines were opened. faults: what was not given back, and
    rules that were broken; order_faults: what came otherwise than it was accepted.
    """

    def __init__(self, simulator: Any) -> None:
        self.simulator = simulator
        self.hosts: dict[str, Any] = {}
        self.drivers: list[Driver] = []
        self.streams: dict[tuple[Address, Address], Stream] = {}
        self.order_faults: list[str] = []
        self.faults: list[str] = []

    @property
    def seconds(self) -> float:
        """Network time."""
        return float(self.simulator.now_ns) / 1e9

    def serve(self) -> bool:
        """Let each engine that has work ask for a turn; whether one did."""
        served = False
        for driver in self.drivers:
            served |= driver.serve()
        return served

    def next_ns(self) -> int | None:
        """When the next thing happens: an event of the network or a timer of an engine."""
        due = self.simulator.next_event_ns()
        for driver in self.drivers:
            deadline = driver.next_ns()
            if deadline is not None and (due is None or deadline < due):
                due = deadline
        return None if due is None else int(due)

    def resolve(self, host: str) -> str:
        """The dotted address of a host by its name, or of a dotted address.

        Raises:
            OSError: no host has that name; lists those that there are.
        """
        named = self.hosts.get(host)
        if named is not None:
            return str(named.address)
        try:
            return socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            raise OSError(
                f"no host of this network is called {host!r}; there are "
                f"{', '.join(map(repr, self.hosts)) or 'none'}"
            ) from None

    def order_fault(
        self,
        world: SimulatedWorld,
        where: tuple[Address, Address],
        number: int,
        found: int,
        expected: int | None,
        stream: Stream,
    ) -> None:
        """A message came that is not the next one."""
        if len(self.order_faults) < _ORDER_FAULTS_MAX:
            what = (
                "overtook another"
                if expected is not None and found in stream.sent
                else "is none that was accepted, or came twice"
            )
            self.order_faults.append(
                f"{world.host.name}: message {number} from {where[1][0]}:{where[1][1]} {what}"
            )


class Driver(Worker):
    """Turns one engine whenever its loop has work. The network knows when."""

    def __init__(self, loop: asyncio.AbstractEventLoop, box: Box) -> None:
        super().__init__(loop)
        self._box = box
        self._engine_loop: TappedLoop | None = None

    def start(self, engine: Driven) -> None:
        """Drive this engine from now on."""
        self._take_over(engine)
        self._engine_loop = engine.loop
        self._box.drivers.append(self)
        self.schedule()

    def stop(self) -> None:
        """Let go of the engine. May be called again."""
        self._engine = None
        if self in self._box.drivers:
            self._box.drivers.remove(self)

    def serve(self) -> bool:
        """See to it that a turn comes if there is work for one; whether one will."""
        if not self._scheduled and self._engine_loop is not None and self._engine_loop.has_work():
            self.schedule()
        return self._scheduled

    def next_ns(self) -> int | None:
        """When the next timer of the engine is due."""
        return None if self._engine_loop is None else self._engine_loop.next_deadline_ns()

    def _turn(self) -> None:
        transport = self._engine
        if transport is not None and not transport.closed:
            transport.turn()


class Stream:
    """Checksums of the messages that one end of a connection accepted and the other has not
    delivered yet."""

    __slots__ = ("accepted", "delivered", "sent")

    def __init__(self) -> None:
        self.sent: deque[int] = deque()
        self.accepted = 0
        self.delivered = 0


class TappedLink:
    """A link that notes what it accepts. All else is the link's own."""

    __slots__ = ("_link", "_loop", "_stream", "arriving", "send", "tag", "where")

    def __init__(
        self, loop: TappedLoop, link: Any, tag: int, stream: Stream, where: tuple[Address, Address]
    ) -> None:
        self._loop = loop
        self._link = link
        self._stream = stream
        self.tag = tag
        self.where = where
        self.arriving: Stream | None = None
        plain_send, note = link.send, self._note

        def send(payload: Any) -> int:
            code: int = plain_send(payload)
            if code >= 0:
                note(payload)
            return code

        self.send = send

    @property
    def native(self) -> TappedLink:
        """What is called once a message: this one, which notes it."""
        return self

    def _note(self, payload: Any) -> None:
        checksum = zlib.crc32(payload)
        self._stream.sent.append(checksum)
        self._stream.accepted += 1
        if (accepted := self._loop.world.accepted) is not None:
            accepted[checksum] = None

    def send_many(self, payloads: list[bytes], start: int = 0) -> tuple[int, int]:
        """As Link.send_many(), and the checksum of each message that was accepted is kept."""
        accepted, code = self._link.send_many(payloads, start)
        for index in range(start, start + accepted):
            self._note(payloads[index])
        return accepted, code

    def send_frame(self, kind: int, payload: Any = b"", flags: int = 0) -> int:
        """As Link.send_frame(), and the checksum of each message that was accepted is kept."""
        code: int = self._link.send_frame(kind, payload, flags)
        if code >= 0 and kind == values.DATA:
            self._note(payload)
        return code

    def send_sync(self, payload: Any, flags: int = 0) -> int:
        """As Link.send_sync(), and the checksum of each message that was accepted is kept."""
        code: int = self._link.send_sync(payload, flags)
        if code >= 0:
            self._note(payload)
        return code

    def send_slice(self, payload: bytes, id: int, offset: int, size: int) -> int:
        """As Link.send_slice(), and the checksum of a message is kept with its last slice."""
        code: int = self._link.send_slice(payload, id, offset, size)
        if code >= 0 and offset + size == len(payload):
            self._note(payload)
        return code

    def depart(self, payload: bytes, id: int, offset: int) -> int:
        """As Link.depart(), and the checksum of the message is kept: nothing is accepted before its
        last slice."""
        code: int = self._link.depart(payload, id, offset)
        if code >= 0:
            self._note(payload)
        return code

    def recall(self) -> int:
        """As Link.recall(), and the checksum is kept no longer where a part was left."""
        left: int = self._link.recall()
        if left:
            checksum = self._stream.sent.pop()
            self._stream.accepted -= 1
            if (accepted := self._loop.world.accepted) is not None:
                accepted.pop(checksum, None)
        return left

    @property
    def wide_max(self) -> int:
        """Longest payload of a message in one wide frame, bytes."""
        return int(self._link.wide_max)

    @wide_max.setter
    def wide_max(self, value: int) -> None:
        self._link.wide_max = value

    @property
    def max_message(self) -> int:
        """Longest payload of a message in one frame of the original's form, bytes."""
        return int(self._link.max_message)

    @max_message.setter
    def max_message(self, value: int) -> None:
        self._link.max_message = value

    @property
    def frame_timeout(self) -> float:
        """Seconds that a frame may take to be whole."""
        return float(self._link.frame_timeout)

    @frame_timeout.setter
    def frame_timeout(self, seconds: float) -> None:
        self._link.frame_timeout = seconds

    @property
    def read_max(self) -> int:
        """Bytes that one read brings at most."""
        return int(self._link.read_max)

    @read_max.setter
    def read_max(self, value: int) -> None:
        self._link.read_max = value

    def close(self) -> None:
        """As the link."""
        self._link.close()
        self._loop.forget(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)


class TappedLoop:
    """A loop whose links are tapped, and which knows that it was woken. All else is the loop's
    own."""

    def __init__(self, world: SimulatedWorld, loop: Any) -> None:
        self.world = world
        self._loop = loop
        self._links: dict[int, TappedLink] = {}
        self._woken = False
        self._closed = False
        self.leaked = 0

    def open_link(self, connection: Any, tag: int, **options: Any) -> TappedLink:
        """As the loop; connection: a simulated socket."""
        link = self._loop.open_link(connection.fileno(), tag, **options)
        here, there = connection.getsockname(), connection.getpeername()
        stream = self.world.box.streams[here, there] = Stream()
        tapped = self._links[tag] = TappedLink(self, link, tag, stream, (here, there))
        return tapped

    def forget(self, link: TappedLink) -> None:
        """A tapped link is closed: nothing of it is compared any more. Nothing happens when its tag
        is another's."""
        if self._links.get(link.tag) is link:
            del self._links[link.tag]

    def turn(self, timeout: float | None = 0.0, events: list[Any] | None = None) -> list[Any]:
        """As the loop; what it delivers is compared with what was accepted."""
        self._woken = False
        found: list[Any] = self._loop.turn(timeout, events)
        for kind, tag, a, b in found:
            if kind == values.BATCH:
                self._check(tag, b)
            elif kind == values.FRAME and a & 0xFF == values.DATA:
                self._check(tag, [b])
        return found

    def _check(self, tag: int, payloads: list[bytes]) -> None:
        link = self._links.get(tag)
        if link is None:
            return
        box = self.world.box
        stream = link.arriving
        if stream is None:
            here, there = link.where
            stream = link.arriving = box.streams.pop((there, here), None)
        sums = 0
        for payload in payloads:
            checksum = zlib.crc32(payload)
            sums = zlib.crc32(checksum.to_bytes(4, "big"), sums)
            if self.world.log is not None:
                self.world.log.append(payload)
            if stream is not None:
                stream.delivered += 1
                expected = stream.sent.popleft() if stream.sent else None
                if expected != checksum:
                    box.order_fault(
                        self.world, link.where, stream.delivered, checksum, expected, stream
                    )
        box.simulator.note(sums)

    def wake(self) -> None:
        """End a wait that runs, or the next one. Any thread."""
        self._woken = True
        self._loop.wake()

    def has_work(self) -> bool:
        """Whether a turn now would find something."""
        return not self._closed and (self._woken or bool(self._loop.has_work()))

    def next_deadline_ns(self) -> int | None:
        """When its next timer is due."""
        return None if self._closed else self._loop.next_deadline_ns()

    def close(self) -> None:
        """Close it; what it has not given back, and which rules were broken, is noted."""
        if not self._closed:
            self._closed = True
            world = self.world
            world.violations = tuple(self._loop.violations())
            self._loop.close()
            self.leaked = int(self._loop.pool.statistics().in_use)
            if self.leaked:
                world.box.faults.append(
                    f"{world.host.name}: {self.leaked} buffers were not given back"
                )
            world.box.faults.extend(f"{world.host.name}: {text}" for text in world.violations)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


class SimulatedWorld(World):
    """Sockets and the clock of one host of a simulated network."""

    has_local = False  # each node has a machine of its own

    def __init__(
        self,
        box: Box,
        host: Any,
        platform: str,
        push: bool,
        packing: bool,
        blocks: bool,
        pool_bytes: int | None,
    ) -> None:
        self.box = box
        self.host = host
        self.platform = platform
        self.violations: tuple[str, ...] = ()
        self.log: list[bytes] | None = None
        """Payloads that arrived, where somebody asked for them; and below the checksums of those
        that were accepted."""
        self.accepted: dict[int, None] | None = None
        self._push = push
        self._packing = packing
        self.blocks = blocks
        self.has_threads = False
        self._pool_bytes = pool_bytes

    def clock(self) -> float:
        """As World.clock()."""
        return self.box.seconds

    def resolve(self, host: str, told: Resolved) -> None:
        """As World.resolve(), at once: names of hosts of this network."""
        try:
            address = self.box.resolve(host)
        except OSError as error:
            told(None, errors.NetworkFailure(f"host {host!r} is not known: {error}"))
        else:
            told(address, None)

    def identity(self, size: int) -> bytes:
        """As World.identity()."""
        return bytes(self.box.simulator.random(size))

    def max_frame(self, core: Core) -> int:
        """As World.max_frame()."""
        return core.limits.message_max_payload

    def max_connections(self, config: Config) -> int:
        """As World.max_connections()."""
        return config.max_peers

    def make_loop(self, core: Core, config: Config) -> Any:
        """As World.make_loop()."""
        limits = core.limits
        room = self._pool_bytes
        if room is None:  # every slot of every peer, and a frame that is cut for each
            room = (config.max_peers + 1) * (
                config.pipeline_depth * (limits.slot_buffer_size + 64)
                + limits.frame_max_payload
                + 128
            )
        platform = self.platform if config.async_send else f"{self.platform}_sync"
        loop = core.Loop(
            io_budget=config.io_budget,
            platform=platform,
            simulator=self.box.simulator,
            host=self.host,
            push=self._push,
            pool=core.loop_pool(room, self.max_connections(config)),
        )
        loop.landing_limit = config.receive_large_bytes
        return TappedLoop(self, loop)

    def open_link(self, loop: Any, connection: Any, tag: int, depth: int, *, wide: bool) -> Any:
        """As World.open_link()."""
        return loop.open_link(connection, tag, depth=depth, packing=self._packing, wide=wide)

    def sends_time_out(self, config: Config) -> bool:
        """As World.sends_time_out()."""
        return True

    def make_worker(self, loop: asyncio.AbstractEventLoop) -> Worker:
        """As World.make_worker()."""
        return Driver(loop, self.box)

    def interfaces(self) -> list[Interface]:
        """As World.interfaces()."""
        return [
            Interface(name, number, address, broadcast, "255.0.0.0")
            for name, number, address, broadcast in self.host.interfaces()
        ]

    def interface_names(self) -> list[str]:
        """As World.interface_names()."""
        return [each.name for each in self.interfaces()]

    def owns(self, address: str) -> bool:
        """As World.owns(): a simulated host keeps its address."""
        return True

    def spare(self) -> None:
        """As World.spare(): a simulated host has as many as are wanted."""

    def network_news(self) -> None:
        """As World.network_news(): nothing ever changes."""

    def listen(self, bind: str, port: int, give_way: bool) -> Any:
        """As World.listen()."""
        try:
            return self.host.listen(port)
        except errors.AddressInUse:
            if not give_way:
                raise
            return self.host.listen(0)

    def accept(self, listener: Any) -> tuple[Any, Address] | None:
        """As World.accept()."""
        connection = listener.accept()
        return None if connection is None else (connection, connection.getpeername())

    def turn_away(self, connection: Any, farewell: bytes) -> None:
        """As World.turn_away()."""
        with contextlib.suppress(errors.PeerTalkError):
            connection.send(farewell)
            connection.shut()
        connection.close()

    def dial(self, address: Address, bind: str = "") -> Any:
        """As World.dial()."""
        return self.host.dial(self.box.resolve(address[0]), address[1])

    def outcome(self, connection: Any, address: Address) -> errors.PeerTalkError | None:
        """As World.outcome()."""
        code = connection.outcome()
        where = f"{address[0]}:{address[1]}"
        if code == 0:
            return None
        if code == errors.ConnectionRefused.code:
            return errors.ConnectionRefused(f"{where} refused the connection: nobody listens there")
        if code == errors.Timeout.code:
            return errors.Timeout(f"{where} did not answer in time")
        return errors.NetworkFailure(f"cannot connect to {where}: code {code}")

    def tune(self, connection: Any, link_timeout: float) -> None:
        """As World.tune(): a simulated stream has no options."""

    def abandon(self, connection: Any) -> None:
        """As World.abandon()."""
        connection.abandoned = True

    def bound_unsent(self, connection: Any) -> None:
        """As World.bound_unsent(): a simulated stream holds what it holds."""

    def silent_for(self, connection: Any) -> float:
        """As World.silent_for()."""
        return float(connection.silent_for())

    def unread(self, connection: Any) -> int:
        """As World.unread()."""
        return 0 if self.box.simulator.closed else int(connection.unread)

    def unacknowledged(self, connection: Any) -> int:
        """As World.unacknowledged(), without the end of our half."""
        return 0 if self.box.simulator.closed else int(connection.unacknowledged)

    def datagram_socket(self, port: int) -> Any:
        """As World.datagram_socket()."""
        return self.host.datagram(port)

    def unicast_socket(self, bind: str, port: int, give_way: bool) -> Any:
        """As World.unicast_socket(); each node has a machine of its own here."""
        return self.host.datagram(port)

    def send_to(self, sender: Any, packet: bytes, address: Address) -> int:
        """As World.send_to()."""
        return 0 if sender.sendto(packet, address) else errno.ENOBUFS

    def broadcast(
        self,
        sender: Any,
        packet: bytes,
        port: int,
        interfaces: list[Interface],
        bind: str = "",
    ) -> dict[str, int]:
        """As World.broadcast()."""
        return {
            interface.name: self.send_to(sender, packet, (interface.broadcast, port))
            for interface in interfaces
            if not interface.address.startswith("127.")
        }

    def hear(self, listener: Any) -> tuple[bytes, Address] | None:
        """As World.hear()."""
        return cast("tuple[bytes, Address] | None", listener.recvfrom())

    def hear_broadcast(self, listener: Any) -> tuple[bytes, Address, int] | None:
        """As World.hear_broadcast(), which does not tell."""
        heard = self.hear(listener)
        return None if heard is None else (*heard, 0)
