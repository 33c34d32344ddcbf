"""Packets: to whom, from whom, how long, and what becomes of those who find nobody."""

from __future__ import annotations

import asyncio

import pytest
from kit.streams import cancelled, waits

from peertalk import errors
from peertalk.net import Datagrams
from peertalk.runtime.reactor import Reactor


async def test_packets_go_there_and_back_whole():
    async with await Datagrams.bind("127.0.0.1:0") as ours:
        async with await Datagrams.connect(ours.local_addr) as theirs:
            for size in (0, 1, 1_000, 65_507):
                await theirs.send(b"x" * size)
                data, sender = await ours.receive()
                assert (data, sender) == (b"x" * size, theirs.local_addr)
                await ours.send(memoryview(data), sender)
                assert (await theirs.receive())[0] == data


@pytest.mark.parametrize("form", ["text", "pair", "name"])
async def test_whom_to_is_said_in_each_form(form):
    async with (
        await Datagrams.bind("127.0.0.1:0") as ours,
        await Datagrams.bind("127.0.0.1:0") as theirs,
    ):
        port = theirs.local_addr[1]
        address = {"text": f"127.0.0.1:{port}", "name": ("localhost", port)}.get(
            form, ("127.0.0.1", port)
        )
        await ours.send(b"hello", address)
        assert await theirs.receive() == (b"hello", ours.local_addr)


async def test_ipv6_too():
    async with await Datagrams.bind("[::1]:0") as ours:
        async with await Datagrams.connect(ours.local_addr) as theirs:
            await theirs.send(b"six")
            assert (await ours.receive())[0] == b"six"
            with pytest.raises(errors.InvalidArgument, match="another family"):
                await ours.send(b"four", "127.0.0.1:1")


async def test_what_comes_while_nobody_looks_is_kept_and_comes_in_order():
    async with await Datagrams.bind("127.0.0.1:0") as ours:
        async with await Datagrams.connect(ours.local_addr) as theirs:
            for number in range(50):
                await theirs.send(b"%d" % number)
            came = []
            async for data, _ in ours:
                came.append(int(data))
                if len(came) == 50:
                    break
            assert came == list(range(50))


async def test_a_packet_that_finds_nobody_is_told():
    async with await Datagrams.bind("127.0.0.1:0") as gone:
        address = gone.local_addr
    async with await Datagrams.connect(address) as ours:
        await ours.send(b"anybody?")
        with pytest.raises(errors.ConnectionRefused, match="nobody listens"):
            await ours.receive()


async def test_what_cannot_be_sent_is_told():
    async with await Datagrams.bind("127.0.0.1:0") as ours:
        with pytest.raises(errors.InvalidArgument, match="not connected"):
            await ours.send(b"to whom?")
        with pytest.raises(errors.MessageTooLarge, match="longer than a datagram"):
            await ours.send(bytes(65_508), ours.local_addr)
        with pytest.raises(errors.WrongType):
            await ours.send(b"x", 7)
        with pytest.raises(errors.AddressInUse):
            await Datagrams.bind(ours.local_addr)
    with pytest.raises(errors.InvalidArgument, match="not to a path"):
        await Datagrams.bind("/tmp/no-such-socket")
    with pytest.raises(errors.NetworkFailure):
        await Datagrams.connect("255.255.255.255:9")
    async with await Datagrams.bind(":0", broadcast=True):
        pass


async def test_who_waits_is_told_of_time_and_end():
    ours = await Datagrams.bind("127.0.0.1:0")
    with pytest.raises(errors.Timeout, match="nothing came"):
        await ours.receive(timeout=0.01)
    receiving = await waits(ours.receive())
    with pytest.raises(errors.InvalidState, match="another task receives"):
        await ours.receive()
    await cancelled(receiving)
    iterating = asyncio.ensure_future(anext(ours))
    await asyncio.sleep(0)
    ours.close_now()
    with pytest.raises(StopAsyncIteration):
        await iterating
    with pytest.raises(errors.InvalidState, match="closed"):
        await ours.send(b"x", ("127.0.0.1", 1))


async def test_who_sends_without_end_lets_others_go_on():
    """Packets that nobody takes never wait: the system drops them."""
    async with await Datagrams.bind("127.0.0.1:0") as ours:
        others = asyncio.create_task(asyncio.sleep(0))
        while not others.done():
            await ours.send(b"x", ours.local_addr)


@pytest.mark.parametrize("call", [Datagrams.bind, Datagrams.connect])
async def test_a_socket_that_cannot_be_watched_says_why(call, monkeypatch):
    def refuse(*_: object) -> None:
        raise errors.PlatformError("nobody watches")

    async with await Datagrams.bind("127.0.0.1:0") as other:
        with monkeypatch.context() as patch:
            patch.setattr(Reactor, "register", refuse)
            with pytest.raises(errors.PlatformError, match="nobody watches"):
                await call(("127.0.0.1", 9 if call == Datagrams.connect else 0))
        assert not other.closed
