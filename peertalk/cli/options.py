"""What the commands share: options made from the settings of Config, and how results are
printed."""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console

from ..config import Setting, settings

NODE_SETTINGS = ("name", "port", "discovery_port", "bind", "interfaces", "core")
"""Settings that are options of every command with a node; all others are set in the environment."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
"""The option that every command has."""

_OBEYED = re.compile("[\x7f-\x9f\u2028\u2029]")
_KINDS: dict[str, type] = {"whole": int, "boolean": bool}


def node_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each of these settings; it gets them as `options`, by name, None
    where not given.

    Bounds are checked by Config, which says where a value came from.
    """
    chosen = [setting for setting in settings() if setting.name in names]

    def give(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_options(**given: Any) -> None:
            options = {setting.name: _value(setting, given.pop(setting.name)) for setting in chosen}
            command(**given, options=options)

        own = [
            one
            for one in inspect.signature(command, eval_str=True).parameters.values()
            if one.name != "options"
        ]
        added = [
            inspect.Parameter(
                setting.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=_annotation(setting),
            )
            for setting in chosen
        ]
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + added
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {one.name: one.annotation for one in parameters}
        return with_options

    return give


def _annotation(setting: Setting) -> Any:
    word = setting.name.replace("_", "-")
    # click makes no second word by itself where the first is given, and off could not be said
    flag = f"--{word}/--no-{word}" if setting.kind == "boolean" else f"--{word}"
    more = " Several: separated by commas." if setting.kind == "list" else ""
    option = typer.Option(
        flag, help=f"{setting.description}{more} ({setting.environment})", show_default=False
    )
    kind: Any = _KINDS.get(setting.kind, str)
    return Annotated[kind | None, option]


def _value(setting: Setting, given: Any) -> Any:
    if setting.kind == "list" and given is not None:
        return tuple(part.strip() for part in given.split(",") if part.strip())
    return given


def console(*, stderr: bool = False) -> Console:
    """Where results for people go. NO_COLOR, or no terminal: plain text."""
    return Console(
        stderr=stderr,
        highlight=False,
        markup=False,
        soft_wrap=True,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
    )


def print_rows(
    screen: Console,
    rows: Sequence[Sequence[str]],
    *,
    heading: Sequence[str] = (),
    right: Collection[int] = (),
) -> None:
    """Rows in columns. Nothing is cut: on a narrow terminal a line goes on in the next one.

    Args:
        right: which columns are of numbers, and stand to the right.
    """
    lines = [heading, *rows] if heading else rows
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            " " * (width - cell_len(cell)) + cell if index in right else set_cell_size(cell, width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        screen.print("  ".join(cells).rstrip(), style="bold" if line is heading else None)


def print_json(value: object, *, indent: int | None = None) -> None:
    """One value as JSON on standard output; a line of its own unless indented, written at once."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    # what a terminal obeys, or takes for the end of a line; json leaves those above 0x1f
    print(_OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text), flush=True)


def say(text: str) -> None:
    """One line about what is going on, for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


def readable(text: str) -> str:
    """Text from the network for a terminal: control characters are shown, never obeyed."""
    return "".join(
        one
        if one.isprintable() or one == "\t"
        else one.encode("unicode_escape").decode("ascii", "replace")
        for one in text
    )
