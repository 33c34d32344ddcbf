"""What matters most goes first: an alarm past a long transfer, only the newest position, and
datagrams for what may be lost.

python examples/game.py
"""

import asyncio

import peertalk as pt


async def main() -> None:
    async with pt.Node("server") as server, pt.Node("player") as player:
        peer = await player.wait_for("server", timeout=10)
        await peer.connect()
        for part in range(250):
            peer.send_nowait(b"map %d" % part + bytes(4000), priority=pt.Priority.LOW)
        for x in range(100):
            peer.send_nowait(b"at %d" % x, key="position", priority=pt.Priority.HIGH)
        peer.send_nowait(b"alarm", priority=pt.Priority.CRITICAL)
        peer.send_nowait(b"done", priority=pt.Priority.LOW)

        before, positions = [], []
        while (data := (await server.receive(timeout=10)).data) != b"done":
            if data.startswith(b"map"):
                before.append(data)
            elif data.startswith(b"at"):
                positions.append(data)
            else:
                print("the alarm overtook", 250 - len(before), "parts of the map")
        print(
            len(before),
            "parts of the map,",
            len(positions),
            "of 100 positions, the last one",
            positions[-1].decode(),
        )

        player.send_datagram(peer, b"tick")
        print("a datagram says", (await server.receive_datagram(timeout=10)).data)
        print("the way there and back takes", f"{await peer.ping() * 1000:.1f} ms")


asyncio.run(main())
