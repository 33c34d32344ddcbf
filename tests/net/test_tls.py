"""Streams that are encrypted: certificates, everything that is read and written, ends, and what the
other side of the ssl module's own sockets makes of it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import pytest
from conftest import HANG_GUARD
from kit.certificates import make_authority, signs
from kit.streams import cancelled, connected, narrow, read_all, waits

from peertalk import errors
from peertalk.net import Listener, Stream, TlsStream

pytestmark = signs


@pytest.fixture(scope="module")
def authority() -> Any:
    return make_authority()


@pytest.fixture(scope="module")
def server_context(authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("server.example").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def client_context(authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


@pytest.fixture
def encrypted(client_context, server_context):
    """encrypted(ours, theirs): both ends of a connection, encrypted."""

    async def both(ours: Stream, theirs: Stream) -> tuple[TlsStream, TlsStream]:
        return await asyncio.gather(
            ours.start_tls(client_context, server_hostname="server.example", timeout=HANG_GUARD),
            theirs.start_tls(server_context, server_side=True, timeout=HANG_GUARD),
        )

    return both


async def test_what_is_written_is_read_and_nobody_else_can(encrypted):
    data = bytes(range(256)) * 4_000
    async with connected() as (below, theirs):
        narrow(below, theirs)
        ours, theirs = await encrypted(below, theirs)
        assert ours.ssl_object.version() == "TLSv1.3"
        assert ours.peer_addr == theirs.local_addr
        assert ours.fileno() == below.fileno()
        assert "TlsStream" in repr(ours)
        writing = asyncio.create_task(ours.write_all(data))
        assert await read_all(theirs, len(data)) == data
        await writing
        await theirs.write_all(b"line one\nline two\n")
        assert await ours.readuntil() == b"line one\n"
        assert await ours.readexactly(4) == b"line"
        room = bytearray(5)
        assert await ours.readinto(room) == 5
        assert room == b" two\n"
        assert await ours.write(b"x" * 100_000) == 16_384
        await ours.drain()
        await ours.aclose()
        await ours.aclose()
        assert len(b"".join([piece async for piece in theirs])) == 16_384
        assert ours.closed
        for call in (ours.read(), ours.write_all(b"x")):
            with pytest.raises(errors.InvalidState, match="closed"):
                await call


async def test_a_certificate_that_is_not_trusted_ends_the_stream(server_context):
    strict = ssl.create_default_context()
    async with connected() as (ours, theirs):
        answers = await asyncio.gather(
            ours.start_tls(strict, server_hostname="server.example"),
            theirs.start_tls(server_context, server_side=True),
            return_exceptions=True,
        )
        assert all(isinstance(each, errors.NetworkError) for each in answers)
        assert "certificate" in str(answers[0])
        assert ours.closed
        assert theirs.closed


async def test_a_name_that_is_not_in_the_certificate_is_refused(server_context, client_context):
    async with connected() as (ours, theirs):
        serving = asyncio.ensure_future(theirs.start_tls(server_context, server_side=True))
        with pytest.raises(errors.NetworkFailure, match=r"other\.example"):
            await ours.start_tls(client_context, server_hostname="other.example")
        with pytest.raises(errors.NetworkError):
            await serving


async def test_who_agrees_on_tls_hears_that_the_stream_was_closed(client_context):
    """The last one of its loop, in the middle of a step that comes behind all that is ready."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        stream = await Stream.connect(listening.getsockname())
        starting = asyncio.ensure_future(
            stream.start_tls(client_context, server_hostname="server.example")
        )
        await asyncio.sleep(0)
        stream.close_now()
        with pytest.raises(errors.InvalidState, match="closed"):
            await starting


async def test_who_leaves_or_is_silent_before_tls_is_told(client_context):
    async with connected() as (ours, theirs):
        starting = await waits(ours.start_tls(client_context, server_hostname="server.example"))
        theirs.close_now()
        with pytest.raises(errors.NetworkError):
            await starting
    async with connected() as (ours, _):
        with pytest.raises(errors.Timeout):
            await ours.start_tls(client_context, server_hostname="server.example", timeout=0.01)
    async with connected() as (ours, theirs):
        await theirs.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        with pytest.raises(errors.NetworkFailure, match="no TLS with"):
            await ours.start_tls(client_context, server_hostname="server.example")


async def test_what_was_read_before_tls_is_part_of_tls(client_context, server_context):
    """STARTTLS: both say a line, and go on encrypted."""
    async with connected() as (below, under):
        await below.write_all(b"STARTTLS\n")
        assert await under.readuntil() == b"STARTTLS\n"
        serving = asyncio.ensure_future(under.start_tls(server_context, server_side=True))
        ours = await below.start_tls(client_context, server_hostname="server.example")
        theirs = await serving
        await theirs.write_all(b"ready\n")
        assert await ours.readuntil() == b"ready\n"


async def test_cancelled_calls_lose_nothing(encrypted):
    data = bytes(range(256)) * 8_000
    async with connected() as (ours, theirs):
        narrow(ours, theirs)
        ours, theirs = await encrypted(ours, theirs)
        reading = await waits(theirs.readexactly(10))
        with pytest.raises(errors.InvalidState, match="another task reads"):
            await theirs.read()
        await cancelled(reading)
        writing = await waits(ours.write_all(data))
        with pytest.raises(errors.InvalidState, match="another task writes"):
            await ours.write_all(b"x")
        await cancelled(writing)
        assert await read_all(theirs, len(data)) == data
        with pytest.raises(errors.Timeout):
            await theirs.read(timeout=0.01)
        await ours.write_all(b"behind")
        assert await theirs.read() == b"behind"


async def test_the_ssl_module_understands_it(client_context, server_context):
    """A server of the standard library's own sockets, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with server_context.wrap_socket(connection, server_side=True) as stream:
                stream.sendall(stream.recv(100).upper())
                assert stream.recv(100) == b""  # the end is told by TLS itself

        serving = asyncio.to_thread(serve)
        task = asyncio.ensure_future(serving)
        async with await Stream.connect(listening.getsockname()) as below:
            async with await below.start_tls(
                client_context, server_hostname="server.example"
            ) as ours:
                await ours.write_all(b"hello")
                assert await ours.read() == b"HELLO"
        await task


async def test_a_stream_that_is_cut_ends(encrypted):
    async with connected() as (below, under):
        ours, _ = await encrypted(below, under)
        await ours.write_all(b"x")
        under.close_now()
        with pytest.raises((errors.ConnectionClosed, StopAsyncIteration)):
            assert await ours.read() == b""
            raise StopAsyncIteration


async def test_a_server_of_tls(client_context, server_context):
    async def echo(below: Stream) -> None:
        async with await below.start_tls(server_context, server_side=True) as stream:
            async for data in stream:
                await stream.write_all(data)

    async def call(number: int) -> None:
        async with await Stream.connect(listener.local_addr) as below:
            async with await below.start_tls(
                client_context, server_hostname="server.example"
            ) as stream:
                for line in range(5):
                    await stream.write_all(b"%d of %d\n" % (line, number))
                    assert await stream.readuntil() == b"%d of %d\n" % (line, number)

    listener = await Listener.bind("127.0.0.1:0")
    serving = asyncio.create_task(listener.serve(echo))
    await asyncio.gather(*map(call, range(10)))
    listener.close_now()
    await serving


async def test_a_name_that_is_to_be_checked_has_to_be_given(client_context, server_context):
    """The ssl module would take any certificate that it trusts, whoever has it."""
    async with connected() as (ours, _):
        with pytest.raises(errors.InvalidArgument, match="server_hostname"):
            await ours.start_tls(client_context)
    async with connected() as (ours, theirs):
        await asyncio.gather(
            ours.start_tls(client_context, server_hostname="", timeout=HANG_GUARD),
            theirs.start_tls(server_context, server_side=True, timeout=HANG_GUARD),
        )


@pytest.mark.parametrize("name", [".example", "x" * 64, "a..b"])
async def test_a_name_that_is_none_and_a_context_of_the_other_side_are_told(
    name, client_context, server_context
):
    for given in (
        {"context": client_context, "server_hostname": name},
        {"context": client_context, "server_side": True},
        {"context": server_context, "server_hostname": "server.example"},
    ):
        async with connected() as (ours, _):
            with pytest.raises(errors.InvalidArgument, match="no TLS"):
                await ours.start_tls(**given)


async def test_a_second_writer_is_refused_and_tears_no_record(encrypted):
    """While another task drains; what was refused was not encrypted."""
    async with connected() as (below, theirs):
        narrow(below, theirs)
        ours, theirs = await encrypted(below, theirs)
        ours.write_soon(b"x" * 1_000_000)
        draining = await waits(ours.drain())
        with pytest.raises(errors.InvalidState, match="another task writes"):
            await ours.write_all(b"never")
        with pytest.raises(errors.InvalidState, match="another task writes"):
            ours.write_soon(b"never")
        await theirs.write_all(b"hello")
        assert await ours.read() == b"hello"
        assert await read_all(theirs, 1_000_000) == b"x" * 1_000_000
        await draining
        await ours.write_all(b"more")
        assert await theirs.read() == b"more"


async def test_what_tls_has_to_say_is_said_while_nothing_comes(authority):
    """A server that wants a certificate before it says more: the reader has to answer."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context, name in ((server, "server.example"), (client, "client.example")):
        authority.issue_cert(name).configure_cert(context)
        authority.configure_trust(context)
        context.post_handshake_auth = True
    server.verify_mode = ssl.CERT_OPTIONAL
    async with connected() as pair:
        ours, theirs = await asyncio.gather(
            pair[0].start_tls(client, server_hostname="server.example"),
            pair[1].start_tls(server, server_side=True),
        )
        theirs.ssl_object.verify_client_post_handshake()
        theirs.ssl_object.do_handshake()
        theirs.write_soon(b"")
        reading = await waits(ours.read())
        hearing = asyncio.ensure_future(theirs.read())
        while not theirs.ssl_object.getpeercert():
            await asyncio.sleep(0.001)
        await theirs.write_all(b"page")
        assert await reading == b"page"
        await cancelled(hearing)


async def test_another_thread_is_refused(encrypted):
    async with connected() as pair:
        ours, theirs = await encrypted(*pair)
        await theirs.write_all(b"hello")
        assert await ours.read(2) == b"he"
        for call in (ours.read(2), ours.write_all(b"x")):
            with pytest.raises(errors.InvalidState, match="another thread"):
                await asyncio.to_thread(asyncio.run, call)
        assert await ours.read() == b"llo"


async def test_who_writes_behind_the_end_is_told(encrypted):
    async with connected() as pair:
        ours, _ = await encrypted(*pair)
        ours.end()
        for _ in range(2):
            with pytest.raises(errors.NetworkFailure, match="TLS with"):
                ours.write_soon(b"x")
            with pytest.raises(errors.NetworkFailure, match="TLS with"):
                await ours.write_all(b"x")


async def test_who_writes_without_end_lets_others_go_on(encrypted):
    async with connected() as pair:
        ours, _ = await encrypted(*pair)
        others = asyncio.create_task(asyncio.sleep(0))
        for _ in range(1_000):
            await ours.write_all(b"x")
        assert others.done()


async def test_what_a_client_sent_last_arrives(encrypted):
    """The server sends tickets of its own accord, which the client has not read when it closes."""
    async with connected() as pair:
        ours, theirs = await encrypted(*pair)
        ours.write_soon(b"x" * 3_000_000)
        closing = asyncio.create_task(ours.aclose(timeout=HANG_GUARD))
        size = 0
        while data := await theirs.read(timeout=HANG_GUARD):
            size += len(data)
            await asyncio.sleep(0.001)
        assert size == 3_000_000
        await closing
