"""tests/requirements.md: each item has its row, and each row names proofs that exist, run and are
its own.

A proof is

    file::test             a Python test, found by its name;
    file::test[case]       one case of a test whose cases are listed in its file;
    file.c::function       a function of a C program, which its main runs, and which a Python test
                           builds and runs;
    file#section           a section of a document;
    file                   a source file that is no test, or a target of make fuzz.

Proofs are held by name: a test that has moved to another file is reported with its new place.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.source

ROOT = Path(__file__).resolve().parent.parent
ITEMS = {
    "S0": [*range(1, 149)],
    "S2": [2, *range(23, 28), 29, 30, 32, 33, 35, *range(40, 43), 58, 59, 62, 65],
    "S3": [*range(1, 96)],
    "T": [*range(27, 31), 37, 42, 43, 49],
    "W": [*range(1, 18)],
}
"""System -> its items that have a row: all of S0, S3 and W, those of S2 and T that are built."""
ROWS_MAX = 8
"""Rows that one proof may be cited by: one that stands for more stands for none in particular."""
DEVIATES = "Otherwise than asked:"
"""What a row says before it tells what is not as it was asked for; behind it stands the ruling."""

ROW = re.compile(r"^- \*\*(S\d|T|W)\.(\d+)\*\* (.+(?:\n  [^- ].*)*)\n((?:  - .+\n?)+)", re.M)
RULING = re.compile(r"^- \*\*(R\d+)\*\* ", re.M)


def text_of_document() -> str:
    return (ROOT / "tests" / "requirements.md").read_text()


def rows() -> list[tuple[str, int, str, list[str]]]:
    """System, number, text and proofs of each row."""
    return [
        (match[1], int(match[2]), " ".join(match[3].split()), re.findall(r"`([^`]+)`", match[4]))
        for match in ROW.finditer(text_of_document())
    ]


# --- Python tests ---------------------------------------------------------------------------------


@cache
def functions_of(path: Path) -> dict[str, str]:
    """Test function of a file -> its source, decorators included."""
    text = path.read_text()
    lines = text.splitlines()
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


@cache
def literals_of(path: Path) -> frozenset[str]:
    """Strings that stand in a file, docstrings aside."""
    return frozenset(
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def runs_in_soak_only(source: str) -> bool:
    """Whether a test is skipped unless PEERTALK_SOAK is set; pytest.mark.soak alone means that it
    has a long form."""
    return "skip" in source and re.search(r"PEERTALK_SOAK|\bSOAK\b", source) is not None


# --- C programs -----------------------------------------------------------------------------------


def bare(text: str) -> str:
    """C without comments."""
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.S)


def is_defined(text: str, function: str) -> bool:
    return re.search(rf"^static [\w *]+\b{function}\(", text, flags=re.M) is not None


def is_run_by_main(text: str, function: str) -> bool:
    """Whether main() calls a function, or RUNs it."""
    _, found, body = text.partition("\nint main(")
    return bool(found) and re.search(rf"\b{function}\(|\bRUN\({function}\)", body) is not None


@cache
def programs_that_run() -> frozenset[str]:
    """C programs of tests/c that a Python test builds and runs: each test_*.c, and those that one
    calls by their name."""
    named = re.compile(r'\b(?:run_c|build|run)\(\s*"(\w+)"')
    called = {
        name for path in (ROOT / "tests").rglob("*.py") for name in named.findall(path.read_text())
    }
    return frozenset(
        path.stem
        for path in (ROOT / "tests" / "c").glob("*.c")
        if path.stem.startswith("test_") or path.stem in called
    )


# --- documents ------------------------------------------------------------------------------------


@cache
def sections_of(path: Path) -> frozenset[str]:
    """Anchors of a document's headings, as they are made by the usual viewers."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.M)
    return frozenset(
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    )


# --- a proof --------------------------------------------------------------------------------------


def elsewhere(name: str, suffix: str) -> str:
    """Where a function of that name is defined now."""
    for path in sorted((ROOT / "tests").rglob(f"*{suffix}")):
        text = path.read_text()
        if suffix == ".c" and is_defined(text, name):
            return f"; {path.relative_to(ROOT)} has it"
        if suffix == ".py" and re.search(rf"^(?:async )?def {name}\(", text, flags=re.M):
            return f"; {path.relative_to(ROOT)} has it"
    return ""


def missing(proof: str) -> str:
    """Why a proof is none; "" when it is one."""
    name, _, section = proof.partition("#")
    name, _, test = name.partition("::")
    test, _, case = test.removesuffix("]").partition("[")
    path = ROOT / name
    if not path.is_file():
        return f"{name} is not there{elsewhere(test, Path(name).suffix) if test else ''}"
    if section:
        return "" if section in sections_of(path) else f"{name} has no section {section}"
    if not test:
        tests = name.startswith("tests/") and not name.startswith("tests/fuzz/fuzz_")
        return f"{name}: say which test" if tests else ""
    if path.suffix == ".c":
        return missing_in_c(name, path, test)
    if test not in functions_of(path):
        return f"{name} has no {test}{elsewhere(test, '.py')}"
    if case and case not in literals_of(path):
        return f"{name} has no case {case}"
    return ""


def missing_in_c(name: str, path: Path, function: str) -> str:
    """missing() of a function of a C program."""
    text = bare(path.read_text())
    if not is_defined(text, function):
        return f"{name} has no {function}{elsewhere(function, '.c')}"
    if not is_run_by_main(text, function):
        return f"{name}: its main does not run {function}"
    return "" if path.stem in programs_that_run() else f"{name} is run by no test"


def is_soak_only(proof: str) -> bool:
    name, _, test = proof.partition("::")
    path = ROOT / name
    function = test.partition("[")[0]
    return path.suffix == ".py" and runs_in_soak_only(functions_of(path).get(function, ""))


# --- the checks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ITEMS)
def test_each_item_has_one_row(system):
    """An item that was left out is an item that nobody will look for."""
    numbers = [number for which, number, _, _ in rows() if which == system]
    assert numbers == ITEMS[system]


def test_each_row_names_proofs_that_exist_and_run():
    """A test that was renamed proves nothing any more, unless its row follows."""
    found = [f"{system}.{number}: no proof" for system, number, _, proofs in rows() if not proofs]
    for system, number, _, proofs in rows():
        found += [f"{system}.{number}: {why}" for proof in proofs if (why := missing(proof))]
    assert not found, "\n" + "\n".join(found)


def test_no_row_stands_on_the_long_form_alone():
    """What is run before a release only is broken for weeks before anybody hears of it."""
    found = [
        f"{system}.{number}: {proof} is skipped unless PEERTALK_SOAK=1"
        for system, number, _, proofs in rows()
        for proof in proofs
        if all(map(is_soak_only, proofs))
    ]
    assert not found, "\n" + "\n".join(found)


def test_no_proof_stands_for_more_rows_than_anybody_can_follow():
    """Who opens a row must find the assertion that is meant."""
    cited = Counter(proof for _, _, _, proofs in rows() for proof in set(proofs))
    found = [f"{proof}: {count} rows" for proof, count in cited.items() if count > ROWS_MAX]
    assert not found, "\n" + "\n".join(found)


def test_each_deviation_names_a_ruling_and_each_ruling_is_used():
    """A row that was quietly made weaker is a requirement that was quietly dropped."""
    rulings = RULING.findall(text_of_document())
    assert rulings == [f"R{number}" for number in range(1, len(rulings) + 1)]
    found, used = [], set()
    for system, number, text, _ in rows():
        _, deviates, behind = text.partition(DEVIATES)
        named = re.findall(r"\((R\d+(?:, R\d+)*)\)", text)
        names = {name for group in named for name in group.split(", ")}
        used |= names
        found += [f"{system}.{number}: there is no ruling {name}" for name in names - {*rulings}]
        if deviates and not re.search(r"\(R\d+(?:, R\d+)*\)$", behind):
            found.append(f"{system}.{number}: what is otherwise names no ruling at its end")
        if names and not deviates:
            found.append(f"{system}.{number}: a ruling, and no word of what is otherwise")
    found += [f"{name}: no row follows it" for name in rulings if name not in used]
    assert not found, "\n" + "\n".join(found)


# --- the check of the checks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proof", "why"),
    [
        ("tests/test_nothing.py::test_a", "is not there"),
        ("tests/test_nothing.py::test_each_item_has_one_row", "test_requirements.py has it"),
        ("tests/test_requirements.py::test_a", "has no test_a"),
        ("tests/test_sim.py::test_each_item_has_one_row", "test_requirements.py has it"),
        ("tests/test_requirements.py", "say which test"),
        ("tests/sim/test_scenarios.py::test_a_scenario_passes[doom]", "has no case doom"),
        ("tests/c/mactcp_rules.c", "say which test"),
        ("tests/c/mactcp_rules.c::nothing_of_the_kind", "has no nothing_of_the_kind"),
        ("tests/c/mactcp_rules.c::prepare", "its main does not run prepare"),
        ("tests/c/mactcp_rules.c::never_called", "its main does not run never_called"),
        ("tests/c/ot_rules.c::each_slot_is_issued_as_the_maker_wants_it", "mactcp_rules.c has it"),
        ("tests/requirements.md#nowhere", "no section"),
    ],
)
def test_what_is_no_proof_is_found_out(proof, why):
    """The check itself must be able to fail."""
    assert why in missing(proof)


@pytest.mark.parametrize(
    ("source", "only"),
    [
        ('@pytest.mark.skipif(not SOAK, reason="long")\ndef test_a(): ...', True),
        (
            'def test_a():\n    if os.environ.get("PEERTALK_SOAK") != "1":\n        pytest.skip()',
            True,
        ),
        ("@pytest.mark.soak\ndef test_a(rounds): ...", False),
        ('@pytest.mark.skipif(sys.platform == "win32", reason="x")\ndef test_a(): ...', False),
    ],
)
def test_a_test_that_runs_in_the_soak_only_is_told_from_one_with_a_long_form(source, only):
    """Both speak of the soak; one of them runs on every day."""
    assert runs_in_soak_only(source) == only


def test_a_program_that_nobody_runs_proves_nothing():
    """A call in a comment is none, and a program for another machine is not run here."""
    text = bare("static void a(void)\n{\n}\n\nint main(void)\n{\n    /* a(); */\n}\n")
    assert is_defined(text, "a") and not is_run_by_main(text, "a")
    assert {"mactcp_rules", "ot_rules", "sim_throughput", "test_loop"} <= programs_that_run()
    assert "bare68k" not in programs_that_run()
