"""Pass each connection on to another address: `python proxy.py 7000 example.local:80`, until
Ctrl-C. Without arguments it passes one conversation on, and says how much went by."""

import asyncio
import sys

from peertalk.net import Listener, Stream

passed = 0


async def copy(source: Stream, target: Stream) -> None:
    global passed
    async for data in source:
        await target.write_all(data)  # waits while the target has no room: the source waits, too
        passed += len(data)
    await target.write_eof()  # each half ends by itself


def towards(address: str):
    async def forward(caller: Stream) -> None:
        async with await Stream.connect(address, timeout=10) as target:
            await asyncio.gather(copy(caller, target), copy(target, caller))

    return forward


async def shout(stream: Stream) -> None:
    async for data in stream:
        await stream.write_all(data.upper())


async def demo() -> None:
    far, near = await Listener.bind("127.0.0.1:0"), await Listener.bind("127.0.0.1:0")
    async with far, near:
        forward = towards("{}:{}".format(*far.local_addr))
        serving = asyncio.gather(far.serve(shout), near.serve(forward))
        async with await Stream.connect(near.local_addr) as stream:
            await stream.write_all(b"is anybody there?")
            print((await stream.readexactly(17)).decode(), f"({passed} bytes passed)")
    await serving


async def main(port: str, address: str) -> None:
    async with await Listener.bind(f":{port}") as listener:
        await listener.serve(towards(address))


asyncio.run(main(*sys.argv[1:]) if sys.argv[1:] else demo())
