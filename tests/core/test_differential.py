"""C against the reference: the same bytes, cut and damaged at random, must come out the same.

What is compared is everything that a stream can show: frames, the first fault and its code, the
bytes consumed, what is held of an unfinished frame, and the state. The seed of each stream is in
the message of a failure. Short form: 20,000 frames; with PEERTALK_SOAK=1 a million.
"""

from __future__ import annotations

import random
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk import errors
from peertalk._core.values import BATCH, CLOSED, FINISHED, FRAME, SENT
from peertalk._numbers import (
    COMPACT_HEADER_SIZE,
    ERR_CONNECTION_CLOSED,
    ERR_CRC,
    ERR_INVALID_PARAM,
    ERR_MAGIC,
    ERR_MESSAGE_TOO_LARGE,
    ERR_VERSION,
    FRAME_OVERHEAD,
)

pytestmark = pytest.mark.soak

SIZES = (0, 0, 1, 2, 10, 12, 52, 64, 100, 255, 256, 500, 1_000)


def make_stream(core: Any, rng: random.Random, frames: int, limit: int) -> bytearray:
    """Frames of both forms, every type and flag; sizes up to the limit, most of them small."""
    stream = bytearray()
    for number in range(frames):
        size = rng.choice(SIZES) if rng.random() < 0.97 else rng.randrange(limit + 1)
        type = rng.choice((1, 1, 1, 1, rng.randrange(1, 8)))
        flags = rng.choice((0, 0, rng.randrange(256)))
        payload = rng.randbytes(min(size, limit))
        if rng.random() < 0.2 and (type, flags & 15) != (5, 4):
            stream += core.encode_compact(type, flags, len(payload)) + payload
        else:
            stream += core.encode_frame(type, payload, flags, number & 255)
    return stream


def boundaries(stream: bytes) -> list[int]:
    """Where the frames of an undamaged stream begin."""
    found, place = [], 0
    while place < len(stream):
        found.append(place)
        compact = stream[place + 1 : place + 2] != b"T"
        length = place + (2 if compact else 8)
        place += int.from_bytes(stream[length : length + 2], "big") + (
            COMPACT_HEADER_SIZE if compact else FRAME_OVERHEAD
        )
    return found


def spoil(stream: bytearray, rng: random.Random) -> str:
    """Damage a stream in one of the ways that a network, a bug or an enemy has. Returns its
    name."""
    starts = boundaries(stream)
    start = rng.choice(starts[len(starts) // 2 :])  # so that frames stand before it
    kind = rng.choice(
        (
            "none",
            "none",
            "bit",
            "bit",
            "byte",
            "version",
            "type",
            "length",
            "lost",
            "twice",
            "garbage",
            "swap",
        )
    )
    place = rng.randrange(start, len(stream))
    compact = stream[start + 1] != ord("T")
    if kind == "bit":
        stream[place] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        stream[place] = rng.randrange(256)
    elif kind == "version" and not compact:
        stream[start + 4] = rng.choice((0, 2, 255))
    elif kind in ("version", "type"):
        stream[start + (1 if compact else 5)] = rng.choice((0, 8, 255))
    elif kind == "length":
        at = start + (2 if compact else 8)
        stream[at : at + 2] = rng.randrange(65_536).to_bytes(2, "big")
    elif kind == "lost":
        del stream[place : place + rng.randrange(1, 30)]
    elif kind == "twice":
        stream[place:place] = stream[start : start + rng.randrange(1, 30)]
    elif kind == "garbage":
        stream[place:place] = rng.randbytes(rng.randrange(1, 30))
    elif kind == "swap":
        other = rng.randrange(start, len(stream))
        stream[place], stream[other] = stream[other], stream[place]
    return kind


def cuts(rng: random.Random, length: int) -> list[int]:
    """Sizes of the pieces of a stream: from byte by byte to one gulp."""
    style = rng.choice(
        ("bytes", "small", "headers", "mixed", "large", "whole")
        if length < 4_000
        else ("mixed", "large", "whole")
    )
    pieces = []
    left = length
    while left > 0:
        size = {
            "bytes": 1,
            "small": rng.randrange(1, 30),
            "headers": rng.randrange(8, 14),
            "large": rng.randrange(500, 20_000),
            "mixed": rng.choice((0, 1, 9, 10, 11, 12, 13, 300, 4_000)),
            "whole": length,
        }[style]
        pieces.append(min(size, left))
        left -= pieces[-1]
    return pieces


def feed(ingest: Any, piece: bytes) -> tuple[Any, ...]:
    """All that one call shows."""
    try:
        frames, fault = ingest.receive(piece), None
    except errors.ProtocolError as error:
        frames, fault = error.frames, (type(error), error.code)
    return (
        [tuple(frame) for frame in frames],
        fault,
        ingest.consumed,
        ingest.partial_len,
        ingest.state,
    )


def compare(
    cores: list[Any], stream: bytes, pieces: list[int], limit: int, where: str
) -> tuple[int, int | None]:
    """Feed the same pieces to both. Returns the frames that came out, and the code of the fault."""
    machines = [core.Ingest(max_payload=limit) for core in cores]
    place = frames = 0
    try:
        for size in pieces:
            piece = bytes(stream[place : place + size])
            first, second = (feed(machine, piece) for machine in machines)
            assert first == second, f"{where}, byte {place}, piece of {size}"
            place += size
            frames += len(first[0])
            if first[1] is not None:
                for machine in machines:
                    with pytest.raises(errors.InvalidState):
                        machine.receive(piece)
                return frames, first[1][1]
            assert first[2] == len(piece)
        return frames, None
    finally:
        for machine in machines:
            machine.close()


def test_streams_cut_and_damaged_at_random_read_the_same(c_core, reference_core, rounds, capsys):
    """Two programs by two ways of thinking: where they agree on every byte of a million frames,
    both are right or share a misreading."""
    wanted = rounds(20_000, 1_000_000)
    limit = c_core.limits.frame_max_payload
    seed = random.SystemRandom().randrange(2**32)
    frames = sent = streams = 0
    faults: dict[int | None, int] = {}
    while frames < wanted:
        rng = random.Random(f"{seed}/{streams}")
        count = rng.choice((1, 3, 40, 200))
        stream = make_stream(reference_core, rng, count, limit)
        kind = spoil(stream, rng)
        bound = limit if rng.random() < 0.9 else rng.choice((0, 60, 500))
        out, fault = compare(
            [c_core, reference_core],
            stream,
            cuts(rng, len(stream)),
            bound,
            f"seed {seed}, stream {streams} ({kind})",
        )
        if kind == "none" and bound == limit:
            assert (out, fault) == (count, None)
        frames += out
        sent += count
        streams += 1
        faults[fault] = faults.get(fault, 0) + 1
    assert {
        None,
        ERR_INVALID_PARAM,
        ERR_MESSAGE_TOO_LARGE,
        ERR_CRC,
        ERR_MAGIC,
        ERR_VERSION,
    } <= faults.keys(), f"a kind of fault never came up: {faults}"
    with capsys.disabled():
        named = ", ".join(
            f"{reference_core.error_name(code or 0)} {faults[code]:,}"
            for code in sorted(faults, key=str)
        )
        print(
            f"\n{c_core.name}: {frames:,} frames of {sent:,} read alike from {streams:,} "
            f"streams (seed {seed}); ends: {named}"
        )


@given(data=st.binary(max_size=400), pieces=st.lists(st.integers(0, 40), max_size=30))
def test_any_bytes_at_all_read_the_same(c_core, reference_core, data, pieces):
    """What no sender would send: found by a machine that looks for trouble."""
    compare(
        [c_core, reference_core], data, [*pieces, max(0, len(data) - sum(pieces))], 300, "as given"
    )


@given(
    frames=st.lists(
        st.tuples(
            st.integers(1, 7),
            st.integers(0, 255),
            st.one_of(st.none(), st.integers(0, 255)),
            st.binary(max_size=60),
        ),
        min_size=1,
        max_size=8,
    ),
    place=st.integers(0, 10_000),
    value=st.integers(0, 255),
    pieces=st.lists(st.integers(1, 80), max_size=30),
)
def test_one_wrong_byte_is_found_at_the_same_place(
    c_core, reference_core, frames, place, value, pieces
):
    """Frames before it count, the fault has one code, and consumed says where it begins."""
    stream = bytearray()
    for type, flags, sequence, payload in frames:  # those without a sequence are compact
        header = (
            reference_core.encode_compact(type, flags, len(payload)) if sequence is None else b""
        )
        stream += (
            header + payload
            if header
            else reference_core.encode_frame(type, payload, flags, sequence)
        )
    stream[place % len(stream)] = value
    compare(
        [c_core, reference_core],
        stream,
        [*pieces, max(0, len(stream) - sum(pieces))],
        300,
        "as given",
    )


@given(
    type=st.integers(0, 9),
    flags=st.integers(0, 255),
    sequence=st.integers(0, 255),
    payload=st.binary(max_size=1_024),
    data=st.binary(max_size=60),
)
def test_frames_are_written_and_read_the_same(
    c_core, reference_core, type, flags, sequence, payload, data
):
    """One frame alone: bytes out, fields in, and the class of the refusal."""

    def attempt(call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except errors.PeerTalkError as error:
            return error.__class__, error.code

    written = [
        attempt(core.encode_frame, type, payload, flags, sequence)
        for core in (c_core, reference_core)
    ]
    assert written[0] == written[1]
    if isinstance(written[0], bytes):
        for mutant in (written[0], written[0][: len(data)], written[0][:8] + data, data):
            # above it lowmem says "too large"
            if int.from_bytes(mutant[8:10], "big") <= c_core.limits.frame_max_payload:
                assert attempt(c_core.decode_frame, mutant) == attempt(
                    reference_core.decode_frame, mutant
                )
            assert attempt(c_core.decode_header, mutant) == attempt(
                reference_core.decode_header, mutant
            )


def drive(core: Any, stream: bytes, pieces: list[int], limit: int) -> tuple[Any, ...]:
    """What a loop tells of a stream that arrives in such pieces and then ends: frames in order, and
    the end."""
    loop = core.Loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        link = loop.open_link(ours.fileno(), 1, max_payload=limit)
        events: list[Any] = []
        place = 0
        for size in pieces:
            if any(event[0] == CLOSED for event in events):
                break
            theirs.sendall(stream[place : place + size])
            place += size
            events += loop.turn(0.0)
        theirs.shutdown(socket.SHUT_WR)
        while not any(event[0] in (CLOSED, FINISHED) for event in events):
            events += loop.turn(1.0)
        frames: list[Any] = []
        for kind, _, a, b in events:
            if kind == BATCH:
                frames += b
            elif kind == FRAME:
                frames.append((a, b))
        ends = [(kind, a, b) for kind, _, a, b in events if kind in (CLOSED, FINISHED, SENT)]
        statistics = link.statistics()
        counted = (
            statistics.frames_received,
            statistics.payload_bytes_received,
            loop.statistics().crc_errors,
            loop.statistics().bad_frames,
        )
        loop.close()
    return frames, ends, counted


def test_loops_tell_the_same_of_a_stream_that_arrives_in_pieces(c_core, reference_core, rounds):
    """The whole way in: the kernel, the ingest, the sink and the events, whatever the cuts and the
    damage."""
    seed = random.SystemRandom().randrange(2**32)
    limit = c_core.limits.frame_max_payload
    for number in range(rounds(60, 3_000)):
        rng = random.Random(f"{seed}/{number}")
        stream = make_stream(reference_core, rng, rng.choice((1, 5, 40)), limit)
        kind = spoil(stream, rng)
        pieces = cuts(rng, len(stream))
        if len(pieces) > 500:
            pieces = [*pieces[:500], len(stream) - sum(pieces[:500])]
        told = [drive(core, bytes(stream), pieces, limit) for core in (c_core, reference_core)]
        assert told[0] == told[1], f"seed {seed}, stream {number} ({kind})"


def test_pipelines_put_the_same_bytes_in_the_same_slots(c_core, reference_core, rounds):
    """The way out: every slot, byte by byte, and every answer, over random histories."""
    seed = random.SystemRandom().randrange(2**32)
    for number in range(rounds(40, 2_000)):
        rng = random.Random(f"{seed}/{number}")
        depth = rng.randrange(1, 9)
        slot_size = rng.choice((12, 40, 100, 1_000))
        packing, lazy = rng.random() < 0.8, rng.random() < 0.5
        pipelines = [
            core.SendPipeline(depth=depth, slot_size=slot_size, packing=packing, lazy=lazy)
            for core in (c_core, reference_core)
        ]
        flying: list[int] = []
        for step in range(150):
            action = rng.choice(("send", "send", "send", "launch", "complete", "report"))
            if action == "send":
                message = (
                    rng.choice((0, 1, 1, 1, 2, 4, 7, 8)),
                    rng.randbytes(rng.choice((0, 3, 28, 60, 200))),
                    rng.choice((0, 0, 4, 16)),
                )
                shown = [pipeline.send(*message) for pipeline in pipelines]
            elif action == "launch":
                shown = [pipeline.launch() for pipeline in pipelines]
                if shown[0] >= 0:
                    flying.append(shown[0])
            elif action == "complete" and flying:
                index, result = (
                    flying.pop(rng.randrange(len(flying))),
                    rng.choice((0, ERR_CONNECTION_CLOSED)),
                )
                shown = [pipeline.complete(index, result) for pipeline in pipelines]
            else:
                shown = [pipeline.report() for pipeline in pipelines]
            where = f"seed {seed}, history {number}, step {step} ({action})"
            assert shown[0] == shown[1], where
            states = [
                (
                    pipeline.pending,
                    pipeline.available,
                    pipeline.send_seq,
                    pipeline.accepted,
                    pipeline.reported,
                    pipeline.is_ripe(),
                    [
                        (pipeline.slot_state(index), pipeline.slot_bytes(index))
                        for index in range(depth)
                        if pipeline.slot_state(index)
                    ],
                )
                for pipeline in pipelines
            ]
            assert states[0] == states[1], where
        assert pipelines[0].close() == pipelines[1].close()
