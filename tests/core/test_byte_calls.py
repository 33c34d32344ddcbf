"""What one call reads and writes of a socket that carries bytes: on each core, against the kernel;
and the compiled ones against the one in Python."""

from __future__ import annotations

import array
import contextlib
import errno
import gc
import mmap
import os
import socket

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from peertalk import errors
from peertalk._core.values import BUFFER_MAX, NOT_READY

SHARED = 4_096
"""Bytes of the shared buffer here."""


@pytest.fixture(scope="module")
def calls(core):
    return core.byte_calls(SHARED)


@pytest.fixture
def pair():
    """Two ends of a connection inside the kernel, none of which blocks."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


def tcp():
    """Two ends of a TCP connection, none of which blocks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def closed_number():
    """A descriptor that was open, and is not."""
    with socket.socket() as gone:
        return gone.fileno()


# Receiving


def test_bytes_come_as_they_are_and_then_not_now_and_at_last_the_end(calls, pair):
    """Three answers that a reader has to tell apart."""
    ours, theirs = pair
    assert calls.receive(ours.fileno(), 10) == NOT_READY == -errno.EAGAIN
    theirs.send(b"hello, world")
    assert calls.receive(ours.fileno(), 5) == b"hello"
    assert calls.receive(ours.fileno(), 100) == b", world"
    assert calls.receive(ours.fileno(), 100) == NOT_READY
    theirs.send(b"bye")
    theirs.shutdown(socket.SHUT_WR)
    assert calls.receive(ours.fileno(), 100) == b"bye"
    for _ in range(2):
        assert calls.receive(ours.fileno(), 100) == b""


@pytest.mark.parametrize("size", [0, 1, SHARED - 1, SHARED, SHARED + 1, 2**31, 2**62])
def test_a_read_gives_what_was_asked_for_and_what_the_buffer_takes(calls, pair, size):
    """One byte more than the buffer has would be written behind it."""
    ours, theirs = pair
    data = bytes(range(256)) * 32
    assert theirs.send(data) == len(data) > SHARED
    got = calls.receive(ours.fileno(), size)
    assert got == data[: min(size, SHARED)]
    assert ours.recv(len(data)) == data[len(got) :]


def test_what_was_received_stays_when_the_buffer_is_used_again(calls, pair):
    """The buffer is shared, the bytes object is not."""
    ours, theirs = pair
    theirs.send(b"a" * 100)
    first = calls.receive(ours.fileno(), 100)
    theirs.send(b"b" * 100)
    assert calls.receive(ours.fileno(), 100) == b"b" * 100
    assert first == b"a" * 100


def test_whoever_asks_for_nothing_gets_nothing(calls, pair):
    """Whether there is something or not: systems and kinds of sockets differ in that."""
    ours, theirs = pair
    here, there = tcp()
    with here, there:
        for connected in (ours, here):
            assert calls.receive(connected.fileno(), 0) == b""
            assert calls.receive_into(connected.fileno(), bytearray()) == 0
    theirs.send(b"x")
    assert calls.receive(ours.fileno(), 0) == b""
    assert calls.receive_into(ours.fileno(), bytearray()) == 0
    assert ours.recv(10) == b"x"


@pytest.mark.parametrize(
    "make",
    [bytearray, lambda size: array.array("B", bytes(size)), lambda size: mmap.mmap(-1, size)],
    ids=["bytearray", "array", "mmap"],
)
def test_a_buffer_is_filled_in_place_from_its_beginning(calls, pair, make):
    """As far as there is something; what lies behind stays."""
    ours, theirs = pair
    buffer = make(8)
    assert calls.receive_into(ours.fileno(), buffer) == NOT_READY
    theirs.send(b"12345")
    assert calls.receive_into(ours.fileno(), buffer) == 5
    assert bytes(buffer) == b"12345\0\0\0"
    theirs.send(b"abcdefghij")
    assert calls.receive_into(ours.fileno(), buffer) == 8
    assert bytes(buffer) == b"abcdefgh"
    theirs.close()
    with memoryview(buffer) as view:
        assert calls.receive_into(ours.fileno(), view[3:]) == 2
        assert calls.receive_into(ours.fileno(), view[3:]) == 0
    assert bytes(buffer) == b"abcijfgh"


def test_a_view_is_filled_where_it_lies_and_an_empty_one_not_at_all(calls, pair):
    """With an offset; of items that are larger than a byte too."""
    ours, theirs = pair
    numbers = array.array("I", [0] * 4)
    with memoryview(numbers)[1:3] as view:
        theirs.send(b"\xff" * 100)
        assert calls.receive_into(ours.fileno(), view) == 8
        assert calls.receive_into(ours.fileno(), view[:0]) == 0
    assert numbers.tolist() == [0, 2**32 - 1, 2**32 - 1, 0]
    assert len(ours.recv(200)) == 92


@pytest.mark.parametrize("buffer", [b"bytes", memoryview(b"view"), "text", None, 5, [b"x"]])
def test_what_cannot_be_written_to_is_refused_and_nothing_is_read(calls, pair, buffer):
    """Bytes that had been read for it would be lost."""
    ours, theirs = pair
    theirs.send(b"x")
    with pytest.raises((TypeError, BufferError)):
        calls.receive_into(ours.fileno(), buffer)
    assert ours.recv(10) == b"x"


def test_a_view_with_gaps_is_refused(calls, pair):
    """One call fills one piece of memory."""
    ours, theirs = pair
    theirs.send(b"xyz")
    with pytest.raises((TypeError, BufferError, ValueError)):
        calls.receive_into(ours.fileno(), memoryview(bytearray(6))[::2])
    with pytest.raises((TypeError, BufferError, ValueError)):
        calls.send(ours.fileno(), memoryview(b"abcdef")[::2])
    assert ours.recv(10) == b"xyz"
    with pytest.raises(BlockingIOError):
        theirs.recv(10)


def test_a_buffer_is_let_go_of(calls, pair):
    """Also where nothing came: a bytearray that is still lent cannot grow."""
    ours, theirs = pair
    buffer = bytearray(4)
    calls.receive_into(ours.fileno(), buffer)
    buffer += b"more"
    calls.send(ours.fileno(), buffer)
    buffer += b"more"
    calls.receive_into(closed_number(), buffer)
    calls.send(closed_number(), buffer)
    buffer += b"more"
    assert theirs.recv(100) == bytes(4) + b"more"


# Sending


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"a view")[2:],
        memoryview(bytearray(b"another"))[1:4],
        array.array("H", [1, 2, 3]),
    ],
    ids=["empty", "bytes", "bytearray", "view", "inner view", "array"],
)
def test_what_is_sent_is_what_lies_in_the_buffer(calls, pair, data):
    """Whatever holds it; the count is of bytes."""
    ours, theirs = pair
    wanted = memoryview(data).tobytes()
    assert calls.send(ours.fileno(), data) == len(wanted)
    if wanted:
        assert theirs.recv(100) == wanted


def test_what_there_is_no_room_for_is_not_taken_and_told(calls, pair):
    """Part of it, then "not now", then again as soon as there is room."""
    ours, theirs = pair
    data = os.urandom(1 << 22)
    taken = calls.send(ours.fileno(), data)
    assert 0 < taken < len(data)
    total = taken
    with memoryview(data) as view:
        while (taken := calls.send(ours.fileno(), view[total:])) >= 0:
            total += taken
        assert taken == NOT_READY
        came = bytearray()
        while len(came) < total:
            came += theirs.recv(1 << 20)
        assert came == view[:total]
        assert calls.send(ours.fileno(), view[total:]) > 0


@pytest.mark.parametrize("data", ["text", None, 5, [b"x"], object()])
def test_what_is_no_buffer_is_refused(calls, pair, data):
    """By type; nothing is sent."""
    ours, theirs = pair
    with pytest.raises(TypeError):
        calls.send(ours.fileno(), data)
    with pytest.raises(BlockingIOError):
        theirs.recv(10)


# Refusals of the system


def test_a_reset_is_told_by_its_number(calls):
    """What the other side did, in the words of the system, and no signal."""
    ours, theirs = tcp()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
        assert calls.receive(ours.fileno(), 10) == -errno.ECONNRESET
        assert calls.send(ours.fileno(), b"x") == -errno.EPIPE
        assert calls.receive(ours.fileno(), 10) == b""
    ours, theirs = tcp()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
        assert calls.receive_into(ours.fileno(), bytearray(3)) == -errno.ECONNRESET


def test_a_write_behind_the_end_is_a_broken_pipe_and_no_signal(calls, pair):
    """SIGPIPE would end programs that do not ignore it."""
    ours, theirs = pair
    theirs.close()
    assert calls.send(ours.fileno(), b"x") == -errno.EPIPE
    ours.shutdown(socket.SHUT_WR)
    assert calls.send(ours.fileno(), b"x") == -errno.EPIPE


def test_a_socket_that_is_not_connected_is_told_by_the_system(calls):
    """Its number differs by system and call; it is none of those that are waited on."""
    with socket.socket() as lonely:
        lonely.setblocking(False)
        for result in (
            calls.receive(lonely.fileno(), 10),
            calls.receive_into(lonely.fileno(), bytearray(3)),
            calls.send(lonely.fileno(), b"x"),
        ):
            assert result in (-errno.ENOTCONN, -errno.EPIPE, -errno.EINVAL)


def test_a_descriptor_that_is_closed_is_told_by_its_number(calls):
    """It was closed by somebody else: what would be read is not this socket's."""
    gone = closed_number()
    assert calls.receive(gone, 10) == -errno.EBADF
    assert calls.receive_into(gone, bytearray(3)) == -errno.EBADF
    assert calls.send(gone, b"x") == -errno.EBADF


@pytest.mark.parametrize("number", [-1, -(2**31)])
def test_a_number_below_zero_is_no_descriptor(calls, number):
    """That is what a socket that was closed has for one."""
    for use in (
        lambda: calls.receive(number, 10),
        lambda: calls.receive_into(number, bytearray(3)),
        lambda: calls.send(number, b"x"),
    ):
        try:
            result = use()
        except ValueError as error:
            assert "closed" in str(error)
        else:
            assert result == -errno.EBADF


@pytest.mark.parametrize("wrong", ["1", 1.0, None, 2**31, 2**80])
def test_what_is_no_descriptor_is_refused(calls, wrong):
    """Also a number that would be another one, cut to the bits of an int."""
    kinds = (TypeError, ValueError, OverflowError)
    with pytest.raises(kinds):
        calls.receive(wrong, 10)
    with pytest.raises(kinds):
        calls.receive_into(wrong, bytearray(3))
    with pytest.raises(kinds):
        calls.send(wrong, b"x")


@pytest.mark.parametrize("size", [-1, -(2**63)])
def test_a_negative_size_is_refused_and_nothing_is_read(calls, pair, size):
    """It would be a very large one to the system."""
    ours, theirs = pair
    theirs.send(b"x")
    with pytest.raises(ValueError, match="negative"):
        calls.receive(ours.fileno(), size)
    assert ours.recv(10) == b"x"


@pytest.mark.parametrize("size", ["1", 1.5, None])
def test_a_size_that_is_no_number_is_refused_and_nothing_is_read(calls, pair, size):
    """As everywhere."""
    ours, theirs = pair
    theirs.send(b"x")
    with pytest.raises(TypeError):
        calls.receive(ours.fileno(), size)
    assert ours.recv(10) == b"x"


@pytest.mark.parametrize("size", [0, -1, BUFFER_MAX + 1])
def test_there_is_no_buffer_of_that_size(core, size):
    """0 would end every stream at once."""
    with pytest.raises(errors.InvalidArgument):
        core.byte_calls(size)


def test_calls_take_so_many_arguments_and_no_other(c_core, pair):
    """What is native is called without names."""
    calls = c_core.byte_calls(100)
    ours, _ = pair
    for call in calls:
        for arguments in ((), (ours.fileno(),), (ours.fileno(), 1, 2)):
            with pytest.raises(TypeError):
                call(*arguments)


def test_the_buffer_lives_as_long_as_the_calls_that_use_it(c_core, pair):
    """Whoever keeps receive() alone still reads into memory that is there."""
    ours, theirs = pair
    receive = c_core.byte_calls(SHARED).receive
    gc.collect()
    theirs.send(b"x" * SHARED)
    assert receive(ours.fileno(), SHARED) == b"x" * SHARED


# All cores alike


class Streams(RuleBasedStateMachine):
    """The same calls to a compiled core and to the reference, each on a connection of its own."""

    def __init__(self, *cores):
        super().__init__()
        self.calls = [core.byte_calls(64) for core in cores]
        self.pairs = [socket.socketpair() for _ in cores]
        self.written = b""
        for pair in self.pairs:
            for each in pair:
                each.setblocking(False)

    def both(self, ask):
        """The answer of both, which is one."""
        found = []
        for calls, (ours, theirs) in zip(self.calls, self.pairs, strict=True):
            try:
                found.append(ask(calls, ours, theirs))
            except (TypeError, ValueError) as error:
                found.append(type(error))
        assert found[0] == found[1]
        return found[0]

    @rule(data=st.binary(max_size=300))
    def come(self, data):
        def send(calls, ours, theirs):
            try:
                return theirs.send(data)
            except OSError as error:
                return error.errno

        self.both(send)

    @rule(size=st.one_of(st.integers(-2, 130), st.sampled_from([2**31, 2**40])))
    def receive(self, size):
        self.both(lambda calls, ours, theirs: calls.receive(ours.fileno(), size))

    @rule(size=st.integers(0, 130), offset=st.integers(0, 20))
    def receive_into(self, size, offset):
        def into(calls, ours, theirs):
            buffer = bytearray(b"." * size)
            with memoryview(buffer)[offset:] as view:
                return calls.receive_into(ours.fileno(), view), bytes(buffer)

        self.both(into)

    @rule(data=st.binary(max_size=300), offset=st.integers(0, 20))
    def send(self, data, offset):
        self.both(lambda calls, ours, theirs: calls.send(ours.fileno(), memoryview(data)[offset:]))

    @rule(how=st.sampled_from([socket.SHUT_RD, socket.SHUT_WR]), side=st.integers(0, 1))
    def shut(self, how, side):
        def shut(calls, *pair):
            with contextlib.suppress(OSError):
                pair[side].shutdown(how)

        self.both(shut)

    @rule()
    def leave(self):
        self.both(lambda calls, ours, theirs: theirs.close())

    @invariant()
    def what_arrived_is_the_same(self):
        def taken(calls, ours, theirs):
            try:
                return theirs.recv(1 << 16)
            except OSError as error:
                return error.errno

        self.both(taken)

    def teardown(self):
        for pair in self.pairs:
            for each in pair:
                each.close()


def test_a_compiled_core_does_what_the_reference_does(c_core, reference_core):
    """Whatever comes before what, on a connection that ends in any way."""
    run_state_machine_as_test(
        lambda: Streams(c_core, reference_core), settings=settings(stateful_step_count=30)
    )


@given(
    data=st.binary(max_size=2_000),
    sent=st.lists(st.integers(1, 400), min_size=1, max_size=8),
    read=st.lists(st.integers(1, 400), min_size=1, max_size=8),
    into=st.booleans(),
)
def test_a_stream_that_is_cut_anywhere_comes_out_whole(core, data, sent, read, into):
    """Where it was cut by the writer, by the reader and by the buffer must not show."""
    calls = core.byte_calls(100)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        came, left, turn = bytearray(), memoryview(data), 0
        while left or len(came) < len(data):
            if left:
                taken = calls.send(theirs.fileno(), left[: sent[turn % len(sent)]])
                assert taken > 0
                left = left[taken:]
            size = read[turn % len(read)]
            if into:
                buffer = bytearray(size)
                count = calls.receive_into(ours.fileno(), buffer)
                came += buffer[: max(count, 0)]
            else:
                got = calls.receive(ours.fileno(), size)
                came += got if isinstance(got, bytes) else b""
            turn += 1
        assert came == data
