"""Large messages, one way between two processes on one host: MB/s beside others, and what small
messages of a higher class do meanwhile.

    python bench/large.py [--json] [--rounds 5] [--seconds 0.5] [--passes 20]
    [--sizes 65535 262144 1048576 16777216 67108864]

Each party of bench/parties.py runs once at each size in every round. Then, over TCP, small messages
of 64 bytes and class HIGH are sent one a millisecond behind each of several large ones of class
NORMAL; of those that come before the large one is there, the time from send() to the receiver's
program counts.

Exit status 1 unless every bar is met:

- 65,535 bytes: peertalk has at least 2 times the rate of pyzmq PUSH/PULL, and 0.75 times that of
  zenoh with shared memory.
- 1 MiB: at least 0.6 times the rate of plain sockets in C.
- every size: over AF_UNIX at least 1.5 times the rate over TCP.

All for the message form (`await peer.send(...)`, messages()). What peertalk refuses or cannot do
meets no bar. 2: something is not installed.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, NamedTuple

from rounds import Manner, Runs, interleave, knows_local, lacking, median, ratio, refusal, run

SIZES = (65_535, 2**18, 2**20, 2**24, 2**26)
OTHERS = ("pyzmq", "zenoh", "zenoh-shm", "socket", "socket-unix")
MB = 1_000_000
Rows = list[dict[str, Any]]


class Bar(NamedTuple):
    """The first party is at least so many times as fast as the second, at this size."""

    ours: str
    theirs: str
    bytes: int
    least: float

    def judged(self, runs: Runs) -> dict[str, Any]:
        """With what was measured (None: nothing to compare) and whether it is met."""
        measured = ratio(runs, self.ours, self.theirs, self.bytes)
        met = measured is not None and measured >= self.least
        return {**self._asdict(), "measured": measured and round(measured, 2), "met": met}


def bars(sizes: list[int]) -> list[Bar]:
    """The bars of these sizes."""
    every = [
        Bar("message", "pyzmq", 65_535, 2.0),
        Bar("message", "zenoh-shm", 65_535, 0.75),
        Bar("message", "socket", 2**20, 0.6),
        *(Bar("message-local", "message", size, 1.5) for size in sizes),
    ]
    return [bar for bar in every if bar.bytes in sizes]


def rates(runs: Runs) -> Rows:
    """MB/s of each party at each size: median, least and most; or why there is none."""
    rows: Rows = []
    for (party, size), done in runs.items():
        row: dict[str, Any] = {"party": party, "bytes": size}
        refused = refusal(done)
        if refused is not None:
            row["refused"] = refused
        else:
            row["mb_per_second"] = round(median(done, "rate") * size / MB)
            each = [round(one["rate"] * size / MB) for one in done]
            row["mb_per_second_range"] = [min(each), max(each)]
        rows.append(row)
    return rows


def passing(sizes: list[int], passes: int, manner: Manner) -> Rows:
    """What small messages do while large ones of each size are under way."""
    rows = []
    for size in sizes:
        done = run("passing", size, passes, manner)
        figures = ("refused", "passed", "median_ms")
        rows.append({"bytes": size, **{each: done[each] for each in figures if each in done}})
    return rows


def show(rows: Rows, small: Rows, judged: Rows) -> None:
    """The figures as text."""
    print(f"{'medians':13} {'bytes':>10} {'MB/s':>7} {'least-most':>13}")
    for row in rows:
        begin = f"{row['party']:13} {row['bytes']:10,}"
        if "refused" in row:
            print(f"{begin} refused: {row['refused']}")
        else:
            least_most = "{:,}-{:,}".format(*row["mb_per_second_range"])
            print(f"{begin} {row['mb_per_second']:7,} {least_most:>13}")
    for row in small:
        begin = f"64 bytes, HIGH, past {row['bytes']:,}:"
        if "refused" in row:
            print(f"{begin} refused: {row['refused']}")
        elif row["median_ms"] is None:
            print(f"{begin} none came before the large one")
        else:
            print(f"{begin} median {row['median_ms']:.3f} ms of {row['passed']}")
    for each in judged:
        measured = "not measured" if each["measured"] is None else f"{each['measured']:.2f}"
        print(
            f"{'met' if each['met'] else 'MISSED':6} {each['bytes']:,} bytes: {each['ours']} to "
            f"{each['theirs']} {measured}, at least {each['least']}"
        )


def main() -> int:
    """Measure; 0 when every bar is met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each party at each size")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one run")
    parser.add_argument("--passes", type=int, default=20, help="large messages to be passed")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="bytes")
    options = parser.parse_args()
    lack = lacking(OTHERS)
    if lack is not None:
        print(f"bench/large.py: {lack}", file=sys.stderr)
        return 2
    ours = ["message", "message-local"] if knows_local() else ["message"]
    manner = Manner()
    runs = interleave([*ours, *OTHERS], options.sizes, options.rounds, options.seconds, manner)
    rows = rates(runs)
    small = passing(options.sizes, options.passes, manner)
    judged = [bar.judged(runs) for bar in bars(options.sizes)]
    if options.json:
        print(json.dumps({"one_way": rows, "passing": small, "bars": judged}, indent=1))
    else:
        show(rows, small, judged)
    return 0 if all(each["met"] for each in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
