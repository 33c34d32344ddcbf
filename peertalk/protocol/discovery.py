"""Who is there: announce, hear, forget.

A peer is known by its instance id, or, where its packets have none, by (source address, TCP port).
It is forgotten after peer_timeout seconds of silence, when it says goodbye, or when its place is
needed. A held (connected) peer is none of this: its link knows better.

Anyone can forge a packet, so a stranger's packet costs a bounded piece of memory and O(1) time. At
most max_peers entries exist, at most max_per_address for one source address, 4 addresses for an
entry and one news for each peer. When there is no room, the entry that has been silent the longest
gives way if it missed two announcements; else the newcomer is refused, and counted.

Invariant: an entry is in `_waiting`, and in the `waiting` of its source, exactly when it is not
held; both are ordered by last_heard. Never: sends by itself, reads a clock, or reports a peer twice
without a Gone between.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from .._core.values import ANNOUNCE, GOODBYE, QUERY
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

ANSWER_SPACING = 0.2
"""Seconds between an announcement and the answer to a QUERY that follows it: the QUERYs of that
time share one answer."""

ANNOUNCE_INTERVAL_MAX = 10.0
"""Seconds: the longest interval at which peers announce themselves (the original's)."""

_STALE_AFTER = 2 * ANNOUNCE_INTERVAL_MAX  # two announcements missed: one may be lost on the way


class Found(msgspec.Struct, frozen=True):
    """A peer was heard for the first time. address: (IPv4 address, TCP port) to dial."""

    key: Key
    announcement: Announcement
    address: tuple[str, int]


class Changed(msgspec.Struct, frozen=True):
    """A known peer announced something else than before, is now best reached at another address, or
    was heard at one more."""

    key: Key
    announcement: Announcement
    address: tuple[str, int]


class Heard(msgspec.Struct, frozen=True):
    """A classic peer that is not held has announced itself again, and nothing is new: it may expect
    to be dialled again."""

    key: Key
    announcement: Announcement
    address: tuple[str, int]


class Gone(msgspec.Struct, frozen=True):
    """A peer that was reported is forgotten: TIMEOUT, GOODBYE or EVICTED."""

    key: Key
    reason: LostReason


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
    """One peer in the table. addresses: (host, last heard), the best to dial first."""

    __slots__ = ("addresses", "announcement", "departed", "held", "key", "last_heard", "source")

    def __init__(self, key: Key, announcement: Announcement, source: _Source, now: float) -> None:
        self.key = key
        self.announcement = announcement
        self.source = source
        self.last_heard = now
        self.held = False
        self.departed = False  # said goodbye while held, and was not heard since
        self.addresses: list[tuple[str, float]] = []

    @property
    def hosts(self) -> frozenset[str]:
        """Where it was heard."""
        return frozenset(host for host, _ in self.addresses)


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
        announce_interval: longest time between two announcements, seconds.
        peer_timeout: silence after which a peer is forgotten, seconds.
        max_peers, max_per_address: bounds of the table, in peers.
    """

    def __init__(
        self,
        core: Codec,
        *,
        instance: bytes | None,
        name: str,
        port: int,
        datagram_port: int | None = None,
        announce_interval: float = 5.0,
        peer_timeout: float = 30.0,
        max_peers: int = 1024,
        max_per_address: int = 64,
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

        self._gone: dict[Key, Gone] = {}
        self._news: dict[Key, Found | Changed | Heard] = {}

        self._running = False
        self._to_send: list[bytes] = []
        self._last_announce = 0.0
        self._answer_at: float | None = None

        self._heard = self._malformed = self._own = self._refused = self._evicted = 0

    # -- the five verbs, and start and stop --------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin to listen; queues an ANNOUNCE and a QUERY. Starting twice announces again."""
        self._running = True
        self._announce(now)
        self._to_send.append(self._packets[QUERY])

    def stop(self) -> None:
        """Leave; queues a GOODBYE, in place of what was not sent yet. Peers stay known, but nothing
        is heard or forgotten from here on."""
        if self._running:
            self._running = False
            self._answer_at = None
            self._to_send = [self._packets[GOODBYE]]

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
            self.answer(now)
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
        """Announce ourselves as to a QUERY: at once, or ANSWER_SPACING after the last announcement.
        When that is, on the clock of now."""
        self._answer_at = max(self._last_announce + ANSWER_SPACING, now)
        return self._answer_at

    def next_event(self) -> Found | Changed | Heard | Gone | None:
        """The next news, or None. For each peer at most one Gone and then one of the others wait:
        later news replaces earlier."""
        if self._gone:
            return self._gone.pop(next(iter(self._gone)))
        if self._news:
            return self._news.pop(next(iter(self._news)))
        return None

    def data_to_send(self, now: float) -> list[bytes]:
        """Packets to broadcast now, each on every interface. Ask after start(), stop(), receive()
        and handle_timeout()."""
        self._send_due(now)
        packets, self._to_send = self._to_send, []
        return packets

    def next_timeout(self) -> float | None:
        """When handle_timeout() has to be called, on the clock of `now`; None: never."""
        if not self._running:
            return None
        due = self._announce_due()
        for oldest in self._waiting.values():
            return min(due, oldest.last_heard + self._peer_timeout)
        return due

    def handle_timeout(self, now: float) -> None:
        """Announce if that is due, and forget who was silent for peer_timeout. May be called at any
        time."""
        if not self._running:
            return
        self._send_due(now)
        while self._waiting:
            oldest = next(iter(self._waiting.values()))
            if oldest.last_heard + self._peer_timeout > now:
                return
            self._forget(oldest, LostReason.TIMEOUT)

    # -- what the node tells, and asks -------------------------------------------------------------

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
        entry.last_heard = max(entry.last_heard, now)
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
        self._to_send.append(self._packets[ANNOUNCE])
        self._last_announce = now
        self._answer_at = None

    def _send_due(self, now: float) -> None:
        if self._running and now >= self._announce_due():
            self._announce(now)

    def _announce_due(self) -> float:
        due = self._last_announce + self._announce_interval
        return due if self._answer_at is None else min(due, self._answer_at)

    # -- the table ---------------------------------------------------------------------------------

    def _hear(self, key: Key, announcement: Announcement, host: str, now: float) -> None:
        entry = self._entries.get(key)
        if entry is None:
            source = self._make_room(host, now)
            if source is None:
                self._refused += 1
                return
            entry = self._admit(key, announcement, source, now)
            self._place(entry, host, now)
            self._news[key] = Found(key, announcement, self._preferred(entry))
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
            self._news[key] = kind(key, announcement, preferred)
        elif announcement.instance is None and not entry.held:
            self._news.setdefault(key, Heard(key, announcement, preferred))

    def _make_room(self, host: str, now: float) -> _Source | None:
        """The source that a new entry from this address will belong to, once there is a place for
        it; None: there is none."""
        source = self._sources.get(host)
        if source is not None and source.count >= self._max_per_address:
            candidates = source.waiting
        elif len(self._entries) >= self._max_peers:
            candidates = self._waiting
        else:
            return source or _Source(host)
        oldest = next(iter(candidates.values()), None)
        if oldest is None or now - oldest.last_heard <= self._stale_after:
            return None
        self._evicted += 1
        self._forget(oldest, LostReason.EVICTED)
        return self._sources.get(host) or _Source(host)

    def _admit(self, key: Key, announcement: Announcement, source: _Source, now: float) -> _Entry:
        entry = _Entry(key, announcement, source, now)
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
