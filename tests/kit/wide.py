"""Wide frames for tests of links: encoded by the reference codec, which tests/vectors/wide.json
judges; and what a link tells of them."""

from __future__ import annotations

from typing import Any

from peertalk._core.reference.wide import decode_wide, encode_wide
from peertalk._core.values import BATCH, DATA, FRAME
from peertalk._numbers import FRAME_OVERHEAD, WIDE_HEADER_SIZE


def wide(
    type: int,
    id: int = 0,
    offset: int = 0,
    total: int | None = None,
    payload: bytes = b"",
    reason: int = 0,
) -> bytes:
    """A wide frame; total: None: what its payload has, and so with id 0 a whole message."""
    return encode_wide(type, id, offset, len(payload) if total is None else total, payload, reason)


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
