"""Who stands in line to send to one peer: a line for each class, first come first served. What
those have left who cannot stand there, because they are other threads. And who waits for something
to come.

Whoever notices that there is room serves a line: the one who stands there need not be awake for
that.

Invariant: who is `joined` stands in the line of its class. Never: accepts a message itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from .. import errors
from .._numbers import MESSAGE_LIMIT_MAX
from .outbox import HIGHEST_FIRST, Key


class Place(ABC):
    """A place in line of somebody who sends messages of one class.

    reaching: it waits for a connection that is being opened, and so survives the end of another.
    """

    __slots__ = ("joined", "priority", "reaching")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.joined = False
        self.reaching = False

    @abstractmethod
    def offer(self) -> bool:
        """Be accepted. Returns True when all of it is: it leaves the line. False: there is no room
        for all, and it stays.

        Raises:
            Exception: it will not be accepted. It leaves the line, and fail() tells it of that as
                one of the errors of this package.
        """

    @abstractmethod
    def fail(self, error: errors.PeerTalkError) -> None:
        """It will not be accepted, because of this. It has left the line."""


class Lines(dict[int, deque[Place]]):
    """The lines to one peer, by their class. Whoever finds one used up takes it out."""

    __slots__ = ()

    def join(self, place: Place) -> None:
        """Stand in line: nobody who comes later is accepted before."""
        place.joined = True
        line = self.get(place.priority)
        if line is None:
            line = self[place.priority] = deque()
        line.append(place)

    def leave(self, place: Place) -> bool:
        """Give up. False: it stands there no more."""
        line = self.get(place.priority) if place.joined else None
        if not line:
            return False
        place.joined = False
        line.remove(place)
        return True

    def serve(self, priority: int, may: Callable[[], bool], whom: str) -> bool:
        """Offer what stands in the line of a class, in order, as long as it may be accepted and
        there is room. Whether nobody is left. whom: the name of the peer."""
        line = self.get(priority)
        while line:
            if not may():
                return False
            place = line[0]
            try:
                if not place.offer():
                    return False
                line.popleft().joined = False
            except Exception as error:
                line.popleft().joined = False
                text = f"a message to peer {whom!r} could not be accepted: {error!r}"
                place.fail(errors.from_exception(error, text))
        return True

    def fail(self, error: errors.PeerTalkError) -> None:
        """The connection is gone: whoever waits for room, and for no other, hears why."""
        for line in list(self.values()):
            for place in [each for each in line if not each.reaching]:
                place.joined = False
                place.fail(error)
            kept = [each for each in line if each.joined]
            line.clear()
            line.extend(kept)


class Waiters:
    """Who waits for something to come, first come first served: functions that wake somebody, and
    say whether they did. False: he was woken already, or waits no longer."""

    __slots__ = ("_line",)

    def __init__(self) -> None:
        self._line: deque[Callable[[], bool]] = deque()

    def join(self, waiter: Callable[[], bool]) -> bool:
        """Let a waiter stand in the line, behind all others; it is called once, by wake(), unless
        it leaves before. Whether it is the first."""
        self._line.append(waiter)
        return len(self._line) == 1

    def leave(self, waiter: Callable[[], bool], *, woken: bool) -> None:
        """Wait no longer. woken: whoever was woken here, and goes without a look, hands that on."""
        if waiter in self._line:
            self._line.remove(waiter)
        elif woken:
            self.wake(1)

    def wake(self, count: int) -> None:
        """So many things have come: as many look."""
        line = self._line
        while line and count > 0:
            count -= line.popleft()()

    def wake_all(self) -> None:
        """Nothing more will come."""
        self.wake(len(self._line))

    def __len__(self) -> int:
        return len(self._line)


class Afar:
    """Messages for one peer that other threads than its owner's have left: in order within each
    class, and no more than an outbox holds. One thread leaves at a time, and one takes.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left: tuple[deque[tuple[bytes, bool, Key | None]], ...]
        self._left = tuple(deque() for _ in HIGHEST_FIRST)

    def __len__(self) -> int:
        return sum(map(len, self._left))

    def leave(
        self,
        payload: bytes,
        no_delay: bool,
        priority: int,
        key: Key | None,
        most: int,
        most_bytes: int,
    ) -> bool:
        """Leave a message behind those of its class. False: of that class so many are there, or
        this one is long and there are so many bytes; nothing has changed."""
        left = self._left[priority]
        if len(left) >= most:
            return False
        if left and len(payload) > MESSAGE_LIMIT_MAX:  # so many small ones are no more bytes
            if sum(len(payload) for payload, *_ in list(left)) > most_bytes:
                return False
        left.append((payload, no_delay, key))
        return True

    def take(
        self,
        accept: Callable[[bytes, bool, int, Key | None], object],
        fail: Callable[[errors.PeerTalkError], object],
        accepted: Callable[[], int],
    ) -> None:
        """Have accept(payload, no_delay, priority, key) take them, the highest class first, and of
        each class until it returns 0. What it raises is told to fail, and that message is gone.
        accepted: how many were, which says that of a message whose accept() was cut off by an
        exception of a signal handler."""
        for priority in HIGHEST_FIRST:
            left = self._left[priority]
            while left:
                (payload, no_delay, key), before = left[0], accepted()
                try:
                    if not accept(payload, no_delay, priority, key):
                        break
                except errors.PeerTalkError as error:
                    fail(error)
                except BaseException:
                    if accepted() != before:
                        left.popleft()
                    raise
                left.popleft()
