"""`peertalk listen`: print what comes, a line for each message."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any

import typer

from .. import Message, Node, Peer, Timeout
from ..config import Config, load_config
from ..quantities import parse_duration
from .options import NODE_SETTINGS, Json, node_options, print_json, readable, say
from .outcome import NOBODY, CommandFailed


@node_options(*NODE_SETTINGS)
def command(
    count: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of messages after which to end. Default: until Ctrl-C.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(
            help="Time without a message after which to end, in seconds, or as 500ms. Default: "
            "until Ctrl-C.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """Print each message that comes, with the name of its sender.

    With --json each line is one object.
    """
    seconds = None if timeout is None else parse_duration(timeout)
    asyncio.run(_listen(load_config(**options), count, seconds, json))


async def _listen(config: Config, count: int | None, seconds: float | None, as_json: bool) -> None:
    seen = 0
    async with Node(config=config) as node:
        say(
            f"listening as {readable(node.name)!r} on {config.bind or 'all addresses'}, port "
            f"{node.address[1]}"
        )
        while count is None or seen < count:
            try:
                message = await node.receive(timeout=seconds)
            except Timeout:
                raise CommandFailed(
                    f"no message came for {seconds:g} s, after {seen:,}", NOBODY
                ) from None
            seen += 1
            _print(message, as_json)


def _print(message: Message[Peer], as_json: bool) -> None:
    peer = message.peer
    if not as_json:
        print(
            f"{readable(peer.name)}: {readable(message.data.decode(errors='replace'))}", flush=True
        )
        return
    try:
        content = {"text": message.data.decode()}
    except UnicodeDecodeError:
        content = {"base64": base64.b64encode(message.data).decode()}
    print_json(
        {
            "peer": peer.name,
            "id": peer.id,
            "address": f"{peer.address[0]}:{peer.address[1]}",
            "bytes": len(message.data),
            **content,
        }
    )
