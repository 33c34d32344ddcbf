"""Whom to dial, and when again: tables of what was observed and what follows."""

from __future__ import annotations

import itertools

import pytest

from peertalk.protocol import reaching
from peertalk.protocol.connections import RETRY_DELAYS, YOUNG
from peertalk.protocol.reaching import (
    RECALL_DELAY,
    STALE_DIAL,
    AfterFailure,
    AfterLoss,
    Failure,
    Loss,
    Returns,
)

LAST = len(RETRY_DELAYS)
ADA, BOB, CID = b"a" * 8, b"b" * 8, b"c" * 8


def test_a_peer_is_dialled_only_where_nothing_stands_against_it():
    """A second dial to a peer that is there, or nearly, is a connection too many."""
    names = ("connected", "waiting", "closing", "dialling", "greeted")
    for values in itertools.product((False, True), repeat=len(names)):
        observed = dict(zip(names, values, strict=True))
        assert reaching.may_dial(**observed) is not any(values)


def test_each_attempt_in_vain_sets_back_the_next_one_further_up_to_a_bound():
    """Whoever resets connections as fast as they are made must not keep a processor busy."""
    delays = [reaching.set_back(attempts) for attempts in range(1, LAST + 5)]
    assert delays == [*RETRY_DELAYS, *[RETRY_DELAYS[-1]] * 4]


FAILED = Failure(1, queued=True, reaching=True, unused=False, rejected=False, closing=False)
GIVEN_UP = AfterFailure(again=False, tell=True)


@pytest.mark.parametrize(
    ("observed", "follows"),
    [
        pytest.param({}, AfterFailure(again=True, tell=True), id="messages wait"),
        pytest.param({"queued": False}, GIVEN_UP, id="somebody waits, and no message does"),
        pytest.param({"attempts": LAST}, AfterFailure(True, True), id="the last try"),
        pytest.param({"attempts": LAST + 1}, GIVEN_UP, id="no try is left"),
        pytest.param({"rejected": True}, GIVEN_UP, id="it does not want us"),
        pytest.param({"closing": True}, GIVEN_UP, id="we leave"),
        pytest.param(
            {"unused": True, "queued": False},
            AfterFailure(again=True, tell=False),
            id="another connection is there or comes: who waits waits on",
        ),
        pytest.param(
            {"unused": True, "queued": False, "reaching": False}, GIVEN_UP, id="nobody waits"
        ),
        pytest.param({"unused": True, "attempts": LAST + 1}, GIVEN_UP, id="not used, too often"),
    ],
)
def test_what_follows_when_all_addresses_were_tried_in_vain(observed, follows):
    """Messages fail only when it is known that they cannot be sent."""
    assert reaching.after_failure(FAILED._replace(**observed)) == follows


LOST = Loss(
    broken=True,
    polite=False,
    leaving=False,
    closing=False,
    theirs=False,
    age=YOUNG,
    dialled=True,
    attempts=3,
)
OVER = AfterLoss(attempts=0, resend=False, comes_back=None)


@pytest.mark.parametrize(
    ("observed", "follows"),
    [
        pytest.param({}, AfterLoss(1, True, True), id="used for long: a first attempt"),
        pytest.param({"age": YOUNG - 0.01}, AfterLoss(4, True, True), id="young: one more"),
        pytest.param(
            {"age": 0.0, "attempts": LAST}, AfterLoss(LAST + 1, False, True), id="too often"
        ),
        pytest.param({"dialled": False}, AfterLoss(1, True, False), id="they dialled it"),
        pytest.param({"theirs": True}, AfterLoss(1, True, None), id="they broke a rule"),
        pytest.param({"broken": False}, OVER, id="ended without an error"),
        pytest.param({"polite": True}, OVER, id="they left"),
        pytest.param({"leaving": True}, OVER, id="we left"),
        pytest.param({"closing": True}, OVER, id="the node closes"),
    ],
)
def test_what_follows_when_a_connection_is_lost(observed, follows):
    """It comes back exactly when nobody wanted its end."""
    assert reaching.after_loss(LOST._replace(**observed)) == follows


@pytest.mark.parametrize(
    ("at_once", "not_before", "dialling_since", "follows"),
    [
        pytest.param(True, 0.0, None, 0.0, id="we dialled it: at once"),
        pytest.param(False, 0.0, None, RECALL_DELAY, id="they did: they have the first go"),
        pytest.param(True, 100.5, None, 0.5, id="set back"),
        pytest.param(False, 103.0, None, 3.0, id="set back for longer"),
        pytest.param(True, 0.0, 100.0 - STALE_DIAL, None, id="a dial is on its way"),
        pytest.param(True, 0.0, 98.9, 0.0, id="one that began long ago: anew"),
    ],
)
def test_when_a_lost_peer_that_is_heard_is_dialled(at_once, not_before, dialling_since, follows):
    """Both sides hear each other at about the same time: they must not cross."""
    returns = Returns(4)
    returns.expect(ADA, "ada", at_once=at_once)
    assert returns.heard(ADA, 100.0, not_before, dialling_since) == follows
    returns.no_more(ADA)
    assert returns.heard(ADA, 100.0, not_before, dialling_since) is None


def test_those_who_are_to_come_back_have_a_bound_and_the_longest_lost_gives_way():
    """Without discovery nobody else forgets them."""
    returns = Returns(2)
    assert returns.expect(ADA, "ada", at_once=True) is None
    assert returns.expect(BOB, "bob", at_once=False) is None
    assert returns.expect(ADA, "ada", at_once=True) is None, "lost anew: the latest"
    assert returns.expect(CID, "cid", at_once=True) == BOB
    returns.no_more(BOB)
    assert BOB not in returns and returns.ours() == ["ada", "cid"]
