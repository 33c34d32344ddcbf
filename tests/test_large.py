"""Messages longer than a frame, between whole nodes: they arrive once, whole and in order, in
bounded memory, whatever is lost, replaced or slow; and who lies about them is shut out.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import struct
import sys

import pytest
from kit.nodes import loopback, pair, received
from kit.stranger import Dial, frame
from kit.stranger import loopback as quiet
from kit.tables import each_row
from kit.waiting import GUARD, next_event, until
from kit.wide import wide

import peertalk as pt
from peertalk._core.values import CAPABILITY, DATA, GRANT, OFFER, REFUSE
from peertalk.errors import ProtocolError
from peertalk.protocol.claims import Claims, Over
from peertalk.protocol.large import OFFERS_MAX, Refusal
from peertalk.protocol.wire import (
    Capabilities,
    Greeting,
    encode_capabilities,
    encode_greeting,
)

MIB = 1024**2
LARGEST = 16 * MIB
"""What a node takes by default but on the core for little memory, which has to be told."""
UNASKED = 262_144
"""Bytes of the longest message that goes in one frame."""


def body(number: int, size: int) -> bytes:
    return (number.to_bytes(4, "big") * (size // 4 + 1))[:size]


class Relay:
    """A way to a node on which so many bytes pass, and then no more until it is told. What is
    beyond stands in the buffers of the systems."""

    def __init__(self, node) -> None:
        self.node = node
        self.passes = 700_000
        self.stuck = asyncio.Event()
        self.opened = asyncio.Event()
        self.writers = []
        self.passing = None

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = self.server.sockets[0].getsockname()
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.cut()
        await self.passing
        await self.server.wait_closed()

    def _accept(self, reader, writer):
        self.passing = asyncio.create_task(self._both_ways(reader, writer))

    async def _both_ways(self, reader, writer):
        there, back = await asyncio.open_connection(*self.node.address)
        self.writers = [writer, back]
        ways = self._pass(reader, back, True), self._pass(there, writer, False)
        await asyncio.gather(*ways, return_exceptions=True)
        for each in self.writers:
            each.close()
            with contextlib.suppress(OSError):
                await each.wait_closed()

    async def _pass(self, reader, writer, counted):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
            self.passes -= len(data) if counted else 0
            if counted and self.passes < 0 and not self.opened.is_set():
                self.stuck.set()
                await self.opened.wait()

    def cut(self):
        """Reset both connections."""
        for each in self.writers:
            each.transport.abort()
        self.opened.set()


@contextlib.asynccontextmanager
async def halfway(core, size, **options):
    """Two nodes, the way between them, and the peer of the first to whom a message of so many bytes
    is on its way: some of it has arrived, and no more comes."""
    options = {"core": core.name, "max_message": LARGEST, **options}
    async with (
        pt.Node("bob", **loopback(**options)) as bob,
        Relay(bob) as relay,
        pt.Node("ada", **loopback(**options)) as ada,
    ):
        to_bob = await ada.connect(relay.address, timeout=GUARD)
        await to_bob.send(body(1, size), key="first")
        async with asyncio.timeout(GUARD):
            await relay.stuck.wait()
        await until(lambda: bob.stats().landing_bytes)
        yield ada, bob, relay, to_bob


async def test_messages_of_any_length_arrive_once_in_order_both_ways(core):
    """One unasked, one granted, small ones between: one order."""
    sizes = [0, 5, 8_192, 8_193, UNASKED, UNASKED + 1, 7, 700_001, MIB, 8_193, 3]
    said = [body(number, size) for number, size in enumerate(sizes)]
    async with pair(core=core.name, max_message=LARGEST) as (ada, bob, to_bob):
        to_ada = await bob.wait_for(ada.id, timeout=GUARD)
        assert to_bob.max_message == to_ada.max_message == 16 * MIB

        async def send(peer):
            for each in said:
                await peer.send(each)

        async with asyncio.TaskGroup() as group:
            for peer in (to_bob, to_ada):
                group.create_task(send(peer))
            heard = [group.create_task(received(node, len(said))) for node in (ada, bob)]
        assert all(task.result() == said for task in heard)
        await until(lambda: ada.stats().messages_sent == len(said))
        for stats in (ada.stats(), bob.stats()):
            assert (stats.landing_bytes, stats.offers_waiting, stats.messages_failed) == (0, 0, 0)
            assert stats.payload_bytes_received >= sum(sizes)


async def test_send_many_and_whoever_does_not_wait_send_large_ones_too(core):
    """An iterator of large messages is drawn one at a time, not by the thousand."""
    drawn = 0

    def draw():
        nonlocal drawn
        for drawn in range(1, 9):
            yield bytearray(body(drawn, 400_000))

    async with pair(core=core.name, max_message=LARGEST, send_queue_bytes=MIB) as (
        _,
        bob,
        to_bob,
    ):
        to_bob.send_nowait(memoryview(body(0, MIB)))
        with pytest.raises(pt.WouldBlock):
            for _ in range(9):
                to_bob.send_nowait(body(0, MIB))
        sending = asyncio.create_task(to_bob.send_many(draw()))
        await until(lambda: drawn)
        assert drawn <= 4
        heard = await received(bob, 9)
        assert heard == [body(0, MIB), *(body(number, 400_000) for number in range(1, 9))]
        assert await sending == 8


async def test_the_limit_is_the_smaller_of_both_sides(core):
    async with (
        pt.Node("ada", **loopback(core=core.name, max_message=LARGEST)) as ada,
        pt.Node("bob", **loopback(core=core.name, max_message="1 MiB")) as bob,
    ):
        to_bob = await ada.connect(bob.address, timeout=GUARD)
        to_ada = await bob.wait_for(ada.id, timeout=GUARD)
        assert to_bob.max_message == to_ada.max_message == MIB
        with pytest.raises(pt.MessageTooLarge, match=r"limit is 1,048,576 \(its longest message\)"):
            await to_bob.send(bytes(MIB + 1))
        with pytest.raises(pt.MessageTooLarge, match=r"1,048,576 \(Config.max_message\)"):
            to_ada.send_nowait(bytes(MIB + 1))
        await to_bob.send(bytes(MIB))
        assert await received(bob, 1) == [bytes(MIB)]


async def test_a_node_that_takes_less_than_a_frame_says_so(core):
    """A program for little memory is sent no more than it wants, and sends no more."""
    async with (
        pt.Node("ada", **loopback(core=core.name, max_message=LARGEST)) as ada,
        pt.Node("bob", **loopback(core=core.name, max_message=1_000)) as bob,
    ):
        to_bob = await ada.connect(bob.address, timeout=GUARD)
        to_ada = await bob.wait_for(ada.id, timeout=GUARD)
        assert to_bob.max_message == to_ada.max_message == 1_000
        assert to_bob.capabilities.largest is None
        for peer in (to_bob, to_ada):
            with pytest.raises(pt.MessageTooLarge, match="the limit is 1,000"):
                await peer.send(bytes(1_001))
        await to_bob.send(bytes(1_000))
        assert await received(bob, 1) == [bytes(1_000)]


async def test_what_is_critical_overtakes_a_large_message(core):
    """It waits for what was sent, not for the rest of 16 MiB."""
    async with halfway(core, 16 * MIB) as (_, bob, relay, to_bob):
        await to_bob.send(b"now", priority=pt.Priority.CRITICAL)
        relay.opened.set()
        assert await received(bob, 2) == [b"now", body(1, 16 * MIB)]


async def test_the_next_large_message_is_offered_while_one_leaves(core):
    """Its offer and its grant are under way with the rest of the first one, and not behind that."""
    async with halfway(core, 16 * MIB) as (_, bob, relay, to_bob):
        to_bob.send_nowait(body(2, 2 * MIB))
        with pytest.raises(pt.WouldBlock):
            to_bob.send_nowait(body(3, 2 * MIB))
        relay.opened.set()
        await until(lambda: bob.stats().landing_bytes == 18 * MIB)
        assert await received(bob, 2) == [body(1, 16 * MIB), body(2, 2 * MIB)]


async def test_a_message_whose_connection_is_reset_in_the_middle_is_sent_again(core):
    """It was never delivered, and is at the head of its class until its last slice is handed."""
    options = {"send_queue_bytes": 64 * MIB}
    async with halfway(core, 16 * MIB, **options) as (ada, bob, relay, to_bob):
        await to_bob.send(body(2, 5))
        relay.cut()
        assert await received(bob, 2) == [body(1, 16 * MIB), body(2, 5)]
        assert not bob.stats().landing_bytes and bob.stats().messages_received == 2
        await until(lambda: ada.stats().messages_sent == 2)
        assert not ada.stats().messages_failed


async def test_of_one_key_the_newest_arrives_though_the_former_moves(core):
    """A picture that is out of date stops between two of its slices."""
    async with halfway(core, 16 * MIB) as (ada, bob, relay, to_bob):
        told = ada.events()
        await to_bob.send(body(2, 700_000), key="first")
        failed = await next_event(told, pt.Failed)
        assert (failed.first, failed.outcome) == (1, pt.Outcome.REPLACED)
        relay.opened.set()
        assert await received(bob, 1) == [body(2, 700_000)]
        await until(lambda: not bob.stats().landing_bytes)
        assert bob.stats().payload_bytes_received < 16 * MIB


async def test_a_reader_that_takes_nothing_has_little_in_its_memory(core):
    """Nothing is granted while the inbox is full, and never more than the budget at a time."""
    options = {"receive_queue_bytes": MIB, "receive_large_bytes": 2 * MIB, "max_message": LARGEST}
    async with pair(**options, core=core.name, send_queue_bytes=64 * MIB) as (_, bob, to_bob):
        for number in range(10):
            await to_bob.send(body(number, 900_000))
        await until(lambda: bob.stats().inbox_bytes > MIB and bob.stats().offers_waiting)
        for _ in range(50):
            await asyncio.sleep(0)
            stats = bob.stats()
            assert stats.landing_bytes <= 2 * MIB and stats.inbox_bytes < 4 * MIB
        assert await received(bob, 10) == [body(number, 900_000) for number in range(10)]


async def test_a_send_that_has_failed_keeps_nothing(core):
    """Its error names the frames of all who waited: a circle there would keep the message until
    garbage is collected."""
    data = bytes(2 * MIB)
    before = sys.getrefcount(data)
    options = loopback(core=core.name, max_message=LARGEST, send_queue_bytes=MIB)

    async def fails():
        try:
            await to_bob.send(data)
        except pt.ConnectionClosed:
            return True

    async with pt.Node("ada", **options) as ada:
        async with pt.Node("bob", **options, receive_queue_bytes=MIB) as bob:
            to_bob = await ada.connect(bob.address, timeout=GUARD)
            before_it = [asyncio.create_task(to_bob.send(bytes(MIB))) for _ in range(30)]
            sending = asyncio.create_task(fails())
            await until(lambda: bob.stats().inbox_bytes)
        gc.disable()
        try:
            assert await sending
            await asyncio.gather(*before_it, return_exceptions=True)
            del sending, before_it
            assert sys.getrefcount(data) == before
        finally:
            gc.enable()


async def test_many_senders_share_one_budget(core):
    """Whoever offers first is granted first, and all have their turn."""
    async with contextlib.AsyncExitStack() as stack:
        options = loopback(core=core.name, max_message=LARGEST, receive_large_bytes=MIB)
        options["send_queue_bytes"] = 64 * MIB
        bob = await stack.enter_async_context(pt.Node("bob", **options))
        peers = []
        for number in range(4):
            node = await stack.enter_async_context(pt.Node(f"n{number}", **options))
            peers.append(await node.connect(bob.address, timeout=GUARD))
        for number, peer in enumerate(peers):
            await peer.send(body(number, 600_000))
            await peer.send(body(number + 4, 2 * MIB))
        heard = [await bob.receive(timeout=GUARD) for _ in range(8)]
        assert sorted(each.data[:4] for each in heard) == [n.to_bytes(4, "big") for n in range(8)]
        assert not bob.stats().landing_bytes


async def test_who_leaves_sends_what_it_has_accepted_first(core):
    async with pair(core=core.name, max_message=LARGEST) as (_, bob, to_bob):
        await to_bob.send(body(1, 2 * MIB))
        await to_bob.disconnect()
        assert await received(bob, 1) == [body(1, 2 * MIB)]


async def test_a_node_that_is_closed_sends_what_it_has_accepted_first(core):
    async with pt.Node("bob", **loopback(core=core.name, max_message=LARGEST)) as bob:
        async with pt.Node("ada", **loopback(core=core.name, max_message=LARGEST)) as ada:
            await (await ada.connect(bob.address, timeout=GUARD)).send(body(1, 2 * MIB))
        assert await received(bob, 1) == [body(1, 2 * MIB)]


# Strangers ------------------------------------------------------------------------------------


class Wide(Dial):
    """One of ours that says what it is told about large messages."""

    largest = 16 * MIB

    def greet(self, place=0, over=0, *data):
        """As Dial.greet(), and how long a message may be."""
        greeting = Greeting(
            self.number, bytes.fromhex(self.node.id), Claims(Over(over), Over()), place
        )
        said = Capabilities(
            8192, 1024, 0, 0, self.instance, "other", self.port, largest=self.largest
        )
        payload = encode_capabilities(pt._core.load(), said)
        self.say(frame(CAPABILITY, payload + encode_greeting(greeting, self.instance)), *data)

    async def hear_wide(self):
        """(type, reason, id, total) of the next wide frame; None at the end of the stream. Other
        frames are passed over."""
        async with asyncio.timeout(GUARD):
            try:
                while True:
                    head = await self.reader.readexactly(10)
                    if head[:2] == b"WM":
                        head += await self.reader.readexactly(14)
                        kind, reason, size, id, _, total = struct.unpack(">2xBBIIII4x", head)
                        await self.reader.readexactly(size)
                        return kind, reason, id, total
                    await self.reader.readexactly(int.from_bytes(head[8:10], "big") + 2)
            except (asyncio.IncompleteReadError, ConnectionResetError):
                return None


@contextlib.asynccontextmanager
async def stranger(core, instance=b"\x00" * 7 + b"\x01", largest=16 * MIB, **options):
    """A node, and one of ours that has dialled it and decides; connected."""
    async with pt.Node("ada", **quiet(core=core.name, max_message=LARGEST, **options)) as ada:
        async with another(ada, instance, largest) as other:
            yield ada, other


@contextlib.asynccontextmanager
async def another(ada, instance, largest=16 * MIB):
    other = Wide(ada, instance, 1)
    other.largest = largest
    await other.dial(ada)
    assert await other.hear_place() == 0
    other.greet(0)
    other.greet(1)
    await until(
        lambda: any(peer.id == instance.hex() and peer.connected for peer in ada.peers.values())
    )
    try:
        yield other
    finally:
        other.hang_up()


def offer(id, total):
    return wide(OFFER, id, total=total)


FAULTS = {
    "an offer of no id": [offer(0, MIB)],
    "an offer of nothing": [offer(1, 0)],
    "an id that is in use": [offer(1, MIB), offer(1, MIB)],
    "more offers than may be open": [offer(id, 16 * MIB) for id in range(1, OFFERS_MAX + 2)],
    "a grant of what was never offered": [wide(GRANT, 1)],
    "a refusal of what was never offered": [wide(REFUSE, 1, reason=Refusal.TOO_LARGE)],
    "a grant that was never given taken back": [wide(REFUSE, 1, reason=Refusal.LOST)],
    "a withdrawal of what was never offered": [wide(REFUSE, 1, reason=Refusal.WITHDRAWN)],
    "a slice that was never offered": [wide(DATA, 1, 0, MIB, b"x")],
}


@pytest.mark.parametrize("said", FAULTS.values(), ids=FAULTS.keys())
async def test_who_breaks_the_rules_of_large_messages_is_shut_out(said, core):
    async with stranger(core, receive_large_bytes=1024) as (ada, other):
        faults = ada.events()
        other.say(*said)
        fault = await next_event(faults, pt.LinkFault)
        assert isinstance(fault.error, ProtocolError)
        assert ada.stats().bad_frames == 1 and not ada.stats().landing_bytes
        while await other.hear_wide() is not None:
            pass


SLICES = {
    "not at the beginning": [wide(DATA, 1, 5, MIB, b"x")],
    "with another total": [wide(DATA, 1, 0, MIB - 1, b"x")],
    "twice": [wide(DATA, 1, 0, MIB, b"xx"), wide(DATA, 1, 0, MIB, b"xx")],
    "that overlap": [wide(DATA, 1, 0, MIB, b"xx"), wide(DATA, 1, 1, MIB, b"xx")],
    "with a gap": [wide(DATA, 1, 0, MIB, b"xx"), wide(DATA, 1, 3, MIB, b"xx")],
    "of another one": [wide(DATA, 2, 0, MIB, b"xx")],
}


@pytest.mark.parametrize("said", SLICES.values(), ids=SLICES.keys())
async def test_slices_that_lie_end_the_link(said, core):
    async with stranger(core) as (ada, other):
        faults = ada.events()
        other.say(offer(1, MIB))
        assert await other.hear_wide() == (GRANT, 0, 1, 0)
        assert ada.stats().landing_bytes == MIB
        other.say(*said)
        await next_event(faults, pt.LinkFault)
        await until(lambda: not ada.stats().landing_bytes)


async def test_an_offer_of_a_peer_that_takes_none_itself_is_a_fault(core):
    """It never said 0x88, and was told that the rule is to say it."""
    async with stranger(core, largest=None) as (ada, other):
        assert [peer.max_message for peer in ada.peers.values()] == [core.limits.frame_max_payload]
        faults = ada.events()
        other.say(offer(1, MIB))
        assert isinstance((await next_event(faults, pt.LinkFault)).error, ProtocolError)


async def test_ten_thousand_offers_of_two_gigabytes_cost_as_many_answers(core):
    """They are refused before anything is asked for."""
    async with stranger(core) as (ada, other):
        for first in range(1, 10_001, 50):
            other.say(*(offer(id, 2**31 - 1) for id in range(first, first + 50)))
            for id in range(first, first + 50):
                assert await other.hear_wide() == (REFUSE, Refusal.TOO_LARGE, id, 0)
        stats = ada.stats()
        assert (stats.landing_bytes, stats.offers_waiting, stats.bad_frames) == (0, 0, 0)


async def test_a_peer_that_does_not_move_gives_way_when_others_wait(core):
    """Else whoever has a grant and says nothing would keep all others out."""
    options = {"receive_large_bytes": MIB, "link_timeout": 0.4}
    async with stranger(core, **options) as (ada, still):
        still.say(offer(1, MIB))
        assert await still.hear_wide() == (GRANT, 0, 1, 0)
        still.say(wide(DATA, 1, 0, MIB, b"xx"))
        async with another(ada, b"\x00" * 7 + b"\x02") as other:
            other.say(offer(1, 9_000))
            assert await still.hear_wide() == (REFUSE, Refusal.LOST, 1, 0)
            assert await other.hear_wide() == (GRANT, 0, 1, 0)
            assert ada.stats().grants_lost == 1
            other.say(wide(DATA, 1, 0, 9_000, bytes(9_000)))
            assert await received(ada, 1) == [bytes(9_000)]
        still.say(wide(DATA, 1, 2, MIB, b"xx"), wide(REFUSE, 1, reason=Refusal.WITHDRAWN))
        still.say(offer(2, 9_000))
        assert await still.hear_wide() == (GRANT, 0, 2, 0)
        still.say(wide(DATA, 2, 0, 9_000, bytes(9_000)))
        assert await received(ada, 1) == [bytes(9_000)]


# What a node does with answers ----------------------------------------------------------------


async def test_a_message_that_the_peer_refuses_fails_and_the_next_goes_on(core):
    async with stranger(core) as (ada, other):
        [peer] = ada.peers.values()
        told = ada.events()
        await peer.send(bytes(500_000))
        await peer.send(b"next")
        assert await other.hear_wide() == (OFFER, 0, 1, 500_000)
        other.say(wide(REFUSE, 1, reason=Refusal.TOO_LARGE))
        failed = await next_event(told, pt.Failed)
        assert (failed.first, failed.outcome) == (1, pt.Outcome.FAILED)
        assert isinstance(failed.error, pt.MessageTooLarge)
        assert (await next_event(told, pt.Sent)).first == 2


async def test_a_message_that_the_peer_lost_is_offered_anew_or_has_failed(core):
    """What was handed to its last slice before that was heard is known to be lost, though it was
    told as sent."""
    async with stranger(core) as (ada, other):
        [peer] = ada.peers.values()
        told = ada.events()
        await peer.send(bytes(600_000))
        assert await other.hear_wide() == (OFFER, 0, 1, 600_000)
        other.say(wide(GRANT, 1), wide(REFUSE, 1, reason=Refusal.LOST))
        heard = []
        while (word := await other.hear_wide())[0] == DATA:
            heard.append(word)
        assert word == (REFUSE, Refusal.WITHDRAWN, 1, 0)
        if len(heard) < 3:
            assert await other.hear_wide() == (OFFER, 0, 2, 600_000)
            other.say(wide(GRANT, 2))
            for _ in range(3):
                assert (await other.hear_wide())[2] == 2
            await until(lambda: ada.stats().messages_sent == 1)
            other.say(wide(REFUSE, 2, reason=Refusal.LOST))
            assert await other.hear_wide() == (REFUSE, Refusal.WITHDRAWN, 2, 0)
        failed = await next_event(told, pt.Failed)
        assert (failed.first, failed.outcome) == (1, pt.Outcome.FAILED)
        assert isinstance(failed.error, pt.Timeout)
        stats = ada.stats()
        assert (stats.messages_sent, stats.messages_failed, peer.queue.pending) == (0, 1, 0)


@each_row("max_message", {"large": 16 * MIB, "as long as a frame": 8_192, "small": 100})
def test_a_message_longer_than_the_budget_is_no_contradiction(max_message):
    config = pt.Config(max_message=max_message, receive_large_bytes=1024)
    assert (config.max_message, config.receive_large_bytes) == (max_message, 1024)
