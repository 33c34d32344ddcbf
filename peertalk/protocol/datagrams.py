"""Datagrams that have arrived: whose each is, and which are kept until they are taken. And where
one to a peer goes.

A peertalk peer says its datagram port beside its instance id, so several nodes on one host reach
each other. A classic peer says none: it is taken to use the same number as we do, as everybody of
the original does.

Who sent a datagram is told by where it came from: a peertalk peer by its address and port, else a
classic peer by its address, where that is the only one known there. Anybody can forge that. The
sender's port inside the datagram is not looked at.

Two nodes seldom learn of each other in the same moment. So what comes from nobody that is known is
kept for a moment: its sender may be about to be.

Invariant: a peer is in the lists of exactly its own places. Never: opens a socket, reads a clock,
or keeps more than WAITING_MAX datagrams, or UNKNOWN_MAX of unknown senders.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from .. import errors
from .._numbers import DATAGRAM_HEADER_SIZE, DATAGRAM_MAX_PAYLOAD
from .addresses import Address
from .connections import Connection
from .discovery import Discovery
from .peer import Peer
from .statistics import LinkTotals
from .waiting import Waiters
from .wire import Codec

SIZE_MAX = DATAGRAM_HEADER_SIZE + DATAGRAM_MAX_PAYLOAD
"""Bytes of a whole datagram; a longer one is dropped."""
WAITING_MAX = 256
"""Datagrams that wait for the application, 348 KiB at most. When one more comes the oldest goes:
the newest say most about now."""
UNKNOWN_TIME = 0.2
"""Seconds for which a datagram of an unknown sender is kept: an answer to its QUERY takes no
longer."""
UNKNOWN_MAX = 64
"""Datagrams of unknown senders that are kept, 87 KiB at most. When one more comes the oldest
goes."""
_ANY_PORT = 0
"""In a place: a classic peer's, whose port is not known."""

P = TypeVar("P", bound=Peer)


def check_size(peer: Peer, size: int) -> None:
    """Raises MessageTooLarge where no datagram holds so many bytes."""
    if size > DATAGRAM_MAX_PAYLOAD:
        raise errors.MessageTooLarge(
            f"datagram of {size:,} bytes to peer {peer.name!r}: the limit is "
            f"{DATAGRAM_MAX_PAYLOAD:,} (of a datagram); use send()",
            peer=peer.name,
        )


class Mailbox(Generic[P]):
    """The datagrams of one node.

    Args:
        core: the codec.
        totals: where datagrams are counted.

    port: our UDP port. waiters: who waits for a datagram. discovery: what is known of who announces
    himself; None: nothing is.
    """

    def __init__(self, core: Codec, totals: LinkTotals) -> None:
        self._core = core
        self._totals = totals
        self.port = 0
        self.waiters = Waiters()
        self.discovery: Discovery | None = None
        self._waiting: deque[tuple[P, bytes]] = deque()
        self._places: dict[P, list[Address]] = {}
        self._senders: dict[Address, list[P]] = {}
        self._unknown: deque[tuple[float, Address, bytes]] = deque()
        """Of unknown senders: when it came, from where, its payload."""

    # Out ------------------------------------------------------------------------------------------

    def way_to(self, peer: P, connection: Connection | None) -> Address:
        """Where a datagram to this peer goes: where it is connected it was reached; what it
        announced may be another network.

        Raises:
            NotSupported: it has announced no port.
        """
        port = self.port if peer.classic else self._port_of(peer)
        if port is None:
            text = f"peer {peer.name!r} has announced no datagram port; use send()"
            raise errors.NotSupported(text, peer=peer.name)
        host = peer.address[0] if connection is None else connection.host
        return host, port

    def introduction(self, peer: P, connection: Connection | None) -> bytes | None:
        """What a peer is sent before a datagram, because it may not have heard us yet."""
        if connection is not None or self.discovery is None:
            return None
        introduction = self.discovery.introduce(peer.key)
        return None if peer.classic else introduction

    def _port_of(self, peer: P) -> int | None:
        """Where a peertalk peer hears datagrams, as it said when it was connected or announced
        itself."""
        if peer.capabilities is not None and peer.capabilities.datagram_port is not None:
            return peer.capabilities.datagram_port
        discovery = self.discovery
        announcement = None if discovery is None else discovery.announcement(peer.key)
        return None if announcement is None else announcement.datagram_port

    # In -------------------------------------------------------------------------------------------

    def take(self) -> tuple[P, bytes] | None:
        """The oldest that waits, or None. An exception that a signal handler raises loses none."""
        if not self._waiting:
            return None
        oldest = self._waiting[0]
        del self._waiting[0]  # as popleft(), after which a handler may be called
        return oldest

    def put_back(self, oldest: tuple[P, bytes] | None) -> None:
        """What was taken last and nobody got is the next again; None: that was nothing."""
        if oldest is not None:
            self._waiting.appendleft(oldest)

    def receive(self, data: bytes, source: Address, now: float) -> None:
        """Take a datagram that came from source at now, in seconds: it waits for take(), or while
        its sender is unknown, for place(). Where as many wait as may, the oldest gives way, and
        counts as overflowed, or as ignored when its sender is unknown. What is no datagram is
        ignored."""
        peer, payload = self.sender(source), self._payload(data)
        if payload is None:
            self._totals.datagrams_ignored += 1
        elif peer is not None:
            self._deliver(peer, payload)
        else:
            if len(self._unknown) >= UNKNOWN_MAX:
                self._unknown.popleft()
                self._totals.datagrams_ignored += 1
            self._unknown.append((now, source, payload))

    def drop_unknown(self, now: float) -> None:
        """Whose sender has not become known in time is ignored."""
        unknown = self._unknown
        while unknown and unknown[0][0] <= now - UNKNOWN_TIME:
            unknown.popleft()
            self._totals.datagrams_ignored += 1

    def wait(self, now: float) -> float | None:
        """Seconds until drop_unknown() is due; None: nothing is kept."""
        return max(0.0, self._unknown[0][0] - now + UNKNOWN_TIME) if self._unknown else None

    def _deliver(self, peer: P, payload: bytes) -> None:
        totals, waiting = self._totals, self._waiting
        totals.datagrams_received += 1
        if len(waiting) >= WAITING_MAX:
            waiting.popleft()
            totals.datagrams_overflowed += 1
        waiting.append((peer, payload))
        self.waiters.wake(1)

    def _deliver_unknown(self) -> None:
        """Somebody has become known: what was kept may be from there."""
        kept, self._unknown = self._unknown, deque()
        for each in kept:
            peer = self.sender(each[1])
            if peer is None:
                self._unknown.append(each)
            else:
                self._deliver(peer, each[2])

    def _payload(self, data: bytes) -> bytes | None:
        if len(data) > SIZE_MAX:
            return None
        try:
            return self._core.decode_datagram(data).payload
        except errors.ProtocolError:
            return None

    # Who ------------------------------------------------------------------------------------------

    def place(self, peer: P, connection: Connection | None) -> None:
        """Where a peer's datagrams come from may have changed: it was found, has moved or was
        connected."""
        self.displace(peer)
        port = _ANY_PORT if peer.classic else self._port_of(peer)
        if port is None:
            return
        hosts = {peer.address[0]: None}
        if connection is not None:
            hosts[connection.host] = None
        if self.discovery is not None:
            hosts |= dict.fromkeys(host for host, _ in self.discovery.addresses(peer.key))
        places = self._places[peer] = [(host, port) for host in hosts]
        for each in places:
            self._senders.setdefault(each, []).append(peer)
        if self._unknown:
            self._deliver_unknown()

    def displace(self, peer: P) -> None:
        """A peer is no longer known. What a signal handler has cut off, here or in place(), the
        next call does."""
        for each in self._places.get(peer, ()):
            there = [other for other in self._senders.get(each, ()) if other is not peer]
            if there:
                self._senders[each] = there
            else:
                self._senders.pop(each, None)
        self._places.pop(peer, None)

    def sender(self, source: Address) -> P | None:
        """Whose what came from there is taken to be; None: nobody's that is known."""
        ours = self._senders.get(source)
        # several: a former life of a program, not yet forgotten, and the present one
        if ours is not None:
            return next((peer for peer in ours if peer.connected), ours[-1])
        classic = self._senders.get((source[0], _ANY_PORT), ())
        return classic[0] if len(classic) == 1 else None
