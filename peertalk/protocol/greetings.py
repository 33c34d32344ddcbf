"""Who is at the other end of a connection, as far as it has said so, and what becomes of the
connection; how long a word is waited for; who gives a place to whom.

Observations in, frozen verdicts out. Never: opens a socket, arms a timer, reads a clock.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import msgspec

from .. import errors
from . import connections as policy
from .connections import Connection, State
from .line import Decision, Verdict
from .peer import Peer
from .wire import Capabilities


class Silence(enum.Enum):
    """What is done with a connection whose other side has said nothing in time."""

    END = "end"
    """It is one of ours, which always says who it is."""
    CLASSIC = "classic"
    """It counts as classic: an original would have spoken, but one of ours may be slow."""
    FAULT = "fault"
    """It called and said nothing: end it, and report that."""


class Patience(NamedTuple):
    """How long a first word is waited for, in seconds, and what is done then."""

    seconds: float
    then: Silence


def patience(*, dialled: bool, ours: bool, connect_timeout: float) -> Patience:
    """Of a connection that was just established. ours: it is known to lead to one of ours."""
    if not dialled:
        return Patience(policy.SILENCE_TIME, Silence.FAULT)
    if ours:
        return Patience(connect_timeout, Silence.END)
    return Patience(policy.GREETING_TIME, Silence.CLASSIC)


class Answers(enum.Enum):
    """Who answers where somebody was dialled."""

    EXPECTED = "expected"
    """Who was meant, or nobody in particular was."""
    OURS = "ours"
    """Who was taken for a classic peer is one of ours."""
    OTHER = "other"
    """Another node: who was meant was started again, or has moved."""


def answers(expected: Peer | None, found: Peer) -> Answers:
    """Who answers. expected: who was dialled, None: an address was."""
    if expected is None or expected is found:
        return Answers.EXPECTED
    return Answers.OURS if expected.classic else Answers.OTHER


def no_longer(connection: Connection, expected: Peer, found: Peer) -> errors.NetworkFailure:
    """What who wanted another peer hears."""
    text = f"{connection.where} is no longer {expected.name!r}: {found.name!r} answers there"
    return errors.NetworkFailure(text, peer=expected.name)


def known_as(classic: Peer, peer: Peer) -> errors.NetworkFailure:
    """What who sends to a peer that was taken for classic hears when it is one of ours."""
    text = f"{classic.id} is now the peer {peer.name!r}; send to that"
    return errors.NetworkFailure(text, peer=peer.name)


def itself(connection: Connection) -> errors.InvalidArgument:
    """What who dialled an address of the node itself hears."""
    return errors.InvalidArgument(f"{connection.where} is this node itself")


def is_stranger(connection: Connection, instance: bytes | None) -> bool:
    """Whether who greets over a socket of this host is not who was dialled there, or says no
    instance id, which every node does that knows such sockets."""
    expected = connection.peer
    return instance is None or (expected is not None and instance != expected.instance)


def astray(connection: Connection) -> errors.NetworkFailure:
    """What ends the connection with such a one."""
    text = f"a socket of this host does not lead to {connection.who}; the connection is closed"
    return errors.NetworkFailure(text, peer=connection.name)


class Place(enum.Enum):
    """What becomes of a connection that is greeted."""

    ASIDE = "aside"
    """A second one with a classic peer."""
    LINE = "line"
    """Its peer knows places: the line of its connections decides."""
    NEWEST = "newest"
    """It is used, instead of the one before."""


def place_of(*, instance: bytes | None, place: int | None, connected: bool) -> Place:
    """What becomes of it. instance: of its peer, None: classic; place: that the greeting named,
    None: it knows none; connected: its peer has a connection."""
    if instance is None:
        return Place.ASIDE if connected else Place.NEWEST
    return Place.NEWEST if place is None else Place.LINE


class Later(enum.Enum):
    """What a CAPABILITY on a connection that is used says of who is there."""

    SAME = "same"
    LATE = "late"
    """Whom we dialled and took for classic is one of ours."""
    FALSE = "false"
    """Somebody else: no connection can change whose it is, so all of it is ignored."""


def later(said: bytes | None, known: bytes | None, *, dialled: bool) -> Later:
    """What it says. said, known: instance ids, None: none."""
    if said is None or said == known:
        return Later.SAME
    return Later.LATE if known is None and dialled else Later.FALSE


def renewed(said: Capabilities, known: Capabilities | None) -> Capabilities:
    """What holds of a peer from now on: what it says last, but for who it is, and that it takes the
    wide form, where those are left out."""
    if known is None or known.instance is None or said.instance not in (None, known.instance):
        return said
    return msgspec.structs.replace(
        said,
        instance=known.instance,
        name=said.name or known.name,
        port=said.port or known.port,
        datagram_port=said.datagram_port or known.datagram_port,
        largest=said.largest or known.largest,
    )


def settled(waiting: Connection, tag: int) -> list[Decision]:
    """A connection that one outside a line waits for is settled. Returns RELEASE of that one when
    it waits for no other and something of it was held back, else nothing. See Line.settled()."""
    waiting.waits_for -= {tag}
    free = waiting.held is not None and not waiting.waits_for
    return [(Verdict.RELEASE, waiting)] if free else []


class GivesWay(NamedTuple):
    """Who gives up a place, and what the connection ends with. fault: that is to be reported;
    silent: what the other side has not taken yet must not arrive later."""

    connection: Connection
    error: errors.PeerTalkError
    fault: bool = False
    silent: bool = False


C = TypeVar("C", bound=Connection)


def _crowd(connections: Iterable[C]) -> list[C]:
    """The connections of the host that has the most of them, the oldest first."""
    hosts: dict[str, list[C]] = {}
    for each in connections:
        hosts.setdefault(each.host, []).append(each)
    return max(hosts.values(), key=len, default=[])


def stranger_for(host: str, undecided: Iterable[Connection]) -> GivesWay | None:
    """Who makes room for one more connection from a host, of those that have not said who they are:
    the first one of the other host that has called the most. None: nobody."""
    crowd = _crowd(each for each in undecided if not each.dialled)
    if not crowd or crowd[0].host == host:
        return None
    text = f"{crowd[0].host} did not say who it is, and its place was wanted"
    return GivesWay(crowd[0], errors.Timeout(text), fault=True)


def neighbour_for(host: str, connections: Iterable[Connection], most: int) -> GivesWay | None:
    """Who gives his place among `most` connected peers to one from a host: the newest of another
    host, where that has nearly all places. None: nobody."""
    crowd = _crowd(each for each in connections if each.state is State.OPEN)
    if len(crowd) <= most * 7 // 8 or crowd[0].host == host:
        return None
    newest = crowd[-1]
    text = f"{newest.who} gave its place to another host (Config.max_peers is {most:,})"
    return GivesWay(newest, errors.ConnectionClosed(text, peer=newest.name))


def least_wanted(
    connections: Iterable[Connection], since: float, unread: Callable[[Connection], int]
) -> GivesWay | None:
    """Who gives up his place to whoever comes: the open connection that has been frozen, or has
    stood still, the longest, at least since that time. None: there is none. Not one that has
    something unread: it is we who do not take what it was told that we have."""
    found = None
    for each in connections:
        vigil = each.vigil
        quiet = None if vigil is None else vigil.quiet_since()
        if (
            quiet is not None
            and quiet <= since
            and each.state is State.OPEN
            and vigil.is_still(each.link.statistics())
            and not unread(each)
        ):
            found, since = each, quiet
    if found is None:
        return None
    text = (
        f"{found.who} has taken and said nothing for longer than Config.link_timeout, and its "
        "place was wanted (Config.max_peers); the link is closed"
    )
    return GivesWay(found, errors.ConnectionClosed(text, peer=found.name), silent=True)


def turned_away(peer: Peer, most: int) -> errors.OutOfMemory:
    """What ends the connection of a peer for which nobody gives way."""
    text = f"the limit of {most:,} connected peers (Config.max_peers) is reached"
    return errors.OutOfMemory(text, peer=peer.name)
