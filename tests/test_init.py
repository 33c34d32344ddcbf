"""The names at the front door: they exist, say what they are, and are all there is."""

from __future__ import annotations

import ast
import builtins
import collections.abc
import importlib.metadata
import inspect
import os
import subprocess
import sys
import types
import typing
from pathlib import Path

import pytest

import peertalk
import peertalk.sync
from peertalk import errors
from peertalk.config import settings

ALIASES = {"Address", "Event", "Key", "Payload", "Progress"}
"""Types without a class of their own."""


EVERY = [(peertalk, name) for name in peertalk.__all__]
EVERY += [(peertalk.lowlevel, name) for name in peertalk.lowlevel.__all__]


@pytest.mark.parametrize(
    ("module", "name"), EVERY, ids=lambda each: getattr(each, "__name__", each)
)
def test_a_public_name_exists_and_says_what_it_is_for(module, name):
    """help(peertalk.X) is the nearest documentation; an alias has none, so the guide has it."""
    thing = getattr(module, name)
    if name in ALIASES:
        guide = Path(__file__).parent.parent / "docs" / "guide.md"
        where = "pt" if module is peertalk else "pt.lowlevel"
        assert f"`{where}.{name}`" in guide.read_text()
        return
    assert thing.__name__ == name
    text = inspect.getdoc(thing) or ""
    assert text and not text.startswith(f"{name}("), f"{name} has no docstring of its own"


DOORS = [
    peertalk.Node,
    peertalk.Peer,
    peertalk.sync.Node,
    peertalk.sync.Peer,
    peertalk.lowlevel.Peers,
]


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


def test_every_type_of_a_signature_has_a_public_name():
    """Whoever writes a function around a call must be able to annotate it."""
    elsewhere = {
        "World": "made by peertalk.sim alone",
        "Remote": "a peer is made by its node alone",
        "Turning": "likewise",
        "errors": "the module, under which all are public",
        "P": "which kind of peer, that of the door",
        "T": "of whatever the items are",
    }
    elsewhere |= dict.fromkeys((*vars(builtins), *typing.__all__), "the standard library's")
    elsewhere |= dict.fromkeys(collections.abc.__all__, "the standard library's")
    public = {*peertalk.__all__, *peertalk.lowlevel.__all__}
    modules = (peertalk, peertalk.lowlevel, peertalk.sync)
    named_kinds = [getattr(module, name) for module in modules for name in module.__all__]
    kinds = {
        base
        for kind in named_kinds
        if isinstance(kind, type) and kind is not peertalk.Config  # Config's are in its table
        for base in kind.__mro__
        if base.__module__.startswith("peertalk")
    }
    lacking = []
    for kind in kinds:
        written = list(vars(kind).get("__annotations__", {}).items())
        for name, member in vars(kind).items():
            function = member.fget if isinstance(member, property) else member
            if not name.startswith("_") or name == "__init__":
                annotations = getattr(function, "__annotations__", {})
                written += [(f"{name}()", text) for text in annotations.values()]
        for where, text in written:
            if where.startswith("_") or not isinstance(text, str):
                continue
            named = {each.id for each in ast.walk(ast.parse(text)) if isinstance(each, ast.Name)}
            named -= {each for each in named if each.startswith("_")}
            lacking += [
                f"{kind.__name__}.{where}: {name}" for name in named - public - set(elsewhere)
            ]
    assert not lacking


def test_the_front_door_is_small_and_its_errors_are_those_of_the_module():
    """What one must read past to find what one needs is too much; every error has one more name,
    pt.errors.X."""
    assert len(peertalk.__all__) <= 42
    kinds = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.PeerTalkError)
    }
    for name in kinds.keys() & set(peertalk.__all__):
        assert getattr(peertalk, name) is kinds[name]
    assert not set(peertalk.lowlevel.__all__) & set(peertalk.__all__)


def test_the_options_of_a_node_are_the_fields_of_its_config():
    """A field that the type of the options lacks is refused by every type checker."""
    fields = [setting.name for setting in settings()]
    assert ["name", *peertalk.lowlevel.NodeOptions.__annotations__] == fields


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
