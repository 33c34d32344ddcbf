"""Whatever is given to a public function, what comes out is its result or an error of our own
family, and a wrong argument begins nothing.

Functions and their parameters are found by inspection, so a new one is tested without a word here;
a parameter of a new name needs a good value in GOOD. What a function of the user raises, and
Python's TypeError for arguments that a function has not, are not ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import inspect
import pickle
import socket
import textwrap
import threading
import warnings
from functools import partial
from typing import Any

import pytest
from kit.inside import is_open
from kit.waiting import GUARD

import peertalk as pt
from peertalk import config, quantities, sync
from peertalk.doors.peers import Peers
from peertalk.protocol.payloads import SendOptions

LOOPBACK = {"bind": "127.0.0.1", "port": 0, "udp_port": 0, "discovery": False}


class Unshowable:
    """Its repr fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def _released() -> memoryview:
    view = memoryview(b"abc")
    view.release()
    return view


HOSTILE = {
    "None": None,
    "True": True,
    "minus one": -1,
    "zero": 0,
    "a fraction": 0.001,
    "NaN": float("nan"),
    "inf": float("inf"),
    "-inf": -float("inf"),
    "1e300": 1e300,
    "400 digits": 10**400,
    "5000 digits": 10**5000,
    "5000 digits as text": "9" * 5000,
    "minus 5000 digits": -(10**5000),
    "complex": 1j,
    "empty text": "",
    "text": "x",
    "half a character": "\ud800",
    "NUL": "a\0b",
    "a line feed": "a\nb",
    "empty bytes": b"",
    "bytes": b"x",
    "empty list": [],
    "a list": [1, None],
    "a dictionary": {"a": 1},
    "an empty tuple": (),
    "a tuple": (None, None),
    "an address of numbers": (5, 5),
    "an address with a huge port": ("127.0.0.1", 10**5000),
    "an address with a bool": ("127.0.0.1", True),
    "an address without a host": ("", 80),
    "an address of no host": ("a\0b", 80),
    "an endless name": ("x" * 5000, 80),
    "an object": object(),
    "a class": Unshowable,
    "what has no repr": Unshowable(),
    "a released view": _released(),
    "a view with gaps": memoryview(b"abcdef")[::2],
}
BLOCKING = {"None", "1e300"}
"""Time-outs that are none: a call of peertalk.sync that waits for nothing would wait."""


def good(name: str, door: Any) -> Any:
    """A value that this parameter can have. A new parameter needs a line here."""
    return {
        "data": b"good",
        "payloads": [b"good"],
        "priority": pt.Priority.NORMAL,
        "key": None,
        "no_delay": False,
        "connect": True,
        "timeout": 0.0 if door.blocking else GUARD,
        "who": "bob",
        "key_of_mapping": "bob",
        "default": None,
        "peer": door.peer,
        "progress": None,
        "reason": pt.RejectReason.UNSPECIFIED,
        "flags": 0,
    }[name]


class Door:
    """One of the two front doors, with a node, its peer, and who answers."""

    def __init__(self, blocking: bool) -> None:
        self.blocking = blocking
        self.node: Any = None
        self.peer: Any = None

    def subject(self, kind: str) -> Any:
        """An object of that class."""
        match kind:
            case "Node":
                return self.node
            case "Peer":
                return self.peer
            case "Peers":
                return self.node.peers
            case "StreamOut":
                return self.peer.stream_out(b"good")
            case "ConnectionRequested":
                return pt.ConnectionRequested(self.peer)
        raise AssertionError(kind)


CLASSES = {
    "asyncio": {
        "Node": pt.Node,
        "Peer": pt.Peer,
        "Peers": Peers,
        "StreamOut": pt.lowlevel.StreamOut,
        "ConnectionRequested": pt.ConnectionRequested,
    },
    "sync": {
        "Node": sync.Node,
        "Peer": sync.Peer,
        "Peers": Peers,
        "StreamOut": sync.StreamOut,
        "ConnectionRequested": pt.ConnectionRequested,
    },
}
USED = {
    "Peer": (
        "send",
        "send_nowait",
        "send_many",
        "connect",
        "disconnect",
        "ping",
        "messages",
        "stream_out",
        "reject",
    ),
    "StreamOut": ("finished", "cancel"),
    "Peers": ("__getitem__", "__contains__", "get", "matching"),
}
"""Of the classes that have public names for the engine too: what users call."""


def _parameters(function: Any) -> list[str]:
    """Names of what a method takes, but for self; options of send by their own names."""
    names = []
    for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            names += list(SendOptions.__annotations__)
        else:
            names.append(name)
    return names


def _methods() -> list[tuple[str, str, str, str]]:
    """(door, class, method, parameter) of everything public that takes an argument."""
    found = []
    for door, classes in CLASSES.items():
        for kind, made in classes.items():
            for name in USED.get(kind) or [each for each in dir(made) if each[0] != "_"]:
                method = inspect.getattr_static(made, name)
                if isinstance(method, property):
                    if method.fset is not None and kind == "Node":
                        found.append((door, kind, name, "="))
                elif callable(method) and not isinstance(method, type):
                    found += [(door, kind, name, each) for each in _parameters(method)]
    return found


METHODS = _methods()


def test_the_walk_finds_what_is_known_to_be_there():
    """A walk that finds nothing passes."""
    for door, closing in (("asyncio", "aclose"), ("sync", "close")):
        for expected in (
            (door, "Node", closing, "timeout"),
            (door, "Node", "connect", "who"),
            (door, "Node", "flags", "="),
            (door, "Node", "broadcast", "timeout"),
            (door, "Node", "send_datagram", "peer"),
            (door, "Peer", "send", "key"),
            (door, "Peer", "send_many", "payloads"),
            (door, "Peer", "reject", "reason"),
            (door, "Peer", "stream_out", "progress"),
            (door, "Peers", "__getitem__", "who"),
            (door, "StreamOut", "finished", "timeout"),
        ):
            assert expected in METHODS
    assert len(METHODS) > 80


def _call(door: Door, kind: str, method: str, parameter: str, value: Any) -> Any:
    subject = door.subject(kind)
    if parameter == "=":
        return setattr(subject, method, value)
    function = getattr(subject, method)
    arguments: dict[str, Any] = {}
    for name, each in inspect.signature(function).parameters.items():
        if each.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if each.default is inspect.Parameter.empty or (door.blocking and name == "timeout"):
            mapped = "key_of_mapping" if kind == "Peers" and name == "key" else name
            arguments[name] = good(mapped, door)
    arguments[parameter] = value
    if method.startswith("__") or kind == "Peers":
        return function(*arguments.values())
    return function(**arguments)


def _skipped(door: str, method: str, parameter: str, value: Any, label: str) -> bool:
    if parameter == "who" and callable(value):
        return True  # what it raises is its own
    if parameter in ("no_delay", "connect") and label == "a released view":
        return True  # it has no truth: Python's word, and the caller's
    return door == "sync" and parameter == "timeout" and label in BLOCKING


async def _outcome(call: Any) -> None:
    """Let what was called run for some ticks: long enough to be refused, or to wait."""
    result = call()
    if hasattr(result, "__anext__"):
        work = asyncio.ensure_future(anext(result))
    elif inspect.isawaitable(result):
        work = asyncio.ensure_future(result)
    else:
        return
    for _ in range(20):
        if not work.done():
            await asyncio.sleep(0)
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
        await work
    if hasattr(result, "aclose"):
        await result.aclose()


@contextlib.contextmanager
def _nothing_left_behind():
    """No coroutine that was made and never awaited."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert not [str(each.message) for each in said if "never awaited" in str(each.message)]


def _cases(door: str) -> list[tuple[str, str, str]]:
    return [(kind, method, parameter) for of, kind, method, parameter in METHODS if of == door]


@pytest.mark.parametrize(("kind", "method", "parameter"), _cases("asyncio"))
async def test_a_hostile_argument_is_refused_in_our_own_words(kind, method, parameter):
    """wait_for(5), flags = "x", send of half a character, a released view: each raised whatever
    Python happened to stumble over, some of them after the work had begun."""
    with _nothing_left_behind():
        await _try_each(kind, method, parameter)


async def _try_each(kind: str, method: str, parameter: str) -> None:
    async with pt.Node("bob", **LOOPBACK) as other:
        door = Door(blocking=False)
        for label, value in HOSTILE.items():
            if _skipped("asyncio", method, parameter, value, label):
                continue
            if door.node is None or not is_open(door.node) or not door.peer.connected:
                if door.node is not None:
                    await door.node.aclose(0)
                door.node = await pt.Node("ada", **LOOPBACK).start()
                door.peer = await door.node.connect(other.address, timeout=GUARD)
            try:
                await _outcome(partial(_call, door, kind, method, parameter, value))
            except pt.PeerTalkError as error:
                assert str(error), label
            except BaseException as error:
                raise AssertionError(f"{parameter}={label}: {error!r}") from error
        await door.node.aclose(0)


@pytest.mark.parametrize(("kind", "method", "parameter"), _cases("sync"))
def test_a_hostile_argument_is_refused_without_await_too(kind, method, parameter):
    """The other door looks at the same arguments, before it begins."""
    stop = threading.Event()
    other = sync.Node("bob", **LOOPBACK).start()
    address = other.address

    def answer():
        while not stop.is_set():
            other.poll(0.01)

    answering = threading.Thread(target=answer)
    answering.start()
    door = Door(blocking=True)
    try:
        for label, value in HOSTILE.items():
            if _skipped("sync", method, parameter, value, label):
                continue
            if door.node is None or not is_open(door.node) or not door.peer.connected:
                if door.node is not None:
                    door.node.close_nowait()
                door.node = sync.Node("ada", **LOOPBACK).start()
                door.peer = door.node.connect(address, timeout=GUARD)
            try:
                result = _call(door, kind, method, parameter, value)
                if hasattr(result, "__next__"):
                    next(result, None)
                    result.close()
            except pt.PeerTalkError as error:
                assert str(error), label
            except BaseException as error:
                raise AssertionError(f"{parameter}={label}: {error!r}") from error
    finally:
        if door.node is not None:
            door.node.close_nowait()
        stop.set()
        answering.join()
        other.close_nowait()


FUNCTIONS = [
    config.load_config,
    config.Config,
    pt.Node,
    sync.Node,
    quantities.parse_duration,
    quantities.parse_timeout,
    quantities.parse_size,
]


@pytest.mark.parametrize(
    "function", FUNCTIONS, ids=lambda each: f"{each.__module__}.{each.__name__}"
)
def test_a_hostile_argument_makes_no_node_and_no_config(function):
    """A dictionary as config, a name of bytes, a size of 5,000 digits."""
    if function in (config.load_config, config.Config, pt.Node, sync.Node):
        names = [setting.name for setting in config.settings()]
    else:
        names = [next(iter(inspect.signature(function).parameters))]
    if function in (pt.Node, sync.Node):
        names.append("config")
    if function is pt.Node:
        names.append("world")
    for name in names:
        for label, value in HOSTILE.items():
            if name in ("world", "config") and value is None:
                continue
            try:
                function(**{name: value})
            except pt.PeerTalkError as error:
                assert str(error), label
            except Exception as error:
                raise AssertionError(f"{name}={label}: {error!r}") from error


# What is refused as a whole


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda f: f.__name__
)
async def test_a_node_and_a_peer_are_neither_copied_nor_pickled(copied):
    """A copy shares the sockets: forgotten, it closed the node that it was made of."""
    async with pt.Node("ada", **LOOPBACK) as ada, pt.Node("bob", **LOOPBACK) as bob:
        peer = await ada.connect(bob.address, timeout=GUARD)
        blocking = sync.Node("carol", **LOOPBACK)
        for one in (ada, blocking, peer, peer.stream_out(b"x")):
            with pytest.raises(pt.errors.WrongType, match="cannot be copied or pickled"):
                copied(one)
        gc.collect()
        await peer.send(b"still there")
        assert (await bob.receive(timeout=GUARD)).data == b"still there"


async def test_a_peer_of_another_node_is_named_as_such():
    """connect() had that other node connect, and gave its peer out as one of ours."""
    async with pt.Node("ada", **LOOPBACK) as ada, pt.Node("bob", **LOOPBACK) as bob:
        with sync.Node("carol", **LOOPBACK) as carol:
            bob_of_ada = await ada.connect(bob.address, timeout=GUARD)
            with pytest.raises(pt.InvalidArgument, match=f"belongs to node 'ada'.*{bob.id}"):
                carol.connect(bob_of_ada)
            with pytest.raises(pt.PeerNotFound, match="not known to node 'carol'"):
                carol.send_datagram(bob_of_ada, b"x")
            with pytest.raises(pt.InvalidArgument, match="to node 'ada', not to node 'bob'"):
                await bob.connect(bob_of_ada)


@pytest.fixture
def held_resolver(monkeypatch):
    """The system's resolver, answering nobody before this is set."""
    answer = threading.Event()

    def getaddrinfo(host, *arguments):
        answer.wait(GUARD)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield answer
    answer.set()


async def test_the_resolver_counts_towards_the_time_and_can_be_cancelled(held_resolver):
    """connect(timeout=0.2) waited for a name server as long as that took."""
    async with pt.Node("ada", **LOOPBACK) as ada, pt.Node("bob", **LOOPBACK) as bob:
        where = ("some.host", bob.address[1])
        with pytest.raises(pt.Timeout, match=r"no connection to some.host:\d+ within 0.01 s"):
            await ada.connect(where, timeout=0.01)
        asking = asyncio.create_task(ada.connect(where))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        asking = asyncio.create_task(ada.connect(where))
        await asyncio.sleep(0)
        held_resolver.set()
        assert (await asking).name == "bob"


def test_the_resolver_counts_towards_the_time_without_await_too(held_resolver):
    """The same promise at the other door."""
    with sync.Node("script", **LOOPBACK) as node:
        with pytest.raises(pt.Timeout, match=r"no connection to some.host:80 within 0.01 s"):
            node.connect(("some.host", 80), timeout=0.01)


async def test_who_waits_for_the_resolver_hears_that_the_node_is_closed(held_resolver):
    """It waited on for the name server, which may take half a minute, though closing wakes all."""
    ada = await pt.Node("ada", **LOOPBACK).start()
    asking = asyncio.create_task(ada.connect(("some.host", 80)))
    await asyncio.sleep(0)
    await ada.aclose()
    with pytest.raises(pt.InvalidState, match="node 'ada' is closed"):
        await asyncio.wait_for(asking, GUARD / 2)
    assert not held_resolver.is_set()


def test_a_time_out_longer_than_the_system_counts_is_one_all_the_same(held_resolver):
    """connect() to a host name raised OverflowError, which is not one of ours."""
    with socket.socket() as held, sync.Node("script", **LOOPBACK) as node:
        held.bind(("127.0.0.1", 0))  # and nobody listens there: a port given back goes to anybody
        port = held.getsockname()[1]
        threading.Timer(0.05, held_resolver.set).start()
        with pytest.raises(pt.ConnectionRefused):
            node.connect(("some.host", port), timeout=1e300)


def test_a_program_ends_while_a_name_is_looked_up(fork_python):
    """asyncio.run waits for its pool of threads: a dead name server held the program up."""
    source = textwrap.dedent(
        """
        import asyncio, socket, threading
        import peertalk as pt
        socket.getaddrinfo = lambda *_: threading.Event().wait()
        async def main():
            async with pt.Node("ada", bind="127.0.0.1", port=0, udp_port=0, discovery=False) as ada:
                try:
                    await ada.connect(("some.host", 80), timeout=0.01)
                except pt.Timeout:
                    print("given up", flush=True)
        asyncio.run(main())
        """
    )
    program = fork_python("-c", source)
    assert program.communicate(timeout=GUARD)[0].strip() == "given up"
    assert program.returncode == 0


async def test_names_that_are_looked_up_have_a_bound(held_resolver):
    """Each takes a thread until the resolver answers."""
    async with pt.Node("ada", **LOOPBACK) as ada:
        asking = [asyncio.create_task(ada.connect(("some.host", 80))) for _ in range(33)]
        with pytest.raises(
            pt.errors.NetworkFailure, match="32 names are, and the resolver has not"
        ):
            await asking[-1]
        for each in asking:
            each.cancel()
        assert set(map(type, await asyncio.gather(*asking, return_exceptions=True))) == {
            asyncio.CancelledError,
            pt.errors.NetworkFailure,
        }


@pytest.mark.parametrize("door", [False, True], ids=["asyncio", "sync"])
def test_a_bad_time_out_is_refused_before_anything_is_made(door):
    """broadcast(timeout=-1) reported peers as skipped, and connect(timeout=-1) had dialled."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    with listener, sync.Node("script", **LOOPBACK) as node:
        if door:
            for call in (node.connect, partial(node.broadcast, b"x")):
                with pytest.raises(pt.InvalidArgument, match="is no duration"):
                    call(*[listener.getsockname()][: call == node.connect], timeout=-1)
            node.poll()
        else:

            async def main():
                async with pt.Node("ada", **LOOPBACK) as ada:
                    with pytest.raises(pt.InvalidArgument, match="is no duration"):
                        await ada.connect(listener.getsockname(), timeout=-1)
                    with pytest.raises(pt.InvalidArgument, match="is no duration"):
                        await ada.broadcast(b"x", timeout=-1)

            with _nothing_left_behind():
                asyncio.run(main())
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_closing_without_a_limit_sends_what_is_queued():
    """aclose(timeout=None) was WrongType, where None means no limit everywhere else."""
    async with pt.Node("bob", **LOOPBACK) as bob:
        ada = await pt.Node("ada", **LOOPBACK).start()
        peer = await ada.connect(bob.address, timeout=GUARD)
        await peer.send_many([bytes(8000)] * 500)
        closing = asyncio.create_task(ada.aclose(timeout=None))
        for _ in range(500):
            assert len((await bob.receive(timeout=GUARD)).data) == 8000
        assert await closing == 0
        with sync.Node("carol", **LOOPBACK) as carol:
            assert carol.close(timeout=None) == 0
