"""Wide frames for tests of links: whole ones, by the header of the reference core, which
tests/vectors/wide.json judges; and what a link tells of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from peertalk import errors
from peertalk._core.reference.crc32c import crc32c
from peertalk._core.reference.wide import decode_wide_header, wide_header
from peertalk._core.values import BATCH, DATA, FRAME
from peertalk._numbers import FRAME_OVERHEAD, WIDE_HEADER_SIZE


class WideFrame(NamedTuple):
    """A whole wide frame, its CRC checked."""

    type: int
    reason: int
    id: int
    offset: int
    total: int
    payload: bytes


def wide(
    type: int,
    id: int = 0,
    offset: int = 0,
    total: int | None = None,
    payload: bytes = b"",
    reason: int = 0,
) -> bytes:
    """A wide frame; total: None: what its payload has, and so with id 0 a whole message."""
    total = len(payload) if total is None else total
    return wide_header(type, id, offset, total, payload, reason) + payload


def decode_wide(data: bytes) -> WideFrame:
    """Read a whole wide frame; bytes behind it are left alone. ProtocolError: it is none."""
    header = decode_wide_header(data)
    payload = data[WIDE_HEADER_SIZE : WIDE_HEADER_SIZE + header.payload_len]
    if len(payload) < header.payload_len:
        raise errors.Truncated(f"{len(payload)} of {header.payload_len} bytes")
    if crc32c(payload, crc32c(data[: WIDE_HEADER_SIZE - 4])) != header.crc:
        raise errors.BadCrc(f"not {header.crc:#010x}")
    return WideFrame(*header[:2], *header[3:6], payload)


def wide_frames_in(core: Any, data: bytes) -> list[Any]:
    """What stands on the wire, frame by frame: full ones and wide ones."""
    frames, rest = [], data
    while rest:
        is_wide = rest.startswith(b"WM")
        frames.append((decode_wide if is_wide else core.decode_frame)(rest))
        framing = WIDE_HEADER_SIZE if is_wide else FRAME_OVERHEAD
        rest = rest[framing + len(frames[-1].payload) :]
    return frames


def grant_all(link: Any, totals: dict[int, int]) -> None:
    """Expect messages of such ids and lengths."""
    for id, total in totals.items():
        assert link.expect(id, total) == 0


def heard(events: list[Any]) -> list[Any]:
    """What came, in order: a message as its bytes, any other frame as (word, payload)."""
    found: list[Any] = []
    for kind, _, word, payload in events:
        if kind == BATCH:
            found += payload
        elif kind == FRAME:
            assert word != DATA, "a plain message is told in a batch"
            found.append((word, payload))
    return found
