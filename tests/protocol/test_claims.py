"""What is over for one side of several connections: said, joined, and understood."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk.protocol.claims import OVER_MAX, Claims, Over


class Numbered(NamedTuple):
    """A connection, as far as it counts here."""

    dialled: bool
    number: int


numbers = st.integers(1, 12)
overs = st.builds(
    lambda upto, above: Over(upto, tuple(sorted({upto + 1 + each for each in above}))),
    st.integers(0, 12),
    st.lists(st.integers(1, 8), max_size=OVER_MAX),
)


@given(one=overs, other=overs, number=numbers)
def test_what_two_greetings_say_is_over_is_what_either_says(one, other, number):
    """What is forgotten may cost a connection that lingers; what is made up costs messages."""
    joined = one.joined(other)
    said = number in one or number in other
    assert not (number in joined and not said), "nobody said that"
    if number in joined or not said:
        return
    assert len(joined.above) == OVER_MAX and number < min(joined.above), (
        "only the oldest above are forgotten"
    )


@given(one=overs, other=overs)
def test_what_is_joined_fits_into_a_greeting_and_does_not_depend_on_who_came_first(one, other):
    """It has room for OVER_MAX numbers above, in rising order and none of them doubled."""
    joined = one.joined(other)
    assert joined == other.joined(one)
    assert len(joined.above) <= OVER_MAX and list(joined.above) == sorted(set(joined.above))
    assert all(number > joined.upto + 1 for number in joined.above)


def test_a_connection_without_a_number_is_never_over():
    """An older peertalk gives none: nobody can name it."""
    everything = Claims(Over(100), Over(100))
    assert not everything.covers(Numbered(True, 0)) and everything.covers(Numbered(True, 1))


@pytest.mark.parametrize("dialled", [False, True])
def test_the_other_sides_own_dials_are_those_that_we_accepted(dialled):
    """Both count their dials from 1: whose number it is decides which connection is meant."""
    assert Claims(own=Over(1)).covers(Numbered(dialled, 1)) is not dialled
    assert Claims(others=Over(1)).covers(Numbered(dialled, 1)) is dialled
