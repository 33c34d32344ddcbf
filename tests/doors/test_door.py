"""What users have of a peer: small, the same object while it matters, and never copied."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import weakref
from pathlib import Path

import pytest

import peertalk as pt
import peertalk.sync
from peertalk.config import Config
from peertalk.doors.door import AnyPeer, remote_of
from peertalk.protocol import events
from peertalk.runtime.transport import Transport
from peertalk.runtime.world import World

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide.md"
KEY = b"\x01" * 8


class Mine(AnyPeer):
    """A door's peer."""

    __slots__ = ()


@pytest.fixture
def engine():
    """An engine that was never opened."""
    config = Config(name="ada", core="reference", discovery=False)
    made = Transport(config, World(), Mine, lambda: None)
    yield made
    made.close_now()


def know(engine, key=KEY):
    return engine.roster.make_peer(key, key, "bob", ("10.0.0.2", 7354))


@pytest.mark.parametrize("kind", [pt.Peer, peertalk.sync.Peer])
def test_a_peer_shows_what_a_user_needs_and_nothing_of_the_engine(kind):
    """Each name that is not for users is one more to read past, and a promise to keep."""
    shown = {name for name in dir(kind) if not name.startswith("_")}
    assert len(shown) <= 25
    guide = GUIDE.read_text()
    lacking = [name for name in shown if not re.search(rf"[`.]{name}\b", guide)]
    assert not lacking
    slots = [name for each in kind.__mro__ for name in vars(each).get("__slots__", ())]
    assert len([name for name in slots if name != "__weakref__"]) <= 2


def test_a_known_peer_is_one_object_wherever_it_is_seen(engine):
    """`peer is message.peer` must hold, and weak references to it must live as long as it does."""
    told = []
    engine.publish = told.append
    remote = know(engine)
    kept = weakref.WeakSet([remote.view])
    gc.collect()
    assert list(kept) == [remote.view]
    assert [event.peer for event in told] == [remote.view] and told[0].peer is remote.view
    assert [event.peer for event in engine.present()] == [remote.view]


def test_a_forgotten_peer_is_the_same_while_somebody_keeps_it_and_known_again(engine):
    """Who holds a peer over an outage need not look it up again."""
    remote = know(engine)
    kept, ghost = remote.view, weakref.ref(remote)
    engine.roster.forget(remote, events.LostReason.TIMEOUT)
    del remote
    assert ghost() is not None and ghost().view is kept
    assert know(engine).view is kept
    del kept
    assert ghost() is not None  # the engine knows it again


def test_a_forgotten_peer_that_nobody_keeps_is_gone_at_once(engine):
    """Strangers come and go: what they leave must not wait for the garbage collector."""
    gc.disable()
    try:
        remote = know(engine)
        ghosts = weakref.ref(remote), weakref.ref(remote.view)
        engine.roster.forget(remote, events.LostReason.TIMEOUT)
        del remote
        assert [ghost() for ghost in ghosts] == [None, None]
    finally:
        gc.enable()


def test_a_peer_that_only_the_engine_still_has_is_shown_again(engine):
    """Its last messages may be taken, or fail, after everybody has let go of it."""
    remote = know(engine)
    engine.roster.forget(remote, None)
    assert remote.view is not None and remote.view.id == KEY.hex()
    seen = remote.view
    assert remote.view is seen
    engine.roster.know(remote)
    assert remote.view is seen


def test_a_peer_is_neither_copied_nor_pickled(engine):
    """A copy would count for the original."""
    peer = know(engine).view
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(pt.errors.WrongType, match=r"'bob'.*keep its id"):
            attempt(peer)


def test_what_is_no_peer_of_a_door_is_refused(engine):
    """A name, or the engine's own, must not get as far as the engine."""
    remote = know(engine)
    assert remote_of(remote.view) is remote
    for wrong in ("bob", None, remote):
        with pytest.raises(pt.errors.WrongType, match="goes to a Peer"):
            remote_of(wrong)
