"""How a peer takes messages: in order, within bounds, from any thread.

The link here is one that takes as many as it is told to; the engine is real but never opened, so no
socket is involved.
"""

from __future__ import annotations

import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from peertalk import errors
from peertalk._core import values
from peertalk._numbers import ERR_CANCELLED, FRAME_OVERHEAD
from peertalk.config import Config
from peertalk.protocol import events
from peertalk.protocol.connections import Connection, Step
from peertalk.protocol.outbox import Priority
from peertalk.protocol.peer import PeerEvent
from peertalk.protocol.waiting import Afar
from peertalk.protocol.wire import Capabilities
from peertalk.runtime.remote import Place, Remote
from peertalk.runtime.transport import Transport
from peertalk.runtime.world import World

WOULD_BLOCK, TOO_LARGE = errors.WouldBlock.code, errors.MessageTooLarge.code


class NoSockets(World):
    """Counts the connections whose unsent bytes were bounded; those of this module have no
    socket."""

    bounded = 0

    def bound_unsent(self, connection):
        self.bounded += 1


@pytest.fixture(scope="module")
def engine():
    """An engine that was never opened: it has peers and a loop, no socket, and speaks to nobody."""
    config = Config(
        name="ada", core="reference", discovery=False, send_queue_size=4, send_queue_bytes=64 * 1024
    )
    made = Transport(config, NoSockets(), lambda remote: remote, lambda: None)
    yield made
    made.close_now()


class GivenLink:
    """Takes what it is told to: the number of messages of each further call, then everything."""

    def __init__(self, room=(), max_message=8192):
        self.room = list(room)
        self.max_message = max_message
        self.taken = []
        self.calls = []
        self.native = self

    def send_many(self, payloads, start=0):
        self.calls.append(payloads)
        room = self.room.pop(0) if self.room else len(payloads)
        self.taken += payloads[start : start + room]
        return min(room, len(payloads) - start), (
            0 if room >= len(payloads) - start else WOULD_BLOCK
        )

    def send(self, payload):
        accepted, code = self.send_many([bytes(payload)])
        return code if not accepted else values.NEEDS_TURN

    def send_frame(self, type, payload=b"", flags=0):
        self.calls.append((type, flags))
        return self.send(payload)


_numbers = iter(range(1, 1 << 30))


def peer_of(engine, link=None, *, classic=False):
    number = next(_numbers)
    instance = None if classic else number.to_bytes(8, "big")
    peer = Remote(
        engine,
        instance or ("127.0.0.1", number),
        name="bob",
        address=("127.0.0.1", 1),
        own_max_message=engine.traffic.max_message,
    )
    if link is not None:
        connection = Connection(number, ("127.0.0.1", 1), dialled=True, now=0.0, peer=peer)
        for step in (Step.DIAL, Step.ESTABLISH, Step.GREET):
            connection.advance(step)
        connection.link = link
        peer.connection = connection
        peer.advance(PeerEvent.OPENED)
        peer.on_pressure()
    return peer


@given(
    sizes=st.lists(st.sampled_from([0, 1, 100, 8_192]), max_size=60),
    rooms=st.lists(st.integers(0, 20), max_size=20),
)
def test_many_messages_reach_the_link_in_order_each_once(engine, sizes, rooms):
    """However the link cuts it: a message that is skipped or repeated here is lost or doubled for
    the user."""
    messages = [
        number.to_bytes(4, "big") + bytes(max(0, size - 4)) for number, size in enumerate(sizes)
    ]
    link = GivenLink(rooms)
    peer = peer_of(engine, link)
    done = refused = 0
    while done < len(messages):
        taken = peer.accept_many(messages, done)
        # refused by the link, so it waits in the outbox: move it on as the engine does
        if peer.outbox:
            engine.pump(peer)
        done += taken
        refused += not taken
        assert peer.accepted == done and refused <= len(rooms)
    while peer.outbox:
        engine.pump(peer)
    assert link.taken == messages


@pytest.mark.parametrize("size", [1000, 4096, 8192])
def test_a_chunk_of_many_fills_the_slots_and_leaves_nothing_for_a_write_of_its_own(engine, size):
    """A few messages that did not fit waited a tick, and left before the next part was drawn: in a
    small write."""
    limits, peer = engine.core.limits, peer_of(engine)
    pool = engine.core.BufferPool(
        [(limits.frame_max_payload + FRAME_OVERHEAD, 1), (limits.slot_size, engine.pipeline_depth)]
    )
    pipeline = engine.core.SendPipeline(depth=engine.pipeline_depth, pool=pool)
    pipeline.more = True
    held = 0
    while pipeline.send(values.DATA, bytes(size)) == 0:
        held += 1
    assert peer.chunk(size) % held == 0


def test_a_message_over_the_limit_is_refused_before_it_has_a_number(engine):
    """Numbers are without gaps: what was refused has none."""
    peer = peer_of(engine, GivenLink(max_message=512))
    with pytest.raises(errors.MessageTooLarge, match=r"513 bytes to peer 'bob': the limit is 512"):
        peer.accept(bytes(513), False)
    assert peer.accepted == 0 and peer.accept(bytes(512), False) and peer.accepted == 1


def test_a_message_that_the_link_refuses_waits_and_those_behind_it_too(engine):
    """A later message that slips into the link past the outbox has overtaken."""
    link = GivenLink([0])
    peer = peer_of(engine, link)
    assert (
        peer.accept(b"first", False)
        and peer.queued == 1
        and peer.queue.reason == "slots"
        and peer.quick is None
    )
    assert peer.accept(b"second", False) and not link.taken
    assert (peer.queue.pending, peer.queue.capacity, peer.queue.bytes) == (2, 4, 11)
    engine.pump(peer)
    assert link.taken == [b"first", b"second"] and peer.queued == 0 and peer.queue.reason == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda peer: peer.advance(PeerEvent.LEFT),
        lambda peer: peer.use(None),
        lambda peer: peer.use(peer.connection),
        lambda peer: peer.on_lost(errors.ConnectionClosed("gone")),
        lambda peer: Blocked(peer, Priority.NORMAL).join(),
        lambda peer: peer.transport.enqueue(peer, b"waits", Priority.LOW, None),
    ],
    ids=["left", "no connection", "another connection", "lost", "a line", "an outbox"],
)
def test_nothing_is_quick_once_something_has_to_be_looked_at(engine, change):
    """What sends past every look must be gone with the last of its conditions: each is taken away
    where it changes."""
    peer = peer_of(engine, GivenLink())
    engine.pump(peer)
    assert peer.quick is not None
    change(peer)
    assert peer.quick is None


def test_a_full_outbox_refuses_and_nothing_changes(engine):
    """The refusal must be free of traces: it is repeated until there is room."""
    peer = peer_of(engine, GivenLink([0]))
    for number in range(4):
        assert peer.accept(b"%d" % number, False)
    before = peer.stats()
    assert (
        not peer.accept(b"too many", False)
        and peer.stats() == before
        and before.queue.pressure == 100
    )
    refusal = peer.no_room()
    assert refusal.reason == "queue" and refusal.peer == "bob" and "4 wait" in str(refusal)


def test_no_delay_is_said_to_the_link(engine):
    """A flag that is dropped costs a tick, and no test of content sees it."""
    link = GivenLink()
    peer_of(engine, link).accept(b"now", True)
    assert link.calls[0] == (values.DATA, values.NO_DELAY) and link.taken == [b"now"]


def test_messages_of_other_threads_wait_within_the_same_bound_and_keep_their_order(engine):
    """Another thread must neither overfill the memory nor overtake itself."""
    link = GivenLink()
    peer = peer_of(engine, link)
    for number in range(4):
        peer.accept_from_afar(b"%d" % number)
    with pytest.raises(errors.WouldBlock):
        peer.accept_from_afar(b"too many")
    with pytest.raises(errors.MessageTooLarge):
        peer.accept_from_afar(bytes(8_193))
    assert not link.taken, "nothing happens on the other thread"
    engine.turn()
    assert link.taken == [b"0", b"1", b"2", b"3"] and peer.accepted == 4


class LateAfar(Afar):
    """Another thread leaves one when all were taken, and one more while that is looked at."""

    def __init__(self, leave):
        super().__init__()
        self.late = []
        self.thread = threading.Thread(target=leave, args=(b"late",))
        self.another = leave

    def take(self, *how):
        super().take(*how)
        if self.thread.ident is not None:
            return
        self.late.append(1)
        self.another(b"then")

    def __len__(self):
        if self.late:
            self.late.clear()
            self.thread.start()
            self.thread.join(0.2)  # it may have to wait until the look is over
        return super().__len__()


def test_none_is_lost_that_is_left_while_the_last_ones_are_taken(engine):
    """What was found empty was thrown away, with what had come into it since."""
    link = GivenLink()
    peer = peer_of(engine, link)
    peer._afar = afar = LateAfar(peer.accept_from_afar)
    peer.accept_from_afar(b"first")
    peer.take_from_afar()
    afar.thread.join(10.0)
    peer.take_from_afar()
    assert link.taken == [b"first", b"then", b"late"]


def test_large_messages_of_other_threads_are_bound_by_their_bytes_too(engine):
    """As many of them as there may be small ones would be all memory."""
    peer = peer_of(engine)
    peer.own_max_message = 16 * 1024**2
    peer.accept_from_afar(bytes(engine.config.send_queue_bytes + 1))
    with pytest.raises(errors.WouldBlock):
        peer.accept_from_afar(bytes(9_000))
    peer.accept_from_afar(b"small")
    peer.accept_from_afar(bytes(9_000), priority=Priority.HIGH)
    assert peer.drop_from_afar() == 3


def test_those_who_wait_for_a_connection_are_told_once(engine):
    """One future, one result."""
    peer = peer_of(engine)
    told = []
    peer.reaching = [
        lambda reached, error: told.append((reached, error)),
        lambda reached, error: told.append((reached, error)),
    ]
    error = errors.Timeout("late")
    peer.tell_reaching(error)
    peer.tell_reaching(None)
    assert told == [(None, error)] * 2


# Classes, keys, pressure, pieces


class PartLink:
    """A link of the engine that takes as many frames as it is told to, and remembers them: (flags,
    payload)."""

    def __init__(self, room=1 << 30, max_message=8192):
        self.room = room
        self.max_message = max_message
        self.wide_max = 0
        self.frames = []
        self.pending = 0
        self.paused = False
        self.native = self

    def send_frame(self, type, payload=b"", flags=0):
        if type != values.DATA:
            return 0  # it has its own room, and is not reported
        if len(payload) > self.max_message:
            return TOO_LARGE
        if not self.room:
            return WOULD_BLOCK
        self.room -= 1
        self.frames.append((flags, bytes(payload)))
        return 0

    def send(self, payload):
        return self.send_frame(values.DATA, payload)

    def send_many(self, payloads, start=0):
        for index in range(start, len(payloads)):
            if (code := self.send(payloads[index])) < 0:
                return index - start, code
        return len(payloads) - start, 0

    def shut(self):
        self.room = 0

    def close(self):
        self.room = 0

    left = 0
    """Frames that have left and are not reported."""

    def settle(self):
        left, self.left = self.left, 0
        return left

    unconfirmed = 10**9
    """Frames, the last of those that were sent, that the other side may not have: all, until the
    end says which."""
    lost = frozenset()

    def statistics(self):
        return values.LinkStatistics(*[0] * len(values.LinkStatistics._fields))

    @property
    def plain(self):
        return [payload for flags, payload in self.frames if not flags & values.FRAGMENT]

    def joined(self):
        """Whole messages in order: fragments as the original joins them, which allows nothing in
        between."""
        whole, running = [], None
        for flags, payload in self.frames:
            if not flags & values.FRAGMENT:
                assert running is None, "a message in between pieces"
                whole.append(payload)
                continue
            message, total, offset, marks = struct.unpack_from(">HHHB", payload)
            assert len(payload) <= 256 and payload[7] == 0
            if marks & 1:
                assert running is None and offset == 0
                running = [message, total, b""]
            assert (
                running is not None
                and running[:2] == [message, total]
                and offset == len(running[2])
            )
            running[2] += payload[8:]
            if marks & 2:
                assert len(running[2]) == total
                whole.append(running[2])
                running = None
        return whole


def capabilities(pressure=0, max_message=8192):
    return Capabilities(max_message, 1024, pressure, 5)


class AnyTraffic(RuleBasedStateMachine):
    """Any mix of calls, of what the link takes and reports, and of ends: each accepted message has
    one outcome, and a truthful one."""

    def __init__(self):
        super().__init__()
        config = Config(
            name="ada",
            core="reference",
            discovery=False,
            send_queue_size=8,
            send_queue_bytes=20_000,
        )
        self.engine = Transport(config, NoSockets(), lambda remote: remote, lambda: None)
        self.told = []
        self.engine.publish = self.told.append
        self.peer = peer_of(self.engine, classic=True)
        self.peer.name = "classic"
        self.engine.peers[self.peer.key] = self.peer
        self.accepted = {}  # number: (payload, priority, key)
        self.links = []
        self.confirmed = []  # frames of each link that were reported, with (count, sent)
        self.serial = 0
        self.connection = None

    @rule(
        max_message=st.sampled_from([256, 512, 8192]),
        room=st.integers(0, 30),
        pressure=st.sampled_from([None, 0, 50, 75, 90]),
    )
    @precondition(lambda self: self.connection is None)
    def connect(self, max_message, room, pressure):
        self.engine.cancel(self.peer.retry)
        self.peer.retry = None
        self.connection = connection = Connection(
            self.engine.tag(), ("127.0.0.1", 1), dialled=True, now=0.0, peer=self.peer
        )
        for step in (Step.DIAL, Step.ESTABLISH):
            connection.advance(step)
        connection.link = PartLink(room)
        self.links.append(connection.link)
        self.confirmed.append([])
        self.engine.connections.add(connection)
        self.peer.capabilities = None if pressure is None else capabilities(pressure, max_message)
        connection.advance(Step.GREET)
        self.engine.switchboard._open(connection, self.peer)

    def teach(self, payload, number, priority, key):
        assert number not in self.accepted
        self.accepted[number] = payload, priority, key

    @rule(
        priority=st.sampled_from(Priority),
        size=st.sampled_from([6, 100, 300, 600, 4096]),
        key=st.sampled_from([None, None, "pos", 3]),
    )
    def send(self, priority, size, key):
        if self.connection is None:
            return
        self.serial += 1
        payload = self.serial.to_bytes(4, "big") + bytes(size - 4)
        before = self.peer.accepted
        if self.peer.accept(payload, False, priority, key):
            assert self.peer.accepted == before + 1
            self.teach(payload, before + 1, priority, key)
        else:
            assert self.peer.accepted == before

    @rule(
        count=st.integers(1, 20),
        size=st.sampled_from([6, 600]),
        priority=st.sampled_from([Priority.NORMAL, Priority.LOW]),
    )
    def send_many(self, count, size, priority):
        if self.connection is None:
            return
        payloads = [
            (self.serial + number).to_bytes(4, "big") + bytes(size - 4)
            for number in range(1, count + 1)
        ]
        self.serial += count
        first = self.peer.accepted + 1
        for payload in payloads[: self.peer.accept_many(payloads, 0, priority)]:
            self.teach(payload, first, priority, None)
            first += 1

    @rule()
    def send_quickly(self):
        if self.peer.quick is None:
            return
        self.serial += 1
        payload = self.serial.to_bytes(4, "big")
        assert self.peer.outbox is None
        if self.peer.quick.send(payload) >= 0:
            self.peer.accepted += 1
            self.teach(payload, self.peer.accepted, Priority.NORMAL, None)

    @rule(data=st.data(), room=st.integers(0, 20), sent=st.sampled_from([True, True, True, False]))
    def report(self, data, room, sent):
        if self.connection is None:
            return
        link, confirmed = self.links[-1], self.confirmed[-1]
        open_frames = len(link.frames) - sum(count for count, _ in confirmed)
        count = data.draw(st.integers(0, open_frames))
        confirmed.append((count, sent))
        link.room = room
        self.engine.traffic.sent(
            self.connection, count, 0 if sent else errors.ConnectionClosed.code
        )

    @rule(
        pressure=st.sampled_from([0, 49, 50, 75, 90]), max_message=st.sampled_from([256, 700, 8192])
    )
    def hear_capability(self, pressure, max_message):
        if self.connection is None:
            return
        self.peer.capabilities = capabilities(pressure, max_message)
        self.connection.link.max_message = max_message
        self.peer.on_pressure()

    @rule(error=st.booleans(), unconfirmed=st.integers(0, 30), left=st.integers(0, 5))
    def lose(self, error, unconfirmed=0, left=0):
        if self.connection is None:
            return
        link, sent = self.links[-1], []
        link.left = min(left, len(link.frames) - sum(count for count, _ in self.confirmed[-1]))
        self.confirmed[-1].append((link.left, True))
        for count, good in self.confirmed[-1]:
            sent += [good] * count
        frames = [index for index, good in enumerate(sent) if good]
        link.unconfirmed = min(unconfirmed, len(frames))
        link.lost = set(frames[len(frames) - link.unconfirmed :])
        self.engine.switchboard._end(
            self.connection, errors.ConnectionClosed("lost") if error else None
        )
        self.connection = None

    @invariant()
    def counted(self):
        assert self.peer.accepted == len(self.accepted) >= self.peer.reported
        outcomes = self.outcomes()
        assert self.peer.reported == len(outcomes)
        stats_failed = sum(what is not None for what in outcomes.values())
        assert (self.engine.totals.sent, self.engine.totals.failed) == (
            len(outcomes) - stats_failed,
            stats_failed,
        )
        if self.peer.quick is not None:
            assert self.peer.outbox is None and self.peer.lowest <= Priority.NORMAL

    def outcomes(self):
        outcomes = {}
        for event in self.told:
            if isinstance(event, events.Sent | events.Failed):
                what = None if isinstance(event, events.Sent) else event.outcome
                for number in range(event.first, event.last + 1):
                    assert number not in outcomes or (
                        outcomes[number] is None and what is events.Outcome.UNKNOWN
                    ), f"two outcomes of {number}"
                    outcomes[number] = what
        return outcomes

    def teardown(self):
        self.lose(True)
        self.engine.traffic.fail_queued(self.peer, errors.ConnectionClosed("over"))
        outcomes = self.outcomes()
        assert sorted(outcomes) == sorted(self.accepted)
        number_of = {payload: number for number, (payload, _, _) in self.accepted.items()}
        handed, whole_on_wire, last_of_class = set(), set(), dict.fromkeys(Priority, 0)
        for link, confirmed in zip(self.links, self.confirmed, strict=True):
            good = [sent for count, sent in confirmed for _ in range(count)]
            good += [False] * (len(link.frames) - len(good))
            good = [sent and index not in link.lost for index, sent in enumerate(good)]
            state = {}
            for (flags, payload), sent in zip(link.frames, good, strict=True):
                start = payload[8:] if flags & values.FRAGMENT else payload
                if not flags & values.FRAGMENT or payload[6] & 1:
                    number = next(number_of[each] for each in number_of if each[:4] == start[:4])
                    assert number not in handed, "handed twice"
                    handed.add(number)
                    _, priority, key = self.accepted[number]
                    if key is None and all(other is None for _, _, other in self.accepted.values()):
                        assert number > last_of_class[priority], "overtaken within its class"
                        last_of_class[priority] = number
                state[number] = state.get(number, True) and sent
            joined = link.joined() if link.frames and not self.cut_at_the_end(link) else []
            whole_on_wire |= {number_of[payload] for payload in joined}
            for number, sent in state.items():
                if outcomes[number] is None:
                    assert sent, f"{number} was falsely confirmed"
                else:
                    assert outcomes[number] is events.Outcome.UNKNOWN and not (
                        sent and number in whole_on_wire
                    )
        for number, what in outcomes.items():
            if number not in handed:
                assert what in (events.Outcome.FAILED, events.Outcome.REPLACED)
                assert what is not events.Outcome.REPLACED or self.accepted[number][2] is not None
        self.engine.close_now()

    @staticmethod
    def cut_at_the_end(link):
        flags, payload = link.frames[-1]
        return bool(flags & values.FRAGMENT) and not payload[6] & 2


AnyTraffic.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyTraffic = AnyTraffic.TestCase


def test_a_higher_class_overtakes_what_waits_and_the_outcomes_name_the_right_numbers(engine):
    """The number that send returned is the one that its outcome carries, though it left out of
    turn."""
    link = PartLink(room=1)
    peer = peer_of(engine, link)
    told = []
    engine.publish = told.append
    for number, priority in enumerate(
        (Priority.NORMAL, Priority.LOW, Priority.NORMAL, Priority.CRITICAL), 1
    ):
        assert peer.accept(b"%d" % number, False, priority) and peer.accepted == number
    link.room = 9
    engine.traffic.sent(peer.connection, 1, 0)
    assert link.plain == [b"1", b"4", b"3", b"2"] and peer.quick is not None
    assert peer.quick.send(b"5") == 0
    peer.accepted += 1
    engine.traffic.sent(peer.connection, 4, 0)
    assert [(event.first, event.last) for event in told] == [(1, 1), (4, 4), (3, 3), (2, 2), (5, 5)]
    engine.publish = None


def test_what_lies_unsent_in_the_system_is_bounded_once_there_are_classes(engine):
    """Nothing overtakes what the system holds. While all are of one class a bound would only cost
    throughput."""
    peer = peer_of(engine, PartLink())
    before = engine.world.bounded
    assert (
        peer.accept(b"x", False) and peer.accept_many([b"x"], 0) and engine.world.bounded == before
    )
    for _ in range(2):
        assert (
            peer.accept(b"x", False, Priority.HIGH)
            and peer.accept_many([b"x"], 0, Priority.LOW)
            and engine.world.bounded == before + 1
        )


def test_the_newest_of_a_key_is_sent_and_the_others_end_as_replaced(engine):
    """Truthful: the peer has not got them, and they did not fail for any fault."""
    link = PartLink(room=0)
    peer = peer_of(engine, link)
    told = []
    engine.publish = told.append
    before = engine.totals.abandoned
    for data, key in ((b"1", "pos"), (b"2", None), (b"3", "pos"), (b"4", 7), (b"5", "pos")):
        assert peer.accept(data, False, key=key)
    link.room = 9
    engine.pump(peer)
    assert (
        link.plain == [b"5", b"2", b"4"]
        and peer.accepted == 5
        and engine.totals.abandoned - before == 2
    )
    assert [(event.first, event.outcome, event.error.code) for event in told] == [
        (1, events.Outcome.REPLACED, ERR_CANCELLED),
        (3, events.Outcome.REPLACED, ERR_CANCELLED),
    ]
    assert "message 3 to peer 'bob' was replaced by message 5 with the same key, 'pos'" in str(
        told[1].error
    )
    assert peer.accept(b"6", False, key="pos") and link.plain[-1] == b"6", (
        "what has left is not replaced"
    )
    engine.publish = None


@pytest.mark.parametrize(
    ("pressure", "refused"),
    [(0, 0), (49, 0), (50, 1), (74, 1), (75, 2), (89, 2), (90, 3), (100, 3)],
)
def test_the_peers_pressure_refuses_the_lower_classes_at_the_originals_thresholds(
    engine, pressure, refused
):
    """LOW, then NORMAL, then HIGH; CRITICAL always goes. Nothing is accepted of what is refused."""
    link = PartLink()
    peer = peer_of(engine, link, classic=True)
    peer.capabilities = capabilities(pressure)
    peer.on_pressure()
    assert (peer.quick is None) == (refused > Priority.NORMAL)
    assert [peer.accept(b"x", False, priority) > 0 for priority in Priority] == [
        priority >= refused for priority in Priority
    ]
    assert [peer.accept_many([b"x"], 0, priority) for priority in Priority] == [
        int(priority >= refused) for priority in Priority
    ]
    assert peer.accepted == len(link.plain) == 2 * (4 - refused)
    assert peer.queue.pressure == pressure and peer.queue.reason == ("pressure" if refused else "")
    if refused:
        refusal = peer.no_room(Priority(refused - 1))
        assert (
            refusal.reason == "pressure"
            and f"'bob' reports a pressure of {pressure}: it takes {Priority(refused).name}"
            in str(refusal)
        )
        with pytest.raises(errors.WouldBlock):
            peer.accept_from_afar(b"x", False, Priority(refused - 1))
    peer.capabilities = capabilities(0)
    peer.on_pressure()
    assert peer.quick is not None and peer.accept(b"x", False, Priority.LOW)


def test_the_pressure_of_one_of_ours_refuses_low_messages_only(engine):
    """Its connection is paused while its inbox is full: that holds NORMAL ones back, and lets them
    go on without a round trip."""
    peer = peer_of(engine, PartLink())
    peer.capabilities = capabilities(100)
    peer.on_pressure()
    assert peer.quick is not None and [
        peer.accept(b"x", False, priority) for priority in Priority
    ] == [0, 1, 2, 3]


def test_a_message_that_waits_can_be_renewed_whatever_the_pressure(engine):
    """It leaves anyway; refusing the newer one would only make it an old one."""
    link = PartLink(room=0)
    peer = peer_of(engine, link)
    assert peer.accept(b"old", False, Priority.LOW, "pos")
    peer.capabilities = capabilities(100)
    peer.on_pressure()
    assert peer.accept(b"new", False, Priority.LOW, "pos") and not peer.accept(
        b"other", False, Priority.LOW, "other"
    )
    link.room = 5
    engine.pump(peer)
    assert link.plain == [b"new"]


@pytest.mark.parametrize("size", [513, 3_968, 4_096])
def test_a_long_message_goes_to_a_classic_peer_in_pieces_whatever_room_there_is(engine, size):
    """Cut where the link refuses, finished before anything else, of any class, goes; and it is sent
    when its last piece is."""
    link = PartLink(room=3, max_message=512)
    peer = peer_of(engine, link, classic=True)
    told = []
    engine.publish = told.append
    data = bytes(index % 251 for index in range(size))
    assert (
        peer.accept(b"before", False)
        and peer.accept(data, True, Priority.LOW)
        and peer.accept(b"after", False, Priority.CRITICAL)
    )
    reported = 0
    while peer.reported < 3:
        assert len(link.frames) > reported, "it stopped"
        count, reported, link.room = len(link.frames) - reported, len(link.frames), 2
        engine.traffic.sent(peer.connection, count, 0)
    assert link.joined() == [b"before", data, b"after"] and peer.quick is not None
    assert [number for event in told for number in range(event.first, event.last + 1)] == [1, 2, 3]
    engine.publish = None


def test_message_ids_of_fragments_count_for_the_whole_node_and_wrap(engine):
    """As the original: one 16-bit counter."""
    engine.traffic._fragmented = 0xFFFF
    links = [PartLink(max_message=512) for _ in range(2)]
    for link in links:
        assert peer_of(engine, link, classic=True).accept(bytes(600), False)
    assert [struct.unpack_from(">H", link.frames[0][1])[0] for link in links] == [0xFFFF, 0]


def test_what_no_fragments_can_carry_is_refused_before_a_byte_is_sent(engine):
    """The original would put 16 pieces of it on the wire and then fail; to one of ours a limit is a
    limit."""
    classic, ours, tight = (
        PartLink(max_message=512),
        PartLink(max_message=512),
        PartLink(max_message=71),
    )
    for link, is_classic, limit, said in (
        (classic, True, 4096, "fragments; in one frame it takes 512"),
        (ours, False, 512, ""),
        (tight, True, 71, ""),
    ):
        peer = peer_of(engine, link, classic=is_classic)
        with pytest.raises(
            errors.MessageTooLarge, match=rf"peer 'bob': the limit is {limit:,} \(.*{said}"
        ):
            peer.accept(bytes(limit + 1), False)
        with pytest.raises(errors.MessageTooLarge):
            peer.accept_many([bytes(limit + 1)], 0)
        assert not link.frames and peer.accepted == 0


def test_messages_of_another_thread_do_not_wait_behind_a_lower_class(engine):
    """A low one that has no room must not hold up a critical one."""
    peer = peer_of(engine, PartLink(room=0))
    while peer.accept(b"low", False, Priority.LOW):
        pass
    for data, priority in ((b"more", Priority.LOW), (b"now", Priority.CRITICAL)):
        peer.accept_from_afar(data, False, priority)
    peer.take_from_afar()
    assert (
        peer.outbox.peek(9) == [b"now"]
        and peer.afar
        and peer.drop_from_afar() == 1
        and not peer.afar
    )


class Blocked(Place):
    """Somebody who stands in line and has no room yet."""

    room = False

    def offer(self):
        return self.room

    def fail(self, error):
        raise error


def test_a_message_in_pieces_lets_nobody_overtake_those_who_stand_in_line(engine):
    """Handed over at once it left the fast way open, beside the line."""
    peer = peer_of(engine, PartLink(max_message=512), classic=True)
    early = Blocked(peer, Priority.NORMAL)
    early.join()
    assert peer.accept(bytes(1000), False, Priority.HIGH) and not peer.queued
    assert peer.quick is None
    with pytest.raises(errors.WouldBlock, match="1 sends that were called before"):
        peer.offer(b"late", False)
    early.room = True
    peer.on_room()
    assert peer.quick is not None and peer.lines is None


def test_a_broadcast_does_not_block_where_a_send_would(engine):
    """In a world that blocks one frozen peer would cost 5 s in each round."""
    peer = peer_of(engine, GivenLink([0, 0, 0, 0, 0, 0]))
    for number in range(4):
        peer.offer(b"%d" % number, False)
    with pytest.raises(errors.WouldBlock):
        peer.offer(b"too many", False)
