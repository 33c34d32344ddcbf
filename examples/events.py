"""What happens on the network, as values to match on: a guest comes, gets a message, and leaves."""

import asyncio

import peertalk as pt


async def visit() -> None:
    async with pt.Node("guest") as guest:
        message = await guest.receive(timeout="5s")
        print(f"  the guest reads {message.text!r} and leaves")


async def main() -> None:
    async with pt.Node("host") as host, host.events() as events:
        visiting = asyncio.create_task(visit())
        async for event in events:
            match event:
                case pt.PeerFound(peer):
                    print(f"{peer.name} was found")
                    await peer.send("welcome")
                case pt.PeerConnected(peer):
                    print(f"{peer.name} is connected")
                case pt.Sent(peer, first, last):
                    print(f"messages {first} to {last} to {peer.name} have left")
                case pt.Failed(peer, first, last, outcome):
                    print(f"messages {first} to {last} to {peer.name} have not: {outcome.value}")
                case pt.PeerDisconnected(peer, error):
                    print(f"{peer.name} is disconnected: {error or 'in good order'}")
                case pt.PeerLost(peer, reason):
                    print(f"{peer.name} is gone: {reason.value}")
                    break
        await visiting


asyncio.run(main())
