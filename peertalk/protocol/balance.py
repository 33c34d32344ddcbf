"""How connections are shared out evenly: who gives one to whom.

Never: knows what has them, or what it costs to move one; whoever moves them may fail to.
"""

from __future__ import annotations

from collections.abc import Sequence


def steps(counts: Sequence[int]) -> list[tuple[int, int]]:
    """The moves, one after the other, that leave nobody with two more than another: each from the
    place in counts of who gives to that of who takes, always from who has the most to who has the
    fewest, so there are as few as can be.

    Args:
        counts: how many each has.
    """
    left = list(counts)
    moves = []
    while left and max(left) - min(left) > 1:
        giver, taker = left.index(max(left)), left.index(min(left))
        left[giver] -= 1
        left[taker] += 1
        moves.append((giver, taker))
    return moves
