"""Every interleaving of two nodes and their connections, walked through.

The nodes decide with the real Line and Connection. What is modelled is the network between them and
the little that a node does on each decision. What may happen next is a choice, and all are tried: a
dial (of a known instance, or of an address; the latter also while there is a connection), a frame
that is read, the end of a connection that one side sees or both, a polite leaving and its time-out,
a crash and a restart with a smaller or a larger id. Left out is what does not bear on order: sizes,
memory, the inbox, how long things take.

A state is two nodes and the wires between them. Each distinct node, wire and frame has a number,
and what a node does in a step is computed once for each distinct node: so a state is a few numbers.

What makes it small, and why nothing is lost:

- Whether a frame has arrived is chosen when somebody looks: when a node asks whether something is
  unread, and when a sender is told what became of its messages. Once seen, it has arrived for good
  (`arrived` of a wire). Before, nobody could have told the difference.
- A reset is a side that sees the end before the frames that have not arrived. Any time before that
  at which its system stopped taking frames would look the same from both programs. So nothing
  marks the end of a stream: who is gone will be seen to be gone, at the latest when all is read.
- What a node sends on a connection it sends when it is used; how many is a choice. Nothing but a
  Bye follows messages on a wire, and a message that left later is one that was longer on its way.
- Of a delivered message only the number of the last is kept: it must rise. A message carries
  whether its sender gave it up; one that it did not give up must not be dropped or left unread.
- When no connection can be added, what only a greeting could tell or ask is forgotten (`simple`),
  and so are crashes: to the other side they are connections that end, and the one that crashed
  never says anything again. A crash before the first connection changes nothing but the ids, and
  either side may have the smaller one: one of the two cases is walked.
- When no connection can be added, and one side has on each of its connections something to read,
  or an other side that is gone, only its steps are tried (`sides`). Whatever the other side does
  first leaves these steps possible and their outcome as it is: it appends to what is read, or goes.
  The one exception makes it stricter: a message that is read had arrived, and counts as Sent. No
  run is without end, each step using up a frame, a connection or bad luck; so none of the side
  that waits is put off for ever, and each state in which all is at rest is still met.

Bounds beyond the number of connections, messages and crashes: none, unless `faults` bounds how
often bad luck or a whim may strike: an end that one side sees while the other is there, a leaving,
a time-out, a crash, a dial of an address while there is a connection, a back-off that runs out
before a greeting that was already on its way.

At rest is a state in which nothing but bad luck can happen, or but one side's notice that the other
is gone. In the latter, frames to that side may be lost; with all connections used up these states
are met only as far as `sides` lets them, that is after the frames were read.
"""

from __future__ import annotations

import functools
import gc
import random
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from peertalk.protocol.claims import Claims
from peertalk.protocol.connections import Connection, State, Step
from peertalk.protocol.line import Decision, Line, Turn, Verdict

Event = tuple[Any, ...]
Effect = tuple[Any, ...]

FIRST = (b"\x30", b"\x50")
"""The instances in the beginning: side 0 decides. By symmetry the other case is the same."""
AGAIN = ((b"\x20", b"\x60"), (b"\x40", b"\x70"))
"""What an instance may be after a crash: below and above that of the other side."""


class Greeting(NamedTuple):
    instance: bytes
    number: int
    addressed: bytes | None
    claims: Claims | None
    place: int


class Data(NamedTuple):
    number: int
    unknown: bool
    """Its sender has told its application that nobody knows whether it came."""


class Bye(NamedTuple):
    pass


class _Ask(Exception):
    """A step looks whether something is unread on a wire; its answer is a choice."""


class Node:
    """One side: its program sends `left` more messages to whoever the other side is."""

    __slots__ = (
        "answers", "connections", "dials", "effects", "got", "instance", "left", "line_type",
        "lines", "sent",
    )  # fmt: skip

    def __init__(self, instance: bytes, left: int, line_type: type[Line]) -> None:
        self.instance = instance
        self.left = left
        self.line_type = line_type
        self.sent = 0
        self.dials = 0
        self.lines: dict[bytes, Line] = {}
        self.connections: dict[int, Connection] = {}
        self.got: dict[bytes, int] = {}
        self.effects: list[Effect] = []
        self.answers: dict[int, bool] = {}

    def copy(self) -> Node:
        twin = Node(self.instance, self.left, self.line_type)
        twin.sent, twin.dials = self.sent, self.dials
        twin.got = dict(self.got)
        for tag, connection in self.connections.items():
            twin.connections[tag] = _copy_connection(connection)
        for theirs, line in self.lines.items():
            twin.lines[theirs] = _copy_line(line, twin.connections)
        return twin

    def key(self) -> tuple[Any, ...]:
        return (
            self.instance, self.left, self.sent, self.dials, tuple(sorted(self.got.items())),
            tuple((tag, *_connection_key(one)) for tag, one in sorted(self.connections.items())),
            tuple((theirs, *_line_key(line)) for theirs, line in sorted(self.lines.items())),
        )  # fmt: skip

    def line(self, theirs: bytes) -> Line:
        if theirs not in self.lines:
            self.lines[theirs] = self.line_type(self.instance, theirs)
        return self.lines[theirs]

    def choice(self, what: Any, options: Any) -> Any:
        if what not in self.answers:
            raise _Ask(what, options)
        return self.answers[what]

    def unread(self, tag: int) -> bool:
        return self.choice(tag, (False, True))

    def simple(self) -> Node:
        """The same, for when nobody dials any more: without what only a greeting would tell."""
        twin = self.copy()
        alive = [one for one in twin.connections.values() if one.state is not State.CLOSED]
        states = {one.state for one in alive}
        if State.GREETING in states or State.GREETED in states:
            return twin
        twin.dials = 0
        twin.left = min(self.left, 1) if State.OPEN in states else 0
        for theirs, line in list(twin.lines.items()):
            line._seen = line._said = line.place = 0
            line._ended = ()
            if not line.members:
                del twin.lines[theirs]
                twin.got.pop(theirs, None)
                continue
            if not any(line._claims.covers(one) for one in line.members):
                line._claims = Claims()
            for one in line.members:
                one.told = False
        return twin

    # What may happen ---------------------------------------------------------------------------

    def may(self) -> Iterator[Event]:
        for tag, connection in self.connections.items():
            if connection.state is State.OPEN:
                yield "leave", tag
            if connection.state is State.CLOSING:
                yield "time_out", tag
            for waited in connection.waits_for:
                yield "settled", waited

    def busy(self, theirs: bytes | None) -> bool:
        return any(
            one.state is not State.CLOSED
            and (one.peer == theirs if one.peer is not None else one.dialled)
            for one in self.connections.values()
        )

    # What happens ------------------------------------------------------------------------------

    def dial(self, tag: int, theirs: bytes | None) -> None:
        self.dials += 1
        connection = Connection(tag, ("", tag), dialled=True, now=0.0, peer=theirs)  # type: ignore[arg-type]
        connection.number = self.dials
        connection.advance(Step.DIAL)
        connection.advance(Step.ESTABLISH)
        self.connections[tag] = connection
        self.greet(connection, theirs)

    def accept(self, tag: int) -> None:
        accepted = Connection(tag, ("", tag), dialled=False, now=0.0)
        accepted.advance(Step.ESTABLISH)
        self.connections[tag] = accepted
        self.greet(accepted, None)

    def greet(self, connection: Connection, theirs: bytes | None, place: int = 0) -> None:
        claims = None
        if theirs is not None:
            undecided = [
                each.number
                for each in self.connections.values()
                if each.dialled and each.state in (State.CONNECTING, State.GREETING)
            ]
            claims = self.line(theirs).claims(self.dials, undecided)
        number = connection.number if connection.dialled else 0
        self.put(connection.tag, Greeting(self.instance, number, theirs, claims, place))

    def put(self, tag: int, frame: Any) -> None:
        self.effects.append(("put", tag, frame))

    def happen(self, event: Event) -> None:
        """Take a step; on a connection that it has opened all is sent at once that will be."""
        before = {tag for tag, one in self.connections.items() if one.state is State.OPEN}
        getattr(self, event[0])(*event[1:])
        for tag, one in self.connections.items():
            if one.state is State.OPEN and tag not in before and self.left:
                for _ in range(self.choice("send", range(self.left + 1))):
                    self.left -= 1
                    self.sent += 1
                    self.put(tag, Data(self.sent, False))

    def leave(self, tag: int) -> None:
        self.connections[tag].advance(Step.LEAVE)
        self.put(tag, Bye())

    def time_out(self, tag: int) -> None:
        connection = self.connections[tag]
        connection.advance(Step.DRAIN)
        if connection.held is None and not self.unread(tag):
            self.end(tag)

    def settled(self, tag: int) -> None:
        if not self.unread(tag):
            for line in self.lines.values():
                self.apply(line.settled(tag))

    def read(self, tag: int, frame: Any) -> None:
        connection = self.connections[tag]
        if isinstance(frame, Greeting):
            self.heard(connection, frame)
        elif isinstance(frame, Data):
            assert connection.state is not State.GREETED, "a message before the connection was used"
            assert connection.state is not State.GREETING, "a message before a greeting"
            self.bring(connection, frame)
        else:
            self.end(tag)
        if connection.state is State.DRAINING and connection.held is None and not self.unread(tag):
            self.end(tag)

    def heard(self, connection: Connection, greeting: Greeting) -> None:
        theirs = greeting.instance
        line = self.line(theirs)
        claims = greeting.claims if greeting.addressed == self.instance else None
        if connection.state is not State.GREETING:
            self.apply(line.told(connection, claims, greeting.place))
            return
        blind = connection.dialled and connection.peer != theirs
        connection.peer = theirs  # type: ignore[assignment]
        if not connection.dialled:
            connection.number = greeting.number
        decisions = line.identified(connection, claims, greeting.place)
        if blind and connection.state is State.GREETED:
            self.greet(connection, theirs)
        self.apply(decisions)
        for other in list(self.lines.values()):
            self.apply(other.settled(connection.tag))

    def bring(self, connection: Connection, message: Data) -> None:
        if connection.held is not None:
            connection.held.append(message)
            return
        turn = self.lines[connection.peer].turn(connection)  # type: ignore[index]
        if turn is Turn.DELIVER:
            last = self.got.get(connection.peer, 0)  # type: ignore[call-overload]
            assert message.number > last, f"message {message.number} came late or twice"
            self.got[connection.peer] = message.number  # type: ignore[index]
        elif turn is Turn.HOLD:
            connection.held = deque([message])
        else:
            assert message.unknown, f"message {message.number} was Sent and dropped"

    def apply(self, decisions: list[Decision]) -> None:
        for verdict, connection in decisions:
            tag = connection.tag
            if connection.state is State.CLOSED and verdict is not Verdict.RELEASE:
                continue
            line = self.lines[connection.peer]  # type: ignore[index]
            if verdict is Verdict.USE:
                if line.decides:
                    self.greet(connection, connection.peer, connection.place)  # type: ignore[arg-type]
                else:
                    self.wait(connection)
            elif verdict is Verdict.REFUSE:
                self.end(tag)
            elif verdict is Verdict.DRAIN:
                self.effects.append(("settle", tag))
                if not line.decides:
                    self.wait(connection)
                if connection.held is None and not self.unread(tag):
                    self.end(tag)
            elif verdict is Verdict.RELEASE:
                self.release(connection)

    def wait(self, connection: Connection) -> None:
        """Those that have not said whose they are, and have something unread, may be older."""
        connection.waits_for = frozenset(
            other.tag
            for other in self.connections.values()
            if other.state is State.GREETING and self.unread(other.tag)
        )

    def release(self, connection: Connection) -> None:
        held, connection.held = connection.held, None
        for message in held or ():
            self.bring(connection, message)
        if connection.held is not None:
            return
        line = self.lines[connection.peer]  # type: ignore[index]
        if connection.state is State.CLOSED:
            self.apply(line.finished(connection))
        elif connection.state is State.DRAINING and not self.unread(connection.tag):
            self.end(connection.tag)

    def end(self, tag: int) -> None:
        connection = self.connections[tag]
        if connection.state is State.CLOSED:
            return
        self.effects.append(("close", tag))
        connection.advance(Step.END)
        line = self.lines.get(connection.peer)  # type: ignore[call-overload]
        if line is not None:
            self.apply(line.ended(connection, held=connection.held is not None))
        for other in list(self.lines.values()):
            self.apply(other.settled(tag))

    def check(self) -> None:
        for line in self.lines.values():
            opened = [each for each in line.members if each.state is State.OPEN]
            assert len(opened) <= 1, "two connections are open"


_KEPT = ("tag", "host", "port", "dialled", "peer", "state", "number", "place", "told", "waits_for")


def _copy_connection(connection: Connection) -> Connection:
    twin = Connection.__new__(Connection)
    twin.rare = None
    for name in _KEPT:
        setattr(twin, name, getattr(connection, name))
    twin.held = None if connection.held is None else deque(connection.held)
    return twin


def _copy_line(line: Line, connections: dict[int, Connection]) -> Line:
    twin = type(line).__new__(type(line))
    for name in Line.__slots__:
        setattr(twin, name, getattr(line, name))
    twin.members = tuple(connections[each.tag] for each in line.members)
    return twin


def _connection_key(connection: Connection) -> tuple[Any, ...]:
    if connection.state is State.CLOSED and connection.held is None:
        return ()
    held = None if connection.held is None else tuple(connection.held)
    return (
        connection.state, connection.dialled, connection.number, connection.place,
        connection.told, held, connection.peer, connection.waits_for,
    )  # fmt: skip


def _line_key(line: Line) -> tuple[Any, ...]:
    members = tuple(each.tag for each in line.members)
    rest = (getattr(line, name) for name in Line.__slots__ if name != "members")
    return (members, *rest)


# A wire: whether each end is up; the frames to each end that it has not read; how many of these
# are known to have arrived.
Wire = tuple[bool, bool, tuple[int, ...], tuple[int, ...], int, int]
NEW: Wire = (True, True, (), (), 0, 0)

# Flags of a state: how often each side may still dial (two bits each), whether one may crash, and
# how much bad luck is left.
DIAL = (1, 4)
DIALS = 3
CRASH = 16
LUCK = 32


@functools.cache
def _fault(flags: int) -> int:
    """Something went wrong: each side may dial once more."""
    flags -= LUCK
    for one in DIAL:
        if flags // one & DIALS < DIALS:
            flags += one
    return flags


class Explorer:
    """What may follow on what, and what must hold.

    Args:
        messages: that each program wants to send; wires: connections in a run; crash: whether one
            node may crash once; blind: whether a dial may be one of an address; faults: see above;
            line_type: a Line with a planted mistake.
    """

    def __init__(
        self, messages: int, wires: int, *, crash: bool = True, blind: bool = True,
        faults: int | None = None, line_type: type[Line] = Line,
    ) -> None:  # fmt: skip
        self.wires_max = wires
        self.line_type = line_type
        self.blind = blind
        self.nodes: list[Node] = []
        self.may: list[tuple[Event, ...]] = []
        self.readable: list[tuple[int, ...]] = []
        self.alive: list[tuple[int, ...]] = []
        self.node_ids: dict[Any, int] = {}
        self.frames: list[Any] = []
        self.frame_ids: dict[Any, int] = {}
        self.wires: list[Wire] = []
        self.wire_ids: dict[Any, int] = {}
        for name in ("step", "simple", "popped", "seen_unread", "wire_step"):
            setattr(self, name, functools.cache(getattr(self, name)))
        first = tuple(self.node_id(Node(FIRST[side], messages, line_type)) for side in (0, 1))
        self.bounded = faults is not None
        luck = LUCK * (1 if faults is None else faults)
        self.start = (*first, DIAL[0] + DIAL[1] + (CRASH if crash else 0) + luck, ())

    # Numbers for what is met again and again

    def node_id(self, node: Node) -> int:
        key = node.key()
        number = self.node_ids.get(key)
        if number is None:
            number = self.node_ids[key] = len(self.nodes)
            node.effects, node.answers = [], {}
            self.nodes.append(node)
            node.check()
            self.may.append(tuple(node.may()))
            self.alive.append(
                tuple(tag for tag, one in node.connections.items() if one.state is not State.CLOSED)
            )
            self.readable.append(
                tuple(
                    tag
                    for tag, one in node.connections.items()
                    if one.state is not State.CLOSED and one.held is None
                )
            )
        return number

    def frame_id(self, frame: Any) -> int:
        number = self.frame_ids.get(frame)
        if number is None:
            number = self.frame_ids[frame] = len(self.frames)
            self.frames.append(frame)
        return number

    def wire_id(self, wire: Wire) -> int:
        number = self.wire_ids.get(wire)
        if number is None:
            number = self.wire_ids[wire] = len(self.wires)
            self.wires.append(wire)
        return number

    # Steps

    def step(self, number: int, event: Event) -> list[tuple[Any, int, tuple[Effect, ...]]]:
        found = []
        tries: list[dict[int, bool]] = [{}]
        while tries:
            answers = tries.pop()
            node = self.nodes[number].copy()
            node.answers = answers
            if event[0] == "read":
                happens: Event = ("read", event[1], self.frames[event[2]])
            else:
                happens = event
            try:
                node.happen(happens)
            except _Ask as ask:
                what, options = ask.args
                tries += [{**answers, what: option} for option in options]
                continue
            effects = tuple(
                (what, tag, *(self.frame_id(frame) for frame in more))
                for what, tag, *more in node.effects
            )
            seen = tuple((tag, unread) for tag, unread in answers.items() if tag != "send")
            found.append((seen, self.node_id(node), effects))
        return found

    def settle(self, wire: Wire, side: int) -> list[Wire]:
        """This side is done with sending: what has not arrived is unknown, the rest is Sent."""
        queue, arrived = wire[3 - side], wire[5 - side]
        found = []
        for count in range(arrived, len(queue) + 1):
            if count > arrived and not self.is_data(queue[count - 1]):
                continue
            marked = queue[:count] + tuple(map(self.unknown, queue[count:]))
            changed = list(wire)
            changed[3 - side], changed[5 - side] = marked, count
            found.append(tuple(changed))
        return found

    def is_data(self, frame: int) -> bool:
        found = self.frames[frame]
        return isinstance(found, Data) and not found.unknown

    def unknown(self, frame: int) -> int:
        if not self.is_data(frame):
            return frame
        return self.frame_id(self.frames[frame]._replace(unknown=True))

    def wire_step(self, number: int, what: str, side: int, frame: int) -> tuple[int, ...]:
        """What a wire may be after something that this side does to it."""
        wire = self.wires[number]
        other = 1 - side
        if what == "put":
            if not wire[other]:
                return (number,)
            changed = list(wire)
            changed[2 + other] += (frame,)
            return (self.wire_id(tuple(changed)),)
        if what == "settle":
            return tuple(map(self.wire_id, self.settle(wire, side)))
        unread = wire[2 + side][: wire[4 + side]]
        assert what == "crash" or not any(map(self.is_data, unread)), (
            "a message was Sent, and lies in a connection that was closed"
        )
        found = []
        for settled in self.settle(wire, side):
            changed = list(settled)
            changed[side], changed[2 + side], changed[4 + side] = False, (), 0
            if what == "crash":  # it tells nobody what became of them
                changed[2 + other] = tuple(map(self.unknown, wire[2 + other]))
                changed[4 + other] = wire[4 + other]
            found.append(self.wire_id(tuple(changed)))
        return tuple(dict.fromkeys(found))

    def seen_unread(self, number: int, side: int, unread: bool) -> int | None:
        wire = self.wires[number]
        if not unread:
            return None if wire[4 + side] else number
        if wire[4 + side]:
            return number
        if not wire[2 + side]:
            return None
        changed = list(wire)
        changed[4 + side] = 1
        return self.wire_id(tuple(changed))

    def simple(self, node: int) -> int:
        return self.node_id(self.nodes[node].simple())

    def popped(self, number: int, side: int) -> int:
        wire = list(self.wires[number])
        wire[2 + side] = wire[2 + side][1:]
        wire[4 + side] = max(0, wire[4 + side] - 1)
        return self.wire_id(tuple(wire))

    def outcomes(
        self, state: Any, side: int, event: Event, wires: tuple[int, ...], flags: int
    ) -> Any:
        for answers, node, effects in self.step(state[side], event):
            found = list(wires)
            for tag, unread in answers:
                changed = self.seen_unread(found[tag], side, unread)
                if changed is None:
                    break
                found[tag] = changed
            else:
                several = [found]
                for what, tag, *frame in effects:
                    more = []
                    for each in several:
                        options = self.wire_step(each[tag], what, side, *(frame or (0,)))
                        for option in options[1:]:
                            another = each[:]
                            another[tag] = option
                            more.append(another)
                        each[tag] = options[0]
                    several += more
                if len(wires) == self.wires_max:
                    node = self.simple(node)
                    flags &= -LUCK
                nodes = (node, state[1]) if side == 0 else (state[0], node)
                for each in several:
                    yield (*nodes, flags, tuple(each))

    def sides(self, state: Any) -> tuple[int, ...]:
        """Whose steps must be tried: one's, if it can hear nothing now that it could not hear
        before the other's steps."""
        wires = state[3]
        if len(wires) < self.wires_max:
            return (0, 1)
        for side in (0, 1):
            node = self.nodes[state[side]]
            reads = False
            for tag in self.alive[state[side]]:
                wire = self.wires[wires[tag]]
                if wire[2 + side]:
                    reads = reads or node.connections[tag].held is None
                elif wire[1 - side]:
                    break
            else:
                if reads:
                    return (side,)
        return (0, 1)

    def following(self, state: Any) -> Iterator[tuple[int, Any, Any]]:
        """(kind, choice, state after it); kind 0: bad luck or whim, 1: will happen some time,
        2: also, but on a wire that the other side has left."""
        flags, wires = state[2], state[3]
        room = len(wires) < self.wires_max
        fault = _fault(flags)
        if not self.bounded:
            fault += LUCK
        lucky = flags < LUCK
        for side in self.sides(state):
            number = state[side]
            for tag in self.readable[number]:
                wire = self.wires[wires[tag]]
                gone = not wire[1 - side]
                if wire[2 + side]:
                    event = ("read", tag, wire[2 + side][0])
                    after = list(wires)
                    after[tag] = self.popped(wires[tag], side)
                    kind = 2 if gone and not wire[4 + side] else 1
                    for each in self.outcomes(state, side, event, tuple(after), flags):
                        yield kind, (side, *event), each
                if not wire[4 + side] and (gone or not lucky):
                    event = ("end", tag)
                    for each in self.outcomes(state, side, event, wires, flags if gone else fault):
                        leaving = self.nodes[number].connections[tag].state is State.CLOSING
                        yield (2 - leaving) if gone else 0, (side, *event), each
            for event in self.may[number]:
                bad = event[0] in ("leave", "time_out")
                if bad and lucky:
                    continue
                for each in self.outcomes(state, side, event, wires, fault if bad else flags):
                    yield 0 if bad else 1, (side, *event), each
            if room:
                yield from self.dials(state, side)
            if flags & CRASH and wires and room and not lucky:
                yield from self.crashes(state, side, fault)

    def dials(self, state: Any, side: int) -> Any:
        flags, wires = state[2], state[3]
        node = self.nodes[state[side]]
        theirs = self.nodes[state[1 - side]].instance
        tag = len(wires)
        needed = node.left and not node.busy(theirs)
        for whom in (theirs, None) if self.blind else (theirs,):
            if not needed and (
                whom
                or any(
                    one.dialled and one.state is State.GREETING for one in node.connections.values()
                )
            ):
                continue
            if needed and not flags // DIAL[side] & DIALS and self.expects(node):
                needed = 0  # its back-off runs out before a greeting comes
            if needed:
                assert flags // DIAL[side] & DIALS, (
                    f"side {side} dials again though nothing went wrong"
                )
                after = flags - DIAL[side]
            elif flags < LUCK:
                continue
            else:
                after = flags - LUCK if self.bounded else flags
            with_wire = (*wires, self.wire_id(NEW))
            for dialled in self.outcomes(state, side, ("dial", tag, whom), with_wire, after):
                for each in self.outcomes(dialled, 1 - side, ("accept", tag), dialled[3], after):
                    yield 1 if needed else 0, (side, "dial", tag, whom), each

    @staticmethod
    def expects(node: Node) -> bool:
        return any(
            not one.dialled and one.state is State.GREETING for one in node.connections.values()
        )

    def crashes(self, state: Any, side: int, fault: int) -> Any:
        node = self.nodes[state[side]]
        for instance in AGAIN[side]:
            again = self.node_id(Node(instance, node.left, self.line_type))
            nodes = (again, state[1]) if side == 0 else (state[0], again)
            wires = tuple(
                self.wire_step(wire, "crash", side, 0)[0] if self.wires[wire][side] else wire
                for wire in state[3]
            )
            yield 0, (side, "crash", instance), (*nodes, fault - CRASH, wires)

    def check_rest(self, state: Any) -> None:
        """One connection, the same for both sides, or none; and nobody who still has to send."""
        opened = []
        for side in (0, 1):
            node = self.nodes[state[side]]
            alive = {t: c for t, c in node.connections.items() if c.state is not State.CLOSED}
            half = [t for t in alive if not self.wires[state[3][t]][1 - side]]
            if node.left and State.OPEN in {one.state for one in alive.values()}:
                return  # it would send more
        for side in (0, 1):
            node = self.nodes[state[side]]
            alive = {t: c for t, c in node.connections.items() if c.state is not State.CLOSED}
            half = [t for t in alive if not self.wires[state[3][t]][1 - side]]
            for tag, connection in alive.items():
                assert connection.state is State.OPEN or tag in half, f"{connection} lingers"
                assert connection.held is None or half
            assert not node.left or half or len(state[3]) == self.wires_max, "nobody dials"
            opened.append({t for t, c in alive.items() if c.state is State.OPEN and t not in half})
        assert opened[0] == opened[1] and len(opened[0]) <= 1

    def story(self, path: Any) -> str:
        """The choices that lead to a state, one a line."""
        lines = []
        while path is not None:
            (side, what, *more), path = path
            if what == "read":
                more = [f"connection {more[0]}: {self.frames[more[1]]}"]
            elif what == "dial":
                more = [
                    f"connection {more[0]}, "
                    + ("whoever is there" if more[1] is None else "a peer")
                ]
            elif what != "crash":
                more = [f"connection {more[0]}"]
            lines.append(f"side {side} {_TOLD[what]} {more[0]}")
        return "\n".join(reversed(lines))


_TOLD = {
    "dial": "dials",
    "read": "reads",
    "end": "sees the end of",
    "leave": "leaves",
    "time_out": "has waited enough for",
    "settled": "looks whether anything is unread on",
    "crash": "is started again as",
}


def explore(explorer: Explorer, order: random.Random | None = None) -> tuple[int, int]:
    """Walk through everything that may happen.

    Without an order each step is followed to its last consequence before the next: the quickest way
    through all. A mistake is found sooner where the steps are drawn: most lie a few steps away from
    the beginning, and not at the end of what the first step leads to.

    Dials are bounded: a side dials for its messages at most once, and once more for each fault.

    Returns:
        The number of different states, and of steps between them.

    Raises:
        AssertionError: something did not hold; its note tells how it came to that.
    """
    collecting = gc.isenabled()
    gc.disable()  # millions of tuples, none of them in a circle
    try:
        return _explore(explorer, order)
    finally:
        if collecting:
            gc.enable()


def _explore(explorer: Explorer, order: random.Random | None) -> tuple[int, int]:
    seen = {explorer.start}
    steps = 0
    front: list[tuple[Any, Any]] = [(explorer.start, None)]
    while front:
        state, path = front.pop()
        rest = 2
        try:
            moves: Iterable[Any] = explorer.following(state)
            if order is not None:
                moves = list(moves)
                order.shuffle(moves)
            for kind, choice, after in moves:
                if kind == 1:
                    rest = 0
                steps += 1
                if after not in seen:
                    seen.add(after)
                    front.append((after, (choice, path)))
            if rest:
                explorer.check_rest(state)
        except Exception as error:
            error.add_note(explorer.story(path))
            raise
    return len(seen), steps
