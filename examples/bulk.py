"""Many small messages at once: send_many() on one side, batches() on the other."""

import asyncio
import time

import peertalk as pt

COUNT = 20_000


async def send(sender: pt.Node, address: tuple[str, int]) -> None:
    peer = await sender.connect(address, timeout="5s")
    await peer.send_many([b"message %d" % number for number in range(COUNT)])


async def main() -> None:
    async with pt.Node("sender") as sender, pt.Node("receiver") as receiver:
        start = time.perf_counter()
        sending = asyncio.create_task(send(sender, receiver.address))
        count = batches = 0
        async for batch in receiver.batches():  # what one peer sent and one turn brought
            count += len(batch.payloads)
            batches += 1
            if count == COUNT:
                break
        await sending
        rate = count / (time.perf_counter() - start)
        print(f"{count} messages in {batches} batches, {rate:,.0f} a second")


asyncio.run(main())
