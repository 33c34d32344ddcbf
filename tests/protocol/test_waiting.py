"""Those who stand in line for a peer: nobody is accepted before who came earlier, nobody is left
standing who has gone, and all hear of the end."""

from __future__ import annotations

import pytest

from peertalk import errors
from peertalk.protocol.waiting import Afar, Lines, Place, Waiters

GONE = errors.ConnectionClosed("gone")


class Standing(Place):
    """Takes as many offers as are named: an error is raised."""

    def __init__(self, *answers, priority=1, reaching=False):
        super().__init__(priority)
        self.answers = list(answers)
        self.reaching = reaching
        self.told = None

    def offer(self):
        assert self.joined, "nobody is asked who has left"
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def fail(self, error):
        assert not self.joined
        self.told = error


def line_of(*places):
    lines = Lines()
    for place in places:
        lines.join(place)
    return lines


def serve(lines, priority=1, may=lambda: True):
    return lines.serve(priority, may, "bob")


def test_who_came_first_is_accepted_first_and_who_has_no_room_holds_up_those_behind():
    """A short message that slips past a long one has overtaken."""
    first, second, third = Standing(True), Standing(False, True), Standing(True)
    lines = line_of(first, second, third)
    assert not serve(lines) and list(lines.get(1)) == [second, third]
    assert not first.joined and second.joined
    assert serve(lines) and not lines[1], "whoever serves still has to open the short road"


def test_classes_have_lines_of_their_own():
    """A critical message does not wait behind a thousand low ones."""
    low, high = Standing(True, priority=0), Standing(True, priority=2)
    lines = line_of(low, high)
    assert serve(lines, 2) and lines and low.joined and not high.joined
    assert serve(lines, 3), "nobody stands there"


def test_nobody_is_offered_anything_while_nothing_may_be_accepted():
    """The connection may end with what the one before was accepted for."""
    first, second = Standing(True), Standing()
    lines, open_for = line_of(first, second), [True, False]
    assert not serve(lines, may=lambda: open_for.pop(0)) and list(lines.get(1)) == [second]


@pytest.mark.parametrize("error", [errors.MessageTooLarge("long"), ValueError("odd")])
def test_who_cannot_be_accepted_leaves_and_hears_why_in_our_words(error):
    """One message that can never go must not hold up all others, nor end a turn."""
    first, second = Standing(error), Standing(True)
    lines = line_of(first, second)
    assert serve(lines) and not second.joined
    assert isinstance(first.told, errors.PeerTalkError)
    assert first.told is error or "peer 'bob' could not be accepted: ValueError" in str(first.told)


def test_an_interrupt_leaves_everybody_where_they_are():
    """What a signal handler raises is no answer of who stands there."""
    first = Standing(KeyboardInterrupt(), True)
    lines = line_of(first)
    with pytest.raises(KeyboardInterrupt):
        serve(lines)
    assert first.joined and serve(lines)


def test_who_leaves_is_gone_once_and_the_others_keep_their_order():
    """A cancelled send must not be sent after all."""
    first, second, third = Standing(True), Standing(), Standing(True)
    lines = line_of(first, second, third)
    assert lines.leave(second) and not lines.leave(second)
    assert list(lines.get(1)) == [first, third] and serve(lines)
    assert not lines.leave(third), "accepted"


def test_the_end_of_a_connection_is_told_to_all_but_those_who_wait_for_another():
    """Who waits for a connection that is being opened has asked for that one."""
    first, second = Standing(), Standing(priority=3)
    waits = Standing(reaching=True)
    lines = line_of(first, waits, second)
    lines.fail(GONE)
    assert first.told is GONE and second.told is GONE and waits.told is None
    assert list(lines.get(1)) == [waits] and not lines.get(3) and lines


def test_who_leaves_because_another_has_failed_is_not_told():
    """The first to hear may take the others along."""
    lines = Lines()

    class Leader(Standing):
        def fail(self, error):
            super().fail(error)
            lines.leave(last)

    leader, last = Leader(), Standing(reaching=True)
    lines.join(leader)
    lines.join(last)
    lines.fail(GONE)
    assert not any(lines.values()) and last.told is None and leader.told is GONE


def test_what_other_threads_left_is_taken_by_class_and_in_order_as_far_as_there_is_room():
    afar, taken, failed = Afar(), [], []
    for number, priority in enumerate((1, 0, 1, 3)):
        assert afar.leave(b"%d" % number, False, priority, None, 2, 100)
    assert not afar.leave(b"no room", False, 1, None, 2, 100) and len(afar) == 4

    def accept(payload, no_delay, priority, key):
        if payload == b"0":
            raise GONE
        return 0 if payload == b"2" else taken.append((payload, priority)) or 1

    afar.take(accept, failed.append, lambda: len(taken))
    assert (taken, failed, len(afar)) == ([(b"3", 3), (b"1", 0)], [GONE], 1)
    afar.take(lambda *message: taken.append(message) or 1, failed.append, lambda: len(taken))
    assert taken[2:] == [(b"2", False, 1, None)] and not afar


@pytest.mark.parametrize("is_accepted", [True, False])
def test_what_is_accepted_when_a_signal_strikes_is_not_taken_again(is_accepted):
    """It was sent twice."""
    afar, taken = Afar(), []
    afar.leave(b"one", False, 1, None, 2, 100)

    def struck(*message):
        if is_accepted:
            taken.append(message)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        afar.take(struck, lambda error: None, lambda: len(taken))
    assert len(afar) == 1 - is_accepted


def test_what_other_threads_left_has_a_bound_in_bytes_for_long_messages():
    afar = Afar()
    assert all(afar.leave(bytes(9000), True, 1, "key", 9, 20_000) for _ in range(3))
    assert not afar.leave(bytes(9000), True, 1, "key", 9, 20_000)
    assert afar.leave(bytes(8192), True, 1, "key", 9, 20_000) and len(afar) == 4


def test_who_joins_while_nobody_stands_there_is_the_first():
    """What was taken for the first may be given to no other."""
    waiters, woken = Waiters(), []
    one, two = (lambda name=name: bool(woken.append(name) or True) for name in ("one", "two"))
    assert waiters.join(one) and not waiters.join(two)
    waiters.wake(2)
    assert woken == ["one", "two"] and waiters.join(two)
