"""Byte streams for asyncio and uvloop at the speed of C: TCP, Unix sockets, datagrams, and threads
that have sockets of their own.

Messages between peers are peertalk.Node's; this is for programs that speak bytes to somebody else.
"""

from ..protocol.orders import (
    CancelSocketTimeout,
    CloseSocket,
    ModifySocket,
    RegisterSocket,
    SetSocketTimeout,
    Token,
)
from ..protocol.socket_state import (
    AsyncSocketHandler,
    AsyncSocketState,
    SocketDescriptor,
    SocketInterest,
)
from .compat import (
    Server,
    open_connection,
    open_unix_connection,
    start_server,
    start_unix_server,
)
from .datagrams import Datagrams
from .listener import Listener
from .pair import StreamReader, StreamWriter
from .stream import Stream
from .tls import TlsStream
from .worker import Worker

TcpStream = Stream
TcpListener = Listener

__all__ = [
    "AsyncSocketHandler",
    "AsyncSocketState",
    "CancelSocketTimeout",
    "CloseSocket",
    "Datagrams",
    "Listener",
    "ModifySocket",
    "RegisterSocket",
    "Server",
    "SetSocketTimeout",
    "SocketDescriptor",
    "SocketInterest",
    "Stream",
    "StreamReader",
    "StreamWriter",
    "TcpListener",
    "TcpStream",
    "TlsStream",
    "Token",
    "Worker",
    "open_connection",
    "open_unix_connection",
    "start_server",
    "start_unix_server",
]
