"""Result codes: names, texts, and the exception that stands for each.

Truth: the enum in csrc/core/pt_error.h, as the compiler read it.
"""

from __future__ import annotations

import importlib
from typing import Any

from kit.tables import each_row

from peertalk import errors

NUMBERS = {
    "PT_OK": 0,
    "PT_ERR_INVALID_PARAM": -1,
    "PT_ERR_NO_MEMORY": -2,
    "PT_ERR_NOT_INITIALIZED": -3,
    "PT_ERR_ALREADY_INITIALIZED": -4,
    "PT_ERR_NETWORK": -5,
    "PT_ERR_TIMEOUT": -6,
    "PT_ERR_CONNECTION_REFUSED": -7,
    "PT_ERR_CONNECTION_CLOSED": -8,
    "PT_ERR_BUFFER_FULL": -9,
    "PT_ERR_INVALID_STATE": -10,
    "PT_ERR_PEER_NOT_FOUND": -11,
    "PT_ERR_DISCOVERY_ACTIVE": -12,
    "PT_ERR_NO_NETWORK": -13,
    "PT_ERR_PLATFORM": -14,
    "PT_ERR_QUEUE_EMPTY": -15,
    "PT_ERR_MESSAGE_TOO_LARGE": -16,
    "PT_ERR_NOT_SUPPORTED": -17,
    "PT_ERR_NOT_CONNECTED": -18,
    "PT_ERR_WOULD_BLOCK": -19,
    "PT_ERR_CRC": -20,
    "PT_ERR_MAGIC": -21,
    "PT_ERR_TRUNCATED": -22,
    "PT_ERR_VERSION": -23,
    "PT_ERR_NOT_POWER2": -24,
    "PT_ERR_BACKPRESSURE": -25,
    "PT_ERR_RESOURCE": -26,
    "PT_ERR_BUSY": -27,
    "PT_ERR_CANCELLED": -28,
    "PT_ERR_INTERNAL": -99,
}
"""Those of the original."""


def test_codes_have_the_numbers_and_names_of_the_original(core: Any) -> None:
    """Logs of both implementations must be readable side by side."""
    assert {core.error_name(code): code for code in NUMBERS.values()} == NUMBERS


def test_compiled_enum_has_exactly_these_codes(c_core: Any) -> None:
    """A code that is added in C only would reach users as a number without a name."""
    lib = importlib.import_module(f"peertalk._core._{c_core.name}").lib
    assert {
        name: getattr(lib, name)
        for name in dir(lib)
        if name == "PT_OK" or name.startswith("PT_ERR_")
    } == NUMBERS


@each_row("code", {str(code): code for code in (*range(-110, 12), -(2**31), 2**31 - 1)})
def test_names_and_texts_are_the_same_on_every_core(
    core: Any, reference_core: Any, code: int
) -> None:
    """Any number may come back from a platform; none may read outside the table."""
    assert core.error_name(code) == reference_core.error_name(code)
    assert core.strerror(code) == reference_core.strerror(code)
    assert (core.error_name(code) == "PT_ERR_UNKNOWN") == (code not in NUMBERS.values())
    assert (core.strerror(code) == "unknown error") == (code not in NUMBERS.values())


def test_each_code_has_a_text_of_its_own(core: Any) -> None:
    """Two codes with one text cannot be told apart in a log."""
    assert len({core.strerror(code) for code in NUMBERS.values()}) == len(NUMBERS)


@each_row(
    "code",
    {name: code for name, code in NUMBERS.items() if name not in ("PT_OK", "PT_ERR_CANCELLED")},
)
def test_each_code_becomes_an_exception_that_keeps_it(code: int) -> None:
    """Whose fault a code is depends on the call; the number stays."""
    called, decoded = errors.from_code(code, "text"), errors.from_decoder(code, "text")
    assert code in errors.BY_CODE
    assert called.code == decoded.code == code
    assert isinstance(decoded, errors.ProtocolError)
