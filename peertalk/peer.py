"""A peer under asyncio: the calls that wait, as coroutines on the node's loop.

What can be accepted at once is, without a future; else the call leaves a place in line or a
callback with the engine, and a future of the loop waits for that.

Invariant: a send that is cancelled or times out has left the line. Never: a state of the
conversation here, which is the engine's, or a wait on another loop than the node's.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterable
from typing import Any, Self, Unpack
from weakref import WeakSet

from . import errors
from .doors import door
from .doors.streaming import Progress
from .incoming import Incoming, Messages
from .ownership import (
    answered,
    check_free,
    check_here,
    check_running,
    check_thread,
    within,
)
from .protocol.outbox import NORMAL, Key, Priority
from .protocol.payloads import Drawing, Payload, SendOptions, check_choices, payload_of
from .protocol.stream import ENDED, StreamState
from .protocol.wire import Message
from .quantities import parse_timeout
from .runtime.remote import Remote


class Peer(door.AnyPeer):
    """Someone out there. Made by its Node; hashable, and the same object as long as the node knows
    it.

    name, id, address, flags, state, connected, capabilities, max_message (bytes) and classic tell
    about it; accepted is the number of the last message that was accepted for it. Coroutines run on
    the node's loop only; send_nowait may be called from any thread.
    """

    __slots__ = ()

    async def send(self, data: Payload, **options: Unpack[SendOptions]) -> int:
        """Accept one message for this peer; waits while there is no room for it, in the order of
        the calls of its class.

        send(data, *, priority=Priority.NORMAL, key=None, no_delay=False, connect=True,
        timeout=None)

        Args:
            data: 0 to max_message bytes. The buffer is free as soon as send returns: a long bytes
                object is kept until it is sent, all else is copied.
            priority: its class. Higher ones overtake what waits of lower ones, without starving
                them; order is kept within a class. The peer's pressure refuses lower ones first:
                send then waits until it falls.
            key: str or int. A message that still waits with the same key is replaced in its place,
                class included, and ends as Failed with Outcome.REPLACED: only the newest is sent.
                    What has left the queue is not replaced.
            no_delay: leave at once rather than at the end of this tick, unless it has to wait.
            connect: connect first if needed; False: raise NotConnected instead.
            timeout: seconds, or "250ms"; None: no limit.

        Returns:
            The number of the message: messages to a peer are counted from 1. Sent and Failed events
                name these numbers.

        Raises:
            MessageTooLarge, WrongType, InvalidArgument: nothing was accepted.
            ConnectionClosed, ConnectionRefused, NotConnected, Timeout: likewise.
            InvalidState: the node is closed, or belongs to another loop, thread or process.

        Cancelled, the message was not accepted and never leaves.
        """
        remote = self._remote
        quick = remote.quick
        # one look at the options: five defaults would cost a tenth
        if quick is not None and data.__class__ is bytes and not options:
            code = quick.send(data)
            if code >= 0:
                remote.accepted = number = remote.accepted + 1
                if code:  # the first of a tick
                    transport = remote.transport
                    if not transport.owner.is_running():
                        check_running(transport)
                    transport.hint(code)
                    if transport.crowded:
                        return await _rested(remote, number)
                return number
        return await self._send_in_line(payload_of(data, self._remote.own_max_message), **options)

    def send_nowait(
        self,
        data: Payload,
        *,
        priority: Priority = NORMAL,
        key: Key | None = None,
        no_delay: bool = False,
    ) -> int:
        """Accept one message at once or not at all; arguments as send(). Any thread.

        Returns:
            The number of the message; 0 when called from another thread, where numbers are given
            later.

        Raises:
            WouldBlock: there is no room or a send() of its class that was called before is not
                accepted yet (reason "queue"), or the peer's pressure refuses its class
                ("pressure"); nothing has changed.
            MessageTooLarge, WrongType, InvalidArgument: as send().
        """
        remote = self._remote
        payload = payload_of(data, remote.own_max_message)
        if priority is not NORMAL or key is not None:
            priority = check_choices(priority, key)
        if threading.get_ident() != remote.transport.thread:
            remote.accept_from_afar(bytes(payload), no_delay, priority, key)
            return 0
        remote.transport.check_open()
        served = remote.serve(priority)
        number = served and remote.accept(payload, no_delay, priority, key)
        if not number:
            raise remote.no_room(priority)
        return number

    async def send_many(
        self,
        payloads: Iterable[Payload],
        *,
        priority: Priority = NORMAL,
        timeout: float | str | None = None,
    ) -> int:
        """Accept many messages of one class in order, as send() would one by one, at a fraction of
        the cost.

        Args:
            payloads: any iterable, an endless one too: it is drawn a chunk at a time, 1,024
                messages or 512 KiB at most, the next when those are accepted. Between two chunks
                those who wait behind have their turn.
            priority, timeout: as send(); the time is that of the whole call.

        Returns:
            How many were accepted: all of them.

        Raises:
            As send(), and whatever the iterable raises; `accepted` of the error is the number of
            messages that were accepted before. Cancelled, those that `peer.accepted` has counted
            are, the rest are not.
        """
        priority = check_choices(priority, None)
        seconds = parse_timeout(timeout)
        check_here(self._remote.transport)
        remote = self._remote
        if _owed:
            await _settled(remote)
        all_bytes, most = remote.transport.core.all_bytes, remote.own_max_message
        with Drawing(payloads, remote.chunk, all_bytes, most) as drawing:
            chunks = door.Chunks(remote, priority, drawing)
            await within(_all_accepted(chunks), seconds, chunks, chunks.whom)
        return drawing.accepted

    async def connect(self, *, timeout: float | str | None = None) -> Peer:
        """Have an open connection; returns this peer.

        Raises:
            ConnectionRefused, NetworkFailure, Timeout: after every address at which the peer was
                heard was tried.
        """
        seconds, remote = parse_timeout(timeout), self._remote
        check_here(remote.transport)
        if not remote.connected:
            await answered(remote.transport, door.reaching(remote), seconds)
        return self

    async def disconnect(self, *, timeout: float | str | None = None) -> None:
        """Leave politely: what was accepted is sent first. The peer stays known.

        Args:
            timeout: seconds after which the connection is given up (Config.drain_timeout where none
                are given); what was not sent by then is told as Failed.
        """
        seconds, transport = parse_timeout(timeout), self._remote.transport
        if not transport.closed or transport.forked:
            check_thread(transport)
            check_running(transport)
        await answered(transport, door.leaving(self._remote, seconds), None)

    async def ping(self, *, timeout: float | str | None = 5.0) -> float:
        """Measure the way to this peer and back, in seconds. `latency` has the smoothed value,
        which the node keeps up by itself.

        Raises:
            NotConnected, ConnectionClosed.
            Timeout: it did not answer. The original answers; a peer that never does is not worse
                off for it.
        """
        seconds, transport = parse_timeout(timeout), self._remote.transport
        check_here(transport)
        return await answered(transport, door.measuring(self._remote), seconds)

    def messages(self) -> Incoming[Message[Peer]]:
        """Messages of this peer, those included that wait already; from the first anext on they
        come here only, and whatever others send does not keep them up. Several consumers may
        iterate: each message goes to one of them. What is left when the last one stops comes to the
        node. Ends when the peer is lost or the node closed, after the last message."""
        return Messages(self._remote.transport, self._remote)

    def reject(self, reason: errors.RejectReason = errors.RejectReason.UNSPECIFIED) -> None:
        """Send the peer away: see ConnectionRequested.reject(). On the node's loop only.

        Raises:
            InvalidState: the node is closed, or belongs to another loop, thread or process.
        """
        check_free(self._remote.transport)
        self._remote.reject(reason)

    def stream_out(self, data: Payload, progress: Progress | None = None) -> StreamOut:
        """A stream: much data in parts, with progress, that can be given up. The peer receives the
        parts as ordinary messages, in order, with nothing to mark them; other messages may come
        between.

        Args:
            data: 1 to 65,536 bytes. It is copied.
            progress: called on the node's loop as progress(bytes sent, all bytes). What it raises
                ends the stream.

        Returns:
            A context manager: `async with peer.stream_out(data) as out: await out.finished()`.
                Leaving the block early cancels it.

        Raises:
            InvalidArgument, MessageTooLarge, WrongType: data cannot be a stream.
            On entering: NotConnected; WouldBlock, reason "busy": one at a time for each peer.
        """
        return StreamOut(self, data, progress)

    # How a message is accepted --------------------------------------------------------------------

    async def _send_in_line(
        self,
        payload: bytes | bytearray | memoryview,
        *,
        priority: Priority = NORMAL,
        key: Key | None = None,
        no_delay: bool = False,
        connect: bool = True,
        timeout: float | str | None = None,
    ) -> int:
        if priority is not NORMAL or key is not None:
            priority = check_choices(priority, key)
        seconds = parse_timeout(timeout)
        remote = self._remote
        check_here(remote.transport)
        if _owed:
            await _settled(remote)
        if remote.connected:
            if (
                not remote.transport.crowded
                and remote.serve(priority)
                and (number := remote.accept(payload, no_delay, priority, key))
            ):
                return await _rested(remote, number) if remote.transport.crowded else number
        elif not connect:
            raise errors.NotConnected(f"peer {self.name!r} is not connected", peer=self.name)
        place = door.Sending(remote, priority, bytes(payload), no_delay, key)
        return await within(_accepted(place), seconds, place, place.whom)

    # a TypeError about an option names the call that the user wrote
    _send_in_line.__qualname__ = "Peer.send"


class _Tick:
    """Awaited, it lets everybody have a turn. As asyncio.sleep(0), at half of the cost."""

    def __await__(self) -> Generator[None, None, None]:
        yield


_TICK = _Tick()


async def _accepted(place: door.Sending) -> int:
    """The number of a message, as soon as it is accepted. Cancelled after that, before its task has
    heard of it, this returns all the same: what was accepted is never reported as cancelled. The
    cancellation comes in the next tick, if it is still wanted then."""
    try:
        await _in_line(place)
    except asyncio.CancelledError:
        if not place.done:
            raise
        _put_off_cancellation(place.peer)
    return place.result()


async def _all_accepted(chunks: door.Chunks) -> None:
    """Have chunk after chunk accepted. After one that has crowded the loop others have their turn,
    after the last one too, when nothing is left that could be cancelled."""
    transport, crowded = chunks.peer.transport, False
    while chunks.draw():
        if crowded:
            await _TICK
            chunks.check()
        if chunks.begin():
            crowded = transport.crowded
        else:
            crowded = False
            await _in_line(chunks)
    if crowded:
        await _rested(chunks.peer, 0)


async def _in_line(place: door.Asking) -> None:
    """Stand in line until it is accepted, at least for a tick while the loop is crowded; raises
    what it failed of. Connects if need be."""
    peer = place.peer
    try:
        place.stand()
        if peer.transport.crowded and peer.connected and not place.over:
            await _TICK
            if not place.over:
                peer.serve(place.priority)
        if place.over:
            place.result()
        else:
            await answered(peer.transport, place, None)
    finally:
        place.leave()


async def _rested(remote: Remote, number: int) -> int:
    """Let others have their turn after a message was accepted, so that none overtakes it."""
    try:
        await _TICK
    except asyncio.CancelledError:
        _put_off_cancellation(remote)
    return number


_owed: WeakSet[asyncio.Task[Any]] = WeakSet()
"""Tasks whose cancellation was put off, which comes before they send again."""


def _put_off_cancellation(remote: Remote) -> None:
    """A call that has done its work was cancelled before it could say so: to be called in the
    handler of that CancelledError, which is raised again if nobody asked for a cancellation.

    The next message to this peer does not take the short road, or the cancellation of a task that
    does nothing but send would be put off for ever.
    """
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        raise
    remote.quick = None
    _owed.add(task)
    asyncio.get_running_loop().call_soon(_cancel_again, task, task.cancelling())


async def _settled(remote: Remote) -> None:
    """If the cancellation of this task was put off it comes here, where nothing is accepted."""
    task = asyncio.current_task()
    if task is not None and task in _owed:
        _owed.discard(task)
        remote.transport.move(remote)  # the short road is free again
        await _TICK


def _cancel_again(task: asyncio.Task[Any], count: int) -> None:
    """Cancel a task whose cancellation was held back for a tick, unless it has ended, or left the
    block (asyncio.timeout) that wanted that, or was cancelled once more."""
    if not task.done() and task.cancelling() == count:
        task.uncancel()
        task.cancel()


class StreamOut(door.AnyStream[Peer]):
    """A stream to a peer, on its way inside its `async with` block; made by Peer.stream_out(). On
    the node's loop only."""

    async def finished(self, *, timeout: float | str | None = None) -> StreamState:
        """Wait until the stream has ended: COMPLETED (the system took its last byte) or CANCELLED.
        When this call is cancelled or its time is up the stream goes on; leaving the block cancels
        it.

        Raises:
            Timeout. InvalidState: it was not started.
            ConnectionClosed, or whatever else it failed of.
        """
        seconds = parse_timeout(timeout)
        if self.state not in ENDED:
            transport = self._peer._remote.transport
            check_here(transport)
            await answered(transport, door.ending(self._outgoing, self._peer.name), seconds)
        return self._end()

    def cancel(self) -> None:
        """Send no more of it. What was accepted before (at most 4 chunks) still leaves. Does
        nothing to one that has ended, which all have when their node is closed.

        Raises:
            InvalidState: the node belongs to another loop, thread or process.
        """
        transport = self._peer._remote.transport
        if self.state not in ENDED and (not transport.closed or transport.forked):
            check_free(transport)
            self._outgoing.cancel()

    async def __aenter__(self) -> Self:
        check_here(self._peer._remote.transport)
        self._outgoing.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._peer._remote.transport.forked:
            self.cancel()
