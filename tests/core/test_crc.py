"""CRC-16: vectors, the textbook's bit loop, and laws. On the C cores also each way of computing it
that this processor has."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.programs import WAYS_OPTIONS, run_ways
from kit.tables import each_row

from peertalk import errors

TESTS = Path(__file__).resolve().parent.parent
CASES = json.loads((TESTS / "vectors" / "crc16.json").read_text())["cases"]


def crc_by_bits(data: bytes, start: int = 0) -> int:
    """The definition, bit by bit: slow and beyond doubt."""
    crc = start
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x8408 if crc & 1 else 0)
    return crc


@each_row("case", {case["id"]: case for case in CASES})
def test_crc_is_that_of_the_vector(core: Any, case: dict[str, Any]) -> None:
    """Another CRC-16 with the same polynomial looks right until it meets the other side."""
    assert core.crc16(bytes.fromhex(case["input"])) == case["crc"]


def test_check_value_is_the_published_one(core: Any) -> None:
    """0x2189 tells KERMIT from its thirty relatives."""
    assert core.crc16(b"123456789") == 0x2189


def test_crc_of_every_length_equals_the_definition(core: Any) -> None:
    """Each length takes its own road through odd bytes, blocks and lanes, and a start value goes in
    at another place in each."""
    data = random.Random(1).randbytes(2_100)
    for start in (0, 1, 0x8000, 0xA55A, 0xFFFF):
        expected = start
        for length in range(len(data)):
            assert core.crc16(data[:length], start) == expected, (length, hex(start))
            expected = crc_by_bits(data[length : length + 1], expected)


def test_crc_does_not_depend_on_where_the_bytes_lie(core: Any) -> None:
    """Payloads start at any address; wide loads must not care."""
    data = random.Random(2).randbytes(400)
    for length in (1, 7, 8, 9, 15, 16, 17, 31, 33, 64, 127, 255, 256, 257, 300):
        expected = crc_by_bits(data[:length])
        for offset in range(64):
            room = bytes(offset) + data
            assert core.crc16(memoryview(room)[offset : offset + length]) == expected, (
                length,
                offset,
            )


@given(data=st.binary(max_size=700), cut=st.integers(0, 700), start=st.integers(0, 0xFFFF))
def test_crc_goes_on_where_it_was_left(core: Any, data: bytes, cut: int, start: int) -> None:
    """A frame's CRC is that of its header continued over its payload, which lie in different
    places."""
    assert core.crc16(data[cut:], core.crc16(data[:cut], start)) == core.crc16(data, start)


@given(seed=st.integers(0, 1 << 32), length=st.integers(0, 70_000), start=st.integers(0, 0xFFFF))
def test_crc_of_long_data_equals_the_reference(
    c_core: Any, reference_core: Any, seed: int, length: int, start: int
) -> None:
    """Long messages run through the folding lanes many times: constants that are wrong by one power
    show here."""
    data = random.Random(seed).randbytes(length)
    assert c_core.crc16(data, start) == reference_core.crc16(data, start)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_bytes_is_taken(core: Any, kind: type) -> None:
    """Receive buffers are memoryviews, tests write bytes."""
    assert core.crc16(kind(b"123456789")) == 0x2189


@pytest.mark.parametrize("start", [-1, 0x10000])
def test_start_value_that_is_no_crc_is_refused(core: Any, start: int) -> None:
    """Cut off silently it would give a CRC that nobody can explain."""
    with pytest.raises(errors.InvalidArgument):
        core.crc16(b"123456789", start)


def test_name_of_the_way_is_told(core: Any) -> None:
    """A benchmark says which CRC it measured."""
    assert core.crc_name in (
        {"crc_hqx"} if core.name == "reference" else {"vpclmul", "pclmul", "pmull", "table"}
    )


@pytest.mark.source
@WAYS_OPTIONS
def test_every_way_of_this_processor_agrees_and_reads_nothing_else(
    tmp_path: Path, options: list[str]
) -> None:
    """A machine picks one way and hides the others; and a wide load behind the end shows only where
    the memory ends there too."""
    assert "table" in run_ways("crc_ways", tmp_path, options)
