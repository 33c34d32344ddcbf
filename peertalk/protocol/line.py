"""All connections with one peer: which of them is used, and in what order they are read.

Two nodes may have several connections: both dial at once, or one of them has lost a connection
(reset by a box in the middle, say) that the other still believes in. What each side can know is
what it has read, so that is what decides:

- Each connection has a number: the instance that dialled it, and that one's count of its dials.
- Each side tells what is over for it: of the dials of each side all up to a number, and up to three
  above. Over means: it will send nothing more there, read nothing more, and has told its
  application what became of what it sent.
- The side with the smaller instance id decides. It uses one connection at a time, and says so on
  that connection before its first message, with a place: 1, 2, 3, ... of all that it used with this
  peer. The other side sends no message on a connection before it has read that. A connection that
  is not needed is closed; no message was ever on it.

The one that decides keeps what it has until that has ended, or the other side says that it is over
there. So of two dials that crossed the first that is greeted is used, and nobody needs to guess
from ages or ids which one the other side has.

Why the order holds: messages of one side lie on the connections in the order of their places, since
the one that decides uses a connection only after the one before is over for it (or over for the
other side, and so finished there), and the other side follows it. So who reads holds back what a
connection brings while one of a lower place is unfinished. A connection that the other side has
named as over is read until nothing is there, and then closed: what had not come by then was told
as UNKNOWN by the sender. It may come before we know its place; then it goes before any that is
used, since what is over for the one that decides was used before, or never. A connection that has
not said yet whose it is may be such a one if it has something unread: it is read first.

Invariant: at most one member is OPEN; places are used once, and in rising order.
Never: opens a socket, sends a byte, reads a clock.
"""

from __future__ import annotations

import enum

from .claims import OVER_MAX, Claims, Over
from .connections import Connection, State, Step

_NOTHING = Claims()


class Verdict(enum.Enum):
    """What is to be done with a connection."""

    USE = "use"
    """It is the one that messages are sent on from now. The one that decides says so first."""
    REFUSE = "refuse"
    """It is not needed: close it. No message was on it."""
    DRAIN = "drain"
    """It is over for the other side: send nothing more, read until nothing is there, close."""
    RELEASE = "release"
    """What was held back of it is delivered now, in order."""


class Turn(enum.Enum):
    """What is to be done with messages that a connection has brought."""

    DELIVER = "deliver"
    HOLD = "hold"
    """Until RELEASE: an older connection is not read to its end."""
    DROP = "drop"
    """A later connection has been delivered: the sender knows that this one is over."""


Decision = tuple[Verdict, Connection]


class Line:
    """The connections with one peer that has an instance id.

    Args:
        own, theirs: the instance ids of the two sides, different.
        place: the highest that our side has given, with whomever. The other side may remember
            places of a line that we have forgotten with its peer.

    members: those that are not finished, in the order in which they were identified. place: the
    highest that was used.
    """

    __slots__ = ("_claims", "_ended", "_said", "_seen", "decides", "delivered", "members", "place")

    def __init__(self, own: bytes, theirs: bytes, place: int = 0) -> None:
        self.decides = own < theirs
        self.members: tuple[Connection, ...] = ()
        self.place = place if self.decides else 0
        self.delivered = 0
        """The highest place of which something was delivered."""
        self._claims = _NOTHING
        self._seen = 0
        """The highest number of a dial of theirs that was identified."""
        self._said = 0
        """Up to this number we have told them that their dials are over for us."""
        self._ended: tuple[tuple[bool, int], ...] = ()
        """The last connections that ended, as (dialled by us, number). An older one of theirs may
        come yet."""

    # What happens -----------------------------------------------------------------------------

    def identified(
        self, connection: Connection, claims: Claims | None, place: int
    ) -> list[Decision]:
        """A connection has turned out to be one with this peer, by its first CAPABILITY, which
        said these claims (None: none about us) and this place (0: not used yet)."""
        connection.advance(Step.IDENTIFY)
        self.members += (connection,)
        decisions: list[Decision] = []
        if not connection.dialled:
            self._seen = max(self._seen, connection.number)
            if 0 < connection.number <= self._said:  # a later dial of theirs came before it
                self._drain(connection, decisions)
        return decisions + self.told(connection, claims, place)

    def late(self, connection: Connection) -> list[Decision]:
        """A connection has turned out to be one with this peer after we had taken the other side
        for one that knows no places, and had sent on it: it is read to its end, before those that
        are used."""
        self.members += (connection,)
        decisions: list[Decision] = []
        self._drain(connection, decisions)
        return decisions

    def adopt(self, connection: Connection) -> None:
        """Likewise, and it is the only one, and we decide: it is used, and to be said so."""
        self.members += (connection,)
        self.place += 1
        connection.place = self.place

    def told(self, connection: Connection, claims: Claims | None, place: int) -> list[Decision]:
        """A CAPABILITY has come on a member."""
        decisions: list[Decision] = []
        if claims is not None:
            connection.told = True
            before = self._claims
            both = Claims(before.own.joined(claims.own), before.others.joined(claims.others))
            if both != before:  # else nothing new is kept: there is a line for each idle peer
                self._claims = both
            for member in self.members:
                if member is not connection and self._claims.covers(member):
                    self._drain(member, decisions)
        if place and not self.decides and not connection.place:
            self._placed(connection, place, decisions)
        elif connection.state is State.GREETED and self._claims.covers(connection):
            self._drain(connection, decisions)
        self._decide(decisions)
        # others may have waited for a drained one whose place was not known
        return decisions + self._released() if connection.place else decisions

    def _placed(self, connection: Connection, place: int, decisions: list[Decision]) -> None:
        """The one that decides has used a connection."""
        connection.place = place
        if connection.state is not State.GREETED:
            return
        if place <= self.place or self._claims.covers(connection):
            self._drain(connection, decisions)
            return
        self.place = place
        for member in self.members:
            if member.state is State.OPEN:  # it must have named it, or we would not follow
                self._drain(member, decisions)
        connection.advance(Step.USE)
        decisions.append((Verdict.USE, connection))

    def ended(self, connection: Connection, *, held: bool = False) -> list[Decision]:
        """A member is closed. held: what it brought is still held back, so it keeps its place."""
        if connection not in self.members:
            return []
        if not held:
            self.members = tuple(each for each in self.members if each is not connection)
        new = (connection.dialled, connection.number)
        same = [each for each in (*self._ended, new) if each[0] == connection.dialled]
        rest = [each for each in self._ended if each[0] != connection.dialled]
        self._ended = (*rest, *same[-OVER_MAX:])
        return self._decide(self._released())

    def settled(self, tag: int) -> list[Decision]:
        """A connection that had not said whose it is has, or has ended, or has nothing unread."""
        for member in self.members:
            if tag in member.waits_for:
                member.waits_for -= {tag}
        return self._released()

    def forgo(self, connection: Connection) -> None:
        """The other side does not know that we know places; it stands outside the line."""
        self.members = tuple(each for each in self.members if each is not connection)

    def finished(self, connection: Connection) -> list[Decision]:
        """What was held back of a closed member is delivered."""
        self.members = tuple(each for each in self.members if each is not connection)
        return self._released()

    def turn(self, connection: Connection) -> Turn:
        """What to do with messages that a member has just brought."""
        if connection.place and connection.place < self.delivered:
            return Turn.DROP
        if self._waits(connection):
            return Turn.HOLD
        self.delivered = max(self.delivered, connection.place)
        return Turn.DELIVER

    # What we say ------------------------------------------------------------------------------

    def claims(self, last_dial: int, undecided: list[int]) -> Claims:
        """What is over for us.

        Args:
            last_dial: number of our last dial, to whomever.
            undecided: numbers of our dials that have not said yet to whom they lead.
        """
        ours = [each.number for each in self._alive() if each.dialled] + undecided
        theirs = [
            each.number
            for each in self._alive()
            if not each.dialled and each.number > self._said  # what was said stays said
        ]
        said = Claims(self._over(True, ours, last_dial), self._over(False, theirs, self._seen))
        self._said = max(self._said, said.others.upto)
        return said

    def _over(self, dialled: bool, alive: list[int], last: int) -> Over:
        upto = min(alive) - 1 if alive else last
        ended = [number for by_us, number in self._ended if by_us == dialled and number > upto]
        return Over(upto, tuple(ended[-OVER_MAX:]))

    # What follows -----------------------------------------------------------------------------

    def _alive(self) -> list[Connection]:
        return [each for each in self.members if each.state is not State.CLOSED]

    @staticmethod
    def _drain(connection: Connection, decisions: list[Decision]) -> None:
        if connection.state not in (State.DRAINING, State.CLOSED):
            connection.advance(Step.DRAIN)
            decisions.append((Verdict.DRAIN, connection))

    def _decide(self, decisions: list[Decision]) -> list[Decision]:
        """The side that decides: use a connection that waits for that, or refuse it."""
        for member in self.members if self.decides else ():
            if member.state is not State.GREETED:
                continue
            states = {each.state for each in self.members}
            if State.OPEN in states:
                if member.told or member.dialled:  # else it has yet to say what is over for it
                    decisions.append((Verdict.REFUSE, member))
            elif not any(map(self._unfinished, self.members)):
                self.place += 1
                member.place = self.place
                member.advance(Step.USE)
                decisions.append((Verdict.USE, member))
        return decisions

    def _unfinished(self, member: Connection) -> bool:
        """Whether a member was used and is over for neither side: it is being left, perhaps for so
        long that we only read what is there."""
        return member.state is State.CLOSING or (
            member.state is State.DRAINING and member.place > 0 and not self._claims.covers(member)
        )

    def _waits(self, connection: Connection) -> bool:
        """Whether an older connection is unfinished, or one that may be older."""
        place = connection.place
        return bool(connection.waits_for) or any(
            each is not connection
            and (0 < each.place < place or (not each.place and each.state is State.DRAINING))
            for each in self.members
        )

    def _released(self) -> list[Decision]:
        return [
            (Verdict.RELEASE, each)
            for each in self.members
            if each.held is not None and not self._waits(each)
        ]
