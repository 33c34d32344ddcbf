"""`peertalk sim`: incidents from the shell."""

from __future__ import annotations

import json

import pytest

from peertalk.cli import run
from peertalk.cli.outcome import FAILED, FINE, WRONG_USAGE
from peertalk.sim import scenarios

pytestmark = pytest.mark.usefixtures("simulator")

pytest.importorskip("typer")


def test_without_a_name_it_lists_every_scenario(capsys):
    """Nobody knows the names by heart."""
    assert run(["sim", "--json"]) == FINE
    listed = json.loads(capsys.readouterr().out)
    assert set(listed) == {*scenarios.SCENARIOS, "throughput"}


def test_a_scenario_tells_its_figures_its_verdict_and_its_hash(capsys):
    """The hash is what two people compare."""
    assert run(["sim", "full_pipeline", "--seed", "3"]) == FINE
    shown = capsys.readouterr().out
    assert "full_pipeline, seed 3: passed" in shown
    assert scenarios.play("full_pipeline", 3).trace_hash in shown


def test_json_has_the_result_and_on_demand_the_trace(capsys):
    """Programs read it."""
    assert run(["sim", "disconnect_pending", "--json", "--trace"]) == FINE
    told = json.loads(capsys.readouterr().out)
    assert told["scenario"] == "disconnect_pending"
    assert told["problems"] == []
    assert {record["kind"] for record in told["trace"]} >= {"send", "deliver", "ack"}


def test_problems_are_told_and_end_with_exit_code_1(capsys, monkeypatch):
    """A script must notice."""

    async def breaks(stage: scenarios.Stage) -> None:
        stage.expect(False, "the sky fell")

    monkeypatch.setitem(
        scenarios.SCENARIOS, "breaks", scenarios.Scenario("breaks", "it breaks", "none", breaks)
    )
    assert run(["sim", "breaks"]) == FAILED
    told = capsys.readouterr()
    assert "problem: the sky fell" in told.out
    assert "the sky fell" in told.err


def test_a_name_that_is_none_is_wrong_usage_with_the_names(capsys):
    """A typing error must not pass for a scenario."""
    assert run(["sim", "full_pipelin"]) == WRONG_USAGE
    told = capsys.readouterr().err
    assert "full_pipeline" in told
    assert "throughput" in told


@pytest.mark.parametrize(
    "arguments", [["full_pipeline", "--minutes", "3"], ["throughput", "--trace"], ["--trace"]]
)
def test_an_option_that_means_nothing_here_is_wrong_usage(capsys, arguments):
    """An option that is dropped in silence is a wrong answer to somebody's question."""
    assert run(["sim", *arguments]) == WRONG_USAGE
    assert capsys.readouterr().out == ""


def test_throughput_prints_the_matrix(capsys):
    """The shape that programs read: a list of rows."""
    assert run(["sim", "throughput", "--minutes", "0.05", "--json"]) == FINE
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 18
    assert set(rows[0]) == {
        "platform",
        "core",
        "depth",
        "packing",
        "message_bytes",
        "kb_per_s",
        "ratio_to_sync",
    }
    baseline = [row for row in rows if row["depth"] == 1]
    assert all(row["ratio_to_sync"] == 1 for row in baseline)
    assert rows[2]["ratio_to_sync"] == pytest.approx(4, rel=0.02)
