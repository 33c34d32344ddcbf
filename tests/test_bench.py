"""What the benchmarks run, not how fast: a figure of work that was not done would be a lie."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from kit.programs import quick_compiler
from kit.tables import in_the_long_form

from peertalk import bench, errors

SCRIPTS = Path(__file__).resolve().parent.parent / "bench"
IDLE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import idle
idle.WARM_UP = 1000
sys.exit(idle.main())
"""
ONCE = bench.Effort(rounds=1, seconds=1e-6)
compiled = pytest.mark.skipif(
    os.environ.get("PEERTALK_CORE", "standard") not in ("", "standard"),
    reason="did not run: PEERTALK_CORE leaves the C core out",
)


@compiled
def test_there_is_a_row_for_each_stage_and_size():
    """The list that `peertalk bench --json` prints is complete, and its ratio is that of its two
    figures."""
    rows = [row.as_json() for row in bench.measure(ONCE)]
    assert [(row["stage"], row["bytes"]) for row in rows] == [
        (stage, size) for stage in bench.STAGES for size in (16, 64, 1024, 4096)
    ]
    for row in rows:
        assert row["c_ns"] > 0 and row["ratio"] == pytest.approx(
            row["reference_ns"] / row["c_ns"], rel=0.02, abs=0.006
        )


@pytest.mark.parametrize("stage", bench.STAGES)
def test_each_stage_can_be_run_again_and_again(core, stage):
    """A stage that leaves something behind would measure itself fuller and fuller."""
    size = min(4096, core.limits.frame_max_payload)
    with ExitStack() as stack:
        work = bench._MAKERS[stage](core, size, stack)
        for _ in range(3):
            work(bench._BURST)


def test_the_whole_stage_moves_every_message(core, monkeypatch):
    """Its receiving side has to see as many as were sent, or ns a message means nothing."""
    seen = []
    real = socket.socketpair
    monkeypatch.setattr(bench.socket, "socketpair", lambda: seen.append(real()) or seen[-1])
    with ExitStack() as stack:
        work = bench._whole(core, 16, stack)
        work(2 * bench._BURST)
        assert not _readable(seen[0][1])


def _readable(end: socket.socket) -> bool:
    try:
        return bool(end.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
    except BlockingIOError:
        return False


def test_a_core_that_was_not_built_is_said_in_one_sentence(monkeypatch):
    """A pure wheel has nothing to compare."""
    monkeypatch.setattr(
        bench,
        "load",
        lambda name: (_ for _ in ()).throw(
            errors.NotSupported(f"the {name} core was not built here")
        ),
    )
    with pytest.raises(errors.NotSupported, match="not built"):
        list(bench.measure(ONCE))


@compiled
@pytest.mark.source
def test_the_c_side_asks_for_no_memory_after_warm_up(start_python):
    """A figure of the performance notes that is exact, so that it can be a test: 0 calls."""
    process = start_python(str(SCRIPTS / "allocations.py"), "--json", "--messages", "5000")
    output, complaint = process.communicate(timeout=50)
    assert process.returncode == 0, complaint + output
    assert [row["calls"] for row in json.loads(output)] == [0] * 15


@compiled
@pytest.mark.source
@pytest.mark.unsanitized("a sanitizer's shadow memory and red zones are counted too")
@pytest.mark.parametrize("kind, kibibytes", [([], 3), (["--streams"], 5)])
def test_an_idle_peer_or_stream_costs_a_few_kibibytes(start_python, kind, kibibytes):
    """A node for a thousand peers must not need a server's memory. So few peers give a coarse
    figure, and a third of the warm-up; the bench by itself takes 1,500, and 2 KiB is the limit
    there; 10,000 streams, and 4 KiB."""
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip(
            "did not run: memory is read from /proc/self/smaps_rollup, which this system has not"
        )
    process = start_python("-c", IDLE, str(SCRIPTS), "--json", "--peers", "150", *kind)
    output, complaint = process.communicate(timeout=50)
    assert output, complaint
    assert json.loads(output)["bytes_per_peer"] <= kibibytes * 1024


@pytest.mark.source
@pytest.mark.unsanitized("it compiles a program, and a preloaded sanitizer reports on the compiler")
@pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None,
    reason="did not run: it needs Linux and a C compiler",
)
@in_the_long_form
def test_two_busy_contexts_hardly_meet_on_the_list_of_their_pool(start_python, tmp_path):
    """Each keeps a few free buffers for itself; else each acquire would wait for the other's
    processor. Who meets whom does not ask how fast the code is."""
    script, quick = str(SCRIPTS / "pool.py"), {"CC": quick_compiler(tmp_path)}
    process = start_python(script, "--json", "--rounds", "100000", env=quick)
    output, complaint = process.communicate(timeout=100)
    assert output, complaint
    figures = json.loads(output)
    assert figures["acquires"] > 1_000
    assert figures["met"] * 100 < figures["acquires"]
    assert len(figures["bare_pair_ns"]) == 4


@pytest.mark.source
@pytest.mark.unsanitized("it compiles a program, and a preloaded sanitizer reports on the compiler")
@pytest.mark.skipif(shutil.which("cc") is None, reason="did not run: it needs a C compiler")
def test_timers_are_measured_from_ten_to_a_million(start_python, tmp_path):
    """How long one takes is for the bench to judge; that all of them were armed and cancelled the
    program checks by itself."""
    script, quick = str(SCRIPTS / "timers.py"), {"CC": quick_compiler(tmp_path)}
    process = start_python(script, "--json", "--rounds", "1000", env=quick)
    output, complaint = process.communicate(timeout=100)
    assert output, complaint
    figures = json.loads(output)
    assert [each["timers"] for each in figures] == [10, 1_000, 100_000, 1_000_000]
    assert all(each["arm_ns"] > 0 and each["cancel_ns"] > 0 for each in figures)
