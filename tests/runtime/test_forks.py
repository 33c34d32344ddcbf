"""What is orphaned in a forked child, and what is not."""

from __future__ import annotations

import os

from peertalk.runtime import forks


class Thing:
    def __init__(self):
        self.orphaned = 0

    def orphan(self):
        self.orphaned += 1


def test_in_the_child_whoever_heeds_forks_is_orphaned_once_and_nobody_in_the_parent():
    thing, other, dropped = Thing(), Thing(), Thing()
    forks.heed(thing)
    forks.heed(thing)
    forks.heed(dropped)
    del dropped
    child = os.fork()
    if not child:
        os._exit(0 if (thing.orphaned, other.orphaned) == (1, 0) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert thing.orphaned == other.orphaned == 0
