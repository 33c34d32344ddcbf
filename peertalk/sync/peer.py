"""A peer without await: the calls that wait turn its node meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType

from .. import errors
from ..protocol.outbox import NORMAL, Key, Priority
from ..protocol.stream import ENDED, StreamState
from ..protocol.wire import Message
from ..quantities import parse_timeout
from ..runtime.door import AnyPeer, AnyStream, Asking, Chunk, Sending
from ..runtime.payloads import Drawing, Payload, check_choices, payload_of
from ..runtime.remote import Remote
from ..runtime.streaming import Progress
from .turning import Ended, Turning, each


class Peer(AnyPeer):
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
        payload, seconds = payload_of(data), parse_timeout(timeout)
        if priority is not NORMAL or key is not None:
            priority = check_choices(priority, key)
        remote = self._remote
        with self._turning.held():
            remote.transport.check_open()
            self._connect_in_time(connect, seconds)
            if remote.serve(priority) and remote.accept(payload, no_delay, priority, key):
                number = remote.accepted
            else:
                place = Sending(remote, priority, bytes(payload), no_delay, key)
                self._stand(place, seconds)
                number = place.number
            remote.transport.turn()
            return number

    def send_nowait(
        self,
        data: Payload,
        *,
        priority: Priority = NORMAL,
        key: Key | None = None,
        no_delay: bool = False,
    ) -> int:
        """Accept one message at once or not at all. Never waits for another thread: while one is in
        a method of this node the message is left to it, and 0 is returned in place of the number.
        Arguments as peertalk.Peer.send.

        Raises:
            WouldBlock (reason "queue" or "pressure"), MessageTooLarge, WrongType, InvalidArgument:
            nothing has changed.
        """
        payload = payload_of(data)
        if priority is not NORMAL or key is not None:
            priority = check_choices(priority, key)
        remote = self._remote
        remote.transport.check_open()
        with self._turning.held_if_free() as free:
            if not free:
                remote.accept_from_afar(bytes(payload), no_delay, priority, key)
                return 0
            if not remote.serve(priority) or not remote.accept(payload, no_delay, priority, key):
                raise remote.no_room(priority)
            number = remote.accepted
            remote.transport.turn()
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
        deadline = None if seconds is None else time.monotonic() + seconds
        with (
            Drawing(payloads, self._remote.chunk, self._remote.transport.core.all_bytes) as drawing,
            self._turning.held(),
        ):
            self._send_all(drawing, priority, deadline)
        return drawing.accepted

    def _send_all(self, drawing: Drawing, priority: Priority, deadline: float | None) -> None:
        remote = self._remote
        refusal = remote.refusal
        while messages := drawing.draw():
            remote.transport.check_open()
            remote.check_refusal(refusal)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._connect_in_time(True, left)
            place = Chunk(remote, priority, messages, drawing)
            if not remote.serve(priority) or not place.offer():
                self._stand(place, left)
            remote.transport.turn()

    def connect(self, *, timeout: float | str | None = None) -> Peer:
        """Have an open connection; returns this peer.

        Raises:
            ConnectionRefused, NetworkFailure, Timeout.
        """
        seconds = parse_timeout(timeout)
        with self._turning.held():
            self._connect_in_time(True, seconds)
        return self

    def disconnect(self, *, timeout: float | str | None = 5.0) -> None:
        """Leave politely: what was accepted is sent first. The peer stays known. After timeout
        (Config.drain_timeout where it is None) the connection is given up; what was not sent by
        then is told as Failed."""
        seconds = parse_timeout(timeout)
        remote = self._remote
        with self._turning.held():
            remote.transport.leave(remote, seconds)
            self._turning.until(
                lambda: remote.connection is None,
                None,
                f"peer {self.name!r} did not close its side",
                self.name,
            )

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
        limit = parse_timeout(timeout)
        outcome: list[tuple[float | None, errors.PeerTalkError | None]] = []

        def measured(seconds: float | None, error: errors.PeerTalkError | None) -> None:
            outcome.append((seconds, error))

        remote = self._remote
        with self._turning.held():
            remote.transport.ping(remote, measured)
            try:
                self._turning.until(
                    lambda: bool(outcome),
                    limit,
                    f"no answer to a PING from peer {self.name!r}",
                    self.name,
                )
            finally:
                remote.stop_pinging(measured)
        seconds, error = outcome[0]
        if seconds is None:
            raise error or errors.InternalError("no measurement and no error")
        return seconds

    def messages(self, *, timeout: float | str | None = None) -> Iterator[Message[Peer]]:
        """Messages of this peer, those included that wait already, until none came for timeout
        seconds, or the peer is lost or the node closed and the last one was taken. While this is
        iterated they come here only; what is left when it ends comes to the node."""
        seconds, remote, turning = parse_timeout(timeout), self._remote, self._turning
        inbox = remote.transport.inbox
        with turning.held():
            outlet = inbox.reserve(remote, ended=not remote.known)

        def take() -> bytes | None:
            got = outlet.take()
            if got is None and outlet.ended:
                raise Ended
            return None if got is None else got[1]

        try:
            for payload in each(turning, take, seconds):
                yield Message(self, payload)
        finally:
            if not remote.transport.forked:
                with turning.held():
                    inbox.release(remote)

    def reject(self, reason: errors.RejectReason = errors.RejectReason.UNSPECIFIED) -> None:
        """Send the peer away: see ConnectionRequested.reject()."""
        with self._turning.held():
            self._remote.reject(reason)
            self._remote.transport.turn()

    def _connect_in_time(self, connect: bool, seconds: float | None) -> None:
        remote = self._remote
        if remote.connected:
            return
        if not connect:
            raise errors.NotConnected(f"peer {self.name!r} is not connected", peer=self.name)
        outcome: list[errors.PeerTalkError | None] = []
        remote.transport.reach(remote, lambda peer, error: outcome.append(error))
        self._turning.until(
            lambda: bool(outcome), seconds, f"no connection to peer {self.name!r}", self.name
        )
        if outcome[0] is not None:
            raise outcome[0]

    def _stand(self, place: Asking, seconds: float | None) -> None:
        """Stand in line until it is accepted; raises what it failed of."""
        place.join()
        try:
            self._turning.until(
                lambda: place.over,
                seconds,
                f"no room for a message to peer {self.name!r}",
                self.name,
            )
        finally:
            place.leave()
        if place.error is not None:
            raise place.error


class StreamOut(AnyStream[Peer]):
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
        self._outgoing.check_begun()
        turning = self._peer._turning
        if self.state not in ENDED:
            with turning.held():
                turning.until(
                    lambda: self.state in ENDED,
                    seconds,
                    f"the stream to peer {self._peer.name!r} did not end",
                    self._peer.name,
                )
        if self.error is not None:
            raise self.error
        return self.state

    def cancel(self) -> None:
        """Send no more of it. What was accepted before (at most 4 chunks) still leaves. Does
        nothing to one that has ended."""
        if self._outgoing.telling:  # inside progress: this thread holds the lock
            self._outgoing.cancel()
        elif self.state not in ENDED:
            with self._peer._turning.held():
                self._outgoing.cancel()

    def __enter__(self) -> StreamOut:
        with self._peer._turning.held():
            self._outgoing.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._peer._remote.transport.forked:
            self.cancel()
