"""The timer wheel: ns of one arm and of one cancel, with 10 to 1,000,000 timers armed.

    python bench/timers.py [--json] [--rounds 2000000]

Compiles bench/timers.c with the wheel, optimised, by the C compiler on PATH, and runs it. Timers
are cancelled in an order by chance, so that a million of them (40 MB) lie in no cache: what is
beyond the figure for 1,000 is the memory's.
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
NS_AT_MOST = 200


def measure(rounds: int) -> list[dict[str, Any]]:
    """The figures of one run, from few timers to many."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        raise SystemExit("bench/timers.py compiles a C program, and there is no cc on PATH")
    core = ROOT / "csrc" / "core"
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "timers"
        sources = [ROOT / "bench" / "timers.c", core / "pt_wheel.c"]
        command = [compiler, "-std=c11", "-O3", f"-I{core}", *sources, "-o", program]
        subprocess.run(command, check=True)
        done = subprocess.run([program, str(rounds)], check=True, capture_output=True, text=True)
    figures: list[dict[str, Any]] = json.loads(done.stdout)
    return figures


def main() -> int:
    """Print the figures; 1 when an arm or a cancel takes 200 ns."""
    parser = argparse.ArgumentParser(description="the timer wheel: ns to arm and to cancel")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.add_argument("--rounds", type=int, default=2_000_000, help="timers of each figure")
    options = parser.parse_args()
    figures = measure(options.rounds)
    if options.json:
        print(json.dumps(figures))
    else:
        for each in figures:
            arm, cancel = each["arm_ns"], each["cancel_ns"]
            print(f"{each['timers']:9,} timers: arm {arm} ns, cancel {cancel} ns")
    return int(max(max(each["arm_ns"], each["cancel_ns"]) for each in figures) >= NS_AT_MOST)


if __name__ == "__main__":
    sys.exit(main())
