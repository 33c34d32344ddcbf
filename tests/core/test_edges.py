"""Watches that tell each change once (EDGE): what a reader or a writer may rely on who tries until
the system says "not now", and looks again when he is told.

Worlds that wait with epoll can tell so; the others, and the reference core, take EDGE for nothing
and tell what lasts again and again.
"""

from __future__ import annotations

import socket

import pytest

from peertalk import errors
from peertalk._core.values import EDGE, HANGUP, READ, READY, WRITE


def tells_once(bench):
    return bench.core.name != "reference" and bench.loop.fd >= 0


def told(bench):
    """What one turn says that does not wait: the masks of each tag."""
    return [(tag, mask) for kind, tag, mask, _ in bench.loop.turn(0.0) if kind == READY]


def until_told(bench, tag=7):
    """The mask that comes first."""
    events = bench.until(lambda events: bench.of(events, READY, tag))
    return bench.of(events, READY, tag)[0][2]


def fill(sock):
    """Write until there is no room."""
    try:
        while True:
            sock.send(bytes(1 << 16))
    except BlockingIOError:
        return


def test_a_change_is_told_once_and_the_next_one_again(bench):
    """Though nobody has read what came: else whoever is not ready to read would be told in each
    turn."""
    ours, theirs = bench.pair()
    watch = bench.loop.watch(ours.fileno(), 7, READ | EDGE)
    assert told(bench) == []
    for _ in range(3):
        theirs.send(b"x")
        assert until_told(bench) == READ
        for _ in range(3):
            assert told(bench) == ([] if tells_once(bench) else [(7, READ)])
    assert ours.recv(10) == b"xxx"
    assert told(bench) == []
    watch.close()


def test_what_was_ready_before_it_was_watched_is_told(bench):
    """Else the first bytes of a connection that was accepted late would never be read."""
    ours, theirs = bench.pair()
    theirs.send(b"x")
    watch = bench.loop.watch(ours.fileno(), 7, READ | WRITE | EDGE)
    assert until_told(bench) == READ | WRITE
    watch.set(0)
    assert told(bench) == []
    watch.set(READ | EDGE)
    assert until_told(bench) == READ
    watch.set(READ)
    for _ in range(3):
        assert until_told(bench) == READ
    watch.close()


@pytest.mark.parametrize("how", ["half", "whole"])
def test_an_end_that_comes_with_the_last_bytes_is_told_with_them(bench, how):
    """A read that finds fewer bytes than it asked for has not met the end: nobody would look again
    where that is not told."""
    ours, theirs = bench.tcp()
    watch = bench.loop.watch(ours.fileno(), 7, READ | EDGE)
    assert told(bench) == []
    theirs.send(b"the last")
    if how == "half":
        theirs.shutdown(socket.SHUT_WR)
    else:
        theirs.close()
    events = bench.until(
        lambda events: (
            any(mask & HANGUP for _, _, mask, _ in bench.of(events, READY, 7))
            if tells_once(bench)
            else bench.of(events, READY, 7)
        )
    )
    assert all(mask & READ for _, _, mask, _ in bench.of(events, READY, 7))
    assert ours.recv(100) == b"the last"
    assert ours.recv(100) == b""
    watch.close()


def test_an_end_that_comes_by_itself_is_told_though_all_was_read(bench):
    """The other side closes while nobody reads."""
    ours, theirs = bench.pair()
    watch = bench.loop.watch(ours.fileno(), 7, READ | WRITE | EDGE)
    assert until_told(bench) == WRITE
    theirs.close()
    mask = until_told(bench)
    while not mask & READ:  # those that tell what lasts: it can still be written
        mask = until_told(bench)
    assert mask & HANGUP or not tells_once(bench)
    assert told(bench) == [] or not tells_once(bench)
    watch.close()


def test_both_directions_are_told_at_once_and_each_for_itself(bench):
    """Room comes back while bytes come in: one registration says both."""
    ours, theirs = bench.pair()
    watch = bench.loop.watch(ours.fileno(), 7, READ | WRITE | EDGE)
    assert until_told(bench) == WRITE
    fill(ours)
    told(bench)
    assert told(bench) == []
    theirs.send(b"x")
    assert until_told(bench) & READ
    bench.read_all(theirs)
    mask = until_told(bench)
    assert mask & WRITE and mask & READ, "the byte was not read yet"
    assert ours.recv(10) == b"x"
    assert told(bench) == ([] if tells_once(bench) else [(7, WRITE)])
    watch.close()


def test_a_broken_connection_is_told_to_both_sides(bench):
    """Whoever waits to write is told by trying."""
    ours, theirs = bench.tcp()
    watch = bench.loop.watch(ours.fileno(), 7, READ | WRITE | EDGE)
    assert until_told(bench) == WRITE
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    theirs.close()
    events = bench.until(
        lambda events: any(mask & READ for _, _, mask, _ in bench.of(events, READY, 7))
    )
    mask = next(mask for _, _, mask, _ in events if mask & READ)
    assert mask & WRITE
    with pytest.raises(ConnectionResetError):
        ours.recv(1)
    watch.close()


def test_no_change_is_lost_where_more_have_changed_than_a_turn_serves(core, make_bench):
    """What is told once must be kept until there is room for it."""
    bench = make_bench(core, "epoll")
    try:
        bench.loop = bench.make_loop(io_budget=2)
        pairs = [bench.pair() for _ in range(7)]
        watches = [
            bench.loop.watch(ours.fileno(), tag, READ | EDGE) for tag, (ours, _) in enumerate(pairs)
        ]
        for _, theirs in pairs:
            theirs.send(b"x")
        seen: list[int] = []
        while len(set(seen)) < len(pairs):
            turn = told(bench)
            assert 0 < len(turn) <= 2
            seen += [tag for tag, _ in turn]
        if tells_once(bench):
            assert sorted(seen) == list(range(len(pairs)))
        assert watches
    finally:
        bench.close()


def test_what_is_no_interest_is_refused_and_changes_nothing(bench):
    """The next number after EDGE."""
    ours, theirs = bench.pair()
    with pytest.raises(errors.InvalidArgument):
        bench.loop.watch(ours.fileno(), 6, 8)
    watch = bench.loop.watch(ours.fileno(), 7, READ | EDGE)
    with pytest.raises(errors.InvalidArgument):
        watch.set(8 | READ)
    theirs.send(b"x")
    assert until_told(bench) == READ
    watch.close()


def test_the_other_threads_wake_is_no_edge(bench):
    """Waking ends the wait and tells of no socket."""
    ours, theirs = bench.pair()
    watch = bench.loop.watch(ours.fileno(), 7, READ | EDGE)
    bench.loop.wake()
    assert bench.loop.turn(None) == []
    theirs.send(b"x")
    assert until_told(bench) == READ
    watch.close()
