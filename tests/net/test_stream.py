"""Streams: what is written is read, in whatever pieces, and nothing of it is lost by time-outs,
cancellation, ends and faults."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import threading

import pytest
from conftest import HANG_GUARD
from kit.streams import cancelled, connected, narrow, read_all, waits

from peertalk import errors
from peertalk.net import Listener, Stream, Worker


def pattern(size: int) -> bytes:
    """Bytes of which none may be lost or exchanged unseen."""
    return random.Random(size).randbytes(size)


# Reading ------------------------------------------------------------------------------------------


async def test_what_is_written_is_read_whatever_the_pieces():
    chance = random.Random(13)
    data = pattern(400_000)
    async with connected() as (ours, theirs):

        async def write():
            at = 0
            while at < len(data):
                size = chance.choice((1, 7, 64, 1_000, 20_000, 70_000))
                piece = data[at : at + size]
                if chance.random() < 0.3:
                    at += await ours.write(piece)
                else:
                    await ours.write_all(memoryview(piece) if chance.random() < 0.5 else piece)
                    at += len(piece)
                if chance.random() < 0.1:
                    await asyncio.sleep(0)
            await ours.write_eof()

        writing = asyncio.create_task(write())
        read = bytearray()
        while len(read) < len(data):
            size = chance.choice((1, 5, 64, 5_000, 70_000))
            kind = chance.randrange(3)
            if kind == 0:
                read += await theirs.read(size)
            elif kind == 1:
                read += await theirs.readexactly(min(size, len(data) - len(read)))
            else:
                buffer = bytearray(size)
                read += buffer[: await theirs.readinto(buffer)]
        assert read == data
        assert await theirs.read() == b""
        assert await theirs.read() == b""  # the end stays
        await writing


async def test_nothing_is_read_where_nothing_is_asked_for():
    async with connected() as (ours, theirs):
        assert await theirs.read(0) == b""
        assert await theirs.readexactly(0) == b""
        assert await theirs.readinto(bytearray()) == 0
        assert await ours.write(b"") == 0
        await ours.write_all(b"")
        with pytest.raises(errors.InvalidArgument, match="from 0 up"):
            await theirs.read(-1)
        with pytest.raises(errors.InvalidArgument, match="from 0 up"):
            await theirs.readexactly(-1)


async def test_what_is_no_number_and_no_bytes_is_refused_by_name():
    async with connected() as (ours, theirs):
        for call in (theirs.read("1"), theirs.readexactly(1.5)):
            with pytest.raises(errors.WrongType, match="a number of bytes"):
                await call
        for call in (ours.write("text"), ours.write_all("text"), ours.write_all(7)):
            with pytest.raises(errors.WrongType, match="encode"):
                await call
        await ours.write_all(b"x")
        assert await theirs.read() == b"x"


async def test_lines_are_read_however_they_were_cut():
    async with connected() as (ours, theirs):
        for piece in (b"on", b"e\r", b"\ntwo\r\nthree"):
            await ours.write_all(piece)
            await ours.drain()
            await asyncio.sleep(0)
        await ours.write_eof()
        assert await theirs.readuntil(b"\r\n") == b"one\r\n"
        assert await theirs.readuntil(b"\r\n") == b"two\r\n"
        with pytest.raises(errors.EndOfStream, match="without") as raised:
            await theirs.readuntil(b"\r\n")
        assert raised.value.partial == b"three"
        with pytest.raises(errors.InvalidArgument, match="separator"):
            await theirs.readuntil(b"")


async def test_a_line_that_is_too_long_stays_to_be_read():
    async with connected() as (ours, theirs):
        await ours.write_all(b"x" * 100 + b"\n")
        with pytest.raises(errors.MessageTooLarge, match="in 10 bytes"):
            await theirs.readuntil(limit=10)
        assert await theirs.readuntil(limit=101) == b"x" * 100 + b"\n"


async def test_a_stream_that_ends_in_the_middle_gives_what_came():
    async with connected() as (ours, theirs):
        await ours.write_all(b"abc")
        await ours.write_eof()
        with pytest.raises(errors.EndOfStream, match="3 of 10 bytes") as raised:
            await theirs.readexactly(10)
        assert raised.value.partial == b"abc"
        assert isinstance(raised.value, EOFError)
        assert await theirs.read() == b""


async def test_data_and_end_that_come_together_are_both_told():
    """Where each change is told once, the end must not be missed behind a read that was short."""
    for _ in range(20):
        async with connected() as (ours, theirs):
            reading = await waits(theirs.read(1))
            await ours.write_all(b"abc")
            await ours.write_eof()
            assert await reading == b"a"
            assert await theirs.read() == b"bc"
            assert await theirs.read() == b""


async def test_a_stream_is_iterated_to_its_end():
    async with connected() as (ours, theirs):
        await ours.write_all(pattern(200_000)[:150_000])
        await ours.write_eof()
        read = b"".join([piece async for piece in theirs])
        assert read == pattern(200_000)[:150_000]


async def test_readinto_takes_writable_memory_of_any_shape():
    async with connected() as (ours, theirs):
        await ours.write_all(struct.pack("<4I", 1, 2, 3, 4))
        room = memoryview(bytearray(16)).cast("I")
        at = 0
        while at < 16:
            at += await theirs.readinto(room.cast("B")[at:])
        assert list(room) == [1, 2, 3, 4]
        with pytest.raises(TypeError):
            await theirs.readinto(b"readonly")


# Writing ------------------------------------------------------------------------------------------


async def test_a_megabyte_goes_through_buffers_of_nothing():
    data = pattern(1_000_000)
    async with connected() as (ours, theirs):
        narrow(ours, theirs)
        writing = asyncio.create_task(ours.write_all(data))
        assert await read_all(theirs, len(data)) == data
        await writing


async def test_write_says_how_much_was_taken_when_there_is_no_room_for_all():
    data = pattern(4_000_000)
    async with connected() as (ours, theirs):
        narrow(ours)
        taken = await ours.write(data)
        assert 0 < taken < len(data)
        with pytest.raises(errors.Timeout, match="no room"):
            while True:
                taken += await ours.write(data[taken:], timeout=0.01)
        assert await read_all(theirs, taken) == data[:taken]


async def test_small_writes_of_one_tick_leave_together():
    async with connected() as (ours, theirs):
        for number in range(100):
            await ours.write_all(b"%02d" % number)
        read, pieces = bytearray(), 0
        while len(read) < 200:
            read += await theirs.read()
            pieces += 1
        assert read == b"".join(b"%02d" % number for number in range(100))
        assert pieces <= 2  # the first has left at once


async def test_drain_returns_when_the_system_has_all():
    async with connected() as (ours, theirs):
        narrow(ours, theirs)
        writing = await waits(ours.write_all(pattern(300_000)))
        await cancelled(writing)
        draining = await waits(ours.drain())
        assert await read_all(theirs, 300_000) == pattern(300_000)
        await draining


async def test_each_half_ends_by_itself():
    async with connected() as (ours, theirs):
        await ours.write_all(b"question")
        await ours.write_eof()
        await ours.write_eof()
        assert await theirs.readexactly(8) == b"question"
        assert await theirs.read() == b""
        await theirs.write_all(b"answer")
        assert await ours.readexactly(6) == b"answer"
        with pytest.raises(errors.InvalidState, match="write_eof"):
            await ours.write_all(b"more")
        with pytest.raises(errors.InvalidState, match="write_eof"):
            await ours.write(b"more")


async def test_aclose_sends_what_waits():
    async with connected() as (ours, theirs):
        for _ in range(50):
            await ours.write_all(b"last words ")
        await ours.aclose()
        await ours.aclose()
        assert await read_all(theirs, 550) == b"last words " * 50
        assert await theirs.read() == b""


async def test_aclose_waits_no_longer_than_it_was_told():
    async with connected() as (ours, theirs):
        narrow(ours, theirs)
        await cancelled(await waits(ours.write_all(pattern(300_000))))
        await ours.aclose(timeout=0.01)
        assert ours.closed


# Whose turn it is ---------------------------------------------------------------------------------


async def test_a_second_reader_is_refused_and_a_writer_is_not():
    async with connected() as (ours, theirs):
        reading = await waits(theirs.read())
        for call in (
            theirs.read(),
            theirs.readexactly(1),
            theirs.readuntil(),
            theirs.readinto(bytearray(1)),
        ):
            with pytest.raises(errors.InvalidState, match="another task reads from"):
                await call
        await theirs.write_all(b"hello")
        assert await ours.read() == b"hello"
        await ours.write_all(b"x")
        assert await reading == b"x"


async def test_a_second_writer_is_refused():
    async with connected() as (ours, theirs):
        narrow(ours, theirs)
        writing = await waits(ours.write_all(pattern(300_000)))
        for call in (ours.write(b"x"), ours.write_all(b"x"), ours.drain(), ours.write_eof()):
            with pytest.raises(errors.InvalidState, match="another task writes to"):
                await call
        assert await read_all(theirs, 300_000) == pattern(300_000)
        await writing


async def test_another_thread_is_refused():
    async with connected() as (ours, _):
        raised: list[BaseException] = []

        def elsewhere():
            async def use():
                with pytest.raises(errors.InvalidState, match="another thread"):
                    await ours.read()
                with pytest.raises(errors.InvalidState, match="another thread"):
                    ours.close_now()

            try:
                asyncio.run(use())
            except BaseException as error:
                raised.append(error)

        await asyncio.to_thread(elsewhere)
        assert not raised


async def test_a_stream_that_never_waits_lets_others_have_their_turn():
    """A reader who always finds something, and a writer who always finds room."""
    async with connected() as (ours, theirs), connected() as (mine, yours):
        seen = 0

        async def flood():
            while True:
                await ours.write_all(b"x" * 20_000)

        async def swallow():
            nonlocal seen
            while True:
                seen += len(await theirs.read())

        tasks = [asyncio.create_task(flood()), asyncio.create_task(swallow())]
        for number in range(50):
            await mine.write_all(b"%d" % number)
            assert await yours.read() == b"%d" % number
        for task in tasks:
            await cancelled(task)
        assert seen


# Time-outs, cancellation, ends --------------------------------------------------------------------


async def test_what_is_late_is_told_and_nothing_is_lost():
    async with connected() as (ours, theirs):
        for call in (theirs.read, theirs.readuntil):
            with pytest.raises(errors.Timeout, match="nothing came"):
                await call(timeout=0.01)
        await ours.write_all(b"half")
        with pytest.raises(errors.Timeout):
            await theirs.readexactly(8, timeout=0.01)
        with pytest.raises(errors.Timeout):
            await theirs.readuntil(b"\n", timeout=0.01)
        await ours.write_all(b"more")
        assert await theirs.readexactly(8, timeout=HANG_GUARD) == b"halfmore"
        with pytest.raises(TimeoutError):
            await theirs.readinto(bytearray(1), timeout=0)


async def test_a_write_that_is_late_is_sent_to_its_end():
    data = pattern(3_000_000)
    async with connected() as (ours, theirs):
        narrow(ours, theirs)
        with pytest.raises(errors.Timeout, match="no room"):
            await ours.write_all(data, timeout=0.01)
        writing = asyncio.create_task(ours.write_all(b"behind"))
        assert await read_all(theirs, len(data) + 6) == data + b"behind"
        await writing


@pytest.mark.parametrize("steps", range(1, 8))
async def test_cancelled_at_any_step_nothing_is_lost_or_torn(steps):
    """Reads and writes are cancelled after so many steps of their task, again and again. A piece
    that was begun comes whole; one that was not does not come; what was read is read once."""
    piece, count = 5_000, 60
    async with connected() as (ours, theirs):
        narrow(ours, theirs)
        read = bytearray()
        over = False

        async def stepping(call):
            task = asyncio.ensure_future(call)
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            return (await asyncio.gather(task, return_exceptions=True))[0]

        async def reads():
            turn = 0
            while not over or not read.endswith(b"end"):
                turn += 1
                if turn % 5 == 0:
                    got = await theirs.read()
                else:
                    got = await stepping(
                        theirs.readexactly(4_000) if turn % 2 else theirs.read(3_000)
                    )
                if isinstance(got, bytes):
                    read.extend(got)

        async def writes():
            nonlocal over
            for number in range(count):
                await stepping(ours.write_all(number.to_bytes(2, "big") * (piece // 2)))
                if number % 7 == 0:
                    await ours.drain()
            await ours.drain()
            over = True
            await ours.write_all(b"end")

        await asyncio.gather(reads(), writes())
        del read[-3:]
        assert len(read) % piece == 0
        came = [bytes(read[at : at + piece]) for at in range(0, len(read), piece)]
        numbers = [int.from_bytes(each[:2], "big") for each in came]
        assert numbers == sorted(set(numbers))
        assert all(each == each[:2] * (piece // 2) for each in came)
        assert len(numbers) > count // 10


async def test_who_waits_hears_that_the_stream_was_closed():
    async with connected() as (ours, theirs):
        narrow(ours, theirs)
        reading = await waits(ours.read())
        writing = await waits(ours.write_all(pattern(300_000)))
        ours.close_now()
        ours.close_now()
        for task in (reading, writing):
            with pytest.raises(errors.InvalidState, match="closed"):
                await task
        for call in (ours.read(), ours.write(b"x"), ours.write_all(b"x"), ours.drain()):
            with pytest.raises(errors.InvalidState, match="closed"):
                await call
        with pytest.raises(errors.InvalidState, match="closed"):
            _ = ours.local_addr
        assert ours.closed
        assert ours.fileno() == -1
        assert "closed" in repr(ours)


async def test_a_reset_is_told_to_reader_and_writer():
    async with connected() as (ours, theirs):
        with socket.socket(fileno=os.dup(theirs.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reading = await waits(ours.read())
        theirs.close_now()
        with pytest.raises(errors.ConnectionClosed, match="ended the connection"):
            await reading
        with pytest.raises(errors.ConnectionClosed):
            while True:
                await ours.write_all(b"x" * 100_000)


async def test_what_fails_behind_ones_back_is_told_once():
    """The rest of a write leaves by itself; that it did not is told to who writes next."""
    async with connected() as (ours, theirs):
        narrow(ours, theirs)
        await cancelled(await waits(ours.write_all(pattern(300_000))))
        with socket.socket(fileno=os.dup(theirs.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close_now()
        with pytest.raises(errors.ConnectionClosed):
            await ours.drain(timeout=HANG_GUARD)
        await ours.drain()  # nothing waits any more


# Connecting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["text", "pair", "name", "whole", "ipv6", "path", "path text"])
async def test_an_address_is_taken_in_each_form(form, tmp_path):
    where = {
        "ipv6": "[::1]:0",
        "whole": ("::1", 0, 0, 0),
        "path": tmp_path / "socket",
        "path text": str(tmp_path / "socket"),
    }.get(form, "127.0.0.1:0")
    async with await Listener.bind(where) as listener:
        own = listener.local_addr
        address = {
            "text": f"127.0.0.1:{own[1]}",
            "pair": ("127.0.0.1", own[1]),
            "name": f"localhost:{own[1]}",
            "ipv6": f"[::1]:{own[1]}",
            "whole": own,
        }.get(form, where)
        async with await Stream.connect(address) as ours, await listener.accept() as theirs:
            await ours.write_all(b"hello")
            assert await theirs.read() == b"hello"
            if "path" not in form:
                assert ours.peer_addr == own
                assert theirs.peer_addr == ours.local_addr


async def test_each_address_of_a_name_is_tried_in_turn(monkeypatch):
    async with await Listener.bind("127.0.0.1:0") as listener:
        port = listener.local_addr[1]

        def found(*_, **__):
            kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
            return [(*kind, ("127.0.0.9", port)), (*kind, ("127.0.0.1", port))]

        monkeypatch.setattr(socket, "getaddrinfo", found)
        loop = asyncio.get_running_loop()

        async def answer(*_, **__):
            return found()

        if not hasattr(loop, "_default_executor"):  # uvloop asks the system by itself
            monkeypatch.setattr("peertalk.net.addresses.running_loop", lambda: _Names(answer))
        async with await Stream.connect(f"two.example:{port}") as ours:
            assert ours.peer_addr == ("127.0.0.1", port)
    with pytest.raises(errors.ConnectionRefused, match=r"127\.0\.0\.9.*; 127\.0\.0\.1"):
        await Stream.connect(f"two.example:{port}")


class _Names:
    def __init__(self, answer):
        self.getaddrinfo = answer


async def test_who_cannot_be_reached_is_told_by_name(free_port, tmp_path):
    port = free_port()
    with pytest.raises(errors.ConnectionRefused, match=f"127.0.0.1:{port} refused"):
        await Stream.connect(("127.0.0.1", port))
    with pytest.raises(errors.ConnectionRefused, match="no such socket"):
        await Stream.connect(tmp_path / "nobody")
    with pytest.raises(errors.NetworkError, match="not known"):
        await Stream.connect("no-such-host.invalid:1")
    with pytest.raises(errors.NetworkFailure, match="no way to"):
        await Stream.connect("255.255.255.255:1")


async def test_a_connection_that_nobody_answers_times_out(monkeypatch):
    """A listener whose line is full answers no more callers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        waiting = []
        with pytest.raises(errors.Timeout, match="did not answer"):
            for _ in range(8):
                waiting.append(await Stream.connect(silent.getsockname(), timeout=0.05))
        for stream in waiting:
            stream.close_now()


def test_without_a_loop_it_says_so():
    connecting = Stream.connect("127.0.0.1:1")
    with pytest.raises(errors.InvalidState, match="no asyncio loop"):
        connecting.send(None)


# Workers and processes ----------------------------------------------------------------------------


async def test_a_stream_moves_between_threads_at_rest():
    """Between operations, a hundred times: nothing is lost, and what was read ahead goes along."""
    async with connected() as (ours, theirs):
        with Worker() as first, Worker() as second:

            async def turn(stream, number, there):
                line = await stream.readuntil()
                await stream.write_all(line.upper())
                if there is not None:
                    await stream.move_to(there)
                return line

            await ours.write_all(b"line 0\nline 1\n")
            assert await theirs.readuntil() == b"line 0\n"
            await theirs.move_to(first)
            with pytest.raises(errors.InvalidState, match="another thread"):
                await theirs.read()
            here, there = first, second
            for number in range(1, 100):
                await ours.write_all(b"line %d\n" % (number + 1))
                moved = here.submit(turn, theirs, number, there)
                assert await asyncio.wrap_future(moved) == b"line %d\n" % number
                assert await ours.readuntil() == b"LINE %d\n" % number
                here, there = there, here
            await asyncio.wrap_future(here.submit(theirs.aclose))


async def test_a_stream_that_is_not_at_rest_stays(core):
    async with connected() as (ours, theirs):
        with Worker() as worker:
            reading = await waits(theirs.read())
            with pytest.raises(errors.InvalidState, match="another task reads"):
                await theirs.move_to(worker)
            await ours.write_all(b"x")
            assert await reading == b"x"
        with pytest.raises(errors.InvalidState, match="closed"):
            await theirs.move_to(worker)
        await ours.write_all(b"y")
        assert await theirs.read() == b"y"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="did not run: no fork here")
async def test_a_forked_child_has_no_streams():
    async with connected() as (ours, theirs):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                ours.read().send(None)
            except errors.InvalidState:
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        await ours.write_all(b"still here")
        assert await theirs.read() == b"still here"
        assert threading.active_count() >= 1
