"""What comes to a node, as streams for `async for` and anext(): messages, datagrams, events.

A stream takes from what the engine keeps, so that many may share it. Invariant: an anext() that is
cancelled or out of time takes nothing along.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from itertools import repeat
from typing import Any, Generic, Self, TypeVar

from .doors.door import remote_of
from .ownership import check_free, check_running, check_thread, running_loop
from .protocol import events
from .protocol.inbox import Outlet
from .protocol.waiting import Waiters
from .protocol.wire import Message
from .runtime.engine import Engine
from .runtime.remote import Home, Remote
from .runtime.transport import Transport
from .waiting import Waiting

T = TypeVar("T")
P = TypeVar("P")
E = TypeVar("E", bound=events.Rejecting)

_NOTHING: Iterator[Any] = iter(())


class Incoming(AsyncIterator[T]):
    """What comes to a node, one item after the other, for `async for` and anext(). Any number of
    tasks may share it: each item goes to one of them, who waits longest first.

    An anext() that is cancelled or out of time takes nothing along, and the next one goes on. It
    ends when the node is closed, after what had come; or by aclose(), which wakes all who wait, or
    by leaving `async with`.
    """

    __slots__ = ("__weakref__", "_over", "_waiting")

    def __init__(self) -> None:
        self._over = False
        self._waiting: list[Waiting] = []

    async def aclose(self) -> None:
        """End it; nothing is lost: what has come stays for others. May be called again.

        Raises:
            InvalidState: on another loop or thread than the node's.
        """
        self._check()
        self._end()

    async def __aenter__(self) -> Self:
        self._check()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @abstractmethod
    def _source(self) -> Engine | None:
        """The engine that the items come from; None: there is none yet, or none any more."""

    def _check(self) -> None:
        """Raises InvalidState on another loop or thread than the node's."""
        engine = self._source()
        if engine is not None and (not engine.closed or engine.forked):
            check_thread(engine)
            check_running(engine)

    def _end(self) -> None:
        """Nothing more is given here, but for what it may keep: all who wait look again."""
        self._over = True
        for each in self._waiting:
            each.tell()

    async def _arrival(self, engine: Engine | None, waiters: Waiters) -> bool:
        """Wait until something has come. False: nothing will. To be called after _check()."""
        if self._over or (engine is not None and engine.closed and not engine.forked):
            return False
        if engine is None:
            waiting = Waiting(running_loop(), None)
        else:
            waiting = Waiting(engine.owner, engine.resume)
        self._waiting.append(waiting)
        waiters.join(waiting.tell)
        try:
            await waiting.future
        except BaseException:
            waiters.leave(waiting.tell, woken=waiting.told)
            raise
        finally:
            self._waiting.remove(waiting)
        self._came(engine, waiters, waiting)
        return True

    def _came(self, engine: Engine | None, waiters: Waiters, waiting: Waiting) -> None:
        """Who stood in line was told. Raises InvalidState in a forked child."""
        if self._over:
            waiters.leave(waiting.tell, woken=True)  # another stream has what woke it
        if engine is not None and engine.forked:
            self._check()


class Messages(Incoming[Message[P]]):
    """Messages of all peers, or of one alone."""

    __slots__ = ("_alone", "_engine", "_outlet", "_reader")

    def __init__(self, engine: Home, alone: Remote | None) -> None:
        super().__init__()
        self._engine = engine
        self._outlet: Outlet[Remote] | None = engine.inbox if alone is None else None
        self._reader = object()  # for this stream, which must not be kept alive
        self._alone = alone  # last: __del__ asks for it first

    def __aiter__(self) -> AsyncIterator[Message[P]]:
        """A loop, where time counts, with no coroutine of its own for a message at hand."""
        return self._engine.core.Reader(self._lot)

    def _source(self) -> Engine | None:
        return self._engine

    async def __anext__(self) -> Message[P]:
        """The next one.

        A task that was cancelled keeps its CancelledError as long as somebody keeps the task. The
        frames in the traceback of that error must not keep the stream, which is let go, and its
        peer's messages with it, when nobody else has it.
        """
        try:
            message = await self.take()
        except asyncio.CancelledError as error:
            del self
            error.__traceback__ = None
            raise
        if message is None:
            raise StopAsyncIteration
        return message

    async def _lot(self) -> tuple[Message[P], Iterator[Message[P]]]:
        """The next one, and those behind it that came with it but for the last."""
        try:
            message = await self.take()
        except asyncio.CancelledError as error:
            del self  # see __anext__()
            error.__traceback__ = None
            raise
        if message is None:
            raise StopAsyncIteration
        outlet = self._outlet
        lot = None if outlet is None else outlet.current
        if lot is None:
            return message, _NOTHING
        return message, map(Message, repeat(lot.peer.view), lot.left)

    async def take(self) -> Message[P] | None:
        """The next one, as soon as there is one; None: there will be none."""
        engine = self._engine
        owner = engine.owner
        if owner is None or threading.get_ident() != engine.thread or not owner.is_running():
            self._check()
        while True:
            outlet = self._outlet
            if outlet is None and (outlet := self._reserved()) is None:
                return None
            if outlet.cost and (got := outlet.take()) is not None:
                return Message(got[0].view, got[1])
            if outlet.ended or self._over or (engine.closed and not engine.forked):
                self._end()
                return None
            waiting = Waiting(engine.owner, engine.resume)
            waiters, tell = outlet.waiters, waiting.tell
            self._waiting.append(waiting)
            try:
                try:
                    if waiters.join(tell) and outlet.came_singly:
                        engine.receiver = waiting
                    await waiting.future
                finally:
                    self._waiting.remove(waiting)
                    if engine.receiver is waiting:
                        engine.receiver = None
                given: Message[P] | None = waiting.got[0]
                if given is not None:
                    waiters.leave(tell, woken=waiting.told)
                    return given
            except BaseException:
                waiters.leave(tell, woken=waiting.told)
                self._give_back(waiting.got[0])
                raise
            self._came(engine, waiters, waiting)

    def _give_back(self, message: Message[P] | None) -> None:
        """What a task was given that will not go on with that is the next one again."""
        if message is not None:
            self._engine.inbox.put_back(remote_of(message.peer), [message.data])

    def _reserved(self) -> Outlet[Remote] | None:
        """An outlet for the one peer that is read alone; None: this is over."""
        if self._alone is None or self._over:
            return None
        self._outlet = self._engine.inbox.reserve(
            self._alone, self._reader, ended=not self._alone.known
        )
        return self._outlet

    def _end(self) -> None:
        """The node is closed, or this is: what is left goes to others."""
        super()._end()
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            outlet.reopen()
            if self._alone is not None:
                self._engine.inbox.release(self._alone, self._reader)

    def __del__(self) -> None:
        alone = getattr(self, "_alone", None)  # a signal handler may have cut __init__ off
        if alone is not None and self._outlet is not None and not self._engine.closed:
            # a collection may begin on any thread, and in the middle of a turn
            self._engine.post(partial(self._engine.inbox.release, alone, self._reader))


class Items(Incoming[T]):
    """What an engine keeps for whoever takes it, as values of one kind."""

    __slots__ = ("_engine", "_kind", "_take", "_waiters")

    def __init__(
        self,
        engine: Transport,
        waiters: Waiters,
        take: Callable[[], tuple[Remote, Any] | None],
        kind: Callable[[Any, Any], T],
    ) -> None:
        super().__init__()
        self._engine = engine
        self._waiters = waiters
        self._take = take
        self._kind = kind

    def _source(self) -> Engine | None:
        return self._engine

    async def __anext__(self) -> T:
        if not self._over:
            self._check()
        while not self._over:
            got = self._take()
            if got is not None:
                return self._kind(got[0].view, got[1])
            if not await self._arrival(self._engine, self._waiters):
                break
        raise StopAsyncIteration


class Listeners(Generic[E]):
    """The event streams of one node, each fed while somebody has it: one that was left by `break`
    is let go. engine: what reports; None: not started."""

    def __init__(self) -> None:
        self.engine: Transport | None = None
        self._streams: list[tuple[weakref.ref[Events[E]], Waiters]] = []
        """Those who wait at a stream are held, since nobody else may have their tasks."""

    def start(self, engine: Transport) -> None:
        """Events come from this engine now."""
        self.engine = engine
        if self._streams:
            engine.publish = self._publish

    def listen(self, node: object) -> Events[E]:
        """A stream of what is true now and what happens from now on. It keeps the node alive."""
        engine = self.engine
        if engine is not None and (not engine.closed or engine.forked):
            check_free(engine)
        stream = Events(self, node)
        if engine is not None and engine.closed:
            stream._end()
            return stream
        self.drop(None)  # streams that nobody holds go with the next event, which may never come
        self._streams.append((weakref.ref(stream), stream.waiters))
        if engine is not None:
            engine.publish = self._publish
        return stream

    def drop(self, stream: Events[E] | None) -> None:
        """Feed this one, and those that nobody has, no more."""
        self._streams = [each for each in self._streams if each[0]() not in (None, stream)]
        if not self._streams and self.engine is not None:
            self.engine.publish = None

    def end_all(self) -> None:
        """The node is closed."""
        for stream in self._present():
            stream._end()

    def _publish(self, event: events.Event[E]) -> None:
        for stream in self._present():
            stream.put(event)

    def _present(self) -> list[Events[E]]:
        """The streams that somebody has."""
        streams = [stream for each, _ in self._streams if (stream := each()) is not None]
        if len(streams) < len(self._streams):
            self.drop(None)
        return streams


class Events(Incoming[events.Event[E]]):
    """Events since a moment, bounded."""

    __slots__ = ("_events", "_listeners", "_node", "waiters")

    def __init__(self, listeners: Listeners[E], node: object) -> None:
        super().__init__()
        engine = listeners.engine
        self._listeners: Listeners[E] | None = listeners
        self._node: object = node
        self._events: events.EventQueue[E] = events.EventQueue(
            () if engine is None or engine.closed else engine.present()
        )
        self.waiters = Waiters()

    def put(self, event: events.Event[E]) -> None:
        """One more has happened: one of those who wait has it."""
        self._events.put(event)
        if self.waiters:
            self.waiters.wake(1)

    def _end(self) -> None:
        """Nothing more is put here: the node is closed, or this is. What is here is the rest."""
        super()._end()
        listeners, self._listeners, self._node = self._listeners, None, None
        if listeners is not None:
            listeners.drop(self)

    def _source(self) -> Engine | None:
        return None if self._listeners is None else self._listeners.engine

    async def __anext__(self) -> events.Event[E]:
        self._check()
        while True:
            event = self._events.take()
            if event is not None:
                return event
            if not await self._arrival(self._source(), self.waiters):
                raise StopAsyncIteration


async def first(stream: Incoming[T], engine: Engine) -> T:
    """The next item, as soon as there is one.

    Raises:
        InvalidState: the node is closed.
    """
    try:
        return await anext(stream)
    except StopAsyncIteration:
        engine.check_open()
        raise
