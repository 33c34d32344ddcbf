"""The loop and its links over real sockets: what a turn does, what it tells, and in which order.

Every test runs on each core and each way to drive it: epoll and poll, native calls and plain cffi, asynchronous and blocking sends. Truth comes
from csrc/core/pt_loop.h, the kernel, and frames encoded one by one.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from peertalk import _core, errors
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
    READY,
    SENT,
    TIMER,
    WRITE,
    YIELD,
)

NO_MEMORY, TIMEOUT, CONNECTION_CLOSED = -2, -6, -8
INVALID_PARAM, MESSAGE_TOO_LARGE, NOT_CONNECTED, WOULD_BLOCK = -1, -16, -18, -19
CRC, MAGIC, TRUNCATED, VERSION = -20, -21, -22, -23
OVERHEAD = 12
PATIENCE = 10.0
"""Seconds after which a test that waits for an event says what it saw instead."""

WAYS = {"epoll": {}, "poll": {"epoll": False}, "cffi": {"native": False}, "plain": {"platform": "posix_plain"}}


class Bench:
    """One loop of a core, with sockets that are closed behind the test."""

    def __init__(self, core: Any, way: str) -> None:
        self.core = core
        self.way = way
        self.limit = core.limits.frame_max_payload
        self.loops: list[Any] = []
        self.sockets: list[socket.socket] = []
        self.loop = self.make_loop()

    def make_loop(self, **arguments: Any) -> Any:
        loop = self.core.Loop(**{**WAYS[self.way], **arguments})
        self.loops.append(loop)
        return loop

    def keep(self, *sockets: socket.socket) -> tuple[socket.socket, ...]:
        for each in sockets:
            each.setblocking(False)
            self.sockets.append(each)
        return sockets

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Two ends of one connection inside the kernel."""
        ours, theirs = self.keep(*socket.socketpair())
        return ours, theirs

    def tcp(self) -> tuple[socket.socket, socket.socket]:
        """Two ends of a TCP connection over loopback."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        self.keep(ours, theirs)
        return ours, theirs

    def link(self, tag: int = 1, **arguments: Any) -> tuple[Any, socket.socket]:
        """A link, and the bare socket at its other end."""
        ours, theirs = self.pair()
        return self.loop.open_link(ours.fileno(), tag, **arguments), theirs

    def links(self, **arguments: Any) -> tuple[Any, Any]:
        """Two links of this loop, tags 1 and 2, that talk to each other."""
        ours, theirs = self.pair()
        return self.loop.open_link(ours.fileno(), 1, **arguments), self.loop.open_link(theirs.fileno(), 2, **arguments)

    def until(self, condition: Callable[[list[Any]], Any], loop: Any = None) -> list[Any]:
        """Turn until the condition holds of all events seen."""
        events: list[Any] = []
        give_up = time.monotonic() + PATIENCE
        while not condition(events):
            assert time.monotonic() < give_up, f"waited for what did not come; seen: {[event[:3] for event in events[-20:]]}"
            events += (loop or self.loop).turn(0.1)
        return events

    def offer(self, link: Any, message: bytes) -> list[Any]:
        """Send, and turn for as long as there is no room."""
        events: list[Any] = []
        give_up = time.monotonic() + PATIENCE
        while (code := link.send(message)) < 0:
            assert code == WOULD_BLOCK
            assert time.monotonic() < give_up, "no slot became free"
            events += self.loop.turn(0.1)
        return events

    def settle(self) -> list[Any]:
        """Turn until two turns in a row have nothing to tell and none is needed."""
        events: list[Any] = []
        quiet = 0
        while quiet < 2:
            seen = self.loop.turn(0.0)
            events += seen
            quiet = 0 if seen or self.loop.next_timeout() == 0.0 else quiet + 1
        return events

    def close(self) -> None:
        for loop in self.loops:
            loop.close()
        for each in self.sockets:
            each.close()


@pytest.fixture(params=WAYS)
def bench(core: Any, request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(core, request.param)
    yield made
    made.close()


@pytest.fixture
def quick(core: Any) -> Iterator[Bench]:
    """The default way alone, for what has nothing to do with the way."""
    made = Bench(core, "epoll")
    yield made
    made.close()


def of(events: list[Any], kind: int, tag: int | None = None) -> list[Any]:
    return [event for event in events if event[0] == kind and tag in (None, event[1])]


def payloads(events: list[Any], tag: int | None = None) -> list[bytes]:
    """All payloads of a link's batches."""
    found = []
    for _, _, size, batch in of(events, BATCH, tag):
        assert type(batch) is list and batch
        assert size == sum(map(len, batch))
        found += batch
    return found


def sent(events: list[Any], tag: int) -> int:
    """Messages that left, as the loop says."""
    assert all(code == 0 for _, _, _, code in of(events, SENT, tag))
    return sum(count for _, _, count, _ in of(events, SENT, tag))


def read_all(sock: socket.socket) -> bytes:
    """What is there now."""
    data = b""
    try:
        while piece := sock.recv(1 << 16):
            data += piece
    except BlockingIOError:
        pass
    return data


def frames_in(core: Any, data: bytes) -> list[Any]:
    frames = []
    rest = memoryview(data)
    while rest:
        frames.append(core.decode_frame(rest[: core.limits.frame_max_payload + OVERHEAD]))
        rest = rest[len(frames[-1].payload) + OVERHEAD :]
    return frames


def stream(core: Any, *messages: bytes) -> bytes:
    return b"".join(core.encode_frame(DATA, message, 0, number & 255) for number, message in enumerate(messages))


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
    assert payloads(events, 2) == out
    assert payloads(events, 1) == back
    assert sent(events, 1) == sent(events, 2) == 300
    assert one.pending == two.pending == 0


def test_messages_of_one_turn_come_as_one_batch(bench):
    """One crossing for each link and turn, however many messages it carries."""
    link, raw = bench.link()
    raw.sendall(stream(bench.core, b"a", b"", b"ccc"))
    assert of(bench.until(lambda events: events), BATCH) == [(BATCH, 1, 4, [b"a", b"", b"ccc"])]
    assert link.statistics().frames_received == 3


def test_a_turn_has_room_for_the_smallest_frames_that_it_can_read(bench):
    """Four bytes are a whole compact frame: counted in full ones, a stranger's empty messages would be three times too many, and end the link."""
    link, raw = bench.link()
    count = 20_000
    rest = memoryview(bench.core.encode_compact(DATA, 0, 0) * count)
    seen = []
    while rest:
        with contextlib.suppress(BlockingIOError):
            rest = rest[raw.send(rest) :]
        seen += bench.loop.turn(0.1)
    seen += bench.until(lambda events: len(payloads(seen + events)) == count)
    assert payloads(seen) == [b""] * count and not of(seen, CLOSED)
    assert link.statistics().frames_received == count


def test_payloads_outlive_the_turn_that_brought_them(bench):
    """The receive buffer is used again at once: what was handed out must be a copy."""
    _, raw = bench.link()
    raw.sendall(stream(bench.core, b"first" * 20))
    (first,) = payloads(bench.until(lambda events: events))
    raw.sendall(stream(bench.core, b"XXXXX" * 20))
    bench.until(lambda events: events)
    assert first == b"first" * 20
    assert type(first) is bytes


def test_a_control_frame_keeps_its_place_among_messages(bench):
    """A DISCONNECT or CAPABILITY means something at its place in the stream, not at another."""
    _, raw = bench.link(tag=9)
    encode = bench.core.encode_frame
    raw.sendall(
        encode(DATA, b"one") + encode(DATA, b"two") + encode(PING, b"") + encode(DATA, b"three") + encode(CAPABILITY, b"caps")
        + encode(DISCONNECT, b"", 0, 3)
    )  # fmt: skip
    assert bench.until(lambda events: len(events) >= 5) == [
        (BATCH, 9, 6, [b"one", b"two"]),
        (FRAME, 9, PING, b""),
        (BATCH, 9, 5, [b"three"]),
        (FRAME, 9, CAPABILITY, b"caps"),
        (FRAME, 9, DISCONNECT | 3 << 16, b""),
    ]


def test_pieces_of_messages_are_frames_with_their_flags(bench):
    """A fragment or a batch is not yet a message: whoever puts it together needs flags and sequence."""
    _, raw = bench.link()
    encode = bench.core.encode_frame
    raw.sendall(
        encode(DATA, b"piece", FRAGMENT, 7) + encode(DATA, b"several", BATCHED, 8) + encode(DATA, b"plain", COALESCABLE | 0x80, 255)
    )  # fmt: skip
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
    assert read_all(raw) == (
        encode(DATA, b"hello", 0, 0) + encode(PING, b"") + encode(DATA, b"world", 0, 1) + encode(DATA, b"!", 0, 2)
        + encode(DATA, b"piece", FRAGMENT, 3) + encode(DISCONNECT, b"", 0, 4)
    )  # fmt: skip


def test_frames_wait_for_the_turn_unless_they_must_not(bench):
    """Packing lives from waiting; NO_DELAY does not wait, takes along what stood before it, and stays off the wire."""
    link, raw = bench.link()
    link.send(b"waits")
    assert read_all(raw) == b""
    assert link.send_frame(DATA, b"urgent", NO_DELAY) >= 0
    assert frames_in(bench.core, read_all(raw)) == [(DATA, 0, 0, b"waits"), (DATA, 0, 1, b"urgent")]
    assert sent(bench.settle(), 1) == 2


def test_the_callers_buffer_is_free_when_send_returns(bench):
    """The copy is made in send, whatever happens to the write."""
    link, raw = bench.link()
    buffer = bytearray(b"as it was")
    link.send(buffer)
    buffer[:] = b"scribbled"
    bench.settle()
    assert frames_in(bench.core, read_all(raw))[0].payload == b"as it was"


@pytest.mark.parametrize("cut", [1, 7, 10, 11, 12, 13])
def test_frames_do_not_depend_on_how_the_stream_was_cut(bench, cut):
    """TCP keeps bytes, not boundaries."""
    link, raw = bench.link()
    messages = [b"", b"x", b"twelve bytes", b"", bytes(40)]
    data = stream(bench.core, *messages)
    events = []
    for start in range(0, len(data), cut):
        raw.sendall(data[start : start + cut])
        events += bench.loop.turn(0.0)
    events += bench.settle()
    assert payloads(events) == messages
    assert link.statistics().partial_bytes == 0


def test_a_frame_that_is_not_yet_whole_is_counted_as_such(quick):
    """What is held of it shows in the statistics, and nothing is delivered."""
    link, raw = quick.link()
    frame = stream(quick.core, bytes(100))
    raw.sendall(frame[:60])
    assert quick.settle() == []
    assert link.statistics().partial_bytes == 60
    raw.sendall(frame[60:])
    assert payloads(quick.settle()) == [bytes(100)]


def test_more_than_a_receive_buffer_arrives_whole(bench):
    """A turn ends when its buffer is used up; the rest keeps its place."""
    _, raw = bench.link()
    raw.setblocking(True)
    messages = [struct.pack(">I", number) * 64 for number in range(bench.core.limits.receive_buffer_size // 128)]
    writer = threading.Thread(target=raw.sendall, args=(stream(bench.core, *messages),))
    writer.start()
    events = bench.until(lambda events: sum(len(event[3]) for event in of(events, BATCH)) >= len(messages))
    writer.join()
    assert payloads(events) == messages


def test_sent_adds_up_and_a_slot_of_control_frames_reports_none(bench):
    """Each accepted message is reported once; a freed slot is news even without messages."""
    link, _ = bench.link()
    assert [link.send(b"x") >= 0 for _ in range(5)] == [True] * 5
    assert link.pending == 5
    assert sent(bench.settle(), 1) == 5
    assert link.pending == 0
    link.send_frame(PING)
    assert link.pending == 0
    events = bench.settle()
    assert of(events, SENT) == [(SENT, 1, 0, 0)]
    assert link.slots_available == bench.core.limits.pipeline_depth
    assert link.slots_pending == 0


def test_frames_come_before_the_other_events_of_a_turn(bench):
    """A consumer sees what arrived before it hears that the other side is gone."""
    link, raw = bench.link()
    link.send(b"out")
    raw.sendall(stream(bench.core, b"in"))
    raw.shutdown(socket.SHUT_WR)
    kinds = [event[0] for event in bench.until(lambda events: of(events, FINISHED) and of(events, SENT))]
    assert kinds.index(BATCH) < min(kinds.index(SENT), kinds.index(FINISHED))


@pytest.mark.parametrize("tag", [0, 1, 2**31, 2**32 - 1])
def test_tags_come_back_as_they_were_given(bench, tag):
    """They are the caller's names for things."""
    link, raw = bench.link(tag=tag)
    link.send(b"x")
    raw.sendall(stream(bench.core, b"y"))
    timer = bench.loop.timer(tag)
    timer.arm(0)
    events = bench.until(lambda events: of(events, TIMER) and of(events, SENT) and of(events, BATCH))
    assert {event[1] for event in events} == {tag}


@pytest.mark.soak
def test_a_million_small_steps_keep_order(bench, rounds):
    """Random sizes both ways at once, pauses in between, over TCP: each message once and in its place."""
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
                if told[tag] == total or link.send(struct.pack(">I", told[tag]) + bytes(rng.choice((0, 5, 60, 1_000)))) < 0:
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
    events = bench.until(lambda events: heard[1] + len(payloads(events, 1)) == heard[2] + len(payloads(events, 2)) == total)
    assert {kind for kind, *_ in events} <= {BATCH, SENT}
    for link in links.values():
        statistics = link.statistics()
        assert (statistics.messages_accepted, statistics.messages_reported, statistics.frames_received) == (total, total, total)
        assert statistics.slots_pending == statistics.partial_bytes == 0


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
        read_all(raw)
    size = min(bench.limit, 4_096)
    hints = [link.send(bytes(size)) for _ in range(65_536 // size)]
    assert min(hints) >= 0
    assert [hint & YIELD for hint in hints] == [0] * (len(hints) - 1) + [YIELD]


def test_a_full_pipeline_refuses_and_leaves_no_gap(bench):
    """Nobody reads: sends are refused in the end, nothing is lost, and the sequence goes on where it was."""
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
    assert code == WOULD_BLOCK
    while link.send(b"") >= 0:  # what still fits the newest slot
        pass
    assert [link.send(b"refused") for _ in range(300)] == [WOULD_BLOCK] * 300
    data = b""
    give_up = time.monotonic() + PATIENCE
    while link.pending:
        assert time.monotonic() < give_up
        data += read_all(raw)
        bench.loop.turn(0.0)
    assert link.send(b"accepted again") >= 0
    bench.settle()
    frames = frames_in(bench.core, data + read_all(raw))
    assert [frame.sequence for frame in frames] == [number % 256 for number in range(len(frames))]
    assert [struct.unpack_from(">I", frame.payload)[0] for frame in frames[:accepted]] == list(range(accepted))
    assert frames[-1].payload == b"accepted again"
    assert link.statistics().refusals > 0


@pytest.mark.parametrize("blocking", [False, True], ids=["wait", "sync"])
@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_a_send_blocks_only_when_every_slot_is_taken(bench, taken, blocking):
    """The table of S0.93 and S0.94 on sockets, where "taken" means that the kernel takes no more. What blocked has overtaken nothing."""
    if taken and bench.way == "plain":
        pytest.skip("did not run: a blocking send does not refuse, it waits")
    link, raw = bench.link(depth=2, packing=False)
    size = min(3_000, bench.limit - 4)
    messages: list[bytes] = []
    while taken and link.send(message := struct.pack(">I", len(messages)) + bytes(size)) >= 0:
        messages.append(message)
    if not blocking:
        assert (link.send(bytes(size)) == WOULD_BLOCK) == taken
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
    data, _ = while_read(raw, lambda: bench.until(lambda seen: sent(seen, 1) == len(messages)), data)
    frames = frames_in(bench.core, data + read_all(raw))
    assert [frame.payload for frame in frames] == messages
    assert [frame.sequence for frame in frames] == [number % 256 for number in range(len(messages))]


def while_read(raw: socket.socket, work: Callable[[], Any], data: bytes = b"") -> tuple[bytes, Any]:
    """Do the work while another thread reads; data and what came meanwhile, and what the work returned."""
    parts, done = [data], threading.Event()

    def read() -> None:
        while not done.is_set():
            if select.select([raw], [], [], 0.01)[0]:
                parts.append(read_all(raw))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        result = work()
    finally:
        done.set()
        reader.join()
    return b"".join(parts), result


def test_a_blocking_send_serves_nobody_else_and_hears_no_wake(bench):
    """Another link's message, a wake and a due timer come while one waits: they are for the next turn."""
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
    data, events = while_read(raw, lambda: bench.until(lambda seen: sent(seen, 1) == count + 1 and of(seen, BATCH, 2) and of(seen, TIMER, 9)), data)
    assert of(events, BATCH, 2)[0][3] == [b"hello"]


def test_a_blocking_send_refuses_what_can_never_be_sent_at_once(bench):
    """Too long, and to a link that is over: waiting would not help."""
    link, _ = bench.link()
    assert link.send_sync(bytes(bench.limit + 1)) == MESSAGE_TOO_LARGE
    with pytest.raises(TypeError):
        link.send_sync("text")
    link.shut()
    assert link.send_sync(b"x") == NOT_CONNECTED and link.drain() == NOT_CONNECTED
    assert link.statistics().messages_accepted == 0


def test_a_sender_is_refused_only_when_the_system_is_full(bench):
    """Slots that can leave do so within the tick: two small ones carry forty messages without a turn."""
    link, raw = bench.link(depth=2, slot_size=1_000)
    assert [link.send(bytes(900)) >= 0 for _ in range(40)] == [True] * 40
    assert link.statistics().refusals == 0
    events = bench.settle()
    assert sent(events, 1) == 40
    assert len(frames_in(bench.core, read_all(raw))) == 40


def test_a_message_longer_than_max_message_is_refused(bench):
    """The peer's limit, which may change; control frames are bound by the frame alone."""
    link, raw = bench.link()
    assert link.max_message == bench.limit
    assert link.send(bytes(bench.limit + 1)) == MESSAGE_TOO_LARGE
    assert link.send(bytes(bench.limit)) >= 0
    link.max_message = 300
    assert link.send(bytes(301)) == MESSAGE_TOO_LARGE
    assert link.send(bytes(300)) >= 0
    assert link.send_frame(DATA, bytes(301)) == MESSAGE_TOO_LARGE
    assert link.send_frame(CAPABILITY, bytes(301)) >= 0
    assert link.send_frame(CAPABILITY, bytes(bench.limit + 1)) == MESSAGE_TOO_LARGE
    bench.settle()
    assert [frame.sequence for frame in frames_in(bench.core, read_all(raw))] == [0, 1, 0]


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
    assert link.send_many([b"fine", wrong, b"never"]) == (1, INVALID_PARAM)
    assert sent(bench.settle(), 1) == 1


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
    assert frames_in(bench.core, read_all(raw))[0].payload == array.array("H", [1, 2, 3]).tobytes()


@pytest.mark.parametrize("type", [0, 8, 255])
def test_a_type_that_the_protocol_lacks_is_refused(bench, type):
    """The other side would end the link."""
    link, _ = bench.link()
    assert link.send_frame(type, b"") == INVALID_PARAM
    assert link.slots_pending == 0


def test_send_many_says_how_far_it_came(bench):
    """The rest is the caller's to send again, from where it stopped."""
    link, raw = bench.link()
    assert link.send_many([]) == (0, 0)
    accepted, code = link.send_many([b"a", b"b", b"c"], 1)
    assert (accepted, code) == (2, NEEDS_TURN)
    assert link.send_many([b"d", bytes(bench.limit + 1), b"never"]) == (1, MESSAGE_TOO_LARGE)
    accepted, code = link.send_many([b""] * 300)
    assert accepted == 300 and code & YIELD
    bench.settle()
    assert [frame.payload for frame in frames_in(bench.core, read_all(raw))] == [b"b", b"c", b"d", *[b""] * 300]


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
        assert code == WOULD_BLOCK or done == len(messages)
        refused += code == WOULD_BLOCK
        bench.loop.turn(0.0)
        data += read_all(raw)
    assert refused
    assert [frame.payload for frame in frames_in(bench.core, data)] == messages


# Pausing


def test_a_paused_link_is_not_read(bench):
    """A slow reader slows the sender: what is not wanted stays in the kernel."""
    link, raw = bench.link()
    link.pause()
    assert link.paused
    raw.sendall(stream(bench.core, b"waits"))
    assert bench.settle() == []
    assert link.statistics().bytes_received == 0
    link.resume()
    assert not link.paused
    assert payloads(bench.until(lambda events: events)) == [b"waits"]


def test_a_paused_link_still_sends(bench):
    """Reading and writing are two things."""
    link, raw = bench.link()
    link.pause()
    link.send(b"out")
    assert sent(bench.settle(), 1) == 1
    assert len(read_all(raw)) == 3 + OVERHEAD


def test_a_hang_up_of_a_paused_link_is_seen_after_what_it_sent(bench):
    """Nothing that the other side said before it left is lost because we were slow."""
    link, raw = bench.link()
    link.pause()
    raw.sendall(stream(bench.core, b"last words"))
    raw.close()
    assert bench.settle() == []
    link.resume()
    events = bench.until(lambda events: of(events, FINISHED))
    assert payloads(events) == [b"last words"]


def test_a_paused_link_does_not_spin(bench):
    """Data and even a hang-up wait without waking the loop again and again."""
    link, raw = bench.link()
    link.pause()
    raw.sendall(stream(bench.core, b"waits"))
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
    frame = stream(bench.core, b"in two halves")
    raw.sendall(frame[:15])
    bench.settle()
    link.pause()
    raw.sendall(frame[15:])
    assert bench.settle() == []
    link.resume()
    assert payloads(bench.until(lambda events: events)) == [b"in two halves"]


# Ends


def test_the_other_side_may_end_its_half_and_still_be_written_to(bench):
    """FINISHED is not CLOSED: what is queued may still leave; then shut ends the link in order."""
    link, raw = bench.link()
    raw.sendall(stream(bench.core, b"all I have to say"))
    raw.shutdown(socket.SHUT_WR)
    events = bench.until(lambda events: of(events, FINISHED))
    assert payloads(events) == [b"all I have to say"]
    assert of(events, FINISHED) == [(FINISHED, 1, 0, 0)]
    assert bench.settle() == []
    assert link.send(b"still there?") >= 0
    link.shut()
    events = bench.until(lambda events: of(events, CLOSED))
    assert sent(events, 1) == 1
    assert events[-1] == (CLOSED, 1, 0, 0)
    assert frames_in(bench.core, read_all(raw))[0].payload == b"still there?"


def test_a_shut_link_drains_before_it_ends_its_half(bench):
    """What was accepted before shut arrives, then the end of the stream; reading goes on until the other side ends its half."""
    link, raw = bench.link()
    for number in range(5):
        link.send(b"%d" % number)
    link.shut()
    assert link.send(b"too late") == NOT_CONNECTED
    assert link.send_frame(PING) == NOT_CONNECTED
    events = bench.settle()
    assert sent(events, 1) == 5
    assert of(events, CLOSED) == []
    data = read_all(raw)
    assert [frame.payload for frame in frames_in(bench.core, data)] == [b"0", b"1", b"2", b"3", b"4"]
    assert raw.recv(1) == b""

    raw.sendall(stream(bench.core, b"still talking"))
    assert payloads(bench.until(lambda events: events)) == [b"still talking"]
    raw.shutdown(socket.SHUT_WR)
    assert bench.until(lambda events: of(events, CLOSED)) == [(CLOSED, 1, 0, 0)]


def test_a_shut_link_with_a_full_socket_drains_as_the_other_side_reads(bench):
    """The end of the stream comes behind the last byte, however long that takes."""
    if bench.way == "plain":
        pytest.skip("did not run: blocking sends of both ends in one thread wait for each other")
    link, raw = bench.link()
    bench.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)  # so that every write takes a part
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
    assert len(data) == accepted * (bench.limit + OVERHEAD)


def test_two_links_that_shut_at_once_both_close_in_order(bench):
    """What is on its way in either direction arrives."""
    one, two = bench.links()
    one.send(b"from one")
    two.send(b"from two")
    one.shut()
    two.shut()
    events = bench.until(lambda events: len(of(events, CLOSED)) == 2)
    assert (payloads(events, 1), payloads(events, 2)) == ([b"from two"], [b"from one"])
    assert sorted(of(events, CLOSED)) == [(CLOSED, 1, 0, 0), (CLOSED, 2, 0, 0)]
    assert of(events, FINISHED) == []


def test_a_reset_closes_with_the_systems_number(bench):
    """CLOSED says why, and who asks the system gets its word."""
    ours, theirs = bench.tcp()
    bench.loop.open_link(ours.fileno(), 1)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    assert bench.until(lambda events: events) == [(CLOSED, 1, CONNECTION_CLOSED, errno.ECONNRESET)]
    assert bench.settle() == []


def test_sends_to_a_side_that_is_gone_end_the_link_after_its_last_words(bench):
    """A failed write must not throw away what the other side had sent before it left."""
    link, raw = bench.link()
    raw.sendall(stream(bench.core, b"last words"))
    raw.close()
    assert link.send_frame(DATA, b"into the void", NO_DELAY) >= 0
    events = bench.until(lambda events: of(events, CLOSED))
    assert payloads(events) == [b"last words"]
    assert (of(events, CLOSED)[0][2], of(events, CLOSED)[0][3]) == (CONNECTION_CLOSED, errno.EPIPE)
    assert link.send(b"x") == NOT_CONNECTED
    assert link.pending + sum(count for _, _, count, _ in of(events, SENT)) == 1


def test_a_stream_that_ends_inside_a_frame_is_truncated(bench):
    """That is no end in order: whoever was cut off should hear of it."""
    _, raw = bench.link()
    raw.sendall(stream(bench.core, b"whole", b"cut off here")[:-3])
    raw.close()
    events = bench.until(lambda events: of(events, CLOSED))
    assert payloads(events) == [b"whole"]
    assert of(events, CLOSED) == [(CLOSED, 1, TRUNCATED, 0)]
    assert of(events, FINISHED) == []


def damage(frame: bytes, place: int, value: int) -> bytes:
    return frame[:place] + bytes([value]) + frame[place + 1 :]


@pytest.mark.parametrize(
    ("place", "value", "code"), [(0, 0x51, MAGIC), (4, 2, VERSION), (5, 9, INVALID_PARAM), (8, 0xFF, MESSAGE_TOO_LARGE), (11, 0, CRC)]
)
def test_a_bad_frame_ends_its_link_alone(bench, place, value, code):
    """The frames before it count, the fault is named and counted, and the neighbour goes on."""
    _, raw = bench.link(tag=1)
    neighbour, other = bench.link(tag=2)
    bad = damage(bench.core.encode_frame(DATA, b"damaged"), place, value)
    raw.sendall(stream(bench.core, b"before") + bad + stream(bench.core, b"behind"))
    events = bench.until(lambda events: of(events, CLOSED))
    assert payloads(events, 1) == [b"before"]
    assert of(events, CLOSED) == [(CLOSED, 1, code, 0)]
    statistics = bench.loop.statistics()
    assert (statistics.bad_frames, statistics.crc_errors) == (1, int(code == CRC))

    other.sendall(stream(bench.core, b"unharmed"))
    assert payloads(bench.until(lambda events: events)) == [b"unharmed"]
    assert neighbour.send(b"x") >= 0


def test_a_frame_longer_than_max_payload_ends_the_link(bench):
    """Judged on the header: no memory is spent on it."""
    _, raw = bench.link(max_payload=100)
    raw.sendall(stream(bench.core, bytes(100)) + bench.core.encode_header(DATA, 0, 1, 101))
    events = bench.until(lambda events: of(events, CLOSED))
    assert payloads(events) == [bytes(100)]
    assert of(events, CLOSED) == [(CLOSED, 1, MESSAGE_TOO_LARGE, 0)]


def test_a_frame_that_never_completes_ends_its_link_unless_it_is_paused():
    """Five seconds for a frame that has begun, not for a link that is silent, and not for one that we do not read. All cores wait at once."""
    names = [name for name in _core.CORES if os.environ.get("PEERTALK_CORE") in (None, "", name)]
    with contextlib.ExitStack() as stack:
        benches = [stack.enter_context(contextlib.closing(Bench(_core.load(name), "epoll"))) for name in names]
        started = time.monotonic()
        paused = []
        for bench in benches:
            data = stream(bench.core, bytes(50))
            (_, early), (link, late), _ = (bench.link(tag=tag) for tag in (1, 2, 3))
            early.sendall(data[:5])
            late.sendall(data[:30])
            bench.settle()
            link.pause()
            paused.append((bench, link, late))
        for bench in benches:
            assert bench.loop.next_timeout() is not None
            assert bench.until(lambda events: events) == [(CLOSED, 1, TIMEOUT, 0)]
            assert time.monotonic() - started >= 4.99
        for bench, link, late in paused:
            assert bench.settle() == []
            link.resume()
            late.sendall(stream(bench.core, bytes(50))[30:])
            assert payloads(bench.until(lambda events: events), 2) == [bytes(50)]


def test_after_close_a_link_says_nothing_and_refuses(bench):
    """Neither what arrived nor what was accepted before is reported later; sends answer and never crash."""
    link, raw = bench.link()
    send, send_many = link.send, link.send_many
    raw.sendall(stream(bench.core, b"unread"))
    link.send(b"unsent")
    link.close()
    link.close()
    assert bench.settle() == []
    assert send(b"x") == link.send(b"x") == link.send_frame(PING) == NOT_CONNECTED
    assert send_many([b"x", b"y"]) == (0, NOT_CONNECTED)
    raw.sendall(b"the descriptor is still ours")
    bench.loop.close()
    assert send(b"x") == NOT_CONNECTED


def test_closing_a_link_leaves_the_descriptor_to_its_owner(bench):
    """Python owns sockets: a descriptor that C closed could by then be somebody else's."""
    ours, theirs = bench.pair()
    bench.loop.open_link(ours.fileno(), 1).close()
    ours.send(b"still open")
    assert theirs.recv(100) == b"still open"
    link = bench.loop.open_link(ours.fileno(), 2)
    theirs.sendall(stream(bench.core, b"and can be a link again"))
    assert payloads(bench.until(lambda events: events), 2) == [b"and can be a link again"]
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
    assert [link.send(b"x") for link in links] == [NOT_CONNECTED] * 5
    bench.loop.wake()
    if before:
        assert len(os.listdir("/proc/self/fd")) < before


def test_a_closed_link_gives_its_memory_back(bench):
    """With frames filling, in flight, and half received."""
    link, raw = bench.link()
    raw.sendall(stream(bench.core, bytes(200))[:100])
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
    assert [link.send(b"refused") for _ in range(5)] == [NO_MEMORY] * 5
    assert link.send_many([b"refused"]) == (0, NO_MEMORY)
    assert bench.loop.attempts >= 5
    bench.loop.fail_at(0)
    assert link.send(b"accepted") >= 0
    bench.settle()
    assert frames_in(bench.core, read_all(raw)) == [(DATA, 0, 0, b"accepted")]


def test_no_memory_for_a_cut_frame_loses_nothing(bench):
    """The link stands still until there is memory; then the frame is whole."""
    _, raw = bench.link()
    bench.loop.fail_at(1)
    data = stream(bench.core, b"whole", bytes(range(200)), b"last")
    raw.sendall(data[:100])
    events = [event for _ in range(5) for event in bench.loop.turn(0.0)]
    raw.sendall(data[100:])
    events += [event for _ in range(5) for event in bench.loop.turn(0.0)]
    bench.loop.fail_at(0)
    events += bench.until(lambda seen: len(payloads(events + seen)) == 3)
    assert payloads(events) == [b"whole", bytes(range(200)), b"last"]


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
                assert code == NO_MEMORY
            events += bench.loop.turn(0.0)
        events += bench.until(lambda seen: len(payloads(events + seen, 2)) == len(accepted))
        assert payloads(events, 2) == accepted
        assert of(events, CLOSED) == []
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


# Timers


def test_a_timer_expires_once_and_not_before_its_time(bench):
    """Milliseconds, rounded up."""
    timer = bench.loop.timer(5)
    assert not timer.armed
    started = time.monotonic()
    timer.arm(0.02)
    assert timer.armed
    assert 0 < bench.loop.next_timeout() <= 0.021
    assert bench.loop.turn(0.0) == []
    assert bench.until(lambda events: events) == [(TIMER, 5, 0, 0)]
    assert time.monotonic() - started >= 0.019
    assert not timer.armed
    assert bench.loop.next_timeout() is None
    assert bench.loop.turn(0.005) == []


def test_timers_expire_in_the_order_of_their_deadlines(bench):
    """Whatever the order of arming."""
    timers = [bench.loop.timer(tag) for tag in range(5)]
    for tag in (3, 0, 4, 1, 2):
        timers[tag].arm(0.004 * tag)
    events = bench.until(lambda events: len(events) == 5)
    assert [tag for _, tag, _, _ in events] == [0, 1, 2, 3, 4]


def test_a_timer_can_be_moved_and_cancelled(bench):
    """Arming again moves it: one expiry, at the later time; cancelled: none."""
    moved, cancelled, kept = (bench.loop.timer(tag) for tag in (1, 2, 3))
    moved.arm(0.001)
    moved.arm(0.01)
    cancelled.arm(0.001)
    cancelled.cancel()
    cancelled.cancel()
    kept.arm(0.02)
    assert not cancelled.armed
    assert bench.until(lambda events: of(events, TIMER, 3)) == [(TIMER, 1, 0, 0), (TIMER, 3, 0, 0)]


def test_many_timers_all_expire(bench):
    """More than fit one turn's events stay due and come in the next."""
    timers = [bench.loop.timer(tag) for tag in range(500)]
    for timer in timers:
        timer.arm(0)
    assert bench.loop.next_timeout() < 0.002
    events = bench.until(lambda events: len(events) >= 500)
    assert sorted(tag for _, tag, _, _ in events) == list(range(500))


def test_a_long_delay_is_no_short_one(bench):
    """Beyond the span of the wheel (4.6 hours), and longer than anyone waits."""
    for delay in (20_000, 1_000_000):
        timer = bench.loop.timer(1)
        timer.arm(delay)
        assert bench.loop.turn(0.0) == []
        assert bench.loop.next_timeout() > 1.0
        timer.cancel()


# Waking, watching, driving


def test_wake_ends_a_wait_from_another_thread(bench):
    """How orders of other threads reach a worker that waits."""
    woken = threading.Thread(target=bench.loop.wake)
    threading.Timer(0.05, woken.start).start()
    assert bench.loop.turn(None) == []
    while woken.ident is None:
        pass
    woken.join()


def test_a_wake_before_the_wait_ends_that_wait(bench):
    """A thread that puts an order and wakes just before the worker waits must not be missed."""
    rescue = threading.Event()

    def ring() -> None:
        if not rescue.wait(5):
            bench.loop.wake()

    bystander = threading.Thread(target=ring)
    bystander.start()
    for _ in range(3):
        bench.loop.wake()
        assert bench.loop.turn(None) == []
    in_time = not rescue.is_set() and bystander.is_alive()
    rescue.set()
    bystander.join()
    assert in_time, "the wake was lost: only a second one ended the wait"


def test_wakes_do_not_pile_up(bench):
    """Ten thousand wakes are one."""
    for _ in range(10_000):
        bench.loop.wake()
    assert bench.loop.turn(0.0) == []
    if bench.loop.fd >= 0:
        assert select.select([bench.loop.fd], [], [], 0)[0] == []


def test_a_watch_reports_readiness_as_long_as_it_lasts(bench):
    """Listeners and connecting sockets are foreign descriptors: level-triggered, for what is wanted alone."""
    ours, theirs = bench.pair()
    watch = bench.loop.watch(ours.fileno(), 7, READ)
    assert bench.loop.turn(0.0) == []
    theirs.send(b"x")
    for _ in range(3):
        ((kind, tag, mask, rest),) = bench.until(lambda events: events)
        assert (kind, tag, mask & READ, rest) == (READY, 7, READ, 0)
    watch.set(WRITE)
    ((kind, tag, mask, _),) = bench.until(lambda events: events)
    assert (kind, tag, mask & (READ | WRITE)) == (READY, 7, WRITE)
    watch.set(0)
    assert bench.loop.turn(0.0) == []
    watch.set(READ | WRITE)
    ((_, _, mask, _),) = bench.until(lambda events: events)
    assert mask & (READ | WRITE) == READ | WRITE
    watch.close()
    watch.close()
    assert bench.loop.turn(0.0) == []
    assert ours.recv(10) == b"x"


def test_a_watched_descriptor_may_become_a_link(bench):
    """The life of a connection that we dialled: wait until it can be written, then hand it over."""
    ours, theirs = bench.tcp()
    watch = bench.loop.watch(ours.fileno(), 1, WRITE)
    bench.until(lambda events: of(events, READY))
    watch.close()
    link = bench.loop.open_link(ours.fileno(), 2)
    link.send(b"hello")
    assert sent(bench.until(lambda events: of(events, SENT)), 2) == 1
    assert theirs.recv(100)[10:15] == b"hello"


def test_the_descriptors_to_watch_follow_what_links_wait_for(bench):
    """For drivers without a common descriptor: they watch these instead."""
    if bench.way == "plain":
        pytest.skip("did not run: a blocking send never waits for WRITE")
    link, raw = bench.link()
    fd = next(iter(bench.sockets)).fileno()
    assert (fd, READ) in bench.loop.descriptors()
    while link.send(bytes(bench.limit)) >= 0:
        bench.loop.turn(0.0)
    bench.loop.turn(0.0)
    assert (fd, READ | WRITE) in bench.loop.descriptors()
    link.pause()
    assert (fd, WRITE) in bench.loop.descriptors()
    while link.pending:
        read_all(raw)
        bench.loop.turn(0.0)
    assert (fd, WRITE) not in bench.loop.descriptors()
    link.resume()
    assert (fd, READ) in bench.loop.descriptors()
    link.close()
    assert fd not in [descriptor for descriptor, _ in bench.loop.descriptors()]


def test_a_wake_shows_in_the_descriptors_of_a_loop_without_one(bench):
    """Else a driver that watches them would sleep through it."""
    if bench.loop.fd >= 0:
        descriptors = [(bench.loop.fd, READ)]
    else:
        assert bench.way == "poll"
        descriptors = bench.loop.descriptors()
    assert all(interest & READ for _, interest in descriptors)
    bench.loop.wake()
    readable = select.select([fd for fd, _ in descriptors], [], [], PATIENCE)[0]
    assert readable
    bench.loop.turn(0.0)
    assert select.select([fd for fd, _ in descriptors], [], [], 0)[0] == []


def test_the_loops_descriptor_is_readable_when_there_is_work(bench):
    """So an asyncio loop can drive ours: one descriptor and one timer."""
    _, raw = bench.link()
    if bench.way == "poll":
        assert bench.loop.fd == -1
        return
    assert bench.loop.fd >= 0
    assert select.select([bench.loop.fd], [], [], 0)[0] == []
    raw.sendall(stream(bench.core, b"x"))
    assert select.select([bench.loop.fd], [], [], PATIENCE)[0]
    assert payloads(bench.loop.turn(0.0)) == [b"x"]
    assert select.select([bench.loop.fd], [], [], 0)[0] == []


def test_no_ready_link_is_starved_by_others(bench):
    """At most io_budget sources a turn; those not served come first in the next."""
    loop = bench.loop = bench.make_loop(io_budget=2)
    raws = [bench.link(tag=tag)[1] for tag in range(9)]
    served: dict[int, int] = dict.fromkeys(range(9), 0)
    for _ in range(9 * 5):
        for raw in raws:
            raw.sendall(stream(bench.core, b"x" * 10))
        events = loop.turn(0.0)
        batches = of(events, BATCH)
        assert 0 < len(batches) <= 2
        for _, tag, _, _ in batches:
            served[tag] += 1
    assert min(served.values()) >= 5, served


def test_links_beyond_the_budget_are_told_of_all_the_same(bench):
    """Two hundred links with something to report at once: none is forgotten."""
    made = [bench.link(tag=tag) for tag in range(200)]
    for link, raw in made:
        link.send(b"out")
        raw.sendall(stream(bench.core, b"in"))
    events = bench.until(lambda events: len(of(events, SENT)) >= 200 and len(of(events, BATCH)) >= 200)
    assert sorted(tag for _, tag, _, _ in of(events, SENT)) == list(range(200))
    assert sorted(tag for _, tag, _, _ in of(events, BATCH)) == list(range(200))


def test_a_turn_that_may_wait_returns_what_comes(bench):
    """One wait, and the events that ended it."""
    _, raw = bench.link()
    threading.Timer(0.02, raw.sendall, args=(stream(bench.core, b"late"),)).start()
    assert payloads(bench.until(lambda events: events)) == [b"late"]


def test_a_turn_without_events_ends_with_its_time(bench):
    """Waiting has a bound when one is given."""
    bench.link()
    assert bench.loop.turn(0.01) == []
    assert bench.loop.next_timeout() is None


def test_statistics_say_what_happened(bench):
    """Counted where it happens, in the units that values.py names."""
    one, two = bench.links()
    for number in range(10):
        one.send(bytes(number))
    one.send_frame(PONG, b"abc")
    bench.settle()
    out, into = one.statistics(), two.statistics()
    assert (out.messages_accepted, out.messages_reported, out.frames_sent, out.payload_bytes_sent) == (10, 10, 11, 48)
    assert out.bytes_sent == into.bytes_received == 48 + 11 * OVERHEAD
    assert (out.refusals, out.slots_pending) == (0, 0)
    assert out.slots_high_water == 1
    assert 1 <= out.write_calls <= 2
    assert (into.frames_received, into.payload_bytes_received, into.partial_bytes) == (11, 48, 0)
    assert into.read_calls >= 1
    assert bench.loop.statistics().turns > 0
    assert bench.loop.core is bench.core


# Bounds


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"depth": 65}, {"slot_size": OVERHEAD - 1}, {"slot_size": 70_000}, {"max_payload": 70_000}])
def test_a_link_has_bounds(bench, wrong):
    """And a refusal leaves nothing behind: the same descriptor can be used."""
    ours, theirs = bench.pair()
    with pytest.raises(errors.InvalidArgument):
        bench.loop.open_link(ours.fileno(), 1, **wrong)
    bench.loop.open_link(ours.fileno(), 1)
    theirs.sendall(stream(bench.core, b"x"))
    assert payloads(bench.until(lambda events: events)) == [b"x"]


@pytest.mark.parametrize("wrong", [{"io_budget": 0}, {"io_budget": 17}, {"receive_buffer_size": 100}, {"platform": "vms"}])
def test_a_loop_has_bounds(core, wrong):
    """Said before anything is made."""
    with pytest.raises(errors.InvalidArgument):
        core.Loop(**wrong)


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
    assert payloads(events, 2) == messages
    assert two.max_message == 64 - OVERHEAD
