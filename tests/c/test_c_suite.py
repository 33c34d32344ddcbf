"""The core's C tests on this machine, as make vintage runs them on others: every test_*.c, standard
and lowmem, with sanitizers where they are; lowmem with them in the long form."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from kit.programs import Programs, run
from kit.tables import IN_THE_LONG_FORM

pytestmark = pytest.mark.source

HERE = Path(__file__).resolve().parent
PROGRAMS = sorted(path.stem for path in HERE.glob("test_*.c"))


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the golden vectors as tables."""
    folder = tmp_path_factory.mktemp("vectors")
    assert run(sys.executable, HERE / "make_vectors.py", folder) == (0, "")
    return folder


@pytest.fixture(
    params=["standard", "lowmem", pytest.param("lowmem_sanitized", marks=IN_THE_LONG_FORM)]
)
def programs(request: pytest.FixtureRequest) -> Programs:
    """Programs of each build of the core."""
    made: Programs = request.getfixturevalue(f"{request.param}_programs")
    return made


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_core_passes_its_c_tests(programs: Programs, vectors: Path, program: str) -> None:
    """They run where no Python does, so they must be right here, where a debugger and sanitizers
    are at hand."""
    status, output = run(programs.make(program, f"-I{vectors}"))
    assert status == 0 and " 0 failed" in output, output
