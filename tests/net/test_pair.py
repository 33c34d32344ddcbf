"""The reader and the writer of one connection, against asyncio's own, and against bare sockets."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import threading

import hypothesis.strategies as st
import pytest
from hypothesis import given

from peertalk import errors, net
from peertalk.net.pair import Connection, StreamReader, StreamWriter
from peertalk.net.stream import Stream
from peertalk.runtime.reactor import here

LIMIT = 8


def pair_of(ours, limit=1 << 16):
    """The reader and the writer of a socket, and their connection."""
    ours.setblocking(False)
    connection = Connection(Stream(here(), ours))
    connection.stream.state.writable = True
    return StreamReader(connection, limit), StreamWriter(connection), connection


def two(limit=1 << 16, sending=None):
    """A pair, and the bare socket at its other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    if sending is not None:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sending)
    return *pair_of(ours, limit), theirs


async def tcp():
    """A pair over TCP, and the bare socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reader, writer = await net.open_connection(*listener.getsockname())
        theirs, _ = listener.accept()
    return reader, writer, theirs


def reset(theirs):
    """End a TCP connection as a crash does."""
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    theirs.close()


async def read_all(theirs):
    """What comes up to the end."""
    loop, parts = asyncio.get_running_loop(), []
    while part := await loop.sock_recv(theirs, 1 << 16):
        parts.append(part)
    return b"".join(parts)


# Reading ------------------------------------------------------------------------------------------

texts = st.lists(st.sampled_from([b"a", b"b", b"\n", b"\r\n", b"aaa"]), max_size=30).map(b"".join)
calls = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 12)),
        st.tuples(st.just("readexactly"), st.integers(-1, 12)),
        st.tuples(st.just("readuntil"), st.sampled_from([b"\n", b"\r\n", b"aaa", b"b", b""])),
        st.tuples(st.just("readline")),
        st.tuples(st.just("at_eof")),
    ),
    max_size=12,
)


async def answers(reader, calls):
    """What each call returns, or raises with all that programs look at."""
    found = []
    for name, *arguments in calls:
        try:
            answer = getattr(reader, name)(*arguments)
            found.append(answer if isinstance(answer, bool) else await answer)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            kind = type(error) if not isinstance(error, errors.InvalidArgument) else ValueError
            named = [getattr(error, each, None) for each in ("partial", "expected", "consumed")]
            found.append(
                (kind, error.args[0] if kind is not asyncio.IncompleteReadError else "", named)
            )
    return found


@given(data=texts, calls=calls)
def test_a_reader_gives_what_asyncios_gives(data, calls):
    """asyncio's is fed all that comes and its end before; ours has read it when something was read,
    so that at_eof() is asked at the end alone."""
    calls = [call for call in calls if call != ("at_eof",)]
    calls += [("read", -1), ("at_eof",), ("read", 5), ("readline",), ("readexactly", 2)]

    async def both():
        theirs = asyncio.StreamReader(limit=LIMIT)
        theirs.feed_data(data)
        theirs.feed_eof()
        reader, writer, _, bare = two(LIMIT)
        bare.send(data)
        bare.close()
        given, wanted = await answers(reader, calls), await answers(theirs, calls)
        writer.close()
        return given, wanted

    given, wanted = asyncio.run(both())
    assert given == wanted


@given(data=st.binary(max_size=3_000), cuts=st.lists(st.integers(1, 900), min_size=1, max_size=9))
def test_what_is_read_does_not_depend_on_how_the_stream_was_cut(data, cuts):
    """Each read waits for what it needs, however it comes."""

    async def run():
        reader, writer, _, bare = two()
        parts, rest = [], data
        whole = asyncio.create_task(reader.readexactly(len(data)))
        for cut in cuts:
            parts.append(bare.send(rest[:cut]) if rest else 0)
            rest = rest[cut:]
            await asyncio.sleep(0)
        if rest:
            bare.send(rest)
        assert await whole == data
        bare.close()
        assert await reader.readline() == b"" and reader.at_eof()
        writer.close()

    asyncio.run(run())


async def test_lines_are_iterated_and_the_last_one_needs_no_end():
    """What comes behind the last line feed is a line too."""
    reader, writer, _, theirs = two()
    theirs.send(b"one\n\ntwo")
    theirs.close()
    assert [line async for line in reader] == [b"one\n", b"\n", b"two"]
    writer.close()


async def test_one_task_reads_at_a_time_and_a_cancelled_read_loses_nothing():
    """What each of two got would be chance; a time-out is a cancelled read."""
    reader, writer, _, theirs = two()
    first = asyncio.create_task(reader.readexactly(6))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="another task"):
        await reader.read(1)
    theirs.send(b"abc")
    while not reader._buffer:
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    theirs.send(b"def")
    assert await reader.readexactly(6) == b"abcdef"
    writer.close()
    theirs.close()


async def test_a_read_larger_than_a_buffer_comes_whole():
    """More than one read of the system, and more than the limit."""
    reader, writer, _, theirs = two(limit=1)
    data = bytes(range(256)) * 4_000
    sent = asyncio.create_task(asyncio.get_running_loop().sock_sendall(theirs, data))
    assert await reader.readexactly(len(data)) == data
    await sent
    theirs.send(b"rest")
    theirs.close()
    assert await reader.read() == b"rest"
    writer.close()


# Writing ------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.sampled_from([0, 1, 10, 5_000, 16_384, 65_536, 200_000]), max_size=12))
def test_whatever_is_written_arrives_whole_and_in_order(sizes):
    """Some leaves at once, some at the end of the tick, and some when there is room."""

    async def run():
        _, writer, connection, theirs = two(sending=4_096)
        written = [bytes([number & 255]) * size for number, size in enumerate(sizes)]
        came = asyncio.create_task(read_all(theirs))
        for number, data in enumerate(written):
            writer.write(data)
            if number % 3 == 2:
                await writer.drain()
                assert connection.stream.unsent <= 65_536
        writer.close()
        assert writer.is_closing()
        await writer.wait_closed()
        assert await came == b"".join(written)
        theirs.close()

    asyncio.run(run())


async def test_what_is_written_is_the_callers_again_at_once():
    """A program fills the same buffer anew for the next write."""
    _, writer, _, theirs = two(sending=4_096)
    buffer = bytearray(100_000)
    for number in range(3):
        buffer[:] = bytes([number]) * len(buffer)
        writer.write(buffer)
    writer.write(memoryview(b"_rest_")[1:5])
    writer.close()
    wanted = b"".join(bytes([number]) * 100_000 for number in range(3))
    assert await read_all(theirs) == wanted + b"rest"
    theirs.close()


async def test_drain_waits_while_much_waits_and_many_may_wait_at_once():
    """Else a program fills the memory with what nobody reads."""
    _, writer, connection, theirs = two(sending=4_096)
    writer.write(bytes(1 << 20))
    drains = [asyncio.create_task(writer.drain()) for _ in range(5)]
    await asyncio.sleep(0)
    writer.write(b"end")  # while others wait
    assert not any(each.done() for each in drains) and connection.stream.unsent > 65_536
    drains.pop().cancel()
    got = 0
    while got < (1 << 20) + 3:
        got += len(await asyncio.get_running_loop().sock_recv(theirs, 1 << 20))
    await asyncio.gather(*drains)
    assert connection.stream.unsent == 0
    writer.close()
    theirs.close()


async def test_the_half_that_is_ended_takes_no_more_and_the_other_goes_on():
    """write_eof() comes behind all that was written."""
    reader, writer, _, theirs = two(sending=4_096)
    writer.write(bytes(300_000))
    writer.write_eof()
    writer.write_eof()
    with pytest.raises(RuntimeError, match="write_eof"):
        writer.write(b"more")
    assert len(await read_all(theirs)) == 300_000
    theirs.send(b"answer")
    assert await reader.read(100) == b"answer"
    writer.close()
    await writer.wait_closed()
    theirs.close()


async def test_the_end_of_a_half_and_of_all_come_behind_what_was_written():
    """Closed while the half is still being ended."""
    _, writer, _, theirs = two(sending=4_096)
    writer.write(bytes(300_000))
    writer.write_eof()
    await asyncio.sleep(0)
    writer.close()
    assert len(await read_all(theirs)) == 300_000
    await writer.wait_closed()
    theirs.close()


async def test_what_is_no_bytes_is_refused_and_writes_nothing():
    """As asyncio has it."""
    _, writer, _, theirs = two()
    for wrong in ("text", None, 5, [b"x"]):
        with pytest.raises(TypeError):
            writer.write(wrong)
    writer.close()
    assert await read_all(theirs) == b""
    theirs.close()


# How it ends --------------------------------------------------------------------------------------


async def test_a_connection_that_is_reset_raises_what_asyncio_raises():
    """To whoever reads, writes or waits, then and later; its number is there too."""
    reader, writer, theirs = await tcp()
    reading = asyncio.create_task(reader.read(1))
    await asyncio.sleep(0)
    reset(theirs)
    with pytest.raises(ConnectionResetError) as failed:
        await reading
    assert failed.value.errno == errno.ECONNRESET
    assert writer.is_closing()
    writer.write(b"nothing is raised here")
    for use in (reader.read, reader.readline, writer.drain, writer.wait_closed):
        with pytest.raises(ConnectionResetError):
            await use()
    writer.close()


async def test_whoever_waits_in_drain_hears_of_the_reset():
    """A writer that never reads finds out too."""
    _, writer, theirs = await tcp()
    writer.write(bytes(16 << 20))
    waiting = [asyncio.create_task(writer.drain()) for _ in range(2)]
    await asyncio.sleep(0)
    assert not waiting[0].done()
    reset(theirs)
    for each in waiting:
        with pytest.raises(ConnectionResetError):
            await each
    writer.close()
    with pytest.raises(ConnectionResetError):
        await writer.wait_closed()


async def test_a_program_that_never_reads_finds_out_when_it_writes():
    """The first write after the end is taken by the system, the next one is not."""
    _, writer, theirs = await tcp()
    theirs.close()
    with pytest.raises(ConnectionResetError):
        while True:
            writer.write(b"x")
            await writer.drain()


async def test_whoever_reads_a_connection_that_is_closed_here_finds_its_end():
    """Before and after; what was read and not taken is still there."""
    reader, writer, _, theirs = two()
    theirs.send(b"ab")
    assert await reader.read(1) == b"a"
    writer.close()
    assert not reader.at_eof()
    assert await reader.read() == b"b" and reader.at_eof()
    reader, writer, _, others = two()
    reading = asyncio.create_task(reader.readexactly(5))
    await asyncio.sleep(0)
    writer.close()
    with pytest.raises(asyncio.IncompleteReadError) as ended:
        await reading
    assert (ended.value.partial, ended.value.expected) == (b"", 5)
    for each in (theirs, others):
        each.close()


async def test_a_writer_that_nobody_holds_is_closed_with_a_warning():
    """Also where the collector finds it on another thread."""
    _, writer, connection, theirs = two()
    gc.disable()  # or it may be found here before
    circle = [writer]
    circle.append(circle)
    del writer, circle

    def collect():
        with pytest.warns(ResourceWarning, match="unclosed <StreamWriter"):
            gc.collect()

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        await asyncio.to_thread(thread.join)
    finally:
        gc.enable()
    assert await read_all(theirs) == b""
    await connection.over
    theirs.close()


def test_a_writer_that_outlives_its_loop_says_so():
    """Nobody can close it any more in an orderly way."""

    async def made():
        return two()

    _, writer, connection, theirs = asyncio.run(made())
    with pytest.warns(ResourceWarning, match="loop is closed"):
        del writer
    connection.stream.close_now()
    theirs.close()


async def test_a_close_that_is_cut_off_closes_all_the_same():
    """asyncio.run() cancels what still sends."""
    _, writer, connection, theirs = two(sending=4_096)
    writer.write(bytes(1 << 20))
    writer.close()
    await asyncio.sleep(0)
    connection._finishing.cancel()
    await writer.wait_closed()
    assert connection.stream.closed
    theirs.close()


# Stream.write_soon(), on which all of this stands -------------------------------------------------


async def test_write_soon_refuses_what_would_come_between_the_parts_of_another_write():
    """What the other side reads must be one write, and then the other."""
    _, writer, connection, theirs = two(sending=4_096)
    stream = connection.stream
    writing = asyncio.create_task(stream.write_all(bytes(1 << 20)))
    await asyncio.sleep(0)
    with pytest.raises(errors.InvalidState, match="another task"):
        stream.write_soon(b"x")
    writing.cancel()
    await asyncio.wait([writing])
    stream.write_soon(b"y")
    assert stream.unsent > 1
    stream.close_now()
    assert writer.is_closing()
    with pytest.raises(errors.InvalidState, match="closed"):
        stream.write_soon(b"z")
    theirs.close()
