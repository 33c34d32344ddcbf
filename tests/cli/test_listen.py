"""`peertalk listen`."""

from __future__ import annotations

import base64
import json

import pytest

from peertalk.sync import Node


@pytest.fixture
def listening(fork_python, free_port):
    """listening(*arguments): a listener without discovery, and its port."""

    def listen(*arguments):
        environment = {
            "PEERTALK_BIND": "127.0.0.1",
            "PEERTALK_DISCOVERY_PORT": str(free_port()),
            "PEERTALK_PORT": "0",
            "PEERTALK_DISCOVERY": "off",
        }
        process = fork_python("-m", "peertalk", "listen", *arguments, env=environment)
        return process, int(process.stderr.readline().rsplit(" ", 1)[1])

    return listen


def send(port: int, *payloads: bytes) -> None:
    with Node("s", port=0, bind="127.0.0.1", discovery=False) as node:
        node.connect(("127.0.0.1", port), timeout=5).send_many(payloads)


def test_bytes_that_are_no_text_arrive_whole_in_json(listening):
    """A line of JSON has to carry any message."""
    process, port = listening("--json", "--count", "2")
    send(port, b"\xff\x00\x80", b"plain")
    first, second = map(json.loads, process.communicate(timeout=20)[0].splitlines())
    assert base64.b64decode(first["base64"]) == b"\xff\x00\x80" and "text" not in first
    assert second["text"] == "plain" and second["bytes"] == 5


def test_a_message_is_one_line_whatever_is_in_it(listening):
    """Line breaks and escape sequences in a message must not forge other messages, nor command the
    terminal."""
    process, port = listening("--count", "1")
    send(port, b"one\ntwo\x1b[2J")
    assert process.communicate(timeout=20)[0] == "s: one\\ntwo\\x1b[2J\n"


def test_silence_ends_with_3_after_the_time_given(listening):
    """A script that waits for an answer has to stop some time."""
    process, _ = listening("--timeout", "200ms")
    complaint = process.communicate(timeout=20)[1]
    assert process.returncode == 3
    assert "no message" in complaint


def test_ctrl_c_ends_a_listener_without_a_traceback(listening):
    """It is the usual way to end it."""
    process, _ = listening()
    process.send_signal(2)
    assert process.wait(10) == 130
    assert process.stderr.read() == ""
