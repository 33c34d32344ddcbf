"""The tree of the project, as the tests that read it see it: its files, each parsed once."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "peertalk"
CSRC = ROOT / "csrc"

BUILT = {".git", ".venv", "build", "dist", "wheelhouse", "__pycache__", ".hypothesis"}
BUILT |= {".pytest_cache", ".mypy_cache", ".ruff_cache"}
"""What tools leave behind: no part of the tree."""


@cache
def files() -> tuple[Path, ...]:
    """Every file of the tree: what git has or would take, or all of it where there is no git."""
    if (ROOT / ".git").exists():
        try:
            listed = subprocess.run(
                ["git", "ls-files", "-z", "-co", "--exclude-standard"],
                cwd=ROOT,
                capture_output=True,
                check=True,
            ).stdout
            return tuple(
                path
                for name in listed.decode().split("\0")
                if name and (path := ROOT / name).is_file()
            )
        except (OSError, subprocess.CalledProcessError):
            pass  # no git here, or a repository of someone else's
    return tuple(
        path
        for path in sorted(ROOT.rglob("*"))
        if path.is_file()
        and not BUILT.intersection(path.relative_to(ROOT).parts)
        and path.suffix != ".so"
        and ".egg-info" not in str(path)
    )


def below(folder: Path, *suffixes: str) -> list[Path]:
    return [path for path in files() if path.suffix in suffixes and path.is_relative_to(folder)]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), name(path))


@cache
def bare(path: Path) -> str:
    """A C file without its comments, line numbers kept."""
    return re.sub(
        r"/\*.*?\*/", lambda match: "\n" * match[0].count("\n"), path.read_text(), flags=re.S
    )


def complain(places: list[str]) -> None:
    assert not places, "\n" + "\n".join(places)


def module_name(path: Path) -> str:
    """peertalk/protocol/peer.py -> protocol.peer; peertalk/_core/__init__.py -> _core;
    peertalk/__init__.py -> __init__."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    if len(parts) > 1 and parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)
