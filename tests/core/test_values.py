"""What crosses the stair carries the numbers of the C headers."""

from __future__ import annotations

import importlib
from typing import Any

from peertalk._core import values

SAME = {
    "BATCH": "PT_EVENT_BATCH",
    "FRAME": "PT_EVENT_FRAME",
    "SENT": "PT_EVENT_SENT",
    "CLOSED": "PT_EVENT_CLOSED",
    "READY": "PT_EVENT_READY",
    "TIMER": "PT_EVENT_TIMER",
    "STILL": "PT_EVENT_STILL",
    "FINISHED": "PT_EVENT_FINISHED",
    "DATA": "PT_FRAME_DATA",
    "PING": "PT_FRAME_PING",
    "PONG": "PT_FRAME_PONG",
    "DISCONNECT": "PT_FRAME_DISCONNECT",
    "ACK": "PT_FRAME_ACK",
    "REJECT": "PT_FRAME_REJECT",
    "CAPABILITY": "PT_FRAME_CAPABILITY",
    "UNRELIABLE": "PT_FLAG_UNRELIABLE",
    "COALESCABLE": "PT_FLAG_COALESCABLE",
    "NO_DELAY": "PT_FLAG_NO_DELAY",
    "BATCHED": "PT_FLAG_BATCH",
    "FRAGMENT": "PT_FLAG_FRAGMENT",
    "ANNOUNCE": "PT_DISCOVERY_ANNOUNCE",
    "QUERY": "PT_DISCOVERY_QUERY",
    "GOODBYE": "PT_DISCOVERY_GOODBYE",
    "READ": "PT_READY_READ",
    "WRITE": "PT_READY_WRITE",
    "HANGUP": "PT_READY_HANGUP",
    "NEEDS_TURN": "PT_SEND_NEEDS_TURN",
    "YIELD": "PT_SEND_YIELD",
}
LIMITS = {
    "frame_max_payload": "PT_FRAME_MAX_PAYLOAD",
    "slot_size": "PT_POSIX_SLOT_SIZE",
    "pipeline_depth": "PT_POSIX_PIPELINE_DEPTH",
    "receive_buffer_size": "PT_RECEIVE_BUFFER_SIZE",
    "max_peers": "PT_MAX_PEERS",
    "message_max_payload": "PT_MESSAGE_MAX_PAYLOAD",
    "slot_buffer_size": "PT_SLOT_BUFFER_SIZE",
}


def lib_of(core: Any) -> Any:
    return importlib.import_module(f"peertalk._core._{core.name}").lib


def test_each_constant_has_the_number_of_the_header(c_core: Any) -> None:
    """Python compares events and flags with its own copy of the numbers."""
    lib = lib_of(c_core)
    assert {name: getattr(values, name) for name in SAME} == {
        name: getattr(lib, other) for name, other in SAME.items()
    }


def test_types_and_flags_have_the_numbers_of_the_original() -> None:
    """Held against the headers alone they would follow a header that is wrong."""
    assert [
        values.DATA,
        values.PING,
        values.PONG,
        values.DISCONNECT,
        values.ACK,
        values.REJECT,
        values.CAPABILITY,
    ] == [1, 2, 3, 4, 5, 6, 7]
    assert [
        values.UNRELIABLE,
        values.COALESCABLE,
        values.NO_DELAY,
        values.BATCHED,
        values.FRAGMENT,
    ] == [0x01, 0x02, 0x04, 0x08, 0x10]
    assert [values.ANNOUNCE, values.QUERY, values.GOODBYE] == [1, 2, 3]


def test_the_limits_of_the_classic_worlds_are_those_of_the_source(c_core: Any) -> None:
    """Depth, peers, message, slot buffer: header, payload and CRC, rounded up to 16 bytes."""
    lib, limits = lib_of(c_core), c_core.limits
    assert (
        lib.PT_SEND_PIPELINE_DEPTH,
        limits.max_peers,
        limits.message_max_payload,
        limits.slot_buffer_size,
    ) == {"standard": (4, 8, 4096, 4112), "lowmem": (2, 4, 1024, 1040)}[c_core.name]


def test_no_constant_is_left_out() -> None:
    """One that is added to the values must be held against the headers too."""
    assert {name for name in vars(values) if name.isupper()} == set(SAME)


def test_interest_has_the_numbers_of_readiness(c_core: Any) -> None:
    """READ and WRITE mean both what is wanted and what is there."""
    lib = lib_of(c_core)
    assert (lib.PT_WANT_READ, lib.PT_WANT_WRITE) == (values.READ, values.WRITE)


def test_limits_of_a_core_are_those_it_was_compiled_with(c_core: Any) -> None:
    """The upper storey sizes its queues by them."""
    lib = lib_of(c_core)
    assert c_core.limits._asdict() == {name: getattr(lib, other) for name, other in LIMITS.items()}


def test_reference_has_the_limits_of_the_standard_build(c_core: Any, reference_core: Any) -> None:
    """Programs must not change their behaviour when no compiler was there."""
    if c_core.name == "standard":
        assert reference_core.limits == c_core.limits
    else:
        assert all(
            mine <= theirs
            for mine, theirs in zip(c_core.limits, reference_core.limits, strict=True)
        )


def test_a_frame_of_the_limit_fits_the_receive_buffer(core: Any) -> None:
    """Else the largest frame could never be read whole."""
    assert core.limits.frame_max_payload + 12 <= core.limits.receive_buffer_size
