"""The same front door without await: a Node whose methods wait on the caller's own thread.

A node has a worker, which moves bytes, and a control thread, which decides while no method runs: so
the node is found, answers and keeps its peers while the program computes. A method that waits turns
the node itself. With workers=0 there is no thread: a node that is not called hears, answers and
sends nothing until the next call, a program with a loop of its own (a game) calls poll() in it, and
what send() accepted has been offered to the system when it returns.

A node belongs to the thread that holds its lock, which is each method's for as long as it runs.
Other threads may call any method: send_nowait never waits for the lock, the others get it when the
present turn ends.
"""

from .node import Event, Node, Peer, StreamOut

__all__ = ["Event", "Node", "Peer", "StreamOut"]
