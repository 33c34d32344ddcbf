"""What became of a packet to everybody: by which interfaces it left, what is in trouble, and why.

An interface that was asked for is missed when it carries nothing. Where any will do, they may come
and go, and one that leaves this machine is missed when there was one.

Observations in, frozen verdicts out. Never: sends, logs, or asks the system.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple

from ..config import Config
from .addresses import Interface

ANNOUNCING = "announcing"
"""What may fail, in the words of the log."""
_BEYOND = "announcing beyond this machine"
_NO_WAY_BEYOND = "no interface carries, but for loopback; is a cable out?"
_NOT_UP = "it is not up, or has no IPv4 address (Config.interfaces)"
_CABLE_OUT = "it carries nothing: is its cable in?"
_FORBIDDEN = {errno.EPERM, errno.EACCES}
"""What the system says in the name of a firewall."""


class Outcome(NamedTuple):
    """Of one packet. sent, refused: by so many interfaces; troubles: what was done, each with why
    it failed, or None where it worked. Nothing else is done any more."""

    sent: int
    refused: int
    troubles: dict[str, str | None]


class Announcing:
    """The way out of one node, as far as packets have told."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.narrowed = bool(config.bind or config.interfaces)
        """Whether certain interfaces were asked for."""
        self._was_beyond = False

    def judge(
        self, outcomes: dict[str, int], interfaces: list[Interface], said: Callable[[int], str]
    ) -> Outcome:
        """What became of a packet. outcomes: of each interface by name, 0 or the number of the
        error; said: the system's text for that."""
        troubles: dict[str, str | None] = {}
        unplugged = {each.name: _CABLE_OUT for each in interfaces if not each.plugged}
        missing: dict[str, str] = {}
        if self.narrowed:
            names = self._config.interfaces
            missing = {name: _NOT_UP for name in names if name not in outcomes}
        else:  # nobody asked for a certain interface, so a cable that is out is no trouble
            outcomes = {name: code for name, code in outcomes.items() if name not in unplugged}
            unplugged = {}
            beyond = any(each.plugged and not each.is_loopback for each in interfaces)
            self._was_beyond = self._was_beyond or beyond
            if self._was_beyond:
                troubles[_BEYOND] = None if beyond else _NO_WAY_BEYOND
        why = {name: said(code) for name, code in outcomes.items() if code} | unplugged | missing
        # told once for all of them
        forbidden = [name for name, code in outcomes.items() if code in _FORBIDDEN]
        troubles[ANNOUNCING] = (
            f"the system forbids it on {', '.join(forbidden)} ({said(outcomes[forbidden[0]])}), "
            f"as a firewall does: let UDP to port {self._config.discovery_port} "
            "(Config.discovery_port) out, or connect by address"
            if forbidden
            else None
        )
        for name in (*outcomes, *missing):
            troubles[f"{ANNOUNCING} by {name}"] = None if name in forbidden else why.get(name)
        return Outcome(len(outcomes.keys() - why.keys()), len(why), troubles)
