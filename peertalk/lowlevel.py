"""Types of what calls take and return, for annotations: a program that only calls and reads does
not name them."""

from .config import NodeOptions
from .doors.peers import BroadcastResult, Peers
from .doors.streaming import Progress
from .incoming import Incoming
from .peer import StreamOut
from .protocol.addresses import Address
from .protocol.outbox import Key
from .protocol.payloads import SendOptions
from .protocol.peer import Latency
from .protocol.statistics import (
    MemoryReport,
    MemoryUse,
    NodeStatistics,
    PeerStatistics,
    QueueStatus,
)
from .protocol.wire import Capabilities

__all__ = [
    "Address",
    "BroadcastResult",
    "Capabilities",
    "Incoming",
    "Key",
    "Latency",
    "MemoryReport",
    "MemoryUse",
    "NodeOptions",
    "NodeStatistics",
    "PeerStatistics",
    "Peers",
    "Progress",
    "QueueStatus",
    "SendOptions",
    "StreamOut",
]
