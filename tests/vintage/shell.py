"""What the vintage checks share: where things are, how a command is run, and what a failure
says."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "vintage"
CORE = ROOT / "csrc" / "core"
PORTABLE = (CORE, ROOT / "csrc" / "sim", ROOT / "csrc" / "classic")
"""What calls no system: the core, the simulated network, and the classic worlds on it."""
C_TESTS = ROOT / "tests" / "c"
WARNINGS = ("-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wpedantic", "-Werror")
TIMEOUT = 180
"""Seconds for one command: a program that hangs under an emulator must not hang the run."""

APT_RETRIES = ("-oAcquire::Retries=3",)
"""Mirrors hiccup."""


class Failed(Exception):
    """A check that did not hold; the text says what was run and what it said."""


def run(
    *command: str | Path,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> str:
    """The standard output of a command that must succeed."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            text=True,
            capture_output=True,
            timeout=timeout,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(words)}: not done in {timeout:.0f} s") from None
    if done.returncode:
        raise Failed(
            f"{' '.join(words)}: status "
            f"{done.returncode}\n{done.stdout[-6000:]}{done.stderr[-6000:]}"
        )
    return done.stdout


def fresh(*parts: str) -> Path:
    """An empty folder under build/vintage, made anew."""
    folder = BUILD.joinpath(*parts)
    run("rm", "-rf", folder)
    folder.mkdir(parents=True)
    return folder


def stems(sources: Sequence[Path]) -> list[str]:
    """Names of the object files that a compiler makes of these sources."""
    return [f"{source.stem}.o" for source in sources]
