"""C programs of tests/c, linked with the core and the simulated platforms, whose objects are
compiled once for a whole run of the suite: by whichever of its processes needs them first."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kit.tables import IN_THE_LONG_FORM

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
ROOMS = [ROOT / "csrc" / room for room in ("core", "sim", "classic")]
FLAGS = [
    "-std=c11",
    "-D_POSIX_C_SOURCE=200809L",
    "-O0",
    "-g1",
    "-DPT_ASSERTIONS=1",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wshadow",
    "-Wpedantic",
    "-Werror",
    *(f"-I{room}" for room in (*ROOMS, ROOT / "csrc/platform", ROOT / "tests/c")),
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
LOWMEM = ["-DPT_LOWMEM", "-DPT_ATOMICS=0"]
BUILDS = {
    "standard": SANITIZERS,
    "lowmem": LOWMEM,
    "lowmem_sanitized": [*LOWMEM, *SANITIZERS],
}
"""Builds of the core. To compile and run with sanitizers takes three times as long; the lowmem one
differs in limits, and make sanitize, too, has it under them."""


def run(*command: object, cwd: Path | None = None) -> tuple[int, str]:
    """Status and output, without the sanitizer that this process may have been started under, which
    would report what the compiler leaks: the programs bring their own."""
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
        timeout=3_000,
    )
    return done.returncode, done.stdout + done.stderr


class Programs:
    """Programs of one build of the core, with assertions; with its sanitizers where those are.

    Args:
        build: one of BUILDS.
        shared: a folder of all processes of this run.
        own: a folder of this one.
    """

    def __init__(self, build: str, shared: Path, own: Path) -> None:
        if COMPILER is None:
            pytest.skip("did not run: there is no C compiler on PATH")
        self._build, self._own = build, own
        self._objects = shared / f"objects-{build}"
        with open(shared / f"objects-{build}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (self._objects / "flags").exists():
                self._compile_all()
        self._command = [COMPILER, *(self._objects / "flags").read_text().splitlines()]
        self._made: dict[str, Path] = {}

    def _compile_all(self) -> None:
        shutil.rmtree(self._objects, ignore_errors=True)  # of a process that was killed
        self._objects.mkdir()
        probe = self._objects / "probe.c"
        probe.write_text("int main(void) { return 0; }\n")
        found = [COMPILER, *BUILDS[self._build], probe, "-o", probe.with_suffix("")]
        works = run(*found)[0] == 0 and run(probe.with_suffix(""))[0] == 0
        flags = [*FLAGS, *(f for f in BUILDS[self._build] if works or f not in SANITIZERS)]
        sources = [path for room in ROOMS for path in sorted(room.glob("*.c"))]
        status, output = run(COMPILER, *flags, "-c", *sources, cwd=self._objects)
        assert status == 0, output
        (self._objects / "flags").write_text("\n".join(flags))

    def make(self, program: str, *more: object) -> Path:
        """The path of a program of tests/c, built once; more: flags, further sources."""
        if program not in self._made:
            target = self._made[program] = self._own / program
            source, objects = ROOT / f"tests/c/{program}.c", sorted(self._objects.glob("*.o"))
            status, output = run(*self._command, source, *more, *objects, "-o", target)
            assert status == 0, output
        return self._made[program]

    def run(self, program: str, *arguments: str) -> str:
        """What it prints; it must return 0."""
        status, output = run(self.make(program), *arguments)
        assert status == 0, output
        return output


@pytest.fixture(scope="session")
def standard_programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Programs with the standard build of the core."""
    return _programs("standard", tmp_path_factory)


@pytest.fixture(scope="session")
def lowmem_programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Programs with the build for low memory, without atomics."""
    return _programs("lowmem", tmp_path_factory)


@pytest.fixture(scope="session")
def lowmem_sanitized_programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Programs with the build for low memory, with sanitizers."""
    return _programs("lowmem_sanitized", tmp_path_factory)


def _programs(build: str, folders: pytest.TempPathFactory) -> Programs:
    base = folders.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return Programs(build, shared, folders.mktemp(build))


def quick_compiler(folder: Path) -> str:
    """A compiler for the variable CC of a build whose speed is not asked: it takes the options that
    the build gives, and optimises nothing."""
    made = folder / "quick-cc"
    made.write_text(f'#!/bin/sh\nexec {COMPILER} "$@" -O0 -g0\n')
    made.chmod(0o755)
    return str(made)


WAYS_OPTIONS = pytest.mark.parametrize(
    "options",
    [
        pytest.param(["-O3"], marks=IN_THE_LONG_FORM),
        ["-O1", "-DPT_ATOMICS=0", "-DPT_ASSERTIONS=1", *SANITIZERS],
    ],
    ids=["fast", "sanitized"],
)
"""How a program is built that compares all ways of a CRC."""


def run_ways(program: str, folder: Path, options: list[str]) -> str:
    """What such a program prints; it includes the source of the CRC, and links nothing."""
    if COMPILER is None:
        pytest.skip("did not run: there is no C compiler on PATH")
    target = folder / program
    source = ROOT / f"tests/c/{program}.c"
    status, output = run(
        COMPILER, "-std=c11", *options, f"-I{ROOMS[0]}", source, "-o", target, cwd=folder
    )
    assert status == 0, output
    status, output = run(target)
    assert status == 0, output
    return output
