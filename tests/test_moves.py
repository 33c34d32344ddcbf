"""Connections that go from worker to worker while their nodes talk: any mix of doors, workers,
messages, full inboxes, ends and moves. What must hold is in kit/moving.py."""

from __future__ import annotations

import asyncio
import os
import random
import threading

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from kit.moving import LARGE, Company
from kit.tables import IN_THE_LONG_FORM

from peertalk.protocol import connections as policy

pytestmark = pytest.mark.threads

SOAK = os.environ.get("PEERTALK_SOAK") == "1"
ONLY = os.environ.get("PEERTALK_CORE")
C_CORES = [core for core in ("standard", "lowmem") if ONLY in (None, "", core)]
SIZES = [6, 60, 60, 900, 1023, 3_000, 4_000, 8_000, 20_000, LARGE]
PLACES = st.integers(0, 7)
KINDS = st.tuples(st.booleans(), st.sampled_from([0, 1, 2, 4]), st.booleans())


class Moving(RuleBasedStateMachine):
    """What can happen."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(policy, "GREETING_TIME", 0.05)
        self.before = threading.active_count()
        self.runner = asyncio.Runner()
        self.company = Company()

    def run(self, step):
        return self.runner.run(step)

    async def later(self, call, *arguments):
        """Begin something on the loop."""
        call(*arguments)
        await asyncio.sleep(0)

    @initialize(core=st.sampled_from(C_CORES), kinds=st.lists(KINDS, min_size=2, max_size=4))
    def begin(self, core, kinds):
        self.run(self.company.begin(core, kinds))

    @rule(place=PLACES, to=PLACES, size=st.sampled_from(SIZES), count=st.sampled_from([1, 5, 60]))
    def send(self, place, to, size, count):
        self.run(self.company.send(place, to, size, count))

    @rule(place=PLACES, size=st.sampled_from([6, 900, 3_000]))
    def broadcast(self, place, size):
        self.run(self.company.broadcast(place, size))

    @rule(size=st.sampled_from([6, 200]), count=st.sampled_from([1, 10]))
    def answer(self, size, count):
        self.run(self.company.answer(size, count))

    @rule(place=PLACES)
    def stop_or_go_on_taking(self, place):
        member = self.company.member(place)
        member.takes = not member.takes

    @rule(place=PLACES, to=PLACES)
    def disconnect(self, place, to):
        self.run(self.later(self.company.disconnect, place, to))

    @rule(place=PLACES, to=PLACES)
    def connect(self, place, to):
        self.run(self.later(self.company.connect, place, to))

    @rule(place=PLACES, worker=PLACES)
    def move(self, place, worker):
        self.run(self.company.move(place, worker))

    @rule(turns=st.sampled_from([1, 5, 30]))
    def serve(self, turns):
        self.run(self.company.serve(turns))

    @invariant()
    def nothing_is_doubled_invented_or_reordered(self):
        self.company.check()

    def teardown(self):
        try:
            self.run(self.company.finish())
            self.company.check()
        finally:
            self.run(self.company.close())
            self.runner.close()
            self.patch.undo()
        assert threading.active_count() == self.before


Moving.TestCase.settings = settings(
    max_examples=200 if SOAK else 6,
    stateful_step_count=50 if SOAK else 30,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
)


class TestMoves(Moving.TestCase):
    """Any mix."""


async def busy(company, kinds, core, moves, over):
    """Everybody sends all the time, until so many connections have moved; each end and each full
    inbox is one of many things."""
    rest = random.Random(moves)
    await company.begin(core, kinds)
    company.press(over)
    while company.moves < moves:
        for _ in range(rest.randrange(6)):
            size, count = rest.choice(SIZES), rest.choice([1, 5, 60])
            await company.send(rest.randrange(8), rest.randrange(8), size, count)
        await company.answer(rest.choice([6, 200]), 3)
        await company.broadcast(rest.randrange(8), 60)
        await company.move(rest.randrange(8), rest.randrange(8))
        if rest.random() < 0.1:
            company.disconnect(rest.randrange(8), rest.randrange(8))
        if rest.random() < 0.3:
            company.connect(rest.randrange(8), rest.randrange(8))
        member = company.member(rest.randrange(8))
        member.takes = rest.random() < 0.7
        await company.serve(rest.choice([0, 1, 5]))
        if rest.random() < 0.1:
            company.check()
    over.set()
    await company.finish()
    company.check()


@pytest.mark.parametrize(
    "core", [*C_CORES[:1], *(pytest.param(each, marks=IN_THE_LONG_FORM) for each in C_CORES[1:])]
)
def test_a_thousand_moves_under_load(core, rounds):
    """A tenth of them in the short form. Other threads send and wait for room, and one asks for
    numbers, all the time."""
    kinds = [(False, 4, True), (True, 2, True), (True, 4, False), (True, 2, False)]
    company, over = Company(), threading.Event()
    asking = threading.Thread(target=company.ask, args=(over,))
    with asyncio.Runner() as runner:
        try:
            asking.start()
            runner.run(busy(company, kinds, core, rounds(100, 1000), over))
        finally:
            over.set()
            asking.join()
            runner.run(company.close())
