"""Large messages: what a sender offers and moves, and what a receiver grants.

A message that is longer than one wide frame is offered under an id, and moves in slices when the
other side has granted it. The sender's half is an Offering, one for each connection; the receiver's
half are the Grants of a node, since one budget of memory is for all of its connections.

Sender. The message at the head of a class stays there until its last slice is handed to the link.
The next few large ones of its class are offered already, so that a lot of them is not bound by
round trips. An offer ends when its message is whole, when its message was replaced or has failed
(WITHDRAWN), or when the receiver has taken back its grant (LOST): then the message is offered
again, from its beginning and under another id. The offers of a class are made in its order: where
a message is offered (again) behind whose place others were offered, those are withdrawn first. Else
they would hold the budget that it waits for, and wait for it.

Receiver. Offers stand in one line. The first one that may come has its grant as soon as its whole
length fits into the budget, or nothing else is granted. One link has half of the budget at most, or
one message. Where the system has not so much memory, shorter ones of other links go first, and it
is refused in the end. A grant that does not move is taken back
when others wait for it. Slices of it that come then are dropped, until the sender has said
WITHDRAWN; meanwhile nothing else of that link is granted, so that the sender can tell which of its
messages this cost (Offering.refused).

Invariant: what is granted is at most the budget, or one message. A sender has at most OFFERS_OUT
offers out, and a link at most OFFERS_MAX. Never: copies a message, asks a link, reads a clock.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

from .outbox import HIGHEST_FIRST, Payload

OFFERS_MAX = 64
"""Offers of one link that may be open at its receiver: four times what a sender of ours has out."""
AHEAD = 3
"""Messages of a class that are offered behind the one at its head: enough for the way there and
back, and little of the receiver's budget."""
OFFERS_OUT = len(HIGHEST_FIRST) * (1 + AHEAD)
"""Offers that a sender has out at most, all classes together."""
AHEAD_LOOK = 16
"""Messages behind the head of a class among which large ones are looked for."""
SLICE = 262_144
"""Bytes of a message in one slice, at most, and of slices that a link holds unsent: more would only
stand before what comes of a higher class."""
LOOKS = 4
"""Looks, a part of Config.link_timeout each, through which a grant that does not move is kept. By
looks rather than by a clock, so that time in which this program was stopped counts as one."""
_ID_MAX = 2**32 - 1
BOUNDLESS = 2**32
"""More bytes than a message can have."""


class Refusal(enum.IntEnum):
    """The reason in a REFUSE, as a byte on the wire."""

    UNSPECIFIED = 0
    """From the receiver: it does not take the message; ours say so for want of memory."""
    TOO_LARGE = 1
    """From the receiver: longer than its limit."""
    LOST = 2
    """From the receiver: the grant is taken back, because nothing moved."""
    WITHDRAWN = 3
    """From the sender: nothing more of this id will come."""


class Word(NamedTuple):
    """A frame about a large message: OFFER, GRANT or REFUSE. total: of an OFFER; reason: of a
    REFUSE."""

    kind: int
    id: int
    total: int = 0
    reason: int = 0


# The sender's half ----------------------------------------------------------------------------


class Stage(enum.Enum):
    """How far an offer is, at either end."""

    OFFERED = "offered"
    """It waits for its grant."""
    GRANTED = "granted"
    REFUSED = "refused"
    """The receiver does not take it. There: while it has not said so."""
    LOST = "lost"
    """At the receiver: its grant was taken back, and the sender has not answered."""


class Offer:
    """A message that was offered. number: in the count of its peer; offset: bytes of it that were
    handed to the link."""

    __slots__ = ("id", "number", "offset", "payload", "priority", "stage")

    def __init__(self, id: int, priority: int, number: int, payload: Payload) -> None:
        self.id = id
        self.priority = priority
        self.number = number
        self.payload = payload
        self.offset = 0
        self.stage = Stage.OFFERED


class Slice(NamedTuple):
    """What is to be handed next of a message: `size` bytes from `offset` on."""

    payload: Payload
    id: int
    offset: int
    size: int


class Refused(NamedTuple):
    """What a REFUSE has done. withdraw: ids that the receiver is to hear WITHDRAWN of. undone: the
    number of a message whose slices have all been handed, and which the receiver dropped; 0:
    none."""

    withdraw: tuple[int, ...] = ()
    undone: int = 0


class Offering:
    """The large messages that are on their way on one connection."""

    __slots__ = ("_by_id", "_done", "_heads", "_lanes", "_last", "departing", "undone")

    def __init__(self) -> None:
        self.departing: Offer | None = None
        """The offer that the link hands on by itself, as there is room."""
        self._by_id: dict[int, Offer] = {}
        self._lanes: list[dict[int, Offer]] = [{} for _ in HIGHEST_FIRST]
        """Of each class its offers by the number of their message."""
        self._heads: list[Offer | None] = [None] * len(HIGHEST_FIRST)
        """Of each class the offer of the message at its head, since that had its turn."""
        self._last = 0
        """The last id that was offered."""
        self._done: deque[tuple[int, int]] = deque(maxlen=OFFERS_MAX)
        """Id and number of the last messages that were handed to their last slice. The receiver
        grants nothing behind a grant that it has taken back, so it had granted all of those that
        went behind it before; so these are enough to find the one that it means."""
        self.undone: set[int] = set()
        """Numbers of messages that the receiver dropped, and that are not told as failed yet."""

    @property
    def blocked(self) -> int:
        """Classes whose head waits for its grant, a sum of 1 << class."""
        mask = 0
        for head in self._heads:
            if head is not None and head.stage is Stage.OFFERED:
                mask |= 1 << head.priority
        return mask

    @property
    def leaving(self) -> int:
        """Classes of whose head slices have been handed, likewise."""
        mask = 0
        for head in self._heads:
            if head is not None and head.offset:
                mask |= 1 << head.priority
        return mask

    @property
    def out(self) -> int:
        """Offers that have not ended."""
        return len(self._by_id)

    def head(self, priority: int) -> Offer | None:
        """The offer of the message at the head of a class; None: that message is none that was
        offered and had its turn."""
        return self._heads[priority]

    def begin(self, priority: int, number: int) -> bool:
        """A message that is too long for a frame has its turn. False: it is to be offered first,
        and withdraw() before that."""
        offer = self._lanes[priority].get(number)
        if offer is not None:
            self._heads[priority] = offer
        return offer is not None

    def next_offer(self, priority: int, number: int, payload: Payload) -> Offer:
        """An offer of a message, with the next id; nothing has changed before put()."""
        return Offer(self._last % _ID_MAX + 1, priority, number, payload)

    def put(self, offer: Offer) -> None:
        """An offer of next_offer() has left: its id is used, and it waits for its grant."""
        self._last = offer.id
        self._by_id[offer.id] = self._lanes[offer.priority][offer.number] = offer

    def ahead(
        self, priority: int, behind: Iterable[tuple[int, Payload]], longest: int, limit: int
    ) -> Iterator[Offer]:
        """Offers that may leave for the messages behind the head of a class; each is to be put
        before the next is asked for.

        Args:
            behind: numbers and bytes of these, in order.
            longest: bytes of a message that needs no offer.
            limit: bytes of one that the peer takes; a longer one fails when its turn comes.
        """
        lane, following = self._lanes[priority], deque(behind)
        for _ in range(sum(number in lane for number, _ in following)):
            while following.popleft()[0] not in lane:
                pass  # before one that is offered: not before it has its turn
        for number, payload in following:
            if len(lane) > AHEAD:
                return
            if longest < len(payload) <= limit:
                yield self.next_offer(priority, number, payload)

    def granted(self, id: int) -> bool:
        """A GRANT has come. False: it breaks the protocol, for nothing was offered so. One of an
        offer that has ended meanwhile changes nothing."""
        offer = self._by_id.get(id)
        if offer is not None and offer.stage is Stage.OFFERED:
            offer.stage = Stage.GRANTED
        return self._was_offered(id)

    def may_go(self, id: int) -> bool:
        """Whether a message that was just granted may be the next to leave: not behind one of its
        class that departs."""
        offer, departing = self._by_id.get(id), self.departing
        return offer is None or departing is None or offer.priority != departing.priority

    def refused(self, id: int, reason: int) -> Refused | None:
        """A REFUSE of the receiver has come; None: as granted() says False. LOST withdraws all
        offers of the class, whose messages are to be offered anew; any other reason makes the
        message fail when its turn comes."""
        if not self._was_offered(id):
            return None
        offer = self._by_id.get(id)
        if reason != Refusal.LOST:
            if offer is not None:
                offer.stage = Stage.REFUSED
            return Refused()
        if offer is None:
            done = next((each for each in self._done if each[0] == id), None)
            if done is None:
                return Refused()
            self._done.remove(done)  # nobody drops a message twice
            return Refused((id,), done[1])
        return Refused(self.withdraw(offer.priority))

    def withdraw(self, priority: int) -> tuple[int, ...]:
        """End all offers of a class, whose messages are to be offered anew. Returns their ids, of
        which the receiver is to hear WITHDRAWN."""
        offers = list(self._lanes[priority].values())
        for each in offers:
            self._remove(each)
        return tuple(each.id for each in offers if each.stage is not Stage.REFUSED)

    def replaced(self, number: int) -> int:
        """A message has given its place to another. Returns the id of its offer, of which the
        receiver is to hear WITHDRAWN; 0: there is none."""
        offer = next((lane[number] for lane in self._lanes if number in lane), None)
        if offer is None:
            return 0
        self._remove(offer)
        return 0 if offer.stage is Stage.REFUSED else offer.id

    def slice(self, offer: Offer, referred: int, longest: int) -> Slice | None:
        """What is to be handed next of a granted message; None: the link holds enough.

        Args:
            offer: of the message at the head of its class.
            referred: bytes of slices that the link holds.
            longest: bytes of a slice that the link takes.
        """
        assert offer.stage is Stage.GRANTED
        size = min(SLICE, longest, len(offer.payload) - offer.offset)
        if referred and referred + size > SLICE:
            return None
        return Slice(offer.payload, offer.id, offer.offset, size)

    def moved(self, offer: Offer, size: int) -> bool:
        """So many bytes have been handed. True: that was the last slice, and the offer has
        ended."""
        offer.offset += size
        if offer.offset < len(offer.payload):
            return False
        self._remove(offer)
        self._done.append((offer.id, offer.number))
        return True

    def failed(self, offer: Offer) -> None:
        """A refused message had its turn, and is gone."""
        self._remove(offer)

    def _was_offered(self, id: int) -> bool:
        return 0 < id <= self._last or id in self._by_id

    def _remove(self, offer: Offer) -> None:
        del self._by_id[offer.id], self._lanes[offer.priority][offer.number]
        if self._heads[offer.priority] is offer:
            self._heads[offer.priority] = None
        if self.departing is offer:
            self.departing = None


# The receiver's half --------------------------------------------------------------------------

C = TypeVar("C")
"""What a link is known by."""


class Landing(Generic[C]):
    """A message that somebody has offered. total: its bytes; looks: through how many it has not
    moved; seen: what the last look saw; lacked: how often memory was asked for in vain."""

    __slots__ = ("id", "lacked", "link", "looks", "seen", "stage", "total")

    def __init__(self, link: C, id: int, total: int) -> None:
        self.link = link
        self.lacked = 0
        self.id = id
        self.total = total
        self.stage = Stage.OFFERED
        self.looks = 0
        self.seen: object = None


class _Link(Generic[C]):
    """Of one link: its open offers by id, the highest id so far, of how many the grant was taken
    back, and the bytes of those that are granted."""

    __slots__ = ("held", "last", "lost", "offers")

    def __init__(self) -> None:
        self.offers: dict[int, Landing[C]] = {}
        self.last = 0
        self.lost = 0
        self.held = 0


class Verdict(enum.Enum):
    """What is done with an offer."""

    WAIT = "wait"
    """It stands in line."""
    REFUSE = "refuse"
    """It is too large."""
    FAULT = "fault"
    """It breaks the protocol: the link ends."""


class Grants(Generic[C]):
    """What is offered to a node, and what it has granted.

    Args:
        limit: bytes that may be granted at a time; a longer message is granted alone.
        max_message: bytes of the longest message that is taken.

    held: bytes of the messages that are granted. lost: grants that were taken back, so far. short:
    whose turn it was at last is too long for what is left, and waits for what others were granted.
    """

    __slots__ = ("_granted", "_line", "_links", "held", "limit", "lost", "max_message", "short")

    def __init__(self, limit: int, max_message: int) -> None:
        self.limit = limit
        self.max_message = max_message
        self.held = 0
        self.lost = 0
        self.short = False
        self._links: dict[C, _Link[C]] = {}
        self._line: dict[Landing[C], None] = {}
        self._granted: dict[Landing[C], None] = {}

    @property
    def waiting(self) -> int:
        """Offers that stand in line."""
        return len(self._line)

    def offered(self, link: C, id: int, total: int) -> Verdict:
        """An OFFER has come. One that is refused counts as open until said() that it is."""
        of_link = self._links.get(link)
        if of_link is None:
            of_link = self._links[link] = _Link()
        open_offers = of_link.offers
        if not id or not total or id in open_offers or len(open_offers) >= OFFERS_MAX:
            return Verdict.FAULT
        of_link.last = max(of_link.last, id)
        landing = open_offers[id] = Landing(link, id, total)
        if total > self.max_message:
            landing.stage = Stage.REFUSED
            return Verdict.REFUSE
        self._line[landing] = None
        return Verdict.WAIT

    def said(self, link: C, id: int) -> None:
        """The sender has been told that its offer is refused."""
        landing = self._landing(link, id)
        if landing is not None and landing.stage is Stage.REFUSED:
            self._forget(landing)

    def next(self, may_come: Callable[[C], bool], scarce: int = BOUNDLESS) -> Landing[C] | None:
        """Whose turn it is to be granted; it stands in line until grant(). None: nobody's.

        may_come: whether there is room for what a link brings. One for which there is none is
            passed over; one that is too long for what is left is waited for.
        scarce: bytes that could not be had. A link whose next one is as long is passed over, too,
            and so is one that would hold more than half of the budget.
        """
        self.short = False
        asked: dict[C, bool] = {}
        for landing in self._line:
            link = landing.link
            of_link = self._links[link]
            if link not in asked:
                asked[link] = not of_link.lost and may_come(link)
            if asked[link] and (landing.total >= scarce or self._has_its_share(of_link, landing)):
                asked[link] = False  # nor what stands behind it, which its sender sends after it
            if asked[link]:
                self.short = bool(self.held) and self.held + landing.total > self.limit
                return None if self.short else landing
        return None

    def _has_its_share(self, of_link: _Link[C], landing: Landing[C]) -> bool:
        return bool(of_link.held) and of_link.held + landing.total > self.limit // 2

    def refuse(self, landing: Landing[C]) -> None:
        """It is not taken, and open until said() that it is not."""
        del self._line[landing]
        landing.stage = Stage.REFUSED

    def grant(self, landing: Landing[C]) -> None:
        """There is memory for it: it counts from now on."""
        del self._line[landing]
        landing.stage, landing.seen = Stage.GRANTED, None
        self._granted[landing] = None
        self.held += landing.total
        self._links[landing.link].held += landing.total
        assert self.held <= self.limit or len(self._granted) == 1

    def landed(self, link: C, id: int) -> bool:
        """A message is whole, and delivered. False: none of this id was granted."""
        landing = self._landing(link, id)
        if landing is None or landing.stage is not Stage.GRANTED:
            return False
        self._forget(landing)
        return True

    def withdrawn(self, link: C, id: int) -> bool:
        """The sender sends nothing more of this id. False: it breaks the protocol, for it never
        offered that. One that has ended meanwhile changes nothing."""
        landing = self._landing(link, id)
        if landing is not None and landing.stage is not Stage.REFUSED:
            self._forget(landing)
        return landing is not None or (link in self._links and 0 < id <= self._links[link].last)

    def ended(self, link: C) -> None:
        """A link is over, with all that was offered on it."""
        of_link = self._links.get(link)
        if of_link is not None:
            for landing in list(of_link.offers.values()):
                self._forget(landing)
            del self._links[link]

    def look(self, seen: Callable[[Landing[C]], object]) -> list[Landing[C]]:
        """While somebody waits for them: those that have not moved for LOOKS looks are to lose
        their grants. Returns them; their senders are to hear LOST, and lose() is to follow.

        seen: something that is another when the message, or anything else that its link brings,
            has moved; None: its link is not read.
        """
        for landing in self._granted:
            now = seen(landing)
            landing.looks = landing.looks + 1 if now is not None and now == landing.seen else 0
            landing.seen = now
        return [landing for landing in self._granted if landing.looks >= LOOKS]

    def lose(self, landing: Landing[C]) -> None:
        """Its sender was told LOST: it holds nothing, and its id is in use until WITHDRAWN."""
        self._release(landing)
        landing.stage = Stage.LOST
        self._links[landing.link].lost += 1
        self.lost += 1

    def rest(self) -> None:
        """Nobody waits: what was seen of those that are granted is forgotten."""
        for landing in self._granted:
            landing.looks, landing.seen = 0, None

    @property
    def refused(self) -> list[Landing[C]]:
        """Those whose senders have not been told yet that they are not taken."""
        return [each for each in self._offers() if each.stage is Stage.REFUSED]

    def mend(self) -> None:
        """An exception may have cut anything off: be what the open offers of each link say. One
        that is missing in the line stood at its head."""
        stages: dict[Stage, dict[Landing[C], None]] = {stage: {} for stage in Stage}
        for landing in self._offers():
            stages[landing.stage][landing] = None
        waiting, granted = stages[Stage.OFFERED], stages[Stage.GRANTED]
        in_line = [each for each in self._line if each in waiting]
        missing = [each for each in waiting if each not in self._line]
        self._line = dict.fromkeys([*missing, *in_line])
        self._granted = granted
        self.held = sum(each.total for each in granted)
        for of_link in self._links.values():
            offers = of_link.offers.values()
            of_link.lost = sum(each.stage is Stage.LOST for each in offers)
            of_link.held = sum(each.total for each in offers if each.stage is Stage.GRANTED)

    def _offers(self) -> list[Landing[C]]:
        return [each for of_link in self._links.values() for each in of_link.offers.values()]

    def _landing(self, link: C, id: int) -> Landing[C] | None:
        of_link = self._links.get(link)
        return None if of_link is None else of_link.offers.get(id)

    def _release(self, landing: Landing[C]) -> None:
        del self._granted[landing]
        self.held -= landing.total
        self._links[landing.link].held -= landing.total

    def _forget(self, landing: Landing[C]) -> None:
        of_link = self._links[landing.link]
        del of_link.offers[landing.id]
        if landing.stage is Stage.GRANTED:
            self._release(landing)
        elif landing.stage is Stage.LOST:
            of_link.lost -= 1
        else:
            self._line.pop(landing, None)
