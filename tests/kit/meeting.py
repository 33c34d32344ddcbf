"""A node and the scripted classic peer (classic) on loopback: what the modules of the suite of
compatibility share."""

from __future__ import annotations

import contextlib
import json
import random
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import classic
from classic import (
    CAPABILITY,
    DATA,
    PING,
    PONG,
    Capabilities,
    ClassicPeer,
    Sockets,
    encode_frame,
    serving,
)

import peertalk as pt
from kit.nodes import loopback
from kit.waiting import GUARD

VECTORS = Path(__file__).resolve().parents[1] / "vectors"


@contextlib.asynccontextmanager
async def original(
    *, discovery: bool = False, dribble: int = 0, **options: Any
) -> AsyncIterator[Sockets]:
    """A classic peer that runs beside the test; what it complains about fails the test."""
    peer = ClassicPeer(**{"tcp_port": 0, "udp_port": 0, **options})
    with Sockets(peer, discovery=discovery, dribble=dribble) as sockets:
        async with serving(sockets):
            yield sockets


@contextlib.asynccontextmanager
async def dialled(
    core: str = "standard", dribble: int = 0, node: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Any]:
    """(classic peer, its link, node, the classic peer as the node knows it): the node has
    dialled."""
    async with (
        original(dribble=dribble, **options) as old,
        pt.Node("ada", **loopback(core=core, **(node or {}))) as ada,
    ):
        peer = await ada.connect(old.address, timeout=GUARD)
        yield old, await old.link(), ada, peer


def told(link: classic.Link) -> list[tuple[int, int]]:
    """(type, sequence) of what a node said on a link, but for PINGs, which it may send at any
    time."""
    return [(frame.kind, frame.sequence) for frame in link.frames if frame.kind != PING]


def noise(size: int) -> bytes:
    """Bytes that look like nothing else, the same for the same size."""
    return random.Random(size).randbytes(size)


def fragments_of(link: classic.Link) -> list[tuple[classic.Piece, bytes]]:
    """Header and data of each fragment that came over a link."""
    return [classic.decode_piece(frame.payload) for frame in link.messages if frame.flags]


async def take(node: Any, count: int) -> list[bytes]:
    return [(await node.receive(timeout=GUARD)).data for _ in range(count)]


async def still_talks(old: Sockets, link: classic.Link, node: Any, peer: Any) -> None:
    """The link lives in both directions, and nothing lies before what is sent now."""
    old.peer.frame(link, b"still there?")
    assert await take(node, 1) == [b"still there?"]
    await peer.send(b"still here")
    assert await old.message() == b"still here"


async def events_until(events: Any, kind: type) -> AsyncIterator[Any]:
    """Events up to the first of a kind, that one included."""
    async for event in events:
        yield event
        if isinstance(event, kind):
            return


def every_type(link: classic.Link) -> tuple[bytes, list[bytes]]:
    """All that may come over a link, in one piece, and the messages in it: any sequence, any flag
    that nobody uses."""
    messages = [
        b"",
        b"one",
        bytes(8192),
        b"unreliable",
        b"coalescable",
        b"no delay",
        b"all three",
        b"last",
    ]
    stream = (
        encode_frame(DATA, messages[0], 0, 200)
        + encode_frame(PING, b"")
        + encode_frame(DATA, messages[1], 0, 3)
    )
    stream += (
        encode_frame(PONG, b"", 0, 9)
        + encode_frame(DATA, messages[2], 0, 3)
        + encode_frame(classic.ACK)
        + encode_frame(classic.ACK, b"what")
    )
    for reason in (b"", b"\0", b"\2", b"\x63", bytes(100)):
        stream += encode_frame(classic.REJECT, reason)
    stream += encode_frame(
        CAPABILITY, classic.encode_capabilities(Capabilities(8192, 1024, 0, 5)), 0, 77
    )
    for message, flags in zip(messages[3:7], (1, 2, 4, 7), strict=True):
        stream += encode_frame(DATA, message, flags, 0)
    stream += (
        encode_frame(PING, b"with a payload")
        + encode_frame(PING, b"", 0x1F, 4)
        + encode_frame(PONG, b"unasked")
        + encode_frame(DATA, messages[7])
    )
    return stream, messages


LIVE = {case["id"]: case for case in json.loads((VECTORS / "tcp_stream.json").read_text())["cases"]}


async def replay(case: dict[str, Any], core: str) -> None:
    async with pt.Node("ada", **loopback(core=core)) as ada, original() as old:
        link = old.peer.call(ada.address, old.now())
        await old.link()
        expect = case["expect"]
        old.peer.write(link, bytes.fromhex(case["sent"]))
        delivered = await take(ada, len(expect["delivered"]))
        assert [
            {"len": len(data), "crc32": f"{zlib.crc32(data):08x}"} for data in delivered
        ] == expect["delivered"]
        if expect["connection"] == "closed":
            await old.until(lambda: link.closed)
        else:
            peer = next(iter(ada.peers.values()))
            await still_talks(old, link, ada, peer)
        replies = b"".join(
            encode_frame(frame.kind, frame.payload, frame.flags, frame.sequence)
            for frame in link.frames
            if frame.kind == PONG
        )
        assert replies.hex() == "".join(expect["replies"])
        assert ada.stats().messages_received == len(delivered) + (expect["connection"] == "open")
