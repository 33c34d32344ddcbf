"""The faults that `make mutants` plants: each can still be planted, and names tests that exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.source

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "mutants"))
import faults  # noqa: E402
import run  # noqa: E402


def test_each_fault_has_a_name_of_its_own_and_there_are_forty():
    names = [fault.name for fault in faults.FAULTS]
    assert len(set(names)) == len(names) >= 40


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_a_fault_stands_in_one_place_and_changes_the_program(fault):
    """A fault whose line has gone would be planted nowhere, and its tests would pass: it would be
    taken for a survivor, or for noticed when the file no longer compiles."""
    text = (ROOT / fault.path).read_text()
    assert text.count(fault.before) == 1, f"{fault.name}: its line in {fault.path} has changed"
    changed = text.replace(fault.before, fault.after)
    if fault.path.endswith(".py"):
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))
    else:
        assert "".join(changed.split()) != "".join(text.split())


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_the_tests_of_a_fault_exist(fault):
    for test in fault.tests:
        path, *names = test.partition("[")[0].split("::")
        text = (ROOT / path).read_text()
        for name in names:
            assert re.search(rf"\b{name}\b", text) or name == "runTest", test


def test_all_have_run_after_some_days():
    days = range(len(faults.FAULTS))
    assert all(len(set(run.chosen([], True, day))) == run.A_DAY for day in days)
    assert {fault for day in days for fault in run.chosen([], True, day)} == set(faults.FAULTS)


def test_an_unknown_fault_is_refused():
    done = subprocess.run(
        [sys.executable, ROOT / "tests/mutants/run.py", "nosuch"], text=True, capture_output=True
    )
    assert done.returncode == 1 and "no such fault: nosuch" in done.stderr
