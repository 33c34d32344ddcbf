"""Who has been heard: the table of discovery, its bounds, and what is new in it.

Anyone can forge a packet, so a stranger's packet costs a bounded piece of memory and O(1) time. At
most max_peers entries exist, at most max_per_address for one source address of another machine, 4
addresses for an entry and one news for each peer. When there is no room, the entry that has been
silent the longest gives way if it missed two announcements; else the newcomer is refused, and
counted. Our own addresses, and loopback, have only the bound of all: no other machine can send from
them, and a host may run hundreds of nodes. But where they have more than seven eighths of a full
table, the most silent of theirs gives way to whoever comes from another machine: a program that
forges announcements on this one must leave room for those of others, too.

Silence is time in which this node listened and heard nothing. Time that the node slept through (its
program blocked the loop, the laptop was shut) counts for no peer: see was_deaf(). Each announcement
of a peer that is not connected is news: the peer may be there again.

Invariant: an entry is in `_waiting`, and in the `waiting` of its source, exactly when it is not
held; both are ordered by last_heard. Never: sends, reads a clock, or reports a peer twice without a
Gone between.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from .events import LostReason
from .peer import Key
from .wire import Announcement

ADDRESSES_MAX = 4
"""Addresses remembered for one peer."""

MAX_PER_ADDRESS = 64
"""Peers remembered for one address of another machine: whoever forges announcements from one
address must leave room for those of others."""

STRANGERS_MAX = 1024
"""Peers for which there was no room in the table, and which count all the same for the size of the
room."""


class _News(msgspec.Struct, frozen=True):
    """A peer was heard. address: (IPv4 address, TCP port) to dial; heard_at: likewise, where it was
    heard just now, which need not be the best known."""

    key: Key
    announcement: Announcement
    address: tuple[str, int]
    heard_at: tuple[str, int]


class Found(_News, frozen=True):
    """For the first time."""


class Changed(_News, frozen=True):
    """A known peer announced something else than before, is now best reached at another address, or
    was heard at one more."""


class Heard(_News, frozen=True):
    """A known peer that is not held announced itself again, and nothing is new: it is there."""


class Gone(msgspec.Struct, frozen=True):
    """A peer that was reported is forgotten: TIMEOUT, GOODBYE or EVICTED."""

    key: Key
    reason: LostReason


class Full(msgspec.Struct, frozen=True):
    """A newcomer was refused for want of room; told once for each bound. host: where it was heard;
    limit: peers that there may be; one_address: at that address, else in all."""

    host: str
    limit: int
    one_address: bool

    @property
    def bound(self) -> str:
        """Which bound was met, in words."""
        if self.one_address:
            return f"{self.limit:,} peers are remembered for one address of another machine"
        return f"{self.limit:,} peers are known (Config.max_peers)"


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


class _Source:
    """What one source address has put into the table. ours: it is an address of this machine.
    count: entries, the held ones included."""

    __slots__ = ("count", "host", "ours", "waiting")

    def __init__(self, host: str, ours: bool) -> None:
        self.host = host
        self.ours = ours
        self.count = 0
        self.waiting: dict[Key, _Entry] = {}


class Neighbours:
    """Everybody who has been heard, by key.

    Args:
        peer_timeout: silence after which a peer is forgotten, seconds.
        stale_after: silence after which a peer gives way to another, seconds.
        max_peers, max_per_address: bounds, in peers; the second for each address that is not our
            own.

    refused: announcements of strangers for which there was no room. evicted: peers that gave way to
    another.
    """

    def __init__(
        self, peer_timeout: float, stale_after: float, max_peers: int, max_per_address: int
    ) -> None:
        self._peer_timeout = peer_timeout
        self._stale_after = stale_after
        self._max_peers = max_peers
        self._max_per_address = max_per_address
        self.refused = self.evicted = 0
        self._deaf = 0.0
        self._entries: dict[Key, _Entry] = {}
        self._waiting: dict[Key, _Entry] = {}
        self._sources: dict[str, _Source] = {}
        self._held: set[Key] = set()
        self._own_addresses: frozenset[str] = frozenset()
        self._ours = 0
        """Entries that came from this machine."""
        self._strangers: dict[Key, float] = {}
        """When each was last heard, the earliest first."""
        self._gone: dict[Key, Gone] = {}
        self._news: dict[Key, Found | Changed | Heard] = {}
        self._full: list[Full] = []
        self._told_full: set[bool] = set()

    # What comes in --------------------------------------------------------------------------------

    def hear(
        self, key: Key, announcement: Announcement, host: str, now: float, announced: int
    ) -> None:
        """A peer has announced itself, there. announced: how often we had announced ourselves to
        all."""
        now -= self._deaf
        entry = self._entries.get(key)
        if entry is None:
            source = self._make_room(host, now)
            if source is None:
                self.refused += 1
                self._meet_stranger(key, now)
                return
            self._strangers.pop(key, None)
            entry = self._admit(key, announcement, source, now, announced)
            self._place(entry, host, now)
            preferred = self._preferred(entry)
            self._news[key] = Found(key, announcement, preferred, preferred)
            return
        entry.last_heard = now
        entry.departed = False
        if not entry.held:
            self._move_to_end(entry)
        before = entry.announcement, self._preferred(entry)
        entry.announcement = announcement
        elsewhere = self._place(entry, host, now)
        preferred = self._preferred(entry)
        if elsewhere or (announcement, preferred) != before:
            kind = Found if isinstance(self._news.get(key), Found) else Changed
            self._news[key] = kind(key, announcement, preferred, (host, announcement.port))
        elif not entry.held:
            news = Heard(key, announcement, preferred, (host, announcement.port))
            self._news.setdefault(key, news)

    def depart(self, key: Key) -> None:
        """A peer has said goodbye, and is forgotten: at once, as is a stranger; if it is held, on
        release(), unless it was heard since. Nothing happens when it is not known."""
        self._strangers.pop(key, None)
        entry = self._entries.get(key)
        if entry is None:
            return
        if entry.held:
            entry.departed = True
        else:
            self._forget(entry, LostReason.GOODBYE)

    def forget_silent(self, now: float) -> None:
        """Forget who was silent for peer_timeout."""
        while self.forget_due() <= now:
            self._forget(next(iter(self._waiting.values())), LostReason.TIMEOUT)
        while self._strangers:
            stranger, heard = next(iter(self._strangers.items()))
            if heard > now - self._deaf - self._stale_after:
                break
            del self._strangers[stranger]

    def forget_due(self) -> float:
        """When the next one is to be forgotten, on the clock of `now`."""
        for oldest in self._waiting.values():
            return oldest.last_heard + self._peer_timeout + self._deaf
        return float("inf")

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

    # What the node tells, and asks ----------------------------------------------------------------

    def set_own_addresses(self, addresses: frozenset[str]) -> None:
        """The IPv4 addresses of this machine from now on; loopback need not be among them."""
        self._own_addresses = addresses
        for source in self._sources.values():
            source.ours = self._is_ours(source.host)
        self._ours = sum(source.count for source in self._sources.values() if source.ours)

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

    def has_local(self, key: Key, host: str) -> bool:
        """Whether the peer says that it can be called at a socket of its host, and host, where it
        was heard, is this one."""
        entry = self._entries.get(key)
        return entry is not None and entry.announcement.local and self._is_ours(host)

    def introduce(self, key: Key, announced: int) -> bool:
        """Whether the peer must be told of us before anything else: it was found when we had
        announced ourselves so often, and was not told since. Once."""
        entry = self._entries.get(key)
        if entry is None or entry.announced != announced:
            return False
        entry.announced = None
        return True

    def told(self, key: Key) -> None:
        """The peer has been told of us."""
        if (entry := self._entries.get(key)) is not None:
            entry.announced = None

    def called(self) -> set[str]:
        """Names and ids of all."""
        names = {entry.announcement.name for entry in self._entries.values()}
        return names | {key.hex() for key in self._entries if isinstance(key, bytes)}

    @property
    def room(self) -> int:
        """Peers that are there, those included for which there is no place."""
        return len(self._entries) + len(self._strangers)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Key]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    # The table ------------------------------------------------------------------------------------

    def _meet_stranger(self, key: Key, now: float) -> None:
        """There is no place for it, but it is there, until it has missed two announcements."""
        self._strangers.pop(key, None)
        self._strangers[key] = now
        if len(self._strangers) > STRANGERS_MAX:
            del self._strangers[next(iter(self._strangers))]

    def _is_ours(self, host: str) -> bool:
        return host in self._own_addresses or host.startswith("127.")

    def _make_room(self, host: str, now: float) -> _Source | None:
        """The source that a new entry from this address will belong to, once there is a place for
        it; None: there is none."""
        source = self._sources.get(host) or _Source(host, self._is_ours(host))
        one_address = source.count >= self._max_per_address and not source.ours
        if one_address:
            oldest = next(iter(source.waiting.values()), None)
        elif len(self._entries) >= self._max_peers:
            oldest = next(iter(self._waiting.values()), None)
        else:
            return source
        if oldest is None or now - oldest.last_heard <= self._stale_after:
            oldest = None if one_address or source.ours else self._surplus()
        if oldest is None:
            if one_address not in self._told_full:
                self._told_full.add(one_address)
                limit = self._max_per_address if one_address else self._max_peers
                self._full.append(Full(host, limit, one_address))
            return None
        self.evicted += 1
        self._forget(oldest, LostReason.EVICTED)
        return source

    def _surplus(self) -> _Entry | None:
        """The most silent entry of this machine, where this machine has more than seven eighths of
        all places. Others have an eighth then, so at most so many are passed over."""
        if self._ours * 8 <= self._max_peers * 7:
            return None
        return next((entry for entry in self._waiting.values() if entry.source.ours), None)

    def _admit(
        self, key: Key, announcement: Announcement, source: _Source, now: float, announced: int
    ) -> _Entry:
        entry = _Entry(key, announcement, source, now, announced)
        self._sources[source.host] = source
        source.count += 1
        self._ours += source.ours
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

    def _forget(self, entry: _Entry, reason: LostReason) -> None:
        key, source = entry.key, entry.source
        del self._entries[key]
        del self._waiting[key]
        del source.waiting[key]
        source.count -= 1
        self._ours -= source.ours
        if source.count == 0:
            del self._sources[source.host]
        # never reported: then nobody needs to hear that it is gone
        if not isinstance(self._news.pop(key, None), Found):
            self._gone[key] = Gone(key, reason)

    def _preferred(self, entry: _Entry) -> tuple[str, int]:
        return entry.addresses[0][0], entry.announcement.port

    def _place(self, entry: _Entry, host: str, now: float) -> bool:
        """Note where the entry was heard; whether that is another set of addresses than before. The
        first address stays first while it is being heard, so that one node on two networks does not
        flap."""
        addresses = entry.addresses
        if addresses and addresses[0][0] == host:
            addresses[0] = (host, now)
            return False
        others = [(host, now), *(known for known in addresses[1:] if known[0] != host)]
        first = addresses[:1]
        if first and now - first[0][1] > self._stale_after:
            entry.addresses = (others + first)[:ADDRESSES_MAX]
        else:
            entry.addresses = (first + others)[:ADDRESSES_MAX]
        return {known for known, _ in entry.addresses} != {known for known, _ in addresses}
