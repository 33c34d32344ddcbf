"""The parties of bench/versus.py and bench/large.py: every message is carried and checked, and what
was not measured meets no bar."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from kit.tables import IN_THE_LONG_FORM

from peertalk import Config

SCRIPTS = Path(__file__).resolve().parent.parent / "bench"
SIZE, COUNT = 300, 4
pytestmark = pytest.mark.source
compiling = [
    pytest.mark.unsanitized("it compiles a program, and a preloaded sanitizer reports on that"),
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or shutil.which("cc") is None,
        reason="did not run: it needs Linux and a C compiler",
    ),
]
LOWMEM = pytest.mark.skipif(
    os.environ.get("PEERTALK_CORE", "lowmem") not in ("", "lowmem"),
    reason="did not run: PEERTALK_CORE leaves the lowmem core out",
)


def module_of(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """A module of bench/, which is no package: its scripts find each other beside themselves."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module(name)


@pytest.fixture
def parties(monkeypatch):
    return module_of(monkeypatch, "parties")


@pytest.fixture
def runs(monkeypatch):
    return module_of(monkeypatch, "rounds")


@pytest.fixture
def large(monkeypatch):
    return module_of(monkeypatch, "large")


# What is checked ----------------------------------------------------------------------------------


def wrong(message: bytes) -> dict[str, bytes]:
    """A message, and what a receiver must notice."""
    return {
        "head": b"\xff" + message[1:],
        "tail": message[:-1] + b"\xff",
        "short": message[:-1],
        "long": message + b"\0",
    }


@pytest.mark.parametrize("fault", ["head", "tail", "short", "long"])
def test_the_receivers_in_python_notice_a_wrong_message(parties, fault):
    """A party that loses or cuts messages would be the fastest of all."""
    right = parties.ring(SIZE)[:COUNT]
    parties.receive_each(SIZE, COUNT, iter(right))
    with pytest.raises(parties.Wrong):
        parties.receive_each(SIZE, COUNT, [*right[:2], wrong(right[2])[fault], right[3]])


@pytest.mark.parametrize("fault", [None, "head", "tail", "short", "long", "missing", "more"])
@pytest.mark.parametrize("address", ["port", "path"])
@compiling[0]
@compiling[1]
def test_the_receiver_in_c_notices_a_wrong_message(runs, parties, fault, address, tmp_path):
    """Likewise the yardstick that peertalk is held against."""
    sent = parties.ring(SIZE)[:COUNT]
    if fault in ("head", "tail", "short", "long"):
        sent[2] = wrong(sent[2])[fault]
    elif fault is not None:
        sent = sent[:-1] if fault == "missing" else [*sent, sent[-1]]
    path = str(tmp_path / "socket")
    where = "0" if address == "port" else path
    process = runs.start([runs.socket_copy(), "receive", str(SIZE), str(COUNT), "1024", where])
    with process, process.stdout as said:
        port = json.loads(said.readline())["port"]
        family = socket.AF_INET if address == "port" else socket.AF_UNIX
        with socket.socket(family) as out:
            out.connect(("127.0.0.1", port) if address == "port" else path)
            out.sendall(b"".join(struct.pack("=I", len(each)) + each for each in sent))
            out.shutdown(socket.SHUT_WR)
            measured = said.readline()
    assert (process.returncode == 0) == (fault is None)
    assert bool(measured) == (fault is None)


@pytest.mark.parametrize("party", ["socket", "socket-unix"])
@compiling[0]
@compiling[1]
def test_plain_sockets_carry_messages_of_every_size(runs, party):
    """Of one piece, of many in a write, and of many writes."""
    for size in (4, 256, 257, 65_535, 3 * 2**20 + 1):
        count = 5 * runs.parties.period(size)
        assert runs.run(party, size, count, runs.Manner())["rate"] > 0


def test_longest_messages_are_numbered_too(parties):
    """Else two of them that changed places would be as good as right."""
    assert len(set(parties.ring(2**21))) >= 4


# What is refused ----------------------------------------------------------------------------------


@LOWMEM
def test_a_party_that_refuses_a_size_says_so_in_its_row(start_python):
    """The others go on: what peertalk cannot carry is a finding, not a failure."""
    process = start_python(
        *(str(SCRIPTS / "versus.py"), "--json", "--rounds", "2", "--seconds", "0.01"),
        *("--parties", "message", "--sizes", "64", "2048"),
        env={"PEERTALK_CORE": "lowmem"},
    )
    output, complaint = process.communicate(timeout=100)
    assert process.returncode == 0, complaint
    rows = json.loads(output)["one_way"]
    assert [(row["party"], row["bytes"]) for row in rows] == [("message", 64), ("message", 2048)]
    assert rows[0]["messages_per_second"] > 0
    assert "1,024" in rows[1]["refused"] and "messages_per_second" not in rows[1]


def test_small_messages_are_timed_behind_large_ones(runs):
    """Each large one is answered with the times of the small ones that passed it."""
    figures = runs.run("passing", 4096, 5, runs.Manner())
    assert figures["total"] == 5
    assert (figures["median_ms"] is None) == (figures["passed"] == 0)


def test_what_a_party_lacks_is_one_sentence(runs, monkeypatch):
    """A peertalk without AF_UNIX, a machine without pyzmq or a C compiler."""
    monkeypatch.setattr(runs, "knows_local", lambda: False)
    assert "`local`" in runs.lacking(["message", "message-local"])
    monkeypatch.setattr(runs.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in runs.lacking(["pyzmq"])
    monkeypatch.setattr(runs, "compiler", lambda: None)
    assert "no cc" in runs.lacking(["socket-unix"])
    assert runs.lacking(["batch", "message"]) is None


@pytest.mark.parametrize("local", [False, True])
def test_nodes_are_told_which_transport_is_measured(parties, local):
    """On a peertalk that chooses AF_UNIX by itself, the parties of TCP must not."""
    options = parties.node_options(64, local)
    fields = Config.__struct_fields__
    assert options.get("local") == (local if "local" in fields else None)
    assert ("max_message" in parties.node_options(2**26, local)) == ("max_message" in fields)


# Bars ---------------------------------------------------------------------------------------------


def rates(*each: float) -> list[dict[str, Any]]:
    """Rounds of one party."""
    return [{"rate": rate} for rate in each]


def test_a_ratio_is_the_median_of_the_ratios_of_rounds(runs):
    """Rounds differ more than parties: 1, 3 and 1, where the medians of both would give 1.5."""
    measured = {("a", 64): rates(100, 600, 300), ("b", 64): rates(100, 200, 300)}
    assert runs.ratio(measured, "a", "b", 64) == 1.0
    assert runs.ratio(measured, "a", "b", 65) is None


@pytest.mark.parametrize(
    ("ours", "met"),
    [
        (rates(200, 150, 150), True),
        (rates(149, 150, 149), False),
        ([{"refused": "message of ..."}], False),
        ([], False),
    ],
)
def test_a_bar_is_met_by_what_was_measured_alone(large, ours, met):
    """What was refused or left out is no success."""
    bar = large.Bar("message-local", "message", 2**20, 1.5)
    measured = {("message-local", 2**20): ours, ("message", 2**20): rates(100, 100, 100)}
    assert bar.judged(measured)["met"] is met


def test_there_is_a_bar_for_each_demand(large):
    """Two at 64 KiB, one at 1 MiB, and AF_UNIX against TCP at every size."""
    bars = large.bars(list(large.SIZES))
    assert [(bar.theirs, bar.bytes, bar.least) for bar in bars[:3]] == [
        ("pyzmq", 65_535, 2.0),
        ("zenoh-shm", 65_535, 0.75),
        ("socket", 2**20, 0.6),
    ]
    assert [bar.bytes for bar in bars[3:]] == list(large.SIZES)
    assert [bar.theirs for bar in large.bars([2**24])] == ["message"]


# One and several ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parties", [["batch"], pytest.param(["sync", "batch"], marks=IN_THE_LONG_FORM)], ids=len
)
def test_one_sends_to_others_and_others_to_one_and_each_message_is_counted(start_python, parties):
    script = str(SCRIPTS / "fan.py")
    sizes = ("--others", "2", "--rounds", "1", "--seconds", "0.0001", "--parties", *parties)
    process = start_python(script, "--json", *sizes)
    output, complaint = process.communicate(timeout=100)
    assert process.returncode == 0, complaint
    rows = json.loads(output)
    assert [(row["way"], row["party"]) for row in rows] == [
        (way, party) for way in ("fan-out", "fan-in") for party in parties
    ]
    assert all(row["messages_per_second"] > 0 and row["ratio_to_pyzmq"] is None for row in rows)


def test_a_message_of_the_wrong_number_or_a_missing_one_is_no_figure(monkeypatch):
    fan = module_of(monkeypatch, "fan")
    parties = module_of(monkeypatch, "parties")
    messages = parties.ring(64)
    tally = fan.Tally(64, len(messages))
    assert not tally.take(messages[:-1]) and tally.take([messages[0]])
    with pytest.raises(parties.Wrong):
        tally.say()
    with pytest.raises(parties.Wrong):
        tally.take([messages[1][:-1] + b"x"])
