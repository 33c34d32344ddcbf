"""How a connection is left, what its end means, and what is mended when something was cut off.

Whoever leaves says so and closes when the other side has ended its half too. If that takes long,
the connection is closed when the other side's system has all that was sent, and all that came is
read: to close before would reset the connection over what can still be read. A link that is dead is
read to its end too, because the other side's system was told that we have what it sent, and so its
sender that it was sent.

Observations in, frozen verdicts out. Never: opens a socket, arms a timer, reads a clock.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import errors
from .._numbers import (
    ERR_CRC,
    ERR_INVALID_PARAM,
    ERR_MAGIC,
    ERR_MESSAGE_TOO_LARGE,
    ERR_VERSION,
)
from .connections import Connection, State
from .peer import Peer

LOOK = 0.02
"""Seconds between two looks at a connection that is on its way out: whether something is unread, or
unacknowledged. Neither makes an event."""
PATIENCE = 1.0
"""Seconds that the other side has to end a connection that we leave, though its system has all that
we sent. Until it has read our DISCONNECT it may send, and counts as sent what our system has, which
nobody reads once we have closed. And an original polls discovery before its connections, and reads
none of a peer that said GOODBYE: so that must not overtake the DISCONNECT that its system holds."""
LOOK_SELDOM = 0.5
"""Seconds between two such looks, at most, when it takes long."""

FRAME_FAULTS = frozenset(
    {ERR_INVALID_PARAM, ERR_MESSAGE_TOO_LARGE, ERR_CRC, ERR_MAGIC, ERR_VERSION}
)
"""Codes of a link that ended because of what a frame said."""


class Cause(enum.Enum):
    """Why a link has ended."""

    SHUT = "shut"
    """The other side will send no more, and we are done."""
    FAULT = "fault"
    """A frame broke a rule."""
    NOT_TAKEN = "not-taken"
    """A blocking platform could not send in its time."""
    NOT_WHOLE = "not-whole"
    """A frame took too long."""
    LOST = "lost"
    """The other side, or something in between, has ended it; perhaps inside a frame, as a killed
    program does."""
    FAILED = "failed"
    """The system says so."""


def cause_of(code: int, *, slots_pending: int, sends_time_out: bool) -> Cause:
    """Why, by the code that the link reports. slots_pending: writes that were under way;
    sends_time_out: whether the platform may end a link because of those."""
    if code == 0:
        return Cause.SHUT
    if code in FRAME_FAULTS:
        return Cause.FAULT
    if code == errors.Timeout.code:
        return Cause.NOT_TAKEN if slots_pending and sends_time_out else Cause.NOT_WHOLE
    if code in (errors.ConnectionClosed.code, errors.Truncated.code):
        return Cause.LOST
    return Cause.FAILED


def error_of(
    cause: Cause, connection: Connection, code: int, said: str, system_error: int
) -> errors.PeerTalkError | None:
    """What those hear who used a connection whose link has ended; None: that it is over. said: the
    text of the code; system_error: the platform's own number, 0 where it has none."""
    who, name = connection.who, connection.name
    if cause is Cause.SHUT:
        return connection.failure
    if cause is Cause.FAULT:
        return errors.from_decoder(code, f"{said} in a frame from {who}; the link is closed", name)
    if cause is Cause.NOT_TAKEN:
        text = f"{who} did not take what was sent within the platform's time; the link is closed"
        return errors.Timeout(text, peer=name)
    if cause is Cause.NOT_WHOLE:
        wait = connection.link.frame_timeout
        text = f"a frame from {who} was not whole within {wait:g} s; the link is closed"
        return errors.Timeout(text, peer=name)
    if cause is Cause.LOST:
        if connection.state in (State.CLOSING, State.RETIRING):
            return connection.failure
        return closed(connection.peer, connection.where, system_error)
    detail = f" (system error {system_error})" if system_error else ""
    return errors.from_code(code, f"the link to {who} failed: {said}{detail}", name)


def not_agreed(connection: Connection, id: int, total: int) -> errors.PeerTalkError:
    """What the connection ends with on which a large message was offered, granted or refused
    against the rules."""
    text = (
        f"{connection.who} said of a large message (id {id:,}, {total:,} bytes) what the protocol "
        "does not allow; the link is closed"
    )
    return errors.from_decoder(ERR_INVALID_PARAM, text, connection.name)


def lost(peer: Peer, error: errors.PeerTalkError | None) -> errors.PeerTalkError:
    """What who waits for something of a peer hears when its connection has ended so."""
    if isinstance(error, errors.ConnectionClosed | errors.ConnectionRefused):
        return error
    told = closed(peer)
    told.__cause__ = error
    return told


def closed(
    peer: Peer | None, where: str = "the other side", system_error: int = 0
) -> errors.ConnectionClosed:
    """What who waits for something of a connection hears when it is gone."""
    number = f" (system error {system_error})" if system_error else ""
    if peer is None:
        return errors.ConnectionClosed(f"the connection with {where} is closed{number}")
    return errors.ConnectionClosed(
        f"the connection with peer {peer.name!r} is closed{number}; send again to connect anew",
        peer=peer.name,
    )


class Half(enum.Enum):
    """What is done when the other side has said that it will send no more."""

    NAMELESS = "nameless"
    """End it: it never said who it is."""
    END = "end"
    """End it: nothing of ours is on its way there."""
    SHUT = "shut"
    """We are leaving anyway: shut it, and let what is in its slots arrive."""
    LEAVE = "leave"
    """Likewise, and its peer has lost it."""


def half_closed(state: State) -> Half:
    """What is done, by the state of the connection."""
    if state is State.GREETING:
        return Half.NAMELESS
    if state in (State.GREETED, State.DRAINING, State.ASIDE):
        return Half.END
    return Half.LEAVE if state is State.OPEN else Half.SHUT


def is_rejection(state: State, classic: bool | None) -> bool:
    """Whether a REJECT counts. classic: its peer is, None: not known. The original never says so
    and ignores it, as we do from a peer of its kind; but a connection of ours that is answered by a
    REJECT before any CAPABILITY has nobody behind it."""
    if state in (State.GREETING, State.GREETED):
        return True
    return state is State.OPEN and classic is False


class NotUsed(errors.ConnectionClosed):
    """The other side knows us and has closed the connection: it has another, or will have. known:
    who it is."""

    known: Any


def not_used(peer: Peer) -> NotUsed:
    """What who waits for a connection hears that was greeted and has ended without an error."""
    text = f"peer {peer.name!r} did not use the connection; it may be gone, or has another"
    error = NotUsed(text, peer=peer.name)
    error.known = peer
    return error


def was_rejected(error: errors.PeerTalkError | None) -> bool:
    """Whether it was the other side's will: dialling again at once would only ask again."""
    return isinstance(error, errors.ConnectionRefused) and error.reason is not None


def is_final(error: errors.PeerTalkError | None) -> bool:
    """Whether no other address of the peer would give another answer."""
    return was_rejected(error) or isinstance(error, NotUsed)


def no_answer(connection: Connection, seconds: float) -> errors.Timeout:
    """What who dials hears when nobody has answered for so long."""
    late = f"did not answer within {seconds:g} s (Config.connect_timeout)"
    return errors.Timeout(f"{connection.where} {late}")


def died(connection: Connection, silent: float) -> errors.ConnectionClosed:
    """What a dead link ends with. silent: seconds without an acknowledgement that was owed."""
    nothing = f"has acknowledged nothing for {silent:.0f} s (Config.link_timeout)"
    text = f"{connection.who} {nothing}; the link is closed"
    return errors.ConnectionClosed(text, peer=connection.name)


def without_address(connection: Connection, address: str) -> errors.NetworkFailure:
    """What a link ends with whose own address this machine has no longer."""
    text = (
        f"the link to {connection.who} lived on {address}, which is no longer an address of this "
        "machine; the link is closed"
    )
    return errors.NetworkFailure(text, peer=connection.name)


def is_astray(connection: Connection, was: State, error: errors.PeerTalkError | None) -> bool:
    """Whether a connection that we made over a socket of this host did not lead to its peer. Who
    rejects us, or is there and says nothing, would do so by TCP, too; and what is wrong here
    remains wrong."""
    early = was in (State.CONNECTING, State.GREETING)
    theirs = isinstance(error, errors.NetworkFailure | errors.RemoteError)
    return connection.dialled and early and theirs and not was_rejected(error)


def cut_off(error: BaseException | None) -> errors.PeerTalkError:
    """What those hear whose connection ends because of an exception; None: one that is not known
    any more."""
    what = "an exception" if error is None else repr(error)
    text = f"{what} cut off what was done for a connection; it is closed"
    return errors.from_exception(error or KeyboardInterrupt(), text)


class Report(enum.Enum):
    """How loudly the end of a connection is told."""

    SILENT = "silent"
    INFO = "info"
    WARNING = "warning"
    FAULT = "fault"
    """An event and a counter tell of it: a line of the log for each would let strangers fill it."""


def report(
    peer: Peer | None, *, fault: bool, used: bool, broken: bool, polite: bool, closing: bool
) -> Report:
    """How it is told. used: messages were sent on it; broken: it ended by an error; closing: the
    node is."""
    if fault:
        return Report.FAULT
    if not used or not broken or polite or closing:
        return Report.SILENT
    # what was on its way may be lost, and is missed; nobody misses who called, said no name and
    # was sent nothing, and such strangers would fill the log, too
    known = peer is not None and (peer.name or peer.accepted)
    return Report.WARNING if known else Report.INFO


def stood_still(
    connection: Connection, seconds: float, timeout: float
) -> errors.ConnectionClosed | None:
    """What the connection ends with that has sent nothing of what waits in it for so long, of all
    the longest, when memory for sending is scarce. None: that is not long enough, or it is over."""
    if connection.state is State.CLOSED or seconds < timeout:
        return None
    text = (
        f"{connection.who} has taken nothing for {seconds:.0f} s (Config.link_timeout is "
        f"{timeout:g} s), and memory for sending ran short: the connection is closed; send again "
        "to connect anew"
    )
    return errors.ConnectionClosed(text, peer=connection.name)


class DeadEnd(enum.Enum):
    """What is done with a link that is dead."""

    NOTHING = "nothing"
    """It is being read to its end already."""
    DRAIN = "drain"
    END = "end"


def dead(state: State, unread: Callable[[], int], *, alive: bool = False) -> DeadEnd:
    """What is done. unread: how much has come and is not served; asked only where it counts.
    alive: it is not dead, though nobody here can use it: more may come until the other side has
    heard of that."""
    if state is State.DRAINING:
        return DeadEnd.NOTHING
    used = state in (State.OPEN, State.CLOSING, State.RETIRING)
    return DeadEnd.DRAIN if used and (alive or unread()) else DeadEnd.END


class Leaving(NamedTuple):
    """A connection that we leave, or want to. left: when we said so, None: there was no room for
    that; deadline: when it is given up; owes: whether something of ours is not acknowledged, or
    something of theirs not read; asked only where it counts."""

    state: State
    now: float
    left: float | None
    deadline: float
    owes: Callable[[], bool]


class Look(NamedTuple):
    """What a look at a connection that we leave has found. pause: look again in so many seconds,
    None: it is over; in_vain: the other side did not take in time what it was sent."""

    pause: float | None
    in_vain: bool = False


def look(leaving: Leaving) -> Look:
    """What is to be done. The longer it takes the more seldom it is looked at."""
    if leaving.now >= leaving.deadline:
        return Look(None, in_vain=True)
    waited = 0.0 if leaving.left is None else leaving.now - leaving.left
    if leaving.state is State.OPEN or waited < PATIENCE or leaving.owes():
        rest = leaving.deadline - leaving.now
        return Look(min(max(LOOK, waited / 8), LOOK_SELDOM, rest))
    return Look(None)


class Cut(NamedTuple):
    """Serving an event of a connection was cut off. batch: it brought messages; kept: those are in
    the inbox, or held back; talk: it was a PING or an answer; used: the peer is connected by this
    connection; waited_for: somebody waits for it."""

    batch: bool
    kept: bool
    talk: bool
    used: bool
    waited_for: bool


class AfterCut(NamedTuple):
    """again: serve the event once more; ends: the connection ends, because nobody knows how much
    was done."""

    again: bool
    ends: bool


def after_cut(cut: Cut) -> AfterCut:
    """What is done. Of messages it is known whether they are delivered, and talk may be served
    twice."""
    known = (cut.batch or cut.talk) and cut.used and not cut.waited_for
    return AfterCut(again=cut.talk or (cut.batch and not cut.kept), ends=not known)


class Mending(enum.Enum):
    """What is done with a connection after something was cut off."""

    NOTHING = "nothing"
    END = "end"
    """It is half made, or what it waits for would never come."""
    DRAIN = "drain"
    LEAVE = "leave"
    PING = "ping"
    READ = "read"
    """It is paused, and nobody would read on."""


class Found(NamedTuple):
    """A connection as it was found. timed: something will happen to it at a time; watched: its dial
    is; linked: it has a link; used: its peer is connected by it; held: what it brings is kept back;
    leaving: there is a deadline for it; asking: somebody waits for an answer, and no PING is out;
    stuck: it is paused, and no inbox knows."""

    state: State
    timed: bool
    watched: bool
    linked: bool
    used: bool
    held: bool
    leaving: bool
    asking: bool
    stuck: Callable[[], bool]


def mending(found: Found) -> Mending:
    """What is done."""
    state = found.state
    if state is State.CONNECTING:
        whole = found.timed and found.watched
    elif state is State.OPEN:
        whole = found.used and found.linked
    else:
        waits = state in (State.GREETING, State.RETIRING, State.CLOSING)
        whole = (found.timed or not waits) and found.linked
    if not whole:
        return Mending.END
    if state is State.DRAINING and not found.held:
        return Mending.DRAIN
    if state is State.OPEN and not found.timed and found.leaving:
        return Mending.LEAVE
    if found.asking:
        return Mending.PING
    if state is State.OPEN and not found.held and found.stuck():
        return Mending.READ
    return Mending.NOTHING
