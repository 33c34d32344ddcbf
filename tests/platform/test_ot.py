"""The Open Transport world: what is its own. What it shares with MacTCP is in test_mactcp.py, and
runs on both.

The provider's rules are tested in C (tests/c/ot_rules.c), where they can be broken.
"""

from __future__ import annotations

import random

import pytest

from peertalk import _core
from peertalk._numbers import ERR_NO_MEMORY, ERR_WOULD_BLOCK


def test_the_provider_refuses_what_the_real_one_refuses_and_says_which_rule_was_broken(
    standard_programs,
):
    """The order of the modes, every event from T_LISTEN to T_UDERR, work at notifier time, bytes
    changed before they come back; flow control in part; memory that runs out; abandoned slots;
    synchronous sends."""
    standard_programs.run("ot_rules")


@pytest.mark.parametrize("limit", [1, 100, 5_000])
def test_a_stopped_flow_delays_and_never_reorders(pair, c_core, limit):
    """A send that is taken in part is the place where the next message could slip in between."""
    both = pair(
        (c_core, c_core), ("opentransport", "mactcp"), preset="lan", loop={"send_limit": limit}
    )
    messages = [
        bytes([number % 251]) * (1 + number * 7 % (40 if limit == 1 else 900))
        for number in range(60)
    ]
    both.send_all(messages)
    assert both.received == messages
    assert both.sim.link_statistics("a", "b").packets > (60 if limit <= 100 else 5)


@pytest.mark.parametrize("seed", range(6))
def test_a_provider_without_memory_delays_and_never_loses_doubles_or_reorders(pair, c_core, seed):
    """kOTOutOfMemoryErr is not the end of a connection: T_MEMORYRELEASED says when to go on. A send
    that is refused between two that are taken is where a message could be lost, doubled or
    overtaken."""
    both = pair(
        (c_core, c_core),
        ("opentransport", "opentransport"),
        seed=seed,
        preset="lan",
        loop={"send_limit": (0, 700)[seed % 2]},
        loss=0.02,
    )
    dice = random.Random(seed)
    messages = [bytes([number % 251]) * (1 + number * 7 % 900) for number in range(150)]
    fails = refused = 0
    for message in messages:
        if dice.random() < 0.2:
            refused += fails != 0 and both.loop_a.pool.attempts >= fails
            fails = dice.randrange(4)  # 0: memory is back
            both.loop_a.pool.fail_at(fails)
        while (code := both.link_a.send(message)) < 0:
            # it is the slot's buffer that is not to be had
            if code == ERR_NO_MEMORY or (fails and both.link_a.slots_available):
                both.loop_a.pool.fail_at(fails := 0)
            else:
                assert code == ERR_WOULD_BLOCK and both.run(lambda: both.link_a.slots_available), (
                    code,
                    both.closed,
                )
    assert both.run(lambda: both.sent == len(messages) and len(both.received) == len(messages)), (
        both.sent,
        len(both.received),
        both.closed,
    )
    assert refused and both.received == messages and not both.closed and not both.failed


def test_both_worlds_take_the_same_time(pair):
    """The link, not the world, is what is slow: figures of one hold for the other."""
    core = _core.load("standard")
    hashes = set()
    for world in ("mactcp", "opentransport"):
        both = pair((core, core), (world, world))
        both.send_all([bytes(2_000)] * 20)
        hashes.add((both.sim.trace_hash, both.sim.now_ns))
    assert len(hashes) == 1
