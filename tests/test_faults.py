"""What the world does to a node: peers that die, cables that are cut, memory and descriptors that
run out. Waiters are told, and the node goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import sys
import time

import pytest
from kit.inside import buffers_in_use, connections_of, end_connection, engine_of
from kit.nodes import loopback
from kit.scripts import OPTIONS, TOLD, line_now, line_of
from kit.waiting import GUARD, until

import peertalk as pt
from peertalk.protocol import connections as policy
from peertalk.runtime.traffic import Traffic


async def flood(peer):
    """Send until there is room no more; a task that waits for it."""
    with contextlib.suppress(pt.Timeout):
        while True:
            await peer.send(bytes(8000), timeout=0.05)
    waiting = asyncio.create_task(peer.send(b"waits"))
    await asyncio.sleep(0)
    assert not waiting.done()
    return waiting


async def still_works(node):
    """A node that goes on can be talked to."""
    async with pt.Node("witness", **loopback()) as witness:
        peer = await witness.connect(node.address, timeout=GUARD)
        await peer.send(b"are you there")
        message = await node.receive(timeout=GUARD)
        assert message.data == b"are you there"
        await message.peer.send(b"yes")
        assert (await witness.receive(timeout=GUARD)).data == b"yes"


def outcomes_of(events):
    """What each message ended as: None for Sent. At most one Failed follows a Sent, and says that
    nobody knows."""
    outcome = {}
    for event in events:
        if isinstance(event, pt.Sent | pt.Failed):
            what = event.outcome if isinstance(event, pt.Failed) else None
            for number in range(event.first, event.last + 1):
                if number in outcome:
                    assert outcome[number] is None and what is pt.Outcome.UNKNOWN, number
                outcome[number] = what
    return outcome


def check_account(node, peer, events, others=0):
    """Each accepted message has ended as sent or failed, and the counters agree. others: messages
    that the node sent to somebody else."""
    outcome = outcomes_of(events)
    assert sorted(outcome) == list(range(1, peer.accepted + 1))
    stats = node.stats()
    failed = sum(what is not None for what in outcome.values())
    assert (peer._remote.failed, stats.messages_failed) == (failed, failed)
    assert peer.stats().messages_sent == len(outcome) - failed
    assert stats.messages_accepted == stats.messages_sent + stats.messages_failed
    assert stats.messages_accepted - others == peer.accepted == peer._remote.reported


# Peers that die

VICTIM = f"""
import asyncio, peertalk as pt
async def main():
    async with pt.Node("victim", receive_queue_bytes=1024, {OPTIONS}) as node:
        print(node.address[1], flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_when_a_peer_is_killed_waiting_senders_hear_it_by_name_and_the_node_goes_on(
    fork_python, monkeypatch
):
    """A crash at the other end must be an exception here, not a hang; what was accepted is
    accounted for to the last message."""
    monkeypatch.setattr(policy, "RETRY_DELAYS", (0.01, 0.01))
    victim = fork_python("-c", VICTIM)
    async with pt.Node("ada", **loopback(send_queue_size=4)) as ada:
        events = ada.events()
        peer = await ada.connect(("127.0.0.1", int(await line_of(victim))), timeout=GUARD)
        waiting = await flood(peer)
        victim.send_signal(signal.SIGKILL)
        with pytest.raises(pt.ConnectionClosed, match="'victim'") as raised:
            await asyncio.wait_for(waiting, GUARD)
        assert raised.value.peer == "victim" and isinstance(raised.value, ConnectionError)
        await until(lambda: not peer.queue.pending)
        await still_works(ada)
        seen = []
        await ada.aclose()
        async for event in events:
            seen.append(event)
        check_account(
            ada, peer, [event for event in seen if getattr(event, "peer", None) is peer], others=1
        )
        failed = [event for event in seen if isinstance(event, pt.Failed)]
        assert {event.outcome for event in failed} == {pt.Outcome.UNKNOWN, pt.Outcome.FAILED}
        lost = [
            event for event in seen if isinstance(event, pt.PeerDisconnected) and event.peer is peer
        ]
        assert len(lost) == 1 and isinstance(lost[0].error, pt.ConnectionClosed)


@pytest.mark.parametrize("how", ["reset", "disconnect", "end of stream"])
async def test_when_the_other_side_ends_the_link_with_sends_pending_they_are_told(
    core, how, monkeypatch
):
    """Three ways to go, one thing to hear; nothing stays in flight for ever."""
    monkeypatch.setattr(policy, "RETRY_DELAYS", (0.01, 0.01))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        async with pt.Node(
            "ada", **loopback(core=core.name, send_queue_size=4, drain_timeout=0.1)
        ) as ada:
            events = ada.events()
            connecting = asyncio.create_task(ada.connect(listener.getsockname(), timeout=GUARD))
            remote, _ = await loop.sock_accept(listener)
            listener.close()
            await loop.sock_sendall(
                remote, core.encode_frame(7, core.encode_capability(1000, 256, 0, 0))
            )
            peer = await connecting
            with contextlib.suppress(pt.Timeout):
                while True:
                    await peer.send(bytes(1000), timeout=0.05)
            waiting = asyncio.create_task(peer.send(b"waits"))
            await asyncio.sleep(0)
            if how == "reset":
                remote.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                remote.close()
            elif how == "disconnect":
                await loop.sock_sendall(remote, core.encode_frame(4, b""))
            else:
                remote.shutdown(socket.SHUT_WR)
            with pytest.raises(pt.ConnectionClosed) as raised:
                await asyncio.wait_for(waiting, GUARD)
            assert raised.value.peer == peer.name
            await until(lambda: not peer.queue.pending)
            assert buffers_in_use(ada) == 0
            remote.close()
            await still_works(ada)
            await ada.aclose()
            check_account(
                ada,
                peer,
                [
                    event
                    for event in [event async for event in events]
                    if getattr(event, "peer", None) is peer
                ],
                others=1,
            )


READER = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    connection, _ = listener.accept()
    connection.sendall(bytes.fromhex(sys.argv[1]))
    left = int(sys.argv[2])
    while left:
        left -= len(connection.recv(min(left, 65536)))
    print("has read", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="did not run: only Linux tells what is unsent"
)
@pytest.mark.parametrize("reads", [0, 1_000_000])
async def test_what_is_sent_in_the_end_had_reached_the_system_of_a_reader_that_is_killed(
    core, fork_python, monkeypatch, reads
):
    """The system takes megabytes that nobody will read. What it still had when the connection ended
    was called sent too early: it becomes unknown, also in the counters, and no more of it than
    that."""
    monkeypatch.setattr(policy, "RETRY_DELAYS", (0.01, 0.01))
    at_the_end = []
    revoke = Traffic.revoke

    def spy(self, connection):
        if connection.handed.first or connection.handed.runs:
            waiting = self.engine.world.unacknowledged(connection.socket)
            at_the_end.append((connection.link.statistics().bytes_sent, waiting))
        revoke(self, connection)

    monkeypatch.setattr(Traffic, "revoke", spy)
    greeting = core.encode_frame(7, core.encode_capability(1000, 256, 0, 0))
    reader = fork_python("-c", READER, greeting.hex(), str(reads))
    port = int(await line_of(reader))
    async with pt.Node("ada", **loopback(core=core.name)) as ada:
        events = ada.events()
        peer = await ada.connect(("127.0.0.1", port), timeout=GUARD)
        with contextlib.suppress(pt.Timeout):
            while True:
                await peer.send(bytes(1000), timeout=0.2)
        assert await line_of(reader) == "has read"
        reader.send_signal(signal.SIGKILL)
        await until(lambda: not peer.queue.pending and not peer.connected)
        await ada.aclose()
        seen = [event async for event in events if getattr(event, "peer", None) is peer]
        check_account(ada, peer, seen)
        outcome = outcomes_of(seen)
        sent = sum(what is None for what in outcome.values())
        [(taken, waiting)] = at_the_end
        acknowledged = taken - waiting
        assert waiting > 0 and sent * 1012 <= acknowledged
        assert [outcome[number] for number in range(1, sent + 1)] == [None] * sent
        revoked = sum(event.last - event.first + 1 for event in seen if isinstance(event, pt.Sent))
        assert revoked > sent, "nothing was taken back: the test shows nothing"
        # notes cover more than one write where much waits: at most as much again is called unknown
        assert sent * 1012 >= acknowledged - waiting


async def test_nothing_is_taken_back_of_what_the_other_side_has_read_before_it_left(core):
    """A polite end must not turn what has arrived into a guess."""
    async with (
        pt.Node("ada", **loopback(core=core.name)) as ada,
        pt.Node("bob", **loopback(core=core.name)) as bob,
    ):
        events = ada.events()
        peer = await ada.connect(bob.address, timeout=GUARD)
        for number in range(500):
            await peer.send(number.to_bytes(2, "big"))
        for number in range(500):
            assert (await bob.receive(timeout=GUARD)).data == number.to_bytes(2, "big")
        await bob.peers["ada"].disconnect(timeout=GUARD)
        await until(lambda: not peer.connected and peer._remote.reported == 500)
        await ada.aclose()
        seen = [event async for event in events]
        check_account(ada, peer, seen)
        assert not any(isinstance(event, pt.Failed) for event in seen)


async def test_what_still_waited_when_the_link_broke_is_sent_after_the_reconnect(core):
    """At most once across the loss of a link: what was in flight is `unknown`, what waited arrives,
    and nothing comes twice or overtakes."""
    in_frames = {"core": core.name, "max_message": core.limits.frame_max_payload}
    async with (
        pt.Node("ada", **loopback(send_queue_size=50, **in_frames)) as ada,
        pt.Node("bob", **loopback(receive_queue_bytes=1024)) as bob,
    ):
        peer = await ada.connect(bob.address, timeout=GUARD)
        events = ada.events()
        size = peer.max_message - 4
        waiting = 0
        while waiting < 10:  # until some wait here, behind a link that takes no more
            with contextlib.suppress(pt.WouldBlock):
                peer.send_nowait((peer.accepted + 1).to_bytes(4, "big") + bytes(size))
            if peer.queue.pressure == 100:
                waiting += 1
                await asyncio.sleep(0)
            elif peer.accepted % 16 == 0:
                await asyncio.sleep(0)
        (broken,) = connections_of(bob)
        last_in_flight = peer._remote.handed
        broken.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end_connection(bob, broken, pt.ConnectionClosed("cut by the test"))
        total = peer.accepted
        arrived = []
        while not arrived or arrived[-1] != total:
            arrived.append(int.from_bytes((await bob.receive(timeout=GUARD)).data[:4], "big"))
        assert arrived == sorted(set(arrived))
        assert set(range(last_in_flight + 1, total + 1)) <= set(arrived)
        await until(lambda: peer._remote.reported == total)
        await ada.aclose()
        seen = [event async for event in events]
        check_account(ada, peer, [event for event in seen if getattr(event, "peer", None) is peer])
        failed = [event for event in seen if isinstance(event, pt.Failed)]
        assert failed and all(
            event.outcome is pt.Outcome.UNKNOWN and event.last <= last_in_flight for event in failed
        )


HALF_OPEN = """
import asyncio, sys, peertalk as pt
async def main():
    options = dict(bind="10.97.0.1", port=0, discovery=False, link_timeout=1.0)
    async with pt.Node("sender", **options) as sender, pt.Node("idler", **options) as idler:
        streams = sender.events(), idler.events()
        peers = [await node.connect(("10.97.0.2", 9000), timeout=10) for node in (sender, idler)]
        print("connected", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await peers[0].send(b"into the void")
        for stream in streams:
            async for event in stream:
                if isinstance(event, pt.PeerDisconnected):
                    print(type(event.error).__name__, event.error, flush=True)
                    break
        sender.close_nowait(); idler.close_nowait()
asyncio.run(main())
"""
FAR_END = """
import asyncio, peertalk as pt
async def main():
    async with pt.Node("far", bind="10.97.0.2", port=9000, discovery=False) as node:
        print("ready", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def test_a_cut_cable_is_noticed_on_a_busy_and_on_an_idle_link(make_netns, fork_python):
    """Half-open: no FIN, no RST, only silence. With bytes unacknowledged the kernel is asked, on an
    idle link its keepalive answers."""
    here, there = make_netns(), make_netns()
    here.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", there.name)
    for place, address in ((here, "10.97.0.1/24"), (there, "10.97.0.2/24")):
        place.ip("link", "set", "lo", "up")
        place.ip("addr", "add", address, "dev", "eth0")
        place.ip("link", "set", "eth0", "up")
    far = fork_python("-c", FAR_END, prefix=there.prefix)
    assert line_now(far) == "ready"
    near = fork_python("-c", HALF_OPEN, prefix=here.prefix)
    assert line_now(near) == "connected"
    there.ip("link", "set", "eth0", "down")
    near.stdin.write("go\n")
    near.stdin.flush()
    busy, idle = line_now(near), line_now(near)
    assert busy.startswith("ConnectionClosed") and "'far'" in busy and "Config.link_timeout" in busy
    assert idle.startswith("ConnectionClosed") and "'far'" in idle
    assert near.wait(GUARD) == 0


NEIGHBOURS = """
import asyncio, contextlib, sys, peertalk as pt
async def main(port, count):
    async with contextlib.AsyncExitStack() as stack:
        for number in range(count):
            await stack.enter_async_context(pt.Node(
                f"n{number}", bind="127.0.0.1", port=0, discovery_port=port,
                announce_interval=(0.1, 1.0)[number % 2],
            ))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
"""


async def test_whoever_announced_while_the_loop_was_blocked_is_not_lost(fork_python, free_port):
    """A computation on the event loop is our silence, not that of twenty neighbours: each of them
    would be lost and found again, and what waits for it fail. Half of them speak so often that what
    waits is more than one turn reads."""
    port, count = free_port(), 20
    process = fork_python("-c", NEIGHBOURS, str(port), str(count))
    await line_of(process)
    options = loopback(discovery=True, discovery_port=port, peer_timeout=4.0, announce_interval=0.2)
    async with pt.Node("ada", **options) as ada:
        events = ada.events()
        await until(lambda: len(ada.peers) == count)
        time.sleep(6.0)
        discovery = engine_of(ada).finder.discovery
        before = discovery.statistics().heard
        await until(lambda: discovery.statistics().heard > before + 10 * count)
        assert len(ada.peers) == count
        ada.close_nowait()
        assert not [event async for event in events if isinstance(event, pt.PeerLost)]
    process.stdin.close()


# Closing

CLOSING = f"""
import asyncio, peertalk as pt
async def main():
    bob = await pt.Node("bob", receive_queue_bytes=1024, {OPTIONS}).start()
    ada = await pt.Node("ada", send_queue_size=2000, send_queue_bytes="32MiB", {OPTIONS}).start()
    peer = await ada.connect(bob.address, timeout=10)
    try:
        while peer._remote.queued < 1000:
            peer.send_nowait(bytes(8000))
            if peer.accepted % 32 == 0:
                await asyncio.sleep(0)
    except pt.WouldBlock:
        pass
    waiting = peer.queue.pending
    failed = ada.events()
    unsent = await ada.aclose(timeout=0.3)
    told = [event async for event in failed if isinstance(event, pt.Failed)]
    reported = sum(event.last - event.first + 1 for event in told)
    print(waiting, unsent, reported, flush=True)
asyncio.run(main())
"""


def test_closing_with_a_thousand_messages_queued_ends_in_time_and_reports_what_was_not_sent(
    fork_python,
):
    """A reader that never reads must not keep a program from ending, nor the interpreter from
    leaving."""
    process = fork_python("-W", "ignore::ResourceWarning", "-c", CLOSING)
    waiting, unsent, reported = map(int, (line_now(process)).split())
    assert waiting >= 1000 and unsent >= 1000 and unsent == reported
    assert process.wait(GUARD) == 0


FORGOTTEN = f"""
import asyncio, threading, peertalk as pt
async def main():
    global node, peer
    node = await pt.Node("ada", {OPTIONS}).start()
    other = await pt.Node("bob", {OPTIONS}).start()
    peer = await node.connect(other.address, timeout=10)
    peer.send_nowait(bytes(100))
    events = node.events()
    assert threading.active_count() == 1
asyncio.run(main())
print("end", flush=True)
"""


def test_a_node_that_was_never_closed_warns_and_does_not_hang_at_exit(fork_python):
    """No thread, no atexit hook: the interpreter leaves as if it were not there."""
    process = fork_python("-W", "always::ResourceWarning", "-c", FORGOTTEN)
    out, err = process.communicate(timeout=GUARD)
    assert process.returncode == 0 and out.strip() == "end"
    assert "was not closed; use `async with` or aclose()" in err and "Traceback" not in err


# A forked child

FORKING = f"""
import asyncio, os, sys
import peertalk as pt

def refused(use):
    try:
        use()
    except pt.InvalidState as error:
        assert f"belongs to process {{os.getppid()}}" in str(error), error
        assert "forked child" in str(error), error
    else:
        raise AssertionError(use)

def run(coroutine):
    try:
        coroutine.send(None)
    except StopIteration:
        pass

async def main():
    core, way, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    async with pt.Node("ada", core=core, {OPTIONS}) as ada:
        peer = await ada.connect(("127.0.0.1", port), timeout=20)
        await peer.send(b"before")
        await ada.receive(timeout=20)
        events = ada.events()
        child = os.fork()
        if child == 0:
            for use in (
                lambda: run(peer.send(b"child")), lambda: peer.send_nowait(b"child"),
                lambda: run(peer.send_many([b"child"])), lambda: run(peer.disconnect()),
                lambda: run(peer.ping()), lambda: run(ada.receive()),
                lambda: run(ada.broadcast(b"")),
                lambda: run(ada.aclose()), lambda: run(anext(ada.messages())),
                lambda: run(anext(events)), ada.close_nowait, ada.stats, lambda: ada.memory,
                lambda: ada.peers, ada.events, lambda: ada.send_datagram(peer, b"child"),
            ):
                refused(use)
            if way == "exit":
                sys.exit(7)
            if way == "return":
                return
            os._exit(7)
        assert os.waitpid(child, 0)[1] in (7 << 8, 0)
        await peer.send(b"after")
        print((await ada.receive(timeout=20)).text, flush=True)
        assert peer.connected and ada.stats().links_open == 1
asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="did not run: this system cannot fork")
@pytest.mark.parametrize("way", ["exit", "return", "_exit"])
@pytest.mark.parametrize("loop_kind", ["asyncio"])  # who forks is a program of its own
async def test_a_forked_child_is_refused_everything_and_its_end_disturbs_nobody(
    core, way, fork_python
):
    """Sockets and the epoll set are the parent's too: a child that closes politely says goodbye in
    its parent's name, and takes the parent's descriptors out of the set."""
    async with pt.Node("bob", **loopback()) as bob:
        events = bob.events()
        process = fork_python(*("-W", "always", "-c", FORKING, core.name, way, str(bob.address[1])))
        for said in (b"before", b"after"):
            message = await bob.receive(timeout=GUARD)
            assert message.data == said
            await message.peer.send(b"heard " + said)
        out, err = await asyncio.to_thread(process.communicate, timeout=GUARD)
        assert (out.strip(), err, process.returncode) == ("heard after", "", 0)
        async with asyncio.timeout(GUARD):
            async for event in events:
                if isinstance(event, pt.PeerDisconnected):
                    break
        assert bob.stats().messages_received == 2 and event.error is None


# Announcements that the system does not let out

ANNOUNCER = """
async def main(options):
    async with pt.Node("ada", announce_interval=0.1, **options) as node:
        print('["ready"]', flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            stats = node.stats()
            counted = stats.announcements_sent, stats.announcements_refused
            print(json.dumps(["counters", *counted]), flush=True)
asyncio.run(main(json.loads(sys.argv[1])))
"""


class Announcer:
    """A node in a private network, eth0 with a cable to eth1, which tells what it logs."""

    def __init__(self, netns, fork_python, **options):
        netns.ip("link", "set", "lo", "up")
        netns.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
        netns.ip("addr", "add", "10.66.0.1/24", "brd", "+", "dev", "eth0")
        for name in ("eth0", "eth1"):
            netns.ip("link", "set", name, "up")
        end = time.monotonic() + GUARD
        while "state UP" not in netns.run("ip", "link", "show", "eth0").stdout:
            assert time.monotonic() < end, "the cable is plugged in, and nothing carries"
        self.process = fork_python("-c", TOLD + ANNOUNCER, json.dumps(options), prefix=netns.prefix)
        self.logged = []
        assert self.line() == ["ready"]

    def line(self):
        text = line_now(self.process)
        assert text, self.process.stderr.read()
        return json.loads(text)

    def counters(self):
        """Announcements sent, and refused."""
        self.process.stdin.write("count\n")
        self.process.stdin.flush()
        while (line := self.line())[0] != "counters":
            self.logged.append(line)
        return line[1:]

    def until(self, true):
        """Wait until the counters are so."""
        end = time.monotonic() + GUARD
        while not true(*self.counters()):
            assert time.monotonic() < end, self.logged


@pytest.mark.parametrize("unplugged", ["eth0", "eth1"], ids=["interface down", "cable out"])
def test_an_interface_that_carries_nothing_is_told_when_that_begins_and_when_it_is_over(
    netns, fork_python, unplugged
):
    """A cable that is out for a night was a line for each announcement, or none at all."""
    ada = Announcer(netns, fork_python, bind="", interfaces=["eth0"])
    ada.until(lambda sent, refused: sent >= 2 and not refused)
    netns.ip("link", "set", unplugged, "down")
    ada.until(lambda sent, refused: refused >= 5)
    netns.ip("link", "set", unplugged, "up")
    ada.until(lambda *_: len(ada.logged) >= 2)
    before = ada.counters()[0]
    ada.until(lambda sent, refused: sent >= before + 5)
    (name, begun), (_, over) = ada.logged
    assert name == "peertalk.discovery" and "announcing by eth0 fails: it " in begun
    assert re.search(r"announcing by eth0 works again; \d+ failed in \d", over)


def test_with_the_last_cable_out_a_node_says_that_it_is_alone(netns, fork_python):
    """By default every interface will do, and loopback always carries; its neighbours are gone all
    the same."""
    ada = Announcer(netns, fork_python, bind="", interfaces=[])
    ada.until(lambda sent, refused: sent >= 4)
    for state in ("down", "up"):
        netns.ip("link", "set", "eth1", state)
        before = ada.counters()[0]
        ada.until(lambda sent, _, enough=before + 10: sent >= enough and ada.logged)
    ada.until(lambda *_: len(ada.logged) >= 2)
    (_, begun), (_, over) = ada.logged
    assert "announcing beyond this machine fails: no interface carries, but for loopback" in begun
    assert "announcing beyond this machine works again; " in over


@pytest.mark.parametrize("forbidden", ["udp dport 7353", "oif eth0 udp dport 7353"])
def test_a_firewall_that_forbids_broadcasts_is_told_once_with_what_to_try(
    netns, fork_python, forbidden
):
    """The commonest reason that nobody is found was no word at all."""
    if shutil.which("nft") is None:
        pytest.skip("did not run: a firewall needs nft (package nftables), which is not installed")
    ada = Announcer(netns, fork_python, bind="", interfaces=[])
    ada.until(lambda sent, refused: sent >= 4)
    hook = "type filter hook output priority 0;"
    done = netns.run(
        "nft",
        f"add table ip wall; add chain ip wall out {{ {hook} }};"
        f"add rule ip wall out {forbidden} drop",
    )
    if done.returncode:
        pytest.skip(f"did not run: this kernel allows no nft rules ({done.stderr.strip()})")
    ada.until(lambda sent, refused: refused >= 10)
    netns.run("nft", "delete table ip wall", check=True)
    ada.until(lambda *_: len(ada.logged) >= 2)
    before = ada.counters()[0]
    ada.until(lambda sent, refused: sent >= before + 10)
    (name, begun), (_, over) = ada.logged
    assert name == "peertalk.discovery" and "announcing fails: the system forbids it on " in begun
    assert "eth0" in begun and ("lo" in begun.split(" on ")[1].split("(")[0]) is (
        "oif" not in forbidden
    )
    assert "as a firewall does: let UDP to port 7353 (Config.discovery_port) out" in begun
    assert "announcing works again; " in over
