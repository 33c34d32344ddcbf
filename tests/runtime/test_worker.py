"""The engine on somebody else's loop: turned when there is something to do, not otherwise, and let
go before its descriptors close.

The engine is a stub that counts its turns; descriptors and event loops are those of the system.
"""

from __future__ import annotations

import asyncio
import os
import threading
import types

import pytest
from kit.striking import Striking
from kit.waiting import GUARD

from peertalk._core.values import READ, WRITE
from peertalk.runtime.worker import Worker
from peertalk.waiting import Waiting


class CountedEngine:
    """Counts turns, and says what the worker asks for."""

    def __init__(self, fd=-1):
        self.turns = 0
        self.thread = threading.get_ident()
        self.closed = self.unfinished = self.owes = False
        self.orders, self.receiver = [], None
        self.brought = []
        self.timeout = None
        self.wanted = []
        self.before_release = self.before_closing = None
        self.loop = types.SimpleNamespace(
            fd=fd,
            next_timeout=lambda: self.timeout,
            descriptors=lambda: self.wanted,
            again=self.again,
        )
        self._ready = None
        self.on_turn = lambda: None
        self._waiting = []

    def turn(self):
        self.turns += 1
        self.on_turn()
        for number, waiting in list(self._waiting):
            if self.turns >= number and not waiting.done():
                waiting.set_result(None)

    def again(self, function, struck):
        """As that of a loop, which is ready for a turn then."""

        def call():
            try:
                function()
            except BaseException:
                struck.append(None)
                asyncio.get_running_loop().call_soon(self._ready)
                raise

        self._ready = self._ready or call
        return call

    def quick(self):
        """No turn of this one is without Python."""

    def giver(self):
        def take(waits, alone, place):
            place[0] = self.brought.pop() if len(self.brought) == 1 else None
            return place[0] is not None

        return take

    def move_here(self):
        self.thread = threading.get_ident()

    async def turned(self, number):
        """When so many turns have been made."""
        if self.turns < number:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append((number, waiting))
            await waiting


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


async def tick(count=3):
    """Let everything happen that was asked for by now."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_burst_of_requests_is_one_turn():
    """This is why a thousand sends in one tick are a few writes."""
    engine, worker = CountedEngine(), Worker(asyncio.get_running_loop())
    worker.start(engine)
    for _ in range(1_000):
        worker.schedule()
    await tick()
    assert engine.turns == 1
    worker.schedule()
    await tick()
    assert engine.turns == 2
    await tick(20)
    assert engine.turns == 2, "an idle engine costs nothing"
    worker.stop()


async def test_a_turn_that_asks_for_another_does_not_starve_the_others():
    """Turns follow each other, but the loop serves everybody else in between."""
    engine, worker = CountedEngine(), Worker(asyncio.get_running_loop())
    engine.timeout = 0.0
    worker.start(engine)
    before = 0
    for _ in range(10):
        await tick()
        assert before < engine.turns <= before + 5
        before = engine.turns
    worker.stop()


async def test_a_task_that_a_turn_wakes_goes_on_in_that_tick_and_what_it_sends_leaves_in_it(pipe):
    """An answer that left two ticks later was a quarter of a round trip. Whoever is woken by the
    second turn waits for the next tick, or two nodes that talk would keep all others up."""
    reading, writing = pipe
    loop, order = asyncio.get_running_loop(), []
    engine, worker = CountedEngine(reading), Worker(loop)

    def sends(name):
        order.append(name)
        worker.schedule()

    def turning():
        order.append("turn")
        if len(order) == 1:
            os.read(reading, 1)
            loop.call_soon(order.append, "tick")
            engine.resume(lambda: sends("one"))
            engine.resume(lambda: sends("two"))
        elif len(order) == 4:
            engine.resume(lambda: sends("late"))

    worker.start(engine)
    await engine.turned(1)
    engine.on_turn = turning
    os.write(writing, b"x")
    await engine.turned(4)
    assert order == ["turn", "one", "two", "turn", "tick", "late", "turn"]
    engine.resume(lambda: order.append("outside"))
    assert order[-1] == "turn"
    await tick()
    assert order[-1] == "outside"
    worker.stop()


def waiting_task(engine, loop, then=lambda: None):
    """A task that waits for a message first in line, and what it has got."""
    got = []

    async def wait():
        engine.receiver = Waiting(loop, engine.resume)
        await engine.receiver
        got.extend(engine.receiver.got)
        then()

    return loop.create_task(wait()), got


async def test_one_message_is_given_to_the_task_that_waits_without_a_turn(pipe, monkeypatch):
    """A turn is a third of a round trip. What else may be due has one a moment later."""
    monkeypatch.setattr("peertalk.runtime.worker._TELL", 0.001)
    loop, turns = asyncio.get_running_loop(), []
    engine, worker = CountedEngine(pipe[0]), Worker(loop)
    worker.start(engine)
    await engine.turned(1)
    task, got = waiting_task(engine, loop, lambda: turns.append(engine.turns))
    await tick()
    engine.brought = ["message"]
    loop.call_soon(worker._ready)
    await task
    assert got == ["message"] and turns == [1]
    await engine.turned(2)
    worker.stop()


@pytest.mark.parametrize("reason", ["several", "other threads", "asked", "told", "cancelled"])
async def test_what_is_more_than_one_message_for_a_task_that_waits_is_a_turn(pipe, reason):
    """In that tick: an order of another thread has no other wake-up."""
    loop = asyncio.get_running_loop()
    engine, worker = CountedEngine(pipe[0]), Worker(loop)
    worker.start(engine)
    await engine.turned(1)
    then = worker.schedule if reason == "asked" else lambda: None
    task, _ = waiting_task(engine, loop, then)
    await tick()
    engine.brought = ["message"]
    if reason == "several":
        engine.brought = ["message", "another"]
    elif reason == "other threads":
        engine.orders = [None]
    elif reason == "told":
        engine.receiver.tell()
    elif reason == "cancelled":
        task.cancel()
    ready = []
    loop.call_soon(lambda: ready.append((worker._ready(), engine.turns)))
    await asyncio.sleep(0)
    assert ready == [(None, 2)]
    assert len(engine.brought) == {"several": 2, "told": 1, "cancelled": 1}.get(reason, 0)
    task.cancel()
    worker.stop()


@pytest.mark.parametrize("strikes", [1, 2, 3])
def test_a_message_that_was_taken_is_given_once_wherever_signals_strike(
    any_loop, pipe, strikes, monkeypatch
):
    """The message is nowhere else then, and no other wakes the task; nor does any number of them
    end that, each of which strikes what is done about the one before."""

    class Interrupt(BaseException):
        pass

    def raises():
        raise Interrupt

    def struck_at(nth):
        engine, worker = CountedEngine(pipe[0]), Worker(any_loop)
        all_of_them = [
            Striking(nth, raises, ("peertalk.waiting", "peertalk.runtime.worker"))
            for _ in range(strikes)
        ]
        left = list(all_of_them)

        def by_a_turn():
            if engine.brought:
                engine.receiver.got[0] = engine.brought.pop()
                assert engine.receiver.tell()

        on_ready = worker._ready

        def ready():
            if not left or "message" not in (*engine.brought, *engine.receiver.got):
                on_ready()
                return
            strike = left.pop()
            strike.begin()
            try:
                on_ready()
            finally:
                strike.end()

        monkeypatch.setattr(worker, "_ready", ready)

        async def main():
            worker.start(engine)
            await engine.turned(1)
            task, got = waiting_task(engine, any_loop)
            await tick()
            engine.brought = ["message"]
            engine.on_turn = by_a_turn
            any_loop.call_soon(worker._on_ready)
            await asyncio.wait_for(task, GUARD)
            assert got == ["message"] and not engine.brought

        any_loop.set_exception_handler(lambda *_: None)
        any_loop.run_until_complete(main())
        worker.stop()
        return any(strike.struck for strike in all_of_them)

    steps = 1
    while struck_at(steps):
        steps += 1
    assert steps > 20  # where only lines are traced


async def test_two_tasks_that_wake_each_other_keep_nobody_up(pipe):
    """By events that their own calls bring, say: without a bound the turn would never end."""
    reading, writing = pipe
    loop, order = asyncio.get_running_loop(), []
    engine, worker = CountedEngine(reading), Worker(loop)

    def wakes(name, other):
        order.append(name)
        if len(order) < 100:
            engine.resume(lambda: wakes(other, name))

    def turning():
        if engine.turns == 2:
            os.read(reading, 1)
            loop.call_soon(order.append, "tick")
            engine.resume(lambda: wakes("one", "two"))

    worker.start(engine)
    await engine.turned(1)
    engine.on_turn = turning
    os.write(writing, b"x")
    await engine.turned(2)
    await tick(5)
    assert order[:3] == ["one", "tick", "two"]
    worker.stop()


async def test_what_a_woken_task_ends_with_leaves_the_loop_and_the_others_go_on(pipe):
    """As it would, had the loop let it go on."""
    reading, writing = pipe
    loop, went_on, raised = asyncio.get_running_loop(), [], []
    loop.set_exception_handler(lambda _, context: raised.append(context["exception"]))
    engine, worker = CountedEngine(reading), Worker(loop)

    class Ended(BaseException):
        pass

    def ends():
        if not went_on:
            went_on.append("ends")
            raise Ended

    def turning():
        if engine.turns == 2:
            os.read(reading, 1)
            engine.resume(ends)
            engine.resume(lambda: went_on.append("other"))

    worker.start(engine)
    await engine.turned(1)
    engine.on_turn = turning
    os.write(writing, b"x")
    await engine.turned(3)
    await tick()
    assert went_on == ["ends", "other"] and list(map(type, raised)) == [Ended]
    worker.stop()


def test_a_loop_that_runs_on_another_thread_takes_its_engine_there(any_loop):
    """Made here, turned there: a turn must find itself on the thread that the engine knows."""
    engine, worker = CountedEngine(), Worker(any_loop)
    worker.start(engine)
    threads = []

    def run():
        threads.append(threading.get_ident())
        any_loop.run_until_complete(engine.turned(1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    worker.stop()
    assert [engine.thread] == threads


async def test_its_one_descriptor_wakes_it(pipe):
    """epoll inside epoll: whatever the engine waits for, the loop sees one descriptor."""
    reading, writing = pipe
    engine, worker = CountedEngine(reading), Worker(asyncio.get_running_loop())
    engine.on_turn = lambda: os.read(reading, 1) if engine.turns == 2 else None
    worker.start(engine)
    await engine.turned(1)
    os.write(writing, b"x")
    await engine.turned(2)
    worker.stop()
    os.write(writing, b"x")
    await tick(10)
    assert engine.turns == 2


async def test_the_next_deadline_wakes_it_also_when_it_comes_nearer():
    """A timer of an hour that hides one of a millisecond is a message that leaves in an hour."""
    engine, worker = CountedEngine(), Worker(asyncio.get_running_loop())
    engine.timeout = 3_600.0
    worker.start(engine)
    await engine.turned(1)

    def far_again():
        engine.timeout = 3_600.0 if engine.turns > 2 else 0.001

    engine.on_turn = far_again
    worker.schedule()
    await engine.turned(3)
    worker.stop()
    await tick()
    assert engine.turns == 3


async def test_without_a_descriptor_of_its_own_each_of_its_descriptors_is_watched(pipe):
    """Where there is no epoll the set of descriptors changes with every turn."""
    reading, writing = pipe
    engine, worker = CountedEngine(), Worker(asyncio.get_running_loop())
    engine.wanted = [(reading, READ)]
    worker.start(engine)
    await engine.turned(1)
    os.write(writing, b"x")
    engine.on_turn = lambda: setattr(engine, "wanted", [])
    await engine.turned(2)
    await tick(10)
    settled = engine.turns
    assert settled <= 3, "no longer wanted, though still readable"
    engine.on_turn = lambda: setattr(
        engine, "wanted", [(reading, READ), (writing, WRITE)] if engine.turns < settled + 4 else []
    )
    worker.schedule()
    await engine.turned(settled + 4)
    worker.stop()
    left = engine.turns
    await tick(10)
    assert engine.turns == left


async def test_a_descriptor_is_let_go_before_it_is_closed():
    """Loops misbehave when a watched descriptor is closed, and worse when its number is used
    again."""
    reading, writing = os.pipe()
    engine, worker = CountedEngine(), Worker(asyncio.get_running_loop())
    engine.wanted = [(reading, READ)]
    worker.start(engine)
    await engine.turned(1)
    assert engine.before_closing is not None
    engine.wanted = []
    engine.before_closing(reading)
    engine.before_closing(reading)
    assert not asyncio.get_running_loop().remove_reader(reading)
    os.close(reading)
    os.close(writing)
    worker.stop()


async def test_a_stopped_worker_makes_no_turn_and_may_be_stopped_again(pipe):
    """What was asked for in the same tick must not reach a closed engine."""
    engine, worker = CountedEngine(pipe[0]), Worker(asyncio.get_running_loop())
    engine.timeout = 0.0
    worker.start(engine)
    assert engine.before_release is not None
    engine.before_release()
    worker.stop()
    worker.schedule()
    await tick(10)
    assert engine.turns == 0
    assert not asyncio.get_running_loop().remove_reader(pipe[0])


async def test_an_engine_that_closes_in_its_turn_is_not_asked_again():
    """Its loop is gone: next_timeout() would touch what is freed."""
    engine, worker = CountedEngine(), Worker(asyncio.get_running_loop())

    def close():
        engine.closed = True
        engine.loop = None

    engine.on_turn = close
    raised = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context))
    worker.start(engine)
    await tick()
    worker.schedule()
    await tick()
    assert engine.turns == 1 and not raised
    worker.stop()


@pytest.mark.parametrize("own_descriptor", [True, False])
def test_it_can_be_stopped_after_its_loop_was_closed(loop_kind, pipe, own_descriptor):
    """A node that was forgotten is cleaned up by the collector, when asyncio.run() is over."""
    loop = (
        pytest.importorskip("uvloop").new_event_loop()
        if loop_kind == "uvloop"
        else asyncio.new_event_loop()
    )
    engine, worker = CountedEngine(pipe[0] if own_descriptor else -1), Worker(loop)
    engine.wanted, engine.timeout = [(pipe[0], READ)], 3_600.0

    async def run():
        worker.start(engine)
        await engine.turned(1)

    loop.run_until_complete(run())
    loop.close()
    worker.stop()
    worker.stop()


async def test_a_deadline_that_passes_while_it_is_set_is_one_like_others():
    """uvloop answers call_at() of a time that has passed with a handle that knows no time."""
    engine, worker = CountedEngine(), Worker(asyncio.get_running_loop())
    engine.timeout = 1e-9
    raised = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context))
    worker.start(engine)
    await tick()
    worker.schedule()
    await engine.turned(4)
    assert not raised
    worker.stop()


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_a_turn_that_raises_is_followed_by_the_next_all_the_same(kind):
    """What is left of it would wait for a packet, and a deadline for ever."""
    loop = asyncio.new_event_loop()
    engine, worker = CountedEngine(), Worker(loop)
    engine.timeout = 0.001

    def strike():
        if engine.turns == 1:
            raise kind

    engine.on_turn = strike
    loop.set_exception_handler(lambda *_: None)
    worker.start(engine)
    if kind is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(engine.turned(2))
    loop.run_until_complete(engine.turned(2))
    worker.stop()
    loop.close()


async def test_a_turn_that_was_asked_for_and_never_came_is_asked_for_again(monkeypatch):
    """A signal handler that raises just when the loop calls it takes it away."""
    # less than nothing: the clock of uvloop stands still within a tick
    monkeypatch.setattr("peertalk.runtime.worker._LOST", -1.0)
    engine, worker = CountedEngine(), Worker(asyncio.get_running_loop())
    worker.start(engine)
    await engine.turned(1)
    worker._scheduled = True
    worker.schedule()
    await engine.turned(2)
    worker.stop()


@pytest.mark.parametrize("own_descriptor", [True, False])
async def test_an_engine_that_the_loop_does_not_watch_is_closed_or_tried_again(
    pipe, own_descriptor, monkeypatch
):
    """Out of memory for one more place in the set: a start that fails leaves nothing, and a link
    without one is watched a moment later."""
    loop = asyncio.get_running_loop()
    engine, worker = CountedEngine(pipe[0] if own_descriptor else -1), Worker(loop)
    engine.wanted, closed = [(pipe[0], READ)], []
    engine.close_now = lambda: closed.append(True)
    add_reader, refused = loop.add_reader, []

    def refuse(*arguments):
        if not refused:
            refused.append(True)
            raise OSError("no room")
        add_reader(*arguments)

    monkeypatch.setattr(loop, "add_reader", refuse)
    loop.set_exception_handler(lambda *_: None)
    if own_descriptor:
        with pytest.raises(OSError, match="no room"):
            worker.start(engine)
        assert closed
    else:
        worker.start(engine)
        await engine.turned(2)
        assert refused and worker._watched == {pipe[0]: READ}
    worker.stop()


async def test_what_has_left_is_told_by_a_turn_soon_and_by_one_for_all_of_it(monkeypatch):
    """A turn for each message would cost a round trip as much again; none would leave who looks at
    the counters waiting for the next packet."""
    monkeypatch.setattr("peertalk.runtime.worker._TELL", 0.001)
    engine, worker = CountedEngine(), Worker(asyncio.get_running_loop())
    worker.start(engine)
    await engine.turned(1)
    for _ in range(2):
        before = engine.turns
        for _ in range(10):
            engine.owes = True
            engine.linger()
        await engine.turned(before + 1)
        assert not engine.owes and worker._lingering is None
    before = engine.turns
    engine.linger()
    while worker._lingering is not None:
        await asyncio.sleep(0)
    assert engine.turns == before, "it was told meanwhile"
    engine.owes = True
    engine.linger()
    worker.stop()
    assert worker._lingering is None
    worker.linger()
    assert worker._lingering is None, "nobody turns it any more"


def test_who_is_woken_by_the_last_turn_goes_on_whatever_that_raises(any_loop, pipe):
    """The engine has ended, and no further turn comes."""
    engine, worker = CountedEngine(pipe[0]), Worker(any_loop)
    went_on = []

    def last():
        if engine.turns == 2:
            engine.resume(lambda: went_on.append(True) or any_loop.stop())
            engine.closed = True
            worker.stop()
            raise KeyboardInterrupt

    async def main():
        engine.on_turn = last
        worker.start(engine)
        await engine.turned(1)
        worker.schedule()

    with pytest.raises(KeyboardInterrupt):
        any_loop.run_until_complete(main())
        any_loop.run_forever()
    any_loop.call_later(GUARD, any_loop.stop)
    any_loop.run_forever()
    assert went_on
