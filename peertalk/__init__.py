"""Peer-to-peer messaging for Python programs on a local network: no broker, no server, the speed of
C, bounded memory."""

import sys
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError(
        "peertalk does not run on Windows yet: Python has no socket.sendmsg there, the proactor "
        "loop of asyncio has no add_reader, SO_REUSEADDR lets another program take a port that is "
        "in use, and SO_LINGER is laid out differently. It runs on Linux"
    )

from .config import Config, load_config
from .errors import (
    AddressInUse,
    BadCrc,
    BadMagic,
    BadVersion,
    ConnectionClosed,
    ConnectionRefused,
    InternalError,
    InvalidArgument,
    InvalidState,
    LocalError,
    MessageTooLarge,
    NetworkError,
    NetworkFailure,
    NoNetwork,
    NotConnected,
    NotSupported,
    OutOfMemory,
    PeerNotFound,
    PeerTalkError,
    PlatformError,
    ProtocolError,
    QueueEmpty,
    RejectReason,
    RemoteError,
    Timeout,
    Truncated,
    WouldBlock,
    WrongType,
)
from .node import Event, Incoming, Node, Peer, StreamOut
from .protocol.events import (
    ConnectionRequested,
    EventsMissed,
    Failed,
    LinkFault,
    LostReason,
    NameCollision,
    Outcome,
    PeerChanged,
    PeerConnected,
    PeerDisconnected,
    PeerFound,
    PeerFrozen,
    PeerLost,
    PeerThawed,
    Sent,
)
from .protocol.outbox import Key, Priority
from .protocol.peer import Latency, PeerFlag, PeerState
from .protocol.stream import StreamState
from .protocol.wire import Batch, Capabilities, Datagram, Message
from .runtime.payloads import Payload, SendOptions
from .runtime.peers import BroadcastResult, Peers
from .runtime.statistics import (
    MemoryReport,
    MemoryUse,
    NodeStatistics,
    PeerStatistics,
    QueueStatus,
)
from .runtime.streaming import Progress
from .runtime.world import Address

__version__: str

if not TYPE_CHECKING:  # a type checker that sees this takes every misspelt name for a str

    def __getattr__(name: str) -> str:
        if name == "__version__":
            from importlib.metadata import version

            return version("peertalk-lan")
        raise AttributeError(f"module 'peertalk' has no attribute {name!r}")


__all__ = [
    "Address",
    "AddressInUse",
    "BadCrc",
    "BadMagic",
    "BadVersion",
    "Batch",
    "BroadcastResult",
    "Capabilities",
    "Config",
    "ConnectionClosed",
    "ConnectionRefused",
    "ConnectionRequested",
    "Datagram",
    "Event",
    "EventsMissed",
    "Failed",
    "Incoming",
    "InternalError",
    "InvalidArgument",
    "InvalidState",
    "Key",
    "Latency",
    "LinkFault",
    "LocalError",
    "LostReason",
    "MemoryReport",
    "MemoryUse",
    "Message",
    "MessageTooLarge",
    "NameCollision",
    "NetworkError",
    "NetworkFailure",
    "NoNetwork",
    "Node",
    "NodeStatistics",
    "NotConnected",
    "NotSupported",
    "OutOfMemory",
    "Outcome",
    "Payload",
    "Peer",
    "PeerChanged",
    "PeerConnected",
    "PeerDisconnected",
    "PeerFlag",
    "PeerFound",
    "PeerFrozen",
    "PeerLost",
    "PeerNotFound",
    "PeerState",
    "PeerStatistics",
    "PeerTalkError",
    "PeerThawed",
    "Peers",
    "PlatformError",
    "Priority",
    "Progress",
    "ProtocolError",
    "QueueEmpty",
    "QueueStatus",
    "RejectReason",
    "RemoteError",
    "SendOptions",
    "Sent",
    "StreamOut",
    "StreamState",
    "Timeout",
    "Truncated",
    "WouldBlock",
    "WrongType",
    "load_config",
]
