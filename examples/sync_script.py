"""Without asyncio: two threads, each with a node of its own, ask and answer."""

import threading

from peertalk.sync import Node


def answer() -> None:
    """Answer one question. The node works while one of its methods runs."""
    with Node("clerk") as node:
        question = node.receive(timeout=5)
        question.peer.send(question.text.upper(), timeout=5)


def main() -> None:
    clerk = threading.Thread(target=answer)
    clerk.start()
    with Node("customer") as node:
        node.wait_for("clerk", timeout=5).send("loud and clear?", timeout=5)
        reply = node.receive(timeout=5)
        print(f"{reply.peer.name} answers: {reply.text}")
    clerk.join()


main()
