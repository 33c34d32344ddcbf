"""The futures of streams: what a task awaits of a read or a write, tried at once and again when it
is woken; with the wakers, channels and layouts that they stand on.

Truth: a pair of sockets of the system, what asyncio does with its own futures, and the methods in
Python, which have to be asked for whatever is not simple.

More than 1,000 lines, because all of that stands on one desk, and is told apart by what it strikes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import select
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.waiting import GUARD

from peertalk._core.binding import Binding
from peertalk._core.values import EDGE, READ, READY, TIMER, WRITE
from peertalk._numbers import ERR_INVALID_STATE
from peertalk.net.endpoint import Side
from peertalk.protocol.socket_state import AsyncSocketState, Ticks

AHEAD = 16_384
"""What is read ahead; a shorter write in a tick that has seen one is kept until its end."""
TAG = 7


class Judged(Exception):
    """What a wait has ended with."""


def plain_class() -> type:
    """A stream with what its native methods need, and no more. Those in Python note who asked."""

    class Plain:
        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock
            self._channel: Any = None
            self.asked: list[tuple[Any, ...]] = []
            self.kept: list[tuple[bytes, type]] = []

        async def read(self, size: int = 65_536, *, timeout: float | None = None) -> Any:
            """Read some."""
            self.asked.append(("read", size, timeout))
            return "asked"

        async def readexactly(self, size: int, *, timeout: float | None = None) -> Any:
            """Read so many."""
            self.asked.append(("readexactly", size, timeout))
            await asyncio.sleep(0)
            return "asked"

        async def write_all(self, data: bytes, *, timeout: float | None = None) -> Any:
            """Write all."""
            self.asked.append(("write_all", data, timeout))
            return "asked"

        async def _write_on(self, data: bytes, done: int) -> None:
            self.asked.append(("_write_on", data, done))

        def _judge(self, side: Any) -> None:
            raise Judged

        def _not_now(self, number: int, doing: str) -> None:
            raise OSError(-number, doing)

        def _gather(self, data: bytes) -> None:
            self.out += data

        def _keep(self, rest: bytes, kind: type) -> None:
            self.kept.append((rest, kind))

    return Plain


class Desk:
    """One stream with its channel, and the socket at its other end, turned by hand."""

    def __init__(self, core: Any, loop: Any = None) -> None:
        self.calls = calls = core.byte_calls(100_000)
        kind = plain_class()
        for name, native in core.stream_methods(kind).items():
            setattr(kind, f"_slow_{name}", getattr(kind, name))
            setattr(kind, name, native)
        ours, self.theirs = socket.socketpair()
        for each in (ours, self.theirs):
            each.setblocking(False)
        self.stream = stream = kind(ours)
        self.state = calls.native_type("state", AsyncSocketState)()
        self.ticks = calls.native_type("ticks", Ticks)()
        self.ticks.credit, self.ticks.tick = 1_000, 1
        self.ticks.thread = threading.get_ident()
        side = calls.native_type("side", Side)
        self.sides = (side(READ), side(WRITE))
        stream.left, stream.out = bytearray(), bytearray()
        self.woken: list[Callable[[], object]] = []
        driver = (self.ticks, loop, self.resume)
        stream._channel = calls.channel(
            ours.fileno(), driver, self.state, self.sides, (stream.left, stream.out)
        )
        self.state.writable = True
        self.loop = core.Loop()
        self.watch = self.loop.watch(ours.fileno(), TAG, READ | WRITE | EDGE)
        self.channels = {TAG: stream._channel}
        self.came: list[Any] = []
        self.serve = self.loop.server(self.ticks, 1_000, self.channels, self.woken)
        self.serve(self.came)  # which finds that there is room, and a beginning

    def resume(self, waker: Any) -> bool:
        self.woken.append(waker)
        return True

    def turn(self) -> None:
        """The loop finds the socket ready, and those that it has woken go on."""
        assert self.serve(self.came) == 1
        assert not self.came and not self.woken

    def go_on(self) -> None:
        woken, self.woken[:] = list(self.woken), []
        for each in woken:
            each()

    def close(self) -> None:
        self.channels.clear()
        self.watch.close()
        self.loop.close()
        self.stream.sock.close()
        self.theirs.close()


@pytest.fixture
def desk(c_core: Any) -> Iterator[Desk]:
    made = Desk(c_core)
    yield made
    made.close()


@contextlib.contextmanager
def desk_here(core: Any) -> Iterator[Desk]:
    """One on the asyncio loop that runs."""
    made = Desk(core, asyncio.get_running_loop())
    try:
        yield made
    finally:
        made.close()


def step(future: Any) -> Any:
    """The result of a step that ends a future."""
    with pytest.raises(StopIteration) as stop:
        future.send(None)
    return stop.value.value


# Wakers -------------------------------------------------------------------------------------------


class Given:
    """Awaits a waker, as a future does."""

    def __init__(self, waker: Any) -> None:
        self.waker = waker

    def __await__(self) -> Iterator[Any]:
        self.waker._asyncio_future_blocking = True
        yield self.waker
        self.waker.result()


async def wait_for(waker: Any) -> str:
    await Given(waker)
    return "went on"


def waker_of(core: Any, resume: Any = None) -> Any:
    """A waker, which a channel makes otherwise."""
    with desk_here(core) as desk:
        reading = desk.stream.read()
        kind = type(reading.send(None))
        reading.close()
    return kind(asyncio.get_running_loop(), resume)


async def on_loop(call: Callable[[], object]) -> list[BaseException]:
    """Have the loop call this, as it calls a worker, and what it has raised."""
    called = asyncio.Event()
    raised = []

    def guarded() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)
        called.set()

    asyncio.get_running_loop().call_soon(guarded)
    await called.wait()
    return raised


async def test_whoever_waits_goes_on_once_he_is_told(c_core):
    waker = waker_of(c_core)
    task = asyncio.create_task(wait_for(waker))
    await asyncio.sleep(0)
    assert not waker.done() and waker.get_loop() is asyncio.get_running_loop()
    with pytest.raises(asyncio.InvalidStateError):
        waker.result()
    assert waker.tell() is True and waker.done()
    assert waker.tell() is False
    assert await task == "went on"
    assert waker.result() is None and not waker.cancelled()


async def test_a_step_is_taken_by_the_call_and_only_once(c_core):
    woken: list[Any] = []
    waker = waker_of(c_core, lambda waker: woken.append(waker) or True)
    task = asyncio.create_task(wait_for(waker))
    await asyncio.sleep(0)
    assert waker.tell() is True and woken == [waker] and not waker.done()
    assert await on_loop(waker) == []
    assert task.done() and await task == "went on"
    waker()
    assert waker.tell() is False and woken == [waker]


async def test_a_worker_whose_loop_is_closed_tells_nobody(c_core):
    waker = waker_of(c_core, lambda _: False)
    assert waker.tell() is False and not waker.done()


async def test_what_was_told_before_somebody_waits_does_not_keep_him(c_core):
    for resume in (None, lambda waker: waker() is None):
        waker = waker_of(c_core, resume)
        assert waker.tell() is True
        assert await wait_for(waker) == "went on"


async def test_a_wait_is_cancelled_with_its_message(c_core):
    waker = waker_of(c_core)
    task = asyncio.create_task(wait_for(waker))
    await asyncio.sleep(0)
    task.cancel("never mind")
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await task
    assert cancelled.value.args == ("never mind",)
    assert waker.cancelled() and waker.done() and not waker.cancel()
    assert waker.tell() is False


async def test_two_tasks_cannot_wait_for_one_waker(c_core):
    waker = waker_of(c_core)
    step = print
    waker.add_done_callback(step)
    with pytest.raises(RuntimeError, match="another task"):
        waker.add_done_callback(step, context=None)
    assert [waker.remove_done_callback(step) for _ in range(2)] == [1, 0]
    for arguments in ((), (step, None)):
        with pytest.raises(TypeError):
            waker.add_done_callback(*arguments)
    with pytest.raises(TypeError):
        waker.add_done_callback(step, other=None)


async def test_what_a_step_ends_with_leaves_the_call(c_core):
    """As it leaves the loop: nothing less than a BaseException does."""
    woken: list[Any] = []
    waker = waker_of(c_core, lambda waker: woken.append(waker) or True)

    async def stop() -> None:
        await Given(waker)
        raise KeyboardInterrupt

    task = asyncio.create_task(stop())
    await asyncio.sleep(0)
    waker.tell()
    (raised,) = await on_loop(waker)
    assert isinstance(raised, KeyboardInterrupt)
    with contextlib.suppress(KeyboardInterrupt):
        await task


async def test_a_step_that_a_signal_took_away_is_taken_by_the_next_call(c_core):
    """A task that is written in Python can be struck before it has noticed that it was woken."""
    struck = []

    class Task(asyncio.tasks._PyTask):  # type: ignore[name-defined,misc]
        def _Task__wakeup(self, future: Any) -> None:
            if not struck:
                struck.append(True)
                raise KeyboardInterrupt
            super()._Task__wakeup(future)

    waker = waker_of(c_core, lambda _: True)
    task = Task(wait_for(waker), loop=asyncio.get_running_loop())
    await asyncio.sleep(0)
    waker.tell()
    (raised,) = await on_loop(waker)
    assert isinstance(raised, KeyboardInterrupt)
    asyncio.get_running_loop().call_soon(waker)
    assert await task == "went on"
    waker()


# Reading ------------------------------------------------------------------------------------------


def test_what_is_there_is_read_without_a_wait(desk):
    desk.theirs.send(b"hello you")
    desk.state.readable = True
    assert step(desk.stream.read(5)) == b"hello"
    assert desk.stream.left == b" you" and not desk.state.readable
    assert step(desk.stream.read()) == b" you"
    assert step(desk.stream.readexactly(0)) == b""
    assert not desk.stream.asked


def test_whoever_waits_has_what_came_when_he_is_woken(desk):
    reading = desk.stream.read(100)
    waker = reading.send(None)
    assert waker._asyncio_future_blocking and desk.sides[0].busy
    desk.theirs.send(b"late")
    desk.turn()
    assert waker.done() and desk.state.readable
    assert step(reading) == b"late"
    assert not desk.sides[0].busy and not desk.state.waits(READ)


def test_a_turn_that_brought_too_little_is_followed_by_another_wait(desk):
    reading = desk.stream.readexactly(6)
    reading.send(None)
    for piece in (b"ab", b"cd"):
        desk.theirs.send(piece)
        desk.turn()
        reading.send(None)
        assert desk.sides[0].busy and desk.state.waits(READ)
    desk.theirs.send(b"efgh")
    desk.turn()
    assert step(reading) == b"abcdef" and desk.stream.left == b"gh"


def test_the_end_of_a_stream_is_left_to_python(desk):
    """Which knows whether the connection broke, and finds the same end."""
    desk.theirs.close()
    desk.turn()
    assert desk.state.hung_up
    assert [step(desk.stream.read(size)) for size in (5, AHEAD + 1)] == ["asked"] * 2
    assert desk.stream.asked == [("read", 5, None), ("read", AHEAD + 1, None)]
    assert not desk.sides[0].busy


def test_an_end_that_is_too_early_is_left_to_python_with_what_came(desk):
    desk.theirs.send(b"abc")
    desk.theirs.close()
    desk.turn()
    for size in (5, AHEAD + 1):
        reading = desk.stream.readexactly(size)
        reading.send(None)
        assert step(reading) == "asked"
        assert desk.stream.left == b"abc"
    assert desk.stream.asked == [("readexactly", 5, None), ("readexactly", AHEAD + 1, None)]


def test_a_fault_of_the_system_is_raised(desk):
    desk.state.readable = True
    reading = desk.stream.read()
    with socket.socket() as unconnected:
        channel = desk.calls.channel(
            unconnected.fileno(),
            (desk.ticks, None, None),
            desk.state,
            desk.sides,
            (desk.stream.left, desk.stream.out),
        )
        desk.stream._channel, kept = channel, desk.stream._channel
        with pytest.raises(OSError, match="read"):
            desk.stream.read().send(None)
        desk.stream._channel = kept
    reading.close()


def test_what_was_read_of_a_long_message_is_there_when_its_read_is_given_up(desk):
    data = bytes(range(256)) * 200
    for end in ("close", "drop", "throw"):
        reading = desk.stream.readexactly(len(data))
        sent = desk.theirs.send(data[:20_000])
        desk.state.readable = True
        reading.send(None)
        if end == "close":
            reading.close()
        elif end == "throw":
            with pytest.raises(KeyError):
                reading.throw(KeyError("no"))
        del reading
        assert not desk.sides[0].busy and not desk.state.waits(READ)
        assert desk.stream.left == data[:sent]
        desk.stream.left.clear()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40_000)), max_size=8), st.data())
def test_bytes_come_in_order_whatever_the_cuts(c_core, reads, data):
    """Each read has what the one before has left, however the bytes came."""
    desk = Desk(c_core)
    try:
        sent = taken = 0
        stream = bytes(number * 7 % 251 for number in range(400_000))
        for exact, size in reads:
            reading = desk.stream.readexactly(size) if exact else desk.stream.read(size)
            while True:
                try:
                    reading.send(None)
                except StopIteration as stop:
                    got = stop.value
                    break
                piece = data.draw(st.integers(1, 30_000), label="piece")
                sent += desk.theirs.send(stream[sent : sent + piece])
                desk.turn()
            assert got == stream[taken : taken + len(got)]
            assert len(got) == size if exact else len(got) <= size
            assert got or not size
            taken += len(got)
        assert desk.stream.left == stream[taken:sent][: len(desk.stream.left)]
        assert not desk.stream.asked
    finally:
        desk.close()


# Writing ------------------------------------------------------------------------------------------


def test_the_first_write_of_a_tick_leaves_at_once_and_the_next_ones_wait_for_its_end(desk):
    for data in (b"one ", bytearray(b"two "), memoryview(b"three")):
        assert step(desk.stream.write_all(data)) is None
    assert desk.theirs.recv(100) == b"one " and desk.stream.out == b"two three"
    desk.stream.out.clear()
    desk.ticks.tick += 1
    assert step(desk.stream.write_all(b"four")) is None
    assert desk.theirs.recv(100) == b"four" and not desk.stream.out
    assert not desk.stream.asked


def test_what_the_system_does_not_take_waits_for_room(desk):
    data = bytes(range(256)) * 8_000
    writing = desk.stream.write_all(data)
    writing.send(None)
    assert desk.sides[1].busy and not desk.state.writable
    got = bytearray()
    while len(got) < len(data):
        with contextlib.suppress(BlockingIOError):
            while piece := desk.theirs.recv(1 << 20):
                got += piece
        if desk.sides[1].busy:
            desk.turn()
            with contextlib.suppress(StopIteration):
                writing.send(None)
    assert got == data and not desk.sides[1].busy and not desk.stream.kept


@pytest.mark.parametrize("end", ["close", "drop", "throw", "struck"])
def test_the_rest_of_a_write_that_is_given_up_is_kept(desk, end):
    data = bytes(2_000_000)
    writing = desk.stream.write_all(data)
    writing.send(None)
    expected: type[BaseException] = GeneratorExit
    if end == "close":
        writing.close()
    elif end == "throw":
        expected = KeyError
        with pytest.raises(KeyError):
            writing.throw(KeyError("no"))
    elif end == "struck":
        expected = Judged
        desk.state.set_error(OSError())
        desk.go_on()
        with pytest.raises(Judged):
            writing.send(None)
    del writing
    (rest, kind), *more = desk.stream.kept
    assert kind is expected and not more
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while piece := desk.theirs.recv(1 << 20):
            sent += len(piece)
    assert 0 < sent == len(data) - len(rest)
    assert not desk.sides[1].busy


def test_the_data_of_a_write_that_waits_do_not_change(desk):
    data = bytearray(2_000_000)
    writing = desk.stream.write_all(data)
    writing.send(None)
    with pytest.raises(BufferError):
        data.clear()
    writing.close()
    data.clear()


# What is not simple -------------------------------------------------------------------------------


def test_whatever_is_not_simple_is_left_to_python(desk):
    stream, state, sides, ticks = desk.stream, desk.state, desk.sides, desk.ticks
    desk.theirs.send(b"abc")
    state.readable = True

    def asked(future: Any) -> None:
        before = len(stream.asked)
        assert step(future) == "asked"
        assert len(stream.asked) == before + 1

    asked(stream.read(5, timeout=1.0))
    asked(stream.read(-1))
    asked(stream.read("5"))
    asked(stream.write_all(b""))
    asked(stream.write_all("text"))
    asked(stream.write_all(memoryview(b"abcd")[::2]))
    for side, call in ((0, lambda: stream.read(5)), (1, lambda: stream.write_all(b"x"))):
        sides[side].busy = True
        asked(call())
        sides[side].busy = False
        ticks.credit = 0
        asked(call())
        ticks.credit = 10
        ticks.thread += 1
        asked(call())
        ticks.thread -= 1
        state.closed = True
        asked(call())
        state.closed = False
    sides[1].ended = True
    asked(stream.write_all(b"x"))
    sides[1].ended = False
    state.set_error(OSError())
    asked(stream.write_all(b"x"))
    state.take_error()
    stream.out += b"waits"
    asked(stream.write_all(b"x"))
    stream.out.clear()
    assert ticks.credit == 10
    assert step(stream.read()) == b"abc" and ticks.credit == 9


def test_a_write_that_has_begun_goes_on_in_python(desk):
    data = bytes(2_000_000)
    writing = desk.stream.write_all(data)
    writing.send(None)
    with contextlib.suppress(BlockingIOError):
        while desk.theirs.recv(1 << 20):
            pass
    desk.turn()
    desk.ticks.credit = 0
    assert step(writing) is None
    ((name, given_data, done),) = desk.stream.asked
    assert name == "_write_on" and given_data is data and 0 < done < len(data)
    assert not desk.stream.kept


def test_a_socket_that_was_struck_while_nobody_looked_is_left_to_python(desk):
    desk.state.set_timed_out()
    assert step(desk.stream.read()) == "asked"


def test_a_wait_that_is_struck_ends_with_what_is_said_of_it(desk):
    for strike in (desk.state.set_timed_out, desk.state.set_closed):
        reading = desk.stream.read()
        reading.send(None)
        strike()
        desk.go_on()
        with pytest.raises(Judged):
            reading.send(None)
        assert not desk.sides[0].busy
        desk.state.timed_out = False


def test_what_python_does_is_thrown_into_and_closed(desk):
    desk.ticks.credit = 0
    for end in (KeyError, GeneratorExit):
        reading = desk.stream.readexactly(3)
        reading.send(None)
        with pytest.raises(end):
            reading.throw(end("no"))
        with pytest.raises(RuntimeError, match="already"):
            reading.send(None)
    reading = desk.stream.readexactly(3)
    reading.send(None)
    reading.close()


def test_a_future_is_awaited_once(desk):
    desk.theirs.send(b"abc")
    desk.state.readable = True
    reading = desk.stream.read()
    assert step(reading) == b"abc"
    with pytest.raises(RuntimeError, match="already"):
        reading.send(None)
    never = desk.stream.read()
    never.close()
    with pytest.raises(RuntimeError, match="already"):
        never.send(None)


def test_wrong_arguments_are_errors(desk):
    stream = desk.stream
    for call, arguments, named in (
        (stream.read, (1, 2), {}),
        (stream.read, (), {"length": 1}),
        (stream.readexactly, (), {}),
        (stream.readexactly, (1,), {"size": 1}),
        (stream.write_all, (), {"timeout": 1.0}),
    ):
        with pytest.raises(TypeError):
            call(*arguments, **named)
    assert type(stream.read(size=1)) is type(stream.write_all(data=b"x"))


def test_native_methods_say_what_those_in_python_say(desk):
    kind = type(desk.stream)
    assert kind.read.__doc__ and kind.read.__text_signature__ == (
        "($self, size=65536, *, timeout=None)"
    )


# A turn -------------------------------------------------------------------------------------------


def test_a_turn_leaves_what_needs_python(desk):
    """And another one follows, so that an exception takes none of it away."""
    foreign = []
    timer = desk.loop.timer(5)
    timer.arm(0)
    desk.theirs.send(b"x")
    assert desk.serve(desk.came) == 1 and desk.came == [(TIMER, 5, 0, 0)]
    assert is_ready(desk.loop)
    desk.came.clear()
    assert desk.serve(desk.came) == 0 and not desk.came and not is_ready(desk.loop)
    desk.stream.out += b"waits"
    desk.theirs.send(b"x")
    assert desk.serve(desk.came) == 0 and desk.came == [(READY, TAG, READ | WRITE, 0)]
    desk.stream.out.clear()
    desk.came.clear()
    desk.state.readable = False
    desk.state.set_waker(READ, lambda: foreign.append(True))
    desk.theirs.send(b"x")
    assert desk.serve(desk.came) == 0 and not desk.state.readable
    assert [tag for _, tag, _, _ in desk.came] == [TAG] and not foreign and not desk.woken
    desk.came.clear()
    del desk.channels[TAG]
    desk.theirs.send(b"x")
    assert desk.serve(desk.came) == 0 and [tag for _, tag, _, _ in desk.came] == [TAG]


def is_ready(loop: Any) -> bool:
    """Whether another loop that watches this one would give it a turn."""
    return bool(select.select([loop.fd], [], [], 0)[0])


def test_after_what_a_step_raises_another_turn_follows_for_the_rest(desk):
    """And that step is asked to go on once more: it may not have begun."""
    called: list[str] = []

    def fail() -> None:
        called.append("fail")
        if len(called) == 1:
            raise KeyError

    desk.woken += [fail, partial(called.append, "rest")]
    with pytest.raises(KeyError):
        desk.serve(desk.came)
    assert called == ["fail"] and len(desk.woken) == 2 and is_ready(desk.loop)
    assert desk.serve(desk.came) == 0
    assert called == ["fail", "fail", "rest"] and not desk.woken


def test_what_raises_in_a_call_of_the_loop_is_followed_by_a_turn(desk):
    """However deep in that call; the native ones need no line of Python for that."""
    struck: list[None] = []
    raising: list[BaseException] = []

    def function() -> None:
        if raising:
            raise raising[0]

    turn_again = desk.loop.again(function, struck)
    desk.loop.turn(0.0, [])
    turn_again()
    assert not struck and not is_ready(desk.loop)
    raising.append(KeyboardInterrupt("now"))
    with pytest.raises(KeyboardInterrupt, match="now"):
        turn_again()
    assert struck == [None] and is_ready(desk.loop)
    desk.loop.close()
    with pytest.raises(KeyboardInterrupt):
        turn_again()
    assert len(struck) == 2


@pytest.mark.parametrize("rest", [None, True, False])
def test_what_is_quick_goes_first_and_the_function_has_the_rest(desk, rest):
    """All of it, while nobody knows how far an exception has let a call come."""
    struck: list[None] = []
    called: list[object] = []
    raising: list[BaseException] = []

    def quick() -> object:
        if raising:
            raise raising[0]
        called.append("quick")
        return rest

    turn_again = desk.loop.again(called.append, struck, quick)
    turn_again()
    assert called == ["quick"] + [rest] * (rest is not None)
    raising.append(KeyboardInterrupt("now"))
    with pytest.raises(KeyboardInterrupt, match="now"):
        turn_again()
    assert struck == [None] and is_ready(desk.loop)
    called.clear()
    turn_again()
    assert called == [False], "not quick"


def test_a_quick_turn_says_what_it_has_left(desk):
    """None: nothing; True: somebody who is to go on, or what is due later; False: a turn."""
    called: list[int] = []
    orders: list[object] = []
    quick = desk.loop.quick(desk.serve, desk.came, [], orders, ())
    assert quick() is None
    desk.theirs.send(b"x")
    desk.woken.append(partial(called.append, 1))
    turns = desk.ticks.turns
    assert quick() is None and called == [1] and desk.state.readable
    assert desk.ticks.turns == turns + 1 and desk.ticks.events
    desk.woken.append(lambda: desk.woken.append(print))
    assert quick() is True and desk.woken == [print]
    desk.woken.clear()
    timer = desk.loop.timer(TAG)
    timer.arm(60.0)
    assert quick() is True
    timer.cancel()
    orders.append(print)
    assert quick() is False and orders == [print]
    orders.clear()
    desk.came.append("left")
    assert quick() is False and desk.came == ["left"]
    desk.came.clear()
    timer.arm(0.0)
    assert quick() is False and [event[:2] for event in desk.came] == [(TIMER, TAG)]
    desk.came.clear()


def test_a_quick_turn_is_that_of_the_thread_whose_the_loop_is(desk):
    quick = desk.loop.quick(desk.serve, desk.came)
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(quick()))
    asking.start()
    asking.join(GUARD)
    assert answers == [False]


def test_a_task_that_a_quick_turn_wakes_may_close_the_loop(desk):
    quick = desk.loop.quick(desk.serve, desk.came)

    def close() -> None:
        desk.watch.close()
        desk.loop.close()

    desk.woken.append(close)
    assert quick() is None
    assert quick() is False, "which says that it is closed"


def test_a_quick_turn_is_bound_to_what_serves(desk):
    for arguments in ((print, []), (None, []), (desk.serve, ())):
        with pytest.raises(TypeError):
            desk.loop.quick(*arguments)
    with pytest.raises(TypeError):
        desk.loop.quick(desk.serve, [], None)()


def test_what_is_no_turn_of_a_loop_is_refused(desk):
    again = desk.loop._binding.border.Again
    for turn, struck in ((len, []), (print, []), (None, []), ([].append, [])):
        with pytest.raises(TypeError, match="the turn of a loop"):
            again(turn, print, struck)
    with pytest.raises(TypeError):
        again(None, print, ())


def test_whoever_is_woken_by_a_step_waits_for_the_next_turn(desk):
    called = []

    def again() -> None:
        called.append(True)
        desk.woken.append(again)

    desk.woken.append(again)
    for count in (1, 2, 3):
        assert desk.serve(desk.came) == 0 and len(called) == count and len(desk.woken) == 1
    desk.woken.clear()


def test_a_step_may_close_the_loop_or_take_the_rest_away(desk):
    desk.woken += [desk.woken.clear, print]
    assert desk.serve(desk.came) == 0
    desk.theirs.send(b"x")

    def close() -> None:
        desk.watch.close()
        desk.loop.close()
        raise KeyError

    desk.woken.append(close)
    with pytest.raises(KeyError):
        desk.serve(desk.came)
    assert desk.serve(desk.came) == ERR_INVALID_STATE


def test_a_turn_within_a_turn_is_refused_or_serves_the_rest(desk):
    answers = []
    desk.woken.append(lambda: answers.append(desk.serve(desk.came)))
    assert desk.serve(desk.came) == 0 and answers == [0]


def test_serve_is_bound_to_a_turn_and_ticks_that_it_knows(desk):
    woken: list[Any] = []
    for arguments in (
        (Ticks(), 5, {}, woken),
        (desk.ticks, 5, [], woken),
        (desk.ticks, 5, {}, ()),
        (desk.ticks, "5", {}, woken),
    ):
        with pytest.raises(TypeError):
            desk.loop.server(*arguments)
    with pytest.raises(TypeError):
        desk.serve(())


async def test_a_read_and_a_write_wait_at_once(c_core):
    with desk_here(c_core) as desk:
        reading = asyncio.ensure_future(take(desk.stream.read()))
        data = bytes(2_000_000)
        writing = asyncio.ensure_future(take(desk.stream.write_all(data)))
        await asyncio.sleep(0)
        desk.theirs.send(b"x")
        got = 0
        while not writing.done():
            with contextlib.suppress(BlockingIOError):
                got += len(desk.theirs.recv(1 << 20))
            await on_loop(desk.turn)
        assert await reading == b"x" and await writing is None and got > 0


async def take(future: Any) -> Any:
    return await future


async def test_a_wait_after_the_other_makes_no_new_wakers(c_core):
    with desk_here(c_core) as desk:
        seen = []

        async def read() -> None:
            while await desk.stream.readexactly(2) != b"no":
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        for word in [b"go"] * 50 + [b"no"]:
            seen.append(id(desk.state._wakers[READ][0].__self__))
            desk.theirs.send(word)
            await on_loop(desk.turn)
        assert len(set(seen)) == 2
        await task


async def test_a_task_that_is_cancelled_after_it_was_told_loses_nothing(c_core):
    with desk_here(c_core) as desk:
        task = asyncio.create_task(take(desk.stream.readexactly(3)))
        await asyncio.sleep(0)
        desk.theirs.send(b"abc")
        desk.state.set_readable()
        assert len(desk.woken) == 1
        task.cancel()
        await on_loop(desk.go_on)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await desk.stream.readexactly(3) == b"abc"


async def test_futures_keep_nothing_alive_and_leave_nothing_behind(c_core):
    async def trips(rounds: int) -> None:
        for _ in range(rounds):
            with desk_here(c_core) as desk:
                task = asyncio.create_task(take(desk.stream.readexactly(3)))
                await asyncio.sleep(0)
                desk.theirs.send(b"abc")
                await on_loop(desk.turn)
                assert await task == b"abc"
                never = asyncio.create_task(take(desk.stream.read()))
                await asyncio.sleep(0)
                never.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await never

    await trips(10)
    gc.collect()
    before = len(gc.get_objects())
    await trips(50)
    gc.collect()
    assert len(gc.get_objects()) <= before + 20


def test_a_stream_that_waits_for_itself_is_collected(c_core):
    """A task that nobody has any more, and its stream, are a circle through all parts."""
    desk = Desk(c_core)
    gone = []

    class Sign:
        def __del__(self) -> None:
            gone.append(True)

    async def read(sign: Sign) -> None:
        await kept[0].read()

    kept = [desk.stream]
    reading = read(Sign())
    waker = reading.send(None)
    waker.add_done_callback(reading.send)
    desk.close()
    kept.append(reading)
    del reading, waker, desk
    kept = []
    gc.collect()
    assert gone


# Layouts ------------------------------------------------------------------------------------------


def test_attributes_in_native_memory_are_those_of_the_class(core):
    native_type = core.byte_calls(1_000).native_type
    kind = native_type("state", AsyncSocketState)
    assert issubclass(kind, AsyncSocketState) and native_type("state", AsyncSocketState) is kind
    state = kind()
    assert not (state.readable or state.writable or state.closed or state.hung_up)
    woken = []
    state.set_waker(READ | WRITE, lambda: woken.append(state.readable))
    state.set_readable()
    assert woken == [True] and not state.waits(READ) and state.waits(WRITE)
    state.set_error(ValueError("no"))
    assert isinstance(state.take_error(), ValueError) and state.take_error() is None
    assert not hasattr(state, "__dict__")


def test_a_layout_has_one_class(c_core):
    native_type = c_core.byte_calls(1_000).native_type
    native_type("side", Side)
    for name, base in (("side", AsyncSocketState), ("other", Side)):
        with pytest.raises(ValueError, match="layout"):
            native_type(name, base)
    with pytest.raises(TypeError):
        native_type("side", 5)


def test_a_channel_refuses_what_it_does_not_know(c_core):
    desk = Desk(c_core)
    buffers = (bytearray(), bytearray())
    driver = (desk.ticks, None, None)
    make = desk.calls.channel
    with desk.theirs as theirs:
        fd = theirs.fileno()
        for arguments in (
            (fd, driver, AsyncSocketState(), desk.sides, buffers),
            (fd, driver, desk.state, (desk.sides[0], Side(READ)), buffers),
            (fd, (Ticks(), None, None), desk.state, desk.sides, buffers),
            (fd, driver, desk.state, desk.sides, (b"", b"")),
            (fd, driver, desk.state, desk.sides),
        ):
            with pytest.raises(TypeError):
                make(*arguments)
        with pytest.raises(ValueError, match="closed"):
            make(-1, driver, desk.state, desk.sides, buffers)
    desk.close()


def test_state_in_native_memory_is_collected(c_core):
    kind = c_core.byte_calls(1_000).native_type("state", AsyncSocketState)
    gone = []

    class Sign:
        def __del__(self) -> None:
            gone.append(True)

    state = kind()
    sign = Sign()
    sign.state = state
    state.set_waker(READ, partial(print, sign))
    del state, sign
    gc.collect()
    assert gone


def test_the_reference_core_has_no_native_methods(reference_core):
    assert reference_core.stream_methods(plain_class()) == {}
    calls = reference_core.byte_calls(1_000)
    assert calls.channel is None


def test_a_stream_without_a_channel_is_left_to_python(desk):
    desk.stream._channel = None
    assert step(desk.stream.read()) == "asked"
    del desk.stream._channel
    with pytest.raises(AttributeError):
        desk.stream.read()


def test_a_second_module_of_a_core_has_the_same_types(desk, c_core):
    """Each binding attaches them anew; a channel of the first one is still one."""
    binding = Binding(c_core.name)
    desk.theirs.send(b"abc")
    desk.turn()
    assert binding.border.Channel is type(desk.stream._channel)
    assert step(desk.stream.read()) == b"abc"


def test_another_thread_is_sent_to_python(desk):
    answers = []
    other = threading.Thread(target=lambda: answers.append(step(desk.stream.read())))
    other.start()
    other.join()
    assert answers == ["asked"]
