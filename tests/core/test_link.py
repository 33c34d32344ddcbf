"""A link over real sockets: what is sent and received, refused and paused, and how it ends.

Every test runs on each core and each way to drive it: epoll and poll, asynchronous and blocking
sends. Truth comes from csrc/core/pt_link.h, the kernel, and frames encoded one by one.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import random
import select
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from peertalk import errors
from peertalk._core.values import (
    BATCH,
    BATCHED,
    CAPABILITY,
    CLOSED,
    COALESCABLE,
    DATA,
    DISCONNECT,
    FINISHED,
    FRAGMENT,
    FRAME,
    NEEDS_TURN,
    NO_DELAY,
    PING,
    PONG,
    READ,
    SENT,
    TIMER,
    YIELD,
)
from peertalk._numbers import (
    ERR_CONNECTION_CLOSED,
    ERR_CRC,
    ERR_INVALID_PARAM,
    ERR_MAGIC,
    ERR_MESSAGE_TOO_LARGE,
    ERR_NO_MEMORY,
    ERR_NOT_CONNECTED,
    ERR_TIMEOUT,
    ERR_TRUNCATED,
    ERR_VERSION,
    ERR_WOULD_BLOCK,
    FRAME_OVERHEAD,
)

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="did not run: this is about Linux"
)
PATIENCE = 10.0
"""Seconds after which a test that waits for an event says what it saw instead."""


# Sending and receiving


def test_messages_arrive_once_and_in_order(bench):
    """The promise that all others stand on."""
    one, two = bench.links()
    rng = random.Random(7)
    out = [rng.randbytes(rng.choice((0, 1, 63, 64, 500, bench.limit))) for _ in range(300)]
    back = [rng.randbytes(rng.randrange(100)) for _ in range(300)]
    events = []
    for number, message in enumerate(out):
        events += bench.offer(one, message)
        events += bench.offer(two, back[number])
        if number % 8 == 0:
            events += bench.loop.turn(0.0)
    events += bench.settle()
    assert bench.payloads(events, 2) == out
    assert bench.payloads(events, 1) == back
    assert bench.sent(events, 1) == bench.sent(events, 2) == 300
    assert one.pending == two.pending == 0


def test_messages_of_one_turn_come_as_one_batch(bench):
    """One crossing for each link and turn, however many messages it carries."""
    link, raw = bench.link()
    raw.sendall(bench.stream(b"a", b"", b"ccc"))
    assert bench.of(bench.until(lambda events: events), BATCH) == [
        (BATCH, 1, 4, [b"a", b"", b"ccc"])
    ]
    assert link.statistics().frames_received == 3


def test_a_turn_has_room_for_the_smallest_frames_that_it_can_read(bench):
    """Four bytes are a whole compact frame: counted in full ones, a stranger's empty messages would
    be three times too many, and end the link."""
    link, raw = bench.link()
    count = 20_000
    rest = memoryview(bench.core.encode_compact(DATA, 0, 0) * count)
    seen = []
    while rest:
        with contextlib.suppress(BlockingIOError):
            rest = rest[raw.send(rest) :]
        seen += bench.loop.turn(0.1)
    seen += bench.until(lambda events: len(bench.payloads(seen + events)) == count)
    assert bench.payloads(seen) == [b""] * count and not bench.of(seen, CLOSED)
    assert link.statistics().frames_received == count


def test_payloads_outlive_the_turn_that_brought_them(bench):
    """The receive buffer is used again at once: what was handed out must be a copy."""
    _, raw = bench.link()
    raw.sendall(bench.stream(b"first" * 20))
    (first,) = bench.payloads(bench.until(lambda events: events))
    raw.sendall(bench.stream(b"XXXXX" * 20))
    bench.until(lambda events: events)
    assert first == b"first" * 20
    assert type(first) is bytes


def test_a_control_frame_keeps_its_place_among_messages(bench):
    """A DISCONNECT or CAPABILITY means something at its place in the stream, not at another."""
    _, raw = bench.link(tag=9)
    encode = bench.core.encode_frame
    raw.sendall(
        encode(DATA, b"one")
        + encode(DATA, b"two")
        + encode(PING, b"")
        + encode(DATA, b"three")
        + encode(CAPABILITY, b"caps")
        + encode(DISCONNECT, b"", 0, 3)
    )
    assert bench.until(lambda events: len(events) >= 5) == [
        (BATCH, 9, 6, [b"one", b"two"]),
        (FRAME, 9, PING, b""),
        (BATCH, 9, 5, [b"three"]),
        (FRAME, 9, CAPABILITY, b"caps"),
        (FRAME, 9, DISCONNECT | 3 << 16, b""),
    ]


def test_pieces_of_messages_are_frames_with_their_flags(bench):
    """A fragment or a batch is not yet a message: whoever puts it together needs flags and
    sequence."""
    _, raw = bench.link()
    encode = bench.core.encode_frame
    raw.sendall(
        encode(DATA, b"piece", FRAGMENT, 7)
        + encode(DATA, b"several", BATCHED, 8)
        + encode(DATA, b"plain", COALESCABLE | 0x80, 255)
    )
    assert bench.until(lambda events: len(events) >= 3) == [
        (FRAME, 1, DATA | FRAGMENT << 8 | 7 << 16, b"piece"),
        (FRAME, 1, DATA | BATCHED << 8 | 8 << 16, b"several"),
        (BATCH, 1, 5, [b"plain"]),
    ]


def test_what_is_sent_is_what_stands_on_the_wire(bench):
    """Byte for byte the frames of the protocol, in the order of sending, sequence included."""
    link, raw = bench.link()
    link.send(b"hello")
    link.send_frame(PING)
    link.send(bytearray(b"world"))
    link.send(memoryview(b"..!..")[2:3])
    link.send_frame(DATA, b"piece", FRAGMENT)
    link.send_frame(DISCONNECT)
    bench.settle()
    encode = bench.core.encode_frame
    assert bench.read_all(raw) == (
        encode(DATA, b"hello", 0, 0)
        + encode(PING, b"")
        + encode(DATA, b"world", 0, 1)
        + encode(DATA, b"!", 0, 2)
        + encode(DATA, b"piece", FRAGMENT, 3)
        + encode(DISCONNECT, b"", 0, 4)
    )


def test_frames_wait_for_the_turn_unless_they_must_not(bench):
    """Packing lives from waiting; NO_DELAY does not wait, takes along what stood before it, and
    stays off the wire."""
    link, raw = bench.link()
    link.send(b"waits")
    assert bench.read_all(raw) == b""
    assert link.send_frame(DATA, b"urgent", NO_DELAY) >= 0
    assert bench.frames_in(bench.read_all(raw)) == [(DATA, 0, 0, b"waits"), (DATA, 0, 1, b"urgent")]
    assert bench.sent(bench.settle(), 1) == 2


def test_the_callers_buffer_is_free_when_send_returns(bench):
    """The copy is made in send, whatever happens to the write."""
    link, raw = bench.link()
    buffer = bytearray(b"as it was")
    link.send(buffer)
    buffer[:] = b"scribbled"
    bench.settle()
    assert bench.frames_in(bench.read_all(raw))[0].payload == b"as it was"


@pytest.mark.parametrize("cut", [1, 7, 10, 11, 12, 13])
def test_frames_do_not_depend_on_how_the_stream_was_cut(bench, cut):
    """TCP keeps bytes, not boundaries."""
    link, raw = bench.link()
    messages = [b"", b"x", b"twelve bytes", b"", bytes(40)]
    data = bench.stream(*messages)
    events = []
    for start in range(0, len(data), cut):
        raw.sendall(data[start : start + cut])
        events += bench.loop.turn(0.0)
    events += bench.settle()
    assert bench.payloads(events) == messages
    assert link.statistics().partial_bytes == 0


def test_a_frame_that_is_not_yet_whole_is_counted_as_such(quick):
    """What is held of it shows in the statistics, and nothing is delivered."""
    link, raw = quick.link()
    frame = quick.stream(bytes(100))
    raw.sendall(frame[:60])
    assert quick.settle() == []
    assert link.statistics().partial_bytes == 60
    raw.sendall(frame[60:])
    assert quick.payloads(quick.settle()) == [bytes(100)]


def test_more_than_a_receive_buffer_arrives_whole(bench):
    """A turn ends when its buffer is used up; the rest keeps its place."""
    _, raw = bench.link()
    raw.setblocking(True)
    messages = [
        struct.pack(">I", number) * 64
        for number in range(bench.core.limits.receive_buffer_size // 128)
    ]
    writer = threading.Thread(target=raw.sendall, args=(bench.stream(*messages),))
    writer.start()
    events = bench.until(
        lambda events: sum(len(event[3]) for event in bench.of(events, BATCH)) >= len(messages)
    )
    writer.join()
    assert bench.payloads(events) == messages


def test_sent_adds_up_and_a_slot_of_control_frames_reports_none(bench):
    """Each accepted message is reported once; a freed slot is news even without messages."""
    link, _ = bench.link()
    assert [link.send(b"x") >= 0 for _ in range(5)] == [True] * 5
    assert link.pending == 5
    assert bench.sent(bench.settle(), 1) == 5
    assert link.pending == 0
    link.send_frame(PING)
    assert link.pending == 0
    events = bench.settle()
    assert bench.of(events, SENT) == [(SENT, 1, 0, 0)]
    assert link.slots_available == bench.core.limits.pipeline_depth
    assert link.slots_pending == 0


def test_frames_come_before_the_other_events_of_a_turn(bench):
    """A consumer sees what arrived before it hears that the other side is gone."""
    link, raw = bench.link()
    link.send(b"out")
    raw.sendall(bench.stream(b"in"))
    raw.shutdown(socket.SHUT_WR)
    kinds = [
        event[0]
        for event in bench.until(
            lambda events: bench.of(events, FINISHED) and bench.of(events, SENT)
        )
    ]
    assert kinds.index(BATCH) < min(kinds.index(SENT), kinds.index(FINISHED))


@pytest.mark.parametrize("tag", [0, 1, 2**31, 2**32 - 1])
def test_tags_come_back_as_they_were_given(bench, tag):
    """They are the caller's names for things."""
    link, raw = bench.link(tag=tag)
    link.send(b"x")
    raw.sendall(bench.stream(b"y"))
    timer = bench.loop.timer(tag)
    timer.arm(0)
    events = bench.until(
        lambda events: (
            bench.of(events, TIMER) and bench.of(events, SENT) and bench.of(events, BATCH)
        )
    )
    assert {event[1] for event in events} == {tag}


@pytest.mark.soak
def test_a_million_small_steps_keep_order(bench, rounds):
    """Random sizes both ways at once, pauses in between, over TCP: each message once and in its
    place."""
    if bench.way == "plain":
        pytest.skip("did not run: blocking sends of both ends in one thread wait for each other")
    ours, theirs = bench.tcp()
    links = {1: bench.loop.open_link(ours.fileno(), 1), 2: bench.loop.open_link(theirs.fileno(), 2)}
    rng = random.Random(11)
    total = rounds(3_000, 500_000)
    told = {1: 0, 2: 0}
    heard = {1: 0, 2: 0}
    left = {1: 0, 2: 0}
    give_up = time.monotonic() + PATIENCE + total / 1_000
    while min(left.values()) < total:
        assert time.monotonic() < give_up, f"stands still at {told}, {heard}, {left}"
        for tag, link in links.items():
            for _ in range(rng.randrange(40)):
                if (
                    told[tag] == total
                    or link.send(
                        struct.pack(">I", told[tag]) + bytes(rng.choice((0, 5, 60, 1_000)))
                    )
                    < 0
                ):
                    break
                told[tag] += 1
            if rng.random() < 0.1:
                link.pause() if not link.paused and told[3 - tag] < total else link.resume()
        for kind, tag, count, what in bench.loop.turn(0.0):
            if kind == BATCH:
                for payload in what:
                    assert struct.unpack_from(">I", payload) == (heard[tag],)
                    heard[tag] += 1
            elif kind == SENT:
                assert what == 0
                left[tag] += count
        if told == {1: total, 2: total}:
            for link in links.values():
                link.resume()
    events = bench.until(
        lambda events: (
            heard[1] + len(bench.payloads(events, 1))
            == heard[2] + len(bench.payloads(events, 2))
            == total
        )
    )
    assert {kind for kind, *_ in events} <= {BATCH, SENT}
    for link in links.values():
        statistics = link.statistics()
        assert (
            statistics.messages_accepted,
            statistics.messages_reported,
            statistics.frames_received,
        ) == (total, total, total)
        assert statistics.slots_pending == statistics.partial_bytes == 0


# A turn has a bound


def turn_by_turn(bench: Any, kind: int, total: int) -> list[dict[int, list[Any]]]:
    """The payloads that each turn brought of links 1 and 2, until each has brought so many."""
    turns: list[dict[int, list[Any]]] = []
    seen = {1: 0, 2: 0}
    give_up = time.monotonic() + PATIENCE
    while min(seen.values()) < total:
        assert time.monotonic() < give_up, seen
        events = bench.loop.turn(0.1)
        brought = {
            tag: bench.payloads(events, tag)
            if kind == BATCH
            else [event[3] for event in bench.of(events, kind, tag)]
            for tag in seen
        }
        for tag, payloads in brought.items():
            seen[tag] += len(payloads)
        turns.append(brought)
    return turns


def in_both(turns: list[dict[int, list[Any]]]) -> list[int]:
    """How much each link brought in the turns in which both still had something."""
    return [
        len(payloads) for brought in turns if all(brought.values()) for payloads in brought.values()
    ]


@pytest.mark.parametrize(
    ("kind", "type", "flags", "size", "most"),
    [
        (FRAME, PING, 0, 2, 4),
        (FRAME, DATA, FRAGMENT, 30, 4),
        (BATCH, DATA, 0, 2, 64),
        (BATCH, DATA, 0, 16, 1_024),
    ],
    ids=["control", "pieces", "tiny", "messages"],
)
def test_a_flood_gets_its_share_of_a_turn_and_loses_nothing(bench, kind, type, flags, size, most):
    """Frames of four bytes cost far more than their bytes: one turn once took 12 seconds while the
    application's own timers stood still. What a turn does not bring comes in the next ones."""
    count = 6 * most
    payloads = [struct.pack(">H", number) + bytes(size - 2) for number in range(count)]
    stream = b"".join(
        bench.core.encode_frame(type, payload, flags, number & 255)
        for number, payload in enumerate(payloads)
    )
    ends = [bench.link(tag)[1] for tag in (1, 2)]
    for raw in ends:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        assert raw.send(stream) == len(stream)
    turns = turn_by_turn(bench, kind, count)
    assert max(in_both(turns), default=0) <= most
    for tag in (1, 2):
        assert [payload for brought in turns for payload in brought[tag]] == payloads
    for link in list(bench.loop._links):
        link.close()
    assert bench.loop.pool_statistics().in_use == 0


def test_what_was_read_ahead_waits_for_a_paused_link(bench):
    """A full inbox pauses the link in the middle of what was read: nothing more may come out of
    it, nothing may be lost, and a loop whose only work is paused must sleep."""
    link, raw = bench.link(1)
    _, other = bench.link(2)
    stream = b"".join(bench.core.encode_frame(PING, bytes([number])) for number in range(100))
    for each in (raw, other):
        each.sendall(stream)
    seen = [event[3][0] for event in bench.of(bench.loop.turn(0.1), FRAME, 1)]
    assert 0 < len(seen) < 100
    link.pause()
    rest = bench.settle()
    assert not bench.of(rest, FRAME, 1) and len(bench.of(rest, FRAME, 2)) < 100
    assert bench.loop.next_timeout() != 0.0
    link.resume()
    seen += [event[3][0] for event in bench.of(bench.settle(), FRAME, 1)]
    assert seen == list(range(100))


@pytest.mark.parametrize("end", ["closed", "broken"])
def test_what_was_read_ahead_ends_with_its_link(bench, end):
    """Memory that is held for a later turn must go when no turn will come; a peer that hung up is
    read to its end first."""
    link, raw = bench.link(1)
    _, other = bench.link(2)
    stream = b"".join(bench.core.encode_frame(PING, bytes([number])) for number in range(100))
    for each in (raw, other):
        each.sendall(stream)
    events = bench.loop.turn(0.1)
    assert link.held_bytes, "what lies in the system alone would say that nothing is left to read"
    if end == "closed":
        link.close()
        events = bench.settle()
        assert not bench.of(events, FRAME, 1)
    else:
        raw.close()
        events += bench.until(lambda events: bench.of(events, FINISHED, 1))
        assert len(bench.of(events, FRAME, 1)) == 100 and not link.held_bytes
        link.close()


# Hints and refusals


def test_the_first_frame_after_a_turn_asks_for_one(bench):
    """One flush is scheduled for each tick, not one for each message."""
    link, _ = bench.link()
    for _ in range(3):
        assert link.send(b"x") & NEEDS_TURN
        assert bench.loop.next_timeout() == 0.0
        assert not link.send(b"x") & NEEDS_TURN
        bench.settle()


def test_a_sender_is_asked_to_yield_after_256_messages_or_64_kib(bench):
    """Others must have their turn; the count starts anew with each."""
    link, raw = bench.link()
    for _ in range(2):
        hints = [link.send(b"") & YIELD for _ in range(256)]
        assert hints == [0] * 255 + [YIELD]
        bench.settle()
        bench.read_all(raw)
    size = min(bench.limit, 4_096)
    hints = [link.send(bytes(size)) for _ in range(65_536 // size)]
    assert min(hints) >= 0
    assert [hint & YIELD for hint in hints] == [0] * (len(hints) - 1) + [YIELD]


def test_a_full_pipeline_refuses_and_leaves_no_gap(bench):
    """Nobody reads: sends are refused in the end, nothing is lost, and the sequence goes on where
    it was."""
    if bench.way == "plain":
        pytest.skip("did not run: a blocking send does not refuse, it waits")
    link, raw = bench.link()
    accepted = 0
    for _ in range(100_000):
        code = link.send(struct.pack(">I", accepted) + bytes(bench.limit - 4))
        bench.loop.turn(0.0)
        if code < 0:
            break
        accepted += 1
    assert code == ERR_WOULD_BLOCK
    while link.send(b"") >= 0:  # what still fits the newest slot
        pass
    assert [link.send(b"refused") for _ in range(300)] == [ERR_WOULD_BLOCK] * 300
    data = b""
    give_up = time.monotonic() + PATIENCE
    while link.pending:
        assert time.monotonic() < give_up
        data += bench.read_all(raw)
        bench.loop.turn(0.0)
    assert link.send(b"accepted again") >= 0
    bench.settle()
    frames = bench.frames_in(data + bench.read_all(raw))
    assert [frame.sequence for frame in frames] == [number % 256 for number in range(len(frames))]
    assert [struct.unpack_from(">I", frame.payload)[0] for frame in frames[:accepted]] == list(
        range(accepted)
    )
    assert frames[-1].payload == b"accepted again"
    assert link.statistics().refusals > 0


@pytest.mark.parametrize("blocking", [False, True], ids=["wait", "sync"])
@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_a_send_blocks_only_when_every_slot_is_taken(bench, taken, blocking):
    """The table of S0.93 and S0.94 on sockets, where "taken" means that the kernel takes no more.
    What blocked has overtaken nothing."""
    if taken and bench.way == "plain":
        pytest.skip("did not run: a blocking send does not refuse, it waits")
    link, raw = bench.link(depth=2, packing=False)
    size = min(3_000, bench.limit - 4)
    messages: list[bytes] = []
    while taken and link.send(message := struct.pack(">I", len(messages)) + bytes(size)) >= 0:
        messages.append(message)
    if not blocking:
        assert (link.send(bytes(size)) == ERR_WOULD_BLOCK) == taken
        messages += [bytes(size)] * (not taken)
        assert link.statistics().sync_sends == 0
        data = b""
    else:
        data, code = while_read(raw, lambda: link.send_sync(b"last"))
        assert code >= 0
        messages.append(b"last")
        blocked = taken or bench.way == "plain"
        assert link.statistics().sync_sends == blocked
        assert not blocked or link.slots_pending == 0, "a blocking send returns when all has left"
    assert link.pending == len(messages), "no event is delivered within a call"
    data, _ = while_read(
        raw, lambda: bench.until(lambda seen: bench.sent(seen, 1) == len(messages)), data
    )
    frames = bench.frames_in(data + bench.read_all(raw))
    assert [frame.payload for frame in frames] == messages
    assert [frame.sequence for frame in frames] == [number % 256 for number in range(len(messages))]


def while_read(raw: socket.socket, work: Callable[[], Any], data: bytes = b"") -> tuple[bytes, Any]:
    """Do the work while another thread reads; data and what came meanwhile, and what the work
    returned."""
    parts, done = [data], threading.Event()

    def read() -> None:
        while not done.is_set():
            if select.select([raw], [], [], 0.01)[0]:
                parts.append(raw.recv(1 << 16))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        result = work()
    finally:
        done.set()
        reader.join()
    return b"".join(parts), result


def test_a_blocking_send_serves_nobody_else_and_hears_no_wake(bench):
    """Another link's message, a wake and a due timer come while one waits: they are for the next
    turn."""
    if bench.way == "plain":
        pytest.skip("did not run: a blocking send does not refuse, it waits")
    link, raw = bench.link(depth=2, packing=False)
    other, theirs = bench.link(tag=2)
    count = 0
    while link.send(bytes(bench.limit)) >= 0:
        count += 1
    theirs.send(bench.core.encode_frame(DATA, b"hello"))
    timer = bench.loop.timer(9)
    timer.arm(0)
    waits = bench.loop.statistics().wait_calls

    def send() -> int:
        bench.loop.wake()
        return link.send_sync(b"last")

    data, code = while_read(raw, send)
    assert code >= 0 and link.statistics().sync_sends == 1
    assert bench.loop.statistics().wait_calls == waits and other.statistics().read_calls == 0

    def is_told(seen: list[Any]) -> bool:
        return bool(
            bench.sent(seen, 1) == count + 1
            and bench.of(seen, BATCH, 2)
            and bench.of(seen, TIMER, 9)
        )

    data, events = while_read(raw, lambda: bench.until(is_told), data)
    assert bench.of(events, BATCH, 2)[0][3] == [b"hello"]


def test_a_blocking_send_refuses_what_can_never_be_sent_at_once(bench):
    """Too long, and to a link that is over: waiting would not help."""
    link, _ = bench.link()
    assert link.send_sync(bytes(bench.limit + 1)) == ERR_MESSAGE_TOO_LARGE
    with pytest.raises(TypeError):
        link.send_sync("text")
    link.shut()
    assert link.send_sync(b"x") == ERR_NOT_CONNECTED and link.drain() == ERR_NOT_CONNECTED
    assert link.statistics().messages_accepted == 0


def test_a_sender_is_refused_only_when_the_system_is_full(bench):
    """Slots that can leave do so within the tick: two small ones carry forty messages without a
    turn."""
    link, raw = bench.link(depth=2, slot_size=1_000)
    assert [link.send(bytes(900)) >= 0 for _ in range(40)] == [True] * 40
    assert link.statistics().refusals == 0
    events = bench.settle()
    assert bench.sent(events, 1) == 40
    assert len(bench.frames_in(bench.read_all(raw))) == 40


def test_a_message_longer_than_max_message_is_refused(bench):
    """The peer's limit, which may change; control frames are bound by the frame alone."""
    link, raw = bench.link()
    assert link.max_message == bench.limit
    assert link.send(bytes(bench.limit + 1)) == ERR_MESSAGE_TOO_LARGE
    assert link.send(bytes(bench.limit)) >= 0
    link.max_message = 300
    assert link.send(bytes(301)) == ERR_MESSAGE_TOO_LARGE
    assert link.send(bytes(300)) >= 0
    assert link.send_frame(DATA, bytes(301)) == ERR_MESSAGE_TOO_LARGE
    assert link.send_frame(CAPABILITY, bytes(301)) >= 0
    assert link.send_frame(CAPABILITY, bytes(bench.limit + 1)) == ERR_MESSAGE_TOO_LARGE
    bench.settle()
    assert [frame.sequence for frame in bench.frames_in(bench.read_all(raw))] == [0, 1, 0]


@pytest.mark.parametrize("wrong", [None, "text", 5, 1.5, [1, 2], object()])
def test_only_buffers_can_be_sent(bench, wrong):
    """And an int must not become that many zero bytes."""
    link, _ = bench.link()
    with pytest.raises(TypeError):
        link.send(wrong)
    with pytest.raises(TypeError):
        link.send_frame(DATA, wrong)
    with pytest.raises(TypeError):
        link.send_many([wrong])
    assert bench.settle() == []
    assert link.send_many([b"fine", wrong, b"never"]) == (1, ERR_INVALID_PARAM)
    assert bench.sent(bench.settle(), 1) == 1


def test_what_is_not_contiguous_cannot_be_sent(bench):
    """Every second byte of something is no message; an array of numbers is its bytes."""
    link, raw = bench.link()
    with pytest.raises(TypeError):
        link.send(memoryview(b"abcdef")[::2])
    with pytest.raises(TypeError):
        link.send_many((b"a tuple",))
    with pytest.raises(ValueError):
        link.send_many([b"x"], -1)
    link.send(array.array("H", [1, 2, 3]))
    bench.settle()
    assert bench.frames_in(bench.read_all(raw))[0].payload == array.array("H", [1, 2, 3]).tobytes()


@pytest.mark.parametrize("type", [0, 8, 255])
def test_a_type_that_the_protocol_lacks_is_refused(bench, type):
    """The other side would end the link."""
    link, _ = bench.link()
    assert link.send_frame(type, b"") == ERR_INVALID_PARAM
    assert link.slots_pending == 0


def test_send_many_says_how_far_it_came(bench):
    """The rest is the caller's to send again, from where it stopped."""
    link, raw = bench.link()
    assert link.send_many([]) == (0, 0)
    accepted, code = link.send_many([b"a", b"b", b"c"], 1)
    assert (accepted, code) == (2, NEEDS_TURN)
    assert link.send_many([b"d", bytes(bench.limit + 1), b"never"]) == (1, ERR_MESSAGE_TOO_LARGE)
    accepted, code = link.send_many([b""] * 300)
    assert accepted == 300 and code & YIELD
    bench.settle()
    assert [frame.payload for frame in bench.frames_in(bench.read_all(raw))] == [
        b"b",
        b"c",
        b"d",
        *[b""] * 300,
    ]


def test_send_many_stops_at_a_full_pipeline(bench):
    """And what it accepted is sent, no more and no less."""
    if bench.way == "plain":
        pytest.skip("did not run: a blocking send does not refuse, it waits")
    link, raw = bench.link()
    messages = [struct.pack(">I", number) + bytes(bench.limit - 4) for number in range(2_000)]
    done, data = 0, b""
    refused = 0
    give_up = time.monotonic() + PATIENCE
    while done < len(messages) or link.pending:
        assert time.monotonic() < give_up
        accepted, code = link.send_many(messages, done)
        done += accepted
        assert code == ERR_WOULD_BLOCK or done == len(messages)
        refused += code == ERR_WOULD_BLOCK
        bench.loop.turn(0.0)
        data += bench.read_all(raw)
    assert refused
    assert [frame.payload for frame in bench.frames_in(data)] == messages


# Pausing


def test_a_paused_link_is_not_read(bench):
    """A slow reader slows the sender: what is not wanted stays in the kernel."""
    link, raw = bench.link()
    link.pause()
    assert link.paused
    raw.sendall(bench.stream(b"waits"))
    assert bench.settle() == []
    assert link.statistics().bytes_received == 0
    link.resume()
    assert not link.paused
    assert bench.payloads(bench.until(lambda events: events)) == [b"waits"]


def test_a_paused_link_still_sends(bench):
    """Reading and writing are two things."""
    link, raw = bench.link()
    link.pause()
    link.send(b"out")
    assert bench.sent(bench.settle(), 1) == 1
    assert len(bench.read_all(raw)) == 3 + FRAME_OVERHEAD


def test_a_hang_up_of_a_paused_link_is_seen_after_what_it_sent(bench):
    """Nothing that the other side said before it left is lost because we were slow."""
    link, raw = bench.link()
    link.pause()
    raw.sendall(bench.stream(b"last words"))
    raw.close()
    assert bench.settle() == []
    link.resume()
    events = bench.until(lambda events: bench.of(events, FINISHED))
    assert bench.payloads(events) == [b"last words"]


def test_a_paused_link_does_not_spin(bench):
    """Data and even a hang-up wait without waking the loop again and again."""
    link, raw = bench.link()
    link.pause()
    raw.sendall(bench.stream(b"waits"))
    raw.close()
    bench.settle()
    before = bench.loop.statistics().turns
    assert bench.loop.turn(0.02) == []
    assert bench.loop.statistics().turns - before <= 2
    if bench.loop.fd >= 0:
        assert select.select([bench.loop.fd], [], [], 0)[0] == []


def test_pausing_in_the_middle_of_a_frame_loses_nothing(bench):
    """The half that is here waits for the half that is not."""
    link, raw = bench.link()
    frame = bench.stream(b"in two halves")
    raw.sendall(frame[:15])
    bench.settle()
    link.pause()
    raw.sendall(frame[15:])
    assert bench.settle() == []
    link.resume()
    assert bench.payloads(bench.until(lambda events: events)) == [b"in two halves"]


# Ends


def test_the_other_side_may_end_its_half_and_still_be_written_to(bench):
    """FINISHED is not CLOSED: what is queued may still leave; then shut ends the link in order."""
    link, raw = bench.link()
    raw.sendall(bench.stream(b"all I have to say"))
    raw.shutdown(socket.SHUT_WR)
    events = bench.until(lambda events: bench.of(events, FINISHED))
    assert bench.payloads(events) == [b"all I have to say"]
    assert bench.of(events, FINISHED) == [(FINISHED, 1, 0, 0)]
    assert bench.settle() == []
    assert link.send(b"still there?") >= 0
    link.shut()
    events = bench.until(lambda events: bench.of(events, CLOSED))
    assert bench.sent(events, 1) == 1
    assert events[-1] == (CLOSED, 1, 0, 0)
    assert bench.frames_in(bench.read_all(raw))[0].payload == b"still there?"


def test_a_shut_link_drains_before_it_ends_its_half(bench):
    """What was accepted before shut arrives, then the end of the stream; reading goes on until the
    other side ends its half."""
    link, raw = bench.link()
    for number in range(5):
        link.send(b"%d" % number)
    link.shut()
    assert link.send(b"too late") == ERR_NOT_CONNECTED
    assert link.send_frame(PING) == ERR_NOT_CONNECTED
    events = bench.settle()
    assert bench.sent(events, 1) == 5
    assert bench.of(events, CLOSED) == []
    data = bench.read_all(raw)
    assert [frame.payload for frame in bench.frames_in(data)] == [b"0", b"1", b"2", b"3", b"4"]
    assert raw.recv(1) == b""

    raw.sendall(bench.stream(b"still talking"))
    assert bench.payloads(bench.until(lambda events: events)) == [b"still talking"]
    raw.shutdown(socket.SHUT_WR)
    assert bench.until(lambda events: bench.of(events, CLOSED)) == [(CLOSED, 1, 0, 0)]


def test_a_shut_link_with_a_full_socket_drains_as_the_other_side_reads(bench):
    """The end of the stream comes behind the last byte, however long that takes."""
    if bench.way == "plain":
        pytest.skip("did not run: blocking sends of both ends in one thread wait for each other")
    link, raw = bench.link()
    # so that every write takes a part
    bench.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
    accepted = 0
    while link.send(bytes(bench.limit)) >= 0:
        accepted += 1
        if accepted % 8 == 0:
            bench.loop.turn(0.0)
    link.shut()
    data = b""
    ended = False
    give_up = time.monotonic() + PATIENCE
    while not ended:
        assert time.monotonic() < give_up
        bench.loop.turn(0.0)
        try:
            piece = raw.recv(1 << 16)
        except BlockingIOError:
            continue
        data += piece
        ended = piece == b""
    assert len(data) == accepted * (bench.limit + FRAME_OVERHEAD)


def test_two_links_that_shut_at_once_both_close_in_order(bench):
    """What is on its way in either direction arrives."""
    one, two = bench.links()
    one.send(b"from one")
    two.send(b"from two")
    one.shut()
    two.shut()
    events = bench.until(lambda events: len(bench.of(events, CLOSED)) == 2)
    assert (bench.payloads(events, 1), bench.payloads(events, 2)) == ([b"from two"], [b"from one"])
    assert sorted(bench.of(events, CLOSED)) == [(CLOSED, 1, 0, 0), (CLOSED, 2, 0, 0)]
    assert bench.of(events, FINISHED) == []


def test_a_reset_closes_with_the_systems_number(bench):
    """CLOSED says why, and who asks the system gets its word."""
    ours, theirs = bench.tcp()
    bench.loop.open_link(ours.fileno(), 1)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    assert bench.until(lambda events: events) == [
        (CLOSED, 1, ERR_CONNECTION_CLOSED, errno.ECONNRESET)
    ]
    assert bench.settle() == []


def unread(sock: socket.socket) -> int:
    """Bytes that its system has taken and nobody has read."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)


def waiting(sock: socket.socket) -> int:
    """Bytes that its system has taken and the other side's has not acknowledged."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


@linux
def test_what_was_sent_and_acknowledged_is_confirmed_also_when_the_link_ends(bench):
    """The ordinary end: the other side has read all and leaves. Nothing may be called lost."""
    ours, theirs = bench.tcp()
    link = bench.loop.open_link(ours.fileno(), 1)
    messages = [bytes([number]) * (1 + 25 * number) for number in range(40)]
    events = []
    for message in messages:
        events += bench.offer(link, message)
        events += bench.loop.turn(0.0)
    stream = b"".join(
        bench.core.encode_frame(DATA, each, 0, number) for number, each in enumerate(messages)
    )
    got = b""
    while len(got) < len(stream):
        with contextlib.suppress(BlockingIOError):
            got += theirs.recv(65_536)
        events += bench.loop.turn(0.0)
    assert got == stream
    theirs.close()
    events += bench.until(lambda events: bench.of(events, FINISHED))
    assert bench.sent(events, 1) == 40 and link.unconfirmed == 0
    link.shut()
    bench.until(lambda events: bench.of(events, CLOSED))
    assert link.unconfirmed == 0
    link.close()
    assert link.unconfirmed == 0


@linux
@pytest.mark.parametrize("how", ["reset", "closed unread", "closed here"])
def test_messages_with_a_byte_that_was_not_acknowledged_are_unconfirmed(bench, how):
    """Their Sent said only that our system took them. More may be called unconfirmed than is, never
    less: so what is left has reached the other system, to its last byte."""
    ours, theirs = bench.tcp()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    link = bench.loop.open_link(ours.fileno(), 1)
    size, events = 1_000, []
    enough = 100_000 if bench.way == "plain" else 300_000  # a blocking send must find room
    while waiting(ours) < enough:
        link.send(bytes(size))
        events += bench.loop.turn(0.0)
    there = unread(theirs)
    if how == "reset":
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how != "closed here":
        theirs.close()
        events += bench.until(lambda events: bench.of(events, CLOSED))
    sent = bench.sent(events, 1)
    confirmed = sent - link.unconfirmed
    assert link.unconfirmed > 0
    assert confirmed * (size + FRAME_OVERHEAD) <= there, "one was confirmed that never got there"
    link.close()
    assert link.unconfirmed == 0


def test_a_frame_that_was_sent_and_is_not_told_yet_is_not_unconfirmed(bench):
    """The number is of those that were told: the others are the caller's to call lost."""
    ours, _theirs = bench.tcp()
    link = bench.loop.open_link(ours.fileno(), 1)
    assert link.send_frame(DATA, b"now", NO_DELAY) >= 0
    assert link.unconfirmed == 0


def test_sends_to_a_side_that_is_gone_end_the_link_after_its_last_words(bench):
    """A failed write must not throw away what the other side had sent before it left."""
    link, raw = bench.link()
    raw.sendall(bench.stream(b"last words"))
    raw.close()
    assert link.send_frame(DATA, b"into the void", NO_DELAY) >= 0
    events = bench.until(lambda events: bench.of(events, CLOSED))
    assert bench.payloads(events) == [b"last words"]
    assert (bench.of(events, CLOSED)[0][2], bench.of(events, CLOSED)[0][3]) == (
        ERR_CONNECTION_CLOSED,
        errno.EPIPE,
    )
    assert link.send(b"x") == ERR_NOT_CONNECTED
    assert link.pending + sum(count for _, _, count, _ in bench.of(events, SENT)) == 1


def test_a_stream_that_ends_inside_a_frame_is_truncated(bench):
    """That is no end in order: whoever was cut off should hear of it."""
    _, raw = bench.link()
    raw.sendall(bench.stream(b"whole", b"cut off here")[:-3])
    raw.close()
    events = bench.until(lambda events: bench.of(events, CLOSED))
    assert bench.payloads(events) == [b"whole"]
    assert bench.of(events, CLOSED) == [(CLOSED, 1, ERR_TRUNCATED, 0)]
    assert bench.of(events, FINISHED) == []


def damage(frame: bytes, place: int, value: int) -> bytes:
    return frame[:place] + bytes([value]) + frame[place + 1 :]


@pytest.mark.parametrize(
    ("place", "value", "code"),
    [
        (0, 0x51, ERR_MAGIC),
        (4, 2, ERR_VERSION),
        (5, 9, ERR_INVALID_PARAM),
        (8, 0xFF, ERR_MESSAGE_TOO_LARGE),
        (11, 0, ERR_CRC),
    ],
)
def test_a_bad_frame_ends_its_link_alone(bench, place, value, code):
    """The frames before it count, the fault is named and counted, and the neighbour goes on."""
    _, raw = bench.link(tag=1)
    neighbour, other = bench.link(tag=2)
    bad = damage(bench.core.encode_frame(DATA, b"damaged"), place, value)
    raw.sendall(bench.stream(b"before") + bad + bench.stream(b"behind"))
    events = bench.until(lambda events: bench.of(events, CLOSED))
    assert bench.payloads(events, 1) == [b"before"]
    assert bench.of(events, CLOSED) == [(CLOSED, 1, code, 0)]
    statistics = bench.loop.statistics()
    assert (statistics.bad_frames, statistics.crc_errors) == (1, int(code == ERR_CRC))

    other.sendall(bench.stream(b"unharmed"))
    assert bench.payloads(bench.until(lambda events: events)) == [b"unharmed"]
    assert neighbour.send(b"x") >= 0


def test_a_frame_longer_than_max_payload_ends_the_link(bench):
    """Judged on the header: no memory is spent on it."""
    _, raw = bench.link(max_payload=100)
    raw.sendall(bench.stream(bytes(100)) + bench.core.encode_header(DATA, 0, 1, 101))
    events = bench.until(lambda events: bench.of(events, CLOSED))
    assert bench.payloads(events) == [bytes(100)]
    assert bench.of(events, CLOSED) == [(CLOSED, 1, ERR_MESSAGE_TOO_LARGE, 0)]


def test_a_frame_that_never_completes_ends_its_link_unless_it_is_paused(quick):
    """So long for a frame that has begun, not for a link that is silent, and not for one that we
    do not read."""
    bench = quick
    data = bench.stream(bytes(50))
    started = time.monotonic()
    (cut, early), (link, late), (silent, _) = (bench.link(tag=tag) for tag in (1, 2, 3))
    for each in (cut, link, silent):
        assert each.frame_timeout == 5.0, "what it begins with"
        each.frame_timeout = 0.1
    early.sendall(data[:5])
    late.sendall(data[:30])
    bench.settle()
    link.pause()
    assert bench.loop.next_timeout() is not None
    assert bench.until(lambda events: events) == [(CLOSED, 1, ERR_TIMEOUT, 0)]
    assert time.monotonic() - started >= 0.099
    assert bench.settle() == []
    link.frame_timeout = 5.0
    link.resume()
    late.sendall(data[30:])
    assert bench.payloads(bench.until(lambda events: events), 2) == [bytes(50)]


def test_a_control_frame_that_comes_again_at_once_is_told_once(bench):
    """A stranger repeats four bytes for nothing, and each of them cost its receiver a Python call;
    what carries something, or has another word before it, is told each time."""
    link, raw = bench.link()
    frames = [PING, PING, PING, PONG, PING, PING]
    stream = b"".join(bench.core.encode_frame(kind, b"") for kind in frames)
    stream += bench.core.encode_frame(PING, b"x") * 2 + bench.stream(b"", b"", b"a")
    raw.sendall(stream)
    events = bench.until(lambda events: bench.payloads(events, 1)[-1:] == [b"a"])
    told = [(a & 0xFF, b) for kind, _, a, b in events if kind == FRAME]
    assert told == [(PING, b""), (PONG, b""), (PING, b""), (PING, b"x"), (PING, b"x")]
    assert bench.payloads(events, 1) == [b"", b"", b"a"]
    assert link.statistics().frames_received == 11


def test_one_read_brings_no_more_than_the_link_is_told(bench):
    """Whoever is not known yet must not bring a whole buffer of messages with its greeting."""
    link, raw = bench.link()
    link.read_max = 512
    messages = [bytes((number,)) * 200 for number in range(20)]
    raw.sendall(bench.stream(*messages, bytes(1000)))
    events = bench.loop.turn(1.0)
    assert 1 <= len(bench.payloads(events, 1)) <= 3 and link.statistics().bytes_received <= 512
    events += bench.until(lambda events: bytes(1000) in bench.payloads(events, 1))
    assert bench.payloads(events, 1) == [*messages, bytes(1000)]
    link.close()


def test_what_was_read_and_not_told_yet_is_counted_as_held(bench):
    """Nothing is unread in the system then, and a link that ended now would lose it."""
    link, raw = bench.link()
    other, beside = bench.link(2)
    many = [b""] * 1000
    raw.sendall(bench.stream(*many))
    beside.sendall(bench.stream(*many))
    seen = bench.until(lambda _: link.held_bytes or other.held_bytes)
    seen += bench.until(lambda events: len(bench.payloads(seen + events)) == 2000)
    assert link.held_bytes == other.held_bytes == 0
    raw.sendall(bench.stream(bytes(100))[:50])
    bench.settle()
    assert link.held_bytes == 0  # a cut frame may never become whole


def test_a_frame_may_take_as_long_as_its_link_is_told(quick):
    """Five seconds are for strangers; a peer that we know is judged by another time, also in the
    middle of a frame."""
    bench = quick
    link, raw = bench.link()
    assert link.frame_timeout == 5.0
    raw.sendall(bench.stream(bytes(50))[:20])
    bench.settle()
    assert bench.loop.next_timeout() <= 5.1
    link.frame_timeout = 0.05
    link.frame_timeout = 3600
    over = time.monotonic() + 0.2
    assert bench.until(lambda _: time.monotonic() > over) == []
    assert link.frame_timeout == 3600.0 and bench.loop.next_timeout() <= 3600.1
    link.frame_timeout = 0.02
    assert bench.until(lambda events: events) == [(CLOSED, 1, ERR_TIMEOUT, 0)]
    link.close()
    link.frame_timeout = 1e9  # a closed one: nothing happens
    assert bench.loop.next_timeout() is None


def test_after_close_a_link_says_nothing_and_refuses(bench):
    """Neither what arrived nor what was accepted before is reported later; sends answer and never
    crash."""
    link, raw = bench.link()
    send, send_many = link.send, link.send_many
    raw.sendall(bench.stream(b"unread"))
    link.send(b"unsent")
    link.close()
    link.close()
    assert bench.settle() == []
    assert send(b"x") == link.send(b"x") == link.send_frame(PING) == ERR_NOT_CONNECTED
    assert send_many([b"x", b"y"]) == (0, ERR_NOT_CONNECTED)
    raw.sendall(b"the descriptor is still ours")
    bench.loop.close()
    assert send(b"x") == ERR_NOT_CONNECTED


def test_closing_a_link_leaves_the_descriptor_to_its_owner(bench):
    """Python owns sockets: a descriptor that C closed could by then be somebody else's."""
    ours, theirs = bench.pair()
    bench.loop.open_link(ours.fileno(), 1).close()
    ours.send(b"still open")
    assert theirs.recv(100) == b"still open"
    link = bench.loop.open_link(ours.fileno(), 2)
    theirs.sendall(bench.stream(b"and can be a link again"))
    assert bench.payloads(bench.until(lambda events: events), 2) == [b"and can be a link again"]
    link.close()
    assert os.fstat(ours.fileno())


def test_closing_the_loop_closes_its_links_and_is_done_once(bench):
    """Whatever was in flight; nothing is left of it."""
    links = [bench.link(tag=tag)[0] for tag in range(5)]
    for link in links:
        link.send(b"x")
    bench.loop.timer(1).arm(100)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    bench.loop.close()
    bench.loop.close()
    assert [link.send(b"x") for link in links] == [ERR_NOT_CONNECTED] * 5
    bench.loop.wake()
    if before:
        assert len(os.listdir("/proc/self/fd")) < before


def test_a_closed_link_gives_its_memory_back(bench):
    """With frames filling, in flight, and half received."""
    link, raw = bench.link()
    raw.sendall(bench.stream(bytes(200))[:100])
    bench.settle()
    for _ in range(20):
        link.send(bytes(bench.limit))
    if bench.way != "plain":
        bench.loop.turn(0.0)
    link.send(b"filling")
    assert bench.loop.pool_statistics().in_use > 0
    link.close()
    assert bench.loop.pool_statistics().in_use == 0


# Memory


def test_no_memory_for_a_slot_is_a_refusal_without_a_gap(bench):
    """Refused, nothing changed; accepted when there is memory again."""
    link, raw = bench.link()
    bench.loop.fail_at(1)
    assert [link.send(b"refused") for _ in range(5)] == [ERR_NO_MEMORY] * 5
    assert link.send_many([b"refused"]) == (0, ERR_NO_MEMORY)
    assert bench.loop.attempts >= 5
    bench.loop.fail_at(0)
    assert link.send(b"accepted") >= 0
    bench.settle()
    assert bench.frames_in(bench.read_all(raw)) == [(DATA, 0, 0, b"accepted")]


def test_no_memory_for_a_cut_frame_loses_nothing(bench):
    """The link stands still until there is memory; then the frame is whole."""
    _, raw = bench.link()
    bench.loop.fail_at(1)
    data = bench.stream(b"whole", bytes(range(200)), b"last")
    raw.sendall(data[:100])
    events = [event for _ in range(5) for event in bench.loop.turn(0.0)]
    raw.sendall(data[100:])
    events += [event for _ in range(5) for event in bench.loop.turn(0.0)]
    bench.loop.fail_at(0)
    events += bench.until(lambda seen: len(bench.payloads(events + seen)) == 3)
    assert bench.payloads(events) == [b"whole", bytes(range(200)), b"last"]


def test_memory_may_fail_at_any_allocation(bench):
    """Each site in turn, and all after it: a refusal or a wait, never a crash, a loss or a leak."""

    def work(fail_at: int) -> int:
        one, two = bench.links()
        bench.loop.fail_at(fail_at)
        events: list[Any] = []
        accepted = []
        for number in range(40):
            message = struct.pack(">I", number) * (1 + number * bench.limit // 4 // 40)
            if number == 30:
                attempts = bench.loop.attempts
                bench.loop.fail_at(0)
            if (code := one.send(message)) >= 0:
                accepted.append(message)
            else:
                assert code == ERR_NO_MEMORY
            events += bench.loop.turn(0.0)
        events += bench.until(lambda seen: len(bench.payloads(events + seen, 2)) == len(accepted))
        assert bench.payloads(events, 2) == accepted
        assert bench.of(events, CLOSED) == []
        one.close()
        two.close()
        assert bench.loop.pool_statistics().in_use == 0
        return attempts

    site = 1
    while work(site) >= site:
        bench.loop.close()
        bench.loop = bench.make_loop()
        site += 1
        assert site < 200
    assert site > 1


# Bounds


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 0},
        {"depth": 65},
        {"slot_size": FRAME_OVERHEAD - 1},
        {"slot_size": 70_000},
        {"max_payload": 70_000},
    ],
)
def test_a_link_has_bounds(bench, wrong):
    """And a refusal leaves nothing behind: the same descriptor can be used."""
    ours, theirs = bench.pair()
    with pytest.raises(errors.InvalidArgument):
        bench.loop.open_link(ours.fileno(), 1, **wrong)
    bench.loop.open_link(ours.fileno(), 1)
    theirs.sendall(bench.stream(b"x"))
    assert bench.payloads(bench.until(lambda events: events)) == [b"x"]


def test_a_descriptor_that_is_none_is_refused(quick):
    """A clear error, and the loop goes on."""
    ours, _ = quick.pair()
    number = os.dup(ours.fileno())
    os.close(number)
    with pytest.raises((errors.PlatformError, errors.InvalidArgument)):
        quick.loop.open_link(number, 1)
    with pytest.raises((errors.PlatformError, errors.InvalidArgument)):
        quick.loop.watch(number, 1, READ)
    assert quick.loop.turn(0.0) == []


def test_a_shallow_link_with_small_slots_carries_everything(bench):
    """Depth 1, one frame a slot: slow, and as correct as any other."""
    if bench.way == "plain":
        pytest.skip("did not run: blocking sends of both ends in one thread wait for each other")
    one, two = bench.links(depth=1, slot_size=64, packing=False)
    messages = [bytes([number]) * (number % 52) for number in range(200)]
    events: list[Any] = []
    for message in messages:
        events += bench.offer(one, message)
    events += bench.settle()
    assert bench.payloads(events, 2) == messages
    assert two.max_message == 64 - FRAME_OVERHEAD
