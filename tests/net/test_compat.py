"""What asyncio calls streams, over ours: its own programs and its own tests are the judges."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import io
import os
import re
import socket
import ssl
import sys
import types
import unittest

import pytest
from kit.certificates import make_authority, signs

from peertalk import net
from peertalk.net.compat import LIMIT
from peertalk.net.pair import Connection, StreamReader
from peertalk.net.stream import Stream
from peertalk.runtime.reactor import here

FUNCTIONS = ("open_connection", "open_unix_connection", "start_server", "start_unix_server")

# CPython's own tests ------------------------------------------------------------------------------

OVER_SOCKETS = (
    "test_async_writer_api",
    "test_async_writer_api_exception_after_close",
    "test_drain_raises",
    "test_eof_feed_when_closing_writer",
    "test_open_connection",
    "test_open_connection_no_loop_ssl",
    "test_open_unix_connection",
    "test_open_unix_connection_no_loop_ssl",
    "test_start_server",
    "test_start_tls",
    "test_start_unix_server",
    "test_unclosed_resource_warnings",
    "test_unclosed_server_resource_warnings",
    "test_unhandled_cancel",
    "test_unhandled_exception",
    "test_unhandled_exceptions",
    "test_wait_closed_on_close",
    "test_wait_closed_on_close_with_unread_data",
)
FED_BY_HAND = (
    "test_feed_empty_data",
    "test_feed_nonempty_data",
    "test_read",
    "test_read_eof",
    "test_read_limit",
    "test_read_line_breaks",
    "test_read_until_eof",
    "test_read_zero",
    "test_readexactly",
    "test_readexactly_eof",
    "test_readexactly_limit",
    "test_readexactly_zero_or_less",
    "test_readline",
    "test_readline_empty_eof",
    "test_readline_eof",
    "test_readline_limit",
    "test_readline_limit_with_existing_data",
    "test_readline_nolimit_nowait",
    "test_readline_read_byte_count",
    "test_readuntil_bytearray",
    "test_readuntil_eof",
    "test_readuntil_multi_chunks",
    "test_readuntil_multi_chunks_1",
    "test_readuntil_multi_separator",
    "test_readuntil_multi_separator_limit",
    "test_readuntil_multi_separator_negative_offset",
    "test_readuntil_separator",
)
"""Those that make a StreamReader and feed it: here by way of a socket."""
LEFT_OUT = {
    "it sets an exception by hand, which nothing here can": (
        "test_exception",
        "test_exception_cancel",
        "test_exception_waiter",
        "test_read_exception",
        "test_readexactly_exception",
        "test_readline_exception",
    ),
    "it tells the protocol that the connection is lost, and there is none": (
        "test_open_connection_error",
        "test_open_unix_connection_error",
    ),
    "the end is known here when a read has found it, and not before": ("test_at_eof",),
    "what lies in the system is not looked at while what was read is longer than the limit": (
        "test_readuntil_limit_found_sep",
    ),
    "it is about how asyncio's classes are made, and shown": (
        "test___repr__",
        "test___repr__data",
        "test___repr__eof",
        "test___repr__exception",
        "test___repr__nondefault_limit",
        "test___repr__transport",
        "test___repr__waiter",
        "test_invalid_limit",
        "test_multiple_drain",
        "test_read_all_from_pipe_reader",
        "test_streamreader_constructor_use_global_loop",
        "test_streamreader_constructor_use_running_loop",
        "test_streamreader_constructor_without_loop",
        "test_streamreaderprotocol_constructor_use_global_loop",
        "test_streamreaderprotocol_constructor_use_running_loop",
        "test_streamreaderprotocol_constructor_without_loop",
    ),
    "it is about asyncio's errors, which are raised here as they are": (
        "test_IncompleteReadError_pickleable",
        "test_LimitOverrunError_pickleable",
    ),
    "it asserts nothing behind loop.stop(), at which it ends": (
        "test_loop_is_closed_resource_warnings",
    ),
}


class Fed:
    """A reader of ours that is fed as those tests feed theirs: a socket lies between."""

    made: list[Fed] = []  # noqa: RUF012 - emptied behind each test

    def __init__(self, limit=LIMIT, loop=None):
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self.theirs.setblocking(False)

        async def make():
            return Connection(Stream(here(), ours))

        self.connection = loop.run_until_complete(make())
        self.reader = StreamReader(self.connection, limit)
        self.left = ours
        Fed.made.append(self)

    def __getattr__(self, name):
        return getattr(self.reader, name)

    def feed_data(self, data):
        assert self.theirs.send(data) == len(data)

    def feed_eof(self):
        self.theirs.shutdown(socket.SHUT_WR)

    @property
    def _buffer(self):
        """What was fed and not taken."""
        with contextlib.suppress(BlockingIOError):
            return bytes(self.reader._buffer) + self.left.recv(1 << 20, socket.MSG_PEEK)
        return bytes(self.reader._buffer)

    def close(self):
        self.connection.stream.close_now()
        self.theirs.close()


@pytest.fixture
def cpythons(monkeypatch):
    """The test case of asyncio's streams, whose asyncio has our functions and our reader."""
    streams = pytest.importorskip(
        "test.test_asyncio.test_streams", reason="did not run: this Python has no package of tests"
    )
    ours = {name: getattr(net, name) for name in FUNCTIONS}
    names = {**vars(asyncio), **ours, "StreamReader": Fed}
    monkeypatch.setattr(streams, "asyncio", types.SimpleNamespace(**names))
    yield streams.StreamTests
    while Fed.made:
        Fed.made.pop().close()


@pytest.mark.parametrize("name", OVER_SOCKETS + FED_BY_HAND)
def test_asyncios_own_test_passes(cpythons, name):
    """Whoever wrote asyncio has said here what programs may rely on."""
    if not hasattr(cpythons, name):
        pytest.skip(f"did not run: Python {sys.version.split()[0]} has no such test")
    said = io.StringIO()
    result = unittest.TextTestRunner(said, verbosity=2).run(cpythons(name))
    gc.collect()
    assert result.wasSuccessful() and result.testsRun == 1, said.getvalue()
    if result.skipped:
        pytest.skip(f"did not run: {result.skipped[0][1]}")


def test_each_of_asyncios_own_tests_has_its_verdict(cpythons):
    """What is left out has a reason, and is not forgotten."""
    listed = {*OVER_SOCKETS, *FED_BY_HAND, *(name for each in LEFT_OUT.values() for name in each)}
    names = {name for name in dir(cpythons) if name.startswith("test_")}
    if sys.version_info < (3, 14):
        assert names <= listed
    assert len(names & listed) > 50


# A program of asyncio's documentation -------------------------------------------------------------

SERVER = """
import asyncio

async def handle_echo(reader, writer):
    data = await reader.read(100)
    message = data.decode()
    addr = writer.get_extra_info('peername')

    print(f"Received {message!r} from {addr!r}")

    print(f"Send: {message!r}")
    writer.write(data)
    await writer.drain()

    print("Close the connection")
    writer.close()
    await writer.wait_closed()

async def main():
    server = await asyncio.start_server(
        handle_echo, '127.0.0.1', 8888)

    addrs = ', '.join(str(sock.getsockname()) for sock in server.sockets)
    print(f'Serving on {addrs}')

    async with server:
        await server.serve_forever()

asyncio.run(main())
"""
CLIENT = """
import asyncio

async def tcp_echo_client(message):
    reader, writer = await asyncio.open_connection(
        '127.0.0.1', 8888)

    print(f'Send: {message!r}')
    writer.write(message.encode())
    await writer.drain()

    data = await reader.read(100)
    print(f'Received: {data.decode()!r}')

    print('Close the connection')
    writer.close()
    await writer.wait_closed()

asyncio.run(tcp_echo_client('Hello World!'))
"""
"""TCP echo server and client using streams: docs.python.org, library/asyncio-stream.html."""


def ported(program, port):
    """The program over our streams, at this port."""
    program = re.sub(rf"asyncio\.(?={'|'.join(FUNCTIONS)})", "peertalk.net.", program)
    return program.replace("import asyncio", "import asyncio, peertalk.net").replace("8888", port)


def test_a_program_of_asyncios_documentation_runs_with_two_words_changed(start_python):
    """The reason for this module: nobody has to write a program anew to try it."""
    server = start_python("-u", "-c", ported(SERVER, "0"))
    serving = server.stdout.readline()
    port = re.fullmatch(r"Serving on \('127\.0\.0\.1', (\d+)\)\n", serving)[1]
    client = start_python("-W", "error", "-c", ported(CLIENT, port))
    said, complained = client.communicate()
    assert (said, complained) == (
        "Send: 'Hello World!'\nReceived: 'Hello World!'\nClose the connection\n",
        "",
    )
    heard = [server.stdout.readline() for _ in range(3)]
    assert re.fullmatch(r"Received 'Hello World!' from \('127\.0\.0\.1', \d+\)\n", heard[0])
    assert heard[1:] == ["Send: 'Hello World!'\n", "Close the connection\n"]


# Connections and servers --------------------------------------------------------------------------


async def echo(reader, writer):
    """Answer each line, and close."""
    async for line in reader:
        writer.write(line)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


def port_of(server):
    return server.sockets[0].getsockname()[1]


async def test_lines_go_there_and_back():
    """A port may be text, as it comes from a command line."""
    async with await net.start_server(echo, "127.0.0.1", 0) as server:
        assert server.is_serving() and server.get_loop() is asyncio.get_running_loop()
        reader, writer = await net.open_connection("127.0.0.1", str(port_of(server)))
        writer.writelines([b"one\n", b"two\n", bytearray(b"three")])
        writer.write_eof()
        assert await reader.read() == b"one\ntwo\nthree" and reader.at_eof()
        writer.close()
        await writer.wait_closed()
    assert not server.is_serving() and server.sockets == ()


async def test_what_is_known_of_a_connection_is_known_after_its_end_too():
    """Programs log whom they have lost."""
    async with await net.start_server(echo, "127.0.0.1", 0) as server:
        _, writer = await net.open_connection("127.0.0.1", port_of(server))
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        ours = writer.get_extra_info("socket").getsockname()
        writer.close()
        await writer.wait_closed()
        assert writer.get_extra_info("sockname") == ours
        assert writer.get_extra_info("peername") == ("127.0.0.1", port_of(server))
        assert writer.get_extra_info("sslcontext") is None
        assert writer.get_extra_info("cipher", "none") == "none"
        assert writer.can_write_eof()


async def test_a_server_listens_at_each_address_of_each_host():
    """localhost has two, and callers may try either. Nobody else here listens at these two."""
    hosts = [f"127.{part}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}" for part in (78, 79)]
    async with await net.start_server(echo, hosts, 0) as server:
        assert [each.getsockname()[0] for each in server.sockets] == hosts
        for each in server.sockets:
            reader, writer = await net.open_connection(*each.getsockname())
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
            writer.close()
    with socket.create_server((hosts[1], 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError) as failed:
            await net.start_server(echo, hosts, port)
        assert failed.value.errno == errno.EADDRINUSE
        with socket.create_server((hosts[0], port)):
            """The first address was given back."""


async def test_without_a_host_a_server_listens_everywhere():
    """As asyncio's does: also for those who call by IPv6, where there is that."""
    async with await net.start_server(echo, port=0) as server:
        assert {each.getsockname()[0] for each in server.sockets} <= {"0.0.0.0", "::"}
        _, writer = await net.open_connection("127.0.0.1", port_of(server))
        writer.close()


async def test_sockets_that_are_there_already_are_taken():
    """Programs bind before they give up their rights, and get sockets from whoever starts them."""
    bound = socket.create_server(("127.0.0.1", 0))
    connected = socket.create_connection(bound.getsockname())
    async with await net.start_server(echo, sock=bound) as server:
        assert [each.fileno() for each in server.sockets] == [bound.fileno()]
        reader, writer = await net.open_connection(sock=connected)
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        writer.close()
    assert bound.fileno() == connected.fileno() == -1


async def test_a_server_that_does_not_serve_yet_lets_callers_wait():
    """start_serving() accepts them, and may be called again."""
    async with await net.start_server(echo, "127.0.0.1", 0, start_serving=False) as server:
        assert not server.is_serving()
        reader, writer = await net.open_connection("127.0.0.1", port_of(server))
        writer.write(b"hello\n")
        await server.start_serving()
        await server.start_serving()
        assert await reader.readline() == b"hello\n"
        writer.close()


async def test_unix_sockets_are_served_and_their_path_is_removed(tmp_path):
    """Text without a slash is a path here."""
    path = tmp_path / "here"
    with contextlib.chdir(tmp_path):
        async with await net.start_unix_server(echo, "here"):
            reader, writer = await net.open_unix_connection(str(path))
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
            writer.close()
    assert not path.exists()
    with pytest.raises(ConnectionRefusedError):
        await net.open_unix_connection(path)


async def test_closing_a_server_leaves_its_connections_and_waits_for_them():
    """wait_closed() is done when the last of them is closed."""
    server = await net.start_server(echo, "127.0.0.1", 0)
    reader, writer = await net.open_connection("127.0.0.1", port_of(server))
    writer.write(b"hello\n")
    assert await reader.readline() == b"hello\n"
    server.close()
    server.close()
    waiting = asyncio.create_task(server.wait_closed())
    writer.write(b"more\n")
    assert await reader.readline() == b"more\n"
    assert not waiting.done()
    writer.close()
    await waiting
    with pytest.raises(RuntimeError, match="closed"):
        await server.start_serving()
    with pytest.raises(RuntimeError, match="closed"):
        await server.serve_forever()


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_serve_forever_ends_with_its_server(how):
    """Whoever cancels it closes the server; a second one is refused."""
    server = await net.start_server(echo, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    forever = asyncio.create_task(server.serve_forever())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="serve_forever"):
        await server.serve_forever()
    if how == "closed":
        server.close()
    else:
        forever.cancel()
    with pytest.raises(asyncio.CancelledError):
        await forever
    assert not server.is_serving()
    with pytest.raises(ConnectionRefusedError) as refused:
        await net.open_connection(*address)
    assert refused.value.errno == errno.ECONNREFUSED


async def test_a_callback_that_is_no_coroutine_may_keep_what_it_gets():
    """And one that raises is told to the loop, and ends its connection alone."""
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    got = asyncio.Queue()

    def keep(reader, writer):
        if told:
            got.put_nowait((reader, writer))
        else:
            writer.close()
            raise ZeroDivisionError

    async with await net.start_server(keep, "127.0.0.1", 0) as server:
        reader, writer = await net.open_connection("127.0.0.1", port_of(server))
        assert await reader.read() == b""
        writer.close()
        assert isinstance(told[0]["exception"], ZeroDivisionError)
        reader, writer = await net.open_connection("127.0.0.1", port_of(server))
        _, theirs = await got.get()
        theirs.write(b"kept")
        theirs.close()
        assert await reader.read() == b"kept"
        writer.close()
    assert len(told) == 1


# What is refused ----------------------------------------------------------------------------------


async def test_a_name_that_nobody_has_is_a_gaierror():
    """Programs tell it from a host that does not answer."""
    with pytest.raises(socket.gaierror):
        await net.open_connection("nobody.invalid", 80)
    with pytest.raises(socket.gaierror):
        await net.start_server(echo, "nobody.invalid", 0)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"server_hostname": "here"}, ValueError, "only meaningful with ssl"),
        ({"local_addr": ("127.0.0.1", 0)}, NotImplementedError, "local_addr"),
        ({"family": socket.AF_INET6}, NotImplementedError, "family"),
        ({"reuse_address": False}, NotImplementedError, "reuse_address"),
        ({"colour": 1}, TypeError, "colour"),
        ({"limit": 0}, ValueError, "limit"),
    ],
)
async def test_an_option_that_is_not_there_is_refused_by_name(options, error, match):
    """Silence would be a connection of another kind than the program thinks."""
    for opened in (
        functools.partial(net.open_connection, "127.0.0.1", 1),
        functools.partial(net.start_server, echo, "127.0.0.1", 0),
        functools.partial(net.open_unix_connection, "/nowhere"),
        functools.partial(net.start_unix_server, echo, "/nowhere"),
    ):
        with pytest.raises(error, match=match):
            await opened(**options)


async def test_options_that_say_what_is_so_anyway_are_taken():
    """Existing programs write them out."""
    said = {"ssl": None, "family": socket.AF_UNSPEC, "flags": socket.AI_PASSIVE, "proto": 0}
    server = await net.start_server(
        echo, "127.0.0.1", 0, reuse_address=True, reuse_port=True, backlog=5, **said
    )
    async with server:
        _, writer = await net.open_connection("127.0.0.1", port_of(server), **said)
        writer.close()


async def test_host_and_socket_exclude_each_other_and_one_is_needed():
    """As asyncio has it; a socket for datagrams is none."""
    with socket.socket() as sock, socket.socket(type=socket.SOCK_DGRAM) as packets:
        for opened in (
            net.open_connection,
            net.open_unix_connection,
            functools.partial(net.start_server, echo),
            functools.partial(net.start_unix_server, echo),
        ):
            with pytest.raises(ValueError, match="sock"):
                await opened("127.0.0.1", sock=sock)
            with pytest.raises(ValueError, match="sock"):
                await opened()
            with pytest.raises(ValueError, match="Stream Socket"):
                await opened(sock=packets)


# TLS ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contexts():
    """Of a server, and of a client that trusts it."""
    authority = make_authority()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "server.example").configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return server, client


@signs
async def test_lines_go_there_and_back_encrypted(contexts):
    """The certificate is that of the host, unless another name is given."""
    async with await net.start_server(echo, "127.0.0.1", 0, ssl=contexts[0]) as server:
        for names in ({}, {"server_hostname": "server.example"}):
            reader, writer = await net.open_connection(
                "127.0.0.1", port_of(server), ssl=contexts[1], ssl_handshake_timeout=60, **names
            )
            assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
            assert writer.get_extra_info("sslcontext") is contexts[1]
            assert writer.get_extra_info("peercert") and writer.get_extra_info("cipher")
            writer.write(b"hello\n" * 40_000)
            await writer.drain()
            assert await reader.readexactly(240_000) == b"hello\n" * 40_000
            assert not writer.can_write_eof()
            with pytest.raises(NotImplementedError):
                writer.write_eof()
            writer.close()
            await writer.wait_closed()


@signs
async def test_a_certificate_that_is_not_trusted_is_what_ssl_raises(contexts):
    """Programs catch ssl.SSLCertVerificationError; and the server goes on."""
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with await net.start_server(echo, "127.0.0.1", 0, ssl=contexts[0]) as server:
        where = ("127.0.0.1", port_of(server))
        with pytest.raises(ssl.SSLCertVerificationError):
            await net.open_connection(*where, ssl=True)
        with pytest.raises(ssl.SSLCertVerificationError):
            await net.open_connection(*where, ssl=contexts[1], server_hostname="other.example")
        _, plain = await net.open_connection(*where)
        plain.write(b"no TLS at all\n" * 100)
        plain.close()
        _, writer = await net.open_connection(*where, ssl=contexts[1])
        writer.close()
    assert told == []


@signs
async def test_a_server_that_leaves_before_tls_is_agreed_on_resets_the_connection(contexts):
    """As asyncio says it; and the reader, the writer and the server are over."""

    async def leave(reader, writer):
        await reader.read(1)
        writer.close()

    async with await net.start_server(leave, "127.0.0.1", 0) as server:
        with pytest.raises(ConnectionResetError):
            await net.open_connection("127.0.0.1", port_of(server), ssl=contexts[1])


@signs
async def test_closing_an_encrypted_connection_that_is_gone_raises_nothing(contexts):
    """What TLS says at its end finds nobody."""
    got = asyncio.Queue()
    async with await net.start_server(
        lambda reader, writer: got.put_nowait(writer), "127.0.0.1", 0, ssl=contexts[0]
    ) as server:
        _, writer = await net.open_connection("127.0.0.1", port_of(server), ssl=contexts[1])
        theirs = await got.get()
        sock = theirs.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs._connection.stream.close_now()
        theirs._connection._close_now()
        writer.close()
        assert writer.is_closing()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"server_hostname": "here"}, ValueError),
        ({"ssl": "yes"}, TypeError),
    ],
)
async def test_what_makes_no_sense_of_tls_is_refused(options, error):
    """Before anything is connected."""
    with pytest.raises(error):
        await net.open_connection("127.0.0.1", 1, **options)
    with pytest.raises(ValueError, match="server_hostname"):
        await net.open_unix_connection("/nowhere", ssl=True)
    with pytest.raises(TypeError, match="SSLContext"):
        await net.start_server(echo, "127.0.0.1", 0, ssl=True)


@signs
async def test_a_handshake_that_is_cut_off_closes_the_connection(contexts):
    """The other side does not sit there for ever."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        opening = asyncio.create_task(net.open_connection(*listener.getsockname(), ssl=contexts[1]))
        theirs, _ = await loop.sock_accept(listener)
        with theirs:
            assert await loop.sock_recv(theirs, 1)
            opening.cancel()
            await asyncio.wait([opening])
            while await loop.sock_recv(theirs, 1 << 16):
                pass


async def test_who_writes_without_end_lets_others_go_on():
    server = await net.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
    held: list[net.StreamWriter] = []
    async with server:
        _, writer = await net.open_connection(*server.sockets[0].getsockname())
        others = asyncio.create_task(asyncio.sleep(0))
        for _ in range(1_000):
            writer.write(b"x")
            await writer.drain()
        assert others.done()
        writer.close()
        while not held:
            await asyncio.sleep(0)
        held[0].close()


async def test_an_answer_arrives_though_nobody_has_read_the_question():
    """Asyncio reads ahead. A socket that is closed with something to read is reset."""

    async def answer(_: net.StreamReader, writer: net.StreamWriter) -> None:
        await asked.wait()
        writer.write(b"x" * 3_000_000)
        writer.close()

    asked = asyncio.Event()
    async with await net.start_server(answer, "127.0.0.1", 0) as server:
        reader, writer = await net.open_connection(*server.sockets[0].getsockname())
        writer.write(b"a question")
        await writer.drain()
        asked.set()
        assert len(await reader.read()) == 3_000_000
        writer.close()
