"""What other threads may order of the sockets of a loop, and the tokens that name those.

Values alone, and the table of who has which token. Invariant: of all tokens that were ever given
for a place at most one is valid.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from .. import errors
from .socket_state import (
    AsyncSocketHandler,
    AsyncSocketState,
    SocketDescriptor,
    SocketInterest,
)

T = TypeVar("T")

PLACES = 1 << 20
"""Sockets that one loop watches at most. The rest of the 32 bits of a tag is of the generation."""
_GENERATIONS = (1 << 32) // PLACES


class Token(NamedTuple):
    """What names a registered socket in orders. One that was closed is refused, though its place
    may have been given to another socket since: that has the next generation."""

    place: int
    generation: int

    @property
    def tag(self) -> int:
        """The number by which the core knows it. After 4,096 generations a place has the same
        again, when no turn remembers the first."""
        return self.place + self.generation % _GENERATIONS * PLACES


class Tokens(Generic[T]):
    """Who has which token, the fewest places that do. by_tag: what each tag stands for."""

    __slots__ = ("_free", "_generations", "by_tag")

    def __init__(self) -> None:
        self._generations: list[int] = []
        self._free: deque[int] = deque()
        self.by_tag: dict[int, T] = {}

    def next(self) -> Token:
        """The token for somebody new. Nobody has it before put().

        Raises:
            OutOfMemory: all places are taken.
        """
        if self._free:
            place = self._free[0]
        elif len(self._generations) < PLACES:
            place = len(self._generations)
            self._generations.append(0)
            self._free.append(place)
        else:
            raise errors.OutOfMemory(f"{PLACES:,} sockets on one loop: no more are watched")
        return Token(place, self._generations[place])

    def put(self, token: Token, who: T) -> None:
        """Have the token that next() gave be of somebody."""
        self._free.remove(token.place)
        self.by_tag[token.tag] = who

    def find(self, token: Token) -> T:
        """Whose a token is.

        Raises:
            InvalidState: nobody's any more, or another loop's.
        """
        place, generation = token
        if 0 <= place < len(self._generations) and self._generations[place] == generation:
            found = self.by_tag.get(token.tag)
            if found is not None:
                return found
        raise errors.InvalidState(
            f"socket {place}, generation {generation}, is not registered here: it was closed, or "
            "it is another worker's"
        )

    def retire(self, token: Token) -> bool:
        """Let nobody have it any more. False: nobody had."""
        if self.by_tag.pop(token.tag, None) is None:
            return False
        self._generations[token.place] += 1
        self._free.append(token.place)
        return True


class RegisterSocket(NamedTuple):
    """Tell of a socket, which is not blocking, from now on. It stays the caller's, who closes it
    after CloseSocket. Answered by its token."""

    fd: SocketDescriptor
    interest: SocketInterest
    state: AsyncSocketState | AsyncSocketHandler
    """A state: its flags are set, and its wakers called; a handler: its functions are called."""


class ModifySocket(NamedTuple):
    """Watch a socket for something else."""

    token: Token
    interest: SocketInterest


class CloseSocket(NamedTuple):
    """Tell no more of a socket: its state is closed, its time-out cancelled, its token stale. A
    stream, listener or datagram socket of peertalk.net is closed itself."""

    token: Token


class SetSocketTimeout(NamedTuple):
    """Tell when so many seconds have passed, unless this is ordered again, or cancelled, before."""

    token: Token
    duration: float


class CancelSocketTimeout(NamedTuple):
    """Never mind the time-out."""

    token: Token


Order: TypeAlias = (
    RegisterSocket | ModifySocket | CloseSocket | SetSocketTimeout | CancelSocketTimeout
)
"""What other threads may order of a worker's sockets."""
