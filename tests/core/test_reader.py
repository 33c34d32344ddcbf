"""The reader: what comes in lots, one item after the other, for `async for`.

Truth: the lots themselves, and what a coroutine in its place would do.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest


class Lots:
    """Gives a lot at a time, or what is left of one; waits for each, where that was asked for."""

    def __init__(self, *lots: list[Any], waits: bool = False) -> None:
        self.lots = list(lots)
        self.left: Iterator[Any] = iter(())
        self.asked = 0
        self.waits = waits
        self.gate = asyncio.Semaphore(0)

    async def more(self) -> tuple[Any, Iterator[Any]]:
        self.asked += 1
        for item in self.left:
            return item, self.left
        if self.waits:
            await self.gate.acquire()
        if not self.lots:
            raise StopAsyncIteration
        self.left = iter(self.lots.pop(0))
        return next(self.left), self.left


async def test_items_come_in_order_and_more_is_asked_for_once_a_lot(core):
    lots = Lots([0, 1, 2], [3], [4, (5, 6)])
    assert [item async for item in core.Reader(lots.more)] == [0, 1, 2, 3, 4, (5, 6)]
    assert lots.asked == 4


async def test_who_waits_is_woken_with_what_has_come(core):
    lots = Lots([0, 1], [2], waits=True)
    reader = core.Reader(lots.more)
    got: asyncio.Queue[int] = asyncio.Queue()

    async def read() -> None:
        async for item in reader:
            got.put_nowait(item)

    task = asyncio.create_task(read())
    for expected in ([0, 1], [2], []):
        await asyncio.sleep(0)
        assert got.empty() and not task.done()
        lots.gate.release()
        assert [await got.get() for _ in expected] == expected
    await task


async def test_a_wait_that_is_cancelled_takes_nothing_and_the_next_one_goes_on(core):
    """An asynchronous generator would be dead."""
    lots = Lots(["first", "second"], waits=True)
    reader = core.Reader(lots.more)
    assert aiter(reader) is reader
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(reader), 0.001)
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    lots.gate.release()
    assert await waiting == "first"
    untaken = asyncio.ensure_future(anext(reader))
    untaken.cancel()  # before it has begun
    with pytest.raises(asyncio.CancelledError):
        await untaken
    assert await anext(reader) == "second"


async def test_what_more_raises_ends_a_loop_and_the_next_one_asks_anew(core):
    lots = Lots()
    reader = core.Reader(lots.more)
    for asked in (1, 2):
        assert [item async for item in reader] == []
        assert lots.asked == asked
    lots.lots = [[7]]
    assert await anext(reader) == 7
    with pytest.raises(StopAsyncIteration):
        await anext(reader)

    async def fail() -> tuple[Any, Iterator[Any]]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await anext(core.Reader(fail))


async def test_what_the_items_raise_comes_through(core):
    async def more() -> tuple[Any, Iterator[Any]]:
        return 1, (1 // number for number in (1, 0))

    reader = core.Reader(more)
    assert [await anext(reader), await anext(reader)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        await anext(reader)
    assert await anext(reader) == 1


async def test_what_more_answers_to_an_exception_is_an_item(core):
    """As a coroutine may catch what is thrown into it."""

    async def more() -> tuple[Any, Iterator[Any]]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "caught", iter(("next",))
        raise AssertionError("the wait has no end")

    reader = core.Reader(more)
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    waiting.cancel()
    assert await waiting == "caught"
    assert await anext(reader) == "next"


async def test_tasks_may_share_a_reader(core):
    """A generator refuses the second one; and one that was never awaited must not lock out all."""
    lots = Lots([1], [2], [3], [4, 5, 6], waits=True)
    reader = core.Reader(lots.more)
    asking = [asyncio.ensure_future(anext(reader)) for _ in range(2)]
    await asyncio.sleep(0)
    asking.append(asyncio.ensure_future(anext(reader)))
    never = asyncio.ensure_future(anext(reader))
    never.cancel()
    for expected in (1, 2, 3):
        lots.gate.release()
        assert await asking.pop(0) == expected
    lots.waits = False
    assert [await anext(reader) for _ in range(3)] == [4, 5, 6]
    with pytest.raises(StopAsyncIteration):
        await anext(reader)


async def test_a_wait_that_is_dropped_is_closed(c_core):
    closed = []

    async def more() -> tuple[Any, Iterator[Any]]:
        try:
            await asyncio.sleep(3600)
        finally:
            closed.append(True)
        raise AssertionError("the wait has no end")

    async def ask(reader: Any) -> Any:
        return await anext(reader)

    reader = c_core.Reader(more)
    asking = ask(reader)
    asking.send(None)
    asking.close()
    assert closed == [True]
    asking = ask(reader)  # and begins anew
    asking.send(None)
    asking.close()
    assert closed == [True, True]


async def test_wrong_answers_are_errors(c_core):
    async def nothing() -> Any:
        return None

    async def three() -> Any:
        return 1, 2, 3

    async def number() -> Any:
        return 1, 2

    for more in (nothing, three, number, print, None):
        with pytest.raises((TypeError, SystemError, AttributeError)):
            await anext(c_core.Reader(more))
    for arguments in ((), (1, 2)):
        with pytest.raises(TypeError):
            c_core.Reader(*arguments)


async def test_a_reader_keeps_nothing_alive_and_leaves_nothing_behind(c_core):
    class Item:
        pass

    async def read(rounds: int) -> None:
        for _ in range(rounds):
            lots = Lots([Item(), Item()], [Item()])
            async for _ in c_core.Reader(lots.more):
                pass

    await read(10)
    gc.collect()
    before = len(gc.get_objects())
    await read(100)
    assert len(gc.get_objects()) <= before + 5
    item = Item()
    references = sys.getrefcount(item)
    async for _ in c_core.Reader(Lots([item, item], [item]).more):
        pass
    assert sys.getrefcount(item) == references + 1  # the name _
    lots = Lots([1])
    lots.reader = c_core.Reader(lots.more)  # a cycle
    gone = weakref.ref(lots)
    del lots
    gc.collect()
    assert gone() is None


async def test_a_task_may_be_made_of_what_anext_gives(core):
    """As of a coroutine, and of what a generator gives."""
    reader = core.Reader(Lots([1], [2], [3]).more)
    assert await asyncio.create_task(anext(reader)) == 1
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(anext(reader)) for _ in range(2)]
    assert [each.result() for each in tasks] == [2, 3]


def test_items_that_come_back_to_their_reader_are_not_freed_under_it(c_core):
    """The second one ends them, and the reader lets them go, in the middle of the first."""
    came = []

    class Items:
        def __next__(self) -> int:
            if came:
                raise StopIteration
            came.append(None)
            came.append(ask())
            return 5

        def __iter__(self) -> Iterator[int]:
            return self

    async def more() -> tuple[Any, Iterator[Any]]:
        return 1, map(lambda *both: both, Items(), iter((2, 3)))

    reader = c_core.Reader(more)

    def ask() -> Any:
        with pytest.raises(StopIteration) as stop:
            next(reader)
        return stop.value.value

    assert [ask(), ask(), came] == [1, (5, 2), [None, 1]]


def test_a_reader_that_the_collector_has_emptied_gives_an_error(c_core):
    """What is freed with it may have code in C that still leads to it."""
    said = []

    def freed(_: int) -> None:
        reader = ctypes.cast(where[0], ctypes.py_object).value
        for call in (reader.__next__, partial(reader.throw, KeyError)):
            with pytest.raises(RuntimeError) as error:
                call()
            said.append(str(error.value))

    def make() -> int:
        late: dict[str, Any] = {}  # the collector sees a dict from its first container on
        reader = c_core.Reader(late.get)
        late["freed"] = capsule(id(make), None, free)
        late["cycle"] = [reader]
        return id(reader)

    kind = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
    free, capsule = kind(freed), ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, kind)
    where = [make()]
    gc.collect()
    assert len(said) == 2 and "nothing leads to it" in said[0]
