"""docs/requirements.md: each item has its row, and each row names proofs that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.source

ROOT = Path(__file__).resolve().parent.parent
ITEMS = {"S0": 148, "W": 17}
"""System -> number of its items."""

ROW = re.compile(r"^- \*\*(S\d|W)\.(\d+)\*\* (.+(?:\n  [^- ].*)*)\n((?:  - .+\n?)+)", re.M)


def rows() -> list[tuple[str, int, str, list[str]]]:
    """System, number, text and proofs of each row."""
    text = (ROOT / "docs" / "requirements.md").read_text()
    return [
        (match[1], int(match[2]), match[3], re.findall(r"`([^`]+)`", match[4]))
        for match in ROW.finditer(text)
    ]


@cache
def named_tests(path: Path) -> frozenset[str]:
    """Names of the test functions in a file."""
    return frozenset(
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


@cache
def sections_of(path: Path) -> frozenset[str]:
    """Anchors of a document's headings, as they are made by the usual viewers."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.M)
    return frozenset(
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    )


def missing(proof: str) -> str:
    """Why a proof is none; "" when it is one."""
    name, test, section = (
        proof.split("::")[0].split("#")[0],
        proof.partition("::")[2],
        proof.partition("#")[2],
    )
    path = ROOT / name
    if not path.is_file():
        return f"{name} is not there"
    if test and test not in named_tests(path):
        return f"{name} has no {test}"
    if section and section not in sections_of(path):
        return f"{name} has no section {section}"
    return "" if test or section or path.suffix != ".py" else f"{name}: say which test"


@pytest.mark.parametrize("system", ITEMS)
def test_each_item_has_one_row(system):
    """An item that was left out is an item that nobody will look for."""
    numbers = [number for which, number, _, _ in rows() if which == system]
    assert numbers == list(range(1, ITEMS[system] + 1))


def test_each_row_names_proofs_that_exist():
    """A test that was renamed proves nothing any more, unless its row follows."""
    found = [f"{system}.{number}: no proof" for system, number, _, proofs in rows() if not proofs]
    for system, number, _, proofs in rows():
        found += [f"{system}.{number}: {why}" for proof in proofs if (why := missing(proof))]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("proof", "why"),
    [
        ("tests/test_nothing.py::test_a", "is not there"),
        ("tests/test_requirements.py::test_a", "has no test_a"),
        ("tests/test_requirements.py", "say which test"),
        ("docs/requirements.md#nowhere", "no section"),
    ],
)
def test_what_is_no_proof_is_found_out(proof, why):
    """The check itself must be able to fail."""
    assert why in missing(proof)
