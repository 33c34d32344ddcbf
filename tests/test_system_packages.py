"""What make lint, sanitize, fuzz and vintage need of the system comes by one script, .ci/packages.

The machine is made of stubs: a folder of programs that is the whole PATH, where apt-get writes down
what it was asked for, and what it installs appears.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.source

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / ".ci" / "packages"
EVERYWHERE = ("bash", "cp", "env", "head", "mktemp", "rm", "sed", "sh", "sort", "touch", "tr")
APT_GET = """
echo "$@" >>"$ROOM/asked"
case " $* " in *" install "*) ;; *) exit ;; esac
for word; do
    touch "$ROOM/has-$word"
    if [ -e "$ROOM/$word" ]; then cp "$ROOM/$word" "$ROOM/bin/$word"; fi
done
"""
CLANG = """
if [ "$1" = --version ]; then echo "Debian clang version 14.0.6"
else [ -e "$ROOM/has-libclang-rt-14-dev" ]; fi
"""


class Machine:
    """A Debian on which hardly anything is installed.

    Args:
        room: a folder for it.
        user: 0 for root.
    """

    def __init__(self, room: Path, user: int) -> None:
        self.room = room
        (room / "bin").mkdir()
        for program in EVERYWHERE:
            os.symlink(
                shutil.which(program) or pytest.skip(f"did not run: no {program}"),
                room / "bin" / program,
            )
        self.stub("bin/id", f"echo {user}")
        self.stub("bin/apt-get", APT_GET)
        self.stub("bin/apt-cache", "echo '  Depends: clang-14'")
        self.stub("clang", CLANG)
        self.stub("cppcheck", "")

    def stub(self, name: str, text: str) -> None:
        """A program, installed (bin/NAME) or to be had as a package (NAME)."""
        (self.room / name).write_text(f"#!{shutil.which('sh')}\n{text}\n")
        (self.room / name).chmod(0o755)

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """A command on this machine."""
        return subprocess.run(
            command,
            cwd=ROOT,
            env={"PATH": str(self.room / "bin"), "ROOM": str(self.room)},
            text=True,
            capture_output=True,
        )

    def asked(self) -> list[str]:
        """What apt-get was asked for, call by call."""
        path = self.room / "asked"
        return path.read_text().splitlines() if path.exists() else []


def test_root_on_debian_gets_what_is_missing_and_the_runtime_of_that_clang(tmp_path):
    """The number of clang's runtime is known once the package lists are; what is there already is
    not asked for."""
    machine = Machine(tmp_path, user=0)
    machine.stub("bin/clang-tidy", "")
    done = machine.run(SCRIPT, "clang", "clang-sanitizers", "clang-tidy", "cppcheck")
    assert done.returncode == 0, done.stdout + done.stderr
    update, install = machine.asked()
    assert update.endswith(" update")
    assert install.split()[-3:] == ["clang", "cppcheck", "libclang-rt-14-dev"]
    assert "clang-tidy" not in install
    done = machine.run(SCRIPT, "clang", "clang-sanitizers", "clang-tidy", "cppcheck")
    assert (done.returncode, done.stdout) == (0, "every system package is there\n")
    assert len(machine.asked()) == 2, "nothing was missing any more"


def test_what_an_installation_did_not_bring_is_said(tmp_path):
    """A package whose name has changed must not look like success."""
    done = Machine(tmp_path, user=0).run(SCRIPT, "clang-tidy", "cppcheck")
    assert done.returncode == 1
    assert "missing here: clang-tidy\n" in done.stdout


@pytest.mark.parametrize("debian", [True, False], ids=["debian", "elsewhere"])
def test_whoever_is_not_root_on_debian_is_told_what_is_missing(tmp_path, debian):
    """Nothing is installed, and the words can be handed to who may."""
    machine = Machine(tmp_path, user=1000 if debian else 0)
    if not debian:
        (tmp_path / "bin" / "apt-get").unlink()
    done = machine.run(SCRIPT, "clang", "clang-sanitizers", "ip")
    assert done.returncode == 1
    assert "missing here: clang clang-sanitizers ip\n" in done.stdout
    assert "apt-get install clang iproute2 libclang-rt-14-dev" in done.stdout
    assert machine.asked() == []


@pytest.mark.parametrize(
    ("target", "tools"),
    [
        ("lint", "python3 gcc clang clang-tidy cppcheck"),
        ("lint-c", "python3 gcc clang clang-tidy cppcheck"),
        ("sanitize", "python3 gcc gcc-sanitizers"),
        ("fuzz", "python3 clang clang-sanitizers"),
        ("vintage", "python3"),
    ],
)
def test_make_asks_the_script_before_it_does_anything(tmp_path, target, tools):
    """Each of these targets alone, on a fresh machine, which lacks even Python."""
    make = shutil.which("make") or pytest.skip("did not run: there is no make here")
    done = Machine(tmp_path, user=1000).run(make, "--no-print-directory", target)
    assert done.returncode != 0
    assert done.stdout.splitlines()[0] == f"missing here: {tools}", done.stdout + done.stderr


def test_vintage_asks_the_script_for_the_tools_of_its_parts(tmp_path):
    """Cross compilers, emulators and, run alone too, the runtime of clang's sanitizers."""
    machine = Machine(tmp_path, user=1000)
    done = machine.run(sys.executable, ROOT / "tests" / "vintage" / "run.py", "host", "m68k")
    assert done.returncode == 1
    (install,) = (line for line in done.stdout.splitlines() if "apt-get install" in line)
    assert install.split("apt-get install ")[1].split() == [
        "clang",
        "gcc",
        "gcc-m68k-linux-gnu",
        "libc6-dev",
        "libc6-dev-m68k-cross",
        "libclang-rt-14-dev",
        "qemu-user-static",
    ]


def test_there_is_no_second_way():
    """Two lists of packages are two truths."""
    others = [ROOT / "Makefile", ROOT / ".ci" / "run", *(ROOT / "tests" / "vintage").glob("*.py")]
    installs = re.compile(r'apt-get"?[^()]*\binstall\b')
    assert installs.search(SCRIPT.read_text())
    assert [path.name for path in others if installs.search(path.read_text())] == []
    assert ".ci/packages" in (ROOT / ".ci" / "run").read_text()
