"""`peertalk info`."""

from __future__ import annotations

import json

from peertalk import cli
from peertalk._core import CORES
from peertalk.protocol.statistics import NodeStatistics


def test_info_says_where_each_value_came_from(capsys, monkeypatch):
    """ "Why does it listen there?" is answered by the source, not by the value."""
    monkeypatch.setenv("PEERTALK_DISCOVERY_PORT", "7999")
    assert cli.run(["info", "--json", "--name", "ada"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["settings"]["name"] == {"value": "ada", "from": "argument"}
    assert told["settings"]["discovery_port"] == {
        "value": 7999,
        "from": "environment PEERTALK_DISCOVERY_PORT",
    }
    assert told["settings"]["io_budget"]["from"] == "default"


def test_info_tells_of_every_core_with_its_crc_and_limits(capsys):
    """Whoever reports a problem should be able to say what was running."""
    assert cli.run(["info", "--json", "--core", "reference"]) == 0
    cores = json.loads(capsys.readouterr().out)["cores"]
    assert tuple(cores) == CORES
    assert cores["reference"]["in_use"] and cores["reference"]["crc"] == "crc_hqx"
    assert all(
        "missing" in core or core["limits"]["frame_max_payload"] >= 1024 for core in cores.values()
    )


def test_info_for_people_has_the_same_settings(capsys):
    """The table is the same data."""
    assert cli.run(["info", "--bind", "127.0.0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:3] == ["bind", "127.0.0.1", "argument"] for line in lines)


def test_a_narrow_terminal_cuts_nothing(capsys, monkeypatch):
    """At 46 columns the values were a letter each, and the names of the settings ended in the
    middle. What is compiled in must not look like a setting either."""
    monkeypatch.setenv("COLUMNS", "46")
    assert cli.run(["info", "--name", "a-name-of-exactly-31-characters"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert shown["name"] == ["a-name-of-exactly-31-characters", "argument"]
    assert shown["receive_queue_bytes"] == ["4194304", "default"]
    limits = [line for line in lines if "frame_max_payload" in line]
    assert limits and all("compiled in" in line and "no settings" in line for line in limits)


def test_info_tells_whom_a_node_refuses_and_which_counter_says_so(capsys):
    """A peer that nobody sees is looked for in the network first, unless the bound is known."""
    assert cli.run(["info", "--json", "--max-peers", "100"]) == 0
    bounds = json.loads(capsys.readouterr().out)["bounds"]
    assert [(bound["most"], bound["counter"]) for bound in bounds] == [
        (100, "peers_refused"),
        (64, "peers_refused"),
        (100, "links_refused"),
        (164, "links_refused"),
    ]
    assert all(bound["counter"] in NodeStatistics.__struct_fields__ for bound in bounds)
    assert cli.run(["info", "--max-peers", "2000"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "more than 2,000 peers known (max_peers): stats().peers_refused" in told
    assert "more than 64 peers known at one address of another machine" in told
