"""Tokens: who has which, and that none is valid twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk import errors
from peertalk.protocol import orders
from peertalk.protocol.orders import Token, Tokens


@given(st.lists(st.integers(0, 30)))
def test_a_token_is_valid_from_put_to_retire_and_never_again(steps):
    """A step up to 20 retires one of those that are valid, any other one makes a new one."""
    tokens: Tokens[object] = Tokens()
    valid: dict[Token, object] = {}
    ever: set[Token] = set()
    for step in steps:
        if step <= 20 and valid:
            token = list(valid)[step % len(valid)]
            assert tokens.retire(token)
            assert not tokens.retire(token)
            del valid[token]
        else:
            token, who = tokens.next(), object()
            assert tokens.next() == token  # nobody has it yet
            tokens.put(token, who)
            assert token not in ever
            ever.add(token)
            valid[token] = who
        assert {each.tag for each in valid} == set(tokens.by_tag)
        for each in ever:
            if each in valid:
                assert tokens.find(each) is valid[each]
            else:
                with pytest.raises(errors.InvalidState, match="is not registered here"):
                    tokens.find(each)


def test_places_are_used_again_before_new_ones():
    tokens: Tokens[str] = Tokens()
    for name in "abc":
        tokens.put(tokens.next(), name)
    tokens.retire(Token(1, 0))
    assert tokens.next() == Token(1, 1)


def test_tags_fit_32_bits_whatever_the_generation():
    assert Token(orders.PLACES - 1, 2**40 - 1).tag == 2**32 - 1
    assert Token(5, 4_096).tag == Token(5, 0).tag


def test_when_all_places_are_taken_that_is_told(monkeypatch):
    monkeypatch.setattr(orders, "PLACES", 2)
    tokens: Tokens[str] = Tokens()
    for name in "ab":
        tokens.put(tokens.next(), name)
    with pytest.raises(errors.OutOfMemory, match="2 sockets on one loop"):
        tokens.next()
