"""Which names are borne by several who are there at the same time.

A program that was killed and started again is known twice until its former life is forgotten, and
that is no collision. So two known peers of one name count only when the one that was known first is
there after the other came: it is connected, or it is heard again. And two that listen at one
address and port count never: a host that lost its power has left connections that nobody has ended.

Invariant: each peer stands in the line of one name, in the order in which they took it; one that
was told stays told until it leaves that line. Never: knows a clock, or tells of one peer twice.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from .peer import Peer

P = TypeVar("P", bound=Peer)


class _Line(dict[P, bool]):
    """Who bears one name, and whether that was told."""


class Names(Generic[P]):
    """The names of the peers of one node. own: what the node itself is called."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._lines: dict[str, P | _Line[P]] = {}
        """Of each name who bears it: the peer itself where it is alone, as nearly all are, since a
        line of one costs 250 bytes."""
        self._called: dict[P, str] = {}

    def heard(self, peer: P) -> list[tuple[P, P | None]]:
        """A known peer is there now: it announced itself, or connected. Those of whom it has to be
        told that they share their name, each with the one that had it before; None: the node
        itself. O(1), but for those who bear the same name."""
        name = peer.name
        if self._called.get(peer) != name:
            self.forget(peer)
        # each step may be the last, and may have been done: a signal handler raises anywhere
        self._called[peer] = name
        line = self._lines.get(name)
        if not isinstance(line, _Line):
            if name != self._own and (line is None or line is peer):
                self._lines[name] = peer
                return []
            line = _Line() if line is None else _Line({line: False})
            self._lines[name] = line
        line.setdefault(peer, False)
        found: list[tuple[P, P | None]] = []
        if name == self._own:
            if not line[peer]:
                found.append((peer, None))
        elif len(line) > 1 and name:
            before: P | None = None
            """The last who had the name before and is there."""
            for each, told in line.items():
                if before is not None and not told and before.address != each.address:
                    found.append((each, before))
                if each is peer or each.connected:
                    before = each
        for newcomer, _ in found:
            line[newcomer] = True
        return found

    def forget(self, peer: P) -> None:
        """It is not known any more."""
        name = self._called.get(peer)
        if name is not None:
            line = self._lines.get(name)
            if isinstance(line, _Line):
                line.pop(peer, None)
            if not line or line is peer:
                self._lines.pop(name, None)
            self._called.pop(peer, None)
