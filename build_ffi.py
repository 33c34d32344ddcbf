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
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent
CORE = (
    "core/pt_config.h",
    "core/pt_assert.h",
    "core/pt_error.h",
    "core/pt_crc.h",
    "core/pt_wire.h",
    "core/pt_pool.h",
    "core/pt_notes.h",
    "core/pt_wheel.h",
    "core/pt_reassembly.h",
    "core/pt_ingest.h",
    "core/pt_pipeline.h",
    "core/pt_platform.h",
    "core/pt_link.h",
    "core/pt_loop.h",
)
HEADERS = {
    "core": (*CORE, "platform/pt_posix.h", "border/pt_batch.h"),
    "_sim": (
        *CORE,
        "sim/pt_sim.h",
        "classic/pt_classic.h",
        "classic/pt_mactcp_driver.h",
        "classic/pt_mactcp.h",
        "classic/pt_ot.h",
    ),
}  # in the order of their includes
FOLDERS = {"core": ("core", "platform", "border"), "_sim": ("core", "sim", "classic")}
SECTIONS = ("-ffunction-sections", "-fdata-sections")
UNUSED_OUT = ("-Wl,-dead_strip" if sys.platform == "darwin" else "-Wl,--gc-sections",)
"""_sim needs three functions of the core, and leaves the rest out."""
FLAGS = {
    "": ["-O3", "-g0"],
    "debug": ["-O1", "-g", "-UNDEBUG", "-fno-wrapv", "-DPT_ASSERTIONS=1"],
    "address": [
        "-O1",
        "-g",
        "-UNDEBUG",
        "-fno-wrapv",
        "-DPT_ASSERTIONS=1",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
    ],
    "thread": ["-O1", "-g", "-UNDEBUG", "-fno-wrapv", "-DPT_ASSERTIONS=1", "-fsanitize=thread"],
}


NUMBERS_HEAD = '''"""The numbers of the C headers: result codes, kinds, flags, states, and the
limits of the standard build. A core has its own limits in Core.limits.

Written by build_ffi.py; do not change it by hand. PT_ERR_CRC of the headers is ERR_CRC here.
"""

'''


def declarations(text: str, types_only: bool = False) -> str:
    """The part of a header that cffi understands: no preprocessor, limits and lengths left to the
    compiler."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S).replace("\\\n", " ")
    if types_only:
        text = re.sub(r"^[a-z][\w ]*[ *]pt_\w+\([^;]*\);\n", "", text, flags=re.M)
    lines = []
    for line in text.splitlines():
        define = re.match(r"#\s*define\s+(\w+)\s+[^.\s]", line)
        if define:
            lines.append(f"#define {define[1]} ...")
        elif not re.match(r"\s*#", line):
            lines.append(re.sub(r"\[[A-Z]\w*\]", "[...]", line))
    return (
        "\n".join(dict.fromkeys(line for line in lines if line.startswith("#")))
        + "\n"
        + "\n".join(line for line in lines if not line.startswith("#"))
    )


def numbers() -> str:
    """The text of peertalk/_numbers.py: each enumerator and limit of the core's headers, which all
    are plain integers. Of a limit that depends on the build it has the standard one, which
    pt_config.h says last."""
    table = {}
    for header in CORE:
        if header != "core/pt_assert.h":
            text = re.sub(r"/\*.*?\*/", "", (ROOT / "csrc" / header).read_text(), flags=re.S)
            table |= dict(re.findall(r"\bPT_(\w+)(?: =\s+|[ \t]+)(-?\d\w*)\b", text))
    return NUMBERS_HEAD + "".join(f"{name} = {number}\n" for name, number in table.items())


def make_ffi(name: str, root: Path = Path()) -> FFI:
    """An FFI that compiles to peertalk._core.<name>; name is "_standard", "_lowmem" or "_sim".
    root: where csrc lies for the compiler."""
    kind = os.environ.get("PEERTALK_BUILD", "")
    if kind not in FLAGS:
        raise SystemExit(
            f"PEERTALK_BUILD={kind!r}: use one of {', '.join(sorted(FLAGS)[1:])}, none, or "
            "leave it unset"
        )
    sanitizers = [flag for flag in FLAGS[kind] if flag.startswith("-fsanitize")]
    ffi = FFI()
    csrc = ROOT / "csrc"
    is_sim = name == "_sim"
    headers, folders = HEADERS["_sim" if is_sim else "core"], FOLDERS["_sim" if is_sim else "core"]
    for header in headers:
        ffi.cdef(declarations((csrc / header).read_text(), is_sim and header in CORE))
    sources = sorted(
        str(root / path.relative_to(ROOT))
        for folder in folders
        for path in (csrc / folder).glob("*.c")
    )
    ffi.set_source(
        f"peertalk._core.{name}",
        "".join(f'#include "{Path(header).name}"\n' for header in headers),
        sources=sources,
        # a changed header builds anew
        depends=[str(root / path.relative_to(ROOT)) for path in sorted(csrc.glob("*/*.h"))],
        include_dirs=[str(root / "csrc" / folder) for folder in folders],
        define_macros=[("Py_LIMITED_API", "0x030B0000")]
        + ([("PT_LOWMEM", "1")] if name == "_lowmem" else []),
        extra_compile_args=[
            "-std=c11",
            "-fvisibility=hidden",
            *FLAGS[kind],
            *(SECTIONS if is_sim else ()),
        ],
        extra_link_args=[*(UNUSED_OUT if is_sim else ()), *sanitizers],
        py_limited_api=True,
    )
    return ffi


def modules() -> list[str]:
    """Names of the extension modules that this environment asks for."""
    if os.environ.get("PEERTALK_BUILD") == "none" or sys.implementation.name != "cpython":
        return []  # the border's native functions are CPython's alone
    cores = ["_lowmem"] if os.environ.get("PT_LOWMEM") == "1" else ["_standard", "_lowmem"]
    return [*cores, "_sim"]


if "_standard" in modules():
    standard = make_ffi("_standard")
if "_lowmem" in modules():
    lowmem = make_ffi("_lowmem")
    sim = make_ffi("_sim")

if __name__ == "__main__":
    written = ROOT / "peertalk" / "_numbers.py"
    if not written.is_file() or written.read_text() != numbers():
        written.write_text(numbers())
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "peertalk" / "_core").resolve()
    for module in modules():
        with tempfile.TemporaryDirectory() as scratch:
            built = make_ffi(module, ROOT).compile(tmpdir=scratch)
            shutil.move(built, target / Path(built).name)
