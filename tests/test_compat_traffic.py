"""Compatibility with the original, what goes over a link once it is open: fragments that come,
pressure that is reported, datagrams, streams, PING and REJECT. Real sockets and the strict script,
as in test_compat.py."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import classic
import pytest
from classic import (
    CAPABILITY,
    CRITICAL,
    DATA,
    FIRST,
    FRAGMENT,
    HIGH,
    LAST,
    LOW,
    NORMAL,
    PING,
    REJECT,
    Capabilities,
    ClassicPeer,
    Piece,
    Refused,
    SimulatedSockets,
    encode_frame,
    serving,
)
from kit.inside import buffers_in_use
from kit.meeting import LIVE, dialled, fragments_of, noise, original, replay, still_talks, take
from kit.nodes import loopback
from kit.waiting import GUARD

import peertalk as pt
from peertalk import sim

VECTORS = Path(__file__).parent / "vectors"
SMALL = Capabilities(512, 256, 0, 5)


# --- fragments that come --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 247, 248, 249, 511, 512, 513, 3968, 4096, 8000, 8192])
async def test_a_message_in_fragments_is_put_together(size):
    """Our capacity is what we announce: 8,192, more than an original's. Whole messages may stand
    between the pieces."""
    async with dialled() as (old, link, ada, peer):
        message = noise(size)
        pieces = classic.fragments(message, 0xFFFF) or [
            classic.encode_piece(Piece(0xFFFF, 0, 0, FIRST | LAST), b"")
        ]
        for number, payload in enumerate(pieces):
            if number == 1:
                old.peer.frame(link, b"between")
            old.peer.frame(link, payload, FRAGMENT)
        expected = [b"between", message] if len(pieces) > 1 else [message]
        assert await take(ada, len(expected)) == expected
        await still_talks(old, link, ada, peer)
        assert ada.stats().frames_ignored == 0


@pytest.mark.parametrize("size", [1024, 1025, 3968, 4096])
async def test_each_core_takes_what_the_original_sends_in_fragments(core, size):
    """The lowmem core announces 1,024 bytes, and the original then sends what is longer in
    fragments and says OK to its application. Memory is borrowed for one message at a time of each
    connection, and given back."""
    async with dialled(core.name) as (old, link, ada, peer):
        for number in range(20):
            for payload in classic.fragments(noise(size), number):
                old.peer.frame(link, payload, FRAGMENT)
        assert await take(ada, 20) == [noise(size)] * 20
        if size <= 3968 and size > link.theirs.max_message:  # as its own sender does it
            old.peer.send(link, noise(size), CRITICAL)
            assert await take(ada, 1) == [noise(size)]
        await still_talks(old, link, ada, peer)
        assert ada.stats().frames_ignored == 0
        assert buffers_in_use(ada) <= 1  # the slot of what was sent


def test_a_lowmem_node_on_a_classic_mac_puts_messages_of_4096_bytes_together():
    """Its pool is what its slots may need, for four peers: the message finds room there beside
    them."""

    async def main(net: sim.Network) -> list[bytes]:
        host = net.host("se")
        ada = await net.node("ada", core="lowmem", discovery=False)
        olds = [
            SimulatedSockets(
                ClassicPeer(tcp_port=7354 + number, udp_port=8000 + number),
                host,
                lambda: net.clock.seconds,
                discovery=False,
            )
            for number in range(4)
        ]
        taken = []
        async with serving(*olds):
            for old in olds:
                await ada.connect(old.address, timeout=5)
                link = await old.link()
                for payload in classic.fragments(noise(4096), 1):
                    old.peer.frame(link, payload, FRAGMENT)
                taken.append((await ada.receive(timeout=5)).data)
        assert ada.stats().frames_ignored == 0
        return taken

    assert sim.run(main) == [noise(4096)] * 4


async def test_a_message_that_is_too_long_for_anybody_is_ignored_and_the_link_lives():
    """One byte more than 8,192: each of its pieces is ignored and counted."""
    async with dialled() as (old, link, ada, peer):
        pieces = classic.fragments(noise(8193), 1)
        for payload in pieces:
            old.peer.frame(link, payload, FRAGMENT)
        await still_talks(old, link, ada, peer)
        assert ada.stats().frames_ignored == len(pieces) and ada.stats().messages_received == 1


@pytest.mark.parametrize(
    "case",
    json.loads((VECTORS / "reassembly.json").read_text())["cases"],
    ids=lambda case: case["id"],
)
async def test_each_fault_of_a_fragment_costs_that_message_and_not_the_link(case, core):
    """The same cases that the cores are held to, over a socket: what is completed is delivered, and
    then the link still talks."""
    async with dialled(core.name) as (old, link, ada, peer):
        capacity = link.theirs.max_message
        if any(len(step["payload"]) // 2 > capacity for step in case["steps"]):
            pytest.skip(
                f"did not run: one of its frames is longer than the {capacity:,} bytes that "
                "this core announces"
            )
        delivered, refused = [], 0
        expected = classic.Reassembly(max(capacity, 4096))
        for step in case["steps"]:
            payload = bytes.fromhex(step["payload"])
            old.peer.frame(link, payload, FRAGMENT)
            try:
                if (message := expected.add(payload)) is not None:
                    delivered.append(message)
            except Refused:
                refused += 1
        assert await take(ada, len(delivered)) == delivered
        await still_talks(old, link, ada, peer)
        assert ada.stats().frames_ignored == refused


async def test_an_unfinished_message_gives_way_to_the_next():
    """The original sends 16 pieces without a last one when a message was too long for its queue
    (quirk Q7), and then goes on."""
    async with dialled() as (old, link, ada, peer):
        with pytest.raises(Refused, match="BUFFER_FULL"):
            old.peer.offer = SMALL  # what it takes for the limit towards us
            old.peer.send(link, noise(4000), CRITICAL)
        await old.until(lambda: not link.waiting)
        old.peer.send(link, noise(3968), CRITICAL)
        assert await take(ada, 1) == [noise(3968)]
        await still_talks(old, link, ada, peer)


async def test_the_fragments_of_an_original_sender_arrive_as_one_message():
    """Sent by the script as the original sends them: through its queue, 248 bytes each, any
    priority."""
    async with dialled() as (old, link, ada, _peer):
        old.peer.offer = SMALL
        for size in (513, 1000, 3968):
            for priority in (LOW, NORMAL, HIGH, CRITICAL):
                old.peer.send(link, noise(size), priority)
                assert await take(ada, 1) == [noise(size)]


@pytest.mark.parametrize("name", sorted(name for name in LIVE if "dbuf8192" in name))
async def test_the_live_stream_of_fragments_ends_as_it_did_at_an_original_with_room(name):
    """8,000 bytes in 33 pieces: delivered by an original that was given a buffer of 8,192, and by
    us."""
    await replay(LIVE[name], "standard")


async def test_live_streams_that_end_better_here():
    """Compact frames and batches, at which the original fails, are understood; 8,000 bytes in
    fragments fit."""
    async with dialled() as (old, link, ada, peer):
        old.peer.write(link, bytes.fromhex(LIVE["rx-compact"]["sent"]))
        assert await take(ada, 1) == [b"0123456789"]
        old.peer.write(link, bytes.fromhex(LIVE["rx-batch"]["sent"]))
        frame = classic.decode_frame(bytes.fromhex(LIVE["rx-batch"]["sent"]))
        parts, at = [], 0
        while at < len(frame.payload):
            size = int.from_bytes(frame.payload[at : at + 2], "big")
            parts.append(frame.payload[at + 4 : at + 4 + size])
            at += 4 + size
        assert len(parts) > 1 and await take(ada, len(parts)) == parts
        old.peer.write(link, bytes.fromhex(LIVE["rx-frag-8000"]["sent"]))
        assert len((await take(ada, 1))[0]) == 8000
        await still_talks(old, link, ada, peer)


async def test_compact_frames_may_stand_between_full_ones(core):
    """First byte P, second not T: told apart wherever they stand, however the stream is cut."""
    async with dialled(core.name, dribble=3) as (old, link, ada, peer):
        stream = b""
        for number in range(5):
            stream += (
                classic.encode_compact(DATA, 9, number)
                + b"compact %d" % number
                + encode_frame(DATA, b"full %d" % number)
            )
            stream += classic.encode_compact(PING, 0)
        old.peer.write(link, stream)
        assert await take(ada, 10) == [
            text % number for number in range(5) for text in (b"compact %d", b"full %d")
        ]
        await old.until(lambda: classic.PONG in [frame.kind for frame in link.frames])
        await still_talks(old, link, ada, peer)
        # one answers all PINGs that are read in one turn
        assert 1 <= sum(frame.kind == classic.PONG for frame in link.frames) <= 5


# --- pressure -------------------------------------------------------------------------------------


async def test_a_node_that_is_not_read_from_reports_its_pressure_and_its_end():
    """The application takes nothing: a whole CAPABILITY says so at each level, and says so again
    when it has."""
    async with dialled(node={"receive_queue_bytes": 64_000}) as (old, link, ada, _peer):
        sent = 0

        def pressures() -> list[int]:
            return [
                classic.decode_capabilities(frame.payload).buffer_pressure
                for frame in link.frames
                if frame.kind == CAPABILITY
            ]

        while sent < 200 and max(pressures()) < 75:
            old.peer.frame(link, sent.to_bytes(4, "big") + bytes(1000))
            sent += 1
            await asyncio.sleep(0.001)
        assert pressures()[0] == 0 and max(pressures()) >= 75 and pressures() == sorted(pressures())
        with pytest.raises(Refused, match="WOULD_BLOCK"):
            old.peer.send(link, b"x", LOW)
        taken = await take(ada, sent)
        assert [int.from_bytes(data[:4], "big") for data in taken] == list(range(sent))
        await old.until(lambda: pressures()[-1] == 0)
        old.peer.send(link, b"now", LOW)
        assert await take(ada, 1) == [b"now"]


# --- datagrams ------------------------------------------------------------------------------------


async def test_datagrams_go_to_a_classic_peer_on_the_port_that_all_share(free_port):
    """Sizes up to 1,392; the script judges port and length of each. The original itself drops
    nearly all of them (quirk Q3)."""
    port = free_port()
    async with dialled(node={"udp_port": port}, udp_port=port) as (old, _link, ada, peer):
        for size in (0, 1, 1392):
            assert ada.send_datagram(peer, noise(size))
            await old.until(lambda: old.peer.datagrams)
            assert old.peer.datagrams.pop() == (noise(size), ("127.0.0.1", port), port)
        with pytest.raises(pt.MessageTooLarge, match=r"1,392"):
            ada.send_datagram(peer, bytes(1393))
        assert old.peer.dropped == 3 and not old.peer.messages


async def test_datagrams_of_a_classic_peer_arrive(free_port):
    """Whoever is known by its address is heard, whether connected or not; what is malformed is
    dropped."""
    port = free_port()
    async with dialled(node={"udp_port": port}, udp_port=port) as (old, _link, ada, peer):
        old.peer.actions.append(("datagram", b"PTUD\0\0\0\x05", ("127.0.0.1", port)))
        old.peer.actions.append(("datagram", b"PTUX" + bytes(20), ("127.0.0.1", port)))
        for size in (0, 5, 1392):
            old.peer.send_datagram("127.0.0.1", noise(size))
            heard = await ada.receive_datagram(timeout=GUARD)
            assert (heard.peer, heard.data) == (peer, noise(size))


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1024, 1025, 65_536])
async def test_a_stream_of_a_node_is_plain_data_to_a_classic_peer(size):
    """In order, nothing marks it, each part within what was agreed; other messages may stand
    between."""
    async with dialled() as (old, link, _ada, peer):
        shown: list[tuple[int, int]] = []
        async with peer.stream_out(
            noise(size), progress=lambda done, total: shown.append((done, total))
        ) as out:
            assert (await out.finished(timeout=GUARD)).value == "completed"
        await old.until(lambda: sum(map(len, old.peer.messages)) == size)
        assert b"".join(old.peer.messages) == noise(size) and shown[-1] == (size, size)
        assert not any(frame.flags for frame in link.messages)


async def test_a_stream_to_a_peer_of_small_messages_is_cut_smaller():
    """A part is never longer than what goes whole."""
    async with dialled(offer=Capabilities(300, 256, 0, 5)) as (old, link, _ada, peer):
        async with peer.stream_out(noise(5000)) as out:
            await out.finished(timeout=GUARD)
        await old.until(lambda: sum(map(len, old.peer.messages)) == 5000)
        assert b"".join(old.peer.messages) == noise(5000) and not fragments_of(link)


async def test_a_stream_that_is_too_long_is_refused_before_a_byte_is_sent():
    """65,536 bytes are all that the original can send."""
    async with dialled() as (old, link, ada, peer):
        with pytest.raises(pt.MessageTooLarge, match="65,536"):
            async with peer.stream_out(bytes(65_537)):
                pass
        await still_talks(old, link, ada, peer)
        assert len(link.messages) == 1


async def test_a_stream_of_a_classic_peer_is_ordinary_messages():
    """1,024 bytes for each poll, 64 in all; nothing tells it from messages."""
    async with dialled() as (old, link, ada, _peer):
        data = noise(65_536)
        old.peer.send_stream(link, data)
        assert b"".join(await take(ada, 64)) == data
        assert old.peer.events[-1][::2] == ("stream", "done")


# --- PING, REJECT ---------------------------------------------------------------------------------


async def test_a_ping_measures_the_way_to_a_classic_peer_and_back():
    """It answers with an empty PONG."""
    async with dialled() as (_old, link, _ada, peer):
        assert 0 < await peer.ping(timeout=GUARD) < GUARD
        assert peer.latency.samples >= 1 and peer.latency.quality in (25, 50, 75, 90, 100)
        assert [frame for frame in link.frames if frame.kind == PING]


async def test_a_classic_peer_that_never_answers_a_ping_is_not_worse_off():
    """It waits in vain, and everything else goes on."""
    async with dialled(pongs=False) as (old, link, ada, peer):
        with pytest.raises(pt.Timeout):
            await peer.ping(timeout=0.05)
        await still_talks(old, link, ada, peer)


@pytest.mark.parametrize("reason", list(pt.RejectReason))
async def test_a_classic_peer_that_is_rejected_is_told_why_and_closed(reason):
    """The original ignores the reason and sees its connection closed; it must not be left
    waiting."""
    async with pt.Node("ada", **loopback()) as ada, original() as old:
        events = ada.events()
        link = old.peer.call(ada.address, old.now())
        async with asyncio.timeout(GUARD):
            async for event in events:
                if isinstance(event, pt.ConnectionRequested):
                    event.reject(reason)
                    break
        await old.until(lambda: link.closed)
        rejections = [frame.payload for frame in link.frames if frame.kind == REJECT]
        assert rejections == [bytes([reason])]
        await events.aclose()
