"""The front door for asyncio: who is found, what is accepted arrives once and in order, and whoever
waits is told.

Nodes live on loopback, each test on a discovery port of its own. Times given as `timeout` are
guards against hanging, never measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
import weakref

import pytest
from kit.inside import engine_of, is_closed
from kit.nodes import announcing, loopback, numbered, pair, received
from kit.waiting import GUARD, next_event

import peertalk as pt
from peertalk import sim
from peertalk._core import load
from peertalk._core.values import ANNOUNCE, QUERY
from peertalk.config import settings
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
    async with pair(send_queue_size=10, receive_queue_bytes=1024) as (ada, _, peer):
        with contextlib.suppress(pt.Timeout):
            while True:
                await peer.send(bytes(8000), timeout=0.05)
        closing = asyncio.create_task(ada.aclose(timeout=GUARD))
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert is_closed(ada) and ada.stats().messages_failed > 0


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


def test_a_forgotten_node_is_closed_though_its_warning_is_an_error(fork_python):
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
    process = fork_python("-W", "error", "-c", script)
    out, err = process.communicate(timeout=GUARD)
    assert out.strip() == "closed" and "node 'ada' was not closed" in err


async def test_a_node_that_is_collected_on_another_thread_is_closed_by_its_own_loop():
    """The collector runs on whichever thread allocates: that one must not touch the engine."""
    node = await pt.Node("ada", **loopback()).start()
    transport, there = engine_of(node), []
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
    assert is_closed(ada) and is_closed(bob)


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
# tests/doors/test_streaming.py


@pytest.mark.parametrize("bound", ["minimum", "maximum"])
async def test_a_node_lives_with_each_setting_at_its_bounds(core, bound):
    """What the configuration accepts, and the guide says, no part of a node may refuse."""
    for each in settings():
        value = getattr(each, bound)
        if value is None or each.name.endswith("port"):
            continue
        if each.name == "workers" and core.name == "reference":
            continue  # which has none, and says so
        more = {"announce_interval": 0.1} if each.name == "peer_timeout" else {}
        options = loopback(core=core.name, **more) | {each.name: value}
        async with pt.Node("ada", **options) as ada, pt.Node("bob", **options) as bob:
            peer = await ada.connect(bob.address, timeout=GUARD)
            await peer.send(b"x")
            assert (await bob.receive(timeout=GUARD)).data == b"x", each.name


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
