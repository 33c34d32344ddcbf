"""Every interleaving of two nodes and their connections, walked through.

The nodes decide with the real Line and Connection; what is modelled is the network between them,
and the little that a node does on each decision. A connection has, for each direction, frames on
their way and frames that have arrived and are unread. What may happen next is a choice, and all
choices are tried: a dial, an accept, one frame that arrives or is lost, one frame read, a message
sent, a reset that one side or both notice, a polite leaving, a crash and a restart, a time-out.

Left out is what does not bear on order: sizes, memory, the inbox, how long things take.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from peertalk.protocol.connections import NOBODY, Connection, State, Step
from peertalk.protocol.line import Claims, Line, Turn, Verdict

UP, RESET, GONE = "up", "reset", "gone"
CAP, DATA, BYE, FIN = "cap", "data", "bye", "fin"


class Wire:
    """One connection between the two: side 0 and side 1; dialler says which of them dialled."""

    __slots__ = ("arrived", "dialler", "end", "queue")

    def __init__(self, dialler: int) -> None:
        self.dialler = dialler
        self.end = [UP, UP]
        self.queue: list[tuple[Any, ...]] = [(), ()]
        """Frames to each side that it has not read."""
        self.arrived = [0, 0]
        """How many of these have arrived; to read one is to have it arrive."""

    def copy(self) -> Wire:
        twin = Wire.__new__(Wire)
        twin.dialler, twin.end = self.dialler, self.end[:]
        twin.queue, twin.arrived = self.queue[:], self.arrived[:]
        return twin

    def key(self) -> tuple[Any, ...]:
        return (self.dialler, *self.end, *self.queue, *self.arrived)

    def close(self, side: int) -> None:
        """This side is gone; what it sent goes on its way, and the end of the stream behind it."""
        other = 1 - side
        if self.end[side] == UP and self.end[other] == UP:
            self.queue[other] += ((FIN,),)
        self.end[side] = GONE
        self.queue[side] = ()
        self.arrived[side] = 0


class Node:
    """One side: its program sends `left` more messages to whoever the other side is."""

    __slots__ = ("connections", "dials", "got", "left", "life", "lines", "next", "outcome", "side")

    def __init__(self, side: int, messages: int) -> None:
        self.side = side
        self.life = 0
        self.left = messages
        self.next = 0
        self.dials = 0
        self.lines: dict[bytes, Line] = {}
        self.connections: dict[int, Connection] = {}
        self.got: tuple[Any, ...] = ()
        """What was delivered: (receiver's life, sender's life, number)."""
        self.outcome: dict[tuple[int, int], tuple[str, int, int]] = {}
        """(life, number) of a message -> (outcome, wire, life of the receiver)."""

    @property
    def instance(self) -> bytes:
        return bytes((1 + self.side, self.life))

    def line(self, theirs: bytes) -> Line:
        if theirs not in self.lines:
            self.lines[theirs] = Line(self.instance, theirs)
        return self.lines[theirs]


class World:
    """A state of the two nodes and the network, and what may happen in it."""

    def __init__(self, messages: int, wires: int, crashes: int, anonymous: bool = True) -> None:
        self.nodes = [Node(0, messages), Node(1, messages)]
        self.wires: list[Wire] = []
        self.wires_max = wires
        self.crashes = crashes
        self.faults = 0
        self.anonymous = anonymous
        """Whether a dial may be one that does not know to whom it leads."""

    # Copies and keys --------------------------------------------------------------------------

    def copy(self) -> World:
        twin = World.__new__(World)
        twin.wires = [wire.copy() for wire in self.wires]
        twin.wires_max, twin.crashes = self.wires_max, self.crashes
        twin.faults, twin.anonymous = self.faults, self.anonymous
        twin.nodes = []
        for node in self.nodes:
            other = Node.__new__(Node)
            other.side, other.life, other.left = node.side, node.life, node.left
            other.next, other.dials, other.got = node.next, node.dials, node.got
            other.outcome = dict(node.outcome)
            other.connections = {}
            for tag, connection in node.connections.items():
                other.connections[tag] = _copy_connection(connection)
            other.lines = {
                theirs: _copy_line(line, other.connections) for theirs, line in node.lines.items()
            }
            twin.nodes.append(other)
        return twin

    def key(self) -> tuple[Any, ...]:
        """Equal for states from which the same can happen."""
        nodes = tuple(
            (
                node.life, node.left, node.next, node.dials, node.got,
                tuple(sorted(node.outcome.items())),
                tuple((tag, *_connection_key(one)) for tag, one in node.connections.items()),
                tuple((theirs, *_line_key(line)) for theirs, line in node.lines.items()),
            )
            for node in self.nodes
        )  # fmt: skip
        wires = tuple(wire.key() for wire in self.wires)
        return nodes, wires, self.crashes, self.faults

    # What may happen --------------------------------------------------------------------------

    def choices(self) -> Iterator[tuple[Any, ...]]:
        """All that may happen now."""
        for side in (0, 1):
            yield from self._of(side)
        for number, wire in enumerate(self.wires):
            for side in (0, 1):
                if wire.arrived[side] < len(wire.queue[side]) and wire.end[side] == UP:
                    yield "arrives", number, side
                    if wire.end[1 - side] != UP:
                        yield "lost", number, side
            if wire.end == [UP, UP]:
                for seen in ((0,), (1,), (0, 1)):
                    yield "reset", number, seen

    def _of(self, side: int) -> Iterator[tuple[Any, ...]]:
        node = self.nodes[side]
        busy = any(
            connection.state is not State.CLOSED and (connection.dialled or connection.peer)
            for connection in node.connections.values()
        )
        if node.left and not busy and len(self.wires) < self.wires_max:
            yield "dial", side, True
            if self.anonymous:
                yield "dial", side, False
        for tag, connection in node.connections.items():
            if connection.state is State.CLOSED:
                continue
            wire = self.wires[tag]
            if connection.held is None and (
                wire.arrived[side]
                or wire.end[side] == RESET
                or (wire.queue[side] and wire.end[side] == UP)
            ):
                yield "read", side, tag
            if connection.state is State.OPEN:
                if node.left:
                    yield "send", side, tag
                yield "leave", side, tag
            if connection.state is State.CLOSING or (
                connection.state is State.GREETED and not wire.arrived[side]
            ):
                yield "time-out", side, tag
            if connection.waits_for:
                for waited in connection.waits_for:
                    if not self.wires[waited].arrived[side]:
                        yield "nothing unread", side, waited
        if self.crashes:
            yield "crash", side

    def quiet(self, choice: tuple[Any, ...]) -> bool:
        """Whether a choice is one of bad luck or whim: without any of those all comes to rest."""
        return choice[0] in ("lost", "reset", "leave", "crash", "time-out")

    # What happens -----------------------------------------------------------------------------

    def take(self, choice: tuple[Any, ...]) -> None:
        what, *rest = choice
        self.faults += what in ("reset", "leave", "crash", "time-out")
        getattr(self, "_" + what.replace("-", "_").replace(" ", "_"))(*rest)

    def _dial(self, side: int, known: bool) -> None:
        node, other = self.nodes[side], self.nodes[1 - side]
        tag = len(self.wires)
        self.wires.append(Wire(side))
        node.dials += 1
        connection = Connection(tag, ("", tag), dialled=True, now=0.0)
        connection.number = node.dials
        connection.advance(Step.DIAL)
        connection.advance(Step.ESTABLISH)
        node.connections[tag] = connection
        self._greet(side, tag, other.instance if known else None)
        # Accepted at once: the greeting may be on its way for as long as it likes.
        accepted = Connection(tag, ("", tag), dialled=False, now=0.0)
        accepted.advance(Step.ESTABLISH)
        other.connections[tag] = accepted
        self._greet(other.side, tag, None)

    def _greet(self, side: int, tag: int, theirs: bytes | None, place: int = 0) -> None:
        node = self.nodes[side]
        connection = node.connections[tag]
        claims = None
        if theirs is not None:
            undecided = [
                each.number
                for each in node.connections.values()
                if each.dialled and each.state in (State.CONNECTING, State.GREETING)
            ]
            claims = node.line(theirs).claims(node.dials, undecided)
        number = connection.number if connection.dialled else 0
        self._put(side, tag, (CAP, node.instance, number, theirs, claims, place))

    def _put(self, side: int, tag: int, frame: tuple[Any, ...]) -> None:
        """Send a frame: into nothing where the other side's system has no such connection."""
        wire = self.wires[tag]
        if wire.end[side] != UP:
            return
        if wire.end[1 - side] == UP:
            wire.queue[1 - side] += (frame,)
        else:
            wire.end[side] = RESET  # its system answers that there is no such connection
            self._cut(tag, side)

    def _cut(self, tag: int, side: int) -> None:
        """This side's system takes nothing more."""
        wire = self.wires[tag]
        wire.queue[side] = wire.queue[side][: wire.arrived[side]]

    def _arrives(self, tag: int, side: int) -> None:
        self.wires[tag].arrived[side] = len(self.wires[tag].queue[side])

    def _lost(self, tag: int, side: int) -> None:
        self._cut(tag, side)

    def _reset(self, tag: int, seen: tuple[int, ...]) -> None:
        for side in seen:
            self.wires[tag].end[side] = RESET
            self._cut(tag, side)

    def _crash(self, side: int) -> None:
        self.crashes -= 1
        node = self.nodes[side]
        for tag, wire in enumerate(self.wires):
            wire.close(side)
            for (life, number), (said, on, there) in list(node.outcome.items()):
                if said == "handed" and on == tag:
                    node.outcome[life, number] = ("died", tag, there)
        node.connections.clear()
        node.lines.clear()
        node.life += 1
        node.next = 0
        node.dials = 0

    def _send(self, side: int, tag: int) -> None:
        node = self.nodes[side]
        node.left -= 1
        node.next += 1
        node.outcome[node.life, node.next] = ("handed", tag, self.nodes[1 - side].life)
        self._put(side, tag, (DATA, node.life, node.next))

    def _leave(self, side: int, tag: int) -> None:
        connection = self.nodes[side].connections[tag]
        connection.advance(Step.LEAVE)
        self._put(side, tag, (BYE,))
        self._put(side, tag, (FIN,))

    def _time_out(self, side: int, tag: int) -> None:
        """Enough waited. What has arrived is read all the same: its sender takes it for sent."""
        connection = self.nodes[side].connections[tag]
        if connection.state is State.CLOSING:
            connection.advance(Step.DRAIN)
        if connection.held is None and not self.wires[tag].arrived[side]:
            self._end(side, tag)

    def _nothing_unread(self, side: int, tag: int) -> None:
        for line in self.nodes[side].lines.values():
            self._apply(side, line.settled(tag))

    def _read(self, side: int, tag: int) -> None:
        node, wire = self.nodes[side], self.wires[tag]
        connection = node.connections[tag]
        if not wire.queue[side]:
            self._end(side, tag)  # the reset
            return
        frame, *rest = wire.queue[side]
        wire.queue[side] = tuple(rest)
        wire.arrived[side] = max(0, wire.arrived[side] - 1)
        if frame[0] == CAP:
            self._heard(side, connection, *frame[1:])
        elif frame[0] == DATA:
            assert connection.state is not State.GREETED, "a message before the connection was used"
            assert connection.state is not State.GREETING
            self._bring(side, connection, frame[1:])
        else:
            self._end(side, tag)
        if (
            connection.state is State.DRAINING
            and connection.held is None
            and not wire.arrived[side]
        ):
            self._end(side, tag)

    def _heard(
        self, side: int, connection: Connection, theirs: bytes, number: int, addressed: bytes | None,
        claims: Claims | None, place: int,
    ) -> None:  # fmt: skip
        node = self.nodes[side]
        line = node.line(theirs)
        if addressed != node.instance:
            claims = None
        if connection.state is not State.GREETING:
            self._apply(side, line.told(connection, claims, place))
            return
        greeted_blindly = connection.dialled and connection.peer is None
        connection.peer = theirs  # type: ignore[assignment]
        if not connection.dialled:
            connection.number = number
        decisions = line.identified(connection, claims, place)
        if greeted_blindly and connection.state is State.GREETED:
            self._greet(side, connection.tag, theirs)
        self._apply(side, decisions)
        for other in list(node.lines.values()):
            self._apply(side, other.settled(connection.tag))

    def _bring(self, side: int, connection: Connection, message: tuple[int, int]) -> None:
        node = self.nodes[side]
        line = node.lines[connection.peer]  # type: ignore[index]
        if connection.held is not None:
            connection.held.append(message)
            return
        turn = line.turn(connection)
        if turn is Turn.DELIVER:
            node.got += ((node.life, *message),)
        elif turn is Turn.HOLD:
            connection.held = deque([message])

    def _apply(self, side: int, decisions: list[tuple[Verdict, Connection]]) -> None:
        node = self.nodes[side]
        for verdict, connection in decisions:
            tag = connection.tag
            if connection.state is State.CLOSED and verdict is not Verdict.RELEASE:
                continue
            line = node.lines[connection.peer]  # type: ignore[index]
            if verdict is Verdict.USE:
                if line.decides:
                    self._greet(side, tag, connection.peer, connection.place)  # type: ignore[arg-type]
                else:
                    connection.waits_for = (
                        frozenset(
                            other.tag
                            for other in node.connections.values()
                            if other.state is State.GREETING and self.wires[other.tag].arrived[side]
                        )
                        or NOBODY
                    )
            elif verdict is Verdict.REFUSE:
                self._end(side, tag)
            elif verdict is Verdict.DRAIN:
                self._settle_outcomes(side, tag)
                if connection.held is None and not self.wires[tag].arrived[side]:
                    self._end(side, tag)
            elif verdict is Verdict.RELEASE:
                self._release(side, connection)

    def _release(self, side: int, connection: Connection) -> None:
        held, connection.held = connection.held, None
        for message in held or ():
            self._bring(side, connection, message)
        if connection.held is not None:
            return
        node = self.nodes[side]
        line = node.lines[connection.peer]  # type: ignore[index]
        if connection.state is State.CLOSED:
            self._apply(side, line.finished(connection))
        elif connection.state is State.DRAINING and not self.wires[connection.tag].arrived[side]:
            self._end(side, connection.tag)

    def _settle_outcomes(self, side: int, tag: int) -> None:
        """We are done with sending on a connection: what did not arrive is unknown."""
        node, wire = self.nodes[side], self.wires[tag]
        other = self.nodes[1 - side]
        unread, count = wire.queue[1 - side], wire.arrived[1 - side]
        arrived = {frame[1:] for frame in unread[:count] if frame[0] == DATA}
        for (life, number), (said, on, life_there) in list(node.outcome.items()):
            if said != "handed" or on != tag or life != node.life:
                continue
            got = (life_there, life, number) in other.got or (life, number) in arrived
            held = other.connections.get(tag)
            got = got or (held is not None and (life, number) in (held.held or ()))
            node.outcome[life, number] = ("sent" if got else "unknown", tag, life_there)

    def _end(self, side: int, tag: int) -> None:
        node, wire = self.nodes[side], self.wires[tag]
        connection = node.connections[tag]
        if connection.state is State.CLOSED:
            return
        self._settle_outcomes(side, tag)
        connection.advance(Step.END)
        wire.close(side)
        line = node.lines.get(connection.peer) if connection.peer else None  # type: ignore[call-overload]
        if line is not None:
            self._apply(side, line.ended(connection, held=connection.held is not None))
        for other in list(node.lines.values()):
            self._apply(side, other.settled(tag))

    # What must hold ---------------------------------------------------------------------------

    def check(self) -> None:
        """In every state."""
        for node in self.nodes:
            pairs: dict[tuple[int, int], int] = {}
            for receiver, sender, number in node.got:
                assert number > pairs.get((receiver, sender), 0), f"{number} came late or twice"
                pairs[receiver, sender] = number
            for line in node.lines.values():
                opened = [each for each in line.members if each.state is State.OPEN]
                assert len(opened) <= 1, "two connections are open"
        dials = len(self.wires)
        assert self.faults or dials <= 2, "a third dial though nothing went wrong"

    def check_rest(self) -> None:
        """Where nothing can happen but bad luck."""
        opened = []
        for node in self.nodes:
            alive = [each for each in node.connections.values() if each.state is not State.CLOSED]
            half_open = [each for each in alive if self.wires[each.tag].end[1 - node.side] != UP]
            for connection in alive:  # a half-open one ends by a time-out
                assert connection.state is State.OPEN or connection in half_open, (
                    f"{connection} lingers"
                )
            opened.append({each.tag for each in alive if each.state is State.OPEN})
            assert not node.left or half_open or len(self.wires) == self.wires_max, "nobody dials"
        one, two = opened
        for tag in one ^ two:  # one side believes in a connection that the other has lost
            assert RESET in self.wires[tag].end or GONE in self.wires[tag].end
        for node, other in (self.nodes, self.nodes[::-1]):
            for (life, number), (said, _, life_there) in node.outcome.items():
                if said == "sent" and life_there == other.life:
                    got = (life_there, life, number) in other.got
                    assert got, f"message {number} was Sent and never came"


_KEPT = (
    "tag", "address", "dialled", "peer", "state", "number", "place", "told", "waits_for", "held",
)  # fmt: skip


def _copy_connection(connection: Connection) -> Connection:
    twin = Connection.__new__(Connection)
    for name in _KEPT:
        setattr(twin, name, getattr(connection, name))
    if connection.held is not None:
        twin.held = deque(connection.held)
    return twin


def _copy_line(line: Line, connections: dict[int, Connection]) -> Line:
    twin = Line.__new__(Line)
    for name in Line.__slots__:
        setattr(twin, name, getattr(line, name))
    twin.members = tuple(connections[each.tag] for each in line.members)
    return twin


def _connection_key(connection: Connection) -> tuple[Any, ...]:
    held = None if connection.held is None else tuple(connection.held)
    return (
        connection.state, connection.number, connection.place, connection.told, held,
        connection.peer, connection.waits_for,
    )  # fmt: skip


def _line_key(line: Line) -> tuple[Any, ...]:
    members = tuple(each.tag for each in line.members)
    rest = (getattr(line, name) for name in Line.__slots__ if name != "members")
    return (members, *rest)


def explore(world: World, limit: int | None = None) -> tuple[int, int]:
    """Walk through everything that can happen from a state.

    Returns:
        The number of different states, and of steps between them.

    Raises:
        AssertionError: something did not hold; its note says how the state was reached.
    """
    seen = {hash(world.key())}
    steps = 0
    front: list[tuple[World, Any]] = [(world, None)]
    while front:
        state, path = front.pop()
        rest = True
        for choice in list(state.choices()):
            rest = rest and state.quiet(choice)
            following = state.copy()
            steps += 1
            try:
                following.take(choice)
                following.check()
            except Exception as error:
                error.add_note(_story((choice, path)))
                raise
            key = hash(following.key())
            if key not in seen:
                seen.add(key)
                front.append((following, (choice, path)))
                if limit is not None and len(seen) > limit:
                    return len(seen), steps
        if rest:
            try:
                state.check_rest()
            except AssertionError as error:
                error.add_note(_story(path))
                raise
    return len(seen), steps


def _story(path: Any) -> str:
    choices = []
    while path is not None:
        choices.append(path[0])
        path = path[1]
    return "\n".join(map(str, reversed(choices)))
