"""Who gives a connection to whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from peertalk.protocol.balance import steps


def test_nobody_gives_where_there_is_nobody_or_no_need():
    for counts in ((), (7,), (3, 3), (3, 4), (4, 3, 3, 4)):
        assert steps(counts) == []


def test_who_has_the_most_gives_to_who_has_the_fewest():
    assert steps([4, 1]) == [(0, 1)]
    assert steps([0, 5, 1]) == [(1, 0), (1, 0), (1, 2)]


@given(st.lists(st.integers(0, 40), max_size=6))
def test_at_the_end_all_have_about_as_many_and_none_moved_in_vain(counts):
    moves = steps(counts)
    after = list(counts)
    for giver, taker in moves:
        after[giver] -= 1
        after[taker] += 1
    assert sum(after) == sum(counts)
    assert not after or max(after) - min(after) <= 1
    assert {giver for giver, _ in moves}.isdisjoint(taker for _, taker in moves)
