"""A worker: links on a thread of their own, of which another one takes what they bring."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.wide import wide
from kit.workers import PATIENCE, WorkBench, frame, said, workbench

from peertalk import errors
from peertalk._core.values import (
    BATCH,
    CAPABILITY,
    CLOSED,
    DATA,
    FRAME,
    LANDED,
    PING,
    PONG,
    SENT,
)
from peertalk._numbers import ERR_CONNECTION_CLOSED, ERR_CRC, ERR_WOULD_BLOCK

pytestmark = pytest.mark.threads

GARBAGE = b"no frame begins so"


@pytest.fixture
def bench(c_core):
    with workbench(c_core) as bench:
        yield bench


# What it brings


def plain_events(core, stream, cuts):
    """What a loop makes of a stream that comes in these parts, batches opened."""
    loop = core.Loop()
    ours, theirs = socket.socketpair()
    with ours, theirs, contextlib.closing(loop):
        ours.setblocking(False)
        loop.open_link(ours.fileno(), 1, wide=True)
        events = []
        for part in parts(stream, cuts):
            theirs.sendall(part)
            events += loop.turn(PATIENCE)
        theirs.close()
        while not events or events[-1][0] not in (CLOSED, 7):
            events += loop.turn(PATIENCE)
    return opened(events)


def parts(stream, cuts):
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [part for start, end in itertools.pairwise(places) if (part := stream[start:end])]


def opened(events):
    """Each message by itself, since what joins a batch depends on the moment; a control frame that
    says no more than the one before it may be told or not, likewise."""
    single = []
    for kind, tag, a, b in events:
        if kind == BATCH:
            single += [(BATCH, tag, len(each), each) for each in b]
        elif kind != SENT:
            one = (kind, tag, a, b)
            if not (kind == FRAME and b == b"" and a & 0xFF != DATA and single[-1:] == [one]):
                single.append(one)
    return single


KINDS = st.sampled_from([DATA, DATA, DATA, PING, PONG, CAPABILITY])
FRAMES = st.lists(
    st.tuples(KINDS, st.integers(0, 300), st.sampled_from([0, 0, 0, 1, 8, 0x10, 0x80, 0x88])),
    max_size=30,
)


@given(FRAMES, st.lists(st.integers(0, 10_000), max_size=5), st.integers(0, 3000))
def test_it_brings_what_a_loop_would_bring(c_core, frames, cuts, large):
    """Whatever is in the stream, and wherever it is cut; to the bit, also where a frame says of
    itself what only we say."""
    stream = b"".join(
        frame(c_core, random.Random(size).randbytes(size), kind, flags)
        for kind, size, flags in frames
    )
    if large:
        stream += wide(DATA, payload=bytes(large)) + frame(c_core, b"behind")
    expected = plain_events(c_core, stream, cuts)
    bench = WorkBench(c_core)
    try:
        _, theirs = bench.link(wide=True)
        for part in parts(stream, cuts):
            theirs.sendall(part)
        theirs.close()
        bench.until(lambda came: came and came[-1][0] in (CLOSED, 7))
        assert opened(bench.came) == expected
    finally:
        bench.close()


def test_messages_go_both_ways_in_order(bench):
    one, two = bench.pair()
    two.setblocking(False)
    links = [
        worker.open_link(end.fileno(), tag)
        for worker, end, tag in ((bench.worker, one, 1), (bench.another(), two, 2))
    ]
    for link in links:
        link.resume()
    sent = [b"%d" % number * (1 + number % 40) for number in range(3000)]
    for message in sent:
        for link in links:
            while (code := link.send(message)) == ERR_WOULD_BLOCK:
                bench.home.turn(0.1)
                bench.take()
            assert code >= 0
    bench.until(lambda _: len(bench.payloads(1)) == len(bench.payloads(2)) == len(sent))
    assert bench.payloads(1) == bench.payloads(2) == sent


def test_a_link_is_not_read_before_it_is_asked_for(bench):
    """Who opens it has time to know whose it is."""
    link, theirs = bench.link(reads=False)
    assert link.paused
    theirs.sendall(frame(bench.core, b"early"))
    other, others = bench.link(2)
    others.sendall(frame(bench.core, b"later"))
    bench.until(lambda _: bench.payloads(2))
    assert not bench.payloads(1) and link.statistics().read_calls == 0
    link.resume()
    bench.until(lambda _: bench.payloads(1) == [b"early"])
    other.pause()
    others.sendall(frame(bench.core, b"last"))
    theirs.sendall(frame(bench.core, b"past"))
    bench.until(lambda _: bench.payloads(1)[1:] == [b"past"])
    assert bench.payloads(2) == [b"later"]


def test_a_message_as_long_as_may_be_and_no_message_at_all(bench):
    _, theirs = bench.link()
    longest = bytes(bench.core.limits.frame_max_payload)
    for payload in (b"", longest, b"", b"x"):
        theirs.sendall(frame(bench.core, payload))
    bench.until(lambda _: len(bench.payloads()) == 4)
    assert bench.payloads() == [b"", longest, b"", b"x"]


@pytest.mark.parametrize("total", [9_000, 250_000])
def test_a_large_message_that_was_not_offered_comes_whole(bench, total):
    _, theirs = bench.link(wide=True)
    message = random.Random(total).randbytes(total)
    sender = threading.Thread(target=theirs.sendall, args=(wide(DATA, payload=message),))
    sender.start()
    bench.until(lambda _: bench.payloads())
    sender.join()
    assert bench.payloads() == [message]


def test_a_large_message_leaves_in_slices_and_lands_where_it_is_expected(bench):
    """The thread has no interpreter: what it needs no more is let go of by who takes."""
    one, two = bench.pair()
    two.setblocking(False)
    sender, receiver = (
        worker.open_link(end.fileno(), tag, wide=True)
        for worker, end, tag in ((bench.worker, one, 1), (bench.another(), two, 2))
    )
    sender.resume()
    receiver.resume()
    message = random.Random(1).randbytes(2_000_000)
    assert receiver.expect(7, len(message)) == 0 and sender.depart(message, 7, 0) >= 0
    bench.until(lambda _: bench.count(FRAME, 2) and bench.count(SENT, 1))
    (event,) = (each for each in bench.came if each[0] == FRAME)
    assert event[2] == DATA | LANDED << 8 | 7 << 24 and event[3] == message
    assert sender.departing == sender.referred == 0


def test_a_large_message_that_is_forgone_while_it_comes_is_dropped(bench):
    link, theirs = bench.link(wide=True)
    message = bytes(200_000)
    for number in range(1, 20):
        assert link.expect(number, len(message)) == 0
        sender = threading.Thread(
            target=theirs.sendall, args=(wide(DATA, number, payload=message),)
        )
        sender.start()
        link.forgo(number)
        sender.join()
    theirs.sendall(frame(bench.core, b"behind"))
    bench.until(lambda _: bench.payloads() == [b"behind"])


# What it answers


def test_it_answers_a_ping_though_nobody_takes(bench):
    link, theirs = bench.link()
    link.answer_pings(True)
    for _ in range(3):
        theirs.sendall(frame(bench.core, b"", PING))
        assert bench.core.decode_frame(said(theirs, 12)).type == PONG
    theirs.sendall(frame(bench.core, b"m"))
    bench.until(lambda _: bench.payloads())
    assert bench.count(FRAME) == 0 and bench.worker.pongs == (3, 0)
    link.answer_pings(False)
    theirs.sendall(frame(bench.core, b"", PING))
    bench.until(lambda _: bench.count(FRAME) == 1)


def test_an_answer_to_a_ping_is_no_reason_to_linger(bench):
    """Each PING of a quiet peer would wake an idle process twice."""
    link, theirs = bench.link()
    link.answer_pings(True)
    theirs.sendall(frame(bench.core, b"", PING))
    said(theirs, 12)
    time.sleep(0.01)
    before = bench.worker.waits
    for _ in range(20):
        theirs.sendall(frame(bench.core, b"", PING))
        said(theirs, 12)
        time.sleep(0.005)  # nothing follows, which is no event
    assert bench.worker.waits - before <= 21


def test_the_pings_of_one_read_get_one_answer(bench):
    """A flood of them must not cost more than it cost its sender."""
    link, theirs = bench.link(reads=False)
    link.answer_pings(True)
    theirs.sendall(frame(bench.core, b"", PING) * 50 + frame(bench.core, b"end"))
    link.resume()
    bench.until(lambda _: bench.payloads())
    assert bench.worker.pongs[0] + bench.worker.pongs[1] <= 3


# Its bounds, and its faults


def test_what_nobody_takes_is_bounded_and_nothing_of_it_is_lost(bench):
    link, theirs = bench.link()
    theirs.setblocking(False)
    message, sent = bytes(500), 0
    stream = frame(bench.core, message)
    quiet = time.monotonic() + 1.0
    while time.monotonic() < quiet:
        try:
            sent += theirs.send(stream * 10)
            quiet = time.monotonic() + 1.0
        except BlockingIOError:
            time.sleep(0.01)  # the worker may be about to read
    limit = bench.core.limits.receive_buffer_size // 2
    assert limit / 2 < link.statistics().bytes_received <= 2 * limit + 65_536
    theirs.setblocking(True)
    whole = -(-sent // len(stream))
    theirs.sendall((stream * whole)[sent:])
    bench.until(lambda _: len(bench.payloads()) == whole)


def test_a_link_that_lies_ends_alone(bench):
    bad, theirs = bench.link(1)
    _, others = bench.link(2)
    theirs.sendall(frame(bench.core, b"good") + GARBAGE * 3)
    bench.until(lambda _: bench.count(CLOSED, 1))
    others.sendall(frame(bench.core, b"well"))
    bench.until(lambda _: bench.payloads(2))
    assert bench.payloads(1) == [b"good"]
    assert [each[0] for each in bench.came if each[1] == 1] == [BATCH, CLOSED]
    assert bench.worker.statistics().bad_frames == 1
    crc, liars = bench.link(3)
    liars.sendall(frame(bench.core, b"x" * 40)[:-1] + b"\0")
    bench.until(lambda _: bench.count(CLOSED, 3))
    assert bench.came[-1][:3] in ((CLOSED, 3, ERR_CRC), (CLOSED, 3, 0))
    for link in (bad, crc):
        assert link.send(b"x") < 0


def test_a_reset_is_told_behind_what_came_before(bench):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    bench.sockets += [ours]
    link = bench.worker.open_link(ours.fileno(), 1)
    link.resume()
    theirs.sendall(frame(bench.core, b"last words"))
    bench.until(lambda _: bench.payloads())
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    theirs.close()
    bench.until(lambda _: bench.count(CLOSED))
    assert bench.came[-1][2] == ERR_CONNECTION_CLOSED


def test_what_has_left_is_told_at_once_only_to_who_wants_that(bench):
    """For each write a wake-up of the other thread would cost more than the write."""
    link, theirs = bench.link()
    link.send(b"a")
    said(theirs, 13)
    assert not bench.home.turn(0.05) and not bench.came
    bench.worker.tells_sent = True
    bench.until(lambda _: bench.count(SENT))
    link.send(b"b")
    link.send(b"c")
    bench.until(lambda _: sum(each[2] for each in bench.came if each[0] == SENT) == 3)


def test_memory_that_is_not_there_ends_a_link_and_no_more(bench):
    """Each allocation in turn, and all behind it."""
    for attempt in range(1, 8):
        bench.home.pool.trim()
        bench.home.pool.fail_at(attempt)
        _, theirs = bench.link(attempt)
        theirs.sendall(frame(bench.core, b"first") + frame(bench.core, bytes(200))[:50])
        bench.take()
        bench.home.pool.fail_at(0)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            theirs.sendall(frame(bench.core, bytes(200))[50:] + frame(bench.core, b"last"))
        bench.until(
            lambda _, tag=attempt: bench.payloads(tag)[-1:] == [b"last"] or bench.count(CLOSED, tag)
        )
        assert bench.payloads(attempt) in ([b"first", bytes(200), b"last"], [b"first"], [])


# Its end


def test_links_open_talk_and_close_while_it_works(bench):
    """A link that is closed while its bytes are in a system call is waited for."""
    deadline, tag = time.monotonic() + 2.0, 10
    rest = random.Random(5)
    while time.monotonic() < deadline:
        tag += 1
        link, theirs = bench.link(tag)
        theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            theirs.send(frame(bench.core, bytes(100)) * rest.randrange(1, 400))
        for _ in range(rest.randrange(20)):
            link.send(bytes(rest.randrange(1000)))
        if rest.random() < 0.3:
            bench.take()
        if rest.random() < 0.3:
            link.shut()
        link.close()
        for each in bench.sockets[-2:]:
            each.close()
        del bench.sockets[-2:]
    assert tag > 20 and bench.worker.links == 0


def test_it_ends_with_messages_on_their_way_and_not_taken(c_core):
    for number in range(10):
        bench = WorkBench(c_core)
        _, theirs = bench.link(wide=True)
        theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            theirs.send(wide(DATA, payload=bytes(20_000)) + frame(c_core, bytes(100)) * 100)
        if number % 2:
            bench.until(lambda came: came)
        bench.close()
        assert bench.home.pool.statistics().in_use == 0
        with pytest.raises(errors.InvalidState):
            bench.worker.turn(0.0, [])
        bench.worker.close()


def test_it_ends_with_its_home_whichever_is_collected_first(c_core):
    """The end of an interpreter takes both at once, in any order."""
    bench = WorkBench(c_core)
    bench.home.close()
    with pytest.raises(errors.InvalidState):
        bench.worker.turn(0.0, [])
    bench.close()


def test_it_waits_for_nothing(bench):
    assert bench.worker.turn(None, []) == []


def test_it_has_a_home_that_is_open(c_core):
    home = c_core.Loop()
    home.close()
    with pytest.raises(errors.InvalidState):
        c_core.Worker(home)


def test_the_core_without_a_compiler_has_none(reference_core):
    with (
        contextlib.closing(reference_core.Loop()) as home,
        pytest.raises(errors.NotSupported, match="workers=0"),
    ):
        reference_core.Worker(home)


def test_a_forked_child_leaves_it_to_its_parent(bench):
    """Another thread may have had the lock."""
    link, theirs = bench.link()
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            bench.home.orphan()
            link.close()
            bench.worker.close()
            status = 0 if link.send(b"x") < 0 else 2
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    theirs.sendall(frame(bench.core, b"still here"))
    bench.until(lambda _: bench.payloads() == [b"still here"])
