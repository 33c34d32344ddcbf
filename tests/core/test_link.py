"""A link over real sockets: what is sent and received, refused and paused, and how it ends.

Every test runs on each core and each way to drive it: epoll and poll, asynchronous and blocking
sends. Truth comes from csrc/core/pt_link.h, the kernel, and frames encoded one by one.
"""

from __future__ import annotations

import array
import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from kit.waiting import GUARD

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
    SENT,
    TIMER,
    YIELD,
)
from peertalk._numbers import (
    ERR_INVALID_PARAM,
    ERR_MESSAGE_TOO_LARGE,
    ERR_NOT_CONNECTED,
    ERR_WOULD_BLOCK,
    FRAME_OVERHEAD,
    TURN_MANY_BYTES,
    TURN_MAX_BYTES,
)

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
    link.send(b"first")  # see test_prompt.py
    before = bench.read_all(raw)
    link.send(b"waits")
    assert bench.read_all(raw) == b""
    assert link.send_frame(DATA, b"urgent", NO_DELAY) >= 0
    frames = bench.frames_in(before + bench.read_all(raw))
    assert [frame.payload for frame in frames] == [b"first", b"waits", b"urgent"]
    assert {frame.flags for frame in frames} == {0}
    assert bench.sent(bench.settle(), 1) == 3


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
    give_up = time.monotonic() + GUARD + total / 1_000
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
    give_up = time.monotonic() + GUARD
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
    assert bench.loop.pool.statistics().in_use == 0


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


def test_the_first_frame_that_waits_asks_for_a_turn(bench):
    """One flush is scheduled for each tick, not one for each message."""
    link, _ = bench.link()
    for _ in range(3):
        link.send(b"x")  # which leaves by itself where there is a turn to be spared
        assert link.send(b"x") & NEEDS_TURN or bench.way == "plain"
        assert bench.loop.next_timeout() == 0.0
        assert not link.send(b"x") & NEEDS_TURN
        bench.settle()


def test_a_sender_is_asked_to_yield_after_256_messages_or_128_kib(bench):
    """Others must have their turn; the count starts anew with each."""
    link, raw = bench.link()
    for _ in range(2):
        hints = [link.send(b"") & YIELD for _ in range(256)]
        assert hints == [0] * 255 + [YIELD]
        bench.settle()
        bench.read_all(raw)
    size = min(bench.limit, 4_096)
    hints = []
    for _ in range(TURN_MAX_BYTES // size):
        hints.append(link.send(bytes(size)))
        bench.read_all(raw)
    assert [hint & YIELD for hint in hints] == [0] * (len(hints) - 1) + [YIELD]


def test_many_in_one_call_yield_after_half_of_that(bench):
    """What is left of the slots would be too little for the next part of many, which then leaves in
    two writes."""
    link, raw = bench.link()
    size = min(bench.limit, 4_096)
    few = TURN_MANY_BYTES // size - 1
    accepted, hints = 0, 0
    while accepted < few:
        taken, code = link.native.send_many([bytes(size)] * (few - accepted))
        accepted, hints = accepted + taken, hints | max(code, 0)
        bench.read_all(raw)
    assert not hints & YIELD
    _, code = link.native.send_many([bytes(size)] * 16)
    assert code & YIELD


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
    give_up = time.monotonic() + GUARD
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


def test_send_many_fills_a_large_slot_from_the_first_message_on(bench):
    """One large write costs less than a small one and the rest."""
    if bench.way == "plain":
        pytest.skip("did not run: a blocking send lets each slot go when it is full")
    whole = bytes(bench.limit)
    in_a_slot = max(1, bench.core.limits.slot_size // (bench.limit + FRAME_OVERHEAD))
    link, _ = bench.link()
    assert link.send_many([whole] * in_a_slot)[0] == in_a_slot
    assert link.slots_pending == 1


def test_a_message_after_a_refused_send_many_borrows_a_small_slot(bench):
    """What came of many messages is forgotten with them."""
    link, _ = bench.link()
    assert link.send_many([bytes(bench.limit + 1)] * 1000)[1] == ERR_MESSAGE_TOO_LARGE
    before = bench.loop.pool.statistics().bytes
    assert link.send(b"x") >= 0
    assert bench.loop.pool.statistics().bytes - before < 2 * (bench.limit + FRAME_OVERHEAD)


def test_send_many_stops_at_a_full_pipeline(bench):
    """And what it accepted is sent, no more and no less."""
    if bench.way == "plain":
        pytest.skip("did not run: a blocking send does not refuse, it waits")
    link, raw = bench.link()
    messages = [struct.pack(">I", number) + bytes(bench.limit - 4) for number in range(2_000)]
    done, data = 0, b""
    refused = 0
    give_up = time.monotonic() + GUARD
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
