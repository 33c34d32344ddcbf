"""How a command ends: the exit codes, and the error that says one. Imports no extra."""

from __future__ import annotations

from .. import errors

FINE, FAILED, WRONG_USAGE, NOBODY, INTERRUPTED = 0, 1, 2, 3, 130


class CommandFailed(Exception):
    """What was asked for failed, and has been explained. code: the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def exit_code(error: BaseException) -> int:
    """Which exit code says what this error means."""
    if isinstance(error, CommandFailed):
        return error.code
    return WRONG_USAGE if isinstance(error, errors.InvalidArgument) else FAILED
