"""`peertalk demo`: two processes find each other, connect, and exchange real files; then numbered
messages, then round trips, all of it checked.

This is the parent: it chooses the files, starts both processes (transfer.py), shows how far they
are, and judges. The same work is then done once more on the reference core, for the comparison.
Both processes end within a second when this one is interrupted, and with it when it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json as json_format
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from .. import errors
from .._core import load
from ..config import load_config
from ..quantities import parse_duration
from .options import Json, console, node_options, print_json, print_rows, readable
from .outcome import FAILED, NOBODY, CommandFailed
from .transfer import MESSAGE_SIZE, NUMBERED_SIZE, Task

_PACKAGE = Path(__file__).absolute().parent.parent
_SILENCE = 60.0
"""Seconds without a word from either process after which the demonstration counts as stuck."""
_GRACE = 0.6
"""Seconds that an interrupted process has before it is killed."""
_REFERENCE_FILES = 64 << 20
"""Bytes of files that the reference core does again at most; it is slow."""
_REFERENCE_MESSAGES = 200_000
"""Messages that it does again at most."""
_COMPARED_FROM = 1 << 20
"""Bytes of files from which on two rates are compared: fewer are over before a clock can tell."""
_IN_ENVIRONMENT = ("discovery_port", "bind", "interfaces")


class Selection(msgspec.Struct, frozen=True):
    """The files to send: a folder, paths in it with their sizes in bytes, and where the choice came
    from."""

    root: Path
    sizes: dict[str, int]
    origin: str


@node_options("discovery_port", "bind", "interfaces", "core")
def command(
    path: Annotated[
        Path | None,
        typer.Argument(
            help=(
                "File or folder to send. Default: the files that git tracks in this folder, or, "
                "outside of a checkout, the files of the installed peertalk."
            ),
            show_default=False,
        ),
    ] = None,
    messages: Annotated[
        int,
        typer.Option(min=1, max=1_000_000_000, help="How many messages of 64 bytes to send."),
    ] = 200_000,
    round_trips: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="How many round trips to make.")
    ] = 2_000,
    timeout: Annotated[
        str,
        typer.Option(
            help="Time that the two processes have to find each other, in seconds, or as 500ms."
        ),
    ] = "15s",
    json: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """Let two processes find each other, connect and exchange files.

    Exit status 0 only if every byte arrived, in order, once.
    """
    config = load_config("demo", **options)
    core = load(config.core or None)
    selection = select(path)
    screen = console(stderr=json)
    environment = _environment(options)
    seconds = parse_duration(timeout)
    work = _Demonstration(screen, environment, selection, messages, round_trips, seconds)
    result = asyncio.run(work.run(core.name))
    result = {"crc": core.crc_name, **result}
    if json:
        print_json(result, indent=1)
    elif "messages" in result:
        show(screen, result)
    if not result["ok"]:
        more = f" (and {len(result['errors']) - 1} more)" if len(result["errors"]) > 1 else ""
        raise CommandFailed(f"demo failed: {readable(result['errors'][0])}{more}", result["code"])


def _environment(options: dict[str, Any]) -> dict[str, str]:
    """What both processes are told of the options."""
    given = {name: options[name] for name in _IN_ENVIRONMENT if options[name] is not None}
    return {
        f"PEERTALK_{name.upper()}": ",".join(value) if isinstance(value, tuple) else str(value)
        for name, value in given.items()
    }


def select(path: Path | None) -> Selection:
    """The files to send: those under path, else what git tracks in the checkout around the current
    folder, else this package's own.

    Raises:
        InvalidArgument: there is no such path, or it cannot be read.
    """
    if path is None:
        tracked = _tracked()
        return tracked or _below(_PACKAGE, "the installed package")
    try:
        path = path.resolve(strict=True)
        if path.is_dir():
            os.listdir(path)
            return _below(path, str(path))
        return Selection(path.parent, {path.name: path.stat().st_size}, str(path))
    except (OSError, RuntimeError) as error:
        raise errors.InvalidArgument(
            f"{path} cannot be sent: {getattr(error, 'strerror', None) or error}"
        ) from None


def _tracked() -> Selection | None:
    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], capture_output=True, check=True).stdout

    try:
        root = Path(os.fsdecode(git("rev-parse", "--show-toplevel").rstrip(b"\n")))
        names = [
            os.fsdecode(name)
            for name in git("-C", str(root), "ls-files", "-z").split(b"\0")
            if name
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    sizes = {
        name: size
        for name in dict.fromkeys(names)
        if (size := _size(root / name)) is not None and not (root / name).is_dir()
    }
    return Selection(root, sizes, "what git tracks here") if sizes else None


def _below(root: Path, origin: str) -> Selection:
    sizes: dict[str, int] = {}

    def unreadable(error: OSError) -> None:
        # named as if it were a file, so that the sender says why it is not sent: a folder that is
        # left out in silence would make the judgement "every byte arrived" false
        sizes[Path(error.filename).relative_to(root).as_posix()] = 0

    for folder, folders, names in os.walk(root, onerror=unreadable):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            file = Path(folder, name)
            sizes[file.relative_to(root).as_posix()] = _size(file) or 0
        for name in [name for name in folders if os.path.islink(os.path.join(folder, name))]:
            sizes[Path(folder, name).relative_to(root).as_posix()] = 0
    return Selection(root, sizes, origin)


def _size(file: Path) -> int | None:
    try:
        return file.lstat().st_size
    except OSError:
        return None


class Display:
    """How far the work is: bars on a terminal, else one line at the end of each phase."""

    def __init__(self, screen: Console, totals: dict[str, int]) -> None:
        self._screen = screen
        self._totals = totals
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Display:
        if self._screen.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
            )
            self._bars = Progress(*columns, console=self._screen)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def begin(self, core: str) -> None:
        """Another run begins, on this core: its phases get bars of their own."""
        self._core = core
        self._tasks = {}

    def event(self, event: dict[str, Any]) -> None:
        """Show what a process said (Report.say), if it is news of a peer or of a phase."""
        match event:
            case {"event": "found", "name": name, "address": address, "seconds": seconds}:
                self._screen.print(
                    f"{self._core} core: found {name} at {address} in {seconds * 1e3:.0f} ms, "
                    "and connected"
                )
            case {"event": "progress" | "phase", "phase": phase, "done": done} if (
                self._bars is not None
            ):
                if phase not in self._tasks:
                    self._tasks[phase] = self._bars.add_task(
                        f"{self._core} core: {phase}", total=self._totals.get(phase) or 1
                    )
                self._bars.update(self._tasks[phase], completed=done)
                if event["event"] == "phase":
                    self._bars.update(
                        self._tasks[phase], completed=max(1, done), total=max(1, done)
                    )
            case {"event": "phase", "phase": phase, "done": done}:
                self._screen.print(
                    f"{self._core} core: {phase} done, "
                    f"{done:,}{' bytes' if phase == 'files' else ''}"
                )


class _Demonstration(msgspec.Struct):
    """The whole of it: a pair of processes on the core of choice, then one on the reference
    core."""

    screen: Console
    environment: dict[str, str]
    selection: Selection
    messages: int
    round_trips: int
    timeout: float

    async def run(self, core: str) -> dict[str, Any]:
        """Every figure, as --json prints them."""
        sizes = self.selection.sizes
        count, size = len(sizes), sum(sizes.values())
        self.screen.print(
            f"sending {self.selection.origin}: {count:,} files, {size:,} bytes"
            if sizes
            else f"{self.selection.origin} holds no files: sending messages only"
        )
        totals = {"files": size, "messages": self.messages, "round trips": self.round_trips}
        with Display(self.screen, totals) as display:
            display.begin(core)
            result = await self._pair(core, list(sizes), self.messages, self.round_trips, display)
            for one in result.get("files", {}).get("skipped", ()):
                self.screen.print(f"not sent: {readable(one['path'])}: {one['reason']}")
            result["reference"] = None
            if result["ok"] and core != "reference":
                display.begin("reference")
                result["reference"] = await self._compare(result, display)
                result["ok"] = result["reference"]["ok"]
                result["errors"] = [
                    f"on the reference core: {text}" for text in result["reference"].pop("errors")
                ]
                result["code"] = result["reference"].pop("code")
        return result

    async def _compare(self, result: dict[str, Any], display: Display) -> dict[str, Any]:
        """The same work on the reference core, or a part of it that is named, and how many times
        faster ours was."""
        files, size = [], 0
        for path, length in self.selection.sizes.items():
            if size + length <= _REFERENCE_FILES:
                files.append(path)
                size += length
        messages = min(self.messages, _REFERENCE_MESSAGES)
        reference = await self._pair("reference", files, messages, 1, display)
        if not reference["ok"]:
            return reference
        ours, theirs = result["files"]["mb_per_second"], reference["files"]["mb_per_second"]
        enough = reference["files"]["bytes"] >= _COMPARED_FROM
        notes = []
        if len(files) < len(self.selection.sizes):
            notes.append(f"{len(files):,} of the files")
        if messages < self.messages:
            notes.append(f"{messages:,} of the messages")
        return {
            "ok": True,
            "errors": [],
            "code": 0,
            "files": reference["files"],
            "messages": reference["messages"],
            "part": " and ".join(notes),
            "ratio_messages": round(
                result["messages"]["per_second"] / reference["messages"]["per_second"], 2
            ),
            "ratio_files": round(ours / theirs, 2) if enough and theirs else None,
        }

    async def _pair(
        self, core: str, files: list[str], messages: int, round_trips: int, display: Display
    ) -> dict[str, Any]:
        """One run of two processes. The folder that is filled goes when it is over."""
        suffix = secrets.token_hex(4)
        names = {role: f"demo-{role}-{suffix}" for role in ("sender", "receiver")}
        with tempfile.TemporaryDirectory(
            prefix="peertalk-demo-", ignore_cleanup_errors=True
        ) as target:
            common: dict[str, Any] = {
                "core": core,
                "timeout": self.timeout,
                "messages": messages,
                "round_trips": round_trips,
            }
            tasks = [
                Task(
                    role="receiver",
                    name=names["receiver"],
                    other=names["sender"],
                    target=target,
                    **common,
                ),
                Task(
                    role="sender",
                    name=names["sender"],
                    other=names["receiver"],
                    root=str(self.selection.root),
                    files=files,
                    **common,
                ),
            ]
            said: dict[str, dict[str, Any]] = {}
            failure: dict[str, Any] | None = None
            async with _processes(tasks, self.environment) as events:
                async for event in events:
                    display.event(event)
                    if event["event"] == "error":
                        failure = (
                            failure if failure is not None and failure["code"] == NOBODY else event
                        )
                        break
                    said[event.get("role") or event["event"]] = event
                    if "sender" in said and "receiver" in said:
                        break
        if failure is not None:
            return {"ok": False, "code": failure["code"], "errors": [failure["text"]], "core": core}
        return judge(core, len(files), messages, round_trips, said)


def judge(
    core: str, files: int, messages: int, round_trips: int, said: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The figures of one run from what both processes said, and whether all of it arrived.

    Args:
        core: it ran on; files, messages, round_trips: how many were to be sent; said: the reports
            of "sender" and "receiver", and "found".
    """
    sender, receiver = said["sender"], said["receiver"]
    complaints = _complaints(sender, receiver, files, messages, round_trips)
    seconds = {phase: max(took, 1e-9) for phase, took in receiver["seconds"].items()}
    rate = messages / seconds["messages"]
    return {
        "ok": not complaints,
        "code": FAILED if complaints else 0,
        "errors": complaints,
        "core": core,
        "found": {key: said["found"][key] for key in ("name", "address", "seconds")},
        "files": {
            "count": sender["files"]["count"],
            "verified": receiver["files_verified"],
            "bytes": sender["files"]["bytes"],
            "bytes_verified": receiver["bytes_verified"],
            "messages": receiver["file_messages"],
            "seconds": seconds["files"],
            "messages_per_second": round(receiver["file_messages"] / seconds["files"]),
            "mb_per_second": round(sender["files"]["bytes"] / seconds["files"] / 1e6, 2),
            "skipped": [{"path": path, "reason": reason} for path, reason in sender["skipped"]],
        },
        "messages": {
            "count": messages,
            "arrived": receiver["messages"],
            "bytes_each": NUMBERED_SIZE,
            "seconds": seconds["messages"],
            "per_second": round(rate),
            "mb_per_second": round(rate * NUMBERED_SIZE / 1e6, 2),
        },
        "round_trips": _times(sorted(sender["trips_us"])),
        "slots_high_water": sender["slots_high_water"],
        "messages_per_call": round(sender["messages_per_call"], 1),
        "crc_errors": sender["crc_errors"] + receiver["crc_errors"],
    }


def _complaints(
    sender: dict[str, Any], receiver: dict[str, Any], files: int, messages: int, round_trips: int
) -> list[str]:
    """What did not arrive, or was wrong."""
    complaints = list(receiver["errors"])
    unread = [(path, reason) for path, reason in sender["skipped"] if reason != "a symbolic link"]
    if unread:
        complaints.append(
            f"{len(unread):,} of {files:,} files could not be sent, first "
            f"{unread[0][0]!r}: {unread[0][1]}"
        )
    for what, sent, arrived in (
        ("files", sender["files"]["count"], receiver["files_verified"]),
        ("bytes of files", sender["files"]["bytes"], receiver["bytes_verified"]),
        ("messages", messages, receiver["messages"]),
        ("round trips", round_trips, len(sender["trips_us"])),
    ):
        if sent != arrived:
            complaints.append(f"{arrived:,} of {sent:,} {what} arrived and were right")
    if receiver["wrong"] > len(receiver["errors"]):
        complaints.append(f"{receiver['wrong']:,} things in all were wrong")
    crc_errors = sender["crc_errors"] + receiver["crc_errors"]
    if crc_errors:
        complaints.append(f"{crc_errors:,} CRC errors")
    return complaints


def _times(trips: list[float]) -> dict[str, Any] | None:
    """Figures of round trips, in us, the shortest first; None: there was none."""
    if not trips:
        return None
    return {
        "count": len(trips),
        "p50_us": round(statistics.median(trips), 1),
        "p99_us": round(trips[min(len(trips) - 1, len(trips) * 99 // 100)], 1),
    }


@contextlib.asynccontextmanager
async def _processes(
    tasks: list[Task], environment: dict[str, str]
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Processes for these tasks, and what they say; when the block is left they are over, by force
    if need be."""
    path = os.pathsep.join(filter(None, (str(_PACKAGE.parent), os.environ.get("PYTHONPATH"))))
    everything = {**os.environ, **environment, "PYTHONPATH": path}
    processes: list[asyncio.subprocess.Process] = []
    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    readers: list[asyncio.Task[None]] = []
    try:
        for task in tasks:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "peertalk.cli.transfer",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=everything,
                process_group=0,
                limit=1 << 28,  # one line has the time of each round trip, of millions at most
            )
            processes.append(process)
            readers.append(asyncio.create_task(_read(task, process, heard)))
        yield _said(heard)
        await _ended(processes, 2.0)
    finally:
        await asyncio.shield(_end(processes))
        for reader in readers:
            reader.cancel()


async def _read(
    task: Task, process: asyncio.subprocess.Process, heard: asyncio.Queue[dict[str, Any]]
) -> None:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.write(json_format.dumps(msgspec.to_builtins(task)).encode() + b"\n")
        await process.stdin.drain()
    finished = False
    async for line in process.stdout:
        event = json_format.loads(line)
        finished = finished or event["event"] in ("figures", "error")
        heard.put_nowait(event)
    code = await process.wait()
    if not finished:
        heard.put_nowait(
            {
                "event": "error",
                "text": f"the {task.role} process ended with status {code} before it was done",
                "code": FAILED,
            }
        )


async def _said(heard: asyncio.Queue[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    while True:
        try:
            async with asyncio.timeout(_SILENCE):
                event = await heard.get()
        except TimeoutError:
            event = {
                "event": "error",
                "text": f"neither process has moved for {_SILENCE:g} s",
                "code": FAILED,
            }
        yield event


async def _ended(processes: list[asyncio.subprocess.Process], seconds: float) -> None:
    """Wait until these have ended, at most so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(process.wait() for process in processes))


async def _end(processes: list[asyncio.subprocess.Process]) -> None:
    """Ask those that still run to end, then kill. Not by SIGINT, which makes a traceback of an
    interpreter that is only starting."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        running = [process for process in processes if process.returncode is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        await _ended(running, _GRACE)


def show(screen: Console, result: dict[str, Any]) -> None:
    """The table at the end."""
    files, messages, trips = result["files"], result["messages"], result["round_trips"]
    whole = files["verified"] == files["count"]
    rows = [
        (
            "files verified",
            f"{files['verified']:,} of {files['count']:,}, {files['bytes_verified']:,} bytes"
            + (", SHA-256 of each equal on both sides" if whole and files["count"] else ""),
        )
    ]
    if files["skipped"]:
        rows.append(("files not sent", f"{len(files['skipped']):,} (named above)"))
    if files["bytes"]:
        rate = f"{files['mb_per_second']:,.1f} MB/s, {files['messages_per_second']:,} messages/s"
        rows.append(("file transfer", f"{rate} of up to {MESSAGE_SIZE:,} bytes"))
    rows += [
        (
            f"messages of {messages['bytes_each']} bytes",
            f"{messages['arrived']:,} of {messages['count']:,}"
            + (", in order, once" if result["ok"] else ""),
        ),
        ("rate", f"{messages['per_second']:,} messages/s, {messages['mb_per_second']:,.1f} MB/s"),
    ]
    if trips:
        p50, p99 = f"p50 {trips['p50_us']:,.0f} us", f"p99 {trips['p99_us']:,.0f} us"
        rows.append(("round trip", f"{p50}, {p99}, of {trips['count']:,}"))
    rows += [
        ("slots in flight", f"{result['slots_high_water']} at most (high-water)"),
        ("messages per system call", f"{result['messages_per_call']:,.0f}"),
        ("CRC errors", f"{result['crc_errors']}"),
        *_compared(result),
    ]
    screen.print()
    title = f"peertalk demo, {result['core']} core, CRC-16 by {result['crc']}"
    screen.print(title, style="bold")
    print_rows(screen, rows)


def _compared(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows about how much faster this was than the reference core."""
    reference, label = result["reference"], "C against reference core"
    if result["core"] == "reference":
        return [(label, "not compared: this was the reference core")]
    if not reference or not reference["ok"]:
        return []
    ours, theirs = result["messages"]["per_second"], reference["messages"]["per_second"]
    part = f" (reference: {reference['part']})" if reference["part"] else ""
    rates = f"({ours:,} against {theirs:,} a second)"
    rows = [(label, f"messages {reference['ratio_messages']:.1f}x {rates}{part}")]
    if reference["ratio_files"]:
        ours, theirs = result["files"]["mb_per_second"], reference["files"]["mb_per_second"]
        rates = f"({ours:,.1f} against {theirs:,.1f} MB/s)"
        rows.append(("", f"files {reference['ratio_files']:.1f}x {rates}"))
    return rows
