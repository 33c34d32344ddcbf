"""A platform that the package has never seen, tests/c/pipes, from the C file to Python's loop: a
new platform is one C file with its header, and one row. tests/c/pipe_world.c is its test in C."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from kit.programs import quick_compiler
from kit.tables import in_the_long_form
from kit.tree import ROOT

pytestmark = pytest.mark.source

BUILD = """
import build_ffi
build_ffi.make_ffi("_standard", build_ffi.ROOT).compile(tmpdir=".")
"""
USE = """
import os

import peertalk
from peertalk._core import load, values

assert peertalk.__file__.startswith(os.getcwd()), peertalk.__file__
(there, back), core = (os.pipe(), os.pipe()), load("standard")
with_timer, heard, ends = [], [], []
loop = core.Loop(platform="pipes")
pairs = loop._ffi.new("pt_pipe_pair[2]", [(back[0], there[1]), (there[0], back[1])])
links = [
    loop.open_link(int(loop._ffi.cast("intptr_t", pairs + end)), end, depth=2) for end in (0, 1)
]


def turn(timeout=0.0):
    for kind, tag, a, b in loop.turn(timeout):
        if kind == values.BATCH:
            heard.extend((tag, payload) for payload in b)
        elif kind == values.TIMER:
            with_timer.append(tag)
        elif kind != values.SENT:
            ends.append((kind, tag, a))


timer = loop.timer(7)
timer.arm(0.001)
sent = [bytes([number]) * number for number in range(200)]
for payload in sent:
    assert links[0].send(payload) >= 0
    turn()
while not with_timer:
    turn(None)
links[0].shut()
while not ends:
    turn()
links[1].shut()
while len(ends) < 3:
    turn()
assert heard == [(1, payload) for payload in sent]
assert with_timer == [7]
assert ends[0] == (values.FINISHED, 1, 0)
assert sorted(ends[1:]) == [(values.CLOSED, 0, 0), (values.CLOSED, 1, 0)]
for link in links:
    link.close()
assert loop.pool.statistics().bytes == 0, "nothing is left"
loop.close()
"""


@in_the_long_form
def test_a_new_platform_is_one_c_file_and_one_row(tmp_path):
    """Whoever brings a world must find all of the rest as it is: here a copy of the tree gets the
    folder and the row, is built, and its loop carries messages, a timer and an orderly end."""
    for folder in ("peertalk", "csrc"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    recipe = (ROOT / "build_ffi.py").read_text()
    mine = '"platform/pt_posix.h", "platform/pt_pipes.h", '  # where the headers are a list
    (tmp_path / "build_ffi.py").write_text(recipe.replace('"platform/pt_posix.h", ', mine))
    shutil.copytree(ROOT / "tests/c/pipes", tmp_path / "csrc/platform", dirs_exist_ok=True)
    binding = tmp_path / "peertalk/_core/binding.py"
    row = '    "pipes": "pt_pipes_ops",\n'
    binding.write_text(binding.read_text().replace("PLATFORMS = {\n", f"PLATFORMS = {{\n{row}"))
    environment = {
        **os.environ,
        "CC": quick_compiler(tmp_path),
        "PEERTALK_BUILD": "debug",
        "PYTHONPATH": str(tmp_path),
    }
    for program in (BUILD, USE):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
