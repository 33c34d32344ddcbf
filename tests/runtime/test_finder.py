"""Discovery between a socket and the sans-I/O half: what is heard goes in, what is due goes out,
and no network is no disaster.

World and engine are made up: time passes when the test says so, and packets lie in lists.
"""

from __future__ import annotations

import contextlib
import errno
import types

import pytest

from peertalk import errors
from peertalk._core import load
from peertalk._core.values import ANNOUNCE, GOODBYE, QUERY, READ
from peertalk.config import Config
from peertalk.protocol.addresses import Interface
from peertalk.protocol.events import LostReason
from peertalk.protocol.neighbours import Changed, Found, Gone, Heard
from peertalk.protocol.statistics import LinkTotals
from peertalk.protocol.wire import Announcement, decode_announcement, encode_announcement
from peertalk.runtime.finder import Finder
from peertalk.runtime.log import SETTLED

CORE = load("reference")
LAN = Interface("lan", 2, "10.0.0.200", "10.0.0.255", "255.255.255.0")
BEGIN = "peertalk: node 'ada': "
OURS, THEIRS = b"\x0a" * 8, b"\x0b" * 8


class MadeUpWorld:
    """A clock that stands still, and packets in lists."""

    def __init__(self):
        self.now = 100.0
        self.sent = []
        self.alone = []
        self.coming = []
        self.networks = [LAN]
        self.arrived_by = 0
        self.refusing = {}
        """Error numbers by the name of an interface."""

    def clock(self):
        return self.now

    def datagram_socket(self, port):
        return types.SimpleNamespace(port=port, closed=False)

    def interfaces(self):
        if isinstance(self.networks, Exception):
            raise self.networks
        return self.networks

    def broadcast(self, sender, packet, port, interfaces, bind=""):
        kind = decode_announcement(CORE, packet).type
        assert not sender.closed and port == 7000
        assert sender.port == (7355 if kind == QUERY else 7000), (
            "answers come to where it came from"
        )
        self.sent.append((kind, list(interfaces), bind))
        return {each.name: self.refusing.get(each.name, 0) for each in interfaces}

    def send_to(self, sender, packet, address):
        assert not sender.closed and sender.port == 7355
        self.alone.append((decode_announcement(CORE, packet).type, address))
        return 0

    def hear_broadcast(self, listener):
        assert not listener.closed
        return (*self.coming.pop(0), self.arrived_by) if self.coming else None


class MadeUpEngine:
    """What a Finder needs of an engine: timers that the test lets expire, and a list of what was
    told."""

    def __init__(self, **options):
        self.config = Config(name="ada", discovery_port=7000, **options)
        self.core, self.instance, self.port = CORE, OURS, 7354
        self.local = False
        own = types.SimpleNamespace(port=7355, closed=False)
        mailbox = types.SimpleNamespace(port=7355)
        self.datagrams = types.SimpleNamespace(
            mailbox=mailbox, socket=own, hear_for=lambda *_: None
        )
        self.world = MadeUpWorld()
        self.timers = []
        self.watched = []
        self.told = []
        self.looks = 0
        self.totals = LinkTotals()
        self.spared = 0
        self.spare = types.SimpleNamespace(use=self._use_spare)

    @contextlib.contextmanager
    def _use_spare(self):
        self.spared += 1
        yield

    def check_addresses(self):
        self.looks += 1

    def watch(self, watched, interest, ready):
        assert interest == READ
        self.watched.append((watched, ready))
        return self.watched[-1]

    def unwatch(self, watched):
        assert not watched[0].closed, "a descriptor is closed after nobody watches it any more"
        self.watched.remove(watched)

    def after(self, delay, action):
        assert delay >= 0
        self.timers.append((self.world.now + delay, action))
        return self.timers[-1]

    def cancel(self, timer):
        if timer in self.timers:
            self.timers.remove(timer)

    def close_socket(self, closing):
        closing.closed = True

    def pass_time(self, seconds):
        end = self.world.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.world.now = max(self.world.now, first[0])
            first[1]()
        self.world.now = end

    def hear(self, *packets):
        self.world.coming += packets
        self.watched[0][1]()


def packet(kind=ANNOUNCE, instance=THEIRS, name="bob", host="10.0.0.5", port=7354):
    return encode_announcement(CORE, Announcement(kind, name, port, instance=instance)), (
        host,
        7000,
    )


def kinds(world):
    sent, world.sent = world.sent, []
    return [kind for kind, *_ in sent]


def find(engine, networks=None):
    return Finder(
        engine,
        engine.datagrams,
        engine.world.networks if networks is None else networks,
        told=engine.told.append,
        network_changed=engine.check_addresses,
    )


def start(**options):
    engine = MadeUpEngine(**options)
    return engine, find(engine)


def test_it_announces_itself_asks_who_is_there_and_goes_on_announcing():
    """Others know a node from its first second, and it them; later packets are for those who come
    later or missed one."""
    engine, _finder = start(announce_interval=5.0)
    assert kinds(engine.world) == [ANNOUNCE, QUERY]
    engine.pass_time(5.0)
    assert kinds(engine.world) == [ANNOUNCE], "the first comes early, by chance"
    engine.pass_time(15.0)
    assert kinds(engine.world) == [ANNOUNCE] * 3
    assert len(engine.timers) == 1, "one deadline, one timer"


def test_what_is_heard_is_told_once_and_its_end_too():
    """The engine makes a peer of each Found: a second one would be a second peer."""
    engine, _finder = start(peer_timeout=30.0)
    engine.hear(packet(), packet())
    engine.hear(packet(name="robert"))
    assert [type(told) for told in engine.told] == [Found, Changed] and engine.told[0].address == (
        "10.0.0.5",
        7354,
    )
    engine.pass_time(29.9)
    assert len(engine.told) == 2
    engine.pass_time(0.2)
    assert engine.told[2] == Gone(THEIRS, LostReason.TIMEOUT)
    engine.hear(packet(), packet(GOODBYE))
    assert len(engine.told) == 3, "came and went within one turn: nobody needs to hear of it"


def test_a_question_is_answered_soon_and_not_with_the_next_announcement():
    """A node that starts should see its peers at once."""
    engine, _finder = start(announce_interval=5.0)
    engine.pass_time(5.0)
    engine.world.sent.clear()
    engine.hear(packet(QUERY), packet(QUERY))
    engine.pass_time(0.3)
    assert kinds(engine.world) == [ANNOUNCE]
    engine.pass_time(2)
    engine.hear(packet(QUERY))
    assert kinds(engine.world) == [ANNOUNCE]
    assert len(engine.timers) == 1


def question(instance=THEIRS, port=7355, host="10.0.0.5", sought=None):
    """A QUERY that comes from the datagram port that it names."""
    asking = Announcement(QUERY, "bob", 7354, instance=instance, datagram_port=port, sought=sought)
    return encode_announcement(CORE, asking), (host, port)


def test_who_asks_from_a_port_of_its_own_is_answered_there_and_nobody_else_hears_it():
    """In a room of hundreds an answer to all for each newcomer would be hundreds for each."""
    engine, finder = start()
    engine.world.sent.clear()
    engine.hear(question(), question(), question(b"\x0c" * 8, 9000))
    assert engine.world.alone == [(ANNOUNCE, ("10.0.0.5", 7355)), (ANNOUNCE, ("10.0.0.5", 9000))]
    assert kinds(engine.world) == [], "and a copy that came by another way is no second question"
    answer, _ = packet()
    finder.take(answer, ("10.0.0.5", 7355))
    assert [type(told) for told in engine.told] == [Found]


def test_what_comes_to_the_datagram_port_from_another_network_is_not_heard_either():
    """Whoever binds a node to one network does not want it to dial into another."""
    engine, finder = start(bind="10.0.0.200")
    finder.take(packet()[0], ("10.0.1.5", 7355))
    assert not engine.told


def test_who_is_waited_for_is_asked_by_name_when_it_has_not_been_heard_by_then():
    """The question at the start is answered by few in a large room."""
    engine, finder = start()
    kinds(engine.world)
    finder.seek("bob")
    engine.pass_time(0.25)
    assert kinds(engine.world) == []
    engine.pass_time(0.1)
    assert kinds(engine.world) == [QUERY]


@pytest.mark.parametrize(
    ("options", "heard"),
    [({}, True), ({"bind": "10.0.0.200"}, False), ({"interfaces": ("lan",)}, False)],
)
def test_other_networks_are_heard_unless_it_was_narrowed(options, heard):
    """Whoever binds a node to one network does not want it to dial into another."""
    engine, _finder = start(**options)
    engine.hear(packet(host="10.0.1.5"))
    assert bool(engine.told) is heard
    engine.hear(packet(host="10.0.0.5"))
    assert engine.told, "its own network is always heard, whatever bits its own address has"
    engine.told.clear()
    engine.world.arrived_by = LAN.number
    engine.hear(packet(host="192.168.7.7", instance=b"\x0c" * 8))
    assert engine.told, "and so is what came in there, whatever address it has"


def test_packets_go_out_as_the_configuration_says():
    """Names and address of Config reach the socket."""
    second = LAN._replace(address="10.0.1.200", broadcast="10.0.1.255")
    wlan = Interface("wlan", 3, "192.168.1.7", "192.168.1.255", "255.255.255.0")
    for options, used in (
        ({}, [LAN, second, wlan]),
        ({"interfaces": ("lan",)}, [LAN, second]),
        ({"bind": "10.0.1.200", "interfaces": ("lan",)}, [second]),
    ):
        engine = MadeUpEngine(**options)
        engine.world.networks = [LAN, second, wlan]
        find(engine)
        assert engine.world.sent[0] == (ANNOUNCE, used, options.get("bind", ""))


def test_no_network_is_a_warning_and_the_next_announcement_tries_again(caplog):
    """A laptop that sleeps must not kill the node, nor keep it from announcing when it wakes up;
    nor is a night of it a thousand lines."""
    engine, finder = start(announce_interval=5.0)
    kinds(engine.world)
    engine.world.networks = errors.NoNetwork("cable out")
    engine.pass_time(50.1)
    assert kinds(engine.world) == []
    assert caplog.messages == [BEGIN + "announcing fails: cable out"]
    elsewhere = Interface("wlan", 3, "192.168.1.7", "192.168.1.255", "255.255.255.0")
    engine.world.networks = [elsewhere]
    engine.pass_time(5.1 + SETTLED)
    assert engine.world.sent[0][:2] == (ANNOUNCE, [elsewhere]), "interfaces are looked up anew"
    assert caplog.messages[1:] == [BEGIN + "announcing works again; 10 failed in 50.0 s"]
    assert (engine.totals.announcements_sent, engine.totals.announcements_refused) == (3, 10)
    finder.close()


def test_without_descriptors_it_announces_where_it_did_before(caplog):
    """Looking at the interfaces takes a descriptor: the one that is kept, or, where that is gone
    too, what was seen before does."""
    engine, _finder = start(announce_interval=5.0)
    kinds(engine.world)
    engine.world.networks = errors.PlatformError("Too many open files")
    engine.pass_time(10.1)
    assert [sent[:2] for sent in engine.world.sent] == [(ANNOUNCE, [LAN])] * 2
    assert engine.spared == 2 and not caplog.messages


def test_an_interface_that_is_asked_for_and_carries_nothing_is_told_once(caplog):
    """Cable out, for a day: who reads the log finds one line, and one when it is in again."""
    engine, _finder = start(announce_interval=5.0, interfaces=("lan",))
    for networks, why in (
        ([], "it is not up, or has no IPv4 address"),
        ([LAN._replace(plugged=False)], "it carries nothing: is its cable in"),
    ):
        caplog.clear()
        engine.world.networks = networks
        engine.pass_time(500.0)
        (begun,) = caplog.messages
        assert begun.startswith(f"{BEGIN}announcing by lan fails: {why}")
        engine.world.networks = [LAN]
        engine.pass_time(100.0)
        assert caplog.messages[1:] == [
            BEGIN + "announcing by lan works again; 100 failed in 500.0 s"
        ]


def test_the_other_interfaces_that_are_asked_for_are_used(caplog):
    """One cable out must not silence the node on the other one."""
    wlan = Interface("wlan", 3, "192.168.1.7", "192.168.1.255", "255.255.255.0")
    engine = MadeUpEngine(announce_interval=5.0, interfaces=("lan", "wlan"))
    engine.world.networks = [LAN, wlan, LAN._replace(name="other")]
    find(engine, [LAN, wlan])
    engine.world.networks = [wlan, LAN._replace(name="other")]
    engine.world.sent.clear()
    engine.pass_time(20.1)
    assert [sent[1] for sent in engine.world.sent] == [[wlan]] * 4
    (begun,) = caplog.messages
    assert begun.startswith(BEGIN + "announcing by lan fails")
    assert (engine.totals.announcements_sent, engine.totals.announcements_refused) == (8, 4)


def test_a_firewall_is_one_line_with_what_to_try_and_one_when_it_is_gone(caplog):
    """Whoever sees nobody, and is seen by nobody, looks into the log first."""
    engine = MadeUpEngine(announce_interval=5.0)
    home = Interface("lo", 1, "127.0.0.1", "127.255.255.255", "255.0.0.0")
    engine.world.networks = [LAN, home]
    engine.world.refusing = {"lan": errno.EPERM, "lo": errno.EPERM}
    find(engine, [LAN, home])
    engine.pass_time(50.1)
    engine.world.refusing = {"lan": errno.EPERM}
    engine.pass_time(50.1)
    (begun,) = caplog.messages
    assert begun.startswith(BEGIN + "announcing fails: the system forbids it on lan, lo (Operation")
    assert "let UDP to port 7000 (Config.discovery_port) out, or connect by address" in begun
    engine.world.refusing = {}
    engine.pass_time(5.1 + SETTLED)
    # two packets at the start, and one in 5 s, the first of them early
    (ended,) = caplog.messages[1:]
    assert ended.startswith(BEGIN + "announcing works again; 22 failed in 10"), ended
    assert (engine.totals.announcements_sent, engine.totals.announcements_refused) == (12, 34)


def test_an_interface_that_is_not_up_yet_is_used_when_it_is():
    """A program that starts with the machine may be there before its network."""
    engine = MadeUpEngine(interfaces=("lan",), announce_interval=5.0)
    home = Interface("lo", 1, "127.0.0.1", "127.255.255.255", "255.0.0.0")
    engine.world.networks = [home]
    finder = find(engine, [home])
    engine.world.networks = [home, LAN]
    finder.look_again()
    assert [used for _, used, _ in engine.world.sent] == [[], [], [LAN], [LAN]]


def test_whom_there_is_no_room_for_is_told_once_for_each_bound_and_counted(caplog):
    """A neighbour that is never found, and no word why, is a search of hours; a line for each of
    its announcements is no help either."""
    engine, finder = start(max_peers=100)

    def come(numbers, host):
        engine.hear(*[packet(instance=number.to_bytes(8, "big"), host=host) for number in numbers])
        while engine.world.coming:
            engine.hear()

    come(range(1, 90), "10.0.0.5")
    (line,) = caplog.messages
    assert "one more peer at 10.0.0.5: 64 peers are remembered for one address" in line
    assert finder.discovery.statistics().refused == 25
    come(range(101, 136), "10.0.0.200")
    come(range(136, 150), "127.0.0.1")
    assert "one more peer at 10.0.0.200" not in caplog.text
    (_, line) = caplog.messages
    assert "one more peer at 127.0.0.1: 100 peers are known (Config.max_peers)" in line
    assert finder.discovery.statistics().refused == 25 + 13


def test_a_flood_of_packets_is_taken_in_parts():
    """Whoever floods the port must not keep the loop from its links."""
    engine, _finder = start()
    engine.hear(
        *[
            packet(instance=number.to_bytes(8, "big"), host=f"10.0.0.{number % 50}")
            for number in range(1, 201)
        ]
    )
    first = len(engine.told)
    assert first == 64 and len(engine.world.coming) == 136
    while engine.world.coming:
        engine.hear()
    assert len(engine.told) == 200


def test_a_packet_that_brings_no_earlier_deadline_arms_no_timer():
    """A flood would otherwise be one timer armed for each turn."""
    engine, _finder = start(announce_interval=5.0)
    armed = engine.timers[0]
    engine.hear(packet())
    engine.pass_time(1)
    engine.hear(packet())
    assert len(engine.timers) == 1 and engine.timers[0] is armed


def test_a_released_peer_is_forgotten_from_then_on():
    """While it is connected its link counts; afterwards its silence does."""
    engine, finder = start(peer_timeout=30.0)
    engine.hear(packet())
    finder.discovery.hold(THEIRS)
    engine.pass_time(100)
    assert len(engine.told) == 1
    finder.release(THEIRS)
    engine.pass_time(29.9)
    assert len(engine.told) == 1
    engine.pass_time(0.2)
    assert engine.told[1] == Gone(THEIRS, LostReason.TIMEOUT)


def test_it_says_goodbye_once_and_lets_go_of_everything():
    """A timer or a watch that is left would call into a closed engine."""
    engine, finder = start()
    kinds(engine.world)
    finder.goodbye()
    assert kinds(engine.world) == [GOODBYE]
    socket = engine.watched[0][0]
    finder.close()
    finder.close()
    assert not engine.watched and not engine.timers and socket.closed and kinds(engine.world) == []


def test_flags_that_are_set_are_announced_at_once_and_from_then_on():
    """A host that opens its session should be seen as one in this second and not in the next
    five."""
    engine, finder = start(announce_interval=5.0, flags=1)
    heard = []

    def broadcast(_sender, packet, *_):
        heard.append(decode_announcement(CORE, packet))
        return {"lan": 0}

    engine.world.broadcast = broadcast
    engine.pass_time(1.0)
    finder.set_flags(0x0109)
    assert [(packet.type, packet.flags) for packet in heard] == [(ANNOUNCE, 0x0109)]
    engine.pass_time(5.1)
    finder.goodbye()
    assert [(packet.type, packet.flags) for packet in heard[1:]] == [
        (ANNOUNCE, 0x0109),
        (GOODBYE, 0x0109),
    ]


def kinds_told(engine):
    return [type(told) for told in engine.told]


def test_a_loop_that_was_blocked_reads_what_waits_before_it_declares_anybody_lost():
    """Fifty neighbours that never stopped announcing would be lost and found again, and with them
    what waited for them, because we computed for half a minute."""
    engine, _finder = start(peer_timeout=30.0, announce_interval=5.0)
    everybody = [
        packet(instance=number.to_bytes(8, "big"), host=f"10.0.0.{number}")
        for number in range(1, 101)
    ]
    for part in range(0, 100, 50):
        engine.hear(*everybody[part : part + 50])
    engine.told.clear()
    engine.world.now += 60.0  # nothing ran
    engine.world.coming += everybody
    engine.pass_time(0.0)
    engine.pass_time(25.0)
    assert Gone not in kinds_told(engine), "it takes up where it was: the minute was not silence"
    engine.world.now += 60.0
    engine.pass_time(0.0)
    assert kinds_told(engine) == [Heard] * 100, "what waited is read before anybody is lost"
    engine.told.clear()
    engine.pass_time(30.0)
    assert len(engine.told) == 100 and {type(told) for told in engine.told} == {Gone}


def test_what_is_read_in_the_turn_after_a_pause_counts_as_heard_after_it():
    """Had the socket its turn before the timer, it would be taken for news of the time before."""
    engine, _finder = start(peer_timeout=30.0, announce_interval=5.0)
    engine.hear(packet())
    engine.world.now += 1000.0
    engine.hear(packet())
    engine.pass_time(0.0)
    engine.pass_time(29.0)
    assert [type(told) for told in engine.told] == [Found, Heard]
    engine.pass_time(1.1)
    assert engine.told[2] == Gone(THEIRS, LostReason.TIMEOUT)


def test_an_interface_that_comes_is_announced_on_at_once_and_one_that_goes_is_not():
    """A network that is back should not have to wait for the next announcement."""
    engine, finder = start(announce_interval=5.0)
    kinds(engine.world)
    wlan = Interface("wlan", 3, "192.168.1.7", "192.168.1.255", "255.255.255.0")
    engine.pass_time(1.0)
    finder.look_again()
    assert kinds(engine.world) == [], "nothing has changed"
    engine.world.networks = [LAN, wlan]
    finder.look_again()
    assert kinds(engine.world) == [ANNOUNCE, QUERY]
    engine.world.networks = [LAN._replace(plugged=False)]
    finder.look_again()
    engine.world.sent.clear()
    engine.world.networks = [LAN]
    finder.look_again()
    assert kinds(engine.world) == [ANNOUNCE, QUERY], "the cable is in again"
    engine.world.networks = errors.NoNetwork("no interface is up")
    finder.look_again()
    assert kinds(engine.world) == []
    engine.world.networks = [LAN]
    finder.look_again()
    assert kinds(engine.world) == [ANNOUNCE, QUERY], "as before, but gone in between"


def test_where_the_system_tells_nothing_addresses_are_compared_at_each_announcement():
    """Elsewhere than on Linux: a lost address is noticed within announce_interval."""
    engine, _finder = start(announce_interval=5.0)
    engine.pass_time(11.0)
    assert engine.looks == 0
    engine.world.networks = [LAN._replace(address="10.0.0.7")]
    engine.pass_time(11.0)
    assert engine.looks == 1


def test_one_that_is_not_connected_is_told_each_time_that_it_is_heard():
    """The engine dials by that, and by nothing else."""
    engine, finder = start()
    engine.hear(packet())
    engine.hear(packet())
    engine.hear(packet())
    assert [type(told) for told in engine.told] == [Found, Heard, Heard]
    assert engine.told[1].key == THEIRS and engine.told[1].heard_at == ("10.0.0.5", 7354)
    finder.discovery.hold(THEIRS)
    engine.hear(packet())
    assert len(engine.told) == 3, "its link knows better"
    finder.release(THEIRS)
    engine.hear(packet())
    assert len(engine.told) == 4
