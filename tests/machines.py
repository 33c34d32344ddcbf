"""Draws the state machines of the documentation from the tables in the code.

A machine is a table {(state, event): following state}, its keys and values members of enums. Those
of C are asked of a compiled core, state by state and step by step. MACHINES names the document that
shows it, the state in which it begins and its table. The drawing stands between two comments,
`<!-- machine: NAME -->` and `<!-- /machine -->`, as a Mermaid diagram. tests/test_docs.py holds the
documents against the tables; `python tests/machines.py` writes them anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from peertalk._core.binding import Binding
from peertalk.protocol import connections, peer, stream

DOCS = Path(__file__).resolve().parent.parent / "docs"


class Machine(NamedTuple):
    """document: file in docs/; start: the first state; table: from (state, event) to state."""

    document: str
    start: Enum
    table: Mapping[tuple[Any, Any], Any]


def compiled(noun: str) -> Machine:
    """A machine of the C core: the states of enum pt_NOUN_state, the steps of enum pt_NOUN_step,
    both numbered from 0, and where pt_NOUN_next() says that they lead."""
    binding = Binding("standard")

    def members(enum: str, prefix: str) -> list[Enum]:
        numbered = sorted(binding.ffi.typeof(f"enum pt_{noun}_{enum}").elements.items())
        names = [name.removeprefix(prefix) for _, name in numbered]
        return list(Enum(enum, {name: name.lower() for name in names}))

    states = members("state", f"PT_{noun}_".upper())
    table = {
        (state, step): states[following]
        for number, state in enumerate(states)
        for place, step in enumerate(members("step", f"PT_{noun}_STEP_".upper()))
        if (following := getattr(binding.lib, f"pt_{noun}_next")(number, place))
        != binding.lib.PT_NOWHERE
    }
    return Machine("architecture.md", states[0], table)


MACHINES = {
    "slot": compiled("slot"),
    "ingest": compiled("ingest"),
    "link": compiled("link"),
    "peer": Machine("protocol.md", peer.PeerState.DISCOVERED, peer._NEXT),
    "connection": Machine("protocol.md", connections.State.IDLE, connections._NEXT),
    "stream": Machine("protocol.md", stream.StreamState.READY, stream._NEXT),
}


def drawing(machine: Machine) -> str:
    """A Mermaid state diagram: one arrow for each pair of states, with all events that lead along
    it."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (state, event), following in machine.table.items():
        arrows.setdefault((state.name, following.name), []).append(event.value)
    lines = [
        f"    {state} --> {following}: {', '.join(events)}"
        for (state, following), events in arrows.items()
    ]
    left = {state for state, _ in arrows}
    lines += [
        f"    {following} --> [*]"
        for following in dict.fromkeys(following for _, following in arrows)
        if following not in left
    ]
    return "\n".join(
        ["```mermaid", "stateDiagram-v2", f"    [*] --> {machine.start.name}", *lines, "```", ""]
    )


def shown(name: str, text: str) -> re.Match[str] | None:
    """Where a document shows the machine; group 1 is the drawing."""
    return re.search(rf"<!-- machine: {name} -->\n(.*?)<!-- /machine -->", text, flags=re.S)


def redraw() -> None:
    """Write each drawing into its document."""
    for name, machine in MACHINES.items():
        path = DOCS / machine.document
        text = path.read_text()
        found = shown(name, text)
        if found is None:
            raise SystemExit(
                f"{path} has no place for the machine {name!r}: put <!-- machine: {name} --> "
                "and <!-- /machine --> on lines of it"
            )
        path.write_text(text[: found.start(1)] + drawing(machine) + text[found.end(1) :])


if __name__ == "__main__":
    redraw()
