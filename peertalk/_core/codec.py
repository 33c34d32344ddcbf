"""The pure functions of a compiled core: bytes in, values out, and back.

Encoders raise what a wrong call raises, decoders a ProtocolError; see pt_wire.h for the order of
judgement.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peertalk import errors
from peertalk._core.binding import Binding, Data
from peertalk._core.values import (
    Capability,
    CompactHeader,
    Datagram,
    Discovery,
    FragmentHeader,
    Frame,
    Header,
)


class Codec(Binding):
    """Every encoding of the original protocol, and the CRCs, by the C core."""

    def crc16(self, data: Data, start: int = 0) -> int:
        """CRC-16 of data, continued from start (the CRC of the bytes before; 0 for a new one)."""
        crc = self._crc16(data, start)
        return self._crc_of(self.lib.pt_crc16, data, start, 0xFFFF) if crc is None else crc

    def crc32c(self, data: Data, start: int = 0) -> int:
        """CRC-32C of data, continued from start (the CRC of the bytes before; 0 for a new one)."""
        crc = self._crc32c(data, start)
        return self._crc_of(self.lib.pt_crc32c, data, start, 0xFFFFFFFF) if crc is None else crc

    def _crc_of(self, function: Callable[..., int], data: Data, start: int, limit: int) -> int:
        """What the native function has left: another buffer than bytes, or an error."""
        view = self.flat(data)
        return function(self.limited("CRC start value", start, limit), view, len(view))

    def _frame(self, type: int, flags: int, sequence: int, payload: Any, payload_len: int) -> Any:
        frame = self.ffi.new("pt_frame *")
        frame.type = self.kind("frame", type, self.lib.PT_FRAME_CAPABILITY)
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

    def _decoded(
        self, what: str, decode: Callable[..., int], type_name: str, view: Any
    ) -> tuple[Any, int]:
        """What decode reads from the view, and its size in bytes."""
        out = self.ffi.new(type_name)
        count = decode(view, len(view), out)
        if count < 0:
            raise self.bad(count, what, len(view))
        return out, count

    def encode_header(self, type: int, flags: int, sequence: int, payload_len: int) -> bytes:
        """A full frame header, 10 bytes. InvalidArgument: type is not 1 to 7, or a field does not
        fit its 8 or (payload_len) 16 bits."""
        limit = self.limited("payload_len of a frame", payload_len, 0xFFFF)
        return self._encoded(
            "frame header",
            self.lib.pt_header_encode,
            self._frame(type, flags, sequence, self.ffi.NULL, limit),
            self.lib.PT_HEADER_SIZE,
        )

    def decode_header(self, data: Data) -> Header:
        """Read a full header; the payload length is not judged. Truncated, BadMagic, BadVersion,
        ERR_INVALID_PARAM (type), the first that applies."""
        frame, _ = self._decoded(
            "frame header", self.lib.pt_header_decode, "pt_frame *", self.flat(data)
        )
        return Header(frame.type, frame.flags, frame.sequence, frame.payload_len)

    def encode_frame(self, type: int, payload: Data, flags: int = 0, sequence: int = 0) -> bytes:
        """A whole frame: header, payload, CRC over both. InvalidArgument as encode_header;
        MessageTooLarge: payload over the limit."""
        whole = self._encode_frame(type, payload, flags, sequence)
        if whole is not None:
            return whole
        view = self.flat(payload)
        frame = self._frame(type, flags, sequence, view, len(view))
        limit = self.lib.PT_FRAME_MAX_PAYLOAD
        if len(view) > limit:
            raise errors.MessageTooLarge(
                f"payload of {len(view):,} bytes: the limit is {limit:,} (FRAME_MAX_PAYLOAD)"
            )
        return self._encoded(
            "frame", self.lib.pt_frame_encode, frame, len(view) + self.lib.PT_FRAME_OVERHEAD
        )

    def decode_frame(self, data: Data) -> Frame:
        """Read a whole frame; bytes behind it are left alone. As decode_header; then
        ERR_MESSAGE_TOO_LARGE, Truncated, BadCrc, the first that applies."""
        parts = self._decode_frame(data)
        if parts is not None:
            return Frame._make(parts)
        view = self.flat(data)
        frame, _ = self._decoded("frame", self.lib.pt_frame_decode, "pt_frame *", view)
        return Frame(
            frame.type,
            frame.flags,
            frame.sequence,
            bytes(self.ffi.buffer(frame.payload, frame.payload_len)),
        )

    def encode_compact(self, type: int, flags: int, payload_len: int) -> bytes:
        """A compact header, 4 bytes; only the low four bits of flags fit. InvalidArgument as
        encode_header."""
        limit = self.limited("payload_len of a frame", payload_len, 0xFFFF)
        return self._encoded(
            "compact header",
            self.lib.pt_compact_encode,
            self._frame(type, flags, 0, self.ffi.NULL, limit),
            self.lib.PT_COMPACT_HEADER_SIZE,
        )

    def decode_compact(self, data: Data) -> CompactHeader:
        """Read a compact header. Truncated, BadMagic, ERR_INVALID_PARAM (type), the first that
        applies."""
        frame, _ = self._decoded(
            "compact header", self.lib.pt_compact_decode, "pt_frame *", self.flat(data)
        )
        return CompactHeader(frame.type, frame.flags, frame.payload_len)

    def is_compact(self, data: Data) -> bool:
        """Whether the bytes begin like a compact header: 'P', then anything but 'T'. False while
        there are fewer than two."""
        view = self.flat(data)
        return bool(self.lib.pt_is_compact(view, len(view)))

    def encode_discovery(
        self, type: int, port: int, name: Data, flags: int = 0, transports: int = 3
    ) -> bytes:
        """A discovery packet, 14 to 45 bytes. InvalidArgument: type is not 1 to 3, name over 31
        bytes, or a field out of its bounds."""
        view = self.flat(name)
        packet = self.ffi.new("pt_discovery *")
        packet.type = self.kind("discovery packet", type, self.lib.PT_DISCOVERY_GOODBYE)
        if len(view) > self.lib.PT_NAME_MAX:
            raise errors.InvalidArgument(
                f"peer name of {len(view):,} bytes: the limit is {self.lib.PT_NAME_MAX} "
                "(NAME_MAX); shorten it"
            )
        packet.flags = self.limited("flags of a discovery packet", flags, 0xFFFF)
        packet.port = self.limited("port of a discovery packet", port, 0xFFFF)
        packet.transports = self.limited("transports of a discovery packet", transports, 0xFF)
        packet.name_len = len(view)
        self.ffi.memmove(packet.name, view, len(view))
        return self._encoded(
            "discovery packet", self.lib.pt_discovery_encode, packet, self.lib.PT_DISCOVERY_MAX_SIZE
        )

    def decode_discovery(self, data: Data) -> Discovery:
        """Read a discovery packet; what lies behind its CRC is not looked at. Errors in the order
        of pt_discovery_decode()."""
        packet, size = self._decoded(
            "discovery packet", self.lib.pt_discovery_decode, "pt_discovery *", self.flat(data)
        )
        return Discovery(
            packet.type,
            packet.flags,
            packet.port,
            packet.transports,
            bytes(self.ffi.buffer(packet.name, packet.name_len)),
            size,
        )

    def encode_capability(
        self, max_message: int, preferred_chunk: int, pressure: int, flags: int
    ) -> bytes:
        """The four TLVs of the original, 15 bytes; values go out as they are. InvalidArgument: one
        does not fit its 16 or (pressure) 8 bits."""
        capability = self.ffi.new("pt_capability *")
        capability.max_message = self.limited("max_message of a capability", max_message, 0xFFFF)
        capability.preferred_chunk = self.limited(
            "preferred_chunk of a capability", preferred_chunk, 0xFFFF
        )
        capability.pressure = self.limited("pressure of a capability", pressure, 0xFF)
        capability.flags = self.limited("flags of a capability", flags, 0xFFFF)
        return self._encoded(
            "capability", self.lib.pt_capability_encode, capability, self.lib.PT_CAPABILITY_SIZE
        )

    def decode_capability(self, data: Data) -> Capability:
        """Read the payload of a CAPABILITY frame: TLVs in any order, what is missing has its
        default. Truncated: a length runs past the end."""
        capability, _ = self._decoded(
            "capability", self.lib.pt_capability_decode, "pt_capability *", self.flat(data)
        )
        return Capability(
            capability.max_message,
            capability.preferred_chunk,
            capability.pressure,
            capability.flags,
        )

    def encode_datagram(self, port: int, payload: Data) -> bytes:
        """A UDP message. InvalidArgument: port is not 0 to 65,535. MessageTooLarge: payload has
        more than 1,392 bytes."""
        view = self.flat(payload)
        datagram = self.ffi.new("pt_datagram *")
        datagram.port = self.limited("port of a datagram", port, 0xFFFF)
        limit = self.lib.PT_DATAGRAM_MAX_PAYLOAD
        if len(view) > limit:
            raise errors.MessageTooLarge(
                f"datagram of {len(view):,} bytes: the limit is {limit:,} (DATAGRAM_MAX_PAYLOAD)"
            )
        datagram.payload = view
        datagram.payload_len = len(view)
        return self._encoded(
            "datagram",
            self.lib.pt_datagram_encode,
            datagram,
            len(view) + self.lib.PT_DATAGRAM_HEADER_SIZE,
        )

    def decode_datagram(self, data: Data) -> Datagram:
        """Read a UDP message; bytes behind its payload are left alone. Truncated, BadMagic,
        Truncated, the first that applies."""
        view = self.flat(data)
        datagram, _ = self._decoded("datagram", self.lib.pt_datagram_decode, "pt_datagram *", view)
        return Datagram(
            datagram.port, bytes(self.ffi.buffer(datagram.payload, datagram.payload_len))
        )

    def encode_fragment(self, message_id: int, total_len: int, offset: int, flags: int) -> bytes:
        """A fragment header, 8 bytes. InvalidArgument: a field does not fit its 16 or (flags) 8
        bits."""
        fragment = self.ffi.new("pt_fragment *")
        fragment.message_id = self.limited("message_id of a fragment", message_id, 0xFFFF)
        fragment.total_len = self.limited("total_len of a fragment", total_len, 0xFFFF)
        fragment.offset = self.limited("offset of a fragment", offset, 0xFFFF)
        fragment.flags = self.limited("flags of a fragment", flags, 0xFF)
        return self._encoded(
            "fragment header",
            self.lib.pt_fragment_encode,
            fragment,
            self.lib.PT_FRAGMENT_HEADER_SIZE,
        )

    def decode_fragment(self, data: Data) -> FragmentHeader:
        """Read the header at the front of a fragment. Truncated: fewer than 8 bytes. What the
        fields mean together is not judged here."""
        fragment, _ = self._decoded(
            "fragment header", self.lib.pt_fragment_decode, "pt_fragment *", self.flat(data)
        )
        return FragmentHeader(
            fragment.message_id, fragment.total_len, fragment.offset, fragment.flags
        )

    def split_batch(self, payload: Data) -> list[bytes]:
        """The entries of a DATA frame with the batch flag, in order. All of it is judged before any
        of it is believed.

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
