"""What the system refuses, as users hear of it."""

from __future__ import annotations

import errno
import socket

import pytest
from kit.streams import connected

from peertalk import errors
from peertalk.net.endpoint import fault, peer_of


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ECONNRESET, errors.ConnectionClosed),
        (errno.EPIPE, errors.ConnectionClosed),
        (errno.ETIMEDOUT, errors.Timeout),
        (errno.ECONNREFUSED, errors.ConnectionRefused),
        (errno.EBADF, errors.InvalidState),
        (errno.ENOBUFS, errors.OutOfMemory),
        (errno.EMSGSIZE, errors.MessageTooLarge),
        (errno.EHOSTUNREACH, errors.NetworkFailure),
    ],
)
def test_each_refusal_has_its_kind_and_says_whom_it_concerns(number, kind):
    error = fault(number, "stream to ada")
    assert type(error) is kind
    assert str(error).startswith("stream to ada: ")


async def test_a_descriptor_that_somebody_else_has_closed_is_told():
    async with connected() as (ours, theirs):
        await theirs.write_all(b"x")
        assert await ours.read() == b"x"
        ours._socket.close()
        ours.state.readable = True
        with pytest.raises(errors.InvalidState, match="closed by somebody else"):
            await ours.read()


async def test_whom_a_socket_is_connected_to_is_said_as_people_write_it():
    async with connected() as (ours, theirs):
        host, port = theirs.local_addr
        assert peer_of(ours._socket) == f"{host}:{port}"
        assert repr(ours) == f"<peertalk.net.Stream descriptor {ours.fileno()}>"
        assert ours.token != theirs.token
    with socket.socket() as nobody:
        assert peer_of(nobody) == "an unknown address"
