"""What a node does when the system has no more: memory, descriptors, a network; and that nothing
stays when peers come and go.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import json
import os
import re
import socket
import textwrap
import tracemalloc
from collections import Counter

import pytest
from kit.inside import buffers_in_use, connections_of, engine_of, fail_at
from kit.nodes import loopback
from kit.scripts import OPTIONS, TOLD, line_of
from kit.waiting import GUARD, until

import peertalk as pt
from peertalk import waiting
from peertalk._core.reference import wheel

# Resources


def what_lives():
    """How many bytes are taken, and how many objects of each kind there are; but for what an event
    loop and the wheel of the reference core keep of cancelled timers, some until they are due and
    others up to a hundred. What a loop that is written in C keeps seems to be of the line that has
    called it."""
    gc.collect()
    lines, first = inspect.getsourcelines(waiting.Waiting.go_on)
    spared = f"{asyncio.__path__[0]}/*", wheel.__file__, tracemalloc.__file__
    filters = [tracemalloc.Filter(False, file) for file in spared]
    (step,) = (number for number, line in enumerate(lines, first) if "context.run(" in line)
    filters.append(tracemalloc.Filter(False, waiting.__file__, step))
    size = sum(each.size for each in tracemalloc.take_snapshot().filter_traces(filters).traces)
    kinds = Counter(map(type, gc.get_objects()))
    del kinds[asyncio.TimerHandle], kinds[contextvars.Context]
    return size, kinds


async def test_cycles_of_connecting_leave_no_descriptor_and_no_byte(core, rounds):
    """A node that runs for weeks sees its peers come and go."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("did not run: this system does not list descriptors in /proc/self/fd")
    async with (
        pt.Node("ada", **loopback(core=core.name)) as ada,
        pt.Node("bob", **loopback(core=core.name)) as bob,
    ):

        async def cycle(number):
            peer = await ada.connect(bob.address, timeout=GUARD)
            await peer.send(bytes(number % 900))
            message = await bob.receive(timeout=GUARD)
            await message.peer.send(b"back")
            await ada.receive(timeout=GUARD)
            await (peer if number % 2 else message.peer).disconnect(timeout=GUARD)
            await until(lambda: ada.stats().links_open == bob.stats().links_open == 0)

        for number in range(20):
            await cycle(number)
        descriptors = len(os.listdir("/proc/self/fd"))
        tracemalloc.start()
        count = rounds(60, 1_000) // 2
        before, bytes_more, grown = what_lives(), [], []
        for number in range(3):
            for number_of_cycle in range(count):
                await cycle(number_of_cycle)
            lives = what_lives()
            if number:  # what was counted counts too, the first time
                bytes_more.append(lives[0] - before[0])
                grown.append(lives[1] - before[1])
            before = lives
        tracemalloc.stop()
        assert len(os.listdir("/proc/self/fd")) == descriptors
        # a table may have grown, but not each time
        each_time = [kind for kind, more in (grown[0] & grown[1]).items() if more >= count / 2]
        assert not each_time, f"more of these after {count} more cycles"
        assert min(bytes_more) < 100 * count, f"bytes more after {count} more cycles"
        for node in (ada, bob):
            assert buffers_in_use(node) == 0
            assert (
                not connections_of(node)
                and len(engine_of(node)._timers) <= 2
                and len(engine_of(node)._watched) <= 3
            )


async def test_memory_that_runs_out_at_any_allocation_is_an_error_and_not_a_crash(core):
    """Each allocation of the C side fails in turn: while connecting, sending and receiving.
    Afterwards the same node works."""
    async with (
        pt.Node("ada", **loopback(core=core.name)) as ada,
        pt.Node("bob", **loopback(core=core.name)) as bob,
    ):
        payloads = [bytes(size) for size in (0, 100, 900, 1000)] * 30
        outcomes = set()
        for attempt in range(1, 60):
            fail_at(ada, attempt)
            try:
                peer = await ada.connect(bob.address, timeout=0.5)
                await peer.send_many(payloads, timeout=0.05)
                outcomes.add("sent")
            except pt.PeerTalkError as error:
                assert str(error)
                outcomes.add(type(error))
            enough = engine_of(ada).loop.pool.attempts < attempt
            fail_at(ada, 0)
            peer = await ada.connect(bob.address, timeout=GUARD)
            await peer.send(b"end")
            while (message := await bob.receive(timeout=GUARD)).data != b"end":
                assert message.data in payloads
            await message.peer.send(bytes(1000))
            assert (await ada.receive(timeout=GUARD)).data == bytes(1000)
            await peer.disconnect(timeout=GUARD)
            await until(lambda: ada.stats().links_open == bob.stats().links_open == 0)
            assert buffers_in_use(ada) == 0
            if enough:
                break
        assert enough and "sent" in outcomes and len(outcomes) > 1, outcomes


FEW_DESCRIPTORS = """
import asyncio, os, resource, sys, peertalk as pt
async def main():
    options = dict(bind="127.0.0.1", port=0, announce_interval=0.1)
    async with pt.Node("poor", discovery_port=int(sys.argv[1]), **options) as node:
        limit = len(os.listdir("/proc/self/fd")) + 8
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        print(node.address[1], flush=True)
        async for message in node.messages():
            await message.peer.send(message.data)
asyncio.run(main())
"""


async def test_without_descriptors_a_node_waits_and_goes_on_when_there_are_some_again(
    fork_python, free_port
):
    """EMFILE ends neither the node nor its announcements."""
    port = free_port()
    poor = fork_python("-c", FEW_DESCRIPTORS, str(port))
    address = ("127.0.0.1", int(await line_of(poor)))
    async with pt.Node("ada", bind="127.0.0.1", port=0, discovery_port=port) as ada:
        peer = await ada.wait_for("poor", timeout=GUARD)
        await peer.connect(timeout=GUARD)
        greedy = [socket.create_connection(address) for _ in range(30)]
        stderr = []
        while not any("cannot accept a connection" in line for line in stderr):
            stderr.append(await asyncio.wait_for(asyncio.to_thread(poor.stderr.readline), GUARD))
        await peer.send(b"still there?")
        assert (await ada.receive(timeout=GUARD)).data == b"still there?"
        for connection in greedy:
            connection.close()
        async with pt.Node("bob", **loopback()) as bob:
            late = await bob.connect(address, timeout=GUARD)
            await late.send(b"and for me?")
            assert (await bob.receive(timeout=GUARD)).data == b"and for me?"
        async with pt.Node("cid", bind="127.0.0.1", port=0, discovery_port=port) as cid:
            await cid.wait_for("poor", timeout=GUARD)  # it still announces and answers
    assert poor.poll() is None


has_proc = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"),
    reason="did not run: this system does not list descriptors in /proc/self/fd",
)

INSIDE = "from kit.inside import engine_of\n"

FULL_HOUSE = """
async def main():
    options = dict(bind="127.0.0.1", port=0, announce_interval=0.1)
    await asyncio.to_thread(int)  # the thread is there
    async with pt.Node("poor", discovery_port=int(sys.argv[1]), **options) as node:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        print(node.address[1], flush=True)
        left = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
        async def answer():
            async for message in node.messages():
                await message.peer.send(message.data)
        answering = asyncio.create_task(answer())
        await left
        while engine_of(node).troubles.lasting:
            await asyncio.sleep(0.01)
        stats = node.stats()
    print(json.dumps([stats.accepts_refused, stats.announcements_refused]))
asyncio.run(main())
"""

ROBBED = """
async def main():
    await asyncio.to_thread(int)  # the thread is there
    async with pt.Node("poor", bind="127.0.0.1", port=0, discovery=False) as node:
        limit = len(os.listdir("/proc/self/fd"))
        highest = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, highest[1]))
        held = []
        engine_of(node).spare.kept[0].close()
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            print(node.address[1], flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, highest)
        while node.stats().links_open < 3:
            await asyncio.sleep(0.01)
        assert engine_of(node).spare.kept, "for the next time"
        print(node.stats().links_open, flush=True)
        while engine_of(node).troubles.lasting:
            await asyncio.sleep(0.01)
asyncio.run(main())
"""

FEW_TO_START = """
import asyncio, json, os, resource, sys
import peertalk as pt
import peertalk.sync

door, port = sys.argv[1], int(sys.argv[2])
options = dict(bind="127.0.0.1", port=0, udp_port=0, discovery_port=port)

async def main():
    node = pt.Node("ada", **options)
    await node.start()
    await node.aclose()

def plain():
    with pt.sync.Node("ada", **options):
        pass

def count():
    return len(os.listdir("/proc/self/fd"))

with asyncio.Runner() as runner:
    run = plain if door == "sync" else lambda: runner.run(main())
    run()  # what is loaded at first use is loaded
    highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    for free in range(12):
        before, held = count(), []
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, highest[1]))
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            for descriptor in held[len(held) - free:]:
                os.close(descriptor)
            del held[len(held) - free:]
        try:
            run()
            told = "started"
        except OSError as error:
            told = f"{type(error).__name__}: {error}"
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, highest)
        print(json.dumps([free, told, count() - before]), flush=True)
"""


async def test_out_of_descriptors_a_node_turns_callers_away_and_is_there_for_all_others(
    fork_python, free_port
):
    """A server that is popular must not vanish: it announces itself, serves those it has, and says
    to the rest at once that it is full. Its log is two lines."""
    port = free_port()
    poor = fork_python("-c", TOLD + INSIDE + FULL_HOUSE, str(port))
    assert poor.stdout is not None and poor.stdin is not None
    address = ("127.0.0.1", int(await line_of(poor)))
    async with contextlib.AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(pt.Node(f"client {number}", **loopback()))
            for number in range(80)
        ]
        answers = await asyncio.gather(
            *(node.connect(address, timeout=GUARD) for node in nodes), return_exceptions=True
        )
        served = [
            node for node, answer in zip(nodes, answers, strict=True) if isinstance(answer, pt.Peer)
        ]
        turned_away = [answer for answer in answers if isinstance(answer, pt.ConnectionRefused)]
        assert len(served) > 20 and len(turned_away) == 80 - len(served) > 10, answers
        assert {answer.reason for answer in turned_away} == {pt.RejectReason.FULL}
        for node in served:
            await node.peers["poor"].send(b"still there?")
            assert (await node.receive(timeout=GUARD)).data == b"still there?"
        options = {"bind": "127.0.0.1", "port": 0, "udp_port": 0, "discovery_port": port}
        async with pt.Node("late", **options) as late:
            await late.wait_for("poor", timeout=GUARD)
        for node in served[:10]:
            await node.aclose()
        for node in [node for node in nodes if node not in served][:10]:
            await node.connect(address, timeout=GUARD)
            await node.peers["poor"].send(b"and now?")
            assert (await node.receive(timeout=GUARD)).data == b"and now?"
    out, err = await asyncio.to_thread(poor.communicate, "leave\n", GUARD)
    begun, over, counted = map(json.loads, out.splitlines())
    assert poor.returncode == 0, err
    assert "accepting connections fails: " in begun[1] and "Too many open files" in begun[1]
    assert "ulimit -n" in begun[1] and "turned away" in begun[1]
    refused = len(turned_away)
    assert f"accepting connections works again; {refused} failed in " in over[1]
    assert begun[0] == over[0] == "peertalk.network"
    assert counted == [refused, 0]


@has_proc
async def test_callers_wait_where_even_the_kept_descriptor_is_gone(fork_python):
    """Another thread may be quicker. Then it is as if nobody had answered yet, and the log no
    longer."""
    poor = fork_python("-c", TOLD + INSIDE + ROBBED)
    address = ("127.0.0.1", int(await line_of(poor)))
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(address))
        begun = json.loads(await line_of(poor))
        assert "accepting connections fails" in begun[1]
        out, err = await asyncio.to_thread(poor.communicate, "free\n", GUARD)
    assert poor.returncode == 0, err
    accepted, over = map(json.loads, out.splitlines())
    assert accepted == 3 and "accepting connections works again" in over[1]


def test_a_host_that_is_not_looked_up_for_want_of_descriptors_is_not_called_unknown(fork_python):
    """The name was blamed, and one looked for a mistake in it."""
    source = textwrap.dedent(
        f"""
        import asyncio, os, resource
        import peertalk as pt
        async def main():
            async with pt.Node("ada", {OPTIONS}) as ada:
                resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
                kept = []
                try:
                    while True:
                        kept.append(os.open("/dev/null", os.O_RDONLY))
                except OSError:
                    pass
                try:
                    await ada.connect(("localhost", 80))
                except pt.errors.PlatformError as error:
                    print(error, flush=True)
        asyncio.run(main())
        """
    )
    program = fork_python("-c", source)
    said, errors = program.communicate(timeout=GUARD)
    assert re.search("host 'localhost' is not looked up: Too many open files; close", said), errors


@has_proc
@pytest.mark.parametrize("door", ["asyncio", "sync"])
def test_a_node_that_starts_without_descriptors_says_so_and_leaves_nothing_open(
    core, door, fork_python, free_port
):
    """Whatever the system refuses is an error of peertalk's, with what to do; a program that goes
    on, or tries again, has lost nothing."""
    process = fork_python(
        "-c", FEW_TO_START, door, str(free_port()), env={"PEERTALK_CORE": core.name}
    )
    out, err = process.communicate(timeout=GUARD)
    assert process.returncode == 0, err
    tries = [json.loads(line) for line in out.splitlines()]
    failed = [each for each in tries if each[1] != "started"]
    assert tries == failed + [
        [len(failed) + n, "started", 0] for n in range(len(tries) - len(failed))
    ]
    # as the guide says; the loop of the reference core has one more
    threads = 4 if door == "sync" and core.name != "reference" else 0  # a worker and who decides
    assert len(failed) == (9 if core.name == "reference" else 8 + threads)
    for _, text, left in failed:
        assert text.startswith("PlatformError: ") and "Too many open files" in text, text
        assert not left


NO_NETWORK = """
import asyncio, peertalk as pt
async def main():
    try:
        await pt.Node("lonely", bind="", interfaces=()).start()
    except pt.errors.NoNetwork as error:
        print(error, flush=True)
asyncio.run(main())
"""


def test_without_any_network_interface_the_error_says_so(netns, fork_python):
    """In a namespace whose loopback is down there is nothing to live on."""
    process = fork_python("-c", NO_NETWORK, prefix=netns.prefix)
    out, err = process.communicate(timeout=GUARD)
    assert "no network interface is up, not even loopback" in out, textwrap.indent(err, "  ")
