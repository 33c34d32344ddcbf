"""Datagrams: whom they reach, whose they are taken for, what a stranger can do with them, and that
everything is counted.

Nodes live on loopback or in the simulator; the socket of a stranger is one of the test's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

import pytest
from kit.inside import datagram_port, engine_of
from kit.waiting import GUARD, until

import peertalk as pt
from peertalk import sim
from peertalk._core import load
from peertalk._core.values import ANNOUNCE, GOODBYE
from peertalk._numbers import DATAGRAM_MAX_PAYLOAD, ERR_MESSAGE_TOO_LARGE
from peertalk.protocol.datagrams import UNKNOWN_TIME, WAITING_MAX
from peertalk.protocol.statistics import LinkTotals
from peertalk.protocol.wire import Announcement, encode_announcement
from peertalk.runtime import datagrams
from peertalk.runtime.datagrams import Datagrams
from peertalk.runtime.world import World

CORE = load("reference")


def loopback(**more):
    return {"bind": "127.0.0.1", "port": 0, "udp_port": 0, "discovery": False, **more}


@contextlib.asynccontextmanager
async def pair(**options):
    """Two connected nodes, and each as the other sees it."""
    async with (
        pt.Node("ada", **loopback(**options)) as ada,
        pt.Node("bob", **loopback(**options)) as bob,
    ):
        at_ada = await ada.connect(bob.address, timeout=GUARD)
        await at_ada.send(b"")
        yield ada, bob, at_ada, (await bob.receive(timeout=GUARD)).peer


# Between peertalk nodes


async def test_datagrams_of_0_to_1392_bytes_arrive_whole_with_their_sender(core):
    """The promise: small messages without a queue, both ways, several nodes on one host."""
    async with pair(core=core.name) as (ada, bob, at_ada, at_bob):
        for size in (0, 1, DATAGRAM_MAX_PAYLOAD):
            assert ada.send_datagram(at_ada, b"x" * size) is True
            got = await bob.receive_datagram(timeout=GUARD)
            assert got.peer is at_bob and got.data == b"x" * size and len(got) == size and got
        assert bob.send_datagram(at_bob, "caf\u00e9") and bob.send_datagram(
            at_bob, memoryview(b"view")
        )
        stream = ada.datagrams()
        assert [(await anext(stream)).text for _ in range(2)] == ["caf\u00e9", "view"]
        assert (ada.stats().datagrams_sent, ada.stats().datagrams_received) == (3, 2)
        assert (bob.stats().datagrams_sent, bob.stats().datagrams_received) == (2, 3)


async def test_what_cannot_be_a_datagram_is_refused_with_the_limit_and_the_peer(core):
    """Nothing is cut silently."""
    async with pair(core=core.name) as (ada, _bob, at_ada, at_bob):
        with pytest.raises(
            pt.MessageTooLarge, match=r"1,393 bytes to peer 'bob': the limit is 1,392"
        ) as caught:
            ada.send_datagram(at_ada, bytes(DATAGRAM_MAX_PAYLOAD + 1))
        assert caught.value.peer == "bob" and caught.value.code == ERR_MESSAGE_TOO_LARGE
        with pytest.raises(pt.errors.WrongType):
            ada.send_datagram(at_ada, 7)
        with pytest.raises(pt.PeerNotFound, match="'ada' is not known"):
            ada.send_datagram(at_bob, b"somebody else's peer")
        assert ada.stats().datagrams_sent == 0
    with pytest.raises(pt.InvalidState):
        ada.send_datagram(at_ada, b"closed")


async def test_a_peer_that_was_only_heard_can_be_sent_to_without_a_connection(free_port):
    """Discovery says the port: no connection is made for what may be lost."""
    port = free_port()
    options = {"bind": "127.0.0.1", "port": 0, "udp_port": 0, "discovery_port": port}
    async with (
        pt.Node("ada", **options) as ada,
        pt.Node("bob", **options) as bob,
        pt.Node("eve", **options) as eve,
    ):
        at_ada = await ada.wait_for("bob", timeout=GUARD)
        await eve.wait_for("bob", timeout=GUARD)
        at_bob = await bob.wait_for("ada", timeout=GUARD)
        await bob.wait_for("eve", timeout=GUARD)
        assert ada.send_datagram(at_ada, b"hello")
        got = await bob.receive_datagram(timeout=GUARD)
        assert (
            got.peer is at_bob
            and got.data == b"hello"
            and not at_bob.connected
            and not at_ada.connected
        )


async def test_a_peer_is_known_at_each_address_at_which_it_was_heard(free_port):
    """A host on two networks answers from whichever is nearer."""
    port = free_port()
    async with pt.Node("ada", bind="127.0.0.1", port=0, udp_port=0, discovery_port=port) as ada:
        fast = free_port()
        announcement = encode_announcement(
            CORE, Announcement(ANNOUNCE, "bob", 9, instance=b"bob's id", datagram_port=fast)
        )
        discovery = engine_of(ada).finder.discovery
        target = ("127.0.0.1", datagram_port(ada))
        for host in ("127.0.0.2", "127.0.0.3"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bob:
                bob.bind((host, fast))
                bob.sendto(announcement, ("127.0.0.1", port))
                peer = await ada.wait_for("bob", timeout=GUARD)
                await until(
                    lambda peer=peer, host=host: (
                        host in [each for each, _ in discovery.addresses(peer._remote.key)]
                    )
                )
                bob.sendto(CORE.encode_datagram(0, host.encode()), target)
                got = await ada.receive_datagram(timeout=GUARD)
                assert got.peer is peer and got.text == host


async def test_a_peer_that_announced_no_port_is_refused_before_a_byte_is_sent(free_port):
    """A peertalk peer without datagrams: a guess would reach another node on its host."""
    port = free_port()
    async with pt.Node("ada", bind="127.0.0.1", port=0, udp_port=0, discovery_port=port) as ada:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(
                encode_announcement(CORE, Announcement(ANNOUNCE, "mute", 9, instance=b"mutemute")),
                ("127.0.0.1", port),
            )
        mute = await ada.wait_for("mute", timeout=GUARD)
        with pytest.raises(
            pt.errors.NotSupported, match="'mute' has announced no datagram port"
        ) as caught:
            ada.send_datagram(mute, b"x")
        assert caught.value.peer == "mute" and ada.stats().datagrams_sent == 0


async def test_waiting_for_a_datagram_ends_with_its_time_and_with_the_node(core):
    """Every waiter is woken."""
    async with pair(core=core.name) as (_ada, bob, _at_ada, _at_bob):
        with pytest.raises(pt.Timeout, match="no datagram came within"):
            await bob.receive_datagram(timeout=0.01)
        waiting = asyncio.ensure_future(bob.receive_datagram())
        iterating = asyncio.ensure_future(anext(bob.datagrams(), "ended"))
        await asyncio.sleep(0)
        await bob.aclose()
        with pytest.raises(pt.InvalidState):
            await waiting
        assert await iterating == "ended"


async def test_what_is_not_taken_gives_way_to_what_is_newer_and_is_counted(core):
    """The newest say most about now, and memory has a bound."""
    more = 10
    async with pair(core=core.name) as (ada, bob, at_ada, _at_bob):
        for number in range(WAITING_MAX + more):
            ada.send_datagram(at_ada, number.to_bytes(2, "big"))
            await until(lambda number=number: bob.stats().datagrams_received == number + 1)
        assert bob.stats().datagrams_overflowed == more
        got = [
            int.from_bytes((await bob.receive_datagram(timeout=GUARD)).data, "big")
            for _ in range(WAITING_MAX)
        ]
        assert got == list(range(more, WAITING_MAX + more))


# Ports


async def test_the_default_port_is_7355_and_gives_way_but_an_explicit_one_does_not(
    free_port, monkeypatch
):
    """Several nodes on one host need no options; who names a port means it."""
    assert pt.Config().udp_port == 7355
    port = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", port))
        monkeypatch.setattr(
            pt.Config,
            "explain",
            lambda self, real=pt.Config.explain: {**real(self), "udp_port": (port, "default")},
        )
        async with pt.Node("ada", **loopback(udp_port=port)) as ada:
            assert datagram_port(ada) not in (0, port)
        monkeypatch.undo()
        with pytest.raises(
            pt.errors.AddressInUse,
            match=rf"UDP port {port} on 127.0.0.1 is taken.*Config.udp_port "
            r"\(PEERTALK_UDP_PORT\), 0 for any",
        ):
            async with pt.Node("ada", **loopback(udp_port=port)):
                pass
    monkeypatch.setenv("PEERTALK_UDP_PORT", str(port))
    async with pt.Node("ada", bind="127.0.0.1", port=0, discovery=False) as ada:
        assert datagram_port(ada) == port


# Classic peers, scripted: bytes as the original's, no instance id


@contextlib.asynccontextmanager
async def with_classic(free_port, *names):
    """A node and classic peers at 127.0.0.2 that announce themselves and answer no dial; gives the
    node and a socket on its datagram port there."""
    port, fast = free_port(), free_port()
    async with pt.Node("ada", bind="127.0.0.1", port=0, udp_port=fast, discovery_port=port) as ada:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as classic:
            classic.bind(("127.0.0.2", fast))
            classic.setblocking(False)
            for number, name in enumerate(names):
                classic.sendto(
                    encode_announcement(CORE, Announcement(ANNOUNCE, name, 9 + number)),
                    ("127.0.0.1", port),
                )
                await ada.wait_for(name, timeout=GUARD)
            yield ada, classic, fast


async def test_a_classic_peer_is_reached_at_our_own_port_number_and_known_by_its_address(free_port):
    """Rule 12: everybody of the original uses one port; and it is known though it is not connected
    and its port field is wrong."""
    async with with_classic(free_port, "mac") as (ada, classic, fast):
        mac = ada.peers["mac"]
        assert ada.send_datagram(mac, b"x=1")
        packet = await asyncio.get_running_loop().sock_recv(classic, 2048)
        assert packet == b"PTUD" + fast.to_bytes(2, "big") + b"\0\x03x=1"
        classic.sendto(b"PTUD\xff\xff\0\x02hi and more", ("127.0.0.1", fast))
        got = await ada.receive_datagram(timeout=GUARD)
        assert got.peer is mac and got.data == b"hi"


async def test_two_classic_peers_at_one_address_are_not_guessed_between(free_port):
    """A message that is taken for somebody else's is worse than one that is lost."""
    async with with_classic(free_port, "one", "two") as (ada, classic, fast):
        classic.sendto(CORE.encode_datagram(fast, b"whose?"), ("127.0.0.1", fast))
        await until(lambda: ada.stats().datagrams_ignored == 1)
        assert ada.stats().datagrams_received == 0


async def test_a_peer_that_left_is_a_stranger_again(free_port):
    """What is kept of peers ends with them."""
    async with with_classic(free_port, "mac") as (ada, classic, fast):
        mac, port = ada.peers["mac"], ada.config.discovery_port
        classic.sendto(
            encode_announcement(CORE, Announcement(GOODBYE, "mac", 9)), ("127.0.0.1", port)
        )
        await until(lambda: not ada.peers)
        classic.sendto(CORE.encode_datagram(fast, b"still me"), ("127.0.0.1", fast))
        await until(lambda: ada.stats().datagrams_ignored == 1)
        with pytest.raises(pt.PeerNotFound):
            ada.send_datagram(mac, b"x")
        assert not engine_of(ada).mailbox._senders and not engine_of(ada).mailbox._places


# Strangers and hostile ones


async def test_what_is_malformed_or_too_long_or_of_nobody_is_counted_and_harms_nobody(core):
    """Anybody on the network can write to the port."""
    async with pair(core=core.name) as (ada, bob, at_ada, _at_bob):
        target = ("127.0.0.1", datagram_port(bob))
        good = CORE.encode_datagram(1, b"good")
        long = [b"PTUD\0\0\xff\xff" + bytes(1392), good + bytes(1400), bytes(2048), bytes(60_000)]
        bad = [b"", b"P", b"PTUD\0\0\0", b"PTUX" + good[4:], good[:-1], *long]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.1", 0))
            stranger.sendto(good, target)
            await until(lambda: bob.stats().datagrams_ignored == 1)
        for number, packet in enumerate(bad, 2):
            engine_of(ada).world.send_to(engine_of(ada).datagrams.socket, packet, target)
            await until(lambda number=number: bob.stats().datagrams_ignored == number)
        assert bob.stats().datagrams_received == 0
        assert (
            ada.send_datagram(at_ada, b"still here")
            and (await bob.receive_datagram(timeout=GUARD)).data == b"still here"
        )


class MadeUp:
    """What Datagrams needs of an engine and its world; datagrams come from a list."""

    def __init__(self):
        self.world = self
        self.core = CORE
        self.totals = LinkTotals()
        self.coming = []
        self.now = 0.0
        self.timers = []

    def clock(self):
        return self.now

    def after(self, delay, action):
        self.timers.append((delay, action))
        return self.timers[-1]

    def hear(self, listener):
        return self.coming.pop(0) if self.coming else None


def test_one_turn_reads_so_many_and_leaves_the_rest():
    """A flood must not keep messages and timers waiting."""
    engine = MadeUp()
    fast = Datagrams(engine)
    engine.coming = [(b"junk", ("10.0.0.9", 9))] * 1000
    fast._hear()
    assert (
        engine.totals.datagrams_ignored == datagrams.PER_TURN
        and len(engine.coming) == 1000 - datagrams.PER_TURN
    )


def test_one_timer_counts_for_all_that_is_kept_of_strangers():
    """They may send thousands; the timer is there again for what came later."""
    engine = MadeUp()
    fast = Datagrams(engine)
    for now, delays in ((0.0, [UNKNOWN_TIME]), (0.05, [UNKNOWN_TIME])):
        engine.now = now
        engine.coming = [(CORE.encode_datagram(1, b"x"), ("10.0.0.9", 9))] * 2
        fast._hear()
        assert [delay for delay, _ in engine.timers] == delays
    for now, left in ((UNKNOWN_TIME, 2), (2 * UNKNOWN_TIME, 0)):
        engine.now = now
        engine.timers.pop()[1]()
        assert engine.totals.datagrams_ignored == 4 - left and bool(engine.timers) == bool(left)


async def test_what_the_system_does_not_take_is_told_and_counted(core, monkeypatch, caplog):
    """A full socket or a missing route is no exception, and no silence either: one that lasts is
    two lines of log, however many are sent."""
    monkeypatch.setattr("peertalk.runtime.log.SETTLED", 0.01)
    async with pair(core=core.name) as (ada, _bob, at_ada, _at_bob):
        with monkeypatch.context() as patch:
            patch.setattr(
                World,
                "send_to",
                lambda self, sender, packet, address, real=World.send_to: real(
                    self, sender, packet, ("127.0.0.1", 0)
                ),
            )
            assert [ada.send_datagram(at_ada, b"nowhere") for _ in range(50)] == [False] * 50
        assert (ada.stats().datagrams_sent, ada.stats().datagrams_refused) == (0, 50)
        (begun,) = caplog.messages
        assert f"sending datagrams fails: the system refuses those to peer {at_ada.name!r}" in begun
        while len(caplog.messages) == 1:
            assert ada.send_datagram(at_ada, b"there")
            await asyncio.sleep(0.01)
        assert "sending datagrams works again; 50 failed in " in caplog.messages[1]
        assert len(caplog.messages) == 2


async def test_a_burst_that_fills_the_socket_is_no_trouble(core, monkeypatch, caplog):
    """Who sends faster than the wire hears that from send_datagram, and the log need not."""
    async with pair(core=core.name) as (ada, _bob, at_ada, _at_bob):
        monkeypatch.setattr(World, "send_to", lambda *_: errno.EAGAIN)
        assert ada.send_datagram(at_ada, b"too many") is False
        assert ada.stats().datagrams_refused == 1 and not caplog.messages


# On a simulated network


@pytest.mark.parametrize("platform", ["mactcp", "opentransport"])
def test_on_a_bad_wire_each_datagram_arrives_never_once_or_twice_and_none_is_made_up(
    c_core, platform
):
    """Loss, doubles and overtaking are what the name says, and the counters agree with the
    wire's."""

    async def main(net):
        a, b = [await net.node(name, platform=platform, core=c_core.name) for name in ("a", "b")]
        at_a = await a.wait_for("b", timeout=30)
        at_b = await b.wait_for("a", timeout=30)
        net.link(
            a,
            b,
            latency="5ms",
            jitter="5ms",
            loss=0.2,
            duplicate=0.2,
            reorder=0.2,
            reorder_by="20ms",
        )
        sent = [number.to_bytes(2, "big") * 50 for number in range(200)]
        for payload in sent:
            assert a.send_datagram(at_a, payload)
            await asyncio.sleep(0.001)
        await asyncio.sleep(1)
        got = []
        for _ in range(b.stats().datagrams_received):
            datagram = await b.receive_datagram(timeout=1)
            assert datagram.peer is at_b
            got.append(datagram.data)
        assert set(got) < set(sent) and max(map(got.count, sent)) == 2 and got != sorted(got)
        assert a.stats().datagrams_sent == 200 and b.stats().datagrams_ignored == 0
        assert not at_a.connected
        return net.counts(a, b).lost, len(got), net.trace.hash

    first = sim.run(main, seed=11)
    assert first == sim.run(main, seed=11) and first[0] > 0


# Who is about to be known


@pytest.mark.parametrize("gap", [0.0, 0.05, 0.15, 0.3])
def test_the_first_datagram_after_a_peer_was_found_arrives_whoever_started_first(c_core, gap):
    """Who has found a peer writes to it, and must not have to know that it is not known there."""

    async def main(net):
        async def greet(node, other):
            node.send_datagram(await node.wait_for(other, timeout=60), node.name)

        a = await net.node("a", core=c_core.name)
        greeting = asyncio.create_task(greet(a, "b"))
        await asyncio.sleep(gap)
        b = await net.node("b", core=c_core.name)
        await greet(b, "a")
        await greeting
        got = [await node.receive_datagram(timeout=60) for node in (a, b)]
        assert [(each.text, each.peer.name) for each in got] == [("b", "b"), ("a", "a")]
        assert [node.stats().datagrams_ignored for node in (a, b)] == [0, 0]

    for seed in range(5):
        sim.run(main, seed=seed, preset="lan")


async def test_the_first_datagram_of_each_of_many_nodes_of_one_host_arrives(free_port):
    """Here several share the port of discovery, and each must hear the answers to its own
    question."""
    port = free_port()
    options = {"bind": "127.0.0.1", "port": 0, "udp_port": 0, "discovery_port": port}
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for number in range(8):
            node = await stack.enter_async_context(pt.Node(f"n{number}", **options))
            for other in nodes:
                assert node.send_datagram(await node.wait_for(other.name, timeout=GUARD), b"new")
                peer = await other.wait_for(node.name, timeout=GUARD)
                assert other.send_datagram(peer, b"welcome")
            nodes.append(node)
        for number, node in enumerate(nodes):
            got = [await node.receive_datagram(timeout=GUARD) for _ in range(len(nodes) - 1)]
            assert {each.peer.name for each in got} == {each.name for each in nodes} - {node.name}
            assert [each.data for each in got].count(b"welcome") == number
            assert node.stats().datagrams_ignored == 0


def test_in_a_large_room_each_of_those_whom_a_newcomer_has_not_heard_can_greet_it(rounds, c_core):
    """Few of them answer its question; the others are heard in ten seconds, and some have something
    to say before that."""
    count = rounds(36, 60)

    async def main(net):
        options = {"core": c_core.name, "max_peers": count + 1, "pool_bytes": 1 << 20}
        nodes = [await net.node(f"n{number}", **options) for number in range(count)]
        await asyncio.sleep(15)
        late = await net.node("late", **options)

        async def greet(node):
            assert node.send_datagram(await node.wait_for("late", timeout=60), node.name)

        await asyncio.gather(*map(greet, nodes))
        got = [await late.receive_datagram(timeout=60) for _ in nodes]
        assert {each.text for each in got} == {node.name for node in nodes}
        assert all(each.peer.name == each.text for each in got)
        assert net.clock.seconds < 16

    sim.run(main)
