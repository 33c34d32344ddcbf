"""A node of peertalk.sync that lives while its program does something else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from kit.inside import engine_of
from kit.nodes import announcing, loopback, numbered
from kit.waiting import GUARD

import peertalk as pt
from peertalk import sync
from peertalk.sync import control

pytestmark = pytest.mark.threads


def eventually(condition):
    """Wait until something is so, without a call of any node."""
    give_up = time.monotonic() + GUARD
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)


@contextlib.contextmanager
def two(**options):
    """Two connected nodes; nobody calls them but the test."""
    with (
        sync.Node("ada", **loopback(**options)) as ada,
        sync.Node("bob", **loopback(**options)) as bob,
    ):
        yield ada, bob, ada.connect(bob.address, timeout=GUARD)


def test_it_has_one_worker_and_one_thread_that_decides_unless_it_is_told_otherwise(monkeypatch):
    before = threading.active_count()
    with sync.Node("ada", **loopback()) as ada:
        names = {each.name for each in threading.enumerate()}
        assert {"ada worker 1", "ada control"} <= names and ada.config.workers == 1
    assert threading.active_count() == before
    with sync.Node("ada", **loopback(workers=0)) as ada:
        assert threading.active_count() == before and ada.config.workers == 0
    with sync.Node(config=pt.Config(name="ada", **loopback())) as ada:
        assert ada.config.workers == 0
    monkeypatch.setenv("PEERTALK_WORKERS", "2")
    with sync.Node("ada", **loopback()) as ada:
        assert ada.config.workers == 2 and threading.active_count() == before + 3
    assert threading.active_count() == before


@pytest.mark.parametrize("begins", [True, False])
def test_a_signal_that_strikes_the_start_of_the_thread_is_raised_as_it_is(monkeypatch, begins):
    """Before the thread has begun, or just after: RuntimeError was raised in its place, "cannot
    join thread before it is started", and the node kept its descriptors."""
    monkeypatch.setattr(control, "_BEGINS", GUARD if begins else 0.01)
    start = threading.Thread.start

    def struck(thread):
        if "control" not in thread.name or begins:
            start(thread)
        if "control" in thread.name:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", struck)
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            sync.Node("ada", **loopback()).start()
    assert threading.active_count() == threads
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_what_is_kicked_while_it_ends_is_no_other_file(monkeypatch):
    """The number of a descriptor that was closed is that of the next file which is opened, and the
    kick was written into that."""
    end = control.Control(threading.Lock(), time.monotonic, lambda: None)
    reading, writing = os.pipe()
    end._descriptors, end._kicks = [reading], control._End(writing)
    written = []

    def write(number, data):
        end._close()
        os.fstat(number)  # raises where it is closed
        written.append((number, data))

    monkeypatch.setattr(os, "write", write)
    end.kick()
    end.kick()
    assert written == [(writing, b"k")]
    with pytest.raises(OSError):
        os.fstat(writing)


def test_the_core_without_a_compiler_is_polled(reference_core):
    before = threading.active_count()
    with sync.Node("ada", **loopback(core="reference")) as ada:
        assert ada.config.workers == 0 and threading.active_count() == before


def test_nodes_find_each_other_and_connect_while_their_program_calls_nothing(free_port):
    """A program that computes was never found, and forgotten again."""
    port = free_port()
    with sync.Node("ada", **announcing(port)) as ada, sync.Node("bob", **announcing(port)) as bob:
        eventually(lambda: ada.peers.get("bob") and bob.peers.get("ada"))
        ada.connect("bob", timeout=GUARD)
        eventually(lambda: bob.peers["ada"].connected)


def test_a_ping_is_answered_and_what_comes_is_kept_while_the_program_calls_nothing():
    with two() as (_, bob, peer):
        assert peer.ping(timeout=GUARD) > 0
        for number in range(100):
            peer.send(numbered(number))
        eventually(lambda: engine_of(bob).inbox.cost)
        assert [bob.receive(timeout=GUARD).data for _ in range(100)] == list(
            map(numbered, range(100))
        )


def test_what_one_call_leaves_undone_is_done_without_another():
    """A message to a peer that is not connected yet waits for no call."""
    with (
        sync.Node("ada", **loopback()) as ada,
        sync.Node("bob", **loopback()) as bob,
    ):
        peer = ada.connect(bob.address, timeout=GUARD)
        peer.disconnect(timeout=GUARD)
        peer.send_nowait(b"later")
        eventually(lambda: engine_of(bob).inbox.cost)
        assert bob.receive(timeout=GUARD).data == b"later"


def test_a_timer_is_served_while_message_after_message_is_taken_without_a_turn():
    """Each of them put the turn of the control thread off, for as long as they came."""
    fired, count = threading.Event(), 1_000
    with two() as (ada, bob, _):
        engine, peer = engine_of(ada), bob.wait_for("ada", timeout=GUARD)
        peer.send(b"first")  # of which the connection is known from
        ada.receive(timeout=GUARD)
        with ada._turning:
            peer.send(b"second")
            ada._turning.until(
                lambda: bool(engine.connections.direct), GUARD, "no link may be taken from"
            )
            assert engine.inbox.take()[1] == b"second"
            [tag] = engine.connections.direct
            peer.send_many(numbered(number) for number in range(count))
            eventually(lambda: engine.workers.keeps(tag) == count)
            engine.after(0.0, fired.set)
            taken = [ada._turning.take(False, False)]
        while not fired.is_set() and len(taken) < count:
            taken.append(ada.receive(timeout=GUARD))
            time.sleep(0.001)
        assert fired.is_set()
        assert [each.data for each in taken] == [numbered(each) for each in range(len(taken))]


def test_calls_of_many_threads_have_their_own_time_and_lose_nothing():
    with two() as (ada, bob, peer):
        failed = []

        def send(first):
            try:
                for number in range(first, first + 300):
                    peer.send(numbered(number), timeout=GUARD)
                    if number % 50 == 0:
                        with contextlib.suppress(pt.Timeout):
                            ada.receive(timeout=0.001)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=send, args=(1000 * each,)) for each in range(8)]
        for each in threads:
            each.start()
        came = [int.from_bytes(bob.receive(timeout=GUARD).data[:4], "big") for _ in range(2400)]
        for each in threads:
            each.join(GUARD)
        assert not failed
        for first in range(0, 8000, 1000):
            mine = [number for number in came if first <= number < first + 1000]
            assert mine == list(range(first, first + 300))


def test_a_signal_interrupts_a_wait_though_other_threads_run():
    """It may be delivered to any thread that does not block it; its handler runs on this one."""

    class Struck(Exception):
        pass

    def strike(*_):
        raise Struck

    before = signal.signal(signal.SIGUSR1, strike)
    try:
        with sync.Node("ada", **loopback()) as ada:
            for _ in range(5):
                timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
                timer.start()
                with pytest.raises(Struck):
                    ada.receive(timeout=GUARD)
                timer.join()
            assert ada.stats().peers == 0
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_an_exception_of_a_callback_is_logged_and_the_node_lives_on(caplog, kind):
    with two() as (ada, bob, peer):
        transport = engine_of(ada)

        def fail():
            raise kind("made up")

        transport.post(fail)
        eventually(lambda: "made up" in caplog.text)
        peer.send(b"alive")
        assert bob.receive(timeout=GUARD).data == b"alive"


def test_a_forked_child_has_neither_thread_nor_node():
    with two() as (ada, bob, peer):
        descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        child = os.fork()
        if not child:
            status = 1
            with contextlib.suppress(BaseException):
                try:
                    peer.send(b"x", timeout=1)
                except pt.InvalidState:
                    status = 0
                if descriptors and len(os.listdir("/proc/self/fd")) >= descriptors:
                    status = 2
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        peer.send(b"still here")
        assert bob.receive(timeout=GUARD).data == b"still here"
        assert ada.stats().messages_sent >= 0


def test_who_keeps_the_interpreter_keeps_no_connected_peer_waiting(fork_python):
    """A second process pings until it has its answers; the call that holds the interpreter here
    returns only then."""
    with sync.Node("ada", **loopback()) as ada:
        script = (
            "import sys, peertalk as pt\n"
            "from peertalk import sync\n"
            "with sync.Node('bob', bind='127.0.0.1', discovery=False) as bob:\n"
            "    peer = bob.connect(('127.0.0.1', int(sys.argv[1])), timeout=20)\n"
            "    peer.send(b'here')\n"
            "    sys.stdin.readline()\n"
            "    for _ in range(3): peer.ping(timeout=20)\n"
            "    print('answered', flush=True)\n"
            "    sys.stdin.readline()\n"
        )
        other = fork_python("-c", script, str(ada.address[1]))
        assert ada.receive(timeout=GUARD).data == b"here"
        other.stdin.write("go\n")
        other.stdin.flush()
        room = ctypes.create_string_buffer(8)
        ctypes.PyDLL(None).read(other.stdout.fileno(), room, 8)
        assert room.raw == b"answered", other.communicate(timeout=GUARD)
        other.communicate("end\n", timeout=GUARD)


BESIDE_A_HOLDER = """
import sys, time
import peertalk as pt
from peertalk import sync
options = {"bind": "127.0.0.1", "discovery": False}
with sync.Node("bob", **options) as bob, sync.Node("new", **options) as new:
    address = "127.0.0.1", int(sys.argv[1])
    peer = bob.connect(address, timeout=20)
    peer.send(b"here")
    list(bob.events())
    sys.stdin.readline()
    until = time.monotonic() + float(sys.argv[2])
    pings = 0
    while time.monotonic() < until or not pings:
        peer.ping(timeout=20)
        pings += 1
        time.sleep(0.05)
    sent = 0
    try:
        while True:
            peer.send(b"%07d" % sent + bytes(8000), timeout=0.5)
            sent += 1
    except pt.Timeout:
        pass
    try:
        new.connect(address, timeout=0.5)
        raise SystemExit("a newcomer was greeted")
    except pt.Timeout:
        pass
    assert peer.connected and not any(
        isinstance(event, pt.PeerDisconnected) for event in bob.events()
    )
    print("answered", flush=True)
    peer.send(b"last", timeout=20)
    print(sent, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.soak
def test_who_keeps_the_interpreter_for_long_is_a_slow_reader_and_no_more(rounds, fork_python):
    """A minute in the long form. Its connected peer gets its PINGs answered, is slowed by flow
    control, and loses nothing; a newcomer waits."""
    with sync.Node("ada", **loopback()) as ada:
        seconds = str(rounds(1, 60))
        other = fork_python("-c", BESIDE_A_HOLDER, str(ada.address[1]), seconds)
        assert ada.receive(timeout=GUARD).data == b"here"
        other.stdin.write("go\n")
        other.stdin.flush()
        room = ctypes.create_string_buffer(8)
        ctypes.PyDLL(None).read(other.stdout.fileno(), room, 8)
        assert room.raw == b"answered", other.communicate(timeout=GUARD)
        came = [ada.receive(timeout=GUARD).data[:7]]
        while came[-1] != b"last":
            came.append(ada.receive(timeout=GUARD).data[:7])
        out, err = other.communicate("end\n", timeout=GUARD)
        assert (err, other.returncode) == ("", 0)
        assert came[:-1] == [b"%07d" % number for number in range(int(out))]
        assert len(came) > 30, "nothing held the sender up"


FORGOTTEN = """
from peertalk import sync
node = sync.Node("ada", bind="127.0.0.1", discovery=False, workers=2).start()
other = sync.Node("bob", bind="127.0.0.1", discovery=False).start()
peer = node.connect(other.address, timeout=20)
peer.send(bytes(100))
print("end", flush=True)
"""


class Struck(Exception):
    pass


def test_who_waits_for_its_end_hears_nothing_of_another_one_who_was_struck_meanwhile():
    """join() of Python 3.11 lets go of the lock of a thread when a signal handler raises in it: the
    others then let go of a lock that nobody has, and the thread counts as ended."""
    node = sync.Node("ada", **loopback()).start()
    control, held, go_on = node._turning._control, threading.Event(), threading.Event()

    def hold():
        with node._turning:
            held.set()
            go_on.wait(GUARD)

    def strike(*_):
        raise Struck

    before = signal.signal(signal.SIGUSR1, strike)
    with ThreadPoolExecutor(3) as others:
        holding = others.submit(hold)
        assert held.wait(GUARD)
        waiting = [others.submit(control.stop, waits=True) for _ in range(2)]
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        try:
            with pytest.raises(Struck):
                control.stop(waits=True)
        finally:
            timer.join()
            signal.signal(signal.SIGUSR1, before)
        assert not any(each.done() for each in waiting) and control._thread.is_alive()
        go_on.set()
        for each in (holding, *waiting):
            each.result(GUARD)
    assert not control._thread.is_alive()
    node.close()


def test_an_interpreter_that_ends_with_open_nodes_ends(fork_python):
    process = fork_python("-W", "ignore", "-c", FORGOTTEN)
    out, err = process.communicate(timeout=GUARD)
    assert (process.returncode, out.strip()) == (0, "end") and "Traceback" not in err
