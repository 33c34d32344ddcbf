"""The buffer pool: ns of one acquire and release, and how often contexts meet on the shared list.

    python bench/pool.py [--json] [--rounds 1000000]

Compiles bench/pool.c with the core, optimised, by the C compiler on PATH, and runs it. Two contexts
in threads of their own send messages of 0 to 8,192 bytes, in bursts, over a pair of links each;
both have one pool. After a warm-up it counts what they borrow, and each change of the list that all
share. Then one thread borrows and returns by a door of its own, and 1 to 4 threads by the door that
all share.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = [ROOT / "csrc" / "core", ROOT / "csrc" / "platform"]
NS_AT_MOST = 60
MEETINGS_AT_MOST = 0.01


def measure(rounds: int) -> dict[str, Any]:
    """The figures of one run."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        raise SystemExit("bench/pool.py compiles a C program, and there is no cc on PATH")
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "pool"
        sources = [path for folder in FOLDERS for path in sorted(folder.glob("*.c"))]
        include = [f"-I{folder}" for folder in FOLDERS]
        command = [compiler, "-std=c11", "-O3", *include, ROOT / "bench" / "pool.c", *sources]
        subprocess.run([*command, "-o", program, "-pthread"], check=True)
        done = subprocess.run([program, str(rounds)], check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def main() -> int:
    """Print the figures; 1 when an acquire and release take 60 ns, or contexts meet on the list in
    1 % of their acquires."""
    parser = argparse.ArgumentParser(description="the buffer pool: speed, and who meets whom")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.add_argument("--rounds", type=int, default=1_000_000, help="acquires of each figure")
    options = parser.parse_args()
    figures = measure(options.rounds)
    met = figures["met"] / figures["acquires"]
    if options.json:
        print(json.dumps(figures))
    else:
        print(f"acquire and release: {figures['pair_ns']} ns, a share {figures['pair_share_ns']}")
        print(f"two contexts meet on the list in {met:.2%} of {figures['acquires']:,} acquires")
        for threads, cost in enumerate(figures["bare_pair_ns"], 1):
            print(f"on the list alone, {threads} threads: {cost} ns")
    return int(figures["pair_ns"] >= NS_AT_MOST or met >= MEETINGS_AT_MOST)


if __name__ == "__main__":
    sys.exit(main())
