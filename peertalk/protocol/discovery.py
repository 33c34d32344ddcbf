"""Who is there: announce, hear, forget.

A peer is known by its instance id, or, where its packets have none, by (source address, TCP port).
A peer is forgotten after peer_timeout seconds of silence, when it says goodbye, or when its place
is needed. A peer that is held, because it is connected, is not forgotten: its link knows better
than its announcements whether it lives.

Anyone can forge a packet, so a stranger's packet costs a bounded piece of memory and O(1) time. At
most max_peers entries exist, at most max_per_address for one source address of another machine, 4
addresses for an entry and one news for each peer. When there is no room, the entry that has been
silent the longest gives way if it missed two announcements; else the newcomer is refused, and
counted. Our own addresses, and loopback, have only the bound of all: no other machine can send from
them, and a host may run hundreds of nodes.

A room may be large, so what a peer costs all others falls with their number. Announcements come
less often in a larger room. A QUERY is answered to the asker alone, in a large room by a few that
chance picks, a little later: the asker's own ANNOUNCE has made it known to all, and it hears the
others when they announce themselves. An original can be answered by an ANNOUNCE to all alone; as
few peers send one. A QUERY that names one peer is always answered by that peer.

Silence is time in which this node listened and heard nothing. Time that the node slept through (its
program blocked the loop, the laptop was shut) counts for no peer: see was_deaf(). Each announcement
of a peer that is not connected is news: the peer may be there again.

Invariant: an entry is in `_waiting`, and in the `waiting` of its source, exactly when it is not
held; both are ordered by last_heard. Never: sends by itself, reads a clock, throws dice of its own,
or reports a peer twice without a Gone between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from .._core.values import ANNOUNCE, GOODBYE, QUERY
from .._numbers import NAME_MAX
from ..errors import InvalidArgument, ProtocolError
from .events import LostReason
from .peer import Key
from .wire import (
    TRANSPORT_TCP,
    TRANSPORT_UDP,
    Announcement,
    Codec,
    decode_announcement,
    encode_announcement,
)

ADDRESSES_MAX = 4
"""Addresses remembered for one peer."""

MAX_PER_ADDRESS = 64
"""Peers remembered for one address of another machine: whoever forges announcements from one
address must leave room for those of others."""

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

STRANGERS_MAX = 1024
"""Peers for which there was no room in the table, and which count all the same for the size of the
room."""

_STALE_AFTER = 2 * ANNOUNCE_INTERVAL_MAX  # two announcements missed: one may be lost on the way


class Found(msgspec.Struct, frozen=True):
    """A peer was heard for the first time. address: (IPv4 address, TCP port) to dial; heard_at:
    likewise, where it was heard just now, which need not be the best known."""

    key: Key
    announcement: Announcement
    address: tuple[str, int]
    heard_at: tuple[str, int]


class Changed(msgspec.Struct, frozen=True):
    """A known peer announced something else than before, is now best reached at another address, or
    was heard at one more."""

    key: Key
    announcement: Announcement
    address: tuple[str, int]
    heard_at: tuple[str, int]


class Heard(msgspec.Struct, frozen=True):
    """A known peer that is not held announced itself again, and nothing is new: it is there."""

    key: Key
    announcement: Announcement
    address: tuple[str, int]
    heard_at: tuple[str, int]


class Gone(msgspec.Struct, frozen=True):
    """A peer that was reported is forgotten: TIMEOUT, GOODBYE or EVICTED."""

    key: Key
    reason: LostReason


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


class Full(msgspec.Struct, frozen=True):
    """A newcomer was refused for want of room; told once for each bound. host: where it was heard;
    limit: peers that there may be; one_address: at that address, else in all."""

    host: str
    limit: int
    one_address: bool


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


class _Entry:
    """One peer in the table. addresses: (host, last heard), the best to dial first. announced: how
    often we had announced ourselves to all when it was found; None: it has been told of us. Times
    are seconds of listening: see Discovery.was_deaf()."""

    __slots__ = (
        "addresses",
        "announced",
        "announcement",
        "departed",
        "held",
        "key",
        "last_heard",
        "source",
    )

    def __init__(
        self, key: Key, announcement: Announcement, source: _Source, now: float, announced: int
    ) -> None:
        self.key = key
        self.announcement = announcement
        self.source = source
        self.last_heard = now
        self.announced: int | None = announced
        self.held = False
        self.departed = False  # said goodbye while held, and was not heard since
        self.addresses: list[tuple[str, float]] = []

    @property
    def hosts(self) -> frozenset[str]:
        """Where it was heard."""
        return frozenset(host for host, _ in self.addresses)


class _Asker(NamedTuple):
    """Who has asked. answered: it is answered alone."""

    asked_at: float
    answered: bool


class _Source:
    """What one source address has put into the table. count: entries, the held ones included."""

    __slots__ = ("count", "host", "waiting")

    def __init__(self, host: str) -> None:
        self.host = host
        self.count = 0
        self.waiting: dict[Key, _Entry] = {}


class Discovery:
    """The state of discovery for one node, without I/O.

    Args:
        core: the codec.
        instance: our id, 8 bytes; None: announce like the original, which then cannot tell its own
            packets (tests of compatibility).
        name, port, datagram_port, flags: what to announce of ourselves; port is the TCP listening
            port.
        announce_interval: time between two announcements in a room that is not too large for it,
            seconds: see interval.
        peer_timeout: silence after which a peer is forgotten, seconds.
        chance: gives numbers from 0 up to but not including 1, evenly: all that happens by chance
            here comes from it.
        max_peers, max_per_address: bounds of the table, in peers; the second for each address that
            is not our own.
    """

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
    ) -> None:
        if max_peers < 1 or max_per_address < 1 or announce_interval <= 0 or peer_timeout <= 0:
            raise InvalidArgument(
                f"discovery with max_peers {max_peers:,}, max_per_address {max_per_address:,}, "
                f"announce_interval {announce_interval} s, "
                f"peer_timeout {peer_timeout} s: all must be above 0"
            )
        self._core = core
        self._instance = instance
        self._ours = Announcement(
            ANNOUNCE, name, port, flags, TRANSPORT_TCP | TRANSPORT_UDP, instance, datagram_port
        )
        self._packets = self._encoded()
        self._announce_interval = announce_interval
        self._peer_timeout = peer_timeout
        self._stale_after = max(2 * announce_interval, _STALE_AFTER)
        self._max_peers = max_peers
        self._max_per_address = max_per_address

        self._entries: dict[Key, _Entry] = {}
        self._waiting: dict[Key, _Entry] = {}
        self._sources: dict[str, _Source] = {}
        self._held: set[Key] = set()
        self._own_addresses: frozenset[str] = frozenset()

        self._gone: dict[Key, Gone] = {}
        self._news: dict[Key, Found | Changed | Heard] = {}
        self._full: list[Full] = []
        self._told_full: set[bool] = set()

        self._strangers: dict[Key, float] = {}
        """When each was last heard, the earliest first."""

        self._running = False
        self._started = 0.0
        self._deaf = 0.0
        self._chance = chance
        self._to_send: list[Outgoing] = []
        self._last_announce = 0.0
        self._announced = 0
        self._part = 1.0
        """How much of the interval passes before the next announcement."""
        self._answer_at: float | None = None

        self._askers: dict[tuple[bytes, str | None], _Asker] = {}
        """Those of the last ANSWER_SPACING, the earliest first."""
        self._answering = 0
        """How many of them are answered one by one."""
        self._answers: list[tuple[float, Key, tuple[str, int]]] = []
        """Answers that wait: when they are due, whom they are for, and where they go. At most
        ANSWERS_MAX."""
        self._sought: dict[str, bool] = {}
        """Who is sought, and whether we have asked."""
        self._seek_at = float("inf")

        self._heard = self._malformed = self._own = self._refused = self._evicted = 0

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
            self._hear(key, announcement, host, now)
        else:
            self._depart(key)

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

    def next_event(self) -> Found | Changed | Heard | Gone | Full | None:
        """The next news, or None. For each peer at most one Gone and then one of the others wait:
        later news replaces earlier."""
        if self._full:
            return self._full.pop()
        if self._gone:
            return self._gone.pop(next(iter(self._gone)))
        if self._news:
            return self._news.pop(next(iter(self._news)))
        return None

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
        entry = self._entries.get(key)
        if entry is None or entry.announced != self._announced:
            return None
        entry.announced = None
        return self._packets[ANNOUNCE]

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
        due = min(self._announce_due(), self._forget_due(), self._seek_at)
        return min((due, *(at for at, _, _ in self._answers)))

    def handle_timeout(self, now: float) -> None:
        """Announce if that is due, and forget who was silent for peer_timeout. May be called at any
        time."""
        if not self._running:
            return
        self._send_due(now)
        while self._forget_due() <= now:
            self._forget(next(iter(self._waiting.values())), LostReason.TIMEOUT)
        while self._strangers:
            stranger, heard = next(iter(self._strangers.items()))
            if heard > now - self._deaf - self._stale_after:
                break
            del self._strangers[stranger]

    def forgets(self, now: float) -> bool:
        """Whether handle_timeout() would forget somebody now. Give it what waits in the socket
        first: a loop that was blocked may not have read yet what it was told in time."""
        return self._running and self._forget_due() <= now

    # -- what the node tells, and asks -------------------------------------------------------------

    def set_own_addresses(self, addresses: frozenset[str]) -> None:
        """The IPv4 addresses of this machine from now on; loopback need not be among them."""
        self._own_addresses = addresses

    def was_deaf(self, seconds: float) -> None:
        """For so long, up to now, nobody listened: none of it is anybody's silence."""
        self._deaf += seconds

    def heard_within(self, key: Key, seconds: float, now: float) -> bool:
        """Whether the peer has announced itself in the last so many seconds of listening."""
        entry = self._entries.get(key)
        return entry is not None and entry.last_heard >= now - self._deaf - seconds

    def hold(self, key: Key) -> None:
        """The peer is connected: from here to release() it is neither forgotten nor evicted, and
        its GOODBYE waits. The key need not be known yet."""
        self._held.add(key)
        entry = self._entries.get(key)
        if entry is not None and not entry.held:
            entry.held = True
            del self._waiting[key]
            del entry.source.waiting[key]

    def release(self, key: Key, now: float) -> None:
        """The peer is no longer connected: its silence counts from now. If it said goodbye
        meanwhile and was not heard since, it is gone at once."""
        self._held.discard(key)
        entry = self._entries.get(key)
        if entry is None or not entry.held:
            return
        entry.held = False
        entry.last_heard = max(entry.last_heard, now - self._deaf)
        self._waiting[key] = entry
        entry.source.waiting[key] = entry
        if entry.departed:
            self._forget(entry, LostReason.GOODBYE)

    def addresses(self, key: Key) -> list[tuple[str, int]]:
        """Up to 4 (IPv4 address, TCP port) at which the peer was heard, the best first; empty when
        it is unknown or does not listen.

        The first stays first while it is being heard; the others follow, the latest heard first.
        """
        entry = self._entries.get(key)
        if entry is None or entry.announcement.port == 0:
            return []
        return [(host, entry.announcement.port) for host, _ in entry.addresses]

    def announcement(self, key: Key) -> Announcement | None:
        """What the peer last announced; None when it is unknown."""
        entry = self._entries.get(key)
        return entry.announcement if entry is not None else None

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
        return len(self._entries) + len(self._strangers)

    def statistics(self) -> DiscoveryStatistics:
        """Counters; see there for the units."""
        return DiscoveryStatistics(
            self._heard,
            self._malformed,
            self._own,
            self._refused,
            self._evicted,
            len(self._entries),
        )

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Key]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

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
                if (entry := self._entries.get(key)) is not None:
                    entry.announced = None
        if now >= self._seek_at:
            self._seek_at = float("inf")
            self._seek_now()

    def _seek_now(self) -> None:
        known = {entry.announcement.name for entry in self._entries.values()}
        known |= {key.hex() for key in self._entries if isinstance(key, bytes)}
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

    # -- the table ---------------------------------------------------------------------------------

    def _forget_due(self) -> float:
        """When the next one is to be forgotten, on the clock of `now`."""
        for oldest in self._waiting.values():
            return oldest.last_heard + self._peer_timeout + self._deaf
        return float("inf")

    def _hear(self, key: Key, announcement: Announcement, host: str, now: float) -> None:
        now -= self._deaf
        entry = self._entries.get(key)
        if entry is None:
            source = self._make_room(host, now)
            if source is None:
                self._refused += 1
                self._meet_stranger(key, now)
                return
            self._strangers.pop(key, None)
            entry = self._admit(key, announcement, source, now)
            self._place(entry, host, now)
            preferred = self._preferred(entry)
            self._news[key] = Found(key, announcement, preferred, preferred)
            return
        entry.last_heard = now
        entry.departed = False
        if not entry.held:
            self._move_to_end(entry)
        before = entry.announcement, self._preferred(entry), entry.hosts
        entry.announcement = announcement
        self._place(entry, host, now)
        preferred = self._preferred(entry)
        if (announcement, preferred, entry.hosts) != before:
            kind = Found if isinstance(self._news.get(key), Found) else Changed
            self._news[key] = kind(key, announcement, preferred, (host, announcement.port))
        elif not entry.held:
            news = Heard(key, announcement, preferred, (host, announcement.port))
            self._news.setdefault(key, news)

    def _meet_stranger(self, key: Key, now: float) -> None:
        """There is no place for it, but it is there, until it has missed two announcements."""
        self._strangers.pop(key, None)
        self._strangers[key] = now
        if len(self._strangers) > STRANGERS_MAX:
            del self._strangers[next(iter(self._strangers))]

    def _make_room(self, host: str, now: float) -> _Source | None:
        """The source that a new entry from this address will belong to, once there is a place for
        it; None: there is none."""
        source = self._sources.get(host)
        one_address = (
            source is not None
            and source.count >= self._max_per_address
            and host not in self._own_addresses
            and not host.startswith("127.")
        )
        if source is not None and one_address:
            candidates = source.waiting
        elif len(self._entries) >= self._max_peers:
            candidates = self._waiting
        else:
            return source or _Source(host)
        oldest = next(iter(candidates.values()), None)
        if oldest is None or now - oldest.last_heard <= self._stale_after:
            if one_address not in self._told_full:
                self._told_full.add(one_address)
                limit = self._max_per_address if one_address else self._max_peers
                self._full.append(Full(host, limit, one_address))
            return None
        self._evicted += 1
        self._forget(oldest, LostReason.EVICTED)
        return self._sources.get(host) or _Source(host)

    def _admit(self, key: Key, announcement: Announcement, source: _Source, now: float) -> _Entry:
        entry = _Entry(key, announcement, source, now, self._announced)
        self._sources[source.host] = source
        source.count += 1
        self._entries[key] = entry
        entry.held = key in self._held
        if not entry.held:
            self._waiting[key] = entry
            source.waiting[key] = entry
        return entry

    def _move_to_end(self, entry: _Entry) -> None:
        for line in (self._waiting, entry.source.waiting):
            del line[entry.key]
            line[entry.key] = entry

    def _depart(self, key: Key) -> None:
        self._strangers.pop(key, None)
        entry = self._entries.get(key)
        if entry is None:
            return
        if entry.held:
            entry.departed = True
        else:
            self._forget(entry, LostReason.GOODBYE)

    def _forget(self, entry: _Entry, reason: LostReason) -> None:
        key, source = entry.key, entry.source
        del self._entries[key]
        del self._waiting[key]
        del source.waiting[key]
        source.count -= 1
        if source.count == 0:
            del self._sources[source.host]
        # never reported: then nobody needs to hear that it is gone
        if not isinstance(self._news.pop(key, None), Found):
            self._gone[key] = Gone(key, reason)

    def _preferred(self, entry: _Entry) -> tuple[str, int]:
        return entry.addresses[0][0], entry.announcement.port

    def _place(self, entry: _Entry, host: str, now: float) -> None:
        """Note where the entry was heard. The first address stays first while it is being heard, so
        that one node on two networks does not flap."""
        addresses = entry.addresses
        if addresses and addresses[0][0] == host:
            addresses[0] = (host, now)
            return
        others = [(host, now), *(known for known in addresses[1:] if known[0] != host)]
        first = addresses[:1]
        if first and now - first[0][1] > self._stale_after:
            entry.addresses = (others + first)[:ADDRESSES_MAX]
        else:
            entry.addresses = (first + others)[:ADDRESSES_MAX]
