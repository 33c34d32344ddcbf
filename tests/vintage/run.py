"""The C core and the simulator on machines that are not this one: make vintage.

    m68k, ppc, s390x   big-endian: the C tests under emulators; on s390x also the Python suite's
    core and protocol tests 68000              without a C library: size, deepest stack,
    instructions for one message
    host               the same C tests with gcc and clang under Address- and
    UndefinedBehaviorSanitizer
    windows, musl, macos, aarch64
                       compiled and linked without warnings; and run where something here runs them
                       (wine, this machine, an emulator)

The programs of the simulator print a hash over all that the network decided. It must be the one
that this machine's own compiler gives.

usage: run.py [PART ...]; all parts without one. Ends with a line for each; status 1 when one
failed.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import bare68000
import far_python
from shell import BUILD, C_TESTS, PORTABLE, ROOT, WARNINGS, Failed, fresh, run, stems

BUILDS = {
    "standard": ("-DPT_ASSERTIONS=1",),
    "lowmem": ("-DPT_ASSERTIONS=1", "-DPT_LOWMEM", "-DPT_ATOMICS=0"),
}
POSIX = "-D_POSIX_C_SOURCE=200809L"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
ALONE = {"crc_ways": "pt_crc", "crc32c_ways": "pt_crc32c"}
"""Programs that include a source of the core, which must then not be linked beside it."""
EXTRA = {
    "crc_ways": (),
    "crc32c_ways": (),
    "ingest_formats": (),
    "pool_twice": ("once",),
    "pool_threads": ("2000", "4", "doors"),
    "mactcp_rules": (),
    "ot_rules": (),
}
"""Programs of tests/c that are no test_*.c, and their arguments."""
SIMULATIONS = {"sim_network": ("50",), "sim_throughput": ("60",)}
"""Programs that print a hash: bad networks, so many seeds; the classic link at every depth and
platform, so many simulated seconds."""


@dataclass(frozen=True)
class Target:
    """One compiler and what runs its programs: nothing for this machine's own, None when nothing
    does."""

    name: str
    compiler: tuple[str, ...]
    runner: tuple[str, ...] | None = ()
    flags: tuple[str, ...] = ("-O2",)
    link: tuple[str, ...] = ("-static", "-latomic")
    posix: bool = True
    define: tuple[str, ...] = (POSIX,)
    env: tuple[tuple[str, str], ...] = ()


def portable_sources() -> list[Path]:
    return [path for folder in PORTABLE for path in sorted(folder.glob("*.c"))]


def programs() -> dict[str, tuple[str, ...]]:
    """Each C test program with its arguments."""
    return {path.stem: () for path in sorted(C_TESTS.glob("test_*.c"))} | EXTRA | SIMULATIONS


def try_build(
    target: Target, build: str, wanted: dict[str, tuple[str, ...]]
) -> tuple[int, dict[str, str]]:
    """Compile all without warnings, link the wanted programs, run them where that is possible.
    Returns the conditions that were checked, and what each simulation printed as its hash."""
    folder, defines = fresh(target.name, build), BUILDS[build]
    includes = [f"-I{path}" for path in (*PORTABLE, C_TESTS, BUILD / "vectors")]
    compiler = (*target.compiler, *WARNINGS, *target.flags, *defines, *includes)
    sources = portable_sources()
    for source in (
        *sources,
        *(sorted((ROOT / "csrc" / "platform").glob("*.c")) if target.posix else []),
    ):
        run(*compiler, "-c", source, cwd=folder)
    conditions, hashes = 0, {}
    for program, arguments in wanted.items():
        objects = [name for name in stems(sources) if name != f"{ALONE.get(program)}.o"]
        run(
            *compiler,
            *target.define,
            C_TESTS / f"{program}.c",
            *objects,
            *target.link,
            "-pthread",
            "-o",
            f"{program}.exe",
            cwd=folder,
        )
        if target.runner is None:
            continue
        if program == "pool_threads" and "-DPT_ATOMICS=0" in defines:
            arguments = (arguments[0], "1")
        output = run(*target.runner, folder / f"{program}.exe", *arguments, env=dict(target.env))
        counted = re.search(r"(\d+) conditions, 0 failed", output)
        conditions += int(counted[1]) if counted else 0
        if program in SIMULATIONS:
            printed = re.search(r"^hash ([0-9a-f]{16})$", output, re.M)
            if printed is None:
                raise Failed(
                    f"{target.name}: {program} of the {build} build printed no hash:\n{output}"
                )
            hashes[program] = printed[1]
    return conditions, hashes


@functools.cache
def hashes_here(build: str) -> dict[str, str]:
    """What the simulations print when this machine's own compiler builds them."""
    return try_build(Target("here", ("gcc",), link=()), build, SIMULATIONS)[1]


def check_target(target: Target, prefix: str = "") -> str:
    checked = 0
    for build in BUILDS:
        conditions, hashes = try_build(target, build, programs())
        checked += conditions
        for program, found in hashes.items():
            expected = hashes_here(build)[program]
            if found != expected:
                raise Failed(
                    f"{target.name}: {program} of the {build} build failed: its network "
                    f"decided {found}, on this machine {expected}"
                )
    built = f"{prefix}{len(programs())} C programs, standard and lowmem, built without warnings"
    if target.runner is None:
        return f"{built}: links only"
    return (
        f"{built}, passed: {checked:,} conditions, {len(SIMULATIONS) * len(BUILDS)} simulations "
        "decided as here"
    )


def big_endian(name: str, triplet: str) -> Callable[[], str]:
    """A big-endian machine under an emulator, which must say so itself."""
    target = Target(name, (f"{triplet}-gcc",), (f"qemu-{name}-static",))

    def check() -> str:
        macros = subprocess.run(
            [*target.compiler, "-dM", "-E", "-x", "c", os.devnull],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        if "#define __BYTE_ORDER__ __ORDER_BIG_ENDIAN__" not in macros:
            raise Failed(f"{target.compiler[0]} does not compile for a big-endian machine")
        return check_target(target, "big-endian: ")

    return check


def check_s390x() -> str:
    return f"{big_endian('s390x', 's390x-linux-gnu')()}; {far_python.check()}"


def check_host() -> str:
    sanitized = ("-O1", "-g", *SANITIZERS)
    lines = [
        check_target(Target(f"host-{compiler}", (compiler,), (), sanitized, SANITIZERS))
        for compiler in ("gcc", "clang")
    ]
    return f"gcc and clang, Address- and UndefinedBehaviorSanitizer: {lines[0]}"


def check_windows() -> str:
    home = fresh("wine")
    environment = (("WINEPREFIX", str(home)), ("WINEDEBUG", "-all"))
    # Its malloc is 16-aligned, and aligned_alloc it has not.
    aligned = (POSIX, "-Daligned_alloc(alignment,size)=malloc(size)")
    target = Target(
        "windows",
        ("x86_64-w64-mingw32-gcc",),
        ("wine",),
        link=("-static",),
        posix=False,
        define=aligned,
        env=environment,
    )
    try:
        return f"{check_target(target)} under wine (the core; there is no Windows platform file)"
    finally:
        subprocess.run(
            ["wineserver", "-k"], env={**os.environ, **dict(environment)}, capture_output=True
        )
        # one of its drives is a link to /: whatever walks this tree would walk the machine
        shutil.rmtree(home, ignore_errors=True)


def check_musl() -> str:
    return check_target(Target("musl", ("musl-gcc",), (), link=("-static",)))


def check_aarch64() -> str:
    return check_target(Target("aarch64", ("aarch64-linux-gnu-gcc",), ("qemu-aarch64-static",)))


def find_zig() -> tuple[str, ...] | None:
    """The one compiler that brings the system headers of macOS along: zig, as a program or as a
    package of this Python."""
    for command in ((shutil.which("zig") or "zig",), (sys.executable, "-m", "ziglang")):
        try:
            if subprocess.run([*command, "version"], capture_output=True).returncode == 0:
                return command
        except OSError:
            pass
    return None


def check_macos() -> str:
    zig = find_zig()
    if zig is not None:
        os.environ.update(
            {f"ZIG_{kind}_CACHE_DIR": str(BUILD / "zig") for kind in ("GLOBAL", "LOCAL")}
        )
        for processor in ("x86_64", "aarch64"):
            line = check_target(
                Target(
                    f"macos-{processor}",
                    (*zig, "cc", "-target", f"{processor}-macos"),
                    None,
                    link=(),
                    define=(),
                )
            )
        return f"x86_64 and arm64, zig: {line}, nothing was run"
    folder = fresh("macos")
    own = Path(run("clang", "-print-resource-dir").strip()) / "include"
    for processor in ("x86_64", "arm64"):
        for defines in BUILDS.values():
            headers = (
                "-ffreestanding",
                "-nostdinc",
                "-isystem",
                own,
                "-isystem",
                C_TESTS / "bare",
                *(f"-I{folder}" for folder in PORTABLE),
            )
            run(
                "clang",
                "-target",
                f"{processor}-apple-macos11",
                *WARNINGS,
                "-O2",
                *defines,
                *headers,
                "-c",
                *portable_sources(),
                cwd=folder,
            )
    return (
        "x86_64 and arm64, clang: the core compiles without warnings, nothing was linked or run; "
        "with zig the POSIX platform is compiled and linked too"
    )


# with the tools that each needs; the longest first
PARTS: dict[str, tuple[Callable[[], str], tuple[str, ...]]] = {
    "s390x": (check_s390x, ("qemu-m68k-static", "s390x-linux-gnu-gcc")),
    "host": (check_host, ("gcc", "gcc-sanitizers", "clang", "clang-sanitizers")),
    "m68k": (big_endian("m68k", "m68k-linux-gnu"), ("qemu-m68k-static", "m68k-linux-gnu-gcc")),
    "ppc": (big_endian("ppc", "powerpc-linux-gnu"), ("qemu-m68k-static", "powerpc-linux-gnu-gcc")),
    "68000": (bare68000.check, ("qemu-m68k-static", "m68k-linux-gnu-gcc")),
    "windows": (check_windows, ("x86_64-w64-mingw32-gcc", "wine")),
    "musl": (check_musl, ("musl-gcc",)),
    "macos": (check_macos, ("clang",)),
    "aarch64": (check_aarch64, ("qemu-m68k-static", "aarch64-linux-gnu-gcc")),
}
ORDER = ("m68k", "ppc", "s390x", "68000", "host", "windows", "musl", "macos", "aarch64")


def find_tools(parts: list[str]) -> None:
    """Install what is missing, as root on a Debian; else say what is."""
    tools = sorted({"gcc"} | {tool for part in parts for tool in PARTS[part][1]})
    print(run(ROOT / ".ci" / "packages", *tools, timeout=900), end="", flush=True)


def attempt(part: str) -> tuple[bool, str]:
    start = time.monotonic()
    try:
        held, text = True, PARTS[part][0]()
    except Failed as failure:
        held, text = False, str(failure)
        print(f"== {part}\n{text}", flush=True)
        text = next(
            (line for line in text.splitlines() if "error" in line.lower() or " failed" in line),
            text.splitlines()[0],
        )[:200]
    except Exception as error:  # one part must not silence the others
        held, text = False, f"{type(error).__name__}: {error}"
    print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)
    return held, text


def main(parts: list[str]) -> int:
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        print(f"no such part: {' '.join(unknown)}; there are {' '.join(ORDER)}")
        return 2
    parts = parts or list(PARTS)
    try:
        find_tools(parts)
        BUILD.mkdir(parents=True, exist_ok=True)
        run(sys.executable, C_TESTS / "make_vectors.py", BUILD / "vectors")
        for build in BUILDS:  # before there are threads
            hashes_here(build)
    except Failed as failure:
        print(failure)
        return 1
    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        results = dict(zip(parts, pool.map(attempt, parts), strict=True))
    for part in (part for part in ORDER if part in results):
        held, text = results[part]
        print(f"{part:8} {'ok    ' if held else 'FAILED'} {text}")
    return 0 if all(held for held, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
