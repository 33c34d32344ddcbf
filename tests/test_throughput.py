"""The throughput matrix: within a percent of arithmetic, steady, without loss."""

from __future__ import annotations

import pytest

from peertalk import throughput
from peertalk._core import load


@pytest.fixture(autouse=True)
def needs_the_compiled_core() -> None:
    """The simulator is C: with the reference core alone there is nothing to test."""
    if load().name == "reference":
        pytest.skip(
            "did not run: the simulator is in the compiled cores, and PEERTALK_CORE leaves them out"
        )


WANTED = {  # KB/s: the classic link by arithmetic, message bytes
    ("standard", 4096, 1, False): 87.0,
    ("standard", 4096, 2, False): 174.1,
    ("standard", 4096, 4, False): 348.1,
    ("standard", 1024, 1, False): 31.9,
    ("standard", 1024, 2, False): 63.9,
    ("standard", 1024, 4, False): 127.8,
    ("standard", 1024, 4, True): 291.0,
}


def test_the_matrix_is_what_was_asked_for():
    """Both platforms, standard at two sizes and three depths, packed once, lowmem at two depths."""
    rows = list(throughput.matrix())
    assert len(rows) == 2 * (6 + 1 + 2)
    for platform in ("mactcp", "opentransport"):
        found = {
            (core, size, depth, packing)
            for where, core, depth, packing, size in rows
            if where == platform
        }
        assert found == {*WANTED, ("lowmem", 1024, 1, False), ("lowmem", 1024, 2, False)}


@pytest.mark.soak
@pytest.mark.parametrize("platform", ["mactcp", "opentransport"])
@pytest.mark.parametrize(("core", "size", "depth", "packing"), WANTED)
def test_throughput_is_within_a_percent_of_the_model_steady_and_without_loss(
    platform, core, size, depth, packing, rounds
):
    """The reason for the pipeline, in numbers: 87 KB/s become 348."""
    flow = throughput.measure(platform, core, depth, packing, size, rounds(20, 600))
    wanted = WANTED[core, size, depth, packing]
    assert flow.problems == []
    assert flow.kb_per_s == pytest.approx(wanted, rel=0.01)
    assert throughput.model(depth, size, 3 if packing else 1) == pytest.approx(wanted, rel=0.002)
    assert max(flow.rates) - min(flow.rates) < 0.05 * wanted
    assert len(set(flow.memory[1:])) <= 2 or max(flow.memory) <= 1.05 * flow.memory[1]
    assert flow.lost == 0


@pytest.mark.soak
@pytest.mark.parametrize("platform", ["mactcp", "opentransport"])
def test_two_slots_of_the_lowmem_build_nearly_double_its_throughput(platform, rounds):
    """A Mac SE has two slots of 1,040 bytes for each peer."""
    baseline = throughput.measure(platform, "lowmem", 1, False, 1024, rounds(20, 600))
    pipelined = throughput.measure(platform, "lowmem", 2, False, 1024, rounds(20, 600))
    synchronous = throughput.measure(
        platform, "lowmem", 1, False, 1024, rounds(20, 600), asynchronous=False
    )
    assert baseline.problems == pipelined.problems == synchronous.problems == []
    assert pipelined.kb_per_s >= 1.95 * baseline.kb_per_s
    assert pipelined.kb_per_s >= 1.95 * synchronous.kb_per_s
