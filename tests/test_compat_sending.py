"""Compatibility with the original, how a node sends: fragments, what is refused before a byte
leaves, priorities, newest-wins, and the pressure of the other side. Real sockets and the strict
script, as in test_compat.py."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import classic
import pytest
from classic import CAPABILITY, DATA, FIRST, FRAGMENT, Capabilities, encode_frame
from kit.meeting import dialled, every_type, fragments_of, noise, original, still_talks, take, told
from kit.nodes import loopback
from kit.waiting import GUARD, until

import peertalk as pt
from peertalk.protocol import connections as policy

SMALL = Capabilities(512, 256, 0, 5)


# --- fragments that leave -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [511, 512, 513, 760, 3968, 4096])
@pytest.mark.parametrize("limit", [256, 512, 1024])
async def test_longer_messages_leave_in_fragments_and_arrive_whole(limit, size, core):
    """Above what the classic peer takes whole, and up to its 4,096. The script checks each piece;
    sequence numbers go on through them."""
    async with dialled(core.name, offer=Capabilities(limit, 256, 0, 5)) as (old, link, ada, peer):
        if size > peer.max_message:
            with pytest.raises(pt.MessageTooLarge):
                await peer.send(noise(size))
            return
        await peer.send(b"before")
        await peer.send(noise(size))
        await peer.send(b"behind")
        assert [await old.message() for _ in range(3)] == [b"before", noise(size), b"behind"]
        assert bool(fragments_of(link)) == (size > limit)
        assert [frame.sequence for frame in link.messages] == list(range(len(link.messages)))
        await still_talks(old, link, ada, peer)


async def test_before_any_capability_longer_messages_leave_in_fragments(monkeypatch):
    """512 bytes go whole to one that has said nothing, up to 4,096 in pieces."""
    monkeypatch.setattr(policy, "GREETING_TIME", 0.05)
    async with original(greets=False) as old, pt.Node("ada", **loopback()) as ada:
        peer = await ada.connect(old.address, timeout=GUARD)
        link = await old.link()
        for size in (512, 513, 4096):
            await peer.send(noise(size))
            assert await old.message() == noise(size)
        assert len(fragments_of(link)) == 3 + 17
        assert {len(data) for _, data in fragments_of(link)} == {248, 17, 128}


async def test_messages_in_fragments_get_one_outcome_each_and_numbers_of_their_own():
    """Each fragmented message is a message: one Sent, and a message id that the one before did not
    have."""
    async with dialled(offer=SMALL) as (old, link, ada, peer):
        events = ada.events()
        numbers = [await peer.send(noise(size)) for size in (2000, 100, 600, 2000)]
        assert [await old.message() for _ in numbers] == [
            noise(size) for size in (2000, 100, 600, 2000)
        ]
        sent: list[int] = []
        async with asyncio.timeout(GUARD):
            while sorted(sent) != numbers:
                event = await anext(events)
                if isinstance(event, pt.Sent):
                    sent += range(event.first, event.last + 1)
        ids = [piece.message for piece, _ in fragments_of(link) if piece.flags & FIRST]
        assert len(set(ids)) == 3
        await events.aclose()


async def test_a_limit_that_changes_in_the_middle_of_a_backlog_is_kept():
    """A repeated CAPABILITY may lower it: what has not left goes in smaller pieces, in order, and
    each message once."""
    async with dialled() as (old, link, _ada, peer):
        old.quiet.add(link)
        sent = []
        with contextlib.suppress(pt.WouldBlock):
            for number in range(10_000):
                peer.send_nowait(noise(3000 + number % 50))
                sent.append(3000 + number % 50)
        old.peer.report(link, max_message=512)
        await until(lambda: peer.capabilities.max_message == 512)
        link.offers[:] = [8192]  # what had left by then was within the old limit
        old.quiet.clear()
        await peer.send(noise(1000))
        await old.until(lambda: len(old.peer.messages) == len(sent) + 1)
        assert old.peer.messages == [noise(size) for size in sent] + [noise(1000)]
        assert fragments_of(link)[-5][1] == noise(1000)[:248] or len(fragments_of(link)) >= 5


# --- what is refused, before a byte is sent -------------------------------------------------------


REFUSED = {
    "above 8,192 to one that takes 8,192": (Capabilities(8192, 1024, 0, 5), 8193, "8,192"),
    "above 4,096 to one that takes 1,024": (Capabilities(1024, 1024, 0, 5), 4097, "4,096"),
    "above 4,096 to one that takes 256": (Capabilities(256, 1024, 0, 5), 8000, "4,096"),
    "above 5,000 to one that takes 5,000": (Capabilities(5000, 1024, 0, 5), 5001, "5,000"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_message_that_is_too_long_is_refused_with_peer_and_limit_and_nothing_leaves(case):
    """MessageTooLarge names whom and how much; the classic peer sees no byte of it."""
    offer, size, limit = REFUSED[case]
    async with dialled(offer=offer) as (old, link, ada, peer):
        for send in (peer.send(bytes(size)), peer.send_many([bytes(size)])):
            with pytest.raises(pt.MessageTooLarge, match=f"the limit is {limit}") as raised:
                await send
            assert raised.value.peer == peer.name and repr(peer.name) in str(raised.value)
        with pytest.raises(pt.MessageTooLarge):
            peer.send_nowait(bytes(size))
        assert peer.accepted == 0
        await still_talks(old, link, ada, peer)
        assert told(link) == [(CAPABILITY, 0), (DATA, 0)]
        assert link.messages[0].payload == b"still here"


async def test_before_any_capability_more_than_4096_bytes_are_refused():
    """Its reassembly has room for no more, unless it says so, for which its time is over here."""
    options = loopback(connect_timeout=policy.GREETING_TIME)
    async with original(greets=False) as old, pt.Node("ada", **options) as ada:
        peer = await ada.connect(old.address, timeout=GUARD)
        link = await old.link()
        with pytest.raises(pt.MessageTooLarge, match="the limit is 4,096"):
            await peer.send(bytes(4097))
        await peer.send(b"short")
        assert await old.message() == b"short" and len(link.messages) == 1


# --- priorities -----------------------------------------------------------------------------------

P = pt.Priority


async def fill(old: Any, link: classic.Link, peer: Any) -> int:
    """Send LOW messages until no more are taken; the reader has stopped. How many."""
    old.quiet.add(link)
    count = 0
    with contextlib.suppress(pt.WouldBlock):
        while True:
            peer.send_nowait(b"low %d" % count + bytes(4000), priority=P.LOW)
            count += 1
            if count % 50 == 0:
                await asyncio.sleep(0.001)
    return count


async def test_higher_classes_overtake_a_backlog_and_each_keeps_its_order():
    """The original serves the highest class that waits. None starves, and order within a class is
    kept whatever the size."""
    async with dialled() as (old, link, _ada, peer):
        backlog = await fill(old, link, peer)
        sending = [
            asyncio.create_task(
                peer.send(
                    b"%s %d" % (cls.name.encode(), number) + bytes(5000 * (number % 2)),
                    priority=cls,
                )
            )
            for number in range(20)
            for cls in (P.NORMAL, P.HIGH, P.CRITICAL)
        ]
        await asyncio.sleep(0.01)
        old.quiet.clear()
        await old.until(lambda: len(old.peer.messages) == backlog + 60)
        await asyncio.gather(*sending)
        names = [message.rstrip(b"\0").decode() for message in old.peer.messages]
        for cls, count in (("low", backlog), ("NORMAL", 20), ("HIGH", 20), ("CRITICAL", 20)):
            assert [name for name in names if name.split()[0] == cls] == [
                f"{cls} {number}" for number in range(count)
            ]
        assert names.index("CRITICAL 19") < names.index(f"low {backlog - 1}"), (
            "it overtook what waited"
        )


async def test_the_newest_value_of_a_key_replaces_the_one_that_waits():
    """What is unsent of a key is outdated by the next; its place and the order of the others stay,
    and each accepted message has an outcome."""
    async with dialled() as (old, link, ada, peer):
        events = ada.events()
        await fill(old, link, peer)
        for number in range(100):
            peer.send_nowait(b"position %d" % number, priority=P.HIGH, key="position")
        accepted = peer.accepted
        old.quiet.clear()
        await old.until(
            lambda: any(message.startswith(b"position 99") for message in old.peer.messages)
        )
        positions = [message for message in old.peer.messages if message.startswith(b"position")]
        assert positions[-1] == b"position 99" and len(positions) <= 2
        outcomes: list[int] = []
        async with asyncio.timeout(GUARD):
            while len(outcomes) < accepted:
                event = await anext(events)
                if isinstance(event, pt.Sent | pt.Failed):
                    outcomes += range(event.first, event.last + 1)
        assert sorted(outcomes) == list(range(1, accepted + 1))
        await events.aclose()


# --- pressure -------------------------------------------------------------------------------------

LEVELS = {
    0: (),
    49: (),
    50: (P.LOW,),
    74: (P.LOW,),
    75: (P.LOW, P.NORMAL),
    89: (P.LOW, P.NORMAL),
    90: (P.LOW, P.NORMAL, P.HIGH),
}
LEVELS[100] = LEVELS[90]


async def test_the_pressure_of_a_classic_peer_is_obeyed_as_the_original_obeys_it():
    """What would be WOULD_BLOCK there is WouldBlock here, with its reason; nothing is queued, and
    critical messages always go."""
    async with dialled() as (old, link, _ada, peer):
        for pressure, refused in LEVELS.items():
            old.peer.report(link, buffer_pressure=pressure)
            await until(lambda pressure=pressure: peer.capabilities.pressure == pressure)
            for cls in P:
                if cls in refused:
                    with pytest.raises(pt.WouldBlock, match=f"{pressure}") as raised:
                        peer.send_nowait(b"no", priority=cls)
                    assert raised.value.reason == "pressure"
                else:
                    peer.send_nowait(cls.name.encode(), priority=cls)
                    assert await old.message() == cls.name.encode()


async def test_who_waits_for_pressure_to_fall_goes_on_when_it_has():
    """await send() waits, in order, and loses nothing."""
    async with dialled() as (old, link, _ada, peer):
        old.peer.report(link, buffer_pressure=80)
        await until(lambda: peer.capabilities.pressure == 80)
        waiting = [asyncio.create_task(peer.send(b"%d" % number)) for number in range(5)]
        await peer.send(b"high", priority=P.HIGH)
        assert await old.message() == b"high" and not any(task.done() for task in waiting)
        assert peer.queue.reason == "pressure" and peer.queue.pressure >= 80
        old.peer.report(link, buffer_pressure=10)
        await asyncio.gather(*waiting)
        assert [await old.message() for _ in range(5)] == [b"%d" % number for number in range(5)]


async def test_a_stream_is_held_back_by_no_pressure():
    """The original throttles messages by class, and streams not at all."""
    async with dialled() as (old, link, _ada, peer):
        old.peer.report(link, buffer_pressure=100)
        await until(lambda: peer.capabilities.pressure == 100)
        async with peer.stream_out(noise(5000)) as out:
            assert await out.finished(timeout=GUARD) is pt.StreamState.COMPLETED
        await old.until(lambda: b"".join(old.peer.messages) == noise(5000))


async def test_a_capability_without_pressure_counts_as_fifty():
    """The default of the protocol: LOW is refused then. Before any CAPABILITY it is 0."""
    async with dialled(body=classic.encode_entries((1, b"\x20\0"))) as (_old, _link, _ada, peer):
        with pytest.raises(pt.WouldBlock):
            peer.send_nowait(b"x", priority=P.LOW)
        peer.send_nowait(b"x")


async def test_everything_at_once_over_one_link():
    """All types of frames, fragments both ways, a stream, datagrams and PINGs beside each other:
    each arrives, in its order, and the link lives."""
    async with dialled(offer=Capabilities(600, 256, 0, 5)) as (old, link, ada, peer):
        stream, messages = every_type(link)
        at = stream.index(
            encode_frame(
                CAPABILITY, classic.encode_capabilities(Capabilities(8192, 1024, 0, 5)), 0, 77
            )
        )
        stream = stream[:at] + stream[at + 27 :]
        old.peer.write(link, stream)
        for payload in classic.fragments(noise(5000), 7):
            old.peer.frame(link, payload, FRAGMENT)
        sending = [asyncio.create_task(peer.send(noise(size))) for size in (10, 601, 4000, 599)]
        async with peer.stream_out(noise(3000)) as out:
            await out.finished(timeout=GUARD)
        assert await take(ada, len(messages) + 1) == [*messages, noise(5000)]
        await asyncio.gather(*sending)
        await old.until(lambda: sum(map(len, old.peer.messages)) == 10 + 601 + 4000 + 599 + 3000)
        whole = [
            message
            for message in old.peer.messages
            if message in {noise(size) for size in (10, 601, 4000, 599)}
        ]
        assert whole == [noise(size) for size in (10, 601, 4000, 599)]
        old.peer.messages.clear()
        await still_talks(old, link, ada, peer)
