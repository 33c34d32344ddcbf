"""What a user's type checker sees: a right program passes mypy --strict, and each wrong line of a
wrong one is found.

The package is looked up as an installed one, so py.typed counts. mypy runs once, over both
programs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import peertalk

pytest.importorskip("mypy", reason="did not run: mypy is not installed")

RIGHT = """
import asyncio
from array import array
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Unpack, assert_never, assert_type

import peertalk as pt
import peertalk.sync as blocking


class Service(pt.Node):
    # a node with something of its own

    def serve(self) -> str:
        return self.name


class Tool(blocking.Node):
    def work(self) -> str:
        return self.name


async def post(peer: pt.Peer, data: pt.Payload, **options: Unpack[pt.lowlevel.SendOptions]) -> int:
    return await peer.send(data, **options)


def told(event: pt.Event) -> pt.Peer | None:
    return event.peer if isinstance(event, pt.PeerFound | pt.Sent) else None


def told_without_await(event: blocking.Event) -> blocking.Peer | None:
    return event.peer if isinstance(event, pt.PeerFound | pt.Sent) else None


async def first(items: AsyncIterator[pt.Message[pt.Peer]]) -> bytes:
    return (await anext(items)).data


async def close_behind(node: pt.Node, peer: pt.Peer) -> None:
    async with aclosing(peer.messages()) as messages:
        assert_type(messages, pt.lowlevel.Incoming[pt.Message[pt.Peer]])
        assert_type(await first(messages), bytes)
    async with aclosing(node.batches()), aclosing(node.datagrams()), aclosing(node.messages()):
        pass
    async with aclosing(node.events()) as events, node.events() as others:
        assert_type(await anext(events), pt.Event)
        assert_type(told(await anext(others)), pt.Peer | None)
    address: pt.lowlevel.Address = node.address
    shown: pt.lowlevel.Progress = print
    async with peer.stream_out(b"data", shown) as out:
        assert_type(out, pt.lowlevel.StreamOut)
    key: pt.lowlevel.Key = address[0]
    await post(peer, "text", key=key, timeout="1s")
    assert_type(node.memory, pt.lowlevel.MemoryReport)
    assert_type(peer.capabilities, pt.lowlevel.Capabilities | None)


async def converse(node: pt.Node) -> None:
    bob = await node.wait_for("bob", timeout="250ms")
    assert_type(bob, pt.Peer)
    assert_type(await node.wait_for(lambda peer: peer.connected and bool(peer.flags & 1)), pt.Peer)
    assert_type(await node.connect(("127.0.0.1", 7354), timeout=1), pt.Peer)
    assert_type(await bob.connect(), pt.Peer)
    assert_type(await bob.send(b"bytes", no_delay=True, connect=False, timeout=2.5), int)
    assert_type(bob.send_nowait(bytearray(b"buffer")), int)
    assert_type(await bob.send_many(["text", memoryview(b"buffer"), b"bytes", array("H")]), int)
    message = await node.receive(timeout=1)
    assert_type(message, pt.Message[pt.Peer])
    assert_type(message.peer, pt.Peer)
    assert_type(message.data, bytes)
    assert_type(message.text, str)
    await message.peer.send(message.data)
    async for message in node.messages():
        await message.peer.send_many([message.data])
    async for message in bob.messages():
        print(message.text)
    async for batch in node.batches():
        assert_type(batch, pt.Batch[pt.Peer])
        assert_type(batch.payloads, list[bytes])
        await batch.peer.disconnect()
    result = await node.broadcast("all")
    assert_type(result.accepted, list[pt.Peer])
    assert_type(result.skipped, dict[pt.Peer, pt.PeerTalkError])
    assert_type(node.peers["bob"], pt.Peer)
    assert_type(node.peers.version, int)
    assert_type(await bob.ping(timeout="1s"), float)
    assert_type(bob.latency, pt.lowlevel.Latency | None)
    assert_type(bob.flags, pt.PeerFlag)
    node.flags |= pt.PeerFlag.HOST
    assert_type(bob.queue.pressure, int)
    assert_type(bob.stats(), pt.lowlevel.PeerStatistics)
    assert_type(node.stats(), pt.lowlevel.NodeStatistics)
    assert_type(bob.state is pt.PeerState.CONNECTED, bool)
    assert_type(pt.__version__, str)


async def report(node: pt.Node) -> None:
    async for event in node.events():
        match event:
            case pt.PeerFrozen(peer) | pt.PeerThawed(peer):
                assert_type(peer.frozen, bool)
            case pt.PeerFound(peer) | pt.PeerChanged(peer) | pt.PeerConnected(peer):
                assert_type(peer, pt.Peer)
                await peer.send("welcome", priority=pt.Priority.HIGH, key="hello",
                                no_delay=True, connect=False, timeout="1s")
            case pt.PeerLost(peer, reason):
                assert_type(reason, pt.LostReason)
            case pt.NameCollision(peer, other):
                assert_type((peer, other), tuple[pt.Peer, pt.Peer | None])
            case pt.ConnectionRequested(peer):
                event.reject(pt.RejectReason.BANNED)
            case pt.PeerDisconnected(peer, error):
                assert_type(error, pt.PeerTalkError | None)
                if isinstance(error, pt.ConnectionRefused):
                    assert_type(error.reason, pt.RejectReason | None)
            case pt.Sent(peer, first, last):
                assert_type((peer, first, last), tuple[pt.Peer, int, int])
            case pt.Failed(peer, first, last, outcome, error):
                assert_type(outcome, pt.Outcome)
            case pt.LinkFault(address, someone, error):
                assert_type(address, tuple[str, int])
                assert_type(someone, pt.Peer | None)
            case pt.EventsMissed(count):
                assert_type(count, int)
            case _:
                assert_never(event)


async def serve() -> None:
    async with Service("service") as service:
        assert_type(service, Service)
        assert_type(service.serve(), str)
    assert_type(await Service("service").start(), Service)


def script() -> None:
    with Tool("tool") as tool:
        assert_type(tool, Tool)
        assert_type(tool.start().work(), str)
        for event in tool.events():
            assert_type(event, blocking.Event)
            assert_type(told_without_await(event), blocking.Peer | None)
    with blocking.Node("script", config=None, bind="127.0.0.1") as node:
        bob = node.wait_for("bob", timeout=10)
        assert_type(bob, blocking.Peer)
        assert_type(bob.send(b"hi", timeout=2), int)
        for message in node.messages(timeout=5):
            assert_type(message.peer, blocking.Peer)
            message.peer.send(message.text)
        for event in node.events():
            match event:
                case pt.PeerFound(peer):
                    assert_type(peer, blocking.Peer)
                    peer.connect(timeout="1s")
                case _:
                    pass


async def main() -> None:
    config = pt.load_config(name="alice", port=0, receive_queue_bytes="1MiB", bind=None)
    async with pt.Node(config=config) as node, pt.Node("bob", announce_interval="1s") as other:
        assert_type(node, pt.Node)
        try:
            await asyncio.gather(converse(node), report(other))
        except pt.WouldBlock as full:
            assert_type(full.reason, str)
        except pt.PeerTalkError as error:
            assert_type(error.code, int)
        assert_type(await node.aclose(timeout=1), int)


asyncio.run(main())
"""

WRONG = """
import peertalk as pt
import peertalk.sync as blocking


async def converse(node: pt.Node, peer: pt.Peer) -> None:
    await peer.send(5)  # arg-type
    await peer.send("x", timout=1)  # call-arg
    peer.send_nowait(None)  # arg-type
    peer.send(b"x")  # unused-coroutine
    await node.connect("host", 7354)  # call-arg
    await node.wait_for(7)  # arg-type
    message = await node.receive()
    message.peer.send_now(b"x")  # attr-defined
    message.data + "text"  # operator
    for each in node.messages():  # attr-defined
        pass
    pt.Nodes("x")  # attr-defined
    pt.Timeouts  # attr-defined
    pt.Node("ada", prot=7)  # call-arg
    pt.load_config(link_timeout=b"1s")  # arg-type
    blocking.Node("ada", discovery="no")  # arg-type
    data: pt.Payload = 5  # assignment
    (await anext(node.events())).peers  # union-attr
    peer.queue.presure  # attr-defined
    async for event in node.events():
        match event:
            case pt.Sent(peer, first, last, outcome):  # misc
                pass


def script(node: blocking.Node, peer: pt.Peer) -> int:
    node.connect(peer)  # arg-type
    with pt.Node("x"):  # attr-defined
        pass
    return node.receive().text  # return-value
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What mypy says of the two programs: a set of (file, line, code)."""
    room = tmp_path_factory.mktemp("typing")
    (room / "right.py").write_text(RIGHT)
    (room / "wrong.py").write_text(WRONG)
    home = str(Path(peertalk.__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": home}
    environment.pop("LD_PRELOAD", None)  # a sanitizer of ours is none of mypy's
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--cache-dir",
        str(room / "cache"),
        "right.py",
        "wrong.py",
    ]
    done = subprocess.run(
        command, cwd=room, env=environment, text=True, capture_output=True, timeout=110
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    errors = re.findall(r"^(.*?):(\d+): error: .*\[([\w-]+)\]$", done.stdout, flags=re.M)
    return {(file, int(line), code) for file, line, code in errors}, done.stdout


def test_a_program_that_uses_all_of_it_passes_strict_mypy(found):
    """Types that are right inside the package and useless outside are half the work: nobody writes
    casts to use a message."""
    errors, text = found
    assert not [each for each in errors if each[0] != "wrong.py"], text


def test_each_mistake_is_found_on_its_line(found):
    """A package that types everything as Any passes the test above."""
    errors, text = found
    meant = {
        ("wrong.py", number, match[1])
        for number, line in enumerate(WRONG.splitlines(), 1)
        if (match := re.search(r"  # ([\w-]+)$", line))
    }
    assert not meant - errors, text
    assert {line for _, line, _ in meant} >= {
        line for file, line, _ in errors if file == "wrong.py"
    }, text
