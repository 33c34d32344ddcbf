"""One assertion over a table: one test, which names the rows that fail. And which pairs of cases a
run has."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest

SWITCHES = ("PEERTALK_WHOLE", "PEERTALK_SOAK", "PEERTALK_SANITIZER", "PEERTALK_CORE")
WHOLE = any(os.environ.get(switch) for switch in SWITCHES)
"""Whether this run has each pair of cases, and each test on each core and loop. make test has not:
.ci/run sets PEERTALK_WHOLE=1 for one of its runs, and the others of SWITCHES ask for it too."""

IN_THE_LONG_FORM = [
    pytest.mark.soak,
    pytest.mark.skipif(not WHOLE, reason="did not run: a part of make soak and of whole runs"),
]
"""Marks of what takes long, and is in whole runs, of which .ci/run has one for those that need the
source: a build of its own, or a case whose like is in each run."""


def in_the_long_form(test: Any) -> Any:
    """A test that has these marks."""
    for mark in IN_THE_LONG_FORM:
        test = mark(test)
    return test


def crossed(first: Mapping[str, Any], second: Mapping[str, Any], whole: bool = WHOLE) -> list[Any]:
    """Cases for a test of two parameters that do not bear on each other, each given as values by
    their names: all pairs in a whole run, else so many that each value is in one."""
    pairs = list(itertools.product(first.items(), second.items()))
    if not whole:
        count = max(len(first), len(second))
        ones, others = itertools.cycle(first.items()), itertools.cycle(second.items())
        pairs = list(itertools.islice(zip(ones, others, strict=False), count))
    return [pytest.param(one[1], other[1], id=f"{one[0]}-{other[0]}") for one, other in pairs]


def each_row(argument: str, rows: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Call a test with the value of each row. All rows are tried; what the first that fails raises
    is raised, with the names of all that failed.

    Args:
        argument: what the test calls the value of a row; its other arguments are fixtures.
        rows: a value by the name of its row.
    """
    assert rows, "a table without rows proves nothing"

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def over_all(**fixtures: Any) -> None:
            failed: dict[str, BaseException] = {}
            for name, value in rows.items():
                try:
                    test(**fixtures, **{argument: value})
                except (Exception, pytest.fail.Exception) as error:
                    failed[name] = error
            for error in failed.values():
                error.add_note(f"{len(failed)} of {len(rows)} rows failed: {', '.join(failed)}")
                raise error

        signature = inspect.signature(test)
        parameters = [each for name, each in signature.parameters.items() if name != argument]
        over_all.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return over_all

    return decorate
