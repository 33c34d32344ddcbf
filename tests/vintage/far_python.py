"""The Python suite's core and protocol tests on a big-endian Python: Debian's own for s390x,
unpacked beside its libraries and run under an emulator.

Compiled for it here: both extension modules, with assertions, and msgspec out of its source
distribution. Pure Python is taken from this environment; of Hypothesis, which has compiled parts in
new versions, the newest release that is pure.

Left out: tests marked "source", which compile C themselves or read the whole tree.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

from shell import APT_RETRIES, BUILD, ROOT, Failed, fresh, run

ARCHITECTURE = "s390x"
COMPILER = f"{ARCHITECTURE}-linux-gnu-gcc"
VERSION = "3.11"
PACKAGES = (
    "libc6",
    f"libpython{VERSION}-minimal",
    f"python{VERSION}-minimal",
    f"libpython{VERSION}-stdlib",
    f"libpython{VERSION}-dev",
    "zlib1g",
    "libexpat1",
    "libffi8",
    "libssl3",
    "libbz2-1.0",
    "liblzma5",
    "libgcc-s1",
    "media-types",
    "libuuid1",
    "python3-cffi-backend",
    "python3-cffi",
    "python3-pycparser",
    "python3-ply",
)
PURE = (
    "pytest",
    "pluggy",
    "iniconfig",
    "packaging",
    "pygments",
    "pytest-timeout",
    "sortedcontainers",
)
TESTS = ("tests/core", "tests/protocol")
SUITE_TIMEOUT = 900


def unpack_python(home: Path) -> Path:
    """The root folder of the far Python; fetched once."""
    root = home / "root"
    if (home / "fetched").exists():
        return root
    fresh(home.name)
    for folder in ("lists/partial", "cache/archives/partial", "debs", "root"):
        (home / folder).mkdir(parents=True)
    options = [
        f"-oAPT::Architecture={ARCHITECTURE}",
        f"-oAPT::Architectures={ARCHITECTURE}",
        f"-oDir::State::Lists={home}/lists",
        f"-oDir::Cache={home}/cache",
        "-oDir::State::status=/dev/null",
        "-oAPT::Sandbox::User=root",
        *APT_RETRIES,
    ]
    run("apt-get", *options, "-qq", "update")
    run("apt-get", *options, "-qq", "download", *PACKAGES, cwd=home / "debs")
    for package in (home / "debs").glob("*.deb"):
        run("dpkg", "-x", package, root)
    shutil.rmtree(home / "lists")
    (home / "fetched").touch()
    return root


def copy_pure(site: Path) -> None:
    """The test tools of this environment, their entry points included."""
    for name in PURE:
        for path in metadata.distribution(name).files or ():
            if ".." not in path.parts and "__pycache__" not in path.parts and path.suffix != ".so":
                target = site / path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(path.locate()), target)


def download(home: Path) -> tuple[Path, Path]:
    """The source distribution of this environment's msgspec, and a pure wheel of Hypothesis;
    fetched once."""
    folder = home / "downloads"
    wanted = f"msgspec-{metadata.version('msgspec')}.tar.gz"
    if not (folder / wanted).exists():
        fetch = (
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--dest",
            folder,
        )
        run(*fetch, "--no-binary", "msgspec", f"msgspec=={metadata.version('msgspec')}")
        run(
            *fetch,
            "--only-binary",
            ":all:",
            "--platform",
            "any",
            "--python-version",
            VERSION,
            "hypothesis",
        )
    return folder / wanted, next(folder.glob("hypothesis-*.whl"))


def compile_module(target: Path, root: Path, *arguments: str | Path) -> None:
    include = root / "usr" / "include"
    run(
        COMPILER,
        "-shared",
        "-fPIC",
        "-O2",
        "-I",
        include / f"python{VERSION}",
        "-I",
        include,
        *arguments,
        "-o",
        target,
    )


def build_msgspec(archive: Path, scratch: Path, site: Path, root: Path) -> None:
    with tarfile.open(archive) as packed:
        packed.extractall(scratch, filter="data")
    package = next(path.parent for path in scratch.glob("msgspec-*/**/_core.c"))
    shutil.copytree(package, site / "msgspec", ignore=shutil.ignore_patterns("*.c", "*.h"))
    compile_module(
        site / "msgspec" / f"_core.cpython-{VERSION.replace('.', '')}-{ARCHITECTURE}-linux-gnu.so",
        root,
        "-w",
        package / "_core.c",
    )


def build_extensions(stage: Path, scratch: Path, root: Path) -> None:
    """Both cores and the simulated network, from what build_ffi.py says of them."""
    os.environ["PEERTALK_BUILD"] = "debug"
    sys.path.insert(0, str(ROOT))
    import build_ffi

    for name in build_ffi.modules():
        extension = build_ffi.make_ffi(name, ROOT).distutils_extension(str(scratch), verbose=False)
        defines = [f"-D{macro}={value}" for macro, value in extension.define_macros]
        includes = [f"-I{folder}" for folder in extension.include_dirs]
        compile_module(
            stage / "peertalk" / "_core" / f"{name}.abi3.so",
            root,
            *extension.extra_compile_args,
            *defines,
            *includes,
            *extension.sources,
        )


def check() -> str:
    """Run the tests and say how many passed; the output goes to build/vintage/python.txt."""
    home = BUILD / f"python-{ARCHITECTURE}"
    root = unpack_python(home)
    archive, wheel = download(home)
    stage, site, scratch = (fresh(f"python-{part}") for part in ("stage", "site", "scratch"))
    copy_pure(site)
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    build_msgspec(archive, scratch, site, root)
    shutil.copytree(
        ROOT / "peertalk", stage / "peertalk", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    shutil.copytree(ROOT / "tests", stage / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", stage)
    build_extensions(stage, scratch, root)

    python = scratch / "python"
    python.write_text(
        f'#!/bin/sh\nexec qemu-{ARCHITECTURE}-static -L "{root}" '
        f'"{root}/usr/bin/python{VERSION}" "$@"\n'
    )
    python.chmod(0o755)
    path = os.pathsep.join(
        map(
            str,
            (site, ROOT / "tests" / "vintage", root / "usr" / "lib" / "python3" / "dist-packages"),
        )
    )
    environment = {
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PEERTALK_CORE": "",
        "PEERTALK_SOAK": "",
        "PEERTALK_FAR_PYTHON": str(python),
    }
    if run(python, "-c", "import sys; print(sys.byteorder)", env=environment).strip() != "big":
        raise Failed("this Python is not big-endian")
    options = (
        "-q",
        "-p",
        "small",
        "--hypothesis-profile=small",
        "-p",
        "no:cacheprovider",
        "-o",
        "faulthandler_timeout=0",
    )
    output = run(
        python,
        "-m",
        "pytest",
        *options,
        "-m",
        "not source",
        *TESTS,
        cwd=stage,
        env=environment,
        timeout=SUITE_TIMEOUT,
    )
    (BUILD / "python.txt").write_text(output)
    summary = re.search(r"^(\d+) passed.*?(?= in )", output, re.M)
    if summary is None:
        raise Failed(f"pytest said nothing of what passed:\n{output[-2000:]}")
    return f"Python {VERSION}, {' and '.join(TESTS)}: {summary[0]}"
