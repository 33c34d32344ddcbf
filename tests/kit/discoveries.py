"""A discovery to ask, what it may hear, and what it has said."""

from __future__ import annotations

import random

from peertalk._core.values import ANNOUNCE
from peertalk.protocol.discovery import Discovery, Outgoing
from peertalk.protocol.wire import Announcement, decode_announcement, encode_announcement

OWN = bytes.fromhex("0101010101010101")
INTERVAL, TIMEOUT, STALE = 5.0, 30.0, 20.0


def instance(number: int) -> bytes:
    return (number + 2).to_bytes(8, "big")


def make(core, **options) -> Discovery:
    """A discovery of ours, started at 0, its first packets sent."""
    discovery = Discovery(
        core,
        **{
            "instance": OWN,
            "name": "me",
            "port": 7354,
            "announce_interval": INTERVAL,
            "peer_timeout": TIMEOUT,
            "chance": random.Random(1).random,
            **options,
        },
    )
    discovery.start(0.0)
    discovery.data_to_send(0.0)
    return discovery


def packet(core, kind=ANNOUNCE, who=None, name="ada", port=7354, **rest) -> bytes:
    """A packet of peer number `who`, or of a classic one."""
    return encode_announcement(
        core,
        Announcement(kind, name, port, instance=None if who is None else instance(who), **rest),
    )


def news(discovery: Discovery) -> list[object]:
    """All events that wait."""
    return list(iter(discovery.next_event, None))


def kinds(packets: list[Outgoing]) -> list[int]:
    """Of what goes to everybody."""
    assert all(packet.to is None for packet in packets)
    return [packet.kind for packet in packets]


def said(core, packets: list[Outgoing]) -> list[Announcement]:
    """What is said to everybody."""
    assert kinds(packets) == [decode_announcement(core, packet.data).type for packet in packets]
    return [decode_announcement(core, packet.data) for packet in packets]
