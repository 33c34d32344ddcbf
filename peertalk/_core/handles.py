"""One owner class for each sans-I/O noun of the C core: ingest, reassembly, pipeline, wheel.
pool.py, link.py, loop.py and simulator.py have the others.

A handle owns the C memory behind it, keeps what that memory points at alive, and turns result codes
into values or exceptions.

Invariant, of every handle: C memory is freed after everything that points into it. Never: a
callback from C, a pointer made anew on a hot path.
"""

from __future__ import annotations

from typing import Any

from peertalk import errors
from peertalk._core.binding import Binding, Data
from peertalk._core.pool import BufferPool
from peertalk._core.values import Frame

SLOT_BYTES_MAX = 65_535


class Ingest:
    """Reads message frames from a stream, sans-I/O: full ones, and compact ones between them, whose
    sequence reads 0.

    Args:
        max_payload: longest payload in bytes that is taken; a longer one is a fault, judged on the
            header. None: the core's limit.
        pool: lends staging buffers; its largest class must hold a whole frame. None: a pool of one
            such buffer.
    """

    def __init__(
        self, binding: Binding, max_payload: int | None = None, pool: BufferPool | None = None
    ) -> None:
        self._binding = binding
        self._ffi = ffi = binding.ffi
        self._lib = lib = binding.lib
        size = (
            lib.PT_FRAME_MAX_PAYLOAD
            if max_payload is None
            else binding.limited("max_payload", max_payload, 0xFFFF)
        )
        self._whole = size + lib.PT_FRAME_OVERHEAD
        self._pool = BufferPool(binding, [(self._whole, 1)]) if pool is None else pool
        self._ingest = ffi.new("pt_ingest *")
        self._consumed = ffi.new("size_t *")
        self._sink = ffi.new("pt_sink *")
        self._plain = ffi.new("pt_plain_sink *")
        self._room = -1
        lib.pt_ingest_init(self._ingest, lib.pt_message_format(0), self._pool._door, size, 0)

    def _make_room(self, data_len: int) -> None:
        """Memory for all that data_len bytes and a cut frame before them can bring."""
        if data_len > self._room:
            self._room = data_len
            capacity = data_len // self._lib.PT_COMPACT_HEADER_SIZE + 2
            self._events = self._ffi.new("pt_event[]", capacity)
            self._buffer = self._ffi.new("uint8_t[]", data_len + self._whole)
            self._plain.events = self._events
            self._plain.capacity = capacity
            self._plain.buffer = self._buffer
            self._plain.buffer_size = len(self._buffer)
        self._lib.pt_plain_sink_init(self._plain, self._sink, 2**32 - 1)

    def receive(self, data: Data) -> list[Frame]:
        """Take bytes of the stream; consumed says how many were taken.

        Returns:
            The frames that became whole. When the pool has no buffer for a cut frame, consumed is
            where it starts in data (0 when its header was cut by an earlier call); give the same
            bytes again from there.

        Raises:
            ProtocolError: a frame is bad; the whole frames before it are in .frames, consumed is
                where it starts in data (0 when it began in an earlier call), and the machine takes
                no more.
            InvalidState: after a fault, or after close().
        """
        view = self._binding.flat(data)
        self._make_room(len(view))
        code = self._lib.pt_ingest_feed(self._ingest, view, len(view), self._sink, self._consumed)
        if code == self._lib.PT_ERR_INVALID_STATE:
            raise errors.InvalidState(
                "the ingest takes no more bytes: it met a bad frame or was closed"
            )
        payloads = self._ffi.buffer(self._buffer, self._plain.buffer_len)[:]
        frames = [
            Frame(type, flags, sequence, payloads[offset : offset + size])
            for offset, _, _, _, _, _, size, type, flags, sequence in self._binding.frames_in(
                self._plain
            )
        ]
        if code != 0 and code != self._lib.PT_ERR_BACKPRESSURE:
            fault = self._binding.bad(code, "a frame in a stream", len(view))
            fault.frames = frames
            raise fault
        return frames

    @property
    def consumed(self) -> int:
        """Bytes of the last receive() that were taken."""
        return int(self._consumed[0])

    @property
    def partial_len(self) -> int:
        """Bytes of an unfinished frame that are held; 0 between frames."""
        return int(self._lib.pt_ingest_partial_len(self._ingest))

    @property
    def state(self) -> int:
        """0 takes no more, 1 waits for a header, 2 waits for a payload."""
        return int(self._ingest.state)

    def close(self) -> None:
        """Give staging memory back; idempotent."""
        self._lib.pt_ingest_cleanup(self._ingest)
        self._pool._settle()

    def __del__(self) -> None:
        if hasattr(self, "_plain"):
            self.close()


class Reassembly:
    """Puts the fragments of one link together, sans-I/O: one message at a time, pieces strictly in
    order.

    Args:
        limit: longest message in bytes that is taken, 0 to 65,535.
        pool: lends the memory of a message. None: a pool of one buffer of that size.

    Raises:
        InvalidArgument: limit is not within these.
    """

    def __init__(self, binding: Binding, limit: int, pool: BufferPool | None = None) -> None:
        self._binding = binding
        self._lib = binding.lib
        size = binding.limited("limit of a reassembly", limit, 0xFFFF)
        self._pool = BufferPool(binding, [(max(size, 1), 1)]) if pool is None else pool
        self._message = binding.ffi.new("uint8_t **")
        self._message_len = binding.ffi.new("uint16_t *")
        self._reassembly = binding.ffi.new("pt_reassembly *")
        self._lib.pt_reassembly_init(self._reassembly, self._pool._door, size)

    def receive(self, payload: Data) -> bytes | None:
        """Take the payload of one DATA frame with the fragment flag.

        Returns:
            The message that it completes, or None.

        Raises:
            ProtocolError: the fragment is not as it must be; its code says how: ERR_TRUNCATED too
                short, or the last one of a message that is not whole; ERR_INVALID_PARAM out of
                order, of another message, or beyond its total; ERR_MESSAGE_TOO_LARGE of a message
                above the limit; ERR_INVALID_STATE no message has begun.
            OutOfMemory: the pool has no memory for the message that begins, which is lost.
        """
        binding, lib = self._binding, self._lib
        view = binding.flat(payload)
        code = lib.pt_reassembly_feed(
            self._reassembly, view, len(view), self._message, self._message_len
        )
        if code == lib.PT_REASSEMBLY_COMPLETE:
            size = self._message_len[0]
            whole = bytes(binding.ffi.buffer(self._message[0], size)) if size else b""
            lib.pt_reassembly_cleanup(self._reassembly)
            return whole
        if code == lib.PT_ERR_NO_MEMORY:
            raise errors.OutOfMemory("a message in fragments: the pool has no memory for it")
        if code < 0:
            raise binding.bad(code, "a fragment", len(view))
        return None

    @property
    def state(self) -> int:
        """0 idle, 1 a message has begun."""
        return int(self._reassembly.state)

    @property
    def partial_len(self) -> int:
        """Bytes of an unfinished message that are held; 0 when none has begun."""
        return int(self._reassembly.received_len)

    def close(self) -> None:
        """Give memory back and forget an unfinished message; idempotent."""
        self._lib.pt_reassembly_cleanup(self._reassembly)
        self._pool._settle()

    def __del__(self) -> None:
        if hasattr(self, "_reassembly"):
            self.close()


class SendPipeline:
    """The sending half of a link, sans-I/O.

    Args:
        depth: slots, 1 to 64; None: the core's number.
        slot_size: bytes of a slot, 12 to 65,535 and at most the pool's largest class; None: the
            core's size for sockets.
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
        binding: Binding,
        depth: int | None = None,
        slot_size: int | None = None,
        lazy: bool = True,
        packing: bool = True,
        pool: BufferPool | None = None,
    ) -> None:
        self._binding = binding
        self._ffi = ffi = binding.ffi
        self._lib = lib = binding.lib
        depth, slot_size = slot_shape(lib, depth, slot_size)
        self._own_pool = pool is None
        self._pool = BufferPool(binding, [(slot_size, depth)]) if pool is None else pool
        if slot_size > self._pool.largest:
            raise errors.InvalidArgument(
                f"slot_size of {slot_size:,} bytes: the pool's largest class has "
                f"{self._pool.largest:,}"
            )
        self._slots = ffi.new("pt_send_slot[]", depth)
        self._pipeline = ffi.new("pt_send_pipeline *")
        self._address = int(ffi.cast("uintptr_t", self._pipeline))
        self._count = ffi.new("uint32_t *")
        self._result = ffi.new("int *")
        code = lib.pt_pipeline_init(
            self._pipeline, self._slots, depth, slot_size, self._pool._door, lazy, packing
        )
        if code != 0:
            raise binding.fault(code, f"a pipeline of {depth} slots of {slot_size:,} bytes")

    def send(self, type: int, payload: Data, flags: int = 0) -> int:
        """Put one frame on its way. Returns OK, or with nothing changed ERR_WOULD_BLOCK (every slot
        is taken), ERR_NO_MEMORY (no buffer), ERR_MESSAGE_TOO_LARGE (the frame does not fit a slot),
        ERR_INVALID_PARAM (type is not 1 to 7, flags no byte), ERR_NOT_INITIALIZED (closed)."""
        code = self._binding.put_frame(self._address, type, payload, flags)
        if code is not None:
            return code
        view = self._binding.flat(payload)
        if not 0 <= type <= 0xFF or not 0 <= flags <= 0xFF:
            type = flags = 0
        return int(self._lib.pt_pipeline_send(self._pipeline, type, flags, view, len(view)))

    @property
    def more(self) -> bool:
        """Whether more is being sent than a small slot holds, so that a larger one is worth its
        price from the first frame on. The caller says that."""
        return bool(self._pipeline.more)

    @more.setter
    def more(self, value: bool) -> None:
        self._pipeline.more = value

    def launch(self) -> int:
        """Hand the oldest filling slot to the platform. Returns its index, or -1 when there is
        none."""
        return int(self._lib.pt_pipeline_launch(self._pipeline))

    def slot_bytes(self, index: int) -> bytes:
        """The frames in a slot, as they go on the wire."""
        slot = self._slots[index]
        return (
            b""
            if slot.buffer == self._ffi.NULL or slot.state == self._lib.PT_SLOT_FREE
            else bytes(self._ffi.buffer(slot.buffer, slot.message_len))
        )

    def slot_state(self, index: int) -> int:
        """State of a slot: 0 free, 1 filling, 2 in flight, 3 completed, 4 abandoned."""
        return int(self._slots[index].state)

    def complete(self, index: int, result: int = 0) -> None:
        """The platform is done with a slot: 0, or why not.

        Raises:
            InvalidState: the slot is not in flight.
        """
        if self._slots[index].state not in (
            self._lib.PT_SLOT_IN_FLIGHT,
            self._lib.PT_SLOT_ABANDONED,
        ):
            raise errors.InvalidState(f"slot {index} is not in flight: nothing to complete")
        self._lib.pt_pipeline_complete(self._pipeline, index, result)
        self._pool._settle()

    def report(self) -> tuple[int, int] | None:
        """Free the oldest slot if it is completed. Returns (messages it carried, its result), or
        None while it is not done."""
        if not self._lib.pt_pipeline_report(self._pipeline, self._count, self._result):
            return None
        return self._count[0], self._result[0]

    def is_ripe(self) -> bool:
        """Whether the newest filling slot should leave now: it is full, carries a no-delay frame,
        or packing is off."""
        return bool(self._pipeline.ripe)

    @property
    def available(self) -> int:
        """Free slots now."""
        return int(self._lib.pt_pipeline_available(self._pipeline))

    @property
    def pending(self) -> int:
        """Slots that are not free."""
        return int(self._pipeline.pending_count)

    @property
    def send_seq(self) -> int:
        """Sequence of the next DATA frame."""
        return int(self._pipeline.send_seq)

    @property
    def accepted(self) -> int:
        """Messages (DATA frames) put into slots."""
        return int(self._pipeline.accepted)

    @property
    def reported(self) -> int:
        """Messages whose slot was reported."""
        return int(self._pipeline.reported)

    def close(self) -> int:
        """Give every buffer back but those in flight, which become abandoned until they are
        completed. Returns their number; may be called again."""
        abandoned = int(self._lib.pt_pipeline_cleanup(self._pipeline))
        if self._own_pool and abandoned == 0:
            self._pool.close()
        self._pool._settle()
        return abandoned

    def __del__(self) -> None:
        # Nothing moves these bytes but the owner of this handle, so nobody holds a slot any more.
        if hasattr(self, "_pipeline") and self.close():
            for index in range(len(self._slots)):
                if self._slots[index].state == self._lib.PT_SLOT_ABANDONED:
                    self._lib.pt_pipeline_complete(self._pipeline, index, 0)


def slot_shape(lib: Any, depth: int | None, slot_size: int | None) -> tuple[int, int]:
    """Depth and slot size with their defaults, held against their bounds."""
    depth = lib.PT_POSIX_PIPELINE_DEPTH if depth is None else depth
    slot_size = lib.PT_POSIX_SLOT_SIZE if slot_size is None else slot_size
    if not 1 <= depth <= lib.PT_PIPELINE_MAX_DEPTH:
        raise errors.InvalidArgument(
            f"depth of {depth} slots: a link has 1 to {lib.PT_PIPELINE_MAX_DEPTH}"
        )
    if not lib.PT_FRAME_OVERHEAD <= slot_size <= SLOT_BYTES_MAX:
        raise errors.InvalidArgument(
            f"slot_size of {slot_size} bytes: a slot has {lib.PT_FRAME_OVERHEAD} to "
            f"{SLOT_BYTES_MAX:,}"
        )
    return depth, slot_size


class TimerWheel:
    """Deadlines under integer keys. now: the tick at the start; ticks count modulo 2^32."""

    def __init__(self, binding: Binding, now: int = 0) -> None:
        self._ffi = binding.ffi
        self._lib = binding.lib
        self._wheel = self._ffi.new("pt_wheel *")
        self._timers: dict[int, Any] = {}
        self._keys: dict[int, int] = {}
        self._lib.pt_wheel_init(self._wheel, now & 0xFFFFFFFF)

    def arm(self, key: int, deadline: int) -> None:
        """Expire at deadline, a tick less than 2^31 ahead; one that has passed expires at the next
        advance(). An armed key is moved."""
        timer = self._timers.get(key)
        if timer is None:
            timer = self._timers[key] = self._ffi.new("pt_timer *")
            self._keys[int(self._ffi.cast("uintptr_t", timer))] = key
        self._lib.pt_wheel_arm(self._wheel, timer, deadline & 0xFFFFFFFF)

    def _drop(self, key: int) -> None:
        del self._keys[int(self._ffi.cast("uintptr_t", self._timers.pop(key)))]

    def cancel(self, key: int) -> None:
        """Never expire. Nothing happens when the key is not armed."""
        if key in self._timers:
            self._lib.pt_wheel_cancel(self._wheel, self._timers[key])
            self._drop(key)

    def advance(self, now: int) -> None:
        """Move time forward to now; an earlier now changes nothing."""
        self._lib.pt_wheel_advance(self._wheel, now & 0xFFFFFFFF)

    def expire(self) -> int | None:
        """Take one key whose deadline has come, earliest first; None when none is due."""
        timer = self._lib.pt_wheel_expire(self._wheel)
        if timer == self._ffi.NULL:
            return None
        key = self._keys[int(self._ffi.cast("uintptr_t", timer))]
        self._drop(key)
        return key

    def next(self) -> int | None:
        """Ticks from now until advance() has work: 0 when a key is due; None when none is armed.
        Never later than the next deadline."""
        ticks = int(self._lib.pt_wheel_next(self._wheel))
        return None if ticks == 0xFFFFFFFF else ticks

    @property
    def armed(self) -> int:
        """Keys that are armed, due ones included."""
        return int(self._wheel.armed_count)
