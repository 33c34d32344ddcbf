"""peertalk against pyzmq PUSH/PULL: one way over loopback TCP, two processes, every message handed
to Python and checked there.

    python bench/versus.py [--json] [--rounds 5] [--sizes 64 1024 4096] [--seconds 0.5] [--uvloop]
    [--round-trip] [--no-pin]

Only ratios from one interleaved run count: each round runs every party once at every size, the
figures are medians over rounds, and the ratio is the median of the rounds' own ratios. Each message
carries its number, and the receiver holds each one against the one that is due, in the same manner
for every party: up to 256 bytes in full, longer ones by length and number (comparing every byte of
those would measure memory). What is timed lies on the receiver's clock, after a warm-up of a tenth.
The receiver is pinned to one core and the sender to another, for every party alike.

Parties: batch (send_many and batches()), message (`await peer.send(...)` for each, `async for` over
messages()), sync (peertalk.sync, message by message; --sync), pyzmq (PUSH/PULL, blocking send and
recv for each message, its defaults).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

PERIOD = 1024
"""Messages are numbered modulo this; the count of all of them closes the gap. Longer ones modulo
what makes a mebibyte: the senders' messages stay in the cache, as fresh ones would be, and main
memory is not what is measured."""
COMPARED_IN_FULL = 256
"""Bytes up to which the receiver compares the whole message with the one that is due; of a longer
one the length and the number."""
NUMBER = struct.Struct("<I")
PARTIES = ("batch", "message", "sync", "pyzmq")
START_RATE = {"batch": 2_000_000, "message": 900_000, "sync": 300_000, "pyzmq": 500_000}
"""Messages a second assumed for the first round at 64 bytes; later rounds use what was measured."""


class Wrong(Exception):
    """A message that is not, byte for byte, the one that was due."""


def ring(size: int) -> list[bytes]:
    """One period of messages of that size, numbered."""
    return [NUMBER.pack(number) + bytes(size - NUMBER.size) for number in range(period(size))]


def period(size: int) -> int:
    """Messages in one period."""
    return max(1, min(PERIOD, 2**20 // size))


def line(size: int) -> tuple[bool, Iterator[bytes]]:
    """What the receiver compares: whether messages are compared in full, and without end what each
    is or begins with."""
    in_full = size <= COMPARED_IN_FULL
    return in_full, itertools.cycle(
        ring(size) if in_full else [message[: NUMBER.size] for message in ring(size)]
    )


def pin(core: int, wanted: bool) -> None:
    """Keep this process, with all threads that it will have, on one core."""
    if wanted and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})


class Stopwatch:
    """Counts from the end of the warm-up to the last message, on the receiver's clock."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.warm = count // 10
        self.began = self.cpu = 0.0

    def start(self) -> None:
        """The warm-up is over."""
        self.cpu = time.process_time()
        self.began = time.perf_counter()

    def report(self, seen: int) -> dict[str, float]:
        """What was measured; seen: messages after the warm-up."""
        took = time.perf_counter() - self.began
        return {
            "rate": seen / took,
            "receiver_cpu_ns": (time.process_time() - self.cpu) / seen * 1e9,
        }


# Receivers: each prints its address, then what it measured ----------------------------------------


def say(**values: Any) -> None:
    """One line of JSON to the parent."""
    print(json.dumps(values), flush=True)


async def receive_batches(size: int, count: int) -> None:
    import peertalk

    watch, number, (in_full, due) = Stopwatch(count), 0, line(size)
    async with peertalk.Node("receiver", port=0, discovery=False) as node:
        say(port=node.address[1])
        base = -1
        async for batch in node.batches():
            for data, expected in zip(batch.payloads, due):  # noqa: B905 - as many of an endless line as there are payloads
                if (
                    data != expected
                    if in_full
                    else len(data) != size or not data.startswith(expected)
                ):
                    raise Wrong(data[:8])
            number += len(batch.payloads)
            if base >= 0:
                if number >= count:
                    break
            elif number >= watch.warm:
                base = number
                watch.start()
        say(**watch.report(number - base), total=number)


async def receive_messages(size: int, count: int) -> None:
    import peertalk

    watch, number, (in_full, due) = Stopwatch(count), 0, line(size)
    async with peertalk.Node("receiver", port=0, discovery=False) as node:
        say(port=node.address[1])
        warm = watch.warm
        async for message in node.messages():
            data = message.data
            if (
                data != next(due)
                if in_full
                else len(data) != size or not data.startswith(next(due))
            ):
                raise Wrong(data[:8])
            number += 1
            if number == warm:
                watch.start()
            elif number == count:
                break
        say(**watch.report(number - warm), total=number)


def receive_sync(size: int, count: int) -> None:
    from peertalk.sync import Node

    watch, number, (in_full, due) = Stopwatch(count), 0, line(size)
    with Node("receiver", port=0, discovery=False) as node:
        say(port=node.address[1])
        warm = watch.warm
        for message in node.messages():
            data = message.data
            if (
                data != next(due)
                if in_full
                else len(data) != size or not data.startswith(next(due))
            ):
                raise Wrong(data[:8])
            number += 1
            if number == warm:
                watch.start()
            elif number == count:
                break
        say(**watch.report(number - warm), total=number)


def receive_zmq(size: int, count: int) -> None:
    import zmq

    watch, number, (in_full, due) = Stopwatch(count), 0, line(size)
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        say(port=socket.bind_to_random_port("tcp://127.0.0.1"))
        warm, receive = watch.warm, socket.recv
        while True:
            data = receive()
            if (
                data != next(due)
                if in_full
                else len(data) != size or not data.startswith(next(due))
            ):
                raise Wrong(data[:8])
            number += 1
            if number == warm:
                watch.start()
            elif number == count:
                break
        say(**watch.report(number - warm), total=number)


# Senders ------------------------------------------------------------------------------------------


async def send_batches(size: int, count: int, port: int) -> None:
    import peertalk

    messages = ring(size)
    async with peertalk.Node("sender", port=0, discovery=False) as node:
        peer = await node.connect(("127.0.0.1", port))
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(count // period(size)):
            await peer.send_many(messages)
        await node.aclose(60)
        say(
            sender_cpu_ns=(time.process_time() - cpu) / count * 1e9,
            seconds=time.perf_counter() - began,
        )


async def send_messages(size: int, count: int, port: int) -> None:
    import peertalk

    messages = ring(size)
    async with peertalk.Node("sender", port=0, discovery=False) as node:
        peer = await node.connect(("127.0.0.1", port))
        began, cpu, send = time.perf_counter(), time.process_time(), peer.send
        for _ in range(count // period(size)):
            for message in messages:
                await send(message)
        await node.aclose(60)
        say(
            sender_cpu_ns=(time.process_time() - cpu) / count * 1e9,
            seconds=time.perf_counter() - began,
        )


def send_sync(size: int, count: int, port: int) -> None:
    from peertalk.sync import Node

    messages = ring(size)
    with Node("sender", port=0, discovery=False) as node:
        peer = node.connect(("127.0.0.1", port))
        began, cpu, send = time.perf_counter(), time.process_time(), peer.send
        for _ in range(count // period(size)):
            for message in messages:
                send(message)
        node.close(60)
        say(
            sender_cpu_ns=(time.process_time() - cpu) / count * 1e9,
            seconds=time.perf_counter() - began,
        )


def send_zmq(size: int, count: int, port: int) -> None:
    import zmq

    messages = ring(size)
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.connect(f"tcp://127.0.0.1:{port}")
    began, cpu, send = time.perf_counter(), time.process_time(), socket.send
    for _ in range(count // period(size)):
        for message in messages:
            send(message)
    socket.close(linger=60_000)
    context.term()
    say(
        sender_cpu_ns=(time.process_time() - cpu) / count * 1e9, seconds=time.perf_counter() - began
    )


# Round trips: one message out, one back, many times -----------------------------------------------


async def echo_message(size: int, count: int) -> None:
    import peertalk

    async with peertalk.Node("echo", port=0, discovery=False) as node:
        say(port=node.address[1])
        left = count
        async for message in node.messages():
            await message.peer.send(message.data, no_delay=True)
            left -= 1
            if not left:
                break
        say(total=count)


async def ask_message(size: int, count: int, port: int) -> None:
    import peertalk

    payload, took = bytes(size), []
    async with peertalk.Node("ask", port=0, discovery=False) as node:
        peer = await node.connect(("127.0.0.1", port))
        for _ in range(count):
            began = time.perf_counter()
            await peer.send(payload, no_delay=True)
            answer = await node.receive()
            took.append(time.perf_counter() - began)
            if len(answer.data) != size:
                raise Wrong(size)
    say(p50_us=statistics.median(took[count // 10 :]) * 1e6)


def echo_sync(size: int, count: int) -> None:
    from peertalk.sync import Node

    with Node("echo", port=0, discovery=False) as node:
        say(port=node.address[1])
        for _ in range(count):
            message = node.receive()
            message.peer.send(message.data, no_delay=True)
        say(total=count)


def ask_sync(size: int, count: int, port: int) -> None:
    from peertalk.sync import Node

    payload, took = bytes(size), []
    with Node("ask", port=0, discovery=False) as node:
        peer = node.connect(("127.0.0.1", port))
        for _ in range(count):
            began = time.perf_counter()
            peer.send(payload, no_delay=True)
            answer = node.receive()
            took.append(time.perf_counter() - began)
            if len(answer.data) != size:
                raise Wrong(size)
    say(p50_us=statistics.median(took[count // 10 :]) * 1e6)


def echo_zmq(size: int, count: int) -> None:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        say(port=socket.bind_to_random_port("tcp://127.0.0.1"))
        for _ in range(count):
            socket.send(socket.recv())
        say(total=count)


def ask_zmq(size: int, count: int, port: int) -> None:
    import zmq

    payload, took = bytes(size), []
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.connect(f"tcp://127.0.0.1:{port}")
        for _ in range(count):
            began = time.perf_counter()
            socket.send(payload)
            answer = socket.recv()
            took.append(time.perf_counter() - began)
            if len(answer) != size:
                raise Wrong(size)
    say(p50_us=statistics.median(took[count // 10 :]) * 1e6)


RECEIVERS: dict[str, Callable[..., Any]] = {
    "batch": receive_batches,
    "message": receive_messages,
    "sync": receive_sync,
    "pyzmq": receive_zmq,
    "trip-message": echo_message,
    "trip-sync": echo_sync,
    "trip-pyzmq": echo_zmq,
}
SENDERS: dict[str, Callable[..., Any]] = {
    "batch": send_batches,
    "message": send_messages,
    "sync": send_sync,
    "pyzmq": send_zmq,
    "trip-message": ask_message,
    "trip-sync": ask_sync,
    "trip-pyzmq": ask_zmq,
}


def child(arguments: argparse.Namespace) -> None:
    """One side of one run."""
    pin(arguments.core, arguments.pin)
    if arguments.role == "receive":
        work = RECEIVERS[arguments.party](arguments.size, arguments.count)
    else:
        work = SENDERS[arguments.party](arguments.size, arguments.count, arguments.port)
    if isinstance(work, Coroutine):
        factory = None
        if arguments.uvloop:
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(work)


def run(
    party: str, size: int, count: int, options: argparse.Namespace, cores: tuple[int, int] = (0, 1)
) -> dict[str, float]:
    """One run of one party; the figures of both sides. Raises RuntimeError when a side fails."""
    environment = {"PEERTALK_BIND": "127.0.0.1", **os.environ}
    common = ["--party", party, "--size", str(size), "--count", str(count)]
    common += ["--uvloop"] * options.uvloop + ["--no-pin"] * (not options.pin)

    def start(role: str, core: int, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, "--role", role, "--core", str(core), *common, *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    with start("receive", cores[1]) as receiver:
        sender = None
        try:
            assert receiver.stdout is not None
            first = receiver.stdout.readline()
            if not first:
                raise RuntimeError(f"{party}, {size} bytes: the receiver did not start")
            port = json.loads(first)["port"]
            sender = start("send", cores[0], "--port", str(port))
            measured = json.loads(receiver.stdout.readline() or "{}")
            sent = json.loads(sender.communicate(timeout=120)[0] or "{}")
        finally:
            for process in (receiver, *([] if sender is None else [sender])):
                if process.poll() is None and sys.exc_info()[0] is not None:
                    process.kill()
    if receiver.returncode or sender.returncode or measured.get("total") != count:
        raise RuntimeError(f"{party}, {size} bytes: a side failed, or not every message arrived")
    return {**measured, **sent}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every party at every size, interleaved; one row for each pair."""
    runs: dict[tuple[str, int], list[dict[str, float]]] = {
        (party, size): [] for size in options.sizes for party in options.parties
    }
    for turn, (party, size) in itertools.product(
        range(options.rounds),
        [(party, size) for size in options.sizes for party in options.parties],
    ):
        done = runs[party, size]
        rate = (
            statistics.median(one["rate"] for one in done)
            if done
            else START_RATE[party] * min(1.0, 200 / size)
        )
        count = max(20, round(rate * options.seconds / period(size))) * period(size)
        done.append(run(party, size, count, options))
        print(
            f"round {turn + 1}/{options.rounds} {party:8} {size:6,} B "
            f"{done[-1]['rate'] / 1e3:9,.0f} k/s",
            file=sys.stderr,
        )
    rows = []
    for (party, size), done in runs.items():
        yardstick = runs.get(("pyzmq", size), [])
        cpu = [one["receiver_cpu_ns"] + one["sender_cpu_ns"] for one in done]
        rows.append(
            {
                "party": party,
                "bytes": size,
                "messages_per_second": round(statistics.median(one["rate"] for one in done)),
                "ratio_to_pyzmq": round(
                    statistics.median(
                        ours["rate"] / theirs["rate"]
                        for ours, theirs in zip(done, yardstick, strict=True)
                    ),
                    2,
                )
                if yardstick
                else None,
                "messages_per_second_range": [
                    round(find(one["rate"] for one in done)) for find in (min, max)
                ],
                "cpu_ns_per_message": round(statistics.median(cpu)),
                "cpu_ns_per_message_range": [round(min(cpu)), round(max(cpu))],
                "sender_cpu_ns": round(statistics.median(one["sender_cpu_ns"] for one in done)),
                "receiver_cpu_ns": round(statistics.median(one["receiver_cpu_ns"] for one in done)),
            }
        )
    return rows


def measure_round_trips(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Round trips of 64 bytes, p50 in microseconds, with both processes on one core and on one core
    each."""
    rows = []
    for cores in ((0, 0), (0, 1)):
        took: dict[str, list[float]] = {party: [] for party in ("message", "sync", "pyzmq")}
        for _, party in itertools.product(range(options.rounds), took):
            took[party].append(run(f"trip-{party}", 64, 5_000, options, cores)["p50_us"])
        for party, times in took.items():
            ratio = statistics.median(
                ours / theirs for ours, theirs in zip(times, took["pyzmq"], strict=True)
            )
            where = "one core" if cores[0] == cores[1] else "one core each"
            rows.append(
                {
                    "party": party,
                    "cores": where,
                    "p50_us": round(statistics.median(times), 1),
                    "ratio_to_pyzmq": round(ratio, 2),
                }
            )
    return rows


def spread(ends: list[int], unit: float = 1) -> str:
    """The smallest and the largest figure of a row."""
    return "-".join(f"{end / unit:,.0f}" for end in ends)


def main() -> int:
    """Run what was asked for; 0 when every message of every run arrived and was right."""
    parser = argparse.ArgumentParser(
        description="peertalk against pyzmq PUSH/PULL, one way over loopback TCP"
    )
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each party at each size")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one run")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[64, 1024, 4096],
        help="bytes of a message, 4 or more",
    )
    parser.add_argument(
        "--parties", nargs="+", choices=PARTIES, default=["batch", "message", "pyzmq"]
    )
    parser.add_argument("--sync", action="store_true", help="peertalk.sync as well")
    parser.add_argument("--uvloop", action="store_true", help="the asyncio parties on uvloop")
    parser.add_argument("--round-trip", action="store_true", help="round trips of 64 bytes as well")
    parser.add_argument(
        "--no-pin", dest="pin", action="store_false", help="let the system choose cores"
    )
    for hidden, kind in (
        ("--role", str),
        ("--party", str),
        ("--size", int),
        ("--count", int),
        ("--port", int),
        ("--core", int),
    ):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        child(options)
        return 0
    if options.sync and "sync" not in options.parties:
        options.parties.insert(0, "sync")
    try:
        import zmq  # noqa: F401
    except ImportError:
        print(
            "bench/versus.py compares with pyzmq, which is not installed: pip install pyzmq "
            "(or --parties batch message)",
            file=sys.stderr,
        )
        if "pyzmq" in options.parties:
            return 2
    rows = measure(options)
    trips = measure_round_trips(options) if options.round_trip else []
    if options.json:
        print(json.dumps({"one_way": rows, "round_trips": trips}, indent=1))
        return 0
    print(
        f"{'medians':8} {'bytes':>6} {'k msg/s':>9} {'least-most':>13} {'MB/s':>7} {'to pyzmq':>9} "
        f"{'CPU ns/message':>15} {'least-most':>13} {'(sender':>8} {'receiver)':>9}"
    )
    for row in rows:
        ratio = "" if row["ratio_to_pyzmq"] is None else f"{row['ratio_to_pyzmq']:.2f}x"
        print(
            f"{row['party']:8} {row['bytes']:6,} {row['messages_per_second'] / 1e3:9,.0f}"
            f" {spread(row['messages_per_second_range'], 1e3):>13}"
            f" {row['messages_per_second'] * row['bytes'] / 1e6:7,.0f} {ratio:>9}"
            f" {row['cpu_ns_per_message']:15,} {spread(row['cpu_ns_per_message_range']):>13}"
            f" {row['sender_cpu_ns']:8,} {row['receiver_cpu_ns']:9,}"
        )
    for row in trips:
        print(
            f"round trip of 64 B, {row['cores']:13}: {row['party']:8} "
            f"p50 {row['p50_us']:7.1f} us, {row['ratio_to_pyzmq']:.2f} of pyzmq"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
