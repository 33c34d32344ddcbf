"""Files of any size: `send_file.py receive FOLDER` on one computer, `send_file.py send FILE...` on
another. A picture is one message; a larger file goes in parts of 8 MiB, each one message."""

import asyncio
import hashlib
import json
import sys
from pathlib import Path, PureWindowsPath

import peertalk as pt

PART = 8 << 20  # bytes; a message may have 16 MiB, with the line that says what its bytes are


class ArrivingFile:
    def __init__(self, path: Path) -> None:
        self.path, self.size, self.digest = path, 0, hashlib.sha256()
        path.touch(exist_ok=False)  # never over what is there

    def take(self, name: str, offset: int, total: int, sha256: str, data: bytes) -> bool:
        """Write a part; true when the file is whole."""
        if (name, offset) != (self.path.name, self.size) or offset + len(data) > total:
            raise ValueError(f"{name!r}: no part is expected at byte {offset:,} of {total:,}")
        with self.path.open("ab") as file:
            file.write(data)
        self.size += len(data)
        self.digest.update(data)
        if self.digest.hexdigest() != sha256:  # of all bytes up to here
            raise ValueError(f"{name!r}: other bytes have come than were sent")
        whole = f", whole, sha256 {sha256}" if self.size == total else ""
        print(f"{name!r}: {self.size:,} of {total:,} bytes{whole}")
        return self.size == total


def unpacked(message: bytes) -> tuple[str, int, int, str, bytes]:
    header, _, data = message.partition(b"\n")
    match json.loads(header):
        case [str(name), int(offset), int(total), str(sha256)]:
            return PureWindowsPath(name).name, offset, total, sha256, data  # no / and no \
    raise ValueError("a message came that is no part of a file")


async def receive(folder: Path) -> None:
    """Take the files of one sender, until the sender leaves. What is not whole is removed."""
    file: ArrivingFile | None = None
    async with pt.Node("file-receiver") as node:
        sender = await node.wait_for("file-sender")
        try:
            async for message in sender.messages():
                part = unpacked(message.data)
                file = file or ArrivingFile(folder / part[0])
                if await asyncio.to_thread(file.take, *part):
                    file = None
                await sender.send("written")
            if file:
                raise ValueError(f"the sender left after {file.size:,} bytes of {file.path.name!r}")
        except (OSError, ValueError) as error:
            if sender.connected:
                await sender.send(str(error))
            raise
        finally:
            if file:
                file.path.unlink()


async def send(paths: list[Path]) -> None:
    """A part leaves when the one before is written: there is never more than one on its way."""
    async with pt.Node("file-sender") as node:
        receiver = await node.wait_for("file-receiver", timeout="60s")
        for path in paths:
            total, digest = path.stat().st_size, hashlib.sha256()
            with path.open("rb") as file:
                for offset in range(0, max(total, 1), PART):
                    data = await asyncio.to_thread(file.read, min(PART, total - offset))
                    digest.update(data)
                    header = json.dumps([path.name, offset, total, digest.hexdigest()])
                    await receiver.send(header.encode() + b"\n" + data, timeout="60s")
                    if (answer := (await node.receive(timeout="60s")).text) != "written":
                        raise ValueError(f"the receiver says: {answer}")
                    print(f"{path.name!r}: {offset + len(data):,} of {total:,} bytes are there")


if len(sys.argv) < 3 or sys.argv[1] not in ("receive", "send"):
    sys.exit(__doc__)
try:
    paths = [Path(name).resolve(strict=True) for name in sys.argv[2:]]
    asyncio.run(send(paths) if sys.argv[1] == "send" else receive(paths[0]))
except (OSError, ValueError, pt.PeerTalkError) as error:
    sys.exit(f"send_file.py: {error}")
