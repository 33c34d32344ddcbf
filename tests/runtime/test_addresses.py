"""Addresses and interfaces: what the system tells of them, who is near, and by which of them a
packet leaves so that everybody hears it.

Truth: the system itself, the ipaddress module, and the header of the kernel.
"""

from __future__ import annotations

import errno
import gc
import ipaddress
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk import errors
from peertalk.runtime import addresses as module
from peertalk.runtime.addresses import (
    Interface,
    check_address,
    check_interfaces,
    choose,
    is_near,
    same_network,
    ways,
)
from peertalk.runtime.world import World

HOME = "127.0.0.1"

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="did not run: this is about Linux"
)


@pytest.fixture
def world():
    return World()


def loopback_of(world):
    return next(interface for interface in world.interfaces() if interface.address == HOME)


def test_loopback_is_an_interface_with_its_network(world):
    """Two programs on one machine are a network too."""
    found = loopback_of(world)
    assert (found.broadcast, found.netmask) == ("127.255.255.255", "255.0.0.0")
    assert found.number == socket.if_nametoindex(found.name)
    assert found in choose(world.interfaces(), (found.name,), "")
    assert found.name in world.interface_names()


LO = Interface("lo", 1, HOME, "127.255.255.255", "255.0.0.0")
ONE = Interface("eth0", 2, "10.0.0.200", "10.0.0.255", "255.255.255.0")
BESIDE = Interface("eth0", 2, "10.0.0.201", "10.0.0.255", "255.255.255.0")
SECOND = Interface("eth0", 2, "10.0.1.200", "10.0.1.255", "255.255.255.0")
SHARED = Interface("eth0", 2, "10.0.0.77", "", "255.255.255.255")
ALONE = Interface("eth0", 2, "10.9.9.9", "", "255.255.255.255")
OTHER = Interface("eth1", 3, "10.3.0.1", "10.3.0.255", "255.255.255.0")
TUNNEL = Interface("tun0", 4, "10.8.0.1", "", "255.255.255.255")


def test_every_interface_has_addresses_that_belong_together(world):
    """A broadcast address that is not the network's reaches nobody, or somebody else."""
    for interface in world.interfaces():
        network = ipaddress.ip_interface(f"{interface.address}/{interface.netmask}").network
        assert ipaddress.ip_address(interface.broadcast) == network.broadcast_address


EVERY_SORT = """
import json
from peertalk.runtime.world import World
print(json.dumps([World().interfaces(), World().interface_names()]))
"""


@linux
def test_every_address_of_every_interface_is_known(netns, start_python):
    """Truth: ip(8), which set them. An alias has the name of its interface; what is down is not
    told; a broadcast address follows from the network, whatever was set."""
    for words in (
        "link set lo up",
        "addr add 10.255.0.1/32 dev lo",
        "link add eth0 type veth peer name eth1",
        "link set eth0 up",
        "addr add 10.0.0.1/24 dev eth0",
        "addr add 10.0.0.2/24 brd + dev eth0",
        "addr add 10.0.1.1/25 brd 255.255.255.255 dev eth0 label eth0:web",
        "addr add 10.0.5.1/24 dev eth0 label eth0web",
        "addr add 10.0.2.1/31 dev eth0",
        "addr add 10.0.3.1/32 dev eth0",
        "addr add 10.0.4.1/24 dev eth1",
        "tuntap add tun0 mode tun",
        "addr add 10.8.0.1 peer 10.8.0.2/32 dev tun0",
        "link set tun0 up",
        "link add bare type bridge",
        "link set bare up",
    ):
        netns.ip(*words.split())
    out, err = start_python("-c", EVERY_SORT, prefix=netns.prefix).communicate(timeout=60)
    found, names = json.loads(out or err)
    assert sorted(each[:1] + each[2:5] for each in found) == sorted(
        [
            ["lo", "127.0.0.1", "127.255.255.255", "255.0.0.0"],
            ["lo", "10.255.0.1", "", "255.255.255.255"],
            ["eth0", "10.0.0.1", "10.0.0.255", "255.255.255.0"],
            ["eth0", "10.0.0.2", "10.0.0.255", "255.255.255.0"],
            ["eth0", "10.0.1.1", "10.0.1.127", "255.255.255.128"],
            ["eth0", "10.0.5.1", "10.0.5.255", "255.255.255.0"],
            ["eth0", "10.0.2.1", "", "255.255.255.254"],
            ["eth0", "10.0.3.1", "", "255.255.255.255"],
            ["tun0", "10.8.0.1", "", "255.255.255.255"],
        ]
    )
    assert len({(each[0], each[1]) for each in found}) == 3, "the same number for each address"
    assert {"lo", "eth0", "eth1", "tun0", "bare"} <= set(names)


@linux
def test_where_the_system_tells_no_interfaces_the_hosts_own_name_does(world, monkeypatch):
    """No ctypes, a C library without getifaddrs, or a sandbox that forbids it; but to be out of
    descriptors is nothing to get used to."""
    monkeypatch.setattr(module, "_library", module._library.__wrapped__)
    for missing in (None, types.SimpleNamespace(CDLL=lambda *_, **__: types.SimpleNamespace())):
        monkeypatch.setattr(module, "ctypes", missing)
        found = world.interfaces()
        assert HOME in [each.address for each in found] and {each.number for each in found} == {0}
        assert [destination for _, destination in ways(found)] == ["255.255.255.255"]
        assert is_near(found, "10.0.0.5", 0)
    monkeypatch.undo()
    monkeypatch.setattr(module, "_library", module._library.__wrapped__)
    calls = []
    library = types.SimpleNamespace(getifaddrs=lambda _: calls.append(1) or -1, freeifaddrs=None)
    monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: library)
    monkeypatch.setattr(module.ctypes, "get_errno", lambda: errno.EACCES)
    assert HOME in [each.address for each in world.interfaces()]
    monkeypatch.setattr(module.ctypes, "get_errno", lambda: errno.EMFILE)
    with pytest.raises(errors.PlatformError, match="network interfaces: Too many open files"):
        world.interfaces()
    assert len(calls) == 2


@linux
def test_asking_for_the_interfaces_leaves_nothing_behind(world, monkeypatch):
    """It is done for each announcement: a program that has turned the collector off would grow by
    4 KiB each time, and a list of the C library that is not given back is lost for good."""
    world.interfaces()
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            world.interfaces()
        assert gc.collect() == 0
    finally:
        gc.enable()

    ask, free = module._library()
    held = []

    def asked(head):
        code = ask(head)
        held.append(head._obj.value)
        return code

    def freed(head):
        held.remove(head.value)
        free(head)

    def names():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(module, "_library", lambda: (asked, freed))
    assert world.interfaces() and not held
    monkeypatch.setattr(socket, "if_nameindex", names)
    with pytest.raises(errors.PlatformError):
        world.interfaces()
    assert not held


@linux
@pytest.mark.skipif(
    shutil.which("cc") is None, reason="did not run: no C compiler to read the system's header"
)
@pytest.mark.parametrize("compiler", ["cc", "musl-gcc"])
def test_the_layout_of_an_address_is_that_of_the_header(tmp_path, compiler):
    """A wrong offset is a wild pointer, and musl is another C library than the one here."""
    if shutil.which(compiler) is None:
        pytest.skip(f"did not run: {compiler} is not installed")
    fields = ("ifa_next", "ifa_name", "ifa_flags", "ifa_addr", "ifa_netmask")
    layout = module._IFADDRS
    offsets = [struct.calcsize("@" + layout.format[1:count] + "0P") for count in range(1, 6)]
    offsets[2] = struct.calcsize("@PP0I")
    asserts = [
        f'_Static_assert(offsetof(struct ifaddrs, {field}) == {offset}, "{field}");'
        for field, offset in zip(fields, offsets, strict=True)
    ]
    (tmp_path / "t.c").write_text(
        "#include <stddef.h>\n#include <ifaddrs.h>\n#include <netinet/in.h>\n"
        + "\n".join(asserts)
        + '\n_Static_assert(offsetof(struct sockaddr_in, sin_addr) == 4, "");\n'
        + '_Static_assert(sizeof(struct in_pktinfo) == 12 && IP_PKTINFO == 8, "");\n'
    )
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run(
        [compiler, "-D_GNU_SOURCE", "-fsyntax-only", str(tmp_path / "t.c")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


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
