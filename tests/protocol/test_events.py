"""Events: values to match on."""

from __future__ import annotations

import pytest

from peertalk.errors import ConnectionClosed, Timeout
from peertalk.protocol import events
from peertalk.protocol.events import (
    EventQueue,
    EventsMissed,
    Failed,
    LinkFault,
    LostReason,
    Outcome,
    PeerConnected,
    PeerDisconnected,
    PeerFound,
    PeerLost,
    Sent,
)
from peertalk.protocol.peer import Peer

ADA = Peer(("10.0.0.2", 7354), name="ada")
ERROR = Timeout("no answer")
EVERY = [
    (PeerFound(ADA), (ADA,)),
    (PeerLost(ADA, LostReason.GOODBYE), (ADA, LostReason.GOODBYE)),
    (PeerConnected(ADA), (ADA,)),
    (PeerDisconnected(ADA, None), (ADA, None)),
    (Sent(ADA, 1, 3), (ADA, 1, 3)),
    (Failed(ADA, 4, 4, Outcome.UNKNOWN, ERROR), (ADA, 4, 4, Outcome.UNKNOWN, ERROR)),
    (LinkFault(("10.0.0.9", 4), None, ERROR), (("10.0.0.9", 4), None, ERROR)),
    (EventsMissed(7), (7,)),
]


@pytest.mark.parametrize(("event", "values"), EVERY)
def test_an_event_is_a_frozen_value_with_fields_in_the_documented_order(event, values):
    """Programs match positionally, and one event goes to several consumers."""
    assert tuple(getattr(event, field) for field in type(event).__match_args__) == values
    assert event == type(event)(*values)
    with pytest.raises(AttributeError):
        setattr(event, type(event).__match_args__[0], None)


def test_events_can_be_told_apart_by_matching():
    """The way that the documentation shows."""

    def told(event: events.Event[Peer]) -> str:
        match event:
            case PeerFound(peer) | PeerConnected(peer):
                return f"here: {peer.name}"
            case PeerLost(peer, reason):
                return f"gone: {peer.name}, {reason.value}"
            case PeerDisconnected(peer, None):
                return f"left: {peer.name}"
            case PeerDisconnected(peer, error):
                return f"broke: {peer.name}, {error}"
            case Sent(_, first, last):
                return f"sent {first} to {last}"
            case Failed(_, first, last, outcome, _):
                return f"{outcome.value} {first} to {last}"
            case LinkFault((host, _), None, _):
                return f"fault of {host}"
            case EventsMissed(count):
                return f"missed {count}"
        return "?"

    assert [told(event) for event, _ in EVERY] == [
        "here: ada",
        "gone: ada, goodbye",
        "here: ada",
        "left: ada",
        "sent 1 to 3",
        "unknown 4 to 4",
        "fault of 10.0.0.9",
        "missed 7",
    ]
    assert told(PeerDisconnected(ADA, ConnectionClosed("reset"))) == "broke: ada, reset"


def test_every_event_class_of_the_module_is_part_of_event():
    """A new event that the union forgets would be invisible to type checkers."""
    classes = {
        value
        for value in vars(events).values()
        if isinstance(value, type) and hasattr(value, "__struct_fields__")
    }
    members = {getattr(member, "__origin__", member) for member in events.Event.__args__}
    assert members == classes
    assert all(value.__doc__ for value in classes)


def test_a_queue_of_events_is_bounded_and_tells_where_some_are_missing(monkeypatch):
    """A reader that stands still costs bounded memory; what it began with has its own room."""
    monkeypatch.setattr(events, "_KEPT_MAX", 3)
    queue = EventQueue([PeerFound(ADA), PeerConnected(ADA)])
    for number in range(1, 6):
        queue.put(Sent(ADA, number, number))
    taken = [queue.take() for _ in range(2)]
    queue.put(Sent(ADA, 6, 6))  # behind those that are missing
    assert len(queue) == 4
    while (event := queue.take()) is not None:
        taken.append(event)
    assert taken == [
        PeerFound(ADA),
        PeerConnected(ADA),
        *(Sent(ADA, number, number) for number in (1, 2, 3)),
        EventsMissed(3),
    ]
    queue.put(Sent(ADA, 7, 7))
    assert queue.take() == Sent(ADA, 7, 7) and queue.take() is None and not len(queue)
