"""The loop over real sockets: timers, waking, watching, and how a turn is shared out.

Every test runs on each core and each way to drive it: epoll and poll, asynchronous and blocking
sends. Truth comes from csrc/core/pt_loop.h, the kernel, and frames encoded one by one.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import gc
import mmap
import os
import re
import select
import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from peertalk import errors
from peertalk._core import load
from peertalk._core.values import (
    BATCH,
    PONG,
    READ,
    READY,
    SENT,
    TIMER,
    WRITE,
)
from peertalk._numbers import ERR_INVALID_STATE, ERR_NOT_CONNECTED, FRAME_OVERHEAD

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 10.0
"""Seconds after which a test that waits for an event says what it saw instead."""


# Timers


def test_a_timer_expires_once_and_not_before_its_time(bench):
    """Milliseconds, rounded up."""
    timer = bench.loop.timer(5)
    assert not timer.armed
    started = time.monotonic()
    timer.arm(0.02)
    assert timer.armed
    assert 0 < bench.loop.next_timeout() <= 0.021
    assert bench.loop.turn(0.0) == []
    assert bench.until(lambda events: events) == [(TIMER, 5, 0, 0)]
    assert time.monotonic() - started >= 0.019
    assert not timer.armed
    assert bench.loop.next_timeout() is None
    assert bench.loop.turn(0.005) == []


def test_timers_expire_in_the_order_of_their_deadlines(bench):
    """Whatever the order of arming, which takes its time on an emulated machine."""
    timers = [bench.loop.timer(tag) for tag in range(5)]
    for tag in (3, 0, 4, 1, 2):
        timers[tag].arm(0.02 * tag)
    events = bench.until(lambda events: len(events) == 5)
    assert [tag for _, tag, _, _ in events] == [0, 1, 2, 3, 4]


def test_a_timer_can_be_moved_and_cancelled(bench):
    """Arming again moves it: one expiry, at the later time; cancelled: none."""
    moved, cancelled, kept = (bench.loop.timer(tag) for tag in (1, 2, 3))
    moved.arm(0.001)
    moved.arm(0.01)
    cancelled.arm(0.001)
    cancelled.cancel()
    cancelled.cancel()
    kept.arm(0.02)
    assert not cancelled.armed
    assert bench.until(lambda events: bench.of(events, TIMER, 3)) == [
        (TIMER, 1, 0, 0),
        (TIMER, 3, 0, 0),
    ]


def test_many_timers_all_expire(bench):
    """More than fit one turn's events stay due and come in the next."""
    timers = [bench.loop.timer(tag) for tag in range(500)]
    for timer in timers:
        timer.arm(0)
    assert bench.loop.next_timeout() < 0.002
    events = bench.until(lambda events: len(events) >= 500)
    assert sorted(tag for _, tag, _, _ in events) == list(range(500))


def test_a_long_delay_is_no_short_one(bench):
    """Beyond the span of the wheel (4.6 hours), and longer than anyone waits."""
    for delay in (20_000, 1_000_000):
        timer = bench.loop.timer(1)
        timer.arm(delay)
        assert bench.loop.turn(0.0) == []
        assert bench.loop.next_timeout() > 1.0
        timer.cancel()


# Waking, watching, driving


def test_wake_ends_a_wait_from_another_thread(bench):
    """How orders of other threads reach a worker that waits."""
    woken = threading.Thread(target=bench.loop.wake)
    threading.Timer(0.05, woken.start).start()
    assert bench.loop.turn(None) == []
    while woken.ident is None:
        pass
    woken.join()


@pytest.mark.parametrize("timeout", [2.0**31, 1e300, 1.7e308])
def test_a_wait_may_be_longer_than_the_system_can_count(bench, timeout):
    """Whoever means "for ever" writes any large number: poll() counts to 24 days."""
    timer = bench.loop.timer(5)
    timer.arm(timeout)
    bench.loop.wake()
    assert bench.loop.turn(timeout) == []
    assert timer.armed


def test_a_wake_before_the_wait_ends_that_wait(bench):
    """A thread that puts an order and wakes just before the worker waits must not be missed."""
    rescue = threading.Event()

    def ring() -> None:
        if not rescue.wait(5):
            bench.loop.wake()

    bystander = threading.Thread(target=ring)
    bystander.start()
    for _ in range(3):
        bench.loop.wake()
        assert bench.loop.turn(None) == []
    in_time = not rescue.is_set() and bystander.is_alive()
    rescue.set()
    bystander.join()
    assert in_time, "the wake was lost: only a second one ended the wait"


def test_wakes_do_not_pile_up(bench):
    """Ten thousand wakes are one."""
    for _ in range(10_000):
        bench.loop.wake()
    assert bench.loop.turn(0.0) == []
    if bench.loop.fd >= 0:
        assert select.select([bench.loop.fd], [], [], 0)[0] == []


def test_a_watch_reports_readiness_as_long_as_it_lasts(bench):
    """Listeners and connecting sockets are foreign descriptors: level-triggered, for what is wanted
    alone."""
    ours, theirs = bench.pair()
    watch = bench.loop.watch(ours.fileno(), 7, READ)
    assert bench.loop.turn(0.0) == []
    theirs.send(b"x")
    for _ in range(3):
        ((kind, tag, mask, rest),) = bench.until(lambda events: events)
        assert (kind, tag, mask & READ, rest) == (READY, 7, READ, 0)
    watch.set(WRITE)
    ((kind, tag, mask, _),) = bench.until(lambda events: events)
    assert (kind, tag, mask & (READ | WRITE)) == (READY, 7, WRITE)
    watch.set(0)
    assert bench.loop.turn(0.0) == []
    watch.set(READ | WRITE)
    ((_, _, mask, _),) = bench.until(lambda events: events)
    assert mask & (READ | WRITE) == READ | WRITE
    watch.close()
    watch.close()
    assert bench.loop.turn(0.0) == []
    assert ours.recv(10) == b"x"


def test_a_watched_descriptor_may_become_a_link(bench):
    """The life of a connection that we dialled: wait until it can be written, then hand it over."""
    ours, theirs = bench.tcp()
    watch = bench.loop.watch(ours.fileno(), 1, WRITE)
    bench.until(lambda events: bench.of(events, READY))
    watch.close()
    link = bench.loop.open_link(ours.fileno(), 2)
    link.send(b"hello")
    assert bench.sent(bench.until(lambda events: bench.of(events, SENT)), 2) == 1
    assert theirs.recv(100)[10:15] == b"hello"


def test_the_descriptors_to_watch_follow_what_links_wait_for(bench):
    """For drivers without a common descriptor: they watch these instead."""
    if bench.way == "plain":
        pytest.skip("did not run: a blocking send never waits for WRITE")
    link, raw = bench.link()
    fd = next(iter(bench.sockets)).fileno()
    assert (fd, READ) in bench.loop.descriptors()
    while link.send(bytes(bench.limit)) >= 0:
        bench.loop.turn(0.0)
    bench.loop.turn(0.0)
    assert (fd, READ | WRITE) in bench.loop.descriptors()
    link.pause()
    assert (fd, WRITE) in bench.loop.descriptors()
    while link.pending:
        bench.read_all(raw)
        bench.loop.turn(0.0)
    assert (fd, WRITE) not in bench.loop.descriptors()
    link.resume()
    assert (fd, READ) in bench.loop.descriptors()
    link.close()
    assert fd not in [descriptor for descriptor, _ in bench.loop.descriptors()]


def test_a_wake_shows_in_the_descriptors_of_a_loop_without_one(bench):
    """Else a driver that watches them would sleep through it."""
    if bench.loop.fd >= 0:
        descriptors = [(bench.loop.fd, READ)]
    else:
        assert bench.way == "poll"
        descriptors = bench.loop.descriptors()
    assert all(interest & READ for _, interest in descriptors)
    bench.loop.wake()
    readable = select.select([fd for fd, _ in descriptors], [], [], PATIENCE)[0]
    assert readable
    bench.loop.turn(0.0)
    assert select.select([fd for fd, _ in descriptors], [], [], 0)[0] == []


def test_the_loops_descriptor_is_readable_when_there_is_work(bench):
    """So an asyncio loop can drive ours: one descriptor and one timer."""
    _, raw = bench.link()
    if bench.way == "poll":
        assert bench.loop.fd == -1
        return
    assert bench.loop.fd >= 0
    assert select.select([bench.loop.fd], [], [], 0)[0] == []
    raw.sendall(bench.stream(b"x"))
    assert select.select([bench.loop.fd], [], [], PATIENCE)[0]
    assert bench.payloads(bench.loop.turn(0.0)) == [b"x"]
    assert select.select([bench.loop.fd], [], [], 0)[0] == []


def test_no_ready_link_is_starved_by_others(bench):
    """At most io_budget sources a turn; those not served come first in the next."""
    loop = bench.loop = bench.make_loop(io_budget=2)
    raws = [bench.link(tag=tag)[1] for tag in range(9)]
    served: dict[int, int] = dict.fromkeys(range(9), 0)
    for _ in range(9 * 5):
        for raw in raws:
            raw.sendall(bench.stream(b"x" * 10))
        events = loop.turn(0.0)
        batches = bench.of(events, BATCH)
        assert 0 < len(batches) <= 2
        for _, tag, _, _ in batches:
            served[tag] += 1
    assert min(served.values()) >= 5, served


@pytest.mark.parametrize("budget", [None, 16, 17, 100, 1_024])
def test_a_turn_serves_as_many_ready_sources_as_its_budget_says(bench, budget):
    """A hundred links that all have something: sixteen of them by default, all of them in one turn
    where the application has asked for that. What one turn has left comes in the next."""
    loop = bench.loop = bench.make_loop(**({} if budget is None else {"io_budget": budget}))
    raws = [bench.link(tag=tag)[1] for tag in range(100)]
    for raw in raws:
        raw.sendall(bench.stream(b"in"))
    served: list[int] = []
    while len(served) < 100:
        batches = bench.of(loop.turn(0.0), BATCH)
        assert len(batches) == min(budget or 16, 100 - len(served))
        served += [tag for _, tag, _, _ in batches]
    assert sorted(served) == list(range(100))


def test_the_largest_budget_is_served_to_the_last_source(bench):
    """As many watches as a turn may serve at most, and some more, all ready at once."""
    resource = pytest.importorskip("resource")
    most, more = 1_024, 10
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + more + 200
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"did not run: {hard} descriptors at most, and it wants {wanted}")
    with contextlib.ExitStack() as stack:
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        loop = bench.make_loop(io_budget=most)
        stack.callback(loop.close)
        ours, theirs = bench.pair()
        theirs.sendall(b"x")
        for tag in range(most + more):
            watched = os.dup(ours.fileno())
            stack.callback(os.close, watched)
            loop.watch(watched, tag, READ)
        ready = [bench.of(loop.turn(0.0), READY) for _ in range(2)]
        assert len(ready[0]) == most and len(ready[1]) >= more
        assert {tag for each in ready for _, tag, _, _ in each} == set(range(most + more))


def test_links_beyond_the_budget_are_told_of_all_the_same(bench):
    """Two hundred links with something to report at once: none is forgotten."""
    made = [bench.link(tag=tag) for tag in range(200)]
    for link, raw in made:
        link.send(b"out")
        raw.sendall(bench.stream(b"in"))
    events = bench.until(
        lambda events: len(bench.of(events, SENT)) >= 200 and len(bench.of(events, BATCH)) >= 200
    )
    assert sorted(tag for _, tag, _, _ in bench.of(events, SENT)) == list(range(200))
    assert sorted(tag for _, tag, _, _ in bench.of(events, BATCH)) == list(range(200))


def test_a_turn_that_may_wait_returns_what_comes(bench):
    """One wait, and the events that ended it."""
    _, raw = bench.link()
    threading.Timer(0.02, raw.sendall, args=(bench.stream(b"late"),)).start()
    assert bench.payloads(bench.until(lambda events: events)) == [b"late"]


def test_a_turn_without_events_ends_with_its_time(bench):
    """Waiting has a bound when one is given."""
    bench.link()
    assert bench.loop.turn(0.01) == []
    assert bench.loop.next_timeout() is None


def test_statistics_say_what_happened(bench):
    """Counted where it happens, in the units that values.py names."""
    one, two = bench.links()
    for number in range(10):
        one.send(bytes(number))
    one.send_frame(PONG, b"abc")
    bench.settle()
    out, into = one.statistics(), two.statistics()
    assert (
        out.messages_accepted,
        out.messages_reported,
        out.frames_sent,
        out.payload_bytes_sent,
    ) == (10, 10, 11, 48)
    assert out.bytes_sent == into.bytes_received == 48 + 11 * FRAME_OVERHEAD
    assert (out.refusals, out.slots_pending) == (0, 0)
    assert out.slots_high_water == 1
    assert 1 <= out.write_calls <= 2
    assert (into.frames_received, into.payload_bytes_received, into.partial_bytes) == (11, 48, 0)
    assert into.read_calls >= 1
    assert bench.loop.statistics().turns > 0


# Bounds


@pytest.mark.parametrize(
    "wrong",
    [{"io_budget": 0}, {"io_budget": 1_025}, {"platform": "vms"}],
)
def test_a_loop_has_bounds(core, wrong):
    """Said before anything is made."""
    with pytest.raises(errors.InvalidArgument):
        core.Loop(**wrong)


# One thread


def in_a_thread(function):
    """What the function returns or raises on a thread of its own."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_sends_and_turns_of_another_thread_are_refused_until_the_loop_moves_there(bench):
    """Two threads in one pipeline would tear frames; who takes turns says so with move_here()."""
    link, there = bench.link()

    def refused():
        assert link.send(b"x") == link.send(bytearray(b"x")) == ERR_INVALID_STATE
        assert link.send_many([b"x"]) == (0, ERR_INVALID_STATE)
        for timeout in (0.0, None):
            with pytest.raises(errors.InvalidState):
                bench.loop.turn(timeout)
        bench.loop.wake()  # this is for any thread

    in_a_thread(refused)
    assert link.statistics().messages_accepted == 0

    def taken_over():
        bench.loop.move_here()
        assert link.send(b"theirs") >= 0
        bench.loop.turn()

    in_a_thread(taken_over)
    refused()
    bench.loop.move_here()
    assert link.send(b"ours") >= 0
    bench.settle()
    assert [frame.payload for frame in bench.frames_in(bench.read_all(there))] == [
        b"theirs",
        b"ours",
    ]


# A closed loop


def test_a_closed_loop_and_what_it_served_refuse_all_use(bench):
    """The context is cleaned up by then: whatever is called must say no, never touch it."""
    ours, _ = bench.pair()
    link, _ = bench.link(tag=2)
    watch, timer = bench.loop.watch(ours.fileno(), 3, READ), bench.loop.timer(4)
    timer.arm(60.0)
    loop = bench.loop
    loop.close()
    loop.close()
    assert link.drain() == ERR_NOT_CONNECTED
    assert link.send_sync(b"x") == ERR_NOT_CONNECTED
    assert link.send(b"x") == link.send_frame(PONG) == ERR_NOT_CONNECTED
    assert link.send_many([b"x"]) == (0, ERR_NOT_CONNECTED)
    assert loop.next_timeout() is None
    refused = (loop.turn, partial(loop.turn, 1.0), partial(loop.timer, 1))
    for use in (*refused, partial(timer.arm, 1.0), partial(watch.set, WRITE)):
        with pytest.raises(errors.InvalidState):
            use()
    for use in (link.pause, link.resume, link.shut, link.close, timer.cancel, watch.close):
        use()
    loop.wake()
    assert (loop.fd, loop.descriptors(), timer.armed, link.unconfirmed) == (-1, [], False, 0)
    link.frame_timeout = 1.0
    for tell in (loop.statistics, loop.memory, loop.pool.statistics, link.statistics):
        tell()


# Descriptors that are used again


def test_a_handle_that_outlived_its_descriptor_does_not_deafen_the_next_one(bench):
    """A descriptor that is closed leaves the system's set by itself, and its number is used again:
    the old handle must not take the new one out, nor put itself in its place."""
    first, _ = bench.pair()
    number = first.fileno()
    old = bench.loop.watch(number, 1, READ)
    link_end, _ = bench.pair()
    link_number = link_end.fileno()
    link = bench.loop.open_link(link_number, 2)
    first.close()
    link_end.close()
    sockets = bench.keep(*socket.socketpair(), *socket.socketpair())
    ours = {each.fileno(): each for each in sockets}
    assert {number, link_number} <= set(ours)
    partner = dict(zip(sockets, (sockets[1], sockets[0], sockets[3], sockets[2]), strict=True))
    if bench.core.name == "reference":  # it knows numbers: who watches twice is told
        with pytest.raises(errors.InvalidArgument, match="cannot be watched"):
            bench.loop.watch(number, 3, READ)
        old.close()
        link.close()
    watches = [bench.loop.watch(number, 3, READ), bench.loop.watch(link_number, 4, READ)]
    assert watches
    with contextlib.suppress(errors.PeerTalkError):
        old.set(WRITE)
    with contextlib.suppress(errors.PeerTalkError):
        link.pause()
    old.close()
    link.close()
    for each, tag in ((number, 3), (link_number, 4)):
        partner[ours[each]].send(b"x")
        bench.until(lambda events, tag=tag: (READY, tag, READ, 0) in events)


@pytest.mark.source
def test_each_entry_point_of_c_refuses_a_context_that_was_cleaned_up(bench):
    """Walked by the headers, so that one that is added is tried too. The handles keep nobody from
    calling them; a crash here would be one in a finalizer or a signal handler."""
    if bench.core.name == "reference":
        pytest.skip("did not run: the reference core has no context")
    header = "".join(
        (ROOT / "csrc" / "core" / name).read_text() for name in ("pt_link.h", "pt_loop.h")
    )
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    found = re.findall(r"\w+ (pt_\w+)\(pt_context \*context([^;]*)\);", header)
    assert len(found) >= 18
    loop = bench.loop
    ours, _ = bench.pair()
    link, _ = bench.link(tag=2)
    watch, timer = bench.loop.watch(ours.fileno(), 3, READ), bench.loop.timer(4)
    ffi, lib, context, events = loop._ffi, loop._lib, loop._context, loop._events
    c_watch = watch._watch
    loop.close()
    sink, plain = ffi.new("pt_sink *"), ffi.new("pt_plain_sink *")
    lib.pt_plain_sink_init(plain, sink, 0)
    slots = ffi.new("pt_send_slot[]", 2)
    letters = ffi.new("uint8_t[5]")
    departure = ffi.new("pt_departure *", {"payload": letters, "id": 1, "total": 5})
    departure.drop = ffi.cast("void *", 1)  # nobody takes it, so nobody drops it
    given = {
        "pt_link *link": link._link,
        "const pt_link *link": link._link,
        "pt_watch *watch": c_watch,
        "pt_timer *timer": timer._timer,
        "pt_send_slot *slots": slots,
        "pt_event *events": events,
        "const pt_sink *sink": sink,
        "const uint8_t *payload": b"x",
        "pt_link_counts *out": ffi.new("pt_link_counts *"),
        "const pt_format *format": lib.pt_message_format(0),
        "const pt_wide *wide": ffi.new("pt_wide *"),
        "pt_hold *hold": ffi.NULL,
        "pt_departure *departure": departure,
        "int capacity": 256,
        "uint8_t depth": 2,
        "uint16_t slot_size": 4096,
    }
    refusals = set()
    for name, rest in found:
        if name == "pt_context_init":  # makes it anew
            continue
        parameters = [" ".join(each.split()) for each in rest.split(",")[1:]]
        answer = getattr(lib, name)(context, *(given.get(each, 1) for each in parameters))
        if answer is not None and name not in ("pt_link_close", "pt_context_cleanup"):
            refusals.add((name, answer))
    for name, answer in refusals:
        counts = name.removeprefix("pt_link_") in (
            "unconfirmed",
            "settle",
            "slots_available",
            "slice_max",
        )
        assert answer < 0 or (answer == 0 and counts), name
    assert not lib.pt_timer_is_armed(timer._timer)


def test_a_loop_without_memory_for_what_it_reads_says_so(c_core, monkeypatch):
    """Its pages come from the system, not from the heap; those of the pool's tables likewise."""
    refused = {c_core.limits.receive_buffer_size}

    def refuse(fileno: int, size: int, **options: Any) -> Any:
        if not refused or size in refused:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return mapped(fileno, size, **options)

    mapped = mmap.mmap
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(errors.OutOfMemory, match=r"a receive buffer of .* bytes"):
        c_core.Loop()
    refused.clear()
    with pytest.raises(errors.OutOfMemory, match=r"the tables of a pool of .* bytes"):
        c_core.Loop()


# One pool for several loops


def talk(loop, core, count=40):
    """Messages of all sizes from one link of a loop to another, some at a time, arrive whole."""
    sent = [bytes([at % 256]) * (at * 977 % core.limits.frame_max_payload) for at in range(count)]
    waiting, arrived = sent[::-1], []
    give_up = time.monotonic() + PATIENCE
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(each) for each in socket.socketpair()]
        for each in ends:
            each.setblocking(False)
        ours, _ = links = [loop.open_link(end.fileno(), tag) for tag, end in enumerate(ends)]
        while len(arrived) < count:
            assert time.monotonic() < give_up, f"{len(arrived)} of {count} messages"
            while waiting and count - len(waiting) - len(arrived) < 5:  # on their way
                if ours.send(waiting[-1]) < 0:
                    break
                waiting.pop()
            arrived += [one for event in loop.turn(0.05) if event[0] == BATCH for one in event[3]]
        for link in links:
            link.close()
    assert arrived == sent


@pytest.mark.threads
def test_loops_on_threads_of_their_own_have_one_pool(core, rounds):
    """Each takes what the others have given back, nobody's bytes are another's, and when the last
    one has left there is nothing lent and nothing kept."""
    pool = core.loop_pool(1 << 20, links=8, loops=4)
    loops = [core.Loop(pool=pool) for _ in range(4)]
    start = threading.Barrier(4)

    def work(loop):
        loop.move_here()
        start.wait(PATIENCE)
        talk(loop, core, rounds(100, 20_000))
        loop.close()

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, loop) for loop in loops]:
            done.result()
    counted = pool.statistics()
    assert counted == loops[0].pool.statistics()
    assert counted.acquires == counted.returns > 0
    assert (counted.in_use, counted.buffers, counted.bytes) == (0, 0, 0)
    assert 0 < counted.allocations < counted.acquires
    assert pool.close() == 0


@pytest.mark.parametrize("last", ["the pool", "a loop"])
def test_a_pool_lives_for_as_long_as_one_of_its_loops(core, last):
    """Who made the pool need not know when the loops are done with it."""
    pool = core.loop_pool(1 << 20, links=4, loops=2)
    first, second = core.Loop(pool=pool), core.Loop(pool=pool)
    if last == "a loop":
        assert pool.close() == 0
    first.close()
    talk(second, core)
    counted = second.pool.statistics()
    del pool, first
    gc.collect()
    talk(second, core)
    assert second.pool.statistics().acquires > counted.acquires > 0
    second.close()
    after = second.pool.statistics()
    assert (after.in_use, after.buffers, after.bytes) == (0, 0, 0)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda core, _: core.BufferPool([(1_000, 9)]), errors.InvalidArgument, "1,000 bytes"),
        (lambda _, other: other.loop_pool(), errors.InvalidArgument, "own core"),
        (lambda *_: "a pool", errors.InvalidArgument, "own core"),
    ],
    ids=["too small", "of another core", "no pool"],
)
def test_a_loop_refuses_a_pool_that_cannot_serve_it(core, make, error, words):
    """A frame that no buffer holds would never be read to its end."""
    other = load("reference" if core.name == "standard" else "standard")
    with pytest.raises(error, match=words):
        core.Loop(pool=make(core, other))


def test_no_loop_opens_with_a_closed_pool(core):
    """Who closed the pool wants its memory back; a pool without a budget has no loop at all."""
    pool = core.loop_pool()
    pool.close()
    with pytest.raises(errors.InvalidState, match="pool is closed"):
        core.Loop(pool=pool)
    with pytest.raises(errors.InvalidArgument, match="pool_bytes"):
        core.loop_pool(0)


def test_a_forked_child_waits_for_no_thread_that_had_the_pool():
    """Another loop's thread may have been in the middle of borrowing; in the child it is no
    more."""
    loop = load("reference").Loop()
    loop.timer(1).arm(1)
    with loop.pool._lock:  # as the child finds it
        loop.orphan()
    assert loop.fd == -1
