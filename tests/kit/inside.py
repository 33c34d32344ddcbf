"""The one way of the tests into a node, for what the public API does not show, with the reason.

What stats(), memory, queue, events, repr() and the log tell is asked there.
"""

from __future__ import annotations

from typing import Any

import peertalk as pt


def is_open(node: Any) -> bool:
    """Whether a node takes calls: started, not closed, and not being closed. Public: who is known
    is told by no other."""
    try:
        return node.peers is not None
    except pt.InvalidState:
        return False


def is_closed(node: Any) -> bool:
    """Whether all of a node is closed, not only begun to be. Public: its repr() says so."""
    return repr(node).endswith(" closed>")


def engine_of(node: Any) -> Any:
    """The engine of a node, which outlives the node's end: for tests of its parts, whose words are
    not public, and for what no user may do."""
    return node._transport


def connections_of(node: Any) -> list[Any]:
    """All connections of a node: stats() counts them, and not those that are still being made."""
    return list(engine_of(node).connections.by_tag.values())


def places_of(node: Any) -> int:
    """How many connections a node has room for, more than the peers that it was told to have."""
    return int(engine_of(node).connections.max_connections)


def end_connection(node: Any, connection: Any, error: BaseException | None) -> None:
    """End a connection at once, as if it were broken at this end: no user can."""
    engine_of(node).switchboard._end(connection, error)


def buffers_in_use(node: Any) -> int:
    """Buffers of the pool that are lent: memory counts those that lie ready, too."""
    return int(engine_of(node).loop.pool.statistics().in_use)


def fail_at(node: Any, allocation: int) -> None:
    """From now on the C side gets no memory the next time but so many; 0: always. No user can."""
    engine_of(node).loop.pool.fail_at(allocation)


def receivers_of(node: Any) -> int:
    """How many calls wait for a message of anybody: a task does not say that it has got there."""
    return len(engine_of(node).inbox.waiters)


def datagram_port(node: Any) -> int:
    """The UDP port of a node that only peers learn, from what it announces."""
    return int(engine_of(node).mailbox.port)


def crowd(node: Any, place: int) -> int:
    """Have one worker of a node take all connections that can be moved; how many were. No user can:
    rebalance() moves them apart."""

    def gather(engine: Any) -> int:
        workers = engine.workers._workers
        taker = workers[place % len(workers)] if workers else None
        return sum(link.move(taker) for worker in workers for link in list(worker._links))

    return int(node._do(gather))
