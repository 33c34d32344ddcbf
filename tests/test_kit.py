"""The kit itself, where a mistake in it would let a test pass."""

from __future__ import annotations

import inspect

import pytest
from kit.tables import each_row


def test_a_table_names_each_row_that_fails_and_tries_all():
    """A table that stopped at the first row, or hid which, would cost what single cases gave."""
    tried = []

    @each_row("value", {"one": 1, "two": 2, "three": 3, "four": 4})
    def odd(given, value):
        tried.append((given, value))
        if value == 2:
            with pytest.raises(ValueError):
                pass
        assert value % 2

    assert list(inspect.signature(odd).parameters) == ["given"]
    with pytest.raises(pytest.fail.Exception) as caught:
        odd(given="fixture")
    assert caught.value.__notes__ == ["2 of 4 rows failed: two, four"]
    assert tried == [("fixture", value) for value in (1, 2, 3, 4)]


def test_a_table_without_rows_is_no_test():
    """A walk that finds nothing passes."""
    with pytest.raises(AssertionError, match="proves nothing"):
        each_row("value", {})
