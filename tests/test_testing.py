"""The pytest plugin, as somebody else's tests see it: pytest runs inside pytest."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("simulator")

pytest_plugins = "pytester"


@pytest.fixture
def run(pytester: pytest.Pytester) -> Any:
    """run(source): what pytest says about a test module with that source."""

    def runs(source: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile("import asyncio, time, pytest\n" + source)
        return pytester.runpytest(
            "-p", "peertalk.testing", "-p", "no:cacheprovider", "--strict-markers", *arguments
        )

    return runs


def test_the_example_of_the_documentation_passes(run):
    """Three nodes on a bad wire: the plugin runs the coroutine itself."""
    run(
        """
@pytest.mark.peertalk(nodes=3, loss=0.05, seed=7)
async def test_my_game(mesh):
    result = await mesh[0].broadcast(b"start")
    assert len(result.accepted) == 2
    assert await mesh.all_received(b"start", within="2s")
    assert mesh.received(1) == [b"start"]
"""
    ).assert_outcomes(passed=1)


def test_what_was_not_received_in_time_is_false_and_nobody_slept(run):
    """within is network time."""
    run(
        """
@pytest.mark.peertalk(nodes=2, seed=1)
async def test_cut(mesh):
    before = mesh.net.clock.seconds
    mesh.net.cut(mesh[0], mesh[1])
    await mesh.peer(0, 1).send(b"lost")
    assert not await mesh.all_received(b"lost", within="2s")
    assert mesh.net.clock.seconds == pytest.approx(before + 2)
    mesh.net.heal()
    assert await mesh.all_received(b"lost", within="1m")
"""
    ).assert_outcomes(passed=1)


def test_a_test_that_fails_fails_with_its_own_assertion_and_its_seed(run):
    """The seed is what the reader needs to see it again."""
    result = run(
        """
@pytest.mark.peertalk(seed=4711)
async def test_wrong(mesh):
    await mesh.peer(0, 1).send(b"x")
    assert (await mesh[1].receive()).data == b"y"
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert b'x' == b'y'*", "*seed 4711*"])


def test_a_task_that_still_waits_when_the_test_is_over_fails_it_and_is_named(run):
    """Whoever waits for ever in a test waits for ever in the field."""
    result = run(
        """
async def forgotten(node):
    await node.receive()

@pytest.mark.peertalk
async def test_leaves_one(mesh):
    asyncio.create_task(forgotten(mesh[0]))
    await asyncio.sleep(0.1)
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*somebody still waits*", "*forgotten*test_a_task*.py:*receive*"])


def test_a_leak_or_a_broken_rule_fails_the_test_that_did_it(run):
    """A buffer that is not given back is found in the test that lost it, not a week later."""
    result = run(
        """
@pytest.mark.peertalk
async def test_breaks_a_rule(mesh):
    mesh.net._box.faults.append("node0: 1 buffers were not given back")
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*1 buffers were not given back*"])


@pytest.mark.unsanitized("loses a buffer on purpose")
def test_a_buffer_that_is_really_lost_fails_its_test(run):
    """The check is of the pool itself: whoever borrows and does not give back is named."""
    result = run(
        """
from kit.inside import engine_of

@pytest.mark.peertalk
async def test_loses_one(mesh):
    engine_of(mesh[1]).loop.pool.acquire(100)

@pytest.mark.peertalk
async def test_loses_none(mesh):
    await mesh.peer(0, 1).send(b"x")
"""
    )
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*node1: 1 buffers were not given back*"])


def test_a_background_task_that_fails_fails_the_test(run):
    """An exception that nobody awaits is an error of the program under test."""
    result = run(
        """
async def breaks():
    raise ValueError("in the background")

@pytest.mark.peertalk
async def test_starts_it(mesh):
    asyncio.create_task(breaks())
    await asyncio.sleep(1)
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ValueError: in the background*"])


def test_other_plugins_that_run_coroutines_do_not_get_ours(run, pytester):
    """Projects use pytest-asyncio or anyio, often in a mode that takes every coroutine: on a loop
    of theirs time would be real and mesh empty."""
    pytester.makeconftest(
        """
import asyncio, inspect, pytest

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        names = pyfuncitem._fixtureinfo.argnames
        asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
        return True
"""
    )
    run(
        """
@pytest.mark.peertalk
async def test_ours(mesh):
    await asyncio.sleep(3_000)
    assert len(mesh) == 2

async def test_theirs():
    assert not type(asyncio.get_running_loop()).__module__.startswith("peertalk")
"""
    ).assert_outcomes(passed=2)


WRONG = {
    "(2, 7, 9)": "3 arguments without a name",
    "(nodes=0)": "nodes=0",
    "(nodes='x')": "nodes='x'",
    "(names=['a', 'a'])": "each of them once",
    "(platform=[])": "platform",
    "(platform='beos')": "'beos'",
    "(seed='x')": "seed 'x'",
    "(loss=3)": "0 to 1",
    "(nodez=3)": "nodez",
    "(limit='soon')": "'soon'",
}


def test_a_mark_that_is_wrong_is_an_error_that_says_what(run):
    """What is dropped in silence is a test of something else."""
    result = run(
        "\n".join(
            f"@pytest.mark.peertalk{mark}\nasync def test_{number}(mesh):\n    pass\n"
            for number, mark in enumerate(WRONG)
        )
    )
    outcomes = result.parseoutcomes()
    assert outcomes.get("failed", 0) + outcomes.get("errors", 0) == len(WRONG)
    told = re.split(r"_ (?:ERROR at \w+ of )?test_(\d+) _", result.stdout.str())
    of_each = dict(zip(told[1::2], told[2::2], strict=True))
    for number, word in enumerate(WRONG.values()):
        assert word in of_each[str(number)], number


def test_a_marked_function_that_is_no_coroutine_is_an_error(run):
    """It would run without a network, and pass."""
    result = run("@pytest.mark.peertalk(nodes=3)\ndef test_it():\n    pass\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*must be an `async def`*"])


def test_the_plugin_loads_no_core_and_no_simulator_for_tests_that_need_none(run, pytester):
    """pytest loads it everywhere that peertalk is installed: it must not cost the others."""
    pytester.makepyfile(test_plain="def test_plain():\n    pass\n")
    program = (
        "import sys, pytest\n"
        "assert pytest.main(['-q', '-p', 'peertalk.testing', '-p', 'no:cacheprovider', "
        "'test_plain.py']) == 0\n"
        "print('loaded', sorted(name for name in sys.modules if name in "
        "('_cffi_backend', 'peertalk.sim', 'peertalk.sim.world')\n"
        "      or name.startswith('peertalk._core._')))\n"
    )
    pytester.makepyfile(program=program)
    pytester.runpython("program.py").stdout.fnmatch_lines(["loaded []"])


def test_a_test_that_hangs_ends_at_its_limit_and_says_who_waits(run):
    """An hour of waiting takes no time here."""
    result = run(
        """
@pytest.mark.peertalk(limit="10m")
async def test_hangs(mesh):
    await mesh[0].receive()
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Deadlock*600 s of network time*", "*test_hangs*"])


def test_platforms_links_and_nodes_are_what_the_mark_says(run):
    """The arguments of the mark are those of Network.link() and Network.node(); marks of a class
    and of a test add up."""
    run(
        """
@pytest.mark.peertalk(platform=["mactcp", "opentransport"], core="lowmem")
class TestOld:
    @pytest.mark.peertalk(
        nodes=3, latency="50ms", connect=False, discovery=True, names=["ada", "bob", "cyd"]
    )
    async def test_worlds(self, mesh):
        assert [node.platform for node in mesh] == ["mactcp", "opentransport", "mactcp"]
        assert mesh.net._simulator.link_values("ada", "bob")["latency_ns"] == 50_000_000
        peer = await mesh[0].wait_for("cyd", timeout="1m")
        await peer.send("hello")
        assert await mesh.all_received("hello", but=[mesh[0], mesh[1]])

    async def test_default(self, mesh):
        assert len(mesh) == 2 and mesh.peer(0, 1).connected and mesh.peer(1, 0).connected
"""
    ).assert_outcomes(passed=2)


def test_other_fixtures_parameters_and_plain_tests_are_left_in_peace(run):
    """The plugin takes what is marked or uses mesh, and nothing else."""
    result = run(
        """
@pytest.fixture
def word():
    return b"word"

@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.peertalk(nodes=2)
async def test_with_more(mesh, word, count, tmp_path):
    for _ in range(count):
        await mesh.peer(1, 0).send(word)
    for _ in range(count):
        assert (await mesh[0].receive(timeout=1)).data == word

@pytest.mark.peertalk
async def test_no_mesh():
    await asyncio.sleep(1_000_000 / 1000)

def test_plain():
    pass

def test_not_async(mesh):
    pass
"""
    )
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(["*must be an `async def`*"])


def test_the_mark_is_documented_in_the_list_of_marks(run):
    """pytest --markers is where people look."""
    run("", "--markers").stdout.fnmatch_lines(["@pytest.mark.peertalk(nodes=2, seed=0*"])
