"""Greetings and what is measured by them: late ones, such as come again, and the way to a peer."""

from __future__ import annotations

import asyncio
import socket

import pytest
from classic import CAPABILITY, DATA, DISCONNECT, PING, PONG
from kit.stranger import Stranger, announcing, capability, frame, loopback
from kit.waiting import GUARD, next_event, until

import peertalk as pt
from peertalk._core import load
from peertalk.protocol import connections as policy
from peertalk.protocol.wire import Capabilities, encode_capabilities

# Round-trip times


async def test_the_way_to_a_peer_is_measured_when_it_connects_and_whenever_it_is_asked_for():
    """Both sides measure; nobody has to ask."""
    async with (
        pt.Node("ada", **loopback(ping_interval=10)) as ada,
        pt.Node("bob", **loopback(ping_interval=10)) as bob,
    ):
        peer = await ada.connect(bob.address, timeout=GUARD)
        await until(
            lambda: (
                peer.latency is not None
                and all(other.latency is not None for other in bob.peers.values())
            )
        )
        assert peer.latency.samples == 1 and peer.latency.deviation == peer.latency.rtt / 2
        seconds = [await peer.ping(timeout=GUARD) for _ in range(3)]
        assert all(0 < each < GUARD for each in seconds) and peer.latency.samples == 4
        await peer.disconnect(timeout=GUARD)
        assert peer.latency.samples == 4, "of the last connection"
        with pytest.raises(pt.NotConnected, match="'bob' is not connected"):
            await peer.ping()
        await peer.connect(timeout=GUARD)
        await until(lambda: peer.latency is not None and peer.latency.samples == 1)


async def test_a_peer_that_never_answers_a_ping_is_not_worse_off_and_gets_no_second_one_meanwhile():
    """The original answers, but nothing says that everybody must."""
    async with Stranger() as classic, pt.Node("ada", **loopback(ping_interval=0.02)) as ada:
        connecting = asyncio.create_task(ada.connect(classic.address, timeout=GUARD))
        await classic.meet()
        classic.say(capability())
        peer = await connecting
        assert await classic.hear() != (PING, 0, 0, b"") == await classic.hear()
        with pytest.raises(pt.Timeout, match=r"no answer to a PING from peer .* within 0\.1 s"):
            await peer.ping(timeout=0.1)
        assert peer.connected and peer.latency is None and not peer._remote.pinging
        await peer.send(b"still there")
        assert await classic.hear() == (DATA, 0, 0, b"still there"), (
            "one PING is out, and no more leave before its answer"
        )
        asking = asyncio.create_task(peer.ping(timeout=GUARD))
        await until(lambda: peer._remote.pinging)
        classic.say(frame(PONG, b"with a payload"), frame(PONG), frame(PONG))
        # since the PING that got no answer in time; a timer of uvloop is up to a millisecond early
        assert await asking > 0.09 and peer.latency.samples == 1 and peer.latency.quality == 25
        asking = asyncio.create_task(peer.ping(timeout=GUARD))
        classic.hang_up()
        with pytest.raises(pt.ConnectionClosed):
            await asking


async def test_a_ping_whose_answer_lay_unread_while_the_link_was_paused_measures_nothing():
    """A slow application is not a slow network."""
    async with (
        Stranger() as classic,
        pt.Node("ada", **loopback(receive_queue_bytes=1024)) as ada,
    ):
        await classic.dial(ada)
        classic.say(capability())
        await until(lambda: ada.peers)
        (peer,) = ada.peers.values()
        asking = asyncio.create_task(peer.ping(timeout=GUARD))
        while (await classic.hear())[0] != PING:
            pass
        classic.say(frame(DATA, bytes(2000)))
        await until(lambda: ada.stats().pauses == 1)
        classic.say(frame(PONG))
        await ada.receive(timeout=GUARD)
        with pytest.raises(pt.Timeout):
            await ada.receive(timeout=0)
        while (await classic.hear())[0] != PING:
            pass
        assert not asking.done() and peer.latency is None
        classic.say(frame(PONG))
        assert await asking > 0 and peer.latency.samples == 1


async def test_a_flood_of_pings_whose_answers_nobody_reads_costs_its_slots_and_no_more():
    """One answer for all that a turn brings, and none that waits in a queue: that would be memory
    that a stranger fills."""
    async with Stranger() as classic, pt.Node("ada", **loopback(pipeline_depth=1)) as ada:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await asyncio.get_running_loop().sock_connect(deaf, ada.address)
            await asyncio.get_running_loop().sock_sendall(deaf, capability())
            flood = frame(PING) * 5000
            async with asyncio.timeout(GUARD):
                while ada.stats().bytes_received < 500_000:
                    await asyncio.get_running_loop().sock_sendall(deaf, flood)
            (peer,) = ada.peers.values()
            assert peer.connected and peer._remote.queued == 0 and ada.stats().pool_bytes < 1 << 20
            await classic.dial(ada)
            classic.say(frame(PING))
            assert [(await classic.hear())[0] for _ in range(2)] == [CAPABILITY, PONG], (
                "only its own link is full"
            )


# Capabilities that come again


async def test_a_later_capability_replaces_all_but_who_it_is():
    """Missing entries fall back to the original's defaults; identity belongs to the connection and
    not to a frame."""
    core, instance = load(), b"replaced"
    async with Stranger() as other, pt.Node("ada", **loopback()) as ada:
        connecting = asyncio.create_task(ada.connect(other.address, timeout=GUARD))
        await other.meet()
        other.say(
            frame(
                CAPABILITY,
                encode_capabilities(
                    core, Capabilities(8000, 2048, 0, 1, instance, "other", other.address[1])
                ),
            )
        )
        peer = await connecting
        assert peer.max_message == 8000

        async def told(*frames):
            other.say(*frames, frame(PING))
            while (await other.hear())[0] != PONG:
                pass

        await told(frame(CAPABILITY, b"\x03\x01\x4b"))
        assert (
            peer.capabilities == Capabilities(512, 256, 75, 0, instance, "other", other.address[1])
            and peer.max_message == 512
        )
        before = ada.stats().frames_ignored
        await told(
            frame(
                CAPABILITY,
                encode_capabilities(core, Capabilities(4000, 1, 0, 0, b"somebody", "else")),
            )
        )
        assert (
            peer.max_message == 512
            and peer.id == instance.hex()
            and ada.stats().frames_ignored == before + 1
        )
        await told(frame(CAPABILITY, b"\x03\x09"))
        assert peer.capabilities.pressure == 75 and ada.stats().frames_ignored == before + 2
        await told(
            frame(
                CAPABILITY,
                encode_capabilities(core, Capabilities(9000, 1, 0, 0, instance, "other")),
            )
        )
        assert peer.max_message == 8192 and peer.capabilities.port == other.address[1]
        await told(frame(CAPABILITY, b"\x01\x02\x00\x01"))
        assert peer.max_message == 256


async def test_one_of_ours_that_greets_late_is_no_classic_peer_for_ever(monkeypatch):
    """A program that was busy for a second must not count as a machine of 1990 for as long as it
    runs."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.02)
    core, instance = load(), b"latecome"
    async with Stranger() as late, pt.Node("ada", **loopback()) as ada:
        peer = await ada.connect(late.address, timeout=GUARD)
        await late.meet()
        assert peer.classic and peer.max_message == 4096
        await peer.send(b"to a classic peer")
        greeting = encode_capabilities(
            core, Capabilities(8192, 1024, 0, 0, instance, "late", late.address[1])
        )
        late.say(frame(CAPABILITY, greeting), frame(DATA, b"here"))
        assert (await ada.receive(timeout=GUARD)).peer is peer
        assert (peer.classic, peer.id, peer.name, peer.max_message) == (
            False,
            instance.hex(),
            "late",
            8192,
        )
        assert list(ada.peers) == [peer.id] and ada.peers["late"] is peer and peer.connected
        await peer.send(bytes(8000))
        assert [(await late.hear())[0] for _ in range(3)] == [CAPABILITY, DATA, DATA]
        stats = peer.stats()
        late.say(frame(DISCONNECT))
        await until(lambda: not peer.connected)
        assert stats.messages_accepted == 2 and peer._remote.reported == 2


async def test_a_long_message_waits_for_one_of_ours_that_greets_late_and_is_not_refused(
    monkeypatch,
):
    """A server that was busy for a second would be taken for a machine of 1990, and the first
    message that only one of ours takes would fail."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.02)
    async with Stranger() as late, pt.Node("ada", **loopback(connect_timeout=GUARD)) as ada:
        peer = await ada.connect(late.address, timeout=GUARD)
        await late.meet()
        assert peer.capabilities is None
        await peer.send(b"short")
        peer.send_nowait(bytes(8000))
        assert await peer.send_many([bytes(8000), b"behind them"]) == 2
        late.say(late_greeting(late))
        sizes = [len((await late.hear())[3]) for _ in range(5)]
        assert sizes[1:] == [5, 8000, 8000, 11], "in the order of the calls"
        assert not peer.classic and peer.stats().messages_failed == 0


BUSY = """
import asyncio, sys
import peertalk as pt

async def main():
    async with pt.Node("busy", bind="127.0.0.1", port=0, udp_port=0, discovery=False) as node:
        print(node.address[1], flush=True)
        sys.stdin.readline()  # the loop stands still
        print(len((await node.receive(timeout=60)).data), flush=True)

asyncio.run(main())
"""


async def test_a_server_that_is_busy_is_sent_what_is_longer_than_a_classic_peer_takes(
    fork_python, monkeypatch
):
    """It computes, or starts up: a program of ours that will answer, and not in a second."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.02)
    busy = fork_python("-c", BUSY)
    port = int(await asyncio.to_thread(busy.stdout.readline))
    async with pt.Node("ada", **loopback(connect_timeout=GUARD)) as ada:
        peer = await ada.connect(("127.0.0.1", port), timeout=GUARD)
        assert peer.capabilities is None
        await peer.send(bytes(8000))
        busy.stdin.write("go on\n")
        busy.stdin.flush()
        assert await asyncio.to_thread(busy.stdout.readline) == "8000\n"
        assert (peer.name, peer.classic) == ("busy", False)


async def test_a_long_message_fails_when_the_time_of_a_slow_peer_is_over(monkeypatch):
    """An original says what it takes at once, so one that still says nothing takes 512 bytes, and
    what is behind the long one must not wait for ever."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.02)
    async with Stranger() as mute, pt.Node("ada", **loopback(connect_timeout=1.0)) as ada:
        events = ada.events()
        peer = await ada.connect(mute.address, timeout=GUARD)
        await mute.meet()
        number = await peer.send(bytes(4097))
        await peer.send(b"behind it")
        failed = await next_event(events, pt.Failed)
        assert (failed.first, failed.last, failed.outcome) == (number, number, pt.Outcome.FAILED)
        assert isinstance(failed.error, pt.MessageTooLarge)
        assert (await mute.hear())[0] == CAPABILITY and (await mute.hear())[3] == b"behind it"
        with pytest.raises(pt.MessageTooLarge, match="the limit is 4,096"):
            await peer.send(bytes(4097))


def late_greeting(late):
    """Of one of ours that listens where this peer does."""
    capabilities = Capabilities(8192, 1024, 0, 0, b"latecome", "late", late.address[1])
    return frame(CAPABILITY, encode_capabilities(load(), capabilities))


async def test_one_of_ours_that_greets_late_and_is_known_already_is_sent_to_under_its_name(
    monkeypatch,
):
    """Two objects for one peer would be two queues and two orders."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.02)
    async with Stranger() as late, pt.Node("ada", **loopback()) as ada:
        greeting = late_greeting(late)
        events = ada.events()
        classic = await ada.connect(late.address, timeout=GUARD)
        await late.meet()
        first = late.writer
        await late.dial(ada)
        late.say(greeting)
        assert (await ada.wait_for("late", timeout=GUARD)).connected
        first.write(greeting)
        gone = await next_event(events, pt.PeerDisconnected)
        assert gone.peer is classic and "is now the peer 'late'" in str(gone.error)
        assert list(ada.peers.values()) == [ada.peers["late"]] and ada.peers["late"].connected
        first.close()


async def test_one_of_ours_that_greets_late_and_was_forgotten_is_the_object_that_is_held(
    monkeypatch,
):
    """Two objects for one peer again: one in the table, and one with which somebody goes on."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.02)
    async with Stranger() as late, pt.Node("ada", **loopback()) as ada:
        greeting = late_greeting(late)
        events = ada.events()
        await late.dial(ada)
        late.say(greeting)
        held = (await next_event(events, pt.PeerConnected)).peer
        late.say(frame(DISCONNECT))
        late.hang_up()
        assert (await next_event(events, pt.PeerLost)).peer is held and not ada.peers
        classic = await ada.connect(late.address, timeout=GUARD)
        await late.meet()
        assert classic is not held and classic.classic
        late.say(greeting)
        assert (await next_event(events, pt.PeerFound)).peer is classic
        assert (await next_event(events, pt.PeerFound)).peer is held
        assert set(ada.peers.values()) <= {held} and not classic.connected
        late.hang_up()


async def test_whom_a_classic_peer_dialled_it_knows_so_of_two_that_crossed_its_own_connection_stays(
    free_port,
):
    """On the connection that we dialled the original has no name for us: its application would lose
    the peer that it chose."""
    port = free_port()
    async with Stranger() as classic, pt.Node("ada", **announcing(port)) as ada:
        classic.announce(port)
        found = await ada.wait_for("CREF", timeout=GUARD)
        await classic.meet()  # our dial, which it does not greet yet
        ours = classic.reader, classic.writer
        await classic.dial(ada)
        theirs = classic.reader, classic.writer
        classic.say(capability(), frame(DATA, b"on mine"))
        await until(lambda: found.connected)
        classic.reader, classic.writer = ours
        classic.say(capability(), frame(DATA, b"on yours"))
        assert [(await classic.hear()), (await classic.hear())][1] is None, "shut by us"
        classic.hang_up()
        assert {(await ada.receive(timeout=GUARD)).data for _ in range(2)} == {
            b"on mine",
            b"on yours",
        }
        classic.reader, classic.writer = theirs
        await found.send(b"answer")
        assert [(await classic.hear())[0], await classic.hear()] == [
            CAPABILITY,
            (DATA, 0, 0, b"answer"),
        ]
        assert len(ada.peers) == 1 and ada.stats().links_open == 1
