"""Names are looked up, numbers are not."""

from __future__ import annotations

import socket

import pytest

from peertalk import errors
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
