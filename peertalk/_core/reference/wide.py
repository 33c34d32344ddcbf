"""The wide form of a frame in plain Python: large messages, whole or in slices, and what two sides
say about them. The yardstick of the C core.

One header, and the rules that a single one must keep; what several mean together is judged where
their bytes land.
"""

from __future__ import annotations

import struct

from peertalk import errors
from peertalk._core.reference.crc32c import crc32c
from peertalk._core.reference.wire import Data
from peertalk._core.values import WideHeader
from peertalk._numbers import (
    ERR_MESSAGE_TOO_LARGE,
    FRAME_DATA,
    FRAME_GRANT,
    FRAME_OFFER,
    FRAME_REFUSE,
    WIDE_HEADER_SIZE,
    WIDE_MAX_PAYLOAD,
)

MAGIC = b"WM"

_TYPES = (FRAME_DATA, FRAME_OFFER, FRAME_GRANT, FRAME_REFUSE)
# magic, type, reason, payload length, message id, offset, total length; a CRC follows
_HEADER = struct.Struct(">2sBBIIII")
_CRC = struct.Struct(">I")


def wide_header(
    type: int, id: int, offset: int, total: int, payload: Data, reason: int = 0
) -> bytes:
    """The header that stands before a payload in a wide frame, 24 bytes, for whoever has seen to
    the fields. struct.error: one does not fit its 32 or (reason) 8 bits."""
    covered = _HEADER.pack(MAGIC, type, reason, len(payload), id, offset, total)
    return covered + _CRC.pack(crc32c(payload, crc32c(covered)))


def _fault(type: int, payload_len: int, id: int, offset: int, total: int) -> str | None:
    """Which rule of a single wide frame is broken; None: none."""
    if type != FRAME_DATA:
        return f"{payload_len:,} bytes in a wide frame of type {type}" if payload_len else None
    if not payload_len:
        return "a slice without a byte"
    if offset + payload_len > total:
        return f"a slice up to byte {offset + payload_len:,} of a message of {total:,}"
    if id == 0 and payload_len != total:
        return f"{payload_len:,} bytes, not all {total:,}, of a message that was not offered"
    return None


def decode_wide_header(data: Data) -> WideHeader:
    """Read a wide header; what lies behind it is not looked at, and its CRC is not judged.

    Raises:
        ProtocolError: Truncated (under 24 bytes), BadMagic, ERR_INVALID_PARAM (type),
            ERR_MESSAGE_TOO_LARGE (payload above 262,144), ERR_INVALID_PARAM (DATA without payload,
            others with one, a slice that ends behind the total, id 0 with less than the whole
            message), the first that applies.
    """
    data = bytes(data[:WIDE_HEADER_SIZE])
    if len(data) < WIDE_HEADER_SIZE:
        raise errors.Truncated(f"wide header of {len(data)} bytes: {WIDE_HEADER_SIZE} are needed")
    magic, type, reason, payload_len, id, offset, total = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise errors.BadMagic(f"wide frame begins with {magic.hex()}: it should be 574d (WM)")
    if type not in _TYPES:
        raise errors.ProtocolError(f"wide frame of type {type}: types are 1 and 8 to 10")
    if payload_len > WIDE_MAX_PAYLOAD:
        raise errors.ProtocolError(
            f"wide frame announces {payload_len:,} payload bytes: the limit is "
            f"{WIDE_MAX_PAYLOAD:,} (WIDE_MAX_PAYLOAD)",
            code=ERR_MESSAGE_TOO_LARGE,
        )
    fault = _fault(type, payload_len, id, offset, total)
    if fault:
        raise errors.ProtocolError(f"wide frame: {fault}")
    crc = _CRC.unpack_from(data, _HEADER.size)[0]
    return WideHeader(type, reason, payload_len, id, offset, total, crc)
