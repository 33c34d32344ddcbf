"""The same front door without await: a Node that works while one of its methods runs, on the
caller's own thread.

There is no hidden thread and no hidden event loop. A node that is not called is silent: it hears,
answers and sends nothing until the next call; a program with a loop of its own (a game) calls
poll() in it. What send() accepted has been offered to the system when it returns.

A node belongs to the thread that holds its lock, which is each method's for as long as it runs.
Other threads may call any method: send_nowait never waits for the lock, the others get it when the
present turn ends.
"""

from .node import Event, Node, Peer, StreamOut

__all__ = ["Event", "Node", "Peer", "StreamOut"]
