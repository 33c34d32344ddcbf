"""Datagrams: small messages that may be lost, doubled or overtaken, on a UDP socket of the node's
own.

A peertalk peer says its datagram port beside its instance id, so several nodes on one host reach
each other. A classic peer says none: it is taken to use the same number as we do, as everybody of
the original does.

Who sent a datagram is told by where it came from: a peertalk peer by its address and port, else a
classic peer by its address, where that is the only one known there. Anybody can forge that. The
sender's port inside the datagram is not looked at.

Invariant: a peer is in the lists of exactly its own places. Never: blocks, waits, or keeps more
than WAITING_MAX datagrams; at most PER_TURN are read in a turn, each looked up by its source and
only then decoded.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import TYPE_CHECKING, Any

from .. import errors
from .._core import values
from .inbox import Waiters
from .remote import Payload, Remote, payload_of
from .world import Address

if TYPE_CHECKING:
    from .transport import Transport

PAYLOAD_MAX = 1392
"""Bytes of one datagram's payload."""
SIZE_MAX = 1400
"""Bytes of a whole datagram; a longer one is dropped."""
PER_TURN = 64
"""Datagrams read in one turn of the loop, so that a flood does not keep messages waiting."""
WAITING_MAX = 256
"""Datagrams that wait for the application, 348 KiB at most. When one more comes the oldest goes:
the newest say most about now."""

_SENDING = "sending datagrams"
_NO_ROOM = {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM}

_ANY_PORT = 0
"""In a place: a classic peer's, whose port is not known."""


class Datagrams:
    """The datagrams of one node. On the engine's thread only.

    port: our UDP port, 0 until open(). waiters: who waits for some.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.port = 0
        self.waiters = Waiters()
        self._waiting: deque[tuple[Remote, bytes]] = deque()
        self._places: dict[Remote, list[Address]] = {}
        self._senders: dict[Address, list[Remote]] = {}
        self._socket: Any = None
        self._watched: Any = None

    def open(self) -> None:
        """Have a socket, and hear.

        Raises:
            AddressInUse, NoNetwork, PlatformError: naming the option that changes it.
        """
        transport, config = self.transport, self.transport.config
        give_way = config.explain()["udp_port"][1] == "default"
        self._socket = transport.world.unicast_socket(config.bind, config.udp_port, give_way)
        self.port = self._socket.getsockname()[1]
        self._watched = transport.watch(self._socket, values.READ, self._hear)

    def close(self) -> None:
        """Hear no more. May be called again, and without open()."""
        if self._socket is not None:
            self.transport.unwatch(self._watched)
            self.transport.close_socket(self._socket)
            self._socket = None

    # Out ------------------------------------------------------------------------------------------

    def send(self, peer: Remote, data: Payload) -> bool:
        """One datagram, now. False: the system did not take it.

        Raises:
            MessageTooLarge, NotSupported, PeerNotFound, InvalidState, WrongType.
        """
        transport = self.transport
        transport.check_open()
        payload = bytes(payload_of(data))
        if len(payload) > PAYLOAD_MAX:
            limit = f"the limit is {PAYLOAD_MAX:,} (of a datagram)"
            raise errors.MessageTooLarge(
                f"datagram of {len(payload):,} bytes to peer {peer.name!r}: {limit}; use send()",
                peer=peer.name,
            )
        if transport.peers.get(peer.key) is not peer:
            raise errors.PeerNotFound(
                f"peer {peer.name!r} is not known to node {transport.config.name!r} any more",
                peer=peer.name,
            )
        port = self.port if peer.classic else self._port_of(peer)
        if port is None:
            raise errors.NotSupported(
                f"peer {peer.name!r} has announced no datagram port; use send()", peer=peer.name
            )
        # where it is connected it was reached; what it announced may be another network
        host = (peer.connection or peer).address[0]
        packet = transport.core.encode_datagram(self.port, payload)
        code = transport.world.send_to(self._socket, packet, (host, port))
        if not code:
            transport.totals.datagrams_sent += 1
            if transport.troubles.lasting:
                transport.troubles.worked(_SENDING)
            return True
        transport.totals.datagrams_refused += 1
        if code not in _NO_ROOM:  # that is a burst, and no trouble
            transport.troubles.failed(
                _SENDING, "the system refuses one to peer %r: %s", peer.name, os.strerror(code)
            )
        return False

    def _port_of(self, peer: Remote) -> int | None:
        """Where a peertalk peer hears datagrams, as it said when it was connected or announced
        itself."""
        if peer.capabilities is not None and peer.capabilities.datagram_port is not None:
            return peer.capabilities.datagram_port
        finder = self.transport.finder
        announcement = None if finder is None else finder.discovery.announcement(peer.key)
        return None if announcement is None else announcement.datagram_port

    # In -------------------------------------------------------------------------------------------

    def take(self) -> tuple[Remote, bytes] | None:
        """The oldest that waits, or None."""
        return self._waiting.popleft() if self._waiting else None

    def _hear(self) -> None:
        transport = self.transport
        world, totals, waiting = transport.world, transport.totals, self._waiting
        before = totals.datagrams_received
        for _ in range(PER_TURN):
            heard = world.hear(self._socket)
            if heard is None:
                break
            data, source = heard
            peer = self._sender(source)
            payload = None if peer is None else self._payload(data)
            if peer is None or payload is None:
                totals.datagrams_ignored += 1
                continue
            totals.datagrams_received += 1
            if len(waiting) >= WAITING_MAX:
                waiting.popleft()
                totals.datagrams_overflowed += 1
            waiting.append((peer, payload))
        self.waiters.wake(totals.datagrams_received - before)

    def _payload(self, data: bytes) -> bytes | None:
        if len(data) > SIZE_MAX:
            return None
        try:
            return self.transport.core.decode_datagram(data).payload
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
        if self.transport.finder is not None:
            hosts |= dict.fromkeys(
                host for host, _ in self.transport.finder.discovery.addresses(peer.key)
            )
        places = self._places[peer] = [(host, port) for host in hosts]
        for each in places:
            self._senders.setdefault(each, []).append(peer)

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
