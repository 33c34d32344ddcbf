"""The kit itself, where a mistake in it would let a test pass."""

from __future__ import annotations

import inspect

import pytest
from kit.tables import crossed, each_row


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


def test_crossed_cases_have_each_value_and_in_a_whole_run_each_pair():
    """A value that no case has is a test that nobody runs."""
    three, two = {"a": 1, "b": 2, "c": 3}, {"x": 8, "y": 9}
    few = [case.values for case in crossed(three, two, whole=False)]
    assert few == [(1, 8), (2, 9), (3, 8)]
    assert [case.values for case in crossed(two, three, whole=False)] == [(8, 1), (9, 2), (8, 3)]
    whole = crossed(three, two, whole=True)
    assert [case.values for case in whole] == [(1, 8), (1, 9), (2, 8), (2, 9), (3, 8), (3, 9)]
    assert [case.id for case in whole][:2] == ["a-x", "a-y"]
