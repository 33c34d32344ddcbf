"""A peer without await: the calls that wait turn its node meanwhile.

As sync/node.py: under the node's lock. What such a call accepts has been offered to the system when
the call returns. send_nowait alone does not wait for the lock: while another thread has it
the message is left to that thread.

Never: a state of the conversation here, which is the engine's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Self

from .. import errors
from .._numbers import ERR_WOULD_BLOCK
from ..doors import door
from ..doors.streaming import Progress
from ..protocol.outbox import NORMAL, Key, Priority
from ..protocol.payloads import Drawing, Payload, check_choices, payload_of
from ..protocol.stream import ENDED, StreamState
from ..protocol.wire import Message
from ..quantities import parse_timeout
from ..runtime.remote import Remote
from .turning import Ended, Source, Turning, deadline_of, each

_REST = 0.001
"""Seconds without a turn after which send() turns: the node answers others, and takes what comes,
also while its program does nothing but send."""


class Peer(door.AnyPeer):
    """Someone out there. As peertalk.Peer, without await."""

    __slots__ = ("_turning",)

    def __init__(self, remote: Remote, turning: Turning) -> None:
        super().__init__(remote)
        self._turning = turning

    def send(
        self,
        data: Payload,
        *,
        priority: Priority = NORMAL,
        key: Key | None = None,
        no_delay: bool = False,
        connect: bool = True,
        timeout: float | str | None = None,
    ) -> int:
        """Accept one message for this peer, turning the node while there is no room. Returns its
        number. Arguments as peertalk.Peer.send.

        Raises:
            MessageTooLarge, WrongType, InvalidArgument, ConnectionClosed, ConnectionRefused,
            NotConnected, Timeout: nothing was accepted.
        """
        remote, send = self._remote, self._turning.send
        seconds = None if timeout is None else parse_timeout(timeout)
        if data.__class__ is bytes and priority is NORMAL and key is None and not no_delay:
            number = 0 if send is None else send(remote, data, timeout is None)
            if not number:
                number = self._send_at_once(data, seconds is None)
            if number:
                if self._turning.polled:
                    self._look_if_due()
                return number
        payload = payload_of(data, remote.own_max_message)
        if priority is not NORMAL or key is not None:
            priority = check_choices(priority, key)
        with self._turning:
            remote.transport.check_open()
            if not connect and not remote.connected:
                raise errors.NotConnected(f"peer {self.name!r} is not connected", peer=self.name)
            served = remote.connected and remote.serve(priority)
            number = remote.accept(payload, no_delay, priority, key) if served else 0
            if not number:
                place = door.Sending(remote, priority, bytes(payload), no_delay, key)
                number = self._accepted(place, seconds)
            remote.transport.turn()
            return number

    def _send_at_once(self, data: bytes, waits: bool) -> int:
        """As the native call in send(), for those who have the lock. waits: for room, where a
        worker makes it. 0: it was not accepted."""
        remote, turning = self._remote, self._turning
        with turning:
            transport = remote.transport
            number = remote.accept_at_once(data)
            while waits and number == ERR_WOULD_BLOCK and transport.workers.work:
                turning.turn(transport, None)
                transport.check_open()
                number = remote.accept_at_once(data)
            if number < 0:
                return 0
            if turning.asked:
                turning.look(transport, 0.0)
            return number

    def _look_if_due(self) -> None:
        """A turn, if there was none for a moment or one is asked for; inside a method of the node,
        which turns anyway, none."""
        turning = self._turning
        is_due = turning.asked or time.monotonic() - turning.turned > _REST
        if is_due and not turning.mine:
            with turning:
                turning.look(self._remote.transport, 0.0)

    def send_nowait(
        self,
        data: Payload,
        *,
        priority: Priority = NORMAL,
        key: Key | None = None,
        no_delay: bool = False,
    ) -> int:
        """Accept one message at once or not at all. Never waits for another thread: while one is in
        a method of this node the message may be left to that thread, and 0 is returned in place of
        the number. Arguments as peertalk.Peer.send.

        Raises:
            WouldBlock (reason "queue" or "pressure"), MessageTooLarge, WrongType, InvalidArgument:
            nothing has changed.
        """
        remote, send = self._remote, self._turning.send
        if send is not None and priority is NORMAL and key is None and not no_delay:
            number = send(remote, data, False)  # 0 for what is not bytes
            if number:
                if self._turning.polled:
                    self._look_if_due()
                return number
        payload = payload_of(data, remote.own_max_message)
        if priority is not NORMAL or key is not None:
            priority = check_choices(priority, key)
        number = 0

        def accept() -> None:
            nonlocal number
            remote.transport.check_open()
            served = remote.serve(priority)
            number = remote.accept(payload, no_delay, priority, key) if served else 0
            if not number:
                raise remote.no_room(priority)
            remote.transport.turn()

        if not self._turning.if_free(accept):
            remote.accept_from_afar(bytes(payload), no_delay, priority, key)
        return number

    def send_many(
        self,
        payloads: Iterable[Payload],
        *,
        priority: Priority = NORMAL,
        timeout: float | str | None = None,
    ) -> int:
        """Accept many messages of one class in order, at a fraction of the cost of as many calls of
        send. payloads may be any iterable, an endless one too: it is drawn a chunk at a time, while
        no method of the node may be called. Returns how many: all of them.

        Raises:
            As send(), and whatever the iterable raises; `accepted` of the error is the number of
            messages that were accepted before.
        """
        priority, seconds = check_choices(priority, None), parse_timeout(timeout)
        deadline, remote = deadline_of(seconds), self._remote
        transport, most = remote.transport, remote.own_max_message
        with (
            Drawing(payloads, remote.chunk, transport.core.all_bytes, most) as drawing,
            self._turning,
        ):
            transport.check_open()
            chunks = door.Chunks(remote, priority, drawing)
            while chunks.draw():
                if not chunks.begin():
                    self._accepted(chunks, seconds, deadline)
                transport.turn()
        return drawing.accepted

    def connect(self, *, timeout: float | str | None = None) -> Peer:
        """Have an open connection; returns this peer.

        Raises:
            ConnectionRefused, NetworkFailure, Timeout.
        """
        seconds, remote = parse_timeout(timeout), self._remote
        with self._turning:
            remote.transport.check_open()
            if not remote.connected:
                self._turning.answered(door.reaching(remote), seconds)
        return self

    def disconnect(self, *, timeout: float | str | None = None) -> None:
        """Leave politely: what was accepted is sent first. The peer stays known. After timeout
        (Config.drain_timeout where it is None) the connection is given up; what was not sent by
        then is told as Failed."""
        seconds = parse_timeout(timeout)
        with self._turning:
            self._turning.answered(door.leaving(self._remote, seconds), None)

    def stream_out(self, data: Payload, progress: Progress | None = None) -> StreamOut:
        """A stream of 1 to 65,536 bytes in parts, which the peer receives as ordinary messages:
        `with peer.stream_out(data) as out: out.finished()`. Leaving the block early cancels it.
        progress is called as progress(bytes sent, all bytes) inside a method of the node: it may
        cancel the stream, but call nothing else of the node.

        Raises:
            InvalidArgument, MessageTooLarge, WrongType: data cannot be a stream.
            On entering: NotConnected; WouldBlock, reason "busy": one at a time for each peer.
        """
        return StreamOut(self, data, progress)

    def ping(self, *, timeout: float | str | None = 5.0) -> float:
        """Measure the way to this peer and back, in seconds. `latency` has the smoothed value,
        which counts the time that this node was not called.

        Raises:
            NotConnected, ConnectionClosed, Timeout.
        """
        seconds, remote = parse_timeout(timeout), self._remote
        with self._turning:
            remote.transport.check_open()
            return self._turning.answered(door.measuring(remote), seconds)

    def messages(self, *, timeout: float | str | None = None) -> Iterator[Message[Peer]]:
        """Messages of this peer, those included that wait already, until none came for timeout
        seconds, or the peer is lost or the node closed and the last one was taken. While this is
        iterated they come here only; what is left when it ends comes to the node."""
        return self._messages(parse_timeout(timeout))

    def _messages(self, seconds: float | None) -> Iterator[Message[Peer]]:
        remote, turning = self._remote, self._turning
        inbox, outlet = remote.transport.inbox, None

        def take() -> bytes | None:
            assert outlet is not None
            got = outlet.take()
            if got is None and outlet.ended:
                raise Ended
            return None if got is None else got[1]

        def back(payload: bytes | None) -> None:
            if payload is None:
                inbox.recover(inbox.outlet_of(remote))
            else:
                inbox.put_back(remote, [payload])

        reader = object()
        try:
            with turning:
                outlet = inbox.reserve(remote, reader, ended=not remote.known)
            yield from each(turning, Source(take, back, partial(Message, self)), seconds)
        finally:
            is_done = False
            try:
                # a collection may begin on any thread, and in the middle of a turn
                is_done = turning.if_free(partial(inbox.release, remote, reader))
            finally:
                if not is_done and not remote.transport.closed:
                    remote.transport.post(partial(inbox.release, remote, reader))

    def reject(self, reason: errors.RejectReason = errors.RejectReason.UNSPECIFIED) -> None:
        """Send the peer away: see ConnectionRequested.reject()."""
        transport = self._remote.transport
        with self._turning:
            transport.check_open()
            self._remote.reject(reason)
            transport.turn()

    def _accepted(
        self, place: door.Asking, seconds: float | None, deadline: float | None = None
    ) -> int:
        """Stand in line until it is accepted; raises what it failed of. Connects if need be."""
        try:
            place.stand()
            return self._turning.answered(place, seconds, deadline)
        finally:
            place.leave()


class StreamOut(door.AnyStream[Peer]):
    """A stream to a peer, on its way inside its `with` block while the node is turned; made by
    Peer.stream_out()."""

    def finished(self, *, timeout: float | str | None = None) -> StreamState:
        """Turn the node until the stream has ended: COMPLETED (the system took its last byte) or
        CANCELLED.

        Raises:
            Timeout: it goes on; leaving the block cancels it. InvalidState: it was not started, or
                the node is closed.
            ConnectionClosed, or whatever else it failed of.
        """
        seconds = parse_timeout(timeout)
        if self.state not in ENDED:
            turning = self._peer._turning
            with turning:
                self._peer._remote.transport.check_open()
                turning.answered(door.ending(self._outgoing, self._peer.name), seconds)
        return self._end()

    def cancel(self) -> None:
        """Send no more of it. What was accepted before (at most 4 chunks) still leaves. Does
        nothing to one that has ended, which all have when their node is closed."""
        if self._outgoing.telling:  # inside progress: this thread holds the lock
            self._outgoing.cancel()
        elif self.state not in ENDED:
            with self._peer._turning:
                self._outgoing.cancel()

    def __enter__(self) -> Self:
        with self._peer._turning:
            self._outgoing.begin()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._peer._remote.transport.forked:
            self.cancel()
