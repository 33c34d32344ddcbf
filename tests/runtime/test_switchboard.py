"""Connections as they happen: two that dial each other, and whose connection it is."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import socket
import weakref

import pytest
from classic import CAPABILITY, DATA, PING
from kit.stranger import (
    LARGER,
    SMALLER,
    Dial,
    Stranger,
    announcing,
    dialled,
    frame,
    loopback,
    taken,
)
from kit.waiting import GUARD, next_event, until

import peertalk as pt
from peertalk import sim
from peertalk._core import load
from peertalk.protocol import connections as policy
from peertalk.protocol.wire import (
    Announcement,
    Capabilities,
    Greeting,
    encode_announcement,
    encode_capabilities,
    encode_greeting,
)
from peertalk.sim import scenarios

# Two that dial each other


async def test_of_two_that_dial_each_other_one_link_stays_and_nothing_is_lost_doubled_or_reordered(
    core, free_port, rounds
):
    """Both begin to send in the same moment, each over its own dial, and go on while one of the two
    links is given up."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    port = free_port()
    crossed = 0
    for _ in range(rounds(2, 100)):  # new ids: sometimes the one is smaller, sometimes the other
        async with (
            pt.Node("ada", **announcing(port, core=core.name)) as ada,
            pt.Node("bob", **announcing(port, core=core.name)) as bob,
        ):
            sides = [
                (ada, await ada.wait_for("bob", timeout=GUARD)),
                (bob, await bob.wait_for("ada", timeout=GUARD)),
            ]
            streams = [node.events() for node, _ in sides]
            for round_number in range(10):
                opened = ada.stats().links_opened

                async def talk(peer, delay, pauses):
                    for _ in range(delay):
                        await asyncio.sleep(0)
                    for number in range(60):
                        await peer.send(number.to_bytes(4, "big") + bytes(pauses[number] * 100))
                        for _ in range(pauses[number]):
                            await asyncio.sleep(0)

                async def listen(node):
                    return [
                        int.from_bytes((await node.receive()).data[:4], "big") for _ in range(60)
                    ]

                talks = [
                    talk(peer, dice.randrange(4), [dice.randrange(3) for _ in range(60)])
                    for _, peer in sides
                ]
                async with asyncio.timeout(GUARD):
                    *_, at_ada, at_bob = await asyncio.gather(*talks, listen(ada), listen(bob))
                assert at_ada == at_bob == list(range(60)), f"round {round_number}"
                await until(lambda: ada.stats().links_open == bob.stats().links_open == 1)
                assert all(peer.connected for _, peer in sides)
                crossed += ada.stats().links_opened - opened > 1
                await sides[dice.randrange(2)][1].disconnect(timeout=GUARD)
                await until(lambda: ada.stats().links_open == bob.stats().links_open == 0)
            for node, peer in sides:
                assert (
                    peer.stats().messages_sent == 600
                    and peer.stats().messages_received == 600
                    and len(node.peers) == 1
                )
        for stream in streams:
            for event in [event async for event in stream]:
                assert not isinstance(event, pt.Failed | pt.LinkFault)
                if isinstance(event, pt.PeerDisconnected):
                    assert event.error is None
    assert crossed, "no two dials crossed: the test tested nothing"


@pytest.mark.parametrize("known", [True, False])
async def test_what_lies_on_a_connection_that_is_over_is_delivered_before_what_came_on_the_next(
    known,
):
    """The other side wrote it earlier, and two connections arrive in any order: here the later data
    is always read first. known: the older one had said whose it is before."""
    async with dialled(SMALLER) as (ada, first, second):
        if known:
            first.greet(1)
            await until(lambda: ada.peers and next(iter(ada.peers.values())).connected)
        # both lie there before the node's next turn, the later one first
        second.greet(2, 1, b"late")
        if known:
            first.say(frame(DATA, b"early 1"), frame(DATA, b"early 2"))
        else:
            first.greet(1, 0, b"early 1", b"early 2")
        assert await taken(ada, 3) == [b"early 1", b"early 2", b"late"]
        assert await first.hear() is None, "over for both"
        (peer,) = ada.peers.values()
        assert peer.connected and peer.id == SMALLER.hex()
        await peer.send(b"answer")
        assert await second.hear() == (DATA, 0, 0, b"answer")
        second.say(frame(DATA, b"and on"))
        assert await taken(ada, 1) == [b"and on"]


async def test_of_two_dials_the_one_that_decides_uses_the_first_and_closes_the_second():
    """No message was on it, so nothing can be lost, doubled or overtaken."""
    async with dialled(LARGER) as (ada, first, second):
        events = ada.events()
        first.greet()
        assert await first.hear_place() == 1
        second.greet()
        assert await second.hear() is None
        first.say(frame(DATA, b"here"))
        assert await taken(ada, 1) == [b"here"]
        second.hang_up()
        await until(lambda: ada.stats().links_open == 1)
        (peer,) = ada.peers.values()
        await peer.send(b"answer")
        assert await first.hear() == (DATA, 0, 0, b"answer")
    kinds = [type(event) for event in [event async for event in events]]
    assert kinds.count(pt.PeerConnected) == 1 and pt.LinkFault not in kinds


async def test_the_one_that_decides_uses_the_second_when_the_first_is_over_for_the_other_side():
    """A box in the middle has reset the first, and only they have seen it: what had arrived of it
    is delivered, and who waited for the second gets it."""
    async with dialled(LARGER) as (ada, first, second):
        first.greet()
        assert await first.hear_place() == 1
        second.greet(0, 1)  # before the node reads what lies on the first
        first.say(frame(DATA, b"early"))
        assert await second.hear_place() == 2
        second.say(frame(DATA, b"late"))
        assert await taken(ada, 2) == [b"early", b"late"]
        assert await first.hear() is None
        (peer,) = ada.peers.values()
        await peer.send(b"answer")
        assert await second.hear() == (DATA, 0, 0, b"answer")


@pytest.mark.parametrize("what", ["another life announced", "goodbye"])
async def test_who_has_greeted_is_there_whatever_is_heard_before_its_connection_is_used(
    what, free_port
):
    """Two lives of a program on one port: the greeting of the one and the announcement of the other
    come in any order, and neither tells which of them is the older one."""
    port, listens = free_port(), free_port()
    async with pt.Node("ada", **announcing(port)) as ada:
        events = ada.events()
        dial = Dial(ada, SMALLER, 1)
        dial.port = listens
        await dial.dial(ada)
        assert await dial.hear_place() == 0
        dial.greet()
        peer = (await next_event(events, pt.PeerFound)).peer
        assert peer.id == SMALLER.hex() and not peer.connected

        def announce(kind, instance):
            said = Announcement(kind, "other", listens, flags=1, instance=instance)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(encode_announcement(load(), said), ("127.0.0.1", port))

        if what == "goodbye":
            announce(1, SMALLER)
            await next_event(events, pt.PeerChanged)
            announce(3, SMALLER)
            lost = await next_event(events, pt.PeerLost)
            assert (lost.peer, lost.reason) == (peer, pt.LostReason.GOODBYE)
        else:
            announce(1, LARGER)
            other = await next_event(events, pt.PeerFound | pt.PeerLost)
            assert other.peer.id == LARGER.hex() and peer.successor is None
        dial.greet(1, 0, b"here")
        assert await taken(ada, 1) == [b"here"]
        assert peer.connected and ada.peers[SMALLER.hex()] is peer
        await peer.send(b"answer")
        assert (await dial.hear())[0] in (CAPABILITY, DATA)
        dial.hang_up()


@pytest.mark.parametrize("instance", [SMALLER, LARGER])
async def test_of_two_connections_of_a_node_that_knows_no_places_the_newest_is_used(instance):
    """One of an older version cannot say which it has; it is asked to end the former, and until it
    has, what the new one brings waits."""
    async with dialled(instance) as (ada, first, second):
        first.greet(None, 0, b"early 1")
        assert await taken(ada, 1) == [b"early 1"]
        second.greet(None, 0, b"late")
        assert await first.hear() is None, "shut for writing"
        (peer,) = ada.peers.values()
        await peer.send(b"answer")
        assert (await second.hear())[3] == b"answer", "sent on the new one at once"
        first.say(frame(DATA, b"early 2"), frame(DATA, b"early 3"))
        first.hang_up()
        assert await taken(ada, 3) == [b"early 2", b"early 3", b"late"]
        await until(lambda: ada.stats().links_open == 1)
        assert peer.connected and list(ada.peers.values()) == [peer]


async def test_a_peer_of_ours_that_is_slow_to_greet_is_not_taken_for_a_classic_one(
    free_port, monkeypatch
):
    """A program that is busy for a second must not make its peers cut their messages to 512
    bytes."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.02)
    port, core, instance = free_port(), load(), b"slowpeer"
    async with Stranger() as slow, pt.Node("ada", **announcing(port)) as ada:
        packet = encode_announcement(
            core, Announcement(1, "slow", slow.address[1], instance=instance)
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(packet, ("127.0.0.1", port))
        peer = await ada.wait_for("slow", timeout=GUARD)
        sending = asyncio.create_task(peer.send(bytes(5000)))
        await slow.meet()
        await asyncio.wait({sending}, timeout=0.1)
        assert not sending.done() and not peer.connected
        greeting = encode_capabilities(
            core, Capabilities(8192, 1024, 0, 0, instance, "slow", slow.address[1])
        )
        slow.say(frame(CAPABILITY, greeting))
        await asyncio.wait_for(sending, GUARD)
        assert (await slow.hear())[0] == CAPABILITY and (await slow.hear())[3] == bytes(5000)


@pytest.mark.parametrize("places", [True, False], ids=["knows places", "knows none"])
async def test_what_a_peer_of_ours_that_was_taken_for_classic_sends_with_its_greeting_is_delivered(
    places, monkeypatch
):
    """It is known by another connection already, so this one is given up; but its system was told
    that these bytes have arrived, and so its application that they were sent."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.02)
    core, instance = load(), b"slowpeer"
    async with Stranger() as slow, Stranger() as quick, pt.Node("ada", **loopback()) as ada:
        classic = await ada.connect(slow.address, timeout=GUARD)
        assert classic.classic
        await slow.meet()
        greeting = encode_capabilities(
            core, Capabilities(8192, 1024, 0, 0, instance, "slow", slow.address[1])
        )
        await quick.dial(ada)
        if places:
            greeting += encode_greeting(Greeting(1, None, None, 0), instance)
        quick.say(frame(CAPABILITY, greeting))
        await until(lambda: "slow" in [peer.name for peer in ada.peers.values()])
        slow.say(
            frame(CAPABILITY, greeting),
            frame(DATA, b"one"),
            frame(PING),
            frame(DATA, b"two", 1),
        )
        got = [await ada.receive(timeout=GUARD) for _ in range(2)]
        assert [(each.data, each.peer.name) for each in got] == [(b"one", "slow"), (b"two", "slow")]


async def test_a_peer_that_never_greets_is_given_up(free_port, monkeypatch):
    """Waiting has an end, and a sentence."""
    port, core = free_port(), load()
    async with (
        Stranger() as mute,
        pt.Node("ada", **announcing(port, connect_timeout=0.05)) as ada,
    ):
        packet = encode_announcement(
            core, Announcement(1, "mute", mute.address[1], instance=b"mutepeer")
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(packet, ("127.0.0.1", port))
        peer = await ada.wait_for("mute", timeout=GUARD)
        with pytest.raises(
            pt.Timeout, match=r"'mute'.*said nothing for 0\.05 s \(Config.connect_timeout\)"
        ):
            await peer.send(b"x")


def test_a_peer_that_comes_back_while_it_is_left_waits_until_what_it_sent_before_is_read():
    """Its first bytes on the new connection must not be delivered before the last ones on the old,
    which a bad network still holds."""
    for seed in (495, 542, 769):
        assert not scenarios.play("connect_disconnect", seed).problems


def test_who_was_forgotten_on_one_side_alone_is_reached_again():
    """The side that forgot counts places anew; the other one still knows those that were used, and
    a connection with a place of the past is over before it has begun."""
    roles = set()

    async def main(net: sim.Network) -> list[bytes]:
        ada, bob = [await net.node(name, discovery=False) for name in ("ada", "bob")]
        roles.add(ada.id < bob.id)
        peer = await ada.connect(bob.address)
        got = []
        for number in range(3):
            await peer.send(bytes((number,)))
            got.append((await bob.receive(timeout=60)).data)
            await peer.disconnect(timeout=5)
            await asyncio.sleep(1)
            assert not bob.peers, "nobody holds it there"
        return got

    for seed in range(8):
        assert sim.run(main, seed=seed) == [b"\0", b"\1", b"\2"]
    assert roles == {True, False}, "either side decides about places once"


def test_what_comes_from_who_took_us_for_classic_is_delivered_when_the_older_one_has_ended(
    monkeypatch,
):
    """It stands outside the line, so nobody else would tell it that its turn has come."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.001)
    roles = set()

    async def main(net: sim.Network) -> bytes:
        ada, bob = [await net.node(name, discovery=False) for name in ("ada", "bob")]
        roles.add(ada.id < bob.id)
        (await ada.connect(bob.address)).send_nowait(b"before")
        assert (await bob.receive(timeout=60)).data == b"before"
        net.link("ada", "bob", latency=0.05)
        net.reset(ada, bob, side="a")
        await asyncio.sleep(1)
        peer = await ada.connect(bob.address)
        await peer.send(b"after")
        return (await bob.receive(timeout=60)).data

    for seed in range(8):
        assert sim.run(main, seed=seed) == b"after"
    assert roles == {True, False}, "either side decides about places once"


def test_a_peer_that_nobody_holds_is_gone_at_once_and_not_when_the_collector_comes():
    """Whoever is known again is the same object while somebody holds it: if that hung on a cycle
    and the collector's whim, one seed would give several runs."""

    async def main(net: sim.Network) -> list[object]:
        ada, bob = [await net.node(name, discovery=False) for name in ("ada", "bob")]
        calling = await ada.connect(bob.address)
        await calling.send(b"hello")
        called = (await bob.receive(timeout=60)).peer
        held = [weakref.ref(calling), weakref.ref(called)]
        await calling.disconnect(timeout=5)
        net.cut(ada, bob)
        with pytest.raises(pt.Timeout):
            await calling.send(b"again", timeout=5)
        await asyncio.sleep(100)
        del calling, called
        return [each() for each in held]

    gc.collect()
    gc.disable()
    try:
        assert sim.run(main) == [None, None]
    finally:
        gc.enable()


def test_what_had_arrived_on_a_dead_link_is_read_before_it_is_closed():
    """Its sender's system was told that it has arrived, and so the sender that it was sent."""

    async def main(net: sim.Network) -> tuple[list[bytes], int]:
        ada = await net.node("ada", discovery=False, receive_queue_bytes=4096)
        bob = await net.node("bob", discovery=False)
        peer = await bob.connect(ada.address)
        events = bob.events()
        for number in range(40):
            await peer.send(bytes((number,)) * 500)
        await asyncio.sleep(5)
        net.cut(ada, bob)
        next(iter(ada.peers.values())).send_nowait(b"nobody hears this")
        await asyncio.sleep(60)
        await bob.aclose(timeout=1)
        sent = 0
        async for event in events:
            if isinstance(event, pt.Sent):
                sent += event.last - event.first + 1
            elif isinstance(event, pt.Failed):
                sent -= event.last - event.first + 1
        got = []
        with contextlib.suppress(pt.Timeout):
            while True:
                got.append((await ada.receive(timeout=5)).data)
        return got, sent

    got, sent = sim.run(main)
    assert got == [bytes((number,)) * 500 for number in range(40)] and sent <= 40


def test_the_one_that_decides_says_so_also_to_whom_it_took_for_classic():
    """Its greeting came late. Else the other side waits for that, and gives up though both are
    there."""
    assert not scenarios.play("memory_pressure", 758).problems


def test_what_is_sent_to_who_was_taken_for_classic_comes_before_what_is_sent_later():
    """The connection on which it comes was not used yet: it need not wait for the end of the one
    that is, only for what lies there."""
    assert not scenarios.play("crossing_dials", 4179).problems
