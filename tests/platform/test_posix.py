"""The POSIX platform: what reaches the system, how often, and what its answers become.

Truth: the kernel's own sockets at the other end, and counts of system calls. What every core does
alike is in tests/core/test_loop.py.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from peertalk import errors
from peertalk._core.values import (
    BATCH,
    CLOSED,
    DATA,
    FINISHED,
    LEFT,
    NEEDS_TURN,
    NO_DELAY,
    PING,
    READ,
    READY,
    SENT,
    TIMER,
    WRITE,
)
from peertalk._numbers import (
    ERR_CONNECTION_CLOSED,
    ERR_NOT_CONNECTED,
    ERR_TIMEOUT,
    ERR_WOULD_BLOCK,
    FRAME_OVERHEAD,
)

PATIENCE = 10.0
"""Seconds after which a wait gives up and says what it saw."""


class Box:
    """Loops and sockets of one test, closed behind it."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.limit = core.limits.frame_max_payload
        self.loops: list[Any] = []
        self.sockets: list[socket.socket] = []

    def loop(self, **arguments: Any) -> Any:
        self.loops.append(self.core.Loop(**arguments))
        return self.loops[-1]

    def pair(self, sndbuf: int | None = None) -> tuple[socket.socket, socket.socket]:
        """Two ends of a connection; sndbuf: bytes that the first may have under way."""
        ends = socket.socketpair()
        if sndbuf is not None:
            ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
        for end in ends:
            end.setblocking(False)
            self.sockets.append(end)
        return ends

    def close(self) -> None:
        for loop in self.loops:
            loop.close()
        for each in self.sockets:
            each.close()


@pytest.fixture
def box(c_core: Any) -> Iterator[Box]:
    made = Box(c_core)
    yield made
    made.close()


def until(loop: Any, condition: Callable[[list[Any]], Any]) -> list[Any]:
    """Turn until the condition holds of all events seen."""
    events: list[Any] = []
    give_up = time.monotonic() + PATIENCE
    while not condition(events):
        assert time.monotonic() < give_up, (
            f"waited for what did not come; seen: {[event[:3] for event in events[-20:]]}"
        )
        events += loop.turn(0.05)
    return events


def assert_sleeps(loop: Any) -> None:
    """Nothing ends a wait of this loop before its time, but once the timer that gives free memory
    back."""
    early = 0
    for _ in range(4):
        started = time.monotonic()
        assert loop.turn(0.02) == []
        early += time.monotonic() - started < 0.02
    assert early <= 1
    assert loop.fd < 0 or not select.select([loop.fd], [], [], 0)[0]


def kinds(events: list[Any]) -> list[int]:
    return [event[0] for event in events]


def read_all(end: socket.socket) -> bytes:
    """What lies in the socket now."""
    data = b""
    while True:
        try:
            piece = end.recv(1 << 20)
        except BlockingIOError:
            return data
        if not piece:
            return data
        data += piece


def frames_in(core: Any, data: bytes) -> list[Any]:
    frames = []
    while data:
        frames.append(core.decode_frame(data))
        data = data[FRAME_OVERHEAD + len(frames[-1].payload) :]
    return frames


# Writing


def test_many_messages_leave_in_one_write(box):
    """A system call costs as much as forty small messages: packing is the whole point of slots."""
    loop, (ours, theirs) = box.loop(), box.pair()
    link = loop.open_link(ours.fileno(), 1)
    messages = [b"%d" % number for number in range(50)]
    for message in messages:
        assert link.send(message) >= 0
    assert link.statistics().write_calls == 1  # the first one, at once
    loop.turn()
    assert link.statistics().write_calls == 2
    assert [frame.payload for frame in frames_in(box.core, read_all(theirs))] == messages


def test_all_slots_are_gathered_into_one_write(box):
    """Write size matters most for throughput: full slots wait for each other while there is
    room."""
    loop, (ours, theirs) = box.loop(), box.pair(sndbuf=1 << 20)
    link = loop.open_link(ours.fileno(), 1, depth=4, slot_size=1_000)
    messages = [bytes([number]) * 900 for number in range(4)]
    assert link.send_many(messages) == (4, NEEDS_TURN)
    assert link.slots_pending == 4
    assert link.statistics().write_calls == 0
    assert link.send(bytes(80)) >= 0  # the four leave together, and make room
    assert link.statistics().write_calls == 1
    loop.turn()
    assert link.statistics().write_calls == 2
    assert [frame.payload for frame in frames_in(box.core, read_all(theirs))] == [
        *messages,
        bytes(80),
    ]


def test_sixty_four_slots_fit_one_write(box):
    """The deepest pipeline is the bound of the gathered write; one more piece would be refused by
    some systems."""
    loop, (ours, theirs) = box.loop(), box.pair(sndbuf=1 << 20)
    link = loop.open_link(ours.fileno(), 1, depth=64, slot_size=100, packing=False)
    assert link.send_many([bytes([number]) for number in range(64)]) == (64, NEEDS_TURN)
    loop.turn()
    assert link.statistics().write_calls == 1
    assert [frame.payload[0] for frame in frames_in(box.core, read_all(theirs))] == list(range(64))


def test_a_no_delay_frame_is_written_before_send_returns(box):
    """A round trip must not wait for the end of a tick that may be long."""
    loop, (ours, theirs) = box.loop(), box.pair()
    link = loop.open_link(ours.fileno(), 1)
    link.send_many([b"first", b"second"])
    assert link.send_frame(PING, b"", NO_DELAY) >= 0
    assert [(frame.type, frame.flags) for frame in frames_in(box.core, read_all(theirs))] == [
        (DATA, 0),
        (DATA, 0),
        (PING, 0),
    ]
    assert loop.next_timeout() == 0.0  # its result is still to be told
    assert (SENT, 1, 2, 0) in loop.turn()


def test_the_blocking_table_writes_each_slot_by_itself(box):
    """It is the measure of what gathering brings: one write for one slot, and nothing left when the
    turn is over."""
    loop, (ours, theirs) = box.loop(platform="posix_plain"), box.pair(sndbuf=1 << 20)
    link = loop.open_link(ours.fileno(), 1, depth=4, slot_size=500)
    for number in range(4):
        link.send(bytes([number]) * 400)
    events = loop.turn()
    assert link.statistics().write_calls == 4
    assert (SENT, 1, 4, 0) in events
    assert len(read_all(theirs)) == 4 * 412


def test_a_write_that_the_system_cuts_goes_on_where_it_stopped(box, rounds):
    """Bytes of a slot that are sent twice or skipped would shift every frame behind them."""
    loop, (ours, theirs) = box.loop(), box.pair(sndbuf=4_608)
    link = loop.open_link(ours.fileno(), 1)
    size = min(box.limit, 1_000)
    count = rounds(400, 4_000)  # each costs as much as there are
    sent = 0
    data = b""
    stalls = 0
    while len(data) < count * (size + FRAME_OVERHEAD):
        while sent < count and link.send(sent.to_bytes(4, "big") * (size // 4)) >= 0:
            sent += 1
        loop.turn()
        stalls += link.statistics().slots_pending > 0
        data += read_all(theirs)
        loop.turn()
    assert stalls > 10  # else nothing was cut
    assert [
        int.from_bytes(frame.payload[:4], "big") for frame in frames_in(box.core, data)
    ] == list(range(count))
    assert link.pending == 0


def test_a_blocked_link_makes_no_system_call_until_there_is_room(box):
    """Refused writes are what a slow reader costs; a sender that insists must not turn them into
    load."""
    loop, (ours, theirs) = box.loop(), box.pair(sndbuf=4_608)
    link = loop.open_link(ours.fileno(), 1)
    while link.send(bytes(min(box.limit, 1_000))) >= 0:
        pass
    loop.turn()  # tells of the slots that did leave
    while link.send(bytes(min(box.limit, 1_000))) >= 0:
        pass
    calls = link.statistics().write_calls
    assert (ours.fileno(), READ | WRITE) in loop.descriptors()
    for _ in range(100):
        assert link.send(bytes(min(box.limit, 1_000))) == ERR_WOULD_BLOCK
        assert loop.turn() == []
    assert link.statistics().write_calls == calls
    assert SENT in kinds(until(loop, lambda events: read_all(theirs) and events))


def test_interest_in_writing_ends_with_the_last_byte(box):
    """A link that stays interested in writing is always ready, and its loop never sleeps again."""
    loop, (ours, theirs) = box.loop(), box.pair(sndbuf=4_608)
    link = loop.open_link(ours.fileno(), 1)
    while link.send(bytes(min(box.limit, 1_000))) >= 0:
        pass
    while link.pending:
        read_all(theirs)
        loop.turn()
    read_all(theirs)
    loop.turn()
    assert (ours.fileno(), READ) in loop.descriptors()
    assert not select.select([loop.fd], [], [], 0)[0]


def test_messages_to_a_blocked_link_share_a_slot(box):
    """Each turn that launched a half-empty slot behind a blocked socket would waste one of few."""
    loop, (ours, theirs) = box.loop(), box.pair(sndbuf=4_608)
    link = loop.open_link(ours.fileno(), 1, depth=3, slot_size=4_000)
    big = bytes(900)
    while link.slots_pending < 2 or link.statistics().write_calls == 0:
        assert link.send(big) >= 0
        if link.slots_pending == 2:
            loop.turn()
    pending = link.slots_pending
    for _ in range(10):
        assert link.send(b"small") == 0  # no turn is needed: readiness brings one
        loop.turn()
    assert link.slots_pending <= pending + 1
    read_all(theirs)


def test_an_idle_link_holds_no_buffer(box):
    """A thousand idle peers must cost next to nothing."""
    loop, (ours, theirs) = box.loop(), box.pair()
    link = loop.open_link(ours.fileno(), 1)
    assert loop.pool.statistics().in_use == 0
    link.send_many([b"x", b"y"])
    assert loop.pool.statistics().in_use == 1
    loop.turn()
    assert loop.pool.statistics().in_use == 0
    assert read_all(theirs)
    another, (ours, theirs) = box.loop(), box.pair()
    assert another.open_link(ours.fileno(), 1).send(b"x") == LEFT
    assert another.pool.statistics().in_use == 0


def test_nothing_is_allocated_after_warm_up(box):
    """A steady stream must not wear on the allocator: 0 calls for 10,000 messages on the C side."""
    loop, (ours, theirs) = box.loop(), box.pair()
    link, other = loop.open_link(ours.fileno(), 1), loop.open_link(theirs.fileno(), 2)
    messages = [bytes([number]) * 60 for number in range(100)]

    def pump(count: int) -> None:
        got = sent = 0
        while got < count:
            if sent < count:
                sent += link.send_many(messages)[0]
            got += sum(
                len(event[3])
                for event in loop.turn(0.05 if sent >= count else 0)
                if event[0] == BATCH
            )

    pump(2_000)
    before = loop.pool.statistics().allocations
    pump(10_000)
    assert loop.pool.statistics().allocations == before
    assert other.statistics().frames_received >= 12_000


# What goes wrong


def test_a_reader_that_never_reads_ends_a_blocking_send_in_time(box):
    """The one call that may block has a bound of its own: the drain time-out of 5 s."""
    if os.environ.get("PEERTALK_SOAK") != "1":
        pytest.skip("did not run: it waits for the drain time-out of 5 s (PEERTALK_SOAK=1 runs it)")
    loop, (ours, _theirs) = box.loop(platform="posix_plain"), box.pair(sndbuf=4_608)
    link = loop.open_link(ours.fileno(), 1)
    while link.send(bytes(min(box.limit, 1_000))) >= 0:
        pass
    assert (CLOSED, 1, ERR_TIMEOUT, 0) in until(loop, lambda events: CLOSED in kinds(events))


def test_a_broken_pipe_keeps_its_number(box):
    """The system's number is the only hint of what happened to a connection."""
    loop, (ours, theirs) = box.loop(), box.pair()
    link = loop.open_link(ours.fileno(), 1)
    theirs.close()
    link.send(b"into the void")
    events = until(loop, lambda events: CLOSED in kinds(events))
    assert events[-1] == (CLOSED, 1, ERR_CONNECTION_CLOSED, errno.EPIPE)
    assert link.pending == 1
    assert link.send(b"after") == ERR_NOT_CONNECTED


def test_a_failure_inside_send_is_told_by_a_turn_that_comes_by_itself(box):
    """send() refused and gave no hint, so the loop's descriptor must become readable: else a driver
    sleeps on a dead link."""
    loop, (ours, theirs) = box.loop(), box.pair()
    link = loop.open_link(ours.fileno(), 1, depth=1, slot_size=100)
    assert link.send(bytes(80)) == LEFT
    assert link.send(bytes(80)) == NEEDS_TURN
    read_all(theirs)
    theirs.close()
    assert link.send(bytes(80)) == ERR_NOT_CONNECTED
    assert select.select([loop.fd], [], [], PATIENCE)[0]
    assert (CLOSED, 1, ERR_CONNECTION_CLOSED, errno.EPIPE) in until(
        loop, lambda events: CLOSED in kinds(events)
    )


@pytest.mark.parametrize("epoll", [True, False], ids=["epoll", "poll"])
def test_a_hang_up_of_a_paused_link_does_not_wake_the_loop_again_and_again(box, epoll):
    """A hang-up cannot be masked: told level-triggered it would keep a processor busy for as long
    as the pause lasts."""
    loop, (ours, theirs) = box.loop(epoll=epoll), box.pair()
    link = loop.open_link(ours.fileno(), 1)
    theirs.sendall(box.core.encode_frame(DATA, b"last words"))
    link.pause()
    theirs.close()
    assert loop.turn(0.05) == []  # the hang-up itself
    assert_sleeps(loop)
    link.resume()
    events = until(loop, lambda events: FINISHED in kinds(events))
    assert events[0] == (BATCH, 1, 10, [b"last words"])
    assert FINISHED in kinds(events)


@pytest.mark.parametrize("epoll", [True, False], ids=["epoll", "poll"])
def test_a_link_that_is_finished_does_not_spin_either(box, epoll):
    """Between FINISHED and the close that follows a node may still send for minutes."""
    loop, (ours, theirs) = box.loop(epoll=epoll), box.pair()
    loop.open_link(ours.fileno(), 1)
    theirs.close()
    until(loop, lambda events: FINISHED in kinds(events))
    loop.turn(0.02)
    assert_sleeps(loop)


def test_a_starved_link_is_read_as_soon_as_there_is_memory(box):
    """Its bytes stay in the kernel meanwhile, which slows the sender: backpressure, no loss, and no
    busy loop."""
    loop, (ours, theirs) = box.loop(), box.pair()
    loop.open_link(ours.fileno(), 1)
    stream = b"".join(box.core.encode_frame(DATA, bytes([number]) * 100) for number in range(5))
    loop.pool.fail_at(1)
    theirs.sendall(stream)
    for _ in range(5):
        assert loop.turn() == []
    assert 0 < loop.next_timeout() <= 0.01
    assert not select.select([loop.fd], [], [], 0)[0]
    loop.pool.fail_at(0)
    events = until(loop, lambda events: events)
    assert [payload[0] for event in events for payload in event[3]] == list(range(5))
    # Nobody asks any more: else each timeout is one of 10 ms. On a slow machine the first that is
    # seen may be the end of the pool's rest.
    until(loop, lambda events: loop.next_timeout() > 0.01)


def test_a_cut_frame_uses_the_spare_buffer_and_gives_it_back_without_memory(box):
    """What was read is never dropped: a link is read only with a buffer in hand for its cut frame.
    The rest of that frame needs no other, so the one that there is comes back and goes round."""
    loop, (ours, theirs) = box.loop(), box.pair()
    loop.open_link(ours.fileno(), 1)
    frame = box.core.encode_frame(DATA, bytes(range(200)))
    theirs.sendall(frame)
    until(loop, lambda events: events)  # from here a spare one is there
    loop.pool.fail_at(1)
    theirs.sendall(frame + frame[:50])
    assert until(loop, lambda events: events)[0][3] == [bytes(range(200))]
    theirs.sendall(frame[50:] + frame)
    events = until(loop, lambda events: sum(len(event[3]) for event in events) == 2)
    assert {payload for event in events for payload in event[3]} == {bytes(range(200))}


def test_a_descriptor_is_watched_once(box):
    """epoll knows descriptors, not handles: a second link on the same one would steal the first
    one's events."""
    loop, (ours, _theirs) = box.loop(), box.pair()
    loop.open_link(ours.fileno(), 1)
    with pytest.raises(errors.InvalidArgument):
        loop.open_link(ours.fileno(), 2)
    with pytest.raises(errors.InvalidArgument):
        loop.watch(ours.fileno(), 3, READ)
    with pytest.raises(errors.PlatformError):
        loop.watch(1 << 20, 4, READ)


def test_a_loop_without_descriptors_says_so(box):
    """Out of descriptors is the system's refusal, not a programming error."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = os.dup(0)
    os.close(highest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
    try:
        with pytest.raises(errors.PlatformError, match="open files"):
            box.core.Loop()
        with pytest.raises(errors.PlatformError):
            box.core.Loop(epoll=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptor_is_left_behind(box):
    """A node that opens and closes loops must not run out of descriptors."""
    before = (
        sorted(os.listdir("/proc/self/fd"))
        if os.path.isdir("/proc/self/fd")
        else pytest.skip("did not run: there is no /proc here")
    )
    for epoll in (True, False):
        loop = box.core.Loop(epoll=epoll)
        loop.wake()
        loop.turn()
        loop.close()
        loop.wake()
    assert sorted(os.listdir("/proc/self/fd")) == before


# Waiting


@pytest.mark.threads
@pytest.mark.parametrize("epoll", [True, False], ids=["epoll", "poll"])
def test_no_wake_is_lost_between_two_waits(box, epoll, rounds):
    """A worker sleeps on its orders: one lost wake is an order that is never carried out."""
    loop = box.loop(epoll=epoll)
    orders: list[int] = []
    done: list[int] = []
    count = rounds(2_000, 200_000)

    def give() -> None:
        for number in range(count):
            orders.append(number)
            loop.wake()

    giver = threading.Thread(target=give)
    giver.start()
    give_up = time.monotonic() + PATIENCE + count / 1_000
    while len(done) < count:
        started = time.monotonic()
        loop.turn(PATIENCE)
        assert time.monotonic() - started < PATIENCE, (
            f"after {len(done)} of {count} orders a wait was ended by its time, not by a wake"
        )
        assert time.monotonic() < give_up
        while orders:
            done.append(orders.pop(0))
    giver.join()
    assert done == list(range(count))


@pytest.mark.parametrize("epoll", [True, False], ids=["epoll", "poll"])
def test_every_wake_ends_one_wait(box, epoll):
    """Wakes are folded while one is on its way; the fold must open again when it has arrived."""
    loop = box.loop(epoll=epoll)
    for _ in range(3):
        loop.wake()
        loop.wake()
        started = time.monotonic()
        assert loop.turn(PATIENCE) == []
        assert time.monotonic() - started < PATIENCE
        assert_sleeps(loop)


def test_a_turn_serves_no_more_than_its_budget(box):
    """The bound of a turn is what keeps an application's own loop responsive under a flood."""
    loop = box.loop(io_budget=4)
    ends = [box.pair() for _ in range(10)]
    for tag, (ours, theirs) in enumerate(ends):
        loop.open_link(ours.fileno(), tag)
        theirs.sendall(box.core.encode_frame(DATA, b"hello"))
    served = []
    for _ in range(5):
        events = loop.turn()
        assert len(events) <= 4
        served += [event[1] for event in events]
    assert sorted(served) == list(range(10))


@pytest.mark.parametrize("epoll", [True, False], ids=["epoll", "poll"])
def test_links_that_are_always_ready_share_the_turns_evenly(box, epoll):
    """A few loud peers must not silence the others: the kernel's order, or the round of poll, is
    the queue."""
    loop = box.loop(io_budget=2, epoll=epoll)
    frame = box.core.encode_frame(DATA, b"x")
    ends = [box.pair() for _ in range(6)]
    for tag, (ours, _) in enumerate(ends):
        loop.open_link(ours.fileno(), tag)
    served = dict.fromkeys(range(6), 0)
    for _, theirs in ends:
        theirs.sendall(frame)
    for _ in range(60):
        for event in loop.turn():
            served[event[1]] += 1
            ends[event[1]][1].sendall(frame)
    assert sum(served.values()) == 120
    assert min(served.values()) >= 19


def test_events_that_find_no_room_come_in_a_later_turn(box):
    """Hundreds of links may have something to tell at once, and the array of events has an end."""
    loop = box.loop()
    ends = [box.pair() for _ in range(300)]
    links = [
        loop.open_link(ours.fileno(), tag, slot_size=300, depth=1)
        for tag, (ours, _) in enumerate(ends)
    ]
    timers = [loop.timer(1_000 + number) for number in range(300)]
    for link, timer in zip(links, timers, strict=True):
        link.send(b"to all")
        timer.arm(0)
    events = until(loop, lambda events: len(events) >= 600)
    assert sorted(event[1] for event in events if event[0] == SENT) == list(range(300))
    assert sorted(event[1] for event in events if event[0] == TIMER) == list(range(1_000, 1_300))


def test_a_watch_tells_of_a_connection_that_is_refused(box):
    """Opening a connection is watched for writing; a refusal must show there too."""
    loop = box.loop()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
    dialling = socket.socket()
    box.sockets.append(dialling)
    dialling.setblocking(False)
    assert dialling.connect_ex(address) in (errno.EINPROGRESS, errno.ECONNREFUSED)
    watch = loop.watch(dialling.fileno(), 5, WRITE)
    kind, tag, mask, _ = until(loop, lambda events: events)[0]
    assert (kind, tag) == (READY, 5)
    assert mask & WRITE
    watch.close()
    assert loop.turn() == []
