"""Wide frames: their bytes, how a link sends messages in them, and what it makes of those that
come. Ends, faults and the landing limit are in test_wide_ends.py.

Truth comes from tests/vectors/wide.json, which was made without this code, and from frames encoded
one by one with the header of the reference core, which those vectors judge.
"""

from __future__ import annotations

import itertools
import json
import random
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.tables import each_row
from kit.waiting import GUARD
from kit.wide import decode_wide, grant_all, heard, wide, wide_frames_in

from peertalk import errors
from peertalk._core import reference
from peertalk._core.values import (
    BATCH,
    BATCHED,
    CAPABILITY,
    CLOSED,
    DATA,
    DISCONNECT,
    FRAGMENT,
    FRAME,
    GRANT,
    LANDED,
    NO_DELAY,
    OFFER,
    PING,
    REFUSE,
    SENT,
    YIELD,
)
from peertalk._numbers import (
    ERR_INVALID_PARAM,
    ERR_INVALID_STATE,
    ERR_MESSAGE_TOO_LARGE,
    ERR_NOT_CONNECTED,
    ERR_WOULD_BLOCK,
    REFUSE_TOO_LARGE,
    REFUSE_WITHDRAWN,
    WIDE_HEADER_SIZE,
    WIDE_MAX_PAYLOAD,
)

CASES = json.loads((Path(__file__).parent.parent / "vectors" / "wide.json").read_text())["cases"]


# The bytes, by the reference core, whose header alone is a pure function


@each_row("case", {case["id"]: case for case in CASES})
def test_a_wide_frame_is_that_of_the_vector(case):
    """Which fault comes first decides what the other side is told."""
    data = bytes.fromhex(case["hex"])
    if case["error"] != "PT_OK":
        with pytest.raises(errors.ProtocolError) as caught:
            decode_wide(data)
        assert caught.value.code == case["code"]
        assert reference.error_name(caught.value.code) == case["error"]
        return
    fields = case["fields"]
    payload = bytes.fromhex(fields["payload"])
    expected = (*(fields[name] for name in ("type", "reason", "id", "offset", "total")), payload)
    assert decode_wide(data) == expected
    if case["op"] == "encode+decode":
        type, reason, id, offset, total, _ = expected
        assert wide(type, id, offset, total, payload, reason) == data
        assert int.from_bytes(data[20:24], "big") == case["crc"]


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
    data = wide(type, id, offset, total, payload, reason)
    assert decode_wide(data) == (type, reason, id, offset, total, payload)
    wrong = bytearray(data)
    wrong[flip // 8 % len(data)] ^= 1 << flip % 8
    with pytest.raises(errors.ProtocolError):
        decode_wide(bytes(wrong))


@given(data=st.binary(max_size=60), starts=st.booleans())
def test_any_bytes_at_all_are_a_wide_frame_or_a_fault(data: bytes, starts: bool) -> None:
    """And nothing else is raised."""
    data = b"WM" + data if starts else data
    try:
        frame = decode_wide(data)
    except errors.ProtocolError:
        return
    type, reason, id, offset, total, payload = frame
    whole = wide(type, id, offset, total, payload, reason)
    assert data[: len(whole)] == whole


# Sending


def test_a_long_message_goes_in_one_wide_frame_in_its_place(bench):
    """Byte for byte, between those that went before and after it; it takes no sequence number."""
    link, raw = bench.link()
    link.wide_max = 40_000
    long = bytes(range(256)) * 120
    assert [code >= 0 for code in map(link.send, (b"before", long, b"after"))] == [True] * 3
    assert link.pending == 3
    seen = bench.settle()
    assert bench.read_all(raw) == (
        bench.core.encode_frame(DATA, b"before", 0, 0)
        + wide(DATA, payload=long)
        + bench.core.encode_frame(DATA, b"after", 0, 1)
    )
    assert bench.sent(seen, 1) == 3 and link.pending == 0 and link.referred == 0
    statistics = link.statistics()
    assert (statistics.messages_accepted, statistics.messages_reported) == (3, 3)
    assert (statistics.frames_sent, statistics.payload_bytes_sent) == (3, 11 + len(long))


def test_only_what_is_longer_than_a_full_frame_goes_wide_and_only_up_to_a_limit(bench):
    """Both limits are the other side's; before it has said that it understands wide frames there is
    none."""
    link, raw = bench.link()
    limit = link.max_message
    assert link.wide_max == 0
    assert link.send(bytes(limit + 1)) == ERR_MESSAGE_TOO_LARGE
    link.wide_max = limit + 10
    assert link.wide_max == limit + 10
    assert link.send(bytes(limit + 11)) == ERR_MESSAGE_TOO_LARGE
    assert link.send_frame(CAPABILITY, bytes(bench.limit + 1)) == ERR_MESSAGE_TOO_LARGE
    for flag in (FRAGMENT, BATCHED):
        assert link.send_frame(DATA, bytes(limit + 1), flag) == ERR_MESSAGE_TOO_LARGE
    assert link.statistics().frames_sent == 0
    assert link.send(bytes(limit)) >= 0
    assert link.send_frame(DATA, bytes(limit + 1), NO_DELAY) >= 0
    bench.settle()
    assert bench.read_all(raw) == bench.stream(bytes(limit)) + wide(DATA, payload=bytes(limit + 1))
    link.max_message, link.wide_max = 300, 400
    assert link.send(bytes(301)) >= 0 and link.send(bytes(300)) >= 0
    bench.settle()
    data = bench.read_all(raw)
    assert data == wide(DATA, payload=bytes(301)) + bench.core.encode_frame(DATA, bytes(300), 0, 1)


def test_no_wide_frame_is_longer_than_a_slice(quick):
    """A higher wide_max is the highest that there is."""
    link, raw = quick.link()
    assert link.slice_max == WIDE_MAX_PAYLOAD
    link.wide_max = 10 * WIDE_MAX_PAYLOAD
    assert link.wide_max == WIDE_MAX_PAYLOAD
    assert link.send(bytes(WIDE_MAX_PAYLOAD + 1)) == ERR_MESSAGE_TOO_LARGE
    assert not link.send(bytes(WIDE_MAX_PAYLOAD)) & YIELD
    data = b""
    while link.pending:
        quick.loop.turn(0.0)
        data += quick.read_all(raw)
    assert data == wide(DATA, payload=bytes(WIDE_MAX_PAYLOAD))


def test_send_many_takes_long_and_short_messages(bench):
    """The application does not know the forms."""
    link, raw = bench.link()
    link.wide_max = 20_000
    messages = [b"a", bytes(9_000), b"b" * 10_000, b"", b"c"]
    assert link.send_many([*messages, bytes(20_001), b"never"])[:2] == (5, ERR_MESSAGE_TOO_LARGE)
    assert bench.sent(bench.settle(), 1) == 5
    frames = wide_frames_in(bench.core, bench.read_all(raw))
    assert [frame.payload for frame in frames] == messages


def test_the_callers_buffer_is_free_when_a_long_message_was_accepted(bench):
    """Only bytes can be referred to: what may change is copied."""
    link, raw = bench.link()
    link.wide_max = 20_000
    buffer = bytearray(b"as it was" * 1_000)
    assert link.send(buffer) >= 0 and link.send(memoryview(buffer)) >= 0
    buffer[:] = bytes(len(buffer))
    bench.settle()
    assert bench.read_all(raw) == 2 * wide(DATA, payload=b"as it was" * 1_000)


def test_slices_are_one_message_that_is_sent_with_the_last(bench):
    """The application hears of its message once, when all of it has left."""
    link, raw = bench.link()
    message = bytes(range(200)) * 100
    ends = (1, 9_000, 9_001, 20_000)
    start, told = 0, []
    for end in ends:
        assert link.send_slice(message, 7, start, end - start) >= 0
        told.append(link.pending)
        start = end
    assert told == [0, 0, 0, 1]
    events = bench.settle()
    assert bench.sent(events, 1) == 1 and link.pending == 0 and link.referred == 0
    starts = (0, *ends)
    assert bench.read_all(raw) == b"".join(
        wide(DATA, 7, start, len(message), message[start:end])
        for start, end in zip(starts, ends, strict=False)
    )
    statistics = link.statistics()
    assert (statistics.messages_accepted, statistics.frames_sent) == (1, 4)
    assert statistics.payload_bytes_sent == len(message)


def test_a_slice_in_the_middle_frees_its_slot_with_an_event(bench):
    """Who waits for a slot must hear of one."""
    link, _ = bench.link()
    assert link.send_slice(bytes(9_000), 7, 0, 100) >= 0
    assert bench.of(bench.settle(), SENT) == [(SENT, 1, 0, 0)]


@each_row(
    "wrong",
    {
        "nothing": (7, 0, 0),
        "negative": (7, 0, -1),
        "behind the end": (7, 50, 51),
        "from the end on": (7, 100, 1),
        "before the start": (7, -1, 1),
        "not offered, in part": (0, 0, 99),
        "negative id": (-1, 0, 100),
        "id of 33 bits": (2**32, 0, 100),
    },
)
def test_no_slice_of_a_message_is_refused(quick, wrong):
    """The other side would end the link."""
    link, raw = quick.link()
    id, offset, size = wrong
    assert link.send_slice(bytes(100), id, offset, size) == ERR_INVALID_PARAM
    assert link.slots_pending == link.referred == link.statistics().frames_sent == 0
    quick.settle()
    assert quick.read_all(raw) == b""


def test_a_slice_may_be_as_long_as_slice_max_and_must_be_of_bytes(quick):
    """What is not bytes may change before it has left."""
    link, _ = quick.link()
    message = bytes(WIDE_MAX_PAYLOAD + 5)
    assert link.send_slice(message, 7, 0, link.slice_max + 1) == ERR_MESSAGE_TOO_LARGE
    for kind in (bytearray, memoryview):
        with pytest.raises(TypeError):
            link.send_slice(kind(message), 7, 0, 10)
    assert link.send_slice(message, 7, 5, link.slice_max) >= 0
    link.shut()
    assert link.send_slice(message, 7, 5, 10) == ERR_NOT_CONNECTED
    assert link.send_wide(OFFER, 8, 10) == ERR_NOT_CONNECTED


def test_offers_and_answers_are_packed_like_small_frames(bench):
    """They cost a write of their own no more than a PING does."""
    link, raw = bench.link()
    link.send(b"before")
    assert link.send_wide(OFFER, 1, 300_000) >= 0
    assert link.send_wide(GRANT, 2**32 - 1) >= 0
    assert link.send_wide(REFUSE, 3, reason=REFUSE_TOO_LARGE) >= 0
    link.send(b"after")
    assert link.slots_pending == 1 and link.pending == 2 and link.referred == 0
    assert bench.sent(bench.settle(), 1) == 2
    assert bench.read_all(raw) == (
        bench.core.encode_frame(DATA, b"before", 0, 0)
        + wide(OFFER, 1, total=300_000)
        + wide(GRANT, 2**32 - 1)
        + wide(REFUSE, 3, reason=REFUSE_TOO_LARGE)
        + bench.core.encode_frame(DATA, b"after", 0, 1)
    )
    assert link.statistics().payload_bytes_sent == 11


@each_row(
    "wrong",
    {
        "DATA": (DATA, 1, 5, 0),
        "PING": (PING, 1, 0, 0),
        "type 11": (11, 1, 0, 0),
        "id": (GRANT, 2**32, 0, 0),
        "negative id": (GRANT, -1, 0, 0),
        "total": (OFFER, 1, 2**32, 0),
        "reason": (REFUSE, 1, 0, 256),
    },
)
def test_what_is_no_offer_and_no_answer_is_refused(quick, wrong):
    """DATA has its own way, and other types have no wide form; nor have these another form."""
    link, _ = quick.link()
    assert link.send_wide(*wrong) == ERR_INVALID_PARAM
    assert link.send_frame(OFFER) == link.send_frame(REFUSE, b"x") == ERR_INVALID_PARAM
    assert link.slots_pending == 0


def test_a_full_pipeline_refuses_slices_and_keeps_those_it_took(bench):
    """Nobody reads: payloads are held until their slots are reported, and small frames keep their
    places between them."""
    if bench.way == "plain":
        pytest.skip("did not run: a blocking send does not refuse, it waits")
    link, raw = bench.link()
    message = random.Random(3).randbytes(2_000_000)
    accepted: list[tuple[int, int]] = []
    start, size = 0, 40_000
    while (code := link.send_slice(message, 7, start, size)) >= 0:
        accepted.append((start, size))
        start += size
        link.send(b"%d" % start)
    assert code == ERR_WOULD_BLOCK and link.slots_available == 0
    assert 0 < link.referred <= len(accepted) * size and link.referred % size == 0
    before = link.statistics()
    assert link.send_slice(message, 7, start, size) == ERR_WOULD_BLOCK
    after = link.statistics()
    assert (after.frames_sent, after.refusals) == (before.frames_sent, before.refusals + 1)
    data = b""
    give_up = time.monotonic() + GUARD
    while link.slots_pending:
        assert time.monotonic() < give_up
        data += bench.read_all(raw)
        bench.loop.turn(0.0)
    data += bench.read_all(raw)
    assert link.referred == 0
    frames = wide_frames_in(bench.core, data)
    slices = [frame for frame in frames if len(frame) == 6]
    assert [(frame.offset, len(frame.payload)) for frame in slices] == accepted
    assert b"".join(frame.payload for frame in slices) == message[:start]
    assert len(frames) == before.frames_sent
    assert frames[0] in slices and frames[1].payload == b"40000"


def test_a_blocking_send_takes_a_long_message(bench):
    """The door that waits is one for all messages."""
    link, raw = bench.link()
    link.wide_max = 30_000
    assert link.send_sync(b"x" * 30_001) == ERR_MESSAGE_TOO_LARGE
    assert link.send_sync(b"x" * 30_000) >= 0
    assert bench.sent(bench.settle(), 1) == 1
    assert bench.read_all(raw) == wide(DATA, payload=b"x" * 30_000)


def test_a_link_with_small_slots_sends_long_messages(bench):
    """A slot holds the header alone; one that cannot hold that sends none."""
    link, raw = bench.link(slot_size=100, depth=2)
    link.wide_max = 20_000
    assert link.send(b"x" * 20_000) >= 0
    bench.settle()
    assert bench.read_all(raw) == wide(DATA, payload=b"x" * 20_000)
    link, _ = bench.link(slot_size=WIDE_HEADER_SIZE - 1)
    link.wide_max = 20_000
    assert link.slice_max == link.wide_max == 0
    assert link.send(bytes(20_000)) == link.send_wide(OFFER, 1, 5) == ERR_MESSAGE_TOO_LARGE


# Receiving


def test_long_messages_join_the_batch_of_their_link(bench):
    """An application sees messages, and not in which form they came."""
    link, raw = bench.link(wide=True)
    raw.sendall(bench.stream(b"a") + wide(DATA, payload=b"b" * 9_000) + bench.stream(b"ccc"))
    events = bench.until(lambda events: link.statistics().frames_received == 3)
    assert bench.payloads(events, 1) == [b"a", b"b" * 9_000, b"ccc"]
    assert all(type(payload) is bytes for payload in bench.payloads(events))
    statistics = link.statistics()
    assert statistics.payload_bytes_received == 9_004
    assert statistics.bytes_received == 13 + 24 + 9_000 + 15


def test_offers_and_answers_are_frames_with_what_they_say(bench):
    """In their place among messages: a REFUSE ends what came before it."""
    link, raw = bench.link(wide=True)
    raw.sendall(
        bench.stream(b"a")
        + wide(OFFER, 5, total=300_000)
        + wide(GRANT, 2**32 - 1)
        + bench.stream(b"b")
        + wide(REFUSE, 6, reason=REFUSE_WITHDRAWN)
        + wide(REFUSE, 6, reason=REFUSE_WITHDRAWN)
    )
    withdrawn = (FRAME, 1, REFUSE | REFUSE_WITHDRAWN << 8, struct.pack(">III", 6, 0, 0))
    assert bench.until(lambda events: len(events) >= 6) == [
        (BATCH, 1, 1, [b"a"]),
        (FRAME, 1, OFFER, struct.pack(">III", 5, 0, 300_000)),
        (FRAME, 1, GRANT, struct.pack(">III", 2**32 - 1, 0, 0)),
        (BATCH, 1, 1, [b"b"]),
        withdrawn,
        withdrawn,
    ]
    assert link.statistics().payload_bytes_received == 2


def test_slices_become_the_message_that_was_granted(bench):
    """It is told with its last slice, by its id, and forgotten; slices of others and small frames
    stand between."""
    link, raw = bench.link(wide=True)
    one, two = b"1" * 5_000, random.Random(1).randbytes(9_000)
    high = 2**32 - 1
    assert link.expect(7, 5_000) == link.expect(high, 9_000) == 0
    assert link.expect(7, 5_000) == ERR_INVALID_STATE
    assert link.landed(7) == link.landed(high) == 0
    raw.sendall(
        wide(DATA, 7, 0, 5_000, one[:4_000])
        + wide(DATA, high, 0, 9_000, two[:1])
        + bench.stream(b"between")
        + wide(DATA, high, 1, 9_000, two[1:8_000])
    )
    events = bench.until(lambda events: link.statistics().frames_received == 4)
    assert events == [(BATCH, 1, 7, [b"between"])]
    assert (link.landed(7), link.landed(high), link.landed(8)) == (4_000, 8_000, -1)
    raw.sendall(
        wide(DATA, high, 8_000, 9_000, two[8_000:]) + wide(DATA, 7, 4_000, 5_000, one[4_000:])
    )
    events = bench.until(lambda events: len(events) == 2)
    assert events == [
        (FRAME, 1, DATA | LANDED << 8 | high << 24, two),
        (FRAME, 1, DATA | LANDED << 8 | 7 << 24, one),
    ]
    assert type(events[0][3]) is bytes
    assert link.landed(7) == link.landed(high) == -1
    statistics = link.statistics()
    assert (statistics.frames_received, statistics.payload_bytes_received) == (6, 14_007)
    assert link.expect(7, 5) == 0, "an id that is forgotten may come again"


def test_bytes_of_a_slice_count_as_they_come(quick):
    """Who asks whether anything moves must not wait for the end of a quarter of a megabyte."""
    link, raw = quick.link(wide=True)
    assert link.expect(7, 10_000) == 0
    slice = wide(DATA, 7, 0, 10_000, bytes(10_000))
    raw.sendall(slice[:24])
    quick.settle()
    assert (link.landed(7), link.statistics().partial_bytes) == (0, 24)
    raw.sendall(slice[24:100])
    quick.settle()
    assert (link.landed(7), link.statistics().partial_bytes) == (76, 100)
    raw.sendall(slice[100:])
    assert len(quick.of(quick.settle(), FRAME)) == 1


@each_row("wrong", {"no id": (0, 5), "no byte": (7, 0), "id": (2**32, 5), "total": (7, 2**32)})
def test_no_message_can_have_such_an_id_or_length(quick, wrong):
    """Memory for it would never be given back."""
    link, _ = quick.link(wide=True)
    assert link.expect(*wrong) == ERR_INVALID_PARAM
    assert link.landed(wrong[0]) == -1


def test_a_forgone_message_is_dropped_as_it_comes(bench):
    """The sender hears of it later: until then its slices are right, and wanted no more."""
    link, raw = bench.link(wide=True)
    assert link.expect(7, 300) == link.expect(8, 2) == 0
    slices = [wide(DATA, 7, start, 300, bytes(100)) for start in (0, 100, 200)]
    raw.sendall(slices[0] + slices[1][:60])
    bench.settle()
    assert link.landed(7) == 136
    link.forgo(7)
    assert link.landed(7) == -1
    assert link.expect(7, 300) == ERR_INVALID_STATE, "the sender may still mean the first one"
    raw.sendall(slices[1][60:] + slices[2] + bench.stream(b"x") + wide(DATA, 8, 0, 2, b"ok"))
    events = bench.until(lambda events: len(events) == 2)
    assert events == [(BATCH, 1, 1, [b"x"]), (FRAME, 1, DATA | LANDED << 8 | 8 << 24, b"ok")]
    statistics = link.statistics()
    assert (statistics.frames_received, statistics.payload_bytes_received) == (5, 303)
    link.forget(7)
    assert link.expect(7, 300) == 0


def test_what_is_not_expected_can_be_forgone_and_forgotten(quick):
    """Whoever tidies up need not know what is left."""
    link, _ = quick.link(wide=True)
    link.forgo(5)
    link.forget(5)
    assert link.landed(5) == -1
    assert link.expect(5, 10) == 0
    link.forget(5)
    link.forget(5)
    assert link.landed(5) == -1


# Any cut


def mixed_stream(
    core: Any, rng: random.Random, frames: int
) -> tuple[bytes, list[Any], dict[int, int]]:
    """A stream of all forms, what is told of it, and the messages that must be expected: id and
    total."""
    stream, told = b"", []
    totals: dict[int, int] = {}
    open_messages: dict[int, tuple[bytes, int]] = {}
    for number in range(frames):
        kind = rng.choice(("full", "compact", "control", "unasked", "offer", "slice", "slice"))
        payload = rng.randbytes(rng.choice((1, 2, 30, 300)))
        if kind == "full":
            stream += core.encode_frame(DATA, payload, 0, number & 255)
            told.append(payload)
        elif kind == "compact":
            stream += core.encode_compact(DATA, 0, len(payload)) + payload
            told.append(payload)
        elif kind == "control":
            stream += core.encode_frame(DISCONNECT, payload)
            told.append((DISCONNECT, payload))
        elif kind == "unasked":
            stream += wide(DATA, payload=payload)
            told.append(payload)
        elif kind == "offer":
            stream += wide(OFFER, number, total=99)
            told.append((OFFER, struct.pack(">III", number, 0, 99)))
        elif kind == "slice":
            if len(open_messages) < 3:
                id = totals_id = rng.randrange(1, 2**32) if rng.random() < 0.5 else number + 1
                totals[totals_id] = len(payload)
                open_messages[id] = (payload, 0)
            id = rng.choice(list(open_messages))
            message, start = open_messages.pop(id)
            end = rng.randrange(start, len(message)) + 1
            stream += wide(DATA, id, start, len(message), message[start:end])
            if end == len(message):
                told.append((DATA | LANDED << 8 | id << 24, message))
            else:
                open_messages[id] = (message, end)
    return stream, told, totals


def cut(stream: bytes, rng: random.Random) -> list[bytes]:
    """The stream in pieces: bytes, headers, or more."""
    most = rng.choice((1, 3, 30, 500, len(stream)))
    pieces, start = [], 0
    while start < len(stream):
        end = start + rng.randrange(1, most + 1)
        pieces.append(stream[start:end])
        start = end
    return pieces


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), frames=st.integers(1, 25))
def test_frames_of_all_forms_do_not_depend_on_how_the_stream_was_cut(
    core: Any, make_bench: Any, seed: int, frames: int
) -> None:
    """TCP keeps bytes, not boundaries."""
    rng = random.Random(seed)
    bench = make_bench(core, "epoll")
    try:
        stream, told, totals = mixed_stream(core, rng, frames)
        link, raw = bench.link(wide=True)
        grant_all(link, totals)
        events: list[Any] = []
        for piece in cut(stream, rng):
            raw.sendall(piece)
            events += bench.loop.turn(0.0)
        events += bench.settle()
        assert heard(events) == told
        statistics = link.statistics()
        assert statistics.frames_received == frames and statistics.bytes_received == len(stream)
        assert statistics.partial_bytes == 0 and bench.loop.statistics().bad_frames == 0
        link.close()
        assert bench.loop.pool.statistics().in_use == 0
    finally:
        bench.close()


def test_a_message_of_the_greatest_length_of_a_frame_arrives_in_pieces(quick):
    """More than one read, and more than a socket holds."""
    link, raw = quick.link(wide=True)
    message = random.Random(5).randbytes(WIDE_MAX_PAYLOAD)
    rest = memoryview(wide(DATA, payload=message))
    events: list[Any] = []
    give_up = time.monotonic() + GUARD
    while not events:
        assert time.monotonic() < give_up
        try:
            rest = rest[raw.send(rest) :] if rest else rest
        except BlockingIOError:
            pass
        events += quick.loop.turn(0.0)
    assert events == [(BATCH, 1, WIDE_MAX_PAYLOAD, [message])]
    assert link.statistics().partial_bytes == 0


# A message that departs


def read_on(bench, link, raw):
    """What the link sends until nothing of it is left."""
    data = b""
    give_up = time.monotonic() + GUARD
    while link.slots_pending or link.departing:
        assert time.monotonic() < give_up, link.statistics()
        data += bench.read_all(raw)
        bench.loop.turn(0.0)
    return data + bench.read_all(raw)


def slices_of(message, id, ends):
    """The frames of a message, from one end to the next."""
    return [
        wide(DATA, id, start, len(message), message[start:end])
        for start, end in itertools.pairwise(ends)
    ]


def test_a_message_departs_in_slices_without_another_call(bench):
    """The caller has one turn of it, whatever its length; and it counts as one message."""
    if bench.way == "plain":
        pytest.skip("did not run: a blocking send waits for who reads in the same thread")
    link, raw = bench.link()
    message = random.Random(5).randbytes(7 * WIDE_MAX_PAYLOAD + 11)
    assert link.depart(message, 9, 5) >= 0
    data = read_on(bench, link, raw)
    ends = [5, *range(5 + WIDE_MAX_PAYLOAD, len(message), WIDE_MAX_PAYLOAD), len(message)]
    assert data == b"".join(slices_of(message, 9, ends))
    assert link.referred == link.pending == 0
    assert link.statistics().messages_accepted == 1 and link.statistics().refusals == 0


def test_a_large_message_departs_though_nothing_is_read(bench):
    """The link of a program whose inbox is full was told once that it may write, and asked again in
    vain: after some megabytes nothing left any more."""
    if bench.way == "plain":
        pytest.skip("did not run: a blocking send waits for who reads in the same thread")
    ours, raw = bench.tcp()
    link = bench.loop.open_link(ours.fileno(), 1, wide=True)
    link.pause()
    message = bytes(8_000_000)
    assert link.depart(message, 9, 0) >= 0
    left = sum(
        map(len, slices_of(message, 9, [*range(0, len(message), WIDE_MAX_PAYLOAD), len(message)]))
    )
    give_up = time.monotonic() + GUARD
    while left:
        assert time.monotonic() < give_up, link.statistics()
        left -= len(bench.read_all(raw))
        bench.loop.turn(0.01)
    assert link.departing == 0


def test_what_is_sent_passes_between_two_slices_of_what_departs(bench):
    """What is urgent stands behind one slice at most, and not behind the whole message."""
    if bench.way == "plain":
        pytest.skip("did not run: a blocking send does not refuse, it waits")
    link, raw = bench.link()
    message = random.Random(6).randbytes(32 * WIDE_MAX_PAYLOAD)
    assert link.depart(message, 9, 0) >= 0
    bench.loop.turn(0.0)  # as much as the system takes
    left = link.departing
    assert 0 < left < len(message) and 0 < link.referred <= WIDE_MAX_PAYLOAD
    assert link.send(b"urgent") >= 0 and link.send_wide(GRANT, 3) >= 0
    frames = wide_frames_in(bench.core, read_on(bench, link, raw))
    place = next(index for index, frame in enumerate(frames) if len(frame) != 6)
    assert frames[place].payload == b"urgent" and frames[place + 1].type == GRANT
    assert frames[place - 1].offset + len(frames[place - 1].payload) == len(message) - left
    slices = [frame for frame in frames if len(frame) == 6 and frame.type == DATA]
    assert b"".join(frame.payload for frame in slices) == message


def test_what_departs_frees_slots_with_an_event_only_where_a_frame_found_none(bench):
    """A turn of the caller for each slice is what it need not have; but who waits for a slot must
    hear of one."""
    if bench.way == "plain":
        pytest.skip("did not run: a blocking send does not refuse, it waits")
    link, raw = bench.link()
    assert link.depart(random.Random(6).randbytes(32 * WIDE_MAX_PAYLOAD), 9, 0) >= 0
    events = bench.loop.turn(0.0)
    bench.read_all(raw)
    assert not bench.of(events + bench.loop.turn(0.0), SENT) and link.departing
    while link.send(bytes(link.max_message)) >= 0:
        pass
    give_up = time.monotonic() + GUARD
    while not bench.of(bench.loop.turn(0.0), SENT):
        assert time.monotonic() < give_up and link.departing
        bench.read_all(raw)
    assert link.slots_available > 0


def test_what_departs_is_recalled_between_two_slices(bench):
    """It goes on from there, or never: both are right for the other side."""
    if bench.way == "plain":
        pytest.skip("did not run: a blocking send does not refuse, it waits")
    link, raw = bench.link()
    message = random.Random(7).randbytes(32 * WIDE_MAX_PAYLOAD)
    assert link.depart(message, 9, 0) >= 0
    bench.loop.turn(0.0)
    assert link.depart(message, 10, 0) == ERR_INVALID_STATE
    left = link.departing
    assert link.recall() == left and link.recall() == link.departing == 0
    first = read_on(bench, link, raw)
    assert link.statistics().messages_accepted == 0
    assert link.depart(message, 9, len(message) - left) >= 0
    frames = wide_frames_in(bench.core, first + read_on(bench, link, raw))
    assert b"".join(frame.payload for frame in frames) == message
    assert link.statistics().messages_accepted == 1


@each_row(
    "wrong",
    {
        "no id": (0, 0),
        "from the end on": (7, 100),
        "before the start": (7, -1),
        "id of 33 bits": (2**32, 0),
    },
)
def test_what_cannot_depart_is_refused(quick, wrong):
    """The other side would end the link."""
    link, _ = quick.link()
    assert link.depart(bytes(100), *wrong) == ERR_INVALID_PARAM
    with pytest.raises(TypeError):
        link.depart(bytearray(100), 7, 0)
    link.shut()
    assert link.depart(bytes(100), 7, 0) == ERR_NOT_CONNECTED
    assert link.departing == link.recall() == link.statistics().frames_sent == 0


def test_how_much_of_what_departed_was_left_is_known_until_the_link_is_closed(quick):
    """Whether the message may have arrived depends on it."""
    link, raw = quick.link()
    message = random.Random(8).randbytes(32 * WIDE_MAX_PAYLOAD)
    kept = sys.getrefcount(message)
    assert link.depart(message, 9, 0) >= 0
    quick.loop.turn(0.0)
    left = link.departing
    raw.close()
    quick.until(lambda events: quick.of(events, CLOSED))
    assert link.departing == left > 0
    link.close()
    assert link.departing == 0 and sys.getrefcount(message) == kept


# From one loop to another


class Sender:
    """Offers messages, and sends slices of those that are granted, in turn, as the link takes
    them."""

    def __init__(self, link: Any, messages: dict[int, bytes], size: int) -> None:
        self.link = link
        self.messages = messages
        self.size = size
        self.granted: dict[int, int] = {}
        for id, message in messages.items():
            assert link.send_wide(OFFER, id, len(message)) >= 0

    def hear(self, events: list[Any]) -> None:
        for kind, _, word, payload in events:
            if kind == FRAME and word & 0xFF == GRANT:
                self.granted[struct.unpack(">III", payload)[0]] = 0
        while self.granted:
            id, start = next(iter(self.granted.items()))
            message = self.messages[id]
            size = min(self.size, len(message) - start)
            if self.link.send_slice(message, id, start, size) < 0:
                return
            del self.granted[id]  # the next one's turn
            if start + size < len(message):
                self.granted[id] = start + size


@pytest.mark.parametrize("size", [999, 70_000, WIDE_MAX_PAYLOAD], ids=str)
def test_offered_messages_go_from_one_loop_to_another(quick, size):
    """Offer, grant, slices in turn, and each message whole and once, while small ones pass."""
    ours, theirs = quick.pair()
    far = quick.make_loop()
    link = quick.loop.open_link(ours.fileno(), 1, wide=True)
    other = far.open_link(theirs.fileno(), 2, wide=True)
    rng = random.Random(9)
    messages = {id: rng.randbytes(length) for id, length in ((3, 300_000), (9, 100_001), (4, 1))}
    sender = Sender(link, messages, size)
    landed: dict[int, bytes] = {}
    small: list[bytes] = []
    sent = count = 0
    give_up = time.monotonic() + GUARD
    while len(landed) < 3 or link.pending or len(small) < count:
        assert time.monotonic() < give_up, (landed.keys(), link.statistics())
        if count < 50 and link.send(b"%d" % count) >= 0:
            count += 1
        events = quick.loop.turn(0.0)
        sent += quick.sent(events, 1)
        sender.hear(events)
        for kind, _, word, payload in far.turn(0.0):
            if kind == BATCH:
                small += payload
            elif kind == FRAME and word & 0xFF == OFFER:
                id, _, total = struct.unpack(">III", payload)
                assert other.expect(id, total) == 0 and other.send_wide(GRANT, id) >= 0
            elif kind == FRAME:
                assert word & 0xFFFF == DATA | LANDED << 8
                assert landed.setdefault(word >> 24, payload) is payload
    assert landed == messages and small == [b"%d" % number for number in range(count)]
    sent += quick.sent(quick.settle(), 1)
    assert sent == count + 3 and link.referred == 0
    for loop in (quick.loop, far):
        assert loop.statistics().bad_frames == 0


def test_long_messages_go_both_ways_at_once(quick):
    """Neither side may wait for the other to read first."""
    one, two = quick.links(wide=True)
    one.wide_max = two.wide_max = 60_000
    rng = random.Random(2)
    out = [rng.randbytes(rng.choice((10, 9_000, 60_000))) for _ in range(12)]
    back = [rng.randbytes(rng.choice((10, 9_000, 60_000))) for _ in range(12)]
    events: list[Any] = []
    for there, here in zip(out, back, strict=True):
        events += quick.offer(one, there)
        events += quick.offer(two, here)
    events += quick.settle()
    assert quick.payloads(events, 2) == out and quick.payloads(events, 1) == back
    assert quick.sent(events, 1) == quick.sent(events, 2) == 12


def test_an_unconfirmed_message_in_slices_is_the_message(quick):
    """Whether the other side's system has it is asked of its last byte."""
    ours, theirs = quick.tcp()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    link = quick.loop.open_link(ours.fileno(), 1)
    message = bytes(50_000)
    for start in range(0, 50_000, 10_000):
        assert link.send_slice(message, 7, start, 10_000) >= 0
    events = quick.until(lambda events: quick.sent(events, 1) == 1)
    assert quick.sent(events, 1) == 1
    data = b""
    give_up = time.monotonic() + GUARD
    while len(data) < 50_000 + 5 * 24 or link.unconfirmed:
        assert time.monotonic() < give_up
        data += quick.read_all(theirs)
    assert link.unconfirmed == 0
