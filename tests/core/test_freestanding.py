"""csrc/core is C without a C library: it can go where none is, and no dependency hides in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from kit.tables import IN_THE_LONG_FORM

pytestmark = pytest.mark.source

TESTS = Path(__file__).resolve().parent.parent
CORE = TESTS.parent / "csrc" / "core"
FLAGS = [
    "-std=c11",
    "-O0",  # no call is optimised away
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


def run(*command: str, cwd: Path | None = None) -> str:
    """The output of a command that must succeed; the sanitizers that the tests may run under are
    not its own."""
    own = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, cwd=cwd, text=True, capture_output=True, env=own)
    assert done.returncode == 0, (
        f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def compile_core(folder: Path, *options: str) -> list[str]:
    """The objects of every source of the core, and of the program that goes with them."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "no C compiler: cc, gcc or clang"
    sources = [*sorted(CORE.glob("*.c")), TESTS / "c" / "freestanding.c"]
    run(compiler, *FLAGS, *options, "-c", *map(str, sources), cwd=folder)
    return [compiler, *(str(folder / f"{source.stem}.o") for source in sources)]


def symbols(objects: list[str]) -> list[tuple[str, str]]:
    """Kind and name of each symbol in these objects, as nm has them."""
    lines = map(str.split, run("nm", *objects).splitlines())
    return [(fields[-2], fields[-1]) for fields in lines if len(fields) > 1]


CLASSIC = ("-DPT_LOWMEM", "-DPT_ATOMICS=0")
"""As on a 68000, where make vintage links the core with nothing at all."""


@pytest.fixture(
    scope="module",
    params=[(), pytest.param(CLASSIC, marks=IN_THE_LONG_FORM)],
    ids=["standard", "classic"],
)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The compiler and the objects of one way to build the core."""
    return compile_core(tmp_path_factory.mktemp("freestanding"), *request.param)


def test_core_needs_nothing_but_four_memory_functions(compiled: list[str]) -> None:
    """malloc, printf or a socket call would end the port to a machine that has none; so would a
    helper of the compiler's library."""
    _, *objects = compiled
    listed = symbols(objects[:-1])
    defined = {name for kind, name in listed if kind != "U"}
    undefined = {name for kind, name in listed if kind == "U"}
    assert undefined and undefined - defined <= ALLOWED


def test_core_has_no_global_state_but_the_choice_of_crc(compiled: list[str]) -> None:
    """Two nodes in one process must not know of each other."""
    _, *objects = compiled
    written = {name for kind, name in symbols(objects[:-1]) if kind in "bBdDC"}
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
