"""Counters of links become those of the node: nothing counted twice, nothing lost when a link
ends."""

from __future__ import annotations

import ast
import inspect
import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk._core.values import LinkStatistics, LoopStatistics, PoolStatistics
from peertalk.protocol.statistics import (
    LinkTotals,
    MemoryUse,
    NodeStatistics,
    PeerStatistics,
    QueueStatus,
)

LOOP = LoopStatistics(turns=11, wait_calls=12, crc_errors=13, bad_frames=14)
POOL = PoolStatistics(
    acquires=1, allocations=2, refusals=3, returns=4, bytes=5, peak_bytes=6, in_use=7, buffers=8
)
LINK = st.builds(LinkStatistics, *[st.integers(0, 1 << 40)] * len(LinkStatistics._fields))


def report(totals, links):
    return totals.report(
        links,
        LOOP,
        POOL,
        links_open=len(links),
        links_refused=21,
        inbox_bytes=22,
        peers=23,
        peers_refused=25,
        queued=24,
        landing_bytes=26,
        offers_waiting=27,
        grants_lost=28,
    )


@given(links=st.lists(LINK, max_size=5), ended=st.integers(0, 5))
def test_it_makes_no_difference_to_the_sums_which_links_have_ended(links, ended):
    """A counter that falls when a connection closes is no counter."""
    some, all_open = LinkTotals(), LinkTotals()
    for link in links[:ended]:
        some.add(link)
    before, after = report(all_open, links), report(some, links[ended:])
    assert msgspec.structs.replace(before, links_open=0) == msgspec.structs.replace(
        after, links_open=0
    )
    assert before.payload_bytes_sent == sum(link.payload_bytes_sent for link in links)
    assert before.bytes_received == sum(link.bytes_received for link in links)
    assert before.slots_high_water == max((link.slots_high_water for link in links), default=0), (
        "the most on one link, not a sum"
    )
    assert report(some, links[ended:]) == after, "asking changes nothing"


def test_messages_that_no_link_has_taken_are_accepted_too():
    """A user counts what send() took: what waits, and what was given up, are part of it."""
    totals = LinkTotals()
    totals.abandoned = 3
    assert report(totals, []).messages_accepted == 3 + 24


def test_messages_for_each_write_do_not_count_what_was_never_written():
    """The figure that says whether packing works."""
    totals = LinkTotals()
    assert report(totals, []).messages_per_write == 0.0
    totals.accepted, totals.writes, totals.abandoned = 30, 4, 1_000
    assert report(totals, []).messages_per_write == 7.5


def test_each_figure_comes_from_its_own_source():
    """Twenty integers in a row are easily shifted by one."""
    totals = LinkTotals()
    for value, name in enumerate(sorted(LinkTotals.__slots__), 100):
        setattr(totals, name, value)
    seen = report(totals, [])
    assert (seen.turns, seen.crc_errors) == (11, 13)
    assert seen.bad_frames == 14 + totals.bad_words, "of the links, and of what was said on them"
    assert (seen.landing_bytes, seen.offers_waiting, seen.grants_lost) == (26, 27, 28)
    assert (seen.pool_bytes, seen.pool_peak_bytes) == (5, 6)
    assert (seen.links_open, seen.links_refused, seen.inbox_bytes, seen.peers) == (0, 21, 22, 23)
    assert seen.peers_refused == 25
    same = {
        "messages_sent": "sent",
        "messages_failed": "failed",
        "messages_received": "received",
        "payload_bytes_sent": "payload_sent",
        "payload_bytes_received": "payload_received",
        "bytes_sent": "bytes_sent",
        "bytes_received": "bytes_received",
        "write_calls": "writes",
        "read_calls": "reads",
        "slots_high_water": "high_water",
        "links_opened": "opened",
        "frames_ignored": "ignored",
        "pauses": "pauses",
        "announcements_sent": "announcements_sent",
        "announcements_refused": "announcements_refused",
        "accepts_refused": "accepts_refused",
    }
    assert {name: getattr(seen, name) for name in same} == {
        name: getattr(totals, source) for name, source in same.items()
    }


@pytest.mark.parametrize("kind", [NodeStatistics, PeerStatistics, QueueStatus, MemoryUse])
def test_each_figure_is_explained_under_its_own_name(kind):
    """A number without a unit is a riddle, and a paragraph for all of them is another one."""
    body = ast.parse(inspect.getsource(kind)).body[0].body
    explained = {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    assert list(explained) == list(kind.__struct_fields__)
    assert all(text[0].isupper() or text[0] == '"' for text in explained.values())
    assert all(text.endswith(".") for text in explained.values())
