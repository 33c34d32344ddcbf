"""Owners of C memory: it is freed after everything that points into it, and a handle that was
closed refuses, whatever is still held of it.

Runs on the compiled cores. What crashes here crashes the test run, which is the point; sanitizers
see the rest.
"""

from __future__ import annotations

import gc
import itertools
import socket
import sys
import types
import weakref

import pytest

from peertalk import errors
from peertalk._core.compiled import Compiled
from peertalk._core.values import DATA, PING, READ, SENT, WRITE

NOT_CONNECTED = errors.NotConnected.code


@pytest.fixture
def pair():
    """Two ends of a connection, closed behind the test."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    yield ends
    for end in ends:
        end.close()


@pytest.fixture
def loop(c_core):
    made = c_core.Loop()
    yield made
    made.close()


def reference(thing):
    """What the thing is while it is there, then None. A link has no room for weak references, since
    there is one for each idle peer."""
    kind, number = type(thing), id(thing)
    if kind.__name__ != "Link":
        return weakref.ref(thing)
    return lambda: [each for each in gc.get_objects() if type(each) is kind and id(each) == number]


def is_gone(*things):
    """A function that says whether they are gone. Nothing may hold them but cycles of their own."""
    seen = [reference(thing) for thing in things]

    def gone():
        gc.collect()
        return not any(each() for each in seen)

    return gone


# Memory that C still knows


class Struck(BaseException):
    """What a signal handler raises."""


def strike(function, at):
    """Call it, and raise at the line-th line or return of peertalk's handles. Whether that came."""
    left = at

    def look(frame, event, _):
        nonlocal left
        if not frame.f_globals.get("__name__", "").startswith("peertalk._core"):
            return None
        left -= event != "call"
        if not left:
            sys.settrace(None)
            raise Struck
        return look

    sys.settrace(look)
    try:
        function()
    except Struck:
        return True
    finally:
        sys.settrace(None)
    return False


def known_to_c(loop):
    """The addresses of the sources that the loop's context leads to."""
    address, source = loop._ffi.cast, loop._context.sources
    while source != loop._ffi.NULL:
        yield int(address("uintptr_t", source))
        source = source.next


@pytest.mark.parametrize("what", ["link", "closed link", "watch", "closed watch", "timer"])
def test_what_is_cut_off_leaves_no_freed_memory_with_c(c_core, pair, what):
    """An exception may strike between the call of C and the line that remembers it: the handle
    goes, and with it its memory, which the context would go on writing to."""

    def use(loop):
        if what == "timer":
            loop.timer(1).arm(3600)
        elif what.endswith("watch"):
            watch = loop.watch(pair[0].fileno(), 1, READ)
            if what == "closed watch":
                watch.close()
        else:
            link = loop.open_link(pair[0].fileno(), 1)
            if what == "closed link":
                link.close()

    for at in itertools.count(1):
        loop = c_core.Loop()
        struck = strike(lambda loop=loop: use(loop), at)
        gc.collect()
        cast = loop._ffi.cast
        held = {
            int(cast("uintptr_t", loop._ffi.addressof(handle, "source")))
            for handle in (
                *(link._link for link in loop._links),
                *(watch._watch for watch in loop._watches),
            )
        }
        assert set(known_to_c(loop)) <= held, f"struck at step {at}"
        assert loop._context.wheel.armed_count == sum(timer.armed for timer in loop._armed)
        loop.descriptors()
        loop.close()
        if not struck:
            break
    assert at > 5


# Closed handles refuse


def test_a_closed_link_sends_nothing_and_answers_everything_else(loop, pair):
    """Somebody always calls once more; that must be an answer, never a crash and never a byte."""
    link = loop.open_link(pair[0].fileno(), 1)
    assert link.send(b"x") >= 0
    loop.turn()
    pair[1].recv(100)
    send, send_many, send_frame = link.send, link.send_many, link.send_frame
    link.close()
    link.close()
    assert send(b"x") == NOT_CONNECTED and send_many([b"x", b"y"]) == (0, NOT_CONNECTED)
    assert send_frame(PING) == NOT_CONNECTED and link.send_frame(DATA, b"x") == NOT_CONNECTED
    assert link.slots_pending == 0 and link.statistics().messages_accepted == 1
    link.pause()
    link.resume()
    link.shut()
    assert loop.turn() == []
    with pytest.raises(BlockingIOError):
        pair[1].recv(1)


def test_a_closed_loop_refuses_and_has_closed_what_it_made(loop, pair):
    """Its context is gone: whoever goes on has a mistake to be told of."""
    link, watch, timer = (
        loop.open_link(pair[0].fileno(), 1),
        loop.watch(pair[1].fileno(), 2, WRITE),
        loop.timer(3),
    )
    timer.arm(100.0)
    loop.close()
    loop.close()
    assert link.send(b"x") == NOT_CONNECTED
    for call in (
        loop.turn,
        lambda: loop.turn(1.0),
        lambda: loop.timer(1),
        lambda: timer.arm(1.0),
        lambda: loop.open_link(pair[0].fileno(), 1),
        lambda: loop.watch(pair[0].fileno(), 1, READ),
    ):
        with pytest.raises(errors.InvalidState):
            call()
    with pytest.raises(errors.InvalidState):
        watch.set(READ)
    assert not timer.armed and loop.descriptors() == [] and loop.fd == -1
    loop.wake()
    link.close()
    watch.close()
    timer.cancel()
    assert loop.statistics().turns == 0 and loop.pool.statistics().in_use == 0


def test_a_descriptor_stays_its_owners(loop, pair):
    """A handle that closes a descriptor it was lent closes somebody else's a moment later."""
    link = loop.open_link(pair[0].fileno(), 1)
    watch = loop.watch(pair[1].fileno(), 2, READ)
    watch.close()
    link.close()
    loop.close()
    pair[0].send(b"still open")
    assert pair[1].recv(100) == b"still open"


def test_a_closed_ingest_and_a_closed_pipeline_take_nothing(c_core):
    """The sans-I/O machines end in the same way."""
    ingest, pipeline = c_core.Ingest(), c_core.SendPipeline()
    frame = c_core.encode_frame(DATA, b"x")
    assert ingest.receive(frame[:5]) == []
    for _ in range(2):
        ingest.close()
        assert pipeline.close() == 0
    with pytest.raises(errors.InvalidState):
        ingest.receive(frame[5:])
    assert pipeline.send(DATA, b"x") < 0


# Memory outlives what points at it


def test_a_bound_send_owns_the_memory_and_not_the_handles(c_core, pair):
    """Link and loop must go when nobody has them, and the function that is left must still have
    something to read."""
    loop = c_core.Loop()
    link = loop.open_link(pair[0].fileno(), 1)
    send, send_many = link.send, link.send_many
    link.close()
    loop.close()
    gone, freed = is_gone(link, loop), is_gone(loop._context)
    held = weakref.ref(loop._context)
    del link, loop
    assert gone()
    assert held() is not None
    assert send(b"x" * 4_000) == NOT_CONNECTED and send_many([b"x"]) == (0, NOT_CONNECTED)
    del send
    assert not freed() and send_many([b"x"]) == (0, NOT_CONNECTED)
    del send_many
    assert freed()


def test_a_loop_that_nobody_has_closes_itself_with_all_that_it_made(c_core, pair):
    """No cycle keeps it, and nothing is freed under what is still used."""
    loop = c_core.Loop()
    link, watch, timer = (
        loop.open_link(pair[0].fileno(), 1),
        loop.watch(pair[1].fileno(), 2, READ),
        loop.timer(3),
    )
    timer.arm(0.0)
    link.send(b"in flight")
    gone = is_gone(loop, link, watch, timer)
    del loop, link, watch, timer
    assert gone()


def test_an_armed_timer_that_nobody_holds_still_expires(loop):
    """The wheel points into its memory: forgetting the handle must not free it."""
    for tag in range(200):
        loop.timer(tag).arm(0.0)
    gc.collect()
    told = []
    while len(told) < 200:
        told += loop.turn(1.0)
    assert sorted(event[1] for event in told) == list(range(200))


def test_a_link_or_watch_that_nobody_holds_still_works(loop, pair, c_core):
    """The loop keeps what it serves."""
    loop.open_link(pair[0].fileno(), 7)
    gc.collect()
    pair[1].send(c_core.encode_frame(PING, b"there?"))
    assert loop.turn(5.0)[0][1] == 7


def test_a_buffer_outlives_its_pool(c_core):
    """What is lent is written to until it comes back."""
    pool = c_core.BufferPool([(64, 4)])
    buffer, other = pool.acquire(64), pool.acquire(64)
    assert pool.close() == 2
    gone = is_gone(pool)
    del pool
    gc.collect()
    buffer.view[:] = bytes(range(64))
    assert bytes(buffer.view) == bytes(range(64))
    buffer.release()
    other.release(1)
    with pytest.raises(ValueError, match="released"):
        buffer.view[0]
    del buffer, other
    assert gone()


def test_a_buffer_that_comes_back_to_a_closed_pool_is_freed(c_core):
    """Nobody will ask for it again."""
    pool = c_core.BufferPool([(64, 4)])
    buffers = [pool.acquire(64) for _ in range(3)]
    assert pool.close() == 3
    for buffer in buffers:
        buffer.release()
    assert pool.statistics().in_use == pool.statistics().bytes == 0


def test_machines_keep_the_pool_that_they_borrow_from(c_core):
    """A pool is often made in the call."""
    ingest = c_core.Ingest(pool=c_core.BufferPool([(16_384, 1)]))
    pipeline = c_core.SendPipeline(depth=2, slot_size=128, pool=c_core.BufferPool([(128, 2)]))
    gc.collect()
    frame = c_core.encode_frame(DATA, b"x" * 100)
    assert ingest.receive(frame[:50]) == [] and [
        got.payload for got in ingest.receive(frame[50:])
    ] == [b"x" * 100]
    assert pipeline.send(DATA, b"y" * 100) == 0
    index = pipeline.launch()
    gc.collect()
    assert c_core.decode_frame(pipeline.slot_bytes(index)).payload == b"y" * 100


def test_a_pipeline_that_is_dropped_in_flight_leaves_no_buffer_lent(c_core):
    """Nobody will complete what nobody has."""
    pool = c_core.BufferPool([(128, 4)])
    pipeline = c_core.SendPipeline(depth=4, slot_size=128, pool=pool)
    for _ in range(4):
        pipeline.send(DATA, b"z" * 100)
    assert pipeline.launch() >= 0 and pool.statistics().in_use == 4
    del pipeline
    gc.collect()
    assert pool.statistics().in_use == 0 and pool.close() == 0


def test_events_hold_nothing_of_the_loop(c_core, pair):
    """Payloads are Python's own: they may be kept for years."""
    loop = c_core.Loop()
    loop.open_link(pair[0].fileno(), 1)
    pair[1].send(c_core.encode_frame(DATA, b"kept") + c_core.encode_frame(PING, b"too"))
    events = loop.turn(5.0)
    loop.close()
    gone = is_gone(loop)
    del loop
    assert gone() and events[0][3] == [b"kept"] and events[1][3] == b"too"


def test_what_failed_while_it_was_made_leaves_nothing_behind(loop, pair):
    """A half-made link in the loop's list would be closed twice."""
    with pytest.raises(errors.PeerTalkError):
        loop.open_link(-1, 1)
    with pytest.raises(errors.PeerTalkError):
        loop.watch(-1, 1, READ)
    for wrong in (
        {"depth": 0},
        {"depth": 65},
        {"slot_size": 11},
        {"slot_size": 65_536},
        {"max_payload": -1},
    ):
        with pytest.raises(errors.InvalidArgument):
            loop.open_link(pair[0].fileno(), 1, **wrong)
    loop.open_link(pair[0].fileno(), 1).send(b"after all that")
    assert loop.turn()[-1][:3] == (SENT, 1, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"io_budget": 0},
        {"io_budget": 1_025},
        {"platform": "mactcp"},
        {"pool": "of another core"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_loop_out_of_bounds_is_refused_without_a_trace(c_core, wrong):
    """The collector finishes what was half made: that must not touch C memory that never was."""
    with pytest.raises(errors.InvalidArgument, match=next(iter(wrong))):
        c_core.Loop(**wrong)
    gc.collect()


def test_what_a_turn_needs_follows_the_budget_of_its_loop(c_core):
    """A node at rest pays for the sources that its turns serve, not for those that they could."""
    cost = {}
    for budget in (1, 16, 63, 64, 1_024):
        loop = c_core.Loop(io_budget=budget)
        cost[budget] = loop.memory()["loop"][0] + loop.memory()["context"][0]
        loop.close()
    place, event = map(loop._ffi.sizeof, ("void *", "pt_event"))
    assert cost[16] - cost[1] == 15 * place
    assert cost[63] - cost[16] == 47 * place, "256 events are enough for 63 sources"
    assert cost[64] - cost[63] == place + 4 * event
    assert cost[1_024] - cost[63] == 961 * (place + 4 * event)


def test_a_core_that_was_not_built_is_an_import_error():
    """load() turns it into a sentence; here it must not be half a binding."""
    with pytest.raises(ImportError):
        Compiled("nosuch")


def test_the_binding_of_a_core_has_no_state_but_its_module(c_core):
    """Two loops of one core share nothing that one of them could break."""
    binding = c_core.Loop.args[0]
    assert isinstance(binding.border, types.ModuleType) and binding.name == c_core.name
    first, second = c_core.Loop(), c_core.Loop()
    first.close()
    assert second.turn() == []
    second.close()
