"""Datagrams: whose each is taken to be, where one goes, and what a stranger can have kept. A clock
that is a number, peers that are values."""

from __future__ import annotations

import types

import pytest
from kit.striking import Striking

from peertalk import errors
from peertalk._core import load
from peertalk._numbers import DATAGRAM_MAX_PAYLOAD
from peertalk.protocol.connections import Connection
from peertalk.protocol.datagrams import UNKNOWN_MAX, UNKNOWN_TIME, WAITING_MAX, Mailbox, check_size
from peertalk.protocol.peer import Peer, PeerState
from peertalk.protocol.statistics import LinkTotals
from peertalk.protocol.wire import Capabilities

CORE = load("reference")
WHERE = ("10.0.0.9", 7355)


def made():
    box = Mailbox(CORE, LinkTotals())
    box.port = 7000
    return box


def known(host, port=None, *, connected=False):
    """A peer with this datagram port; a classic one where none is given."""
    key = (host, 1) if port is None else b"%8d" % port
    peer = Peer(key, name=f"{host}:{port}", address=(host, 1))
    if port is not None:
        peer.capabilities = Capabilities(4096, 1024, 0, 0, key, "", 1, port)
    if connected:
        peer.state = PeerState.CONNECTED
    return peer


def connected_at(host):
    return Connection(1, (host, 12345), dialled=True, now=0.0)


def bring(box, payload, source=WHERE, now=0.0):
    box.receive(CORE.encode_datagram(source[1], payload), source, now)


@pytest.mark.parametrize(
    ("peer", "connection", "way"),
    [
        (known("10.0.0.1", 7356), None, ("10.0.0.1", 7356)),
        (known("10.0.0.1", 7356), connected_at("10.9.9.9"), ("10.9.9.9", 7356)),
        (known("10.0.0.2"), None, ("10.0.0.2", 7000)),
        (known("10.0.0.2"), connected_at("10.9.9.9"), ("10.9.9.9", 7000)),
    ],
)
def test_a_connected_peer_is_written_to_where_it_is_connected(peer, connection, way):
    """A host on two networks announces itself on both; only the address of the connection is known
    to work."""
    assert made().way_to(peer, connection) == way


def test_what_cannot_go_as_a_datagram_is_refused_with_the_way_that_it_can_go():
    """Neither can be cured by trying again."""
    peer = Peer(b"says none", name="bob", address=("10.0.0.3", 1))
    with pytest.raises(
        errors.NotSupported, match=r"'bob' has announced no datagram port; use send"
    ):
        made().way_to(peer, None)
    check_size(peer, DATAGRAM_MAX_PAYLOAD)
    with pytest.raises(errors.MessageTooLarge, match=rf"limit is {DATAGRAM_MAX_PAYLOAD:,} .* send"):
        check_size(peer, DATAGRAM_MAX_PAYLOAD + 1)


@pytest.mark.parametrize(
    ("classic", "connection", "introduced"),
    [(False, None, b"hello"), (True, None, None), (False, connected_at("10.9.9.9"), None)],
)
def test_who_may_not_have_heard_us_is_told_first(classic, connection, introduced):
    """A classic peer takes no announcement there; whom we are connected with knows us."""
    box = made()
    peer = known("10.0.0.1", None if classic else 7356)
    assert box.introduction(peer, connection) is None, "nothing is said where discovery is off"
    box.discovery = types.SimpleNamespace(introduce=lambda key: b"hello")
    assert box.introduction(peer, connection) == introduced


ADA, BOB, MAC = known("10.0.0.1", 7355), known("10.0.0.1", 7356), known("10.0.0.1")
AGAIN = known("10.0.0.1", 7355)
HERE = known("10.0.0.1", 7355, connected=True)
MAX = Peer(("10.0.0.1", 2), address=("10.0.0.1", 2))


@pytest.mark.parametrize(
    ("there", "source", "sender"),
    [
        ([ADA, BOB, MAC], ("10.0.0.1", 7355), ADA),
        ([ADA, BOB, MAC], ("10.0.0.1", 7356), BOB),
        ([ADA, BOB, MAC], ("10.0.0.1", 7357), MAC),
        ([ADA, BOB, MAC], ("10.0.0.2", 7355), None),
        ([ADA, BOB], ("10.0.0.1", 7357), None),
        ([ADA, AGAIN], ("10.0.0.1", 7355), AGAIN),
        ([HERE, AGAIN], ("10.0.0.1", 7355), HERE),
        ([MAC, MAX], ("10.0.0.1", 7357), None),
    ],
)
def test_a_sender_is_found_by_address_and_port_then_by_a_lone_classic_address(
    there, source, sender
):
    """Several nodes share a host, with classic ones among them; a former life of a program is still
    known when the next one speaks."""
    box = made()
    for peer in [*there, *there]:
        box.place(peer, None)
    assert box.sender(source) is sender
    for peer in [*there, *there]:
        box.displace(peer)
    assert not box._senders and not box._places


def test_a_peer_is_known_where_it_is_connected_and_at_each_address_where_it_was_heard():
    """It has moved, or has several networks."""
    box = made()
    ada = known("10.0.0.1", 7355)
    box.place(ada, None)
    ada.address = ("10.0.0.3", 1)
    box.discovery = types.SimpleNamespace(addresses=lambda key: [("10.0.0.5", 1)])
    box.place(ada, connected_at("10.0.0.4"))
    senders = [box.sender((f"10.0.0.{host}", 7355)) for host in (1, 3, 4, 5)]
    assert senders == [None, ada, ada, ada]


def test_a_datagram_of_an_unknown_sender_is_kept_until_its_sender_is_known():
    """It may have overtaken what makes its sender known."""
    box = made()
    bring(box, b"early")
    assert box.wait(UNKNOWN_TIME / 4) == 0.75 * UNKNOWN_TIME
    box.place(known("10.0.0.8", WHERE[1]), None)
    assert box.take() is None
    bob = known(*WHERE)
    for _ in range(2):
        box.place(bob, None)
    assert box.take() == (bob, b"early") and box.take() is None and box.wait(0.0) is None
    assert (box._totals.datagrams_ignored, box._totals.datagrams_received) == (0, 1)


def test_a_datagram_of_an_unknown_sender_is_ignored_when_its_time_is_over():
    """Strangers must not fill our memory, and an old datagram is of no use."""
    box = made()
    bring(box, b"early")
    bring(box, b"later", now=UNKNOWN_TIME / 2)
    box.drop_unknown(UNKNOWN_TIME)
    assert box._totals.datagrams_ignored == 1 and box.wait(UNKNOWN_TIME) == UNKNOWN_TIME / 2
    bob = known(*WHERE)
    box.place(bob, None)
    assert box.take() == (bob, b"later") and box.take() is None


def test_so_many_datagrams_of_strangers_are_kept_and_no_more():
    """Anybody on the network can write to the port."""
    box = made()
    bring(box, b"early")
    for number in range(3 * UNKNOWN_MAX):
        bring(box, b"%d" % number, ("10.0.1.1", number))
    assert box._totals.datagrams_ignored == 2 * UNKNOWN_MAX + 1
    box.place(known(*WHERE), None)
    assert box.take() is None, "the oldest has given way"
    box.drop_unknown(UNKNOWN_TIME)
    assert box._totals.datagrams_ignored == 3 * UNKNOWN_MAX + 1 and box.wait(0.0) is None


def test_so_many_datagrams_wait_and_the_newest_do():
    """The newest say most about now."""
    box = made()
    box.place(known(*WHERE), None)
    for number in range(WAITING_MAX + 2):
        bring(box, b"%d" % number)
    took = [got[1] for got in iter(box.take, None)]
    assert took == [b"%d" % number for number in range(2, WAITING_MAX + 2)]
    assert box._totals.datagrams_received == WAITING_MAX + 2
    assert box._totals.datagrams_overflowed == 2


@pytest.mark.parametrize(
    "data", [b"", b"junk", CORE.encode_datagram(1, bytes(DATAGRAM_MAX_PAYLOAD)) + b"x"]
)
def test_what_is_no_datagram_is_counted_whoever_sent_it(data):
    """And kept by nobody."""
    box = made()
    box.place(known(*WHERE), None)
    for source in (WHERE, ("10.0.1.1", 1)):
        box.receive(data, source, 0.0)
    assert box._totals.datagrams_ignored == 2 and box.take() is None and box.wait(0.0) is None


def test_a_peer_is_placed_and_forgotten_whole_wherever_a_signal_strikes():
    class Struck(BaseException):
        pass

    def strike():
        raise Struck

    def struck_at(nth):
        box, ada, bob = made(), known(*WHERE), known(*WHERE)
        striking = Striking(nth, strike, ("peertalk.protocol.datagrams",))
        box.place(bob, None)
        striking.begin()
        try:
            box.place(ada, connected_at("10.0.0.4"))
            box.place(ada, None)
            box.displace(ada)
        except Struck:
            pass
        finally:
            striking.end()
        box.displace(ada)
        assert box._senders == {WHERE: [bob]} and list(box._places) == [bob]
        return striking.struck

    steps = 1
    while struck_at(steps):
        steps += 1
    assert steps > 50
