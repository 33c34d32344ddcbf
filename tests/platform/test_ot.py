"""The Open Transport world: what is its own. What it shares with MacTCP is in test_mactcp.py, and runs on both.

The provider's rules are tested in C (tests/c/ot_rules.c), where they can be broken.
"""

from __future__ import annotations

import pytest

from peertalk import _core

SANITIZED = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def test_the_provider_refuses_what_the_real_one_refuses_and_says_which_rule_was_broken(run_c):
    """The order of the modes, every event from T_LISTEN to T_UDERR, work at notifier time, bytes changed before they come back; flow control
    in part; abandoned slots; synchronous sends."""
    run_c("ot_rules", flags=SANITIZED)


@pytest.mark.parametrize("limit", [1, 100, 5_000])
def test_a_stopped_flow_delays_and_never_reorders(pair, c_core, limit):
    """A send that is taken in part is the place where the next message could slip in between."""
    both = pair((c_core, c_core), ("opentransport", "mactcp"), preset="lan", loop={"send_limit": limit})
    messages = [bytes([number % 251]) * (1 + number * 7 % (40 if limit == 1 else 900)) for number in range(60)]
    both.send_all(messages)
    assert both.received == messages
    assert both.sim.link_statistics("a", "b").packets > (60 if limit <= 100 else 5)


def test_both_worlds_take_the_same_time(pair):
    """The link, not the world, is what is slow: figures of one hold for the other."""
    core = _core.load("standard")
    hashes = set()
    for world in ("mactcp", "opentransport"):
        both = pair((core, core), (world, world))
        both.send_all([bytes(2_000)] * 20)
        hashes.add((both.sim.trace_hash, both.sim.now_ns))
    assert len(hashes) == 1
