"""A room that passes each line on to everybody else: `python line_chat.py` shows two guests, and
`python line_chat.py 7000` opens the room for `nc localhost 7000`, until Ctrl-C."""

import asyncio
import sys

from peertalk.errors import EndOfStream
from peertalk.net import Listener, Stream

room: dict[Stream, str] = {}


async def tell(line: str, but: Stream | None = None) -> None:
    for guest in set(room) - {but}:
        await guest.write_all(line.encode(), timeout=5)


async def welcome(stream: Stream) -> None:
    await stream.write_all(b"your name? ")
    name = (await stream.readuntil(b"\n")).decode(errors="replace").strip()
    room[stream] = name
    try:
        await tell(f"{name} is here\n", stream)
        while True:
            line = await stream.readuntil(b"\n")
            await tell(f"{name}: {line.decode(errors='replace')}", stream)
    except EndOfStream:
        pass  # this guest has left
    finally:
        del room[stream]
        await tell(f"{name} has left\n")


async def demo(address: tuple[str, int]) -> None:
    async with await Stream.connect(address) as ada:
        await ada.write_all(b"ada\n")
        async with await Stream.connect(address) as bob:
            await bob.write_all(b"bob\nhello, ada\n")
            print((await ada.readuntil(b"ada\n", timeout=5)).decode())


async def main() -> None:
    async with await Listener.bind(f"127.0.0.1:{(sys.argv[1:] or ['0'])[0]}") as listener:
        serving = asyncio.create_task(listener.serve(welcome))
        await (serving if sys.argv[1:] else demo(listener.local_addr))
        serving.cancel()


asyncio.run(main())
