"""The border's call that takes one message with no turn of an engine in between."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.workers import PATIENCE, WorkBench, frame, said

from peertalk._core.values import BATCH, DATA, FRAME, PING, PONG
from peertalk.protocol.wire import Message

try:
    import _testcapi
except ImportError:
    _testcapi = None

pytestmark = pytest.mark.threads

OPEN, ENDING = object(), object()


class Thing:
    """Something with these attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Desk:
    """What a taker is bound to, on a loop with its own links or on one whose worker has them; and
    links, the other ends of which the test has."""

    def __init__(self, core: Any, has_worker: bool) -> None:
        self.core = core
        self.bench = WorkBench(core)
        self.place = self.bench.worker if has_worker else self.bench.home
        self.direct: dict[int, tuple[Any, Any, Any]] = {}
        self.came: list[Any] = []
        self.inbox = Thing(waiting=0, lines={})
        self.totals = Thing(got=0)
        names = ("condition", "kept", "waiting", "lines", "got", "bytes")
        self.lock = threading.RLock()
        values = (self.direct, self.came, self.inbox, self.totals, self.lock)
        self.take = self.place.taker((Message, OPEN), values, names)
        self.ends: dict[int, Any] = {}
        self.peers: dict[int, Any] = {}
        self.sent: dict[int, int] = {}

    def add(self, tag: int) -> Any:
        """A link that may be taken from; its connection."""
        link, self.ends[tag] = self.bench.link(tag, self.place)
        self.peers[tag] = Thing(got=0, bytes=0)
        self.sent[tag] = 0
        connection = Thing(condition=OPEN, kept=None, link=link)
        self.direct[tag] = connection, self.peers[tag], f"view {tag}"
        return connection

    def bring(self, tag: int, *payloads: bytes, kind: int = DATA) -> None:
        """The other end of a link sends these in one write."""
        frames = []
        for payload in payloads:
            frames.append(frame(self.core, payload, kind, sequence=self.sent[tag] % 256))
            self.sent[tag] += 1
        self.ends[tag].sendall(b"".join(frames))

    def told(self, condition: Callable[[list[Any]], Any]) -> list[Any]:
        """Turn until the condition holds of all that was told."""
        came: list[Any] = []
        deadline = threading.Event()
        timer = threading.Timer(PATIENCE, deadline.set)
        timer.start()
        while not condition(came):
            assert not deadline.is_set(), came
            self.bench.home.turn(0.01, came)
            if self.place is not self.bench.home:
                self.place.turn(0.0, came)
        timer.cancel()
        return came

    def one(self, alone: bool = False) -> Any:
        """The next message, however long that takes."""
        for _ in range(int(PATIENCE * 500)):
            message = self.take(True, alone)
            if message is not None:
                return message
            threading.Event().wait(0.001)
        return None


@contextmanager
def desk_of(core: Any, has_worker: bool) -> Iterator[Desk]:
    desk = Desk(core, has_worker)
    try:
        yield desk
    finally:
        desk.direct.clear()
        desk.bench.close()


@pytest.fixture(params=[False, True], ids=["loop", "worker"])
def desk(request: Any, c_core: Any) -> Iterator[Desk]:
    with desk_of(c_core, request.param) as desk:
        yield desk


def test_a_message_is_taken_counted_and_never_told_again(desk):
    desk.add(1)
    desk.bring(1, b"first", b"second")
    first, second = desk.one(), desk.one()
    assert (first.peer, first.data, second.data) == ("view 1", b"first", b"second")
    assert (desk.peers[1].got, desk.peers[1].bytes, desk.totals.got) == (2, 11, 2)
    desk.bring(1, b"third")
    came = desk.told(lambda came: any(each[0] == BATCH for each in came))
    assert [each[3] for each in came if each[0] == BATCH] == [[b"third"]]
    assert desk.take(False, False) is None and desk.totals.got == 2


def test_what_is_left_in_a_list_is_there_when_the_call_is_over(desk):
    """What a call has returned is lost when a signal handler raises just then."""
    desk.add(1)
    place = [None]
    assert desk.take(False, True, place) is False and place == [None]
    desk.bring(1, b"one")
    for _ in range(int(PATIENCE * 500)):
        if desk.take(True, True, place):
            break
        assert place == [None]
        threading.Event().wait(0.001)
    assert (place[0].peer, place[0].data) == ("view 1", b"one")
    assert desk.take(False, True, place) is False and place == [None]


def test_what_more_than_its_receiver_has_to_see_is_left_to_a_turn(desk):
    """Each of these says that an engine must look first."""
    connection = desk.add(1)
    spare = desk.direct[1]

    def ended() -> None:
        connection.condition = ENDING

    def held() -> None:
        connection.kept = []

    ways = {
        "nothing may be taken": (desk.direct.clear, lambda: desk.direct.update({1: spare})),
        "another link": (
            lambda: (desk.direct.clear(), desk.direct.update({2: spare})),
            lambda: (desk.direct.clear(), desk.direct.update({1: spare})),
        ),
        "a turn runs": (lambda: desk.came.append(1), desk.came.clear),
        "the inbox has some": (
            lambda: setattr(desk.inbox, "waiting", 1),
            lambda: setattr(desk.inbox, "waiting", 0),
        ),
        "a peer is read alone": (lambda: desk.inbox.lines.update(a=1), desk.inbox.lines.clear),
        "its connection ends": (ended, lambda: setattr(connection, "condition", OPEN)),
        "its messages are kept": (held, lambda: setattr(connection, "kept", None)),
    }
    for number, (way, (spoil, mend)) in enumerate(ways.items()):
        desk.bring(1, b"%d" % number)
        spoil()
        for _ in range(3):
            assert desk.take(True, False) is None, way
        mend()
        assert desk.one().data == b"%d" % number, way
    assert desk.totals.got == len(ways)


def test_a_frame_that_is_no_message_stands_before_what_comes_behind(desk):
    desk.add(1)
    desk.bring(1, b"before")
    desk.bring(1, b"", kind=PING)
    desk.bring(1, b"behind")
    assert desk.one().data == b"before"
    told = desk.told(lambda came: sum(each[0] in (BATCH, FRAME) for each in came) == 2)
    told = [each for each in told if each[0] in (BATCH, FRAME)]
    assert told[0][0] == FRAME and told[0][2] & 0xFF == PING and told[1][3] == [b"behind"]
    assert desk.totals.got == 1


def test_several_messages_are_better_told_together(desk):
    desk.add(1)
    desk.bring(1, b"first", b"second")
    for _ in range(5):
        assert desk.take(True, True) is None
    came = desk.told(lambda came: any(each[0] == BATCH for each in came))
    assert [each[3] for each in came if each[0] == BATCH] == [[b"first", b"second"]]
    desk.bring(1, b"third")
    assert desk.one(alone=True).data == b"third"


def test_what_is_left_of_several_is_told_in_order_behind_those_that_were_taken(desk):
    desk.add(1)
    desk.add(2)
    desk.bring(1, *(b"a%d" % number for number in range(5)))
    assert [desk.one().data for _ in range(2)] == [b"a0", b"a1"]
    desk.bring(2, b"b0")
    came = desk.told(lambda came: {each[1] for each in came if each[0] == BATCH} == {1, 2})
    batches = [each[1:] for each in came if each[0] == BATCH]
    of_first = [each[2] for each in batches if each[0] == 1]
    assert list(itertools.chain.from_iterable(of_first)) == [b"a2", b"a3", b"a4"]
    assert sum(each[1] for each in batches if each[0] == 1) == 6
    assert [each[2] for each in batches if each[0] == 2] == [[b"b0"]]


def test_wrong_arguments_are_refused(desk):
    border = desk.bench.home._binding.border
    turn = desk.place._turn
    values = (desk.direct, desk.came, desk.inbox, desk.totals, desk.lock)
    good = (turn, (Message, OPEN), values)
    names = ("condition", "kept", "waiting", "lines", "got", "bytes")
    for arguments in (
        (),
        good,
        (turn, (Message,), good[2], names),
        (turn, good[1], (desk.came, desk.direct, *values[2:]), names),
        (turn, good[1], values[:-1], names),
        (*good, names[:-1]),
        (*good, (*names[:-1], 1)),
    ):
        with pytest.raises(TypeError):
            border.bind_taker(*arguments)
    with pytest.raises((TypeError, ValueError, SystemError)):
        border.bind_taker(len, *good[1:], names)
    for arguments in ((), (True,), (True, True, True), (True, True, []), (True, True, [None], 1)):
        with pytest.raises(TypeError):
            desk.take(*arguments)
    desk.add(1)
    del desk.inbox.waiting
    with pytest.raises(AttributeError):
        desk.take(False, False)
    desk.inbox.waiting = "some"
    with pytest.raises(TypeError):
        desk.take(False, False)
    desk.inbox.waiting = 0
    desk.bring(1, b"x")
    del desk.totals.got
    with pytest.raises(AttributeError):
        for _ in range(1000):
            assert desk.take(False, False) is None
            threading.Event().wait(0.001)
    desk.totals.got = 0
    assert desk.one().data == b"x"


def test_links_of_a_loop_are_its_owners(c_core):
    with desk_of(c_core, has_worker=False) as desk, ThreadPoolExecutor(1) as other:
        desk.add(1)
        desk.bring(1, b"x")
        assert other.submit(desk.take, True, False).result() is None
        assert desk.one().data == b"x"


def test_nobody_waits_on_a_loop_without_the_lock_of_its_node(c_core):
    """Another thread, which has the lock, could own and turn the loop meanwhile."""
    with desk_of(c_core, has_worker=False) as desk, ThreadPoolExecutor(1) as other:
        desk.add(1)
        waits = desk.place._context.wait_calls
        assert desk.take(True, False) is None
        assert desk.place._context.wait_calls == waits + 3  # a turn, a wait, and a turn
        assert other.submit(desk.lock.acquire).result()
        assert desk.take(True, False) is None
        assert desk.place._context.wait_calls == waits + 4
        other.submit(desk.lock.release).result()
        assert desk.take(True, False) is None and not desk.lock._is_owned()
        assert desk.place._context.wait_calls == waits + 7


def converse(desk: Desk, count: int) -> None:
    """So many messages, each an answer: the other end sends when it has heard."""
    link = desk.direct[1][0].link
    size = len(frame(desk.core, b"?"))

    def answer() -> None:
        for number in range(count):
            said(desk.ends[1], size)
            desk.bring(1, b"%d" % number)

    with ThreadPoolExecutor(1) as other:
        answering = other.submit(answer)
        for number in range(count):
            assert link.send(b"?") >= 0
            assert desk.one().data == b"%d" % number
        answering.result(PATIENCE)


@pytest.mark.unsanitized("there no answer comes within a millisecond")
def test_who_asks_and_asks_has_the_turns_and_leaves_them_again(c_core):
    """The worker's thread has no part in a conversation, and is there when it has ended."""
    with desk_of(c_core, has_worker=True) as desk:
        connection = desk.add(1)
        connection.link.answer_pings(True)
        leads = 0
        while leads < 50:
            converse(desk, 100)
            leads = desk.place._worker.leads
        desk.direct.clear()
        desk.bring(1, b"", kind=PING)  # and nobody takes
        heard = said(desk.ends[1], len(frame(c_core, b"", PONG)))
        assert c_core.decode_frame(heard).type == PONG
        desk.bring(1, b"told")
        came = desk.told(lambda came: any(each[0] == BATCH for each in came))
        assert [each[3] for each in came if each[0] == BATCH] == [[b"told"]]


def test_a_worker_ends_though_another_thread_has_its_turns(c_core):
    """Neither waits for the other for ever, and nothing is used that has gone."""
    for _ in range(20):
        desk = Desk(c_core, has_worker=True)
        desk.add(1)
        with ThreadPoolExecutor(3) as others:
            asking = threading.Event()

            def ask(desk: Desk = desk, asking: threading.Event = asking) -> None:
                while desk.direct:
                    if desk.take(True, False) is not None:
                        asking.set()

            def talk(desk: Desk = desk) -> None:
                while desk.direct and desk.sent[1] < desk.totals.got + 50:  # which are read
                    desk.bring(1, b"x")

            waiting = [others.submit(ask) for _ in range(2)] + [others.submit(talk)]
            assert asking.wait(PATIENCE)
            desk.direct.clear()
            desk.bench.home.close()
            for each in waiting:
                each.result(PATIENCE)
        desk.bench.close()


@pytest.mark.skipif(_testcapi is None, reason="did not run: this Python has no _testcapi")
def test_without_memory_nothing_is_lost_or_counted(desk):
    desk.add(1)
    desk.peers[1].bytes = 1_000_000
    for attempt in range(200):
        desk.bring(1, b"first", b"second")
        assert desk.one().data == b"first"  # so the second one has been read
        message, failed = None, False
        _testcapi.set_nomemory(attempt, attempt + 1)
        try:
            message = desk.take(False, False)
        except MemoryError:
            failed = True
        finally:
            _testcapi.remove_mem_hooks()
        assert desk.peers[1].got == desk.totals.got == 2 * attempt + 2 - failed
        if failed:
            message = desk.one()
        assert message.data == b"second"
        if not failed:
            assert attempt > 1
            return
    pytest.fail("every attempt failed")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("bring"), st.integers(1, 3), st.integers(1, 4)),
        st.tuples(st.just("take"), st.booleans(), st.booleans()),
        st.tuples(st.just("turn"), st.just(0), st.just(0)),
        st.tuples(st.just("ping"), st.integers(1, 3), st.just(0)),
        st.tuples(st.just("allow"), st.integers(1, 3), st.booleans()),
    ),
    max_size=40,
)


@pytest.mark.parametrize("has_worker", [False, True], ids=["loop", "worker"])
@given(steps=STEPS)
def test_whatever_way_messages_are_taken_each_link_keeps_its_order(c_core, has_worker, steps):
    """Some are taken alone, some are told: together they are what was sent, in order."""
    with desk_of(c_core, has_worker) as desk:
        allowed = {}
        got: dict[int, list[bytes]] = {}
        for tag in (1, 2, 3):
            desk.add(tag)
            allowed[tag], got[tag] = desk.direct[tag], []
        brought = dict.fromkeys(allowed, 0)

        def turn() -> None:
            came: list[Any] = []
            desk.bench.home.turn(0.0, came)
            if has_worker:
                desk.place.turn(0.0, came)
            for kind, tag, _, what in came:
                if kind == BATCH:
                    got[tag] += what

        for what, first, second in steps:
            if what == "bring":
                numbers = range(brought[first], brought[first] + second)
                desk.bring(first, *(b"%d.%d" % (first, number) for number in numbers))
                brought[first] += second
            elif what == "take":
                message = desk.take(first, second)
                if message is not None:
                    got[int(message.peer[5:])].append(message.data)
            elif what == "turn":
                turn()
            elif what == "ping":
                desk.bring(first, b"", kind=PING)
            elif second:
                desk.direct[first] = allowed[first]
            else:
                desk.direct.pop(first, None)
        for _ in range(int(PATIENCE * 1000)):
            if all(len(got[tag]) >= brought[tag] for tag in got):
                break
            turn()
            threading.Event().wait(0.001)
        for tag, messages in got.items():
            assert messages == [b"%d.%d" % (tag, number) for number in range(brought[tag])]
