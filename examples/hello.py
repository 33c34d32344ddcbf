"""Say hello from one terminal to another: `python hello.py alice`, and `python hello.py bob`."""

import asyncio
import sys

import peertalk as pt


async def main(name: str, other: str) -> None:
    async with pt.Node(name) as node:  # from here on others can find this program
        peer = await node.wait_for(other)  # until the other program is found
        await peer.send(f"hello, this is {name}")  # connects first

        message = await node.receive()
        print(f"{message.peer.name} says: {message.text}")


name = sys.argv[1]
asyncio.run(main(name, "alice" if name == "bob" else "bob"))
