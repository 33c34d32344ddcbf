"""Every encoding of the protocol: the vectors on each core, and the C cores against the reference
on random and damaged input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.tables import each_row

from peertalk import errors
from peertalk._numbers import ERR_INVALID_PARAM, ERR_MESSAGE_TOO_LARGE

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
TOO_LARGE = ("PT_ERR_MESSAGE_TOO_LARGE", ERR_MESSAGE_TOO_LARGE)
BYTE, WORD = st.integers(0, 0xFF), st.integers(0, 0xFFFF)
TYPES = st.integers(0, 9)


def cases(kind: str, *ops: str) -> Any:
    """Over the vectors of a kind; ops: only those that go this way."""
    found = [
        case
        for case in json.loads((VECTORS / f"{kind}.json").read_text())["cases"]
        if not ops or case["op"] in ops
    ]
    assert found, f"no vectors of {kind} {ops}"
    return each_row("case", {case["id"]: case for case in found})


def outcome(core: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call returned, or the class, name and code of what it raised."""
    try:
        return call(*arguments)
    except errors.PeerTalkError as error:
        return type(error), core.error_name(error.code), error.code


def assert_decodes(
    core: Any, decode: Callable[..., Any], case: dict[str, Any], expected: Any
) -> None:
    """The bytes of the case give the expected value, or a ProtocolError with the name and code of
    the case."""
    data = bytes.fromhex(case["hex"])
    if case["error"] == "PT_OK":
        assert decode(data) == expected
        assert decode(memoryview(bytearray(data))) == expected
        return
    with pytest.raises(errors.ProtocolError) as caught:
        decode(data)
    assert core.error_name(caught.value.code) == case["error"]
    assert caught.value.code == case.get("code", caught.value.code)


# Vectors


@cases("header")
def test_header_is_that_of_the_vector(core: Any, case: dict[str, Any]) -> None:
    """Ten bytes that both sides must read alike."""
    fields = case.get("fields", {})
    expected = tuple(fields.get(name) for name in ("type", "flags", "sequence", "payload_len"))
    assert_decodes(core, core.decode_header, case, expected)
    if case["op"] == "encode+decode":
        assert core.encode_header(*expected).hex() == case["hex"]


@cases("frame")
def test_frame_is_that_of_the_vector(core: Any, case: dict[str, Any]) -> None:
    """Header, payload and CRC; on lowmem what is above its limit is refused both ways."""
    fields = case.get("fields", {})
    payload = bytes.fromhex(fields.get("payload", ""))
    expected = (fields.get("type"), fields.get("flags"), fields.get("sequence"), payload)
    if len(payload) > core.limits.frame_max_payload:
        assert core.name == "lowmem"
        assert outcome(core, core.decode_frame, bytes.fromhex(case["hex"]))[1:] == TOO_LARGE
        assert outcome(core, core.encode_frame, expected[0], payload)[1:] == TOO_LARGE
        return
    assert_decodes(core, core.decode_frame, case, expected)
    if case["op"] == "encode+decode":
        data = core.encode_frame(fields["type"], payload, fields["flags"], fields["sequence"])
        assert data.hex() == case["hex"]
        assert int.from_bytes(data[-2:], "big") == case["crc"] == core.crc16(data[:-2])


@cases("compact")
def test_compact_header_is_that_of_the_vector(core: Any, case: dict[str, Any]) -> None:
    """Accepted though never sent; the flag that does not fit is lost as in the original."""
    fields = case.get("fields", {})
    assert_decodes(
        core,
        core.decode_compact,
        case,
        tuple(fields.get(name) for name in ("type", "flags", "payload_len")),
    )
    assert core.is_compact(bytes.fromhex(case["hex"])) is case["is_compact"]
    if case["op"] == "encode+decode":
        assert (
            core.encode_compact(
                *(case["input"][name] for name in ("type", "flags", "payload_len"))
            ).hex()
            == case["hex"]
        )


@cases("discovery", "encode+decode", "decode")
def test_discovery_packet_is_that_of_the_vector(core: Any, case: dict[str, Any]) -> None:
    """Who is not understood here is never found."""
    fields = case.get("fields", {})
    name = bytes.fromhex(fields.get("name_hex", ""))
    expected = (
        *(fields.get(key) for key in ("type", "flags", "sender_port", "transports")),
        name,
        14 + len(name),
    )
    assert_decodes(core, core.decode_discovery, case, expected)
    if case["op"] == "encode+decode":
        assert (
            core.encode_discovery(
                fields["type"], fields["sender_port"], name, fields["flags"], fields["transports"]
            ).hex()
            == case["hex"]
        )


@cases("discovery", "encode")
def test_discovery_encoder_refuses_what_the_original_refuses(
    core: Any, case: dict[str, Any]
) -> None:
    """Here the encoder brings its own buffer, so one that is too small is seen as a packet that
    would not have fitted."""
    fields = case["fields"]
    arguments = (
        fields["type"],
        fields["sender_port"],
        b"n" * fields["name_len"],
        fields["flags"],
        fields["transports"],
    )
    if case["error"] == "PT_ERR_BUFFER_FULL":
        assert len(core.encode_discovery(*arguments)) > case["buffer_size"]
        return
    assert outcome(core, core.encode_discovery, *arguments) == (
        errors.InvalidArgument,
        case["error"],
        case["code"],
    )


@cases("capability")
def test_capability_is_that_of_the_vector(core: Any, case: dict[str, Any]) -> None:
    """Limits that are read wrongly cut messages off, or let too large ones through."""
    names = ("max_message", "preferred_chunk", "buffer_pressure", "flags")
    assert_decodes(
        core,
        core.decode_capability,
        case,
        tuple(case.get("decoded", {}).get(name) for name in names),
    )
    if case["op"] == "encode+decode":
        assert core.encode_capability(*(case["input"][name] for name in names)).hex() == case["hex"]


@cases("udp")
def test_datagram_is_that_of_the_vector(core: Any, case: dict[str, Any]) -> None:
    """The announced length rules, not the size of the datagram."""
    fields = case.get("fields", {})
    payload = bytes.fromhex(fields.get("payload", ""))
    assert_decodes(core, core.decode_datagram, case, (fields.get("sender_port"), payload))
    if case["op"] == "encode+decode":
        assert core.encode_datagram(fields["sender_port"], payload).hex() == case["hex"]


@cases("fragment_header")
def test_fragment_header_is_that_of_the_vector(core: Any, case: dict[str, Any]) -> None:
    """Eight bytes in front of each piece of a long message."""
    expected = tuple(
        case.get("fields", {}).get(name)
        for name in ("message_id", "total_length", "offset", "flags")
    )
    assert_decodes(core, core.decode_fragment, case, expected)
    if case["op"] == "encode+decode":
        assert core.encode_fragment(*expected).hex() == case["hex"]


LIVE = {
    "live-announce": ("discovery", (1, 0, 17354, 3, b"GoldenPeer", 24)),
    "live-goodbye": ("discovery", (3, 0, 17354, 3, b"GoldenPeer", 24)),
    "live-data": ("frame", (1, 0, 0, b"hello")),
    "live-pong": ("frame", (3, 0, 0, b"")),
    "live-disconnect": ("frame", (4, 0, 1, b"")),
    "live-capability": ("frame", (7, 0, 0, bytes.fromhex("010220000202040003010004020005"))),
}


@cases("live")
def test_what_was_seen_on_the_network_is_understood_and_made_again(
    core: Any, case: dict[str, Any]
) -> None:
    """Not what a document says, but what a peer of the original really sent."""
    kind, expected = LIVE[case["id"]]
    data = bytes.fromhex(case["hex"])
    if kind == "discovery":
        type, flags, port, transports, name, _ = expected
        assert core.decode_discovery(data) == expected
        assert core.encode_discovery(type, port, name, flags, transports) == data
    else:
        type, flags, sequence, payload = expected
        assert core.decode_frame(data) == expected
        assert core.encode_frame(type, payload, flags, sequence) == data
        if type == 7:
            assert core.decode_capability(payload) == (8192, 1024, 0, 5)


# Laws


@given(data=st.data())
def test_what_is_encoded_is_decoded_again(core: Any, data: st.DataObject) -> None:
    """Every field at every value, its bounds included."""
    draw = data.draw
    type, flags, sequence, word, other, third = (
        draw(st.integers(1, 7)),
        draw(BYTE),
        draw(BYTE),
        draw(WORD),
        draw(WORD),
        draw(WORD),
    )
    payload, name, behind = (
        draw(st.binary(max_size=1024)),
        draw(st.binary(max_size=31)),
        draw(st.binary(max_size=3)),
    )
    kind = draw(st.integers(1, 3))
    assert core.decode_header(core.encode_header(type, flags, sequence, word) + behind) == (
        type,
        flags,
        sequence,
        word,
    )
    assert core.decode_frame(core.encode_frame(type, payload, flags, sequence) + behind) == (
        type,
        flags,
        sequence,
        payload,
    )
    assert core.decode_compact(core.encode_compact(type, flags, word) + behind) == (
        type,
        flags & 15,
        word,
    )
    assert core.decode_datagram(core.encode_datagram(word, payload) + behind) == (word, payload)
    assert core.decode_fragment(core.encode_fragment(word, other, third, flags) + behind) == (
        word,
        other,
        third,
        flags,
    )
    packet = core.encode_discovery(kind, word, name, other, flags)
    assert core.decode_discovery(packet + behind) == (kind, other, word, flags, name, len(packet))
    capability = core.encode_capability(word, other, flags, third)
    assert core.decode_capability(capability) == (
        min(max(word, 256), 8192),
        other,
        min(flags, 100),
        third,
    )


def test_limits_are_met_from_both_sides(core: Any) -> None:
    """A limit that is off by one is found by the first message of exactly that size."""
    limit = core.limits.frame_max_payload
    assert core.decode_frame(core.encode_frame(1, bytes(limit))).payload == bytes(limit)
    assert outcome(core, core.encode_frame, 1, bytes(limit + 1))[1:] == TOO_LARGE
    announced = core.encode_header(1, 0, 0, limit + 1)
    assert outcome(core, core.decode_frame, announced) == (errors.ProtocolError, *TOO_LARGE)
    assert len(core.encode_datagram(7355, bytes(1392))) == 1400
    assert outcome(core, core.encode_datagram, 7355, bytes(1393)) == (
        errors.MessageTooLarge,
        *TOO_LARGE,
    )


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("encode_header", (1, 256, 0, 0)),
        ("encode_header", (1, 0, -1, 0)),
        ("encode_header", (1, 0, 0, 65536)),
        ("encode_header", (0, 0, 0, 0)),
        ("encode_header", (257, 0, 0, 0)),
        ("encode_header", (8, 0, 0, 0)),
        ("encode_frame", (0, b"")),
        ("encode_frame", (263, b"")),
        ("encode_frame", (1, b"", 256)),
        ("encode_frame", (1, b"", 0, 256)),
        ("encode_frame", (1, bytes(9000), 256)),
        ("encode_compact", (8, 0, 0)),
        ("encode_compact", (1, 256, 0)),
        ("encode_compact", (1, 0, 65536)),
        ("encode_discovery", (1, 65536, b"")),
        ("encode_discovery", (1, 0, bytes(32))),
        ("encode_discovery", (1, 0, bytes(257))),
        ("encode_discovery", (1, 0, b"", 65536)),
        ("encode_discovery", (1, 0, b"", 0, 256)),
        ("encode_discovery", (4, 0, b"")),
        ("encode_capability", (65536, 0, 0, 0)),
        ("encode_capability", (0, -1, 0, 0)),
        ("encode_capability", (0, 0, 256, 0)),
        ("encode_capability", (0, 0, 0, 65536)),
        ("encode_datagram", (65536, b"")),
        ("encode_datagram", (-1, bytes(2000))),
        ("encode_fragment", (65536, 0, 0, 0)),
        ("encode_fragment", (0, 65536, 0, 0)),
        ("encode_fragment", (0, 0, -1, 0)),
        ("encode_fragment", (0, 0, 0, 256)),
    ],
)
def test_field_out_of_its_bounds_is_refused(
    core: Any, call: str, arguments: tuple[Any, ...]
) -> None:
    """Cut to its low bits it would be another field, without a word."""
    assert outcome(core, getattr(core, call), *arguments) == (
        errors.InvalidArgument,
        "PT_ERR_INVALID_PARAM",
        ERR_INVALID_PARAM,
    )


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("encode_frame", (1, "text")),
        ("encode_frame", (1, 5)),
        ("encode_datagram", (1, None)),
        ("encode_discovery", (1, 0, "name")),
        ("decode_frame", ("text",)),
        ("decode_discovery", (None,)),
        ("decode_capability", (7,)),
        ("crc16", ("text",)),
        ("crc32c", ("text",)),
    ],
)
def test_what_is_no_bytes_is_a_type_error(core: Any, call: str, arguments: tuple[Any, ...]) -> None:
    """A number must not turn into that many zeros, nor text into bytes of a guessed encoding."""
    with pytest.raises(TypeError):
        getattr(core, call)(*arguments)


# The C cores against the reference


@st.composite
def damaged(draw: Callable[..., Any], whole: st.SearchStrategy[bytes]) -> bytes:
    """Something whole, then perhaps cut, lengthened, or with bytes changed."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 2))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(BYTE)
    keep = draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))
    return bytes(data[:keep]) + draw(st.one_of(st.just(b""), st.binary(max_size=4)))


def fields(layout: str, *values: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    """Bytes of big-endian numbers: layout has the size of each in bytes."""
    return st.tuples(*values).map(
        lambda drawn: b"".join(
            value.to_bytes(int(size), "big") for size, value in zip(layout, drawn, strict=True)
        )
    )


@given(data=st.data())
def test_frames_with_any_damage_mean_the_same_to_c_and_reference(
    c_core: Any, reference_core: Any, data: st.DataObject
) -> None:
    """The first fault decides how a link ends; the limit of lowmem comes behind the header and
    before the rest."""
    whole = st.builds(
        reference_core.encode_frame, st.integers(1, 7), st.binary(max_size=1100), BYTE, BYTE
    )
    frame = data.draw(damaged(whole))
    header = outcome(reference_core, reference_core.decode_header, frame)
    assert outcome(c_core, c_core.decode_header, frame) == header
    expected = outcome(reference_core, reference_core.decode_frame, frame)
    if len(header) == 4 and header.payload_len > c_core.limits.frame_max_payload:
        expected = (errors.ProtocolError, *TOO_LARGE)
    assert outcome(c_core, c_core.decode_frame, frame) == expected
    assert outcome(c_core, c_core.decode_compact, frame) == outcome(
        reference_core, reference_core.decode_compact, frame
    )


@given(data=st.data())
def test_discovery_packets_with_any_damage_mean_the_same_to_c_and_reference(
    c_core: Any, reference_core: Any, data: st.DataObject
) -> None:
    """They come from anyone on the network; a CRC made true again lets wrong fields through to the
    checks behind it."""
    whole = st.builds(
        reference_core.encode_discovery, st.integers(1, 3), WORD, st.binary(max_size=31), WORD, BYTE
    )
    packet = data.draw(damaged(whole))
    if data.draw(st.booleans()) and len(packet) >= 14:
        packet = packet[:-2] + reference_core.crc16(packet[:-2]).to_bytes(2, "big")
    assert outcome(c_core, c_core.decode_discovery, packet) == outcome(
        reference_core, reference_core.decode_discovery, packet
    )


@given(
    packet=st.one_of(
        st.lists(st.tuples(st.integers(0, 6), st.binary(max_size=5)), max_size=8).map(
            lambda entries: b"".join(bytes([type, len(value)]) + value for type, value in entries)
        ),
        st.binary(max_size=40),
    ),
    tail=st.binary(max_size=3),
)
def test_any_capability_means_the_same_to_c_and_reference(
    c_core: Any, reference_core: Any, packet: bytes, tail: bytes
) -> None:
    """Unknown types, short and long values, repeats and loose ends are all legal until a length
    runs past the end."""
    packet += tail
    assert outcome(c_core, c_core.decode_capability, packet) == outcome(
        reference_core, reference_core.decode_capability, packet
    )


@given(data=st.data())
def test_datagrams_and_fragments_with_any_damage_mean_the_same_to_c_and_reference(
    c_core: Any, reference_core: Any, data: st.DataObject
) -> None:
    """Datagrams have no checksum: the length field is all there is."""
    packet = data.draw(
        damaged(st.builds(reference_core.encode_datagram, WORD, st.binary(max_size=200)))
    )
    assert outcome(c_core, c_core.decode_datagram, packet) == outcome(
        reference_core, reference_core.decode_datagram, packet
    )
    piece = data.draw(damaged(fields("22211", WORD, WORD, WORD, BYTE, BYTE)))
    assert outcome(c_core, c_core.decode_fragment, piece) == outcome(
        reference_core, reference_core.decode_fragment, piece
    )


@given(data=st.data())
def test_encoders_of_c_and_reference_agree(
    c_core: Any, reference_core: Any, data: st.DataObject
) -> None:
    """Same bytes, or the same refusal; fields a little out of their bounds included."""
    wide = st.one_of(WORD, st.integers(-2, 2), st.integers(254, 258), st.integers(65534, 65538))
    calls = {
        "encode_header": (TYPES, wide, wide, wide),
        "encode_frame": (TYPES, st.binary(max_size=1024), wide, wide),
        "encode_compact": (TYPES, wide, wide),
        "encode_discovery": (TYPES, wide, st.binary(max_size=34), wide, wide),
        "encode_capability": (wide, wide, wide, wide),
        "encode_datagram": (
            wide,
            st.one_of(st.binary(max_size=20), st.integers(1390, 1394).map(bytes)),
        ),
        "encode_fragment": (wide, wide, wide, wide),
    }
    for call, strategies in calls.items():
        arguments = [data.draw(strategy) for strategy in strategies]
        mine, theirs = (
            outcome(core, getattr(core, call), *arguments) for core in (c_core, reference_core)
        )
        assert mine == theirs, (call, arguments)


def test_capability_longer_than_any_frame_is_refused(core: Any) -> None:
    """The result must fit the return value of the C function."""
    assert core.decode_capability(bytes(65534) + b"\x09") == (512, 256, 50, 0)
    assert outcome(core, core.decode_capability, bytes(65536)) == (
        errors.ProtocolError,
        "PT_ERR_INVALID_PARAM",
        ERR_INVALID_PARAM,
    )
