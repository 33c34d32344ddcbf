"""What both front doors show of the peers of a node: a mapping over the engine's own table.

Invariant: a look at several peers is a look at a copy, so that others may come and go meanwhile, on
any thread. Never: a table of its own, a change of who is known, or a wait.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from typing import Any, Generic, TypeVar

import msgspec

from .. import errors
from ..protocol.addresses import Address, address_of
from ..protocol.peer import PeerState
from ..runtime.remote import Remote
from ..runtime.transport import Transport

P = TypeVar("P")
"""The kind of peer that a front door hands out."""

_NAMED = 8
"""Peers that a message names; of more it says how many they are, or a large room would fill the
screen."""


def _first(names: list[str]) -> str:
    """The first few of these in their order, and how many there are beside."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


class Peers(Mapping[str, P]):
    """The peers that a node knows. Looked up by id or name, iterated by id.

    An id finds whoever is known. A name finds who can be had: nobody whose last dial failed, until
    that peer is heard again, and of several the one known last, since a program that was killed and
    started again is known twice until its former life is forgotten. This holds for [], get and in,
    and for connect() and wait_for() of the node.
    """

    def __init__(self, known: dict[Any, Remote], transport: Transport) -> None:
        self._known = known
        self._transport = transport

    @property
    def version(self) -> int:
        """A number that grows with every change."""
        return self._transport.roster.version

    def __getitem__(self, who: str) -> P:
        found = self._find(who)
        if found is not None:
            view: P = found.view
            return view
        lacking = "can be had" if any(peer.name == who for peer in self._all()) else "is known"
        shown = errors.shown(who)
        raise errors.PeerNotFound(
            f"no peer {shown} {lacking}; {self.known()}; wait_for() waits for a peer", peer=shown
        )

    def __contains__(self, who: object) -> bool:
        return self._find(who) is not None

    def matching(self, who: str | Callable[[P], bool]) -> P | None:
        """Who is found by this id or name, or the first of those who can be had for whom the
        function is true.

        Raises:
            WrongType: who is no str and no function. Whatever the function raises.
        """
        if isinstance(who, str):
            found = self._find(who)
            return None if found is None else found.view
        if not callable(who):
            raise errors.WrongType(
                f"a peer is found by name, by id or by a function of it, not {errors.shown(who)}"
            )
        views = (peer.view for peer in self._all() if _can_be_had(peer))
        return next((view for view in views if who(view)), None)

    def chosen(self, who: str) -> P | Address:
        """As peers[who]; the log says which peer it is where several bear the name. The address,
        where nobody is found and who is "HOST:PORT"."""
        if who not in self and (address := address_of(who)) is not None:
            return address
        view = self[who]
        peer = self._find(who)
        several = [each for each in self._all() if each.name == who and _can_be_had(each)]
        if peer is not None and peer.id != who and len(several) > 1:
            self._transport.log.warning(
                "%d peers are called %r: taken is the one that was known last, %s at %s; choose "
                "another by its id: %s",
                len(several),
                peer.name,
                peer.id,
                peer.address[0],
                _first([each.id for each in several if each is not peer]),
            )
        return view

    def known(self) -> str:
        """Who is known, the first few by name, for the end of a message."""
        names = [
            repr(peer.name) + (" (its last dial failed)" if not _can_be_had(peer) else "")
            for peer in self._all()
        ]
        return f"known: {_first(sorted(names))}" if names else "nobody else is known either"

    def heard(self) -> str:
        """As known(), with what to look at when nobody was heard at all."""
        config = self._transport.config
        if not config.discovery:
            return f"{self.known()}; this node has discovery off, so connect to an address"
        if self._known:
            return self.known()
        return (
            f"{self.known()}: does a firewall, here or there, keep out UDP {config.discovery_port}?"
        )

    def _all(self) -> list[Remote]:
        """Who is known now. Any thread."""
        return list(self._known.values())

    def _find(self, who: object) -> Remote | None:
        if not isinstance(who, str):
            return None
        with contextlib.suppress(ValueError):  # no instance id
            peer = self._known.get(bytes.fromhex(who))
            if peer is not None and peer.id == who:
                return peer
        bearer = None
        for peer in self._all():
            if peer.id == who:
                return peer
            if peer.name == who and _can_be_had(peer):
                bearer = peer
        return bearer

    def values(self) -> ValuesView[P]:
        """The peers as they are now: who comes or goes while they are iterated does not disturb."""
        return {peer.key: peer.view for peer in self._all()}.values()

    def items(self) -> ItemsView[str, P]:
        """Likewise, with their ids."""
        return {peer.id: peer.view for peer in self._all()}.items()

    def __iter__(self) -> Iterator[str]:
        return iter([peer.id for peer in self._all()])

    def __len__(self) -> int:
        return len(self._known)


def _can_be_had(peer: Remote) -> bool:
    return peer.state is not PeerState.FAILED


class BroadcastResult(msgspec.Struct, Generic[P], frozen=True):
    """What became of a broadcast. accepted: peers whose queue took it; skipped: the others, each
    with the reason."""

    accepted: list[P]
    skipped: dict[P, errors.PeerTalkError]
