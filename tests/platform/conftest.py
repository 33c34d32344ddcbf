"""What the tests of the simulated worlds share: two nodes on a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from peertalk._core.values import BATCH, CLOSED, FINISHED, SENT
from peertalk._numbers import ERR_WOULD_BLOCK


class Pair:
    """Two nodes with one connection: what a sends, b takes in.

    Args:
        cores: of a and of b; the network belongs to the first.
        platforms: of a and of b.
        values: of the links between them.
    """

    def __init__(
        self,
        cores: tuple[Any, Any],
        platforms: tuple[str, str] = ("mactcp", "mactcp"),
        *,
        seed: int = 1,
        preset: str = "classic",
        depth: int | None = None,
        packing: bool = True,
        window: int | None = None,
        loop: dict[str, Any] | None = None,
        **values: float,
    ) -> None:
        self.sim = cores[0].Simulator(seed, preset=preset)
        self.a = self.sim.add_host("a")
        self.b = self.sim.add_host("b", window=window)
        self.sim.link("a", "b", **values)
        self.loop_a = cores[0].Loop(
            platform=platforms[0], simulator=self.sim, host=self.a, **(loop or {})
        )
        self.loop_b = cores[1].Loop(platform=platforms[1], simulator=self.sim, host=self.b)
        self.listener = self.b.listen(7_354)
        self.socket_a = self.a.dial(self.b.address, 7_354)
        while self.socket_a.outcome() == ERR_WOULD_BLOCK or not self.listener.ready:
            assert self.sim.step()
        accepted = self.listener.accept()
        assert accepted is not None
        self.socket_b = accepted
        self.link_a = self.loop_a.open_link(self.socket_a.fileno(), 1, depth=depth, packing=packing)
        self.link_b = self.loop_b.open_link(self.socket_b.fileno(), 2, depth=depth, packing=packing)
        self.received: list[bytes] = []
        self.sent = self.failed = 0
        self.failed_with: set[int] = set()
        self.closed: dict[str, tuple[int, int]] = {}
        self.finished: set[str] = set()

    def serve(self) -> bool:
        """Turn each loop as long as it has work. Returns whether there was any."""
        worked = False
        for name, loop in (("a", self.loop_a), ("b", self.loop_b)):
            while loop.has_work():
                worked = True
                for kind, _, first, second in loop.turn(0.0):
                    if kind == SENT and second == 0:
                        self.sent += first
                    elif kind == SENT:
                        self.failed += first
                        self.failed_with.add(second)
                    elif kind == BATCH:
                        self.received += second
                    elif kind == FINISHED:
                        self.finished.add(name)
                    elif kind == CLOSED:
                        self.closed[name] = (first, second)
        return worked

    def run(self, until: Callable[[], Any] = lambda: False, seconds: float = 3_600.0) -> bool:
        """Let time pass until something holds, nothing more happens, or so many seconds are over.
        Returns whether it holds."""
        end = self.sim.now_ns + round(seconds * 1e9)
        while True:
            self.serve()
            if until():
                return True
            times = [
                time
                for time in (
                    self.sim.next_event_ns(),
                    self.loop_a.next_deadline_ns(),
                    self.loop_b.next_deadline_ns(),
                )
                if time is not None
            ]
            if not times or min(times) > end:
                return bool(until())
            self.sim.advance(min(times))

    def send_all(self, messages: list[bytes]) -> None:
        """Send, waiting for room; then wait until all is reported."""
        for message in messages:
            while (code := self.link_a.send(message)) < 0:
                assert code == ERR_WOULD_BLOCK, code
                assert self.run(lambda: self.link_a.slots_available), "no slot became free"
        assert self.run(
            lambda: self.sent == len(messages) and len(self.received) == len(messages)
        ), (self.sent, len(self.received), self.closed)

    def violations(self) -> list[str]:
        return [*self.loop_a.violations(), *self.loop_b.violations()]


@pytest.fixture
def pair() -> Iterator[Callable[..., Pair]]:
    """pair(cores, platforms, **arguments): a Pair; closed behind the test, with nothing left and no
    rule broken unless the test took them."""
    made: list[Pair] = []

    def make(*arguments: Any, **named: Any) -> Pair:
        made.append(Pair(*arguments, **named))
        return made[-1]

    yield make
    for each in made:
        assert each.violations() == []
        each.sim.close()
        accounts = [
            each.sim._account.bytes,
            each.loop_a.pool._account.bytes,
            each.loop_b.pool._account.bytes,
        ]
        assert accounts == [0, 0, 0], (
            f"bytes held after the end by the network and by the two loops: {accounts}"
        )


@pytest.fixture(scope="session")
def pair_class() -> type[Pair]:
    """What pair() makes, for tests that make many and close each."""
    return Pair
