"""Durations and sizes: every unit says the same, and what means nothing is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk.errors import InvalidArgument
from peertalk.quantities import parse_duration, parse_size


@given(seconds=st.floats(0, 1e6))
def test_a_duration_reads_the_same_in_every_unit(seconds):
    """A quarter of a second is 250ms, and both are one value."""
    for unit, factor in (
        ("us", 1e-6),
        ("ms", 1e-3),
        ("s", 1),
        ("", 1),
        ("m", 60),
        ("min", 60),
        ("h", 3600),
    ):
        assert parse_duration(f"{seconds / factor:.18f}{unit}") == pytest.approx(
            seconds, rel=1e-6, abs=1e-6
        )
    assert parse_duration(seconds) == seconds


@given(size=st.integers(0, 2**40))
def test_a_size_in_whole_units_is_exact(size):
    """Sizes are counted, so no rounding is allowed."""
    for unit, factor in (
        ("", 1),
        ("B", 1),
        ("KB", 1000),
        ("MB", 1000**2),
        ("KiB", 1024),
        ("MiB", 1024**2),
        (" GiB", 1024**3),
    ):
        assert parse_size(f"{size}{unit}") == size * factor
        assert parse_size(f"{size}{unit.lower()}") == size * factor
    assert parse_size(size) == size
    assert parse_size(f"{size // 1000}.{size % 1000:03}KB") == size


@pytest.mark.parametrize("text", ["", "s", "1d", "-1", "1e3", "inf", "nan", "0x10", "1 2"])
def test_text_that_is_no_duration_and_no_size_is_refused(text):
    """Better refused than guessed."""
    for parse in (parse_duration, parse_size):
        with pytest.raises(InvalidArgument):
            parse(text)


@pytest.mark.parametrize(
    "value",
    ["9" * 5000, "9" * 400 + ".5", "9" * 5000 + "MB", -(10**5000), 1.5, b"1", True, None],
    ids=range(8),
)
def test_what_is_no_size_is_refused_in_our_own_words(value):
    """Python itself gives up on so many digits, with an error that names no setting."""
    with pytest.raises(InvalidArgument, match="is no size"):
        parse_size(value)


@pytest.mark.parametrize("value", [-1, -0.5, float("inf"), float("nan"), 10**400])
def test_a_number_that_is_no_duration_is_refused(value):
    """A time-out that is not a number would never end, or always."""
    with pytest.raises(InvalidArgument):
        parse_duration(value)
