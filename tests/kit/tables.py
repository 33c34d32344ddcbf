"""One assertion over a table: one test, which names the rows that fail."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest


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
