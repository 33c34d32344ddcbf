"""Addresses and interfaces: who is near, and by which of them a packet leaves so that everybody
hears it.

Truth: the ipaddress module.
"""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk import errors
from peertalk.protocol.addresses import (
    Interface,
    address_of,
    check_address,
    check_interfaces,
    choose,
    dotted_address,
    host_interfaces,
    interface_of,
    is_near,
    same_network,
    unlabelled,
    ways,
)

HOME = "127.0.0.1"
LO = Interface("lo", 1, HOME, "127.255.255.255", "255.0.0.0")
ONE = Interface("eth0", 2, "10.0.0.200", "10.0.0.255", "255.255.255.0")
BESIDE = Interface("eth0", 2, "10.0.0.201", "10.0.0.255", "255.255.255.0")
SECOND = Interface("eth0", 2, "10.0.1.200", "10.0.1.255", "255.255.255.0")
SHARED = Interface("eth0", 2, "10.0.0.77", "", "255.255.255.255")
ALONE = Interface("eth0", 2, "10.9.9.9", "", "255.255.255.255")
OTHER = Interface("eth1", 3, "10.3.0.1", "10.3.0.255", "255.255.255.0")
TUNNEL = Interface("tun0", 4, "10.8.0.1", "", "255.255.255.255")


@pytest.mark.parametrize(
    ("address", "netmask", "broadcast"),
    [
        ("10.0.0.1", "255.255.255.0", "10.0.0.255"),
        ("10.0.1.1", "255.255.255.128", "10.0.1.127"),
        ("10.0.2.1", "255.255.255.254", ""),
        ("10.0.3.1", "255.255.255.255", ""),
        ("10.0.4.1", "255.255.255.252", "10.0.4.3"),
        ("10.0.0.1", "0.0.0.0", "255.255.255.255"),
    ],
)
def test_a_broadcast_address_follows_from_the_network(address, netmask, broadcast):
    """What the system tells may be our own address, or the other end of a tunnel."""
    found = interface_of("eth0", 2, address, netmask, True)
    assert found == Interface("eth0", 2, address, broadcast, netmask)


@pytest.mark.parametrize("netmask", ["255.0.0.0", "255.255.255.255", "0.0.0.0"])
def test_all_of_127_is_one_network(netmask):
    """Some systems give loopback a network of one address, and nothing reaches the others."""
    assert interface_of("lo", 1, "127.0.0.9", netmask, False) == Interface(
        "lo", 1, "127.0.0.9", "127.255.255.255", "255.0.0.0", False
    )


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("eth0", "eth0"),
        ("eth0:web", "eth0"),
        ("eth0web", "eth0"),
        ("eth01", "eth01"),
        ("eth01x", "eth01"),
        ("wlan0:1", "wlan0"),
        ("", ""),
    ],
)
def test_the_label_of_an_address_begins_with_its_interface(label, name):
    """The longest that there is: eth01 is not eth0."""
    assert unlabelled(label, {"lo": 1, "eth0": 2, "eth01": 3}) == name


def test_where_the_system_tells_no_interfaces_everybody_may_be_near():
    """Nothing is known of the network, so that nobody is left out."""
    found = host_interfaces({"10.0.0.7"})
    assert [each.address for each in found] == ["10.0.0.7", HOME]
    assert is_near(found, "198.51.100.7", 0)
    assert host_interfaces(set()) == [
        Interface("loopback", 0, HOME, "127.255.255.255", "255.0.0.0")
    ]


@pytest.mark.parametrize(
    ("names", "bind", "chosen"),
    [
        ((), "", [LO, ONE, SECOND, OTHER, TUNNEL]),
        (("eth0", "tun0"), "", [ONE, SECOND, TUNNEL]),
        ((), "10.0.1.200", [SECOND]),
        (("eth0",), "10.0.1.200", [SECOND]),
        ((), HOME, [LO]),
        ((), "127.0.0.5", [LO]),
    ],
)
def test_what_is_named_and_has_the_address_is_chosen(names, bind, chosen):
    """All of 127/8 is loopback's: several nodes can have an address each."""
    assert choose([LO, ONE, SECOND, OTHER, TUNNEL], names, bind) == chosen


def test_what_is_not_there_is_named_with_what_is():
    """The list of interfaces that are up is the half of the answer that helps. One that is named is
    missed by the finder, which uses the others."""
    for names in ((), ("eth0",)):
        with pytest.raises(
            errors.NoNetwork, match=r"198\.51\.100\.77 \(Config\.bind\); up: eth0, lo"
        ):
            choose([LO, ONE, SECOND], names, "198.51.100.77")
    assert choose([LO, ONE], ("eth7",), "") == []


def test_what_can_never_work_is_refused_and_what_may_come_is_not():
    """An interface that is down, or an address whose interface is, may be up in a second."""
    existing, found = ["lo", "eth0", "eth1"], [LO, ONE, SECOND]
    for names, bind in (
        ((), ""),
        (("eth0", "eth1"), ""),
        (("eth0",), "10.0.1.200"),
        (("eth1",), "198.51.100.77"),
    ):
        check_interfaces(existing, found, names, bind)
    with pytest.raises(
        errors.NoNetwork, match=r"no interface 'nosuch0' \(Config\.interfaces\).*: lo, eth0, eth1"
    ):
        check_interfaces(existing, found, ("lo", "nosuch0"), "")
    with pytest.raises(errors.NoNetwork, match=r"10\.0\.1\.200 .* of eth0, .* leaves out: eth1"):
        check_interfaces(existing, found, ("eth1",), "10.0.1.200")


@pytest.mark.parametrize(
    ("interfaces", "expected"),
    [
        pytest.param([LO], [(LO, "127.255.255.255")], id="loopback"),
        pytest.param(
            [LO, ONE, OTHER],
            [
                (LO, "127.255.255.255"),
                (ONE, "255.255.255.255"),
                (OTHER, "255.255.255.255"),
            ],
            id="once by each",
        ),
        pytest.param([ONE, BESIDE, SHARED], [(ONE, "255.255.255.255")], id="all in one network"),
        pytest.param([SHARED, ONE], [(ONE, "255.255.255.255")], id="in whatever order"),
        pytest.param(
            [ONE, SECOND], [(SECOND, "10.0.1.255"), (ONE, "255.255.255.255")], id="two networks"
        ),
        pytest.param(
            [ONE, ALONE],
            [(ALONE, "255.255.255.255"), (ONE, "255.255.255.255")],
            id="a network and a host",
        ),
        pytest.param([TUNNEL], [(TUNNEL, "255.255.255.255")], id="tunnel"),
        pytest.param(
            [LO, LO._replace(address="10.255.0.1", broadcast="", netmask="255.255.255.255")],
            [(LO, "127.255.255.255")],
            id="more on loopback",
        ),
    ],
)
def test_a_packet_leaves_once_by_each_interface_and_once_for_each_further_network(
    interfaces, expected
):
    """Everybody on the wire hears 255.255.255.255; but who is in another network must know our
    address there."""
    assert ways(interfaces) == expected


def test_the_addresses_of_one_interface_that_are_announced_have_a_bound():
    """Nobody remembers more of them, and a host may have hundreds."""
    many = [ONE] + [ALONE._replace(address=f"10.9.9.{number}") for number in range(200)]
    assert len(ways(many)) == 4 and ways(many)[-1] == (ONE, "255.255.255.255")


def test_a_packet_is_near_if_it_came_in_by_an_interface_or_is_from_its_network():
    """Hosts with a route and no network have addresses from anywhere."""
    assert is_near([ALONE], "198.51.100.7", 2) and not is_near([ALONE], "198.51.100.7", 3)
    assert is_near([ONE], "10.0.0.5", 0) and not is_near([ONE], "10.0.1.5", 0)
    assert is_near([ALONE], "198.51.100.7", 0), "an answer that came to the node alone"


@given(
    own=st.ip_addresses(v=4),
    other=st.ip_addresses(v=4),
    bits=st.integers(1, 30),
    near=st.booleans(),
)
def test_addresses_are_of_one_network_exactly_when_the_mask_says_so(own, other, bits, near):
    """10.0.0.200 and 10.0.0.5 are neighbours, whatever their bits."""
    network = ipaddress.ip_network(f"{own}/{bits}", strict=False)
    if near:
        other = network.network_address + int(other) % network.num_addresses
    interface = Interface("lan", 1, str(own), str(network.broadcast_address), str(network.netmask))
    assert same_network([interface], str(other)) == (other in network)
    elsewhere = Interface("other", 2, "127.0.0.1", "127.255.255.255", "255.0.0.0")
    assert same_network([elsewhere, interface], str(other)) == (
        other in network or other.is_loopback
    )
    assert not same_network([], str(other))


@pytest.mark.parametrize(
    "address", ["host", ("host",), ("host", 1, 2), (b"host", 1), ("host", "1"), None, ["host", 1]]
)
def test_what_is_no_address_is_refused_by_type(address):
    """connect("host", 7354) and its kin are everybody's first mistake."""
    with pytest.raises(errors.WrongType, match="host, port"):
        check_address(address)


def test_ports_have_bounds():
    """0 and 65,536 reach the system as something else."""
    for port in (0, -1, 65_536):
        with pytest.raises(errors.InvalidArgument, match="1 to 65,535"):
            check_address(("host", port))
    assert check_address(("host", 65_535)) == ("host", 65_535)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host:1", ("host", 1)),
        ("10.0.0.1:65535", ("10.0.0.1", 65_535)),
        ("host:65536", None),
        ("host:0", None),
        ("host:000001", None),
        (":7354", None),
        ("::1:7354", None),
        ("host:", None),
        ("host", None),
        ("host:+1", None),
        ("host:\u0661", None),
    ],
)
def test_an_address_is_written_with_a_colon(text, address):
    """Whatever is no address is the name of a peer."""
    assert address_of(text) == address


@pytest.mark.parametrize(
    ("host", "dotted"), [("10.0.0.1", "10.0.0.1"), ("10.1", None), ("host", None), ("", None)]
)
def test_a_dotted_address_is_not_looked_up(host, dotted):
    """The resolver may take half a minute."""
    assert dotted_address(host) == dotted
