"""A pytest plugin: tests of applications on a simulated network, on virtual time.

    @pytest.mark.peertalk(nodes=3, loss=0.05, seed=7)
    async def test_the_round_starts(mesh):
        await mesh[0].broadcast(b"start")
        assert await mesh.all_received(b"start", within="2s")

The plugin runs the coroutine itself: no other plugin, no socket, no waiting. When the test is over
it closes the nodes and fails the test if something leaked, if messages changed their order, if a
rule of a platform was broken, or if some task still waits. pytest loads it, and with it the
package; neither the simulator nor a compiled core is loaded before a test asks for it.

Such a test is run here from the start, not in the hook where plugins that run coroutines compete:
so it does not matter which of them are installed, and in which mode.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import pytest

if TYPE_CHECKING:
    from . import sim
    from .node import Peer

_LINK = ("latency", "jitter", "bandwidth", "loss", "duplicate", "reorder", "reorder_by", "damage")
_MARK = (
    "peertalk(nodes=2, seed=0, *, preset='lan', platform='mactcp', "
    "connect=True, limit='1h', names=None, loss=0, latency=None, ...): "
    "run this coroutine on a simulated network, in virtual time; "
    "further arguments are those of Network.link() and Network.node()"
)


class Mesh(Sequence["sim.Node"]):
    """The nodes of one test: a sequence. net: their network (sim.Network), where links can be
    changed and cut.

    Every two of them are connected when the test begins (unless its mark says connect=False), and
    the links then get what the mark says.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        from . import sim

        self.seed = options.get("seed", 0)
        self.net: sim.Network = sim.Network(self.seed, preset=options.get("preset", "lan"))
        self.limit: float | str = options.get("limit", "1h")
        self._options = options
        self._nodes: list[sim.Node] = []
        self._logs: list[list[bytes]] = []

    @overload
    def __getitem__(self, index: int) -> sim.Node: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[sim.Node]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._nodes[index]

    def __len__(self) -> int:
        return len(self._nodes)

    def peer(self, source: int, target: int) -> Peer:
        """Node number target, as node number source sees it."""
        return self._nodes[source].peers[self._nodes[target].name]

    def received(self, index: int) -> list[bytes]:
        """Every payload that came to a node, in order; receive() and messages() are not
        disturbed."""
        return list(self._logs[index])

    async def all_received(
        self, data: bytes | str, *, within: float | str = 5.0, but: Sequence[sim.Node] | None = None
    ) -> bool:
        """Wait until the message has come to every node but those that sent it (or those in but);
        whether it has in time."""
        from .config import parse_duration

        payload = data.encode() if isinstance(data, str) else bytes(data)
        clock = self.net.clock
        end = clock.ns + round(parse_duration(within) * 1e9)
        while True:
            excused = (
                [node for node in self._nodes if node.has_sent(payload)] if but is None else but
            )
            if len(excused) == len(self._nodes):
                excused = []
            if all(
                payload in log
                for node, log in zip(self._nodes, self._logs, strict=True)
                if node not in excused
            ):
                return True
            if clock.ns >= end:
                return False
            await asyncio.sleep(min(0.001, max(1e-9, (end - clock.ns) / 1e9)))

    async def start(self) -> None:
        """Make the nodes and connect them."""
        from . import errors

        options = dict(self._options)
        count = options.pop("nodes", None)
        names = options.pop("names", None)
        platforms = options.pop("platform", "mactcp")
        connect = options.pop("connect", True)
        link = {name: options.pop(name) for name in _LINK if name in options}
        for name in ("seed", "preset", "limit"):
            options.pop(name, None)
        if isinstance(platforms, str):
            platforms = [platforms]
        names = _names_of(count, names)
        if not platforms:
            raise errors.InvalidArgument("platform of no element: the mark deals out what is in it")
        if connect:
            options.setdefault("discovery", False)
        for number, name in enumerate(names):
            node = await self.net.node(name, platform=platforms[number % len(platforms)], **options)
            self._nodes.append(node)
            self._logs.append(node.record())
        for number, node in enumerate(self._nodes):
            for other in self._nodes[number + 1 :]:
                if connect:
                    await node.connect(other.address, timeout=60)
                if link:
                    self.net.link(node, other, **link)
        if connect:
            await asyncio.sleep(0.1)  # those who were dialled know it too

    async def run(self, test: Any) -> None:
        """Start, run the test's coroutine, and look that nothing is left."""
        try:
            await self.start()
        except BaseException:
            test.close()
            raise
        await test
        left = sorted(self._left_tasks())
        await self.net.aclose()
        if left:
            raise AssertionError(
                "the test is over, and somebody still waits:\n  " + "\n  ".join(left)
            )

    def _left_tasks(self) -> Iterator[str]:
        from . import sim

        for task in asyncio.all_tasks():
            if task is not asyncio.current_task() and task.get_name() != "main":
                yield f"{task.get_name()}: {sim.place_of(task)}"

    def check(self) -> None:
        """After the nodes were closed: raises AssertionError when something leaked or broke a
        rule."""
        faults = self.net.faults()
        if faults:
            raise AssertionError(
                "the network was not left as it should be:\n  " + "\n  ".join(faults)
            )

    def __repr__(self) -> str:
        return f"<Mesh of {len(self._nodes)} nodes, seed {self.seed}>"


def _names_of(count: Any, names: Any) -> list[str]:
    """What the nodes of a mesh are called."""
    from . import errors

    if names is None:
        count = 2 if count is None else count
        if type(count) is not int or count < 1:
            raise errors.InvalidArgument(f"nodes={count!r} in the mark: a whole number, at least 1")
        names = [f"node{number}" for number in range(count)]
    called = [str(name) for name in names]
    if not called or len(set(called)) < len(called) or count not in (None, len(called)):
        raise errors.InvalidArgument(
            f"names={called!r} in the mark: one for each node, each of them once"
        )
    return called


def _options_of(item: pytest.Item) -> dict[str, Any] | None:
    """Arguments of the mark, those nearest to the test first; None: not ours."""
    marks = list(item.iter_markers("peertalk"))
    if not marks and "mesh" not in getattr(item, "fixturenames", ()):
        return None
    options: dict[str, Any] = {}
    for mark in reversed(marks):
        if len(mark.args) > 2:
            pytest.fail(
                f"the mark peertalk has {len(mark.args)} arguments without a name: "
                f"it takes nodes and seed",
                pytrace=False,
            )
        options.update(zip(("nodes", "seed"), mark.args, strict=False))
        options.update(mark.kwargs)
    return options


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", _MARK)


@pytest.fixture
def mesh(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    """Connected nodes on a simulated network, as the test's peertalk mark says; see Mesh."""
    if not inspect.iscoroutinefunction(getattr(request.function, "__wrapped__", request.function)):
        pytest.fail(
            "mesh lives on virtual time: the test that uses it must be an `async def`",
            pytrace=False,
        )
    made = Mesh(_options_of(request.node) or {})
    yield made
    made.net.close()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Take what is marked or uses mesh."""
    if isinstance(item, pytest.Function) and (
        any(item.iter_markers("peertalk")) or "mesh" in item.fixturenames
    ):
        item.runtest = functools.partial(_run, item)  # type: ignore[method-assign]


def _run(item: pytest.Function) -> None:
    """Run a marked coroutine, or one that uses mesh, on a network of its own."""
    if not inspect.iscoroutinefunction(item.obj):
        pytest.fail(
            "the mark peertalk runs coroutines: the test must be an `async def`", pytrace=False
        )
    from . import sim

    given = {name: item.funcargs[name] for name in item._fixtureinfo.argnames}
    given_mesh: Any = given.get("mesh")
    played = Mesh(_options_of(item) or {}) if given_mesh is None else given_mesh
    item.add_report_section("call", "peertalk", f"seed {played.seed}")
    try:
        sim.run_in(played.net, lambda _: played.run(item.obj(**given)), limit=played.limit)
        played.check()
    finally:
        if given_mesh is None:
            played.net.close()
