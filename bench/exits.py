"""Time from the end of a program to the end of its process, while its nodes are open and busy: the
median must be under 500 ms.

    python bench/exits.py [--json] [--count 30]

Each program has two nodes of peertalk.sync, with a worker each, that send to each other as fast as
they can on daemon threads, and returns from its last line without closing them. Before each there
is one without nodes that has imported as much: what that takes is CPython's own. Exit status 1 from
500 ms on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

BAR = 0.5
IDLE = """
import threading, time
from peertalk import sync
"""
BUSY = (
    IDLE
    + """
options = {"bind": "127.0.0.1", "port": 0, "discovery": False}
ada = sync.Node("ada", **options).start()
bob = sync.Node("bob", **options).start()
peer = ada.connect(bob.address, timeout=20)
back = bob.wait_for("ada", timeout=20)

def send(to):
    while True:
        to.send(bytes(500))

def take(node):
    while True:
        node.receive()

for work, which in ((send, peer), (send, back), (take, ada), (take, bob)):
    threading.Thread(target=work, args=(which,), daemon=True).start()
time.sleep(0.2)
"""
)
END = """
print(time.monotonic(), flush=True)
"""


def seconds(program: str) -> float:
    """From its last line to the end of its process."""
    options = ("-W", "ignore", "-c", program + END)
    process = subprocess.Popen([sys.executable, *options], stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=60)
    return time.monotonic() - float(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--count", type=int, default=30)
    arguments = parser.parse_args()
    pairs = [(seconds(IDLE), seconds(BUSY)) for _ in range(arguments.count)]
    idle, busy = (statistics.median(each) for each in zip(*pairs, strict=True))
    longest = max(each for _, each in pairs)
    figures = {"bare_s": idle, "busy_s": busy, "longest_s": longest, "processes": len(pairs)}
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(
            f"end of a process with busy nodes: {busy * 1000:.0f} ms in the middle, "
            f"{longest * 1000:.0f} at most; without nodes {idle * 1000:.0f}"
        )
    return int(busy >= BAR)


if __name__ == "__main__":
    sys.exit(main())
