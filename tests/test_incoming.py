"""What comes in: messages, events, streams of both that are shared, left and begun with what is
true, and whom a message wakes.

Times given as `timeout` are guards against hanging, never measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

import pytest
from kit.inside import engine_of, receivers_of
from kit.nodes import loopback, numbered, pair, received
from kit.striking import Striking
from kit.waiting import GUARD, next_event

import peertalk as pt
from peertalk import sim

# Receiving


async def test_receive_times_out_and_leaves_nothing_behind():
    """A program that polls with a time-out must not grow."""
    async with pair() as (_, bob, peer):
        for _ in range(20):
            with pytest.raises(pt.Timeout, match="no message came within 0 s"):
                await bob.receive(timeout=0)
        assert not receivers_of(bob)
        await peer.send(b"x")
        assert await received(bob, 1) == [b"x"]


async def test_several_consumers_share_the_messages_each_going_to_one_in_order(core):
    """Workers of one program divide the work: nothing twice, nothing lost."""
    async with pair(core=core.name) as (_, bob, peer):
        total = 2000
        taken = [[], [], []]
        complete = asyncio.Event()

        async def consumer(mine, slow):
            async for message in bob.messages():
                mine.append(message.data)
                if sum(map(len, taken)) == total:
                    complete.set()
                for _ in range(slow):
                    await asyncio.sleep(0)

        tasks = [asyncio.create_task(consumer(mine, slow)) for slow, mine in enumerate(taken, 1)]
        await peer.send_many([numbered(number) for number in range(total)])
        await asyncio.wait_for(complete.wait(), GUARD)
        assert all(mine == sorted(mine) for mine in taken) and all(taken)
        assert sorted(data for mine in taken for data in mine) == [
            numbered(number) for number in range(total)
        ]
        await bob.aclose()
        await asyncio.gather(*tasks)


async def test_batches_bring_what_one_peer_sent_in_order_and_never_empty():
    """The cheapest way to receive, and the one that messages() is measured against."""
    async with pair() as (ada, bob, peer):
        total = 5000
        sending = asyncio.create_task(peer.send_many([numbered(number) for number in range(total)]))
        got = []
        assert (await bob.receive(timeout=GUARD)).data == numbered(0)
        async with asyncio.timeout(GUARD):
            async for batch in bob.batches():
                assert batch.peer is bob.peers["ada"] and len(batch) > 0
                got += batch
                if len(got) == total - 1:
                    break
        assert got == [numbered(number) for number in range(1, total)]
        await sending
        assert ada.stats().messages_sent == total or ada.stats().messages_accepted == total


async def test_while_a_peers_messages_are_iterated_they_come_there_alone():
    """A conversation with one peer must not be torn by the loop that serves the others."""
    async with pair() as (ada, bob, to_bob), pt.Node("cid", **loopback()) as cid:
        to_bob_from_cid = await cid.connect(bob.address, timeout=GUARD)
        await to_bob.send(b"before")
        assert await received(bob, 1) == [b"before"]
        adas = bob.peers["ada"].messages()
        taking = asyncio.ensure_future(anext(adas))
        await asyncio.sleep(0)
        await to_bob.send_many([b"one", b"two", b"three"])
        await to_bob_from_cid.send(b"from cid")
        assert await received(bob, 1) == [b"from cid"]
        assert (await asyncio.wait_for(taking, GUARD)).data == b"one"
        await adas.aclose()
        await to_bob.send(b"after")
        assert await received(bob, 3) == [b"two", b"three", b"after"]
        assert ada.stats().messages_accepted == 5


async def test_a_peers_messages_begin_with_those_that_wait_already():
    """A program that reads each peer in a task of its own would lose the first words of all."""
    async with pair() as (_, bob, to_bob):
        await to_bob.send_many([b"1", b"2", b"3"])
        assert await received(bob, 1) == [b"1"]
        got = []
        async for message in bob.peers["ada"].messages():
            got.append(message.data)
            if len(got) == 2:
                break
        assert got == [b"2", b"3"]


async def test_a_peers_messages_come_though_another_fills_the_inbox_and_nobody_reads_that():
    """Who listens to one peer alone must not stand still for ever because of another."""
    async with (
        pair(receive_queue_bytes=64 * 1024) as (ada, bob, to_bob),
        pt.Node("cid", **loopback()) as cid,
    ):
        floods = [
            asyncio.create_task(peer.send_many([bytes(1000)] * 100_000))
            for peer in (to_bob, await cid.connect(bob.address, timeout=GUARD))
        ]
        async with asyncio.timeout(GUARD):
            while bob.stats().pauses < 2:
                await asyncio.sleep(0)
            got = 0
            async for message in bob.peers["ada"].messages():
                assert message.peer.name == "ada"
                got += 1
                if got == 5000:
                    break
        assert bob.stats().inbox_bytes < 1_000_000
        for flood in floods:
            flood.cancel()
        for node in (ada, cid):
            node.close_nowait()


async def test_a_peers_messages_end_when_it_is_lost_after_the_last_one():
    """A task for each peer would otherwise stay for ever, once for each peer that ever was."""
    async with pair() as (ada, bob, to_bob):
        peer = await bob.wait_for("ada", timeout=GUARD)
        got = []

        async def read():
            async for message in peer.messages():
                got.append(message.data)

        reading = asyncio.create_task(read())
        await to_bob.send_many([b"1", b"2"])
        while not got:
            await asyncio.sleep(0)
        await to_bob.send(b"3")
        await ada.aclose()
        await asyncio.wait_for(reading, GUARD)
        assert got == [b"1", b"2", b"3"] and peer not in bob.peers.values()
        await asyncio.wait_for(read(), GUARD)
        assert len(got) == 3


async def test_a_link_whose_last_message_was_taken_is_read_again():
    """Until the next take, which may never come, a PING would go unanswered and its end unseen."""
    async with pair(receive_queue_bytes=1024) as (ada, bob, to_bob):
        await to_bob.send(bytes(2000))
        peer = (await bob.receive(timeout=GUARD)).peer
        assert bob.stats().pauses == 1 and bob.stats().inbox_bytes == 0
        assert await peer.ping(timeout=GUARD) > 0
        await ada.aclose()
        async with asyncio.timeout(GUARD):
            while peer.connected:
                await asyncio.sleep(0)


async def test_one_who_is_cancelled_though_a_message_came_for_him_leaves_it_to_the_next():
    """The one that was woken and is cancelled before he has looked must not take the news along."""
    async with pair() as (_, bob, to_bob):

        async def striking():
            message = await bob.receive()
            first.cancel()
            return message.data

        tasks = [asyncio.ensure_future(each) for each in (striking(), bob.receive(), bob.receive())]
        strike, first, second = tasks
        while receivers_of(bob) < 3:
            await asyncio.sleep(0)
        await to_bob.send_many([b"x", b"y"])
        assert (await asyncio.wait_for(second, GUARD)).data == b"y"
        assert await strike == b"x"
        assert first.cancelled()


@pytest.mark.parametrize("way", ["receive", "messages"])
async def test_messages_that_come_one_at_a_time_take_no_turns(way, c_core):
    """Each round trip had two turns of the engine, which were a third of what it cost. A turn that
    tells what has left comes in between now and then."""
    async with pair(core=c_core.name) as (ada, bob, peer):

        async def echo():
            async for message in bob.messages():
                await message.peer.send(message.data)

        task, count, engines = asyncio.create_task(echo()), 100, [engine_of(ada), engine_of(bob)]
        stream = aiter(ada.messages())
        for number in range(count):
            if number == 4:
                before = [engine.turns for engine in engines]
            await peer.send(numbered(number))
            come = await (ada.receive() if way == "receive" else anext(stream))
            assert come.data == numbered(number) and come.peer is peer
        assert all(engine.turns - b < count / 2 for engine, b in zip(engines, before, strict=True))
        counted = ada.stats().messages_received, bob.stats().messages_received
        assert counted == (count, count) and peer.stats().messages_received == count
        task.cancel()


async def test_who_is_cancelled_though_a_message_was_given_to_him_leaves_it_to_the_next():
    """A signal handler has struck between the two: the message is nowhere else."""
    async with pair() as (_, bob, peer):
        await peer.send(b"one")
        assert await received(bob, 1) == [b"one"]
        tasks = [asyncio.create_task(received(bob, 1)) for _ in range(2)]
        while receivers_of(bob) < 2:
            await asyncio.sleep(0)
        (sender,) = bob.peers.values()
        engine_of(bob).receiver.got[0] = pt.Message(sender, b"given")
        tasks[0].cancel()
        async with asyncio.timeout(GUARD):
            assert await tasks[1] == [b"given"]
        assert tasks[0].cancelled() and not receivers_of(bob)


def test_a_message_that_was_given_is_the_next_one_wherever_a_signal_strikes(any_loop):
    """The task that has it ends with what the signal handler has raised."""

    class Interrupt(BaseException):
        pass

    def raises():
        raise Interrupt

    async def struck_at(nth):
        strike = Striking(nth, raises, ("peertalk.incoming",))
        async with pair() as (_, bob, peer):
            await peer.send(b"first")
            assert await received(bob, 1) == [b"first"]
            task = asyncio.create_task(received(bob, 1))
            while not receivers_of(bob):
                await asyncio.sleep(0)
            (sender,) = bob.peers.values()
            given = pt.Message(sender, b"given")

            def give():
                engine_of(bob).receiver.give(lambda _, __, place: [place.insert(0, given)])

            gc.disable()  # a finalizer of an earlier stream swallows what strikes there
            strike.begin()
            asyncio.get_running_loop().call_soon(give)
            await asyncio.wait([task])
            strike.end()
            gc.enable()
            if strike.struck:
                assert isinstance(task.exception(), Interrupt)
                task = asyncio.create_task(received(bob, 1))
            assert await task == [b"given"]
            return strike.steps

    steps = any_loop.run_until_complete(struck_at(1 << 60))
    assert steps > 5  # where only lines are traced
    for nth in range(1, steps - 1):  # no signal handler runs between a value and its return
        any_loop.run_until_complete(struck_at(nth))


async def test_messages_that_come_one_at_a_time_go_to_who_waits_longest():
    """The one who was given a message stands behind the others the next time."""
    async with pair() as (_, bob, peer):
        order = []

        async def consume(name):
            async for message in bob.messages():
                order.append((name, message.data))

        tasks = [asyncio.create_task(consume(name)) for name in ("one", "two")]
        while receivers_of(bob) < 2:
            await asyncio.sleep(0)
        for number in range(8):
            await peer.send(numbered(number))
            while len(order) == number or receivers_of(bob) < 2:
                await asyncio.sleep(0)
        assert order == [(("one", "two")[number % 2], numbered(number)) for number in range(8)]
        for task in tasks:
            task.cancel()


async def test_whoever_waits_for_a_peer_is_not_disturbed_by_messages():
    """Twenty tasks that wait for somebody made each message ten times as dear."""
    async with pair() as (_, bob, to_bob):
        looks = 0

        def absent(peer):
            nonlocal looks
            looks += 1
            return peer.name == "cid" and peer.connected

        waiting = asyncio.create_task(bob.wait_for(absent))
        await asyncio.sleep(0)
        for number in range(200):
            await to_bob.send(numbered(number))
            await received(bob, 1)
            await bob.peers["ada"].send(b"back")
        assert looks < 20
        async with pt.Node("cid", **loopback()) as cid:
            await cid.connect(bob.address, timeout=GUARD)
            assert (await asyncio.wait_for(waiting, GUARD)).name == "cid"


async def test_a_second_iterator_over_a_peers_messages_goes_on_when_the_first_ends():
    """The first to leave must not take the inbox with it."""
    async with pair() as (_, bob, to_bob):
        peer = await bob.wait_for("ada", timeout=GUARD)
        first, second = peer.messages(), peer.messages()
        one, two = asyncio.ensure_future(anext(first)), asyncio.ensure_future(anext(second))
        await asyncio.sleep(0)
        await to_bob.send_many([b"a", b"b"])
        assert {(await asyncio.wait_for(task, GUARD)).data for task in (one, two)} == {b"a", b"b"}
        await first.aclose()
        await to_bob.send(b"c")
        assert (await asyncio.wait_for(anext(second), GUARD)).data == b"c"
        await second.aclose()


async def test_a_full_inbox_is_warned_about_only_when_nothing_is_taken(caplog, monkeypatch):
    """A reader that is slow but reads needs no warning; one that forgot to read does, once, and
    the log says when it remembered."""
    monkeypatch.setattr("peertalk.runtime.log.SETTLED", 0.01)
    monkeypatch.setattr("peertalk.runtime.traffic._UNTAKEN_TIME", 0.05)
    async with pair(receive_queue_bytes=1024) as (_, bob, peer):
        sending = asyncio.create_task(peer.send_many([bytes(1000)] * 2000))
        while not bob.stats().pauses:
            await asyncio.sleep(0)
        while "nobody takes those from" not in caplog.text:
            await asyncio.sleep(0.01)
        assert "'ada'" in caplog.text
        # who reads now may be slow: this machine decides
        monkeypatch.setattr("peertalk.runtime.traffic._UNTAKEN_TIME", 3600)
        await received(bob, 2000)
        await sending
        while "taking messages works again" not in caplog.text:
            await asyncio.sleep(0.01)
        assert len(caplog.messages) == 2


# Events


async def test_each_stream_gets_every_event_and_one_that_is_not_read_gets_a_count_in_its_place(
    monkeypatch,
):
    """A consumer that sleeps costs bounded memory, learns how much it missed, and where."""
    monkeypatch.setattr("peertalk.protocol.events._KEPT_MAX", 5)
    async with pair() as (ada, bob, peer):
        quick, slow = ada.events(), ada.events()
        seen = []

        async def read():
            async for event in quick:
                seen.append(event)

        reading = asyncio.create_task(read())

        async def send(number):
            await peer.send(numbered(number))
            await received(bob, 1)
            while sum(isinstance(event, pt.Sent) for event in seen) <= number:
                await asyncio.sleep(0)  # one event of each, and not one of several

        for number in range(10):
            await send(number)
        got = [await anext(slow) for _ in range(3)]
        for number in range(10, 12):
            await send(number)
        got += [await anext(slow) for _ in range(3)]
        await ada.aclose()
        await reading
        got += [event async for event in slow]
        place = next(index for index, event in enumerate(got) if isinstance(event, pt.EventsMissed))
        assert seen[:2] == [pt.PeerFound(peer), pt.PeerConnected(peer)], "what it began with"
        assert place == 7 and got[:7] == seen[:7]
        assert got[place + 1 :] == seen[7 + got[place].count :]
        assert not [event for event in seen if isinstance(event, pt.EventsMissed)]


async def test_events_can_be_matched_and_a_closed_stream_ends():
    """The documented way to read them, and the way out."""
    async with pt.Node("ada", **loopback()) as ada, pt.Node("bob", **loopback()) as bob:
        async with ada.events() as events:
            peer = await ada.connect(bob.address, timeout=GUARD)
            names = []
            for _ in range(2):
                match await asyncio.wait_for(anext(events), GUARD):
                    case pt.PeerFound(found):
                        names.append(("found", found.name))
                    case pt.PeerConnected(connected):
                        names.append(("connected", connected.name))
            assert names == [("found", "bob"), ("connected", "bob")]
        assert [event async for event in events] == []
        assert engine_of(ada).publish is None
        await peer.send(b"x")
    assert [event async for event in ada.events()] == []


# Streams: shared, let go, and begun with what is true


def open_streams(node, peer):
    """One of each kind that a node and a peer have."""
    return [node.messages(), peer.messages(), node.batches(), node.datagrams(), node.events()]


async def wait_in(stream, count=1):
    """So many tasks that wait for the next item of a stream from which all was taken."""
    tasks = [asyncio.create_task(anext(stream)) for _ in range(count)]
    while len(stream._waiting) < count:
        await asyncio.sleep(0)
    return tasks


async def empty(stream):
    """Take what is there, of a stream of events what it began with."""
    seen = []
    while True:
        taking = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        if not taking.done():
            taking.cancel()
            await asyncio.wait([taking])
            return seen
        seen.append(taking.result())


async def test_two_tasks_share_one_stream_of_events_and_closing_it_wakes_both():
    """A second task on a stream used to push the first one out of it, for ever, over aclose()
    too."""
    async with pair() as (ada, bob, peer):
        events = ada.events()
        seen = {"one": [], "two": []}

        async def read(name):
            async for event in events:
                seen[name].append(event)
                await asyncio.sleep(0)

        reading = [asyncio.create_task(read(name)) for name in seen]
        for number in range(20):
            await peer.send(numbered(number), no_delay=True)
            await received(bob, 1)

        def told():
            sent = [each for each in (*seen["one"], *seen["two"]) if isinstance(each, pt.Sent)]
            return sorted(number for each in sent for number in range(each.first, each.last + 1))

        async with asyncio.timeout(GUARD):
            while len(told()) < 20:
                await asyncio.sleep(0)
            while len(events._waiting) < 2:
                await asyncio.sleep(0)
            await events.aclose()
            await asyncio.gather(*reading)
        assert told() == list(range(1, 21)) and all(seen.values())


async def test_closing_a_stream_or_its_node_wakes_every_task_that_waits_there():
    """Whatever the kind of stream and however many wait: nobody hangs over its end."""
    async with pair() as (ada, _, peer):
        for stream in open_streams(ada, peer):
            await empty(stream)
            waiting = await wait_in(stream, 3)
            await stream.aclose()
            ended = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), GUARD)
            assert [type(each) for each in ended] == [StopAsyncIteration] * 3
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            await stream.aclose()
        assert not receivers_of(ada) and not len(engine_of(ada).datagrams.waiters)
        waiting = []
        for stream in open_streams(ada, peer):
            await empty(stream)
            waiting += await wait_in(stream, 2)
        await ada.aclose()
        ended = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), GUARD)
        assert [type(each) for each in ended[:8]] == [StopAsyncIteration] * 8
        assert {type(each) for each in ended[8:]} == {pt.PeerDisconnected, pt.PeerLost}


async def test_one_who_leaves_a_stream_though_a_message_came_for_him_leaves_it_to_another():
    """Two streams of one node share its messages: the news must not end with the one that is
    closed before its reader has looked."""
    async with pair() as (_, bob, to_bob):
        leaving, staying = bob.messages(), bob.messages()

        async def closing():
            await bob.receive()
            await leaving.aclose()

        closer = asyncio.ensure_future(closing())
        while receivers_of(bob) < 1:
            await asyncio.sleep(0)
        (first,), (second,) = await wait_in(leaving), await wait_in(staying)
        await to_bob.send_many([b"x", b"y"])
        assert (await asyncio.wait_for(second, GUARD)).data == b"y"
        await closer
        with pytest.raises(StopAsyncIteration):
            await first


@pytest.mark.parametrize("kind", range(5))
async def test_a_stream_goes_on_after_one_anext_was_cancelled_or_out_of_time(kind):
    """A time-out around anext() is the way to look now and then; after the first one a stream said
    that the node is closed."""
    async with pair() as (ada, bob, to_bob):
        peer = await bob.wait_for("ada", timeout=GUARD)
        stream = open_streams(bob, peer)[kind]
        await empty(stream)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        (waiting,) = await wait_in(stream)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        if kind == 3:
            ada.send_datagram(to_bob, b"x")
        await to_bob.send(b"x")
        await peer.send(b"y")  # Sent
        item = await asyncio.wait_for(anext(stream), GUARD)
        assert type(item) is [pt.Message, pt.Message, pt.Batch, pt.Datagram, pt.Sent][kind]
        assert not stream._waiting


async def test_a_loop_that_was_out_of_time_is_gone_on_with():
    """`async for` has a road of its own over messages; who keeps what aiter() gives may look at it
    now and then too, and who loops again goes on where the last loop was."""
    async with pair() as (_, bob, to_bob):
        messages = bob.messages()
        loop = aiter(messages)
        for number in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(loop), 0.01)
            await to_bob.send(numbered(number))
            assert (await asyncio.wait_for(anext(loop), GUARD)).data == numbered(number)
        await to_bob.send_many([numbered(number) for number in range(3, 9)])
        got = []
        for count in (1, 2, 3):
            async for message in messages:
                got.append(message.data)
                if len(got) >= count:
                    break
        got += [(await anext(loop)).data, (await anext(messages)).data, (await anext(loop)).data]
        assert got == [numbered(number) for number in range(3, 9)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                async for _ in messages:
                    raise AssertionError("nothing was sent")
        await bob.aclose()
        assert [message async for message in messages] == []
        with pytest.raises(StopAsyncIteration):
            await anext(loop)


async def test_a_loop_in_the_middle_of_a_lot_ends_when_its_stream_is_closed():
    """What has come stays for others, in its order."""
    async with pair() as (_, bob, to_bob):
        await to_bob.send_many([numbered(number) for number in range(10)])
        for messages in (bob.messages(), (await bob.wait_for("ada")).messages()):
            got = []
            async for message in messages:
                got.append(message.data)
                if len(got) == 3:
                    await messages.aclose()
            assert len(got) == 3
        assert await received(bob, 4) == [numbered(number) for number in range(6, 10)]


async def test_event_streams_that_nobody_has_do_not_gather_while_nothing_happens():
    """A loop that looks at events for a second at a time left one behind each time, until the next
    event: on a quiet network, for ever."""
    async with pt.Node("ada", **loopback()) as ada:
        for _ in range(100):
            ada.events()
        gc.collect()
        kept = ada.events()
        assert len(ada._listeners._streams) == 1
        await kept.aclose()


async def test_streams_left_by_break_are_let_go_and_no_longer_fed():
    """Each such loop left a stream in the node for its life, with up to 4,096 events."""
    async with pair() as (ada, bob, peer):
        streams = []
        for number in range(50):
            async for event in ada.events():
                assert event == pt.PeerFound(peer)
                break
            kept = ada.events()
            streams.append(weakref.ref(kept))
            await peer.send(numbered(number), no_delay=True)
            await received(bob, 1)
        del kept
        listening = ada.events()
        assert not any(each() for each in streams)
        await peer.send(b"x")
        await next_event(listening, pt.Sent)
        assert len(ada._listeners._streams) == 1
        del listening
        await peer.send(b"y", no_delay=True)
        await received(bob, 2)
        async with asyncio.timeout(GUARD):
            while peer.stats().messages_sent < 52:
                await asyncio.sleep(0)
        assert not ada._listeners._streams and engine_of(ada).publish is None


async def test_a_task_that_nobody_keeps_stays_while_it_waits_for_an_event():
    """The node lets go of streams that nobody has. One that is waited in is had, though its task
    may be known to nothing else."""
    async with pair() as (ada, _, peer):
        gone = asyncio.get_running_loop().create_future()

        async def watch():
            async for event in ada.events():
                if isinstance(event, pt.PeerDisconnected):
                    gone.set_result(event.peer)

        asyncio.create_task(watch())  # noqa: RUF006
        for _ in range(3):
            await asyncio.sleep(0)
        gc.collect()
        await peer.disconnect(timeout=GUARD)
        assert await asyncio.wait_for(gone, GUARD) is peer


async def test_a_peers_messages_left_by_break_go_to_the_node():
    """What nobody iterates any more must not keep messages to itself."""
    async with pair() as (_, bob, to_bob):
        peer = await bob.wait_for("ada", timeout=GUARD)
        await to_bob.send_many([b"1", b"2", b"3"])
        async for message in peer.messages():
            assert message.data == b"1"
            break
        assert await received(bob, 2) == [b"2", b"3"]
        assert engine_of(bob).inbox.outlet_of(peer._remote) is engine_of(bob).inbox


@pytest.mark.parametrize("loop", [True, False], ids=["async for", "anext"])
async def test_a_peers_messages_left_by_a_cancelled_task_go_to_the_node(loop):
    """A program keeps its tasks in a list, and a cancelled task keeps its error, with the frames
    that it went through. The stream of messages in those frames is nobody's any more."""
    async with pair() as (_, bob, to_bob):
        peer = await bob.wait_for("ada", timeout=GUARD)

        async def read() -> None:
            if loop:
                async for _ in peer.messages():
                    pass
            else:
                await anext(peer.messages())

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await to_bob.send(b"1")
        assert await received(bob, 1) == [b"1"] and task.cancelled()


async def test_a_stream_of_events_begins_with_what_is_true():
    """A program that asks who is there and then listens misses who comes in between; one that
    listens first hears of some twice."""
    async with pair() as (ada, bob, peer), pt.Node("cid", **loopback()) as cid:
        other = await ada.connect(cid.address, timeout=GUARD)
        await other.disconnect(timeout=GUARD)
        assert ada.peers.get("cid") is None, "known only while it was connected"
        other = await ada.connect(cid.address, timeout=GUARD)
        for _ in range(2):
            assert await empty(ada.events()) == [
                pt.PeerFound(peer),
                pt.PeerConnected(peer),
                pt.PeerFound(other),
                pt.PeerConnected(other),
            ]
    node = pt.Node("eve", **loopback())
    early = node.events()
    async with node, pt.Node("bob", **loopback()) as bob:
        peer = await node.connect(bob.address, timeout=GUARD)
        assert await empty(early) == [pt.PeerFound(peer), pt.PeerConnected(peer)]


def test_no_event_is_doubled_or_missed_where_a_stream_begins():
    """Whoever adds and removes by the events has at each moment whom the node has, whenever it
    began to listen."""

    def kept(stream, peers):
        """Whom the events of a stream tell as known and as connected, with each told once."""
        while (event := stream._events.take()) is not None:
            match event:
                case pt.PeerFound(peer):
                    assert peer not in peers
                    peers[peer] = False
                case pt.PeerLost(peer):
                    assert peers.pop(peer) is False
                case pt.PeerConnected(peer):
                    assert peers[peer] is False
                    peers[peer] = True
                case pt.PeerDisconnected(peer):
                    assert peers[peer] is True
                    peers[peer] = False
        return peers

    async def main(net: sim.Network) -> int:
        ada = await net.node("ada", peer_timeout=2, announce_interval=0.5)
        listeners = []

        async def guest(number):
            node = await net.node(f"guest {number}", peer_timeout=2, announce_interval=0.5)
            await asyncio.sleep(number / 100)
            peer = await node.wait_for("ada")
            for _ in range(3):
                await peer.send(b"x")
                await asyncio.sleep(0.1)
                await peer.disconnect()
            if number % 2:
                node.close_nowait()
            else:
                await node.aclose()

        async def check():
            while True:
                listeners.append((ada.events(), {}))
                for stream, peers in listeners:
                    now = {peer: peer._remote.connection is not None for peer in ada.peers.values()}
                    assert kept(stream, peers) == now
                await asyncio.sleep(0.003)

        checking = asyncio.create_task(check())
        await asyncio.gather(*(guest(number) for number in range(6)))
        checking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await checking
        return len(listeners)

    assert sim.run(main, seed=3) > 50


async def test_when_the_node_is_closed_streams_give_what_had_come_and_end():
    """An open one and one that is asked for later, of whatever kind: what has come is not lost, and
    the end is an end. A call, of which there is no end, is an error."""
    async with pair() as (ada, bob, to_bob):
        peer = await bob.wait_for("ada", timeout=GUARD)
        await to_bob.send_many([b"1", b"2", b"3", b"4"])
        ada.send_datagram(to_bob, b"d")
        async with asyncio.timeout(GUARD):
            while bob.stats().datagrams_received < 1 or bob.stats().messages_received < 4:
                await asyncio.sleep(0)
        opened = bob.messages()
        assert (await anext(opened)).data == b"1"
        await bob.aclose()
        for call in (bob.receive, bob.receive_datagram):
            with pytest.raises(pt.InvalidState, match="closed"):
                await call()
        assert (await anext(opened)).data == b"2"
        assert [message.data async for message in peer.messages()] == [b"3", b"4"]
        assert [message async for message in opened] == []
        assert [message async for message in bob.messages()] == []
        assert [batch async for batch in bob.batches()] == []
        assert [datagram.data async for datagram in bob.datagrams()] == [b"d"]
        assert [event async for event in bob.events()] == []


# What waking costs


async def test_a_message_wakes_one_of_a_thousand_who_wait_and_nobody_who_waits_for_a_peer(
    monkeypatch,
):
    """A thousand tasks in receive(), or twenty that wait for a peer among five hundred, made each
    message as dear as a look at all of them."""
    async with pair() as (_, bob, to_bob):
        await bob.wait_for(lambda peer: peer.connected, timeout=GUARD)
        for number in range(500):
            engine_of(bob).roster.make_peer(
                number.to_bytes(8, "big"), None, f"peer {number}", ("127.0.0.1", 1)
            )
        looks = wakes = taken = 0
        take = engine_of(bob).inbox.take

        def absent(peer):
            nonlocal looks
            looks += 1
            return False

        def counted():
            nonlocal wakes
            wakes += 1
            return take()

        async def serve():
            nonlocal taken
            while True:
                await bob.receive()
                taken += 1

        watching = [asyncio.create_task(bob.wait_for(absent)) for _ in range(20)]
        watching += [asyncio.create_task(bob.wait_for(f"nobody {n}")) for n in range(20)]
        serving = [asyncio.create_task(serve()) for _ in range(1000)]
        while receivers_of(bob) < 1000:
            await asyncio.sleep(0)
        assert looks == 20 * 501
        monkeypatch.setattr(type(engine_of(bob).inbox), "take", lambda _: counted())
        events = bob.events()
        back = bob.peers["ada"]
        looks, total = 0, 300
        async with asyncio.timeout(GUARD):
            for number in range(total):
                await to_bob.send(numbered(number), no_delay=True)
                await back.send(b"x", no_delay=True)  # Sent
                while taken <= number:
                    await asyncio.sleep(0)
            while back.stats().messages_sent < total:
                await asyncio.sleep(0)
        assert looks == 0
        # one look when the server comes back, one when it is woken
        assert wakes <= 3 * total
        assert sum(isinstance(event, pt.Sent) for event in await empty(events)) >= 1
        for task in (*watching, *serving):
            task.cancel()
