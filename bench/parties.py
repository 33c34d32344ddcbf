"""The parties of bench/versus.py and bench/large.py: what each does as sender and as receiver.

    python bench/parties.py receive|send PARTY SIZE COUNT [--port PORT] [--uvloop]

One process is one side; bench/rounds.py starts both. A receiver prints {"port": ...} and, in the
end, what it measured; a sender prints its own cost, or {"refused": ...} when the party carries no
message of that size. Each line is JSON.

Each message carries its number, and the receiver holds each one against the one that is due, in the
same manner for every party: up to 256 bytes in full, longer ones by length and number, which stands
at the head of the message and at its tail (comparing every byte of those would measure memory).
What is timed lies on the receiver's clock, after a warm-up of a tenth.

Parties:

- batch: peertalk, send_many and batches(). message: peertalk, `await peer.send(...)` for each,
  `async for` over messages(). Both over TCP; batch-local and message-local over AF_UNIX
  (Config.local).
- sync: peertalk.sync, message by message.
- pyzmq: PUSH/PULL, blocking send and recv for each message, its defaults.
- zenoh: a put for each message to a subscriber that takes them from a channel, over TCP alone.
  zenoh-shm: the same with its shared memory on.
- socket: plain C (bench/socketcopy.c, no Python) over TCP. socket-unix: over AF_UNIX.

The queues of pyzmq and zenoh are counted in messages, and would hold gigabytes of large ones: here
they hold 64 MiB at most. The pool of zenoh's shared memory holds four messages, and not less than
its default. It is made while the first messages go by TCP, which the warm-up covers; what finds it
full goes by TCP too, which is zenoh's own choice.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import socket
import statistics
import struct
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from functools import partial
from typing import Any

from peertalk.errors import MessageTooLarge

PERIOD = 1024
"""Messages are numbered modulo this; the count of all of them closes the gap. Longer ones modulo
what makes a mebibyte: the senders' messages stay in the cache, as fresh ones would be, and main
memory is not what is measured."""
PERIOD_AT_LEAST = 4
"""Of the longest ones: that one is missing or stands in the wrong place must show."""
COMPARED_IN_FULL = 256
"""Bytes up to which the receiver compares the whole message with the one that is due; of a longer
one the length, and the number at its head and at its tail."""
NUMBER = struct.Struct("=I")
QUEUED = 64 * 2**20
"""Bytes in a queue that is counted in messages, at the most."""
SHARED_POOL = 16 * 2**20
"""Bytes of the pool of zenoh's shared memory, by its default."""
USUAL_LIMIT = 16 * 2**20
"""Bytes of a message that a peertalk node takes by default; for longer ones it is told."""
SMALL = 64
"""Bytes of a message that passes a large one."""
STAMP = struct.Struct("=dI")
"""What such a message begins with: when it was sent, and behind which large one."""


class Wrong(Exception):
    """A message that is not, byte for byte, the one that was due."""


def ring(size: int) -> list[bytes]:
    """One period of messages of that size, numbered."""
    heads = [NUMBER.pack(number) for number in range(period(size))]
    if size <= COMPARED_IN_FULL:
        return [head + bytes(size - len(head)) for head in heads]
    return [head + bytes(size - 2 * len(head)) + head for head in heads]


def period(size: int) -> int:
    """Messages in one period."""
    return max(PERIOD_AT_LEAST, min(PERIOD, 2**20 // size))


def line(size: int) -> tuple[bool, Iterator[bytes]]:
    """What the receiver compares: whether messages are compared in full, and without end what each
    is or begins and ends with."""
    if size <= COMPARED_IN_FULL:
        return True, itertools.cycle(ring(size))
    return False, itertools.cycle([NUMBER.pack(number) for number in range(period(size))])


def queue_length(size: int, usual: int) -> int:
    """Messages of that size in a queue that is counted in messages."""
    return max(2, min(usual, QUEUED // size))


class Stopwatch:
    """Counts from the end of the warm-up to the last message, on the receiver's clock."""

    def __init__(self, count: int) -> None:
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


class SenderCost:
    """What sending so many messages cost, from now on."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.began, self.cpu = time.perf_counter(), time.process_time()

    def say(self) -> None:
        """All of them are gone."""
        cpu = time.process_time() - self.cpu
        say(sender_cpu_ns=cpu / self.count * 1e9, seconds=time.perf_counter() - self.began)


def say(**values: Any) -> None:
    """One line of JSON to the parent."""
    print(json.dumps(values), flush=True)


def node_options(size: int, local: bool) -> dict[str, Any]:
    """How a node of peertalk is set up for messages of that size. local: over AF_UNIX."""
    import peertalk

    fields = peertalk.Config.__struct_fields__
    options: dict[str, Any] = {"port": 0, "discovery": False}
    if "local" in fields:
        options["local"] = local
    if "max_message" in fields and size > USUAL_LIMIT:
        options["max_message"] = size
    return options


# Receivers: each prints its address, then what it measured ----------------------------------------


async def receive_batches(size: int, count: int, local: bool = False) -> None:
    import peertalk

    watch, number, (in_full, due) = Stopwatch(count), 0, line(size)
    async with peertalk.Node("receiver", **node_options(size, local)) as node:
        say(port=node.address[1])
        base = -1
        async for batch in node.batches():
            for data, expected in zip(batch.payloads, due):  # noqa: B905 - as many of an endless line as there are payloads
                if (
                    data != expected
                    if in_full
                    else len(data) != size
                    or not data.startswith(expected)
                    or not data.endswith(expected)
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


async def receive_messages(size: int, count: int, local: bool = False) -> None:
    import peertalk

    watch, number, (in_full, due) = Stopwatch(count), 0, line(size)
    async with peertalk.Node("receiver", **node_options(size, local)) as node:
        say(port=node.address[1])
        warm = watch.warm
        async for message in node.messages():
            data, expected = message.data, next(due)
            if (
                data != expected
                if in_full
                else len(data) != size
                or not data.startswith(expected)
                or not data.endswith(expected)
            ):
                raise Wrong(data[:8])
            number += 1
            if number == warm:
                watch.start()
            elif number == count:
                break
        say(**watch.report(number - warm), total=number)


def receive_each(size: int, count: int, messages: Iterable[bytes]) -> None:
    """What the receivers without asyncio share."""
    watch, number, (in_full, due) = Stopwatch(count), 0, line(size)
    warm = watch.warm
    for data, expected in zip(messages, due):  # noqa: B905 - as many of an endless line as are due
        if (
            data != expected
            if in_full
            else len(data) != size or not data.startswith(expected) or not data.endswith(expected)
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

    with Node("receiver", **node_options(size, False)) as node:
        say(port=node.address[1])
        receive_each(size, count, (message.data for message in node.messages()))


def receive_zmq(size: int, count: int) -> None:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.rcvhwm = queue_length(size, pull.rcvhwm)
        say(port=pull.bind_to_random_port("tcp://127.0.0.1"))
        receive_each(size, count, iter(pull.recv, None))


def open_zenoh(size: int, shared: bool, **endpoints: str) -> Any:
    """A session of zenoh that knows the other side by its address alone."""
    import zenoh

    config = zenoh.Config()
    for key, value in {
        "mode": "peer",
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": False,
        "listen/endpoints": [endpoints[each] for each in ("listen",) if each in endpoints],
        "connect/endpoints": [endpoints[each] for each in ("connect",) if each in endpoints],
        "transport/shared_memory/enabled": shared,
        "transport/shared_memory/transport_optimization/pool_size": max(SHARED_POOL, 4 * size),
    }.items():
        config.insert_json5(key, json.dumps(value))
    return zenoh.open(config)


def receive_zenoh(size: int, count: int, shared: bool = False) -> None:
    import zenoh

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with open_zenoh(size, shared, listen=f"tcp/127.0.0.1:{port}") as session:
        channel = zenoh.handlers.FifoChannel(queue_length(size, 256))
        with session.declare_subscriber("bench", channel) as subscriber:
            say(port=port)
            receive_each(size, count, (sample.payload.to_bytes() for sample in subscriber))


# Senders ------------------------------------------------------------------------------------------


async def send_batches(size: int, count: int, port: int, local: bool = False) -> None:
    import peertalk

    messages = ring(size)
    async with peertalk.Node("sender", **node_options(size, local)) as node:
        peer = await node.connect(("127.0.0.1", port))
        cost = SenderCost(count)
        for _ in range(count // period(size)):
            await peer.send_many(messages)
        await node.aclose(60)
        cost.say()


async def send_messages(size: int, count: int, port: int, local: bool = False) -> None:
    import peertalk

    messages = ring(size)
    async with peertalk.Node("sender", **node_options(size, local)) as node:
        peer = await node.connect(("127.0.0.1", port))
        cost, send = SenderCost(count), peer.send
        for _ in range(count // period(size)):
            for message in messages:
                await send(message)
        await node.aclose(60)
        cost.say()


def send_sync(size: int, count: int, port: int) -> None:
    from peertalk.sync import Node

    messages = ring(size)
    with Node("sender", **node_options(size, False)) as node:
        peer = node.connect(("127.0.0.1", port))
        cost, send = SenderCost(count), peer.send
        for _ in range(count // period(size)):
            for message in messages:
                send(message)
        node.close(60)
        cost.say()


def send_zmq(size: int, count: int, port: int) -> None:
    import zmq

    messages = ring(size)
    context = zmq.Context()
    push = context.socket(zmq.PUSH)
    push.sndhwm = queue_length(size, push.sndhwm)
    push.connect(f"tcp://127.0.0.1:{port}")
    cost, send = SenderCost(count), push.send
    for _ in range(count // period(size)):
        for message in messages:
            send(message)
    push.close(linger=60_000)
    context.term()
    cost.say()


def send_zenoh(size: int, count: int, port: int, shared: bool = False) -> None:
    import zenoh

    messages = ring(size)
    with open_zenoh(size, shared, connect=f"tcp/127.0.0.1:{port}") as session:
        block = zenoh.CongestionControl.BLOCK
        with session.declare_publisher("bench", congestion_control=block) as publisher:
            while not publisher.matching_status.matching:
                time.sleep(0.005)
            cost, put = SenderCost(count), publisher.put
            for _ in range(count // period(size)):
                for message in messages:
                    put(message)
            while publisher.matching_status.matching:  # until the receiver has all, and has gone
                time.sleep(0.005)
            cost.say()


# Small messages past large ones -------------------------------------------------------------------


async def let_pass(size: int, count: int, local: bool = False) -> None:
    """Answer each large message with the seconds that the small ones took which came before it."""
    import peertalk

    async with peertalk.Node("receiver", **node_options(size, local)) as node:
        say(port=node.address[1])
        turn, took = 0, []
        async for message in node.messages():
            now = time.monotonic()  # one clock for both processes
            if not message.data:
                break
            if len(message.data) == SMALL:
                sent, behind = STAMP.unpack_from(message.data)
                if behind == turn:  # else it was still under way when the large one had come
                    took.append(now - sent)
                continue
            if len(message.data) != size:
                raise Wrong(len(message.data))
            await message.peer.send(json.dumps(took).encode())
            turn, took = turn + 1, []
        say(total=turn)


async def pass_by(size: int, count: int, port: int, local: bool = False) -> None:
    """Send large messages one by one, and behind each small ones of a higher class, one every
    millisecond, until the large one is answered."""
    import peertalk

    payload, took = bytes(size), []
    async with peertalk.Node("sender", **node_options(size, local)) as node:
        peer = await node.connect(("127.0.0.1", port))
        for turn in range(count):
            await peer.send(payload)
            answer = asyncio.ensure_future(node.receive())
            while not answer.done():
                small = STAMP.pack(time.monotonic(), turn).ljust(SMALL, b"\0")
                await peer.send(small, priority=peertalk.Priority.HIGH, no_delay=True)
                await asyncio.wait([answer], timeout=0.001)
            took += json.loads(answer.result().data)
        await peer.send(b"")
        await node.aclose(60)
    say(passed=len(took), median_ms=statistics.median(took) * 1000 if took else None)


# Round trips: one message out, one back, many times -----------------------------------------------


async def echo_message(size: int, count: int) -> None:
    import peertalk

    async with peertalk.Node("echo", **node_options(size, False)) as node:
        say(port=node.address[1])
        left = count
        async for message in node.messages():
            await message.peer.send(message.data)
            left -= 1
            if not left:
                break
        say(total=count)


async def ask_message(size: int, count: int, port: int) -> None:
    import peertalk

    payload, took = bytes(size), []
    async with peertalk.Node("ask", **node_options(size, False)) as node:
        peer = await node.connect(("127.0.0.1", port))
        for _ in range(count):
            began = time.perf_counter()
            await peer.send(payload)
            answer = await node.receive()
            took.append(time.perf_counter() - began)
            if len(answer.data) != size:
                raise Wrong(size)
    say(p50_us=statistics.median(took[count // 10 :]) * 1e6)


def echo_sync(size: int, count: int, **options: int) -> None:
    from peertalk.sync import Node

    with Node("echo", **node_options(size, False), **options) as node:
        say(port=node.address[1])
        for _ in range(count):
            message = node.receive()
            message.peer.send(message.data)
        say(total=count)


def ask_sync(size: int, count: int, port: int, **options: int) -> None:
    from peertalk.sync import Node

    payload, took = bytes(size), []
    with Node("ask", **node_options(size, False), **options) as node:
        peer = node.connect(("127.0.0.1", port))
        for _ in range(count):
            began = time.perf_counter()
            peer.send(payload)
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


Side = Callable[..., Any]
RECEIVERS: dict[str, Side] = {
    "batch": receive_batches,
    "batch-local": partial(receive_batches, local=True),
    "message": receive_messages,
    "message-local": partial(receive_messages, local=True),
    "sync": receive_sync,
    "pyzmq": receive_zmq,
    "zenoh": receive_zenoh,
    "zenoh-shm": partial(receive_zenoh, shared=True),
    "passing": let_pass,
    "passing-local": partial(let_pass, local=True),
    "trip-message": echo_message,
    "trip-sync": echo_sync,
    "trip-polled": partial(echo_sync, workers=0),
    "trip-pyzmq": echo_zmq,
}
SENDERS: dict[str, Side] = {
    "batch": send_batches,
    "batch-local": partial(send_batches, local=True),
    "message": send_messages,
    "message-local": partial(send_messages, local=True),
    "sync": send_sync,
    "pyzmq": send_zmq,
    "zenoh": send_zenoh,
    "zenoh-shm": partial(send_zenoh, shared=True),
    "passing": pass_by,
    "passing-local": partial(pass_by, local=True),
    "trip-message": ask_message,
    "trip-sync": ask_sync,
    "trip-polled": partial(ask_sync, workers=0),
    "trip-pyzmq": ask_zmq,
}


def main() -> None:
    """Be one side of one run."""
    parser = argparse.ArgumentParser(description="one side of one run of bench/rounds.py")
    parser.add_argument("role", choices=("receive", "send"))
    parser.add_argument("party", choices=tuple(RECEIVERS))
    parser.add_argument("size", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--port", type=int, help="where the receiver is; for a sender")
    parser.add_argument("--uvloop", action="store_true", help="asyncio parties: on uvloop")
    options = parser.parse_args()
    factory = None
    if options.uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    try:
        if options.role == "receive":
            work = RECEIVERS[options.party](options.size, options.count)
        else:
            work = SENDERS[options.party](options.size, options.count, options.port)
        if isinstance(work, Coroutine):
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(work)
    except MessageTooLarge as error:
        say(refused=str(error))


if __name__ == "__main__":
    main()
