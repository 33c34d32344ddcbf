"""Certificates for tests of TLS. Whoever asks for one has the mark `signs`: what makes them is
written in Rust, and leaves memory behind that a sanitizer reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import trustme

signs = pytest.mark.unsanitized("what signs certificates leaves memory behind")


def make_authority() -> trustme.CA:
    """Who signs certificates, and whom nobody trusts yet."""
    import trustme

    return trustme.CA()
