"""A peer as the engine sees it."""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from .. import errors
from .._core import values
from .._numbers import FRAME_OVERHEAD
from ..protocol.connections import Connection, State
from ..protocol.line import Line
from ..protocol.outbox import HIGHEST_FIRST, NORMAL, Key, Priority, lowest_admitted
from ..protocol.peer import Peer
from ..protocol.stream import STREAM_MAX
from .statistics import PeerStatistics, QueueStatus

if TYPE_CHECKING:
    from typing import Protocol

    from .streaming import Outgoing
    from .transport import Timer, Transport

    class Buffer(Protocol):  # collections.abc has it from Python 3.12 on
        """Whatever has bytes to look at."""

        def __buffer__(self, flags: int, /) -> memoryview: ...

else:
    Buffer = bytes | bytearray | memoryview

Payload = Buffer | str
"""What can be sent: bytes as they are, any contiguous buffer as its bytes, str as UTF-8."""

_CHUNK_MESSAGES = 1024
_CHUNK_BYTES = 512 * 1024
"""What send_many draws at once at most, and hands over before those who wait behind it have their
turn."""
_CHUNK_FIRST = 64
"""Messages that are drawn before it is known how long they are."""


class SendOptions(TypedDict, total=False):
    """What can be said about a message that is sent, beside its bytes. See Peer.send."""

    priority: Priority
    key: Key | None
    no_delay: bool
    connect: bool
    timeout: float | str | None


_Left = tuple[bytes, bool, Key | None]
"""What another thread has left: payload, no_delay, key."""

Reached = Callable[["Remote | None", errors.PeerTalkError | None], None]
"""Told once how an attempt to connect ended: with the peer, or with an error."""
Measured = Callable[[float | None, errors.PeerTalkError | None], None]
"""Told once what a PING measured, in seconds, or with an error why it cannot."""


def payload_of(data: Payload) -> bytes | bytearray | memoryview:
    """The bytes to send: a view of plain bytes is given as it is, every other buffer is copied, so
    that nothing of it is held when the call is over.

    Raises:
        WrongType: data is nothing that can be sent.
        InvalidArgument: it has no bytes to send now: a view that was released, a map that was
            closed, text that UTF-8 cannot hold.
        MessageTooLarge: a buffer that not even a stream takes.
    """
    if isinstance(data, bytes | bytearray):
        return data
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as error:
            raise errors.InvalidArgument(
                f"this text holds {data[error.start]!r}, half a character, which UTF-8 cannot hold;"
                " send text.encode(errors='surrogatepass'), or another error handler"
            ) from None
    kind = type(data).__name__
    try:
        if isinstance(data, memoryview):
            if data.itemsize == 1 and data.ndim == 1 and data.c_contiguous:
                return data
        view = memoryview(data)
    except (ValueError, BufferError) as error:
        raise errors.InvalidArgument(f"this {kind} has no bytes to send: {error}") from None
    except TypeError:
        raise errors.WrongType(
            f"a message is bytes, a buffer of bytes or str, not {kind}"
        ) from None
    with view:
        if not view.c_contiguous:
            raise errors.WrongType(
                f"a message is contiguous: this {kind} has gaps; send bytes() of it"
            )
        if view.nbytes > STREAM_MAX:
            raise errors.MessageTooLarge(
                f"this {kind} has {view.nbytes:,} bytes: the limit of a stream is {STREAM_MAX:,}, "
                "that of a message is lower; send it in parts"
            )
        return view.tobytes()


def is_buffer(data: object) -> bool:
    """Whether it is one message rather than several."""
    try:
        memoryview(data).release()  # type: ignore[arg-type]
    except TypeError:
        return isinstance(data, str)
    except (ValueError, BufferError):
        pass  # a view that was released, a map that was closed
    return True


class Drawing:
    """The messages of one send_many, drawn from what it was given a chunk at a time, so that an
    iterator may be endless, and a list may change meanwhile.

    Args:
        payloads: what was given.
        chunk: how many messages of such a length make one.

    accepted: how many of them were, for whoever sends them to count.

    Raises:
        WrongType: payloads is one message rather than several, or nothing that can be iterated.
    """

    def __init__(self, payloads: Iterable[Payload], chunk: Callable[[int], int]) -> None:
        if is_buffer(payloads):
            raise errors.WrongType(
                f"send_many takes several messages, not one {type(payloads).__name__}; use send"
            )
        try:
            self._left = iter(payloads)
        except TypeError:
            raise errors.WrongType(
                f"send_many takes an iterable of messages, not {type(payloads).__name__}"
            ) from None
        self._list = payloads if isinstance(payloads, list) else None
        self._drawn = 0
        self._chunk = chunk
        self._count = _CHUNK_FIRST
        if self._list and self._list[0].__class__ is bytes:
            self._count = chunk(len(self._list[0]))
        self._error: Exception | None = None
        self.accepted = 0

    def draw(self) -> list[bytes]:
        """The next ones; empty: there are no more.

        Raises:
            WrongType: the next one cannot be sent. Whatever the iterator raises; those before it
                have been drawn.
        """
        if self._error is not None:
            raise self._error
        chunk: list[Any] = []
        if self._list is not None:
            chunk = self._list[self._drawn : self._drawn + self._count]
            self._drawn += len(chunk)
        else:
            try:
                chunk.extend(islice(self._left, self._count))
            except Exception as error:
                self._error = error
        for message in chunk:
            if message.__class__ is not bytes:
                self._convert(chunk)
                break
        if chunk:
            self._count = self._chunk(len(chunk[-1]))
        elif self._error is not None:
            raise self._error
        return chunk

    def _convert(self, chunk: list[Any]) -> None:
        for index in range(len(chunk)):
            try:
                chunk[index] = bytes(payload_of(chunk[index]))
            except Exception as error:
                self._error = error
                del chunk[index:]
                return

    def note(self, error: Exception) -> Exception:
        """The error with which it ends, which says how many were accepted."""
        if isinstance(error, errors.PeerTalkError):  # others may hold the same object
            cause, trace = error.__cause__, error.__traceback__
            error = copy.copy(error)
            error.__cause__, error.__traceback__ = cause, trace
        with contextlib.suppress(AttributeError):
            error.accepted = self.accepted  # type: ignore[attr-defined]
        return error


def check_choices(priority: int, key: Key | None) -> Priority:
    """The class of a message, checked with its key.

    Raises:
        InvalidArgument: priority is none of the four. WrongType: key is no str and no int.
    """
    if key is not None and not isinstance(key, str | int):
        raise errors.WrongType(f"a key is a str or an int, not {type(key).__name__}")
    try:
        if isinstance(priority, int):
            return Priority(priority)
    except ValueError:
        pass
    raise errors.InvalidArgument(
        f"priority {errors.shown(priority)}: it is one of peertalk.Priority, LOW 0 to CRITICAL 3"
    )


class Place(ABC):
    """A place in the line of those who send messages of one class to a peer and are not accepted
    yet, first come first served. Whoever notices that there is room serves the line: the one who
    stands there need not be awake for that.

    reaching: it waits for a connection that is being opened, and so survives the end of another.
    """

    __slots__ = ("joined", "peer", "priority", "reaching")

    def __init__(self, peer: Remote, priority: int) -> None:
        self.peer = peer
        self.priority = priority
        self.joined = False
        self.reaching = False

    @abstractmethod
    def offer(self) -> bool:
        """Be accepted, all of it. False: there is no room; True: it is done, and leaves the line.
        An error does too."""

    @abstractmethod
    def fail(self, error: errors.PeerTalkError) -> None:
        """It will not be accepted. It has left the line."""

    def join(self) -> None:
        """Stand in line: nobody who comes later is accepted before."""
        peer = self.peer
        self.joined = True
        if peer.lines is None:
            peer.lines = [None] * len(Priority)
        line = peer.lines[self.priority]
        if line is None:
            line = peer.lines[self.priority] = deque()
        line.append(self)
        if self.priority == NORMAL:
            peer.quick = None

    def leave(self) -> None:
        """Give up, if it still stands there; those behind may have room."""
        line = self.peer.in_line(self.priority)
        if self.joined and line:
            self.joined = False
            line.remove(self)
            self.peer.serve(self.priority)


def check_peer(peer: object) -> None:
    """Raises WrongType when it is no peer."""
    if not isinstance(peer, Remote):
        raise errors.WrongType(
            f"a datagram goes to a Peer, not to {errors.shown(peer)}; node.peers finds one by name "
            "or id"
        )


class Uncopied:
    """What is neither copied nor pickled: a copy would have the same sockets, connections and
    counters, and close or count for the original."""

    __slots__ = ()

    _instead: ClassVar[str]
    """What to do in place of that."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raises WrongType: copy, deepcopy and pickle ask here."""
        raise errors.WrongType(f"{self!r} cannot be copied or pickled: {self._instead}")


class Remote(Uncopied, Peer):
    """A peer as the engine sees it: its connection, what waits for it, and its counters. The front
    doors add the calls that users make.

    quick: send function of its open link while nothing waits before a NORMAL message, else None.
    Whoever calls it adds 1 to accepted. lowest: the lowest class that the peer takes, by the
    pressure that it reported on its connection.
    """

    __slots__ = (
        "__weakref__",
        "_afar",
        "attempts",
        "connection",
        "failed",
        "line",
        "lines",
        "lowest",
        "not_before",
        "pinging",
        "quick",
        "reaching",
        "received",
        "received_bytes",
        "refusal",
        "retry",
        "stream",
        "successor",
        "transport",
    )

    _instead = "it belongs to its node; keep its id, and find it by that"
    transport: Transport
    connection: Connection | None
    quick: Callable[[Any], int] | None

    def attach(self, transport: Transport) -> None:
        """Belong to a node's engine."""
        self.transport = transport
        self.connection = None
        self.quick = None
        self.lines: list[deque[Place] | None] | None = None
        """Who waits to send to it, a line for each class; None: nobody."""
        self.reaching: list[Reached] | None = None
        self.pinging: list[Measured] | None = None
        self.lowest = Priority.LOW
        self._afar: tuple[deque[_Left], ...] | None = None
        self.retry: Timer | None = None
        self.attempts = 0
        """Attempts that have failed, one after the other."""
        self.not_before = 0.0
        """When it may be dialled again, on the clock of the world."""
        self.line: Line | None = None
        """Its connections, once it has said that it knows places."""
        self.successor: Remote | None = None
        """The next life of its program, which was started again; None: not known to be."""
        self.refusal: errors.PeerTalkError | None = None
        """How it rejected us, the last time that it did."""
        self.stream: Outgoing | None = None
        """The stream to it that is on its way."""
        self.failed = 0
        self.received = 0
        self.received_bytes = 0

    def tell_reaching(self, error: errors.PeerTalkError | None) -> None:
        """Those who wait for a connection hear that it is there (None), or why it is not."""
        if self.reaching:
            self.transport.call(self.reaching, self if error is None else None, error)
            self.reaching = None
            self.transport.call_all()

    def tell_pinging(self, seconds: float | None, error: errors.PeerTalkError | None) -> None:
        """Those who wait for a measurement hear of it, or why there is none."""
        if self.pinging:
            self.transport.call(self.pinging, seconds, error)
            self.pinging = None
            self.transport.call_all()

    def stop_pinging(self, measured: Measured) -> None:
        """It waits no longer."""
        if self.pinging is not None and measured in self.pinging:
            self.pinging.remove(measured)

    def check_refusal(self, before: errors.PeerTalkError | None) -> None:
        """Raise the rejection that came since refusal was `before`: what is being sent meanwhile
        must not dial again by itself."""
        if self.refusal is not before and self.refusal is not None:
            raise self.refusal

    def restarted_error(self) -> errors.ConnectionClosed:
        """What who sends to it hears when it has a successor."""
        text = f"{self.name!r} was started again; send to its new peer (Peer.successor)"
        return errors.ConnectionClosed(text, peer=self.name)

    def reject(self, reason: errors.RejectReason = errors.RejectReason.UNSPECIFIED) -> None:
        """Send the peer away: see ConnectionRequested.reject().

        Raises:
            InvalidArgument: there is no such reason.
        """
        if not isinstance(reason, int) or reason not in tuple(errors.RejectReason):
            raise errors.InvalidArgument(
                f"reason {errors.shown(reason)}: it is one of peertalk.RejectReason, "
                "UNSPECIFIED 0 to IN_PROGRESS 4"
            )
        self.transport.switchboard.reject(self, errors.RejectReason(reason))

    @property
    def known(self) -> bool:
        """Whether its node knows it, connected or not."""
        return self.transport.peers.get(self.key) is self

    @property
    def greeted(self) -> bool:
        """A connection with it is there that is not used yet."""
        return self.line is not None and any(
            member.state is State.GREETED for member in self.line.members
        )

    def in_line(self, priority: int) -> deque[Place] | None:
        """Who waits to send messages of this class; None or empty: nobody."""
        return None if self.lines is None else self.lines[priority]

    def on_room(self) -> None:
        """The engine has room for more messages to this peer: the highest class first."""
        if self.afar:
            self.take_from_afar()
        if self.stream is not None:
            self.stream.go_on()
        if self.lines is not None:
            for priority in HIGHEST_FIRST:
                self.serve(priority)

    def serve(self, priority: int) -> bool:
        """Accept what stands in the line of this class, in order, as far as there is room. Whether
        nobody is left."""
        line = self.in_line(priority)
        while line:
            if not self.connected or self.transport.closing:
                return False
            place = line[0]
            try:
                if not place.offer():
                    return False
                line.popleft().joined = False
            except Exception as error:
                line.popleft().joined = False
                text = f"a message to peer {self.name!r} could not be accepted: {error!r}"
                place.fail(errors.from_exception(error, text))
        if line is not None and self.lines is not None:
            self.lines[priority] = None
            if not any(self.lines):
                self.lines = None
            self.transport.move(self)  # nobody can be overtaken any more
        return True

    def on_pressure(self) -> None:
        """The peer's capabilities are in, or in again: what its pressure refuses waits from now on,
        what it refuses no longer goes on. One of ours refuses LOW only: its connection is paused
        while its inbox is full, which holds the rest back without a word."""
        capabilities = self.capabilities
        lowest = lowest_admitted(0 if capabilities is None else capabilities.pressure)
        self.lowest = lowest if self.classic else min(lowest, NORMAL)
        if self.lowest > NORMAL:
            self.quick = None
        self.transport.pump(self)

    def on_lost(self, error: errors.PeerTalkError) -> None:
        """The link is gone: whoever waits for room must hear why."""
        if self.stream is not None:
            self.stream.lost(error)
        for line in self.lines or ():
            for place in [each for each in line or () if not each.reaching]:
                place.joined = False
                place.fail(error)
            if line:
                kept = [each for each in line if each.joined]
                line.clear()
                line.extend(kept)

    @property
    def queued(self) -> int:
        """Messages accepted that no link has taken."""
        return 0 if self.outbox is None else len(self.outbox)

    @property
    def frozen(self) -> bool:
        """Connected, but it has not answered for Config.link_timeout: see PeerFrozen."""
        connection = self.connection
        return connection is not None and self.transport.switchboard.watchdog.is_frozen(connection)

    @property
    def handed(self) -> int:
        """Messages that were given to a link, at least in part, or will not be."""
        return self.accepted if self.outbox is None else self.accepted - len(self.outbox)

    @property
    def queue(self) -> QueueStatus:
        """How full the way to this peer is."""
        outbox, reason, pressure = self.outbox, "", 0
        if self.connection is not None and self.capabilities is not None:
            pressure = self.capabilities.pressure
        if self.frozen:
            reason = "frozen"
        elif self.connection is not None and self.lowest > Priority.LOW:
            reason = "pressure"
        elif outbox is not None:
            reason = "connection" if self.connection is None else "slots"
        return QueueStatus(
            pending=self.accepted - self.reported,
            capacity=self.transport.config.send_queue_size,
            bytes=0 if outbox is None else outbox.bytes,
            pressure=pressure if outbox is None else max(pressure, outbox.pressure),
            reason=reason,
        )

    def stats(self) -> PeerStatistics:
        """Counters of this peer."""
        sent = self.reported - self.failed
        return PeerStatistics(
            self.accepted, sent, self.failed, self.received, self.received_bytes, self.queue
        )

    def accept(
        self,
        payload: bytes | bytearray | memoryview,
        no_delay: bool,
        priority: int = NORMAL,
        key: Key | None = None,
        *,
        may_block: bool = True,
        refusable: bool = True,
    ) -> bool:
        """Into the link if nothing waits before it, else into the outbox; in a world that
        blocks, and if it may, it blocks instead until what waits has gone. False: no room, or the
        peer's pressure refuses its class (if it is refusable: part of a stream is not).

        Raises:
            Timeout: the blocking send could not begin in time; nothing was accepted.
        """
        transport, connection = self.transport, self.connection
        if may_block and self.afar:
            self.take_from_afar()  # another thread may have told this one that it had sent
        limit, _ = transport.limit_of(self)
        size = payload.nbytes if isinstance(payload, memoryview) else len(payload)
        if size > limit:
            raise transport.too_large(self, size)
        if self.lowest and refusable and priority < self.lowest and connection is not None:
            if key is None or self.outbox is None or key not in self.outbox:
                return False
        in_pieces = False
        if connection is not None and self.connected:
            if priority is not NORMAL and not connection.classes:
                self._use_classes(connection)
            in_pieces = size > connection.link.max_message and self.classic
            if self.outbox is None and not in_pieces:
                code = (
                    connection.link.send_frame(values.DATA, payload, values.NO_DELAY)
                    if no_delay
                    else connection.link.send(payload)
                )
                if code >= 0:
                    self.accepted += 1
                    transport.hint(code)
                    return True
                transport.refused(self, code)
            if may_block and not in_pieces and transport.world.blocks:
                code = transport.send_sync(self, payload, values.NO_DELAY if no_delay else 0)
                if code >= 0:
                    return True
        taken = transport.enqueue(self, bytes(payload), priority, key)
        if in_pieces:
            transport.move(self)
        return taken

    def offer(
        self, payload: bytes, no_delay: bool, priority: int = NORMAL, key: Key | None = None
    ) -> None:
        """Accept one message at once or not at all, without blocking in any world.

        Raises:
            WouldBlock: there is no room, or others stand in line before it. As accept().
        """
        if self.afar:
            self.take_from_afar()
        if not self.serve(priority) or not self.accept(
            payload, no_delay, priority, key, may_block=False
        ):
            raise self.no_room(priority)

    def _use_classes(self, connection: Connection) -> None:
        """From the first message of another class on the system holds little that has not left:
        nothing overtakes what it holds. While all are of one class that would only cost
        throughput."""
        connection.classes = True
        self.transport.world.bound_unsent(connection.socket)

    def is_refused(self, priority: int) -> bool:
        """Whether the pressure that the peer reported refuses this class now."""
        return priority < self.lowest and self.connection is not None

    def fitting(self, size: int) -> int:
        """Messages of that many bytes that make a good part of many: what all slots hold, which is
        one write."""
        transport = self.transport
        slots_hold = transport.pipeline_depth * (
            transport.core.limits.slot_size // (size + FRAME_OVERHEAD)
        )
        return max(1, min(_CHUNK_MESSAGES, slots_hold))

    def chunk(self, size: int) -> int:
        """Messages of that many bytes that make a chunk: so many such parts."""
        part = self.fitting(size)
        most = min(_CHUNK_MESSAGES, _CHUNK_BYTES // (size + FRAME_OVERHEAD))
        return part * max(1, most // part)

    def accept_many(self, messages: list[bytes], start: int, priority: int = NORMAL) -> int:
        """As many as there is room for now, at most what all slots hold, which is one write. 0:
        wait for room."""
        transport, connection = self.transport, self.connection
        if (
            connection is None
            or self.outbox is not None
            or not self.connected
            or priority < self.lowest
        ):
            return int(self.accept(messages[start], False, priority))
        if priority is not NORMAL and not connection.classes:
            self._use_classes(connection)
        stop = start + self.fitting(len(messages[start]))
        part = messages if start == 0 and len(messages) <= stop else messages[start:stop]
        taken, code = connection.link.send_many(part)
        self.accepted += taken
        if taken:
            transport.hint(values.NEEDS_TURN | (code if code > 0 else 0))
        elif code == errors.MessageTooLarge.code:
            return int(self.accept(part[0], False, priority))  # in pieces, or not at all
        elif priority != NORMAL:
            # at the link the quicker sender wins; in the outbox each class has its turn
            return int(self.accept(part[0], False, priority))
        else:
            self.quick = None
            transport.refused(self, code)
            if transport.world.blocks:
                return int(self.accept(messages[start], False))
        return int(taken)

    # From other threads ---------------------------------------------------------------------------

    @property
    def afar(self) -> bool:
        """Whether other threads have left messages that the engine has not taken."""
        return self._afar is not None and any(self._afar)

    def accept_from_afar(
        self, payload: bytes, no_delay: bool = False, priority: int = NORMAL, key: Key | None = None
    ) -> None:
        """Accept one message on another thread than the engine's: it waits, within the same bound,
        until the engine takes it.

        Raises:
            WouldBlock: as many wait already, or the peer's pressure refuses the class.
                MessageTooLarge, InvalidState.
        """
        transport = self.transport
        limit, _ = transport.limit_of(self)
        if len(payload) > limit:
            raise transport.too_large(self, len(payload))
        with transport.lock:
            transport.check_open()
            if self._afar is None:
                self._afar = tuple(deque() for _ in Priority)
            if (
                self.is_refused(priority)
                or len(self._afar[priority]) >= transport.config.send_queue_size
            ):
                raise self.no_room(priority)
            self._afar[priority].append((payload, no_delay, key))
        transport.post(self.on_room)

    def take_from_afar(self) -> None:
        """Move on what other threads left, as far as there is room: of each class in order, the
        highest first."""
        for priority in HIGHEST_FIRST:
            left = self._afar[priority] if self._afar is not None else ()
            while left:
                payload, no_delay, key = left[0]
                try:
                    if not self.accept(payload, no_delay, priority, key, may_block=False):
                        break
                except errors.PeerTalkError as error:
                    self.transport.fail_unnumbered(self, error)
                left.popleft()

    def drop_from_afar(self) -> int:
        """Take away what other threads left; how many."""
        count = sum(map(len, self._afar or ()))
        self._afar = None
        return count

    def no_room(self, priority: int = NORMAL) -> errors.WouldBlock:
        """The error for a message that must not wait and cannot be taken."""
        if self.is_refused(priority) and self.capabilities is not None:
            text = (
                f"peer {self.name!r} reports a pressure of {self.capabilities.pressure}: it takes "
                f"{Priority(self.lowest).name} messages"
            )
            text += " only" if self.lowest is Priority.CRITICAL else " and above only"
            return errors.WouldBlock(
                f"{text} until that falls; wait with send, or raise the priority",
                reason="pressure",
                peer=self.name,
            )
        text = (
            f"no room for a message to peer {self.name!r}: {self.queued:,} wait "
            "(Config.send_queue_size, send_queue_bytes)"
        )
        if line := self.in_line(priority):
            text += f", and {len(line):,} sends that were called before it"
        return errors.WouldBlock(text, reason="queue", peer=self.name)
