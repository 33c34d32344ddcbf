"""Threads with sockets of their own: what runs there, and the five orders from any thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import math
import os
import signal
import socket
import threading

import pytest
import uvloop
from conftest import HANG_GUARD

from peertalk import errors
from peertalk.net import (
    AsyncSocketHandler,
    AsyncSocketState,
    CancelSocketTimeout,
    CloseSocket,
    Listener,
    ModifySocket,
    RegisterSocket,
    SetSocketTimeout,
    SocketInterest,
    Stream,
    Token,
    Worker,
)


@pytest.fixture(params=[None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def worker(request):
    with Worker("tested", loop_factory=request.param) as worker:
        yield worker


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def told(state: AsyncSocketState, interest: SocketInterest) -> threading.Event:
    """Set as soon as the state wakes who waits for that."""
    event = threading.Event()
    state.set_waker(interest, event.set)
    return event


# What runs there ----------------------------------------------------------------------------------


def test_functions_and_coroutines_run_there(worker):
    async def where(word):
        await asyncio.sleep(0)
        return word, threading.current_thread().name

    assert worker.run(where, "async") == ("async", "tested")
    assert worker.run(lambda: threading.current_thread().name) == "tested"
    assert worker.submit(where, 7).result(HANG_GUARD) == (7, "tested")
    with pytest.raises(ZeroDivisionError):
        worker.run(lambda: 1 // 0)
    assert "running" in repr(worker)


def test_what_is_late_or_cancelled_ends_there(worker):
    ended = threading.Event()

    async def for_ever():
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(errors.Timeout, match="not done within"):
        worker.run(for_ever, timeout=0.05)
    assert ended.wait(HANG_GUARD)
    ended.clear()
    began = threading.Event()

    async def begun():
        began.set()
        await for_ever()

    future = worker.submit(begun)
    assert began.wait(HANG_GUARD)
    future.cancel()
    assert ended.wait(HANG_GUARD)


def test_its_own_thread_may_not_wait_for_it(worker):
    for name in ("run", "close"):
        with pytest.raises(errors.InvalidState, match="on its own thread"):
            worker.run(getattr(worker, name), *([print] if name == "run" else []))


def test_its_end_ends_all_that_runs_there():
    async def for_ever(stream):
        await stream.read()

    async def both():
        async with await Listener.bind("127.0.0.1:0") as listener:
            ours = await Stream.connect(listener.local_addr)
            return ours, await listener.accept()

    worker = Worker()
    with pytest.raises(errors.InvalidState, match="was not started"):
        worker.submit(print)
    assert "not started" in repr(worker)
    worker.close()
    with pytest.raises(errors.InvalidState, match="is closed"):
        worker.submit(print)
    with Worker() as worker:
        with pytest.raises(errors.InvalidState, match="started before"):
            worker.start()
        ours, theirs = worker.run(both)
        reading = worker.submit(for_ever, ours)
    assert ours.closed
    assert theirs.closed
    with pytest.raises((concurrent.futures.CancelledError, errors.InvalidState)):
        reading.result(HANG_GUARD)
    for call in (worker.statistics, lambda: worker.order(CloseSocket(Token(0, 0)))):
        with pytest.raises(errors.InvalidState, match="is closed"):
            call()
    assert "closed" in repr(worker)
    worker.close()


def test_a_loop_that_cannot_be_made_is_told():
    def fail():
        raise OSError("no loop today")

    worker = Worker(loop_factory=fail)
    with pytest.raises(OSError, match="no loop today"):
        worker.start()
    with pytest.raises(errors.InvalidArgument, match="io_budget"):
        Worker(io_budget=0).start()
    with pytest.raises(errors.InvalidArgument, match="receive_buffer"):
        Worker(receive_buffer=0).start()


def test_a_task_that_does_not_end_holds_close_up_no_longer_than_told():
    go_on = threading.Event()
    began = threading.Event()

    async def stubborn():
        began.set()
        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.001)

    worker = Worker().start()
    worker.submit(stubborn)
    assert began.wait(HANG_GUARD)
    with pytest.raises(errors.Timeout, match="has not ended"):
        worker.close(timeout=0.05)
    go_on.set()
    worker.close(HANG_GUARD)


# Orders -------------------------------------------------------------------------------------------


def test_a_registered_socket_is_told_of(worker, pair):
    ours, theirs = pair
    state = AsyncSocketState()
    token = worker.order(RegisterSocket(ours.fileno(), SocketInterest.READ_WRITE, state)).result()
    assert isinstance(token, Token)
    assert told(state, SocketInterest.WRITABLE).wait(HANG_GUARD)
    waiting = told(state, SocketInterest.READABLE)
    theirs.send(b"x")
    assert waiting.wait(HANG_GUARD)
    assert state.readable
    assert worker.statistics().sockets == 1
    assert worker.order(CloseSocket(token)).result() is None
    assert state.closed
    assert worker.statistics().sockets == 0
    assert ours.recv(1) == b"x"  # the socket is still its owner's


def test_a_token_that_was_closed_is_refused_also_when_its_place_is_taken(worker, pair):
    ours, _ = pair
    register = RegisterSocket(ours.fileno(), SocketInterest.NONE, AsyncSocketState())
    stale = worker.order(register).result()
    worker.order(CloseSocket(stale)).result()
    token = worker.order(register).result()
    assert token.place == stale.place
    assert token != stale
    for order in (
        ModifySocket(stale, SocketInterest.READABLE),
        CloseSocket(stale),
        SetSocketTimeout(stale, 1.0),
        CancelSocketTimeout(stale),
        CloseSocket(Token(99, 0)),
        CloseSocket(Token(-1, 0)),
    ):
        with pytest.raises(errors.InvalidState, match="is not registered here"):
            worker.order(order).result()
    worker.order(CloseSocket(token)).result()


def test_interest_changes_and_none_is_one(worker, pair):
    ours, theirs = pair
    state = AsyncSocketState()
    token = worker.order(RegisterSocket(ours.fileno(), SocketInterest.NONE, state)).result()
    theirs.send(b"x")
    worker.order(ModifySocket(token, SocketInterest.NONE)).result()
    assert not state.readable
    worker.order(ModifySocket(token, SocketInterest.READABLE)).result()
    assert told(state, SocketInterest.READABLE).wait(HANG_GUARD)
    assert not state.writable
    worker.order(CloseSocket(token)).result()


def test_a_time_out_is_set_moved_and_cancelled(worker, pair):
    ours, _ = pair
    state = AsyncSocketState()
    token = worker.order(RegisterSocket(ours.fileno(), SocketInterest.NONE, state)).result()
    worker.order(SetSocketTimeout(token, 3_000.0)).result()
    worker.order(SetSocketTimeout(token, 0.01)).result()
    assert told(state, SocketInterest.READABLE).wait(HANG_GUARD)
    assert state.timed_out
    state.timed_out = False
    worker.order(SetSocketTimeout(token, 0.02)).result()
    worker.order(CancelSocketTimeout(token)).result()
    worker.run(asyncio.sleep, 0.06)
    assert not state.timed_out
    worker.order(CloseSocket(token)).result()


def test_who_listens_by_himself_hears_four_events(worker, pair):
    ours, theirs = pair
    events, heard = [], threading.Event()

    class Mine(AsyncSocketHandler):
        def on_readable(self):
            events.append(("readable", ours.recv(10)))
            heard.set()

        def on_writable(self):
            events.append("writable")

        def on_timeout(self):
            events.append("timeout")
            heard.set()

        def on_close(self):
            events.append("close")

    mine = Mine(AsyncSocketState())
    token = worker.order(RegisterSocket(ours.fileno(), SocketInterest.READABLE, mine)).result()
    theirs.send(b"x")
    assert heard.wait(HANG_GUARD)
    heard.clear()
    worker.order(SetSocketTimeout(token, 0.0)).result()
    assert heard.wait(HANG_GUARD)
    worker.order(CloseSocket(token)).result()
    assert events == [("readable", b"x"), "timeout", "close"]


def test_what_is_no_order_or_no_socket_is_refused(worker, pair):
    ours, _ = pair
    with pytest.raises(errors.WrongType, match="order takes"):
        worker.order("close")
    with pytest.raises(errors.WrongType, match="AsyncSocketState"):
        worker.order(RegisterSocket(ours.fileno(), SocketInterest.NONE, object())).result()
    register = RegisterSocket(ours.fileno(), SocketInterest.READABLE, AsyncSocketState())
    token = worker.order(register).result()
    with pytest.raises(errors.PeerTalkError):
        worker.order(register).result()  # a descriptor is watched once
    worker.order(CloseSocket(token)).result()
    assert worker.statistics().sockets == 0


def test_a_stream_is_closed_by_its_token(worker):
    async def both():
        async with await Listener.bind("127.0.0.1:0") as listener:
            return await Stream.connect(listener.local_addr), await listener.accept()

    ours, theirs = worker.run(both)
    reading = worker.submit(theirs.read)
    worker.order(CloseSocket(ours.token)).result()
    assert ours.closed
    assert reading.result(HANG_GUARD) == b""
    worker.run(theirs.aclose)


@pytest.mark.threads
def test_orders_of_many_threads_are_each_carried_out_once(worker):
    count = 25

    def use(_):
        for _ in range(count):
            one, other = socket.socketpair()
            with one, other:
                one.setblocking(False)
                state = AsyncSocketState()
                register = RegisterSocket(one.fileno(), SocketInterest.READABLE, state)
                token = worker.order(register).result(HANG_GUARD)
                waiting = told(state, SocketInterest.READABLE)
                other.send(b"x")
                assert waiting.wait(HANG_GUARD)
                worker.order(SetSocketTimeout(token, 60.0))
                worker.order(ModifySocket(token, SocketInterest.NONE))
                worker.order(CloseSocket(token)).result(HANG_GUARD)
                assert state.closed

    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        list(threads.map(use, range(6)))
    assert worker.statistics().sockets == 0
    # where a socket is watched only while somebody waits, a wait of another thread is an order too
    assert worker.statistics().orders in (6 * count * 4, 6 * count * 5)


def test_one_that_was_closed_is_not_started():
    worker = Worker()
    worker.close()
    with pytest.raises(errors.InvalidState, match="was closed before"):
        worker.start()


def test_one_that_is_closed_while_it_is_started_ends():
    making, closed = threading.Event(), threading.Event()

    def slow_loop() -> asyncio.AbstractEventLoop:
        making.set()
        assert closed.wait(HANG_GUARD)
        return asyncio.new_event_loop()

    worker = Worker(loop_factory=slow_loop)
    starting = threading.Thread(target=worker.start)
    starting.start()
    assert making.wait(HANG_GUARD)
    with pytest.raises(errors.Timeout):
        worker.close(timeout=0)
    closed.set()
    worker.close(HANG_GUARD)
    starting.join(HANG_GUARD)
    with pytest.raises(errors.InvalidState, match="is closed"):
        worker.submit(int)


@pytest.mark.parametrize("forever", [math.inf, 1e300, 2**70])
def test_a_time_out_may_be_as_long_as_you_like(forever):
    with Worker() as worker:
        assert worker.run(lambda: 5, timeout=forever) == 5
        worker.close(timeout=forever)


@pytest.mark.parametrize("past", [0, -1, -math.inf, math.nan])
def test_a_time_out_that_is_past_is_none(past):
    going = threading.Event()
    with Worker() as worker:
        with pytest.raises(errors.Timeout):
            worker.run(going.wait, timeout=past)
        with pytest.raises(errors.Timeout):
            worker.close(timeout=past)
        going.set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="did not run: no fork here")
def test_a_forked_child_has_no_workers(worker):
    child = os.fork()
    if child == 0:
        signal.alarm(HANG_GUARD)
        try:
            for call in (worker.run, worker.submit):
                with pytest.raises(errors.InvalidState, match="another process"):
                    call(int)
            worker.close()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert worker.run(lambda: 5) == 5


@pytest.mark.parametrize("interest", [-1, 4, 1 << 40, "1", None])
def test_an_interest_that_is_none_is_refused(worker, pair, interest):
    state = AsyncSocketState()
    with pytest.raises(errors.InvalidArgument, match="interest"):
        worker.order(RegisterSocket(pair[0].fileno(), interest, state)).result(HANG_GUARD)
    register = RegisterSocket(pair[0].fileno(), SocketInterest.NONE, state)
    token = worker.order(register).result(HANG_GUARD)
    with pytest.raises(errors.InvalidArgument, match="interest"):
        worker.order(ModifySocket(token, interest)).result(HANG_GUARD)
    worker.order(CloseSocket(token)).result(HANG_GUARD)
