"""What is told of a packet that went, or did not go, to everybody: tables of how it left by each
interface."""

from __future__ import annotations

import errno

import pytest

from peertalk import Config
from peertalk.protocol.addresses import Interface
from peertalk.protocol.announcing import ANNOUNCING, Announcing, Outcome

LO = Interface("lo", 1, "127.0.0.1", "127.255.255.255", "255.0.0.0")
LAN = Interface("lan", 2, "10.0.0.7", "10.0.0.255", "255.255.255.0")
OUT = LAN._replace(plugged=False)
BY_LAN, BY_LO = f"{ANNOUNCING} by lan", f"{ANNOUNCING} by lo"
BEYOND = "announcing beyond this machine"


def judge(way, outcomes, interfaces):
    """With the number of an error as its text; each trouble by how its reason begins."""
    found = way.judge(outcomes, interfaces, str)
    short = {what: why and why.split(" (")[0].split(":")[0] for what, why in found.troubles.items()}
    return Outcome(found.sent, found.refused, short)


def way_of(**options):
    return Announcing(Config(name="ada", **options))


@pytest.mark.parametrize(
    ("interfaces", "outcomes", "sent", "refused", "troubles"),
    [
        ([LAN], {"lan": 0}, 1, 0, {ANNOUNCING: None, BY_LAN: None}),
        ([LAN], {"lan": 101}, 0, 1, {ANNOUNCING: None, BY_LAN: "101"}),
        ([OUT], {"lan": 0}, 0, 1, {ANNOUNCING: None, BY_LAN: "it carries nothing"}),
        ([], {}, 0, 1, {ANNOUNCING: None, BY_LAN: "it is not up, or has no IPv4 address"}),
        (
            [LAN],
            {"lan": errno.EPERM},
            0,
            1,
            {ANNOUNCING: "the system forbids it on lan", BY_LAN: None},
        ),
    ],
)
def test_an_interface_that_was_asked_for_is_missed(interfaces, outcomes, sent, refused, troubles):
    """Whoever named it wants to know; a firewall is one line, and not one for each interface."""
    way = way_of(interfaces=("lan",))
    assert way.narrowed and judge(way, outcomes, interfaces) == (sent, refused, troubles)


def test_where_any_will_do_one_without_its_cable_is_no_trouble_and_not_counted():
    """A dock, a tunnel, a bridge of containers: all interfaces means those that there are."""
    way = way_of()
    assert not way.narrowed
    assert judge(way, {"lo": 0, "lan": 0}, [LO, OUT]) == (1, 0, {ANNOUNCING: None, BY_LO: None})
    assert judge(way, {"lo": 101}, [LO]) == (0, 1, {ANNOUNCING: None, BY_LO: "101"})


@pytest.mark.parametrize("gone", [[LO], [LO, OUT], []])
def test_the_last_way_out_is_missed_when_there_was_one(gone):
    """A program on one machine alone is no trouble; one that has lost its network is."""
    way = way_of()
    outcomes = {each.name: 0 for each in gone}
    assert BEYOND not in judge(way, outcomes, gone).troubles
    assert judge(way, {"lo": 0, "lan": 0}, [LO, LAN]).troubles[BEYOND] is None
    lost = judge(way, outcomes, gone).troubles[BEYOND]
    assert lost == "no interface carries, but for loopback; is a cable out?"
    assert judge(way, {"lan": 0}, [LAN]).troubles[BEYOND] is None


def test_a_firewall_is_told_with_the_interfaces_that_it_closes_and_what_to_try():
    """Whoever sees nobody, and is seen by nobody, looks into the log first."""
    outcomes = {"lan": errno.EACCES, "lo": errno.EPERM, "br": 101}
    found = way_of(discovery_port=7000).judge(outcomes, [LAN, LO], str)
    assert found.troubles[ANNOUNCING] == (
        f"the system forbids it on lan, lo ({errno.EACCES}), as a firewall does: let UDP to port "
        "7000 (Config.discovery_port) out, or connect by address"
    )
    assert (found.sent, found.refused) == (0, 3)
    assert found.troubles[BY_LAN] is None and found.troubles[f"{ANNOUNCING} by br"] == "101"
