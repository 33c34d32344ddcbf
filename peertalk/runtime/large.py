"""Large messages that are on their way to one node, and from it.

What is offered and granted, and when, is decided in protocol/large; here memory is asked for it,
links are given slices, and what was decided is said. A GRANT or REFUSE that finds no room is owed,
and goes before messages that wait.

Invariant: a message is granted only when the core has the memory for it. Never: ends a connection.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import errors
from .._core import values
from ..protocol import events, limits
from ..protocol.connections import OWES_WIDE, Connection, State
from ..protocol.inbox import Inbox
from ..protocol.large import (
    AHEAD_LOOK,
    BOUNDLESS,
    LOOKS,
    Grants,
    Landing,
    Offer,
    Offering,
    Refusal,
    Stage,
    Verdict,
    Word,
)
from ..protocol.outbox import Outbox
from .engine import Engine, Timer
from .remote import Remote

_NO_ROOM = {errors.WouldBlock.code, errors.OutOfMemory.code}
_NOT_TAKEN = {Refusal.TOO_LARGE, Refusal.UNSPECIFIED}
_STARVED_RETRY = 0.01
"""Seconds until memory for a grant is asked for again; each time so much later."""


class Landings:
    """The large messages that others send to one engine. On the engine's thread only.

    Args:
        engine: whose connections these are.
        inbox: where they are put.
        max_message: bytes of the longest that is taken.
        refused: told that a link took no more, by which code. See Traffic.refused.
    """

    def __init__(
        self,
        engine: Engine,
        inbox: Inbox[Remote],
        max_message: int,
        refused: Callable[[Remote, int], None],
    ) -> None:
        self.engine = engine
        self.inbox = inbox
        self.grants: Grants[Connection] = Grants(engine.config.receive_large_bytes, max_message)
        self._refused = refused
        self._looking: Timer | None = None
        self._scarce = BOUNDLESS
        """Bytes for which there was no memory, until it is asked for again."""

    # What the other side says ---------------------------------------------------------------------

    def offered(self, connection: Connection, id: int, total: int) -> bool:
        """An OFFER has come. False: it breaks the protocol."""
        verdict = self.grants.offered(connection, id, total)
        if verdict is Verdict.REFUSE:
            self.say(connection, Word(values.REFUSE, id, reason=Refusal.TOO_LARGE))
        elif verdict is Verdict.WAIT:
            self.serve()
        return verdict is not Verdict.FAULT

    def withdrawn(self, connection: Connection, id: int) -> bool:
        """The sender sends nothing more of an id. False: that breaks the protocol."""
        known = self.grants.withdrawn(connection, id)
        connection.link.forgo(id)
        connection.link.forget(id)
        self.serve()
        return known

    def landed(self, connection: Connection, id: int) -> None:
        """A message is whole: its memory is the inbox's from now on."""
        self.grants.landed(connection, id)
        if self.grants.waiting:
            self.engine.post(self.serve)  # when it is in the inbox, which may be full then

    def ended(self, connection: Connection) -> None:
        """A connection is over, and with it what was on its way there."""
        self.grants.ended(connection)
        self.serve()

    # What we say ----------------------------------------------------------------------------------

    def serve(self) -> None:
        """Grant what there is room for, in order."""
        try:
            self._serve()
        except BaseException:  # a signal handler's, and perhaps not within a turn
            self.engine.after(0.0, self.mend)
            raise

    def mend(self) -> None:
        """After anything was cut off: nothing is held for nobody, and what was decided is said."""
        self.grants.mend()
        for landing in self.grants.refused:
            too_large = landing.total > self.grants.max_message
            reason = Refusal.TOO_LARGE if too_large else Refusal.UNSPECIFIED
            word = Word(values.REFUSE, landing.id, reason=reason)
            if word not in landing.link.unsaid:
                self.say(landing.link, word)
        self.serve()

    def _serve(self) -> None:
        grants = self.grants
        while not self.engine.closing:
            landing = grants.next(self._may_come, self._scarce)
            if landing is None:
                break
            connection, id = landing.link, landing.id
            code = connection.link.expect(id, landing.total)
            if code == errors.OutOfMemory.code:
                self._lacks(landing)
            elif code < 0 and code != errors.InvalidState.code:
                grants.ended(connection)  # its link is over, which will be told
            else:  # or it has that memory: what followed was cut off
                self.say(connection, Word(values.GRANT, id))
                grants.grant(landing)
        if grants.short and self._looking is None and not self.engine.closing:
            pause = self.engine.config.link_timeout / LOOKS
            self._looking = self.engine.after(pause, self._look)

    def _may_come(self, connection: Connection) -> bool:
        peer = connection.peer
        return (
            connection.state is State.OPEN
            and isinstance(peer, Remote)
            and not connection.unsaid  # who does not read what we say has no more to be said
            and not self.inbox.must_wait(self.inbox.outlet_of(peer))
        )

    def _lacks(self, landing: Landing[Connection]) -> None:
        """There is no memory for a message: shorter ones pass. After Config.link_timeout it is
        refused, since those of its class wait behind it."""
        landing.lacked += 1
        pause, waited = landing.lacked * _STARVED_RETRY, landing.lacked**2 * _STARVED_RETRY / 2
        if waited > self.engine.config.link_timeout:
            self.grants.refuse(landing)
            self.say(landing.link, Word(values.REFUSE, landing.id, reason=Refusal.UNSPECIFIED))
            text = "a message of %s bytes from %s was refused: there was no memory for it"
            self.engine.log.warning(text, f"{landing.total:,}", landing.link.name)
            return
        if self._scarce == BOUNDLESS:
            self.engine.after(pause, self._ask_again)
        self._scarce = landing.total

    def _ask_again(self) -> None:
        self._scarce = BOUNDLESS
        self.serve()

    def _look(self) -> None:
        """Somebody waits for what others were granted: who does not move loses that."""
        self._looking = None
        if not self.grants.short:
            self.grants.rest()
            return
        for landing in self.grants.look(_seen):
            landing.link.link.forgo(landing.id)
            self.say(landing.link, Word(values.REFUSE, landing.id, reason=Refusal.LOST))
            self.grants.lose(landing)
        self.serve()

    def say(self, connection: Connection, word: Word) -> None:
        """Send a GRANT or REFUSE, behind those that are owed."""
        if connection.unsaid or not self._say(connection, word):
            connection.owed |= OWES_WIDE
            connection.unsaid = (*connection.unsaid, word)

    def _say(self, connection: Connection, word: Word) -> bool:
        code: int = connection.link.send_wide(*word)
        if code in _NO_ROOM:
            if isinstance(connection.peer, Remote):
                self._refused(connection.peer, code)
            return False
        self.engine.hint(code)
        if word.kind == values.REFUSE and word.reason in _NOT_TAKEN:
            self.grants.said(connection, word.id)
        return True

    def pay(self, connection: Connection) -> None:
        """There may be room for what is owed. Rather twice than not at all, if this is cut off."""
        while connection.unsaid and self._say(connection, connection.unsaid[0]):
            connection.unsaid = connection.unsaid[1:]
        if connection.unsaid:
            return
        connection.owed &= ~OWES_WIDE
        if self.grants.waiting:
            self.serve()


def _seen(landing: Landing[Connection]) -> object:
    """What tells whether a message, or its link, has moved; None: the link is not read."""
    link = landing.link.link
    if link.paused:
        return None
    return link.landed(landing.id), link.statistics().payload_bytes_received


class Departures:
    """The large messages that one engine sends. On the engine's thread only.

    Args:
        engine: whose connections these are.
        say: Landings.say.
        fail: Traffic.fail.
    """

    def __init__(
        self, engine: Engine, say: Callable[[Connection, Word], None], fail: Callable[..., None]
    ) -> None:
        self.engine = engine
        self._say = say
        self._fail = fail

    def offer(self, peer: Remote, connection: Connection, outbox: Outbox) -> int:
        """The next message is a large one: its class waits for its grant from now on. Returns why
        it cannot be offered now, else 0."""
        head = outbox.head()
        assert head is not None
        offering = connection.offering
        if offering is None:
            offering = connection.offering = Offering()
            if not connection.classes:
                peer.use_classes(connection)
        priority, number, payload = head
        if not offering.begin(priority, number):
            for each in offering.withdraw(priority):
                self._withdraw(connection, each)
            offer = offering.next_offer(priority, number, payload)
            code = self._send_offer(connection, offering, offer)
            if code < 0:
                return code
            offering.begin(priority, number)
        self._offer_ahead(peer, connection, offering, outbox, priority)
        return 0

    def _send_offer(self, connection: Connection, offering: Offering, offer: Offer) -> int:
        if connection.unsaid:  # so no more offers are open there than here
            return errors.WouldBlock.code
        code: int = connection.link.send_wide(values.OFFER, offer.id, len(offer.payload))
        if code >= 0:
            offering.put(offer)
            self.engine.hint(code)
        return code

    def _offer_ahead(
        self,
        peer: Remote,
        connection: Connection,
        offering: Offering,
        outbox: Outbox,
        priority: int,
    ) -> None:
        """The next large ones of a class are offered already."""
        if len(outbox) <= offering.out:
            return  # all that wait are offered
        link = connection.link
        longest = max(link.max_message, link.wide_max)
        behind = outbox.behind(priority, AHEAD_LOOK)
        for offer in offering.ahead(priority, behind, longest, peer.largest):
            if self._send_offer(connection, offering, offer) < 0:
                return

    def hand(self, peer: Remote, connection: Connection, outbox: Outbox) -> int | None:
        """Give the link the next slice of the large message whose turn it is, or all of it; one
        that the peer has refused fails. Returns what the link says, or that it holds enough; None:
        the next message is none that was granted."""
        offering = connection.offering
        assert offering is not None
        outbox.blocked, outbox.leaving = offering.blocked, offering.leaving
        if (departing := offering.departing) is not None:
            if self._settle(connection, offering, outbox):
                return 0
            if outbox.is_alone(departing.priority):
                self._offer_ahead(peer, connection, offering, outbox, departing.priority)
                return errors.WouldBlock.code
            self.recall(peer)  # classes have their turns, slice by slice
        head = outbox.head()
        offer = None if head is None else offering.head(head[0])
        if head is None or offer is None:
            return None
        assert head[1] == offer.number, "another message stands at the head"
        if offer.stage is Stage.REFUSED:
            self._fail_refused(peer, outbox, offering, offer)
            return 0
        code = (
            self._depart(connection, offering, outbox, offer)
            if outbox.is_alone(offer.priority)
            else self._hand_slice(connection, offering, outbox, offer)
        )
        if code >= 0:
            self.engine.hint(code)
            self._offer_ahead(peer, connection, offering, outbox, offer.priority)
        return code if offering.departing is None else errors.WouldBlock.code

    def _hand_slice(
        self, connection: Connection, offering: Offering, outbox: Outbox, offer: Offer
    ) -> int:
        link = connection.link
        part = offering.slice(offer, link.referred, link.slice_max)
        code: int = errors.WouldBlock.code if part is None else link.send_slice(*part)
        if part is not None and code >= 0:
            outbox.leaving |= 1 << offer.priority
            outbox.went(offer.priority)
            self._moved(connection, offering, outbox, offer, part.size)
        return code

    def _depart(
        self, connection: Connection, offering: Offering, outbox: Outbox, offer: Offer
    ) -> int:
        """Nothing of another class waits: the link hands on all of it."""
        code: int = connection.link.depart(offer.payload, offer.id, offer.offset)
        if code >= 0:
            offering.departing = offer
            outbox.leaving |= 1 << offer.priority
            self._settle(connection, offering, outbox)
        return code

    def settle(self, peer: Remote) -> bool:
        """Note how much of a message the link has handed on by itself. Whether that was the last of
        it: the message is no longer in the outbox."""
        connection, outbox = peer.connection, peer.outbox
        offering = None if connection is None else connection.offering
        if connection is None or offering is None or offering.departing is None:
            return False
        assert outbox is not None, "what departs stands at the head of its class"
        return self._settle(connection, offering, outbox)

    def _settle(self, connection: Connection, offering: Offering, outbox: Outbox) -> bool:
        offer = offering.departing
        assert offer is not None
        size = len(offer.payload) - connection.link.departing - offer.offset
        return size > 0 and self._moved(connection, offering, outbox, offer, size)

    def _moved(
        self,
        connection: Connection,
        offering: Offering,
        outbox: Outbox,
        offer: Offer,
        size: int,
    ) -> bool:
        if not offering.moved(offer, size):
            return False
        [(first, last)] = outbox.drop_head(offer.priority)
        connection.handed.add(first, last)
        return True

    def recall(self, peer: Remote) -> None:
        """The link is to hand nothing on by itself."""
        self.settle(peer)
        connection = peer.connection
        offering = None if connection is None else connection.offering
        if connection is not None and offering is not None and offering.departing is not None:
            offering.departing = None
            connection.link.recall()

    def _fail_refused(self, peer: Remote, outbox: Outbox, offering: Offering, offer: Offer) -> None:
        outbox.drop(1)
        offering.failed(offer)
        self.engine.totals.abandoned += 1
        error = limits.refused_there(peer, len(offer.payload))
        self._fail(peer, offer.number, offer.number, events.Outcome.FAILED, error)

    def granted(self, connection: Connection, id: int) -> bool:
        """A GRANT has come. False: it breaks the protocol."""
        offering = connection.offering
        return offering is not None and offering.granted(id)

    def may_go(self, connection: Connection, id: int) -> bool:
        """Whether something may leave because of a GRANT that has come."""
        offering = connection.offering
        return offering is None or offering.may_go(id)

    def turned_down(self, connection: Connection, id: int, reason: int) -> bool:
        """A REFUSE of the receiver has come. False: it breaks the protocol."""
        offering, peer = connection.offering, connection.peer
        if offering is not None and offering.departing is not None:
            assert isinstance(peer, Remote)
            self.recall(peer)
        refused = None if offering is None else offering.refused(id, reason)
        if offering is None or refused is None:
            return False
        for each in refused.withdraw:
            self._withdraw(connection, each)
        if refused.undone:
            offering.undone.add(refused.undone)
            self.tell_undone(connection)
        return True

    def replaced(self, connection: Connection, number: int) -> None:
        """A message that waited, and does not depart, has given its place to another."""
        offering = connection.offering
        if offering is not None and (id := offering.replaced(number)):
            self._withdraw(connection, id)

    def failed(self, connection: Connection, first: int, last: int) -> None:
        """Messages of these numbers have failed with their link, which is told elsewhere."""
        if connection.offering is not None:
            undone = connection.offering.undone
            undone -= {number for number in undone if first <= number <= last}

    def tell_undone(self, connection: Connection) -> None:
        """What the receiver has dropped was sent all the same: when that is reported, it has
        failed."""
        offering, peer = connection.offering, connection.peer
        assert offering is not None and isinstance(peer, Remote)
        for number in [each for each in offering.undone if not connection.handed.holds(each)]:
            offering.undone.remove(number)
            connection.handed.disown(number)
            dropped = limits.dropped_there(peer)
            self._fail(peer, number, number, events.Outcome.FAILED, dropped, was_sent=True)

    def _withdraw(self, connection: Connection, id: int) -> None:
        self._say(connection, Word(values.REFUSE, id, reason=Refusal.WITHDRAWN))
