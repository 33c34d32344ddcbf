"""One owner class for each noun of the C core, and the only user of ffi and lib.

A handle owns the C memory behind it, keeps what that memory points at alive, and turns result codes into values or exceptions. What is
called once a message or once a turn comes from the border's native functions where this is CPython, and from plain cffi calls elsewhere
(native=False, or PEERTALK_NATIVE=0 in the environment); both give the same tuples.

Invariant: C memory is freed after everything that points into it. Never: a callback from C, a pointer made anew on a hot path.
"""

from __future__ import annotations

import importlib
import math
import os
import struct
import threading
import types
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, TypeAlias, cast

from peertalk import errors
from peertalk._core.values import (
    BATCH,
    BATCHED,
    CLOSED,
    DATA,
    FRAGMENT,
    FRAME,
    READ,
    READY,
    SENT,
    WRITE,
    Capability,
    CompactHeader,
    Datagram,
    Discovery,
    FragmentHeader,
    Frame,
    Header,
    LinkCounts,
    LinkStatistics,
    LoopStatistics,
    PoolStatistics,
    TraceRecord,
)

Data: TypeAlias = bytes | bytearray | memoryview
Event: TypeAlias = tuple[int, int, Any, Any]

EVENT_CAPACITY = 256
"""Events that one turn reports beside its frames; at least 4 for each ready source."""
PLAIN_ROOM = 65_536
"""Stream bytes of one turn on the plain cffi way, which copies them once more."""
POLL_SOURCES = 4_096
"""Links and watches that poll(2) waits for at most."""
POOL_CAPACITY = 8_192
"""Buffers of one class that a loop's pool may hold; the byte budget is the bound that matters."""
MAX_DELAY_MS = 2**31 - 10_000
"""The wheel's reach, 24.8 days, less the time since the last turn."""
SLOT_BYTES_MAX = 65_535
CLASSIC = ("mactcp", "opentransport", "mactcp_sync", "opentransport_sync")
"""Platforms that live on a simulated network."""
PLATFORMS = ("posix", "posix_plain", *CLASSIC)
PRESETS = ("none", "lan", "classic")
TRACE_KINDS = (
    "", "send", "arrive", "deliver", "ack", "lost", "cut", "duplicate", "reorder", "damage", "retransmit", "give_up", "reset", "open",
    "accept", "refuse", "close", "datagram", "overflow", "window", "note",
)  # fmt: skip
"""Presets of a simulated network, and the kinds of its decisions, by their numbers in pt_sim.h."""

_PLAIN_FLAGS = FRAGMENT | BATCHED
_EVENT = struct.Struct("=QIIiiIIBBB5x")
"""pt_event: offset, kind, tag, code, system_error, count, len, type, flags, sequence."""


def _no_answer(*_: object) -> None:
    """In place of a native function that is not there."""


class Binding:
    """One compiled core: its functions as Python wants them, and what the handles need of it.

    Args:
        name: "standard" or "lowmem".

    Raises:
        ImportError: it was not built.
    """

    def __init__(self, name: str) -> None:
        module = importlib.import_module(f"peertalk._core._{name}")
        self.name = name
        self.ffi = ffi = module.ffi
        self.lib = lib = module.lib
        self.crc_name: str = ffi.string(lib.pt_crc16_name()).decode()
        self.assertions = bool(lib.PT_ASSERTIONS)
        self.limits = (
            lib.PT_FRAME_MAX_PAYLOAD, lib.PT_POSIX_SLOT_SIZE, lib.PT_POSIX_PIPELINE_DEPTH, lib.PT_RECEIVE_BUFFER_SIZE, lib.PT_MAX_PEERS,
            lib.PT_MESSAGE_MAX_PAYLOAD, lib.PT_SLOT_BUFFER_SIZE,
        )  # fmt: skip
        self.border = types.ModuleType(f"peertalk._core.{name}_border")
        self.native = lib.pt_border_attach(ffi.cast("void *", id(self.border))) == 0
        quick = self.border if self.native and os.environ.get("PEERTALK_NATIVE") != "0" else None
        self._crc16 = getattr(quick, "crc16", _no_answer)
        self._encode_frame = getattr(quick, "encode_frame", _no_answer)
        self._decode_frame = getattr(quick, "decode_frame", _no_answer)
        self.put_frame = getattr(quick, "put_frame", _no_answer)
        self.BufferPool = partial(BufferPool, self)
        self.Ingest = partial(Ingest, self)
        self.Reassembly = partial(Reassembly, self)
        self.SendPipeline = partial(SendPipeline, self)
        self.TimerWheel = partial(TimerWheel, self)
        self.Loop = partial(Loop, self)
        self.Simulator = partial(Simulator, self)
        assert ffi.sizeof("pt_event") == _EVENT.size
        assert ffi.offsetof("pt_event", "sequence") == _EVENT.size - 6

    def platform(self, name: str) -> Any:
        """The table of a platform."""
        tables = dict(zip(CLASSIC, ("pt_mactcp_ops", "pt_ot_ops", "pt_mactcp_sync_ops", "pt_ot_sync_ops"), strict=True))
        return getattr(self.lib, tables.get(name, f"pt_{name}_ops"))()

    def platforms(self) -> dict[str, dict[str, int]]:
        """What each world has: 1 for each entry that is filled in, ticks_per_second, and whether it is simulated."""
        entries = ("tcp_send", "tcp_send_async", "poll_send_completions", "wait_send_completions", "send_slots_available")
        worlds = {name: self.platform(name) for name in PLATFORMS}
        return {
            name: {
                **{entry: int(getattr(ops, entry) != self.ffi.NULL) for entry in entries},
                "ticks_per_second": ops.ticks_per_second, "simulated": int(name in CLASSIC),
            }
            for name, ops in worlds.items()
        }  # fmt: skip

    # Codes

    def strerror(self, code: int) -> str:
        """A short English text for a result code."""
        return str(self.ffi.string(self.lib.pt_strerror(code)).decode())

    def error_name(self, code: int) -> str:
        """The name of a result code in the C headers, "PT_ERR_UNKNOWN" for a number that is none."""
        return str(self.ffi.string(self.lib.pt_error_name(code)).decode())

    def fault(self, code: int, what: str) -> errors.PeerTalkError:
        """The exception for a call that returned a code."""
        return errors.from_code(code, f"{what}: {self.strerror(code)} ({self.error_name(code)})")

    def bad(self, code: int, what: str, data_len: int) -> errors.ProtocolError:
        """The exception for bytes that a decoder refused."""
        return errors.from_decoder(code, f"{what} of {data_len:,} bytes: {self.strerror(code)} ({self.error_name(code)})")

    def flat(self, data: Data) -> Any:
        """A C view of any contiguous buffer; TypeError for anything else. It must be kept while C reads it."""
        try:
            return self.ffi.from_buffer("uint8_t[]", data)
        except (BufferError, ValueError):
            raise TypeError("a contiguous buffer of bytes is needed") from None

    def limited(self, what: str, value: int, limit: int) -> int:
        """value if it is 0 to limit.

        Raises:
            InvalidArgument: it is not; WrongType when it is no number.
        """
        if not isinstance(value, int):
            raise errors.WrongType(f"{what} is a {type(value).__name__}: give a number from 0 to {limit:,}")
        if not 0 <= value <= limit:
            raise errors.InvalidArgument(f"{what} is {value:,}: it must be 0 to {limit:,}")
        return value

    def kind(self, what: str, value: int, largest: int) -> int:
        """value if it is a type from 1 to largest."""
        if not isinstance(value, int) or not 1 <= value <= largest:
            raise errors.InvalidArgument(f"type of a {what} is {value!r}: it must be 1 to {largest}")
        return value

    # Pure functions. Encoders raise what a wrong call raises, decoders a ProtocolError; see pt_wire.h for the order of judgement.

    def crc16(self, data: Data, start: int = 0) -> int:
        """CRC-16 of data, continued from start (the CRC of the bytes before; 0 for a new one)."""
        crc = self._crc16(data, start)
        if crc is not None:
            return cast(int, crc)
        view = self.flat(data)
        return int(self.lib.pt_crc16(self.limited("CRC start value", start, 0xFFFF), view, len(view)))

    def _frame(self, type: int, flags: int, sequence: int, payload: Any, payload_len: int) -> Any:
        frame = self.ffi.new("pt_frame *")
        frame.type = self.kind("frame", type, 7)
        frame.flags = self.limited("flags of a frame", flags, 0xFF)
        frame.sequence = self.limited("sequence of a frame", sequence, 0xFF)
        frame.payload = payload
        frame.payload_len = payload_len
        return frame

    def _encoded(self, what: str, encode: Callable[..., int], value: Any, size: int) -> bytes:
        """What encode writes into a buffer of size bytes."""
        out = self.ffi.new("uint8_t[]", size)
        count = encode(value, out, size)
        if count < 0:
            raise self.fault(count, what)
        return bytes(self.ffi.buffer(out, count))

    def _decoded(self, what: str, decode: Callable[..., int], type_name: str, view: Any) -> tuple[Any, int]:
        """What decode reads from the view, and its size in bytes."""
        out = self.ffi.new(type_name)
        count = decode(view, len(view), out)
        if count < 0:
            raise self.bad(count, what, len(view))
        return out, count

    def encode_header(self, type: int, flags: int, sequence: int, payload_len: int) -> bytes:
        """A full frame header, 10 bytes. InvalidArgument: type is not 1 to 7, or a field does not fit its 8 or (payload_len) 16 bits."""
        limit = self.limited("payload_len of a frame", payload_len, 0xFFFF)
        return self._encoded("frame header", self.lib.pt_header_encode, self._frame(type, flags, sequence, self.ffi.NULL, limit), 10)

    def decode_header(self, data: Data) -> Header:
        """Read a full header; the payload length is not judged. Truncated, BadMagic, BadVersion, -1 (type), the first that applies."""
        frame, _ = self._decoded("frame header", self.lib.pt_header_decode, "pt_frame *", self.flat(data))
        return Header(frame.type, frame.flags, frame.sequence, frame.payload_len)

    def encode_frame(self, type: int, payload: Data, flags: int = 0, sequence: int = 0) -> bytes:
        """A whole frame: header, payload, CRC over both. InvalidArgument as encode_header; MessageTooLarge: payload over the limit."""
        whole = self._encode_frame(type, payload, flags, sequence)
        if whole is not None:
            return cast(bytes, whole)
        view = self.flat(payload)
        frame = self._frame(type, flags, sequence, view, len(view))
        limit = self.lib.PT_FRAME_MAX_PAYLOAD
        if len(view) > limit:
            raise errors.MessageTooLarge(f"payload of {len(view):,} bytes: the limit is {limit:,} (FRAME_MAX_PAYLOAD)")
        return self._encoded("frame", self.lib.pt_frame_encode, frame, len(view) + self.lib.PT_FRAME_OVERHEAD)

    def decode_frame(self, data: Data) -> Frame:
        """Read a whole frame; bytes behind it are left alone. As decode_header; then -16, Truncated, BadCrc, the first that applies."""
        parts = self._decode_frame(data)
        if parts is not None:
            return Frame._make(parts)
        view = self.flat(data)
        frame, _ = self._decoded("frame", self.lib.pt_frame_decode, "pt_frame *", view)
        return Frame(frame.type, frame.flags, frame.sequence, bytes(self.ffi.buffer(frame.payload, frame.payload_len)))

    def encode_compact(self, type: int, flags: int, payload_len: int) -> bytes:
        """A compact header, 4 bytes; only the low four bits of flags fit. InvalidArgument as encode_header."""
        limit = self.limited("payload_len of a frame", payload_len, 0xFFFF)
        return self._encoded("compact header", self.lib.pt_compact_encode, self._frame(type, flags, 0, self.ffi.NULL, limit), 4)

    def decode_compact(self, data: Data) -> CompactHeader:
        """Read a compact header. Truncated, BadMagic, -1 (type), the first that applies."""
        frame, _ = self._decoded("compact header", self.lib.pt_compact_decode, "pt_frame *", self.flat(data))
        return CompactHeader(frame.type, frame.flags, frame.payload_len)

    def is_compact(self, data: Data) -> bool:
        """Whether the bytes begin like a compact header: 'P', then anything but 'T'. False while there are fewer than two."""
        view = self.flat(data)
        return bool(self.lib.pt_is_compact(view, len(view)))

    def encode_discovery(self, type: int, port: int, name: Data, flags: int = 0, transports: int = 3) -> bytes:
        """A discovery packet, 14 to 45 bytes. InvalidArgument: type is not 1 to 3, name over 31 bytes, or a field out of its bounds."""
        view = self.flat(name)
        packet = self.ffi.new("pt_discovery *")
        packet.type = self.kind("discovery packet", type, 3)
        if len(view) > self.lib.PT_NAME_MAX:
            raise errors.InvalidArgument(f"peer name of {len(view):,} bytes: the limit is {self.lib.PT_NAME_MAX} (NAME_MAX); shorten it")
        packet.flags = self.limited("flags of a discovery packet", flags, 0xFFFF)
        packet.port = self.limited("port of a discovery packet", port, 0xFFFF)
        packet.transports = self.limited("transports of a discovery packet", transports, 0xFF)
        packet.name_len = len(view)
        self.ffi.memmove(packet.name, view, len(view))
        return self._encoded("discovery packet", self.lib.pt_discovery_encode, packet, self.lib.PT_DISCOVERY_MAX_SIZE)

    def decode_discovery(self, data: Data) -> Discovery:
        """Read a discovery packet; what lies behind its CRC is not looked at. Errors in the order of pt_discovery_decode()."""
        packet, size = self._decoded("discovery packet", self.lib.pt_discovery_decode, "pt_discovery *", self.flat(data))
        return Discovery(packet.type, packet.flags, packet.port, packet.transports, bytes(self.ffi.buffer(packet.name, packet.name_len)), size)

    def encode_capability(self, max_message: int, preferred_chunk: int, pressure: int, flags: int) -> bytes:
        """The four TLVs of the original, 15 bytes; values go out as they are. InvalidArgument: one does not fit its 16 or (pressure) 8 bits."""
        capability = self.ffi.new("pt_capability *")
        capability.max_message = self.limited("max_message of a capability", max_message, 0xFFFF)
        capability.preferred_chunk = self.limited("preferred_chunk of a capability", preferred_chunk, 0xFFFF)
        capability.pressure = self.limited("pressure of a capability", pressure, 0xFF)
        capability.flags = self.limited("flags of a capability", flags, 0xFFFF)
        return self._encoded("capability", self.lib.pt_capability_encode, capability, self.lib.PT_CAPABILITY_SIZE)

    def decode_capability(self, data: Data) -> Capability:
        """Read the payload of a CAPABILITY frame: TLVs in any order, what is missing has its default. Truncated: a length runs past the end."""
        capability, _ = self._decoded("capability", self.lib.pt_capability_decode, "pt_capability *", self.flat(data))
        return Capability(capability.max_message, capability.preferred_chunk, capability.pressure, capability.flags)

    def encode_datagram(self, port: int, payload: Data) -> bytes:
        """A UDP message. InvalidArgument: port is not 0 to 65,535. MessageTooLarge: payload has more than 1,392 bytes."""
        view = self.flat(payload)
        datagram = self.ffi.new("pt_datagram *")
        datagram.port = self.limited("port of a datagram", port, 0xFFFF)
        limit = self.lib.PT_DATAGRAM_MAX_PAYLOAD
        if len(view) > limit:
            raise errors.MessageTooLarge(f"datagram of {len(view):,} bytes: the limit is {limit:,} (DATAGRAM_MAX_PAYLOAD)")
        datagram.payload = view
        datagram.payload_len = len(view)
        return self._encoded("datagram", self.lib.pt_datagram_encode, datagram, len(view) + self.lib.PT_DATAGRAM_HEADER_SIZE)

    def decode_datagram(self, data: Data) -> Datagram:
        """Read a UDP message; bytes behind its payload are left alone. Truncated, BadMagic, Truncated, the first that applies."""
        view = self.flat(data)
        datagram, _ = self._decoded("datagram", self.lib.pt_datagram_decode, "pt_datagram *", view)
        return Datagram(datagram.port, bytes(self.ffi.buffer(datagram.payload, datagram.payload_len)))

    def encode_fragment(self, message_id: int, total_len: int, offset: int, flags: int) -> bytes:
        """A fragment header, 8 bytes. InvalidArgument: a field does not fit its 16 or (flags) 8 bits."""
        fragment = self.ffi.new("pt_fragment *")
        fragment.message_id = self.limited("message_id of a fragment", message_id, 0xFFFF)
        fragment.total_len = self.limited("total_len of a fragment", total_len, 0xFFFF)
        fragment.offset = self.limited("offset of a fragment", offset, 0xFFFF)
        fragment.flags = self.limited("flags of a fragment", flags, 0xFF)
        return self._encoded("fragment header", self.lib.pt_fragment_encode, fragment, self.lib.PT_FRAGMENT_HEADER_SIZE)

    def decode_fragment(self, data: Data) -> FragmentHeader:
        """Read the header at the front of a fragment. Truncated: fewer than 8 bytes. What the fields mean together is not judged here."""
        fragment, _ = self._decoded("fragment header", self.lib.pt_fragment_decode, "pt_fragment *", self.flat(data))
        return FragmentHeader(fragment.message_id, fragment.total_len, fragment.offset, fragment.flags)

    def split_batch(self, payload: Data) -> list[bytes]:
        """The entries of a DATA frame with the batch flag, in order. All of it is judged before any of it is believed.

        Raises:
            ProtocolError: Truncated: an entry does not end within the payload.
        """
        view = self.flat(payload)
        count = self.lib.pt_batch_count(view, len(view))
        if count < 0:
            raise self.bad(count, "a batch", len(view))
        offset, entry_len = self.ffi.new("size_t *"), self.ffi.new("uint16_t *")
        entries = []
        for _ in range(count):
            entry = self.lib.pt_batch_next(view, len(view), offset, entry_len)
            entries.append(bytes(self.ffi.buffer(entry, entry_len[0])))
        return entries


class Buffer:
    """A lent buffer. view: writable, size bytes, zero at first; it ends with the release."""

    def __init__(self, pool: BufferPool, pointer: Any) -> None:
        self._pool = pool
        self._pointer = pointer
        self.size: int = pool._lib.pt_pool_buffer_size(pointer)
        self.view = memoryview(pool._ffi.buffer(pointer, self.size))

    def release(self, used: int | None = None) -> None:
        """Give the buffer back; a second time does nothing. used: bytes from its start that were written and are wiped (None: all)."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            self.view.release()
            self._pool._take_back(pointer, self.size if used is None else min(used, self.size))


class BufferPool:
    """Lends buffers of a few sizes; may be used from any thread.

    Args:
        classes: (buffer_size, capacity) pairs, 1 to 8, ascending sizes in bytes; capacity: how many may exist at once, 1 to 65,535.
        budget: bytes that all buffers together may hold, bookkeeping included; 0: no limit beside the capacities.
        limit: bytes that the memory behind the pool has; 0: no limit.

    Raises:
        InvalidArgument: the classes are not as said.
    """

    def __init__(self, binding: Binding, classes: Sequence[tuple[int, int]], budget: int = 0, limit: int = 0) -> None:
        self._binding = binding
        self._ffi = ffi = binding.ffi
        self._lib = lib = binding.lib
        self._closed = False
        wanted = "give 1 to 8 different sizes, ascending, at least 1 byte, capacities 1 to 65,535"
        if not 1 <= len(classes) <= lib.PT_POOL_MAX_CLASSES or any(not 0 <= number < 2**32 for pair in classes for number in pair):
            raise errors.InvalidArgument(f"pool classes {list(classes)}: {wanted}")
        array = ffi.new("pt_pool_class[]", list(classes))
        size = lib.pt_pool_size(array, len(classes))
        if size == 0:
            raise errors.InvalidArgument(f"pool classes {list(classes)}: {wanted}")
        self.largest = classes[-1][0]
        self._account = ffi.new("pt_posix_memory *")
        self._account.limit = limit
        source = ffi.new("pt_memory *")
        lib.pt_posix_memory_source(self._account, source)
        self._memory = ffi.new("uint64_t[]", (size + 7) // 8)
        self._pool = lib.pt_pool_init(self._memory, array, len(classes), budget, source)
        if self._pool == ffi.NULL:
            raise errors.InvalidArgument(f"pool classes {list(classes)}: {wanted}")

    def acquire(self, size: int) -> Buffer:
        """Borrow a zeroed buffer of at least size bytes, from the smallest class that holds it; a larger one is not tried.

        Raises:
            OutOfMemory: class, budget or memory are used up (counted), or size is 0 or above the largest class.
        """
        pointer = self._lib.pt_pool_acquire(self._pool, size) if 0 < size < 2**32 else self._ffi.NULL
        if pointer == self._ffi.NULL:
            raise errors.OutOfMemory(f"a buffer of {size:,} bytes: the pool has none to lend (its largest class has {self.largest:,})")
        return Buffer(self, pointer)

    def _take_back(self, pointer: Any, used: int) -> None:
        self._lib.pt_pool_release(self._pool, pointer, used)
        if self._closed:
            self._lib.pt_pool_trim(self._pool)

    def statistics(self) -> PoolStatistics:
        """The counters; see PoolStatistics."""
        out = self._ffi.new("pt_pool_statistics *")
        self._lib.pt_pool_get_statistics(self._pool, out)
        return PoolStatistics(out.acquires, out.allocations, out.refusals, out.returns, out.bytes, out.peak_bytes, out.in_use)

    def trim(self) -> int:
        """Give the memory of all free buffers back. Returns the bytes freed."""
        return int(self._lib.pt_pool_trim(self._pool))

    def fail_at(self, n: int) -> None:
        """Make the n-th allocation from now, and all after it, fail; 0: none."""
        self._account.fail_at = 0
        self._account.attempts = 0
        self._account.fail_at = n

    @property
    def attempts(self) -> int:
        """Allocations tried since fail_at() was called."""
        return int(self._account.attempts)

    def close(self) -> int:
        """Free every buffer. Returns the number that are still lent; each is freed when it comes back."""
        self._closed = True
        return int(self._lib.pt_pool_cleanup(self._pool))

    def __del__(self) -> None:
        if hasattr(self, "_pool") and not self._closed:
            self.close()


class Ingest:
    """Reads message frames from a stream, sans-I/O: full ones, and compact ones between them, whose sequence reads 0.

    Args:
        max_payload: longest payload in bytes that is taken; a longer one is a fault, judged on the header. None: the core's limit.
        pool: lends staging buffers; its largest class must hold a whole frame. None: a pool of one such buffer.
    """

    def __init__(self, binding: Binding, max_payload: int | None = None, pool: BufferPool | None = None) -> None:
        self._binding = binding
        self._ffi = ffi = binding.ffi
        self._lib = lib = binding.lib
        size = lib.PT_FRAME_MAX_PAYLOAD if max_payload is None else binding.limited("max_payload", max_payload, 0xFFFF)
        self._whole = size + lib.PT_FRAME_OVERHEAD
        self._pool = BufferPool(binding, [(self._whole, 1)]) if pool is None else pool
        self._ingest = ffi.new("pt_ingest *")
        self._consumed = ffi.new("size_t *")
        self._sink = ffi.new("pt_sink *")
        self._plain = ffi.new("pt_plain_sink *")
        self._room = -1
        lib.pt_ingest_init(self._ingest, lib.pt_message_format(), self._pool._pool, size, 0)

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
            The frames that became whole. When the pool has no buffer for a cut frame, consumed is where it starts in data (0 when its header was
            cut by an earlier call); give the same bytes again from there.

        Raises:
            ProtocolError: a frame is bad; the whole frames before it are in .frames, consumed is where it starts in data (0 when it began in
                an earlier call), and the machine takes no more.
            InvalidState: after a fault, or after close().
        """
        view = self._binding.flat(data)
        self._make_room(len(view))
        code = self._lib.pt_ingest_feed(self._ingest, view, len(view), self._sink, self._consumed)
        if code == self._lib.PT_ERR_INVALID_STATE:
            raise errors.InvalidState("the ingest takes no more bytes: it met a bad frame or was closed")
        payloads = self._ffi.buffer(self._buffer, self._plain.buffer_len)[:]
        frames = [
            Frame(type, flags, sequence, payloads[offset : offset + size])
            for offset, _, _, _, _, _, size, type, flags, sequence in _events_in(self._ffi, self._plain)
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

    def __del__(self) -> None:
        if hasattr(self, "_plain"):
            self.close()


class Reassembly:
    """Puts the fragments of one link together, sans-I/O: one message at a time, pieces strictly in order.

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
        self._lib.pt_reassembly_init(self._reassembly, self._pool._pool, size)

    def receive(self, payload: Data) -> bytes | None:
        """Take the payload of one DATA frame with the fragment flag.

        Returns:
            The message that it completes, or None.

        Raises:
            ProtocolError: the fragment is not as it must be; its code says how: -22 too short, or the last one of a message that is not whole; -1
                out of order, of another message, or beyond its total; -16 of a message above the limit; -10 no message has begun.
            OutOfMemory: the pool has no memory for the message that begins, which is lost.
        """
        binding, lib = self._binding, self._lib
        view = binding.flat(payload)
        code = lib.pt_reassembly_feed(self._reassembly, view, len(view), self._message, self._message_len)
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
        if self._pool._closed:
            self._pool.trim()

    def __del__(self) -> None:
        if hasattr(self, "_reassembly"):
            self.close()


def _events_in(ffi: Any, plain: Any) -> Any:
    """The frames that a plain sink recorded, as tuples of _EVENT."""
    return _EVENT.iter_unpack(ffi.buffer(plain.events, plain.count * _EVENT.size))


class SendPipeline:
    """The sending half of a link, sans-I/O.

    Args:
        depth: slots, 1 to 64; None: the core's number.
        slot_size: bytes of a slot, 12 to 65,535 and at most the pool's largest class; None: the core's size for sockets.
        lazy: borrow a slot's buffer at first use and return it when reported; False: borrow all now.
        packing: small frames share a slot.
        pool: lends the buffers; None: one of its own.

    Raises:
        InvalidArgument: depth or slot_size out of its bounds.
        OutOfMemory: not lazy, and the pool refused a buffer; those borrowed have been given back.
    """

    def __init__(
        self, binding: Binding, depth: int | None = None, slot_size: int | None = None, lazy: bool = True, packing: bool = True,
        pool: BufferPool | None = None,
    ) -> None:  # fmt: skip
        self._binding = binding
        self._ffi = ffi = binding.ffi
        self._lib = lib = binding.lib
        depth, slot_size = _slot_shape(lib, depth, slot_size)
        self._own_pool = pool is None
        self._pool = BufferPool(binding, [(slot_size, depth)]) if pool is None else pool
        if slot_size > self._pool.largest:
            raise errors.InvalidArgument(f"slot_size of {slot_size:,} bytes: the pool's largest class has {self._pool.largest:,}")
        self._slots = ffi.new("pt_send_slot[]", depth)
        self._pipeline = ffi.new("pt_send_pipeline *")
        self._address = int(ffi.cast("uintptr_t", self._pipeline))
        self._count = ffi.new("uint32_t *")
        self._result = ffi.new("int *")
        code = lib.pt_pipeline_init(self._pipeline, self._slots, depth, slot_size, self._pool._pool, lazy, packing)
        if code != 0:
            raise binding.fault(code, f"a pipeline of {depth} slots of {slot_size:,} bytes")

    def send(self, type: int, payload: Data, flags: int = 0) -> int:
        """Put one frame on its way. Returns 0, or with nothing changed -19 (every slot is taken), -2 (no buffer), -16 (the frame does not
        fit a slot), -1 (type is not 1 to 7, flags no byte), -3 (closed)."""
        code = self._binding.put_frame(self._address, type, payload, flags)
        if code is not None:
            return cast(int, code)
        view = self._binding.flat(payload)
        if not 0 <= type <= 0xFF or not 0 <= flags <= 0xFF:
            type = flags = 0
        return int(self._lib.pt_pipeline_send(self._pipeline, type, flags, view, len(view)))

    def launch(self) -> int:
        """Hand the oldest filling slot to the platform. Returns its index, or -1 when there is none."""
        return int(self._lib.pt_pipeline_launch(self._pipeline))

    def slot_bytes(self, index: int) -> bytes:
        """The frames in a slot, as they go on the wire."""
        slot = self._slots[index]
        return b"" if slot.buffer == self._ffi.NULL or slot.state == 0 else bytes(self._ffi.buffer(slot.buffer, slot.message_len))

    def slot_state(self, index: int) -> int:
        """State of a slot: 0 free, 1 filling, 2 in flight, 3 completed, 4 abandoned."""
        return int(self._slots[index].state)

    def complete(self, index: int, result: int = 0) -> None:
        """The platform is done with a slot: 0, or why not.

        Raises:
            InvalidState: the slot is not in flight.
        """
        if self._slots[index].state not in (self._lib.PT_SLOT_IN_FLIGHT, self._lib.PT_SLOT_ABANDONED):
            raise errors.InvalidState(f"slot {index} is not in flight: nothing to complete")
        self._lib.pt_pipeline_complete(self._pipeline, index, result)

    def report(self) -> tuple[int, int] | None:
        """Free the oldest slot if it is completed. Returns (messages it carried, its result), or None while it is not done."""
        if not self._lib.pt_pipeline_report(self._pipeline, self._count, self._result):
            return None
        return self._count[0], self._result[0]

    def is_ripe(self) -> bool:
        """Whether the newest filling slot should leave now: it is full, carries a no-delay frame, or packing is off."""
        return bool(self._lib.pt_pipeline_is_ripe(self._pipeline))

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
        """Give every buffer back but those in flight, which become abandoned until they are completed. Returns their number; may be called again."""
        abandoned = int(self._lib.pt_pipeline_cleanup(self._pipeline))
        if self._own_pool and abandoned == 0:
            self._pool.close()
        return abandoned

    def __del__(self) -> None:
        # Nothing moves these bytes but the owner of this handle, so nobody holds a slot any more.
        if hasattr(self, "_pipeline") and self.close():
            for index in range(len(self._slots)):
                if self._slots[index].state == self._lib.PT_SLOT_ABANDONED:
                    self._lib.pt_pipeline_complete(self._pipeline, index, 0)


def _slot_shape(lib: Any, depth: int | None, slot_size: int | None) -> tuple[int, int]:
    """Depth and slot size with their defaults, held against their bounds."""
    depth = lib.PT_POSIX_PIPELINE_DEPTH if depth is None else depth
    slot_size = lib.PT_POSIX_SLOT_SIZE if slot_size is None else slot_size
    if not 1 <= depth <= lib.PT_PIPELINE_MAX_DEPTH:
        raise errors.InvalidArgument(f"depth of {depth} slots: a link has 1 to {lib.PT_PIPELINE_MAX_DEPTH}")
    if not lib.PT_FRAME_OVERHEAD <= slot_size <= SLOT_BYTES_MAX:
        raise errors.InvalidArgument(f"slot_size of {slot_size} bytes: a slot has {lib.PT_FRAME_OVERHEAD} to {SLOT_BYTES_MAX:,}")
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
        """Expire at deadline, a tick less than 2^31 ahead; one that has passed expires at the next advance(). An armed key is moved."""
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
        """Ticks from now until advance() has work: 0 when a key is due; None when none is armed. Never later than the next deadline."""
        ticks = int(self._lib.pt_wheel_next(self._wheel))
        return None if ticks == 0xFFFFFFFF else ticks

    @property
    def armed(self) -> int:
        """Keys that are armed, due ones included."""
        return int(self._wheel.armed_count)


class Watch:
    """A foreign descriptor; a turn reports (READY, tag, mask, 0) as long as it is ready for what is wanted."""

    def __init__(self, loop: Loop, fd: int, tag: int, interest: int) -> None:
        self._loop = loop
        self._lib = loop._lib
        self.tag = tag
        self._watch: Any = loop._ffi.new("pt_watch *")
        loop._watches.add(self)
        code = self._lib.pt_watch_open(loop._context, self._watch, fd, tag, interest)
        if code != 0:
            loop._watches.discard(self)
            raise loop._binding.fault(code, f"descriptor {fd} cannot be watched")

    def set(self, interest: int) -> None:
        """Change what is wanted: a sum of READ and WRITE, or 0.

        Raises:
            InvalidState: the watch is closed.
        """
        if self._watch is None:
            raise errors.InvalidState("this watch is closed")
        code = self._lib.pt_watch_set(self._loop._context, self._watch, interest)
        if code != 0:
            raise self._loop._binding.fault(code, f"a watch for {interest}")

    def close(self) -> None:
        """Forget the descriptor, which stays the caller's. Idempotent."""
        if self._watch is not None:
            self._lib.pt_watch_close(self._loop._context, self._watch)
            self._watch = None
            self._loop._watches.discard(self)


class Timer:
    """Expires once after arm(), as (TIMER, tag, 0, 0)."""

    def __init__(self, loop: Loop, tag: int) -> None:
        self._loop = loop
        self._lib = loop._lib
        self.tag = tag
        self._timer = loop._ffi.new("pt_timer *")
        self._timer.tag = tag

    def arm(self, delay: float) -> None:
        """Expire delay seconds from now, rounded up to milliseconds; 0 or less: at the next turn. Arming again moves it.

        Raises:
            InvalidState: the loop is closed.
        """
        self._loop._check_open()
        delay_ms = math.ceil(min(max(0.0, delay * 1000), MAX_DELAY_MS))
        self._lib.pt_loop_arm(self._loop._context, self._timer, delay_ms)
        self._loop._hold(self)

    def cancel(self) -> None:
        """Never expire. Nothing happens when it is not armed."""
        self._lib.pt_loop_cancel(self._loop._context, self._timer)
        self._loop._armed.discard(self)

    @property
    def armed(self) -> bool:
        """Whether it will expire."""
        return bool(self._lib.pt_timer_is_armed(self._timer))


class Link:
    """One connection: what is sent waits in a pipeline, what arrives is cut into frames. Made by Loop.open_link().

    Attributes:
        send: send(payload) accepts one DATA frame. A sum of NEEDS_TURN and YIELD (0 or more), or with nothing changed: -19 every slot is taken,
            -2 no memory, -16 longer than max_message, -18 the link is not open. TypeError: payload is no contiguous buffer of bytes.
        send_many: send_many(payloads, start=0) accepts payloads[start:], a list, in order until one is refused: (how many were accepted,
            the refusal or the sum of the hints seen). A wrong type is a TypeError where it comes first, else the refusal -1.
    """

    send: Callable[[Data], int]
    send_many: Callable[..., tuple[int, int]]

    def __init__(
        self, loop: Loop, fd: int, tag: int, depth: int | None, slot_size: int | None, packing: bool, max_payload: int | None
    ) -> None:
        self._loop = loop
        self._binding = loop._binding
        self._lib = lib = loop._lib
        ffi = loop._ffi
        self.tag = tag
        classic = loop.simulator is not None
        if classic:
            depth = lib.PT_SEND_PIPELINE_DEPTH if depth is None else depth
            slot_size = lib.PT_SLOT_BUFFER_SIZE if slot_size is None else slot_size
        depth, slot_size = _slot_shape(lib, depth, slot_size)
        if slot_size > loop._pool.largest:
            raise errors.InvalidArgument(f"slot_size of {slot_size:,} bytes: the pool's largest class has {loop._pool.largest:,}")
        limit = lib.PT_FRAME_MAX_PAYLOAD
        if max_payload is not None and not 0 <= max_payload <= limit:
            raise errors.InvalidArgument(f"max_payload of {max_payload:,} bytes: a frame carries 0 to {limit:,}")
        self._slots = ffi.new("pt_send_slot[]", depth)
        self._link = ffi.new("pt_link *")
        self._context = loop._context
        code = lib.pt_link_open(
            self._context, self._link, fd, tag, self._slots, depth, slot_size, packing, limit if max_payload is None else max_payload
        )
        if code != 0:
            raise self._binding.fault(code, f"descriptor {fd} cannot become a link")
        if classic:
            self._link.max_message = min(self._link.max_message, lib.PT_MESSAGE_MAX_PAYLOAD)
        try:
            self.send, self.send_many = self._bind_send()
            loop._links[self] = None
        except MemoryError:
            lib.pt_link_close(self._context, self._link)
            raise

    def _bind_send(self) -> tuple[Callable[[Data], int], Callable[..., tuple[int, int]]]:
        loop = self._loop
        if loop.native:
            # The bound functions outlive this object as long as somebody holds them: they own the memory, not the handle.
            owner = (loop._memory, self._link, self._slots)
            cast = partial(self._binding.ffi.cast, "uintptr_t")
            send, send_many = self._binding.border.bind_link(int(cast(self._context)), int(cast(self._link)), owner)
        else:
            send, send_many = self._plain_send, self._plain_send_many
        if self._binding.assertions:
            send, send_many = loop._on_owner(send), loop._on_owner(send_many)
        return send, send_many

    def _plain_send(self, payload: Data) -> int:
        if type(payload) is bytes:
            return int(self._lib.pt_link_send(self._context, self._link, DATA, 0, payload, len(payload)))
        view = self._binding.flat(payload)
        return int(self._lib.pt_link_send(self._context, self._link, DATA, 0, view, len(view)))

    def _plain_send_many(self, payloads: list[Data], start: int = 0) -> tuple[int, int]:
        if not isinstance(payloads, list):
            raise TypeError("send_many(payloads, start=0): payloads must be a list")
        if start < 0:
            raise ValueError("send_many: start must not be negative")
        hints = 0
        for index in range(start, len(payloads)):
            try:
                code = self._plain_send(payloads[index])
            except TypeError:
                if index == start:
                    raise
                code = self._lib.PT_ERR_INVALID_PARAM
            if code < 0:
                return index - start, code
            hints |= code
        return max(0, len(payloads) - start), hints

    def send_frame(self, type: int, payload: Data = b"", flags: int = 0) -> int:
        """Accept one frame of any type; NO_DELAY makes it leave at once. Returns what send() returns, or -1 for a type or flags out of range."""
        view = self._binding.flat(payload)
        if not 0 <= type <= 0xFF or not 0 <= flags <= 0xFF:
            type = flags = 0
        return int(self._lib.pt_link_send(self._context, self._link, type, flags, view, len(view)))

    def send_sync(self, payload: Data, flags: int = 0) -> int:
        """As send(), but where that says that every slot is taken, and always where the platform writes each slot by itself, wait until all are
        free, at most 5 s, and then send this one alone, with 5 s of its own: nothing is overtaken. Other threads may run meanwhile; the loop is not
        theirs.

        Returns:
            What send() returns; -6: the slots did not come free in time, with nothing changed.
        """
        view = self._binding.flat(payload)
        if not 0 <= flags <= 0xFF:
            return int(self._lib.PT_ERR_INVALID_PARAM)
        return int(self._lib.pt_link_send_sync(self._context, self._link, DATA, flags, view, len(view)))

    def drain(self) -> int:
        """Wait until every slot is free, at most 5 s. Serves nobody else. Returns 0, -6: not in time, -18: the link is not open (any more)."""
        return int(self._lib.pt_link_drain(self._context, self._link))

    def pause(self) -> None:
        """Stop reading. Neither silence nor the partial-frame time-out counts until resume()."""
        self._lib.pt_link_pause(self._context, self._link)

    def resume(self) -> None:
        """Go on reading; what waited is read before a hang-up of the other side counts."""
        self._lib.pt_link_resume(self._context, self._link)

    def shut(self) -> None:
        """Accept no more, and end our half of the stream when all slots have left."""
        self._lib.pt_link_shut(self._context, self._link)

    def close(self) -> None:
        """Leave the loop and give the memory back; the descriptor stays the caller's. Idempotent."""
        if self in self._loop._links:
            del self._loop._links[self]
            if self._lib.pt_link_close(self._context, self._link):
                self._loop._abandoned.append((self._link, self._slots))

    @property
    def max_message(self) -> int:
        """Longest payload of a DATA frame that may be sent now, in bytes; set it to what the other side takes."""
        return int(self._link.max_message)

    @max_message.setter
    def max_message(self, value: int) -> None:
        self._link.max_message = self._binding.limited("max_message", value, 0xFFFFFFFF)

    @property
    def paused(self) -> bool:
        """Whether the link is not read at the caller's wish."""
        return bool(self._link.paused)

    @property
    def pending(self) -> int:
        """Messages accepted and not yet reported."""
        return int(self._lib.pt_link_pending(self._link))

    @property
    def slots_available(self) -> int:
        """Free slots now."""
        return int(self._lib.pt_pipeline_available(self._lib_pipeline()))

    @property
    def slots_pending(self) -> int:
        """Slots that are filling or in flight."""
        return int(self._link.pipeline.pending_count)

    def _lib_pipeline(self) -> Any:
        return self._binding.ffi.addressof(self._link, "pipeline")

    def statistics(self) -> LinkStatistics:
        """Counters since the link opened."""
        link = self._link
        pipeline, ingest = link.pipeline, link.ingest
        return LinkStatistics(
            pipeline.accepted, pipeline.accepted - self.pending, pipeline.frames, pipeline.payload_bytes, link.sent_bytes, link.write_calls,
            pipeline.refusals, pipeline.pending_count, pipeline.high_water, ingest.frames, ingest.payload_bytes, link.received_bytes,
            link.read_calls, self._lib.pt_ingest_partial_len(self._binding.ffi.addressof(link, "ingest")), link.sync_sends,
        )  # fmt: skip


class Loop:
    """The engine: links, watches and timers of one thread, and one turn of waiting and working.

    Args:
        io_budget: ready sources served in one turn, 1 to 16.
        receive_buffer_size: bytes, at least one whole frame; None: the core's size.
        pool_bytes: bytes that slots and staging buffers may hold together.
        platform: "posix", or "posix_plain" where each slot is written by a blocking send; "mactcp", "opentransport", and the same with "_sync", on a
            simulator, whose handles then take the place of descriptors.
        simulator: the network of a classic platform; of any compiled core.
        host: of that network, where this loop lives.
        push: classic platforms: small writes are not merged on the wire.
        send_limit: opentransport: bytes of one link that wait for acknowledgement before the flow is stopped; 0: the platform's.
        native: False forces the plain cffi way, as PEERTALK_NATIVE=0 in the environment does.
        epoll: False takes poll(2) and leaves fd at -1.

    Attributes:
        fd: to be watched for reading by another loop: readable whenever a turn has something to do; -1 when there is none (see descriptors()).
        native: whether the border's native functions are used.

    Raises:
        InvalidArgument: an argument out of its bounds.
        PlatformError: the system gave no descriptors.
    """

    def __init__(
        self, binding: Binding, *, io_budget: int = 16, receive_buffer_size: int | None = None, pool_bytes: int = 64 << 20,
        platform: str = "posix", native: bool = True, epoll: bool = True, simulator: Simulator | None = None, host: Host | None = None,
        push: bool = False, send_limit: int = 0,
    ) -> None:  # fmt: skip
        self._binding = binding
        self._ffi = ffi = binding.ffi
        self._lib = lib = binding.lib
        self._closed = True  # until all is made
        self.native = binding.native and native and os.environ.get("PEERTALK_NATIVE") != "0"
        size = lib.PT_RECEIVE_BUFFER_SIZE if receive_buffer_size is None else receive_buffer_size
        whole = lib.PT_FRAME_MAX_PAYLOAD + lib.PT_FRAME_OVERHEAD
        if not 1 <= io_budget <= lib.PT_IO_BUDGET:
            raise errors.InvalidArgument(f"io_budget of {io_budget} sources: a turn serves 1 to {lib.PT_IO_BUDGET}")
        if not whole <= size < 2**31:
            raise errors.InvalidArgument(f"receive_buffer_size of {size} bytes: a whole frame has {whole}")
        if platform not in PLATFORMS:
            raise errors.InvalidArgument(f"platform {platform!r}: there are {', '.join(map(repr, PLATFORMS))}")
        if (platform in CLASSIC) != (simulator is not None and host is not None):
            raise errors.InvalidArgument(f"platform {platform!r}: a simulator and a host belong to {', '.join(map(repr, CLASSIC))} alone")
        if simulator is not None and (simulator.closed or host not in simulator.hosts):
            raise errors.InvalidArgument("the host is none of this simulator, or the simulator is closed")
        self.platform = platform
        self.simulator = simulator
        self.host = host
        self._abandoned: list[Any] = []
        if pool_bytes < 1:
            raise errors.InvalidArgument(f"pool_bytes of {pool_bytes}: slots and staging buffers need some")

        self._pool = BufferPool(binding, _pool_classes(lib, pool_bytes), pool_bytes)
        self._context = ffi.new("pt_context *")
        self._events = ffi.new("pt_event[]", EVENT_CAPACITY)
        receive_buffer = ffi.new("uint8_t[]", size)
        self._platform: Any = ffi.new("uint64_t[]", (self._platform_size(epoll) + 7) // 8)
        self._memory = (self._context, self._platform, self._pool._memory, self._pool._account, receive_buffer, self._events, lib)
        self._links: dict[Link, None] = {}
        self._peaks: dict[str, int] = {}
        self._watches: set[Watch] = set()
        self._armed: set[Timer] = set()
        self._armed_limit = 64
        self._wake_lock = threading.Lock()
        self._owner: int | None = None
        self._turn: Callable[[], Any] = self._bind_turn(size)
        self._open(binding.platform(platform), epoll, receive_buffer, io_budget, int(push), send_limit)
        self._closed = False
        self.fd: int = -1 if simulator is not None else lib.pt_posix_fd(self._platform)

    def _platform_size(self, epoll: bool) -> int:
        lib = self._lib
        if self.simulator is None:
            return int(lib.pt_posix_size(0 if epoll else POLL_SOURCES))
        return int(lib.pt_mactcp_size() if self.platform.startswith("mactcp") else lib.pt_ot_size())

    def _open(self, ops: Any, epoll: bool, receive_buffer: Any, io_budget: int, push: int, send_limit: int) -> None:
        """What may fail and must be undone: the descriptors of the platform, or its place on a network, then the context on top of them."""
        lib = self._lib
        if self.simulator is not None:
            self._join(self.simulator, push, send_limit)
        else:
            system_error = self._ffi.new("int32_t *")
            code = lib.pt_posix_init(self._platform, 0 if epoll else POLL_SOURCES, epoll, system_error)
            if code != 0:
                raise errors.PlatformError(f"a loop needs two descriptors: {os.strerror(system_error[0])}", code=code)
        code = lib.pt_context_init(self._context, ops, self._platform, self._pool._pool, receive_buffer, len(receive_buffer), io_budget)
        if code != 0:
            self._end_platform()
            raise self._binding.fault(code, "a loop")

    def _join(self, simulator: Simulator, push: int, send_limit: int) -> None:
        """Make platform data on a simulated network, which may live in another extension module: it is reached through its table."""
        ffi, lib = self._ffi, self._lib
        sim = ffi.cast("pt_sim *", simulator.address)
        table = ffi.cast("pt_sim_table *", simulator.table)
        source = ffi.new("pt_memory *")
        lib.pt_posix_memory_source(self._pool._account, source)
        assert self.host is not None
        if self.platform.startswith("mactcp"):
            lib.pt_mactcp_init(self._platform, sim, table, self.host.number, source, push)
        else:
            lib.pt_ot_init(self._platform, sim, table, self.host.number, source, push, self._binding.limited("send_limit", send_limit, 2**31))
        self._world = ffi.cast("pt_sim_world *", self._platform)
        simulator._loops[self] = None

    def _end_platform(self) -> None:
        """Give back what the platform holds; on a simulated network its driver lets go of every slot."""
        if self.simulator is None:
            self._lib.pt_posix_cleanup(self._platform)
        elif self.platform.startswith("mactcp"):
            self._lib.pt_mactcp_cleanup(self._platform)
        else:
            self._lib.pt_ot_cleanup(self._platform)
        if self.simulator is not None:
            self.simulator._loops.pop(self, None)
        self._abandoned.clear()

    def _bind_turn(self, size: int) -> Callable[[], Any]:
        """What makes one turn without waiting: a list of events, or a negative code."""
        ffi, lib = self._ffi, self._lib
        if self.native:
            context, events = (int(ffi.cast("uintptr_t", pointer)) for pointer in (self._context, self._events))
            turn = self._binding.border.bind_loop(context, events, EVENT_CAPACITY, self._memory)
        else:
            self._room = min(size, PLAIN_ROOM)
            capacity = self._room // lib.PT_COMPACT_HEADER_SIZE + lib.PT_IO_BUDGET
            buffer_size = self._room + lib.PT_IO_BUDGET * (lib.PT_FRAME_OVERHEAD + lib.PT_FRAME_MAX_PAYLOAD)
            self._sink = ffi.new("pt_sink *")
            self._plain = ffi.new("pt_plain_sink *")
            self._frames = ffi.new("pt_event[]", capacity)
            self._frame_bytes = ffi.new("uint8_t[]", buffer_size)
            self._plain.events = self._frames
            self._plain.capacity = capacity
            self._plain.buffer = self._frame_bytes
            self._plain.buffer_size = buffer_size
            turn = self._plain_turn
        return self._on_owner(turn) if self._binding.assertions else turn

    def _on_owner(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, checked to run on the one thread that uses this loop (assertion builds)."""

        @wraps(function)
        def checked(*arguments: Any) -> Any:
            if self._owner is None:
                self._owner = threading.get_ident()
            assert self._owner == threading.get_ident(), "a loop and its links belong to one thread"
            return function(*arguments)

        return checked

    def hand_over(self) -> None:
        """The thread that calls next owns this loop and its links: for owners that take turns under a lock."""
        self._owner = None

    # Making things

    def open_link(
        self, fd: int, tag: int, *, depth: int | None = None, slot_size: int | None = None, packing: bool = True, max_payload: int | None = None
    ) -> Link:
        """Take over a connected, non-blocking descriptor, which stays the caller's.

        Args:
            tag: the caller's number, 0 to 2^32 - 1; comes back in every event of this link.
            depth: slots, 1 to 64; None: the core's number.
            slot_size: bytes of a slot; None: the core's size.
            packing: small frames share a slot.
            max_payload: longer frames from the other side end the link; None: the core's limit.

        Raises:
            InvalidArgument, OutOfMemory, PlatformError: nothing has changed.
        """
        self._check_open()
        return Link(self, fd, tag, depth, slot_size, packing, max_payload)

    def reassembly(self, limit: int) -> Reassembly:
        """A reassembly of messages of up to limit bytes, whose memory is that of this loop's pool."""
        self._check_open()
        return Reassembly(self._binding, limit, self._pool)

    def watch(self, fd: int, tag: int, interest: int) -> Watch:
        """Report readiness of a foreign descriptor as (READY, tag, mask, 0), level-triggered.

        Raises:
            InvalidArgument, OutOfMemory, PlatformError: the descriptor cannot be watched.
        """
        self._check_open()
        return Watch(self, fd, tag, interest)

    def timer(self, tag: int) -> Timer:
        """A timer, not armed."""
        self._check_open()
        return Timer(self, tag)

    def _hold(self, timer: Timer) -> None:
        """Keep an armed timer's memory; let go of expired ones now and then."""
        self._armed.add(timer)
        if len(self._armed) > self._armed_limit:
            self._armed = {each for each in self._armed if each.armed}
            self._armed_limit = 2 * len(self._armed) + 64

    # Turning

    def turn(self, timeout: float | None = 0.0) -> list[Event]:
        """One turn, and if it had no events and may wait, a wait and a second turn.

        Args:
            timeout: seconds; 0: never blocks and keeps the GIL; more: the wait gives it up; None: no end.

        Returns:
            Tuples (kind, tag, a, b), frames first, those of one link in the order of its stream:
            (BATCH, tag, payload bytes, payloads), (FRAME, tag, type | flags << 8 | sequence << 16, payload),
            (SENT, tag, messages, code), (FINISHED, tag, 0, 0), (CLOSED, tag, code, system error),
            (READY, tag, mask, 0), (TIMER, tag, 0, 0).

        Raises:
            InvalidState: the loop is closed.
            PlatformError: the system failed in waiting.
        """
        events = self._turn()
        if not events and timeout != 0:
            timeout_ms = -1 if timeout is None else min(math.ceil(timeout * 1000), 2**31 - 1)
            code = self._lib.pt_loop_wait(self._context, timeout_ms)
            if code != 0:
                raise self._binding.fault(code, "waiting")
            events = self._turn()
        if type(events) is int:
            raise self._binding.fault(events, "a turn")
        if self._abandoned:
            self._let_go()
        return events  # type: ignore[no-any-return]

    def _plain_turn(self) -> list[Event] | int:
        lib, plain = self._lib, self._plain
        lib.pt_plain_sink_init(plain, self._sink, self._room)
        count = lib.pt_loop_turn(self._context, 0, self._events, EVENT_CAPACITY, self._sink)
        if count < 0:
            return int(count)
        events: list[Event] = []
        if plain.count:
            self._collect(events)
        for index in range(count):
            event = self._events[index]
            kind = event.kind
            if kind == SENT:
                events.append((kind, event.tag, event.count, event.code))
            elif kind == CLOSED:
                events.append((kind, event.tag, event.code, event.system_error))
            elif kind == READY:
                events.append((kind, event.tag, event.count, 0))
            else:
                events.append((kind, event.tag, 0, 0))
        return events

    def _collect(self, events: list[Event]) -> None:
        """Make BATCHes of consecutive plain DATA frames of one link, and FRAMEs of the others."""
        stream = self._ffi.buffer(self._frame_bytes, self._plain.buffer_len)[:]
        batch: list[bytes] = []
        batch_tag = batch_len = 0
        for offset, _, tag, _, _, _, size, type, flags, sequence in _events_in(self._ffi, self._plain):
            payload = stream[offset : offset + size]
            plain = type == DATA and not flags & _PLAIN_FLAGS
            if batch and not (plain and tag == batch_tag):
                events.append((BATCH, batch_tag, batch_len, batch))
                batch = []
            if not plain:
                events.append((FRAME, tag, type | flags << 8 | sequence << 16, payload))
                continue
            if not batch:
                batch_tag, batch_len = tag, 0
            batch.append(payload)
            batch_len += size
        if batch:
            events.append((BATCH, batch_tag, batch_len, batch))

    def next_timeout(self) -> float | None:
        """Seconds until a turn is needed though nothing becomes ready; 0.0 when there is work now, None when there is no timer."""
        timeout_ms = self._lib.pt_loop_next_timeout(self._context)
        return None if timeout_ms < 0 else timeout_ms / 1000

    # On a simulated network

    def _let_go(self) -> None:
        """Free the memory of closed links whose slots the driver has let go of."""
        self._abandoned = [kept for kept in self._abandoned if kept[0].pipeline.pending_count]

    def has_work(self) -> bool:
        """Whether a turn now would find something, on a simulated network: what a driver on virtual time asks after each step."""
        return not self._closed and (
            self._lib.pt_loop_next_timeout(self._context) == 0 or bool(self._lib.pt_sim_world_is_ready(self._context))
        )

    def next_deadline_ns(self) -> int | None:
        """Virtual time at which a turn is needed though nothing becomes ready; None when there is no timer."""
        timeout_ms = self._lib.pt_loop_next_timeout(self._context)
        assert self.simulator is not None
        now_ns = self.simulator.now_ns
        if timeout_ms <= 0:
            return None if timeout_ms < 0 else now_ns
        ticks = self._lib.pt_wheel_next(self._ffi.addressof(self._context, "wheel"))
        rate = self._lib.PT_SIM_TICKS
        due_ns = -(-(now_ns * rate // 10**9 + ticks) * 10**9 // rate)
        return int(due_ns) if ticks != 2**32 - 1 and due_ns < now_ns + 2 * timeout_ms * 10**6 else now_ns + timeout_ms * 10**6

    def violations(self) -> list[str]:
        """Rules of the platform's maker that were broken here, the first 32: empty in a healthy run."""
        if self.simulator is None:
            return []
        size = self._lib.PT_SIM_VIOLATION_SIZE
        kept = min(self._world.violation_count, self._lib.PT_SIM_VIOLATIONS)
        return [self._ffi.string(self._world.violations + index * size).decode() for index in range(kept)]

    def platform_sizes(self) -> dict[str, int]:
        """Bytes of what a link needs of its platform and core, for each slot or (link, platform_link) once.

        parameter_block is what the maker's header has, parameter_block_documented what the source of the pipeline has.
        """
        ffi, lib = self._ffi, self._lib
        depth = lib.PT_SEND_PIPELINE_DEPTH
        mactcp = self.platform.startswith("mactcp")
        return {
            "parameter_block": lib.PT_MACTCP_BLOCK_SIZE, "parameter_block_documented": lib.PT_MACTCP_BLOCK_DOCUMENTED,
            "parameter_block_simulated": ffi.sizeof("pt_mactcp_block"), "slot": ffi.sizeof("pt_send_slot"), "slot_buffer": lib.PT_SLOT_BUFFER_SIZE,
            "pipeline": ffi.sizeof("pt_send_pipeline"), "link": ffi.sizeof("pt_link"), "context": ffi.sizeof("pt_context"),
            "platform": lib.pt_mactcp_size() if mactcp else lib.pt_ot_size(),
            "platform_link": lib.pt_mactcp_stream_size(depth) if mactcp else lib.pt_ot_port_size(depth),
        }  # fmt: skip

    @property
    def abandoned(self) -> int:
        """Slots of closed links that the driver has not let go of."""
        if self.simulator is None or self._closed:
            return 0
        count = self._lib.pt_mactcp_abandoned if self.platform.startswith("mactcp") else self._lib.pt_ot_abandoned
        return int(count(self._platform))

    def wake(self) -> None:
        """End a wait that runs, or the next one. Any thread; nothing happens when the loop is closed."""
        with self._wake_lock:
            if not self._closed:
                self._lib.pt_loop_wake(self._context)

    def descriptors(self) -> list[tuple[int, int]]:
        """(descriptor, READ | WRITE) of all that must be watched to know when a turn has something to do, the wake-up included."""
        if self._closed or self.simulator is not None:
            return []
        sources = [watch._watch.source for watch in self._watches] + [link._link.source for link in self._links]
        wanted = [(int(source.handle), source.interest & (READ | WRITE)) for source in sources if source.registered != 0xFF]
        return [(self._lib.pt_posix_wake_fd(self._platform), READ), *((fd, interest) for fd, interest in wanted if interest)]

    # Counting and ending

    def memory(self) -> dict[str, tuple[int, int]]:
        """Bytes of the C side now and at most so far, part by part: what each struct has, and what the pool holds.

        The buffers of slots come out of the pool and are counted with the pipelines; at most means as many as were ever in flight on each link.
        streams is what a classic platform keeps for its links: parameter blocks and write lists, or endpoints and the records of their sends. total
        is exact: it takes the peak of the one source that streams and pool are allocated from.
        """
        ffi = self._ffi
        wheel, slot, link = ffi.sizeof("pt_wheel"), ffi.sizeof("pt_send_slot"), ffi.sizeof("pt_link")
        fixed = {
            "context": ffi.sizeof("pt_context") - wheel, "loop": ffi.sizeof(self._events) + ffi.sizeof(self._platform), "wheel": wheel,
            "receive buffer": self._context.receive_buffer_size,
        }  # fmt: skip
        links = [each._link for each in self._links]
        held = [each.pipeline for each in links] + [kept[0].pipeline for kept in self._abandoned]
        tables = sum(each.depth for each in held) * slot
        lent = sum(each.slots[index].buffer_size for each in held for index in range(each.depth))
        high = sum(each.high_water * each.slot_size for each in held)
        pool, table = self._pool.statistics(), ffi.sizeof(self._pool._memory)
        streams = int(self._pool._account.bytes) - pool.bytes
        for name, now in (("links", len(held) * link), ("tables", tables), ("slots", max(lent, high)), ("streams", streams)):
            self._peaks[name] = max(self._peaks.get(name, 0), now)
        peaks = self._peaks
        parts = {name: (size, size) for name, size in fixed.items()}
        parts["links"] = (len(held) * link, peaks["links"])
        parts["pipelines"] = (tables + lent, peaks["tables"] + peaks["slots"])
        if self.simulator is not None:
            parts["streams"] = (streams, peaks["streams"])
        parts["pools"] = (table + max(0, pool.bytes - lent), table + max(pool.peak_bytes - peaks["slots"], pool.bytes - lent, 0))
        fixed_sum = sum(fixed.values()) + table
        peak = fixed_sum + peaks["links"] + peaks["tables"] + max(self._pool._account.peak_bytes, pool.bytes + streams)
        parts["total"] = (fixed_sum + len(held) * link + tables + pool.bytes + streams, peak)
        return parts

    @property
    def core(self) -> Any:
        """The core that this loop belongs to."""
        from peertalk._core import load  # here, because that module imports this one

        return load(self._binding.name)

    def statistics(self) -> LoopStatistics:
        """Counters since the loop opened."""
        context = self._context
        return LoopStatistics(context.turns, context.wait_calls, context.crc_errors, context.bad_frames)

    def pool_statistics(self) -> PoolStatistics:
        """Counters of the pool of slots and staging buffers."""
        return self._pool.statistics()

    def fail_at(self, attempt: int) -> None:
        """Inject: the attempt-th allocation from now, from 1, and all after it fail; 0: none."""
        self._pool.fail_at(attempt)

    @property
    def attempts(self) -> int:
        """Allocations tried since fail_at()."""
        return self._pool.attempts

    def close(self) -> None:
        """Close links and forget everything. Idempotent."""
        if self._closed:
            return
        with self._wake_lock:
            self._closed = True
        self._turn = self._check_open
        for link in list(self._links):
            link.close()
        for watch in list(self._watches):
            watch.close()
        for timer in list(self._armed):
            timer.cancel()
        self._end_platform()
        self._lib.pt_context_cleanup(self._context)
        self._pool.close()
        self.fd = -1

    def _check_open(self) -> None:
        if self._closed:
            raise errors.InvalidState("this loop is closed")

    def __del__(self) -> None:
        if not self._closed:
            self.close()


def _quad(address: int) -> str:
    return ".".join(str(address >> shift & 0xFF) for shift in (24, 16, 8, 0))


def _number(address: str) -> int:
    """A dotted IPv4 address as a number.

    Raises:
        InvalidArgument: it is none.
    """
    parts = address.split(".")
    if len(parts) != 4 or not all(part.isdecimal() and int(part) <= 255 for part in parts):
        raise errors.InvalidArgument(f"address {address!r}: give a dotted one, such as 10.0.0.1")
    return sum(int(part) << shift for part, shift in zip(parts, (24, 16, 8, 0), strict=True))


class Socket:
    """A socket of a simulated network: a listener, a stream or a datagram socket. Made by a Host; its fileno() is the handle that loops take."""

    def __init__(self, host: Host, handle: int) -> None:
        self._host = host
        self._simulator = host._simulator
        self._handle = handle

    def fileno(self) -> int:
        """The handle; -1 when it is closed."""
        return self._handle

    def _call(self, name: str, *arguments: Any) -> Any:
        return getattr(self._simulator._lib, name)(self._simulator._open_sim(), self._handle, *arguments)

    def _name(self, remote: int) -> tuple[str, int]:
        address, port = self._simulator._ffi.new("uint32_t *"), self._simulator._ffi.new("uint16_t *")
        code = self._call("pt_sim_get_name", remote, address, port)
        if code != 0:
            raise self._simulator._binding.fault(code, "the name of a simulated socket")
        return _quad(address[0]), int(port[0])

    def getsockname(self) -> tuple[str, int]:
        """Its address and port."""
        return self._name(0)

    def getpeername(self) -> tuple[str, int]:
        """Address and port of the other end of a stream."""
        return self._name(1)

    def close(self) -> None:
        """Forget it; a stream sends what it owes, then ends its half. Idempotent."""
        if self._handle > 0 and not self._simulator.closed:
            self._call("pt_sim_release")
        self._handle = -1

    @property
    def ready(self) -> int:
        """What is ready now: a sum of READ, WRITE and HANGUP."""
        return int(self._call("pt_sim_ready"))

    def accept(self) -> Socket | None:
        """Listener: the next connection that waits; None when there is none."""
        handle = self._call("pt_sim_accept")
        if handle == self._simulator._lib.PT_ERR_WOULD_BLOCK:
            return None
        return Socket(self._host, self._simulator._made(handle, "accepting a connection"))

    def outcome(self) -> int:
        """Stream: -19 while connecting, 0 when open, else why not: -7 refused, -6 no answer, -8 reset since."""
        return int(self._call("pt_sim_get_outcome"))

    def silent_for(self) -> float:
        """Stream: seconds that something of ours has waited for a sign of life; 0.0: nothing waits."""
        return int(self._call("pt_sim_get_silence")) / 1e9

    @property
    def unacknowledged(self) -> int:
        """Stream: bytes taken and not acknowledged."""
        return int(self._call("pt_sim_get_unacknowledged"))

    def send(self, data: Data) -> int:
        """Stream: copy bytes and send them; how many were taken, 0 when there is no room.

        Raises:
            ConnectionClosed, NotConnected: it cannot be written.
        """
        view = self._simulator._binding.flat(data)
        return self._simulator._made(self._call("pt_sim_send", view, len(view)), "sending on a simulated stream")

    def recv(self, size: int = 65_536) -> bytes | None:
        """Stream: bytes that have come; None when there are none yet, b"" when the other side has ended its half.

        Raises:
            ConnectionClosed: the connection was broken; Timeout: it was given up.
        """
        ffi, lib = self._simulator._ffi, self._simulator._lib
        buffer, broken = ffi.new("uint8_t[]", size), ffi.new("int *")
        count = self._call("pt_sim_receive", buffer, size, broken)
        if count == lib.PT_ERR_WOULD_BLOCK:
            return None
        if count == lib.PT_ERR_CONNECTION_CLOSED and not broken[0]:
            return b""
        return bytes(ffi.buffer(buffer, self._simulator._made(count, "receiving on a simulated stream")))

    def shut(self) -> None:
        """Stream: end our half when all is sent."""
        self._simulator._made(self._call("pt_sim_finish"), "ending a simulated stream")

    def abort(self) -> None:
        """Stream: break the connection, at once."""
        self._simulator._made(self._call("pt_sim_reset"), "breaking a simulated stream")

    def sendto(self, data: Data, address: tuple[str, int]) -> bool:
        """Datagram socket: send to one host or, at a broadcast address, to all. False: no host has that address."""
        view = self._simulator._binding.flat(data)
        code = self._call("pt_sim_send_to", view, len(view), _number(address[0]), address[1])
        if code == self._simulator._lib.PT_ERR_NETWORK:
            return False
        self._simulator._made(code, "sending a simulated datagram")
        return True

    def recvfrom(self) -> tuple[bytes, tuple[str, int]] | None:
        """Datagram socket: the next datagram with its sender; None when there is none."""
        ffi, lib = self._simulator._ffi, self._simulator._lib
        buffer = ffi.new("uint8_t[]", lib.PT_SIM_DATAGRAM_MAX)
        address, port = ffi.new("uint32_t *"), ffi.new("uint16_t *")
        count = self._call("pt_sim_receive_from", buffer, len(buffer), address, port)
        if count == lib.PT_ERR_WOULD_BLOCK:
            return None
        self._simulator._made(count, "receiving a simulated datagram")
        return bytes(ffi.buffer(buffer, count)), (_quad(address[0]), int(port[0]))


class Host:
    """A machine of a simulated network. Made by Simulator.add_host().

    Attributes:
        name, address: what it was given; number: its place in the network, from 0.
    """

    def __init__(self, simulator: Simulator, name: str, address: str, number: int) -> None:
        self._simulator = simulator
        self.name = name
        self.address = address
        self.number = number

    def __repr__(self) -> str:
        return f"<host {self.name!r} at {self.address}>"

    def _socket(self, call: str, *arguments: Any, what: str) -> Socket:
        handle = getattr(self._simulator._lib, call)(self._simulator._open_sim(), self.number, *arguments)
        if handle == self._simulator._lib.PT_ERR_BUSY:
            raise errors.AddressInUse(f"{what}: host {self.name!r} has the port in use")
        return Socket(self, self._simulator._made(handle, what))

    def listen(self, port: int) -> Socket:
        """Wait for connections; port 0: a free one.

        Raises:
            AddressInUse: the port is taken.
        """
        return self._socket("pt_sim_listen", port, what=f"listening on port {port}")

    def dial(self, address: str, port: int) -> Socket:
        """Begin to connect; the socket becomes ready to write when its outcome() is known.

        Raises:
            NetworkFailure: no host of this network has the address.
        """
        return self._socket("pt_sim_dial", _number(address), port, what=f"dialling {address}:{port}")

    def datagram(self, port: int) -> Socket:
        """A socket that hears datagrams and broadcasts on a port, which others may share; port 0: a free one."""
        return self._socket("pt_sim_datagram", port, what=f"hearing datagrams on port {port}")

    def interfaces(self) -> list[tuple[str, int, str, str]]:
        """(name, number, address, broadcast address) of its network and of loopback."""
        return [("sim0", 1, self.address, "10.255.255.255"), ("lo", 2, "127.0.0.1", "127.255.255.255")]

    def set_costs(self, **costs: int) -> None:
        """Change what its processor takes, in ns: send_fixed_ns, send_byte_ns, receive_fixed_ns, receive_byte_ns; what is not given becomes 0."""
        self._set("pt_sim_set_costs", self._simulator._struct("pt_sim_costs", costs))

    def set_window(self, window: int) -> None:
        """Receive window in bytes of the streams it opens from now on."""
        self._set("pt_sim_set_window", self._simulator._binding.limited("window", window, 2**31))

    def set_completion_jitter(self, jitter_ns: int) -> None:
        """Its driver reports each write as done up to so much later, by chance: so they may be reported out of order."""
        self._set("pt_sim_set_completion_jitter", jitter_ns)

    def vanish(self) -> None:
        """Power off: silent and deaf from now on, without a word."""
        self._set("pt_sim_set_vanished", 1)

    def return_(self) -> None:
        """Power on again; the streams of before are broken."""
        self._set("pt_sim_set_vanished", 0)

    def _set(self, call: str, value: Any) -> None:
        self._simulator._made(getattr(self._simulator._lib, call)(self._simulator._open_sim(), self.number, value), f"host {self.name!r}")


_CHANCES = ("loss", "duplicate", "reorder", "damage")


class Simulator:
    """A network in a box, on a clock of its own: hosts, links and sockets, driven by one seed. Time moves when somebody advances it. One thread.

    Args:
        seed: 0 to 2^64 - 1.
        preset: what links and hosts start with: "none" (instant), "lan", "classic" (two old Macs).
        memory_limit: bytes that the network may hold; a packet that finds none is lost.
        trace_records: decisions kept until trace() takes them.

    Attributes:
        hosts: in the order in which they were added.
        address, table: numbers by which a loop of another core reaches this network.

    Raises:
        InvalidArgument: an argument out of its bounds. OutOfMemory: not even an empty network fits the limit.
    """

    def __init__(
        self, binding: Binding, seed: int = 0, *, preset: str = "none", memory_limit: int = 256 << 20, trace_records: int = 16_384
    ) -> None:
        self._binding = binding
        self._ffi = ffi = binding.ffi
        self._lib = lib = binding.lib
        self._sim: Any = None
        if not 0 <= seed < 2**64:
            raise errors.InvalidArgument(f"seed {seed}: it must be 0 to 2^64 - 1")
        self._account = ffi.new("pt_posix_memory *")
        source = ffi.new("pt_memory *")
        lib.pt_posix_memory_source(self._account, source)
        path, costs = self._preset(preset)
        sim = lib.pt_sim_open(source, seed, memory_limit, binding.limited("trace_records", trace_records, 2**24))
        if sim == ffi.NULL:
            raise errors.OutOfMemory(f"memory_limit of {memory_limit:,} bytes: an empty network with {trace_records:,} trace records does not fit")
        self._sim = sim
        lib.pt_sim_set_defaults(sim, path, costs)
        self.seed = seed
        self.hosts: list[Host] = []
        self.address = int(ffi.cast("uintptr_t", sim))
        self.table = int(ffi.cast("uintptr_t", lib.pt_sim_functions()))
        self._loops: dict[Loop, None] = {}  # in order: closing is part of what happens

    def _preset(self, name: str) -> tuple[Any, Any]:
        if name not in PRESETS:
            raise errors.InvalidArgument(f"preset {name!r}: there are {', '.join(map(repr, PRESETS))}")
        path, costs = self._ffi.new("pt_sim_path *"), self._ffi.new("pt_sim_costs *")
        self._lib.pt_sim_get_preset(PRESETS.index(name), path, costs)
        return path, costs

    def _open_sim(self) -> Any:
        if self._sim is None:
            raise errors.InvalidState("this simulator is closed")
        return self._sim

    def _made(self, code: int, what: str) -> int:
        """A result that is no failure.

        Raises:
            PeerTalkError: of the code's class.
        """
        if code < 0:
            raise self._binding.fault(code, what)
        return code

    def _struct(self, name: str, values: dict[str, int]) -> Any:
        made = self._ffi.new(f"{name} *")
        for key, value in values.items():
            if not hasattr(made, key):
                raise errors.InvalidArgument(f"{key}: there is {', '.join(dir(made))}")
            setattr(made, key, value)
        return made

    # Hosts and links

    def add_host(self, name: str, address: str | None = None, *, window: int | None = None, **costs: int) -> Host:
        """Add a machine.

        Args:
            name: for the trace, and for link() and its kin.
            address: dotted IPv4; None: 10.0.0.1 and up.
            window: bytes of receive window of its streams.
            costs: in ns: send_fixed_ns, send_byte_ns, receive_fixed_ns, receive_byte_ns; none given: those of the preset.

        Raises:
            InvalidArgument: the name is taken or the address is none; AddressInUse: it is taken.
        """
        if any(host.name == name for host in self.hosts):
            raise errors.InvalidArgument(f"host {name!r}: there is one already")
        place = len(self.hosts) + 1
        dotted = f"10.0.{place >> 8}.{place & 0xFF}" if address is None else address
        number = self._lib.pt_sim_add_host(self._open_sim(), _number(dotted))
        if number == self._lib.PT_ERR_BUSY:
            raise errors.AddressInUse(f"host {name!r}: another has the address {dotted}")
        host = Host(self, name, dotted, self._made(number, f"host {name!r}"))
        self.hosts.append(host)
        if costs:
            host.set_costs(**costs)
        if window is not None:
            host.set_window(window)
        return host

    def _host(self, host: Host | str) -> Host:
        for known in self.hosts:
            if known is host or known.name == host:
                return known
        raise errors.InvalidArgument(f"host {host!r}: there are {', '.join(repr(known.name) for known in self.hosts) or 'none'}")

    def _ways(self, a: Host | str, b: Host | str, both: bool) -> list[tuple[int, int]]:
        one, other = self._host(a).number, self._host(b).number
        return [(one, other), (other, one)] if both and one != other else [(one, other)]

    def link(self, a: Host | str, b: Host | str, *, both: bool = True, preset: str | None = None, **values: float) -> None:
        """Change the way from a to b, and back.

        Args:
            preset: its values first; None: those that are there.
            values: latency_ns, jitter_ns, byte_ns, reorder_ns; loss, duplicate, reorder, damage: 0 to 1, kept in parts per million.

        Raises:
            InvalidArgument: a value that there is not, or out of its bounds.
        """
        sim = self._open_sim()
        for source, target in self._ways(a, b, both):
            path = self._ffi.new("pt_sim_path *") if preset is None else self._preset(preset)[0]
            if preset is None:
                self._made(self._lib.pt_sim_get_path(sim, source, target, path), "a link")
            for key, value in values.items():
                if not hasattr(path, key) or value < 0:
                    raise errors.InvalidArgument(f"{key} of {value}: give {', '.join(dir(path))}, not negative")
                setattr(path, key, round(value * self._lib.PT_SIM_MILLION) if key in _CHANCES else int(value))
            self._made(self._lib.pt_sim_set_path(sim, source, target, path), "a link")

    def link_values(self, a: Host | str, b: Host | str) -> dict[str, float]:
        """What link() set, of the way from a to b."""
        path = self._ffi.new("pt_sim_path *")
        self._made(self._lib.pt_sim_get_path(self._open_sim(), *self._ways(a, b, False)[0], path), "a link")
        return {key: getattr(path, key) / self._lib.PT_SIM_MILLION if key in _CHANCES else getattr(path, key) for key in dir(path)}

    def link_statistics(self, a: Host | str, b: Host | str) -> LinkCounts:
        """Packets that went from a to b so far."""
        counts = self._ffi.new("pt_sim_counts *")
        self._made(self._lib.pt_sim_get_counts(self._open_sim(), *self._ways(a, b, False)[0], counts), "a link")
        return LinkCounts(*(int(getattr(counts, field)) for field in LinkCounts._fields))

    def cut(self, a: Host | str, b: Host | str, *, both: bool = False) -> None:
        """Drop everything on the way from a to b, silently."""
        for source, target in self._ways(a, b, both):
            self._made(self._lib.pt_sim_set_cut(self._open_sim(), source, target, 1), "a cut")

    def heal(self, a: Host | str | None = None, b: Host | str | None = None) -> None:
        """End the cuts between two hosts, of one host with all others, or all."""
        for one in self.hosts if a is None else [self._host(a)]:
            for other in self.hosts if b is None else [self._host(b)]:
                for source, target in self._ways(one, other, True):
                    self._made(self._lib.pt_sim_set_cut(self._open_sim(), source, target, 0), "a cut")

    def partition(self, *groups: Sequence[Host | str]) -> None:
        """Cut all ways between hosts of different groups."""
        for place, group in enumerate(groups):
            for other in groups[place + 1 :]:
                for a in group:
                    for b in other:
                        self.cut(a, b, both=True)

    # Time

    @property
    def now_ns(self) -> int:
        """Nanoseconds since the beginning."""
        return int(self._lib.pt_sim_now(self._open_sim()))

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return self.now_ns / 1e9

    @property
    def ticks(self) -> int:
        """Ticks of 1/60 s since the beginning, modulo 2^32."""
        return int(self._lib.pt_sim_ticks(self._open_sim()))

    def next_event_ns(self) -> int | None:
        """When the network's next event is due; None: there is none."""
        time_ns = int(self._lib.pt_sim_next_event(self._open_sim()))
        return None if time_ns == 2**64 - 1 else time_ns

    def advance(self, to_ns: int) -> int:
        """Serve all events up to to_ns; then that is the time. Returns how many.

        Raises:
            OutOfMemory: a packet was lost to the memory limit; call again to go on. InvalidState: called from a notification.
        """
        served = self._ffi.new("uint64_t *")
        self._made(self._lib.pt_sim_advance(self._open_sim(), to_ns, served), "advancing the clock")
        return int(served[0])

    def step(self) -> bool:
        """Advance to the time of the next event, and serve all events of that time; False: there is none."""
        time_ns = self.next_event_ns()
        if time_ns is None:
            return False
        self.advance(time_ns)
        return True

    # What happened

    @property
    def trace_hash(self) -> int:
        """FNV-1a 64 over every decision so far: with the same seed and calls the same on every machine."""
        return int(self._lib.pt_sim_trace_hash(self._open_sim()))

    @property
    def trace_dropped(self) -> int:
        """Decisions that were overwritten before trace() took them."""
        return int(self._lib.pt_sim_trace_dropped(self._open_sim()))

    def trace(self) -> list[TraceRecord]:
        """Decisions since the last call, oldest first."""
        names = [host.name for host in self.hosts] + [""]
        records = self._ffi.new("pt_sim_record[]", 1_024)
        taken: list[TraceRecord] = []
        while count := self._lib.pt_sim_trace_read(self._open_sim(), records, len(records)):
            taken += [
                TraceRecord(each.time_ns, TRACE_KINDS[each.kind], names[each.source], names[each.target], each.a, each.b)
                for each in self._ffi.unpack(records, count)
            ]
        return taken

    def note(self, a: int, b: int = 0) -> None:
        """Put two numbers of the caller, 0 to 2^32 - 1, into trace and hash."""
        self._lib.pt_sim_note(self._open_sim(), a, b)

    def random(self, size: int) -> bytes:
        """Bytes from the seed."""
        out = self._ffi.new("uint8_t[]", size)
        self._lib.pt_sim_random(self._open_sim(), out, size)
        return bytes(self._ffi.buffer(out, size))

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes held now, and at most so far."""
        sim = self._open_sim()
        return int(self._lib.pt_sim_bytes(sim, 0)), int(self._lib.pt_sim_bytes(sim, 1))

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._sim is None

    def close(self) -> None:
        """Close the loops that live here, and end the network. Idempotent."""
        if self._sim is not None:
            for loop in list(self._loops):
                loop.close()
            sim, self._sim = self._sim, None
            self._lib.pt_sim_close(sim)

    def __del__(self) -> None:
        if getattr(self, "_sim", None) is not None:
            self.close()


def _pool_classes(lib: Any, pool_bytes: int) -> list[tuple[int, int]]:
    """Size classes of a loop's pool: staging buffers for frames of any size, and slots. No class has more buffers than the budget pays for."""
    sizes = {256, 1040, 4112, lib.PT_FRAME_MAX_PAYLOAD + lib.PT_FRAME_OVERHEAD, lib.PT_POSIX_SLOT_SIZE}
    return [(size, max(1, min(pool_bytes // size, POOL_CAPACITY))) for size in sorted(sizes)]
