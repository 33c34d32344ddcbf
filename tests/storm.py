"""Threads, forks and signals on asyncio nodes, all at once: python tests/storm.py SECONDS [SEED]

Four nodes live each on the loop of a thread of its own, all connected with all. Their coroutines
send; foreign threads send with send_nowait, ask for statistics and close nodes; a signal comes a
thousand times a second, and its handler returns; one thread forks, and so does a coroutine. Beside
these, nodes come and go, and end in every way that there is. Nothing may hang, crash or be lost
without its outcome: what the four accepted is received once and in order, and each message of those
that go has an outcome.

Prints what was done, and exits with 0, or says what went wrong and exits with 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import sys
import threading
import time
from collections import Counter, defaultdict, deque

from kit.inside import engine_of
from kit.storms import GUARD, HEAD, NAMES, NOBODY, OPTIONS, Storm, rage

import peertalk as pt

ENDS = ("aclose", "close_nowait", "a thread", "a signal", "forgotten", "cancelled")


class Loops(Storm):
    """The storm of these nodes."""

    def __init__(self, seconds: float, seed: int) -> None:
        super().__init__(seconds, seed)
        self.nodes: dict[str, pt.Node] = {}
        self.peers: dict[tuple[str, str], pt.Peer] = {}
        self.started = threading.Barrier(len(NAMES))
        self.idle = threading.Barrier(len(NAMES))
        self.sent: defaultdict[tuple[str, int], int] = defaultdict(int)
        """(who receives, sender) -> messages that were accepted."""
        self.got: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.to_close: deque[pt.Node] = deque()
        self.to_strike: deque[pt.Node] = deque()
        self.quiet = threading.Event()
        """No foreign thread sends any more."""
        self.finished = threading.Event()
        """The four have ended."""

    def on_signal(self, *_: object) -> None:
        self.did["signals"] += 1
        with contextlib.suppress(IndexError):
            self.to_strike.popleft().close_nowait()


# The four


def live(storm: Loops, number: int) -> None:
    """One of the four, on this thread."""
    factory = None
    if number % 2:
        with contextlib.suppress(ImportError):
            import uvloop

            factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.get_loop().set_exception_handler(
            lambda _, context: storm.wrong.append(f"a loop was told: {context}")
        )
        runner.run(being(storm, number))


async def being(storm: Loops, number: int) -> None:
    name = NAMES[number]
    async with pt.Node(name, **OPTIONS) as node:
        storm.nodes[name] = node
        await asyncio.to_thread(storm.started.wait, GUARD)
        for other in NAMES[:number]:
            peer = await node.connect(storm.nodes[other].address, timeout=GUARD)
            storm.peers[name, other] = peer
        for other in NAMES:
            if other != name:
                storm.peers[name, other] = await node.wait_for(other, timeout=GUARD)
        hearing = asyncio.create_task(hear(storm, name, node))
        others = [other for other in NAMES if other != name]
        work = [talk(storm, number, other) for other in others]
        work += [come_and_go(storm, number) for _ in range(2)]
        if number == 0:
            work.append(fork_here(storm, node))
        await asyncio.gather(*work)
        # what is accepted is on its way: it is received before anybody leaves
        await asyncio.to_thread(storm.quiet.wait, GUARD)
        await asyncio.to_thread(storm.idle.wait, GUARD)
        async with asyncio.timeout(GUARD):
            while any(
                storm.got[to, sender] < count
                for (to, sender), count in list(storm.sent.items())
                if to == name
            ):
                await asyncio.sleep(0.01)
            while any(storm.peers[name, to].queue.pending for to in others):
                await asyncio.sleep(0.01)
        for other in others:
            peer = storm.peers[name, other]
            if peer._remote.failed or not peer.connected:
                storm.wrong.append(f"{name} to {other}: {peer.stats()}")
        await asyncio.to_thread(storm.started.wait, GUARD)
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
        unsent = await node.aclose(timeout=GUARD)
        if unsent:
            storm.wrong.append(f"{name} left {unsent} unsent")


async def hear(storm: Loops, name: str, node: pt.Node) -> None:
    async for message in node.messages():
        sender, number = HEAD.unpack_from(message.data)
        if sender == NOBODY:  # of one that comes and goes
            continue
        expected = storm.got[name, sender] + 1
        if number != expected:
            storm.wrong.append(f"{name} heard {number} of {sender} and not {expected}")
        storm.got[name, sender] = number


async def talk(storm: Loops, number: int, other: str) -> None:
    peer = storm.peers[NAMES[number], other]
    filler = bytes(1000)
    while not storm.over:
        for _ in range(storm.chance.randrange(1, 60)):
            count = storm.sent[other, number] + 1
            await peer.send(HEAD.pack(number, count) + filler[: storm.chance.randrange(1000)])
            storm.sent[other, number] = count
            storm.did["sent"] += 1
        if not storm.chance.randrange(20):
            await peer.ping(timeout=GUARD)
            storm.did["pings"] += 1
        await asyncio.sleep(storm.chance.random() * 0.004)


# Those who come and go


async def come_and_go(storm: Loops, number: int) -> None:
    while not storm.over:
        end = storm.chance.choice(ENDS)
        if end == "a signal" and number:
            end = "a thread"  # a handler runs on the main thread, as the first of the four
        await one_life(storm, storm.nodes[NAMES[number - 1]], end)
        storm.did[end] += 1


async def one_life(storm: Loops, host: pt.Node, end: str) -> None:
    """A node that sends until it is ended. Each message that it accepted has an outcome."""
    node = await pt.Node("guest", **OPTIONS).start()
    events = node.events()
    peer = await node.connect(host.address, timeout=GUARD)
    payload = HEAD.pack(NOBODY, 0) + bytes(storm.chance.randrange(2000))

    async def send() -> None:
        with contextlib.suppress(pt.InvalidState, pt.ConnectionClosed):
            while True:
                await peer.send(payload)
                await asyncio.sleep(0)

    sending = asyncio.create_task(send())
    await asyncio.sleep(storm.chance.random() * 0.01)
    if end == "aclose":
        await node.aclose(timeout=GUARD)
    elif end == "close_nowait":
        node.close_nowait()
    elif end == "a thread":
        storm.to_close.append(node)
    elif end == "a signal":
        storm.to_strike.append(node)
    elif end == "cancelled":
        closing = asyncio.create_task(node.aclose(timeout=GUARD))
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
    else:
        transport = engine_of(node)
        del node
        sending.cancel()
        await events.aclose()
        await asyncio.gather(sending, return_exceptions=True)
        del sending, events
        gc.collect()
        async with asyncio.timeout(GUARD):
            while not transport.closed:
                await asyncio.sleep(0.001)
        return
    async with asyncio.timeout(GUARD):
        await sending
        outcomes = set()
        missed = 0
        async for event in events:
            if isinstance(event, pt.Sent | pt.Failed):
                outcomes.update(range(event.first, event.last + 1))
            elif isinstance(event, pt.EventsMissed):
                missed = event.count
    if not missed and outcomes != set(range(1, peer.accepted + 1)):
        storm.wrong.append(f"{end}: {peer.accepted} accepted, {len(outcomes)} have an outcome")
    stats = node.stats()
    if stats.messages_accepted != stats.messages_sent + stats.messages_failed:
        storm.wrong.append(f"{end}: {stats}")


# Foreign threads


def send_from_afar(storm: Loops, number: int) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    chance = random.Random(number)
    while not storm.over:
        name, other = pair = chance.choice(list(storm.peers))
        # one sender for each pair and thread, so that the order can be told
        sender = 100 + number * 10 + NAMES.index(name)
        try:
            storm.peers[pair].send_nowait(HEAD.pack(sender, counts[pair] + 1))
        except pt.WouldBlock:
            time.sleep(0.001)
            continue
        counts[pair] += 1
        storm.sent[other, sender] = counts[pair]
        storm.did["sent from afar"] += 1
        if not chance.randrange(50):
            time.sleep(0.001)


def watch(storm: Loops) -> None:
    """Statistics, and closing what is to be closed from another thread."""
    while not storm.finished.is_set():
        for node in list(storm.nodes.values()):
            node.stats()
            node.memory["total"]
            repr(node)
            with contextlib.suppress(pt.InvalidState):  # it has ended
                len(node.peers.known())
            storm.did["asked"] += 1
        with contextlib.suppress(IndexError):
            while True:
                storm.to_close.popleft().close_nowait()
        time.sleep(0.0005)


def refused(storm: Loops) -> bool:
    """In a child: everything is, and at once."""
    uses = []
    for node in storm.nodes.values():
        uses += [node.stats, node.close_nowait, lambda node=node: node.memory]
    uses += [lambda peer=peer: peer.send_nowait(b"child") for peer in storm.peers.values()]
    for use in uses:
        try:
            use()
        except pt.InvalidState:
            continue
        return False
    return True


def fork(storm: Loops) -> None:
    storm.fork(lambda: refused(storm), 0.03)


async def fork_here(storm: Loops, node: pt.Node) -> None:
    """A child of the thread whose loop has a node; it lets nobody's loop end (see the guide)."""
    while not storm.over:
        child = os.fork()
        if child == 0:
            os._exit(7 if refused(storm) else 13)
        await asyncio.to_thread(storm.await_child, child, "_exit")
        await asyncio.sleep(0.1)


def attend(storm: Loops) -> None:
    """The foreign threads, once everybody knows everybody."""
    while len(storm.peers) < len(NAMES) * (len(NAMES) - 1) and not storm.over:
        time.sleep(0.01)
    senders = [storm.guarded(send_from_afar, number) for number in range(2)]
    others = [storm.guarded(watch), storm.guarded(fork)]
    for thread in senders:
        thread.join()
    storm.quiet.set()
    for thread in others:
        thread.join()


def play(storm: Loops) -> None:
    lives = [storm.guarded(live, number) for number in range(1, len(NAMES))]
    attending = storm.guarded(attend)
    try:
        live(storm, 0)
    finally:
        for thread in lives:
            thread.join(GUARD)
        storm.finished.set()
        attending.join(GUARD)
        storm.wrong += [f"{each.name} hangs" for each in (*lives, attending) if each.is_alive()]
    for key, count in storm.sent.items():
        if storm.got[key] != count:
            storm.wrong.append(f"{key}: {count:,} accepted, {storm.got[key]:,} received")


if __name__ == "__main__":
    sys.exit(rage(Loops, play))
