"""Messages on their way: from a peer's outbox to its link, from a link to the inbox, and what
became of each.

The order of one peer's messages of one class is the order of acceptance: straight into its link
while nothing waits before it, else into its outbox, from where pump() moves them on, higher classes
first. Messages to a peer are numbered from 1; its connection keeps which of them its link was
given, in that order, which is how the counts that a link reports become the ranges of Sent and
Failed.

Invariant: each number that was accepted is reported once, as Sent or as Failed. Never: opens or
ends a connection; what needs one asks for that (reach), and who is leaving hears that there is room
(slots_came_free).
"""

from __future__ import annotations

from collections.abc import Callable

from .. import errors
from .._core import values
from .._numbers import (
    ERR_CANCELLED,
    MESSAGE_LIMIT_MAX,
    TURN_MAX_BYTES,
    TURN_MAX_MESSAGES,
)
from ..protocol import endings, events, limits
from ..protocol.connections import Connection, State
from ..protocol.inbox import Inbox, Outlet
from ..protocol.outbox import NORMAL, Key, Outbox
from ..protocol.peer import FRAGMENTED_MAX, PeerState
from ..protocol.pieces import Pieces
from .engine import Engine, Timer
from .large import Departures, Landings
from .remote import Remote

_PUMP = 256
_UNTAKEN_TIME = 5.0
"""Seconds that a full inbox may stay untouched before a warning is logged."""
_TAKING = "taking messages"
_STARVED_RETRY = 0.01


class Traffic:
    """The messages of one node. On the engine's thread only.

    Args:
        engine: whose loop, counters and events these are.

    inbox: what has arrived and is not taken. landings, departures: large messages on their way
    here, and from here. kept: what was put into the inbox last in this turn. unsent: messages that
    were accepted and not sent when the node was closed. max_message: bytes of the longest message;
    max_frame: of the longest in one frame of the original's form.
    """

    reach: Callable[[Remote], None]
    """Switchboard sets it, to Dialling.reach: a connection is wanted for what waits."""
    slots_came_free: Callable[[Connection], None]
    """Switchboard.slots_came_free, set there: a connection on its way out may say goodbye."""
    press: Callable[[Connection, Outlet[Remote]], None]
    """Pulse.press, set there: the other side hears how full the inbox is."""
    pay: Callable[[Connection], None]
    """Pulse.pay, set there: pressure and PING that found no room before leave first."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.totals = engine.totals
        config = engine.config
        self.max_frame: int = engine.world.max_frame(engine.core)
        self.max_message = limits.own_limit(
            config.max_message,
            self.max_frame,
            engine.core.limits,
            chosen=config.explain()["max_message"][1] != "default",
        )
        self.inbox: Inbox[Remote] = Inbox(
            config.receive_queue_bytes, self.resume, self._stalled, lambda: self.landings.serve()
        )
        self.landings = Landings(engine, self.inbox, self.max_message, self.refused)
        self.departures = Departures(engine, self.landings.say, self.fail)
        self.kept: list[bytes] | None = None
        self.unsent = 0
        self._fragmented = 0
        """Message id of the next message that is sent in fragments, of the whole node as in the
        original."""
        self._starved: dict[Remote, None] = {}
        self._put = self._put_in = 0
        """Bytes that outboxes were given in the turn of this number."""
        self._warnings: dict[Outlet[Remote], Timer] = {}

    @property
    def wide(self) -> bool:
        """Whether this node takes, and sends, the wide form."""
        return self.max_message > MESSAGE_LIMIT_MAX

    # Out ------------------------------------------------------------------------------------------

    def pump(self, peer: Remote) -> None:
        """Move what waits in the outbox to the link, as far as it takes it; then tell those who
        wait for room."""
        if self.move(peer):
            peer.on_room()

    def _go_on_large(self, peer: Remote, outbox: Outbox) -> None:
        """A slice has left, which gives room in the outbox with the first and the last one."""
        before = len(outbox), outbox.leaving
        if self.move(peer) and (len(outbox), outbox.leaving) != before:
            peer.on_room()

    def move(self, peer: Remote) -> bool:
        """Move what waits in the outbox to the link, as far as it takes it. False: there is no
        link."""
        connection = peer.connection
        if connection is None or connection.state is not State.OPEN:
            return False
        if connection.owed:
            self.pay(connection)
        if peer.quick is not None:
            return True
        outbox = peer.outbox
        if outbox is None or self._hand_over(peer, connection, outbox):
            peer.outbox = None
            if not connection.handed.first:
                connection.handed.open(peer.accepted + 1)
            if (
                peer.state is PeerState.CONNECTED
                and not self.engine.closing
                and peer.lowest <= NORMAL
                and not peer.in_line(NORMAL)  # a new message must not overtake those who wait
            ):
                peer.quick = connection.link.native
        return True

    def _hand_over(self, peer: Remote, connection: Connection, outbox: Outbox) -> bool:
        """Give the link what waits, in its order. False: it took no more, or what is left waits for
        a grant."""
        link, handed = connection.link, connection.handed
        self.count_given(connection, outbox)  # an exception may have cut this off
        outbox.blocked = outbox.leaving = 0
        while (pieces := connection.pieces) is not None or outbox:
            # before anything else of any class: the other side puts together one message at a time
            if pieces is not None:
                code = self._hand_piece(connection, pieces)
                if code < 0:
                    self.refused(peer, code)
                    return False
                continue
            if connection.offering is not None:
                large = self.departures.hand(peer, connection, outbox)
                if large is not None and large < 0:
                    self.refused(peer, large)
                    return False
                if large is not None:
                    continue
            waiting = outbox.peek(_PUMP)
            if not waiting:
                return False
            # a signal handler is called after a call of C, but not within a `for` over one
            for result in map(link.send_many, (waiting,)):
                handed.given = result[0]
            accepted, code = result
            self.count_given(connection, outbox)
            self.engine.hint(code)
            if accepted == len(waiting):
                continue
            if code == errors.MessageTooLarge.code:
                code = self._hand_too_large(peer, connection, outbox)
            if code < 0:
                self.refused(peer, code)
                return False
        return True

    def count_given(self, connection: Connection, outbox: Outbox | None) -> None:
        """What the link has taken leaves the outbox, and is never given to another link."""
        handed = connection.handed
        if handed.given and outbox is not None:
            ranges = outbox.drop(handed.given)
            handed.given = 0
            for first, last in ranges:
                handed.add(first, last)

    def _hand_too_large(self, peer: Remote, connection: Connection, outbox: Outbox) -> int:
        """The next message is longer than a frame may be: offer it, or begin to hand it in pieces;
        skip it where it can never go, or leave it where that is not known yet."""
        data = outbox.peek(1)[0]
        if connection.slow and len(data) > FRAGMENTED_MAX:
            return errors.WouldBlock.code
        limit, _ = limits.limit_of(peer, connection)
        if len(data) > limit:
            [(number, _)] = outbox.drop(1)
            self.departures.replaced(connection, number)
            self.totals.abandoned += 1
            error = limits.too_large(peer, connection, len(data))
            self.fail(peer, number, number, events.Outcome.FAILED, error)
            return 0
        if not peer.classic:
            return self.departures.offer(peer, connection, outbox)
        pieces = Pieces(data, self._fragmented, connection.link.max_message)
        code = self._hand_piece(connection, pieces)
        if code >= 0:
            self._fragmented = self._fragmented + 1 & 0xFFFF
            [(number, _)] = outbox.drop(1)
            connection.handed.add(number, number, pieces.count)
            self.totals.accepted += 1
        return code

    def _hand_piece(self, connection: Connection, pieces: Pieces) -> int:
        """Give the link one fragment. It counts each as a message and its header as payload, which
        is put right here."""
        header, piece = pieces.peek()
        fragment = self.engine.core.encode_fragment(*header) + piece
        code: int = connection.link.send_frame(values.DATA, fragment, values.FRAGMENT)
        if code >= 0:
            connection.pieces = None if pieces.drop() else pieces
            self.totals.accepted -= 1
            self.totals.payload_sent -= len(fragment) - len(piece)
            self.engine.hint(code)
        return code

    def enqueue(
        self, peer: Remote, payload: bytes, priority: int = NORMAL, key: Key | None = None
    ) -> int:
        """Put a message behind those of its class that wait, or in the place of the one with its
        key, and connect if need be. Returns its number. 0: there is no room, and nothing has
        changed.

        Raises:
            NotConnected: the peer is being disconnected.
        """
        if peer.successor is not None:
            raise peer.restarted_error()
        if peer.state is PeerState.DISCONNECTING:
            raise errors.NotConnected(f"peer {peer.name!r} is being disconnected", peer=peer.name)
        peer.quick = None
        if peer.outbox is None:
            peer.outbox = Outbox(
                self.engine.config.send_queue_size, self.engine.config.send_queue_bytes
            )
            if peer.connection is not None:
                peer.connection.handed.seal(peer.accepted)
        if key is not None and key in peer.outbox:
            self.departures.recall(peer)  # it may be what this one replaces
        number = peer.accepted + 1
        replaced = peer.outbox.put(payload, number, priority, key)
        if replaced is None:
            return 0
        peer.accepted = number
        self._count(len(payload))
        if replaced:
            if peer.connection is not None:
                self.departures.replaced(peer.connection, replaced)
            self.totals.abandoned += 1
            text = (
                f"message {replaced:,} to peer {peer.name!r} was replaced by message {number:,} "
                f"with the same key, {key!r}"
            )
            self.fail(
                peer,
                replaced,
                replaced,
                events.Outcome.REPLACED,
                errors.PeerTalkError(text, code=ERR_CANCELLED, peer=peer.name),
            )
        if peer.connection is None and peer.retry is None:
            self.reach(peer)
        return number

    def _count(self, size: int) -> None:
        """A message was put into an outbox: after as many as a link would take in a turn its sender
        rests, so that others have their turn, and what waits may leave."""
        if self._put_in != self.engine.turns:
            self._put, self._put_in = 0, self.engine.turns
        self._put += max(size, TURN_MAX_BYTES // TURN_MAX_MESSAGES)
        if self._put >= TURN_MAX_BYTES:
            self.engine.hint(values.NEEDS_TURN | values.YIELD)

    def send_sync(self, peer: Remote, payload: bytes | bytearray | memoryview, flags: int) -> int:
        """Block until a connected peer's link has taken what waits and then this message. Returns
        hints, or why it did not: let it wait then.

        Raises:
            Timeout: the slots did not come free within 5 s; the message was not accepted, what
                waited before it waits on.
        """
        connection = peer.connection
        assert connection is not None
        link, code = connection.link, 0
        while peer.outbox is not None and code == 0:
            before, code = (
                (peer.handed, connection.pieces and connection.pieces.offset),
                link.drain(),
            )
            self.pump(peer)
            if (
                code == 0
                and (peer.handed, connection.pieces and connection.pieces.offset) == before
            ):
                return errors.WouldBlock.code  # not for want of slots: memory comes free by and by
        if code == 0:
            code = link.send_sync(payload, flags)
        if code == errors.Timeout.code:
            text = (
                f"peer {peer.name!r} has not taken in 5 s what is on its way to it; "
                "nothing was accepted: send again"
            )
            raise errors.Timeout(text, peer=peer.name)
        if code >= 0:
            self.engine.hint(code)
            peer.accepted += 1
        return int(code)

    def refused(self, peer: Remote, code: int) -> None:
        """A link took no more. A slot comes free with an event; a system without memory for the
        first one tells nobody when it has some, so all who met that ask again soon, together."""
        if code == errors.OutOfMemory.code:
            if not self._starved:
                self.engine.after(_STARVED_RETRY, self._ask_again)
            self._starved[peer] = None

    def _ask_again(self) -> None:
        starved, self._starved = self._starved, {}
        for peer in starved if not self.engine.closed else ():
            self.pump(peer)

    # What became of it ----------------------------------------------------------------------------

    def sent(self, connection: Connection, count: int, code: int) -> None:
        """A link reports the next count messages that it was given: sent, or failed with code."""
        peer = connection.peer
        if not isinstance(peer, Remote):
            return
        offering, handed = connection.offering, connection.handed
        if (
            peer.quick is not None
            and peer.connection is connection
            and not (code or handed.runs or offering or connection.owed)
            and not (peer.lines or peer.stream or peer.afar or self.engine.publish)
        ):  # nothing waits, and nobody is to be told
            handed.first += count
            self.totals.sent += count
            peer.reported += count
            return
        done = (
            offering is not None and offering.departing is not None and self.departures.settle(peer)
        )
        if count:
            if code == 0 and not handed.runs:
                first = handed.first
                handed.first = first + count
                if peer.accepted < first + count - 1:
                    # a signal handler struck between the link and the count
                    peer.accepted = first + count - 1
                self._tell_sent(peer, first, first + count - 1)
            else:
                for first, last, sent in handed.report(count, sent=code == 0):
                    if sent:
                        self._tell_sent(peer, first, last)
                    else:
                        self.departures.failed(connection, first, last)
                        self.fail(peer, first, last, events.Outcome.UNKNOWN, endings.closed(peer))
                if handed.crowded:
                    handed.prune(connection.link.unconfirmed)
        if offering is not None:
            self.departures.tell_undone(connection)
        self.go_on(connection, is_slice=not (count or done) and offering is not None)

    def go_on(self, connection: Connection, *, is_slice: bool = False) -> None:
        """There may be room on a link, or something that may leave. is_slice: because a slice of a
        large message has left, and nothing else."""
        peer = connection.peer
        assert isinstance(peer, Remote)
        if (
            connection.state is State.OPEN
            and not self.engine.closing
            and peer.state is PeerState.CONNECTED
        ):
            if is_slice and peer.outbox is not None:
                self._go_on_large(peer, peer.outbox)
            else:
                self.pump(peer)
        else:
            self.slots_came_free(connection)

    def _tell_sent(self, peer: Remote, first: int, last: int) -> None:
        count = last - first + 1
        self.totals.sent += count
        if self.engine.publish is not None:
            self.engine.publish(events.Sent(peer.view, first, last))
        peer.reported += count
        if peer.stream is not None:
            peer.stream.told(first, last, None)

    def tell_sent_again(self, peer: Remote, connection: Connection) -> None:
        """A link's report was cut off: what it said to be sent is told, if it is not counted."""
        handed = connection.handed
        if not handed.runs and handed.first > peer.reported + 1:
            self._tell_sent(peer, peer.reported + 1, handed.first - 1)

    def settle(self, connection: Connection) -> None:
        """Nothing more is sent on a connection: what has left and is not told yet is sent."""
        count = 0 if connection.link is None else connection.link.settle()
        if count:
            self.sent(connection, count, 0)

    def revoke(self, connection: Connection) -> None:
        """Before the link of a connection that is over is closed: what it reported as sent and the
        other side's system has not acknowledged may not have arrived. Reported as Failed, and
        counted as such and no longer as sent."""
        peer, link = connection.peer, connection.link
        if link is None or not isinstance(peer, Remote):
            return
        unconfirmed = link.unconfirmed
        if not unconfirmed:
            return
        error = errors.ConnectionClosed(
            f"the connection with peer {peer.name!r} ended before its system acknowledged the "
            "message; the message may have arrived",
            peer=peer.name,
        )
        for first, last in connection.handed.revoke(unconfirmed):
            self.fail(peer, first, last, events.Outcome.UNKNOWN, error, was_sent=True)

    def fail(
        self,
        peer: Remote,
        first: int,
        last: int,
        outcome: events.Outcome,
        error: errors.PeerTalkError,
        *,
        was_sent: bool = False,
    ) -> None:
        """Messages that will not be sent (again): counted, and reported. was_sent: they were
        reported as sent before."""
        count = last - first + 1
        peer.failed += count
        self.totals.failed += count
        if self.engine.closing:
            self.unsent += count
        if was_sent:
            self.totals.sent -= count
        else:
            peer.reported += count
        if peer.stream is not None:
            peer.stream.told(first, last, error)
        if self.engine.publish is not None:
            self.engine.publish(events.Failed(peer.view, first, last, outcome, error))

    def fail_unnumbered(self, peer: Remote, error: errors.PeerTalkError) -> None:
        """A message from another thread, accepted there, can never be sent: reported as Failed with
        number 0."""
        self.totals.abandoned += 1
        self.totals.failed += 1
        if self.engine.closing:
            self.unsent += 1
        if self.engine.publish is not None:
            self.engine.publish(events.Failed(peer.view, 0, 0, events.Outcome.FAILED, error))

    def fail_queued(self, peer: Remote, error: errors.PeerTalkError) -> None:
        """What waited in the outbox will not be sent, nor what other threads left."""
        self.departures.recall(peer)
        outbox = peer.outbox
        peer.outbox = None
        for first, last in outbox.clear() if outbox is not None else ():
            self.totals.abandoned += last - first + 1
            self.fail(peer, first, last, events.Outcome.FAILED, error)
        for _ in range(peer.drop_from_afar() if self.engine.closing else 0):
            self.fail_unnumbered(peer, error)
        if peer.afar:
            self.engine.post(peer.on_room)

    # In -------------------------------------------------------------------------------------------

    def deliver(
        self, peer: Remote, connection: Connection, payload_bytes: int, payloads: list[bytes]
    ) -> None:
        """Put what arrived where it is taken from; a full inbox pauses the link. Of a node that is
        closing no link is paused, so that its own last bytes are not destroyed: what a full inbox
        has no room for then is dropped."""
        count, inbox = len(payloads), self.inbox
        peer.received += count
        peer.received_bytes += payload_bytes
        self.totals.received += count
        if self.engine.closing:
            if inbox.total <= self.engine.config.receive_queue_bytes:
                inbox.put(peer, payloads, payload_bytes)
                self.kept = payloads
            return
        outlet = inbox.put(peer, payloads, payload_bytes)
        self.kept = payloads
        # below a quarter the level is 0, and whoever was told 0 needs no look
        if connection.pressure or outlet.cost * 4 >= inbox.limit:
            self.press(connection, outlet)
        if inbox.full:
            self.pause_if_full(connection, peer)
            if inbox.floods():
                for other in self.engine.connections.by_tag.values():
                    if isinstance(other.peer, Remote) and other.state is State.OPEN:
                        self.pause_if_full(other, other.peer)

    def pause_if_full(self, connection: Connection, peer: Remote) -> None:
        """Read a connection no more while there is no room for what it may bring."""
        outlet = self.inbox.outlet_of(peer)
        if (
            self.inbox.must_wait(outlet)
            and connection.state is not State.CLOSED
            and connection not in outlet.paused
        ):
            self.totals.pauses += 1
            connection.link.pause()
            connection.spoilt = True
            outlet.pause(connection)

    def read_on(self, connection: Connection) -> None:
        """Read a connection again that was held back, unless its messages have no room."""
        peer = connection.peer
        if isinstance(peer, Remote) and connection in self.inbox.outlet_of(peer).paused:
            return
        connection.link.resume()
        self.engine.schedule()

    def resume(self, outlet: Outlet[Remote]) -> None:
        """An outlet has room again: read on."""
        self.engine.cancel(self._warnings.pop(outlet, None))
        if self.engine.troubles.lasting:
            self.engine.troubles.worked(_TAKING)
        paused, outlet.paused = outlet.paused, {}
        for connection in paused:
            if connection.tag in self.engine.connections.by_tag and connection.held is None:
                connection.link.resume()
        self.engine.schedule()

    def _stalled(self, outlet: Outlet[Remote]) -> None:
        """The first link of an outlet waits for room: somebody may have forgotten to take."""
        if outlet not in self._warnings:
            self._warnings[outlet] = self.engine.after(
                _UNTAKEN_TIME, lambda: self._warn_if_paused(outlet)
            )

    def _warn_if_paused(self, outlet: Outlet[Remote]) -> None:
        self._warnings.pop(outlet, None)
        names = sorted({repr(each.peer.name) for each in outlet.paused if each.peer is not None})
        if names:
            text = (
                "nobody takes those from %s: %d bytes wait, and the sender is slowed; "
                "receive() or iterate messages()"
            )
            self.engine.troubles.failed(_TAKING, text, ", ".join(names), outlet.cost)

    def forget_warnings(self) -> None:
        """The node is closed: nobody is to be told to take what has come."""
        self._warnings.clear()
