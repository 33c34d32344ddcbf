"""Small talk between nodes: who is pinged when, and what becomes of a report for which there is no
room.

The engine is made up, and its clock is a number. That the bytes are right on a socket is
tests/runtime/test_switchboard.py's.
"""

from __future__ import annotations

import types

import pytest

from peertalk import errors
from peertalk._core import load
from peertalk._core.values import CAPABILITY, PING, PONG
from peertalk.config import Config
from peertalk.protocol import connections as policy
from peertalk.protocol.connections import Connection, State
from peertalk.protocol.inbox import Inbox
from peertalk.protocol.peer import PeerState
from peertalk.protocol.wire import Capabilities, decode_capabilities
from peertalk.runtime.pulse import Pulse
from peertalk.runtime.remote import Remote
from peertalk.runtime.workers import Workers

CORE = load("reference")


class MadeUpLink:
    """Takes frames while there is room."""

    def __init__(self):
        self.frames = []
        self.room = True
        self.paused = False
        self.held_bytes = 0

    def send_frame(self, kind, payload=b"", flags=0):
        if not self.room:
            return errors.WouldBlock.code
        self.frames.append((kind, payload))
        return 0

    def taken(self):
        frames, self.frames = self.frames, []
        return frames


class MadeUpEngine:
    """What a Pulse needs of an engine, and of its traffic and watchdog."""

    def __init__(self, **options):
        self.config = Config(name="ada", **options)
        self.core = CORE
        self.now = 100.0
        self.world = types.SimpleNamespace(clock=lambda: self.now)
        self.connections = types.SimpleNamespace(by_tag={})
        self.inbox = Inbox(8000, lambda _: None)
        self.totals = types.SimpleNamespace(pongs_dropped=0, pressure_reports=0)
        self.closing = False
        self.workers = Workers(None, [])
        self.make_view = lambda remote: remote
        self.timers = []
        self.hint = self.refused = self.pause_if_full = lambda *_: None
        self.owing = []
        watchdog = types.SimpleNamespace(asked=self.owing.append, answered=lambda _: None)
        self.pulse = Pulse(self, self, watchdog)
        self.pulse.introduce(Capabilities(8192, 1024, 0, 0, b"whoweare", "ada", 7354))

    def call(self, functions, *arguments):
        for function in functions:
            function(*arguments)

    def call_all(self):
        """They have been."""

    def after(self, delay, action):
        self.timers.append((self.now + delay, action))
        return self.timers[-1]

    def pass_time(self, seconds):
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now = first[0]
            first[1]()
        self.now = end

    def connect(self, tag=1):
        peer = Remote(self, (f"10.0.0.{tag}", 7354), name=f"peer{tag}")
        peer.state = PeerState.CONNECTED
        connection = Connection(tag, peer.key, dialled=True, now=self.now, peer=peer)
        connection.state = State.OPEN
        connection.link = MadeUpLink()
        peer.connection = connection
        self.connections.by_tag[tag] = connection
        self.pulse.opened(connection, peer)
        return connection

    def deliver(self, connection, eighths=1):
        """Messages that fill so many eighths of the inbox."""
        for _ in range(eighths):
            self.inbox.put(connection.peer, [bytes(1000 - 64)], 1000 - 64)
        self.pulse.press(connection, self.inbox)


def pressures(frames):
    assert all(kind == CAPABILITY for kind, _ in frames)
    told = [decode_capabilities(CORE, payload) for _, payload in frames]
    assert all(
        (each.max_message, each.instance, each.name, each.port) == (8192, b"whoweare", "ada", 7354)
        for each in told
    ), "complete"
    return [each.pressure for each in told]


def test_each_connection_is_pinged_once_in_an_interval_eight_at_a_time():
    """All at once, 1,500 idle peers would borrow 1,500 slot buffers."""
    engine = MadeUpEngine(ping_interval=10.0)
    connections = [engine.connect(tag) for tag in range(30)]
    assert [connection.link.taken() for connection in connections] == [[(PING, b"")]] * 30, (
        "each when it opens"
    )
    for connection in connections:
        engine.pulse.pong(connection)
    engine.pass_time(9.9)
    assert not any(connection.link.frames for connection in connections)
    most = 0
    for _ in range(101):
        engine.pass_time(0.1)
        sent = sum(len(connection.link.frames) for connection in connections)
        for connection in connections:
            if connection.link.taken():
                engine.pulse.pong(connection)
        most = max(most, sent)
    assert 4 <= most <= policy.PINGS_PER_TURN
    assert all(connection.peer.latency.samples == 2 for connection in connections)
    engine.connections.by_tag.clear()
    engine.pass_time(20.0)
    assert not engine.timers, "nobody is there: nothing wakes up for that"
    engine.connect()
    assert len(engine.timers) == 1


def test_a_node_that_wants_no_measurements_sends_none_until_it_is_asked():
    """ping_interval 0: what a test of the wire, or a metered network, wants."""
    engine = MadeUpEngine(ping_interval=0)
    connection, heard = engine.connect(), []
    engine.pass_time(100.0)
    assert not connection.link.frames and not engine.timers
    connection.link.room = False
    engine.pulse.ping(connection.peer, lambda *result: heard.append(result))
    engine.pulse.ping(connection.peer, lambda *result: heard.append(result))
    assert connection.owed == policy.OWES_PING
    connection.link.room = True
    engine.pulse.pay(connection)
    assert connection.link.taken() == [(PING, b"")] and connection.owed == 0
    engine.now += 0.25
    engine.pulse.pong(connection)
    assert heard == [(0.25, None)] * 2 and connection.peer.latency.rtt == 0.25
    connection.peer.state = PeerState.DISCOVERED
    engine.pulse.ping(connection.peer, lambda *result: heard.append(result))
    assert isinstance(heard[-1][1], errors.NotConnected)


def test_who_has_no_room_for_a_ping_owes_the_answer_all_the_same():
    """One that takes nothing at all fills its slots, and would never be asked: it is the one that
    stands still."""
    engine = MadeUpEngine(ping_interval=10.0)
    connection = engine.connect()
    engine.pulse.pong(connection)
    connection.link.taken()
    connection.link.room = False
    engine.pass_time(10.1)
    assert connection.owed == policy.OWES_PING and engine.owing == [connection] * 2
    connection.link.room = True
    engine.pulse.pay(connection)
    assert connection.link.taken() == [(PING, b"")], "as soon as there is room"


def test_an_answer_for_which_there_is_no_room_is_dropped_and_counted():
    """Whoever floods us with PINGs and reads nothing must not fill our memory."""
    engine = MadeUpEngine(ping_interval=0)
    connection = engine.connect()
    engine.pulse.asked(connection)
    engine.pulse.answer()
    connection.link.room = False
    for _ in range(1000):
        engine.pulse.asked(connection)
        engine.pulse.answer()
    assert (
        connection.link.taken() == [(PONG, b"")]
        and engine.totals.pongs_dropped == 1000
        and connection.owed == 0
    )


def test_the_pings_of_a_turn_get_one_pong():
    """A flood of PINGs must not become a flood of PONGs; and each who asks is answered."""
    engine = MadeUpEngine(ping_interval=0)
    flood, other = engine.connect(1), engine.connect(2)
    for _ in range(2):
        for _ in range(100):
            engine.pulse.asked(flood)
        engine.pulse.asked(other)
        engine.pulse.answer()
    engine.pulse.answer()
    assert flood.link.taken() == other.link.taken() == [(PONG, b"")] * 2


def test_the_pings_of_one_read_get_one_pong_though_several_turns_take_them_apart():
    """Else a PONG for each turn costs more than the flood. Who is not read now is answered all the
    same, and who has ended is not."""
    engine = MadeUpEngine(ping_interval=0)
    flood, paused, over = engine.connect(1), engine.connect(2), engine.connect(3)
    for connection in (flood, paused, over):
        connection.link.held_bytes = 100
        engine.pulse.asked(connection)
    paused.link.paused = True
    engine.pulse.answer()
    assert not flood.link.taken() and paused.link.taken() == [(PONG, b"")]
    engine.pulse.asked(flood)
    engine.pulse.ended(over)
    over.link = None
    engine.pulse.answer()
    assert not flood.link.taken()
    flood.link.held_bytes = 0
    engine.pulse.answer()
    engine.pulse.answer()
    assert flood.link.taken() == [(PONG, b"")]


def test_only_those_who_bring_something_hear_of_pressure_and_all_of_them_hear_of_its_end():
    """With a thousand idle peers a level must not be a thousand frames; and no one may be left
    slowed."""
    engine = MadeUpEngine(ping_interval=0)
    busy, idle, late = (engine.connect(tag) for tag in (1, 2, 3))
    engine.deliver(busy)
    assert not busy.link.frames
    engine.deliver(busy, 5)
    engine.deliver(late)
    assert (
        pressures(busy.link.taken()) == [75]
        and pressures(late.link.taken()) == [75]
        and set(engine.inbox.told) == {busy, late}
    )
    engine.pulse.ended(late)
    late.state = State.CLOSED
    while engine.inbox.take() is not None:
        pass
    assert (
        pressures(busy.link.taken()) == [50, 25, 0]
        and not late.link.frames
        and not idle.link.frames
    )
    assert not engine.inbox.told and engine.inbox.eases_at == 0 and busy.pressure == 0


@pytest.mark.parametrize("then", [0, 1, 2])
def test_a_report_without_room_leaves_once_and_tells_what_holds_then(then):
    """Two reports would be old news and news; none, and the peer is flooding, or slowed, for
    ever."""
    engine = MadeUpEngine(ping_interval=0)
    connection = engine.connect()
    connection.link.room = False
    for _ in range(8):
        engine.deliver(connection)
    assert connection.pressure == 3 and connection.owed == policy.OWES_PRESSURE
    while connection.pressure > then:
        engine.inbox.take()
    engine.pulse.pay(connection)
    assert connection.owed == policy.OWES_PRESSURE, "still no room"
    connection.link.room = True
    engine.pulse.pay(connection)
    engine.pulse.pay(connection)
    assert (
        pressures(connection.link.taken()) == [25 * then]
        and engine.totals.pressure_reports == 1
        and connection.owed == 0
    )
