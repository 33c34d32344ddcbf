"""The table of peers: one object for one program, however often it comes and goes."""

from __future__ import annotations

import gc
import logging

import pytest

from peertalk import errors
from peertalk.config import Config
from peertalk.protocol import events
from peertalk.runtime.transport import Transport
from peertalk.runtime.world import World

ADA, BOB, HERE = b"a" * 8, b"b" * 8, ("10.0.0.1", 7354)


@pytest.fixture
def engine():
    """An engine that was never opened, and what it has told."""
    config = Config(name="own", core="reference", discovery=False)
    made = Transport(config, World(), lambda remote: remote, lambda: None)
    made.told = []
    made.publish = made.told.append
    yield made
    made.close_now()


def test_a_peer_that_is_forgotten_stays_the_same_object_while_anybody_has_it(engine):
    """Who waits to send to it must not wait for a stranger."""
    roster = engine.roster
    peer = roster.meet(ADA, "ada", HERE)
    roster.tidy(peer)
    assert not peer.known and roster.recall(ADA) is peer and not roster.peers
    assert roster.meet(ADA, "", ("10.0.0.2", 1)) is peer
    assert peer.known and peer.name == "ada" and peer.address == ("10.0.0.2", 1)
    kinds = [type(event) for event in engine.told]
    assert kinds == [events.PeerFound, events.PeerLost, events.PeerFound]
    roster.tidy(peer)
    del peer
    engine.told.clear()
    gc.collect()
    assert roster.recall(ADA) is None and not roster.everybody()


def test_a_program_that_was_started_again_is_another_peer_and_the_former_one_hears_it(engine):
    """What the old one was sent the new one knows nothing of: nothing is forwarded."""
    roster, heard = engine.roster, []
    former = roster.meet(ADA, "ada", HERE)
    former.reaching = [lambda *told: heard.append(told)]
    successor = roster.meet(BOB, "ada", HERE)
    assert former.successor is successor and not former.known
    [(peer, error)] = heard
    assert peer is None and isinstance(error, errors.ConnectionClosed)
    with pytest.raises(errors.ConnectionClosed, match="started again"):
        engine.enqueue(former, b"x")


@pytest.mark.parametrize(
    ("name", "address", "follows"),
    [("ada", HERE, True), ("eve", HERE, False), ("ada", ("10.0.0.2", 7354), False)],
    ids=["the same", "another name", "another address"],
)
def test_a_program_that_was_forgotten_and_is_started_again_has_a_successor(
    engine, name, address, follows
):
    """It was away for longer than peer_timeout, or had said goodbye. Who still has its peer must
    not dial a program for ever that is not that one. By then any other may have its port."""
    roster, heard = engine.roster, []
    former = roster.meet(ADA, "ada", HERE)
    roster.forget(former, events.LostReason.TIMEOUT)
    former.reaching = [lambda *told: heard.append(told)]
    other = roster.meet(BOB, name, address)
    assert former.successor is (other if follows else None) and len(heard) == follows
    if follows:
        roster.forget(other, events.LostReason.GOODBYE)
        third = roster.meet(b"c" * 8, "ada", HERE)
        assert (former.successor, other.successor) == (other, third)
        lost = [event.reason for event in engine.told if isinstance(event, events.PeerLost)]
        assert lost == [events.LostReason.TIMEOUT, events.LostReason.GOODBYE]


def test_a_former_life_whose_end_was_not_noticed_is_nobodys_successor(engine):
    """The connection with it may be paused, or its host without power."""
    roster = engine.roster
    former = roster.meet(ADA, "ada", HERE)
    former.connection = object()
    peer = roster.meet(BOB, "ada", HERE)
    roster.find_successor(peer)
    assert peer.known and peer.successor is None
    former.connection = None
    roster.find_successor(former)
    assert former.successor is peer and not former.known


def test_a_peer_of_whom_something_is_left_is_not_forgotten(engine):
    """A message that waits, or somebody who waits for a connection, is something."""
    roster = engine.roster
    peer = roster.meet(ADA, "ada", HERE)
    peer.reaching = [lambda *_: None]
    roster.tidy(peer)
    assert peer.known
    peer.reaching = None
    roster.tidy(peer)
    assert not peer.known


def test_each_who_bears_our_own_name_is_told_and_the_name_logged_once(engine, caplog):
    """A neighbour who makes up names must not fill the log."""
    with caplog.at_level(logging.WARNING, "peertalk"):
        for number in range(3):
            engine.roster.meet(bytes([number]) * 8, "own", ("10.0.0.1", number + 1))
    collisions = [each for each in engine.told if isinstance(each, events.NameCollision)]
    assert len(collisions) == 3
    assert caplog.text.count("'own' is that of") == 1


def test_a_peer_that_is_known_better_keeps_what_has_come_from_it(engine):
    """One that was taken for classic turns out to be one of ours: messages wait under its key."""
    roster = engine.roster
    peer = roster.make_peer(HERE, None, "", HERE)
    engine.inbox.put(peer, [b"first"], 5)
    roster.renew(peer, ADA)
    assert roster.peers == {ADA: peer} and peer.id == ADA.hex()
    assert engine.inbox.take() == (peer, b"first")
