"""Takes those who call, as far as there are places and descriptors for them.

Where this program has used up its descriptors callers wait for a moment, since some may be about to
come free; those who have waited are turned away on the one that is kept for this. A caller that
nobody answers would take us for gone, or for a classic peer.

Never: reads from a caller, or keeps one for whom there is no place.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from .. import errors
from .._core import values
from ..protocol.connections import Connection
from .engine import Engine, Watched

ACCEPTING = "accepting connections"
TAKING_PEERS = "taking more peers"
"""What may fail, in the words of the log."""
_ACCEPTS_PER_TURN = 64
_ACCEPT_PAUSE = 0.1


class Listener:
    """A listening socket of one engine. On the engine's thread only.

    Args:
        engine: whose connections these become.
        has_room: whether one more may exist, from this host.
        taken: a caller has a connection, which belongs to whoever is told here.
    """

    def __init__(
        self,
        engine: Engine,
        has_room: Callable[[str], bool],
        taken: Callable[[Connection], None],
    ) -> None:
        self.engine = engine
        self._has_room = has_room
        self._taken = taken
        self._local = False
        self._listener: socket.socket | None = None
        self._listening: Watched | None = None

    def open(self) -> int:
        """Accept connections from now on. Returns the TCP port.

        Raises:
            AddressInUse, NoNetwork, PlatformError: naming the option that changes it.
        """
        config = self.engine.config
        self._listener = self.engine.world.listen(
            config.bind, config.port, give_way=config.explain()["port"][1] == "default"
        )
        port: int = self._listener.getsockname()[1]
        self._listening = self.engine.watch(self._listener, values.READ, self._accept)
        return port

    def open_local(self) -> bool:
        """Accept connections of nodes of this host and user from now on, if they can hear of that.
        False: it is not to be, and they use TCP."""
        config, self._local = self.engine.config, True
        if not (config.local and config.discovery and self.engine.world.has_local):
            return False
        try:
            self._listener = self.engine.world.listen_local(self.engine.instance)
            self._listening = self.engine.watch(self._listener, values.READ, self._accept)
        except errors.PeerTalkError as error:
            self.close()
            self.engine.log.info("nodes of this host are to use TCP: %s", error)
            return False
        return True

    def close(self) -> None:
        """Accept no more. May be called again."""
        self.engine.unwatch(self._listening)
        self._listening = None
        if self._listener is not None:
            if self._local:
                self.engine.world.remove_local(self._listener)
            self.engine.close_socket(self._listener)
            self._listener = None

    def _accept(self, *, waited: bool = False) -> None:
        """Take those who call. Where there are no descriptors they wait for a moment, since some
        may be about to come free; those who have waited are turned away."""
        troubles = self.engine.troubles
        for _ in range(_ACCEPTS_PER_TURN):
            if self._listener is None:
                return
            try:
                accepted = self.engine.world.accept(self._listener)
            except errors.PlatformError as error:
                if not waited:
                    self._let_callers_wait()
                elif self._turn_one_away(error):
                    continue
                return
            if accepted is None:
                return
            troubles.worked(ACCEPTING)
            self.engine.spare.refill()
            arrived, address = accepted
            if not self._has_room(address[0]):
                troubles.failed(
                    TAKING_PEERS,
                    "%d connections are as many as there may be (Config.max_peers is %d); callers "
                    "are turned away",
                    len(self.engine.connections),
                    self.engine.config.max_peers,
                )
                self._turn_away(arrived)
                continue
            connection = Connection(
                self.engine.tag(), address, dialled=False, now=self.engine.world.clock()
            )
            connection.socket, connection.local = arrived, self._local
            self.engine.connections.add(connection)
            self._taken(connection)

    def _let_callers_wait(self) -> None:
        self.engine.unwatch(self._listening)
        self._listening = None
        self.engine.after(_ACCEPT_PAUSE, self._accept_again)

    def _accept_again(self) -> None:
        if self._listener is None:
            return
        try:
            self._listening = self.engine.watch(self._listener, values.READ, self._accept)
        except errors.PeerTalkError:
            self._let_callers_wait()
        else:
            self._accept(waited=True)

    def _turn_one_away(self, error: errors.PeerTalkError) -> bool:
        """A caller that nobody answers takes us for gone, or for a classic peer: it is accepted on
        the descriptor that is kept for this, and told that it is not taken. False: there is none,
        or the descriptor was lost to somebody else and all wait on."""
        listener = self._listener
        assert listener is not None
        try:
            with self.engine.spare.use():
                accepted = self.engine.world.accept(listener)
                if accepted is None:
                    # nobody calls: without a descriptor accept() is refused even then
                    return False
                self._turn_away(accepted[0])
        except errors.PlatformError:
            self._let_callers_wait()
            accepted = None
        self.engine.totals.accepts_refused += 1
        become = "are turned away" if accepted is not None else "wait"
        self.engine.troubles.failed(ACCEPTING, "%s; callers %s", error, become)
        return accepted is not None

    def _turn_away(self, arrived: socket.SocketType) -> None:
        full = bytes((errors.RejectReason.FULL,))
        self.engine.world.turn_away(arrived, self.engine.core.encode_frame(values.REJECT, full))
