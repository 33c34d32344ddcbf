"""What an enemy has found in streams: loops and threads that are not theirs, two who close at once,
moves that are struck half-way, and what the other side may do with urgent data."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
import struct
import sys
import threading

import pytest
from conftest import HANG_GUARD
from kit.certificates import make_authority, signs
from kit.streams import cancelled, connected, narrow, waits

from peertalk import errors
from peertalk.net import Listener, Stream, TlsStream, Worker
from peertalk.runtime.reactor import here


async def ends() -> tuple[Stream, Stream]:
    """Both ends of a connection, which nobody closes."""
    async with await Listener.bind("127.0.0.1:0") as listener:
        return await Stream.connect(listener.local_addr), await listener.accept()


@pytest.mark.parametrize("closed", [True, False])
def test_another_loop_of_the_same_thread_is_refused(closed):
    """As another thread is, and with the same error."""
    with asyncio.Runner() as runner:
        ours, theirs = runner.run(ends())
        if closed:
            runner.close()

        async def use() -> None:
            for call in (ours.read(timeout=1), ours.write_all(b"x" * 10_000_000, timeout=1)):
                with pytest.raises(errors.InvalidState, match="another asyncio loop"):
                    await call

        with asyncio.Runner() as other:
            other.run(use())
        ours.close_now()
        theirs.close_now()


async def test_two_who_close_at_once_are_not_told_of_each_other():
    async with connected() as (ours, theirs):
        narrow(ours, theirs)
        ours.write_soon(b"x" * 2_000_000)
        await asyncio.gather(ours.aclose(), ours.aclose())


async def test_a_stream_that_is_closed_on_its_way_is_registered_nowhere():
    """Its descriptor may be another socket's when it arrives."""
    going = threading.Event()
    with Worker() as worker:
        async with connected() as (ours, _):
            worker.submit(going.wait)
            moving = await waits(ours.move_to(worker))
            await cancelled(moving)
            await ours.aclose()
            one, other = socket.socketpair()  # the lowest descriptors that are free
            with one, other:
                going.set()
                assert await asyncio.to_thread(worker.run, worker.statistics)
                assert worker.statistics().sockets == 0
        assert ours.closed


async def test_what_follows_urgent_data_is_read():
    """The system ends a read there, and tells no second change."""
    async with connected() as (ours, theirs):
        with socket.socket(fileno=os.dup(theirs.fileno())) as raw:
            raw.send(b"before")
            raw.send(b"!", socket.MSG_OOB)
            raw.send(b"behind")
            while len(raw.getsockname()) != 2:
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
        data = b""
        while len(data) < 12:
            data += await ours.read(timeout=5)
        assert data.replace(b"!", b"") == b"beforebehind"


@pytest.mark.parametrize("wrong", ["context", "name", "cancelled"])
async def test_tls_that_cannot_begin_ends_the_stream(wrong):
    """As docs/streams.md and start_tls() say: when that fails, or is cancelled, it is closed."""
    client = ssl.create_default_context()
    async with connected() as (ours, _):
        if wrong == "cancelled":
            narrow(ours)
            ours.write_soon(b"x" * 5_000_000)
            await cancelled(await waits(ours.start_tls(client, server_hostname="x")))
        else:
            with pytest.raises(errors.InvalidArgument):
                await ours.start_tls(
                    client, server_side=wrong == "context", server_hostname="." * 5
                )
        assert ours.closed


async def test_an_answer_arrives_though_nobody_has_read_the_question():
    """A socket that is closed with something to read is reset by the system, which drops what has
    not arrived."""
    async with connected() as (ours, theirs):
        await ours.write_all(b"a question")
        await asyncio.to_thread(select.select, [theirs.fileno()], [], [], HANG_GUARD)
        theirs.write_soon(b"x" * 1_000_000)
        closing = asyncio.create_task(theirs.aclose(timeout=HANG_GUARD))
        size = 0
        while data := await ours.read(timeout=HANG_GUARD):
            size += len(data)
            await asyncio.sleep(0.001)
        assert size == 1_000_000
        await closing


def resets(stream):
    """Close a stream as a process that is killed with its machine: the other side is told of no
    end."""
    with socket.socket(fileno=os.dup(stream.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close_now()


@pytest.mark.parametrize("met_by", ["a write", "a flush", "a read"])
@pytest.mark.parametrize("call", ["read", "readinto", "readexactly", "readuntil", "timeout"])
async def test_a_connection_that_broke_has_no_end_to_be_read(met_by, call):
    """The system tells of it once, and of the end of the stream from then on. Whoever reads would
    take a half of what was sent for all of it, when another one has met the break before."""
    async with connected() as (ours, theirs):
        await theirs.write_all(b"a half")
        assert await ours.readexactly(6) == b"a half"
        if met_by == "a flush":
            narrow(ours)
            ours.write_soon(b"x" * 10_000_000)
        resets(theirs)
        with pytest.raises(errors.ConnectionClosed):
            while True:
                if met_by == "a read":
                    await ours.read()
                elif met_by == "a write":
                    await ours.write_all(b"x")
                else:
                    await ours.drain(timeout=HANG_GUARD)
                await asyncio.sleep(0)
        calls = {
            "read": lambda: ours.read(),
            "readinto": lambda: ours.readinto(bytearray(10)),
            "readexactly": lambda: ours.readexactly(10),
            "readuntil": lambda: ours.readuntil(),
            "timeout": lambda: ours.read(timeout=HANG_GUARD),
        }
        for _ in range(2):
            with pytest.raises(errors.ConnectionClosed, match="broke before"):
                await calls[call]()


async def test_who_writes_behind_the_end_of_the_other_side_may_read_that():
    """That the other side takes nothing more does not mean that something is missing."""
    async with connected() as (ours, theirs):
        await theirs.write_all(b"all of it")
        await theirs.aclose()
        with pytest.raises(errors.ConnectionClosed):
            while True:
                await ours.write_all(b"x")
                await asyncio.sleep(0)
        assert await ours.read() == b"all of it"
        assert await ours.read() == b""


@pytest.fixture(scope="module")
def contexts():
    """Of a server of TLS, and of a client that trusts that."""
    authority = make_authority()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("server.example").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def encrypted(pair, contexts):
    server, client = contexts
    return await asyncio.gather(
        pair[0].start_tls(client, server_hostname="server.example"),
        pair[1].start_tls(server, server_side=True),
    )


@signs
async def test_records_of_one_byte_starve_nobody(contexts):
    """A read of what is encrypted may bring thousands of them, each as dear as a read."""
    async with connected() as pair:
        ours, theirs = await encrypted(pair, contexts)
        for _ in range(4_000):
            theirs._encrypt(memoryview(b"x"))
        ticks = 0

        async def others():
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        counting = asyncio.ensure_future(others())
        await ours.readexactly(3_900, timeout=HANG_GUARD)
        assert ticks > 3_900 // here().ops // 2
        await cancelled(counting)


@signs
async def test_a_connection_that_ends_without_the_end_of_tls_is_closed_for_who_writes(contexts):
    async with connected() as pair:
        ours, theirs = await encrypted(pair, contexts)
        theirs._below._socket.shutdown(socket.SHUT_WR)
        assert await ours.read(timeout=HANG_GUARD) == b""
        with pytest.raises(errors.ConnectionClosed, match="has ended the connection"):
            await ours.write_all(b"x")


@signs
async def test_a_time_out_of_start_tls_counts_for_all_of_it(contexts, monkeypatch):
    """For what was written before, and for the handshake."""
    async with connected() as (ours, _):
        now, until = ours._reactor.owner.time(), []
        drain = Stream.drain

        async def slow(self, *, timeout=None):
            monkeypatch.setattr(self._reactor.owner, "time", lambda: now + 59.0)
            await drain(self, timeout=timeout)

        async def handshake(self, timeout):
            until.append(timeout)

        monkeypatch.setattr(Stream, "drain", slow)
        monkeypatch.setattr(TlsStream, "handshake", handshake)
        await ours.start_tls(contexts[1], server_hostname="server.example", timeout=60.0)
        monkeypatch.undo()
        assert until[0] < 2.0


@signs
async def test_what_a_client_of_tls_sent_last_arrives():
    """The server of TLS 1.3 sends tickets of its own accord. Who closes without having read them
    resets the connection: half of what he has sent is lost."""
    authority = make_authority()
    server, client = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )
    authority.issue_cert("server.example").configure_cert(server)
    authority.configure_trust(client)
    async with connected() as pair:
        ours, theirs = await asyncio.gather(
            pair[0].start_tls(client, server_hostname="server.example"),
            pair[1].start_tls(server, server_side=True),
        )
        ours.write_soon(b"x" * 3_000_000)
        closing = asyncio.create_task(ours.aclose(timeout=HANG_GUARD))
        size = 0
        while data := await theirs.read(timeout=HANG_GUARD):
            size += len(data)
            await asyncio.sleep(0.001)
        assert size == 3_000_000
        await closing


class Struck(Exception):
    """What the signal handler raises."""


class Signals:
    """A signal handler that raises once, at the nth place where the interpreter calls it while a
    task is in peertalk.net: behind a call of a function in C, whose result is lost, and at the
    beginning of one in Python."""

    def __init__(self, nth):
        self.nth, self.places, self.task = nth, 0, None

    def __call__(self, frame, event, _):
        inside = frame.f_globals.get("__name__", "").startswith("peertalk.net")
        if inside and event in ("call", "c_return") and asyncio.current_task() is self.task:
            self.places += 1
            if self.places == self.nth:
                sys.setprofile(None)
                raise Struck


@pytest.mark.parametrize("call", ["read", "readexactly", "readuntil", "readinto"])
async def test_a_read_that_a_signal_has_struck_loses_no_byte(core, call):
    """On the roads in Python: those with a time-out."""
    if core.name == "reference":
        pytest.skip("did not run: what reads there is Python, and may be struck itself")
    lines = b"".join(b"%03d\n" % number for number in range(12))
    signals, nth = Signals(0), 0
    while signals.places >= nth:
        nth += 1
        async with connected() as (ours, theirs):
            peer, data = theirs.fileno(), bytearray()

            async def feed(peer=peer):
                for at in range(0, len(lines), 16):
                    os.write(peer, lines[at : at + 16])
                    for _ in range(4):
                        await asyncio.sleep(0)

            async def read(stream=ours):
                if call == "readinto":
                    buffer = bytearray(7)
                    return buffer[: await stream.readinto(buffer, timeout=HANG_GUARD)]
                if call == "readuntil":
                    return await stream.readuntil(timeout=HANG_GUARD)
                return await getattr(stream, call)(4, timeout=HANG_GUARD)

            feeding = asyncio.ensure_future(feed())
            signals = Signals(nth)
            signals.task = asyncio.current_task()
            sys.setprofile(signals)
            try:
                while len(data) < len(lines):
                    try:
                        data += await read()
                    except Struck:
                        continue
            finally:
                sys.setprofile(None)
            assert data == lines, f"struck at place {nth}"
            await feeding
    assert nth > 30


async def test_what_waits_is_sent_once_though_a_signal_strikes(core):
    if core.name == "reference":
        pytest.skip("did not run: what writes there is Python, and may be struck itself")
    signals, nth = Signals(0), 0
    while signals.places >= nth:
        nth += 1
        async with connected() as (ours, theirs):
            signals = Signals(nth)
            signals.task = asyncio.current_task()
            ours._gather(b"0123456789")
            sys.setprofile(signals)
            try:
                ours._flush()
            except Struck:
                pass
            finally:
                sys.setprofile(None)
            await ours.drain()
            await ours.write_eof()
            assert await theirs.readexactly(10) == b"0123456789"
            assert await theirs.read() == b"", f"struck at place {nth}"
    assert nth > 3
