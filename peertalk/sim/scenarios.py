"""Scripted networks: what goes wrong in the field, played on the simulator, with checks of what
must hold all the same.

Each scenario is a function of a seed. It plays, then closes every node, and checks the promises
that hold everywhere: each accepted message ended as Sent or Failed, nothing arrived twice, changed
or out of order, nothing that was reported as never sent arrived, all memory came back, and no rule
of a platform's maker was broken. What it must show beside that it says itself. Problems are
sentences; a run without any is a pass.

The incidents show a thing before and after: before is a node whose writes end one by one
(Config.async_send off), as the pipeline's source describes its past.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

from .. import errors
from ..peer import Peer
from .loop import run_in
from .network import PLATFORMS, Network
from .stage import SCENARIOS, Actor, Result, Scenario, Stage, scenario

__all__ = ["Actor", "Result", "SCENARIOS", "Scenario", "Stage", "play", "scenario"]


def play(name: str, seed: int = 0, *, trace: list[Any] | None = None) -> Result:
    """Run a scenario.

    Args:
        name: of SCENARIOS.
        trace: gets the network's last decisions.

    Raises:
        InvalidArgument: no scenario has that name.
    """
    if name not in SCENARIOS:
        raise errors.InvalidArgument(
            f"there is no scenario {name!r}; there are {', '.join(SCENARIOS)}"
        )
    chosen = SCENARIOS[name]
    network = Network(seed, preset=chosen.preset)
    stage = Stage(network)

    async def whole(net: Network) -> None:
        await chosen.play(stage)
        await stage.end()

    try:
        try:
            run_in(network, whole, limit="6h")
        except Exception as error:
            stage.problems.append(f"{type(error).__name__}: {error}")
        stage.check()
        problems = stage.problems + network.faults()
        if trace is not None:
            trace.extend(network.trace.records)
        return Result(
            name, seed, round(network.clock.seconds, 9), network.trace.hash, stage.figures, problems
        )
    finally:
        network.close()


# Edge cases ---------------------------------------------------------------------------------------


@scenario("connections open and close all the time while messages are sent")
async def connect_disconnect(stage: Stage, resets: bool = False) -> None:
    """Rapid connect and disconnect during sends: polite, abrupt, from either side, in the middle of
    a burst."""
    dice, net = stage.dice, stage.net
    a, b = await stage.actor("a", **stage.anywhere()), await stage.actor("b", **stage.anywhere())
    bandwidth, loss = 50_000 + dice.below(500_000), dice.one_of(0, 0, 0.02)
    net.link(
        "a",
        "b",
        latency=dice.between(0, 0.03),
        jitter=dice.between(0, 0.01),
        bandwidth=bandwidth,
        loss=loss,
    )
    async with stage.resetting(a, b, pause=0.5) if resets else contextlib.nullcontext():
        for _ in range(10):
            sender, other = dice.one_of((a, b), (b, a))
            try:
                peer = await sender.meet(other)
            except errors.PeerTalkError:
                await asyncio.sleep(0.1)
                continue
            size, count = dice.one_of(6, 64, 1000), 1 + dice.below(30)
            sending = asyncio.create_task(
                sender.send_all(peer, count, size), name=f"{sender.name} sending"
            )
            await asyncio.sleep(dice.between(0, 0.15))
            leaving = dice.one_of(sender, other)
            target = peer if leaving is sender else next(iter(leaving.node.peers.values()), None)
            if dice.below(4) and target is not None:
                with contextlib.suppress(errors.PeerTalkError):
                    await target.disconnect(timeout=dice.one_of(0.05, 30))
            await sending
    for actor in (a, b):
        stage.expect(
            await actor.settled(60), f"{actor.name}: a minute later some messages have no outcome"
        )


@scenario("the other side ends its program while sends are pending")
async def disconnect_pending(stage: Stage) -> None:
    """A peer disconnects, politely or by a crash, with every slot of ours in flight and more
    waiting: each send gets an outcome, and the memory comes back."""
    dice = stage.dice
    a, b = await stage.actor("a", **stage.anywhere()), await stage.actor("b", **stage.anywhere())
    stage.net.link(
        "a", "b", latency=dice.between(0.01, 0.1), bandwidth=20_000 + dice.below(200_000)
    )
    peer = await a.meet(b)
    sending = asyncio.create_task(a.send_all(peer, 40, 1 + dice.below(1000)), name="a sending")
    await asyncio.sleep(dice.between(0, 0.4))
    if dice.below(2):
        b.close_now()
    else:
        await b.node.aclose(timeout=dice.one_of(0.0, 0.01, 5.0))
    await sending
    stage.expect(
        await a.settled(90), "90 s after the other side had gone some messages had no outcome"
    )
    for _ in range(40):  # MacTCP keeps what it was given for 30 s
        await asyncio.sleep(1)
        if not a.node.memory["pipelines"].bytes:
            break
    stage.expect(
        a.node.memory["pipelines"].bytes == 0,
        f"pipelines of links that are gone hold {a.node.memory['pipelines'].bytes:,} bytes",
    )


@scenario("the network swallows everything from one moment on")
async def black_hole(stage: Stage) -> None:
    """Time-out of an asynchronous send: the platform gives up after 30 s (or the node sooner, by
    its link_timeout), and each send ends with a result."""
    dice = stage.dice
    patient = bool(dice.below(2))
    options: dict[str, Any] = {"link_timeout": 3600.0 if patient else 15.0, "drain_timeout": 1.0}
    a, b = (
        await stage.actor("a", **stage.anywhere(), **options),
        await stage.actor("b", **stage.anywhere()),
    )
    stage.net.link("a", "b", latency=dice.between(0.005, 0.05))
    peer = await a.meet(b)
    await a.send_all(peer, 20, 500)
    await asyncio.sleep(dice.between(0, 0.2))
    stage.net.cut("a", "b", both=bool(dice.below(2)))
    cut_at = stage.net.clock.seconds
    for _ in range(10):
        a.send_nowait(peer, 500)
    done = await a.settled(120)
    took = stage.net.clock.seconds - cut_at
    stage.figures["time_out_s"] = round(took, 3)
    stage.expect(done, "two minutes after the cut some messages had no outcome")
    # the five attempts to reach it again take 27 s; and what the other side had to say of its
    # pressure is a sign of life for some seconds more
    stage.expect(
        took <= (30 if patient else 20) + 50, f"the last result came {took:.1f} s after the cut"
    )
    stage.net.heal()
    await asyncio.sleep(1)


@scenario("a node on a tiny machine runs out of memory again and again")
async def memory_pressure(stage: Stage) -> None:
    """Allocations fail at any moment: sends wait or are refused, links wait, nothing is lost, and
    all goes on when there is memory again."""
    dice = stage.dice
    a = await stage.actor(
        "a",
        platform=dice.one_of(*PLATFORMS),
        profile="embedded",
        pool_bytes=dice.one_of(None, 6_000, 9_000),
    )
    b = await stage.actor("b", platform=dice.one_of(*PLATFORMS), profile="embedded")
    stage.net.link("a", "b", latency=dice.between(0.001, 0.05), jitter=0.002)
    there = await a.meet(b)
    back = await b.met_by(a)
    sending = [
        asyncio.create_task(a.send_all(there, 60, 1 + dice.below(1024)), name="a sending"),
        asyncio.create_task(b.send_all(back, 60, 1 + dice.below(1024)), name="b sending"),
    ]
    for _ in range(8):
        await asyncio.sleep(dice.between(0, 0.1))
        victim = dice.one_of(a, b)
        victim.node.fail_memory(1 + dice.below(4))
        await asyncio.sleep(dice.between(0, 0.5))
        victim.node.fail_memory(0)
    await asyncio.gather(*sending)
    for sender in (a, b):
        stage.expect(
            await sender.settled(120),
            f"{sender.name}: two minutes later some messages have no outcome",
        )
    await asyncio.sleep(1)
    stage.expect(
        not a.disconnects and not b.disconnects,
        f"{a.disconnects + b.disconnects} links ended for want of memory",
    )
    stage.expect_all(a, there, b)
    stage.expect_all(b, back, a)


@scenario("a reader does not take its messages: the pipeline is full")
async def full_pipeline(stage: Stage) -> None:
    """Back-pressure: slots fill, then the outbox, then send() waits and send_nowait() says no; when
    the reader reads, everything comes, in order."""
    dice = stage.dice
    a = await stage.actor("a", **stage.anywhere(), packing=bool(dice.below(2)), send_queue_size=8)
    b = await stage.actor(
        "b",
        **stage.anywhere(),
        taking=False,
        window=dice.one_of(2048, 8192),
        receive_queue_bytes=1024,
    )
    stage.net.link(
        "a", "b", latency=dice.between(0.001, 0.03), bandwidth=dice.one_of(30_000, 1_000_000)
    )
    peer = await a.meet(b)
    size = dice.one_of(200, 1000)
    accepted = refused = 0
    for _ in range(600):
        if a.send_nowait(peer, size):
            accepted += 1
        else:
            refused += 1
            await asyncio.sleep(0.01)
    stage.figures.update(accepted=accepted, refused=refused)
    stage.expect(refused > 0, "600 messages went to a reader that takes none")
    waiting = asyncio.create_task(a.send(peer, size), name="a waiting")
    await asyncio.sleep(1)
    stage.expect(not waiting.done(), "send() did not wait though there was no room")
    cancelled = asyncio.create_task(a.send(peer, size), name="a giving up")
    await asyncio.sleep(0.1)
    cancelled.cancel()
    stage.expect(
        not await a.send(peer, size, timeout=0.5), "send() found room though the reader had stopped"
    )
    b.take()
    stage.expect(await waiting, "the send that waited was refused")
    await a.send_all(peer, 30, size)
    stage.expect(await a.settled(120), "the reader reads, and some messages have no outcome")
    await asyncio.sleep(1)
    stage.expect_all(a, peer, b)


@scenario("every slot is taken, and sends block until they have drained")
async def blocking_sends(stage: Stage) -> None:
    """A node that blocks: what is sent past full slots waits for what is in them, and overtakes
    nothing; nobody hears that there is no room."""
    dice = stage.dice
    a = await stage.actor(
        "a",
        **stage.anywhere(),
        packing=bool(dice.below(2)),
        blocks=True,
        pipeline_depth=dice.one_of(2, 4, 16),
    )
    # while a blocks nobody reads: its machine buffers all
    b = await stage.actor("b", **stage.anywhere(), window=1_000_000)
    stage.net.link(
        "a", "b", latency=dice.between(0.001, 0.03), bandwidth=dice.one_of(30_000, 1_000_000)
    )
    a.node.host.set_completion_jitter(dice.one_of(0, 20_000_000))
    peer = await a.meet(b)
    assert peer._remote.connection is not None
    longest = peer._remote.connection.link.max_message
    sizes = (10, 700, longest, longest)
    refused = 0
    for _ in range(12):
        for _ in range(dice.below(40)):
            refused += not a.send_nowait(peer, dice.one_of(*sizes))
        refused += not await a.send(peer, dice.one_of(*sizes))
        await asyncio.sleep(dice.between(0, 0.05))
    connection = peer._remote.connection
    assert connection is not None
    stage.figures["blocked"] = connection.link.statistics().sync_sends
    stage.expect(refused == 0, f"{refused} messages were refused though their senders may block")
    stage.expect(await a.settled(120), "all slots drained, and some messages have no outcome")
    await asyncio.sleep(1)
    stage.expect_all(a, peer, b)


@scenario("packets are lost, doubled, delayed and reordered")
async def rough_wire(stage: Stage) -> None:
    """A bad wire may cost time, never a message or its place."""
    dice = stage.dice
    a, b = [await stage.actor(name, **stage.anywhere(), link_timeout=600.0) for name in "ab"]
    there = await a.meet(b)
    back = await b.met_by(a)
    stage.net.link(
        "a",
        "b",
        latency=dice.between(0.001, 0.05),
        jitter=dice.between(0, 0.05),
        loss=dice.between(0, 0.15),
        duplicate=dice.between(0, 0.1),
        reorder=dice.between(0, 0.2),
        reorder_by=dice.between(0.001, 0.1),
    )
    size = dice.one_of(10, 300, 1024)
    await asyncio.gather(a.send_all(there, 60, size), b.send_all(back, 60, size, pause=0.01))
    for sender, peer, receiver in ((a, there, b), (b, back, a)):
        stage.expect(
            await sender.settled(600),
            f"{sender.name}: ten minutes later some messages have no outcome",
        )
        await asyncio.sleep(5)
        stage.expect_all(sender, peer, receiver)


@scenario("a wire flips bits that no checksum below notices")
async def damage(stage: Stage) -> None:
    """Damage ends the link and is reported; what is delivered is never wrong."""
    dice = stage.dice
    a, b = await stage.actor("a", **stage.anywhere()), await stage.actor("b", **stage.anywhere())
    stage.net.link("a", "b", latency=0.005)
    peer = await a.meet(b)
    stage.net.link("a", "b", damage=dice.between(0.05, 0.3), both=False)
    for _ in range(12):
        await asyncio.wait(
            [asyncio.create_task(a.send_all(peer, 10, 1 + dice.below(900)), name="a sending")],
            timeout=60,
        )
        await asyncio.sleep(0.2)
    stage.net.link("a", "b", damage=0)
    stage.expect(await a.settled(120), "two minutes later some messages have no outcome")
    stage.figures["damaged_packets"] = stage.net.counts("a", "b").damaged
    stage.figures["faults_reported"] = len(b.faults)


@scenario("both dial each other at once, again and again")
async def crossing_dials(stage: Stage, resets: bool = False) -> None:
    """Two connections between the same two nodes become one, and what was sent on either arrives in
    order."""
    dice = stage.dice
    a, b = await stage.actor("a", **stage.anywhere()), await stage.actor("b", **stage.anywhere())
    stage.net.link("a", "b", latency=dice.between(0.001, 0.05), jitter=dice.between(0, 0.02))
    async with stage.resetting(a, b, pause=0.5) if resets else contextlib.nullcontext():
        for _ in range(4):
            met = await asyncio.gather(a.meet(b), b.meet(a), return_exceptions=True)
            for sender, peer in zip((a, b), met, strict=True):
                if isinstance(peer, Peer):
                    await sender.send_all(peer, 1 + dice.below(8), dice.one_of(6, 900))
            await asyncio.sleep(dice.between(0, 0.3))
            peer = dice.one_of(*met)
            if isinstance(peer, Peer):
                with contextlib.suppress(errors.PeerTalkError):
                    await peer.disconnect(timeout=30)
            await asyncio.sleep(dice.between(0, 3))
    for actor in (a, b):
        stage.expect(
            await actor.settled(60), f"{actor.name}: a minute later some messages have no outcome"
        )


@scenario("a network of four falls apart and comes together", preset="lan")
async def partition(stage: Stage, resets: bool = False) -> None:
    """Nodes that find each other by discovery are parted for a while; when the wire is whole they
    find each other again and talk."""
    dice = stage.dice
    names = ["ada", "bob", "cyd", "dee"]
    actors = [
        await stage.actor(name, **stage.anywhere(), discovery=True, peer_timeout=30.0)
        for name in names
    ]
    for actor in actors:
        for name in names:
            if name != actor.name:
                await actor.node.wait_for(name, timeout=30)
    first = actors[0]
    peers = [await first.node.peers[name].connect(timeout=60) for name in names[1:]]
    async with stage.resetting(*actors, pause=2.0) if resets else contextlib.nullcontext():
        for peer in peers:
            await first.send_all(peer, 5, 200)
        split = 1 + dice.below(3)
        stage.net.partition(names[:split], names[split:])
        for peer in peers:
            for _ in range(5):
                first.send_nowait(peer, 200)
        await asyncio.sleep(dice.between(1, 60))
        stage.net.heal()
    stage.expect(
        await first.settled(120),
        "two minutes after the wire was whole some messages had no outcome",
    )
    for name in names[1:]:
        try:
            found = await first.node.wait_for(name, timeout=60)
            stage.expect(
                await first.send(found, 100),
                f"{name} was found again, and a message to it was refused",
            )
        except errors.Timeout:
            stage.problems.append(f"{name} was not found again a minute after the wire was whole")
    stage.expect(await first.settled(60), "a minute later some messages have no outcome")


@scenario("two nodes send to each other while their connections are reset")
async def resets(stage: Stage) -> None:
    """Both sides send, leave and come back, and a box on the wire resets what there is, seen by one
    side or both: nothing comes twice or out of order, nothing is reported as sent that did not
    come, and both still reach each other in the end."""
    dice = stage.dice
    actors = [await stage.actor(name, **stage.anywhere(), connect_timeout=5.0) for name in "ab"]
    stage.net.link(
        "a",
        "b",
        latency=dice.between(0, 0.05),
        jitter=dice.between(0, 0.02),
        bandwidth=50_000 + dice.below(500_000),
    )

    async def live(actor: Actor, other: Actor) -> None:
        for _ in range(8):
            try:
                peer = await actor.meet(other)
            except errors.PeerTalkError:
                await asyncio.sleep(dice.between(0, 0.2))
                continue
            await actor.send_all(
                peer, 1 + dice.below(20), dice.one_of(6, 64, 900), dice.one_of(0, 0, 0.01)
            )
            await asyncio.sleep(dice.between(0, 0.3))
            if not dice.below(4):
                with contextlib.suppress(errors.PeerTalkError):
                    await peer.disconnect(timeout=dice.one_of(0.05, 30))

    a, b = actors
    async with stage.resetting(a, b, pause=dice.one_of(0.05, 0.3, 1.0)):
        await asyncio.gather(live(a, b), live(b, a))
    for actor in actors:
        stage.expect(
            await actor.settled(120),
            f"{actor.name}: two minutes later some messages have no outcome",
        )
    for actor, other in ((a, b), (b, a)):
        with contextlib.suppress(errors.PeerTalkError):
            await actor.meet(other)  # a dial that was reset before may still be on its way
        peer = await actor.meet(other)
        stage.expect(
            await actor.send(peer) and await actor.settled(60),
            f"{actor.name} cannot send any more, though nothing is reset",
        )
        await asyncio.sleep(1)
        stage.expect_arrived(actor, other)


@scenario("connections open and close all the time, and are reset")
async def connect_disconnect_resets(stage: Stage) -> None:
    """connect_disconnect with a box on the wire that resets connections."""
    await connect_disconnect(stage, resets=True)


@scenario("both dial each other at once, and are reset")
async def crossing_dials_resets(stage: Stage) -> None:
    """crossing_dials with a box on the wire that resets connections: also one of the two, seen by
    one side alone."""
    await crossing_dials(stage, resets=True)


@scenario("a network of four falls apart, is reset, and comes together", preset="lan")
async def partition_resets(stage: Stage) -> None:
    """partition with a box on the wire that resets connections until the wire is whole."""
    await partition(stage, resets=True)


# Incidents, before and after ----------------------------------------------------------------------


@scenario("incident: each send waits for its acknowledgement", preset="classic")
async def waiting_sends(stage: Stage) -> None:
    """Thirty messages of 1,024 bytes over the classic link, before and after; and one alone, which
    must not take longer than before."""
    platform = stage.dice.one_of(*PLATFORMS)
    core = stage.dice.one_of("standard", "lowmem")
    for when, asynchronous in (("before", False), ("after", True)):
        sender = await stage.actor(
            f"sender {when}", platform=platform, core=core, packing=False, async_send=asynchronous
        )
        reader = await stage.actor(f"reader {when}", platform=platform, core=core)
        peer = await sender.meet(reader)
        await asyncio.sleep(1)
        start = stage.net.clock.seconds
        await sender.send(peer, 1024)
        await sender.settled(10)
        stage.figures[f"{when}_one_message_ms"] = round(
            (reader.arrivals[sender.number][-1] - start) * 1000, 3
        )
        start = stage.net.clock.seconds
        await sender.send_all(peer, 30, 1024)
        await sender.settled(60)
        await asyncio.sleep(0.1)
        stage.figures[f"{when}_thirty_messages_s"] = round(
            reader.arrivals[sender.number][-1] - start, 3
        )
        stage.expect_all(sender, peer, reader)
    gain = stage.figures["before_thirty_messages_s"] / stage.figures["after_thirty_messages_s"]
    stage.figures["gain"] = round(gain, 2)
    stage.expect(
        gain > 0.9 * sender.node.config.pipeline_depth,
        f"thirty messages are only {gain:.2f} times faster than before",
    )
    before, after = stage.figures["before_one_message_ms"], stage.figures["after_one_message_ms"]
    stage.expect(after <= before, f"one message took {before} ms before, and takes {after} ms now")


@scenario("incident: one slow reader, and a message for somebody else", preset="classic")
async def slow_reader(stage: Stage) -> None:
    """A full pipeline to one peer: before, the whole node waits in its send; after, others hear
    from it at once."""
    platform = stage.dice.one_of(*PLATFORMS)
    for when, asynchronous in (("before", False), ("after", True)):
        sender = await stage.actor(
            f"sender {when}", platform=platform, packing=False, async_send=asynchronous
        )
        slow = await stage.actor(
            f"slow {when}", platform=platform, taking=False, window=2048, receive_queue_bytes=1024
        )
        other = await stage.actor(f"other {when}", platform=platform)
        to_slow, to_other = await sender.meet(slow), await sender.meet(other)
        await asyncio.sleep(1)
        start = stage.net.clock.seconds
        for _ in range(30):
            sender.send_nowait(to_slow, 1024)
        waking = asyncio.get_running_loop().call_later(2, slow.take)
        await asyncio.sleep(0.001)
        await sender.send(to_other, 100)
        await sender.settled(90)
        waking.cancel()
        await asyncio.sleep(0.1)
        stage.figures[f"{when}_message_to_other_s"] = round(
            other.arrivals[sender.number][-1] - start, 3
        )
        if asynchronous:
            stage.expect_all(sender, to_slow, slow)
    before, after = (
        stage.figures["before_message_to_other_s"],
        stage.figures["after_message_to_other_s"],
    )
    stage.expect(after < 0.5, f"a message to a peer that is not slow took {after} s")
    stage.expect(
        after * 3 < before,
        f"the slow reader held others up for {before} s before, and for {after} s now",
    )


@scenario("incident: a peer vanishes in the middle of a send", preset="classic")
async def vanishing_peer(stage: Stage) -> None:
    """One peer is switched off while it is sent to; another is told the time every 100 ms. Before,
    the node is mute until the send times out; after, nobody notices."""
    platform = stage.dice.one_of(*PLATFORMS)
    for when, asynchronous in (("before", False), ("after", True)):
        sender = await stage.actor(
            f"sender {when}", platform=platform, packing=False, async_send=asynchronous
        )
        leaving = await stage.actor(f"leaving {when}", platform=platform)
        other = await stage.actor(f"other {when}", platform=platform)
        to_leaving, to_other = await sender.meet(leaving), await sender.meet(other)
        await asyncio.sleep(1)
        await sender.send_all(to_other, 10, 20, pause=0.1)
        stage.vanish(leaving)
        for _ in range(10):
            sender.send_nowait(to_leaving, 1024)
        await sender.send_all(to_other, 400, 20, pause=0.1)
        stage.expect(
            await sender.settled(60), f"{when}: messages to the peer that vanished have no outcome"
        )
        times = other.arrivals[sender.number]
        gaps = [after - before for before, after in itertools.pairwise(times)]
        stage.figures[f"{when}_longest_silence_s"] = round(max(gaps), 3)
        stage.expect(
            not sender.sent_to(to_leaving),
            f"{when}: messages to a machine that was off were reported as Sent",
        )
        stage.expect_all(sender, to_other, other)
    before, after = (
        stage.figures["before_longest_silence_s"],
        stage.figures["after_longest_silence_s"],
    )
    stage.expect(after < 0.5, f"the others heard nothing for {after} s")
    stage.expect(
        before > 5 * after, f"the longest silence was {before} s before, and is {after} s now"
    )
