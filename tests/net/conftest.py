"""The sockets of peertalk.net on each core."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from peertalk.runtime import reactor


@pytest.fixture(autouse=True)
def chosen_core(core: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What reactors of this test stand on: each core in turn."""
    monkeypatch.setenv("PEERTALK_CORE", core.name)
    return core


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Each reactor ends with its last socket, and no descriptor is left behind."""
    before = descriptors()
    yield
    assert not reactor._reactors
    assert descriptors() <= before


def descriptors() -> set[str]:
    """The descriptors of this process that are sockets, or are waited with."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # that of the listing
        if target.startswith(("socket:", "anon_inode:")):
            found.add(f"{number} {target}")
    return found
