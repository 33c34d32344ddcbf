"""Wide frames that are wrong, cut off or too many at once: how the link ends, what it waits for,
and that no memory stays behind.

What every core tells of a stream is compared in the end, whatever its damage and its cuts.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from kit.tables import each_row
from kit.waiting import GUARD
from kit.wide import grant_all, heard, wide

from peertalk._core.values import (
    BATCH,
    CLOSED,
    DATA,
    FINISHED,
    FRAME,
    GRANT,
    LANDED,
    OFFER,
    REFUSE,
    TIMER,
)
from peertalk._numbers import (
    ERR_CONNECTION_CLOSED,
    ERR_CRC,
    ERR_INVALID_PARAM,
    ERR_MAGIC,
    ERR_MESSAGE_TOO_LARGE,
    ERR_NOT_CONNECTED,
    ERR_TIMEOUT,
    ERR_TRUNCATED,
    WIDE_HEADER_SIZE,
    WIDE_MAX_PAYLOAD,
)


def with_byte(frame: bytes, place: int, value: int) -> bytes:
    """A frame with another byte at one place."""
    return frame[:place] + bytes([value]) + frame[place + 1 :]


def with_number(frame: bytes, place: int, value: int) -> bytes:
    """A frame with another number of 32 bits at one place."""
    return frame[:place] + value.to_bytes(4, "big") + frame[place + 4 :]


# Faults. Message 7 has 100 bytes, of which 10 have come; message 8 has come whole.

SLICE = wide(DATA, 7, 10, 100, bytes(20))
PREFIX = wide(DATA, 7, 0, 100, bytes(10)) + wide(DATA, 8, 0, 2, b"ok")
JUDGED_BY_THE_HEADER = {
    "magic": (with_byte(SLICE, 1, ord("N")), ERR_MAGIC),
    "type 0": (with_byte(SLICE, 2, 0), ERR_INVALID_PARAM),
    "a type of the full form": (with_byte(SLICE, 2, 2), ERR_INVALID_PARAM),
    "type 11": (with_byte(SLICE, 2, 11), ERR_INVALID_PARAM),
    "too long": (with_number(SLICE, 4, WIDE_MAX_PAYLOAD + 1), ERR_MESSAGE_TOO_LARGE),
    "far too long": (with_number(SLICE, 4, 2**32 - 1), ERR_MESSAGE_TOO_LARGE),
    "no payload": (with_number(SLICE, 4, 0), ERR_INVALID_PARAM),
    "an offer with payload": (with_byte(SLICE, 2, OFFER), ERR_INVALID_PARAM),
    "a grant with payload": (with_byte(SLICE, 2, GRANT), ERR_INVALID_PARAM),
    "a refusal with payload": (with_byte(SLICE, 2, REFUSE), ERR_INVALID_PARAM),
    "beyond the total": (with_number(SLICE, 4, 91), ERR_INVALID_PARAM),
    "an end that wraps": (with_number(SLICE, 12, 2**32 - 5), ERR_INVALID_PARAM),
    "not offered, in part": (with_number(SLICE, 8, 0), ERR_INVALID_PARAM),
    "never granted": (wide(DATA, 9, 0, 100, bytes(20)), ERR_INVALID_PARAM),
    "from the beginning again": (wide(DATA, 7, 0, 100, bytes(10)), ERR_INVALID_PARAM),
    "with a gap": (wide(DATA, 7, 11, 100, bytes(20)), ERR_INVALID_PARAM),
    "back a byte": (wide(DATA, 7, 9, 100, bytes(20)), ERR_INVALID_PARAM),
    "with another total": (wide(DATA, 7, 10, 101, bytes(20)), ERR_INVALID_PARAM),
    "of a message that has come": (wide(DATA, 8, 0, 2, b"ok"), ERR_INVALID_PARAM),
}
JUDGED_BY_THE_CRC = {
    "a bit of the payload": (with_byte(SLICE, 43, 1), ERR_CRC),
    "a bit of the reason": (with_byte(SLICE, 3, 1), ERR_CRC),
    "the CRC": (with_number(SLICE, 20, 0), ERR_CRC),
    "an unasked message": (wide(DATA, payload=b"x" * 50)[:-1] + b"y", ERR_CRC),
    "the id of an offer": (with_byte(wide(OFFER, 5, total=99), 11, 4), ERR_CRC),
    "the reason of a refusal": (with_byte(wide(REFUSE, 5, reason=1), 3, 3), ERR_CRC),
}
BEFORE = [b"before", (DATA | LANDED << 8 | 8 << 24, b"ok")]


def end_of(bench: Any, stream: bytes, cut: int, **arguments: Any) -> tuple[list[Any], Any]:
    """What is told of a stream in such pieces, until the link ends; and the link."""
    link, raw = bench.link(**{"wide": True, **arguments})
    grant_all(link, {7: 100, 8: 2})
    events: list[Any] = []
    for start in range(0, len(stream), cut):
        raw.sendall(stream[start : start + cut])
        events += bench.loop.turn(0.0)
        if bench.of(events, CLOSED):
            return events, link
    return events + bench.until(lambda seen: bench.of(seen, CLOSED)), link


@each_row("row", {**JUDGED_BY_THE_HEADER, **JUDGED_BY_THE_CRC})
def test_a_wrong_wide_frame_ends_the_link_behind_what_came_before(core, make_bench, row):
    """As with full frames: nothing of the wrong one, nothing behind it, and one reason, however the
    stream was cut."""
    frame, code = row
    for cut in (1, 7, 23, 24, 25, 10_000):
        bench = make_bench(core, "epoll")
        try:
            stream = bench.stream(b"before") + PREFIX + frame + bench.stream(b"never")
            events, link = end_of(bench, stream, cut)
            assert heard(events) == BEFORE
            assert events[-1] == (CLOSED, 1, code, 0)
            counted = bench.loop.statistics()
            assert (counted.bad_frames, counted.crc_errors) == (1, int(code == ERR_CRC))
            assert link.statistics().frames_received == 3
            assert link.landed(7) == -1 and link.expect(9, 5) == ERR_NOT_CONNECTED
            link.close()
            assert bench.loop.pool.statistics().in_use == 0
        finally:
            bench.close()


@each_row("row", JUDGED_BY_THE_HEADER)
def test_a_wide_header_is_judged_before_its_payload_comes(quick, row):
    """What will be refused is not waited for, and takes no memory."""
    frame, code = row
    header = frame[:WIDE_HEADER_SIZE]
    events, link = end_of(quick, PREFIX + header, 10_000)
    assert events[-1] == (CLOSED, 1, code, 0)
    link.close()


def test_a_link_that_was_not_told_of_wide_frames_knows_none(bench):
    """Towards an original nothing may change: two letters are no header."""
    link, raw = bench.link()
    raw.sendall(bench.stream(b"before") + wide(DATA, payload=b"x" * 50))
    events = bench.until(lambda events: bench.of(events, CLOSED))
    assert heard(events) == [b"before"] and events[-1] == (CLOSED, 1, ERR_MAGIC, 0)
    assert link.expect(7, 100) == ERR_NOT_CONNECTED


def test_a_slice_of_a_message_that_is_forgotten_is_a_fault(bench):
    """Who said that nothing more will come, and sends more, cannot be followed."""
    link, raw = bench.link(wide=True)
    grant_all(link, {7: 100})
    raw.sendall(wide(DATA, 7, 0, 100, bytes(10)))
    bench.until(lambda _: link.landed(7) == 10)
    link.forget(7)
    assert link.landed(7) == -1
    raw.sendall(SLICE)
    events = bench.until(lambda events: bench.of(events, CLOSED))
    assert events == [(CLOSED, 1, ERR_INVALID_PARAM, 0)]


def test_a_slice_that_had_begun_when_its_message_was_forgotten_is_the_last(bench):
    """It goes nowhere, and at its end the link is over, whatever stands behind it."""
    link, raw = bench.link(wide=True)
    grant_all(link, {7: 30})
    raw.sendall(wide(DATA, 7, 0, 30, bytes(30))[:40])
    bench.until(lambda _: link.landed(7) == 16)
    link.forget(7)
    assert link.landed(7) == -1
    raw.sendall(wide(DATA, 7, 0, 30, bytes(30))[40:] + bench.stream(b"x"))
    events = bench.until(lambda events: bench.of(events, CLOSED))
    assert events == [(CLOSED, 1, ERR_INVALID_PARAM, 0)]


def test_slices_of_a_forgone_message_must_still_be_right(bench):
    """They are dropped because they are late, and not because anything goes."""
    link, raw = bench.link(wide=True)
    grant_all(link, {7: 100})
    link.forgo(7)
    raw.sendall(wide(DATA, 7, 0, 100, bytes(10)) + wide(DATA, 7, 11, 100, bytes(10)))
    events = bench.until(lambda events: bench.of(events, CLOSED))
    assert events == [(CLOSED, 1, ERR_INVALID_PARAM, 0)]
    assert link.statistics().frames_received == 1


# Cut off


@each_row("cut", {"in the header": 20, "behind the header": 24, "in the payload": 30})
def test_a_stream_that_ends_in_a_wide_frame_is_truncated(quick, cut):
    """What was there of it is no message."""
    for frame in (SLICE, wide(DATA, payload=bytes(20))):
        link, raw = quick.link(wide=True)
        grant_all(link, {7: 100, 8: 2})
        raw.sendall(PREFIX + frame[:cut])
        raw.shutdown(socket.SHUT_WR)
        events = quick.until(lambda events: quick.of(events, CLOSED))
        assert events[-1] == (CLOSED, 1, ERR_TRUNCATED, 0) and heard(events) == BEFORE[1:]
        link.close()
    assert quick.loop.pool.statistics().in_use == 0


def test_a_stream_may_end_between_two_slices(bench):
    """The frames are whole; that the message is not is its receiver's to see."""
    link, raw = bench.link(wide=True)
    grant_all(link, {7: 100})
    raw.sendall(wide(DATA, 7, 0, 100, bytes(10)))
    raw.shutdown(socket.SHUT_WR)
    assert bench.until(lambda events: events) == [(FINISHED, 1, 0, 0)]
    assert link.landed(7) == 10


def test_a_wide_frame_must_come_in_time(bench):
    """As every frame; between slices there is no hurry, and a paused link is not counted."""
    link, raw = bench.link(wide=True)
    link.frame_timeout = 0.05
    grant_all(link, {7: 100, 8: 2})
    raw.sendall(PREFIX)
    assert heard(run_out(bench, 0.1)) == BEFORE[1:]
    link.frame_timeout = 5
    raw.sendall(SLICE[:30])
    assert bench.settle() == [] and link.statistics().partial_bytes == 30
    link.pause()
    link.frame_timeout = 0.05
    assert run_out(bench, 0.1) == []
    link.resume()
    events = bench.until(lambda events: events)
    assert events == [(CLOSED, 1, ERR_TIMEOUT, 0)]


def run_out(bench: Any, seconds: float) -> list[Any]:
    """Turn until a timer has run out. Returns all other events."""
    timer = bench.loop.timer(99)
    timer.arm(seconds)
    events = bench.until(lambda events: bench.of(events, TIMER, 99))
    return [event for event in events if event[1] != 99]


@pytest.mark.parametrize("end", ["link", "loop"])
def test_closing_in_the_middle_of_messages_leaves_nothing_behind(bench, end):
    """Slices under way in both directions, a message half there, and one that is cut."""
    if bench.way == "plain":
        pytest.skip("did not run: a blocking send does not refuse, it waits")
    link, raw = bench.link(wide=True)
    grant_all(link, {7: 100, 8: 2})
    message = bytes(1_000_000)
    start = 0
    while link.send_slice(message, 3, start, 50_000) >= 0:
        start += 50_000
    assert link.send_wide(OFFER, 4, 9) < 0, "nothing is packed behind a slice"
    raw.sendall(wide(DATA, 7, 0, 100, bytes(10)) + wide(DATA, payload=bytes(9_000))[:5_000])
    bench.until(lambda _: link.statistics().partial_bytes == 5_000)
    assert link.referred > 0
    if end == "link":
        link.close()
        assert link.referred == 0 and link.landed(7) == -1
        assert link.send_slice(message, 3, start, 10) == ERR_NOT_CONNECTED
        assert link.send_wide(OFFER, 4, 9) == link.expect(9, 9) == ERR_NOT_CONNECTED
        assert bench.settle() == []
        assert bench.loop.pool.statistics().in_use == 0
    else:
        bench.loop.close()
        assert link.referred == 0


def test_a_link_that_breaks_under_a_slice_says_so_once(bench):
    """What was under way is not reported as sent."""
    link, raw = bench.link()
    raw.close()
    message = bytes(1_000_000)
    code = start = 0
    while code >= 0 and start < len(message):
        code = link.send_slice(message, 3, start, 100_000)
        start += 100_000
    events = bench.until(lambda events: bench.of(events, CLOSED))
    assert [event[2] for event in bench.of(events, CLOSED)] == [ERR_CONNECTION_CLOSED]
    assert bench.sent(events, 1) == 0 and link.pending <= 1
    link.close()
    assert link.referred == 0 and bench.loop.pool.statistics().in_use == 0


# The landing limit. One message, of 9,000 bytes, fits; a second one beside it does not.

LONG = random.Random(4).randbytes(9_000)


class Two:
    """Link 1 has a message under way, and that of link 2, which is cut, finds no room: of it
    stands there what the link had read before."""

    def __init__(self, bench: Any, cut: int = 500) -> None:
        self.loop = bench.loop
        self.loop.landing_limit = 10_000
        self.one, self.raw_one = bench.link(1, wide=True)
        self.one.frame_timeout = 10 * GUARD  # its message stays under way until a test ends that
        self.two, self.raw_two = bench.link(2, wide=True)
        self.raw_one.sendall(wide(DATA, payload=LONG)[:400])
        bench.until(lambda _: self.one.statistics().partial_bytes == 400)
        frame = wide(DATA, payload=LONG)
        self.raw_two.sendall(bench.stream(b"before") + frame[:cut])
        events = bench.until(lambda events: events)
        assert heard(events) == [b"before"]
        self.raw_two.sendall(frame[cut:] + bench.stream(b"after"))
        assert bench.settle() == [], "there is no room, and a loop whose links starve must sleep"
        assert self.loop.next_timeout() != 0.0


def test_a_message_for_which_there_is_no_room_waits_in_the_system(bench):
    """A thousand links with a quarter of a megabyte each would be one too many for the memory: who
    comes later is not read, and loses nothing."""
    two = Two(bench)
    statistics = two.two.statistics()
    assert two.two.held_bytes + statistics.partial_bytes == 500
    assert statistics.bytes_received == 500 + len(bench.stream(b"before"))
    two.raw_one.sendall(wide(DATA, payload=LONG)[400:])
    events = bench.until(lambda events: bench.payloads(events, 1))
    assert bench.payloads(events, 1) == [LONG]
    events += bench.until(lambda seen: len(heard(events + seen)) == 3)
    assert bench.payloads(events, 2) == [LONG, b"after"]
    assert two.two.held_bytes == two.two.statistics().partial_bytes == 0


@each_row("cut", {"the header": 24, "one more": 25, "most": 9_023})
def test_bytes_of_a_message_that_finds_no_room_are_kept(core, make_bench, cut):
    """Wherever the read ended."""
    bench = make_bench(core, "epoll")
    try:
        two = Two(bench, cut)
        two.raw_one.sendall(wide(DATA, payload=LONG)[400:])
        events = bench.until(lambda events: len(heard(events)) == 3)
        assert bench.payloads(events, 2) == [LONG, b"after"]
    finally:
        bench.close()


def fault(two: Two) -> None:
    two.raw_one.sendall(bytes(9_000))


MAKES_ROOM: dict[str, Callable[[Two], Any]] = {
    "a higher limit": lambda two: setattr(two.loop, "landing_limit", 18_000),
    "the close of the other link": lambda two: two.one.close(),
    "a fault of the other frame": fault,
    "the end of the other stream": lambda two: two.raw_one.close(),
}


@each_row("make", MAKES_ROOM)
def test_room_comes_back_however_the_other_frame_ends(core, make_bench, make):
    """A link that starves for ever is worse than the memory."""
    bench = make_bench(core, "epoll")
    try:
        two = Two(bench)
        make(two)
        events = bench.until(lambda events: len(bench.payloads(events, 2)) == 2)
        assert bench.payloads(events, 2) == [LONG, b"after"]
    finally:
        bench.close()


def test_the_time_of_a_frame_does_not_run_while_there_is_no_room(bench):
    """It is we who do not read. With room it runs."""
    two = Two(bench)
    two.two.frame_timeout = 0.05
    assert run_out(bench, 0.15) == []
    two.loop.landing_limit = 18_000
    events = bench.until(lambda events: len(heard(events)) == 2)
    assert bench.payloads(events, 2) == [LONG, b"after"]


def test_a_link_without_room_is_still_written_paused_and_ended(bench):
    """It lacks room for what comes, and nothing else."""
    two = Two(bench)
    two.raw_two.shutdown(socket.SHUT_WR)
    assert two.two.send(b"out") >= 0
    assert bench.sent(bench.settle(), 2) == 1
    two.two.pause()
    two.loop.landing_limit = 18_000
    assert bench.settle() == []
    two.two.resume()
    events = bench.until(lambda events: bench.of(events, FINISHED, 2))
    assert bench.payloads(events, 2) == [LONG, b"after"]


def test_frames_read_before_a_message_without_room_come_first(bench):
    """A flood is handed on over several turns, and the message behind it waits for all of them."""
    bench.loop.landing_limit = 10_000
    one, raw_one = bench.link(1, wide=True)
    two, raw_two = bench.link(2, wide=True)
    raw_one.sendall(wide(DATA, payload=LONG)[:400])
    bench.until(lambda _: one.statistics().partial_bytes == 400)
    flood = [wide(GRANT, number) for number in range(50)]
    raw_one.sendall(wide(DATA, payload=LONG)[400:-1])
    raw_two.sendall(b"".join(flood) + wide(DATA, payload=LONG)[:500])
    events = bench.loop.turn(0.1)
    assert len(heard(events)) < 50 and two.held_bytes
    raw_one.sendall(LONG[-1:])
    raw_two.sendall(wide(DATA, payload=LONG)[500:])
    events += bench.until(lambda seen: len(bench.payloads(seen, 2)) == 1)
    grants = [int.from_bytes(event[3][:4], "big") for event in bench.of(events, FRAME, 2)]
    assert grants == list(range(50)) and bench.of(events, BATCH, 2)[-1][3] == [LONG]


@pytest.mark.parametrize("first", [1, 2])
def test_links_that_wait_for_room_can_be_closed(bench, first):
    """In any order, and the room of the other stays right."""
    two = Two(bench)
    links = {1: two.one, 2: two.two}
    links.pop(first).close()
    bench.settle()
    (left,) = links.values()
    left.close()
    assert two.one.held_bytes == two.two.held_bytes == 0
    link, raw = bench.link(3, wide=True)
    raw.sendall(wide(DATA, payload=LONG)[:100])
    bench.until(lambda _: link.statistics().partial_bytes == 100)
    link.close()
    assert bench.loop.pool.statistics().in_use == 0


def test_one_message_is_always_let_in(bench):
    """Else a limit below its length would be the end of it."""
    bench.loop.landing_limit = 100
    assert bench.loop.landing_limit == 100
    link, raw = bench.link(wide=True)
    for _ in range(3):
        raw.sendall(wide(DATA, payload=LONG)[:5_000])
        bench.until(lambda _: link.statistics().partial_bytes == 5_000)
        raw.sendall(wide(DATA, payload=LONG)[5_000:])
        assert heard(bench.until(lambda events: events)) == [LONG]


def test_what_needs_no_room_passes_beside_a_message_that_has_it_all(bench):
    """Frames that lie whole in what was read, small ones, and slices that were granted: their
    memory is bounded elsewhere."""
    bench.loop.landing_limit = 100
    _, raw = bench.link(1, wide=True)
    raw.sendall(wide(DATA, payload=LONG)[:5_000])
    bench.settle()
    link, raw = bench.link(2, wide=True)
    grant_all(link, {7: 100})
    whole = LONG[:5_000]  # lies in one read of the smallest core too
    raw.sendall(bench.stream(b"small") + wide(DATA, payload=whole))
    events = bench.until(lambda events: len(heard(events)) == 2)
    assert heard(events) == [b"small", whole]
    assert not bench.of(events, CLOSED), "the other message still has all the room"
    slice = wide(DATA, 7, 0, 100, bytes(100))
    raw.sendall(slice[:60])
    bench.until(lambda _: link.landed(7) == 36)
    raw.sendall(slice[60:])
    assert len(bench.of(bench.until(lambda events: events), FRAME, 2)) == 1


def test_many_links_share_a_little_room_and_all_are_served(quick):
    """Whoever waits gets its turn."""
    quick.loop.landing_limit = 20_000
    count = 12
    ends = {tag: quick.link(tag, wide=True)[1] for tag in range(count)}
    rng = random.Random(8)
    messages = {
        tag: [rng.randbytes(rng.randrange(8_000, 15_000)) for _ in range(3)] for tag in ends
    }
    rest = {tag: b"".join(wide(DATA, payload=each) for each in messages[tag]) for tag in ends}
    events: list[Any] = []
    give_up = time.monotonic() + GUARD
    while len(heard(events)) < 3 * count:
        assert time.monotonic() < give_up, len(heard(events))
        for tag, raw in ends.items():
            with contextlib.suppress(BlockingIOError):
                size = rng.randrange(6_000)
                rest[tag] = rest[tag][raw.send(rest[tag][:size]) if size else 0 :]
        events += quick.loop.turn(0.0)
    assert {tag: quick.payloads(events, tag) for tag in ends} == messages


# Every core tells the same


def mixed(core: Any, rng: random.Random, frames: int) -> tuple[bytearray, dict[int, int]]:
    """A stream of all forms, and what must be expected: id and total."""
    stream, totals = bytearray(), {}
    begun: dict[int, tuple[int, int]] = {}
    for number in range(frames):
        payload = rng.randbytes(rng.choice((1, 2, 20, 200)))
        kind = rng.choice(("full", "compact", "unasked", "offer", "slice", "slice"))
        if kind == "full":
            stream += core.encode_frame(rng.choice((1, 2, 7)), payload, 0, number & 255)
        elif kind == "compact":
            stream += core.encode_compact(DATA, 0, len(payload)) + payload
        elif kind == "unasked":
            stream += wide(DATA, payload=payload)
        elif kind == "offer":
            stream += wide(rng.choice((OFFER, GRANT, REFUSE)), number, total=9, reason=1)
        else:
            if len(begun) < 2:
                totals[number + 1] = len(payload)
                begun[number + 1] = (0, len(payload))
            id = rng.choice(list(begun))
            start, total = begun.pop(id)
            end = rng.randrange(start, total) + 1
            stream += wide(DATA, id, start, total, rng.randbytes(end - start))
            if end < total:
                begun[id] = (end, total)
    return stream, totals


def spoil(stream: bytearray, rng: random.Random) -> None:
    """Damage a stream, or not, as a network, a bug or an enemy would."""
    place = rng.randrange(len(stream))
    kind = rng.choice(("none", "bit", "lost", "twice", "garbage", "header", "header", "header"))
    if kind == "bit":
        stream[place] ^= 1 << rng.randrange(8)
    elif kind == "lost":
        del stream[place : place + rng.randrange(1, 30)]
    elif kind == "twice":
        stream[place:place] = stream[max(0, place - rng.randrange(1, 40)) : place]
    elif kind == "garbage":
        stream[place:place] = rng.randbytes(rng.randrange(1, 30))
    elif kind == "header" and (start := stream.find(b"WM", place)) >= 0:
        field = start + rng.choice((2, 4, 7, 8, 11, 12, 15, 16, 19))
        if field < len(stream):  # else those two bytes are the end of a payload
            stream[field] = rng.choice((0, 1, 2, 8, 255))


def told_of(
    core: Any, limit: int, stream: bytes, totals: dict[int, int], pieces: list[int]
) -> tuple[Any, ...]:
    """All that a loop tells of a stream in such pieces: frames, the end, and what it counts."""
    loop = core.Loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        link = loop.open_link(ours.fileno(), 1, max_payload=limit, wide=True)
        link.frame_timeout = 10 * GUARD  # a machine that stands still is no end of a stream
        grant_all(link, totals)
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
        ends = [event for event in events if event[0] not in (BATCH, FRAME)]
        statistics, counted = link.statistics(), loop.statistics()
        landed = {id: link.landed(id) for id in totals}
        link.close()
        in_use = loop.pool.statistics().in_use
        loop.close()
    return (
        heard(events),
        ends,
        statistics.frames_received,
        statistics.payload_bytes_received,
        counted.crc_errors,
        counted.bad_frames,
        landed,
        in_use,
    )


def test_streams_with_wide_frames_are_told_alike_by_all_cores(core, reference_core, rounds):
    """Whatever the damage and the cuts: the reference in one gulp against each core in pieces."""
    seed = random.SystemRandom().randrange(2**32)
    ends: dict[Any, int] = {}
    limit = core.limits.frame_max_payload
    for number in range(rounds(300, 20_000)):
        rng = random.Random(f"{seed}/{number}")
        stream, totals = mixed(reference_core, rng, rng.choice((1, 5, 20)))
        spoil(stream, rng)
        most = rng.choice((1, 10, 26, 400)) if len(stream) < 500 else rng.choice((40, 400))
        pieces: list[int] = []
        while sum(pieces) < len(stream):
            pieces.append(rng.randrange(1, most + 1))
        whole = told_of(reference_core, limit, bytes(stream), totals, [len(stream)])
        told = told_of(core, limit, bytes(stream), totals, pieces)
        assert told == whole, f"seed {seed}, stream {number}"
        assert told[-1] == 0
        code = whole[1][-1][2]
        ends[code] = ends.get(code, 0) + 1
    wanted = {0, ERR_CRC, ERR_MAGIC, ERR_INVALID_PARAM, ERR_MESSAGE_TOO_LARGE, ERR_TRUNCATED}
    assert wanted <= ends.keys(), f"a kind of end never came up: {ends}"
