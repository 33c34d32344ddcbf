"""A stream on its way to a peer: its pace, who hears of its end, and that it never says more than
is so.

Most run in the simulator, where a slow wire shows what is out at any moment; a made-up peer stands
where the engine's answers are to be chosen.
"""

from __future__ import annotations

import asyncio
import types

import pytest
from kit.inside import engine_of

import peertalk as pt
from peertalk import sim
from peertalk._core.values import CAPABILITY, DATA
from peertalk._numbers import ERR_BUSY, ERR_NOT_CONNECTED
from peertalk.doors.streaming import Outgoing
from peertalk.protocol.connections import State
from peertalk.protocol.peer import Latency

CONTENT = bytes(index * 7 % 251 for index in range(20_000))
GONE = pt.ConnectionClosed("gone")


class MadeUpPeer:
    """A peer that accepts as many messages as `room` says."""

    def __init__(self, room=100, max_message=8192):
        self.name = "bob"
        self.transport = types.SimpleNamespace(
            check_open=lambda: None, closing=False, listen=lambda more: None
        )
        self.connection = types.SimpleNamespace(
            state=State.OPEN, link=types.SimpleNamespace(max_message=max_message)
        )
        self.connected = True
        self.latency = None
        self.stream = None
        self.room = room
        self.accepted = 0
        self.got = []

    def serve(self, priority):
        return True

    def accept(self, payload, no_delay, *, may_block, refusable):
        assert not (no_delay or may_block or refusable) and self.connection.state is State.OPEN
        if len(self.got) >= self.room:
            return 0
        self.got.append(payload)
        self.accepted += 1
        return self.accepted


class Watching(Outgoing):
    """Counts how often it was said to have ended."""

    ends = 0

    def __init__(self, *args):
        super().__init__(*args)
        self.on_end.append(self.count)

    def count(self):
        self.ends += 1


def started(peer, size=5000, progress=None):
    stream = Watching(peer, CONTENT[:size], progress)
    stream.begin()
    return stream


def test_at_most_the_depth_is_accepted_and_each_report_lets_more_go():
    """Two chunks of 1,024 bytes while the round-trip time is not known: other messages find room,
    and a cancel is prompt."""
    peer = MadeUpPeer()
    stream = started(peer)
    for reported in range(5):
        assert (
            len(peer.got) == min(reported + 2, 5)
            and stream.sent == min(reported * 1024, 5000)
            and peer.stream is stream
        )
        stream.go_on()
        stream.told(reported + 1, reported + 1, None)
    assert b"".join(peer.got) == CONTENT[:5000] and [len(chunk) for chunk in peer.got] == [
        1024
    ] * 4 + [904]
    assert (stream.state, stream.sent, stream.ends, peer.stream) == (
        pt.StreamState.COMPLETED,
        5000,
        1,
        None,
    )


def test_no_chunk_is_longer_than_the_peer_takes():
    """A classic peer that has said nothing takes 512 bytes."""
    peer = MadeUpPeer(max_message=512)
    started(peer)
    assert [len(chunk) for chunk in peer.got] == [512, 512]


def test_a_peer_without_room_is_asked_again_when_it_has_some():
    """Nothing polls: the engine's word is enough."""
    peer = MadeUpPeer(room=0)
    stream = started(peer, 1500)
    assert (stream.state, peer.got) == (pt.StreamState.READY, [])
    peer.room = 9
    stream.go_on()
    assert len(peer.got) == 2
    stream.told(1, 2, None)
    assert stream.state is pt.StreamState.COMPLETED


@pytest.mark.parametrize("change", ["connection", "state", "closing", "connected"])
def test_nothing_goes_to_a_connection_that_is_not_open(change):
    """Between two connections, and on the way out, a stream waits for what comes."""
    peer = MadeUpPeer()
    stream = started(peer)
    if change == "connection":
        peer.connection = None
    elif change == "state":
        peer.connection.state = State.CLOSED
    elif change == "closing":
        peer.transport.closing = True
    else:
        peer.connected = False
    stream.told(1, 1, None)
    assert len(peer.got) == 2 and stream.state is pt.StreamState.SENDING
    stream.lost(GONE)
    assert (stream.state, stream.error, stream.ends, peer.stream) == (
        pt.StreamState.FAILED,
        GONE,
        1,
        None,
    )


def test_a_failed_message_of_it_ends_it_with_the_error_and_others_do_not():
    """Ranges of outcomes cover everybody's messages."""
    peer = MadeUpPeer()
    stream = started(peer)
    stream.told(7, 9, GONE)
    assert stream.state is pt.StreamState.SENDING
    stream.told(1, 9, GONE)
    stream.lost(pt.NotConnected("later"))
    assert (stream.state, stream.error, stream.ends, peer.stream, len(peer.got)) == (
        pt.StreamState.FAILED,
        GONE,
        1,
        None,
        2,
    )


def test_cancelled_it_ends_at_once_and_late_reports_change_nothing():
    """What has left has left; nothing more does, and the next stream may begin."""
    peer = MadeUpPeer()
    stream = started(peer)
    stream.told(1, 1, None)
    stream.cancel()
    assert (stream.state, stream.sent, stream.ends, peer.stream) == (
        pt.StreamState.CANCELLED,
        1024,
        1,
        None,
    )
    following = started(peer, 10)
    stream.told(2, 3, None)
    stream.cancel()
    assert (stream.sent, stream.ends, len(peer.got), peer.stream) == (1024, 1, 4, following)


def test_progress_tells_every_step_and_may_cancel():
    """A window with a bar and a button. What it cancels when all is sent is complete all the
    same."""
    seen = []
    peer = MadeUpPeer()
    stream = started(
        peer,
        3000,
        lambda sent, total: seen.append((sent, total)) or (sent > 2000 and stream.cancel()),
    )
    stream.told(1, 1, None)
    stream.told(2, 2, None)
    assert (
        seen == [(1024, 3000), (2048, 3000)]
        and stream.state is pt.StreamState.CANCELLED
        and len(peer.got) == 3
    )
    small = started(peer, 10, lambda sent, total: small.cancel())
    small.told(4, 4, None)
    assert small.state is pt.StreamState.COMPLETED and small.ends == stream.ends == 1


def test_progress_that_raises_ends_the_stream_with_what_it_raised():
    """Not the node, and not silently."""
    peer = MadeUpPeer()
    stream = started(peer, 3000, lambda sent, total: 1 / 0)
    stream.told(1, 2, None)
    assert (
        stream.state is pt.StreamState.FAILED
        and isinstance(stream.error, ZeroDivisionError)
        and stream.ends == 1
        and len(peer.got) == 2
    )


@pytest.mark.parametrize(
    ("rtt", "size", "depth"),
    [(0.049, 4096, 4), (0.05, 2048, 3), (0.1, 1024, 2), (0.2, 512, 1), (None, 1024, 2)],
)
def test_the_measured_way_to_the_peer_sets_the_pace(rtt, size, depth):
    """The original's table: a near peer gets more at a time than one behind a slow link."""
    peer = MadeUpPeer()
    peer.latency = None if rtt is None else Latency(rtt, 0.0, 50, 3)
    started(peer, 30_000)
    assert [len(chunk) for chunk in peer.got] == [size] * depth


def test_one_at_a_time_to_a_connected_peer_and_each_once():
    """The original's refusals, with its codes."""
    peer = MadeUpPeer()
    first = started(peer)
    with pytest.raises(pt.WouldBlock, match=r"on its way, 0 of 5,000 bytes sent") as caught:
        started(peer)
    assert (caught.value.reason, caught.value.code, caught.value.peer) == ("busy", ERR_BUSY, "bob")
    with pytest.raises(pt.InvalidState, match="started before"):
        first.begin()
    never = Watching(peer, b"x")
    with pytest.raises(pt.InvalidState, match="was not started"):
        never.check_begun()
    never.cancel()
    with pytest.raises(pt.InvalidState):
        never.begin()
    peer.connected = False
    with pytest.raises(pt.NotConnected) as missing:
        started(peer)
    assert missing.value.code == ERR_NOT_CONNECTED and peer.stream is first


# Whole nodes


async def test_a_classic_peer_gets_plain_data_frames_of_the_chunk_size_and_nothing_else(core):
    """What the original does not know would end the connection."""
    frames: list[tuple[bytes, bytes]] = []
    done = asyncio.Event()

    async def classic(reader, writer):
        writer.write(core.encode_frame(CAPABILITY, core.encode_capability(8192, 1024, 0, 0)))
        while sum(len(payload) for header, payload in frames if header[5] == DATA) < 5000:
            header = await reader.readexactly(10)
            length = int.from_bytes(header[8:], "big")
            body = await reader.readexactly(length + 2)
            assert core.crc16(header + body[:-2]) == int.from_bytes(body[-2:], "big")
            frames.append((header, body[:-2]))
        done.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(classic, "127.0.0.1", 0) as server:
        async with pt.Node(
            "ada",
            bind="127.0.0.1",
            port=0,
            udp_port=0,
            discovery=False,
            ping_interval=0,
            core=core.name,
        ) as ada:
            peer = await ada.connect(server.sockets[0].getsockname(), timeout=20)
            async with peer.stream_out(CONTENT[:5000]) as out:
                assert await out.finished(timeout=20) is pt.StreamState.COMPLETED
            await done.wait()
    data = [(header, payload) for header, payload in frames if header[5] != CAPABILITY]
    assert [(header[:7], header[7], len(payload)) for header, payload in data] == [
        (b"PTMG\x01\x01\x00", number, size)
        for number, size in enumerate([1024, 1024, 1024, 1024, 904])
    ]
    assert b"".join(payload for _, payload in data) == CONTENT[:5000]


def simulated(main, **options):
    found = sim.run(main, **options)
    assert found == sim.run(main, **options), "the same seed gives the same run"
    return found


@pytest.mark.parametrize("platform", ["mactcp", "opentransport"])
def test_64_kib_arrive_in_order_as_ordinary_messages_with_others_between(c_core, platform):
    """What the receiver sees is the data and nothing else; a message sent meanwhile does not wait
    for the end."""
    content = (CONTENT * 4)[:65_536]

    async def main(net):
        a, b = [
            await net.node(name, platform=platform, core=c_core.name, ping_interval=0)
            for name in ("a", "b")
        ]
        net.link(a, b, latency="5ms", bandwidth="90KB/s")
        peer = await a.connect(b.address if b.address[0] != "0.0.0.0" else ("b", b.address[1]))
        steps = []
        async with peer.stream_out(content, lambda sent, total: steps.append(sent)) as out:
            while not steps:
                await asyncio.sleep(0.01)
            await peer.send(b"between")
            assert (
                await out.finished() is pt.StreamState.COMPLETED and out.sent == out.total == 65_536
            )
        got, data, place = [], b"", None
        while len(data) < 65_536 or place is None:
            message = (await b.receive()).data
            got.append(len(message))
            if message == b"between":
                place = len(data)
            else:
                data += message
        assert (
            data == content
            and place < 16_384
            and max(got) <= 1024
            and steps == sorted(steps)
            and steps[-1] == 65_536
        )
        return place, net.trace.hash

    simulated(main, seed=5)


def test_leaving_the_block_cancels_and_no_more_than_was_accepted_arrives(c_core):
    """Prompt: the rest of a stream that nobody wants must not hold up what comes next."""

    async def main(net):
        a, b = [await net.node(name, core=c_core.name, ping_interval=0) for name in ("a", "b")]
        net.link(a, b, latency="5ms", bandwidth="20KB/s")
        peer = await a.connect(b.address)
        waited = asyncio.Event()
        async with peer.stream_out(CONTENT, lambda sent, total: waited.set()) as out:
            await waited.wait()
        assert (
            out.state is pt.StreamState.CANCELLED
            and await out.finished() is pt.StreamState.CANCELLED
        )
        await peer.send(b"after")
        data = b""
        while (message := (await b.receive()).data) != b"after":
            data += message
        assert out.sent <= len(data) <= out.sent + 2 * 1024 < len(CONTENT) and CONTENT.startswith(
            data
        )
        return len(data), net.trace.hash

    simulated(main, seed=6)


def test_a_lost_connection_fails_the_stream_and_wakes_who_waits(c_core):
    """A stream that waits for ever is worse than one that fails."""

    async def main(net):
        a, b = [await net.node(name, core=c_core.name) for name in ("a", "b")]
        net.link(a, b, latency="5ms", bandwidth="20KB/s")
        peer = await a.connect(b.address)
        async with peer.stream_out(CONTENT) as out:
            waiting = asyncio.ensure_future(out.finished())
            with pytest.raises(pt.Timeout, match="the stream to peer 'b' did not end within"):
                await out.finished(timeout="50ms")
            net.vanish(b)
            with pytest.raises(pt.NetworkError) as caught:
                await waiting
            assert (
                out.state is pt.StreamState.FAILED
                and out.error is caught.value
                and out.sent < out.total
            )
        with pytest.raises((pt.NotConnected, pt.WouldBlock)):
            async with peer.stream_out(b"x"):
                pass
        return net.trace.hash

    simulated(main, seed=7)


def test_a_node_that_closes_fails_its_streams_and_counts_no_message_twice(c_core):
    """aclose() sends what was accepted; the rest of a stream was not."""

    async def main(net):
        a, b = [await net.node(name, core=c_core.name) for name in ("a", "b")]
        net.link(a, b, latency="5ms", bandwidth="20KB/s")
        peer = await a.connect(b.address)
        async with peer.stream_out(CONTENT) as out:
            assert await a.aclose() == 0
            with pytest.raises(pt.PeerTalkError):
                await out.finished()
        assert out.state is pt.StreamState.FAILED
        counted = a.stats()
        assert (
            counted.messages_accepted == counted.messages_sent == 2 >= out.sent / 1024
            and not net.faults()
        )
        return net.trace.hash

    simulated(main, seed=8)


def test_a_stream_that_finds_the_queue_full_goes_on_when_there_is_room(c_core):
    """It begins when others have filled the way, and nothing of its own is out that could wake
    it."""

    async def main(net):
        a, b = [
            await net.node(name, core=c_core.name, send_queue_size=1, packing=False)
            for name in ("a", "b")
        ]
        net.link(a, b, latency="5ms", bandwidth="20KB/s")
        peer = await a.connect(b.address)
        before = 0
        with pytest.raises(pt.WouldBlock):
            while True:
                peer.send_nowait(bytes(500))
                before += 1
        async with peer.stream_out(CONTENT[:3000]) as out:
            assert out.state is pt.StreamState.READY
            assert await out.finished() is pt.StreamState.COMPLETED
        for _ in range(before):
            assert (await b.receive()).data == bytes(500)
        arrived = b""
        while len(arrived) < 3000:
            arrived += (await b.receive()).data
        assert arrived == CONTENT[:3000]
        return net.trace.hash

    simulated(main, seed=9)


def test_a_chunk_that_can_never_go_fails_the_stream_and_not_the_connection(c_core):
    """The peer has lowered its limit while the chunk waited: the rest would be data with a hole."""

    async def main(net):
        options = {"core": c_core.name, "packing": False, "max_message": 1024}
        a, b = [await net.node(name, **options) for name in ("a", "b")]
        net.link(a, b, latency="5ms", bandwidth="20KB/s")
        peer = await a.connect(b.address)
        while peer.queue.bytes == 0:
            peer.send_nowait(bytes(300))
        async with peer.stream_out(CONTENT[:3000]) as out:
            assert out.state is pt.StreamState.SENDING
            peer._remote.connection.link.max_message = 400
            with pytest.raises(pt.MessageTooLarge, match="1,024 bytes to peer 'b'"):
                await out.finished()
            assert (
                out.state is pt.StreamState.FAILED
                and peer.connected
                and peer._remote.stream is None
            )
        return net.trace.hash

    simulated(main, seed=10)


def test_a_stream_whose_first_part_fails_is_over_and_does_not_stand_in_the_way():
    """Its caller hears that it did not begin: sent later all the same, it would be a surprise, and
    no other stream to that peer could ever begin."""
    peer = MadeUpPeer()

    def refusing(*_, **__):
        raise GONE

    peer.accept, accepts = refusing, peer.accept
    stream = Watching(peer, CONTENT[:5000])
    with pytest.raises(pt.ConnectionClosed):
        stream.begin()
    peer.accept = accepts
    stream.go_on()
    assert (stream.state, peer.stream, peer.got) == (pt.StreamState.FAILED, None, [])
    assert started(peer).state is pt.StreamState.SENDING


async def test_a_stream_that_begins_while_others_wait_to_send_goes_behind_them():
    """Order is the order of calls, whichever call."""
    options = {"bind": "127.0.0.1", "port": 0, "discovery": False, "ping_interval": 0}
    async with (
        pt.Node("ada", **options, send_queue_size=8) as ada,
        pt.Node("bob", **options, receive_queue_bytes=4096) as bob,
    ):
        peer = await ada.connect(bob.address, timeout=20)
        waiting = [asyncio.create_task(peer.send(b"s" * 8000)) for _ in range(1500)]
        while not peer._remote.lines:
            await asyncio.sleep(0)
        async with peer.stream_out(b"t" * 3000) as out:
            got = b""
            while len(got) < 1500 + 3:
                got += (await bob.receive(timeout=20)).data[:1]
            assert await out.finished(timeout=20) is pt.StreamState.COMPLETED
        assert got == b"s" * 1500 + b"t" * 3
        await asyncio.gather(*waiting)


def test_what_interrupts_a_progress_function_does_not_cost_what_the_same_turn_has_brought():
    """Ctrl-C in it would lose messages that had arrived and were acknowledged: it is raised, when
    the turn is done."""
    from peertalk.sync import Node

    def interrupted(sent, total):
        raise KeyboardInterrupt

    options = {"bind": "127.0.0.1", "port": 0, "discovery": False, "ping_interval": 0}
    options["workers"] = 0  # else the function may be called on the thread that decides
    with Node("ada", **options) as ada, Node("bob", **options) as bob:
        peer = _connected(ada, bob)
        back = bob.wait_for("ada", timeout=20)
        out = peer.stream_out(CONTENT, interrupted)
        out.__enter__()
        back.send(b"arrived")
        with pytest.raises(KeyboardInterrupt):
            for _ in range(100):
                ada.poll(0.1)
        assert ada.receive(timeout=0).data == b"arrived"
        assert out.state is pt.StreamState.FAILED and peer._remote.stream is None
        with pytest.raises(pt.InvalidState, match="interrupted"):
            out.finished()


def _connected(ada, bob):
    """The peer that bob is to ada, both turned by this thread."""
    found = []
    engine_of(ada).switchboard.dial(bob.address, lambda peer, error: found.append(peer.view))
    while not found:
        ada.poll()
        bob.poll()
    return found[0]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError])
def test_a_stream_that_could_not_begin_leaves_its_peer_free(kind):
    """It stayed "busy", and the data of a call that had failed was sent later."""
    peer, out = MadeUpPeer(), None

    def struck(*_, **__):
        raise kind

    peer.accept, accept = struck, peer.accept
    out = Watching(peer, CONTENT)
    with pytest.raises(kind):
        out.begin()
    assert peer.stream is None and out.ends == 1
    peer.accept = accept
    out.go_on()
    assert not peer.got
    after = Watching(peer, CONTENT)
    after.begin()
    assert peer.stream is after and peer.got
