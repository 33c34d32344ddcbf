"""Which core is taken, and what is said when there is none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from peertalk import errors
from peertalk._core import CORES, load


def test_each_core_says_its_own_name(core):
    """A test that believes to run on one core and runs on another proves nothing."""
    assert load(core.name) is core
    assert core.name in CORES


def test_every_core_has_the_same_surface(core):
    """What works on one must be there on all: the cores are compared with each other."""
    reference = load("reference")
    assert {name for name in dir(reference) if not name.startswith("_")} == {
        name for name in dir(core) if not name.startswith("_")
    }
    assert core.limits._fields == reference.limits._fields


def test_the_environment_chooses_the_core(monkeypatch):
    """PEERTALK_CORE is how an operator changes it without touching a program; an argument of the
    program goes first."""
    monkeypatch.setenv("PEERTALK_CORE", "reference")
    assert load().name == "reference"
    monkeypatch.setenv("PEERTALK_CORE", "fortran")
    assert load("reference").name == "reference"


def test_a_compiled_core_is_taken_before_the_reference(c_core, monkeypatch):
    """Speed is the default, not an option."""
    monkeypatch.delenv("PEERTALK_CORE", raising=False)
    assert load().name in ("standard", "lowmem")


def test_an_unknown_core_is_refused_with_its_origin_and_the_choices(monkeypatch):
    """A misspelt variable in a service file is found by its message only."""
    monkeypatch.setenv("PEERTALK_CORE", "fortran")
    with pytest.raises(
        errors.InvalidArgument, match=r"'fortran'.*PEERTALK_CORE.*'standard', 'lowmem', 'reference'"
    ):
        load()
    with pytest.raises(errors.InvalidArgument, match="'cobol'") as raised:
        load("cobol")
    assert "PEERTALK_CORE" not in str(raised.value)


def without(*modules: str) -> subprocess.CompletedProcess[str]:
    """What a fresh process loads by default when these compiled modules are not there."""
    program = f"""
import sys
for name in {modules!r}:
    sys.modules["peertalk._core." + name] = None
from peertalk import errors
from peertalk._core import load
print(load().name)
try:
    load("standard")
except errors.NotSupported as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment.pop("PEERTALK_CORE", None)
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, text=True, capture_output=True
    )


def test_without_a_compiled_core_the_reference_runs_and_says_what_is_missing():
    """The pure wheel must work as it is, and who asks for speed must hear why there is none."""
    done = without("_standard", "_lowmem")
    assert done.returncode == 0, done.stderr
    name, message = done.stdout.splitlines()
    assert name == "reference"
    assert "standard" in message and "build" in message


def test_where_only_lowmem_was_built_lowmem_is_the_default(c_core):
    """A build with PT_LOWMEM=1 asked for small limits; falling back to Python would give neither
    them nor speed."""
    done = without("_standard")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "lowmem"
