"""The receiving machine: frames from any cut of the stream. Truth: what was put in, and the
reference core."""

from __future__ import annotations

import itertools
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from peertalk._core.values import CAPABILITY, DATA, DISCONNECT, PING, Frame
from peertalk._numbers import (
    ERR_CRC,
    ERR_INVALID_PARAM,
    ERR_MAGIC,
    ERR_MESSAGE_TOO_LARGE,
    ERR_VERSION,
    INGEST_INIT,
    INGEST_WAIT_HEADER,
    INGEST_WAIT_PAYLOAD,
)
from peertalk.errors import (
    BadCrc,
    BadMagic,
    BadVersion,
    InvalidArgument,
    InvalidState,
    ProtocolError,
)

COMPACT = None
"""Sequence of frames that go out compact: there they have none."""

payloads = st.one_of(st.binary(max_size=40), st.binary(min_size=1, max_size=900))
full_frames = st.builds(
    Frame, st.integers(1, 7), st.integers(0, 255), st.integers(0, 255), payloads
)
compact_frames = st.builds(
    Frame, st.integers(1, 7), st.integers(0, 15), st.just(COMPACT), payloads
).filter(lambda frame: frame[:2] != (5, 4))
frames = st.one_of(full_frames, full_frames, compact_frames)


def encode(core, frame):
    if frame.sequence is COMPACT:
        return core.encode_compact(frame.type, frame.flags, len(frame.payload)) + frame.payload
    return core.encode_frame(frame.type, frame.payload, frame.flags, frame.sequence)


def received(frame):
    """The frame as it must come out."""
    return frame._replace(sequence=frame.sequence or 0)


def pieces_of(stream, cuts):
    """The stream cut into pieces of these lengths, round and round; no cuts: in one piece."""
    lengths = cuts or [len(stream)]
    start = turn = 0
    while start < len(stream):
        yield stream[start : start + lengths[turn % len(lengths)]]
        start += lengths[turn % len(lengths)]
        turn += 1


@given(sent=st.lists(frames, max_size=6), cuts=st.lists(st.integers(1, 64), max_size=5))
def test_frames_do_not_depend_on_how_the_stream_was_cut(core, sent, cuts):
    """TCP keeps bytes, not boundaries: one byte at a time must read like one big gulp."""
    stream = b"".join(encode(core, frame) for frame in sent)
    pool = core.BufferPool([(64, 1), (1100, 1)])
    ingest = core.Ingest(900, pool)
    seen = []
    for piece in pieces_of(stream, cuts):
        seen += ingest.receive(piece)
        assert ingest.consumed == len(piece)
    assert seen == [received(frame) for frame in sent]
    assert ingest.partial_len == 0
    assert pool.statistics().in_use == 0
    ingest.close()
    assert pool.close() == 0


@given(sent=st.lists(full_frames, min_size=1, max_size=4), first=st.integers(0, 2000))
def test_what_is_held_is_what_was_given_less_the_whole_frames(core, sent, first):
    """The partial-frame time-out is armed by this number: it must be 0 between frames and nowhere
    else."""
    stream = b"".join(encode(core, frame) for frame in sent)[:first]
    ingest = core.Ingest(900)
    whole = sum(12 + len(frame.payload) for frame in ingest.receive(stream))
    assert ingest.partial_len == len(stream) - whole
    assert ingest.state == (INGEST_WAIT_PAYLOAD if ingest.partial_len >= 10 else INGEST_WAIT_HEADER)
    ingest.close()


def judge(ingest, data):
    """All that a call shows."""
    try:
        seen, code = ingest.receive(data), 0
    except ProtocolError as fault:
        seen, code = fault.frames, fault.code
    except InvalidState as refusal:
        seen, code = [], refusal.code
    return seen, code, ingest.consumed, ingest.state, ingest.partial_len


damages = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "drop", "insert", "cut"]),
        st.integers(0, 4000),
        st.integers(1, 255),
    ),
    max_size=3,
)


def damage(stream, damages):
    changed = bytearray(stream)
    for kind, where, value in damages:
        if not changed:
            break
        at = where % len(changed)
        if kind == "flip":
            changed[at] ^= value
        elif kind == "set":
            changed[at] = value
        elif kind == "drop":
            del changed[at : at + value % 16]
        elif kind == "insert":
            changed[at:at] = bytes([value]) * (value % 16)
        else:
            del changed[at:]
    return bytes(changed)


@given(
    sent=st.lists(frames, max_size=5),
    damages=damages,
    cuts=st.lists(st.integers(1, 300), max_size=6),
    dry=st.lists(st.booleans(), max_size=6),
    max_payload=st.sampled_from([16, 200, 1000]),
)
def test_c_and_reference_agree_on_damaged_streams(
    c_core, reference_core, sent, damages, cuts, dry, max_payload
):
    """Every frame, every error, every byte consumed, also while memory is short: two writings of
    one machine cannot hide each other's mistakes."""
    stream = damage(b"".join(encode(reference_core, frame) for frame in sent), damages)
    classes = [(64, 1), (1100, 1)]
    pools = [core.BufferPool(classes) for core in (c_core, reference_core)]
    machines = [
        core.Ingest(max_payload, pool)
        for core, pool in zip((c_core, reference_core), pools, strict=True)
    ]
    rest = b""
    for turn, piece in enumerate(pieces_of(stream, cuts)):
        for pool in pools:
            pool.trim()
            pool.fail_at(1 if dry and dry[turn % len(dry)] else 0)
        rest += piece
        seen, expected = (judge(machine, rest) for machine in machines)
        assert seen == expected
        if seen[1]:
            break
        rest = rest[seen[2] :]
    assert pools[0].statistics() == pools[1].statistics()
    for pool in pools:
        pool.fail_at(0)
    assert judge(machines[0], rest) == judge(machines[1], rest)
    for machine, pool in zip(machines, pools, strict=True):
        machine.close()
        assert pool.close() == 0


def test_c_and_reference_agree_on_long_streams(c_core, reference_core, rounds):
    """The same law by the million, in streams long enough that staging, pool and stream positions
    are used over and over."""
    left, seed = rounds(4_000, 1_000_000), 20_000
    while left > 0:
        seed += 1
        chance = random.Random(seed)
        sent = [
            Frame(
                chance.randint(1, 7),
                flags,
                chance.randrange(256) if flags else COMPACT,
                chance.randbytes(chance.choice((0, 1, 20, 64, 300, 900))),
            )
            for flags in chance.choices((0, 1, 16, 255), k=chance.randrange(1, 300))
        ]
        stream = b"".join(encode(reference_core, frame) for frame in sent)
        damaged = chance.random() < 0.5
        if damaged:
            stream = damage(
                stream,
                [
                    (
                        chance.choice(("flip", "set", "drop", "insert", "cut")),
                        chance.randrange(2**20),
                        chance.randint(1, 255),
                    )
                ],
            )
        cuts = [
            chance.choice((1, 9, 10, 11, 12, 100, 1448, 65_536)) + chance.randrange(4)
            for _ in range(7)
        ]
        machines = [core.Ingest(900) for core in (c_core, reference_core)]
        taken = []
        for piece in pieces_of(stream, cuts):
            seen, expected = (judge(machine, piece) for machine in machines)
            assert seen == expected, f"seed {seed}"
            taken += seen[0]
            if seen[1]:
                break
        assert damaged or taken == [received(frame) for frame in sent], f"seed {seed}"
        for machine in machines:
            machine.close()
        left -= len(taken)


def test_a_zero_length_payload_is_not_incomplete(core):
    """A frame without payload is whole with its trailer: waiting for more would hold up a
    DISCONNECT for ever."""
    stream = core.encode_frame(DISCONNECT, b"")
    ingest = core.Ingest()
    assert [frame.type for frame in ingest.receive(stream)] == [DISCONNECT]
    assert ingest.receive(stream[:10]) == []
    assert ingest.state == INGEST_WAIT_PAYLOAD
    assert ingest.receive(stream[10:11]) == []
    assert ingest.receive(stream[11:]) == [Frame(DISCONNECT, 0, 0, b"")]
    assert ingest.partial_len == 0
    ingest.close()


def test_no_bytes_change_nothing(core):
    """An empty read is not an end of anything."""
    ingest = core.Ingest()
    stream = core.encode_frame(PING, b"")
    for at in range(len(stream)):
        assert ingest.receive(b"") == []
        assert (ingest.consumed, ingest.partial_len) == (0, at)
        seen = ingest.receive(stream[at : at + 1])
    assert len(seen) == 1
    ingest.close()


@pytest.mark.parametrize("cut", [1, 5, 10])
def test_an_oversize_payload_is_judged_on_its_header(core, cut):
    """A liar must not make us wait for, or find memory for, what it will never send."""
    header = core.encode_header(DATA, 0, 0, 201)
    pool = core.BufferPool([(400, 1)])
    ingest = core.Ingest(200, pool)
    with pytest.raises(ProtocolError) as fault:
        for piece in pieces_of(header, [cut]):
            ingest.receive(piece)
    assert fault.value.code == ERR_MESSAGE_TOO_LARGE
    assert ingest.consumed == 0
    assert pool.statistics().allocations == 0
    at_limit = core.Ingest(200, pool)
    at_limit.receive(core.encode_header(DATA, 0, 0, 200))
    assert at_limit.state == INGEST_WAIT_PAYLOAD
    at_limit.close()
    assert pool.close() == 0


def test_a_compact_frame_does_not_wait_for_the_size_of_a_full_header(core):
    """Four bytes can be a whole frame: a receiver that wants ten would sit on it until the next one
    comes."""
    ingest = core.Ingest()
    for stream, frame in (
        (b"P\x40\0\0", Frame(DISCONNECT, 0, 0, b"")),
        (b"P\x18\0\2ab", Frame(DATA, 8, 0, b"ab")),
    ):
        for cut in range(1, len(stream) + 1):
            seen = [frame for piece in pieces_of(stream, [cut]) for frame in ingest.receive(piece)]
            assert (seen, ingest.partial_len) == ([frame], 0)
    ingest.close()


def test_a_compact_frame_is_never_a_fragment_and_one_reads_like_a_full_header(core):
    """Its nibble has no room for the flag 0x10. Type 5 with flags 4 gives the second byte of a full
    header: such a frame is taken for the start of one, and fails its magic."""
    for type, flags in itertools.product(range(1, 8), range(16)):
        frame = b"P" + bytes([type << 4 | flags]) + b"\0\3abc" + b"P\x20\0\0" * 3
        ingest = core.Ingest()
        if (type, flags) == (5, 4):
            with pytest.raises(ProtocolError) as fault:
                ingest.receive(frame)
            assert fault.value.code == ERR_MAGIC
        else:
            seen = ingest.receive(frame)
            assert seen[0] == Frame(type, flags, 0, b"abc") and len(seen) == 4
            assert not seen[0].flags & 0x10
        ingest.close()


@pytest.mark.parametrize("header_before", range(4))
def test_a_compact_frame_without_memory_waits_and_is_not_lost(core, header_before):
    """As a full one: short of memory the link is paused, not dropped."""
    pool = core.BufferPool([(100, 1)])
    ingest = core.Ingest(60, pool)
    stream = b"P\x10\0\5hello"
    ingest.receive(stream[:header_before])
    pool.fail_at(1)
    assert ingest.receive(stream[header_before:6]) == []
    assert (ingest.consumed, ingest.partial_len) == (0, header_before)
    pool.fail_at(0)
    assert ingest.receive(stream[header_before:]) == [Frame(DATA, 0, 0, b"hello")]
    ingest.close()
    assert pool.close() == 0


COMPACT_FAULTS = {
    "type 0": (b"P\x05\0\0", ERR_INVALID_PARAM),
    "type 8": (b"P\x80\0\0", ERR_INVALID_PARAM),
    "too long": (b"P\x10\0\xc9", ERR_MESSAGE_TOO_LARGE),
    "longest of all": (b"P\x10\xff\xff", ERR_MESSAGE_TOO_LARGE),
}


@pytest.mark.parametrize("cut", [1, 3, 4])
@pytest.mark.parametrize("kind", COMPACT_FAULTS)
def test_a_bad_compact_header_ends_the_machine(core, kind, cut):
    """It has no checksum: what little can be judged is judged as soon as it is there, and before
    memory is found for it."""
    header, code = COMPACT_FAULTS[kind]
    pool = core.BufferPool([(400, 1)])
    ingest = core.Ingest(200, pool)
    with pytest.raises(ProtocolError) as fault:
        for piece in pieces_of(header, [cut]):
            ingest.receive(piece)
    assert (fault.value.code, ingest.state, pool.statistics().allocations) == (code, INGEST_INIT, 0)


def test_an_ack_with_flag_4_reads_like_a_full_header(core):
    """Its second byte is T. By rule such a frame is a full one, so it can only be waited for, or be
    a fault."""
    ingest = core.Ingest()
    assert ingest.receive(core.encode_compact(5, 4, 0)) == []
    assert ingest.partial_len == 4
    with pytest.raises(BadMagic):
        ingest.receive(bytes(6))


@pytest.mark.parametrize("max_payload", [-1, 65_536])
def test_a_limit_that_no_header_can_reach_is_refused(core, max_payload):
    """A limit out of bounds is a mistake of ours that would otherwise show as a fault of the
    peer."""
    with pytest.raises(InvalidArgument):
        core.Ingest(max_payload)


def spoil(stream, at, value):
    return stream[:at] + bytes([value]) + stream[at + 1 :]


@pytest.mark.parametrize(
    ("at", "value", "error", "code"),
    [
        (0, 0x51, BadMagic, ERR_MAGIC),
        (3, 0, BadMagic, ERR_MAGIC),
        (4, 2, BadVersion, ERR_VERSION),
        (5, 0, ProtocolError, ERR_INVALID_PARAM),
        (5, 8, ProtocolError, ERR_INVALID_PARAM),
        (6, 1, BadCrc, ERR_CRC),
        (7, 9, BadCrc, ERR_CRC),
        (12, 0xFF, BadCrc, ERR_CRC),
        (14, 0, BadCrc, ERR_CRC),
    ],
)
@pytest.mark.parametrize("early", [0, 4, 12], ids=["in one piece", "header cut", "payload cut"])
def test_a_fault_ends_the_machine_and_spares_the_frames_before_it(
    core, at, value, error, code, early
):
    """There is no resynchronisation: after a fault nothing may be trusted, and nothing before it
    may be lost."""
    good = Frame(CAPABILITY, 0, 0, b"before")
    bad = spoil(core.encode_frame(DATA, b"\x01\x02\x03\x04", 0, 5), at, value)
    before = encode(core, good) * 2
    stream = before + bad + encode(core, good)
    cut = len(before) + early if early else 0
    pool = core.BufferPool([(100, 2)])
    ingest = core.Ingest(80, pool)
    seen = []
    with pytest.raises(error) as fault:
        for start in (0, cut):
            seen += ingest.receive(stream[start : start + cut] if start < cut else stream[cut:])
    assert fault.value.code == code
    assert seen + fault.value.frames == [good, good]
    assert ingest.consumed == max(0, len(before) - start)
    assert (ingest.state, ingest.partial_len) == (INGEST_INIT, 0)
    with pytest.raises(InvalidState):
        ingest.receive(encode(core, good))
    assert ingest.consumed == 0
    ingest.close()
    assert pool.close() == 0


@pytest.mark.parametrize("header_before", range(10))
def test_a_refused_staging_buffer_loses_nothing(core, header_before):
    """Short of memory the link is paused, not dropped: the same bytes, given again, go on as if
    nothing had been."""
    sent = [Frame(DATA, 0, number, bytes([number]) * 50) for number in range(3)]
    stream = b"".join(encode(core, frame) for frame in sent)
    pool = core.BufferPool([(100, 1)])
    ingest = core.Ingest(60, pool)
    ingest.receive(stream[:header_before])
    pool.fail_at(1)

    rest = stream[header_before : 2 * 62 + 30]
    seen = ingest.receive(rest)
    if header_before:
        # its header began earlier: all of it waits
        assert (seen, ingest.consumed, ingest.partial_len) == ([], 0, header_before)
    else:
        assert (seen, ingest.consumed, ingest.partial_len) == (sent[:2], 2 * 62, 0)
    rest = rest[ingest.consumed :]
    assert ingest.receive(rest) == []
    assert ingest.consumed == 0
    pool.fail_at(0)
    seen += ingest.receive(rest)
    assert ingest.consumed == len(rest)
    seen += ingest.receive(stream[2 * 62 + 30 :])
    assert seen == sent
    assert pool.statistics().in_use == 0
    ingest.close()


def test_an_idle_machine_holds_no_memory(core):
    """A thousand idle peers must cost nothing: staging memory is borrowed for a cut frame only, and
    of its class."""
    pool = core.BufferPool([(32, 1), (1100, 1)])
    ingest = core.Ingest(900, pool)
    whole = core.encode_frame(DATA, b"x" * 600)
    ingest.receive(whole * 3)
    ingest.receive(whole[:9])
    assert pool.statistics().acquires == 0
    ingest.receive(whole[9:10])
    assert (pool.statistics().in_use, pool.statistics().bytes) == (1, 1116)
    ingest.receive(whole[10:] + core.encode_frame(DATA, b"short")[:-1])
    assert (pool.statistics().in_use, pool.statistics().bytes) == (1, 1116 + 48)
    ingest.close()
    ingest.close()
    assert pool.close() == 0


def test_staging_memory_is_wiped_behind_each_frame(core):
    """One peer's message must not lie in the buffer that the next one gets."""
    pool = core.BufferPool([(100, 1)])
    ingest = core.Ingest(80, pool)
    stream = core.encode_frame(DATA, b"secret" * 10)
    ingest.receive(stream[:30])
    assert len(ingest.receive(stream[30:])) == 1
    ingest.receive(stream[:40])
    ingest.close()
    again = pool.acquire(100)
    assert bytes(again.view) == bytes(100)
    again.release()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("cut", [72, 30])
def test_payloads_outlive_the_bytes_that_they_were_read_from(core, kind, cut):
    """The receive buffer is used again at once."""
    stream = core.encode_frame(DATA, b"keep me!" * 8)
    data = kind(bytearray(stream)) if kind is memoryview else kind(stream)
    ingest = core.Ingest()
    seen = ingest.receive(data[:cut]) + ingest.receive(data[cut:])
    if kind is not bytes:
        data[:] = bytes(len(data))
    assert [frame.payload for frame in seen] == [b"keep me!" * 8]
    ingest.close()
