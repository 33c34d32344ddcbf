"""A compiled core as load() wants it: its pure functions, and each noun with its binding filled
in."""

from __future__ import annotations

from functools import partial

from peertalk._core.byte_calls import byte_calls
from peertalk._core.codec import Codec
from peertalk._core.handles import Ingest, Reassembly, SendPipeline, TimerWheel
from peertalk._core.loop import Loop
from peertalk._core.pool import BufferPool, loop_pool
from peertalk._core.simulator import Simulator
from peertalk._core.worker import Worker


class Compiled(Codec):
    """The surface of one compiled core; see Core.

    Args:
        name: "standard" or "lowmem".

    Raises:
        ImportError: it was not built.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.BufferPool = partial(BufferPool, self)
        self.Ingest = partial(Ingest, self)
        self.all_bytes = self.border.all_bytes
        self.Reader = self.border.Reader
        self.Reassembly = partial(Reassembly, self)
        self.SendPipeline = partial(SendPipeline, self)
        self.TimerWheel = partial(TimerWheel, self)
        self.Loop = partial(Loop, self)
        self.loop_pool = partial(loop_pool, self)
        self.byte_calls = partial(byte_calls, self)
        self.stream_methods = self.border.stream_methods
        self.Worker = Worker
        self.Simulator = partial(Simulator, self)
