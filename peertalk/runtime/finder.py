"""Discovery on the network: a datagram socket that hears broadcasts, the one of the node's own
datagrams, the interfaces, and the sans-I/O Discovery between them.

What is heard on the interfaces that may be used goes to Discovery. What Discovery wants sent goes
out on every such interface, or to the node that asked; what it finds out goes to whoever made the
Finder. Interfaces are looked up again for each packet to all, since they come and go. An interface
that is asked for (Config.interfaces) and is not there is a trouble, and the others are used.

A timer that comes late tells that the loop was blocked: that time is nobody's silence, and what
waits in the socket is read before anybody is declared lost.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable

from .. import errors
from .._core import values
from ..protocol.addresses import Address, Interface, choose, is_near
from ..protocol.announcing import ANNOUNCING, Announcing
from ..protocol.discovery import Discovery
from ..protocol.neighbours import Changed, Found, Full, Gone, Heard
from ..protocol.peer import Key
from .datagrams import Datagrams
from .engine import Engine, Timer, Watched
from .log import NodeLog, Troubles

_DATAGRAMS_PER_TURN = 64
_BACKLOG = 4096
"""Datagrams that are read before somebody is declared lost: more than a socket holds by default, so
that a flood cannot keep us there."""
_LATE = 0.5
"""Seconds that a timer may be late on a loop that runs."""


class Finder:
    """Announces a node and hears others, from its construction to close().

    Args:
        engine: whose loop and configuration these are.
        datagrams: the node's own socket, which answers come to.
        interfaces: all of this machine, as they are now.
        told: hears what is found out of peers.
        network_changed: told when interfaces have come or gone.

    Raises:
        AddressInUse, PlatformError: naming the option that changes it.
    """

    def __init__(
        self,
        engine: Engine,
        datagrams: Datagrams,
        interfaces: list[Interface],
        *,
        told: Callable[[Found | Changed | Heard | Gone], None],
        network_changed: Callable[[], None],
    ) -> None:
        config = engine.config
        self.engine = engine
        self.datagrams = datagrams
        self._told = told
        self._network_changed = network_changed
        self.discovery = Discovery(
            engine.core,
            instance=engine.instance,
            name=config.name,
            port=engine.port,
            datagram_port=datagrams.mailbox.port,
            chance=random.Random(engine.instance).random,
            announce_interval=config.announce_interval,
            peer_timeout=config.peer_timeout,
            max_peers=config.max_peers,
            flags=config.flags,
            local=engine.local,
        )
        datagrams.hear_for(self.discovery, self.take)
        self._interfaces: list[Interface] = []
        with contextlib.suppress(errors.NoNetwork):  # the first announcement finds that out again
            self._choose(interfaces)
        self._log = NodeLog("peertalk.discovery", config.name)
        self._troubles = Troubles(engine, self._log)
        self._way = Announcing(config)
        self._timer: Timer | None = None
        self._deadline = float("inf")
        self._closed = False
        self._socket = engine.world.datagram_socket(config.discovery_port)
        self._watched: Watched | None = None
        try:
            self._watched = engine.watch(self._socket, values.READ, self._hear)
            self.discovery.start(engine.world.clock())
            self._serve()
        except BaseException:
            self.close()
            raise

    def set_flags(self, flags: int) -> None:
        """Announce these from now on, and at once."""
        self.discovery.set_flags(flags, self.engine.world.clock())
        self._serve()

    def release(self, key: Key) -> None:
        """A peer is no longer connected: from now on its silence counts."""
        self.discovery.release(key, self.engine.world.clock())
        self._serve()

    def heard_within(self, key: Key, seconds: float) -> bool:
        """Whether a connected peer has announced itself in the last so many seconds."""
        return self.discovery.heard_within(key, seconds, self.engine.world.clock())

    def seek(self, who: str) -> None:
        """Somebody waits for the peer of this name or id."""
        self.discovery.seek(who, self.engine.world.clock())
        self._serve()

    def take(self, data: bytes, address: Address) -> None:
        """A discovery packet for this node alone, which came to its datagram port."""
        self._take(data, address, 0, self._wake_up())
        self._serve()

    def look_again(self) -> None:
        """Our interfaces may have changed: where one has come, announce at once and ask who is
        there."""
        before = set(self._interfaces)
        try:
            self._look()
        except (errors.NoNetwork, OSError):
            return  # the next announcement finds that out again, and says so
        if set(self._interfaces) - before:
            self.discovery.start(self.engine.world.clock())
            self._serve()

    def goodbye(self) -> None:
        """Tell everybody that we leave."""
        self.discovery.stop()
        self._send()

    def close(self) -> None:
        """Stop listening. Says nothing on the network."""
        if not self._closed:
            self.engine.cancel(self._timer)
            self.engine.unwatch(self._watched)
            self.engine.close_socket(self._socket)
            self._closed = True  # last, since it may be cut off

    def _hear(self) -> None:
        self._read(_DATAGRAMS_PER_TURN, self._wake_up())
        self._serve()

    def _read(self, count: int, now: float) -> None:
        world = self.engine.world
        for _ in range(count):
            heard = world.hear_broadcast(self._socket)
            if heard is None:
                break
            self._take(*heard, now)

    def _take(self, data: bytes, address: Address, number: int, now: float) -> None:
        if not self._way.narrowed or is_near(self._interfaces, address[0], number):
            self.discovery.receive(data, address, now)

    def _wake_up(self) -> float:
        """The time. What has passed since a deadline that nobody served was passed asleep."""
        now = self.engine.world.clock()
        if now - self._deadline > _LATE:
            self.discovery.was_deaf(now - self._deadline)
            self._deadline = now
        return now

    def _serve(self) -> None:
        discovery, engine = self.discovery, self.engine
        while (event := discovery.next_event()) is not None:
            if isinstance(event, Full):
                text = "no room for one more peer at %s: %s; more are counted in "
                self._log.warning(text + "stats().peers_refused", event.host, event.bound)
            else:
                self._told(event)
        self._send()
        deadline = discovery.next_timeout()
        if deadline is not None and deadline < self._deadline:
            engine.cancel(self._timer)
            self._deadline = deadline
            self._timer = engine.after(max(0.0, deadline - engine.world.clock()), self._due)

    def _due(self) -> None:
        now = self._wake_up()
        self._deadline = float("inf")
        if self.discovery.forgets(now):
            self._read(_BACKLOG, now)
        self.discovery.handle_timeout(now)
        self._serve()

    def _look(self) -> bool:
        """Look at our interfaces; whether they have changed. Of those that are asked for by name,
        the ones that are there count.

        Raises:
            NoNetwork: none is up, or none that we may use.
            OSError: out of descriptors, which asking takes; nothing has changed.
        """
        before = self._interfaces
        try:
            self._choose(self._ask())
        except errors.NoNetwork:
            self._interfaces = []
            raise
        return self._interfaces != before

    def _choose(self, found: list[Interface]) -> None:
        """These are all interfaces now: use those that we may.

        Raises:
            NoNetwork: none of them has the address that we live on.
        """
        config = self.engine.config
        self.discovery.set_own_addresses(frozenset(each.address for each in found))
        self._interfaces = choose(found, config.interfaces, config.bind)

    def _ask(self) -> list[Interface]:
        world = self.engine.world
        try:
            return world.interfaces()
        except errors.NoNetwork:
            raise
        except OSError:
            with self.engine.spare.use():
                return world.interfaces()

    def _send(self) -> None:
        config, world = self.engine.config, self.engine.world
        datagrams, totals = self.datagrams, self.engine.totals
        packets = []
        for packet in self.discovery.data_to_send(world.clock()):
            if packet.to is not None:
                refused = world.send_to(datagrams.socket, packet.data, packet.to) != 0
                totals.announcements_sent += not refused
                totals.announcements_refused += refused
            else:
                packets.append(packet)
        if not packets:
            return
        try:
            changed = self._look()
        except errors.NoNetwork as error:
            totals.announcements_refused += len(packets)
            self._troubles.failed(ANNOUNCING, "%s", error)
            return
        except OSError:
            changed = False  # as far as we know: those that there were do for now
        if changed:  # where the system does not tell of it by itself
            self._network_changed()
        for packet in packets:
            self._tell(
                world.broadcast(
                    datagrams.socket if packet.kind == values.QUERY else self._socket,
                    packet.data,
                    config.discovery_port,
                    self._interfaces,
                    config.bind,
                )
            )

    def _tell(self, outcomes: dict[str, int]) -> None:
        """How a packet left by each interface: count that, and say what is wrong when that
        begins."""
        outcome, troubles = self._way.judge(outcomes, self._interfaces, os.strerror), self._troubles
        self.engine.totals.announcements_sent += outcome.sent
        self.engine.totals.announcements_refused += outcome.refused
        for what, why in outcome.troubles.items():
            if why is None:
                troubles.worked(what)
            else:
                troubles.failed(what, "%s", why)
        troubles.forget_others(outcome.troubles)
