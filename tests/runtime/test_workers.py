"""The threads that have an engine's links: which link goes where, and what they brought, as one."""

from __future__ import annotations

import contextlib
import socket

import pytest

from peertalk._core.values import BATCH, LoopStatistics
from peertalk.runtime.workers import Workers


class Thread:
    """What Workers uses of a worker, written down."""

    def __init__(self, links=0):
        self.links = links
        self.news = []
        self.calls = []

    def turn(self, timeout, came):
        assert timeout == 0.0
        came += self.news
        self.news = []

    def keeps(self, tag):
        return tag * self.links

    def statistics(self):
        return LoopStatistics(1, 2, 3, 4)

    def memory(self):
        return {"links": (10, 20), "pools": (7, 7), "pipelines": (5, 5), "total": (22, 32)}

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))


class Home:
    """A loop whose turn ends the wait that news of a worker has asked to end; that comes just
    before."""

    def __init__(self, worker):
        self.worker = worker
        self.timeouts = []
        self.late = [["late"]]

    def turn(self, timeout, came):
        self.timeouts.append(timeout)
        if self.late:
            self.worker.news = self.late.pop(0)


@pytest.mark.parametrize("early", [[], ["early"]])
def test_news_that_comes_while_the_loop_turns_is_taken_in_the_same_turn(early):
    """Its wake-up was used up by the turn of the loop, and there is no other."""
    worker = Thread()
    worker.news = early
    came = []
    Workers(Home(worker), [worker]).turn(0.0, came)
    assert came[-1:] == ["late"] and not worker.news


def test_a_turn_waits_only_while_nothing_is_there_and_takes_once_what_is():
    """A second helping would be more than a turn may bring."""
    worker = Thread()
    home, came = Home(worker), []
    Workers(home, [worker]).turn(5.0, came)
    assert home.timeouts == [0.0] and came == ["late"]
    home.late = [[], ["waited for"]]
    came.clear()
    home.timeouts.clear()
    Workers(home, [worker]).turn(5.0, came)
    assert home.timeouts == [0.0, 5.0] and came == ["waited for"]


class Giver(Thread):
    """One that may give so many of its links, and no more."""

    def __init__(self, links, may):
        super().__init__(links)
        self.may = may

    def give(self, to):
        if not self.may:
            return False
        self.may, self.links, to.links = self.may - 1, self.links - 1, to.links + 1
        return True


def test_links_go_from_who_has_the_most_to_who_has_the_fewest_as_far_as_they_may():
    for may, moved, left in ((9, 3, [2, 2, 2]), (2, 2, [3, 2, 1]), (0, 0, [5, 0, 1])):
        workers = [Giver(5, may), Giver(0, 9), Giver(1, 9)]
        assert Workers(None, workers).rebalance() == moved
        assert [each.links for each in workers] == left
    assert Workers(None, []).rebalance() == 0


def test_a_link_goes_to_the_worker_with_the_fewest():
    few, many = Thread(1), Thread(2)
    assert Workers(None, [many, few]).least_loaded() is few
    assert Workers(None, []).least_loaded() is None and not Workers(None, []).work


def test_what_all_have_counted_and_hold_is_told_as_one():
    workers = Workers(Thread(), [Thread(1), Thread(2)])
    assert workers.statistics() == (3, 6, 9, 12)
    assert workers.keeps(5) == 15
    assert workers.memory() == {
        "links": (30, 60),
        "pools": (7, 7),
        "pipelines": (5, 5),
        "total": (42, 72),
    }


def test_where_there_are_none_a_link_is_left_alone():
    link = Thread()
    workers = Workers(None, [])
    workers.begin(link)
    workers.answer_pings(link)
    assert not link.calls and workers.keeps(3) == 0
    Workers(None, [Thread()]).begin(link)
    Workers(None, [Thread()]).answer_pings(link)
    assert link.calls == [("resume",), ("answer_pings", True)]


@pytest.mark.parametrize("what", ["move_here", "disown", "orphan", "close"])
def test_they_and_the_loop_live_and_end_together(what):
    """A loop ends its workers itself, whoever ends the loop."""
    threads = [Thread(), Thread(), Thread()]
    getattr(Workers(threads[0], threads[1:]), what)()
    told = 1 if what in ("orphan", "close") else 3
    assert [each.calls for each in threads] == [[(what,)]] * told + [[]] * (3 - told)


def test_real_ones_bring_what_their_links_bring(c_core):
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(contextlib.closing(c_core.Loop()))
        workers = Workers(home, [c_core.Worker(home), c_core.Worker(home)])
        stack.callback(workers.close)
        ends = []
        for tag in (1, 2, 3, 4):
            ours, theirs = map(stack.enter_context, socket.socketpair())
            ours.setblocking(False)
            workers.begin(workers.least_loaded().open_link(ours.fileno(), tag))
            ends.append(theirs)
        for tag, end in enumerate(ends, 1):
            end.sendall(c_core.encode_frame(1, b"%d" % tag, 0, 0))
        came = []
        while len(came) < 4:
            workers.turn(10.0, came)
        assert sorted((tag, b) for _, tag, _, b in came) == [(n, [b"%d" % n]) for n in (1, 2, 3, 4)]
        assert {each[0] for each in came} == {BATCH}
        assert workers.memory()["links"][0] > 0
        workers.close()
        workers.close()
