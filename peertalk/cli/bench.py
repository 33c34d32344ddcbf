"""`peertalk bench`: the C core against the reference core, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from ..bench import QUICK, THOROUGH, YARDSTICK, measure
from .options import Json, console, print_json, say


def command(
    quick: Annotated[
        bool, typer.Option("--quick", help="Shorter runs: rougher figures in a few seconds.")
    ] = False,
    json: Json = False,
) -> None:
    """The C core against the reference core, stage by stage: medians of interleaved runs, in ns a
    message."""
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
    table = Table(
        title="C core (standard) against the reference core, ns a message",
        box=None,
        pad_edge=False,
        header_style="bold",
        title_justify="left",
    )
    table.add_column("stage")
    for heading in ("bytes", "C", "reference", "ratio"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.stage,
            f"{row.bytes:,}",
            f"{row.c_ns:,.0f}",
            f"{row.reference_ns:,.0f}",
            f"{row.ratio:.1f}x",
        )
    screen.print(table)
    screen.print(f"The reference core's CRC is {YARDSTICK}.")
