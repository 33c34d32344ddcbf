"""`peertalk peers`: who is there."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated, Any

import typer

from .. import Node, Peer, PeerConnected, PeerDisconnected, PeerFound, PeerLost
from ..config import Config, load_config
from ..quantities import parse_duration
from .options import (
    NODE_SETTINGS,
    Json,
    console,
    node_options,
    print_json,
    print_rows,
    readable,
    say,
)
from .outcome import NOBODY, CommandFailed

_WORDS = {
    PeerFound: "found",
    PeerLost: "lost",
    PeerConnected: "connected",
    PeerDisconnected: "disconnected",
}


@node_options(*NODE_SETTINGS)
def command(
    watch: Annotated[
        bool, typer.Option("--watch", help="Do not end: print each peer that comes or goes.")
    ] = False,
    timeout: Annotated[
        str | None,
        typer.Option(
            help="How long to look, in seconds, or as 500ms. In a room of more than 20 peers it "
            "takes 10 s to hear all of them. Default: 2 s, and with --watch until Ctrl-C.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """List the peers on the network.

    Exit status 3 when no peer was heard in time.
    """
    seconds = (
        None if timeout is None and watch else parse_duration("2s" if timeout is None else timeout)
    )
    look = _watch if watch else _list
    config = load_config(**options)
    if not asyncio.run(look(config, seconds, json)):
        port = config.discovery_port
        raise CommandFailed(
            f"nobody was heard within {seconds:g} s: is peertalk running elsewhere, and does a "
            f"firewall, here or there, keep out UDP {port}?",
            NOBODY,
        )


def described(peer: Peer) -> dict[str, Any]:
    """A peer as JSON."""
    return {
        "name": peer.name,
        "id": peer.id,
        "address": f"{peer.address[0]}:{peer.address[1]}",
        "state": peer.state.name.lower(),
        "classic": peer.classic,
    }


async def _list(config: Config, seconds: float | None, as_json: bool) -> int:
    async with Node(config=config) as node:
        await asyncio.sleep(seconds or 0.0)
        peers = sorted(
            (described(peer) for peer in node.peers.values()),
            key=lambda one: (one["name"], one["id"]),
        )
    if as_json:
        print_json(peers, indent=1)
    elif peers:
        rows = [
            (
                readable(one["name"]),
                one["address"],
                one["state"] + " (classic)" * one["classic"],
                one["id"],
            )
            for one in peers
        ]
        print_rows(console(), rows, heading=("name", "address", "state", "id"))
    return len(peers)


async def _watch(config: Config, seconds: float | None, as_json: bool) -> int:
    found = 0
    async with Node(config=config) as node:
        say(f"watching as {readable(node.name)!r}; Ctrl-C ends")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), node.events() as events:
                async for event in events:
                    word = _WORDS.get(type(event))
                    if word is not None:
                        found += word == "found"
                        _print(word, event.peer, as_json)  # type: ignore[union-attr]
    return found


def _print(word: str, peer: Peer | None, as_json: bool) -> None:
    if peer is None:
        return
    if as_json:
        print_json({"event": word, **described(peer)})
    else:
        print(
            f"{word:12} {readable(peer.name)}  {peer.address[0]}:{peer.address[1]}  {peer.id}",
            flush=True,
        )
