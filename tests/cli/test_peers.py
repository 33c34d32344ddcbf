"""`peertalk peers`."""

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


def test_peers_lists_who_is_there(command):
    """The first question of anybody on a network."""
    listener = command("listen", "--name", "ada")
    assert "listening as 'ada'" in listener.stderr.readline()
    output, _ = (looking := command("peers", "--timeout", "1", "--json")).communicate(timeout=20)
    assert looking.returncode == 0
    assert [(peer["name"], peer["classic"]) for peer in json.loads(output)] == [("ada", False)]


def test_peers_exits_with_3_when_nobody_is_there(command):
    """A script must be able to tell an empty network from a failure."""
    output, complaint = (looking := command("peers", "--timeout", "200ms")).communicate(timeout=20)
    assert looking.returncode == 3
    assert complaint.startswith("peertalk: nobody was heard within 0.2 s: is peertalk running")
    assert "keep out UDP" in complaint and complaint.count("\n") == 1 and not output


def test_watching_peers_prints_who_comes_and_goes(command):
    """--watch is for the moment when a cable is plugged in."""
    watching = command("peers", "--watch", "--json", "--name", "watcher")
    assert "watching" in watching.stderr.readline()
    listener = command("listen", "--name", "grace")
    found = json.loads(watching.stdout.readline())
    assert (found["event"], found["name"]) == ("found", "grace")
    listener.send_signal(2)
    lost = json.loads(watching.stdout.readline())
    assert (lost["event"], lost["name"]) == ("lost", "grace")
    watching.send_signal(2)
    assert watching.wait(10) == 130
    assert "Traceback" not in watching.stderr.read()
