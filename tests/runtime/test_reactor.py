"""The sockets of one loop: nothing that was told is lost, whatever is raised, and one reactor for
each loop, as long as it has sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import Any

import pytest
from kit.streams import waits
from kit.waiting import GUARD

from peertalk import errors
from peertalk.net import Listener, Stream
from peertalk.protocol.socket_state import AsyncSocketHandler, AsyncSocketState, SocketInterest
from peertalk.runtime import reactor
from peertalk.runtime.reactor import Reactor, here


@pytest.fixture(autouse=True)
def chosen_core(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reactors of this test stand on: each core in turn."""
    monkeypatch.setenv("PEERTALK_CORE", core.name)


@pytest.fixture
def pairs():
    made = [socket.socketpair() for _ in range(8)]
    for each in made:
        for end in each:
            end.setblocking(False)
    yield made
    for each in made:
        for end in each:
            end.close()


class Noting(AsyncSocketHandler):
    """Notes what it is told, and may raise."""

    def __init__(self, raises: BaseException | None = None) -> None:
        super().__init__(AsyncSocketState())
        self.told: list[str] = []
        self.raises = raises

    def on_readable(self) -> None:
        self.told.append("readable")
        if self.raises is not None:
            raised, self.raises = self.raises, None
            raise raised

    def on_timeout(self) -> None:
        self.told.append("timeout")

    def on_close(self) -> None:
        self.told.append("close")


async def until(true) -> None:
    """Ticks until something is so; the guard of the test ends them."""
    while not true():
        await asyncio.sleep(0.001)


async def test_one_for_each_loop_until_its_last_socket_goes(pairs):
    first = here()
    assert here() is first
    one = first.register(pairs[0][0].fileno(), SocketInterest.NONE, Noting())
    other = first.register(pairs[1][0].fileno(), SocketInterest.NONE, Noting())
    first.unregister(one)
    first.unregister(one)
    assert not first.closed
    first.unregister(other)
    assert first.closed
    assert not reactor._reactors
    with pytest.raises(errors.InvalidState, match="closed"):
        first.register(pairs[0][0].fileno(), SocketInterest.NONE, Noting())
    with pytest.raises(errors.InvalidState, match="has ended"):
        first.post(lambda: None)
    second = here()
    assert second is not first
    second.close_now()


def test_that_of_a_loop_which_was_closed_goes_with_the_next(any_loop, pairs):
    async def register():
        return here().register(pairs[0][0].fileno(), SocketInterest.NONE, Noting())

    with asyncio.Runner() as runner:
        left = runner.run(register())
    assert len(reactor._reactors) == 1

    async def another():
        new = here()
        new.close_now()

    any_loop.run_until_complete(another())
    assert not reactor._reactors
    assert left.handler.told == ["close"]


async def test_what_one_of_them_raises_is_reported_and_the_others_are_told(pairs):
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    ours = here()
    handlers = [Noting(ValueError("broken") if number == 2 else None) for number in range(8)]
    for (end, other), handler in zip(pairs, handlers, strict=True):
        ours.register(end.fileno(), SocketInterest.READABLE, handler)
        other.send(b"x")
    await until(lambda: all(each.told for each in handlers))
    assert [str(each["exception"]) for each in told] == ["broken"]
    ours.close_now()
    assert all(each.told[-1] == "close" for each in handlers)


def test_an_interrupt_loses_nobody_what_was_told(any_loop, pairs):
    """Where changes are told once, a socket that is left out would be waited for for ever."""
    handlers = [Noting(KeyboardInterrupt() if number == 2 else None) for number in range(8)]

    async def register():
        ours = here()
        for (end, _), handler in zip(pairs, handlers, strict=True):
            ours.register(end.fileno(), SocketInterest.READABLE, handler)
        return ours

    ours = any_loop.run_until_complete(register())
    all_told = any_loop.create_task(until(lambda: all(each.told for each in handlers)))
    for _, other in pairs:
        other.send(b"x")
    with pytest.raises(KeyboardInterrupt):
        any_loop.run_until_complete(all_told)
    any_loop.run_until_complete(all_told)
    any_loop.call_soon(ours.close_now)
    any_loop.run_until_complete(asyncio.sleep(0))


async def test_timers_fire_once_in_order_and_not_when_cancelled():
    ours = here()
    fired = []
    timers = [ours.timer(lambda number=number: fired.append(number)) for number in range(4)]
    began = ours.owner.time()
    for number, seconds in enumerate((0.03, 0.01, 0.02, 0.01)):
        timers[number].arm(seconds)
    timers[3].cancel()
    timers[3].cancel()
    await until(lambda: 0 in fired)
    assert fired == [1, 2, 0]
    assert ours.owner.time() - began >= 0.03  # never early
    timers[1].arm(0.0)
    timers[1].arm(0.01)
    await until(lambda: len(fired) == 4)
    assert ours.statistics().timeouts == 4
    ours.close_now()


async def test_a_time_out_of_a_socket_moves_and_goes_with_it(pairs):
    ours, handler = here(), Noting()
    registered = ours.register(pairs[0][0].fileno(), SocketInterest.NONE, handler)
    ours.set_timeout(registered, None)
    ours.set_timeout(registered, 1_000.0)
    ours.set_timeout(registered, 0.005)
    await until(lambda: handler.told == ["timeout"])
    ours.set_timeout(registered, 0.005)
    ours.unregister(registered)
    await asyncio.sleep(0.02)
    assert handler.told == ["timeout"]


async def test_what_takes_long_is_done_slice_by_slice_and_holds_nobody_up(pairs):
    ours, handler, slices = here(), Noting(), []
    ours.register(pairs[0][0].fileno(), SocketInterest.READABLE, handler)

    def work():
        slices.append(len(handler.told))
        if len(slices) == 5:
            pairs[0][1].send(b"x")
        return len(slices) < 100

    ours.when_idle(work)
    await until(lambda: len(slices) == 100)
    assert slices[4] == 0
    assert slices[-1] == 1  # told in the middle of the work
    ours.close_now()


async def test_one_whose_first_socket_is_not_watched_ends():
    with open(os.devnull, "rb") as nothing:  # epoll and poll refuse a number that is none
        fd = nothing.fileno()
    with pytest.raises(errors.PeerTalkError):
        here().register(fd, SocketInterest.READABLE, Noting())
    assert not reactor._reactors


async def test_who_waits_for_what_takes_long_is_told_of_the_end(pairs):
    ours, slices = here(), []
    ours.register(pairs[0][0].fileno(), SocketInterest.READABLE, Noting())
    for number in range(3):
        ours.when_idle(lambda number=number: slices.append(number) or True)
    ours.close_now()
    assert slices == [0, 1, 2]


class Struck(KeyboardInterrupt):
    """What a signal handler raises."""


def test_what_a_signal_strikes_is_called_again(any_loop):
    """A flush, and a slice of work: neither they nor those behind them are lost."""
    called = []

    def strike(what):
        called.append(what)
        if called.count(what) == 1:
            raise Struck

    async def go():
        ours = here()
        ours.stays = True
        for what in ("one", "other"):
            ours.flush_soon(lambda what=what: strike(what))
            ours.when_idle(lambda what=what: strike("slow " + what))
        await until(lambda: len(called) == 8)
        ours.close_now()

    going = any_loop.create_task(go())
    while not going.done():
        with contextlib.suppress(Struck):
            any_loop.run_until_complete(going)
    assert sorted(called) == sorted(["one", "other", "slow one", "slow other"] * 2)


def test_a_flush_that_a_signal_strikes_is_called_again_though_nothing_else_is_due(any_loop):
    """A turn without Python would leave it, and its writer would wait for ever."""
    called = []

    def strike():
        called.append("flush")
        if len(called) == 1:
            raise Struck

    async def go():
        ours = here()
        ours.stays = True
        ours.flush_soon(strike)
        await until(lambda: len(called) == 2)
        ours.close_now()

    going = any_loop.create_task(go())
    while not going.done():
        with contextlib.suppress(Struck):
            any_loop.run_until_complete(asyncio.wait_for(asyncio.shield(going), GUARD))


async def test_orders_of_other_threads_are_carried_out_here_in_order():
    ours, done = here(), []
    ours.stays = True
    await asyncio.gather(
        *(asyncio.to_thread(ours.post, lambda n=n: done.append((n, ours.thread))) for n in range(9))
    )
    await until(lambda: len(done) == 9)
    assert {thread for _, thread in done} == {ours.thread}
    ours.close_now()
    ours.close_now()


async def test_a_flush_comes_when_the_tick_is_over():
    ours, flushed = here(), []
    before = ours.ticks.tick
    ours.flush_soon(lambda: flushed.append(1))
    ours.flush_soon(lambda: flushed.append(2))
    assert not flushed
    await asyncio.sleep(0)
    assert flushed == [1, 2]
    assert ours.ticks.tick > before
    ours.close_now()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="did not run: no fork here")
async def test_a_forked_child_has_none_and_takes_none_of_its_parents(pairs):
    ours, handler = here(), Noting()
    ours.register(pairs[0][0].fileno(), SocketInterest.READABLE, handler)
    child = os.fork()
    if child == 0:
        os._exit(0 if ours.closed and ours.loop.fd == -1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    pairs[0][1].send(b"x")
    await until(lambda: handler.told == ["readable"])
    ours.close_now()


async def test_bad_options_are_told():
    loop = asyncio.get_running_loop()
    with pytest.raises(errors.InvalidArgument, match="io_budget"):
        Reactor(loop, io_budget=0)
    with pytest.raises(errors.InvalidArgument, match="receive_buffer"):
        Reactor(loop, receive_buffer=0)


async def test_who_waits_is_woken_though_a_signal_strikes_the_telling():
    """What a handler in Python raises is told, and nothing more; a stream or a listener is told
    again, since a change comes once."""
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: told.append(about))
    async with await Listener.bind("127.0.0.1:0") as listener:
        accepting = await waits(listener.accept())

        def strike(frame, event, _):
            if event == "call" and frame.f_code.co_name == "on_readable":
                sys.setprofile(None)
                raise ZeroDivisionError

        sys.setprofile(strike)
        try:
            async with await Stream.connect(listener.local_addr):
                async with await asyncio.wait_for(accepting, GUARD):
                    pass
        finally:
            sys.setprofile(None)
    assert len(told) == 1 and isinstance(told[0]["exception"], ZeroDivisionError)
