"""How much a peer takes, in one message, in one go and at this moment, and the errors that say so.

Invariant: what limit_of() allows reaches the peer, whole or in fragments, and what it refuses would
not. Never: asks a link or the clock; what was seen of those is an argument.
"""

from __future__ import annotations

from .. import errors
from .._core import Limits
from .._numbers import FRAME_OVERHEAD
from .connections import Connection
from .outbox import Priority, piece_size
from .peer import FRAGMENTED_MAX, Peer
from .statistics import QueueStatus
from .wire import Capabilities

CLASSIC_LIMIT = 512
"""Bytes that a classic peer takes before it has said more (its CAPABILITY)."""
_CHUNK_MESSAGES = 1024
_CHUNK_BYTES = 512 * 1024
"""What send_many draws at once at most, and hands over before those who wait behind it have their
turn."""
_OURS = "of this core"


def limit_of(peer: Peer, connection: Connection | None) -> tuple[int, str]:
    """Bytes of the largest message to a peer, and whose limit that is, as errors say it.
    connection: that is used; None: there is none."""
    ours = peer.own_max_message
    if (
        connection is None
        or connection.link is None
        or connection.link.max_message >= ours
        or connection.slow
    ):
        return ours, _OURS
    limit: int = connection.link.max_message
    said = peer.capabilities is not None
    whose = "its MAX_MESSAGE" if said else "a classic peer that has not said more"
    if not peer.classic or limit >= FRAGMENTED_MAX or not piece_size(limit):
        return limit, whose
    if ours <= FRAGMENTED_MAX:
        return ours, _OURS
    fragments = "what a classic peer puts together of fragments; in one frame it takes"
    return FRAGMENTED_MAX, f"{fragments} {limit:,}, {whose}"


def of_link(peer: Peer, capabilities: Capabilities | None) -> int:
    """Bytes that a link may carry in one frame to a peer that has said this of itself."""
    theirs = CLASSIC_LIMIT if capabilities is None else capabilities.max_message
    return min(peer.own_max_message, theirs)


def too_large(peer: Peer, connection: Connection | None, size: int) -> errors.MessageTooLarge:
    """The error for a message of so many bytes, which limit_of() refuses."""
    limit, whose = limit_of(peer, connection)
    text = (
        f"message of {size:,} bytes to peer {peer.name!r}: the limit is {limit:,} ({whose}); "
        "send it in parts"
    )
    return errors.MessageTooLarge(text, peer=peer.name)


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
        reason = "slots" if connected else "connection"
    return QueueStatus(
        pending=peer.accepted - peer.reported,
        capacity=capacity,
        bytes=0 if outbox is None else outbox.bytes,
        pressure=pressure if outbox is None else max(pressure, outbox.pressure),
        reason=reason,
    )
