"""Nodes on networks with real addresses: network namespaces, joined by cables, each with the
default ports.

Where the machine allows no namespaces these tests say that they did not run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import SOAK
from kit.forks import Forked
from kit.tables import crossed

GUARD = 30.0

NODE = """
import asyncio, json, sys
import peertalk as pt

async def main(name, *expected):
    async with pt.Node(name, bind="", interfaces=()) as node, node.events() as events:
        for other in expected:
            peer = await node.wait_for(other, timeout=20)
            await peer.send("hello from " + name, timeout=20)
        heard = {}
        while len(heard) < len(expected):
            message = await node.receive(timeout=20)
            heard[message.text] = message.peer.address[0]
        peers = {p.name: [p.address[0], p.classic] for p in node.peers.values()}
        print(json.dumps({"heard": heard, "peers": peers}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        found = []
        while events._events:
            event = await anext(events)
            if isinstance(event, pt.PeerFound):
                found.append(event.peer.name)
    print(json.dumps(sorted(found)), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


SCALE = 1.0 if SOAK else 0.1
"""Of outages, and of the times in Config that they are held against."""
TIMES = {
    "link_timeout": 15.0 * SCALE,
    "peer_timeout": 30.0 * SCALE,
    "announce_interval": 5.0 * SCALE,
    "ping_interval": 10.0 * SCALE,
    "connect_timeout": 5.0 * SCALE,
    "drain_timeout": 5.0 * SCALE,
}

ROUTES = {"no default route": False, "default route": True}
BROADCASTS = {"no brd": (), "brd +": ("brd", "+")}
DIALLERS = {"ada": "ada", "bob": "bob"}
SIDES = {"dialler's": "dialler's", "other's": "other's"}

TALKER = """
import asyncio, json, sys
import peertalk as pt

def tell(*what):
    print(json.dumps(what), flush=True)

async def watch(events):
    async for event in events:
        match event:
            case pt.PeerConnected(peer) | pt.PeerFrozen(peer) | pt.PeerThawed(peer):
                tell(type(event).__name__, peer.name)
            case pt.PeerDisconnected(peer, error):
                tell("PeerDisconnected", peer.name, type(error).__name__, str(error))

async def hear(node):
    async for message in node.messages():
        tell("message", message.peer.name, message.text)

async def reach(node, name):
    while True:
        try:
            return await (await node.wait_for(name, timeout=60)).connect(timeout=60)
        except pt.errors.NetworkFailure:
            await asyncio.sleep(0.02)

async def main(name, options):
    options = {"bind": "", "interfaces": (), **json.loads(options)}
    async with pt.Node(name, **options) as node:
        tasks = [asyncio.create_task(each) for each in (watch(node.events()), hear(node))]
        tell("ready", name)
        while line := (await asyncio.to_thread(sys.stdin.readline)).split():
            if line[0] == "connect":
                await (await node.wait_for(line[1], timeout=60)).connect(timeout=60)
            elif line[0] == "dial":
                await node.connect((line[1], 7354), timeout=60)
            elif line[0] == "disconnect":
                await node.peers[line[1]].disconnect()
                tell("left", line[1])
            elif line[0] == "count":
                now = node.peers[line[1]].stats()
                tell("count", now.messages_accepted, now.messages_sent, now.messages_failed)
            elif line[0] == "where":
                tell("where", node.peers[line[1]].address[0])
            elif line[0] == "reach":
                await reach(node, line[1])
            elif line[0] == "known":
                tell("known", *(peer.name for peer in node.peers.values()))
            elif line[0] == "find":
                tell("found", line[1], (await node.wait_for(line[1], timeout=60)).address[0])
            elif line[0] == "send":
                await node.peers[line[1]].send(line[2], connect=False, timeout=600)
        node.close_nowait()

asyncio.run(main(*sys.argv[1:]))
"""


TUNNEL = """
import fcntl, os, select, socket, struct, sys
tunnel = os.open("/dev/net/tun", os.O_RDWR)  # below: TUNSETIFF with IFF_TUN, IFF_NO_PI
fcntl.ioctl(tunnel, 0x400454CA, struct.pack("16sH22x", b"tun0", 0x1001))
wire = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
wire.bind(sys.argv[1])
print("1", flush=True)
while True:
    ready = select.select([tunnel, wire], [], [])[0]
    if wire in ready:
        os.write(tunnel, wire.recv(65536))
    if tunnel in ready:
        packet = os.read(tunnel, 65536)
        if packet[0] >> 4 == 4:
            try:
                wire.sendto(packet, sys.argv[2])
            except OSError:
                pass  # the other end is not there yet
"""


class Talker:
    """A node in a namespace that does what it is told and tells what happens to it."""

    def __init__(self, process: Forked, name: str) -> None:
        self.process = process
        self.name = name
        self.told: list[list[str]] = []
        self.await_(["ready", name])

    def order(self, *words: str) -> None:
        """Have it do something."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()

    def await_(self, wanted: list[str]) -> list[str]:
        """Read what it tells up to the first line that begins with these words; returns that
        line."""
        while True:
            line = told(self.process)
            self.told.append(line)
            if line[: len(wanted)] == wanted:
                return list(line)

    def end(self) -> list[list[str]]:
        """End it; everything that it told."""
        out, err = self.process.communicate(timeout=GUARD)
        assert self.process.returncode == 0, err
        return self.told + [json.loads(line) for line in out.splitlines()]


class Host:
    """A namespace with interfaces, and the programs that run in it."""

    def __init__(self, namespace: Any, fork_python: Callable[..., Forked]) -> None:
        self.namespace = namespace
        self._start = fork_python
        namespace.ip("link", "set", "lo", "up")

    def cable(
        self,
        other: Host,
        name: str,
        address: str,
        there: str,
        their_address: str,
        brd: Sequence[str] = ("brd", "+"),
    ) -> None:
        """Join an interface of this host with one of another; addresses with their prefix
        length. brd: what gives them a broadcast address."""
        self.namespace.ip(
            "link",
            "add",
            name,
            "type",
            "veth",
            "peer",
            "name",
            there,
            "netns",
            other.namespace.name,
        )
        for host, interface, own in ((self, name, address), (other, there, their_address)):
            host.namespace.ip("addr", "add", own, *brd, "dev", interface)
            host.namespace.ip("link", "set", interface, "up")

    def tunnel(self, other: Host, folder: Path, *, here: str, there: str, plen: int) -> None:
        """A VPN between this host and another: an interface tun0 on each, and two programs that
        pass on what is sent into them. plen: prefix length; 32: each address has the other as its
        peer."""
        ends = str(folder / "one"), str(folder / "two")
        for host, own, theirs, way in ((self, here, there, ends), (other, there, here, ends[::-1])):
            host.namespace.ip("tuntap", "add", "tun0", "mode", "tun")
            words = [own, "peer", f"{theirs}/32"] if plen == 32 else [f"{own}/{plen}"]
            host.namespace.ip("addr", "add", *words, "dev", "tun0")
            host.namespace.ip("link", "set", "tun0", "up")
            told(host._start("-c", TUNNEL, *way, prefix=host.namespace.prefix))

    def route(self, *arguments: str) -> None:
        self.namespace.ip("route", "add", *arguments)

    def node(self, name: str, *expected: str) -> Forked:
        """A node that greets all of these and waits to be greeted by as many."""
        return self._start("-c", NODE, name, *expected, prefix=self.namespace.prefix)

    def switch(self, cut: str, *hosts: tuple[Host, str]) -> None:
        """Join other hosts, each with its address, by two switches in this one and a cable between
        them: the first host on the one, the rest on the other. To set the interface `cut` down
        pulls that cable, of which no host sees anything."""
        self.namespace.ip("link", "add", cut, "type", "veth", "peer", "name", f"{cut}-end")
        for bridge, port in (("one", cut), ("two", f"{cut}-end")):
            # 0: the port of a switch that comes up would be deaf for 15 s
            self.namespace.ip("link", "add", bridge, "type", "bridge", "forward_delay", "0")
            self.namespace.ip("link", "set", port, "master", bridge, "up")
            self.namespace.ip("link", "set", bridge, "up")
        for number, (host, address) in enumerate(hosts):
            port = f"port{number}"
            host.cable_to_switch(self, port, address)
            self.namespace.ip("link", "set", port, "master", "two" if number else "one", "up")

    def cable_to_switch(self, other: Host, there: str, address: str) -> None:
        """An interface eth0 of this host, whose other end is an interface of the switch."""
        self.namespace.ip(
            *("link", "add", "eth0", "type", "veth"),
            *("peer", "name", there, "netns", other.namespace.name),
        )
        self.namespace.ip("addr", "add", address, "brd", "+", "dev", "eth0")
        self.namespace.ip("link", "set", "eth0", "up")

    def talker(self, name: str, **options: Any) -> Talker:
        """A node that does as it is told, with the times of TIMES."""
        words = json.dumps({**TIMES, **options})
        return Talker(self._start("-c", TALKER, name, words, prefix=self.namespace.prefix), name)

    def classic(self, *arguments: str) -> Forked:
        """A classic peer that announces itself to 255.255.255.255, as the original does."""
        return self._start("-m", "classic", *arguments, prefix=self.namespace.prefix)


@pytest.fixture
def make_host(make_netns: Any, fork_python: Any) -> Callable[[], Host]:
    """make_host(): a host without a cable."""
    return lambda: Host(make_netns(), fork_python)


def told(process: Forked) -> Any:
    """The next line of JSON that a process prints."""
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return json.loads(line)


def found_by(process: Forked) -> list[str]:
    """End a node; whom it had found, each as often as it was reported."""
    out, err = process.communicate(timeout=GUARD)
    assert process.returncode == 0, err
    names: list[str] = json.loads(out.splitlines()[-1])
    return names


def event(process: Forked, kind: str, text: str | None = None) -> list[Any]:
    """The next event of that kind (and text) that a classic peer tells."""
    while True:
        line: list[Any] = told(process)
        if line[0] == kind and text in (None, line[2]):
            return line


@pytest.mark.parametrize(("default_route", "brd"), crossed(ROUTES, BROADCASTS))
def test_two_nodes_in_two_namespaces_find_each_other_and_talk(make_host, default_route, brd):
    """A room without a router has no default route: then 255.255.255.255 can be sent to by naming
    the interface only. Addresses set by hand often have no broadcast address."""
    a, b = make_host(), make_host()
    a.cable(b, "eth0", "10.77.0.1/24", "eth0", "10.77.0.2/24", brd)
    if default_route:
        for host in (a, b):
            host.route("default", "dev", "eth0")
    ada, bob = a.node("ada", "bob"), b.node("bob", "ada")
    assert told(ada) == {
        "heard": {"hello from bob": "10.77.0.2"},
        "peers": {"bob": ["10.77.0.2", False]},
    }
    assert told(bob) == {
        "heard": {"hello from ada": "10.77.0.1"},
        "peers": {"ada": ["10.77.0.1", False]},
    }
    assert found_by(ada) == ["bob"] and found_by(bob) == ["ada"]


def test_a_host_with_three_interfaces_finds_who_is_on_each(make_host):
    """One node on each of three networks, of which one node sits on two: everybody is found once,
    whichever way it was heard."""
    hub, left, both = make_host(), make_host(), make_host()
    hub.cable(left, "eth0", "10.77.1.1/24", "eth0", "10.77.1.2/24")
    hub.cable(both, "eth1", "10.77.2.1/24", "eth0", "10.77.2.2/24")
    hub.cable(both, "eth2", "10.77.3.1/24", "eth1", "10.77.3.2/24")
    ada = hub.node("ada", "bob", "eve")
    bob, eve = left.node("bob", "ada"), both.node("eve", "ada")
    told_ada = told(ada)
    assert set(told_ada["heard"]) == {"hello from bob", "hello from eve"} and set(
        told_ada["peers"]
    ) == {"bob", "eve"}
    assert told_ada["peers"]["bob"] == ["10.77.1.2", False] and told_ada["peers"]["eve"][0] in (
        "10.77.2.2",
        "10.77.3.2",
    )
    assert told(bob)["peers"] == {"ada": ["10.77.1.1", False]}
    assert told(eve)["peers"]["ada"][0] in ("10.77.2.1", "10.77.3.1")
    assert found_by(ada) == ["bob", "eve"]
    assert found_by(bob) == ["ada"] and found_by(eve) == ["ada"]


@pytest.mark.parametrize(
    ("default_route", "dials"), crossed(ROUTES, {"dialled": False, "dialling": True})
)
def test_a_node_and_a_classic_peer_find_each_other_through_plain_limited_broadcast(
    make_host, default_route, dials
):
    """The original announces itself to 255.255.255.255 only, and hears whatever comes to its
    port."""
    a, b = make_host(), make_host()
    a.cable(b, "eth0", "10.77.0.1/24", "eth0", "10.77.0.2/24")
    b.route("255.255.255.255/32", "dev", "eth0")
    if default_route:
        a.route("default", "dev", "eth0")
    old = b.classic(
        "--name", "mac", "--host", "10.77.0.2", "--say", "hello from mac", *["--dial"] * dials
    )
    event(old, "ready")
    ada = a.node("ada", "mac")
    assert event(old, "discovered")[1:] == ["10.77.0.1", "ada"]
    assert event(old, "message")[1:] == ["10.77.0.1", "hello from ada"]
    answer = told(ada)
    assert answer["heard"] == {"hello from mac": "10.77.0.2"} and answer["peers"]["mac"] == [
        "10.77.0.2",
        True,
    ]
    assert "mac" in found_by(ada)
    event(old, "disconnected")
    event(old, "goodbye")
    old.stdin.close()
    assert old.wait(GUARD) == 0, old.stderr.read()


def test_a_node_with_three_interfaces_and_a_classic_peer_on_the_last_find_each_other(make_host):
    """The classic peer hears the broadcast of its own network only; the node must send on each."""
    hub, one, two, last = make_host(), make_host(), make_host(), make_host()
    hub.cable(one, "eth0", "10.77.1.1/24", "eth0", "10.77.1.2/24")
    hub.cable(two, "eth1", "10.77.2.1/24", "eth0", "10.77.2.2/24")
    hub.cable(last, "eth2", "10.77.3.1/24", "eth0", "10.77.3.2/24")
    last.route("255.255.255.255/32", "dev", "eth0")
    old = last.classic("--name", "mac", "--host", "10.77.3.2", "--say", "hello from mac")
    event(old, "ready")
    ada = hub.node("ada", "mac")
    assert event(old, "discovered")[1:] == ["10.77.3.1", "ada"]
    assert told(ada) == {
        "heard": {"hello from mac": "10.77.3.2"},
        "peers": {"mac": ["10.77.3.2", True]},
    }
    assert found_by(ada) == ["mac"]
    event(old, "goodbye")
    old.stdin.close()
    assert old.wait(GUARD) == 0, old.stderr.read()


# Addresses of every sort


def meet(dialler: Talker, other: Talker, address: str) -> None:
    """Have one find the other by itself, connect at this address, and talk."""
    dialler.order("connect", other.name)
    dialler.await_(["PeerConnected", other.name])
    other.await_(["PeerConnected", dialler.name])
    dialler.order("where", other.name)
    assert dialler.await_(["where"])[1] == address
    talk(dialler, other, "word")


@pytest.mark.parametrize(("dialler", "brd"), crossed(DIALLERS, BROADCASTS))
def test_a_node_that_names_its_interface_finds_who_is_there(make_host, dialler, brd):
    """255.255.255.255 leaves by the interfaces that are named, too: without a broadcast address
    there is nothing else."""
    a, b = make_host(), make_host()
    a.cable(b, "eth0", "10.77.0.1/24", "eth0", "10.77.0.2/24", brd)
    ada, bob = a.talker("ada", interfaces=["eth0"]), b.talker("bob", interfaces=["eth0"])
    if dialler == "ada":
        meet(ada, bob, "10.77.0.2")
    else:
        meet(bob, ada, "10.77.0.1")


def test_peers_on_a_network_that_was_not_named_are_not_heard(make_host):
    """Who names one interface does not want the node to be in the other network. bob, who can be
    asked by both, says when an announcement of eve has come."""
    hub, left, right = make_host(), make_host(), make_host()
    hub.cable(left, "eth0", "10.77.1.1/24", "eth0", "10.77.1.2/24")
    hub.cable(right, "eth1", "10.77.2.1/32", "eth0", "10.77.2.2/32")
    hub.route("10.77.2.2", "dev", "eth1")
    right.route("10.77.2.1", "dev", "eth0")
    bob, eve = left.talker("bob"), right.talker("eve")
    everywhere = hub.talker("everywhere", port=7400, udp_port=7401)
    ada = hub.talker("ada", interfaces=["eth0"])
    everywhere.order("find", "eve")
    everywhere.await_(["found", "eve"])
    for talker in (bob, eve):
        talker.order("find", "everywhere")
        talker.await_(["found", "everywhere"])
    meet(ada, bob, "10.77.1.2")
    time.sleep(3 * TIMES["announce_interval"])  # eve has announced herself meanwhile
    ada.order("known")
    assert "eve" not in ada.await_(["known"])
    eve.order("known")
    assert "ada" not in eve.await_(["known"])


@pytest.mark.parametrize(
    ("bound", "dialler"), crossed({"all addresses": False, "bound": True}, DIALLERS)
)
def test_a_second_address_of_an_interface_is_in_a_network_too(make_host, bound, dialler):
    """Two networks on one wire: those of the second find us, at our address in theirs; and a node
    may live on that address alone."""
    a, b = make_host(), make_host()
    a.cable(b, "eth0", "10.77.0.1/24", "eth0", "10.78.0.2/24", ())
    a.namespace.ip("addr", "add", "10.78.0.1/24", "dev", "eth0", "label", "eth0:1")
    ada = a.talker("ada", **{"bind": "10.78.0.1"} if bound else {})
    bob = b.talker("bob", interfaces=["eth0"])
    if dialler == "ada":
        meet(ada, bob, "10.78.0.2")
    else:
        meet(bob, ada, "10.78.0.1")


@pytest.mark.parametrize(
    ("named", "dialler"), crossed({"all interfaces": False, "interface named": True}, DIALLERS)
)
def test_hosts_that_have_an_address_and_a_route_but_no_network_find_each_other(
    make_host, named, dialler
):
    """Clouds and hosters give /32 addresses with host routes: nobody has a broadcast address, and
    no address lies in the network of another."""
    a, b = make_host(), make_host()
    a.cable(b, "eth0", "10.77.0.1/32", "eth0", "10.99.0.2/32", ())
    a.route("10.99.0.2", "dev", "eth0")
    b.route("10.77.0.1", "dev", "eth0")
    options = {"interfaces": ["eth0"]} if named else {}
    ada, bob = a.talker("ada", **options), b.talker("bob", **options)
    if dialler == "ada":
        meet(ada, bob, "10.99.0.2")
    else:
        meet(bob, ada, "10.77.0.1")


@pytest.mark.parametrize(
    ("options", "plen"),
    crossed(
        {"bound": {"bind": "10.8.0.1"}, "plain": {}, "named": {"interfaces": ["tun0"]}},
        {"network": 24, "point to point": 32},
    ),
)
def test_nodes_find_each_other_through_a_tunnel(make_host, tmp_path, options, plen):
    """A VPN's interface has no broadcast flag, and often an address whose network is the other end
    alone."""
    a, b = make_host(), make_host()
    a.tunnel(b, tmp_path, here="10.8.0.1", there="10.8.0.2", plen=plen)
    meet(a.talker("ada", **options), b.talker("bob"), "10.8.0.2")


def test_a_node_without_discovery_lives_on_any_address_and_any_interface(make_host, tmp_path):
    """Whether an address is ours the system says, and an interface needs to exist, no more: nothing
    is announced there."""
    a, b = make_host(), make_host()
    a.tunnel(b, tmp_path, here="10.8.0.1", there="10.8.0.2", plen=32)
    b.namespace.ip("link", "add", "down0", "type", "bridge")  # no address, and not up
    ada = a.talker("ada", discovery=False, bind="10.8.0.1", interfaces=["tun0"])
    bob = b.talker("bob", discovery=False, interfaces=["down0"])
    bob.order("dial", "10.8.0.1")
    bob.await_(["PeerConnected", "ada"])
    ada.await_(["PeerConnected", "bob"])
    talk(bob, ada, "word")


def test_an_interface_that_is_down_at_first_is_announced_on_when_it_is_up(make_host):
    """The cable is put in after the program has started; its address is there before."""
    a, b = make_host(), make_host()
    a.cable(b, "eth0", "10.77.0.1/24", "eth0", "10.77.0.2/24")
    a.namespace.ip("link", "set", "eth0", "down")
    ada = a.talker(
        "ada", bind="10.77.0.1", interfaces=["eth0"], announce_interval=10.0, peer_timeout=30.0
    )
    bob = b.talker("bob", announce_interval=10.0, peer_timeout=30.0)
    a.namespace.ip("link", "set", "eth0", "up")
    meet(bob, ada, "10.77.0.1")


def test_who_gets_a_second_address_is_found_in_its_network_and_a_lost_one_ends_its_links(make_host):
    """Changes of further addresses are changes, too: of both nodes' links the one on the address
    that goes is ended, and made anew on the other."""
    a, b = make_host(), make_host()
    a.cable(b, "eth0", "10.77.0.1/24", "eth0", "10.78.0.2/24")
    ada, bob = (
        a.talker("ada", announce_interval=10.0, peer_timeout=30.0),
        b.talker("bob", announce_interval=10.0, peer_timeout=30.0),
    )
    a.namespace.ip("addr", "add", "10.78.0.1/24", "dev", "eth0")
    bob.order("reach", "ada")  # bob has heard her at an address to which there is no way
    bob.await_(["PeerConnected", "ada"])
    ada.await_(["PeerConnected", "bob"])
    talk(bob, ada, "word")
    a.namespace.ip("addr", "add", "10.78.0.3/24", "dev", "eth0")
    a.namespace.ip("addr", "del", "10.78.0.1/24", "dev", "eth0")
    a.namespace.ip("addr", "replace", "10.78.0.3/24", "dev", "eth0")
    line = ada.await_(["PeerDisconnected", "bob", "NetworkFailure"])
    assert "10.78.0.1, which is no longer an address of this machine" in line[3]
    ada.await_(["PeerConnected", "bob"])
    talk(ada, bob, "again")


LISTENER = """
import json, socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
    listener.bind(("", 7353))
    print("1", flush=True)
    heard = []
    while not heard or heard[-1][1] != 3:  # GOODBYE
        data, (host, _) = listener.recvfrom(2048)
        heard.append([host, data[5]])
    listener.settimeout(0.5)
    try:
        while True:
            data, (host, _) = listener.recvfrom(2048)
            heard.append([host, data[5]])
    except TimeoutError:
        print(json.dumps(heard), flush=True)
"""


def test_each_packet_comes_once_to_each_host(make_host):
    """The original makes a peer of each address that it hears: a second packet from another address
    of the same host would be a second peer."""
    hub, one, two = make_host(), make_host(), make_host()
    hub.switch("middle", (one, "10.77.0.2/24"), (two, "10.78.0.2/24"))
    host = make_host()
    host.cable_to_switch(hub, "port9", "10.77.0.1/24")
    hub.namespace.ip("link", "set", "port9", "master", "one", "up")
    for further in ("10.77.0.9/24", "10.77.0.10/32", "10.78.0.1/24"):
        host.namespace.ip("addr", "add", further, "dev", "eth0")
    listeners = [each._start("-c", LISTENER, prefix=each.namespace.prefix) for each in (one, two)]
    assert [told(each) for each in listeners] == [1, 1]
    ada = host.talker("ada", announce_interval=10.0, peer_timeout=30.0)
    ada.end()
    kinds = [1, 2, 3]
    heard = [told(each) for each in listeners]
    assert sorted(heard[0]) == [["10.77.0.1", kind] for kind in kinds]
    # which does not know that the other network is none of its own
    assert sorted(heard[1]) == [
        [f"10.7{network}.0.1", kind] for network in (7, 8) for kind in kinds
    ]
    assert heard[1][0][0] == "10.78.0.1", "where it is reached comes first"


REFUSED = """
import asyncio, json, sys
import peertalk as pt

async def main(options):
    try:
        await pt.Node("ada", **{"bind": "", "interfaces": (), **json.loads(options)}).start()
    except pt.PeerTalkError as error:
        print(json.dumps([type(error).__name__, str(error)]), flush=True)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("never", "discovery"),
    crossed(
        {
            "no interface": (
                {"interfaces": ["eth9"]},
                "there is no interface 'eth9' (Config.interfaces)",
            ),
            "no address": (
                {"bind": "10.77.0.9"},
                "10.77.0.9 (Config.bind) is no address of this machine",
            ),
            "left out": (
                {"bind": "10.77.0.1", "interfaces": ["lo"]},
                "10.77.0.1 (Config.bind) is an address of eth0, which Config.interfaces leaves out",
            ),
        },
        {"discovery": True, "address only": False},
    ),
)
def test_what_can_never_work_is_refused_with_its_reason(make_host, never, discovery):
    """An error with a false reason costs an evening."""
    options, said = never
    a, b = make_host(), make_host()
    a.cable(b, "eth0", "10.77.0.1/24", "eth0", "10.77.0.2/24")
    words = json.dumps({"discovery": discovery, **options})
    process = a._start("-c", REFUSED, words, prefix=a.namespace.prefix)
    kind, text = told(process)
    assert kind == "NoNetwork" and said in text
    if "interfaces" in options and "bind" not in options:
        assert "there are: " in text and "eth0" in text


MANY = """
import asyncio, json, resource, sys
import peertalk as pt

async def main(count):
    nodes = [
        pt.Node(f"n{number}", port=0, udp_port=0, bind="", interfaces=())
        for number in range(count)
    ]
    await asyncio.gather(*(node.start() for node in nodes))
    for node in nodes:
        async with asyncio.timeout(600):
            while len(node.peers) < count - 1:
                await asyncio.sleep(0.1)
    print(json.dumps([sorted({len(node.peers) for node in nodes}), nodes[0].stats().peers_refused]))
    for node in nodes:
        node.close_nowait()

_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
asyncio.run(main(int(sys.argv[1])))
"""


def test_all_nodes_of_one_host_know_each_other(make_host, rounds):
    """A host may run hundreds of programs, and all have its address: the bound on peers of one
    address is for other machines."""
    host, count = make_host(), rounds(100, 200)
    process = host._start("-c", MANY, str(count), prefix=host.namespace.prefix)
    assert told(process) == [[count - 1], 0]


# Networks that go and come back


def connected_pair(one: Host, other: Host, **options: Any) -> tuple[Talker, Talker]:
    """ada on one host and bob on the other; ada has dialled."""
    ada, bob = one.talker("ada", **options), other.talker("bob", **options)
    ada.order("connect", "bob")
    ada.await_(["PeerConnected", "bob"])
    bob.await_(["PeerConnected", "ada"])
    return ada, bob


def talk(ada: Talker, bob: Talker, word: str) -> None:
    """A message each way, over a connection that is there."""
    for sender, receiver in ((ada, bob), (bob, ada)):
        sender.order("send", receiver.name, f"{word}-{sender.name}")
    for sender, receiver in ((ada, bob), (bob, ada)):
        receiver.await_(["message", sender.name, f"{word}-{sender.name}"])


def kinds_told(talker: Talker) -> list[str]:
    return [line[0] for line in talker.told if line[0] not in ("ready", "message")]


@pytest.mark.soak
@pytest.mark.parametrize("outage", [4, 8])
def test_a_cable_that_is_out_for_less_than_the_link_timeout_costs_nothing(make_host, outage):
    """Somebody stumbles over a cable: the system sends again what was lost, and a node that ended
    the link would lose what the system would have brought."""
    switch, a, b = make_host(), make_host(), make_host()
    switch.switch("middle", (a, "10.77.0.1/24"), (b, "10.77.0.2/24"))
    ada, bob = connected_pair(a, b)
    talk(ada, bob, "before")
    switch.namespace.ip("link", "set", "middle", "down")
    ada.order("send", "bob", "meanwhile")
    time.sleep(outage * SCALE)
    switch.namespace.ip("link", "set", "middle", "up")
    bob.await_(["message", "ada", "meanwhile"])
    talk(ada, bob, "after")
    assert kinds_told(ada) == kinds_told(bob) == ["PeerConnected"]


@pytest.mark.soak
@pytest.mark.parametrize("outage", [25, 60])
def test_a_connection_that_a_longer_outage_has_cost_comes_back_by_itself(make_host, outage):
    """Nobody can be asked to press a button when the switch is back. 25 s: the link is dead; 60 s:
    the peer is forgotten, too."""
    switch, a, b = make_host(), make_host(), make_host()
    switch.switch("middle", (a, "10.77.0.1/24"), (b, "10.77.0.2/24"))
    ada, bob = connected_pair(a, b)
    talk(ada, bob, "before")
    switch.namespace.ip("link", "set", "middle", "down")
    for _ in range(5):
        ada.order("send", "bob", "lost")
    time.sleep(outage * SCALE)
    ada.await_(["PeerDisconnected", "bob", "ConnectionClosed"])
    bob.await_(["PeerDisconnected", "ada", "ConnectionClosed"])
    switch.namespace.ip("link", "set", "middle", "up")
    ada.await_(["PeerConnected", "bob"])
    bob.await_(["PeerConnected", "ada"])
    talk(ada, bob, "after")
    ada.order("count", "bob")
    accepted, sent, failed = ada.await_(["count"])[1:]
    arrived = sum(line[0] == "message" for line in bob.told)
    assert accepted == sent + failed and sent <= arrived, "each has its outcome"


@pytest.mark.parametrize(("outage", "whose"), crossed({"40": 40, "8": 8}, SIDES))
def test_an_interface_that_goes_down_and_up_again_brings_its_connections_back(
    make_host, outage, whose
):
    """A laptop that sleeps: for less than link_timeout the link is still there, else it is made
    anew, whoever dialled it."""
    switch, a, b = make_host(), make_host(), make_host()
    switch.switch("middle", (a, "10.77.0.1/24"), (b, "10.77.0.2/24"))
    ada, bob = connected_pair(a, b)
    talk(ada, bob, "before")
    host = a if whose == "dialler's" else b
    host.namespace.ip("link", "set", "eth0", "down")
    ada.order("send", "bob", "meanwhile")
    time.sleep(outage * SCALE)
    if outage * SCALE > TIMES["link_timeout"]:
        ada.await_(["PeerDisconnected", "bob"])
        bob.await_(["PeerDisconnected", "ada"])
    host.namespace.ip("link", "set", "eth0", "up")
    if outage * SCALE > TIMES["link_timeout"]:
        ada.await_(["PeerConnected", "bob"])
        bob.await_(["PeerConnected", "ada"])
    talk(ada, bob, "after")


@pytest.mark.parametrize(
    ("discovery", "whose"), crossed({"discovery": True, "address only": False}, SIDES)
)
def test_links_on_an_address_that_was_replaced_are_ended_and_made_anew_on_the_new_one(
    make_host, whose, discovery
):
    """DHCP hands out another address: nothing comes to the old one any more, and no error either.
    Without a word messages would be taken and vanish for a quarter of an hour."""
    switch, a, b = make_host(), make_host(), make_host()
    switch.switch("middle", (a, "10.77.0.1/24"), (b, "10.77.0.2/24"))
    if discovery:
        ada, bob = connected_pair(a, b)
    else:
        ada, bob = a.talker("ada", discovery=False), b.talker("bob", discovery=False)
        ada.order("dial", "10.77.0.2")
        ada.await_(["PeerConnected", "bob"])
        bob.await_(["PeerConnected", "ada"])
    talk(ada, bob, "before")
    mover, host = (ada, a) if whose == "dialler's" else (bob, b)
    host.namespace.ip("addr", "flush", "dev", "eth0")
    host.namespace.ip("addr", "add", "10.77.0.77/24", "brd", "+", "dev", "eth0")
    other = bob if mover is ada else ada
    line = mover.await_(["PeerDisconnected", other.name, "NetworkFailure"])
    assert "no longer an address of this machine" in line[3] and repr(other.name) in line[3]
    mover.await_(["PeerConnected", other.name])
    talk(ada, bob, "after")
    other.order("where", mover.name)
    assert other.await_(["where"]) == ["where", "10.77.0.77"]


def test_nobody_who_said_that_they_leave_is_dialled_again(make_host):
    """disconnect() is meant: a connection that came back by itself would be a bug of another
    kind."""
    a, b = make_host(), make_host()
    a.cable(b, "eth0", "10.77.0.1/24", "eth0", "10.77.0.2/24")
    ada, bob = connected_pair(a, b)
    ada.order("disconnect", "bob")
    ada.await_(["left", "bob"])
    bob.await_(["PeerDisconnected", "ada"])
    # announcements of both pass meanwhile, each a reason to dial if it were one
    time.sleep(3 * TIMES["announce_interval"])
    assert "PeerConnected" not in [line[0] for line in ada.end()[len(ada.told) :]]
    assert kinds_told(bob) == ["PeerConnected", "PeerDisconnected"]


# What the system tells of a connection

ASKER = """
import json, socket, struct, sys, time
from peertalk.runtime.world import World

def since_ack():
    return struct.unpack_from("=I", connection.getsockopt(6, socket.TCP_INFO, 104), 56)[0] / 1000

world = World()
connection = socket.create_connection((sys.argv[1], 5000))
connection.setblocking(False)
for line in sys.stdin:
    match line.split():
        case ["say"]:
            connection.send(b"something")
        case ["fill"]:
            try:
                while True:
                    connection.send(bytes(65_536))
            except BlockingIOError:
                pass
        case ["acknowledged"]:
            while world.unacknowledged(connection):
                time.sleep(0.005)
        case ["silent", seconds]:
            while world.silent_for(connection) <= float(seconds):
                time.sleep(0.005)
        case ["quiet", seconds]:
            while since_ack() <= float(seconds):
                time.sleep(0.005)
    print(json.dumps([world.silent_for(connection), world.unacknowledged(connection)]), flush=True)
"""
SITTER = """
import socket, sys
with socket.create_server(("", 5000)) as listener:
    print("1", flush=True)
    connection, _ = listener.accept()
    sys.stdin.read()
"""


@pytest.fixture
def asking(make_host: Any) -> Any:
    """Two hosts, and a connection of the first with a program on the second that reads nothing.
    ask(order): [silence, bytes that wait] once the order is done."""
    a, b = make_host(), make_host()
    a.cable(b, "eth0", "10.77.0.1/24", "eth0", "10.77.0.2/24")
    sitter = b._start("-c", SITTER, prefix=b.namespace.prefix)
    told(sitter)
    asker = a._start("-c", ASKER, "10.77.0.2", prefix=a.namespace.prefix)

    def ask(order: str) -> Any:
        asker.stdin.write(order + "\n")
        asker.stdin.flush()
        return told(asker)

    return a, b, ask


def test_a_reader_that_stands_still_is_not_silent(asking):
    """Its system acknowledges each probe of the shut window, but those come ever more rarely: the
    time since the last acknowledgement grows past any limit."""
    _, _, ask = asking
    assert ask("fill")[1] > 10_000
    silent, waiting = ask("quiet 1.6")
    assert silent == 0.0 and waiting > 10_000


@pytest.mark.parametrize("how", ["their answers lost", "interface down", "address gone"])
def test_a_connection_whose_bytes_reach_nobody_is_silent_until_they_do(asking, how):
    """A cable out, an interface down, an address that was replaced: the kernel would go on for a
    quarter of an hour, and where there is no route it has nothing on its way."""
    a, b, ask = asking
    ask("say")
    assert ask("acknowledged") == [0.0, 0]
    cut, heal = {
        "their answers lost": (
            (b, "route", "add", "blackhole", "10.77.0.1/32"),
            (b, "route", "del", "blackhole", "10.77.0.1/32"),
        ),
        "interface down": (
            (a, "link", "set", "eth0", "down"),
            (a, "link", "set", "eth0", "up"),
        ),
        "address gone": (
            (a, "addr", "del", "10.77.0.1/24", "dev", "eth0"),
            (a, "addr", "add", "10.77.0.1/24", "brd", "+", "dev", "eth0"),
        ),
    }[how]
    cut[0].namespace.ip(*cut[1:])
    ask("say")
    silent, waiting = ask("silent 2")
    assert silent > 2 and waiting == len(b"something")
    heal[0].namespace.ip(*heal[1:])
    assert ask("acknowledged") == [0.0, 0]
