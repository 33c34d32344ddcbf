"""The examples do what they say, unattended: an example that fails is the first thing a newcomer
sees."""

from __future__ import annotations

import ast
import re
import socket
from pathlib import Path

import pytest

pytestmark = pytest.mark.source

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SAYS = {
    "back_pressure.py": "all messages arrived",
    "bulk.py": "20000 messages in",
    "chat.py": "bob: I am",
    "events.py": "guest is gone: goodbye",
    "game.py": "the alarm overtook",
    "hello.py": "bob says: hello, this is bob",
    "sync_script.py": "clerk answers: LOUD AND CLEAR?",
}
"""The line without which the example has not shown its one thing."""
ARGUMENTS = {"chat.py": ["--demo"], "hello.py": ["alice"]}
COMPANY = {"hello.py": ["bob"]}
"""Arguments of a second process, for what needs two terminals."""
ENOUGH = 30.0
"""Seconds after which an example hangs; each takes less than one."""
LONGEST = 50
"""Lines. What needs more is no longer one thing."""


def run(start_python, free_port, name, *arguments, **environment):
    private = {
        "PEERTALK_BIND": "127.0.0.1",
        "PEERTALK_DISCOVERY_PORT": str(free_port()),
        **environment,
    }
    terminals = [
        start_python("-W", "error", str(EXAMPLES / name), *each, env=private)
        for each in ([*arguments], COMPANY.get(name))
        if each is not None
    ]
    said = [process.communicate(timeout=ENOUGH) for process in terminals]
    assert len({process.returncode for process in terminals}) == 1, said
    return terminals[0].returncode, *said[0]


@pytest.mark.parametrize("name", sorted(SAYS))
def test_an_example_ends_by_itself_and_shows_its_one_thing(start_python, free_port, name):
    """Warnings are errors here: an unclosed node in an example would be copied into programs."""
    code, out, err = run(start_python, free_port, name, *ARGUMENTS.get(name, []))
    assert (code, err) == (0, ""), f"{out}\n{err}"
    assert any(line.startswith(SAYS[name]) for line in out.splitlines()), out


def test_an_example_runs_where_the_default_port_is_taken(start_python, free_port):
    """Somebody has a node running already when he tries his first example."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 7354))
            taken.listen()
        except OSError:
            pass  # somebody has one running indeed
        code, out, err = run(start_python, free_port, "hello.py", *ARGUMENTS["hello.py"])
    assert code == 0 and SAYS["hello.py"] in out, f"{out}\n{err}"


def test_two_chats_find_each_other_and_an_empty_line_ends_one(start_python, free_port):
    """The part of the chat that --demo leaves out is the one that people use."""
    private = {"PEERTALK_BIND": "127.0.0.1", "PEERTALK_DISCOVERY_PORT": str(free_port())}
    listening = start_python(str(EXAMPLES / "chat.py"), "listener", env=private)
    from peertalk.sync import Node

    with Node(
        "speaker", bind="127.0.0.1", port=0, discovery_port=int(private["PEERTALK_DISCOVERY_PORT"])
    ) as node:
        node.wait_for("listener", timeout=ENOUGH).send("a line", timeout=ENOUGH)
        assert listening.stdout.readline() == "speaker: a line\n"
        listening.stdin.write("an answer\n")
        listening.stdin.flush()
        assert node.receive(timeout=ENOUGH).text == "an answer"
        listening.stdin.write("\n")
        listening.stdin.flush()
        while any(peer.connected for peer in node.peers.values()):
            node.poll(1.0)
    assert listening.wait(ENOUGH) == 0


def test_a_chat_without_a_name_says_how_it_is_used(start_python, free_port):
    """No traceback for a missing argument."""
    code, _, err = run(start_python, free_port, "chat.py")
    assert code == 1 and err.startswith("A line chat")


def test_every_example_is_tested_short_and_listed():
    """An example that nothing runs rots."""
    present = {path.name for path in EXAMPLES.glob("*.py")}
    listed = set(re.findall(r"^\| `(\w+\.py)", (EXAMPLES / "README.md").read_text(), flags=re.M))
    assert present == set(SAYS) == listed
    for name in sorted(present):
        text = (EXAMPLES / name).read_text()
        assert len(text.splitlines()) < LONGEST, f"{name}: {len(text.splitlines())} lines"
        assert ast.get_docstring(ast.parse(text)), f"{name} does not say what it shows"
