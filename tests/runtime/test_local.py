"""Sockets between nodes of one host: where they lie, who may call there, and that nobody misses
anything where there is none. The nodes here are heard on loopback, and so of this host."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from classic import DATA, REJECT
from kit.inside import connections_of, engine_of
from kit.nodes import announcing, numbered, received
from kit.scripts import line_of
from kit.waiting import GUARD, next_event, until

import peertalk as pt
from peertalk._core import load
from peertalk.protocol import local
from peertalk.protocol.wire import decode_announcement
from peertalk.runtime.world import World

pytestmark = pytest.mark.skipif(
    not World.has_local, reason="did not run: sockets of one host are used on Linux alone"
)

OTHERS = 65_534
"""A user who is not us: nobody."""


def folder():
    """Where the sockets of this run lie."""
    return Path(os.environ["XDG_RUNTIME_DIR"]) / f"peertalk-{os.geteuid()}"


def place_of(node):
    return folder() / f"{node.id}.sock"


@pytest.fixture
def places(monkeypatch):
    """(in XDG_RUNTIME_DIR, among the temporary files): the two folders of a test of its own, with
    short names, since a socket's has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="pt") as name:
        root = Path(name)
        for folder in ("run", "tmp"):
            (root / folder).mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(root / "run"))
        monkeypatch.setattr(local, "TEMPORARY", str(root / "tmp"))
        own = f"peertalk-{os.geteuid()}"
        yield root / "run" / own, root / "tmp" / own


@contextlib.asynccontextmanager
async def neighbours(port, ada_options=None, **bob_options):
    """Two nodes that have heard each other, and of the first the peer that the second is to it."""
    async with (
        pt.Node("ada", **announcing(port, **(ada_options or {}))) as ada,
        pt.Node("bob", **announcing(port, **bob_options)) as bob,
    ):
        await bob.wait_for("ada", timeout=GUARD)
        yield ada, bob, await ada.wait_for("bob", timeout=GUARD)


async def talk(ada, bob, peer):
    """A message there and one back; whether both went over a socket of this host."""
    await peer.send(b"there", timeout=GUARD)
    message = await bob.receive(timeout=GUARD)
    await message.peer.send(b"back", timeout=GUARD)
    assert message.data == b"there" and await received(ada, 1) == [b"back"]
    assert peer.local is message.peer.local
    return peer.local


# What a connection is


async def test_nodes_of_one_host_that_hear_each_other_speak_over_a_socket_of_that_host(
    core, free_port
):
    """And it is a connection as every other: messages of every size and class in their order, a
    measured way, an address, a polite end, and another one after that."""
    async with neighbours(free_port(), {"core": core.name}, core=core.name) as (ada, bob, peer):
        assert not peer.local and await talk(ada, bob, peer)
        back = bob.peers["ada"]
        sent = [numbered(number, number * 37 % peer.max_message) for number in range(400)]
        for number, data in enumerate(sent):
            await (peer if number % 2 else back).send(data)
        assert await received(bob, 200) == sent[1::2] and await received(ada, 200) == sent[::2]
        await peer.send(b"soon", priority=pt.Priority.CRITICAL)
        assert await received(bob, 1) == [b"soon"]
        assert await peer.ping(timeout=GUARD) < GUARD
        assert peer.address == bob.address and back.address == ada.address
        await peer.disconnect(timeout=GUARD)
        assert not peer.local and not peer.connected
        assert await talk(ada, bob, peer)


async def test_what_the_system_takes_lies_with_the_other_side(core, free_port):
    """Sent is final there, though nobody has read it: nothing can lose it on its way. It is read
    before the end of the connection is told."""
    options = {"core": core.name}
    async with neighbours(free_port(), options, receive_queue_bytes=1024) as (ada, bob, peer):
        assert await talk(ada, bob, peer)
        for number in range(40):
            await peer.send(numbered(number, 1000))
        await until(lambda: ada.stats().messages_sent == 41)
        (connection,) = connections_of(ada)
        assert ada.stats().links_open == 1 and connection.link.unconfirmed == 0
        assert World().unacknowledged(connection.socket) == 0
        assert World().silent_for(connection.socket) == 0.0
        events = ada.events()
        connection.socket.shutdown(socket.SHUT_RDWR)
        await next_event(events, pt.PeerDisconnected)
        assert await received(bob, 40) == [numbered(number, 1000) for number in range(40)]
        assert ada.stats().messages_failed == 0


async def test_a_connection_that_broke_is_made_again_the_same_way(free_port):
    """Lost and back, as over TCP: by the next announcement."""
    quick = {"announce_interval": 0.1}
    async with neighbours(free_port(), quick, **quick) as (ada, bob, peer):
        assert await talk(ada, bob, peer)
        for side in (ada, bob):
            events = ada.events()
            connections_of(side)[0].socket.shutdown(socket.SHUT_RDWR)
            await next_event(events, pt.PeerDisconnected)
            await next_event(events, pt.PeerConnected)
            assert await talk(ada, bob, peer)


async def test_nobody_loses_a_connection_with_an_address_of_this_machine(free_port, monkeypatch):
    """It lives on none."""
    async with neighbours(free_port()) as (ada, bob, peer):
        assert await talk(ada, bob, peer)
        monkeypatch.setattr(World, "owns", lambda *_: False)
        for node in (ada, bob):
            engine_of(node).switchboard.watchdog.check_addresses()
        assert peer.connected and await talk(ada, bob, peer)


# Other programs

PROGRAM = """
import asyncio, sys
import peertalk as pt
from peertalk import sync

WAY, OPTIONS = sys.argv[1], {"bind": "127.0.0.1", "port": 0, "discovery_port": int(sys.argv[2])}

async def main():
    async with pt.Node("far", **OPTIONS) as node:
        print(node.id, flush=True)
        async for message in node.messages():
            await message.peer.send(b"%d" % message.peer.local)

if WAY == "asyncio":
    asyncio.run(main())
else:
    with sync.Node("far", **OPTIONS) as node:
        print(node.id, flush=True)
        for message in node.messages():
            message.peer.send(b"%d" % message.peer.local)
"""


@pytest.mark.parametrize("way", ["asyncio", "sync"])
async def test_a_program_that_is_killed_and_started_again_is_met_the_same_way(
    way, free_port, fork_python
):
    """Both front doors. The end is noticed at once, and what a killed program leaves is in nobody's
    way: the next one is another instance."""
    port = free_port()
    async with pt.Node("ada", **announcing(port, announce_interval=0.1)) as ada:
        left = []
        for _ in range(2):
            program = fork_python("-c", PROGRAM, way, str(port))
            left.append(folder() / f"{await line_of(program)}.sock")
            far = await ada.wait_for(left[-1].stem, timeout=GUARD)
            await far.send(b"how?", timeout=GUARD)
            assert await received(ada, 1) == [b"1"] and far.local
            events = ada.events()
            program.kill()
            assert (await next_event(events, pt.PeerDisconnected)).peer is far
        assert all(each.exists() for each in left)


async def test_a_program_that_is_stopped_is_frozen_and_not_dead(free_port, fork_python):
    """Its system takes what it is sent, as by TCP; when it goes on all of it is there, in order."""
    port = free_port()
    options = announcing(port, link_timeout=0.3, ping_interval=0.1)
    program = fork_python("-c", PROGRAM, "asyncio", str(port))
    async with pt.Node("ada", **options) as ada:
        far = await ada.wait_for(await line_of(program), timeout=GUARD)
        await far.send(b"how?", timeout=GUARD)
        assert await received(ada, 1) == [b"1"]
        events = ada.events()
        program.send_signal(signal.SIGSTOP)
        assert (await next_event(events, pt.PeerFrozen)).peer is far and far.local
        for _ in range(10):
            await far.send(b"how?")
        program.send_signal(signal.SIGCONT)
        assert (await next_event(events, pt.PeerThawed)).peer is far
        assert await received(ada, 10) == [b"1"] * 10 and ada.stats().links_opened == 1


# Where there is none: TCP


@pytest.mark.parametrize("who", ["ada", "bob"])
async def test_a_node_that_is_told_not_to_has_no_socket_and_calls_at_none(
    who, free_port, monkeypatch
):
    """Config.local."""
    off = {"local": False}
    options = (off, {}) if who == "ada" else ({}, off)
    async with neighbours(free_port(), options[0], **options[1]) as (ada, bob, peer):
        assert place_of(ada).exists() is (who == "bob") and place_of(bob).exists() is (who == "ada")
        assert not await talk(ada, bob, peer)
        await peer.disconnect(timeout=GUARD)
        assert not await talk(bob, ada, bob.peers["ada"])


async def test_who_connects_by_address_and_has_no_discovery_has_no_socket(free_port):
    """Nobody would hear of it."""
    options = {"bind": "127.0.0.1", "port": 0, "discovery": False}
    async with pt.Node("ada", **options) as ada, pt.Node("bob", **options) as bob:
        assert not place_of(ada).exists()
        assert not await talk(ada, bob, await ada.connect(bob.address, timeout=GUARD))


@pytest.mark.parametrize("how", ["removed", "left by somebody", "full"])
async def test_a_socket_that_leads_nowhere_is_no_obstacle(how, free_port):
    """A program that tidies up removed the file; nobody listens there any more; or so many call
    that there is no place."""
    async with neighbours(free_port()) as (ada, bob, peer):
        place_of(bob).unlink()
        with socket.socket(socket.AF_UNIX) as left, contextlib.ExitStack() as stack:
            if how != "removed":
                left.bind(str(place_of(bob)))
            if how == "full":
                left.listen(0)
                caller = stack.enter_context(socket.socket(socket.AF_UNIX))
                caller.connect(str(place_of(bob)))
            assert not await talk(ada, bob, peer)
        assert ada.stats().links_opened == 1


@pytest.mark.parametrize("answers", ["another node", "nobody", "a classic peer"])
async def test_who_is_not_who_was_called_gets_nothing(answers, free_port):
    """The greeting says who is there. Messages go to whom they were meant for, by TCP, at once and
    from then on; and the other one sees a caller that went."""
    async with (
        neighbours(free_port()) as (ada, bob, peer),
        pt.Node("cid", **announcing(free_port())) as cid,
    ):
        place_of(bob).unlink()
        calls = []

        async def answer(reader, writer):
            calls.append(await reader.read(64))
            if answers == "a classic peer":
                writer.write(load().encode_frame(DATA, b"from whom?"))
            writer.close()

        if answers == "another node":
            place_of(cid).rename(place_of(bob))
        else:
            server = await asyncio.start_unix_server(answer, place_of(bob))
        assert not await talk(ada, bob, peer)
        if answers == "another node":
            await until(lambda: cid.stats().links_opened == 1 and cid.stats().links_open == 0)
        else:
            server.close()
            assert len(calls) == 1
        await peer.disconnect(timeout=GUARD)
        assert not await talk(ada, bob, peer)
        assert cid.stats().messages_received == 0 and ada.stats().messages_received == 2


@pytest.mark.parametrize("says", ["nothing", "a message"])
async def test_a_caller_that_says_no_instance_is_no_peer(says, free_port):
    """All who know such sockets have one."""
    async with pt.Node("ada", **announcing(free_port())) as ada:
        reader, writer = await asyncio.open_unix_connection(place_of(ada))
        if says == "a message":
            writer.write(load().encode_frame(DATA, b"from whom?"))
        else:
            writer.write_eof()
        async with asyncio.timeout(GUARD):
            with contextlib.suppress(ConnectionResetError):
                while await reader.read(4096):
                    pass
        writer.close()
        await until(lambda: ada.stats().links_open == 0)
        assert not ada.peers and ada.stats().messages_received == 0


async def test_a_peer_that_rejects_us_is_not_asked_again_by_tcp(free_port):
    """It would say the same."""

    async def reject(_, writer):
        writer.write(load().encode_frame(REJECT, b"\x01"))
        writer.close()

    async with neighbours(free_port()) as (_, bob, peer):
        place_of(bob).unlink()
        async with await asyncio.start_unix_server(reject, place_of(bob)):
            with pytest.raises(pt.ConnectionRefused) as refused:
                await peer.connect(timeout=GUARD)
        assert refused.value.reason is pt.RejectReason.FULL
        assert bob.stats().links_opened == 0


# Other users

AS_OTHERS = f"""
import os, socket, sys
os.setresgid({OTHERS}, {OTHERS}, {OTHERS})
os.setresuid({OTHERS}, {OTHERS}, {OTHERS})
with socket.socket(socket.AF_UNIX) as mine:
"""
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0,
    reason="did not run: becoming another user needs root",
)


@pytest.fixture
def open_folder(monkeypatch):
    """A folder that everybody may enter and write to, however it came to that."""
    with tempfile.TemporaryDirectory() as found:
        os.chmod(found, 0o755)
        monkeypatch.setenv("XDG_RUNTIME_DIR", found)
        yield folder()


def as_others(code, *arguments):
    """Run this as another user, with a socket `mine`."""
    script = AS_OTHERS + textwrap.indent(textwrap.dedent(code), "    ")
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True
    )


@needs_root
async def test_another_user_cannot_even_enter_the_folder(open_folder, free_port):
    async with pt.Node("ada", **announcing(free_port())) as ada:
        calls = "try: mine.connect(sys.argv[1])\nexcept PermissionError: print('kept out')"
        program = as_others(calls, str(place_of(ada)))
        out, _ = await asyncio.to_thread(program.communicate, timeout=GUARD)
        assert out == "kept out\n"


@needs_root
async def test_another_user_who_gets_through_is_not_heard(open_folder, free_port):
    """The kernel says who calls."""
    async with pt.Node("ada", **announcing(free_port())) as ada:
        open_folder.chmod(0o755)
        place_of(ada).chmod(0o777)
        calls = """
            mine.connect(sys.argv[1])
            mine.settimeout(20)
            print(mine.recv(100))
        """
        program = as_others(calls, str(place_of(ada)))
        out, _ = await asyncio.to_thread(program.communicate, timeout=GUARD)
        assert out == "b''\n" and ada.stats().links_opened == 0


@needs_root
async def test_a_socket_of_another_user_is_not_used(open_folder, free_port):
    async with neighbours(free_port()) as (ada, bob, peer):
        open_folder.chmod(0o777)
        place_of(bob).unlink()
        listens = """
            mine.bind(sys.argv[1])
            mine.listen()
            print("listens", flush=True)
            mine.settimeout(20)
            caller, _ = mine.accept()
            print(caller.recv(100))
        """
        program = as_others(listens, str(place_of(bob)))
        assert await line_of(program) == "listens"
        assert not await talk(ada, bob, peer)
        out, _ = await asyncio.to_thread(program.communicate, timeout=GUARD)
        assert out == "b''\n", "it was called, and told nothing"


# Where they lie


async def test_each_node_has_its_own_and_leaves_nothing(free_port):
    """Many in one process."""
    port = free_port()
    before = set(folder().iterdir()) if folder().exists() else set()
    async with contextlib.AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(pt.Node(f"node{n}", **announcing(port)))
            for n in range(12)
        ]
        assert {place_of(node) for node in nodes} == set(folder().iterdir()) - before
        assert stat.S_IMODE(folder().stat().st_mode) == 0o700
    assert set(folder().iterdir()) == before
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(pt.errors.AddressInUse):
            await pt.Node("ada", **announcing(port) | {"port": taken.getsockname()[1]}).start()
    assert set(folder().iterdir()) == before


def unfit(kind, run):
    """Make XDG_RUNTIME_DIR a place that will not do; its text."""
    own = run / f"peertalk-{os.geteuid()}"
    match kind:
        case "not set":
            return ""
        case "not absolute":
            return os.path.relpath(run)
        case "too long":
            long = run / ("x" * 100)
            long.mkdir()
            return str(long)
        case "read only":
            return "/proc"
        case "a link":
            (run / "elsewhere").mkdir(mode=0o700)
            own.symlink_to(run / "elsewhere")
        case "open to others":
            own.mkdir(mode=0o700)
            own.chmod(0o711)
        case "of somebody else":
            own.mkdir(mode=0o700)
            os.chown(own, OTHERS, OTHERS)
        case "a file":
            own.touch(mode=0o700)
    return str(run)


@pytest.mark.parametrize(
    "kind",
    [
        "not set",
        "not absolute",
        "too long",
        "read only",
        "a link",
        "open to others",
        "a file",
        pytest.param("of somebody else", marks=needs_root),
    ],
)
async def test_where_one_place_will_not_do_the_other_does(
    kind, places, tmp_path, free_port, monkeypatch
):
    """And a program that has the first one, because its environment is another, is called there all
    the same."""
    port = free_port()
    async with pt.Node("bob", **announcing(port)) as bob:
        assert (places[0] / f"{bob.id}.sock").exists()
        bob_run = os.environ["XDG_RUNTIME_DIR"]
        other = tmp_path / "other"
        other.mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", unfit(kind, other))
        async with pt.Node("ada", **announcing(port)) as ada:
            assert (places[1] / f"{ada.id}.sock").exists()
            peer = await bob.wait_for("ada", timeout=GUARD)
            monkeypatch.setenv("XDG_RUNTIME_DIR", bob_run)
            assert await talk(bob, ada, peer)
        assert not list(places[1].iterdir())


@pytest.mark.parametrize("why", ["read only", "no descriptors", "not watched"])
async def test_where_no_place_will_do_a_node_is_as_it_always_was(
    why, places, free_port, monkeypatch, caplog
):
    """It announces no socket, says so once, and is called by TCP."""
    caplog.set_level("INFO", "peertalk")

    def refuse(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    if why == "read only":
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc")
        monkeypatch.setattr(local, "TEMPORARY", "/proc")
    elif why == "no descriptors":
        monkeypatch.setattr("peertalk.runtime.local._listen", refuse)
    else:

        class Unwatchable(World):
            def listen_local(self, instance):
                listener = super().listen_local(instance)
                with open(__file__) as file:  # epoll takes no regular file: EPERM
                    os.dup2(file.fileno(), listener.fileno())
                return listener

        monkeypatch.setattr("peertalk.node.World", Unwatchable)
    async with neighbours(free_port()) as (ada, bob, peer):
        assert not await talk(ada, bob, peer)
        said = [each for each in caplog.messages if "nodes of this host" in each]
        assert len(said) == 2, said
        packet = engine_of(ada).finder.discovery.introduce(bytes.fromhex(bob.id))
        assert packet is None or not decode_announcement(load(), packet).local


# What killed nodes have left


async def test_what_killed_nodes_have_left_is_removed_and_nothing_else(places, free_port):
    """Who is there is not disturbed, nor who is just about to be; and no start takes long."""
    here = places[0]
    here.mkdir(mode=0o700)

    def leave(name, *, old):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(here / name))
        os.utime(here / name, (0, 0) if old else None)
        return here / name

    dead, young = leave("dead.sock", old=True), leave("young.sock", old=False)
    note, listens = here / "note.txt", here / "listens.sock"
    note.touch()
    os.utime(note, (0, 0))
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(listens))
        alive.listen()
        os.utime(listens, (0, 0))
        async with pt.Node("ada", **announcing(free_port())):
            assert not dead.exists() and all(each.exists() for each in (young, note, listens))
        alive.setblocking(False)
        with pytest.raises(BlockingIOError):
            alive.accept()


def test_a_start_looks_at_a_bounded_number(places, monkeypatch):
    monkeypatch.setattr(local, "LEFT_MAX", 3)
    places[0].mkdir(mode=0o700)
    for number in range(10):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(places[0] / f"{number}.sock"))
        os.utime(places[0] / f"{number}.sock", (0, 0))
    world = World()
    with world.listen_local(bytes(8)) as listener:
        assert len(list(places[0].iterdir())) in (8, 9), "its own may be one of the three"
        world.remove_local(listener)
        world.remove_local(listener)


# A forked child


async def test_a_forked_child_leaves_the_socket_to_its_parent(free_port):
    """Whatever it does: it ends, it collects garbage, it closes what it has."""
    async with neighbours(free_port()) as (ada, bob, peer):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                bob.close_nowait()
            gc.collect()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert place_of(ada).exists() and place_of(bob).exists()
        assert await talk(ada, bob, peer)


# From where


def test_the_other_side_sees_from_where_tcp_would_have_called(places):
    world = World()
    listener = world.listen_local(bytes(8))
    with contextlib.closing(listener):
        called = world.dial_local(bytes(8), "10.1.2.3")
        accepted, address = world.accept(listener)
        assert address == ("10.1.2.3", 0) and world.accept(listener) is None
        assert world.outcome(called, address) is None
        for each in (called, accepted):
            world.tune(each, 5.0)
            assert each.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 2 * 212_992
            world.bound_unsent(each)
            assert each.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 65_536
            world.abandon(each)
        called.close()
        assert accepted.recv(1) == b""
        accepted.close()
        world.remove_local(listener)
        assert world.dial_local(bytes(8), "10.1.2.3") is None
