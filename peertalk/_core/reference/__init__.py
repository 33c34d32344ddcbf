"""The core in plain Python: the specification that runs, the yardstick of the tests and benchmarks,
and what is used where no compiler was.

Its names are those of every core; see peertalk._core.load().
"""

from __future__ import annotations

from typing import NoReturn

from peertalk import errors
from peertalk._core.reference.crc import NAME as crc_name
from peertalk._core.reference.crc import crc16
from peertalk._core.reference.ingest import Ingest
from peertalk._core.reference.link import Link, Timer, Watch
from peertalk._core.reference.loop import RECEIVE_BUFFER_SIZE, Loop
from peertalk._core.reference.pipeline import DEPTH, SLOT_SIZE, SendPipeline
from peertalk._core.reference.pool import Buffer, BufferPool
from peertalk._core.reference.reassembly import Reassembly, split_batch
from peertalk._core.reference.wheel import TimerWheel
from peertalk._core.reference.wire import (
    FRAME_MAX_PAYLOAD,
    decode_capability,
    decode_compact,
    decode_datagram,
    decode_discovery,
    decode_fragment,
    decode_frame,
    decode_header,
    encode_capability,
    encode_compact,
    encode_datagram,
    encode_discovery,
    encode_fragment,
    encode_frame,
    encode_header,
    error_name,
    is_compact,
    strerror,
)

MAX_PEERS = 8
MESSAGE_MAX_PAYLOAD = 4_096
SLOT_BUFFER_SIZE = 4_112
"""Limits of the classic worlds, which this core does not serve; the same numbers as in the standard
build."""


def Simulator(*_: object, **__: object) -> NoReturn:
    """The simulated network is C.

    Raises:
        NotSupported: always.
    """
    raise errors.NotSupported(
        "the reference core has no simulated network: use core='standard' or 'lowmem'"
    )


def platforms() -> dict[str, dict[str, int]]:
    """What the loop's worlds have; see the compiled cores."""
    asynchronous = (
        "tcp_send_async",
        "poll_send_completions",
        "wait_send_completions",
        "send_slots_available",
    )
    both = {"tcp_send": 1, "ticks_per_second": 1_000, "simulated": 0}
    return {
        name: {**both, **dict.fromkeys(asynchronous, int(name == "posix"))}
        for name in ("posix", "posix_plain")
    }


__all__ = [
    "Buffer",
    "BufferPool",
    "DEPTH",
    "FRAME_MAX_PAYLOAD",
    "Ingest",
    "Link",
    "Loop",
    "MAX_PEERS",
    "MESSAGE_MAX_PAYLOAD",
    "RECEIVE_BUFFER_SIZE",
    "Reassembly",
    "SLOT_BUFFER_SIZE",
    "SLOT_SIZE",
    "SendPipeline",
    "Simulator",
    "Timer",
    "TimerWheel",
    "Watch",
    "crc16",
    "crc_name",
    "decode_capability",
    "decode_compact",
    "decode_datagram",
    "decode_discovery",
    "decode_fragment",
    "decode_frame",
    "decode_header",
    "encode_capability",
    "encode_compact",
    "encode_datagram",
    "encode_discovery",
    "encode_fragment",
    "encode_frame",
    "encode_header",
    "error_name",
    "is_compact",
    "platforms",
    "split_batch",
    "strerror",
]
