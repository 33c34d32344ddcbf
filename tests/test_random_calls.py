"""Random calls on four nodes: nothing is found, what is found is found again, and each rule can
fail.

The driver and the rules are in tests/calls. `make soak` makes PEERTALK_SOAK_STEPS steps in all
(20 million unless that says otherwise), in PARTS parts for each form, so that several machines or
processes can share them: TEST_ARGS="-k 'uvloop and part3'".
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest
import random_calls
from calls.ledger import FORMS, Finding, Ledger, Life
from random_calls import play

from peertalk import errors
from peertalk._core import load
from peertalk.protocol import events

STEPS = int(os.environ.get("PEERTALK_SOAK_STEPS", "20000000"))
"""Steps of the long form, over all forms and parts."""
PARTS = 5
SEEDS_APART = 1_000_000
"""Seeds of one part begin so far from those of the next."""
ROUND = {"simulator": 20_000, "asyncio": 100_000, "uvloop": 100_000, "lowmem": 100_000}
"""Steps of one run: four nodes, one seed. Real nodes take real seconds to begin and to end."""
SHORT = {"simulator": 4_000, "asyncio": 2_000, "uvloop": 2_000, "lowmem": 2_000}
SOAK = os.environ.get("PEERTALK_SOAK") == "1"


@pytest.fixture(autouse=True)
def needs_the_compiled_cores() -> None:
    """The simulator and the lowmem core are C: with the reference core alone there is nothing to
    test."""
    if os.environ.get("PEERTALK_CORE") or load().name == "reference":
        pytest.skip(
            "did not run: this takes both compiled cores, and PEERTALK_CORE leaves some out"
        )


def forms(*more: Any) -> list[Any]:
    """Each form, with the mark of its event loop."""
    return [
        pytest.param(form, *more, marks=pytest.mark.uvloop if form == "uvloop" else (), id=form)
        for form in FORMS
    ]


@pytest.mark.soak
@pytest.mark.parametrize("part", range(PARTS if SOAK else 1), ids=lambda part: f"part{part}")
@pytest.mark.parametrize("form", forms())
def test_no_random_call_finds_anything(form, part, free_port, capsys):
    """Whatever users do, in whatever order, on whatever network: nothing is lost silently, doubled
    or out of order, every call ends, and everything is given back."""
    steps = STEPS // (len(FORMS) * PARTS) if SOAK else SHORT[form]
    seed, made, arrived, begun = part * SEEDS_APART + 1, 0, 0, time.perf_counter()
    while made < steps:
        result = play(form, seed, min(ROUND[form], steps - made), discovery_port=free_port())
        made, arrived, seed = made + result.steps, arrived + result.arrivals, seed + 1
    took = time.perf_counter() - begun
    with capsys.disabled():
        print(
            f"\n{form} part {part}: {made:,} steps, {arrived:,} messages arrived, seeds to "
            f"{seed - 1:,}, {made / took:,.0f} steps a second"
        )


def test_a_seed_of_the_simulator_repeats_its_run_to_the_last_decision(rounds):
    """What is found once in hours is found again in seconds."""
    steps = rounds(800, 2_000)
    first, second, other = (random_calls.trace_of(seed, steps) for seed in (5, 5, 6))
    assert first == second != other


def test_a_finding_says_how_to_find_it_again():
    """Seed, step and the last calls: without them a finding is an anecdote."""
    with pytest.raises(Finding) as found:
        play("simulator", 7, 2_000, ledger=lambda: Lying("twice"))
    text = str(found.value)
    assert "seed 7" in text and "at step" in text and "the last calls" in text
    assert "send_nowait" in text


# --- each rule can fail ---------------------------------------------------------------------------


class Twisted:
    """A node of which something is not as it is."""

    def __init__(self, node: Any, **twisted: Any) -> None:
        self._node = node
        self._twisted = twisted

    def __getattr__(self, name: str) -> Any:
        twisted = self.__dict__["_twisted"]
        return twisted[name](self._node) if name in twisted else getattr(self._node, name)


class Lying(Ledger):
    """A ledger to whom one thing is told that is not so, as if a node did it: lie says which."""

    def __init__(self, lie: str) -> None:
        super().__init__()
        self.lie = lie
        self.count = 0
        self.kept: list[Any] = []

    def time_to_lie(self, lie: str) -> bool:
        """Now and then, if it is this lie."""
        if lie != self.lie:
            return False
        self.count += 1
        return self.count % 20 == 0

    def begin(self, name: str, node: Any) -> Life:
        if self.lie in TWISTS:
            node = Twisted(node, **TWISTS[self.lie])
        return super().begin(name, node)

    def arrived(self, life: Life, peer: Any, data: bytes) -> None:
        if self.time_to_lie("lost"):
            return
        if self.time_to_lie("changed"):
            data = data[:-1] + bytes((data[-1] ^ 1,))
        if self.time_to_lie("cut short"):
            data = data[:-1]
        if self.time_to_lie("misdirected"):
            life = next(each for each in self.lives if each is not life)
        if self.time_to_lie("late"):
            self.kept.append((life, peer, data))
            return
        super().arrived(life, peer, data)
        if self.time_to_lie("twice"):
            super().arrived(life, peer, data)
        if self.kept and self.kept[0][0] is life and self.kept[0][1] is peer:
            late = self.kept.pop()
            super().arrived(*late)

    def accepted(self, way: Any, number: int, index: int) -> None:
        if self.time_to_lie("refused"):
            self.refused(way, index)
        if self.time_to_lie("number twice"):
            super().accepted(way, number, index)
        super().accepted(way, number, index)

    def told(self, life: Life, event: Any) -> None:
        if isinstance(event, events.Sent):
            if self.time_to_lie("no outcome"):
                return
            if self.time_to_lie("two outcomes"):
                super().told(life, event)
            for lie, outcome in UNTRUE.items():
                if self.time_to_lie(lie):
                    error = errors.ConnectionClosed("planted")
                    event = events.Failed(event.peer, event.first, event.last, outcome, error)
            if self.time_to_lie("recalled as never sent"):
                super().told(life, event)
                error = errors.ConnectionClosed("planted")
                event = events.Failed(
                    event.peer, event.first, event.last, events.Outcome.FAILED, error
                )
            if self.time_to_lie("events missed"):
                event = events.EventsMissed(3)
            if self.time_to_lie("fault of a frame"):
                event = events.LinkFault(("10.0.0.1", 1), event.peer, errors.BadCrc("planted"))
        super().told(life, event)


UNTRUE = {"failed and came": events.Outcome.FAILED, "replaced and came": events.Outcome.REPLACED}


def _stats(**change: int) -> Any:
    def twist(node: Any) -> Any:
        import msgspec

        stats = node.stats()
        changed = {name: getattr(stats, name) + more for name, more in change.items()}
        return lambda: msgspec.structs.replace(stats, **changed)

    return twist


def _memory(node: Any) -> Any:
    from peertalk.protocol.statistics import MemoryUse

    return {"total": MemoryUse(1 << 30, 1 << 30)}


def _never(_: Any) -> Any:
    async def wait_for(who: Any, *, timeout: Any = None) -> Any:
        await asyncio.Event().wait()

    return wait_for


def _raises(_: Any) -> Any:
    async def connect(who: Any, *, timeout: Any = None) -> Any:
        if timeout != 10:  # not while they meet
            raise KeyError("planted")

    return connect


TWISTS: dict[str, dict[str, Any]] = {
    "accepted miscounted": {"stats": _stats(messages_accepted=1)},
    "sent miscounted": {"stats": _stats(messages_sent=1)},
    "inbox too full": {"stats": _stats(inbox_bytes=1 << 30)},
    "too much memory": {"memory": _memory},
    "two connections": {"stats": _stats(links_open=1)},
    "frames bad": {"stats": _stats(bad_frames=1)},
    "call hangs": {"wait_for": _never},
    "foreign error": {"connect": _raises},
}

SAYS = {
    "lost": "is Sent and missing",
    "changed": "that nobody sent, or that were changed",
    "cut short": "that nobody sent",
    "misdirected": "got a message of life",
    "late": "came behind",
    "twice": "came twice",
    "refused": "was not accepted",
    "number twice": "was given twice",
    "no outcome": "without an outcome",
    "two outcomes": "has two outcomes",
    "failed and came": "was told as never sent, and arrived",
    "replaced and came": "was told as never sent, and arrived",
    "recalled as never sent": "has two outcomes",
    "events missed": "missed 3 events",
    "fault of a frame": "was ended for a fault",
    "accepted miscounted": "messages were accepted, stats() says",
    "sent miscounted": "accepted ",
    "inbox too full": "bytes in an inbox",
    "too much memory": "the C side holds",
    "two connections": "links: ",
    "frames bad": "frames were bad",
    "call hangs": "hangs",
    "foreign error": "KeyError('planted')",
}


@pytest.mark.parametrize("lie", SAYS)
def test_each_rule_finds_what_it_is_there_for(lie):
    """A test of 20 million steps that cannot fail is a heater."""
    with pytest.raises(Finding) as found:
        for seed in range(1, 16):
            play("simulator", seed, 1_000, ledger=lambda: Lying(lie))
    assert SAYS[lie] in str(found.value).splitlines()[0], str(found.value)[:2_000]


def test_a_buffer_or_a_descriptor_that_is_not_given_back_is_found(monkeypatch, free_port):
    """A leak of one for each connection ends a program that runs for weeks."""
    monkeypatch.setattr(random_calls.sim.Network, "faults", lambda self: ["planted"])
    with pytest.raises(Finding, match="the network found"):
        play("simulator", 1, 500)
    kept = []

    class Leaking(Ledger):
        def begin(self, name: str, node: Any) -> Life:
            kept.append(os.open(os.devnull, os.O_RDONLY))
            return super().begin(name, node)

    try:
        with pytest.raises(Finding, match="descriptors are left open"):
            play("asyncio", 1, 200, discovery_port=free_port(), ledger=Leaking)
    finally:
        for descriptor in kept:
            os.close(descriptor)
