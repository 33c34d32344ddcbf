"""The throughput matrix: within a percent of arithmetic, steady, without loss."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kit.tables import crossed

from peertalk import sim
from peertalk.sim import throughput

pytestmark = pytest.mark.usefixtures("simulator")


WANTED = {  # KB/s: the classic link by arithmetic, message bytes
    ("standard", 4096, 1, False): 87.0,
    ("standard", 4096, 2, False): 174.1,
    ("standard", 4096, 4, False): 348.1,
    ("standard", 1024, 1, False): 31.9,
    ("standard", 1024, 2, False): 63.9,
    ("standard", 1024, 4, False): 127.8,
    ("standard", 1024, 4, True): 291.0,
}
PLATFORMS = {"mactcp": "mactcp", "opentransport": "opentransport"}
ROWS = {"-".join(map(str, row)): row for row in WANTED}
LOSSES = {"0.01": 0.01, "0.03": 0.03, "0.05": 0.05}


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


@pytest.mark.parametrize(("platform", "row"), crossed(PLATFORMS, ROWS))
def test_throughput_is_within_a_percent_of_the_model_steady_and_without_loss(platform, row, rounds):
    """The reason for the pipeline, in numbers: 87 KB/s become 348. Each row on each platform is
    measured in C too: see tests/platform/test_mactcp.py."""
    core, size, depth, packing = row
    seconds = rounds(20 // depth, 600)  # so many, that one message more or less is no percent
    flow = throughput.measure(platform, core, depth, packing, size, seconds)
    wanted = WANTED[row]
    assert flow.problems == []
    assert flow.kb_per_s == pytest.approx(wanted, rel=0.01)
    assert throughput.model(depth, size, 3 if packing else 1) == pytest.approx(wanted, rel=0.002)
    assert max(flow.rates) - min(flow.rates) < 0.05 * wanted
    assert len(set(flow.memory[1:])) <= 2 or max(flow.memory) <= 1.05 * flow.memory[1]
    assert flow.lost == 0, "the classic link loses nothing"


def sent_again(platform: str, depth: int, loss: float, seed: int) -> tuple[int, int, int]:
    """Packets lost and packets on their way there, and bytes sent again, of 1.6 MB in messages of
    4,096 bytes over the classic link with so much loss."""
    count = 400

    async def main(net: sim.Network) -> tuple[int, int, int]:
        options: dict[str, Any] = {
            "platform": platform,
            "core": "standard",
            "discovery": False,
            "link_timeout": 3600.0,
        }
        sender = await net.node("sender", pipeline_depth=depth, packing=False, **options)
        reader = await net.node("reader", **options)
        peer = await sender.connect(reader.address)
        net.link(sender, reader, loss=loss)

        async def take() -> None:
            total = 0
            async for batch in reader.batches():
                total += len(batch.payloads)
                if total == count:
                    return

        taking = asyncio.create_task(take(), name="taking")
        for _ in range(count):
            await peer.send(bytes(4096))
        await taking
        counts = net.counts(sender, reader)
        again = [record.a for record in net.trace.records if record.kind == "retransmit"]
        return counts.lost, counts.packets, sum(again)

    return sim.run(main, seed=seed, preset="classic", limit="24h")


@pytest.mark.parametrize(("platform", "loss"), crossed(PLATFORMS, LOSSES))
def test_four_slots_cause_no_more_loss_and_no_more_sending_again_than_one(platform, loss):
    """Several writes on their way must not be sent again because one of them is lost: the same
    seeds and the same bytes, at depth 1 and 4."""
    runs = {
        depth: [sent_again(platform, depth, loss, seed) for seed in range(2)] for depth in (1, 4)
    }
    lost, packets, again = (
        [sum(run[part] for run in runs[depth]) for depth in (1, 4)] for part in range(3)
    )
    assert min(lost) > 10, "else there is nothing to compare"
    assert lost[1] <= lost[0] and packets[1] <= packets[0]
    assert 0 < again[1] <= again[0]
    assert again[1] < 1.5 * lost[1] * 4108, "what is lost is sent again, and little else"


@pytest.mark.parametrize("platform", ["mactcp", "opentransport"])
def test_two_slots_of_the_lowmem_build_nearly_double_its_throughput(platform, rounds):
    """A Mac SE has two slots of 1,040 bytes for each peer."""
    baseline = throughput.measure(platform, "lowmem", 1, False, 1024, rounds(10, 600))
    pipelined = throughput.measure(platform, "lowmem", 2, False, 1024, rounds(10, 600))
    synchronous = throughput.measure(
        platform, "lowmem", 1, False, 1024, rounds(10, 600), asynchronous=False
    )
    assert baseline.problems == pipelined.problems == synchronous.problems == []
    assert pipelined.kb_per_s >= 1.95 * baseline.kb_per_s
    assert pipelined.kb_per_s >= 1.95 * synchronous.kb_per_s
