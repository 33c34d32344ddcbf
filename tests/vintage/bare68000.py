"""A true 68000: the core compiled for it without a C library, its size, its deepest stack, and the
instructions that one message costs.

Stack: gcc tells of each function how much it uses (saved registers, locals, pushed arguments) and
whom it calls. The deepest chain of calls is walked here; each call adds its return address of 4
bytes. Where a call goes through a pointer, POINTED says what it may reach. Platform and memory
source are those of tests/c/send68k.c, which do next to nothing: what others need comes on top. The
program paints its stack, so that the sum can be held against what was used.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from shell import BUILD, C_TESTS, CORE, WARNINGS, Failed, fresh, run, stems

COMPILER = "m68k-linux-gnu-gcc"
LEAVES_OUT = (
    "-DPT_LOWMEM",
    "-DPT_ATOMICS=0",
    "-DPT_NOTES=0",
    "-DPT_WIDE=0",
    "-DPT_POOL_COUNTS=0",
    "-DPT_BORROWED_SLOTS=0",
    "-DPT_PROMPT=0",
    "-DPT_WORKERS=0",
)
FLAGS = ("-m68000", "-Os", "-ffreestanding", "-fno-pic", *LEAVES_OUT)
SIZE_LIMIT = 20 * 1024
RETURN_ADDRESS = 4
POINTED = {
    "pt_ingest.c": (
        "read_message_header",
        "verify_message",
        "read_compact_header",
        "verify_nothing",
        "full_or_compact",
        "plain_frame",
    ),
    "pt_ingest_inside.h": ("plain_frame",),
    "pt_pool.c": ("allocate", "release"),
    **dict.fromkeys(
        ("pt_context.c", "pt_link.c", "pt_send.c", "pt_read.c", "pt_loop.c"),
        ("take", "let_go", "receive", "watch", "forget", "wait", "clock"),
    ),
}
"""What a function of that file may call through a pointer."""
LEFT_OUT = ("pt_crc32c.c",)
"""Files of the core that no classic world calls."""
SEND, TURN = "part_send", "part_turn"
"""The parts of send68k.c that are counted."""


def compile_all(folder: Path) -> list[Path]:
    """Objects of the core in folder, with gcc's call graphs beside them, and those of the two
    programs."""
    own = run(COMPILER, "-print-file-name=include").strip()
    flags = (
        *WARNINGS,
        *FLAGS,
        "-nostdinc",
        "-isystem",
        own,
        "-isystem",
        str(C_TESTS / "bare"),
        "-I",
        str(CORE),
        "-fcallgraph-info=su",
    )
    core = [path for path in sorted(CORE.glob("*.c")) if path.name not in LEFT_OUT]
    run(COMPILER, *flags, "-c", *core, C_TESTS / "freestanding.c", cwd=folder)
    run(
        COMPILER,
        *flags,
        "-fno-builtin",
        "-fno-tree-loop-distribute-patterns",
        "-c",
        C_TESTS / "bare68k.c",
        C_TESTS / "send68k.c",
        cwd=folder,
    )
    objects = [folder / name for name in stems(core)]
    for program in ("freestanding", "send68k"):
        link = (
            COMPILER,
            "-m68000",
            "-nostdlib",
            "-static",
            "-no-pie",
            *objects,
            "bare68k.o",
            f"{program}.o",
            "-o",
            program,
        )
        run(*link, cwd=folder)
    if "m68000" not in run("readelf", "-h", folder / "send68k"):
        raise Failed("send68k is not a program for a 68000")
    return objects


def sizes(objects: list[Path]) -> dict[str, int]:
    """Bytes of code, constants and initial values of each file of the core."""
    lines = run(f"{COMPILER.removesuffix('gcc')}size", *objects).splitlines()[1:]
    return {
        Path(line.split()[5]).stem: int(line.split()[0]) + int(line.split()[1]) for line in lines
    }


class Calls:
    """Who calls whom, and how much stack each takes, out of gcc's .ci files."""

    def __init__(self, files: list[Path]) -> None:
        self.own: dict[str, int] = {}
        self.file: dict[str, str] = {}
        self.targets: dict[str, set[str]] = {}
        for path in files:
            for line in path.read_text().splitlines():
                node = re.match(
                    r'node: \{ title: "([^"]+)" label: "[^"]*\\n'
                    r'(?:[^"]*/)?(\w+\.[ch]):\d+:\d+\\n(\d+) bytes',
                    line,
                )
                edge = re.match(r'edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"', line)
                if node:
                    self.own[node[1]], self.file[node[1]] = int(node[3]), node[2]
                elif edge:
                    self.targets.setdefault(edge[1], set()).add(edge[2])
        by_name = {title.rsplit(":")[-1]: title for title in self.own}
        missing = [name for names in POINTED.values() for name in names if name not in by_name]
        if missing:
            raise Failed(
                f"POINTED in {Path(__file__).name} names functions that do not exist: {missing}"
            )
        self.pointed = {file: [by_name[name] for name in names] for file, names in POINTED.items()}

    def reachable(self, title: str) -> list[str]:
        """Whom this function calls, through pointers too."""
        direct = self.targets.get(title, set())
        through = (
            self.pointed.get(self.file.get(title, ""), []) if "__indirect_call" in direct else []
        )
        if "__indirect_call" in direct and not through:
            raise Failed(
                f"{title} calls through a pointer: POINTED in {Path(__file__).name} must say "
                f"what {self.file.get(title)} may reach"
            )
        return sorted((direct | set(through) - {title}) - {"__indirect_call"})

    def deepest(self, title: str, path: tuple[str, ...] = ()) -> tuple[int, tuple[str, ...]]:
        """Bytes of the deepest chain that starts with a call of this function, and the chain."""
        if title in path:
            raise Failed(f"the core calls itself: {' > '.join((*path, title))}")
        depth, chain = max(
            (self.deepest(callee, (*path, title)) for callee in self.reachable(title)),
            default=(0, ()),
        )
        return RETURN_ADDRESS + self.own.get(title, 0) + depth, (title.rsplit(":")[-1], *chain)


def count_instructions(folder: Path) -> tuple[Counter[str], Counter[str], int]:
    """Instructions of each function in the last message's two parts, send and turn, and the stack
    that the program saw used."""
    log = folder / "trace"
    emulator = (
        "qemu-m68k-static",
        "-cpu",
        "m68000",
        "-singlestep",
        "-d",
        "nochain,exec",
        "-D",
        log,
        folder / "send68k",
    )
    painted = int(run(*emulator))
    parts: list[tuple[str, Counter[str]]] = []
    for line in log.read_text().splitlines():
        if not line.startswith("Trace"):
            continue
        name = line.rsplit("] ", 1)[1]
        if name in (SEND, TURN) and (not parts or parts[-1][0] != name):
            parts.append((name, Counter()))
        if name == "main" and parts:
            parts.append(("", Counter()))
        if parts and parts[-1][0]:
            parts[-1][1][name] += 1
    log.unlink()
    counted = [part for part in parts if part[0]]
    if len(counted) < 4 or [name for name, _ in counted] != [SEND, TURN] * (len(counted) // 2):
        raise Failed(f"the trace has other parts than it should: {[name for name, _ in counted]}")
    return counted[-2][1], counted[-1][1], painted


def check() -> str:
    """Build, measure, and say it in one line; the tables go to build/vintage/68000.txt."""
    folder = fresh("68000")
    objects = compile_all(folder)
    run("qemu-m68k-static", "-cpu", "m68000", folder / "freestanding")

    size = sizes(objects)
    total = sum(size.values())
    calls = Calls(
        [folder / f"{path.stem}.ci" for path in objects]
        + [folder / "bare68k.ci", folder / "send68k.ci"]
    )
    core = [title for title in calls.own if title.startswith("pt_") and ":" not in title]
    depths = sorted(((*calls.deepest(title), title) for title in core), reverse=True)
    deepest, chain, _ = depths[0]
    send, turn, painted = count_instructions(folder)

    report = [f"bytes of code, constants and initial values (-m68000 -Os {' '.join(LEAVES_OUT)})"]
    report += [f"{count:8,}  {name}" for name, count in size.items()] + [
        f"{total:8,}  together; the limit is {SIZE_LIMIT:,}"
    ]
    report += [
        "",
        (
            "bytes of stack at the deepest, return addresses included; what a platform's own "
            "functions use comes on top"
        ),
    ]
    report += [f"{depth:8,}  {' > '.join(names)}" for depth, names, _ in depths[:12]]
    report += [
        (
            f"{painted:8,}  seen used by tests/c/send68k.c: a link opened, messages sent and "
            "reported, the link closed"
        )
    ]
    for title, part in (
        ("instructions of pt_link_send(), 1,024 bytes", send),
        ("instructions of the turn that reports it sent", turn),
    ):
        report += (
            ["", title]
            + [f"{count:8,}  {name}" for name, count in part.most_common()]
            + [f"{part.total():8,}  together"]
        )
    (BUILD / "68000.txt").write_text("\n".join(report) + "\n")

    if total > SIZE_LIMIT:
        raise Failed(
            f"the core has {total:,} bytes, the limit is {SIZE_LIMIT:,}; "
            "build/vintage/68000.txt says where"
        )
    if painted > calls.deepest("main")[0]:
        raise Failed(
            f"send68k used {painted} bytes of stack, and its deepest chain was said to have "
            f"{calls.deepest('main')[0]}"
        )
    both = send + turn
    crc, copied = (
        sum(count for name, count in both.items() if name.startswith(start))
        for start in ("pt_crc16", "mem")
    )
    return (
        f"core {total:,} of {SIZE_LIMIT:,} bytes; deepest stack {deepest:,} bytes ({chain[0]}); "
        f"1,024-byte message {both.total():,} instructions (CRC {crc:,}, copy and wipe {copied:,})"
    )
