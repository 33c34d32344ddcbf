"""Many streams at once: everything comes back, whatever ends, is reset, moves or is cancelled."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import os
import random
import socket
import struct
import threading

import pytest
from conftest import HANG_GUARD
from kit.streams import connected

from peertalk import errors
from peertalk.net import Listener, Stream, Worker


async def echo(stream: Stream) -> None:
    async for data in stream:
        await stream.write_all(data)


async def test_all_comes_back_through_many_streams(rounds):
    """Random sizes, read and written in random pieces. The long form is 1 GiB through 200."""
    count, size = rounds(20, 200), rounds(400_000, 5_368_710)

    async def there_and_back(number: int) -> None:
        chance = random.Random(number)
        data = chance.randbytes(size)
        async with await Stream.connect(listener.local_addr) as stream:

            async def write() -> None:
                at = 0
                while at < size:
                    piece = data[at : at + chance.choice((1, 100, 5_000, 60_000, 300_000))]
                    await stream.write_all(piece)
                    at += len(piece)
                await stream.write_eof()

            writing = asyncio.create_task(write())
            at = 0
            while piece := await stream.read(chance.choice((10, 3_000, 100_000))):
                assert piece == data[at : at + len(piece)]
                at += len(piece)
            assert at == size
            await writing

    async with await Listener.bind("127.0.0.1:0", backlog=count) as listener:
        serving = asyncio.create_task(listener.serve(echo))
        await asyncio.gather(*map(there_and_back, range(count)))
        listener.close_now()
        await serving


async def test_streams_that_end_in_every_way_leave_nothing(rounds):
    """Callers that reset, vanish, half close, are cancelled or never speak, beside one who goes on:
    the fixtures of this folder look for what is left."""
    chance = random.Random(5)
    outcomes: collections.Counter[str] = collections.Counter()

    async def rude(number: int) -> None:
        stream = await Stream.connect(listener.local_addr)
        try:
            for _ in range(chance.randrange(4)):
                await stream.write_all(os.urandom(chance.choice((1, 50_000))))
            way = number % 5
            if way == 0:
                linger = struct.pack("ii", 1, 0)
                with socket.socket(fileno=os.dup(stream.fileno())) as same:
                    same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            elif way == 1:
                await stream.write_eof()
                async for _ in stream:
                    pass
            elif way == 2:
                async with asyncio.timeout(0.001):
                    await stream.readexactly(1 << 30)
            elif way == 3:
                await stream.read(timeout=0.001)
        except (errors.NetworkError, TimeoutError) as error:
            outcomes[type(error).__name__] += 1
        finally:
            stream.close_now()

    async with await Listener.bind("127.0.0.1:0", backlog=500) as listener:
        serving = asyncio.create_task(listener.serve(echo))
        async with await Stream.connect(listener.local_addr) as steady:
            for first in range(0, rounds(200, 20_000), 50):
                await asyncio.gather(*map(rude, range(first, first + 50)))
                await steady.write_all(b"%d\n" % first)
                assert await steady.readuntil() == b"%d\n" % first
        listener.close_now()
        await serving


@pytest.mark.threads
async def test_streams_move_under_load_without_loss(rounds):
    """Between operations, from worker to worker and back. The long form moves 1,000 times."""
    moves, count = rounds(60, 1_000), 6
    with Worker() as first, Worker() as second:
        workers = (first, second)

        async def chatter(number: int) -> None:
            chance = random.Random(number)
            async with connected() as (ours, theirs):
                where = chance.randrange(2)
                await theirs.move_to(workers[where])
                for line in range(moves // count):
                    text = b"%d of %d %s\n" % (line, number, b"x" * chance.randrange(3_000))
                    await ours.write_all(text + text)

                    async def answer() -> None:
                        for _ in range(2):
                            await theirs.write_all(await theirs.readuntil())
                        await theirs.move_to(workers[1 - where])  # noqa: B023 - awaited below

                    await asyncio.wrap_future(workers[where].submit(answer))
                    where = 1 - where
                    assert await ours.readexactly(2 * len(text)) == text + text
                await asyncio.wrap_future(workers[where].submit(theirs.aclose))

        await asyncio.gather(*map(chatter, range(count)))


@pytest.mark.threads
def test_many_threads_in_every_public_call(rounds):
    """Each has streams and listeners of its own on shared workers, orders, time-outs, and ends at
    any time; in the end the workers end too, with some of it in flight."""
    errors_seen: list[BaseException] = []
    over = threading.Event()

    async def life(chance: random.Random) -> None:
        async with await Listener.bind("127.0.0.1:0") as listener:
            serving = asyncio.create_task(listener.serve(echo))
            async with await Stream.connect(listener.local_addr) as stream:
                for _ in range(chance.randrange(1, 8)):
                    data = chance.randbytes(chance.choice((1, 1_000, 100_000)))
                    writing = asyncio.create_task(stream.write_all(data))
                    assert await stream.readexactly(len(data)) == data
                    await writing
                    try:
                        await stream.read(timeout=0.0005)
                    except errors.Timeout:
                        pass
            serving.cancel()

    def use(number: int, workers: list[Worker]) -> None:
        chance = random.Random(number)
        try:
            for _ in range(rounds(10, 2_000)):
                worker = chance.choice(workers)
                future = worker.submit(life, chance)
                if chance.random() < 0.2:
                    future.cancel()
                else:
                    future.result(HANG_GUARD)
                worker.statistics()
        except BaseException as error:
            if not over.is_set():
                errors_seen.append(error)

    workers = [Worker().start() for _ in range(3)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(8), [workers] * 8))
        over.set()
        left = [worker.submit(life, random.Random(9)) for worker in workers]
        for worker in workers:
            worker.close(HANG_GUARD)
        assert all(each.done() for each in left)
    assert not errors_seen
