"""The loads and stores that threads of a pool share, in every order that C11 allows.

A small machine runs the steps of two or three threads in each order there is. Each location keeps
all values that were stored, in the order of their modification; a thread may read any of them that
is not older than what it knows of (a store buffer, a load that went ahead); what it knows of is a
view: of each location the oldest value that it may still read. A releasing store carries the view
of its thread, and an acquiring load of that value takes it over. A store may go between older ones
that its thread does not know of, but never between a value and the swap that read it.

What a node leads to belongs to one thread at a time: a touch by a thread that does not know of the
last one is a race. The orders come from pt_pool_inside.h, so that what is explored is what is
compiled; the steps are held against the C by their names. Truth: nobody has two owners, nothing is
lost, no count is negative.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[2] / "csrc" / "core"

pytestmark = pytest.mark.source


def source(name):
    return (CORE / name).read_text()


@functools.cache
def orders():
    """Of each step its memory orders: that of the read, that of the write."""
    table = {}
    threaded = source("pt_pool_inside.h").split("#else")[1]
    for name, body in re.findall(r"(\w+)\([^)]*\)\n\{\n(.*?)\n\}", threaded, flags=re.S):
        table[name] = re.findall(r"memory_order_(\w+)", body)
    return table


class Wrong(Exception):
    """A race, or a promise that is broken."""


class Machine:
    """All reachable states of some threads.

    Args:
        threads: generator functions; each yields a step and is sent what that gave.
        cells: of each location the first value.
        end: looks at the last values and at what each thread returned.
        weakened: of some steps other orders than those of the header.
    """

    def __init__(self, threads, cells, end, weakened=()):
        self.threads = threads
        self.names = tuple(cells)
        self.end = end
        self.orders = orders() | dict(weakened)
        first = tuple(
            (((-1, index), value, (), False),) for index, value in enumerate(cells.values())
        )
        known = tuple(((-1, index)) for index in range(len(cells)))
        self.start = (((),) * len(threads), first, (known,) * len(threads))

    def explore(self):
        """The number of states; Wrong at the first one that must not be."""
        seen, line = {self.start}, [self.start]
        while line:
            state = line.pop()
            running = False
            for number in range(len(self.threads)):
                for follower in self.steps(state, number):
                    running = True
                    if follower not in seen:
                        seen.add(follower)
                        line.append(follower)
            if not running:
                self.finish(state)
        return len(seen)

    def resume(self, state, number):
        """The next step of a thread, or (None, what it returned)."""
        thread = self.threads[number]()
        try:
            step = next(thread)
            for given in state[0][number]:
                step = thread.send(given)
        except StopIteration as stop:
            return None, stop.value
        return step, None

    def finish(self, state):
        last = {name: cell[-1][1] for name, cell in zip(self.names, state[1], strict=True)}
        self.end(last, [self.resume(state, number)[1] for number in range(len(self.threads))])

    def steps(self, state, number):
        """Each state that one step of this thread leads to."""
        step, _ = self.resume(state, number)
        if step is None:
            return
        histories, memory, views = state
        kind, name, *arguments = step
        at = self.names.index(name)
        cell, view = memory[at], views[number]
        place = {message[0]: index for index, message in enumerate(cell)}
        oldest = place[view[at]]

        def then(given, cell, view):
            return (
                (*histories[:number], (*histories[number], given), *histories[number + 1 :]),
                (*memory[:at], cell, *memory[at + 1 :]),
                (*views[:number], view, *views[number + 1 :]),
            )

        def knows(view, message, takes):
            """The view after a read."""
            later = list(view)
            for index, known in enumerate(message[2] if takes else ()):
                where = {m[0]: i for i, m in enumerate(memory[index])}
                if where[known] > where[later[index]]:
                    later[index] = known
            if place[message[0]] > place[later[at]]:
                later[at] = message[0]
            return tuple(later)

        identity = (number, len(histories[number]))

        def insert(index, value, view, releases, inherited, swaps):
            """The cell and the view after a write behind the message at index."""
            view = (*view[:at], identity, *view[at + 1 :])
            carried = view if releases else inherited
            message = (identity, value, carried, swaps)
            return (*cell[: index + 1], message, *cell[index + 1 :]), view

        if kind == "touch":
            if oldest != len(cell) - 1:
                raise Wrong(f"thread {number} touches {name} while another has it")
            yield then(None, *insert(oldest, None, view, False, (), False))
            return
        order = self.orders[kind]
        reads, writes = order[0], order[0]
        if kind in ("cell_get", "link_get"):
            for message in cell[oldest:]:
                yield then(message[1], cell, knows(view, message, reads == "acquire"))
        elif kind in ("cell_set", "link_set", "link_put"):
            for index in range(oldest, len(cell)):
                if index + 1 == len(cell) or not cell[index + 1][3]:
                    yield then(
                        None, *insert(index, arguments[0], view, writes == "release", (), False)
                    )
        elif kind == "cell_count":  # a load and a store: nobody else stores there
            load, store = order
            for message in cell[oldest:]:
                later = knows(view, message, load == "acquire")
                value = message[1] + 1
                yield then(
                    value, *insert(len(cell) - 1, value, later, store == "release", (), False)
                )
        else:  # read and written in one step
            expected = arguments[0] if kind in ("cell_swap", "cell_claim") else None
            for index in range(oldest, len(cell)):
                message = cell[index]
                if expected is not None and message[1] != expected:
                    failed = order[1] == "acquire"
                    yield then((False, message[1]), cell, knows(view, message, failed))
                    continue
                if index + 1 < len(cell) and cell[index + 1][3]:
                    continue
                later = knows(view, message, order[0] in ("acquire", "acq_rel"))
                value = 0 if kind == "link_take" else arguments[-1]
                if kind == "cell_add":
                    value += message[1]
                given = {"link_take": message[1], "cell_add": value}.get(kind, (True, value))
                releases = order[0] in ("release", "acq_rel")
                yield then(given, *insert(index, value, later, releases, message[2], True))


# The steps of the C -------------------------------------------------------------------------------


def pop(tagged=True):
    """pop() of pt_pool_inside.h on the head `free`: the node, or None."""
    seen = yield "cell_get", "free"
    while seen[1] is not None:
        tag, index = seen
        following = yield "link_get", f"next{index}"
        done, seen = yield "cell_swap", "free", seen, (tag + tagged, following)
        if done:
            return index
    return None


def push(index, tagged=True):
    """push()."""
    seen = yield "cell_get", "free"
    while True:
        yield "link_set", f"next{index}", seen[1]
        done, seen = yield "cell_swap", "free", seen, (seen[0] + tagged, index)
        if done:
            return


def take(shelf):
    """take_own(), and what take_any() does to another's shelf."""
    found = yield "link_take", shelf
    return found - 1 if found else None


def put(shelf, index):
    """put_own()."""
    yield "link_put", shelf, index + 1


def listed(last):
    """The nodes of the list at the end."""
    found, index = [], last["free"][1]
    while index is not None:
        assert index not in found
        found.append(index)
        index = last[f"next{index}"]
    return found


STACK = {"free": (0, 0), "next0": 1, "next1": None, "node0": None, "node1": None}


def whole(last, _):
    """Each node is in one place."""
    places = listed(last) + [last[name] - 1 for name in last if "shelf" in name and last[name]]
    if sorted(places) != [0, 1]:
        raise Wrong(f"the nodes are {places}")


def explore_list(tagged=True, weakened=(), threads=2):
    """One thread pops while another turns the list round under it."""

    def once():
        index = yield from pop(tagged)
        if index is not None:
            yield "touch", f"node{index}"
            yield from push(index, tagged)

    def turn():
        first = yield from pop(tagged)
        if first is None:
            return
        yield "touch", f"node{first}"
        second = yield from pop(tagged)
        yield from push(first, tagged)
        if second is not None:
            yield "touch", f"node{second}"
            yield from push(second, tagged)

    return Machine([once, turn, once][:threads], STACK, whole, weakened).explore()


def explore_shelf(weakened=(), takes=take):
    """A context keeps a node, and takes it again while another one is after it, which brings to the
    list what it gets."""

    def context():
        yield "touch", "node0"
        yield from put("shelf0", 0)
        index = yield from takes("shelf0")
        if index is not None:
            yield "touch", f"node{index}"
            yield from put("shelf0", index)

    def other():
        for _ in range(2):
            index = yield from takes("shelf0")
            if index is not None:
                yield "touch", f"node{index}"
                yield from push(index)

    def third():
        index = yield from pop()
        if index is not None:
            yield "touch", f"node{index}"
            yield from push(index)

    cells = {
        "free": (0, 1),
        "next0": None,
        "next1": None,
        "node0": None,
        "node1": None,
        "shelf0": 0,
    }
    return Machine([context, other, third], cells, whole, weakened).explore()


def explore_release(weakened=()):
    """Two threads return the same buffer; a third borrows what comes back."""

    def release():
        done, _ = yield "cell_claim", "check", "lent", "free"
        if done:
            yield "touch", "node0"
            yield from push(0)
        return done

    def borrow():
        index = yield from pop()
        if index is not None:
            yield "touch", f"node{index}"
        return index

    def end(last, returned):
        if returned[:2].count(True) != 1:
            raise Wrong("returned twice, or never")
        if listed(last) != ([0] if returned[2] is None else []):
            raise Wrong("it is in two places")

    cells = {"check": "lent", "free": (0, None), "next0": None, "node0": None}
    return Machine([release, release, borrow], cells, end, weakened).explore()


def explore_counts(weakened=(), count=None):
    """A context lends and keeps what came back; another takes that; a third sums up."""

    def add(cell):
        if count is None:
            yield "cell_count", cell
        else:
            yield count, cell, 1

    def context():
        yield from add("acquires0")
        yield from add("returns0")
        yield from put("shelf0", 0)

    def other():
        index = yield from take("shelf0")
        if index is not None:
            yield from add("acquires1")
            yield from add("returns1")

    def look():
        returns = acquires = 0
        for door in (0, 1):
            returns += yield "cell_get", f"returns{door}"
        for door in (0, 1):
            acquires += yield "cell_get", f"acquires{door}"
        return acquires - returns

    def end(_, returned):
        if returned[2] < 0:
            raise Wrong("more returned than lent")

    cells = dict.fromkeys(("acquires0", "returns0", "acquires1", "returns1", "shelf0"), 0)
    return Machine([context, other, look], cells, end, weakened).explore()


def explore_join(weakened=()):
    """A door is made ready and opened; another thread looks at its shelf."""

    def join():
        yield "touch", "node0"  # the memory of the door
        yield "cell_swap", "opened", 0, 1

    def look():
        if (yield "cell_get", "opened"):
            yield "touch", "node0"

    cells = {"opened": 0, "node0": None}
    return Machine([join, look], cells, lambda *_: None, weakened).explore()


def explore_strays(weakened=()):
    """A context lends; another returns that, counted at the door of the first; a third sums up."""

    def context():
        yield "cell_count", "acquires0"
        yield "link_put", "handed", 1

    def other():
        if (yield "link_take", "handed"):
            yield "cell_add", "strays0", 1

    def look():
        returns = yield "cell_get", "strays0"
        return (yield "cell_get", "acquires0") - returns

    def end(_, returned):
        if returned[2] < 0:
            raise Wrong("more returned than lent")

    cells = dict.fromkeys(("acquires0", "strays0", "handed"), 0)
    return Machine([context, other, look], cells, end, weakened).explore()


def explore_leave(weakened=()):
    """A context leaves its door, and the next one has it: what lies there is the next one's."""

    def leave():
        yield "touch", "node0"  # the shelf, and what is counted without a locked operation
        yield "cell_swap", "taken", 1, 0

    def join():
        taken = yield "cell_get", "taken"
        if taken == 0 and (yield "cell_swap", "taken", 0, 1)[0]:
            yield "touch", "node0"

    cells = {"taken": 1, "node0": None}
    return Machine([leave, join, join], cells, lambda *_: None, weakened).explore()


def test_the_steps_of_the_model_are_those_of_the_c():
    """A model of other code proves nothing about this one."""
    text = re.sub(
        r"PT_ASSERT\(.*?\);", "", source("pt_pool_inside.h") + source("pt_pool.c"), flags=re.S
    )

    def calls(function):
        (body,) = re.findall(rf"\b{function}\([^)]*\)\n\{{\n(.*?)\n\}}", text, flags=re.S)
        return re.findall(r"\b((?:cell|link)_\w+|pop|push|take_own|put_own)\(", body)

    assert calls("pop") == ["cell_get", "link_get", "cell_swap"]
    assert calls("push") == ["cell_get", "link_set", "cell_swap"]
    assert calls("take_own") == ["link_take"]
    assert calls("put_own") == ["link_get", "link_put"]
    assert calls("take_any") == ["pop", "link_get", "link_take"]
    assert calls("count") == ["cell_count", "cell_add"]
    assert calls("pt_pool_release")[0] == "cell_claim"
    assert calls("count_return") == ["cell_add"]
    assert calls("pt_pool_leave") == ["cell_get", "cell_swap"]
    assert calls("pt_pool_join")[:2] == ["cell_get", "cell_swap"]
    assert orders()["cell_count"] == ["relaxed", "release"]


@pytest.mark.parametrize(
    "explore",
    [
        explore_shelf,
        explore_release,
        explore_counts,
        lambda: explore_counts(count="cell_add"),
        explore_strays,
        explore_join,
        explore_leave,
    ],
    ids=[
        "shelf",
        "release",
        "counts of doors",
        "counts of all",
        "strays",
        "join",
        "leave",
    ],
)
def test_no_order_of_the_steps_breaks_a_promise(explore):
    """Millions of rounds on this machine show the orders that this machine has; here are all."""
    assert explore() > 5


def take_in_two_steps(shelf):
    """An exchange that is none."""
    found = yield "link_get", shelf
    if found:
        yield "link_set", shelf, 0
    return found - 1 if found else None


def test_no_order_of_the_steps_breaks_the_list(rounds):
    """The short form has two threads on two nodes, the long one three: 758,429 states."""
    assert explore_list(threads=rounds(2, 3)) > 1_000


@pytest.mark.parametrize(
    "explore",
    [
        lambda: explore_list(tagged=False),
        lambda: explore_list(weakened={"cell_swap": ["relaxed", "relaxed"]}.items()),
        lambda: explore_list(
            weakened={"cell_get": ["relaxed"], "cell_swap": ["release", "relaxed"]}
        ),
        lambda: explore_shelf(takes=take_in_two_steps),
        lambda: explore_shelf(weakened={"link_put": ["relaxed"]}),
        lambda: explore_shelf(weakened={"link_take": ["release"]}),
        lambda: explore_counts(weakened={"cell_count": ["relaxed", "relaxed"]}),
        lambda: explore_counts(weakened={"cell_get": ["relaxed"]}),
        lambda: explore_counts(weakened={"cell_add": ["relaxed"]}, count="cell_add"),
        lambda: explore_strays(weakened={"cell_add": ["relaxed"]}),
        lambda: explore_strays(weakened={"cell_get": ["relaxed"]}),
        lambda: explore_leave(weakened={"cell_swap": ["relaxed", "relaxed"]}),
        lambda: explore_leave(weakened={"cell_swap": ["acquire", "acquire"]}),
        lambda: explore_join(weakened={"cell_get": ["relaxed"]}),
        lambda: explore_join(weakened={"cell_swap": ["relaxed", "relaxed"]}),
    ],
    ids=[
        "no tag",
        "swap relaxed",
        "swap releases only",
        "take in two steps",
        "put relaxed",
        "take releases only",
        "count relaxed",
        "look relaxed",
        "add relaxed",
        "stray relaxed",
        "strays looked for relaxed",
        "left relaxed",
        "left without a release",
        "door looked for relaxed",
        "door opened relaxed",
    ],
)
def test_the_machine_finds_what_a_weaker_step_breaks(explore):
    """A machine that finds nothing may only be blind."""
    with pytest.raises(Wrong):
        explore()
