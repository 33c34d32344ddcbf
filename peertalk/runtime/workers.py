"""The threads that have an engine's links, if there are any: which link goes where, and what all of
them have brought, as one.

Invariant: a link lives on one worker, and nothing but rebalance() has it move. Never: decides what
is done with what it has brought.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any, Self

from .. import errors
from .._core import Core, load
from .._core.values import LoopStatistics
from ..config import Config
from ..protocol import balance


def possible(config: Config) -> bool:
    """Whether a node with this configuration can have workers, and a thread that decides."""
    has_epoll = hasattr(select, "epoll")
    return has_epoll and config.async_send and load(config.core or None).name != "reference"


class Workers:
    """The workers of one engine, and its loop. On the engine's thread only.

    Args:
        loop: the engine's, which has all links where there are no workers.
        workers: of its core.

    work: whether there are any.
    """

    def __init__(self, loop: Any, workers: list[Any]) -> None:
        self._loop = loop
        self._workers = workers
        self.work = bool(workers)

    @classmethod
    def of(cls, core: Core, config: Config, loop: Any, has_threads: bool) -> Self:
        """As many as the configuration says, started; none in a world without threads.

        Raises:
            InvalidArgument: with async_send=False there are none. NotSupported: the core has none.
                OutOfMemory, PlatformError. The loop is closed.
        """
        workers: list[Any] = []
        try:
            if config.workers and not config.async_send:
                raise errors.InvalidArgument(
                    f"workers={config.workers} with async_send=False: a blocking send is done on "
                    "the program's own thread; leave one of the two out"
                )
            for number in range(1, config.workers * has_threads + 1):
                name = f"{config.name} worker {number}"
                workers.append(core.Worker(loop, name, io_budget=config.io_budget))
                workers[-1].landing_limit = config.receive_large_bytes
        except BaseException:
            cls(loop, workers).close()
            raise
        return cls(loop, workers)

    def turn(self, timeout: float | None, came: list[Any]) -> None:
        """A turn of the engine's loop, and what the workers have brought; the loop waits up to
        timeout seconds (None: until something is there) if nothing is."""
        self._loop.turn(0.0, came)
        self._take(came)  # last: a turn of the loop ends the wait that the next news would end
        if not came and timeout != 0:
            self._loop.turn(timeout, came)
            self._take(came)

    def _take(self, came: list[Any]) -> None:
        for worker in self._workers:
            worker.turn(0.0, came)

    def least_loaded(self) -> Any:
        """The worker with the fewest links; None: there are no workers."""
        return min(self._workers, key=lambda worker: worker.links, default=None)

    def rebalance(self) -> int:
        """Move links as balance.steps() says, as far as they can be moved now. Returns how many
        were.

        Raises:
            OutOfMemory, PlatformError: what was moved before that stays where it is.
        """
        workers = self._workers
        steps = balance.steps([worker.links for worker in workers])
        return sum(workers[giver].give(workers[taker]) for giver, taker in steps)

    def begin(self, link: Any) -> None:
        """It is known whose a link is: it is read from now on."""
        if self.work:
            link.resume()

    def tell_sent(self, tells: bool) -> None:
        """Whether somebody wants to hear of all that leaves."""
        for worker in self._workers:
            worker.tells_sent = tells

    def answer_pings(self, link: Any) -> None:
        """A link is known and used: its worker answers its PINGs from now on."""
        if self.work:
            link.answer_pings(True)

    def sender(
        self, names: tuple[str, str, str], hint: Callable[[int], object]
    ) -> Callable[[Any, Any, bool], int] | None:
        """What sends a message of a peer whose attributes have these names, on any thread where
        there are workers; None: the core has no such call. See Loop.sender()."""
        send: Callable[[Any, Any, bool], int] | None = None
        if hasattr(self._loop, "sender"):
            send = self._loop.sender(*names, hint)
        return send

    def taker(
        self, kinds: tuple[Any, ...], values: tuple[Any, ...], names: tuple[str, ...]
    ) -> Callable[..., Any] | None:
        """What takes the next message in one call; None: there are several workers, or the core has
        no such call. See Loop.taker()."""
        place = self._workers[0] if self.work else self._loop
        take: Callable[..., Any] | None = None
        if len(self._workers) <= 1 and hasattr(place, "taker"):
            take = place.taker(kinds, values, names)
        return take

    def keeps(self, tag: int) -> int:
        """How many frames of a link a worker has kept that were not taken."""
        return sum(worker.keeps(tag) for worker in self._workers)

    def statistics(self) -> LoopStatistics:
        """The counters of the loop and of all workers, summed."""
        counters = [each.statistics() for each in (self._loop, *self._workers)]
        return LoopStatistics(*map(sum, zip(*counters, strict=True)))

    def memory(self) -> dict[str, tuple[int, int]]:
        """The bytes of the loop and of all workers, part by part, now and at most; the pool that
        they share once."""
        parts: dict[str, tuple[int, int]] = self._loop.memory()
        for worker in self._workers:
            for part, (now, most) in worker.memory().items():
                if part not in ("pools", "pipelines", "total"):
                    before = parts.get(part, (0, 0))
                    parts[part] = before[0] + now, before[1] + most
                    parts["total"] = parts["total"][0] + now, parts["total"][1] + most
        return parts

    def move_here(self) -> None:
        """They and the loop belong to the calling thread from now on."""
        for each in self._loop, *self._workers:
            each.move_here()

    def disown(self) -> None:
        """They and the loop belong to no thread until move_here()."""
        for each in self._loop, *self._workers:
            each.disown()

    def orphan(self) -> None:
        """In a forked child, where their threads are not."""
        self._loop.orphan()  # and its workers before

    def close(self) -> None:
        """Stop the threads, and give everything back, the loop's too. May be called again."""
        self._loop.close()  # and its workers before
