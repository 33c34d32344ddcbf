"""One socket of a reactor, as a task sees it: who waits on which side, how long, and what is raised
when the socket fails, times out or is closed meanwhile."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from typing import Any, Self

from .. import errors
from ..ownership import running_loop
from ..protocol.orders import Token
from ..protocol.refusals import of_socket
from ..protocol.socket_addresses import readable
from ..protocol.socket_state import AsyncSocketHandler, AsyncSocketState, SocketInterest
from ..runtime.reactor import Reactor, Registered, Timer
from ..waiting import Waiting


class Side:
    """Who waits on one side of a socket, to read or to write.

    Attributes:
        busy: a task is in the middle of something there, so that another one is refused.
        ended: no more is sent there.
        tick: of the reactor, when it was last written to; -1: never.
    """

    __slots__ = ("busy", "ended", "interest", "late", "tick", "timer", "waiting")

    def __init__(self, interest: SocketInterest) -> None:
        self.interest = int(interest)
        self.busy = self.ended = False
        self.tick = -1
        self.late = False
        self.timer: Timer | None = None
        self.waiting: Waiting | None = None

    def expire(self) -> None:
        """Whoever waits has waited as long as he wanted to."""
        self.late = True
        if self.waiting is not None:
            self.waiting.tell()


class Endpoint(AsyncSocketHandler):
    """A socket that is not blocking, and belongs to the reactor of one asyncio loop. See Stream,
    Listener and Datagrams."""

    __slots__ = ("_fd", "_in", "_out", "_reactor", "_registered", "_socket")

    TRIES = 2
    _NOUN = "socket"

    def __init__(self, reactor: Reactor, owned: socket.socket) -> None:
        super().__init__(reactor.calls.native_type("state", AsyncSocketState)())
        self._socket = owned
        self._fd = owned.fileno()
        self._rest_on(reactor)
        self._registered: Registered = reactor.register(self._fd, self._interest(reactor), self)

    def _rest_on(self, reactor: Reactor) -> None:
        """Belong to this reactor, with nobody waiting."""
        self._reactor = reactor
        side = reactor.calls.native_type("side", Side)
        self._in: Side = side(SocketInterest.READABLE)
        self._out: Side = side(SocketInterest.WRITABLE)

    @staticmethod
    def _interest(reactor: Reactor) -> int:
        """What it is watched for while nobody waits: each change, where that can be told once."""
        return int(SocketInterest.READ_WRITE if reactor.edges else SocketInterest.NONE)

    # What it is -----------------------------------------------------------------------------------

    @property
    def token(self) -> Token:
        """What names it in orders to the worker whose loop this is."""
        return self._registered.token

    @property
    def closed(self) -> bool:
        """Whether it was closed here; what the other side does shows when it is read."""
        return self.state.closed

    @property
    def local_addr(self) -> Any:
        """Its own address: (host, port) and more for IPv6, or the path of a Unix socket.

        Raises:
            InvalidState: it is closed.
        """
        self._check()
        return self._socket.getsockname()

    def fileno(self) -> int:
        """The descriptor, which stays the socket's; -1 once it is closed."""
        return self._socket.fileno()

    def __repr__(self) -> str:
        where = "closed" if self.state.closed else f"descriptor {self._fd}"
        return f"<peertalk.net.{type(self).__name__} {where}>"

    # Waiting --------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Raises InvalidState when it is closed, or another thread's."""
        if self.state.closed:
            raise errors.InvalidState(f"this {self._NOUN} is closed")
        if threading.get_ident() != self._reactor.thread:
            raise errors.InvalidState(
                f"this {self._NOUN} belongs to the asyncio loop of another thread: use it there, "
                "or move a stream that is at rest with move_to()"
            )

    def _until(self, timeout: float | None) -> float | None:
        """When the time is up, by the clock of the loop."""
        return None if timeout is None else self._reactor.owner.time() + timeout

    def _enter(self, side: Side, doing: str) -> None:
        """Raises InvalidState when another task is in the middle of something on this side."""
        self._check()
        if side.busy:
            raise errors.InvalidState(
                f"another task {doing} this {self._NOUN}: one may at a time, or what each got "
                "would be chance"
            )

    async def _ready(self, side: Side, until: float | None) -> None:
        """Wait until a try may succeed.

        Raises:
            Timeout: it is too late for that.
            InvalidState: it was closed meanwhile. What had failed while nobody looked.
        """
        reactor, state = self._reactor, self.state
        if running_loop() is not reactor.owner:
            raise errors.InvalidState(f"this {self._NOUN} belongs to another asyncio loop")
        waiting = Waiting(reactor.owner, reactor.resume)
        try:
            side.waiting = waiting
            side.busy = True
            if until is not None:
                self._arm(side, until)
            state.set_waker(side.interest, waiting.tell)
            await waiting
        finally:
            side.busy = False
            side.waiting = None
            if not waiting.told:
                state.drop_waker(waiting.tell)
            if until is not None and side.timer is not None:
                side.timer.cancel()
        if until is None:
            side.late = False  # by the timer of a wait that a signal handler has struck
        self._judge(side)

    def _judge(self, side: Side) -> None:
        """Raises what a wait has ended with, unless a try may succeed now."""
        state = self.state
        if state.closed:
            raise errors.InvalidState(f"this {self._NOUN} was closed meanwhile")
        if (failed := state.take_error()) is not None:
            raise failed
        if (side.late or state.timed_out) and not self._is_ready(side):
            side.late = state.timed_out = False
            raise errors.Timeout(f"{self._NOUN}: {self._nothing(side)} in the time allowed")

    def _is_ready(self, side: Side) -> bool:
        state = self.state
        return state.readable if side.interest == SocketInterest.READABLE else state.writable

    def _nothing(self, side: Side) -> str:
        return "nothing came" if side.interest == SocketInterest.READABLE else "there was no room"

    def _arm(self, side: Side, until: float) -> None:
        side.late = False
        timer = side.timer
        if timer is None:
            side.timer = timer = self._reactor.timer(side.expire)
        timer.arm(max(0.0, until - self._reactor.owner.time()))

    async def when_idle(self) -> None:
        """Go on behind all that is ready: for what takes long, one slice after each. The slices of
        all take turns."""
        self._check()
        waiting = Waiting(self._reactor.owner, self._reactor.resume)

        def go_on() -> bool:
            waiting.tell()
            return False

        self._reactor.when_idle(go_on)
        await waiting

    async def _breathe(self, side: Side) -> None:
        """Let others have a tick."""
        try:
            side.busy = True
            await asyncio.sleep(0)
            self._reactor.ticks.credit = self._reactor.ops
        finally:
            side.busy = False
        self._check()

    def on_close(self) -> None:
        """See AsyncSocketHandler: by an order, or because its loop ends."""
        super().on_close()
        self._socket.close()

    # Its end --------------------------------------------------------------------------------------

    def close_now(self) -> None:
        """Close it at once: what is buffered is lost, and all who wait on it hear InvalidState. A
        second time nothing happens.

        Raises:
            InvalidState: on another thread than its loop's.
        """
        if self.state.closed:
            if self._reactor.closed:
                self._socket.close()  # its loop has ended before it
            return
        self._check()
        try:
            self._reactor.unregister(self._registered)
        finally:
            self.state.set_closed()
            self._socket.close()

    async def aclose(self) -> None:
        """As close_now()."""
        self.close_now()

    async def __aenter__(self) -> Self:
        self._check()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def fault(number: int, what: str) -> errors.PeerTalkError:
    """What the system has refused, by its number. what: which socket, for the message."""
    return of_socket(number, os.strerror(number), what)


def peer_of(connection: socket.socket) -> str:
    """Whom a socket is connected to, for messages."""
    try:
        return readable(connection.getpeername())
    except OSError:
        return "an unknown address"
