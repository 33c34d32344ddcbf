"""peertalk against others: one way over loopback TCP, two processes, every message handed to Python
and checked there.

    python bench/versus.py [--json] [--rounds 5] [--sizes 64 1024 4096] [--seconds 0.5] [--uvloop]
    [--parties batch message pyzmq] [--sync] [--local] [--round-trip] [--no-pin]

bench/parties.py says who the parties are and what their receivers check, bench/rounds.py how runs
are interleaved. By default peertalk runs against pyzmq PUSH/PULL. --local adds to each party of
peertalk the same over AF_UNIX.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

from rounds import (
    LOCAL,
    PARTIES,
    Manner,
    Runs,
    interleave,
    lacking,
    median,
    ratio,
    refusal,
    run,
)


def rows_of(runs: Runs) -> list[dict[str, Any]]:
    """One row for each party and size."""
    rows: list[dict[str, Any]] = []
    for (party, size), done in runs.items():
        refused = refusal(done)
        if refused is not None:
            rows.append({"party": party, "bytes": size, "refused": refused})
            continue
        to_pyzmq = ratio(runs, party, "pyzmq", size)
        cpu = [one["receiver_cpu_ns"] + one["sender_cpu_ns"] for one in done]
        rows.append(
            {
                "party": party,
                "bytes": size,
                "messages_per_second": round(median(done, "rate"), 1),
                "ratio_to_pyzmq": None if to_pyzmq is None else round(to_pyzmq, 2),
                "messages_per_second_range": [
                    round(find(one["rate"] for one in done), 1) for find in (min, max)
                ],
                "cpu_ns_per_message": round(statistics.median(cpu)),
                "cpu_ns_per_message_range": [round(min(cpu)), round(max(cpu))],
                "sender_cpu_ns": round(median(done, "sender_cpu_ns")),
                "receiver_cpu_ns": round(median(done, "receiver_cpu_ns")),
            }
        )
    return rows


TRIPS = ("message", "sync", "polled", "pyzmq")
"""Parties of a round trip; polled: sync with workers=0."""


def measure_round_trips(rounds: int, pin: bool, uvloop: bool) -> list[dict[str, Any]]:
    """Round trips of 64 bytes, p50 in microseconds, with both processes on one core and on one core
    each."""
    rows = []
    for cores in ((0, 0), (0, 1)):
        manner = Manner(pin, uvloop, cores)
        took: dict[str, list[float]] = {party: [] for party in TRIPS}
        for _, party in itertools.product(range(rounds), took):
            took[party].append(run(f"trip-{party}", 64, 5_000, manner)["p50_us"])
        for party, times in took.items():
            ratio = statistics.median(
                ours / theirs for ours, theirs in zip(times, took["pyzmq"], strict=True)
            )
            where = "one core" if cores[0] == cores[1] else "one core each"
            rows.append(
                {
                    "party": party,
                    "cores": where,
                    "p50_us": round(statistics.median(times), 1),
                    "ratio_to_pyzmq": round(ratio, 2),
                }
            )
    return rows


def thousands(rate: float) -> str:
    """Messages a second, in thousands; of large ones there are few."""
    return f"{rate / 1e3:,.0f}" if rate >= 100_000 else f"{rate / 1e3:.3g}"


def spread(ends: list[Any], written: Callable[[Any], str] = "{:,}".format) -> str:
    """The smallest and the largest figure of a row."""
    return "-".join(map(written, ends))


def main() -> int:
    """Run what was asked for; 0 when every message of every run arrived and was right."""
    options = parsed()
    chosen = list(options.parties)
    if options.sync and "sync" not in chosen:
        chosen.insert(0, "sync")
    if options.local:
        chosen += [party + LOCAL for party in ("batch", "message") if party in chosen]
    lack = lacking([*chosen, "pyzmq"] if options.round_trip else chosen)
    if lack is not None:
        print(f"bench/versus.py: {lack}", file=sys.stderr)
        return 2
    manner = Manner(options.pin, options.uvloop)
    runs = interleave(chosen, options.sizes, options.rounds, options.seconds, manner)
    rows, trips = rows_of(runs), []
    if options.round_trip:
        trips = measure_round_trips(options.rounds, options.pin, options.uvloop)
    if options.json:
        print(json.dumps({"one_way": rows, "round_trips": trips}, indent=1))
    else:
        show(rows, trips)
    return 0


def parsed() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description="peertalk against others, one way over loopback TCP"
    )
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each party at each size")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one run")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[64, 1024, 4096],
        help="bytes of a message, 4 or more",
    )
    parser.add_argument(
        "--parties", nargs="+", choices=PARTIES, default=["batch", "message", "pyzmq"]
    )
    parser.add_argument("--sync", action="store_true", help="peertalk.sync as well")
    parser.add_argument(
        "--local", action="store_true", help="batch and message over AF_UNIX as well"
    )
    parser.add_argument("--uvloop", action="store_true", help="the asyncio parties on uvloop")
    parser.add_argument("--round-trip", action="store_true", help="round trips of 64 bytes as well")
    parser.add_argument(
        "--no-pin", dest="pin", action="store_false", help="let the system choose cores"
    )
    return parser.parse_args()


def show(rows: list[dict[str, Any]], trips: list[dict[str, Any]]) -> None:
    """The figures as tables."""
    print(
        f"{'medians':13} {'bytes':>10} {'k msg/s':>9} {'least-most':>13} {'MB/s':>7}"
        f" {'to pyzmq':>9} {'CPU ns/message':>15} {'least-most':>23} {'(sender':>11}"
        f" {'receiver)':>11}"
    )
    for row in rows:
        begin = f"{row['party']:13} {row['bytes']:10,}"
        if "refused" in row:
            print(f"{begin} refused: {row['refused']}")
            continue
        ratio_text = "" if row["ratio_to_pyzmq"] is None else f"{row['ratio_to_pyzmq']:.2f}x"
        print(
            f"{begin} {thousands(row['messages_per_second']):>9}"
            f" {spread(row['messages_per_second_range'], thousands):>13}"
            f" {row['messages_per_second'] * row['bytes'] / 1e6:7,.0f} {ratio_text:>9}"
            f" {row['cpu_ns_per_message']:15,} {spread(row['cpu_ns_per_message_range']):>23}"
            f" {row['sender_cpu_ns']:11,} {row['receiver_cpu_ns']:11,}"
        )
    for row in trips:
        print(
            f"round trip of 64 B, {row['cores']:13}: {row['party']:8} "
            f"p50 {row['p50_us']:7.1f} us, {row['ratio_to_pyzmq']:.2f} of pyzmq"
        )


if __name__ == "__main__":
    sys.exit(main())
