"""The net under the simulator: what arrives is held against what was accepted."""

from __future__ import annotations

from typing import Any

import pytest

from peertalk import sim
from peertalk._core import values
from peertalk.sim.world import SimulatedWorld, Stream, TappedLink, TappedLoop

pytestmark = pytest.mark.usefixtures("simulator")


class ScriptedLoop:
    """Stands where a core's loop would: says what it is told to."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def turn(self, timeout: float | None, events: list[Any]) -> list[Any]:
        said, self.said = self.said, []
        return said


@pytest.mark.parametrize(
    ("arrived", "fault"),
    [
        ([b"one", b"two"], ""),
        ([b"two", b"one"], "overtook"),
        ([b"one", b"one"], "came twice"),
        ([b"one", b"tvo"], "is none that was accepted"),
        ([b"one", b"two", b"two"], "came twice"),
    ],
)
def test_what_arrives_otherwise_than_it_was_accepted_is_a_fault(arrived, fault):
    """The net under every scenario must itself be able to catch."""
    network = sim.Network()
    try:
        world = SimulatedWorld(network._box, network.host("b"), "mactcp", False, True, False, None)
        loop = ScriptedLoop()
        tapped = TappedLoop(world, loop)
        here, there = ("10.0.0.1", 1), ("10.0.0.2", 2)
        stream = network._box.streams[there, here] = Stream()
        link = TappedLink(
            tapped,
            type("Link", (), {"send": lambda self, payload: 0})(),
            17,
            Stream(),
            (here, there),
        )
        tapped._links[17] = link
        sender = TappedLink(
            tapped, type("Link", (), {"send": lambda self, payload: 0})(), 18, stream, (there, here)
        )
        assert sender.send(b"one") == sender.send(b"two") == 0
        loop.said = [(values.BATCH, 17, 0, arrived)]
        tapped.turn()
        assert network.trace.in_order() == (not fault)
        assert fault in "".join(network.faults())
    finally:
        network.close()
