"""Networks in a box: virtual time, one seed, whole nodes, and the net that catches what arrives
wrong."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any

import pytest
from kit.inside import connections_of, engine_of

import peertalk as pt
from peertalk import errors, sim

PLATFORMS = sim.PLATFORMS


@pytest.fixture(autouse=True)
def needs_the_compiled_core(c_core: Any) -> None:
    """The simulator is C: with the reference core alone there is nothing to test. Runs everything
    on both builds."""


@pytest.fixture
def core(c_core: Any) -> str:
    """Name of the build under test."""
    return str(c_core.name)


async def pair(
    net: sim.Network, core: str, platform: str = "mactcp", **config: Any
) -> tuple[sim.Node, sim.Node, pt.Peer]:
    """Two nodes, connected; and the second as the first sees it."""
    a = await net.node("a", platform=platform, core=core, discovery=False, **config)
    b = await net.node("b", platform=platform, core=core, discovery=False, **config)
    return a, b, await a.connect(b.address)


# --- time -----------------------------------------------------------------------------------------


def test_an_hour_of_sleep_moves_the_clock_by_exactly_an_hour():
    """Virtual time is integer nanoseconds: no drift, and nobody waits for it."""

    async def main(net: sim.Network) -> int:
        for _ in range(60):
            await asyncio.sleep(60)
        return net.clock.ns

    assert sim.run(main) == 3_600_000_000_000


def test_a_message_takes_the_latency_of_its_link_and_its_bytes_the_bandwidth(core):
    """A figure from the simulator is worth what its arithmetic is worth."""

    async def main(net: sim.Network) -> tuple[int, int]:
        _, b, peer = await pair(net, core)
        await asyncio.sleep(1)
        net.link("a", "b", latency="50ms")
        start = net.clock.ns
        await peer.send(bytes(500))
        await b.receive()
        first = net.clock.ns - start
        await asyncio.sleep(1)
        net.link("a", "b", bandwidth="100KB/s")
        start = net.clock.ns
        await peer.send(bytes(500))
        await b.receive()
        return first, net.clock.ns - start

    latency, both = sim.run(main)
    assert latency == 50_000_000
    assert both == 50_000_000 + (500 + 12) * 10_000


def test_a_program_that_waits_for_nothing_is_told_who_waits_and_where():
    """The worst thing that a test can do is to hang without a word."""

    async def waits_for_godot() -> None:
        await asyncio.get_running_loop().create_future()

    async def main(net: sim.Network) -> None:
        await asyncio.gather(waits_for_godot())

    with pytest.raises(
        sim.Deadlock,
        match=r"nothing is left to happen[\s\S]*waits_for_godot[\s\S]*test_sim\.py:\d+",
    ):
        sim.run(main)


def test_nodes_that_only_announce_themselves_do_not_keep_a_forgotten_program_alive_for_ever(core):
    """Discovery goes on for ever; a receive() that nobody answers must end all the same, at the
    limit."""

    async def main(net: sim.Network) -> None:
        node = await net.node("lonely", core=core)
        await node.receive()

    with pytest.raises(
        sim.Deadlock,
        match=r"600 s of network time have passed \(limit\)"
        r"[\s\S]*main: main .*test_sim\.py:\d+\) > receive \(",
    ):
        sim.run(main, limit="10m")


def test_a_callback_that_fails_fails_the_run():
    """An exception that only a log has seen is a lie of omission."""

    async def main(net: sim.Network) -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(1)

    with pytest.raises(ZeroDivisionError):
        sim.run(main)


def test_work_for_a_thread_is_done_at_once_and_here():
    """A thread would bring an order that no seed repeats."""

    async def main(net: sim.Network) -> int:
        return await asyncio.to_thread(threading.get_ident)

    assert sim.run(main) == threading.get_ident()


def test_one_message_takes_as_long_with_the_pipeline_as_without():
    """Latency is not the price of throughput: to the nanosecond of the network, on both platforms
    and in both builds."""

    def arrival(platform: str, core: str, asynchronous: bool) -> list[int]:
        async def main(net: sim.Network) -> list[int]:
            _, b, peer = await pair(net, core, platform, async_send=asynchronous)
            await asyncio.sleep(1)
            start = net.clock.ns
            await peer.send(bytes(1000))
            await b.receive(timeout=5)
            await asyncio.sleep(1)
            return [
                record.time_ns - start
                for record in net.trace.records
                if record.time_ns >= start and record.kind in ("send", "deliver", "ack")
            ]

        return sim.run(main, preset="classic")

    for platform in PLATFORMS:
        for core in ("standard", "lowmem"):
            pipelined, synchronous = arrival(platform, core, True), arrival(platform, core, False)
            assert len(pipelined) >= 3
            assert pipelined == synchronous, f"{platform}, {core}"


# --- one seed -------------------------------------------------------------------------------------

STORY = """
import asyncio, sys
from peertalk import sim

async def main(net):
    se = await net.node("Mac SE", platform="mactcp", profile="embedded")
    ppc = await net.node("PowerMac", platform="opentransport", core="lowmem")
    rough = dict(loss=0.05, duplicate=0.02, reorder=0.05)
    net.link(se, ppc, latency="50ms", jitter="5ms", bandwidth="90KB/s", **rough)
    peer = await se.wait_for("PowerMac", timeout=60)
    await asyncio.gather(*(peer.send(bytes(700)) for _ in range(60)))
    for _ in range(60):
        await ppc.receive(timeout=600)
    return net.trace.hash, se.id, net.clock.ns

if __name__ == "__main__":
    print(*sim.run(main, seed=int(sys.argv[1])))
"""


def test_the_same_seed_gives_the_same_trace_in_every_process(start_python, tmp_path):
    """A failure that cannot be repeated cannot be repaired: neither hash seeds nor addresses in
    memory may decide anything."""
    (tmp_path / "story.py").write_text(STORY)
    told = []
    for seed, hash_seed in ((7, "0"), (7, "4242"), (8, "0")):
        process = start_python(
            str(tmp_path / "story.py"), str(seed), env={"PYTHONHASHSEED": hash_seed}
        )
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        told.append(out)
    assert told[0] == told[1] != told[2]


def test_the_environment_of_the_machine_is_not_asked(core, monkeypatch):
    """PEERTALK_PORT of whoever runs the test must not change what it does."""
    monkeypatch.setenv("PEERTALK_PORT", "4711")
    monkeypatch.setenv("PEERTALK_PIPELINE_DEPTH", "9")

    async def main(net: sim.Network) -> tuple[int, int]:
        node = await net.node("a", core=core)
        return node.address[1], node.config.pipeline_depth

    assert sim.run(main) == (7354, 2 if core == "lowmem" else 4)


# --- whole nodes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("other", PLATFORMS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_nodes_of_any_two_worlds_find_each_other_and_talk(core, platform, other):
    """Standard and lowmem, MacTCP and Open Transport: one protocol."""

    async def main(net: sim.Network) -> list[bytes]:
        a = await net.node("a", platform=platform, core=core)
        b = await net.node("b", platform=other, core="standard")
        net.link(a, b, latency="3ms", jitter="1ms")
        there, back = await a.wait_for("b", timeout=20), await b.wait_for("a", timeout=20)
        await asyncio.gather(there.send(b"ping"), back.send(b"pong"))
        return [(await b.receive(timeout=5)).data, (await a.receive(timeout=5)).data]

    network = sim.Network(3)
    try:
        assert sim.run_in(network, main) == [b"ping", b"pong"]
        assert network.faults() == []
    finally:
        network.close()


def test_a_message_longer_than_a_slot_is_refused_whole_with_the_limit_in_its_error(core):
    """Never truncated, never accepted and dropped later."""
    limit = 1024 if core == "lowmem" else 4096

    async def main(net: sim.Network) -> tuple[int, int]:
        _, b, peer = await pair(net, core, max_message=limit)
        with pytest.raises(errors.MessageTooLarge, match=f"the limit is {limit:,}"):
            await peer.send(bytes(limit + 1))
        await peer.send(bytes(limit))
        return len((await b.receive(timeout=5)).data), peer.accepted

    assert sim.run(main) == (limit, 1)


def test_one_peer_more_than_the_core_has_room_for_is_refused_with_the_limit_in_its_error(core):
    """PT_MAX_PEERS is a promise about memory."""
    limit = 4 if core == "lowmem" else 8

    async def main(net: sim.Network) -> int:
        hub = await net.node("hub", core=core, discovery=False)
        others = [
            await net.node(f"n{number}", core=core, discovery=False) for number in range(limit + 1)
        ]
        for other in others[:limit]:
            await hub.connect(other.address, timeout=5)
        with pytest.raises(errors.OutOfMemory, match=f"limit of {limit} peers"):
            await hub.connect(others[limit].address, timeout=5)
        return sum(peer.connected for peer in hub.peers.values())

    assert sim.run(main) == limit


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("depth", [1, 2, 64])
def test_nodes_of_any_depth_connect_and_talk_whoever_decides_about_the_connection(
    core, depth, seed
):
    """With one slot the second greeting of the side that decides finds no room; the connection was
    then ended instead of used. Seeds give ids, and these say who decides."""

    async def main(net: sim.Network) -> list[bytes]:
        options: dict[str, Any] = {"core": core, "discovery": False, "pipeline_depth": depth}
        a, b = await net.node("a", **options), await net.node("b", **options)
        there = await a.connect(b.address, timeout=10)
        await there.send(b"there")
        first = await b.receive(timeout=10)
        await first.peer.send(b"and back")
        return [first.data, (await a.receive(timeout=10)).data]

    assert sim.run(main, seed=seed, preset="classic") == [b"there", b"and back"]


def test_a_host_is_found_by_its_name_without_a_resolver(core):
    """Names of the network are its own; one that it does not have is an error that lists those it
    has."""

    async def main(net: sim.Network) -> str:
        a = await net.node("ada", core=core, discovery=False)
        b = await net.node("bob", core=core, discovery=False)
        with pytest.raises(errors.NetworkFailure, match=r"'nobody'.*'ada', 'bob'"):
            await a.connect(("nobody", 7354))
        return (await a.connect(("bob", b.address[1]), timeout=5)).name

    assert sim.run(main) == "bob"


def test_a_cut_is_silent_and_one_way_if_asked_and_heals(core):
    """TCP must survive it: what was sent into a cut arrives when the wire is whole."""

    async def main(net: sim.Network) -> list[bytes]:
        a, b, peer = await pair(net, core, link_timeout=3600.0)
        back = await b.connect(a.address)
        net.cut(a, b, both=False)
        await peer.send(b"into the cut")
        await back.send(b"the other way")
        first = await a.receive(timeout=5)
        with pytest.raises(errors.Timeout):
            await b.receive(timeout=3)
        net.heal()
        return [first.data, (await b.receive(timeout=60)).data]

    assert sim.run(main) == [b"the other way", b"into the cut"]


@pytest.mark.parametrize("platform", sim.PLATFORMS)
def test_a_node_takes_what_came_before_a_reset_and_connects_anew_after_it(core, platform):
    """What was acknowledged was received: a reset does not take it back from the application."""

    async def main(net: sim.Network) -> tuple[list[bytes], int, int]:
        a = await net.node("a", core=core, platform=platform, discovery=False)
        b = await net.node("b", core=core, platform=platform, discovery=False)
        net.link(a, b, latency="5ms")
        peer = await a.connect(b.address, timeout=5)
        for number in range(3):
            await peer.send(bytes([number]))
        while peer._remote.reported < 3:
            await asyncio.sleep(0.001)
        seen = net.reset("a", b)
        gone = net.connections(a, b)
        while peer.connected:
            await asyncio.sleep(0.001)
        await peer.send(b"anew")
        return [(await b.receive(timeout=30)).data for _ in range(4)], seen, gone

    assert sim.run(main) == ([b"\0", b"\1", b"\2", b"anew"], 2, 0)


def test_a_frame_of_a_peer_that_is_known_may_stay_cut_as_long_as_a_link_may_be_silent(core):
    """All traffic dropped for some seconds in the middle of a message: the five seconds for a
    stranger's frame would end a connection that goes on as soon as the wire is whole."""

    async def main(net: sim.Network) -> tuple[bytes, bool]:
        net.host("b", window=300)
        a, b, peer = await pair(net, core)
        net.link(a, b, latency="20ms")
        await peer.send(bytes(1_000))
        (connection,) = connections_of(b)
        while not connection.link.statistics().partial_bytes:
            await asyncio.sleep(0.001)
        net.cut(a, b)
        await asyncio.sleep(9)
        assert connection.link.statistics().partial_bytes
        net.heal()
        data = (await b.receive(timeout=30)).data
        return data, connection is connections_of(b)[0]

    assert sim.run(main) == (bytes(1_000), True)


def test_the_worlds_answer_what_is_unread_and_unacknowledged(core):
    """The same questions as of a machine's own sockets, with the same answers; also of a socket
    that is closed, and of a network that is."""

    async def main(net: sim.Network) -> Any:
        a, b, peer = await pair(net, core)
        net.cut(a, b, both=False)
        await peer.send(bytes(100))
        await asyncio.sleep(0.1)
        world, connection = a._world, peer._remote.connection.socket
        assert world.unacknowledged(connection) > 100 and world.unread(connection) == 0
        net.reset(a, b)
        await asyncio.sleep(1)
        assert world.unacknowledged(connection) == world.unread(connection) == 0, "it is closed"
        return world, connection

    world, connection = sim.run(main)
    assert world.unacknowledged(connection) == world.unread(connection) == 0


def test_a_peer_that_vanished_is_noticed_and_its_messages_get_an_outcome(core):
    """No reset, no goodbye: only time tells."""

    async def main(net: sim.Network) -> list[str]:
        _, b, peer = await pair(net, core)
        net.vanish(b)
        for _ in range(3):
            peer.send_nowait(b"anybody?")
        while peer.queue.pending:
            await asyncio.sleep(1)
            assert net.clock.seconds < 60
        return [f"{peer._remote.failed} failed"]

    assert sim.run(main) == ["3 failed"]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_slot_that_fails_is_a_failed_event(core, platform):
    """A node that does not read, because nobody takes what came, does not hear from reading that
    the other side is gone: the driver fails the slots, and each message has its event."""

    async def main(net: sim.Network) -> pt.Failed[pt.Peer]:
        a, b, peer = await pair(
            net, core, platform, link_timeout=3600.0, receive_queue_bytes=1024, ping_interval=0
        )
        back = b.peers["a"]
        read = []
        for _ in range(2):
            for _ in range(4):
                await back.send(bytes(1000))
            await asyncio.sleep(1)
            read.append(peer._remote.connection.link.statistics().frames_received)
        assert read[0] == read[1], "it does not read any more"
        events = a.events()
        net.vanish(b)
        for _ in range(3):
            peer.send_nowait(b"anybody?")
        async for event in events:
            if isinstance(event, pt.Failed):
                return event
        raise AssertionError("no message failed")

    failed = sim.run(main)
    assert (failed.first, failed.last, failed.outcome) == (1, 3, pt.Outcome.UNKNOWN)
    assert isinstance(failed.error, pt.ConnectionClosed)


def test_a_node_can_come_back_on_its_machine(core):
    """A restart is the same host with another instance id."""

    async def main(net: sim.Network) -> tuple[bool, bytes]:
        a, b, peer = await pair(net, core)
        first = b.id
        await b.aclose()
        again = await net.node("b", core=core, discovery=False)
        peer = await a.connect(again.address, timeout=10)
        await peer.send(b"again")
        return first != again.id, (await again.receive(timeout=5)).data

    assert sim.run(main) == (True, b"again")


# --- memory ---------------------------------------------------------------------------------------


def test_the_memory_of_all_pipelines_is_within_its_budget(c_core):
    """136 KiB for the eight peers of a standard node, 10 KiB for the four of a lowmem one, all
    slots in flight."""
    budget = {"standard": 136 * 1024, "lowmem": 10 * 1024}[c_core.name]

    async def main(net: sim.Network) -> tuple[int, int]:
        hub = await net.node("hub", core=c_core.name, discovery=False)
        before = hub.memory["pipelines"].bytes
        peers = []
        for number in range(c_core.limits.max_peers):
            other = await net.node(f"n{number}", core=c_core.name, discovery=False)
            net.link(hub, other, latency="10ms")
            peers.append(await hub.connect(other.address, timeout=5))
        for peer in peers:
            for _ in range(20):
                peer.send_nowait(bytes(c_core.limits.message_max_payload))
        await asyncio.sleep(5)
        assert hub.stats().slots_high_water == c_core.limits.classic_depth
        return before, hub.memory["pipelines"].peak

    before, peak = sim.run(main)
    assert before == 0
    assert (
        c_core.limits.max_peers * c_core.limits.classic_depth * c_core.limits.slot_buffer_size
        <= peak
        < budget
    )


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_c_side_of_a_lowmem_node_is_under_200_kib_and_is_printed_part_by_part(platform):
    """A Mac SE leaves 200 KB to the network: whoever asks is told where they go. All four peers,
    all slots in flight, both ways."""

    async def main(net: sim.Network) -> Any:
        # so that there is a moment without anything under way
        quiet = {"discovery": False, "ping_interval": 0}
        hub = await net.node("hub", profile="embedded", platform=platform, **quiet)
        others = [
            await net.node(f"n{number}", profile="embedded", platform=platform, **quiet)
            for number in range(4)
        ]
        peers = [await hub.connect(other.address, timeout=5) for other in others]
        for other in others:
            net.link(hub, other, latency="10ms")
            back = await other.connect(hub.address, timeout=5)
            for _ in range(20):
                back.send_nowait(bytes(1024))
        at_rest = (
            hub.memory["streams"].bytes,
            4 * engine_of(hub).loop._ops.link_size(engine_of(hub).core.limits.classic_depth),
        )
        for peer in peers:
            for _ in range(20):
                peer.send_nowait(bytes(1024))
        for _ in range(80):
            await hub.receive(timeout=5)
        assert hub.stats().slots_high_water == 2 and hub.config.profile == "embedded"
        return hub.memory, at_rest

    report, (streams, expected) = sim.run(main)
    assert streams == expected > 0
    assert 0 < report["total"].peak < 200 * 1024
    for part in (
        "context",
        "loop",
        "wheel",
        "links",
        "pipelines",
        "streams",
        "pools",
        "receive buffer",
    ):
        assert 0 < report[part].peak < report["total"].peak
        assert part in str(report)


def test_a_lowmem_node_with_four_busy_peers_stays_under_200_kib():
    """The budget is one of the worst honest hour, not of a quiet one: every peer at its limit, both
    ways, and nobody takes what arrives."""

    async def main(net: sim.Network) -> tuple[Any, int]:
        small: dict[str, Any] = {"window": 4096, "receive_queue_bytes": 1024, "discovery": False}
        hub = await net.node("hub", platform="opentransport", profile="embedded", **small)
        others = [await net.node(f"n{number}", core="standard", **small) for number in range(4)]
        for other in others:
            net.link(hub, other, latency="20ms", bandwidth="50KB/s")
        peers = [await hub.connect(other.address, timeout=5) for other in others]
        await asyncio.sleep(1)  # those who were dialled know it too
        backs = [other.peers["hub"] for other in others]

        async def flood(peer: pt.Peer) -> None:
            for _ in range(60):
                await peer.send(bytes(1000))

        sending = asyncio.gather(*map(flood, [*peers, *backs]))
        await asyncio.sleep(3)
        stuck = hub.memory
        for node in (hub, *others):
            count = 60 * (4 if node is hub else 1)
            for _ in range(count):
                await node.receive(timeout=600)
        await sending
        return stuck, hub.memory["total"].peak

    stuck, peak = sim.run(main)
    assert stuck["pipelines"].bytes >= 4 * 2 * 1040, "the test must fill every slot"
    assert stuck["pipelines"].peak < 10 * 1024
    assert peak < 200 * 1024


# --- what must not have happened ------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"platform": "beos"}, {"profile": "huge"}])
def test_a_world_that_is_none_is_refused(options):
    """A typing error must not become a default."""

    async def main(net: sim.Network) -> None:
        with pytest.raises(errors.InvalidArgument):
            await net.node("a", **options)

    sim.run(main)


def test_links_refuse_what_is_no_chance_no_rate_and_no_host():
    """Numbers out of their bounds are errors that say the bound."""

    async def main(net: sim.Network) -> None:
        net.host("a"), net.host("b")
        with pytest.raises(errors.InvalidArgument, match="0 to 1"):
            net.link("a", "b", loss=1.5)
        with pytest.raises(errors.InvalidArgument, match="at least one byte"):
            net.link("a", "b", bandwidth=0)
        with pytest.raises(errors.InvalidArgument, match="'c'"):
            net.cut("a", "c")
        wrongs: list[dict[str, Any]] = [
            {"loss": "x"},
            {"loss": float("nan")},
            {"latency": "5 parsecs"},
            {"latency": 1e12},
        ]
        for wrong in (*wrongs, {"bandwidth": "fast"}, {"bandwidth": "10GB/s"}):
            with pytest.raises(errors.InvalidArgument):
                net.link("a", "b", **wrong)
        with pytest.raises(errors.WrongType, match="3 is no place"):
            net.link("a", 3)
        for costs in ({"window": 0}, {"send_fixed_ns": -1}, {"sleep_ns": 1}):
            with pytest.raises(errors.InvalidArgument):
                net.host("d", **costs)

    sim.run(main)
    with pytest.raises(errors.InvalidArgument, match="preset"):
        sim.Network(preset="atm")


@pytest.mark.parametrize("seed", ["x", 1.5, -1, 2**64])
def test_a_network_refuses_what_is_no_seed(seed):
    """A seed that were taken for another would repeat another run."""
    with pytest.raises(errors.InvalidArgument, match="seed"):
        sim.Network(seed)


# --- blocking sends -------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_node_that_may_block_sends_what_waits_before_what_it_is_given(core, platform):
    """A node with blocks=True: what waited for a connection is in the outbox, more of it than all
    slots hold, when the next message comes."""

    async def main(net: sim.Network) -> list[bytes]:
        _, b, peer = await pair(net, core, platform, blocks=True)
        net.link("a", "b", latency="20ms", bandwidth="100KB/s")
        await peer.disconnect()
        messages = [number.to_bytes(4, "big") + bytes(900) for number in range(60)]
        for message in messages[:40]:
            peer.send_nowait(message)
        assert peer._remote.queued == 40
        while not peer.connected:
            await asyncio.sleep(0.001)
        assert peer._remote.queued > 0
        for message in messages[40:]:
            peer.send_nowait(message)
            assert peer._remote.queued == 0
        blocked = peer._remote.connection.link.statistics().sync_sends
        bulk = [number.to_bytes(4, "big") + bytes(900) for number in range(60, 90)]
        start = net.clock.ns
        assert await peer.send_many(bulk) == 30 and peer._remote.queued == 0
        assert (
            net.clock.ns > start
            and peer._remote.connection.link.statistics().sync_sends > blocked > 0
        )
        messages += bulk
        got = [(await b.receive(timeout=60)).data for _ in messages]
        assert got == messages and net.trace.in_order()
        return got

    sim.run(main)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_blocking_send_of_a_node_gives_up_after_five_seconds_with_nothing_lost_or_doubled(
    core, platform
):
    """While it blocks no other node turns, so that a window smaller than the slots cannot drain;
    the sender hears that nothing was accepted."""

    async def main(net: sim.Network) -> None:
        a = await net.node(
            "a",
            platform=platform,
            core=core,
            discovery=False,
            blocks=True,
            pipeline_depth=4,
            packing=False,
        )
        b = await net.node("b", platform=platform, core=core, discovery=False, window=2048)
        peer = await a.connect(b.address)
        messages = [bytes([number]) * 1000 for number in range(12)]
        start, refused = net.clock.seconds, 0
        for message in messages:
            while True:
                before = net.clock.seconds
                try:
                    assert peer.send_nowait(message) == peer.accepted
                    break
                except errors.Timeout as error:
                    assert error.peer == "b" and 4.98 <= net.clock.seconds - before <= 5
                    refused += 1
                    await asyncio.sleep(0.5)  # b reads
        assert 0 < refused and net.clock.seconds - start < 6 * refused + 5
        assert [(await b.receive(timeout=60)).data for _ in messages] == messages
        assert peer.connected and peer.accepted == len(messages) and not net.faults()
        with pytest.raises(errors.Timeout):
            await b.receive(timeout=60)

    sim.run(main)


def test_a_run_inside_a_running_loop_is_refused_and_costs_that_loop_nothing():
    """A notebook has a loop that runs; two clocks on one thread cannot be."""

    async def main(net: sim.Network) -> int:
        return 1

    async def outer() -> None:
        with pytest.raises(errors.InvalidState, match="brings its own event loop"):
            sim.run(main)
        await asyncio.sleep(0)

    asyncio.run(outer())


def test_what_belongs_to_the_system_is_refused_with_a_word():
    """A real socket would bring real time: the program is told, not left with an empty
    NotImplementedError."""

    async def main(net: sim.Network) -> None:
        with pytest.raises(errors.NotSupported, match="no sockets"):
            await asyncio.open_connection("127.0.0.1", 9)
        with pytest.raises(NotImplementedError, match="talk through nodes"):
            await asyncio.create_subprocess_exec("true")

    sim.run(main)


def test_a_machine_can_be_changed_before_its_next_node(core):
    """A second word on a host must not be dropped because the host is there."""

    async def main(net: sim.Network) -> bool:
        net.host("b")
        net.host("b", window=600)
        a = await net.node("a", core=core, discovery=False, send_queue_size=1)
        b = await net.node("b", core=core, discovery=False, receive_queue_bytes=1024)
        peer = await a.connect(b.address)
        accepted = 0
        with pytest.raises(errors.Timeout):
            while True:
                await peer.send(bytes(500), timeout=2)
                accepted += 1
        assert accepted < 40
        return True

    assert sim.run(main)


def test_a_send_that_fails_is_a_warning_in_the_category_of_the_network(core, caplog):
    """Whoever reads only the log must see that messages may be lost, to whom, and why; a link that
    ends in order is no news."""

    async def main(net: sim.Network) -> None:
        a, b, peer = await pair(net, core, link_timeout=3600.0)
        c = await net.node("c", core=core, discovery=False)
        await (await a.connect(c.address)).disconnect()
        assert not [record for record in caplog.records if record.name == "peertalk.network"]
        net.vanish(b)
        peer.send_nowait(b"anybody?")
        while peer.queue.pending:
            await asyncio.sleep(1)

    sim.run(main)
    told = [
        record
        for record in caplog.records
        if record.name == "peertalk.network" and record.levelname == "WARNING"
    ]
    assert len(told) == 1
    assert "'b'" in told[0].getMessage()
    assert "-23012" in told[0].getMessage(), "the driver's own number says what happened"


# --- round-trip times -----------------------------------------------------------------------------


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_ping_measures_the_latency_of_the_link_and_the_average_follows_it(core, platform):
    """Virtual time has no noise: twice the latency, and the time of the bytes. Sampled once in each
    ping_interval, without being asked."""

    async def main(net: sim.Network) -> list[pt.lowlevel.Latency]:
        a, _, peer = await pair(net, core, platform, ping_interval=10.0)
        net.link("a", "b", latency="20ms")
        await asyncio.sleep(1)
        measured = await peer.ping()
        assert 0.04 <= measured < 0.0401
        seen = []
        for _ in range(30):
            await asyncio.sleep(10)
            seen.append(peer.latency)
        assert a.stats().pongs_dropped == 0
        return seen

    seen = sim.run(main)
    assert [later.samples - sooner.samples for sooner, later in itertools.pairwise(seen)] == [
        1
    ] * 29
    assert (
        seen[-1].rtt == pytest.approx(0.04, rel=0.01)
        and seen[-1].deviation < 0.001
        and seen[-1].quality == 50
    )


def test_the_pings_of_many_peers_are_spread_over_the_interval(core):
    """Each PING borrows a slot: all at once, many peers would be a peak of memory."""

    async def main(net: sim.Network) -> tuple[int, int]:
        hub = await net.node("hub", core=core, discovery=False, ping_interval=10.0, max_peers=40)
        peers = []
        for number in range(30):
            node = await net.node(f"n{number}", core=core, discovery=False, ping_interval=0)
            peers.append(await node.connect(hub.address))
        await asyncio.sleep(15)
        before = [peer.latency.samples for peer in hub.peers.values()]
        at = []
        for _ in range(100):
            await asyncio.sleep(0.1)
            at.append(sum(peer.latency.samples for peer in hub.peers.values()))
        steps = [later - sooner for sooner, later in itertools.pairwise([sum(before), *at])]
        return max(steps), at[-1] - sum(before)

    most, total = sim.run(main)
    assert most <= 8 and 24 <= total <= 36


@pytest.mark.parametrize("messages", [1, 3, 4, 5, 6, 8])
def test_leaving_a_peer_that_does_not_read_ends_with_the_drain_time(core, messages):
    """Whether what it does not take lies in slots or waits for one: whoever leaves, and whoever
    comes back meanwhile, must not wait for ever."""

    async def main(net: sim.Network) -> None:
        a = await net.node("a", core=core, discovery=False, drain_timeout=2.0)
        b = await net.node("b", core=core, discovery=False, window=2048, receive_queue_bytes=1024)
        peer = await a.connect(b.address)
        for _ in range(messages):
            peer.send_nowait(bytes(1000))
        await asyncio.sleep(1)
        start = net.clock.seconds
        await peer.disconnect()
        assert net.clock.seconds - start < 2.1
        assert peer.accepted == peer._remote.reported == messages

    sim.run(main)
