"""A few nodes that talk while their connections go from worker to worker, and what must hold then:
nothing is lost, doubled, invented or reordered, and what a sender is told is true."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

from classic import CRITICAL, Capabilities, ClassicPeer, Refused, Sockets

import peertalk as pt
from kit.inside import buffers_in_use, crowd
from kit.nodes import loopback
from kit.waiting import GUARD
from peertalk import sync

T = TypeVar("T")

LARGE = 300_000
"""Bytes of a message that is offered: shorter ones may overtake it."""
REFUSED = (pt.WouldBlock, pt.Timeout, pt.MessageTooLarge, pt.NotConnected)


def message_of(sender: str, serial: int, size: int) -> bytes:
    """What a sender says under a serial number, in that size or a little more."""
    head = sender.encode() + serial.to_bytes(4, "big")
    return head + random.Random(head).randbytes(8) * (max(0, size - len(head)) // 8)


class Member:
    """A node of either door, of which a test knows what it gave and what it was told.

    takes: whether its program takes messages. came: of each sender, the serial numbers in the order
    in which they came. given: of each peer, as its object while it is known, (serial, size) by the
    number of the message. told: likewise, what became of it. tried: serial numbers of all that it
    may have sent.
    """

    def __init__(self, name: str, plain: bool, listens: bool, options: dict[str, Any]) -> None:
        self.name, self.plain, self.listens = name, plain, listens
        self.node: Any = (sync if plain else pt).Node(name, **options)  # type: ignore[attr-defined]
        self.takes = True
        self.came: defaultdict[str, list[int]] = defaultdict(list)
        self.given: defaultdict[Any, dict[int, tuple[int, int]]] = defaultdict(dict)
        self.told: defaultdict[Any, dict[int, str]] = defaultdict(dict)
        self.tried: set[int] = set()
        self._listening: asyncio.Task[None] | None = None
        self._over = threading.Event()
        self._turning = threading.Thread(target=self._turn)

    @property
    def is_pressed(self) -> bool:
        """Whether several threads may send at once: it hears no events and needs no loop."""
        return self.plain and not self.listens

    async def start(self) -> None:
        """Begin; a node that nobody turns has a thread that does."""
        if not self.plain:
            await self.node.start()
            if self.listens:
                self._listening = asyncio.create_task(self._listen())
            return
        self.node.start()
        if self.node.config.workers == 0:
            self._turning.start()
        if self.listens:
            self.listen()

    def _turn(self) -> None:
        with contextlib.suppress(pt.InvalidState):
            while not self._over.is_set():
                self.node.poll(0.01)

    async def _listen(self) -> None:
        async for event in self.node.events():
            self._note(event)

    def listen(self) -> None:
        """Hear what has happened."""
        if self.plain and self.listens:
            for event in self.node.events(timeout=0.0):
                self._note(event)

    def _note(self, event: Any) -> None:
        assert not isinstance(event, pt.EventsMissed)
        if isinstance(event, pt.Sent | pt.Failed):
            told = self.told[event.peer]
            what = "sent" if isinstance(event, pt.Sent) else event.outcome.value
            for number in range(event.first, event.last + 1):
                before = told.get(number)
                assert before is None or (before, what) == ("sent", "unknown"), (number, before)
                told[number] = what

    async def call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """A call that may wait, while the others go on."""
        if self.plain:
            return await asyncio.to_thread(method, *arguments, timeout=GUARD)
        return await method(*arguments, timeout=GUARD)

    def offer(self, peer: Any, serial: int, size: int) -> bool:
        """Have a message accepted, or not, at once."""
        message = message_of(self.name, serial, size)
        self.tried.add(serial)
        try:
            number = peer.send(message, timeout=0) if self.plain else peer.send_nowait(message)
        except REFUSED:
            return False
        assert number not in self.given[peer]
        self.given[peer][number] = serial, len(message)
        return True

    def press(self, peer: Any, serial: int) -> None:
        """Have a message accepted, however long that takes. Any thread."""
        message = message_of(self.name, serial, 900)
        self.tried.add(serial)
        with contextlib.suppress(pt.PeerTalkError):
            self.given[peer][peer.send(message)] = serial, len(message)

    async def broadcast(self, serial: int, size: int) -> None:
        """Say one thing to all."""
        message = message_of(self.name, serial, size)
        self.tried.add(serial)
        sent = self.node.broadcast(message, timeout=0)
        result = sent if self.plain else await sent
        for peer in result.accepted:
            assert peer.accepted not in self.given[peer]
            self.given[peer][peer.accepted] = serial, len(message)

    async def take(self) -> None:
        """All that has come, if its program takes any."""
        self.listen()
        with contextlib.suppress(pt.Timeout):
            while self.takes:
                got = self.node.receive(timeout=0)
                data = (got if self.plain else await got).data
                sender, serial = data[:1].decode(), int.from_bytes(data[1:5], "big")
                assert data == message_of(sender, serial, len(data))
                self.came[sender].append(serial)

    async def close(self) -> None:
        """End, with all memory back."""
        self._over.set()
        if self._turning.ident is not None:
            self._turning.join()
        if self._listening is not None:
            self._listening.cancel()
        self.node.close_nowait()
        assert buffers_in_use(self.node) == 0


class Company:
    """Members, the first of which has a classic peer, too. moves: connections that have moved."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.old = Sockets(
            ClassicPeer("k", offer=Capabilities(1024, 1024, 0, 5), tcp_port=0, udp_port=0),
            discovery=False,
            window=6_000,
        )
        self.heard: list[bytes] = []
        self.moves = 0
        self._serials = itertools.count(1)
        self._pressing: list[threading.Thread] = []
        self._calls: list[asyncio.Task[None]] = []
        self._polling: asyncio.Task[None] | None = None

    async def begin(self, core: str, kinds: list[tuple[bool, int, bool]]) -> None:
        """Start a member for each kind: whether its door is the one without await, its workers,
        whether it listens to events; the first has a connection with each other."""
        self._polling = asyncio.create_task(self.old.serve())
        for name, (plain, workers, listens) in zip("abcdef", kinds, strict=False):
            options = loopback(
                core=core,
                workers=workers,
                send_queue_size=32,
                receive_queue_bytes=20_000,
                drain_timeout=10 * GUARD,  # who does not take for long loses nothing
            )
            member = Member(name, plain, listens, options)
            self.members.append(member)
            await member.start()
        first = self.members[0]
        for other in self.members[1:]:
            await first.call(first.node.connect, other.node.address)
        await first.call(first.node.connect, self.old.address)

    def member(self, place: int) -> Member:
        """One of them."""
        return self.members[place % len(self.members)]

    def peers(self, member: Member) -> list[Any]:
        """Whom a member knows."""
        return sorted(member.node.peers.values(), key=lambda peer: str(peer.name))

    async def send(self, place: int, to: int, size: int, count: int) -> None:
        """One of them sends to one whom it knows, as much as there is room for."""
        member = self.member(place)
        if peers := self.peers(member):
            peer = peers[to % len(peers)]
            for _ in range(count):
                if not member.offer(peer, next(self._serials), size):
                    break

    async def broadcast(self, place: int, size: int) -> None:
        """One of them sends to all whom it knows; not one with several senders: it does not hear
        the numbers."""
        member = self.member(place)
        if not (self._pressing and member.is_pressed):
            await member.broadcast(next(self._serials), size)

    async def answer(self, size: int, count: int) -> None:
        """The classic peer sends."""
        for link in [each for each in self.old.up() if not each.closed]:
            with contextlib.suppress(Refused):
                for _ in range(count):
                    message = message_of("k", next(self._serials), size)
                    self.old.peer.send(link, message, CRITICAL)
            self.old.perform()

    def press(self, over: threading.Event) -> None:
        """Until that is over, two threads for each member who may have several send one message
        after the other, and wait for room."""
        for member in self.members:
            if member.is_pressed:
                for number in range(2):
                    dice = random.Random(number)
                    thread = threading.Thread(target=self._press, args=(member, dice, over))
                    self._pressing.append(thread)
                    thread.start()

    def _press(self, member: Member, dice: random.Random, over: threading.Event) -> None:
        while not over.wait(0.01):
            if peers := self.peers(member):
                peer = dice.choice(peers)
                for _ in range(12):
                    member.press(peer, next(self._serials))

    def ask(self, over: threading.Event) -> None:
        """Ask all for their numbers until that is over, on another thread than theirs."""
        while not over.wait(0.001):
            for member in list(self.members):
                with contextlib.suppress(pt.InvalidState):
                    member.node.stats()
                    for peer in list(member.node.peers.values()):
                        peer.stats()

    def later(self, member: Member, method: Callable[..., Any], *arguments: Any) -> None:
        """Have a call made that may wait for what others do, unless some already do."""

        async def call() -> None:
            with contextlib.suppress(pt.PeerTalkError):
                await member.call(method, *arguments)

        self._calls = [each for each in self._calls if not each.done()]
        if len(self._calls) < 4:
            self._calls.append(asyncio.create_task(call()))

    def disconnect(self, place: int, to: int) -> None:
        """One of them leaves another politely."""
        member = self.member(place)
        if peers := self.peers(member):
            self.later(member, peers[to % len(peers)].disconnect)

    def connect(self, place: int, to: int) -> None:
        """One of them calls another, or the classic peer."""
        member = self.member(place)
        others = [each.node.address for each in self.members if each is not member]
        address = [self.old.address, *others][to % (1 + len(others))]
        self.later(member, member.node.connect, address)

    async def move(self, place: int, worker: int) -> None:
        """All connections of one of them go to one worker, and then apart again."""
        node = self.member(place).node
        self.moves += crowd(node, worker)
        await asyncio.sleep(0)
        self.moves += node.rebalance()

    async def serve(self, turns: int = 3) -> None:
        """All of them go on for a while."""
        for _ in range(turns):
            await asyncio.sleep(0)
            if self.old.failure is not None:
                raise self.old.failure
            self.heard += self.old.peer.messages
            self.old.peer.messages.clear()
            for member in self.members:
                await member.take()

    def open(self) -> list[str]:
        """What is still to come: a message without an outcome, or one that was sent and has not
        arrived."""
        return [
            f"{member.name} to {peer.id}: {what}"
            for member in self.members
            for peer in list(member.given)
            for what in (self._open_of if member.listens else self._uncounted)(member, peer)
        ]

    def _open_of(self, member: Member, peer: Any) -> list[str]:
        arrived, told = set(self.serials_at(member, peer)), member.told[peer]
        return [
            f"{number} {what}"
            for number, (serial, _) in member.given[peer].copy().items()
            if (what := told.get(number, "open")) == "open"
            or (what == "sent" and serial not in arrived)
        ]

    def _uncounted(self, member: Member, peer: Any) -> list[str]:
        """Of a member that hears no events: its counters must tell of all, and as many arrive as
        were sent, though more may."""
        stats = peer.stats()
        given = {serial for serial, _ in member.given[peer].copy().values()}
        arrived = len(given.intersection(self.serials_at(member, peer)))
        if (
            stats.messages_accepted == stats.messages_sent + stats.messages_failed
            and stats.messages_sent <= arrived <= stats.messages_accepted
        ):
            return []
        return [f"{arrived} of {stats}"]

    def serials_at(self, member: Member, peer: Any) -> list[int]:
        """The serial numbers of what has come from a member at one of its peers, in order."""
        for other in self.members:
            if other.node.id == peer.id:
                return other.came[member.name]
        name = member.name.encode()
        return [int.from_bytes(each[1:5], "big") for each in self.heard if each[:1] == name]

    async def finish(self) -> None:
        """Everybody takes what there is, until nothing is on its way; connections go on moving."""
        for member in self.members:
            member.takes = True
        left: list[str] = []
        rest, before, give_up = random.Random(self.moves), -1, 0.0
        while (
            any(each.is_alive() for each in self._pressing)
            or not all(each.done() for each in self._calls)
            or (left := self.open())
        ):
            arrived = sum(len(each) for member in self.members for each in member.came.values())
            if arrived != before:
                before, give_up = arrived, time.monotonic() + 2 * GUARD
            assert time.monotonic() < give_up, (self._pressing, self._calls, left[:10])
            await self.move(rest.randrange(8), rest.randrange(8))
            await self.serve(20)
            await asyncio.sleep(0.001)

    def check(self) -> None:
        """Nothing was doubled, invented or reordered, and nothing came that had failed."""
        for member in self.members:
            for peer, given in dict(member.given).items():
                numbers = {serial: number for number, (serial, _) in given.copy().items()}
                serials = self.serials_at(member, peer)
                assert member.tried.issuperset(serials), (member.name, peer.id)
                came = [numbers[serial] for serial in serials if serial in numbers]
                for large in (False, True):
                    kind = [number for number in came if (given[number][1] >= LARGE) is large]
                    assert kind == sorted(set(kind)), (member.name, peer.id, large, kind)
                told = member.told[peer]
                lies = [number for number in came if told.get(number) in ("failed", "replaced")]
                assert not lies, (member.name, peer.id, lies)
        for member in self.members:
            old = member.came["k"]
            assert old == sorted(set(old)), old

    async def close(self) -> None:
        """The end of all."""
        try:
            for member in self.members:
                await member.close()
            await asyncio.gather(*self._calls)
        finally:
            if self._polling is not None:
                self._polling.cancel()
            self.old.close()
