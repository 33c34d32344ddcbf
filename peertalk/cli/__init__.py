"""The command line: one file a command. It needs the extra `cli` (typer, rich), which is imported
here and not before.

Exit codes: 0 fine, 1 the thing asked for failed, 2 wrong usage, 3 nobody found in time, 130
interrupted. An error is one line on standard error, never a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from .. import errors
from .outcome import FAILED, FINE, INTERRUPTED, WRONG_USAGE, CommandFailed, exit_code

_EXTRA = ("typer", "rich", "click", "shellingham", "typing_extensions")
_MISSING = "the command line needs the extra 'cli'; its packages come with: pip install typer rich"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the program with its exit code.

    Args:
        arguments: without the program's name; None: those that the program was started with.
    """
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code."""
    _open_standard_streams()
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        code = _application(_commands(given[0] if given else ""))(
            args=given,
            prog_name="peertalk",
            standalone_mode=False,
        )
        sys.stdout.flush()
        return code if isinstance(code, int) else FINE
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _EXTRA:
            raise
        return _complain(_MISSING, WRONG_USAGE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read us has gone: nothing more to say, nor at interpreter exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except (CommandFailed, errors.PeerTalkError, OSError) as error:
        return _complain(str(error), exit_code(error))
    except Exception as error:
        if type(error).__name__ == "Abort":
            return INTERRUPTED
        if not hasattr(error, "format_message"):
            raise
        hint = getattr(error, "ctx", None)
        where = hint.command_path if hint is not None else "peertalk"
        code = int(getattr(error, "exit_code", WRONG_USAGE))
        text = error.format_message()
        # no text: the list of commands was printed
        return _complain(f"{text}  (see: {where} --help)", code) if text else code


def _open_standard_streams() -> None:
    """Those that were closed when the program was started lead nowhere, and no socket gets their
    numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def _complain(text: str, code: int) -> int:
    sys.stdout.flush()
    print(f"peertalk: {' '.join(text.split())}", file=sys.stderr)
    return code


def _commands(named: str) -> list[ModuleType]:
    """The modules of the commands; where one is called by its name only that one, for most of them
    take longer to load than to run."""
    if named in ("demo", "peers", "send", "listen", "bench", "sim", "info"):
        return [import_module(f"{__name__}.{named}")]
    from . import bench, demo, info, listen, peers, send, sim

    return [demo, peers, send, listen, bench, sim, info]


def _application(commands: list[ModuleType]) -> Any:
    import typer

    colour = not os.environ.get("NO_COLOR")

    def version(wanted: bool) -> None:
        if wanted:
            from .. import __version__

            print(f"peertalk {__version__}")
            raise typer.Exit

    option: Any = typer.Option(
        False, "--version", callback=version, is_eager=True, help="Print the version."
    )

    def common(version: bool = option) -> None:
        """Messages between programs on one local network, without a broker."""

    application = typer.Typer(
        name="peertalk",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich" if colour else None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    application.callback()(common)
    for module in commands:
        application.command(module.__name__.rpartition(".")[2])(module.command)
    return application
