"""What is sent to a peer: each message once and in order, whatever is cancelled; a refusal takes no
place; and order is the order of calls.

Times given as `timeout` are guards against hanging, never measured.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import ctypes
import gc
import itertools
import mmap
import random
import threading
import tracemalloc
import weakref

import pytest
from kit.inside import connections_of, end_connection, engine_of
from kit.meeting import original
from kit.nodes import announcing, loopback, numbered, pair, received
from kit.waiting import GUARD, next_event

import peertalk as pt

# Sending and receiving


def in_frames(core, **more):
    """Options of nodes whose longest message is one frame: tests/test_large.py has the others."""
    return {"core": core.name, "max_message": core.limits.frame_max_payload, **more}


async def test_each_accepted_message_arrives_once_and_in_order_whatever_is_cancelled(
    core, rounds, seed_printed
):
    """The heart of the matter: sizes 0 to the limit, sends and receives cancelled at random, a
    reader slower than the sender.

    A cancelled send was not accepted and never arrives; each Sent is true, and they follow each
    other without a gap.
    """
    total = rounds(5_000, 1_000_000)
    dice = seed_printed
    options = in_frames(core, send_queue_size=8, receive_queue_bytes=64 * 1024)
    async with pair(**options) as (ada, bob, peer):
        events = ada.events()
        accepted, arrived, sent = [], [], [0]
        last = b"last"

        async def cancelled_soon(work, ticks):
            """The result of work, or None if it was cancelled before it had one."""
            task = asyncio.ensure_future(work)
            for _ in range(ticks):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                return await task

        async def sender():
            for number in range(total):
                size = dice.choice((4, 5, 64, dice.randrange(4, peer.max_message + 1)))
                sending = peer.send(numbered(number, size))
                position = await (
                    cancelled_soon(sending, dice.randrange(4)) if dice.random() < 0.1 else sending
                )
                if position is not None:
                    accepted.append((number, size))
                    assert position == len(accepted)
            await peer.send(last)

        async def reader():
            while not arrived or arrived[-1] != last:
                receiving = bob.receive()
                message = await (
                    cancelled_soon(receiving, dice.randrange(3))
                    if dice.random() < 0.1
                    else receiving
                )
                if message is not None:
                    arrived.append(message.data)

        async def judge():
            async for event in events:
                if isinstance(event, pt.Sent):
                    assert event.first == sent[0] + 1 and event.last >= event.first
                    sent[0] = event.last
                    assert sent[0] <= peer.accepted
                assert not isinstance(event, pt.Failed | pt.EventsMissed)

        judging = asyncio.create_task(judge())
        await asyncio.gather(sender(), reader())
        assert len(arrived) == len(accepted) + 1
        assert all(
            data == numbered(number, size)
            for data, (number, size) in zip(arrived, accepted, strict=False)
        )
        await ada.aclose()
        await judging
        assert sent[0] == len(accepted) + 1
        assert len(accepted) < total, "no send was cancelled: the test tested nothing"


@pytest.fixture
def seed_printed():
    """A random generator whose seed a failure shows."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


async def test_empty_and_largest_messages_of_every_kind_arrive_as_they_were(core):
    """bytes, bytearray, memoryview and str; nothing at all and exactly the limit."""
    async with pair(**in_frames(core)) as (_, bob, peer):
        limit = core.limits.frame_max_payload
        assert peer.max_message == limit
        largest = bytes(range(256)) * (limit // 256)
        sent = [
            b"",
            bytearray(b"abc"),
            memoryview(b"abcdef")[1:4],
            "caf\u00e9",
            largest,
            memoryview(b"12345678").cast("I"),
            b"",
        ]
        for data in sent:
            await peer.send(data)
        await peer.send(b"urgent", no_delay=True)
        await peer.send(bytearray(b"urgent too"), no_delay=True)
        expected = [data.encode() if isinstance(data, str) else bytes(data) for data in sent] + [
            b"urgent",
            b"urgent too",
        ]
        got = [await bob.receive(timeout=GUARD) for _ in expected]
        assert [message.data for message in got] == expected
        assert (
            got[3].text == "caf\u00e9"
            and bytes(got[3].view) == got[3].data
            and len(got[0]) == 0
            and got[0]
        )


@pytest.mark.parametrize("how", ["argument", "environment"])
async def test_a_node_whose_asynchronous_sending_is_off_says_the_same_to_the_wire(
    core, how, monkeypatch
):
    """The switch is there to find out whether the pipeline is at fault: each write ends before the
    next begins, and nothing else changes for either side, on real sockets."""
    messages = [numbered(number, 900) for number in range(60)]
    frames, writes = {}, {}
    for asynchronous in (True, False):
        options = loopback(core=core.name)
        if how == "argument":
            options["async_send"] = asynchronous
        else:
            monkeypatch.setenv("PEERTALK_ASYNC_SEND", "yes" if asynchronous else "no")
        async with original() as old, pt.Node("ada", **options) as ada:
            assert ada.config.async_send == asynchronous
            peer = await ada.connect(old.address, timeout=GUARD)
            link = await old.link()
            before = peer._remote.connection.link.statistics().write_calls
            for message in messages:
                peer.send_nowait(message)
            assert [await old.message() for _ in messages] == messages
            writes[asynchronous] = peer._remote.connection.link.statistics().write_calls - before
            old.peer.frame(link, b"and back")
            assert await received(ada, 1) == [b"and back"]
            await peer.send(b"")
            assert await old.message() == b""
            frames[asynchronous] = link.messages
            assert peer._remote.reported == peer.accepted == 61
    assert frames[True] == frames[False] and len(frames[True]) == 61
    assert writes[False] > writes[True], "each slot is written by itself"


async def test_two_nodes_whose_asynchronous_sending_is_off_lose_nothing(core):
    """The blocking table carries whole nodes: both ways, from the empty message to the largest,
    with an outcome for each."""
    async with pair(**in_frames(core, async_send=False)) as (ada, bob, peer):
        largest = peer.max_message
        sizes = [0, 1, 63, 64, 1_000, largest - 1, largest] * 5
        for number, size in enumerate(sizes):
            message = bytes([number]) * size
            await peer.send(message)
            came = await bob.receive(timeout=GUARD)
            assert came.data == message
            await came.peer.send(message)
            assert (await ada.receive(timeout=GUARD)).data == message
        await peer.disconnect()
        assert peer._remote.reported == peer.accepted == len(sizes) and peer._remote.failed == 0


async def test_a_message_over_the_limit_is_refused_and_takes_no_place(core):
    """The numbers and the limit are in the message; the next send gets the next number."""
    async with pair(core=core.name) as (_, bob, peer):
        limit = peer.max_message
        for send in (peer.send, peer.send_nowait):
            with pytest.raises(
                pt.MessageTooLarge, match=rf"{limit + 1:,} bytes to peer 'bob'.*limit is {limit:,}"
            ) as raised:
                if asyncio.iscoroutine(result := send(bytes(limit + 1))):
                    await result
            assert isinstance(raised.value, ValueError) and raised.value.peer == "bob"
        with pytest.raises(pt.MessageTooLarge):
            await peer.send_many([b"first", bytes(limit + 1), b"never"])
        assert await peer.send(b"second") == 2
        assert await received(bob, 2) == [b"first", b"second"]


async def test_what_cannot_be_sent_is_refused_by_its_type():
    """A list of numbers becomes no bytes by accident."""
    async with pair() as (_, bob, peer):
        for wrong in (None, 7, [1, 2], object()):
            with pytest.raises(pt.errors.WrongType, match="bytes"):
                await peer.send(wrong)
            with pytest.raises(TypeError):
                peer.send_nowait(wrong)
        with pytest.raises(TypeError, match=r"^Peer\.send\(\) got .* 'urgent'"):
            await peer.send(b"one", urgent=True)
        with pytest.raises(pt.errors.WrongType, match="send_many takes several"):
            await peer.send_many(b"one")
        with pytest.raises(pt.errors.WrongType, match="contiguous"):
            await peer.send(memoryview(b"abcdef")[::2])
        assert await peer.send(b"fine") == 1
        assert await received(bob, 1) == [b"fine"]


@pytest.mark.parametrize("way", ["send", "in line", "nowait", "many", "broadcast", "stream"])
async def test_any_buffer_is_a_message_by_every_way(core, way):
    """The guide says any buffer; arrays, maps and what ctypes makes were refused."""
    numbers = array.array("H", range(300))
    with mmap.mmap(-1, 500) as mapped:
        mapped[:4] = b"file"
        data = (numbers, mapped, (ctypes.c_double * 3)(0.5, 1.5, 2.5), memoryview(b"c").cast("c"))
        expected = [memoryview(each).tobytes() for each in data]
        async with pair(core=core.name) as (ada, bob, peer):
            for each in data:
                if way == "stream":
                    async with peer.stream_out(each) as out:
                        await out.finished(timeout=GUARD)
                elif way == "many":
                    assert await peer.send_many([each]) == 1
                elif way == "broadcast":
                    assert (await ada.broadcast(each)).accepted == [peer]
                elif way == "nowait":
                    peer.send_nowait(each)
                else:
                    await peer.send(each, **({"timeout": GUARD} if way == "in line" else {}))
            total, got = sum(map(len, expected)), b""
            while len(got) < total:
                got += (await bob.receive(timeout=GUARD)).data
            assert got == b"".join(expected)


async def test_a_buffer_is_free_for_reuse_as_soon_as_send_returns(core):
    """Senders keep one buffer and fill it again: what was accepted must be a copy, in a slot or in
    the line."""
    async with pair(core=core.name, send_queue_size=64, receive_queue_bytes=16 * 1024) as (
        ada,
        bob,
        peer,
    ):
        buffer = bytearray(1000)
        for number in range(300):
            buffer[:4] = number.to_bytes(4, "big")
            if number % 3 == 0:
                await peer.send(buffer)
            elif number % 3 == 1:
                await peer.send(memoryview(buffer), no_delay=True)
            else:
                try:
                    peer.send_nowait(buffer)
                except pt.WouldBlock:
                    await peer.send(buffer)
            buffer[:] = b"\xff" * 1000
            if number >= 100:
                assert (await bob.receive(timeout=GUARD)).data[:4] == (number - 100).to_bytes(
                    4, "big"
                )
        assert [data[:4] for data in await received(bob, 100)] == [
            number.to_bytes(4, "big") for number in range(200, 300)
        ]
        assert ada.stats().messages_accepted == 300


async def test_send_nowait_refuses_when_there_is_no_room_and_nothing_is_lost(core):
    """WouldBlock is the one honest way to not wait; it has a reason, and the numbers go on without
    a gap."""
    options = in_frames(core, send_queue_size=4, receive_queue_bytes=4096)
    async with pair(**options) as (_, bob, peer):
        data = bytes(peer.max_message)
        accepted = refusals = 0
        while refusals < 5:
            try:
                accepted += 1
                assert peer.send_nowait(data[:-4] + accepted.to_bytes(4, "big")) == accepted
            except pt.WouldBlock as error:
                accepted -= 1
                refusals += 1
                assert (
                    error.reason == "queue"
                    and error.peer == "bob"
                    and isinstance(error, BlockingIOError)
                )
                assert peer.queue.pressure == 100 and peer.queue.pending > 0
                await asyncio.sleep(0)
        assert [int.from_bytes(got[-4:], "big") for got in await received(bob, accepted)] == list(
            range(1, accepted + 1)
        )
        assert await peer.send(b"next") == accepted + 1


async def test_a_slow_reader_slows_the_sender_and_memory_stays_flat(core):
    """Nothing is dropped and nothing grows: the chain of bounds reaches from the inbox to the
    sender."""
    inbox_limit, outbox_limit = 64 * 1024, 32 * 1024
    async with pair(
        core=core.name,
        send_queue_size=64,
        send_queue_bytes=outbox_limit,
        receive_queue_bytes=inbox_limit,
    ) as (_, bob, peer):
        size = 1000
        count = 12_000
        data = bytes(size - 4)
        # what one turn may bring beside the limit, with the cost of each message
        one_turn = core.limits.receive_buffer_size * 1.2
        worst_inbox = worst_outbox = 0

        async def sender():
            for number in range(count):
                await peer.send(number.to_bytes(4, "big") + data)

        async with asyncio.timeout(GUARD):
            task = asyncio.create_task(sender())
            # until the reader has been paused and the sender feels it
            while bob.stats().pauses == 0 or peer.queue.pressure < 90:
                await asyncio.sleep(0)
            assert not task.done()
            tracemalloc.start()
            for number in range(count):
                assert int.from_bytes((await bob.receive()).data[:4], "big") == number
                if number % 50 == 0:
                    worst_inbox = max(worst_inbox, bob.stats().inbox_bytes)
                    worst_outbox = max(worst_outbox, peer.queue.bytes)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            await task
        assert worst_inbox <= inbox_limit + one_turn and worst_outbox <= outbox_limit
        assert peak < 2 * (inbox_limit + one_turn + outbox_limit) + 1_000_000, (
            f"{peak:,} bytes for {count * size:,} bytes in all"
        )


async def test_messages_of_another_thread_arrive_in_its_order():
    """send_nowait may be called from anywhere; the number is given later."""
    async with pair(send_queue_size=16) as (_, bob, peer):
        total = 500
        faults = []

        def elsewhere():
            try:
                for number in range(total):
                    while True:
                        try:
                            assert peer.send_nowait(numbered(number)) == 0
                            break
                        except pt.WouldBlock:
                            turn.wait(0.001)
                with contextlib.suppress(pt.MessageTooLarge):
                    peer.send_nowait(bytes(peer.max_message + 1))
                    raise AssertionError("a message over the limit was taken")
            except BaseException as error:
                faults.append(error)

        turn = threading.Event()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        try:
            assert await received(bob, total) == [numbered(number) for number in range(total)]
        finally:
            await asyncio.to_thread(thread.join)
        assert not faults and peer.accepted == total


async def test_send_many_accepts_all_in_order_between_other_sends(core):
    """One crossing of the border for many; the order holds beside single sends, also when the line
    is full."""
    async with pair(core=core.name, send_queue_size=32, receive_queue_bytes=32 * 1024) as (
        _,
        bob,
        peer,
    ):

        async def sender():
            assert await peer.send_many([numbered(number, 100) for number in range(3000)]) == 3000
            await peer.send(numbered(3000, 100))
            assert (
                await peer.send_many(
                    bytearray(numbered(number, 100)) for number in range(3001, 4000)
                )
                == 999
            )
            assert await peer.send_many([]) == 0

        sending = asyncio.create_task(sender())
        assert await received(bob, 4000) == [numbered(number, 100) for number in range(4000)]
        await sending
        assert peer.accepted == 4000


async def test_a_send_that_timed_out_was_not_accepted():
    """A time-out that may or may not have sent is worse than none."""
    async with pair(send_queue_size=2, receive_queue_bytes=1024) as (_, bob, peer):
        data = bytes(8000)
        accepted = 0
        with pytest.raises(pt.Timeout, match=r"no room for a message to peer 'bob' within 0\.05 s"):
            while True:
                await peer.send(data, timeout="50ms")
                accepted += 1
        with pytest.raises(pt.Timeout, match="no room for all"):
            await peer.send_many([data] * 10_000, timeout=0.05)
        accepted = peer.accepted
        reading = asyncio.create_task(received(bob, accepted + 1))
        assert await peer.send(b"last", timeout=GUARD) == accepted + 1
        assert (await reading)[accepted] == b"last"


async def test_those_who_wait_to_send_are_served_in_the_order_in_which_they_came():
    """Fairness, and order across tasks: a line, not a crowd. A cancelled one leaves no hole."""
    async with pair(send_queue_size=2, receive_queue_bytes=1024) as (_, bob, peer):
        data = bytes(8000)
        full = 0
        while full < 3:
            try:
                peer.send_nowait(data)
            except pt.WouldBlock:
                full += 1
                await asyncio.sleep(0)
        before = peer.accepted
        tasks = [asyncio.create_task(peer.send(numbered(number))) for number in range(100)]
        await asyncio.sleep(0)
        with pytest.raises(pt.WouldBlock):
            peer.send_nowait(b"must not overtake")
        for task in tasks[::7]:
            task.cancel()
        await asyncio.wait(tasks[::7])
        # Where the system has made room meanwhile, the first of them were accepted before.
        left = [number for number in range(100) if number % 7 or not tasks[number].cancelled()]
        assert len(left) < 100
        assert (await received(bob, before + len(left)))[before:] == [
            numbered(number) for number in left
        ]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [number for number in results if isinstance(number, int)] == list(
            range(before + 1, before + 1 + len(left))
        )


async def test_a_critical_message_overtakes_those_that_wait_and_order_holds_within_each_class(core):
    """What waits in the outbox or in line of lower classes goes behind it; no class is disordered
    by that, and none is left over. The messages of send_many are few enough to stand in line at
    once: others have their turn between two parts of it."""
    async with pair(core=core.name, send_queue_size=64, receive_queue_bytes=16 * 1024) as (
        _,
        bob,
        peer,
    ):
        # from here on the system takes little
        await peer.send(b"first", priority=pt.Priority.CRITICAL)
        normal = asyncio.gather(
            *(peer.send(b"n" + numbered(number, 1000)) for number in range(3000))
        )
        async with asyncio.timeout(GUARD):
            while not peer._remote.queued or not bob.stats().pauses:
                await asyncio.sleep(0)
        high = asyncio.create_task(
            peer.send_many(
                [b"h" + numbered(number, 1000) for number in range(400)], priority=pt.Priority.HIGH
            )
        )
        await asyncio.sleep(0)
        for number in range(3):
            assert await peer.send(
                b"C" + numbered(number), priority=pt.Priority.CRITICAL, timeout=GUARD
            )
        got = (await received(bob, 3404))[1:]
        await asyncio.gather(normal, high)
        for kind, count in ((b"n", 3000), (b"h", 400), (b"C", 3)):
            assert [int.from_bytes(data[1:5], "big") for data in got if data[:1] == kind] == list(
                range(count)
            )
        assert got[-1][:1] == b"n", "it waited for its whole backlog"


async def test_bulk_of_a_lower_class_goes_on_beside_an_endless_stream_of_a_higher_one(core):
    """No starvation at the door either: what does not get into the queue has no turn there."""
    async with pair(core=core.name, send_queue_size=64, receive_queue_bytes=64 * 1024) as (
        _,
        bob,
        peer,
    ):
        ended, low = False, 0

        async def stream():
            while not ended:
                await peer.send_many([b"N" * 1000] * 500, priority=pt.Priority.HIGH)

        async def reader():
            nonlocal low
            async for message in bob.messages():
                low += message.data[:1] == b"L"

        streaming, reading = (
            asyncio.gather(stream(), stream(), stream()),
            asyncio.create_task(reader()),
        )
        async with asyncio.timeout(GUARD):
            await peer.send_many([b"L" * 1000] * 60)
            while low < 60:
                await asyncio.sleep(0)
            ended = True
            await streaming
        reading.cancel()


async def test_only_the_newest_of_a_key_is_sent_of_those_that_waited(core):
    """A position of a moment ago is worth nothing; each that was replaced says so."""
    async with pair(core=core.name, send_queue_size=64, receive_queue_bytes=16 * 1024) as (
        ada,
        bob,
        peer,
    ):
        events = ada.events()
        async with asyncio.timeout(GUARD):
            while not bob.stats().pauses or not peer._remote.queued:
                with contextlib.suppress(pt.WouldBlock):
                    peer.send_nowait(bytes(1000))
                if peer.accepted % 16 == 0 or peer._remote.queued:
                    await asyncio.sleep(0)
        numbers = [peer.send_nowait(b"at %d" % place, key="pos") for place in range(10)]
        peer.send_nowait(b"end")
        total = peer.accepted
        got = await received(bob, total - 9)
        assert [data for data in got if data.startswith(b"at ")] == [b"at 9"] and got[-1] == b"end"
        await ada.aclose()
        told = [event async for event in events if isinstance(event, pt.Failed)]
        assert [
            number for event in told for number in range(event.first, event.last + 1)
        ] == numbers[:-1]
        assert {event.outcome for event in told} == {pt.Outcome.REPLACED}
        assert ada.stats().messages_accepted == total == ada.stats().messages_sent + 9


async def test_a_class_or_a_key_that_is_none_is_refused_before_anything_is_sent():
    """On the path that waits, on the one that does not, in bulk, and to all."""
    async with pair() as (ada, _, peer):
        for refused in (
            peer.send(b"x", priority=4),
            peer.send(b"x", key=1.5),
            peer.send_many([b"x"], priority=-1),
            ada.broadcast(b"x", priority=9),
        ):
            with pytest.raises(pt.InvalidArgument):
                await refused
        with pytest.raises(pt.errors.WrongType):
            peer.send_nowait(b"x", key=b"bytes")
        with pytest.raises(TypeError):
            await peer.send(b"x", urgent=True)
        assert peer.accepted == 0


async def test_one_frozen_peer_slows_a_broadcast_for_nobody_and_is_named():
    """Who does not read must not set the pace of a game; the caller decides whether to wait."""
    async with (
        pt.Node("ada", **loopback(send_queue_size=1)) as ada,
        pt.Node("bob", **loopback()) as bob,
        pt.Node("cid", **loopback(receive_queue_bytes=1024)) as cid,
    ):
        await ada.connect(bob.address, timeout=GUARD)
        slow = await ada.connect(cid.address, timeout=GUARD)
        assert set((await ada.broadcast("hi")).accepted) == {ada.peers["bob"], slow}
        with pytest.raises(pt.Timeout):
            while True:
                await slow.send(bytes(8000), timeout=0.05)
        with pytest.raises(StopIteration) as at_once:  # not even a tick
            ada.broadcast(b"at once").send(None)
        result = at_once.value.value
        assert result.accepted == [ada.peers["bob"]] and list(result.skipped) == [slow]
        assert isinstance(result.skipped[slow], pt.WouldBlock)
        assert result.skipped[slow].peer == "cid" and result.skipped[slow].reason == "queue"
        result = await ada.broadcast(b"round starts", timeout=0.05)
        assert result.accepted == [ada.peers["bob"]]
        assert isinstance(result.skipped[slow], pt.Timeout)
        given_up = asyncio.create_task(ada.broadcast(b"round starts", timeout=60))
        await asyncio.sleep(0)  # it waits for room, in tasks that have not begun
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        del given_up
        gc.collect()  # a coroutine that nobody began would be heard of here
        assert await received(bob, 4) == [b"hi", b"at once", *[b"round starts"] * 2]


async def test_a_broadcast_reaches_those_who_are_known_and_not_connected(free_port):
    """send() connects; a broadcast that silently passes them over is no broadcast."""
    port = free_port()
    async with pt.Node("ada", **announcing(port)) as ada, pt.Node("bob", **announcing(port)) as bob:
        peer = await ada.wait_for("bob", timeout=GUARD)
        assert not peer.connected
        result = await ada.broadcast(b"hello")
        assert (result.accepted, result.skipped) == ([peer], {})
        assert await received(bob, 1) == [b"hello"]


# Order is the order of calls


class Callers:
    """Tasks that call a peer in every way, some of them cancelled, and what became of their
    messages: numbered in the order of the calls, with their class behind the number."""

    def __init__(self, node, peer, dice, total):
        self.node, self.peer, self.dice, self.total = node, peer, dice, total
        self.called, self.accepted, self.refused = 0, set(), set()
        self.running = set()

    def fresh(self, priority):
        self.called += 1
        longest = self.peer.max_message - 5
        size = self.dice.choice((0, 0, 50, longest if self.dice.random() < 0.1 else 700))
        return self.called, self.called.to_bytes(4, "big") + bytes([priority]) + bytes(size)

    async def call(self, kind, priority):
        peer, (number, data) = self.peer, self.fresh(priority)
        numbers = [number]
        try:
            if kind == "many":
                more = [self.fresh(priority) for _ in range(self.dice.randrange(5))]
                numbers += [each for each, _ in more]
                first = peer.accepted
                await peer.send_many([data, *(each for _, each in more)], priority=priority)
                assert peer.accepted >= first + len(numbers)
            elif kind == "nowait":
                peer.send_nowait(data, priority=priority)
            elif kind == "broadcast":
                result = await self.node.broadcast(data, priority=priority)
                if not result.accepted:
                    self.refused.add(number)
                    return
            elif kind == "in time":
                timeout = self.dice.choice((0, 0.001, GUARD))
                await peer.send(data, priority=priority, timeout=timeout)
            elif priority == pt.Priority.NORMAL:
                await peer.send(data)
            else:
                await peer.send(data, priority=priority)
        except (pt.WouldBlock, pt.Timeout, asyncio.CancelledError):
            if kind != "many":  # of many some may have been
                self.refused.update(numbers)
            raise
        self.accepted.update(numbers)

    async def call_beside(self, kind, priority):
        """A call in a task of its own, which is given some ticks, and then often cancelled."""
        task = asyncio.ensure_future(self.call(kind, priority))
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        for _ in range(self.dice.randrange(4)):
            await asyncio.sleep(0)
        if self.dice.random() < 0.7:
            task.cancel()

    async def run(self):
        kinds = ("send", "send", "send", "many", "nowait", "broadcast", "in time")
        while self.called < self.total:
            kind, priority = self.dice.choice(kinds), self.dice.choice((1, 1, 1, 0, 2))
            for _ in range(self.dice.choice((1, 1, 1, 40))):
                if self.dice.random() < 0.2:
                    await self.call_beside(kind, priority)
                else:
                    with contextlib.suppress(pt.WouldBlock, pt.Timeout):
                        await self.call(kind, priority)


async def test_no_call_overtakes_an_earlier_one_of_its_class_whatever_they_are_and_is_cancelled(
    core, rounds, seed_printed
):
    """Several tasks, each with calls of every kind, some cancelled; a reader that is slow at times.
    What was called first arrives first; what was accepted arrives once; what was not never does."""
    dice, arrived, over = seed_printed, {0: [], 1: [], 2: []}, False
    options = in_frames(core, send_queue_size=16, receive_queue_bytes=64 * 1024)
    async with pair(**options) as (ada, bob, peer):
        callers = Callers(ada, peer, dice, rounds(4_000, 400_000))

        async def reader():
            async for message in bob.messages():
                arrived[message.data[4]].append(int.from_bytes(message.data[:4], "big"))
                if over and message.data[5:] == b"last":
                    return
                if dice.random() < 0.01:
                    await asyncio.sleep(0.001)

        with pytest.raises(pt.WouldBlock):  # nobody reads yet, so there is a refusal in every run
            while True:
                await callers.call("nowait", pt.Priority.NORMAL)
        reading = asyncio.create_task(reader())
        await asyncio.gather(*(callers.run() for _ in range(4)))
        await asyncio.gather(*callers.running, return_exceptions=True)
        over = True
        await peer.send((0).to_bytes(4, "big") + b"\0last", priority=pt.Priority.LOW)
        await asyncio.wait_for(reading, GUARD)
        while sum(map(len, arrived.values())) < peer.accepted:
            message = await bob.receive(timeout=GUARD)
            arrived[message.data[4]].append(int.from_bytes(message.data[:4], "big"))
        arrived[0].remove(0)
        for numbers in arrived.values():
            assert numbers == sorted(set(numbers))
        seen = {number for numbers in arrived.values() for number in numbers}
        assert callers.accepted <= seen and not seen & callers.refused
        assert callers.accepted and callers.refused


async def test_a_sender_rests_though_its_messages_wait(core):
    """A loop that sends to a slow peer filled the whole queue in one tick: nobody else had a turn,
    and the queue was never empty again, which makes each message twice as dear."""
    async with pair(core=core.name, receive_queue_bytes=16 * 1024) as (_, bob, peer):
        async with asyncio.timeout(GUARD):
            while not peer._remote.queued or not bob.stats().pauses:
                await peer.send(bytes(1000))
        ticks, run, longest = 0, 0, 0

        async def ticking():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(ticking())
        for _ in range(300):
            before = ticks
            await peer.send(bytes(1000))
            run = run + 1 if ticks == before else 0
            longest = max(longest, run)
        beside.cancel()
        assert peer._remote.queued > 300 and longest < 256


async def test_senders_that_take_turns_do_not_wait_a_tick_for_each_message():
    """Fair order must not cost a turn of the loop for each message: whoever comes later hands on
    what stands before it."""
    async with pair() as (_, bob, peer):
        ticks, ended, count = 0, False, 5000

        async def clock():
            nonlocal ticks
            while not ended:
                ticks += 1
                await asyncio.sleep(0)

        async def sender():
            for number in range(count):
                await peer.send(numbered(number))

        async def reader():
            got = 0
            async for batch in bob.batches():
                got += len(batch)
                if got == 3 * count:
                    return

        tasks = asyncio.create_task(clock()), asyncio.create_task(reader())
        await asyncio.gather(*(sender() for _ in range(3)))
        ended = True
        await asyncio.wait_for(asyncio.gather(*tasks), GUARD)
        assert ticks < 3 * count / 10


async def test_a_sender_lets_others_have_their_turn_though_there_is_room():
    async with pair() as (_ada, _bob, peer):
        turns = []
        asyncio.get_running_loop().call_soon(turns.append, "another")
        for _ in range(300):  # 256 in one turn
            await peer.send(b"1")
        assert turns == ["another"]


async def test_a_send_that_was_accepted_is_not_reported_as_cancelled():
    """It may be accepted while its task has not heard of that yet. The cancellation still comes,
    unless what wanted it is over."""
    async with pair() as (ada, bob, peer):

        async def accepted_unheard(work):
            """A task whose send stands in line for a tick, and is served by a later one."""
            engine_of(ada).crowded = True
            task = asyncio.create_task(work())
            await asyncio.sleep(0)
            peer.send_nowait(b"later")
            return task

        async def alone():
            return await peer.send(b"1")

        task = await accepted_unheard(alone)
        task.cancel()
        assert await task == 1

        steps = []

        async def goes_on():
            steps.append(await peer.send(b"2"))
            steps.append("sent")
            await asyncio.sleep(GUARD)

        task = await accepted_unheard(goes_on)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, GUARD)
        assert steps == [3, "sent"]

        async def in_time():
            async with asyncio.timeout(None) as limit:
                limit.reschedule(asyncio.get_running_loop().time())
                await peer.send(b"3")
            await asyncio.sleep(0.01)
            return "nothing comes after its block"

        task = await accepted_unheard(in_time)
        assert await asyncio.wait_for(task, GUARD) == "nothing comes after its block"
        data = await received(bob, 6)
        assert data == [b"1", b"later", b"2", b"later", b"3", b"later"]


async def test_many_messages_let_others_have_their_turn_and_keep_their_own_order():
    """A long list, or one without end, must not hold up the whole program."""
    async with pair(receive_queue_bytes=64 * 1024) as (_, bob, peer):
        drawn = 0

        def endless():
            nonlocal drawn
            while True:
                drawn += 1
                yield b"m" + numbered(drawn, 1000)

        many = asyncio.create_task(peer.send_many(endless(), timeout=GUARD))
        while not bob.stats().pauses:
            await asyncio.sleep(0)
        assert drawn - peer.accepted <= 1024
        one = asyncio.create_task(peer.send(b"one"))
        got = []
        while not got or got[-1] != b"one":
            got.append((await bob.receive(timeout=GUARD)).data)
        await one
        numbers = [int.from_bytes(data[1:5], "big") for data in got[:-1]]
        assert numbers == list(range(1, len(got))) and not many.done()
        many.cancel()
        with pytest.raises(asyncio.CancelledError):
            await many


async def test_send_many_says_how_many_were_accepted_before_it_failed():
    """Whoever goes on later must know from where."""
    async with pair(send_queue_size=4, receive_queue_bytes=4096) as (_, bob, peer):
        limit = peer.max_message
        with pytest.raises(pt.MessageTooLarge) as raised:
            await peer.send_many([b"1", b"2", bytes(limit + 1), b"never"])
        assert raised.value.accepted == 2
        with pytest.raises(pt.errors.WrongType) as wrong:
            await peer.send_many([b"3", None])
        assert wrong.value.accepted == 1
        with pytest.raises(pt.Timeout) as late:
            await peer.send_many([bytes(8000)] * 5000, timeout=0.05)
        assert late.value.accepted == peer.accepted - 3 < 5000
        work = [bytes(8000)] * 3000
        sending = asyncio.create_task(peer.send_many(work))
        await asyncio.sleep(0)
        work.clear()
        before = peer.accepted

        async def reader():
            async for _ in bob.batches():
                pass

        reading = asyncio.create_task(reader())
        count = await asyncio.wait_for(sending, GUARD)
        assert count < 3000 and peer.accepted - before <= count, "its list was emptied meanwhile"
        reading.cancel()


@pytest.mark.parametrize("ending", ["disconnect", "reject", "other", "fault"])
async def test_send_many_ends_with_its_connection_and_asks_for_no_other(ending):
    """What is left went on a new one, which undid a reject() or a disconnect()."""
    async with pair() as (ada, bob, peer):
        loop, tasks, events = asyncio.get_running_loop(), [], ada.events()

        def end():
            if ending == "reject":
                peer.reject()
            elif ending == "fault":
                end_connection(ada, *connections_of(ada), pt.errors.NetworkFailure("made up"))
            else:
                leaving = peer if ending == "disconnect" else bob.peers["ada"]
                tasks.append(asyncio.ensure_future(leaving.disconnect(timeout=GUARD)))

        def endless():
            for number in itertools.count(1):
                if number == 65:  # the first of the second chunk: it rests before that is accepted
                    loop.call_soon(end)
                yield numbered(number, 4000)

        async def reader():
            async for _ in bob.batches():
                pass

        reading = asyncio.ensure_future(reader())
        with pytest.raises(pt.ConnectionClosed) as raised:
            await peer.send_many(endless(), timeout=GUARD)
        assert raised.value.accepted == peer.accepted >= 64
        cause = type(raised.value.__cause__)
        assert cause is (pt.errors.NetworkFailure if ending == "fault" else type(None))
        await asyncio.gather(*tasks)
        await next_event(events, pt.PeerDisconnected)
        assert not peer.connected and ada.stats().links_opened == 1
        reading.cancel()


async def test_a_lost_connection_keeps_nothing_of_those_who_were_sending():
    """The error that they got was kept for others, and by its traceback whatever they had at
    hand."""

    class Had:
        pass

    async def sending(call):
        had = Had()
        had_by.append(weakref.ref(had))
        with contextlib.suppress(pt.errors.NetworkError):
            while True:
                await call()

    async with pair(send_queue_size=4, receive_queue_bytes=4096) as (_, bob, peer):
        had_by, data = [], bytes(8000)
        calls = [lambda: peer.send(data), lambda: peer.send_many([data] * 1000)] * 2
        tasks = [asyncio.ensure_future(sending(call)) for call in calls]
        while not bob.stats().pauses:
            await asyncio.sleep(0)
        bob.close_nowait()
        await asyncio.wait_for(asyncio.gather(*tasks), GUARD)
        tasks.clear()
        gc.collect()
        assert [each() for each in had_by] == [None] * 4 and not peer.connected
