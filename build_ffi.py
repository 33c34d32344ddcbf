"""Build the C core as two extension modules, standard and lowmem, and the simulated network as a
third, from the headers in csrc/.

The headers have three readers: the compiler, cffi and people. This file drops their preprocessor
lines, turns each integer limit into `#define NAME ...` and each array length into `[...]`, and lets
the C compiler fill both in. So no declaration is written twice.

Environment:
    PEERTALK_BUILD=none        build nothing: a pure-Python package (reference core)
    PEERTALK_BUILD=debug       assertions on, optimisation low
    PEERTALK_BUILD=address     assertions, AddressSanitizer and UndefinedBehaviorSanitizer
    PEERTALK_BUILD=thread      assertions and ThreadSanitizer
    PT_LOWMEM=1                build no standard module

Run as a script it builds in place, into peertalk/_core/ (or into the folder given as its argument),
and writes peertalk/_numbers.py anew where the headers of the core have changed.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent
FOLDERS = {"core": ("core", "platform", "border"), "_sim": ("core", "sim", "classic")}
C_ALONE = (
    "check inside lock ready pure reader provider sender large native batch bytes "
    "waker layouts channel turn futures"
).split()
"""Last words of the headers that nobody calls from Python; all others are declared there."""
SECTIONS = ("-ffunction-sections", "-fdata-sections")
UNUSED_OUT = ("-Wl,-dead_strip" if sys.platform == "darwin" else "-Wl,--gc-sections",)
"""_sim needs three functions of the core, and leaves the rest out."""
UNOPTIMISED = '#pragma GCC optimize("O0")\n'
"""Before the calls that cffi writes, where assertions are on: a third of the time of such a build
would be theirs."""
CHECKED = ["-g", "-UNDEBUG", "-fno-wrapv", "-DPT_ASSERTIONS=1"]
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
FLAGS = {
    "": ["-O3", "-g0"],
    "debug": ["-Og", *CHECKED],
    "address": ["-O1", *CHECKED, *ADDRESS, "-fno-omit-frame-pointer"],
    "thread": ["-O1", *CHECKED, "-fsanitize=thread"],
}
NUMBERS_HEAD = '''"""The numbers of the C headers: result codes, kinds, flags, states, and the
limits of the standard build. A core has its own limits in Core.limits.

Written by build_ffi.py; do not change it by hand. PT_ERR_CRC of the headers is ERR_CRC here.
"""

'''


def headers(*folders: str) -> dict[str, str]:
    """The headers of these folders without their comments, each behind those that it includes."""
    texts = {
        path.name: re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)
        for folder in folders
        for path in sorted((ROOT / "csrc" / folder).glob("*.h"))
        if path.stem.rpartition("_")[2] not in C_ALONE
    }
    includes = {name: re.findall(r'#include "(.+)"', text) for name, text in texts.items()}
    return {name: texts[name] for name in TopologicalSorter(includes).static_order()}


def declarations(text: str) -> str:
    """What cffi understands of a header: no preprocessor, limits and lengths left to the
    compiler."""
    text = text.replace("\\\n", " ")
    limits = dict.fromkeys(re.findall(r"^#\s*define\s+(\w+)[ \t]+[^.\s]", text, flags=re.M))
    text = re.sub(r"^[ \t]*#.*", "", text, flags=re.M)
    text = re.sub(r"\[[A-Z]\w*\]", "[...]", text)
    return "".join(f"#define {name} ...\n" for name in limits) + text


def numbers() -> str:
    """The text of peertalk/_numbers.py: each enumerator and limit of the core's headers, which all
    are plain integers. Of a limit that depends on the build it has the standard one, which
    pt_config.h says last."""
    table = {}
    for name, text in headers("core").items():
        if name != "pt_assert.h":
            table |= dict(re.findall(r"\bPT_(\w+)(?: =\s+|[ \t]+)(-?\d\w*)\b", text))
    return NUMBERS_HEAD + "".join(f"{name} = {number}\n" for name, number in table.items())


def make_ffi(name: str, root: Path = Path()) -> FFI:
    """An FFI that compiles to peertalk._core.<name>; name is "_standard", "_lowmem" or "_sim".
    root: where csrc lies for the compiler."""
    kind = os.environ.get("PEERTALK_BUILD", "")
    if kind not in FLAGS:
        known = ", ".join(sorted(FLAGS)[1:])
        raise SystemExit(f"PEERTALK_BUILD={kind!r}: use one of {known}, none, or leave it unset")
    folders = FOLDERS["_sim" if name == "_sim" else "core"]
    sections, unused_out = (SECTIONS, UNUSED_OUT) if name == "_sim" else ((), ())
    declared, types_only = headers(*folders), headers("core") if name == "_sim" else ()
    ffi = FFI()
    for header, text in declared.items():
        if header in types_only:
            text = re.sub(r"^[a-z][\w ]*[ *]pt_\w+\([^;]*\);\n", "", text, flags=re.M)
        ffi.cdef(declarations(text))

    def below(pattern: str) -> list[str]:
        return sorted(str(root / path.relative_to(ROOT)) for path in ROOT.glob(pattern))

    ffi.set_source(
        f"peertalk._core.{name}",
        (UNOPTIMISED if kind else "") + "".join(f'#include "{header}"\n' for header in declared),
        sources=[path for folder in folders for path in below(f"csrc/{folder}/*.c")],
        depends=below("csrc/*/*.h"),  # a changed header builds anew
        include_dirs=[str(root / "csrc" / folder) for folder in folders],
        define_macros=[("Py_LIMITED_API", "0x030B0000")]
        + ([("PT_LOWMEM", "1")] if name == "_lowmem" else []),
        extra_compile_args=["-std=c11", "-pthread", "-fvisibility=hidden", *FLAGS[kind], *sections],
        extra_link_args=[
            "-pthread",
            *unused_out,
            *(flag for flag in FLAGS[kind] if "sanitize=" in flag),
        ],
        py_limited_api=True,
    )
    return ffi


def modules() -> list[str]:
    """Names of the extension modules that this environment asks for."""
    if os.environ.get("PEERTALK_BUILD") == "none" or sys.implementation.name != "cpython":
        return []  # the border's native functions are CPython's alone
    cores = ["_lowmem"] if os.environ.get("PT_LOWMEM") == "1" else ["_standard", "_lowmem"]
    return [*cores, "_sim"]


for module in modules():
    # setup.py asks for each by its name, and reads this file anew for each: none is made in vain
    globals()[module.lstrip("_")] = partial(make_ffi, module)


def build(target: Path, module: str) -> None:
    """Compile a module into the folder target."""
    with tempfile.TemporaryDirectory() as scratch:
        built = make_ffi(module, ROOT).compile(tmpdir=scratch)
        shutil.move(built, target / Path(built).name)


if __name__ == "__main__":
    written = ROOT / "peertalk" / "_numbers.py"
    if not written.is_file() or written.read_text() != numbers():
        written.write_text(numbers())
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "peertalk" / "_core").resolve()
    with ProcessPoolExecutor() as processes:
        list(processes.map(partial(build, target), modules()))
