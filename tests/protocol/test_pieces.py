"""Messages in fragments: the form that the original expects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk.protocol.pieces import Pieces, piece_size


@given(size=st.integers(249, 4096), maximum=st.sampled_from([72, 100, 255, 256, 257, 512, 4000]))
def test_pieces_join_to_the_message_in_the_form_that_the_original_expects(size, maximum):
    """First and last are marked, offsets have no gap, no piece is longer than the original's slots,
    and nothing but the last is shorter."""
    data = bytes(index * 7 % 251 for index in range(size))
    pieces = Pieces(data, 513, maximum)
    joined, done, count = b"", False, 0
    while not done:
        header, piece = pieces.peek()
        assert pieces.peek() == (header, piece)
        count += 1
        assert header[:3] == (513, size, len(joined))
        joined += piece
        done = pieces.drop()
        assert header.flags == (1 if count == 1 else 0) | (2 if done else 0)
        assert len(piece) == min(maximum - 8, 248) or done
    assert joined == data and count == pieces.count


@pytest.mark.parametrize(
    ("maximum", "size"), [(71, 0), (72, 64), (255, 247), (256, 248), (512, 248), (8192, 248)]
)
def test_a_piece_is_248_bytes_or_what_the_peer_takes(maximum, size):
    """Its queue slots hold 256; less than 64 it does not send either."""
    assert piece_size(maximum) == size
