"""The examples do what they say, unattended: an example that fails is the first thing a newcomer
sees."""

from __future__ import annotations

import ast
import hashlib
import json
import random
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
    "echo_server.py": "bob heard: hello from bob",
    "events.py": "guest is gone: goodbye",
    "game.py": "the alarm overtook",
    "hello.py": "bob says: hello, this is bob",
    "http_files.py": "200 OK: http_files.py has",
    "line_chat.py": "bob: hello, ada",
    "proxy.py": "IS ANYBODY THERE? (34 bytes passed)",
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
WHOLE_PROGRAMS = {"send_file.py": 90, "http_files.py": 63}
"""Lines of what is more than one thing."""


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


@pytest.fixture
def transfer(fork_python, free_port, tmp_path):
    """transfer(files): what a receiver into tmp_path/"there" and a sender of the files answer, each
    as (exit status, output, errors)."""
    there = tmp_path / "there"
    there.mkdir()

    def transferred(*files):
        private = {"PEERTALK_BIND": "127.0.0.1", "PEERTALK_DISCOVERY_PORT": str(free_port())}
        ends = [
            fork_python("-W", "error", str(EXAMPLES / "send_file.py"), *role, env=private)
            for role in (("receive", str(there)), ("send", *map(str, files)))
        ]
        said = [process.communicate(timeout=ENOUGH) for process in ends]
        return [(end.returncode, *texts) for end, texts in zip(ends, said, strict=True)]

    return transferred


def test_files_arrive_whole_whatever_their_sizes(transfer, tmp_path):
    """A picture is one message, 20 MiB and a byte are three; nothing and exactly two parts are the
    ends of the count."""
    sizes = {"picture.jpg": 300_000, "film": (20 << 20) + 1, "none": 0, "two parts": 16 << 20}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(random.Random(name).randbytes(size))
    (code, received, err), (sent_code, sent, sent_err) = transfer(*map(tmp_path.joinpath, sizes))
    assert (code, err, sent_code, sent_err) == (0, "", 0, ""), received + sent
    for name, size in sizes.items():
        data = (tmp_path / "there" / name).read_bytes()
        assert data == (tmp_path / name).read_bytes()
        whole = f"bytes, whole, sha256 {hashlib.sha256(data).hexdigest()}"
        assert f"{name!r}: {size:,} of {size:,} {whole}\n" in received
        assert sent.count(f"{name!r}: ") == max(1, -(-size // (8 << 20)))


def test_a_file_that_is_there_is_kept_and_both_ends_say_so(transfer, tmp_path):
    """What was received before is worth more than what somebody sends."""
    (tmp_path / "there" / "picture.jpg").write_bytes(b"mine")
    (tmp_path / "picture.jpg").write_bytes(b"other")
    for code, _, err in transfer(tmp_path / "picture.jpg"):
        assert code == 1 and err.startswith("send_file.py: ") and "File exists" in err
    assert (tmp_path / "there" / "picture.jpg").read_bytes() == b"mine"


@pytest.fixture
def answers_to(fork_python, free_port, tmp_path):
    """answers_to(messages): what the receiver of files into in/there answers to each, its exit
    status and its errors."""
    from peertalk.sync import Node

    there = tmp_path / "in" / "there"
    there.mkdir(parents=True)

    def answered(*messages):
        port = free_port()
        private = {"PEERTALK_BIND": "127.0.0.1", "PEERTALK_DISCOVERY_PORT": str(port)}
        script = str(EXAMPLES / "send_file.py")
        process = fork_python("-W", "error", script, "receive", str(there), env=private)
        answers = []
        with Node("file-sender", bind="127.0.0.1", port=0, discovery_port=port) as node:
            receiver = node.wait_for("file-receiver", timeout=ENOUGH)
            for message in messages:
                receiver.send(message, timeout=ENOUGH)
                answers.append(node.receive(timeout=ENOUGH).text)
        _, err = process.communicate(timeout=ENOUGH)
        return answers, process.returncode, err

    return answered


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ('["file", 0, 9, "%s"]', "the sender left after 4 bytes"),
        ('["file", 0, 4, "00%s"]', "other bytes have come"),
        ('["file", 0, 3, "%s"]', "no part is expected at byte 0 of 3"),
        ('["file", 4, 9, "%s"]', "no part is expected at byte 4 of 9"),
        ('["..", 0, 4, "%s"]', "exists"),
        ('["fi\\u0000le", 0, 4, "%s"]', "null byte"),
        ('["file", "0", 4, "%s"]', "no part of a file"),
        ("hello", "Expecting value"),
    ],
)
def test_what_a_bad_sender_sends_leaves_no_file(answers_to, tmp_path, header, says):
    """What is not whole does not stay, and the sender hears why."""
    header = header.replace("%s", hashlib.sha256(b"data").hexdigest())
    [answer], code, err = answers_to(f"{header}\ndata")
    assert says in answer or (answer, says[:15]) == ("written", "the sender left")
    assert code == 1 and err.startswith("send_file.py: ") and says in err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_names_of_a_sender_lead_nowhere_out_of_the_folder(answers_to, tmp_path):
    """Of a name counts what follows its last / or \\, absolute or not."""
    digest = hashlib.sha256(b"").hexdigest()
    names = ["../../a", str(tmp_path / "b"), "C:\\c", "..\\d", "C:e"]
    answers, code, err = answers_to(*(f"{json.dumps([name, 0, 0, digest])}\n" for name in names))
    assert (answers, code, err) == (["written"] * len(names), 0, "")
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {f"in/there/{each}" for each in "abcde"}


@pytest.mark.parametrize("arguments", [[], ["send"], ["fetch", "file"]])
def test_files_without_a_role_say_how_it_is_done(fork_python, free_port, arguments):
    """No traceback, and nothing begun, for arguments that are missing."""
    code, _, err = run(fork_python, free_port, "send_file.py", *arguments)
    assert code == 1 and err.startswith("Files of any size")


def test_a_file_that_cannot_be_read_is_told_before_anybody_is_waited_for(fork_python, free_port):
    """A wrong name is the sender's own affair."""
    code, _, err = run(fork_python, free_port, "send_file.py", "send", "no such file")
    assert code == 1 and err.startswith("send_file.py: ") and "no such file" in err


def test_every_example_is_tested_short_and_listed():
    """An example that nothing runs rots."""
    present = {path.name for path in EXAMPLES.glob("*.py")}
    listed = set(re.findall(r"^\| `(\w+\.py)", (EXAMPLES / "README.md").read_text(), flags=re.M))
    assert present == {*SAYS, *WHOLE_PROGRAMS} == listed
    for name in sorted(present):
        text = (EXAMPLES / name).read_text()
        longest = WHOLE_PROGRAMS.get(name, LONGEST)
        assert len(text.splitlines()) < longest, f"{name}: {len(text.splitlines())} lines"
        assert ast.get_docstring(ast.parse(text)), f"{name} does not say what it shows"
