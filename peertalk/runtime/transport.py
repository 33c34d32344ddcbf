"""A node's engine with all that stands on it: the traffic of messages, the roster of peers, the
switchboard of connections, datagrams and discovery, joined here, opened here and closed here.

Results go to publish() as events, and to the callbacks that were left here.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from .. import errors
from ..config import Config
from ..protocol import events
from ..protocol.addresses import check_interfaces
from ..protocol.classics import Classics
from ..protocol.connections import State
from ..protocol.neighbours import Changed, Found, Gone, Heard
from ..protocol.peer import PeerFlag
from ..protocol.statistics import MemoryReport, MemoryUse, NodeStatistics
from ..protocol.wire import Message
from .datagrams import Datagrams
from .finder import Finder
from .leaving import Below
from .remote import Home, Remote
from .roster import Roster
from .switchboard import Switchboard
from .traffic import Traffic
from .world import World

DIRECT = ("state", "held", "total", "queues", "received", "received_bytes")
"""What a taker looks at, of a connection, the inbox, and a peer: see Loop.taker()."""
_UNBOUNDED = 1 << 62


class Transport(Home):
    """The engine of one node.

    Args:
        config, world, schedule: see Engine.
        make_view: makes what the front door hands out for a peer.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        make_view: Callable[[Remote], Any],
        schedule: Callable[[], None],
    ) -> None:
        super().__init__(config, world, schedule)
        self.make_view = make_view
        self.flags = PeerFlag(config.flags)
        self.finder: Finder | None = None
        self.traffic = traffic = Traffic(self)
        self.datagrams = Datagrams(self)
        self.mailbox = mailbox = self.datagrams.mailbox
        classics = Classics(self.connections.max_connections)
        self.roster = roster = Roster(self, traffic, mailbox, classics, self)
        below = Below(self, traffic, roster, mailbox, self.finish_close)
        self.switchboard = Switchboard(below)
        self.serve_link, self.mend_link = self.switchboard.arrived, self.switchboard.mend
        self.tidy_up = self.switchboard.tidy_up
        self.peers, self.inbox, self.present = roster.peers, traffic.inbox, roster.present
        self.enqueue, self.send_sync = traffic.enqueue, traffic.send_sync
        self.move, self.pump, self.refused = traffic.move, traffic.pump, traffic.refused
        self.recall = traffic.departures.recall
        self.fail_unnumbered = traffic.fail_unnumbered
        self.reach, self.leave = self.switchboard.reach, self.switchboard.leave
        self.reject, self.ping = self.switchboard.reject, self.switchboard.pulse.ping
        self.is_frozen = self.switchboard.watchdog.is_frozen
        self._final: NodeStatistics | None = None
        self._memory = MemoryReport()
        self.heed_forks()

    @property
    def unsent(self) -> int:
        """Messages that were accepted and not sent when the node was closed."""
        return self.traffic.unsent

    # What the engine asks -------------------------------------------------------------------------

    def turned(self) -> None:
        """All that this turn has brought is served."""
        self.traffic.kept = None
        if self.closing and not self.released:
            self.try_twice(self.let_go if self.closed else self.finish_close)
        if self.switchboard.pulse.asking:
            self.switchboard.pulse.answer()

    def release(self) -> None:
        """Everything is given back."""
        for peer in self.roster.everybody():
            peer.tell_reaching(errors.InvalidState(f"node {self.config.name!r} is closed"))
        self.roster.let_go()
        self.try_twice(self.switchboard.stop_listening)
        self.try_twice(self.switchboard.watchdog.stop)
        self.try_twice(self.datagrams.close)
        if self.finder is not None:
            self.try_twice(self.finder.close)
            self.finder = self.switchboard.finder = None
        self.traffic.forget_warnings()

    def orphan(self) -> None:
        """Be dead in a forked child."""
        for peer in self.roster.everybody():
            peer.quick = None
        self.connections.take_in_turns()
        super().orphan()

    # Life -----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Listen and announce.

        Raises:
            AddressInUse, NoNetwork, PlatformError: naming the option that changes it; nothing stays
                open.
        """
        config = self.config
        try:
            world, names = self.world, config.interfaces
            interfaces = world.interfaces()
            check_interfaces(world.interface_names(), interfaces, names, config.bind)
            self.datagrams.open()
            self.port = self.switchboard.listen()
            self.spare.keep()
            if config.discovery:
                self.finder = self.switchboard.finder = Finder(
                    self,
                    self.datagrams,
                    interfaces,
                    told=self._discovered,
                    network_changed=self.switchboard.watchdog.check_addresses,
                )
        except BaseException:
            self._release()
            raise

    def check_own(self, peer: Remote) -> None:
        """Raises InvalidArgument when this is a peer of another node."""
        if peer.transport is not self:
            other, address = peer.transport.config.name, f"{peer.address[0]}:{peer.address[1]}"
            raise errors.InvalidArgument(
                f"peer {peer.name!r} belongs to node {other!r}, not to node {self.config.name!r}: "
                f"name it by its id, {peer.id}, or connect to its address, {address}",
                peer=peer.name,
            )

    def set_flags(self, flags: int) -> None:
        """Announce these flags from now on. Raises as PeerFlag.checked()."""
        self.flags = PeerFlag.checked(flags)
        if self.finder is not None:
            self.finder.set_flags(flags)

    def taker(self, message: type, lock: Any) -> Callable[..., Any] | None:
        """take(waits, alone), which takes the next message in one native call and with no turn,
        while its link has only to be read. It is made as message(view, payload); None: to be taken
        in another way. take(waits, alone, place) leaves it in a list, and says whether there is
        one. lock: the RLock of whoever turns the node. None in place of take: there is none
        here."""
        direct = self.connections.direct = {}
        values = direct, self._came, self.inbox, self.totals, lock
        return self.workers.taker((message, State.OPEN), values, DIRECT)

    def giver(self) -> Callable[..., Any] | None:
        """See Driven.giver(): the taker of the loop itself, where no workers have the links."""
        return None if self.workers.work else self.taker(Message, self.lock)

    def quick(self) -> None:
        """Each turn here is the engine's."""

    def wake_receivers(self) -> None:
        """Nothing more will come, and nothing more is taken: all who wait hear that."""
        closed = errors.InvalidState(f"node {self.config.name!r} is closed")
        for peer in list(self.peers.values()):
            peer.on_lost(closed)
        self.traffic.inbox.wake_all()
        self.datagrams.waiters.wake_all()

    def close(self, timeout: float | None, on_closed: Callable[[], object]) -> None:
        """Leave politely: send what is queued, DISCONNECT, read to the end, GOODBYE; at most
        timeout seconds, None: however long that takes. on_closed is called when all is closed. May
        be called again; the first deadline that is over holds."""
        if self.closed:
            self.let_go()
            on_closed()
            return
        self.on_closed.append(on_closed)
        begun = self.closing
        with self.lock:
            self.closing = True
        self.connections.take_in_turns()
        self.loop.wake()  # there will be a turn, whatever has happened to the driver
        if timeout is not None:
            self.after(timeout, self.close_now)
        if begun:
            return
        closed = errors.InvalidState(f"node {self.config.name!r} is closed")
        for peer in self.roster.everybody():
            peer.on_lost(closed)
            if peer.connection is None:
                self.traffic.fail_queued(
                    peer,
                    errors.ConnectionClosed(
                        f"the node is closed; {peer.name!r} was not connected", peer=peer.name
                    ),
                )
        # what still arrives is read in any case, so that our own last bytes are not destroyed
        self.traffic.inbox.lift(_UNBOUNDED)
        self.switchboard.close()
        self.finish_close()

    def close_now(self) -> None:
        """End everything at once; what was not sent is counted in unsent and reported as Failed."""
        if self.closed:
            self.let_go()
            return
        if sys.is_finalizing():
            self.lock = threading.RLock()  # a thread that ended with the interpreter may have it
        with self.lock:
            self.closing = True
        self.connections.take_in_turns()
        for peer in self.roster.everybody():
            peer.quick = None
            if peer.connection is not None:
                continue  # the end of its connection reports what that has taken first
            self.traffic.fail_queued(
                peer,
                errors.ConnectionClosed(
                    f"the node was closed before the message to {peer.name!r} was sent",
                    peer=peer.name,
                ),
            )
        self.switchboard.close_now()
        self.finish_close()

    def finish_close(self) -> None:
        """When the last connection is gone: GOODBYE, and everything is given back."""
        if self.closed or self.connections.by_tag:
            return
        if self.finder is not None:
            self.try_twice(self.finder.goodbye)
        self._release()

    def _release(self) -> None:
        with self.lock:
            self._final = self.stats()
            self.memory()
            self.closed = True
            self.closing = True
        self.let_go()

    def seek(self, who: str) -> None:
        """Somebody waits for the peer of this name or id, which is not known."""
        if self.finder is not None and not self.closing:
            self.finder.seek(who)

    def _discovered(self, event: Found | Changed | Heard | Gone) -> None:
        if isinstance(event, Gone):
            self.gone(event)
        else:
            self.found(event)

    def found(self, event: Found | Changed | Heard) -> None:
        """Discovery has heard a new peer, something new of one, or one that is not connected."""
        peer = self.roster.peers.get(event.key)
        if isinstance(event.key, tuple) and (peer is None or peer.connection is None):
            peer = self.switchboard.name_caller(event.key) or peer
        flags = PeerFlag.heard(event.announcement.flags)
        if peer is None:
            peer = self.roster.make_peer(
                event.key, event.announcement.instance, event.announcement.name, event.address
            )
            peer.flags = flags
            self.mailbox.place(peer, peer.connection)
        else:
            before = peer.name, peer.flags
            peer.name, peer.flags = event.announcement.name, flags
            if peer.connection is None:
                peer.address = event.address
            self.roster.version += 1
            self.mailbox.place(peer, peer.connection)
            if before != (peer.name, flags):
                self.emit(events.PeerChanged, peer)
            self.roster.check_name(peer)
        if peer.classic:
            self.switchboard.heard_classic(peer)
        if peer.connection is None:
            self.switchboard.heard(peer, event.heard_at)

    def gone(self, event: Gone) -> None:
        """Discovery has forgotten a peer. One that has said goodbye is not waited for; one that was
        silent may still be reached by the attempt that is under way."""
        peer = self.roster.peers.get(event.key)
        if event.reason is events.LostReason.GOODBYE:
            self.switchboard.expect_no_more(event.key)
        if peer is None or peer.connection is not None:
            return
        trying = peer.retry is not None or self.connections.dialling(peer) is not None
        if trying and event.reason is events.LostReason.TIMEOUT:
            return
        text = f"peer {peer.name!r} is gone ({event.reason.value})"
        lost = errors.ConnectionClosed(text, peer=peer.name)
        self.cancel(peer.retry)
        peer.retry = None
        self.traffic.fail_queued(peer, lost)
        peer.tell_reaching(lost)
        self.roster.forget(peer, event.reason)

    def memory(self) -> MemoryReport:
        """Bytes that the C side holds, part by part; of its end, once the node is closed."""
        if self.forked:
            self.check_open()
        if not self.closed:
            self._memory = MemoryReport(
                {part: MemoryUse(*use) for part, use in self.workers.memory().items()}
            )
        return self._memory

    def stats(self) -> NodeStatistics:
        """Counters of the whole node; of its end, once it is closed."""
        if self._final is not None:
            return self._final
        if self.forked:
            self.check_open()
        open_links = [
            link.statistics()
            for connection in list(self.connections.by_tag.values())  # any thread may ask
            if (link := connection.link) is not None
        ]
        grants = self.traffic.landings.grants
        return self.totals.report(
            open_links,
            self.workers.statistics(),
            self.loop.pool.statistics(),
            links_open=len(open_links),
            links_refused=self.connections.refused,
            inbox_bytes=self.traffic.inbox.total,
            peers=len(self.roster.peers),
            peers_refused=0 if self.finder is None else self.finder.discovery.statistics().refused,
            queued=sum(peer.queued for peer in self.roster.everybody()),
            landing_bytes=grants.held,
            offers_waiting=grants.waiting,
            grants_lost=grants.lost,
        )
