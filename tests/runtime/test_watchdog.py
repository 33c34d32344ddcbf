"""Links that die, links that only seem to, and connections that come back.

The first half has a made-up engine whose clock is a number; the second half real nodes, in the
simulator or on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import types

import pytest
from kit.inside import engine_of
from test_faults import line_of, loopback, until

import peertalk as pt
from peertalk import errors, sim
from peertalk._core.values import READ
from peertalk.config import Config
from peertalk.protocol.connections import Connection, State
from peertalk.protocol.events import PeerFrozen, PeerThawed
from peertalk.protocol.peer import Peer
from peertalk.runtime.log import NodeLog
from peertalk.runtime.watchdog import Watchdog

TIMEOUT = 15.0


class MadeUpLink:
    """Counts as it is told to."""

    def __init__(self):
        self.paused = False
        self.counts = {"frames_received": 1, "slots_pending": 0}
        self.write(100)

    def write(self, position):
        """So many bytes of frames have been accepted, and taken by the system."""
        self.counts |= {"payload_bytes_sent": position - 12, "frames_sent": 1}
        self.counts["bytes_sent"] = position

    def statistics(self):
        return types.SimpleNamespace(**self.counts)


class MadeUpEngine:
    """What a Watchdog needs of an engine and its world, and those that it tells."""

    def __init__(self, **options):
        self.config = Config(name="ada", link_timeout=TIMEOUT, **options)
        self.now = 100.0
        self.world = self
        self.closing = False
        self.timers, self.emitted, self.ended, self.unhoused = [], [], [], []
        self.silent, self.waiting, self.looks, self.foreign = {}, {}, 0, set()
        self.left_unread = {}
        self.connections = types.SimpleNamespace(by_tag={})
        self.changes, self.watched = 0, {}
        self.wakes = 0
        self.log = NodeLog("peertalk.network", "ada")
        self.watchdog = Watchdog(self, self.end, self.unhouse, self.network_changed)

    # the world

    def clock(self):
        return self.now

    def silent_for(self, connection):
        self.looks += 1
        return self.silent.get(connection.number, 0.0)

    def unacknowledged(self, connection):
        return self.waiting.get(connection.number, 0)

    def unread(self, connection):
        return self.left_unread.get(connection.tag, 0)

    def abandon(self, connection):
        connection.abandoned = True

    def owns(self, address):
        return address not in self.foreign

    def network_news(self):
        return types.SimpleNamespace(closed=False, left=0)

    def drop_news(self, news):
        news.left = 0

    # the engine

    def after(self, delay, action):
        self.timers.append((self.now + delay, action))
        return self.timers[-1]

    def cancel(self, timer):
        if timer in self.timers:
            self.timers.remove(timer)

    def emit(self, event, *fields):
        self.emitted.append(event(*fields))

    def watch(self, watched, interest, ready):
        assert interest == READ
        self.watched[watched.__class__] = ready
        return ready

    def unwatch(self, watched):
        self.watched.clear()

    def close_socket(self, closing):
        closing.closed = True

    # who is told

    def end(self, connection, error):
        self.ended.append((connection.tag, error))
        connection.state = State.CLOSED
        del self.connections.by_tag[connection.tag]
        self.watchdog.ended(connection)

    def unhouse(self, connection, error):
        self.unhoused.append((connection.tag, error))
        connection.state = State.CLOSED
        del self.connections.by_tag[connection.tag]
        self.watchdog.ended(connection)

    def network_changed(self):
        self.changes += 1

    # the test

    def connect(self, tag, own="10.0.0.200"):
        peer = Peer((f"10.0.0.{tag}", 7354), name=f"peer{tag}")
        connection = Connection(tag, peer.key, dialled=True, now=self.now, peer=peer)
        connection.state = State.OPEN
        connection.link = MadeUpLink()
        connection.socket = types.SimpleNamespace(
            number=tag, abandoned=False, getsockname=lambda: (own, 7354)
        )
        self.connections.by_tag[tag] = connection
        self.watchdog.opened(connection)
        return connection

    def pass_time(self, seconds):
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now = max(self.now, first[0])
            self.wakes += 1
            first[1]()
        self.now = end

    def pass_one(self):
        """The next timer."""
        first = min(self.timers, key=lambda timer: timer[0])
        self.timers.remove(first)
        self.now = max(self.now, first[0])
        first[1]()

    def block(self, seconds):
        """Nothing runs for so long."""
        self.now += seconds


def test_a_dead_link_is_told_within_a_second_of_the_time_out_and_a_live_one_never():
    """Everything that is accepted meanwhile is lost. One that is acknowledged, be it by the system
    of a program that sleeps, is not dead."""
    engine = MadeUpEngine()
    dead, alive = engine.connect(1), engine.connect(2)
    engine.pass_time(7.0)
    since = engine.now
    while not engine.ended and engine.now < since + 60:
        engine.pass_time(0.1)
        engine.silent[1] = engine.now - since
        engine.silent[2] = (engine.now - since) % 14.0
    [(tag, error)] = engine.ended
    assert tag == dead.tag and TIMEOUT <= engine.now - since <= TIMEOUT + 1.0
    assert isinstance(error, errors.ConnectionClosed) and error.peer == "peer1"
    assert "nothing for 16 s (Config.link_timeout)" in str(error)
    assert dead.socket.abandoned and not alive.socket.abandoned


def test_a_thousand_idle_links_are_looked_at_once_in_a_time_out():
    """Asking each of them every second would wake a sleeping machine for nothing."""
    engine = MadeUpEngine()
    for tag in range(1000):
        engine.connect(tag)
        engine.pass_time(0.001)
    engine.pass_time(10 * TIMEOUT)
    assert engine.looks <= 1000 * 11
    assert engine.wakes <= 10 * TIMEOUT / 0.4
    for connection in list(engine.connections.by_tag.values()):
        engine.end(connection, None)
    engine.pass_time(TIMEOUT + 1)
    assert not engine.timers, "nobody is there: nothing wakes up for that"


def test_many_that_are_due_at_once_are_looked_at_in_parts():
    """A thousand that connected together would be one long turn, again and again."""
    engine = MadeUpEngine()
    for tag in range(1000):
        engine.connect(tag)
    engine.pass_time(TIMEOUT - 0.1)
    looks, most = engine.looks, 0
    while engine.timers and min(due for due, _ in engine.timers) < engine.now + 1:
        engine.pass_one()
        most, looks = max(most, engine.looks - looks), engine.looks
    assert engine.looks == 1000 and most <= 128


def test_one_that_answers_no_ping_is_frozen_and_thaws_with_its_first_frame():
    """A breakpoint, a SIGSTOP: the machine is there, the program is not. That is told, and ends
    nothing."""
    engine = MadeUpEngine()
    frozen, well = engine.connect(1), engine.connect(2)
    engine.pass_time(7.0)
    for connection in (frozen, well):
        engine.watchdog.asked(connection)
    asked = engine.now
    well.link.counts["frames_received"] += 1
    engine.pass_time(TIMEOUT - 0.1)
    assert not engine.emitted
    engine.pass_time(0.7)
    assert engine.emitted == [PeerFrozen(frozen.peer)] and engine.now <= asked + TIMEOUT + 1
    assert engine.watchdog.is_frozen(frozen) and len(engine.watchdog.frozen) == 1
    engine.pass_time(1000.0)
    assert len(engine.emitted) == 1 and not engine.ended
    engine.watchdog.heard(well)
    engine.watchdog.heard(frozen)
    engine.watchdog.heard(frozen)
    assert engine.emitted[1:] == [PeerThawed(frozen.peer)] and not engine.watchdog.frozen
    engine.pass_time(100.0)
    assert len(engine.emitted) == 2, "nothing is owed now"


def test_an_earlier_answer_does_not_count_for_a_later_question():
    """Whoever answered a moment ago and then stopped is frozen a time-out after it was asked
    again."""
    engine = MadeUpEngine()
    connection = engine.connect(1)
    engine.watchdog.asked(connection)
    connection.link.counts["frames_received"] += 1
    engine.pass_time(10.0)
    engine.watchdog.asked(connection)
    engine.pass_time(TIMEOUT - 0.1)
    assert not engine.emitted
    engine.pass_time(0.7)
    assert engine.emitted == [PeerFrozen(connection.peer)]


def test_an_answer_that_may_lie_unread_is_not_missed():
    """While our inbox is full the link is not read, and while our loop is blocked nothing is: then
    the peer is not frozen, we are."""
    engine = MadeUpEngine()
    connection = engine.connect(1)
    engine.watchdog.asked(connection)
    connection.link.paused = True
    engine.pass_time(100.0)
    assert not engine.emitted
    connection.link.paused = False
    engine.block(1000.0)
    engine.pass_time(0.0)
    assert not engine.emitted
    connection.link.counts["frames_received"] += 1  # what waited is read in the same turn
    engine.pass_time(100.0)
    assert not engine.emitted
    engine.watchdog.asked(connection)
    engine.pass_time(TIMEOUT + 1)
    assert engine.emitted == [PeerFrozen(connection.peer)]


def test_a_question_that_may_still_be_on_its_way_has_not_been_heard():
    """On a slow network it waits behind what was sent before it, for longer than any time-out:
    while the other system takes that, nobody is frozen."""
    engine = MadeUpEngine()
    connection = engine.connect(1)
    engine.waiting[1] = 1_000_000
    connection.link.write(1_000_000)
    engine.watchdog.asked(connection)
    for _ in range(80):
        engine.pass_time(1.0)
        engine.waiting[1] -= 12_500
    assert engine.waiting[1] == 0 and not engine.emitted
    engine.pass_time(2 * TIMEOUT + 1)
    assert engine.emitted == [PeerFrozen(connection.peer)]


def test_what_is_sent_after_a_question_does_not_put_the_answer_off():
    """A stopped program to which somebody goes on sending: its system takes all of that, and had
    the question long ago."""
    engine = MadeUpEngine()
    connection = engine.connect(1)
    engine.watchdog.asked(connection)
    for second in range(1, int(TIMEOUT) + 2):
        engine.waiting[1] = 40  # the last message of many is not acknowledged yet
        connection.link.write(100 + 1000 * second)
        engine.pass_time(1.0)
    assert engine.emitted == [PeerFrozen(connection.peer)]


def test_links_on_an_address_that_is_gone_are_ended_and_no_others():
    """Nothing comes to it any more, and no error either; who lives on another address, or on one
    whose interface is only down, goes on."""
    engine = MadeUpEngine()
    engine.connect(1, own="10.0.0.200")
    engine.connect(2, own="10.0.0.200")
    other = engine.connect(3, own="192.168.1.7")
    engine.watchdog.start()
    [hear] = engine.watched.values()
    hear()
    engine.pass_time(1.0)
    assert not engine.unhoused and engine.changes == 1
    engine.foreign.add("10.0.0.200")
    for _ in range(5):
        hear()  # an address that is replaced makes several changes
    assert not engine.unhoused, "it may be given again at once"
    engine.pass_time(1.0)
    assert [tag for tag, _ in engine.unhoused] == [1, 2] and engine.changes == 2
    assert isinstance(engine.unhoused[0][1], errors.NetworkFailure)
    assert "10.0.0.200" in str(engine.unhoused[0][1]) and "'peer1'" in str(engine.unhoused[0][1])
    assert other.state is State.OPEN
    hear()
    engine.watchdog.stop()
    engine.watchdog.stop()
    assert not engine.watched and not engine.timers


# Nodes


STILL = """
import asyncio, sys, peertalk as pt
async def main():
    async with pt.Node("still", bind="127.0.0.1", port=0, discovery=False) as node:
        print(node.address[1], flush=True)
        async for message in node.messages():
            await message.peer.send(message.data)
asyncio.run(main())
"""


async def test_a_program_that_is_stopped_is_frozen_and_loses_no_connection(fork_python):
    """A breakpoint of a minute must not cost the connection, nor what was sent meanwhile; whoever
    wants to know can see it."""
    process = fork_python("-c", STILL)
    where = ("127.0.0.1", int(await line_of(process)))
    async with pt.Node("ada", **loopback(link_timeout=0.5, ping_interval=0.1)) as ada:
        events = ada.events()
        peer = await ada.connect(where)
        process.send_signal(signal.SIGSTOP)
        seen = [event async for event in until_event(events, pt.PeerFrozen)]
        assert peer.frozen and peer.queue.reason == "frozen" and peer.connected
        await asyncio.sleep(1.0)  # two time-outs more
        for number in range(10):
            peer.send_nowait(b"%d" % number)
        process.send_signal(signal.SIGCONT)
        seen += [event async for event in until_event(events, pt.PeerThawed)]
        assert not peer.frozen and peer.queue.reason == ""
        for number in range(10):
            assert (await ada.receive(timeout=60)).data == b"%d" % number
        assert not [event for event in seen if isinstance(event, pt.PeerDisconnected | pt.Failed)]


async def until_event(events, kind):
    """The events up to the first of that kind, included."""
    async for event in events:
        yield event
        if isinstance(event, kind):
            return


async def test_a_slow_reader_loses_no_connection():
    """Its window is closed most of the time, for longer than link_timeout at once; its system
    answers the probes, and that is enough."""
    options = loopback(link_timeout=1.0, ping_interval=0.25)
    async with (
        pt.Node("ada", **options) as ada,
        pt.Node("bob", **options, receive_queue_bytes=1024) as bob,
    ):
        events = ada.events()
        peer = await ada.connect(bob.address)
        count = 0
        with contextlib.suppress(pt.WouldBlock):
            while True:
                peer.send_nowait(bytes(8000))
                count += 1
                await asyncio.sleep(0)
        await asyncio.sleep(3.0)  # three time-outs in which nothing is taken
        for _ in range(peer.accepted):
            await bob.receive(timeout=60)
        await until(lambda: not peer.frozen)
        assert count and peer.connected
        ada.close_nowait()
        assert not [event async for event in events if isinstance(event, pt.Failed)]


async def test_a_full_house_gives_the_place_of_the_frozen_to_who_comes(fork_python):
    """Sixteen programs that hang must not keep everybody else out for ever."""
    process = fork_python("-c", STILL)
    where = ("127.0.0.1", int(await line_of(process)))
    async with (
        pt.Node("ada", **loopback(link_timeout=0.5, ping_interval=0.1)) as ada,
        pt.Node("bob", **loopback()) as bob,
        pt.Node("eve", **loopback()) as eve,
    ):
        engine_of(ada).connections.max_connections = 2
        events = ada.events()
        frozen = await ada.connect(where)
        process.send_signal(signal.SIGSTOP)
        await bob.connect(ada.address)
        async for _ in until_event(events, pt.PeerFrozen):
            pass
        to_ada = await eve.connect(ada.address)
        await to_ada.send(b"here I am")
        assert (await ada.receive(timeout=60)).peer.name == "eve"
        assert not frozen.connected
        async for event in until_event(events, pt.PeerDisconnected):
            if isinstance(event, pt.PeerDisconnected):
                assert "its place was wanted" in str(event.error)
        process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("dialler", ["ada", "bob"])
@pytest.mark.parametrize("outage", [35, 60])
def test_a_lost_connection_comes_back_when_the_peer_is_heard_again(c_core, outage, dialler):
    """Both sides would stay apart for good, though both announce themselves every five seconds."""

    async def main(net: sim.Network) -> tuple[float, int, list[str]]:
        nodes = {name: await net.node(name, core=c_core.name) for name in ("ada", "bob")}
        ada, bob = nodes["ada"], nodes["bob"]
        other = "bob" if dialler == "ada" else "ada"
        await (await nodes[dialler].wait_for(other, timeout=20)).connect(timeout=20)
        while not ada.peers["bob"].connected:  # who dialled may know before us
            await asyncio.sleep(0.05)
        connections = []
        watching = asyncio.create_task(note(ada, connections))
        await asyncio.sleep(0.1)
        connections.clear()
        net.cut("ada", "bob")
        await asyncio.sleep(outage)
        net.heal()
        back = net.clock.seconds
        while not ada.peers.known().count("bob") or not ada.peers["bob"].connected:
            await asyncio.sleep(0.05)
        took = net.clock.seconds - back
        await ada.peers["bob"].send(b"again")
        assert (await bob.receive(timeout=20)).data == b"again"
        await asyncio.sleep(20)
        watching.cancel()
        return took, len(bob.peers), connections

    took, known, connections = sim.run(main)
    assert took <= 5.0 + 2.0 and known == 1
    assert connections == ["PeerDisconnected", "PeerConnected"]


def test_what_a_slow_reader_has_not_read_outlives_the_link(c_core):
    """Its system had acknowledged it, so the sender takes it for sent; that the reader's own words
    got through no more is no reason to drop what others said."""

    async def main(net: sim.Network) -> tuple[list[int], int]:
        ada = await net.node("ada", core=c_core.name)
        bob = await net.node("bob", core=c_core.name, receive_queue_bytes=16_384)
        to_bob = await ada.wait_for("bob", timeout=20)
        for number in range(60):
            await to_bob.send(number.to_bytes(1, "big") * 1000)
        back = await bob.wait_for("ada", timeout=20)
        await asyncio.sleep(5)  # all is acknowledged
        net.cut("ada", "bob")
        await back.send(b"lost")
        while back.connected:
            await asyncio.sleep(0.1)
        heard = []
        while len(heard) < 60:
            heard.append((await bob.receive(timeout=5)).data[0])
        return heard, ada.stats().messages_failed

    assert sim.run(main) == (list(range(60)), 0)


async def note(node, kinds):
    """Write down what becomes of its connections from now on."""
    async for event in node.events():
        if isinstance(event, pt.PeerConnected | pt.PeerDisconnected):
            kinds.append(type(event).__name__)


@pytest.mark.parametrize("who", ["we", "they"])
def test_who_left_on_purpose_does_not_come_back(c_core, who):
    """disconnect() of either side is a decision, not an accident; also one that is made while the
    connection is already lost."""

    async def main(net: sim.Network) -> list[bool]:
        ada = await net.node("ada", core=c_core.name)
        bob = await net.node("bob", core=c_core.name)
        peer = await ada.wait_for("bob", timeout=20)
        await peer.connect(timeout=20)
        back = await bob.wait_for("ada", timeout=20)
        await (peer if who == "we" else back).disconnect(timeout=20)
        await asyncio.sleep(20)
        seen = [peer.connected, back.connected]
        await peer.connect(timeout=20)
        net.cut("ada", "bob")
        while peer.connected or back.connected:
            await asyncio.sleep(0.1)
        for each in (peer, back):
            await each.disconnect()
        net.heal()
        await asyncio.sleep(20)
        return [*seen, peer.connected, back.connected]

    assert sim.run(main) == [False] * 4


def test_a_dial_that_began_in_the_dead_time_is_begun_anew_when_the_peer_is_heard(c_core):
    """Its first packets are lost, and the system waits longer and longer before it sends another:
    a network that is back would wait with it."""

    async def main(net: sim.Network) -> int:
        options = {"core": c_core.name, "connect_timeout": 600.0}
        ada, bob = await net.node("ada", **options), await net.node("bob", **options)
        peer = await ada.wait_for("bob", timeout=20)
        await peer.connect(timeout=20)
        net.cut("ada", "bob")
        while peer.connected:
            await asyncio.sleep(0.1)
        world, dials = engine_of(ada).world, []
        dial = world.dial
        world.dial = lambda *arguments: dials.append(net.clock.seconds) or dial(*arguments)
        waiting = asyncio.create_task(peer.connect(timeout=600))
        await asyncio.sleep(7)
        net.heal()
        net.cut("ada", "bob", both=False)  # bob is heard, and hears nothing
        await asyncio.sleep(12)
        assert not waiting.done()
        net.heal()
        await waiting
        await asyncio.sleep(20)
        assert len(bob.peers) == 1 and peer.connected
        return len(dials)

    assert 3 <= sim.run(main) <= 5
