"""Sockets and the clock, on loopback: what the system refuses becomes an error that names the
option or the address.

Truth: the system itself, the ipaddress module, and the header of the kernel.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
import types

import pytest
from kit.striking import Striking

from peertalk import errors
from peertalk.protocol.addresses import Interface
from peertalk.runtime.world import _PKTINFO, World, _bare

HOME = "127.0.0.1"
WAIT_MS = 20_000

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="did not run: this is about Linux"
)


@pytest.fixture
def world():
    return World()


@pytest.fixture
def keep():
    """keep(socket): the same socket, closed behind the test."""
    kept = []

    def keep_one(each):
        kept.append(each)
        return each

    yield keep_one
    for each in kept:
        each.close()


def ready(watched, what=select.POLLIN):
    """Wait until the socket is ready."""
    poll = select.poll()
    poll.register(watched, what)
    assert poll.poll(WAIT_MS), "nothing came"


def loopback_of(world):
    return next(interface for interface in world.interfaces() if interface.address == HOME)


LO = Interface("lo", 1, HOME, "127.255.255.255", "255.0.0.0")
ONE = Interface("eth0", 2, "10.0.0.200", "10.0.0.255", "255.255.255.0")
OTHER = Interface("eth1", 3, "10.3.0.1", "10.3.0.255", "255.255.255.0")


NEWS = """
import json, select, subprocess, sys
from peertalk.runtime.world import World

world = World()
news = world.network_news()

def tell(change):
    subprocess.run(["ip", *change.split()], check=True)
    heard = bool(select.select([news], [], [], 20)[0])
    world.drop_news(news)
    left = bool(select.select([news], [], [], 0)[0])
    print(json.dumps([heard, left, [world.owns(f"10.66.0.{last}") for last in (1, 2)]]), flush=True)

print(json.dumps([world.owns("127.0.0.7"), world.owns("198.51.100.77")]), flush=True)
tell("addr add 10.66.0.1/24 brd + dev eth0")
tell("link set eth0 up")
tell("addr add 10.66.0.2/24 dev eth0")
tell("link set eth0 down")
tell("addr del 10.66.0.2/24 dev eth0")
print(json.dumps([each.plugged for each in world.interfaces()]))
"""


@linux
def test_the_system_tells_of_each_change_and_which_addresses_are_ours(netns, fork_python):
    """A second address counts, which lists of interfaces leave out; and so does one whose interface
    is down, since its links go on when it is up again."""
    netns.ip("link", "set", "lo", "up")
    netns.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    process = fork_python("-c", NEWS, prefix=netns.prefix)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    first, *changes, plugged = map(json.loads, out.splitlines())
    assert first == [True, False]
    assert changes == [
        [True, False, ours]
        for ours in ([True, False], [True, False], [True, True], [True, True], [True, False])
    ]
    assert plugged == [True], "loopback; eth0 is down"


def test_a_machine_that_tells_nothing_or_refuses_to_is_no_failure(world, monkeypatch):
    """Elsewhere than on Linux, in a sandbox, or out of descriptors: then nothing is known to be
    gone."""
    monkeypatch.setattr(socket, "socket", lambda *_: (_ for _ in ()).throw(OSError(errno.EMFILE)))
    assert world.network_news() is None and world.owns("10.66.0.1")
    monkeypatch.delattr(socket, "AF_NETLINK", raising=False)
    assert world.network_news() is None


def test_news_that_overflowed_are_still_news(world):
    """A thousand containers that start say more than the socket holds: ENOBUFS, then the rest."""
    answers = [OSError(errno.ENOBUFS, "lost some"), b"x", BlockingIOError(), b"not read"]

    def recv(_):
        answer = answers.pop(0)
        if isinstance(answer, bytes):
            return answer
        raise answer

    world.drop_news(types.SimpleNamespace(recv=recv))
    assert answers == [b"not read"]


# Listening and accepting


@pytest.mark.parametrize(
    ("bound", "named"), [("listen", "TCP port"), ("unicast_socket", "UDP port")]
)
def test_a_taken_port_gives_way_or_names_the_option(world, keep, free_port, bound, named):
    """Two copies of one program must both start; a port that was asked for must not move in
    silence."""
    port, bind = free_port(), getattr(world, bound)
    first = keep(bind(HOME, port, give_way=False))
    assert first.getsockname() == (HOME, port) and not first.getblocking()
    second = keep(bind(HOME, port, give_way=True))
    assert second.getsockname()[1] not in (0, port)
    with pytest.raises(
        errors.AddressInUse,
        match=rf"{named} {port} on 127\.0\.0\.1 .*Config\.(udp_)?port \(PEERTALK_(UDP_)?PORT\)",
    ):
        bind(HOME, port, give_way=False)


def test_an_address_that_is_not_ours_cannot_be_listened_on(world):
    """It is named with the option that says it."""
    for give_way in (True, False):
        with pytest.raises(errors.NoNetwork, match=r"198\.51\.100\.77 \(Config\.bind\)"):
            world.listen("198.51.100.77", 0, give_way)


def test_a_port_that_was_closed_can_be_listened_on_again_at_once(world, free_port):
    """A program that is restarted must not wait for TIME_WAIT."""
    port = free_port()
    listener = world.listen(HOME, port, give_way=False)
    caller = socket.create_connection((HOME, port))
    ready(listener)
    accepted, _ = world.accept(listener)
    for each in (accepted, caller, listener):  # our side closes first, so TIME_WAIT is ours
        each.close()
    world.listen(HOME, port, give_way=False).close()


def test_connections_are_accepted_one_by_one_until_none_waits(world, keep):
    """None is "later", and an accepted socket never blocks the loop."""
    listener = keep(world.listen(HOME, 0, give_way=False))
    assert world.accept(listener) is None
    callers = [keep(socket.create_connection(listener.getsockname())) for _ in range(3)]
    ready(listener)
    accepted = []
    while (one := world.accept(listener)) is not None:
        accepted.append(one)
        keep(one[0])
        assert not one[0].getblocking()
    assert [address for _, address in accepted] == [caller.getsockname() for caller in callers]


class Refusing:
    """A socket whose every call fails as told, in turn; then there is nothing."""

    def __init__(self, *codes):
        self.codes = list(codes)

    def fail(self, *_):
        if not self.codes:
            raise BlockingIOError(errno.EAGAIN, "nothing")
        code = self.codes.pop(0)
        raise OSError(code, os.strerror(code))

    accept = recvfrom = recvmsg = sendmsg = getsockopt = fail


def test_a_caller_that_gave_up_does_not_stop_the_accepting(world):
    """ECONNABORTED is about that caller; behind him others wait."""
    refusing = Refusing(errno.ECONNABORTED, errno.EPROTO)
    assert world.accept(refusing) is None and not refusing.codes


def test_who_is_turned_away_hears_why_and_one_that_is_gone_already_raises_nothing(world, keep):
    """The last words are for free: they must never cost an error."""
    listener = keep(world.listen(HOME, 0, give_way=False))
    caller = keep(socket.create_connection(listener.getsockname()))
    ready(listener)
    world.turn_away(world.accept(listener)[0], b"no room")
    assert caller.recv(100) == b"no room" and caller.recv(100) == b""
    gone = socket.socketpair()
    gone[1].close()
    world.turn_away(gone[0], b"no room")
    assert gone[0].fileno() == -1


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_running_out_is_said_and_not_mistaken_for_an_empty_queue(world, code):
    """The connection still waits: the listener must rest a while, or it spins."""
    with pytest.raises(errors.PlatformError, match="cannot accept"):
        world.accept(Refusing(code))


# Dialling


def test_a_dial_that_succeeds_has_no_error_and_comes_from_the_address_we_live_on(world, keep):
    """With `bind` the other side sees that address and no other."""
    listener = keep(world.listen(HOME, 0, give_way=False))
    address = listener.getsockname()
    dialled = keep(world.dial(address, "127.0.0.5"))
    ready(dialled, select.POLLOUT)
    assert world.outcome(dialled, address) is None and not dialled.getblocking()
    ready(listener)
    accepted, caller = world.accept(listener)
    keep(accepted)
    assert caller == dialled.getsockname() and caller[0] == "127.0.0.5"


def test_a_dial_to_nobody_is_refused_by_address(world, keep, free_port):
    """Which of many addresses it was is the first question."""
    address = (HOME, free_port())
    try:
        dialled = keep(world.dial(address))
    except errors.ConnectionRefused as error:
        refused = error  # some systems know at once
    else:
        ready(dialled, select.POLLOUT)
        refused = world.outcome(dialled, address)
    assert isinstance(refused, errors.ConnectionRefused) and f"{HOME}:{address[1]}" in str(refused)


def test_a_dial_from_an_address_that_is_not_ours_fails_and_leaves_no_descriptor(world):
    """warnings are errors here: a socket that is left open would be one."""
    with pytest.raises(errors.NetworkFailure, match=r"no way to 127\.0\.0\.1:9"):
        world.dial((HOME, 9), "198.51.100.77")


@pytest.mark.parametrize(("code", "kind"), [(0, type(None)), (errno.ETIMEDOUT, errors.Timeout)])
def test_a_dial_is_connected_or_says_why(world, code, kind):
    """The number is the only thing that a socket has to say of it."""
    outcome = world.outcome(types.SimpleNamespace(getsockopt=lambda *_: code), ("10.0.0.7", 7354))
    assert type(outcome) is kind


@linux
def test_a_connection_is_tuned_to_be_quick_and_to_notice_the_dead(world, keep):
    """Nagle would add 40 ms to a round trip, and a dead peer on an idle link would stay for
    hours."""
    listener = keep(world.listen(HOME, 0, give_way=False))
    dialled = keep(world.dial(listener.getsockname()))
    ready(dialled, select.POLLOUT)
    world.tune(dialled, 15.0)
    names = (socket.TCP_NODELAY, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    no_delay, idle, interval, count = (
        dialled.getsockopt(socket.IPPROTO_TCP, name) for name in names
    )
    assert no_delay and dialled.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert idle + interval * count <= 15
    world.tune(dialled, 0.1)
    assert dialled.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 1, (
        "0 would be refused by the system"
    )
    unix, _other = map(keep, socket.socketpair())
    world.tune(unix, 15.0)  # no TCP at all: options that do not exist are no error
    assert dialled.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 0
    world.bound_unsent(dialled)
    assert 0 < dialled.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) <= 128 * 1024
    world.bound_unsent(unix)


@linux
def test_where_nothing_waits_or_the_system_tells_nothing_nobody_is_silent(world, monkeypatch):
    """Whatever it says beside."""
    telling = types.SimpleNamespace(getsockopt=lambda *_: bytes([0xFF] * 104))
    for waits, silent in ((0, False), (9, True)):
        monkeypatch.setattr(world, "unacknowledged", lambda _, waits=waits: waits)
        assert bool(world.silent_for(telling)) is silent
    assert world.silent_for(Refusing(errno.ENOTCONN)) == 0.0


@linux
def test_a_live_connection_is_not_silent(world, keep):
    """The kernel acknowledges for a reader that sleeps: slow is not dead."""
    listener = keep(world.listen(HOME, 0, give_way=False))
    dialled = keep(world.dial(listener.getsockname()))
    ready(dialled, select.POLLOUT)
    accepted, _ = world.accept(listener)
    keep(accepted)
    dialled.send(b"x" * 1_000)
    ready(accepted)
    assert world.silent_for(dialled) < 1.0
    assert len(dialled.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)) >= 60


@pytest.fixture
def joined(world, keep):
    """Both ends of a connection: the one that dialled, the one that was accepted."""
    listener = keep(world.listen(HOME, 0, give_way=False))
    dialled = keep(world.dial(listener.getsockname()))
    ready(dialled, select.POLLOUT)
    ready(listener)
    return dialled, keep(world.accept(listener)[0])


def until(holds):
    """Wait until it holds: the kernel tells no event of an acknowledgement."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while not holds():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.001)


def fill(sender):
    """Send until the system takes no more; how many bytes it took."""
    sent = 0
    while True:
        try:
            sent += sender.send(bytes(65_536))
        except BlockingIOError:
            return sent


def test_bytes_that_lie_unread_are_counted(world, joined):
    """A node that was blocked must know that its peers have spoken before it calls them lost."""
    one, other = joined
    assert world.unread(other) == 0
    one.send(bytes(1_000))
    until(lambda: world.unread(other) == 1_000)
    other.recv(400)
    assert world.unread(other) == 600
    world.abandon(one)
    one.close()
    ready(other, select.POLLIN)
    assert world.unread(other) == 600, "a reset does not take back what had come"


@linux
def test_bytes_that_nobody_acknowledged_are_counted_also_after_a_reset(world, joined):
    """They decide which messages may be lost; TCP_INFO has forgotten them by then."""
    one, other = joined
    one.send(bytes(1_000))
    until(lambda: world.unacknowledged(one) == 0)
    taken = fill(one)
    until(lambda: world.unread(other) + world.unacknowledged(one) == 1_000 + taken)
    lost = world.unacknowledged(one)
    assert lost > 0
    other.close()  # with bytes unread: the system resets
    ready(one, select.POLLHUP)
    assert world.unacknowledged(one) == lost
    assert struct.unpack_from(
        "=I", one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 24
    ) == (0,)


@linux
def test_the_end_of_our_half_counts_until_it_is_acknowledged(world, joined):
    """Nothing unacknowledged means that the other side's system knows of the end too."""
    one, _other = joined
    one.send(b"last")
    one.shutdown(socket.SHUT_WR)
    until(lambda: world.unacknowledged(one) == 0)


def test_what_is_closed_or_no_connection_owes_nothing(world, keep):
    """Whoever asks is on its way out: a question must not fail there."""
    listener = keep(world.listen(HOME, 0, give_way=False))
    closed = socket.socket()
    closed.close()
    for asked in (listener, closed):
        assert world.unread(asked) == world.unacknowledged(asked) == 0


def test_an_abandoned_connection_ends_with_a_reset_and_owes_nothing(world, keep):
    """The system would go on to deliver what it holds, long after the next connection has brought
    what was sent later."""
    listener = keep(world.listen(HOME, 0, give_way=False))
    dialled = keep(world.dial(listener.getsockname()))
    ready(dialled, select.POLLOUT)
    accepted, _ = world.accept(listener)
    keep(accepted)
    world.abandon(dialled)
    dialled.close()
    ready(accepted)
    with pytest.raises(ConnectionResetError):
        accepted.recv(1)
    world.abandon(dialled)  # closed already: no error


@linux
@pytest.mark.skipif(
    shutil.which("cc") is None, reason="did not run: no C compiler to read the kernel's header"
)
def test_the_offsets_in_tcp_info_are_those_of_the_header(tmp_path):
    """A wrong offset reads another counter, and links die or never do."""
    (tmp_path / "t.c").write_text(
        "#include <stddef.h>\n#include <linux/tcp.h>\n"
        '_Static_assert(offsetof(struct tcp_info, tcpi_probes) == 3, "");\n'
        '_Static_assert(offsetof(struct tcp_info, tcpi_backoff) == 4, "");\n'
        '_Static_assert(offsetof(struct tcp_info, tcpi_rto) == 8, "");\n'
        '_Static_assert(offsetof(struct tcp_info, tcpi_unacked) == 24, "");\n'
        '_Static_assert(offsetof(struct tcp_info, tcpi_last_ack_recv) == 56, "");\n'
    )
    # a sanitizer of ours is none of the compiler's
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run(
        ["cc", "-fsyntax-only", str(tmp_path / "t.c")],
        env=environment,
        capture_output=True,
        text=True,
    )
    if "No such file" in done.stderr:
        pytest.skip("did not run: the headers of the kernel are not installed")
    assert done.returncode == 0, done.stderr


# Datagrams


def test_a_broadcast_is_heard_by_every_program_on_the_port(world, keep, free_port):
    """Several nodes on one machine share the port of discovery."""
    port = free_port()
    listeners = [keep(world.datagram_socket(port)) for _ in range(3)]
    assert [world.hear(listener) for listener in listeners] == [None] * 3
    sender = listeners[0]
    lo = loopback_of(world)
    taken = world.broadcast(sender, b"who is there", port, [lo], "127.0.0.5")
    assert taken == {lo.name: 0}
    for listener in listeners:
        ready(listener)
        data, address, number = world.hear_broadcast(listener)
        assert data == b"who is there"
        if sys.platform.startswith("linux"):
            assert number == loopback_of(world).number
            assert address == ("127.0.0.5", port), "it comes from the address we live on"
        assert world.hear(listener) is None


def test_a_long_datagram_is_cut_and_the_next_is_whole(world, keep, free_port):
    """No stranger decides how much memory we use."""
    port = free_port()
    listener = keep(world.datagram_socket(port))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(bytes(9_000), (HOME, port))
        stranger.sendto(b"next", (HOME, port))
        own = stranger.getsockname()[1]
    ready(listener)
    assert world.hear(listener) == (bytes(2_048), (HOME, own))
    ready(listener)
    assert world.hear(listener) == (b"next", (HOME, own))


def test_a_port_that_somebody_does_not_share_names_the_option(world, keep, free_port):
    """Discovery cannot give way: all peers of a network use the same port."""
    port = free_port()
    selfish = keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    selfish.bind(("", port))
    with pytest.raises(errors.AddressInUse, match=rf"UDP port {port} .*PEERTALK_DISCOVERY_PORT"):
        world.datagram_socket(port)


def test_errors_of_earlier_broadcasts_are_not_news(world):
    """ICMP comes back to the socket that has long gone on; but not for ever in one call."""
    for hear in (world.hear, world.hear_broadcast):
        assert hear(Refusing(errno.ECONNREFUSED, errno.EHOSTUNREACH)) is None
        endless = Refusing(*[errno.ECONNREFUSED] * 100)
        assert hear(endless) is None and endless.codes


class Recording:
    """Where packets would have gone."""

    def __init__(self):
        self.sent = []

    def sendmsg(self, data, ancillary, flags, address):
        told = [_PKTINFO.unpack(info)[:2] for *_, info in ancillary]
        self.sent.append((b"".join(data), address, told))


@linux
def test_a_packet_is_told_by_which_interface_and_from_which_address_it_leaves(world):
    """No route is asked, so none is needed; and nothing leaves on an interface that was not
    meant."""
    sender = Recording()
    assert world.broadcast(sender, b"hi", 7353, [ONE, OTHER]) == {"eth0": 0, "eth1": 0}
    assert sender.sent == [
        (b"hi", ("255.255.255.255", 7353), [(2, socket.inet_aton("10.0.0.200"))]),
        (b"hi", ("255.255.255.255", 7353), [(3, socket.inet_aton("10.3.0.1"))]),
    ]
    sender = Recording()
    assert world.broadcast(sender, b"hi", 7353, [LO], "127.0.0.5") == {"lo": 0}
    assert sender.sent == [(b"hi", ("127.255.255.255", 7353), [(1, socket.inet_aton("127.0.0.5"))])]
    refused = world.broadcast(Refusing(errno.ENETUNREACH), b"hi", 7353, [ONE])
    assert refused == {"eth0": errno.ENETUNREACH}, "no route is no error, but is told"


# Small things


def test_clock_and_identity_are_fit_for_their_use(world):
    """Deadlines must not follow the wall clock, and two starts must not be one instance."""
    first = world.clock()
    assert world.clock() >= first
    assert len(world.identity(8)) == 8 and len({world.identity(8) for _ in range(100)}) == 100


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # of what a strike has left
def test_a_socket_made_bare_has_one_owner_wherever_a_signal_strikes():
    """With two of them the one that goes last would close whatever has that number by then."""

    class Struck(BaseException):
        pass

    def strike():
        raise Struck

    def struck_at(nth):
        ours, theirs = socket.socketpair()
        number, striking = ours.fileno(), Striking(nth, strike, ("peertalk",))
        striking.begin()
        try:
            bare = _bare(ours)
        except Struck:
            bare = None
        finally:
            striking.end()
        is_kept = ours.fileno() >= 0
        assert not (is_kept and bare)
        del bare
        if not is_kept:
            with pytest.raises(OSError):
                os.fstat(number)
        ours.close()
        with open(os.devnull) as other:
            gc.collect()
            os.fstat(other.fileno())
        theirs.close()
        return striking.struck

    steps = 1
    while struck_at(steps):
        steps += 1
    assert steps > 5
