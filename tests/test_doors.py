"""Both front doors, and what they must have in common; each fault here was found by reading one of
them critically."""

from __future__ import annotations

import asyncio
import contextlib
import weakref

import pytest
from kit.nodes import loopback, pair
from kit.waiting import GUARD

import peertalk as pt


async def fill(peer):
    """Have all that the peer's node takes in, the system and the queue hold."""
    with contextlib.suppress(pt.WouldBlock):
        while True:
            peer.send_nowait(bytes(8000))


# The end of a node


async def test_of_two_polite_ends_the_shorter_time_holds():
    """A supervisor that closes what hangs in its end must not hang with it."""
    async with (
        pt.Node("bob", **loopback(receive_queue_bytes=1024)) as bob,
        pt.Node("ada", **loopback()) as ada,
    ):
        await fill(await ada.connect(bob.address, timeout=GUARD))
        patient = asyncio.create_task(ada.aclose(timeout=None))
        await asyncio.sleep(0)
        async with asyncio.timeout(GUARD):
            assert await ada.aclose(timeout=0.05) == await patient > 0


@pytest.mark.filterwarnings("ignore:.*was not closed:ResourceWarning")
@pytest.mark.parametrize("kind", ["messages", "batches", "datagrams"])
async def test_who_waits_hears_that_a_node_was_dropped(kind):
    """A stream does not hold its node: its reader waited for ever."""
    node = await pt.Node("ada", **loopback()).start()
    waiting = asyncio.ensure_future(anext(getattr(node, kind)(), "ended"))
    await asyncio.sleep(0)
    del node
    assert await asyncio.wait_for(waiting, GUARD) == "ended"


async def test_a_wait_for_that_is_over_does_not_hold_its_node():
    """The loop holds the engine, and the engine held the node: dropped, it was never closed."""
    node = await pt.Node("ada", **loopback()).start()
    with pytest.raises(pt.Timeout):
        await node.wait_for("nobody", timeout=0.01)
    await asyncio.sleep(0)  # until here the loop's own step keeps what it was cancelled with
    gone = weakref.ref(node)
    with pytest.warns(ResourceWarning, match="'ada' was not closed"):
        del node
    assert gone() is None


def test_a_node_closes_though_tasks_of_its_closed_loop_wait():
    """Its error says that close_nowait() is left, which then raised "Event loop is closed"."""
    loop = asyncio.new_event_loop()
    node = loop.run_until_complete(pt.Node("ada", **loopback()).start())
    bob = loop.run_until_complete(pt.Node("bob", **loopback(receive_queue_bytes=1024)).start())
    peer = loop.run_until_complete(node.connect(bob.address, timeout=GUARD))
    loop.run_until_complete(fill(peer))
    waiting = [
        loop.create_task(each)
        for each in (
            node.receive(),
            node.receive_datagram(),
            node.wait_for("nobody"),
            peer.send(bytes(8000)),
            peer.disconnect(),
            peer.ping(timeout=None),
        )
    ]
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    assert node.close_nowait() > 0 and bob.close_nowait() == 0
    assert node.stats().links_open == bob.stats().links_open == 0
    for each in waiting:
        each._log_destroy_pending = False


def test_a_node_is_closed_by_atexit(start_python):
    """There nobody called the caller of close_nowait(), which looked for one."""
    script = """
import asyncio, atexit, peertalk as pt
loop = asyncio.new_event_loop()
node = loop.run_until_complete(pt.Node("ada", bind="127.0.0.1", port=0, discovery=False).start())
atexit.register(lambda transport=node._transport: print(transport.closed))
atexit.register(node.close_nowait)
"""
    process = start_python("-c", script)
    assert [each.strip() for each in process.communicate(timeout=GUARD)] == ["True", ""]


# What a call waits for


async def test_a_time_out_of_the_programs_own_is_no_time_out_of_the_call():
    """A socket's is TimeoutError: an iterator that read one was told that there was no room."""

    def reads():
        yield b"one"
        raise TimeoutError("timed out")

    async with pair() as (_, _, peer):
        with pytest.raises(TimeoutError, match=r"^timed out$") as raised:
            await peer.send_many(reads(), timeout=GUARD)
        assert type(raised.value) is TimeoutError and raised.value.accepted == 1
