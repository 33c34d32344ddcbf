"""Addresses as people write them."""

from __future__ import annotations

from pathlib import PurePath

import pytest

from peertalk import errors
from peertalk.protocol.socket_addresses import readable, split


@pytest.mark.parametrize(
    ("written", "form", "value"),
    [
        ("ada:7", "pair", ("ada", 7)),
        (":7", "pair", ("", 7)),
        ("[::1]:7", "pair", ("::1", 7)),
        (("ada", 65_535), "pair", ("ada", 65_535)),
        (("::1", 7, 0, 2), "resolved", ("::1", 7, 0, 2)),
        ("/run/ada", "unix", "/run/ada"),
        ("./ada:7", "unix", "./ada:7"),
        (PurePath("ada"), "unix", "ada"),
    ],
)
def test_each_form_is_told_from_the_others(written, form, value):
    assert split(written) == (form, value)


@pytest.mark.parametrize(
    "wrong",
    [
        *("", "ada", "ada:", "ada:x", "ada:-1", "ada:65536", "::1:7", "1:2:3", "ada:٣٣٣٣٣"),
        *(7, None, b"ada:7", ("ada",), ("ada", "7"), ("ada", True), (7, 7), ("ada", 65_536)),
        *(("ada", 1, 2), ["ada", 7]),
    ],
)
def test_what_is_no_address_is_refused_with_what_is(wrong):
    with pytest.raises(errors.InvalidArgument, match="address"):
        split(wrong)


def test_addresses_are_shown_as_they_are_written():
    assert readable(("10.0.0.1", 7)) == "10.0.0.1:7"
    assert readable(("::1", 7, 0, 0)) == "[::1]:7"
    assert readable("/run/ada") == "/run/ada"
    assert readable(b"\0hidden") == "\0hidden"
    assert readable("") == "a socket without a name"
