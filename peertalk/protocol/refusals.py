"""What the system refuses, by its number, as the error that users see, with what helps."""

from __future__ import annotations

import errno

from .. import errors
from .addresses import Address

_BROKEN = (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ENOTCONN, errno.ESHUTDOWN)


def used_up(error: OSError) -> str:
    """What is used up, and what helps."""
    more = {
        errno.EMFILE: "; close some, or allow this program more (ulimit -n)",
        errno.ENFILE: "; close some, or allow this machine more (fs.file-max)",
    }
    return f"{error.strerror}{more.get(error.errno or 0, '')}"


def of_bind(error: OSError, what: str, bind: str, port: int, option: str) -> errors.PeerTalkError:
    """Why a socket cannot have this port of bind ("": all addresses). what: "TCP port" or "UDP
    port"; option: which chooses it."""
    where = f"{what} {port}" + (f" on {bind}" if bind else "")
    if error.errno == errno.EADDRINUSE:
        whose, free = "another program", ", 0 for any free one"
        if option == "discovery_port":
            whose, free = "a program that does not share it", ""
        return errors.AddressInUse(
            f"{where} is taken by {whose}; choose another with Config.{option} "
            f"(PEERTALK_{option.upper()}){free}"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return errors.NoNetwork(
            f"{bind} (Config.bind) is no address of this machine; give one of its own, or "
            "leave it empty for all"
        )
    if error.errno == errno.EACCES:
        return errors.PlatformError(
            f"{where} is not allowed for this user; choose one above 1023 with Config.{option}"
        )
    return errors.PlatformError(f"cannot use {where}: {error.strerror}")


def of_dial(code: int, said: str, address: Address) -> errors.PeerTalkError:
    """Why an address cannot be connected to. said: the system's text for the number."""
    where = f"{address[0]}:{address[1]}"
    if code == errno.ECONNREFUSED:
        return errors.ConnectionRefused(f"{where} refused the connection: nobody listens there")
    if code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL):
        return errors.NetworkFailure(f"no way to {where}: {said}")
    if code == errno.ETIMEDOUT:
        return errors.Timeout(f"{where} did not answer in time")
    return errors.NetworkFailure(f"cannot connect to {where}: {said}")


def of_socket(number: int, said: str, what: str) -> errors.PeerTalkError:
    """Why a socket cannot be read or written. said: the system's text for the number; what: which
    socket, for the message."""
    if number in _BROKEN:
        return errors.ConnectionClosed(f"{what}: the other side ended the connection: {said}")
    if number == errno.ETIMEDOUT:
        return errors.Timeout(f"{what}: the other side has fallen silent: {said}")
    if number == errno.ECONNREFUSED:
        return errors.ConnectionRefused(f"{what}: nobody listens there")
    if number == errno.EBADF:
        return errors.InvalidState(f"{what}: its descriptor was closed by somebody else")
    if number in (errno.ENOMEM, errno.ENOBUFS):
        return errors.OutOfMemory(f"{what}: the system has no memory for it")
    if number == errno.EMSGSIZE:
        return errors.MessageTooLarge(f"{what}: longer than a datagram may be")
    return errors.NetworkFailure(f"{what}: {said}")
