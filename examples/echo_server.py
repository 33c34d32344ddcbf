"""An echo server for byte streams, and two callers of it: `python echo_server.py`. With
`python echo_server.py serve 7000` it serves others until Ctrl-C: try `nc localhost 7000`."""

import asyncio
import sys

from peertalk.net import Listener, Stream


async def echo(stream: Stream) -> None:
    async for data in stream:  # whatever has come, until the other side ends its half
        await stream.write_all(data)


async def call(address: tuple[str, int], name: str) -> None:
    async with await Stream.connect(address, timeout=5) as stream:
        await stream.write_all(f"hello from {name}\n".encode())
        line = await stream.readuntil(b"\n", timeout=5)
        print(f"{name} heard: {line.decode().strip()}")


async def demo() -> None:
    async with await Listener.bind("127.0.0.1:0") as listener:
        serving = asyncio.create_task(listener.serve(echo))
        await asyncio.gather(*(call(listener.local_addr, name) for name in ("ada", "bob")))
        serving.cancel()


async def serve(port: str) -> None:
    async with await Listener.bind(f":{port}") as listener:
        await listener.serve(echo)


asyncio.run(serve(sys.argv[2]) if sys.argv[1:2] == ["serve"] else demo())
