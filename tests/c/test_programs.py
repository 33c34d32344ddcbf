"""C programs for what Python cannot reach: the pool under threads of its own, mistakes that
assertions catch, formats that no Python class offers."""

from __future__ import annotations

import functools
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unsanitized(
    "it compiles programs, and a preloaded sanitizer reports what the compiler leaks"
)

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
FLAGS = [
    "-std=c11",
    "-D_POSIX_C_SOURCE=200809L",
    "-O1",
    "-g1",
    "-DPT_ASSERTIONS=1",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wshadow",
    "-Werror",
]
POOL = ("csrc/core/pt_pool.c", "csrc/core/pt_pool_counts.c")


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """build(program, sources, *flags): the path of a program of this folder, compiled once for each
    set of flags; skips where it cannot be linked with these."""
    if COMPILER is None:
        pytest.skip("did not run: there is no C compiler on PATH")

    @functools.cache
    def compile_program(program, sources, *flags):
        folder = tmp_path_factory.mktemp(program)
        if any(flag.startswith("-fsanitize") for flag in flags):
            (folder / "probe.c").write_text("int main(void) { return 0; }\n")
            probe = [COMPILER, *flags, str(folder / "probe.c"), "-o", str(folder / "probe")]
            if (
                subprocess.run(probe, capture_output=True).returncode
                or subprocess.run([folder / "probe"], capture_output=True).returncode
            ):
                pytest.skip(f"did not run: {COMPILER} has no {' '.join(flags)} here")
        target = folder / program
        command = [
            COMPILER,
            *FLAGS,
            *flags,
            "-Icsrc/core",
            f"tests/c/{program}.c",
            *sources,
            "-o",
            str(target),
            "-pthread",
        ]
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        return target

    return compile_program


def run(program, *arguments):
    done = subprocess.run([program, *arguments], text=True, capture_output=True, timeout=3_000)
    return done.returncode, done.stdout + done.stderr


DOORS = pytest.mark.parametrize(
    "arguments", [("8",), ("8", "doors")], ids=["one door", "a door each"]
)


@DOORS
def test_eight_threads_never_borrow_the_same_buffer(build, rounds, arguments):
    """A lock-free stack without its tag loses this fight within a second: a buffer then has two
    borrowers."""
    program = build("pool_threads", POOL)
    assert run(program, str(rounds(60_000, 20_000_000)), *arguments) == (0, "")


def test_the_head_of_a_free_list_never_shows_a_value_twice(build):
    """What the fight above needs two free processors for."""
    assert run(build("pool_heads", POOL[1:])) == (0, "")


@DOORS
def test_the_pool_has_no_data_race(build, rounds, arguments):
    """ThreadSanitizer sees a missing order between threads even where this processor forgives
    it."""
    program = build("pool_threads", POOL, "-fsanitize=thread")
    assert run(program, str(rounds(3_000, 1_000_000)), *arguments) == (0, "")


def test_the_pool_works_without_atomics_for_one_thread(build):
    """A 68000 has no compare-and-swap: the same code, with plain variables."""
    assert run(build("pool_threads", POOL, "-DPT_ATOMICS=0"), "10000", "1") == (0, "")


MISTAKES = pytest.mark.parametrize("mistake", ["once", "twice", "elsewhere", "foreign", "inside"])


@MISTAKES
def test_a_buffer_returned_wrongly_stops_the_process(build, mistake):
    """Else it would be lent to two borrowers, far from the place of the mistake."""
    status, output = run(build("pool_twice", POOL), mistake)
    stopped = (-signal.SIGILL, -signal.SIGTRAP, -signal.SIGABRT)
    assert status in ((0,) if mistake == "once" else stopped), output


@MISTAKES
def test_without_assertions_a_buffer_returned_wrongly_is_refused(build, mistake):
    """A release build has nobody to stop for: the mistake must stay one, and not become a buffer
    with two borrowers."""
    assert run(build("pool_twice", POOL, "-UPT_ASSERTIONS"), mistake) == (0, "")


def test_each_of_a_million_timers_expires_once_and_at_its_tick(build):
    """A timer for each of a million connections, moved and cancelled among each other, with ticks
    of 2 s up to 30 days ahead; the clock wraps on the way."""
    program = build("wheel_many", ("csrc/core/pt_wheel.c",))
    assert run(program, "1000000") == (0, "")


def test_the_receiving_machine_takes_any_format(standard_programs):
    """Contracts and batches will come with formats of their own: headers of 1 to 64 bytes, with and
    without trailer."""
    assert standard_programs.run("ingest_formats") == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="did not run: it counts on epoll")
def test_a_system_without_memory_for_a_moment_ends_no_link(standard_programs):
    """ENOBUFS and ENOMEM of a send or a receive mean "not now"; a connection that was ended for one
    lost all that was on its way."""
    standard_programs.make("posix_not_now", ROOT / "csrc/platform/pt_posix_ready.c")
    standard_programs.run("posix_not_now")


def test_a_platform_is_one_folder_and_one_table(standard_programs):
    """The smallest one, a pair of pipes for each link: whoever brings a world must find the core
    as it is, and 200 lines enough."""
    folder = ROOT / "tests/c/pipes"
    lines = sum(len(path.read_text().splitlines()) for path in folder.iterdir())
    standard_programs.make("pipe_world", folder / "pt_pipes.c", f"-I{folder}")
    assert " 0 failed" in standard_programs.run("pipe_world")
    assert lines < 200
