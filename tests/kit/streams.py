"""Streams that are connected to each other, for tests of peertalk.net."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from peertalk.net import Listener, Stream

T = TypeVar("T")


@contextlib.asynccontextmanager
async def connected(address: Any = "127.0.0.1:0") -> AsyncIterator[tuple[Stream, Stream]]:
    """Both ends of a connection; closed behind the test."""
    async with await Listener.bind(address) as listener:
        ours, theirs = await asyncio.gather(Stream.connect(listener.local_addr), listener.accept())
    async with ours, theirs:
        yield ours, theirs


def narrow(*streams: Stream) -> None:
    """Let the system take as little as it can at once of what these write. Where a window is
    smaller than a packet TCP waits for a timer again and again: what was received has its room."""
    for stream in streams:
        with socket.socket(fileno=os.dup(stream.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)


async def read_all(stream: Stream, size: int) -> bytes:
    """So many bytes, in whatever pieces they come."""
    data = bytearray()
    while len(data) < size:
        piece = await stream.read()
        assert piece, f"the end after {len(data):,} of {size:,} bytes"
        data += piece
    return bytes(data)


async def waits(task: Awaitable[T]) -> asyncio.Future[T]:
    """A task that has come to where it waits: it is given three ticks for that."""
    started = asyncio.ensure_future(task)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not started.done()
    return started


async def cancelled(task: asyncio.Future[Any]) -> None:
    """Cancel a task, and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
