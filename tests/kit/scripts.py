"""What programs that a test starts share: options of their nodes, how they tell of events, and how
the test reads it.
"""

from __future__ import annotations

import asyncio

from kit.waiting import GUARD

OPTIONS = 'bind="127.0.0.1", port=0, discovery=False'


def line_now(process):
    """The next line that a process prints."""
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return line.strip()


async def line_of(process):
    """Likewise, while the event loop goes on."""
    return await asyncio.wait_for(asyncio.to_thread(line_now, process), GUARD)


TOLD = """
import asyncio, json, logging, os, resource, sys
import peertalk as pt
from peertalk.runtime import log
log.SETTLED = 0.1  # as long as some announcements

class Tell(logging.Handler):
    def emit(self, record):
        print(json.dumps([record.name, record.getMessage()]), flush=True)

logging.getLogger("peertalk").addHandler(Tell())
"""
