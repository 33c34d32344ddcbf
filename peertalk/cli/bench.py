"""`peertalk bench`: the C core against the reference core, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from ..bench import QUICK, THOROUGH, YARDSTICK, measure
from .options import Json, console, print_json, print_rows, say


def command(
    quick: Annotated[
        bool, typer.Option("--quick", help="Shorter runs: rougher figures in a few seconds.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure the C core against the reference core, in ns a message.

    Each figure is the median of interleaved runs.
    """
    effort = QUICK if quick else THOROUGH
    rows = []
    for row in measure(effort):
        rows.append(row)
        if not json:
            say(f"{row.stage} at {row.bytes:,} bytes: {row.ratio:.1f}x")
    if json:
        print_json([row.as_json() for row in rows], indent=1)
        return
    screen = console()
    screen.print("C core (standard) against the reference core, ns a message")
    shown = [
        (
            row.stage,
            f"{row.bytes:,}",
            f"{row.c_ns:,.0f}",
            f"{row.reference_ns:,.0f}",
            f"{row.ratio:.1f}x",
        )
        for row in rows
    ]
    heading = ("stage", "bytes", "C", "reference", "ratio")
    print_rows(screen, shown, heading=heading, right=(1, 2, 3, 4))
    screen.print(f"The reference core's CRC is {YARDSTICK}.")
