"""`peertalk sim`: scripted incidents on a simulated network."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from .. import errors
from ..sim import scenarios, throughput
from .options import Json, console, print_json, print_rows, say
from .outcome import CommandFailed

THROUGHPUT = "throughput"


def command(
    scenario: Annotated[
        str | None,
        typer.Argument(
            help="Name of a scenario, or throughput. Without a name: list the scenarios."
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", help="Seed of every random decision: the same seed gives the same run."
        ),
    ] = 0,
    trace: Annotated[
        bool, typer.Option("--trace", help="Print also the last decisions of the network.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            min=0.05,
            max=600,
            help="Simulated minutes for each row of throughput. Default: 10.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Play a scenario on a simulated network.

    Prints what went wrong, the figures of the scenario, and the hash of its trace.
    """
    if minutes is not None and scenario != THROUGHPUT:
        raise errors.InvalidArgument(
            "--minutes goes with throughput; a scenario takes the time that it takes"
        )
    if trace and scenario in (None, THROUGHPUT):
        raise errors.InvalidArgument("--trace goes with a scenario")
    if scenario is None:
        _list(json)
    elif scenario == THROUGHPUT:
        _throughput(10.0 if minutes is None else minutes, seed, json)
    elif scenario not in scenarios.SCENARIOS:
        raise errors.InvalidArgument(
            f"there is no scenario {scenario!r}; there are "
            f"{', '.join([*scenarios.SCENARIOS, THROUGHPUT])}"
        )
    else:
        _play(scenario, seed, trace, json)


def _list(json: bool) -> None:
    summaries = {name: each.summary for name, each in scenarios.SCENARIOS.items()}
    summaries[THROUGHPUT] = (
        "kilobytes a second on the classic link, by platform, core, depth and size"
    )
    if json:
        print_json(summaries, indent=1)
        return
    print_rows(console(), list(summaries.items()))


def _play(name: str, seed: int, trace: bool, json: bool) -> None:
    records: list[Any] = []
    result = scenarios.play(name, seed, trace=records if trace else None)
    if json:
        printed = msgspec.to_builtins(result)
        if trace:
            printed["trace"] = [record._asdict() for record in records]
        print_json(printed, indent=1)
    else:
        screen = console()
        for record in records:
            screen.print(
                f"{record.time_ns / 1e9:14.9f}  {record.kind:<10}  {record.source} > "
                f"{record.target}  {record.a} {record.b}"
            )
        for label, value in result.figures.items():
            screen.print(f"{label.replace('_', ' ')}: {value:,}")
        for problem in result.problems:
            screen.print(f"problem: {problem}")
        verdict = "failed" if result.problems else "passed"
        screen.print(
            f"{name}, seed {seed}: {verdict} after {result.seconds:,.3f} s of network; trace "
            f"{result.trace_hash}"
        )
    if result.problems:
        raise CommandFailed(
            f"{name}, seed {seed}: {len(result.problems)} problems; the first: {result.problems[0]}"
        )


def _throughput(minutes: float, seed: int, json: bool) -> None:
    def told(row: throughput.Rate) -> None:
        say(
            f"{row.platform}, {row.core}, depth {row.depth}, {row.message_bytes} "
            f"bytes{', packed' if row.packing else ''}: {row.kb_per_s} KB/s"
        )

    rows = throughput.throughput(minutes * 60, seed, None if json else told)
    if json:
        print_json([msgspec.to_builtins(row) for row in rows], indent=1)
        return
    heading = ("platform", "core", "depth", "packing", "message bytes", "KB/s", "ratio to sync")
    shown = [
        (
            row.platform,
            row.core,
            str(row.depth),
            "yes" if row.packing else "no",
            f"{row.message_bytes:,}",
            f"{row.kb_per_s:.1f}",
            f"{row.ratio_to_sync:.2f}",
        )
        for row in rows
    ]
    print_rows(console(), shown, heading=heading, right=range(2, 7))
