"""What a turn of the reference core reads of its links, and what of that it takes apart.

A turn is bounded by work, so a link may bring more than it may take apart: the rest is held, and
comes in the next turns before anything else is read of that link. A link whose unasked wide frame
is cut, and finds no room beside those of others, starves: it is not read until there is room.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from peertalk import errors
from peertalk._core.reference.landing import Arrival
from peertalk._core.reference.system import NOT_NOW, network_fault
from peertalk._core.values import (
    BATCH,
    BATCHED,
    DATA,
    FRAGMENT,
    FRAME,
    READ,
    WRITE,
    Frame,
    says_nothing_more,
)
from peertalk._numbers import (
    ERR_CRC,
    ERR_TIMEOUT,
    ERR_TRUNCATED,
    LINK_MAX_WORK,
    LINK_OPEN,
    POSIX_SLOT_SIZE,
    TINY_PAYLOAD,
    WORK_CONTROL,
    WORK_TINY,
)

if TYPE_CHECKING:
    from peertalk._core.reference.link import Link
    from peertalk._core.reference.source import Event


def serve(link: Link, mask: int, events: list[Event], alone: bool) -> None:
    """Do what readiness allows; alone: as nobody else has anything to read, a whole receive
    buffer."""
    loop = link._loop
    if mask & READ and link._interest & READ and not link._held:
        if loop._work_left > 0:
            _read(
                link,
                events,
                len(loop._buffer) if alone else POSIX_SLOT_SIZE,
                loop._work_left if alone else min(loop._work_left, LINK_MAX_WORK),
            )
    if mask & WRITE and link._output.blocked:
        link._output.blocked = False
        link._push()


def _read(link: Link, events: list[Event], size: int, work: int) -> int:
    """One read of up to size bytes, whose frames are handed on as far as work goes. Returns the
    bytes read."""
    loop = link._loop
    size = min(size, link.read_max)
    link._read_calls += 1
    try:
        with loop._buffer[:size] as space:
            count = os.readv(link._fd, [space])
    except OSError as error:
        if error.errno not in NOT_NOW:
            link._end(*(link._fault or network_fault(error)))
        return 0
    if count == 0:
        _end_of_stream(link)
        return 0
    link._bytes_received += count
    with loop._buffer[:count] as data:
        _take_apart(link, data, events, work)
    return count


def _take_apart(link: Link, data: memoryview, events: list[Event], work: int) -> None:
    """The frames of these bytes, handed on as far as work goes."""
    loop = link._loop
    was_partial, steps = link._ingest.partial_len > 0, link._ingest.landed_steps
    fault = 0
    frames: list[Frame | Arrival] = []
    try:
        frames = link._ingest.receive(data)
        if link._ingest.consumed < len(data):
            frames += _receive_starved(link, data[link._ingest.consumed :])
    except errors.ProtocolError as error:
        frames += error.frames
        fault = error.code
    link._held.extend(frames)
    hand_on(link, events, 1 << 62 if fault else work)
    if fault:
        loop._bad_frames += 1
        loop._crc_errors += fault == ERR_CRC
        link._end(fault, 0)
    else:
        progress = bool(frames) or link._ingest.landed_steps != steps
        link._update_frame_timer(progress or not was_partial)
        if not loop._landing.let_land(link):
            link._starve()


def _receive_starved(link: Link, data: memoryview) -> list[Frame | Arrival]:
    """The pool lent no buffer for a cut frame: the spare one does, so that a link never stands
    still with half a frame."""
    link._ingest._pool = link._loop._spare
    try:
        return link._ingest.receive(data)
    finally:
        link._ingest._pool = link._loop._door


def hand_on(link: Link, events: list[Event], work: int) -> None:
    """Hand on frames as far as work goes: consecutive plain DATA frames become one BATCH, any
    other a FRAME in its place, but for slices in the middle of a message. What is left comes in a
    later turn."""
    batch: list[bytes] = []
    size = used = 0
    while link._held and used < work:
        word, payload, payload_len = _arrival(link._held.popleft())
        link._frames_received += 1
        link._payload_bytes_received += payload_len
        if word == DATA or payload is None:
            used += 1 if payload_len >= TINY_PAYLOAD else WORK_TINY
            if payload is not None:
                batch.append(payload)
                size += payload_len
            continue
        used += WORK_CONTROL
        if batch:
            events.append((BATCH, link.tag, size, batch))
            batch, size = [], 0
        frame = (FRAME, link.tag, word, payload)
        if not (events and says_nothing_more(frame, events[-1])):
            events.append(frame)
    if batch:
        events.append((BATCH, link.tag, size, batch))
    link._loop._work_left -= used
    if link._held and link._is_read():
        link._loop._holding[link] = None


def _arrival(frame: Frame | Arrival) -> Arrival:
    """A frame as what its event says; DATA alone: a message like any other."""
    if isinstance(frame, Arrival):
        return frame
    type, flags, sequence, payload = frame
    if type == DATA and not flags & (FRAGMENT | BATCHED):
        return Arrival(DATA, payload, len(payload))
    return Arrival(type | flags << 8 | sequence << 16, payload, len(payload))


def _end_of_stream(link: Link) -> None:
    if link._fault is not None:
        link._end(*link._fault)
    elif link._ingest.partial_len:
        link._end(ERR_TRUNCATED, 0)
    else:
        link._read_ended = True
        link._update_interest()
        if link._state == LINK_OPEN:
            link._finish_due = True
            link._loop._dirty[link] = None
        else:
            link._finish()


def end_late_frame(link: Link, events: list[Event]) -> None:
    """The time of a cut frame is over. Its rest may lie in the system all the same, if it was
    this program that had no time: read once more before the link ends."""
    loop = link._loop
    if link._held or loop._work_left <= 0:
        loop._arm(link._frame_key, link, 0.001)  # it waits for us
        return
    partial, before = link._ingest.partial_len, _progress(link)
    _read(link, events, POSIX_SLOT_SIZE, loop._work_left)
    if partial and link._is_read() and _progress(link) == before:
        link._end(ERR_TIMEOUT, 0)


def _progress(link: Link) -> tuple[int, int]:
    """What has come of a link: whole frames, and steps of a wide one."""
    return link._frames_received + len(link._held), link._ingest.landed_steps
