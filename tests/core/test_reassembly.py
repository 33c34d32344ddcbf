"""Fragments and batches: the vectors, every arrow of the table, and the C cores against the
reference over random histories."""

from __future__ import annotations

import importlib
import json
import struct
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from peertalk import errors
from peertalk._core.reference.reassembly import TABLE, Event, State
from peertalk._core.values import BATCHED, DATA, FRAGMENT
from peertalk._numbers import FRAGMENT_FIRST as FIRST
from peertalk._numbers import FRAGMENT_LAST as LAST
from peertalk._numbers import REASSEMBLY_COMPLETE as COMPLETE

ROOT = Path(__file__).resolve().parents[2]
MORE = (None, "PT_OK")


def cases(kind):
    found = json.loads((ROOT / "tests" / "vectors" / f"{kind}.json").read_text())["cases"]
    return pytest.mark.parametrize("case", found, ids=[case["id"] for case in found])


def fragment(message_id, total, offset, flags, piece=b"", reserved=0):
    return struct.pack(">HHHBB", message_id, total, offset, flags, reserved) + piece


def tell(core, reassembly, payload):
    """What a fragment gave: the message or None, and the name of its code."""
    try:
        return reassembly.receive(payload), "PT_OK"
    except (errors.ProtocolError, errors.OutOfMemory) as error:
        return None, core.error_name(error.code)


# Vectors


@cases("reassembly")
def test_each_step_of_the_original_gives_what_it_gave_there(core, case):
    """Which fragments cost a message and which do not: a peer of the original counts on it."""
    pool = core.BufferPool([(case["capacity"], 1)])
    reassembly = core.Reassembly(case["capacity"], pool)
    for step in case["steps"]:
        message, code = tell(core, reassembly, bytes.fromhex(step["payload"]))
        if step["result"] == "COMPLETE":
            assert (message, code) == (bytes.fromhex(step["message"]), "PT_OK")
        else:
            assert (message, code) == (
                None,
                "PT_OK" if step["result"] == "MORE" else step["result"],
            )
    reassembly.close()
    assert pool.close() == 0


def reassembled(core, frames, limit):
    """The messages that come of frames on a stream."""
    ingest, reassembly = core.Ingest(), core.Reassembly(limit)
    found = []
    for frame in ingest.receive(b"".join(frames)):
        assert (frame.type, frame.flags) == (DATA, FRAGMENT)
        if (message := reassembly.receive(frame.payload)) is not None:
            found.append(message)
    assert reassembly.partial_len == 0
    return found


@cases("fragmented_message")
def test_a_long_message_of_the_original_comes_back_whole(core, case):
    """In the pieces that the original makes."""
    frames = [bytes.fromhex(frame) for frame in case["frames"]]
    assert reassembled(core, frames, len(case["message"]) // 2) == [bytes.fromhex(case["message"])]


@cases("live_fragments")
def test_fragments_seen_on_the_network_come_back_whole(core, case):
    """Not what a document says, but what a peer of the original really sent."""
    message = bytearray((7 * i + 3) % 256 for i in range(1025))
    message[:4] = b"\0\0\0\3"
    assert reassembled(core, [bytes.fromhex(frame) for frame in case["frames"]], 4096) == [
        bytes(message)
    ]


@cases("batch")
def test_a_batch_is_split_into_its_messages(core, case):
    """The original packs them, and so far nobody has sent one: whoever does must be understood."""
    messages = [
        bytes.fromhex(text)
        for index, text in enumerate(case["messages"])
        if index not in case["refused"]
    ]
    (frame,) = core.Ingest(1_400).receive(bytes.fromhex(case["frame"]))
    assert (frame.type, frame.flags, frame.sequence, frame.payload.hex()) == (
        DATA,
        BATCHED,
        case["sequence"],
        case["payload"],
    )
    assert core.split_batch(frame.payload) == messages


# The table


def prepare(core, state):
    """A reassembly of at most 10 bytes in that state: RUNNING has 3 of the 6 bytes of message 7.
    With its pool, where longer messages find no memory yet made."""
    pool = core.BufferPool([(6, 1), (10, 1)])
    reassembly = core.Reassembly(10, pool)
    if state is State.RUNNING:
        assert tell(core, reassembly, fragment(7, 6, 0, FIRST, b"abc")) == MORE
    assert reassembly.state == state
    return reassembly, pool


OCCASIONS = {
    # A fragment that means this event in IDLE, where what it is held against is 0, and in RUNNING.
    Event.SHORT: (bytes(7), bytes(7)),
    Event.OVERRUN: (fragment(0, 3, 2, 0, b"xx"), fragment(7, 6, 3, LAST, b"defg")),
    Event.TOO_LARGE: (fragment(9, 11, 0, FIRST, b"x"), fragment(9, 11, 0, FIRST, b"x")),
    Event.NO_MEMORY: (fragment(9, 8, 0, FIRST, b"x"), fragment(9, 8, 0, FIRST, b"x")),
    Event.START: (fragment(9, 8, 0, FIRST, b"x"), fragment(9, 8, 0, FIRST, b"x")),
    Event.OTHER_ID: (fragment(1, 6, 0, 0, b"x"), fragment(8, 6, 3, 0, b"d")),
    Event.MISPLACED: (fragment(0, 6, 3, 0, b"d"), fragment(7, 6, 2, 0, b"c")),
    Event.NEXT: (fragment(0, 6, 0, 0, b"a"), fragment(7, 6, 3, 0, b"def")),
    Event.LAST_EARLY: (fragment(0, 6, 0, LAST, b"a"), fragment(7, 6, 3, LAST, b"de")),
    Event.LAST: (fragment(0, 6, 0, LAST), fragment(7, 6, 3, LAST, b"def")),
}


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_each_event_in_each_state_does_what_the_table_says(core, state, event):
    """An arrow that nobody has walked is a guess."""
    code, following = TABLE[state, event]
    reassembly, pool = prepare(core, state)
    if event is Event.NO_MEMORY:
        pool.fail_at(1)
    message, told = tell(core, reassembly, OCCASIONS[event][state])
    if code == COMPLETE:
        assert (message, told) == (b"abcdef", "PT_OK")
    else:
        assert (message, told) == (None, core.error_name(code))
    assert reassembly.state == following
    assert pool.statistics().in_use == (following is State.RUNNING)
    # ignored, and the message goes on as if nothing had been
    if state is State.RUNNING and following is State.RUNNING and code < 0:
        assert tell(core, reassembly, fragment(7, 6, 3, LAST, b"def")) == (b"abcdef", "PT_OK")
    reassembly.close()
    assert pool.close() == 0


def test_the_table_has_an_arrow_for_each_pair():
    """What is missing would be an exception in the middle of a stream."""
    assert set(TABLE) == {(state, event) for state in State for event in Event}


@pytest.mark.parametrize("name", ["standard", "lowmem"])
def test_the_compiled_table_is_that_of_the_reference(name):
    """The documents draw the one, machines run the other."""
    lib = importlib.import_module(f"peertalk._core._{name}").lib
    for (state, event), arrow in TABLE.items():
        rule = lib.pt_reassembly_rule_of(state, event)
        assert (rule.code, rule.state) == arrow
        assert (
            getattr(lib, f"PT_PIECE_{event.name}") == event
            and getattr(lib, f"PT_REASSEMBLY_{state.name}") == state
        )


WORDS = {0: "taken", COMPLETE: "the message"}


@pytest.mark.source
def test_the_documents_draw_the_table_as_it_is(reference_core):
    """A picture that was true once is worse than none."""
    document = (ROOT / "docs" / "protocol.md").read_text()
    for event in Event:
        cells = []
        for state in State:
            code, following = TABLE[state, event]
            cells.append(
                f"{WORDS.get(code) or reference_core.error_name(code).removeprefix('PT_ERR_')}"
                f" → {following.name.lower()}"
            )
        assert f"| {event.name.lower().replace('_', ' ')} |" in document
        assert f"| {' | '.join(cells)} |" in next(
            line
            for line in document.splitlines()
            if f"| {event.name.lower().replace('_', ' ')} |" in line
        )


# Hostile totals


@pytest.mark.parametrize("flags", [0, LAST])
@pytest.mark.parametrize("total", [0, 12, 4_000, 65_535])
def test_a_forged_total_of_a_later_fragment_moves_no_bound(core, total, flags):
    """The original believes it and writes behind its buffer: the first fragment's total is the only
    one."""
    pool = core.BufferPool([(10, 1)])
    reassembly = core.Reassembly(10, pool)
    assert tell(core, reassembly, fragment(1, 10, 0, FIRST, b"hello")) == MORE
    assert tell(core, reassembly, fragment(1, total, 5, flags, b"x" * 6)) == (
        None,
        "PT_ERR_INVALID_PARAM",
    )
    assert (reassembly.state, pool.statistics().in_use) == (State.IDLE, 0)
    assert tell(core, reassembly, fragment(1, 10, 0, FIRST, b"hello")) == MORE
    assert tell(core, reassembly, fragment(1, total, 5, LAST, b"world")) == (b"helloworld", "PT_OK")
    reassembly.close()


@pytest.mark.parametrize("piece", [0, 1, 2, 65_527])
@pytest.mark.parametrize("offset", [65_533, 65_534, 65_535])
def test_an_offset_near_the_end_of_its_field_does_not_wrap(core, offset, piece):
    """Sixteen bits and a length: their sum has seventeen."""
    reassembly = core.Reassembly(65_535)
    expected = "PT_ERR_INVALID_STATE" if offset + piece <= 65_535 else "PT_ERR_INVALID_PARAM"
    assert tell(core, reassembly, fragment(0, 65_535, offset, 0, bytes(piece))) == (None, expected)
    expected = "PT_ERR_INVALID_PARAM"  # out of order, or beyond the total
    assert tell(core, reassembly, fragment(0, 65_535, offset, FIRST, bytes(piece))) == (
        None,
        expected,
    )
    assert reassembly.state == State.IDLE


def test_the_largest_message_of_the_field_comes_back_in_pieces_of_any_size(core):
    """65,535 bytes is what the header can say; our announcement is smaller, and the machine does
    not care."""
    message = bytes(i * 7 % 251 for i in range(65_535))
    reassembly = core.Reassembly(65_535)
    at = 0
    for size in (1, 0, 248, 60_000, 5_285, 1):
        assert (
            tell(
                core,
                reassembly,
                fragment(3, 65_535, at, FIRST if at == 0 else 0, message[at : at + size]),
            )
            == MORE
        )
        at += size
    assert (at, reassembly.partial_len) == (65_535, 65_535)
    assert tell(core, reassembly, fragment(3, 65_535, 65_535, LAST)) == (message, "PT_OK")


def test_no_more_memory_is_borrowed_than_was_announced_and_allowed(core):
    """Eight bytes of a stranger must not cost more than they say, nor more than we said."""
    pool = core.BufferPool([(16, 1), (1_000, 1)])
    reassembly = core.Reassembly(900, pool)
    tell(core, reassembly, fragment(1, 901, 0, FIRST))
    assert pool.statistics().acquires == 0
    tell(core, reassembly, fragment(1, 16, 0, FIRST))
    assert (pool.statistics().bytes, pool.statistics().in_use) == (32, 1)
    tell(core, reassembly, fragment(2, 0, 0, FIRST))
    assert pool.statistics().in_use == 0  # a message of no bytes needs none
    assert tell(core, reassembly, fragment(2, 0, 0, LAST)) == (b"", "PT_OK")
    for number in range(1_000):
        tell(core, reassembly, fragment(number, 900, 0, FIRST, b"x"))
    assert (pool.statistics().in_use, pool.statistics().bytes) == (1, 32 + 1_016)
    reassembly.close()
    reassembly.close()
    assert (reassembly.state, reassembly.partial_len, pool.close()) == (State.IDLE, 0, 0)


def test_what_one_message_leaves_behind_is_not_in_the_next(core):
    """The rest of a short message must not be the rest of another peer's."""
    pool = core.BufferPool([(32, 1)])
    reassembly = core.Reassembly(32, pool)
    assert tell(core, reassembly, fragment(1, 32, 0, FIRST | LAST, b"s" * 32)) == (
        b"s" * 32,
        "PT_OK",
    )
    tell(core, reassembly, fragment(1, 32, 0, FIRST, b"t" * 20))
    reassembly.close()
    buffer = pool.acquire(32)
    assert bytes(buffer.view) == bytes(32)
    buffer.release()


@pytest.mark.parametrize("limit", [-1, 65_536])
def test_a_limit_that_no_fragment_can_reach_is_refused(core, limit):
    """A mistake of ours, and not the peer's."""
    with pytest.raises(errors.InvalidArgument):
        core.Reassembly(limit)


def test_a_loops_reassembly_borrows_from_the_loops_pool(core):
    """Else a node's account of its memory would not be whole."""
    loop = core.Loop()
    reassembly = loop.reassembly(1_000)
    before = loop.pool.statistics().in_use
    reassembly.receive(fragment(1, 1_000, 0, FIRST))
    assert loop.pool.statistics().in_use == before + 1
    loop.close()
    reassembly.close()  # what outlives its loop gives back all the same
    assert loop.pool.statistics().in_use == before
    with pytest.raises(errors.InvalidState):
        loop.reassembly(10)


@pytest.mark.parametrize("size", [1, 256, 257, 1_040, 1_041, 2_000, 4_096])
def test_every_link_may_have_a_message_in_pieces_whatever_the_others_hold(core, size):
    """That is what its share says, of any size that an original sends; a class without shares
    refused the twelfth of them."""
    links = 40
    loop = core.Loop(pool=core.loop_pool(41_600, links))
    held = [loop.reassembly(4_096) for _ in range(links)]
    ordinary = []
    with pytest.raises(errors.OutOfMemory):  # links in bulk, as much as the budget pays for
        while True:
            ordinary.append(loop.pool.acquire(size))
    for number, each in enumerate(held):
        each.receive(fragment(number, size, 0, FIRST))
        assert each.state == 1
    for each in ordinary:
        each.release()
    for each in held:
        each.close()
    loop.close()


# C against the reference


pieces = st.builds(
    fragment,
    st.sampled_from([0, 1, 1, 1, 2, 65_535]),
    st.sampled_from([0, 3, 8, 8, 8, 20, 21, 65_535]),
    st.sampled_from([0, 0, 3, 5, 8, 16, 65_535]),
    st.sampled_from([0, FIRST, LAST, FIRST | LAST, 0xFC, 0xFF]),
    st.binary(max_size=9),
    st.integers(0, 255),
)
dialogue = st.lists(
    st.one_of(
        pieces,
        pieces,
        st.binary(max_size=12),
        st.sampled_from(["next", "next", "last", "close", "dry", "wet"]),
    ),
    max_size=30,
)


@given(history=dialogue)
def test_c_and_reference_agree_on_any_history(c_core, reference_core, history):
    """Legal and illegal fragments, memory that fails and comes back: every message, every code,
    every byte held."""
    pools = [core.BufferPool([(8, 1), (20, 1)]) for core in (c_core, reference_core)]
    machines = [
        core.Reassembly(20, pool)
        for core, pool in zip((c_core, reference_core), pools, strict=True)
    ]
    current = (0, 0, 0)
    for step in history:
        if step in ("dry", "wet"):
            for pool in pools:
                pool.trim()
                pool.fail_at(1 if step == "dry" else 0)
            continue
        if step == "close":
            for machine in machines:
                machine.close()
            continue
        if step in ("next", "last"):  # so that long legal histories come up
            message_id, total, at = current
            size = total - at if step == "last" else min(2, total - at)
            step = fragment(message_id, total, at, LAST if step == "last" else 0, b"n" * size)
        told = [
            tell(core, machine, step)
            for core, machine in zip((c_core, reference_core), machines, strict=True)
        ]
        assert told[0] == told[1]
        assert (machines[0].state, machines[0].partial_len) == (
            machines[1].state,
            machines[1].partial_len,
        )
        assert pools[0].statistics() == pools[1].statistics()
        assert machines[0].state == State.RUNNING or pools[0].statistics().in_use == 0
        if len(step) >= 8 and step[6] & FIRST and machines[0].state == State.RUNNING:
            current = (
                int.from_bytes(step[:2], "big"),
                int.from_bytes(step[2:4], "big"),
                machines[0].partial_len,
            )
        elif machines[0].state == State.RUNNING:
            current = (*current[:2], machines[0].partial_len)
    for machine, pool in zip(machines, pools, strict=True):
        machine.close()
        assert pool.close() == 0


@given(
    message=st.binary(max_size=2_000),
    sizes=st.lists(st.integers(0, 400), min_size=1, max_size=9),
    junk=st.lists(st.binary(max_size=7), max_size=3),
)
def test_any_message_in_any_pieces_comes_back(core, message, sizes, junk):
    """The law of both halves: what is cut by the rules is put together by them, and a fragment
    without a header disturbs nobody."""
    reassembly = core.Reassembly(2_000)
    at = turn = 0
    while True:
        size = min(sizes[turn % len(sizes)] + (turn > 50), len(message) - at)
        last = at + size == len(message)
        flags = (FIRST if turn == 0 else 0) | (LAST if last else 0)
        got = reassembly.receive(
            core.encode_fragment(5, len(message), at, flags) + message[at : at + size]
        )
        for rubbish in junk:
            assert tell(core, reassembly, rubbish) == (None, "PT_ERR_TRUNCATED")
        if last:
            break
        assert got is None
        at += size
        turn += 1
    assert got == message


@given(
    data=st.one_of(st.binary(max_size=60), st.lists(st.binary(max_size=20), max_size=6)),
    cut=st.integers(0, 80),
)
def test_batches_are_split_whole_or_not_at_all(core, reference_core, data, cut):
    """A batch whose last entry is cut might have lost others too."""
    if isinstance(data, list):
        # the reserved bytes may say anything
        payload = b"".join(struct.pack(">HH", len(entry), cut) + entry for entry in data)
        assert core.split_batch(payload) == data
        data = payload[:cut]

    def split(by: Any) -> Any:
        try:
            return by.split_batch(data)
        except errors.ProtocolError as error:
            return type(error), error.code

    assert split(core) == split(reference_core)


@pytest.mark.parametrize(
    "payload",
    [
        b"\0",
        b"\0\0\0",
        b"\0\1\0\0",
        b"\0\1\0\0a\0",
        b"\0\0\0\0\xff\xff\0\0",
        b"\xff\xff\0\0" + bytes(65_534),
    ],
)
def test_an_entry_that_runs_past_the_end_of_a_batch_is_a_fault(core, payload):
    """A length that lies must not reach into what lies behind."""
    with pytest.raises(errors.Truncated):
        core.split_batch(payload)
    with pytest.raises(errors.Truncated):
        core.split_batch(memoryview(bytearray(payload)))
