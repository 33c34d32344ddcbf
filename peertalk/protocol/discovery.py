"""Who is there: announce, hear, forget.

A peer is known by its instance id, or, where its packets have none, by (source address, TCP port).
A peer is forgotten after peer_timeout seconds of silence, when it says goodbye, or when its place
is needed. A peer that is held, because it is connected, is not forgotten: its link knows better
than its announcements whether it lives.

A room may be large, so what a peer costs all others falls with their number. Announcements come
less often in a larger room. A QUERY is answered to the asker alone, in a large room by a few that
chance picks, a little later: the asker's own ANNOUNCE has made it known to all, and it hears the
others when they announce themselves. An original can be answered by an ANNOUNCE to all alone; as
few peers send one. A QUERY that names one peer is always answered by that peer.

Never: sends by itself, reads a clock, throws dice of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from .._core.values import ANNOUNCE, GOODBYE, QUERY
from .._numbers import NAME_MAX
from ..errors import InvalidArgument, ProtocolError
from .neighbours import MAX_PER_ADDRESS, Neighbours
from .peer import Key
from .wire import (
    TRANSPORT_TCP,
    TRANSPORT_UDP,
    Announcement,
    Codec,
    decode_announcement,
    encode_announcement,
)

ANSWER_SPACING = 0.2
"""Seconds between an announcement and one that is made for the sake of somebody: all who want one
in that time share it. In so much time the answers to a QUERY come, and its copies, one for each
interface that it left by."""

ANNOUNCE_INTERVAL_MAX = 10.0
"""Seconds: the longest interval at which peers announce themselves (the original's, which forgets
who has been silent for 30)."""

ROOM_RATE = 50.0
"""Announcements a second of a whole room at rest, up to the room in which each of them announces
itself every ANNOUNCE_INTERVAL_MAX."""

SMALL_ROOM = 20
"""Other peers up to which each answers a QUERY, and at once."""

ANSWERS_WANTED = 10
"""Answers to a QUERY in a larger room, on average: with the ANNOUNCE and two QUERYs of the newcomer
20 packets are hardly ever exceeded."""

ASKERS_MAX = 64
"""QUERYs in ANSWER_SPACING that are looked at one by one. More are answered by one announcement to
all, which is cheaper and bounds what forged ones cost."""

ANSWERS_MAX = 16
"""Of these, those that are answered one by one."""

SEEK_AFTER = 0.3
"""Seconds after the start when a QUERY names who is sought: in a small room it has answered by
then."""

SOUGHT_MAX = 16
"""Names that are sought so after one start."""

_STALE_AFTER = 2 * ANNOUNCE_INTERVAL_MAX  # two announcements missed: one may be lost on the way


class Outgoing(NamedTuple):
    """A packet to send. kind: ANNOUNCE, QUERY or GOODBYE. to: the one address that gets it; None:
    everybody, on every interface.

    What goes to everybody leaves from the discovery port, but for a QUERY, which leaves from the
    datagram port: its answers come to where it came from, and the discovery port may be shared by
    several nodes of one host. What goes to one leaves from the datagram port too.
    """

    kind: int
    data: bytes
    to: tuple[str, int] | None = None


class DiscoveryStatistics(NamedTuple):
    """Counters since the start, in packets but for peers and evicted.

    heard: packets of others that could be read. malformed: packets that could not. own: our own,
    come back. refused: announcements of strangers for which there was no room. evicted: peers that
    gave way to another. peers: known now.
    """

    heard: int
    malformed: int
    own: int
    refused: int
    evicted: int
    peers: int


class _Asker(NamedTuple):
    """Who has asked. answered: it is answered alone."""

    asked_at: float
    answered: bool


class Discovery:
    """The state of discovery for one node, without I/O.

    Args:
        core: the codec.
        instance: our id, 8 bytes; None: announce like the original, which then cannot tell its own
            packets (tests of compatibility).
        name, port, datagram_port, flags, local: what to announce of ourselves; port is the TCP
            listening port; local: we can be called at a socket of this host.
        announce_interval: time between two announcements in a room that is not too large for it,
            seconds: see interval.
        peer_timeout: silence after which a peer is forgotten, seconds.
        chance: gives numbers from 0 up to but not including 1, evenly: all that happens by chance
            here comes from it.
        max_peers, max_per_address: bounds of the table, in peers; the second for each address that
            is not our own.
    """

    _running = False
    _started = 0.0
    _last_announce = 0.0
    _announced = 0
    _part = 1.0
    """How much of the interval passes before the next announcement."""
    _answer_at: float | None = None
    _answering = 0
    """How many of _askers are answered one by one."""
    _seek_at = float("inf")
    _heard = _malformed = _own = 0

    def __init__(
        self,
        core: Codec,
        *,
        instance: bytes | None,
        name: str,
        port: int,
        datagram_port: int | None = None,
        chance: Callable[[], float],
        announce_interval: float = 5.0,
        peer_timeout: float = 30.0,
        max_peers: int = 1024,
        max_per_address: int = MAX_PER_ADDRESS,
        flags: int = 0,
        local: bool = False,
    ) -> None:
        if max_peers < 1 or max_per_address < 1 or announce_interval <= 0 or peer_timeout <= 0:
            raise InvalidArgument(
                f"discovery with max_peers {max_peers:,}, max_per_address {max_per_address:,}, "
                f"announce_interval {announce_interval} s, "
                f"peer_timeout {peer_timeout} s: all must be above 0"
            )
        self._core = core
        self._instance = instance
        transports = TRANSPORT_TCP | TRANSPORT_UDP
        self._ours = Announcement(
            ANNOUNCE, name, port, flags, transports, instance, datagram_port, None, local
        )
        self._packets = self._encoded()
        self._announce_interval = announce_interval
        self._peer_timeout = peer_timeout
        stale_after = max(2 * announce_interval, _STALE_AFTER)
        self._table = table = Neighbours(peer_timeout, stale_after, max_peers, max_per_address)
        self.hold, self.release, self.heard_within = table.hold, table.release, table.heard_within
        self.addresses, self.announcement = table.addresses, table.announcement
        self.set_own_addresses, self.was_deaf = table.set_own_addresses, table.was_deaf
        self.next_event = table.next_event

        self._chance = chance
        self._to_send: list[Outgoing] = []
        self._askers: dict[tuple[bytes, str | None], _Asker] = {}
        """Those of the last ANSWER_SPACING, the earliest first."""
        self._answers: list[tuple[float, Key, tuple[str, int]]] = []
        """Answers that wait: when they are due, whom they are for, and where they go. At most
        ANSWERS_MAX."""
        self._sought: dict[str, bool] = {}
        """Who is sought, and whether we have asked."""

    # -- the five verbs, and start and stop --------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin to listen; queues an ANNOUNCE and a QUERY. Starting twice announces again.

        The next announcement comes at any moment of the interval, by chance: else those that are
        started together would speak together ever after, which is more at a time than a socket
        holds.
        """
        self._running = True
        self._started = now
        self._part = 1.0 - self._chance()
        self._sought.clear()
        self._announce(now)
        self._to_send.append(Outgoing(QUERY, self._packets[QUERY]))

    def stop(self) -> None:
        """Leave; queues a GOODBYE, in place of what was not sent yet. Peers stay known, but nothing
        is heard or forgotten from here on."""
        if self._running:
            self._running = False
            self._answer_at = None
            self._answers.clear()
            self._to_send = [Outgoing(GOODBYE, self._packets[GOODBYE])]

    def receive(self, data: bytes, address: tuple[str, int], now: float) -> None:
        """Take one datagram. address: where it came from. Nothing that a stranger sends raises;
        before start() and after stop() it is ignored."""
        if not self._running:
            return
        try:
            announcement = decode_announcement(self._core, data)
        except ProtocolError:
            self._malformed += 1
            return
        if self._instance is not None and announcement.instance == self._instance:
            self._own += 1
            return
        self._heard += 1
        if announcement.type == QUERY:
            self._asked(announcement, address, now)
            return
        host = address[0]
        key: Key = announcement.instance or (host, announcement.port)
        if announcement.type == ANNOUNCE:
            self._table.hear(key, announcement, host, now, self._announced)
        else:
            self._table.depart(key)

    def set_flags(self, flags: int, now: float) -> None:
        """Say these of ourselves from now on, and announce it: at once, or ANSWER_SPACING after the
        last announcement.

        Raises:
            InvalidArgument: they do not fit 16 bits; nothing has changed.
        """
        before, self._ours = self._ours, msgspec.structs.replace(self._ours, flags=flags)
        try:
            self._packets = self._encoded()
        except InvalidArgument:
            self._ours = before
            raise
        if self._running and flags != before.flags:
            self.answer(now)

    def answer(self, now: float) -> float:
        """Announce ourselves to everybody: at once, or ANSWER_SPACING after the last announcement.
        When that is, on the clock of now."""
        due = max(self._last_announce + ANSWER_SPACING, now)
        self._answer_at = due if self._answer_at is None else min(self._answer_at, due)
        return self._answer_at

    def seek(self, who: str, now: float) -> None:
        """Somebody waits for the peer of this name or id: unless it is heard meanwhile, ask for it
        by name SEEK_AFTER the start, or at once when that is over.

        Once after each start, and not when that was ANNOUNCE_INTERVAL_MAX ago: by then all who are
        there have been heard, and who comes later announces itself.
        """
        late = now - self._started >= ANNOUNCE_INTERVAL_MAX
        if not self._running or late or who in self._sought or len(self._sought) >= SOUGHT_MAX:
            return
        if who.isprintable() and len(who.encode()) <= NAME_MAX:
            self._sought[who] = False
            self._seek_at = min(self._seek_at, max(now, self._started + SEEK_AFTER))

    def introduce(self, key: Key) -> bytes | None:
        """What the peer must be sent before anything else, if it may not have heard us yet: our
        ANNOUNCE, once. None: it has been told of us.

        Who was heard after our last announcement to all does not hear us before the next one,
        unless chance let us answer its QUERY.
        """
        unheard = self._table.introduce(key, self._announced)
        return self._packets[ANNOUNCE] if unheard else None

    def data_to_send(self, now: float) -> list[Outgoing]:
        """Packets to send now. Ask after start(), stop(), receive(), seek() and
        handle_timeout()."""
        self._send_due(now)
        packets, self._to_send = self._to_send, []
        return packets

    def next_timeout(self) -> float | None:
        """When handle_timeout() has to be called, on the clock of `now`; None: never."""
        if not self._running:
            return None
        due = min(self._announce_due(), self._table.forget_due(), self._seek_at)
        return min((due, *(at for at, _, _ in self._answers)))

    def handle_timeout(self, now: float) -> None:
        """Announce if that is due, and forget who was silent for peer_timeout. May be called at any
        time."""
        if not self._running:
            return
        self._send_due(now)
        self._table.forget_silent(now)

    def forgets(self, now: float) -> bool:
        """Whether handle_timeout() would forget somebody now. Give it what waits in the socket
        first: a loop that was blocked may not have read yet what it was told in time."""
        return self._running and self._table.forget_due() <= now

    # -- what the node tells, and asks -------------------------------------------------------------

    @property
    def interval(self) -> float:
        """Seconds between two announcements: longer in a larger room, so that all of it together
        makes ROOM_RATE a second, up to ANNOUNCE_INTERVAL_MAX. Three always fit into peer_timeout,
        as far as announce_interval allows, since two may be lost on the way."""
        longest = min(ANNOUNCE_INTERVAL_MAX, self._peer_timeout / 3)
        return max(self._announce_interval, min(self.room / ROOM_RATE, longest))

    @property
    def room(self) -> int:
        """Peers that are there, those included for which our table has no place."""
        return self._table.room

    def has_local(self, key: Key, host: str) -> bool:
        """Whether the peer can be called at a socket of this host: it says that it has one, and
        host, where it was heard, is an address of this machine."""
        return self._table.has_local(key, host)

    def statistics(self) -> DiscoveryStatistics:
        """Counters; see there for the units."""
        return DiscoveryStatistics(
            self._heard,
            self._malformed,
            self._own,
            self._table.refused,
            self._table.evicted,
            len(self._table),
        )

    def __contains__(self, key: Key) -> bool:
        return key in self._table

    def __iter__(self) -> Iterator[Key]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def _encoded(self) -> dict[int, bytes]:
        return {
            kind: encode_announcement(self._core, msgspec.structs.replace(self._ours, type=kind))
            for kind in (ANNOUNCE, QUERY, GOODBYE)
        }

    # -- sending -----------------------------------------------------------------------------------

    def _announce(self, now: float) -> None:
        self._to_send.append(Outgoing(ANNOUNCE, self._packets[ANNOUNCE]))
        self._last_announce = now
        self._announced += 1
        self._answer_at = None
        self._answers.clear()  # those who asked hear this one

    def _send_due(self, now: float) -> None:
        if not self._running:
            return
        if now >= self._announce_due():
            if now >= self._regular_due():
                self._part = 1.0
            self._announce(now)
        if self._answers:
            due = [each for each in self._answers if each[0] <= now]
            self._answers = [each for each in self._answers if each[0] > now]
            for _, key, to in due:
                self._to_send.append(Outgoing(ANNOUNCE, self._packets[ANNOUNCE], to))
                self._table.told(key)
        if now >= self._seek_at:
            self._seek_at = float("inf")
            self._seek_now()

    def _seek_now(self) -> None:
        known = self._table.called()
        for who, asked in self._sought.items():
            if not asked and who not in known:
                query = msgspec.structs.replace(self._ours, type=QUERY, sought=who)
                self._to_send.append(Outgoing(QUERY, encode_announcement(self._core, query)))
            self._sought[who] = True

    def _regular_due(self) -> float:
        return self._last_announce + self._part * self.interval

    def _announce_due(self) -> float:
        due = self._regular_due()
        return due if self._answer_at is None else min(due, self._answer_at)

    def _asked(self, query: Announcement, address: tuple[str, int], now: float) -> None:
        """Somebody wants to know who is there: answer it alone, if that is where it asked from, and
        if it is for us to answer."""
        if query.sought is not None and not self._is_called(query.sought):
            return
        if query.instance is None or query.datagram_port != address[1]:
            # an original, or an older node: it hears what comes to the discovery port, which
            # several nodes may share, so only what goes to all is sure to reach it
            due = self._lot(query, now)
            if due is not None:
                self.answer(due)
            return
        while self._askers:
            asker, earliest = next(iter(self._askers.items()))
            if earliest.asked_at > now - ANSWER_SPACING:
                break
            self._answering -= earliest.answered
            del self._askers[asker]
        if (query.instance, query.sought) in self._askers:
            return  # a copy
        due = self._lot(query, now)
        if len(self._askers) >= ASKERS_MAX or self._answering >= ANSWERS_MAX:
            if due is not None:
                self.answer(due)
            return
        self._askers[query.instance, query.sought] = _Asker(now, due is not None)
        if due is not None:
            self._answering += 1
            self._answers.append((due, query.instance, address))

    def _lot(self, query: Announcement, now: float) -> float | None:
        """When it is for us to answer this QUERY; None: it is not."""
        if query.sought is not None or self.room <= SMALL_ROOM:
            return now
        if self._chance() * self.room >= ANSWERS_WANTED:
            return None
        return now + self._chance() * ANSWER_SPACING

    def _is_called(self, name: str) -> bool:
        ours = self._instance
        return name == self._ours.name or (ours is not None and name == ours.hex())
