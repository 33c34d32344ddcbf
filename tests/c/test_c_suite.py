"""The core's C tests on this machine, as make vintage runs them on others: every test_*.c, standard
and lowmem, with sanitizers where they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.source

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
PROGRAMS = sorted(path.stem for path in HERE.glob("test_*.c"))
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
FLAGS = [
    "-std=c11",
    "-O0",
    "-g",
    "-DPT_ASSERTIONS=1",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wshadow",
    "-Wpedantic",
    "-Werror",
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
BUILDS = {"standard": [], "lowmem": ["-DPT_LOWMEM", "-DPT_ATOMICS=0"]}


def run(*command, cwd=None):
    """Status and output, without the sanitizer that this process may have been started under."""
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in ("LD_PRELOAD", "ASAN_OPTIONS")
    }
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=own,
        text=True,
        capture_output=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module", params=BUILDS)
def compiled(request, tmp_path_factory):
    """A folder with the objects of the core and the golden vectors as tables, and the command that
    builds a program there."""
    if COMPILER is None:
        pytest.skip("did not run: there is no C compiler on PATH")
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "probe.c").write_text("int main(void) { return 0; }\n")
    sanitizers = (
        SANITIZERS
        if run(COMPILER, *SANITIZERS, "probe.c", "-o", "probe", cwd=folder)[0] == 0
        and run(folder / "probe")[0] == 0
        else []
    )
    rooms = [CSRC / room for room in ("core", "sim", "classic")]
    portable = [path for room in rooms for path in sorted(room.glob("*.c"))]
    includes = [f"-I{path}" for path in (*rooms, HERE, folder)]
    command = [COMPILER, *FLAGS, *BUILDS[request.param], *sanitizers, *includes]
    assert run(sys.executable, HERE / "make_vectors.py", folder) == (0, "")
    assert run(*command, "-c", *portable, cwd=folder) == (0, "")
    return folder, command, [f"{path.stem}.o" for path in portable]


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_core_passes_its_c_tests(compiled, program):
    """They run where no Python does, so they must be right here, where a debugger and sanitizers
    are at hand."""
    folder, command, objects = compiled
    assert run(*command, HERE / f"{program}.c", *objects, "-o", program, cwd=folder) == (0, "")
    status, output = run(folder / program)
    assert status == 0 and " 0 failed" in output, output
