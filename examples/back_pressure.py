"""What a sender sees of a receiver that takes nothing: queues fill, send() waits, and when messages
are taken again all of them arrive."""

import asyncio

import peertalk as pt


async def main() -> None:
    async with (
        pt.Node("sender", send_queue_size=64) as sender,
        pt.Node("reader", receive_queue_bytes="64KiB") as reader,
    ):
        peer = await sender.connect(reader.address, timeout="5s")
        data = bytes(peer.max_message)
        accepted = 0
        try:
            while True:
                peer.send_nowait(data)
                accepted += 1
                await asyncio.sleep(0)  # the nodes work while we wait
        except pt.WouldBlock:
            print(
                f"no room after {accepted} messages: the queue is full to {peer.queue.pressure} %"
            )

        # waits where send_nowait() refuses
        waiting = asyncio.create_task(peer.send("the last one"))
        taken = 0
        async for message in reader.messages():
            taken += 1
            if message.data == b"the last one":
                break
        await waiting
        print(
            "all messages arrived"
            if taken == accepted + 1
            else f"{taken} of {accepted + 1} messages arrived"
        )


asyncio.run(main())
