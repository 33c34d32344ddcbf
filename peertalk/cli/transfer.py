"""The two processes of the demonstration: one finds the other by its name and sends; the other
receives, checks and answers.

Their own small protocol lies inside messages; the first byte says what one is. FILE, CHUNK and END
carry a file; NUMBERED carries one of many numbered messages; TRIP is sent back as it is; PHASE
closes a part of the work and is answered by DONE. The receiver trusts nothing: paths stay in its
folder, numbers must be the next ones, and a file counts only when what is read back from the disk
has the SHA-256 of what the sender read.

A process is given its task as one line of JSON on standard input and reports by lines of JSON on
standard output. It ends when its standard input does, so that none outlives whoever started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import stat
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import msgspec

from .. import Node, Peer, Timeout, errors
from .outcome import FAILED, FINE, INTERRUPTED, NOBODY, exit_code

FILE, CHUNK, END, NUMBERED, TRIP, PHASE, DONE, QUIT = (bytes((letter,)) for letter in b"FCENTPDQ")

MESSAGE_SIZE = 4096
"""Longest message with bytes of a file, its first byte included."""
NUMBERED_SIZE = 64
"""Bytes of a numbered message."""

_NUMBER = struct.Struct(f">cQ{NUMBERED_SIZE - 9}s")
_FILLING = bytes(range(65, 65 + 26)) * 2 + b"abc"
_END = struct.Struct(">cQ32s")
_BURST = 1024
_READ = 256 * 1024
_IN_MEMORY = 64 << 20
"""Bytes of files that are read ahead on one side, and kept back from the disk on the other, so that
messages are what is timed."""
_REPORT_EVERY = 0.1
_ERRORS_KEPT = 10


class Task(msgspec.Struct, frozen=True):
    """What a process is to do.

    role: "sender" or "receiver"; name: its own; other: whom it works with; core: to run on, "" for
    the best; timeout: seconds in which the other must be found; messages, round_trips: how many;
    root, files: a folder, and the paths in it that the sender sends; target: the folder that the
    receiver fills.
    """

    role: str
    name: str
    other: str
    core: str = ""
    timeout: float = 10.0
    messages: int = 0
    round_trips: int = 0
    root: str = ""
    files: list[str] = []
    target: str = ""


class Report:
    """Lines to whoever started this process; progress at most ten times a second."""

    def __init__(self) -> None:
        self._last = 0.0

    def say(self, event: str, **values: Any) -> None:
        """Write one event with its values at once, as one line of JSON on standard output."""
        sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
        sys.stdout.flush()

    def progress(self, phase: str, done: int) -> None:
        """How far a phase is: bytes of files, messages or round trips done. Dropped when the last
        one was just now."""
        now = time.monotonic()
        if now - self._last >= _REPORT_EVERY:
            self._last = now
            self.say("progress", phase=phase, done=done)


def numbered(start: int, stop: int) -> list[bytes]:
    """The numbered messages of a range, 64 bytes each."""
    pack, filling = _NUMBER.pack, _FILLING
    return [pack(NUMBERED, number, filling) for number in range(start, stop)]


def safe_path(root: Path, sent: bytes) -> Path:
    """Where a file that was sent under this path may be written: below root, whatever the sender
    says.

    Raises:
        ValueError: the path would leave root, or is none.
    """
    text = os.fsdecode(sent)
    if not text or "\0" in text or any(part in ("", ".", "..") for part in text.split("/")):
        raise ValueError(f"unsafe path {text!r}")
    return root.joinpath(*PurePosixPath(text).parts)


@contextlib.asynccontextmanager
async def opened(task: Task) -> AsyncIterator[Node]:
    """This process's node; nothing about it is preset but its name. Closed politely, or at once
    when something went wrong."""
    node = Node(task.name, core=task.core or None, port=0, discovery=True)
    await node.start()
    try:
        yield node
    except BaseException:
        node.close_nowait()
        raise
    await node.aclose()


# The sender ---------------------------------------------------------------------------------------


class Sender:
    """Sends everything to one peer."""

    def __init__(self, task: Task, report: Report, node: Node, peer: Peer) -> None:
        self.task = task
        self.report = report
        self.node = node
        self.peer = peer
        self.chunk_size = min(MESSAGE_SIZE, peer.max_message) - 1
        self.skipped: list[list[str]] = []
        self._gathered: list[bytes] = []
        self._sent = 0

    async def work(self) -> dict[str, Any]:
        """All phases; the sender's figures."""
        files = await self._files()
        before = self.node.stats()
        await self._numbered()
        after = self.node.stats()
        trips = await self._round_trips()
        stats = self.node.stats()
        await self.peer.send(QUIT)
        calls = after.write_calls - before.write_calls
        return {
            "files": files,
            "skipped": self.skipped,
            "trips_us": trips,
            "messages_per_call": (after.messages_accepted - before.messages_accepted)
            / max(1, calls),
            "slots_high_water": stats.slots_high_water,
            "crc_errors": stats.crc_errors,
        }

    async def _next(self) -> bytes:
        """What the peer says next; strangers are not listened to."""
        while (message := await self.node.receive()).peer is not self.peer:
            pass
        return message.data

    async def _answer(self, expected: bytes) -> None:
        """Wait for one answer; an error when it is another, or the connection ends instead."""
        waiting = asyncio.ensure_future(self._next())
        try:
            while not (await asyncio.wait({waiting}, timeout=0.25))[0]:
                if not self.peer.connected:
                    raise errors.ConnectionClosed(
                        f"peer {self.peer.name!r} has gone", peer=self.peer.name
                    )
            answer = waiting.result()
        finally:
            waiting.cancel()
        if answer != expected:
            raise errors.ProtocolError(
                f"the receiver answered {answer[:40]!r} where {expected[:40]!r} was due",
                peer=self.peer.name,
            )

    async def _close_phase(self, phase: str, done: int) -> None:
        await self.peer.send(PHASE + phase.encode(), no_delay=True)
        await self._answer(DONE + phase.encode())
        self.report.say("phase", phase=phase, done=done)

    async def _put(self, *messages: bytes) -> None:
        self._gathered += messages
        if len(self._gathered) >= _IN_MEMORY // MESSAGE_SIZE:
            await self._flush()

    async def _flush(self) -> None:
        gathered, self._gathered = self._gathered, []
        for start in range(0, len(gathered), _BURST):
            burst = gathered[start : start + _BURST]
            await self.peer.send_many(burst)
            self._sent += sum(len(message) - 1 for message in burst if message[:1] == CHUNK)
            self.report.progress("files", self._sent)

    async def _files(self) -> dict[str, int]:
        count = total = 0
        for path in self.task.files:
            try:
                opened_file = _open_regular(Path(self.task.root, path))
            except OSError as error:
                self.skipped.append([path, error.strerror or str(error)])
                continue
            with opened_file as file:
                encoded = os.fsencode(path)
                if len(encoded) > self.chunk_size:
                    self.skipped.append(
                        [path, f"its path of {len(encoded):,} bytes does not fit a message"]
                    )
                    continue
                total += await self._file(encoded, file)
                count += 1
        await self._flush()
        await self._close_phase("files", total)
        return {"count": count, "bytes": total}

    async def _file(self, path: bytes, file: BinaryIO) -> int:
        size, left, digest = self.chunk_size, os.fstat(file.fileno()).st_size, hashlib.sha256()
        done = 0
        await self._put(FILE + path)
        while left > 0 and (some := file.read(min(left, _READ // size * size))):
            digest.update(some)
            await self._put(
                *[CHUNK + some[start : start + size] for start in range(0, len(some), size)]
            )
            left -= len(some)
            done += len(some)
        await self._put(_END.pack(END, done, digest.digest()))
        return done

    async def _numbered(self) -> None:
        wanted = self.task.messages
        for start in range(0, wanted, _BURST):
            await self.peer.send_many(numbered(start, min(start + _BURST, wanted)))
            self.report.progress("messages", start)
        await self._close_phase("messages", wanted)

    async def _round_trips(self) -> list[float]:
        """Of each, microseconds."""
        took = []
        for number in range(self.task.round_trips):
            message = TRIP + number.to_bytes(8, "big") + _FILLING
            began = time.perf_counter()
            await self.peer.send(message, no_delay=True)
            answer = await self._next()
            took.append((time.perf_counter() - began) * 1e6)
            if answer != message:
                raise errors.ProtocolError(
                    f"round trip {number:,} came back as {answer[:40]!r}", peer=self.peer.name
                )
            self.report.progress("round trips", number)
        await self._close_phase("round trips", len(took))
        return took


def _open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; never what a symbolic link points to, nor anything that could block.

    Raises:
        OSError: with a reason for people in strerror.
    """
    if path.is_symlink():
        raise OSError(0, "a symbolic link")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return open(descriptor, "rb", buffering=0)
    os.close(descriptor)
    raise OSError(0, "not a regular file")


async def run_sender(task: Task, report: Report) -> None:
    """Find the receiver by its name, connect, send everything, and report."""
    async with opened(task) as node:
        began = time.perf_counter()
        peer = await node.wait_for(task.other, timeout=task.timeout)
        found = time.perf_counter() - began
        await peer.connect(timeout=task.timeout)
        report.say(
            "found", name=peer.name, address=f"{peer.address[0]}:{peer.address[1]}", seconds=found
        )
        figures = await Sender(task, report, node, peer).work()
    report.say("figures", role="sender", **figures)


# The receiver -------------------------------------------------------------------------------------


class Receiver:
    """Checks everything that one peer sends. errors: what was wrong, the first ten in words; wrong:
    how many things in all."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.errors: list[str] = []
        self.wrong = 0
        self.next_number = 0
        self.verified = 0
        self.verified_bytes = 0
        self.file_messages = 0
        self.seconds: dict[str, float] = {}
        self._files: dict[bytes, tuple[int, bytes]] = {}
        self._unwritten: dict[bytes, list[bytes]] = {}
        self._kept = 0
        self._begun: set[bytes] = set()
        self._path: bytes | None = None
        self._refused = False
        self._began: float | None = None

    def complain(self, text: str) -> None:
        """Count one more thing that was wrong, and keep the text of each of the first ten."""
        self.wrong += 1
        if len(self.errors) < _ERRORS_KEPT:
            self.errors.append(text)

    def take(self, payloads: list[bytes]) -> list[bytes]:
        """Messages in the order in which they came; what is to be answered."""
        if self._began is None:
            self._began = time.perf_counter()
        if payloads[0][:1] == NUMBERED:
            expected = numbered(self.next_number, self.next_number + len(payloads))
            if payloads == expected:
                self.next_number += len(payloads)
                return []
        answers = []
        for payload in payloads:
            kind = payload[:1]
            if kind == TRIP:
                answers.append(payload)
            elif kind == PHASE:
                answers.append(DONE + payload[1:])
                self._close_phase(payload[1:].decode(errors="replace"))
            elif kind == QUIT:
                answers.append(QUIT)
            else:
                _KINDS.get(kind, Receiver._unknown)(self, payload)
        return answers

    def _unknown(self, payload: bytes) -> None:
        self.complain(f"a message of an unknown kind: {payload[:20]!r}")

    def _number(self, payload: bytes) -> None:
        if payload == numbered(self.next_number, self.next_number + 1)[0]:
            self.next_number += 1
            return
        if len(payload) != NUMBERED_SIZE:
            self.complain(
                f"numbered message of {len(payload):,} bytes where {self.next_number:,} was due"
            )
            return
        number = _NUMBER.unpack(payload)[1]
        self.complain(
            f"message {number:,} came where {self.next_number:,} was due"
            if number != self.next_number
            else f"message {number:,} was damaged"
        )
        self.next_number = number + 1

    def _begin(self, payload: bytes) -> None:
        self.file_messages += 1
        self._expect_no_file()
        path = payload[1:]
        if path in self._files or path in self._unwritten:
            self.complain(f"{os.fsdecode(path)!r} came twice")
        self._path = path
        try:
            safe_path(self.target, path)
            self._unwritten[path] = []
        except ValueError as error:
            self.complain(f"a file cannot be written: {error}")
            self._refused = True

    def _chunk(self, payload: bytes) -> None:
        self.file_messages += 1
        if self._path is None:
            self.complain("bytes of a file came outside a file")
            return
        if not self._refused:
            self._unwritten[self._path].append(payload)
            self._kept += len(payload)
            if self._kept > _IN_MEMORY:
                self._write_out()

    def _end(self, payload: bytes) -> None:
        self.file_messages += 1
        if self._path is None or len(payload) != _END.size:
            self.complain("the end of a file came outside a file")
            return
        _, size, digest = _END.unpack(payload)
        if not self._refused:
            self._files[self._path] = size, digest
        self._path, self._refused = None, False

    def _expect_no_file(self) -> None:
        if self._path is not None:
            self.complain(f"{os.fsdecode(self._path)!r} has no end")
            self._path, self._refused = None, False

    def _write_out(self) -> None:
        """Put what is kept on the disk; a file that is still coming will be written on."""
        for path, payloads in self._unwritten.items():
            try:
                place = safe_path(self.target, path)
                if path not in self._begun:
                    place.parent.mkdir(parents=True, exist_ok=True)
                with open(place, "ab" if path in self._begun else "xb") as file:
                    file.writelines(memoryview(payload)[1:] for payload in payloads)
                self._begun.add(path)
            except (ValueError, OSError) as error:
                why = getattr(error, "strerror", None) or error
                self.complain(
                    f"{os.fsdecode(path)!r} cannot be written below {self.target}: {why} (TMPDIR "
                    "says below which folder)"
                )
        self._unwritten.clear()
        self._kept = 0
        if self._path is not None and not self._refused:
            self._unwritten[self._path] = []

    def _close_phase(self, phase: str) -> None:
        assert self._began is not None
        self.seconds[phase] = time.perf_counter() - self._began
        self._began = None
        if phase == "files":
            self._expect_no_file()
            self._write_out()
            self._verify()

    def _verify(self) -> None:
        """Read every file back from the disk and compare."""
        for path, (size, digest) in self._files.items():
            try:
                with open(safe_path(self.target, path), "rb") as file:
                    found = hashlib.file_digest(file, "sha256").digest()
                    length = file.tell()
            except OSError as error:
                self.complain(f"{os.fsdecode(path)!r} cannot be read back: {error.strerror}")
                continue
            if found != digest or length != size:
                self.complain(
                    f"{os.fsdecode(path)!r} differs: {length:,} bytes with SHA-256 "
                    f"{found.hex()[:16]}, sent were {size:,} with {digest.hex()[:16]}"
                )
            else:
                self.verified += 1
                self.verified_bytes += size

    def figures(self) -> dict[str, Any]:
        """What was found, for the report."""
        return {
            "files_verified": self.verified,
            "bytes_verified": self.verified_bytes,
            "file_messages": self.file_messages,
            "messages": self.next_number,
            "seconds": self.seconds,
            "wrong": self.wrong,
            "errors": self.errors,
        }


_KINDS: dict[bytes, Callable[[Receiver, bytes], None]] = {
    FILE: Receiver._begin,
    CHUNK: Receiver._chunk,
    END: Receiver._end,
    NUMBERED: Receiver._number,
}


async def run_receiver(task: Task, report: Report) -> None:
    """Be found, take everything that the sender sends, and report."""
    receiver = Receiver(Path(task.target))
    async with opened(task) as node:
        report.say("listening", port=node.address[1])
        async for batch in node.batches():
            if batch.peer.name != task.other:
                continue
            answers = receiver.take(batch.payloads)
            if answers and answers[-1] == QUIT:
                break
            for answer in answers:
                await batch.peer.send(answer, no_delay=True)
        crc_errors = node.stats().crc_errors
    report.say("figures", role="receiver", crc_errors=crc_errors, **receiver.figures())


# The process --------------------------------------------------------------------------------------


async def _until_told_otherwise(work: Any) -> None:
    """Do the work, but end at once when standard input does, or on SIGINT or SIGTERM."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    descriptor = sys.stdin.fileno()
    os.set_blocking(descriptor, False)

    def heard() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            task.cancel()

    loop.add_reader(descriptor, heard)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    finally:
        loop.remove_reader(descriptor)


def main() -> int:
    """One process of the demonstration, from its task on standard input to its exit code."""
    # what matters is reported to the parent; an interrupted one has messages left, which is no news
    logging.disable(logging.WARNING)
    try:
        return _perform(Report())
    except BrokenPipeError:
        # nobody reads any more: nothing to say, nor at interpreter exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return INTERRUPTED


def _perform(report: Report) -> int:
    try:
        task = msgspec.convert(json.loads(sys.stdin.buffer.readline() or b"{}"), Task)
        work = run_sender if task.role == "sender" else run_receiver
        asyncio.run(_until_told_otherwise(work(task, report)))
    except (asyncio.CancelledError, KeyboardInterrupt):
        return INTERRUPTED
    except Timeout as error:
        report.say("error", text=str(error), code=NOBODY)
        return NOBODY
    except BrokenPipeError:
        raise
    except (errors.PeerTalkError, OSError, msgspec.ValidationError) as error:
        report.say("error", text=str(error), code=exit_code(error))
        return FAILED
    return FINE


if __name__ == "__main__":
    sys.exit(main())
