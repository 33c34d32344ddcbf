"""The sockets of one asyncio loop that carry bytes and no messages: who is told when one is ready.

One reactor for each loop, in a core loop of its own: opened for the first socket there, closed with
the last. The asyncio loop watches one descriptor for all of them. Where the system waits with epoll
each socket is registered once, for both directions, and each change is told once; elsewhere a
socket is watched while somebody waits for it.

Orders come from any thread and name a socket by its token. Invariant: an event is in _came until
its handler has returned, so that an exception that a signal handler raises loses none: where
changes are told once, a lost one would never come again.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from .. import errors
from .._core import load, values
from ..protocol.orders import Token, Tokens
from ..protocol.socket_state import AsyncSocketHandler, SocketDescriptor, Ticks
from ..protocol.statistics import ReactorStatistics
from . import forks
from .worker import Worker

RECEIVE_BUFFER = 524_288
"""Bytes of the buffer that the reads of one loop share, unless its worker was given another."""
NOT_READY = values.NOT_READY
"""What calls return when nothing is there, or no room."""
_OPS_IN_TICK = 4
"""Times io_budget that streams read or write in one tick of the loop before others have theirs."""


class Registered:
    """One socket in a reactor."""

    __slots__ = ("fd", "handler", "interest", "tag", "timer", "token", "watch")

    def __init__(
        self, fd: SocketDescriptor, interest: int, handler: AsyncSocketHandler, token: Token
    ) -> None:
        self.fd = fd
        self.interest = interest
        self.handler = handler
        self.token = token
        self.tag = token.tag
        self.watch: Any = None
        self.timer: Timer | None = None


class Timer:
    """Calls its action once, so many seconds after arm(): never early, and late by a millisecond
    and the rest of a turn. Of one reactor's thread."""

    __slots__ = ("_action", "_reactor", "_tag", "_timer")

    def __init__(self, reactor: Reactor, tag: int, timer: Any, action: Callable[[], object]):
        self._reactor = reactor
        self._tag = tag
        self._timer = timer
        self._action = action

    def arm(self, seconds: float) -> None:
        """Call the action so many seconds from now, and not when it was to be called before."""
        self._reactor._timers[self._tag] = self._action
        self._timer.arm(seconds)
        self._reactor._expect(seconds)

    def cancel(self) -> None:
        """Do not call it."""
        if self._reactor._timers.pop(self._tag, None) is not None:
            self._timer.cancel()


class Reactor:
    """The sockets of one asyncio loop. All but post() and wake_up() on its thread.

    Args:
        owner: the loop, which runs on the calling thread.
        io_budget: sockets that are served in one turn, 1 to 1,024.
        receive_buffer: bytes of the buffer that reads share.

    Attributes:
        calls: what reads and writes.
        ticks: how far it is.
        channels: the native halves of streams, by the tags of their sockets.
        stays: it is open though there is no socket, until close_now().
    """

    # What a worker needs beside turn(), move_here() and close_now()
    before_release: Callable[[], None] | None = None
    before_closing: Callable[[int], None] | None = None
    resume: Callable[[Callable[[], object]], bool] | None = None
    linger: Callable[[], None] | None = None
    owes = False
    orders: Any = ()
    receiver: Any = None

    def __init__(
        self,
        owner: asyncio.AbstractEventLoop,
        *,
        io_budget: int = 16,
        receive_buffer: int = RECEIVE_BUFFER,
    ) -> None:
        self.closed = True
        core = load()
        self.owner = owner
        self.thread = threading.get_ident()
        self.calls = core.byte_calls(receive_buffer)
        self.loop: Any = core.Loop(io_budget=io_budget)
        self.edges = bool(self.loop.fd >= 0 and core.name != "reference")
        self.ops = _OPS_IN_TICK * io_budget
        self.ticks: Ticks = self.calls.native_type("ticks", Ticks)()
        self.ticks.credit, self.ticks.thread = self.ops, self.thread
        self.channels: dict[int, Any] = {}
        self.stays = False
        self._tokens: Tokens[Registered] = Tokens()
        self._registered = self._tokens.by_tag
        self._timers: dict[int, Callable[[], object]] = {}
        self._next_timer = 0
        self._came: list[tuple[int, int, Any, Any]] = []
        self._orders: deque[Callable[[], object]] = deque()
        self._slow: deque[Callable[[], bool]] = deque()
        self._flushes: deque[Callable[[], object]] = deque()
        self._flushing = False
        self._struck: list[None] = []
        self._on_flush = self.loop.again(self._flush, self._struck)
        self._timeouts = self._order_count = 0
        self.closed = False
        self._serve: Callable[[list[tuple[int, int, Any, Any]]], int] | None = None
        self._driver = Worker(owner)
        self._driver.start(self)
        forks.heed(self)

    # Sockets --------------------------------------------------------------------------------------

    def register(
        self, fd: SocketDescriptor, interest: int, handler: AsyncSocketHandler
    ) -> Registered:
        """Tell handler of this socket from now on.

        Raises:
            InvalidArgument, OutOfMemory, PlatformError: the system does not watch it.
        """
        self.check_open()
        token = self._tokens.next()
        registered = Registered(fd, interest, handler, token)
        try:
            registered.watch = self.loop.watch(fd, registered.tag, self._watched(interest))
        except BaseException:
            self._end_if_idle()
            raise
        self._tokens.put(token, registered)
        if not self.edges:
            handler.state.when_waiting = partial(self._want, registered)
        return registered

    def _watched(self, interest: int) -> int:
        return interest | values.EDGE if self.edges and interest else interest

    def find(self, token: Token) -> Registered:
        """The socket that a token names.

        Raises:
            InvalidState: it was closed, or is another loop's.
        """
        return self._tokens.find(token)

    def modify(self, registered: Registered, interest: int) -> None:
        """Watch a socket for something else; NONE: for nothing, for now."""
        registered.interest = interest
        registered.watch.set(self._watched(interest))

    def _want(self, registered: Registered, interest: int) -> None:
        """Somebody waits for this now, where a change is not told by itself. Any thread."""
        if threading.get_ident() != self.thread:
            self.post(partial(self._want, registered, interest))
        elif registered.tag in self._registered:
            if registered.interest | interest != registered.interest:
                self.modify(registered, registered.interest | interest)
                self._driver.schedule()  # which looks at the descriptors anew

    def unregister(self, registered: Registered) -> None:
        """Tell no more of it, and forget its token: before the socket is closed. A second time
        nothing happens."""
        if not self._tokens.retire(registered.token):
            return
        self.channels.pop(registered.tag, None)
        if registered.timer is not None:
            registered.timer.cancel()
        registered.watch.close()
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if not self._registered and not self.stays:
            self.close_now()

    def close_socket(self, registered: Registered) -> None:
        """Unregister it, and tell its handler that it is closed."""
        self.unregister(registered)
        self._guarded(registered.handler.on_close)

    def set_timeout(self, registered: Registered, seconds: float | None) -> None:
        """Call the handler's on_timeout() so many seconds from now; None: never mind."""
        if seconds is None:
            if registered.timer is not None:
                registered.timer.cancel()
            return
        if registered.timer is None:
            registered.timer = self.timer(registered.handler.on_timeout)
        registered.timer.arm(seconds)

    # Timers, orders, and what takes long ----------------------------------------------------------

    def timer(self, action: Callable[[], object]) -> Timer:
        """A timer, not armed. The action may be called twice for once, where a signal handler has
        struck it."""
        self.check_open()
        self._next_timer = tag = self._next_timer + 1 & 0xFFFF_FFFF
        return Timer(self, tag, self.loop.timer(tag), action)

    def _expect(self, seconds: float) -> None:
        self._driver.expect(seconds)

    def post(self, order: Callable[[], object]) -> None:
        """Have something called in the next turn. Any thread.

        Raises:
            InvalidState: the loop has ended.
        """
        if self.closed:
            raise errors.InvalidState("this loop has ended: it takes no more orders")
        self._orders.append(order)
        self.loop.wake()

    def when_idle(self, work: Callable[[], bool]) -> None:
        """Have work called, one slice in a turn behind all that is ready, until it returns False:
        what takes long holds nobody up for more than a slice. A slice may be called twice for once,
        where a signal handler has struck it. At the end of this it is called once
        more, so that nobody waits for it any longer."""
        self._slow.append(work)
        self._driver.schedule()

    def flush_soon(self, flush: Callable[[], object]) -> None:
        """Have this called when the present tick is over: twice for once, where a signal handler
        has struck it."""
        self._flushes.append(flush)
        if not self._flushing and not self.owner.is_closed():
            self._flushing = True
            self.owner.call_soon(self._on_flush)

    def _flush(self) -> None:
        self._flushing = False
        self.ticks.tick += 1
        while self._flushes:
            self._flushes[0]()
            self._flushes.popleft()

    # A turn ---------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Serve whatever is ready. What a handler raises goes to the exception handler of the
        loop."""
        if self._struck:  # a signal handler has raised
            self._flush()
            self._struck.clear()
        came = self._came
        if self._serve is not None:
            told = self._serve(came)
        if self._serve is None or told < 0:
            self.ticks.credit = self.ops
            self.ticks.tick += 1
            self.ticks.turns += 1
            self.loop.turn(0.0, came)
        if self.closed:  # by a task that has gone on
            came.clear()
            return
        while came:
            kind, tag, mask, _ = came[0]
            if kind == values.READY:
                registered = self._registered.get(tag)
                if registered is not None:
                    self.ticks.events += 1
                    self._tell(registered, mask)
            elif tag in self._timers:
                self._timeouts += 1
                self._guarded(self._timers[tag])
                self._timers.pop(tag, None)
            del came[0]
            if self.closed:
                came.clear()
                return
        for _ in range(len(self._orders)):  # those that come meanwhile have the next turn
            order = self._orders[0]
            self._guarded(order)
            if not self._orders or self._orders[0] is not order:  # that has closed this
                return
            self._orders.popleft()
            self._order_count += 1
        if self._slow and not self.closed:
            self._work()

    def _tell(self, registered: Registered, mask: int) -> None:
        handler = registered.handler
        if not self.edges:  # watched while somebody waits, or it would be told again and again
            self.modify(registered, registered.interest & ~mask)
        for _ in range(handler.TRIES):
            try:
                if mask & values.READ:
                    if mask & values.HANGUP:
                        handler.state.hung_up = True
                    handler.on_readable()
                if mask & values.WRITE:
                    handler.on_writable()
                return
            except Exception as error:
                self._report(error)

    def _work(self) -> None:
        work = self._slow[0]
        more = False
        try:
            more = work()
        except Exception as error:
            self._report(error)
        if self._slow and self._slow[0] is work:  # else that has closed this
            self._slow.popleft()
        if more:
            self._slow.append(work)
        if self._slow:
            self._driver.schedule()

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            self._report(error)

    def _report(self, error: Exception) -> None:
        self.report("a handler of a socket has raised", error)

    def report(self, what: str, error: BaseException) -> None:
        """Tell the exception handler of the loop what nobody awaits."""
        self.owner.call_exception_handler({"message": what, "exception": error})

    def statistics(self) -> ReactorStatistics:
        """What was counted. Any thread."""
        ticks = self.ticks
        return ReactorStatistics(
            len(self._registered), ticks.turns, ticks.events, self._timeouts, self._order_count
        )

    def giver(self) -> None:
        """There are no messages here."""

    def quick(self) -> Callable[[], bool | None] | None:
        """What has a turn without Python, where nothing but streams is ready and turn() has nothing
        else to do."""
        if not self.edges:
            return None
        self._serve = self.loop.server(self.ticks, self.ops, self.channels, self._driver.woken)
        others = self._orders, self._slow, self._struck
        quick = self.loop.quick(self._serve, self._came, *others)
        return cast("Callable[[], bool | None]", quick)

    # Whose it is, and its end ---------------------------------------------------------------------

    def check_open(self) -> None:
        """Raises InvalidState when it is closed."""
        if self.closed:
            raise errors.InvalidState("the sockets of this loop are closed")

    def move_here(self) -> None:
        """Belong to the calling thread, where the loop runs now."""
        self.thread = self.ticks.thread = threading.get_ident()
        self.loop.move_here()

    def close_now(self) -> None:
        """Tell all handlers that their socket is watched no longer, and give everything back. May
        be called again."""
        if self.closed:
            return
        self.closed = True
        if _reactors.get(self.owner) is self:
            del _reactors[self.owner]
        self._driver.stop()
        for registered in list(self._registered.values()):
            self._guarded(registered.handler.on_close)
        self._registered.clear()
        self.channels.clear()  # which lead back to this, out of the collector's sight
        self._timers.clear()
        while self._slow:
            self._guarded(self._slow.popleft())
        self.loop.close()
        while self._orders:  # whoever gave one is told
            self._guarded(self._orders.popleft())

    def orphan(self) -> None:
        """See forks.Orphan."""
        if not self.closed:
            self.closed = True
            self.loop.orphan()
            for registered in self._registered.values():
                registered.handler.state.closed = True
            self._registered.clear()


def quicken(kind: type) -> None:
    """Put the native methods of streams before those of a class in Python, which then begin with
    _slow_: they do whatever is not simple."""
    for name, native in load().stream_methods(kind).items():
        setattr(kind, f"_slow_{name}", getattr(kind, name))
        setattr(kind, name, native)


_reactors: dict[asyncio.AbstractEventLoop, Reactor] = {}
"""Of each loop that has one. They keep their loops alive, and end with their last socket."""


def here() -> Reactor:
    """The reactor of the asyncio loop that runs on this thread; a new one, where there is none.

    Raises:
        InvalidState: no asyncio loop runs here.
        OutOfMemory, PlatformError: there is no memory, or there are no descriptors, for one.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise errors.InvalidState(
            "no asyncio loop runs here: streams of peertalk.net work under asyncio and uvloop"
        ) from None
    reactor = _reactors.get(loop)
    if reactor is None or reactor.closed:
        for owner, old in list(_reactors.items()):
            if owner.is_closed():
                old.close_now()
        reactor = adopt(Reactor(loop))
    return reactor


def adopt(reactor: Reactor) -> Reactor:
    """Have it be that of its loop."""
    _reactors[reactor.owner] = reactor
    return reactor
