"""What scenarios are made of: a stage, which is a network with actors on it, and the checks that
hold in every play.

Each accepted message ended as Sent or Failed, nothing arrived twice, changed or out of order, and
nothing that was reported as never sent arrived. Problems are sentences.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from .. import errors
from ..peer import Peer
from ..protocol import events
from .network import PLATFORMS, Network, Node

_HEAD = 6
"""Bytes in front of a payload: who sent it (2), its number (4)."""


class Result(msgspec.Struct, frozen=True):
    """How one run of a scenario ended.

    seconds: network time that it took; trace_hash: 16 hexadecimal digits; figures: what was
    measured, by name, with the unit in the name; problems: what must not have happened, as
    sentences; empty: it passed.
    """

    scenario: str
    seed: int
    seconds: float
    trace_hash: str
    figures: dict[str, float]
    problems: list[str]


class Scenario(msgspec.Struct, frozen=True):
    """A scenario. play: what happens; preset: of links and hosts; summary: one sentence."""

    name: str
    summary: str
    preset: str
    play: Callable[[Stage], Awaitable[None]]


SCENARIOS: dict[str, Scenario] = {}
"""All scenarios, by name."""


Play = TypeVar("Play", bound=Callable[..., Awaitable[None]])


def scenario(summary: str, preset: str = "none") -> Callable[[Play], Play]:
    """Have a coroutine in SCENARIOS under its own name."""

    def take(play: Play) -> Play:
        name = getattr(play, "__name__", "").strip("_")
        SCENARIOS[name] = Scenario(name, summary, preset, play)
        return play

    return take


class Dice:
    """Choices from the network's seed."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def below(self, count: int) -> int:
        """A number from 0 to count - 1, drawn from the seed."""
        return int.from_bytes(self._network.random(4), "big") % count

    def between(self, low: float, high: float) -> float:
        """From low to high, in 65,536 steps."""
        return low + (high - low) * self.below(65_537) / 65_536

    def one_of(self, *choices: Any) -> Any:
        """One of the choices, drawn from the seed."""
        return choices[self.below(len(choices))]


class Actor:
    """A node that plays: it numbers what it sends, writes down what it gets, and what it is told of
    each message.

    taking: whether messages are taken out of its inbox.
    """

    def __init__(self, stage: Stage, number: int, node: Node) -> None:
        self.stage = stage
        self.number = number
        self.node = node
        self.sent: dict[Peer, list[tuple[int, int]]] = {}
        self.outcomes: dict[Peer, list[tuple[int, int, events.Outcome | None, float]]] = {}
        self.got: dict[int, list[int]] = {}
        self.arrivals: dict[int, list[float]] = {}
        self.faults: list[events.LinkFault[Peer]] = []
        self.missed = 0
        self.disconnects = 0
        self._next = 0
        self._taking: asyncio.Task[None] | None = None
        self._listening = asyncio.create_task(
            self._listen(node.events()), name=f"{node.name} listening"
        )

    @property
    def name(self) -> str:
        """Of its node."""
        return self.node.name

    def take(self) -> None:
        """Take what arrives, from now on."""
        self._taking = asyncio.create_task(self._take(), name=f"{self.name} taking")

    async def meet(self, other: Actor) -> Peer:
        """Connect to another actor, within 60 simulated seconds. Returns the peer that it is
        here."""
        return await self.node.connect(other.node.address, timeout=60)

    async def met_by(self, other: Actor) -> Peer:
        """The peer that another actor is, which has connected to us: as soon as its connection is
        known here."""
        while (
            found := next(
                (
                    peer
                    for peer in self.node.peers.values()
                    if peer.name == other.name and peer.connected
                ),
                None,
            )
        ) is None:
            await asyncio.sleep(0.01)
        return found

    def payload(self, size: int) -> tuple[int, bytes]:
        """The next message: its number, and at least 6 bytes."""
        self._next += 1
        return self._next, _payload(self.number, self._next, size)

    async def send(self, peer: Peer, size: int = 64, **how: Any) -> bool:
        """Send the next message; whether it was accepted."""
        index, payload = self.payload(size)
        try:
            number = await peer.send(payload, **how)
        except errors.PeerTalkError:
            return False
        self.sent.setdefault(peer, []).append((number, index))
        return True

    def send_nowait(self, peer: Peer, size: int = 64) -> bool:
        """Send the next message if there is room; whether there was."""
        index, payload = self.payload(size)
        try:
            number = peer.send_nowait(payload)
        except errors.PeerTalkError:
            return False
        self.sent.setdefault(peer, []).append((number, index))
        return True

    async def send_all(self, peer: Peer, count: int, size: int = 64, pause: float = 0.0) -> int:
        """Send so many, one after the other; how many were accepted."""
        accepted = 0
        for _ in range(count):
            accepted += await self.send(peer, size)
            if pause:
                await asyncio.sleep(pause)
        return accepted

    async def settled(self, within: float) -> bool:
        """Wait until every message that was accepted so far has its outcome; whether that was so in
        time."""
        clock = self.stage.net.clock
        end = clock.seconds + within
        while any(peer.queue.pending for peer in self.sent):
            if clock.seconds >= end:
                return False
            await asyncio.sleep(0.05)
        return True

    def close_now(self) -> None:
        """End the node at once, as a crash that still runs its own code would."""
        self.node.close_nowait()

    async def _take(self) -> None:
        async for batch in self.node.batches():
            now = self.stage.net.clock.seconds
            for payload in batch.payloads:
                self._book(payload, now)

    def _book(self, payload: bytes, now: float) -> None:
        origin, index = int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:_HEAD], "big")
        if payload != _payload(origin, index, len(payload)):
            self.stage.problems.append(f"{self.name} got {len(payload):,} bytes that nobody sent")
            return
        self.got.setdefault(origin, []).append(index)
        self.arrivals.setdefault(origin, []).append(now)

    async def _listen(self, stream: Any) -> None:
        async for event in stream:
            now = self.stage.net.clock.seconds
            match event:
                case events.Sent(peer, first, last):
                    self.outcomes.setdefault(peer, []).append((first, last, None, now))
                case events.Failed(peer, first, last, outcome, _):
                    self.outcomes.setdefault(peer, []).append((first, last, outcome, now))
                case events.PeerDisconnected():
                    self.disconnects += 1
                case events.LinkFault():
                    self.faults.append(event)
                case events.EventsMissed(count):
                    self.missed += count

    async def end(self) -> None:
        """Close the node; hear the rest."""
        if self.node.host in self.stage.vanished:
            self.node.close_nowait()
        else:
            await self.node.aclose(timeout=120)
        for task in (self._listening, self._taking):
            if task is not None:
                await asyncio.gather(task, return_exceptions=True)

    # Checks ---------------------------------------------------------------------------------------

    def check(self, actors: dict[int, Actor], problems: list[str]) -> None:
        """What holds for every actor in every scenario."""
        if self.missed:
            problems.append(f"{self.name} missed {self.missed} events")
        for peer, sent in self.sent.items():
            outcome = self._outcomes_of(peer, problems)
            arrived = {
                index for actor in actors.values() for index in actor.got.get(self.number, ())
            }
            for number, index in sent:
                if number not in outcome:
                    problems.append(
                        f"{self.name}: message {number} to {peer.name} ended neither as Sent "
                        "nor as Failed"
                    )
                elif outcome[number] is events.Outcome.FAILED and index in arrived:
                    problems.append(
                        f"{self.name}: message {number} to {peer.name} was reported as never "
                        "sent, and arrived"
                    )
        for origin, indexes in self.got.items():
            for before, after in itertools.pairwise(indexes):
                if after <= before:
                    how = "twice" if after == before else f"behind {before}"
                    problems.append(
                        f"{self.name}: message {after} of {actors[origin].name} came {how}"
                    )
            accepted = {index for pairs in actors[origin].sent.values() for _, index in pairs}
            strangers = [index for index in indexes if index not in accepted]
            if strangers:
                problems.append(
                    f"{self.name}: message {strangers[0]} of {actors[origin].name} came "
                    "though it was not accepted"
                )

    def _outcomes_of(self, peer: Peer, problems: list[str]) -> dict[int, events.Outcome | None]:
        outcome: dict[int, events.Outcome | None] = {}
        for first, last, what, _ in self.outcomes.get(peer, ()):
            for number in range(first, last + 1):
                if number in outcome:
                    problems.append(
                        f"{self.name}: message {number} to {peer.name} has two outcomes"
                    )
                outcome[number] = what
        if set(outcome) != set(range(1, peer.accepted + 1)):
            problems.append(
                f"{self.name}: {peer.accepted} messages to {peer.name} were accepted, and "
                f"{len(outcome)} have an outcome"
            )
        return outcome

    def sent_to(self, peer: Peer) -> set[int]:
        """Indexes of the messages to this peer that were reported as Sent."""
        outcome = self._outcomes_of(peer, [])
        return {
            index
            for number, index in self.sent.get(peer, ())
            if number in outcome and outcome[number] is None
        }


class Stage:
    """A network with its actors, what was measured, and what went wrong."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.dice = Dice(net)
        self.actors: dict[int, Actor] = {}
        self.figures: dict[str, float] = {}
        self.problems: list[str] = []
        self.vanished: list[Any] = []

    async def actor(self, name: str, *, taking: bool = True, **node: Any) -> Actor:
        """A node that plays. node: see Network.node(); without discovery unless it says
        otherwise."""
        made = await self.net.node(name, **{"discovery": False, **node})
        actor = Actor(self, len(self.actors) + 1, made)
        self.actors[actor.number] = actor
        if taking:
            actor.take()
        return actor

    def anywhere(self) -> dict[str, Any]:
        """A world by chance: platform and core."""
        return {
            "platform": self.dice.one_of(*PLATFORMS),
            "core": self.dice.one_of("standard", "lowmem"),
        }

    def expect(self, holds: bool, otherwise: str) -> None:
        """A check of the scenario's own."""
        if not holds:
            self.problems.append(otherwise)

    def expect_all(self, sender: Actor, peer: Peer, receiver: Actor) -> None:
        """Everything that was accepted arrived, and was reported as Sent."""
        accepted = {index for _, index in sender.sent.get(peer, ())}
        lost = sorted(accepted - set(receiver.got.get(sender.number, ())))
        way = f"messages from {sender.name} to {receiver.name}"
        self.expect(
            not lost,
            (
                f"{len(lost)} of {len(accepted)} {way} were accepted and never came, {lost[:3]} "
                "among them"
            ),
        )
        unsent = len(accepted) - len(sender.sent_to(peer) & accepted)
        self.expect(not unsent, f"{unsent} of {len(accepted)} {way} were not reported as Sent")

    @contextlib.asynccontextmanager
    async def resetting(self, *actors: Actor, pause: float) -> AsyncIterator[None]:
        """Meanwhile a box on the wire resets connections of these actors by chance, seen by one
        side or both, one each `pause` seconds at most."""

        async def reset() -> None:
            while True:
                await asyncio.sleep(self.dice.between(0, pause))
                one = self.dice.below(len(actors))
                other = (one + 1 + self.dice.below(len(actors) - 1)) % len(actors)
                self.figures["resets"] = self.figures.get("resets", 0) + self.net.reset(
                    actors[one].node,
                    actors[other].node,
                    side=self.dice.one_of("a", "b", "both"),
                    which=self.dice.one_of(None, 0, -1),
                )

        box = asyncio.create_task(reset(), name="a box that resets")
        try:
            yield
        finally:
            box.cancel()
            await asyncio.gather(box, return_exceptions=True)

    def expect_arrived(self, sender: Actor, receiver: Actor) -> None:
        """Whatever was reported as Sent arrived."""
        got = set(receiver.got.get(sender.number, ()))
        for peer in sender.sent:
            if peer.name == receiver.name:
                lost = sorted(sender.sent_to(peer) - got)
                self.expect(
                    not lost,
                    f"{len(lost)} messages from {sender.name} to {receiver.name} were reported as "
                    f"Sent and never came, {lost[:3]} among them",
                )

    def vanish(self, actor: Actor) -> None:
        """Switch the machine of an actor off, without a word; end() lets its node go at once."""
        self.vanished.append(actor.node.host)
        self.net.vanish(actor.node)

    async def end(self) -> None:
        """Close every node, the senders' messages first."""
        for actor in self.actors.values():
            if actor._taking is None:
                actor.take()
        for actor in self.actors.values():
            await actor.end()

    def check(self) -> None:
        """What holds in every scenario."""
        for actor in self.actors.values():
            actor.check(self.actors, self.problems)


def _payload(origin: int, index: int, size: int) -> bytes:
    head = origin.to_bytes(2, "big") + index.to_bytes(4, "big")
    return head + bytes([index * 7 & 0xFF]) * (max(size, _HEAD) - _HEAD)
