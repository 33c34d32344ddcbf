"""The scripted incidents: every one passes under many seeds, is repeatable, and catches the bugs
that it is there for."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kit.tables import in_the_long_form

from peertalk.sim import scenarios

pytestmark = pytest.mark.usefixtures("simulator")

ROOT = Path(__file__).resolve().parents[2]
EDGE_CASES = (
    "connect_disconnect",
    "disconnect_pending",
    "black_hole",
    "memory_pressure",
    "full_pipeline",
    "blocking_sends",
)
INCIDENTS = ("waiting_sends", "slow_reader", "vanishing_peer")
SEEDS = 5_000
"""Of each scenario in the long form, in PARTS parts: TEST_ARGS="-k part3" plays a fifth of them."""
PARTS = 5
SOAK = os.environ.get("PEERTALK_SOAK") == "1"

in_parts = pytest.mark.parametrize(
    "part", range(PARTS if SOAK else 1), ids=lambda part: f"part{part}"
)


def problems_of(name: str, part: int, seeds: int) -> list[str]:
    """What went wrong under the seeds of a part; SEEDS // PARTS in the long form, else `seeds`."""
    count = SEEDS // PARTS if SOAK else seeds
    return [
        f"peertalk sim {name} --seed {seed}: {problem}"
        for seed in range(part * count, (part + 1) * count)
        for problem in scenarios.play(name, seed).problems
    ]


@pytest.mark.soak
@in_parts
@pytest.mark.parametrize("name", EDGE_CASES)
def test_nothing_is_lost_silently_in_an_edge_case(name, part):
    """Rapid connect and disconnect, pending sends, time-outs, no memory, a full pipeline: no crash,
    every send has a result, order holds, all memory is back."""
    failed = problems_of(name, part, 10)
    assert not failed, f"{len(failed)} problems:\n" + "\n".join(failed[:10])


@pytest.mark.soak
@in_parts
@pytest.mark.parametrize("name", [name for name in scenarios.SCENARIOS if name not in EDGE_CASES])
def test_a_scenario_passes(name, part):
    """Bad wires, damage, crossing dials, partitions; and the incidents, which are better after than
    before."""
    failed = problems_of(name, part, 2 if name in INCIDENTS else 4)
    assert not failed, f"{len(failed)} problems:\n" + "\n".join(failed[:10])


@pytest.mark.parametrize("name", [*EDGE_CASES, "rough_wire"])
def test_a_seed_repeats_its_run_to_the_last_decision(name):
    """A problem that is found once is found whenever its seed is played."""
    first, second, other = (
        scenarios.play(name, 11),
        scenarios.play(name, 11),
        scenarios.play(name, 12),
    )
    assert first == second
    assert first.trace_hash != other.trace_hash


IN_ANY_PROCESS = """
import gc, itertools, logging, random, sys, time
time.monotonic = itertools.count(0.0, float(sys.argv[1])).__next__  # a machine that is slow
chance = random.Random(int(sys.argv[1]))
heap = [bytes(chance.randrange(1, 500)) for _ in range(50_000)]
chance.shuffle(heap)
del heap[::2]  # what is made later lies in the holes, in any order
gc.set_threshold(*((700, 10, 10), (17, 2, 2), (0, 0, 0))[int(sys.argv[1])])
logging.disable(logging.CRITICAL)
import asyncio
from peertalk import sim
from peertalk.sim import scenarios

async def crowd(net):
    # seven who send more than the eighth takes: all their connections are held back and let go
    slow = await net.node("slow", receive_queue_bytes=4096)
    nodes = [await net.node(f"node{number}") for number in range(7)]
    peers = [await node.wait_for("slow", timeout=60) for node in nodes]
    sending = [asyncio.create_task(peer.send_many([bytes(900)] * 60)) for peer in peers]
    alone = await slow.wait_for("node3", timeout=60)
    nodes[0].send_datagram(peers[0], b"beside")
    kept = []
    async for message in alone.messages():
        kept.append(message)
        if len(kept) == 20:
            break
    for number in range(7 * 60 - 20):
        kept.append(await slow.receive(timeout=600))
        if number % 50 == 0:
            await nodes[number // 50 % 7].broadcast(b"all")
    await asyncio.gather(*sending)
    nodes[2].close_nowait()
    await asyncio.sleep(40)
    return net.trace.hash

print("crowd", sim.run(crowd, seed=5))
names = list(scenarios.SCENARIOS)
for name in sorted(names, reverse=sys.argv[1] == "1"):
    heap.append([bytearray(100) for _ in range(int(sys.argv[1]) * 31)])
    print(name, scenarios.play(name, 3).trace_hash)
"""


def test_one_seed_gives_one_hash_in_every_process(start_python, rounds):
    """A scenario of every kind, and a crowd that is held back: neither the seed of Python's hashes,
    nor addresses in memory, nor when garbage is collected, nor how slow the machine is, nor what
    was played before decides."""
    told = []
    for number in range(rounds(1, 0), 3):
        process = start_python(
            *("-c", IN_ANY_PROCESS, str(number)), env={"PYTHONHASHSEED": str(number * 4242)}
        )
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        told.append(sorted(out.splitlines()))
    assert len(told[0]) == len(scenarios.SCENARIOS) + 1
    assert all(each == told[0] for each in told[1:])


# --- planted bugs ---------------------------------------------------------------------------------

DRAINS = (
    "    if (result == PT_OK)\n        result = pt_link_drain(context, link);\n    if (result != "
    "PT_OK)\n        return result;\n"
)
OVERTAKES = """    if (result == PT_OK && link->pipeline.pending_count != 0) {
        /* send at once, past what still waits in the slots */
        uint8_t frame_bytes[PT_SLOT_BUFFER_SIZE];
        pt_frame frame = {.type = type, .sequence = link->pipeline.send_seq,
                          .payload = payload, .payload_len = payload_len};
        int32_t size = (int32_t)pt_frame_encode(&frame, frame_bytes, sizeof frame_bytes);
        if (size > 0 &&
            context->ops->tcp_send(context, link, frame_bytes, (uint16_t)size) == PT_OK) {
            link->pipeline.send_seq++;
            link->pipeline.accepted++;
            link->pipeline.reported++;
            link->sent_count++;
            pt_context_join(context, link, PT_LINE_DIRTY);
            return PT_SEND_NEEDS_TURN;
        }
    }
"""
HELD = "        move(slot, PT_SLOT_STEP_CLOSE);\n"
FREES = '        if (PLANTED("slot freed in flight"))\n            slot->state = PT_SLOT_FREE;\n'
COUNTS = "    *message_count = slot->message_count;\n"
LOSES = """    if (PLANTED("lost completion") && slot->result == PT_OK && pipeline->head == 1)
        return 0;
"""

PLANTED = {
    "overtaking fallback": (
        "csrc/core/pt_send.c",
        DRAINS,
        '    if (PLANTED("overtaking fallback")) {\n' + OVERTAKES + "    }\n" + DRAINS,
    ),
    "slot freed in flight": (
        "csrc/core/pt_pipeline.c",
        HELD,
        HELD + FREES,
    ),
    "lost completion": ("csrc/core/pt_pipeline.c", COUNTS, LOSES + COUNTS),
}
"""Bug -> (file, what stands there, what is planted): the three that a pipeline like this one is
known for. PLANTED is true in C when the process is told to have that bug."""
ASKS = """#include <stdlib.h>
#include <string.h>
#define PLANTED(bug) (getenv("PT_PLANTED") != NULL && strcmp(getenv("PT_PLANTED"), bug) == 0)
"""
PLAY = """
import json, sys
from peertalk.sim import scenarios
for name in sys.argv[1:]:
    for seed in range(4):
        found = scenarios.play(name, seed).problems
        if found:
            print(json.dumps([name, seed, found]))
            sys.exit(9)
"""
PLAYED = ("disconnect_pending", "full_pipeline", "blocking_sends", "black_hole", "rough_wire")


@pytest.mark.source
@pytest.mark.unsanitized("builds and runs a core of its own, without the sanitizer")
@in_the_long_form
def test_the_scenarios_catch_a_planted_bug(tmp_path):
    """A simulator that finds nothing proves nothing: a copy of the sources passes, and fails as
    soon as one of its bugs is let out. Its network and its lowmem core are those that were built
    for all tests: the bugs are in the standard one, and to compile takes longest."""
    if shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("did not run: planting a bug takes a C compiler")
    for folder in ("csrc", "peertalk"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    recipe = (ROOT / "build_ffi.py").read_text()
    for there, instead in {'"-O3"': '"-O0"', '[*cores, "_sim"]': '["_standard"]'}.items():
        assert recipe.count(there) == 1
        recipe = recipe.replace(there, instead)
    (tmp_path / "build_ffi.py").write_text(recipe)
    for module in ("_lowmem", "_sim"):
        built = importlib.import_module(f"peertalk._core.{module}")
        shutil.copy(built.__file__, tmp_path / "peertalk" / "_core")
    for name in {name for name, _, _ in PLANTED.values()}:
        (tmp_path / name).write_text(ASKS + (tmp_path / name).read_text())
    for bug, (name, stands, planted) in PLANTED.items():
        text = (tmp_path / name).read_text()
        assert text.count(stands) == 1, (
            f"{name}: {stands!r} is no longer there once: plant the bug {bug!r} anew"
        )
        (tmp_path / name).write_text(text.replace(stands, planted))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PEERTALK_BUILD": "", "PT_LOWMEM": ""}
    environment.pop("PEERTALK_CORE", None)

    def run(*arguments, **more):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**environment, **more},
            capture_output=True,
            text=True,
            timeout=300,
        )

    built = run("build_ffi.py")
    assert built.returncode == 0, built.stderr[-2000:]
    healthy = run("-c", PLAY, *PLAYED)
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr[-2000:]
    for bug in PLANTED:
        done = run("-c", PLAY, *PLAYED, PT_PLANTED=bug)
        # a crash is noticed too
        assert done.returncode == 9 or done.returncode < 0, (
            f"{bug}: not noticed\n{done.stdout}{done.stderr[-2000:]}"
        )
        if done.returncode == 9:
            assert json.loads(done.stdout.splitlines()[-1])[2], bug
