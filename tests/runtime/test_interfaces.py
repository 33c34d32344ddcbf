"""What the system tells of its interfaces and their addresses.

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

from peertalk import errors
from peertalk.protocol.addresses import choose, is_near, ways
from peertalk.runtime import interfaces as module
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
def test_every_address_of_every_interface_is_known(netns, fork_python):
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
    out, err = fork_python("-c", EVERY_SORT, prefix=netns.prefix).communicate(timeout=60)
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
