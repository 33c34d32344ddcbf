"""What the system refuses, and what users read then: the number decides the kind, and each text
says what helps."""

from __future__ import annotations

import errno
import os
import re

import pytest

from peertalk import errors
from peertalk.protocol import refusals

WHERE = ("10.0.0.1", 7354)


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (errno.ECONNREFUSED, errors.ConnectionRefused, "10.0.0.1:7354 refused .* nobody listens"),
        (errno.ENETUNREACH, errors.NetworkFailure, "no way to 10.0.0.1:7354: Network is unr"),
        (errno.EHOSTUNREACH, errors.NetworkFailure, "no way to 10.0.0.1:7354: No route"),
        (errno.ENETDOWN, errors.NetworkFailure, "no way to"),
        (errno.EADDRNOTAVAIL, errors.NetworkFailure, "no way to"),
        (errno.ETIMEDOUT, errors.Timeout, "10.0.0.1:7354 did not answer in time"),
        (errno.EMFILE, errors.NetworkFailure, "cannot connect to 10.0.0.1:7354: Too many"),
        (0, errors.NetworkFailure, "cannot connect to"),
    ],
)
def test_the_outcome_of_a_dial_says_why(code, kind, said):
    """Whoever dials again tells those apart by their kind."""
    error = refusals.of_dial(code, os.strerror(code), WHERE)
    assert type(error) is kind and re.search(said, str(error))


@pytest.mark.parametrize(
    ("code", "option", "kind", "said"),
    [
        (
            errno.EADDRINUSE,
            "port",
            errors.AddressInUse,
            "P 7354 on 10.0.0.1 is taken .*_PORT.*, 0",
        ),
        (errno.EADDRINUSE, "udp_port", errors.AddressInUse, r"udp_port \(PEERTALK_UDP_PORT\), 0"),
        (errno.EADDRINUSE, "discovery_port", errors.AddressInUse, "that does not share it"),
        (errno.EADDRNOTAVAIL, "port", errors.NoNetwork, r"10.0.0.1 \(Config.bind\) is no address"),
        (errno.EACCES, "port", errors.PlatformError, "above 1023 with Config.port"),
        (errno.EMFILE, "port", errors.PlatformError, "cannot use P 7354 on 10.0.0.1: Too many"),
    ],
)
def test_a_port_that_cannot_be_had_names_the_option(code, option, kind, said):
    """What one has to change is worth more than what went wrong."""
    error = refusals.of_bind(OSError(code, os.strerror(code)), "P", "10.0.0.1", 7354, option)
    assert type(error) is kind and re.search(said, str(error))


@pytest.mark.parametrize(
    ("code", "helps"), [(errno.EMFILE, "ulimit -n"), (errno.ENFILE, "fs.file-max"), (1, "")]
)
def test_what_is_used_up_is_said_with_what_helps(code, helps):
    """A limit of the program and one of the machine are raised in different places."""
    said = refusals.used_up(OSError(code, os.strerror(code)))
    assert said.startswith(os.strerror(code)) and helps in said and ("allow" in said) == bool(helps)
