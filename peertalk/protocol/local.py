"""Sockets between the nodes of one user on one host (AF_UNIX): where they lie, what they are
called, whom they may belong to, and which of them somebody has left.

A node's socket is INSTANCE.sock in the folder peertalk-UID, which its user alone may enter: in
$XDG_RUNTIME_DIR, or among the temporary files. Two programs of a user need not have the same
environment, so who calls looks in both places.

The other side has no address there. Who calls has a name for its own end, which says from which
address of this host it would have called by TCP: so a peer is known by the same address on either
way, and a program that is started again is found to be the next life of its former one.

The folder keeps others from calling; that both ends belong to one user is asked of the kernel all
the same, on both sides. That the peer is there who was meant is judged by its greeting (greetings,
endings).

Never: looks at a file or at the environment, or makes a socket.
"""

from __future__ import annotations

import stat
import struct

from .addresses import LOOPBACK, dotted_address

TEMPORARY = "/tmp"
"""Of Linux; not where the environment of each program may want its own temporary files."""

LEFT_MAX = 256
"""Files that a node looks at when it starts, about a millisecond: more are left for the next."""

LEFT_AFTER = 60.0
"""Seconds that a socket is left alone: the system makes the file a moment before one can call
there."""

BUFFER = 212_992
"""Bytes that a socket may hold unread, and as many for what the system notes of them: what every
Linux allows a program. So a write of 256 KiB finds room. With half as many, the default, a stream
of batches was a sixth slower (2026-11-27); with more, where that is allowed, it was no faster."""

CREDENTIALS = struct.Struct("=iII")
"""What the kernel says of the other end (struct ucred of Linux): process, user, group."""

_PEERTALK = b"\0peertalk"
"""What the name of a caller's end begins with. With a zero first it is no file."""


def folders(runtime_dir: str, user: int) -> list[str]:
    """Where the sockets of a user may lie, the best place first. runtime_dir: what the environment
    says in XDG_RUNTIME_DIR, "": nothing. A relative one does not count, as its specification
    says."""
    bases = [runtime_dir, TEMPORARY] if runtime_dir.startswith("/") else [TEMPORARY]
    return [f"{base}/peertalk-{user}" for base in bases]


def place(folder: str, instance: bytes) -> str:
    """The file of the socket of this instance."""
    return f"{folder}/{instance.hex()}.sock"


def is_private(mode: int, owner: int, user: int) -> bool:
    """Whether what has this mode and owner is a folder, and no link to one, that nobody but the
    user may enter."""
    return stat.S_ISDIR(mode) and owner == user and not mode & (stat.S_IRWXG | stat.S_IRWXO)


def may_be_left(mode: int, changed: float, now: float) -> bool:
    """Whether what has this mode is a socket that its node may have left, when it was killed.
    changed, now: seconds since the epoch."""
    return stat.S_ISSOCK(mode) and now - changed > LEFT_AFTER


def user_of(credentials: bytes) -> int:
    """Whose the other end is."""
    user: int = CREDENTIALS.unpack(credentials)[1]
    return user


def name_of_caller(host: str, chance: bytes) -> bytes:
    """What the end of a caller is called. host: the address of ours from which it would call by
    TCP; chance: makes the name one that nobody else has."""
    return b"/".join((_PEERTALK, host.encode(), chance.hex().encode()))


def host_of_caller(name: object) -> str:
    """The address that such a name says; loopback where it is none of ours."""
    if isinstance(name, bytes) and name.startswith(_PEERTALK + b"/"):
        said = name.split(b"/")[1].decode("latin-1")
        return dotted_address(said) or LOOPBACK
    return LOOPBACK
