"""Durations and sizes as people write them: numbers, or text with a unit."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from .errors import InvalidArgument, WrongType, shown

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_BYTES = {
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}
_DIGITS_MAX = 40
"""Of the number in a size: more of them mean nothing, and Python stops reading somewhere."""
_QUANTITY = re.compile(r"\s*(\d+(?:_\d+)*(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*")


def parse_duration(value: object) -> float:
    """Seconds from a number of seconds or from text such as "250ms", "2s", "1.5m", "1h".

    Raises:
        InvalidArgument: text that is no duration, or a value that is negative, infinite or not a
            number.
        WrongType: neither a number nor text.
    """
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        if match is None or match[2].lower() not in ("", *_SECONDS):
            raise InvalidArgument(
                f"{shown(value)} is no duration: write seconds, or a number with us, ms, s, "
                "m or h (250ms, 2s)"
            )
        seconds = float(match[1]) * _SECONDS[match[2].lower() or "s"]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:
            seconds = math.inf
    else:
        raise WrongType(
            f"{shown(value)} is no duration: use seconds (a number) or text such as '250ms'"
        )
    if not math.isfinite(seconds) or seconds < 0:
        raise InvalidArgument(f"{shown(value)} is no duration: it must be finite and not negative")
    return seconds


def parse_timeout(value: object) -> float | None:
    """Seconds from a time-out as calls take it: a duration, or None, which stays None: no limit.

    Raises:
        InvalidArgument, WrongType: as parse_duration().
    """
    return None if value is None else parse_duration(value)


def parse_size(value: object) -> int:
    """Bytes from a whole number of bytes or from text such as "64KiB" (65,536), "1MB" (1,000,000),
    "512".

    Raises:
        InvalidArgument: text that is no size, a negative number, or a fraction of a byte.
        WrongType: neither a whole number nor text.
    """
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        if match is None or match[2].lower() not in ("", *_BYTES):
            raise InvalidArgument(
                f"{shown(value)} is no size: write bytes, or a number with KB, MB, GB, KiB, "
                "MiB or GiB (64KiB)"
            )
        if len(match[1]) > _DIGITS_MAX:
            raise InvalidArgument(
                f"{shown(value)} is no size: it has more than {_DIGITS_MAX} digits"
            )
        unit = _BYTES[match[2].lower() or "b"]
        size = Fraction(match[1]) * unit
        if size.denominator != 1:
            raise InvalidArgument(f"{shown(value)} is no size: it is not a whole number of bytes")
        return int(size)
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise InvalidArgument(f"{shown(value)} is no size: it must not be negative")
        return value
    raise WrongType(
        f"{shown(value)} is no size: use bytes (a whole number) or text such as '64KiB'"
    )
