"""The core in plain Python: the specification that runs, the yardstick of the tests and benchmarks,
and what is used where no compiler was.

Its names are those of every core; see peertalk._core.load().
"""

# ruff: noqa: F401 - what is imported here is what a core has

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from peertalk import errors
from peertalk._core.reference.byte_calls import byte_calls
from peertalk._core.reference.crc import NAME as crc_name
from peertalk._core.reference.crc import crc16
from peertalk._core.reference.crc32c import crc32c
from peertalk._core.reference.ingest import Ingest
from peertalk._core.reference.loop import Loop, loop_pool
from peertalk._core.reference.pipeline import SendPipeline
from peertalk._core.reference.pool import BufferPool
from peertalk._core.reference.reader import Reader
from peertalk._core.reference.reassembly import Reassembly, split_batch
from peertalk._core.reference.wheel import TimerWheel
from peertalk._core.reference.wire import (
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
from peertalk._numbers import (
    FRAME_MAX_PAYLOAD,
    MAX_PEERS,
    MESSAGE_MAX_PAYLOAD,
    POSIX_PIPELINE_DEPTH,
    POSIX_SLOT_SIZE,
    RECEIVE_BUFFER_SIZE,
    SEND_PIPELINE_DEPTH,
    SLOT_BUFFER_SIZE,
)

limits = (
    FRAME_MAX_PAYLOAD,
    POSIX_SLOT_SIZE,
    POSIX_PIPELINE_DEPTH,
    RECEIVE_BUFFER_SIZE,
    MAX_PEERS,
    MESSAGE_MAX_PAYLOAD,
    SLOT_BUFFER_SIZE,
    SEND_PIPELINE_DEPTH,
)
"""Those of the standard build; the last four are of the classic worlds, which this core does not
serve."""


def all_bytes(items: list[object]) -> bool:
    """Whether each of them is a bytes object, of no other class."""
    return all(type(each) is bytes for each in items)


def stream_methods(_: type) -> dict[str, Callable[..., Any]]:
    """None: those in Python are all that a stream has."""
    return {}


def Simulator(*_: object, **__: object) -> NoReturn:
    """The simulated network is C.

    Raises:
        NotSupported: always.
    """
    raise errors.NotSupported(
        "the reference core has no simulated network: use core='standard' or 'lowmem'"
    )


def Worker(*_: object, **__: object) -> NoReturn:
    """A thread that needs no interpreter is C.

    Raises:
        NotSupported: always.
    """
    raise errors.NotSupported(
        "the reference core has no workers: use workers=0, or core='standard' or 'lowmem'"
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
