"""`peertalk demo`, the whole of it in processes: what it claims, and that it does not claim it when
it is not so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peertalk import errors
from peertalk.cli import demo

SMALL = ("--messages", "3000", "--round-trips", "30")


@pytest.fixture
def run_demo(fork_python, free_port):
    """run_demo(*arguments, **environment): a demonstration on a discovery port of its own, in a
    process."""
    environment = {"PEERTALK_BIND": "127.0.0.1", "PEERTALK_DISCOVERY_PORT": str(free_port())}
    return lambda *arguments, env=(): fork_python(
        "-m", "peertalk", "demo", *arguments, env={**environment, **dict(env)}
    )


@pytest.fixture
def folder(tmp_path):
    """A folder with what folders have."""
    source = tmp_path / "source"
    (source / "sub/empty folder").mkdir(parents=True)
    (source / "sub/a.bin").write_bytes(os.urandom(100_000))
    (source / "text").write_text("hello\n")
    (source / "nothing").touch()
    (source / "link").symlink_to("text")
    return source


def test_a_small_run_verifies_everything_and_gives_every_figure(run_demo, folder):
    """The main job: exit status 0 only if every byte arrived, in order, once, and the figures that
    the table has."""
    process = run_demo(str(folder), *SMALL, "--json")
    output, progress = process.communicate(timeout=50)
    assert process.returncode == 0, progress
    told = json.loads(output)
    assert told["ok"] is True and told["errors"] == []
    files = told["files"]
    assert (files["count"], files["verified"], files["bytes"], files["bytes_verified"]) == (
        3,
        3,
        100_006,
        100_006,
    )
    assert [one["path"] for one in files["skipped"]] == [
        "link"
    ] and "not sent: link: a symbolic link" in progress
    assert (
        told["messages"]["count"],
        told["messages"]["arrived"],
        told["messages"]["bytes_each"],
    ) == (3000, 3000, 64)
    assert (
        told["messages"]["per_second"] > 0
        and told["messages"]["mb_per_second"] > 0
        and files["mb_per_second"] > 0
    )
    assert (
        0 < told["round_trips"]["p50_us"] <= told["round_trips"]["p99_us"]
        and told["round_trips"]["count"] == 30
    )
    assert (
        told["slots_high_water"] >= 1 and told["messages_per_call"] > 0 and told["crc_errors"] == 0
    )
    if told["core"] != "reference":
        assert told["reference"]["ok"] and told["reference"]["ratio_messages"] > 0
        assert told["reference"]["files"]["verified"] == 3
        assert told["reference"]["ratio_files"] is None, "100 KB are over before a clock can tell"


def test_the_table_has_the_same_figures(run_demo, folder):
    """People get what programs get; without a terminal in plain lines."""
    process = run_demo(str(folder), *SMALL, "--core", "reference", env={"COLUMNS": "150"})
    output, complaint = process.communicate(timeout=50)
    assert process.returncode == 0, complaint
    for words in (
        "3 of 3, 100,006 bytes",
        "3,000 of 3,000, in order, once",
        "messages/s",
        "MB/s",
        "p50",
        "p99",
        "high-water",
        "per system call",
        "CRC errors",
        "found demo-receiver-",
    ):
        assert words in output
    assert "\x1b" not in output


DAMAGE = """
import peertalk.node
send_many = peertalk.node.Peer.send_many
async def damaging(self, payloads, **more):
    payloads = [
        payload[:5] + bytes((payload[5] ^ 4,)) + payload[6:] if payload[:1] == b"C" else payload
        for payload in payloads
    ]
    return await send_many(self, payloads, **more)
peertalk.node.Peer.send_many = damaging
"""

LOSS = """
import peertalk.node
send_many = peertalk.node.Peer.send_many
async def losing(self, payloads, **more):
    kept = [payload for payload in payloads if payload[:1] != b"N" or payload[8] != 7]
    return await send_many(self, kept, **more)
peertalk.node.Peer.send_many = losing
"""


@pytest.mark.parametrize(
    ("fault", "words"), [(DAMAGE, "differs"), (LOSS, "came where")], ids=["damaged", "lost"]
)
def test_a_byte_that_is_wrong_or_a_message_that_is_lost_is_a_failure(
    run_demo, folder, tmp_path, fault, words
):
    """A demonstration that cannot fail shows nothing. The fault is put into the processes from
    outside."""
    (tmp_path / "faulty").mkdir()
    (tmp_path / "faulty/usercustomize.py").write_text(fault)
    (tmp_path / "faulty/sitecustomize.py").write_text("import usercustomize")
    path = os.pathsep.join([str(tmp_path / "faulty"), *filter(None, sys.path)])
    process = run_demo(str(folder), *SMALL, "--core", "reference", env={"PYTHONPATH": path})
    output, complaint = process.communicate(timeout=50)
    assert process.returncode == 1, output + complaint
    assert (
        words in complaint
        and complaint.startswith("peertalk: demo failed: ")
        and complaint.count("\n") == 1
    )


def children_of(process: subprocess.Popen) -> list[int]:
    return [
        int(child)
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(
    not Path("/proc/self/task").exists(),
    reason="did not run: children are looked up in /proc, which this system has not",
)
@pytest.mark.parametrize("signal_number", [2, 9], ids=["SIGINT", "SIGKILL"])
def test_both_processes_end_with_their_parent(run_demo, folder, signal_number):
    """Ctrl-C at any moment, or the parent's own death: nobody wants to hunt for processes. Within a
    second; the test allows more."""
    process = run_demo(str(folder), "--messages", "100000000")
    while "found" not in process.stdout.readline():
        pass
    children = children_of(process)
    assert len(children) == 2
    process.send_signal(signal_number)
    ended = process.wait(10)
    assert ended == (130 if signal_number == 2 else -9), process.stderr.read()
    deadline = time.monotonic() + 10
    while any(map(is_running, children)):
        assert time.monotonic() < deadline, "a process outlived the demonstration"
        os.sched_yield()
    assert process.stderr.read() == ""


def test_settings_reach_both_processes_and_their_errors_come_back_as_one_line(run_demo, folder):
    """Where only one interface may be used, both have to keep to it."""
    process = run_demo(str(folder), "--interfaces", "none-such")
    complaint = process.communicate(timeout=30)[1]
    assert process.returncode == 1 and "none-such" in complaint and complaint.count("\n") == 1


def test_a_folder_without_files_is_said_and_the_rest_is_done(run_demo, tmp_path):
    """Nothing to send is not wrong; silence about it would be."""
    process = run_demo(str(tmp_path), *SMALL, "--core", "reference")
    output, complaint = process.communicate(timeout=50)
    assert process.returncode == 0, complaint
    assert "holds no files" in output and "0 of 0" in output


def test_what_git_tracks_is_the_default(tmp_path, monkeypatch):
    """In a checkout the demonstration sends the checkout, and not what was built there."""
    for arguments in (["init", "-q"], ["add", "tracked", "sub/also"]):
        (tmp_path / "sub").mkdir(exist_ok=True)
        for name in ("tracked", "sub/also", "untracked"):
            (tmp_path / name).write_text(name)
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    monkeypatch.chdir(tmp_path / "sub")
    selection = demo.select(None)
    assert selection.sizes == {"sub/also": 8, "tracked": 7}
    assert selection.root.samefile(tmp_path)


def test_without_a_checkout_the_installed_package_is_sent(tmp_path, monkeypatch):
    """Somebody who only installed it has nothing else at hand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "node.py" in demo.select(None).sizes


def test_a_path_that_is_not_there_is_wrong_usage(tmp_path):
    """Before any process is started."""
    with pytest.raises(errors.InvalidArgument, match="No such file"):
        demo.select(tmp_path / "missing")


def test_a_folder_that_cannot_be_listed_is_a_failure(run_demo, tmp_path):
    """Exit status 0 says that every byte arrived, so nothing may be left out in silence. The path
    of this folder is longer than the system takes, which stops root too."""
    inner = os.open(tmp_path, os.O_RDONLY)
    for _ in range(18):
        os.mkdir("x" * 250, dir_fd=inner)
        outer, inner = inner, os.open("x" * 250, os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(inner)
    process = run_demo(str(tmp_path), *SMALL, "--core", "reference")
    output, complaint = process.communicate(timeout=50)
    assert process.returncode == 1
    assert "could not be sent" in complaint and "File name too long" in complaint
    assert "SHA-256" not in output, "nothing was compared"


def test_a_single_file_can_be_sent(tmp_path):
    """PATH may be a file."""
    (tmp_path / "one").write_bytes(b"123")
    assert demo.select(tmp_path / "one").sizes == {"one": 3}


def report(**changes):
    """What both processes say of a run in which all was well."""
    sender = {
        "files": {"count": 2, "bytes": 10},
        "skipped": [],
        "trips_us": [1.0, 2.0],
        "messages_per_call": 5.0,
        "slots_high_water": 2,
        "crc_errors": 0,
    }
    receiver = {
        "files_verified": 2,
        "bytes_verified": 10,
        "file_messages": 6,
        "messages": 7,
        "seconds": {"files": 0.1, "messages": 0.1},
        "wrong": 0,
        "errors": [],
        "crc_errors": 0,
    }
    for name, value in changes.items():
        (sender if (name in sender and name not in receiver) or name == "skipped" else receiver)[
            name
        ] = value
    return {
        "sender": sender,
        "receiver": receiver,
        "found": {"name": "r", "address": "a", "seconds": 0.0},
    }


def test_all_well_is_ok():
    """The judge must be able to say yes."""
    assert demo.judge("standard", 2, 7, 2, report())["ok"]


@pytest.mark.parametrize(
    "changes",
    [
        {"files_verified": 1},
        {"bytes_verified": 9},
        {"messages": 6},
        {"messages": 8},
        {"trips_us": [1.0]},
        {"errors": ["x"], "wrong": 1},
        {"crc_errors": 1},
        {"skipped": [["secret", "Permission denied"]]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_anything_less_is_not(changes):
    """Exit status 0 only if every byte arrived, in order, once: each figure alone is enough to
    fail."""
    judged = demo.judge("standard", 2, 7, 2, report(**changes))
    assert not judged["ok"] and judged["code"] == 1 and judged["errors"]
