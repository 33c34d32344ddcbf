"""The event loop of a simulated network, and what runs a program on it.

Nothing ever sleeps: when nobody can go on, the clock jumps to the next thing that happens (an event
of the network, a timer of a node, a timer of asyncio).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
from asyncio.base_events import BaseEventLoop
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .. import errors
from ..quantities import parse_duration
from . import network as _network
from .network import Network

T = TypeVar("T")

_SECOND = 1_000_000_000
_TURNS_AT_ONE_TIME = 200_000
"""So many rounds without the clock moving: something asks for turns without end."""
_GRACE_NS = 120 * _SECOND
"""Virtual time beyond its limit that a program has to clean up."""
_WAITERS_SHOWN = 12
_OWN = (__file__, _network.__file__)
"""Functions of these are not where a program waits."""


class Deadlock(RuntimeError):
    """Nothing is left to happen, or nothing has been achieved within the limit, and somebody still
    waits. The message names who, and where."""


class VirtualLoop(BaseEventLoop):
    """An asyncio loop whose clock is the network's. It is its own selector: where another loop
    would wait for descriptors, this one moves the clock."""

    def __init__(self, network: Network, limit: float) -> None:
        super().__init__()
        self.network = network
        self.main: asyncio.Task[Any] | None = None
        self.deadlock: Deadlock | None = None
        self.troubles: list[dict[str, Any]] = []
        self._limit_ns = round(limit * _SECOND)
        self._rounds = 0
        self._last_ns = -1
        self._selector = self
        self._clock_resolution = 1e-9
        self.set_exception_handler(lambda _, context: self.troubles.append(context))

    def time(self) -> float:
        """The network's clock, seconds."""
        return float(self.network._simulator.now_ns) / _SECOND

    def select(self, timeout: float | None) -> list[Any]:
        """Let nodes that have work ask for their turn; when nobody can go on, move the clock until
        somebody can."""
        network = self.network
        self._check_progress(network)
        if network._box.serve() or timeout == 0:
            return []
        simulator = network._simulator
        deadline = (
            None if timeout is None else simulator.now_ns + max(1, round(timeout * _SECOND + 0.499))
        )
        while True:
            due = network._box.next_ns()
            mine = deadline is not None and (due is None or deadline <= due)
            target = deadline if mine else due
            if target is None or target > self._limit_ns:
                self._stand_still(target)
                return []
            self._check_progress(network)
            simulator.advance(max(target, simulator.now_ns))
            if network._box.serve() or mine:
                return []

    def _check_progress(self, network: Network) -> None:
        now = network._simulator.now_ns
        if now != self._last_ns:
            self._last_ns, self._rounds = now, 0
        self._rounds += 1
        if self._rounds > _TURNS_AT_ONE_TIME:
            what = (
                f"the clock stands at {self.time():.6f} s and {self._rounds:,} rounds have passed"
            )
            raise Deadlock(f"{what}: something asks for turns without end;{self._waiting()}")

    def _stand_still(self, target: int | None) -> None:
        what = (
            "nothing is left to happen"
            if target is None
            else f"{self._limit_ns / _SECOND:g} s of network time have passed (limit)"
        )
        found = Deadlock(
            f"{what} at {self.time():.6f} s, and somebody still waits:{self._waiting()}"
        )
        if self.deadlock is not None or self.main is None or self.main.done():
            raise found
        self.deadlock = found
        self._limit_ns = max(self._limit_ns, self.network._simulator.now_ns) + _GRACE_NS
        self.main.cancel()

    def _waiting(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=_task_number)
        lines = [f"\n  {task.get_name()}: {place_of(task)}" for task in tasks[:_WAITERS_SHOWN]]
        if len(tasks) > _WAITERS_SHOWN:
            lines.append(f"\n  and {len(tasks) - _WAITERS_SHOWN} more")
        return "".join(lines) or " nobody: no task is there"

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """Names of hosts of this network and dotted addresses, without a resolver."""
        address = self.network._box.resolve(host.decode() if isinstance(host, bytes) else str(host))
        return [(socket.AF_INET, type or socket.SOCK_STREAM, proto, "", (address, int(port or 0)))]

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Call the function at once, here: a simulated program has no threads, whose order nobody
        could repeat."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _refuse(self, *_: Any, **__: Any) -> Any:
        """There is nothing of the system in a simulated network: neither sockets nor processes nor
        signals."""
        raise errors.NotSupported(
            "a simulated network has no sockets, pipes, processes or signals of the system: "
            "talk through nodes"
        )

    create_connection = create_server = create_datagram_endpoint = create_unix_connection = (
        create_unix_server
    ) = _refuse
    subprocess_exec = subprocess_shell = connect_read_pipe = connect_write_pipe = _refuse
    add_reader = add_writer = add_signal_handler = getnameinfo = _refuse  # type: ignore[assignment]
    sock_recv = sock_recv_into = sock_recvfrom = sock_recvfrom_into = sock_sendall = sock_sendto = (
        sock_connect
    ) = sock_accept = _refuse

    def _process_events(self, event_list: list[Any]) -> None:
        """Nothing: select() has asked for the turns already."""

    def _write_to_self(self) -> None:
        """Nothing: select() never blocks."""


def _task_number(task: asyncio.Task[Any]) -> tuple[int, str]:
    name = task.get_name()
    number = name.rpartition("-")[2]
    return (int(number) if number.isdigit() else 0, name)


def place_of(task: asyncio.Task[Any]) -> str:
    """Where a task waits: each function of its own with its line, from the one that it began with
    to the innermost, but for those of asyncio and of these modules."""
    begun: Any = task.get_coro()
    at: Any = begun
    places = []
    while at is not None:
        frame = (
            getattr(at, "cr_frame", None)
            or getattr(at, "ag_frame", None)
            or getattr(at, "gi_frame", None)
        )
        if frame is not None:
            name = frame.f_code.co_filename
            if name not in _OWN and "asyncio" not in name.replace("\\", "/").split("/"):
                places.append(f"{frame.f_code.co_name} ({name}:{frame.f_lineno})")
        at = (
            getattr(at, "cr_await", None)
            or getattr(at, "ag_await", None)
            or getattr(at, "gi_yieldfrom", None)
        )
    if places:
        return " > ".join(places)
    fresh = inspect.iscoroutine(begun) and inspect.getcoroutinestate(begun) == inspect.CORO_CREATED
    return getattr(begun, "__qualname__", str(begun)) + (" has not begun" if fresh else "")


def run(
    main: Callable[[Network], Coroutine[Any, Any, T]],
    *,
    seed: int = 0,
    preset: str = "none",
    limit: float | str = "2h",
) -> T:
    """Run `async def main(net)` in a network of its own, on virtual time, and return what it
    returns. Nodes that it left open are closed.

    Args:
        seed: of every random decision; the same seed gives the same run.
        preset: see Network.
        limit: virtual time that it may take.

    Raises:
        Deadlock: nothing is left to happen, or limit has passed, and main still waits; names who
            waits where.
        Whatever main raises, or a callback of it.
    """
    network = Network(seed, preset=preset)
    try:
        return run_in(network, main, limit=limit)
    finally:
        network.close()


def run_in(
    network: Network,
    main: Callable[[Network], Coroutine[Any, Any, T]],
    *,
    limit: float | str = "2h",
) -> T:
    """As run(), in a network that stays there, so that its trace and faults can be read afterwards.
    Close it then."""
    if asyncio._get_running_loop() is not None:
        raise errors.InvalidState(
            "a simulated network brings its own event loop: call run() where none runs, not "
            "from a coroutine"
        )
    loop = VirtualLoop(network, parse_duration(limit))

    async def whole() -> T:
        try:
            return await main(network)
        finally:
            await _cancel_others(loop)
            await network.aclose()

    try:
        loop.main = loop.create_task(whole(), name="main")
        try:
            result: T = loop.run_until_complete(loop.main)
        except asyncio.CancelledError:
            if loop.deadlock is None:
                raise
            raise loop.deadlock from None
        if loop.deadlock is not None:
            raise loop.deadlock
        for context in loop.troubles:
            raise context.get("exception") or RuntimeError(context.get("message"))
        return result
    finally:
        _close(loop, network)


async def _cancel_others(loop: VirtualLoop) -> None:
    """End what the program left running, in the order in which it was begun."""
    left = sorted(
        (task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()),
        key=_task_number,
    )
    for task in left:
        task.cancel()
    for task in left:
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


def _close(loop: VirtualLoop, network: Network) -> None:
    for node in network.nodes:
        node.close_nowait()
    if loop.main is not None and not loop.main.done():
        loop.main.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            loop.run_until_complete(loop.main)
    with contextlib.suppress(Exception):
        loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
