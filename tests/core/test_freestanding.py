"""csrc/core is C without a C library: it can go where none is, and no dependency hides in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.source

TESTS = Path(__file__).resolve().parent.parent
CORE = TESTS.parent / "csrc" / "core"
FLAGS = [
    "-std=c11",
    "-O2",
    "-ffreestanding",
    "-nostdlib",
    "-fno-pic",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wshadow",
    "-Werror",
    "-I",
    str(CORE),
]
ALLOWED = {
    "memcpy",
    "memset",
    "memmove",
    "memcmp",
    "_GLOBAL_OFFSET_TABLE_",
    "__stack_chk_fail",
    "__cpu_model",
    "__cpu_indicator_init",
}
"""What a compiler may call of its own accord."""


def run(*command: str) -> str:
    """The output of a command that must succeed; the sanitizers that the tests may run under are
    not its own."""
    own = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, text=True, capture_output=True, env=own)
    assert done.returncode == 0, (
        f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def compile_core(folder: Path, *options: str) -> list[str]:
    """The objects of every source of the core, and of the program that goes with them."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "no C compiler: cc, gcc or clang"
    objects = []
    for source in [*sorted(CORE.glob("*.c")), TESTS / "c" / "freestanding.c"]:
        objects.append(str(folder / f"{source.stem}.o"))
        run(compiler, *FLAGS, *options, "-c", str(source), "-o", objects[-1])
    return [compiler, *objects]


@pytest.fixture(
    scope="module",
    params=[(), ("-DPT_LOWMEM", "-DPT_ATOMICS=0")],
    ids=["standard", "classic"],
)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The compiler and the objects of one way to build the core."""
    return compile_core(tmp_path_factory.mktemp("freestanding"), *request.param)


def test_core_needs_nothing_but_four_memory_functions(compiled: list[str]) -> None:
    """malloc, printf or a socket call would end the port to a machine that has none; so would a
    helper of the compiler's library."""
    _, *objects = compiled
    listed = [line.split() for path in objects[:-1] for line in run("nm", path).splitlines()]
    defined = {fields[-1] for fields in listed if fields[-2] != "U"}
    undefined = {fields[-1] for fields in listed if fields[-2] == "U"}
    assert undefined - defined <= ALLOWED


def test_core_has_no_global_state_but_the_choice_of_crc(compiled: list[str]) -> None:
    """Two nodes in one process must not know of each other."""
    _, *objects = compiled
    written = {
        line.split()[-1]
        for path in objects[:-1]
        for line in run("nm", path).splitlines()
        if line.split()[-2] in "bBdDC"
    }
    assert {name for name in written if not name.startswith(".")} == {"crc_chosen"}


def test_core_links_and_works_without_a_c_library(compiled: list[str], tmp_path: Path) -> None:
    """Linked with nothing at all it is whole; started the ordinary way it gives the right bytes."""
    compiler, *objects = compiled
    run(
        compiler,
        "-nostdlib",
        "-nostartfiles",
        "-static",
        "-Wl,-e,main",
        *objects,
        "-o",
        str(tmp_path / "bare"),
    )
    run(compiler, "-no-pie", *objects, "-o", str(tmp_path / "hosted"))
    run(str(tmp_path / "hosted"))
