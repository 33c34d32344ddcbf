"""Messages in flight on one link: a ring of slots, each one write, each carrying one frame or many.

     FREE -> FILLING -> IN_FLIGHT -> COMPLETED -> FREE
                           \\-> ABANDONED -> FREE        (closed before the platform let go)

A lazy pipeline always finds SLOT_SHARE buffers of one whole frame each, whatever others hold.
Larger ones, of slot_size, come out of the pool's budget, and only while more is sent than leaves at
once; where there is none it goes on with its share.

A slice of a large message has a slot of its own, behind all frames before it: the header stands in
the buffer, and the payload, which is referred to, follows.

Slots are taken round-robin and reported in that order; the platform may complete them in any order.
Invariant: the slots that are not FREE lie next to each other from the head on, and pending counts
them; an accepted message is in exactly one of them until it is reported. Never: blocks, moves
bytes, reorders, or leaves a gap in the sequence after a refusal.
"""

from __future__ import annotations

import struct

from peertalk import errors
from peertalk._core.reference.crc import crc16
from peertalk._core.reference.pool import Buffer, BufferPool, PoolDoor
from peertalk._core.reference.wide import wide_header
from peertalk._core.values import DATA, DISCONNECT, NO_DELAY
from peertalk._numbers import (
    ERR_INVALID_PARAM,
    ERR_MESSAGE_TOO_LARGE,
    ERR_NO_MEMORY,
    ERR_NOT_INITIALIZED,
    ERR_WOULD_BLOCK,
    FRAME_MAX_PAYLOAD,
    FRAME_OFFER,
    FRAME_OVERHEAD,
    FRAME_REFUSE,
    OK,
    PIPELINE_MAX_DEPTH,
    POSIX_PIPELINE_DEPTH,
    POSIX_SLOT_SIZE,
    PROTOCOL_VERSION,
    SLOT_ABANDONED,
    SLOT_COMPLETED,
    SLOT_FILLING,
    SLOT_FREE,
    SLOT_IN_FLIGHT,
    SLOT_SHARE,
    WIDE_HEADER_SIZE,
    WIDE_MAX_PAYLOAD,
)

_HEADER = struct.Struct("!4sBBBBH")
_TRAILER = struct.Struct("!H")
_FIELD_MAX = 2**32 - 1
_NOTHING = memoryview(b"")


class Slot:
    """One write: its buffer, how much of it is frames, the slice that follows, and how much of both
    the platform has taken."""

    __slots__ = (
        "buffer",
        "buffer_size",
        "message_count",
        "message_len",
        "no_delay",
        "payload",
        "result",
        "sent_len",
        "state",
    )

    def __init__(self) -> None:
        self.buffer: Buffer | None = None
        self.buffer_size = 0
        self.state = SLOT_FREE
        self.empty()

    def empty(self) -> None:
        """Forget the frames; the buffer stays."""
        self.message_count = 0
        self.message_len = 0
        self.sent_len = 0
        self.result = OK
        self.no_delay = False
        self.payload = _NOTHING  # of a slice, behind its header

    @property
    def whole_len(self) -> int:
        """Bytes of the write."""
        return self.message_len + len(self.payload)

    @property
    def is_sealed(self) -> bool:
        """Whether nothing more may be packed in."""
        return self.no_delay or len(self.payload) != 0

    def unsent(self) -> list[memoryview]:
        """The bytes that the platform has not taken yet, in the one or two pieces where they
        lie."""
        assert self.buffer is not None
        pieces = []
        if self.sent_len < self.message_len:
            pieces.append(self.buffer.view[self.sent_len : self.message_len])
        if self.payload:
            pieces.append(self.payload[max(0, self.sent_len - self.message_len) :])
        return pieces


class SendPipeline:
    """The sending half of a link, sans-I/O.

    Args:
        depth: slots, 1 to 64; None: 4.
        slot_size: bytes of a slot, 12 to 65,535 and at most the pool's largest class; None: 65,520.
        lazy: borrow a slot's buffer at first use and return it when reported; False: borrow all
            now.
        packing: small frames share a slot.
        pool: lends the buffers; None: one of its own.

    Raises:
        InvalidArgument: depth or slot_size out of its bounds.
        OutOfMemory: not lazy, and the pool refused a buffer; those borrowed have been given back.
    """

    def __init__(
        self,
        depth: int | None = None,
        slot_size: int | None = None,
        lazy: bool = True,
        packing: bool = True,
        pool: BufferPool | PoolDoor | None = None,
    ) -> None:
        depth, slot_size = _shape(depth, slot_size)
        self._own_pool: BufferPool | None = None
        if pool is None:
            pool = self._own_pool = BufferPool([(slot_size, depth)])
        self._pool = pool
        if slot_size > self._pool.largest:
            raise errors.InvalidArgument(
                f"slot_size of {slot_size} bytes: the pool's largest class has {self._pool.largest}"
            )
        self.slots = [Slot() for _ in range(depth)]
        self.slot_size = slot_size
        self.small_size = min(slot_size, FRAME_OVERHEAD + FRAME_MAX_PAYLOAD) if lazy else slot_size
        self.share_count = 0
        self.more = False
        """The caller's: more is being sent than a small slot holds."""
        self.is_still = False
        """The caller's: what is in flight does not move, and nothing more is borrowed than the
        share."""
        self.depth = depth
        self.lazy = lazy
        self.packing = packing
        self.open = True
        self._head = 0
        self._next_slot = 0
        self.pending = 0
        self.high_water = 0
        self.send_seq = 0
        self.accepted = 0
        self.reported = 0
        self.frames = 0
        self.payload_bytes = 0
        self.refusals = 0
        if not lazy:
            try:
                for slot in self.slots:
                    self._lend(slot)
            except errors.OutOfMemory:
                for slot in self.slots:
                    self._give_back(slot)
                raise

    @property
    def available(self) -> int:
        """Free slots now."""
        return self.depth - self.pending

    def slot_state(self, index: int) -> int:
        """State of a slot: 0 free, 1 filling, 2 in flight, 3 completed, 4 abandoned."""
        return self.slots[index].state

    def slot_bytes(self, index: int) -> bytes:
        """The frames in a slot, as they go on the wire."""
        slot = self.slots[index]
        if slot.buffer is None:
            return b""
        return bytes(slot.buffer.view[: slot.message_len]) + bytes(slot.payload)

    @property
    def referred(self) -> int:
        """Payload bytes of slices in slots that are not free."""
        return sum(len(slot.payload) for slot in self.slots)

    @property
    def slice_max(self) -> int:
        """Longest slice of one frame, in bytes; 0: a slot has no room for the header."""
        return WIDE_MAX_PAYLOAD if self.small_size >= WIDE_HEADER_SIZE else 0

    def _lend(self, slot: Slot, is_slice: bool = False) -> None:
        """Make sure that a slot has a buffer: one of this link's share, unless it is in bulk and
        the budget has a larger one. is_slice: a small one, for the header alone."""
        if slot.buffer is not None:
            return
        last = self.slots[self._next_slot - 1]
        filled = self.pending > 0 and last.message_len > self.small_size // 2
        bulk = self.packing and (self.more or filled) and not is_slice
        size = self.slot_size if bulk else self.small_size
        has_share = self.lazy and self.share_count < SLOT_SHARE
        if not self.is_still and (not has_share or size > self.small_size):
            try:
                slot.buffer = self._pool.acquire(size)
            except errors.OutOfMemory:
                if not has_share:
                    raise
        if slot.buffer is None and has_share:
            size = self.small_size
            slot.buffer = self._pool.acquire(size, share=True)
            self.share_count += 1
        if slot.buffer is None:
            raise errors.OutOfMemory("nothing leaves, and the link has its share")
        slot.buffer_size = size

    def _give_back(self, slot: Slot) -> None:
        """Return the buffer to its pool, wiped as far as it was used."""
        if slot.buffer is not None:
            self.share_count -= slot.buffer.is_share
            slot.buffer.release(slot.message_len)
            slot.buffer = None

    def _newest_filling(self) -> Slot | None:
        slot = self.slots[self._next_slot - 1]
        return slot if self.pending and slot.state == SLOT_FILLING else None

    def send(self, type: int, payload: bytes | bytearray | memoryview, flags: int = 0) -> int:
        """Put one frame on its way: copy the payload into the newest filling slot that has room,
        else into the next free one.

        DATA and DISCONNECT take the sequence number and count it; other types carry 0. NO_DELAY
        seals the slot and stays local.

        Returns:
            OK, or with nothing changed ERR_WOULD_BLOCK (every slot is taken, or every buffer that
            this link may have now), ERR_NO_MEMORY (no slot is taken, and there is no memory for
            one), ERR_MESSAGE_TOO_LARGE (the frame does not fit a slot), ERR_INVALID_PARAM (type is
            not 1 to 7), ERR_NOT_INITIALIZED (closed).
        """
        if not self.open:
            return ERR_NOT_INITIALIZED
        if not 1 <= type <= 7 or not 0 <= flags <= 255:
            return ERR_INVALID_PARAM
        payload_len = len(payload)
        frame_len = payload_len + FRAME_OVERHEAD
        if frame_len > self.small_size:
            return ERR_MESSAGE_TOO_LARGE

        slot = self._slot_for(frame_len)
        if slot is None:
            return self._refuse()

        assert slot.buffer is not None
        sequence = 0
        if type == DATA or type == DISCONNECT:
            sequence = self.send_seq
            self.send_seq = (sequence + 1) & 0xFF
        view = slot.buffer.view
        end = slot.message_len + frame_len
        covered = (
            _HEADER.pack(b"PTMG", PROTOCOL_VERSION, type, flags & ~NO_DELAY, sequence, payload_len)
            + payload
        )
        view[slot.message_len : end - 2] = covered
        _TRAILER.pack_into(view, end - 2, crc16(covered))
        slot.message_len = end
        slot.no_delay = slot.no_delay or flags & NO_DELAY != 0
        if type == DATA:
            slot.message_count += 1
            self.accepted += 1
        self.frames += 1
        self.payload_bytes += payload_len
        return OK

    def send_wide(self, type: int, id: int, total: int = 0, reason: int = 0) -> int:
        """Put an OFFER, GRANT or REFUSE on its way, packed like a small frame, without a sequence
        number. Returns what send() returns; ERR_INVALID_PARAM: another type, or a field that does
        not fit its 32 or (reason) 8 bits."""
        if not self.open:
            return ERR_NOT_INITIALIZED
        if not FRAME_OFFER <= type <= FRAME_REFUSE or not (
            0 <= id <= _FIELD_MAX and 0 <= total <= _FIELD_MAX and 0 <= reason <= 255
        ):
            return ERR_INVALID_PARAM
        if self.small_size < WIDE_HEADER_SIZE:
            return ERR_MESSAGE_TOO_LARGE
        slot = self._slot_for(WIDE_HEADER_SIZE)
        if slot is None:
            return self._refuse()
        self._put_header(slot, wide_header(type, id, 0, total, b"", reason))
        return OK

    def send_slice(
        self, payload: bytes, id: int, offset: int, size: int, no_delay: bool = False
    ) -> int:
        """Put size bytes of a message, from offset on, on their way in a slot of their own. They
        are referred to until their slot is reported; the slice that ends the message counts as the
        message.

        Returns:
            What send() returns; ERR_MESSAGE_TOO_LARGE: size is above slice_max;
            ERR_INVALID_PARAM: no slice, or id 0, which is a message in one frame, with less than
            all of it.
        """
        if not self.open:
            return ERR_NOT_INITIALIZED
        if size > self.slice_max:
            return ERR_MESSAGE_TOO_LARGE
        total = len(payload)
        if (
            not (0 <= id <= _FIELD_MAX and total <= _FIELD_MAX)
            or not (offset >= 0 and 1 <= size <= total - offset)
            or (id == 0 and size != total)
        ):
            return ERR_INVALID_PARAM
        slot = self._begin_slot(is_slice=True)
        if slot is None:
            return self._refuse()
        piece = memoryview(payload)[offset : offset + size]
        self._put_header(slot, wide_header(DATA, id, offset, total, piece))
        slot.payload = piece
        slot.no_delay = no_delay
        self.payload_bytes += size
        if offset + size == total:
            slot.message_count += 1
            self.accepted += 1
        return OK

    def _put_header(self, slot: Slot, header: bytes) -> None:
        assert slot.buffer is not None
        slot.buffer.view[slot.message_len : slot.message_len + len(header)] = header
        slot.message_len += len(header)
        self.frames += 1

    def _slot_for(self, frame_len: int) -> Slot | None:
        """The newest filling slot if it has room for so many bytes, else the next free one."""
        slot = self._newest_filling() if self.packing else None
        if slot is None or slot.is_sealed or slot.message_len + frame_len > slot.buffer_size:
            slot = self._begin_slot()
        return slot

    def _refuse(self) -> int:
        self.refusals += 1
        return ERR_WOULD_BLOCK if self.pending else ERR_NO_MEMORY

    def _begin_slot(self, is_slice: bool = False) -> Slot | None:
        """The next free slot, to be filled; None: every slot is taken, or there is no memory."""
        if self.pending == self.depth:
            return None
        slot = self.slots[self._next_slot]
        try:
            self._lend(slot, is_slice)
        except errors.OutOfMemory:
            return None
        slot.empty()
        slot.state = SLOT_FILLING
        self._next_slot = (self._next_slot + 1) % self.depth
        self.pending += 1
        self.high_water = max(self.high_water, self.pending)
        return slot

    def is_ripe(self) -> bool:
        """Whether the newest filling slot should leave now: it is full, carries a no-delay frame or
        a slice, or packing is off."""
        slot = self._newest_filling()
        return slot is not None and (
            not self.packing
            or slot.is_sealed
            or slot.message_len + FRAME_OVERHEAD > slot.buffer_size
        )

    def launch(self) -> int:
        """Hand the oldest filling slot to the platform. Returns its index, or -1 when there is
        none."""
        for offset in range(self.pending):
            index = (self._head + offset) % self.depth
            if self.slots[index].state == SLOT_FILLING:
                self.slots[index].state = SLOT_IN_FLIGHT
                return index
        return -1

    def complete(self, index: int, result: int = 0) -> None:
        """The platform is done with a slot: 0, or why not.

        Raises:
            InvalidState: the slot is not in flight.
        """
        slot = self.slots[index]
        if slot.state == SLOT_IN_FLIGHT:
            slot.result = result
            slot.state = SLOT_COMPLETED
        elif slot.state == SLOT_ABANDONED:
            self._give_back(slot)
            slot.empty()
            slot.state = SLOT_FREE
            self.pending -= 1
        else:
            raise errors.InvalidState(f"slot {index} is not in flight: nothing to complete")

    def report(self) -> tuple[int, int] | None:
        """Free the oldest slot if it is completed.

        Returns:
            (messages it carried, its result), or None while it is not done.
        """
        slot = self.slots[self._head]
        if self.pending == 0 or slot.state != SLOT_COMPLETED:
            return None
        told = (slot.message_count, slot.result)
        self.reported += slot.message_count
        if self.lazy:
            self._give_back(slot)
        slot.empty()
        slot.state = SLOT_FREE
        self._head = (self._head + 1) % self.depth
        self.pending -= 1
        return told

    def close(self) -> int:
        """Give every buffer back but those in flight, which become abandoned until they are
        completed.

        Returns:
            The number of abandoned slots. May be called again.
        """
        self.open = False
        for slot in self.slots:
            if slot.state == SLOT_IN_FLIGHT:
                slot.state = SLOT_ABANDONED
            elif slot.state != SLOT_ABANDONED:
                self._give_back(slot)
                slot.empty()
                slot.state = SLOT_FREE
        self.pending = sum(slot.state == SLOT_ABANDONED for slot in self.slots)
        if self._own_pool is not None and self.pending == 0:
            self._own_pool.close()
        return self.pending


def _shape(depth: int | None, slot_size: int | None) -> tuple[int, int]:
    """Depth and slot size with their defaults, held against their bounds."""
    depth = POSIX_PIPELINE_DEPTH if depth is None else depth
    slot_size = POSIX_SLOT_SIZE if slot_size is None else slot_size
    if not 1 <= depth <= PIPELINE_MAX_DEPTH:
        raise errors.InvalidArgument(
            f"depth of {depth} slots: a link has 1 to {PIPELINE_MAX_DEPTH}"
        )
    if not FRAME_OVERHEAD <= slot_size <= 65_535:
        raise errors.InvalidArgument(
            f"slot_size of {slot_size} bytes: a slot has {FRAME_OVERHEAD} to 65,535"
        )
    return depth, slot_size
