"""Compatibility with the original, over real sockets: a node and the scripted classic peer
(classic) on loopback.

The script is strict: each byte that a node sends here is one that the original knows, or the test
fails. Sections follow the description of the protocol: discovery, connections, capabilities,
frames, fragments, faults, quirks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import zlib
from typing import Any

import classic
import pytest
from classic import (
    CAPABILITY,
    DATA,
    DISCONNECT,
    PONG,
    Capabilities,
    ClassicPeer,
    SimulatedSockets,
    encode_frame,
    serving,
)
from kit.meeting import (
    LIVE,
    dialled,
    events_until,
    every_type,
    original,
    replay,
    still_talks,
    take,
    told,
)
from kit.nodes import announcing, loopback
from kit.waiting import GUARD, until

import peertalk as pt
from peertalk import sim
from peertalk.protocol import connections as policy

# --- discovery ------------------------------------------------------------------------------------


async def test_each_discovers_the_other_and_the_node_dials(free_port):
    """A classic peer never dials who is not dialled from its callback, and forgets it at once
    (quirk Q1): the node must do it."""
    port = free_port()
    async with (
        original(discovery=True, discovery_port=port, forgets_at_once=True) as old,
        pt.Node("ada", **announcing(port)) as ada,
    ):
        peer = await ada.wait_for("classic", timeout=GUARD)
        assert (
            peer.classic
            and peer.address == old.address
            and peer.id == f"127.0.0.2:{old.peer.tcp_port}"
        )
        link = await old.link()
        found = next(event for event in old.peer.events if event[0] == "discovered")
        assert (found[2].name, found[2].port, found[2].flags, found[2].transports & 1) == (
            b"ada",
            ada.address[1],
            0,
            1,
        )
        assert not link.dialled
        await until(lambda: peer.connected)
        await still_talks(old, link, ada, peer)
        assert len(old.peer.links) == 1


async def test_a_classic_peer_that_dials_when_it_hears_the_first_announcement_is_let_in(free_port):
    """A dial that fails is never tried again (quirk Q5): a node has to listen before it announces
    itself."""
    port = free_port()
    async with (
        original(discovery=True, discovery_port=port, dials=True) as old,
        pt.Node("ada", **announcing(port)) as ada,
    ):
        await old.until(lambda: any(link.up and link.dialled for link in old.peer.links))
        assert not any(known is not None and known.state == "failed" for known in old.peer.slots)
        link = next(link for link in old.peer.links if link.dialled)
        old.peer.frame(link, b"hello")
        assert (await ada.receive(timeout=GUARD)).data == b"hello"


async def test_a_question_is_answered_with_an_announcement(free_port):
    """No original asks, but each one answers."""
    port = free_port()
    async with (
        original(discovery=True, discovery_port=port, dials=False) as old,
        pt.Node("ada", **announcing(port, announce_interval=10.0)),
    ):

        def heard() -> int:
            return sum(packet.kind == classic.ANNOUNCE for packet, source in old.peer.packets)

        await old.until(heard)
        before = heard()
        old._broadcast(
            classic.encode_discovery(classic.Packet(classic.QUERY, old.peer.tcp_port, b"classic"))
        )
        await old.until(lambda: heard() > before)


async def test_a_node_leaves_politely_disconnect_then_goodbye(free_port):
    """A GOODBYE before the connection is closed leaves a classic peer spinning on it (quirk Q4);
    the script complains about it."""
    port = free_port()
    async with original(discovery=True, discovery_port=port) as old:
        async with pt.Node("ada", **announcing(port)) as ada:
            peer = await ada.wait_for("classic", timeout=GUARD)
            await peer.send(b"last words")
            link, listening = await old.link(), ada.address[1]
        await old.until(lambda: old.peer.packets[-1][0].kind == classic.GOODBYE)
        assert (
            link.closed
            and told(link) == [(CAPABILITY, 0), (DATA, 0), (DISCONNECT, 1)]
            and old.peer.messages == [b"last words"]
        )
        assert old.peer.packets[-1][0].port == listening


@pytest.mark.parametrize("polite", [True, False])
async def test_a_classic_peer_that_leaves_is_lost_in_whatever_order_it_says_so(free_port, polite):
    """GOODBYE after DISCONNECT as it should be, or GOODBYE alone from a program that forgot its
    connection: the link is believed, not the packet."""
    port = free_port()
    async with pt.Node("ada", **announcing(port)) as ada:
        events = ada.events()
        async with original(discovery=True, discovery_port=port) as old:
            peer = await ada.wait_for("classic", timeout=GUARD)
            link = await old.link()
            if polite:
                old.leave()
            else:
                old.peer.stop()
                await still_talks(old, link, ada, peer)
        async with asyncio.timeout(GUARD):
            kinds = []
            async for event in events:
                kinds.append(type(event))
                if isinstance(event, pt.PeerLost):
                    assert event.peer is peer and event.reason is pt.LostReason.GOODBYE
                    break
        assert kinds.index(pt.PeerDisconnected) < kinds.index(pt.PeerLost)
        await events.aclose()


async def test_bytes_of_ours_behind_the_crc_do_not_reach_what_a_classic_peer_reads(free_port):
    """Its buffer has 48 bytes: a name of 31 and our trailer are more, and the packet must still be
    whole for it."""
    port = free_port()
    name = "a name that has 31 bytes in all"
    assert len(name) == 31
    async with (
        original(discovery=True, discovery_port=port) as old,
        pt.Node(name, **announcing(port)),
    ):
        await old.until(lambda: old.peer.packets)
        assert old.peer.packets[0][0].name == name.encode()


# --- connections ----------------------------------------------------------------------------------


async def test_a_node_dials_a_classic_peer_and_both_talk(core):
    """One CAPABILITY from each side at once, and no other handshake; sequence numbers of DATA count
    from 0."""
    async with dialled(core.name) as (old, link, ada, peer):
        assert peer.classic and peer.connected
        for number in range(300):
            await peer.send(number.to_bytes(2, "big"))
        await old.until(lambda: len(old.peer.messages) == 300)
        assert old.peer.messages == [number.to_bytes(2, "big") for number in range(300)]
        assert [frame.sequence for frame in link.messages] == [
            number & 0xFF for number in range(300)
        ]
        assert link.frames[0].kind == CAPABILITY and link.frames[0].sequence == 0
        for number in range(300):
            old.peer.frame(link, number.to_bytes(2, "big"))
        assert await take(ada, 300) == [number.to_bytes(2, "big") for number in range(300)]


async def test_a_classic_peer_dials_a_node_and_both_talk(core):
    """It brings no name and no id; whoever answers it answers the right one."""
    async with pt.Node("ada", **loopback(core=core.name)) as ada, original() as old:
        link = old.peer.call(ada.address, old.now())
        await old.link()
        old.peer.send(link, b"who are you?")
        message = await ada.receive(timeout=GUARD)
        assert (
            message.data == b"who are you?"
            and message.peer.classic
            and message.peer.address[0] == "127.0.0.2"
        )
        await message.peer.send(b"ada")
        assert await old.message() == b"ada"


async def test_data_may_come_before_any_capability():
    """A classic peer need not wait for the other side's CAPABILITY."""
    async with pt.Node("ada", **loopback()) as ada, original(greets=False) as old:
        link = old.peer.call(ada.address, old.now())
        await old.until(lambda: link.up)
        old.peer.frame(link, b"early")
        assert await take(ada, 1) == [b"early"]
        old.peer.report(link)
        await still_talks(old, link, ada, next(iter(ada.peers.values())))


async def test_both_dial_at_once_and_nothing_is_lost_on_either_connection(free_port):
    """The original resolves nothing: two connections stay, and it may send on both; the node sends
    each message once."""
    port = free_port()
    async with (
        pt.Node("ada", **announcing(port)) as ada,
        original(discovery=True, discovery_port=port, dials=True) as old,
    ):
        await old.until(lambda: sum(link.theirs is not None for link in old.peer.links) >= 1)
        peer = await ada.wait_for("classic", timeout=GUARD)
        await peer.connect(timeout=GUARD)
        links = [link for link in old.peer.links if link.up]
        for number in range(20):
            for link in links:
                old.peer.frame(link, f"{links.index(link)}:{number}".encode())
        came = await take(ada, 20 * len(links))
        for index in range(len(links)):
            assert [data for data in came if data.startswith(b"%d:" % index)] == [
                f"{index}:{number}".encode() for number in range(20)
            ]
        for number in range(20):
            await peer.send(b"%d" % number)
        await old.until(lambda: len(old.peer.messages) >= 20)
        assert old.peer.messages == [b"%d" % number for number in range(20)]


async def test_a_full_table_closes_the_connection_and_the_node_says_so():
    """16 slots taken: the original accepts and closes without a byte. The caller must hear it, and
    not wait."""
    async with (
        original(slots=1) as old,
        pt.Node("ada", **loopback()) as ada,
        pt.Node("bob", **loopback()) as bob,
    ):
        await ada.connect(old.address, timeout=GUARD)
        with pytest.raises(pt.ConnectionClosed, match=r"127\.0\.0\.2:"):
            await bob.connect(old.address, timeout=GUARD)


@pytest.mark.parametrize("sequence", [0, 7, 255])
async def test_a_classic_peer_disconnects_with_whatever_number(sequence):
    """DISCONNECT carries the next number of DATA, on a classic Mac 0 (quirk Q16). It is closed
    without an answer, and is no fault."""
    async with dialled() as (old, link, ada, peer):
        events = ada.events()
        old.peer.frame(link, b"bye")
        old.peer.write(link, encode_frame(DISCONNECT, sequence=sequence))
        assert await take(ada, 1) == [b"bye"]
        await old.until(lambda: link.closed)
        assert told(link) == [(CAPABILITY, 0)]
        async with asyncio.timeout(GUARD):
            ended = [event async for event in events_until(events, pt.PeerDisconnected)][-1]
        assert ended.error is None and not peer.connected and ada.stats().bad_frames == 0
        await events.aclose()


@pytest.mark.parametrize("core", ["standard", "lowmem", "reference"])
async def test_what_leaves_in_the_turn_that_brings_a_disconnect_is_sent(core):
    """It left before anybody here had read that the other side goes: told in the other order, its
    outcome would be unknown."""
    async with dialled(core) as (old, link, ada, peer):
        await still_talks(old, link, ada, peer)
        events = ada.events()
        number = peer.send_nowait(b"last words")
        old._sockets[link].sendall(encode_frame(DISCONNECT))  # the node's next turn has both
        async for event in events:
            if isinstance(event, pt.Sent | pt.Failed) and event.last == number:
                assert isinstance(event, pt.Sent), event
                break
        assert await old.message() == b"last words"


async def test_a_node_disconnects_with_the_next_number_and_closes():
    """What was accepted is sent first."""
    async with dialled() as (old, link, _ada, peer):
        for number in range(3):
            await peer.send(b"%d" % number)
        await peer.disconnect(timeout=GUARD)
        await old.until(lambda: link.closed)
        assert told(link) == [(CAPABILITY, 0), (DATA, 0), (DATA, 1), (DATA, 2), (DISCONNECT, 3)]


async def test_a_classic_peer_that_just_closes_is_a_lost_connection():
    """Either side may end so."""
    async with dialled() as (old, link, ada, peer):
        old.peer._close(link)
        await until(lambda: not peer.connected)
        assert ada.stats().bad_frames == 0


# --- capabilities ---------------------------------------------------------------------------------

entry = classic.encode_entries
BODIES = {
    # bytes of a CAPABILITY -> the largest message towards whoever said so
    "as the original sends it": (classic.encode_capabilities(Capabilities(8192, 1024, 0, 5)), 8192),
    "1,024": (classic.encode_capabilities(Capabilities(1024, 1024, 0, 5)), 1024),
    "empty": (b"", 512),
    "nothing but flags": (entry((4, b"\0\5")), 512),
    "below the least": (entry((1, b"\0\1")), 256),
    "above the most": (entry((1, b"\xff\xff")), 8192),
    "the last one wins": (entry((1, b"\x10\0"), (1, b"\x04\0")), 1024),
    "in another order": (entry((4, b"\0\5"), (3, b"\0"), (2, b"\4\0"), (1, b"\x08\0")), 2048),
    "a value that is too long": (entry((1, b"\x08\0more")), 2048),
    "a value that is too short": (entry((1, b"\x20")), 512),
    "unknown types": (entry((0, b"?"), (9, b""), (1, b"\x08\0"), (0x7F, bytes(200))), 2048),
    "a single byte at the end": (entry((1, b"\x08\0")) + b"\1", 2048),
}


@pytest.mark.parametrize("said", BODIES)
async def test_what_a_classic_peer_announces_is_the_limit_towards_it(said):
    """Defaults, clamps, order, unknown, short and long entries."""
    body, limit = BODIES[said]
    async with dialled(body=body) as (old, link, _ada, peer):
        assert peer.capabilities.max_message == limit
        await peer.send(bytes(limit))
        assert len(await old.message()) == limit
        assert [(frame.flags, len(frame.payload)) for frame in link.messages] == [(0, limit)]


async def test_where_ours_is_the_smaller_limit_it_rules():
    """A lowmem node takes and sends 1,024 bytes, though the other side could do with 8,192; it says
    so in its CAPABILITY, and refuses what is longer."""
    async with dialled("lowmem", offer=Capabilities(8192, 1024, 0, 5)) as (old, link, ada, peer):
        assert peer.capabilities.max_message == 8192
        ours = [
            classic.decode_capabilities(frame.payload)
            for frame in link.frames
            if frame.kind == CAPABILITY
        ]
        assert ours[0].max_message == 1024
        await peer.send(bytes(1024))
        assert len(await old.message()) == 1024
        with pytest.raises(pt.MessageTooLarge, match="1,024"):
            await peer.send(bytes(1025))
        old.peer.frame(link, bytes(1024))
        assert await take(ada, 1) == [bytes(1024)]


async def test_before_any_capability_the_limit_is_512_and_a_late_one_raises_it(monkeypatch):
    """A node waits a moment for it and then goes on: some never send one."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.05)
    async with original(greets=False) as old, pt.Node("ada", **loopback()) as ada:
        peer = await ada.connect(old.address, timeout=GUARD)
        link = await old.link()
        assert peer.capabilities is None
        await peer.send(bytes(512))
        assert len(await old.message()) == 512
        old.peer.report(link, max_message=4096)
        await until(lambda: peer.capabilities is not None)
        await peer.send(bytes(4096))
        assert len(await old.message()) == 4096
        assert [(frame.flags, len(frame.payload)) for frame in link.messages] == [
            (0, 512),
            (0, 4096),
        ]


async def test_each_capability_replaces_the_one_before_wholly():
    """What the next one leaves out falls back to the defaults."""
    async with dialled() as (old, link, ada, peer):
        for body, limit in BODIES.values():
            old.peer.frame(link, body, kind=CAPABILITY)
            old.peer.frame(link, b"after it")
            assert await take(ada, 1) == [b"after it"]
            assert peer.capabilities.max_message == limit
            assert vars(classic.decode_capabilities(body)) == {
                "max_message": peer.capabilities.max_message,
                "preferred_chunk": peer.capabilities.preferred_chunk,
                "buffer_pressure": peer.capabilities.pressure,
                "flags": peer.capabilities.flags,
            }


async def test_a_capability_that_runs_past_its_end_is_ignored_whole():
    """No part of it counts, and the link lives."""
    async with dialled() as (old, link, ada, peer):
        for bad in (
            entry((1, b"\x04\0")) + b"\x02\x05\x00",
            entry((1, b"\x04\0")) + b"\x80\xff",
            b"\x01\x02\x04",
        ):
            before = ada.stats().frames_ignored
            old.peer.frame(link, bad, kind=CAPABILITY)
            await until(lambda before=before: ada.stats().frames_ignored == before + 1)
        assert peer.capabilities.max_message == 8192
        await still_talks(old, link, ada, peer)


# --- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dribble", [0, 1, 7, 1000])
async def test_frames_of_all_types_come_however_the_stream_is_cut(dribble):
    """Byte by byte, and many in one segment."""
    async with dialled(dribble=dribble) as (old, link, ada, peer):
        if dribble:
            old.socket_of(link).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream, messages = every_type(link)
        if dribble == 1:  # all but the frame of 8,192 bytes, which would take a poll for each
            large = encode_frame(DATA, messages[2], 0, 3)
            stream, messages = stream.replace(large, b""), messages[:2] + messages[3:]
        old.peer.write(link, stream)
        assert await take(ada, len(messages)) == messages
        await old.until(lambda: PONG in [frame.kind for frame in link.frames])
        assert not ada.stats().bad_frames
        await still_talks(old, link, ada, peer)
        # one answers all PINGs that are read in one turn; how many that are is up to the network
        assert 1 <= sum(frame.kind == PONG for frame in link.frames) <= 3


SIZES = [0, 1, 511, 512, 513, 3968, 4096, 8000, 8192]


async def test_messages_of_every_size_go_whole_once_8192_are_agreed():
    """Between two that offer 8,192 nothing is fragmented; one byte more is refused before anything
    is sent."""
    async with dialled() as (old, link, ada, peer):
        for size in SIZES:
            message = random.Random(size).randbytes(size)
            await peer.send(message)
            assert await old.message() == message
            old.peer.frame(link, message)
            assert await take(ada, 1) == [message]
        frames = len(link.messages)
        with pytest.raises(pt.MessageTooLarge, match=r"8,193 bytes .*the limit is 8,192"):
            await peer.send(bytes(8193))
        await still_talks(old, link, ada, peer)
        assert len(link.messages) == frames + 1 and not any(frame.flags for frame in link.frames)


# --- faults ---------------------------------------------------------------------------------------

GOOD = encode_frame(DATA, b"good")
FAULTS = {
    "magic": (b"XTMG" + GOOD[4:], pt.errors.BadMagic),
    "version": (GOOD[:4] + b"\2" + GOOD[5:], pt.errors.BadVersion),
    "type 0": (GOOD[:5] + b"\0" + GOOD[6:], pt.errors.ProtocolError),
    "type 8": (GOOD[:5] + b"\x08" + GOOD[6:], pt.errors.ProtocolError),
    "length": (classic.encode_header(DATA, 8193), pt.errors.ProtocolError),
    "crc": (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), pt.errors.BadCrc),
    "crc with its bytes swapped": (GOOD[:-2] + GOOD[:-3:-1], pt.errors.BadCrc),
}


@pytest.mark.parametrize("kind", FAULTS)
async def test_a_frame_fault_closes_the_link_at_once_and_nothing_else(core, kind):
    """What came before it is delivered, nothing is answered, it is counted and reported, and
    another classic peer does not notice."""
    bad, error = FAULTS[kind]
    async with (
        dialled(core.name) as (old, link, ada, peer),
        original(host="127.0.0.3") as bystander,
    ):
        witness = await ada.connect(bystander.address, timeout=GUARD)
        beside = await bystander.link()
        events = ada.events()
        old.peer.write(link, GOOD + bad + GOOD)
        assert await take(ada, 1) == [b"good"]
        async with asyncio.timeout(GUARD):
            fault = [event async for event in events_until(events, pt.LinkFault)][-1]
        assert isinstance(fault.error, error) and fault.peer is peer
        await old.until(lambda: link.closed)
        assert told(link) == [(CAPABILITY, 0)]
        assert ada.stats().bad_frames == 1
        await still_talks(bystander, beside, ada, witness)
        await events.aclose()
        again = await ada.connect(old.address, timeout=GUARD)
        await still_talks(old, await old.link(), ada, again)


@pytest.mark.parametrize("cut", [1, 9, 10, 13, 15])
async def test_an_end_within_a_frame_is_a_lost_connection(cut):
    """A frame can be cut by a short write of the original (quirks Q11, Q13): lost, not delivered,
    and no reason to stop."""
    async with dialled() as (old, link, ada, peer):
        old.peer.write(link, GOOD + GOOD[:cut])
        assert await take(ada, 1) == [b"good"]
        old.perform()
        old.peer._close(link)
        await until(lambda: not peer.connected)
        again = await ada.connect(old.address, timeout=GUARD)
        await still_talks(old, await old.link(), ada, again)


async def test_a_cut_frame_in_the_middle_of_a_stream_is_a_lost_connection():
    """The rest is read as payload of the cut frame until its checksum is wrong: what came before is
    delivered, what follows is not invented."""
    async with dialled() as (old, link, ada, peer):
        old.peer.write(link, GOOD + encode_frame(DATA, bytes(100))[:60] + GOOD * 10)
        assert await take(ada, 1) == [b"good"]
        await old.until(lambda: link.closed)
        assert (
            ada.stats().bad_frames == 1
            and ada.stats().messages_received == 1
            and not peer.connected
        )


# --- live streams ---------------------------------------------------------------------------------

UNDERSTOOD = {"rx-compact", "rx-batch", "rx-frag-8000", "rx-partial"}
"""Those that end otherwise here than at the original, by intent: two are understood, one fits, one
is not waited for without limit."""
AS_RECORDED = sorted(set(LIVE) - UNDERSTOOD)


@pytest.mark.parametrize("name", [name for name in AS_RECORDED if "frag" not in name])
async def test_live_streams_end_as_they_did_at_the_original(name, core):
    """Recorded at the running original: the same bytes, the same messages, the same replies, the
    same end."""
    await replay(LIVE[name], core.name)


def test_no_live_stream_is_left_out():
    """A new recording has to be put into one of the two groups."""
    assert UNDERSTOOD <= set(LIVE) and len(AS_RECORDED) >= 10


# --- what takes time: on a simulated network, where it costs none ---------------------------------


async def simulated(net: sim.Network, **options: Any) -> SimulatedSockets:
    return SimulatedSockets(ClassicPeer(**options), net.host("se"), lambda: net.clock.seconds)


def test_a_frame_that_stays_incomplete_is_waited_for_as_long_as_a_link_may_be_silent(c_core):
    """The original waits without limit. Here it costs the link of a peer that has greeted, after
    link_timeout: what came before is delivered, and the rest of the node does not notice."""

    async def main(net: sim.Network) -> tuple[bytes, float]:
        old = await simulated(net, pongs=False)  # an answer would be read as the rest of the frame
        async with serving(old):
            ada = await net.node("ada", core=c_core.name, discovery=False)
            link = old.peer.call(ada.address, old.now())
            await old.link()
            old.peer.write(link, bytes.fromhex(LIVE["rx-partial"]["sent"]))
            message = await ada.receive(timeout=1)
            began = net.clock.seconds
            await old.until(lambda: link.closed)
            took = net.clock.seconds - began
            again = old.peer.call(ada.address, old.now())
            await old.link()
            old.peer.frame(again, b"once more")
            assert (await ada.receive(timeout=1)).data == b"once more"
            return message.data, took

    data, took = sim.run(main)
    assert {"len": len(data), "crc32": f"{zlib.crc32(data):08x}"} == LIVE["rx-partial"]["expect"][
        "delivered"
    ][0]
    assert 14.9 < took < 15.2


@pytest.mark.parametrize("interval", [5.0, 10.0])
def test_a_node_announces_itself_at_least_every_ten_seconds(interval):
    """Classic peers forget who was silent for thirty."""

    async def main(net: sim.Network) -> list[float]:
        old = await simulated(net)
        heard: list[float] = []
        async with serving(old):
            await net.node("ada", announce_interval=interval)
            while net.clock.seconds < 100:
                await old.until(lambda: len(old.peer.packets) > len(heard))
                heard.append(net.clock.seconds)
        return heard

    heard = sim.run(main)
    assert max(later - earlier for earlier, later in itertools.pairwise(heard)) <= 10.05


def test_a_classic_peer_is_forgotten_after_thirty_silent_seconds_but_never_while_it_is_connected(
    c_core,
):
    """While a link is open it is believed, and packets are not; afterwards silence counts."""

    async def main(net: sim.Network) -> tuple[bool, float]:
        old = await simulated(net)
        async with serving(old):
            ada = await net.node("ada", core=c_core.name)
            peer = await ada.wait_for("classic", timeout=30)
            link = await old.link()
            old.peer._running = False  # no further announcement
            await asyncio.sleep(120)
            connected = peer.connected
            old.peer.disconnect(link)
            began = net.clock.seconds
            async with ada.events() as events:
                async for event in events_until(events, pt.PeerLost):
                    last = event
            assert last.peer is peer and last.reason is pt.LostReason.TIMEOUT
            return connected, net.clock.seconds - began

    connected, took = sim.run(main)
    assert connected and 29.9 < took < 30.2


def test_what_a_connection_owed_when_it_was_given_up_does_not_arrive_behind_later_ones(
    c_core,
):
    """A cable that is out for longer than link_timeout ends the connection; when it is back, the
    system must not go on with the old one beside the new: the receiver has no means to tell which
    came first."""

    async def main(net: sim.Network) -> list[bytes]:
        old = await simulated(net)
        async with serving(old):
            ada = await net.node("ada", core=c_core.name, discovery=False)
            peer = await ada.connect(old.address, timeout=10)
            await old.link()
            net.cut("ada", "se")
            await peer.send(b"into the cut")
            await until_virtual(lambda: not peer.connected)
            net.heal()
            await (await ada.connect(old.address, timeout=10)).send(b"later")
            await old.until(lambda: b"later" in old.peer.messages)
            await asyncio.sleep(120)
            return old.peer.messages

    assert sim.run(main) == [b"later"]


async def until_virtual(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_a_bad_network_changes_nothing_of_what_arrives(c_core, loss):
    """Latency, loss, order: TCP repairs them below, and both sides must live with when it does."""

    async def main(net: sim.Network) -> tuple[list[bytes], list[bytes]]:
        old = await simulated(net)
        async with serving(old):
            ada = await net.node("ada", core=c_core.name, discovery=False)
            net.link(
                "ada",
                "se",
                latency="80ms",
                jitter="40ms",
                loss=loss,
                duplicate=loss / 2,
                reorder=loss / 2,
                bandwidth="30KB/s",
            )
            peer = await ada.connect(old.address, timeout=60)
            link = await old.link()
            for number in range(100):
                old.peer.frame(link, b"%d" % number + bytes(number * 3))
            for number in range(100):
                await peer.send(b"%d" % number + bytes(number * 3), timeout=600)
            await old.until(lambda: len(old.peer.messages) == 100)
            return old.peer.messages, [(await ada.receive(timeout=600)).data for _ in range(100)]

    expected = [b"%d" % number + bytes(number * 3) for number in range(100)]
    assert sim.run(main, seed=3) == (expected, expected)


# --- quirks ---------------------------------------------------------------------------------------


async def test_a_reader_that_stops_loses_nothing_of_what_was_accepted():
    """The original drops what its own full socket does not take (quirk Q6); towards it, nothing is
    dropped and memory is bounded."""
    async with dialled(node={"send_queue_size": 8}) as (old, link, _ada, peer):
        old.quiet.add(link)
        sent = 0
        with contextlib.suppress(pt.Timeout):
            while True:
                await peer.send(sent.to_bytes(4, "big") + bytes(8000), timeout=0.2)
                sent += 1
        with pytest.raises(pt.WouldBlock):
            peer.send_nowait(bytes(8000))
        old.quiet.clear()
        await old.until(lambda: len(old.peer.messages) == sent)
        assert [int.from_bytes(message[:4], "big") for message in old.peer.messages] == list(
            range(sent)
        )


async def test_compact_mode_is_offered_by_it_and_used_by_nobody():
    """Both sides of the original agree on compact frames, and would not understand one (quirk
    Q10)."""
    async with dialled(offer=Capabilities(8192, 1024, 0, 7)) as (old, link, ada, peer):
        for number in range(100):
            await peer.send(b"%d" % number, no_delay=number % 7 == 0)
        for number in range(100):
            assert await old.message() == b"%d" % number
        await still_talks(old, link, ada, peer)


async def test_two_classic_peers_of_one_name_are_two_peers(free_port):
    """Names are cut to 30 bytes (quirk Q9) and need not be unique: address and port are the key."""
    port = free_port()
    name = "a name that is too long for it!"
    async with (
        pt.Node("ada", **announcing(port)) as ada,
        original(name=name, discovery=True, discovery_port=port) as one,
        original(name=name, host="127.0.0.3", discovery=True, discovery_port=port) as other,
    ):
        await until(lambda: sum(peer.connected for peer in ada.peers.values()) == 2)
        assert {peer.name for peer in ada.peers.values()} == {name[:30]}
        for old in (one, other):
            peer = next(peer for peer in ada.peers.values() if peer.address == old.address)
            await still_talks(old, await old.link(), ada, peer)


async def test_a_peer_that_comes_back_under_another_port_is_a_peer_of_its_own(free_port):
    """Known (address, port) pairs keep the name that they had (quirk Q14): whoever changes it must
    change the port, and is somebody else then."""
    port = free_port()
    async with pt.Node("ada", **announcing(port)) as ada:
        async with original(name="before", discovery=True, discovery_port=port) as old:
            await ada.wait_for("before", timeout=GUARD)
            await old.link()
            old.leave()
            await until(lambda: "before" not in [peer.name for peer in ada.peers.values()])
        async with original(name="after", discovery=True, discovery_port=port) as old:
            peer = await ada.wait_for("after", timeout=GUARD)
            link = await old.link()
            await until(lambda: peer.connected)
            await still_talks(old, link, ada, peer)
