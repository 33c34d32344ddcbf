"""Addresses of sockets, as the system takes them."""

from __future__ import annotations

import socket
from typing import Any, NamedTuple

from .. import errors
from ..ownership import running_loop
from ..protocol.socket_addresses import AddressLike, readable, split


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
        return [Resolved(socket.AF_UNIX, value)]
    if form == "resolved":
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


def _numeric(host: str, port: int) -> Resolved | None:
    """The address, if the host is written as numbers, which needs nobody to be asked."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return Resolved(family, (host, port) if family == socket.AF_INET else (host, port, 0, 0))
    return None
