"""What a reader of the sources meets, checked: names, docstrings, comments and sizes
(docs/architecture.md, section 9). Nothing here runs the code under test: the sources are read."""

from __future__ import annotations

import ast
import collections
import importlib
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.tree import CSRC, PACKAGE, ROOT, bare, below, complain, module_name, name, tree

pytestmark = pytest.mark.source

# --- what is public is explained ------------------------------------------------------------------

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(path: Path) -> Iterator[tuple[str, Documented]]:
    """A module with its public classes, functions and methods. Inside _core a method is documented
    once, in the reference core or the handles."""
    yield "the module", tree(path)
    inner = module_name(path).startswith("_core")

    def walk(node: ast.AST, prefix: str, depth: int) -> Iterator[tuple[str, Documented]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(
                child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ) and not child.name.startswith("_"):
                decorators = {ast.unparse(decorator) for decorator in child.decorator_list}
                if any(decorator.endswith((".setter", "overload")) for decorator in decorators) or (
                    inner and depth
                ):
                    continue
                yield prefix + child.name, child
                if isinstance(child, ast.ClassDef):
                    yield from walk(child, f"{prefix}{child.name}.", depth + 1)

    yield from walk(tree(path), "", 0)


def test_each_public_name_has_a_docstring():
    """help() is the manual that everybody has."""
    complain(
        [
            f"{name(path)}:{getattr(node, 'lineno', 1)}: {label} has no docstring"
            for path in below(PACKAGE, ".py")
            for label, node in public(path)
            if not ast.get_docstring(node) and not overrides(path, label)
        ]
    )


def overrides(path: Path, label: str) -> bool:
    """Is this a method that a base class of the same module, or a protocol of the standard library,
    documents already?"""
    owner, _, method = label.rpartition(".")
    classes = {node.name: node for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)}
    if owner not in classes:
        return False
    names = {ast.unparse(base).split("[")[0].split(".")[-1] for base in classes[owner].bases}
    if names & {"DatagramProtocol", "Protocol", "BufferedProtocol"}:
        return True
    return any(
        base in classes
        and any(
            isinstance(n, Documented) and getattr(n, "name", "") == method
            for n in classes[base].body
        )
        for base in names
    )


TELLING = 6
"""Words of a docstring from which on it can say who, what changes, and what if not."""


def test_docstrings_of_methods_with_arguments_say_more_than_the_name():
    """Who is meant, what changes, what if there is none: "It is over." names none of them. As
    World.dial() says where that stands."""
    found, count = [], 0
    for path in below(PACKAGE, ".py"):
        for owner in ast.walk(tree(path)):
            if not isinstance(owner, ast.ClassDef) or owner.name.startswith("_"):
                continue
            for node in owner.body:
                if (
                    not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                    or node.name.startswith("_")
                    or len(ast.unparse(node.args).split(",")) < 2
                ):
                    continue
                text = ast.get_docstring(node)
                if text is None:
                    continue  # a setter, or what another class says: see above
                count += 1
                if len(text.split()) < TELLING and not re.match(r"As [A-Z]\w*\.\w+\(\)", text):
                    found.append(f"{name(path)}:{node.lineno}: {owner.name}.{node.name}: {text!r}")
    assert count > 300
    complain(found)


def test_each_public_name_of_the_package_is_there():
    """__all__ is the contract of the front door: what it lists exists and is explained, and nothing
    public is left out of it."""
    package = importlib.import_module("peertalk")
    listed = getattr(package, "__all__", None)
    assert listed, "peertalk.__all__ is missing"
    found = [f"{entry}: listed and not there" for entry in listed if not hasattr(package, entry)]
    for entry in listed:
        thing = getattr(package, entry, None)
        if typing.get_origin(thing) is not None:
            continue  # an alias: test_init looks for it in the guide
        if isinstance(thing, type) or callable(thing):
            found += (
                []
                if (getattr(thing, "__doc__", None) or "").strip()
                else [f"{entry}: no docstring"]
            )
    complain(found)


def test_each_c_declaration_has_a_comment():
    """The headers are the reference manual of the core: a prototype stands under a comment, alone
    or with its pair."""
    found = []
    for path in below(CSRC, ".h"):
        lines = path.read_text().splitlines()
        kept = bare(path).splitlines()
        for index, line in enumerate(kept):
            match = re.match(r"[a-z][\w ]*[ *](pt_\w+)\(", line)
            if not match:
                continue
            above = index - 1
            while above >= 0 and re.match(r"(?:[a-z][\w ]*[ *]pt_\w+\(| +\S)", kept[above]):
                above -= 1
            if above < 0 or not lines[above].rstrip().endswith("*/"):
                found.append(f"{name(path)}:{index + 1}: {match[1]} has no comment")
    complain(found)


def test_each_c_declaration_is_used_beside_its_own_definition():
    """A prototype that nobody calls, no binding and no test, is a promise that nobody keeps."""
    sources = below(CSRC, ".c", ".h") + below(ROOT / "tests", ".c", ".h")
    words: collections.Counter[str] = collections.Counter()
    for path in sources:
        words.update(re.findall(r"\bpt_\w+", bare(path)))
    for path in below(PACKAGE / "_core", ".py") + below(ROOT / "tests", ".py"):
        words.update(re.findall(r"\bpt_\w+", path.read_text()))
    declared = {
        match[1]: path
        for path in below(CSRC, ".h")
        for match in re.finditer(r"^[a-z][\w ]*[ *](pt_\w+)\(", bare(path), flags=re.M)
    }
    assert len(declared) > 200
    complain([f"{name(path)}: {each}" for each, path in declared.items() if words[each] < 3])


UNITS = frozenset(
    (
        "bytes messages frames calls slots buffers links peers turns packets datagrams events "
        "connections seconds ms us ns ticks errors times count counts counter counters number"
    ).split()
)


def test_each_statistics_field_has_its_unit():
    """A number without a unit is a rumour: the docstring of the class names the field, or the unit
    that its name carries, or says what all are."""
    found = []
    for path in below(PACKAGE, ".py"):
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.ClassDef) or not node.name.endswith("Statistics"):
                continue
            text = (ast.get_docstring(node) or "").lower()
            words = set(re.findall(r"[a-z_]+", text))
            everything_counts = words & {"counter", "counters", "counts"}
            body = list(node.body)
            for index, field in enumerate(body):
                if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                    continue
                behind = body[index + 1] if index + 1 < len(body) else None
                if (
                    isinstance(behind, ast.Expr)
                    and isinstance(behind.value, ast.Constant)
                    and isinstance(behind.value.value, str)
                ):
                    if UNITS.intersection(re.findall(r"[a-z]+", behind.value.value.lower())):
                        continue
                own = field.target.id
                if own in words or UNITS.intersection(own.split("_")) & words or everything_counts:
                    continue
                found.append(
                    f"{name(path)}:{field.lineno}: {node.name}.{own}: no unit in the docstring"
                )
    complain(found)


REFUSED_WORDS = {"manager", "handler", "helper", "helpers", "util", "utils", "misc"}
GIVEN_NAMES = {"AsyncSocketHandler"}
"""What users of other systems know by this name: see S3.5 of requirements.md."""


def test_no_name_hides_its_job():
    """manager, handler, helper, util, misc: what has such a name has no job, or two."""
    found = []
    for path in (
        below(PACKAGE, ".py")
        + below(CSRC, ".c", ".h")
        + below(ROOT / "tests", ".py")
        + below(ROOT / "bench", ".py")
    ):
        if REFUSED_WORDS.intersection(re.split(r"[_\W]", path.stem.lower())):
            found.append(f"{name(path)}: the file's name")
        if path.suffix == ".py":
            named_so = named(path.read_text(), REFUSED_WORDS)
            found += [
                f"{name(path)}:{line}: {own}" for line, own in named_so if own not in GIVEN_NAMES
            ]
    complain(found)


def named(text: str, words: set[str]) -> Iterator[tuple[int, str]]:
    """Line and name of each class and function of a source that has one of these words in its
    name. Read line by line: to parse every test takes seconds."""
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r"\s*(?:async\s+)?(?:class|def)\s+(\w+)", line)
        if match and words.intersection(
            re.sub(r"(?<=[a-z])(?=[A-Z])", "_", match[1]).lower().split("_")
        ):
            yield number, match[1]


def test_a_name_that_hides_its_job_is_found():
    """Whatever is named, and however deep it stands."""
    text = "class FrameManager:\n    async def handle(self):\n        def _util_of(): ...\n"
    assert list(named(text, REFUSED_WORDS)) == [(1, "FrameManager"), (3, "_util_of")]


# --- what is read in one go is short --------------------------------------------------------------

Lengths = list[tuple[int, str]]
"""Lines of each function, and where it is."""


def python_functions() -> Lengths:
    return [
        (node.end_lineno - node.lineno + 1, f"{name(path)}:{node.lineno}: {node.name}()")
        for path in below(PACKAGE, ".py")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def c_functions() -> Lengths:
    """From the first line of what it is called with to its last brace."""
    return [
        (text.count("\n") + 1, f"{name(path)}: {text.partition('(')[0]}()")
        for path in below(CSRC, ".c", ".h")
        for text in re.findall(
            r"^\w[^\n;{}]*\([^;{}]*\)\n\{\n.*?^\}", bare(path), flags=re.M | re.S
        )
    ]


@pytest.mark.parametrize(
    ("functions", "bounds"),
    [(python_functions, (8, 30, 50)), (c_functions, (12, 40, 60))],
    ids=["Python", "C"],
)
def test_functions_are_short(functions, bounds):
    """Half of them, nine of ten, and all: what is longer has parts, and each part has a name."""
    lengths = sorted(functions())
    count = len(lengths)
    assert count > 500, "they are laid out in another way: count them so"
    half, most, longest = bounds
    complain([f"{where} has {lines} lines" for lines, where in lengths if lines > longest])
    assert lengths[count // 2][0] <= half
    assert lengths[count * 9 // 10][0] <= most


def test_files_are_short_or_say_in_their_head_why_not():
    """A room that is not seen at one look has two jobs, or a reason."""
    sources = below(PACKAGE, ".py") + below(CSRC, ".c", ".h")
    bounds = [(path, 600) for path in sources]
    bounds += [(path, 1_000) for path in below(ROOT / "tests", ".py", ".c", ".h")]
    found = []
    for path, bound in bounds:
        text = path.read_text()
        if text.count("\n") > bound and f"{bound:,} lines" not in text[:2_000]:
            found.append(f"{name(path)}: {text.count(chr(10)):,} lines, {bound:,} at most")
    complain(found)
