"""Each line says whose it is; troubles that last are two lines, however often something fails
meanwhile.

The engine of the troubles is made up: time passes when the test says so.
"""

from __future__ import annotations

import asyncio
import logging
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.inside import connections_of, end_connection, engine_of
from kit.waiting import until

import peertalk as pt
import peertalk.sync
from peertalk.runtime.log import SETTLED, SETTLED_MAX, NodeLog, Troubles

BEGIN = "peertalk: node 'ada': "


class Engine:
    """A clock and timers."""

    def __init__(self):
        self.now = 1_000.0
        self.timers = []
        self.world = types.SimpleNamespace(clock=lambda: self.now)

    def after(self, delay, action):
        self.timers.append((self.now + delay, action))
        return self.timers[-1]

    def cancel(self, timer):
        if timer in self.timers:
            self.timers.remove(timer)

    def pass_time(self, seconds):
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now = first[0]
            first[1]()
        self.now = end


class Lines(logging.Handler):
    """What was logged."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        assert record.levelno == logging.WARNING
        self.lines.append(record.getMessage())

    def taken(self):
        lines, self.lines[:] = list(self.lines), []
        return lines


@pytest.fixture
def made():
    return make()


def make():
    engine, lines = Engine(), Lines()
    log = NodeLog("made up", "ada")
    log.logger = logging.Logger("made up")
    log.logger.addHandler(lines)
    return engine, Troubles(engine, log), lines


@pytest.mark.parametrize("name", ["ada", "100 %s", "a\nb"])
def test_a_line_begins_with_the_program_and_the_node_and_is_where_it_was_called(caplog, name):
    """Several nodes live in one program, and a name may be anything."""
    caplog.set_level(logging.DEBUG, "peertalk")
    log = NodeLog("peertalk.network", name)
    log.warning("%d of %s", 3, "bob")
    log.info("as it is")
    log.exception("with %r", "what was raised", exc_info=False)
    log.log(logging.DEBUG, "last")
    begin = f"peertalk: node {name!r}: "
    assert caplog.messages == [
        begin + text for text in ("3 of bob", "as it is", "with 'what was raised'", "last")
    ]
    assert {record.name for record in caplog.records} == {"peertalk.network"}
    assert {record.filename for record in caplog.records} == {"test_log.py"}
    logging.getLogger("peertalk.network").setLevel(logging.ERROR)
    try:
        log.warning("not wanted")
    finally:
        logging.getLogger("peertalk.network").setLevel(logging.NOTSET)
    assert len(caplog.messages) == 4


async def test_two_nodes_of_one_program_can_be_told_apart(caplog, free_port):
    """Which of them has lost its peer is the first question."""
    options = {"bind": "127.0.0.1", "port": 0, "udp_port": 0}
    async with (
        pt.Node("ada", discovery_port=free_port(), **options) as ada,
        pt.Node("bob", discovery_port=free_port(), **options) as bob,
    ):
        for node in (ada, bob):
            engine_of(node).finder._tell({"eth9": 1})
        peer = await ada.connect(bob.address)
        await until(lambda: "ada" in bob.peers and bob.peers["ada"].connected)
        (link,) = connections_of(bob)
        end_connection(bob, link, pt.ConnectionClosed("made up: bob's end"))
        while peer.connected:
            await asyncio.sleep(0)
        engine_of(ada).traffic.unsent = 7
    with peertalk.sync.Node("cid", discovery=False, **options) as cid:
        engine_of(cid).traffic.unsent = 3
    by_node = {name: [] for name in ("ada", "bob", "cid")}
    for line in caplog.messages:
        program, node, text = line.split(": ", 2)
        assert program == "peertalk"
        by_node[node.removeprefix("node ").strip("'")].append(text)
    assert by_node["ada"][0].startswith("announcing fails")
    assert by_node["ada"][-1] == "closed with 7 messages not sent"
    assert by_node["bob"][0].startswith("announcing fails")
    assert "made up: bob's end" in by_node["bob"]
    assert by_node["cid"] == ["closed with 3 messages not sent"]


def test_the_first_failure_and_the_end_are_a_line_each(made):
    """A log that repeats itself hides what else is in it."""
    engine, troubles, lines = made
    for _ in range(50):
        troubles.failed("announcing", "%s is out", "the cable")
        engine.pass_time(5)
    assert lines.taken() == [BEGIN + "announcing fails: the cable is out"] and troubles.lasting == 1
    for _ in range(10):
        troubles.worked("announcing")
        engine.pass_time(5)
    assert lines.taken() == [BEGIN + "announcing works again; 50 failed in 250.0 s"]
    assert troubles.lasting == 0 and not engine.timers
    troubles.worked("announcing")
    troubles.worked("accepting connections")
    assert not lines.taken() and not engine.timers


def test_one_success_among_failures_ends_nothing(made):
    """With as many callers as there are descriptors one is accepted now and then."""
    engine, troubles, lines = made
    for _ in range(100):
        troubles.failed("accepting", "no descriptors")
        engine.pass_time(SETTLED / 3)
        troubles.worked("accepting")
        engine.pass_time(SETTLED / 3)
    assert len(lines.taken()) == 1
    engine.pass_time(SETTLED)
    assert lines.taken() == [BEGIN + "accepting works again; 100 failed in 66.3 s"]


def test_a_trouble_that_is_always_back_is_told_less_and_less_often(made):
    """A cable with a loose contact: an hour of it is a few lines."""
    engine, troubles, lines = made
    for _ in range(600):
        troubles.failed("announcing", "cable out")
        engine.pass_time(3)
        troubles.worked("announcing")
        engine.pass_time(3)
    assert 2 <= len(lines.taken()) < 8
    engine.pass_time(3 * SETTLED_MAX)
    lines.taken()
    troubles.failed("announcing", "cable out")
    troubles.worked("announcing")
    engine.pass_time(SETTLED)
    assert len(lines.taken()) == 2, "after a long time without it, it is a new one"


def test_troubles_of_different_things_know_nothing_of_each_other(made):
    """One interface works, the other does not."""
    engine, troubles, lines = made
    troubles.failed("announcing by eth0", "out")
    troubles.failed("announcing by wlan0", "out")
    assert len(lines.taken()) == 2 and troubles.lasting == 2
    troubles.worked("announcing by eth0")
    engine.pass_time(SETTLED)
    assert lines.taken() == [BEGIN + "announcing by eth0 works again; 1 failed in 0.0 s"]
    troubles.worked("announcing by wlan0")
    troubles.forget_others(["announcing by eth0"])
    engine.pass_time(10 * SETTLED)
    assert not lines.taken() and troubles.lasting == 0 and not engine.timers


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 3 * SETTLED_MAX)), max_size=60),
)
def test_lines_alternate_and_count_every_failure(steps):
    """Whatever the order of luck and failure: each beginning has one end, and no failure is left
    out of the sum."""
    engine, troubles, lines = make()
    failures = 0
    for fails, pause in steps:
        if fails:
            failures += 1
            troubles.failed("x", "why")
        else:
            troubles.worked("x")
        engine.pass_time(pause)
    troubles.worked("x")
    engine.pass_time(2 * SETTLED_MAX)
    told = lines.taken()
    words = [line.removeprefix(BEGIN).split() for line in told]
    assert [word[1] for word in words] == ["fails:", "works"] * (len(told) // 2)
    assert sum(int(word[3]) for word in words[1::2]) == failures
    assert troubles.lasting == 0 and not engine.timers
