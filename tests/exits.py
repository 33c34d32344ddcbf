"""Processes that end with live workers, at random moments: python tests/exits.py COUNT [SEED]

Each is an interpreter of its own with two nodes that talk to each other, of peertalk.sync or of
asyncio with workers, whose main thread, daemon threads and workers are busy when it ends: in one of
the ways of ENDS, at a moment between its first node and its middle. Each must end, say nothing,
and have the exit status that its end means.

Prints how many ended in what way, and the time from the end to when the process is gone, and exits
with 0, or says what went wrong and exits with 1.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter

GUARD = 60.0
"""Seconds after which a process that has not ended is said to hang."""
SIDE_BY_SIDE = 3
LONGEST = 0.5
"""Seconds until the end, at most."""

CHILD = '''
import asyncio, atexit, faulthandler, gc, logging, os, signal, sys, threading, time
import peertalk as pt
from peertalk import sync

form, end, moment = sys.argv[1], sys.argv[2], float(sys.argv[3])
faulthandler.enable()
logging.disable(logging.CRITICAL)
sys.excepthook = lambda *_: None
until = time.monotonic() + moment
options = {"bind": "127.0.0.1", "port": 0, "discovery": False, "workers": int(form[-1])}
kept = []

def strike():
    time.sleep(max(0.0, until - time.monotonic()))
    print(time.monotonic(), flush=True)
    os.kill(os.getpid(), signal.SIGTERM if end == "SIGTERM" else signal.SIGINT)

if end in ("SIGTERM", "SIGINT"):
    threading.Thread(target=strike, daemon=True).start()

class Late:
    """Calls its node when it is collected, which is when the interpreter ends."""
    def __del__(self):
        try:
            self.node.close_nowait()
        except pt.InvalidState:
            pass

def forked():
    child = os.fork()
    if not child:
        os._exit(5) if end == "a child by _exit" else sys.exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5

def ended(*nodes):
    """The end, which is now."""
    if not end.startswith("SIG"):
        print(time.monotonic(), flush=True)
    if end == "an exit":
        sys.exit(3)
    if end == "an exception":
        raise RuntimeError
    if end == "_exit":
        os._exit(3)
    if end.startswith("a child"):
        forked()
    if end == "a cycle":
        nodes[0].me = nodes[0]
        kept.clear()
    if end == "a finalizer":
        late = Late()
        late.node, late.me = nodes[0], late
    if end == "atexit":
        atexit.register(nodes[0].close_nowait)
    if end == "a thread":
        def last():
            time.sleep(0.05)
            nodes[0].stats()
        threading.Thread(target=last).start()

def busy(call):
    try:
        while True:
            call()
    except pt.PeerTalkError:
        pass

def within(ada, bob):
    kept.extend((ada, bob))
    peer = ada.connect(bob.address, timeout=20)
    back = bob.wait_for("ada", timeout=20)
    calls = ada.receive, bob.receive, lambda: back.send(bytes(900)), peer.ping
    for call in calls:
        threading.Thread(target=busy, args=(call,), daemon=True).start()
    while time.monotonic() < until or end.startswith("SIG"):
        peer.send(bytes(500))
    ended(ada, bob)

async def spread(send):
    while True:
        await send(bytes(900))

async def hear(node):
    async for _ in node.messages():
        pass

async def away():
    ada, bob = pt.Node("ada", **options), pt.Node("bob", **options)
    kept.extend((ada, bob))
    await ada.start()
    await bob.start()
    peer = await ada.connect(bob.address, timeout=20)
    back = await bob.wait_for("ada", timeout=20)
    kept.extend(map(asyncio.create_task, (spread(back.send), hear(ada), hear(bob))))
    while time.monotonic() < until or end.startswith("SIG"):
        await peer.send(bytes(500))
    ended(ada, bob)

if form.startswith("asyncio"):
    asyncio.run(away())
elif end == "SIGINT" and form == "sync1":
    with sync.Node("ada", **options) as ada, sync.Node("bob", **options) as bob:
        within(ada, bob)
else:
    within(sync.Node("ada", **options).start(), sync.Node("bob", **options).start())
'''

ENDS = {
    "a return": 0,
    "an exit": 3,
    "an exception": 1,
    "_exit": 3,
    "a child by _exit": 0,
    "a child by exit": 0,
    "SIGTERM": -15,
    "SIGINT": -2,
    "a cycle": 0,
    "a finalizer": 0,
    "atexit": 0,
    "a thread": 0,
}
"""A way to end -> the exit status. A KeyboardInterrupt that nobody caught ends a process as SIGINT
does."""
FORMS = ("sync1", "sync2", "asyncio2")


class Round:
    """So many processes. wrong: what must not have happened; took: the seconds of each end."""

    def __init__(self, count: int, seed: int) -> None:
        dice = random.Random(seed)
        ways = [(form, end) for form in FORMS for end in ENDS]
        dice.shuffle(ways)
        self.left = [
            (*ways[number % len(ways)], dice.random() * LONGEST) for number in range(count)
        ]
        self.wrong: list[str] = []
        self.took: list[float] = []
        self.did: Counter[str] = Counter()

    def work(self) -> None:
        """One after the other, until none is left."""
        try:
            while not self.wrong:
                self.one(*self.left.pop())
        except IndexError:
            return

    def one(self, form: str, end: str, moment: float) -> None:
        options = ("-X", "faulthandler", "-W", "ignore::DeprecationWarning")
        process = subprocess.Popen(
            [sys.executable, *options, "-c", CHILD, form, end, f"{moment:.4f}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=GUARD)
        except subprocess.TimeoutExpired:
            process.send_signal(6)  # faulthandler says where each thread stands
            out, err = process.communicate()
            self.wrong.append(f"{form}, {end} after {moment:.4f} s: hangs\n{err}")
            return
        gone = time.monotonic()
        if (process.returncode, err) != (ENDS[end], ""):
            self.wrong.append(
                f"{form}, {end} after {moment:.4f} s: status {process.returncode}\n{out}{err}"
            )
            return
        self.took += [gone - float(line) for line in out.split()[:1]]
        self.did[end] += 1


def main() -> int:
    count = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print(f"exits: {count}, seed {seed}, Python {sys.version.split()[0]}", flush=True)
    if not hasattr(os, "fork"):
        print("did not run: this system cannot fork")
        return 0
    everything = Round(count, seed)
    threads = [threading.Thread(target=everything.work) for _ in range(SIDE_BY_SIDE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(", ".join(f"{count} by {end}" for end, count in sorted(everything.did.items())))
    if everything.took:
        print(
            f"{statistics.median(everything.took):.3f} s from the end to the last of the process, "
            f"{max(everything.took):.3f} s at most"
        )
    for each in everything.wrong[:10]:
        print("WRONG:", each)
    return bool(everything.wrong)


if __name__ == "__main__":
    sys.exit(main())
