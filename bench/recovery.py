"""How long until two nodes talk again after their network has come back: seconds from its return to
the first message that was sent after it, the later of the two directions.

    python bench/recovery.py [--json] [--rounds 3] [--at-once 8] [--case "cable 25 s" ...]

Two hosts, each a network namespace with a node of default settings, are joined by two switches (in
a third one). Ada has dialled bob, and each sends the other a message every 20 ms while there is a
connection. Then a cable between the switches is out for a while, which neither host can see; or an
interface is down for a while; or an address is replaced. `announce_interval` + 2 s (7 s) must do;
exit status 1 unless each case's median does. Linux, root and ip(8) are needed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import peertalk as pt

LIMIT_S = 7.0
_numbers = itertools.count()


class Case(NamedTuple):
    """One way to lose a network: outage in seconds; take and give: what happens to whom, as the
    host (a, b, or s for the switches) and the arguments of ip(8)."""

    outage: float
    take: tuple[tuple[str, str], ...]
    give: tuple[tuple[str, str], ...]


def _cable(seconds: float) -> Case:
    return Case(seconds, (("s", "link set middle down"),), (("s", "link set middle up"),))


def _interface(host: str, seconds: float) -> Case:
    return Case(seconds, ((host, "link set eth0 down"),), ((host, "link set eth0 up"),))


def _address(host: str) -> Case:
    new = "10.77.0.77/24 brd + dev eth0"
    return Case(0.0, ((host, "addr flush dev eth0"),), ((host, f"addr add {new}"),))


CASES = {
    **{f"cable {seconds} s": _cable(seconds) for seconds in (4, 8, 13, 25, 60)},
    "dialler's interface 8 s": _interface("a", 8),
    "dialler's interface 40 s": _interface("a", 40),
    "other's interface 40 s": _interface("b", 40),
    "dialler's address replaced": _address("a"),
    "other's address replaced": _address("b"),
}


# One node ---------------------------------------------------------------------------------------


async def talk(name: str, other: str, dials: bool) -> None:
    """Say the time to the other all the time; for each line that comes in, a time, say how long
    after that the first message came that was sent after it."""
    said: list[tuple[float, float]] = []
    async with pt.Node(name, bind="", interfaces=()) as node:

        async def hear() -> None:
            async for message in node.messages():
                said.append((float(message.text), time.monotonic()))

        async def say() -> None:
            while True:
                await asyncio.sleep(0.02)
                for peer in node.peers.values():
                    if peer.connected:
                        with contextlib.suppress(pt.PeerTalkError):
                            peer.send_nowait(str(time.monotonic()))

        tasks = [asyncio.create_task(each) for each in (hear(), say())]
        if dials:
            await (await node.wait_for(other, timeout=60)).connect(timeout=60)
        while not said:
            await asyncio.sleep(0.01)
        print("talking", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            back = float(line)
            while not (late := [heard for sent, heard in said if sent > back]):
                await asyncio.sleep(0.01)
            print(late[0] - back, flush=True)
        for task in tasks:
            task.cancel()
        node.close_nowait()


# One round --------------------------------------------------------------------------------------


def ip(*arguments: str) -> None:
    """Run ip(8)."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def build(a: str, b: str, s: str) -> None:
    """Three namespaces: two hosts, and the switches between them."""
    for each in (a, b, s):
        ip("netns", "add", each)
        ip("-n", each, "link", "set", "lo", "up")
    ip(*f"-n {s} link add middle type veth peer name end".split())
    for bridge, port, host, address in (
        ("one", "middle", a, "10.77.0.1/24"),
        ("two", "end", b, "10.77.0.2/24"),
    ):
        ip(*f"-n {s} link add {bridge} type bridge forward_delay 0".split())
        ip(*f"-n {host} link add eth0 type veth peer name {bridge}-port netns {s}".split())
        for name in (port, f"{bridge}-port"):
            ip(*f"-n {s} link set {name} master {bridge} up".split())
        ip(*f"-n {s} link set {bridge} up".split())
        ip(*f"-n {host} addr add {address} brd + dev eth0".split())
        ip(*f"-n {host} link set eth0 up".split())


def recover(case: Case) -> float:
    """One outage; seconds until both hear each other again."""
    stem = f"recovery{os.getpid()}-{next(_numbers)}"
    spaces = {each: f"{stem}{each}" for each in "abs"}
    nodes: list[subprocess.Popen[str]] = []
    try:
        build(*spaces.values())
        for space, words in (("a", ["ada", "bob", "--dial"]), ("b", ["bob", "ada"])):
            command = ["ip", "netns", "exec", spaces[space], sys.executable, __file__, "--talk"]
            nodes.append(
                subprocess.Popen(
                    [*command, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
        for node in nodes:
            assert node.stdout is not None
            if node.stdout.readline() != "talking\n":
                raise RuntimeError("two nodes did not find each other")
        for space, words in case.take:
            ip("-n", spaces[space], *words.split())
        time.sleep(case.outage)
        for space, words in case.give:
            ip("-n", spaces[space], *words.split())
        back = time.monotonic()
        took = 0.0
        for node in nodes:
            assert node.stdin is not None
            node.stdin.write(f"{back}\n")
            node.stdin.flush()
        for node in nodes:
            assert node.stdout is not None
            took = max(took, float(node.stdout.readline()))
        return took
    finally:
        for node in nodes:
            node.kill()
            node.wait()
        for space in spaces.values():
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=8, help="rounds that run side by side")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only these")
    parser.add_argument("--talk", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--dial", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.talk:
        asyncio.run(talk(*options.talk, options.dial))
        return 0
    names = options.case or list(CASES)
    once: Callable[[str], float] = lambda name: recover(CASES[name])  # noqa: E731
    with ThreadPoolExecutor(options.at_once) as pool:
        took = list(pool.map(once, names * options.rounds))
    figures = [
        {
            "case": name,
            "median_s": round(statistics.median(took[place :: len(names)]), 2),
            "longest_s": round(max(took[place :: len(names)]), 2),
            "rounds": options.rounds,
        }
        for place, name in enumerate(names)
    ]
    if options.json:
        print(json.dumps(figures))
    else:
        for row in figures:
            print(
                f"{row['case']:<28} median {row['median_s']:5.2f} s, "
                f"longest {row['longest_s']:5.2f} s"
            )
    return 0 if all(float(str(row["median_s"])) <= LIMIT_S for row in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
