"""No exception ends a turn: whatever raises in one, and wherever, all that had come is served in
the end, nothing half made stays, and the exception goes to whoever turned the engine.

Two engines are turned by hand, on real sockets. What is injected is an exception at one line of the
engine (as a signal handler raises it), or at one call of what the engine stands on; the scenario is
played anew for each.
"""

from __future__ import annotations

import errno
import gc
import inspect
import os
import signal
import sys
import threading
import time
from array import array
from collections import Counter
from pathlib import Path

import pytest
from kit.waiting import GUARD

import peertalk as pt
from peertalk._core import values
from peertalk.config import load_config
from peertalk.doors.streaming import Outgoing
from peertalk.protocol import events
from peertalk.runtime.transport import Transport
from peertalk.runtime.world import World

ROOMS = ("doors", "runtime", "protocol")
ENGINE = tuple(str(Path(pt.__file__).parent / room) + os.sep for room in ROOMS)
MESSAGES = 30
LINES_TRIED = 24
"""Of about 2,000 that a meeting takes; which ones changes with the process."""
SIGNALS = 300


class Struck(Exception):
    """What is injected where an ordinary exception is."""


def make_engine(name, world=None, **options):
    wanted = {
        "bind": "127.0.0.1",
        "port": 0,
        "discovery": False,
        "drain_timeout": 0.5,
        "connect_timeout": 0.5,
    }
    config = load_config(name=name, **(wanted | options))
    engine = Transport(config, world or World(), lambda remote: remote, lambda: None)
    engine.open()
    return engine


def descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


class Meeting:
    """Engines that are turned together, what they have received, and what came out of the turns of
    the first."""

    def __init__(self, *engines):
        self.engines = engines
        self.received = {engine: [] for engine in engines}
        self.raised = []
        self.turn_first = engines[0].turn

    def turn(self):
        for engine in self.engines:
            if engine.closed:
                continue
            if engine is self.engines[0]:
                try:
                    self.turn_first()
                except (Struck, KeyboardInterrupt, OSError, pt.PeerTalkError) as error:
                    self.raised.append(error)
            else:
                engine.turn()
            while (taken := engine.inbox.take()) is not None:
                self.received[engine].append(taken[1])

    def until(self, condition):
        end = time.monotonic() + GUARD
        while not condition():
            assert time.monotonic() < end, inspect.getsource(condition)
            self.turn()

    def connect(self, here, there):
        """A peer that is connected on both sides; dialled again when that was struck."""
        for _ in range(4):
            peer = self._dial(here, there)
            if peer is not None and peer.connected:
                return peer
        raise AssertionError("what was injected once fails for ever")

    def _dial(self, here, there):
        told, name = [], here.config.name
        here.switchboard.dial(("127.0.0.1", there.port), lambda *outcome: told.append(outcome))
        self.until(lambda: told)
        peer, error = told[0]
        assert (peer is None) is (error is not None)

        def known():
            return any(each.connected for each in there.peers.values() if each.name == name)

        if peer is not None:
            self.until(lambda: not peer.connected or known())
        return peer

    def close(self):
        """Leave politely; nothing of the first one is left."""
        first = self.engines[0]
        closed = []
        first.close(1.0, lambda: closed.append(True))
        self.until(lambda: closed)
        for engine in self.engines:
            engine.close_now()
        switchboard = first.switchboard
        assert not any(
            (
                first.connections.by_tag,
                first._timers,
                first._watched,
                first._came,
                first._calls,
                switchboard._ending,
                switchboard._opening,
                switchboard._waiting,
            )
        )
        assert first.loop.pool.statistics().in_use == 0


class Noted:
    """A loop that notes the messages that it brings."""

    def __init__(self, loop):
        self._loop = loop
        self.brought = []

    def __getattr__(self, name):
        return getattr(self._loop, name)

    def turn(self, timeout, events):
        self._loop.turn(timeout, events)
        for kind, _, _, b in events:
            if kind == values.BATCH:
                self.brought += b


class Strike:
    """Raises at the n-th line of the engine, or of some of its files."""

    def __init__(self, at, kind, files=ENGINE):
        self.at = at
        self.kind = kind
        self.files = files
        self.lines = 0
        self.where = None

    def __call__(self, frame, what, _):
        if not frame.f_code.co_filename.startswith(self.files):
            return None
        if what == "line" and self.where is None:
            self.lines += 1
            if self.lines == self.at:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                sys.settrace(None)
                raise self.kind("injected")
        return self

    def turning(self, turn):
        """The turn, struck."""

        def struck():
            before = sys.gettrace()
            if self.where is None:
                sys.settrace(self)
            try:
                turn()
            finally:
                sys.settrace(before)

        return struck

    def in_a(self, played):
        """What played(self) returns; its failure says where it was struck."""
        try:
            return played(self)
        except BaseException as error:
            error.add_note(f"{self.kind.__name__} was raised at line {self.at}, {self.where}")
            raise


def play(strike):
    """Ada dials Bob; they send, stream, ping and part. Everything that Ada was told is checked.
    Returns how many exceptions came out of her turns."""
    ada, bob = make_engine("ada"), make_engine("bob")
    ada.loop = noted = Noted(ada.loop)
    told = []
    ada.publish = told.append
    meeting = Meeting(ada, bob)
    meeting.turn_first = strike.turning(ada.turn)
    peer = meeting.connect(ada, bob)
    (theirs,) = (each for each in bob.peers.values() if each.connected)
    for number in range(MESSAGES):
        peer.accept(b"to bob %d" % number, False)
        theirs.accept(b"to ada %d" % number, False)
    stream = Outgoing(peer, bytes(3000))
    if peer.connected:
        stream.begin()
    measured = []
    ada.switchboard.pulse.ping(peer, lambda *outcome: measured.append(outcome))
    meeting.until(lambda: measured)
    meeting.until(lambda: stream.state.name not in ("SENDING",))
    meeting.until(lambda: peer.reported == peer.accepted)
    meeting.until(lambda: len(meeting.received[ada]) == MESSAGES or not theirs.connected)
    bob.switchboard.leave(theirs)
    meeting.until(lambda: not (peer.connection or peer.connected or theirs.connected))
    meeting.close()
    outcomes = {
        number
        for event in told
        if isinstance(event, events.Sent | events.Failed)
        for number in range(event.first, event.last + 1)
    }
    kinds = Counter(type(event) for event in told)
    assert meeting.received[ada] == noted.brought, "each once, in order"
    assert outcomes == set(range(1, peer.accepted + 1))
    assert kinds[pt.PeerDisconnected] >= kinds[pt.PeerConnected] > 0
    return len([error for error in meeting.raised if isinstance(error, strike.kind)])


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Struck])
def test_an_exception_at_any_line_of_a_turn_costs_nothing_that_had_come(kind):
    """A signal handler may raise between any two. KeyboardInterrupt comes out of the turn, once; an
    ordinary exception too, or it was told to who waited for what it cut off."""
    before, dry = descriptors(), Strike(0, kind)
    assert play(dry) == 0
    stride = max(1, dry.lines // LINES_TRIED)
    first, hits = 1 + os.getpid() % stride, 0
    for line in range(first, dry.lines + 1, stride):
        strike = Strike(line, kind)
        count = strike.in_a(play)
        hits += strike.where is not None
        assert count == (strike.where is not None) or (kind is Struck and count == 0), strike.where
    assert hits * 2 > LINES_TRIED
    assert descriptors() == before


LARGE = tuple(folder + "large.py" for folder in ENGINE)
SIZES = (300_000, 270_000, 5, 400_000, 280_000)


def play_large(strike):
    """Bob sends Ada large messages, of which she has memory for one at a time. All that he was told
    to be sent has come, and nothing is left of what she has granted."""
    ada, bob = make_engine("ada", receive_large_bytes=400_000), make_engine("bob")
    meeting = Meeting(ada, bob)
    meeting.connect(ada, bob)
    (theirs,) = (each for each in bob.peers.values() if each.connected)
    meeting.turn_first = strike.turning(ada.turn)
    sent = [bytes([65 + number]) * size for number, size in enumerate(SIZES)]
    for message in sent:
        meeting.until(lambda each=message: theirs.connected and theirs.accept(each, False))
    meeting.until(lambda: theirs.reported == theirs.accepted == len(SIZES))
    meeting.until(lambda: len(meeting.received[ada]) >= theirs.stats().messages_sent)
    meeting.until(lambda: not ada.traffic.landings.grants.held)
    assert not ada.traffic.landings.grants.waiting and meeting.received[bob] == []
    assert meeting.received[ada] == [each for each in sent if each in meeting.received[ada]]
    meeting.close()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Struck])
def test_an_exception_at_any_line_about_large_messages_costs_none_that_had_come(kind):
    """What is half granted would keep its memory from all others for good, and whoever was not told
    of its grant would wait for ever."""
    before, dry = descriptors(), Strike(0, kind, LARGE)
    play_large(dry)
    stride = max(1, dry.lines // LINES_TRIED)
    for line in range(1 + os.getpid() % stride, dry.lines + 1, stride):
        Strike(line, kind, LARGE).in_a(play_large)
    assert descriptors() == before


def part(strike):
    """Ada and Bob are connected; the strike is for the turns in which Ada leaves. Returns how many
    lines they took."""
    meeting = Meeting(make_engine("ada"), make_engine("bob"))
    peer = meeting.connect(*meeting.engines)
    peer.accept(b"last words", False)
    meeting.turn_first = strike.turning(meeting.turn_first)
    meeting.close()
    return strike.lines


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Struck])
def test_an_exception_at_any_line_of_the_end_leaves_nothing_open_and_nobody_waiting(kind):
    """The last lines give everything back and wake aclose(): one that is struck there would wait
    for ever, and keep the descriptors."""
    lines, before = part(Strike(0, kind)), descriptors()
    for line in range(max(1, lines - 120) + os.getpid() % 2, lines + 1, 2):
        Strike(line, kind).in_a(part)
    assert descriptors() == before


@pytest.mark.parametrize("raised", [1, 1 << 60], ids=["once", "always"])
def test_a_function_that_was_cut_off_outside_a_turn_is_called_in_the_next_one(raised):
    """Else nobody calls it, and its driver makes turn after turn because of it."""
    ada, called = make_engine("ada"), []

    def interrupted():
        called.append(1)
        if len(called) <= raised:
            raise KeyboardInterrupt

    ada.call([interrupted])
    with pytest.raises(KeyboardInterrupt):
        ada.call_all()
    meeting = Meeting(ada)
    meeting.turn()
    assert len(called) == 2 and len(meeting.raised) == (raised > 1)
    assert not ada._came and not ada._calls
    ada.close_now()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Struck])
def test_an_order_that_was_cut_off_before_its_first_line_is_made_good(kind):
    """Python 3.12 may be struck there: a grant that was to be given waited for the next event."""
    ada, bob = make_engine("ada"), make_engine("bob")
    meeting = Meeting(ada, bob)
    meeting.connect(ada, bob)
    landings = ada.traffic.landings
    (connection,) = ada.connections.by_tag.values()
    landings.grants.offered(connection, 1, 300_000)

    def struck():
        raise kind("injected")

    ada.post(struck)  # in the place of Landings.serve
    meeting.until(lambda: not landings.grants.waiting)
    assert landings.grants.held == 300_000
    meeting.close()


def test_an_action_that_always_raises_is_tried_now_and_then():
    """asyncio.CancelledError is no Exception: it was taken for a signal's, and done again in the
    same tick, tens of thousands of times a second."""
    ada, tried = make_engine("ada"), []

    def fails():
        tried.append(1)
        raise KeyboardInterrupt

    ada.after(0.0, fails)
    meeting = Meeting(ada)
    meeting.until(lambda: len(tried) == 2)  # at once: the first time a signal may have done it
    meeting.turn()
    delay = ada.loop.next_timeout()
    assert delay is not None and delay > 0 and len(tried) == 2
    ada.close_now()


def runs(numbers):
    """(first, one behind the last) of numbers that follow on each other: mostly all of a lot."""
    first, behind = numbers[0], numbers[0] + len(numbers)
    if numbers == array("Q", range(first, behind)):
        return [(first, behind)]
    return [(number, number + 1) for number in numbers]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_signal_handlers_that_raise_lose_no_message_of_an_engine_that_is_turned_on(monkeypatch):
    """Real signals, which come where the time is spent: mostly in the system, so that the handler
    runs the moment that the events of a turn are handed over. One may strike while the last one is
    mended, so this does not ask that nothing is there twice; one a millisecond, on a busy machine,
    would strike each try to mend. One may strike within socket.accept(),
    which then loses the descriptor: nobody will ever read that connection, and bob begins anew."""
    # A strike where nothing can be raised goes to this hook. That of pytest reads sources there,
    # which the next signal may strike.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    ada, stop, armed = make_engine("ada"), threading.Event(), False
    dials = 0

    def send():
        nonlocal dials
        bob = make_engine("bob")
        number, idle, peer, found = 0, 0, None, []
        while not stop.is_set():
            if idle > 100:
                bob.close_now()
                bob, idle, peer = make_engine("bob"), 0, None
            if peer is None or not peer.connected:
                found.clear()
                dials += 1
                bob.switchboard.dial(("127.0.0.1", ada.port), lambda who, _: found.append(who))
                while not found and not stop.is_set():
                    bob.turn(0.01)
                peer = found[0] if found else None
                continue
            lot = array("Q", range(number, number + 100)).tobytes()
            taken = peer.accept_many([lot[at : at + 8] for at in range(0, len(lot), 8)], 0, 1)
            number += taken
            idle = 0 if taken else idle + 1
            bob.turn(0.0 if taken else 0.01)
        bob.close_now()

    def strike(*_):
        if armed:
            raise Struck

    before = signal.signal(signal.SIGALRM, strike)
    sender = threading.Thread(target=send)
    sender.start()
    struck, received, end = 0, [], time.monotonic() + 3 * GUARD
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.004, 0.004)
        while struck < SIGNALS or len(received) < 100:
            assert time.monotonic() < end
            try:
                armed = True
                ada.turn(0.01)
                armed = False
            except Struck:
                armed = False
                struck += 1
                if struck % 50 == 0:
                    gc.collect()  # a socket that was struck on its way from accept() is closed
            while (lot := ada.inbox.take_lot()) is not None:
                received += runs(array("Q", b"".join(lot[1])))
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        stop.set()
        sender.join()
    ada.close_now()
    gaps, reached = 0, min(received)[0]
    for first, behind in sorted(received):
        gaps += first > reached
        reached = max(reached, behind)
    # one more than connections ended: a strike while another one is mended may cost an event
    assert gaps <= dials, "messages are missing though their connection did not end"


class Plan:
    """Which call fails, once: the n-th of this name, or of all (None)."""

    def __init__(self, at, name=None):
        self.at = at
        self.name = name
        self.calls = Counter()
        self.failed = None
        self.runs = False

    def call(self, what, error):
        if self.runs:
            self.calls[what] += 1
            count = self.calls.total() if self.name is None else self.calls[self.name]
            if count == self.at and self.name in (None, what):
                self.failed = what
                raise error


class FailingLoop:
    """A loop that refuses one descriptor, link or timer."""

    def __init__(self, loop, plan):
        self._loop = loop
        self._plan = plan

    def __getattr__(self, name):
        attribute = getattr(self._loop, name)
        if name not in ("watch", "open_link", "timer"):
            return attribute

        def call(*arguments, **options):
            self._plan.call(f"loop.{name}", pt.errors.PlatformError("injected"))
            return attribute(*arguments, **options)

        return call


class FailingWorld(World):
    """A machine that refuses one call."""

    plan = None

    def make_loop(self, core, config):
        return FailingLoop(super().make_loop(core, config), self.plan)


def _refusing(name):
    def call(self, *arguments, **options):
        error = OSError(errno.ENOMEM, "injected")
        self.plan.call(
            f"world.{name}", pt.errors.PlatformError("injected") if name == "accept" else error
        )
        return getattr(World, name)(self, *arguments, **options)

    return call


for _name in (
    "listen",
    "dial",
    "accept",
    "outcome",
    "open_link",
    "interfaces",
    "datagram_socket",
    "unicast_socket",
    "hear",
    "broadcast",
):
    setattr(FailingWorld, _name, _refusing(_name))


def play_failing(plan, port):
    """Ada, whose machine fails once, meets two others: who was struck hears of it, and all goes
    on."""
    world = FailingWorld()
    world.plan = plan
    options = {
        "discovery": True,
        "discovery_port": port,
        "announce_interval": 0.1,
        "ping_interval": 0.05,
    }
    ada, *others = (
        make_engine(name, machine, **options)
        for name, machine in (("ada", world), ("bob", None), ("cyd", None))
    )
    bob, cyd = others
    meeting = Meeting(ada, bob, cyd)
    plan.runs = True
    to_bob, to_ada = meeting.connect(ada, bob), meeting.connect(cyd, ada)
    for number in range(MESSAGES):
        to_bob.accept(b"%d" % number, False)
        to_ada.accept(b"%d" % number, False)
    meeting.until(lambda: to_bob.reported == to_bob.accepted)
    meeting.until(lambda: to_ada.reported == to_ada.accepted)
    ada.switchboard.leave(to_bob)
    meeting.until(lambda: not (to_bob.connection or to_bob.connected))
    meeting.until(lambda: {"bob", "cyd"} <= {peer.name for peer in ada.peers.values()})
    plan.runs = False
    # it is as good as new: it dials, is called, hears and is heard
    for peer in (meeting.connect(ada, bob), meeting.connect(bob, ada), meeting.connect(cyd, ada)):
        peer.accept(b"after it", False)
    meeting.until(lambda: meeting.received[ada].count(b"after it") == 2)
    meeting.until(lambda: meeting.received[bob].count(b"after it") == 1)
    for other in others:
        meeting.until(lambda other=other: "ada" in {peer.name for peer in other.peers.values()})
    meeting.close()


def test_a_call_of_the_system_that_fails_once_is_told_and_leaves_nothing_behind(free_port):
    """Memory, descriptors and places in an epoll set may be short for a moment: the dial, the link
    or the announcement that met it ends with an error or comes again, and nothing else is met."""
    before, port, dry = descriptors(), free_port(), Plan(0)
    play_failing(dry, port)
    always = {"loop.watch", "loop.timer", "loop.open_link", "world.dial", "world.accept"}
    assert always <= set(dry.calls)
    for name, count in dry.calls.items():
        for at in range(1, count + 1):  # of the later ones there may be fewer next time
            plan = Plan(at, name)
            try:
                play_failing(plan, port)
            except BaseException as error:
                error.add_note(f"call {at} of {name} failed")
                raise
            assert plan.failed == name or at > 1 or name not in always
    assert descriptors() == before


def test_a_node_that_the_system_does_not_let_start_says_so_and_holds_nothing(free_port):
    """The same while it starts: it does not, and another one can take its place."""
    port, before, at = free_port(), descriptors(), 0
    while True:
        at += 1
        world = FailingWorld()
        world.plan = plan = Plan(at)
        plan.runs = True
        try:
            engine = make_engine("ada", world, discovery=True, discovery_port=port)
        except (pt.PeerTalkError, OSError) as error:
            assert "injected" in str(error)
            del error
        else:
            engine.close_now()
            del engine
        if plan.failed is None:
            break
        assert descriptors() == before, plan.failed
    assert at > 5


def test_what_a_callback_raises_comes_out_of_the_turn_that_has_served_all_others():
    """A dial's, a timer's, a socket's and an order's: whoever comes behind is called; a timer comes
    again, because what it was to set up next would never come."""
    ada, bob = make_engine("ada"), make_engine("bob")
    meeting = Meeting(ada, bob)
    served = []

    def fail(*_):
        raise Struck

    where = ("127.0.0.1", bob.port)
    ada.switchboard.dial(where, fail)
    ada.switchboard.dial(where, lambda who, _: served.append("reached"))
    meeting.until(lambda: "reached" in served)
    assert [type(error) for error in meeting.raised] == [Struck]
    meeting.raised.clear()

    times = []

    def late():
        times.append(True)
        if len(times) == 1:
            raise Struck

    ada.after(0, late)
    ada.after(0, lambda: served.append("timer"))
    ada.post(fail)
    ada.post(lambda: served.append("order"))
    meeting.until(lambda: {"timer", "order"} <= set(served))
    assert [type(error) for error in meeting.raised] == [Struck], "the others are logged"
    meeting.until(lambda: len(times) == 2)
    (peer,) = ada.peers.values()
    assert peer.connected
    meeting.close()


def test_a_socket_whose_callback_raises_is_not_looked_at_for_a_moment():
    """It is ready as before: a processor would be busy with the same exception."""
    ada = make_engine("ada")
    here, there = os.pipe()

    class End:
        fileno = staticmethod(lambda: here)

    calls = []

    def fail():
        calls.append(True)
        if len(calls) == 1:
            raise Struck
        os.read(here, 1)

    watched = ada.watch(End, values.READ, fail)
    os.write(there, b"x")
    with pytest.raises(Struck):
        while True:
            ada.turn(0.01)
    for _ in range(20):
        ada.turn()
    assert len(calls) == 1
    end = time.monotonic() + GUARD
    while len(calls) == 1 and time.monotonic() < end:
        ada.turn(0.05)
    assert len(calls) == 2
    ada.unwatch(watched)
    ada.close_now()
    os.close(here)
    os.close(there)


def test_a_listener_that_is_refused_twice_hears_in_the_end(monkeypatch):
    """Out of descriptors it listens no more for a moment; when its watch is refused then, it would
    have been deaf for ever."""
    monkeypatch.setattr("peertalk.runtime.listening._ACCEPT_PAUSE", 0.001)
    world = FailingWorld()
    world.plan = plan = Plan(1)
    ada, bob = make_engine("ada", world), make_engine("bob")
    meeting = Meeting(ada, bob)
    connected = []
    bob.switchboard.dial(("127.0.0.1", ada.port), lambda who, _: connected.append(who))
    watch, refused = ada.watch, []

    def refuse(*arguments):
        refused.append(arguments)
        if len(refused) < 3:
            raise pt.errors.PlatformError("injected")
        return watch(*arguments)

    monkeypatch.setattr(ada, "watch", refuse)
    plan.runs = True
    meeting.until(lambda: connected)
    assert plan.failed == "world.accept" and len(refused) == 3
    assert connected[0].connected
    meeting.close()


def test_a_report_that_is_cut_off_loses_nothing_that_comes_meanwhile(monkeypatch):
    """The connection ends, since nobody knows what was told. What the other side sends until it
    hears of that, and takes for sent, is read to its end: what comes just before the socket is
    closed would be acknowledged, and read by nobody."""
    ada, bob = make_engine("ada"), make_engine("bob")
    meeting = Meeting(ada, bob)
    there = meeting.connect(ada, bob)
    back = next(iter(bob.peers.values()))
    sent, end, was_cut = ada.traffic.sent, ada.switchboard._end, []

    def cut(*arguments):
        if not was_cut:
            was_cut.append(True)
            raise Struck
        sent(*arguments)

    def send():
        for _ in range(20):
            if back.connected:
                number = back.accepted.to_bytes(8, "big")
                back.accept(number + bytes(500), False, may_block=False)
        for _ in range(3):  # they leave, and are told as sent
            bob.turn()

    def end_late(*arguments, **more):
        send()
        end(*arguments, **more)

    monkeypatch.setattr(ada.traffic, "sent", cut)
    monkeypatch.setattr(ada.switchboard, "_end", end_late)
    there.accept(b"reported", False, may_block=False)
    meeting.until(lambda: send() or was_cut)
    meeting.until(lambda: not ada.connections.by_tag and not bob.connections.by_tag)
    assert meeting.raised and isinstance(meeting.raised[0], Struck)
    arrived = [int.from_bytes(message[:8], "big") for message in meeting.received[ada]]
    assert arrived == sorted(set(arrived))
    assert len(arrived) == back.accepted >= 20 and not back.failed
    meeting.close()


def test_a_close_whose_ends_were_cut_off_is_done_by_the_next(monkeypatch):
    """Wherever it was struck: nobody turns an engine that its owner has closed twice."""
    ada, bob = make_engine("ada"), make_engine("bob")
    meeting = Meeting(ada, bob)
    meeting.connect(ada, bob)
    end_on, was_cut = ada.switchboard._end_on, []

    def cut(ending):
        if not was_cut:
            was_cut.append(True)
            raise KeyboardInterrupt  # before its first step
        end_on(ending)

    monkeypatch.setattr(ada.switchboard, "_end_on", cut)
    with pytest.raises(KeyboardInterrupt):
        ada.close_now()
    assert not ada.released
    ada.close_now()
    assert ada.released
    meeting.until(lambda: not bob.connections.by_tag)
    bob.close_now()
