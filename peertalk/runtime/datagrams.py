"""Datagrams: small messages that may be lost, doubled or overtaken, on a UDP socket of the node's
own.

A peertalk peer says its datagram port beside its instance id, so several nodes on one host reach
each other. A classic peer says none: it is taken to use the same number as we do, as everybody of
the original does.

Who sent a datagram is told by where it came from: a peertalk peer by its address and port, else a
classic peer by its address, where that is the only one known there. Anybody can forge that. The
sender's port inside the datagram is not looked at.

Two nodes seldom learn of each other in the same moment. So one that sends to a peer which may not
have heard it yet announces itself to that peer first, and what comes from nobody that is known is
kept for a moment: its sender may be about to be.

Discovery packets come here too: the answers to this node's own questions.

Invariant: a peer is in the lists of exactly its own places. Never: blocks, waits, or keeps more
than WAITING_MAX datagrams, or UNKNOWN_MAX of unknown senders; at most PER_TURN are read in a turn.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from .. import errors
from .._core import values
from .._numbers import DATAGRAM_HEADER_SIZE, DATAGRAM_MAX_PAYLOAD
from ..protocol.addresses import Address
from ..protocol.discovery import Discovery
from ..protocol.inbox import Waiters
from ..protocol.payloads import Payload, payload_of
from .engine import Timer
from .remote import Home, Remote

SIZE_MAX = DATAGRAM_HEADER_SIZE + DATAGRAM_MAX_PAYLOAD
"""Bytes of a whole datagram; a longer one is dropped."""
PER_TURN = 64
"""Datagrams read in one turn of the loop, so that a flood does not keep messages waiting."""
WAITING_MAX = 256
"""Datagrams that wait for the application, 348 KiB at most. When one more comes the oldest goes:
the newest say most about now."""

_SENDING = "sending datagrams"
_NO_ROOM = {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM}
UNKNOWN_TIME = 0.2
"""Seconds for which a datagram of an unknown sender is kept: an answer to its QUERY takes no
longer."""
UNKNOWN_MAX = 64
"""Datagrams of unknown senders that are kept, 87 KiB at most. When one more comes the oldest
goes."""

_ANY_PORT = 0
"""In a place: a classic peer's, whose port is not known."""
_DISCOVERY = b"PTLK"
"""How a discovery packet begins."""


class Datagrams:
    """The datagrams of one node. On the engine's thread only.

    port: our UDP port, 0 until open(). socket: it has that port. waiters: who waits for some.
    discovery: what is known of who announces himself; None: nothing is.
    """

    def __init__(self, engine: Home) -> None:
        self.engine = engine
        self.discovery: Discovery | None = None
        self._take_packet: Callable[[bytes, Address], None] | None = None
        self.port = 0
        self.waiters = Waiters()
        self._waiting: deque[tuple[Remote, bytes]] = deque()
        self._places: dict[Remote, list[Address]] = {}
        self._senders: dict[Address, list[Remote]] = {}
        self._unknown: deque[tuple[float, Address, bytes]] = deque()
        """Of unknown senders: when it came, from where, its payload."""
        self._timer: Timer | None = None
        self.socket: Any = None
        self._watched: Any = None

    def open(self) -> None:
        """Have a socket, and hear.

        Raises:
            AddressInUse, NoNetwork, PlatformError: naming the option that changes it.
        """
        config = self.engine.config
        give_way = config.explain()["udp_port"][1] == "default"
        self.socket = self.engine.world.unicast_socket(config.bind, config.udp_port, give_way)
        self.port = self.socket.getsockname()[1]
        self._watched = self.engine.watch(self.socket, values.READ, self._hear)

    def hear_for(self, discovery: Discovery, take_packet: Callable[[bytes, Address], None]) -> None:
        """Discovery is there: ask it about peers, and give it the packets that come here."""
        self.discovery, self._take_packet = discovery, take_packet

    def close(self) -> None:
        """Hear no more. May be called again, and without open()."""
        if self.socket is not None:
            self.engine.cancel(self._timer)
            self._unknown.clear()
            self.engine.unwatch(self._watched)
            self.engine.close_socket(self.socket)
            self.socket = self.discovery = self._take_packet = None

    # Out ------------------------------------------------------------------------------------------

    def send(self, peer: Remote, data: Payload) -> bool:
        """One datagram, now. False: the system did not take it.

        Raises:
            MessageTooLarge, NotSupported, PeerNotFound, InvalidState, WrongType.
        """
        self.engine.check_open()
        payload = bytes(payload_of(data))
        if len(payload) > DATAGRAM_MAX_PAYLOAD:
            limit = f"the limit is {DATAGRAM_MAX_PAYLOAD:,} (of a datagram)"
            raise errors.MessageTooLarge(
                f"datagram of {len(payload):,} bytes to peer {peer.name!r}: {limit}; use send()",
                peer=peer.name,
            )
        if self.engine.peers.get(peer.key) is not peer:
            raise errors.PeerNotFound(
                f"peer {peer.name!r} is not known to node {self.engine.config.name!r} any more",
                peer=peer.name,
            )
        port = self.port if peer.classic else self._port_of(peer)
        if port is None:
            raise errors.NotSupported(
                f"peer {peer.name!r} has announced no datagram port; use send()", peer=peer.name
            )
        # where it is connected it was reached; what it announced may be another network
        where = (peer.connection or peer).address[0], port
        if peer.connection is None and self.discovery is not None:
            introduction = self.discovery.introduce(peer.key)
            if introduction is not None and not peer.classic:
                self.engine.world.send_to(self.socket, introduction, where)
        packet = self.engine.core.encode_datagram(self.port, payload)
        code = self.engine.world.send_to(self.socket, packet, where)
        if not code:
            self.engine.totals.datagrams_sent += 1
            if self.engine.troubles.lasting:
                self.engine.troubles.worked(_SENDING)
            return True
        self.engine.totals.datagrams_refused += 1
        if code not in _NO_ROOM:  # that is a burst, and no trouble
            self.engine.troubles.failed(
                _SENDING, "the system refuses those to peer %r: %s", peer.name, os.strerror(code)
            )
        return False

    def _port_of(self, peer: Remote) -> int | None:
        """Where a peertalk peer hears datagrams, as it said when it was connected or announced
        itself."""
        if peer.capabilities is not None and peer.capabilities.datagram_port is not None:
            return peer.capabilities.datagram_port
        discovery = self.discovery
        announcement = None if discovery is None else discovery.announcement(peer.key)
        return None if announcement is None else announcement.datagram_port

    # In -------------------------------------------------------------------------------------------

    def take(self) -> tuple[Remote, bytes] | None:
        """The oldest that waits, or None."""
        return self._waiting.popleft() if self._waiting else None

    def _hear(self) -> None:
        for _ in range(PER_TURN):
            heard = self.engine.world.hear(self.socket)
            if heard is None:
                break
            data, source = heard
            if data[:4] == _DISCOVERY and self._take_packet is not None:
                self._take_packet(data, source)
                continue
            peer, payload = self._sender(source), self._payload(data)
            if payload is None:
                self.engine.totals.datagrams_ignored += 1
            elif peer is None:
                self._keep(source, payload)
            else:
                self._deliver(peer, payload)

    def _deliver(self, peer: Remote, payload: bytes) -> None:
        totals, waiting = self.engine.totals, self._waiting
        totals.datagrams_received += 1
        if len(waiting) >= WAITING_MAX:
            waiting.popleft()
            totals.datagrams_overflowed += 1
        waiting.append((peer, payload))
        self.waiters.wake(1)

    def _keep(self, source: Address, payload: bytes) -> None:
        """Nobody is known there yet."""
        now = self.engine.world.clock()
        if len(self._unknown) >= UNKNOWN_MAX:
            self._unknown.popleft()
            self.engine.totals.datagrams_ignored += 1
        self._unknown.append((now, source, payload))
        if self._timer is None:
            self._timer = self.engine.after(UNKNOWN_TIME, self._drop_unknown)

    def _drop_unknown(self) -> None:
        """Whose sender has not become known in time is ignored."""
        now, unknown = self.engine.world.clock(), self._unknown
        while unknown and unknown[0][0] <= now - UNKNOWN_TIME:
            unknown.popleft()
            self.engine.totals.datagrams_ignored += 1
        self._timer = None
        if unknown:
            wait = max(0.0, unknown[0][0] + UNKNOWN_TIME - now)
            self._timer = self.engine.after(wait, self._drop_unknown)

    def _deliver_unknown(self) -> None:
        """Somebody has become known: what was kept may be from there."""
        kept, self._unknown = self._unknown, deque()
        for each in kept:
            peer = self._sender(each[1])
            if peer is None:
                self._unknown.append(each)
            else:
                self._deliver(peer, each[2])

    def _payload(self, data: bytes) -> bytes | None:
        if len(data) > SIZE_MAX:
            return None
        try:
            return self.engine.core.decode_datagram(data).payload
        except errors.ProtocolError:
            return None

    # Who ------------------------------------------------------------------------------------------

    def place(self, peer: Remote) -> None:
        """Where a peer's datagrams come from may have changed: it was found, has moved or was
        connected."""
        self.displace(peer)
        port = _ANY_PORT if peer.classic else self._port_of(peer)
        if port is None:
            return
        hosts = {peer.address[0]: None}
        if peer.connection is not None:
            hosts[peer.connection.address[0]] = None
        if self.discovery is not None:
            hosts |= dict.fromkeys(host for host, _ in self.discovery.addresses(peer.key))
        places = self._places[peer] = [(host, port) for host in hosts]
        for each in places:
            self._senders.setdefault(each, []).append(peer)
        if self._unknown:
            self._deliver_unknown()

    def displace(self, peer: Remote) -> None:
        """A peer is no longer known."""
        for each in self._places.pop(peer, ()):
            there = self._senders[each]
            there.remove(peer)
            if not there:
                del self._senders[each]

    def _sender(self, source: Address) -> Remote | None:
        ours = self._senders.get(source)
        # several: a former life of a program, not yet forgotten, and the present one
        if ours is not None:
            return next((peer for peer in ours if peer.connected), ours[-1])
        classic = self._senders.get((source[0], _ANY_PORT), ())
        return classic[0] if len(classic) == 1 else None
