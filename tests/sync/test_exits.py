"""Processes that end with live workers: tests/exits.py, in short."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kit.waiting import GUARD

pytestmark = [
    pytest.mark.source,
    pytest.mark.unsanitized("processes that end while their threads run leak by design"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="did not run: this system cannot fork"),
]


def test_an_interpreter_ends_at_any_moment_in_silence(rounds, start_python):
    """A thousand in the long form; .ci/run has 50."""
    count = rounds(3, 1000)
    exits = Path(__file__).parents[1] / "exits.py"
    process = start_python(str(exits), str(count))
    out, err = process.communicate(timeout=GUARD + 10 * count)
    assert (process.returncode, err) == (0, ""), out + err
    assert "from the end to the last of the process" in out
