"""Everything that a node raises, in one tree, with the result codes of the C core. What plays tests
(sim/mesh.py, sim/throughput.py) raises AssertionError where a test has failed.

Each class belongs to one family, by who has to act: LocalError (the call was wrong), RemoteError
(the peer broke the rules), NetworkError (the world failed), WouldBlock (not now), InternalError (we
were wrong). Each also derives from the natural built-in, so `except TimeoutError` works. `code` is
the number of the original C SDK, `peer` the name of the peer concerned, or None.
"""

from __future__ import annotations

import copy
import enum
from typing import Any

from peertalk import _numbers


class RejectReason(enum.IntEnum):
    """Why a peer refused a connection: the one byte of a REJECT frame."""

    UNSPECIFIED = 0
    """It did not say."""
    FULL = 1
    """It has as many connections as it can have."""
    BANNED = 2
    """It does not want this peer."""
    WRONG_VERSION = 3
    """It speaks another version."""
    IN_PROGRESS = 4
    """What it does has begun, and it takes nobody now."""


class PeerTalkError(Exception):
    """Base of all. code: negative result code; peer: name of the peer concerned, or None; accepted:
    of a send_many, how many of its messages were accepted before it failed."""

    code: int = _numbers.ERR_INTERNAL
    peer: str | None = None
    accepted: int | None = None

    def __init__(
        self, message: str = "", *, code: int | None = None, peer: str | None = None
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if peer is not None:
            self.peer = peer


class LocalError(PeerTalkError):
    """The call was wrong: change the call."""


class RemoteError(PeerTalkError):
    """The peer broke the rules of the protocol; its link was closed and the fault counted."""


class NetworkError(PeerTalkError):
    """The world failed: retry later, or look at the network."""


class InvalidArgument(LocalError, ValueError):
    """An argument or a configuration value is out of its bounds."""

    code = _numbers.ERR_INVALID_PARAM


class WrongType(InvalidArgument, TypeError):
    """An argument is of a type that cannot be sent or used here."""


class InvalidState(LocalError, RuntimeError):
    """The object is not in a state that allows this call (closed, not started, already started)."""

    code = _numbers.ERR_INVALID_STATE


class NotSupported(LocalError, NotImplementedError):
    """This build, platform or peer cannot do that."""

    code = _numbers.ERR_NOT_SUPPORTED


class PeerNotFound(LocalError, KeyError):
    """No such peer is known."""

    code = _numbers.ERR_PEER_NOT_FOUND
    __str__ = Exception.__str__  # KeyError would quote the text


class MessageTooLarge(LocalError, ValueError):
    """The message is longer than the limit that holds towards this peer."""

    code = _numbers.ERR_MESSAGE_TOO_LARGE


class OutOfMemory(PeerTalkError, MemoryError):
    """The memory, or the budget given for it, is used up."""

    code = _numbers.ERR_NO_MEMORY


class NetworkFailure(NetworkError, ConnectionError):
    """A network call failed."""

    code = _numbers.ERR_NETWORK


class ConnectionRefused(NetworkFailure, ConnectionRefusedError):
    """Nobody listens at that address; or, where reason is not None, the peer there does not want
    the connection (RejectReason)."""

    code = _numbers.ERR_CONNECTION_REFUSED

    def __init__(
        self,
        message: str = "",
        *,
        reason: RejectReason | None = None,
        code: int | None = None,
        peer: str | None = None,
    ) -> None:
        super().__init__(message, code=code, peer=peer)
        self.reason = reason


class ConnectionClosed(NetworkFailure, ConnectionAbortedError):
    """The peer closed the connection, or it broke."""

    code = _numbers.ERR_CONNECTION_CLOSED


class EndOfStream(ConnectionClosed, EOFError):
    """The other side ended the stream in the middle of what was to be read. partial: what came of
    that."""

    def __init__(
        self,
        message: str = "",
        *,
        partial: bytes = b"",
        code: int | None = None,
        peer: str | None = None,
    ) -> None:
        super().__init__(message, code=code, peer=peer)
        self.partial = partial


class NotConnected(NetworkFailure):
    """There is no open link to the peer."""

    code = _numbers.ERR_NOT_CONNECTED


class NoNetwork(NetworkFailure):
    """No network interface can be used."""

    code = _numbers.ERR_NO_NETWORK


class AddressInUse(NetworkFailure, OSError):
    """A port is taken by another program."""

    code = _numbers.ERR_NETWORK


class Timeout(NetworkError, TimeoutError):
    """Not done in the time allowed."""

    code = _numbers.ERR_TIMEOUT


class PlatformError(NetworkError, OSError):
    """The system refused in a way that is no network failure (out of descriptors, no
    permission)."""

    code = _numbers.ERR_PLATFORM


class WouldBlock(PeerTalkError, BlockingIOError):
    """Not now. reason: "queue" (there is no room, or others are before it), "pressure" (the peer
    takes no message of this class), or "busy" (another stream to the peer is on its way)."""

    code = _numbers.ERR_WOULD_BLOCK
    reason: str

    def __init__(
        self,
        message: str = "",
        *,
        reason: str = "queue",
        code: int | None = None,
        peer: str | None = None,
    ) -> None:
        super().__init__(message, code=code, peer=peer)
        self.reason = reason


class ProtocolError(RemoteError, ValueError):
    """Bytes that the protocol does not allow. frames: whole frames that stood before the fault,
    where a stream was read."""

    code = _numbers.ERR_INVALID_PARAM
    frames: list[Any] = []  # noqa: RUF012 - replaced, never changed, by the decoder that raises


class BadCrc(ProtocolError):
    """The checksum does not match."""

    code = _numbers.ERR_CRC


class BadMagic(ProtocolError):
    """Not the first bytes of this format."""

    code = _numbers.ERR_MAGIC


class Truncated(ProtocolError):
    """Shorter than its own length says."""

    code = _numbers.ERR_TRUNCATED


class BadVersion(ProtocolError):
    """A protocol version that is not spoken here."""

    code = _numbers.ERR_VERSION


class InternalError(PeerTalkError, RuntimeError):
    """We were wrong: please report it."""

    code = _numbers.ERR_INTERNAL


BY_CODE: dict[int, type[PeerTalkError]] = {
    _numbers.ERR_INVALID_PARAM: InvalidArgument,
    _numbers.ERR_NO_MEMORY: OutOfMemory,
    _numbers.ERR_NOT_INITIALIZED: InvalidState,
    _numbers.ERR_ALREADY_INITIALIZED: InvalidState,
    _numbers.ERR_NETWORK: NetworkFailure,
    _numbers.ERR_TIMEOUT: Timeout,
    _numbers.ERR_CONNECTION_REFUSED: ConnectionRefused,
    _numbers.ERR_CONNECTION_CLOSED: ConnectionClosed,
    _numbers.ERR_BUFFER_FULL: WouldBlock,
    _numbers.ERR_INVALID_STATE: InvalidState,
    _numbers.ERR_PEER_NOT_FOUND: PeerNotFound,
    _numbers.ERR_DISCOVERY_ACTIVE: InvalidState,
    _numbers.ERR_NO_NETWORK: NoNetwork,
    _numbers.ERR_PLATFORM: PlatformError,
    _numbers.ERR_QUEUE_EMPTY: WouldBlock,
    _numbers.ERR_MESSAGE_TOO_LARGE: MessageTooLarge,
    _numbers.ERR_NOT_SUPPORTED: NotSupported,
    _numbers.ERR_NOT_CONNECTED: NotConnected,
    _numbers.ERR_WOULD_BLOCK: WouldBlock,
    _numbers.ERR_CRC: BadCrc,
    _numbers.ERR_MAGIC: BadMagic,
    _numbers.ERR_TRUNCATED: Truncated,
    _numbers.ERR_VERSION: BadVersion,
    _numbers.ERR_NOT_POWER2: InvalidArgument,
    _numbers.ERR_BACKPRESSURE: WouldBlock,
    _numbers.ERR_RESOURCE: OutOfMemory,
    _numbers.ERR_BUSY: WouldBlock,
    _numbers.ERR_INTERNAL: InternalError,
}
"""Class for each code that a call can return (ERR_CANCELLED is an outcome and never raised)."""

_SHOWN_MAX = 60
"""Characters of a value in a message."""


def shown(value: object) -> str:
    """The value as a message shows it: short, on one line, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # its own repr fails, or it is a number of more digits than Python writes
        return f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 4] + "..." + text[-1]


_DECODER = {kind.code: kind for kind in (BadCrc, BadMagic, Truncated, BadVersion)}


def from_code(code: int, message: str, peer: str | None = None) -> PeerTalkError:
    """The exception for a result code of a call, with its code kept."""
    return BY_CODE.get(code, InternalError)(message, code=code, peer=peer)


def from_exception(error: BaseException, message: str) -> PeerTalkError:
    """The exception for whatever was raised where only ours are told: itself, where it is one. What
    is no Exception struck from outside (KeyboardInterrupt): those who hear of it are only cut
    off, and do not keep its traceback, which holds whatever the program was doing."""
    if isinstance(error, PeerTalkError):
        return error
    kind: type[PeerTalkError] = InternalError
    if not isinstance(error, Exception):
        kind = ConnectionClosed
    elif isinstance(error, MemoryError):
        kind = OutOfMemory
    elif isinstance(error, OSError):
        kind = PlatformError
    told = kind(message)
    told.__cause__ = error if isinstance(error, Exception) else None
    return told


def copied(error: PeerTalkError) -> PeerTalkError:
    """An error that others hold, for one more to raise: with its cause, but without the traceback,
    which holds the frames of whoever has raised it."""
    made = copy.copy(error)
    made.__cause__ = error.__cause__
    return made


def from_decoder(code: int, message: str, peer: str | None = None) -> ProtocolError:
    """The exception for a result code of a decoder: always a ProtocolError, with its code kept."""
    return _DECODER.get(code, ProtocolError)(message, code=code, peer=peer)
