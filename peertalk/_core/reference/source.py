"""What a loop of the reference core serves beside links: watched descriptors, and timers.

Never: closes a descriptor, which stays the caller's.
"""

from __future__ import annotations

import selectors
from typing import Any, Protocol, TypeAlias

from peertalk import errors
from peertalk._core.reference.landing import LandingRoom
from peertalk._core.reference.pool import BufferPool, PoolDoor
from peertalk._core.values import EDGE, READ, WRITE

Event: TypeAlias = tuple[int, int, Any, Any]
"""(kind, tag, a, b); see Loop.turn for a and b."""


class Home(Protocol):
    """What links, watches and timers use of their loop."""

    _selector: selectors.BaseSelector
    _owner: int
    _closed: bool
    _plain: bool
    _door: PoolDoor
    _spare: BufferPool
    _landing: LandingRoom
    _buffer: memoryview
    _work_left: int
    _turns: int
    _ticks: int
    _crc_errors: int
    _bad_frames: int
    _dirty: dict[Any, None]
    _holding: dict[Any, None]
    _timers: dict[int, Any]

    def wake(self) -> None: ...
    def _check_open(self) -> None: ...
    def _count(self, payload_len: int, *, many: bool) -> int: ...
    def _forget(self, source: Any) -> None: ...
    def _tell_by_and_by(self, link: Any) -> None: ...
    def _next_key(self) -> int: ...
    def _arm(self, key: int, owner: Any, delay: float) -> None: ...
    def _cancel(self, key: int) -> None: ...


class Source:
    """Something that can become ready: a link or a watch."""

    def __init__(self, loop: Home, fd: int, tag: int) -> None:
        self._loop = loop
        self._fd = fd
        self.tag = tag
        self._interest = 0

    def _want(self, interest: int) -> None:
        """Make the selector's interest what is said here. READ and WRITE have the selectors' own
        numbers."""
        selector = self._loop._selector
        if interest == self._interest:
            return
        if interest == 0:
            selector.unregister(self._fd)
        elif self._interest == 0:
            try:
                selector.register(self._fd, interest, self)
            except (KeyError, ValueError) as error:
                raise errors.InvalidArgument(
                    f"descriptor {self._fd} cannot be watched: {error}"
                ) from None
            except OSError as error:
                raise errors.PlatformError(
                    f"descriptor {self._fd} cannot be watched: {error}"
                ) from None
        else:
            selector.modify(self._fd, interest, self)
        self._interest = interest


class Watch(Source):
    """A foreign descriptor; a turn reports (READY, tag, mask, 0) as long as it is ready for what is
    wanted."""

    def __init__(self, loop: Home, fd: int, tag: int, interest: int) -> None:
        super().__init__(loop, fd, tag)
        self._closed = False
        self._watch_for(interest)

    def set(self, interest: int) -> None:
        """Change what is wanted: a sum of READ and WRITE, or 0. EDGE is taken for nothing, as in
        the C core's worlds without epoll: what lasts is told again.

        Raises:
            InvalidState: the watch is closed. InvalidArgument: there is no such interest.
        """
        if self._closed or self._loop._closed:
            raise errors.InvalidState("this watch is closed")
        self._watch_for(interest)

    def _watch_for(self, interest: int) -> None:
        if interest & ~(READ | WRITE | EDGE):
            raise errors.InvalidArgument(f"a watch for {interest}: READ, WRITE and EDGE are known")
        self._want(interest & ~EDGE)

    def close(self) -> None:
        """Forget the descriptor, which stays the caller's. Idempotent."""
        if not self._closed and not self._loop._closed:
            self._want(0)
            self._loop._forget(self)
        self._closed = True


class Timer:
    """Expires once after arm(), as (TIMER, tag, 0, 0)."""

    def __init__(self, loop: Home, tag: int) -> None:
        self._loop = loop
        self.tag = tag
        self._key = loop._next_key()

    def arm(self, delay: float) -> None:
        """Expire delay seconds from now, rounded up to milliseconds; 0 or less: at the next turn.
        Arming again moves it.

        Raises:
            InvalidState: the loop is closed.
        """
        self._loop._check_open()
        self._loop._arm(self._key, self, delay)

    def cancel(self) -> None:
        """Never expire. Nothing happens when it is not armed."""
        self._loop._cancel(self._key)

    @property
    def armed(self) -> bool:
        """Whether it will expire."""
        return self._key in self._loop._timers
