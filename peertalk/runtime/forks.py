"""What a forked child must not touch."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Orphan(Protocol):
    """Something that is dead in a forked child."""

    def orphan(self) -> None:
        """Be so: give back this process's copies of descriptors, and take no lock."""


_heeding: WeakSet[Orphan] = WeakSet()


def heed(thing: Orphan) -> None:
    """Have something orphaned in each forked child from now on, for as long as it lives."""
    _heeding.add(thing)


def _orphan_all() -> None:
    for thing in list(_heeding):
        thing.orphan()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_orphan_all)
