"""Connected nodes on a simulated network, for one test: what `peertalk.testing` gives to tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, overload

from .. import errors
from ..peer import Peer
from ..quantities import parse_duration
from .loop import place_of
from .network import Network, Node

_LINK = ("latency", "jitter", "bandwidth", "loss", "duplicate", "reorder", "reorder_by", "damage")


class Mesh(Sequence[Node]):
    """The nodes of one test: a sequence. net: their network (sim.Network), where links can be
    changed and cut.

    Every two of them are connected when the test begins (unless its mark says connect=False), and
    the links then get what the mark says.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.seed = options.get("seed", 0)
        self.net = Network(self.seed, preset=options.get("preset", "lan"))
        self.limit: float | str = options.get("limit", "1h")
        self._options = options
        self._nodes: list[Node] = []
        self._logs: list[list[bytes]] = []

    @overload
    def __getitem__(self, index: int) -> Node: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Node]: ...
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
        self, data: bytes | str, *, within: float | str = 5.0, but: Sequence[Node] | None = None
    ) -> bool:
        """Wait until the message has come to every node but those that sent it (or those in but);
        whether it has in time."""
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
            await asyncio.sleep(0.1)  # until those who were dialled know it too

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
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task() and task.get_name() != "main":
                yield f"{task.get_name()}: {place_of(task)}"

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
