"""Datagrams: small messages that may be lost, doubled or overtaken, on a UDP socket of the node's
own. Whose each is, and where one goes, is decided in protocol/datagrams.

One that is sent to a peer which may not have heard this node yet goes behind an announcement to
that peer.

Discovery packets come here too: the answers to this node's own questions.

Never: blocks, waits, or reads more than PER_TURN datagrams in a turn.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from .. import errors
from .._core import values
from ..protocol.addresses import Address
from ..protocol.datagrams import Mailbox, check_size
from ..protocol.discovery import Discovery
from ..protocol.payloads import Payload, payload_of
from .engine import Timer
from .remote import Home, Remote

PER_TURN = 64
"""Datagrams read in one turn of the loop, so that a flood does not keep messages waiting."""

_SENDING = "sending datagrams"
_NO_ROOM = {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM}
_DISCOVERY = b"PTLK"
"""How a discovery packet begins."""


class Datagrams:
    """The datagrams of one node. On the engine's thread only.

    mailbox: those that have come, and from whom; take and waiters are its. socket: it has our port.
    """

    def __init__(self, engine: Home) -> None:
        self.engine = engine
        self.mailbox: Mailbox[Remote] = Mailbox(engine.core, engine.totals)
        self.take, self.waiters = self.mailbox.take, self.mailbox.waiters
        self._take_packet: Callable[[bytes, Address], None] | None = None
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
        self.mailbox.port = self.socket.getsockname()[1]
        self._watched = self.engine.watch(self.socket, values.READ, self._hear)

    def hear_for(self, discovery: Discovery, take_packet: Callable[[bytes, Address], None]) -> None:
        """Discovery is there: ask it about peers, and give it the packets that come here."""
        self.mailbox.discovery, self._take_packet = discovery, take_packet

    def close(self) -> None:
        """Hear no more. May be called again, and without open()."""
        if self.socket is not None:
            self.engine.cancel(self._timer)
            self.engine.unwatch(self._watched)
            self.engine.close_socket(self.socket)
            self.socket = self.mailbox.discovery = self._take_packet = None

    # Out ------------------------------------------------------------------------------------------

    def send(self, peer: Remote, data: Payload) -> bool:
        """One datagram, now. False: the system did not take it.

        Raises:
            MessageTooLarge, NotSupported, PeerNotFound, InvalidState, WrongType.
        """
        self.engine.check_open()
        payload = bytes(payload_of(data))
        check_size(peer, len(payload))
        if self.engine.peers.get(peer.key) is not peer:
            raise errors.PeerNotFound(
                f"peer {peer.name!r} is not known to node {self.engine.config.name!r} any more",
                peer=peer.name,
            )
        where = self.mailbox.way_to(peer, peer.connection)
        introduction = self.mailbox.introduction(peer, peer.connection)
        if introduction is not None:
            self.engine.world.send_to(self.socket, introduction, where)
        packet = self.engine.core.encode_datagram(self.mailbox.port, payload)
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

    # In -------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        now = self.engine.world.clock()
        for _ in range(PER_TURN):
            heard = self.engine.world.hear(self.socket)
            if heard is None:
                break
            if heard[0][:4] == _DISCOVERY and self._take_packet is not None:
                self._take_packet(*heard)
            else:
                self.mailbox.receive(*heard, now)
        if self._timer is None:
            self._wait(now)

    def _wait(self, now: float) -> None:
        """Be back when what is kept of unknown senders has had its time."""
        wait = self.mailbox.wait(now)
        self._timer = None if wait is None else self.engine.after(wait, self._drop_unknown)

    def _drop_unknown(self) -> None:
        now = self.engine.world.clock()
        self.mailbox.drop_unknown(now)
        self._wait(now)
