"""The outbox: first in, first out, bounded twice, nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from peertalk.errors import InvalidArgument
from peertalk.protocol.outbox import Outbox

MAX_MESSAGES, MAX_BYTES = 5, 40


class OutboxAgainstAList(RuleBasedStateMachine):
    """A list has no bounds and no cleverness: whatever the outbox does must be what a list does, or a refusal."""

    def __init__(self):
        super().__init__()
        self.outbox = Outbox(MAX_MESSAGES, MAX_BYTES)
        self.model: list[bytes] = []

    @rule(data=st.binary(max_size=60))
    def put(self, data):
        total = sum(map(len, self.model)) + len(data)
        fits = not self.model or (len(self.model) < MAX_MESSAGES and total <= MAX_BYTES)
        assert self.outbox.put(data) == fits
        if fits:
            self.model.append(data)

    @rule(count=st.integers(0, 8))
    def peek(self, count):
        assert self.outbox.peek(count) == self.model[:count]

    @rule(count=st.integers(-1, 8))
    def drop(self, count):
        if 0 <= count <= len(self.model):
            self.outbox.drop(count)
            del self.model[:count]
        else:
            with pytest.raises(InvalidArgument):
                self.outbox.drop(count)

    @precondition(lambda self: self.model)
    @rule()
    def clear(self):
        assert self.outbox.clear() == len(self.model)
        self.model.clear()

    @invariant()
    def counts_agree(self):
        assert len(self.outbox) == len(self.model) <= MAX_MESSAGES == self.outbox.capacity
        assert self.outbox.bytes == sum(map(len, self.model))
        assert self.outbox.bytes <= MAX_BYTES or len(self.model) == 1
        assert self.outbox.peek(MAX_MESSAGES) == self.model
        assert 0 <= self.outbox.pressure <= 100
        if not self.model:
            assert self.outbox.pressure == 0
        if len(self.model) == MAX_MESSAGES or self.outbox.bytes >= MAX_BYTES:
            assert self.outbox.pressure == 100


TestOutboxAgainstAList = OutboxAgainstAList.TestCase


def test_messages_without_bytes_are_bounded_by_their_number():
    """A million empty messages weigh nothing and still fill memory."""
    outbox = Outbox(3, 10)
    assert [outbox.put(b"") for _ in range(4)] == [True, True, True, False]
    assert outbox.pressure == 100


def test_an_outbox_can_be_filled_to_its_last_byte():
    """The bound is inclusive."""
    outbox = Outbox(3, 10)
    assert [outbox.put(bytes(size)) for size in (4, 7, 6, 1)] == [True, False, True, False]
    assert (len(outbox), outbox.bytes, outbox.pressure) == (2, 10, 100)


def test_a_message_longer_than_the_whole_outbox_passes_alone():
    """Otherwise a message that the peer can take could never be sent with a small outbox."""
    outbox = Outbox(3, 10)
    assert outbox.put(bytes(50))
    assert not outbox.put(b"")
    assert outbox.pressure == 100
    outbox.drop(1)
    assert outbox.put(b"x")
    assert not outbox.put(bytes(50))


def test_the_bytes_that_were_put_come_out_themselves():
    """No copy: the outbox holds a reference, and the caller's bytes cannot change."""
    outbox, data = Outbox(1, 1), b"payload"
    outbox.put(data)
    assert outbox.peek(1)[0] is data


@pytest.mark.parametrize("limits", [(0, 1), (1, 0), (-1, 5)])
def test_an_outbox_without_room_cannot_be_made(limits):
    """It would make every send wait for ever."""
    with pytest.raises(InvalidArgument, match="1 or more"):
        Outbox(*limits)
