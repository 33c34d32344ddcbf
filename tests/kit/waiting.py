"""How a test waits for what happens by itself: for the event, never for so many seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

GUARD = 20.0
"""Seconds after which what a test waits for counts as missing. A test that passes never waits so
long."""


async def until(condition: Callable[[], Any]) -> None:
    """Turn the event loop until something is so; at leisure, if it takes more than some turns."""
    async with asyncio.timeout(GUARD):
        turns = 0
        while not condition():
            turns += 1
            await asyncio.sleep(0 if turns < 100 else 0.001)


async def next_event(stream: Any, kind: type, seconds: float = GUARD) -> Any:
    """The next event of that kind; others are passed over."""
    async with asyncio.timeout(seconds):
        async for event in stream:
            if isinstance(event, kind):
                return event
    raise AssertionError(f"the stream ended without {kind.__name__}")
