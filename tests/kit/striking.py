"""Signal handlers that strike at a chosen step of what a program does."""

from __future__ import annotations

import sys


class Striking:
    """Calls something at the nth step of what modules do on this thread, as a signal handler may at
    any. steps: how many there were.

    It is the tracer itself, and so outlives the tracing: Python 3.11 may collect garbage between
    its look at the tracer and its call of that, and a strike within a finalizer ends the tracing.
    """

    def __init__(self, nth, call, modules=("peertalk", "asyncio", "selectors")):
        self.nth = nth
        self.modules = modules
        self.steps = 0
        self.call = call
        self.struck = False

    def begin(self):
        sys.settrace(self)

    def end(self):
        sys.settrace(None)

    def __call__(self, frame, event, argument):
        if not frame.f_globals.get("__name__", "").startswith(self.modules):
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame, event, argument):
        self.steps += 1
        if self.steps >= self.nth and not self.struck:
            self.struck = True
            sys.settrace(None)
            self.call()
        return self._step
