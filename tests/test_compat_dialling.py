"""Compatibility with the original, when it dials: one program is one peer, in the end with one
connection, whoever dialled first, and after crashes; nothing is lost without its outcome, nothing
comes twice.

The three orders in which an original can dial are made by the network's losing a packet: it hears
us late, or we hear it late, or both are heard and the two dials cross. In the simulator, where time
is exact and free, and on real sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import classic
import pytest
from classic import ClassicPeer, Refused, SimulatedSockets, Sockets, serving
from kit.inside import engine_of
from kit.meeting import original
from kit.nodes import announcing
from kit.waiting import GUARD, until

import peertalk as pt
from peertalk import sim
from peertalk.protocol import classics
from peertalk.protocol.wire import Announcement, encode_announcement

ORDERS = ["it hears us late", "we hear it late", "both at once"]


class Meeting:
    """What both sides did, from outside: the events of the node, and what each application gave to
    be sent.

    The original's application sends on every connection that it has, now and then, as one does that
    tells everybody. The node broadcasts.
    """

    def __init__(self, node: Any) -> None:
        self.node = node
        self.old: Any = None
        self.events: list[Any] = []
        self.taken: list[pt.Message] = []
        self.told: list[bytes] = []
        self.broadcasts: list[tuple[int, list[Any]]] = []
        self.listening: list[asyncio.Future[None]] = []
        self.talking: list[asyncio.Future[None]] = []
        self.stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Meeting:
        stream = await self.stack.enter_async_context(self.node.events())
        self.listening = [asyncio.ensure_future(self.record(stream))]
        self.listening.append(asyncio.ensure_future(self.take()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.silence()
        for task in self.listening:
            task.cancel()
        await asyncio.gather(*self.listening, return_exceptions=True)
        await self.stack.aclose()

    async def record(self, stream: Any) -> None:
        async for event in stream:
            self.events.append(event)

    async def take(self) -> None:
        while True:
            self.taken.append(await self.node.receive())

    def talk(self, *calls: Awaitable[None]) -> None:
        self.talking += map(asyncio.ensure_future, calls)

    async def silence(self) -> None:
        """Nobody says anything more; what is under way arrives."""
        for task in self.talking:
            task.cancel()
        await asyncio.gather(*self.talking, return_exceptions=True)
        self.talking.clear()

    async def broadcast(self, interval: float) -> None:
        for number in itertools.count():
            result = await self.node.broadcast(b"node %d" % number)
            self.broadcasts.append((number, result.accepted))
            await asyncio.sleep(interval)

    async def tell(self, interval: float, links: Callable[[], list[classic.Link]]) -> None:
        """Every message once, on one of the connections after the other."""
        for number in itertools.count():
            chosen = links()
            message = b"original %d" % number
            if chosen:
                with contextlib.suppress(Refused):
                    self.old.peer.send(chosen[number % len(chosen)], message)
                    self.told.append(message)
            await asyncio.sleep(interval)

    def of(self, *kinds: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kinds)]

    def check(self, *, lives: int = 1) -> None:
        """One peer, found once and connected once in each of its lives; all that was accepted has
        arrived once or has another outcome."""
        old = self.old.peer
        assert [peer.id for peer in self.node.peers.values()] == [f"{old.host}:{old.tcp_port}"]
        peer = next(iter(self.node.peers.values()))
        assert (peer.name, peer.connected) == ("classic", True)
        assert [event.peer for event in self.of(pt.PeerFound)] == [peer]
        assert len(self.of(pt.PeerConnected)) == lives
        assert len(self.of(pt.PeerDisconnected)) == lives - 1
        assert all(message.peer is peer for message in self.taken)
        arrived = [message.data for message in self.taken]
        assert len(set(arrived)) == len(arrived), "twice"
        lost = {
            number for event in self.of(pt.Failed) for number in range(event.first, event.last + 1)
        }
        accepted = [number for number, peers in self.broadcasts if peers]
        assert all(peers in ([], [peer]) for _, peers in self.broadcasts)
        came = [int(message.split()[1]) for message in old.messages]
        assert came == sorted(set(came)), "twice, or out of order"
        missing = set(accepted) - set(came)
        assert len(missing) <= len(lost), f"accepted, and neither arrived nor told: {missing}"
        if lives == 1:
            assert not lost and not missing
            assert sorted(arrived) == sorted(self.told), "the original lost some of its own"
            assert old.abandoned == []


def late(order: str) -> dict[str, bool]:
    """What the classic peer does not hear at first, or nobody of it."""
    return {"deaf": order == "it hears us late", "mute": order == "we hear it late", "dials": True}


# --- in the simulator -----------------------------------------------------------------------------


async def meet(
    net: sim.Network, core: str, order: str, **options: Any
) -> tuple[Any, SimulatedSockets]:
    """A node, and a second later a classic peer, which dials in this order."""
    host = net.host("se")
    ada = await net.node("ada", core=core, **options)
    if order == "both at once":  # our dial leaves before its SYN can be here
        net.link("ada", "se", latency="150ms")
    await asyncio.sleep(1)
    peer = ClassicPeer(**late(order))
    return ada, SimulatedSockets(peer, host, lambda: net.clock.seconds)


@pytest.mark.parametrize("order", ORDERS)
def test_an_original_that_dials_is_one_peer_with_one_connection(c_core, order):
    """Two would cost it two of its 16 places, bring broadcasts twice, and leave its datagrams
    without a sender."""

    async def main(net: sim.Network) -> list[str]:
        ada, old = await meet(net, c_core.name, order)
        async with Meeting(ada) as meeting, serving(old):
            meeting.old = old
            meeting.talk(meeting.broadcast(0.5), meeting.tell(0.05, old.up))
            await until_virtual(lambda: meeting.of(pt.PeerConnected) or order == ORDERS[1])
            old.peer.deaf = old.peer.mute = False
            await asyncio.sleep(12)
            if order != ORDERS[1]:
                assert len(old.peer.links) == 2, "both, as long as it uses both"
            await meeting.silence()
            await asyncio.sleep(4)
            old.peer.send_datagram(ada.address[0], b"a datagram")
            datagram = await ada.receive_datagram(timeout=5)
            assert datagram.peer is next(iter(ada.peers.values()))
            meeting.check()
            assert ada.stats().links_open == 1
        return [link.known.name.decode() for link in old.peer.links]

    assert sim.run(main) == ["ada"], "the one that it dialled, where it has a name for us"


async def until_virtual(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(600):
        while not condition():
            await asyncio.sleep(0.01)


def test_who_dials_when_it_hears_us_is_not_dialled(c_core):
    """Retiring our own dial would make it drop what is in its queue: it gets the head start that it
    needs, behind an announcement of ours."""

    async def main(net: sim.Network) -> list[tuple[str, int]]:
        ada, old = await meet(net, c_core.name, "it hears us at once")
        async with serving(old):
            peer = await ada.wait_for("classic", timeout=5)
            await peer.send(b"at once")  # nor does this dial beside it
            await asyncio.sleep(30)
            assert old.peer.messages == [b"at once"]
        return [
            (kind, known.port) for kind, known, _ in old.peer.events if kind.endswith("connected")
        ]

    assert sim.run(main) == [("connected", 7354)]


@pytest.mark.parametrize("dials", [False, True])
def test_who_does_not_dial_is_dialled_after_its_head_start(c_core, dials):
    """0.2 s behind our announcement; to who has announced itself and is heard by nobody else."""

    async def main(net: sim.Network) -> float:
        host = net.host("se")
        ada = await net.node("ada", core=c_core.name)
        await asyncio.sleep(1)
        peer = ClassicPeer(dials=dials, deaf=dials)
        old = SimulatedSockets(peer, host, lambda: net.clock.seconds)
        async with serving(old):
            await ada.wait_for("classic", timeout=5)
            began = net.clock.seconds
            await old.link()
            return net.clock.seconds - began

    assert 0.2 <= sim.run(main) < 0.25


def test_a_crowd_of_classic_peers_is_connected_in_seconds(c_core):
    """Four at a time: the next one follows when one of them has greeted, not when it ends."""

    async def main(net: sim.Network) -> bool:
        hosts = [net.host(f"se{number}") for number in range(7)]
        ada = await net.node("ada", core=c_core.name, max_peers=16)
        await asyncio.sleep(1)
        olds = [
            SimulatedSockets(ClassicPeer(f"se {number}"), host, lambda: net.clock.seconds)
            for number, host in enumerate(hosts)
        ]
        async with serving(*olds):
            await asyncio.sleep(2)
            return [len(old.up()) for old in olds] == [1] * 7 and len(ada.peers) == 7

    assert sim.run(main)


def test_hearing_a_classic_peer_costs_the_same_in_a_crowd(c_core):
    """Each announcement looked at all who waited to be dialled and at all who were known: a flood
    of forged ones held up every message, 64 packets a turn."""

    async def main(net: sim.Network) -> list[int]:
        ada = await net.node("ada", core=c_core.name, max_peers=400)
        finder, core = engine_of(ada).finder, engine_of(ada).core
        crowd = [
            (encode_announcement(core, Announcement(1, f"{host}-{port}", port)), (host, 7353))
            for host in (f"10.1.0.{number}" for number in range(1, 21))
            for port in range(7354, 7374)
        ]

        def hear(packets: list[tuple[bytes, tuple[str, int]]]) -> None:
            for packet, source in packets:
                finder.take(packet, source)

        hear(crowd[:20])
        few = work_of(lambda: hear(crowd[:20]))
        hear(crowd[20:])
        assert len(ada.peers) == 400
        return [few, work_of(lambda: hear(crowd[:20]))]

    few, many = sim.run(main)
    assert many < 2 * few


def work_of(function: Callable[[], Any]) -> int:
    """Calls of Python functions, and starts of generators, that a call makes."""
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


class Program:
    """A program of the original on one host, which can crash and start again at its port."""

    def __init__(self, net: sim.Network, **options: Any) -> None:
        self.net, self.options = net, options
        self.host = net.host("se")
        self.stack = contextlib.AsyncExitStack()
        self.lives: list[ClassicPeer] = []

    async def start(self, **more: Any) -> SimulatedSockets:
        peer = ClassicPeer(**{**self.options, **more})
        self.lives.append(peer)
        old = SimulatedSockets(peer, self.host, lambda: self.net.clock.seconds)
        await self.stack.enter_async_context(serving(old))
        return old

    async def crash(self, old: SimulatedSockets) -> None:
        """Killed: its system closes its sockets, and no word is said."""
        await self.stack.aclose()
        old.vanish()


@pytest.mark.parametrize("away", [0.5, 20.0])
@pytest.mark.parametrize("dials", [False, True])
def test_a_classic_peer_that_is_killed_and_started_again_is_connected_again(c_core, dials, away):
    """A program that only listens would never hear of us again; one that dials must not become a
    second peer."""

    async def main(net: sim.Network) -> int:
        program = Program(net, dials=dials)
        ada = await net.node("ada", core=c_core.name)
        async with Meeting(ada) as meeting:
            meeting.talk(meeting.broadcast(0.5))
            await asyncio.sleep(1)
            old = await program.start()
            await until_virtual(lambda: meeting.of(pt.PeerConnected))
            await asyncio.sleep(3)
            await program.crash(old)
            await asyncio.sleep(away)
            before = old.peer.messages
            meeting.old = old = await program.start()
            await until_virtual(lambda: len(meeting.of(pt.PeerConnected)) == 2)
            await asyncio.sleep(12)
            await meeting.silence()
            await asyncio.sleep(4)
            old.peer.messages[:0] = before
            meeting.check(lives=2)
        links = len(old.peer.links)
        await program.crash(old)
        return links

    assert sim.run(main) == 1


def test_a_classic_peer_that_was_full_is_dialled_again_when_it_announces_itself(c_core):
    """It accepts and closes; a place comes free, and nobody tells."""

    async def main(net: sim.Network) -> tuple[bool, bool]:
        program = Program(net, slots=2)  # the other one is ada's, as it was heard
        ada = await net.node("ada", core=c_core.name)
        old = await program.start()
        other = old.peer._admit(b"somebody", "10.9.9.9", 7354, 1e9)
        peer = await ada.wait_for("classic", timeout=5)
        await asyncio.sleep(25)
        before = peer.connected
        old.peer._free(other)
        await asyncio.sleep(11)
        connected = peer.connected, len(old.peer.links) == 1
        await program.crash(old)
        return before, *connected

    assert sim.run(main) == (False, True, True)


@pytest.mark.parametrize("who", ["it says DISCONNECT", "our application disconnects"])
def test_who_has_parted_is_left_alone(c_core, who):
    """It announces itself as before; dialling it each time would be no way to part."""

    async def main(net: sim.Network) -> tuple[int, bool, bool]:
        program = Program(net)
        ada = await net.node("ada", core=c_core.name)
        old = await program.start()
        peer = await ada.wait_for("classic", timeout=5)
        link = await old.link()
        await until_virtual(lambda: peer.connected)
        if who == "it says DISCONNECT":
            old.peer.disconnect(link)
        else:
            await peer.disconnect(timeout=5)
        await asyncio.sleep(60)
        apart = len(old.peer.links), peer.connected
        await peer.send(b"but who sends connects")
        await old.until(lambda: old.peer.messages)
        together = peer.connected
        await program.crash(old)
        return *apart, together

    assert sim.run(main) == (0, False, True)


async def both(net: sim.Network, core: str) -> tuple[Any, SimulatedSockets, Any, Any]:
    """A node and a classic peer, the connection that the node dialled, which is used, and the one
    that the classic peer dialled."""
    ada, old = await meet(net, core, "it hears us late")
    task = asyncio.ensure_future(old.serve())
    net_tasks.append(task)
    await ada.wait_for("classic", timeout=5)
    ours = await old.link()
    old.peer.pongs = False  # so that it stays as it is
    old.peer.deaf = False
    theirs = await old.until(
        lambda: next((link for link in old.peer.links if link.dialled and link.theirs), None)
    )
    await until_virtual(lambda: engine_of(ada).switchboard.classics.asides)
    return ada, old, ours, theirs


net_tasks: list[asyncio.Task[None]] = []


@pytest.mark.parametrize("ends", ["the one that is used", "the one that stands aside"])
def test_when_one_of_two_connections_ends_the_other_is_used_and_nobody_hears_of_it(c_core, ends):
    """The peer is connected as long as it has a connection; the application has one peer."""

    async def main(net: sim.Network) -> list[bytes]:
        ada, old, ours, theirs = await both(net, c_core.name)
        async with Meeting(ada) as meeting:
            (peer,) = ada.peers.values()
            await peer.send(b"first")
            await old.until(lambda: old.peer.messages)
            old.peer._close(ours if ends == "the one that is used" else theirs)
            await asyncio.sleep(0.1)
            assert peer.connected
            await peer.send(b"second")
            await old.until(lambda: len(old.peer.messages) == 2)
            assert not meeting.of(pt.PeerDisconnected, pt.Failed) and len(ada.peers) == 1
        net_tasks.pop().cancel()
        return old.peer.messages

    assert sim.run(main) == [b"first", b"second"]


@pytest.mark.parametrize("how", ["disconnect", "leave"])
def test_a_node_that_leaves_says_so_on_both_connections(c_core, how):
    """The original would keep the other one, with nobody behind it."""

    async def main(net: sim.Network) -> list[list[int]]:
        ada, old, *links = await both(net, c_core.name)
        if how == "disconnect":
            await next(iter(ada.peers.values())).disconnect(timeout=5)
        else:
            await ada.aclose(timeout=5)
        await old.until(lambda: all(link.closed for link in links))
        net_tasks.pop().cancel()
        if old.failure is not None:
            raise old.failure
        return [
            [frame.kind for frame in link.frames if frame.kind != classic.PING] for link in links
        ]

    assert sim.run(main) == [[classic.CAPABILITY, classic.DISCONNECT]] * 2


def test_a_connection_that_is_used_from_now_on_has_its_own_pressure_and_limit(c_core):
    """What was reported on the other is of another queue of the original's, and nobody takes it
    back there."""

    async def main(net: sim.Network) -> tuple[Any, Any]:
        ada, old, ours, theirs = await both(net, c_core.name)
        peer = next(iter(ada.peers.values()))
        old.peer.report(ours, buffer_pressure=90)
        old.peer.report(theirs, max_message=700)
        await until_virtual(lambda: peer.queue.pressure == 90)
        old.peer._close(ours)
        await until_virtual(lambda: peer.queue.pressure == 0)
        for size in (700, 701):
            await peer.send(bytes(size))
        await old.until(lambda: len(old.peer.messages) == 2)
        net_tasks.pop().cancel()
        return [bool(frame.flags) for frame in theirs.messages], list(map(len, old.peer.messages))

    flags, sizes = sim.run(main)
    assert sizes == [700, 701] and flags == [False, True, True, True]


def test_two_programs_on_one_host_are_two_peers_whoever_calls(c_core):
    """Whose a call is can then not be known; nobody gets another one's messages."""

    async def main(net: sim.Network) -> list[bytes]:
        host = net.host("se")
        ada = await net.node("ada", core=c_core.name)
        one, other = (
            SimulatedSockets(
                ClassicPeer(name, tcp_port=port, udp_port=port + 1, discovery_port=discovery),
                host,
                lambda: net.clock.seconds,
                discovery=False,
            )
            for name, port, discovery in (("one", 7354, 0), ("other", 8354, 0))
        )
        shout = host.datagram(9000)
        for old in (one, other):
            packet = classic.Packet(classic.ANNOUNCE, old.peer.tcp_port, old.peer.name)
            shout.sendto(classic.encode_discovery(packet), ("10.255.255.255", 7353))
        async with serving(one, other):
            await until_virtual(lambda: sum(peer.connected for peer in ada.peers.values()) == 2)
            link = one.peer.call(ada.address, one.now())
            await one.until(lambda: link.theirs)
            one.peer.send(link, b"who am I?")
            message = await ada.receive(timeout=5)
            assert message.peer.name == "" and len(ada.peers) == 3
            for name in ("one", "other"):
                await ada.peers[name].send(name.encode())
            await one.until(lambda: one.peer.messages)
            await other.until(lambda: other.peer.messages)
            return one.peer.messages + other.peer.messages

    assert sim.run(main) == [b"one", b"other"]


def test_a_caller_whose_former_life_lost_its_connection_is_named_by_its_next_announcement(c_core):
    """A Mac that crashed says nothing; it is back, and has called, before its old connection is
    known to be dead. Then nobody can know whose the call is, until it announces itself."""

    async def main(net: sim.Network) -> list[str]:
        program = Program(net, dials=True)
        ada = await net.node("ada", core=c_core.name, ping_interval=0, link_timeout=8.0)
        old = await program.start()
        former = await ada.wait_for("classic", timeout=5)
        await until_virtual(lambda: former.connected)
        half_open = list(old._sockets.values())
        old._sockets.clear()
        await program.crash(old)
        old = await program.start(mute=True)
        await old.until(lambda: any(link.theirs for link in old.peer.links))
        await asyncio.sleep(1)
        assert [peer.connected for peer in ada.peers.values()] == [True, True]
        for connection in half_open:
            connection.close()
        await until_virtual(lambda: not former.connected)
        old.peer.mute = False
        await asyncio.sleep(11)
        (peer,) = ada.peers.values()
        assert peer is not former
        assert peer.connected and peer.id == f"{old.peer.host}:{old.peer.tcp_port}"
        await peer.send(b"to you")
        await old.until(lambda: old.peer.messages)
        await program.crash(old)
        assert len(old.peer.links) <= 1
        return [message.decode() for message in old.peer.messages]

    assert sim.run(main) == ["to you"]


# --- on real sockets ------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that stands aside is shut after little: seconds of real time are dear."""
    monkeypatch.setattr(classics, "QUIET_TIME", 0.3)
    monkeypatch.setattr(classics, "LOOK_INTERVAL", 0.02)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("order", ORDERS)
async def test_on_real_sockets_too_an_original_that_dials_is_one_peer(
    core, free_port, monkeypatch, order
):
    """The same three orders."""
    if order == "both at once":
        monkeypatch.setattr(classics, "HEAD_START", 0.0)
    port = free_port()
    options = announcing(port, core=core.name, announce_interval=0.5, udp_port=free_port())
    async with (
        pt.Node("ada", **options) as ada,
        Meeting(ada) as meeting,
        original(
            discovery=True, discovery_port=port, udp_port=options["udp_port"], **late(order)
        ) as old,
    ):
        meeting.old = old
        meeting.talk(meeting.broadcast(0.1), meeting.tell(0.01, old.up))
        if order == "it hears us late":
            await until(lambda: meeting.of(pt.PeerConnected))
        old.peer.deaf = False
        dialled = await old.until(
            lambda: next((link for link in old.peer.links if link.dialled and link.theirs), None)
        )
        old.peer.mute = False
        if order == "we hear it late":
            old.peer._announce(old.now())
            await until(lambda: meeting.of(pt.PeerChanged))
        await until(lambda: len(meeting.taken) > 30)
        await meeting.silence()
        await until(lambda: old.peer.links == [dialled] and ada.stats().links_open == 1)
        await until(lambda: len(meeting.taken) == len(meeting.told))
        sent = [number for number, peers in meeting.broadcasts if peers]
        await old.until(lambda: len(old.peer.messages) == len(sent))
        meeting.check()
        old.peer.send_datagram("127.0.0.1", b"a datagram")
        datagram = await ada.receive_datagram(timeout=GUARD)
        assert datagram.peer is next(iter(ada.peers.values()))


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("dials", [False, True])
async def test_on_real_sockets_too_one_that_was_killed_is_connected_again(free_port, dials):
    """Its kernel closes its sockets; it listens at the same port again."""
    port, tcp_port = free_port(), free_port()
    life = {"discovery_port": port, "tcp_port": tcp_port, "udp_port": 0, "dials": dials}
    async with (
        pt.Node("ada", **announcing(port, announce_interval=0.5)) as ada,
        Meeting(ada) as meeting,
    ):
        for number in range(3):
            with Sockets(ClassicPeer(**life)) as old:
                async with serving(old):
                    await until(lambda number=number: len(meeting.of(pt.PeerConnected)) > number)
                    peer = await ada.wait_for("classic", timeout=GUARD)
                    await peer.send(b"%d" % number)
                    assert await old.message() == b"%d" % number
            await until(lambda peer=peer: not peer.connected)
        assert len(meeting.of(pt.PeerFound)) == 1 and list(ada.peers.values()) == [peer]
