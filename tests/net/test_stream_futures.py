"""What a stream returns to be awaited: wherever asyncio takes a coroutine, and however it ends.

The test_futures of the cores has the parts. Here they stand in a loop, with tasks and signals.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections import Counter
from typing import Any

import pytest
from conftest import HANG_GUARD, event_loop_factory
from kit.streams import cancelled, connected, waits

import peertalk
import peertalk as pt
from peertalk import errors
from peertalk.net import Listener, Stream

PACKAGE = peertalk.__file__.rpartition("/")[0]


async def test_a_read_may_be_whatever_asyncio_takes():
    """A task, one of several, shielded, or with a time-out: as a coroutine may be."""
    async with connected() as (ours, theirs):
        reading = asyncio.create_task(theirs.read())
        await ours.write_all(b"one")
        assert await reading == b"one"
        gathered = asyncio.gather(theirs.readexactly(3), ours.readexactly(3))
        await asyncio.gather(ours.write_all(b"two"), theirs.write_all(b"six"))
        assert await gathered == [b"two", b"six"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(theirs.read(), 0.001)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await theirs.read()
        shielded = asyncio.shield(theirs.read())
        await ours.write_all(b"more")
        assert await shielded == b"more"
        async with asyncio.TaskGroup() as group:
            read = group.create_task(theirs.read())
            group.create_task(ours.write_all(b"last"))
        assert read.result() == b"last"


async def test_a_read_that_nobody_awaits_takes_nothing_and_locks_nobody_out():
    async with connected() as (ours, theirs):
        never: Any = theirs.read()
        await ours.write_all(b"abc")
        assert await theirs.read() == b"abc"
        never.close()


async def test_the_methods_of_a_class_of_ones_own_stand_before_the_native_ones():
    class Counting(Stream):
        async def read(self, size: int = 2, *, timeout: float | None = None) -> bytes:
            return b"<" + await super().read(size, timeout=timeout) + b">"

    async with await Listener.bind("127.0.0.1:0") as listener:
        ours = await Counting.connect(listener.local_addr)
        theirs = await listener.accept()
    async with ours, theirs:
        await theirs.write_all(b"abc")
        assert [await ours.read(), await ours.read(timeout=30.0)] == [b"<ab>", b"<c>"]


@pytest.mark.parametrize("what", ["read", "readexactly", "write_all"])
async def test_a_wait_that_is_cancelled_again_and_again_loses_nothing(what):
    async with connected() as (ours, theirs):
        for number in range(30):
            data = bytes([number]) * 1_000
            if what == "write_all":
                await ours.write_all(data)
                task = asyncio.ensure_future(ours.write_all(b""))
                await cancelled(task)
            else:
                call = theirs.read() if what == "read" else theirs.readexactly(1_001)
                task = asyncio.ensure_future(call)
                for _ in range(number % 4):
                    await asyncio.sleep(0)
                await ours.write_all(data)
                for _ in range(number % 3):
                    await asyncio.sleep(0)
                if not task.done():
                    await cancelled(task)
                if task.done() and not task.cancelled():
                    assert await task == data
                    continue
            assert await theirs.readexactly(1_000) == data


async def test_a_second_reader_is_refused_whichever_way_the_first_one_waits():
    async with connected() as (_, theirs):
        for timeout in (None, 30.0):
            first = await waits(theirs.read(timeout=timeout))
            for second in (theirs.read(), theirs.read(timeout=1.0), theirs.readexactly(3)):
                with pytest.raises(errors.InvalidState, match="another task reads"):
                    await second
            await cancelled(first)


async def test_whoever_waits_hears_that_the_stream_was_closed():
    async with connected() as (_, theirs):
        reading = await waits(theirs.read())
        theirs.close_now()
        with pytest.raises(errors.InvalidState, match="closed meanwhile"):
            await reading


async def test_a_loop_that_debugs_wakes_whoever_waits():
    """Its log says which task blocks it, and so each step is the loop's own."""
    asyncio.get_running_loop().set_debug(True)
    async with connected() as (ours, theirs):
        for number in range(10):
            reading = await waits(theirs.readexactly(3))
            await ours.write_all(bytes([number]) * 3)
            assert await reading == bytes([number]) * 3


async def test_no_function_of_the_package_runs_for_a_trip(core):
    """What each trip costs is native, its turn too."""
    if core.name == "reference":
        pytest.skip("did not run: that core is Python")
    if core.name == "lowmem":
        pytest.skip(
            "did not run: the methods of streams are those of the core that was loaded first"
        )
    async with connected() as (ours, theirs):

        async def echo() -> None:
            while data := await theirs.read():
                await theirs.write_all(data)

        async def ask(trips: int) -> None:
            for _ in range(trips):
                await ours.write_all(b"x" * 64)
                assert await ours.readexactly(64) == b"x" * 64

        echoing = asyncio.create_task(echo())
        await ask(5)
        seen: Counter[str] = Counter()

        def note(frame: Any, event: str, _: Any) -> None:
            if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
                seen[frame.f_code.co_filename[len(PACKAGE) :]] += 1

        sys.setprofile(note)
        try:
            await ask(50)
            theirs.fileno()
        finally:
            sys.setprofile(None)
        await cancelled(echoing)
    assert seen == {"/net/endpoint.py": 1}, "the last one, which shows that they are counted"


class Struck(BaseException):
    """What the signal handler raises."""


def test_a_signal_that_strikes_a_turn_loses_no_wake_up(loop_kind, chosen_core):
    """Wherever it strikes the package, but in a task, the loop that is run again goes on."""
    if chosen_core.name == "reference":
        pytest.skip("did not run: what the loop calls is written in Python here, and may be struck")
    loop = event_loop_factory(loop_kind)()
    result: list[int] = []
    strikes = 0

    async def trips() -> None:
        async with connected() as (ours, theirs):

            async def echo() -> None:
                while data := await theirs.read():
                    await theirs.write_all(data)

            echoing = asyncio.create_task(echo())
            for number in range(3_000):
                await ours.write_all(number.to_bytes(8, "big"))
                # a turn is in Python only where something is due later
                got = await ours.readexactly(8, timeout=HANG_GUARD)
                assert int.from_bytes(got, "big") == number
                result.append(number)
            await cancelled(echoing)

    def strike(_: int, frame: Any) -> None:
        nonlocal strikes
        if time.monotonic() > give_up:  # the loop waits for ever, and hears of this alone
            raise TimeoutError(f"stands still after {len(result):,} trips")
        inside = frame.f_code.co_filename.startswith(PACKAGE)
        while inside and frame is not None:
            inside = frame.f_code.co_name != "__del__"  # which raises nothing: Python warns
            frame = frame.f_back
        if inside and loop.is_running() and asyncio.current_task(loop) is None:
            strikes += 1
            raise Struck

    before = signal.signal(signal.SIGALRM, strike)
    task = loop.create_task(trips())
    task.add_done_callback(lambda _: loop.stop())
    give_up = time.monotonic() + HANG_GUARD
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        while not task.done():
            try:
                loop.run_forever()
            except Struck:
                continue
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    task.result()
    assert len(result) == 3_000 and strikes
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


async def test_another_thread_is_refused_by_name():
    async with connected() as (ours, _):
        said = []

        def other() -> None:
            try:
                asyncio.run(one())
            except errors.InvalidState as error:
                said.append(str(error))

        async def one() -> None:
            await ours.read()

        thread = threading.Thread(target=other)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert "another thread" in said[0]


async def test_a_long_message_is_read_by_buffers_that_are_smaller_than_the_read():
    """A read that is longer than the buffer of the loop is no sign that nothing is left."""
    data = bytes(range(256)) * 8_000
    async with connected() as (ours, theirs):
        writing = asyncio.create_task(ours.write_all(data))
        read = bytearray()
        while len(read) < len(data):
            read += await theirs.read(1 << 20, timeout=HANG_GUARD)
        assert read == data
        await writing


async def test_a_task_that_a_stream_has_woken_may_close_its_node():
    """It takes its step within the turn of a reactor, which is no turn of the node."""
    async with connected() as (ours, theirs):
        node = await pt.Node("ada", bind="127.0.0.1", port=0, discovery=False).start()
        reading = await waits(ours.read())

        async def end() -> None:
            await ours.read()
            node.close_nowait()
            with pytest.raises(pt.InvalidState):
                node.rebalance()

        await theirs.write_all(b"x")
        await reading
        ending = await waits(end())
        await theirs.write_all(b"y")
        await ending
