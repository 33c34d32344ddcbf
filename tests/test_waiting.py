"""One task that waits, and whoever tells it: cancelled, struck by signal handlers, on loops of both
kinds. The coroutines are those of asyncio; what lets the task go on is the test."""

from __future__ import annotations

import asyncio

import pytest
from kit.striking import Striking
from kit.waiting import GUARD

from peertalk.waiting import Waiting


class Interrupt(BaseException):
    """What a signal handler raises, and no program catches by chance."""


def test_a_task_that_was_told_goes_on_once_wherever_a_signal_strikes(any_loop):
    """The task is in the hands of what lets it go on, and nobody else would."""

    def raises():
        raise Interrupt

    def struck_at(nth):
        woken, went_on = [], []
        waiting = Waiting(any_loop, lambda go_on: woken.append(go_on) or True)
        strike = Striking(nth, raises, ("peertalk.waiting",))

        async def wait():
            await waiting
            went_on.append(True)

        def call(what):
            strike.begin()
            try:
                what()
            except Interrupt:
                what()  # the mending of a node tells again, and its worker asks again
            finally:
                strike.end()

        task = any_loop.create_task(wait())
        any_loop.call_soon(call, waiting.tell)
        any_loop.call_soon(call, lambda: woken[0]())
        any_loop.run_until_complete(asyncio.wait_for(task, GUARD))
        for go_on in woken:
            go_on()
        assert went_on == [True] and not waiting.tell()
        return strike.struck

    steps = 1
    while struck_at(steps):
        steps += 1
    assert steps > 10  # where only lines are traced


def test_a_task_that_a_signal_strikes_as_it_begins_to_wait_is_not_lost(any_loop):
    """A future that is written in Python has steps that are its own, and no longer the task's: a
    task that is struck there has neither failed, nor is it called by anybody."""

    def raises():
        raise Interrupt

    def struck_at(nth):
        woken, steps = [], []
        strike = Striking(nth, raises, ("peertalk.waiting",))

        async def wait():
            strike.begin()
            try:
                waiting = Waiting(any_loop, lambda go_on: woken.append(go_on) or True)
                any_loop.call_soon(tell, waiting)
                await waiting
            except Interrupt:
                steps.append("struck")
            steps.append("over")

        def tell(waiting):
            strike.end()
            assert waiting.tell()
            woken[0]()

        task = any_loop.create_task(wait())
        any_loop.run_until_complete(asyncio.wait_for(task, GUARD))
        strike.end()
        assert steps == (["struck", "over"] if strike.struck else ["over"])
        return strike.struck

    steps = 1
    while struck_at(steps):
        steps += 1
    assert steps > 3  # where only lines are traced


async def test_who_is_told_and_cancelled_before_it_goes_on_is_cancelled():
    """As with a future of the loop; whoever told it can see that it was told."""
    loop, woken = asyncio.get_running_loop(), []

    async def wait():
        await waiting

    waiting = Waiting(loop, lambda go_on: woken.append(go_on) or True)
    task = loop.create_task(wait())
    await asyncio.sleep(0)
    assert waiting.tell() and not waiting.tell()
    task.cancel()
    woken[0]()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert waiting.told
