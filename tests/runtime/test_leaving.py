"""How a connection ends on purpose: a rejection with its reason, a goodbye in its place."""

from __future__ import annotations

import asyncio

import pytest
from classic import CAPABILITY, DATA, DISCONNECT, REJECT
from kit.inside import connections_of, engine_of
from kit.stranger import SMALLER, Dial, Stranger, announcing, capability, frame, loopback, taken
from kit.waiting import GUARD, next_event, until

import peertalk as pt
from peertalk.protocol import endings
from peertalk.runtime.world import World

# REJECT


async def test_a_peer_that_is_not_wanted_is_told_why_and_hears_nothing_that_waited_for_it():
    """The original closes; one of ours reads the reason."""
    async with (
        Stranger() as classic,
        pt.Node("ada", **loopback(pipeline_depth=1, drain_timeout=60)) as ada,
    ):
        events = ada.events()
        await classic.dial(ada)
        classic.say(frame(DATA, b"let me in"), capability())
        request = await next_event(events, pt.ConnectionRequested)
        peer = (await next_event(events, pt.PeerConnected)).peer
        assert request.peer is peer and (await ada.receive(timeout=GUARD)).data == b"let me in"
        classic.writer.transport.pause_reading()
        await until(lambda: peer.max_message == 8192)
        while peer._remote.queued < 10:
            peer.send_nowait(bytes(8192))
            await asyncio.sleep(0)
        waiting = peer._remote.queued
        request.reject(pt.RejectReason.BANNED)
        request.reject(pt.RejectReason.FULL)  # too late: one reason is enough
        with pytest.raises(pt.NotConnected):
            peer.send_nowait(b"no more")
        failed = await next_event(events, pt.Failed) if waiting == peer.accepted else None
        classic.writer.transport.resume_reading()
        heard = []
        while (each := await classic.hear()) is not None:
            heard.append(each)
        assert heard[0][0] == CAPABILITY and heard[-1] == (REJECT, 0, 0, b"\x02")
        assert [each[0] for each in heard[1:-1]] == [DATA] * (peer.accepted - waiting)
        classic.hang_up()
        failed = failed or await next_event(events, pt.Failed)
        assert (failed.first, failed.last, failed.outcome) == (
            peer.accepted - waiting + 1,
            peer.accepted,
            pt.Outcome.FAILED,
        )
        assert "was rejected here (BANNED)" in str(failed.error)
        assert (await next_event(events, pt.PeerDisconnected)).error is None
        request.reject()  # gone: nothing is left to reject


async def test_whoever_is_rejected_hears_by_whom_and_why_and_does_not_dial_again():
    """A redial would be rejected again, as fast as both sides can."""
    async with (
        pt.Node("ada", **loopback()) as ada,
        pt.Node("bob", **loopback(receive_queue_bytes=1024)) as bob,
    ):
        heard, requests = ada.events(), bob.events()
        peer = await ada.connect(bob.address, timeout=GUARD)
        request = await next_event(requests, pt.ConnectionRequested)
        filling = asyncio.create_task(peer.send_many([bytes(8000)] * 4000))
        await until(lambda: bob.stats().pauses)
        request.reject(pt.RejectReason.BANNED)
        with pytest.raises(
            pt.ConnectionRefused, match=r"peer 'bob' rejected the connection \(BANNED\)"
        ) as refused:
            await filling
        assert refused.value.reason is pt.RejectReason.BANNED and refused.value.peer == "bob"
        gone = await next_event(heard, pt.PeerDisconnected)
        assert (
            isinstance(gone.error, pt.ConnectionRefused)
            and gone.error.reason is pt.RejectReason.BANNED
        )
        assert peer._remote.queued == 0 and not peer.queue.pending and not peer.connected
        assert bob.stats().links_opened == ada.stats().links_opened == 1
        await peer.connect(timeout=GUARD)
        assert (await next_event(requests, pt.ConnectionRequested)).peer is request.peer, (
            "asked anew"
        )


async def test_a_reject_before_any_greeting_ends_the_dial_and_what_waited_for_it(monkeypatch):
    """It is what a full node says. To try five times more would not make room."""
    async with Stranger() as classic, pt.Node("ada", **loopback()) as ada:
        events = ada.events()
        peer = engine_of(ada).roster.make_peer(classic.address, None, "CREF", classic.address).view
        assert peer.send_nowait(b"waits") == 1
        await classic.meet()
        classic.say(frame(REJECT, b"\x04"))
        failed = await next_event(events, pt.Failed)
        assert (failed.first, failed.last, failed.outcome) == (1, 1, pt.Outcome.FAILED)
        assert (
            isinstance(failed.error, pt.ConnectionRefused)
            and failed.error.reason is pt.RejectReason.IN_PROGRESS
            and failed.error.peer == "CREF"
        )
        assert (
            peer._remote.retry is None
            and peer.state is pt.PeerState.FAILED
            and classic.accept_count == 1
        )


async def test_nobody_asks_for_a_connection_that_we_have_asked_for():
    """Requests are for those who come by themselves; where nobody answers them they are granted."""
    async with pt.Node("ada", **loopback()) as ada, pt.Node("bob", **loopback()) as bob:
        asked, came = ada.events(), bob.events()
        peer = await ada.connect(bob.address, timeout=GUARD)
        assert (await next_event(came, pt.ConnectionRequested)).peer.name == "ada"
        await peer.send(b"granted")
        assert (await bob.receive(timeout=GUARD)).data == b"granted"
        await ada.aclose()
        assert not any(
            isinstance(event, pt.ConnectionRequested) for event in [event async for event in asked]
        )


# Leaving


async def test_each_connection_is_closed_before_the_goodbye(free_port):
    """Q4: the original reads a connection no more whose peer said goodbye, and spins on it."""
    port = free_port()
    left = []

    class Watching(World):
        def broadcast(self, sender, packet, *rest):
            if packet[5] == 3:
                left.append(len(connections_of(ada)))
            return super().broadcast(sender, packet, *rest)

    async with (
        Stranger() as classic,
        pt.Node("ada", world=Watching(), **announcing(port)) as ada,
    ):
        await classic.dial(ada)
        classic.say(capability())
        assert (await classic.hear())[0] == CAPABILITY
        await until(lambda: len(ada.peers) == 1)
        leaving = asyncio.create_task(ada.aclose(timeout=GUARD))
        assert (await classic.hear())[0] == DISCONNECT and await classic.hear() is None
        classic.hang_up()
        await leaving
        assert left and not any(left)


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "left to lie"])
async def test_what_comes_while_a_node_leaves_is_given_as_before_as_far_as_there_is_room(taken):
    """Its sender hears that each was sent. What there is no room for is read all the same: else
    the end would destroy what we have sent ourselves."""
    late = [b"%4d" % number + bytes(1000) for number in range(200)]
    async with Stranger() as classic:
        bound = 4 << 20 if taken else 20_000
        ada = await pt.Node("ada", **loopback(receive_queue_bytes=bound)).start()
        await classic.dial(ada)
        classic.say(capability())
        await until(lambda: len(ada.peers) == 1)
        [peer] = ada.peers.values()
        classic.writer.transport.pause_reading()
        await until(lambda: peer.max_message == 8192)
        while peer._remote.queued < 10:
            peer.send_nowait(bytes(8192))
            await asyncio.sleep(0)
        came: list[bytes] = []

        async def take():
            async for message in ada.messages():
                came.append(message.data)

        leaving = asyncio.create_task(ada.aclose(timeout=None))
        taking = asyncio.create_task(take()) if taken else None
        for each in late:
            classic.say(frame(DATA, each))
            await asyncio.sleep(0)
        await until(lambda: ada.stats().messages_received == len(late))
        assert ada.stats().inbox_bytes <= bound + 65_536
        classic.writer.transport.resume_reading()
        heard = []
        while (each := await classic.hear()) is not None:
            heard.append(each[0])
        classic.hang_up()
        assert await leaving == 0 and heard.count(DATA) == peer.accepted
        await (taking or take())
        assert came == late if taken else 0 < len(came) < len(late) and came == late[: len(came)]


# Leaving


async def test_what_one_of_ours_sends_before_it_has_read_that_we_leave_is_delivered(monkeypatch):
    """It counts that as sent, because our system has acknowledged it. So who leaves ends the
    connection when the other side does, not when its system has heard the farewell."""
    looks, look = [], endings.look

    def counted(leaving):
        looks.append(leaving)
        return look(leaving)

    monkeypatch.setattr(endings, "look", counted)
    async with pt.Node("ada", **loopback()) as ada, Dial(ada, SMALLER, 1) as bob:
        await bob.dial(ada)
        bob.greet(1, 0, b"here")
        assert await taken(ada, 1) == [b"here"]
        leaving = asyncio.create_task(next(iter(ada.peers.values())).disconnect(timeout=GUARD))
        while (await bob.hear())[0] != DISCONNECT:
            pass
        assert await bob.hear() is None, "ada will say no more"
        await until(lambda: len(looks) > 5)
        bob.say(frame(DATA, b"late, and acknowledged"))
        bob.hang_up()
        assert await taken(ada, 1) == [b"late, and acknowledged"]
        await leaving
