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

P = TypeVar("P")
"""The kind of peer that messages are from."""

MESSAGE_COST = 64
"""Bytes charged for each message beside its payload: what CPython needs to hold it."""
_FLOODED = 2
"""Times the bound from which on no link is read, not even those that have brought nothing."""


class Waiters:
    """Who waits for something to come, first come first served: functions that wake somebody, and
    say whether they did. False: he was woken already, or waits no longer."""

    __slots__ = ("_line",)

    def __init__(self) -> None:
        self._line: deque[Callable[[], bool]] = deque()

    def join(self, waiter: Callable[[], bool]) -> None:
        """Let a waiter stand in the line, behind all others; it is called once, by wake(), unless
        it leaves before."""
        self._line.append(waiter)

    def leave(self, waiter: Callable[[], bool], *, woken: bool) -> None:
        """Wait no longer. woken: whoever was woken here, and goes without a look, hands that on."""
        if waiter in self._line:
            self._line.remove(waiter)
        elif woken:
            self.wake(1)

    def wake(self, count: int) -> None:
        """So many things have come: as many look."""
        line = self._line
        while line and count > 0:
            count -= line.popleft()()

    def wake_all(self) -> None:
        """Nothing more will come."""
        self.wake(len(self._line))

    def __len__(self) -> int:
        return len(self._line)


class Lot(Generic[P]):
    """The payloads of one link and turn. Opened, the last one lies apart, so that whoever takes it
    knows that it is the last; left is the iterator over the others, which all consumers share."""

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
        payloads, self.payloads = self.payloads, []
        self.last = payloads.pop()
        self.left = iter(payloads)  # alone holds them, and lets go with the last
        return self

    def rest(self) -> Lot[P]:
        """What is left of an open one, as a lot in its place; here is nothing any more."""
        return Lot(self.queue, self.peer, [*self.left, self.last], self.cost)


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
    eases_at, on_ease is called. ended: nothing more will come, its peer is lost.
    """

    __slots__ = (
        "_inbox",
        "_line",
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
        self.cost = 0
        self.current: Lot[P] | None = None
        self.ended = False
        self.readers = 0
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
                return lot.peer, lot.payloads[0]
            self.current = lot.open()
        for payload in lot.left:
            return lot.peer, payload
        self.current = None
        self._used_up(lot)
        return lot.peer, lot.last

    def take_lot(self) -> tuple[P, list[bytes]] | None:
        """What is left of one link and turn, never empty; None when there is none."""
        lot = self.current
        if lot is not None:
            self.current = None
            lot = lot.rest()
        elif self._line:
            lot = self._next()
        else:
            return None
        self._used_up(lot)
        return lot.peer, lot.payloads

    def reopen(self) -> None:
        """Put what is left of the current lot into a lot of its own, which is the current one from
        now on. Nothing is lost, and the order stays. Who iterates over the former lot comes to its
        end, and so looks here again. Does nothing when there is no current lot."""
        if self.current is not None:
            self.current = self.current.rest().open()

    def __bool__(self) -> bool:
        """Whether something is there to take."""
        return self.current is not None or bool(self._line)

    def _next(self) -> Lot[P]:
        line = self._line
        queue = line.popleft()
        lot = queue.first
        assert lot is not None
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
            self.cost = self.total = cost
            if self.waiters._line:
                self.waiters.wake(1)
            return self
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

    def reserve(self, peer: P, *, ended: bool) -> Outlet[P]:
        """Messages of this peer, those that wait included, are taken at an outlet of its own from
        now on; returns that. ended: no more will come. To be released as often."""
        self._unfold()
        queue = self.queues.get(peer)
        if queue is None:
            queue = self.queues[peer] = Queue(peer, self)
        outlet = queue.outlet
        if outlet is self:
            outlet = Outlet(self)
            self._alone[outlet] = None
            self._move(queue, outlet)
        outlet.ended = ended
        outlet.readers += 1
        return outlet

    def release(self, peer: P) -> None:
        """One reader less. After the last one what is left goes to everybody."""
        queue = self.queues[peer]
        outlet = queue.outlet
        outlet.readers -= 1
        if not outlet.readers:
            self._move(queue, self)
            del self._alone[outlet]
            if not queue.cost:
                del self.queues[queue.peer]

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

    def forget(self, connection: Connection, peer: P) -> None:
        """A connection is over: it is neither read nor told any more."""
        outlet = self.outlet_of(peer)
        outlet.paused.pop(connection, None)
        outlet.told.pop(connection, None)

    def _move(self, queue: Queue[P], to: Outlet[P]) -> None:
        outlet, peer = queue.outlet, queue.peer
        lot = outlet.current
        if queue.first is not None:
            outlet._line.remove(queue)
        if lot is not None and lot.queue is queue:
            outlet.current = None
            queue.restore(lot.rest())
        queue.outlet = to
        outlet.cost -= queue.cost
        to.cost += queue.cost
        if queue.first is not None:
            to._line.append(queue)
            to.waiters.wake(len(queue))
        to.on_ease = to.on_ease or outlet.on_ease
        for connection in [each for each in outlet.told if each.peer is peer]:
            del outlet.told[connection]
            to.watch(connection, connection.pressure)
        for connection in [each for each in outlet.paused if each.peer is peer]:
            del outlet.paused[connection]
            to.pause(connection)
        for each in (outlet, to):
            if each.paused and not self.must_wait(each):
                self.on_room(each)
            each.ease()
        self.on_settled()


def holds(payloads: list[bytes] | None, brought: list[bytes] | bytes) -> bool:
    """Whether this is the list that was brought, or one of the message that was."""
    if isinstance(brought, bytes):
        return payloads is not None and len(payloads) == 1 and payloads[0] is brought
    return payloads is brought
