"""Sockets between the nodes of one user on one host (AF_UNIX): made, called, and removed. Where
they lie, and for whom, is decided in protocol/local. Linux alone: elsewhere Python cannot ask the
kernel who calls.

Never: takes or gives a byte. Never: in the way of anybody: where there is no socket there is TCP.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
import time

from .. import errors
from ..protocol import local

_FAMILY = getattr(socket, "AF_UNIX", None)


class LocalWorld:
    """The part of the world that is this host.

    Attributes:
        has_local: whether nodes of one host may speak over sockets of that host.
    """

    has_local = sys.platform.startswith("linux")

    def listen_local(self, instance: bytes) -> socket.socket:
        """A socket at which other nodes of our host and user can call this instance, until
        remove_local(): in the first place that will do. What killed nodes have left there is
        removed.

        Raises:
            PlatformError: no place will do; why the last one does not.
        """
        failed: OSError | None = None
        for folder in _folders():
            try:
                return _listen(folder, instance)
            except OSError as error:
                failed = error
        raise errors.PlatformError(f"there is no place for a socket: {failed}") from failed

    def remove_local(self, listener: socket.socket) -> None:
        """Before a socket of listen_local() is closed. May be called again."""
        with contextlib.suppress(OSError):
            if place := listener.getsockname():
                os.unlink(place)

    def dial_local(self, instance: bytes, host: str) -> socket.SocketType | None:
        """A connection to the socket of this instance on our host, non-blocking; None: there is
        none, or none of our user. host: the address of ours from which it would be called by
        TCP."""
        for folder in _folders():
            calling = None
            with contextlib.suppress(OSError):
                calling = socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM)
                calling.setblocking(False)
                calling.bind(local.name_of_caller(host, os.urandom(8)))
                calling.connect(local.place(folder, instance))
                if is_ours(calling):
                    return calling
            if calling is not None:
                calling.close()
        return None


def is_local(connection: socket.SocketType) -> bool:
    """Whether a socket is one of these."""
    return connection.family == _FAMILY


def is_ours(connection: socket.SocketType) -> bool:
    """Whether the other end belongs to a program of our user."""
    size = local.CREDENTIALS.size
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return local.user_of(told) == os.geteuid()


def _folders() -> list[str]:
    return local.folders(os.environ.get("XDG_RUNTIME_DIR", ""), os.geteuid())


def _listen(folder: str, instance: bytes) -> socket.socket:
    """Raises OSError: that cannot be, or the folder is no private one."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if not local.is_private(found.st_mode, found.st_uid, os.geteuid()):
        raise PermissionError(f"{folder} is no folder of this user alone (mode 0700)")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(local.place(folder, instance))
        listener.listen(128)
        _remove_left(folder)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_left(folder: str) -> None:
    """Remove the sockets of nodes that were killed. A call by datagram asks who is there and
    disturbs nobody: where somebody listens it is of the wrong type."""
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking,
        os.scandir(folder) as found,
    ):
        for each in itertools.islice(found, local.LEFT_MAX):
            with contextlib.suppress(OSError):
                told = each.stat(follow_symlinks=False)
                if local.may_be_left(told.st_mode, told.st_mtime, time.time()):
                    try:
                        asking.connect(each.path)
                    except ConnectionRefusedError:
                        os.unlink(each.path)
