"""CRC-32C: vectors, the textbook's bit loop, and laws. Of the reference core also what its folding
rests on, of the C cores each way that this processor has."""

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
from peertalk._core.reference.crc32c import LONG, SHORT, folded

TESTS = Path(__file__).resolve().parent.parent
CASES = json.loads((TESTS / "vectors" / "crc32c.json").read_text())["cases"]
POLYNOMIAL = 0x11EDC6F41
"""x^32 + x^28 + ... + 1, the highest power first: the published form."""
STARTS = st.integers(0, 0xFFFFFFFF)


def crc_by_bits(data: bytes, start: int = 0) -> int:
    """The definition, bit by bit: slow and beyond doubt."""
    crc = ~start & 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return ~crc & 0xFFFFFFFF


def remainder(polynomial: int) -> int:
    """What is left of it modulo the polynomial of the CRC, the highest power first."""
    while (excess := polynomial.bit_length() - 33) >= 0:
        polynomial ^= POLYNOMIAL << excess
    return polynomial


def reversed_bits(value: int, bits: int) -> int:
    """Its bits the other way round."""
    return int(f"{value:0{bits}b}"[::-1], 2) if bits else 0


@each_row("case", {case["id"]: case for case in CASES})
def test_crc_is_that_of_the_vector(core: Any, case: dict[str, Any]) -> None:
    """Another CRC-32 with the same check of lengths looks right until it meets the other side."""
    assert core.crc32c(bytes.fromhex(case["input"])) == case["crc"]


def test_check_value_is_the_published_one(core: Any) -> None:
    """0xE3069283 tells Castagnoli from the CRC-32 of zip files, which gives 0xCBF43926."""
    assert core.crc32c(b"123456789") == 0xE3069283


def test_crc_of_every_length_equals_the_definition(core: Any) -> None:
    """Each length takes its own road through odd bytes, words, streams and lanes; a start value
    goes in at the front of each."""
    data = random.Random(1).randbytes(1_700)
    for start in (0, 1, 0x80000000, 0xA55AC33C, 0xFFFFFFFF):
        expected = start
        for length in range(len(data)):
            assert core.crc32c(data[:length], start) == expected, (length, hex(start))
            expected = crc_by_bits(data[length : length + 1], expected)


def test_crc_does_not_depend_on_where_the_bytes_lie(core: Any) -> None:
    """Payloads start at any address; wide loads must not care."""
    data = random.Random(2).randbytes(400)
    for length in (1, 2, 3, 4, 7, 8, 9, 15, 20, 31, 33, 64, 127, 128, 129, 159, 160, 255, 300):
        expected = crc_by_bits(data[:length])
        for offset in range(64):
            room = bytes(offset) + data
            assert core.crc32c(memoryview(room)[offset : offset + length]) == expected, (
                length,
                offset,
            )


@given(data=st.binary(max_size=700), cut=st.integers(0, 700), start=STARTS)
def test_crc_goes_on_where_it_was_left(core: Any, data: bytes, cut: int, start: int) -> None:
    """A frame's CRC is that of its header continued over its payload, which lie in different
    places."""
    assert core.crc32c(data[cut:], core.crc32c(data[:cut], start)) == core.crc32c(data, start)


@given(seed=st.integers(0, 1 << 32), length=st.integers(0, 270_000), start=STARTS)
def test_crc_of_long_data_equals_the_reference(
    c_core: Any, reference_core: Any, seed: int, length: int, start: int
) -> None:
    """Long messages run through the folding lanes many times: constants that are wrong by one power
    show here."""
    data = random.Random(seed).randbytes(length)
    assert c_core.crc32c(data, start) == reference_core.crc32c(data, start)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("length", [9, 1_000], ids=["short", "long"])
def test_every_kind_of_bytes_is_taken(core: Any, kind: type, length: int) -> None:
    """Receive buffers are memoryviews, tests write bytes."""
    data = random.Random(3).randbytes(length)
    assert core.crc32c(kind(data)) == crc_by_bits(data)


@pytest.mark.parametrize("start", [-1, 0x100000000, 1 << 80])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_start_value_that_is_no_crc_is_refused(core: Any, kind: type, start: int) -> None:
    """Cut off silently it would give a CRC that nobody can explain."""
    with pytest.raises(errors.InvalidArgument):
        core.crc32c(kind(b"123456789"), start)


@pytest.mark.parametrize("multiple", [LONG, SHORT], ids=["long", "short"])
def test_what_the_reference_folds_with_is_a_multiple_of_the_polynomial(
    multiple: tuple[int, ...],
) -> None:
    """One wrong exponent, and messages of some length have another CRC than everywhere else."""
    assert list(multiple) == sorted(set(multiple), reverse=True)
    assert remainder(sum(1 << exponent for exponent in multiple)) == 0


@given(data=st.data(), bits=st.integers(0, 30_000))
def test_what_was_folded_is_short_and_the_same_modulo_the_polynomial(
    data: st.DataObject, bits: int
) -> None:
    """Each step holds by itself, for lengths that are no whole bytes as well."""
    multiple = data.draw(st.sampled_from([LONG, SHORT]))
    value = random.Random(bits).getrandbits(bits) if bits else 0
    short, left = folded(value, bits, multiple)
    assert short.bit_length() <= left <= min(bits, multiple[0] * 5 // 4)
    assert remainder(reversed_bits(short, left)) == remainder(reversed_bits(value, bits))


@pytest.mark.source
@WAYS_OPTIONS
def test_every_way_of_this_processor_agrees_and_reads_nothing_else(
    tmp_path: Path, options: list[str]
) -> None:
    """A machine picks one way and hides the others; and a wide load behind the end shows only where
    the memory ends there too."""
    assert "table" in run_ways("crc32c_ways", tmp_path, options)
