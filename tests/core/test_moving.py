"""Links that go from one worker to another, with all that they are, owe and have brought."""

from __future__ import annotations

import random
import sys
import threading

import pytest
from kit.wide import wide
from kit.workers import PATIENCE, frame, said, workbench

from peertalk import errors
from peertalk._core import link as inside
from peertalk._core.values import BATCH, CLOSED, DATA, FRAME, PING, PONG, SENT
from peertalk._numbers import ERR_TIMEOUT

pytestmark = pytest.mark.threads

GARBAGE = b"no frame begins so"


@pytest.fixture
def bench(c_core):
    with workbench(c_core) as bench:
        yield bench


@pytest.mark.parametrize("place", [0, 1])
def test_what_it_has_brought_goes_with_a_link_that_moves(bench, place):
    """In whichever order the workers are asked; and of another link nothing does."""
    other = bench.another()
    link, theirs = bench.link(1)
    _, others = bench.link(2)
    message = random.Random(1).randbytes(20_000)
    for number in range(100):
        theirs.sendall(frame(bench.core, b"%d" % number))
        others.sendall(frame(bench.core, b"%d" % number))
    theirs.sendall(frame(bench.core, b"", PING))
    bench.kept(bench.worker, 1, 101)
    bench.kept(bench.worker, 2, 100)
    assert link.move(other)
    assert (bench.worker.keeps(1), other.keeps(1)) == (0, 101)
    assert (bench.worker.keeps(2), other.keeps(2)) == (100, 0)
    assert (bench.worker.links, other.links) == (1, 1)
    theirs.sendall(frame(bench.core, b"", PING) + frame(bench.core, message[:900]))
    bench.kept(other, 1, 102)  # a PING that is repeated is told once
    bench.workers.sort(key=lambda worker: (worker is other) == bool(place))
    bench.take()
    expected = [b"%d" % number for number in range(100)]
    assert bench.payloads(1) == [*expected, message[:900]] and bench.payloads(2) == expected
    assert bench.count(FRAME, 1) == 1


def test_a_link_that_moves_all_the_time_loses_nothing_and_keeps_the_order(bench):
    """Back and forth, while both sides say as much as they can."""
    workers = [bench.worker, bench.another(), bench.another()]
    link, theirs = bench.link()
    theirs.settimeout(PATIENCE)
    heard = bytearray()
    sent = [b"%d" % number * (1 + number % 60) for number in range(20_000)]

    def talk():
        theirs.sendall(b"".join(frame(bench.core, each) for each in sent))

    def listen():
        while b"the end" not in heard:
            del heard[:-20]
            heard.extend(theirs.recv(65_536))

    threads = [threading.Thread(target=each) for each in (talk, listen)]
    for each in threads:
        each.start()
    rest, moves, accepted = random.Random(7), 0, 0
    while moves < 300 or accepted < len(sent):
        for message in sent[accepted : accepted + rest.randrange(200)]:
            if link.send(message) < 0:
                break
            accepted += 1
        moves += link.move(rest.choice([each for each in workers if link not in each._links]))
        if rest.random() < 0.3:
            bench.take()
    while link.send(b"the end") < 0:
        bench.home.turn(0.1)
        bench.take()
    bench.until(lambda _: len(bench.payloads()) == len(sent) and link.pending == 0)
    for each in threads:
        each.join()
    assert bench.payloads() == sent
    assert sum(each[2] for each in bench.came if each[0] == SENT) == len(sent) + 1


def test_a_link_that_moves_stays_as_it_was(bench):
    """Unread, blocked, shut, or with half a frame."""
    other = bench.another()
    unread, theirs = bench.link(1, reads=False)
    theirs.sendall(frame(bench.core, b"waits"))
    assert unread.move(other) and unread.paused
    cut, cutter = bench.link(2)
    whole = frame(bench.core, b"in two halves")
    cutter.sendall(whole[:15])
    while not cut.statistics().partial_bytes:
        bench.home.turn(0.01)
    assert cut.move(other)
    cutter.sendall(whole[15:])
    bench.until(lambda _: bench.payloads(2) == [b"in two halves"])
    assert not bench.payloads(1) and other.keeps(1) == 0
    unread.resume()
    bench.until(lambda _: bench.payloads(1) == [b"waits"])
    cut.answer_pings(True)
    assert cut.move(bench.worker)
    cutter.sendall(frame(bench.core, b"", PING))
    assert bench.core.decode_frame(said(cutter, 12)).type == PONG
    blocked, reader = bench.link(3)
    accepted = 0
    while blocked.send(bytes(1000)) >= 0 or blocked.slots_available:
        accepted = blocked.statistics().messages_accepted
    assert blocked.move(other)
    blocked.shut()
    assert blocked.move(bench.worker)
    accepted = blocked.statistics().messages_accepted
    size = len(frame(bench.core, bytes(1000)))
    said(reader, accepted * size)
    assert reader.recv(1) == b""
    bench.until(lambda _: blocked.pending == 0)


def test_a_frame_that_is_cut_for_too_long_ends_a_link_that_has_moved(bench):
    """Its time goes on."""
    link, theirs = bench.link()
    link.frame_timeout = 0.2
    theirs.sendall(frame(bench.core, b"never whole")[:15])
    while not link.statistics().partial_bytes:
        bench.home.turn(0.01)
    other = bench.another()
    assert link.move(other)
    bench.until(lambda _: bench.count(CLOSED, 1))
    assert bench.came[-1][2] == ERR_TIMEOUT and not link.move(bench.worker)


def test_large_messages_go_on_while_their_links_move(bench):
    """Those that depart, that land where they are expected, and that land unasked."""
    one, two = bench.pair()
    two.setblocking(False)
    workers = [bench.worker, bench.another(), bench.another()]
    sender, receiver = (
        worker.open_link(end.fileno(), tag, wide=True)
        for worker, end, tag in ((workers[0], one, 1), (workers[1], two, 2))
    )
    sender.wide_max = 200_000
    sender.resume()
    receiver.resume()
    message, lot = random.Random(1).randbytes(3_000_000), random.Random(2).randbytes(150_000)
    rest = random.Random(3)

    def move():
        for link in (sender, receiver):
            link.move(rest.choice([each for each in workers if link not in each._links]))
        return True

    for number in range(1, 6):
        assert receiver.expect(number, len(message)) == 0
        assert sender.depart(message, number, 0) >= 0
        bench.until(lambda _, number=number: move() and bench.count(FRAME, 2) == number)
        while sender.send(lot) < 0:
            bench.take()
            move()
        bench.until(
            lambda _, number=number: move() and len(bench.payloads(2)) == number,
        )
        bench.until(lambda _: move() and not sender.pending)
    assert [each[3] for each in bench.came if each[0] == FRAME] == [message] * 5
    assert bench.payloads(2) == [lot] * 5
    assert sender.departing == sender.referred == 0


def test_a_worker_that_has_slept_takes_no_link_for_one_that_stands_still(bench):
    """By its own old tick a link that has just moved bytes would have stood still for weeks, and be
    lent no more than its share."""
    other = bench.another()
    bench.home.turn(0.05)
    link, _ = bench.link()
    while not link._link.blocked:
        assert link.send(bytes(900)) >= 0
        while link.slots_pending and not link._link.blocked:
            bench.home.turn(0.001)
    assert link.move(other)
    accepted = 0
    while link.send(bytes(900)) >= 0:
        accepted += 1
    limits = bench.core.limits
    assert accepted >= limits.pipeline_depth * limits.slot_size // 912 // 2


@pytest.mark.parametrize("taken", [False, True])
def test_what_came_whole_and_was_moved_goes_back_with_the_last_worker(bench, taken):
    """Memory of one worker that another gives back, when nobody has taken it, too."""
    other = bench.another()
    link, theirs = bench.link(wide=True)
    assert link.expect(3, 9_000) == 0 and link.expect(4, 9_000) == 0
    theirs.sendall(wide(DATA, 3, payload=bytes(9_000)) + wide(DATA, payload=bytes(20_000)))
    bench.kept(bench.worker, 1, 2)
    assert link.move(other)
    if taken:
        bench.take()
        assert bench.payloads() == [bytes(20_000)] and bench.count(FRAME) == 1
    bench.close()
    assert bench.home.pool._account.bytes == 0


def test_whoever_asks_for_its_numbers_is_told_them_while_a_link_moves(bench):
    """On any thread."""
    other = bench.another()
    link, theirs = bench.link()
    theirs.sendall(frame(bench.core, b"first"))
    bench.until(lambda _: bench.payloads())
    over, told = threading.Event(), []

    def ask():
        while not over.is_set():
            told.append(link.statistics().messages_accepted)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        accepted = 0
        for number in range(500):
            accepted += link.send(b"%d" % number) >= 0
            assert link.move(other if number % 2 == 0 else bench.worker)
    finally:
        over.set()
        thread.join()
    assert told == sorted(told) and link.statistics().messages_accepted == accepted


def test_a_signal_that_strikes_in_a_move_leaves_a_link_that_talks(bench):
    """Before, within or behind it: the link is at one worker, and ends with that."""

    class Struck(Exception):
        pass

    def strike(frame, what, _):
        nonlocal left
        if frame.f_code.co_filename != inside.__file__:
            return None
        left -= what == "line"
        if not left:
            sys.settrace(None)
            raise Struck
        return strike

    workers = [bench.worker, bench.another()]
    link, theirs = bench.link()
    before, struck = sys.gettrace(), 0
    for line in range(1, 60):
        left = line
        try:
            sys.settrace(strike)
            link.move(workers[line % 2])
        except Struck:
            struck += 1
        finally:
            sys.settrace(before)
        assert link.send(b"%02d" % line) >= 0
        assert said(theirs, 14)[10:12] == b"%02d" % line
        theirs.sendall(frame(bench.core, b"%02d" % line))
        bench.until(lambda _, line=line: bench.payloads()[-1:] == [b"%02d" % line])
    assert 8 < struck < 50


def test_a_link_that_has_ended_is_told_where_it_was(bench):
    other = bench.another()
    link, theirs = bench.link()
    theirs.sendall(frame(bench.core, b"good") + GARBAGE * 3)
    bench.kept(bench.worker, 1, 1)
    assert not link.move(other) and not bench.worker.give(other)
    bench.until(lambda _: bench.count(CLOSED))
    assert [each[0] for each in bench.came] == [BATCH, CLOSED]
    link.close()
    assert not link.move(other)


def test_a_link_goes_nowhere_else(bench, c_core):
    link, theirs = bench.link()
    assert not link.move(bench.worker)
    home = c_core.Loop()
    stranger = c_core.Worker(home)
    for elsewhere in (stranger, bench.home):
        with pytest.raises(errors.InvalidArgument):
            link.move(elsewhere)
    home.close()
    with pytest.raises(errors.InvalidState):
        link.move(stranger)
    other = bench.another()
    refused = []

    def foreign():
        try:
            link.move(other)
        except errors.InvalidState as error:
            refused.append(error)

    thread = threading.Thread(target=foreign)
    thread.start()
    thread.join()
    assert refused and other.links == 0 and len(other._links) == 0
    theirs.sendall(frame(bench.core, b"as ever"))
    bench.until(lambda _: bench.payloads() == [b"as ever"])


def test_a_move_that_finds_no_memory_changes_nothing(bench):
    """What was brought stays where it is, in its order, though some of it was there already."""
    other = bench.another()
    link, theirs = bench.link()
    _, others = bench.link(2, other)
    here, there = (3, 0) if bench.core.name == "lowmem" else (60, 40)
    message = frame(bench.core, bytes(900))
    others.sendall(message * there)
    theirs.sendall(message * here + frame(bench.core, b"last"))
    bench.kept(bench.worker, 1, here + 1)
    bench.kept(other, 2, there)
    bench.home.pool.trim()
    bench.home.pool.fail_at(1)
    for _ in range(3):
        with pytest.raises(errors.OutOfMemory):
            link.move(other)
    bench.home.pool.fail_at(0)
    assert (bench.worker.keeps(1), other.keeps(1), other.keeps(2)) == (here + 1, 0, there)
    assert bench.worker.links == other.links == 1
    assert link.move(other)
    bench.until(lambda _: len(bench.payloads(1)) == here + 1)
    assert bench.payloads(1) == [bytes(900)] * here + [b"last"]
    assert bench.payloads(2) == [bytes(900)] * there


def test_who_keeps_much_takes_no_link_that_brings_much(bench):
    """What lies at a worker stays bounded; when some was taken, the link moves."""
    other = bench.another()
    limit = bench.core.limits.receive_buffer_size // 2
    senders = []
    for tag, worker in ((1, bench.worker), (2, other)):
        link, theirs = bench.link(tag, worker)
        stream = frame(bench.core, bytes(900)) * (limit // 900)
        senders.append(threading.Thread(target=theirs.sendall, args=(stream,)))
        senders[-1].start()
        while worker.keeps(tag) * 912 < limit * 2 // 3:
            bench.home.turn(0.01)
    assert not link.move(bench.worker) and other.links == 1
    bench.take()
    for each in senders:
        each.join()
    bench.until(lambda _: len(bench.payloads(1)) == len(bench.payloads(2)) == limit // 900)
    assert link.move(bench.worker)


def test_what_could_not_be_told_is_told_before_its_link_moves(bench):
    """Else it would be told from two sides, in any order."""
    testcapi = pytest.importorskip("_testcapi")
    other = bench.another()
    bench.workers.reverse()
    link, theirs = bench.link()
    theirs.sendall(frame(bench.core, b"one") + frame(bench.core, b"", PING) * 2)
    bench.kept(bench.worker, 1, 2)
    failed = 0
    for attempt in range(20):
        testcapi.set_nomemory(attempt, attempt + 1)
        try:
            bench.worker.turn(0.0, bench.came)
        except MemoryError:
            pass
        finally:
            testcapi.remove_mem_hooks()
        if bench.came:
            break
        if bench.worker.keeps(1) < 2:
            assert not link.move(other)
            failed += 1
    assert failed and link.move(other)
    assert [each[0] for each in bench.came] == [BATCH, FRAME]
