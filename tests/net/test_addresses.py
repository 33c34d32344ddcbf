"""Names are looked up, numbers are not."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from peertalk import errors
from peertalk.net import Listener, Stream
from peertalk.net.addresses import Resolved, resolve


async def test_numbers_ask_nobody(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    for text, family, address in (
        ("127.0.0.1:7", socket.AF_INET, ("127.0.0.1", 7)),
        ("[::1]:7", socket.AF_INET6, ("::1", 7, 0, 0)),
        (("::1", 7, 0, 3), socket.AF_INET6, ("::1", 7, 0, 3)),
        ("./here", socket.AF_UNIX, "./here"),
    ):
        found = await resolve(text, kind=socket.SOCK_STREAM, passive=False)
        assert found == [Resolved(family, address)]


async def test_a_name_stands_for_each_of_its_addresses_once():
    found = await resolve("localhost:7", kind=socket.SOCK_STREAM, passive=False)
    assert found
    assert len(found) == len(set(found))
    assert all(each.address[1] == 7 for each in found)
    assert str(found[0]).endswith(":7")
    anywhere = await resolve(":7", kind=socket.SOCK_STREAM, passive=True)
    assert {each.address[0] for each in anywhere} & {"0.0.0.0", "::"}


async def test_a_name_that_nobody_has_is_told():
    for name in ("no-such-host.invalid", "x" * 300, "a..b"):
        with pytest.raises(errors.NetworkFailure, match="not known"):
            await resolve((name, 7), kind=socket.SOCK_STREAM, passive=False)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("/" + "x" * 107, "108 bytes; that of a Unix socket has 107 at most"),
        ("/tmp/\udcff" + "x" * 107, "at most"),
        (Path("a\0b"), "a zero byte"),
        (("localhost", 7, 0, 0), "in numbers"),
        (("127.0.0.1", 7, 0, 0), "in numbers"),
        (("::1", 7, 1 << 20, 0), "flow 1048576"),
        (("::1", 7, -1, 0), "flow -1"),
        (("::1", 7, "0", 0), "flow '0'"),
        (("::1", 7, 0, 1 << 32), "scope"),
    ],
)
@pytest.mark.parametrize("call", [Stream.connect, Listener.bind])
async def test_what_the_system_would_not_take_is_told_before(call, address, said):
    with pytest.raises(errors.InvalidArgument, match=said):
        await call(address)


async def test_a_scope_may_be_named_twice():
    """As the system itself writes it in the addresses of callers."""
    address = ("fe80::1%lo", 7, 0, 1)
    found = await resolve(address, kind=socket.SOCK_STREAM, passive=False)
    assert found == [Resolved(socket.AF_INET6, address)]


@pytest.mark.skipif(sys.platform != "linux", reason="did not run: no abstract names here")
async def test_a_unix_socket_may_have_an_abstract_name():
    name = Path(f"\0peertalk test {os.getpid()}")
    async with await Listener.bind(name) as listener:
        with pytest.raises(errors.AddressInUse):
            await Listener.bind(name)
        async with await Stream.connect(name) as ours, await listener.accept() as theirs:
            await ours.write_all(b"x")
            assert await theirs.read() == b"x"
