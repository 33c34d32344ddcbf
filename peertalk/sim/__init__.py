"""Networks in a box: whole nodes on a simulated wire, asyncio on virtual time, everything from one
seed.

`run(main, seed=7)` makes a Network and runs `main(net)` on an event loop whose clock is the
network's. Nothing ever sleeps: when nobody can go on, the clock jumps to the next thing that
happens (an event of the network, a timer of a node, a timer of asyncio), so a minute of network
takes milliseconds. Nodes are the ones that applications use; only their world differs: sockets,
clock, instance ids and names come from the network.

Invariant: the same seed, program and C core give the same trace hash on every machine and Python.
Time is integer nanoseconds; nothing asks the wall clock, the system's randomness, its resolver or
its environment, and nothing is iterated whose order is not that of the calls. Never: opens a real
socket, starts a thread.
"""

from .loop import Deadlock, place_of, run, run_in
from .network import PLATFORMS, Clock, Network, Node, Trace

__all__ = [
    "Clock",
    "Deadlock",
    "Network",
    "Node",
    "PLATFORMS",
    "Trace",
    "place_of",
    "run",
    "run_in",
]
