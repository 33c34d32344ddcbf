"""Rooms with many nodes: what the network carries for them while nothing happens, and for each who
comes, and how soon everybody is found.

Whole nodes, on a simulated network and on a real one of their own. The rules themselves, with five
hundred on one wire, are in protocol/test_discovery.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from peertalk import sim
from peertalk._core import load
from peertalk._core.values import ANNOUNCE, QUERY
from peertalk.protocol.discovery import ROOM_RATE, SMALL_ROOM
from peertalk.protocol.wire import Announcement, encode_announcement
from peertalk.sim.world import SimulatedWorld

GUARD = 60.0
FOR_ONE = 20
"""Packets that one who comes may cost."""


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """[packets]: what simulated nodes have sent beside connections; to all counts once."""
    count = [0]

    def counting(real: Any) -> Any:
        def counted(self: Any, *args: Any) -> Any:
            before = count[0]
            outcome = real(self, *args)
            count[0] = before + 1
            return outcome

        return counted

    for name in ("broadcast", "send_to"):
        monkeypatch.setattr(SimulatedWorld, name, counting(getattr(SimulatedWorld, name)))
    return count


def test_a_simulated_room_of_whole_nodes_is_quiet_and_finds_everybody(rounds, carried):
    """The same as on one wire of bare discoveries, with engines, timers and sockets around them."""
    count = rounds(30, 500)

    async def main(net: sim.Network) -> None:
        options = {"max_peers": 2 * count, "pool_bytes": 1 << 20}
        nodes = []
        for number in range(count):
            nodes.append(await net.node(f"n{number}", **options))
            await asyncio.sleep(0.05)
        assert carried[0] <= count * FOR_ONE + ROOM_RATE * net.clock.seconds
        await asyncio.sleep(11)
        assert all(len(node.peers) == count - 1 for node in nodes)

        before = carried[0]
        await asyncio.sleep(10)
        assert carried[0] - before <= 10 * min(ROOM_RATE, count / 5)

        for number in range(3):
            before = carried[0]
            late = await net.node(f"late {number}", **options)
            await late.wait_for("n7", timeout=0.5)
            await asyncio.gather(*(node.wait_for(late.name, timeout=0.1) for node in nodes))
            await asyncio.sleep(10)
            assert len(late.peers) == count + number, "the rest with their announcements"
            assert carried[0] - before <= FOR_ONE + 11 * min(ROOM_RATE, (count + 3) / 5)

    sim.run(main, seed=5)


def test_one_seed_gives_one_trace_where_chance_picks_who_answers():
    """A run that found a fault must find it again."""

    async def main(net: sim.Network) -> str:
        for number in range(SMALL_ROOM + 4):
            await net.node(f"n{number}", max_peers=40, pool_bytes=1 << 20)
            await asyncio.sleep(0.1)
        return net.trace.hash

    assert sim.run(main, seed=1) == sim.run(main, seed=1) != sim.run(main, seed=2)


def test_in_a_small_room_everybody_is_found_at_once(carried):
    """Up to so many others a newcomer hears all of them within a fifth of a second, as ever."""

    async def main(net: sim.Network) -> None:
        nodes = [
            await net.node(f"n{number}", max_peers=SMALL_ROOM + 1) for number in range(SMALL_ROOM)
        ]
        await asyncio.sleep(11)
        before, began = carried[0], net.clock.seconds
        late = await net.node("late", max_peers=SMALL_ROOM + 1)
        for node in nodes:
            await late.wait_for(node.name, timeout=0.2)
        assert net.clock.seconds - began <= 0.2
        assert carried[0] - before <= SMALL_ROOM + 2

    sim.run(main, preset="lan")


def test_small_machines_in_a_large_room_know_that_it_is_large(rounds, carried):
    """Each remembers eight peers: it must not take all others for newcomers to be answered."""
    count = rounds(40, 60)

    async def main(net: sim.Network) -> None:
        for number in range(count):
            await net.node(f"n{number}")
        await asyncio.sleep(11)
        before = carried[0]
        await net.node("late")
        await asyncio.sleep(0.5)
        assert carried[0] - before <= FOR_ONE + count / 5 / 2 + 5

    sim.run(main)


ROOM = """
import asyncio, json, sys, time
import peertalk as pt

def sent():
    with open("/proc/net/snmp") as file:
        names, values = [line.split() for line in file if line.startswith("Udp:")]
    return int(values[names.index("OutDatagrams")])

async def main(count):
    async def come(name):
        node = pt.Node(name, bind="127.0.0.1", port=0, announce_interval=0.5)
        await node.start()
        return node

    nodes, before, began = [], sent(), time.monotonic()
    for number in range(count):
        nodes.append(await come(f"n{number}"))
        for node in nodes[:-1]:
            await node.wait_for(nodes[-1].name, timeout=60)
    coming = sent() - before, time.monotonic() - began
    for node in nodes:
        for number in range(count):
            if nodes[number] is not node:
                await node.wait_for(f"n{number}", timeout=60)
    before, began = sent(), time.monotonic()
    await asyncio.sleep(3)
    print(json.dumps([coming, (sent() - before, time.monotonic() - began)]), flush=True)
    for node in nodes:
        node.close_nowait()

asyncio.run(main(int(sys.argv[1])))
"""


def test_a_real_room_is_quiet_and_finds_everybody(rounds, netns, fork_python):
    """Sixty nodes that came one by one sent 3,787 packets, each heard by all."""
    count = rounds(45, 60)
    netns.ip("link", "set", "lo", "up")
    process = fork_python("-c", ROOM, str(count), prefix=netns.prefix)
    out, err = process.communicate(timeout=5 * GUARD)
    assert process.returncode == 0, err
    (coming, took), (at_rest, seconds) = json.loads(out)
    assert coming <= count * FOR_ONE + ROOM_RATE * took, "they announce themselves meanwhile"
    assert at_rest <= ROOM_RATE * seconds + count, "any stretch of time may hold one more of each"
    assert at_rest < count / 0.5 * seconds, "less often than each alone"


def test_who_asks_as_an_original_would_is_answered_by_a_broadcast(netns, fork_python):
    """Nobody else than it hears what goes to the port that it shares with others."""
    netns.ip("link", "set", "lo", "up")
    script = """
import asyncio, sys
import peertalk as pt

async def main():
    async with pt.Node("ada", bind="127.0.0.1"):
        print("here", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""
    asking = """
import socket, sys
packet, host = bytes.fromhex(sys.argv[1]), sys.argv[2]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hears:
    hears.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    hears.bind(("127.255.255.255", 7353))  # broadcasts only
    hears.settimeout(60)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
        asks.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        asks.bind((host, 0))
        asks.sendto(packet, ("127.255.255.255", 7353))
    while (data := hears.recv(2048))[5] != 1:
        pass
    print(data.hex())
"""
    node = fork_python("-c", script, prefix=netns.prefix)
    assert node.stdout is not None and node.stdout.readline() == "here\n"
    core = load()
    for packet in (
        Announcement(QUERY, "mac", 7354),
        Announcement(QUERY, "older", 7354, instance=b"older id", datagram_port=7355),
    ):
        asker = fork_python(
            "-c", asking, encode_announcement(core, packet).hex(), "127.0.0.9", prefix=netns.prefix
        )
        out, err = asker.communicate(timeout=GUARD)
        assert asker.returncode == 0, err
        answer = core.decode_discovery(bytes.fromhex(out))
        assert (answer.type, answer.name) == (ANNOUNCE, b"ada")
    node.communicate(timeout=GUARD)
