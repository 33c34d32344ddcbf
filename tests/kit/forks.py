"""Python processes that begin with peertalk imported: a server that has imported peertalk and its
command line forks each of them. To import them takes a quarter of a second and more, which is most
of what a short process costs. Such a process has arguments, streams, signals and an exit code as
any other.

Whoever tests what an interpreter does in the beginning (what is imported, which environment it
starts in) starts one of its own: start_python of conftest.py."""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import gc
import importlib
import json
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Mapping
from typing import IO, Any

LOADED = (
    *("asyncio", "json", "peertalk.sync", "peertalk.cli.options", "rich.table", "rich.progress"),
    *(f"peertalk.cli.{name}" for name in ("demo", "listen", "peers", "send")),
)
"""What the server imports; without the extra of the command line, what there is."""


# The server --------------------------------------------------------------------------------------


def serve(door: int) -> list[str]:
    """Fork a process for each request, until whoever asks closes the other end of the socket door;
    then exit. Returns in each new process, with its arguments, which run() takes.

    A request is a byte with five descriptors: a pipe with the rest of the request, the three
    standard streams, and a pipe that a second process, which waits for the new one, tells its pid
    and its exit code."""
    for name in LOADED:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    asked = socket.socket(fileno=door)
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, 1, 5)
        if not message:
            sys.exit()
        if os.fork() == 0:
            asked.close()
            return _become(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        while os.waitpid(-1, os.WNOHANG)[0]:  # those who waited; the last of them lives
            pass


def _become(request: int, stdin: int, stdout: int, stderr: int, told: int) -> list[str]:
    """Be the process that is asked for, behind one that waits for it. Returns in the former."""
    pid = os.fork()
    if pid:
        for descriptor in (request, stdin, stdout, stderr):
            os.close(descriptor)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is for the other
        os.write(told, f"{pid}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(told, f"{code}\n".encode())
        os._exit(0)
    os.close(told)
    for number, descriptor in enumerate((stdin, stdout, stderr)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    with open(request) as file:
        wanted = json.load(file)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    if wanted["namespace"]:
        _enter(wanted["namespace"])
    arguments: list[str] = wanted["arguments"]
    return arguments


def _enter(namespace: str) -> None:
    """Live in a network namespace from now on, as behind ip netns exec."""
    with open(f"/run/netns/{namespace}") as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file.fileno(), 0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), f"setns to {namespace}")


def run(arguments: list[str]) -> None:
    """What python would do with these arguments: -W action:message:category, any number of them;
    then -c text, -m module, or a file."""
    while arguments[0] == "-W":
        action, message, category = [*arguments[1].split(":"), "", ""][:3]
        kind = getattr(builtins, category or "Warning")
        warnings.filterwarnings(action, re.escape(message), kind)
        arguments = arguments[2:]
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv = arguments
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        text, sys.argv = arguments[1], ["-c", *arguments[2:]]
        exec(compile(text, "<string>", "exec"), main.__dict__)
    else:
        sys.path[0] = os.path.dirname(arguments[0])
        runpy.run_path(arguments[0], run_name="__main__")


# Who asks ----------------------------------------------------------------------------------------


class Forked:
    """A process of the server, as subprocess.Popen has it, with text pipes."""

    def __init__(self, server: Server, request: dict[str, Any]) -> None:
        wanted, stdin, stdout, stderr, told = (os.pipe() for _ in range(5))
        theirs = (wanted[0], stdin[0], stdout[1], stderr[1], told[1])
        socket.send_fds(server.door, [b"1"], theirs)
        for descriptor in theirs:
            os.close(descriptor)
        with open(wanted[1], "w") as file:
            json.dump(request, file)
        self.stdin: IO[str] = open(stdin[1], "w")
        self.stdout: IO[str] = open(stdout[0])
        self.stderr: IO[str] = open(stderr[0])
        self._told: IO[str] = open(told[0])
        self.pid = int(self._told.readline())
        self.returncode: int | None = None
        self._request = request

    def poll(self) -> int | None:
        """The exit code, or None while it lives."""
        return self._await(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, awaited for at most so many seconds."""
        code = self._await(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self._request["arguments"], timeout)
        return code

    def _await(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], timeout)[0]:
            self.returncode = int(self._told.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to it, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # nobody has been told yet
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, text: str = "", timeout: float | None = None) -> tuple[str, str]:
        """Write this, and read all that it writes until it ends."""
        heard = ["", ""]

        def hear(number: int, pipe: IO[str]) -> None:
            heard[number] = pipe.read()

        readers = [
            threading.Thread(target=hear, args=each, daemon=True)
            for each in enumerate((self.stdout, self.stderr))
        ]
        for reader in readers:
            reader.start()
        try:
            self.stdin.write(text)
            self.stdin.close()
        except BrokenPipeError:
            pass  # it has ended, and its exit code says how
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return heard[0], heard[1]

    def close(self) -> None:
        """Kill it if it lives, and let go of its pipes."""
        self.kill()
        self.wait()
        for pipe in (self.stdin, self.stdout, self.stderr, self._told):
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # what was written last reached nobody


class Server:
    """One for a process of the tests, started by whoever needs it first."""

    def __init__(self) -> None:
        self.door, theirs = socket.socketpair()
        code = f"from kit.forks import run, serve; run(serve({theirs.fileno()}))"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **FRESH, "PYTHONPATH": python_path()},
            )

    def start(
        self, *arguments: str, namespace: str = "", env: Mapping[str, str] | None = None
    ) -> Forked:
        """A process with the arguments of python, in a network namespace of that name."""
        environment = {**os.environ, **FRESH, "PYTHONPATH": python_path(), **(env or {})}
        request = {"arguments": arguments, "namespace": namespace, "environment": environment}
        return Forked(self, request)

    def close(self) -> None:
        """End it; what it forked lives on."""
        self.door.close()
        self._process.wait()


FRESH = {"PYTHONUNBUFFERED": "1"}


def python_path() -> str:
    """Where a process finds what this one finds."""
    return os.pathsep.join(folder for folder in sys.path if folder)
