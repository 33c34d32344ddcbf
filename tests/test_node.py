"""The front door for asyncio: who is found, what is accepted arrives once and in order, and whoever
waits is told.

Nodes live on loopback, each test on a discovery port of its own. Times given as `timeout` are
guards against hanging, never measured.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import ctypes
import gc
import mmap
import random
import socket
import threading
import tracemalloc
import weakref

import pytest
from kit.meeting import original
from kit.nodes import announcing, loopback, numbered, pair, received
from kit.waiting import GUARD, next_event

import peertalk as pt
from peertalk import sim
from peertalk._core import load
from peertalk._core.values import ANNOUNCE, QUERY
from peertalk.protocol.wire import Announcement, decode_announcement, encode_announcement

# Who is there


async def test_two_nodes_with_nothing_preset_but_their_names_find_each_other(core, free_port):
    """The first promise of the README: no address, no server."""
    port = free_port()
    async with (
        pt.Node("ada", **announcing(port, core=core.name)) as ada,
        pt.Node("bob", **announcing(port, core=core.name)) as bob,
    ):
        seen = await ada.wait_for("bob", timeout=GUARD)
        assert (seen.name, seen.id, seen.address, seen.classic) == (
            "bob",
            bob.id,
            bob.address,
            False,
        )
        assert (await bob.wait_for(ada.id, timeout=GUARD)).name == "ada"
        await seen.send(b"hello")
        message = await bob.receive(timeout=GUARD)
        assert message.data == b"hello" and message.peer is bob.peers["ada"]


async def test_several_nodes_on_one_host_find_all_others_and_never_themselves(free_port):
    """The original cannot do this; tests and demos of users need it. A node in its own table would
    talk to itself."""
    port = free_port()
    async with contextlib.AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(pt.Node(f"n{number}", **announcing(port)))
            for number in range(4)
        ]
        for node in nodes:
            for other in nodes:
                if other is not node:
                    await node.wait_for(other.id, timeout=GUARD)
        for node in nodes:
            assert set(node.peers) == {other.id for other in nodes} - {node.id}


async def test_a_node_that_closes_is_lost_by_its_goodbye(free_port):
    """Nobody should wait half a minute to hear that somebody left in good order."""
    port = free_port()
    async with pt.Node("ada", **announcing(port)) as ada:
        events = ada.events()
        async with pt.Node("bob", **announcing(port)) as bob:
            peer = await ada.wait_for("bob", timeout=GUARD)
            assert (await next_event(events, pt.PeerFound)).peer is peer
            assert bob.name == "bob"
        lost = await next_event(events, pt.PeerLost)
        assert lost == pt.PeerLost(peer, pt.LostReason.GOODBYE)
        assert len(ada.peers) == 0


async def test_a_node_that_falls_silent_is_lost(free_port):
    """Power cuts say no goodbye."""
    port = free_port()
    async with pt.Node("ada", **announcing(port, peer_timeout=0.2, announce_interval=0.2)) as ada:
        events = ada.events()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            packet = encode_announcement(
                load(), Announcement(ANNOUNCE, "ghost", 9, instance=b"ghost123")
            )
            stranger.sendto(packet, ("127.0.0.1", port))
        found = await next_event(events, pt.PeerFound)
        assert await next_event(events, pt.PeerLost) == pt.PeerLost(
            found.peer, pt.LostReason.TIMEOUT
        )


async def test_a_query_is_answered_before_the_next_announcement_is_due(free_port):
    """A newcomer that asks must not wait an interval."""
    port = free_port()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        asking.bind(("", port))
        asking.setblocking(False)
        async with (
            pt.Node("ada", **announcing(port, announce_interval=10)) as ada,
            asyncio.timeout(GUARD / 3),
        ):
            core = load()

            async def announcement():
                while (
                    heard := decode_announcement(core, await loop.sock_recv(asking, 2048))
                ).type != ANNOUNCE:
                    pass
                return heard

            assert (await announcement()).name == "ada"
            asking.sendto(
                encode_announcement(core, Announcement(QUERY, "", 1)), ("127.255.255.255", port)
            )
            assert (await announcement()).instance == bytes.fromhex(ada.id)


async def test_flags_travel_from_one_node_to_the_other_when_they_are_set(free_port):
    """Who hosts, who is ready: a lobby is made of that."""
    port = free_port()
    async with (
        pt.Node("ada", **announcing(port, flags=pt.PeerFlag.HOST)) as ada,
        pt.Node("bob", **announcing(port)) as bob,
    ):
        seen = await bob.wait_for(lambda peer: pt.PeerFlag.HOST in peer.flags, timeout=GUARD)
        assert (
            seen.name == "ada"
            and ada.flags is pt.PeerFlag.HOST
            and isinstance(seen.flags, pt.PeerFlag)
        )
        version = bob.peers.version
        ada.flags |= pt.PeerFlag.READY | 0x0200
        await bob.wait_for(lambda peer: peer.flags == 0x0209, timeout=GUARD)
        assert pt.PeerFlag.READY in seen.flags and bob.peers.version > version
        with pytest.raises(pt.InvalidArgument, match="65536"):
            ada.flags = 0x10000
        assert ada.flags == 0x0209
    assert pt.Node("eve", flags=3).flags == pt.PeerFlag.HOST | pt.PeerFlag.ACCEPTING
    with pytest.raises(pt.InvalidState):
        pt.Node("eve").flags = 1


async def test_two_of_one_name_are_an_event_and_one_line_in_the_log(free_port, caplog):
    """Two programs that nobody gave a name of its own were one name, silently."""
    port = free_port()
    options = announcing(port, announce_interval=0.1)
    async with pt.Node("ada", **options) as ada, pt.Node("twin", **options) as first:
        events = ada.events()
        one = await ada.wait_for(first.id, timeout=GUARD)
        async with pt.Node("twin", **options) as second:
            two = await ada.wait_for(second.id, timeout=GUARD)
            assert await next_event(events, pt.NameCollision) == pt.NameCollision(two, one)
            assert (await ada.connect("twin", timeout=GUARD)) is two
        lines = [each.getMessage() for each in caplog.records if "PEERTALK_NAME" in each.message]
        of_ada = [each for each in lines if one.id in each and two.id in each]
        assert len(of_ada) == 1 and "'twin'" in of_ada[0]
        chosen = [each for each in caplog.records if "2 peers are called 'twin'" in each.message]
        assert len(chosen) == 1 and one.id in chosen[0].message


async def test_somebody_who_bears_our_name_is_told(free_port):
    """The other one gets what was meant for us."""
    port = free_port()
    async with pt.Node("ada", **announcing(port)) as ada:
        events = ada.events()
        async with pt.Node("ada", **announcing(port)) as other:
            collision = await next_event(events, pt.NameCollision)
            assert (collision.peer.id, collision.other) == (other.id, None)


async def test_peers_are_looked_up_by_id_and_by_name_and_the_newest_of_a_name_wins(free_port):
    """Lookups, wait_for and connect must agree on who has a name: a program that was started again
    is known twice for a while."""
    port = free_port()
    async with (
        pt.Node("ada", **announcing(port)) as ada,
        pt.Node("twin", **announcing(port)) as first,
        pt.Node("twin", **announcing(port)) as second,
    ):
        one, two = (
            await ada.wait_for(first.id, timeout=GUARD),
            await ada.wait_for(second.id, timeout=GUARD),
        )
        assert one is not two and ada.peers[first.id] is one and ada.peers.get(second.id) is two
        assert (
            len(ada.peers) == 2 and set(ada.peers.values()) == {one, two} and first.id in ada.peers
        )
        assert ada.peers["twin"] is await ada.wait_for("twin", timeout=GUARD)
        with pytest.raises(pt.PeerNotFound, match=r"no peer 'eve' is known; known: 'twin', 'twin'"):
            ada.peers["eve"]
        version = ada.peers.version
        events = ada.events()
        await second.aclose()
        await next_event(events, pt.PeerLost)
        assert ada.peers.version > version and ada.peers["twin"] is one
        assert two.id not in ada.peers and ada.peers.get(two.id) is None


async def test_wait_for_takes_a_function_and_says_who_is_known_when_time_is_up(free_port):
    """ "Nobody came" is no help; who came instead is."""
    port = free_port()
    async with pt.Node("ada", **announcing(port)) as ada, pt.Node("bob", **announcing(port)) as bob:
        assert (
            await ada.wait_for(lambda peer: peer.address == bob.address, timeout=GUARD)
        ).name == "bob"
        with pytest.raises(
            pt.Timeout, match=r"'eve' was heard within 0\.05 s; known: 'bob'"
        ) as raised:
            await ada.wait_for("eve", timeout="50ms")
        assert isinstance(raised.value, TimeoutError)


# Connecting


async def test_the_same_peer_is_reached_by_address_by_id_by_name_and_by_itself(free_port):
    """One someone is one object, or counters and order fall apart."""
    port = free_port()
    async with pt.Node("ada", **announcing(port)) as ada, pt.Node("bob", **announcing(port)) as bob:
        events = ada.events()
        peer = await ada.connect(bob.address, timeout=GUARD)
        assert peer.connected and peer.name == "bob" and peer.id == bob.id
        for who in (bob.id, "bob", peer, bob.address, ":".join(map(str, bob.address))):
            assert await ada.connect(who, timeout=GUARD) is peer
        await peer.send(b"x")
        message = await bob.receive(timeout=GUARD)
        assert (message.peer.id, message.peer.name, message.peer.address) == (
            ada.id,
            "ada",
            ada.address,
        )
        await events.aclose()
        assert (
            sum(isinstance(event, pt.PeerConnected) for event in [event async for event in events])
            == 1
        )


async def test_dialling_one_address_many_times_at_once_gives_one_link():
    """Two links to one peer would break the order of its messages."""
    async with pt.Node("ada", **loopback()) as ada, pt.Node("bob", **loopback()) as bob:
        peers = await asyncio.gather(*(ada.connect(bob.address, timeout=GUARD) for _ in range(5)))
        assert len(set(peers)) == 1
        await peers[0].send(b"x")
        await received(bob, 1)
        assert ada.stats().links_opened == bob.stats().links_opened == 1


async def test_connecting_to_oneself_is_refused():
    """A node that takes itself for a peer deadlocks politely."""
    async with pt.Node("ada", **loopback()) as ada:
        with pytest.raises(pt.InvalidArgument, match="this node itself"):
            await ada.connect(ada.address, timeout=GUARD)
        assert len(ada.peers) == 0 and ada.stats().links_open == 0


async def test_a_connection_that_cannot_be_had_says_why(free_port):
    """Each failure has its class and names the address or the peer."""
    async with pt.Node("ada", **loopback()) as ada:
        nobody = free_port()
        with pytest.raises(pt.ConnectionRefused, match=f"127.0.0.1:{nobody}"):
            await ada.connect(("127.0.0.1", nobody), timeout=GUARD)
        with pytest.raises(pt.PeerNotFound, match="'eve'"):
            await ada.connect("eve")
        with pytest.raises(pt.errors.WrongType, match="address"):
            await ada.connect(7354)
        with pytest.raises(pt.InvalidArgument, match="70000"):
            await ada.connect(("127.0.0.1", 70000))
        with pytest.raises(pt.errors.NetworkFailure, match=r"host 'xxx.*is not known"):
            # too long for any name server to be asked
            await ada.connect(("x" * 70, 1), timeout=GUARD)
        with (
            socket.create_server(("127.0.0.1", 0), backlog=1) as deaf,
            contextlib.ExitStack() as fillers,
        ):
            for _ in range(4):  # a full backlog: the next connection is never completed
                filler = fillers.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(deaf.getsockname())
            with pytest.raises(pt.Timeout, match=r"0\.1 s"):
                await ada.connect(deaf.getsockname(), timeout=0.1)


async def test_a_peer_that_was_left_is_still_known_and_is_reached_again_by_sending(free_port):
    """disconnect() ends a link, not an acquaintance; what was accepted before it is still sent."""
    port = free_port()
    async with pt.Node("ada", **announcing(port)) as ada, pt.Node("bob", **announcing(port)) as bob:
        events = ada.events()
        peer = await ada.wait_for("bob", timeout=GUARD)
        for number in range(3):
            for part in range(50):
                await peer.send(numbered(number * 50 + part, 2000))
            await peer.disconnect(timeout=GUARD)
            assert (await next_event(events, pt.PeerDisconnected)).error is None
            assert not peer.connected and ada.peers["bob"] is peer
        assert await received(bob, 150) == [numbered(number, 2000) for number in range(150)]
        assert peer.stats().messages_sent == 150


async def test_whoever_waits_for_the_connection_is_served_before_those_who_come_when_it_is_there():
    """Order is the order of the calls, also while the link is being made."""
    async with pt.Node("ada", **loopback()) as ada, pt.Node("bob", **loopback()) as bob:
        peer = await ada.connect(bob.address, timeout=GUARD)
        await peer.disconnect(timeout=GUARD)
        events = ada.events()
        while bob.stats().links_open:
            await asyncio.sleep(0)
        early = [asyncio.create_task(peer.send(numbered(number))) for number in range(3)]

        async def late():
            await next_event(events, pt.PeerConnected)
            await peer.send(numbered(3))

        await asyncio.wait_for(asyncio.gather(*early, late()), GUARD)
        assert await received(bob, 4) == [numbered(number) for number in range(4)]


# Sending and receiving


@pytest.mark.soak
async def test_each_accepted_message_arrives_once_and_in_order_whatever_is_cancelled(
    core, rounds, seed_printed
):
    """The heart of the matter: sizes 0 to the limit, sends and receives cancelled at random, a
    reader slower than the sender.

    A cancelled send was not accepted and never arrives; each Sent is true, and they follow each
    other without a gap.
    """
    total = rounds(5_000, 1_000_000)
    dice = seed_printed
    async with pair(core=core.name, send_queue_size=8, receive_queue_bytes=64 * 1024) as (
        ada,
        bob,
        peer,
    ):
        events = ada.events()
        accepted, arrived, sent = [], [], [0]
        last = b"last"

        async def cancelled_soon(work, ticks):
            """The result of work, or None if it was cancelled before it had one."""
            task = asyncio.ensure_future(work)
            for _ in range(ticks):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                return await task

        async def sender():
            for number in range(total):
                size = dice.choice((4, 5, 64, dice.randrange(4, peer.max_message + 1)))
                sending = peer.send(numbered(number, size))
                position = await (
                    cancelled_soon(sending, dice.randrange(4)) if dice.random() < 0.1 else sending
                )
                if position is not None:
                    accepted.append((number, size))
                    assert position == len(accepted)
            await peer.send(last)

        async def reader():
            while not arrived or arrived[-1] != last:
                receiving = bob.receive()
                message = await (
                    cancelled_soon(receiving, dice.randrange(3))
                    if dice.random() < 0.1
                    else receiving
                )
                if message is not None:
                    arrived.append(message.data)

        async def judge():
            async for event in events:
                if isinstance(event, pt.Sent):
                    assert event.first == sent[0] + 1 and event.last >= event.first
                    sent[0] = event.last
                    assert sent[0] <= peer.accepted
                assert not isinstance(event, pt.Failed | pt.EventsMissed)

        judging = asyncio.create_task(judge())
        await asyncio.gather(sender(), reader())
        assert len(arrived) == len(accepted) + 1
        assert all(
            data == numbered(number, size)
            for data, (number, size) in zip(arrived, accepted, strict=False)
        )
        await ada.aclose()
        await judging
        assert sent[0] == len(accepted) + 1
        assert len(accepted) < total, "no send was cancelled: the test tested nothing"


@pytest.fixture
def seed_printed():
    """A random generator whose seed a failure shows."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


async def test_empty_and_largest_messages_of_every_kind_arrive_as_they_were(core):
    """bytes, bytearray, memoryview and str; nothing at all and exactly the limit."""
    async with pair(core=core.name) as (_, bob, peer):
        limit = core.limits.frame_max_payload
        assert peer.max_message == limit
        largest = bytes(range(256)) * (limit // 256)
        sent = [
            b"",
            bytearray(b"abc"),
            memoryview(b"abcdef")[1:4],
            "caf\u00e9",
            largest,
            memoryview(b"12345678").cast("I"),
            b"",
        ]
        for data in sent:
            await peer.send(data)
        await peer.send(b"urgent", no_delay=True)
        await peer.send(bytearray(b"urgent too"), no_delay=True)
        expected = [data.encode() if isinstance(data, str) else bytes(data) for data in sent] + [
            b"urgent",
            b"urgent too",
        ]
        got = [await bob.receive(timeout=GUARD) for _ in expected]
        assert [message.data for message in got] == expected
        assert (
            got[3].text == "caf\u00e9"
            and bytes(got[3].view) == got[3].data
            and len(got[0]) == 0
            and got[0]
        )


@pytest.mark.parametrize("how", ["argument", "environment"])
async def test_a_node_whose_asynchronous_sending_is_off_says_the_same_to_the_wire(
    core, how, monkeypatch
):
    """The switch is there to find out whether the pipeline is at fault: each write ends before the
    next begins, and nothing else changes for either side, on real sockets."""
    messages = [numbered(number, 900) for number in range(60)]
    frames, writes = {}, {}
    for asynchronous in (True, False):
        options = loopback(core=core.name)
        if how == "argument":
            options["async_send"] = asynchronous
        else:
            monkeypatch.setenv("PEERTALK_ASYNC_SEND", "yes" if asynchronous else "no")
        async with original() as old, pt.Node("ada", **options) as ada:
            assert ada.config.async_send == asynchronous
            peer = await ada.connect(old.address, timeout=GUARD)
            link = await old.link()
            before = peer._remote.connection.link.statistics().write_calls
            for message in messages:
                peer.send_nowait(message)
            assert [await old.message() for _ in messages] == messages
            writes[asynchronous] = peer._remote.connection.link.statistics().write_calls - before
            old.peer.frame(link, b"and back")
            assert await received(ada, 1) == [b"and back"]
            await peer.send(b"")
            assert await old.message() == b""
            frames[asynchronous] = link.messages
            assert peer._remote.reported == peer.accepted == 61
    assert frames[True] == frames[False] and len(frames[True]) == 61
    assert writes[False] > writes[True], "each slot is written by itself"


async def test_two_nodes_whose_asynchronous_sending_is_off_lose_nothing(core):
    """The blocking table carries whole nodes: both ways, from the empty message to the largest,
    with an outcome for each."""
    async with pair(core=core.name, async_send=False) as (ada, bob, peer):
        largest = peer.max_message
        sizes = [0, 1, 63, 64, 1_000, largest - 1, largest] * 5
        for number, size in enumerate(sizes):
            message = bytes([number]) * size
            await peer.send(message)
            came = await bob.receive(timeout=GUARD)
            assert came.data == message
            await came.peer.send(message)
            assert (await ada.receive(timeout=GUARD)).data == message
        await peer.disconnect()
        assert peer._remote.reported == peer.accepted == len(sizes) and peer._remote.failed == 0


async def test_a_message_over_the_limit_is_refused_and_takes_no_place(core):
    """The numbers and the limit are in the message; the next send gets the next number."""
    async with pair(core=core.name) as (_, bob, peer):
        limit = peer.max_message
        for send in (peer.send, peer.send_nowait):
            with pytest.raises(
                pt.MessageTooLarge, match=rf"{limit + 1:,} bytes to peer 'bob'.*limit is {limit:,}"
            ) as raised:
                if asyncio.iscoroutine(result := send(bytes(limit + 1))):
                    await result
            assert isinstance(raised.value, ValueError) and raised.value.peer == "bob"
        with pytest.raises(pt.MessageTooLarge):
            await peer.send_many([b"first", bytes(limit + 1), b"never"])
        assert await peer.send(b"second") == 2
        assert await received(bob, 2) == [b"first", b"second"]


async def test_what_cannot_be_sent_is_refused_by_its_type():
    """A list of numbers becomes no bytes by accident."""
    async with pair() as (_, bob, peer):
        for wrong in (None, 7, [1, 2], object()):
            with pytest.raises(pt.errors.WrongType, match="bytes"):
                await peer.send(wrong)
            with pytest.raises(TypeError):
                peer.send_nowait(wrong)
        with pytest.raises(TypeError, match=r"^Peer\.send\(\) got .* 'urgent'"):
            await peer.send(b"one", urgent=True)
        with pytest.raises(pt.errors.WrongType, match="send_many takes several"):
            await peer.send_many(b"one")
        with pytest.raises(pt.errors.WrongType, match="contiguous"):
            await peer.send(memoryview(b"abcdef")[::2])
        assert await peer.send(b"fine") == 1
        assert await received(bob, 1) == [b"fine"]


@pytest.mark.parametrize("way", ["send", "in line", "nowait", "many", "broadcast", "stream"])
async def test_any_buffer_is_a_message_by_every_way(core, way):
    """The guide says any buffer; arrays, maps and what ctypes makes were refused."""
    numbers = array.array("H", range(300))
    with mmap.mmap(-1, 500) as mapped:
        mapped[:4] = b"file"
        data = (numbers, mapped, (ctypes.c_double * 3)(0.5, 1.5, 2.5), memoryview(b"c").cast("c"))
        expected = [memoryview(each).tobytes() for each in data]
        async with pair(core=core.name) as (ada, bob, peer):
            for each in data:
                if way == "stream":
                    async with peer.stream_out(each) as out:
                        await out.finished(timeout=GUARD)
                elif way == "many":
                    assert await peer.send_many([each]) == 1
                elif way == "broadcast":
                    assert (await ada.broadcast(each)).accepted == [peer]
                elif way == "nowait":
                    peer.send_nowait(each)
                else:
                    await peer.send(each, **({"timeout": GUARD} if way == "in line" else {}))
            total, got = sum(map(len, expected)), b""
            while len(got) < total:
                got += (await bob.receive(timeout=GUARD)).data
            assert got == b"".join(expected)


async def test_a_buffer_is_free_for_reuse_as_soon_as_send_returns(core):
    """Senders keep one buffer and fill it again: what was accepted must be a copy, in a slot or in
    the line."""
    async with pair(core=core.name, send_queue_size=64, receive_queue_bytes=16 * 1024) as (
        ada,
        bob,
        peer,
    ):
        buffer = bytearray(1000)
        for number in range(300):
            buffer[:4] = number.to_bytes(4, "big")
            if number % 3 == 0:
                await peer.send(buffer)
            elif number % 3 == 1:
                await peer.send(memoryview(buffer), no_delay=True)
            else:
                try:
                    peer.send_nowait(buffer)
                except pt.WouldBlock:
                    await peer.send(buffer)
            buffer[:] = b"\xff" * 1000
            if number >= 100:
                assert (await bob.receive(timeout=GUARD)).data[:4] == (number - 100).to_bytes(
                    4, "big"
                )
        assert [data[:4] for data in await received(bob, 100)] == [
            number.to_bytes(4, "big") for number in range(200, 300)
        ]
        assert ada.stats().messages_accepted == 300


async def test_send_nowait_refuses_when_there_is_no_room_and_nothing_is_lost(core):
    """WouldBlock is the one honest way to not wait; it has a reason, and the numbers go on without
    a gap."""
    async with pair(core=core.name, send_queue_size=4, receive_queue_bytes=4096) as (_, bob, peer):
        data = bytes(peer.max_message)
        accepted = refusals = 0
        while refusals < 5:
            try:
                accepted += 1
                assert peer.send_nowait(data[:-4] + accepted.to_bytes(4, "big")) == accepted
            except pt.WouldBlock as error:
                accepted -= 1
                refusals += 1
                assert (
                    error.reason == "queue"
                    and error.peer == "bob"
                    and isinstance(error, BlockingIOError)
                )
                assert peer.queue.pressure == 100 and peer.queue.pending > 0
                await asyncio.sleep(0)
        assert [int.from_bytes(got[-4:], "big") for got in await received(bob, accepted)] == list(
            range(1, accepted + 1)
        )
        assert await peer.send(b"next") == accepted + 1


async def test_a_slow_reader_slows_the_sender_and_memory_stays_flat(core):
    """Nothing is dropped and nothing grows: the chain of bounds reaches from the inbox to the
    sender."""
    inbox_limit, outbox_limit = 64 * 1024, 32 * 1024
    async with pair(
        core=core.name,
        send_queue_size=64,
        send_queue_bytes=outbox_limit,
        receive_queue_bytes=inbox_limit,
    ) as (_, bob, peer):
        size = 1000
        count = 12_000
        data = bytes(size - 4)
        # what one turn may bring beside the limit, with the cost of each message
        one_turn = core.limits.receive_buffer_size * 1.2
        worst_inbox = worst_outbox = 0

        async def sender():
            for number in range(count):
                await peer.send(number.to_bytes(4, "big") + data)

        async with asyncio.timeout(GUARD):
            task = asyncio.create_task(sender())
            # until the reader has been paused and the sender feels it
            while bob.stats().pauses == 0 or peer.queue.pressure < 90:
                await asyncio.sleep(0)
            assert not task.done()
            tracemalloc.start()
            for number in range(count):
                assert int.from_bytes((await bob.receive()).data[:4], "big") == number
                if number % 10 == 0:
                    worst_inbox = max(worst_inbox, bob.stats().inbox_bytes)
                    worst_outbox = max(worst_outbox, peer.queue.bytes)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            await task
        assert worst_inbox <= inbox_limit + one_turn and worst_outbox <= outbox_limit
        assert peak < 2 * (inbox_limit + one_turn + outbox_limit) + 1_000_000, (
            f"{peak:,} bytes for {count * size:,} bytes in all"
        )


async def test_messages_of_another_thread_arrive_in_its_order():
    """send_nowait may be called from anywhere; the number is given later."""
    async with pair(send_queue_size=16) as (_, bob, peer):
        total = 500
        faults = []

        def elsewhere():
            try:
                for number in range(total):
                    while True:
                        try:
                            assert peer.send_nowait(numbered(number)) == 0
                            break
                        except pt.WouldBlock:
                            turn.wait(0.001)
                with contextlib.suppress(pt.MessageTooLarge):
                    peer.send_nowait(bytes(peer.max_message + 1))
                    raise AssertionError("a message over the limit was taken")
            except BaseException as error:
                faults.append(error)

        turn = threading.Event()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        try:
            assert await received(bob, total) == [numbered(number) for number in range(total)]
        finally:
            await asyncio.to_thread(thread.join)
        assert not faults and peer.accepted == total


async def test_send_many_accepts_all_in_order_between_other_sends(core):
    """One crossing of the border for many; the order holds beside single sends, also when the line
    is full."""
    async with pair(core=core.name, send_queue_size=32, receive_queue_bytes=32 * 1024) as (
        _,
        bob,
        peer,
    ):

        async def sender():
            assert await peer.send_many([numbered(number, 100) for number in range(3000)]) == 3000
            await peer.send(numbered(3000, 100))
            assert (
                await peer.send_many(
                    bytearray(numbered(number, 100)) for number in range(3001, 4000)
                )
                == 999
            )
            assert await peer.send_many([]) == 0

        sending = asyncio.create_task(sender())
        assert await received(bob, 4000) == [numbered(number, 100) for number in range(4000)]
        await sending
        assert peer.accepted == 4000


async def test_a_send_that_timed_out_was_not_accepted():
    """A time-out that may or may not have sent is worse than none."""
    async with pair(send_queue_size=2, receive_queue_bytes=1024) as (_, bob, peer):
        data = bytes(8000)
        accepted = 0
        with pytest.raises(pt.Timeout, match=r"no room for a message to peer 'bob' within 0\.05 s"):
            while True:
                await peer.send(data, timeout="50ms")
                accepted += 1
        with pytest.raises(pt.Timeout, match="no room for all"):
            await peer.send_many([data] * 10_000, timeout=0.05)
        accepted = peer.accepted
        reading = asyncio.create_task(received(bob, accepted + 1))
        assert await peer.send(b"last", timeout=GUARD) == accepted + 1
        assert (await reading)[accepted] == b"last"


async def test_those_who_wait_to_send_are_served_in_the_order_in_which_they_came():
    """Fairness, and order across tasks: a line, not a crowd. A cancelled one leaves no hole."""
    async with pair(send_queue_size=2, receive_queue_bytes=1024) as (_, bob, peer):
        data = bytes(8000)
        full = 0
        while full < 3:
            try:
                peer.send_nowait(data)
            except pt.WouldBlock:
                full += 1
                await asyncio.sleep(0)
        before = peer.accepted
        tasks = [asyncio.create_task(peer.send(numbered(number))) for number in range(100)]
        await asyncio.sleep(0)
        with pytest.raises(pt.WouldBlock):
            peer.send_nowait(b"must not overtake")
        for task in tasks[::7]:
            task.cancel()
        left = [number for number in range(100) if number % 7]
        assert (await received(bob, before + len(left)))[before:] == [
            numbered(number) for number in left
        ]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [number for number in results if isinstance(number, int)] == list(
            range(before + 1, before + 1 + len(left))
        )


async def test_a_critical_message_overtakes_those_that_wait_and_order_holds_within_each_class(core):
    """What waits in the outbox or in line of lower classes goes behind it; no class is disordered
    by that, and none is left over."""
    async with pair(core=core.name, send_queue_size=64, receive_queue_bytes=16 * 1024) as (
        _,
        bob,
        peer,
    ):
        # from here on the system takes little
        await peer.send(b"first", priority=pt.Priority.CRITICAL)
        normal = asyncio.gather(
            *(peer.send(b"n" + numbered(number, 1000)) for number in range(3000))
        )
        async with asyncio.timeout(GUARD):
            while not peer._remote.queued or not bob.stats().pauses:
                await asyncio.sleep(0)
        high = asyncio.create_task(
            peer.send_many(
                [b"h" + numbered(number, 1000) for number in range(500)], priority=pt.Priority.HIGH
            )
        )
        await asyncio.sleep(0)
        for number in range(3):
            assert await peer.send(
                b"C" + numbered(number), priority=pt.Priority.CRITICAL, timeout=GUARD
            )
        got = (await received(bob, 3504))[1:]
        await asyncio.gather(normal, high)
        for kind, count in ((b"n", 3000), (b"h", 500), (b"C", 3)):
            assert [int.from_bytes(data[1:5], "big") for data in got if data[:1] == kind] == list(
                range(count)
            )
        assert got[-1][:1] == b"n", "it waited for its whole backlog"


async def test_bulk_of_a_lower_class_goes_on_beside_an_endless_stream_of_a_higher_one(core):
    """No starvation at the door either: what does not get into the queue has no turn there."""
    async with pair(core=core.name, send_queue_size=64, receive_queue_bytes=64 * 1024) as (
        _,
        bob,
        peer,
    ):
        ended, low = False, 0

        async def stream():
            while not ended:
                await peer.send_many([b"N" * 1000] * 500, priority=pt.Priority.HIGH)

        async def reader():
            nonlocal low
            async for message in bob.messages():
                low += message.data[:1] == b"L"

        streaming, reading = (
            asyncio.gather(stream(), stream(), stream()),
            asyncio.create_task(reader()),
        )
        async with asyncio.timeout(GUARD):
            await peer.send_many([b"L" * 1000] * 60)
            while low < 60:
                await asyncio.sleep(0)
            ended = True
            await streaming
        reading.cancel()


async def test_only_the_newest_of_a_key_is_sent_of_those_that_waited(core):
    """A position of a moment ago is worth nothing; each that was replaced says so."""
    async with pair(core=core.name, send_queue_size=64, receive_queue_bytes=16 * 1024) as (
        ada,
        bob,
        peer,
    ):
        events = ada.events()
        async with asyncio.timeout(GUARD):
            while not bob.stats().pauses or not peer._remote.queued:
                with contextlib.suppress(pt.WouldBlock):
                    peer.send_nowait(bytes(1000))
                if peer.accepted % 16 == 0 or peer._remote.queued:
                    await asyncio.sleep(0)
        numbers = [peer.send_nowait(b"at %d" % place, key="pos") for place in range(10)]
        peer.send_nowait(b"end")
        total = peer.accepted
        got = await received(bob, total - 9)
        assert [data for data in got if data.startswith(b"at ")] == [b"at 9"] and got[-1] == b"end"
        await ada.aclose()
        told = [event async for event in events if isinstance(event, pt.Failed)]
        assert [
            number for event in told for number in range(event.first, event.last + 1)
        ] == numbers[:-1]
        assert {event.outcome for event in told} == {pt.Outcome.REPLACED}
        assert ada.stats().messages_accepted == total == ada.stats().messages_sent + 9


async def test_a_class_or_a_key_that_is_none_is_refused_before_anything_is_sent():
    """On the path that waits, on the one that does not, in bulk, and to all."""
    async with pair() as (ada, _, peer):
        for refused in (
            peer.send(b"x", priority=4),
            peer.send(b"x", key=1.5),
            peer.send_many([b"x"], priority=-1),
            ada.broadcast(b"x", priority=9),
        ):
            with pytest.raises(pt.InvalidArgument):
                await refused
        with pytest.raises(pt.errors.WrongType):
            peer.send_nowait(b"x", key=b"bytes")
        with pytest.raises(TypeError):
            await peer.send(b"x", urgent=True)
        assert peer.accepted == 0


async def test_one_frozen_peer_slows_a_broadcast_for_nobody_and_is_named():
    """Who does not read must not set the pace of a game; the caller decides whether to wait."""
    async with (
        pt.Node("ada", **loopback(send_queue_size=1)) as ada,
        pt.Node("bob", **loopback()) as bob,
        pt.Node("cid", **loopback(receive_queue_bytes=1024)) as cid,
    ):
        await ada.connect(bob.address, timeout=GUARD)
        slow = await ada.connect(cid.address, timeout=GUARD)
        assert set((await ada.broadcast("hi")).accepted) == {ada.peers["bob"], slow}
        with pytest.raises(pt.Timeout):
            while True:
                await slow.send(bytes(8000), timeout=0.05)
        with pytest.raises(StopIteration) as at_once:  # not even a tick
            ada.broadcast(b"at once").send(None)
        result = at_once.value.value
        assert result.accepted == [ada.peers["bob"]] and list(result.skipped) == [slow]
        assert isinstance(result.skipped[slow], pt.WouldBlock)
        assert result.skipped[slow].peer == "cid" and result.skipped[slow].reason == "queue"
        result = await ada.broadcast(b"round starts", timeout=0.05)
        assert result.accepted == [ada.peers["bob"]]
        assert isinstance(result.skipped[slow], pt.Timeout)
        given_up = asyncio.create_task(ada.broadcast(b"round starts", timeout=60))
        await asyncio.sleep(0)  # it waits for room, in tasks that have not begun
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        del given_up
        gc.collect()  # a coroutine that nobody began would be heard of here
        assert await received(bob, 4) == [b"hi", b"at once", *[b"round starts"] * 2]


async def test_a_broadcast_reaches_those_who_are_known_and_not_connected(free_port):
    """send() connects; a broadcast that silently passes them over is no broadcast."""
    port = free_port()
    async with pt.Node("ada", **announcing(port)) as ada, pt.Node("bob", **announcing(port)) as bob:
        peer = await ada.wait_for("bob", timeout=GUARD)
        assert not peer.connected
        result = await ada.broadcast(b"hello")
        assert (result.accepted, result.skipped) == ([peer], {})
        assert await received(bob, 1) == [b"hello"]


@pytest.mark.filterwarnings("error")
async def test_a_bad_time_out_is_refused_before_anything_happens():
    """Half done, it would leave a coroutine that nobody awaits, or blame the peers."""
    async with pair() as (ada, bob, peer):
        for wrong in ("soon", -1, float("nan"), True, b"1"):
            for use in (
                lambda wrong=wrong: peer.send(b"x", timeout=wrong),
                lambda wrong=wrong: peer.send_many([b"x"], timeout=wrong),
                lambda wrong=wrong: ada.broadcast(b"x", timeout=wrong),
                lambda wrong=wrong: ada.wait_for("eve", timeout=wrong),
                lambda wrong=wrong: ada.receive(timeout=wrong),
                lambda wrong=wrong: ada.receive_datagram(timeout=wrong),
                lambda wrong=wrong: ada.connect(bob.address, timeout=wrong),
                lambda wrong=wrong: peer.connect(timeout=wrong),
                lambda wrong=wrong: peer.ping(timeout=wrong),
                lambda wrong=wrong: peer.disconnect(timeout=wrong),
                lambda wrong=wrong: ada.aclose(timeout=wrong),
            ):
                with pytest.raises(pt.InvalidArgument, match="duration"):
                    await use()
        gc.collect()
        assert peer.accepted == 0 and peer.connected


# Order is the order of calls


@pytest.mark.soak
async def test_no_call_overtakes_an_earlier_one_of_its_class_whatever_they_are_and_is_cancelled(
    core, rounds, seed_printed
):
    """Several tasks, each with calls of every kind, some cancelled; a reader that is slow at times.
    What was called first arrives first; what was accepted arrives once; what was not never does."""
    total, dice = rounds(4_000, 400_000), seed_printed
    async with pair(core=core.name, send_queue_size=16, receive_queue_bytes=64 * 1024) as (
        ada,
        bob,
        peer,
    ):
        called, accepted, refused, arrived = 0, set(), set(), {0: [], 1: [], 2: []}
        running, over = set(), False

        def fresh(priority):
            nonlocal called
            called += 1
            size = dice.choice((0, 0, 50, peer.max_message - 5 if dice.random() < 0.1 else 700))
            return called, called.to_bytes(4, "big") + bytes([priority]) + bytes(size)

        async def call(kind, priority):
            number, data = fresh(priority)
            numbers = [number]
            try:
                if kind == "many":
                    more = [fresh(priority) for _ in range(dice.randrange(5))]
                    numbers += [each for each, _ in more]
                    first = peer.accepted
                    await peer.send_many([data, *(each for _, each in more)], priority=priority)
                    assert peer.accepted >= first + len(numbers)
                elif kind == "nowait":
                    peer.send_nowait(data, priority=priority)
                elif kind == "broadcast":
                    result = await ada.broadcast(data, priority=priority)
                    if not result.accepted:
                        refused.add(number)
                        return
                elif kind == "in time":
                    await peer.send(data, priority=priority, timeout=dice.choice((0, 0.001, GUARD)))
                elif priority == pt.Priority.NORMAL:
                    await peer.send(data)
                else:
                    await peer.send(data, priority=priority)
            except (pt.WouldBlock, pt.Timeout, asyncio.CancelledError):
                if kind != "many":  # of many some may have been
                    refused.update(numbers)
                raise
            accepted.update(numbers)

        async def caller():
            while called < total:
                kind = dice.choice(
                    ("send", "send", "send", "many", "nowait", "broadcast", "in time")
                )
                priority = dice.choice((1, 1, 1, 0, 2))
                for _ in range(dice.choice((1, 1, 1, 40))):
                    if dice.random() < 0.2:
                        task = asyncio.ensure_future(call(kind, priority))
                        running.add(task)
                        task.add_done_callback(running.discard)
                        task.add_done_callback(lambda done: done.cancelled() or done.exception())
                        for _ in range(dice.randrange(4)):
                            await asyncio.sleep(0)
                        if dice.random() < 0.7:
                            task.cancel()
                    else:
                        with contextlib.suppress(pt.WouldBlock, pt.Timeout):
                            await call(kind, priority)

        async def reader():
            async for message in bob.messages():
                arrived[message.data[4]].append(int.from_bytes(message.data[:4], "big"))
                if over and message.data[5:] == b"last":
                    return
                if dice.random() < 0.01:
                    await asyncio.sleep(0.001)

        reading = asyncio.create_task(reader())
        await asyncio.gather(*(caller() for _ in range(4)))
        await asyncio.gather(*running, return_exceptions=True)
        over = True
        await peer.send((0).to_bytes(4, "big") + b"\0last", priority=pt.Priority.LOW)
        await asyncio.wait_for(reading, GUARD)
        while sum(map(len, arrived.values())) < peer.accepted:
            message = await bob.receive(timeout=GUARD)
            arrived[message.data[4]].append(int.from_bytes(message.data[:4], "big"))
        arrived[0].remove(0)
        for numbers in arrived.values():
            assert numbers == sorted(set(numbers))
        seen = {number for numbers in arrived.values() for number in numbers}
        assert accepted <= seen and not seen & refused
        assert accepted and refused


async def test_senders_that_take_turns_do_not_wait_a_tick_for_each_message():
    """Fair order must not cost a turn of the loop for each message: whoever comes later hands on
    what stands before it."""
    async with pair() as (_, bob, peer):
        ticks, ended, count = 0, False, 5000

        async def clock():
            nonlocal ticks
            while not ended:
                ticks += 1
                await asyncio.sleep(0)

        async def sender():
            for number in range(count):
                await peer.send(numbered(number))

        async def reader():
            got = 0
            async for batch in bob.batches():
                got += len(batch)
                if got == 3 * count:
                    return

        tasks = asyncio.create_task(clock()), asyncio.create_task(reader())
        await asyncio.gather(*(sender() for _ in range(3)))
        ended = True
        await asyncio.wait_for(asyncio.gather(*tasks), GUARD)
        assert ticks < 3 * count / 10


async def test_a_sender_lets_others_have_their_turn_though_there_is_room():
    async with pair() as (_ada, _bob, peer):
        turns = []
        asyncio.get_running_loop().call_soon(turns.append, "another")
        for _ in range(300):  # 256 in one turn
            await peer.send(b"1")
        assert turns == ["another"]


async def test_a_send_that_was_accepted_is_not_reported_as_cancelled():
    """It may be accepted while its task has not heard of that yet. The cancellation still comes,
    unless what wanted it is over."""
    async with pair() as (ada, bob, peer):

        async def accepted_unheard(work):
            """A task whose send stands in line for a tick, and is served by a later one."""
            ada._transport.crowded = True
            task = asyncio.create_task(work())
            await asyncio.sleep(0)
            peer.send_nowait(b"later")
            return task

        async def alone():
            return await peer.send(b"1")

        task = await accepted_unheard(alone)
        task.cancel()
        assert await task == 1

        steps = []

        async def goes_on():
            steps.append(await peer.send(b"2"))
            steps.append("sent")
            await asyncio.sleep(GUARD)

        task = await accepted_unheard(goes_on)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, GUARD)
        assert steps == [3, "sent"]

        async def in_time():
            async with asyncio.timeout(None) as limit:
                limit.reschedule(asyncio.get_running_loop().time())
                await peer.send(b"3")
            await asyncio.sleep(0.01)
            return "nothing comes after its block"

        task = await accepted_unheard(in_time)
        assert await asyncio.wait_for(task, GUARD) == "nothing comes after its block"
        data = await received(bob, 6)
        assert data == [b"1", b"later", b"2", b"later", b"3", b"later"]


async def test_many_messages_let_others_have_their_turn_and_keep_their_own_order():
    """A long list, or one without end, must not hold up the whole program."""
    async with pair(receive_queue_bytes=64 * 1024) as (_, bob, peer):
        drawn = 0

        def endless():
            nonlocal drawn
            while True:
                drawn += 1
                yield b"m" + numbered(drawn, 1000)

        many = asyncio.create_task(peer.send_many(endless(), timeout=GUARD))
        while not bob.stats().pauses:
            await asyncio.sleep(0)
        assert 0 < drawn - peer.accepted <= 1024
        one = asyncio.create_task(peer.send(b"one"))
        got = []
        while not got or got[-1] != b"one":
            got.append((await bob.receive(timeout=GUARD)).data)
        await one
        numbers = [int.from_bytes(data[1:5], "big") for data in got[:-1]]
        assert numbers == list(range(1, len(got))) and not many.done()
        many.cancel()
        with pytest.raises(asyncio.CancelledError):
            await many


async def test_send_many_says_how_many_were_accepted_before_it_failed():
    """Whoever goes on later must know from where."""
    async with pair(send_queue_size=4, receive_queue_bytes=4096) as (_, bob, peer):
        limit = peer.max_message
        with pytest.raises(pt.MessageTooLarge) as raised:
            await peer.send_many([b"1", b"2", bytes(limit + 1), b"never"])
        assert raised.value.accepted == 2
        with pytest.raises(pt.errors.WrongType) as wrong:
            await peer.send_many([b"3", None])
        assert wrong.value.accepted == 1
        with pytest.raises(pt.Timeout) as late:
            await peer.send_many([bytes(8000)] * 5000, timeout=0.05)
        assert late.value.accepted == peer.accepted - 3 < 5000
        work = [bytes(8000)] * 3000
        sending = asyncio.create_task(peer.send_many(work))
        await asyncio.sleep(0)
        work.clear()
        before = peer.accepted

        async def reader():
            async for _ in bob.batches():
                pass

        reading = asyncio.create_task(reader())
        count = await asyncio.wait_for(sending, GUARD)
        assert count < 3000 and peer.accepted - before <= count, "its list was emptied meanwhile"
        reading.cancel()


# Receiving


async def test_receive_times_out_and_leaves_nothing_behind():
    """A program that polls with a time-out must not grow."""
    async with pair() as (_, bob, peer):
        for _ in range(20):
            with pytest.raises(pt.Timeout, match="no message came within 0 s"):
                await bob.receive(timeout=0)
        assert not bob._transport.inbox.waiters
        await peer.send(b"x")
        assert await received(bob, 1) == [b"x"]


async def test_several_consumers_share_the_messages_each_going_to_one_in_order(core):
    """Workers of one program divide the work: nothing twice, nothing lost."""
    async with pair(core=core.name) as (_, bob, peer):
        total = 2000
        taken = [[], [], []]
        complete = asyncio.Event()

        async def consumer(mine, slow):
            async for message in bob.messages():
                mine.append(message.data)
                if sum(map(len, taken)) == total:
                    complete.set()
                for _ in range(slow):
                    await asyncio.sleep(0)

        tasks = [asyncio.create_task(consumer(mine, slow)) for slow, mine in enumerate(taken, 1)]
        await peer.send_many([numbered(number) for number in range(total)])
        await asyncio.wait_for(complete.wait(), GUARD)
        assert all(mine == sorted(mine) for mine in taken) and all(taken)
        assert sorted(data for mine in taken for data in mine) == [
            numbered(number) for number in range(total)
        ]
        await bob.aclose()
        await asyncio.gather(*tasks)


async def test_batches_bring_what_one_peer_sent_in_order_and_never_empty():
    """The cheapest way to receive, and the one that messages() is measured against."""
    async with pair() as (ada, bob, peer):
        total = 5000
        sending = asyncio.create_task(peer.send_many([numbered(number) for number in range(total)]))
        got = []
        assert (await bob.receive(timeout=GUARD)).data == numbered(0)
        async with asyncio.timeout(GUARD):
            async for batch in bob.batches():
                assert batch.peer is bob.peers["ada"] and len(batch) > 0
                got += batch
                if len(got) == total - 1:
                    break
        assert got == [numbered(number) for number in range(1, total)]
        await sending
        assert ada.stats().messages_sent == total or ada.stats().messages_accepted == total


async def test_while_a_peers_messages_are_iterated_they_come_there_alone():
    """A conversation with one peer must not be torn by the loop that serves the others."""
    async with pair() as (ada, bob, to_bob), pt.Node("cid", **loopback()) as cid:
        to_bob_from_cid = await cid.connect(bob.address, timeout=GUARD)
        await to_bob.send(b"before")
        assert await received(bob, 1) == [b"before"]
        adas = bob.peers["ada"].messages()
        taking = asyncio.ensure_future(anext(adas))
        await asyncio.sleep(0)
        await to_bob.send_many([b"one", b"two", b"three"])
        await to_bob_from_cid.send(b"from cid")
        assert await received(bob, 1) == [b"from cid"]
        assert (await asyncio.wait_for(taking, GUARD)).data == b"one"
        await adas.aclose()
        await to_bob.send(b"after")
        assert await received(bob, 3) == [b"two", b"three", b"after"]
        assert ada.stats().messages_accepted == 5


async def test_a_peers_messages_begin_with_those_that_wait_already():
    """A program that reads each peer in a task of its own would lose the first words of all."""
    async with pair() as (_, bob, to_bob):
        await to_bob.send_many([b"1", b"2", b"3"])
        assert await received(bob, 1) == [b"1"]
        got = []
        async for message in bob.peers["ada"].messages():
            got.append(message.data)
            if len(got) == 2:
                break
        assert got == [b"2", b"3"]


async def test_a_peers_messages_come_though_another_fills_the_inbox_and_nobody_reads_that():
    """Who listens to one peer alone must not stand still for ever because of another."""
    async with (
        pair(receive_queue_bytes=64 * 1024) as (ada, bob, to_bob),
        pt.Node("cid", **loopback()) as cid,
    ):
        floods = [
            asyncio.create_task(peer.send_many([bytes(1000)] * 100_000))
            for peer in (to_bob, await cid.connect(bob.address, timeout=GUARD))
        ]
        async with asyncio.timeout(GUARD):
            while bob.stats().pauses < 2:
                await asyncio.sleep(0)
            got = 0
            async for message in bob.peers["ada"].messages():
                assert message.peer.name == "ada"
                got += 1
                if got == 5000:
                    break
        assert bob.stats().inbox_bytes < 1_000_000
        for flood in floods:
            flood.cancel()
        for node in (ada, cid):
            node.close_nowait()


async def test_a_peers_messages_end_when_it_is_lost_after_the_last_one():
    """A task for each peer would otherwise stay for ever, once for each peer that ever was."""
    async with pair() as (ada, bob, to_bob):
        peer = await bob.wait_for("ada", timeout=GUARD)
        got = []

        async def read():
            async for message in peer.messages():
                got.append(message.data)

        reading = asyncio.create_task(read())
        await to_bob.send_many([b"1", b"2"])
        while not got:
            await asyncio.sleep(0)
        await to_bob.send(b"3")
        await ada.aclose()
        await asyncio.wait_for(reading, GUARD)
        assert got == [b"1", b"2", b"3"] and peer not in bob.peers.values()
        await asyncio.wait_for(read(), GUARD)
        assert len(got) == 3


async def test_a_link_whose_last_message_was_taken_is_read_again():
    """Until the next take, which may never come, a PING would go unanswered and its end unseen."""
    async with pair(receive_queue_bytes=1024) as (ada, bob, to_bob):
        await to_bob.send(bytes(2000))
        peer = (await bob.receive(timeout=GUARD)).peer
        assert bob.stats().pauses == 1 and bob.stats().inbox_bytes == 0
        assert await peer.ping(timeout=GUARD) > 0
        await ada.aclose()
        async with asyncio.timeout(GUARD):
            while peer.connected:
                await asyncio.sleep(0)


async def test_one_who_is_cancelled_though_a_message_came_for_him_leaves_it_to_the_next():
    """The one that was woken and is cancelled in the same tick must not take the news along."""
    async with pair() as (_, bob, to_bob):
        first, second = (asyncio.ensure_future(bob.receive()) for _ in range(2))
        while len(bob._transport.inbox.waiters) < 2:
            await asyncio.sleep(0)
        await to_bob.send(b"x")
        while len(bob._transport.inbox.waiters) == 2:
            await asyncio.sleep(0)
        first.cancel()
        assert (await asyncio.wait_for(second, GUARD)).data == b"x"
        assert first.cancelled() or first.result().data != b"x"


async def test_whoever_waits_for_a_peer_is_not_disturbed_by_messages():
    """Twenty tasks that wait for somebody made each message ten times as dear."""
    async with pair() as (_, bob, to_bob):
        looks = 0

        def absent(peer):
            nonlocal looks
            looks += 1
            return peer.name == "cid" and peer.connected

        waiting = asyncio.create_task(bob.wait_for(absent))
        await asyncio.sleep(0)
        for number in range(200):
            await to_bob.send(numbered(number))
            await received(bob, 1)
            await bob.peers["ada"].send(b"back")
        assert looks < 20
        async with pt.Node("cid", **loopback()) as cid:
            await cid.connect(bob.address, timeout=GUARD)
            assert (await asyncio.wait_for(waiting, GUARD)).name == "cid"


async def test_a_second_iterator_over_a_peers_messages_goes_on_when_the_first_ends():
    """The first to leave must not take the inbox with it."""
    async with pair() as (_, bob, to_bob):
        peer = await bob.wait_for("ada", timeout=GUARD)
        first, second = peer.messages(), peer.messages()
        one, two = asyncio.ensure_future(anext(first)), asyncio.ensure_future(anext(second))
        await asyncio.sleep(0)
        await to_bob.send_many([b"a", b"b"])
        assert {(await asyncio.wait_for(task, GUARD)).data for task in (one, two)} == {b"a", b"b"}
        await first.aclose()
        await to_bob.send(b"c")
        assert (await asyncio.wait_for(anext(second), GUARD)).data == b"c"
        await second.aclose()


async def test_a_full_inbox_is_warned_about_only_when_nothing_is_taken(caplog, monkeypatch):
    """A reader that is slow but reads needs no warning; one that forgot to read does, once, and
    the log says when it remembered."""
    monkeypatch.setattr("peertalk.runtime.log.SETTLED", 0.01)
    monkeypatch.setattr("peertalk.runtime.traffic._UNTAKEN_TIME", 0.05)
    async with pair(receive_queue_bytes=1024) as (_, bob, peer):
        sending = asyncio.create_task(peer.send_many([bytes(1000)] * 2000))
        while not bob.stats().pauses:
            await asyncio.sleep(0)
        while "nobody takes those from" not in caplog.text:
            await asyncio.sleep(0.01)
        assert "'ada'" in caplog.text
        # who reads now may be slow: this machine decides
        monkeypatch.setattr("peertalk.runtime.traffic._UNTAKEN_TIME", 3600)
        await received(bob, 2000)
        await sending
        while "taking messages works again" not in caplog.text:
            await asyncio.sleep(0.01)
        assert len(caplog.messages) == 2


# Events


async def test_each_stream_gets_every_event_and_one_that_is_not_read_gets_a_count_in_its_place(
    monkeypatch,
):
    """A consumer that sleeps costs bounded memory, learns how much it missed, and where."""
    monkeypatch.setattr("peertalk.protocol.events._KEPT_MAX", 5)
    async with pair() as (ada, bob, peer):
        quick, slow = ada.events(), ada.events()
        seen = []

        async def read():
            async for event in quick:
                seen.append(event)

        reading = asyncio.create_task(read())
        for number in range(10):
            await peer.send(numbered(number))
            await received(bob, 1)
        while sum(isinstance(event, pt.Sent) for event in seen) < 10:
            await asyncio.sleep(0)
        got = [await anext(slow) for _ in range(3)]
        for number in range(10, 12):
            await peer.send(numbered(number))
            await received(bob, 1)
        while sum(isinstance(event, pt.Sent) for event in seen) < 12:
            await asyncio.sleep(0)
        got += [await anext(slow) for _ in range(3)]
        await ada.aclose()
        await reading
        got += [event async for event in slow]
        place = next(index for index, event in enumerate(got) if isinstance(event, pt.EventsMissed))
        assert seen[:2] == [pt.PeerFound(peer), pt.PeerConnected(peer)], "what it began with"
        assert place == 7 and got[:7] == seen[:7]
        assert got[place + 1 :] == seen[7 + got[place].count :]
        assert not [event for event in seen if isinstance(event, pt.EventsMissed)]


async def test_events_can_be_matched_and_a_closed_stream_ends():
    """The documented way to read them, and the way out."""
    async with pt.Node("ada", **loopback()) as ada, pt.Node("bob", **loopback()) as bob:
        async with ada.events() as events:
            peer = await ada.connect(bob.address, timeout=GUARD)
            names = []
            for _ in range(2):
                match await asyncio.wait_for(anext(events), GUARD):
                    case pt.PeerFound(found):
                        names.append(("found", found.name))
                    case pt.PeerConnected(connected):
                        names.append(("connected", connected.name))
            assert names == [("found", "bob"), ("connected", "bob")]
        assert [event async for event in events] == []
        assert ada._transport.publish is None
        await peer.send(b"x")
    assert [event async for event in ada.events()] == []


# Streams: shared, let go, and begun with what is true


def open_streams(node, peer):
    """One of each kind that a node and a peer have."""
    return [node.messages(), peer.messages(), node.batches(), node.datagrams(), node.events()]


async def wait_in(stream, count=1):
    """So many tasks that wait for the next item of a stream from which all was taken."""
    tasks = [asyncio.create_task(anext(stream)) for _ in range(count)]
    while len(stream._waiting) < count:
        await asyncio.sleep(0)
    return tasks


async def empty(stream):
    """Take what is there, of a stream of events what it began with."""
    seen = []
    while True:
        taking = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        if not taking.done():
            taking.cancel()
            await asyncio.wait([taking])
            return seen
        seen.append(taking.result())


async def test_two_tasks_share_one_stream_of_events_and_closing_it_wakes_both():
    """A second task on a stream used to push the first one out of it, for ever, over aclose()
    too."""
    async with pair() as (ada, bob, peer):
        events = ada.events()
        seen = {"one": [], "two": []}

        async def read(name):
            async for event in events:
                seen[name].append(event)
                await asyncio.sleep(0)

        reading = [asyncio.create_task(read(name)) for name in seen]
        for number in range(20):
            await peer.send(numbered(number), no_delay=True)
            await received(bob, 1)
        async with asyncio.timeout(GUARD):
            while sum(map(len, seen.values())) < 22:
                await asyncio.sleep(0)
            while len(events._waiting) < 2:
                await asyncio.sleep(0)
            await events.aclose()
            await asyncio.gather(*reading)
        told = [event.first for event in (*seen["one"], *seen["two"]) if isinstance(event, pt.Sent)]
        assert sorted(told) == list(range(1, 21)) and all(seen.values())


async def test_closing_a_stream_or_its_node_wakes_every_task_that_waits_there():
    """Whatever the kind of stream and however many wait: nobody hangs over its end."""
    async with pair() as (ada, _, peer):
        for stream in open_streams(ada, peer):
            await empty(stream)
            waiting = await wait_in(stream, 3)
            await stream.aclose()
            ended = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), GUARD)
            assert [type(each) for each in ended] == [StopAsyncIteration] * 3
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            await stream.aclose()
        assert not len(ada._transport.inbox.waiters) and not len(ada._transport.datagrams.waiters)
        waiting = []
        for stream in open_streams(ada, peer):
            await empty(stream)
            waiting += await wait_in(stream, 2)
        await ada.aclose()
        ended = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), GUARD)
        assert [type(each) for each in ended[:8]] == [StopAsyncIteration] * 8
        assert {type(each) for each in ended[8:]} == {pt.PeerDisconnected, pt.PeerLost}


async def test_one_who_leaves_a_stream_though_a_message_came_for_him_leaves_it_to_another():
    """Two streams of one node share its messages: the news must not end with the one that is
    closed in the same tick."""
    async with pair() as (_, bob, to_bob):
        leaving, staying = bob.messages(), bob.messages()
        (first,), (second,) = await wait_in(leaving), await wait_in(staying)
        await to_bob.send(b"x")
        while len(bob._transport.inbox.waiters) == 2:
            await asyncio.sleep(0)
        await leaving.aclose()
        assert (await asyncio.wait_for(second, GUARD)).data == b"x"
        with pytest.raises(StopAsyncIteration):
            await first


@pytest.mark.parametrize("kind", range(5))
async def test_a_stream_goes_on_after_one_anext_was_cancelled_or_out_of_time(kind):
    """A time-out around anext() is the way to look now and then; after the first one a stream said
    that the node is closed."""
    async with pair() as (ada, bob, to_bob):
        peer = await bob.wait_for("ada", timeout=GUARD)
        stream = open_streams(bob, peer)[kind]
        await empty(stream)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        (waiting,) = await wait_in(stream)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        if kind == 3:
            ada.send_datagram(to_bob, b"x")
        await to_bob.send(b"x")
        await peer.send(b"y")  # Sent
        item = await asyncio.wait_for(anext(stream), GUARD)
        assert type(item) is [pt.Message, pt.Message, pt.Batch, pt.Datagram, pt.Sent][kind]
        assert not stream._waiting


async def test_a_loop_that_was_out_of_time_is_gone_on_with():
    """`async for` has a road of its own over messages; who keeps what aiter() gives may look at it
    now and then too, and who loops again goes on where the last loop was."""
    async with pair() as (_, bob, to_bob):
        messages = bob.messages()
        loop = aiter(messages)
        for number in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(loop), 0.01)
            await to_bob.send(numbered(number))
            assert (await asyncio.wait_for(anext(loop), GUARD)).data == numbered(number)
        await to_bob.send_many([numbered(number) for number in range(3, 9)])
        got = []
        for count in (1, 2, 3):
            async for message in messages:
                got.append(message.data)
                if len(got) >= count:
                    break
        got += [(await anext(loop)).data, (await anext(messages)).data, (await anext(loop)).data]
        assert got == [numbered(number) for number in range(3, 9)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                async for _ in messages:
                    raise AssertionError("nothing was sent")
        await bob.aclose()
        assert [message async for message in messages] == []
        with pytest.raises(StopAsyncIteration):
            await anext(loop)


async def test_a_loop_in_the_middle_of_a_lot_ends_when_its_stream_is_closed():
    """What has come stays for others, in its order."""
    async with pair() as (_, bob, to_bob):
        await to_bob.send_many([numbered(number) for number in range(10)])
        for messages in (bob.messages(), (await bob.wait_for("ada")).messages()):
            got = []
            async for message in messages:
                got.append(message.data)
                if len(got) == 3:
                    await messages.aclose()
            assert len(got) == 3
        assert await received(bob, 4) == [numbered(number) for number in range(6, 10)]


async def test_event_streams_that_nobody_has_do_not_gather_while_nothing_happens():
    """A loop that looks at events for a second at a time left one behind each time, until the next
    event: on a quiet network, for ever."""
    async with pt.Node("ada", **loopback()) as ada:
        for _ in range(100):
            ada.events()
        gc.collect()
        kept = ada.events()
        assert len(ada._listeners._streams) == 1
        await kept.aclose()


async def test_streams_left_by_break_are_let_go_and_no_longer_fed():
    """Each such loop left a stream in the node for its life, with up to 4,096 events."""
    async with pair() as (ada, bob, peer):
        streams = []
        for number in range(50):
            async for event in ada.events():
                assert event == pt.PeerFound(peer)
                break
            kept = ada.events()
            streams.append(weakref.ref(kept))
            await peer.send(numbered(number), no_delay=True)
            await received(bob, 1)
        del kept
        listening = ada.events()
        assert not any(each() for each in streams)
        await peer.send(b"x")
        await next_event(listening, pt.Sent)
        assert len(ada._listeners._streams) == 1
        del listening
        await peer.send(b"y", no_delay=True)
        await received(bob, 2)
        async with asyncio.timeout(GUARD):
            while peer.stats().messages_sent < 52:
                await asyncio.sleep(0)
        assert not ada._listeners._streams and ada._transport.publish is None


async def test_a_task_that_nobody_keeps_stays_while_it_waits_for_an_event():
    """The node lets go of streams that nobody has. One that is waited in is had, though its task
    may be known to nothing else."""
    async with pair() as (ada, _, peer):
        gone = asyncio.get_running_loop().create_future()

        async def watch():
            async for event in ada.events():
                if isinstance(event, pt.PeerDisconnected):
                    gone.set_result(event.peer)

        asyncio.create_task(watch())  # noqa: RUF006
        for _ in range(3):
            await asyncio.sleep(0)
        gc.collect()
        await peer.disconnect(timeout=GUARD)
        assert await asyncio.wait_for(gone, GUARD) is peer


async def test_a_peers_messages_left_by_break_go_to_the_node():
    """What nobody iterates any more must not keep messages to itself."""
    async with pair() as (_, bob, to_bob):
        peer = await bob.wait_for("ada", timeout=GUARD)
        await to_bob.send_many([b"1", b"2", b"3"])
        async for message in peer.messages():
            assert message.data == b"1"
            break
        assert await received(bob, 2) == [b"2", b"3"]
        assert bob._transport.inbox.outlet_of(peer._remote) is bob._transport.inbox


@pytest.mark.parametrize("loop", [True, False], ids=["async for", "anext"])
async def test_a_peers_messages_left_by_a_cancelled_task_go_to_the_node(loop):
    """A program keeps its tasks in a list, and a cancelled task keeps its error, with the frames
    that it went through. The stream of messages in those frames is nobody's any more."""
    async with pair() as (_, bob, to_bob):
        peer = await bob.wait_for("ada", timeout=GUARD)

        async def read() -> None:
            if loop:
                async for _ in peer.messages():
                    pass
            else:
                await anext(peer.messages())

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await to_bob.send(b"1")
        assert await received(bob, 1) == [b"1"] and task.cancelled()


async def test_a_stream_of_events_begins_with_what_is_true():
    """A program that asks who is there and then listens misses who comes in between; one that
    listens first hears of some twice."""
    async with pair() as (ada, bob, peer), pt.Node("cid", **loopback()) as cid:
        other = await ada.connect(cid.address, timeout=GUARD)
        await other.disconnect(timeout=GUARD)
        assert ada.peers.get("cid") is None, "known only while it was connected"
        other = await ada.connect(cid.address, timeout=GUARD)
        for _ in range(2):
            assert await empty(ada.events()) == [
                pt.PeerFound(peer),
                pt.PeerConnected(peer),
                pt.PeerFound(other),
                pt.PeerConnected(other),
            ]
    node = pt.Node("eve", **loopback())
    early = node.events()
    async with node, pt.Node("bob", **loopback()) as bob:
        peer = await node.connect(bob.address, timeout=GUARD)
        assert await empty(early) == [pt.PeerFound(peer), pt.PeerConnected(peer)]


def test_no_event_is_doubled_or_missed_where_a_stream_begins():
    """Whoever adds and removes by the events has at each moment whom the node has, whenever it
    began to listen."""

    def kept(stream, peers):
        """Whom the events of a stream tell as known and as connected, with each told once."""
        while (event := stream._events.take()) is not None:
            match event:
                case pt.PeerFound(peer):
                    assert peer not in peers
                    peers[peer] = False
                case pt.PeerLost(peer):
                    assert peers.pop(peer) is False
                case pt.PeerConnected(peer):
                    assert peers[peer] is False
                    peers[peer] = True
                case pt.PeerDisconnected(peer):
                    assert peers[peer] is True
                    peers[peer] = False
        return peers

    async def main(net: sim.Network) -> int:
        ada = await net.node("ada", peer_timeout=2, announce_interval=0.5)
        listeners = []

        async def guest(number):
            node = await net.node(f"guest {number}", peer_timeout=2, announce_interval=0.5)
            await asyncio.sleep(number / 100)
            peer = await node.wait_for("ada")
            for _ in range(3):
                await peer.send(b"x")
                await asyncio.sleep(0.1)
                await peer.disconnect()
            if number % 2:
                node.close_nowait()
            else:
                await node.aclose()

        async def check():
            while True:
                listeners.append((ada.events(), {}))
                for stream, peers in listeners:
                    now = {peer: peer._remote.connection is not None for peer in ada.peers.values()}
                    assert kept(stream, peers) == now
                await asyncio.sleep(0.003)

        checking = asyncio.create_task(check())
        await asyncio.gather(*(guest(number) for number in range(6)))
        checking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await checking
        return len(listeners)

    assert sim.run(main, seed=3) > 50


async def test_when_the_node_is_closed_streams_give_what_had_come_and_end():
    """An open one and one that is asked for later, of whatever kind: what has come is not lost, and
    the end is an end. A call, of which there is no end, is an error."""
    async with pair() as (ada, bob, to_bob):
        peer = await bob.wait_for("ada", timeout=GUARD)
        await to_bob.send_many([b"1", b"2", b"3", b"4"])
        ada.send_datagram(to_bob, b"d")
        async with asyncio.timeout(GUARD):
            while bob.stats().datagrams_received < 1 or bob.stats().messages_received < 4:
                await asyncio.sleep(0)
        opened = bob.messages()
        assert (await anext(opened)).data == b"1"
        await bob.aclose()
        for call in (bob.receive, bob.receive_datagram):
            with pytest.raises(pt.InvalidState, match="closed"):
                await call()
        assert (await anext(opened)).data == b"2"
        assert [message.data async for message in peer.messages()] == [b"3", b"4"]
        assert [message async for message in opened] == []
        assert [message async for message in bob.messages()] == []
        assert [batch async for batch in bob.batches()] == []
        assert [datagram.data async for datagram in bob.datagrams()] == [b"d"]
        assert [event async for event in bob.events()] == []


# What waking costs


async def test_a_message_wakes_one_of_a_thousand_who_wait_and_nobody_who_waits_for_a_peer(
    monkeypatch,
):
    """A thousand tasks in receive(), or twenty that wait for a peer among five hundred, made each
    message as dear as a look at all of them."""
    async with pair() as (_, bob, to_bob):
        for number in range(500):
            bob._transport.roster.make_peer(
                number.to_bytes(8, "big"), None, f"peer {number}", ("127.0.0.1", 1)
            )
        looks = wakes = taken = 0
        take = bob._transport.inbox.take

        def absent(peer):
            nonlocal looks
            looks += 1
            return False

        def counted():
            nonlocal wakes
            wakes += 1
            return take()

        async def serve():
            nonlocal taken
            while True:
                await bob.receive()
                taken += 1

        watching = [asyncio.create_task(bob.wait_for(absent)) for _ in range(20)]
        watching += [asyncio.create_task(bob.wait_for(f"nobody {n}")) for n in range(20)]
        serving = [asyncio.create_task(serve()) for _ in range(1000)]
        while len(bob._transport.inbox.waiters) < 1000:
            await asyncio.sleep(0)
        assert looks == 20 * 501
        monkeypatch.setattr(type(bob._transport.inbox), "take", lambda _: counted())
        events = bob.events()
        back = bob.peers["ada"]
        looks, total = 0, 300
        async with asyncio.timeout(GUARD):
            for number in range(total):
                await to_bob.send(numbered(number), no_delay=True)
                await back.send(b"x", no_delay=True)  # Sent
                while taken <= number:
                    await asyncio.sleep(0)
            while back.stats().messages_sent < total:
                await asyncio.sleep(0)
        assert looks == 0
        # one look when the server comes back, one when it is woken
        assert wakes <= 3 * total
        assert sum(isinstance(event, pt.Sent) for event in await empty(events)) >= 1
        for task in (*watching, *serving):
            task.cancel()


# Statistics


async def test_statistics_of_both_sides_add_up(core):
    """Counters that disagree are worse than none: whoever debugs with them is misled."""
    async with pair(core=core.name, ping_interval=0) as (ada, bob, peer):
        sizes = [number % 700 for number in range(1000)]
        await peer.send_many([bytes(size) for size in sizes])
        await received(bob, 1000)
        while peer.stats().messages_sent < 1000:
            await asyncio.sleep(0)
        here, there = ada.stats(), bob.stats()
        assert (here.messages_accepted, here.messages_sent, here.messages_failed) == (1000, 1000, 0)
        assert there.messages_received == 1000
        assert (
            here.payload_bytes_sent >= sum(sizes)
            and there.payload_bytes_received == here.payload_bytes_sent
        )
        # two CAPABILITY: the second says which connection is used, or what is over for ada
        assert there.bytes_received == here.bytes_sent == here.payload_bytes_sent + 12 * 1002
        assert 0 < here.write_calls <= 1001 and here.messages_per_write == 1000 / here.write_calls
        assert (
            here.links_open == there.links_open == here.links_opened == 1
            and here.peers == there.peers == 1
        )
        assert (
            here.bad_frames
            == there.bad_frames
            == here.crc_errors
            == here.links_refused
            == here.frames_ignored
            == 0
        )
        assert (
            there.inbox_bytes >= 0
            and here.turns > 0
            and 1 <= here.slots_high_water <= ada.config.pipeline_depth
        )
        stats = bob.peers["ada"].stats()
        assert (stats.messages_received, stats.bytes_received) == (1000, sum(sizes))
        assert peer.stats().messages_accepted == 1000 and peer.queue.pending == 0
    assert ada.stats().messages_sent == 1000


# Life


async def test_closing_sends_what_was_accepted_and_wakes_everybody_who_waits():
    """The last message of a program is often the important one; and no task may hang on a node that
    is gone."""
    async with pair() as (ada, bob, peer):
        taking = asyncio.create_task(received(bob, 1500))
        waiting = [
            asyncio.create_task(ada.receive()),
            asyncio.create_task(ada.wait_for("nobody")),
            asyncio.create_task(anext(peer.messages(), None)),
            asyncio.create_task(anext(ada.messages(), None)),
            asyncio.create_task(anext(ada.batches(), None)),
        ]
        await peer.send_many([numbered(number, 500) for number in range(1500)])
        assert await ada.aclose() == 0
        assert await taking == [numbered(number, 500) for number in range(1500)]
        results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), GUARD)
        assert [type(result) for result in results] == [
            pt.InvalidState,
            pt.InvalidState,
            type(None),
            type(None),
            type(None),
        ]
        assert await ada.aclose() == 0 and ada.close_nowait() == 0


async def test_closing_wakes_senders_that_wait_for_room_or_for_a_connection():
    """Each hears that the node is closed, and what was not accepted is not sent."""
    async with (
        pt.Node("ada", **loopback(send_queue_size=1, drain_timeout=1)) as ada,
        pt.Node("bob", **loopback(receive_queue_bytes=1024)) as bob,
    ):
        peer = await ada.connect(bob.address, timeout=GUARD)
        with pytest.raises(pt.Timeout):
            while True:
                await peer.send(bytes(8000), timeout=0.05)
        for_room = asyncio.create_task(peer.send(bytes(8000)))
        leaving = asyncio.create_task(peer.disconnect())
        await asyncio.sleep(0)
        for_link = asyncio.create_task(peer.send(b"after the disconnect"))
        await asyncio.sleep(0)
        unsent = await ada.aclose(timeout=0.1)
        results = await asyncio.wait_for(
            asyncio.gather(for_room, for_link, leaving, return_exceptions=True), GUARD
        )
        assert (
            isinstance(results[0], pt.PeerTalkError)
            and isinstance(results[1], pt.PeerTalkError)
            and results[2] is None
        )
        assert unsent >= 1 and ada.stats().messages_failed == unsent
        stats = ada.stats()
        assert (
            stats.messages_accepted == stats.messages_sent + stats.messages_failed == peer.accepted
        )


async def test_a_node_is_used_once_and_only_while_it_is_open():
    """Each wrong moment has a sentence."""
    node = pt.Node("ada", **loopback())
    for use in (
        lambda: node.peers,
        lambda: node.id,
        node.messages,
        node.stats,
        lambda: node.address,
    ):
        with pytest.raises(pt.InvalidState, match="not started"):
            use()
    assert await node.aclose() == 0 and node.close_nowait() == 0
    assert "not started" in repr(node)
    async with node, pt.Node("bob", **loopback()) as bob:
        peer = await node.connect(bob.address, timeout=GUARD)
        with pytest.raises(pt.InvalidState, match="was started before"):
            await node.start()
    for use in (
        lambda: peer.send(b"x"),
        node.receive,
        lambda: node.broadcast(b"x"),
        lambda: peer.connect(),
        lambda: node.connect(("127.0.0.1", 1)),
        lambda: peer.send_many([b"x"]),
        lambda: node.wait_for("x"),
    ):
        with pytest.raises(pt.InvalidState, match="closed"):
            await use()
    with pytest.raises(pt.InvalidState, match="closed"):
        peer.send_nowait(b"x")
    with pytest.raises(pt.InvalidState, match="was started before"):
        await node.start()
    assert "closed" in repr(node)


async def test_a_cancelled_close_still_closes():
    """Ctrl-C during a polite goodbye ends the goodbye, not the cleaning up."""
    async with pair(send_queue_size=10) as (ada, bob, peer):
        bob._transport.inbox.limit = 1
        with contextlib.suppress(pt.Timeout):
            while True:
                await peer.send(bytes(8000), timeout=0.05)
        closing = asyncio.create_task(ada.aclose(timeout=GUARD))
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert ada._transport.closed and ada.stats().messages_failed > 0


async def test_a_node_that_was_forgotten_warns_and_lets_go(free_port):
    """A leak must be heard of, and must not hold its port."""
    port = free_port()
    node = await pt.Node("ada", **loopback(port=port)).start()
    with pytest.warns(ResourceWarning, match="'ada' was not closed"):
        del node
        gc.collect()
    async with pt.Node("bob", **loopback(port=port)) as bob:
        assert bob.address == ("127.0.0.1", port)


async def test_a_node_that_keeps_its_last_message_can_be_collected():
    """A Message is not tracked by the collector, so no way may lead from it back to its node."""
    async with pair() as (ada, bob, peer):
        ada.last_events = ada.events()
        await bob.wait_for("ada", timeout=GUARD)
        with pytest.raises(pt.Timeout):
            await bob.wait_for("nobody", timeout=0.01)
        bob.stream = bob.events()
        await peer.send(b"kept")
        bob.last = await bob.receive(timeout=GUARD)
    gone = weakref.ref(bob)
    del bob
    gc.collect()
    assert gone() is None


def test_a_forgotten_node_is_closed_though_its_warning_is_an_error(start_python):
    """python -W error: the warning raises in the finalizer, which must have closed by then."""
    script = """
import asyncio, gc, socket, peertalk as pt
async def main():
    node = await pt.Node("ada", bind="127.0.0.1", port=0, discovery=False).start()
    address = node.address
    del node
    gc.collect()
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
        print("closed")
asyncio.run(main())
"""
    process = start_python("-W", "error", "-c", script)
    out, err = process.communicate(timeout=GUARD)
    assert out.strip() == "closed" and "node 'ada' was not closed" in err


async def test_a_node_that_is_collected_on_another_thread_is_closed_by_its_own_loop():
    """The collector runs on whichever thread allocates: that one must not touch the engine."""
    node = await pt.Node("ada", **loopback()).start()
    transport, there = node._transport, []
    closing = transport.close_now
    transport.close_now = lambda: (there.append(threading.get_ident()), closing())
    held = [node]
    del node
    with pytest.warns(ResourceWarning, match="'ada' was not closed"):
        await asyncio.to_thread(held.clear)
    async with asyncio.timeout(GUARD):
        while not transport.closed:
            await asyncio.sleep(0)
    assert there == [threading.get_ident()]


# One loop, one thread


@contextlib.contextmanager
def loop_of_a_thread(name):
    """An asyncio loop that runs on another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=name)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


ANY_THREAD = {
    "Node": {"close_nowait", "stats", "memory", "name", "id", "address", "peers", "config"},
    "Peer": {"send_nowait", "stats", "queue", "stream_out"},
    "StreamOut": {"peer", "state", "sent", "total", "error"},
}
"""What may be used on any thread: it looks, or hands over."""
REFUSED = {
    "Node": {
        *("start", "aclose", "flags", "wait_for", "connect", "broadcast", "receive", "messages"),
        *("batches", "send_datagram", "receive_datagram", "datagrams", "events"),
    },
    "Peer": {"send", "send_many", "connect", "disconnect", "ping", "messages", "reject"},
    "StreamOut": {"finished", "cancel"},
}
"""What uses_of() tries; start() is refused because the node was started before."""


def test_each_public_method_is_known_as_one_for_any_thread_or_for_its_loop_alone():
    """A method that is added must be tried on another loop, or be made for any thread."""
    for kind in (pt.Node, pt.Peer, pt.lowlevel.StreamOut):
        said = ANY_THREAD[kind.__name__] | REFUSED[kind.__name__]
        own = {name for name in vars(kind) if not name.startswith("_")}
        assert own - {"on_end"} <= said, kind  # on_end: the engine's call
    changing = {"reject", "accept", "offer"}  # of what the doors share
    assert changing & set(vars(pt.Peer)) == {"reject"}


def uses_of(node, peer):
    """Each coroutine and stream of a node and a peer, and what else only its loop may use."""

    async def first(items):
        async for item in items:
            return item

    async def stream():
        async with peer.stream_out(b"parts") as out:
            await out.finished(timeout=GUARD)

    def plain(call):
        async def use():
            call()

        return use

    return [
        plain(peer.reject),
        plain(peer.stream_out(b"parts").cancel),
        plain(lambda: setattr(node, "flags", 1)),
        plain(lambda: node.send_datagram(peer, b"x")),
        plain(node.events),
        lambda: peer.stream_out(b"parts").finished(timeout=GUARD),
        lambda: peer.send(b"x"),
        lambda: peer.send(bytearray(b"x"), timeout=GUARD),
        lambda: peer.send_many([b"x"]),
        lambda: peer.connect(),
        lambda: peer.ping(timeout=GUARD),
        lambda: peer.disconnect(timeout=GUARD),
        stream,
        lambda: first(peer.messages()),
        lambda: node.broadcast(b"x"),
        lambda: node.connect(("127.0.0.1", 1)),
        lambda: node.wait_for("nobody", timeout=GUARD),
        lambda: node.receive(),
        lambda: node.receive(timeout=GUARD),
        lambda: node.receive_datagram(timeout=GUARD),
        lambda: first(node.messages()),
        lambda: first(node.batches()),
        lambda: first(node.datagrams()),
        lambda: first(node.events()),
        lambda: node.aclose(timeout=GUARD),
    ]


async def test_coroutines_and_streams_on_another_threads_loop_are_refused_and_change_nothing():
    """A second thread in the engine tears frames, or sleeps until something else comes: it must be
    an error that says whose node this is and what to do."""
    async with pair() as (ada, bob, peer):
        with loop_of_a_thread("elsewhere") as loop:
            for use in uses_of(ada, peer):

                async def elsewhere(use=use):
                    with pytest.raises(pt.InvalidState) as caught:
                        await use()
                    return str(caught.value)

                there = asyncio.run_coroutine_threadsafe(elsewhere(), loop)
                said = await asyncio.wait_for(asyncio.wrap_future(there), GUARD)
                assert "'ada' belongs to another asyncio loop" in said
                assert "thread 'MainThread'" in said and "thread 'elsewhere'" in said
                assert "run_coroutine_threadsafe" in said
        assert (peer.accepted, peer.connected) == (0, True)
        assert await asyncio.to_thread(peer.send_nowait, b"any thread") == 0
        assert (await asyncio.to_thread(ada.stats)).links_open == 1
        assert await received(bob, 1) == [b"any thread"]


def test_a_second_loop_of_the_same_thread_is_refused_and_the_first_goes_on(any_loop):
    """The thread is the right one, so that the quick way of send does not notice by itself: once
    the other loop is noticed nothing is accepted any more."""
    ada = any_loop.run_until_complete(pt.Node("ada", **loopback()).start())
    bob = any_loop.run_until_complete(pt.Node("bob", **loopback()).start())
    peer = any_loop.run_until_complete(ada.connect(bob.address, timeout=GUARD))

    async def elsewhere():
        for data in (bytearray(b"looks first"), b"quick", b"quick"):
            with pytest.raises(pt.InvalidState, match="'ada' belongs to another asyncio loop"):
                await peer.send(data)
        for use in uses_of(ada, peer):
            with pytest.raises(pt.InvalidState, match="'ada' belongs to another asyncio loop"):
                await use()

    asyncio.run(elsewhere())
    assert peer.accepted == 0 and peer.connected
    peer.send_nowait(b"any time")
    any_loop.run_until_complete(peer.send(b"after"))
    assert any_loop.run_until_complete(received(bob, 2)) == [b"any time", b"after"]
    any_loop.run_until_complete(ada.aclose(timeout=GUARD))
    any_loop.run_until_complete(bob.aclose(timeout=GUARD))


def test_a_node_that_another_loop_tried_to_use_is_closed_at_once(any_loop):
    """Nobody turns it then, so nobody has to be waited for."""
    ada = any_loop.run_until_complete(pt.Node("ada", **loopback()).start())
    bob = any_loop.run_until_complete(pt.Node("bob", **loopback()).start())
    peer = any_loop.run_until_complete(ada.connect(bob.address, timeout=GUARD))

    async def elsewhere():
        with pytest.raises(pt.InvalidState):
            await peer.send(bytearray(b"x"))
        ada.close_nowait()
        assert ada.stats().links_open == 0

    asyncio.run(elsewhere())
    any_loop.run_until_complete(bob.aclose(timeout=GUARD))


def test_a_node_whose_loop_has_ended_says_so_to_the_next_loop_and_can_be_closed(free_port):
    """Two asyncio.run() with one node: the second used to wait for a loop that runs no more."""
    nodes = []

    async def begin():
        ada = await pt.Node("ada", **loopback()).start()
        bob = await pt.Node("bob", **loopback()).start()
        nodes.extend([ada, bob, await ada.connect(bob.address, timeout=GUARD)])

    async def go_on():
        ada, _, peer = nodes
        for use in uses_of(ada, peer):
            with pytest.raises(pt.InvalidState, match=r"loop that is closed.*close_nowait"):
                await use()

    asyncio.run(begin())
    asyncio.run(go_on())
    ada, bob, _ = nodes
    thread = threading.Thread(target=ada.close_nowait)
    thread.start()
    thread.join()
    bob.close_nowait()
    assert ada._transport.closed and bob._transport.closed


def test_a_loop_that_is_moved_to_another_thread_takes_its_node_along(any_loop):
    """Start here, run forever there: the loop is the owner, not the thread."""
    ada = any_loop.run_until_complete(pt.Node("ada", **loopback()).start())
    bob = any_loop.run_until_complete(pt.Node("bob", **loopback()).start())
    peer = any_loop.run_until_complete(ada.connect(bob.address, timeout=GUARD))

    async def talk():
        await peer.send(b"from there")
        return await received(bob, 1)

    async def end():
        await ada.aclose(timeout=GUARD)
        await bob.aclose(timeout=GUARD)

    there = []
    thread = threading.Thread(target=lambda: there.append(any_loop.run_until_complete(talk())))
    thread.start()
    thread.join()
    assert there == [[b"from there"]]
    any_loop.run_until_complete(end())


async def test_another_thread_may_close_a_node_at_once():
    """A signal handler or a watchdog: the loop does it, so that nothing is torn."""
    async with pair() as (ada, _, _peer):
        waiting = asyncio.create_task(ada.receive())
        await asyncio.sleep(0)
        assert await asyncio.to_thread(ada.close_nowait) == 0
        with pytest.raises(pt.InvalidState, match="closed"):
            await waiting


def test_without_an_asyncio_loop_the_error_names_those_that_do():
    """Under trio nothing runs that asyncio knows: "no running event loop" says nothing about us."""

    def run_as_trio_does(coroutine):
        coroutine.send(None)

    with pytest.raises(pt.InvalidState, match=r"asyncio.*anyio.*peertalk\.sync"):
        run_as_trio_does(pt.Node("ada", **loopback()).start())


# Bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": ""}, r"name is empty.*1 to 31 bytes"),
        ({"name": "\u00e9" * 16}, r"32 bytes of UTF-8.*1 to 31"),
        ({"port": 70000}, r"argument port=70000.*0 to 65,535"),
        ({"max_peers": 0}, r"argument max_peers=0.*1 to 65,535"),
        ({"link_timeout": "1 fortnight"}, r"link_timeout='1 fortnight'"),
        ({"bind": "localhost"}, r"bind='localhost'.*IPv4"),
        ({"colour": "red"}, r"no setting 'colour'"),
        ({"core": "fast"}, r"core='fast'.*standard, lowmem or reference"),
    ],
)
def test_an_option_out_of_its_bounds_is_refused_with_value_bound_and_source(options, said):
    """Before anything is opened."""
    with pytest.raises(pt.InvalidArgument, match=said):
        pt.Node(**options)


async def test_a_node_of_the_embedded_profile_lives_on_the_lowmem_core_in_200_kib():
    """What the profile promises on a true machine: small limits, little memory in C, and full
    service to a peer of any size."""
    if load().name == "reference":
        pytest.skip("did not run: the compiled cores are not there")
    messages = [bytes([number]) * 1024 for number in range(200)]
    async with (
        pt.Node("probe", profile="embedded", **loopback()) as probe,
        pt.Node("big", **loopback()) as big,
    ):
        assert (probe.config.core, probe.config.max_peers) == (
            "lowmem",
            4,
        ) and probe.config.explain()["core"][1] == "profile"
        there = await probe.connect(big.address, timeout=GUARD)
        await there.send_many(messages)
        assert [(await big.receive(timeout=GUARD)).data for _ in messages] == messages
        back = await big.connect(probe.address, timeout=GUARD)
        await back.send_many(messages)
        assert [(await probe.receive(timeout=GUARD)).data for _ in messages] == messages
        with pytest.raises(pt.MessageTooLarge, match="1,024"):
            await there.send(bytes(1025))
        total = probe.memory["total"]
        assert 0 < total.bytes <= total.peak < 200 * 1024


def test_a_value_of_the_environment_is_blamed_on_the_environment(monkeypatch):
    """Whoever set it there must find it there."""
    monkeypatch.setenv("PEERTALK_MAX_PEERS", "-4")
    with pytest.raises(
        pt.InvalidArgument, match=r"PEERTALK_MAX_PEERS=-4 in the environment.*1 to 65,535"
    ):
        pt.Node("ada")


def test_a_config_and_options_exclude_each_other():
    """Which one would win?"""
    with pytest.raises(pt.InvalidArgument, match="not both"):
        pt.Node("ada", config=pt.Config())


async def test_a_port_that_is_taken_is_an_error_when_it_was_asked_for_and_gives_way_when_it_was_not(
    free_port, monkeypatch
):
    """Two programs with default settings must both start; a port in a firewall rule must not
    silently change."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(
            pt.errors.AddressInUse,
            match=rf"TCP port {port} on 127.0.0.1.*Config.port \(PEERTALK_PORT\)",
        ) as raised:
            await pt.Node("ada", **loopback(port=port)).start()
        assert isinstance(raised.value, OSError) and isinstance(raised.value, ConnectionError)
        from peertalk import config

        default = next(setting for setting in config.settings() if setting.name == "port").default
        with contextlib.ExitStack() as taken:
            with contextlib.suppress(OSError):
                taken.enter_context(socket.create_server(("127.0.0.1", default)))
            async with pt.Node("ada", bind="127.0.0.1", discovery=False) as node:
                assert node.address[1] != default
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as alone:
        alone.bind(("", port))
        with pytest.raises(
            pt.errors.AddressInUse, match=rf"UDP port {port}.*Config.discovery_port"
        ):
            await pt.Node("ada", **announcing(port)).start()
    async with pt.Node("ada", **announcing(port)):
        pass  # nothing stayed open


# Datagrams and streams: what the front door adds to tests/runtime/test_datagrams.py and
# test_streaming.py


async def test_a_stream_between_two_nodes_arrives_whole_and_tells_of_its_progress(core):
    """The receiver needs no other call than for messages."""
    content = bytes(range(256)) * 256
    async with pair(core=core.name, ping_interval=0) as (_, bob, peer):
        steps = []
        async with peer.stream_out(content, lambda sent, total: steps.append((sent, total))) as out:
            assert await out.finished(timeout=GUARD) is pt.StreamState.COMPLETED
            assert await out.finished() is pt.StreamState.COMPLETED and (
                out.peer,
                out.sent,
                out.error,
            ) == (peer, 65_536, None)
        data = b""
        while len(data) < len(content):
            data += (await bob.receive(timeout=GUARD)).data
        assert data == content and steps[-1] == (65_536, 65_536) and len(steps) > 8
        assert peer.stats().messages_sent == 64


async def test_a_stream_that_cannot_be_is_refused_before_anything_is_sent(core):
    """Each refusal says what to do."""
    async with pair(core=core.name) as (_, _, peer):
        with pytest.raises(pt.InvalidArgument, match="0 bytes"):
            peer.stream_out(b"")
        with pytest.raises(pt.MessageTooLarge, match="65,536"):
            peer.stream_out(bytes(65_537))
        with pytest.raises(pt.errors.WrongType):
            peer.stream_out(3)
        with pytest.raises(pt.InvalidState, match="enter its block"):
            await peer.stream_out(b"x").finished()
        async with peer.stream_out(bytes(65_536)) as out:
            with pytest.raises(pt.WouldBlock, match="one at a time"):
                async with peer.stream_out(b"x"):
                    pass
            out.cancel()
            async with peer.stream_out(b"x") as following:
                assert await following.finished(timeout=GUARD) is pt.StreamState.COMPLETED
        await peer.disconnect(timeout=GUARD)
        with pytest.raises(pt.NotConnected):
            async with peer.stream_out(b"x"):
                pass


async def test_a_cancelled_wait_for_a_datagram_loses_none(core):
    """As with messages: a time-out is no thief."""
    async with pair(core=core.name, udp_port=0) as (ada, bob, peer):
        waiting = asyncio.ensure_future(bob.receive_datagram())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert ada.send_datagram(peer, b"still there")
        assert (await bob.receive_datagram(timeout=GUARD)).data == b"still there"


def test_who_calls_after_a_broadcast_that_waits_for_room_is_behind_it():
    """Order is the order of calls: the place in line is taken by the call, and not when a task of
    its own begins."""

    async def main(net: sim.Network) -> list[bytes]:
        ada = await net.node("ada", discovery=False, send_queue_size=4)
        bob = await net.node("bob", discovery=False, receive_queue_bytes=1024, window=2048)
        peer = await ada.connect(bob.address)

        async def fill() -> None:
            with contextlib.suppress(pt.WouldBlock):
                while True:
                    peer.send_nowait(bytes(1000))

        calls = asyncio.gather(
            fill(), ada.broadcast(b"first", timeout=60), peer.send(b"second", timeout=60)
        )
        got: list[bytes] = []
        while len(got) < 2:
            data = (await bob.receive(timeout=60)).data
            got += [data] if len(data) < 1000 else []
        await calls
        return got

    assert sim.run(main) == [b"first", b"second"]
