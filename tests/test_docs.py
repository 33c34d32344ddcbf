"""What README and guide show exists, compiles, and runs.

Truth: the package itself. A document that names what is not there costs a reader more than no
document.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import runpy
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

import peertalk as pt
import peertalk.sync
from peertalk import config, errors
from peertalk._core import load
from peertalk._numbers import FRAME_OVERHEAD, NAME_MAX, SLOT_SHARE
from peertalk.protocol.peer import FRAGMENTED_MAX
from peertalk.runtime.world import World

pytestmark = pytest.mark.source

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "tests" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]
MACHINES = runpy.run_path(str(ROOT / "tests" / "machines.py"))
GUIDE = (ROOT / "docs" / "guide.md").read_text()
REFERENCE = GUIDE.partition("\n## Every public name\n")[2]


def blocks(path):
    """(line, source) of each Python block."""
    text = path.read_text()
    for match in re.finditer(r"^```python\n(.*?)^```", text, flags=re.M | re.S):
        yield text.count("\n", 0, match.start()) + 2, match[1]


ALL = [
    pytest.param(path, line, source, id=f"{path.name}:{line}")
    for path in TEXTS
    for line, source in blocks(path)
]
SHOWS = {
    "node": (pt.Node, peertalk.sync.Node),
    "peer": (pt.Peer, peertalk.sync.Peer),
    "bob": (pt.Peer, peertalk.sync.Peer),
    "host": (pt.Peer,),
    "message": (pt.Message,),
    "batch": (pt.Batch,),
}
"""What a variable of this name holds, in the documents."""


def has(kind, name):
    """Whether objects of this class have it: a member, an annotation of a base, or what a node is
    given when it is made."""
    annotated = any(name in vars(base).get("__annotations__", {}) for base in kind.__mro__)
    return hasattr(kind, name) or annotated or (kind in SHOWS["node"] and name in vars(kind("any")))


def compiled(source):
    """The block as a module; a block that awaits is the body of a coroutine."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.parse("async def shown():\n" + textwrap.indent(source, "    "))


def test_there_is_something_to_check():
    """A change of the documents' form must not make the tests below empty."""
    assert len(ALL) >= 4


@pytest.mark.parametrize(("path", "line", "source"), ALL)
def test_a_block_compiles_and_names_only_what_exists(path, line, source):
    """Code that is copied from a document must not fail by its names."""
    missing = []
    wrapped = "async def shown():\n" + textwrap.indent(source, "    ")
    compile(wrapped, f"{path.name}:{line}", "exec")
    for node in ast.walk(ast.parse(wrapped)):
        if isinstance(node, ast.ImportFrom):
            module = __import__(node.module, fromlist=[alias.name for alias in node.names])
            missing += [
                f"{node.module}.{alias.name}"
                for alias in node.names
                if not hasattr(module, alias.name)
            ]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            holder = node.value.id
            if holder == "pt" and node.attr not in pt.__all__:
                missing.append(f"pt.{node.attr}")
            elif holder in SHOWS and not any(has(kind, node.attr) for kind in SHOWS[holder]):
                missing.append(f"{holder}.{node.attr}")
    assert not missing


def test_options_that_the_documents_give_are_options():
    """A keyword that does not exist is found by the reader otherwise."""
    wrong = []
    for parameter in ALL:
        path, line, source = parameter.values
        for node in ast.walk(compiled(source)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            found = [
                getattr(kind, node.func.attr, None) for kind in (*SHOWS["node"], *SHOWS["peer"])
            ]
            methods = [
                inspect.signature(method).parameters
                for method in found
                if inspect.isfunction(method)
            ]
            wrong += [
                f"{path.name}:{line}: {node.func.attr}({each.arg}=)"
                for each in node.keywords
                if methods and not any(each.arg in known for known in methods)
            ]
    assert not wrong


def spans(text):
    """What stands in single backquotes, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def test_calls_and_names_in_the_text_of_the_guide_exist():
    """The tables of calls are read more often than the code."""
    missing = []
    for span in spans(GUIDE):
        for holder, name in re.findall(r"\b(node|peer|Node|Peer)\.(\w+)", span):
            if not any(has(kind, name) for kind in SHOWS[holder.lower()]):
                missing.append(span)
    assert not missing


def members(kind):
    """What users can ask of an object: its public attributes."""
    return {name for name in dir(kind) if not name.startswith("_")}


def test_every_public_name_is_in_the_reference():
    """Who looks for a call looks for its name, and who reads a program meets names only."""
    named = {word for span in spans(REFERENCE) for word in re.findall(r"\w+", span)}
    everywhere = {word for span in spans(GUIDE) for word in re.findall(r"\w+", span)}
    everywhere |= set(re.findall(r"case pt\.(\w+)\(", GUIDE))
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type)} - {"Any"}
    public = {*pt.__all__, *pt.lowlevel.__all__, *kinds}
    lacking = {f"peertalk.{name}" for name in public - everywhere}
    lacking |= {
        f"{kind.__module__}.{kind.__name__}.{name}"
        for kind in (
            *SHOWS["node"],
            *SHOWS["peer"],
            pt.Message,
            pt.Batch,
            pt.Datagram,
            pt.lowlevel.Incoming,
        )
        for name in members(kind) - named
    }
    lacking |= {
        f"{kind.__name__}.{name}"
        for kind in (pt.PeerState, pt.StreamState, pt.LostReason, pt.RejectReason, pt.PeerFlag)
        for name in set(kind.__members__) - named
    }
    assert not lacking


def test_error_families_of_the_guide_are_the_families():
    """Whoever writes `except` from the guide must catch what it says."""
    rows = re.findall(r"^\| `(\w+Error)`: [^|]*\| ([^|]*)\|", GUIDE, flags=re.M)
    assert [family for family, _ in rows] == [
        "LocalError",
        "RemoteError",
        "NetworkError",
        "InternalError",
    ]
    for family, examples in rows:
        for name in re.findall(r"`(\w+)`", examples):
            kinds = getattr(errors, name), getattr(errors, family)
            assert issubclass(*kinds), f"{name} is no {family}"
    shown = set(re.findall(r"`([A-Z]\w+)`", GUIDE.split("## Errors")[1].split("\n## ")[0]))
    assert {name for name in shown if not hasattr(errors, name)} == set()
    assert issubclass(pt.Timeout, TimeoutError)


def test_every_event_is_matched_in_the_guide_with_its_fields_in_order():
    """Patterns are positional: a field that moved would bind the wrong name without a word."""
    matched = {
        match[1]: [part.strip() for part in match[2].split(",") if part.strip()]
        for match in re.finditer(r"case pt\.(\w+)\(([^)]*)\):", GUIDE)
    }
    kinds = (
        pt.PeerFound,
        pt.PeerLost,
        pt.PeerChanged,
        pt.NameCollision,
        pt.ConnectionRequested,
        pt.PeerConnected,
        pt.PeerDisconnected,
        pt.PeerFrozen,
        pt.PeerThawed,
        pt.Sent,
        pt.Failed,
        pt.LinkFault,
        pt.EventsMissed,
    )
    assert matched == {kind.__name__: list(kind.__match_args__) for kind in kinds}


NUMBER = {"KiB": 1024, "MiB": 1024**2, "s": 1.0}


def read_default(cell):
    """What a cell of the column of defaults means."""
    special = {
        "host and script": None,
        "on": True,
        "off": False,
        "all": None,
        "standard": None,
        "none": "",
        "wait": "wait",
    }
    if cell in special:
        return special[cell]
    number, _, unit = cell.replace(",", "").partition(" ")
    return int(number) * NUMBER[unit] if unit else int(number)


def test_the_table_of_settings_is_the_settings():
    """Every setting is in the guide, in one row, with the default that it has."""
    section = GUIDE.split("## Configuration")[1].split("\n## ")[0]
    table = re.findall(r"^\| (`[^|]*`) \| ([^|]*) \| ([^|]*) \|$", section, flags=re.M)
    shown = {}
    for names, defaults, _ in table:
        each = re.findall(r"`(\w+)`", names)
        cells = re.split(r", (?=\d)(?!\d{3}(?:\D|$))|, (?=[a-z])", defaults)
        cells = cells * len(each) if len(cells) == 1 else cells
        assert len(cells) == len(each), f"{names}: {defaults}"
        shown |= dict(zip(each, cells, strict=True))
    real = {setting.name: setting.default for setting in config.settings()}
    assert list(shown) == sorted(shown, key=list(real).index), "not in the order of Config"
    assert set(shown) == set(real)
    for name, cell in shown.items():
        meant = read_default(cell)
        assert real[name] in ("", (), None) if meant is None else real[name] == meant, (
            f"{name}: the guide says {cell}, it is {real[name]!r}"
        )


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_readers_are_told_where_it_runs_what_to_open_and_what_it_does_not_protect(name):
    """Who learns from an accident that there is no encryption has trusted a document that kept
    silent."""
    text = " ".join((ROOT / name).read_text().split())
    ports = {setting.name: setting.default for setting in config.settings()}
    for port in (
        f"UDP {ports['discovery_port']}",
        f"TCP {ports['port']}",
        f"UDP {ports['udp_port']}",
    ):
        assert port in text
    for said in (
        "neither encrypted nor authenticated",
        "name proves nothing",
        "whoever claims a peer's instance id takes its connection",
        "Windows",
        "macOS",
        "IPv6 is missing",
    ):
        assert said in text


def test_the_loggers_that_the_guide_names_are_those_of_the_package():
    """Whoever silences or keeps a log needs its name."""
    used = {
        found
        for path in (ROOT / "peertalk").rglob("*.py")
        for found in re.findall(r'NodeLog\(\s*"([\w.]+)"', path.read_text())
    }
    sentence = GUIDE.split("is logged by `logging`, under ")[1].split("\n")[0]
    assert set(re.findall(r"`([\w.]+)`", sentence)) == used


def test_the_bounds_that_the_guide_gives_are_those_of_the_package():
    """Numbers in prose are the first to be forgotten."""
    assert f"up to {load('reference').limits.frame_max_payload:,} bytes" in GUIDE
    assert f"1 to {NAME_MAX} bytes of UTF-8" in GUIDE


def most_of(profile):
    """The table of section 10 as this build has it: of each term, its bytes and how often."""
    settings, world, asked, lent = config.load_config(profile=profile), World(), {}, []
    core = load(settings.core or "standard")

    def make_pool(pool_bytes, links, *_):
        asked.update(pool_bytes=pool_bytes, links=links)
        return core.loop_pool(pool_bytes, links)

    def cost(size):
        before = loop.pool.statistics().bytes
        lent.append(loop.pool.acquire(size))
        return loop.pool.statistics().bytes - before

    watched = SimpleNamespace(limits=core.limits, Loop=core.Loop, loop_pool=make_pool)
    loop = world.make_loop(watched, settings)
    sizeof, links = loop._ffi.sizeof, asked["links"]
    parts = {part: now for part, (now, _) in loop.memory().items()}
    frame = cost(core.limits.frame_max_payload + FRAME_OVERHEAD)
    most = {
        "receive buffer": (parts["receive buffer"], 1),
        "spare frame": (frame, 1),
        "budget of the pool": (asked["pool_bytes"], 1),
        "slots of one whole frame": (frame, SLOT_SHARE * links),
        "staging buffer": (frame, links),
        "message in fragments": (cost(max(world.max_frame(core), FRAGMENTED_MAX)), links),
        "borrowed slots": (cost(settings.pipeline_depth * sizeof("pt_send_slot")), links),
        "`pt_link` and its `pt_reassembly`": (sizeof("pt_link") + sizeof("pt_reassembly"), links),
        "tables of the loop": (parts["context"] + parts["loop"] + parts["wheel"], 1),
        "tables of the pool": (parts["pools"], 1),
    }
    for each in lent:
        each.release()
    loop.close()
    return most


@pytest.mark.skipif(sys.platform != "linux" or sys.maxsize < 2**32, reason="sizes of 64-bit Linux")
def test_the_most_that_the_c_side_holds_is_what_the_architecture_says():
    """Whoever plans the memory of a small machine adds up this table."""
    pytest.importorskip("peertalk._core._standard")
    text = (ROOT / "docs" / "architecture.md").read_text().split("The most that the C side")[1]
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.replace(",", "").splitlines()
        if line.startswith("| ")
    ]
    for column, profile in ((1, ""), (3, "embedded")):
        most = most_of(profile)
        shown = {row[0]: (int(row[column]), int(row[column + 1])) for row in table[2:-1]}
        assert shown == most, profile
        whole = sum(each * times for each, times in most.values())
        assert table[-1][0] == "all" and int(table[-1][column]) == whole, profile


@pytest.mark.parametrize("name", MACHINES["MACHINES"])
def test_the_drawing_of_a_state_machine_is_its_table(name):
    """A diagram that was drawn by hand is wrong after the first change of the table. `python
    tests/machines.py` draws it anew."""
    machine = MACHINES["MACHINES"][name]
    found = MACHINES["shown"](name, (ROOT / "docs" / machine.document).read_text())
    assert found is not None and found[1] == MACHINES["drawing"](machine)


def test_each_table_of_the_core_is_drawn():
    """A machine whose table nobody draws is known to nobody but its author."""
    headers = (ROOT / "csrc" / "core").glob("*.h")
    nouns = {
        noun
        for path in headers
        for noun in re.findall(r"uint8_t pt_(\w+)_next\(uint8_t state", path.read_text())
    }
    assert nouns and nouns <= set(MACHINES["MACHINES"])


def sections(path):
    """Anchors of a document's headings, as they are made by the usual viewers."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.M)
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


def test_links_between_the_documents_lead_somewhere():
    """A dead link in a README is the first impression."""
    dead = []
    for path in TEXTS:
        for target, section in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", path.read_text()):
            found = path.parent / target if target else path
            if not found.exists() or (section and section not in sections(found)):
                dead.append(f"{path.name}: {target}#{section}")
    assert not dead


def test_the_first_script_of_the_readme_is_the_example_of_that_name():
    """tests/test_examples.py runs it on two terminals, as the README says."""
    _, source = next(blocks(ROOT / "README.md"))
    assert source == (ROOT / "examples" / "hello.py").read_text()


def test_the_blocking_script_of_the_readme_runs_as_it_stands(free_port, monkeypatch, capsys):
    """Carol of the README, against a bob that answers."""
    monkeypatch.setenv("PEERTALK_BIND", "127.0.0.1")
    monkeypatch.setenv("PEERTALK_DISCOVERY_PORT", str(free_port()))
    _, source = list(blocks(ROOT / "README.md"))[1]
    asyncio.run(_with_a_bob(source, "carol", b"hello"))
    assert capsys.readouterr().out == "hi yourself\n"


def test_the_script_of_the_guide_runs_as_it_stands(free_port, monkeypatch, capsys):
    """The block of "Without asyncio", against a bob that answers. Its time-outs are the guide's
    own: it ends by itself."""
    monkeypatch.setenv("PEERTALK_BIND", "127.0.0.1")
    monkeypatch.setenv("PEERTALK_DISCOVERY_PORT", str(free_port()))
    source = next(
        source for _, source in blocks(ROOT / "docs" / "guide.md") if "peertalk.sync" in source
    )
    assert "node.messages(timeout=5)" in source
    source = source.replace("node.messages(timeout=5)", "node.messages(timeout=0.2)")
    asyncio.run(_with_a_bob(source, "script", b"hi"))
    assert capsys.readouterr().out == "hi yourself\n"


async def _with_a_bob(source, name, said):
    async with pt.Node("bob") as bob:
        script = asyncio.create_task(
            asyncio.to_thread(exec, compile(source, f"{name}.py", "exec"), {})
        )
        message = await bob.receive(timeout=20)
        assert (message.peer.name, message.data) == (name, said)
        await message.peer.send("hi yourself")
        await script
