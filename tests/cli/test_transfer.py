"""The two processes of the demonstration: what the receiver believes, and that it believes nothing
else."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertalk.cli import transfer
from peertalk.cli.transfer import (
    CHUNK,
    DONE,
    END,
    FILE,
    PHASE,
    QUIT,
    TRIP,
    Receiver,
    Task,
    numbered,
    safe_path,
)


class Told(transfer.Report):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[str, dict] = {}

    def say(self, event, **values):
        self.said[event] = values


def file_messages(path: bytes, content: bytes, digest: bytes | None = None) -> list[bytes]:
    end = transfer._END.pack(END, len(content), digest or hashlib.sha256(content).digest())
    return [
        FILE + path,
        *[CHUNK + content[start : start + 4095] for start in range(0, len(content), 4095)],
        end,
    ]


@given(st.binary(max_size=40))
def test_no_path_leaves_the_folder(sent):
    """The sender is somebody on the network: it must not choose where on this disk its bytes
    land."""
    root = Path("/target")
    try:
        place = safe_path(root, sent)
    except ValueError:
        return
    assert root in place.parents
    assert ".." not in place.parts


@pytest.mark.parametrize(
    "path", [b"", b"/etc/passwd", b"../x", b"a/../../x", b"a//b", b".", b"a/.", b"a\0b", b"a/"]
)
def test_these_paths_are_refused(path):
    """Each is a known way out of a folder, or no file's name."""
    with pytest.raises(ValueError, match="unsafe"):
        safe_path(Path("/target"), path)


def test_files_arrive_whole_empty_ones_too(tmp_path):
    """A zero-length file has no bytes, but it is a file."""
    receiver = Receiver(tmp_path)
    big = bytes(range(256)) * 100
    receiver.take([*file_messages(b"a/b/big", big), *file_messages(b"empty", b"")])
    assert receiver.take([PHASE + b"files"]) == [DONE + b"files"]
    assert (receiver.wrong, receiver.verified, receiver.verified_bytes) == (0, 2, len(big))
    assert (tmp_path / "a/b/big").read_bytes() == big and (tmp_path / "empty").read_bytes() == b""


def spoilt(messages: list[bytes], how: str) -> list[bytes]:
    match how:
        case "damaged":
            return [
                *messages[:1],
                messages[1][:9] + bytes((messages[1][9] ^ 1,)) + messages[1][10:],
                *messages[2:],
            ]
        case "missing":
            return messages[:1] + messages[2:]
        case "twice":
            return [*messages[:2], *messages[1:]]
        case "swapped":
            return [messages[0], messages[2], messages[1], *messages[3:]]
    return messages[:-1]


@pytest.mark.parametrize("how", ["damaged", "missing", "twice", "swapped", "no end"])
def test_a_file_that_did_not_arrive_in_order_once_is_found_out(tmp_path, how):
    """That is the whole claim of the demonstration."""
    receiver = Receiver(tmp_path)
    content = b"".join(number.to_bytes(4, "big") for number in range(4000))
    receiver.take(spoilt(file_messages(b"f", content), how))
    receiver.take([PHASE + b"files"])
    assert receiver.verified == 0
    assert receiver.wrong == 1 and "'f'" in receiver.errors[0]


def test_a_file_larger_than_what_is_kept_in_memory_is_written_in_parts(tmp_path, monkeypatch):
    """A film must not need a film's memory."""
    monkeypatch.setattr(transfer, "_IN_MEMORY", 10_000)
    receiver = Receiver(tmp_path)
    content = bytes(range(256)) * 300
    receiver.take(
        [
            *file_messages(b"small", b"x"),
            *file_messages(b"film", content),
            *file_messages(b"last", b""),
        ]
    )
    assert receiver._kept <= 10_000 + 4096
    receiver.take([PHASE + b"files"])
    assert (receiver.verified, receiver.wrong) == (3, 0)
    assert (tmp_path / "film").read_bytes() == content


def test_a_file_that_cannot_be_written_is_a_fault_and_not_the_end(tmp_path):
    """A full disk, or a name that is a folder already."""
    receiver = Receiver(tmp_path)
    (tmp_path / "taken").mkdir()
    receiver.take([*file_messages(b"taken", b"x"), *file_messages(b"fine", b"y"), PHASE + b"files"])
    assert receiver.verified == 1 and "'taken' cannot be written" in receiver.errors[0]


def test_an_unsafe_path_is_reported_and_nothing_is_written(tmp_path):
    """The refusal must not end the receiver."""
    receiver = Receiver(tmp_path / "target")
    receiver.take(
        [*file_messages(b"../escaped", b"x"), *file_messages(b"fine", b"y"), PHASE + b"files"]
    )
    assert not (tmp_path / "escaped").exists()
    assert receiver.verified == 1 and receiver.wrong == 1


@given(st.integers(0, 60), st.integers(1, 7))
def test_numbered_messages_count_only_in_order_and_once(position, batch):
    """One that is lost, doubled or damaged shows, wherever a batch was cut."""
    good = numbered(0, 61)
    for bad, wrong in (
        (good, 0),
        (good[:position] + good[position + 1 :], 1 if position < 60 else 0),
        (good[: position + 1] + good[position:], 1),
        ([*good[:position], good[position][:-1] + b"!", *good[position + 1 :]], 1),
    ):
        receiver = Receiver(Path("/nowhere"))
        for start in range(0, len(bad), batch):
            assert receiver.take(bad[start : start + batch]) == []
        assert receiver.wrong == wrong


def test_what_is_not_of_the_protocol_is_counted():
    """Strange messages must neither pass nor raise."""
    receiver = Receiver(Path("/nowhere"))
    receiver.take([b"", b"?what", CHUNK + b"x", END + b"short", b"N"])
    assert receiver.wrong == 5


def test_round_trips_come_back_as_they_are():
    """The sender compares every byte."""
    assert Receiver(Path("/nowhere")).take([TRIP + b"abc", QUIT]) == [TRIP + b"abc", QUIT]


async def test_two_nodes_do_the_whole_work(tmp_path, free_port, monkeypatch):
    """Sender and receiver together, over loopback, with everything a folder can hold."""
    monkeypatch.setenv("PEERTALK_BIND", "127.0.0.1")
    monkeypatch.setenv("PEERTALK_DISCOVERY_PORT", str(free_port()))
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep/er").mkdir(parents=True)
    target.mkdir()
    (source / "deep/er/big").write_bytes(bytes(range(251)) * 3000)
    (source / "empty").touch()
    (source / "link").symlink_to("empty")
    names = {"sender": "s", "receiver": "r"}
    files = ["deep/er/big", "empty", "link", "deep", "gone"]
    work = Task("sender", "s", "r", root=str(source), files=files, messages=3000, round_trips=20)
    sender, receiver = Told(), Told()
    await asyncio.gather(
        transfer.run_receiver(
            Task("receiver", names["receiver"], names["sender"], target=str(target)), receiver
        ),
        transfer.run_sender(work, sender),
    )
    sent, arrived = sender.said["figures"], receiver.said["figures"]
    assert sent["files"] == {"count": 2, "bytes": 753_000}
    assert (
        arrived["files_verified"],
        arrived["bytes_verified"],
        arrived["messages"],
        arrived["wrong"],
    ) == (2, 753_000, 3000, 0)
    assert [path for path, _ in sent["skipped"]] == ["link", "deep", "gone"]
    assert len(sent["trips_us"]) == 20
    assert (target / "deep/er/big").read_bytes() == bytes(range(251)) * 3000


def test_a_process_ends_when_its_standard_input_does(start_python, free_port):
    """Whoever started it may be killed; nothing may be left behind."""
    environment = {"PEERTALK_BIND": "127.0.0.1", "PEERTALK_DISCOVERY_PORT": str(free_port())}
    process = start_python("-m", "peertalk.cli.transfer", env=environment)
    process.stdin.write(json.dumps({"role": "receiver", "name": "r", "other": "s"}) + "\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["event"] == "listening"
    process.stdin.close()
    process.stdin = None
    assert process.wait(10) == 130
    assert process.stderr.read() == ""


def test_a_sender_that_finds_nobody_says_so(start_python, free_port):
    """The parent makes exit code 3 of it."""
    environment = {"PEERTALK_BIND": "127.0.0.1", "PEERTALK_DISCOVERY_PORT": str(free_port())}
    process = start_python("-m", "peertalk.cli.transfer", env=environment)
    process.stdin.write(
        json.dumps({"role": "sender", "name": "s", "other": "nobody", "timeout": 0.1}) + "\n"
    )
    process.stdin.flush()
    said = json.loads(process.stdout.readline())
    assert (said["event"], said["code"]) == ("error", 3) and "'nobody'" in said["text"]
    assert process.wait(10) == 3
