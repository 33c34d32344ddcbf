"""A stream on its way: joins the sans-I/O Stream to a peer.

Chunks go the way of all messages, behind those that wait. The engine tells what became of them
(told), that there may be room for more (go_on), and that the connection is gone (lost); a stream
never waits, never sleeps and keeps no timer.

Invariant: peer.stream is this from begin() until it has ended, and nothing else. Never: sends more
than its pace allows, or before what was called before it began.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import errors
from .._numbers import ERR_BUSY
from ..protocol.connections import State
from ..protocol.outbox import NORMAL
from ..protocol.payloads import Payload, payload_of
from ..protocol.stream import Stream, StreamState
from ..runtime.remote import Place, Remote

Progress = Callable[[int, int], object]
"""Called with the bytes that were sent so far, and all bytes."""


class Outgoing:
    """One stream to a peer, for the front doors to wait for. On the engine's thread only.

    Args:
        peer: to whom.
        data: 1 to 65,536 bytes; copied.
        progress: called whenever some have been sent. What it raises ends the stream.

    Raises:
        InvalidArgument, MessageTooLarge, WrongType: data cannot be a stream, or progress is no
            function.
    """

    def __init__(self, peer: Remote, data: Payload, progress: Progress | None = None) -> None:
        if progress is not None and not callable(progress):
            raise errors.WrongType(
                f"progress is a function of two numbers of bytes, not {errors.shown(progress)}"
            )
        self._peer = peer
        self._stream = Stream(bytes(payload_of(data)))
        self._progress = progress
        self._begun = False
        self._place: Place | None = None
        """In line, behind those who had called before it began; None: it has had its turn."""
        self._telling = False
        self._stop = False
        self.on_end: list[Callable[[], object]] = []
        """Who wants to hear that it has ended."""

    @property
    def state(self) -> StreamState:
        """Where it is in its life."""
        return self._stream.state

    @property
    def sent(self) -> int:
        """Bytes of it that the system took."""
        return self._stream.sent

    @property
    def total(self) -> int:
        """Bytes of it, all."""
        return self._stream.total

    @property
    def error(self) -> Exception | None:
        """What it failed of, when it is FAILED."""
        return self._stream.error

    def begin(self) -> None:
        """Start.

        Raises:
            NotConnected: there is no connection. WouldBlock, reason "busy": another stream to this
                peer is on its way.
            InvalidState: it was started before, or the node is closed.
            Whatever its first part failed of.
        """
        peer = self._peer
        peer.transport.check_open()
        if self._begun or self._stream.ended:
            raise errors.InvalidState(
                f"this stream to peer {peer.name!r} was started before; make a new one"
            )
        if not peer.connected or peer.connection is None:
            raise errors.NotConnected(
                f"a stream to peer {peer.name!r}, which is not connected; connect() first",
                peer=peer.name,
            )
        if peer.stream is not None:
            text = (
                f"a stream to peer {peer.name!r} is on its way, {peer.stream.sent:,} of "
                f"{peer.stream.total:,} bytes sent; one at a time"
            )
            raise errors.WouldBlock(text, reason="busy", code=ERR_BUSY, peer=peer.name)
        self._begun = True
        peer.stream = self
        peer.transport.listen(1)
        try:
            if peer.serve(NORMAL):
                self.go_on()
            else:
                self._place = _Start(self)
                self._place.join()
        except BaseException as error:
            self._end(self._interrupted(error))  # or the peer would be busy for ever
            raise
        if self.error is not None:
            raise self.error

    def take_turn(self) -> None:
        """Those who had called before are served."""
        self._place = None
        self.go_on()

    def check_begun(self) -> None:
        """Raises InvalidState before begin()."""
        if not self._begun:
            raise errors.InvalidState(
                f"the stream to peer {self._peer.name!r} was not started; enter its block"
            )

    def cancel(self) -> None:
        """Send no more of it. What was accepted before (at most 4 chunks) still leaves. Does
        nothing to one that has ended."""
        self._stop = True
        if not self._telling:
            self._conclude()

    def go_on(self) -> None:
        """There may be room: as many chunks as the pace allows."""
        peer, stream, connection = self._peer, self._stream, self._peer.connection
        if (
            connection is None
            or connection.state is not State.OPEN
            or not peer.connected
            or peer.transport.closing
            or self._place is not None
        ):
            return
        while not self._stop:
            chunk = stream.next_chunk(self._rtt(), connection.link.max_message)
            try:
                number = chunk and peer.accept(chunk, False, may_block=False, refusable=False)
            except Exception as error:
                self._end(error)
                return
            if not number:
                return
            stream.accept(number, len(chunk))

    def told(self, first: int, last: int, error: errors.PeerTalkError | None) -> None:
        """Messages of this peer, chunks or not, were sent or have failed."""
        if not self._stream.report(first, last, error):
            return
        if error is None and self._progress is not None:
            self._tell_progress(self._progress)
        self._conclude()
        self.go_on()

    def lost(self, error: errors.PeerTalkError) -> None:
        """The connection is gone, or the node is closed."""
        self._end(error)

    def _tell_progress(self, progress: Progress) -> None:
        self._telling = True
        try:
            progress(self.sent, self.total)
        except Exception as error:
            self._end(error)
        except BaseException as interrupt:
            # what else this turn has brought is served first
            self._end(self._interrupted(interrupt))
            self._peer.transport.raise_later(interrupt)
        finally:
            self._telling = False

    def _interrupted(self, interrupt: BaseException) -> errors.PeerTalkError:
        ended = errors.InvalidState(f"the stream to peer {self._peer.name!r} was interrupted")
        ended.__cause__ = interrupt
        return ended

    @property
    def telling(self) -> bool:
        """Whether progress is being called."""
        return self._telling

    def _rtt(self) -> float | None:
        latency = self._peer.latency
        return None if latency is None else latency.rtt

    def _conclude(self) -> None:
        self._stream.settle(stop=self._stop)
        if self._stream.ended:
            self._let_go()

    def _end(self, error: Exception) -> None:
        if not self._stream.ended:
            self._stream.fail(error)
            self._let_go()

    def _let_go(self) -> None:
        if self._peer.stream is self:
            self._peer.stream = None
            self._peer.transport.listen(-1)
            place, self._place = self._place, None
            if place is not None:
                place.leave()
            for told in self.on_end:
                told()


class _Start(Place):
    """The place in line of a stream that has yet to send its first part."""

    __slots__ = ("_outgoing",)

    def __init__(self, outgoing: Outgoing) -> None:
        super().__init__(outgoing._peer, NORMAL)
        self._outgoing = outgoing

    def offer(self) -> bool:
        """It goes its own way from here."""
        self._outgoing.take_turn()
        return True

    def fail(self, error: errors.PeerTalkError) -> None:
        """The connection is gone, which ends the stream anyway."""
        self._outgoing.lost(error)
