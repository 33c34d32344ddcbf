"""The mapping of peers that users see: found by id and by name, and a mapping like any other."""

from __future__ import annotations

import types

import pytest

from peertalk import Config, errors
from peertalk.doors.peers import BroadcastResult, Peers
from peertalk.protocol.peer import Peer, PeerEvent


class Seen(Peer):
    """A peer that is its own view."""

    view = property(lambda self: self)


ADA, BOB, TWIN, CLASSIC = (
    Seen(b"\x0a" * 8, name="ada"),
    Seen(b"\x0b" * 8, name="bob"),
    Seen(b"\x0c" * 8, name="bob"),
    Seen(("192.0.2.7", 7354), name="mac"),
)


def peers_of(*peers, discovery=True):
    known = {peer.key: peer for peer in peers}
    config = Config(name="ann", discovery=discovery)
    return Peers(
        known, types.SimpleNamespace(roster=types.SimpleNamespace(version=7), config=config)
    ), known


def test_it_is_a_mapping_by_id():
    """What works with a dict works with it."""
    peers, _ = peers_of(ADA, BOB, CLASSIC)
    assert (
        list(peers) == [ADA.id, BOB.id, "192.0.2.7:7354"] and len(peers) == 3 and peers.version == 7
    )
    assert list(peers.values()) == [ADA, BOB, CLASSIC]
    assert (
        list(peers.items())
        == [(ADA.id, ADA), (BOB.id, BOB), (CLASSIC.id, CLASSIC)]
        == [(peer.id, peers[peer.id]) for peer in peers.values()]
    )
    assert dict(peers) == {ADA.id: ADA, BOB.id: BOB, CLASSIC.id: CLASSIC}


def test_it_is_looked_up_by_id_or_by_name_and_the_newest_of_a_name_wins():
    """A name is what people know; an id is what is certain."""
    peers, _ = peers_of(ADA, BOB, CLASSIC)
    assert (
        peers["ada"] is ADA
        and peers[BOB.id] is BOB
        and peers["mac"] is peers["192.0.2.7:7354"] is CLASSIC
    )
    peers, _ = peers_of(ADA, BOB, TWIN)
    assert peers["bob"] is TWIN and peers[BOB.id] is BOB


def test_what_nobody_bears_and_reads_as_host_and_port_is_an_address():
    """connect("10.0.0.7:7354") is what people write. Who bears such a name goes before, and so does
    a classic peer, whose id is its address."""
    peers, _ = peers_of(ADA, CLASSIC)
    assert peers.chosen("10.0.0.7:7354") == ("10.0.0.7", 7354)
    assert peers.chosen("printer.lan:80") == ("printer.lan", 80)
    assert peers.chosen("192.0.2.7:7354") is CLASSIC
    for text in ("10.0.0.7", "10.0.0.7:", ":7354", "10.0.0.7:0", "10.0.0.7:65536", "::1:7354"):
        with pytest.raises(errors.PeerNotFound, match="known: 'ada', 'mac'"):
            peers.chosen(text)


def test_who_waits_in_vain_is_told_what_may_be_the_matter():
    """A firewall is what keeps most first programs apart, and it says nothing itself."""

    def heard(*there, discovery=True):
        peers, _ = peers_of(*there, discovery=discovery)
        return peers.heard()

    assert heard() == (
        "nobody else is known either: does a firewall, here or there, keep out UDP 7353?"
    )
    assert heard(ADA) == "known: 'ada'", "whoever hears somebody has no such firewall"
    assert "discovery off" in heard(discovery=False)
    crowd = [Seen(bytes([number]) * 8, name=f"n{number:03}") for number in range(200)]
    assert heard(*crowd[:8]).endswith("'n006', 'n007'")
    assert heard(*crowd).endswith("'n006', 'n007' and 192 more"), "a room must fit into a line"


def test_asking_for_somebody_who_is_not_there_is_no_error():
    """`in` and get() are there to ask; only [] insists."""
    peers, _ = peers_of(BOB, TWIN)
    assert "eve" not in peers and peers.get("eve") is None and peers.get("eve", ADA) is ADA
    assert peers.get("bob") is TWIN
    assert BOB.id in peers and peers.get(TWIN.id) is TWIN
    assert 5 not in peers and "" not in peers and "zz" not in peers
    with pytest.raises(KeyError, match="no peer 'eve' is known; known: 'bob', 'bob'"):
        peers["eve"]
    with pytest.raises(errors.PeerNotFound, match="nobody else is known either; wait_for"):
        peers_of()[0]["eve"]


def test_an_id_goes_before_a_name():
    """Whoever calls himself by another's id must not get his mail."""
    impostor = Seen(b"\x0d" * 8, name=ADA.id)
    peers, known = peers_of(impostor, ADA)
    assert peers[ADA.id] is ADA
    del known[ADA.key]
    assert peers[ADA.id] is impostor, "with nobody of that id it is a name like any other"


def test_an_id_is_written_in_one_way():
    """bytes.fromhex() takes spaces and capitals; an id is text that is compared."""
    peers, _ = peers_of(ADA)
    assert ADA.id == "0a" * 8
    assert ADA.id.upper() not in peers and " ".join(["0a"] * 8) not in peers


def test_of_several_of_one_name_the_latest_matches():
    """A program that was started again is known twice until its former life is forgotten."""
    peers, _ = peers_of(BOB, ADA, TWIN)
    assert (
        peers.matching("bob") is TWIN
        and peers.matching(BOB.id) is BOB
        and peers.matching("eve") is None
    )
    assert peers.matching(lambda peer: peer.name == "bob") is BOB
    assert peers.matching(lambda peer: False) is None


def failed(name, instance):
    """A peer whose last dial failed."""
    peer = Seen(instance * 8, name=name)
    peer.advance(PeerEvent.DIALLED)
    peer.advance(PeerEvent.REFUSED)
    return peer


def test_every_lookup_finds_the_same_one():
    """[] gave one who had just refused while wait_for() waited for another of that name, or said
    that nobody was heard and that he is known."""
    gone = failed("bob", b"\x0e")
    for there, found in (
        ((BOB, TWIN), TWIN),
        ((gone, BOB), BOB),
        ((BOB, gone), BOB),
        ((gone,), None),
        ((ADA,), None),
    ):
        peers, _ = peers_of(*there)
        assert peers.get("bob") is peers.matching("bob") is found
        assert ("bob" in peers) is (found is not None)
        assert (peers.matching(lambda peer: peer.name == "bob") is None) is (found is None)
        if found is not None:
            assert peers["bob"] is found
        for peer in there:  # whoever is known, whatever became of the last dial
            assert peer.id in peers
            assert peers[peer.id] is peers.get(peer.id) is peers.matching(peer.id) is peer
        assert list(peers.values()) == list(there) and len(peers) == len(there)
    peers, _ = peers_of(gone, ADA)
    with pytest.raises(errors.PeerNotFound) as caught:
        peers["bob"]
    assert "no peer 'bob' can be had; known: 'ada', 'bob' (its last dial failed)" in str(
        caught.value
    )
    gone.advance(PeerEvent.HEARD)
    assert peers["bob"] is gone


def test_peers_may_come_and_go_while_they_are_iterated():
    """`for peer in node.peers.values(): await ...` lets the node work in between."""
    peers, known = peers_of(ADA, BOB, CLASSIC)
    for view in (peers.values(), peers.items(), peers):
        seen = 0
        for _ in view:
            known.pop(BOB.key, None)
            known[TWIN.key] = TWIN
            seen += 1
        assert seen == 3
        del known[TWIN.key]
        known[BOB.key] = BOB


def test_a_broadcast_result_is_a_value():
    """Both lists by name, and nothing to change by accident."""
    result = BroadcastResult([ADA], {BOB: errors.Timeout("late")})
    assert result.accepted == [ADA] and list(result.skipped) == [BOB]
    with pytest.raises(AttributeError):
        result.accepted = []
