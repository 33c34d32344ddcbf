"""A stream as a machine: which arrows it has, how it is cut, and that every byte is accepted once,
in order, never faster than its pace."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk import errors
from peertalk._numbers import ERR_MESSAGE_TOO_LARGE
from peertalk.protocol.stream import ENDED, STREAM_MAX, Stream, StreamEvent, StreamState, pace

S, E = StreamState, StreamEvent

ARROWS = {
    (S.READY, E.ACCEPTED): S.SENDING,
    (S.READY, E.CANCELLED): S.CANCELLED,
    (S.READY, E.FAILED): S.FAILED,
    (S.SENDING, E.ACCEPTED): S.SENDING,
    (S.SENDING, E.SENT): S.SENDING,
    (S.SENDING, E.COMPLETED): S.COMPLETED,
    (S.SENDING, E.CANCELLED): S.CANCELLED,
    (S.SENDING, E.FAILED): S.FAILED,
}
GONE = errors.ConnectionClosed("gone")


@pytest.mark.parametrize(
    ("state", "event"),
    list(itertools.product(StreamState, StreamEvent)),
    ids=lambda each: each.value,
)
def test_each_state_takes_its_events_and_refuses_all_others_unchanged(state, event):
    """A stream that completes twice, or comes back from the dead, would be told to somebody."""
    stream = Stream(b"x")
    stream.state = state
    if (state, event) in ARROWS:
        stream.advance(event)
        assert stream.state is ARROWS[state, event]
    else:
        with pytest.raises(
            errors.InvalidState, match=f"stream that is {state.value}: '{event.value}'"
        ):
            stream.advance(event)
        assert stream.state is state
    assert stream.ended == (stream.state in ENDED)


@pytest.mark.parametrize(
    ("rtt", "chunk", "depth"),
    [
        (None, 1024, 2),
        (0.0, 4096, 4),
        (0.0499, 4096, 4),
        (0.05, 2048, 3),
        (0.0999, 2048, 3),
        (0.1, 1024, 2),
        (0.1999, 1024, 2),
        (0.2, 512, 1),
        (9.0, 512, 1),
    ],
)
def test_chunk_and_depth_follow_the_round_trip_time_as_in_the_original(rtt, chunk, depth):
    """The table of the protocol, at each of its bounds."""
    assert pace(rtt) == (chunk, depth)


def test_a_stream_has_1_to_65536_bytes():
    """The original refuses both, with these codes."""
    with pytest.raises(errors.InvalidArgument, match="0 bytes"):
        Stream(b"")
    assert Stream(b"x").total == 1 and Stream(bytes(STREAM_MAX)).total == 65_536
    with pytest.raises(
        errors.MessageTooLarge, match=r"65,537 bytes: the limit is 65,536"
    ) as caught:
        Stream(bytes(STREAM_MAX + 1))
    assert caught.value.code == ERR_MESSAGE_TOO_LARGE


@given(st.data())
def test_every_byte_is_accepted_once_in_order_and_at_most_depth_chunks_are_out(data):
    """Whatever the round-trip times, limits, foreign messages and the order of reports."""
    content = data.draw(st.binary(min_size=1, max_size=3000).map(lambda seed: (seed * 3000)[:9000]))
    stream = Stream(content)
    accepted, out, number = b"", [], 0
    while not stream.ended:
        rtt = data.draw(st.sampled_from([None, 0.01, 0.07, 0.15, 1.0]))
        limit = data.draw(st.integers(256, 8192))
        chunk = stream.next_chunk(rtt, limit)
        assert stream.next_chunk(rtt, limit) == chunk and len(chunk) <= min(limit, pace(rtt)[0])
        if chunk:
            assert len(out) < pace(rtt)[1]
            number += data.draw(st.integers(1, 3))  # others' messages between
            stream.accept(number, len(chunk))
            accepted += chunk
            out.append((number, len(chunk)))
            continue
        assert len(out) >= pace(rtt)[1] or accepted == content
        first = data.draw(st.integers(0, len(out) - 1))
        last = data.draw(st.integers(first, len(out) - 1))
        before = stream.sent
        assert stream.report(out[first][0], out[last][0], None)
        assert stream.sent - before == sum(size for _, size in out[first : last + 1])
        del out[first : last + 1]
        stream.settle(stop=False)
        assert stream.ended == (stream.sent == stream.total)
    assert (
        accepted == content
        and stream.state is S.COMPLETED
        and stream.sent == len(content)
        and not stream.next_chunk(None, 8192)
    )


def test_what_is_not_its_own_does_not_move_it():
    """Ranges of outcomes cover everybody's messages."""
    stream = Stream(bytes(3000))
    stream.accept(5, 1024)
    assert (
        not stream.report(1, 4, None)
        and not stream.report(6, 9, GONE)
        and stream.sent == 0
        and stream.state is S.SENDING
    )
    assert stream.report(1, 9, None) and stream.sent == 1024
    assert not stream.report(1, 9, None) and stream.sent == 1024


def test_a_failed_chunk_fails_the_stream_with_its_error_and_nothing_comes_after():
    """Never falsely confirmed: the chunks behind a hole are no stream."""
    stream = Stream(bytes(3000))
    stream.accept(1, 1024)
    stream.accept(2, 1024)
    assert stream.report(2, 2, GONE) and stream.state is S.FAILED and stream.error is GONE
    assert not stream.report(1, 1, None) and stream.sent == 0 and not stream.next_chunk(None, 8192)
    with pytest.raises(errors.InvalidState):
        stream.accept(3, 1)


@pytest.mark.parametrize("sent", [0, 1024, 3000])
def test_a_cancelled_stream_ends_at_once_unless_all_was_sent(sent):
    """What is complete is not cancelled any more; what is not must not go on."""
    stream = Stream(bytes(3000))
    for number, start in enumerate(range(0, sent, 1024)):
        size = min(1024, sent - start)
        stream.accept(number, size)
        stream.report(number, number, None)
    stream.settle(stop=True)
    assert (
        stream.state is (S.COMPLETED if sent == 3000 else S.CANCELLED)
        and stream.sent == sent
        and not stream.next_chunk(None, 8192)
    )
    stream.settle(stop=True)
