"""`peertalk bench`: how it prints what peertalk.bench measures."""

from __future__ import annotations

import json

from peertalk import bench, cli

ROWS = [bench.Row("crc", 64, 50.0, 400.0), bench.Row("whole", 4096, 1000.0, 20_000.0)]


def test_json_is_a_list_with_the_five_fields(capsys, monkeypatch):
    """Others compare machines and versions by it."""
    monkeypatch.setattr("peertalk.cli.bench.measure", lambda effort: iter(ROWS))
    assert cli.run(["bench", "--json", "--quick"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"stage": "crc", "bytes": 64, "c_ns": 50.0, "reference_ns": 400.0, "ratio": 8.0},
        {"stage": "whole", "bytes": 4096, "c_ns": 1000.0, "reference_ns": 20_000.0, "ratio": 20.0},
    ]


def test_the_table_names_the_crc_that_it_beats(capsys, monkeypatch):
    """A ratio against an unnamed, weak opponent is worth nothing."""
    monkeypatch.setattr("peertalk.cli.bench.measure", lambda effort: iter(ROWS))
    assert cli.run(["bench", "--quick"]) == 0
    assert "crc_hqx over translated bytes" in capsys.readouterr().out
