"""One node and eight others, over loopback TCP: one sends to eight, and eight send to one; every
message handed to Python and checked there.

    python bench/fan.py [--json] [--rounds 5] [--size 64] [--seconds 0.5] [--others 8] [--no-pin]

Each node is a process, pinned: the one to one core, the eight to another. Parties are message,
sync, batch and pyzmq of bench/parties.py, whose receivers the eight are. The one that sends takes
the eight in turn, message by message (batch: a send_many for each); pyzmq has a PUSH socket for
each, and one PULL socket for all that send, which begin together. The one that receives holds each
message against its number, and counts the numbers. A figure is the sum of the rates of eight
receivers, or the rate of the one; rounds are interleaved as in bench/versus.py.
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
from collections import Counter
from collections.abc import Coroutine, Iterable
from typing import Any

from parties import (
    NUMBER,
    SenderCost,
    Stopwatch,
    Wrong,
    node_options,
    period,
    queue_length,
    ring,
    say,
)
from rounds import HERE, Manner, Side, lacking, pin

PARTIES = ("message", "sync", "batch", "pyzmq")
START_RATE = 150_000
"""Messages a second of all, assumed for the first round."""


# Who sends, to one or to several ------------------------------------------------------------------


def begin(count: int) -> SenderCost:
    """Say that all are connected, and wait for the word to begin."""
    say(ready=True)
    sys.stdin.readline()
    return SenderCost(count)


async def send_messages(size: int, count: int, ports: list[int]) -> None:
    import peertalk

    messages = ring(size)
    async with peertalk.Node(f"node {os.getpid()}", **node_options(size, False)) as node:
        peers = [await node.connect(("127.0.0.1", port)) for port in ports]
        cost, sends = begin(count * len(ports)), [peer.send for peer in peers]
        for _ in range(count // period(size)):
            for message in messages:
                for send in sends:
                    await send(message)
        await node.aclose(60)
        cost.say()


async def send_batches(size: int, count: int, ports: list[int]) -> None:
    import peertalk

    messages = ring(size)
    async with peertalk.Node(f"node {os.getpid()}", **node_options(size, False)) as node:
        peers = [await node.connect(("127.0.0.1", port)) for port in ports]
        cost = begin(count * len(ports))
        for _ in range(count // period(size)):
            for peer in peers:
                await peer.send_many(messages)
        await node.aclose(60)
        cost.say()


def send_sync(size: int, count: int, ports: list[int]) -> None:
    from peertalk.sync import Node

    messages = ring(size)
    with Node(f"node {os.getpid()}", **node_options(size, False)) as node:
        peers = [node.connect(("127.0.0.1", port)) for port in ports]
        cost, sends = begin(count * len(ports)), [peer.send for peer in peers]
        for _ in range(count // period(size)):
            for message in messages:
                for send in sends:
                    send(message)
        node.close(60)
        cost.say()


def send_zmq(size: int, count: int, ports: list[int]) -> None:
    import zmq

    messages, pushes = ring(size), []
    context = zmq.Context()
    for port in ports:
        push = context.socket(zmq.PUSH)
        push.sndhwm = queue_length(size, push.sndhwm)
        push.connect(f"tcp://127.0.0.1:{port}")
        pushes.append(push)
    cost, sends = begin(count * len(ports)), [push.send for push in pushes]
    for _ in range(count // period(size)):
        for message in messages:
            for send in sends:
                send(message)
    for push in pushes:
        push.close(linger=60_000)
    context.term()
    cost.say()


# The one that receives ----------------------------------------------------------------------------


class Tally:
    """Holds each message of several senders against its number, and counts the numbers."""

    def __init__(self, size: int, count: int) -> None:
        self.watch, self.left, self.count = Stopwatch(count), count, count
        self._due, self._seen = ring(size), Counter[int]()
        self._warm = count - self.watch.warm

    def take(self, messages: Iterable[bytes]) -> bool:
        """Count some. True: these were the last."""
        due, number_of, numbers = self._due, NUMBER.unpack_from, []
        for data in messages:
            (number,) = number_of(data)
            if data != due[number]:
                raise Wrong(data[:8])
            numbers.append(number)
        self._seen.update(numbers)
        before, self.left = self.left, self.left - len(numbers)
        if before > self._warm >= self.left:
            self._warm = self.left
            self.watch.start()
        return self.left <= 0

    def say(self) -> None:
        """What was measured; each number came as often as all others."""
        measured = self.watch.report(self._warm)
        if len(set(self._seen.values())) != 1 or self.left != 0:
            raise Wrong("numbers")
        say(**measured, total=self.count)


def in_lots(messages: Iterable[bytes], tally: Tally) -> None:
    """Count what comes one by one: a hundred at a time, which costs each party the same."""
    messages = iter(messages)
    while not tally.take(itertools.islice(messages, min(100, tally.left))):
        pass
    tally.say()


async def receive_messages(size: int, count: int) -> None:
    import peertalk

    tally, lot = Tally(size, count), []
    async with peertalk.Node(f"node {os.getpid()}", **node_options(size, False)) as node:
        say(port=node.address[1])
        async for message in node.messages():
            lot.append(message.data)
            if len(lot) >= min(100, tally.left):
                if tally.take(lot):
                    break
                lot = []
        tally.say()


async def receive_batches(size: int, count: int) -> None:
    import peertalk

    tally = Tally(size, count)
    async with peertalk.Node(f"node {os.getpid()}", **node_options(size, False)) as node:
        say(port=node.address[1])
        async for batch in node.batches():
            if tally.take(batch.payloads):
                break
        tally.say()


def receive_sync(size: int, count: int) -> None:
    from peertalk.sync import Node

    with Node(f"node {os.getpid()}", **node_options(size, False)) as node:
        say(port=node.address[1])
        in_lots((message.data for message in node.messages()), Tally(size, count))


def receive_zmq(size: int, count: int) -> None:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.rcvhwm = queue_length(size, pull.rcvhwm)
        say(port=pull.bind_to_random_port("tcp://127.0.0.1"))
        in_lots(iter(pull.recv, None), Tally(size, count))


SENDERS = dict(zip(PARTIES, (send_messages, send_sync, send_batches, send_zmq), strict=True))
RECEIVERS = dict(
    zip(PARTIES, (receive_messages, receive_sync, receive_batches, receive_zmq), strict=True)
)


# Runs ---------------------------------------------------------------------------------------------


class One(Side):
    """A process of this program. Its figures and its end are a side's."""

    def __init__(
        self, role: str, run: tuple[str, int, int], ports: list[int], core: int, pinned: bool
    ) -> None:
        party, size, count = run
        command = [sys.executable, str(HERE / "fan.py"), "--be", role, party, str(size), str(count)]
        environment = {"PEERTALK_BIND": "127.0.0.1", **os.environ}
        self.process = subprocess.Popen(
            [*command, *map(str, ports)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        if pinned:
            pin(self.process.pid, core)

    def go(self) -> None:
        """Let it begin."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


def fan_out(party: str, size: int, count: int, others: int, manner: Manner) -> float:
    """Messages a second of all receivers."""
    with contextlib.ExitStack() as stack:
        this = (party, size, count)
        sides = [stack.enter_context(Side("receive", this, 0, manner)) for _ in range(others)]
        ports = [side.line()["port"] for side in sides]
        one = stack.enter_context(One("send", this, ports, 0, manner.pin))
        one.line()
        one.go()
        rates = [side.line()["rate"] for side in sides]
        if not all([one.line(), *(side.ended_well() for side in [one, *sides])]):
            raise RuntimeError(f"{party}: a side failed")
    return sum(rates)


def fan_in(party: str, size: int, count: int, others: int, manner: Manner) -> float:
    """Messages a second of the one."""
    with contextlib.ExitStack() as stack:
        this = (party, size, count * others)
        one = stack.enter_context(One("receive", this, [], 0, manner.pin))
        port, this = one.line()["port"], (party, size, count)
        sides = [
            stack.enter_context(One("send", this, [port], 1, manner.pin)) for _ in range(others)
        ]
        for side in sides:
            side.line()
        for side in sides:
            side.go()
        rate: float = one.line()["rate"]
        if not all(side.ended_well() for side in [one, *sides]):
            raise RuntimeError(f"{party}: a side failed")
    return rate


def ratio(ours: list[float], theirs: list[float] | None) -> float | None:
    """How many times faster: the median of the rounds' own ratios. None: pyzmq did not run."""
    if theirs is None:
        return None
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 2)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each direction and party."""
    manner, size = Manner(options.pin), options.size
    rates: dict[tuple[str, str], list[float]] = {}
    for turn, (name, way), party in itertools.product(
        range(options.rounds), (("fan-out", fan_out), ("fan-in", fan_in)), options.parties
    ):
        done = rates.setdefault((name, party), [])
        rate = statistics.median(done) if done else START_RATE
        periods = max(2, round(rate * options.seconds / options.others / period(size)))
        done.append(way(party, size, periods * period(size), options.others, manner))
        print(f"round {turn + 1} {name:8} {party:8} {done[-1]:12,.0f} a second", file=sys.stderr)
    return [
        {
            "way": name,
            "party": party,
            "bytes": size,
            "messages_per_second": round(statistics.median(done)),
            "ratio_to_pyzmq": ratio(done, rates.get((name, "pyzmq"))),
        }
        for (name, party), done in rates.items()
    ]


def be(role: str, party: str, size: int, count: int, *ports: int) -> None:
    """The one of one run."""
    work = (
        SENDERS[party](size, count, list(ports))
        if role == "send"
        else RECEIVERS[party](size, count)
    )
    if isinstance(work, Coroutine):
        asyncio.run(work)


def main() -> int:
    """Run what was asked for; 0 when every message of every run arrived and was right."""
    if sys.argv[1:2] == ["--be"]:
        role, party, *numbers = sys.argv[2:]
        be(role, party, *map(int, numbers))
        return 0
    parser = argparse.ArgumentParser(description="one node and several others, by party")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="bytes of a message, 256 at most")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one run, about")
    parser.add_argument("--others", type=int, default=8)
    parser.add_argument("--parties", nargs="+", default=list(PARTIES), choices=PARTIES)
    parser.add_argument("--no-pin", dest="pin", action="store_false", help="pin no process")
    options = parser.parse_args()
    lack = lacking(options.parties)
    if lack is not None:
        print(f"bench/fan.py: {lack}", file=sys.stderr)
        return 2
    rows = measure(options)
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        of_pyzmq = row["ratio_to_pyzmq"]
        print(
            f"{row['way']:8} {row['party']:8} {row['bytes']:5} B "
            f"{row['messages_per_second'] / 1e3:8,.0f} k a second"
            + ("" if of_pyzmq is None else f", {of_pyzmq:.2f} of pyzmq")
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
