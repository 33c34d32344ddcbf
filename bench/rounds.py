"""Runs of the parties of bench/parties.py, interleaved: what bench/versus.py and bench/large.py
share.

Only ratios from one interleaved run count: each round runs every party once at every size, figures
are medians over rounds, and a ratio is the median of the rounds' own ratios. The sender is pinned
to one core and the receiver to another, for every party alike. A party that carries no message of
that size has its words in place of figures.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parties

import peertalk

HERE = Path(__file__).resolve().parent
START_RATE = {"batch": 2_000_000, "message": 900_000, "sync": 100_000, "socket": 10_000_000}
"""Messages a second assumed for the first round; later rounds use what was measured."""
START_RATE_ELSE = 500_000
START_BYTES = 1_000_000_000
"""Bytes a second assumed for the first round, at the most."""
LEAST_MESSAGES = 20
NEEDS = {"pyzmq": "zmq", "zenoh": "zenoh", "zenoh-shm": "zenoh"}
"""Parties and the module that each needs (group bench)."""
LOCAL = "-local"
"""The end of the name of a party of peertalk that uses AF_UNIX."""
PARTIES = (
    "batch",
    "batch-local",
    "message",
    "message-local",
    "sync",
    "pyzmq",
    "zenoh",
    "zenoh-shm",
    "socket",
    "socket-unix",
)
Runs = dict[tuple[str, int], list[dict[str, Any]]]
"""The figures of each round, by party and bytes of a message."""


@dataclass(frozen=True)
class Manner:
    """How every run is done. cores: of the sender and of the receiver, when they are pinned."""

    pin: bool = True
    uvloop: bool = False
    cores: tuple[int, int] = (0, 1)


def knows_local() -> bool:
    """Whether nodes of this peertalk can be told to use AF_UNIX on one host."""
    return "local" in peertalk.Config.__struct_fields__


def lacking(wanted: Sequence[str]) -> str | None:
    """What is not here and these parties need, as a sentence; None: nothing."""
    for party in wanted:
        if party in NEEDS and importlib.util.find_spec(NEEDS[party]) is None:
            return f"{party} is not installed: pip install --group bench, or leave it out"
        if party.startswith("socket") and compiler() is None:
            return f"{party} is a C program, and there is no cc on PATH: leave it out"
        if party.endswith(LOCAL) and not knows_local():
            return f"{party} needs the setting `local` of a node, which this peertalk has not"
    return None


def compiler() -> str | None:
    """The C compiler of this machine."""
    return os.environ.get("CC") or shutil.which("cc")


@functools.cache
def scratch() -> Path:
    """A folder of this process, which goes with it."""
    folder = tempfile.mkdtemp(prefix="bench-")
    atexit.register(shutil.rmtree, folder)
    return Path(folder)


@functools.cache
def socket_copy() -> str:
    """The path of bench/socketcopy.c, compiled by the first run that needs it."""
    program = scratch() / "socketcopy"
    command = [compiler() or "cc", "-std=c11", "-O2", HERE / "socketcopy.c", "-o", program]
    subprocess.run(command, check=True)
    return str(program)


def start(command: Sequence[str]) -> subprocess.Popen[str]:
    """A process whose lines are read."""
    environment = {"PEERTALK_BIND": "127.0.0.1", **os.environ}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


class Side:
    """One process of one run."""

    def __init__(self, role: str, run: tuple[str, int, int], port: int, manner: Manner) -> None:
        party, size, count = run
        if party.startswith("socket"):
            where = str(scratch() / "socket") if party == "socket-unix" else str(port)
            command = [socket_copy(), role, str(size), str(count), str(parties.period(size)), where]
            if role == "receive" and party == "socket-unix":
                Path(where).unlink(missing_ok=True)
        else:
            script = [sys.executable, str(HERE / "parties.py"), role, party]
            command = [*script, str(size), str(count), "--port", str(port)]
            command += ["--uvloop"] * manner.uvloop
        self.process = start(command)
        if manner.pin:
            pin(self.process.pid, manner.cores[role == "receive"])

    def line(self) -> dict[str, Any]:
        """What the process says next; nothing when it has ended without a word."""
        assert self.process.stdout is not None
        said: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")
        return said

    def ended_well(self) -> bool:
        """Wait for its end."""
        return self.process.wait(60) == 0

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def pin(process: int, core: int) -> None:
    """Keep a process that has just begun, with all threads that it will have, on one core."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(process, {cores[core % len(cores)]})


def run(party: str, size: int, count: int, manner: Manner) -> dict[str, Any]:
    """One run of one party; the figures of both sides, or what it says of messages of that size as
    "refused". Raises RuntimeError when a side fails."""
    this = (party, size, count)
    with Side("receive", this, 0, manner) as receiver:
        first = receiver.line()
        if "port" not in first:
            raise RuntimeError(f"{party}, {size} bytes: the receiver did not start")
        with Side("send", this, first["port"], manner) as sender:
            sent = sender.line()
            if "refused" in sent:
                return sent
            measured = receiver.line()
            well = sender.ended_well() and receiver.ended_well()
    if not well or not sent or measured.get("total") != count:
        raise RuntimeError(f"{party}, {size} bytes: a side failed, or not every message arrived")
    return {**measured, **sent}


def interleave(
    wanted: Sequence[str], sizes: Sequence[int], rounds: int, seconds: float, manner: Manner
) -> Runs:
    """Every party at every size, as many rounds; what is done goes to standard error."""
    runs: Runs = {(party, size): [] for size in sizes for party in wanted}
    for turn, (party, size) in itertools.product(range(rounds), list(runs)):
        done = runs[party, size]
        if refusal(done):
            continue
        done.append(run(party, size, messages(party, size, seconds, done), manner))
        what = "refused" if refusal(done) else f"{done[-1]['rate']:12,.0f} a second"
        print(f"round {turn + 1}/{rounds} {party:13} {size:10,} B {what}", file=sys.stderr)
    return runs


def messages(party: str, size: int, seconds: float, done: list[dict[str, Any]]) -> int:
    """How many a run of so many seconds takes: whole periods."""
    if done:
        rate = median(done, "rate")
    else:
        usual = START_RATE.get(party.partition("-")[0], START_RATE_ELSE)
        rate = min(usual, START_BYTES / size)
    wanted, whole = max(LEAST_MESSAGES, rate * seconds), parties.period(size)
    return max(1, round(wanted / whole)) * whole


def refusal(done: list[dict[str, Any]]) -> str | None:
    """What the party said in place of carrying a message; None: it carried all."""
    return done[0].get("refused") if done else None


def median(done: list[dict[str, Any]], figure: str) -> float:
    """The median of one figure over rounds."""
    return statistics.median(one[figure] for one in done)


def ratio(runs: Runs, ours: str, theirs: str, size: int) -> float | None:
    """How many times faster than the second the first party is: the median of the rounds' own
    ratios. None: one of them did not run at that size, or refused."""
    pair = [runs.get((party, size), []) for party in (ours, theirs)]
    if not all(done and not refusal(done) for done in pair):
        return None
    return statistics.median(a["rate"] / b["rate"] for a, b in zip(*pair, strict=True))
