"""Plant each fault of faults.py in a copy of the tree and see whether the tests that it names fail.

    python tests/mutants/run.py [--today | NAME...]

A fault that they let pass is a survivor: the promise that it breaks is held by nothing. First the
same tests run on the tree as it is, and must pass: a test that fails anyway kills everything. Each
fault of the core is compiled in, as `make debug` does, unless C programs alone are to notice it.
Status 0: none survived. --today: ten of them, others each day, so that all have run after a while.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COPY = ROOT / "build" / "mutants"
A_DAY = 10
PATIENCE = 300
"""Seconds for the tests of one fault; a fault that hangs them is noticed too."""

sys.path.insert(0, str(HERE))
from faults import FAULTS, Fault  # noqa: E402


def chosen(names: list[str], today: bool, day: int) -> list[Fault]:
    """The faults of these names; of a day (its ordinal); or all."""
    if today:
        return [FAULTS[(day * A_DAY + place) % len(FAULTS)] for place in range(A_DAY)]
    unknown = set(names) - {fault.name for fault in FAULTS}
    if unknown:
        sys.exit(f"no such fault: {', '.join(sorted(unknown))}")
    return [fault for fault in FAULTS if not names or fault.name in names]


def make_copy() -> None:
    """The files of the tree, and the modules that were built."""
    shutil.rmtree(COPY, ignore_errors=True)
    left_out = shutil.ignore_patterns("__pycache__", "*.pyc", ".*_cache", "found")
    for name in ("peertalk", "csrc", "tests", "docs", "examples", "bench"):
        shutil.copytree(ROOT / name, COPY / name, ignore=left_out)
    for name in ("pyproject.toml", "build_ffi.py", "README.md", "CHANGELOG.md", "Makefile"):
        shutil.copy(ROOT / name, COPY / name)


def run(*words: str, **environment: str) -> tuple[int, str]:
    """Status and output of a command in the copy; status 1 when it took longer than PATIENCE."""
    environment = {**os.environ, "PYTHONPATH": str(COPY), **environment}
    try:
        done = subprocess.run(
            words,
            cwd=COPY,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return 1, f"no end within {PATIENCE} s"
    return done.returncode, done.stdout


def build() -> None:
    status, output = run(sys.executable, "build_ffi.py", "peertalk/_core", PEERTALK_BUILD="debug")
    if status:
        sys.exit(f"the core does not compile:\n{output[-3000:]}")


def needs_build(fault: Fault) -> bool:
    """C programs compile the core themselves."""
    return fault.path.startswith("csrc/") and not all(
        test.startswith("tests/c/") for test in fault.tests
    )


def run_tests(tests: list[str], *more: str) -> tuple[int, str]:
    options = (
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--timeout=120",
        "--no-header",
        "--tb=line",
        "-rfE",
    )
    return run(sys.executable, "-m", "pytest", *options, *more, *tests)


def try_fault(fault: Fault) -> bool:
    """Whether its tests notice it. The copy is as before when this returns."""
    path = COPY / fault.path
    before = path.read_text()
    path.write_text(before.replace(fault.before, fault.after))
    began = time.monotonic()
    try:
        if needs_build(fault):
            build()
        status, output = run_tests(list(fault.tests))
    finally:
        path.write_text(before)
    # A fixture that fails is no test that fails: the fault does not compile. Below 0: a signal.
    if status > 1 or re.search("^ERROR ", output, re.MULTILINE):
        sys.exit(f"{fault.name}: pytest ended with {status}:\n{output[-3000:]}")
    took = time.monotonic() - began
    print(f"{'noticed' if status else 'SURVIVED':9}{took:6.1f} s  {fault.name}")
    named = re.search(r"^FAILED (\S+)", output, re.MULTILINE)
    by = named.group(1) if named else f"a run that ended with {status}"
    print(f"{'':20}{f'by {by}' if status else f'in {fault.path}: {fault.breaks}'}", flush=True)
    return bool(status)


def main() -> int:
    """Returns the number of survivors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--today", action="store_true")
    options = parser.parse_args()
    faults = chosen(options.names, options.today, datetime.date.today().toordinal())
    make_copy()
    tests = sorted({test for fault in faults for test in fault.tests})
    status, output = run_tests(tests)
    if status:
        sys.exit(f"the tests do not pass on the tree as it is:\n{output[-3000:]}")
    built = False
    survivors = 0
    for fault in sorted(faults, key=needs_build):
        survivors += not try_fault(fault)
        built = built or needs_build(fault)
    print(f"{len(faults)} faults planted, {survivors} survived")
    return survivors


if __name__ == "__main__":
    sys.exit(main())
