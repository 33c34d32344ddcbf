"""Addresses of sockets as people write them: text, pairs and paths. Never: looks up a name."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

from .. import errors


@runtime_checkable
class PathLike(Protocol):
    """A path object."""

    def __fspath__(self) -> str: ...


AddressLike: TypeAlias = str | PathLike | tuple[Any, ...]
"""Where a socket is, or shall be:

- text "host:port" or "[IPv6 address]:port"; without a host (":port") that is every address of this
  machine to listen at, and this machine to connect to;
- a pair (host, port), host a name or an IPv4 or IPv6 address;
- an address as the system gives it: (host, port, flow, scope) of IPv6;
- a path, as a path object or as text with a slash in it: a Unix socket."""


def readable(address: Any) -> str:
    """An address as people write it."""
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    if isinstance(address, bytes):
        address = address.decode("utf-8", "surrogateescape")
    return str(address) or "a socket without a name"


def split(address: AddressLike) -> tuple[str, Any]:
    """What an address is: ("unix", path), ("pair", (host, port)) to be looked up, or ("resolved",
    address).

    Raises:
        WrongType, InvalidArgument: it is none.
    """
    if isinstance(address, str):
        if "/" in address:
            return "unix", address
        host, _, port = address.rpartition(":")
        bare = ":" in host and not host.startswith("[")
        if bare or ":" not in address or not (port.isascii() and port.isdecimal()):
            raise errors.InvalidArgument(
                f"address {errors.shown(address)}: write host:port, [IPv6 address]:port, or a path"
            )
        return "pair", (host.strip("[]"), _port(int(port) if len(port) < 6 else -1, address))
    if isinstance(address, PathLike):
        return "unix", address.__fspath__()
    if not isinstance(address, tuple) or len(address) not in (2, 4):
        raise errors.WrongType(
            f"address {errors.shown(address)}: give text, a pair (host, port), or a path"
        )
    host, port = address[:2]
    if not isinstance(host, str) or not isinstance(port, int) or isinstance(port, bool):
        raise errors.WrongType(f"address {errors.shown(address)}: a host is text, a port a number")
    _port(port, address)
    return ("resolved", address) if len(address) == 4 else ("pair", (host, port))


def _port(port: int, address: object) -> int:
    if not 0 <= port <= 65_535:
        raise errors.InvalidArgument(f"address {errors.shown(address)}: a port is 0 to 65535")
    return port
