"""What a link at rest writes at once: the first frame since a turn, when no burst followed the last
one."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk._core.values import CLOSED, DATA, LEFT, NEEDS_TURN, NO_DELAY, PING, SENT, YIELD
from peertalk._numbers import PROMPT_FRAMES, TURN_MAX_MESSAGES


def test_the_first_frame_of_a_link_at_rest_leaves_at_once_and_needs_no_turn(quick):
    """An answer that waited for the end of the tick cost its sender a turn of its own. What has
    left ends no wait and asks for none: the next turn tells."""
    link, raw = quick.link()
    for number in range(3):
        message = b"%d" % number
        assert link.send(message) == LEFT
        assert [frame.payload for frame in quick.frames_in(quick.read_all(raw))] == [message]
        assert quick.loop.next_timeout() != 0.0 and link.pending == 1
        assert quick.loop.turn(0.0) == [(SENT, 1, 1, 0)]
        assert link.pending == 0 and quick.loop.next_timeout() != 0.0


def test_a_wait_goes_on_over_what_has_left_and_ends_with_what_comes(quick):
    """Whoever sends and then waits for the answer is called for the answer alone."""
    link, raw = quick.link()
    assert link.send(b"ask") == LEFT
    raw.send(quick.stream(b"answer"))
    waited = quick.loop.statistics().wait_calls
    events = quick.loop.turn(None)
    assert quick.payloads(events) == [b"answer"] and quick.sent(events, 1) == 1
    assert quick.loop.statistics().wait_calls - waited <= 2


def test_the_second_frame_waits_for_the_turn_and_takes_the_others_along(quick):
    """Packing lives from waiting: of a burst one frame alone is a write of its own."""
    link, raw = quick.link()
    assert link.send(b"first") == LEFT
    quick.read_all(raw)
    assert link.send(b"second") == NEEDS_TURN and link.send(b"third") == 0
    assert quick.loop.next_timeout() == 0.0 and quick.read_all(raw) == b""
    writes = link.statistics().write_calls
    assert quick.sent(quick.settle(), 1) == 3
    assert link.statistics().write_calls == writes + 1


def test_after_a_burst_the_first_waits_too_until_one_comes_alone_again(quick):
    """A sender in bulk would pay for a write more in each tick, and gain nothing."""
    link, raw = quick.link()
    for _ in range(PROMPT_FRAMES + 1):
        link.send(b"burst")
    quick.settle()
    quick.read_all(raw)
    assert link.send(b"behind it") == NEEDS_TURN and quick.read_all(raw) == b""
    quick.settle()
    assert link.send(b"alone") == LEFT


def test_of_many_in_one_call_none_leaves_alone(quick):
    """They are one write."""
    link, raw = quick.link()
    assert link.send_many([b"a", b"b", b"c"]) == (3, NEEDS_TURN)
    assert quick.read_all(raw) == b""
    quick.settle()
    assert len(quick.frames_in(quick.read_all(raw))) == 3 and link.statistics().write_calls == 1
    assert link.send_many([b"alone"]) == (1, LEFT)


def test_whatever_must_not_wait_leaves_at_once_each_time(quick):
    """A program that turns its node itself sends so, and turns no oftener than it is asked to."""
    link, raw = quick.link()
    codes = [link.send_frame(DATA, b"now", NO_DELAY) for _ in range(TURN_MAX_MESSAGES)]
    assert codes == [LEFT] * (TURN_MAX_MESSAGES - 1) + [LEFT | YIELD]
    assert len(quick.frames_in(quick.read_all(raw))) == TURN_MAX_MESSAGES
    assert quick.loop.turn(0.0) == [(SENT, 1, TURN_MAX_MESSAGES, 0)]


def test_a_turn_that_was_asked_for_is_asked_for_still(quick):
    """What leaves at once takes along what waits, and the turn that somebody was promised comes."""
    link, raw = quick.link()
    assert link.send(b"first") == LEFT
    assert link.send(b"waits") == NEEDS_TURN
    assert link.send_frame(PING, b"", NO_DELAY) == 0
    assert len(quick.frames_in(quick.read_all(raw))) == 3
    assert quick.loop.next_timeout() == 0.0 and quick.loop.turn(0.0) == [(SENT, 1, 2, 0)]


def test_what_the_system_does_not_take_at_once_leaves_when_there_is_room(quick):
    """The link is blocked, as it would be after a turn."""
    ours, raw = quick.pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    link = quick.loop.open_link(ours.fileno(), 1)
    sent = 0
    while link.send_frame(DATA, bytes(quick.limit), NO_DELAY) == LEFT:
        sent += 1
    read = b""
    while quick.sent(quick.loop.turn(0.0), 1) or link.pending:
        read += quick.read_all(raw)
    read += quick.read_all(raw)
    assert len(quick.frames_in(read)) == sent + 1
    assert link.send(b"and goes on") == LEFT


def test_a_link_that_breaks_as_a_frame_leaves_is_told_by_a_turn_that_is_asked_for(quick):
    """Nobody would turn for it otherwise, and whoever sent would never hear."""
    link, raw = quick.link()
    raw.close()
    assert link.send(b"to nobody") == NEEDS_TURN
    assert quick.loop.next_timeout() == 0.0
    assert quick.of(quick.settle(), CLOSED)


@pytest.mark.parametrize("shuts", [True, False])
def test_a_link_that_ends_tells_what_had_left_before(quick, shuts):
    """It is sent, whoever ends the link."""
    link, raw = quick.link()
    assert link.send(b"last") == LEFT
    if shuts:
        link.shut()
        raw.shutdown(socket.SHUT_WR)
    else:
        raw.close()
    events = quick.until(lambda seen: quick.of(seen, CLOSED))
    assert quick.sent(events, 1) == 1


@given(steps=st.lists(st.sampled_from(["send", "now", "many", "turn"]), min_size=1, max_size=40))
def test_each_message_leaves_once_in_order_and_is_told_once(make_bench, core, steps):
    """Whatever is sent in whichever way, and whenever a turn comes: and as long as no turn is asked
    for, all has left."""
    bench = make_bench(core, "epoll")
    try:
        link, raw = bench.link()
        number = told = 0
        asked, read = False, b""
        for step in steps:
            fresh = [b"%d" % each for each in range(number, number + 1 + 2 * (step == "many"))]
            if step == "turn":
                told, asked = told + bench.sent(bench.loop.turn(0.0), 1), False
                continue
            if step == "many":
                code = link.send_many(fresh)[1]
            elif step == "now":
                code = link.send_frame(DATA, fresh[0], NO_DELAY)
            else:
                code = link.send(fresh[0])
            number += len(fresh)
            asked = asked or bool(code & NEEDS_TURN)
            assert (code & LEFT == 0) or not asked
            read += bench.read_all(raw)
            if not asked or step == "now":
                assert len(bench.frames_in(read)) == number
            assert (bench.loop.next_timeout() == 0.0) == asked
            assert link.pending == number - told
        told += bench.sent(bench.settle(), 1)
        read += bench.read_all(raw)
        frames = bench.frames_in(read)
        assert [frame.payload for frame in frames] == [b"%d" % each for each in range(number)]
        assert told == number
    finally:
        bench.close()


def test_what_has_left_may_be_told_late_and_then_with_the_turn_that_is_due(quick):
    """A round trip tells nobody of each message: many are one report."""
    quick.loop.tells_late = True
    link, _raw = quick.link()
    for _ in range(3):
        assert link.send(b"x") == LEFT
        assert quick.loop.turn(0.0) == []
        assert link.pending > 0 and quick.loop.next_timeout() != 0.0
    events = quick.until(lambda seen: quick.sent(seen, 1) == 3)
    assert quick.of(events, SENT) == [(SENT, 1, 3, 0)]


def test_what_may_be_told_late_is_told_with_what_is_due_now(quick):
    """One report, in order; also of a link that ends."""
    quick.loop.tells_late = True
    link, raw = quick.link()
    assert link.send(b"first") == LEFT
    link.send(b"second")
    assert quick.loop.turn(0.0) == [(SENT, 1, 2, 0)]
    assert link.send(b"last") == LEFT
    raw.close()
    events = quick.until(lambda seen: quick.of(seen, CLOSED))
    assert quick.of(events, SENT) == [(SENT, 1, 1, 0)]


def test_settling_tells_what_has_left_and_only_once(quick):
    """A link that is closed without a turn has told what it knows."""
    quick.loop.tells_late = True
    link, _raw = quick.link()
    assert link.settle() == 0
    assert link.send(b"left") == LEFT
    assert link.settle() == 1 and link.settle() == 0 and link.pending == 0
    link.send_many([b"waits"] * 2)
    assert link.settle() == 0 and link.pending == 2
    assert quick.sent(quick.settle(), 1) == 2
    link.close()
    assert link.settle() == 0
