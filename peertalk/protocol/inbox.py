"""Messages that have arrived and wait to be taken, in order, in bounded memory.

What the loop delivers is kept as it came: one list of payloads for each link and turn, a Lot. Each
peer has a Queue of lots. Queues are emptied through outlets: the Inbox is the one for everybody and
takes from its queues in turn; a peer has an Outlet of its own while its messages alone are read.
Taking works on one lot in place, so that the consumers of an outlet share it and none can run off
with messages that it does not use. A lot counts in full until its last message is taken, and not a
moment longer.

There is one bound for all. When more waits than that the inbox is full, until half of it is free.
While it is full a link that brings something is paused, until there is room again or its outlet is
empty: whoever empties an outlet gets more, whatever fills the others. A link that brings nothing is
not paused, so its answers and its end are noticed; only when twice the bound waits, none is read.

The only message that waits at all, as in a conversation of question and answer, is kept by itself,
without a Lot and a Queue.

Invariant: total is the sum over all lots that are not used up, cost that of an outlet's, and a peer
(by its key: it may be known anew meanwhile) has a Queue while something of it waits or its messages
alone are read. Never: drops, reorders, blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from .connections import Connection
from .waiting import Waiters

P = TypeVar("P")
"""The kind of peer that messages are from."""

MESSAGE_COST = 64
"""Bytes charged for each message beside its payload: what CPython needs to hold it."""
_FLOODED = 2
"""Times the bound from which on no link is read, not even those that have brought nothing."""


class Lot(Generic[P]):
    """The payloads of one link and turn. Opened, the last one lies apart, so that whoever takes
    that knows; left is the iterator over the others, which all consumers share."""

    __slots__ = ("cost", "following", "last", "left", "payloads", "peer", "queue")

    left: Iterator[bytes]
    last: bytes

    def __init__(self, queue: Queue[P], peer: P, payloads: list[bytes], cost: int) -> None:
        self.queue = queue
        self.peer = peer
        self.payloads = payloads
        self.cost = cost
        self.following: Lot[P] | None = None

    def open(self) -> Lot[P]:
        """Be taken from."""
        payloads = self.payloads
        self.left = iter(payloads)  # alone holds them in a moment, and lets go with the last
        self.last = payloads[-1]
        del payloads[-1]
        self.payloads = []
        return self

    def close(self) -> Lot[P]:
        """Have what is left lie here as if it had just come. Whoever iterates comes to the end."""
        if not self.payloads:
            self.payloads = [*self.left, self.last]
        return self


class Queue(Generic[P]):
    """The lots of one peer, in order, through one outlet. A chain rather than a deque, which alone
    would be larger than all else that an idle peer costs."""

    __slots__ = ("_final", "cost", "first", "outlet", "peer")

    def __init__(self, peer: P, outlet: Outlet[P]) -> None:
        self.peer = peer
        self.outlet = outlet
        self.cost = 0
        """Of its lots, the one that is being taken from included."""
        self.first: Lot[P] | None = None
        self._final: Lot[P] | None = None

    def restore(self, lot: Lot[P]) -> None:
        """Put back a lot that was taken, before all others; its cost is counted still."""
        lot.following = self.first
        if self.first is None:
            self._final = lot
        self.first = lot

    def mend(self, current: Lot[P] | None) -> None:
        """Be what the chain of lots says. current: the one that its outlet is taking from."""
        self.cost = current.cost if current is not None and current.queue is self else 0
        lot, self._final = self.first, None
        while lot is not None:
            self.cost += lot.cost
            self._final, lot = lot, lot.following

    def __len__(self) -> int:
        """Messages that wait."""
        count, lot = 0, self.first
        while lot is not None:
            count += len(lot.payloads)
            lot = lot.following
        return count


class Outlet(Generic[P]):
    """Where messages are taken: from its queues in turn, a lot of each.

    cost: of what waits here. readers: who takes here, for one that is a peer's own. waiters: who
    waits for more. current: the lot that is being taken from. paused: connections whose links wait
    for room. told: connections that were told of a level above 0; when the cost has fallen below
    eases_at, on_ease is called. ended: nothing more will come, its peer is lost. came_singly: what
    came last was one message, and nothing waited before it.
    """

    __slots__ = (
        "_inbox",
        "_line",
        "_taking",
        "came_singly",
        "cost",
        "current",
        "eases_at",
        "ended",
        "on_ease",
        "paused",
        "readers",
        "told",
        "waiters",
    )

    def __init__(self, inbox: Inbox[P]) -> None:
        self._inbox = inbox
        self._line: deque[Queue[P]] = deque()
        """Queues from which something can be taken, each once."""
        self._taking: Lot[P] | None = None
        """What nothing else holds for a moment, while it is taken."""
        self.cost = 0
        self.current: Lot[P] | None = None
        self.ended = self.came_singly = False
        self.readers: dict[object, None] = {}
        self.waiters = Waiters()
        self.paused: dict[Connection, None] = {}
        self.told: dict[Connection, None] = {}
        self.eases_at = 0
        self.on_ease: Callable[[Outlet[P]], None] | None = None

    # Taking ---------------------------------------------------------------------------------------

    def open(self) -> Lot[P] | None:
        """The lot to take from now that there is no current one; None when there is nothing."""
        if not self._line:
            return None
        lot = self.current = self._next().open()
        self._taking = None
        return lot

    def take(self) -> tuple[P, bytes] | None:
        """One message, or None when there is none."""
        lot = self.current
        if lot is None:
            if not self._line:
                return None
            lot = self._next()
            if len(lot.payloads) == 1:  # as most are, where time counts
                self._used_up(lot)
                self._taking = None
                return lot.peer, lot.payloads[0]
            self.current = lot.open()
            self._taking = None
        for payload in lot.left:
            return lot.peer, payload
        self._taking, self.current = lot, None
        self._used_up(lot)
        self._taking = None
        return lot.peer, lot.last

    def take_lot(self) -> tuple[P, list[bytes]] | None:
        """What is left of one link and turn, never empty; None when there is none."""
        lot = self.current
        if lot is not None:
            self._taking, self.current = lot, None
            lot.close()
        elif self._line:
            lot = self._next()
        else:
            return None
        self._used_up(lot)
        self._taking = None
        return lot.peer, lot.payloads

    def reopen(self) -> None:
        """Who iterates over the current lot, if there is one, comes to its end, and looks here
        again. Nothing is lost, and the order stays."""
        if self.current is not None:
            self.current.close().open()

    def __bool__(self) -> bool:
        """Whether something is there to take."""
        return self.current is not None or bool(self._line)

    def _next(self) -> Lot[P]:
        line = self._line
        queue = line[0]
        self._taking = lot = queue.first
        assert lot is not None
        del line[0]
        if lot.following is not None:
            queue.first, lot.following = lot.following, None
            line.append(queue)
        else:
            queue.first = queue._final = None  # or the two would keep each other alive
        return lot

    def _used_up(self, lot: Lot[P]) -> None:
        cost, queue, inbox = lot.cost, lot.queue, self._inbox
        self.cost -= cost
        inbox.total -= cost
        queue.cost -= cost
        if not queue.cost and self is inbox:
            del inbox.queues[queue.peer]
        if inbox.full:
            inbox.settle(self)
        if self.eases_at:
            self.ease()

    # How full it is, for those who bring ----------------------------------------------------------

    @property
    def has_one(self) -> bool:
        """Whether one message waits here, and no more."""
        if self.current is not None or len(self._line) != 1:
            return False
        first = self._line[0].first
        return first is not None and first.following is None and len(first.payloads) == 1

    def level(self, before: int) -> int:
        """Pressure: how much of the bound waits here in quarters, 0 to 3, for one who was told
        `before`.

        It rises at each quarter and falls an eighth below it. So between two reports an eighth of
        the limit has gone in or out, and a cost that wavers about a quarter is not reported with
        each message.
        """
        eighths = self.cost * 8 // self._inbox.limit
        return max(min(3, eighths // 2), min(before, (eighths + 1) // 2))

    def watch(self, connection: Connection, level: int) -> None:
        """It was told of this level, 1 to 3: on_ease when that is no longer so."""
        self.told[connection] = None
        self.eases_at = max(self.eases_at, -(-(2 * level - 1) * self._inbox.limit // 8))

    def watched(self) -> Iterable[Connection]:
        """Those who were told; watch() begins anew."""
        told, self.told = self.told, {}
        self.eases_at = 0
        return told

    def ease(self) -> None:
        """Tell those who were told of more than waits now."""
        if self.cost < self.eases_at and self.on_ease is not None:
            self.on_ease(self)

    def pause(self, connection: Connection) -> None:
        """Its link is paused, until on_room."""
        if not self.paused:
            self._inbox.on_stall(self)
        self.paused[connection] = None


class Inbox(Outlet[P]):
    """All that a node has received and nobody has taken, and the outlet for everybody.

    Args:
        limit: cost in bytes above which it is full.
        on_room: called with an outlet whose paused links are to be read again.
        on_stall: called with an outlet when the first of its links is paused.
        on_settled: called when something that must_wait() need not wait any more, paused or not.
    """

    __slots__ = (
        "_alone",
        "_single",
        "flooded",
        "full",
        "limit",
        "on_room",
        "on_settled",
        "on_stall",
        "queues",
        "total",
    )

    def __init__(
        self,
        limit: int,
        on_room: Callable[[Outlet[P]], None],
        on_stall: Callable[[Outlet[P]], None] = lambda _: None,
        on_settled: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(self)
        self.limit = limit
        self.on_room = on_room
        self.on_stall = on_stall
        self.on_settled = on_settled
        self.total = 0
        self.full = False
        self.flooded = False
        """Twice the limit waits, since it was last not full."""
        self.queues: dict[P, Queue[P]] = {}
        self._alone: dict[Outlet[P], None] = {}
        """The outlets that are a peer's own."""
        self._single: tuple[P, list[bytes], int] | None = None
        """All that waits, with its cost, while it is one message and no peer has a Queue."""

    def put(self, peer: P, payloads: list[bytes], payload_bytes: int) -> Outlet[P]:
        """Add what one turn brought, one message at least; the list is ours from now on. Returns
        where it is taken: if the inbox is full now the link should be paused there."""
        cost = payload_bytes + MESSAGE_COST * len(payloads)
        if self._single is not None:
            self._unfold()
        elif not self.queues and len(payloads) == 1 and cost <= self.limit:
            self._single = peer, payloads, cost
            self.came_singly = True
            self.cost = self.total = cost
            if self.waiters._line:
                self.waiters.wake(1)
            return self
        self.came_singly = False
        queue = self.queues.get(peer)
        if queue is None:
            queue = self.queues[peer] = Queue(peer, self)
        outlet, count = queue.outlet, len(payloads)
        lot = Lot(queue, peer, payloads, cost)
        if queue._final is None:
            queue.first = queue._final = lot
            outlet._line.append(queue)  # it has something: whoever takes relies on that
        else:
            queue._final.following = lot
            queue._final = lot
        queue.cost += cost
        outlet.cost += cost
        self.total += cost
        if self.total > self.limit:
            self.full = True
        if outlet.waiters._line:
            outlet.waiters.wake(count)
        return outlet

    def take(self) -> tuple[P, bytes] | None:
        """As Outlet.take()."""
        single = self._single
        if single is None:
            return super().take()
        self._single = None
        self.cost = self.total = 0
        return single[0], single[1][0]

    def open(self) -> Lot[P] | None:
        """As Outlet.open()."""
        self._unfold()
        return super().open()

    def take_lot(self) -> tuple[P, list[bytes]] | None:
        """As Outlet.take_lot()."""
        self._unfold()
        return super().take_lot()

    def __bool__(self) -> bool:
        return self._single is not None or super().__bool__()

    @property
    def has_one(self) -> bool:
        """As Outlet.has_one."""
        self._unfold()
        return super().has_one

    def _unfold(self) -> None:
        """A single message waits in the Queue of its peer from now on. May be done twice."""
        if self._single is None:
            return
        peer, payloads, cost = self._single
        queue = self.queues.get(peer)
        if queue is None:  # else this was cut off
            queue = Queue(peer, self)
            queue.first = queue._final = Lot(queue, peer, payloads, cost)
            queue.cost = cost
            self.queues[peer] = queue
        if queue not in self._line:
            self._line.append(queue)
        self._single = None

    def outlet_of(self, peer: P) -> Outlet[P]:
        """Where messages of this peer are taken now."""
        queue = self.queues.get(peer)
        return self if queue is None else queue.outlet

    def must_wait(self, outlet: Outlet[P]) -> bool:
        """Whether a link that may bring something to this outlet is not to be read now."""
        return self.full and outlet.cost > 0

    def floods(self) -> bool:
        """Whether so much waits that all links must be paused; true once until there is room."""
        if self.flooded or self.total <= _FLOODED * self.limit:
            return False
        self.flooded = True
        return True

    def settle(self, outlet: Outlet[P]) -> None:
        """Something was taken from a full inbox, through this outlet."""
        if self.total * 2 <= self.limit:
            self.full = self.flooded = False
            for each in (self, *self._alone):
                if each.paused:
                    self.on_room(each)
            self.on_settled()
        elif not outlet.cost:
            if outlet.paused:
                self.on_room(outlet)
            self.on_settled()

    def lift(self, limit: int) -> None:
        """Have another limit; whoever waits for room has it, if there is."""
        self.limit = limit
        self.settle(self)

    # Of one peer alone ----------------------------------------------------------------------------

    def reserve(self, peer: P, reader: object, *, ended: bool) -> Outlet[P]:
        """Messages of this peer, those that wait included, are taken at an outlet of its own from
        now on; returns that. ended: no more will come. To be released by this reader."""
        self._unfold()
        queue = self.queues.get(peer)
        if queue is None:
            queue = self.queues[peer] = Queue(peer, self)
        try:
            if queue.outlet is self:
                outlet = Outlet(self)
                self._alone[outlet] = None
                self._move(queue, outlet)
            queue.outlet.ended = ended
            queue.outlet.readers[reader] = None
            return queue.outlet
        except BaseException:  # of a signal handler: nobody will read here alone
            self._end_alone(queue)
            raise

    def release(self, peer: P, reader: object) -> None:
        """This reader reads no more, or never did. After the last one what is left goes to
        everybody."""
        queue = self.queues.get(peer)
        if queue is None:
            return
        queue.outlet.readers.pop(reader, None)
        try:
            self._end_alone(queue)
        except BaseException:  # of a signal handler
            self._end_alone(queue)
            raise

    def _end_alone(self, queue: Queue[P]) -> None:
        """What is read by nobody alone goes to everybody. May be done again when it was cut off."""
        if queue.outlet.readers:
            return
        self._move(queue, self)
        for outlet in [each for each in self._alone if not each.readers]:
            del self._alone[outlet]
        if not queue.cost:
            self.queues.pop(queue.peer, None)

    def end(self, peer: P) -> None:
        """The peer is lost: who reads its messages alone gets those that wait, and then the end."""
        outlet = self.outlet_of(peer)
        if outlet is not self:
            outlet.ended = True
            outlet.waiters.wake_all()

    def wake_all(self) -> None:
        """The node is closed: nobody waits any longer."""
        for outlet in (self, *self._alone):
            outlet.waiters.wake_all()

    def find(self, peer: P, brought: list[bytes] | bytes) -> list[bytes] | None:
        """This very list, or that of this very message, if it waits untouched."""
        self._unfold()
        queue = self.queues.get(peer)
        lot = None if queue is None else queue.first
        while lot is not None and not holds(lot.payloads, brought):
            lot = lot.following
        return None if lot is None else lot.payloads

    def mend(self) -> None:
        """An exception may have cut put() off: what was put is there and counted, or is not."""
        self._unfold()
        for outlet in (self, *self._alone):
            queues = [queue for queue in self.queues.values() if queue.outlet is outlet]
            before = [queue for queue in outlet._line if queue.first is not None]
            missing = [queue for queue in queues if queue.first is not None and queue not in before]
            outlet._line = deque(dict.fromkeys([*before, *missing]))
            for queue in queues:
                queue.mend(outlet.current)
            outlet.cost = sum(queue.cost for queue in queues)
            if outlet:
                outlet.waiters.wake(len(outlet.waiters))
        self.total = sum(queue.cost for queue in self.queues.values())
        self.full = self.full or self.total > self.limit

    def put_back(self, peer: P, payloads: list[bytes]) -> None:
        """What was taken last and nobody got is the next of this peer again."""
        self._unfold()
        queue = self.queues.get(peer)
        if queue is None:
            queue = self.queues[peer] = Queue(peer, self)
        current = queue.outlet.current
        if current is not None and current.queue is queue:  # which counts in full until its end
            current.payloads = [*payloads, *current.close().payloads]
            current.open()
        else:
            cost = sum(map(len, payloads)) + MESSAGE_COST * len(payloads)
            queue.restore(Lot(queue, peer, payloads, cost))
            self.mend()

    def recover(self, outlet: Outlet[P]) -> None:
        """An exception may have cut taking at this outlet off: what nobody got is there."""
        lot, outlet._taking = outlet._taking, None
        if lot is not None and lot is not outlet.current:
            queue = self.queues.setdefault(lot.peer, lot.queue)
            lot.close()
            if queue.first is not lot:
                queue.restore(lot)
        self.mend()
        self.settle(outlet)

    def forget(self, connection: Connection, peer: P) -> None:
        """A connection is over: it is neither read nor told any more."""
        outlet = self.outlet_of(peer)
        outlet.paused.pop(connection, None)
        outlet.told.pop(connection, None)

    def _move(self, queue: Queue[P], to: Outlet[P]) -> None:
        """May be done again when it was cut off, which only the step in the middle cannot be."""
        outlet, peer = queue.outlet, queue.peer
        lot = outlet.current
        if queue in outlet._line:
            outlet._line.remove(queue)
        if lot is not None and lot.queue is queue:
            if queue.first is not lot.close():
                queue.restore(lot)
            outlet.current = None
        to.on_ease = to.on_ease or outlet.on_ease
        for connection in [each for each in outlet.told if each.peer is peer and outlet is not to]:
            to.watch(connection, connection.pressure)
            outlet.told.pop(connection, None)
        for connection in [each for each in outlet.paused if each.peer is peer]:
            to.pause(connection)
            if outlet is not to:
                outlet.paused.pop(connection, None)
        outlet.cost -= queue.cost
        to.cost += queue.cost
        queue.outlet = to
        if queue.first is not None:
            to._line.append(queue)
            to.waiters.wake(len(queue))
        for each in (self, *self._alone):
            if each.paused and not self.must_wait(each):
                self.on_room(each)
            each.ease()
        self.on_settled()


def holds(payloads: list[bytes] | None, brought: list[bytes] | bytes) -> bool:
    """Whether this is the list that was brought, or one of the message that was."""
    if isinstance(brought, bytes):
        return payloads is not None and len(payloads) == 1 and payloads[0] is brought
    return payloads is brought
