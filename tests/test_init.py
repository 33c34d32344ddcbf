"""The names at the front door: they exist, say what they are, and are all there is."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import peertalk
import peertalk.sync
from peertalk import errors


@pytest.mark.parametrize("name", peertalk.__all__)
def test_a_public_name_exists_and_says_what_it_is_for(name):
    """help(peertalk.X) is the nearest documentation."""
    thing = getattr(peertalk, name)
    assert thing.__name__ == name
    text = inspect.getdoc(thing) or ""
    assert text and not text.startswith(f"{name}("), f"{name} has no docstring of its own"


DOORS = [peertalk.Node, peertalk.Peer, peertalk.sync.Node, peertalk.sync.Peer, peertalk.Peers]


@pytest.mark.parametrize("kind", DOORS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_a_public_method_says_what_it_does(kind):
    """Likewise for what is called on them."""
    silent = [
        name
        for name, member in inspect.getmembers(kind)
        if not name.startswith("_")
        and (callable(member) or isinstance(member, property))
        and not inspect.getdoc(member)
    ]
    assert not silent


def test_nothing_else_is_public():
    """What can be imported will be: a name that is not meant must begin with an underscore or live
    in a module."""
    public = {
        name
        for name, value in vars(peertalk).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public - {"TYPE_CHECKING"} == set(peertalk.__all__)
    assert len(peertalk.__all__) == len(set(peertalk.__all__))


def test_every_error_is_at_the_front_door():
    """Whoever can meet an exception must be able to name it."""
    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.PeerTalkError)
    }
    below_the_door = {"BufferFull"}  # of encoders, which get their buffers from the package itself
    assert kinds - below_the_door <= set(peertalk.__all__)


def test_both_doors_have_the_same_calls():
    """The same names without await, as the guide promises."""
    awaited_only = {"aclose"}
    blocking_only = {"close", "poll"}

    def calls(kind):
        return {
            name
            for name, member in inspect.getmembers(kind)
            if not name.startswith("_") and (callable(member) or isinstance(member, property))
        }

    assert calls(peertalk.Node) - awaited_only == calls(peertalk.sync.Node) - blocking_only
    assert calls(peertalk.Peer) == calls(peertalk.sync.Peer)


def test_the_version_is_that_of_the_metadata(monkeypatch):
    """Two numbers would disagree sooner or later; where there is no metadata that is said."""
    asked = []
    monkeypatch.setattr(importlib.metadata, "version", lambda name: asked.append(name) or "1.2.3")
    assert peertalk.__version__ == "1.2.3" and asked == ["peertalk-lan"]


def test_a_name_that_is_not_there_is_an_attribute_error():
    """hasattr() and import errors depend on it."""
    with pytest.raises(AttributeError, match="no attribute 'Nodes'"):
        _ = peertalk.Nodes
    with pytest.raises(ImportError):
        from peertalk import Nodes  # noqa: F401


@pytest.mark.parametrize("module", ["peertalk", "peertalk.sync", "peertalk.cli"])
def test_on_windows_importing_says_not_yet_and_why(module):
    """A program that starts and fails at its first send is worse than one that does not start."""
    program = f"""
import sys
sys.platform = "win32"
try:
    import {module}
except ImportError as error:
    print(error)
"""
    home = str(Path(peertalk.__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "PYTHONPATH": home},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert "not run on Windows yet" in done.stdout
    for reason in ("sendmsg", "add_reader", "proactor", "SO_REUSEADDR", "SO_LINGER"):
        assert reason in done.stdout


def test_importing_opens_nothing_and_loads_no_tool():
    """A program that imports us and never starts a node pays for a few modules: no thread, no
    socket, no typer, no compiled core."""
    program = """
import sys, threading
import peertalk
assert threading.active_count() == 1
heavy = {"typer", "rich", "uvloop", "cffi", "pycparser", "zmq", "peertalk.cli", "peertalk.bench"}
heavy &= set(sys.modules)
assert not heavy, heavy
"""
    home = str(Path(peertalk.__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "PYTHONPATH": home},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
