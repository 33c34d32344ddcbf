"""The rules of the house (docs/architecture.md, section 9), checked.

Each rule is a table or one sentence, and each test names every place that breaks it, with the
reason. Nothing here runs the code under test beyond importing it: the sources themselves are read.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from kit.tree import CSRC, PACKAGE, ROOT, bare, below, complain, files, module_name, name, tree

from peertalk import errors
from peertalk._core.binding import PLATFORMS
from peertalk._numbers import ERR_CANCELLED, OK

pytestmark = pytest.mark.source

TOP_LEVEL = frozenset(
    (
        ".ci .clang-format .git-blame-ignore-revs .github .gitignore CHANGELOG.md CONTRIBUTING.md "
        "LICENSE MANIFEST.in Makefile README.md bench build_ffi.py csrc docs examples peertalk "
        "pyproject.toml setup.py tests"
    ).split()
)
# --- the tree -------------------------------------------------------------------------------------


def test_nothing_lies_at_the_top_of_the_tree_that_has_no_place_there():
    """The layout is the design: whoever lists the files must find what he expects, and no more."""
    tops = {path.relative_to(ROOT).parts[0] for path in files()}
    complain([f"{top}: not one of the things that live here" for top in sorted(tops - TOP_LEVEL)])


def test_no_text_names_a_package_registry_or_a_path_of_one_machine():
    """What was true where it was written is false where it is read."""
    forbidden = {
        "a package registry": r"(?:pypi\.o"
        r"rg|pythonhos"
        r"ted|npmjs\.c"
        r"om|deb\.deb"
        r"ian|proxy\.gol"
        r"ang)",
        "a path of one machine": r"(?<![\w./$}-])/(?:wo" r"rk|ro" r"ot|ho" r"me|op" r"t)/[\w.]",
    }
    found = []
    for path in files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for what, pattern in forbidden.items():
            found += [
                f"{name(path)}:{text.count(chr(10), 0, match.start()) + 1}: {what}: {match[0]}"
                for match in re.finditer(pattern, text)
            ]
    complain(found)


WHOLE_FOLDERS = ("_core/reference", "cli", "sim", "_pyinstaller")
"""Rooms of the map that are a folder: their files are not named one by one."""


def test_the_map_names_each_room():
    """Whoever reads the map must not come upon a file that it does not know, nor look for one that
    is gone."""
    table = (
        (ROOT / "docs" / "architecture.md")
        .read_text()
        .partition("## 2. The rooms")[2]
        .partition("## 3.")[0]
    )
    cells = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    named = {
        re.split(r"[./]", word.rstrip("/").removesuffix(".py").removesuffix(".h"))[-1]
        for word in re.findall(r"`([^`]+)`", cells)
    }
    modules = {
        path.relative_to(PACKAGE)
        for path in below(PACKAGE, ".py")
        if not path.stem.startswith("__") and path.parent.name != "contracts"
    }
    rooms = {path.stem for path in modules if not path.as_posix().startswith(WHOLE_FOLDERS)} | {
        folder.split("/")[-1] for folder in WHOLE_FOLDERS
    }
    rooms |= {path.stem for path in below(CSRC, ".c")} | {
        "pt_config",
        "pt_assert",
        "pt_check",
        "pt_platform",
    }
    complain(
        [f"{room}: not on the map" for room in sorted(rooms - named)]
        + [f"{room}: on the map, and not there" for room in sorted(named - rooms)]
    )


# --- rule 1: who may know whom --------------------------------------------------------------------

STANDARD = frozenset(sys.stdlib_module_names) | {"__future__"}
MOVERS = frozenset(
    {
        "socket",
        "socketserver",
        "ssl",
        "threading",
        "_thread",
        "asyncio",
        "select",
        "selectors",
        "time",
        "os",
        "subprocess",
        "signal",
    }
)
PURE = frozenset(
    (
        "__future__ abc collections contextlib copy enum errno functools ipaddress itertools math "
        "operator stat struct types typing"
    ).split()
)
"""All that protocol may have of the standard library: no way leads from these to a file, a
socket, a clock, chance or a thread."""
IMPURE_NAMES = frozenset({"open", "print", "input", "breakpoint", "exec", "eval", "__import__"})
"""What Python has without an import, and reads or writes something."""
FRONT = (
    "__init__",
    "__main__",
    "node",
    "peer",
    "incoming",
    "ownership",
    "waiting",
    "lowlevel",
    "sync",
    "net",
    "sim",
    "testing",
    "bench",
    "demo",
    "cli",
)
VALUES = ("_numbers", "errors", "quantities", "config", "contracts")

PARTS: dict[str, tuple[tuple[str, ...], frozenset[str], frozenset[str]]] = {
    # part            parts of the package that it may import                       third parties
    # standard library, less
    "front": (
        (*FRONT, "doors", "runtime", "protocol", *VALUES),
        frozenset({"msgspec", "typer", "rich", "uvloop", "pytest", "PyInstaller"}),
        frozenset(),
    ),
    "doors": (("doors", "runtime", "protocol", *VALUES), frozenset({"msgspec"}), MOVERS),
    "runtime": (("runtime", "protocol", "_core", *VALUES), frozenset({"msgspec"}), frozenset()),
    "protocol": (
        ("protocol", "_core", "_core.values", *VALUES),
        frozenset({"msgspec"}),
        STANDARD - PURE,
    ),
    "values": (VALUES, frozenset({"msgspec"}), frozenset()),
    "_core": (("_core", "_numbers", "errors"), frozenset({"cffi", "_cffi_backend"}), frozenset()),
}
MAY_MEASURE = ("sim", "bench", "demo", "cli")
"""Front doors that look at a core directly, because they compare cores or build one."""
EXACT = {"protocol": {"_core": ("", "values")}}
"""Where only some rooms of a part are open: protocol uses the pure functions and values of a core,
never its handles."""


COMPILED = set("binding byte_calls codec handles link loop pool simulator sockets".split())
"""The rooms of _core that a compiled core is reached through. The others have a core in Python, or
what all share."""


def part_of(module: str) -> str:
    first = module.split(".")[0]
    if first in ("doors", "runtime", "protocol", "_core"):
        return first
    return "values" if first in VALUES else "front"


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every import with its line, also those inside functions, as absolute names; `from a import b`
    gives a.b when that is a module, else a."""
    package = ["peertalk", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                inner = ROOT / Path(*source.split("."), alias.name)
                yield (
                    node.lineno,
                    f"{source}.{alias.name}"
                    if inner.is_dir() or inner.with_suffix(".py").is_file()
                    else source,
                )


def objection(importer: str, imported: str) -> str | None:
    """Why this module may not import that one; None when it may."""
    part = part_of(importer)
    parts, third_parties, refused = PARTS[part]
    first, _, rest = imported.partition(".")
    if first != "peertalk":
        if importer.startswith("contracts.codegen") and first == "yaml":
            return None
        if first in refused:
            return f"{part} neither moves bytes nor waits: no {first}"
        return (
            None
            if first in STANDARD or first in third_parties
            else f"{part} has no use for {first}"
        )
    room = rest.split(".")[0] or "__init__"
    if room == "_core" and importer.split(".")[0] in MAY_MEASURE:
        return None
    if room not in parts:
        return f"{part} may not know {imported}"
    inside = rest.partition(".")[2]
    if room in EXACT.get(part, {}) and inside not in EXACT[part][room]:
        return f"{part} may know of {room} only {EXACT[part][room]}, not {inside}"
    return None


def test_only_the_log_of_nodes_speaks_to_logging():
    """A line that does not begin with "peertalk:" and the node's name says nothing to whoever runs
    several nodes. The demo silences its own."""
    complain(
        [
            f"{path.relative_to(ROOT)}:{line}: a line of log goes through runtime/log.py"
            for path in below(PACKAGE, ".py")
            for line, imported in imports(path)
            if imported.split(".")[0] == "logging"
            and module_name(path) not in ("runtime.log", "cli.transfer")
        ]
    )


def test_python_imports_only_what_lies_below_it():
    """Layers that leak cannot be tested apart: the thinking half must run without a socket, a
    thread or a clock."""
    complain(
        [
            f"{name(path)}:{line}: imports {imported}: {reason}"
            for path in below(PACKAGE, ".py")
            for line, imported in imports(path)
            if (reason := objection(module_name(path), imported))
        ]
    )


@pytest.mark.parametrize("mover", ["time", "datetime", "random", "pathlib", "logging", "queue"])
def test_what_decides_may_not_import_a_clock_a_file_chance_or_a_thread(mover):
    """Purity is a list of what is allowed: a list of what is refused would never be whole."""
    assert objection("protocol.peer", mover) is not None
    assert objection("protocol.peer", "math") is None


def test_what_decides_reads_and_writes_nothing_without_an_import_either():
    """Observations in, verdicts out: the same arguments give the same answer, anywhere."""
    complain(
        [
            f"{name(path)}:{node.lineno}: protocol does no I/O and reads no clock: {said}"
            for path in below(PACKAGE / "protocol", ".py")
            for node in ast.walk(tree(path))
            if (isinstance(node, ast.Name) and (said := node.id) in IMPURE_NAMES)
            or (isinstance(node, ast.Attribute) and (said := node.attr) in ("clock", "world"))
        ]
    )


def test_what_decides_has_more_lines_than_what_moves_bytes():
    """Judgement that slips into the runtime cannot be tested without sockets. All lines of a file
    count, as `wc -l` counts them."""
    protocol, runtime = (
        sum(len(path.read_text().splitlines()) for path in below(PACKAGE / room, ".py"))
        for room in ("protocol", "runtime")
    )
    assert protocol > runtime


def test_nothing_is_awaited_by_what_both_doors_share_and_below():
    """A future belongs to one loop, and each door waits in its own way: below, a function is left
    that says what has come."""
    complain(
        [
            f"{name(path)}:{node.lineno}: {ast.unparse(node)[:60]}"
            for storey in ("doors", "runtime", "protocol")
            for path in below(PACKAGE / storey, ".py")
            for node in ast.walk(tree(path))
            if isinstance(node, ast.AsyncFunctionDef | ast.Await)
            or (isinstance(node, ast.Name | ast.Attribute | ast.alias) and _is_future(node))
        ]
    )


def _is_future(node: ast.Name | ast.Attribute | ast.alias) -> bool:
    last = ast.unparse(node).rpartition(".")[2]
    return last in ("Future", "create_future", "ensure_future", "create_task")


def known_by(paths: list[Path]) -> dict[str, set[str]]:
    """Of each module which others it names, for the type checker alone too: a reader follows those
    as well. A package that only gathers its own modules is none."""
    modules = {module_name(path): path for path in paths}
    knows: dict[str, set[str]] = {}
    for module, path in modules.items():
        named = {imported.removeprefix("peertalk.") for _, imported in imports(path)}
        knows[module] = (named & modules.keys()) - {module}
    return knows


def circles(knows: dict[str, set[str]]) -> list[list[str]]:
    """Modules that can be reached from each other, each circle once and in order."""

    def reached(module: str) -> set[str]:
        found, left = set(), [module]
        while left:
            new = knows[left.pop()] - found
            found |= new
            left += new
        return found

    reach = {module: reached(module) for module in knows}
    return sorted(
        {
            tuple(sorted({module} | {other for other in reach[module] if module in reach[other]}))
            for module in knows
            if module in reach[module]
        }
    )


def test_a_circle_is_found_also_where_only_the_type_checker_sees_it():
    """The rule below would hold of any tree if nothing were ever found."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [("b", "c")]
    assert circles({"a": {"b"}, "b": set()}) == []
    names = known_by([PACKAGE / "protocol" / "peer.py", PACKAGE / "protocol" / "outbox.py"])
    assert names["protocol.peer"] == {"protocol.outbox"}, "named for the type checker alone"


def test_no_modules_know_each_other_in_a_circle():
    """Whoever reads one module of a circle has to read all of them."""
    complain([" <-> ".join(each) for each in circles(known_by(below(PACKAGE, ".py")))])


def test_no_headers_of_the_ground_storey_know_each_other_in_a_circle():
    """Likewise in C, where a header is what a reader has to know of a room."""
    knows: dict[str, set[str]] = {}
    for path in below(CSRC, ".h"):
        named = re.findall(r"^[ \t]*#[ \t]*include[ \t]*\"(\w+)\.h\"", bare(path), flags=re.M)
        knows[path.stem] = set(named)
    knows = {header: named & knows.keys() for header, named in knows.items()}
    complain([" <-> ".join(each) for each in circles(knows)])


def test_no_files_of_the_ground_storey_call_each_other_in_a_circle():
    """Nor behind the headers: a file that is called by those that it calls is no room of its
    own."""
    defined = {
        match[1]: path.stem
        for path in below(CSRC, ".c")
        for match in re.finditer(r"^(?!static)[a-z][\w *]*\b(\w+)\([^;{]*\)\n\{", bare(path), re.M)
    }
    assert len(defined) > 200
    knows = {
        path.stem: {defined.get(each, "") for each in re.findall(r"\b\w+(?=\()", bare(path))}
        for path in below(CSRC, ".c")
    }
    knows = {file: named - {file, ""} for file, named in knows.items()}
    assert "pt_link" in knows["pt_loop"]
    complain([" <-> ".join(each) for each in circles(knows)])


FREESTANDING = {
    "float.h",
    "iso646.h",
    "limits.h",
    "stdalign.h",
    "stdarg.h",
    "stdbool.h",
    "stddef.h",
    "stdint.h",
    "stdnoreturn.h",
    "stdatomic.h",
    "string.h",
}
VECTORS = {
    "immintrin.h",
    "wmmintrin.h",
    "emmintrin.h",
    "smmintrin.h",
    "tmmintrin.h",
    "cpuid.h",
    "arm_neon.h",
    "arm_acle.h",
    "sys/auxv.h",
}


def test_c_includes_only_what_lies_below_it():
    """The core must go to a machine without a C library, and one platform must not need another."""
    core = {path.name for path in below(CSRC / "core", ".h")}
    sim = {path.name for path in below(CSRC / "sim", ".h")}
    classic = {path.name for path in below(CSRC / "classic", ".h")} | {"pt_sim.h"}
    border = {path.name for path in below(CSRC / "border", ".h")}
    found = []
    for path in below(CSRC, ".c", ".h"):
        folder = path.relative_to(CSRC).parts[0]
        own = {path.with_suffix(".h").name}
        world = "_".join(path.stem.split("_")[:2])  # of pt_posix_ready.c: pt_posix
        for match in re.finditer(
            r"^[ \t]*#[ \t]*include[ \t]*([<\"])([^>\"]+)", bare(path), flags=re.M
        ):
            quoted, header = match[1] == '"', match[2]
            allowed = {
                "core": header in core
                if quoted
                else header in FREESTANDING or (path.stem == "pt_crc_inside" and header in VECTORS),
                "sim": header in core | sim if quoted else header in FREESTANDING,
                "classic": header in core | classic if quoted else header in FREESTANDING,
                "platform": header in core | own or header.startswith(world)
                if quoted
                else header != "Python.h",
                # the system is asked for bytes by each call of CPython, with no context in between
                "border": header in core | border | {"pt_posix_bytes.h"}
                if quoted
                else header in FREESTANDING | {"Python.h", "structmember.h"}
                # a worker cannot ask the interpreter for the memory of its references
                or (path.stem == "pt_large" and header == "stdlib.h"),
                "generated": header in core if quoted else header in FREESTANDING,
            }[folder]
            if not allowed:
                found.append(
                    f"{name(path)}:{bare(path).count(chr(10), 0, match.start()) + 1}: "
                    f"{folder} may not include {header}"
                )
    complain(found)


def test_only_the_stair_mentions_ffi_or_lib():
    """A few modules know how C is called, so that few have to be right about lifetimes; the rest of
    the package cannot tell which core it has."""
    found = []
    for path in below(PACKAGE, ".py"):
        if path.parent == PACKAGE / "_core" and path.stem in COMPILED:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Name):
                words = [node.id]
            elif isinstance(node, ast.Attribute):
                words = [node.attr]
            elif isinstance(node, ast.alias):
                words = node.name.split(".")
            else:
                continue
            found += [
                f"{name(path)}:{node.lineno}: {word}"
                for word in words
                if word in ("ffi", "lib", "cffi", "_cffi_backend")
            ]
    complain(found)


def test_only_the_configuration_header_says_lowmem():
    """Code tests the limits, never the switch, so both builds are always compiled."""
    word = "PT_LOWMEM"
    found = [
        f"{name(path)}: says {word}"
        for path in below(CSRC, ".c", ".h")
        if path.name != "pt_config.h" and word in bare(path)
    ]
    for path in below(PACKAGE, ".py"):
        texts = {
            node.value
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        # a message to people may name it
        found += [f"{name(path)}: reads {word}" for text in texts if text == word]
    complain(found)


def test_above_the_stair_no_code_asks_for_a_core_or_a_world_by_its_name():
    """Each describes itself, by limits and by the table of the platform: so the next one is served
    without a change. The demonstration says which core is the yardstick."""
    names = {"standard", "lowmem", *PLATFORMS}
    complain(
        [
            f"{name(path)}:{node.lineno}: {ast.unparse(node)}"
            for path in below(PACKAGE, ".py")
            if not module_name(path).startswith("_core")
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Compare)
            and any(
                isinstance(part, ast.Constant) and part.value in names for part in ast.walk(node)
            )
        ]
    )


def test_the_core_asks_for_no_memory_of_its_own():
    """csrc/core uses only memory that it was given: no allocation after warm-up starts with no
    allocation here."""
    found = []
    for path in below(CSRC / "core", ".c", ".h"):
        for match in re.finditer(
            r"\b(malloc|calloc|realloc|free|alloca|printf|abort|exit|assert|errno)\b(?=\s*\(|\s*=)",
            bare(path),
        ):
            # a member of a struct may be called what it likes
            if bare(path)[match.start() - 1] not in ">.":
                found.append(
                    f"{name(path)}:{bare(path).count(chr(10), 0, match.start()) + 1}: {match[0]}"
                )
    complain(found)


ASSERTIONS = {"core": 100, "platform": 50, "sim": 50, "classic": 50, "border": 50}
"""PT_ASSERTs for 100 functions, at least, in these folders of csrc."""


@pytest.mark.parametrize("room", ASSERTIONS)
def test_c_says_what_it_relies_on(room):
    """What one place has seen to and another relies on is said there, and looked at in each
    assertion build: a mistake is found where it is, and not where it hurts."""
    text = "\n".join(
        bare(path) for path in below(CSRC / room, ".c", ".h") if path.name != "pt_assert.h"
    )
    functions = len(re.findall(r"\)\n\{$", text, flags=re.M))
    assertions = text.count("PT_ASSERT(")
    assert functions > 25, "they are laid out in another way: count them so"
    assert assertions * 100 >= ASSERTIONS[room] * functions, (
        f"{assertions} assertions in {functions} functions"
    )


# --- rule 2: what is written twice is equal -------------------------------------------------------


def compiled(which: str) -> ModuleType:
    """The extension module itself: the only place that knows every limit as the compiler saw it."""
    try:
        return importlib.import_module(f"peertalk._core._{which}")
    except ModuleNotFoundError:
        pytest.skip(f"the {which} core was not compiled here")


def limit_rows() -> list[tuple[str, int, int]]:
    """The rows of the table of section 8: (name of the limit, standard, lowmem)."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split("\n## 8.")[1].split("\n## ")[0]
    rows = []
    for line in section.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("| ").split("|")]
        if len(cells) == 3 and re.fullmatch(r"[\d,]+", cells[1]):
            limit = re.match(r"`?(PT_\w+)", cells[0])
            named = (
                limit[1]
                if limit
                else {"slot buffer:": "PT_SLOT_BUFFER_SIZE", "slot buffers": "all slot buffers"}[
                    " ".join(cells[0].split()[:2])
                ]
            )
            rows.append((named, int(cells[1].replace(",", "")), int(cells[2].replace(",", ""))))
    return rows


def test_the_table_of_limits_in_the_architecture_is_what_was_compiled():
    """A limit in a document that the build does not have is worse than none."""
    rows = limit_rows()
    assert len(rows) >= 7, (
        "docs/architecture.md, section 8: the table is gone, or is written in another way"
    )
    found = []
    for column, which in enumerate(("standard", "lowmem")):
        lib = compiled(which).lib
        for row in rows:
            sums = {
                "all slot buffers": lib.PT_SLOT_BUFFER_SIZE
                * lib.PT_SEND_PIPELINE_DEPTH
                * lib.PT_MAX_PEERS
            }
            has = sums[row[0]] if row[0] in sums else getattr(lib, row[0])
            if has != row[1 + column]:
                found.append(
                    f"{row[0]}, {which}: the table says {row[1 + column]:,}, the build has {has:,}"
                )
    complain(found)


@pytest.mark.parametrize("which", ["standard", "lowmem"])
def test_a_slot_buffer_is_a_whole_frame_rounded_up_to_sixteen(which):
    """The number stands in pt_config.h as a plain integer, because cffi reads it; the rule behind
    it is kept here."""
    lib = compiled(which).lib
    assert (
        lib.PT_MESSAGE_MAX_PAYLOAD + lib.PT_FRAME_OVERHEAD + 15
    ) // 16 * 16 == lib.PT_SLOT_BUFFER_SIZE
    assert lib.PT_FRAME_OVERHEAD == lib.PT_HEADER_SIZE + lib.PT_TRAILER_SIZE
    assert lib.PT_WHEEL_SLOTS == lib.PT_WHEEL_LEVELS * lib.PT_WHEEL_LEVEL_SLOTS


def test_the_version_is_said_once():
    """Two version numbers disagree sooner or later."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    said = [
        f"{name(path)}: __version__ is written out; read it from the installed metadata"
        for path in below(PACKAGE, ".py")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and node.value == declared and declared != "0.0.0"
    ]
    complain(said)


# --- rule 3: result codes -------------------------------------------------------------------------


def codes() -> dict[str, int]:
    """Every PT_* of the header's enum with its number."""
    text = bare(CSRC / "core" / "pt_error.h")
    return {
        match[1]: int(match[2])
        for match in re.finditer(r"^\s*(PT_(?:OK|ERR_\w+))\s*=\s*(-?\d+)", text, flags=re.M)
    }


@pytest.mark.parametrize("which", ["standard", "lowmem", "reference"])
def test_each_result_code_has_a_name_and_a_text(which):
    """Nobody should meet a bare number."""
    from peertalk._core import load

    if which != "reference":
        compiled(which)
    core = load(which)
    assert len(codes()) >= 29
    found = [
        f"{code}: {core.error_name(number)!r}, not its name"
        for code, number in codes().items()
        if core.error_name(number) != code
    ]
    texts = {code: core.strerror(number) for code, number in codes().items()}
    found += [
        f"{code}: text {text!r}"
        for code, text in texts.items()
        if not text or text == "unknown error" or "PT_" in text
    ]
    assert core.error_name(-77) == "PT_ERR_UNKNOWN"
    assert core.strerror(-77) == "unknown error"
    assert texts == {
        code: load("reference").strerror(number) for code, number in codes().items()
    }, "two cores call the same thing by two names"
    complain(found)


def test_no_result_code_is_written_as_a_number():
    """The headers say the numbers, and peertalk/_numbers.py names them; -1 may be an index."""
    numbers = set(codes().values()) - {0, -1}
    found = [
        f"{name(path)}:{node.lineno}: -{node.operand.value}"
        for path in below(PACKAGE, ".py")
        if path.name != "_numbers.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and isinstance(node.operand, ast.Constant)
        and -node.operand.value in numbers
    ]
    complain(found)


def test_each_error_code_has_an_exception_class_that_names_it():
    """A code without a class reaches the user as InternalError, which says that we were wrong."""
    wanted = {number for code, number in codes().items() if number not in (OK, ERR_CANCELLED)}
    found = [f"{number}: no class" for number in sorted(wanted - set(errors.BY_CODE))]
    found += [
        f"{number}: a class for a code that is none"
        for number in sorted(set(errors.BY_CODE) - wanted)
    ]
    for cls in set(errors.BY_CODE.values()):
        mapped = {number for number, target in errors.BY_CODE.items() if target is cls}
        if cls.code not in mapped:
            found.append(
                f"{cls.__name__}: code {cls.code} is not one of those that raise it, "
                f"{sorted(mapped)}"
            )
    complain(found)


def test_each_exception_class_carries_a_code_of_the_header_and_one_family():
    """`except RemoteError` must catch what the peer did, and nothing else."""
    families = {
        errors.LocalError,
        errors.RemoteError,
        errors.NetworkError,
        errors.WouldBlock,
        errors.InternalError,
        errors.OutOfMemory,
    }
    found = []
    for cls in vars(errors).values():
        if (
            isinstance(cls, type)
            and issubclass(cls, errors.PeerTalkError)
            and cls is not errors.PeerTalkError
        ):
            if len(families.intersection(cls.__mro__)) != 1:
                found.append(
                    f"{cls.__name__}: of "
                    f"{sorted(f.__name__ for f in families.intersection(cls.__mro__))}"
                )
            if cls.code not in codes().values():
                found.append(f"{cls.__name__}: code {cls.code} is not in pt_error.h")
    complain(found)


# --- rule 4: tests mirror the tree ----------------------------------------------------------------

ELSEWHERE = {
    "_core.reference.departure": "tests/core/test_wide.py",
    "_core.reference.landing": "tests/core/test_wide.py",  # where wide frames land
    "_core.reference.notes": "tests/core/test_link.py",  # the link is one thing
    "_core.reference.output": "tests/core/test_link.py",
    "_core.reference.read": "tests/core/test_link.py",
    "_core.reference.source": "tests/core/test_loop.py",
    "_core.reference.system": "tests/core/test_link.py",
    # What has its tests in a place that the mirror would not give, and why.
    "__init__": "tests/test_house.py",  # public names, nothing else: rule 5
    "__main__": "tests/cli/test_cli.py",  # the same command line by another door
    "cli.options": "tests/cli/test_cli.py",  # what the commands share
    "cli.outcome": "tests/cli/test_cli.py",
    "_numbers": "tests/core/test_values.py",  # with the names that values has for them
    "_core": "tests/core/test_load.py",  # load() itself
    "_core.reference": "tests/core/test_load.py",
    # what is its own; what every core does alike is in tests/core
    "_core.binding": "tests/platform/test_border.py",
    "_core.codec": "tests/core/test_wire.py",  # the same encodings as those of the reference core
    "_core.compiled": "tests/core/test_load.py",  # gathers what load() gives out
    "_core.simulator": "tests/platform/test_sim.py",
    "_core.sockets": "tests/platform/test_sim.py",
    "sim.loop": "tests/test_sim.py",  # a network and what runs a program on it are one thing
    "sim.network": "tests/test_sim.py",
    "sim.mesh": "tests/test_testing.py",
    "sim.stage": "tests/sim/test_scenarios.py",
    "lowlevel": "tests/test_init.py",  # public names, nothing else
    "sync.node": "tests/test_sync.py",  # the door is one thing
    "sync.peer": "tests/test_sync.py",
    "sync.turning": "tests/test_sync.py",
    "_pyinstaller": "tests/test_packaging.py",
    "_pyinstaller.hook-peertalk": "tests/test_packaging.py",
}
C_ELSEWHERE = {
    "pt_again": "tests/core/test_futures.py",
    "pt_channel": "tests/core/test_futures.py",  # what is awaited of a stream is one thing
    "pt_layouts": "tests/core/test_futures.py",
    "pt_methods": "tests/core/test_futures.py",
    "pt_tries": "tests/core/test_futures.py",
    "pt_turn": "tests/core/test_futures.py",
    "pt_waker": "tests/core/test_futures.py",
    "pt_error": "tests/test_house.py",  # a table of texts: rule 3
    "pt_context": "tests/core/test_loop.py",  # the loop is one thing
    "pt_link_counts": "tests/core/test_link.py",  # the link is one thing
    "pt_notes": "tests/c/test_notes.c",
    "pt_pool_counts": "tests/core/test_pool.py",  # the pool is one thing
    "pt_read": "tests/core/test_loop.py",
    "pt_send": "tests/core/test_link.py",  # the link is one thing
    "pt_staging": "tests/core/test_ingest.py",  # the receiving machine is one thing
    "pt_landing": "tests/core/test_wide_ends.py",
    "pt_large": "tests/core/test_wide.py",
    "pt_sender": "tests/platform/test_border.py",
    "pt_batch": "tests/platform/test_border.py",  # the border is one thing
    "pt_border": "tests/platform/test_border.py",
    "pt_bytes": "tests/core/test_byte_calls.py",
    "pt_posix_bytes": "tests/core/test_byte_calls.py",
    "pt_posix_ready": "tests/platform/test_posix.py",
    "pt_native": "tests/core/test_moving.py",
    "pt_pure": "tests/platform/test_border.py",
    "pt_numbered": "tests/platform/test_border.py",
    "pt_sim_calls": "tests/platform/test_sim.py",  # the box is one thing
    "pt_sim_ground": "tests/platform/test_sim.py",
    "pt_sim_output": "tests/platform/test_sim.py",
    "pt_sim_socket": "tests/platform/test_sim.py",
    "pt_sim_stream": "tests/platform/test_sim.py",
    "pt_sim_wire": "tests/platform/test_sim.py",
    "pt_classic": "tests/platform/test_mactcp.py",  # seen through the two worlds that share it
    "pt_mactcp_driver": "tests/platform/test_mactcp.py",  # its rules: tests/c/mactcp_rules.c
    "pt_ot_provider": "tests/platform/test_ot.py",  # its rules: tests/c/ot_rules.c
}
C_ROOMS = {"border": "core", "sim": "platform", "classic": "platform"}
"""Folders of csrc whose tests lie with those of another; the worlds share their fixtures."""
NO_TESTS = {"doors", "runtime", "protocol", "cli", "contracts"}
"""Packages whose __init__ only says what they are for, or has tests inside the mirrored folder."""


def mirror(module: str) -> str:
    """protocol.peer -> tests/protocol/test_peer.py; the nouns of the reference core share their
    tests with the C ones: tests/core/test_crc.py."""
    parts = module.split(".")
    if parts[0] == "_core":
        parts = ["core", parts[-1]]
    return "/".join(["tests", *parts[:-1], f"test_{parts[-1]}.py"])


def test_each_python_module_has_a_test_module_at_the_mirrored_path():
    """Whoever changes a module must find its tests without a search."""
    found = []
    for path in below(PACKAGE, ".py"):
        module = module_name(path)
        if path.name == "__init__.py" and module in NO_TESTS:
            if not any(
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                for node in ast.walk(tree(path))
            ):
                continue
            module = f"{module}.{module}"  # holds code after all: tests/cli/test_cli.py
        wanted = ELSEWHERE.get(module, mirror(module))
        if not (ROOT / wanted).is_file():
            found.append(f"{name(path)}: {wanted} is missing")
    complain(found)


def test_each_c_file_has_a_test_module_at_the_mirrored_path():
    """csrc/core/pt_pool.c -> tests/core/test_pool.py, and so for each platform and the border."""
    found = []
    for path in below(CSRC, ".c"):
        folder = C_ROOMS.get(path.parent.name, path.parent.name)
        wanted = f"tests/{folder}/test_{path.stem.removeprefix('pt_')}.py"
        wanted = C_ELSEWHERE.get(path.stem, wanted)
        if path.parent.name != "generated" and not (ROOT / wanted).is_file():
            found.append(f"{name(path)}: {wanted} is missing")
    complain(found)


def test_each_wire_format_has_vectors():
    """Truth about bytes comes from outside: no format without cases that were not made by this
    code."""
    kinds: set[str] = set()
    for path in below(ROOT / "tests" / "vectors", ".json"):
        content = json.loads(path.read_text())
        cases = (
            content.get("cases", content.get("vectors", content))
            if isinstance(content, dict)
            else content
        )
        groups = (
            cases.items()
            if isinstance(cases, dict)
            else [(case.get("kind"), case) for case in cases]
        )
        kinds.update(str(kind) for kind, _ in groups)
    assert {
        "crc16",
        "crc32c",
        "discovery",
        "header",
        "frame",
        "compact",
        "capability",
        "udp",
        "fragment_header",
        "live",
    } <= kinds


def test_tests_enter_a_node_by_one_door():
    """What the public API shows is asked there; all else has its reason in tests/kit/inside.py."""
    complain(
        [
            f"{name(path)}: {found[0]}"
            for path in below(ROOT / "tests", ".py")
            if path.name != "inside.py"
            for found in re.finditer(r"\S*\._(?:transport|engine)\b", path.read_text())
        ]
    )


def test_each_test_that_sanitizers_leave_out_says_why():
    """A test that cannot run under a sanitizer hides what the sanitizer would have seen."""
    found = []
    for path in below(ROOT / "tests", ".py"):
        if "unsanitized" not in path.read_text():
            continue
        reasoned = {
            id(call.func)
            for call in ast.walk(tree(path))
            if isinstance(call, ast.Call) and (call.args or call.keywords)
        }
        found += [
            f"{name(path)}:{node.lineno}: unsanitized without a reason"
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Attribute) and node.attr == "unsanitized"
            if id(node) not in reasoned
        ]
    complain(found)
