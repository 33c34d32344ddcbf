"""`peertalk send`."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def command(fork_python, free_port):
    """command(*arguments): a peertalk command in a process, all of one test on a discovery port of
    their own."""
    environment = {
        "PEERTALK_BIND": "127.0.0.1",
        "PEERTALK_DISCOVERY_PORT": str(free_port()),
        "PEERTALK_PORT": "0",
    }
    return lambda *arguments: fork_python("-m", "peertalk", *arguments, env=environment)


def listening(command, *arguments):
    """A listener and its port."""
    process = command("listen", "--name", "ada", "--json", *arguments)
    return process, int(process.stderr.readline().rsplit(" ", 1)[1])


def test_a_message_reaches_the_listener_of_that_name(command):
    """The shortest script with peertalk: two commands."""
    listener, _ = listening(command, "--count", "1")
    sending = command("send", "ada", "h\u00e9llo", "--json", "--name", "grace")
    output, _ = sending.communicate(timeout=20)
    assert sending.returncode == 0
    assert json.loads(output)["messages"] == 1
    heard = json.loads(listener.communicate(timeout=20)[0])
    assert (heard["peer"], heard["text"]) == ("grace", "h\u00e9llo")
    assert listener.returncode == 0


def test_each_line_of_standard_input_is_a_message_in_order(command):
    """A pipe is how other programs send; an address needs no discovery."""
    listener, port = listening(command, "--count", "300")
    sending = command("send", "--to-address", f"127.0.0.1:{port}", "-")
    output, complaint = sending.communicate(
        "".join(f"line {number}\n" for number in range(300)), timeout=20
    )
    assert sending.returncode == 0, complaint
    assert output.startswith("sent 300 messages")
    lines = [json.loads(line)["text"] for line in listener.communicate(timeout=20)[0].splitlines()]
    assert lines == [f"line {number}" for number in range(300)]


def test_ctrl_c_does_not_wait_for_the_next_line(command):
    """At a terminal nothing else would end it, but another line or a second Ctrl-C."""
    listener, port = listening(command)
    sending = command("send", "--to-address", f"127.0.0.1:{port}", "-")
    sending.stdin.write("first\n")
    sending.stdin.flush()
    assert json.loads(listener.stdout.readline())["text"] == "first"
    sending.send_signal(2)
    assert sending.wait(20) == 130
    assert sending.stderr.read() == ""


def test_sending_to_nobody_exits_with_3(command):
    """ "Not there (yet)" is worth a retry, other failures are not."""
    sending = command("send", "--timeout", "200ms", "nobody", "text")
    complaint = sending.communicate(timeout=20)[1]
    assert sending.returncode == 3
    assert "'nobody'" in complaint and complaint.count("\n") == 1


def test_a_refused_connection_exits_with_1(command, free_port):
    """Somebody has to be told that the address is wrong."""
    sending = command("send", "--to-address", f"127.0.0.1:{free_port()}", "text")
    complaint = sending.communicate(timeout=20)[1]
    assert sending.returncode == 1
    assert "refused" in complaint and complaint.count("\n") == 1


def test_a_message_that_is_too_large_exits_with_its_limit(command):
    """The text has to say how large a message may be. Too large is what the caller asked wrongly
    for, at a peer that is there: 1."""
    _listener, port = listening(command)
    sending = command("send", "--to-address", f"127.0.0.1:{port}", "-")
    complaint = sending.communicate("x" * 17_000_000 + "\n", timeout=20)[1]
    assert sending.returncode == 1
    assert "16,777,216" in complaint and complaint.count("\n") == 1


def test_two_of_the_name_are_said(command):
    """What was sent went to one of them, and nobody heard which."""
    _, first = listening(command)
    _, second = listening(command)
    output, said = (sending := command("send", "ada", "hello", "--json")).communicate(timeout=20)
    assert sending.returncode == 0
    taken = int(json.loads(output)["address"].rsplit(":", 1)[1])
    (other,) = {first, second} - {taken}
    assert "2 peers are called 'ada': this went to" in said
    assert "not to" in said and f"127.0.0.1:{other}; send to an id" in said
