"""What a user may rely on when connections break, programs restart, and peers are slow or many.

Whole nodes on the simulated network, in its time; where the system matters, real sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from kit.inside import engine_of
from kit.waiting import next_event

import peertalk as pt
from peertalk import sim
from peertalk._core import load
from peertalk.protocol import connections as policy
from peertalk.protocol.neighbours import Gone
from peertalk.protocol.wire import Announcement, encode_announcement

GUARD = 60.0
ANNOUNCE, GOODBYE = 1, 3


def loopback(**more):
    return {"bind": "127.0.0.1", "port": 0, "discovery": False, "ping_interval": 0, **more}


def count_dials(*nodes):
    """A list that grows with each dial of these."""
    dials = []
    for node in nodes:
        world = engine_of(node).world
        dial = world.dial

        def counting(*arguments, dial=dial, who=node.name):
            dials.append(who)
            return dial(*arguments)

        world.dial = counting
    return dials


async def dead_port():
    """Of this machine, where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def announce(discovery_port, name, port, instance, kind=ANNOUNCE):
    packet = encode_announcement(load(), Announcement(kind, name, port, instance=instance))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(packet, ("127.0.0.1", discovery_port))


# Resets


def test_a_box_that_resets_each_connection_is_met_with_back_off_and_breaks_no_order():
    """A box in the middle forgets connections after a moment, and tells one side only. Dialled anew
    at once, that were two thousand connections in a second; and the other side, which believes in
    the old one, must not read the later messages first."""
    roles = set()

    async def main(net: sim.Network) -> tuple[int, list[int]]:
        sender = await net.node("sender", discovery=False)
        reader = await net.node("reader", discovery=False)
        roles.add(sender.id < reader.id)
        await reader.connect(sender.address)  # dialled by the receiver
        while not sender.peers:
            await asyncio.sleep(0.01)
        (peer,) = sender.peers.values()
        dials = count_dials(sender, reader)
        got = []

        async def send():
            for number in range(100_000):
                try:
                    await peer.send(number.to_bytes(4, "big"))
                except pt.errors.NetworkFailure:
                    await asyncio.sleep(0.001)  # tries on, as a program in a hurry does
                await asyncio.sleep(0.01)

        async def read():
            while True:
                got.append(int.from_bytes((await reader.receive()).data, "big"))
                await asyncio.sleep(0.05)

        tasks = [asyncio.create_task(each()) for each in (send, read)]
        for _ in range(200):
            await asyncio.sleep(0.1)
            net.reset("sender", "reader", side="a")
        for task in tasks:
            task.cancel()
        return len(dials), got

    for seed in range(6):
        dials, got = sim.run(main, seed=seed)
        assert got == sorted(set(got)) and len(got) > 20
        # twenty seconds: the first delays, and then one dial in each longest
        assert dials <= 20 / policy.RETRY_DELAYS[-1] + len(policy.RETRY_DELAYS) + 10, seed
    assert roles == {True, False}, "either side decides which connection is used once"


# Who is who


def test_a_peer_that_was_lost_and_found_again_is_the_same_object_and_works():
    """A program keeps its peers in a list; a kept one that is dead for ever, beside a living one of
    the same id, is a trap."""

    async def main(net: sim.Network) -> None:
        ada, bob = await net.node("ada"), await net.node("bob")
        events = ada.events()
        peer = await ada.wait_for("bob", timeout=GUARD)
        await peer.send(b"before")
        assert (await bob.receive(timeout=GUARD)).data == b"before"
        await peer.ping(timeout=GUARD)  # nothing is on its way any more
        net.cut("ada", "bob")
        while (await next_event(events, pt.PeerLost, GUARD)).peer is not peer:
            pass
        assert "bob" not in ada.peers and not peer.connected
        net.heal()
        assert (await next_event(events, pt.PeerFound, GUARD)).peer is peer
        assert await ada.wait_for("bob", timeout=GUARD) is peer and ada.peers["bob"] is peer
        await peer.send(b"after")
        message = await bob.receive(timeout=GUARD)
        assert message.data == b"after"
        opened = ada.stats().links_opened
        for number in range(20):
            await peer.send(bytes((number,)))
            assert (await bob.receive(timeout=GUARD)).data == bytes((number,))
        assert ada.stats().links_opened == opened, "the good connection is used, not replaced"

    sim.run(main)


@pytest.mark.parametrize("reason", [pt.LostReason.GOODBYE, pt.LostReason.EVICTED])
def test_a_peer_that_is_forgotten_while_it_is_dialled_again_leaves_nobody_waiting(reason):
    """Whoever waits hears of it, each accepted message has its outcome, and the end of the node
    waits for nothing."""

    async def main(net: sim.Network) -> None:
        ada, _ = await net.node("ada"), await net.node("bob")
        events = ada.events()
        peer = await ada.wait_for("bob", timeout=GUARD)
        await peer.connect()
        net.vanish("bob")
        net.reset("ada", "bob", side="a")
        while peer.connected:
            await asyncio.sleep(0.01)
        peer.send_nowait(b"queued")
        waiting = asyncio.create_task(peer.connect(timeout=GUARD))
        await asyncio.sleep(0.01)
        assert peer._remote.retry is not None or peer._remote.reaching
        engine_of(ada).gone(Gone(peer._remote.key, reason))
        with pytest.raises(pt.ConnectionClosed, match="is gone"):
            await waiting
        failed = await next_event(events, pt.Failed, GUARD)
        assert (failed.first, failed.outcome) == (1, pt.Outcome.FAILED)
        assert not list(ada.peers)
        before = net.clock.seconds
        assert await ada.aclose(timeout=GUARD) == 0 and net.clock.seconds - before < 1
        stats = ada.stats()
        assert stats.messages_accepted == stats.messages_sent + stats.messages_failed == 1

    sim.run(main)


def test_peers_that_died_with_messages_queued_are_forgotten():
    """Each would stay in the table for ever, and with the years the table would be full."""

    async def main(net: sim.Network) -> tuple[int, int, int]:
        ada = await net.node("ada", discovery=False, max_peers=16)
        failed = 0
        for number in range(40):
            guest = await net.node(f"guest{number}", discovery=False)
            await guest.connect(ada.address)
            while not (found := [peer for peer in ada.peers.values() if peer.connected]):
                await asyncio.sleep(0.01)
            (peer,) = found
            net.vanish(guest)
            for _ in range(3):
                peer.send_nowait(bytes(100))
            net.reset("ada", guest, side="a")
            while peer.connected:
                await asyncio.sleep(0.01)
            peer._remote.outbox is None and peer.send_nowait(bytes(100))
            del peer, found
            await asyncio.sleep(4)
            assert len(ada.peers) <= 16
        await asyncio.sleep(120)
        failed = ada.stats().messages_failed
        return len(ada.peers), ada.stats().messages_accepted, failed

    known, accepted, failed = sim.run(main)
    assert known == 0 and accepted == failed >= 40 * 3


async def test_a_restart_on_the_same_port_is_told_as_the_end_of_the_one_and_the_begin_of_the_next(
    free_port,
):
    """For half a minute the name would lead to the dead one. Nothing is forwarded: the new one
    knows nothing of what the old one was told."""
    port, where = free_port(), await dead_port()
    first, second = b"firstbob", b"nextbob!"
    async with pt.Node("ada", **loopback(discovery=True, discovery_port=port)) as ada:
        events = ada.events()
        announce(port, "bob", where, first)
        old = await ada.wait_for("bob", timeout=GUARD)
        assert (await next_event(events, pt.PeerFound, GUARD)).peer is old
        announce(port, "bob", where, second)
        lost = await next_event(events, pt.PeerLost | pt.PeerFound, GUARD)
        assert isinstance(lost, pt.PeerLost)
        assert (lost.peer, lost.reason) == (old, pt.LostReason.RESTARTED)
        following = (await next_event(events, pt.PeerFound, GUARD)).peer
        assert old.successor is following is ada.peers["bob"] and following.id == second.hex()
        assert await ada.wait_for("bob", timeout=GUARD) is following
        assert list(ada.peers) == [second.hex()]
        for send in (old.send, old.connect):
            with pytest.raises(pt.ConnectionClosed, match="'bob' was started again"):
                await (send(b"x") if send == old.send else send())
        with pytest.raises(pt.ConnectionClosed, match="'bob' was started again"):
            old.send_nowait(b"x")
        assert not following._remote.queued and following.accepted == 0


async def test_wait_for_hands_out_nobody_whose_dial_was_just_refused_until_it_is_heard_again(
    free_port,
):
    """A program that waits for a peer and sends would meet the same refusal in a loop."""
    port, where = free_port(), await dead_port()
    async with pt.Node("ada", **loopback(discovery=True, discovery_port=port)) as ada:
        announce(port, "bob", where, b"firstbob")
        peer = await ada.wait_for("bob", timeout=GUARD)
        with pytest.raises(pt.ConnectionRefused):
            await peer.connect(timeout=GUARD)
        waiting = asyncio.create_task(ada.wait_for("bob", timeout=GUARD))
        also = asyncio.create_task(ada.wait_for(lambda each: each.name == "bob", timeout=GUARD))
        await asyncio.sleep(0)
        announce(port, "eve", where + 1 if where < 65535 else 1, b"somebody")
        await ada.wait_for("eve", timeout=GUARD)
        assert not waiting.done() and not also.done(), "others come, and it is still refused"
        announce(port, "bob", where, b"firstbob")
        assert await waiting is await also is peer


async def test_a_thousand_and_more_connects_to_one_address_at_once_all_get_the_same_peer():
    """Nested in each other they would exceed the depth of the stack, inside the turn: all would
    wait for ever."""
    async with pt.Node("ada", **loopback()) as ada, pt.Node("bob", **loopback()) as bob:
        async with asyncio.timeout(GUARD):
            peers = await asyncio.gather(*[ada.connect(bob.address) for _ in range(1500)])
        assert len(set(peers)) == 1 and peers[0].connected
        assert ada.stats().links_opened == 1
        nowhere = ("127.0.0.1", await dead_port())
        async with asyncio.timeout(GUARD):
            refused = await asyncio.gather(
                *[ada.connect(nowhere) for _ in range(1500)], return_exceptions=True
            )
        assert {type(each) for each in refused} == {pt.ConnectionRefused}


# Leaving


def slow_reading(net, name, pause, taken):
    """A node that takes one message in each pause."""

    async def reading():
        node = await net.node(name, discovery=False, receive_queue_bytes=1 << 16)

        async def take():
            while True:
                taken.append((await node.receive()).data)
                await asyncio.sleep(pause)

        return node, asyncio.create_task(take())

    return reading()


def test_twelve_megabytes_to_a_slow_reader_all_arrive_when_the_node_is_given_the_time_to_leave():
    """A program sends its file and ends: everything it sent lies in buffers on the way, and a close
    that resets the connection destroys it after it was reported as sent."""

    async def main(net: sim.Network) -> tuple[int, int, object]:
        taken = []
        bob, reading = await slow_reading(net, "bob", 0.01, taken)
        ada = await net.node("ada", discovery=False, send_queue_bytes=1 << 24)
        peer = await ada.connect(bob.address)
        await peer.send_many([number.to_bytes(4, "big") * 1000 for number in range(3000)])
        unsent = await ada.aclose(timeout=300)
        while len(taken) < 3000 and net.clock.seconds < 300:
            await asyncio.sleep(1)
        reading.cancel()
        assert [int.from_bytes(each[:4], "big") for each in taken] == list(range(len(taken)))
        return unsent, len(taken), ada.stats()

    unsent, arrived, stats = sim.run(main, limit=900)
    assert (unsent, arrived, stats.messages_failed, stats.messages_sent) == (0, 3000, 0, 3000)


async def test_what_lies_in_buffers_when_a_node_leaves_is_there_for_a_reader_that_was_busy():
    """On a real system: the reader begins when everything has been sent and the sender leaves."""
    async with pt.Node("bob", **loopback(receive_queue_bytes=1 << 16)) as bob:
        ada = await pt.Node("ada", **loopback(send_queue_bytes=1 << 24)).start()
        peer = await ada.connect(bob.address, timeout=GUARD)
        for number in range(1000):
            peer.send_nowait(number.to_bytes(4, "big") * 2000)
        leaving = asyncio.create_task(ada.aclose(timeout=GUARD))
        async with asyncio.timeout(GUARD):
            while not bob.stats().pauses:
                await asyncio.sleep(0)
        got = [(await bob.receive(timeout=GUARD)).data for _ in range(1000)]
        assert got == [number.to_bytes(4, "big") * 2000 for number in range(1000)]
        assert await leaving == 0
        assert ada.stats().messages_sent == 1000 and ada.stats().messages_failed == 0


def test_a_node_that_leaves_in_a_hurry_tells_what_became_of_each_message():
    """What it cannot wait for is told as failed and counted; what it calls sent arrives, because
    the other side's system has it."""

    async def main(net: sim.Network) -> tuple[int, int, object]:
        taken = []
        bob, reading = await slow_reading(net, "bob", 0.1, taken)
        ada = await net.node("ada", discovery=False, send_queue_bytes=1 << 24)
        peer = await ada.connect(bob.address)
        for _ in range(1000):
            peer.send_nowait(bytes(4000))
        before = net.clock.seconds
        unsent = await ada.aclose(timeout=5)
        assert net.clock.seconds - before <= 5.5
        await asyncio.sleep(240)
        reading.cancel()
        return unsent, len(taken), ada.stats()

    unsent, arrived, stats = sim.run(main, limit=900)
    accepted, sent, failed = stats.messages_accepted, stats.messages_sent, stats.messages_failed
    assert accepted == sent + failed and 0 < failed == unsent
    assert sent <= arrived <= accepted


@pytest.mark.parametrize("lacking", ["memory", "a way"])
def test_disconnect_ends_within_its_time_whatever_is_lacking(lacking):
    """Without memory the messages that wait cannot leave, and so neither can the farewell."""

    async def main(net: sim.Network) -> float:
        ada = await net.node("ada", discovery=False, drain_timeout=3.0)
        bob = await net.node("bob", discovery=False)
        peer = await ada.connect(bob.address)
        if lacking == "memory":
            ada.fail_memory(1)
        else:
            net.cut("ada", "bob")
        for _ in range(100):
            peer.send_nowait(bytes(4000))
        before = net.clock.seconds
        await peer.disconnect()
        took = net.clock.seconds - before
        assert peer._remote.queued == 0 and not peer.connected
        stats = ada.stats()
        assert stats.messages_accepted == stats.messages_sent + stats.messages_failed
        ada.fail_memory(0)
        return took

    assert sim.run(main) <= 3.5


# Places


def test_so_many_peers_are_connected_as_max_peers_says_and_no_more():
    """It is the bound that a program chose for the memory that it has."""

    async def main(net: sim.Network) -> None:
        ada = await net.node("ada", discovery=False, max_peers=4)
        outcomes = []
        for number in range(12):
            guest = await net.node(f"guest{number}", discovery=False)
            try:
                await guest.connect(ada.address)
                outcomes.append("in")
            except pt.ConnectionRefused as error:
                assert error.reason is pt.RejectReason.FULL
                outcomes.append("full")
            assert sum(peer.connected for peer in ada.peers.values()) <= 4
        assert outcomes == ["in"] * 4 + ["full"] * 8
        assert ada.stats().links_refused == 8

    sim.run(main)


async def test_a_crowd_on_one_host_cannot_keep_everybody_else_out():
    """One machine with many programs, or a stranger with many ids, takes every place; the newest of
    them makes room for who comes from elsewhere."""
    async with (
        pt.Node("ada", **loopback(max_peers=8)) as ada,
        pt.Node("guest", **loopback(bind="127.0.0.2")) as guest,
        contextlib.AsyncExitStack() as stack,
    ):
        crowd = [
            await stack.enter_async_context(pt.Node(f"crowd{number}", **loopback()))
            for number in range(9)
        ]
        peers = [await node.connect(ada.address, timeout=GUARD) for node in crowd[:8]]
        refusals = crowd[8].events()
        with contextlib.suppress(pt.ConnectionRefused):  # at once, or when it had been used
            await crowd[8].connect(ada.address, timeout=GUARD)
            refused = (await next_event(refusals, pt.PeerDisconnected, GUARD)).error
            assert isinstance(refused, pt.ConnectionRefused)
            assert refused.reason is pt.RejectReason.FULL
        assert sum(peer.connected for peer in ada.peers.values()) == 8, "from the same host"
        told = crowd[7].events()
        to_ada = await guest.connect(ada.address, timeout=GUARD)
        await to_ada.send(b"let me in")
        assert (await ada.receive(timeout=GUARD)).peer.name == "guest"
        await next_event(told, pt.PeerDisconnected, GUARD)
        assert [peer.connected for peer in peers] == [True] * 7 + [False]


# Dialling a host that is silent


def test_messages_to_a_silent_host_fail_after_six_dials_of_connect_timeout_each():
    """The guide says how long it takes until a program knows."""

    async def main(net: sim.Network) -> tuple[float, int, int]:
        ada = await net.node("ada", discovery=False, connect_timeout=2.0)
        bob = await net.node("bob", discovery=False)
        peer = await ada.connect(bob.address)
        events = ada.events()
        net.vanish("bob")
        net.reset("ada", "bob", side="a")
        while peer.connected:
            await asyncio.sleep(0.01)
        dials, before = count_dials(ada), net.clock.seconds
        peer.send_nowait(b"is anybody there")
        failed = await next_event(events, pt.Failed, GUARD)
        assert failed.outcome is pt.Outcome.FAILED
        return net.clock.seconds - before, len(dials), ada.stats().messages_failed

    took, dials, failed = sim.run(main)
    tries = len(policy.RETRY_DELAYS) + 1
    assert dials <= tries and failed == 1
    assert took <= tries * 2.0 + sum(policy.RETRY_DELAYS) + 0.1


def test_a_connection_that_is_still_drained_delays_the_next_one_but_is_not_overtaken_by_it():
    """What the old one had taken and what waited leave on two connections that are there at once:
    the other side reads them in the order of the calls."""

    async def main(net: sim.Network) -> list[int]:
        ada = await net.node("ada", discovery=False)
        bob = await net.node("bob", discovery=False, receive_queue_bytes=1 << 14)
        net.link("ada", "bob", latency=0.2, bandwidth="20KB/s")
        peer = await ada.connect(bob.address)
        for number in range(60):
            peer.send_nowait(number.to_bytes(4, "big") * 250)
        await asyncio.sleep(0.5)
        got = []
        while not bob.peers:
            await asyncio.sleep(0.01)
        (back,) = bob.peers.values()
        leaving = asyncio.create_task(back.disconnect(timeout=GUARD))
        await asyncio.sleep(0.5)
        for number in range(60, 120):
            try:
                await peer.send(number.to_bytes(4, "big") * 250, timeout=GUARD)
            except pt.ConnectionClosed:
                continue
        while True:
            try:
                message = await bob.receive(timeout=30)
            except pt.Timeout:
                break
            got.append(int.from_bytes(message.data[:4], "big"))
        await leaving
        return got

    for seed in range(4):
        got = sim.run(main, seed=seed)
        assert got == sorted(set(got)) and got[-1] == 119
