"""Sockets and the clock: the one way out of the house.

The engine and all that stands on it ask this module for time, ids and descriptors; nothing else in
peertalk opens a socket to the network. A simulated network brings a world of its own with the same
methods. All sockets are non-blocking, and are closed by whoever asked for them; all are IPv4, but
for the one that hears of changes of the network (netlink) and those of this host (local).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .. import errors
from ..protocol import refusals
from ..protocol.addresses import Address, Interface, ways
from ..protocol.local import BUFFER, host_of_caller
from ..protocol.vigil import silence_of
from .interfaces import system_addresses
from .local import LocalWorld, is_local, is_ours
from .worker import Worker

if sys.platform != "win32":
    import fcntl
    import termios

if TYPE_CHECKING:
    import asyncio

    from .._core import Core
    from ..config import Config

_IP_PKTINFO = 8 if sys.platform.startswith("linux") else 26 if sys.platform == "darwin" else None
_PKTINFO = struct.Struct("=i4s4s")
"""struct in_pktinfo: number of the interface, our address, the address in the packet's header."""
_PKTINFO_SPACE = 64
"""Bytes for that and its header, whatever the system's alignment."""
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR = 0x1, 0x10
_ACCEPT_LATER = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_ACCEPT_SKIP = {errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EPERM}
_HEAR_TRIES = 8
_NEWS_PER_TURN = 256
_UNREAD = termios.FIONREAD if sys.platform != "win32" else None
_UNACKNOWLEDGED = termios.TIOCOUTQ if sys.platform.startswith("linux") else None
"""SIOCOUTQ, which has the number of the question for terminals."""
_POOL_BYTES = 64 << 20
"""Most that the links of one loop may hold together beside the share of each."""
_LARGE_BUFFER = 1 << 16
"""Bytes of a receive buffer from which on the table of such a pool, 717 KiB, is not much."""
_STRANGERS_MAX = 64
"""Connections beside one for each peer: as many as one turn accepts. So where every peer has one,
those who call in one turn still find a place, until they have said who they are; a peer that comes
back before its old connection has ended is one of them."""
_LOOKUPS_MAX = 32
"""Names of hosts that this program looks up at a time: each takes a thread, until the resolver
answers or gives up."""
_lookups = threading.BoundedSemaphore(_LOOKUPS_MAX)
_UNSENT_MAX = 65_536
"""Bytes, about one slot: with twice as much a critical message took no longer past its backlog,
with four times half as long again."""

Resolved = Callable[[str | None, errors.PeerTalkError | None], object]
"""Called with the IPv4 address of a host, or with what is in the way."""


class World(LocalWorld):
    """The machine that we run on. Stateless: sockets belong to the caller.

    Attributes:
        has_threads: whether an engine here may have workers;
        blocks: whether a send waits in the link for full slots to drain, and not in the outbox;
            only worlds whose time stands still meanwhile may.
    """

    blocks = False
    has_threads = True

    def clock(self) -> float:
        """Seconds, monotonic."""
        return time.monotonic()

    def identity(self, size: int) -> bytes:
        """Fresh random bytes for an instance id."""
        return os.urandom(size)

    def max_frame(self, core: Core) -> int:
        """Bytes that one frame of the original's form may carry here."""
        return core.limits.frame_max_payload

    def max_connections(self, config: Config) -> int:
        """Connections that may exist at a time: some more than peers, for those that have not said
        who they are."""
        return config.max_peers + _STRANGERS_MAX

    def make_loop(self, core: Core, config: Config) -> Any:
        """The loop that turns an engine here."""
        limits, pool_bytes = core.limits, _POOL_BYTES
        if limits.receive_buffer_size < _LARGE_BUFFER:
            # all slots of all peers; with a larger pool its table would be most of the node
            pool_bytes = min(
                (config.max_peers + 1) * config.pipeline_depth * (limits.slot_size + 64), pool_bytes
            )
        loop = core.Loop(
            io_budget=config.io_budget,
            platform="posix" if config.async_send else "posix_plain",
            pool=core.loop_pool(pool_bytes, self.max_connections(config), 1 + config.workers),
        )
        loop.landing_limit = config.receive_large_bytes
        return loop

    def open_link(self, loop: Any, connection: Any, tag: int, depth: int, *, wide: bool) -> Any:
        """Hand a connected socket to the loop; the socket stays the caller's. wide: it takes wide
        frames.

        Raises:
            OutOfMemory, PlatformError: nothing has changed.
        """
        return loop.open_link(connection.fileno(), tag, depth=depth, wide=wide)

    def sends_time_out(self, config: Config) -> bool:
        """Whether a link may end because a send was not done in time (blocking sends), and not only
        because a frame was not."""
        return not config.async_send or self.blocks

    def make_worker(self, loop: asyncio.AbstractEventLoop) -> Worker:
        """What drives an engine on an asyncio loop here."""
        return Worker(loop)

    def interfaces(self) -> list[Interface]:
        """Every IPv4 address of every interface that is up, loopback included.

        Raises:
            NoNetwork: there is none.
            PlatformError: out of descriptors, of which asking takes one, or of memory.
        """
        try:
            found = system_addresses()
        except OSError as error:
            text = f"cannot ask for the network interfaces: {refusals.used_up(error)}"
            raise errors.PlatformError(text) from error
        if not found:
            raise errors.NoNetwork(
                "no network interface is up, not even loopback; bring one up, then start the "
                "node again"
            )
        return found

    def interface_names(self) -> list[str]:
        """Names of all interfaces that exist, up or not, with an address or without."""
        return [name for _, name in socket.if_nameindex()]

    def owns(self, address: str) -> bool:
        """Whether a dotted address is one of this machine's, be its interface up or down. True
        where that cannot be found out.

        Binding to it asks the system itself, on every platform, and for addresses of interfaces
        that are down too, which interfaces() leaves out; port 0 of UDP takes nothing from anybody.
        """
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.bind((address, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
        return True

    def spare(self) -> socket.socket | None:
        """A descriptor for nothing: closed, it leaves room for another where the program has used
        up all others. None where there is no bound on them.

        Raises:
            PlatformError: there are none left.
        """
        return _open_socket(socket.SOCK_DGRAM)

    def resolve(self, host: str, told: Resolved) -> None:
        """Look up the IPv4 address of a host by its name, and call told once, on any thread: with
        the address; with NetworkFailure where nobody knows the host; with PlatformError where this
        program has no descriptors or threads to ask.

        The system's resolver cannot be interrupted, and may take half a minute: it runs on a thread
        of its own, which neither the caller nor the end of the program waits for.
        """
        if not _lookups.acquire(blocking=False):
            busy = (
                f"host {host!r} is not looked up: {_LOOKUPS_MAX} names are, and the resolver "
                "has not answered; try again later"
            )
            told(None, errors.NetworkFailure(busy))
            return

        def look_up() -> None:
            address, failed = _look_up(host)
            _lookups.release()
            told(address, failed)

        try:
            threading.Thread(target=look_up, name="peertalk resolver", daemon=True).start()
        except RuntimeError as error:
            _lookups.release()
            told(None, errors.PlatformError(f"host {host!r} is not looked up: {error}"))

    def network_news(self) -> socket.socket | None:
        """A socket that becomes readable when an interface or address of this machine comes or
        goes; None where the system has none, or gives none to us.

        Of Linux, netlink: the kernel writes one datagram for each change to whoever joined the
        groups, with no right needed. Asking every second instead would wake an idle program for
        nothing, and a lost address is noticed by nobody else: packets from it just vanish.
        """
        if not hasattr(socket, "AF_NETLINK"):
            return None
        try:
            news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)  # 0: NETLINK_ROUTE
        except OSError:
            return None
        try:
            news.setblocking(False)
            news.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR))
        except OSError:
            news.close()
            return None
        return news

    def drop_news(self, news: socket.socket) -> None:
        """Take what the socket of network_news() holds: that there was something is all that
        counts, since what is true now has to be asked anyway."""
        for _ in range(_NEWS_PER_TURN):
            try:
                news.recv(1)  # a datagram that is cut is gone all the same
            except BlockingIOError:
                return
            except OSError:
                continue  # ENOBUFS: there was more than it could hold

    def listen(self, bind: str, port: int, give_way: bool) -> socket.socket:
        """A listening socket on bind (empty: all addresses). give_way: take a free port when port
        is taken.

        Raises:
            AddressInUse: the port is taken and must not give way.
            NoNetwork: bind is no address of this machine.
        """
        listener = _open_socket(socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((bind, port))
            listener.listen(128)
        except OSError as error:
            listener.close()
            if give_way and error.errno == errno.EADDRINUSE:
                return self.listen(bind, 0, give_way=False)
            raise refusals.of_bind(error, "TCP port", bind, port, "port") from error
        return listener

    def accept(self, listener: socket.socket) -> tuple[socket.SocketType, Address] | None:
        """The next connection that waits, non-blocking, and from where it came; None when there is
        none. Programs of other users are not heard at a socket of this host.

        Raises:
            PlatformError: out of descriptors or memory; try again later, the connection still
                waits.
        """
        while True:
            try:
                connection, address = listener.accept()
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno in _ACCEPT_SKIP:
                    continue
                if error.errno in _ACCEPT_LATER:
                    raise errors.PlatformError(
                        f"cannot accept a connection: {refusals.used_up(error)}"
                    ) from error
                return None
            if not is_local(listener):
                return _bare(connection), (address[0], address[1])
            if is_ours(connection):
                return _bare(connection), (host_of_caller(address), 0)
            connection.close()

    def turn_away(self, connection: socket.SocketType, farewell: bytes) -> None:
        """Close an accepted connection, with these last bytes if they can leave at once."""
        with contextlib.suppress(OSError):
            connection.send(farewell)
            connection.shutdown(socket.SHUT_WR)
        connection.close()

    def dial(self, address: Address, bind: str = "") -> socket.SocketType:
        """Start to connect; the socket becomes writable when the outcome is known: see outcome().

        Raises:
            NetworkFailure: the system refused at once (no route, out of descriptors).
        """
        connection = _open_socket(socket.SOCK_STREAM)
        try:
            if bind:
                connection.bind((bind, 0))
            code = connection.connect_ex(address)
            if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
                raise OSError(code, os.strerror(code))
        except OSError as error:
            connection.close()
            code = error.errno or 0
            raise refusals.of_dial(code, os.strerror(code), address) from error
        return _bare(connection)

    def outcome(
        self, connection: socket.SocketType, address: Address
    ) -> errors.PeerTalkError | None:
        """What became of a dial: None when it is connected."""
        code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return refusals.of_dial(code, os.strerror(code), address) if code else None

    def tune(self, connection: socket.SocketType, link_timeout: float) -> None:
        """Options of a connected socket: no Nagle delay, and keepalive that finds a dead peer on an
        idle link within link_timeout seconds. On one host nobody dies unnoticed."""
        if is_local(connection):
            _let_hold(connection, BUFFER)
            return
        # silence for a third, then two probes (TCP_KEEPCNT) with a third to answer each
        idle = max(1, int(link_timeout / 3))
        wanted = [
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        ]
        for name, value in (
            ("TCP_KEEPIDLE", idle),
            ("TCP_KEEPALIVE", idle),
            ("TCP_KEEPINTVL", idle),
            ("TCP_KEEPCNT", 2),
        ):
            if hasattr(socket, name):
                wanted.append((socket.IPPROTO_TCP, getattr(socket, name), value))
        if hasattr(socket, "SO_NOSIGPIPE"):
            wanted.append((socket.SOL_SOCKET, socket.SO_NOSIGPIPE, 1))
        for level, option, value in wanted:
            with contextlib.suppress(OSError):
                connection.setsockopt(level, option, value)

    def abandon(self, connection: socket.SocketType) -> None:
        """Give a connection up before it is closed: what it still owes must not arrive later,
        behind what the next one brings. One of this host owes nothing: see unacknowledged()."""
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def bound_unsent(self, connection: socket.SocketType) -> None:
        """Let the system hold at most _UNSENT_MAX bytes that have not left yet, where it can:
        nothing overtakes what it holds."""
        if is_local(connection):
            _let_hold(connection, _UNSENT_MAX)
        elif hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_MAX)

    def silent_for(self, connection: socket.SocketType) -> float:
        """Seconds without an acknowledgement while bytes of ours wait for one, or cannot even leave
        (no route, address gone); 0 when none wait, when the other side answers, or when the system
        does not tell.

        A reader that stands still has shut its window, and its system acknowledges our probes: it
        is not silent. Those come at growing intervals, up to 120 s, so the time counts from the
        first one without an answer.
        """
        if not hasattr(socket, "TCP_INFO") or not sys.platform.startswith("linux"):
            return 0.0
        if not self.unacknowledged(connection):
            return 0.0
        try:
            return silence_of(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104))
        except OSError:
            return 0.0

    def unread(self, connection: socket.SocketType) -> int:
        """Bytes that have been received on a connection and lie unread; 0 for a closed one, or
        where the system does not tell. Never raises."""
        return _ask(connection, _UNREAD)

    def unacknowledged(self, connection: socket.SocketType) -> int:
        """Bytes that the system has taken and the other side's has not acknowledged, sent or not;
        the end of our half counts as one. Still true after a reset, until it is closed; 0 for a
        closed one, or where the system does not tell. Never raises. Of a socket of this host, 0:
        what the system has taken lies with the other side, as what TCP has acknowledged does.

        Source: SIOCOUTQ of Linux, write_seq - snd_una. tcpi_unacked of TCP_INFO says 0 after a
        reset, and counts nothing that has not left.
        """
        return 0 if is_local(connection) else _ask(connection, _UNACKNOWLEDGED)

    def datagram_socket(self, port: int) -> socket.socket:
        """A socket that hears broadcasts on port, beside other programs that do.

        Raises:
            AddressInUse: another program holds the port for itself alone.
            PlatformError: out of descriptors.
        """
        listener = _open_socket(socket.SOCK_DGRAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "SO_REUSEPORT") and not sys.platform.startswith("linux"):
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if _IP_PKTINFO is not None:
                listener.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            listener.bind(("", port))
        except OSError as error:
            listener.close()
            raise refusals.of_bind(error, "UDP port", "", port, "discovery_port") from error
        return listener

    def unicast_socket(self, bind: str, port: int, give_way: bool) -> socket.socket:
        """A socket that alone has a UDP port of bind (empty: all addresses), and may send
        broadcasts. give_way: take a free port when port is taken.

        Raises:
            AddressInUse: the port is taken and must not give way.
            NoNetwork: bind is no address of this machine.
        """
        listener = _open_socket(socket.SOCK_DGRAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            listener.bind((bind, port))
        except OSError as error:
            listener.close()
            if give_way and error.errno == errno.EADDRINUSE:
                return self.unicast_socket(bind, 0, give_way=False)
            raise refusals.of_bind(error, "UDP port", bind, port, "udp_port") from error
        return listener

    def send_to(self, sender: socket.socket, packet: bytes, address: Address) -> int:
        """Send one datagram. Returns 0, or the number of the error for which the system did not
        take it (no room, no route); it is gone."""
        try:
            sender.sendto(packet, address)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def broadcast(
        self,
        sender: socket.socket,
        packet: bytes,
        port: int,
        interfaces: list[Interface],
        bind: str = "",
    ) -> dict[str, int]:
        """Send a packet to everybody on these interfaces, from bind if given; see ways(). Returns
        for each interface, by name, 0 where the system took it, else the number of the error for
        which it did not; the next announcement tries again."""
        outcomes: dict[str, int] = {}
        for interface, destination in ways(interfaces):
            source = bind or interface.address
            code = _send(sender, packet, (destination, port), interface.number, source)
            outcomes[interface.name] = code and outcomes.get(interface.name, code)
        return outcomes

    def hear(self, listener: socket.socket) -> tuple[bytes, Address] | None:
        """The next datagram, cut to 2,048 bytes, which is more than any that counts; None when
        there is none."""
        for _ in range(_HEAR_TRIES):
            try:
                data, address = listener.recvfrom(2048)
            except BlockingIOError:
                return None
            except OSError:
                continue  # an ICMP error of an earlier broadcast: says nothing about this socket
            return data, (address[0], address[1])
        return None

    def hear_broadcast(self, listener: socket.socket) -> tuple[bytes, Address, int] | None:
        """The next datagram of a datagram_socket(), likewise, and the number of the interface that
        it came in by; 0 where the system does not tell."""
        for _ in range(_HEAR_TRIES):
            try:
                data, ancillary, _, address = listener.recvmsg(2048, _PKTINFO_SPACE)
            except BlockingIOError:
                return None
            except OSError:
                continue  # an ICMP error, as in hear()
            number = 0
            for level, kind, told in ancillary:
                if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
                    number = _PKTINFO.unpack(told)[0]
            return data, (address[0], address[1]), number
        return None


class Spare:
    """A descriptor that is kept for when this program has used up all others. kept: it, or nothing.

    Args:
        world: makes it.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.kept: list[socket.socket] = []

    def keep(self) -> None:
        """Have it. Raises as World.spare()."""
        spare = self._world.spare()
        self.kept = [] if spare is None else [spare]

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """For a moment let go of it; what is opened inside is closed inside, or there is no such
        moment again."""
        self.let_go()
        try:
            yield
        finally:
            self.refill()

    def refill(self) -> None:
        """Keep it again, if it was lost: another thread has been quicker, or the limit of the
        program was lowered. Not yet, where there is still none."""
        if not self.kept:
            with contextlib.suppress(errors.PlatformError):
                self.keep()

    def let_go(self) -> None:
        """Keep none."""
        while self.kept:
            self.kept.pop().close()


def _look_up(host: str) -> tuple[str | None, errors.PeerTalkError | None]:
    """The IPv4 address of a host, or why there is none. Takes as long as the resolver."""
    try:
        entries = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
        return str(entries[0][4][0]), None
    except (socket.gaierror, ValueError) as error:  # ValueError: no host has such a name
        failed: errors.PeerTalkError
        unknown = getattr(error, "strerror", None) or error
        failed = errors.NetworkFailure(f"host {host!r} is not known: {unknown}")
        failed.__cause__ = error
    except Exception as error:  # a module that the codec of names needs is not to be read
        why = refusals.used_up(error) if isinstance(error, OSError) else repr(error)
        failed = errors.PlatformError(f"host {host!r} is not looked up: {why}")
        failed.__cause__ = error
    return None, failed


def _ask(connection: socket.SocketType, question: int | None) -> int:
    """The number that an ioctl gives about a socket, 0 when it gives none."""
    if question is None:
        return 0
    try:
        answer = fcntl.ioctl(connection.fileno(), question, b"\0\0\0\0")
    except (OSError, ValueError):  # ValueError: closed, its number is -1
        return 0
    return max(0, int.from_bytes(answer, sys.byteorder, signed=True))


def _let_hold(connection: socket.SocketType, size: int) -> None:
    """Let the system hold so many bytes for the other end, as far as it allows."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


def _bare(connection: socket.socket) -> socket.SocketType:
    """The same connection, non-blocking, without what the library adds to a socket: there is one
    for each idle peer."""
    about = (connection.family,), (connection.type,), (connection.proto,)
    # In one step: a signal handler that raises between two would leave the descriptor to nobody,
    # or to both, and the one that is closed last would close what has that number by then.
    (bare,) = map(socket.SocketType, *about, map(socket.SocketType.detach, (connection,)))
    bare.setblocking(False)
    return bare


def _open_socket(kind: int) -> socket.socket:
    try:
        opened = socket.socket(socket.AF_INET, kind)
    except OSError as error:
        raise errors.PlatformError(f"cannot open a socket: {refusals.used_up(error)}") from error
    opened.setblocking(False)
    return opened


def _send(sender: socket.socket, packet: bytes, address: Address, number: int, source: str) -> int:
    """Send by the interface with this number from this address, if the system lets us choose; 0, or
    the number of the error."""
    ancillary = []
    if number and _IP_PKTINFO is not None:
        info = _PKTINFO.pack(number, socket.inet_aton(source), bytes(4))
        ancillary.append((socket.IPPROTO_IP, _IP_PKTINFO, info))
    try:
        sender.sendmsg([packet], ancillary, 0, address)
    except OSError as error:
        return error.errno or errno.EIO
    return 0
