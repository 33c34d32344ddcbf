"""Which core is taken, and what is said when there is none."""

from __future__ import annotations

from subprocess import CompletedProcess

import pytest
from kit.waiting import GUARD

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


@pytest.fixture
def without(fork_python, monkeypatch):
    """without(*modules, first="", **settings): what a process that has loaded no core loads by
    default, twice, when these compiled modules are not there. first: what it runs before; settings:
    of its environment."""
    monkeypatch.delenv("PEERTALK_CORE", raising=False)

    def told(*modules: str, first: str = "", **settings: str) -> CompletedProcess[str]:
        process = fork_python("-c", PROGRAM.format(modules=modules, first=first), env=settings)
        output, complaint = process.communicate(timeout=GUARD)
        return CompletedProcess(modules, process.returncode, output, complaint)

    return told


PROGRAM = """
import sys
assert not {{"_standard", "_lowmem"}} & {{name.split(".")[-1] for name in sys.modules}}
for name in {modules!r}:
    sys.modules["peertalk._core." + name] = None
{first}
from peertalk import errors
from peertalk._core import load
print(load().name, load().name)
try:
    load("standard")
except errors.NotSupported as error:
    print(error)
"""


def test_without_a_compiled_core_the_reference_runs_and_says_what_is_missing(without):
    """The pure wheel must work as it is, and who asks for speed must hear why there is none."""
    done = without("_standard", "_lowmem")
    assert done.returncode == 0, done.stderr
    names, message = done.stdout.splitlines()
    assert names == "reference reference"
    assert "standard" in message and "built" in message


def test_where_only_lowmem_was_built_lowmem_is_the_default(c_core, without):
    """A build with PT_LOWMEM=1 asked for small limits; falling back to Python would give neither
    them nor speed."""
    done = without("_standard")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "lowmem lowmem"
    assert not done.stderr, "nothing is missing"


BROKEN = """
import importlib.abc, importlib.machinery
class Broken(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name == "peertalk._core._standard":
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        raise ImportError("undefined symbol: of_another_python")
sys.meta_path.insert(0, Broken())
"""


def test_a_compiled_core_that_is_missing_is_said_once(without):
    """A program that silently runs twenty times slower is a fault that nobody finds."""
    done = without("_standard", "_lowmem")
    assert done.stderr.count("RuntimeWarning") == 1, done.stderr
    assert "peertalk runs on its reference core" in done.stderr
    assert "C compiler" in done.stderr and "PEERTALK_CORE=reference" in done.stderr


def test_a_compiled_core_that_cannot_be_loaded_is_said_with_the_reason(c_core, without):
    """An extension for another machine, or one whose file is cut: another core in its place is
    said too."""
    for gone, taken in (((), "lowmem"), (("_lowmem",), "reference")):
        done = without(*gone, first=BROKEN)
        assert done.stdout.splitlines()[0] == f"{taken} {taken}"
        assert done.stderr.count("RuntimeWarning") == 1, done.stderr
        assert f"its {taken} core" in done.stderr and "of_another_python" in done.stderr


def test_who_chose_plain_python_hears_nothing(without):
    """It was asked for: by the environment of a machine without a compiler, or by the program."""
    done = without("_standard", "_lowmem", PEERTALK_CORE="reference")
    assert done.stdout.splitlines()[0] == "reference reference" and not done.stderr
    by_name = "from peertalk._core import load; load('reference'); raise SystemExit"
    done = without("_standard", "_lowmem", first=by_name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
