"""The stair between the two storeys: three cores behind one surface.

"standard" and "lowmem" are the compiled C core with different limits; "reference" is the same in
plain Python. What they share is the Core class below: pure functions, sans-I/O machines and the
loop, with the same names, results and exceptions. values.py has the plain values.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from peertalk import errors
from peertalk._core.values import (
    ByteCalls,
    Capability,
    CompactHeader,
    Datagram,
    Discovery,
    FragmentHeader,
    Frame,
    Header,
)

__all__ = ["CORES", "Core", "Limits", "load"]

CORES = ("standard", "lowmem", "reference")


class Limits(NamedTuple):
    """Compile-time limits, in bytes but for max_peers and the depths (slots).

    message_max_payload, slot_buffer_size, classic_depth and max_peers describe the classic worlds;
    sockets use slot_size, pipeline_depth and frame_max_payload.
    """

    frame_max_payload: int
    slot_size: int
    pipeline_depth: int
    receive_buffer_size: int
    max_peers: int
    message_max_payload: int
    slot_buffer_size: int
    classic_depth: int


class Core:
    """One core. Encoders raise InvalidArgument or MessageTooLarge, decoders a ProtocolError with
    its code.

    Args:
        name: of CORES.
        source: where the attributes and the limits come from.
    """

    crc_name: str
    crc16: Callable[..., int]
    crc32c: Callable[..., int]
    encode_header: Callable[..., bytes]
    decode_header: Callable[..., Header]
    encode_frame: Callable[..., bytes]
    decode_frame: Callable[..., Frame]
    encode_compact: Callable[..., bytes]
    decode_compact: Callable[..., CompactHeader]
    is_compact: Callable[..., bool]
    encode_discovery: Callable[..., bytes]
    decode_discovery: Callable[..., Discovery]
    encode_capability: Callable[..., bytes]
    decode_capability: Callable[..., Capability]
    encode_datagram: Callable[..., bytes]
    decode_datagram: Callable[..., Datagram]
    encode_fragment: Callable[..., bytes]
    decode_fragment: Callable[..., FragmentHeader]
    split_batch: Callable[..., list[bytes]]
    all_bytes: Callable[[list[Any]], bool]
    strerror: Callable[[int], str]
    error_name: Callable[[int], str]
    BufferPool: Callable[..., Any]
    Ingest: Callable[..., Any]
    Reader: Callable[..., AsyncIterator[Any]]
    Reassembly: Callable[..., Any]
    SendPipeline: Callable[..., Any]
    TimerWheel: Callable[..., Any]
    Loop: Callable[..., Any]
    Worker: Callable[..., Any]
    loop_pool: Callable[..., Any]
    Simulator: Callable[..., Any]
    byte_calls: Callable[[int], ByteCalls]
    stream_methods: Callable[[type], dict[str, Callable[..., Any]]]
    platforms: Callable[[], dict[str, dict[str, int]]]

    def __init__(self, name: str, source: Any) -> None:
        self.name = name
        self.limits = Limits(*source.limits)
        for attribute in Core.__annotations__:
            setattr(self, attribute, getattr(source, attribute))

    def __repr__(self) -> str:
        return f"<peertalk core {self.name!r}, CRC by {self.crc_name}>"


_loaded: dict[str, Core] = {}


def load(name: str | None = None) -> Core:
    """A core by name; the same object each time.

    Args:
        name: of CORES; None: PEERTALK_CORE from the environment, else the first of CORES that was
            built; a compiled one that is missing is a RuntimeWarning, once.

    Raises:
        InvalidArgument: no core has that name.
        NotSupported: it was not built here.
    """
    asked = name or os.environ.get("PEERTALK_CORE") or None
    if asked is None:
        return _load_best()
    if asked not in CORES:
        origin = "" if name else " (from PEERTALK_CORE)"
        raise errors.InvalidArgument(
            f"core {asked!r}{origin}: there are {', '.join(map(repr, CORES))}"
        )
    if asked not in _loaded:
        _loaded[asked] = _load_reference() if asked == "reference" else _load_compiled(asked)
    return _loaded[asked]


@functools.cache
def _load_best() -> Core:
    """The fastest core that is here, with a warning when a compiled one should have been and is
    not."""
    missing = []
    for name in CORES[:2]:
        try:
            core = load(name)
        except errors.NotSupported as error:
            missing.append(error)
        else:
            break  # a build with PT_LOWMEM=1 has lowmem alone, and is no fault
    else:
        core = load("reference")
    broken = [error for error in missing if not isinstance(error.__cause__, ModuleNotFoundError)]
    if broken or (core.name == "reference" and sys.implementation.name == "cpython"):
        warnings.warn(
            f"peertalk runs on its {core.name} core: {(broken or missing)[0]}",
            RuntimeWarning,
            stacklevel=3,  # whoever called load()
        )
    return core


def _load_compiled(name: str) -> Core:
    try:
        from peertalk._core.compiled import Compiled

        source = Compiled(name)
    except ImportError as error:
        raise errors.NotSupported(
            f"the {name} core was not built here, or cannot be loaded ({error}): install peertalk "
            "again where a C compiler is, or choose plain Python with core='reference' or "
            "PEERTALK_CORE=reference"
        ) from error
    return Core(name, source)


def _load_reference() -> Core:
    from peertalk._core import reference

    return Core("reference", reference)
