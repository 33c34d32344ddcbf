"""Peer-to-peer messaging for Python programs on a local network: no broker, no server, the speed of
C, bounded memory.

Here is what a program names. The other exceptions are in peertalk.errors, the types of what calls
take and return in peertalk.lowlevel, whole nodes on a simulated network in peertalk.sim, and the
same door without await in peertalk.sync."""

import sys
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError(
        "peertalk does not run on Windows yet: Python has no socket.sendmsg there, the proactor "
        "loop of asyncio has no add_reader, SO_REUSEADDR lets another program take a port that is "
        "in use, and SO_LINGER is laid out differently. It runs on Linux"
    )

from . import errors as errors
from . import lowlevel as lowlevel
from .config import Config, load_config
from .errors import (
    ConnectionClosed,
    ConnectionRefused,
    InvalidArgument,
    InvalidState,
    MessageTooLarge,
    NetworkError,
    NotConnected,
    PeerNotFound,
    PeerTalkError,
    RejectReason,
    Timeout,
    WouldBlock,
)
from .node import Event, Node
from .peer import Peer
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
from .protocol.outbox import Priority
from .protocol.payloads import Payload
from .protocol.peer import PeerFlag, PeerState
from .protocol.stream import StreamState
from .protocol.wire import Batch, Datagram, Message

__version__: str

if not TYPE_CHECKING:  # a type checker that sees this takes every misspelt name for a str

    def __getattr__(name: str) -> str:
        if name == "__version__":
            from importlib.metadata import version

            return version("peertalk-lan")
        raise AttributeError(f"module 'peertalk' has no attribute {name!r}")


__all__ = [
    "Batch",
    "Config",
    "ConnectionClosed",
    "ConnectionRefused",
    "ConnectionRequested",
    "Datagram",
    "Event",
    "EventsMissed",
    "Failed",
    "InvalidArgument",
    "InvalidState",
    "LinkFault",
    "LostReason",
    "Message",
    "MessageTooLarge",
    "NameCollision",
    "NetworkError",
    "Node",
    "NotConnected",
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
    "PeerTalkError",
    "PeerThawed",
    "Priority",
    "RejectReason",
    "Sent",
    "StreamState",
    "Timeout",
    "WouldBlock",
    "load_config",
]
