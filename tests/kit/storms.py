"""What all storms share: a time, a seed, threads whose exceptions are findings, signals a thousand
times a second, forked children that must end, and the report."""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import signal
import struct
import sys
import threading
import time
import traceback
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Any

GUARD = 60.0
"""Seconds after which what has not ended is said to hang."""
OPTIONS: dict[str, Any] = {"bind": "127.0.0.1", "port": 0, "discovery": False}
NAMES = ("ada", "bob", "cyd", "dee")
"""The four nodes that stay."""
HEAD = struct.Struct(">HI")
"""In front of a payload: who sent it, and its number."""
NOBODY = 0xFFFF
"""As who sent it, where nobody counts."""


class Storm(ABC):
    """What the threads share. did: how often what was done; wrong: what must not have happened."""

    def __init__(self, seconds: float, seed: int) -> None:
        self.chance = random.Random(seed)
        self.until = time.monotonic() + seconds
        self.did: Counter[str] = Counter()
        self.wrong: list[str] = []

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.until or bool(self.wrong)

    @abstractmethod
    def on_signal(self, *_: object) -> None:
        """The handler, on the main thread."""

    def guarded(self, work: Callable[..., object], *arguments: object) -> threading.Thread:
        """A thread, whose exception is something wrong."""

        def run() -> None:
            try:
                work(self, *arguments)
            except SystemExit:
                raise
            except BaseException:
                self.wrong.append(traceback.format_exc())

        name = f"{getattr(work, '__name__', work)} {arguments}"
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def fork(self, refused: Callable[[], bool], seconds: float) -> None:
        """Fork again and again. refused: whether a child may do nothing with any node, and hears
        that at once."""
        while not self.over:
            end = self.chance.choice(("_exit", "exit", "return"))
            child = os.fork()
            if child == 0:
                if not refused():
                    os._exit(13)
                if end == "_exit":
                    os._exit(7)
                if end == "exit":
                    sys.exit(7)
                return
            self.await_child(child, end)
            time.sleep(seconds)

    def await_child(self, child: int, end: str) -> None:
        """It must end, as it was told to."""
        give_up = time.monotonic() + GUARD
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > give_up:
                self.wrong.append(f"a forked child ({end}) hangs")
                os.kill(child, signal.SIGABRT)
                os.waitpid(child, 0)
                return
            time.sleep(0.001)
        wanted = (7 << 8,) if end == "_exit" else (0, 7 << 8)
        if status not in wanted:
            self.wrong.append(f"a forked child ({end}) ended with {status:#x}")
        self.did["forks"] += 1


def rage(make: Callable[[float, int], Storm], play: Callable[[Any], None]) -> int:
    """python STORM SECONDS [SEED]: make a storm and play it, while a signal comes a thousand times
    a second and calls its on_signal(). Returns the exit status."""
    seconds = float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    faulthandler.enable()
    faulthandler.dump_traceback_later(seconds + 4 * GUARD, exit=True)
    warnings.simplefilter("ignore", ResourceWarning)  # those that are forgotten
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks among threads
    logging.disable(logging.CRITICAL)
    sys.setswitchinterval(0.0002)  # threads meet in more places
    print(f"storm: {seconds:g} s, seed {seed}", flush=True)
    storm = make(seconds, seed)
    signal.signal(signal.SIGALRM, storm.on_signal)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    began = time.monotonic()
    try:
        play(storm)
    except BaseException:
        storm.wrong.append(traceback.format_exc())
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(
        f"{time.monotonic() - began:.1f} s:",
        ", ".join(f"{count:,} {what}" for what, count in sorted(storm.did.items())),
    )
    for each in storm.wrong[:20]:
        print("WRONG:", each)
    return bool(storm.wrong)
