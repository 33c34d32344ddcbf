"""An asynchronous iterator over what comes in lots."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Self


class Reader:
    """The items of an iterator, and when there are no more, of the next one.

    Args:
        more: a coroutine function that returns (item, items): the next item, and an iterator over
            those behind it, which stay where they are until they are taken: any number of tasks may
            ask at once, and the iterator of one replaces that of another. What it raises ends the
            loop; the next anext() asks anew.
    """

    __slots__ = ("_items", "_more")

    def __init__(self, more: Callable[[], Awaitable[tuple[Any, Iterator[Any]]]]) -> None:
        self._more = more
        self._items: Iterator[Any] = iter(())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        for item in self._items:
            return item
        try:
            item, self._items = await self._more()
        except BaseException:
            del self  # the traceback of the error must not keep what more belongs to
            raise
        return item
