"""What both front doors show of the peers of a node."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from .. import errors
from ..protocol.peer import PeerState
from .remote import Remote

if TYPE_CHECKING:
    from .transport import Transport

P = TypeVar("P", bound=Remote)


class Peers(Mapping[str, P]):
    """The peers that a node knows. Looked up by id or name, iterated by id. Of several with one
    name it is the one known last: a program that was killed and started again is known twice until
    its former life is forgotten."""

    def __init__(self, known: dict[Any, P], transport: Transport) -> None:
        self._known = known
        self._transport = transport

    @property
    def version(self) -> int:
        """A number that grows with every change."""
        return self._transport.peers_version

    def __getitem__(self, who: str) -> P:
        found = self._find(who)
        if found:
            return found[-1]
        raise errors.PeerNotFound(
            f"no peer {errors.shown(who)} is known; known: {self.names()}", peer=errors.shown(who)
        )

    def matching(self, who: str | Callable[[P], bool]) -> P | None:
        """The peer with this id or name, or the first for which the function is true. Nobody whose
        last dial failed, until it is heard again.

        Raises:
            WrongType: who is no str and no function. Whatever the function raises.
        """
        if isinstance(who, str):
            there = [peer for peer in self._find(who) if peer.state is not PeerState.FAILED]
            return there[-1] if there else None
        if not callable(who):
            raise errors.WrongType(
                f"a peer is found by name, by id or by a function of it, not {errors.shown(who)}"
            )
        known = [peer for peer in self._known.values() if peer.state is not PeerState.FAILED]
        return next((peer for peer in known if who(peer)), None)

    def chosen(self, who: str) -> P:
        """As peers[who]; where several bear that name, the log says which one it is."""
        peer, several = self[who], self._find(who)
        if len(several) > 1:
            self._transport.log.warning(
                "%d peers are called %r: taken is the one that was known last, %s at %s; choose "
                "another by its id: %s",
                len(several),
                peer.name,
                peer.id,
                peer.address[0],
                ", ".join(each.id for each in several if each is not peer),
            )
        return peer

    def names(self) -> str:
        """The names of all, for messages."""
        return ", ".join(sorted(repr(peer.name) for peer in list(self._known.values()))) or "nobody"

    def _find(self, who: str) -> list[P]:
        with contextlib.suppress(ValueError, TypeError):  # no instance id
            peer = self._known.get(bytes.fromhex(who))
            if peer is not None and peer.id == who:
                return [peer]
        peers = list(self._known.values())
        return [peer for peer in peers if peer.id == who] or [
            peer for peer in peers if peer.name == who
        ]

    def values(self) -> ValuesView[P]:
        """The peers as they are now: who comes or goes while they are iterated does not disturb."""
        return dict(self._known).values()

    def items(self) -> ItemsView[str, P]:
        """Likewise, with their ids."""
        return {peer.id: peer for peer in self.values()}.items()

    def __iter__(self) -> Iterator[str]:
        return iter([peer.id for peer in list(self._known.values())])

    def __len__(self) -> int:
        return len(self._known)


class BroadcastResult(msgspec.Struct, Generic[P], frozen=True):
    """What became of a broadcast. accepted: peers whose queue took it; skipped: the others, each
    with the reason."""

    accepted: list[P]
    skipped: dict[P, errors.PeerTalkError]
