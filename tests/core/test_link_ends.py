"""How a link ends: shut, reset, hung up, closed, or by a frame that is wrong; what is known then of
what was sent; and what it costs in memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys
import termios
import time
from typing import Any

import pytest
from kit.waiting import GUARD

from peertalk import errors
from peertalk._core.values import CLOSED, DATA, FINISHED, FRAME, NO_DELAY, PING, PONG, READ, SENT
from peertalk._numbers import (
    ERR_CONNECTION_CLOSED,
    ERR_CRC,
    ERR_INVALID_PARAM,
    ERR_MAGIC,
    ERR_MESSAGE_TOO_LARGE,
    ERR_NO_MEMORY,
    ERR_NOT_CONNECTED,
    ERR_TIMEOUT,
    ERR_TRUNCATED,
    ERR_VERSION,
    FRAME_OVERHEAD,
    WIDE_HEADER_SIZE,
)

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="did not run: this is about Linux"
)


# Ends


def test_the_other_side_may_end_its_half_and_still_be_written_to(bench):
    """FINISHED is not CLOSED: what is queued may still leave; then shut ends the link in order."""
    link, raw = bench.link()
    raw.sendall(bench.stream(b"all I have to say"))
    raw.shutdown(socket.SHUT_WR)
    events = bench.until(lambda events: bench.of(events, FINISHED))
    assert bench.payloads(events) == [b"all I have to say"]
    assert bench.of(events, FINISHED) == [(FINISHED, 1, 0, 0)]
    assert bench.settle() == []
    assert link.send(b"still there?") >= 0
    link.shut()
    events = bench.until(lambda events: bench.of(events, CLOSED))
    assert bench.sent(events, 1) == 1
    assert events[-1] == (CLOSED, 1, 0, 0)
    assert bench.frames_in(bench.read_all(raw))[0].payload == b"still there?"


def test_a_shut_link_drains_before_it_ends_its_half(bench):
    """What was accepted before shut arrives, then the end of the stream; reading goes on until the
    other side ends its half."""
    link, raw = bench.link()
    for number in range(5):
        link.send(b"%d" % number)
    link.shut()
    assert link.send(b"too late") == ERR_NOT_CONNECTED
    assert link.send_frame(PING) == ERR_NOT_CONNECTED
    events = bench.settle()
    assert bench.sent(events, 1) == 5
    assert bench.of(events, CLOSED) == []
    data = bench.read_all(raw)
    assert [frame.payload for frame in bench.frames_in(data)] == [b"0", b"1", b"2", b"3", b"4"]
    assert raw.recv(1) == b""

    raw.sendall(bench.stream(b"still talking"))
    assert bench.payloads(bench.until(lambda events: events)) == [b"still talking"]
    raw.shutdown(socket.SHUT_WR)
    assert bench.until(lambda events: bench.of(events, CLOSED)) == [(CLOSED, 1, 0, 0)]


def test_a_shut_link_with_a_full_socket_drains_as_the_other_side_reads(bench):
    """The end of the stream comes behind the last byte, however long that takes."""
    if bench.way == "plain":
        pytest.skip("did not run: blocking sends of both ends in one thread wait for each other")
    link, raw = bench.link()
    # so that every write takes a part
    bench.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
    accepted = 0
    while link.send(bytes(bench.limit)) >= 0:
        accepted += 1
        if accepted % 8 == 0:
            bench.loop.turn(0.0)
    link.shut()
    data = b""
    ended = False
    give_up = time.monotonic() + GUARD
    while not ended:
        assert time.monotonic() < give_up
        bench.loop.turn(0.0)
        try:
            piece = raw.recv(1 << 16)
        except BlockingIOError:
            continue
        data += piece
        ended = piece == b""
    assert len(data) == accepted * (bench.limit + FRAME_OVERHEAD)


def test_two_links_that_shut_at_once_both_close_in_order(bench):
    """What is on its way in either direction arrives."""
    one, two = bench.links()
    one.send(b"from one")
    two.send(b"from two")
    one.shut()
    two.shut()
    events = bench.until(lambda events: len(bench.of(events, CLOSED)) == 2)
    assert (bench.payloads(events, 1), bench.payloads(events, 2)) == ([b"from two"], [b"from one"])
    assert sorted(bench.of(events, CLOSED)) == [(CLOSED, 1, 0, 0), (CLOSED, 2, 0, 0)]
    assert bench.of(events, FINISHED) == []


def test_a_reset_closes_with_the_systems_number(bench):
    """CLOSED says why, and who asks the system gets its word."""
    ours, theirs = bench.tcp()
    bench.loop.open_link(ours.fileno(), 1)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    assert bench.until(lambda events: events) == [
        (CLOSED, 1, ERR_CONNECTION_CLOSED, errno.ECONNRESET)
    ]
    assert bench.settle() == []


def unread(sock: socket.socket) -> int:
    """Bytes that its system has taken and nobody has read."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)


def waiting(sock: socket.socket) -> int:
    """Bytes that its system has taken and the other side's has not acknowledged."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


@linux
def test_what_was_sent_and_acknowledged_is_confirmed_also_when_the_link_ends(bench):
    """The ordinary end: the other side has read all and leaves. Nothing may be called lost."""
    ours, theirs = bench.tcp()
    link = bench.loop.open_link(ours.fileno(), 1)
    messages = [bytes([number]) * (1 + 25 * number) for number in range(40)]
    events = []
    for message in messages:
        events += bench.offer(link, message)
        events += bench.loop.turn(0.0)
    stream = b"".join(
        bench.core.encode_frame(DATA, each, 0, number) for number, each in enumerate(messages)
    )
    got = b""
    while len(got) < len(stream):
        with contextlib.suppress(BlockingIOError):
            got += theirs.recv(65_536)
        events += bench.loop.turn(0.0)
    assert got == stream
    theirs.close()
    events += bench.until(lambda events: bench.of(events, FINISHED))
    assert bench.sent(events, 1) == 40 and link.unconfirmed == 0
    link.shut()
    bench.until(lambda events: bench.of(events, CLOSED))
    assert link.unconfirmed == 0
    link.close()
    assert link.unconfirmed == 0


@linux
@pytest.mark.parametrize("how", ["reset", "closed unread", "closed here"])
def test_messages_with_a_byte_that_was_not_acknowledged_are_unconfirmed(bench, how):
    """Their Sent said only that our system took them. More may be called unconfirmed than is, never
    less: so what is left has reached the other system, to its last byte."""
    ours, theirs = bench.tcp()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    link = bench.loop.open_link(ours.fileno(), 1)
    size, events = 1_000, []
    enough = 100_000 if bench.way == "plain" else 300_000  # a blocking send must find room
    while waiting(ours) < enough:
        link.send(bytes(size))
        events += bench.loop.turn(0.0)
    there = unread(theirs)
    if how == "reset":
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how != "closed here":
        theirs.close()
        events += bench.until(lambda events: bench.of(events, CLOSED))
    sent = bench.sent(events, 1)
    confirmed = sent - link.unconfirmed
    assert link.unconfirmed > 0
    assert confirmed * (size + FRAME_OVERHEAD) <= there, "one was confirmed that never got there"
    link.close()
    assert link.unconfirmed == 0


@linux
def test_what_stands_before_a_long_message_is_confirmed_while_that_is_under_way(quick):
    """One write takes a message whole, and a part of the one behind it, which no slot holds."""
    ours, theirs = quick.tcp()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 40_000)
    link, short, long = quick.loop.open_link(ours.fileno(), 1), bytes(1_000), bytes(200_000)
    if link.slice_max < len(long):
        pytest.skip("slots of this core hold all that they send")
    assert link.send_slice(short, 7, 0, len(short)) >= 0
    assert link.send_slice(long, 8, 0, len(long)) >= 0
    quick.until(lambda events: quick.sent(events, 1) == 1)
    quick.until(lambda _: unread(theirs) > len(short) + WIDE_HEADER_SIZE)
    assert link.pending == 1 and waiting(ours) > 0
    assert link.unconfirmed == 0


@linux
def test_what_another_program_of_this_machine_has_not_read_is_confirmed(bench):
    """It lies there, as what TCP has acknowledged does. What the system tells of such a socket is
    how much of it is unread, and nothing once the other end is closed."""
    link, raw = bench.link()
    events = []
    for _ in range(20):
        assert link.send(bytes(1_000)) >= 0
        events += bench.loop.turn(0.0)
    assert bench.sent(events, 1) == 20 and waiting(raw) == 0
    assert unread(raw) == 20 * (1_000 + FRAME_OVERHEAD) and link.unconfirmed == 0
    raw.close()
    bench.until(lambda events: bench.of(events, CLOSED))
    assert link.unconfirmed == 0


def test_a_frame_that_was_sent_and_is_not_told_yet_is_not_unconfirmed(bench):
    """The number is of those that were told: the others are the caller's to call lost."""
    ours, _theirs = bench.tcp()
    link = bench.loop.open_link(ours.fileno(), 1)
    assert link.send_frame(DATA, b"now", NO_DELAY) >= 0
    assert link.unconfirmed == 0


def test_sends_to_a_side_that_is_gone_end_the_link_after_its_last_words(bench):
    """A failed write must not throw away what the other side had sent before it left."""
    link, raw = bench.link()
    raw.sendall(bench.stream(b"last words"))
    raw.close()
    assert link.send_frame(DATA, b"into the void", NO_DELAY) >= 0
    events = bench.until(lambda events: bench.of(events, CLOSED))
    assert bench.payloads(events) == [b"last words"]
    assert (bench.of(events, CLOSED)[0][2], bench.of(events, CLOSED)[0][3]) == (
        ERR_CONNECTION_CLOSED,
        errno.EPIPE,
    )
    assert link.send(b"x") == ERR_NOT_CONNECTED
    assert link.pending + sum(count for _, _, count, _ in bench.of(events, SENT)) == 1


def test_a_stream_that_ends_inside_a_frame_is_truncated(bench):
    """That is no end in order: whoever was cut off should hear of it."""
    _, raw = bench.link()
    raw.sendall(bench.stream(b"whole", b"cut off here")[:-3])
    raw.close()
    events = bench.until(lambda events: bench.of(events, CLOSED))
    assert bench.payloads(events) == [b"whole"]
    assert bench.of(events, CLOSED) == [(CLOSED, 1, ERR_TRUNCATED, 0)]
    assert bench.of(events, FINISHED) == []


def damage(frame: bytes, place: int, value: int) -> bytes:
    return frame[:place] + bytes([value]) + frame[place + 1 :]


@pytest.mark.parametrize(
    ("place", "value", "code"),
    [
        (0, 0x51, ERR_MAGIC),
        (4, 2, ERR_VERSION),
        (5, 9, ERR_INVALID_PARAM),
        (8, 0xFF, ERR_MESSAGE_TOO_LARGE),
        (11, 0, ERR_CRC),
    ],
)
def test_a_bad_frame_ends_its_link_alone(bench, place, value, code):
    """The frames before it count, the fault is named and counted, and the neighbour goes on."""
    _, raw = bench.link(tag=1)
    neighbour, other = bench.link(tag=2)
    bad = damage(bench.core.encode_frame(DATA, b"damaged"), place, value)
    raw.sendall(bench.stream(b"before") + bad + bench.stream(b"behind"))
    events = bench.until(lambda events: bench.of(events, CLOSED))
    assert bench.payloads(events, 1) == [b"before"]
    assert bench.of(events, CLOSED) == [(CLOSED, 1, code, 0)]
    statistics = bench.loop.statistics()
    assert (statistics.bad_frames, statistics.crc_errors) == (1, int(code == ERR_CRC))

    other.sendall(bench.stream(b"unharmed"))
    assert bench.payloads(bench.until(lambda events: events)) == [b"unharmed"]
    assert neighbour.send(b"x") >= 0


def test_a_frame_longer_than_max_payload_ends_the_link(bench):
    """Judged on the header: no memory is spent on it."""
    _, raw = bench.link(max_payload=100)
    raw.sendall(bench.stream(bytes(100)) + bench.core.encode_header(DATA, 0, 1, 101))
    events = bench.until(lambda events: bench.of(events, CLOSED))
    assert bench.payloads(events) == [bytes(100)]
    assert bench.of(events, CLOSED) == [(CLOSED, 1, ERR_MESSAGE_TOO_LARGE, 0)]


def test_a_frame_that_never_completes_ends_its_link_unless_it_is_paused(quick):
    """So long for a frame that has begun, not for a link that is silent, and not for one that we
    do not read."""
    bench = quick
    data = bench.stream(bytes(50))
    started = time.monotonic()
    (cut, early), (link, late), (silent, _) = (bench.link(tag=tag) for tag in (1, 2, 3))
    for each in (cut, link, silent):
        assert each.frame_timeout == 5.0, "what it begins with"
        each.frame_timeout = 0.1
    early.sendall(data[:5])
    late.sendall(data[:30])
    bench.settle()
    link.pause()
    assert bench.loop.next_timeout() is not None
    assert bench.until(lambda events: events) == [(CLOSED, 1, ERR_TIMEOUT, 0)]
    assert time.monotonic() - started >= 0.099
    assert bench.settle() == []
    link.frame_timeout = 5.0
    link.resume()
    late.sendall(data[30:])
    assert bench.payloads(bench.until(lambda events: events), 2) == [bytes(50)]


def test_a_control_frame_that_comes_again_at_once_is_told_once(bench):
    """A stranger repeats four bytes for nothing, and each of them cost its receiver a Python call;
    what carries something, or has another word before it, is told each time."""
    link, raw = bench.link()
    frames = [PING, PING, PING, PONG, PING, PING]
    stream = b"".join(bench.core.encode_frame(kind, b"") for kind in frames)
    stream += bench.core.encode_frame(PING, b"x") * 2 + bench.stream(b"", b"", b"a")
    raw.sendall(stream)
    events = bench.until(lambda events: bench.payloads(events, 1)[-1:] == [b"a"])
    told = [(a & 0xFF, b) for kind, _, a, b in events if kind == FRAME]
    assert told == [(PING, b""), (PONG, b""), (PING, b""), (PING, b"x"), (PING, b"x")]
    assert bench.payloads(events, 1) == [b"", b"", b"a"]
    assert link.statistics().frames_received == 11


def test_one_read_brings_no_more_than_the_link_is_told(bench):
    """Whoever is not known yet must not bring a whole buffer of messages with its greeting."""
    link, raw = bench.link()
    link.read_max = 512
    messages = [bytes((number,)) * 200 for number in range(20)]
    raw.sendall(bench.stream(*messages, bytes(1000)))
    events = bench.loop.turn(1.0)
    assert 1 <= len(bench.payloads(events, 1)) <= 3 and link.statistics().bytes_received <= 512
    events += bench.until(lambda events: bytes(1000) in bench.payloads(events, 1))
    assert bench.payloads(events, 1) == [*messages, bytes(1000)]
    link.close()


def test_what_was_read_and_not_told_yet_is_counted_as_held(bench):
    """Nothing is unread in the system then, and a link that ended now would lose it."""
    link, raw = bench.link()
    other, beside = bench.link(2)
    many = [b""] * 1000
    raw.sendall(bench.stream(*many))
    beside.sendall(bench.stream(*many))
    seen = bench.until(lambda _: link.held_bytes or other.held_bytes)
    seen += bench.until(lambda events: len(bench.payloads(seen + events)) == 2000)
    assert link.held_bytes == other.held_bytes == 0
    raw.sendall(bench.stream(bytes(100))[:50])
    bench.settle()
    assert link.held_bytes == 0  # a cut frame may never become whole


def test_a_frame_may_take_as_long_as_its_link_is_told(quick):
    """Five seconds are for strangers; a peer that we know is judged by another time, also in the
    middle of a frame."""
    bench = quick
    link, raw = bench.link()
    assert link.frame_timeout == 5.0
    raw.sendall(bench.stream(bytes(50))[:20])
    bench.settle()
    assert bench.loop.next_timeout() <= 5.1
    link.frame_timeout = 0.05
    link.frame_timeout = 3600
    over = time.monotonic() + 0.2
    assert bench.until(lambda _: time.monotonic() > over) == []
    assert link.frame_timeout == 3600.0 and bench.loop.next_timeout() <= 3600.1
    link.frame_timeout = 0.02
    assert bench.until(lambda events: events) == [(CLOSED, 1, ERR_TIMEOUT, 0)]
    link.close()
    link.frame_timeout = 1e9  # a closed one: nothing happens
    assert bench.loop.next_timeout() is None


def test_after_close_a_link_says_nothing_and_refuses(bench):
    """Neither what arrived nor what was accepted before is reported later; sends answer and never
    crash."""
    link, raw = bench.link()
    send, send_many = link.send, link.send_many
    raw.sendall(bench.stream(b"unread"))
    link.send(b"unsent")
    link.close()
    link.close()
    assert bench.settle() == []
    assert send(b"x") == link.send(b"x") == link.send_frame(PING) == ERR_NOT_CONNECTED
    assert send_many([b"x", b"y"]) == (0, ERR_NOT_CONNECTED)
    raw.sendall(b"the descriptor is still ours")
    bench.loop.close()
    assert send(b"x") == ERR_NOT_CONNECTED


def test_closing_a_link_leaves_the_descriptor_to_its_owner(bench):
    """Python owns sockets: a descriptor that C closed could by then be somebody else's."""
    ours, theirs = bench.pair()
    bench.loop.open_link(ours.fileno(), 1).close()
    ours.send(b"still open")
    assert theirs.recv(100) == b"still open"
    link = bench.loop.open_link(ours.fileno(), 2)
    theirs.sendall(bench.stream(b"and can be a link again"))
    assert bench.payloads(bench.until(lambda events: events), 2) == [b"and can be a link again"]
    link.close()
    assert os.fstat(ours.fileno())


def test_closing_the_loop_closes_its_links_and_is_done_once(bench):
    """Whatever was in flight; nothing is left of it."""
    links = [bench.link(tag=tag)[0] for tag in range(5)]
    for link in links:
        link.send(b"x")
    bench.loop.timer(1).arm(100)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    bench.loop.close()
    bench.loop.close()
    assert [link.send(b"x") for link in links] == [ERR_NOT_CONNECTED] * 5
    bench.loop.wake()
    if before:
        assert len(os.listdir("/proc/self/fd")) < before


def test_a_closed_link_gives_its_memory_back(bench):
    """With frames filling, in flight, and half received."""
    link, raw = bench.link()
    raw.sendall(bench.stream(bytes(200))[:100])
    bench.settle()
    for _ in range(20):
        link.send(bytes(bench.limit))
    if bench.way != "plain":
        bench.loop.turn(0.0)
    link.send(b"filling")
    assert bench.loop.pool.statistics().in_use > 0
    link.close()
    assert bench.loop.pool.statistics().in_use == 0


# Memory


def test_no_memory_for_a_slot_is_a_refusal_without_a_gap(bench):
    """Refused, nothing changed; accepted when there is memory again."""
    link, raw = bench.link()
    bench.loop.pool.fail_at(1)
    assert [link.send(b"refused") for _ in range(5)] == [ERR_NO_MEMORY] * 5
    assert link.send_many([b"refused"]) == (0, ERR_NO_MEMORY)
    assert bench.loop.pool.attempts >= 5
    bench.loop.pool.fail_at(0)
    assert link.send(b"accepted") >= 0
    bench.settle()
    assert bench.frames_in(bench.read_all(raw)) == [(DATA, 0, 0, b"accepted")]


def test_no_memory_for_a_cut_frame_loses_nothing(bench):
    """The link stands still until there is memory; then the frame is whole."""
    _, raw = bench.link()
    bench.loop.pool.fail_at(1)
    data = bench.stream(b"whole", bytes(range(200)), b"last")
    raw.sendall(data[:100])
    events = [event for _ in range(5) for event in bench.loop.turn(0.0)]
    raw.sendall(data[100:])
    events += [event for _ in range(5) for event in bench.loop.turn(0.0)]
    bench.loop.pool.fail_at(0)
    events += bench.until(lambda seen: len(bench.payloads(events + seen)) == 3)
    assert bench.payloads(events) == [b"whole", bytes(range(200)), b"last"]


def test_memory_may_fail_at_any_allocation(bench):
    """Each site in turn, and all after it: a refusal or a wait, never a crash, a loss or a leak."""

    def work(fail_at: int) -> int:
        one, two = bench.links()
        bench.loop.pool.fail_at(fail_at)
        events: list[Any] = []
        accepted = []
        for number in range(40):
            message = struct.pack(">I", number) * (1 + number * bench.limit // 4 // 40)
            if number == 30:
                attempts = bench.loop.pool.attempts
                bench.loop.pool.fail_at(0)
            if (code := one.send(message)) >= 0:
                accepted.append(message)
            else:
                assert code == ERR_NO_MEMORY
            events += bench.loop.turn(0.0)
        events += bench.until(lambda seen: len(bench.payloads(events + seen, 2)) == len(accepted))
        assert bench.payloads(events, 2) == accepted
        assert bench.of(events, CLOSED) == []
        one.close()
        two.close()
        assert bench.loop.pool.statistics().in_use == 0
        return attempts

    site = 1
    while work(site) >= site:
        bench.loop.close()
        bench.loop = bench.make_loop()
        site += 1
        assert site < 200
    assert site > 1


# Bounds


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 0},
        {"depth": 65},
        {"slot_size": FRAME_OVERHEAD - 1},
        {"slot_size": 70_000},
        {"max_payload": 70_000},
    ],
)
def test_a_link_has_bounds(bench, wrong):
    """And a refusal leaves nothing behind: the same descriptor can be used."""
    ours, theirs = bench.pair()
    with pytest.raises(errors.InvalidArgument):
        bench.loop.open_link(ours.fileno(), 1, **wrong)
    bench.loop.open_link(ours.fileno(), 1)
    theirs.sendall(bench.stream(b"x"))
    assert bench.payloads(bench.until(lambda events: events)) == [b"x"]


def test_a_descriptor_that_is_none_is_refused(quick):
    """A clear error, and the loop goes on."""
    ours, _ = quick.pair()
    number = os.dup(ours.fileno())
    os.close(number)
    with pytest.raises((errors.PlatformError, errors.InvalidArgument)):
        quick.loop.open_link(number, 1)
    with pytest.raises((errors.PlatformError, errors.InvalidArgument)):
        quick.loop.watch(number, 1, READ)
    assert quick.loop.turn(0.0) == []


def test_a_shallow_link_with_small_slots_carries_everything(bench):
    """Depth 1, one frame a slot: slow, and as correct as any other."""
    if bench.way == "plain":
        pytest.skip("did not run: blocking sends of both ends in one thread wait for each other")
    one, two = bench.links(depth=1, slot_size=64, packing=False)
    messages = [bytes([number]) * (number % 52) for number in range(200)]
    events: list[Any] = []
    for message in messages:
        events += bench.offer(one, message)
    events += bench.settle()
    assert bench.payloads(events, 2) == messages
    assert two.max_message == 64 - FRAME_OVERHEAD
