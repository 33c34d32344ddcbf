"""Who is known: the table of peers, by key, and their names.

A peer that is forgotten stays the same object for as long as anybody has it, and is that again when
it comes back. A program that was started again is another peer: the former one gets a successor.

Invariant: a peer is in the table under its own key, or under none. Never: opens or ends a
connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any
from weakref import WeakValueDictionary

from ..protocol import events
from ..protocol.addresses import Address
from ..protocol.classics import Classics
from ..protocol.datagrams import Mailbox
from ..protocol.names import Names
from .engine import Engine
from .remote import Home, Remote
from .traffic import Traffic

_NAMES_WARNED = 64
"""Names whose collision is logged, once each in the life of a node: a neighbour who makes up names
fills no log."""


class Roster:
    """The peers of one node. On the engine's thread only.

    Args:
        engine: whose events and timers these are.
        traffic: their messages.
        mailbox: their datagrams.
        classics: what is known of those that are classic, beside.
        home: to what they belong.

    peers: those that are known, by key. version: changes whenever who that is does, or what they
    are called.
    """

    def __init__(
        self,
        engine: Engine,
        traffic: Traffic,
        mailbox: Mailbox[Remote],
        classics: Classics,
        home: Home,
    ) -> None:
        self.engine = engine
        self.traffic = traffic
        self.mailbox = mailbox
        self.classics = classics
        self.peers: dict[Any, Remote] = {}
        self.version = 0
        self._home = home
        self._forgotten: WeakValueDictionary[Any, Remote] = WeakValueDictionary()
        """Peers that are not in the table any more, while anybody has them."""
        self._names: Names[Remote] = Names(engine.config.name)
        self._names_warned: set[str] = set()

    def recall(self, key: Any) -> Remote | None:
        """Who has this key: in the table, or forgotten while somebody holds it."""
        return self.peers.get(key) or self._forgotten.get(key)

    def at(self, address: Address) -> list[Remote]:
        """Those that are known to live at an address."""
        return [peer for peer in self.peers.values() if peer.address == address]

    def meet(self, instance: bytes, name: str, address: Address) -> Remote:
        """The peer that has said its instance id on a connection, or by whose announcement it was
        heard; made when it was not known."""
        peer = self.peers.get(instance)
        if peer is None:
            return self.make_peer(instance, instance, name, address)
        peer.name = name or peer.name
        return peer

    def make_peer(self, key: Any, instance: bytes | None, name: str, address: Address) -> Remote:
        """A peer that is not in the table: the same object as before as long as anybody has that.
        Who was known at its address, and is not connected, is its former life; so is who had its
        name there and is forgotten, which may be long ago."""
        peer = self._forgotten.pop(key, None)
        if peer is None:
            peer = Remote(
                self._home,
                key,
                name=name,
                address=address,
                own_max_message=self.traffic.max_message,
            )
        else:
            peer.name, peer.address = name or peer.name, address
        if instance is not None:
            namesakes = (each for each in self._held() if each.name == peer.name)
            for former in _others_at(address, instance, chain(self.peers.values(), namesakes)):
                if former.connection is None and not former.greeted and former.successor is None:
                    self.succeed(former, peer)
        return self.know(peer)

    def know(self, peer: Remote) -> Remote:
        """Have it in the table, which it was not in, and report it as found; returns it."""
        self._forgotten.pop(peer.key, None)
        peer.keep_view()
        peer.successor = None
        self.peers[peer.key] = peer
        self.version += 1
        self.mailbox.place(peer, peer.connection)
        self.engine.emit(events.PeerFound, peer)
        self.check_name(peer)
        return peer

    def renew(self, peer: Remote, key: Any) -> None:
        """A peer is known better: one that was taken for classic has an instance id, or one that
        called has said where it listens. Nobody else has this key: see recall()."""
        del self.peers[peer.key]
        peer.key = key
        self.peers[key] = peer
        self.version += 1

    def forget(self, peer: Remote, reason: events.LostReason | None) -> None:
        """Take an unconnected peer out of the table. reason: what to report; None: nothing."""
        if self.peers.get(peer.key) is peer and peer.connection is None:
            del self.peers[peer.key]
            self.version += 1
            self.mailbox.displace(peer)
            self._names.forget(peer)
            self._forgotten[peer.key] = peer
            if isinstance(peer.key, tuple):
                self.classics.forget(peer.key)
            self.traffic.inbox.end(peer)
            if reason is not None:
                self.engine.emit(events.PeerLost, peer, reason)
            peer.loosen_view()

    def everybody(self) -> list[Remote]:
        """Those who are known, and those who are forgotten and held: they may be sent to. Any
        thread."""
        return [*self.peers.values(), *self._held()]

    def present(self) -> Iterator[events.Event[Any]]:
        """What is true now, as events: what who listens from now on has missed of those who are
        there."""
        for peer in self.peers.values():
            yield events.PeerFound(peer.view)
            if peer.connection is not None:
                yield events.PeerConnected(peer.view)
            if peer.frozen:
                yield events.PeerFrozen(peer.view)

    def check_name(self, peer: Remote) -> None:
        """A peer is there: it announced itself, or connected. Tell who shares its name."""
        if self.peers.get(peer.key) is not peer:
            return
        for newcomer, other in self._names.heard(peer):
            self.engine.emit(events.NameCollision, newcomer, other)
            name = newcomer.name
            if name not in self._names_warned and len(self._names_warned) < _NAMES_WARNED:
                self._names_warned.add(name)
                whose = "this node" if other is None else f"peer {other.id} at {other.address[0]}"
                self.engine.log.warning(
                    "name %r is that of peer %s at %s and of %s: give each its own "
                    "(PEERTALK_NAME), or use ids",
                    name,
                    newcomer.id,
                    newcomer.address[0],
                    whose,
                )

    def find_successor(self, peer: Remote) -> None:
        """A peer has lost its connection: who has been met at its address meanwhile is its next
        life. Who was met there before is its former one, whose end has not been noticed."""
        known = list(self.peers.values())
        later = known[known.index(peer) + 1 :] if peer.known else []
        for other in _others_at(peer.address, peer.instance, later):
            self.succeed(peer, other)

    def _held(self) -> list[Remote]:
        held = [held() for held in self._forgotten.valuerefs()]
        return [peer for peer in held if peer is not None]

    def succeed(self, old: Remote, successor: Remote) -> None:
        """A program was started again: nothing is forwarded, since the new one knows nothing of
        what the old one was sent."""
        old.successor = successor
        restarted = old.restarted_error()
        self.engine.cancel(old.retry)
        old.retry = None
        self.traffic.fail_queued(old, restarted)
        old.tell_reaching(restarted)
        self.forget(old, events.LostReason.RESTARTED)

    def tidy(self, peer: Remote) -> None:
        """Forget a peer of whom there is nothing left: no connection, none on its way, nothing that
        waits, and no announcement."""
        discovery = self.mailbox.discovery
        announced = discovery is not None and peer.key in discovery
        if announced or peer.connection is not None or peer.queued or peer.reaching or peer.retry:
            return
        if self.engine.connections.dialling(peer) is None and not (peer.line and peer.line.members):
            self.forget(peer, events.LostReason.CLOSED)

    def let_go(self) -> None:
        """The node is closed: nobody comes back."""
        self._forgotten.clear()


def _others_at(address: Address, instance: bytes | None, peers: Iterable[Remote]) -> list[Remote]:
    return [
        peer for peer in peers if peer.address == address and peer.instance not in (None, instance)
    ]
