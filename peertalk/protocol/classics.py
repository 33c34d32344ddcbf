"""Classic peers: whose a connection is that says no name, whom to dial and when, and what becomes
of two connections with one of them.

A classic peer is known by its address and listening port, which only its ANNOUNCE tells. A
connection that it dials tells neither, and it keeps a second entry for each connection that it
accepts: so both sides can take one program for two. What is known of it decides:

- One that is found expects to be dialled, or dials as soon as it hears us. So we announce
  ourselves, and dial HEAD_START later if it has not.
- A caller is the one classic peer of its host that is not connected; else the only one of its host,
  if only we have dialled it so far: then this is its second connection. Else it has no name, until
  the ANNOUNCE of a peer that nothing is known of gives it one: of one that calls alone.
- Of two connections the one that it dialled is used in the end, since there it has our name; once
  that ends it would dial again at our next ANNOUNCE. It drops what is in its queue for a connection
  that ends, and it may put messages on either. So the other stands aside: it is read, nothing is
  sent on it, and it is shut when it has brought nothing for QUIET_TIME; a queue of it holds a
  message for one poll, 10 ms. And we go over from ours to its own only when all that we sent has
  been read there, which its PONG to a PING behind the last message shows: the order stays.
- One that is not connected and announces itself is dialled again, unless one of the two sides has
  said that this is over.

Invariant: a key waits, is under way, or neither; never more than CLASSIC_DIALS are under way.
Never: opens a socket, sends a byte, reads a clock.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from .addresses import Address
from .connections import Connection

if TYPE_CHECKING:
    from .peer import Peer
    from .wire import Capabilities

CLASSIC_DIALS = 4
"""Dials of classic peers, started because they were heard, that may be under way at once."""
CLASSIC_DIAL_INTERVAL = 1.0
"""Seconds between two such dials to one host."""
HEAD_START = 0.2
"""Seconds between our announcement and our dial. The original polls every 10 ms and dials in the
poll in which it hears us."""
QUIET_TIME = 2.0
"""Seconds without a message after which a connection that stands aside is shut. Who sends more
often keeps it; who sends less often has a message in its queue for one poll in two hundred."""
LOOK_INTERVAL = 0.25
"""Seconds between two looks at connections that stand aside."""

P = TypeVar("P", bound="Peer")
At = Iterable[tuple[P, Sequence[Connection]]]
"""The classic peers of one host, each with its connections."""


class Turn(enum.Enum):
    """What is to be done with two connections of one peer."""

    WAIT = "wait"
    """Nothing, now."""
    ASK = "ask"
    """Send a PING on the one that is used, and say so with asked()."""
    EXCHANGE = "exchange"
    """Use the one that stands aside, and let the other do so."""
    SHUT = "shut"
    """Shut the one that stands aside."""


class _Aside:
    """A connection that stands aside. quiet_since: when it brought something last, or began to
    stand aside; capabilities: what was said on it; asked: messages accepted for the peer when a
    PING left on the connection that is used."""

    __slots__ = ("asked", "capabilities", "quiet_since")

    def __init__(self, capabilities: Capabilities | None, now: float) -> None:
        self.capabilities = capabilities
        self.quiet_since = now
        self.asked: int | None = None


def is_nameless(peer: Peer, connections: Sequence[Connection]) -> bool:
    """Whether nothing is known of a peer but where it called from."""
    return any(not each.dialled and each.address == peer.key for each in connections)


def owner(at_host: At[P]) -> P | None:
    """Which of the classic peers of a host has called from there; None: that cannot be known."""
    named = [(peer, had) for peer, had in at_host if not is_nameless(peer, had)]
    unconnected = [peer for peer, had in named if not had]
    if len(unconnected) == 1:
        return unconnected[0]
    if len(named) == 1 and all(each.dialled for each in named[0][1]):
        return named[0][0]
    return None


def caller(key: Address, at_host: At[P]) -> P | None:
    """Which of the nameless peers of a host is the one that announces itself as key; None: none
    is, or that cannot be known."""
    nameless = []
    for peer, had in at_host:
        if is_nameless(peer, had):
            nameless.append(peer)
        elif (peer.key == key) is bool(had):
            return None  # it has its connection; or another could be the one that called
    return nameless[0] if len(nameless) == 1 else None


class Classics:
    """What a node knows of its classic peers beside their connections.

    Args:
        max_waiting: peers that may wait to be dialled; more are refused until they announce
            themselves again.
    """

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self._due: dict[Address, float] = {}
        self._under_way: set[int] = set()
        self._last_dial: dict[str, float] = {}
        self._parted: set[Address] = set()
        self._aside: dict[int, _Aside] = {}

    # Whom to dial ---------------------------------------------------------------------------------

    def is_wanted(self, key: Address) -> bool:
        """Whether it is to be dialled when it announces itself: it listens, and neither side has
        ended the last connection on purpose."""
        return key[1] > 0 and key not in self._parted

    def heard(self, key: Address, announced_at: float) -> float | None:
        """It has announced itself and is not connected; we announce ourselves at announced_at. When
        next() may have it; None: as next_timeout(), or it does not wait."""
        if not self.is_wanted(key) or (key not in self._due and len(self._due) >= self.max_waiting):
            return None
        due = self._due.setdefault(key, announced_at + HEAD_START)
        return None if self._is_full else max(due, self._free_at(key[0]))

    def head_start(self, key: Address, now: float) -> float:
        """Seconds for which it may still dial before anybody here does."""
        return max(0.0, self._due.get(key, now) - now)

    def next(self, now: float) -> Address | None:
        """Whom to dial now, within the limits, and no longer waiting then; None: nobody yet."""
        for key, due in self._due.items():
            if due <= now and self._is_free(key[0], now):
                del self._due[key]
                self._note_dial(key[0], now)
                return key
        return None

    def next_timeout(self) -> float | None:
        """When next() may have somebody, on the clock of `now`; None: not before a dial that is
        under way has settled, or somebody is heard."""
        if self._is_full:
            return None
        return min(
            (max(due, self._free_at(key[0])) for key, due in self._due.items()), default=None
        )

    def dialled(self, tag: int) -> None:
        """That dial has begun; it counts until it has settled."""
        self._under_way.add(tag)

    def settled(self, tag: int) -> bool:
        """A connection was greeted or is gone: it no longer counts as under way. Whether it did:
        then another one may be dialled."""
        if tag not in self._under_way:
            return False
        self._under_way.remove(tag)
        return True

    def connected(self, key: Address) -> None:
        """A classic peer at key has a connection: no dial is due, and its parting is forgotten."""
        self._due.pop(key, None)
        self._parted.discard(key)

    def parted(self, key: Address) -> None:
        """One of the two sides has ended its last connection on purpose: it is left alone until
        somebody connects, or until it is found anew."""
        self._due.pop(key, None)
        self._parted.add(key)

    def forget(self, key: Address) -> None:
        """No peer is known at key any more: no dial is due, and its parting is forgotten."""
        self._due.pop(key, None)
        self._parted.discard(key)

    def _is_free(self, host: str, now: float) -> bool:
        return not self._is_full and self._free_at(host) <= now

    @property
    def _is_full(self) -> bool:
        return len(self._under_way) >= CLASSIC_DIALS

    def _free_at(self, host: str) -> float:
        last = self._last_dial.get(host)
        return 0.0 if last is None else last + CLASSIC_DIAL_INTERVAL

    def _note_dial(self, host: str, now: float) -> None:
        if len(self._last_dial) > 1024:  # else a forger of addresses could fill the memory
            self._last_dial = {
                host: at for host, at in self._last_dial.items() if self._free_at(host) > now
            }
        self._last_dial[host] = now

    # Two connections with one ---------------------------------------------------------------------

    @property
    def asides(self) -> int:
        """Connections that stand aside."""
        return len(self._aside)

    def stood_aside(self, tag: int, capabilities: Capabilities | None, now: float) -> None:
        """A connection stands aside from now on; capabilities: what was said on it last."""
        self._aside[tag] = _Aside(capabilities, now)

    def brought(self, tag: int, now: float) -> None:
        """A connection that stands aside has brought messages, or may have some that are not
        read."""
        self._aside[tag].quiet_since = now

    def said(self, tag: int, capabilities: Capabilities) -> None:
        """A CAPABILITY has come on a connection that stands aside."""
        self._aside[tag].capabilities = capabilities

    def asked(self, tag: int, accepted: int) -> None:
        """A PING has left on the one that is used, for the sake of this one; accepted: messages
        accepted for the peer until then."""
        self._aside[tag].asked = accepted

    def turn(
        self, used: Connection, aside: Connection, accepted: int, now: float, *, idle: bool
    ) -> Turn:
        """What to do with these two. idle: nothing waits to be sent, and all that was has left."""
        record = self._aside[aside.tag]
        if aside.dialled or not used.dialled:
            return Turn.SHUT if now - record.quiet_since >= QUIET_TIME else Turn.WAIT
        if not idle or used.pinged is not None:
            return Turn.WAIT
        return Turn.EXCHANGE if record.asked == accepted and not used.spoilt else Turn.ASK

    def taken(self, tag: int) -> Capabilities | None:
        """A connection no longer stands aside: it is used, shut or gone. What was said on it."""
        record = self._aside.pop(tag, None)
        return None if record is None else record.capabilities
