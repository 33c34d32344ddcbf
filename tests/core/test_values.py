"""The numbers of the C headers, and what crosses the stair."""

from __future__ import annotations

import importlib
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from peertalk import _numbers
from peertalk._core import values
from peertalk._numbers import FRAME_OVERHEAD

ROOT = Path(__file__).resolve().parent.parent.parent

OF_A_BUILD = {
    "IS_LOWMEM",
    "SEND_PIPELINE_DEPTH",
    "MAX_PEERS",
    "MESSAGE_MAX_PAYLOAD",
    "SLOT_BUFFER_SIZE",
    "FRAME_MAX_PAYLOAD",
    "PIPELINE_LAZY",
    "POSIX_SLOT_SIZE",
    "POSIX_PIPELINE_DEPTH",
    "LINK_NOTES",
    "RECEIVE_BUFFER_SIZE",
    "FORMAT_MAX_HEADER",
    "CRC_SLICES",
}
LIMITS = {
    "frame_max_payload": "PT_FRAME_MAX_PAYLOAD",
    "slot_size": "PT_POSIX_SLOT_SIZE",
    "pipeline_depth": "PT_POSIX_PIPELINE_DEPTH",
    "receive_buffer_size": "PT_RECEIVE_BUFFER_SIZE",
    "max_peers": "PT_MAX_PEERS",
    "message_max_payload": "PT_MESSAGE_MAX_PAYLOAD",
    "slot_buffer_size": "PT_SLOT_BUFFER_SIZE",
    "classic_depth": "PT_SEND_PIPELINE_DEPTH",
}


def lib_of(core: Any) -> Any:
    return importlib.import_module(f"peertalk._core._{core.name}").lib


@pytest.mark.source
def test_the_numbers_are_those_of_the_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is committed, because a package without a compiler needs it too; `make debug` writes
    it anew."""
    monkeypatch.setenv("PEERTALK_BUILD", "none")
    written = runpy.run_path(str(ROOT / "build_ffi.py"))["numbers"]()
    assert (ROOT / "peertalk" / "_numbers.py").read_text() == written


def test_each_number_is_what_the_compiler_read(c_core: Any) -> None:
    """The headers are read as text: no number may mean another thing to C. A build has limits of
    its own, and nothing else."""
    lib = lib_of(c_core)
    numbers = {name: number for name, number in vars(_numbers).items() if name.isupper()}
    different = {name for name, number in numbers.items() if getattr(lib, f"PT_{name}") != number}
    assert different == (set() if c_core.name == "standard" else OF_A_BUILD)
    enumerators = {
        name for name in dir(lib) if re.match("PT_(OK|ERR_|EVENT_|FRAME_|SLOT_|LINK_)", name)
    }
    assert enumerators <= {f"PT_{name}" for name in numbers}


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
    limits = c_core.limits
    assert (
        limits.classic_depth,
        limits.max_peers,
        limits.message_max_payload,
        limits.slot_buffer_size,
    ) == {"standard": (4, 8, 4096, 4112), "lowmem": (2, 4, 1024, 1040)}[c_core.name]


def test_interest_has_the_numbers_of_readiness() -> None:
    """READ and WRITE mean both what is wanted and what is there."""
    assert (_numbers.WANT_READ, _numbers.WANT_WRITE) == (values.READ, values.WRITE)


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
    assert core.limits.frame_max_payload + FRAME_OVERHEAD <= core.limits.receive_buffer_size
