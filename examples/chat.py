"""A line chat for everybody on the network: chat.py NAME. End it with an empty line. With --demo
two nodes chat by themselves."""

import asyncio
import contextlib
import sys

import peertalk as pt


def show(message: pt.Message[pt.Peer]) -> None:
    print(f"{message.peer.name}: {message.data.decode(errors='replace')}")


async def say(node: pt.Node, line: str) -> None:
    """Send to all who are there; who has just left is not missed."""
    for peer in list(node.peers.values()):
        with contextlib.suppress(pt.PeerTalkError):
            await peer.send(line, timeout="2s")


async def listen(node: pt.Node) -> None:
    async for message in node.messages():
        show(message)


async def chat(name: str) -> None:
    async with pt.Node(name) as node:
        listening = asyncio.create_task(listen(node))
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            await say(node, line)
    await listening  # ends with the node


async def demo() -> None:
    async with pt.Node("alice") as alice, pt.Node("bob") as bob:
        await asyncio.gather(
            alice.wait_for("bob", timeout="5s"), bob.wait_for("alice", timeout="5s")
        )
        await say(alice, "is anybody here?")
        show(await bob.receive(timeout="5s"))
        await say(bob, "I am")
        show(await alice.receive(timeout="5s"))


if len(sys.argv) != 2:
    sys.exit(__doc__)
asyncio.run(demo() if sys.argv[1] == "--demo" else chat(sys.argv[1]))
