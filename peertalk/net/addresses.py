"""Addresses of sockets, as the system takes them."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any, NamedTuple

from .. import errors
from ..ownership import running_loop
from ..protocol.socket_addresses import AddressLike, readable, split

_PATH_MAX = 103 if sys.platform == "darwin" else 107
"""Bytes of the path of a Unix socket, at most."""
_FLOW_MAX, _SCOPE_MAX = (1 << 20) - 1, (1 << 32) - 1
"""Of an IPv6 address as the system takes it (RFC 8200; RFC 3493, 3.3)."""


class Resolved(NamedTuple):
    """An address as the system takes it."""

    family: int
    address: Any

    def __str__(self) -> str:
        return readable(self.address)


async def resolve(address: AddressLike, *, kind: int, passive: bool) -> list[Resolved]:
    """All that an address stands for, in the order in which the system wants them tried; at least
    one. kind: socket.SOCK_STREAM or SOCK_DGRAM; passive: to listen there.

    Raises:
        WrongType, InvalidArgument: it is no address. NetworkFailure: nobody has that name.
    """
    form, value = split(address)
    if form == "unix":
        _check_path(value)
        return [Resolved(socket.AF_UNIX, value)]
    if form == "resolved":
        _check_resolved(*value)
        return [Resolved(socket.AF_INET6, value)]
    host, port = value
    numeric = _numeric(host, port)
    if numeric is not None:
        return [numeric]
    try:
        found = await running_loop().getaddrinfo(
            host or None, port, type=kind, flags=socket.AI_PASSIVE if passive else 0
        )
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise errors.NetworkFailure(f"host {errors.shown(host)} is not known: {said}") from error
    return list(dict.fromkeys(Resolved(family, where) for family, _, _, _, where in found))


def _check_path(path: str) -> None:
    if "\0" in os.fsdecode(path)[1:]:
        raise errors.InvalidArgument(f"path {errors.shown(path)}: there is a zero byte in it")
    if (size := len(os.fsencode(path))) > _PATH_MAX:
        raise errors.InvalidArgument(
            f"path {errors.shown(path)}: {size:,} bytes; that of a Unix socket has {_PATH_MAX} at "
            "most"
        )


def _check_resolved(host: str, _: int, flow: object, scope: object) -> None:
    """Refuse what the system would look up, or would not take."""
    found = _numeric(host.partition("%")[0], 0)
    if found is None or found.family != socket.AF_INET6:
        raise errors.InvalidArgument(
            f"host {errors.shown(host)}: write an IPv6 address in numbers, or a pair (host, port)"
        )
    for name, value, most in (("flow", flow, _FLOW_MAX), ("scope", scope, _SCOPE_MAX)):
        if not isinstance(value, int) or not 0 <= value <= most:
            raise errors.InvalidArgument(f"{name} {errors.shown(value)}: a number up to {most:,}")


def _numeric(host: str, port: int) -> Resolved | None:
    """The address, if the host is written as numbers, which needs nobody to be asked."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return Resolved(family, (host, port) if family == socket.AF_INET else (host, port, 0, 0))
    return None
