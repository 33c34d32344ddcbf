"""What the tests share: the three cores, two event loops, processes, ports, a private network, and
how long is long enough.

PEERTALK_SOAK=1 multiplies rounds (see rounds) and examples: the same code as the short form.
PEERTALK_CORE=<name> leaves the other cores out; without it a core that was not built is a failure,
never a silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import itertools
import os
import random
import shutil
import socket
import subprocess
import sys
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from kit.forks import FRESH, Forked, Server, python_path
from kit.programs import lowmem_programs as lowmem_programs
from kit.programs import lowmem_sanitized_programs as lowmem_sanitized_programs
from kit.programs import standard_programs as standard_programs
from kit.tables import WHOLE

SOAK = os.environ.get("PEERTALK_SOAK") == "1"
HANG_GUARD = 3_600 if SOAK else 60
"""Seconds that the body of an async test may take."""
SOAK_TIMEOUT = 2 * HANG_GUARD
"""Seconds after which pytest-timeout ends a test of the long form; of the short form: as
pyproject.toml says."""

settings.register_profile(
    "ci",
    deadline=None,
    max_examples=40 if WHOLE else 20,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("soak", parent=settings.get_profile("ci"), max_examples=3_000)
settings.load_profile("soak" if SOAK else "ci")


def pytest_configure(config: pytest.Config) -> None:
    """LeakSanitizer's tracer can crash in a process that ends while its threads do, and then the
    exit status is the sanitizer's. Leaks are to be found by the processes that run tests; what
    these start looks for none.

    A process of the tests that ends before its time ends the run, which has failed: pytest-xdist
    may wait for ever for one that takes its place (its issue 784)."""
    if getattr(config.option, "maxworkerrestart", 0) is None:
        config.option.maxworkerrestart = "0"
    runs_tests = hasattr(config, "workerinput") or not config.getoption("numprocesses", None)
    if runs_tests and "ASAN_OPTIONS" in os.environ:
        os.environ["ASAN_OPTIONS"] += ":detect_leaks=0"


@pytest.fixture(scope="session")
def rounds() -> Callable[[int, int], int]:
    """rounds(short, full): how often to do a thing, full under PEERTALK_SOAK=1. Whoever asks has a
    long form, and so the mark soak."""
    return lambda short, full: full if SOAK else short


# The cores

ONLY = os.environ.get("PEERTALK_CORE")
C_CORES = ("standard", "lowmem")
CORES = (*C_CORES, "reference")


def load_core(name: str) -> Any:
    """A core by name; a failure with a sentence when it was not built."""
    from peertalk import _core, errors

    try:
        return _core.load(name)
    except (errors.NotSupported, errors.InvalidArgument) as error:
        cure = "build it, or set PEERTALK_CORE=reference to test that one alone"
        return pytest.fail(f"the {name} core cannot be loaded ({error}); {cure}", pytrace=False)


@pytest.fixture(scope="session", params=[name for name in CORES if ONLY in (None, "", name)])
def core(request: pytest.FixtureRequest) -> Any:
    """Each of the three cores in turn."""
    return load_core(request.param)


@pytest.fixture(scope="session", params=C_CORES)
def c_core(request: pytest.FixtureRequest) -> Any:
    """Each of the compiled cores in turn."""
    if ONLY not in (None, "", request.param):
        pytest.skip(f"did not run on the {request.param} core: PEERTALK_CORE={ONLY} leaves it out")
    return load_core(request.param)


@pytest.fixture(scope="session")
def reference_core() -> Any:
    """The core in plain Python."""
    return load_core("reference")


@pytest.fixture
def simulator() -> None:
    """What is simulated is C: with the reference core alone there is nothing to test."""
    from peertalk import _core

    if _core.load().name == "reference":
        pytest.skip(
            "did not run: the simulator is in the compiled cores, and PEERTALK_CORE leaves them out"
        )


# Event loops: an `async def` test runs on each

try:
    import uvloop
except ImportError:
    LOOP_KINDS: list[Any] = ["asyncio"]
else:
    LOOP_KINDS = ["asyncio", pytest.param("uvloop", marks=pytest.mark.uvloop)]


@pytest.fixture(params=LOOP_KINDS)
def loop_kind(request: pytest.FixtureRequest) -> str:
    """Which event loop an async test runs on: "asyncio" or "uvloop"."""
    return str(request.param)


def event_loop_factory(kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes an event loop of that kind."""
    return uvloop.new_event_loop if kind == "uvloop" else asyncio.new_event_loop


@pytest.fixture
def any_loop(loop_kind: str) -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop of each kind for tests that are not async themselves; closed behind them."""
    with asyncio.Runner(loop_factory=event_loop_factory(loop_kind)) as runner:
        yield runner.get_loop()


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> None:
    if collector.istestfunction(obj, name) and inspect.iscoroutinefunction(obj):
        pytest.mark.usefixtures("loop_kind")(obj)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test on its loop, guarded against hanging; cancel and close all that it left."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def guarded(test: Awaitable[None]) -> None:
        async with asyncio.timeout(HANG_GUARD):
            await test

    with asyncio.Runner(
        loop_factory=event_loop_factory(pyfuncitem.funcargs["loop_kind"])
    ) as runner:
        runner.run(guarded(pyfuncitem.obj(**arguments)))
    return True


SPREAD = {
    "tests/test_faults.py",
    "tests/test_resources.py",
    "tests/test_namespaces.py",
    "tests/sim/test_scenarios.py",
    "tests/test_turns.py",
    "tests/protocol/test_line.py",
    "tests/runtime/test_watchdog.py",
    "tests/test_compat_dialling.py",
}
"""Modules whose tests take long, each by itself: any process may take the next of them."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of --dist loadfile: a module is one process's, for what it builds once, but for SPREAD: else
    one process would end minutes after the rest. Two of those come behind each other module,
    because many wait: all at once they would leave the processors idle in the end."""
    from xdist.scheduler import LoadScopeScheduling

    turns = itertools.count()

    class Spread(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return nodeid if module in SPREAD else module

        def _assign_work_unit(self, node: Any) -> None:
            alone = next((scope for scope in self.workqueue if "::" in scope), None)
            if alone and next(turns) % 3:
                self.workqueue.move_to_end(alone, last=False)
            super()._assign_work_unit(node)

    return Spread(config, log) if config.getvalue("dist") == "loadfile" else None


def freeze() -> None:
    """What lives now stays for the whole run: no later collection of garbage need walk it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Thousands of collected tests, of which none is garbage: to look for some on the way costs
    each process an eighth of the time."""
    gc.disable()
    collected = yield
    gc.enable()
    freeze()
    return collected


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Behind each module: its reports, and what it keeps for itself. Modules that read the whole
    tree leave a million objects, and others collect garbage hundreds of times."""
    result = yield
    if (nextitem is None or nextitem.path != item.path) and item.parent.nodeid not in SPREAD:
        freeze()
    return result


SANITIZED = "PEERTALK_SANITIZER" in os.environ
SECONDS = (("standard", "uvloop"), ("lowmem", "asyncio"), ("reference", "asyncio"))
CORES_THEMSELVES = ("tests/core/", "tests/platform/")
WAYS = ("epoll", "poll", "plain")
"""The cases of the fixture bench of tests/core."""


def repeats(item: pytest.Item) -> bool:
    """Whether a test on this core meets only what others meet. A loop knows nothing of cores, nor
    a core of loops, and what a test of both is about lies above. So each runs on the standard core
    and asyncio, and half of them, which their names decide, on one of SECONDS too: that many are
    enough to see a core or a loop that nodes cannot live on. Likewise half of those without a core
    on uvloop, and of those without a loop on one other core. Of the tests of the cores themselves
    each runs on each; but what Hypothesis makes up for each core by itself, on the standard one and
    one other: that they do alike is compared by test_differential.py. Likewise what is below a
    core: on the standard one each way to move bytes is tried, on the others the one that the name
    decides. In a whole run each runs on each. The sanitizers see C, of which the reference core has
    none."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    core, loop = given.get("core", given.get("c_core")), given.get("loop_kind")
    number = zlib.crc32(item.nodeid.partition("[")[0].encode())
    if WHOLE:
        return SANITIZED and core == "reference"
    if core is None:
        return loop == "uvloop" and number % 2 == 0
    if "bench" in given:
        way = WAYS[(number + (core == "reference")) % len(WAYS)]
        return core != "standard" and given["bench"] != way
    if loop is None:
        if item.nodeid.startswith(CORES_THEMSELVES):
            made_up = getattr(item.obj, "is_hypothesis_test", False)
            return made_up and "core" in given and core == CORES[1 + number % 2]
        second = ("lowmem", "reference") if "core" in given else ("lowmem",)
        return core not in ("standard", one_or_none(second, number))
    seconds = SECONDS if "core" in given else SECONDS[:2]
    return (core, loop) not in (("standard", "asyncio"), one_or_none(seconds, number))


def one_or_none(choices: tuple[Any, ...], number: int) -> Any:
    """One of these for half of all numbers; for the others None."""
    return (*choices, *[None] * len(choices))[number % (2 * len(choices))]


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is not asked for
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not repeats(item)]
    for item in items:
        if "rounds" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.soak)
    if SOAK and config.pluginmanager.hasplugin("timeout"):
        for item in items:
            item.add_marker(pytest.mark.timeout(SOAK_TIMEOUT))


# Ports, processes, networks

_FIRST_PORT, _LAST_PORT = 10_000, 32_000  # below the ports that the system hands out by itself
_ports = itertools.cycle(range(_FIRST_PORT, _LAST_PORT))
for _ in range(random.randrange(_LAST_PORT - _FIRST_PORT)):
    next(_ports)


def find_free_port() -> int:
    """A port that nothing uses, TCP or UDP, and that no other test of this run was given."""
    for port in itertools.islice(_ports, _LAST_PORT - _FIRST_PORT):
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return port
    raise RuntimeError(f"no free port from {_FIRST_PORT} to {_LAST_PORT}")


@pytest.fixture(scope="session", autouse=True)
def sockets_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the nodes of this run have their sockets of this host: what those leave that are killed
    goes with the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        yield


@pytest.fixture
def free_port() -> Callable[[], int]:
    """free_port(): a port of its own for each call. Nodes of a test use one for discovery, so that
    they never see those of another test."""
    return find_free_port


@pytest.fixture
def start_python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start_python(*arguments, prefix=(), **popen): a Python process with text pipes; killed and
    reaped when the test is over."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, prefix: tuple[str, ...] = (), **popen: Any) -> subprocess.Popen[str]:
        options: dict[str, Any] = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            **popen,
        }
        environment = {
            **os.environ,
            **FRESH,
            "PYTHONPATH": python_path(),
            **options.pop("env", {}),
        }
        process = subprocess.Popen(
            [*prefix, sys.executable, *arguments], env=environment, **options
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
    for process in started:
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture(scope="session")
def fork_server() -> Iterator[Server]:
    """What forks the processes of fork_python."""
    with contextlib.closing(Server()) as server:
        yield server


@pytest.fixture
def fork_python(fork_server: Server) -> Iterator[Callable[..., Forked]]:
    """fork_python(*arguments, prefix=(), env={}): as start_python, in a process that begins with
    peertalk imported: for what is about nodes, and not about the interpreter. prefix: that of a
    Namespace."""
    with contextlib.ExitStack() as started:

        def start(*arguments: str, prefix: tuple[str, ...] = (), **more: Any) -> Forked:
            process = fork_server.start(*arguments, namespace=prefix[-1] if prefix else "", **more)
            return started.enter_context(contextlib.closing(process))

        yield start


class Namespace:
    """A private network with nothing but a loopback interface that is down. prefix runs a command
    in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.prefix = ("ip", "netns", "exec", name)

    def ip(self, *arguments: str) -> None:
        """Run ip(8) in the namespace."""
        subprocess.run(["ip", "-n", self.name, *arguments], check=True, capture_output=True)

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace to its end."""
        return subprocess.run([*self.prefix, *command], text=True, capture_output=True, **options)


_namespace_numbers = itertools.count()


@pytest.fixture
def make_netns() -> Iterator[Callable[[], Namespace]]:
    """make_netns(): a private network for each call, gone when the test is over; skips where the
    machine allows none."""
    if shutil.which("ip") is None:
        pytest.skip(
            "did not run: a network namespace needs ip (package iproute2), which is not installed"
        )
    made: list[Namespace] = []

    def make() -> Namespace:
        name = f"pt{os.getpid()}-{next(_namespace_numbers)}"
        done = subprocess.run(["ip", "netns", "add", name], text=True, capture_output=True)
        if done.returncode:
            pytest.skip(
                "did not run: this machine allows no network namespace "
                f"({done.stderr.strip() or 'no reason given'}); root is needed"
            )
        made.append(Namespace(name))
        return made[-1]

    yield make
    for namespace in made:
        subprocess.run(["ip", "netns", "del", namespace.name], check=False, capture_output=True)


@pytest.fixture
def netns(make_netns: Callable[[], Namespace]) -> Namespace:
    """One private network; see make_netns."""
    return make_netns()
