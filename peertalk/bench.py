"""The C core against the reference core, on the user's own machine.

Stages: crc, encode and decode (the pure functions of a core, one call a message), pipeline (a
SendPipeline: messages accepted, packed, handed out, completed and reported), whole (two loops
joined by a pair of sockets: from send_many on one side to the list of payloads on the other).

The reference core computes its CRC with the strong way that plain Python has, `binascii.crc_hqx`
over translated bytes, not with the textbook loop over a table, which is some fifty times slower: a
ratio against that would flatter.

Figures are nanoseconds a message: medians of runs in which both cores take turns.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

from ._core import load
from ._core.values import BATCH, DATA

YARDSTICK = "crc_hqx over translated bytes"
"""Which Python CRC the figures beat."""

STAGES = ("crc", "encode", "decode", "pipeline", "whole")
SIZES = (16, 64, 1024, 4096)

_GROUP = 16
"""Messages that the pipeline stage accepts before it hands them out: what a small burst is."""
_BURST = 1024
"""Messages that the whole stage sends at once."""


class Effort(NamedTuple):
    """How long to measure. rounds: of which the median is taken; seconds: of one run of one
    core."""

    rounds: int
    seconds: float


THOROUGH = Effort(9, 0.02)
QUICK = Effort(3, 0.003)


class Row(NamedTuple):
    """One figure: ns a message of `bytes` bytes on either core, and how many times faster C is."""

    stage: str
    bytes: int
    c_ns: float
    reference_ns: float

    @property
    def ratio(self) -> float:
        """reference_ns / c_ns."""
        return self.reference_ns / self.c_ns

    def as_json(self) -> dict[str, Any]:
        """As `peertalk bench --json` prints it."""
        return {
            "stage": self.stage,
            "bytes": self.bytes,
            "c_ns": round(self.c_ns, 1),
            "reference_ns": round(self.reference_ns, 1),
            "ratio": round(self.ratio, 2),
        }


Work = Callable[[int], None]
"""Does the stage for so many messages, a multiple of _BURST."""


def measure(
    effort: Effort = THOROUGH,
    stages: tuple[str, ...] = STAGES,
    sizes: tuple[int, ...] = SIZES,
    core: str = "standard",
) -> Iterator[Row]:
    """Measure stage by stage, each at each size.

    Raises:
        NotSupported: the C core was not built here.
    """
    ours, theirs = load(core), load("reference")
    for stage in stages:
        for size in sizes:
            with ExitStack() as stack:
                work = [_MAKERS[stage](one, size, stack) for one in (ours, theirs)]
                yield Row(stage, size, *_interleaved(work, effort))


def _interleaved(work: list[Work], effort: Effort) -> list[float]:
    """ns a message of each, in turns."""
    counts = [_count_for(one, effort.seconds) for one in work]
    taken: list[list[float]] = [[] for _ in work]
    for _ in range(effort.rounds):
        for one, count, times in zip(work, counts, taken, strict=True):
            began = time.perf_counter()
            one(count)
            times.append((time.perf_counter() - began) / count * 1e9)
    return [statistics.median(times) for times in taken]


def _count_for(work: Work, seconds: float) -> int:
    """How many messages take so long, in whole bursts."""
    count = _BURST
    while True:
        began = time.perf_counter()
        work(count)
        took = time.perf_counter() - began
        if took >= seconds / 4:
            return max(1, round(count * seconds / took / _BURST)) * _BURST
        count *= 4


# Stages -------------------------------------------------------------------------------------------


def _payload(size: int) -> bytes:
    return bytes(index * 7 & 0xFF for index in range(size))


def _each(function: Callable[[bytes], object], data: bytes) -> Work:
    def work(count: int) -> None:
        for _ in range(count):
            function(data)

    return work


def _crc(core: Any, size: int, stack: ExitStack) -> Work:
    return _each(core.crc16, _payload(size))


def _encode(core: Any, size: int, stack: ExitStack) -> Work:
    payload, encode = _payload(size), core.encode_frame

    def work(count: int) -> None:
        for _ in range(count):
            encode(DATA, payload)

    return work


def _decode(core: Any, size: int, stack: ExitStack) -> Work:
    return _each(core.decode_frame, core.encode_frame(DATA, _payload(size)))


def _pipeline(core: Any, size: int, stack: ExitStack) -> Work:
    payload, pipeline = _payload(size), core.SendPipeline()
    stack.callback(pipeline.close)
    send, launch, complete, report = (
        pipeline.send,
        pipeline.launch,
        pipeline.complete,
        pipeline.report,
    )

    def drain() -> None:
        while (index := launch()) >= 0:
            complete(index)
        while report() is not None:
            pass

    def work(count: int) -> None:
        for start in range(0, count, _GROUP):
            for _ in range(min(_GROUP, count - start)):
                if send(DATA, payload) < 0:
                    drain()
                    if send(DATA, payload) < 0:
                        raise RuntimeError("an empty pipeline took no message")
            drain()

    return work


def _whole(core: Any, size: int, stack: ExitStack) -> Work:
    payloads = [_payload(size)] * _BURST
    ends = socket.socketpair()
    loops = []
    for end in ends:
        end.setblocking(False)
        loop = core.Loop()
        stack.callback(end.close)
        stack.callback(loop.close)
        loops.append((loop, loop.open_link(end.fileno(), 1)))
    (sending, link), (receiving, _) = loops

    def work(count: int) -> None:
        for _ in range(count // _BURST):
            sent = received = 0
            while received < _BURST:
                if sent < _BURST:
                    sent += link.send_many(payloads, sent)[0]
                sending.turn(0.0)
                for kind, _, _, b in receiving.turn(0.0):
                    if kind == BATCH:
                        received += len(b)

    return work


_MAKERS: dict[str, Callable[[Any, int, ExitStack], Work]] = {
    "crc": _crc,
    "encode": _encode,
    "decode": _decode,
    "pipeline": _pipeline,
    "whole": _whole,
}
