"""What peertalk.net gives out."""

from __future__ import annotations

import peertalk.net as net


def test_all_that_it_names_is_there_and_has_a_docstring():
    for name in net.__all__:
        thing = getattr(net, name)
        assert thing is int or thing.__doc__, name


def test_the_names_of_system_s3_are_exported():
    assert net.TcpStream is net.Stream
    assert net.TcpListener is net.Listener
    for name in ("AsyncSocketState", "AsyncSocketHandler", "Token", "SocketInterest"):
        assert name in net.__all__
    assert [each.name for each in net.SocketInterest] == ["READABLE", "WRITABLE"]
    assert net.SocketInterest.NONE == 0
    assert (
        net.SocketInterest.READ_WRITE == net.SocketInterest.READABLE | net.SocketInterest.WRITABLE
    )
    assert net.SocketDescriptor is int
