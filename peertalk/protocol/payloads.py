"""What can be sent, and how a message is described: any buffer, a key, one of four classes.

Never: holds anything of what it was given when the call is over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict

from .. import errors
from .outbox import Key, Priority
from .stream import STREAM_MAX

if TYPE_CHECKING:
    from typing import Protocol

    class Buffer(Protocol):  # collections.abc has it from Python 3.12 on
        """Whatever has bytes to look at."""

        def __buffer__(self, flags: int, /) -> memoryview: ...

else:
    Buffer = bytes | bytearray | memoryview

Payload = Buffer | str
"""What can be sent: bytes as they are, any contiguous buffer as its bytes, str as UTF-8."""

_CHUNK_FIRST = 1
"""Messages that are drawn before it is known how long they are: a large one is memory enough."""


class SendOptions(TypedDict, total=False):
    """What can be said about a message that is sent, beside its bytes. See Peer.send."""

    priority: Priority
    key: Key | None
    no_delay: bool
    connect: bool
    timeout: float | str | None


def payload_of(data: Payload, most: int = STREAM_MAX) -> bytes | bytearray | memoryview:
    """The bytes to send: a view of plain bytes is given as it is, every other buffer is copied, so
    that nothing of it is held when the call is over.

    Args:
        most: bytes of a buffer that is worth a copy; at first what a stream takes.

    Raises:
        WrongType: data is nothing that can be sent.
        InvalidArgument: it has no bytes to send now: a view that was released, a map that was
            closed, text that UTF-8 cannot hold.
        MessageTooLarge: a buffer that would have to be copied is longer.
    """
    if type(data) is bytes or type(data) is bytearray:
        return data  # a class of the program's own may say another length than its bytes have
    if isinstance(data, str):
        try:
            return str.encode(data)
        except UnicodeEncodeError as error:
            raise errors.InvalidArgument(
                f"this text holds {data[error.start]!r}, half a character, which UTF-8 cannot hold;"
                " send text.encode(errors='surrogatepass'), or another error handler"
            ) from None
    kind = type(data).__name__
    try:
        if isinstance(data, memoryview):
            if data.itemsize == 1 and data.ndim == 1 and data.c_contiguous:
                return data
        view = memoryview(data)
    except (ValueError, BufferError) as error:
        raise errors.InvalidArgument(f"this {kind} has no bytes to send: {error}") from None
    except TypeError:
        raise errors.WrongType(
            f"a message is bytes, a buffer of bytes or str, not {kind}"
        ) from None
    with view:
        if not view.c_contiguous:
            raise errors.WrongType(
                f"a message is contiguous: this {kind} has gaps; send bytes() of it"
            )
        if view.nbytes > most:
            raise errors.MessageTooLarge(
                f"this {kind} has {view.nbytes:,} bytes: the limit is {most:,}; send it in parts"
            )
        return view.tobytes()


def is_buffer(data: object) -> bool:
    """Whether it is one message rather than several."""
    try:
        memoryview(data).release()  # type: ignore[arg-type]
    except TypeError:
        return isinstance(data, str)
    except (ValueError, BufferError):
        pass  # a view that was released, a map that was closed
    return True


class Drawing:
    """The messages of one send_many, drawn from what it was given a chunk at a time, so that an
    iterator may be endless, and a list may change meanwhile. What its block raises says how many
    were accepted, as `accepted` of the error.

    Args:
        payloads: what was given.
        chunk: how many messages of such a length make one.
        all_bytes: whether a list holds nothing else; see Core.
        most: bytes of the longest message that may be sent.

    accepted: how many of them were, for whoever sends them to count.

    Raises:
        WrongType: payloads is one message rather than several, or nothing that can be iterated.
    """

    def __init__(
        self,
        payloads: Iterable[Payload],
        chunk: Callable[[int], int],
        all_bytes: Callable[[list[Any]], bool],
        most: int,
    ) -> None:
        if is_buffer(payloads):
            raise errors.WrongType(
                f"send_many takes several messages, not one {type(payloads).__name__}; use send"
            )
        try:
            self._left = iter(payloads)
        except TypeError:
            raise errors.WrongType(
                f"send_many takes an iterable of messages, not {type(payloads).__name__}"
            ) from None
        self._list = payloads if isinstance(payloads, list) else None
        self._drawn = 0
        self._chunk = chunk
        self._all_bytes = all_bytes
        self._most = most
        self._size = -1
        self._count = _CHUNK_FIRST
        if self._list and self._list[0].__class__ is bytes:
            self._size_up(len(self._list[0]))
        self._error: Exception | None = None
        self.accepted = 0

    def draw(self) -> list[bytes]:
        """The next ones; empty: there are no more.

        Raises:
            WrongType: the next one cannot be sent. Whatever the iterator raises; those before it
                have been drawn.
        """
        if self._error is not None:
            raise self._error
        chunk: list[Any] = []
        if self._list is not None:
            drawn = self._drawn
            chunk = self._list[drawn : drawn + self._count]
            self._drawn = drawn + len(chunk)
        else:
            try:
                chunk.extend(islice(self._left, self._count))
            except Exception as error:
                self._error = error
        if chunk:
            if not self._all_bytes(chunk):
                self._convert(chunk)
        if chunk:
            if len(chunk[-1]) != self._size:
                self._size_up(len(chunk[-1]))
        elif self._error is not None:
            raise self._error
        return chunk

    def _size_up(self, size: int) -> None:
        """The next chunk is of messages of such a length."""
        self._size = size
        self._count = self._chunk(size)

    def _convert(self, chunk: list[Any]) -> None:
        for index in range(len(chunk)):
            try:
                chunk[index] = bytes(payload_of(chunk[index], self._most))
            except Exception as error:
                self._error = error
                del chunk[index:]
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, Exception):
            return
        noted = error
        if isinstance(error, errors.PeerTalkError):  # others may hold the same object
            noted = errors.copied(error)
            noted.__traceback__ = trace
        with contextlib.suppress(AttributeError):
            noted.accepted = self.accepted  # type: ignore[attr-defined]
        if noted is not error:
            raise noted


def check_choices(priority: int, key: Key | None) -> Priority:
    """The class of a message, checked with its key.

    Raises:
        InvalidArgument: priority is none of the four. WrongType: key is no str and no int.
    """
    if key is not None and not isinstance(key, str | int):
        raise errors.WrongType(f"a key is a str or an int, not {type(key).__name__}")
    try:
        if isinstance(priority, int):
            return Priority(priority)
    except ValueError:
        pass
    raise errors.InvalidArgument(
        f"priority {errors.shown(priority)}: it is one of peertalk.Priority, LOW 0 to CRITICAL 3"
    )
