"""Wide frames: their bytes. Truth comes from tests/vectors/wide.json, which was made without this
code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.tables import each_row

from peertalk import errors
from peertalk._core import reference
from peertalk._core.values import (
    DATA,
    GRANT,
    OFFER,
    REFUSE,
)

CASES = json.loads((Path(__file__).parent.parent / "vectors" / "wide.json").read_text())["cases"]


def cases(*ops: str) -> Any:
    return each_row("case", {case["id"]: case for case in CASES if case["op"] in ops})


# The bytes, by the reference core, which alone has them as pure functions


@cases("encode+decode", "decode")
def test_a_wide_frame_is_that_of_the_vector(case: dict[str, Any]) -> None:
    """Which fault comes first decides what the other side is told."""
    data = bytes.fromhex(case["hex"])
    if case["error"] != "PT_OK":
        with pytest.raises(errors.ProtocolError) as caught:
            reference.decode_wide(data)
        assert caught.value.code == case["code"]
        assert reference.error_name(caught.value.code) == case["error"]
        return
    fields = case["fields"]
    payload = bytes.fromhex(fields["payload"])
    expected = (*(fields[name] for name in ("type", "reason", "id", "offset", "total")), payload)
    assert reference.decode_wide(data) == expected
    assert reference.decode_wide(memoryview(bytearray(data))) == expected
    if case["op"] == "encode+decode":
        type, reason, id, offset, total, _ = expected
        assert reference.encode_wide(type, id, offset, total, payload, reason) == data
        assert int.from_bytes(data[20:24], "big") == case["crc"]


@cases("encode")
def test_what_makes_no_wide_frame_is_refused(case: dict[str, Any]) -> None:
    """The other side would end the link."""
    fields = dict(case["fields"])
    payload = bytes(fields.pop("payload_len"))
    with pytest.raises(errors.PeerTalkError) as caught:
        reference.encode_wide(payload=payload, **fields)
    assert not isinstance(caught.value, errors.ProtocolError)
    assert (reference.error_name(caught.value.code), caught.value.code) == (
        case["error"],
        case["code"],
    )


@given(
    type=st.sampled_from((DATA, OFFER, GRANT, REFUSE)),
    id=st.integers(1, 2**32 - 1),
    offset=st.integers(0, 2**31),
    payload=st.binary(min_size=1, max_size=80),
    reason=st.integers(0, 255),
    flip=st.integers(0, 10_000),
)
def test_one_wrong_bit_of_a_wide_frame_is_always_found(
    type: int, id: int, offset: int, payload: bytes, reason: int, flip: int
) -> None:
    """The CRC covers the header too: a wrong offset would put good bytes in a wrong place."""
    payload = payload if type == DATA else b""
    total = offset + len(payload) + 7
    data = reference.encode_wide(type, id, offset, total, payload, reason)
    assert reference.decode_wide(data) == (type, reason, id, offset, total, payload)
    wrong = bytearray(data)
    wrong[flip // 8 % len(data)] ^= 1 << flip % 8
    with pytest.raises(errors.ProtocolError):
        reference.decode_wide(wrong)


@given(data=st.binary(max_size=60), starts=st.booleans())
def test_any_bytes_at_all_are_a_wide_frame_or_a_fault(data: bytes, starts: bool) -> None:
    """And nothing else is raised."""
    data = b"WM" + data if starts else data
    try:
        frame = reference.decode_wide(data)
    except errors.ProtocolError:
        return
    type, reason, id, offset, total, payload = frame
    whole = reference.encode_wide(type, id, offset, total, payload, reason)
    assert data[: len(whole)] == whole
