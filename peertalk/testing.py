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

import functools
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .sim.mesh import Mesh  # loaded when a test asks for it

_MARK = (
    "peertalk(nodes=2, seed=0, *, preset='lan', platform='mactcp', "
    "connect=True, limit='1h', names=None, loss=0, latency=None, ...): "
    "run this coroutine on a simulated network, in virtual time; "
    "further arguments are those of Network.link() and Network.node()"
)


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
    """Connected nodes on a simulated network, as the test's peertalk mark says; see
    sim.mesh.Mesh."""
    if not inspect.iscoroutinefunction(getattr(request.function, "__wrapped__", request.function)):
        pytest.fail(
            "mesh lives on virtual time: the test that uses it must be an `async def`",
            pytrace=False,
        )
    from .sim.mesh import Mesh

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
    from .sim import run_in
    from .sim.mesh import Mesh

    given = {name: item.funcargs[name] for name in item._fixtureinfo.argnames}
    given_mesh: Any = given.get("mesh")
    played = Mesh(_options_of(item) or {}) if given_mesh is None else given_mesh
    item.add_report_section("call", "peertalk", f"seed {played.seed}")
    try:
        run_in(played.net, lambda _: played.run(item.obj(**given)), limit=played.limit)
        played.check()
    finally:
        if given_mesh is None:
            played.net.close()
