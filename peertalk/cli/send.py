"""`peertalk send`: one message, or one for each line of standard input, to somebody."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from itertools import chain
from typing import Annotated, Any

import typer

from .. import Node, Peer, Timeout, errors
from ..config import Config, load_config
from ..protocol.addresses import address_of
from ..quantities import parse_duration
from .options import NODE_SETTINGS, Json, node_options, print_json, readable, say
from .outcome import NOBODY, CommandFailed

_ANSWERS = 0.3
"""Seconds in which others of the same name answer our question who is there."""


@node_options(*NODE_SETTINGS)
def command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME TEXT",
            help="The name or id of the peer, and the message. With - as TEXT each line of "
            "standard input is a message.",
        ),
    ],
    to_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Send to this address, without discovery. Leave NAME out then.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        str,
        typer.Option(
            help="How long finding the peer, connecting and sending may take, each in seconds, or "
            "as 500ms."
        ),
    ] = "10s",
    json: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """Send a message to a peer.

    Exit status 3 when no peer of that name was heard in time.
    """
    name, address = _whom(words, to_address)
    seconds = parse_duration(timeout)
    sent = asyncio.run(_send(load_config(**options), name, address, words[-1], seconds))
    if json:
        print_json(sent)
    else:
        plural = "" if sent["messages"] == 1 else "s"
        print(
            f"sent {sent['messages']:,} message{plural}, {sent['bytes']:,} bytes, to "
            f"{readable(sent['peer'])!r} at {sent['address']}"
        )


def _whom(words: list[str], to_address: str | None) -> tuple[str | None, tuple[str, int] | None]:
    """The name or the address that the words are for."""
    wanted = 1 if to_address is not None else 2
    if len(words) != wanted:
        raise errors.InvalidArgument(
            "send takes "
            f"{'TEXT alone with --to-address' if wanted == 1 else 'NAME and TEXT'}; "
            f"words given: {len(words)}"
        )
    if to_address is None:
        return words[0], None
    address = address_of(to_address)
    if address is None:
        raise errors.InvalidArgument(
            f"--to-address {to_address!r}: write HOST:PORT, such as 192.168.1.5:7354"
        )
    return None, address


async def _send(
    config: Config, name: str | None, address: tuple[str, int] | None, text: str, seconds: float
) -> dict[str, Any]:
    messages = size = 0
    async with Node(config=config) as node:
        peer = await _find(node, name, address, seconds)
        async for payload in _payloads(text):
            await peer.send(payload, timeout=seconds)
            messages += 1
            size += len(payload)
        if name is not None and name == peer.name:
            await asyncio.sleep(_ANSWERS)
            _say_who_shares(node, peer)
        where = f"{peer.address[0]}:{peer.address[1]}"
        unsent = await node.aclose(seconds)
        failed = node.stats().messages_failed
        if unsent or failed:
            raise CommandFailed(
                f"{max(unsent, failed):,} of {messages:,} messages to {readable(peer.name)!r} "
                f"were not sent within {seconds:g} s"
            )
        return {
            "peer": peer.name,
            "id": peer.id,
            "address": where,
            "messages": messages,
            "bytes": size,
        }


def _say_who_shares(node: Node, peer: Peer) -> None:
    others = [each for each in node.peers.values() if each.name == peer.name and each is not peer]
    if others:
        said = ", ".join(f"{each.id} at {each.address[0]}:{each.address[1]}" for each in others)
        say(
            f"{len(others) + 1} peers are called {readable(peer.name)!r}: this went to {peer.id}, "
            f"not to {said}; send to an id to choose"
        )


async def _find(
    node: Node, name: str | None, address: tuple[str, int] | None, seconds: float
) -> Peer:
    if address is not None:
        return await node.connect(address, timeout=seconds)
    assert name is not None
    try:
        peer = await node.wait_for(name, timeout=seconds)
    except Timeout as error:
        raise CommandFailed(str(error), NOBODY) from None
    return await peer.connect(timeout=seconds)


async def _payloads(text: str) -> AsyncIterator[bytes]:
    if text != "-":
        yield text.encode("utf-8", "surrogateescape")
        return
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[bytes | OSError]()
    room = threading.Semaphore()  # for one line, read while the line before is sent
    # not sys.stdin, whose lock a thread that waits would hold when the interpreter ends
    standard = open(0, "rb", closefd=False)

    def give(line: bytes | OSError) -> None:
        room.acquire()
        loop.call_soon_threadsafe(lines.put_nowait, line)

    def read() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: interrupted
            try:
                for line in chain(standard, (b"",)):
                    give(line)
            except OSError as error:
                give(error)

    # a daemon, since nothing ends a read: asyncio.to_thread() would have Ctrl-C wait for a line
    threading.Thread(target=read, daemon=True).start()
    while line := await lines.get():
        if isinstance(line, OSError):
            raise line
        room.release()
        yield line.removesuffix(b"\n")
