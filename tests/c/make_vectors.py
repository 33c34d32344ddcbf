"""Write the golden vectors as C tables: make_vectors.py FOLDER makes FOLDER/vectors_<format>.h of
each tests/vectors/<format>.json that C tests read.

The shapes of the rows are in vectors.h. What a connection does with a stream of bytes is worked out
here, by a reader of its own in a few lines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
OPS = {"encode+decode": "VECTOR_BOTH", "decode": "VECTOR_DECODE", "encode": "VECTOR_ENCODE"}
Case = dict[str, Any]


def c_bytes(text: str) -> str:
    """A vector_bytes of hex digits."""
    if not text:
        return "{NULL, 0}"
    data = bytes.fromhex(text)
    return f"{{(const uint8_t[]){{{','.join(map(str, data))}}}, {len(data)}}}"


def row(**fields: object) -> str:
    return "    {" + ", ".join(f".{name} = {value}" for name, value in fields.items()) + "},\n"


def common(case: Case) -> dict[str, object]:
    """What most formats share; a code that the file does not give is its name."""
    return {
        "id": json.dumps(case["id"]),
        "op": OPS[case["op"]],
        "code": case["error"],
        "bytes": c_bytes(case.get("hex", "")),
    }


def crc(case: Case) -> str:
    return row(id=json.dumps(case["id"]), input=c_bytes(case["input"]), crc=case["crc"])


def frame(case: Case) -> str:
    fields = case.get("fields", {})
    payload = fields.get("payload", "")
    values = {
        "payload": c_bytes(payload),
        "payload_len": fields.get("payload_len", len(payload) // 2),
        "type": fields.get("type", 0),
        "flags": fields.get("flags", 0),
        "sequence": fields.get("sequence", 0),
        "input_flags": case.get("input", fields).get("flags", 0),
        "is_compact": int(case.get("is_compact", False)),
    }
    return row(**common(case), **values)


def discovery(case: Case) -> str:
    fields = case.get("fields", {})
    name = fields.get("name_hex", "")
    values = {
        "name": c_bytes(name),
        "size": case.get("buffer_size", len(case.get("hex", "")) // 2),
        "flags": fields.get("flags", 0),
        "port": fields.get("sender_port", 0),
        "type": fields.get("type", 0),
        "transports": fields.get("transports", 0),
        "name_len": fields.get("name_len", len(name) // 2),
    }
    return row(**common(case), **values)


def capability(case: Case) -> str:
    names = ("max_message", "preferred_chunk", "buffer_pressure", "flags")
    values = {
        part: "{" + ", ".join(str(case.get(part, {}).get(name, 0)) for name in names) + "}"
        for part in ("input", "decoded")
    }
    return row(**common(case), **values)


def udp(case: Case) -> str:
    fields = case.get("fields", {})
    return row(
        **common(case),
        payload=c_bytes(fields.get("payload", "")),
        port=fields.get("sender_port", 0),
    )


def fragment_header(case: Case) -> str:
    fields = case.get("fields", {})
    values = {
        name: fields.get(other, 0)
        for name, other in (
            ("message_id", "message_id"),
            ("total_len", "total_length"),
            ("offset", "offset"),
        )
    }
    return row(**common(case), **values, flags=fields.get("flags", 0))


def crc_by_bits(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x8408 if crc & 1 else 0)
    return crc


def tcp_stream(case: Case) -> str:
    """Read the stream as the protocol says: frames until one is bad or not whole; here compact ones
    are understood."""
    data = bytes.fromhex(case["sent"])
    code, count, largest = "PT_OK", 0, 0
    while code == "PT_OK":
        compact = data[:1] == b"P" and data[1:2] not in (b"", b"T")
        header_size, trailer_size = (4, 0) if compact else (10, 2)
        if len(data) < header_size:
            break
        type = data[1] >> 4 if compact else data[5]
        payload_len = int.from_bytes(data[header_size - 2 : header_size], "big")
        whole = header_size + payload_len + trailer_size
        if not compact and data[:4] != b"PTMG":
            code = "PT_ERR_MAGIC"
        elif not compact and data[4] != 1:
            code = "PT_ERR_VERSION"
        elif not 1 <= type <= 7:
            code = "PT_ERR_INVALID_PARAM"
        elif payload_len > 8192:
            code = "PT_ERR_MESSAGE_TOO_LARGE"
        elif len(data) < whole:
            break
        elif not compact and crc_by_bits(data[: whole - 2]) != int.from_bytes(
            data[whole - 2 : whole], "big"
        ):
            code = "PT_ERR_CRC"
        else:
            count, largest, data = count + 1, max(largest, payload_len), data[whole:]
    return row(
        id=json.dumps(case["id"]),
        sent=c_bytes(case["sent"]),
        code=code,
        frame_count=count,
        largest_payload=largest,
    )


def reassembly(case: Case) -> str:
    """Steps in a table of their own rows: code, payload, message."""
    steps = ", ".join(
        f"{{{step['code']}, {c_bytes(step['payload'])}, {c_bytes(step.get('message', ''))}}}"
        for step in case["steps"]
    )
    count = len(case["steps"])
    return row(
        id=json.dumps(case["id"]),
        capacity=case["capacity"],
        step_count=count,
        steps=f"(const vector_step[]){{{steps}}}",
    )


def batch(case: Case) -> str:
    kept = [
        message for index, message in enumerate(case["messages"]) if index not in case["refused"]
    ]
    messages = ", ".join(map(c_bytes, kept))
    return row(
        id=json.dumps(case["id"]),
        payload=c_bytes(case["payload"]),
        count=len(kept),
        messages=f"(const vector_bytes[]){{{messages}}}",
    )


FORMATS: dict[str, tuple[str, Callable[[Case], str]]] = {
    "crc16": ("vector_crc16", crc),
    "crc32c": ("vector_crc32c", crc),
    "header": ("vector_frame", frame),
    "compact": ("vector_frame", frame),
    "frame": ("vector_frame", frame),
    "discovery": ("vector_discovery", discovery),
    "capability": ("vector_capability", capability),
    "udp": ("vector_udp", udp),
    "fragment_header": ("vector_fragment_header", fragment_header),
    "tcp_stream": ("vector_stream", tcp_stream),
    "reassembly": ("vector_reassembly", reassembly),
    "batch": ("vector_batch", batch),
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (shape, write) in FORMATS.items():
        cases = json.loads((VECTORS / f"{name}.json").read_text())["cases"]
        rows = "".join(write(case) for case in cases)
        text = (
            f"/* Written by make_vectors.py from tests/vectors/{name}.json. */\n#include "
            '"vectors.h"\n\n'
        )
        (folder / f"vectors_{name}.h").write_text(
            text + f"static const {shape} {name.upper()}_VECTORS[] = {{\n{rows}}};\n"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
