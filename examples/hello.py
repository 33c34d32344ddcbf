"""Two nodes in one process: one finds the other by its name and says hello."""

import asyncio

import peertalk as pt


async def main() -> None:
    async with pt.Node("alice") as alice, pt.Node("bob") as bob:
        peer = await alice.wait_for("bob", timeout="5s")
        await peer.send("hello")  # connects first

        message = await bob.receive(timeout="5s")
        print(f"{message.peer.name} says {message.text}")


asyncio.run(main())
