"""Large messages of one engine: memory is asked for before a grant is said, what finds no room is
said later and in order, and who waits is served when there is room again."""

from __future__ import annotations

import types

import pytest

from peertalk import Config, Priority
from peertalk._core.values import GRANT, OFFER, REFUSE
from peertalk._numbers import ERR_NO_MEMORY, ERR_NOT_CONNECTED, ERR_WOULD_BLOCK
from peertalk.protocol.connections import OWES_WIDE, Connection, State
from peertalk.protocol.events import Outcome
from peertalk.protocol.inbox import Inbox
from peertalk.protocol.large import LOOKS, Refusal, Word
from peertalk.protocol.outbox import Outbox
from peertalk.runtime.large import Departures, Landings
from peertalk.runtime.remote import Remote

MIB = 1024**2


class MadeUpLink:
    """Says what it is told to; remembers what it was told."""

    slice_max = 131_072
    max_message, wide_max = 8_192, 262_144

    def __init__(self) -> None:
        self.code = self.memory = self.referred = self.brought = self.departing = 0
        self.paused = False
        self.said: list[Word] = []
        self.slices: list[tuple[int, int, int]] = []
        self.expected: dict[int, int] = {}
        self.forgone: list[int] = []

    def send_wide(self, kind, id, total=0, reason=0):
        if self.code >= 0:
            self.said.append(Word(kind, id, total, reason))
        return self.code

    def send_slice(self, payload, id, offset, size):
        if self.code >= 0:
            self.slices.append((id, offset, size))
        return self.code

    def depart(self, payload, id, offset):
        if self.code >= 0:
            self.departing = len(payload) - offset
            self.slices.append((id, offset, self.departing))
        return self.code

    def recall(self):
        left, self.departing = self.departing, 0
        return left

    def expect(self, id, total):
        if self.memory >= 0:
            self.expected[id] = total
        return self.memory

    def forgo(self, id):
        self.forgone.append(id)
        self.expected.pop(id, None)

    def forget(self, id):
        assert id in self.forgone

    def landed(self, id):
        return 0

    def statistics(self):
        return types.SimpleNamespace(payload_bytes_received=self.brought)


class Lines:
    """A log."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, text, *values):
        self.lines.append(text % values)


class MadeUpEngine:
    """What the two halves ask of an engine; its timers are called by hand."""

    core = world = None
    closing = False

    def __init__(self, **config) -> None:
        self.config = Config(name="ada", link_timeout=8.0, **config)
        self.timers: list[tuple[float, object]] = []
        self.refused: list[int] = []
        self.failed: list[tuple] = []
        self.log = Lines()
        self.totals = types.SimpleNamespace(abandoned=0)
        self.inbox = Inbox(1_000, lambda _: None)
        self.make_view = lambda _: None
        told = lambda *what, **_: self.failed.append(what[1:4])  # noqa: E731
        self.landings = Landings(
            self, self.inbox, 16 * MIB, lambda _, code: self.refused.append(code)
        )
        self.departures = Departures(self, self.landings.say, told)

    def after(self, seconds, then):
        self.timers.append((seconds, then))
        return then

    def post(self, then):
        self.timers.append((0, then))

    def hint(self, code):
        assert code >= 0

    def tick(self):
        """Call what is due; how long that was waited for."""
        timers, self.timers = self.timers, []
        for _, then in timers:
            then()
        return [seconds for seconds, _ in timers]

    def connect(self, tag=1):
        connection = Connection(tag, (f"10.0.0.{tag}", 7354), dialled=True, now=0.0)
        connection.peer = Remote(self, bytes((tag,)) * 8, name=f"n{tag}", own_max_message=16 * MIB)
        connection.peer.connection = connection
        connection.state, connection.link = State.OPEN, MadeUpLink()
        connection.classes = True
        return connection


@pytest.fixture
def engine():
    return MadeUpEngine(receive_large_bytes=MIB)


def test_a_grant_is_said_when_there_is_memory_for_it(engine):
    """A message that came before its memory would have to be dropped."""
    one = engine.connect()
    one.link.memory = ERR_NO_MEMORY
    assert engine.landings.offered(one, 1, 5)
    assert not one.link.said and not engine.landings.grants.held
    one.link.memory = 0
    assert engine.tick() == [0.01]
    assert one.link.said == [Word(GRANT, 1)] and one.link.expected == {1: 5}
    assert engine.landings.grants.held == 5


def test_what_there_is_no_memory_for_keeps_nobody_out_and_is_refused_in_the_end(engine):
    """Else one message that is longer than what is left would stand before all others for ever, and
    its sender would never hear why."""
    one, two, three = engine.connect(1), engine.connect(2), engine.connect(3)
    one.link.memory = ERR_NO_MEMORY
    for connection in (one, two):
        engine.landings.offered(connection, 1, MIB // 2)
    engine.landings.offered(two, 2, 5)
    engine.landings.offered(three, 1, 5)
    assert three.link.said == [Word(GRANT, 1)]
    assert not two.link.said, "as long a message is not asked for in vain, nor what follows it"
    waited = 0.0
    while not one.link.said:
        [pause] = engine.tick()
        waited += pause
    one.link.memory = 0
    assert one.link.said == [Word(REFUSE, 1, reason=Refusal.UNSPECIFIED)]
    assert waited > engine.config.link_timeout and len(engine.log.lines) == 1
    assert two.link.said == [Word(GRANT, 1)], "which is its half of the budget"
    assert engine.landings.offered(one, 1, 5), "its id is free again"


def test_who_does_not_read_what_is_said_makes_nothing_grow(engine):
    """A stranger that offers and withdraws as fast as it can could fill the memory with answers."""
    one, two = engine.connect(1), engine.connect(2)
    one.link.code = ERR_WOULD_BLOCK
    for id in range(1, 1_001):
        assert engine.landings.offered(one, id, 5) and engine.landings.withdrawn(one, id)
    assert len(one.unsaid) == 1
    assert engine.landings.offered(one, 1_001, 5) and engine.landings.offered(two, 1, 5)
    assert two.link.said == [Word(GRANT, 1)]
    one.link.code = 0
    engine.landings.pay(one)
    assert one.link.said == [Word(GRANT, 1), Word(GRANT, 1_001)]


def test_an_offer_of_a_link_that_is_over_keeps_nobody_out(engine):
    one, two = engine.connect(1), engine.connect(2)
    one.link.memory = ERR_NOT_CONNECTED
    engine.landings.offered(one, 1, 5)
    engine.landings.offered(two, 1, 5)
    assert two.link.said == [Word(GRANT, 1)] and engine.landings.grants.held == 5


def test_what_finds_no_room_is_said_later_and_in_order(engine):
    """It is owed; whoever hands messages on pays it first."""
    one = engine.connect()
    one.link.code = ERR_WOULD_BLOCK
    engine.landings.offered(one, 1, 5)
    engine.landings.offered(one, 2, 17 * MIB)
    one.link.code = 0
    engine.landings.offered(one, 3, 5)
    assert not one.link.said and one.owed == OWES_WIDE
    engine.landings.pay(one)
    refused = Word(REFUSE, 2, reason=Refusal.TOO_LARGE)
    assert one.link.said == [Word(GRANT, 1), refused, Word(GRANT, 3)] and not one.unsaid
    assert engine.landings.offered(one, 2, 5), "its id is free again"


def test_who_has_no_room_in_the_inbox_waits_until_it_settles(engine):
    engine.inbox.on_settled = engine.landings.serve
    one = engine.connect()
    engine.inbox.put(one.peer, [bytes(1_000)], 1_000)
    engine.landings.offered(one, 1, 5)
    assert not one.link.said and engine.landings.grants.waiting == 1
    assert engine.inbox.take() == (one.peer, bytes(1_000))
    assert one.link.said == [Word(GRANT, 1)]


def test_what_has_landed_makes_room_for_the_next(engine):
    one = engine.connect()
    engine.landings.offered(one, 1, MIB)
    engine.landings.offered(one, 2, MIB)
    engine.landings.landed(one, 1)
    engine.tick()
    assert one.link.said == [Word(GRANT, 1), Word(GRANT, 2)]


def test_the_end_of_a_link_and_a_withdrawal_make_room_too(engine):
    one, two = engine.connect(1), engine.connect(2)
    for connection in (one, two, two):
        engine.landings.offered(connection, 1 + len(connection.link.said), MIB)
    engine.landings.offered(two, 2, MIB)
    engine.landings.ended(one)
    assert two.link.said == [Word(GRANT, 1)]
    assert engine.landings.withdrawn(two, 1) and two.link.forgone == [1]
    assert two.link.said == [Word(GRANT, 1), Word(GRANT, 2)]
    assert not engine.landings.withdrawn(two, 7)


def test_a_grant_that_does_not_move_is_taken_back_while_somebody_waits(engine):
    still, other = engine.connect(1), engine.connect(2)
    engine.landings.offered(still, 1, MIB)
    assert not engine.timers, "nobody waits"
    engine.landings.offered(other, 1, MIB)
    for _ in range(LOOKS):
        assert engine.tick() == [8.0 / LOOKS]
    assert not still.link.forgone
    engine.tick()
    assert still.link.forgone == [1] and other.link.said == [Word(GRANT, 1)]
    assert still.link.said[1:] == [Word(REFUSE, 1, reason=Refusal.LOST)]


def test_who_brings_something_else_or_is_not_read_keeps_its_grant(engine):
    moves, paused, other = (engine.connect(tag) for tag in (1, 2, 3))
    for connection in (moves, paused, other):
        engine.landings.offered(connection, 1, MIB // 2)
    paused.link.paused = True
    for _ in range(3 * LOOKS):
        moves.link.brought += 1
        engine.tick()
    assert not moves.link.forgone and not paused.link.forgone and not other.link.said


def test_nothing_is_granted_by_a_node_that_closes(engine):
    engine.closing = True
    one = engine.connect()
    assert engine.landings.offered(one, 1, 5) and not one.link.said and not engine.timers


# Out ------------------------------------------------------------------------------------------


def sending(engine, *sizes):
    connection, outbox = engine.connect(), Outbox(100, 100 * MIB)
    for number, size in enumerate(sizes, 1):
        outbox.put(bytes(size), number, Priority.NORMAL)
    peer = connection.peer
    peer.capabilities = types.SimpleNamespace(largest=16 * MIB, max_message=8_192)
    return connection, outbox, peer


def test_an_offer_that_finds_no_room_changes_nothing(engine):
    connection, outbox, peer = sending(engine, MIB)
    connection.link.code = ERR_WOULD_BLOCK
    assert engine.departures.offer(peer, connection, outbox) == ERR_WOULD_BLOCK
    assert not connection.offering.out and not connection.offering.blocked
    connection.link.code, connection.unsaid = 0, (Word(GRANT, 1),)
    assert engine.departures.offer(peer, connection, outbox) == ERR_WOULD_BLOCK, "that goes first"
    connection.unsaid = ()
    assert engine.departures.offer(peer, connection, outbox) == 0
    assert connection.link.said == [Word(OFFER, 1, MIB)]


def granted(engine, *sizes):
    """As sending(); the first message is offered and granted."""
    connection, outbox, peer = sending(engine, *sizes)
    peer.connection, peer.outbox = connection, outbox
    engine.departures.offer(peer, connection, outbox)
    assert engine.departures.hand(peer, connection, outbox) is None and outbox.blocked == 2
    assert engine.departures.granted(connection, 1)
    return connection, outbox, peer


def test_a_granted_message_is_handed_in_slices_while_others_have_their_turns(engine):
    connection, outbox, peer = granted(engine, 300_000, 5)
    link = connection.link
    assert outbox.put(b"low", 3, Priority.LOW) == 0
    assert engine.departures.hand(peer, connection, outbox) == 0
    assert outbox.leaving == 1 << Priority.NORMAL
    link.referred = 262_144
    assert engine.departures.hand(peer, connection, outbox) == ERR_WOULD_BLOCK
    link.referred = 0
    for _ in range(2):
        assert len(outbox) == 3 and engine.departures.hand(peer, connection, outbox) == 0
    assert link.slices == [(1, 0, 131_072), (1, 131_072, 131_072), (1, 262_144, 37_856)]
    assert len(outbox) == 2 and not outbox.leaving
    assert connection.handed.holds(1) and not connection.handed.holds(2)
    assert engine.departures.hand(peer, connection, outbox) is None, "the next is a small one"


def test_a_granted_message_departs_while_nothing_of_another_class_waits(engine):
    """What the link has sent of it by itself is noted before anything else is done."""
    connection, outbox, peer = granted(engine, 300_000, MIB)
    link = connection.link
    assert engine.departures.hand(peer, connection, outbox) == ERR_WOULD_BLOCK
    assert link.slices == [(1, 0, 300_000)] and outbox.leaving == 1 << Priority.NORMAL
    link.departing = 37_856
    assert engine.departures.hand(peer, connection, outbox) == ERR_WOULD_BLOCK
    assert len(link.slices) == 1 and len(outbox) == 2 and not connection.handed.holds(1)
    link.departing = 0
    assert engine.departures.settle(peer) and len(outbox) == 1 and connection.handed.holds(1)
    assert engine.departures.hand(peer, connection, outbox) is None, "the next waits for its grant"


def test_what_departs_stops_when_another_class_has_its_turn(engine):
    """It goes on from there in slices, between which the other class passes."""
    connection, outbox, peer = granted(engine, MIB)
    link = connection.link
    engine.departures.hand(peer, connection, outbox)
    link.departing = 500_000
    assert outbox.put(b"now", 2, Priority.HIGH) == 0
    assert engine.departures.hand(peer, connection, outbox) is None, "the other class is first"
    assert link.departing == 0 and len(link.slices) == 1 and outbox.peek(9) == [b"now"]
    outbox.drop(1)
    assert engine.departures.hand(peer, connection, outbox) == ERR_WOULD_BLOCK
    assert link.slices[1:] == [(1, MIB - 500_000, 500_000)]


def test_what_departs_stops_when_the_link_is_used_no_more(engine):
    """Or when its receiver takes the grant back: it is offered anew."""
    connection, outbox, peer = granted(engine, MIB)
    link = connection.link
    engine.departures.hand(peer, connection, outbox)
    link.departing = 5
    assert engine.departures.turned_down(connection, 1, Refusal.LOST)
    assert link.departing == 0 and not connection.offering.out and len(outbox) == 1
    engine.departures.recall(peer)
    peer.connection = None
    engine.departures.recall(peer)
    assert not connection.handed.holds(1)


def test_what_was_dropped_there_is_told_when_it_is_reported_here(engine):
    """Else it would be told as failed, and then as sent."""
    connection, outbox, peer = sending(engine, 100_000)
    connection.link.wide_max = 0
    peer.connection, peer.outbox = connection, outbox
    engine.departures.offer(peer, connection, outbox)
    engine.departures.granted(connection, 1)
    engine.departures.hand(peer, connection, outbox)
    connection.link.departing = 0
    assert engine.departures.turned_down(connection, 1, Refusal.LOST)
    assert connection.link.said[-1] == Word(REFUSE, 1, reason=Refusal.WITHDRAWN)
    assert not engine.failed
    connection.handed.report(1, sent=True)
    engine.departures.tell_undone(connection)
    engine.departures.tell_undone(connection)
    assert engine.failed == [(1, 1, Outcome.FAILED)]
    connection.handed.seal(1)
    assert connection.handed.revoke(1) == [], "the end of the link does not make it fail again"


def test_what_failed_with_its_link_and_was_dropped_there_has_failed_once(engine):
    connection, outbox, peer = granted(engine, 100_000)
    engine.departures.hand(peer, connection, outbox)
    connection.link.departing = 0
    assert engine.departures.turned_down(connection, 1, Refusal.LOST)
    assert connection.handed.report(1, sent=False) == [(1, 1, False)]
    engine.departures.failed(connection, 1, 1)
    engine.departures.tell_undone(connection)
    assert not engine.failed, "it was told by whoever reported it"


def test_answers_on_a_connection_that_offered_nothing_are_faults(engine):
    connection = engine.connect()
    assert not engine.departures.granted(connection, 1)
    assert not engine.departures.turned_down(connection, 1, Refusal.LOST)
    engine.departures.replaced(connection, 1)
    assert not connection.link.said
