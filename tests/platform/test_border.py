"""The border: its native functions say and tell what the reference core does, and never crash, leak
or lose.

Truth: the reference core, reference counts, and what was put in.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import random
import socket
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from peertalk import errors
from peertalk._core.link import Link
from peertalk._core.values import (
    BATCH,
    BATCHED,
    CLOSED,
    DATA,
    FINISHED,
    FRAGMENT,
    FRAME,
    NEEDS_TURN,
    PING,
    READ,
    SENT,
    YIELD,
)
from peertalk._numbers import (
    ERR_BUSY,
    ERR_INVALID_PARAM,
    ERR_MESSAGE_TOO_LARGE,
    ERR_NO_MEMORY,
    ERR_NOT_CONNECTED,
    ERR_WOULD_BLOCK,
)

try:
    import _testcapi
except ImportError:  # not in every build of Python
    _testcapi = None

needs_faults = pytest.mark.skipif(
    _testcapi is None,
    reason="did not run: this Python has no _testcapi to make allocations fail with",
)


class Box:
    """One loop of a core, with sockets that are closed behind the test."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.loop = core.Loop()
        self.sockets: list[socket.socket] = []

    def pair(self) -> tuple[socket.socket, socket.socket]:
        ends = socket.socketpair()
        for end in ends:
            end.setblocking(False)
            self.sockets.append(end)
        return ends

    def link(self, tag: int = 1, **arguments: Any) -> tuple[Any, socket.socket]:
        ours, theirs = self.pair()
        return self.loop.open_link(ours.fileno(), tag, **arguments), theirs

    def close(self) -> None:
        self.loop.close()
        for each in self.sockets:
            each.close()


@pytest.fixture
def box(c_core: Any) -> Iterator[Box]:
    made = Box(c_core)
    yield made
    made.close()


# The reference core says and tells the same


def arrive(end: socket.socket, data: bytes) -> None:
    """Send it to a link, unless this end was shut."""
    with contextlib.suppress(BrokenPipeError):
        end.sendall(data)


def run_script(core: Any, seed: int) -> list[Any]:
    """A random conversation, written down as what each call said and each turn told."""
    rng = random.Random(seed)
    box = Box(core)
    told: list[Any] = []
    try:
        links = []
        ends = []
        near, far = box.pair()
        box.loop.watch(near.fileno(), 300, READ)
        for tag in range(3):
            link, theirs = box.link(tag * 100, slot_size=rng.choice((300, 1_100, 4_000)), depth=2)
            links.append(link)
            ends.append(theirs)
        for _ in range(60):
            which = rng.randrange(3)
            link, theirs = links[which], ends[which]
            size = rng.choice((0, 1, 20, 280, 290, 1_000))
            step = rng.randrange(9)
            if step == 0:
                told.append(link.send(rng.randbytes(size)))
            elif step == 1:
                told.append(link.send(bytearray(size)))
            elif step == 2:
                told.append(
                    link.send_many([rng.randbytes(size) for _ in range(5)], rng.randrange(4))
                )
            elif step == 3:
                told.append(
                    link.send_frame(rng.randrange(0, 9), bytes(size), rng.choice((0, 4, 0x10)))
                )
            elif step < 7:
                for _ in range(rng.randrange(1, 6)):
                    type, flags = rng.choice(
                        (
                            (DATA, 0),
                            (DATA, 0),
                            (DATA, 1),
                            (DATA, FRAGMENT),
                            (DATA, BATCHED),
                            (PING, 0),
                        )
                    )
                    arrive(
                        theirs,
                        core.encode_frame(type, rng.randbytes(size), flags, rng.randrange(256)),
                    )
            elif step == 7 and rng.random() < 0.2:
                arrive(theirs, b"garbage beyond doubt")
            elif step == 7 and rng.random() < 0.2:
                theirs.shutdown(socket.SHUT_RDWR)
            elif step == 8:  # several links, and a descriptor that is only watched, in one turn
                far.send(b"x")
                for number, end in enumerate(ends):
                    arrive(end, core.encode_frame(DATA, rng.randbytes(20), 0, number))
            # which of two ready links comes first is the kernel's affair
            told.append(sorted(box.loop.turn(), key=lambda event: event[1]))
            for end in (near, *ends):
                with contextlib.suppress(BlockingIOError):
                    told.append(end.recv(1 << 16))
        # how many system calls that took, and slots, is each core's own affair
        told.append(
            [
                link.statistics()._replace(write_calls=0, read_calls=0, slots_high_water=0)
                for link in links
            ]
        )
    finally:
        box.close()
    return told


@pytest.mark.parametrize("seed", range(12))
def test_the_reference_core_says_and_tells_the_same(c_core, reference_core, seed):
    """It is what other interpreters run, and it shares nothing with the native functions."""
    assert run_script(c_core, seed) == run_script(reference_core, seed)


def test_batches_are_cut_where_plain_messages_end(box):
    """Consecutive DATA frames of one link share a tuple; any other frame keeps its place between
    them."""
    _link, theirs = box.link(7)
    encode = box.core.encode_frame
    frames = [
        (DATA, b"a", 0),
        (DATA, b"bc", 1),
        (PING, b"", 0),
        (DATA, b"d", 0),
        (DATA, b"e", FRAGMENT),
        (DATA, b"f", 0),
        (DATA, b"g", BATCHED),
    ]
    theirs.sendall(b"".join(encode(type, payload, flags, 3) for type, payload, flags in frames))
    assert box.loop.turn(1.0) == [
        (BATCH, 7, 3, [b"a", b"bc"]),
        (FRAME, 7, PING | 3 << 16, b""),
        (BATCH, 7, 1, [b"d"]),
        (FRAME, 7, DATA | FRAGMENT << 8 | 3 << 16, b"e"),
        (BATCH, 7, 1, [b"f"]),
        (FRAME, 7, DATA | BATCHED << 8 | 3 << 16, b"g"),
    ]


# Arguments


class Letters(bytes):
    pass


VIEW = memoryview(b"_xyz_")[1:4]
BUFFERS = {
    "bytes": b"xyz",
    "subclass": Letters(b"xyz"),
    "bytearray": bytearray(b"xyz"),
    "view": memoryview(b"xyz"),
    "part": VIEW,
}


@pytest.mark.parametrize("payload", BUFFERS.values(), ids=BUFFERS)
def test_any_buffer_can_be_sent(box, payload):
    """The caller's bytes need not become a bytes object first."""
    link, theirs = box.link()
    assert link.send(payload) >= 0
    assert link.send_many([payload, payload])[0] == 2
    box.loop.turn()
    data = theirs.recv(1_000)
    assert data.count(b"xyz") == 3
    assert len(data) == 3 * 15


@pytest.mark.parametrize(
    "wrong",
    ["text", 5, None, memoryview(b"abcdef")[::2], [b"x"]],
    ids=["text", "number", "None", "strided", "list"],
)
def test_a_wrong_type_is_refused_without_a_trace(box, wrong):
    """It must not consume a sequence number, and no message of a list may be lost from the
    count."""
    link, _theirs = box.link()
    with pytest.raises(TypeError):
        link.send(wrong)
    with pytest.raises(TypeError):
        link.send_many([wrong, b"x"])
    assert link.pending == 0
    assert link.send_many([b"x", b"y", wrong, b"z"]) == (2, ERR_INVALID_PARAM)
    assert link.pending == 2
    with pytest.raises(TypeError):
        link.send_many([b"x", b"y", wrong, b"z"], 2)


def test_a_list_of_bytes_holds_nothing_else(core):
    """A class of the program's own may say another length than its bytes have."""

    class Own(bytes):
        pass

    for wrong in (Own(b"own"), bytearray(b"array"), "text", None):
        for place in range(3):
            items = [b"", b"some", b"more"]
            assert core.all_bytes(items)
            items[place] = wrong
            assert not core.all_bytes(items)
    assert core.all_bytes([])


def test_send_many_takes_lists_alone(box):
    """A tuple or an iterator would have to be copied first, once for each call."""
    link, _theirs = box.link()
    for wrong in ((b"x",), b"x", None, iter([b"x"])):
        with pytest.raises(TypeError):
            link.send_many(wrong)
    with pytest.raises(ValueError, match="negative"):
        link.send_many([b"x"], -1)
    assert link.send_many([]) == (0, 0)
    assert link.send_many([b"x"], 5) == (0, 0)


def test_send_many_says_where_it_stopped_and_goes_on_from_there(box):
    """What is refused is offered again: no message twice, none left out."""
    link, theirs = box.link(depth=2, slot_size=100)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    messages = [number.to_bytes(4, "big") * 10 for number in range(20_000)]
    done = 0
    data = bytearray()
    refused = 0
    while len(data) < len(messages) * 52:
        accepted, code = link.send_many(messages, done)
        done += accepted
        assert code >= 0 if done == len(messages) else code == ERR_WOULD_BLOCK
        refused += code == ERR_WOULD_BLOCK
        while True:
            try:
                data += theirs.recv(1 << 20)
            except BlockingIOError:
                break
        box.loop.turn()
    assert refused
    assert [bytes(data[at + 10 : at + 50]) for at in range(0, len(data), 52)] == messages


def test_hints_of_many_are_the_sum_of_all(box):
    """A driver looks at one number for the whole list."""
    link, _theirs = box.link()
    assert link.send_many([b"x"] * 255) == (255, NEEDS_TURN)
    assert link.send_many([b"x"]) == (1, YIELD)


def test_a_message_above_the_limit_is_refused_by_its_code(box):
    """A link judges by max_message, which the other side may have lowered."""
    link, _theirs = box.link()
    assert link.send(bytes(1 << 20)) == ERR_MESSAGE_TOO_LARGE
    link.max_message = 10
    assert link.send(bytes(10)) >= 0
    assert link.send(bytes(11)) == ERR_MESSAGE_TOO_LARGE
    assert link.send_many([b"", bytes(11), b""]) == (1, ERR_MESSAGE_TOO_LARGE)
    with pytest.raises(errors.InvalidArgument):
        link.max_message = -1


# Life and death


def test_sending_on_a_closed_link_is_refused_even_when_all_else_is_gone(c_core):
    """A bound send that somebody kept must never touch memory that was freed."""
    box = Box(c_core)
    link, _theirs = box.link()
    send, send_many = link.send, link.send_many
    link.close()
    assert send(b"x") == ERR_NOT_CONNECTED
    box.close()
    del link, box
    gc.collect()
    assert send(b"x") == ERR_NOT_CONNECTED
    assert send_many([b"x"]) == (0, ERR_NOT_CONNECTED)
    assert send(bytearray(1 << 20)) == ERR_NOT_CONNECTED


def test_a_closed_loop_turns_no_more(box):
    """The context is gone: a late turn is the caller's mistake, said so."""
    turn = box.loop.turn
    box.loop.close()
    with pytest.raises(errors.InvalidState):
        turn()
    with pytest.raises(errors.InvalidState):
        box.loop.timer(1)


def test_a_loop_that_is_dropped_frees_itself_and_its_links(c_core):
    """No cycle may keep loops alive that nobody can reach: a bound function owns memory, never the
    handle."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop = c_core.Loop()
        link = loop.open_link(ours.fileno(), 1)
        link.send(b"x")
        timer = loop.timer(1)
        timer.arm(100)
        seen, number = (weakref.ref(loop), weakref.ref(timer)), id(link)
        del loop, link, timer
        gc.collect()
        assert [each() for each in seen] == [None, None]
        assert not any(type(each) is Link and id(each) == number for each in gc.get_objects())


def test_payloads_are_held_once(box):
    """One reference too many leaks every message, one too few crashes later."""
    link, theirs = box.link()
    payload = b"a payload that nobody else holds"
    before = sys.getrefcount(payload)
    messages = [payload] * 10
    link.send(payload)
    link.send_many(messages)
    messages.clear()
    assert sys.getrefcount(payload) == before
    theirs.sendall(box.core.encode_frame(DATA, b"another payload") * 2)
    events = [event for event in box.loop.turn(1.0) if event[0] == BATCH]
    payloads = events[0][3]
    del events
    counts = sys.getrefcount(payloads), sys.getrefcount(payloads[0])
    # the one here, and the argument of the call; the list's own, and again the argument
    assert counts == (2, 2)


def test_a_burst_leaves_no_memory_behind(box):
    """A node must not keep for weeks what its busiest turn needed: pointers to 50,000 payloads are
    400 KB for each loop."""
    _, theirs = box.link()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    frame = box.core.encode_frame(DATA, bytes(16))
    loop = box.loop
    loop.turn()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        left = 20_000
        theirs.setblocking(False)
        waiting = memoryview(frame * left)
        while left:
            with contextlib.suppress(BlockingIOError):
                waiting = waiting[theirs.send(waiting) :]
            brought = sum(len(event[3]) for event in loop.turn(0.1) if event[0] == BATCH)
            left -= brought
        del waiting
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 16_384 * 8 + 4_096 * 40 + 50_000
    finally:
        tracemalloc.stop()


def test_turns_leave_no_objects_behind(box):
    """A loop turns for weeks."""
    link, theirs = box.link()
    stream = box.core.encode_frame(DATA, b"m" * 50) * 20 + box.core.encode_frame(PING, b"p" * 50)

    def work() -> None:
        for _ in range(50):
            theirs.sendall(stream)
            link.send_many([b"x" * 40] * 10)
            while not any(event[0] == FRAME for event in box.loop.turn(1.0)):
                pass
            theirs.recv(1 << 20)

    work()
    gc.collect()
    before = sys.getallocatedblocks()
    work()
    gc.collect()
    assert abs(sys.getallocatedblocks() - before) < 100


def test_links_that_end_leave_nothing_that_was_bound_to_them(box):
    """Neither owners nor the type: peers come and go for weeks, and a bound
    send that stays holds the whole loop."""
    ours, _ = box.pair()
    border, memory = box.loop._binding.border, box.loop._memory

    def work() -> None:
        for tag in range(200):
            link = box.loop.open_link(ours.fileno(), tag)
            assert link.send_many([]) == (0, 0)
            link.close()
            with pytest.raises(ValueError):
                border.Link(0, memory)

    def count() -> tuple[int, ...]:
        gc.collect()
        return sys.getallocatedblocks(), *map(sys.getrefcount, (border, memory, border.Link))

    work()
    before = count()
    work()
    after = count()
    assert after[1:] == before[1:] and abs(after[0] - before[0]) < 100


@needs_faults
def test_no_memory_in_a_turn_loses_nothing_but_says_so(c_core):
    """Each allocation of a turn fails once: its link may end with ERR_NO_MEMORY, the turn may
    raise, but nothing that arrived is dropped."""
    encode = c_core.encode_frame
    payloads = [bytes([number]) * 40 for number in range(30)]
    outcomes = set()
    for attempt in range(1, 200):
        box = Box(c_core)
        link, theirs = box.link(300)
        link.send(b"x")
        theirs.sendall(
            b"".join(encode(DATA, payload) for payload in payloads[:20]) + encode(PING, b"p" * 40)
        )
        theirs.sendall(b"".join(encode(DATA, payload) for payload in payloads[20:]))
        turn = box.loop._turn
        events: list[Any] = []
        raised = False
        _testcapi.set_nomemory(attempt, attempt + 1)
        try:
            turn(events)
        except MemoryError:
            raised = True
        finally:
            _testcapi.remove_mem_hooks()
        for _ in range(3):
            turn(events)
        seen = [payload for event in events if event[0] == BATCH for payload in event[3]]
        assert seen == payloads[: len(seen)]
        ended = [event for event in events if event[0] == CLOSED]
        assert ended in ([], [(CLOSED, 300, ERR_NO_MEMORY, 0)])
        assert (len(seen) == 30) is not bool(ended)
        assert (SENT, 300, 1, 0) in events
        outcomes.add((raised, bool(ended)))
        box.close()
        if not raised and not ended:
            break
    else:
        pytest.fail("every attempt failed: the fault was not injected where it was meant")
    assert outcomes == {(True, False), (False, True), (False, False)}


@needs_faults
def test_no_memory_in_a_send_is_an_exception_or_a_success(c_core):
    """A failed result must not be a crash; what was accepted is counted all the same."""
    box = Box(c_core)
    link, _theirs = box.link()
    link.send(b"warm")
    send_many = link.send_many
    messages = [b"x"] * 300
    accepted = link.pending
    for attempt in range(1, 10):
        raised = False
        result = None
        _testcapi.set_nomemory(attempt, attempt + 1)
        try:
            result = send_many(messages)
        except MemoryError:
            raised = True
        finally:
            _testcapi.remove_mem_hooks()
        assert raised or result in ((300, YIELD), (300, YIELD | NEEDS_TURN))
        assert link.pending == accepted + 300
        accepted += 300
        box.loop.turn()
        accepted = link.pending
        if not raised:
            break
    else:
        pytest.fail("every attempt failed")
    box.close()


@needs_faults
def test_no_memory_while_binding_leaves_nothing(c_core):
    """A link that could not be bound must be closed again, or its loop never closes."""
    box = Box(c_core)
    ours, _theirs = box.pair()
    for attempt in range(1, 200):
        _testcapi.set_nomemory(attempt, attempt + 1)
        try:
            link = box.loop.open_link(ours.fileno(), 1)
        except (MemoryError, errors.OutOfMemory):
            continue
        finally:
            _testcapi.remove_mem_hooks()
        assert link.send(b"x") >= 0
        break
    else:
        pytest.fail("every attempt failed")
    box.close()
    assert box.loop.fd == -1


def test_a_list_that_shrinks_while_it_is_sent_is_no_danger(box):
    """A buffer's own code may run in the middle of send_many; from Python 3.12 on a class can have
    one."""
    link, _theirs = box.link()
    messages: list[Any] = []

    class Mean:
        def __buffer__(self, flags: int) -> memoryview:
            messages.clear()
            return memoryview(b"mean")

    messages += [b"first", Mean(), *[b"rest"] * 50]
    accepted, code = link.send_many(messages)
    if sys.version_info >= (3, 12):
        assert (accepted, code) == (2, NEEDS_TURN)
    else:
        assert (accepted, code) == (1, ERR_INVALID_PARAM)


def test_a_buffer_that_closes_its_link_is_no_danger(box):
    """Likewise, with the link itself."""
    if sys.version_info < (3, 12):
        pytest.skip("did not run: before Python 3.12 no class written in Python has a buffer")
    link, _theirs = box.link()

    class Mean:
        def __buffer__(self, flags: int) -> memoryview:
            link.close()
            return memoryview(b"mean")

    assert link.send_many([b"first", Mean(), b"last"]) == (1, ERR_NOT_CONNECTED)


def test_a_turn_inside_a_turn_is_refused(box):
    """Telling makes Python objects, and the collector may run anybody's code then: a turn within a
    turn would tell the same things twice."""
    loop = box.loop
    _link, theirs = box.link()
    refused: list[Any] = []

    class Meddler:
        def __del__(self) -> None:
            try:
                loop.turn()
            except errors.PeerTalkError as error:
                refused.append(error.code)

    theirs.sendall((box.core.encode_frame(DATA, b"data") + box.core.encode_frame(PING, b"")) * 250)
    gc.disable()
    try:
        for _ in range(1_000):
            meddler = Meddler()
            meddler.myself = meddler  # type: ignore[attr-defined]
        del meddler
    finally:
        gc.enable()
    # one of its lists, of more than Python keeps ready, makes the collector run
    events = loop.turn()
    gc.collect()
    assert [event[0] for event in events] == [BATCH, FRAME] * 250
    assert set(refused) <= {ERR_BUSY}
    assert refused or sys.version_info >= (3, 12)  # later collectors run between bytecodes only


def test_the_border_refuses_addresses_that_are_none(c_core):
    """It is called with numbers from Python, so the obvious mistakes must not crash."""
    border = c_core.Loop.args[0].border
    with pytest.raises(ValueError, match="address"):
        border.Link(0, None)
    for wrong in ((1,), ("text", None), (1, None, None)):
        with pytest.raises(TypeError):
            border.Link(*wrong)
    with pytest.raises(TypeError):
        border.bind_loop("text", 1, 2, None)


def test_nothing_is_read_past_the_end_of_a_stream(box):
    """FINISHED comes once, after the last batch."""
    _link, theirs = box.link(4)
    theirs.sendall(box.core.encode_frame(DATA, b"end"))
    theirs.shutdown(socket.SHUT_WR)
    events: list[Any] = []
    while FINISHED not in [event[0] for event in events]:
        events += box.loop.turn(1.0)
    assert events == [(BATCH, 4, 3, [b"end"]), (FINISHED, 4, 0, 0)]


def test_addresses_fit_a_pointer():
    """Addresses cross the border as plain numbers."""
    assert ctypes.sizeof(ctypes.c_void_p) == ctypes.sizeof(ctypes.c_size_t)


# A message and its number


class Asker:
    """What a peer is to the sender."""

    def __init__(self, quick: Any) -> None:
        self.quick, self.before, self.accepted = quick, None, 7


@pytest.fixture
def asker(c_core: Any) -> Iterator[tuple[Any, Asker, socket.socket]]:
    """Something that sends, a peer on a link of a worker, and the other end."""
    home = c_core.Loop()
    worker = c_core.Worker(home)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    link = worker.open_link(ours.fileno(), 1)
    try:
        yield worker.sender("quick", "before", "accepted", print), Asker(link.native), theirs
    finally:
        home.close()
        ours.close()
        theirs.close()


@pytest.mark.threads
def test_a_message_is_sent_and_numbered_in_one_call_or_nothing_happens(c_core, asker, box):
    send, peer, theirs = asker
    frame = c_core.encode_frame(DATA, b"x")
    assert send(peer, b"x", False) == 8 == peer.accepted and theirs.recv(len(frame)) == frame
    for refused in (bytearray(b"x"), "x", None, bytes(100_000), type("Bytes", (bytes,), {})(b"x")):
        assert send(peer, refused, True) == 0
    peer.before = ()
    assert send(peer, b"x", False) == 0
    peer.before, native = None, peer.quick
    for quick in (None, 1):
        peer.quick = quick
        assert send(peer, b"x", False) == 0
    peer.quick, peer.accepted = native, "many"
    with pytest.raises(TypeError):
        send(peer, b"x", False)
    with pytest.raises(AttributeError):
        send(object(), b"x", False)
    for arguments in ((), (peer, b"x"), (peer, b"x", False, 1)):
        with pytest.raises(TypeError):
            send(*arguments)
    with pytest.raises(TypeError):
        box.loop._binding.border.bind_numbered("quick", "before", "accepted")
    peer.accepted = 8
    assert send(peer, b"y", True) == 9
    theirs.settimeout(20.0)
    frame = c_core.encode_frame(DATA, b"y", sequence=1)
    assert theirs.recv(len(frame)) == frame


def test_on_a_link_of_a_loop_its_owner_sends_and_is_given_the_hints(c_core, box):
    hints: list[int] = []
    send = box.loop.sender("quick", "before", "accepted", hints.append)
    link, theirs = box.link()
    peer = Asker(link.native)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(send, peer, b"x", True).result() == 0
    size = len(c_core.encode_frame(DATA, b"x"))
    assert send(peer, b"x", True) == 8 == peer.accepted and len(theirs.recv(size)) == size
    assert hints and all(hint > 0 for hint in hints)
    while send(peer, bytes(1000), True):
        pass  # until there is no room, for which nobody else makes any
    assert peer.accepted > 8

    def strike(_: int) -> None:
        raise KeyError

    send, peer = box.loop.sender("quick", "before", "accepted", strike), Asker(box.link()[0].native)
    with pytest.raises(KeyError):
        send(peer, b"x", True)
    assert peer.accepted == 8


@pytest.mark.threads
def test_without_room_it_is_waited_for_a_moment_or_not_at_all(asker):
    """Who reads at the other end makes room; who may not wait hears at once that there is none."""
    send, peer, theirs = asker
    theirs.settimeout(20.0)
    last = 7
    while number := send(peer, b"x" * 1000, False):
        last += 1
        assert number == last == peer.accepted
    while number := send(peer, b"x" * 1000, True):  # until the system has no room either
        last = number
    came = 0

    def read() -> None:
        nonlocal came
        while came < 4_000_000:
            came += len(theirs.recv(65_536))

    with ThreadPoolExecutor(1) as other:
        reading = other.submit(read)
        while not reading.done():
            last += send(peer, b"x" * 1000, True) > 0
            assert peer.accepted == last
        reading.result()


@pytest.mark.threads
@pytest.mark.parametrize("ends", ["link", "worker"])
def test_who_waits_for_room_hears_of_the_end(c_core, ends):
    """Neither waits for the other for ever, and nothing is used that has gone."""
    for _ in range(20):
        home = c_core.Loop()
        worker = c_core.Worker(home)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        link = worker.open_link(ours.fileno(), 1)
        send, peer = worker.sender("quick", "before", "accepted", print), Asker(link.native)
        begun = threading.Event()

        def hammer(send: Any = send, peer: Asker = peer, begun: threading.Event = begun) -> None:
            while send(peer, b"x" * 1000, True):
                pass
            begun.set()
            while peer.quick is not None:
                send(peer, b"x" * 1000, True)

        with ThreadPoolExecutor(2) as others:
            waiting = [others.submit(hammer) for _ in range(2)]
            assert begun.wait(20.0)
            if ends == "link":
                theirs.close()
            peer.quick = None
            home.close()
            for each in waiting:
                each.result(20.0)
        ours.close()
        theirs.close()


@needs_faults
@pytest.mark.threads
def test_without_memory_for_its_number_a_message_is_not_sent(asker):
    send, peer, _theirs = asker
    peer.accepted = 1_000_000
    for attempt in range(20):
        before, raised = peer.accepted, False
        _testcapi.set_nomemory(attempt, attempt + 1)
        try:
            send(peer, b"x", False)
        except MemoryError:
            raised = True
        finally:
            _testcapi.remove_mem_hooks()
        assert peer.accepted == before + (not raised)
        if not raised:
            break
    else:
        pytest.fail("every attempt failed")
    assert attempt > 0
