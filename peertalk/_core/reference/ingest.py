"""The receiving half of a link: bytes in, cut anywhere, whole frames out, full, compact and wide
ones. The yardstick of the C machine.

A frame that lies whole in the bytes of one call is taken where it lies. One that is cut borrows a
staging buffer as soon as its header is whole, and what is wide lands where its message does; a cut
header waits outside the pool. Invariant: between calls either less than a header is held, or a
staging buffer or a slice with less than its frame.
"""

from __future__ import annotations

from peertalk._core.reference.crc import crc16
from peertalk._core.reference.landing import Arrival, Landings, Slice
from peertalk._core.reference.pool import Buffer, BufferPool, PoolDoor
from peertalk._core.reference.wide import MAGIC as WIDE_START
from peertalk._core.reference.wire import bad_crc, decode_compact, decode_header, is_compact
from peertalk._core.values import Frame, Header
from peertalk._numbers import (
    COMPACT_HEADER_SIZE,
    ERR_MESSAGE_TOO_LARGE,
    FRAME_MAX_PAYLOAD,
    HEADER_SIZE,
    INGEST_INIT,
    INGEST_WAIT_HEADER,
    INGEST_WAIT_PAYLOAD,
    TRAILER_SIZE,
    WIDE_HEADER_SIZE,
)
from peertalk.errors import InvalidArgument, InvalidState, OutOfMemory, ProtocolError

START = 2
"""Bytes that tell the three headers from each other."""
HEADER_MAX_PAYLOAD = 65_535
LANDED_STEP = 8_192
"""Bytes of a wide frame that come for as long as a full frame of that size may take."""

_T = ord("T")
_TRAILER_SIZES = {HEADER_SIZE: TRAILER_SIZE, COMPACT_HEADER_SIZE: 0}


class Ingest:
    """Reads message frames from a stream: full ones, and compact ones between them, whose sequence
    reads 0.

    Args:
        max_payload: longest payload in bytes that is taken; a longer one is a fault, judged on the
            header. None: 8,192.
        pool: lends staging buffers; its largest class must hold a whole frame. None: a pool of one
            such buffer.
        landings: where wide frames land. None: a wide frame is a fault.

    Raises:
        InvalidArgument: max_payload is not 0 to 65,535, what a header can say.
    """

    def __init__(
        self,
        max_payload: int | None = None,
        pool: BufferPool | PoolDoor | None = None,
        landings: Landings | None = None,
    ) -> None:
        self.consumed = 0
        self.state = INGEST_WAIT_HEADER
        self._max_payload = FRAME_MAX_PAYLOAD if max_payload is None else max_payload
        if not 0 <= self._max_payload <= HEADER_MAX_PAYLOAD:
            raise InvalidArgument(
                f"max_payload is {self._max_payload:,}: it must be 0 to {HEADER_MAX_PAYLOAD:,}"
            )
        self._pool = pool or BufferPool([(HEADER_SIZE + self._max_payload + TRAILER_SIZE, 1)])
        self._landings = landings
        self._header = b""
        self._slice: Slice | None = None
        self._staging: Buffer | None = None
        self._staged_len = 0
        self._frame_len = 0

    def receive(self, data: bytes | bytearray | memoryview) -> list[Frame | Arrival]:
        """Take bytes of the stream; consumed says how many were taken.

        Returns:
            The frames that became whole. When the pool has no buffer for a cut frame, consumed is
            where it starts in data (0 when its header was cut by an earlier call); give the same
            bytes again from there.

        Raises:
            ProtocolError: a frame is bad (BadMagic, BadVersion, BadCrc; code ERR_INVALID_PARAM for
                its type, ERR_MESSAGE_TOO_LARGE when it is too long). The whole frames before it are
                in .frames, consumed is where it starts in data (0 when it began in an earlier
                call), and the machine takes no more.
            InvalidState: after a fault, or after close().
        """
        self.consumed = 0
        if self.state == INGEST_INIT:
            raise InvalidState("the ingest takes no more bytes: it met a bad frame or was closed")
        frames: list[Frame | Arrival] = []
        try:
            with memoryview(data).cast("B") as view:
                if self.partial_len and view:
                    self._finish_cut_frame(view, frames)
                if self.consumed < len(view):
                    self._take_whole_frames(view, frames)
        except OutOfMemory:
            pass  # not now: the caller sees it in consumed
        except ProtocolError as fault:
            self.close()
            fault.frames = frames
            raise
        return frames

    def _finish_cut_frame(self, view: memoryview, frames: list[Frame | Arrival]) -> None:
        taken = 0
        if self._staging is None and self._slice is None:
            header = self._header + bytes(view[: max(0, START - len(self._header))])
            if len(header) >= START:
                at = len(header) - len(self._header)
                header += bytes(view[at : at + self._header_size(header) - len(header)])
            taken = len(header) - len(self._header)
            if len(header) < self._header_size(header):
                self._header = header
                self.consumed = len(view)
                return
            self._begin_cut_frame(header)
            self._header = b""
        if self._slice is not None:
            taken += self._slice.take(view[taken:])
            self._end_slice(frames)
        else:
            taken += self._stage(view[taken:])
            self._end_staged(frames)
        self.consumed = taken

    def _begin_cut_frame(self, header: bytes) -> None:
        """The header of a cut frame is whole. OutOfMemory: nothing has changed."""
        if self._landings is not None and header.startswith(WIDE_START):
            self._slice = self._landings.begin(header)
            self.state = INGEST_WAIT_PAYLOAD
        else:
            self._begin_staging(header, self._judge_header(header))

    def _end_staged(self, frames: list[Frame | Arrival]) -> None:
        if self._staged_len == self._frame_len:
            assert self._staging is not None
            frame = self._verify(memoryview(self._staging.view[: self._frame_len].tobytes()))
            self._give_back_staging()
            frames.append(frame)

    def _end_slice(self, frames: list[Frame | Arrival]) -> None:
        if self._slice is not None and self._slice.is_whole:
            assert self._landings is not None
            frames.append(self._landings.end())
            self._slice = None
            self.state = INGEST_WAIT_HEADER

    def _take_whole_frames(self, view: memoryview, frames: list[Frame | Arrival]) -> None:
        """Take what lies whole behind consumed, and keep the cut frame at the end."""
        end = len(view)
        while (left := end - (start := self.consumed)) >= START:
            is_full = view[start + 1] == _T  # nearly every frame is
            size = HEADER_SIZE if is_full else self._header_size(view[start : start + START])
            if left < size:
                break
            if size == WIDE_HEADER_SIZE:
                self._take_slice(view[start:], frames)
                continue
            header = view[start : start + size]
            decoded = self._judge_header(header)
            frame_len = size + decoded.payload_len + _TRAILER_SIZES[size]
            if left < frame_len:
                self._begin_staging(header, decoded)
                self._stage(view[start + size :])
                self.consumed = end
                return
            frames.append(self._verify(view[start : start + frame_len], decoded))
            self.consumed = start + frame_len
        self._header = bytes(view[self.consumed :])
        self.consumed = end

    def _take_slice(self, view: memoryview, frames: list[Frame | Arrival]) -> None:
        """Take the wide frame whose header lies at the front of view, or what is there of it."""
        assert self._landings is not None
        header, rest = bytes(view[:WIDE_HEADER_SIZE]), view[WIDE_HEADER_SIZE:]
        self._slice = self._landings.begin(header)
        self.state = INGEST_WAIT_PAYLOAD
        taken = self._slice.take(rest)
        self._end_slice(frames)
        self.consumed += WIDE_HEADER_SIZE + taken

    def _judge_header(self, header: bytes | memoryview) -> Header:
        if len(header) == COMPACT_HEADER_SIZE:
            type, flags, payload_len = decode_compact(header)
            decoded = Header(type, flags, 0, payload_len)
        else:
            decoded = decode_header(header)
        if decoded.payload_len > self._max_payload:
            raise ProtocolError(
                f"a frame announces a payload of {decoded.payload_len:,} bytes: the limit is "
                f"{self._max_payload:,} (max_payload)",
                code=ERR_MESSAGE_TOO_LARGE,
            )
        return decoded

    def _verify(self, whole: memoryview, decoded: Header | None = None) -> Frame:
        if decoded is None:
            decoded = self._judge_header(whole[: self._header_size(whole)])
        if whole[1] != _T:  # compact: nothing vouches for it
            return Frame(
                decoded.type, decoded.flags, decoded.sequence, bytes(whole[COMPACT_HEADER_SIZE:])
            )
        covered, trailer = whole[:-TRAILER_SIZE], whole[-TRAILER_SIZE:]
        crc, computed = int.from_bytes(trailer, "big"), crc16(covered)
        if crc != computed:
            raise bad_crc("a frame", crc, computed, len(covered))
        return Frame(decoded.type, decoded.flags, decoded.sequence, bytes(covered[HEADER_SIZE:]))

    def _begin_staging(self, header: bytes | memoryview, decoded: Header) -> None:
        """Borrow memory for a cut frame whose header is whole. OutOfMemory: nothing has changed."""
        frame_len = len(header) + decoded.payload_len + _TRAILER_SIZES[len(header)]
        self._staging = self._pool.acquire(frame_len, share=True)
        self._frame_len = frame_len
        self._staged_len = 0
        self._stage(header)
        self.state = INGEST_WAIT_PAYLOAD

    def _stage(self, data: bytes | memoryview) -> int:
        """Keep what the cut frame still lacks. Returns how many bytes of data that were."""
        assert self._staging is not None
        piece = data[: self._frame_len - self._staged_len]
        end = self._staged_len + len(piece)
        self._staging.view[self._staged_len : end] = piece
        self._staged_len = end
        return len(piece)

    def _give_back_staging(self) -> None:
        if self._staging is not None:
            self._staging.release(self._staged_len)
        self._staging = None
        self._staged_len = self._frame_len = 0
        self.state = INGEST_WAIT_HEADER

    @property
    def partial_len(self) -> int:
        """Bytes of an unfinished frame that are held; 0 between frames."""
        if self._slice is not None:
            return WIDE_HEADER_SIZE + self._slice.come
        return self._staged_len or len(self._header)

    @property
    def landed_steps(self) -> int:
        """How far a wide frame has come that is under way: what counts as a frame of its own for
        the time that it may take."""
        return 0 if self._slice is None else self.partial_len // LANDED_STEP

    def close(self) -> None:
        """Give staging memory back; idempotent."""
        self._give_back_staging()
        self._slice = None
        self._header = b""
        self.state = INGEST_INIT

    def _header_size(self, start: bytes | memoryview) -> int:
        """Bytes of the header that starts so; a full one's while that cannot be told."""
        if self._landings is not None and start[:START] == WIDE_START:
            return WIDE_HEADER_SIZE
        return COMPACT_HEADER_SIZE if is_compact(start[:START]) else HEADER_SIZE
