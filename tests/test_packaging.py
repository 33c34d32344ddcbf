"""What somebody else gets: the sdist alone builds, the wheel is one for all Pythons from 3.11, and
without a compiler there is a pure one.

No network: builds use the setuptools and cffi that run here, and a fresh environment borrows cffi
and msgspec from here too.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from kit.programs import quick_compiler
from kit.tables import in_the_long_form

pytestmark = [pytest.mark.source, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parent.parent
LEFT_BEHIND = shutil.ignore_patterns(
    ".git",
    ".venv",
    "build",
    "dist",
    "wheelhouse",
    "__pycache__",
    "*.egg-info",
    "*.so",
    ".hypothesis",
    ".*_cache",
    "corpus",
)

ONE_FRAME = """
import sys
from pathlib import Path
import peertalk
from peertalk._core import load
assert Path(peertalk.__file__).is_relative_to(sys.prefix), peertalk.__file__
core = load()
frame = core.decode_frame(core.encode_frame(1, b"first light", sequence=7))
assert (frame.type, frame.sequence, frame.payload) == (1, 7, b"first light")
print(core.name)
"""

IN_ONE_FILE = """
import asyncio
import peertalk as pt
from peertalk._core import load

async def main():
    alone = {"bind": "127.0.0.1", "discovery": False, "port": 0, "udp_port": 0}
    async with pt.Node("alice", **alone) as alice, pt.Node("bob", **alone) as bob:
        peer = await alice.connect(bob.address)
        await peer.send("hello")
        print((await bob.receive(timeout=20)).text)

print(load().name, load("lowmem").name, load("reference").name, pt.__version__)
asyncio.run(main())
"""


def run(*command: object, **options: object) -> str:
    """Run a command without the switches of this session; its output, or a failure that shows
    it."""
    extra = options.pop("env", {})
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PEERTALK_", "PT_", "PYTHONPATH"))
    }
    done = subprocess.run(
        [str(part) for part in command],
        env={**kept, **extra},
        text=True,
        capture_output=True,
        **options,
    )  # type: ignore[call-overload]
    assert done.returncode == 0, (
        f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout


def build(kind: str, source: Path, target: Path, **switches: str) -> Path:
    """build_sdist or build_wheel as a front end calls it, in this interpreter; the file that came
    out."""
    program = (
        "import sys; from setuptools import build_meta; "
        f"print(build_meta.build_{kind}(sys.argv[1]))"
    )
    target.mkdir(exist_ok=True)
    return (
        target
        / run(sys.executable, "-c", program, target, cwd=source, env=switches).splitlines()[-1]
    )


def install(wheel: Path, room: Path) -> Path:
    """A fresh environment with the wheel in it, and this one's site-packages behind; its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", room)
    python = room / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        wheel,
    )
    borrow(python)
    return python


def borrow(python: Path) -> None:
    """Put this environment's site-packages behind those of another."""
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").strip())
    # a path in a .pth brings packages, not the links beside them
    (site / "borrowed.pth").write_text(sysconfig.get_path("platlib") + "\n")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The sdist, made from a copy of the tree so that nothing built before can help it."""
    room = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, room / "tree", ignore=LEFT_BEHIND)
    return build("sdist", room / "tree", room)


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory) -> Path:
    """What the sdist holds, unpacked."""
    room = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(room, filter="data")
    return next(room.iterdir())


def test_the_sdist_holds_every_source_of_the_build_and_nothing_built(sdist):
    """A missing header shows only on somebody else's machine."""
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    sources = [
        path
        for folder in ("csrc", "peertalk")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".c", ".h", ".py")
    ]
    wanted = {path.relative_to(ROOT).as_posix() for path in sources}
    assert not wanted - held
    assert {
        "build_ffi.py",
        "setup.py",
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "peertalk/py.typed",
    } <= held
    assert not [name for name in held if name.endswith((".so", ".o", ".pyc"))]


@in_the_long_form
def test_the_sdist_alone_builds_a_stable_abi_wheel_that_encodes_a_frame(unpacked, tmp_path):
    """One wheel for 3.11 and all later, with both cores and the network in a box in it, and neither
    sources nor tests."""
    wheel = build("wheel", unpacked, tmp_path, CC=quick_compiler(tmp_path))
    assert wheel.name.startswith("peertalk_lan-") and "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        held = archive.namelist()
    assert {
        "peertalk/_core/_standard.abi3.so",
        "peertalk/_core/_lowmem.abi3.so",
        "peertalk/_core/_sim.abi3.so",
        "peertalk/py.typed",
    } <= set(held)
    assert {name.split("/")[0] for name in held if ".dist-info" not in name} == {"peertalk"}
    assert not [name for name in held if name.endswith((".c", ".h"))]
    python = install(wheel, tmp_path / "room")
    assert run(python, "-P", "-c", ONE_FRAME, cwd=tmp_path).strip() == "standard"
    assert (
        run(python, "-P", "-c", ONE_FRAME, cwd=tmp_path, env={"PEERTALK_CORE": "lowmem"}).strip()
        == "lowmem"
    )


@in_the_long_form
def test_without_a_compiler_there_is_a_pure_wheel_that_encodes_a_frame(unpacked, tmp_path):
    """PEERTALK_BUILD=none is for where no compiler is: slower, and otherwise the same package."""
    wheel = build("wheel", unpacked, tmp_path, PEERTALK_BUILD="none", CC="there-is-no-compiler")
    assert wheel.name.endswith("-py3-none-any.whl")
    python = install(wheel, tmp_path / "room")
    assert run(python, "-P", "-c", ONE_FRAME, cwd=tmp_path).strip() == "reference"


def test_the_distribution_has_a_name_of_its_own_in_everything_that_installs_it():
    """The index has a peertalk of somebody else: who installs by that name runs a stranger's
    program."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "peertalk-lan"
    assert project["optional-dependencies"]["all"] == ["peertalk-lan[cli,uvloop]"]
    assert project["scripts"] == {"peertalk": "peertalk.cli:main"}
    texts = [
        path
        for folder in (
            ROOT,
            *map(ROOT.joinpath, (".ci", ".github", "docs", "examples", "peertalk")),
        )
        for path in (folder.glob("*") if folder == ROOT else folder.rglob("*"))
        if path.suffix in ("", ".md", ".py", ".yml") and path.is_file()
    ]
    by_a_name = re.compile(r"pip[\w ]* install[^`\n]*[ \"']peertalk(?:-lan)?(?:[\[\"'`\s]|$)", re.M)
    assert by_a_name.search('`pip install "peertalk[cli]"`')
    assert not [
        f"{path}: {found[0]}"
        for path in texts
        for found in by_a_name.finditer(path.read_text())
        if "--no-index" not in found[0]
    ]


def test_a_program_in_one_file_has_the_fast_core_inside(unpacked, tmp_path):
    """PyInstaller follows imports only: what is imported by a name in a variable, or from C, is
    not in the file, and the program dies or is slow."""
    pytest.importorskip(
        "PyInstaller",
        reason="did not run: PyInstaller is not installed here (dependency group release)",
    )
    python = install(build("wheel", unpacked, tmp_path), tmp_path / "room")
    (tmp_path / "program.py").write_text(IN_ONE_FILE)
    command = (python, "-P", "-m", "PyInstaller", "--onefile", "--log-level", "WARN", "program.py")
    run(*command, cwd=tmp_path, env={"PYINSTALLER_CONFIG_DIR": str(tmp_path / "cache")})
    assert run(tmp_path / "dist" / "program", cwd=tmp_path).split() == [
        "standard",
        "lowmem",
        "reference",
        "0.1.0",
        "hello",
    ]


@in_the_long_form
@pytest.mark.parametrize("how", ["install", "editable"])
def test_pip_without_a_compiler_ends_in_the_plain_python_core(unpacked, tmp_path, how):
    """The README promises it: one warning while it is built, one when the core is loaded, and
    everything works. A release that lost its core would be found by its users if its wheel looked
    like one that has it."""
    python = tmp_path / "room" / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "room")
    borrow(python)
    source = shutil.copytree(unpacked, tmp_path / "source", ignore=LEFT_BEHIND)
    told = run(
        *("sh", "-c", 'exec "$@" 2>&1', "sh"),  # pip passes a warning on as it came
        *(sys.executable, "-m", "pip", "--python", python, "install", "--verbose"),
        *("--no-index", "--no-deps", "--no-build-isolation"),
        *(["--editable"] if how == "editable" else []),
        source,
        env={"CC": "there-is-no-compiler"},
    )
    assert told.count("the C core was not built") == 1
    assert "plain Python core" in told and "needs a C compiler" in told
    assert ("filename=peertalk_lan-0.1.0-py3-none-any.whl" in told) == (how == "install")
    frame = ONE_FRAME.replace("sys.prefix", repr(str(source))) if how == "editable" else ONE_FRAME
    assert run(python, "-P", "-c", frame, cwd=tmp_path).strip() == "reference"


def test_who_asks_for_a_kind_of_build_by_name_gets_that_kind_or_an_error(unpacked, tmp_path):
    """A build with assertions that became the plain core would pass whatever they guard."""
    source = shutil.copytree(unpacked, tmp_path / "source", ignore=LEFT_BEHIND)
    with pytest.raises(AssertionError, match="there-is-no-compiler"):
        build("wheel", source, tmp_path, CC="there-is-no-compiler", PEERTALK_BUILD="debug")


@pytest.mark.parametrize(
    ("platform", "meant"),
    [
        (
            "linux",
            {
                "cp311-manylinux_x86_64",
                "cp311-manylinux_aarch64",
                "cp311-musllinux_x86_64",
                "cp311-musllinux_aarch64",
            },
        ),
        ("macos", {"cp311-macosx_x86_64", "cp311-macosx_arm64"}),
    ],
)
def test_wheels_are_configured_for_the_platforms_that_are_meant(platform, meant):
    """A platform that drops out of the configuration is noticed by its users otherwise."""
    pytest.importorskip(
        "cibuildwheel",
        reason="did not run: cibuildwheel is not installed here (dependency group release)",
    )
    listed = run(
        sys.executable,
        "-m",
        "cibuildwheel",
        "--print-build-identifiers",
        "--platform",
        platform,
        ROOT,
    )
    assert set(listed.split()) == meant


def test_an_unknown_kind_of_build_is_refused_by_name():
    """A misspelt sanitizer build that silently becomes a plain one would report that all is
    well."""
    done = subprocess.run(
        [sys.executable, "build_ffi.py", os.devnull],
        cwd=ROOT,
        env={**os.environ, "PEERTALK_BUILD": "adress"},
        text=True,
        capture_output=True,
    )
    assert done.returncode != 0
    assert "adress" in done.stderr and "address" in done.stderr


def test_each_header_is_declared_to_python_or_has_a_last_word_that_says_it_is_not(
    tmp_path, monkeypatch
):
    """A header that is left out by an accident of its name takes its functions from Python without
    a word: pt_already.h is no header of what is ready."""
    monkeypatch.setenv("PEERTALK_BUILD", "none")
    (tmp_path / "csrc" / "core").mkdir(parents=True)
    shutil.copy(ROOT / "build_ffi.py", tmp_path)
    for name in ("pt_already.h", "pt_link_ready.h"):
        (tmp_path / "csrc" / "core" / name).touch()
    assert list(runpy.run_path(str(tmp_path / "build_ffi.py"))["headers"]("core")) == [
        "pt_already.h"
    ]

    build = runpy.run_path(str(ROOT / "build_ffi.py"))
    declared = {
        name for folders in build["FOLDERS"].values() for name in build["headers"](*folders)
    }
    left = {path.stem for path in (ROOT / "csrc").glob("*/*.h") if path.name not in declared}
    assert {stem.rpartition("_")[2] for stem in left} == set(build["C_ALONE"])
