"""A file server for HTTP/1.0: `python http_files.py FOLDER PORT` serves the files of a folder until
Ctrl-C. Without arguments it serves its own folder, fetches itself, and says how long it is."""

import asyncio
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from peertalk.errors import EndOfStream, MessageTooLarge
from peertalk.net import Listener, Stream

ROOT = Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parent).resolve()


async def answer(stream: Stream, status: str, size: int = 0) -> None:
    head = f"HTTP/1.0 {status}\r\nContent-Length: {size}\r\n\r\n"
    await stream.write_all(head.encode(), timeout=10)


async def send_file(stream: Stream, path: Path) -> None:
    with path.open("rb") as file:
        await answer(stream, "200 OK", path.stat().st_size)
        while part := file.read(65_536):
            await stream.write_all(part, timeout=10)  # as fast as the other side reads


async def serve(stream: Stream) -> None:
    try:
        head = await stream.readuntil(b"\r\n\r\n", limit=8_192, timeout=10)
    except EndOfStream:
        return
    except MessageTooLarge:
        await answer(stream, "431 Request Header Fields Too Large")
        return
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(words) != 3 or words[0] != "GET":
        await answer(stream, "501 Not Implemented")
        return
    path = (ROOT / unquote(urlsplit(words[1]).path).lstrip("/")).resolve()
    if not path.is_relative_to(ROOT) or not path.is_file():
        await answer(stream, "404 Not Found")
        return
    await send_file(stream, path)
    await stream.write_eof()


async def fetch(address: tuple[str, int], name: str) -> None:
    async with await Stream.connect(address) as stream:
        await stream.write_all(f"GET /{name} HTTP/1.0\r\n\r\n".encode())
        head = await stream.readuntil(b"\r\n\r\n")
        size = sum([len(data) async for data in stream])
        print(f"{head.split(b' ', 1)[1][:6].decode()}: {name} has {size:,} bytes")


async def main() -> None:
    async with await Listener.bind(f"127.0.0.1:{(sys.argv[2:] or ['0'])[0]}") as listener:
        serving = asyncio.create_task(listener.serve(serve))
        await (serving if sys.argv[1:] else fetch(listener.local_addr, Path(__file__).name))
        serving.cancel()


asyncio.run(main())
