"""Where wide frames land: messages that were granted, and those that come unasked in one frame. The
yardstick of the C core.

Slices of one message come in the order of their offsets without a gap. So the bytes of it that have
come say where its next slice must begin. Invariant: a message is in the table from expect() on
until it is whole or forgotten; its memory may be given back before that. Never: memory for a
message that was neither granted nor bounded by one frame.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from peertalk._core.reference.crc32c import crc32c
from peertalk._core.reference.wide import decode_wide_header
from peertalk._core.reference.wire import bad_crc
from peertalk._core.values import DATA, LANDED
from peertalk._numbers import (
    ERR_INVALID_PARAM,
    ERR_INVALID_STATE,
    ERR_NO_MEMORY,
    ERR_NOT_CONNECTED,
    LINK_OPEN,
    OK,
    WIDE_HEADER_SIZE,
)
from peertalk.errors import ProtocolError

LARGEST = 2**32 - 1
"""The highest id, and bytes of the longest message: what a wide header can say."""
NO_LIMIT = 2**32 - 1
COVERED = WIDE_HEADER_SIZE - 4
"""Bytes of a wide header that its CRC covers."""


class Lander(Protocol):
    """What is asked of a link on which wide frames come."""

    _landings: Landings
    _landing: int
    """Bytes of its unasked frame that was let in; 0: none."""

    def _go_on(self) -> None: ...


class LandingRoom:
    """How many payload bytes of unasked wide frames may be under way on all links of a loop, and
    who waits for room."""

    def __init__(self) -> None:
        self._limit = NO_LIMIT
        self._used = 0
        self._waiting: dict[Lander, None] = {}

    @property
    def limit(self) -> int:
        """Bytes; one frame is always let in."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._call()

    def let_land(self, link: Lander) -> bool:
        """Count the unasked frame that is cut on this link now, and no other. False: there is no
        room for it beside others, and the link is told to go on when there is."""
        wanted = link._landings.unasked
        if link._landing == wanted:
            return True
        given_back, link._landing = link._landing, 0
        self._used -= given_back
        if given_back:
            self._call()
        if wanted and self._used and self._used + wanted > self._limit:
            self._waiting[link] = None
            return False
        self._used += wanted
        link._landing = wanted
        return True

    def leave(self, link: Lander) -> None:
        """This link waits no more; nothing happens when it does not wait."""
        self._waiting.pop(link, None)

    def _call(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for link in waiting:
            if self.let_land(link):
                link._go_on()


class Arrival(NamedTuple):
    """A whole wide frame. word: type | flags << 8 | id << 24, as the event of it says; payload: of
    the event, None: the frame makes no event; payload_len: bytes behind its header."""

    word: int
    payload: bytes | None
    payload_len: int


class Message:
    """What has come of a message of total bytes."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.come = 0
        self.forgotten = False
        self._memory: bytearray | None = bytearray(total)

    def put(self, data: memoryview) -> None:
        """Bytes that follow those that have come."""
        if self._memory is not None:
            self._memory[self.come : self.come + len(data)] = data
        self.come += len(data)

    def drop(self) -> None:
        """Give the memory back: what still comes is counted alone."""
        self._memory = None

    @property
    def dropped(self) -> bool:
        """Whether nothing of it will be handed on."""
        return self._memory is None

    def whole(self) -> bytes | None:
        """The message if all of it has come and is kept."""
        return None if self._memory is None or self.come < self.total else bytes(self._memory)


class Landings:
    """The messages that come to one link in wide frames."""

    def __init__(self) -> None:
        self._messages: dict[int, Message] = {}
        self._under_way: Slice | None = None

    @property
    def unasked(self) -> int:
        """Payload bytes of the frame that is under way, if that was not asked for; else 0."""
        frame = self._under_way
        return 0 if frame is None or frame.id or frame.message is None else frame.payload_len

    def expect(self, id: int, total: int) -> int:
        """Memory for a message that is granted. Returns OK, ERR_INVALID_STATE (the id is there
        already), ERR_NO_MEMORY, or ERR_INVALID_PARAM (no message can have that id or total)."""
        if not 1 <= id <= LARGEST or not 1 <= total <= LARGEST:
            return ERR_INVALID_PARAM
        if id in self._messages:
            return ERR_INVALID_STATE
        try:
            self._messages[id] = Message(total)
        except MemoryError:
            return ERR_NO_MEMORY
        return OK

    def forgo(self, id: int) -> None:
        """Give the memory of a message back; its slices are dropped as they come."""
        if id in self._messages:
            self._messages[id].drop()

    def forget(self, id: int) -> None:
        """No slice of the message is right any more; of one that has begun that is said at its
        end."""
        message = self._messages.get(id)
        if message is None:
            return
        message.drop()
        if self._under_way is not None and self._under_way.message is message:
            message.forgotten = True
        else:
            del self._messages[id]

    def landed(self, id: int) -> int:
        """Bytes of the message that have come; -1: it is unknown or forgone."""
        message = self._messages.get(id)
        return -1 if message is None or message.dropped else message.come

    def begin(self, header: bytes) -> Slice:
        """Judge a header, and find a place for what follows.

        Raises:
            ProtocolError: the frame is bad, or no such slice is expected.
        """
        type, reason, payload_len, id, offset, total, crc = decode_wide_header(header)
        frame = self._under_way = Slice(header, crc, payload_len)
        if type != DATA:
            frame.arrival = Arrival(type | reason << 8, header[8:COVERED], 0)
            return frame
        if id:
            message = self._messages.get(id)
            if message is None or message.total != total or message.come != offset:
                expected = (
                    "none" if message is None else f"byte {message.come:,} of {message.total:,}"
                )
                raise ProtocolError(
                    f"a slice of message {id} from byte {offset:,} of {total:,} on: expected is "
                    f"{expected}",
                    code=ERR_INVALID_PARAM,
                )
            frame.message, frame.id = message, id
            return frame
        frame.message = Message(total)
        return frame

    def end(self) -> Arrival:
        """The frame under way is whole. Returns what it brings.

        Raises:
            ProtocolError: BadCrc, or ERR_INVALID_PARAM: its message was forgotten meanwhile.
        """
        frame, self._under_way = self._under_way, None
        assert frame is not None
        frame.check()
        if frame.arrival is not None:
            return frame.arrival
        assert frame.message is not None
        if frame.message.forgotten:
            raise ProtocolError(
                f"a slice of message {frame.id}, which was forgotten", code=ERR_INVALID_PARAM
            )
        payload = frame.message.whole()
        word = DATA
        if payload is not None and frame.id:
            word |= LANDED << 8 | frame.id << 24
            del self._messages[frame.id]
        return Arrival(word, payload, frame.payload_len)

    def close(self) -> None:
        """Forget all messages, and the frame under way."""
        self._messages.clear()
        self._under_way = None


class Slice:
    """A wide frame whose header was judged, while its payload comes."""

    def __init__(self, header: bytes, crc: int, payload_len: int) -> None:
        self.id = 0
        self.message: Message | None = None
        self.arrival: Arrival | None = None
        self.payload_len = payload_len
        self.come = 0
        self._expected_crc = crc
        self._crc = crc32c(header[:COVERED])

    @property
    def is_whole(self) -> bool:
        """Whether the last byte has come."""
        return self.come == self.payload_len

    def take(self, data: memoryview) -> int:
        """Bytes of the stream, of which those behind this frame are left alone. Returns how many
        were taken."""
        piece = data[: self.payload_len - self.come]
        self._crc = crc32c(piece, self._crc)
        self.come += len(piece)
        if self.message is not None:
            self.message.put(piece)
        return len(piece)

    def check(self) -> None:
        """Hold the CRC of all that came against that of the header. BadCrc: they differ."""
        if self._crc != self._expected_crc:
            covered_len = COVERED + self.payload_len
            raise bad_crc("a wide frame", self._expected_crc, self._crc, covered_len, 8)


class Arriving:
    """The part of a link that knows the large messages which come."""

    _state: int
    _landings: Landings

    def expect(self, id: int, total: int) -> int:
        """Make memory for a message of total bytes that is granted. Returns OK, ERR_NO_MEMORY,
        ERR_INVALID_STATE (the id is there already), ERR_NOT_CONNECTED, or ERR_INVALID_PARAM (no
        message can have that id or total)."""
        if self._state != LINK_OPEN:
            return ERR_NOT_CONNECTED
        return self._landings.expect(id, total)

    def forgo(self, id: int) -> None:
        """Give the memory of a granted message back: slices of it that still come are dropped.
        Nothing happens when the id is unknown."""
        self._landings.forgo(id)

    def forget(self, id: int) -> None:
        """From now on a slice of that message is a fault. Nothing happens when the id is
        unknown."""
        self._landings.forget(id)

    def landed(self, id: int) -> int:
        """Bytes of a granted message that have come; -1: it is unknown or forgone, or was handed
        on."""
        return self._landings.landed(id)
