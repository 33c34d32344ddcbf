"""How much a peer takes, in one message, in one go and at this moment, and the errors that say so.

Invariant: what limit_of() allows reaches the peer, whole or in fragments, and what it refuses would
not. Never: asks a link or the clock; what was seen of those is an argument.
"""

from __future__ import annotations

from .. import errors
from .._core import Limits
from .._numbers import FRAME_OVERHEAD, MESSAGE_LIMIT_MAX, MESSAGE_LIMIT_MIN
from .connections import Connection
from .outbox import Priority
from .peer import FRAGMENTED_MAX, Peer
from .pieces import piece_size
from .statistics import QueueStatus
from .wire import Capabilities

CLASSIC_LIMIT = 512
"""Bytes that a classic peer takes before it has said more (its CAPABILITY)."""
_CHUNK_MESSAGES = 1024
_CHUNK_BYTES = 512 * 1024
"""What send_many draws at once at most, and hands over before those who wait behind it have their
turn."""
_OURS = "of this core"
_CHOSEN = "Config.max_message"


def own_limit(wanted: int, frame: int, core: Limits, *, chosen: bool) -> int:
    """Bytes of the longest message that a node takes and sends. Where nobody has chosen, a core for
    little memory takes what one of its frames holds.

    Args:
        wanted: Config.max_message; chosen: it is no default.
        frame: what one frame of the original's form holds here.
    """
    if wanted <= MESSAGE_LIMIT_MAX or (not chosen and core.frame_max_payload < MESSAGE_LIMIT_MAX):
        return min(wanted, frame)
    return wanted


def said_of_us(largest: int, frame: int) -> tuple[int, int | None]:
    """What a CAPABILITY says for a node that takes messages of so many bytes: MAX_MESSAGE, and the
    longest in the wide form, None where that is no longer. frame: as own_limit()."""
    in_a_frame = min(frame, max(MESSAGE_LIMIT_MIN, largest))
    return in_a_frame, largest if largest > MESSAGE_LIMIT_MAX else None


def limit_of(peer: Peer, connection: Connection | None) -> tuple[int, str]:
    """Bytes of the largest message to a peer, and whose limit that is, as errors say it.
    connection: that is used; None: there is none."""
    ours = peer.own_max_message
    unconnected = connection is None or connection.link is None
    if (unconnected and not peer.classic) or (connection is not None and connection.slow):
        return ours, _CHOSEN if ours != peer.own_max_frame else _OURS
    if largest := 0 if unconnected else peer.largest:
        return largest, _CHOSEN if largest == ours else "its longest message"
    frame = peer.own_max_frame
    whose_ours = _CHOSEN if ours < frame else _OURS
    ours = min(ours, frame)
    if connection is None or connection.link is None or connection.link.max_message >= ours:
        return ours, whose_ours
    limit: int = connection.link.max_message
    said = peer.capabilities is not None
    whose = "its MAX_MESSAGE" if said else "a classic peer that has not said more"
    if not peer.classic or limit >= FRAGMENTED_MAX or not piece_size(limit):
        return limit, whose
    if ours <= FRAGMENTED_MAX:
        return ours, whose_ours
    fragments = "what a classic peer puts together of fragments; in one frame it takes"
    return FRAGMENTED_MAX, f"{fragments} {limit:,}, {whose}"


def of_link(peer: Peer, capabilities: Capabilities | None) -> int:
    """Bytes that a link may carry in one frame of the original's form to a peer that has said this
    of itself."""
    theirs = CLASSIC_LIMIT if capabilities is None else capabilities.max_message
    return min(peer.own_max_message, peer.own_max_frame, theirs)


def too_large(peer: Peer, connection: Connection | None, size: int) -> errors.MessageTooLarge:
    """The error for a message of so many bytes, which limit_of() refuses."""
    limit, whose = limit_of(peer, connection)
    text = (
        f"message of {size:,} bytes to peer {peer.name!r}: the limit is {limit:,} ({whose}); "
        "send it in parts"
    )
    return errors.MessageTooLarge(text, peer=peer.name)


def refused_there(peer: Peer, size: int) -> errors.MessageTooLarge:
    """The error for a message that a peer was offered and does not take."""
    text = (
        f"message of {size:,} bytes to peer {peer.name!r}: the peer refused it, as too large or "
        "for want of memory; send it in parts"
    )
    return errors.MessageTooLarge(text, peer=peer.name)


def dropped_there(peer: Peer) -> errors.Timeout:
    """The error for a message that was sent when its receiver had given its memory to others."""
    text = (
        f"peer {peer.name!r} waited for its Config.link_timeout for the next part of the message, "
        "and dropped what came later; send it again"
    )
    return errors.Timeout(text, peer=peer.name)


def chunk(size: int, core: Limits, depth: int) -> int:
    """Messages of that many bytes that send_many draws at once: what all slots of a link hold,
    which is one write, or several times that."""
    write = max(1, min(_CHUNK_MESSAGES, depth * (core.slot_size // (size + FRAME_OVERHEAD))))
    most = min(_CHUNK_MESSAGES, _CHUNK_BYTES // (size + FRAME_OVERHEAD))
    return write * max(1, most // write)


def refused(peer: Peer, lowest: Priority) -> errors.WouldBlock:
    """The error for a message of a class below the lowest that the peer takes by its pressure."""
    pressure = 0 if peer.capabilities is None else peer.capabilities.pressure
    above = "only" if lowest is Priority.CRITICAL else "and above only"
    text = (
        f"peer {peer.name!r} reports a pressure of {pressure}: it takes {lowest.name} messages "
        f"{above} until that falls; wait with send, or raise the priority"
    )
    return errors.WouldBlock(text, reason="pressure", peer=peer.name)


def full(peer: Peer, before: int) -> errors.WouldBlock:
    """The error for a message for which the queue has no room, with so many senders before it."""
    text = (
        f"no room for a message to peer {peer.name!r}: {peer.queued:,} wait "
        "(Config.send_queue_size, send_queue_bytes)"
    )
    if before:
        text += f", and {before:,} sends that were called before it"
    return errors.WouldBlock(text, reason="queue", peer=peer.name)


def queue_of(
    peer: Peer, capacity: int, *, connected: bool, frozen: bool, lowest: Priority
) -> QueueStatus:
    """How full the way to a peer is, and why it is not empty. connected: a connection is used;
    lowest: the lowest class that the peer takes."""
    outbox, reason, pressure = peer.outbox, "", 0
    if connected and peer.capabilities is not None:
        pressure = peer.capabilities.pressure
    if frozen:
        reason = "frozen"
    elif connected and lowest > Priority.LOW:
        reason = "pressure"
    elif outbox is not None:
        reason = "connection" if not connected else "grant" if outbox.blocked else "slots"
    return QueueStatus(
        pending=peer.accepted - peer.reported,
        capacity=capacity,
        bytes=0 if outbox is None else outbox.bytes,
        pressure=pressure if outbox is None else max(pressure, outbox.pressure),
        reason=reason,
    )
