"""What is known of one socket between those who wait for it and the loop that watches it.

Who wants to read tries first. Where the system says "not now" he leaves a waker; the loop says when
to try again. Invariant: a flag that was set after the try wakes whoever leaves his waker then, so
that no wake-up is lost between the two.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TypeAlias

from .._core import values

SocketDescriptor: TypeAlias = int
"""The system's number of a socket: a small integer on Unix. peertalk does not run on Windows, where
it would be a handle."""

Waker: TypeAlias = Callable[[], object]
"""Has somebody who waits look again. Called on the thread of the loop that watches the socket, or
at once where he leaves it; it must neither wait nor raise, and may be called twice."""


class SocketInterest(enum.IntFlag):
    """What a socket is watched for."""

    NONE = 0
    """Nothing, for now: a socket that is paused stays registered."""
    READABLE = values.READ
    WRITABLE = values.WRITE
    READ_WRITE = values.READ | values.WRITE


_READ, _WRITE = values.READ, values.WRITE


class AsyncSocketState:
    """The flags of one socket, and who waits for them. Any thread may call all of it, and no lock
    is needed for that: whoever waits leaves his waker before he looks at the flags, and the loop
    sets a flag before it looks for a waker. A waker is removed when it has been called: what a
    signal handler has struck is done again. One that was left meanwhile is put back.

    Attributes:
        readable, writable: a try may succeed. Whoever is told "not now" clears the flag, on the
            loop's thread; on another thread he clears the flag before he tries, or a change that
            comes behind the try is forgotten.
        hung_up: the other side will send no more, so that the socket stays readable.
        timed_out: the time-out of the socket has passed; see SetSocketTimeout.
        closed: the socket is closed, or no longer watched.
        when_waiting: told what somebody begins to wait for, where the loop has to be asked for
            that.
    """

    __slots__ = (
        "_error",
        "_wakers",
        "closed",
        "hung_up",
        "readable",
        "timed_out",
        "when_waiting",
        "writable",
    )

    def __init__(self) -> None:
        self.readable = self.writable = False
        self.hung_up = self.timed_out = self.closed = False
        self.when_waiting: Callable[[int], object] | None = None
        self._error: Exception | None = None
        self._wakers: dict[int, tuple[Waker]] = {}
        """Of each direction, each in a tuple of its own: who left it again left another one."""

    def set_waker(self, interest: SocketInterest | int, waker: Waker) -> None:
        """Have waker called as soon as the socket is ready for one of these, has timed out, has
        failed or is closed: at once, if that is so already. Then it is forgotten. The last waker of
        a direction takes the place of the one before."""
        if interest & _READ:
            self._wakers[_READ] = (waker,)
        if interest & _WRITE:
            self._wakers[_WRITE] = (waker,)
        if self._is_over():
            self._wake_all()
            return
        if interest & _READ and self.readable:
            self._wake(_READ)
        if interest & _WRITE and self.writable:
            self._wake(_WRITE)
        if self.when_waiting is not None and self.waits(interest):
            self.when_waiting(interest)

    def drop_waker(self, waker: Waker) -> None:
        """Do not call this one any more."""
        for side in (_READ, _WRITE):
            if self._wakers.get(side) == (waker,):
                self._wakers.pop(side, None)

    def waits(self, interest: SocketInterest | int) -> bool:
        """Whether somebody waits for one of these."""
        return any(interest & side and side in self._wakers for side in (_READ, _WRITE))

    def set_readable(self) -> None:
        """A read may succeed: wake whoever waits for that."""
        self.readable = True
        self._wake(_READ)

    def set_writable(self) -> None:
        """A write may succeed: wake whoever waits for that."""
        self.writable = True
        self._wake(_WRITE)

    def set_timed_out(self) -> None:
        """The time-out has passed: wake all who wait."""
        self.timed_out = True
        self._wake_all()

    def set_closed(self) -> None:
        """The socket is closed: wake all who wait."""
        self.closed = True
        self._wake_all()

    def set_error(self, error: Exception) -> None:
        """Something failed while nobody was looking: whoever looks next is told. Wake all who
        wait."""
        if self._error is None:
            self._error = error
        self._wake_all()

    def take_error(self) -> Exception | None:
        """What has failed meanwhile, told once; None: nothing."""
        error, self._error = self._error, None
        return error

    def _is_over(self) -> bool:
        return self.closed or self.timed_out or self._error is not None

    def _wake(self, side: int) -> None:
        called = self._wakers.get(side)
        if called is None:
            return
        called[0]()
        removed = self._wakers.pop(side, None)
        if removed is not None and removed is not called:
            self._wakers.setdefault(side, removed)
            if self._is_over() or (self.readable if side == _READ else self.writable):
                self._wake(side)

    def _wake_all(self) -> None:
        self._wake(_READ)
        self._wake(_WRITE)


class Ticks:
    """How far the loop is that watches sockets.

    Attributes:
        credit: reads and writes of this tick that are left before others have theirs.
        tick: changes with each turn, and with each flush.
        thread: whose the loop is.
        turns: how many there were.
        events: of sockets, how many those have told.
    """

    __slots__ = ("credit", "events", "thread", "tick", "turns")

    def __init__(self) -> None:
        self.credit = self.tick = self.thread = self.turns = self.events = 0


class AsyncSocketHandler:
    """What the loop tells of one socket: four events. This one notes them in a state, and wakes
    whoever waits there; a class of your own may do something else. Called on the thread of the
    loop, which waits for it."""

    __slots__ = ("state",)

    TRIES = 1
    """How often one event may be told: again when an exception has ended the first call, which may
    be that of a signal handler, before that call did anything."""

    def __init__(self, state: AsyncSocketState) -> None:
        self.state = state

    def on_readable(self) -> None:
        """A read may succeed, or find the end of the stream."""
        self.state.set_readable()

    def on_writable(self) -> None:
        """A write may succeed; or a connection that was being opened is there, or has failed."""
        self.state.set_writable()

    def on_timeout(self) -> None:
        """The time-out that was set for the socket has passed."""
        self.state.set_timed_out()

    def on_close(self) -> None:
        """The socket is watched no longer: by CloseSocket, or because the loop ends."""
        self.state.set_closed()
