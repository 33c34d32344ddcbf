"""A compiled core, bound: the only way to ffi and lib, for the pure functions of codec.py and the
handles beside it.

What is called once a message or once a turn is one of the border's native functions, which CPython
alone has: no compiled core is built for another interpreter.
"""

from __future__ import annotations

import struct
import types
from collections.abc import Callable
from typing import Any, TypeAlias

from peertalk import errors

Data: TypeAlias = bytes | bytearray | memoryview

PLATFORMS = {
    "posix": "pt_posix_ops",
    "posix_plain": "pt_posix_plain_ops",
    "posix_worker": "pt_posix_worker_ops",
    "mactcp": "pt_mactcp_ops",
    "opentransport": "pt_ot_ops",
    "mactcp_sync": "pt_mactcp_sync_ops",
    "opentransport_sync": "pt_ot_sync_ops",
}
"""Each platform, by the function of the core or of simulation() that gives its table."""
_LETTERS = {"uint64_t": "Q", "uint32_t": "I", "int32_t": "i", "uint8_t": "B"}


def simulation() -> Any:
    """The extension module of the simulated network and the classic worlds on it: one for all
    cores, which a program that only talks never loads."""
    import peertalk._core._sim as module

    return module


def moved(source: Any, pointer: Any, target: Any, kind: str) -> Any:
    """A pointer of one module as another has it, and of that kind there."""
    return target.cast(kind, int(source.cast("uintptr_t", pointer)))


class Binding:
    """One compiled core: its module, its result codes, its platforms, and the checks that every
    call needs.

    Args:
        name: "standard" or "lowmem".

    Raises:
        ImportError: it was not built.
    """

    def __init__(self, name: str) -> None:
        # written out, so that what packs a program into one file finds them
        if name == "standard":
            import peertalk._core._standard as module
        elif name == "lowmem":
            import peertalk._core._lowmem as module
        else:
            raise ImportError(f"there is no compiled core {name!r}")
        self.name = name
        self.ffi = ffi = module.ffi
        self.lib = lib = module.lib
        self.crc_name: str = ffi.string(lib.pt_crc16_name()).decode()
        self.assertions = bool(lib.PT_ASSERTIONS)
        self.limits = (
            lib.PT_FRAME_MAX_PAYLOAD,
            lib.PT_POSIX_SLOT_SIZE,
            lib.PT_POSIX_PIPELINE_DEPTH,
            lib.PT_RECEIVE_BUFFER_SIZE,
            lib.PT_MAX_PEERS,
            lib.PT_MESSAGE_MAX_PAYLOAD,
            lib.PT_SLOT_BUFFER_SIZE,
            lib.PT_SEND_PIPELINE_DEPTH,
        )
        self.border = border = types.ModuleType(f"peertalk._core.{name}_border")
        if lib.pt_border_attach(ffi.cast("void *", id(border))) != 0:
            raise ImportError(f"the native functions of the {name} core cannot be attached")
        self._crc16: Callable[..., int | None] = border.crc16
        self._crc32c: Callable[..., int | None] = border.crc32c
        self._encode_frame: Callable[..., bytes | None] = border.encode_frame
        self._decode_frame: Callable[..., tuple[int, int, int, bytes] | None] = border.decode_frame
        self.put_frame: Callable[..., int | None] = border.put_frame
        fields = "=" + "".join(
            _LETTERS[field.type.cname] for _, field in ffi.typeof("pt_event").fields
        )
        padding = ffi.sizeof("pt_event") - struct.calcsize(fields)
        self._event = struct.Struct(f"{fields}{padding}x")

    def platform(self, name: str) -> Any:
        """The table of a platform, which describes it."""
        table = PLATFORMS[name]
        if hasattr(self.lib, table):
            return getattr(self.lib, table)()
        sim = simulation()
        return moved(sim.ffi, getattr(sim.lib, table)(), self.ffi, "pt_platform_ops *")

    def platforms(self) -> dict[str, dict[str, int]]:
        """What each world has: 1 for each entry that is filled in, ticks_per_second, and whether it
        is simulated."""
        entries = (
            "tcp_send",
            "tcp_send_async",
            "poll_send_completions",
            "wait_send_completions",
            "send_slots_available",
        )
        worlds = {name: self.platform(name) for name in PLATFORMS}
        return {
            name: {
                **{entry: int(getattr(ops, entry) != self.ffi.NULL) for entry in entries},
                "ticks_per_second": ops.ticks_per_second,
                "simulated": ops.simulated,
            }
            for name, ops in worlds.items()
        }

    # Codes

    def strerror(self, code: int) -> str:
        """A short English text for a result code."""
        return str(self.ffi.string(self.lib.pt_strerror(code)).decode())

    def error_name(self, code: int) -> str:
        """The name of a result code in the C headers, "PT_ERR_UNKNOWN" for a number that is
        none."""
        return str(self.ffi.string(self.lib.pt_error_name(code)).decode())

    def fault(self, code: int, what: str) -> errors.PeerTalkError:
        """The exception for a call that returned a code."""
        return errors.from_code(code, f"{what}: {self.strerror(code)} ({self.error_name(code)})")

    def bad(self, code: int, what: str, data_len: int) -> errors.ProtocolError:
        """The exception for bytes that a decoder refused."""
        return errors.from_decoder(
            code, f"{what} of {data_len:,} bytes: {self.strerror(code)} ({self.error_name(code)})"
        )

    def flat(self, data: Data) -> Any:
        """A C view of any contiguous buffer; TypeError for anything else. It must be kept while C
        reads it."""
        try:
            return self.ffi.from_buffer("uint8_t[]", data)
        except (BufferError, ValueError):
            raise TypeError("a contiguous buffer of bytes is needed") from None

    def limited(self, what: str, value: int, limit: int) -> int:
        """value if it is 0 to limit.

        Raises:
            InvalidArgument: it is not; WrongType when it is no number.
        """
        if not isinstance(value, int):
            raise errors.WrongType(
                f"{what} is a {type(value).__name__}: give a number from 0 to {limit:,}"
            )
        if not 0 <= value <= limit:
            raise errors.InvalidArgument(f"{what} is {value:,}: it must be 0 to {limit:,}")
        return value

    def kind(self, what: str, value: int, largest: int) -> int:
        """value if it is a type from 1 to largest."""
        if not isinstance(value, int) or not 1 <= value <= largest:
            raise errors.InvalidArgument(
                f"type of a {what} is {value!r}: it must be 1 to {largest}"
            )
        return value

    def frames_in(self, plain: Any) -> Any:
        """The frames that a plain sink recorded, as tuples of the fields of pt_event."""
        event = self._event
        return event.iter_unpack(self.ffi.buffer(plain.events, plain.count * event.size))
